"""Do error reports cover what they say? 1,000 random problems in 8 strata.

Strata: least squares or logistic rows, condition 10 or 1000, minibatches of 4 or 64 of 256 rows; lam is one penalty
exp(lam_j) per weight (d = 6) and two shifts of the scores (m = 8), so that the hypergradient is curved in w and v, and
the cross products are noisy. Each problem is run several times by the default estimator, and each run reports its own
error. E[estimate] is the mean of the R - 1 other runs, whose own noise widens the intervals by sqrt(R / (R - 1)); the
truth comes from Newton's method and direct solves in float64. A stratum is one vmapped program. The entries of one
problem are one cluster of the standard errors.

SID is apart, with steps that fall as 1 / j, enough of them or a tenth as many, which are too few: what it estimates of
its error, over the true one (root mean squares over the runs of a problem).

Full batches are apart: what AID estimates of its error after few, some and many steps, on quadratics with exact
constants.
"""

import argparse
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import bilevax as bx
from benchmarks import families, store, tables
from benchmarks.reported import Said, Share
from bilevax.core.config import canonicalize
from bilevax.core.trees import PyTree, norm
from bilevax.testing.closed_forms import Curvature, FiniteQuadratic
from bilevax.testing.problems import NamedProblem
from bilevax.testing.tools import float64

N, N_VAL, D, SHIFTS = 256, 128, 6, 2
STEPS = {(10, 4): 3000, (10, 64): 1500, (1000, 4): 120_000, (1000, 64): 60_000}
FALLING = {4: (2.0, 16.0), 64: (2.0, 4.0)}  # beta and gamma of SID over the condition, by batch
SID_STEPS = {(10, 4): 6000, (10, 64): 3000, (1000, 4): 60_000, (1000, 64): 30_000}
RUNS = {10: 40, 1000: 10}  # of each problem, by condition
CERTAIN = 0.99
TOL = 0.1
GOALS = {
    "sampling": (0.92, 0.97),
    "total": (0.93, 1.0),
    "small bias": (0.90, 0.98),
    "wrong signs": (0.0, 0.01),
    "declared": (0.5, 1.0),
    "untrusted": (0.0, 0.1),
}


class Stratum(NamedTuple):
    """What 125 problems have in common."""

    kind: str
    condition: int
    batch: int

    @property
    def name(self) -> str:
        """As in `--only`."""
        return f"{self.kind}-{self.condition}-b{self.batch}"


STRATA = [Stratum(k, c, b) for k in ("quadratic", "logistic") for c in (10, 1000) for b in (4, 64)]


def outer(w: Array, lam: PyTree, batch: PyTree, *, logistic: bool) -> Array:
    score = batch["x"] @ w + batch["c"] @ lam["shift"]
    return jnp.mean(jax.nn.softplus(-batch["y"] * score) if logistic else 0.5 * (score - batch["y"]) ** 2)


def inner(w: Array, lam: PyTree, batch: PyTree, *, logistic: bool) -> Array:
    return outer(w, lam, batch, logistic=logistic) + 0.5 * jnp.sum(jnp.exp(lam["penalty"]) * w**2)


LOSSES = {
    kind: tuple(partial(loss, logistic=kind == "logistic") for loss in (inner, outer))
    for kind in ("quadratic", "logistic")
}


def drawn(stratum: Stratum, seed: int) -> NamedProblem:
    """Features whose variances fall from 1 to half of 1 / condition, penalties near the other half."""
    rng = np.random.default_rng([STRATA.index(stratum), seed])
    logistic = stratum.kind == "logistic"
    scales = np.sqrt(np.geomspace(1.0, 0.5 / stratum.condition, D))
    coefficients, lam_shift = rng.normal(size=D), rng.normal(size=SHIFTS)

    def rows(n: int) -> dict[str, np.ndarray]:
        x, c = rng.normal(size=(n, D)) * scales, 0.5 * rng.normal(size=(n, SHIFTS)) + 0.3
        score = 2.0 * x @ (coefficients / np.sqrt(scales)) + c @ rng.normal(size=SHIFTS)
        noisy = score + 0.5 * rng.normal(size=n)
        y = np.where(rng.uniform(size=n) < 1 / (1 + np.exp(-score)), 1.0, -1.0) if logistic else noisy
        return {"x": x, "c": c, "y": y}

    largest = 0.15 if logistic else 1.0
    penalties = np.log(0.5 * largest / stratum.condition) + 0.5 * rng.normal(size=D)
    lam, train, val = {"penalty": penalties, "shift": 0.5 * lam_shift}, rows(N), rows(N_VAL)
    loss, outer_loss = LOSSES[stratum.kind]
    # with the step 1, I - d1Phi is the Hessian of the inner loss
    problem, curvature = bx.Problem(bx.GradientStep(loss, 1.0), outer_loss), Curvature(1.0, 1.0 / stratum.condition)
    return NamedProblem(stratum.name, problem, train, val, np.zeros(D), lam, stratum.batch, curvature)


norms = partial(np.linalg.norm, axis=-1)


@partial(jax.jit, static_argnames=("stratum", "val_batch", "runs"))
def reports(estimator: Any, problems: Any, key: Array, *, stratum: Stratum, val_batch: int | None, runs: int) -> Any:
    """Codes and errors of every run of every problem, [problems, runs, ...]."""
    loss, outer_loss = LOSSES[stratum.kind]
    problem = bx.Problem(bx.GradientStep(loss), outer_loss)

    def one(drawn: Any, key: Array) -> tuple[Array, bx.ErrorReport]:
        w0, lam, train, val = drawn
        sources = bx.Arrays(train, stratum.batch), bx.Arrays(val, val_batch)
        est = bx.hypergradient(problem, estimator, w0, lam, *sources, key=key)
        return est.code, est.error

    numbers = jnp.arange(jax.tree.leaves(problems)[0].shape[0])
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), runs))(numbers)
    return jax.vmap(jax.vmap(one, (None, 0)))(problems, keys)


def judged(run: Said, truth: np.ndarray) -> dict[str, Any]:
    """The figures of a stratum."""
    runs = run.code.shape[1]
    others = (np.sum(run.value, axis=1, keepdims=True) - run.value) / (runs - 1)
    error = run.value - truth[:, None]
    rmse = np.sqrt(np.mean(error**2, axis=1))[:, None]
    distance, size = norms(error), norms(truth)[:, None]
    trusted = run.code == bx.Code.OK
    entries = np.broadcast_to(trusted[..., None], error.shape)
    unbiased = entries & (norms(run.bias) <= 0.5 * norms(run.standard_error))[..., None]
    declared, wrong = run.confidence > CERTAIN, np.sign(run.value) != np.sign(truth[:, None])
    clear = np.broadcast_to(np.abs(truth[:, None]) > 4 * rmse, error.shape)
    out = {
        "sampling": Share.of(np.abs(run.value - others) <= run.sampling * np.sqrt(runs / (runs - 1)), entries),
        "total": Share.of(np.abs(error) <= run.half, entries),
        "small bias": Share.of(np.abs(error) <= run.half, unbiased),
        "without bias": Share.of(np.abs(error) <= run.sampling, entries),
        "wrong signs": Share.of(declared & wrong, entries),
        "declared": Share.of(declared, clear & entries),
        "untrusted": Share.of(~trusted, np.ones_like(trusted)),
        "right": Share.of(distance <= TOL * size, trusted),
    }
    figures: dict[str, Any] = {name: {"value": s.value, "error": s.error} for name, s in out.items()}
    figures["width"] = float(np.median((run.half / (1.96 * rmse))[trusted]))
    figures["biased share"] = 1.0 - float(np.mean(unbiased[entries]))
    relative = distance / size
    figures["relative error"] = [float(np.median(relative[w])) if w.any() else None for w in (trusted, ~trusted)]
    return figures


class Drawing(NamedTuple):
    """The problems of a stratum: arrays, with their truths [problems, m] and median condition."""

    stratum: Stratum
    arrays: tuple[Any, ...]
    truth: np.ndarray
    condition: float

    @classmethod
    def of(cls, stratum: Stratum, number: int) -> "Drawing":
        """Drawn and solved."""
        every = [drawn(stratum, seed) for seed in range(number)]
        condition = np.median([np.linalg.cond(p.system(p.solution().w)) for p in every])
        return cls(stratum, *families.stacked(every), float(condition))

    def run(self, estimator: Any, val_batch: int | None) -> Said:
        """So many runs of each problem as its condition allows."""
        key, runs = jax.random.fold_in(jax.random.key(0), STRATA.index(self.stratum)), RUNS[self.stratum.condition]
        how = {"stratum": self.stratum, "val_batch": val_batch, "runs": runs}
        return Said.of(*jax.block_until_ready(reports(canonicalize(estimator), self.arrays, key, **how)))


def measure(stratum: Stratum, problems: int) -> dict[str, Any]:
    """Draw, solve, run and judge."""
    drawing, steps = Drawing.of(stratum, problems), STEPS[stratum.condition, stratum.batch]
    before = time.perf_counter()
    run = drawing.run(bx.JointSID(steps), 16)
    figures = {"stratum": stratum.name, "steps": steps, "runs": run.code.shape[1], "condition": drawing.condition}
    return figures | judged(run, drawing.truth) | {"seconds": time.perf_counter() - before}


def of_sid(stratum: Stratum, problems: int) -> list[dict[str, Any]]:
    """What SID estimates of its error, after too few steps and after enough."""
    drawing, rows = Drawing.of(stratum, problems), []
    beta, gamma = (c * stratum.condition for c in FALLING[stratum.batch])
    size = norms(drawing.truth)[:, None]
    for share in (10, 1):
        steps = SID_STEPS[stratum.condition, stratum.batch] // share
        solver = bx.FixedPoint(steps, bx.Harmonic(beta, gamma))
        run = drawing.run(bx.SID(solver, solver, cross_batches=steps // 10), None)
        true = norms(run.value - drawing.truth[:, None]) / size
        ratio = np.sqrt(np.mean(run.relative**2, axis=1) / np.mean(true**2, axis=1))
        figures = judged(run, drawing.truth)
        rows.append({
            "stratum": stratum.name, "steps": steps, "true": float(np.median(true)),
            "ratio": np.quantile(ratio, [0.05, 0.5, 0.95]).tolist(),
            **{name: figures[name] for name in ("total", "wrong signs", "untrusted", "right")},
        })  # fmt: skip
    return rows


def full_batches(problems: int) -> list[dict[str, Any]]:
    """What AID estimates and bounds of its error, after so many steps of both solvers."""
    rows = []
    with float64():
        for steps in (5, 20, 80):
            estimator, found = bx.SID(bx.FixedPoint(steps), bx.FixedPoint(steps)), []
            for seed in range(problems):
                p = FiniteQuadratic.random(seed, n=50)
                est = bx.hypergradient(
                    p.problem, estimator, jnp.zeros(10), p.lam, bx.Arrays(p.train_data), bx.Arrays(p.val_data),
                    key=jax.random.key(0), constants=p.constants(p.lam),
                )  # fmt: skip
                error = np.linalg.norm(est.value - p.hypergradient(p.lam))
                found.append((float(norm(est.error.bias)) / error, float(est.error.bound) / error))
            bias, bound = np.array(found).T
            near = float(np.mean((bias > 0.5) & (bias < 2.0)))
            quantiles = np.quantile(bias, [0.05, 0.5, 0.95]).tolist()
            rows.append({"steps": steps, "ratio": quantiles, "near": near, "held": float(np.mean(bound >= 1.0))})
    return rows


def cell(figures: dict[str, Any], name: str) -> str:
    value, error = figures[name]["value"], figures[name]["error"]
    low, high = GOALS[name]
    return f"{100 * value:.1f} ({100 * error:.1f})" + ("" if low <= value <= high else " NO")


def joint(strata: list[Stratum], problems: int) -> dict[str, Any]:
    """The strata of JointSID."""
    table = tables.Table(
        "stratum", "steps", "condition", *GOALS, "width", "relative error, OK / not", "OK right"
    )  # fmt: skip
    found = []
    for stratum in strata:
        found.append(f := measure(stratum, problems))
        errors = " / ".join(f"{x:.2g}" if x is not None else "-" for x in f["relative error"])
        width = f"{f['width']:.2f}" + ("" if f["width"] <= 2 else " NO")
        shares = (cell(f, name) for name in GOALS)
        right = f"{100 * f['right']['value']:.2f}"
        table(f["stratum"], f["steps"], f"{f['condition']:.0f}", *shares, width, errors, right)
    right = float(np.mean([f["right"]["value"] for f in found]))
    print(f"\nOK was right: {100 * right:.2f} %")
    return {"strata": found, "right": right}


def sid(strata: list[Stratum], problems: int) -> dict[str, Any]:
    """The strata of SID."""
    table = tables.Table(
        "stratum", "t = k", "true error", "estimated / true: 5, 50, 95 %", "covered", "not trusted", "OK right"
    )
    rows = [row for stratum in strata for row in of_sid(stratum, problems)]
    for f in rows:
        shares = (f"{100 * f[name]['value']:.1f}" for name in ("total", "untrusted", "right"))
        table(f["stratum"], f["steps"], f"{f['true']:.2g}", ", ".join(f"{x:.2g}" for x in f["ratio"]), *shares)
    return {"SID": rows}


def full(strata: list[Stratum], problems: int) -> dict[str, Any]:
    """Full batches."""
    table = tables.Table("steps of AID", "estimate / error: 5, 50, 95 %", "within 2", "bound held")
    rows = full_batches(problems)
    for f in rows:
        table(f["steps"], ", ".join(f"{x:.2f}" for x in f["ratio"]), f"{f['near']:.1%}", f"{f['held']:.1%}")
    return {"full": rows}


PARTS = {"JointSID": joint, "SID": sid, "full": full}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--problems", type=int, default=125, help="of each stratum")
    parser.add_argument("--only", nargs="+", metavar="STRATUM", default=[s.name for s in STRATA])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=tuple(PARTS))


def main(options: argparse.Namespace) -> None:
    if options.quick:
        options.problems, options.only = 2, ["quadratic-10-b64"]
    record, strata = store.kept(options), [s for s in STRATA if s.name in options.only]
    for part in options.parts:
        record |= PARTS[part](strata, options.problems)
        store.keep(options, record)
