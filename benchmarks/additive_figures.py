"""The tables and goals of ``additive``, from its record: runs[table][method][seed] = {"loss", "cpu", ...}."""

from collections.abc import Iterable
from math import exp, log
from statistics import mean
from typing import Any

from benchmarks import tables
from benchmarks.additive_list import TABLES

Runs = dict[str, dict[str, dict[str, dict[str, Any]]]]
HEADS = {
    "linear": "ridge grid", "lasso": "l1 grid", "bam": "mgcv `bam`", "ebm": "EBM, no pairs", "ebm_pairs": "EBM",
    "boosting": "HGB", "additive": "additive", "chosen": "additive, chosen", "pairs": "additive, pairs",
}  # fmt: skip
RELATIVE, ABSOLUTE = 0.02, 0.005
MANY_ROWS, FEW_WEIGHTS = 4000, 500


def of(runs: Runs, table: str, method: str) -> dict[str, dict[str, Any]]:
    """The splits that a method was measured on."""
    measured = runs.get(table, {}).get(method, {})
    return {seed: run for seed, run in measured.items() if "loss" in run}


def both(runs: Runs, a: str, b: str, table: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Their runs on the splits that both were measured on."""
    first, second = of(runs, table, a), of(runs, table, b)
    return [(first[seed], second[seed]) for seed in first if seed in second]


def average(runs: Iterable[dict[str, Any]], key: str) -> float:
    return mean(run[key] for run in runs)


def excess(runs: Runs, a: str, b: str) -> dict[str, tuple[float, float]]:
    """By how much a's mean loss is above b's on each table: the part, and the difference."""
    out = {}
    for table in runs:
        if pairs := both(runs, a, b, table):
            ours, theirs = (average((pair[i] for pair in pairs), "loss") for i in (0, 1))
            out[table] = ours / theirs - 1, ours - theirs
    return out


def ratios(runs: Runs, a: str, b: str) -> dict[str, float]:
    """Geometric means over the splits of a's loss over b's, for each table."""
    return {
        table: exp(mean(log(first["loss"] / second["loss"]) for first, second in pairs))
        for table in runs
        if (pairs := both(runs, a, b, table))
    }


def seconds(runs: Runs, a: str, b: str) -> dict[str, tuple[float, float]]:
    """Mean CPU seconds of both on each table that both were measured on."""
    found = {table: both(runs, a, b, table) for table in runs}
    return {
        table: (average((x for x, _ in pairs), "cpu"), average((y for _, y in pairs), "cpu"))
        for table, pairs in found.items()
        if pairs
    }


def cell(measured: dict[str, dict[str, Any]], key: str) -> str:
    """The mean over the splits, or why there is none."""
    if done := [run for run in measured.values() if key in run]:
        some = "" if len(done) == len(measured) else f" ({len(done)} of {len(measured)})"
        return f"{average(done, key):.4f}{some}" if key == "loss" else f"{average(done, key):.3g}{some}"
    said = {run.get("failed", "") for run in measured.values()}
    return {"n/a": "n/a", "time": "> 30 min"}.get(next(iter(said)), "failed") if said else ""


def table(runs: Runs, key: str) -> str:
    """Losses or CPU seconds, a row a table, in the order of the list."""
    methods = [method for method in HEADS if any(found.get(method) for found in runs.values())]
    rows = []
    for name in TABLES:
        if name in runs:
            t = TABLES[name]
            about = f"{name} ({t.family}, {t.rows:,} x {t.columns}{', seen' if t.seen == 'additive' else ''})"
            rows.append([about, *(cell(runs[name].get(method, {}), key) for method in methods)])
    return tables.text(["table", *(HEADS[method] for method in methods)], rows)


def goals(runs: Runs) -> list[tables.Check]:
    """What the additive models are to reach, as far as there are runs of both sides."""
    out: list[tables.Check] = []
    if over := excess(runs, "chosen", "linear"):
        for name, (part, difference) in over.items():
            met = part <= RELATIVE or difference <= ABSOLUTE
            out.append((f"{name}: loss over the ridge grid's", f"{part:+.1%}, {difference:+.4f}", "2 % or .005", met))
        pooled = mean(part for part, _ in over.values())
        out.append((f"loss over the ridge grid's, mean of {len(over)} tables", f"{pooled:+.2%}", "0", pooled <= 0))
    if by := ratios(runs, "chosen", "ebm"):
        pooled = exp(mean(map(log, by.values())))
        out.append((f"loss over EBM's, geometric mean of {len(by)} tables", f"{pooled:.4f}", "1.01", pooled <= 1.01))
    if by := ratios(runs, "pairs", "ebm_pairs"):
        part = mean(ratio <= 1.02 for ratio in by.values())
        out.append((f"pairs: part of {len(by)} tables within 1.02 of EBM", f"{part:.2f}", "0.5", part >= 0.5))
    for method, goal in (("additive", 1 / 3), ("chosen", 1.0)):
        if by := seconds(runs, method, "ebm"):
            ours, theirs = (sum(pair[i] for pair in by.values()) for i in (0, 1))
            what = f"{HEADS[method]}: CPU over EBM's, {len(by)} tables in total"
            out.append(
                (what, f"{ours:.0f} s / {theirs:.0f} s = {ours / theirs:.3f}", f"{goal:.3g}", ours <= goal * theirs)
            )
    for name, (ours, theirs) in seconds(runs, "additive", "ebm").items():
        run = next(iter(of(runs, name, "additive").values()))
        if run["rows"] >= MANY_ROWS and run["weights"] <= FEW_WEIGHTS:
            out.append((f"{name}: CPU over EBM's", f"{ours:.3g} / {theirs:.3g}", "0.2", ours <= 0.2 * theirs))
    return out


def listing() -> str:
    """The tables, where they are, and what of them had been looked at before."""
    rows = [
        [name, t.family, t.rows, t.columns, f"`{t.package}`", f"`{t.path}`", t.seen or "no"]
        for name, t in TABLES.items()
    ]
    return tables.text(("table", "family", "rows", "columns", "package", "path", "seen before"), rows)


def page(runs: Runs) -> str:
    """Markdown: the list, losses, seconds, goals."""
    parts = [
        listing(),
        "Test log-loss or mean deviance, mean of three splits:", table(runs, "loss"),
        "CPU seconds of a fit on one thread:", table(runs, "cpu"),
    ]  # fmt: skip
    if checks := goals(runs):
        parts += ["Goals:", tables.text(("what", "figure", "at most", "met"), checks)]
    return "\n\n".join(parts) + "\n"
