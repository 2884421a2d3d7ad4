"""In which coordinates hyperparameters of a restricted range move: lam = T(x), by the name of T."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logit

from bilevax.core.config import check_choice, config
from bilevax.core.errors import ParameterError
from bilevax.core.trees import PyTree, is_concrete, leaf_name

# lam = T(x), x = T^-1(lam), and where lam may lie
TRANSFORMS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array], str]] = {
    "identity": (lambda x: x, lambda lam: lam, "any number"),
    "exp": (jnp.exp, jnp.log, "positive"),
    "sigmoid": (jax.nn.sigmoid, logit, "inside ]0, 1["),
    "softmax": (lambda x: jax.nn.softmax(x, axis=None), jnp.log, "positive, with a sum of 1"),
}
"""T, its inverse, and the range of T."""


@config
class Transform:
    """T of a branch of lam, by name."""

    name: str

    def __post_init__(self) -> None:
        check_choice("transform", self.name, tuple(TRANSFORMS))

    def forward(self, x: PyTree) -> PyTree:
        """Lam = T(x), leaf by leaf."""
        return jax.tree.map(TRANSFORMS[self.name][0], x)

    def inverse(self, lam: PyTree) -> PyTree:
        """An x of which lam is the image."""
        return jax.tree.map(TRANSFORMS[self.name][1], lam)

    def check(self, lam: PyTree) -> None:
        """Refuse a leaf outside of the range of T.

        Raises:
            ParameterError: naming the first.
        """
        for path, leaf in jax.tree_util.tree_leaves_with_path(lam):
            if is_concrete(leaf) and not self._within(np.asarray(leaf, float)):
                where = leaf_name("lam", path)
                raise ParameterError(f'{where} with transform "{self.name}" must be {TRANSFORMS[self.name][2]}')

    def _within(self, lam: Array | np.ndarray) -> bool:
        inside = {"identity": True, "exp": np.all(lam > 0), "sigmoid": np.all((lam > 0) & (lam < 1))}
        inside["softmax"] = np.all(lam > 0) and abs(np.sum(lam) - 1) < 1e-3
        return bool(inside[self.name])
