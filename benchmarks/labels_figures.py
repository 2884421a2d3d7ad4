"""The tables and goals of ``labels``, from its record: runs[cell][seed][method] = {"auc", "precision", ...}."""

from statistics import mean
from typing import Any

from benchmarks import tables
from benchmarks.labels_cells import KINDS, LOCATED, TRUSTED, UNTOLD

Runs = dict[str, dict[str, dict[str, Any]]]
ABOUT = {
    "auc": "Area under the ROC of flipped against other rows",
    "precision": "Precision among as many rows as are flipped",
    "ece": "Expected calibration error of the probability of a wrong label",
    "expected": "Expected over true number of wrong labels",
    "accuracy": "Test accuracy after",
}
HEADS = {
    "cleaner": "LabelCleaner", "cleanlab": "cleanlab", "trusted": "trusted rows", "glc": "GLC", "em": "EM",
    "weights": "row weights", "told": "told the matrix", "ceiling": "ceiling",
    "nothing": "no cleaning", "stopped": "stopped early",
}  # fmt: skip
GOALS = (
    ("auc", "cleanlab", 0.0), ("precision", "cleanlab", 0.0), ("auc", "trusted", 0.0), ("auc", "em", -0.005),
    ("auc", "ceiling", -0.015), ("accuracy", "ceiling", -0.025), ("accuracy", "cleanlab", 0.0),
)  # fmt: skip


def average(of_seeds: dict[str, Any], method: str, about: str, beside: str = "cleaner") -> float | None:
    """Over the seeds that this method and another have."""
    both = [run for run in of_seeds.values() if all(about in run.get(m, {}) for m in (method, beside))]
    return mean(run[method][about] for run in both) if both else None


Kinds = tuple[tuple[str, float], ...]
Sizes = dict[str, tuple[int, ...]]


def listed(kinds: Kinds, sizes: Sizes = TRUSTED) -> list[str]:
    """The cells in their order."""
    return [f"{name} {m} {kind} {rate:.0%}" for name in sizes for m in sizes[name] for kind, rate in kinds]


def table(runs: Runs, about: str, kinds: Kinds, sizes: Sizes = TRUSTED) -> str:
    """Means over the seeds that the cleaner has."""
    cells = [cell for cell in listed(kinds, sizes) if average(runs.get(cell, {}), "cleaner", about) is not None]
    methods = [m for m in HEADS if any(average(runs[cell], m, about) is not None for cell in cells)]
    rows = []
    for cell in cells:
        seeds = sum("cleaner" in run for run in runs[cell].values())
        rows.append([cell, seeds, *(shown(average(runs[cell], m, about)) for m in methods)])
    return tables.text(["cell", "seeds", *(HEADS[m] for m in methods)], rows)


def shown(x: float | None) -> str:
    return "" if x is None else f"{x:.4f}"


def margins(runs: Runs, about: str, rival: str) -> dict[str, float]:
    """By how much the cleaner is above a rival in each cell of the goals."""
    out = {}
    for cell in listed(KINDS):
        ours, theirs = (average(runs.get(cell, {}), *pair) for pair in (("cleaner", about, rival), (rival, about)))
        if ours is not None and theirs is not None:
            out[cell] = ours - theirs
    return out


def goals(runs: Runs) -> list[tables.Check]:
    """By the worst cell of each data set, so that every loss is listed."""
    out: list[tables.Check] = []
    for name in TRUSTED:
        for about, rival, least in GOALS:
            of = {cell: x for cell, x in margins(runs, about, rival).items() if cell.startswith(name)}
            if of:
                cell = min(of, key=of.__getitem__)
                below = sum(x < least for x in of.values())
                what = f"{name}: {about} over that of {HEADS[rival]}, least ({cell.removeprefix(name + ' ')})"
                some = f"{of[cell]:+.4f}" + (f"; {below} of {len(of)} cells below" if below else "")
                out.append((what, some, f"at least {least:g}", not below))
        for about, truth, most in (("ece", 0.0, 0.03), ("expected", 1.0, 0.15)):
            values = {cell: average(runs.get(cell, {}), "cleaner", about) for cell in listed(KINDS)}
            of = {cell: abs(x - truth) for cell, x in values.items() if x is not None and cell.startswith(name)}
            if of:
                cell = max(of, key=of.__getitem__)
                what = "calibration error" if about == "ece" else "expected over true number, off by"
                what = f"{name}: {what}, most ({cell.removeprefix(name + ' ')})"
                out.append((what, f"{of[cell]:.4f}", f"at most {most:g}", of[cell] <= most))
    return out


def real(found: dict[str, Any]) -> str:
    """How many labels are expected to be wrong in data as they are."""
    rows = [
        [name, r["rows"], f"{r['expected'][0]:.0f} ({r['expected'][1]:.0f} to {r['expected'][2]:.0f})", r["suspicious"]]
        for name, r in found.items()
    ]
    return tables.text(("data", "rows", "expected wrong (95 %)", "more probably wrong than right"), rows)


def suspicious(found: dict[str, Any]) -> str:
    """The most suspicious reviews, by their first words."""
    rows = [[*row[:4], f"{row[4]} ..."] for row in found["reviews"]["most"]]
    return tables.text(("row", "probability", "given", "or", "begins"), rows)


def page(record: dict[str, Any]) -> str:
    """Markdown: goals, tables, flips that depend on the features, labels as they are, times."""
    runs, parts = record.get("runs", {}), []
    if checks := goals(runs):
        parts += ["Goals:", tables.text(("what", "figure", "goal", "met"), checks)]
    untold: Sizes = dict.fromkeys(UNTOLD, (0,))
    for kinds, sizes, where in (
        (KINDS, TRUSTED, ""),
        (LOCATED, TRUSTED, ", flips that depend on the features"),
        (KINDS, untold, ", no row trusted"),
    ):
        for about, words in ABOUT.items():
            if (text := table(runs, about, kinds, sizes)).count("\n") > 1:
                parts += [f"{words}{where}:", text]
    if found := record.get("real"):
        parts += ["Labels as they are, no row trusted:", real(found)]
        if "reviews" in found:
            parts += ["The twenty most suspicious of Rotten Tomatoes (1: fresh, 0: rotten):", suspicious(found)]
    if times := record.get("times"):
        rows = [
            (name, t["rows"], t["cpu"], t["seconds"], t["goal"], t["cpu"] <= t["goal"]) for name, t in times.items()
        ]
        parts += ["Seconds on one core:", tables.text(("data", "rows", "CPU s", "seconds", "goal", "met"), rows)]
    return "\n\n".join(parts) + "\n"
