"""Penalties tuned on validation rows: one projected Adam along hypergradients of equal cost, from three estimators.

An outer step costs each estimator the same number of epochs: every training row is visited so often for w, and so often
for v, in full batches or minibatches, from a cold start. The w of the last penalties is then found to the end, on the
training rows, and its validation loss and test accuracy are what is compared.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from benchmarks.paper.problems import Data, halves, part, source

import bilevax as bx
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


class Judge(NamedTuple):
    """What penalties are worth: validation loss and test accuracy of the model trained to the end with them."""

    data: Data
    problem: bx.Problem
    train: Any
    val: Any
    test: Any

    def start(self, lam: Any) -> Any:
        """Weights of zero, [C, d]."""
        return jnp.zeros((self.data.outputs, self.data.X.shape[1]), lam.dtype)

    def __call__(self, lam: Any) -> dict[str, float]:
        """Train with these penalties, and look."""
        exact = bx.SID(bx.LBFGS(1e-5, max_steps=300), bx.CG(max_steps=1))
        est = bx.hypergradient(self.problem, exact, self.start(lam), lam, self.train, self.val, key=jax.random.key(0))
        X, y = self.test.all_rows
        scores = np.asarray(X @ est.w.T)
        labels = scores[:, 0] > 0 if self.data.outputs == 1 else scores.argmax(axis=1)
        return {"validation_loss": float(est.outer_value), "accuracy": float(np.mean(labels == np.asarray(y)))}


def experiment(data: Data, plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Course and end of every run, by kind of penalty and method."""
    out: dict[str, Any] = {"plan": plan._asdict(), "penalties": {per: {"start": []} for per in PENALTIES}}
    pool, test = source(data), source(data, test=True)
    per_epoch = max(1, len(data.y) // 2 // data.batch)
    for number in range(plan.runs):
        train, val = (part(pool, half) for half in halves(data, number))
        for per, kept in out["penalties"].items():
            problem = bx.Problem(bx.GradientStep(data.loss(per)), data.loss(), project=BOX)
            judge = Judge(data, problem, train, val, test)
            lam = jnp.full({"global": (), "feature": data.X.shape[1:]}[per], np.log(plan.start), data.X.dtype)
            kept["start"].append(judge(lam))
            for method in METHODS:
                chosen = algorithm(method, plan.epochs, per_epoch, plan.learning_rate)
                rows = replace_unchecked(train, batch_size=data.batch) if method == "stochastic" else train
                clock = time.perf_counter()
                result = bx.minimize(
                    problem, chosen, judge.start(lam), lam, rows, val, steps=plan.steps, key=jax.random.key(number)
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
