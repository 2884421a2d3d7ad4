"""Does lam move the inner solution, and do the derivatives agree with central differences?"""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from bilevax.audit.checks.looks import Parts, flat, like
from bilevax.audit.checks.program import unused
from bilevax.audit.findings import Finding
from bilevax.audit.subject import TINY, AuditedProblem, epsilon, leaf_names, normal, other_rows
from bilevax.core.trees import PyTree

NEGLIGIBLE = 1e-4
"""Share of d2Phi away from the inner solution below which what is left at it is the distance from it."""

ROUNDING = 100.0
"""Units in the last place below which a change is none."""

NAMED = 3
"""Entries that are named, of those that a finding is about."""

TRIES = 10
"""Thirds of the random points at which an entry must have no effect: at each, half of the rows of a hinge have none."""

Effect = tuple[np.ndarray, np.ndarray, np.ndarray]
Look = Callable[[np.ndarray], tuple[float, np.ndarray]]


def check_effect(s: AuditedProblem) -> Iterator[Finding]:
    """LAM_UNUSED, LAM_WITHOUT_EFFECT."""
    leaves, absent = leaf_names("lam", s.lam), unused(s)
    if absent:
        yield _unused(absent, "error" if absent == leaves else "warning")
    near, far, direct = _effects(s)
    parts = zip(leaves, *(_by_leaf(x, s.lam) for x in (near, far, direct)), strict=True)
    gone = [name for name, a, b, c in parts if c == 0 and (a <= NEGLIGIBLE * b if s.solved else a == b == 0)]
    without = [name for name in gone if name not in absent]
    if without:
        yield _without(s, without, "error" if without == leaves else "warning")
    known = np.repeat([name in (*absent, *gone) for name in leaves], [x.size for x in _leaves(s.lam)])
    zero = (near == 0) & (far == 0) & (direct == 0) & ~known
    if zero.any():
        yield from _entries(s, zero)


def _effects(s: AuditedProblem) -> Effect:
    """Sizes of the entries of d2Phi^T v at two points (w, lam), and of grad_2 E, rounding left out; each [m]."""
    v, elsewhere = normal(s.draw(9), s.w0), like(flat(s.lam) + 0.1 * flat(normal(s.draw(13), s.lam)), s.lam)
    near = np.abs(flat(s.inner(s.near, s.lam, v)[2]))
    far = np.abs(flat(s.inner(s.far, elsewhere, v)[2]))
    value, _, by_lam = s.outer(s.near, elsewhere)
    direct = np.abs(flat(by_lam))
    floor = ROUNDING * epsilon(s.lam) * abs(float(value)) / (direct.size * (1.0 + np.abs(flat(s.lam))))
    return near, far, np.where(direct > floor, direct, 0.0)


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
    if not np.linalg.norm(flat(s.near)) > 1e-2 * np.linalg.norm(flat(s.far)) and s.gap < 1:
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
    """Entries of lam whose derivative is exactly zero wherever it is looked at, be the rows what they may."""
    rng, v = s.draw(14), normal(s.draw(9), s.w0)
    for scale in (0.3, 1.0, 3.0) * TRIES:
        if not zero.any():
            return
        rows, others = (other_rows(table, rng) for table in s.tables.values())
        w, lam = (like(flat(x) + scale * rng.normal(size=flat(x).size), x) for x in (s.near, s.lam))
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
    one = np.eye(1, flat(s.lam).size, i)[0]
    before, after = (
        np.concatenate([flat(s.inner(s.far, lam, v)[0]), flat(s.outer(s.far, lam)[0])])
        for lam in (s.lam, like(flat(s.lam) + 0.5 * one, s.lam))
    )
    return bool(np.any(np.abs(after - before) > ROUNDING * epsilon(s.lam) * np.abs(before)))


def _entry_name(tree: PyTree, i: int) -> str:
    """How a user would write entry i of lam."""
    for name, x in zip(leaf_names("lam", tree), _leaves(tree), strict=True):
        if i < x.size:
            return f"{name}{list(map(int, np.unravel_index(i, x.shape))) if x.ndim else ''}"
        i -= x.size
    raise IndexError(i)


def check_derivatives(s: AuditedProblem) -> Iterator[Finding]:
    """DERIVATIVE."""
    v, at = normal(s.draw(10), s.w0), np.concatenate([flat(s.far), flat(s.lam)])

    def split(x: np.ndarray) -> tuple[PyTree, PyTree]:
        return like(x[: s.size], s.w0), like(x[s.size :], s.lam)

    def of_map(x: np.ndarray) -> tuple[float, np.ndarray]:
        w, lam = split(x)
        moved, by_w, by_lam = s.inner(w, lam, v)
        return float(flat(v) @ (flat(moved) + flat(w))), np.concatenate([flat(by_w), flat(by_lam)])

    def of_loss(look: Callable[[PyTree, PyTree], Parts]) -> Look:
        def value(x: np.ndarray) -> tuple[float, np.ndarray]:
            e, by_w, by_lam = look(*split(x))
            return float(e), np.concatenate([flat(by_w), flat(by_lam)])

        return value

    inner = ("inner loss", of_loss(s.loss)) if s.problem.has_loss else ("inner_map", of_map)
    for name, look in (inner, ("outer_loss", of_loss(s.outer))):
        gradient, along = look(at)[1], s.draw(11).normal(size=at.size)
        still = along * (gradient == 0)
        for u, what, root in ((along, "(w, lam)", 3), (still, "the entries where it is exactly zero", 5)):
            u = u / max(float(np.linalg.norm(u)), TINY)
            slopes = _slopes(look, at, u, (max(epsilon(s.w0), epsilon(s.lam)), root))
            found = list(
                _derivative(
                    f"Along a random direction of {what} the derivative of {name}", float(gradient @ u), *slopes
                )
            )
            yield from found
            if found:
                break


def _slopes(look: Look, at: np.ndarray, u: np.ndarray, rounding: tuple[float, int]) -> tuple[float, float, float]:
    """Central differences along u over two distances, and what rounding may add to them."""
    eps, root = rounding
    h = eps ** (1 / root) * (1.0 + float(np.mean(np.abs(at))))
    ends = [look(at + d * u)[0] for d in (-h, h, -2 * h, 2 * h)]
    return (ends[1] - ends[0]) / (2 * h), (ends[3] - ends[2]) / (4 * h), 10 * eps * max(map(abs, ends)) / h


def _derivative(what: str, says: float, once: float, twice: float, floor: float) -> Iterator[Finding]:
    agree = abs(once - twice) <= 0.01 * abs(once) + floor and np.isfinite(once)
    if agree and abs(says - once) > 0.1 * max(abs(says), abs(once)) + 10 * floor:
        yield Finding(
            "DERIVATIVE",
            "warning",
            f"{what} is {says:.4g} by automatic differentiation and {once:.4g} by central differences.",
            "Look for a custom derivative that is wrong, stop_gradient, rounding, or a conversion to integers.",
        )
