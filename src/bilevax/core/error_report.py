"""The error report of a hypergradient: a record of standard errors and bias, and the verdicts that follow from it.

``hypergradients`` makes it, ``estimate.error`` (in ``joint_report``, ``sid_report``, ``residual_error``). Its ``upper``
decides whether the estimate's code is OK, and its ``advice`` goes into ``estimate.message``.
"""

import functools
import importlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core import shown
from bilevax.core.config import check_real
from bilevax.core.errors import ParameterError
from bilevax.core.trees import PyTree, at_least_single, is_concrete, norm

_ADVICE = {
    "inner": "what is left of the inner equation: try more inner steps",
    "linear": "what is left of the linear system: try more linear steps",
    "both": "what is left of the two equations: try more steps of both solvers",
    "sampling": "the noise of the cross products and outer batches: try more cross batches, and more outer batches",
    "noise": "the noise of the minibatches: try more steps, or larger batches",
    "draws": "the noise of the draws: try more samples",
    "bias": "bias, since the start is not forgotten or the steps are too long: try more steps",
}

_HIDDEN = (
    "In some entries of w rounding hides the steps of the map, so that nothing is known of them: bring the columns of "
    "the data to one scale, or use float64."
)

_UNSEEN = (
    "In some entries of lam all draws agree, so that nothing is known of them: try more samples or, of masks, "
    "probabilities further from 0 and 1."
)

LEVEL = 0.95
"""Probability of an upper limit."""

NORMAL = 1.6448536269514722
"""The quantile of the standard normal distribution at LEVEL."""

RESOLVED = 0.5
"""Largest ``upper`` at which signs of entries get a confidence above 1/2."""

FEWEST = 4
"""Degrees of freedom of a standard error below which ``upper`` is infinite: too few for a verdict."""


class ErrorReport(NamedTuple):
    """How wrong an estimated hypergradient may be: what one run says of itself.

    Norms are Euclidean, over all m entries; a part that is not known is NaN.

    Attributes:
        value: the hypergradient, like lam.
        standard_error: of value, from the sampling of minibatches, per entry, like lam; of the truth that SID, after
            long chains, measures on every row.
        bias: estimated |E[value] - truth|, per entry, like lam; |value - truth| of such a run of SID, and where nothing
            was sampled.
        degrees_of_freedom: of the t distribution that goes with ``standard_error``; 0 where nothing is known.
        inner: the part of w in the root mean square error.
        linear: the part of v.
        sampling: the part of the cross and outer batches.
        contraction: estimated factor by which one step of the iteration shrinks an error.
        bound: of the norm of the whole error, from constants that were given; None where there are none.
        samples: rows read for this report beside those that the estimate's ``cost`` counts.
        order: power of the number of steps with which ``bias`` falls at least: 1 if it is of a start, 1/2 of noise.
        replicas: independent runs whose spread ``standard_error`` is; None: it is had from one run.
        draws: of a score function, whose spread ``standard_error`` is, infinite in entries that were the same in all;
            None: the noise is of minibatches.

    Examples:
        >>> import bilevax as bx
        >>> import jax.numpy as jnp
        >>> numbers = map(jnp.asarray, (50.0, 0.0, 0.0, 0.014, 0.9))  # degrees of freedom, three parts, contraction
        >>> report = bx.ErrorReport(jnp.array([3.0, 4.0]), jnp.full(2, 0.01), jnp.zeros(2), *numbers)
        >>> round(float(report.relative), 4), bool(report.relative < report.upper < 0.01)
        (0.0028, True)
        >>> low, high = report.interval(0.95)
        >>> [bool(x) for x in low < report.value]
        [True, True]
    """

    value: PyTree
    standard_error: PyTree
    bias: PyTree
    degrees_of_freedom: Array
    inner: Array
    linear: Array
    sampling: Array
    contraction: Array
    bound: Array | None = None
    samples: Array | float = 0.0
    order: Array | float = 1.0
    replicas: Array | None = None
    draws: Array | None = None

    @property
    def relative(self) -> Array:
        """sqrt(estimated mean square error) / ||value||, the mean square error being ||standard_error||^2 + ||bias||^2.

        Of what is known: a bias that is NaN counts as 0. 0 where the value and its error are 0.
        """
        return self._relative(jnp.hypot(_size(self.standard_error), self._bias_norm))

    @property
    def upper(self) -> Array:
        """The upper limit, at confidence .95, of the relative error ||value - truth|| / ||value||; OK means <= ``tol``.

        (sqrt(F) ||s|| + ||bias||) / ||value||, s the standard error and F the .95 quantile of the F distribution with
        m_eff = (sum s^2)^2 / sum s^4, the effective number of entries, and ``degrees_of_freedom``. Infinite where there
        is noise and it has fewer than 4 degrees of freedom.
        """
        noise = _size(self.standard_error)
        # 1 / m_eff = sum s^4 / (sum s^2)^2, s in units of ||s|| so that no fourth power overflows
        size = jnp.where((noise > 0) & jnp.isfinite(noise), noise, 1.0)
        shares = [jnp.sum((x.astype(size.dtype) / size) ** 4) for x in jax.tree.leaves(self.standard_error)]
        concentration = jnp.where(jnp.isfinite(noise), functools.reduce(jnp.add, shares), 1.0)
        m_eff = 1.0 / jnp.clip(concentration, jnp.finfo(size.dtype).tiny, 1.0)
        # sqrt(F_.95(m_eff, degrees of freedom)) ||s||
        stretched = jnp.sqrt(f_quantile(m_eff, jnp.asarray(self.degrees_of_freedom).astype(size.dtype))) * noise
        # what has come out as NaN is not known, and not 0
        stretched = jnp.where(jnp.isnan(noise), jnp.inf, stretched)
        return self._relative(jnp.where(noise == 0, 0.0, stretched) + self._bias_norm)

    def _relative(self, error: Array) -> Array:
        # 0 / 0 is 0: a hypergradient of zero without error is known; NaN stays NaN
        size = _size(self.value)
        return jnp.where(error > 0, error / size, jnp.where(jnp.isnan(error), error, jnp.zeros_like(size)))

    @property
    def _bias_norm(self) -> Array:
        return _size(jax.tree.map(lambda b: jnp.where(jnp.isnan(b), jnp.zeros_like(b), b), self.bias))

    @property
    def advice(self) -> str:
        """The largest known part of the error, and what makes it smaller; outside of compiled programs."""
        if np.isinf(float(self._bias_norm)) and float(self.contraction) == 1.0:
            return _HIDDEN
        if self.lacks_draws:
            return _UNSEEN
        if self.replicas is not None and self.lacks_replicas:
            return (
                f"Estimated relative error {float(self.relative):.2g}; {int(self.replicas)} replicas have "
                f"{int(self.degrees_of_freedom)} of the {FEWEST} degrees of freedom that an upper limit takes: "
                f"{FEWEST + 1} replicas would do."
            )
        known = {name: float(getattr(self, name)) for name in ("inner", "linear", "sampling")}
        known = {name: size for name, size in known.items() if size > 0}
        if "sampling" not in known:
            known["noise" if self.draws is None else "draws"] = float(norm(self.standard_error))
        if "inner" not in known and "linear" not in known:
            # ||bias||^2 = (parts of w and v)^2 + sampling^2 where full batches measured the distance as a whole
            rest = max(float(self._bias_norm) ** 2 - known.get("sampling", 0.0) ** 2, 0.0) ** 0.5
            known["both" if "sampling" in known else "bias"] = rest
        largest = max(known, key=known.__getitem__)
        upper = float(self.upper)
        known_limit = f"at most {upper:.2g} with confidence .95"
        limit = known_limit if np.isfinite(upper) else "too few degrees of freedom to say"
        return f"Estimated relative error {float(self.relative):.2g}, {limit}, most of it {_ADVICE[largest]}."

    @property
    def lacks_replicas(self) -> bool:
        """Whether replicas are too few for an upper limit, whatever their steps; outside of compiled programs."""
        return self.replicas is not None and float(self.degrees_of_freedom) < FEWEST and not self.upper < np.inf

    @property
    def lacks_draws(self) -> bool:
        """Whether some entry was the same in all draws of a score function; outside of compiled programs."""
        return self.draws is not None and bool(np.isinf(float(norm(self.standard_error))))

    def steps_needed(self, steps: int, tol: float) -> float:
        """How many steps, in place of these, would bring the upper limit down to tol; outside of compiled programs.

        With f times as many the noise falls as 1 / sqrt(f), bias as f^-``order``, and degrees of freedom that were too
        few grow as f. Infinite where 2^20 times as many would not do.
        """
        factor = 2.0 ** np.arange(0.0, 20.0, 0.1)
        degrees = jnp.maximum(jnp.asarray(self.degrees_of_freedom), FEWEST)
        unbiased = self._replace(bias=jax.tree.map(jnp.zeros_like, self.bias), degrees_of_freedom=degrees)
        bias = float(self._relative(self._bias_norm)) / factor ** float(self.order)
        # upper(f) = (upper without bias) / sqrt(f) + bias / f^order, for the first f of a grid that meets tol
        upper = float(unbiased.upper) / np.sqrt(factor) + bias
        exact = float(norm(self.standard_error)) == 0
        verdict = exact or np.maximum(float(self.degrees_of_freedom), 1.0) * factor >= FEWEST
        enough = factor[(upper <= tol) & verdict]
        return float(steps * enough[0]) if len(enough) else np.inf

    def interval(self, level: float = 0.95, bias: bool = True) -> tuple[PyTree, PyTree]:
        """Per entry, an interval for the truth, from the t distribution; outside of compiled programs.

        It is value +- c standard_error, where P(|Z + r| <= c) = level for a standard normal Z, and r is the ratio of
        ``bias`` to the standard error (Armstrong and Kolesar 2018, arXiv:1606.01200).

        Args:
            level: its probability, in ]0, 1[.
            bias: False for an interval for E[value]. Default True.

        Returns:
            (low, high), trees of numpy arrays like lam.

        Raises:
            ParameterError: within jit, vmap or grad, or of several reports at once.
        """
        level = check_real("level", level, low=0.0, high=1.0 - 1e-12, open_low=True)
        self._at_hand("interval")

        # Plain numpy: scipy has the quantiles, and an interval is asked for once, of a result that is at hand.
        def half_width(spread: Array, shift: Array) -> np.ndarray:
            known = np.nan_to_num(np.asarray(shift)) * float(bias)
            return _half_width(np.asarray(spread), known, level, float(self.degrees_of_freedom))

        half = jax.tree.map(half_width, self.standard_error, self.bias)
        with np.errstate(invalid="ignore"):  # of what is infinite itself
            low = jax.tree.map(lambda x, h: np.asarray(x) - h, self.value, half)
            return low, jax.tree.map(lambda x, h: np.asarray(x) + h, self.value, half)

    def _at_hand(self, name: str) -> None:
        """Refuse what numpy computes, of one report that is at hand, where there is none."""
        if not all(map(is_concrete, jax.tree.leaves(self))) or np.ndim(self.degrees_of_freedom):
            raise ParameterError(
                f"{name} is of one report, outside of jit, vmap and grad: return the report, and of a stack take "
                f"jax.tree.map(lambda x: x[i], report); `upper` and `relative` serve inside, too"
            )

    @property
    def sign_confidence(self) -> PyTree:
        """Per entry, the confidence that the truth has the sign of value, in [1/2, 1]; outside of compiled programs.

        P(T <= (|value| - bias) / standard_error) for Student's T; 1/2 where the upper limit of
        the relative error is above 1/2: what is hardly known as a whole is not known in its entries.
        """
        self._at_hand("sign_confidence")
        if not self.upper <= RESOLVED:
            return jax.tree.map(lambda x: np.full_like(np.asarray(x), 0.5), self.value)

        def confidence(x: Array, spread: Array, shift: Array) -> np.ndarray:
            return _confidence(np.asarray(x), np.asarray(spread), np.asarray(shift), float(self.degrees_of_freedom))

        return jax.tree.map(confidence, self.value, self.standard_error, self.bias)

    def shown_relative(self, axes: int) -> str:
        """``relative`` as text, of each of so many leading axes."""
        relative: Callable[[ErrorReport], Array] = functools.reduce(
            lambda fn, _: jax.vmap(fn), range(axes), lambda error: error.relative
        )
        return shown.number(relative(self))

    def __repr__(self) -> str:
        """In one line: sizes and shapes; of several reports, as from vmap, the range."""
        if not shown.is_plain(self.value, self.standard_error, self.bias, self.degrees_of_freedom):
            return shown.shapes("ErrorReport", value=self.value, standard_error=self.standard_error, bias=self.bias)
        axes = np.ndim(self.degrees_of_freedom)  # those of vmap: of one report it is a scalar
        spread, bias = shown.size(self.standard_error, axes), shown.size(self.bias, axes)
        return (
            f"ErrorReport(relative error {self.shown_relative(axes)}, |standard_error| {spread}, |bias| {bias}, "
            f"degrees {shown.number(self.degrees_of_freedom)}; value {shown.shape(self.value)})"
        )


def _size(tree: PyTree) -> Array:
    """The norm, in single precision at least: degrees of freedom are beyond the range of shorter types."""
    return at_least_single(norm(tree))


def as_others(sizes: PyTree) -> PyTree:
    """Errors per entry, like lam, each exact zero replaced by the root mean square of its leaf.

    Such a zero is that of an entry which no sample touched: it is not certain, but unseen. A leaf of zeros stays so,
    and no norm grows by more than sqrt(2).
    """
    # ||x|| / sqrt(size)
    return jax.tree.map(lambda x: jnp.where(x == 0, norm(x) / x.size**0.5, x), sizes)


def f_quantile(m: Array, degrees: Array) -> Array:
    """The .95 quantile of the F distribution with m >= 1 and ``degrees`` degrees of freedom, to 3 %; infinite below 4.

    (F^(1/3) (1 - b) - (1 - a)) / sqrt(b F^(2/3) + a) is nearly normal, a = 2 / (9 m) and b = 2 / (9 degrees)
    (Paulson 1942, from Wilson and Hilferty 1931).
    """
    a, b = 2.0 / (9.0 * m), 2.0 / (9.0 * jnp.maximum(degrees, FEWEST))
    # x = F^(1/3) solves (x (1 - b) - (1 - a))^2 = z^2 (b x^2 + a): square x^2 - 2 cross x + rest = 0, the larger root
    square, cross, rest = (1 - b) ** 2 - NORMAL**2 * b, (1 - a) * (1 - b), (1 - a) ** 2 - NORMAL**2 * a
    root = (cross + jnp.sqrt(cross**2 - square * rest)) / square
    return jnp.where(degrees >= FEWEST, root**3, jnp.inf)


def _half_width(standard_error: np.ndarray, shift: np.ndarray, level: float, degrees: float) -> np.ndarray:
    """Half the length of the interval, with the bias ``shift`` in units of the value."""
    special = importlib.import_module("scipy.special")
    normal = special.ndtri((1 + level) / 2)
    student = special.stdtrit(degrees, (1 + level) / 2) if degrees > 0 else np.inf
    # sigma: of the normal deviate whose .5 +- level / 2 quantiles are those of s times Student's T
    sigma = standard_error * (student / normal)
    ratio = np.divide(shift, sigma, out=np.full_like(sigma, np.inf), where=sigma > 0)
    # (Z + r)^2 is non-central chi^2 of one degree of freedom: c = sigma sqrt(its quantile)
    near = sigma * np.sqrt(special.chndtrix(level, 1.0, np.minimum(ratio, 6.0) ** 2))
    # at r >= 6 the other tail has no mass, and c = b + z_level sigma
    far = shift + special.ndtri(level) * sigma
    half: np.ndarray = np.where(ratio < 6.0, near, far).astype(standard_error.dtype)
    return half


def _confidence(value: np.ndarray, standard_error: np.ndarray, shift: np.ndarray, degrees: float) -> np.ndarray:
    special = importlib.import_module("scipy.special")
    room = np.maximum(np.abs(value) - np.nan_to_num(shift), 0.0)
    certain = np.where(room > 0, np.inf, 0.0).astype(value.dtype)
    ratio = np.divide(room, standard_error, out=certain, where=standard_error > 0)
    # P(T <= (|value| - bias) / s)
    confidence: np.ndarray = special.stdtr(max(degrees, 1.0), ratio).astype(value.dtype)
    return confidence
