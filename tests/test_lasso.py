"""The LASSO and the elastic net: the optimality conditions, other solvers, and the certificate.

A certificate is judged here in extended precision, and the optimality conditions are written out
once more: nothing of the library is used to judge it.
"""

import ast
import inspect
import itertools
import textwrap

import numpy as np
import pytest
from kit import assert_alike, eps, relative, to_numpy
from sklearn.linear_model import ElasticNet, Lasso, lars_path_gram

from course_lib import proximal
from course_lib.arrays import asarray_like
from course_lib.functionals import soft_threshold
from course_lib.operators import LinearOperator, convolution, diagonal, integration, matrix
from course_lib.problems import psf_gaussian
from course_lib.proximal import elastic_net, lasso, lasso_gap_rule


def extended(A, lam2: float) -> np.ndarray:
    """A over √λ₂ I, in extended precision: the elastic net is the LASSO with these rows."""
    A = to_numpy(A).astype(np.longdouble)
    return np.vstack([A, np.sqrt(np.longdouble(lam2)) * np.eye(A.shape[1])]) if lam2 else A


def objective(A, y, lam: float, x, lam2: float = 0.0) -> np.longdouble:
    A, x = extended(A, lam2), to_numpy(x).astype(np.longdouble)
    y = np.append(to_numpy(y), np.zeros(len(A) - len(y))).astype(np.longdouble)
    return 0.5 * np.sum((A @ x - y) ** 2) + lam * np.sum(np.abs(x))


def gap(A, y, lam: float, x, lam2: float = 0.0) -> float:
    """Primal minus dual objective over the primal one, at the best feasible multiple of r."""
    value = objective(A, y, lam, x, lam2)
    A, x = extended(A, lam2), to_numpy(x).astype(np.longdouble)
    y = np.append(to_numpy(y), np.zeros(len(A) - len(y))).astype(np.longdouble)
    r = y - A @ x
    top, square = np.abs(A.T @ r).max(), r @ r
    s = r @ y / square if square else 1.0
    u = (np.clip(s, -lam / top, lam / top) if top else s) * r
    return float((value - (u @ y - 0.5 * u @ u)) / value) if value else 0.0


def violation(A, y, lam: float, x, lam2: float = 0.0) -> float:
    """How far the optimality conditions are missed, over λ."""
    c = A.T @ (y - A @ x) - lam2 * x
    return float(
        np.where(x != 0, abs(c - lam * np.sign(x)), np.maximum(abs(c) - lam, 0)).max() / lam
    )


def system(m: int, n: int, seed: int = 0, *, condition: float = 0.0, noise: float = 0.1):
    """A random matrix and data of a few spikes; with the condition number asked for, if any."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((m, n)) / np.sqrt(m)
    if condition:
        U, _, Vh = np.linalg.svd(A, full_matrices=False)
        A = (U * np.geomspace(1, 1 / condition, min(m, n))) @ Vh
    x = np.where(rng.uniform(size=n) < 0.2, rng.standard_normal(n), 0.0)
    x[0] = 1.0
    return A, A @ x + noise * rng.standard_normal(m) / np.sqrt(m)


def lam_max(A, y) -> float:
    return float(np.abs(A.T @ y).max())


SHAPES = ((30, 12), (12, 30), (20, 20), (40, 1), (1, 9), (1, 1))
FRACTIONS = (0.9, 0.3, 0.1, 0.01, 1e-3)


# ---------------------------------------------------------------- against others


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_optimality_conditions(shape, fraction):
    A, y = system(*shape)
    lam = fraction * lam_max(A, y)
    for lam2 in (0.0, 0.3 * lam):
        result = elastic_net(A, y, lam, lam2)
        assert result.converged, result.reason
        assert violation(A, y, lam, result.x, lam2) < 1e-9
        assert gap(A, y, lam, result.x, lam2) < 1e-10


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_scikit_learn(shape):
    """Its sum of squares is a mean: α = λ/m."""
    for seed, fraction in itertools.product(range(2), (0.5, 0.1, 0.02)):
        A, y = system(*shape, seed)
        lam = fraction * lam_max(A, y)
        options = {"fit_intercept": False, "tol": 1e-14, "max_iter": 10**6}
        theirs = Lasso(alpha=lam / len(y), **options).fit(A, y).coef_
        np.testing.assert_allclose(lasso(A, y, lam).x, theirs, rtol=0, atol=1e-6)
        lam2 = 0.5 * lam
        mix = {"alpha": (lam + lam2) / len(y), "l1_ratio": lam / (lam + lam2)}
        theirs = ElasticNet(**mix, **options).fit(A, y).coef_
        np.testing.assert_allclose(elastic_net(A, y, lam, lam2).x, theirs, rtol=0, atol=1e-6)


def test_agrees_with_an_interior_point_method():
    cvxpy = pytest.importorskip("cvxpy")
    A, y = system(15, 25, 3)
    lam, lam2 = 0.1 * lam_max(A, y), 0.05
    for second in (0.0, lam2):
        x = cvxpy.Variable(25)
        penalty = lam * cvxpy.norm1(x) + second / 2 * cvxpy.sum_squares(x)
        cvxpy.Problem(cvxpy.Minimize(0.5 * cvxpy.sum_squares(A @ x - y) + penalty)).solve(
            "CLARABEL"
        )
        ours = elastic_net(A, y, lam, second).x
        assert objective(A, y, lam, ours, second) <= objective(A, y, lam, x.value, second)
        np.testing.assert_allclose(ours, x.value, rtol=0, atol=1e-4)


def by_enumeration(A, y, lam: float, lam2: float) -> float:
    """The minimum over all sign patterns, each a linear system: no iteration at all."""
    n, best = A.shape[1], objective(A, y, lam, np.zeros(A.shape[1]))
    for signs in itertools.product((-1, 0, 1), repeat=n):
        signs = np.array(signs, dtype=float)
        S = np.flatnonzero(signs)
        if S.size and S.size <= len(y) + n * (lam2 > 0):
            x = np.zeros(n)
            H = A[:, S].T @ A[:, S] + lam2 * np.eye(S.size)
            x[S] = np.linalg.lstsq(H, A[:, S].T @ y - lam * signs[S])[0]
            best = min(best, objective(A, y, lam, x, lam2))
    return float(best)


@pytest.mark.parametrize("seed", range(12))
def test_no_sign_pattern_is_better(seed):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((int(rng.integers(2, 7)), 5))
    if seed % 3 == 0:
        A = np.round(A)
    if seed % 4 == 0:
        A[:, 3] = A[:, 1]
    y = rng.standard_normal(len(A))
    lam = float(rng.choice([0.5, 0.1, 0.02])) * lam_max(A, y)
    lam2 = float(rng.choice([0.0, 0.1]))
    best = by_enumeration(A, y, lam, lam2)
    value = float(objective(A, y, lam, elastic_net(A, y, lam, lam2).x, lam2))
    assert value == pytest.approx(best, rel=1e-10)


def test_orthonormal_columns_are_a_soft_threshold(like64):
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((9, 6)))[0]
    A, y = asarray_like(Q, like64), asarray_like(np.linspace(-2, 2, 9), like64)
    threshold = soft_threshold(A.T @ y, 0.4)
    np.testing.assert_allclose(to_numpy(lasso(A, y, 0.4).x), to_numpy(threshold), atol=1e-14)
    net = elastic_net(A, y, 0.4, 3.0).x
    np.testing.assert_allclose(to_numpy(net), to_numpy(threshold) / 4, atol=1e-14)


def test_elastic_net_is_a_lasso_with_more_rows():
    A, y = system(10, 14)
    lam, lam2 = 0.1 * lam_max(A, y), 0.2
    rows, zeros = np.vstack([A, np.sqrt(lam2) * np.eye(14)]), np.append(y, np.zeros(14))
    net = elastic_net(A, y, lam, lam2)
    np.testing.assert_allclose(net.x, lasso(rows, zeros, lam).x, rtol=0, atol=1e-11)
    np.testing.assert_allclose(elastic_net(A, y, lam, 0.0).x, lasso(A, y, lam).x, rtol=0, atol=0)
    # The other part of the dual point, and with it the constraint.
    s = (net.state.dual @ net.state.r) / (net.state.r @ net.state.r)
    dual = np.append(net.state.dual, -s * np.sqrt(lam2) * net.x)
    assert np.abs(rows.T @ dual).max() <= lam * (1 + 1e-14)


# ---------------------------------------------------------------- the certificate


@pytest.mark.parametrize("lam2", [0.0, 0.3])
def test_the_gap_bounds_the_distance_to_the_minimum(lam2):
    """At any x: F(x) - gap is below the minimum. The residual itself as dual point would not do."""
    refuted = 0
    for seed in range(20):
        A, y = system(8, 12, seed)
        lam = 0.2 * lam_max(A, y)
        least = objective(A, y, lam, elastic_net(A, y, lam, lam2).x, lam2)
        for scale in (0.0, 0.1, 1.0):
            x = scale * np.random.default_rng(seed).standard_normal(12)
            state = elastic_net(A, y, lam, lam2, x, max_iter=0).state
            value = objective(A, y, lam, x, lam2)
            assert state.objective == pytest.approx(float(value), rel=1e-13)
            assert value - state.gap <= least * (1 + 1e-12)
            np.testing.assert_allclose(state.r, y - A @ x, rtol=0, atol=1e-14)
            np.testing.assert_allclose(state.c, A.T @ state.r - lam2 * x, rtol=0, atol=1e-14)
            if lam2 == 0:
                u = state.dual
                assert np.abs(A.T @ u).max() <= lam * (1 + 1e-14)
                assert float(value) - (u @ y - u @ u / 2) == pytest.approx(state.gap, abs=1e-13)
                refuted += state.r @ y - state.r @ state.r / 2 > least * (1 + 1e-6)
    assert lam2 or refuted > 20


def test_what_is_promised_is_kept(like):
    """State and verdict are those of the returned x; the gap is relative to the objective."""
    M, data = system(20, 30, noise=0.3)
    A, y, lam = asarray_like(M, like), asarray_like(data, like), 0.1 * lam_max(M, data)
    result = lasso(A, y, lam)
    assert result.converged
    assert "duality gap over objective" in result.reason
    tolerance = 1e-10 if eps(like) < 1e-10 else 1e-5
    M, data, x = to_numpy(A), to_numpy(y), to_numpy(result.x)
    assert gap(M, data, lam, x) <= tolerance * (1 + 1e-3)
    state = result.state
    for array in (result.x, state.x, state.r, state.c, state.dual):
        assert_alike(array, like)
    np.testing.assert_array_equal(to_numpy(state.support), x != 0)
    np.testing.assert_array_equal(to_numpy(state.x), x)
    np.testing.assert_allclose(to_numpy(state.r), data - M @ x, rtol=0, atol=30 * eps(like))
    assert state.gap <= tolerance * state.objective


def test_more_is_not_promised_than_is_kept():
    """Too few iterations, or a gap that rounding does not allow: not converged, and why."""
    A, y = system(60, 200)
    lam = 0.01 * lam_max(A, y)
    early = lasso(A, y, lam, max_iter=1)
    assert not early.converged
    assert "max_iter = 1" in early.reason
    assert early.state.gap / early.state.objective == pytest.approx(
        gap(A, y, lam, early.x), rel=1e-6
    )
    never = lasso(A, y, lam, rtol=0)
    assert not never.converged
    assert "stagnated" in never.reason
    assert gap(A, y, lam, never.x) < 1e-12
    loose = lasso(A, y, lam, rtol=1.01 * early.state.gap / early.state.objective)
    assert loose.converged
    assert loose.iterations == 1


def test_a_wrong_residual_is_found_out(monkeypatch):
    """What the iteration says of itself is computed again at x before it is believed."""
    A, y = system(10, 15)
    lam, solve = 0.1 * lam_max(A, y), proximal._sign_steps
    monkeypatch.setattr(proximal, "_sign_steps", lambda H, c, x, *rest: 0.9 * solve(H, c, x, *rest))
    result = lasso(A, y, lam, max_iter=50)
    assert not result.converged
    state = proximal._lasso_state

    def too_good(A, y, lam, lam2, x, r=None):
        return state(A, y, lam, lam2, x, r)._replace(**({} if r is None else {"gap": 0.0}))

    monkeypatch.setattr(proximal, "_lasso_state", too_good)
    result = lasso(A, y, lam, max_iter=50)
    assert not result.converged
    assert "recomputed" in result.reason


def test_agrees_with_the_rule():
    """``lasso_gap_rule`` measures the same."""
    A, y = system(10, 15)
    lam = 0.1 * lam_max(A, y)
    result = elastic_net(A, y, lam, 0.2, max_iter=1)
    rule = lasso_gap_rule(A, y, lam, lam2=0.2)
    mine = result.state.gap / result.state.objective
    assert rule.verify(result.state) == pytest.approx(mine, rel=1e-9)


# ---------------------------------------------------------------- the path


def test_from_above_lam_max_to_nearly_zero(like64):
    M, data = system(15, 25)
    A, y, top = asarray_like(M, like64), asarray_like(data, like64), lam_max(M, data)
    for lam in (10 * top, top * (1 + 1e-12), top):
        result = lasso(A, y, lam)
        assert result.converged
        assert result.iterations == 0
        assert not to_numpy(result.x).any()
    below = to_numpy(lasso(A, y, top * (1 - 1e-3)).x)
    assert np.count_nonzero(below) == 1
    for lam in (1e-4 * top, 1e-6 * top):
        result = lasso(A, y, lam, rtol=1e-8)
        assert result.converged, result.reason
        assert violation(M, data, lam, to_numpy(result.x)) < 1e-6


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)], ids=str)
def test_at_the_kinks_of_the_path(shape):
    """Where a coefficient enters or leaves, it is 0 still: those of scikit-learn's LARS."""
    A, y = system(*shape, 5)
    kinks, _, path = lars_path_gram(
        A.T @ y, A.T @ A, n_samples=1, method="lasso", alpha_min=1e-3 * lam_max(A, y)
    )
    assert len(kinks) > 10
    for lam, x in zip(kinks[:-1], path.T, strict=False):
        result = lasso(A, y, float(lam))
        assert result.converged
        np.testing.assert_allclose(result.x, x, rtol=0, atol=1e-8)
        assert violation(A, y, lam, result.x) < 1e-8


def test_a_path_with_warm_starts():
    A, y = system(60, 150, 1)
    grid = np.geomspace(1, 1e-2, 30) * lam_max(A, y)
    x, warm, cold = None, 0, 0
    for lam in grid:
        result, alone = lasso(A, y, lam, x), lasso(A, y, lam)
        assert result.converged
        np.testing.assert_allclose(result.x, alone.x, rtol=0, atol=1e-10)
        x, warm, cold = result.x, warm + result.iterations, cold + alone.iterations
    assert warm < cold
    assert lasso(A, y, grid[-1], x).iterations == 0


def test_any_start_leads_to_the_solution():
    """Also one with all signs wrong, and one far away; a wide matrix has one solution here."""
    A, y = system(12, 30, 2)
    lam = 0.05 * lam_max(A, y)
    expected = lasso(A, y, lam).x
    for start in (
        -expected,
        1e3 * expected,
        np.ones(30),
        1e6 * np.random.default_rng(0).normal(size=30),
    ):
        result = lasso(A, y, lam, start)
        assert result.converged
        np.testing.assert_allclose(result.x, expected, rtol=0, atol=1e-8)
        assert not lasso(A, y, 2 * lam_max(A, y), start).x.any()


# ---------------------------------------------------------------- hard cases


def test_nothing_to_fit(like):
    A = asarray_like(np.arange(6.0).reshape(2, 3), like)
    y = asarray_like([0.0, 0.0], like)
    for start in (None, asarray_like([1.0, -2.0, 3.0], like)):
        for lam2 in (0.0, 1.0):
            result = elastic_net(A, y, 0.5, lam2, start)
            assert result.converged
            assert_alike(result.x, like)
            np.testing.assert_allclose(to_numpy(result.x), 0, atol=1e-6)
            assert not to_numpy(lasso(0 * A, y + 1, 0.5, start).x).any()
            assert lasso(0 * A, y + 1, 0.5, start).converged


def test_columns_of_zeros_have_no_coefficient():
    A, y = system(10, 8)
    A[:, 2] = A[:, 5] = 0
    lam = 0.1 * lam_max(A, y)
    for lam2 in (0.0, 0.1):
        for start in (None, np.full(8, 7.0)):
            result = elastic_net(A, y, lam, lam2, start)
            assert result.converged
            assert not result.x[[2, 5]].any()
            rest = np.delete(np.arange(8), [2, 5])
            alone = elastic_net(A[:, rest], y, lam, lam2).x
            np.testing.assert_allclose(result.x[rest], alone, rtol=0, atol=1e-11)


def test_equal_and_opposite_columns():
    A, y = system(10, 5)
    twice = np.hstack([A, -A, A[:, :1]])
    lam = 0.05 * lam_max(A, y)
    result, alone = lasso(twice, y, lam), lasso(A, y, lam)
    assert result.converged
    assert objective(twice, y, lam, result.x) == pytest.approx(objective(A, y, lam, alone.x), 1e-12)
    shares = elastic_net(twice, y, lam, 0.1).x
    np.testing.assert_allclose(shares[:5], -shares[5:10], rtol=0, atol=1e-11)
    assert shares[0] == pytest.approx(shares[10], abs=1e-11)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)], ids=str)
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e6])
def test_condition_numbers_up_to_a_million(shape, condition):
    """The objective is right to 1e-8, and certified."""
    A, y = system(*shape, 7, condition=condition, noise=0.01)
    for fraction in (0.5, 0.1, 1e-2, 1e-3):
        lam = fraction * lam_max(A, y)
        result = lasso(A, y, lam)
        assert result.converged, result.reason
        assert gap(A, y, lam, result.x) < 1e-8


@pytest.mark.parametrize("condition", [1e8, 1e10, 1e12])
def test_condition_numbers_up_to_the_limit(condition):
    """Certified as far as rounding allows; where not, the reason says so, and the gap is true."""
    for seed, fraction in itertools.product(range(2), (0.5, 1e-2, 1e-4, 1e-6)):
        A, y = system(30, 30, seed, condition=condition, noise=0.01)
        lam = fraction * lam_max(A, y)
        result = lasso(A, y, lam)
        true = gap(A, y, lam, result.x)
        assert result.converged or "stagnated" in result.reason
        assert true < (1e-9 if result.converged or fraction > 1e-5 else 1e-3)
        assert true <= 10 * result.state.gap / result.state.objective + 1e-9


def test_single_precision_up_to_the_limit():
    for fraction in (0.5, 0.1, 1e-2, 1e-3):
        A, y = (v.astype(np.float32) for v in system(30, 60))
        lam = fraction * lam_max(A, y)
        result = lasso(A, y, lam)
        true = gap(A, y, lam, result.x)
        assert result.x.dtype == np.float32
        assert true < (1.1e-5 if result.converged else 1e-4)
        assert result.converged or "stagnated" in result.reason


def test_columns_of_very_different_length():
    """A D with D diagonal: the solution of the weighted problem, x_j/d_j."""
    A, y = system(20, 12, 4)
    D = 10.0 ** np.linspace(-5, 5, 12)
    lam = 0.1 * lam_max(A, y)
    result = lasso(A * D, y, lam)
    assert result.converged, result.reason
    assert gap(A * D, y, lam, result.x) < 1e-9
    assert violation(A * D, y, lam, result.x) < 1e-7


@pytest.mark.parametrize("a", [1e-60, 1e-8, 1e8, 1e60])
@pytest.mark.parametrize("b", [1e-60, 1.0, 1e60])
def test_units(a, b):
    """(aA, by, abλ) has the solution bx/a."""
    A, y = system(12, 20)
    lam = 0.1 * lam_max(A, y)
    result = elastic_net(a * A, b * y, a * b * lam, a * a * 0.1)
    assert result.converged, result.reason
    expected = elastic_net(A, y, lam, 0.1).x
    np.testing.assert_allclose(result.x * (a / b), expected, rtol=1e-9, atol=1e-12)


def ugly(rng: np.random.Generator):
    """A small instance with ties, equal columns, bad scaling or worse, λ at a kink, any start."""
    m, n = (int(k) for k in rng.integers(1, (12, 16)))
    A, kind = rng.standard_normal((m, n)), rng.integers(10)
    copies = rng.integers(0, max(1, n // 2), n)
    if kind == 0:
        A = np.round(2 * A)
    elif kind == 1:
        A = A[:, copies] * rng.choice([-1, 1], n)
    elif kind == 2:
        A = A[:, :1] * rng.standard_normal(n)
    elif kind == 3:
        A = A * (rng.uniform(size=(m, n)) < 0.3)
    elif kind == 4:
        A = A * 10.0 ** rng.integers(-4, 5, n)
    elif kind == 5:
        U, _, Vh = np.linalg.svd(A, full_matrices=False)
        A = (U * np.geomspace(1, 10.0 ** -rng.integers(0, 13), len(Vh))) @ Vh
    elif kind == 6:
        A = np.vander(np.linspace(0, 1, m), n)
    elif kind == 7:
        A = rng.choice([-1.0, 1.0], (m, n))
    elif kind == 8:
        A = np.eye(m, n)
    y = [rng.standard_normal(m), np.round(2 * rng.standard_normal(m)), A @ np.ones(n)][
        rng.integers(3)
    ]
    correlations = np.sort(np.abs(A.T @ y))
    lam = correlations[-1] * rng.choice([2, 1, 1 - 1e-12, 0.9, 0.5, 0.1, 1e-2, 1e-4])
    if rng.uniform() < 0.2:
        lam = correlations[rng.integers(n)]
    lam2 = lam * 10.0 ** rng.integers(-6, 4) if rng.uniform() < 0.4 else 0.0
    start = [None, 10 * rng.standard_normal(n), np.round(rng.standard_normal(n))][rng.integers(3)]
    return A, y, float(lam) if lam > 0 else 1.0, float(lam2), start


@pytest.mark.parametrize("part", range(8))
def test_ugly_instances(part):
    """Converged with a gap that holds, or an honest reason."""
    stagnated = 0
    for seed in range(60 * part, 60 * (part + 1)):
        A, y, lam, lam2, start = ugly(np.random.default_rng(seed))
        result = elastic_net(A, y, lam, lam2, start)
        true = gap(A, y, lam, result.x, lam2)
        if result.converged:
            assert true < 1e-9, (seed, true)
        else:
            assert "stagnated" in result.reason, (seed, result.reason)
            # About one in 500; rounding of r, seen through a small λ or columns of unequal length.
            assert true < 1e-5, (seed, true)
            stagnated += 1
    assert stagnated <= 3


# ---------------------------------------------------------------- operators and libraries


def test_operators_are_solved_as_their_matrix(like64, monkeypatch):
    """An operator without a matrix, a picture as unknown, and data of another shape."""
    monkeypatch.setattr(proximal, "_two_phases", None)
    psf = asarray_like(np.outer([1, 2, 1], [1, 3, 1]) / 20, like64)
    A = convolution(psf, (7, 6), boundary="zero")
    truth = np.zeros((7, 6))
    truth[2, 2], truth[4, 5] = 1.0, -2.0
    y = A @ asarray_like(truth, like64)
    lam = 0.05 * float(abs(to_numpy(A.H @ y)).max())
    result = lasso(A, y, lam)
    assert result.converged
    assert result.x.shape == result.state.support.shape == y.shape == (7, 6)
    dense = to_numpy(A.to_dense(like=like64))
    np.testing.assert_allclose(
        to_numpy(result.x).ravel(), lasso(dense, to_numpy(y).ravel(), lam).x, rtol=0, atol=1e-10
    )
    again = lasso(A, y, lam, result.x)
    assert again.iterations == 0
    unbound = lasso(integration(9), asarray_like(np.ones(9), like64), 0.01)
    assert unbound.converged
    assert_alike(unbound.x, like64)


@pytest.mark.parametrize("lam2", [0.0, 0.5])
def test_without_a_matrix(like, lam2):
    """The same answer by FISTA and conjugate gradients, for operators that are too large."""
    M, data = system(25, 40, 3, condition=30.0)
    A, y = asarray_like(M, like), asarray_like(data, like)
    lam = 0.1 * lam_max(M, data)
    dense = elastic_net(A, y, lam, lam2)
    # As many entries as are too many, and all but a few of them idle.
    idle = 2100
    pad = asarray_like(np.zeros(idle), like)
    xp = proximal.array_namespace(pad)
    large = LinearOperator(
        lambda x: xp.concat([A @ x[:40], 0.5 * x[40:]]),
        lambda v: xp.concat([A.T @ v[:25], 0.5 * v[25:]]),
        (40 + idle,),
        (25 + idle,),
        like=pad,
    )
    result = elastic_net(large, xp.concat([y, pad]), lam, lam2)
    assert result.converged, result.reason
    assert_alike(result.x, like)
    assert result.iterations <= 3
    assert not to_numpy(result.x)[40:].any()
    tolerance = 1e-9 if eps(like) < 1e-10 else 2e-2
    np.testing.assert_allclose(to_numpy(result.x)[:40], to_numpy(dense.x), rtol=0, atol=tolerance)


def test_a_large_picture(monkeypatch):
    monkeypatch.setattr(proximal, "_working_set", None)
    rng = np.random.default_rng(0)
    truth = np.zeros((48, 48))
    truth.flat[rng.choice(48**2, 30, replace=False)] = rng.uniform(1, 2, 30)
    A = convolution(psf_gaussian(1.2), (48, 48))
    y = A @ truth + 1e-3 * rng.standard_normal((48, 48))
    lam = 0.05 * float(np.abs(A.H @ y).max())
    result = lasso(A, y, lam)
    assert result.converged, result.reason
    c = A.H @ (y - A @ result.x)
    on = result.x != 0
    np.testing.assert_allclose(c[on], lam * np.sign(result.x[on]), rtol=1e-6)
    assert np.abs(c).max() <= lam * (1 + 1e-6)
    assert lasso(A, y, 1.1 * float(np.abs(A.H @ y).max())).iterations == 0
    zero = lasso(diagonal(np.zeros(2100)), np.ones(2100), 1.0, np.ones(2100))
    assert zero.converged
    assert not zero.x.any()


def test_derivatives_are_cut_off(torch):
    """Half a derivative would be wrong without a word."""
    A, y = (torch.tensor(v, requires_grad=True) for v in system(6, 9))
    result = lasso(A, y, 0.1, torch.ones(9, dtype=torch.float64, requires_grad=True))
    assert result.converged
    assert not any(v.requires_grad for v in (result.x, result.state.r, result.state.c))
    assert relative(result.x, lasso(*system(6, 9), 0.1).x) < 1e-12


# ---------------------------------------------------------------- the parts


@pytest.mark.parametrize("seed", range(20))
def test_line_search_finds_the_smallest_value(seed):
    """Against the value at all stops and between them; some entries are 0 and enter."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 8))
    C = rng.standard_normal((n + 2, n))
    H, x, lam = C.T @ C, rng.standard_normal(n), float(rng.uniform(0.1, 3))
    x[rng.uniform(size=n) < 0.3] = 0
    signs = np.where(x != 0, np.sign(x), rng.choice([-1, 1], n))
    d = rng.standard_normal(n) * 3
    d = np.where((x == 0) & (d * signs < 0), -d, d)
    c = H @ d + lam * signs  # so that d is Newton's step

    def value(t):
        z = t * d
        return 0.5 * z @ H @ z - c @ z + lam * np.abs(x + z).sum()

    t, z = proximal._line_search(x, d, d @ H @ d, lam)
    grid = np.linspace(0, 1.2, 4001)
    values = np.array([value(s) for s in grid])
    assert value(t) <= values.min() + 1e-12
    assert abs(t - grid[values.argmin()]) < 1e-3
    np.testing.assert_allclose(z, x + t * d, rtol=0, atol=1e-12)
    stopped = np.isclose(x + t * d, 0, atol=1e-12) & (x != 0)
    assert not z[stopped].any()


def test_every_step_lowers_the_objective(monkeypatch):
    """The reason why the method ends; the starts are far from the solution."""
    search = proximal._line_search
    for seed in range(10):
        A, y = system(12, 20, seed, condition=1e3)
        lam, values = 0.02 * lam_max(A, y), []

        def watch(x, d, a, lam, A=A, y=y, values=values):
            t, z = search(x, d, a, lam)
            values.append((x.copy(), z.copy()))
            return t, z

        monkeypatch.setattr(proximal, "_line_search", watch)
        H, x = A.T @ A + 1e-9 * np.eye(20), np.random.default_rng(seed).standard_normal(20)
        c = A.T @ (y - A @ x)
        proximal._sign_steps(H, c, x, lam, np.full(20, 1e-12))

        def value(z, x=x, c=c, H=H, lam=lam):
            return 0.5 * (z - x) @ H @ (z - x) - c @ (z - x) + lam * np.abs(z).sum()

        falls = np.array([value(z) - value(x) for x, z in values])
        assert len(falls) > 5
        assert falls.max() < 1e-12 * abs(value(x))
        assert np.sum(falls < 0) >= len(falls) - 2


def test_columns_in_any_order():
    """The solution does not hang on the order of the coefficients."""
    A, y = system(20, 50, 6)
    lam, order = 0.05 * lam_max(A, y), np.random.default_rng(0).permutation(50)
    np.testing.assert_allclose(
        lasso(A[:, order], y, lam).x, lasso(A, y, lam).x[order], rtol=0, atol=1e-11
    )


def test_operator_and_matrix_give_the_same():
    A, y = system(8, 12)
    np.testing.assert_array_equal(lasso(matrix(A), y, 0.1).x, lasso(A, y, 0.1).x)


def test_arguments_are_refused_in_words():
    A, y = system(4, 6)
    for lam in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="lam must be"):
            lasso(A, y, lam)
    with pytest.raises(ValueError, match="lam1 must be positive"):
        elastic_net(A, y, 0.0, 1.0)
    with pytest.raises(ValueError, match="lam2 is too small"):
        elastic_net(A, y, 1.0, -1e-9)
    with pytest.raises(ValueError, match="x0 has the wrong shape"):
        lasso(A, y, 1.0, np.ones(5))
    with pytest.raises(ValueError, match="x0 and the operator must have one dtype"):
        lasso(A, y, 1.0, np.ones(6, dtype=np.float32))


PARTS = [getattr(proximal, name) for name in dir(proximal) if name.startswith("_")]
SOLVERS = [lasso, elastic_net, *(part for part in PARTS if inspect.isfunction(part))]


@pytest.mark.parametrize("function", SOLVERS, ids=lambda f: f.__name__)
def test_every_part_stays_within_25_lines(function):
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)][1:]
    lines = [
        s for s in statements if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
    ]
    assert len(lines) <= 25
