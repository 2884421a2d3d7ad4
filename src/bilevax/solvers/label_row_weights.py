"""A weight per row by hypergradients: textbook bilevel cleaning of labels, with a linear model of classes.

Inner problem, on the rows to doubt, and outer loss, of the m trusted rows, with l the multinomial log-loss:

    theta(lam) = argmin sum_i sigma(lam_i) l_i(theta) + alpha/2 |W|^2,    theta = (W, b),    sigma(x) = 1 / (1 + e^-x)
    E(lam) = 1/m sum_j l_j(theta(lam)),    dE/dlam_i = - sigma'(lam_i) <grad l_i, v>,    H v = grad E

One linear system serves all rows. There are as many hyperparameters as rows, and few trusted rows: what keeps them from
fitting these is a penalty that is not small (a small one lets v be long in directions that few rows bend), few steps,
and inner solutions that are tight: with loose ones the model, carried on from step to step, can fit the trusted rows
while its weights do not (Ivanova and Ablin 2023).

Sources: Franceschi et al. (2018), arXiv:1806.04910; Ren et al. (2018), arXiv:1803.09050; Pedregosa (2016),
arXiv:1602.02355 (the hypergradient).
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import expit

from bilevax.linalg.columns import Matrix
from bilevax.solvers.label_noise import normalised

LEAST_SHARE = 1.0 / 500.0
"""The least penalty, as a share of the sum of the squared norms of the rows: H is then well conditioned."""

FIRST_MOVE, STEPS, PATIENCE = 0.5, 30, 3
"""Root mean square of the first move of lam, whose step size stays; steps, at most; steps without a gain before the
end."""

TIGHT = 1e-8
"""Largest entry of the inner gradient by the number of rows."""

INNER_STEPS = 1000
"""Of L-BFGS, at most, from the minimiser before."""


class Linear(NamedTuple):
    """theta: weights [p, C] and bias [C]."""

    W: np.ndarray
    b: np.ndarray

    def flat(self) -> np.ndarray:
        """As a vector."""
        return np.concatenate([self.W.ravel(), self.b])

    @staticmethod
    def of(flat: np.ndarray, C: int) -> "Linear":
        """From a vector."""
        return Linear(flat[:-C].reshape(-1, C), flat[-C:])

    def scores(self, X: Matrix) -> np.ndarray:
        """X W + b, [n, C], in Fortran's order."""
        out: np.ndarray = np.asarray(self.W.T @ X.T).T + self.b
        return out

    def log_p(self, X: Matrix) -> np.ndarray:
        """Log-probabilities of the classes, [n, C]."""
        return normalised(self.scores(X))[0]


class Rows:
    """Weighted rows under a penalty.

    Args:
        X: features [n, p], dense or CSR.
        y: classes [n], from 0.
        classes: C.
        penalty: alpha.
    """

    def __init__(self, X: Matrix, y: np.ndarray, classes: int, penalty: float = 0.0) -> None:
        self.X, self.y, self.C, self.penalty = X, y, classes, penalty

    def loss(self, at: Linear, weight: np.ndarray) -> tuple[float, Linear]:
        """sum_i weight_i l_i + alpha/2 |W|^2 and its gradient."""
        log_p, each = at.log_p(self.X), np.arange(len(self.y))
        value = -float(weight @ log_p[each, self.y]) + 0.5 * self.penalty * float(np.sum(at.W**2))
        # dl_i / ds_i = p_i - e_{y_i}
        slope = np.exp(log_p)
        slope[each, self.y] -= 1.0
        return value, self._back(slope * weight[:, None], at.W)

    def _back(self, slope: np.ndarray, W: np.ndarray) -> Linear:
        return Linear(self.X.T @ slope + self.penalty * W, slope.sum(axis=0))

    def fit(self, start: Linear, weight: np.ndarray, tolerance: float = TIGHT) -> Linear:
        """The minimiser; the tolerance is :data:`TIGHT` by default."""
        size = len(self.y)

        def scaled(flat: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self.loss(Linear.of(flat, self.C), weight)
            return value / size, gradient.flat() / size

        options = {"maxiter": INNER_STEPS, "maxfun": 2 * INNER_STEPS, "ftol": 0.0, "gtol": tolerance}
        return Linear.of(minimize(scaled, start.flat(), jac=True, method="L-BFGS-B", options=options).x, self.C)

    def zero(self) -> Linear:
        """Where to start."""
        return Linear(np.zeros((self.X.shape[1], self.C)), np.zeros(self.C))

    def adjoint(self, at: Linear, weight: np.ndarray, right: Linear) -> Linear:
        """v with H v = right, by conjugate gradients: H is singular along a shift of b, in which right has nothing."""
        p = np.exp(at.log_p(self.X))

        def product(flat: np.ndarray) -> np.ndarray:
            d = Linear.of(flat, self.C)
            ds = d.scores(self.X)
            # H d = X' diag(weight) (diag(p) - p p') ds + alpha d
            return self._back(p * (ds - np.sum(p * ds, axis=1, keepdims=True)) * weight[:, None], d.W).flat()

        size = right.flat().size
        H = LinearOperator((size, size), matvec=product, dtype=float)
        return Linear.of(cg(H, right.flat(), rtol=1e-8, maxiter=10 * size)[0], self.C)

    def along(self, at: Linear, v: Linear) -> np.ndarray:
        """<grad l_i, v> of each row, [n]."""
        ds = v.scores(self.X)
        # <p_i - e_y, ds_i>
        out: np.ndarray = np.sum(np.exp(at.log_p(self.X)) * ds, axis=1) - ds[np.arange(len(self.y)), self.y]
        return out


def hypergradient(rows: Rows, trusted: Rows, at: Linear, lam: np.ndarray) -> np.ndarray:
    """dE/dlam at the minimiser of weights sigma(lam), [n]."""
    weight = expit(lam)
    v = rows.adjoint(at, weight, mean_loss(trusted, at)[1])
    # dE / dlam_i = - w_i (1 - w_i) <grad l_i, v>, H v = grad E
    out: np.ndarray = -weight * (1.0 - weight) * rows.along(at, v)
    return out


def mean_loss(rows: Rows, at: Linear) -> tuple[float, Linear]:
    """E and its gradient in theta."""
    n = len(rows.y)
    return rows.loss(at, np.full(n, 1.0 / n))


def effective_sample_size(weight: np.ndarray) -> float:
    """(sum w)^2 / sum w^2, from 1 to n."""
    return float(weight.sum() ** 2 / np.sum(weight**2))


class Descent:
    """Gradient descent on lam from equal weights, the minimiser carried along.

    Args:
        rows: to weigh.
        trusted: whose mean loss descends.
        start: of the minimiser.
    """

    def __init__(self, rows: Rows, trusted: Rows, start: Linear) -> None:
        self.rows, self.trusted = rows, trusted
        self.lam = np.zeros(len(rows.y))
        self.at = rows.fit(start, expit(self.lam))
        self._step_size: float | None = None

    def step(self) -> None:
        """lam <- lam - s dE/dlam, and the minimiser there."""
        slope = hypergradient(self.rows, self.trusted, self.at, self.lam)
        if self._step_size is None:
            self._step_size = FIRST_MOVE / max(float(np.sqrt(np.mean(slope**2))), 1e-100)
        self.lam = self.lam - self._step_size * slope
        self.at = self.rows.fit(self.at, expit(self.lam))


class Weighed(NamedTuple):
    """What the weights came to.

    Attributes:
        weight: of the rows, [n].
        at: the minimiser at these weights, solved anew from zero.
        penalty: alpha.
        steps: of lam.
        equal: E at equal weights.
        loss: E at the end of the descent.
        retrained: E of the minimiser that is solved anew.
    """

    weight: np.ndarray
    at: Linear
    penalty: float
    steps: int
    equal: float
    loss: float
    retrained: float

    @property
    def retrain_gap(self) -> float:
        """E anew less E of the run: above 0 where a run has a better model than its weights are worth."""
        return self.retrained - self.loss

    @property
    def effective_sample_size(self) -> float:
        """(sum w)^2 / sum w^2: so many equal weights leave as much to chance in a mean (Kish 1965)."""
        return effective_sample_size(self.weight)


def weigh(rows: Rows, trusted: Rows, fold: np.ndarray) -> Weighed:
    """Weights of least held-out loss.

    The penalty is that of least E at equal weights, and at least :data:`LEAST_SHARE`. How many steps: K descents, each
    of the loss of the trusted rows without one fold, are judged on that fold; a last one on all takes as many.

    Args:
        rows: to weigh.
        trusted: to judge.
        fold: of the trusted rows, [m], from 0 to K - 1.
    """
    rows, start = _penalised(rows, trusted)
    steps = _steps(rows, trusted, fold, start)
    run = Descent(rows, trusted, start)
    equal = mean_loss(trusted, run.at)[0]
    for _ in range(steps):
        run.step()
    weight = expit(run.lam)
    anew = rows.fit(rows.zero(), weight)
    loss, retrained = (mean_loss(trusted, at)[0] for at in (run.at, anew))
    return Weighed(weight, anew, rows.penalty, steps, equal, loss, retrained)


def _penalised(rows: Rows, trusted: Rows) -> tuple[Rows, Linear]:
    """The rows under the penalty, and the minimiser at equal weights."""
    X, at, equal = rows.X, rows.zero(), np.full(len(rows.y), 0.5)
    squares = X.multiply(X).sum() if hasattr(X, "multiply") else np.einsum("ij,ij->", X, X)
    least = float(np.log(max(LEAST_SHARE * float(squares), 1e-12)))

    def of(log_penalty: float) -> Rows:
        return Rows(X, rows.y, rows.C, float(np.exp(log_penalty)))

    def outer(log_penalty: float) -> float:
        return mean_loss(trusted, of(log_penalty).fit(at, equal, tolerance=1e-5))[0]

    found = minimize_scalar(outer, bounds=(least, least + 7.0), method="bounded", options={"xatol": 0.5})
    under = of(float(found.x) if found.fun < outer(least) else least)
    return under, under.fit(at, equal)


def _steps(rows: Rows, trusted: Rows, fold: np.ndarray, start: Linear) -> int:
    """Steps of least held-out loss of K descents side by side."""
    parts = [
        [Rows(trusted.X[mask], trusted.y[mask], trusted.C) for mask in (fold != k, fold == k)] for k in np.unique(fold)
    ]
    runs = [(Descent(rows, others, start), held) for others, held in parts]
    losses: list[float] = []
    while len(losses) <= STEPS and len(losses) - np.argmin(losses or [0.0]) <= PATIENCE:
        if losses:
            for run, _ in runs:
                run.step()
        losses.append(sum(mean_loss(held, run.at)[0] * len(held.y) for run, held in runs))
    return int(np.argmin(losses))
