"""Does lam move the inner solution, and do the derivatives agree with central differences?"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.trees import PyTree, axpy, norm, vdot
from bilevax.problems.problem import Problem, cross_product, inner_image, outer_gradients
from bilevax.trust.checks.program import unused
from bilevax.trust.findings import Finding
from bilevax.trust.subject import Subject, epsilon, leaf_names, normal

Point = tuple[PyTree, PyTree]

NEGLIGIBLE = 1e-4
"""Share of d2Phi away from the inner solution below which what is left at it is the distance from it."""


def check_effect(s: Subject) -> Iterator[Finding]:
    """LAM_UNUSED, LAM_WITHOUT_EFFECT."""
    leaves, absent = leaf_names("lam", s.lam), unused(s)
    if absent:
        yield Finding(
            "LAM_UNUSED",
            "error" if absent == leaves else "warning",
            f"{', '.join(absent)} enters neither the inner map nor the outer loss: its hypergradient is zero.",
            "Use it in the inner loss, or leave it out of lam.",
        )
    elsewhere = axpy(0.1, normal(s.stream(13), s.lam), s.lam)
    points = (s.near, s.lam), (s.far, elsewhere), (s.near, elsewhere)
    near, far, direct = _effects(s.problem, points, normal(s.stream(9), s.w0), s.train.full, s.val.full)
    solved = s.gap <= 10 * np.sqrt(epsilon(s.w0))
    parts = zip(leaves, *(map(float, jax.tree.leaves(x)) for x in (near, far, direct)), strict=True)
    gone = [name for name, a, b, c in parts if c == 0 and (a <= NEGLIGIBLE * b if solved else a == b == 0)]
    without = [name for name in gone if name not in absent]
    if without:
        yield Finding(
            "LAM_WITHOUT_EFFECT",
            "error" if without == leaves else "warning",
            f"The derivative of the inner map in {', '.join(without)} vanishes at the inner solution, and the outer "
            "loss does not depend on it: the hypergradient is zero.",
            "A step size moves no fixed point: lam must change the loss, not how it is descended. Else look for "
            "stop_gradient, rounding or a comparison on the way.",
        )


@jax.jit
def _effects(
    problem: Problem, points: tuple[Point, Point, Point], v: PyTree, full: PyTree, val: PyTree
) -> tuple[PyTree, PyTree, PyTree]:
    """Norms by leaf of lam: of d2Phi^T v at the first two points (w, lam), and of grad_2 E at the third."""
    near, far = (cross_product(problem, w, lam, full, v) for w, lam in points[:2])
    direct = outer_gradients(problem, *points[2], val)[2]
    lengths = [jax.tree.map(lambda x: jnp.sqrt(jnp.sum(x**2)), tree) for tree in (near, far, direct)]
    return lengths[0], lengths[1], lengths[2]


def check_derivatives(s: Subject) -> Iterator[Finding]:
    """DERIVATIVE."""
    v = normal(s.stream(10), s.w0)
    along = normal(s.stream(11), s.w0), normal(s.stream(12), s.lam)
    for name, full in (("inner loss" if s.problem.has_loss else "inner_map", s.train.full), ("outer_loss", s.val.full)):
        says, once, twice = map(float, _slopes(name, s.problem, (s.far, s.lam), along, v, full))
        agree = abs(once - twice) <= 0.01 * abs(once) and np.isfinite(once)
        if agree and abs(says - once) > 0.1 * max(abs(says), abs(once)):
            yield Finding(
                "DERIVATIVE",
                "warning",
                f"Along a random direction of (w, lam) the derivative of {name} is {says:.4g} by automatic "
                f"differentiation and {once:.4g} by central differences.",
                "Look for a custom derivative that is wrong, stop_gradient, rounding, or a conversion to integers.",
            )


@partial(jax.jit, static_argnums=0)
def _slopes(name: str, problem: Problem, at: Point, along: Point, v: PyTree, full: PyTree) -> Array:
    """Of a function along a direction: its derivative, and central differences over two distances; [3]."""
    inner: Any = problem.inner_map

    def value(t: Array) -> Array:
        w, lam = axpy(t, along, at)
        if name == "outer_loss":
            return problem.outer_loss(w, lam, full)
        if name == "inner loss":
            return inner.loss(w, lam, full)
        return vdot(v, inner_image(problem, w, lam, full))

    kind = jax.eval_shape(value, jnp.zeros(())).dtype
    zero, h = jnp.zeros((), kind), jnp.asarray(float(jnp.finfo(kind).eps) ** (1 / 3) / norm(along), kind)
    slope = jax.jvp(value, (zero,), (jnp.ones((), kind),))[1]
    return jnp.stack([slope, *((value(d) - value(-d)) / (2 * d) for d in (h, 2 * h))])
