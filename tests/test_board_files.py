"""Faults D15, D16 and E7 (docs/reliability.md): checkpoints that somebody made, whose checksums agree; and clocks."""

import io
import os
import pickle
import resource
import struct
import time

import numpy as np
import pytest

from bilevax.core import manifest
from bilevax.core.errors import CorruptError
from bilevax.runs import checkpoints
from bilevax.runs.checkpoints import Checkpoints, Run

ROWS = np.arange(6.0)


class Payload:
    """Whoever unpickles it makes a file."""

    def __reduce__(self):
        return os.mkdir, ("canary",)


def npy(header, body=b""):
    """An ``.npy`` of version 1.0 with this header."""
    text = header.encode().ljust(118 - 10) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def objects():
    out = io.BytesIO()
    np.lib.format.write_array(out, np.array([Payload()], object), allow_pickle=True)
    return out.getvalue()


def zipped():
    out = io.BytesIO()
    np.savez_compressed(out, a=np.zeros(10**6))
    return out.getvalue()


HEADER = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s,), }"
FORGED = {
    "a pickle": pickle.dumps(Payload()),
    "an .npy of pickled objects": objects(),
    "a zip": zipped(),
    "10^12 rows": npy(HEADER % 10**12, ROWS.tobytes()),
    "fewer rows than there are": npy(HEADER % 5, ROWS.tobytes()),
    "a negative number of rows": npy(HEADER % -6, ROWS.tobytes()),
    "nested rows": npy("[" * 100, ROWS.tobytes()),
    "no header": ROWS.tobytes(),
    "nothing": b"",
}


@pytest.mark.parametrize("content", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("said", [{}, {"shape": [10**12]}, {"dtype": "object"}], ids=["as it was", "10^12", "objects"])
def test_d15_d16_forged_arrays_are_refused_and_run_nothing(tmp_path, monkeypatch, content, said):
    """The manifest agrees with every byte of them; no memory is taken by the word of a header."""
    monkeypatch.chdir(tmp_path)
    with Checkpoints(Run("run")) as store:
        store.save(1, {}, {"w": ROWS})
    (path,) = (tmp_path / "run").glob("step_*")
    sealed = manifest.read(path, checkpoints.KIND, checkpoints.FORMAT)
    body = sealed.content | {"arrays": {"w": sealed.content["arrays"]["w"] | said}}
    (path / "0000.npy").write_bytes(content)
    manifest.write(path, checkpoints.KIND, checkpoints.FORMAT, {"0000.npy": manifest.fingerprint(content)}, body)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Checkpoints(Run("run")) as store, pytest.raises(CorruptError, match="is damaged"):
        store.newest()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    assert not (tmp_path / "canary").exists()


def test_d15_control_the_payload_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.load(io.BytesIO(FORGED["an .npy of pickled objects"]), allow_pickle=True)
    assert (tmp_path / "canary").exists()


def test_e7_the_newest_checkpoint_is_that_of_the_last_step(tmp_path, monkeypatch):
    """Whatever the times of the files, and whatever time it is."""
    run = Run(tmp_path / "run", keep=9)
    for step, hour in ((2, 1), (10, -1), (3, 0), (9, 10 * 365 * 24)):
        monkeypatch.setattr(time, "time", lambda hour=hour: 1.7e9 + 3600 * hour)
        with Checkpoints(run) as store:
            store.save(step, {}, {"w": ROWS + step})
    for step, path in zip((10, 2, 9, 3), sorted((tmp_path / "run").glob("step_*")), strict=True):
        os.utime(path, (1e9 + 1e6 * step, 1e9 - 1e6 * step))
    with Checkpoints(run) as store:
        found = store.newest()
    assert found.step == 10
    assert np.array_equal(found.arrays["w"], ROWS + 10)
