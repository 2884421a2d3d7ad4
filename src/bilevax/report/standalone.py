"""Apply coefficients.json to one row with nothing but Python; the report shows this file as it is."""

import math
from typing import Any


def probabilities(model: dict[str, Any], row: dict[str, Any]) -> dict[str, float]:
    """Return the probability of every class, for one row {column: value}; None is a missing cell."""
    scores = list(model["intercept"])
    matched = set()  # columns of which a term holds: "other" is for a value that none of them names
    for term in model["terms"]:
        value = row.get(term["column"])
        if term.get("other"):
            x = 0.0 if term["column"] in matched else 1.0
        elif term["kind"] == "missing":
            x = 1.0 if value is None else 0.0
        elif term["kind"] == "category":
            x = 1.0 if value == term["value"] else 0.0
        else:
            x = float(term["fill"] if value is None else value)
        if term["kind"] != "number" and x == 1.0:
            matched.add(term["column"])
        x = (x - (term.get("mean") or 0.0)) / (term.get("scale") or 1.0)
        scores = [score + weight * x for score, weight in zip(scores, term["weight"], strict=True)]
    if len(scores) == 1:  # two classes: one score, that of the second class
        scores = [0.0, *scores]
    exponentials = [math.exp(score - max(scores)) for score in scores]
    return {c: e / sum(exponentials) for c, e in zip(model["classes"], exponentials, strict=True)}
