"""``model.safetensors``: the numbers as tensors, and everything else as JSON in its header."""

import json
from pathlib import Path

import numpy as np

from bilevax.core.errors import CorruptError, DataError
from bilevax.tables.linear import LinearModel, linear_from_plain


def model_from_bytes(content: bytes, path: Path) -> LinearModel:
    """The inverse of :func:`model_bytes`; what is read is the caller's to check.

    Raises:
        CorruptError: it is no such file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(content)
        # the header is JSON, its length the first eight bytes
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        plain = json.loads(header["__metadata__"]["model"])
        for entry, weight in zip(plain["terms"], tensors["coef"].T.tolist(), strict=True):
            entry["weight"] = weight
        plain["intercept"] = tensors["intercept"].tolist()
        return linear_from_plain(plain)
    except (SafetensorError, DataError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
        raise CorruptError(f"{path} holds no model that bilevax wrote ({e})") from None


def model_bytes(model: LinearModel) -> bytes:
    """The model, all but the formula."""
    from safetensors.numpy import save

    plain = model.to_plain()
    # Words are for coefficients.json; the numbers are tensors of their own.
    del plain["formula"], plain["intercept"]
    for entry in plain["terms"]:
        del entry["weight"]
    tensors = {"coef": np.ascontiguousarray(model.coef), "intercept": np.ascontiguousarray(model.intercept)}
    return save(tensors, {"model": json.dumps(plain, sort_keys=True, allow_nan=False)})
