"""JointSID beside SID with the published steps at equal sample visits, and which method wins where.

    python benchmarks/joint_sid.py [--only lc,fashion,newsgroups,map]

``lc``: log-cosh rows in which every derivative is noisy (d = 10, m = 5, n = 2,000, b = 10), 200 runs a cell; SID with
the steps of the paper's theorems, with those of the authors' code, the best of 200 settings (screened with 10 runs, the
best ten again with 50, the winner with 200 fresh ones), and with an exact last pass; beside the errors V / N, below
which no regular estimator from N independent minibatches can be, and what remains of it where the cross product is
exact. ``fashion``, ``newsgroups``: multinomial logistic regression, one penalty per feature, with CPU
seconds per million visits. ``map``: logistic regression of n rows, condition and budget; the method with the least
error. Errors are mean squares over the squared norm of the truth. Prints markdown tables and writes
benchmarks/results/joint_sid.json.
"""

import argparse
import itertools
import json
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import machine
import numpy as np
from jax import Array

import bilevax as bx
from bilevax.core.config import canonicalize
from bilevax.core.trees import norm, sub
from bilevax.theory import influence, published_steps

RESULTS = Path(__file__).parent / "results" / "joint_sid.json"


def published(steps: int, q: float) -> bx.FixedPoint:
    """With the decreasing steps of the paper."""
    best = published_steps(q)
    return bx.FixedPoint(steps, bx.Harmonic(best.beta, best.gamma))


class Case(NamedTuple):
    """A problem with its truth; ``batch`` rows of train and ``val_batch`` of val make a minibatch."""

    problem: Any
    w0: Any
    lam: Any
    train: Any
    val: Any
    truth: Array
    batch: int
    val_batch: int
    q: float
    source: Any = bx.Arrays
    step: Any = None  # of JointSID; None: measured

    @property
    def is_full_batch(self) -> tuple[Any, Any]:
        """(train, val), every row at once."""
        return self.source(self.train), self.source(self.val)

    def errors(self, estimator: Any, sources: tuple[Any, Any], runs: int, seed: int = 0) -> tuple[np.ndarray, int]:
        """Square errors over the squared truth, [runs], and sample visits."""
        args = self.problem, canonicalize(estimator), self.w0, self.lam, sources, self.truth, jax.random.key(seed)
        found = _errors(*args, runs=runs)
        return np.asarray(found[0], np.float64), int(found[1][0])

    def sid(self, visits: float) -> tuple[Any, tuple[Any, Any]]:
        """Equal t and k, and J = 1, with the published decreasing steps."""
        train, val = self.source(self.train, self.batch), self.is_full_batch[1]
        t = max(1, int((visits - val.rows) / self.batch / 2))
        solver = published(t, self.q)
        return bx.SID(solver, solver, cross_batches=1), (train, val)

    def joint(self, visits: float, **options: Any) -> tuple[Any, tuple[Any, Any]]:
        """As many steps as fit."""
        sources = self.source(self.train, self.batch), self.source(self.val, self.val_batch)
        one = self.batch + (self.val_batch or sources[1].rows)
        steps = int(0.93 * (visits - sources[1].rows) / one)  # the report and the last pass read rows too
        return bx.JointSID(max(steps, 1), self.step, **options), sources


@partial(jax.jit, static_argnames="runs")
def _errors(problem: Any, estimator: Any, w0: Any, lam: Any, sources: Any, truth: Any, key: Any, *, runs: int) -> Any:
    def one(key: Array) -> tuple[Array, Array]:
        est = estimator.estimate(bx.Instance(problem, lam, *sources), w0, key=key)
        return (norm(sub(est.value, truth)) / norm(truth)) ** 2, jnp.asarray(est.cost.samples, float)

    return jax.vmap(one)(jax.random.split(key, runs))


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
        self.lam = jnp.asarray(0.5 * rng.normal(size=m))
        w = jnp.zeros(d)
        for damping in (1.0,) * 100 + (0.0,) * 20:  # Newton's method
            slope = jax.grad(lc_inner)(w, self.lam, self.train)
            w = w - jnp.linalg.solve(jax.hessian(lc_inner)(w, self.lam, self.train) + damping * jnp.eye(d), slope)
        self.w, (tau_, L) = w, np.linalg.eigvalsh(jax.hessian(lc_inner)(w, self.lam, self.train))[[0, -1]]
        self.step, self.condition, self.q = 2 / (L + tau_), L / tau_, (L - tau_) / (L + tau_)

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

    def case(self, batch: int) -> Case:
        """With its truth."""
        problem = canonicalize(bx.Problem(bx.GradientStep(lc_inner, float(self.step)), lc_outer))
        truth, w0 = self.at(self.w), jnp.zeros_like(self.w)
        return Case(problem, w0, self.lam, self.train, self.val, truth, batch, None, self.q)


SPLITS = (1, 1, 1), (2, 2, 1), (5, 4, 1), (4, 5, 1), (1, 2, 2)
BETAS, GAMMAS = (0.25, 0.5, 1.0, 2.0), (1.0, 3.0, 10.0, 30.0, 100.0)


def tuned(case: Case, sources: tuple[Any, Any], number: int, runs: int) -> float:
    """The best of 200 settings of SID, measured with fresh seeds."""
    best, every = published_steps(case.q), []
    for split, beta, gamma, constant in itertools.product(SPLITS, BETAS, GAMMAS, (False, True)):
        t, k, J = (number * share // sum(split) for share in split)
        beta, gamma = best.beta * beta, best.gamma * gamma
        steps = bx.Harmonic(1e9 * beta / gamma, 1e9) if constant else bx.Harmonic(beta, gamma)
        every.append(bx.SID(bx.FixedPoint(t, steps), bx.FixedPoint(k, steps), cross_batches=J))
    for seed, screened, kept in ((1, 10, 10), (2, 50, 1)):
        scores = [np.mean(case.errors(sid, sources, screened, seed)[0]) for sid in every]
        every = [every[i] for i in np.argsort(np.nan_to_num(scores, nan=np.inf))[:kept]]
    return float(np.mean(case.errors(every[0], sources, runs, 3)[0]))


def lc(runs: int = 200, batch: int = 10) -> list[dict[str, Any]]:
    """The table of the theory: N minibatches of train; val is small and whole, and not counted."""
    rows = []
    for seed, tau, number in ((0, 0.01, 900), (1, 0.001, 900), (1, 0.001, 3600), (2, 0.025, 2000)):
        p = LogCosh(seed, tau)
        case, (V, V_exact) = p.case(batch), p.variances(batch)
        train = bx.Arrays(p.train, batch)
        sources, t = (train, bx.Arrays(p.val)), number // 3
        solver = published(t, p.q)
        row: dict[str, Any] = {"condition": p.condition, "N": number, "V/N": V / number, "exact V/N": V_exact / number}
        pass_ = train.rows // batch
        cautious, half = bx.FixedPoint(t, p.cautious(batch)), published((number - pass_) // 2, p.q)
        ways = {
            "SID, theorem's steps": bx.SID(cautious, cautious, cross_batches=t),
            "SID, published steps": bx.SID(solver, solver, cross_batches=t),
            "SID, exact pass": bx.SID(half, half),
            "JointSID": bx.JointSID(number, last_pass="never"),
            "JointSID, exact pass": bx.JointSID(number - pass_, last_pass="always"),
        }
        for name, estimator in ways.items():
            row[name] = float(np.mean(case.errors(estimator, sources, runs)[0]))
        row["SID, tuned"] = tuned(case, sources, number, runs)
        est = bx.hypergradient(case.problem, ways["JointSID"], case.w0, case.lam, *sources, key=jax.random.key(0))
        row["relaxations"] = -float(jnp.log(est.error.contraction)) * number
        row["N MSE / V"] = row["JointSID"] / row["V/N"]
        rows.append(row)
        print_row(row, ("condition", "N", "relaxations", "V/N", *ways, "SID, tuned", "N MSE / V"))
    return rows


# Real data


def real(name: str, runs: int = 3) -> list[dict[str, Any]]:
    """SID, with t = k and J = 1 (the penalties are not sampled), and JointSID, with and without a snapshot."""
    from benchmarks.paper import problems
    from benchmarks.paper.errors import truth as solved

    data, rows = problems.LOADERS[name](), []
    halves = problems.halves(data, 0)
    L = problems.curvature(data, halves[0])
    (X, y), kind = (data.X, data.y), type(problems.source(data))
    train, val = ((X[half], y[half]) for half in halves)
    exact = tuple(kind((part[0].astype(np.float64), part[1])) for part in (train, val))
    for strength in (1e-2, 1e-3, 1e-4):
        steps = problems.Steps.of(L, strength)
        problem = canonicalize(bx.Problem(bx.GradientStep(data.loss("feature"), steps.alpha), data.loss()))
        truth = jnp.asarray(solved(data, exact, strength)[0], jnp.float32)
        w0 = jnp.zeros((data.outputs, X.shape[1]), jnp.float32)
        lam = jnp.full(X.shape[1], np.log(strength), jnp.float32)
        case = Case(problem, w0, lam, train, val, truth, 90, 30, steps.q, kind)
        for passes in (2, 10):
            visits, row = passes * len(halves[0]), {"data": name, "strength": strength, "passes": passes}
            ways = {
                "SID, published steps": case.sid(visits),
                "JointSID": case.joint(visits),
                "JointSID, no snapshot": case.joint(visits, snapshot=False),
            }
            for way, (estimator, sources) in ways.items():
                call = partial(one_after_another, case, estimator, sources)
                call(1)
                clock = time.process_time()
                errors, spent = call(runs)
                seconds = (time.process_time() - clock) / runs
                row[way] = float(np.mean(errors))
                row[f"{way}: visits"], row[f"{way}: seconds a million visits"] = spent / visits, 1e6 * seconds / spent
            rows.append(row)
            print_row(
                row, ("data", "strength", "passes", *(c for w in ways for c in (w, f"{w}: seconds a million visits")))
            )
    return rows


def one_after_another(case: Case, estimator: Any, sources: Any, runs: int) -> tuple[list[float], int]:
    """Errors of runs that are not mapped over: of time, and for what would need much memory."""
    errors = []
    for seed in range(runs):
        args = case.w0, case.lam, *sources
        est = bx.hypergradient(case.problem, estimator, *args, key=jax.random.key(seed), tol=np.inf)
        errors.append(float(norm(sub(est.value, case.truth)) / norm(case.truth)) ** 2)
    return errors, est.cost.samples


# Which method wins


def logistic(n: int, condition: float, d: int = 20) -> Case:
    """Rows whose features' variances fall as their number, and a penalty per feature that sets the condition."""
    rng = np.random.default_rng([n, int(condition)])
    X = rng.normal(size=(n + n // 4, d)) * np.geomspace(1.0, condition**-0.5, d)
    y = (rng.uniform(size=len(X)) < 1 / (1 + np.exp(-X @ (3 * rng.normal(size=d))))).astype(float)
    L = float(np.linalg.eigvalsh(X[:n].T @ X[:n] / n)[-1]) / 4
    strength = L / condition
    loss = bx.BinaryLogistic("feature")
    problem = canonicalize(bx.Problem(bx.GradientStep(loss, 2 / (L + 2 * strength)), bx.BinaryLogistic()))
    w0, lam = jnp.zeros((1, d)), jnp.full(d, np.log(strength))
    train, val = (X[:n], y[:n]), (X[n:], y[n:])
    exact = bx.SID(bx.LBFGS(1e-13, max_steps=1000), bx.CG(1e-13))
    args = w0, lam, bx.Arrays(train), bx.Arrays(val)
    truth = bx.hypergradient(problem, exact, *args, key=jax.random.key(0)).value
    second = X[:n].T @ X[:n] / n
    fourth = X[:n].T @ (np.sum(X[:n] ** 2, axis=1)[:, None] * X[:n]) / n
    batch, R2 = 16, float(np.max(np.linalg.eigvals(np.linalg.solve(second, fourth)).real)) / 4
    step = (L / 2 + strength) / (L + strength + R2 / batch)  # 1 / (L + R^2 / b), in steps of the map
    return Case(problem, w0, lam, train, val, truth, batch, 4, L / (L + 2 * strength), step=step)


def which(runs: int = 20) -> list[dict[str, Any]]:
    """Errors of the four methods at equal visits; the least."""
    rows = []
    for n in (1_000, 10_000):
        for condition in (10, 100, 1000):
            case = logistic(n, condition)
            for passes in (3, 6, 12, 24):
                visits = passes * n
                i = max(1, (passes - 2) // 2)
                ways = {
                    "SID": case.sid(visits),
                    "JointSID": case.joint(visits),
                    "AID-FP": (bx.SID(bx.FixedPoint(i), bx.FixedPoint(i)), case.is_full_batch),
                    "AID-CG": (bx.SID(bx.LBFGS(1e-15, max_steps=i), bx.CG(1e-15, max_steps=i)), case.is_full_batch),
                }
                row: dict[str, Any] = {"n": n, "condition": condition, "passes": passes}
                for name, (estimator, sources) in ways.items():
                    number = 1 if "AID" in name else max(3, min(runs, 2_000_000 // visits))
                    row[name] = float(np.mean(case.errors(estimator, sources, number)[0]))
                row["least"] = min(ways, key=lambda name: row[name])
                rows.append(row)
                print_row(row, ("n", "condition", "passes", *ways, "least"))
    return rows


def print_row(row: dict[str, Any], names: tuple[str, ...]) -> None:
    cells = (f"{x:.2g}" if isinstance(x, float) else f"{x:,}" if isinstance(x, int) else x for x in map(row.get, names))
    if print_row.__dict__.get("head") != names:
        print("\n| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
        print_row.__dict__["head"] = names
    print("| " + " | ".join(cells) + " |", flush=True)


PARTS = {"lc": lc, "fashion": partial(real, "fashion"), "newsgroups": partial(real, "newsgroups"), "map": which}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="some of: %(default)s")
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in parser.parse_args().only.split(","):
        jax.config.update("jax_enable_x64", True)  # the references need it; the real data stay float32
        record[name] = {"setting": machine.setting(), "rows": PARTS[name]()}
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
