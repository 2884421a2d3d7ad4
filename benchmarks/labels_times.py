"""What a cleaner takes on one core: for ``labels --times``, each in a process of its own."""

import time
from typing import Any

import numpy as np

from benchmarks import labels_cells, machine

NAMES = {"digits": 10.0, "adult": 60.0, "million": 600.0}
"""CPU seconds that it may take."""


def measure(name: str, quick: bool) -> dict[str, Any]:
    """In a process of its own."""
    return machine.fresh("benchmarks.labels_times:measured", name, quick)


def measured(name: str, quick: bool) -> dict[str, Any]:
    """Reading and encoding are not timed."""
    from bilevax.sklearn import LabelCleaner

    X, y, trusted = million(20_000 if quick else 1_000_000) if name == "million" else cleaned(name, quick)
    begin, cpu = time.perf_counter(), time.process_time()
    model = LabelCleaner(random_state=0).fit(X, y, trusted=trusted)
    out = {"cpu": time.process_time() - cpu, "seconds": time.perf_counter() - begin, "bytes": machine.peak_bytes()}
    return out | {"rows": len(y), "goal": NAMES[name], "expected": list(model.expected_wrong_)}


def cleaned(name: str, quick: bool) -> tuple[Any, np.ndarray, Any]:
    """A fifth of the labels flipped uniformly."""
    c = labels_cells.cell(name, "uniform", 0.2, labels_cells.TRUSTED[name][0], 0, quick)
    return c.X, c.given, (c.X_trusted, c.trusted)


def million(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Twenty columns, two classes, a fifth of the labels flipped, a thousand trusted rows."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, 20))
    z = (X @ rng.normal(size=20) + rng.logistic(size=rows) > 0).astype(int)
    trusted = np.arange(rows) < 1000
    return X, np.where(~trusted & (rng.random(rows) < 0.2), 1 - z, z), trusted
