"""The runs of ``verdicts``: problems of a family, step counts that fit them, and what estimators say of themselves."""

import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import bilevax as bx
from benchmarks import families
from benchmarks.reported import Said, flat
from bilevax.testing.problems import NamedProblem, problem

FIRST, GROWTH, PILOT_RUNS = 50, 4, 3
"""Steps of the pilot's first runs, the factor to the next, and the runs of each problem."""

LOW, HIGH = 0.01, 1.0
TOL, CERTAIN, VAL_BATCH = 0.1, 0.99, 16


SID_LONGER = 3
"""Times as many steps, at most, as JointSID: last points average nothing."""

ONE_ROW_LONGER = 3
"""Times as many steps, at most, where a minibatch is one row: they read less, and so come less far."""


class Setting(NamedTuple):
    """How much is run."""

    problems: int
    counts: int
    runs: int
    cap: int  # steps
    draw: int
    lanes: int  # runs of one call of the compiled program


class Group(NamedTuple):
    """The problems of a family: arrays [problems, ...] in float32 but for the truths."""

    name: str
    problem: Any
    batch: int
    sampling: str
    arrays: tuple[Any, ...]  # (w0, lam, train, val)
    truth: np.ndarray  # [problems, m]
    falling: np.ndarray  # of SID: eta_0, power and horizon, [problems, 3]

    @classmethod
    def of(cls, name: str, setting: Setting) -> "Group":
        """Drawn and solved."""
        drawn = [problem(name, (setting.draw + i) % 2**63) for i in range(setting.problems)]
        one, (arrays, truth) = drawn[0], families.stacked(drawn)
        falling = np.array([of_sid(p, i) for i, p in enumerate(drawn)])
        return cls(name, one.unmeasured, one.batch_size, one.sampling, arrays, truth, falling)


def _single(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if x.dtype.kind == "f" else x


# The steps of SID


def of_sid(p: NamedProblem, i: int) -> tuple[float, float, float]:
    """(eta_0, power, horizon) of eta_j = eta_0 (1 + j / horizon)^-power: the published steps, slower ones, constant."""
    systems = rows_of_system(p)
    stable, mean = largest_stable(systems, p.batch_size), systems.mean(axis=0)
    if i % 4 == 3:
        return 0.5 * stable, 0.0, 1.0
    first = min(1.0, 0.7 * stable)
    q = np.max(np.abs(np.linalg.eigvals(np.eye(len(mean)) - first * mean)))
    return first, 0.75 if i % 4 == 1 else 1.0, 2.0 / (1.0 - min(q, 1.0 - 1e-6) ** 2)


def sid(steps: Any, falling: Any, cross_batches: Any) -> bx.SID:
    """Two chains of as many steps, eta_0 (1 + j / horizon)^-power."""
    solver = bx.FixedPoint(steps, bx.Polynomial(*falling))
    return bx.SID(solver, solver, cross_batches=cross_batches)


def rows_of_system(p: NamedProblem) -> np.ndarray:
    """I - d1Phi of each row at the solution, [n, d, d], for the measured step."""
    points = jax.tree.map(lambda x: jnp.asarray(_single(np.asarray(x))), (p.w0, p.solution().w, p.lam))
    return np.asarray(_systems(p.unmeasured, points, p.sources()[0], jax.random.key(0)), np.float64)


@jax.jit
def _systems(problem: Any, points: tuple[Any, Any, Any], train: Any, key: Any) -> Any:
    w0, w, lam = points
    ready = problem.with_measured_step(w0, lam, train, key)
    x, tree = ravel_pytree(w)

    def system(row: Any) -> Any:
        row = jax.tree.map(lambda a: a[None], row)
        return jnp.eye(len(x)) - jax.jacfwd(lambda x: ravel_pytree(ready.inner_map(tree(x), lam, row))[0])(x)

    return jax.vmap(system)(train.all_rows)


def largest_stable(systems: np.ndarray, b: int) -> float:
    """The largest eta with which x <- x - eta A_B x is stable in mean square, A_B the mean of b rows' systems.

    E[x x'] -> E[x x'] - eta (A E[x x'] + E[x x'] A') + eta^2 E[A_B E[x x'] A_B'] has a spectral radius below one.
    """
    d, mean, eye = systems.shape[1], systems.mean(axis=0), np.eye(systems.shape[1])
    both = np.einsum("nij,nkl->ikjl", systems, systems).reshape(d * d, d * d) / len(systems)
    square = both / b + (1.0 - 1.0 / b) * np.kron(mean, mean)
    line = np.kron(mean, eye) + np.kron(eye, mean)
    low, high = 0.0, 4.0
    for _ in range(10):
        eta = 0.5 * (low + high)
        radius = np.max(np.abs(np.linalg.eigvals(np.eye(d * d) - eta * line + eta**2 * square)))
        low, high = (eta, high) if radius < 1.0 else (low, eta)
    return max(low, 1e-3)


# The runs


@partial(jax.jit, static_argnames=("name", "batch", "sampling"))
def reports(
    problem: Any, arrays: Any, falling: Any, keys: Any, steps: Any, *, name: str, batch: int, sampling: str
) -> Any:
    """Codes and errors of runs of so many steps, each with its own problem and key."""

    def one(arrays: Any, falling: Any, key: Any) -> Any:
        (w0, lam, train, val), joint = arrays, name == "JointSID"
        sources = bx.Arrays(train, batch, sampling, None), bx.Arrays(val, VAL_BATCH if joint else None)
        estimator = bx.JointSID(steps) if joint else sid(steps, falling, jnp.maximum(steps // 4, 2))
        est = bx.hypergradient(problem, estimator, w0, lam, *sources, key=key, tol=TOL)
        return est.code, est.error

    return jax.vmap(one)(arrays, falling, keys)


class Runs:
    """Runs of one estimator on one family."""

    def __init__(self, group: Group, estimator: str, lanes: int) -> None:
        self.group, self.estimator, self.lanes = group, estimator, lanes
        self.steps, self.cpu = 0, 0.0  # made, and CPU seconds, in calls after the first

    def __call__(self, numbers: np.ndarray, keys: np.ndarray, steps: int) -> Said:
        """Run at most so many as there are lanes: problems by their numbers, each with a key of a seed."""
        g, lanes = self.group, np.resize(np.arange(len(numbers)), self.lanes)
        at = numbers[lanes]
        arrays, falling = jax.tree.map(lambda x: jnp.asarray(x[at]), (g.arrays, g.falling.astype(np.float32)))
        made = jax.vmap(jax.random.key)(jnp.asarray(keys[lanes], jnp.uint32))
        clock = time.process_time()
        how = {"name": self.estimator, "batch": g.batch, "sampling": g.sampling}
        out = jax.block_until_ready(reports(g.problem, arrays, falling, made, jnp.int32(steps), **how))
        if self.steps:
            self.cpu += time.process_time() - clock
        self.steps += steps
        return Said.of(*jax.tree.map(lambda x: x[: len(numbers)], out))

    def relative(self, numbers: np.ndarray, runs: Said) -> np.ndarray:
        """True relative errors; infinite where a run has no finite value."""
        truth = self.group.truth[numbers]
        error = np.linalg.norm(runs.value - truth, axis=1) / np.linalg.norm(truth, axis=1)
        return np.where(np.isfinite(error), error, np.inf)


def piloted(runs: Runs, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """The step counts that were tried, [T], and the root mean square errors of each problem, [problems, T].

    A problem is left alone once it is at LOW; what was not run is as the last that was.
    """
    counts = [FIRST]
    while counts[-1] * GROWTH < setting.cap:
        counts.append(counts[-1] * GROWTH)
    counts.append(setting.cap)
    rms = np.full((setting.problems, len(counts)), np.nan)
    for t, steps in enumerate(counts):
        todo = np.repeat(np.flatnonzero(~(np.nanmin(rms[:, :t], axis=1, initial=np.inf) < LOW)), PILOT_RUNS)
        for part in np.array_split(todo, -(-len(todo) // setting.lanes)) if len(todo) else ():
            keys = 10**8 + 1000 * part + np.arange(len(part))
            true = runs.relative(part, runs(part, keys, steps))
            for i in np.unique(part):
                rms[i, t] = np.sqrt(np.mean(np.minimum(true[part == i], 1e6) ** 2))
    for t in range(1, len(counts)):
        rms[:, t] = np.where(np.isnan(rms[:, t]), rms[:, t - 1], rms[:, t])
    return np.array(counts), rms


def planned(counts: np.ndarray, rms: np.ndarray, setting: Setting) -> np.ndarray:
    """Step counts whose root mean square errors are log-uniform over LOW to HIGH, where that is reached, [problems, 8].

    By interpolation of logarithms; an error that grows again with the steps is not looked for.
    """
    rng, out = np.random.default_rng(0), []
    for errors in rms:
        least = np.minimum.accumulate(errors) * (1 - 1e-6 * np.arange(len(counts)))  # strictly falling
        low, high = np.log(np.clip(least[-1], LOW, HIGH / 2)), np.log(np.clip(least[0], 2 * LOW, HIGH))
        places = (np.arange(setting.counts) + rng.uniform()) / setting.counts
        wanted = high + (min(low, high - 1e-3) - high) * places
        out.append(np.exp(np.interp(-wanted, -np.log(least), np.log(counts))))
    return np.array(out)


def measure(name: str, estimator: str, setting: Setting) -> dict[str, np.ndarray]:
    """Every run of one estimator on one family: arrays [runs] or [runs, m]."""
    clock = time.process_time()
    group = Group.of(name, setting)
    longer = (SID_LONGER if estimator == "SID" else 1) * (ONE_ROW_LONGER if group.batch == 1 else 1)
    setting = setting._replace(cap=longer * setting.cap)
    runs = Runs(group, estimator, setting.lanes)
    counts, rms = piloted(runs, setting)
    wanted = planned(counts, rms, setting)
    cells, found = np.argsort(wanted, axis=None), []
    for part in np.array_split(cells, -(-len(cells) * setting.runs // setting.lanes)):
        steps = round(float(np.exp(np.mean(np.log(wanted.ravel()[part])))))
        cell = np.repeat(part, setting.runs)
        problem, keys = cell // setting.counts, cell * setting.runs + np.tile(np.arange(setting.runs), len(part))
        say = runs(problem, keys, steps)
        truth, true = runs.group.truth[problem], runs.relative(problem, say)
        found.append({
            "cell": cell, "problem": problem, "steps": np.full(len(cell), steps), "true": true,
            "error": say.value - truth, "code": say.code, "half": say.half, "relative": say.relative,
            "upper": say.upper, "degrees": say.degrees_of_freedom, "declared": say.confidence > CERTAIN,
            "wrong": np.sign(say.value) != np.sign(truth),
        })  # fmt: skip
    out = {key: np.concatenate([f[key] for f in found]) for key in found[0]}
    out["reached"] = rms.min(axis=1)
    speed = setting.lanes * (runs.steps - FIRST) / max(runs.cpu, 1e-9)
    return out | {"speed": np.array(speed), "cpu": np.array(time.process_time() - clock)}


# Runs with a target


def with_target(name: str, estimator: str, setting: Setting) -> dict[str, np.ndarray]:
    """Four runs of each of ten problems through the eager door that are asked for a relative error of TOL."""
    clock, found = time.process_time(), []
    for i in range(min(setting.problems, 10)):
        p = problem(name, (setting.draw + i) % 2**63)
        truth, (train, val) = flat(p.solution().hypergradient), p.sources()
        w0, lam = (jax.tree.map(lambda x: jnp.asarray(_single(np.asarray(x))), tree) for tree in (p.w0, p.lam))
        method: Any = bx.JointSID(100)
        if estimator == "JointSID":
            val = bx.Arrays(val.data, VAL_BATCH)
        else:
            method = sid(100, of_sid(p, i), 25)
        for run in range(4):
            key = jax.random.key(2 * 10**8 + 4 * i + run)
            est = bx.hypergradient(p.unmeasured, method, w0, lam, train, val, key=key, target=TOL)
            error = np.linalg.norm(flat(est.value) - truth) / np.linalg.norm(truth)
            found.append((i, int(est.code), error, est.cost.samples / train.rows))
    numbers, codes, errors, passes = map(np.array, zip(*found, strict=True))
    cpu = np.array(time.process_time() - clock)
    return {"problem": numbers, "code": codes, "true": errors, "passes": passes, "cpu": cpu}
