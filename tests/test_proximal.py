"""Proximal iterations: against references, step by step, their bounds, and what stops them.

The properties run over the table PROXIMAL of cases.py, whose entries all solve the LASSO.
"""

import ast
import inspect
import math
import textwrap
import time
from functools import cache
from itertools import islice

import numpy as np
import pytest
from cases import PROXIMAL
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import assert_alike, eps, relative, to_numpy
from scipy.optimize import lsq_linear, nnls

from course_lib.arrays import asarray_like
from course_lib.functionals import (
    Functional,
    box,
    elastic_net,
    group_l1,
    l1,
    least_squares,
    separable,
    squared_l2,
)
from course_lib.iterate import StoppingRule, run
from course_lib.operators import LinearOperator, convolution, difference, gradient, matrix, stack
from course_lib.proximal import (
    admm,
    admm_rule,
    fista,
    gap_rule,
    gradient_descent,
    ista,
    lasso_gap_rule,
    least_squares_step,
    pdhg,
    prox_gradient_rule,
)

every = pytest.mark.parametrize("case", PROXIMAL, ids=lambda case: case.name)
KINDS = ("tall", "wide", "deficient", "column", "row", "1x1")


def system(kind: str, seed: int = 0, condition: float = 10.0, noise: float = 0.1):
    """A of norm 1, with smallest singular value 1/condition (or 0), and data of a sparse x."""
    rng = np.random.default_rng(seed)
    m, n, rank = {
        "tall": (12, 6, 6),
        "wide": (6, 12, 6),
        "deficient": (9, 8, 5),
        "column": (7, 1, 1),
        "row": (1, 7, 1),
        "1x1": (1, 1, 1),
    }[kind]
    U = np.linalg.qr(rng.standard_normal((m, m)))[0][:, :rank]
    V = np.linalg.qr(rng.standard_normal((n, n)))[0][:, :rank]
    A = (U * np.geomspace(1, 1 / condition, rank)) @ V.T if rank > 1 else U @ V.T
    x = np.where(rng.uniform(size=n) < 0.5, rng.standard_normal(n), 0.0)
    x[0] = 1.0
    y = A @ x + noise * rng.standard_normal(m)
    return A, y


def objective(A, y, lam, x) -> float:
    x = to_numpy(x).astype(float)
    return float(0.5 * np.sum((A @ x - y) ** 2) + lam * np.abs(x).sum())


def reference(A, y, lam) -> np.ndarray:
    """The LASSO by coordinate descent, then exactly on the support: a method of another kind."""
    x, squares = np.zeros(A.shape[1]), np.sum(A**2, axis=0)
    for sweep in range(1, 100_001):
        before = x.copy()
        for j in range(x.size):
            c = A[:, j] @ (y - A @ x) + squares[j] * x[j]
            x[j] = np.sign(c) * max(abs(c) - lam, 0) / squares[j]
        if np.abs(x - before).max() <= 1e-16 * np.abs(x).max():
            return x
        S, exact = x != 0, np.zeros_like(x)
        if sweep % 50 == 0 and S.sum() <= len(y):
            # With A_S = QT: A_Sᵀ(y - A_S x) = λξ reads T x = Qᵀy - λ T⁻ᵀξ.
            Q, T = np.linalg.qr(A[:, S])
            exact[S] = np.linalg.solve(T, Q.T @ y - lam * np.linalg.solve(T.T, np.sign(x[S])))
            correlation = A.T @ (y - A @ exact)
            if (exact * x >= 0).all() and np.abs(correlation).max() <= lam * (1 + 1e-9):
                return exact
    raise AssertionError("coordinate descent did not find the support")


def lasso(kind: str, part: float = 0.1, **options):
    A, y = system(kind, **options)
    lam = part * np.abs(A.T @ y).max()
    return A, y, lam, reference(A, y, lam)


def inverse_square_norm(A) -> float:
    return 1 / np.linalg.norm(A, 2) ** 2


def states_of(case, A, y, lam, x0=None, step=None):
    x0 = y[:1] * 0 + asarray_like(np.zeros(A.shape[1]), y) if x0 is None else x0
    return case.start(A, y, lam, x0, step or inverse_square_norm(to_numpy(A)))


# ---------------------------------------------------------------- solutions


@every
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_agrees_with_coordinate_descent(case, kind):
    A, y, lam, x = lasso(kind)
    rule = lasso_gap_rule(A, y, lam, rtol=1e-9)
    result = run(states_of(case, A, y, lam), stop=rule, max_iter=case.max_iter, check_every=10)
    assert result.converged, result.reason
    best = objective(A, y, lam, x)
    assert objective(A, y, lam, result.x) - best <= 2e-9 * best
    # f is 1-strongly convex in Ax, so the gap bounds the distance of the fitted data.
    assert np.linalg.norm(A @ (result.x - x)) <= math.sqrt(4e-9 * best)
    if kind in ("tall", "column"):
        np.testing.assert_allclose(result.x, x, atol=10 * math.sqrt(4e-9 * best))


@every
def test_kind_of_the_states(case, like):
    """In every library and precision: the right answer, and arrays of the same kind."""
    A, y, lam, x = lasso("tall")
    single = eps(like) > 1e-10
    B, z = asarray_like(A, like), asarray_like(y, like)
    rule = lasso_gap_rule(B, z, lam, rtol=1e-4 if single else 1e-7)
    result = run(states_of(case, B, z, lam), stop=rule, max_iter=case.max_iter, check_every=20)
    assert result.converged, result.reason
    best = objective(A, y, lam, x)
    assert objective(A, y, lam, result.x) - best <= (2e-4 if single else 2e-7) * best
    for field in result.state:
        if hasattr(field, "shape"):
            assert_alike(field, like)


@every
def test_matrix_and_operator_give_the_same(case):
    A, y, lam, _ = lasso("wide")
    one, two = states_of(case, A, y, lam), states_of(case, A, y, lam)
    op = LinearOperator(lambda x: A @ x, lambda v: A.T @ v, (12,), (6,), like=y)
    two = case.start(op, y, lam, np.zeros(12), inverse_square_norm(A))
    for s, t in islice(zip(one, two, strict=True), 20):
        np.testing.assert_allclose(s.x, t.x, rtol=0, atol=1e-13)


@every
def test_starts_at_x0_and_leaves_it_alone(case):
    A, y, lam, x = lasso("tall")
    x0 = np.linspace(-1, 1, 6)
    x0.flags.writeable = A.flags.writeable = y.flags.writeable = False
    states = states_of(case, A, y, lam, x0)
    np.testing.assert_array_equal(next(states).x, x0)
    stop = lasso_gap_rule(A, y, lam, rtol=1e-9)
    result = run(states, stop=stop, max_iter=case.max_iter, check_every=10)
    assert result.converged
    np.testing.assert_allclose(result.x, x, atol=1e-3)


@every
@pytest.mark.parametrize("part", [1.0, 1.5, 100.0])
def test_above_lam_max_the_solution_is_zero(case, part):
    A, y = system("wide")
    lam = part * np.abs(A.T @ y).max()
    start = np.ones(12)
    rule = lasso_gap_rule(A, y, lam, rtol=1e-9)
    result = run(states_of(case, A, y, lam, start), stop=rule, max_iter=20_000, check_every=20)
    assert result.converged, result.reason
    assert objective(A, y, lam, result.x) <= 0.5 * np.sum(y**2) * (1 + 2e-9)
    if part > 1:
        assert np.abs(result.x).max() < 1e-6


@every
def test_no_data_no_solution(case):
    """y = 0: the solution is 0, the gap there is 0 over 0, and that counts as converged."""
    A, _ = system("tall")
    y = np.zeros(12)
    rule = lasso_gap_rule(A, y, 0.3, rtol=0.0)
    result = run(states_of(case, A, y, 0.3), stop=rule, max_iter=5)
    assert (result.converged, result.iterations) == (True, 0)


@every
@pytest.mark.parametrize("kind", ["tall", "wide", "deficient"])
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
@pytest.mark.slow
def test_the_gap_is_a_bound_at_every_state(case, kind, condition):
    """Weak duality: measured gap >= objective - minimum >= 0, however slow the iteration is."""
    A, y, lam, x = lasso(kind, condition=condition, part=0.01)
    best = objective(A, y, lam, x)
    rule = lasso_gap_rule(A, y, lam)
    for state in islice(states_of(case, A, y, lam), 0, 400, 40):
        value = objective(A, y, lam, state.x)
        above = (value - best) / value
        assert -1e-13 <= above <= rule.measure(state) + 1e-13


@pytest.mark.parametrize("kind", ["tall", "wide", "deficient"])
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6])
def test_ill_conditioned(kind, condition):
    """FISTA with restart reaches a relative gap of 1e-7 whatever the condition number is."""
    A, y, lam, x = lasso(kind, condition=condition, part=0.02)
    rule = lasso_gap_rule(A, y, lam, rtol=1e-7)
    for case in PROXIMAL:
        if case.name not in ("fista-restart", "admm-over"):
            continue
        result = run(states_of(case, A, y, lam), stop=rule, max_iter=20_000, check_every=20)
        assert result.converged, result.reason
        best = objective(A, y, lam, x)
        assert objective(A, y, lam, result.x) - best <= 2e-7 * best


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 8),
    n=st.integers(1, 8),
    seed=st.integers(0, 10**6),
    part=st.floats(0.01, 1.2),
    scale=st.sampled_from([1e-40, 1e-6, 1.0, 1e6, 1e40]),
)
def test_fista_on_random_problems(m, n, seed, part, scale):
    """Any shape and any scale of A and y."""
    rng = np.random.default_rng(seed)
    A, y = rng.standard_normal((m, n)), rng.standard_normal(m)
    lam = part * np.abs(A.T @ y).max()
    best = objective(A, y, lam, reference(A, y, lam))
    A, y, lam = scale * A, scale * y, scale**2 * lam
    f, R, step = least_squares(A, y), lam * l1(), inverse_square_norm(A)
    states = fista(f, R, np.zeros(n), step=step, restart=True)
    result = run(states, stop=lasso_gap_rule(A, y, lam, rtol=1e-4), max_iter=50_000, check_every=20)
    assert result.converged, result.reason
    assert objective(A, y, lam, result.x) <= (1 + 2e-4) * scale**2 * best


@pytest.mark.parametrize("kind", ["tall", "wide"])
def test_scikit_learn_agrees(kind):
    linear_model = pytest.importorskip("sklearn.linear_model")
    A, y, lam, _ = lasso(kind, part=0.1)
    model = linear_model.Lasso(lam / len(y), fit_intercept=False, tol=1e-12, max_iter=100_000)
    theirs = model.fit(A, y).coef_
    f, R, step = least_squares(A, y), lam * l1(), inverse_square_norm(A)
    rule = lasso_gap_rule(A, y, lam, rtol=1e-12)
    states = fista(f, R, np.zeros(A.shape[1]), step=step, restart=True)
    ours = run(states, stop=rule, max_iter=20_000, check_every=10).x
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
    model = linear_model.ElasticNet(
        alpha=(lam + 0.3) / len(y),
        l1_ratio=lam / (lam + 0.3),
        fit_intercept=False,
        tol=1e-12,
        max_iter=100_000,
    )
    theirs = model.fit(A, y).coef_
    states = fista(f, elastic_net(lam, 0.3), np.zeros(A.shape[1]), step=step, restart=True)
    rule = lasso_gap_rule(A, y, lam, lam2=0.3, rtol=1e-12)
    result = run(states, stop=rule, max_iter=20_000, check_every=10)
    assert result.converged
    np.testing.assert_allclose(result.x, theirs, atol=2e-5)


@every
def test_diagonal_and_orthonormal(case, rng):
    """A diagonal: x_i = soft(a_i y_i, lam)/a_i². A with orthonormal columns: x = soft(Aᵀy, lam)."""
    a, y = np.array([1.0, 0.7, 0.4]), np.array([1.0, -2.0, 0.6])
    lam = 0.2

    def soft(v):
        return np.sign(v) * np.maximum(np.abs(v) - lam, 0)

    Q = np.linalg.qr(rng.standard_normal((7, 3)))[0]
    z = rng.standard_normal(7)
    for A, data, expected in ((np.diag(a), y, soft(a * y) / a**2), (Q, z, soft(Q.T @ z))):
        rule = lasso_gap_rule(A, data, lam, rtol=1e-14)
        result = run(
            states_of(case, A, data, lam), stop=rule, max_iter=case.max_iter, check_every=10
        )
        assert result.converged, result.reason
        np.testing.assert_allclose(result.x, expected, atol=1e-6)
    # With orthonormal columns one step of ISTA is enough.
    states = ista(least_squares(Q, z), lam * l1(), rng.standard_normal(3), step=1.0)
    np.testing.assert_allclose(run(states, max_iter=1).x, soft(Q.T @ z), atol=1e-14)


# ---------------------------------------------------------------- step by step


def take(states, k: int) -> list:
    return list(islice(states, k + 1))


def test_ista_is_its_formula():
    A, y, lam, _ = lasso("tall")
    x, step = np.linspace(-1, 1, 6), 1.3
    for state in take(ista(least_squares(A, y), lam * l1(), x, step=step), 8):
        np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-15)
        v = x - step * A.T @ (A @ x - y)
        before, x = x, np.sign(v) * np.maximum(np.abs(v) - step * lam, 0)
        assert state.t == 1.0
    np.testing.assert_allclose(
        take(ista(least_squares(A, y), lam * l1(), before, step=step), 1)[1].x_ext, before
    )


@pytest.mark.parametrize("restart", [False, True])
def test_fista_is_its_formula(restart):
    """Beck and Teboulle's recursion, written out; with restart, O'Donoghue and Candès' test."""
    A, y, lam, _ = lasso("tall", condition=30.0)
    x, step, t, restarts = np.linspace(-1, 1, 6), 0.9, 1.0, 0
    ext = came_from = x
    states = take(fista(least_squares(A, y), lam * l1(), x, step=step, restart=restart), 120)
    for state in states:
        np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-13)
        np.testing.assert_allclose(state.x_ext, came_from, rtol=0, atol=1e-13)
        assert state.t == pytest.approx(t, rel=1e-13)
        v = ext - step * A.T @ (A @ ext - y)
        new = np.sign(v) * np.maximum(np.abs(v) - step * lam, 0)
        if restart and (ext - new) @ (new - x) > 0:
            t, restarts = 1.0, restarts + 1
        t_next = (1 + math.sqrt(1 + 4 * t**2)) / 2
        came_from, ext = ext, new + (t - 1) / t_next * (new - x)
        x, t = new, t_next
    assert (restarts > 1) == restart
    assert states[1].t == (1 + math.sqrt(5)) / 2


def test_gradient_descent_is_its_formula():
    A, y = system("tall")
    x = np.linspace(0, 1, 6)
    for state in take(gradient_descent(least_squares(A, y), x, step=0.7), 6):
        np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-14)
        np.testing.assert_allclose(state.gradient, A.T @ (A @ x - y), rtol=0, atol=1e-14)
        x = x - 0.7 * A.T @ (A @ x - y)


def test_ista_without_a_penalty_is_gradient_descent():
    A, y = system("wide")
    f, x0 = least_squares(A, y), np.ones(12)
    one = take(ista(f, box(), x0, step=0.8), 10)
    for s, t in zip(one, take(gradient_descent(f, x0, step=0.8), 10), strict=True):
        np.testing.assert_allclose(s.x, t.x, rtol=0, atol=1e-14)


def test_pdhg_is_its_formula(rng):
    """With the proximal map of the conjugate written out: a clip to [-lam, lam]."""
    K, y, lam = difference(6).to_dense(), rng.standard_normal(6), 0.4
    eta, sigma = 0.3, 0.8
    x = x_ext = rng.standard_normal(6)
    p = np.zeros(5)
    states = pdhg(K, least_squares(None, y), lam * l1(), x, step=eta, dual_step=sigma)
    for state in take(states, 12):
        np.testing.assert_allclose(state.x, x, rtol=0, atol=1e-14)
        np.testing.assert_allclose(state.dual, p, rtol=0, atol=1e-14)
        np.testing.assert_allclose(state.x_ext, x_ext, rtol=0, atol=1e-14)
        p = np.clip(p + sigma * K @ x_ext, -lam, lam)
        new = (x - eta * K.T @ p + eta * y) / (1 + eta)
        x_ext, x = 2 * new - x, new


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.8])
def test_admm_is_its_formula(alpha, rng):
    A, y, K, lam, rho = *system("tall"), difference(6).to_dense(), 0.2, 0.7
    x = rng.standard_normal(6)
    z, nu = K @ x, np.zeros(5)
    solve = least_squares_step(A, y, K)
    for state in take(admm(solve, lam * l1(), K, x, rho=rho, relaxation=alpha), 12):
        for ours, theirs in ((state.x, x), (state.z, z), (state.nu, nu), (state.Kx, K @ x)):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
        x = np.linalg.solve(A.T @ A + rho * K.T @ K, A.T @ y + rho * K.T @ (z - nu))
        h = alpha * K @ x + (1 - alpha) * z
        v = h + nu
        z = np.sign(v) * np.maximum(np.abs(v) - lam / rho, 0)
        nu = nu + h - z


# ---------------------------------------------------------------- bounds


@cache
def composite(seed: int, kind: str = "wide"):
    """f, R, L, a start, and the minimum of f + R to about 1e-13."""
    A, y = system(kind, seed, condition=50.0)
    rng = np.random.default_rng(seed)
    lam = 0.05 * np.abs(A.T @ y).max()
    R = (lam * l1(), box(-0.3, 0.4), elastic_net(lam, 0.01), group_penalty(lam, A))[seed % 4]
    f, n = least_squares(A, y), A.shape[1]
    states = fista(f, R, np.zeros(n), step=1.0, restart=True)
    best = run(states, max_iter=3000, check_every=3000).x
    return f, R, 1.0, rng.standard_normal(n), best


def group_penalty(lam: float, A) -> Functional:
    """Groups of two neighbours."""
    R, n = group_l1(0), A.shape[1]

    def paired(x):
        return x.reshape(2, n // 2)

    return lam * Functional(
        lambda x: R.value(paired(x)), prox=lambda v, s: R.prox(paired(v), s).reshape(n)
    )


def excess(f, R, x, best) -> float:
    return float(f(x) + R(x) - f(best) - R(best))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["wide", "tall"])
@pytest.mark.slow
def test_ista_keeps_its_bound(seed, kind):
    f, R, L, x0, best = composite(seed, kind)
    for step in (1 / L, 0.4 / L):
        states = take(ista(f, R, x0, step=step), 150)
        for k, state in enumerate(states[1:], start=1):
            bound = np.sum((x0 - best) ** 2) / (2 * step * k)
            assert excess(f, R, state.x, best) <= bound + 1e-12


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["wide", "tall"])
@pytest.mark.slow
def test_fista_keeps_its_bound(seed, kind):
    f, R, L, x0, best = composite(seed, kind)
    for step in (1 / L, 0.4 / L):
        states = take(fista(f, R, x0, step=step), 150)
        for k, state in enumerate(states[1:], start=1):
            bound = 2 * np.sum((x0 - best) ** 2) / (step * (k + 1) ** 2)
            assert excess(f, R, state.x, best) <= bound + 1e-12


def worst_case(n: int):
    """Nesterov's chain: the least squares problem on which first-order methods are slowest."""
    D = difference(n, boundary="zero").to_dense()
    y = np.zeros(n + 1)
    y[0] = 1.0
    return D / 2, y / 2  # norm below 1


def test_bounds_are_sharp_in_the_order():
    """On a chain ISTA falls like 1/k or slower and FISTA stays ahead, until k reaches n."""
    A, y = worst_case(400)
    f, x0 = least_squares(A, y), np.zeros(400)
    best = np.linalg.lstsq(A, y)[0]
    k = np.array([20, 40, 80, 160])

    def order(states):
        values = [float(f(s.x) - f(best)) for s in take(states, 160)]
        return np.polyfit(np.log(k), np.log(np.array(values)[k]), 1)[0]

    slow, fast = order(ista(f, box(), x0, step=1.0)), order(fista(f, box(), x0, step=1.0))
    assert -1.0 <= slow < -0.3
    assert fast < 1.6 * slow
    assert fast > -2.0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.95])
@pytest.mark.slow
def test_ista_decreases_below_two_over_l(seed, factor):
    """F(x) - F(x+) >= (1/η - L/2) ‖x+ - x‖², from the proximal inequality, for η < 2/L."""
    f, R, L, x0, best = composite(seed)
    step = factor / L
    states = take(ista(f, R, R.prox(x0, step), step=step), 60)
    for s, t in zip(states, states[1:], strict=False):
        drop = float(f(s.x) + R(s.x) - f(t.x) - R(t.x))
        assert drop >= (1 / step - L / 2) * np.sum((t.x - s.x) ** 2) - 1e-12
    far = run(ista(f, R, x0, step=step), max_iter=800, check_every=800).x
    assert excess(f, R, far, best) <= 1e-2 * excess(f, R, states[0].x, best)


@pytest.mark.parametrize("start", [ista, fista])
def test_above_two_over_l_it_diverges(start):
    A, y = np.diag([1.0, 0.5]), np.array([1.0, 1.0])
    f, R, x0 = least_squares(A, y), 0.01 * l1(), np.zeros(2)
    result = run(start(f, R, x0, step=2.1), max_iter=200)
    assert np.abs(result.x[0]) > 100
    rule = lasso_gap_rule(A, y, 0.01, rtol=1e-6)
    result = run(start(f, R, x0, step=50.0), stop=rule, max_iter=10_000)
    assert not result.converged
    assert result.reason.startswith("not finite: the iterate overflowed by iteration")
    # The same without the penalty.
    result = run(gradient_descent(f, x0, step=2.1), max_iter=200)
    assert np.abs(result.x[0]) > 100


def test_gradient_descent_on_a_strongly_convex_function():
    """‖x_k - x*‖ <= max(|1 - ημ|, |1 - ηL|)^k ‖x_0 - x*‖."""
    A, y = system("tall", condition=3.0)
    f, best, mu = least_squares(A, y), np.linalg.lstsq(A, y)[0], 1 / 9
    x0 = np.ones(6)
    for step in (0.5, 1.0, 2 / (1 + mu), 1.9):
        rate = max(abs(1 - step * mu), abs(1 - step))
        for k, state in enumerate(take(gradient_descent(f, x0, step=step), 40)):
            bound = rate**k * np.linalg.norm(x0 - best)
            assert np.linalg.norm(state.x - best) <= bound + 1e-13


def test_fista_is_not_monotone_and_restart_is_faster():
    A, y, lam, x = lasso("tall", condition=30.0, part=0.02)
    f, R = least_squares(A, y), lam * l1()
    best = objective(A, y, lam, x)

    def values(**options):
        states = take(fista(f, R, np.zeros(6), step=1.0, **options), 400)
        return np.array([objective(A, y, lam, s.x) - best for s in states])

    plain, restarted = values(), values(restart=True)
    assert (np.diff(plain) > 1e-9).any()
    assert restarted[200] < 1e-2 * plain[200] + 1e-15
    assert restarted[400] < 1e-13


# ---------------------------------------------------------------- ADMM


def total_variation_problem(seed: int = 0, n: int = 12):
    """½‖x - y‖² + lam ‖Kx‖₁, and its solution from the dual, a box-constrained least squares."""
    rng = np.random.default_rng(seed)
    y = np.repeat(rng.standard_normal(4), 3) + 0.1 * rng.standard_normal(n)
    K, lam = difference(n), 0.2
    M = K.to_dense()
    p = lsq_linear(M.T, y, bounds=(-lam, lam), tol=1e-15, method="bvls").x
    return K, y, lam, y - M.T @ p, p


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.8])
@pytest.mark.parametrize("rho", [0.05, 1.0, 20.0])
def test_admm_states_are_subgradients(alpha, rho, like):
    """At every state ρν is a subgradient of g at z, and -ρKᵀν - s one of f at x, exactly."""
    A, y = (asarray_like(v, like) for v in system("tall"))
    K, lam = difference(6), 0.2
    f, g = least_squares(A, y), lam * l1()
    x0 = asarray_like(np.linspace(-1, 1, 6), like)
    states = admm(least_squares_step(A, y, K), g, K, x0, rho=rho, relaxation=alpha)
    rng, noise = np.random.default_rng(0), 300 * eps(like) * max(1.0, rho)
    for state in take(states, 12)[1:]:
        q = -(K.H @ state.dual) - state.s
        assert relative(q + 0.0, f.gradient(state.x)) <= noise / float(
            np.linalg.norm(to_numpy(f.gradient(state.x)))
        )
        for w in rng.standard_normal((10, 5)):
            w = asarray_like(w, like)
            lower = float(g(state.z)) + float((to_numpy(state.dual) * to_numpy(w - state.z)).sum())
            assert float(g(w)) >= lower - noise
        np.testing.assert_allclose(
            to_numpy(state.r), to_numpy(K @ state.x - state.z), rtol=0, atol=noise
        )


def test_admm_dual_residual_is_boyds():
    """Without relaxation s is ρKᵀ(z - z_old)."""
    A, y = system("tall")
    K = difference(6)
    states = take(admm(least_squares_step(A, y, K), 0.2 * l1(), K, np.ones(6), rho=0.7), 8)
    for s, t in zip(states, states[1:], strict=False):
        np.testing.assert_allclose(t.s, 0.7 * (K.H @ (t.z - s.z)), rtol=0, atol=1e-14)
    assert np.isinf(states[0].s).all()
    assert np.abs(states[0].r).max() == 0


@pytest.mark.parametrize("alpha", [0.6, 1.0, 1.8])
@pytest.mark.parametrize("rho", [0.03, 1.0, 30.0])
def test_admm_solves_total_variation(alpha, rho):
    """Every penalty and relaxation ends at the same solution, and the rule does not stop early."""
    K, y, lam, x, _ = total_variation_problem()
    solve = least_squares_step(np.eye(12), y, K)
    states = admm(solve, lam * l1(), K, np.zeros(12), rho=rho, relaxation=alpha)
    result = run(states, stop=admm_rule(K, rtol=1e-8), max_iter=30_000, check_every=10)
    assert result.converged, result.reason
    np.testing.assert_allclose(result.x, x, atol=2e-6)
    np.testing.assert_allclose(K @ result.x, result.state.z, atol=1e-7)


def test_admm_with_a_constraint_and_a_general_k(rng):
    """Non-negative least squares with K a well-conditioned matrix: f(x) + indicator(Kx >= 0)."""
    A, y = rng.standard_normal((8, 5)), rng.standard_normal(8)
    K = np.eye(5) + 0.2 * rng.standard_normal((5, 5))
    solve = least_squares_step(A, y, K)
    states = admm(solve, box(0.0), K, np.zeros(5), rho=1.0)
    result = run(states, stop=admm_rule(K, rtol=1e-10), max_iter=20_000)
    assert result.converged
    expected = np.linalg.solve(K, nnls(A @ np.linalg.inv(K), y)[0])
    np.testing.assert_allclose(result.x, expected, atol=1e-8)


def test_admm_with_two_penalties(rng):
    """TV and non-negativity through `stack` and `separable`, against the same by PDHG."""
    y = np.repeat([0.8, -0.5, 0.3], 4) + 0.1 * rng.standard_normal(12)
    K = stack(difference(12), matrix(np.eye(12)))
    g = separable((0.15 * l1(), (11,)), (box(0.0), (12,)))
    states = admm(least_squares_step(np.eye(12), y, K), g, K, y, rho=1.0)
    one = run(states, stop=admm_rule(K, rtol=1e-9), max_iter=5000, check_every=5)
    assert one.converged, one.reason
    step = 0.99 / K.norm()
    states = pdhg(K, least_squares(None, y), g, y, step=step, dual_step=step)
    two = run(states, max_iter=3000, check_every=3000)
    np.testing.assert_allclose(one.x, two.x, atol=1e-6)
    assert one.x.min() > -1e-9


def test_admm_rule_where_a_scale_vanishes(like):
    """Kx = 0, or ∇f(x) = 0, at the solution: rounding is small enough then, and not before."""
    A, y = (asarray_like(v, like) for v in system("tall"))
    K, zero = asarray_like(np.eye(6), like), asarray_like(np.zeros(6), like)
    lam = 1.2 * float(np.abs(to_numpy(A).T @ to_numpy(y)).max())
    solve = least_squares_step(A, y, K)
    for g, rho in ((lam * l1(), 0.3), (box(-1e3, 1e3), 0.3), (lam * l1(), 5.0)):
        states, rule = admm(solve, g, K, zero, rho=rho), admm_rule(K, rtol=1e-4)
        result = run(states, stop=rule, max_iter=5000, check_every=20)
        assert result.converged, result.reason
        expected = (
            np.zeros(6)
            if g.name.endswith("l1 norm")
            else np.linalg.lstsq(to_numpy(A).astype(float), to_numpy(y).astype(float))[0]
        )
        np.testing.assert_allclose(to_numpy(result.x), expected, atol=3e4 * eps(like))
    # Nothing at all: 0 over 0 is 0.
    solve = least_squares_step(A, 0.0 * y, K)
    result = run(admm(solve, lam * l1(), K, zero, rho=1.0), stop=admm_rule(K), max_iter=5)
    assert (result.converged, result.iterations) == (True, 1)


def test_admm_rule_measures_what_it_says(rng):
    A, y = system("tall")
    K = difference(6)
    states = take(admm(least_squares_step(A, y, K), 0.2 * l1(), K, np.ones(6), rho=0.7), 5)
    state = states[-1]
    size = np.linalg.norm
    for rtol, atol in ((1e-3, 0.0), (0.0, 1e-2), (1e-6, 1e-2)):
        rule = admm_rule(K, rtol=rtol, atol=atol)
        first = size(K @ state.x - state.z) / max(
            rtol * max(size(K @ state.x), size(state.z)), atol
        )
        second = size(state.s) / max(rtol * size(K.H @ state.dual), atol)
        assert rule.measure(state) == pytest.approx(max(first, second), rel=1e-10)
        assert rule.verify(state) == pytest.approx(max(first, second), rel=1e-10)
    assert rule.measure(states[0]) == np.inf


def test_least_squares_step_is_the_minimizer(like, rng):
    A, K = rng.standard_normal((3, 5)), rng.standard_normal((4, 5))
    y, v = rng.standard_normal(3), rng.standard_normal(4)
    solve = least_squares_step(*(asarray_like(w, like) for w in (A, y, K)))
    for rho in (0.1, 2.0, 0.1):
        x = solve(asarray_like(v, like), rho)
        assert_alike(x, like)
        stacked = np.vstack([A, math.sqrt(rho) * K])
        expected = np.linalg.lstsq(stacked, np.concatenate([y, math.sqrt(rho) * v]))[0]
        np.testing.assert_allclose(to_numpy(x), expected, atol=2e3 * eps(like))


def test_least_squares_step_of_a_picture(rng):
    psf = np.outer([1, 2, 1], [1, 2, 1]) / 16
    A, K = convolution(psf, (5, 4)), gradient((5, 4))
    y, v = rng.standard_normal((5, 4)), rng.standard_normal((2, 5, 4))
    x = least_squares_step(A, y, K)(v, 0.3)
    assert x.shape == (5, 4)
    stationary = A.H @ (A @ x - y) + 0.3 * (K.H @ (K @ x - v))
    assert np.abs(stationary).max() < 1e-12


def test_least_squares_step_refuses_what_is_not_unique(like):
    A = asarray_like(np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 2.0]]), like)
    K = asarray_like(np.array([[1.0, 1.0, 0.0]]), like)  # (1, -1, 0) is in both null spaces
    solve = least_squares_step(A, asarray_like([1.0, 2.0], like), K)
    with pytest.raises(ValueError, match="x-step must be unique: expected .*, got a matrix"):
        solve(asarray_like([1.0], like), 0.5)


# ---------------------------------------------------------------- PDHG


@pytest.mark.parametrize("ratio", [0.1, 1.0, 10.0])
def test_pdhg_at_the_limit_of_its_steps(ratio):
    """ησ‖K‖² = 1; the gap is a bound, and the dual variable is the dual solution."""
    K, y, lam, x, p = total_variation_problem()
    f, g = least_squares(None, y), lam * l1()
    eta, sigma = ratio / K.norm(), 1 / (ratio * K.norm())
    rule = gap_rule(K, f, g, rtol=1e-10)
    best = float(f(x) + g(K @ x))
    for state in islice(pdhg(K, f, g, y, step=eta, dual_step=sigma), 0, 200, 20):
        value = float(f(state.x) + g(K @ state.x))
        assert -1e-14 <= (value - best) / value <= rule.measure(state) + 1e-14
    states = pdhg(K, f, g, y, step=eta, dual_step=sigma)
    result = run(states, stop=rule, max_iter=20_000, check_every=10)
    assert result.converged, result.reason
    np.testing.assert_allclose(result.x, x, atol=1e-5)
    np.testing.assert_allclose(K.H @ result.state.dual, K.H @ p, atol=1e-4)


def test_pdhg_diverges_far_above_its_limit():
    """min 0 + 0 over x, K = 1: a turn of the plane, which grows when ησ > 4/3."""
    zero = box()
    origin = Functional(lambda x: 0.0 * x[0], prox=lambda v, step: 0.0 * v, conjugate=zero.value)
    K, x0 = np.eye(1), np.ones(1)

    def end(product):
        step = math.sqrt(product)
        return float(run(pdhg(K, zero, origin, x0, step=step, dual_step=step), max_iter=300).x[0])

    assert abs(end(1.0)) < 1e-3
    assert abs(end(1.3)) < 1e-3
    assert abs(end(1.4)) > 1e3


def test_pdhg_with_pictures(like):
    """Shapes stay; the result satisfies the optimality condition of isotropic TV denoising."""
    rng, D = np.random.default_rng(3), gradient((6, 5))
    y = asarray_like(rng.standard_normal((6, 5)), like)
    f, g, step = least_squares(None, y), 0.3 * group_l1(0), 1 / D.norm()
    rule = gap_rule(D, f, g, rtol=1e-3 if eps(like) > 1e-10 else 1e-8)
    states = pdhg(D, f, g, y, step=step, dual_step=step)
    result = run(states, stop=rule, max_iter=5000, check_every=10)
    assert result.converged, result.reason
    assert tuple(result.x.shape) == (6, 5)
    assert_alike(result.state.dual, like)
    lengths = np.linalg.norm(to_numpy(result.state.dual), axis=0)
    assert lengths.max() <= 0.3 * (1 + 10 * eps(like))


# ---------------------------------------------------------------- rules


def test_rules_verify_before_they_say_converged():
    """A rule that measures optimistically does not stop the run; one that lies ends it in words."""
    A, y, lam, _ = lasso("tall")
    honest = lasso_gap_rule(A, y, lam, rtol=1e-6)
    f, R = least_squares(A, y), lam * l1()

    def start():
        return fista(f, R, np.zeros(6), step=1.0)

    hopeful = StoppingRule(
        lambda s: 0.5 * honest.measure(s), honest.verify, honest.bound, honest.name
    )
    result = run(start(), stop=hopeful, max_iter=5000)
    assert result.converged
    assert honest.measure(result.state) <= 1e-6
    liar = StoppingRule(lambda s: 0.0, honest.verify, honest.bound, honest.name)
    result = run(start(), stop=liar, max_iter=5000)
    assert not result.converged
    assert result.reason.startswith("stagnated")


@every
def test_the_budget_ends_a_run_in_words(case):
    A, y, lam, _ = lasso("wide")
    rule = lasso_gap_rule(A, y, lam, rtol=1e-12)
    result = run(states_of(case, A, y, lam), stop=rule, max_iter=3)
    assert (result.converged, result.iterations) == (False, 3)
    assert result.reason == "max_iter = 3 steps were taken"


@pytest.mark.parametrize("name", ["ista", "fista", "fista-restart", "pdhg"])
def test_a_start_at_the_solution_has_converged(name):
    case = next(case for case in PROXIMAL if case.name == name)
    for kind in ("tall", "column", "wide"):
        A, y, lam, x = lasso(kind)
        f, R = least_squares(A, y), lam * l1()
        for rule in (
            lasso_gap_rule(A, y, lam, rtol=1e-8),
            prox_gradient_rule(f, R, x, step=1.0, rtol=1e-8),
        ):
            result = run(states_of(case, A, y, lam, x), stop=rule, max_iter=50)
            assert (result.converged, result.iterations) == (True, 0)
    # Smooth, and the gradient at 0 vanishes: the start is the measure.
    f = least_squares(np.eye(2), np.zeros(2))
    rule = prox_gradient_rule(f, box(), np.ones(2), step=0.5, rtol=1e-3)
    assert rule.bound == pytest.approx(1e-3 * math.sqrt(2))


def test_gradient_mapping_is_the_gradient_without_a_penalty(rng):
    A, y = system("tall")
    f, x0 = least_squares(A, y), rng.standard_normal(6)
    rule = prox_gradient_rule(f, box(), x0, step=0.3, rtol=1e-6, atol=1e-9)
    (state,) = take(gradient_descent(f, x0, step=0.3), 0)
    g = np.linalg.norm(A.T @ (A @ x0 - y))
    assert rule.measure(state) == pytest.approx(g, rel=1e-12)
    assert rule.bound == pytest.approx(1e-6 * max(g, np.linalg.norm(A.T @ y)), rel=1e-12)


def test_gradient_mapping_vanishes_at_the_solution_only(rng):
    A, y, lam, x = lasso("wide")
    f, R = least_squares(A, y), lam * l1()
    for step in (0.2, 1.0, 5.0):
        rule = prox_gradient_rule(f, R, np.zeros(12), step=step)
        near = next(ista(f, R, x, step=step))
        assert rule.measure(near) < 1e-12
        for _ in range(10):
            other = next(ista(f, R, x + 1e-3 * rng.standard_normal(12), step=step))
            assert rule.measure(other) > 1e-6


@pytest.mark.parametrize("lam2", [0.0, 0.3])
def test_lasso_gap_is_its_formula(lam2, rng):
    """Primal minus dual objective, at the best multiple of the residual that is feasible."""
    A, y = system("tall")
    lam = 0.2 * np.abs(A.T @ y).max()
    B = np.vstack([A, math.sqrt(lam2) * np.eye(6)])
    z = np.concatenate([y, np.zeros(6)])
    rule = lasso_gap_rule(A, y, lam, lam2=lam2)
    for size in (1e-3, 1.0, 100.0):
        x = size * rng.standard_normal(6)
        r = z - B @ x
        limit = lam / np.abs(B.T @ r).max()
        s = np.linspace(-limit, limit, 20_001)
        dual = 0.5 * z @ z - 0.5 * np.sum((z[:, None] - s * r[:, None]) ** 2, axis=0)
        primal = 0.5 * r @ r + lam * np.abs(x).sum()
        state = next(ista(least_squares(A, y), l1(), x, step=1.0))
        assert rule.measure(state) == pytest.approx(1 - dual.max() / primal, rel=1e-6)


@pytest.mark.parametrize("lam2", [0.0, 0.3])
def test_lasso_gap_vanishes_at_the_solution(lam2):
    A, y = system("wide", condition=100.0)
    lam = 0.05 * np.abs(A.T @ y).max()
    B, z = np.vstack([A, math.sqrt(lam2) * np.eye(12)]), np.concatenate([y, np.zeros(12)])
    x = reference(B, z, lam)
    state = next(ista(least_squares(A, y), l1(), x, step=1.0))
    # Not the difference of two numbers: the gap falls far below rounding of the objective.
    assert 0 <= lasso_gap_rule(A, y, lam, lam2=lam2).measure(state) < 1e-15


def test_lasso_gap_of_data_that_are_fitted():
    """r = 0 exactly: the dual point is 0, the gap is the objective."""
    A, x = np.eye(2), np.array([1.0, -2.0])
    rule = lasso_gap_rule(A, x, 0.5)
    assert rule.measure(next(ista(least_squares(A, x), l1(), x, step=1.0))) == 1.0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.slow
def test_gaps_do_not_lie_in_single_precision(seed):
    """Where a rule says converged, the gap in double precision at that x is small too."""
    A, y = (v.astype(np.float32) for v in system("wide", seed, condition=300.0))
    lam = 0.003 * float(np.abs(A.T @ y).max())
    exact, reached = lasso_gap_rule(A.astype(float), y.astype(float), lam), 0
    for rtol in (1e-1, 1e-3, 1e-5):
        states = fista(
            least_squares(A, y), lam * l1(), np.zeros(12, np.float32), step=1.0, restart=True
        )
        rule = lasso_gap_rule(A, y, lam, rtol=rtol)
        result = run(states, stop=rule, max_iter=3000, check_every=10)
        if result.converged:
            reached += 1
            assert exact.measure(result.state._replace(x=result.x.astype(float))) <= 3 * rtol
    assert reached > 0


@pytest.mark.parametrize("seed", range(6))
def test_gap_rule_counts_rounding(seed, like):
    """Its terms cancel, and in single precision the difference may be negative; not so the rule."""
    rng = np.random.default_rng(seed)
    y = asarray_like(100 + 0.01 * rng.standard_normal(40), like)
    K = difference(40)
    f, g = least_squares(None, y), 0.005 * l1()
    rule = gap_rule(K, f, g, rtol=1e-6)
    exact = gap_rule(K, least_squares(None, to_numpy(y).astype(float)), 0.005 * l1(), rtol=1e-6)
    for state in islice(pdhg(K, f, g, y, step=0.5, dual_step=0.5), 0, 100, 9):
        other = state._replace(
            x=to_numpy(state.x).astype(float), nu=to_numpy(state.nu).astype(float)
        )
        measured, true = rule.measure(state), exact.measure(other)
        assert measured > 0
        if measured <= rule.bound:
            assert true <= 2 * rule.bound


def test_gap_rule_is_infinite_outside():
    """Where x is not allowed, or the conjugate is infinite, nothing has converged."""
    K, y = np.eye(2), np.array([1.0, -1.0])
    f = least_squares(None, y)
    state = next(pdhg(K, f, l1(), -np.ones(2), step=0.5, dual_step=0.5))
    assert gap_rule(K, f, box(0.0)).measure(state) == np.inf
    unbounded = box(0.0)
    below = state._replace(x=np.ones(2), nu=-np.ones(2))
    assert gap_rule(K, unbounded, f).measure(below) == np.inf
    assert not gap_rule(K, unbounded, f).measure(below) <= 1e300


# ---------------------------------------------------------------- derivatives


@every
def test_gradcheck(case, torch):
    """The unrolled iteration: derivatives in data, matrix and start, by finite differences."""
    M, data, lam, _ = lasso("tall", part=0.05)
    start = np.linspace(-1, 1, 3)
    A, y, x0 = (torch.tensor(v, requires_grad=True) for v in (M[:4, :3], data[:4], start))

    def unrolled(A, y, x0):
        return run(case.start(A, y, lam, x0, 0.8), max_iter=4).x

    assert torch.autograd.gradcheck(unrolled, (A, y, x0), atol=1e-6, rtol=1e-4)


@every
@pytest.mark.slow
def test_derivative_of_the_solution(case, torch):
    """In the limit dx_S/dy = (A_SᵀA_S)⁻¹A_Sᵀ on the support S, and 0 elsewhere."""
    M, data, lam, x = lasso("tall", part=0.15)
    S = np.abs(x) > 0
    assert 0 < S.sum() < 6
    A, y = torch.tensor(M), torch.tensor(data, requires_grad=True)
    rule = lasso_gap_rule(A, y, lam, rtol=1e-13)
    result = run(states_of(case, A, y, lam), stop=rule, max_iter=case.max_iter, check_every=25)
    weights = np.linspace(1, 2, 6)
    (g,) = torch.autograd.grad(result.x @ torch.tensor(weights), y)
    expected = weights[S] @ np.linalg.solve(M[:, S].T @ M[:, S], M[:, S].T)
    np.testing.assert_allclose(g.numpy(), expected, atol=1e-4)


@every
def test_no_nan_in_the_derivative_at_zero(case, torch):
    """From x0 = 0 and y = 0, where every norm and every absolute value has its kink."""
    M, *_ = lasso("tall")
    y = torch.zeros(12, dtype=torch.float64, requires_grad=True)
    A = torch.tensor(M, requires_grad=True)
    x = run(case.start(A, y, 0.1, torch.zeros(6, dtype=torch.float64), 0.8), max_iter=5).x
    x.sum().backward()
    assert torch.isfinite(y.grad).all()
    assert torch.isfinite(A.grad).all()


def test_no_nan_for_total_variation(torch):
    D = gradient((4, 3))
    y = torch.zeros((4, 3), dtype=torch.float64, requires_grad=True)
    f, g = least_squares(None, y), 0.2 * group_l1(0)
    for states in (
        pdhg(D, f, g, 0 * y.detach(), step=0.3, dual_step=0.3),
        admm(
            least_squares_step(
                torch.eye(12, dtype=torch.float64),
                torch.reshape(y, (12,)),
                matrix(torch.tensor(D.to_dense())),
            ),
            0.2 * l1(),
            matrix(torch.tensor(D.to_dense())),
            torch.zeros(12, dtype=torch.float64),
            rho=1.0,
        ),
    ):
        (grad,) = torch.autograd.grad(run(states, max_iter=6).x.sum(), y)
        assert torch.isfinite(grad).all()
        np.testing.assert_allclose(grad.sum().item(), 12.0 if states else 0, rtol=0.5)


def test_rules_do_not_touch_the_derivative(torch):
    A, y, lam, _ = lasso("tall")
    A, y = torch.tensor(A), torch.tensor(y, requires_grad=True)
    f, R, x0 = least_squares(A, y), lam * l1(), torch.zeros(6, dtype=torch.float64)

    def derivative(**options):
        x = run(fista(f, R, x0, step=1.0, restart=True), max_iter=30, **options).x
        return torch.autograd.grad(x.sum(), y)[0].numpy()

    rule = lasso_gap_rule(A, y, lam, rtol=1e-30) | prox_gradient_rule(f, R, x0, step=1.0)
    record = {"gap": rule.measure, "objective": lambda s: f(s.x) + R(s.x)}
    np.testing.assert_array_equal(derivative(), derivative(stop=rule, record=record))


# ---------------------------------------------------------------- refusals and size

A2, Y2, X2 = np.diag([2.0, 1.0]), np.ones(2), np.zeros(2)
F2 = least_squares(A2, Y2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ista(l1(), l1(), X2, step=1.0), "f must have a gradient: l1 norm has none"),
        (lambda: fista(F2, F2, X2, step=1.0), "R must have a prox: least squares has none"),
        (lambda: ista(len, l1(), X2, step=1.0), "f must be a functional: got builtin"),
        (lambda: ista(F2, None, X2, step=1.0), "R must be a functional: got NoneType"),
        (lambda: gradient_descent(l1(), X2, step=1.0), "f must have a gradient"),
        (lambda: ista(F2, l1(), np.zeros(3), step=1.0), r"x0 must fit f: .*expected \(2,\)"),
        (lambda: ista(F2, l1(), X2.astype(np.float32), step=1.0), "x0 must fit f: .*one dtype"),
        (lambda: fista(F2, group_l1(1), X2, step=1.0), "x0 must fit R: .*more dimensions"),
        (lambda: gradient_descent(F2, np.zeros((2, 1)), step=1.0), "x0 must fit f"),
        (
            lambda: ista(Functional(l1, gradient=lambda x: x[:1]), l1(), X2, step=1.0),
            r"x0 must fit f: expected an array of shape \(2,\) from it, got \(1,\)",
        ),
        (lambda: pdhg(A2, F2, l1(), X2, step=1.0, dual_step=1.0), "f must have a prox"),
        (
            lambda: pdhg(A2, least_squares(None, np.ones(3)), l1(), X2, step=1.0, dual_step=1.0),
            "x0 must fit f",
        ),
        (
            lambda: pdhg(
                difference(3),
                squared_l2(),
                separable((l1(), (3,))),
                np.ones(3),
                step=1.0,
                dual_step=1.0,
            ),
            "K @ x0 must fit g: x must be flat",
        ),
        (lambda: pdhg(A2, l1(), l1(), np.ones(3), step=1.0, dual_step=1.0), "x0 has the wrong"),
        (lambda: admm(None, l1(), A2, X2, rho=1.0), "solve must be callable: got NoneType"),
        (lambda: admm(len, F2, A2, X2, rho=1.0), "g must have a prox"),
        (lambda: admm(len, l1(), A2, X2, rho=0.0), "rho must be positive"),
        (lambda: admm(len, l1(), A2, X2, rho=1.0, relaxation=2.0), "relaxation must be below 2"),
        (lambda: admm(len, l1(), A2, X2, rho=1.0, relaxation=0.0), "relaxation must be positive"),
        (lambda: gap_rule(A2, F2, l1()), "f must have a conjugate: least squares has none"),
        (lambda: least_squares_step(A2, Y2, np.eye(3)), "K must act on x"),
        (lambda: least_squares_step(A2, Y2, np.eye(2, dtype=np.float32)), "one dtype"),
        (lambda: least_squares_step(A2.astype(np.float32), Y2, np.eye(2)), "one dtype"),
        (lambda: lasso_gap_rule(A2, Y2, 0.0), "lam must be positive"),
        (lambda: lasso_gap_rule(A2, Y2, 1.0, lam2=-1.0), "lam2 is too small"),
    ],
)
def test_refusals_when_called(call, words):
    """At the call, not at the first step: the message stands where the mistake is."""
    with pytest.raises(ValueError, match=words):
        call()


def test_mixed_precision_in_admm_is_refused():
    """K holds no numbers, so only the x-step knows the precision of the data."""
    solve = least_squares_step(A2, Y2, difference(2))
    states = admm(solve, l1(), difference(2), X2.astype(np.float32), rho=1.0)
    with pytest.raises(ValueError, match="one dtype"):
        run(states, max_iter=1)


def test_step_is_not_compared_with_the_limit():
    for start in (ista, fista):
        next(start(F2, l1(), X2, step=1e9))
    next(pdhg(A2, least_squares(None, Y2), l1(), X2, step=1e9, dual_step=1e9))


ITERATIONS = (gradient_descent, ista, fista, pdhg, admm)


def logical_lines(function) -> int:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)][1:]
    return sum(
        not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in statements
    )


@pytest.mark.parametrize("iteration", ITERATIONS)
def test_an_iteration_stays_within_25_lines(iteration):
    assert logical_lines(iteration) <= 25


def test_every_iteration_is_in_the_table():
    assert {case.name.split("-")[0] for case in PROXIMAL} == {"ista", "fista", "admm", "pdhg"}
    assert {f.__name__ for f in ITERATIONS} == {"gradient_descent", "ista", "fista", "admm", "pdhg"}


@pytest.mark.slow
def test_overhead_of_the_generator(report_line):
    """A figure to read, not a bound: FISTA through `run` against a plain loop, n = 1e5."""
    n, steps, lam, step = 100_000, 40, 0.1, 0.9
    d, y = np.linspace(1, 0.1, n), np.random.default_rng(0).standard_normal(n)
    A = LinearOperator(lambda x: d * x, lambda v: d * v, (n,), (n,), "diagonal", d)
    f, R, x0 = least_squares(A, y), lam * l1(), np.zeros(n)

    def plain():
        x, ext, t = x0, x0, 1.0
        for _ in range(steps):
            v = ext - step * (d * (d * ext - y))
            new = v - np.clip(v, -step * lam, step * lam)
            t_next = 0.5 * (1 + math.sqrt(1 + 4 * t**2))
            x, ext, t = new, new + ((t - 1) / t_next) * (new - x), t_next
        return x

    def ours():
        return run(fista(f, R, x0, step=step), max_iter=steps, check_every=10).x

    np.testing.assert_allclose(plain(), ours(), atol=1e-12)
    seconds = {plain: math.inf, ours: math.inf}
    for _ in range(7):
        for function in seconds:
            before = time.process_time()
            function()
            seconds[function] = min(seconds[function], time.process_time() - before)
    report_line(
        f"FISTA through run, over a plain loop, n = 1e5: {seconds[ours] / seconds[plain]:.2f} "
        "(aim: at most 1.5)"
    )
