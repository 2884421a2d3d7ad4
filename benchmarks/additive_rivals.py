"""The methods of ``additive``: each fits the training rows of a split and predicts its test rows.

A method gives its prediction (probabilities [n, C], or means [n]), the CPU seconds of its fit, what is made of the
table for it included, and what else there is to say; None where it has no such family.
"""

import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from shutil import which
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import GammaRegressor, LassoCV, LogisticRegressionCV, PoissonRegressor, RidgeCV
from sklearn.metrics import mean_gamma_deviance, mean_poisson_deviance
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks import additive_list, machine
from benchmarks.additive_list import CLASSES, Split, words

GRID, FOLDS = 20, 5
FEW = 100, 3
"""Rows to train on and columns of a quick run."""


class Fitted(NamedTuple):
    """What a method gives."""

    prediction: np.ndarray
    cpu: float
    about: dict[str, Any] = {}  # noqa: RUF012


class MissingError(Exception):
    """What a method needs is not installed."""


# What scikit-learn's linear models are given


def encoder(X: pd.DataFrame) -> Any:
    """Numbers standardised, their missing cells at the median and marked 0/1; categories as 0/1, not standardised."""
    categories = words(X)
    numbers = [name for name in X if name not in categories]
    return make_column_transformer(
        (make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numbers),
        (MissingIndicator(error_on_new=False), numbers),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), categories),
    )


def folds(s: Split) -> list[tuple[np.ndarray, np.ndarray]]:
    """Five folds: of groups, stratified by class, or shuffled."""
    if s.groups is not None:
        return list(GroupKFold(FOLDS).split(s.X, groups=s.groups))
    kind = StratifiedKFold if s.family in CLASSES else KFold
    return list(kind(FOLDS, shuffle=True, random_state=0).split(s.X, s.y))


def fitted(model: Any, s: Split, *, encoded: bool = True, **options: Any) -> Fitted:
    """Fit, timed, and predict."""
    start = time.process_time()
    model = make_pipeline(encoder(s.X), model) if encoded else model
    model.fit(s.X, s.y, **options)
    cpu = time.process_time() - start
    predict = model.predict_proba if s.family in CLASSES else model.predict
    return Fitted(predict(s.X_test), cpu)


def linear(s: Split) -> Fitted:
    """Ridge penalties on a grid: LogisticRegressionCV, RidgeCV, or the regressors for counts and amounts."""
    if s.family in CLASSES:
        return fitted(logistic(s, l1_ratios=(0.0,), Cs=GRID), s)
    if s.family == "gaussian":
        return fitted(RidgeCV(np.geomspace(1e-3, 1e5, GRID)), s)
    kind = {"poisson": PoissonRegressor, "gamma": GammaRegressor}[s.family]
    grid = {"alpha": np.geomspace(1e-6, 1e2, GRID)}
    model = kind(solver="newton-cholesky", max_iter=1000)
    return fitted(GridSearchCV(model, grid, cv=folds(s), scoring=f"neg_mean_{s.family}_deviance"), s)


def lasso(s: Split) -> Fitted | None:
    """An l1 penalty on a grid: LogisticRegressionCV or LassoCV; scikit-learn has none for counts and amounts."""
    if s.family == "gaussian":
        return fitted(LassoCV(cv=folds(s), max_iter=10_000), s)
    if s.family not in CLASSES:
        return None
    if s.family == "multinomial":
        return fitted(logistic(s, l1_ratios=(1.0,), Cs=GRID, solver="saga", tol=1e-3), s)
    # from the l1 that leaves no weight, C = 1 / max |X'(y - mean)|, down to a thousandth of it
    X = encoder(s.X).fit_transform(s.X)
    Cs = np.geomspace(1.0, 1000.0, GRID) / np.max(np.abs(X.T @ (s.y - s.y.mean())))
    return fitted(logistic(s, l1_ratios=(1.0,), Cs=Cs, solver="liblinear", intercept_scaling=100.0), s)


def logistic(s: Split, **options: Any) -> Any:
    return LogisticRegressionCV(
        cv=folds(s), scoring="neg_log_loss", max_iter=2000, random_state=0, use_legacy_attributes=False, **options
    )


# Glass boxes and black boxes


def bam(s: Split) -> Fitted | None:
    """mgcv, through Rscript; it has no multinomial family for large problems."""
    if s.family == "multinomial":
        return None
    if not which("Rscript"):
        raise MissingError("Rscript; apt-get install r-base-core r-cran-mgcv")
    start = time.process_time()
    train, test = filled(s.X, [s.X, s.X_test])
    with tempfile.TemporaryDirectory() as folder:
        train.assign(y=s.y).to_csv(f"{folder}/train.csv", index=False)
        test.to_csv(f"{folder}/test.csv", index=False)
        made = time.process_time() - start
        command = ["Rscript", str(Path(__file__).with_name("additive_mgcv.R")), folder, s.family]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            raise TimeoutError
        if done.returncode:
            raise RuntimeError(" ".join(done.stderr.split())[-200:])
        p = pd.read_csv(f"{folder}/prediction.csv")["p"].to_numpy()
    seconds, r, mgcv = done.stdout.split()
    prediction = np.column_stack([1 - p, p]) if s.family == "binary" else p
    return Fitted(prediction, made + float(seconds), {"R": r, "mgcv": mgcv})


def filled(X: pd.DataFrame, tables: Iterable[pd.DataFrame]) -> list[pd.DataFrame]:
    """Columns x0, x1, ...; missing numbers at the median of X with a category that marks them, else a level."""
    out, categories = [], words(X)
    for table in tables:
        columns = {}
        for j, name in enumerate(X):
            gaps = table[name].isna()
            if name in categories:
                columns[f"x{j}"] = "level " + table[name].where(~gaps, "missing").astype(str)
            else:
                columns[f"x{j}"] = table[name].fillna(X[name].median())
                if X[name].isna().any():
                    columns[f"x{j}_missing"] = np.where(gaps, "missing", "there")
        out.append(pd.DataFrame(columns))
    return out


def ebm(s: Split, **options: Any) -> Fitted:
    """Explainable boosting, as it is but for the number of threads."""
    try:
        from interpret.glassbox import ExplainableBoostingClassifier, ExplainableBoostingRegressor
    except ImportError:
        raise MissingError("interpret-core; pip install interpret-core") from None
    kinds = ["nominal" if name in words(s.X) else "continuous" for name in s.X]
    options |= {"feature_types": kinds, "n_jobs": 1, "random_state": 0}
    if s.family in CLASSES:
        model = ExplainableBoostingClassifier(**options)
    else:
        objective = {"gaussian": "rmse"}.get(s.family, f"{s.family}_deviance")
        model = ExplainableBoostingRegressor(objective=objective, **options)
    return fitted(model, s, encoded=False)._replace(about={"interpret-core": version("interpret-core")})


def boosting(s: Split) -> Fitted:
    """scikit-learn's histogram gradient boosting, as it is; a level that is not in train is missing."""
    levels = {name: pd.CategoricalDtype(s.X[name].dropna().unique()) for name in words(s.X)}
    known = {name: s.X_test[name].where(s.X_test[name].isin(kind.categories)) for name, kind in levels.items()}
    X, X_test = s.X.astype(levels), s.X_test.assign(**known).astype(levels)
    if s.family in CLASSES:
        model = HistGradientBoostingClassifier(random_state=0)
    else:
        loss = {"gaussian": "squared_error"}.get(s.family, s.family)
        model = HistGradientBoostingRegressor(loss=loss, random_state=0)
    return fitted(model, s._replace(X=X, X_test=X_test), encoded=False)


# Ours


def additive(s: Split, **options: Any) -> Fitted:
    """An additive model of this package."""
    import bilevax.sklearn

    name = "TunedAdditiveClassifier" if s.family in CLASSES else "TunedAdditiveRegressor"
    if not hasattr(bilevax.sklearn, name):
        raise MissingError(name)
    if s.family not in CLASSES:
        options["family"] = s.family
    model = getattr(bilevax.sklearn, name)(random_state=0, **options)
    fit = {} if s.groups is None else {"groups": s.groups}
    out = fitted(model, s, encoded=False, **fit)
    made = model.model_
    weights = sum(part.stop - part.start for effect in made.effects for part in effect.parts)
    return out._replace(about={"weights": weights * max(1, len(made.intercept) - 1), "mixture": model.mixture_})


METHODS: dict[str, Callable[[Split], Fitted | None]] = {
    "linear": linear,
    "lasso": lasso,
    "bam": bam,
    "ebm": lambda s: ebm(s, interactions=0),
    "ebm_pairs": ebm,
    "boosting": boosting,
    "additive": lambda s: additive(s, choose=False, pairs=False),
    "pairs": lambda s: additive(s, choose=False),
    "chosen": additive,
}
OURS = "additive", "chosen", "pairs"


def loss(s: Split, prediction: np.ndarray) -> float:
    """Test log-loss, or mean deviance; of a Gaussian, over the variance of the training targets."""
    if s.family in CLASSES:
        return float(-np.mean(np.log(np.maximum(prediction[np.arange(len(s.y_test)), s.y_test], 1e-15))))
    if s.family == "gaussian":
        return float(np.mean((s.y_test - prediction) ** 2) / s.y.var())
    deviance = {"poisson": mean_poisson_deviance, "gamma": mean_gamma_deviance}[s.family]
    return float(deviance(s.y_test, np.maximum(prediction, 1e-10)))


def few(s: Split, rows: int, columns: int) -> Split:
    """A part of it: for trying out."""
    groups = None if s.groups is None else s.groups[:rows]
    return s._replace(X=s.X.iloc[:rows, :columns], y=s.y[:rows], groups=groups, X_test=s.X_test.iloc[:, :columns])


def measured(table: str, method: str, seed: int, quick: bool) -> dict[str, Any]:
    """Loss, CPU seconds of the fit and peak memory; or why there are none. In a process of its own."""
    warnings.simplefilter("ignore")  # of grids whose ends do not converge
    s = additive_list.split(table, seed)
    if quick:
        s = few(s, *FEW)
    try:
        out = METHODS[method](s)
    except MissingError as e:
        return {"missing": str(e)}
    except TimeoutError:
        return {"failed": "time"}
    except Exception as e:  # that a rival fails on a table is what is measured
        return {"failed": f"{type(e).__name__}: {e}"[:300]}
    if out is None:
        return {"failed": "n/a"}
    return {
        "loss": loss(s, out.prediction), "cpu": out.cpu, "bytes": machine.peak_bytes(), "rows": len(s.y), **out.about,
    }  # fmt: skip
