"""Records of the first format of runs, made into those that are read now."""

import json
from collections.abc import Mapping

from bilevax.core.events import Plain

_RENAMED = {
    "test_log_loss": "loss",
    "test_log_loss_se": "loss_se",
    "test_accuracy": "accuracy",
    "validation_log_loss": "validation_loss",
}
_SURE = (b'"design_columns"', b'"test_log_loss"')
"""Names that the first format alone has."""


def modern(content: bytes) -> bytes:
    """The lines of ``metrics.jsonl``, those of the first format as they are written now; what is no JSON stays."""
    if not any(name in content for name in _SURE):
        return content
    kept: list[str] = []
    lines = content.split(b"\n")
    return b"\n".join(_line(line, kept) for line in lines)


def _line(line: bytes, kept: list[str]) -> bytes:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(record, dict):
        return line
    if "design_columns" in record:
        record["terms"] = record.pop("design_columns")
    elif "test_log_loss" in record:
        return _compared(record, kept)
    elif record.get("kind") == "paired" and "measure" not in record:
        # the verdict spoke of the single penalty of a grid
        record |= {"measure": "loss", "main": "grid" in str(record.get("name"))}
    else:
        return line
    return json.dumps(record).encode()


def _compared(record: Plain, kept: list[str]) -> bytes:
    """A model on the test rows: the first is the tuned one, and with it comes what models are judged by."""
    scored = record.pop("score_name", None)
    out: list[Mapping[str, object]] = []
    if not kept:
        kept.append(str(record.get("name")))
        score = None if scored == "neg_log_loss" else scored
        out.append({"kind": "scoring", "task": "classes", "loss": "log-loss", "score": score})
    role = "kept" if record.get("name") == kept[0] else "rival"
    renamed = {_RENAMED.get(name, name): value for name, value in record.items()}
    # the score that is the loss says it once
    renamed |= {"role": role} | ({"score": None} if scored in (None, "neg_log_loss") else {})
    return b"\n".join(json.dumps(r).encode() for r in (*out, renamed))
