"""``model.safetensors``: the numbers as tensors, and everything else as JSON in its header."""

import json
from pathlib import Path

import numpy as np

from bilevax.core.errors import CorruptError, DataError
from bilevax.core.events import Plain
from bilevax.study.kept import TableModel
from bilevax.tables.additive import FORMAT as ADDITIVE
from bilevax.tables.additive import additive_from_plain
from bilevax.tables.linear import linear_from_plain


def model_from_bytes(content: bytes, path: Path) -> TableModel:
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
        plain["intercept"] = tensors["intercept"].tolist()
        if plain["format"] == ADDITIVE:
            for k, entry in enumerate([*plain["effects"], *plain["pairs"]]):
                entry["curve"] = tensors[f"curve_{k}"].tolist()
        else:
            for entry, weight in zip(plain["terms"], tensors["coef"].T.tolist(), strict=True):
                entry["weight"] = weight
        return model_from_plain(plain)
    except (SafetensorError, DataError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
        raise CorruptError(f"{path} holds no model that bilevax wrote ({e})") from None


def model_bytes(model: TableModel) -> bytes:
    """The model, all but the formula.

    Raises:
        DataError: its parts do not fit together.
    """
    from safetensors.numpy import save

    plain = model.to_plain()
    model_from_plain(plain)
    tensors = {"intercept": np.array(plain.pop("intercept"), np.float64)}
    if plain["format"] == ADDITIVE:
        for k, entry in enumerate([*plain["effects"], *plain["pairs"]]):
            tensors[f"curve_{k}"] = np.array(entry.pop("curve"), np.float64)
    else:
        # Words are for coefficients.json; the numbers are tensors of their own.
        del plain["formula"]
        tensors["coef"] = np.ascontiguousarray(np.array([entry.pop("weight") for entry in plain["terms"]]).T)
    return save(tensors, {"model": json.dumps(plain, sort_keys=True, allow_nan=False)})


def model_from_plain(plain: Plain) -> TableModel:
    """Of ``coefficients.json``, checked.

    Raises:
        DataError: it is no model.
    """
    return additive_from_plain(plain) if plain.get("format") == ADDITIVE else linear_from_plain(plain)
