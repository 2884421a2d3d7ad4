"""The most suspicious labels of data as they are, no row trusted, and their pictures: for ``labels --real``."""

from typing import Any

import numpy as np

from benchmarks import labels_cells, machine

NAMES = "digits", "fashion", "reviews"
LOOKED_AT, ROWS = 20, 10_000
THINGS = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


def measure(name: str, quick: bool) -> dict[str, Any]:
    """In a process of its own."""
    return machine.fresh("benchmarks.labels_real:measured", name, quick)


def measured(name: str, quick: bool) -> dict[str, Any]:
    """How many labels are expected to be wrong, and the most suspicious; images are drawn into the docs."""
    from bilevax.sklearn import LabelCleaner

    raw, y = labels_cells.rows_of(name)
    some = np.random.default_rng(0).permutation(len(y))[: 300 if quick else ROWS if name == "fashion" else None]
    rows = some if name == "fashion" or quick else np.arange(len(y))
    X = labels_cells.words().fit_transform(raw[rows]) if name == "reviews" else raw[rows].astype(float)
    model = LabelCleaner(random_state=0).fit(X, y[rows])
    wrong = model.wrong_label_probability_
    most = np.argsort(-wrong, kind="stable")[:LOOKED_AT]
    # the most probable other class
    other = np.where(np.eye(model.posterior_.shape[1], dtype=bool)[y[rows]], -1.0, model.posterior_).argmax(axis=1)
    found = [[int(rows[i]), round(float(wrong[i]), 3), int(y[rows[i]]), int(other[i])] for i in most]
    if name == "reviews":
        found = [[*row, " ".join(str(raw[row[0]]).split()[:7])] for row in found]
    elif not quick:
        draw(name, raw, found)
    expected = [float(x) for x in model.expected_wrong_]
    return {"rows": len(rows), "expected": expected, "suspicious": len(model.suspicious_rows_), "most": found}


def draw(name: str, images: np.ndarray, found: list[list[Any]]) -> None:
    """Twenty images: given, the most probable other class, the probability that the given one is wrong."""
    from matplotlib.figure import Figure

    side = int(np.sqrt(images.shape[1]))
    figure = Figure(figsize=(7.5, 5.6), layout="constrained")
    for axes, (row, wrong, given, other) in zip(figure.subplots(4, 5).flat, found, strict=True):
        axes.imshow(images[row].reshape(side, side), cmap="gray_r", interpolation="nearest")
        words = [THINGS[c] if name == "fashion" else c for c in (given, other)]
        axes.set_title(f"{words[0]}, or {words[1]}: {wrong:.3f}", fontsize=7)
        axes.set_axis_off()
    figure.savefig(machine.ROOT / "docs" / f"labels_{name}.png", dpi=80)
