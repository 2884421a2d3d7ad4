"""Does lam move the inner solution, and do the derivatives agree with central differences?"""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from bilevax.audit.checks.program import unused
from bilevax.audit.findings import Finding
from bilevax.audit.oracles import Parts, flat, like
from bilevax.audit.subject import TINY, AuditedProblem, leaf_names, normal, other_rows
from bilevax.core.trees import PyTree, rounding_unit

NEGLIGIBLE = 1e-4
"""Share of d2Phi away from the inner solution below which what is left at it is the distance from it."""

ROUNDING = 100.0
"""Units in the last place below which a change is none."""

NAMED = 3
"""Entries that are named, of those that a finding is about."""

TRIES = 10
"""Thirds of the random points at which an entry must have no effect: at each, half of the rows of a hinge have none."""

Effect = tuple[np.ndarray, np.ndarray, np.ndarray]
Function = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""Of a vector: the value and the gradient."""


def check_effect(s: AuditedProblem) -> Iterator[Finding]:
    """LAM_UNUSED, LAM_WITHOUT_EFFECT."""
    leaves, absent = leaf_names("lam", s.lam), unused(s)
    if absent:
        yield _unused(absent, "error" if absent == leaves else "warning")
    at_solution, elsewhere, direct = _effects(s)
    # of a leaf: no grad_2 E, and a d2Phi^T v that vanishes at the solution beside what it is elsewhere
    parts = zip(leaves, *(_by_leaf(x, s.lam) for x in (at_solution, elsewhere, direct)), strict=True)
    gone = [name for name, a, b, c in parts if c == 0 and (a <= NEGLIGIBLE * b if s.is_solved else a == b == 0)]
    without = [name for name in gone if name not in absent]
    if without:
        yield _without(s, without, "error" if without == leaves else "warning")
    known = np.repeat([name in (*absent, *gone) for name in leaves], [x.size for x in _leaves(s.lam)])
    zero = (at_solution == 0) & (elsewhere == 0) & (direct == 0) & ~known
    if zero.any():
        yield from _entries(s, zero)


def _effects(s: AuditedProblem) -> Effect:
    """Sizes of the entries of d2Phi^T v at two points (w, lam), and of grad_2 E, rounding left out; each [m]."""
    v, lam = normal(s.rng(9), s.w0), like(flat(s.lam) + 0.1 * flat(normal(s.rng(13), s.lam)), s.lam)
    at_solution = np.abs(flat(s.inner(s.solution, s.lam, v)[2]))
    elsewhere = np.abs(flat(s.inner(s.perturbed, lam, v)[2]))
    value, _, by_lam = s.outer(s.solution, lam)
    direct = np.abs(flat(by_lam))
    # rounding of E over the size of an entry: a grad_2 E below is none
    floor = ROUNDING * rounding_unit(s.lam) * abs(float(value)) / (direct.size * (1.0 + np.abs(flat(s.lam))))
    return at_solution, elsewhere, np.where(direct > floor, direct, 0.0)


def _by_leaf(entries: np.ndarray, tree: PyTree) -> list[float]:
    return [float(np.linalg.norm(x)) for x in _leaves(like(entries, tree))]


def _leaves(tree: PyTree) -> list[np.ndarray]:
    return [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]


def _unused(names: list[str], severity: str) -> Finding:
    return Finding(
        "LAM_UNUSED",
        severity,
        f"{', '.join(names)} enters neither the inner map nor the outer loss: its hypergradient is zero.",
        "Use it in the inner loss, or leave it out of lam; look for a slice or an index that passes it by.",
    )


def _without(s: AuditedProblem, names: list[str], severity: str) -> Finding:
    """Why a leaf of lam moves nothing: at w = 0, a penalty never does."""
    if not np.linalg.norm(flat(s.solution)) > 1e-2 * np.linalg.norm(flat(s.perturbed)) and s.residual < 1:
        advice = (
            "The inner solution is w = 0, and no penalty moves that: mend the inner loss first. Do the labels reach "
            "it, in the form that it expects (one-hot, -1/+1, 0/1)?"
        )
    else:
        advice = (
            "A step size moves no fixed point: lam must change the loss, not how it is descended. Else look for "
            "stop_gradient, rounding or a comparison between lam and the loss."
        )
    return Finding(
        "LAM_WITHOUT_EFFECT",
        severity,
        f"The derivative of the inner map in {', '.join(names)} vanishes at the inner solution, and the outer loss "
        "does not depend on it: the hypergradient is zero.",
        advice,
    )


def _entries(s: AuditedProblem, zero: np.ndarray) -> Iterator[Finding]:
    """Entries of lam whose derivative is exactly zero at every random point, on random rows."""
    rng, v = s.rng(14), normal(s.rng(9), s.w0)
    # until nothing is left that is zero everywhere, at points near and far
    for scale in (0.3, 1.0, 3.0) * TRIES:
        if not zero.any():
            return
        rows, others = (other_rows(table, rng) for table in s.tables.values())
        w, lam = (like(flat(x) + scale * rng.normal(size=flat(x).size), x) for x in (s.solution, s.lam))
        for by_lam in (flat(s.inner(w, lam, v, rows)[2]), flat(s.outer(w, lam, others)[2])):
            zero = zero & ~(np.isfinite(by_lam) & (by_lam != 0))
    first, number = np.flatnonzero(zero)[:NAMED], int(zero.sum())
    listed = ", ".join(_entry_name(s.lam, int(i)) for i in first)
    listed += f" and {number - NAMED} more entries" if number > NAMED else ""
    if any(_moves(s, int(i), v) for i in first):
        yield Finding(
            "LAM_WITHOUT_EFFECT",
            "warning",
            f"The functions change with {listed}, but their derivative in it is exactly zero: its hypergradient is "
            "zero, and no outer step moves it.",
            "Look for a stop_gradient on a part of lam, for rounding, a comparison or an argmax.",
        )
    else:
        yield _unused([listed], "warning")


def _moves(s: AuditedProblem, i: int, v: PyTree) -> bool:
    """True where entry i of lam changes what the functions return."""
    # Phi and E at lam and at lam + e_i / 2
    moved = like(flat(s.lam) + 0.5 * np.eye(1, flat(s.lam).size, i)[0], s.lam)
    before, after = (flat((s.inner(s.perturbed, x, v)[0], s.outer(s.perturbed, x)[0])) for x in (s.lam, moved))
    return bool(np.any(np.abs(after - before) > ROUNDING * rounding_unit(s.lam) * np.abs(before)))


def _entry_name(tree: PyTree, i: int) -> str:
    """How a user would write entry i of lam."""
    for name, x in zip(leaf_names("lam", tree), _leaves(tree), strict=True):
        if i < x.size:
            return f"{name}{list(map(int, np.unravel_index(i, x.shape))) if x.ndim else ''}"
        i -= x.size
    raise IndexError(i)


def check_derivatives(s: AuditedProblem) -> Iterator[Finding]:
    """DERIVATIVE."""
    v, at = normal(s.rng(10), s.w0), np.concatenate([flat(s.perturbed), flat(s.lam)])

    def split(x: np.ndarray) -> tuple[PyTree, PyTree]:
        return like(x[: s.size], s.w0), like(x[s.size :], s.lam)

    def of_map(x: np.ndarray) -> tuple[float, np.ndarray]:
        w, lam = split(x)
        # v'Phi(w, lam), whose gradients are d1Phi^T v and d2Phi^T v
        moved, *gradients = s.inner(w, lam, v)
        return float(flat(v) @ (flat(moved) + flat(w))), flat(gradients)

    def of_loss(oracle: Callable[[PyTree, PyTree], Parts]) -> Function:
        def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
            value, *gradients = oracle(*split(x))
            return float(value), flat(gradients)

        return value_and_gradient

    inner = ("inner loss", of_loss(s.loss)) if s.problem.has_loss else ("inner_map", of_map)
    for name, function in (inner, ("outer_loss", of_loss(s.outer))):
        gradient, along = function(at)[1], s.rng(11).normal(size=at.size)
        # a second direction in the entries alone where autodiff says 0: a part of the first would drown there
        still = along * (gradient == 0)
        for u, what, root in ((along, "(w, lam)", 3), (still, "the entries where it is exactly zero", 5)):
            u = u / max(float(np.linalg.norm(u)), TINY)
            slopes = _slopes(function, at, u, (rounding_unit((s.w0, s.lam)), root))
            if _differ(float(gradient @ u), *slopes):
                yield Finding(
                    "DERIVATIVE",
                    "warning",
                    f"Along a random direction of {what} the derivative of {name} is {gradient @ u:.4g} by automatic "
                    f"differentiation and {slopes[0]:.4g} by central differences.",
                    "Look for a custom derivative that is wrong, stop_gradient, rounding, or a conversion to integers.",
                )
                break


def _slopes(f: Function, at: np.ndarray, u: np.ndarray, rounding: tuple[float, int]) -> tuple[float, float, float]:
    """Central differences along u over two distances, and what rounding may add to them."""
    eps, root = rounding
    # h = eps^(1/3) balances the error h^2 of a central difference with that of rounding, eps / h; eps^(1/5) is longer
    h = eps ** (1 / root) * (1.0 + float(np.mean(np.abs(at))))
    ends = [f(at + d * u)[0] for d in (-h, h, -2 * h, 2 * h)]
    # (f(x + h u) - f(x - h u)) / 2h, the same over 2h, and 10 eps |f| / h
    return (ends[1] - ends[0]) / (2 * h), (ends[3] - ends[2]) / (4 * h), 10 * eps * max(map(abs, ends)) / h


def _differ(says: float, once: float, twice: float, floor: float) -> bool:
    """True where central differences agree with each other, and not with automatic differentiation."""
    agree = abs(once - twice) <= 0.01 * abs(once) + floor and np.isfinite(once)
    return bool(agree and abs(says - once) > 0.1 * max(abs(says), abs(once)) + 10 * floor)
