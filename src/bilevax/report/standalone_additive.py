"""Apply coefficients.json to one row with nothing but Python; the report shows this file as it is."""

import datetime
import math
from bisect import bisect_right
from typing import Any


def predict(model: dict[str, Any], row: dict[str, Any]) -> Any:
    """Return {class: probability}, or the mean of a number, for one row {column: value}; None is a missing cell.

    Numbers are numbers, text is text, dates are datetime.date or datetime.datetime.
    """
    bins = [bin_of(effect, row.get(effect["source"]["column"])) for effect in model["effects"]]
    scores = list(model["intercept"])
    for effect, b in zip(model["effects"], bins, strict=True):
        scores = [score + f for score, f in zip(scores, effect["curve"][b], strict=True)]
    for pair in model["pairs"]:
        (i, j), (first, second) = pair["columns"], pair["groups"]
        joint = first[bins[i]] * len(pair["weight"][0]) + second[bins[j]]
        scores = [score + f for score, f in zip(scores, pair["curve"][joint], strict=True)]
    if model["link"] == "identity":
        return scores[0]
    if model["link"] == "log":
        return math.exp(max(-300.0, min(300.0, scores[0]))) * (row[model["exposure"]] if "exposure" in model else 1.0)
    if len(scores) == 1:  # two classes: one score, that of the second class
        scores = [0.0, *scores]
    exponentials = [math.exp(score - max(scores)) for score in scores]
    return {c: e / sum(exponentials) for c, e in zip(model["classes"], exponentials, strict=True)}


def bin_of(effect: dict[str, Any], value: Any) -> int:
    """The bin of a cell: the last is that of missing ones, of text the one before it that of unseen levels."""
    last = len(effect["weight"]) - 1
    if effect["source"]["part"] and value is not None:
        value = part_of(value, effect["source"]["part"])
    if value is None or value != value:  # NaN is no number
        return last
    if effect["edges"] is not None:
        return bisect_right(effect["edges"], value)
    return effect["levels"].index(value) if value in effect["levels"] else last - 1


def part_of(date: datetime.date, part: str) -> float:
    """The year, month, day, weekday (0 is Monday) or hour, with fractions, of a date."""
    if part == "weekday":
        return date.weekday()
    if part == "hour":
        seconds = date.second + date.microsecond / 1e6 if isinstance(date, datetime.datetime) else 0.0
        return date.hour + date.minute / 60 + seconds / 3600 if isinstance(date, datetime.datetime) else 0.0
    return float(getattr(date, part))
