"""What passes over every row have found, kept in the run's directory: a run that was ended goes on at the next pass."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bilevax.core import files

Arrays = Mapping[str, np.ndarray]


class PassFiles:
    """Files of arrays, ``pass_NAME.npz``, each whole or not there.

    Args:
        folder: which is made.
        of: what the passes are a function of: files of others are not read.
    """

    def __init__(self, folder: Path, of: str) -> None:
        self._folder, self._of = folder, of

    def read(self, name: str) -> Arrays | None:
        """What was kept; None if nothing was, or if it is of others or damaged, and the pass is to be made again.

        Raises:
            StorageError: the system refused.
        """
        content = files.read(self._folder / f"pass_{name}.npz")
        if content is None:
            return None
        try:
            arrays = unpacked_arrays(content)
        except (zipfile.BadZipFile, ValueError, EOFError, OSError, KeyError, NotImplementedError):
            return None
        return arrays if str(arrays.pop("of", "")) == self._of else None

    def write(self, name: str, arrays: Arrays) -> None:
        """Keep it, in place of what there was.

        Raises:
            StorageError: the system refused.
        """
        files.make_directory(self._folder)
        files.write(self._folder / f"pass_{name}.npz", packed_arrays({**arrays, "of": np.array(self._of)}))


def packed_arrays(arrays: Arrays) -> bytes:
    """As the bytes of a file."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    return content.getvalue()


def unpacked_arrays(content: bytes) -> dict[str, np.ndarray]:
    """The inverse of :func:`packed_arrays`."""
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        return {key: found[key] for key in found.files}
