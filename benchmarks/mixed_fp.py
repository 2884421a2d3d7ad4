"""Is a mixed fixed-point iteration better than its two ends, at equal products?

The linear systems of the paper (Terashita, Hara 2025), whose w is given: minibatches of one row, and the derivatives of
the outer loss and the cross product on every row. ``synthetic``: 1,000 symmetric matrices Q diag(U[0, .99)) Q'.
``adult``: logistic regression of 14 columns, a penalty each. ``fashion``: the weights of 5,000 images in the loss of a
linear classifier with sigmoid outputs. ``california``: linear regression towards lam. A step of the mixed methods makes
two products, so that they take half as many steps of the 10,000 products that all have. Each method has the best of its
settings, by the mean error of three runs; what is shown is the mean norm of the error over the last tenth of the
products, of ten fresh runs, with quartiles.

StocRB is the reverse mode whose cross products are on every row: the Neumann series in product form. ``sampled`` takes
each of a row, as :class:`bx.StochasticReverse`.
"""

import argparse
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import bilevax as bx
from benchmarks import datasets, store, tables
from bilevax.core.config import canonicalize, config

PRODUCTS, RUNS, SCREENED = 10_000, 10, 3
RATES, STEPS = (1e-4, 1e-3, 1e-2, 1e-1), (1e-3, 1e-2, 1e-1, 0.5)
HARMONIC = (10, 10), (100, 100), (100, 1000), (1000, 1000)
ROWS = 5_000


class Task(NamedTuple):
    """A linear system, its rows, and where."""

    problem: bx.Problem
    w: Any
    lam: Any
    train: Any
    val: Any

    def instance(self, batch: int | None) -> bx.Instance:
        """With so many rows in a minibatch of train, None for all."""
        return bx.Instance(self.problem, self.lam, bx.Arrays(self.train, batch), bx.Arrays(self.val))

    def single(self) -> "Task":
        """In float32."""
        return jax.tree.map(lambda x: jnp.asarray(x, np.float32) if jnp.result_type(x) == np.float64 else x, self)


# Tasks


@config
class Form:
    """1/2 w'A_i w + w'B lam."""

    B: Array

    def __call__(self, w: Array, lam: Array, batch: Array) -> Array:
        """Mean over the rows A_i of the batch."""
        return jnp.mean(0.5 * jnp.einsum("i,nij,j->n", w, batch, w)) + w @ self.B @ lam


def linear(w: Array, lam: Array, batch: Any) -> Array:
    c, d = batch
    return jnp.mean(c @ w + d @ lam)


def synthetic(quick: bool) -> Task:
    n, size = (50, 10) if quick else (1000, 100)
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(n, size, size)))[0]
    A = (Q * rng.uniform(0, 0.99, size=(n, 1, size))) @ Q.transpose(0, 2, 1)
    inner, val = Form(jnp.asarray(rng.uniform(size=(size, size)))), rng.normal(size=(2, 1, size))
    return Task(bx.Problem(bx.GradientStep(inner, 1.0), linear), jnp.zeros(size), jnp.zeros(size), A, tuple(val))


def cross_entropy(w: Array, x: Array, y: Array) -> Array:
    return jax.nn.softplus(-(2 * y - 1) * (x @ w))


def weighted_penalty(w: Array, lam: Array, batch: Any) -> Array:
    return jnp.mean(cross_entropy(w, *batch)) + 0.05 * jnp.sum((lam * w) ** 2)


def validation(w: Array, lam: Array, batch: Any) -> Array:
    return jnp.mean(cross_entropy(w, *batch))


def towards(w: Array, lam: Array, batch: Any) -> Array:
    return squares(w, lam, batch) + 0.05 * jnp.sum((lam - w) ** 2) + 0.05 * jnp.sum(w**2)


def squares(w: Array, lam: Array, batch: Any) -> Array:
    x, y = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2)


def of_sigmoids(w: Array, x: Array, y: Array) -> Array:
    """Cross-entropy of softmax(sigmoid(x w)), as published."""
    scores = jax.nn.log_softmax(jax.nn.sigmoid(x @ w))
    return -jnp.take_along_axis(scores, y[:, None], axis=1)[:, 0]


def weighted_rows(w: Array, lam: Array, batch: Any) -> Array:
    x, y, i = batch
    return jnp.mean(lam[i] * of_sigmoids(w, x, y)) + 0.05 * jnp.sum(w**2)


def unweighted_rows(w: Array, lam: Array, batch: Any) -> Array:
    return jnp.mean(of_sigmoids(w, *batch[:2]))


def trained(inner: Any, gamma: float, outer: Any, w: Array, lam: Array, columns: tuple[np.ndarray, ...]) -> Task:
    """The first half of the rows is to train on; w is where 1,000 steps of Adam end, on every row."""
    half = len(columns[0]) // 2
    train, val = (tuple(jnp.asarray(x[part]) for x in columns) for part in (slice(half), slice(half, None)))
    adam = optax.adam(0.01)

    def step(carry: Any, _: Any) -> tuple[Any, None]:
        w, state = carry
        move, state = adam.update(jax.grad(inner)(w, lam, train), state)
        return (optax.apply_updates(w, move), state), None

    (w, _), _ = jax.jit(lambda w: jax.lax.scan(step, (w, adam.init(w)), length=1000))(w)
    return Task(bx.Problem(bx.GradientStep(inner, gamma), outer), w, lam, train, val)


def some(quick: bool, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.random.default_rng(0).permutation(len(y))[: 200 if quick else 2 * ROWS]
    return X[chosen], y[chosen]


def adult(quick: bool) -> Task:
    X, y = some(quick, *datasets.table("adult"))
    ones = jnp.ones(X.shape[1])
    return trained(weighted_penalty, 1.0, validation, 0 * ones, ones, (X, y))


def california(quick: bool) -> Task:
    X, y = some(quick, *datasets.table("california_housing"))
    zero = jnp.zeros(X.shape[1])
    return trained(towards, 0.1, squares, zero, zero, (X, y))


def fashion(quick: bool) -> Task:
    data = datasets.pixels()
    X, y = some(quick, data.X, data.y)
    i = np.arange(len(y)) % (len(y) // 2)
    return trained(weighted_rows, 1e-2, unweighted_rows, jnp.zeros((784, 10)), jnp.ones(len(y) // 2), (X / 255.0, y, i))


TASKS: dict[str, Callable[[bool], Task]] = {
    "synthetic": synthetic, "adult": adult, "fashion": fashion, "california": california,
}  # fmt: skip


# Methods


def harmonic(alpha: float, gamma: float) -> bx.Harmonic:
    """alpha / (gamma + t + 1)."""
    return bx.Harmonic(float(alpha), gamma + 1.0)


def settings() -> dict[str, dict[str, Any]]:
    """(products) -> the linear solver, by method and by setting."""

    def fixed(eta: Any) -> Any:
        return lambda n: bx.FixedPoint(n, eta, confirm=False)

    def mixed(a: float, eta: Any) -> Any:
        return lambda n: bx.MixedFP((n + 1) // 2, a, eta)

    schedules = [(f"{al}/({ga} + t + 1)", harmonic(al, ga)) for al, ga in HARMONIC]
    return {
        "StocFP": {"": fixed(1.0)},
        "StocRB": {"": bx.ProductNeumann},
        "MixedFP": {f"a = {a:g}": mixed(a, 1.0) for a in RATES},
        "FP+KM, constant": {f"eta = {eta:g}": fixed(eta) for eta in STEPS},
        "FP+KM, decreasing": {f"eta = {name}": fixed(eta) for name, eta in schedules},
        "MixedFP-KM, constant": {
            f"a = {a:g}, eta = {eta:g}": mixed(a, eta) for a, eta in itertools.product(RATES[1:], STEPS)
        },
        "MixedFP-KM, decreasing": {
            f"a = {a:g}, eta = {name}": mixed(a, eta) for a, (name, eta) in itertools.product(RATES[1:], schedules)
        },
    }


@jax.jit
def values(method: Any, instance: bx.Instance, w: Any, keys: Array) -> Any:
    """Hypergradients, flat, [keys, m]."""
    return jax.vmap(lambda key: jnp.ravel(method.estimate(instance, w, key=key).value))(keys)


def errors(task: Task, truth: np.ndarray, method: Any, runs: int, seed: int) -> np.ndarray:
    """Norms of the errors of so many runs; infinite where one is not finite."""
    keys = jax.random.split(jax.random.key(seed), runs)
    found = np.asarray(values(canonicalize(method), task.instance(1), task.w, keys))
    return np.nan_to_num(np.linalg.norm(found - truth, axis=1), nan=np.inf)


def of_solver(solver: Any) -> bx.SID:
    return bx.SID(bx.Given(), solver)


def every_row(task: Task, solver: Any) -> np.ndarray:
    """The hypergradient by a solver that sees every row."""
    keys = jax.random.split(jax.random.key(0), 1)
    return np.asarray(values(canonicalize(of_solver(solver)), task.instance(None), task.w, keys))


def summary(method: str, setting: str, found: np.ndarray) -> dict[str, Any]:
    """Of the errors of all runs."""
    quartiles = [float(x) for x in np.quantile(found, (0.25, 0.75))]
    return {"method": method, "setting": setting, "error": float(found.mean()), "quartiles": quartiles}


def measured(name: str, quick: bool) -> list[dict[str, Any]]:
    """A row a method."""
    products, runs, screened = (200, 2, 1) if quick else (PRODUCTS, RUNS, SCREENED)
    task, table, rows = TASKS[name](quick), tables.Table(name, "setting", "error", "quartiles"), []
    truth, start = (every_row(task, solver) for solver in (bx.GMRES(tol=1e-10), bx.FixedPoint(0)))
    rows.append({"method": "start", "error": float(np.linalg.norm(start - truth))})
    table("start", "", rows[0]["error"], "")
    ends, task = [round(share * products) for share in (0.9, 1.0)], task.single()
    for method, choices in settings().items():
        tried = {at: of_solver(make(products)) for at, make in choices.items()}
        screening = {at: errors(task, truth, each, screened, 1).mean() for at, each in tried.items()}
        best = min(screening, key=screening.__getitem__)
        found = np.mean([errors(task, truth, of_solver(choices[best](n)), runs, 2) for n in ends], axis=0)
        row = summary(method, best, found)
        table(*row.values())
        rows.append(row | {"screening": screening})
    found = errors(task, truth, bx.StochasticReverse(bx.Given(), products), runs, 2)
    rows.append(summary("StocRB, sampled", "", found))
    table(*rows[-1].values())
    return rows


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=TASKS, help="tasks; with --quick, by default synthetic")


def main(options: argparse.Namespace) -> None:
    jax.config.update("jax_enable_x64", True)
    record, found = store.kept(options), {}
    for name in options.only or (("synthetic",) if options.quick else TASKS):
        record[name] = {"rows": measured(name, options.quick)}
        found[name] = {row["method"]: float(row["error"]) for row in record[name]["rows"]}
        store.keep(options, record)
    if options.quick:
        return
    for name, error in found.items():
        mixed, ends, goal = error["MixedFP"], min(error["StocFP"], error["StocRB"]), 5 if name == "synthetic" else 1
        both = min(error["MixedFP-KM, constant"], error["MixedFP-KM, decreasing"])
        tables.checks([
            (f"{name}: the better end over MixedFP", f"{ends / mixed:.1f}", f"above {goal}", ends > goal * mixed),
            (f"{name}: MixedFP over MixedFP-KM", f"{mixed / both:.2f}", "above 1", mixed > both),
        ])  # fmt: skip
