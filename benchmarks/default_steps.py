"""How far are the default steps from the best of 24 that are chosen by hand? At most 3 times its samples is the goal.

A cell is an algorithm on a problem that had no part in choosing the constants of the default steps. Counted are the
samples until the norm of the exact hypergradient is a tenth of that at the start, or 1.5 times what the algorithm's own
truncation or penalty leaves, where that is more: median over keys, looked at 36 times, at 2,000 samples first and at
1,000,000 last. By hand: constant steps, rho = 1, 1/2, 1/4, 1/8 of 1 / L and gamma = .3 to .005 of 1 / K (ten times that
in the double loops), L the largest curvature of a minibatch at the solution and K that of f at the start, both exact.
By default: as ``bx.minimize`` has it for a run of thrice the best, measuring included. A cell counts where the best
takes 20,000 samples at least. Minibatches are blocks of 32 rows of train and of val. Penalties exp(lam) are told, as
docs/algorithms.md says. A cell is kept when it is done, and not asked again.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

import bilevax as bx
from benchmarks import cases, datasets, store, tables
from bilevax.algorithms.measured_steps import SAMPLES, SHARE
from bilevax.core.config import canonicalize, config, replace_unchecked
from bilevax.data.looks import stream_key
from bilevax.testing.closed_forms import Curvature
from bilevax.testing.judging import ROUND
from bilevax.testing.problems import NamedProblem, problem
from bilevax.testing.tools import float64

ROWS = 32
RHO, GAMMA = (1.0, 0.5, 0.25, 0.125), (0.3, 0.1, 0.05, 0.02, 0.01, 0.005)
MARKS = np.geomspace(2_000, 1_000_000, 36)
TENTH, FLOORS, COUNTS, GOAL, LONGEST, LEAST = 0.1, 1.5, 20_000, 3.0, 10.0, 60_000
FULL_STEPS = 8_000

ALGORITHMS = {a.__name__: a for a in (bx.SOBA, bx.MASOBA, bx.SABA, bx.SRBA, bx.AmIGO, bx.StocBiO, bx.SUSTAIN, bx.F2SA)}
DOUBLE_LOOPS = "AmIGO", "StocBiO"

PROBLEMS = tuple(
    f"{name} {draw}"
    for draw in (1, 2, 3)
    for name in (
        "one-row", "correlated", "row-shares", "gamma", "squared-hinge", "nearly-separable", "same-rows", "quantile",
        "mean-field", "quadratic-10-b1", "quadratic-1000-b32", "logistic-500x20-0.001", "cleaning",
    )
)  # fmt: skip
"""Name and draw. Not asked: pairs, whose entries of lam are in units from 1e-6 to 1e6, so that no gamma serves all."""

PENALTIES: dict[str, Callable[[Any], Any]] = {
    "one-row": lambda lam: jnp.repeat(jnp.exp(lam), 2),
    "correlated": lambda lam: jnp.exp(lam["penalty"]),
    "row-shares": lambda lam: jnp.exp(lam["penalty"]),
    "gamma": jnp.exp,
    "squared-hinge": jnp.exp,
    "nearly-separable": lambda lam: jnp.exp(lam["penalty"]),
    "same-rows": lambda lam: jnp.exp(lam["l1"]) / ROUND + jnp.exp(lam["l2"]),
    "quantile": jnp.exp,
}
"""The largest curvature of a penalty, by family: lam -> what broadcasts against w."""


@config
class Telling:
    """A loss that tells the curvature of its penalty."""

    loss: Callable[[Any, Any, Any], Array]
    penalty: Callable[[Any], Any]

    def __call__(self, w: Any, lam: Any, batch: Any) -> Array:
        return self.loss(w, lam, batch)

    def penalty_curvature(self, w: Any, lam: Any) -> Any:
        """Of every entry of w."""
        return self.penalty(lam)


class Asked(NamedTuple):
    """A problem, its sources, L, K, and the norm of the hypergradient at the start."""

    p: NamedProblem
    sources: tuple[bx.Arrays, bx.Arrays]
    L: float
    K: float
    start: float


def cleaning(draw: int) -> NamedProblem:
    """Weights sigmoid(lam_i) of 320 rows of digits 0, 1, 2, on 16 columns, of which half have a random label."""
    data, rng = datasets.digits(), np.random.default_rng([29, draw])
    rows = rng.permutation(np.flatnonzero(data.y < 3))[:480]
    X = data.X[rows].astype(np.float64).reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16)
    y, numbers = data.y[rows].astype(np.int32), np.arange(320, dtype=np.int32)
    noisy = np.where(rng.uniform(size=320) < cases.FLIPPED, rng.integers(0, 3, 320), y[:320]).astype(np.int32)
    # the Hessian of the log-sum-exp of the scores is at most 1/2
    L = float(0.5 * np.linalg.eigvalsh(X[:320].T @ X[:320] / 320)[-1]) + cases.DECAY
    made = bx.Problem(bx.GradientStep(cases.weighted_scores_loss, 1.0 / L), bx.MultinomialLogistic())
    train, val = (X[:320], noisy, numbers), (X[320:], y[320:])
    return NamedProblem("cleaning", made, train, val, np.zeros((3, 16)), np.zeros(320), ROWS, Curvature(L, cases.DECAY))


def asked(name: str) -> Asked:
    kind, draw = name.split()
    p = cleaning(int(draw)) if kind == "cleaning" else problem(kind, int(draw))
    if kind in PENALTIES:
        step = p.problem.inner_map
        p = replace(
            p, problem=bx.Problem(replace(step, loss=Telling(step.loss, PENALTIES[kind])), p.problem.outer_loss)
        )
    sources = [replace_unchecked(s, batch_size=ROWS, sampling="blocks") for s in p.sources()]
    lam, tree = ravel_pytree(jax.tree.map(np.asarray, p.lam))
    e = 1e-4 * np.eye(len(lam))
    points = np.concatenate([lam + e, lam - e, np.asarray(lam)[None]]).astype(np.float64)
    ahead, behind, start = np.split(hypergradients(p, jax.vmap(tree)(points)), [len(lam), 2 * len(lam)])
    hessian = (ahead - behind) / 2e-4  # f'' by central differences
    K = np.abs(np.linalg.eigvalsh((hessian + hessian.T) / 2)).max()
    return Asked(p, tuple(sources), largest_curvature(p), float(K), float(np.linalg.norm(start)))


def largest_curvature(p: NamedProblem) -> float:
    """L, over the blocks of train at the solution; of a map 1, so that rho is in units of the map."""
    if not p.problem.has_loss:
        return 1.0
    with float64():
        x, tree = ravel_pytree(jax.tree.map(jnp.asarray, p.solution().w))
        blocks = jax.tree.map(lambda a: a[: len(a) // ROWS * ROWS].reshape(-1, ROWS, *a.shape[1:]), p.train)
        hessian = jax.vmap(jax.hessian(lambda x, batch: p.problem.inner_loss(tree(x), p.lam, batch)), (None, 0))
        return float(jnp.linalg.eigvalsh(hessian(x, blocks)).max())


def hypergradients(p: NamedProblem, lams: Any) -> np.ndarray:
    """Exact ones, [N, m], infinite where lam is not finite or beyond 50, or has no solution."""
    flat = np.concatenate([np.asarray(x).reshape(len(x), -1) for x in jax.tree.leaves(lams)], axis=1)
    sound = np.all(np.isfinite(flat) & (np.abs(flat) < 50), axis=1)
    with float64():
        args = jax.tree.map(lambda x: jnp.asarray(x, float), (canonicalize(p.problem), p.w0, lams))
        found = _hypergradients(*args, *jax.tree.map(jnp.asarray, (p.train, p.val)), jnp.asarray(sound))
    return np.nan_to_num(np.asarray(found), nan=np.inf)


@jax.jit
def _hypergradients(made: bx.Problem, w0: Any, lams: Any, train: Any, val: Any, sound: Array) -> Array:
    first, tree = ravel_pytree(w0)

    def at(x: Array, args: tuple[Any, Array]) -> tuple[Array, Array]:
        """From where the one before was solved."""
        lam, sound = args

        def residual(x: Array) -> Array:
            return ravel_pytree(made.inner_map(tree(x), lam, train))[0] - x

        def size(x: Array) -> Array:
            return jnp.linalg.norm(residual(x))

        def newton(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            x, before, k = state
            way = jnp.linalg.solve(jax.jacfwd(residual)(x), residual(x))

            def shorter() -> Array:
                points = x - 0.5 ** jnp.arange(12.0)[:, None] * way
                return points[jnp.nanargmin(jax.vmap(size)(points))]

            new = jax.lax.cond(size(x - way) < 0.5 * before, lambda: x - way, shorter)
            return new, size(new), k + 1

        def wanted(state: tuple[Array, Array, Array]) -> Array:
            return sound & (state[2] < 60) & (state[1] > 1e-11)

        x, left, _ = jax.lax.while_loop(wanted, newton, (x, size(x), jnp.int32(0)))
        by_w, direct = jax.grad(made.outer_loss, (0, 1))(tree(x), lam, val)
        # (I - d1Phi^T) v = grad_1 E;  grad f = grad_2 E + d2Phi^T v
        v = jnp.linalg.solve(-jax.jacfwd(residual)(x).T, ravel_pytree(by_w)[0])
        cross = jax.vjp(lambda lam: made.inner_map(tree(x), lam, train), lam)[1](tree(v))[0]
        solved = sound & (left < 1e-7)
        out = ravel_pytree(direct)[0] + ravel_pytree(cross)[0]
        return jnp.where(solved, x, first), jnp.where(solved, out, jnp.inf)

    return jax.lax.scan(at, first, (lams, sound))[1]


@jax.jit
def _advance(
    made: bx.Problem, algorithm: Any, settings: Any, states: Any, sources: Any, key: Array, start: Array, stop: Array
) -> Any:
    def lane(settings: dict[str, Any], state: Any) -> Any:
        chosen = replace_unchecked(algorithm, **settings)

        def step(state: Any, _: Any, k: Array, looks: Any) -> Any:
            return chosen.step(made, state, looks, k)[0]

        return bx.fold_looks(chosen.streams(sources), step, state, (), key=key, start=start, stop=stop)

    states = jax.vmap(lane)(settings, states)
    return states, jax.vmap(lambda state: algorithm.solution(state)[1])(states)


class Lanes:
    """Runs of one algorithm with several settings on one key, led on from mark to mark."""

    def __init__(
        self, a: Asked, chosen: list[Any], key: int, *, sources: Any = None, begin: Any = None, spent: int = 0
    ):
        w0, lam = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (a.p.w0, a.p.lam))
        self.asked, self.sources, self.key = a, sources or a.sources, jax.random.key(key)
        self.made, self.spent, self.done = canonicalize(a.p.problem), spent, 0
        chosen = [canonicalize(each) for each in chosen]
        w, u = begin or (w0, None)
        names = [name for name in ("step_size", "ratio", "unit") if hasattr(chosen[0], name)]
        stacked = [jax.tree.map(lambda *x: jnp.stack(x), *[getattr(each, name) for each in chosen]) for name in names]
        self.algorithm, self.settings = chosen[0], dict(zip(names, stacked, strict=True))
        states = [each.init(self.made, w, lam, self.sources, u) for each in chosen]
        self.states = jax.tree.map(lambda *x: jnp.stack(x), *states)

    def at(self, samples: float) -> np.ndarray:
        """Norms of the exact hypergradient after so many samples in all, [lanes]."""
        stop = max(int((samples - self.spent) / samples_of_step(self.algorithm, self.made, self.sources)), self.done)
        ends = jnp.int32(self.done), jnp.int32(stop)
        args = self.made, self.algorithm, self.settings, self.states, self.sources, self.key
        (self.states, lams), self.done = _advance(*args, *ends), stop
        return np.linalg.norm(hypergradients(self.asked.p, lams), axis=1)


def samples_of_step(algorithm: Any, made: bx.Problem, sources: Any) -> float:
    """In the mean, where they vary."""
    b, b_val = (source.rows_per_batch for source in sources)
    if type(algorithm) is bx.SRBA:
        return 2 * (b + b_val)  # a pass as soon as minibatches have read as many rows
    if type(algorithm) is bx.SUSTAIN:
        return b + b_val + (algorithm.linear_steps - 1) / 2 * b  # p factors, uniform on 0, ..., K - 1
    return float(algorithm.step_cost(made, sources).samples)


def by_hand(a: Asked, name: str) -> list[Any]:
    """The 24."""
    unit = {}
    if name == "F2SA":
        w0, lam = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (a.p.w0, a.p.lam))
        given = bx.F2SA(1.0, 1.0)
        unit["unit"] = float(
            bx.measure_steps(a.p.problem, given, w0, lam, *a.sources, key=jax.random.key(0)).algorithm.unit
        )
    times = 10 if name in DOUBLE_LOOPS else 1
    return [ALGORITHMS[name](r / a.L, times * g / a.K / (r / a.L), **unit) for r in RHO for g in GAMMA]


def floor(a: Asked, name: str) -> float:
    """What truncation (rho = 1 / L) or penalty leaves: least norm on full batches, 0 where it is not settled."""
    if name not in ("StocBiO", "SUSTAIN", "F2SA"):
        return 0.0
    full = tuple(replace_unchecked(source, batch_size=None) for source in a.sources)
    if name == "F2SA":
        chosen = [each for each in by_hand(a, name) if each.step_size.value == 1 / a.L][:3]
    else:
        # SUSTAIN's mean direction is StocBiO's with one factor less
        steps = 10 if name == "StocBiO" else 9
        chosen = [bx.StocBiO(1 / a.L, 10 * g / a.K * a.L, linear_steps=steps) for g in GAMMA[:3]]
    lanes, seen = Lanes(a, chosen, 0, sources=full), [a.start]
    step = samples_of_step(lanes.algorithm, lanes.made, full)
    for steps in np.geomspace(100, FULL_STEPS, 12):
        seen.append(lanes.at(steps * step).min())
        if min(seen) * FLOORS <= TENTH * a.start:
            return 0.0
    return min(seen) if seen[-1] > 0.97 * seen[-2] else 0.0


def default(a: Asked, name: str, seed: int, length: float) -> Lanes:
    """As ``bx.minimize`` begins a run of so many samples."""
    w0, lam = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (a.p.w0, a.p.lam))
    key = stream_key(jax.random.key(seed), "measuring")
    samples = max(SAMPLES, int(SHARE * length))
    found = bx.measure_steps(a.p.problem, ALGORITHMS[name](), w0, lam, *a.sources, key=key, samples=samples)
    return Lanes(a, [found.algorithm], seed, begin=(found.w0, found.u0), spent=int(found.cost.samples))


def cell(a: Asked, name: str, seeds: Iterable[int], marks: np.ndarray) -> dict[str, Any]:
    """What one algorithm needs on one problem, by hand and by default."""
    began, left = time.process_time(), floor(a, name)
    goal = max(TENTH * a.start, FLOORS * left)
    by_seed = [Lanes(a, by_hand(a, name), seed) for seed in seeds]
    hits = np.full((len(by_seed), len(RHO) * len(GAMMA)), np.inf)
    for mark in marks:
        hits = np.minimum(hits, [np.where(lanes.at(mark) <= goal, mark, np.inf) for lanes in by_seed])
        if np.isfinite(best := np.median(hits, axis=0).min()):
            break
    won = np.unravel_index(np.argmin(np.median(hits, axis=0)), (len(RHO), len(GAMMA)))
    length = GOAL * best if np.isfinite(best) else LEAST
    by_seed, hits = [default(a, name, seed, length) for seed in seeds], np.full(len(by_seed), np.inf)
    for mark in marks[0] * (marks[1] / marks[0]) ** np.arange(100):
        norms = np.array([lanes.at(mark)[0] for lanes in by_seed])
        hits = np.minimum(hits, np.where(norms <= goal, mark, np.inf))
        enough = np.isfinite(np.median(hits)) or mark >= LONGEST / GOAL * length
        if mark >= max(length, LEAST) and enough:
            break
    rho, ratio = by_seed[0].algorithm.step_size(jnp.int32(0)), by_seed[0].algorithm.ratio
    return {
        "best": best, "rho": RHO[won[0]], "gamma": GAMMA[won[1]], "floor": left / a.start, "hits": hits,
        "ratio": float(np.median(hits)) / best if np.isfinite(best) else np.nan, "spent": by_seed[0].spent,
        "end": norms / a.start, "own rho": float(rho) * a.L,
        "own gamma": float(rho * ratio) * a.K / (10 if name in DOUBLE_LOOPS else 1),
        "counts": bool(COUNTS <= best < np.inf), "seconds": time.process_time() - began,
    }  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--problems", nargs="+", metavar="'NAME DRAW'", default=PROBLEMS)
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=tuple(ALGORITHMS))
    parser.add_argument("--seeds", type=int, default=3, help="an odd number")


def main(options: argparse.Namespace) -> None:
    cells = store.kept(options).get("cells", {})
    names, chosen, seeds, marks = options.problems, options.algorithms, range(options.seeds), MARKS
    if options.quick:
        names, chosen, seeds, marks = names[:1], ("SOBA", "StocBiO"), range(1), MARKS[:3]
    table = tables.Table("problem", "algorithm", "best", "rho L", "gamma K", "ratio", "own rho L", "own gamma K", "end")
    for name in names:
        if all(f"{name} {each}" in cells for each in chosen):
            continue
        a = asked(name)
        for each in chosen:
            if f"{name} {each}" not in cells and (each != "F2SA" or a.p.problem.has_loss):
                found = cells[f"{name} {each}"] = cell(a, each, seeds, marks)
                shown = (found[key] for key in ("best", "rho", "gamma", "ratio", "own rho", "own gamma"))
                table(name, each, *shown, found["end"].max())
                store.keep(options, {"cells": cells})
