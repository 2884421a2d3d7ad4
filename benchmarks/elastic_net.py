"""Is an elastic net tuned by hypergradients faster than scikit-learn's grid of 100, and as good?

The lasso and the elastic net on diabetes, the lasso on a drawn problem with ten times as many columns as rows, and l1
logistic regression on 20 Newsgroups, the documents on computers against those on science (tf-idf, as it is). The rivals
are LassoCV, ElasticNetCV (100 values of alpha for each of seven shares of l1, those of its documentation), and
LogisticRegressionCV by liblinear, the fastest of scikit-learn's solvers here, with 100 values of C down to a thousandth
of the l1 that leaves no weight. Both see the same standardised columns and the same five folds. The cross-validated
loss at the penalties that each chose is had from scikit-learn's own models, trained to the end; the test loss from the
models that each returned. Half the squared error, over the variance of y, or log-loss. Times in turn, one pinned
thread, medians.
"""

import argparse
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import sklearn.datasets
from sklearn.linear_model import ElasticNet, ElasticNetCV, Lasso, LassoCV, LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import KFold, train_test_split

from benchmarks import datasets, machine, store, tables
from bilevax.sklearn import TunedElasticNet, TunedElasticNetClassifier

GRID = 100
RATIOS = [0.1, 0.5, 0.7, 0.9, 0.95, 0.99, 1.0]
FOLDS = KFold(5, shuffle=True, random_state=0)
EQUAL = 1e-3
"""Part by which the cross-validated loss may be above the grid's."""


class Case(NamedTuple):
    """A problem with both ways of tuning; ``at`` makes scikit-learn's model at the penalties of a tuned one."""

    X: Any
    y: np.ndarray
    X_test: Any
    y_test: np.ndarray
    tuned: Any
    grid: Any
    at: Callable[[Any, int], Any]
    loss: Callable[[Any, Any, np.ndarray], np.ndarray]


def squares(model: Any, X: Any, y: np.ndarray) -> np.ndarray:
    return 0.5 * (model.predict(X) - y) ** 2


def log_losses(model: Any, X: Any, y: np.ndarray) -> np.ndarray:
    score = np.ravel(X @ np.ravel(model.coef_)) + np.ravel(model.intercept_)
    return np.logaddexp(0.0, score) - y * score


def numbers(X: np.ndarray, y: np.ndarray, *, lasso: bool) -> Case:
    """A fifth of the rows tests; columns and y are standardised by the others."""
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.2, random_state=0)
    mean, scale, center, unit = X.mean(0), X.std(0), y.mean(), y.std()
    rows = (X - mean) / scale, (y - center) / unit, (X_test - mean) / scale, (y_test - center) / unit
    exact = {"tol": 1e-8, "max_iter": 1_000_000}
    tuned = TunedElasticNet(1.0 if lasso else None, standardize=False, cv=FOLDS, random_state=0)
    if lasso:
        return Case(*rows, tuned, LassoCV(alphas=GRID, cv=FOLDS), lambda m, _: Lasso(m.alpha_, **exact), squares)
    grid = ElasticNetCV(l1_ratio=RATIOS, alphas=GRID, cv=FOLDS)
    return Case(*rows, tuned, grid, lambda m, _: ElasticNet(m.alpha_, l1_ratio=m.l1_ratio_, **exact), squares)


def diabetes(*, lasso: bool) -> Case:
    return numbers(*sklearn.datasets.load_diabetes(return_X_y=True), lasso=lasso)


def drawn(n: int) -> Case:
    """20 of 10 n independent columns matter; the noise is half of their part in y."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n * 5 // 4, 10 * n))
    signal = X[:, :20] @ rng.normal(size=20)
    return numbers(X, signal + 0.5 * signal.std() * rng.normal(size=len(X)), lasso=True)


def newsgroups(rows: int | None) -> Case:
    data = datasets.newsgroups()
    if rows:
        data = data.few(rows)
    # the classes are numbered in the order of their names: comp.* are 1 to 5, sci.* are 11 to 14
    parts = []
    for X, y in ((data.X, data.y), (data.X_test, data.y_test)):
        some = np.flatnonzero(np.isin(y, [1, 2, 3, 4, 5, 11, 12, 13, 14]))
        parts += [X[some].astype(np.float64), (y[some] <= 5).astype(int)]
    X, y, X_test, y_test = parts
    # C = 1 / (n l1), l1 from the largest gradient without weights down to a thousandth of it
    grid = 1.0 / np.max(np.abs(X.T @ (y - y.mean()))) * np.geomspace(1.0, 1000.0, GRID)
    options = {"solver": "liblinear", "intercept_scaling": 100.0, "max_iter": 1000, "random_state": 0}
    rival = LogisticRegressionCV(
        Cs=grid, cv=FOLDS, l1_ratios=(1.0,), scoring="neg_log_loss", use_legacy_attributes=False, **options
    )

    def at(model: Any, rows_in: int) -> Any:
        # the grid keeps C in the folds, where there are fewer rows; tuning the penalty on their mean loss
        C = 1.0 / (rows_in * model.alpha_) if hasattr(model, "alpha_") else model.C_
        return LogisticRegression(C=C, l1_ratio=1.0, **options | {"tol": 1e-6})

    tuned = TunedElasticNetClassifier(1.0, standardize=False, cv=FOLDS, random_state=0)
    return Case(X, y, X_test, y_test, tuned, rival, at, log_losses)


def cross_validated(case: Case, model: Any) -> float:
    """Mean loss of the rows, each under scikit-learn's model at these penalties, trained without its fold."""
    losses = np.empty(len(case.y))
    for train, held in FOLDS.split(case.X):
        fitted = case.at(model, len(train)).fit(case.X[train], case.y[train])
        losses[held] = case.loss(fitted, case.X[held], case.y[held])
    return float(losses.mean())


def arguments(parser: argparse.ArgumentParser) -> None:
    machine.arguments(parser, rounds=5)
    parser.add_argument("--slow-rounds", type=int, default=1, help="of what takes minutes; default %(default)s")


def main(options: argparse.Namespace) -> None:
    machine.pin(options.core, options.quick)
    warnings.simplefilter("ignore")
    quick = options.quick
    cases = {
        "diabetes, lasso": (lambda: diabetes(lasso=True), options.rounds),
        "diabetes, elastic net": (lambda: diabetes(lasso=False), options.rounds),
        "drawn, p = 10 n, lasso": (lambda: drawn(40 if quick else 300), options.slow_rounds),
        "20 Newsgroups, l1 logistic": (lambda: newsgroups(300 if quick else None), options.slow_rounds),
    }
    found: dict[str, Any] = {}
    table = tables.Table("problem", "rows, columns", "what", "CPU s", "wall s", "CV loss", "test loss", "columns used")
    for name, (build, rounds) in cases.items():
        case = build()
        first = machine.times_of_one(lambda case=case: case.tuned.fit(case.X, case.y)) if rounds > 1 else None
        times = {"tuned": machine.Times([], []), "grid": machine.Times([], [])}
        for _ in range(1 if quick else rounds):
            for what, model in (("tuned", case.tuned), ("grid", case.grid)):
                cpu, wall = machine.times_of_one(lambda m=model, c=case: m.fit(c.X, c.y))
                times[what].cpu.append(cpu)
                times[what].wall.append(wall)
        found[name] = {"rows": len(case.y), "columns": case.X.shape[1], "first": first}
        for what, model in (("tuned", case.tuned), ("grid", case.grid)):
            row = {
                "cpu": median(times[what].cpu), "wall": median(times[what].wall), "rounds": times[what],
                "cv_loss": cross_validated(case, model),
                "test_loss": float(case.loss(model, case.X_test, case.y_test).mean()),
                "used": int(np.count_nonzero(model.coef_)),
            }  # fmt: skip
            found[name][what] = row
            shape = f"{len(case.y):,}, {case.X.shape[1]:,}"
            table(name, shape, what, *(row[key] for key in ("cpu", "wall", "cv_loss", "test_loss", "used")))
        tuned, grid = found[name]["tuned"], found[name]["grid"]
        found[name]["faster"] = grid["cpu"] / tuned["cpu"]
        found[name]["equal"] = tuned["cv_loss"] <= (1 + EQUAL) * grid["cv_loss"]
        store.keep(options, found)
    if not quick:
        tables.checks(
            [
                (f"{name}: times faster, CV loss of the grid", f"{of['faster']:.2f}, {of['equal']}", "> 1, True",
                 of["faster"] > 1 and of["equal"])
                for name, of in found.items()
            ]
        )  # fmt: skip
