"""Does NSID go on where SID, which differentiates the prox of a minibatch, stands still?

The elastic net of the paper (Grazzi, Pontil, Salzo 2024, arXiv:2403.11687): 50,000 rows of 100 features, of which 30
matter and are correlated, 10,000 rows to train on in minibatches of 100, 24,000 to validate on; penalties (.1, .01),
whose two hypergradients are asked for. All methods are given the w of 400 proximal gradient steps on every row, and
take k steps to v and J = k + 1 cross batches: NSID and SID with the paper's decreasing steps, beta / (gamma + j) with
half of the best beta and twice the best gamma, and with the constant beta / gamma; AID-FP takes k steps on every row.
Errors are over the norm of the truth, a direct solve in float64 on the support of the exact w, and over ten draws of
the data, two runs each: how far SID is off depends on how near to a kink the draw is. Epochs are those of (k + J)
minibatches, as in the paper; NSID reads its J twice.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import bilevax as bx
from benchmarks import store, tables
from benchmarks.cases import Case

FEATURES, INFORMATIVE, BATCH = 100, 30, 100
L1, L2 = 0.1, 0.01
STEPS, FROM = (100, 250, 500, 1000, 2000, 4000, 8000), 500
EPOCHS = (1, 2, 5, 10, 20, 40, 75, 160)
DRAWS, RUNS = 10, 2


def soft(u: Array, lam: Any, s: Array) -> Array:
    return jnp.sign(u) * jnp.maximum(jnp.abs(u) - s * lam["l1"], 0.0)


def half_square(w: Array, lam: Any, batch: Any) -> Array:
    x, y = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2) + 0.5 * lam["l2"] * jnp.sum(w**2)


def held_out(w: Array, lam: Any, batch: Any) -> Array:
    x, y = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2)


def rows(n: int, seed: int, noise: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Informative features of covariance U diag(s / s_1) U', U S V' a matrix of uniform numbers; the rest white."""
    rng = np.random.default_rng(seed)
    axes, values, _ = np.linalg.svd(rng.uniform(size=(INFORMATIVE, INFORMATIVE)))
    X = rng.normal(size=(n, FEATURES))
    X[:, :INFORMATIVE] = X[:, :INFORMATIVE] @ (axes * np.sqrt(values / values[0])) @ axes.T
    w = np.zeros(FEATURES)
    w[:INFORMATIVE] = np.abs(rng.normal(size=INFORMATIVE))
    return X, X @ w + noise * rng.normal(size=n)


class ElasticNet:
    """A draw of its data: steps, w, and the truth."""

    def __init__(self, n: int, seed: int) -> None:
        X, y = rows(n, seed)
        first, second = n // 5, n // 5 + 12 * n // 25
        self.train, self.val = (X[:first], y[:first]), (X[first:second], y[first:second])
        (X, y), (V, t) = self.train, self.val
        H, b = X.T @ X / len(y), X.T @ y / len(y)
        low, L = np.linalg.eigvalsh(H)[[0, -1]]
        self.step = 2 / (L + low + 2 * L2)
        self.q = max(abs(1 - self.step * (L + L2)), abs(1 - self.step * (low + L2)))
        self.w = self._solved(H, b, 400)
        exact = self._solved(H, b, 20_000)
        on = exact != 0
        # H_SS v = g_S; d/dl1 = -sign(w)'v, d/dl2 = -w'v
        v = np.linalg.solve(H[np.ix_(on, on)] + L2 * np.eye(on.sum()), (V.T @ (V @ exact - t) / len(t))[on])
        self.truth = {"l1": -np.sign(exact[on]) @ v, "l2": -exact[on] @ v}
        self.support, self.same = int(on.sum()), bool(np.array_equal(self.w != 0, on))

    def _solved(self, H: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
        w = np.zeros(FEATURES)
        for _ in range(steps):
            w = w - self.step * (H @ w - b + L2 * w)
            w = np.sign(w) * np.maximum(np.abs(w) - self.step * L1, 0.0)
        return w

    def case(self) -> Case:
        """The problem at its w."""
        problem = bx.Problem(bx.ProximalStep(half_square, soft, self.step), held_out)
        single = (self.w, {"l1": L1, "l2": L2}, self.train, self.val, self.truth)
        w, lam, train, val, truth = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), single)
        return Case(problem, None, w, lam, bx.Arrays(train, BATCH), bx.Arrays(val), truth)


def slope(steps: Any, errors: Any) -> float:
    """Of log error against log steps, from FROM steps on."""
    kept = np.asarray(steps) >= FROM
    return float(np.polyfit(np.log(np.asarray(steps)[kept]), np.log(np.asarray(errors)[kept]), 1)[0])


WAYS = {
    "NSID": (bx.NSID, False),
    "SID": (bx.SID, False),
    "NSID, constant steps": (bx.NSID, True),
    "SID, constant steps": (bx.SID, True),
}
"""Estimators, and whether their steps are constant."""


def curves(nets: list[ElasticNet], steps: Any, runs: int, names: Any = tuple(WAYS)) -> dict[str, np.ndarray]:
    """Squared relative errors, [draws, steps, runs], by method."""
    return {
        name: np.array([[one.errors(runs, lanes=runs)[0] for one in at(net, name, steps)] for net in nets])
        for name in names
    }


def at(net: ElasticNet, name: str, steps: Any) -> list[Case]:
    """A method after so many steps."""
    best, (method, constant) = 2 / (1 - net.q**2), WAYS[name]
    beta, gamma = 0.5 * best, 2 * best
    eta, case = bx.Constant(beta / gamma) if constant else bx.Harmonic(beta, gamma), net.case()
    return [case.by(method(bx.Given(), bx.FixedPoint(k, eta), cross_batches=k + 1)) for k in steps]


def checks(squares: dict[str, np.ndarray], steps: Any) -> list[tables.Check]:
    """What is to hold of NSID and SID with decreasing steps."""
    means = {name: np.mean(x, axis=(0, 2)) for name, x in squares.items()}
    ratio = float((means["SID"][-1] / means["NSID"][-1]) ** 0.5)
    slopes = {name: slope(steps, x) for name, x in means.items()}
    return [
        ("SID's error over NSID's at the last k", f"{ratio:.2f}", "at least 2", ratio >= 2),
        ("slope of NSID's square", f"{slopes['NSID']:.2f}", "-1.2 to -.8", -1.2 <= slopes["NSID"] <= -0.8),
        ("slope of SID's", f"{slopes['SID']:.2f}", "above -.5", slopes["SID"] > -0.5),
    ]


def main(options: argparse.Namespace) -> None:
    nets = [ElasticNet(2_000 if options.quick else 50_000, seed) for seed in range(2 if options.quick else DRAWS)]
    steps, n = (100, 500, 1000) if options.quick else STEPS, len(nets[0].train[1])
    found = curves(nets, steps, RUNS)
    table, record = tables.Table("root mean square error", *(f"k = {k:,}" for k in steps), "slope of the square"), []
    for name, squares in found.items():
        means = np.mean(squares, axis=(0, 2))
        record.append({"method": name, "steps": steps, "mean square": means, "slope": slope(steps, means)})
        record[-1]["last, of each draw"] = np.mean(squares[:, -1], axis=1) ** 0.5
        table(name, *(float(m) ** 0.5 for m in means), record[-1]["slope"])
    table("epochs, (k + J) b / n", *((2 * k + 1) * BATCH / n for k in steps), None)
    aid = [
        [net.case().by(bx.SID(bx.Given(), bx.FixedPoint(k)), None).errors(1, lanes=1)[0][0] for k in EPOCHS]
        for net in nets
    ]
    batch = np.mean(aid, axis=0) ** 0.5
    tables.Table("root mean square error", *(f"{k} epochs" for k in EPOCHS))("AID-FP", *map(float, batch))
    met = checks(found, steps)
    if not options.quick:
        tables.checks(met)
    about = {"q": [net.q for net in nets], "support": [net.support for net in nets]}
    store.keep(options, about | {"rows": record, "AID-FP": {"epochs": EPOCHS, "errors": batch}, "checks": met})
