"""Does the inner map contract at the inner solution, and how fast?

The doctor hands in the problem under audit and gets findings: :func:`check_curvature` from gradients of the inner loss
at points about w0, :func:`check_contraction` from the spectrum of d1Phi at the inner solution, all on every row.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from bilevax.audit.findings import Figure, Finding
from bilevax.audit.oracles import flat, like
from bilevax.audit.subject import SOLVE_STEPS, TINY, AuditedProblem, leaf_names, normal
from bilevax.core.trees import rounding_unit
from bilevax.solvers import CG, GMRES, LBFGS
from bilevax.solvers.stability import CONFIRMING

KRYLOV = 150
"""Products with d1Phi^T from which the spectrum of d1Phi is judged."""

SLOW = 0.999
"""Spectral radius above which a thousand steps do not divide an error by three."""

SOME = 0.01
"""Negative curvature, as a multiple of 1 / step, that is a fault even where the inner solution was not found."""

UNEVEN = 30.0
"""Ratio of the sizes of two columns from which features are said to be on different scales."""

Product = Callable[[np.ndarray], np.ndarray]
"""A linear map of vectors [d]."""


def check_curvature(s: AuditedProblem) -> Iterator[Finding]:
    """NO_CURVATURE: the gradient of the inner loss is the same wherever it is looked at."""
    if not s.problem.has_loss:
        return
    # a direction, and the gradient at w0
    u, before = flat(normal(s.rng(7), s.w0)), flat(s.loss(s.w0, s.lam)[1])
    if not np.any(before) and not np.any(flat(s.loss(like(u, s.w0), s.lam)[1])):
        yield Finding(
            "NO_CURVATURE",
            "error",
            "The gradient of the inner loss in w is exactly zero wherever it is looked at.",
            "Let the inner loss use its first argument, w, through functions that have a slope: no stop_gradient, "
            "argmax, comparison or rounding on the way, and a loss in place of an accuracy.",
        )
        return
    for distance in (1.0, 1e3, 1e6):  # features can be small
        w = like(flat(s.w0) + distance * (1.0 + np.abs(flat(s.w0))) * u, s.w0)
        after = flat(s.loss(w, s.lam)[1])
        if not np.linalg.norm(after - before) <= 100 * rounding_unit(s.w0) * np.linalg.norm(before):
            return
    yield Finding(
        "NO_CURVATURE",
        "error",
        "The inner loss is linear in w: its gradient is the same wherever it is looked at. It has no minimum, and no "
        "step size fits it.",
        "Look for a square or a logarithm of w that is missing in the inner loss, or for a stop_gradient; or add a "
        "penalty on w, such as 0.5 * jnp.sum(jnp.exp(lam) * w**2).",
    )


def check_contraction(s: AuditedProblem) -> Iterator[Finding | Figure]:
    """NOT_CONTRACTIVE, STEP_TOO_LONG, NOT_CONVEX, FLAT, UNSCALED, SLOW, from eigenvalues m of d1Phi; and max |m|."""
    # m, and the direction of the largest |m|
    values, dominant = arnoldi(s.adjoint_product, flat(normal(s.rng(8), s.solution)), min(s.size, KRYLOV))
    if s.measures_step:
        # the power iteration saw a part of L: s <- s / max(1, 1.1 max |1 - m|) brings every 1 - m below 1
        values = 1 - (1 - values) / max(1.0, 1.1 * float(np.abs(1 - values).max()))
    radius = float(np.abs(values).max())
    # Ritz values of a non-normal map can lie outside of its spectrum: does their vector go on growing?
    if radius > SLOW:
        radius = float(np.exp(growth_rate(s.adjoint_product, dominant)))
    yield Figure("spectral radius", radius)
    found = list(_of_a_step(s, values, radius) if s.problem.symmetric else _of_a_map(values, radius))
    if not found and SLOW < radius < 1 - 1e-5:
        found = [_slow(s, radius, 1 - float(values.real.min()) if s.problem.symmetric else 1.0)]
    codes = {f.code for f in found}
    uneven = _uneven(s) if codes & {"FLAT", "SLOW", "STEP_TOO_LONG"} else None
    if uneven is None or "STEP_TOO_LONG" in codes:
        yield from found
    if uneven is not None:
        yield uneven


def _of_a_map(values: np.ndarray, radius: float) -> Iterator[Finding]:
    """What the eigenvalues m of d1Phi say. Damped by eta, the map has 1 - eta (1 - m) in place of m."""
    if radius < 1 - 1e-5:
        return
    apart = 1 - values[np.abs(values) >= min(radius, float(np.abs(values).max())) * (1 - 1e-5)]
    # |1 - eta a| < 1 for a = 1 - m  <=>  eta < 2 Re a / |a|^2
    longest = float(np.min(2 * apart.real / np.maximum(np.abs(apart) ** 2, TINY)))
    advice = (
        f"Damp the map: return w + eta * (Phi(w) - w) with eta below {longest:.2g}."
        if longest > 1e-3
        else "Damping does not help, as it grows without turning: bound the norm of the map's Jacobian in w, as by "
        "dividing its weights by their largest singular value, or penalise more."
    )
    measured = f"The inner map does not contract at the inner solution: its spectral radius is {radius:.4g}."
    yield Finding("NOT_CONTRACTIVE", "error", measured, advice)


def _of_a_step(s: AuditedProblem, values: np.ndarray, radius: float) -> Iterator[Finding]:
    """What the spectrum of I - s H, which is real, says of the step s and the Hessian H."""
    # 1 - low is s L, L the largest curvature; 1 - high is s tau, tau the least
    low, high = float(values.real.min()), float(values.real.max())
    if radius >= 1 - 1e-5 and low <= -1 + 1e-5 and not _step_left_out(s):
        yield Finding(
            "STEP_TOO_LONG",
            "error",
            f"The inner step is {1 - low:.3g} / L, where L is the largest curvature; it must be less than 2 / L.",
            f"Divide step_size by {1 - low:.3g}, or leave it out: that of a mean over rows is measured.",
        )
    elif radius > 1 + 1e-5 and high > 1:
        settled = s.residual <= 100 * rounding_unit(s.w0) ** 0.75
        place = "the inner solution" if settled else f"the point where {SOLVE_STEPS} steps of L-BFGS ended, short of it"
        yield Finding(
            "NOT_CONVEX",
            "error" if settled or high > 1 + SOME else "note",  # on the way to a minimum, a little is no fault
            f"The inner loss has negative curvature at {place}: its least is {1 - high:.3g} / step.",
            "Penalise more, or start nearer to a minimum; look for a wrong sign in the loss"
            + ("" if settled else ", or for a kink (relu, abs) that the solver is stuck at")
            # I - d1Phi^T + delta I is positive for delta above this
            + f"; of a network that is trained as far as it is meant to be, Problem(damping={1.5 * (high - 1):.1g}) "
            "solves the linear system here, a larger one where a solver ends sooner, at a bias that the report counts.",
        )
    elif radius >= 1 - 1e-5 and high > 0:
        yield Finding(
            "FLAT",
            "warning",
            f"The inner loss has a direction without curvature (at most {max(1 - radius, 0.0):.1g} / step): the inner "
            "solution is not unique.",
            "Put a small penalty on every weight, also on a bias that the loss does not determine.",
        )


def _step_left_out(s: AuditedProblem) -> bool:
    """True where the inner map was given with ``step_size=None``, to be measured."""
    return getattr((s.given or s.problem).inner_map, "step_size", 0) is None


def _slow(s: AuditedProblem, radius: float, step: float) -> Finding:
    """SLOW, of a spectral radius just below 1; ``step`` in units of 1 / L."""
    # radius^steps = 1 / 1000
    steps = np.log(1000.0) / -np.log(radius)
    in_use = [getattr(s.estimator, name, None) for name in ("inner", "linear")]
    advice = "Penalise more" + (
        "."
        if all(isinstance(x, LBFGS | CG | GMRES) for x in in_use)
        else ", or solve without minibatches: "
        "bx.SID(inner=bx.LBFGS(), linear=bx.CG()) feels only the root of this number."
        if s.problem.has_loss
        else ", or solve the linear system by bx.GMRES()."
    )
    if step < 0.5 and not _step_left_out(s):
        advice = f"The step is {step:.2g} / L: lengthen it to 1 / L, or leave it out and it is measured."
    measured = f"The inner map contracts by {radius:.6g} a step: {steps:,.0f} full steps divide an error by 1000."
    return Finding("SLOW", "warning", measured, advice)


def _uneven(s: AuditedProblem) -> Finding | None:
    """Columns of one table whose sizes differ by orders, which make a loss slow or flat in float32; None: no such."""
    rows = s.tables["train"]
    for name, x in zip(leaf_names("batch", rows), jax.tree.leaves(rows), strict=True):
        if x.ndim != 2 or x.shape[1] < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
            continue
        # root mean square of each column; columns of zeros have no scale
        size = np.sqrt(np.mean(np.square(np.asarray(x, np.float64)), axis=0))
        small, large = np.where(size > 0, size, np.inf).argmin(), size.argmax()
        if size[small] > 0 and size[large] > UNEVEN * size[small]:
            return Finding(
                "UNSCALED",
                "warning",
                f"The columns of {name} are on different scales: the root mean square of column {large} is "
                f"{size[large]:.3g}, that of column {small} {size[small]:.3g}. The curvature of the inner loss differs "
                f"by the square of that, {(size[large] / size[small]) ** 2:.2g}, and solvers crawl.",
                "Scale the features before they go into a source, train and val alike: subtract from each column its "
                "mean in train and divide by its standard deviation there (a constant column stays as it is).",
            )
    return None


def growth_rate(product: Product, u: np.ndarray) -> float:
    """Mean logarithm of the growth of a direction under a linear map, in the last half of CONFIRMING products."""
    rates = []
    for _ in range(CONFIRMING):
        # u <- A u / ||u||;  log ||A u|| / ||u||
        u = product(u / max(float(np.linalg.norm(u)), TINY))
        rates.append(np.log(max(float(np.linalg.norm(u)), TINY)))
    # the mean logarithm, once what decays is gone
    return float(np.mean(rates[CONFIRMING // 2 :]))


def arnoldi(product: Product, start: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Ritz values of a linear map on a Krylov space, and a vector [d] for the largest in modulus.

    Converged or not: ``scipy.sparse.linalg.eigs`` returns only those that are. Cost: ``size`` products and O(d size^2)
    operations.
    """
    Q = np.zeros((size + 1, start.size))
    H = np.zeros((size + 1, size))
    Q[0] = start / np.linalg.norm(start)
    for j in range(size):
        z = product(Q[j])
        scale = np.linalg.norm(z)
        # Gram-Schmidt, twice: once leaves rounding that grows with the condition of the basis
        for _ in range(2):
            h = Q[: j + 1] @ z
            z = z - h @ Q[: j + 1]
            H[: j + 1, j] += h
        H[j + 1, j] = np.linalg.norm(z)
        if H[j + 1, j] <= 1e-6 * scale or scale == 0:  # the space is invariant
            size = j + 1
            break
        Q[j + 1] = z / H[j + 1, j]
    # A Q = Q H + remainder: eigenvalues of H, and Q y for the vector y of the largest
    values, vectors = np.linalg.eig(H[:size, :size])
    return values, vectors[:, np.abs(values).argmax()].real @ Q[:size]
