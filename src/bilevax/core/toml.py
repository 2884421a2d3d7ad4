"""Settings as TOML, which the standard library reads and does not write."""

import json
from collections.abc import Mapping


def encode(tables: Mapping[str, Mapping[str, object]]) -> str:
    """Flat TOML tables; None values are left out."""
    lines = []
    for name, table in tables.items():
        lines += [f"[{name}]", *(f"{key} = {_encoded(x)}" for key, x in table.items() if x is not None), ""]
    return "\n".join(lines) + "\n"


def _encoded(value: object) -> str:
    # A JSON string, number, boolean or list of these is the same in TOML, but for the character DEL.
    return json.dumps(value, allow_nan=False, ensure_ascii=False).replace("\x7f", "\\u007f")
