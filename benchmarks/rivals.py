"""W1's deterministic hypergradient by other packages: seconds and error, against a reference in float64.

jaxopt (its L-BFGS under ``custom_root`` with conjugate gradients), optimistix (its L-BFGS, its ``ImplicitAdjoint`` with
lineax's conjugate gradients) and torchopt (scipy's L-BFGS under its ``custom_root`` with conjugate gradients). Each is
run over a ladder of tolerances; what counts is the fastest run whose relative error is at most 1e-3. Compilation is not
counted. A package that is not installed is named and left out. The reference is numpy and scipy in float64, by hand.
"""

import json
import logging
import os
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.sparse.linalg

import bilevax as bx
from benchmarks import bare_jax
from benchmarks import cases as w
from benchmarks.machine import PINNED, alternate

Row = dict[str, Any]
Solver = Callable[[float], Callable[[], Any]]

ACCURACY = 1e-3
LADDER = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
STEPS, DIRECTIONS = 500, 1000

PYTORCH = """torchopt left out: give --torch-python, the interpreter of an environment of its own, made by hand with
    python3.11 -m venv torch-env && torch-env/bin/pip install torch==2.13.0 torchopt numpy scipy"""


def reference(data: tuple[Any, Any], lam: np.ndarray, classes: int) -> np.ndarray:
    """The hypergradient in float64: scipy's L-BFGS, then Newton steps by conjugate gradients, and one more solve."""
    (X, y), (Xv, yv) = ((X.astype(np.float64), np.eye(classes)[y]) for X, y in data)
    strength, shape = np.exp(lam.astype(np.float64))[None], (classes, X.shape[1])

    def probabilities(W: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z = X @ W.T
        top = z.max(axis=1, keepdims=True)
        total = np.exp(z - top).sum(axis=1, keepdims=True)
        return np.exp(z - top) / total, (top + np.log(total))[:, 0]

    def value_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        W = flat.reshape(shape)
        p, log_total = probabilities(W, X)
        value = np.mean(log_total - np.sum(y * (X @ W.T), axis=1)) + 0.5 * np.sum(strength * W**2)
        return value, ((p - y).T @ X / len(X) + strength * W).ravel()

    def solve(W: np.ndarray, right: np.ndarray, tol: float) -> np.ndarray:
        p = probabilities(W, X)[0]

        def product(flat: np.ndarray) -> np.ndarray:
            V = flat.reshape(shape)
            u = X @ V.T
            r = p * (u - np.sum(p * u, axis=1, keepdims=True))
            return (r.T @ X / len(X) + strength * V).ravel()

        hessian = scipy.sparse.linalg.LinearOperator((W.size, W.size), matvec=product, dtype=np.float64)
        return scipy.sparse.linalg.cg(hessian, right.ravel(), rtol=tol, maxiter=DIRECTIONS)[0].reshape(shape)

    options = {"maxiter": STEPS, "maxfun": 2 * STEPS, "gtol": 1e-7, "ftol": 0.0}
    start = np.zeros(shape).ravel()
    W = scipy.optimize.minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x.reshape(
        shape
    )
    for _ in range(3):  # Newton steps: the gradient falls to rounding
        W = W - solve(W, value_and_gradient(W.ravel())[1], 1e-6)
    outer = (probabilities(W, Xv)[0] - yv).T @ Xv / len(Xv)
    return -np.sum(strength * W * solve(W, outer, 1e-10), axis=0)


def by_bilevax(case: w.Case) -> Solver:
    """bx.SID on every row."""

    def at(tol: float) -> Callable[[], Any]:
        sid = bx.SID(inner=bx.LBFGS(tol=tol, max_steps=STEPS), linear=bx.CG(tol=tol, max_steps=DIRECTIONS))
        exact = case._replace(estimator=sid)
        return lambda: exact(w.key_of(0)).value

    return at


def inner(W: Any, lam: Any, train: Any) -> Any:
    """The rivals' inner loss on every row."""
    X, y = train
    return bare_jax.loss(W, jnp.exp(lam), bare_jax.Batch(X, y, 1.0 / X.shape[0], 1.0))


def outer(W: Any, val: Any) -> Any:
    """Their outer loss."""
    return bare_jax.loss(W, jnp.zeros(W.shape[1], W.dtype), bare_jax.Batch(*val, 1.0 / val[0].shape[0], 1.0))


def by_gradient(minimiser: Callable[[float], Callable[..., Any]], case: w.Case) -> Solver:
    """The gradient in lam of the outer loss at what a differentiable minimiser (w0, lam, train) -> w finds."""

    def at(tol: float) -> Callable[[], Any]:
        minimise = minimiser(tol)
        program = jax.jit(jax.grad(lambda lam, w0, train, val: outer(minimise(w0, lam, train), val)))
        return lambda: program(case.lam, case.w0, case.train.data, case.val.data)

    return at


def by_jaxopt(case: w.Case) -> Solver:
    """L-BFGS of jaxopt under its custom_root."""
    import jaxopt

    def minimiser(tol: float) -> Callable[..., Any]:
        linear = partial(jaxopt.linear_solve.solve_cg, tol=tol, maxiter=DIRECTIONS)

        @jaxopt.implicit_diff.custom_root(jax.grad(inner), solve=linear)
        def minimise(w0: Any, lam: Any, train: Any) -> Any:
            solver = jaxopt.LBFGS(inner, maxiter=STEPS, tol=tol, implicit_diff=False, unroll=False, jit=True)
            return solver.run(w0, lam, train).params

        return minimise

    return by_gradient(minimiser, case)


LINEAX_SCALE = 200.0
"""lineax's conjugate gradients (0.1) give up below a curvature of 100 eps d, .09 at W1 in float32, where the least is
9e-4; so optimistix minimises a multiple of the loss, which has the same hypergradient. A larger one makes it stall."""


def by_optimistix(case: w.Case) -> Solver:
    """L-BFGS of optimistix under its implicit adjoint."""
    import lineax
    import optimistix

    def minimiser(tol: float) -> Callable[..., Any]:
        adjoint = optimistix.ImplicitAdjoint(lineax.CG(rtol=tol, atol=1e-3 * tol, max_steps=DIRECTIONS))
        solver = optimistix.LBFGS(rtol=tol, atol=tol)
        tags = frozenset({lineax.positive_semidefinite_tag})

        def minimise(w0: Any, lam: Any, train: Any) -> Any:
            return optimistix.minimise(
                lambda W, args: LINEAX_SCALE * inner(W, *args), solver, w0, (lam, train),
                max_steps=STEPS, adjoint=adjoint, throw=False, tags=tags,
            ).value  # fmt: skip

        return minimise

    return by_gradient(minimiser, case)


def compare(quick: bool, rounds: int) -> list[Row]:
    """All packages over the ladder, in alternation."""
    shape = w.W1_QUICK if quick else w.W1
    case = w.logistic(shape, "iid")
    truth = reference(w.split(shape), np.asarray(case.lam), shape.classes)
    ladder = LADDER[1:4:2] if quick else LADDER
    logging.getLogger("jax._src.callback").setLevel(logging.CRITICAL)  # an error is a row of the table
    runs: dict[tuple[str, float], Callable[[], Any]] = {}
    out: list[Row] = []
    for name, make in {"bilevax": by_bilevax, "jaxopt": by_jaxopt, "optimistix": by_optimistix}.items():
        try:
            solver = make(case)
        except ImportError as error:
            print(f"{name} left out: {error}; pip install {name}", flush=True)
            out.append({"what": f"rival {name}", "note": f"left out: {error}"})
            continue
        runs |= {(name, tol): solver(tol) for tol in ladder}
    errors: dict[tuple[str, float], float] = {}
    for (name, tol), run in list(runs.items()):
        try:
            errors[name, tol] = relative(run(), truth)
        except Exception as error:  # reported in the table, not raised
            lines = str(error).splitlines()
            text = next((line for line in reversed(lines) if "Error: " in line), lines[0])[:150]
            out.append({"what": f"rival {name}, tol {tol:g}", "note": f"failed: {text}"})
            del runs[name, tol]
    cases = {f"{name} {tol:g}": (lambda _, run=run: run()) for (name, tol), run in runs.items()}
    times = alternate(cases, 1 if quick else 3)
    found = [
        {"package": name, "tol": tol, "error": errors[name, tol], **clocks(times[f"{name} {tol:g}"])}
        for name, tol in runs
    ]
    return out + table(found + by_torchopt(shape, case, truth))


def relative(value: Any, truth: np.ndarray) -> float:
    """Relative error in the Euclidean norm."""
    return float(np.linalg.norm(np.asarray(value, np.float64) - truth) / np.linalg.norm(truth))


def clocks(times: Any) -> dict[str, float]:
    """Median milliseconds."""
    return {"cpu_ms": 1e3 * median(times.cpu), "wall_ms": 1e3 * median(times.wall)}


def table(found: list[dict[str, Any]]) -> list[Row]:
    """One row a run, then each package's fastest at the accuracy against bilevax's."""
    out: list[Row] = [
        {
            "what": f"W1 by {f['package']}, tol {f['tol']:g}",
            "cpu_ms": f["cpu_ms"], "wall_ms": f["wall_ms"], "error": f["error"],
            "note": f"relative error {f['error']:.1e}",
        }
        for f in found
    ]  # fmt: skip
    best: dict[str, float] = {}
    for f in found:
        if f["error"] <= ACCURACY:
            best[f["package"]] = min(f["cpu_ms"], best.get(f["package"], np.inf))
    for package in dict.fromkeys(f["package"] for f in found if f["package"] != "bilevax"):
        what = f"W1 to a relative error of {ACCURACY:g}, bilevax / {package}"
        if package in best and "bilevax" in best:
            out.append({"what": what, "value": best["bilevax"] / best[package], "note": ""})
        else:
            missing = ", ".join(p for p in (package, "bilevax") if p not in best)
            out.append({"what": what, "note": f"not reached by {missing}"})
    return out


def by_torchopt(shape: w.Shape, case: w.Case, truth: np.ndarray) -> list[dict[str, Any]]:
    """The same from an environment with torch, whose interpreter the command was given."""
    python = os.environ.get("BILEVAX_BENCHMARK_TORCH")
    if not python:
        print(PYTORCH, flush=True)
        return []
    with tempfile.TemporaryDirectory() as folder:
        (X, y), (Xv, yv) = w.split(shape)
        data = Path(folder) / "data.npz"
        np.savez(data, X=X, y=y, Xv=Xv, yv=yv, lam=np.asarray(case.lam), classes=shape.classes)
        script = Path(__file__).with_name("rival_torch.py")
        command = [python, str(script), str(data), json.dumps({"tolerances": LADDER, "steps": STEPS})]
        environment = {k: v for k, v in os.environ.items() if k != PINNED}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            print("torchopt left out:", done.stderr.strip().splitlines()[-1], flush=True)
            return []
        found = json.loads(done.stdout.splitlines()[-1])
    return [f | {"package": "torchopt", "error": relative(f.pop("value"), truth)} for f in found]
