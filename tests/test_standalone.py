"""The program that the report shows, with nothing but Python, says what the additive model says."""

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bilevax.report import standalone_additive
from bilevax.report.standalone_additive import predict
from bilevax.sklearn import TunedAdditiveClassifier, TunedAdditiveRegressor
from bilevax.tables.read import read_table

ROWS = 240


def frame(seed: int, n: int = ROWS) -> pd.DataFrame:
    """Numbers, text, dates, truth values, and gaps in each."""
    rng = np.random.default_rng(seed)
    out = pd.DataFrame(
        {
            "age": rng.normal(40, 12, n).round(1),
            "rooms": rng.integers(1, 5, n).astype(float),
            "city": rng.choice(["Rome", "Paris", "Oslo"], n).astype(object),
            "seen": pd.Timestamp("2021-03-01 05:30") + pd.to_timedelta(rng.integers(0, 900, n) * 17, unit="h"),
        }
    )
    for name in out.columns:
        out.loc[rng.random(n) < 0.05, name] = None
    return out


def target(X: pd.DataFrame, seed: int) -> np.ndarray:
    """A product of two columns, so that there is a pair, and something of the date."""
    rng = np.random.default_rng(seed)
    age, rooms = X["age"].fillna(40.0), X["rooms"].fillna(2.0)
    score = (age - 40) / 6 * (rooms - 2.5) + (X["city"] == "Oslo") + 0.1 * X["seen"].dt.day_of_week.fillna(3)
    return np.asarray(score + 0.3 * rng.normal(size=len(X)))


def rows_of(X: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {
            name: None if pd.isna(cell) else cell.to_pydatetime() if name == "seen" else cell
            for name, cell in row.items()
        }
        for row in X.to_dict("records")
    ]


def fitted(kind: str) -> Any:
    X = frame(0)
    score = target(X, 1)
    if kind == "two":
        return TunedAdditiveClassifier(choose=False, random_state=0).fit(X, np.where(score > 0.5, "yes", "no"))
    if kind == "three":
        return TunedAdditiveClassifier(choose=False, random_state=0).fit(X, np.digitize(score, [-1.0, 1.5]))
    family = {"number": "gaussian", "count": "poisson", "amount": "gamma"}[kind]
    y = {"number": score, "count": np.floor(np.exp(score / 4)), "amount": np.exp(score / 4)}[kind]
    return TunedAdditiveRegressor(family, choose=False, random_state=0).fit(X, y)


@pytest.mark.parametrize("kind", ["two", "three", "number", "count", "amount"])
def test_standalone_code_predicts_what_the_model_predicts(kind: str, tmp_path: Path) -> None:
    model = fitted(kind).model_
    plain = json.loads(json.dumps(model.to_plain()))
    if kind in ("two", "number"):
        assert plain["pairs"]
    assert {effect["source"]["part"] for effect in plain["effects"]} > {"", "year", "weekday", "hour"}
    new = frame(7, 60)
    new.loc[:3, "city"] = "Atlantis"  # a level that was not seen
    new.loc[4, "age"], new.loc[5, "age"] = 1e9, -1e9
    path = tmp_path / "new.csv"
    new.to_csv(path, index=False)
    expected = model.predict_mean(read_table(path))
    found = [predict(plain, row) for row in rows_of(new)]
    if kind in ("two", "three"):
        assert all(list(row) == plain["classes"] for row in found)
        found = [list(row.values()) for row in found]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert np.ptp(expected) > 0.1


def test_a_date_without_a_time_is_midnight() -> None:
    assert standalone_additive.part_of(datetime.date(2024, 2, 29), "hour") == 0.0
    assert standalone_additive.part_of(datetime.date(2024, 2, 29), "weekday") == 3  # a Thursday
    assert standalone_additive.part_of(datetime.datetime(2024, 2, 29, 13, 30, 36), "hour") == pytest.approx(13.51)


@pytest.mark.parametrize("name", ["standalone", "standalone_additive"])
def test_it_takes_nothing_but_python(name: str) -> None:
    source = Path(standalone_additive.__file__).with_name(f"{name}.py")
    shown = "print([m for m in sys.modules if m in ('numpy', 'bilevax')])"
    code = f"import runpy, sys; runpy.run_path({str(source)!r}); {shown}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
