"""What a user reads first: an estimate in one line, and how to pass a model."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax.core.records import Cost, ErrorReport, Estimate, Failure
from bilevax.core.trees import as_parameters


def record(scale: float = 1.0, *, error: bool = True) -> Estimate:
    """|value| = 5, |w| = 13, standard error 3/10 and 4/10, bias 0: relative error .1."""
    value = {"a": scale * jnp.asarray([3.0, 0.0]), "b": scale * jnp.asarray(4.0)}
    spread = {"a": scale * jnp.asarray([0.3, 0.0]), "b": scale * jnp.asarray(0.4)}
    none = jnp.full((), jnp.nan)
    report = ErrorReport(value, spread, jnp.zeros(()), jnp.int32(11), none, none, none, none)
    w = scale * jnp.asarray([5.0, 12.0])
    return Estimate(
        value, jnp.asarray(0.25), w, None, jnp.int32(1), Cost(), Failure.of("none"), report if error else None
    )


def test_an_estimate_in_one_line() -> None:
    shapes = r"value ['a'] float64[2], ['b'] float64[]; w float64[2]"
    assert (
        str(record())
        == f"Estimate(TOLERANCE_NOT_MET, relative error 0.1, |value| 5, outer_value 0.25, |w| 13; {shapes})"
    )
    assert repr(record(error=False)) == f"Estimate(TOLERANCE_NOT_MET, |value| 5, outer_value 0.25, |w| 13; {shapes})"
    line = (
        "ErrorReport(relative error 0.1, |standard_error| 0.5, |bias| 0, degrees 11; "
        "value ['a'] float64[2], ['b'] float64[])"
    )
    assert str(record().error) == line
    many = record()._replace(w=[jnp.zeros(50)] * 5)
    assert "w 5 leaves of 250 entries" in str(many)
    assert len(str(record()._replace(w=jnp.zeros(100_000)))) < 200


def test_several_estimates_in_one_line() -> None:
    several = jax.vmap(record)(jnp.asarray([1.0, 10.0]))._replace(code=jnp.asarray([0, 1]))
    line = str(several)
    assert line.startswith(
        "Estimate(1 OK, 1 TOLERANCE_NOT_MET, relative error 0.1, |value| 5 to 50, outer_value 0.25, |w| 13 to 130;"
    )
    assert str(several.error).startswith(
        "ErrorReport(relative error 0.1, |standard_error| 0.5 to 5, |bias| 0, degrees 11;"
    )


def test_an_estimate_without_numbers() -> None:
    said = []

    def note(scale: jax.Array) -> jax.Array:
        said.extend([str(record(scale)), str(record(scale).error)])
        return scale

    for run in (jax.jit(note), jax.grad(note)):
        run(1.0)
    for line in said[::2]:
        assert line.startswith("Estimate(value ['a'] float64[2], ['b'] float64[], outer_value float64[], w float64[2]")
    for line in said[1::2]:
        assert line.startswith("ErrorReport(value ['a'] float64[2]")
    assert str(jax.eval_shape(lambda: record())) == said[0]
    assert str(jax.tree.map(lambda x: None, record())).startswith("Estimate(value None")
    assert str(jax.tree.map(lambda x: "x", record())).startswith("Estimate(value ")


SPLIT = r"split the {} with eqx.partition\({}, eqx.is_inexact_array\), pass the float part, .* with eqx.combine"
MODEL = eqx.nn.MLP(2, 1, 3, 1, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (MODEL, r"^leaf w0.activation is a function; " + SPLIT.format("model", "model")),
        (object(), r"^leaf w0 is an object of type object; " + SPLIT.format("model", "model")),
        (
            optax.adam(0.1).init(jnp.ones(3)),
            r"^leaf w0\[0\].count is int32; pass a float array, or, where it is no parameter, "
            + SPLIT.format("tree", "tree"),
        ),
        ({"a": jnp.ones(2), "on": True}, r"^leaf w0\['on'\] is bool; pass a float array, or, .* split the tree"),
        ({"a": jnp.ones(2), "k": jax.random.key(0)}, r"^leaf w0\['k'\] is key<fry>; pass a float array, or, "),
        (jnp.arange(3), r"^leaf w0 is int64; pass a float array$"),
    ],
)
def test_what_is_no_parameter_is_refused_with_how_to_split(tree: object, message: str) -> None:
    with pytest.raises(bx.ParameterError, match=message):
        as_parameters("w0", tree)


def test_a_model_that_is_split_as_told() -> None:
    params, rest = eqx.partition(eqx.nn.MLP(2, 1, 3, 1, dtype=float, key=jax.random.key(0)), eqx.is_inexact_array)
    X, y = np.random.default_rng(0).normal(size=(6, 2)), np.ones((6, 1))

    def fit(w: eqx.nn.MLP, lam: jax.Array, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.mean((jax.vmap(eqx.combine(w, rest))(batch[0]) - batch[1]) ** 2)

    def inner(w: eqx.nn.MLP, lam: jax.Array, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        return fit(w, lam, batch) + jnp.exp(lam) * sum(jnp.sum(x**2) for x in jax.tree.leaves(w))

    rows, sid = bx.Arrays((X, y)), bx.SID(bx.FixedPoint(3), bx.FixedPoint(3))
    problem = bx.Problem(bx.GradientStep(inner, 0.1), fit)
    est = bx.hypergradient(problem, sid, params, 0.0, rows, rows, key=jax.random.key(0), report=False)
    model = eqx.combine(est.w, rest)
    np.testing.assert_allclose(est.outer_value, np.mean((jax.vmap(model)(X) - y) ** 2), rtol=1e-12)
