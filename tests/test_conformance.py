"""The shipped suites: every public class passes the one of its kind, and classes that are wrong do not."""

import enum
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from node_rig import AtNodes, CompositionAtNodes

import bilevax as bx
from bilevax.core.config import config
from bilevax.core.records import Count
from bilevax.testing import check_algorithm, check_estimator, check_inner_solver, check_linear_solver, check_source
from bilevax.testing.tools import Counted, Wrapped

T = bx.FixedPoint(100)
SPARSE = scipy.sparse.random_array((50, 9), density=0.2, dtype=np.float32, rng=0), np.arange(50)
TABLE = np.arange(50, dtype=np.float32), np.arange(100).reshape(50, 2)
MESH = jax.make_mesh((1,), ("rows",))
STREAMS = [
    bx.Stream(TABLE, 7, sampling="shuffled", prefetch_bytes=4000),
    bx.Stream(TABLE, 7, sampling="blocks", prefetch_bytes=4000),
    bx.Stream(TABLE, 7, keys=True, prefetch_bytes=4000),
    bx.Stream(TABLE),
]

# What a class is checked with: instances for its suite, and the suite's options. A class that is not here is built
# without arguments.
INSTANCES = {
    "SID": [(bx.SID(T, T, cross_batches=3), {"calls": {"gradients": 100, "hvps": 100, "cross": 3}})],
    "JointSID": [(bx.JointSID(600, last_pass="never"), {"calls": {"gradients": 1200, "hvps": 1320, "cross": 1200}})],
    "NSID": [(bx.NSID(T, T, cross_batches=3), {"calls": {"gradients": 100, "hvps": 100, "cross": 3}})],
    "StochasticReverse": [
        (bx.StochasticReverse(T, 100), {"calls": {"gradients": 100, "hvps": 100, "cross": 100}}),
    ],
    "PushSumHypergradient": [
        (
            AtNodes(bx.PushSumHypergradient(T, 100, bx.PushSum(2))),
            {"calls": {"gradients": 100, "hvps": 100, "cross": 100}},
        ),
    ],
    "ITD": [(bx.ITD(100), {"stochastic": False})],
    # its bias, at this multiplier of 1e-6, is part of the method
    "Penalty": [(bx.Penalty(T, 1000.0), {"rtol": 1e-5, "calls": {"gradients": 303}})],
    # J and w come of the same minibatches: of J^T grad_1 E their covariance is a bias, which falls with the steps
    "Piggyback": [(bx.Piggyback(T), {"is_unbiased": False, "calls": {"gradients": 100, "hvps": 300, "cross": 300}})],
    # noise of 1 / sqrt(samples) on every row too; that its mean is right, enumeration shows (test_score_function.py)
    "ScoreFunction": [
        (
            bx.ScoreFunction(bx.LBFGS(1e-8), 3000, bx.Gaussian(0.1)),
            {"rtol": 0.15, "is_unbiased": False, "differentiates": False},
        )
    ],
    "FixedPoint": [(T, {})],
    "HeavyBall": [(bx.HeavyBall(200, 1.0, 0.3), {})],
    "Nesterov": [(bx.Nesterov(200, 0.5, 0.3), {})],
    "SVRG": [(bx.SVRG(100), {})],
    "SAGA": [(bx.SAGA(100), {"sampling": "blocks"})],
    "Optax": [(bx.Optax(bx.optim("sgd", 1.0), 100), {})],
    "CG": [(bx.CG(tol=1e-9), {})],
    "NormalEquations": [(bx.NormalEquations(tol=1e-9), {})],
    "GMRES": [(bx.GMRES(tol=1e-9), {})],
    "CoordinateDescent": [(bx.CoordinateDescent(tol=1e-9), {})],
    "Neumann": [(bx.Neumann(tol=1e-9), {})],
    "Exact": [(bx.Exact(), {})],
    "MixedFP": [(bx.MixedFP(100, 0.1), {}), (bx.MixedFP(200, 0.1, 0.5), {})],
    "ProductNeumann": [(bx.ProductNeumann(100), {})],
    "LBFGS": [(bx.LBFGS(tol=1e-9), {})],
    "Given": [(bx.Given(), {})],
    "BSGM": [(bx.BSGM(bx.SID(bx.FixedPoint(40), bx.FixedPoint(40), cross_batches=2), bx.optim("sgd", 0.5)), {})],
    "MAID": [(bx.MAID(0.5), {"stochastic": False})],
    "SOBA": [(bx.SOBA(0.5, 0.5), {"steps": 400})],
    "MASOBA": [(bx.MASOBA(0.5, 0.5, weight=0.3), {"steps": 400})],
    "SABA": [(bx.SABA(0.5, 0.5), {"steps": 400})],
    "SRBA": [(bx.SRBA(0.5, 0.5), {"steps": 400})],
    "FSLA": [(bx.FSLA(0.5, 0.5), {"steps": 400})],
    "AmIGO": [(bx.AmIGO(0.5, 0.5, inner_steps=5, linear_steps=5), {})],
    "StocBiO": [(bx.StocBiO(0.5, 0.5, inner_steps=5, linear_steps=20), {})],
    "BSA": [(bx.BSA(0.5, 0.5, inner_steps=5, linear_steps=10), {"steps": 400})],
    "ALSET": [(bx.ALSET(0.5, 0.3, linear_steps=10), {"steps": 600})],
    "TTSA": [(bx.TTSA(0.5, 0.3, linear_steps=10), {"steps": 600})],
    "MSTSA": [(bx.MSTSA(0.5, 0.3, linear_steps=10), {"steps": 600})],
    "SUSTAIN": [(bx.SUSTAIN(0.5, 0.5, linear_steps=20, weight=1.0), {"steps": 400})],
    "MRBO": [(bx.MRBO(0.5, 0.5, linear_steps=20), {"steps": 400})],
    "VRBO": [(bx.VRBO(0.5, 0.5, linear_steps=20), {})],
    "PZOBO": [(bx.PZOBO(0.5, 0.1), {"steps": 400, "cross": False})],
    "BOME": [(bx.BOME(0.5, 0.1, multiplier=10.0, unit=1.0), {"steps": 400})],
    "VPBGD": [(bx.VPBGD(0.5, 0.2, unit=1.0), {"steps": 400})],
    "MEHA": [(bx.MEHA(0.5, 0.5, unit=1.0), {"steps": 400})],
    "F2SA": [(bx.F2SA(0.5, 0.5, unit=1.0), {"steps": 400})],
    "SCGD": [(bx.SCGD(0.5, 0.5), {"steps": 400})],
    "DSCGD": [(CompositionAtNodes(bx.DSCGD(0.5, 0.5, tracking=x)), {"steps": 400}) for x in (True, False)],
    "Stream": [(bx.Stream(TABLE, 7), {"table": TABLE})],
    "SparseRows": [(bx.SparseRows(SPARSE, 7), {}), (bx.SparseRows(SPARSE), {})],
    "Arrays": [(bx.Arrays(TABLE, 7), {}), (bx.Arrays(TABLE), {}), (bx.Arrays(TABLE, 7, sampling="blocks"), {})],
}

MORE = [
    (check_estimator, bx.SID(bx.LBFGS(tol=1e-12), bx.CG(tol=1e-12)), {"stochastic": False}),
    (check_estimator, bx.SID(bx.FixedPoint(200, 0.5), bx.GMRES(tol=1e-12), cross_batches=2), {}),
    (check_estimator, bx.SID(bx.FixedPoint(300, bx.Constant(0.5)), T, cross_batches=bx.Growing(2.0)), {}),
    (check_estimator, bx.SID(T, bx.MixedFP(100, 0.1), cross_batches=3), {"calls": {"gradients": 100, "hvps": 199}}),
    (check_estimator, bx.JointSID(400, 0.5, extrapolate=False, last_pass="always"), {}),
    (check_estimator, bx.SID(bx.HeavyBall(200, 0.5, 0.3), bx.Nesterov(200, 0.5, 0.3), cross_batches=2), {}),
    (check_estimator, bx.ITD(100, mode="forward"), {"stochastic": False}),
    # a bias of order 1 / steps is part of the method
    (
        check_estimator,
        bx.ITD(400, 0.5, outer_weight=bx.Harmonic(0.5, 1.0)),
        {"stochastic": False, "rtol": 0.02},
    ),
    (check_estimator, bx.Penalty(bx.LBFGS(1e-12), 1000.0), {"stochastic": False, "rtol": 1e-5}),
    (check_estimator, AtNodes(bx.PushSumHypergradient(bx.GradientPush(200, 0.5), 100, bx.Ring())), {}),
    (check_linear_solver, bx.NormalEquations(tol=1e-9, step_size=0.5), {}),
    (check_linear_solver, bx.FixedPoint(400, 0.5, average=0.5), {}),
    (
        check_algorithm,
        bx.BSGM(bx.SID(bx.FixedPoint(1), bx.FixedPoint(1), cross_batches=1), bx.optim("adam", 0.05), warm_start=True),
        {},
    ),
    (
        check_algorithm,
        bx.BSGM(bx.SID(bx.LBFGS(), bx.CG()), bx.optim("sgd", 0.5), warm_start=True, tolerance=bx.Polynomial(0.01, 1.0)),
        {"stochastic": False},
    ),
    (check_algorithm, bx.SOBA(bx.Polynomial(0.5, 0.1, 100.0), 0.5), {"steps": 400}),
    (check_algorithm, bx.AmIGO(bx.BiSLS(bx.Polynomial(1.0, 0.5), 0.5), inner_steps=5, linear_steps=5), {"steps": 200}),
    (check_algorithm, bx.StocBiO(bx.BiSPS(bx.Polynomial(1.0, 0.5), 0.5, lower=-5.0, decrease=2.0)), {"steps": 200}),
    (check_source, bx.Arrays(TABLE, 7, sampling="shuffled"), {}),
    (check_source, bx.Arrays(TABLE, 50), {}),
    (check_source, bx.Arrays(TABLE, 49, sampling="blocks"), {}),
    (check_source, bx.Arrays(TABLE, 7, sampling="shuffled", keys=True), {}),
    (check_source, bx.Arrays((*TABLE, jax.random.split(jax.random.key(0), 50)), 4, sampling="blocks", keys=True), {}),
    (check_source, bx.Arrays(TABLE, keys=True), {}),
    (check_source, bx.SparseRows(SPARSE, 7, keys=True), {}),
    *((check_source, stream, {"table": TABLE}) for stream in STREAMS),
    (check_source, bx.sharded(bx.Arrays(TABLE, 16), MESH), {"table": TABLE}),
    (check_source, bx.sharded(bx.Arrays(TABLE), MESH), {"table": TABLE}),
]

NO_SUITE = {
    "inner maps and problems": ["Composition", "GradientStep", "ProximalStep", "Problem"],
    "inner maps of one use": ["LogitResponse", "ProjectionStep", "SoftBellman", "Unrolled"],
    "averages over nodes": ["ExactAverage", "Gossip", "GradientPush", "PushSum", "Ring"],
    "functions over nodes": ["MeanOverNodes", "StackOverNodes"],
    "losses": ["BinaryLogistic", "Groups", "MultinomialLogistic", "Squared"],
    "projections": ["Box", "CappedSimplex", "L2Ball", "NonNegative", "Simplex"],
    "streams": ["Several"],
    "training loops": ["Online"],
    "distributions": ["Bernoulli", "Gaussian"],
    "step rules": ["BiSLS", "BiSPS"],
    "callbacks": ["EarlyStopping", "JSONLines", "ShowProgress", "TensorBoard", "TimeLimit"],
    "schedules": ["Constant", "Growing", "Harmonic", "Polynomial"],
    "records": ["Constants", "Count", "Finding", "Findings", "Plan", "Run"],
}


def suites(cls):
    """The suites for a class, by what it can do."""
    if callable(getattr(cls, "estimate", None)):
        return [check_estimator]
    if hasattr(cls, "fold"):
        return [check_source]
    if all(hasattr(cls, name) for name in ("init", "step", "solution")):
        return [check_algorithm]
    if getattr(cls, "affine", False):  # its map is affine, as that of the inner problem need not be
        return [check_linear_solver]
    if hasattr(cls, "solve"):
        first = list(inspect.signature(cls.solve).parameters)[1]
        return {"matvec": [check_linear_solver], "loss": [check_inner_solver]}.get(
            first, [check_linear_solver, check_inner_solver]
        )
    return [check_inner_solver] if cls is bx.Given else []


def public_classes():
    return {name: x for name in bx.__all__ if inspect.isclass(x := getattr(bx, name))}


def can_be_built(cls):
    """Whether it takes no arguments, or has a default for each."""
    return all(p.default is not p.empty for p in inspect.signature(cls).parameters.values())


def checks():
    for name, cls in public_classes().items():
        for suite in suites(cls):
            number = len(INSTANCES.get(name, [None]))
            for i in range(number):
                yield pytest.param(cls, suite, i, id=f"{name}-{suite.__name__}-{i}")


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "suite", "number"), list(checks()))
def test_every_public_class_keeps_the_contracts_of_its_kind(cls, suite, number):
    assert cls.__name__ in INSTANCES or can_be_built(cls), f"say in INSTANCES how {cls.__name__} is to be built"
    instance, options = INSTANCES[cls.__name__][number] if cls.__name__ in INSTANCES else (cls(), {})
    suite(instance, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("suite", "instance", "options"), MORE, ids=[repr(m[1])[:60] for m in MORE])
def test_other_settings_keep_them_too(suite, instance, options):
    suite(instance, **options)


def test_no_public_class_is_unknown():
    """One that has no suite is an error, a record, an enumeration, or named above."""
    named = {name for names in NO_SUITE.values() for name in names}
    for name, cls in public_classes().items():
        plain = issubclass(cls, Exception | enum.Enum | tuple)
        assert suites(cls) or plain or name in named, f"bilevax.testing does not know {name}"


def test_an_algorithm_is_read_on_one_screen():
    """Its class with the docstring, of every one that is public."""
    lines = {name: len(inspect.getsourcelines(cls)[0]) for name, cls in public_classes().items()
             if check_algorithm in suites(cls)}  # fmt: skip
    assert len(lines) >= 9
    assert max(lines.values()) <= 90, lines


@pytest.mark.slow
def test_the_callers_configuration_is_left_as_it_is():
    with jax.enable_x64(False):
        before = dict(jax.config.values)
        check_estimator(bx.ITD(100), stochastic=False)
        assert dict(jax.config.values) == before
        assert jnp.zeros(1).dtype == np.float32


def test_a_source_that_lacks_a_member_is_told_which():
    methods = {
        name: getattr(bx.Arrays, name) for name in ("fold", "plan_chunk", "chunk_end", "visit", "total", "example")
    }
    for members, said in (({}, "Bare has no rows, as of"), (dict.fromkeys(MEMBERS, 1), "has no all_rows; pass table=")):
        bare = config(type("Bare", (), methods | members))()
        with pytest.raises(AssertionError, match=said):
            check_source(bare)


MEMBERS = "rows", "rows_per_batch", "is_full_batch", "blocks", "keys"


@config
class OneStream(Wrapped):
    """A source that hands every stage the same minibatches."""

    key: object

    def fold(self, step, carry, args, *, key, start, stop):
        return self.source.fold(step, carry, args, key=self.key, start=start, stop=stop)


@config
class Broken:
    """SID with a fault."""

    fault: str
    base: object = bx.SID(T, T, cross_batches=1)

    def check(self, problem):
        self.base.check(problem)

    def estimate(self, instance, w0, *, key, outer_step=0, v0=None):
        if self.fault == "streams":
            instance = instance._replace(train=OneStream(instance.train, key))
        if self.fault == "seed":
            key = jax.random.key(0)
        if self.fault == "start" and v0 is not None:
            instance = instance._replace(lam=jax.tree.map(lambda x: x + 0.1, instance.lam))
        est = self.base.estimate(instance, w0, key=key, outer_step=outer_step, v0=v0)
        if self.fault == "value":
            est = est._replace(value=jax.tree.map(lambda x: 1.001 * x, est.value))
        if self.fault == "dtype":
            est = est._replace(outer_value=est.outer_value.astype(np.float64))
        if self.fault == "code":
            est = est._replace(code=jnp.int32(bx.Code.OK))
        if self.fault == "cost":
            est = est._replace(cost=est.cost._replace(hvps=Count(jnp.int32(0), est.cost.hvps.rows)))
        return est


FAULTS = {
    "value": "value of Broken has a relative error of 1.0e-03 on FiniteQuadratic",
    "start": "at outer step 3 from a given v0",
    "code": "ends with TOLERANCE_NOT_MET, not NONFINITE, where the inner loss is NaN",
    "dtype": "where all arguments are float32",
    "cost": "reads 201 minibatches of train and counts 101",
    "seed": "gives the same value for every key",
    "streams": "is biased|is traced anew",  # its chains may look as if they grew, which another program looks into
}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(f, marks=pytest.mark.slow if f in ("start", "dtype", "cost", "seed", "streams") else ())
        for f in FAULTS
    ],
)
def test_a_wrong_estimator_is_caught(fault):
    with pytest.raises(AssertionError, match=FAULTS[fault]):
        check_estimator(Broken(fault))


@config
class Closure(Broken):
    """An estimator that is never equal to the same built again."""

    fault: str = "none"
    base: object = bx.SID(T, T, cross_batches=1)
    schedule: object = None

    def __post_init__(self):
        object.__setattr__(self, "schedule", lambda j: 1.0 / (1 + j))


class Mutable(bx.ITD):
    """No dataclass of its own is needed for this one to be wrong: it is no frozen dataclass at all."""


Mutable.__dataclass_params__ = type("Parameters", (), {"frozen": False})


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (Closure(), "compare equal to the same built again"),
        (Mutable(3), "must be a frozen dataclass"),
        (bx.FixedPoint(3), "must have a method check"),
        pytest.param(bx.ITD(3), "relative error .*(has it enough steps|try more linear steps)", marks=pytest.mark.slow),
    ],
    ids=["closure", "mutable", "another-kind", "few-steps"],
)
def test_what_is_no_estimator_is_told_so(estimator, message):
    with pytest.raises(AssertionError, match=message):
        check_estimator(estimator)


@config
class Plain(bx.CG):
    """CG that ignores its start."""

    def solve(self, matvec, g, metric, start=None):
        out = bx.CG(tol=1e-9).solve(matvec, g, metric)
        return out if start is None else out._replace(value=jax.tree.map(jnp.add, out.value, start))


@config
class Outside(bx.BSGM):
    """BSGM that does not project."""

    def step(self, problem, state, looks, k):
        return super().step(bx.Problem(problem.inner_map, problem.outer_loss), state, looks, k)


@config
class Uncounted(bx.SOBA):
    """SOBA that says nothing of what it does with train."""

    def step_cost(self, problem, sources):
        return super().step_cost(problem, sources)._replace(gradients=Count(), hvps=Count(), cross=Count())


@config
class Unweighted(Counted):
    """Blocks of which the short one counts as much as the others."""

    def visit(self, plan, j, use):
        return self.source.visit(plan, j, lambda draw: use(draw._replace(weight=1.0)))


@config
class OneKey(Counted):
    """Every draw brings the key of the first."""

    def visit(self, plan, j, use):
        key = jax.random.wrap_key_data(plan[1])
        return self.source.visit(plan, j, lambda draw: use(draw._replace(batch=draw.batch._replace(key=key))))


def nothing():
    """Counts nothing."""


@pytest.mark.parametrize(
    ("suite", "thing", "message"),
    [
        (check_linear_solver, Plain(tol=1e-9), "relative error"),
        (
            check_algorithm,
            Outside(bx.SID(bx.LBFGS(tol=1e-9), bx.CG(tol=1e-9)), bx.optim("sgd", 0.5)),
            "left the set Lambda",
        ),
        pytest.param(check_algorithm, Uncounted(0.5, 0.5), "of train and counts", marks=pytest.mark.slow),
        (check_source, Unweighted(bx.Arrays(TABLE[0], 47, sampling="blocks"), nothing), "is biased"),
        (check_source, OneKey(bx.Arrays(TABLE[0], 7, keys=True), nothing), "brings one key in several draws"),
    ],
    ids=["linear-solver", "algorithm", "uncounted", "source", "keys"],
)
def test_other_wrong_classes_are_caught(suite, thing, message):
    with pytest.raises(AssertionError, match=message):
        suite(thing)
