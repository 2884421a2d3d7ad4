"""Problems with exact hypergradients, on which estimators, planners and audits are compared.

    from bilevax.testing.problems import problem, problems

    p = problem("ridge")
    train, val = p.sources()
    truth = p.solution().hypergradient

Twenty of them are a list; twenty more names, those of :func:`families`, are recipes for as many draws as are wanted.

A problem is drawn when it is asked for, from a seed of its own, and solved when its solution is: in float64, by
Newton's method, damped, on the fixed-point equation of every row of train and a direct solve of the linear system,
whatever precision JAX is set to.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.config import check_choice, check_count
from bilevax.core.errors import ParameterError
from bilevax.core.trees import PyTree
from bilevax.problems import BinaryLogistic, GradientStep, MultinomialLogistic, Problem, ProximalStep, Squared
from bilevax.testing.choosing import CHOOSING
from bilevax.testing.closed_forms import Curvature, FiniteQuadratic, PenalisedRidge, Solution
from bilevax.testing.families import FAMILIES, drawn_from
from bilevax.testing.judging import JUDGING
from bilevax.testing.truth import NamedProblem

__all__ = ["NamedProblem", "Solution", "families", "problem", "problems"]


def problems() -> tuple[str, ...]:
    """The names of the twenty problems.

    Examples:
        >>> len(problems())
        20
    """
    return tuple(_RECIPES)


def families(kind: str) -> tuple[str, ...]:
    """The names of ten families of random problems that :func:`problem` draws.

    Whatever is chosen by looking at the one half (a constant of an error report, or of a planner) is judged on the
    other, on draws that nobody has seen.

    Args:
        kind: ``"choosing"`` or ``"judging"``.

    Raises:
        ParameterError: it is neither.

    Examples:
        >>> len(families("choosing")), set(families("choosing")) & set(families("judging"))
        (10, set())
    """
    return tuple({"choosing": CHOOSING, "judging": JUDGING}[check_choice("kind", kind, ("choosing", "judging"))])


def problem(name: str, draw: int = 0) -> NamedProblem:
    """Draw a problem of the list, or of a family.

    - ``quadratic-KAPPA-bB[-correlated]``: a least-squares problem in quadratic form, n = 512, d = 10, m = 5, condition
      KAPPA; correlated: B_i = A_i C.
    - ``logistic-NxD-PENALTY``: logistic regression, one penalty per feature, m = d.
    - ``ridge``: ridge regression, n = 500, one penalty per feature, m = d = 20.
    - ``equilibrium``: h = tanh(x B + h A + c), the state of each of 64 rows, with a linear read-out; lam holds A, B, c
      and the read-out. A minibatch moves its rows by n / b.
    - ``elastic-net``: n = 400, d = 30, the two penalties of all weights together, m = 2; its minibatches are biased, as
      :class:`~bilevax.ProximalStep` says.
    - ``digits``: logistic regression on scikit-learn's digits, n = 1,000, ten classes, one penalty per feature, m = 64.

    The draws of a family share shapes, dtypes and functions, so that one compiled program serves them all; the
    condition of the inner problem lies between 5 and 300, or so. ``unmeasured`` is the problem as it is handed in.

    Args:
        name: of the recipe, in :func:`problems`, or of the family, in :func:`families`.
        draw: a count below 2^63; 0 (default) is the problem of the list, others are further ones of the same recipe,
            for whatever was chosen by looking at the list.

    Raises:
        ParameterError: there is none of that name, or ``draw`` is no count.

    Examples:
        >>> p = problem("quadratic-10-b32")
        >>> bool(abs(p.curvature.L / p.curvature.tau - 10) < 1e-9), p.solution().hypergradient.shape
        (True, (5,))
    """
    # check_count refuses numbers beyond int32, which a seed may be
    if isinstance(draw, int | np.integer) and draw >= 2**31:
        if draw >= 2**63:
            raise ParameterError(f"draw must be less than 2^63, got {draw}")
    else:
        draw = check_count("draw", draw)
    if name in FAMILIES:
        return drawn_from(name, int(draw))
    if name not in _RECIPES:
        known = ", ".join([*_RECIPES, *FAMILIES])
        raise ParameterError(f"there is no problem {name!r}; problems() and families(kind) list them: {known}")
    return _RECIPES[name](name, int(draw))


def _quadratic(name: str, draw: int, condition: float, batch_size: int, correlated: bool) -> NamedProblem:
    """Rows 1/2 (x_i'(w - C_i lam) - y_i)^2 with mean x_i x_i' of eigenvalues 1 to 1 / condition."""
    n, d, m = 512, 10, 5
    rng = np.random.default_rng([int(condition), batch_size, correlated, draw])
    eigenvalues = np.geomspace(1.0, 1.0 / condition, d)
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    # X'X / n = Q diag(eigenvalues) Q', exactly; A_i = x_i x_i'
    X = np.sqrt(n) * np.linalg.qr(rng.normal(size=(n, d)))[0] * np.sqrt(eigenvalues) @ basis.T
    A = X[:, :, None] * X[:, None, :]
    root = (basis * np.sqrt(eigenvalues)) @ basis.T
    truth, C = rng.normal(size=d), rng.normal(size=(d, m))
    b = X * (X @ truth + 0.5 * rng.normal(size=n))[:, None]
    # B_i = A_i C, or of its own noise in the metric of the mean A
    B = A @ C if correlated else root @ (root @ C + 0.3 * rng.normal(size=(n, d, m)))
    lam, target = 0.3 * rng.normal(size=m), truth + rng.normal(size=d)
    p = FiniteQuadratic(A=A, b=b, B=B, target=target, r=0.1, lam=lam)
    return NamedProblem(name, p.problem, p.train_data, p.val_data, np.zeros(d), lam, batch_size, p.curvature)


def _logistic(name: str, draw: int, n: int, d: int, penalty: float) -> NamedProblem:
    """Features of decreasing scale, labels drawn from a logistic model, penalties around ``penalty``."""
    rng = np.random.default_rng([n, d, int(1 / penalty), draw])
    rows = n + n // 4
    X = rng.normal(size=(rows, d)) * np.linspace(1.0, 0.2, d)
    # P(y = 1) = 1 / (1 + exp(-x'w)), scores of standard deviation 2 to 3
    chance = 1.0 / (1.0 + np.exp(-X @ rng.normal(size=d) * 4.0 / np.sqrt(d)))
    y = (rng.uniform(size=rows) < chance).astype(np.float64)
    lam = np.log(penalty) + 0.3 * rng.normal(size=d)
    data = (X[:n], y[:n]), (X[n:], y[n:])
    # the second derivative of log(1 + exp(-s)) is at most 1/4
    curvature = _glm_curvature(0.25, X[:n], lam)
    found = Problem(GradientStep(BinaryLogistic("feature"), curvature.alpha), BinaryLogistic())
    return NamedProblem(name, found, *data, np.zeros((1, d)), lam, 32 if n < 1000 else 100, curvature)


def _ridge(name: str, draw: int) -> NamedProblem:
    p = PenalisedRidge.random([3, draw], n=500, d=20)
    w0 = np.zeros((1, 20))
    return NamedProblem(name, p.problem, p.train_data, p.val_data, w0, p.lam, 20, p.curvature(p.lam))


def _glm_curvature(second_derivative: float, X: np.ndarray, lam: np.ndarray) -> Curvature:
    """Bounds for sup a'' mean x x' + diag(exp(lam))."""
    # L = largest eigenvalue of sup a'' X'X / n + diag(exp lam),  tau = least penalty
    penalties = np.exp(lam)
    top = np.linalg.eigvalsh(second_derivative * X.T @ X / len(X) + np.diag(penalties))[-1]
    return Curvature(float(top), float(penalties.min()))


def layer(w: Array, lam: PyTree, batch: PyTree) -> Array:
    """The states of the rows of a minibatch moved to tanh(x B + h A + c), by n / b as far; unbiased for the layer.

    Args:
        w: the states h, [n, h].
        lam: {"A": [h, h], "B": [p, h], "c": [h], "out": [h]}.
        batch: {"row": [b], "x": [b, p]}.
    """
    # h_i <- h_i + (n / b) (tanh(x_i B + h_i A + c) - h_i) for the b rows of the batch: the layer's step in the mean
    h = w[batch["row"]]
    new = jnp.tanh(batch["x"] @ lam["B"] + h @ lam["A"] + lam["c"][None])
    return w.at[batch["row"]].add((w.shape[0] / h.shape[0]) * (new - h))


def read_out_loss(w: Array, lam: PyTree, batch: PyTree) -> Array:
    """Mean over the batch {"row": [b], "y": [b]} of 1/2 (h out - y)^2."""
    return 0.5 * jnp.mean((w[batch["row"]] @ lam["out"] - batch["y"]) ** 2)


def _equilibrium(name: str, draw: int) -> NamedProblem:
    rng = np.random.default_rng([5, draw])
    n, p, h, q = 64, 5, 8, 0.7
    A = rng.normal(size=(h, h))
    # |A| = q, and |tanh'| <= 1: the layer contracts by q
    lam = {"A": q * A / np.linalg.norm(A, 2), "B": rng.normal(size=(p, h)) / np.sqrt(p), "c": 0.1 * rng.normal(size=h)}
    lam["out"] = rng.normal(size=h)
    row, x = np.arange(n, dtype=np.int32), rng.normal(size=(n, p))
    y = np.sin(x @ rng.normal(size=p)) + 0.1 * rng.normal(size=n)
    data = {"row": row, "x": x}, {"row": row, "y": y}
    found = Problem(layer, read_out_loss)
    return NamedProblem(name, found, *data, np.zeros((n, h)), lam, 16, Curvature(1.0 + q, 1.0 - q))


def elastic_net_prox(w: Array, lam: PyTree, s: Array) -> Array:
    """Argmin_u s (exp(l1) |u|_1 + exp(l2) |u|^2 / 2) + |u - w|^2 / 2, entry by entry; lam = {"l1": [], "l2": []}."""
    # soft thresholding by s exp(l1), then shrinkage by 1 + s exp(l2)
    soft = jnp.sign(w) * jnp.maximum(jnp.abs(w) - s * jnp.exp(lam["l1"]), 0.0)
    return soft / (1.0 + s * jnp.exp(lam["l2"]))


def _elastic_net(name: str, draw: int) -> NamedProblem:
    rng = np.random.default_rng([7, draw])
    n, d = 400, 30
    X = rng.normal(size=(n + 200, d)) * np.linspace(1.0, 0.5, d)
    y = X @ (rng.normal(size=d) * (rng.uniform(size=d) < 0.3)) + 0.5 * rng.normal(size=n + 200)
    eigenvalues = np.linalg.eigvalsh(X[:n].T @ X[:n] / n)
    curvature = Curvature(float(eigenvalues[-1]), float(eigenvalues[0]))
    lam = {"l1": np.log(np.array(0.05)), "l2": np.log(np.array(0.1))}
    found = Problem(ProximalStep(Squared(), elastic_net_prox, curvature.alpha), Squared())
    return NamedProblem(name, found, (X[:n], y[:n]), (X[n:], y[n:]), np.zeros((1, d)), lam, 20, curvature)


def _digits(name: str, draw: int) -> NamedProblem:
    from sklearn.datasets import load_digits

    rng = np.random.default_rng([11, draw])
    table = load_digits()
    order, n = rng.permutation(len(table.target)), 1000
    X, y = table.data[order] / 16.0, table.target[order].astype(np.int32)
    lam = np.log(0.01) + 0.3 * rng.normal(size=X.shape[1])
    # the Hessian of the log-sum-exp of the scores is at most 1/2
    curvature = _glm_curvature(0.5, X[:n], lam)
    found = Problem(GradientStep(MultinomialLogistic("feature"), curvature.alpha), MultinomialLogistic())
    return NamedProblem(name, found, (X[:n], y[:n]), (X[n:], y[n:]), np.zeros((10, 64)), lam, 50, curvature)


_RECIPES: dict[str, Callable[[str, int], NamedProblem]] = {
    **{
        f"quadratic-{condition}-b{b}{'-correlated' * correlated}": functools.partial(
            _quadratic, condition=condition, batch_size=b, correlated=correlated
        )
        for condition in (10, 1000)
        for b in (1, 32)
        for correlated in (False, True)
    },
    **{
        f"logistic-{n}x{d}-{penalty:g}": functools.partial(_logistic, n=n, d=d, penalty=penalty)
        for n in (500, 20_000)
        for d in (20, 500)
        for penalty in (0.1, 0.001)
    },
    "ridge": _ridge,
    "equilibrium": _equilibrium,
    "elastic-net": _elastic_net,
    "digits": _digits,
}
