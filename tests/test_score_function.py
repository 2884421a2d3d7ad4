"""The score-function estimator against all masks there are, and on real data."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bilevax as bx
from bilevax.core.keys import stream
from bilevax.testing.closed_forms import FiniteQuadratic

KEY = jax.random.key(5)
N, D, C = 4, 3, 5
RNG = np.random.default_rng(0)
X, TARGET = RNG.normal(size=(N, D)), RNG.normal(size=D)
S = np.array([0.2, 0.5, 0.7, 0.9])


def masked(w, m, batch):
    """|w|^2 / 2 - w' (sum of the chosen rows): its solution is that sum."""
    return 0.5 * w @ w - w @ (batch["x"].T @ m)


def quartic(w, m, batch):
    """Of which no derivative is asked for: it has a jump."""
    r = w - batch["target"][0]
    return jnp.sum(r**2) ** 2 / 10 + jnp.where(m[0] > 0.5, 1.0, 0.0) * jnp.floor(m[0])


PROBLEM = bx.Problem(bx.GradientStep(masked, 1.0), quartic)
SOURCES = bx.Arrays({"x": X}), bx.Arrays({"target": TARGET[None]})


def value_of(m):
    return np.sum((X.T @ m - TARGET) ** 2) ** 2 / 10 + (m[0] > 0.5)


MASKS = np.array(list(itertools.product([0.0, 1.0], repeat=N)))
CHANCES = np.prod(np.where(MASKS == 1, S, 1 - S), axis=1)
VALUES = np.array([value_of(m) for m in MASKS])
TRUTH = CHANCES * VALUES @ ((MASKS - S) / (S * (1 - S)))
"""d / ds of the sum over all masks of p(m; s) L(m)."""


def test_the_truth_is_the_derivative_of_the_mean():
    def mean(s):
        return np.prod(np.where(MASKS == 1, s, 1 - s), axis=1) @ VALUES

    np.testing.assert_allclose(TRUTH, [(mean(S + e) - mean(S - e)) / 2e-5 for e in 1e-5 * np.eye(N)], rtol=1e-7)


def estimate(key, inner, s=S, sources=SOURCES, **options):
    estimator = bx.ScoreFunction(inner, options.pop("samples", C))
    return bx.hypergradient(PROBLEM, estimator, np.zeros(D), s, *sources, key=key, **options)


def test_one_estimate_is_the_published_formula():
    est = estimate(KEY, bx.FixedPoint(3))
    m = np.asarray(bx.Bernoulli().draw(stream(KEY, "outer"), jnp.asarray(S), C))
    losses = np.array([value_of(x) for x in m])
    score = (m - S) / (S * (1 - S))
    np.testing.assert_allclose(est.value, (losses - losses.mean()) @ score / (C - 1), rtol=1e-12)
    np.testing.assert_allclose(est.outer_value, losses.mean(), rtol=1e-12)
    np.testing.assert_allclose(est.w, (m @ X).mean(0), rtol=1e-12)
    counts = {name: int(part.calls) for name, part in est.cost._asdict().items()}
    assert counts == {"gradients": 3 * C, "hvps": 0, "cross": 0, "outer_gradients": 2 * C, "measuring": 0}
    # five draws of masks say little, and the code says so
    assert est.code == bx.Code.TOLERANCE_NOT_MET
    assert "more samples" in est.message


def test_its_mean_is_the_derivative_and_its_standard_error_its_own():
    def drawn(samples):
        def one(key):
            est = estimate(key, bx.FixedPoint(1), samples=samples)
            return est.value, est.error.standard_error

        return map(np.asarray, jax.jit(jax.vmap(one))(jax.random.split(KEY, 4000)))

    values, errors = drawn(C)
    # infinite as often as all draws agree
    agree = S**C + (1 - S) ** C
    np.testing.assert_allclose(np.isinf(errors).mean(0), agree, atol=4.5 * (0.25 / 4000) ** 0.5)
    spread = values.std(0, ddof=1)
    np.testing.assert_array_less(np.abs(values.mean(0) - TRUTH), 4.5 * spread / 4000**0.5)
    # the baseline is worth more than it costs: without it, the sum of L_c score_c / C
    plain = np.sqrt((CHANCES * VALUES**2 @ ((MASKS - S) / (S * (1 - S))) ** 2 - TRUTH**2) / C)
    assert np.all(spread < 0.95 * plain), spread / plain
    assert np.linalg.norm(spread) < 0.8 * np.linalg.norm(plain)
    # root mean square of the reported ones, of so many draws that never all agree
    values, errors = drawn(150)
    np.testing.assert_allclose(np.sqrt(np.mean(errors**2, axis=0)), values.std(0, ddof=1), rtol=0.1)


def test_an_entry_that_is_certain_stays_and_does_no_harm():
    est = estimate(KEY, bx.FixedPoint(1), s=np.array([0.0, 1.0, 0.5, 0.5]), tol=1e9)
    assert np.isfinite(est.value).all()
    np.testing.assert_array_equal(np.asarray(est.value)[:2], 0.0)
    np.testing.assert_array_equal(np.isinf(est.error.standard_error), [True, True, False, False])  # unseen, not certain
    assert est.code == bx.Code.TOLERANCE_NOT_MET


def test_draws_that_all_agree_say_nothing():
    """All masks are 0: the value is 0, and the truth is not."""
    est = estimate(KEY, bx.FixedPoint(3), s=np.full(N, 1e-6))
    np.testing.assert_allclose(est.value, 0.0, atol=1e-12)
    assert np.isinf(est.error.upper)
    assert est.code == bx.Code.TOLERANCE_NOT_MET
    assert "all draws agree" in est.message
    assert "steps" not in est.message


def test_what_is_left_of_the_inner_problem_is_a_bias_of_the_report():
    """With w half-way to its solution L is another function of the mask; exact solutions leave none."""
    short, exact = estimate(KEY, bx.FixedPoint(6, 0.2)), estimate(KEY, bx.LBFGS(1e-12))
    off = np.linalg.norm(np.asarray(short.value) - np.asarray(exact.value))
    assert off > 0.1 * np.linalg.norm(exact.value)
    assert off < np.linalg.norm(short.error.bias) < 10 * off
    assert np.linalg.norm(exact.error.bias) < 1e-9 * np.linalg.norm(exact.value)


def test_draws_have_minibatches_of_their_own():
    """So that the noise of these is in the spread of the terms."""
    source = bx.Arrays({"x": X[:, None] * np.ones((N, 1, 1))}, 1)

    def noisy(w, m, batch):
        return 0.5 * w @ w - w @ batch["x"][0, 0]

    problem = bx.Problem(bx.GradientStep(noisy, 1.0), lambda w, m, batch: w[0])
    est = bx.hypergradient(
        problem, bx.ScoreFunction(bx.FixedPoint(1), 40), np.zeros(D), S, source, SOURCES[1], key=KEY, report=False
    )
    # w is one of the rows, another for each draw
    assert np.min(np.abs(np.asarray(est.w)[None] - X).max(1)) > 1e-3
    assert np.any(np.asarray(est.value) != 0)


def test_gaussian_smoothing_is_unbiased_of_a_quadratic():
    p = FiniteQuadratic.random(3, n=20, d=4, m=3)
    rows = bx.Arrays(p.train_data), bx.Arrays(p.val_data)
    estimator = bx.ScoreFunction(bx.FixedPoint(60), 2000, bx.Gaussian(0.3))
    est = bx.hypergradient(p.problem, estimator, np.zeros(4), p.lam, *rows, key=jax.random.key(0))
    error = np.asarray(est.value) - p.hypergradient(p.lam)
    assert np.linalg.norm(error) <= float(est.error.upper) * np.linalg.norm(est.value)
    assert float(est.error.upper) < 0.2
    assert np.all(np.abs(error) < 4.5 * np.asarray(est.error.standard_error))


def test_what_it_cannot_use_is_refused():
    with pytest.raises(bx.ParameterError, match="samples must be at least 2"):
        bx.ScoreFunction(bx.LBFGS(), 1)
    with pytest.raises(bx.ParameterError, match="distribution must be one such as"):
        bx.ScoreFunction(bx.LBFGS(), 5, 0.5)
    with pytest.raises(bx.ParameterError, match="inner must be a solver"):
        bx.ScoreFunction(0.5)
    with pytest.raises(bx.ParameterError, match="sigma must lie in"):
        bx.Gaussian(0.0)
    with pytest.raises(bx.ParameterError, match="must be probabilities"):
        estimate(KEY, bx.FixedPoint(1), s=np.array([0.7, 1.2, 0.5, 0.4]))
    problem = bx.Problem(lambda w, m, batch: 0.5 * w, quartic)
    with pytest.raises(bx.ParameterError, match="LBFGS needs an inner loss"):
        bx.hypergradient(problem, bx.ScoreFunction(bx.LBFGS()), np.zeros(D), S, *SOURCES, key=KEY)


# ---- a coreset of digits, after Zhou, Pi, Zhang, Lin, Zhang (2022)

POOL, CHOSEN = 1000, 50


def cross_entropies(w, X, y):
    logits = X @ w[:, :-1].T + w[None, :, -1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


def on_chosen(w, m, batch):
    return jnp.sum(m * cross_entropies(w, *batch)) / CHOSEN + 5e-4 * jnp.sum(w**2)


def on_all(w, m, batch):
    return jnp.mean(cross_entropies(w, *batch))


@pytest.mark.slow
def test_a_learned_coreset_of_digits_beats_random_ones():
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    X, y = (X[order] / 16.0).astype(np.float32), y[order]
    pool, test = (X[:POOL], y[:POOL]), (X[POOL:], y[POOL:])
    rows, w0, inner = bx.Arrays(pool), np.zeros((10, 65), np.float32), bx.LBFGS(1e-3, 60, 10)
    problem = bx.Problem(bx.GradientStep(on_chosen, 1.0), on_all, bx.CappedSimplex(float(CHOSEN)))
    steps = 400
    outer = optax.chain(optax.clip_by_global_norm(3.0), optax.adam(optax.cosine_decay_schedule(5e-2, steps)))
    algorithm = bx.BSGM(bx.ScoreFunction(inner, 5), outer)
    s = np.full(POOL, CHOSEN / POOL, np.float32)
    result = bx.minimize(problem, algorithm, w0, s, rows, rows, steps=steps, key=KEY)

    @jax.jit
    @jax.vmap
    def trained(m):
        w = inner.solve(on_chosen, jnp.asarray(w0), m, rows).value
        right = jnp.argmax(test[0] @ w[:, :-1].T + w[None, :, -1], axis=1) == test[1]
        return on_all(w, m, pool), jnp.mean(right)

    masks = bx.Bernoulli().draw(jax.random.key(1), result.lam, 20)
    losses, learned = map(np.asarray, trained(masks))
    rng = np.random.default_rng(2)
    at_random = np.stack([np.isin(np.arange(POOL), rng.choice(POOL, CHOSEN, replace=False)) for _ in range(20)])
    _, accuracies = map(np.asarray, trained(jnp.asarray(at_random, jnp.float32)))
    best = learned[np.argmin(losses)]
    mean, spread = accuracies.mean(), accuracies.std(ddof=1)
    print(f"learned {best:.3f}, loss {losses.min():.3f}, rows {masks.sum(1).mean():.1f}")
    print(f"random {mean:.3f} +- {spread:.3f}, best of 20 {accuracies.max():.3f}")
    assert float(result.lam.sum()) <= CHOSEN * (1 + 1e-5)
    assert best > mean + 2 * spread
    assert best > accuracies.max()
