"""Faults E8 to E11 (docs/faults.md): what seeds and threads decide, independent streams, no key used twice."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx

KEY = jax.random.key(0)
D = 3
ROWS = 1.0 + np.random.default_rng(0).normal(size=40)  # about a mean that no chain is suspected of leaving


def inner_map(w, lam, batch):
    """w sees the rows of its own stream, and v, whose system does not depend on w, those of its own."""
    return 0.5 * (1.0 + 0.1 * jnp.mean(batch)) * w + lam * jnp.mean(batch)


def outer_loss(w, lam, batch):
    return jnp.sum(w) + jnp.mean(batch) * jnp.sum(lam)


PROBLEM = bx.Problem(inner_map, outer_loss)


def estimate(key=KEY, *, t=20, k=20, J=3, J1=3, sampling="iid"):
    """On minibatches of three in each of the four stages; what is read of it, no report changes."""
    sid = bx.SID(bx.FixedPoint(t), bx.FixedPoint(k), cross_batches=J, outer_batches=J1)
    source = bx.Arrays(ROWS, 3, sampling=sampling)
    return bx.hypergradient(PROBLEM, sid, np.zeros(D), np.ones(D), source, source, key=key, report=False)


def minimise(key=KEY, every=None):
    sid = bx.SID(bx.FixedPoint(5), bx.FixedPoint(5), cross_batches=2, outer_batches=2)
    source = bx.Arrays(ROWS, 3)
    algorithm = bx.BSGM(sid, bx.optim("adam", 0.05))
    return bx.minimize(PROBLEM, algorithm, np.zeros(D), np.ones(D), source, source, steps=6, key=key, every=every)


def bits(*trees):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(trees)]


def of(est):
    return bits(est.value, est.outer_value, est.w, est.v)


# E8


@pytest.mark.parametrize("sampling", ["iid", pytest.param("shuffled", marks=pytest.mark.slow), "blocks"])
def test_e8_the_same_seed_twice(sampling):
    first = of(estimate(sampling=sampling))
    jax.random.normal(jax.random.key(7), (5,))
    np.random.default_rng().normal(size=3)
    assert of(estimate(jax.random.key(0), sampling=sampling)) == first


def test_e8_the_same_seed_in_a_run_however_it_is_cut():
    first = minimise()
    for again in (minimise(), minimise(every=1), minimise(every=4)):
        assert bits(again.w, again.lam, again.history[:3]) == bits(first.w, first.lam, first.history[:3])


def digest():
    est, result = estimate(sampling="shuffled"), minimise()
    return b"".join(of(est) + bits(result.w, result.lam)).hex()


PROGRAM = """
import importlib.util, sys
import jax
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_disable_most_optimizations", True)
spec = importlib.util.spec_from_file_location("tests", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
jax.random.normal(jax.random.key(3), (2,))
print(tests.digest())
"""


def test_e8_the_same_seed_in_another_process():
    """With an equal number of threads; the other has used jax.random for something else before."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, __file__], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest()


# E9


def ridge_numbers():
    """A hypergradient of a problem whose matrix products are split over threads."""
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(4000, 200)) / np.sqrt(200), rng.normal(size=4000)
    problem = bx.Problem(bx.GradientStep(bx.Squared("feature")), bx.Squared())
    rows = bx.Arrays((X, y))
    sid = bx.SID(bx.FixedPoint(50), bx.FixedPoint(50))
    est = bx.hypergradient(problem, sid, np.zeros((1, 200)), np.full(200, -3.0), rows, rows, key=KEY)
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves((est.value, est.outer_value, est.w, est.v))])


def numbers_on(threads):
    program = PROGRAM.replace("print(tests.digest())", "print(tests.ridge_numbers().tobytes().hex())")
    program = program.replace('jax.config.update("jax_disable_most_optimizations", True)\n', "")
    environment = os.environ | {"NPROC": str(threads)}
    command = [sys.executable, "-c", program, __file__]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return np.frombuffer(bytes.fromhex(done.stdout.strip()))


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one processor")
@pytest.mark.slow
def test_e9_one_thread_and_two_agree_to_rounding():
    """Not to the bit: sums are split among threads. On equally many threads, to the bit."""
    one, again, two = numbers_on(1), numbers_on(1), numbers_on(2)
    assert one.tobytes() == again.tobytes()
    assert np.all(np.isfinite(one))
    np.testing.assert_allclose(two, one, rtol=1e-9, atol=1e-12 * np.abs(one).max())


# E10


@pytest.mark.slow
def test_e10_another_seed_is_another_result():
    """In every stage: a stream that ignored the key would repeat its own part."""
    one, other = estimate(), estimate(jax.random.key(1))
    for name in ("value", "outer_value", "w", "v"):
        a, b = np.asarray(getattr(one, name)), np.asarray(getattr(other, name))
        assert np.all(a != b), name
    for name in ("cross", "outer"):
        assert np.all(np.abs(parts(one)[name] - parts(other)[name]) > 1e-6), name
    assert not np.array_equal(minimise().lam, minimise(jax.random.key(1)).lam)


def parts(est):
    """What each stage saw alone: w, v, the mean of the cross batches, the mean of the outer ones."""
    direct = (est.outer_value - jnp.sum(est.w)) / est.w.size
    return {"w": est.w, "v": est.v, "cross": (est.value - direct) / est.v, "outer": direct}


@pytest.mark.parametrize(
    ("longer", "stage"), [({"t": 21}, "w"), ({"k": 21}, "v"), ({"J": 4}, "cross"), ({"J1": 4}, "outer")]
)
def test_e10_a_longer_stream_changes_no_bit_of_another(longer, stage):
    before, after = estimate(), estimate(**longer)
    for name, a, b in (("w", before.w, after.w), ("v", before.v, after.v)):
        assert (bits(a) == bits(b)) == (stage != name), name
    a, b = parts(before), parts(after)
    for name in ("cross", "outer"):
        if stage == name:
            assert np.all(np.abs(a[name] - b[name]) > 1e-6)
        else:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-11)


def rows_met(key):
    """The row mean of minibatch 1 of the streams inner, linear, cross and outer, from what the stages returned."""
    source, ones = bx.Arrays(ROWS, 3), jnp.ones(1)

    def run(t, k, J):
        sid = bx.SID(bx.FixedPoint(t), bx.FixedPoint(k), cross_batches=J, outer_batches=J)
        return sid.estimate(bx.Instance(PROBLEM, ones, source, source), jnp.zeros(1), key=key)

    one, two = parts(run(1, 2, 1)), parts(run(2, 2, 2))
    inner = (two["w"] - 0.5 * one["w"]) / (0.05 * one["w"] + 1.0)
    linear = (two["v"] - 1.5) / 0.05
    return jnp.stack([inner[0], linear[0], 2 * two["cross"][0] - one["cross"][0], 2 * two["outer"] - one["outer"]])


@pytest.mark.slow
def test_e10_the_streams_are_pairwise_independent():
    """Minibatch 1 of each of the four, over 2,000 seeds: every row mean is one of the rows', and no two go together."""
    met = np.asarray(jax.jit(jax.vmap(rows_met))(jax.random.split(KEY, 2000)))
    np.testing.assert_allclose(met.mean(0), ROWS.mean(), atol=4.5 * ROWS.std() / np.sqrt(3 * 2000))
    np.testing.assert_allclose(met.std(0), ROWS.std() / np.sqrt(3), rtol=0.1)
    together = np.corrcoef(met.T) - np.eye(4)
    assert np.abs(together).max() < 4.5 / np.sqrt(2000)


# E11


def measured_loss(w, lam, batch):
    return jnp.mean((w - batch[:, None]) ** 2) + jnp.sum(jnp.exp(lam) * w**2)


def of_a_measured_step(sampling):
    problem = bx.Problem(bx.GradientStep(lambda w, lam, batch: measured_loss(w, lam, batch)), outer_loss)
    sid = bx.SID(bx.FixedPoint(3), bx.FixedPoint(3), cross_batches=2, outer_batches=2)
    source = bx.Arrays(ROWS, 3, sampling=sampling)
    return problem, sid, np.zeros(D), np.ones(D), source, source


@pytest.fixture
def no_reuse():
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(True):
        yield


@pytest.mark.usefixtures("no_reuse")
@pytest.mark.slow_but("blocks")
@pytest.mark.parametrize("sampling", ["iid", "shuffled", "blocks"])
def test_e11_no_key_is_used_twice_in_an_estimate(sampling):
    """All five streams, the measured step among them; a new function, so that nothing cached is run."""
    key = jax.random.key(11)
    arguments = of_a_measured_step(sampling)
    est = bx.hypergradient(*arguments, key=key)
    assert np.isfinite(est.value).all()


@pytest.mark.usefixtures("no_reuse")
def test_e11_no_key_is_used_twice_in_a_run():
    problem, sid, *rest = of_a_measured_step("iid")
    result = bx.minimize(problem, bx.BSGM(sid, bx.optim("sgd", 0.1)), *rest, steps=3, key=jax.random.key(11))
    assert len(result.history.code) == 3


STEPS = 0.1, 0.1
ALGORITHMS = {
    "SOBA": bx.SOBA(*STEPS),
    **{
        name: pytest.param(algorithm, marks=pytest.mark.slow, id=name)
        for name, algorithm in {
            "SOBA, measured": bx.SOBA(),
            "SABA": bx.SABA(*STEPS),
            "SRBA": bx.SRBA(*STEPS),
            "MASOBA": bx.MASOBA(*STEPS),
            "FSLA": bx.FSLA(*STEPS),
            "AmIGO": bx.AmIGO(*STEPS),
            "StocBiO": bx.StocBiO(*STEPS),
            "BSA": bx.BSA(*STEPS),
            "TTSA": bx.TTSA(*STEPS),
            "SUSTAIN": bx.SUSTAIN(*STEPS),
            "MRBO": bx.MRBO(*STEPS),
            "VRBO": bx.VRBO(*STEPS),
            "PZOBO": bx.PZOBO(*STEPS),
            "F2SA": bx.F2SA(*STEPS, unit=1.0),
            "JointSID": bx.BSGM(bx.JointSID(20), bx.optim("sgd", 0.1)),
            "MixedFP": bx.BSGM(bx.SID(bx.SVRG(5), bx.MixedFP(5, 0.1)), bx.optim("sgd", 0.1)),
            "Neumann": bx.BSGM(bx.SID(bx.FixedPoint(5), bx.ProductNeumann(5)), bx.optim("sgd", 0.1)),
        }.items()
    },
}


@pytest.mark.usefixtures("no_reuse")
@pytest.mark.parametrize("algorithm", ALGORITHMS.values())
def test_e11_no_key_is_used_twice_by_an_algorithm(algorithm):
    """Of each kind: single loops, variance reduction, double loops, a random horizon, zeroth order, penalties."""
    _, _, *start, train, val = of_a_measured_step("blocks")
    problem = bx.Problem(bx.GradientStep(lambda w, lam, batch: measured_loss(w, lam, batch)), outer_loss)
    result = bx.minimize(problem, algorithm, *start, train, val, steps=3, key=jax.random.key(11))
    assert result.history.step[-1] >= 1


@pytest.mark.usefixtures("no_reuse")
def test_e11_control_a_key_that_is_used_twice_is_seen():
    key = jax.random.key(0)
    jax.random.normal(key, (2,))
    with pytest.raises(jax.errors.KeyReuseError):
        jax.random.normal(key, (2,))
