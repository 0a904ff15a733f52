"""Rules that choose λ: against dense formulas, refitting, SciPy, scikit-learn, and simulation."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.stats
from cases import OPERATORS
from kit import assert_alike, random_like, relative, to_numpy

from course_lib import choice
from course_lib.arrays import asarray_like
from course_lib.choice import (
    Choice,
    discrepancy,
    evidence,
    gcv,
    k_fold,
    l_curve,
    loocv,
    oracle,
    smoother,
    sure,
)
from course_lib.filters import tikhonov
from course_lib.iterate import Result
from course_lib.operators import convolution, difference, gradient, identity, matrix
from course_lib.problems import blur_1d, deriv2, gravity, phillips, shaw

RULES = {
    "gcv": gcv,
    "loocv": loocv,
    "sure": lambda A, y, D=None, **options: sure(A, y, 0.3, D, **options),
    "evidence": evidence,
    "evidence, σ known": lambda A, y, D=None, **options: evidence(
        A, y, D, noise_std=0.3, **options
    ),
    "l_curve": l_curve,
    "discrepancy": lambda A, y, D=None, **options: discrepancy(
        A, y, 0.5 * limits(A, y, D)[0] + 0.5 * limits(A, y, D)[1], D, tau=1.0, **options
    ),
    "oracle": lambda A, y, D=None, **options: oracle(
        A, y, asarray_like(TRUTH[: A.shape[1]], y), D, **options
    ),
}
TRUTH = np.random.default_rng(9).standard_normal(40)
GRID = np.geomspace(1e-6, 1e4, 41)


def limits(A, y, D) -> tuple[float, float]:
    """The residual norms that λ can reach, by dense least squares."""
    A, y = to_numpy(A).astype(float), to_numpy(y).astype(float)
    D = np.eye(A.shape[1]) if D is None else to_numpy(D).astype(float)
    null = A @ scipy.linalg.null_space(D)
    basis = [scipy.linalg.orth(B) for B in (A, null)]
    return tuple(float(np.linalg.norm(y - Q @ (Q.T @ y))) for Q in basis)


def with_condition(m: int, n: int, cond: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    U, V = (np.linalg.qr(rng.standard_normal((k, min(m, n))))[0] for k in (m, n))
    return (U * np.geomspace(1, 1 / cond, min(m, n))) @ V.T


def influence(A: np.ndarray, lam: float, D: np.ndarray | None) -> np.ndarray:
    """P_λ by QR of the augmented matrix: no spectrum, no inverse."""
    D = np.eye(A.shape[1]) if D is None else D
    Q = np.linalg.qr(np.vstack([A, math.sqrt(lam) * D]))[0][: A.shape[0]]
    return Q @ Q.T


SHAPES = [(12, 7), (7, 12), (9, 9)]
CONDITIONS = [1.0, 1e4, 1e12]
PENALTIES = {
    "none": lambda n: None,
    "square": lambda n: np.random.default_rng(3).standard_normal((n, n)),
    "tall": lambda n: np.random.default_rng(4).standard_normal((n + 3, n)),
    "wide": lambda n: np.random.default_rng(5).standard_normal((n - 3, n)),
    "second differences": lambda n: np.diff(np.eye(n), 2, axis=0),
}


@pytest.fixture(params=[(s, c) for s in SHAPES for c in CONDITIONS], ids=str)
def system(request):
    (m, n), cond = request.param
    return with_condition(m, n, cond), np.random.default_rng(1).standard_normal(m)


@pytest.fixture(params=PENALTIES)
def penalty(request):
    return PENALTIES[request.param]


# ---------------------------------------------------------------- one decomposition


def test_fit_is_tikhonov(system, penalty):
    A, y = system
    D = penalty(A.shape[1])
    fit = smoother(A, D).fit(y)
    for lam in (1e-3, 1.0, 1e3):
        x = tikhonov(A, y, lam, D, method="qr").x
        assert relative(fit.solve(lam), x) < 1e-11
        residual, seminorm = fit.norms(lam)
        np.testing.assert_allclose(residual, np.linalg.norm(y - A @ x), rtol=1e-11)
        D_ = np.eye(len(x)) if D is None else D
        # Rounding of the reference: a large λ leaves almost nothing for D to see.
        slack = 1e-13 * np.linalg.norm(D_, 2) * np.linalg.norm(x)
        np.testing.assert_allclose(seminorm, np.linalg.norm(D_ @ x), rtol=1e-10, atol=slack)


def test_table_is_the_influence_matrix(system, penalty):
    """The trace, and the rejected part, of P_λ; also for a λ far below the spectrum."""
    A, y = system
    m, D = A.shape[0], penalty(A.shape[1])
    fit = smoother(A, D).fit(y)
    lams = np.array([1e-5, 1e-2, 1.0, 1e2])
    rest = fit.table(lams, lambda kept, lost: lost.sum(axis=1)) + m - fit.power.size
    for lam, value in zip(lams, rest, strict=True):
        np.testing.assert_allclose(value, m - np.trace(influence(A, lam, D)), rtol=1e-9)


@pytest.mark.parametrize("m", [7, 9])
def test_small_lam_is_exact(m):
    """m ≤ n: numerator and denominator of GCV go to 0, and their ratio does not."""
    A, y = with_condition(m, 9, 10.0), TRUTH[:m]
    K = A @ A.T
    limit = m * np.linalg.norm(np.linalg.solve(K, y)) ** 2 / np.trace(np.linalg.inv(K)) ** 2
    np.testing.assert_allclose(gcv(A, y, grid=[1e-100, 1e-30, 1e-20]).values, limit, rtol=1e-12)
    loo = np.mean((np.linalg.solve(K, y) / np.diag(np.linalg.inv(K))) ** 2)
    np.testing.assert_allclose(loocv(A, y, grid=[1e-100, 1e-30, 1e-20]).values, loo, rtol=1e-12)


def test_blocks_change_nothing(monkeypatch, system):
    A, y = system
    whole = [rule(A, y, grid=GRID).values for rule in (gcv, loocv)]
    monkeypatch.setattr(choice, "MOST_ENTRIES", 30)
    for rule, values in zip((gcv, loocv), whole, strict=True):
        np.testing.assert_allclose(rule(A, y, grid=GRID).values, values, rtol=1e-11)


def test_one_smoother_serves_all_rules(monkeypatch, penalty):
    A, y = with_condition(12, 8, 100.0), TRUTH[:12]
    D = penalty(8)
    expected = {name: rule(A, y, D, grid=GRID) for name, rule in RULES.items()}
    shared = smoother(A, D)
    monkeypatch.setattr(choice, "decompose", None)
    monkeypatch.setattr(choice, "standard_form", None)
    delta = 0.5 * sum(limits(A, y, D))
    results = {
        "gcv": gcv(shared, y, grid=GRID),
        "loocv": loocv(shared, y, grid=GRID),
        "sure": sure(shared, y, 0.3, grid=GRID),
        "evidence": evidence(shared, y, grid=GRID),
        "evidence, σ known": evidence(shared, y, noise_std=0.3, grid=GRID),
        "l_curve": l_curve(shared, y, grid=GRID),
        "discrepancy": discrepancy(shared, y, delta, tau=1.0, grid=GRID),
        "oracle": oracle(shared, y, TRUTH[:8], grid=GRID),
    }
    assert results.keys() == RULES.keys()
    for name, result in results.items():
        assert result.lam == expected[name].lam
        assert np.array_equal(result.values, expected[name].values)
    with pytest.raises(ValueError, match="D must not be given twice"):
        gcv(shared, y, np.eye(8))


def test_identity_given_is_identity(system):
    A, y = system
    for D in (np.eye(A.shape[1]), identity(A.shape[1])):
        for name in ("gcv", "loocv", "evidence"):
            one, other = RULES[name](A, y, grid=GRID), RULES[name](A, y, D, grid=GRID)
            np.testing.assert_allclose(one.values, other.values, rtol=1e-9)


# ---------------------------------------------------------------- what every rule promises


@pytest.mark.parametrize("name", RULES)
def test_kind_of_the_answer(name, like):
    A = asarray_like(with_condition(14, 8, 30.0), like)
    y = asarray_like(to_numpy(A) @ TRUTH[:8] + 0.3 * TRUTH[8:22], like)
    for D in (None, asarray_like(np.diff(np.eye(8), axis=0), like)):
        result = RULES[name](A, y, D)
        assert isinstance(result, Choice)
        assert type(result.lam) is float
        assert type(result.found) is bool
        for values in (result.grid, result.values):
            assert type(values) is np.ndarray
            assert values.dtype == np.float64
            assert values.shape == result.grid.shape
        assert_alike(result.x, like)
        assert tuple(result.x.shape) == (8,)


@pytest.mark.parametrize("name", RULES)
def test_libraries_and_precisions_agree(name, like):
    A, y = with_condition(14, 8, 30.0), TRUTH[8:22]
    single = str(like.dtype).endswith("float32")
    for D in (None, np.diff(np.eye(8), axis=0)):
        expected = RULES[name](A, y, D, grid=GRID)
        arrays = [None if z is None else asarray_like(z, like) for z in (A, y, D)]
        result = RULES[name](*arrays, grid=GRID)
        scale = np.abs(expected.values).max()
        np.testing.assert_allclose(
            result.values, expected.values, rtol=2e-4 if single else 1e-10, atol=1e-6 * scale
        )


@pytest.mark.parametrize("name", RULES)
def test_torch_autograd_is_cut_off(name, torch):
    A, y = (torch.tensor(z, requires_grad=True) for z in (with_condition(9, 5, 10.0), TRUTH[:9]))
    assert type(RULES[name](A, y).lam) is float


@pytest.mark.parametrize("name", RULES)
def test_the_refined_lam_is_a_minimum(name):
    """No λ between the neighbours on the grid has a smaller value (or a larger curvature)."""
    if name == "discrepancy":
        pytest.skip("solves an equation")
    problem = phillips(40, noise=3e-2)
    A, y = problem.A.matrix, problem.y
    rule = RULES[name]
    if name == "oracle":
        rule = lambda A, y, **options: oracle(A, y, problem.x_true, **options)  # noqa: E731
    result = rule(A, y, grid=np.geomspace(1e-4, 1e2, 61))
    assert result.found, result.reason
    sign = -1 if name == "l_curve" else 1
    near = np.sort(np.append(result.lam * np.geomspace(0.8, 1.25, 400), result.lam))
    values = sign * rule(A, y, grid=near).values
    at = values[np.searchsorted(near, result.lam)]
    assert at <= values.min() + 1e-12 * abs(values.min())
    assert at <= (sign * result.values).min()
    np.testing.assert_allclose(result.x, tikhonov(A, y, result.lam).x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["gcv", "loocv", "sure", "evidence"])
def test_the_end_of_the_grid_is_no_minimum(name):
    problem = phillips(40, noise=3e-2)
    best = RULES[name](problem.A, problem.y).lam
    low = RULES[name](problem.A, problem.y, grid=best * np.geomspace(10, 1e3, 9))
    assert (low.found, low.lam) == (False, pytest.approx(10 * best))
    high = RULES[name](problem.A, problem.y, grid=best * np.geomspace(1e-3, 0.1, 9))
    assert (high.found, high.lam) == (False, pytest.approx(0.1 * best))
    assert "end of the grid" in low.reason


def test_a_plateau_is_no_minimum():
    """Without noise and with many data, all small λ are equally good, but for rounding."""
    A = with_condition(30, 5, 3.0)
    result = gcv(A, A @ TRUTH[:5])
    assert not result.found
    assert result.lam == result.grid[0]


@pytest.mark.parametrize("name", RULES)
def test_where_lam_changes_nothing_there_is_no_choice(name):
    if name in ("discrepancy", "oracle"):
        rule = {
            "discrepancy": lambda A, y, D=None: discrepancy(A, y, 1.0, D),
            "oracle": lambda A, y, D=None: oracle(A, y, TRUTH[: A.shape[1]], D),
        }[name]
    else:
        rule = RULES[name]
    A, D = with_condition(9, 6, 10.0), np.diff(np.eye(6), axis=0)
    outside = scipy.linalg.null_space(A.T)[:, 0]
    for y, penalty in (
        (np.zeros(9), None),
        (outside, None),
        (A @ np.ones(6), D),
        (A @ np.ones(6) + outside, D),
    ):
        with pytest.raises(ValueError, match="y must depend on what D penalizes"):
            rule(A, y, penalty)
    with pytest.raises(ValueError, match="y must depend on what D penalizes"):
        rule(np.ones((1, 6)), np.ones(1), D)
    with pytest.raises(ValueError, match="y must depend on what D penalizes"):
        rule(np.zeros((9, 6)), outside)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("shape", [(6, 1), (1, 6), (1, 1), (2, 2)])
def test_smallest_shapes(name, shape):
    A = np.random.default_rng(0).standard_normal(shape)
    result = RULES[name](A, TRUTH[: shape[0]])
    assert np.isfinite(result.values).all()
    assert np.isfinite(result.x).all()


@pytest.mark.parametrize("name", RULES)
def test_rank_deficient(name):
    """Rank 3 of 6; what rounding leaves of the other singular values does no harm."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((9, 3)) @ rng.standard_normal((3, 6))
    y = rng.standard_normal(9)
    for D in (None, np.diff(np.eye(6), axis=0)):
        result = RULES[name](A, y, D)
        assert np.isfinite(result.values).all()
        np.testing.assert_allclose(A @ result.x, influence(A, result.lam, D) @ y, atol=1e-6)


# ---------------------------------------------------------------- the Fourier basis


def periodic(like=None):
    psf = asarray_like(np.outer([1.0, 2.0, 1.0], [1.0, 3.0, 2.0]) / 24, like)
    A = convolution(psf, (6, 5))
    return A, asarray_like(np.random.default_rng(0).standard_normal((6, 5)), like)


@pytest.mark.parametrize("boundary", [None, "periodic"])
def test_fourier_is_the_matrix(boundary, like):
    A, y = periodic(like)
    D = None if boundary is None else gradient((6, 5), boundary=boundary)
    M = matrix(A.to_dense())
    dense_D = None if D is None else matrix(D.to_dense(like=y))
    single = str(like.dtype).endswith("float32")
    x_true = asarray_like(np.random.default_rng(2).standard_normal((6, 5)), like)
    for rule, extra in (
        (gcv, ()),
        (loocv, ()),
        (l_curve, ()),
        (evidence, ()),
        (sure, (0.5,)),
        (oracle, (x_true,)),
        (discrepancy, (2.0,)),
    ):
        flat = tuple(z if isinstance(z, float) else z.reshape(-1) for z in map(plain, extra))
        flat = tuple(z if isinstance(z, float) else asarray_like(z, like) for z in flat)
        one = rule(A, y, *extra, D, grid=np.geomspace(1e-3, 10, 9))
        other = rule(
            M, asarray_like(plain(y).ravel(), like), *flat, dense_D, grid=np.geomspace(1e-3, 10, 9)
        )
        np.testing.assert_allclose(one.values, other.values, rtol=2e-2 if single else 1e-10)
        assert_alike(one.x, like)
        assert one.rule == rule.__name__
        if not single:
            np.testing.assert_allclose(one.lam, other.lam, rtol=1e-6)
            assert relative(one.x, other.x) < 1e-6


def plain(z):
    return z if isinstance(z, float) else to_numpy(z)


def test_denoising_takes_the_kind_of_the_data(like):
    """A = I holds no numbers: the data say which library and precision."""
    y = random_like(np.random.default_rng(0), (8, 8), like)
    for D in (None, gradient((8, 8), boundary="periodic"), gradient((8, 8))):
        result = gcv(identity((8, 8)), y, D)
        assert_alike(result.x, like)
        assert tuple(result.x.shape) == (8, 8)


def test_a_frequency_in_both_null_spaces_is_refused():
    A = difference(8, boundary="periodic")
    with pytest.raises(ValueError, match="common null vector"):
        gcv(A, TRUTH[:8], difference(8, order=2, boundary="periodic"))
    with pytest.raises(ValueError, match="meet only in 0"):
        gcv(A.to_dense(), TRUTH[:8], difference(8))


def test_smooth_penalties_of_long_signals_keep_their_frequencies():
    """Only the constant is free: the next frequency of D is 1e-7 of its largest."""
    D = smoother(identity(4096), difference(4096, order=2, boundary="periodic")).d
    assert np.count_nonzero(D == 0) == 1


@pytest.mark.parametrize(
    "case", [c for c in OPERATORS if c.name.startswith(("sparse-scipy-csr_a", "stack", "comp"))]
)
def test_operators_are_written_out(case):
    A = case.build(np.zeros(1))
    y = np.random.default_rng(0).standard_normal(A.out_shape)
    result = gcv(A, y, grid=GRID)
    np.testing.assert_allclose(
        result.values, gcv(case.matrix(), y.ravel(), grid=GRID).values, rtol=1e-9
    )
    assert tuple(result.x.shape) == A.in_shape


# ---------------------------------------------------------------- GCV and leave-one-out


def test_gcv_is_its_formula(system, penalty):
    A, y = system
    m, D = A.shape[0], penalty(A.shape[1])
    lams = np.array([1e-4, 1e-2, 1.0, 1e2])
    values = gcv(A, y, D, grid=lams).values
    for lam, value in zip(lams, values, strict=True):
        rest = np.eye(m) - influence(A, lam, D)
        np.testing.assert_allclose(
            value, m * np.linalg.norm(rest @ y) ** 2 / np.trace(rest) ** 2, rtol=1e-8
        )


def test_gcv_does_not_see_rotations(system):
    A, y = system
    Q = np.linalg.qr(np.random.default_rng(7).standard_normal((len(y), len(y))))[0]
    one, other = gcv(A, y, grid=GRID), gcv(Q @ A, Q @ y, grid=GRID)
    np.testing.assert_allclose(one.values, other.values, rtol=1e-9)
    if np.linalg.cond(A) > 2:  # else all leverages are equal where m <= n
        one, other = loocv(A, y, grid=GRID).values, loocv(Q @ A, Q @ y, grid=GRID).values
        assert relative(one, other) > 1e-3


def test_loocv_is_refitting(system, penalty):
    A, y = system
    m, D = A.shape[0], penalty(A.shape[1])
    lams = np.array([1e-3, 1.0, 10.0])
    values = loocv(A, y, D, grid=lams).values
    for lam, value in zip(lams, values, strict=True):
        errors = []
        for i in range(m):
            rows = np.arange(m) != i
            x = tikhonov(A[rows], y[rows], lam, D, method="qr").x
            errors.append((y[i] - A[i] @ x) ** 2)
        np.testing.assert_allclose(value, np.mean(errors), rtol=1e-8)


@pytest.mark.parametrize("mode", ["svd", "eigen"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cond", [3.0, 1e4])
def test_loocv_is_that_of_scikit_learn(shape, cond, mode):
    linear_model = pytest.importorskip("sklearn.linear_model")
    A, y = with_condition(*shape, cond), TRUTH[: shape[0]]
    alphas = np.geomspace(1e-3, 1e2, 25)
    ridge = linear_model.RidgeCV(
        alphas, fit_intercept=False, gcv_mode=mode, store_cv_results=True
    ).fit(A, y)
    result = loocv(A, y, grid=alphas)
    np.testing.assert_allclose(result.values, ridge.cv_results_.mean(axis=0), rtol=1e-8)
    assert alphas[result.values.argmin()] == ridge.alpha_


def test_loocv_needs_every_datum_twice():
    """With D = differences a lone datum determines the mean: nothing predicts it."""
    A, D = np.array([[1.0, 1.0], [1.0, -1.0], [2.0, -2.0]]), np.array([[1.0, -1.0]])
    with pytest.raises(ValueError, match=r"datum 0 must not be left out.*leverage of 1"):
        loocv(A, np.ones(3), D)
    assert np.isfinite(gcv(A, np.array([1.0, 2.0, 3.0]), D).values).all()


def test_loocv_of_a_datum_that_stands_alone():
    """Leverage 1 at λ = 0: it is predicted by 0, whatever λ is."""
    A = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    y = np.array([3.0, 1.0, 2.0])
    lams = np.array([1e-15, 1e-8, 1.0])
    expected = [(9 + (1 - 2 / (1 + t)) ** 2 + (2 - 1 / (1 + t)) ** 2) / 3 for t in lams]
    np.testing.assert_allclose(loocv(A, y, grid=lams).values, expected, rtol=1e-12)


# ---------------------------------------------------------------- SURE


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.slow
def test_sure_is_unbiased(shape):
    """Mean of SURE minus true loss over 2,000 draws: within 4 standard errors of 0."""
    A, x, noise_std = with_condition(*shape, 100.0), TRUTH[: shape[1]], 0.4
    shared, lams = smoother(A), np.array([1e-3, 0.05, 1.0])
    P = np.array([influence(A, lam, None) for lam in lams])
    rng, gaps = np.random.default_rng(0), []
    for _ in range(2000):
        y = A @ x + noise_std * rng.standard_normal(shape[0])
        losses = np.linalg.norm(P @ y - A @ x, axis=1) ** 2
        gaps.append(sure(shared, y, noise_std, grid=lams).values - losses)
    gaps = np.array(gaps)
    bias, error = gaps.mean(axis=0), gaps.std(axis=0, ddof=1) / math.sqrt(len(gaps))
    assert (np.abs(bias) < 4 * error).all()
    # The bound has teeth: without the divergence the bias is -2σ² tr P.
    missing = 2 * noise_std**2 * np.trace(P, axis1=1, axis2=2)
    assert (np.abs(bias - missing) > 4 * error).all()


def soft(A, y, lam):
    return y - np.clip(y, -lam, lam)


def test_sure_of_soft_thresholding():
    """Divergence: the number of entries that survive (Donoho and Johnstone)."""
    y = np.random.default_rng(0).standard_normal(4000) + 3.0 * (np.arange(4000) < 200)
    grid = np.linspace(0.2, 4.0, 20)
    result = sure(np.eye(4), y[:4], 1.0, grid=grid, solver=soft)  # small: A may be a matrix
    assert result.x.shape == (4,)
    result = sure(identity(4000), y, 1.0, grid=grid, solver=soft, probes=20)
    exact = [
        np.minimum(np.abs(y), t) @ np.minimum(np.abs(y), t) - 4000 + 2 * (np.abs(y) > t).sum()
        for t in grid
    ]
    assert result.found
    # A step of 0.17 blurs the threshold: entries near it count in part. The count itself is
    # between 100 and 3,800.
    assert (np.abs(result.values - exact) < 60).all()
    assert grid[np.argmin(exact)] == pytest.approx(result.lam, abs=0.21)


def cgls_with(D):
    def solve(A, y, lam):
        rtol = 1e-5 if str(y.dtype).endswith("float32") else 1e-11
        return tikhonov(A, y, lam, D, method="cgls", rtol=rtol)

    return solve


def stochastic(rule, extra, D, seeds, like):
    """The exact answer, and estimates with 10 probes each."""
    A = asarray_like(with_condition(40, 15, 10.0), like)
    y = asarray_like(np.random.default_rng(3).standard_normal(40), like)
    options = {"grid": np.geomspace(1e-2, 1, 3), "solver": cgls_with(D)}
    return rule(A, y, *extra, D, grid=options["grid"]), [
        rule(A, y, *extra, **options, seed=seed) for seed in range(seeds)
    ]


@pytest.mark.parametrize("D", [None, difference(15)], ids=["identity", "difference"])
@pytest.mark.parametrize(("rule", "extra"), [(gcv, ()), (sure, (0.5,))], ids=["gcv", "sure"])
@pytest.mark.slow
def test_stochastic_traces_are_the_traces(rule, extra, D):
    """Within 4 standard errors in the mean, and the standard error is what it says."""
    exact, estimates = stochastic(rule, extra, D, 12, np.zeros(1))
    values = np.array([estimate.values for estimate in estimates])
    claimed = np.sqrt(np.mean([estimate.std_error**2 for estimate in estimates], axis=0))
    spread = values.std(axis=0, ddof=1)
    assert (np.abs(values.mean(axis=0) - exact.values) < 4 * claimed / math.sqrt(12)).all()
    assert ((spread / claimed > 0.4) & (spread / claimed < 1.8)).all()


def test_stochastic_traces_in_every_library(like):
    exact, (estimate,) = stochastic(gcv, (), None, 1, like)
    assert (np.abs(estimate.values - exact.values) < 5 * estimate.std_error).all()
    assert estimate.lam in estimate.grid
    assert_alike(estimate.x, like)


def test_probes_are_common_and_seeded():
    A, y = with_condition(12, 8, 10.0), TRUTH[:12]
    options = {"grid": np.array([0.1, 1.0, 10.0]), "solver": cgls_with(None)}
    one = gcv(A, y, **options, seed=1)
    assert np.array_equal(one.values, gcv(A, y, **options, seed=1).values)
    assert not np.array_equal(one.values, gcv(A, y, **options, seed=2).values)
    # The same vectors for each λ: a grid point alone gives the same value.
    other = gcv(A, y, grid=np.array([0.5, 1.0, 2.0]), solver=cgls_with(None), seed=1)
    np.testing.assert_allclose(one.values[1], other.values[1], rtol=1e-12)


@pytest.mark.slow
def test_matrix_free_gcv_of_a_picture():
    """No boundary condition that Fourier likes: 1,024 unknowns by conjugate gradients."""
    psf = np.outer(*2 * [scipy.stats.norm.pdf(np.arange(-4, 5), scale=1.5)])
    A = convolution(psf / psf.sum(), (32, 32), boundary="zero")
    x = np.zeros((32, 32))
    x[8:20, 10:25] = 1.0
    rng = np.random.default_rng(0)
    y = A @ x + 0.05 * rng.standard_normal((32, 32))
    grid = np.geomspace(1e-3, 1, 7)
    solver = lambda A, y, lam: tikhonov(A, y, lam, method="cgls", rtol=1e-6)  # noqa: E731
    estimate = gcv(A, y, grid=grid, solver=solver, probes=4)
    exact = gcv(A, y, grid=grid)
    assert estimate.found
    np.testing.assert_allclose(estimate.values, exact.values, rtol=0.02)


# ---------------------------------------------------------------- evidence


def log_density(A, y, lam, D, noise_std):
    """ln p(y) by SciPy, of the part orthogonal to A N(D) where D has a null space."""
    n = A.shape[1]
    D = np.eye(n) if D is None else D
    Q = scipy.linalg.null_space((A @ scipy.linalg.null_space(D)).T)
    B = Q.T @ A
    cov = noise_std**2 * (np.eye(Q.shape[1]) + B @ np.linalg.pinv(lam * D.T @ D) @ B.T)
    return scipy.stats.multivariate_normal(np.zeros(Q.shape[1]), cov).logpdf(Q.T @ y)


def test_evidence_is_the_density(system, penalty):
    A, y = system
    D = penalty(A.shape[1])
    lams = np.array([1e-3, 0.1, 1.0, 30.0])
    values = evidence(A, y, D, noise_std=0.3, grid=lams).values
    expected = [-log_density(A, y, lam, D, 0.3) for lam in lams]
    np.testing.assert_allclose(values, expected, rtol=1e-8)


@pytest.mark.parametrize("D", ["square", "second differences"])
def test_evidence_has_its_three_terms(D):
    """The book's form: minimum of the functional, ln det of the two precisions, the constant.

    With a null space: pseudo-determinant, and the constant that the docstring names.
    """
    A, y, noise_std, D = with_condition(8, 5, 10.0), TRUTH[:8], 0.7, PENALTIES[D](5)
    A0 = A @ scipy.linalg.null_space(D)
    for lam in (0.1, 1.0, 10.0):
        x, precision = tikhonov(A, y, lam, D).x, lam / noise_std**2
        minimum = np.linalg.norm(A @ x - y) ** 2 / 2 / noise_std**2
        minimum += precision / 2 * np.linalg.norm(D @ x) ** 2
        H = A.T @ A / noise_std**2 + precision * D.T @ D
        prior = precision * np.linalg.svd(D, compute_uv=False) ** 2
        occam = np.linalg.slogdet(H)[1] - np.log(prior).sum()
        scale = 8 * math.log(noise_std**2) + (8 - A0.shape[1]) * math.log(2 * math.pi)
        expected = minimum + occam / 2 + scale / 2 - np.linalg.slogdet(A0.T @ A0)[1] / 2
        value = evidence(A, y, D, noise_std=noise_std, grid=[lam / 2, lam, 2 * lam]).values[1]
        np.testing.assert_allclose(value, expected, rtol=1e-11)


@pytest.mark.slow
def test_evidence_profiles_the_noise(system, penalty):
    A, y = system
    D = penalty(A.shape[1])
    lams = np.array([1e-2, 1.0, 10.0])
    values = evidence(A, y, D, grid=lams).values
    for lam, value in zip(lams, values, strict=True):
        best = scipy.optimize.minimize_scalar(
            lambda t, lam=lam: -log_density(A, y, lam, D, math.exp(t)),
            bounds=(-15, 5),
            method="bounded",
            options={"xatol": 1e-9},
        )
        np.testing.assert_allclose(value, best.fun, rtol=1e-7, atol=1e-9)


def test_evidence_finds_the_true_ratio():
    """Data of the model itself, λ = σ_e²/σ_x² = 0.25: found to the order 1/√n."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((900, 600))
    y = A @ rng.standard_normal(600) + 0.5 * rng.standard_normal(900)
    assert evidence(A, y, noise_std=0.5).lam == pytest.approx(0.25, rel=0.3)
    assert evidence(A, y).lam == pytest.approx(0.25, rel=0.3)


# ---------------------------------------------------------------- L-curve


def brute_force_curvature(A, y, D, lams):
    """Finite differences of the two logarithms, with steps of 1e-3 in ln λ."""
    h, fit = 1e-3, smoother(A, D).fit(y)
    steps = np.exp([-h, 0, h])
    points = np.log([np.transpose(fit.norms(lam * steps)) for lam in lams])  # λ, step, norm
    first = (points[:, 2] - points[:, 0]) / (2 * h)
    second = (points[:, 2] - 2 * points[:, 1] + points[:, 0]) / h**2
    cross = first[:, 0] * second[:, 1] - second[:, 0] * first[:, 1]
    return cross / np.linalg.norm(first, axis=1) ** 3


def test_curvature_is_that_of_the_curve(system, penalty):
    A, y = system
    D = penalty(A.shape[1])
    lams = np.geomspace(1e-2, 1e1, 9)
    values = l_curve(A, y, D, grid=lams).values
    expected = brute_force_curvature(A, y, D, lams)
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("make", [shaw, gravity, phillips, blur_1d], ids=lambda f: f.__name__)
def test_corner_is_the_largest_curvature(make):
    """Against brute force on a grid of 4,000 points, and near the best λ in these problems."""
    problem = make(64, noise=1e-2)
    result = l_curve(problem.A, problem.y)
    fine = np.geomspace(result.grid[0], result.grid[-1], 4000)
    expected = fine[brute_force_curvature(problem.A, problem.y, None, fine)[1:-1].argmax() + 1]
    assert result.found, result.reason
    assert result.lam == pytest.approx(expected, rel=0.02)
    best = oracle(problem.A, problem.y, problem.x_true).values.min()
    assert np.linalg.norm(result.x - problem.x_true) < 10 * best


def test_no_corner():
    """A smooth truth and little noise: the curve has no bend that deserves the name."""
    problem = deriv2(64, noise=1e-4)
    result = l_curve(problem.A, problem.y)
    assert not result.found
    assert result.values.max() < 1
    assert result.reason.startswith("no corner inside the grid: the largest curvature")


def test_corner_at_the_end_of_the_grid():
    problem = shaw(64, noise=1e-2)
    corner = l_curve(problem.A, problem.y).lam
    result = l_curve(problem.A, problem.y, grid=corner * np.geomspace(1.5, 100, 20))
    assert not result.found
    assert result.lam == result.grid[0]
    assert result.reason.startswith("no corner inside the grid")
    # More data than unknowns and well conditioned: the curve ends before it can turn.
    A = with_condition(60, 20, 3.0)
    result = l_curve(A, A @ TRUTH[:20] + 0.01 * np.random.default_rng(0).standard_normal(60))
    assert not result.found
    assert result.lam == result.grid[0]


# ---------------------------------------------------------------- discrepancy


@pytest.mark.slow
def test_discrepancy_meets_the_residual(system, penalty):
    A, y = system
    D = penalty(A.shape[1])
    lower, upper = limits(A, y, D)
    for share in (0.001, 0.1, 0.5, 0.9, 0.999):
        target = lower + share * (upper - lower)
        result = discrepancy(A, y, target / 1.3, D, tau=1.3)
        assert result.found
        residual = smoother(A, D).fit(y).norms(result.lam)[0][0]
        assert residual == pytest.approx(target, rel=1e-10)
        if 1e-8 < result.lam < 1e8:
            x = tikhonov(A, y, result.lam, D, method="qr").x
            assert np.linalg.norm(y - A @ x) == pytest.approx(target, rel=1e-7)
    assert (np.diff(result.values) >= 0).all()


def test_discrepancy_names_the_interval(system, penalty):
    A, y = system
    D = penalty(A.shape[1])
    lower, upper = limits(A, y, D)
    interval = re.compile(r"between (\S+) \(distance.* and (\S+) \(best fit")
    below = [0.999 * lower, 1e-20] if lower > 1e-6 else []
    for delta in (1.001 * upper, 10 * upper, *below):
        with pytest.raises(ValueError, match="no λ has the residual norm") as error:
            discrepancy(A, y, delta, D, tau=1.0)
        named = [float(number) for number in interval.search(str(error.value)).groups()]
        # Where A sees a direction with 1e-12 only, rounding turns it.
        assert named == pytest.approx([lower, upper], rel=1e-4, abs=1e-9)
    with pytest.raises(ValueError, match="tau is too small: expected at least 1"):
        discrepancy(A, y, 1.0, tau=0.9)


def test_discrepancy_is_the_root_of_scipy():
    problem = shaw(40, noise=1e-2)
    A, y = problem.A.matrix, problem.y
    target = 1.1 * problem.delta
    root = scipy.optimize.brentq(
        lambda t: np.linalg.norm(y - A @ tikhonov(problem.A, y, math.exp(t)).x) - target, -20, 5
    )
    assert discrepancy(A, y, problem.delta).lam == pytest.approx(math.exp(root), rel=1e-6)


# ---------------------------------------------------------------- cross-validation in parts


def test_m_parts_are_leave_one_out(system, penalty):
    A, y = system
    D = penalty(A.shape[1])
    lams = np.array([1e-2, 1.0, 10.0])
    result = k_fold(A, y, lambda A, y, lam: tikhonov(A, y, lam, D), lams, folds=len(y))
    np.testing.assert_allclose(result.values, loocv(A, y, D, grid=lams).values, rtol=1e-8)
    np.testing.assert_allclose(result.x, tikhonov(A, y, result.lam, D).x, rtol=1e-12)


@pytest.mark.parametrize("folds", [2, 5, 7])
def test_parts_cover_the_data(folds):
    """Each datum is left out once; parts differ by one at most; the seed draws them."""
    A, y = with_condition(23, 4, 10.0), np.arange(23.0)
    seen = []

    def solver(M, z, lam):
        assert isinstance(M, np.ndarray)
        np.testing.assert_array_equal(M, A[z.astype(int)])
        if lam == 1.0:
            seen.append(set(range(23)) - set(z.astype(int)))
        return np.zeros(4)

    result = k_fold(A, y, solver, [1.0, 2.0, 3.0], folds=folds, seed=3)
    parts, whole = seen[:folds], seen[folds:]
    assert whole == [set()]  # the answer, from all data, at the end of a flat criterion
    assert sorted(i for part in parts for i in part) == list(range(23))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    np.testing.assert_allclose(result.values, np.mean(y**2))
    assert not result.found
    means = [np.mean([y[i] ** 2 for i in part]) for part in parts]
    np.testing.assert_allclose(result.std_error, np.std(means, ddof=1) / math.sqrt(folds))
    seen.clear()
    k_fold(A, y, solver, [1.0, 2.0, 3.0], folds=folds, seed=4)
    assert seen[:folds] != parts


def test_parts_of_scikit_learn():
    """The same parts through cross_val_score: Ridge and the LASSO, with sums and not means."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    selection = pytest.importorskip("sklearn.model_selection")
    A, y = with_condition(24, 6, 10.0), TRUTH[:24]
    part = np.random.default_rng(0).permutation(24) % 4
    lams = np.array([0.01, 0.1, 1.0])

    def lasso(A, y, lam):
        model = linear_model.Lasso(lam / len(y), fit_intercept=False, tol=1e-10)
        return model.fit(A, y).coef_

    def ridge(A, y, lam):
        return linear_model.Ridge(lam, fit_intercept=False).fit(A, y).coef_

    for solver, model in (
        (ridge, lambda lam: linear_model.Ridge(lam, fit_intercept=False)),
        (lasso, lambda lam: linear_model.Lasso(lam / 18, fit_intercept=False, tol=1e-10)),
    ):
        result = k_fold(A, y, solver, lams, folds=4)
        for lam, value in zip(lams, result.values, strict=True):
            scores = selection.cross_val_score(
                model(lam),
                A,
                y,
                cv=selection.PredefinedSplit(part),
                scoring="neg_mean_squared_error",
            )
            np.testing.assert_allclose(value, -scores.mean(), rtol=1e-7)


def test_warm_starts_go_from_large_lam_to_small():
    calls = []

    def solver(A, y, lam, x0=None):
        calls.append((lam, None if x0 is None else float(x0[0])))
        return np.full(3, lam)

    k_fold(with_condition(8, 3, 2.0), TRUTH[:8], solver, [1.0, 2.0, 3.0], folds=2)
    assert calls[:3] == [(3.0, None), (2.0, 3.0), (1.0, 2.0)]
    assert calls[3:6] == calls[:3]


def test_parts_of_an_operator(like64):
    """Rows of a convolution: the solver gets an operator."""
    A, y = periodic(like64)
    grid = np.array([0.03, 0.3, 3.0])
    result = k_fold(A, y, cgls_with(None), grid, folds=3)
    flat = asarray_like(to_numpy(y).ravel(), like64)
    dense = k_fold(A.to_dense(), flat, tikhonov, grid, folds=3)
    np.testing.assert_allclose(result.values, dense.values, rtol=1e-7)
    assert_alike(result.x, like64)
    assert tuple(result.x.shape) == (6, 5)


@pytest.mark.slow
def test_no_rescaling_of_lam():
    """Sums, not means: the λ of half of the data is the λ of all of it."""
    rng = np.random.default_rng(0)
    lams = np.geomspace(0.05, 50, 31)
    found = []
    for _ in range(40):
        A = rng.standard_normal((60, 10))
        y = A @ (0.3 * rng.standard_normal(10)) + rng.standard_normal(60)
        found.append(np.log([k_fold(A, y, tikhonov, lams, folds=2).lam, gcv(A, y, grid=lams).lam]))
    half, whole = np.median(found, axis=0)
    assert abs(half - whole) < math.log(1.6)


@pytest.mark.parametrize("rule", ["gcv", "sure", "k_fold", "oracle"])
def test_solvers_are_watched(rule):
    A, y = with_condition(8, 3, 2.0), TRUTH[:8]

    def call(solver, D=None):
        grid = [0.1, 1.0, 10.0]
        if rule == "k_fold":
            return k_fold(A, y, solver, grid)
        if rule == "oracle":
            return oracle(A, y, TRUTH[:3], D, solver=solver, grid=grid)
        extra = (0.5,) if rule == "sure" else ()
        return RULES_BY_NAME[rule](A, y, *extra, D, solver=solver, grid=grid)

    stopped = Result(np.zeros(3), None, False, "max_iter = 2 steps were taken", 2, {})
    for answer, message in (
        (stopped, "solver must converge: at λ = .* max_iter = 2"),
        (replace(stopped, converged=True, x=np.zeros(4)), "the answer of solver has the wrong"),
        (np.full(3, np.nan), "the answer of solver must be finite"),
        ([0.0, 0.0, 0.0], "the answer of solver must be an array"),
        (None, "the answer of solver must be an array"),
    ):
        with pytest.raises(ValueError, match=message):
            call(lambda A, y, lam, answer=answer: answer)
    with pytest.raises(ValueError, match="solver must be a function"):
        call(3.0)
    if rule != "k_fold":
        with pytest.raises(ValueError, match="solver must be a function .* a D beside it"):
            call(tikhonov, np.eye(3))
    result = call(tikhonov)
    np.testing.assert_allclose(result.x, tikhonov(A, y, result.lam).x)


RULES_BY_NAME = {"gcv": gcv, "sure": sure}


# ---------------------------------------------------------------- the oracle


@pytest.mark.parametrize("error", ["estimation", "prediction"])
def test_oracle_is_the_smallest_error(error, penalty):
    A, x_true = with_condition(12, 8, 100.0), TRUTH[:8]
    y, D = A @ x_true + 0.1 * TRUTH[8:20], penalty(8)
    B = np.eye(8) if error == "estimation" else A

    def loss(t):
        return np.linalg.norm(B @ (tikhonov(A, y, math.exp(t), D).x - x_true))

    result = oracle(A, y, x_true, D, error=error)
    if result.found:
        k = result.values.argmin()
        best = scipy.optimize.minimize_scalar(
            loss,
            bounds=np.log(result.grid[[k - 1, k + 1]]),
            method="bounded",
            options={"xatol": 1e-10},
        )
        assert result.lam == pytest.approx(math.exp(best.x), rel=1e-5)
    near = result.grid[::20]
    np.testing.assert_allclose(
        result.values[::20][near > 1e-8], [loss(math.log(t)) for t in near[near > 1e-8]], rtol=1e-7
    )
    solved = oracle(
        A, y, x_true, solver=lambda A, y, lam: tikhonov(A, y, lam, D), grid=GRID, error=error
    )
    np.testing.assert_allclose(
        solved.values, oracle(A, y, x_true, D, grid=GRID, error=error).values, rtol=1e-8
    )
    assert solved.lam == GRID[solved.values.argmin()] or not solved.found


# ---------------------------------------------------------------- the rules against each other


def test_rules_come_near_the_oracle():
    """Prediction error at most 1.5 times the best, in the median over 30 draws of the noise."""
    problem = phillips(48, noise=3e-2)
    shared = smoother(problem.A)
    ratios = {name: [] for name in ("gcv", "loocv", "sure", "evidence")}
    for seed in range(30):
        case = problem.with_noise(3e-2, seed=seed)
        best = oracle(shared, case.y, case.x_true, error="prediction").values.min()
        results = {
            "gcv": gcv(shared, case.y),
            "loocv": loocv(shared, case.y),
            "sure": sure(shared, case.y, case.noise_std),
            "evidence": evidence(shared, case.y),
        }
        for name, result in results.items():
            ratios[name].append(np.linalg.norm(case.A @ (result.x - case.x_true)) / best)
    assert {name: float(np.median(r)) for name, r in ratios.items() if np.median(r) > 1.5} == {}


# ---------------------------------------------------------------- golden section


@pytest.mark.parametrize("where", [-3.0, 0.1234567, 2.9])
def test_golden_section(where):
    calls = []

    def f(t):
        calls.append(t)
        return abs(t - where) ** 1.5

    assert choice.golden_section(f, -3.0, 3.0) == pytest.approx(where, abs=1e-6)
    assert len(calls) == math.ceil(math.log(6e6) / math.log((1 + math.sqrt(5)) / 2)) + 2
    # Of a tolerance below the spacing of floating-point numbers it still comes back.
    assert choice.golden_section(f, -3.0, 3.0, tol=1e-30) == pytest.approx(where, abs=1e-12)


@pytest.mark.parametrize(
    ("low", "high", "tol", "said"),
    [
        (1.0, 1.0, 1e-6, "low < high"),
        (2.0, 1.0, 1e-6, "low < high"),
        (0.0, math.inf, 1e-6, "low < high"),
        (math.nan, 1.0, 1e-6, "low < high"),
        (0.0, 1.0, 0.0, "tol must be positive"),
        (-1.0, 1.0, 1e-6, "expected no NaN"),
    ],
)
def test_golden_section_refuses(low, high, tol, said):
    with pytest.raises(ValueError, match=said):
        choice.golden_section(lambda t: t if t > 0 else math.nan, low, high, tol=tol)


@pytest.mark.parametrize(
    "grid", [[1.0, 2.0], [1.0, 1.0, 2.0], [3.0, 2.0, 1.0], [0.0, 1.0, 2.0], [[1.0, 2.0, 3.0]], 1.0]
)
def test_grids_are_refused(grid):
    for rule in RULES.values():
        with pytest.raises(ValueError, match="grid"):
            rule(np.eye(3), TRUTH[:3], grid=np.asarray(grid))


def test_grids_of_any_kind():
    expected = gcv(np.eye(3), TRUTH[:3], grid=np.array([1.0, 2.0, 3.0])).values
    for grid in ([1, 2, 3], (1.0, 2.0, 3.0), range(1, 4), np.float32([1, 2, 3])):
        assert np.array_equal(gcv(np.eye(3), TRUTH[:3], grid=grid).values, expected)
    assert gcv(np.eye(3), TRUTH[:3]).grid.size == choice.POINTS
