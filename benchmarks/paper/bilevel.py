"""Penalties tuned on validation rows: one projected Adam along hypergradients of equal cost, from three estimators.

An outer step costs each estimator the same number of epochs: every training row is visited so often for w, and so often
for v, in full batches or minibatches, from a cold start. The w of the last penalties is then found to the end, on the
training rows, and its validation loss and test accuracy are what is compared.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import bilevax as bx
from benchmarks.cases import accuracy, halves, losses, part, source
from benchmarks.datasets import Data
from bilevax.core.config import replace_unchecked

METHODS = {
    "batch": "AID-FP, every row",
    "cg": "AID-CG with L-BFGS",
    "stochastic": "SID, decreasing steps",
}
PENALTIES = {"global": "single", "feature": "per feature"}


class Plan(NamedTuple):
    """What is run on a data set: penalties from ``start``, ``steps`` outer steps of ``epochs`` epochs each."""

    start: float
    steps: int = 20
    epochs: int = 5
    runs: int = 3
    learning_rate: float = 0.5


PLANS = {"fashion": Plan(1e-3), "newsgroups": Plan(1e-3, steps=15)}
QUICK = Plan(1e-2, steps=3, epochs=2, runs=2)
BOX = bx.Box(lower=-16.0, upper=4.0)


def algorithm(method: str, epochs: int, per_epoch: int, learning_rate: float) -> bx.BSGM:
    """Adam along the estimate; the steps of a stochastic chain fall from 1 to 1/5."""
    if method == "cg":
        sid = bx.SID(bx.LBFGS(1e-12, max_steps=epochs), bx.CG(1e-12, max_steps=epochs), cross_batches=1)
    else:
        t = epochs * per_epoch if method == "stochastic" else epochs
        moves = bx.FixedPoint(t, bx.Harmonic(t / 4, t / 4) if method == "stochastic" else 1.0)
        sid = bx.SID(moves, moves, cross_batches=1)
    return bx.BSGM(sid, bx.optim("adam", learning_rate))


def judged(data: Data, problem: bx.Problem, sources: tuple[Any, Any], lam: Any) -> dict[str, float]:
    """What penalties are worth: validation loss and test accuracy of the model trained to the end with them."""
    exact = bx.SID(bx.LBFGS(1e-5, max_steps=300), bx.CG(max_steps=1))
    est = bx.hypergradient(problem, exact, start(data, lam), lam, *sources, key=jax.random.key(0))
    return {"validation_loss": float(est.outer_value), **accuracy(data)(est.w, lam)}


def start(data: Data, lam: Any) -> Any:
    """Weights of zero, [C, d]."""
    return jnp.zeros((data.outputs, data.X.shape[1]), lam.dtype)


def experiment(data: Data, plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Course and end of every run, by kind of penalty and method."""
    out: dict[str, Any] = {"plan": plan._asdict(), "penalties": {per: {"start": []} for per in PENALTIES}}
    pool = source(data)
    per_epoch = max(1, len(data.y) // 2 // data.batch)
    for number in range(plan.runs):
        train, val = (part(pool, half) for half in halves(data, number))
        for per, kept in out["penalties"].items():
            inner, outer = losses(data, per)
            problem = bx.Problem(bx.GradientStep(inner), outer, project=BOX)
            judge = partial(judged, data, problem, (train, val))
            lam = jnp.full({"global": (), "feature": data.X.shape[1:]}[per], np.log(plan.start), data.X.dtype)
            kept["start"].append(judge(lam))
            for method in METHODS:
                chosen = algorithm(method, plan.epochs, per_epoch, plan.learning_rate)
                rows = replace_unchecked(train, batch_size=data.batch) if method == "stochastic" else train
                clock = time.perf_counter()
                result = bx.minimize(
                    problem, chosen, start(data, lam), lam, rows, val, steps=plan.steps, key=jax.random.key(number)
                )
                seconds = time.perf_counter() - clock
                kept.setdefault(method, []).append({
                    **judge(result.lam),
                    "seconds": seconds,
                    "course": [float(x) for x in result.history.outer_value],
                    "mean_log_penalty": float(jnp.mean(result.lam)),
                    "code": bx.Code(result.code).name,
                })  # fmt: skip
        say(f"{data.name}: bilevel run {number + 1} of {plan.runs}")
    return out
