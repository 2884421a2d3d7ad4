"""L-BFGS on the full batch, for inner problems that have a loss."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import config, count, real, set_fields
from bilevax.core.promotion import usual_promotion
from bilevax.core.records import Solved
from bilevax.core.trees import PyTree, all_finite, norm, where


@config
class LBFGS:
    """Limited-memory BFGS with a zoom line search, on the inner loss of every row of train.

    Assumes an inner loss (:class:`~bilevax.GradientStep`); stops at ||grad|| <= tol (1 + ||w||), with BUDGET after
    ``max_steps``. Cost: about one full gradient a step, every line search trial counted. Source: Liu and Nocedal
    (1989); the implementation is optax's.

    Args:
        tol: gradient norm against 1 + ||w||, positive. Default 1e-6.
        max_steps: a count of at least 1. Default 500.
    """

    stochastic: ClassVar[bool] = False

    tol: float = 1e-6
    max_steps: int = 500

    def __post_init__(self) -> None:
        tol = real("tol", self.tol, low=0.0, open_low=True)
        set_fields(self, tol=tol, max_steps=count("max_steps", self.max_steps, low=1))

    def solve(self, loss: Callable[..., Array], w0: PyTree, lam: PyTree, batch: PyTree) -> Solved:
        """Minimise w -> loss(w, lam, batch) from w0."""
        method = optax.lbfgs(memory_size=10)

        def objective(w: PyTree) -> Array:
            return loss(w, lam, batch)

        value_and_grad = optax.value_and_grad_from_state(objective)

        def small(w: PyTree, gradient: PyTree) -> Array:
            size = norm(gradient)
            return size <= jnp.asarray(self.tol).astype(size.dtype) * (1.0 + norm(w))

        def going(carry: tuple[PyTree, Any, Array, Array, Array]) -> Array:
            _, _, steps, _, done = carry
            return ~done & (steps < self.max_steps)

        def step(carry: tuple[PyTree, Any, Array, Array, Array]) -> tuple[PyTree, Any, Array, Array, Array]:
            w, state, steps, calls, _ = carry
            value, gradient = value_and_grad(w, state=state)
            with usual_promotion():
                updates, new_state = method.update(gradient, state, w, value=value, grad=gradient, value_fn=objective)
            new_state = jax.tree.map(lambda old, x: x.astype(old.dtype), state, new_state)
            done = small(w, gradient)
            new = where(done, w, optax.apply_updates(w, updates))
            trials = new_state[-1].info.num_linesearch_steps.astype(jnp.int32)
            return new, new_state, steps + 1, calls + jnp.where(done, 0, trials), done

        with usual_promotion():
            state = jax.tree.map(jnp.asarray, method.init(w0))
        start = (w0, state, jnp.int32(0), jnp.int32(1), jnp.asarray(False))
        w, _, _, calls, done = jax.lax.while_loop(going, step, start)
        code = jnp.where(done, jnp.int32(Code.OK), jnp.int32(Code.BUDGET))
        return Solved(w, jnp.where(all_finite(w), code, jnp.int32(Code.NONFINITE)), calls)
