"""What every solver, of the inner problem or of the linear system, must satisfy."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bilevax.core.codes import Code
from bilevax.core.config import canonicalize
from bilevax.core.instance import Instance
from bilevax.core.records import Solution
from bilevax.core.trees import PyTree, add, sub, zeros_like
from bilevax.data import Arrays
from bilevax.hypergradients import SID, hypergradient
from bilevax.problems import Problem
from bilevax.solvers import Exact, Given
from bilevax.testing.closed_forms.small import B, D, N, Reference, flat, nest, nested, quadratic, ridge, watched
from bilevax.testing.tools import (
    ROUNDING,
    Counter,
    Tally,
    configuration,
    float64,
    keyed,
    like,
    methods,
    rebuilt,
    relative,
    require,
    same_bits,
    single,
    title,
    traced_once,
    unbiased,
)

KEYS = 1000
"""Independent runs from which a bias is judged."""


class Solver(Protocol):
    """Of either kind; what ``solve`` takes is said by ``stochastic``."""

    @property
    def stochastic(self) -> bool:
        """True if it draws minibatches."""

    @property
    def solve(self) -> Callable[..., Solution]:
        """The method."""


Run = Callable[[Solver, PyTree, PyTree | None, Array | float], Solution]
"""(solver, tree, start, number): a right-hand side or lam, a start, and a number that may be NaN."""


class System(NamedTuple):
    """(I - M^T) v = g with rows whose mean it is; self-adjoint in the metric, if ``symmetric``."""

    rows: np.ndarray
    g: np.ndarray
    metric: np.ndarray
    symmetric: bool

    @property
    def v(self) -> np.ndarray:
        """The solution."""
        return np.asarray(np.linalg.solve(self.rows.mean(0), self.g), np.float64)


def _system(*, symmetric: bool) -> System:
    rng = np.random.default_rng(5)
    noise = rng.normal(size=(N, D, D))
    # noise of mean 0: the mean of the rows is the system that is meant
    noise = 0.2 * (noise - noise.mean(0))
    metric = np.linspace(0.5, 1.0, D)
    # H diag(s), H of eigenvalues .4 to 1.2, is self-adjoint in s; I - .6 M / ||M|| is not
    if symmetric:
        root = np.linalg.qr(rng.normal(size=(D, D)))[0]
        A = (root * np.linspace(0.4, 1.2, D)) @ root.T
        rows = (A + noise + noise.transpose(0, 2, 1)) * metric  # H diag(s)
    else:
        M = rng.normal(size=(D, D))
        rows = np.eye(D) - 0.6 * M / np.linalg.norm(M, 2) + noise
    return System(rows, rng.normal(size=D), metric, symmetric)


def _solve(
    solver: Solver, rows: Array, g: PyTree, start: PyTree | None, number: Array | float = 0.0, *,
    metric: Array, key: Array | None = None, batch_size: int | None = None, sampling: str = "iid",
    note: Callable[[], None] | None = None,
) -> Solution:  # fmt: skip
    """The linear solver on (mean of rows) v = g; trees of :func:`nest` are solved as such."""
    into, out = (lambda x: x, lambda x: x) if isinstance(g, Array) else (nest, flat)

    def product(A: Array, v: PyTree) -> PyTree:
        if note is not None:
            jax.debug.callback(note)
        return into(A @ out(v) + jnp.asarray(number).astype(rows.dtype))

    if not solver.stochastic:
        return solver.solve(partial(product, jnp.mean(rows, axis=0)), g, into(metric), start)

    def image(v: PyTree, g: PyTree, batch: Array) -> PyTree:
        # Psi(v) = v - A v + g
        return add(sub(v, product(jnp.mean(batch, axis=0), v)), g)

    begin = zeros_like(g) if start is None else start
    return solver.solve(
        image, begin, g, Arrays(rows, batch_size, sampling), key=jax.random.key(0) if key is None else key
    )


def check_linear_solver(solver: Solver, *, rtol: float = 1e-6, is_unbiased: bool = True, sampling: str = "iid") -> None:
    """Check a solver of (I - d1Phi^T) v = g, such as ``bilevax.CG()`` or ``bilevax.FixedPoint(100)``.

    A stochastic one has ``solve(image, start, args, source, *, key, outer_step)``, others ``solve(matvec, g, metric,
    start=None)``, None for a start at 0; the class says which in ``stochastic``, and both return a
    ``bilevax.core.records.Solution``. It must converge, on every row, on small systems whose iteration contracts by 0.8
    or better. In order: it is a configuration; its solutions are right, from any start, for systems that are not
    symmetric too unless the class says ``needs_symmetry``; zero, nested trees, float32, jit, vmap and rebuilding; its
    calls are counted; NaN and a singular system are said; its randomness is the key's.

    Args:
        solver: what is checked.
        rtol: relative error it may have.
        is_unbiased: for a stochastic one, whether its mean is right, once converged.
        sampling: of the minibatches that a stochastic one is given.

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
        run = partial(
            jax.jit(partial(_solve, metric=metric), static_argnames=("batch_size", "sampling", "note")),
            canonicalize(solver),
        )
        for s in (system,) if getattr(solver, "needs_symmetry", False) else (system, _system(symmetric=False)):
            kind = "a symmetric system" if s.symmetric else "a system that is not symmetric"
            for start in (jnp.linspace(-3.0, 4.0, D), None, jnp.asarray(s.v)):
                _solution(name, run(jnp.asarray(s.rows), jnp.asarray(s.g), start), s.v, kind, rtol)
        out = run(rows, zeros_like(g), None)
        require(not np.any(out.value) and out.code == Code.OK, f"{name} must solve A v = 0 by v = 0, with the code OK")
        _invariance(solver, lambda solver, g, start, number: _solve(solver, rows, g, start, number, metric=metric), g)
        seen = Counter()
        out = run(rows, g, None, note=seen)
        _calls(name, out, seen)
        _nan(name, run(rows, g, None, jnp.nan))
        # A'A of a matrix with a column of zeros, and a right-hand side that is not in its range
        flat_system = jnp.asarray(system.rows.mean(0) * np.array([1.0, 1.0, 1.0, 0.0]))[None]
        singular = run(jnp.swapaxes(flat_system, 1, 2) @ flat_system, jnp.ones(D), None)
        require(singular.code != Code.OK, f"{name} says OK of a singular system without a solution")
        if solver.stochastic:
            drawn = partial(run, rows, g, None, batch_size=B, sampling=sampling)
            _randomness(name, lambda key: drawn(key=key).value, system.v, is_unbiased)


def check_inner_solver(solver: Solver, *, rtol: float = 1e-6, is_unbiased: bool = True, sampling: str = "iid") -> None:
    """Check a solver of w = Phi(w, lam), such as ``bilevax.FixedPoint(100)`` or ``bilevax.LBFGS()``.

    A stochastic one has ``solve(image, start, args, source, *, key, outer_step)``, others ``solve(loss, w0, lam,
    batch)``, and the class says which in ``stochastic``. It must converge, on every row, on small problems whose map
    contracts by 0.8 or better. The contracts are those of :func:`check_linear_solver`.

    Args:
        solver: what is checked.
        rtol: relative error it may have.
        is_unbiased: for a stochastic one, whether its mean is right, once converged, where the map is affine.
        sampling: of the minibatches that a stochastic one is given.

    Raises:
        AssertionError: says the first contract that is violated.

    Examples:
        >>> import bilevax as bx
        >>> check_inner_solver(bx.LBFGS(tol=1e-9))  # doctest: +SKIP
    """
    with float64():
        # Given solves nothing: w0 is the solution
        if isinstance(solver, Given):
            _given(solver)
            return
        name, watch = _plain(solver), watched()
        for reference in (watch.reference, ridge()):
            for start in (reference.w0, reference.w0 + 2.0, reference.truth.w):
                out = _inner(solver, reference._replace(w0=start))
                _solution(name, out, reference.truth.w, reference.name, rtol)
        _invariance(solver, _of_trees, jnp.asarray(quadratic().lam))
        _counted(name, solver)
        _nan(name, _inner(solver, watch.flawed("inner")))
        if solver.stochastic:
            drawn = partial(_inner, solver, watch.reference, B, sampling=sampling)
            _randomness(name, lambda key: drawn(key=key).value, watch.reference.truth.w, is_unbiased)


def _inner(
    solver: Solver,
    reference: Reference,
    batch_size: int | None = None,
    key: Array | None = None,
    sampling: str = "iid",
) -> Solution:
    """The inner solver on a reference."""
    key = jax.random.key(0) if key is None else key
    return _inner_jit(canonicalize(solver), *reference.start(batch_size, sampling), key)


def _inner_solution(solver: Solver, instance: Instance, start: PyTree, key: Array) -> Solution:
    problem, lam, train, _ = instance
    if not solver.stochastic:
        return solver.solve(problem.inner_loss, start, lam, train)

    def image(w: PyTree, args: tuple[Problem, PyTree], batch: PyTree) -> PyTree:
        problem, lam = args
        return problem.inner_image(w, lam, batch)

    return solver.solve(image, start, (problem, lam), train, key=key)


_inner_jit: Callable[..., Solution] = jax.jit(_inner_solution)


def _of_trees(solver: Solver, lam: PyTree, start: PyTree | None, number: Array | float) -> Solution:
    """The inner solver on the quadratic, vectors or nested."""
    reference = quadratic() if isinstance(lam, Array) else nested(quadratic())
    if jax.tree.leaves(lam)[0].dtype == jnp.float32:
        reference = reference.single()
    instance, w0 = reference.start()
    return _inner_jit(solver, instance._replace(lam=lam), w0 if start is None else start, jax.random.key(0))


def _given(solver: Given) -> None:
    configuration(solver)
    (_, *rest), w0 = quadratic().start()
    est = hypergradient(quadratic().problem, SID(solver, Exact()), w0 + 0.1, *rest, key=jax.random.key(0))
    require(same_bits(est.w, w0 + 0.1), "Given must return the w it is given")


def _plain(solver: Solver) -> str:
    name = title(solver)
    methods(solver, "solve")
    configuration(solver)
    require(isinstance(getattr(solver, "stochastic", None), bool), f"{name} must say stochastic = True or False")
    return name


def _solution(name: str, out: Solution, truth: np.ndarray, where: str, rtol: float) -> None:
    require(isinstance(out, Solution), f"{name}.solve must return bilevax.core.records.Solution, got {title(out)}")
    like(f"the value of {name}", out.value, truth)
    require(out.code == Code.OK, f"{name} ends with {Code(int(out.code)).name} on {where}")
    error = relative(out.value, truth)
    require(error <= rtol, f"{name} has a relative error of {error:.1e} on {where}; allowed is {rtol:.0e}")


def _invariance(solver: Solver, run: Run, x: Array) -> None:
    """Nested trees, float32, jit, vmap, rebuilding; x is a right-hand side or lam, a vector."""
    name, ready = title(solver), canonicalize(solver)
    tally = Tally(run)
    jitted = jax.jit(tally)
    # the solver is an argument: its numbers are leaves of it, and new ones compile nothing
    alone = jitted(ready, x, None, 0.0)
    error = relative(run(solver, x, None, 0.0).value, alone.value)
    require(error <= ROUNDING, f"{name} under jax.jit differs by {error:.1e} from itself called eagerly")
    new = {"an equal object": rebuilt(solver), "changed numbers": rebuilt(solver, changed=True)}
    traced_once(
        name, tally, {what: partial(jitted, canonicalize(each), x + 1.0, None, 0.0) for what, each in new.items()}
    )
    error = relative(jitted(ready, nest(x), None, 0.0).value, nest(alone.value))
    require(error <= ROUNDING, f"{name} gives other numbers where its argument is a nested dictionary")
    single(name, value=_single(run, solver, x.astype(jnp.float32)).value)
    lanes = jax.jit(jax.vmap(lambda x: run(solver, x, None, 0.0)))(jnp.stack([x, x - 1.0]))
    second = jitted(ready, x - 1.0, None, 0.0)
    error = max(relative(lanes.value[i], one.value) for i, one in enumerate((alone, second)))
    require(error <= ROUNDING, f"{name} under jax.vmap differs from a loop by {error:.1e}")


def _single(run: Run, solver: Solver, x: Array) -> Solution:
    """With all arguments in float32."""
    if run is _of_trees:
        return run(solver, x, None, 0.0)
    # rows and metric too: one float64 argument would widen all
    system = _system(symmetric=True)
    rows, metric = (jnp.asarray(a, jnp.float32) for a in (system.rows, system.metric))
    return _solve(solver, rows, x, None, metric=metric)


def _counted(name: str, solver: Solver) -> None:
    """Evaluations of the inner loss on every row, against the calls it says."""
    # a callback in the loss: it counts in the running program, where a loop has any number of steps
    watch, seen = watched(), Counter()

    def noted(*args: PyTree) -> PyTree:
        jax.debug.callback(seen)
        return watch.tally.function(*args)

    out = _inner(solver, watch._replace(tally=Tally(noted)).flawed("nowhere"))
    _calls(name, out, seen)


def _calls(name: str, out: Solution, seen: Counter) -> None:
    made = seen.after(out)
    require(int(out.calls) >= made, f"{name} makes {made} oracle calls and says {int(out.calls)}")


def _nan(name: str, out: Solution) -> None:
    code = Code(int(out.code))
    require(code == Code.NONFINITE, f"{name} ends with {code.name}, not NONFINITE, where its oracle gives NaN")
    require(np.all(np.isfinite(out.value)), f"{name} must keep its last finite value where its oracle gives NaN")


def _randomness(name: str, value: Callable[[Array], Array], truth: np.ndarray, is_unbiased: bool) -> None:
    keyed(name, lambda seed: value(jax.random.key(seed)))
    if is_unbiased:
        samples = jax.vmap(value)(jax.random.split(jax.random.key(7), KEYS))
        unbiased(f"{name} on minibatches", samples, truth)
