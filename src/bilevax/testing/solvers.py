"""What every solver, of the inner problem or of the linear system, must satisfy."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import canonicalize
from bilevax.core.records import Solution
from bilevax.core.trees import PyTree, zeros_like
from bilevax.data import Arrays
from bilevax.hypergradients import hypergradient
from bilevax.solvers import Exact, Given
from bilevax.testing.closed_forms.small import B, D, N, Tally, Watched, flat, nest, nested, quadratic, ridge, watched
from bilevax.testing.tools import (
    ROUNDING,
    Counter,
    configuration,
    float64,
    like,
    methods,
    rebuilt,
    relative,
    require,
    same_bits,
    title,
    unbiased,
)

KEYS = 1000
"""Independent runs from which a bias is judged."""

Run = Callable[..., Solution]
"""(solver, tree, start, number) -> Solved: a right-hand side or lam, a start, and a number that may be NaN."""


class System(NamedTuple):
    """(I - M^T) v = g with rows whose mean it is; self-adjoint in the metric, if ``symmetric``."""

    rows: np.ndarray
    g: np.ndarray
    metric: np.ndarray
    symmetric: bool

    @property
    def v(self) -> np.ndarray:
        """The solution."""
        return np.linalg.solve(self.rows.mean(0), self.g)


def _system(*, symmetric: bool) -> System:
    rng = np.random.default_rng(5)
    noise = rng.normal(size=(N, D, D))
    noise = 0.2 * (noise - noise.mean(0))
    metric = np.linspace(0.5, 1.0, D)
    if symmetric:
        root = np.linalg.qr(rng.normal(size=(D, D)))[0]
        A = (root * np.linspace(0.4, 1.2, D)) @ root.T
        rows = (A + noise + noise.transpose(0, 2, 1)) * metric  # H diag(s)
    else:
        M = rng.normal(size=(D, D))
        rows = np.eye(D) - 0.6 * M / np.linalg.norm(M, 2) + noise
    return System(rows, rng.normal(size=D), metric, symmetric)


def _solve(
    solver: Any, rows: Any, g: PyTree, start: PyTree | None, number: Any = 0.0, *,
    key: Any = None, batch_size: int | None = None, metric: Any = None, note: Callable[[], None] | None = None,
) -> Solution:  # fmt: skip
    """The linear solver on (mean of rows) v = g; trees of :func:`nest` are solved as such."""
    tree = not isinstance(g, jax.Array)
    into, out = (nest, flat) if tree else (lambda x: x, lambda x: x)

    def product(A: Any, v: PyTree) -> PyTree:
        if note is not None:
            jax.debug.callback(note)
        return into(A @ out(v) + jnp.asarray(number).astype(rows.dtype))

    if not solver.stochastic:
        return solver.solve(partial(product, jnp.mean(rows, axis=0)), g, into(metric), start)

    def image(v: PyTree, args: PyTree, batch: Any) -> PyTree:
        return jax.tree.map(lambda x, y, z: x - y + z, v, product(jnp.mean(batch, axis=0), v), args)

    begin = zeros_like(g) if start is None else start
    return solver.solve(image, begin, g, Arrays(rows, batch_size), key=jax.random.key(0) if key is None else key)


def check_linear_solver(solver: Any, *, rtol: float = 1e-6, is_unbiased: bool = True) -> None:
    """Check a solver of (I - d1Phi^T) v = g, such as ``bilevax.CG()`` or ``bilevax.FixedPoint(100)``.

    A stochastic one has ``solve(image, start, args, source, *, key, s)``, others ``solve(matvec, g, metric, start)``,
    and the class says which in ``stochastic``. It must converge, on every row, on small systems whose iteration
    contracts by 0.8 or better. In order: it is a configuration; its solutions are right, from any start, for
    systems that are not symmetric too unless the class says ``needs_symmetry``; zero, nested trees, float32, jit, vmap
    and rebuilding; its calls are counted; NaN and a singular system are said; its randomness is the key's.

    Args:
        solver: what is checked.
        rtol: relative error it may have.
        is_unbiased: for a stochastic one, whether its mean is right, once converged.

    Raises:
        AssertionError: says the first contract that is violated.

    Examples:
        >>> import bilevax as bx
        >>> check_linear_solver(bx.CG(tol=1e-9))
    """
    with float64():
        name = _plain(solver)
        system = _system(symmetric=True)
        rows, g, metric = (jnp.asarray(x) for x in system[:3])
        far = jnp.linspace(-3.0, 4.0, D)
        run = jax.jit(partial(_solve, metric=metric), static_argnames=("batch_size", "note"))
        for s in (system,) if getattr(solver, "needs_symmetry", False) else (system, _system(symmetric=False)):
            kind = "a symmetric system" if s.symmetric else "a system that is not symmetric"
            for start in (None, far, jnp.asarray(s.v)):
                out = run(canonicalize(solver), jnp.asarray(s.rows), jnp.asarray(s.g), start)
                _solution(name, out, jnp.asarray(s.v), kind, rtol)
        out = run(canonicalize(solver), rows, zeros_like(g), None)
        require(not np.any(out.value) and out.code == Code.OK, f"{name} must solve A v = 0 by v = 0, with the code OK")
        _invariance(solver, lambda solver, g, start, number: _solve(solver, rows, g, start, number, metric=metric), g)
        seen = Counter()
        out = run(canonicalize(solver), rows, g, None, note=seen)
        _calls(name, int(out.calls), seen.after(out))
        _nan(name, run(canonicalize(solver), rows, g, None, jnp.nan))
        flat_system = jnp.asarray(system.rows.mean(0) * np.array([1.0, 1.0, 1.0, 0.0]))[None]
        singular = run(canonicalize(solver), jnp.swapaxes(flat_system, 1, 2) @ flat_system, jnp.ones(D), None)
        require(singular.code != Code.OK, f"{name} says OK of a singular system without a solution")
        if solver.stochastic:

            def value(key: Array) -> PyTree:
                return run(canonicalize(solver), rows, g, None, key=key, batch_size=B).value

            _randomness(name, value, system.v, is_unbiased)


def check_inner_solver(solver: Any, *, rtol: float = 1e-6, is_unbiased: bool = True) -> None:
    """Check a solver of w = Phi(w, lam), such as ``bilevax.FixedPoint(100)`` or ``bilevax.LBFGS()``.

    A stochastic one has ``solve(image, start, args, source, *, key, s)``, others ``solve(loss, w0, lam, batch)``, and
    the class says which in ``stochastic``. It must converge, on every row, on small problems whose map contracts by 0.8
    or better. The contracts are those of :func:`check_linear_solver`.

    Args:
        solver: what is checked.
        rtol: relative error it may have.
        is_unbiased: for a stochastic one, whether its mean is right, once converged, where the map is affine.

    Raises:
        AssertionError: says the first contract that is violated.

    Examples:
        >>> import bilevax as bx
        >>> check_inner_solver(bx.LBFGS(tol=1e-9))  # doctest: +SKIP
    """
    with float64():
        if isinstance(solver, Given):
            _given(solver)
            return
        name, watch = _plain(solver), watched()
        for reference in (watch.reference, ridge()):
            for start in (reference.w0, reference.w0 + 2.0, reference.w):
                out = _inner(canonicalize(solver), reference, jnp.asarray(reference.lam), jnp.asarray(start))
                _solution(name, out, jnp.asarray(reference.w), reference.name, rtol)
        _invariance(solver, _of_trees, jnp.asarray(quadratic().lam))
        _counted(name, solver)
        _nan(name, _inner(canonicalize(solver), watch.flawed("inner"), jnp.asarray(watch.reference.lam), jnp.zeros(D)))
        if solver.stochastic:
            lam, w0 = jnp.asarray(watch.reference.lam), jnp.zeros(D)

            def value(key: Array) -> PyTree:
                return _inner(canonicalize(solver), watch.reference, lam, w0, key=key, batch_size=B).value

            _randomness(name, value, watch.reference.w, is_unbiased)


def _inner(
    solver: Any, reference: Any, lam: PyTree, start: PyTree, *, key: Any = None, batch_size: int | None = None
) -> Solution:
    """The inner solver on a reference."""
    train, _ = reference.sources(batch_size)
    return _inner_jit(
        solver, canonicalize(reference.problem), lam, start, train, jax.random.key(0) if key is None else key
    )


@jax.jit
def _inner_jit(solver: Any, problem: Any, lam: PyTree, start: PyTree, train: Arrays, key: Any) -> Solution:
    if not solver.stochastic:
        return solver.solve(problem.inner_map.loss, start, lam, train)

    def image(w: PyTree, args: Any, batch: PyTree) -> PyTree:
        problem, lam = args
        return problem.inner_image(w, lam, batch)

    return solver.solve(image, start, (problem, lam), train, key=key)


def _of_trees(solver: Any, lam: PyTree, start: PyTree | None, number: Any) -> Solution:
    """The inner solver on the quadratic, vectors or nested."""
    vectors = isinstance(lam, jax.Array)
    reference = quadratic() if vectors else nested(quadratic())
    if jax.tree.leaves(lam)[0].dtype == jnp.float32:
        reference = reference.single()
    begin = jax.tree.map(jnp.asarray, reference.w0) if start is None else start
    return _inner_jit(solver, canonicalize(reference.problem), lam, begin, reference.sources()[0], jax.random.key(0))


def _given(solver: Any) -> None:
    from bilevax.hypergradients import SID

    configuration(solver)
    reference = quadratic()
    start = reference.problem, SID(solver, Exact()), reference.w0 + 0.1, reference.lam, *reference.sources()
    est = hypergradient(*start, key=jax.random.key(0))
    require(same_bits(est.w, reference.w0 + 0.1), "Given must return the w it is given")


def _plain(solver: Any) -> str:
    name = title(solver)
    methods(solver, "solve")
    configuration(solver)
    require(isinstance(getattr(solver, "stochastic", None), bool), f"{name} must say stochastic = True or False")
    return name


def _solution(name: str, out: Any, truth: Any, where: str, rtol: float) -> None:
    require(isinstance(out, Solution), f"{name}.solve must return bilevax.core.records.Solved, got {title(out)}")
    like(f"the value of {name}", out.value, truth)
    require(out.code == Code.OK, f"{name} ends with {Code(int(out.code)).name} on {where}")
    error = relative(out.value, truth)
    require(error <= rtol, f"{name} has a relative error of {error:.1e} on {where}; allowed is {rtol:.0e}")


def _invariance(solver: Any, run: Run, x: Any) -> None:
    """Nested trees, float32, jit, vmap, rebuilding; x is a right-hand side or lam, a vector."""
    name = title(solver)
    tally = Tally(run)
    jitted = jax.jit(tally)
    alone = jitted(canonicalize(solver), x, None, 0.0)
    error = relative(run(solver, x, None, 0.0).value, alone.value)
    require(error <= ROUNDING, f"{name} under jax.jit differs by {error:.1e} from itself called eagerly")
    for what, new in (("an equal object", rebuilt(solver)), ("changed numbers", rebuilt(solver, changed=True))):
        before = tally.calls
        jitted(canonicalize(new), x + 1.0, None, 0.0)
        require(tally.calls == before, f"{name} is traced anew for {what}; numbers must be leaves, not structure")
    tree = jitted(canonicalize(solver), nest(x), None, 0.0).value
    error = relative(tree, nest(alone.value))
    require(error <= ROUNDING, f"{name} gives other numbers where its argument is a nested dictionary")
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(_single(run, solver, x).value)}
    require(kinds == {"float32"}, f"the value of {name} is {kinds} where all arguments are float32")
    both = jnp.stack([x, x - 1.0])
    lanes = jax.jit(jax.vmap(lambda x: run(solver, x, None, 0.0)))(both)
    second = jitted(canonicalize(solver), x - 1.0, None, 0.0)
    error = max(relative(lanes.value[i], one.value) for i, one in enumerate((alone, second)))
    require(error <= ROUNDING, f"{name} under jax.vmap differs from a loop by {error:.1e}")


def _single(run: Run, solver: Any, x: Any) -> Solution:
    narrow: Any = x.astype(jnp.float32)
    if run is _of_trees:
        return run(solver, narrow, None, 0.0)
    system = _system(symmetric=True)
    rows, metric = (jnp.asarray(a, jnp.float32) for a in (system.rows, system.metric))
    return _solve(solver, rows, narrow, None, metric=metric)


def _counted(name: str, solver: Any) -> None:
    """Evaluations of the inner loss on every row, against the calls it says."""
    watch, seen = watched(), Counter()

    def noted(*args: Any) -> Any:
        jax.debug.callback(seen)
        return watch.tally.function(*args)

    counting = Watched(watch.reference, Tally(noted)).flawed("nowhere")
    out = _inner(canonicalize(solver), counting, jnp.asarray(watch.reference.lam), jnp.zeros(D))
    _calls(name, int(out.calls), seen.after(out))


def _calls(name: str, said: int, made: int) -> None:
    require(said >= made, f"{name} makes {made} oracle calls and says {said}")


def _nan(name: str, out: Solution) -> None:
    code = Code(int(out.code))
    require(code == Code.NONFINITE, f"{name} ends with {code.name}, not NONFINITE, where its oracle gives NaN")
    require(np.all(np.isfinite(out.value)), f"{name} must keep its last finite value where its oracle gives NaN")


def _randomness(name: str, value: Callable[[Any], Any], truth: Any, is_unbiased: bool) -> None:
    first, again, other = (value(jax.random.key(seed)) for seed in (0, 0, 1))
    require(same_bits(first, again), f"{name} gives different results for the same key")
    require(not same_bits(first, other), f"{name} gives the same result for every key")
    if is_unbiased:
        samples = jax.vmap(value)(jax.random.split(jax.random.key(7), KEYS))
        unbiased(f"{name} on minibatches", samples, truth)
