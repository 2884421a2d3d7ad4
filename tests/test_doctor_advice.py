"""What the doctor rests its advice on: the inner solution, the step it measures, the rows it counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bilevax as bx
from bilevax.audit.checks.contraction import check_contraction, check_curvature
from bilevax.audit.checks.reach import check_reach
from bilevax.audit.oracles import flat
from bilevax.audit.solving import descended, iterated
from bilevax.audit.subject import AuditedProblem
from bilevax.core.config import config

RNG = np.random.default_rng(0)
N, D = 60, 4
X, Y = RNG.normal(size=(2 * N, D)), RNG.normal(size=2 * N)


def squares(w, lam, batch):
    return 0.5 * jnp.mean((batch[0] @ w - batch[1]) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)


def subject(inner_map, *, table=(X, Y), val=None, estimator=None, w0=None):
    kind = jnp.result_type(float)
    first, second = ([x[part].astype(kind) for x in table] for part in (slice(N), slice(N, None)))
    sources = bx.Arrays(tuple(first), 8), bx.Arrays(tuple(second) if val is None else val)
    w0 = np.zeros(D, kind) if w0 is None else w0
    problem = bx.Problem(inner_map, lambda w, lam, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2))
    return AuditedProblem(problem, w0, np.full(D, -2.0, kind), *sources, jax.random.key(0), estimator=estimator)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("wide", [True, False])
def test_a_step_left_out_is_measured_at_the_inner_solution(size, wide):
    with jax.enable_x64(wide):
        s = subject(bx.GradientStep(squares), table=(size * X, Y)).with_measured_step().solved()
        H = size**2 * X[:N].T @ X[:N] / N + np.exp(-2.0) * np.eye(D)
        step = float(s.problem.inner_map.step_size) * np.linalg.eigvalsh(H)[-1]
        assert 0.85 < step < 1.0
        solution = np.linalg.solve(H, size * X[:N].T @ Y[:N] / N)
        np.testing.assert_allclose(
            s.solution, solution, rtol=1e-7 if wide else 2e-3, atol=1e-3 * np.abs(solution).max()
        )


def test_descent_finds_a_minimum_that_is_far_and_stops_where_there_is_none():
    looks = []

    def rosenbrock(w):
        looks.append(w)
        a, b = 1 - w[0], w[1] - w[0] ** 2
        return a**2 + 100 * b**2, np.array([-2 * a - 400 * w[0] * b, 200 * b])

    np.testing.assert_allclose(descended(rosenbrock, np.array([-1.2, 1.0]), 300, 1e-16), [1.0, 1.0], rtol=1e-8)
    assert len(looks) < 80
    assert np.all(np.isfinite(descended(lambda w: (-w[0], -np.ones(1)), np.zeros(1), 300, 1e-16)))
    np.testing.assert_allclose(iterated(lambda w: 0.5 * (3.0 - w), np.zeros(2), 100), 3.0)
    assert np.all(iterated(lambda w: 0.1 * w, np.ones(2), 300) == 1.0)


@config
class Rotation:
    """Eigenvalues of modulus 1.2 that turn by 90 degrees or more: damping helps."""

    M: object

    def __call__(self, w, lam, batch):
        return self.M @ w + lam


def test_damping_is_advised_where_it_helps_with_a_number_that_does():
    turn = np.kron(np.diag([1.0, -1.0]), np.array([[0.0, -1.2], [1.2, 0.0]])) - 0.2 * np.eye(4)
    s = subject(Rotation(jnp.asarray(turn)))
    (finding,) = [f for f in check_contraction(s._replace(solution=s.w0)) if hasattr(f, "code")]
    eta = float(finding.advice.rsplit(" ", 1)[1].rstrip("."))
    assert (
        np.abs(1 - 0.98 * eta * (1 - np.linalg.eigvals(turn))).max()
        < 1
        < np.abs(1 - 1.02 * eta * (1 - np.linalg.eigvals(turn))).max()
    )
    s = subject(Rotation(jnp.asarray(1.1 * np.eye(4))))
    (finding,) = [f for f in check_contraction(s._replace(solution=s.w0)) if hasattr(f, "code")]
    assert "Damping does not help" in finding.advice


def test_what_is_in_use_is_not_advised():
    def curved(w, lam, batch):
        return 0.5 * jnp.sum(jnp.asarray([1.0, 1.0, 1.0, 1e-4]) * w**2) + jnp.mean(batch[1]) * jnp.sum(w)

    for estimator, advised in ((None, True), (bx.SID(bx.LBFGS(), bx.CG()), False)):
        s = subject(bx.GradientStep(curved), estimator=estimator).with_measured_step().solved()
        (finding,) = [f for f in check_contraction(s) if hasattr(f, "code")]
        assert finding.code == "SLOW"
        assert ("bx.LBFGS" in finding.advice) == advised
        assert "leave it out" not in finding.advice


def test_an_inner_loss_without_a_slope_is_named():
    flat_loss = lambda w, lam, batch: jnp.mean(jnp.sign(batch[0] @ w - batch[1])) + jnp.sum(lam)  # noqa: E731
    (finding,) = check_curvature(subject(bx.GradientStep(flat_loss)))
    assert finding.code == "NO_CURVATURE"
    assert "exactly zero" in finding.measured
    small = subject(bx.GradientStep(lambda w, lam, batch: squares(w, lam - 99.0, batch)), table=(1e-15 * X, Y))
    assert not list(check_curvature(small))


@pytest.mark.parametrize(("shared", "severity"), [(0, None), (3, "note"), (20, "warning"), (60, "warning")])
def test_shared_rows_are_counted(shared, severity):
    val = tuple(np.concatenate([x[:shared], x[N + shared :]])[::-1].copy() for x in (X, Y))
    findings = list(check_reach(subject(bx.GradientStep(squares, 0.1), val=val)))
    assert [f.severity for f in findings] == ([severity] if severity else [])
    if 0 < shared < N:
        assert findings[0].measured.startswith(f"{shared} of the {N} rows of val")


def test_rows_that_repeat_in_a_random_split_are_left_in_peace():
    seen = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        chosen = rng.integers(N, size=2 * N)  # each row twice on average
        s = subject(bx.GradientStep(squares, 0.1), table=(X[chosen], Y[chosen]))
        seen |= {f.code for f in check_reach(s)}
    assert not seen


def test_numbers_of_rows_do_not_hide_what_is_shared():
    number = np.arange(2 * N)
    table = np.tile(X[:N], (2, 1)), np.tile(Y[:N], 2), number
    s = subject(bx.GradientStep(squares, 0.1), table=table[:2])
    given = [bx.Arrays((table[0][part], table[1][part], number[part])) for part in (slice(N), slice(N, None))]
    assert [f.code for f in check_reach(s._replace(train=given[0], val=given[1]))] == ["SHARED_ROWS"]
    assert flat(s.w0).size == D
