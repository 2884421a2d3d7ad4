"""How far hypergradients are from the truth, against epochs: AID-FP, AID-CG with L-BFGS, SID.

An epoch visits every training row once for w and once for v: one step of each on every row, n / b on minibatches. All
penalties of a run are equal, so that the hypergradient of a single one is the sum over the features.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bilevax as bx
from benchmarks.cases import Case, Steps, curvature, halves, losses, part, source
from benchmarks.datasets import Data

METHODS = {
    "batch": "AID-FP, every row",
    "cg": "AID-CG with L-BFGS",
    "const": "SID, constant steps",
    "dec": "SID, decreasing steps",
    "dec shuffled": "SID, decreasing steps, shuffled epochs",
    "const shuffled": "SID, constant steps, shuffled epochs",
}


class Plan(NamedTuple):
    """What is run on a data set."""

    strengths: tuple[float, ...]
    epochs: tuple[int, ...]
    runs: int = 10
    methods: tuple[str, ...] = tuple(METHODS)


PLANS = {
    "synthetic": Plan((1e-1, 1e-2, 1e-3, 1e-4), (1, 2, 5, 10, 20, 50, 100)),
    "fashion": Plan((1e-1, 1e-2, 1e-3, 1e-4), (1, 2, 5, 10, 20), methods=tuple(METHODS)[:5]),
    "newsgroups": Plan((1e-3, 1e-4, 1e-5), (1, 2, 5, 10), methods=tuple(METHODS)[:5]),
}


QUICK = Plan((1e-2, 1e-3), (1, 2), runs=2)


def truth(data: Data, sources: tuple[Any, Any], strength: float) -> tuple[np.ndarray, str]:
    """The hypergradient to rounding, from float64 rows: L-BFGS, then conjugate gradients."""
    w0, lam = np.zeros((data.outputs, data.X.shape[1])), np.full(data.X.shape[1], np.log(strength))
    problem = bx.Problem(bx.GradientStep(losses(data)[0]), losses(data)[1])
    exact = bx.SID(bx.LBFGS(1e-10, max_steps=5000), bx.CG(1e-10, max_steps=5000))
    est = bx.hypergradient(problem, exact, w0, lam, *sources, key=jax.random.key(0))
    return np.asarray(est.value), bx.Code(int(est.code)).name


def run(case: Case, steps: Steps, batch: int, method: str, epochs: int, key: Any) -> tuple[bx.Estimate, float]:
    """An estimate, and what it cost in epochs."""
    n = case.train.rows
    kind, _, order = method.partition(" ")
    rows = batch if kind in ("const", "dec") else None
    if kind == "cg":
        inner, linear = bx.LBFGS(1e-12, max_steps=epochs), bx.CG(1e-12, max_steps=epochs)
    else:
        t = epochs * max(1, n // (rows or n))
        inner = linear = bx.FixedPoint(t, steps.decreasing if kind == "dec" else 1.0)
    sid = bx.SID(inner, linear, cross_batches=1)  # the penalties are not sampled: one minibatch gives the exact product
    est = case.by(sid, rows, sampling=order or "iid")(key, report=False)
    return est, (est.cost.gradients.samples + est.cost.hvps.samples) / (2 * n)


def relative(found: Any, true: np.ndarray) -> dict[str, float]:
    """Squared relative errors with one penalty per feature, and with a single one."""
    found = np.asarray(found, np.float64)
    return {
        "feature": float(np.sum((found - true) ** 2) / np.sum(true**2)),
        "single": float((found.sum() - true.sum()) ** 2 / true.sum() ** 2),
    }


def experiment(data: Data, plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Errors of all methods, [epochs][runs], by strength and method; with the step sizes of the first run."""
    out: dict[str, Any] = {
        "shape": {"rows": len(data.y) // 2, "columns": data.X.shape[1], "classes": data.classes, "batch": data.batch},
        "runs": plan.runs,
        "strengths": {},
    }
    pools = source(data), source(data, dtype=np.float64)
    for number in range(plan.runs):
        clock = time.perf_counter()
        key = jax.random.key(number)
        for strength, steps, case, code in _cases(data, pools, plan, number):
            found = out["strengths"].setdefault(f"{strength:g}", {"q": steps.q, "truth": [], "curves": {}})
            found["truth"].append(code)
            for i, method in enumerate(plan.methods):
                of_method = partial(run, case, steps, data.batch, method, key=jax.random.fold_in(key, i))
                _measure(found["curves"].setdefault(method, {}), of_method, plan.epochs, case.truth)
        say(f"{data.name}: run {number + 1} of {plan.runs}, {time.perf_counter() - clock:.0f} s")
    return out


def _cases(data: Data, pools: tuple[Any, Any], plan: Plan, number: int) -> Iterator[tuple[float, Steps, Case, str]]:
    """The problem of a run at each strength, and the code of its truth."""
    rows = halves(data, number)
    L = curvature(data, rows[0])
    (train, val), exact = (tuple(part(pool, half) for half in rows) for pool in pools)
    d, real = data.X.shape[1], data.X.dtype
    inner, outer = losses(data)
    for strength in plan.strengths:
        steps = Steps.of(L, strength)
        problem = bx.Problem(bx.GradientStep(inner, steps.alpha), outer)
        w0, lam = jnp.zeros((data.outputs, d), real), jnp.full(d, np.log(strength), real)
        true, code = truth(data, exact, strength)
        yield strength, steps, Case(problem, None, w0, lam, train, val, true), code


def _measure(curve: dict[str, Any], of_method: Callable[..., Any], epochs: tuple[int, ...], true: np.ndarray) -> None:
    """Append the errors of one run to the curve of a method."""
    for i, number in enumerate(epochs):
        est, spent = of_method(number)
        for kind, x in {"epochs": spent, **relative(est.value, true)}.items():
            curve.setdefault(kind, [[] for _ in epochs])[i].append(x)
        code = bx.Code(int(est.code)).name
        codes = curve.setdefault("codes", {})
        codes[code] = codes.get(code, 0) + 1
