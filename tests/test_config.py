"""Configurations: compared by value, cast to one dtype, written as plain values, refused with a sentence."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax.core.config import canonicalize, config, from_plain, qualname, replace_unchecked, static, to_plain
from bilevax.testing.closed_forms import FiniteQuadratic, PenalisedRidge


def a_loss(w, lam, batch):
    return jnp.sum(w**2)


def another_loss(w, lam, batch):
    return jnp.sum(w**4)


def build():
    """One of each, built from nothing."""
    groups = bx.Groups([0, 0, 1])
    sid = bx.SID(
        bx.FixedPoint(7, bx.Harmonic(2, 3.0)), bx.CG(1e-8, 50, 0.1), cross_batches=4, outer_batches=bx.Growing(2.0)
    )
    return {
        "Constant": bx.Constant(0.5),
        "Harmonic": bx.Harmonic(2.0, 3.0),
        "Polynomial": bx.Polynomial(0.5, 0.6, 7.0),
        "Growing": bx.Growing(2.0, 0.5),
        "FixedPoint": bx.FixedPoint(7, bx.Harmonic(2.0, 3.0)),
        "FixedPoint of a number": bx.FixedPoint(bx.Growing(1.0), 0.25),
        "Given": bx.Given(),
        "CG": bx.CG(1e-8, 50, 0.1),
        "LBFGS": bx.LBFGS(1e-8, 50),
        "SID": sid,
        "BSGM": bx.BSGM(sid, bx.optim("adam", 0.05, b1=0.8), warm_start=True),
        "optim": bx.optim("sgd", 0.1, momentum=0.9),
        "Box": bx.Box(-1, 2.5),
        "Box of arrays": bx.Box(np.zeros(3), np.ones(3)),
        "NonNegative": bx.NonNegative(),
        "L2Ball": bx.L2Ball(2.0),
        "Simplex": bx.Simplex(3.0),
        "CappedSimplex": bx.CappedSimplex(3.0),
        "Squared": bx.Squared("feature"),
        "Squared of groups": bx.Squared(groups),
        "BinaryLogistic": bx.BinaryLogistic("global"),
        "MultinomialLogistic": bx.MultinomialLogistic(),
        "GradientStep": bx.GradientStep(a_loss, 0.1),
        "GradientStep of arrays": bx.GradientStep(a_loss, np.linspace(0.1, 1.0, 3)),
        "GradientStep of a loss": bx.GradientStep(bx.BinaryLogistic("feature")),
        "Problem": bx.Problem(bx.GradientStep(a_loss, 0.1), another_loss, bx.Box(-1.0, 1.0)),
        "FiniteQuadratic": FiniteQuadratic.random(0, n=4, d=2, m=2),
        "PenalisedRidge": PenalisedRidge.random(0, n=5, d=2),
    }


NAMES = list(build())


@pytest.mark.parametrize("name", NAMES)
def test_a_rebuilt_configuration_is_equal(name):
    a, b = build()[name], build()[name]
    assert a == b
    assert (a != b) is False
    assert hash(a) == hash(b)
    assert repr(a) == repr(b)
    assert repr(a).startswith(type(a).__name__ + "(")
    assert jax.tree.structure(a) == jax.tree.structure(b)


def test_no_two_configurations_are_equal():
    all_of_them = list(build().values())
    for i, a in enumerate(all_of_them):
        assert [a == b for b in all_of_them].index(True) == i
    assert bx.Constant(1.0) != "Constant(value=1.0)"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (bx.Constant(1.0), bx.Constant(2.0)),
        (bx.Box(-1.0, np.ones(3)), bx.Box(-1.0, np.ones(4))),
        (bx.Box(-1.0, np.ones(3)), bx.Box(-1.0, np.array([1.0, 1.0, 2.0]))),
        (bx.Squared("feature"), bx.Squared("weight")),
        (bx.Squared(), bx.MultinomialLogistic()),
        (bx.GradientStep(a_loss, 0.1), bx.GradientStep(another_loss, 0.1)),
        (bx.SID(bx.FixedPoint(1), bx.CG()), bx.SID(bx.FixedPoint(1), bx.CG(), cross_batches=1)),
        (bx.optim("sgd", 0.1), bx.optim("adam", 0.1)),
        (bx.optim("sgd", 0.1), bx.optim("sgd", 0.1, momentum=0.9)),
        (bx.Arrays(np.ones(3), 2), bx.Arrays(np.ones(3), 1)),
        (bx.Arrays(np.ones(3), 2), bx.Arrays(np.zeros(3), 2)),
    ],
)
def test_a_changed_part_is_a_difference(a, b):
    assert a != b


@pytest.mark.parametrize("number", [0.25, np.float64(0.25), np.float32(0.25), jnp.asarray(0.25), jnp.float32(0.25)])
def test_numbers_of_every_kind_make_the_same_configuration(number):
    assert bx.Constant(number) == bx.Constant(0.25)
    assert type(bx.Constant(number).value) is float
    assert bx.GradientStep(a_loss, number) == bx.GradientStep(a_loss, 0.25)
    assert bx.FixedPoint(3, number) == bx.FixedPoint(np.int64(3), bx.Constant(0.25))
    assert type(bx.FixedPoint(np.int64(3)).steps) is int
    assert bx.FixedPoint(3.0).steps == 3


def test_fields_cannot_be_assigned():
    with pytest.raises(AttributeError):
        bx.Constant(1.0).value = 2.0


@pytest.mark.parametrize("name", NAMES)
def test_strong_casts_every_number_to_one_dtype(name):
    leaves = jax.tree.leaves(canonicalize(build()[name]))
    for leaf in leaves:
        assert isinstance(leaf, jax.Array)
        assert not leaf.weak_type
        assert leaf.dtype in (jnp.float64, jnp.int32)


@pytest.mark.parametrize("number", [1, 1.0, True, np.int64(1), np.float32(1), np.float64(1), jnp.float64(1)])
def test_strong_on_bare_numbers(number):
    out = canonicalize({"a": number})["a"]
    wanted = {int: jnp.int32, np.int64: jnp.int32, bool: jnp.bool_}.get(type(number), jnp.float64)
    assert out.dtype == wanted
    assert not out.weak_type


def test_strong_on_weakly_typed_arrays():
    for x in (jnp.asarray(0.4), jnp.full(3, 0.4)):
        assert x.weak_type
        assert not canonicalize(x).weak_type


def test_strong_leaves_keys_and_arrays_as_they_are():
    key, x = jax.random.key(0), np.arange(3, dtype=np.float32)
    out = canonicalize((key, x))
    assert out[0].dtype == key.dtype
    assert out[1].dtype == jnp.float32


def test_a_configuration_survives_transformations():
    """Rebuilt from its leaves without validation, so that tracers pass."""
    problem = build()["Problem"]
    leaves, structure = jax.tree.flatten(problem)
    assert jax.tree.unflatten(structure, leaves) == problem
    doubled = jax.jit(lambda p: jax.tree.map(lambda x: 2 * x, p))(problem)
    assert doubled == bx.Problem(bx.GradientStep(a_loss, 0.2), another_loss, bx.Box(-2.0, 2.0))
    assert jax.grad(lambda c: c.value**2)(bx.Constant(3.0)) == bx.Constant(6.0)
    assert replace_unchecked(bx.Constant(3.0), value="unchecked").value == "unchecked"


def test_names_of_leaves_are_those_of_the_fields():
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(build()["SID"])]
    assert paths == [
        ".inner.steps",
        ".inner.step_size.beta",
        ".inner.step_size.gamma",
        ".inner.tol",
        ".linear.tol",
        ".linear.max_steps",
        ".linear.damping",
        ".cross_batches",
        ".outer_batches.rate",
        ".outer_batches.power",
    ]


def test_static_fields_are_structure():
    @config
    class Part:
        number: float
        size: int = static(3)

    assert jax.tree.leaves(Part(1.0)) == [1.0]
    assert jax.tree.structure(Part(1.0)) == jax.tree.structure(Part(2.0))
    assert jax.tree.structure(Part(1.0)) != jax.tree.structure(Part(1.0, 4))


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_goes_through_json_and_back(name):
    value = build()[name]
    text = json.dumps(to_plain(value), allow_nan=False)
    again = from_plain(json.loads(text))
    assert again == value
    assert json.dumps(to_plain(again)) == text


@pytest.mark.parametrize("box", [bx.Box(lower=0.0), bx.Box(upper=1.0)])
def test_a_box_open_to_one_side_can_be_written(box):
    assert from_plain(json.loads(json.dumps(to_plain(box), allow_nan=False))) == box


@config
class OddlyNamed:
    """Its fields are called as the tags of the written form are."""

    number: float
    array: float
    dtype: str = "float64"


def test_a_field_may_be_called_as_a_tag_is():
    assert from_plain(to_plain(OddlyNamed(1.0, 2.0))) == OddlyNamed(1.0, 2.0)


def test_numbers_inside_are_written_as_numbers():
    assert to_plain({"a": np.float32(0.5), "b": jnp.int32(2), "c": (1, None, "x")}) == {
        "a": 0.5,
        "b": 2,
        "c": [1, None, "x"],
    }
    assert to_plain(bx.Constant(0.5)) == {"type": "bilevax.solvers.schedules:Constant", "value": 0.5}
    assert to_plain(a_loss) == {"function": f"{__name__}:a_loss"}


def test_a_function_without_a_name_is_written_and_refused_on_reading():
    def local(w, lam, batch):
        return 0.0

    for function in (local, lambda w, lam, batch: 0.0):
        plain = json.loads(json.dumps(to_plain(bx.GradientStep(function, 0.1))))
        assert "<" in plain["loss"]["function"]
        with pytest.raises(bx.ParameterError, match="give the function a name at the top of a module"):
            from_plain(plain)


def test_a_raw_optax_object_is_written_and_refused_on_reading():
    plain = json.loads(json.dumps(to_plain(bx.BSGM(bx.SID(bx.Given(), bx.CG()), optax.sgd(0.1)))))
    with pytest.raises(bx.ParameterError):
        from_plain(plain)


@pytest.mark.parametrize(
    "plain",
    [
        {"type": "os:system", "command": "true"},
        {"type": "builtins:dict"},
        {"type": "bilevax.solvers.schedules:Nothing"},
        {"type": "a_module_that_is_not_loaded:Class"},
        {"function": "bilevax"},
        {"type": "bilevax.core.records:Cost"},
    ],
)
def test_reading_makes_configurations_only_and_imports_nothing(plain):
    with pytest.raises(bx.ParameterError):
        from_plain(plain)


def test_reading_validates():
    plain = to_plain(bx.Constant(0.5)) | {"value": -1.0}
    with pytest.raises(bx.ParameterError, match="value must lie in"):
        from_plain(plain)


def test_names_of_functions():
    assert qualname(a_loss) == f"{__name__}:a_loss"
    assert qualname(bx.Squared.per_row) == "bilevax.problems.losses:Squared.per_row"
    assert repr(bx.GradientStep(a_loss, 0.5)) == f"GradientStep(loss={__name__}:a_loss, step_size=0.5)"
    assert repr(bx.Box(-1.0, np.ones(3))) == "Box(lower=-1.0, upper=float64[3])"


NOT_A_NUMBER = "must be a real number"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: bx.Constant(0.0), r"value must lie in \]0, inf\], got 0"),
        (lambda: bx.Constant(-1), r"value must lie in \]0, inf\], got -1"),
        (lambda: bx.Constant(np.nan), r"value must lie in .* got nan"),
        (lambda: bx.Constant("1"), NOT_A_NUMBER),
        (lambda: bx.Constant(True), NOT_A_NUMBER),
        (lambda: bx.Constant(None), NOT_A_NUMBER),
        (lambda: bx.Constant(np.ones(2)), NOT_A_NUMBER),
        (lambda: bx.Constant(1j), NOT_A_NUMBER),
        (lambda: bx.Harmonic(0.0, 1.0), "beta must lie in"),
        (lambda: bx.Harmonic(1.0, -1.0), "gamma must lie in"),
        (lambda: bx.Polynomial(power=1.5), r"power must be at most 1, got 1.5"),
        (lambda: bx.Polynomial(horizon=0), "horizon must lie in"),
        (lambda: bx.Growing(0), "rate must lie in"),
        (lambda: bx.Growing(1.0, -1), "power must lie in"),
        (lambda: bx.FixedPoint(-1), "steps must be at least 0, got -1"),
        (lambda: bx.FixedPoint(1.5), "steps must be a whole number, got 1.5"),
        (lambda: bx.FixedPoint("9"), "steps must be a whole number, got '9'"),
        (lambda: bx.FixedPoint(True), "steps must be a whole number, got True"),
        (lambda: bx.FixedPoint(3, "fast"), r"step_size must be a number or a schedule such as Harmonic\(beta, gamma\)"),
        (lambda: bx.FixedPoint(3, None), "step_size must be a number or a schedule"),
        (lambda: bx.FixedPoint(3, 0), "step_size must lie in"),
        (lambda: bx.CG(tol=0), "tol must lie in"),
        (lambda: bx.CG(max_steps=0), "max_steps must be at least 1, got 0"),
        (lambda: bx.CG(damping=-0.1), "damping must lie in"),
        (lambda: bx.LBFGS(tol=-1), "tol must lie in"),
        (lambda: bx.LBFGS(max_steps=2.5), "max_steps must be a whole number, got 2.5"),
        (lambda: bx.SID(3, bx.CG()), r"inner must be a solver such as bx.FixedPoint\(steps=100\), got 3"),
        (lambda: bx.SID(bx.Given(), bx.Given()), "linear must be a solver such as"),
        (lambda: bx.SID(bx.CG(), bx.CG()), "inner must solve any map, and CG solves affine ones"),
        (lambda: bx.SID(bx.LBFGS(), bx.LBFGS()), "linear must solve linear systems, and LBFGS does not"),
        (lambda: bx.SID(bx.LBFGS(), bx.CG), "linear must .* got the class CG; give an object|linear must solve"),
        (lambda: bx.Penalty(bx.GMRES()), "inner must solve any map, and GMRES solves affine ones"),
        (lambda: bx.ScoreFunction(bx.CG()), "inner must solve any map, and CG solves affine ones"),
        (lambda: bx.join(a=3), r"a must be a source of rows, such as bx.Arrays\(data, batch_size\), got int"),
        (lambda: bx.Arrays(np.ones(4), 2, "windows"), 'sampling="windows" needs groups='),
        (lambda: bx.SID(bx.Given(), bx.CG(), cross_batches=0), "cross_batches must be at least 1, got 0"),
        (lambda: bx.SID(bx.Given(), bx.CG(), outer_batches=-1), "outer_batches must be at least 1, got -1"),
        (lambda: bx.BSGM(bx.CG(), bx.optim("sgd", 0.1)), r"estimator must be one such as bx.SID\(...\)"),
        (lambda: bx.BSGM(bx.SID(bx.Given(), bx.CG()), "adam"), "outer must be bx.optim"),
        (lambda: bx.optim("no such optimiser", 0.1), "optax has no optimiser 'no such optimiser'"),
        (lambda: bx.optim("sgd", 0.0), "learning_rate must lie in"),
        (lambda: bx.optim("sgd", 0.1, b1=0.9), "optax.sgd does not take these numbers"),
        (lambda: bx.optim("sgd", 0.1, momentum="much"), "momentum must be a real number"),
        (lambda: bx.optim("cosine_decay_schedule", 0.1), "cosine_decay_schedule"),
        (lambda: bx.Box(2.0, 1.0), "lower must not exceed upper, got 2 > 1"),
        (lambda: bx.Box("low"), "lower must be a real number, got 'low'"),
        (lambda: bx.L2Ball(0.0), "radius must lie in"),
        (lambda: bx.Simplex(-1.0), "total must lie in"),
        (lambda: bx.CappedSimplex(0.0), "total must lie in"),
        (lambda: bx.Squared("row"), "penalty must be one of 'global', 'class', 'feature', 'weight'; got 'row'"),
        (lambda: bx.Groups([0.5]), "index must be a vector of group numbers"),
        (lambda: bx.Groups([0, -1]), "index must be a vector of group numbers"),
        (lambda: bx.GradientStep(0.1), r"loss must be a function of \(w, lam, batch\), got 0.1"),
        (lambda: bx.GradientStep(a_loss, 0), "step_size must lie in"),
        (lambda: bx.GradientStep(a_loss, "small"), "step_size must be a real number, got 'small'"),
        (lambda: bx.Problem(a_loss, None), r"outer_loss must be a function of \(w, lam, batch\), got None"),
        (lambda: bx.Problem(0, a_loss), "inner_map must be a function of"),
        (lambda: bx.Problem(a_loss, a_loss, 3.0), "project must be a function of lam or None, got 3.0"),
    ],
)
def test_a_wrong_value_is_refused_with_a_sentence(build, message):
    with pytest.raises(bx.ParameterError, match=message):
        build()


def door(problem=None, estimator=None, w0=None, lam=None, train=None, **options):
    """bx.hypergradient on a small problem, with some arguments exchanged."""
    rows = np.zeros((4, 3))
    problem = bx.Problem(bx.GradientStep(a_loss, 0.1), a_loss) if problem is None else problem
    estimator = bx.SID(bx.FixedPoint(2), bx.FixedPoint(2)) if estimator is None else estimator
    w0, lam = (np.ones(3) if x is None else x for x in (w0, lam))
    options = {"key": jax.random.key(0)} | options
    train = bx.Arrays(rows) if train is None else train
    return bx.hypergradient(problem, estimator, w0, lam, train, bx.Arrays(rows), **options)


def test_what_a_function_of_the_users_raises_is_raised_with_what_it_was_given():
    problem = bx.Problem(bx.GradientStep(lambda w, lam, batch: jnp.sum((batch @ w) ** 2), 0.1), a_loss)
    with pytest.raises(TypeError, match="dot_general") as caught:
        door(problem, w0=np.zeros(5))
    given = "the inner loss was given w float64[5], lam float64[3] and batch float64[4,3]."
    assert given in caught.value.__notes__  # beside that of JAX


def test_the_door_opens_for_right_arguments():
    assert door(estimator=bx.SID(bx.FixedPoint(200), bx.FixedPoint(200))).code == bx.Code.OK


def a_map(w, lam, batch):
    return 0.5 * w


def a_longer_map(w, lam, batch):
    return jnp.concatenate([w, w])


def a_narrower_map(w, lam, batch):
    return (0.5 * w).astype(jnp.float32)


def a_nested_map(w, lam, batch):
    return {"w": w}


def a_vector_loss(w, lam, batch):
    return w


def a_count_loss(w, lam, batch):
    return jnp.int32(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"w0": np.arange(3)}, "leaf w0 is int64; pass a float array"),
        ({"w0": {"a": np.ones(3), "b": np.ones(2) > 0}}, r"leaf w0\['b'\] is bool; pass a float array"),
        ({"w0": np.ones(3) * 1j}, "leaf w0 is complex128"),
        ({"w0": np.zeros(0)}, r"leaf w0 is empty, shape \(0,\)"),
        ({"w0": {}}, "w0 has no leaves"),
        ({"lam": [np.ones(2), np.array([1.0, np.nan])]}, r"leaf lam\[1\] contains NaN or infinity"),
        ({"lam": np.array(["a"])}, "leaf lam is <U1"),
        ({"key": 0}, r"key must be one JAX random key such as jax.random.key\(0\), got 0"),
        (
            {"problem": bx.Problem(a_longer_map, a_loss)},
            r"inner_map returns float64\[6\] for leaf w, which is float64\[3\]",
        ),
        (
            {"problem": bx.Problem(a_narrower_map, a_loss)},
            r"inner_map returns float32\[3\] for leaf w, which is float64",
        ),
        (
            {"train": (np.ones((3, 3)), np.ones(3))},
            "train must be a source of rows, such as .*, got tuple",
        ),
        ({"problem": bx.Problem(a_nested_map, a_loss)}, "inner_map must return a tree like w"),
        ({"problem": bx.Problem(a_map, a_vector_loss)}, r"outer_loss must return a scalar, got \(3,\); take the mean"),
        ({"problem": bx.Problem(a_map, a_count_loss)}, "outer_loss must return a float, got int32"),
        ({"problem": bx.Problem(a_map, lambda *_: None)}, "outer_loss must return a scalar, got None; is its `return`"),
        ({"problem": bx.Problem(a_map, lambda w, *_: (w[0], w))}, "outer_loss must return a scalar alone, got"),
        ({"problem": bx.Problem(lambda w, *_: w[0], a_loss)}, r"a loss becomes a map by bx.GradientStep\(loss\)"),
        ({"problem": a_loss}, r"problem must be a bx.Problem\(.*, got the function a_loss"),
        ({"estimator": bx.SOBA()}, "estimator must be one such as .*, got SOBA; algorithms are run by bx.minimize"),
        ({"estimator": bx.SID}, "got the class SID; give an object, SID"),
        ({"v0": np.zeros(4)}, r"v0 must be like w0, float64\[3\], got float64\[4\]"),
        (
            {"problem": bx.Problem(a_map, a_loss, bx.Box(np.zeros(4), np.ones(4)))},
            r"project does not take lam, float64\[3\]: ",
        ),
        (
            {"problem": bx.Problem(bx.GradientStep(a_vector_loss, 0.1), a_loss)},
            r"the inner loss must return a scalar, got \(3,\)",
        ),
        (
            {"problem": bx.Problem(a_map, a_loss, lambda lam: lam[:2])},
            r"project returns float64\[2\] for leaf lam, which is float64\[3\]",
        ),
        (
            {"problem": bx.Problem(a_map, a_loss), "estimator": bx.SID(bx.FixedPoint(1), bx.CG())},
            "CG needs a symmetric system",
        ),
        (
            {"problem": bx.Problem(a_map, a_loss), "estimator": bx.SID(bx.LBFGS(), bx.FixedPoint(1))},
            "LBFGS needs an inner loss without a prox, and the inner map has none",
        ),
    ],
)
def test_the_door_refuses_wrong_arguments(arguments, message):
    with pytest.raises(bx.ParameterError, match=message):
        door(**arguments)
