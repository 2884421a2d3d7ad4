"""The doctor's groups of checks, each by itself: what they name beyond the fifteen faults, and what they let pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.audit.checks.contraction import arnoldi, check_contraction
from bilevax.audit.checks.effect import check_derivatives, check_effect
from bilevax.audit.checks.estimators import check_estimator
from bilevax.audit.checks.leaves import check_finite, check_leaves, check_structure
from bilevax.audit.checks.program import check_program
from bilevax.audit.checks.rows import check_rows
from bilevax.audit.checks.sources import audited, check_sources
from bilevax.audit.findings import Finding, Findings
from bilevax.audit.subject import AuditedProblem
from bilevax.core.config import config
from bilevax.core.protocols import Draw
from bilevax.testing.tools import Table

RNG = np.random.default_rng(0)
N, D = 40, 3
X, Y = RNG.normal(size=(2 * N, D)), RNG.normal(size=2 * N)
LAM = np.full(D, -2.0)


def inner_loss(w, lam, batch):
    X, y = batch[:2]
    return 0.5 * jnp.mean((X @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def outer_loss(w, lam, batch):
    X, y = batch
    return 0.5 * jnp.mean((X @ w - y) ** 2)


def subject(inner_map, *, outer=outer_loss, lam=LAM, train=None, w0=None):
    """A problem and two points, neither of them solved for."""
    kind = jnp.result_type(float)
    first, second = ((X[part].astype(kind), Y[part].astype(kind)) for part in (slice(N), slice(N, None)))
    train = bx.Arrays(first, 8) if train is None else train
    w0 = jnp.zeros(D) if w0 is None else w0
    lam = jax.tree.map(jnp.asarray, lam)
    s = AuditedProblem(bx.Problem(inner_map, outer), w0, lam, train, bx.Arrays(second), jax.random.key(0))
    return s._replace(solution=w0, perturbed=jax.tree.map(lambda x: x + 0.5, w0))


def found(check, *args):
    return {(f.code, f.severity) for f in check(*args) if isinstance(f, Finding)}


def step(loss, size=0.1):
    return bx.GradientStep(loss, size)


# Leaves and results


@pytest.mark.parametrize("value", [np.array([1 + 2j]), np.array([np.nan]), np.zeros((0,))])
def test_a_leaf_that_is_no_finite_real_array_is_named(value):
    findings = list(check_leaves({"a": np.zeros(2)}, {"good": np.ones(1), "poor": value}))
    assert [f.code for f in findings] == ["BAD_LEAF"]
    assert "lam['poor']" in findings[0].measured


def test_whole_numbers_are_named_with_their_leaf():
    findings = list(check_leaves({"a": 1.5, "b": 2, "c": np.array([True])}, np.ones(2)))
    assert [f.code for f in findings] == ["INTEGER_LEAF"]
    assert "w0['b'], w0['c'] holds" in findings[0].measured


def test_a_result_of_a_wrong_shape_is_named():
    assert found(check_structure, subject(step(lambda w, lam, batch: w))) == {("STRUCTURE", "error")}
    assert found(check_structure, subject(step(inner_loss))) == set()


def test_what_is_not_finite_is_named_with_its_place():
    def root(w, lam, batch):
        return outer_loss(w, lam, batch) + jnp.sum(jnp.sqrt(jnp.abs(w)))

    (finding,) = check_finite(subject(step(inner_loss), outer=root))
    assert (finding.code, finding.severity) == ("NONFINITE", "error")
    assert finding.measured == "At w0 these are NaN or infinite on every row: the outer loss's gradient in w."
    assert found(check_finite, subject(step(inner_loss))) == set()


def test_an_exception_of_the_users_is_a_finding_with_its_line():
    def raises(w, lam, batch):
        raise KeyError("age")

    s = subject(step(inner_loss), outer=raises)
    (finding,) = bx.check(s.problem, s.w0, s.lam, s.train, s.val, key=s.key)
    assert finding.code == "RAISES"
    assert finding.measured.startswith("KeyError: 'age' (")
    assert "test_doctor_checks.py, line " in finding.measured


# Traced programs


@config
class Weighted:
    """A loss with an array for a field."""

    table: object

    def __call__(self, w, lam, batch):
        return inner_loss(w, lam, batch) + 1e-9 * jnp.sum(self.table) * jnp.sum(w**2)


def test_an_array_that_is_a_field_is_not_closed_over():
    table = jnp.ones((1000, 300))
    assert found(check_program, subject(step(Weighted(table)))) == set()
    held = {("CLOSED_OVER", "warning")}
    assert found(check_program, subject(step(lambda *args: Weighted(table)(*args)))) == held
    assert found(check_program, subject(step(jax.jit(lambda *args: Weighted(np.asarray(table))(*args))))) == held


def test_numpy_noise_is_no_function():
    def noisy(w, lam, batch):
        return outer_loss(w, lam, batch) + np.random.default_rng().normal() * jnp.sum(w)

    assert found(check_program, subject(step(inner_loss), outer=noisy)) == {("IMPURE", "error")}


def test_a_float64_array_that_does_not_enter_the_program_is_no_constant_of_it():
    wide = np.linspace(0.0, 1.0, D)

    def looks(w, lam, batch):
        return inner_loss(w, lam, batch) * (1.0 if wide.shape else 2.0)

    def uses(w, lam, batch):
        return inner_loss(w * wide, lam, batch)

    with jax.enable_x64(False):
        assert found(check_program, subject(step(looks))) == set()
        assert found(check_program, subject(step(uses))) == {("FLOAT64_CONSTANT", "warning")}
    assert found(check_program, subject(step(uses))) == set()


# Rows


def test_the_order_of_rows_must_not_matter():
    def fading(w, lam, batch):
        X, y = batch
        weight = 2.0 * jnp.arange(1.0, len(y) + 1) / (len(y) + 1)
        return 0.5 * jnp.mean(weight * (X @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)

    assert found(check_rows, subject(step(fading))) == {("ROW_ORDER", "error")}


def test_pairs_of_rows_may_be_summed_over():
    def pairs(w, lam, batch):
        X, y = batch
        apart = (X[:, None] - X[None]) @ w - (y[:, None] - y[None])
        return 0.25 * jnp.sum(apart**2) / (len(y) * (len(y) - 1)) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)

    assert found(check_rows, subject(step(pairs))) == {("NOT_A_MEAN", "note")}


def test_a_sum_over_every_row_is_a_warning():
    def total(w, lam, batch):
        return outer_loss(w, lam, batch) * len(batch[1])

    assert found(check_rows, subject(step(inner_loss), outer=total)) == {("SUM", "warning")}
    summed = subject(step(lambda w, lam, b: len(b[1]) * inner_loss(w, lam, b)), train=bx.Arrays((X[:N], Y[:N])))
    assert found(check_rows, summed) == {("SUM", "warning")}


def test_noise_that_treats_rows_alike_is_a_warning_and_noise_of_a_row_is_none():
    def thinned(w, lam, batch):
        kept = jax.random.bernoulli(jax.random.key(1), 0.5, w.shape)
        return inner_loss(jnp.where(kept, w, 0.0), lam, batch)

    def own(w, lam, batch):
        X, y, keys = batch
        draw = jax.vmap(lambda k: jax.random.bernoulli(jax.random.wrap_key_data(k), 0.5, (D,)))
        return inner_loss(w, lam, (jnp.where(draw(keys), X, 0.0), y))

    assert found(check_rows, subject(step(thinned))) == {("FIXED_KEY", "warning")}
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(2), N)))
    assert found(check_rows, subject(step(own), train=bx.Arrays((X[:N], Y[:N], keys), 8))) == set()


def test_a_map_that_reads_no_row_is_a_mean():
    assert found(check_rows, subject(lambda w, lam, batch: 0.5 * w + lam)) == set()


# Sources


@config
class Fixed(Table):
    """Minibatch j, whatever the key: ``rule(j, n)`` says its rows."""

    rule: object

    rows_per_batch = 4

    def plan_chunk(self, plan, key, j, first):
        return key

    def visit(self, plan, j, use):
        rows = self.rule(plan, j, self.rows)
        return use(Draw(jax.tree.map(lambda x: x[rows], self.data), -1, 1.0))


def in_turn(key, j, n):
    return (4 * j + jnp.arange(4, dtype=jnp.int32)) % n


def the_first_half(key, j, n):
    return jax.random.randint(jax.random.fold_in(key, j), (4,), 0, n // 2)


def one_batch_a_key(key, j, n):
    return jax.random.randint(key, (4,), 0, n)


@pytest.mark.parametrize(
    ("rule", "code"),
    [(in_turn, "KEY_IGNORED"), (the_first_half, "SOURCE_BIASED"), (one_batch_a_key, "REPEATED_BATCH")],
)
def test_a_source_that_does_not_draw_every_row_anew_is_named(rule, code):
    rows = jnp.asarray(np.linspace(-1.0, 2.0, N)[:, None] + X[:N]), jnp.asarray(Y[:N])
    assert found(check_sources, subject(step(inner_loss), train=Fixed(rows, rule))) == {(code, "error")}


@pytest.mark.parametrize("sampling", ["iid", "shuffled", "blocks"])
@pytest.mark.parametrize("batch_size", [1, 7, 39])
def test_our_own_sources_are_sound(sampling, batch_size):
    train = bx.Arrays((X[:N], Y[:N]), batch_size, sampling=sampling)
    assert list(audited("train", train, jax.random.key(0))) == []


# Contraction


@config
class Linear:
    """M w + lam."""

    M: object

    def __call__(self, w, lam, batch):
        return self.M @ w + jnp.sum(lam) * jnp.ones_like(w)


def spectrum(M):
    return subject(Linear(M), w0=jnp.zeros(len(M)))


def test_a_map_that_grows_first_and_contracts_later_is_let_pass(monkeypatch):
    monkeypatch.setattr("bilevax.audit.checks.contraction.KRYLOV", 5)  # too few for its eigenvalues
    blocks = np.kron(np.eye(20), np.eye(15, k=1))
    M = np.diag(np.linspace(-0.5, 0.5, 300)) + 1.5 * blocks
    assert np.abs(arnoldi(lambda u: M @ u, np.ones(300), 5)[0]).max() > 1
    radius, *rest = check_contraction(spectrum(M))
    assert radius.value < 0.9
    assert not rest


def test_rotations_do_not_contract_and_slow_ones_are_slow():
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(20, 20)))[0]
    assert found(check_contraction, spectrum(turn)) == {("NOT_CONTRACTIVE", "error")}
    assert found(check_contraction, spectrum(0.9992 * turn)) == {("SLOW", "warning")}
    assert found(check_contraction, spectrum(0.998 * turn)) == set()


def quadratic(curvatures):
    H = jnp.asarray(np.diag(curvatures))
    return lambda w, lam, batch: 0.5 * w @ H @ w + jnp.sum(lam) * jnp.sum(w) * jnp.mean(batch[1])


@pytest.mark.parametrize(
    ("curvatures", "size", "code"),
    [
        ((1.0, 0.5, -0.1), 1.0, ("NOT_CONVEX", "error")),
        ((1.0, 0.5, 0.0), 1.0, ("FLAT", "warning")),
        ((1.0, 0.5, 5e-4), 1.0, ("SLOW", "warning")),
        ((1.0, 0.5, 0.1), 2.05, ("STEP_TOO_LONG", "error")),
        ((1.0, 0.5, 0.1), 1.95, None),
    ],
)
def test_the_spectrum_of_a_gradient_step_says_what_is_wrong(curvatures, size, code):
    s = subject(step(quadratic(curvatures), size))
    assert found(check_contraction, s) == ({code} if code else set())


def test_a_slow_step_that_is_short_is_told_to_be_longer():
    (_, finding) = check_contraction(subject(step(quadratic((1.0, 0.5, 0.1)), 0.005)))
    assert finding.code == "SLOW"
    assert "The step is 0.005 / L: lengthen it" in finding.advice


def test_a_krylov_space_gives_the_ends_of_a_spectrum():
    d = np.concatenate([[-0.9], np.linspace(-0.5, 0.5, 400), [0.97]])
    values, vector = arnoldi(lambda u: d * u, np.random.default_rng(0).normal(size=402), 60)
    np.testing.assert_allclose([values.real.min(), values.real.max()], [-0.9, 0.97], rtol=1e-9)
    assert np.abs(vector).argmax() == 401


# lam and derivatives


def test_a_leaf_of_lam_without_effect_is_a_warning_and_lam_without_effect_an_error():
    def loss(w, lam, batch):
        return inner_loss(w, lam["used"] + jax.lax.stop_gradient(lam["stopped"]), batch)

    lam = {"used": LAM, "stopped": np.zeros(()), "unused": np.zeros(2)}
    s = subject(step(jax.jit(loss)), lam=lam).solved()
    assert found(check_effect, s) == {("LAM_UNUSED", "warning"), ("LAM_WITHOUT_EFFECT", "warning")}
    assert [f.measured.partition(" ")[0] for f in check_effect(s)] == ["lam['unused']", "The"]

    def outer(w, lam, batch):
        return outer_loss(w, lam, batch) + jnp.sum(lam["unused"] ** 2) + jnp.sum(lam["stopped"])

    assert found(check_effect, subject(step(loss), lam=lam, outer=outer).solved()) == set()


def test_a_derivative_that_is_wrong_is_named():
    @jax.custom_jvp
    def square(x):
        return x**2

    square.defjvp(lambda primals, tangents: (square(*primals), 3 * primals[0] * tangents[0]))

    def wrong(w, lam, batch):
        return outer_loss(w, lam, batch) + jnp.sum(square(w)) + jnp.sum(lam)

    assert found(check_derivatives, subject(step(inner_loss), outer=wrong)) == {("DERIVATIVE", "warning")}
    assert found(check_derivatives, subject(step(wrong))) == {("DERIVATIVE", "warning")}
    assert found(check_derivatives, subject(lambda w, lam, batch: square(w) + lam)) == {("DERIVATIVE", "warning")}
    assert found(check_derivatives, subject(step(inner_loss))) == set()


# Estimators


def sid(steps, size=0.5):
    return bx.SID(bx.FixedPoint(steps, size), bx.FixedPoint(steps, size))


@pytest.mark.slow
def test_an_estimator_that_is_short_fails_or_is_refused():
    s = subject(bx.GradientStep(inner_loss, 0.5)).solved()
    assert found(check_estimator, s, sid(2)) == {("ESTIMATOR_SHORT", "warning")}
    assert found(check_estimator, s, sid(3000, 60.0)) == {("ESTIMATOR_FAILS", "error")}
    plain = subject(lambda w, lam, batch: w - 0.5 * jax.grad(inner_loss)(w, lam, batch))
    assert found(check_estimator, plain, bx.SID(bx.LBFGS(), bx.CG())) == {("ESTIMATOR_REFUSES", "error")}
    flat = subject(step(lambda w, lam, batch: jnp.sum(lam) * jnp.mean(batch[1]) * jnp.sum(w)), lam=LAM)
    assert found(check_estimator, flat, sid(2)) == {("NO_REFERENCE", "note")}


def test_findings_are_a_sequence_that_prints_the_worst_first():
    rows = tuple(Finding(code, severity, "m " * 90, "a") for code, severity in (("A", "error"), ("BB", "note")))
    findings = Findings(rows)
    assert (len(findings), list(findings), findings[1], findings.worst) == (2, list(rows), rows[1], "error")
    assert findings.records()[1] == {"code": "BB", "severity": "note", "measured": "m " * 90, "advice": "a"}
    lines = str(findings).splitlines()
    assert lines[0].startswith("error  A   m m")
    assert max(map(len, lines)) <= 110
    assert str(Findings(())) == "nothing found"
