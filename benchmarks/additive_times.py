"""A first fit of a small table, and one of a million rows from Parquet: for ``additive --times``, each in a process."""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine, tables


def small() -> dict[str, Any]:
    """200 x 3 with the choice: CPU seconds beyond importing scikit-learn and pandas."""
    import pandas as pd
    import sklearn.model_selection  # noqa: F401

    rng = np.random.default_rng(0)
    X = pd.DataFrame({"a": rng.normal(size=200), "b": rng.choice(list("xyz"), 200), "c": rng.normal(size=200)})
    y = np.where(np.sin(2 * X["a"]) + (X["b"] == "x") + rng.normal(size=200) > 0, "yes", "no")
    start = time.process_time()
    from bilevax.sklearn import TunedAdditiveClassifier

    TunedAdditiveClassifier(random_state=0).fit(X, y).predict_proba(X)
    return {"cpu": time.process_time() - start, "jax": "jax" in sys.modules}


def write(path: str, rows: int = 1_000_000) -> dict[str, Any]:
    """Sixteen columns of numbers, four of categories, two classes."""
    import pandas as pd

    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 16))
    levels = {f"c{j}": rng.integers(0, 3**j + 2, rows) for j in range(4)}
    score = np.sin(2 * x[:, 0]) + 0.5 * (x[:, 1] > 0.3) + 0.3 * x[:, 2] + x[:, 3] * x[:, 4] / 2
    score += 0.4 * (levels["c1"] % 2)
    y = rng.random(rows) < 1.0 / (1.0 + np.exp(-score))
    X = pd.DataFrame(x, columns=[f"x{j}" for j in range(16)])
    X.assign(**{name: np.char.add("level ", c.astype(str)) for name, c in levels.items()}, y=y).to_parquet(path)
    return {"probability": float(np.mean(np.log1p(np.exp(-np.where(y, score, -score)))))}


def million(path: str) -> dict[str, Any]:
    """From the file to a model, the choice on 50,000 rows included."""
    start, cpu = time.perf_counter(), time.process_time()
    import pandas as pd

    from bilevax.sklearn import TunedAdditiveClassifier

    X = pd.read_parquet(path)
    y = X.pop("y").to_numpy()
    model = TunedAdditiveClassifier(random_state=0).fit(X, y)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    p = model.predict_proba(X.iloc[:100_000])[np.arange(100_000), y[:100_000].astype(int)]
    return {
        "seconds": seconds, "cpu": cpu, "bytes": machine.peak_bytes(), "loss": float(-np.mean(np.log(p))),
        "kept": model.mixture_, "pairs": list(model.pairs_), "dropped": list(model.drop_columns_),
    }  # fmt: skip


def show() -> dict[str, Any]:
    """Both, printed."""
    first = machine.fresh("benchmarks.additive_times:small")
    row = tables.Table("what", "CPU s", "seconds", "GB", "loss", "least possible", "")
    row("200 x 3, first fit", first["cpu"], "", "", "", "", f"JAX imported: {first['jax']}")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "rows.parquet")
        truth = machine.fresh("benchmarks.additive_times:write", path)
        large = machine.fresh("benchmarks.additive_times:million", path)
    about = f"kept {large['kept']}, pairs {large['pairs']}, dropped {len(large['dropped'])}"
    gigabytes, least = large["bytes"] / 1e9, truth["probability"]
    row("1,000,000 x 20 from Parquet", large["cpu"], large["seconds"], gigabytes, large["loss"], least, about)
    return {"first": first, "million": large, "least": least}
