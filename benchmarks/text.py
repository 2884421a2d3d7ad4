"""How good is logistic regression with tied penalties on texts, beside grids of one penalty, and what does it take?

R8, R52 and 20 Newsgroups as they are split: words. Rotten Tomatoes: words, pairs of words and characters; clothing
reviews (five ratings): those of the review and its title, and three columns of categories. Every model is given the
same tf-idf matrix; so what differs is the penalties:

- tuned: TunedLogisticRegression as it comes: a level for each kind of n-grams, and a power of the frequency;
- grid: LogisticRegressionCV as it comes, ten penalties and five folds, chosen by accuracy; and by log-loss (one run,
  whose scorer notes both);
- svc: LinearSVC, four penalties by five folds; ridge: RidgeClassifier, five penalties, calibrated by five folds.

Differences are of the same test rows, with standard errors. ``--in-turn`` asks the training rows alone: of each
fifth, of rows that are dealt at random, by models of the others; ``--deals N`` deals them so often. ``--page`` writes
docs/text.md from what is kept.
"""

import argparse
import time
import warnings
from typing import Any

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, RidgeClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.svm import LinearSVC

from benchmarks import machine, store, tables, text_data, text_page
from bilevax.sklearn import TableEncoder, TunedLogisticRegression

MOODS = "rotten_tomatoes", "clothing"
"""Whose pairs of words and characters are read, too."""

RIVALS = "grid", "grid_by_loss", "svc", "ridge"
SIGNIFICANT = 2.0
"""Standard errors."""


def encoder(name: str, texts: tuple[str, ...]) -> TableEncoder:
    mood = name in MOODS
    return TableEncoder(words=texts, pairs=texts if mood else (), characters=texts if mood else ())


class Noted:
    """A scorer by log-loss that notes accuracies, in the order in which it is called: penalties within folds."""

    def __init__(self, classes: int) -> None:
        self.classes, self.accuracies = classes, list[float]()

    def __call__(self, model: Any, X: Any, y: np.ndarray) -> float:
        """Minus the log-loss."""
        P = model.predict_proba(X)
        self.accuracies.append(float(np.mean(model.classes_[P.argmax(axis=1)] == y)))
        return -float(log_loss(y, P, labels=np.arange(self.classes)))


def grids(X: Any, y: np.ndarray) -> dict[str, tuple[Any, float]]:
    """LogisticRegressionCV by log-loss, and what it would have chosen by accuracy, with seconds."""
    start, noted = time.process_time(), Noted(int(y.max()) + 1)
    folds = StratifiedKFold(5)
    by_loss = LogisticRegressionCV(cv=folds, scoring=noted, l1_ratios=(0.0,), use_legacy_attributes=False).fit(X, y)
    seconds = time.process_time() - start
    accuracies = np.reshape(noted.accuracies, (5, -1)).mean(axis=0)
    C = by_loss.Cs_[int(np.argmax(accuracies))]
    by_accuracy = by_loss if by_loss.C_ == C else LogisticRegression(C=C).fit(X, y)
    return {"grid": (by_accuracy, seconds), "grid_by_loss": (by_loss, seconds)}


def others(X: Any, y: np.ndarray) -> dict[str, tuple[Any, float]]:
    """LinearSVC of the best of four penalties, and a ridge of the best of five, calibrated."""
    start = time.process_time()
    svc = GridSearchCV(LinearSVC(), {"C": [0.1, 0.3, 1.0, 3.0]}).fit(X, y)
    middle = time.process_time()
    ridge = GridSearchCV(RidgeClassifier(solver="sparse_cg"), {"alpha": [0.1, 0.3, 1.0, 3.0, 10.0]}).fit(X, y)
    # each class is calibrated on every fold; one that has a single row cannot be
    folds = min(5, int(np.bincount(y).min()))
    best = CalibratedClassifierCV(ridge.best_estimator_, cv=folds).fit(X, y) if folds > 1 else ridge
    return {"svc": (svc, middle - start), "ridge": (best, time.process_time() - middle)}


def told(model: Any, X: Any, y: np.ndarray, seconds: float) -> dict[str, Any]:
    """What is kept of a model, with its losses of the test rows."""
    P = model.predict_proba(X) if hasattr(model, "predict_proba") else None
    right = (model.predict(X) == y).astype(int)
    losses = None if P is None else -np.log(np.maximum(P[np.arange(len(y)), y], 1e-15))
    return {"seconds": seconds, "right": right, "losses": losses}


def measured(name: str, rows: int | None) -> dict[str, Any]:
    """Of a data set the differences of the tuned model to each rival."""
    warnings.filterwarnings("ignore")
    data = text_data.texts(name) if rows is None else text_data.texts(name).few(rows)
    names, y = np.unique(data.y, return_inverse=True)
    known = np.isin(data.y_test, names)
    X_test, y_test = data.X_test[known], np.searchsorted(names, data.y_test[known])
    start = time.process_time()
    tuned = TunedLogisticRegression(encoder=encoder(name, data.texts), random_state=0).fit(data.X, y)
    found = {"tuned": told(tuned, X_test, y_test, time.process_time() - start)}
    peak, start = machine.peak_bytes() / 1e9, time.process_time()
    X = tuned.encoder_.transform(data.X)
    encoded, B = time.process_time() - start, tuned.encoder_.transform(X_test)
    for rival, (model, seconds) in {**grids(X, y), **others(X, y)}.items():
        found[rival] = told(model, B, y_test, seconds + encoded)
    about = {"data": name, "rows": len(y), "test": len(y_test), "classes": len(names), "columns": X.shape[1]}
    return {**about, "non-zeros": int(X.nnz), "GB": peak, "encoded": encoded, **summary(found)}


def in_turn(name: str, deals: int, parts: int = 5) -> dict[str, Any]:
    """How often models of the other parts are right about a training row, and rivals of them, over all deals.

    Standard errors are those of the mean over rows, each of which is the mean over deals.
    """
    warnings.filterwarnings("ignore")
    data = text_data.texts(name)
    right = {model: np.zeros((deals, len(data.y))) for model in ("tuned", "svc", "ridge")}
    for deal in range(deals):
        dealt = np.random.default_rng(deal).permutation(len(data.y))
        for rows in np.array_split(dealt, parts):
            X, y = data.X.drop(index=rows), np.delete(data.y, rows)
            tuned = TunedLogisticRegression(encoder=encoder(name, data.texts), random_state=0).fit(X, y)
            X, B = (tuned.encoder_.transform(part) for part in (X, data.X.iloc[rows]))
            names, codes = np.unique(y, return_inverse=True)
            right["tuned"][deal, rows] = tuned.predict(data.X.iloc[rows]) == data.y[rows]
            for rival, (model, _) in others(X, codes).items():
                right[rival][deal, rows] = names[model.predict(B)] == data.y[rows]
    mean = {model: found.mean(axis=0) for model, found in right.items()}
    less = {f"tuned less {rival}": paired(mean["tuned"] - mean[rival]) for rival in ("svc", "ridge")}
    return {"deals": deals} | {model: float(found.mean()) for model, found in mean.items()} | less


def summary(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means, and of each rival the paired differences of the tuned model to it with their standard errors."""
    out: dict[str, Any] = {}
    own = found["tuned"]
    for name, model in found.items():
        entry: dict[str, Any] = {"accuracy": float(model["right"].mean()), "seconds": model["seconds"]}
        entry["accuracy of the tuned less it"] = paired(own["right"] - model["right"])
        if model["losses"] is not None:
            entry["loss"] = float(model["losses"].mean())
            entry["loss of the tuned less it"] = paired(own["losses"] - model["losses"])
        out[name] = entry
    return out


def paired(change: np.ndarray) -> list[float]:
    return [float(change.mean()), float(change.std() / np.sqrt(len(change)))]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", nargs="*", default=list(text_data.TEXTS))
    parser.add_argument("--in-turn", action="store_true", help="of the training rows alone, beside LinearSVC and ridge")
    parser.add_argument("--deals", type=int, default=1, help="of --in-turn")
    parser.add_argument("--page", action="store_true", help="measure nothing, write docs/text.md from what is kept")


def main(options: argparse.Namespace) -> None:
    if options.page:
        text_page.write(store.kept(options), store.read(store.RESULTS / "wide.json"))
        return
    names = ["rotten_tomatoes"] if options.quick else options.data
    kept = {row["data"]: row for row in store.kept(options).get("rows", [])}
    table = tables.Table("data", "model", "accuracy", "tuned less it", "se", "log-loss", "tuned less it", "se", "s")
    for name in names:
        if options.in_turn:
            kept[name]["in turn"] = machine.fresh("benchmarks.text:in_turn", name, options.deals)
            print(name, kept[name]["in turn"])
        else:
            kept[name] = row = machine.fresh("benchmarks.text:measured", name, 150 if options.quick else None)
            for model in ("tuned", *RIVALS):
                m = row[model]
                right, loss = (m.get(f"{what} of the tuned less it", [None, None]) for what in ("accuracy", "loss"))
                table(name, model, m["accuracy"], *right, m.get("loss"), *loss, m["seconds"])
        store.keep(options, {"rows": [kept[name] for name in text_data.TEXTS if name in kept]})
