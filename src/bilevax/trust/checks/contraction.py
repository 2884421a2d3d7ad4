"""Does the inner map contract at the inner solution, and how fast? Its linearisation, on every row."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevax.core.trees import PyTree
from bilevax.problems.problem import Problem, inner_image
from bilevax.solvers.contraction import CONFIRMING, growth
from bilevax.trust.findings import Figure, Finding
from bilevax.trust.subject import Subject, normal

KRYLOV = 150
"""Products with d1Phi from which its spectrum is judged."""

SLOW = 0.999
"""Spectral radius above which a thousand steps do not divide an error by three."""


def check_contraction(s: Subject) -> Iterator[Finding | Figure]:
    """NOT_CONTRACTIVE, STEP_TOO_LONG, NOT_CONVEX, FLAT, SLOW."""
    start = np.asarray(ravel_pytree(normal(s.stream(8), s.near))[0], np.float64)
    kind = ravel_pytree(s.near)[0].dtype

    def push(u: np.ndarray) -> np.ndarray:
        along = jnp.asarray(u.astype(kind))
        return np.asarray(_pushed(s.problem, s.near, s.lam, s.train.full, along), np.float64)

    values, dominant = krylov(push, start, min(s.size, KRYLOV))
    radius = float(np.abs(values).max())
    if radius > SLOW:  # a non-normal map can look so: does a direction go on growing?
        direction = jnp.asarray(dominant.astype(kind))
        radius = float(np.exp(_growth(s.problem, s.near, s.lam, s.train.full, direction)))
    yield Figure("spectral radius", radius)
    if s.problem.symmetric:
        yield from _of_a_step(float(values.real.min()), float(values.real.max()), radius)
    elif radius >= 1 - 1e-5:
        yield Finding(
            "NOT_CONTRACTIVE",
            "error",
            f"The inner map does not contract at the inner solution: its spectral radius is {radius:.4g}.",
            "Damp the map, w + eta (Phi(w) - w) with eta < 1, bound the norm of its Jacobian, or penalise more.",
        )
    if SLOW < radius < 1 - 1e-5:
        yield _slow(radius, 1 - float(values.real.min()) if s.problem.symmetric else 1.0)


def _of_a_step(low: float, high: float, radius: float) -> Iterator[Finding]:
    """What the spectrum of I - s H, which is real, says of the step s and the Hessian H."""
    if radius >= 1 - 1e-5 and low <= -1 + 1e-5:
        yield Finding(
            "STEP_TOO_LONG",
            "error",
            f"The inner step is {1 - low:.3g} / L, where L is the largest curvature; it must be less than 2 / L.",
            f"Divide step_size by {1 - low:.3g}, or leave it out: that of a mean over rows is measured.",
        )
    elif radius > 1 + 1e-5:
        yield Finding(
            "NOT_CONVEX",
            "error",
            f"The inner loss has negative curvature at the inner solution: its least is {1 - high:.3g} / step.",
            "Penalise more, or start nearer to a minimum; look for a wrong sign in the loss.",
        )
    elif radius >= 1 - 1e-5:
        yield Finding(
            "FLAT",
            "warning",
            f"The inner loss has a direction without curvature (at most {max(1 - radius, 0.0):.1g} / step): the inner "
            "solution is not unique.",
            "Put a small penalty on every weight, also on a bias that the loss does not determine.",
        )


def _slow(radius: float, step: float) -> Finding:
    steps = np.log(1000.0) / -np.log(radius)
    advice = "Penalise more, rescale the features, or use bx.LBFGS and bx.CG, which feel only the root of it."
    if step < 0.5:
        advice = f"The step is {step:.2g} / L: lengthen it to 1 / L, or leave it out and it is measured."
    measured = f"The inner map contracts by {radius:.6g} a step: {steps:,.0f} full steps divide an error by 1000."
    return Finding("SLOW", "warning", measured, advice)


def krylov(push: Callable[[np.ndarray], np.ndarray], start: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of a linear map on a Krylov space (Arnoldi), and a vector [d] for the largest in modulus.

    Cost: ``size`` products and O(d size^2) operations.
    """
    Q = np.zeros((size + 1, start.size))
    H = np.zeros((size + 1, size))
    Q[0] = start / np.linalg.norm(start)
    for j in range(size):
        z = push(Q[j])
        scale = np.linalg.norm(z)
        for _ in range(2):  # twice is enough
            h = Q[: j + 1] @ z
            z = z - h @ Q[: j + 1]
            H[: j + 1, j] += h
        H[j + 1, j] = np.linalg.norm(z)
        if H[j + 1, j] <= 1e-6 * scale or scale == 0:
            size = j + 1
            break
        Q[j + 1] = z / H[j + 1, j]
    values, vectors = np.linalg.eig(H[:size, :size])
    dominant = vectors[:, np.abs(values).argmax()].real @ Q[:size]
    return values, dominant


@jax.jit
def _pushed(problem: Problem, w: PyTree, lam: PyTree, full: PyTree, u: Array) -> Array:
    """d1Phi u, as vectors."""
    tangent = ravel_pytree(w)[1](u)
    return ravel_pytree(jax.jvp(lambda w: inner_image(problem, w, lam, full), (w,), (tangent,))[1])[0]


@jax.jit
def _growth(problem: Problem, w: PyTree, lam: PyTree, full: PyTree, direction: Array) -> Array:
    """Mean logarithm of the growth of a direction under d1Phi."""
    return growth(lambda u: _pushed(problem, w, lam, full, u), direction, CONFIRMING).rate
