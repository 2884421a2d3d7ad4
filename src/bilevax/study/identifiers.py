"""Columns that tell rows apart and nothing more, columns of codes, and columns whose value several rows share."""

import re

import numpy as np

from bilevax.study.levels import Levels, option, such_as, words_of

_LOOKED_AT = 200
_SHAPES = {
    "UUIDs": r"\{?[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\}?",
    "e-mail addresses": r"[^@\s]+@[^@\s]+\.[A-Za-z]{2,}",
    "web addresses": r"(https?://|www\.)\S+",
    "hashes": r"(?=.*\d)(?=.*[a-fA-F])([0-9a-f]{12,}|[0-9A-F]{12,})",
    "numbers of an account, a customer or the like": r"[A-Za-z]{0,4}[-_ #]?\d{3,}([-_ /]\d+)*",
}
_FREE_TEXT = 5  # words
# Pairs of equal numbers that are to be expected, where there are none.
_PAIRS = 12
_DISTANCES = 10


def identifier(column: Levels, *, words: bool, older: bool) -> str:
    """A sentence where nearly every row has a value of its own that says nothing of it; empty otherwise.

    Args:
        column: that is looked at.
        words: whether those of a text can be read.
        older: whether a column can be given that says which rows are older.
    """
    drop = option("--drop", column.name)
    if not column.unique:
        return ""
    if column.kind == "text":
        what = _text_that_is_unique(column)
        if what == "free text":
            read = option("tune --words", column.name)
            but = f"which a linear model reads ({read}); or" if words else "which is not read:"
            return f"column '{column.name}' is free text, {but} leave it out ({drop})"
        return (
            f"column '{column.name}' has a text of its own in nearly every row ({len(column.levels):,} of "
            f"{column.known:,}), {what}, such as {such_as(column, 1)}: nothing can be learned from it; leave it out "
            f"({drop})"
        )
    said = words_of(column.name)
    if not column.whole or (said.time and not said.identifier):
        return ""
    reason = _reason_for_an_identifier(column, named=said.identifier)
    if not reason:
        return ""
    time = f", or, if it says which are older, give it as {option('--time-column', column.name)}"
    return f"column '{column.name}' {reason}: leave it out ({drop}){time if older and column.steady else ''}"


def _text_that_is_unique(column: Levels) -> str:
    some = column.levels[:_LOOKED_AT].tolist()
    for what, pattern in _SHAPES.items():
        if np.mean([re.fullmatch(pattern, text) is not None for text in some]) >= 0.9:
            return what
    return "free text" if np.median([len(text.split()) for text in some]) >= _FREE_TEXT else "a name or an identifier"


def _reason_for_an_identifier(column: Levels, *, named: bool) -> str:
    # m, m + 1, ..., m + n - 1, each once: numbers of the rows
    levels, n = column.levels, len(column.levels)
    if levels[-1] - levels[0] + 1 == n and n == column.known:
        return "counts the rows" if column.steady else f"numbers the rows from {levels[0]:.0f} to {levels[-1]:.0f}"
    if named:
        return "is an identifier by its name, with a number of its own in nearly every row"
    if n < column.known:
        return ""
    # Quantities agree by chance as often as they lie one apart, or two; numbers that are given out never do.
    apart = sum(np.count_nonzero(np.isin(levels + d, levels)) for d in range(1, _DISTANCES + 1))
    if apart / _DISTANCES / 2 >= _PAIRS:
        return "has another whole number in every row, where a quantity would have some twice: numbers given out"
    digits = {len(str(int(abs(x)))) for x in levels.tolist()}
    return (
        "has another number of as many digits in every row, as numbers of an account have"
        if len(digits) == 1 and min(digits) >= 8
        else ""
    )


def code(column: Levels) -> str:
    """A sentence where numbers stand for names, as postal codes do."""
    if not column.whole or not words_of(column.name).code or len(column.levels) < 3 or column.unique:
        return ""
    if column.levels[0] < 0:
        return ""
    text = option("--types", column.name, "=text")
    return (
        f"column '{column.name}' is a code by its name ({such_as(column)}), and is read as a quantity: {text} has each "
        "value learned by itself"
    )


def group(column: Levels) -> str:
    """A sentence where the name says that several rows are of one customer, patient or the like."""
    few = column.known / max(len(column.levels), 1)
    if not words_of(column.name).identifier or column.kind in ("date", "boolean") or column.unique:
        return ""
    if not (column.whole or column.kind == "text") or len(column.levels) < 10 or few < 1.05:
        return ""
    return (
        f"column '{column.name}' has {len(column.levels):,} values for {column.known:,} rows: if rows of one value "
        f"belong together, {option('--group', column.name)} keeps them on one side of every split"
    )
