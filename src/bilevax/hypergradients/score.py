"""The score-function estimator: lam says how likely each of several inner problems is; values alone are compared."""

from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from bilevax.core.config import check_count, check_fields, config, positive, set_frozen, static
from bilevax.core.error_report import as_others
from bilevax.core.errors import ParameterError
from bilevax.core.given import require_inner_solver
from bilevax.core.instance import Instance
from bilevax.core.keys import stream
from bilevax.core.protocols import BilevelProblem, InnerSolver
from bilevax.core.records import (
    SNAPSHOTS,
    Cost,
    Count,
    ErrorReport,
    Estimate,
    Failure,
    Solution,
    first_failure,
    nonfinite_code,
)
from bilevax.core.trees import PyTree, add, norm, row
from bilevax.data import refuse_keys
from bilevax.hypergradients.once import RunsOnce
from bilevax.hypergradients.residual_error import SAFETY
from bilevax.hypergradients.sid import Segment, solve_inner
from bilevax.solvers import Given


class Distribution(Protocol):
    """A distribution of vectors x, [m], that has lam, all of its entries as one vector [m], for its parameters."""

    def draw(self, key: Array, lam: Array, samples: int) -> Array:
        """So many independent x, [C, m], in the dtype of lam."""

    def score(self, lam: Array, x: Array) -> Array:
        """The gradient in lam of log p(x; lam) of each, [C, m]."""


@config
class Bernoulli:
    """Each entry of x is 1 with the probability in lam, else 0; lam in [0, 1], as by :class:`~bilevax.CappedSimplex`.

    An entry that is 0 or 1 has the score 0: what is never drawn otherwise shows no difference.

    Examples:
        >>> import bilevax as bx
        >>> bx.ScoreFunction(bx.LBFGS(), distribution=bx.Bernoulli()).samples  # lam: probabilities of a mask
        5
    """

    def draw(self, key: Array, lam: Array, samples: int) -> Array:
        """Masks, [C, m]."""
        # in float32 always: the same draws in any precision
        uniform = jax.random.uniform(key, (samples, *lam.shape), jnp.float32).astype(lam.dtype)
        return (uniform < lam[None]).astype(lam.dtype)

    def score(self, lam: Array, x: Array) -> Array:
        """(x - lam) / (lam (1 - lam)), [C, m]."""
        # d log p / d lam = x / lam - (1 - x) / (1 - lam); an entry that is sure, lam 0 or 1, has no noise to learn from
        variance = lam * (1.0 - lam)
        return jnp.where(variance > 0, x - lam[None], 0.0) / jnp.where(variance > 0, variance, 1.0)[None]


@config
class Gaussian:
    """x is lam with noise of standard deviation sigma in each entry: the gradient is that of f smoothed (ES, PZOBO).

    Args:
        sigma: positive. The bias is of order sigma^2, and 0 where f is quadratic.

    Examples:
        >>> import bilevax as bx
        >>> bx.Gaussian(sigma=0.1)
        Gaussian(sigma=0.1)
    """

    sigma: float

    def __post_init__(self) -> None:
        check_fields(self, sigma=positive)

    def draw(self, key: Array, lam: Array, samples: int) -> Array:
        """Lam + sigma noise, [C, m]."""
        noise = jax.random.normal(key, (samples, *lam.shape), jnp.float32).astype(lam.dtype)
        return lam[None] + jnp.asarray(self.sigma).astype(lam.dtype) * noise

    def score(self, lam: Array, x: Array) -> Array:
        """(x - lam) / sigma^2, [C, m]."""
        return (x - lam[None]) / jnp.asarray(self.sigma).astype(lam.dtype) ** 2


@config
class ScoreFunction(RunsOnce):
    """The gradient of lam -> E_x L(x), where x ~ p(.; lam) is what both losses see in the place of lam.

        L_c   = E(w(x_c), x_c),   x_c ~ p(.; lam),   c = 1 ... C        w(x) solves the inner problem at x
        value = 1 / (C - 1) sum_c (L_c - mean L) grad_lam log p(x_c; lam)

    It takes values of the outer loss only, and no derivative of w(x) or of E: x may be a mask, and the inner problem
    anything that ``inner`` solves. Each draw has minibatches of its own. Subtracting the mean is the leave-one-out
    baseline: unbiased, but for what is left of the inner problems. Its noise grows with the number of entries of lam.

    ``error`` is from the C terms, with C - 1 degrees of freedom, and infinite in entries whose score is the same in all
    draws, as of a mask where it is 0 in all of them, or where lam is 0 or 1, and in all if all losses are the same;
    ``bias`` is how far the value moves in the second half of the steps of ``inner``, on every row in the moves that are
    left. ``w`` and ``outer_value`` are means over the draws. Cost: C times that of ``inner``, at once, and 2 C values
    of the outer loss on every row, counted as outer gradients. Source: Williams (1992); for coresets: Zhou, Pi, Zhang,
    Lin, Zhang (2022), arXiv:2301.09880.

    Args:
        inner: :class:`~bilevax.FixedPoint`, :class:`~bilevax.LBFGS`, or :class:`~bilevax.Given`.
        samples: C, a count of at least 2; a changed one compiles anew. Default 5.
        distribution: :class:`~bilevax.Bernoulli` (default), :class:`~bilevax.Gaussian`, or any object with ``draw(key,
            lam, samples)`` and ``score(lam, x)``, of vectors.

    Examples:
        >>> import bilevax as bx
        >>> bx.ScoreFunction(bx.LBFGS(), samples=20, distribution=bx.Gaussian(0.1))
        ScoreFunction(inner=LBFGS(tol=1e-06, max_steps=500, memory=None), samples=20, distribution=Gaussian(sigma=0.1))
    """

    inner: InnerSolver | Given
    samples: int = static(5)
    distribution: Distribution = Bernoulli()

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Given):
            require_inner_solver("inner", self.inner)
        if not all(hasattr(self.distribution, name) for name in ("draw", "score")):
            raise ParameterError(f"distribution must be one such as bx.Bernoulli(), got {self.distribution!r}")
        set_frozen(self, samples=check_count("samples", self.samples, low=2))

    def check(self, problem: BilevelProblem) -> None:
        """Refuse a problem that lacks what the solver needs."""
        if not isinstance(self.inner, Given) and not self.inner.stochastic and not problem.has_loss:
            raise ParameterError(
                f"{type(self.inner).__name__} needs an inner loss without a prox, and the inner map has none; "
                "use bx.GradientStep(loss), or inner=bx.FixedPoint(steps=...)"
            )

    def check_lam(self, lam: PyTree) -> None:
        """Refuse what are no probabilities, of a lam that is concrete."""
        entries = ravel_pytree(lam)[0]
        if isinstance(self.distribution, Bernoulli) and not bool(jnp.all((entries >= 0) & (entries <= 1))):
            raise ParameterError(
                "lam of bx.Bernoulli must be probabilities, in [0, 1]; project onto these, as by bx.Box(0.0, 1.0)"
            )

    def deterministic(self, instance: Instance) -> bool:
        """False: x is drawn."""
        return False

    def estimate(
        self, instance: Instance, w0: PyTree, *, key: Array, outer_step: Array | int = 0, v0: PyTree | None = None
    ) -> Estimate:
        """One gradient; pure and traceable. Draws x from its stream outer, minibatches from inner; v0 plays no part."""
        train, val, number = instance.train, instance.val, self.samples
        whole = isinstance(self.inner, Given) or not self.inner.stochastic
        refuse_keys("ScoreFunction", "pass a source without keys", val=val, **({"train": train} if whole else {}))
        lam, unravel = ravel_pytree(instance.lam)
        x = self.distribution.draw(stream(key, "outer"), lam, number)

        def one(x: Array, key: Array) -> tuple[Solution, Array, Array]:
            at = instance._replace(lam=unravel(x))
            solved = solve_inner(self.inner, at, w0, key=key, segment=Segment(outer_step))
            # L_c, and what it was or will be
            loss, other = at.mean_outer_loss(solved.value), at.mean_outer_loss(_other(solved))
            return solved._replace(snapshots=None, error=None), loss, other

        solved, losses, others = jax.vmap(one)(x, jax.random.split(stream(key, "inner"), number))
        score = self.distribution.score(lam, x)

        def terms(losses: Array) -> Array:
            # C / (C - 1) (L_c - mean L) score_c
            return number / (number - 1) * (losses - jnp.mean(losses)).astype(score.dtype)[:, None] * score

        each = terms(losses)
        value, change = jnp.mean(each, axis=0), jnp.mean(terms(others) - each, axis=0)
        worst = row(solved, jnp.argmax(solved.code))
        code, failure = first_failure(
            (worst.code, Failure.of("inner", worst.last_step)),
            (nonfinite_code((losses, value)), Failure.of("outer")),
        )
        rows = train.rows if whole else train.rows_per_batch
        calls, checks = (jnp.sum(jnp.asarray(x, jnp.int32)) for x in (solved.calls, solved.diagnostic_products))
        cost = Cost(
            gradients=Count(calls, rows),
            outer_gradients=Count(jnp.int32(2 * number), val.rows),
            measuring=Count(checks, rows),
        )
        # cov(L, score) of what is the same in all draws is 0 whatever the truth
        unseen = jnp.all(score == score[:1], axis=0) | jnp.all(losses == losses[0])
        spread = jnp.where(unseen, jnp.inf, jnp.std(each, axis=0, ddof=1) / number**0.5)
        error = self._error(*map(unravel, (value, spread, as_others(SAFETY * jnp.abs(change)))))
        w = jax.tree.map(lambda x: jnp.mean(x, axis=0), solved.value)
        return Estimate(unravel(value), jnp.mean(losses), w, None, code, cost, failure, error)

    def _error(self, value: PyTree, standard_error: PyTree, bias: PyTree) -> ErrorReport:
        size, unknown = norm(bias), jnp.full_like(norm(value), jnp.nan)
        parts, draws = (size, jnp.zeros_like(size), unknown, unknown), jnp.int32(self.samples)
        return ErrorReport(value, standard_error, bias, draws - 1, *parts, draws=draws)


def _other(solved: Solution) -> PyTree:
    """Where w was after half of its steps, or where its moves lead: as far from w as w may be from the solution."""
    if solved.snapshots is not None:
        return row(solved.snapshots.points, SNAPSHOTS - 3)
    return solved.value if solved.error is None or solved.error.move is None else add(solved.value, solved.error.move)
