"""Is TunedLogisticRegression better than a grid-searched single penalty? Real data, same split, refitted alike.

``fashion`` is Fashion-MNIST; ``fashion7`` its images averaged to 7 x 7, so that no column is another's copy. The
controls: as many columns of pure noise as there are features are appended; the labels of all but the test rows are
permuted. What is not run again stays in the file as it was.
"""

import argparse
import time
from typing import Any

import numpy as np
import scipy.stats
import sklearn.datasets
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from benchmarks import datasets, store, tables
from benchmarks.single_penalty import single_penalty_grid
from bilevax.sklearn import TunedLogisticRegression
from bilevax.study.judging import row_losses

GRID_ITERATIONS = 100  # scikit-learn's default; each fit begins where the last ended


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """All rows."""
    if not name.startswith("fashion"):
        X, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
        return X.astype(np.float32), y
    _, X, y, X_test, y_test, *_ = datasets.pixels()
    X, y = np.concatenate([X, X_test]).astype(np.float32), np.concatenate([y, y_test]).astype(np.int64)
    return X if name == "fashion" else X.reshape(-1, 7, 4, 7, 4).mean(axis=(2, 4)).reshape(-1, 49), y


def compare(name: str, control: str, seed: int, rows: int | None) -> dict[str, Any]:
    """One seed: both tuned on the same split, both trained again on all rows but the test rows."""
    X, y = load(name)
    rng = np.random.default_rng(seed)
    if rows and rows < len(y):
        chosen = rng.choice(len(y), rows, replace=False)
        X, y = X[chosen], y[chosen]
    if control == "noise":
        X = np.hstack([X, rng.normal(size=X.shape).astype(np.float32)])
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, stratify=y, random_state=seed)
    if control == "permuted":
        y = rng.permutation(y)
    _, held = train_test_split(np.arange(len(y)), test_size=0.25, stratify=y, random_state=seed)
    validation = np.zeros(len(y), bool)
    validation[held] = True

    clock = time.perf_counter()
    tuned = TunedLogisticRegression(random_state=seed).fit(X, y, validation=validation)
    seconds = time.perf_counter() - clock
    grid = single_penalty_grid(X, y, validation, max_iter=GRID_ITERATIONS)
    codes = np.searchsorted(tuned.classes_, y_test)
    ours, theirs = (row_losses("classes", m.predict_proba(X_test), codes) for m in (tuned, grid.model))
    out = {
        "data": name, "control": control, "seed": seed, "rows": len(y), "columns": X.shape[1],
        "tuned": float(ours.mean()), "grid": float(theirs.mean()),
        "tuned_accuracy": float(tuned.score(X_test, y_test)), "grid_accuracy": float(grid.model.score(X_test, y_test)),
        "seconds": seconds, "grid_seconds": grid.seconds, "grid_converged": grid.converged, "C": grid.c,
        "method": tuned.method_, "steps": tuned.n_iter_, "chosen": tuned.chosen_step_, "code": tuned.code_.name,
        "gap": tuned.validation_gap_, "start": tuned.start_penalty_,
    }  # fmt: skip
    if control == "noise":
        real = np.arange(X.shape[1]) < X.shape[1] // 2
        varies = X.std(axis=0) > 0
        out["auc"] = float(roc_auc_score(real[varies], -tuned.penalties_[varies]))
    return out


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean paired difference over the seeds with its 95 % t interval, and the times with and without compilation."""
    d = np.array([r["tuned"] - r["grid"] for r in rows])
    half = scipy.stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d)) if len(d) > 1 else np.nan
    later = [r["seconds"] for r in rows[1:]] or [np.nan]
    out = {
        "difference": d.mean(), "low": d.mean() - half, "high": d.mean() + half,
        "grid": np.mean([r["grid"] for r in rows]), "first_seconds": rows[0]["seconds"],
        "later_seconds": np.median(later), "grid_seconds": np.median([r["grid_seconds"] for r in rows]),
        "auc": np.mean([r.get("auc", np.nan) for r in rows]), "least_auc": np.min([r.get("auc", np.nan) for r in rows]),
    }  # fmt: skip
    return {k: float(v) for k, v in out.items()}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", nargs="*", default=["breast_cancer", "digits"], help="and fashion, fashion7, wine, iris"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--controls", action="store_true")
    parser.add_argument("--rows", type=int, help="at most so many rows, drawn anew for each seed")


def main(options: argparse.Namespace) -> None:
    found = store.kept(options)
    names, seeds = (["breast_cancer"], 1) if options.quick else (options.data, options.seeds)
    table = tables.Table("data", "control", "seed", "tuned", "grid", "seconds", "grid's", "steps", "code")
    for name in names:
        for control in ("none", "noise", "permuted") if options.controls else ("none",):
            rows = []
            for seed in range(seeds):
                rows.append(compare(name, control, seed, options.rows))
                figures = (rows[-1][key] for key in ("tuned", "grid", "seconds", "grid_seconds", "steps", "code"))
                table(name, control, seed, *figures)
                found[f"{name} {control}"] = {"summary": summary(rows), "rows": rows}
                store.keep(options, found)
            for what, figure in summary(rows).items():
                table(name, control, what, figure, *[None] * 5)
