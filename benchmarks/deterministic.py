"""Are the reports of deterministic hypergradients right? Spectra, right-hand sides, conditions, solvers, stops.

A line for each pair of solvers and each precision, and what is to hold. Quadratics of 20 unknowns, whose hypergradient
is C^T H^-1 (H^-1 (C lam) - t), and logistic losses of 8 weights with a penalty each. The truth is NumPy's, in float64,
of the data as they are rounded.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bilevax as bx
from benchmarks import store, tables
from bilevax.core.config import replace_unchecked
from bilevax.hypergradients.report import apply_tolerance, attach_report

CONDITIONS = (2.0, 15.0, 148.0, 1e3, 1e4, 1e5, 1e6)
SPECTRA = ("uniform", "clustered", "outlier")
SIDES = ("random", "slow")
STOPS = (2, 4, 8, 16, 32, 64, 128)
LONG = (4, 16, 64, 256, 1024, 4096)
PAIRS = ("LBFGS+CG", "LBFGS+GMRES", "LBFGS+Neumann", "LBFGS+FixedPoint", "LBFGS+Exact", "FixedPoint+CG")
PAIRS += ("FixedPoint+Neumann", "FixedPoint+FixedPoint", "Given+CG", "Given+Exact", "JointSID")
D = 20


def quadratics(seed: int, draws: int, dtype: Any) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
    """The data of all cells, [cells * draws, ...], their labels, and the true hypergradients."""
    rng, data, labels = np.random.default_rng(seed), [], []
    for spectrum in SPECTRA:
        for side in SIDES:
            for condition in CONDITIONS:
                for _ in range(draws):
                    data.append(_quadratic(rng, spectrum, side, condition, dtype))
                    labels.append((SPECTRA.index(spectrum), SIDES.index(side), condition))
    stacked = {name: np.stack([x[name] for x in data]) for name in data[0]}
    H, C, lam, t = (stacked[name].astype(np.float64) for name in ("H", "C", "lam", "t"))
    w = np.linalg.solve(H, np.einsum("nij,nj->ni", C, lam)[..., None])
    v = np.linalg.solve(H, w - t[..., None])[..., 0]
    names = dict(zip(("spectrum", "side", "condition"), np.array(labels).T, strict=True))
    return stacked, names, np.einsum("nij,ni->nj", C, v)


def _quadratic(rng: Any, spectrum: str, side: str, condition: float, dtype: Any) -> dict[str, np.ndarray]:
    eigenvalues = {
        "uniform": np.geomspace(1.0, 1.0 / condition, D),
        "clustered": np.where(np.arange(D) < D // 2, 1.0, 1.0 / condition) * rng.uniform(0.9, 1.0, D),
        "outlier": np.append(rng.uniform(min(0.3, 1 / condition**0.5), 1.0, D - 1), 1.0 / condition),
    }[spectrum]
    Q = np.linalg.qr(rng.normal(size=(D, D)))[0]
    H = (Q * eigenvalues) @ Q.T
    slow = Q[:, -1] * D**0.5
    w, g = (x if side == "random" else slow * x[0] + 0.1 * x for x in rng.normal(size=(2, D)))
    C = rng.normal(size=(D, D)) / D**0.5
    lam = np.linalg.solve(C, H @ w)
    return {name: x.astype(dtype) for name, x in (("H", (H + H.T) / 2), ("C", C), ("lam", lam), ("t", w - g))}


def logistics(seed: int, draws: int, dtype: Any) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
    """Likewise for sum log(1 + exp(-y x.w)) / n + sum exp(lam) w^2 / 2, features of scales condition^-1/2 to 1."""
    rng, d, n, data, labels = np.random.default_rng(seed + 1000), 8, 60, [], []
    for condition in (2.0, 148.0, 1e4):
        for _ in range(6 * draws):
            X = rng.normal(size=(2 * n, d)) * np.geomspace(1.0, condition**-0.5, d)
            slopes = rng.normal(size=d) * np.geomspace(1.0, condition**0.5, d) / d**0.5
            y = np.sign(X @ slopes + rng.logistic(size=2 * n))
            lam = np.log(0.1 / condition) + rng.normal(size=d)
            data.append({name: x.astype(dtype) for name, x in (("X", X), ("y", y), ("lam", lam))})
            labels.append((3, 0, condition))
    stacked = {name: np.stack([x[name] for x in data]) for name in data[0]}
    X, y, lam = (stacked[name].astype(np.float64) for name in ("X", "y", "lam"))
    penalty, w = np.exp(lam), np.zeros_like(lam)

    def derivatives(w: np.ndarray, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = 1 / (1 + np.exp(y * np.einsum("nij,nj->ni", X, w)))
        H = np.einsum("nij,ni,nik->njk", X, p * (1 - p), X) / n
        return -np.einsum("nij,ni->nj", X, y * p) / n, H

    for _ in range(600):
        gradient, H = derivatives(w, X[:, :n], y[:, :n])
        H = H + penalty[:, :, None] * np.eye(d)
        step = np.linalg.solve(H, (gradient + penalty * w)[..., None])[..., 0]
        w = w - step * np.minimum(1.0, 2.0 / np.maximum(np.linalg.norm(step, axis=1, keepdims=True), 1e-300))
    assert np.max(np.abs(step)) < 1e-9
    v = np.linalg.solve(H, derivatives(w, X[:, n:], y[:, n:])[0][..., None])[..., 0]
    names = dict(zip(("spectrum", "side", "condition"), np.array(labels).T, strict=True))
    return stacked, names, -penalty * w * v


def problem_of(family: str, data: dict[str, Any]) -> tuple[Any, Any, Any, tuple[Any, Any]]:
    """(problem, w0, lam, sources) of one draw; its data are rows, or what the losses close over."""
    if family == "quadratic":
        H, C, t = data["H"], data["C"], data["t"]
        rows = bx.Arrays(np.zeros((2, 1), H.dtype))
        problem = bx.Problem(
            bx.GradientStep(lambda w, lam, b: 0.5 * w @ (H @ w) - w @ (C @ lam), 1.0),
            lambda w, lam, b: 0.5 * jnp.sum((w - t) ** 2),
        )
        return problem, jnp.zeros(D, H.dtype), data["lam"], (rows, rows)
    X, y, n = data["X"], data["y"], data["X"].shape[0] // 2
    rows = bx.Arrays(np.zeros((2, 1), X.dtype))

    def logistic(w: Any, X: Any, y: Any) -> Any:
        return jnp.mean(jax.nn.softplus(-y * (X @ w)))

    top = jnp.max(jnp.sum(X[:n] ** 2, 0)) / n
    problem = bx.Problem(
        bx.GradientStep(
            lambda w, lam, b: logistic(w, X[:n], y[:n]) + 0.5 * jnp.sum(jnp.exp(lam) * w**2),
            lambda lam: 1.0 / (top + jnp.exp(lam)),
        ),
        lambda w, lam, b: logistic(w, X[n:], y[n:]),
    )
    return problem, jnp.zeros_like(data["lam"]), data["lam"], (rows, rows)


def estimators(pair: str) -> tuple[Callable[..., Any], list[tuple[int, int]]]:
    """(estimator of two counts, the counts)."""
    if pair == "JointSID":
        return lambda i, j: bx.JointSID(i), [(n, n) for n in (64, 256, 1024, 4096)]
    inner, linear = pair.split("+")
    make = {
        "LBFGS": lambda n: bx.LBFGS(max_steps=n), "CG": lambda n: bx.CG(max_steps=n), "Given": lambda n: bx.Given(),
        "GMRES": lambda n: bx.GMRES(max_steps=n), "Neumann": lambda n: bx.Neumann(max_steps=n),
        "FixedPoint": lambda n: bx.FixedPoint(n), "Exact": lambda n: bx.Exact(),
    }  # fmt: skip
    counts = {name: (*LONG, 4096) if name in ("FixedPoint", "Neumann") else (*STOPS, 500) for name in make}
    first, second = counts[inner], counts[linear]
    last = min(len(first), len(second)) - 1
    stops = [(first[i], second[i]) for i in range(last)] + [(first[-1], second[-1])]
    stops += [(first[i], second[-1]) for i in range(1, last, 2)] + [(first[-1], second[i]) for i in range(1, last, 2)]
    return lambda i, j: bx.SID(make[inner](i), make[linear](j)), sorted(set(stops))


def measured(family: str, pair: str, seed: int, draws: int, dtype: Any) -> dict[str, np.ndarray]:
    """Of every run: labels, counts, true and reported relative error, code."""
    data, labels, truth = (quadratics if family == "quadratic" else logistics)(seed, draws, dtype)
    make, stops = estimators(pair)
    given = pair.startswith("Given")

    def one(data: dict[str, Any], truth: Any, i: Any, j: Any, off: Any) -> tuple[Any, ...]:
        problem, w0, lam, sources = problem_of(family, data)
        estimator, key = make(1, 1), jax.random.key(0)
        instance = bx.Instance(problem, lam, *sources)
        quick = with_counts(estimator, i, j).suspecting()
        state = quick.init(instance, w0 + off if given else w0, key=key)
        estimate, state = quick.extend(instance, state, key=key)
        estimate = attach_report(estimate, state.trace, instance, estimator, None, key=key)
        estimate = apply_tolerance(estimate, 0.1)
        wrong = jnp.linalg.norm(estimate.value - truth) / jnp.linalg.norm(truth)
        return wrong, estimate.error.upper, estimate.code

    def with_counts(estimator: Any, i: Any, j: Any) -> Any:
        if pair == "JointSID":
            return replace_unchecked(estimator, steps=i)
        changed = {}
        for name, number in (("inner", i), ("linear", j)):
            solver = getattr(estimator, name)
            field = next((f for f in ("steps", "max_steps") if hasattr(solver, f)), None)
            changed[name] = replace_unchecked(solver, **{field: number}) if field else solver
        return replace_unchecked(estimator, **changed)

    run = jax.jit(jax.vmap(one, in_axes=(0, 0, None, None, 0)))
    found: dict[str, list[np.ndarray]] = {name: [] for name in ("i", "j", "true", "said", "code", *labels)}
    off = _given(family, data, dtype) if given else np.zeros_like(data["lam"])
    for i, j in stops:
        wrong, said, code = run(data, truth, np.int32(i), np.int32(j), off)
        counts = {"i": np.full(len(truth), i), "j": np.full(len(truth), j)}
        for name, x in {**counts, "true": wrong, "said": said, "code": code}.items():
            found[name].append(np.asarray(x, np.float64))
        for name, x in labels.items():
            found[name].append(x)
    return {name: np.concatenate(x) for name, x in found.items()}


def _given(family: str, data: dict[str, Any], dtype: Any) -> np.ndarray:
    """Solutions with errors of 1e-1 to 1e-7 of their entries, as others would leave them: random."""
    rng = np.random.default_rng(5)
    size = 10.0 ** -rng.uniform(1, 7, len(data["lam"]))[:, None]
    if family == "quadratic":
        rhs = np.einsum("nij,nj->ni", data["C"].astype(float), data["lam"].astype(float))
        w = np.linalg.solve(data["H"].astype(float), rhs[..., None])[..., 0]
        return (w * (1 + size * rng.normal(size=w.shape))).astype(dtype)
    raise ValueError("solutions are given of quadratics only")


def scores(x: dict[str, np.ndarray], eps: float) -> dict[str, int]:
    """Numbers of runs that ended with code OK, TOLERANCE_NOT_MET or STALLED, and of what they said."""
    x = {name: value[x["code"] <= 3] for name, value in x.items()}
    small, ok, wrong = x["said"] < 0.1, x["code"] == 0, ~(x["true"] <= 0.1)
    good = (x["true"] < 0.01) & (x["condition"] * eps < 0.01)
    ratio = x["said"] / np.maximum(x["true"], 1e-300)
    parts = {
        "runs": np.ones_like(ok), "small": small, "small_wrong": small & wrong, "ok": ok, "ok_wrong": ok & wrong,
        "good": good, "good_ok": good & ok, "good_below": good & (ratio < 0.5), "good_above": good & (ratio > 20),
        "good_fits": good & (ratio >= 0.5) & (ratio <= 20),
    }  # fmt: skip
    return {name: int(np.sum(x)) for name, x in parts.items()}


SHARES = {
    "small": (("wrong", "small_wrong"),), "ok": (("OK wrong", "ok_wrong"),),
    "good": (("OK", "good_ok"), ("fits", "good_fits"), ("below", "good_below"), ("above", "good_above")),
}  # fmt: skip
"""Shares that are shown, of which number."""


def row(s: dict[str, int]) -> list[Any]:
    shares = {name: f"{s[part] / max(s[of], 1):.2%}" for of, parts in SHARES.items() for name, part in parts}
    return [s["runs"], s["small"], shares.pop("wrong"), shares.pop("OK wrong"), s["good"], *shares.values()]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--pairs", nargs="*", choices=PAIRS, default=PAIRS)
    parser.add_argument("--precision", nargs="*", type=int, default=[32, 64])
    parser.add_argument("--families", nargs="*", default=["quadratic", "logistic"])
    parser.add_argument("--keep", type=Path, help="a directory for the raw arrays")


def main(options: argparse.Namespace) -> None:
    if options.quick:
        options.draws, options.pairs, options.precision = 1, ("LBFGS+CG",), [64]
    found: dict[str, dict[str, int]] = {}
    table = tables.Table("", "runs", "small", "wrong", "OK wrong", "good", "OK", "fits", "below", "above", "s")
    for precision, family, pair in itertools.product(options.precision, options.families, options.pairs):
        if family == "logistic" and pair.startswith("Given"):
            continue
        jax.config.update("jax_enable_x64", precision == 64)
        jax.clear_caches()  # of the pair before
        clock, dtype = time.process_time(), np.dtype(f"float{precision}")
        x = measured(family, pair, options.seed, options.draws, dtype)
        if options.keep:
            np.savez(options.keep / f"{family}-{pair}-{precision}.npz", **x)
        name = f"{family} {pair} {dtype}"
        found[name] = scores(x, float(np.finfo(dtype).eps))
        table(name, *row(found[name]), f"{time.process_time() - clock:.0f}")
    total = {name: sum(s[name] for s in found.values()) for name in next(iter(found.values()))}
    table("all", *row(total), "")
    held = {
        "at most 1 % of the reports below .1 are wrong": total["small_wrong"] <= 0.01 * total["small"],
        "80 % of the good say OK": total["good_ok"] >= 0.8 * total["good"],
        "reported / true in [.5, 20] for 90 % of the good": total["good_fits"] >= 0.9 * total["good"],
    }
    table = tables.Table("claim", "holds")
    for claim, holds in held.items():
        table(claim, holds)
    store.keep(options, {"runs": found, "all": total, "held": held})
