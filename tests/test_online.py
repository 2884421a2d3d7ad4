"""``bx.Online``: derivatives through the last K updates of a training loop, and the diagnostics of reweighting.

The loop of these tests has what loops have: Adam with its integer count, a decay per layer, weights of three sources,
dropout and batch statistics. Truth is central differences of the loop run by hand, in float64.
"""

from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax.core.errors import ParameterError
from bilevax.core.programs import programs_in
from bilevax.core.promotion import usual_promotion
from bilevax.core.trees import row
from bilevax.testing.closed_forms import FiniteQuadratic

ADAM = optax.scale_by_adam()
SOURCES, FEATURES, HIDDEN, ROWS = 3, 4, 5, 9
KEY = jax.random.key(3)


class Loop(NamedTuple):
    """What the loop carries."""

    weights: dict
    optimiser: object
    statistics: jax.Array
    count: jax.Array
    key: jax.Array


def features(weights, x):
    return jnp.tanh(x @ weights["first"])


def train_loss(weights, lam, batch, key):
    """Of each source the mean, weighed; one unit in three is dropped. Beside it, the mean of each hidden unit."""
    x, y, source = batch
    h = features(weights, x)
    kept = jax.random.bernoulli(key, 2 / 3, h.shape)
    losses = (jnp.where(kept, h, 0.0) @ weights["last"] - y) ** 2
    member = jax.nn.one_hot(source, SOURCES)
    return jnp.sum(lam["sources"] * (losses @ member)) / ROWS, jnp.mean(h, 0)


def train_step(w, lam, batch, key):
    key, mine = jax.random.fold_in(key, 7), w.key
    gradient, mean = jax.grad(train_loss, has_aux=True)(w.weights, lam, batch, key)
    with usual_promotion():
        change, optimiser = ADAM.update(gradient, w.optimiser)
    weights = {
        name: w.weights[name] - lam["rate"] * (change[name] + lam["decay"][name] * w.weights[name]) for name in change
    }
    return Loop(weights, optimiser, 0.9 * w.statistics + 0.1 * mean, w.count + 1, jax.random.split(mine)[0])


def guide_loss(w, lam, batch):
    """Reads the batch statistics, whose derivative counts, and lam itself."""
    x, y, _ = batch
    return jnp.mean(((features(w.weights, x) - w.statistics[None]) @ w.weights["last"] - y) ** 2) + 0.1 * lam["rate"]


def draw(seed, number=None):
    rng = np.random.default_rng(seed)
    shape = (ROWS,) if number is None else (number, ROWS)
    x, y = rng.normal(size=(*shape, FEATURES)), rng.normal(size=shape)
    return jnp.asarray(x), jnp.asarray(y), jnp.asarray(rng.integers(0, SOURCES, shape))


def start():
    rng = np.random.default_rng(0)
    weights = {"first": jnp.asarray(rng.normal(size=(FEATURES, HIDDEN))), "last": jnp.asarray(rng.normal(size=HIDDEN))}
    with usual_promotion():
        optimiser = ADAM.init(weights)
    return Loop(weights, optimiser, jnp.zeros(HIDDEN), jnp.int32(0), jax.random.key(1))


LAM = {"rate": 0.05, "decay": {"first": 0.1, "last": 0.02}, "sources": jnp.array([0.5, 0.3, 0.2])}
TRANSFORM = {"rate": "exp", "decay": "sigmoid", "sources": "softmax"}


def by_hand(lam, K, key=KEY):
    """The guide loss after K updates, one after the other."""
    w, batch = start(), draw(1, None if K == 1 else K)
    for j in range(K):
        mine = batch if K == 1 else row(batch, j)
        w = train_step(w, lam, mine, key if K == 1 else jax.random.split(key, K)[j])
    return guide_loss(w, lam, draw(2))


@pytest.mark.slow_but("3")
@pytest.mark.parametrize("K", [1, 3])
def test_the_hypergradient_is_that_of_central_differences_through_the_last_updates(K):
    online = bx.Online(train_step, guide_loss, K)
    state, info = online.step(online.init(start(), LAM), draw(1, None if K == 1 else K), draw(2), KEY)
    flat, unravel = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.asarray, LAM))
    steps = 1e-5 * jnp.concatenate([jnp.eye(flat.size), -jnp.eye(flat.size), jnp.zeros((1, flat.size))])
    values = jax.jit(jax.vmap(lambda step: by_hand(unravel(flat + step), K)))(steps)
    truth = (values[: flat.size] - values[flat.size : -1]) / 2e-5
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(info.value)[0], truth, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(info.outer_value, values[-1], rtol=1e-12)
    assert info.code == bx.Code.OK
    assert state.w.count == K
    assert state.w.optimiser.count == K


def test_of_the_rate_of_gradient_descent_it_is_minus_the_product_of_two_gradients():
    def loss(w, batch):
        return jnp.mean(jnp.tanh(batch @ w) ** 2)

    online = bx.Online(lambda w, rate, x, key: w - rate * jax.grad(loss)(w, x), lambda w, rate, x: loss(w, x))
    w, (x, *_), (guide, *_) = jnp.arange(1.0, FEATURES + 1) / 4, draw(1), draw(2)
    state, info = online.step(online.init(w, 0.3), x, guide, KEY)
    # -<grad E(w_1), grad G(w_0)>
    np.testing.assert_allclose(info.value, -jax.grad(loss)(state.w, guide) @ jax.grad(loss)(w, x), rtol=1e-12)


def products(jaxpr):
    """Matrix products in a program."""
    return sum(
        (e.primitive.name == "dot_general") + sum(map(products, programs_in(e.params.values()))) for e in jaxpr.eqns
    )


def test_one_update_has_no_second_derivative_in_w():
    """Rates and decays cost the products of two gradients; weights of the loss those of one more, less than two."""
    lam, batch = jax.tree.map(jnp.asarray, LAM), draw(1)
    w = bx.Online(train_step, guide_loss).init(start(), LAM).w
    train = products(jax.make_jaxpr(train_step)(w, lam, batch, KEY).jaxpr)
    guide = products(jax.make_jaxpr(jax.grad(guide_loss, allow_int=True))(w, lam, batch).jaxpr)

    def cost(moved):
        fixed = {name: x for name, x in lam.items() if name not in moved}
        online = bx.Online(
            lambda w, lam, batch, key: train_step(w, lam | fixed, batch, key),
            lambda w, lam, batch: guide_loss(w, lam | fixed, batch),
        )
        state = online.init(start(), {name: lam[name] for name in moved})
        return products(jax.make_jaxpr(online.step)(state, batch, batch, KEY).jaxpr)

    assert cost(["rate", "decay"]) == train + guide
    assert cost(["sources"]) <= 2 * train + guide


def test_with_the_whole_run_in_one_step_it_is_iterative_differentiation():
    p, steps = FiniteQuadratic.random(0, d=4, m=2), 12
    train, val = (bx.Arrays(rows) for rows in (p.train_data, p.val_data))
    w0, lam = jnp.ones(4), jnp.array([0.3, -0.2])
    itd = bx.hypergradient(p.problem, bx.ITD(steps), w0, lam, train, val, key=KEY)
    online = bx.Online(lambda w, lam, batch, key: p.problem.inner_map(w, lam, batch), p.problem.outer_loss, K=steps)
    batches = jax.tree.map(lambda x: jnp.stack([x] * steps), train.data)
    state, info = online.step(online.init(w0, lam), batches, val.data, KEY)
    np.testing.assert_allclose(info.value, itd.value, rtol=1e-12)
    np.testing.assert_allclose(info.outer_value, itd.outer_value, rtol=1e-12)
    np.testing.assert_allclose(state.w, itd.w, rtol=1e-12)


def test_lam_moves_in_the_coordinates_of_its_transform():
    outer = bx.optim("sgd", learning_rate=0.5)
    online = bx.Online(train_step, guide_loss, outer=outer, transform=TRANSFORM)
    state, info = online.step(online.init(start(), LAM), draw(1), draw(2), KEY)
    g, rate, decay, p = info.value, LAM["rate"], np.asarray(LAM["decay"]["first"]), np.asarray(LAM["sources"])
    # d exp(x) = lam dx;  d sigmoid(x) = lam (1 - lam) dx;  d softmax(x) = p (dx - <p, dx>)
    np.testing.assert_allclose(state.lam["rate"], rate * np.exp(-0.5 * rate * g["rate"]), rtol=1e-12)
    x = np.log(decay / (1 - decay)) - 0.5 * decay * (1 - decay) * g["decay"]["first"]
    np.testing.assert_allclose(state.lam["decay"]["first"], 1 / (1 + np.exp(-x)), rtol=1e-12)
    q = p * np.exp(-0.5 * p * (g["sources"] - p @ g["sources"]))
    np.testing.assert_allclose(state.lam["sources"], q / q.sum(), rtol=1e-12)


def test_a_loop_inside_of_jit_and_scan_is_the_eager_loop_and_a_changed_number_compiles_nothing(compilations):
    make = lambda rate: bx.Online(train_step, guide_loss, outer=bx.optim("adam", rate), transform=TRANSFORM)  # noqa: E731
    online, batches, keys = make(0.1), draw(1, 5), jax.random.split(KEY, 5)
    eager = online.init(start(), LAM)
    for j in range(5):
        before = compilations.number if j == 4 else None
        eager, _ = online.step(eager, row(batches, j), draw(2), keys[j])

    @jax.jit
    def scanned(state):
        return jax.lax.scan(lambda s, draws: online.step(s, draws[0], draw(2), draws[1]), state, (batches, keys))

    assert compilations.number == before
    make(0.2).step(eager, row(batches, 0), draw(2), keys[0])
    assert compilations.number == before
    state, info = scanned(online.init(start(), LAM))
    data = lambda s: s._replace(w=s.w._replace(key=jax.random.key_data(s.w.key)))  # noqa: E731
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), data(state), data(eager))
    assert info.outer_value.shape == (5,)


def test_a_rate_that_is_too_small_by_far_grows_until_the_loop_learns():
    """On a quadratic whose best rate is 1; at 1e-4 two hundred updates leave 96 % of the loss."""

    def loss(w, rate, x):
        return 0.5 * jnp.sum((w - x) ** 2)

    online = bx.Online(
        lambda w, rate, x, key: w - rate * jax.grad(loss)(w, rate, x),
        loss,
        outer=bx.optim("adam", 0.1),
        transform="exp",
    )

    @jax.jit
    def run(state, keys):
        return jax.lax.scan(lambda s, key: online.step(s, jnp.zeros(3), jnp.zeros(3), key), state, keys)

    state, info = run(online.init(jnp.ones(3), 1e-4), jax.random.split(KEY, 200))
    assert info.outer_value[-1] < 1e-6 * info.outer_value[0]
    assert 0.1 < state.lam < 2.0


def test_a_state_of_equinox_is_not_used_up():
    """Who updates one makes it useless for whoever handed it over."""
    norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(FEATURES, "batch", mode="batch")
    arrays, rest = eqx.partition(norm, eqx.is_inexact_array)

    def normed(arrays, state, x):
        apply = jax.vmap(eqx.combine(arrays, rest), axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        with usual_promotion():
            return apply(x, state)

    def update(w, rate, x, key):
        def loss(arrays):
            y, state = normed(arrays, w[1], x)
            return jnp.mean((y - 2.0) ** 2), state

        gradient, state = jax.grad(loss, has_aux=True)(w[0])
        return jax.tree.map(lambda a, g: a - rate * g, w[0], gradient), state

    online = bx.Online(update, lambda w, rate, x: jnp.mean((normed(*w, x)[0] - 2.0) ** 2), transform="exp")
    start = online.init((arrays, state), 0.1)
    _, info = online.step(start, draw(1)[0], draw(2)[0], KEY)
    _, again = online.step(start, draw(1)[0], draw(2)[0], KEY)
    np.testing.assert_array_equal(info.outer_value, again.outer_value)
    assert info.value < 0


def test_lam_stays_where_the_guide_loss_is_no_number():
    online = bx.Online(train_step, lambda w, lam, batch: guide_loss(w, lam, batch) * jnp.nan, transform=TRANSFORM)
    before = online.init(start(), LAM)
    state, info = online.step(before, draw(1), draw(2), KEY)
    assert info.code == bx.Code.NONFINITE
    jax.tree.map(np.testing.assert_array_equal, (state.lam, state.optimiser), (before.lam, before.optimiser))
    assert state.w.count == 1


def test_what_is_wrong_is_refused_in_a_sentence(refused):
    refused(
        lambda: bx.Online(1, guide_loss), ParameterError, r"train_step must be a function of \(w, lam, batch, key\)"
    )
    refused(lambda: bx.Online(train_step, guide_loss, 0), ParameterError, "K must be at least 1, got 0")
    refused(lambda: bx.Online(train_step, guide_loss, outer=0.1), ParameterError, "outer must be bx.optim")
    refused(lambda: bx.Online(train_step, guide_loss, transform="log"), ParameterError, "'exp', 'sigmoid', 'softmax'")
    online = bx.Online(train_step, guide_loss, transform=TRANSFORM)
    refused(lambda: online.init({"net": jnp.tanh}, LAM), ParameterError, r"leaf w\['net'\] is no array .* eqx.is_array")
    for lam, match in {
        ("rate", -1.0): r"lam with transform \"exp\" must be positive",
        ("decay", 1.0): r'transform "sigmoid" must be inside',
        ("sources", 2.0): r'transform "softmax" must be positive, with a sum of 1',
    }.items():
        refused(lambda: online.init(start(), LAM | {lam[0]: lam[1]}), ParameterError, match)  # noqa: B023
    refused(lambda: online.init(start(), {"rate": 0.1}), ParameterError, "transform must be a name, or a tree of names")
    state = online.init(start(), LAM)
    two = bx.Online(train_step, guide_loss, 2, transform=TRANSFORM)
    refused(
        lambda: two.step(state, draw(1), draw(2), KEY), ParameterError, "K=2 every leaf of batch has a leading axis"
    )
    refused(lambda: online.step(state, draw(1), draw(2), 0), ParameterError, "key must be one JAX random key")
    few = bx.Online(lambda w, lam, batch, key: w.weights, guide_loss)
    refused(
        lambda: few.step(few.init(start(), LAM), draw(1), draw(2), KEY), ParameterError, "train_step must return what"
    )
    other = bx.Online(lambda w, lam, batch, key: w._replace(count=w.count.astype(float)), guide_loss)
    refused(
        lambda: other.step(other.init(start(), LAM), draw(1), draw(2), KEY),
        ParameterError,
        r"train_step must return w\.count as it is given, int32\[\]; it returns float",
    )
    rows = bx.Online(train_step, lambda w, lam, batch: batch[1])
    refused(
        lambda: rows.step(rows.init(start(), LAM), draw(1), draw(2), KEY), ParameterError, "guide_loss must return a"
    )


def test_the_effective_sample_size_is_the_number_of_equal_weights():
    for k in (1, 3, 8):
        np.testing.assert_allclose(bx.effective_sample_size(jnp.arange(8.0) < k), k, rtol=1e-12)
    p = np.random.default_rng(0).random(50)
    np.testing.assert_allclose(bx.effective_sample_size(1e-200 * p), p.sum() ** 2 / (p**2).sum(), rtol=1e-12)


def test_the_retrain_gap_of_a_loop_is_that_of_the_loop_made_again():
    online = bx.Online(train_step, guide_loss, transform=TRANSFORM)
    state, batches = online.init(start(), LAM), draw(5, 6)
    keys = jax.random.split(KEY, 6)
    for j in range(6):
        state, _ = online.step(state, row(batches, j), draw(2), keys[j])
    again, update = start(), jax.jit(train_step)
    for j in range(6):
        again = update(again, state.lam, row(batches, j), keys[j])
    out = online.retrain_gap(state, start(), batches, draw(2), KEY)
    values = [guide_loss(w, state.lam, draw(2)) for w in (state.w, again)]
    np.testing.assert_allclose((out.outer_value, out.retrained_value), values, rtol=1e-9)
    np.testing.assert_allclose(out.gap, values[1] - values[0], rtol=1e-9)
    assert out.code == bx.Code.OK
    assert out.w.count == 6


def test_the_retrain_gap_of_a_run_is_to_the_solution_of_the_inner_problem():
    p = FiniteQuadratic.random(1, d=4, m=2)
    train, val = (bx.Arrays(rows) for rows in (p.train_data, p.val_data))
    lam, w = np.array([0.3, -0.2]), np.ones(4)
    out = bx.retrain_gap(p.problem, w, lam, np.zeros(4), train, val, key=KEY, inner=bx.LBFGS(tol=1e-12))
    np.testing.assert_allclose(out.retrained_value, p.value(lam), rtol=1e-9)
    at_w = p.problem.outer_loss(jnp.asarray(w), jnp.asarray(lam), val.data)
    np.testing.assert_allclose(out.gap, p.value(lam) - at_w, rtol=1e-9)
    fixed = bx.retrain_gap(p.problem, w, lam, np.zeros(4), train, val, key=KEY, inner=bx.FixedPoint(3000))
    np.testing.assert_allclose(fixed.gap, out.gap, rtol=1e-6)
    plain = bx.Problem(lambda w, lam, batch: 0.5 * w, p.problem.outer_loss)
    with pytest.raises(ParameterError, match="LBFGS needs an inner loss"):
        bx.retrain_gap(plain, w, lam, w, train, val, key=KEY)
