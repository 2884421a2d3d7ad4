"""How wrong an estimate may be, as a record."""

import importlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.config import real
from bilevax.core.trees import PyTree, norm

_ADVICE = {
    "inner": "what is left of the inner equation: try more inner steps",
    "linear": "what is left of the linear system: try more linear steps",
    "sampling": "the noise of the cross products and outer batches: try more cross batches, and more outer batches",
    "noise": "the noise of the minibatches: try more steps, or larger batches",
    "bias": "bias, since the start is not forgotten or the steps are too long: try more steps",
}


class Error(NamedTuple):
    """How wrong an estimated hypergradient may be: what one run says of itself.

    Norms are Euclidean, over all m entries; a part that is not known is NaN.

    Attributes:
        value: the hypergradient, like lam.
        standard_error: of the sampling of minibatches, per entry, like lam.
        bias: estimated norm of E[value] - truth.
        degrees: degrees of freedom of the t distribution that goes with ``standard_error``; 0 where nothing is known.
        inner: the part of w in the root mean square error.
        linear: the part of v.
        sampling: the part of the cross and outer batches.
        contraction: estimated factor by which one step of the iteration shrinks an error.
        bound: of the norm of the whole error, from constants that were given; None where there are none.
        visits: rows read for this report beside those that the estimate's ``cost`` counts.
    """

    value: PyTree
    standard_error: PyTree
    bias: Array
    degrees: Array
    inner: Array
    linear: Array
    sampling: Array
    contraction: Array
    bound: Array | None = None
    visits: Array | float = 0.0

    @property
    def relative(self) -> Array:
        """sqrt(estimated mean square error) / |value|, the mean square error being |standard_error|^2 + bias^2.

        Of what is known: a bias that is NaN counts as 0. 0 where the value and its error are 0.
        """
        error = jnp.hypot(norm(self.standard_error), jnp.where(jnp.isnan(self.bias), 0.0, self.bias))
        size = norm(self.value)
        return jnp.where(error > 0, error / size, jnp.zeros_like(size))

    @property
    def advice(self) -> str:
        """The largest known part of the error, and what makes it smaller; outside of compiled programs."""
        known = {name: float(getattr(self, name)) for name in ("inner", "linear", "sampling")}
        known = {name: size for name, size in known.items() if size > 0}
        if "sampling" not in known:
            known["noise"] = float(norm(self.standard_error))
        if "inner" not in known and "linear" not in known:
            known["bias"] = float(jnp.nan_to_num(self.bias))
        largest = max(known, key=known.__getitem__)
        return f"Estimated relative error {float(self.relative):.2g}, most of it {_ADVICE[largest]}."

    def interval(self, level: float = 0.95, bias: bool = False) -> tuple[PyTree, PyTree]:
        """Per entry, an interval for E[value], from the t distribution; outside of compiled programs.

        Args:
            level: its probability, in ]0, 1[.
            bias: True for an interval for the truth, value +- c standard_error, where P(|Z + r| <= c) = level for a
                standard normal Z, and r is the ratio of ``bias`` to the standard error (Armstrong and Kolesar 2018,
                arXiv:1606.01200).

        Returns:
            (low, high), trees of numpy arrays like lam.
        """
        level = real("level", level, low=0.0, high=1.0 - 1e-12, open_low=True)
        shift = float(self.bias) if bias else 0.0
        half = jax.tree.map(
            lambda e: _half_width(np.asarray(e), shift, level, float(self.degrees)), self.standard_error
        )
        low = jax.tree.map(lambda x, h: np.asarray(x) - h, self.value, half)
        return low, jax.tree.map(lambda x, h: np.asarray(x) + h, self.value, half)

    @property
    def sign_confidence(self) -> PyTree:
        """Per entry, the confidence that E[value] has the sign of value, in [1/2, 1]; outside of compiled programs."""
        return jax.tree.map(lambda x, e: _confidence(x, e, float(self.degrees)), self.value, self.standard_error)


def _half_width(standard_error: np.ndarray, shift: float, level: float, degrees: float) -> np.ndarray:
    """Half the length of the interval, with the bias ``shift`` in units of the value."""
    special = importlib.import_module("scipy.special")
    normal = special.ndtri((1 + level) / 2)
    student = special.stdtrit(degrees, (1 + level) / 2) if degrees > 0 else np.inf
    sigma = standard_error * (student / normal)  # a normal deviate with these tails at the level
    ratio = np.divide(shift, sigma, out=np.full_like(sigma, np.inf), where=sigma > 0)
    near = sigma * np.sqrt(special.chndtrix(level, 1.0, np.minimum(ratio, 6.0) ** 2))
    far = shift + special.ndtri(level) * sigma  # the other tail has no mass
    return np.where(ratio < 6.0, near, far).astype(standard_error.dtype)


def _confidence(value: Array, standard_error: Array, degrees: float) -> np.ndarray:
    special = importlib.import_module("scipy.special")
    size, spread = np.abs(np.asarray(value)), np.asarray(standard_error)
    certain = np.where(size > 0, np.inf, 0.0).astype(size.dtype)
    ratio = np.divide(size, spread, out=certain, where=spread > 0)
    return special.stdtr(degrees, ratio).astype(size.dtype) if degrees > 0 else np.full_like(size, 0.5)
