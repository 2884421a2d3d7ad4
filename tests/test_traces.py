"""What is traced or compiled anew: nothing but a new function, a new shape, a new name.

Traces are counted in the body of the user's losses; compilations by JAX's own monitoring.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax.algorithms.outer_loop import advance
from bilevax.core.config import canonicalize

TRACES = 0
COMPILED = 0
N, D = 30, 4


def note_compilation(event, duration, **kwargs):
    global COMPILED
    COMPILED += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(note_compilation)


def inner_loss(w, lam, batch):
    global TRACES
    TRACES += 1
    X, y = batch
    return jnp.mean((X @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def outer_loss(w, lam, batch):
    global TRACES
    TRACES += 1
    X, y = batch
    return jnp.mean((X @ w - y) ** 2)


def data(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, D)), rng.normal(size=N)


def make(step=0.1, *, t=5, k=6, J=2, J1=3, rate=0.05, seed=0, eta=0.5, outer="sgd", box=4.0):
    """All arguments of both doors, built from nothing."""
    problem = bx.Problem(bx.GradientStep(inner_loss, step), outer_loss, bx.Box(-box, box))
    sid = bx.SID(bx.FixedPoint(t, eta), bx.FixedPoint(k, eta), cross_batches=J, outer_batches=J1)
    algorithm = bx.BSGM(sid, bx.optim(outer, rate))
    sources = bx.Arrays(data(seed), 7), bx.Arrays(data(seed + 100), 7)
    return problem, sid, algorithm, np.zeros(D), np.zeros(D), *sources


def first_door(arguments, *, seed=0):
    problem, sid, _, w0, lam, train, val = arguments
    bx.hypergradient(problem, sid, w0, lam, train, val, key=jax.random.key(seed))


def second_door(arguments, *, steps=3, seed=0, every=None):
    problem, _, algorithm, w0, lam, train, val = arguments
    bx.minimize(problem, algorithm, w0, lam, train, val, steps=steps, key=jax.random.key(seed), every=every)


def both_doors(arguments, *, seed=0):
    first_door(arguments, seed=seed)
    second_door(arguments, seed=seed)


def traced(call):
    """How often the losses are executed by Python; nothing is compiled without."""
    before, compiled = TRACES, COMPILED
    call()
    anew = TRACES - before
    assert (compiled != COMPILED) == (anew != 0)
    return anew


@pytest.fixture(autouse=True)
def warm():
    """Both doors have been called once with the plain arguments."""
    both_doors(make())


def test_control_the_counter_counts():
    """A new shape and a new function are traced; calling once more is not."""
    problem, *others, _, val = make()
    source = bx.Arrays(data(0), 9)
    assert traced(lambda: first_door((problem, *others, source, val))) > 0
    assert traced(lambda: first_door((problem, *others, source, val))) == 0
    new = bx.Problem(bx.GradientStep(lambda w, lam, batch: inner_loss(w, lam, batch), 0.1), outer_loss)
    assert traced(lambda: first_door((new, *others, source, val))) > 0


def test_the_same_call_again():
    assert traced(lambda: both_doors(make())) == 0


SCALARS = {
    "float": 0.2,
    "int": 1,
    "numpy float64": np.float64(0.3),
    "numpy float32": np.float32(0.3),
    "numpy int": np.int64(1),
    "numpy 0-d": np.array(0.3),
    "jnp scalar": jnp.asarray(0.4),
    "jnp float32": jnp.float32(0.4),
    "jnp int": jnp.int32(1),
}


@pytest.mark.parametrize("value", SCALARS.values(), ids=SCALARS)
def test_a_new_step_of_the_inner_map(value):
    assert traced(lambda: both_doors(make(step=value))) == 0


@pytest.mark.parametrize("value", SCALARS.values(), ids=SCALARS)
def test_a_new_step_of_the_solvers(value):
    assert traced(lambda: both_doors(make(eta=value))) == 0


@pytest.mark.slow_but("Growing-int", "Harmonic-float", "Polynomial-numpy float32")
@pytest.mark.parametrize("value", SCALARS.values(), ids=SCALARS)
@pytest.mark.parametrize("schedule", [bx.Harmonic, bx.Polynomial, bx.Growing], ids=lambda s: s.__name__)
def test_new_numbers_in_a_schedule(schedule, value):
    def call(*numbers):
        if schedule is bx.Growing:
            return second_door(make(t=schedule(*numbers), k=schedule(*numbers), J=schedule(*numbers)))
        return first_door(make(eta=schedule(*numbers)))

    call(1.5, 0.25)
    assert traced(lambda: call(value, 0.75)) == 0


def falling(value, j):
    return value / (1.0 + 0.1 * j.astype(jnp.result_type(float)))


def test_new_numbers_in_a_schedule_of_the_users_own():
    """Numbers that no field of bilevax's has cast: a Python float is weakly typed, a numpy scalar is not."""
    first_door(make(eta=jax.tree_util.Partial(falling, 0.5)))
    values = (0.25, np.float64(0.3), np.float32(0.3), np.array(0.4), jnp.float64(0.4))
    canonicalize(values)  # the cast of one number is a program too
    for value in values:
        assert traced(lambda value=value: first_door(make(eta=jax.tree_util.Partial(falling, value)))) == 0


def test_new_data_of_equal_shape():
    assert traced(lambda: both_doors(make(seed=1))) == 0
    on_device = tuple(bx.Arrays(jax.tree.map(jnp.asarray, data(s)), 7) for s in (2, 3))
    assert traced(lambda: both_doors((*make()[:-2], *on_device))) == 0


def test_new_parameters_and_keys():
    problem, sid, algorithm, _, _, train, val = make()
    for w0, lam in ((np.ones(D), -np.ones(D)), (jnp.ones(D), 2 * jnp.ones(D))):
        assert traced(lambda w0=w0, lam=lam: both_doors((problem, sid, algorithm, w0, lam, train, val), seed=3)) == 0


@pytest.mark.parametrize("what", ["lam", "number"])
def test_weakly_typed_arrays(what):
    problem, sid, algorithm, w0, lam, train, val = make()
    if what == "lam":
        lam = jnp.full(D, -0.5)
        assert traced(lambda: both_doors((problem, sid, algorithm, w0, lam, train, val))) == 0
    else:
        first_door(make(eta=jax.tree_util.Partial(falling, 0.5)))
        assert traced(lambda: first_door(make(eta=jax.tree_util.Partial(falling, jnp.asarray(0.4))))) == 0


@pytest.mark.parametrize("name", ["Problem", "GradientStep", "SID", "BSGM", "Arrays"])
def test_a_rebuilt_part(name):
    problem, sid, algorithm, w0, lam, train, val = make()
    again = make()
    if name == "Problem":
        problem = bx.Problem(problem.inner_map, problem.outer_loss, problem.project)
    elif name == "GradientStep":
        problem = bx.Problem(again[0].inner_map, problem.outer_loss, problem.project)
    elif name == "SID":
        sid, algorithm = again[1], bx.BSGM(again[1], algorithm.outer)
    elif name == "BSGM":
        algorithm = bx.BSGM(sid, bx.optim("sgd", 0.05))
    else:
        train, val = again[-2:]
    assert traced(lambda: both_doors((problem, sid, algorithm, w0, lam, train, val))) == 0


@pytest.mark.parametrize("rate", [0.01, 1, np.float32(0.2), jnp.asarray(0.3)], ids=["float", "int", "numpy", "jnp"])
def test_a_changed_outer_learning_rate(rate):
    assert traced(lambda: both_doors(make(rate=rate))) == 0


def test_a_changed_outer_learning_rate_of_adam():
    second_door(make(outer="adam"))
    assert traced(lambda: second_door(make(outer="adam", rate=0.001))) == 0


def test_a_raw_optax_object_that_is_kept():
    problem, sid, _, w0, lam, train, val = make()
    algorithm = bx.BSGM(sid, optax.sgd(0.1))
    second_door((problem, sid, algorithm, w0, lam, train, val))
    rebuilt = bx.BSGM(sid, algorithm.outer)
    assert traced(lambda: second_door((problem, sid, rebuilt, w0, lam, train, val))) == 0


@pytest.mark.parametrize("count", ["t", "k", "J", "J1"])
@pytest.mark.parametrize(
    "value", [9, 700, np.int64(9), jnp.int32(9), 9.0], ids=["int", "large", "numpy", "jnp", "float"]
)
def test_a_changed_count(count, value):
    if (count, value) == ("t", 700):  # the report on long chains is a program of its own
        both_doors(make(t=650))
    assert traced(lambda: both_doors(make(**{count: value}))) == 0


@pytest.mark.parametrize("every", [None, 1, 5])
def test_changed_outer_steps(every):
    assert traced(lambda: second_door(make(), steps=17, every=every)) == 0


@pytest.mark.slow
def test_a_count_that_grows_over_fifty_outer_steps():
    """The first step traces everything; the other forty-nine at most the program that looks into a suspicion, once."""
    grow = {"t": bx.Growing(1.0), "k": bx.Growing(2.0), "J": bx.Growing(1.0, 0.5)}
    second_door(make(**grow), steps=1)
    assert traced(lambda: second_door(make(**grow), steps=50)) <= 40
    assert traced(lambda: second_door(make(**grow), steps=50, seed=1)) == 0


def test_one_run_traces_its_program_once():
    """A run of fifty steps in chunks costs the same number of traces as one of a single step."""

    def of_a_new_loss(steps):
        def loss(w, lam, batch):
            return inner_loss(w, lam, batch)

        _, *others = make()
        problem = bx.Problem(bx.GradientStep(loss, 0.1), outer_loss)
        return traced(lambda: second_door((problem, *others), steps=steps))

    assert of_a_new_loss(50) == of_a_new_loss(1)


def test_changed_numbers_of_the_box_and_of_conjugate_gradients():
    def arguments(box, tol, max_steps, damping):
        problem, _, _, *rest = make(box=box)
        sid = bx.SID(bx.FixedPoint(5), bx.CG(tol, max_steps, damping))
        return problem, sid, bx.BSGM(sid, bx.optim("sgd", 0.1)), *rest

    first_door(arguments(4.0, 1e-6, 100, 0.0))
    assert traced(lambda: first_door(arguments(3, 1e-3, np.int64(7), 1))) == 0


def nbytes(jaxpr):
    """Bytes of all array constants of a program, of the programs in it, and of its array literals."""
    total = sum(np.asarray(c).nbytes for c in getattr(jaxpr, "consts", ()) if not is_key(c))
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    for equation in inner.eqns:
        total += sum(np.asarray(x.val).nbytes for x in equation.invars if hasattr(x, "val") and np.ndim(x.val))
        for parameter in jax.tree.leaves(equation.params, is_leaf=is_program):
            total += nbytes(parameter) if is_program(parameter) else 0
    return total


def is_program(x):
    return hasattr(x, "eqns")


def is_key(x):
    return jnp.issubdtype(getattr(x, "dtype", np.float64), jax.dtypes.prng_key)


def programs(arguments):
    """The jaxprs of an estimate and of a chunk of outer steps, with everything that may change as an argument."""
    problem, sid, algorithm, w0, lam, train, val = canonicalize(arguments)
    key = jax.random.key(0)
    estimate = jax.make_jaxpr(lambda problem, sid, w0, lam, train, val, key: bx.hypergradient(
        problem, sid, w0, lam, train, val, key=key))(problem, sid, w0, lam, train, val, key)  # fmt: skip
    state = algorithm.init(problem, w0, lam, (train, val))
    chunk = jax.make_jaxpr(lambda problem, algorithm, state, sources, key, start, stop: advance(
        problem, algorithm, state, sources, key=key, start=start, stop=stop))(
        problem, algorithm, state, (train, val), key, jnp.int32(0), jnp.int32(5))  # fmt: skip
    return estimate, chunk


@pytest.mark.parametrize("sampling", ["iid", "shuffled", "blocks"])
def test_the_constants_of_the_programs_sum_to_less_than_a_kilobyte(sampling):
    rng = np.random.default_rng(0)
    train, val = (bx.Arrays((rng.normal(size=(500, D)), rng.normal(size=500)), 30, sampling=sampling) for _ in range(2))
    for program in programs((*make(t=bx.Growing(2.0), eta=bx.Harmonic(1.0, 2.0))[:-2], train, val)):
        assert nbytes(program) < 1000


def test_control_a_constant_that_is_closed_over_is_counted():
    large = jnp.asarray(np.random.default_rng(0).normal(size=(1000, D)))

    def closing_over(w, lam, batch):
        return inner_loss(w, lam, batch) + jnp.mean(large @ w)

    problem, *rest = make()
    problem = bx.Problem(bx.GradientStep(closing_over, 0.1), outer_loss, problem.project)
    for program in programs((problem, *rest)):
        assert nbytes(program) >= large.nbytes
