"""The figures of ``verdicts``: shares whose clusters are the problems, tables and checks."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.reported import Share, pool
from benchmarks.tables import Check
from benchmarks.verdict_runs import HIGH, LOW, TOL

ESTIMATORS = "JointSID", "SID"
WITHHELD = {"JointSID": 0.2, "SID": 0.5}
ENOUGH = 300
"""OK runs that a family needs to count."""

BANDS = 8
"""Of the root mean square error, by fourths of a decade."""


def root_mean_square(runs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Of the relative error and of the error of each entry, over the runs of the cell that a run belongs to."""
    _, place, number = np.unique(runs["cell"], return_inverse=True, return_counts=True)

    def rms(x: np.ndarray) -> np.ndarray:
        sums = np.zeros((len(number), *x.shape[1:]))
        np.add.at(sums, place, np.nan_to_num(x, nan=1e30, posinf=1e30, neginf=-1e30) ** 2)
        return np.sqrt((sums.T / number).T)[place]

    return rms(runs["true"]), rms(runs["error"])


def figures(runs: dict[str, np.ndarray]) -> dict[str, Any]:
    """What is checked."""
    ok, far, cluster = runs["code"] == 0, ~(runs["true"] <= TOL), runs["problem"]
    rms, entries = root_mean_square(runs)
    ratio = np.divide(runs["half"], 1.96 * entries, out=np.full_like(entries, np.nan), where=entries > 0)
    both = np.bincount(runs["cell"], ok & far) / np.maximum(np.bincount(runs["cell"]), 1)
    band = np.clip(np.floor(4 * np.log10(np.clip(rms, LOW, HIGH) / LOW)).astype(int), 0, BANDS - 1)
    bands = [Share.of(ok & far, band == k, cluster) for k in range(BANDS)]
    return {
        "runs": len(ok), "OK": int(ok.sum()),
        "codes": np.bincount(runs["code"]).tolist(),
        "wrong": Share.of(far, ok, cluster),
        "withheld": Share.of(~ok, rms < TOL / 3, cluster),
        "signs": Share.of(runs["declared"] & runs["wrong"], np.ones_like(ok), cluster),
        "covered": Share.of(np.abs(runs["error"]) <= runs["half"], ok, cluster),
        "width": float(np.nanmedian(ratio[ok])) if ok.any() else float("nan"),
        "worst cell": float(both.max()), "bands": bands,
        "worst band": max((b.value for b in bands if 20 * b.number >= len(ok)), default=float("nan")),
        "reached": np.quantile(runs["reached"], [0.0, 0.5, 1.0]).tolist(),
        "short": int(np.sum(runs["reached"] > LOW)),
        "rms": np.quantile(rms, [0.1, 0.5, 0.9]).tolist(),
        "steps": [int(runs["steps"].min()), int(runs["steps"].max())],
        "run steps a CPU second": float(runs["speed"]), "CPU seconds": float(runs["cpu"]),
    }  # fmt: skip


HEAD = (
    "family", "estimator", "OK / runs", "OK and wrong", "withheld below tol / 3", "wrong signs", "covered", "width",
    "P(OK, wrong): worst cell, band", "reached", "rms 10, 50, 90 %", "steps", "codes", "CPU s",
)  # fmt: skip


def row(f: dict[str, Any]) -> list[Any]:
    """The cells behind family and estimator."""
    return [
        f"{f['OK']} / {f['runs']}", f["wrong"], f["withheld"], f["signs"], f["covered"],
        f"{f['width']:.2f}", f"{f['worst cell']:.2f}, {f['worst band']:.3f}",
        f"{f['reached'][0]:.2g} to {f['reached'][2]:.2g}, {f['short']} short",
        ", ".join(f"{x:.2g}" for x in f["rms"]), "{} to {}".format(*f["steps"]), " ".join(map(str, f["codes"])),
        f"{f['CPU seconds']:.0f}",
    ]  # fmt: skip


def checks(found: dict[tuple[str, str], dict[str, Any]], enough: int = ENOUGH) -> list[Check]:
    """What is to hold of each family, by its worst."""

    def percent(key: str) -> Callable[[dict[str, Any]], float]:
        return lambda f: 100 * f[key].value

    rows = []
    for estimator in ESTIMATORS:
        of = {name: f for (name, e), f in found.items() if e == estimator}
        for what, figure, least, limit in (
            ("OK runs of a family", lambda f: float(f["OK"]), True, enough),
            ("OK and wrong, %", percent("wrong"), False, 3.0),
            ("OK withheld where rms < tol / 3, %", percent("withheld"), False, 100 * WITHHELD[estimator]),
            ("declared signs that are wrong, % of all entries", percent("signs"), False, 1.0),
            ("coverage over OK runs, %", percent("covered"), True, 93.0),
            ("median width / ideal", lambda f: f["width"], False, 2.5),
        ):
            known = {name: x for name, f in of.items() if np.isfinite(x := figure(f))}
            if known:
                bad = [name for name, x in known.items() if (x < limit if least else x > limit)]
                names = f" ({', '.join(bad)})" if bad else ""
                worst = (min if least else max)(known.values())
                goal = f"at {'least' if least else 'most'} {limit:g}"
                rows.append((f"{estimator}: {what}", f"{worst:.4g}{names}", goal, not bad))
    pooled = pool([f["wrong"] for f in found.values()])
    rows.append(("pooled: OK and wrong, %", str(pooled), "at most 1", not pooled.value > 0.01))
    return rows


def target_figures(runs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Of runs with a target."""
    ok = runs["code"] == 0
    return {
        "runs": len(ok), "OK": int(ok.sum()), "above": Share.of(~(runs["true"] <= TOL), ok, runs["problem"]),
        "passes": float(np.median(runs["passes"])), "CPU seconds": float(runs["cpu"]),
    }  # fmt: skip


def target_row(f: dict[str, Any]) -> list[Any]:
    return [f"{f['OK']} / {f['runs']}", f["above"], f"{f['passes']:.3g} passes", f"{f['CPU seconds']:.0f} s"]


def target_checks(found: dict[tuple[str, str], dict[str, Any]]) -> list[Check]:
    """As :func:`checks`."""
    rows = []
    for e in ESTIMATORS:
        above = [f["above"] for (_, estimator), f in found.items() if estimator == e]
        if above:
            share = pool(above)
            met = not share.value > 0.03
            rows.append((f"{e}, target={TOL:g}: OK runs that are above it, %", str(share), "at most 3", met))
    return rows


def headline(found: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """What is said first: of all families and estimators."""
    every = list(found.values())
    if not every:
        return {}
    wrong = pool([f["wrong"] for f in every])
    return {
        "OK": wrong.number,
        "runs": sum(f["runs"] for f in every),
        "OK that are wrong": round(wrong.value, 5) if wrong.number else None,
        "OK and wrong, worst cell": max(f["worst cell"] for f in every),
        "OK and wrong, worst band": round(max(f["worst band"] for f in every), 5),
    }
