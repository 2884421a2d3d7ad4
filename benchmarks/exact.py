"""Problems with exact hypergradients anywhere, and exact curvatures at the start: what a choice of steps is judged on.

They are those of ``bilevax.testing.problems`` and :func:`cleaning`, read in blocks of 32 rows of train and of val. A
loss with penalties exp(lam) tells their curvature, as docs/algorithms.md says that it should.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.flatten_util import ravel_pytree

import bilevax as bx
from benchmarks import cases, datasets
from bilevax.core.config import canonicalize, config
from bilevax.testing.closed_forms import Curvature
from bilevax.testing.judging import ROUND
from bilevax.testing.problems import NamedProblem, problem
from bilevax.testing.tools import float64
from bilevax.testing.truth import implicit

ROWS = 32

PENALTIES: dict[str, Callable[[Any], Any]] = {
    "one-row": lambda lam: jnp.repeat(jnp.exp(lam), 2),
    "correlated": lambda lam: jnp.exp(lam["penalty"]),
    "row-shares": lambda lam: jnp.exp(lam["penalty"]),
    "gamma": jnp.exp,
    "squared-hinge": jnp.exp,
    "nearly-separable": lambda lam: jnp.exp(lam["penalty"]),
    "same-rows": lambda lam: jnp.exp(lam["l1"]) / ROUND + jnp.exp(lam["l2"]),
    "quantile": jnp.exp,
}
"""The largest curvature of a penalty, by family: lam -> what broadcasts against w."""


@config
class Telling:
    """A loss that tells the curvature of its penalty."""

    loss: Callable[[Any, Any, Any], Array]
    penalty: Callable[[Any], Any]

    def __call__(self, w: Any, lam: Any, batch: Any) -> Array:
        """The loss."""
        return self.loss(w, lam, batch)

    def penalty_curvature(self, w: Any, lam: Any) -> Any:
        """Of every entry of w."""
        return self.penalty(lam)


class Asked(NamedTuple):
    """A problem, its sources, L, K, and the norm of the hypergradient at the start."""

    p: NamedProblem
    sources: tuple[bx.Arrays, bx.Arrays]
    L: float
    K: float
    start: float

    @property
    def begin(self) -> tuple[Any, Any]:
        """(w0, lam) in float32."""
        w0, lam = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (self.p.w0, self.p.lam))
        return w0, lam


def cleaning(draw: int) -> NamedProblem:
    """Weights sigmoid(lam_i) of 320 rows of digits 0, 1, 2, on 16 columns, of which half have a random label."""
    data, rng = datasets.digits(), np.random.default_rng([29, draw])
    rows = rng.permutation(np.flatnonzero(data.y < 3))[:480]
    X = data.X[rows].astype(np.float64).reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16)
    y, numbers = data.y[rows].astype(np.int32), np.arange(320, dtype=np.int32)
    noisy = np.where(rng.uniform(size=320) < cases.FLIPPED, rng.integers(0, 3, 320), y[:320]).astype(np.int32)
    # the Hessian of the log-sum-exp of the scores is at most 1/2
    L = float(0.5 * np.linalg.eigvalsh(X[:320].T @ X[:320] / 320)[-1]) + cases.DECAY
    made = bx.Problem(bx.GradientStep(cases.weighted_scores_loss, 1.0 / L), bx.MultinomialLogistic())
    train, val = (X[:320], noisy, numbers), (X[320:], y[320:])
    return NamedProblem("cleaning", made, train, val, np.zeros((3, 16)), np.zeros(320), ROWS, Curvature(L, cases.DECAY))


def asked(name: str) -> Asked:
    kind, draw = name.split()
    p = cleaning(int(draw)) if kind == "cleaning" else problem(kind, int(draw))
    if kind in PENALTIES:
        step = p.problem.inner_map
        p = replace(
            p, problem=bx.Problem(replace(step, loss=Telling(step.loss, PENALTIES[kind])), p.problem.outer_loss)
        )
    sources = [bx.Arrays(s.data, ROWS, "blocks", None) if s.rows > ROWS else s for s in p.sources(None)]
    lam, tree = ravel_pytree(jax.tree.map(np.asarray, p.lam))
    e = 1e-4 * np.eye(len(lam))
    points = np.concatenate([lam + e, lam - e, np.asarray(lam)[None]]).astype(np.float64)
    ahead, behind, start = np.split(hypergradients(p, jax.vmap(tree)(points)), [len(lam), 2 * len(lam)])
    hessian = (ahead - behind) / 2e-4  # f'' by central differences
    K = np.abs(np.linalg.eigvalsh((hessian + hessian.T) / 2)).max()
    return Asked(p, tuple(sources), largest_curvature(p), float(K), float(np.linalg.norm(start)))


def largest_curvature(p: NamedProblem) -> float:
    """L, over the blocks of train at the solution; of a map 1, so that rho is in units of the map."""
    if not p.problem.has_loss:
        return 1.0
    with float64():
        (w, lam), made = jax.tree.map(jnp.asarray, (p.solution()[0], p.lam)), p.problem
        x, tree = ravel_pytree(w)
        blocks = jax.tree.map(lambda a: a[: len(a) // ROWS * ROWS].reshape(-1, ROWS, *a.shape[1:]), p.train)
        hessian = jax.vmap(jax.hessian(lambda x, batch: made.inner_loss(tree(x), lam, batch)), (None, 0))
        return float(jnp.linalg.eigvalsh(hessian(x, blocks)).max())


def hypergradients(p: NamedProblem, lams: Any) -> np.ndarray:
    """Exact ones, [N, m], infinite where lam is not finite or beyond 50, or has no solution."""
    flat = np.concatenate([np.asarray(x).reshape(len(x), -1) for x in jax.tree.leaves(lams)], axis=1)
    sound = np.all(np.isfinite(flat) & (np.abs(flat) < 50), axis=1)
    with float64():
        args = jax.tree.map(lambda x: jnp.asarray(x, float), (canonicalize(p.problem), p.w0, lams))
        found = _hypergradients(*args, *jax.tree.map(jnp.asarray, (p.train, p.val)), jnp.asarray(sound))
    return np.nan_to_num(np.asarray(found), nan=np.inf)


@jax.jit
def _hypergradients(made: bx.Problem, w0: Any, lams: Any, train: Any, val: Any, sound: Array) -> Array:
    first, tree = ravel_pytree(w0)

    def at(x: Array, args: tuple[Any, Array]) -> tuple[Array, Array]:
        """From where the one before was solved."""
        lam, sound = args

        def residual(x: Array) -> Array:
            return ravel_pytree(made.inner_map(tree(x), lam, train))[0] - x

        def size(x: Array) -> Array:
            return jnp.linalg.norm(residual(x))

        def newton(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            x, before, k = state
            way = jnp.linalg.solve(jax.jacfwd(residual)(x), residual(x))

            def shorter() -> Array:
                points = x - 0.5 ** jnp.arange(12.0)[:, None] * way
                return points[jnp.nanargmin(jax.vmap(size)(points))]

            new = jax.lax.cond(size(x - way) < 0.5 * before, lambda: x - way, shorter)
            return new, size(new), k + 1

        def wanted(state: tuple[Array, Array, Array]) -> Array:
            return sound & (state[2] < 60) & (state[1] > 1e-11)

        x, left, _ = jax.lax.while_loop(wanted, newton, (x, size(x), jnp.int32(0)))
        solved, out = sound & (left < 1e-7), ravel_pytree(implicit(made, tree(x), lam, train, val)[2])[0]
        return jnp.where(solved, x, first), jnp.where(solved, out, jnp.inf)

    return jax.lax.scan(at, first, (lams, sound))[1]
