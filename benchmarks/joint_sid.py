"""Is JointSID better than SID with the published steps at equal sample visits, and which method wins where?

``lc``: log-cosh rows in which every derivative is noisy (d = 10, m = 5, n = 2,000, b = 10), 200 runs a cell; SID with
the steps of the paper's theorems, with those of the authors' code, the best of 200 settings (screened with 10 runs, the
best ten again with 50, the winner with 200 fresh ones), and with an exact last pass; beside the errors V / N, below
which no regular estimator from N independent minibatches can be, and what remains of it where the cross product is
exact. ``fashion``, ``newsgroups``: multinomial logistic regression, one penalty per feature, with CPU
seconds per million visits. ``map``: logistic regression of n rows, condition and budget; the method with the least
error. Errors are mean squares over the squared norm of the truth.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import bilevax as bx
from benchmarks import cases, datasets, machine, store, tables
from benchmarks.cases import Case
from bilevax.core.trees import norm
from bilevax.testing.closed_forms import Curvature
from bilevax.testing.problems import NamedProblem
from bilevax.theory import influence, published_steps


def published(steps: int, q: float) -> bx.FixedPoint:
    """With the decreasing steps of the paper."""
    best = published_steps(q)
    return bx.FixedPoint(steps, bx.Harmonic(best.beta, best.gamma))


def sid(case: Case, batch: int, q: float, visits: float) -> Case:
    """Equal t and k, and J = 1, with the published decreasing steps."""
    solver = published(max(1, int((visits - case.val.rows) / batch / 2)), q)
    return case.by(bx.SID(solver, solver, cross_batches=1), batch)


def joint(case: Case, batch: int, val_batch: int, visits: float, *options: Any, **more: Any) -> Case:
    """As many steps as fit."""
    steps = int(0.93 * (visits - case.val.rows) / (batch + val_batch))  # the report and the last pass read rows too
    return case.by(bx.JointSID(max(steps, 1), *options, **more), batch, val_batch)


def show(table: tables.Table, row: dict[str, Any], names: tuple[str, ...]) -> None:
    """With two digits."""
    table(*(f"{x:.2g}" if isinstance(x, float) else x for x in map(row.get, names)))


# Log-cosh rows


def log_cosh(a: Array) -> Array:
    return a + jax.nn.softplus(-2.0 * a) - np.log(2.0)


def lc_inner(w: Array, lam: Array, batch: Any) -> Array:
    return jnp.mean(log_cosh(batch["x"] @ w - batch["B"] @ lam + batch["o"]) + 0.5 * batch["tau"] * jnp.sum(w**2))


def lc_outer(w: Array, lam: Array, batch: Any) -> Array:
    return jnp.mean(log_cosh(batch["z"] @ w + batch["c"] @ lam - batch["y"]))


class LogCosh:
    """Rows with anisotropic features; ``tau`` sets the condition."""

    def __init__(self, seed: int, tau: float, *, n: int = 2000, n_val: int = 200, d: int = 10, m: int = 5) -> None:
        rng = np.random.default_rng(seed)
        scales = np.geomspace(1.0, 0.08, d)
        x, B = rng.normal(size=(n, d)) * scales, rng.normal(size=(n, m)) + 0.3
        self.train = {"x": x, "B": B, "o": 0.5 * rng.normal(size=n) + 0.3, "tau": np.full(n, tau)}
        z, c = rng.normal(size=(n_val, d)) * scales, 0.5 * rng.normal(size=(n_val, m))
        self.val = {"z": z, "c": c, "y": z @ rng.normal(size=d) + rng.normal(size=n_val)}
        self.lam, problem = jnp.asarray(0.5 * rng.normal(size=m)), bx.Problem(bx.GradientStep(lc_inner, 1.0), lc_outer)
        p = NamedProblem("lc", problem, self.train, self.val, np.zeros(d), self.lam, 10, Curvature(1.0, tau))
        self.w, self.truth = (jnp.asarray(x) for x in (p.solution().w, p.solution().hypergradient))
        low, L = np.linalg.eigvalsh(p.system(p.solution().w))[[0, -1]]
        self.step, self.condition, self.q = float(2 / (L + low)), L / low, (L - low) / (L + low)

    def at(self, w: Array) -> Array:
        """grad_2 E - C'H^-1 grad_1 E, by direct solves."""
        H = jax.hessian(lc_inner)(w, self.lam, self.train)
        C = jax.jacfwd(jax.grad(lc_inner), 1)(w, self.lam, self.train)
        g, direct = jax.grad(lc_outer, (0, 1))(w, self.lam, self.val)
        return direct - C.T @ jnp.linalg.solve(H, g)

    def variances(self, batch: int) -> tuple[float, float]:
        """V, and what remains of it where the cross product is exact, over the squared truth."""
        rows = jax.tree.map(lambda a: a[:, None], self.train)
        C = jax.vmap(jax.jacfwd(jax.grad(lc_inner), 1), (None, None, 0))(self.w, self.lam, rows)
        H = jax.vmap(jax.hessian(lc_inner), (None, None, 0))(self.w, self.lam, rows)
        g = jax.vmap(jax.grad(lc_inner), (None, None, 0))(self.w, self.lam, rows)
        outer = jax.grad(lc_outer)(self.w, self.lam, self.val)
        found = influence(*map(np.asarray, (C, H, g)), outer_gradient=outer, G=np.asarray(jax.jacfwd(self.at)(self.w)))
        size = float(norm(self.at(self.w))) ** 2
        return found.variance(batch) / size, found.variance_with_exact_pass(batch) / size

    def cautious(self, batch: int) -> bx.Harmonic:
        """The steps of the theorems: beta = 2 / (1 - q^2), gamma = beta (1 + 2 s1' / (1 - q)^2)."""
        rows = jax.tree.map(lambda a: a[:, None], self.train)
        off = jax.vmap(jax.hessian(lc_inner), (None, None, 0))(self.w, self.lam, rows)
        off = off - jnp.mean(off, axis=0)
        spread = self.step**2 * np.linalg.norm(jnp.mean(off @ off, axis=0), 2) / batch
        beta = 2 / (1 - self.q**2)
        return bx.Harmonic(float(beta), float(beta * (1 + 2 * spread / (1 - self.q) ** 2)))

    def case(self) -> Case:
        """With its truth."""
        problem = bx.Problem(bx.GradientStep(lc_inner, self.step), lc_outer)
        sources = bx.Arrays(self.train), bx.Arrays(self.val)
        return Case(problem, None, jnp.zeros_like(self.w), self.lam, *sources, self.truth)


SPLITS = (1, 1, 1), (2, 2, 1), (5, 4, 1), (4, 5, 1), (1, 2, 2)
BETAS, GAMMAS = (0.25, 0.5, 1.0, 2.0), (1.0, 3.0, 10.0, 30.0, 100.0)


def tuned(case: Case, q: float, number: int, runs: int) -> float:
    """The best of 200 settings of SID, measured with fresh seeds."""
    best, every = published_steps(q), []
    for split, beta, gamma, constant in itertools.product(SPLITS, BETAS, GAMMAS, (False, True)):
        t, k, J = (number * share // sum(split) for share in split)
        beta, gamma = best.beta * beta, best.gamma * gamma
        steps = bx.Harmonic(1e9 * beta / gamma, 1e9) if constant else bx.Harmonic(beta, gamma)
        every.append(case.by(bx.SID(bx.FixedPoint(t, steps), bx.FixedPoint(k, steps), cross_batches=J)))
    for seed, screened, kept in ((1, 10, 10), (2, 50, 1)):
        scores = [np.mean(each.errors(screened, seed, screened)[0]) for each in every]
        every = [every[i] for i in np.argsort(scores)[:kept]]
    return float(np.mean(every[0].errors(runs, 3, runs)[0]))


def lc(quick: bool, runs: int = 200, batch: int = 10) -> list[dict[str, Any]]:
    """The table of the theory: N minibatches of train; val is small and whole, and not counted."""
    rows, table = [], None
    cells = (0, 0.01, 900), (1, 0.001, 900), (1, 0.001, 3600), (2, 0.025, 2000)
    for seed, tau, number in ((2, 0.025, 300),) if quick else cells:
        p = LogCosh(seed, tau)
        case, (V, V_exact) = p.case().by(None, batch), p.variances(batch)
        t, pass_ = number // 3, case.train.rows // batch
        solver = published(t, p.q)
        row: dict[str, Any] = {"condition": p.condition, "N": number, "V/N": V / number, "exact V/N": V_exact / number}
        cautious, half = bx.FixedPoint(t, p.cautious(batch)), published((number - pass_) // 2, p.q)
        ways = {
            "SID, theorem's steps": bx.SID(cautious, cautious, cross_batches=t),
            "SID, published steps": bx.SID(solver, solver, cross_batches=t),
            "SID, exact pass": bx.SID(half, half),
            "JointSID": bx.JointSID(number, last_pass="never"),
            "JointSID, exact pass": bx.JointSID(number - pass_, last_pass="always"),
        }
        for name, estimator in ways.items():
            row[name] = float(np.mean(case.by(estimator).errors(runs, lanes=runs)[0]))
        if not quick:
            row["SID, tuned"] = tuned(case, p.q, number, runs)
        est = case.by(ways["JointSID"])(jax.random.key(0))
        row["relaxations"] = -float(jnp.log(est.error.contraction)) * number
        row["N MSE / V"] = row["JointSID"] / row["V/N"]
        rows.append(row)
        shown = "condition", "N", "relaxations", "V/N", *ways, "SID, tuned", "N MSE / V"
        table = table or tables.Table(*shown)
        show(table, row, shown)
    return rows


# Real data


def real(name: str, quick: bool) -> list[dict[str, Any]]:
    """SID, with t = k and J = 1 (the penalties are not sampled), and JointSID, with and without a snapshot."""
    from benchmarks.paper.errors import truth

    data: Any = {"fashion": datasets.fashion, "newsgroups": datasets.newsgroups}[name]()
    data, runs, rows, table = data.few(400) if quick else data, 1 if quick else 3, [], None
    L = cases.curvature(data, cases.halves(data, 0)[0])
    exact = cases.penalised(data._replace(X=data.X.astype(np.float64))).by(None, None)
    for strength in (1e-2,) if quick else (1e-2, 1e-3, 1e-4):
        steps = cases.Steps.of(L, strength)
        true = jnp.asarray(truth(data, exact[4:6], strength)[0], jnp.float32)
        case = cases.penalised(data, strength=strength, step=steps.alpha)._replace(truth=true)
        for passes in (2,) if quick else (2, 10):
            visits, row = passes * case.train.rows, {"data": name, "strength": strength, "passes": passes}
            ways = {
                "SID, published steps": sid(case, data.batch, steps.q, visits),
                "JointSID": joint(case, data.batch, 30, visits),
                "JointSID, no snapshot": joint(case, data.batch, 30, visits, snapshot=False),
            }
            for way, each in ways.items():
                one_after_another(each, 1)
                clock = time.process_time()
                errors, spent = one_after_another(each, runs)
                seconds = (time.process_time() - clock) / runs
                row[way] = float(np.mean(errors))
                row[f"{way}: visits"], row[f"{way}: seconds a million visits"] = spent / visits, 1e6 * seconds / spent
            rows.append(row)
            shown = "data", "strength", "passes", *(c for w in ways for c in (w, f"{w}: seconds a million visits"))
            table = table or tables.Table(*shown)
            show(table, row, shown)
    return rows


def one_after_another(case: Case, runs: int) -> tuple[list[float], int]:
    """Errors of runs that are not mapped over: of time, and for what would need much memory."""
    errors = []
    for seed in range(runs):
        est = case(jax.random.key(seed), tol=np.inf)
        errors.append(case.relative(est.value))
    return errors, est.cost.samples


# Which method wins


def logistic(n: int, condition: float, d: int = 20) -> tuple[Case, float, float]:
    """Rows whose features' variances fall as their number, and a penalty per feature that sets the condition.

    With q, and the step of JointSID.
    """
    rng = np.random.default_rng([n, int(condition)])
    X = rng.normal(size=(n + n // 4, d)) * np.geomspace(1.0, condition**-0.5, d)
    y = (rng.uniform(size=len(X)) < 1 / (1 + np.exp(-X @ (3 * rng.normal(size=d))))).astype(float)
    second = X[:n].T @ X[:n] / n
    fourth = X[:n].T @ (np.sum(X[:n] ** 2, axis=1)[:, None] * X[:n]) / n
    L = float(np.linalg.eigvalsh(second)[-1]) / 4
    strength = L / condition
    problem = bx.Problem(bx.GradientStep(bx.BinaryLogistic("feature"), 2 / (L + 2 * strength)), bx.BinaryLogistic())
    points, data = (np.zeros((1, d)), np.full(d, np.log(strength))), ((X[:n], y[:n]), (X[n:], y[n:]))
    p = NamedProblem("map", problem, *data, *points, BATCH, Curvature(L + strength, strength))
    case = Case(problem, None, *map(jnp.asarray, points), *map(bx.Arrays, data), p.solution().hypergradient)
    R2 = float(np.max(np.linalg.eigvals(np.linalg.solve(second, fourth)).real)) / 4
    step = (L / 2 + strength) / (L + strength + R2 / BATCH)  # 1 / (L + R^2 / b), in steps of the map
    return case, L / (L + 2 * strength), step


BATCH = 16


def which(quick: bool) -> list[dict[str, Any]]:
    """Errors of the four methods at equal visits; the least."""
    rows, table = [], None
    sizes = ((1000,), (10,), (3,)) if quick else ((1_000, 10_000), (10, 100, 1000), (3, 6, 12, 24))
    for n, condition in itertools.product(*sizes[:2]):
        case, q, step = logistic(n, condition)
        for passes in sizes[2]:
            visits = passes * n
            i = max(1, (passes - 2) // 2)
            ways = {
                "SID": sid(case, BATCH, q, visits),
                "JointSID": joint(case, BATCH, 4, visits, step),
                "AID-FP": case.by(bx.SID(bx.FixedPoint(i), bx.FixedPoint(i))),
                "AID-CG": case.by(bx.SID(bx.LBFGS(1e-15, max_steps=i), bx.CG(1e-15, max_steps=i))),
            }
            row: dict[str, Any] = {"n": n, "condition": condition, "passes": passes}
            for name, each in ways.items():
                number = 1 if "AID" in name else max(3, min(20, 2_000_000 // visits))
                row[name] = float(np.mean(each.errors(number, lanes=number)[0]))
            row["least"] = min(ways, key=lambda name: row[name])
            rows.append(row)
            shown = "n", "condition", "passes", *ways, "least"
            table = table or tables.Table(*shown)
            show(table, row, shown)
    return rows


PARTS: dict[str, Callable[[bool], list[dict[str, Any]]]] = {
    "lc": lc, "fashion": partial(real, "fashion"), "newsgroups": partial(real, "newsgroups"), "map": which,
}  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts; with --quick, by default lc and map")


def main(options: argparse.Namespace) -> None:
    jax.config.update("jax_enable_x64", True)  # the references need it; the real data stay float32
    record = store.kept(options)
    for name in options.only or (("lc", "map") if options.quick else PARTS):
        record[name] = {"setting": machine.setting(), "rows": PARTS[name](options.quick)}
        store.keep(options, record)
