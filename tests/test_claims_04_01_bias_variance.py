"""The claims of section 04/01 (bias and variance), on random instances, broken once each."""

import numpy as np
import pytest
from claims import rejects

from course_lib import choice, filters, proximal
from course_lib.functionals import l1


def instance(rng, m=7, n=5):
    return rng.standard_normal((m, n)), rng.standard_normal((n, n)), rng.standard_normal(n)


def tikhonov_matrix(A, D, lam):
    """The matrix M of x = My, column by column from the library."""
    fits = choice.smoother(A, D)
    return np.transpose([fits.fit(column).solve(lam) for column in np.eye(len(A))])


@pytest.mark.claim("thm-bias-variance")
@pytest.mark.parametrize("broken", [None, "dependent noise", "M depends on the noise", "no bias"])
def test_bias_and_variance(rng, broken):
    """Noise of ±σ for each datum: the mean over all 2^m sign patterns is the exact expectation."""
    for _ in range(5):
        A, B, x = instance(rng)
        M, sigma = rng.standard_normal((5, 7)), 0.7
        signs = 1 - 2.0 * (np.arange(2**7)[:, None] >> np.arange(7) & 1)
        if broken == "dependent noise":
            signs[:, 1] = signs[:, 0]
        estimates = (A @ x + sigma * signs) @ M.T
        if broken == "M depends on the noise":
            estimates *= np.where(signs[:, :1] > 0, 1.2, 0.8)
        mean = np.mean(np.sum(((estimates - x) @ B.T) ** 2, axis=1))
        bias = np.sum((B @ (M @ A - np.eye(5)) @ x) ** 2) * (broken != "no bias")
        with rejects(broken):
            assert mean == pytest.approx(bias + sigma**2 * np.sum((B @ M) ** 2), rel=1e-10)


@pytest.mark.claim("prop-tikhonov-bias-variance")
@pytest.mark.parametrize("broken", [None, "D forgotten", "no null space of A", "limit 0"])
def test_formulas_of_tikhonov(rng, broken):
    A = rng.standard_normal((4, 6))
    D = np.diff(np.eye(6), axis=0)
    x, lam = rng.standard_normal(6), 10 ** rng.uniform(-2, 1)
    H = A.T @ A + lam * D.T @ D
    M = tikhonov_matrix(A, D, lam)
    G = np.eye(6) if broken == "D forgotten" else D.T @ D
    s, V = filters.decompose(A).s, filters.decompose(A).V
    a = V.T @ x
    outside = 0.0 if broken == "no null space of A" else np.sum((x - V @ a) ** 2)
    plain, lost = tikhonov_matrix(A, None, lam), lam / (s**2 + lam)
    far = tikhonov_matrix(A, D, 1e11)
    one = A @ np.ones(6)
    limit = 0.0 if broken == "limit 0" else (one @ A @ x) / (one @ one)
    with rejects(broken):
        np.testing.assert_allclose(M @ A @ x - x, -lam * np.linalg.solve(H, G @ x), atol=1e-10)
        covariance = np.linalg.solve(H, np.linalg.solve(H, A.T @ A).T)
        np.testing.assert_allclose(M @ M.T, covariance, atol=1e-10)
        assert np.sum((plain @ A @ x - x) ** 2) == pytest.approx(outside + np.sum((lost * a) ** 2))
        assert np.sum(plain**2) == pytest.approx(np.sum((s / (s**2 + lam)) ** 2))
        error = A @ (plain @ A @ x - x)
        assert np.sum(error**2) == pytest.approx(np.sum((lost * s * a) ** 2))
        assert np.sum((A @ plain) ** 2) == pytest.approx(np.sum((s**2 / (s**2 + lam)) ** 2))
        np.testing.assert_allclose(far @ A @ x, limit * np.ones(6), atol=1e-6)
        assert np.sum(far**2) == pytest.approx(6 / (one @ one), rel=1e-5)


@pytest.mark.claim("prop-tikhonov-bias-variance")
@pytest.mark.parametrize("broken", [None, "also the bias, for every D"])
def test_the_variance_never_grows(rng, broken):
    lams = np.geomspace(1e-4, 1e4, 60)
    with rejects(broken):
        for _ in range(10):
            A, D, x = instance(rng, m=5)
            matrices = [tikhonov_matrix(A, D, lam) for lam in lams]
            variances = [np.sum(M**2) for M in matrices]
            assert (np.diff(variances) <= 1e-12).all()
            for B in (np.eye(5), A):
                plain = [tikhonov_matrix(A, None, lam) for lam in lams]
                bias = [np.sum((B @ (M @ A @ x - x)) ** 2) for M in plain]
                assert (np.diff(bias) >= -1e-9).all()
                assert (np.diff([np.sum((B @ M) ** 2) for M in plain]) < 0).all()
            if broken:
                general = [np.sum((M @ A @ x - x) ** 2) for M in matrices]
                assert (np.diff(general) >= -1e-9).all()


def risk(s, a, sigma, lam, power):
    """Expected squared error of the estimation (power 0) and of the prediction (power 1)."""
    terms = (lam**2 * a**2 + sigma**2 * s**2) / (s**2 + lam) ** 2
    return np.sum(s ** (2 * power) * terms, axis=-1)


def slope(s, a, sigma, lam, power):
    """The derivative, as the proposition gives it."""
    return 2 * np.sum(s ** (2 + 2 * power) * (lam * a**2 - sigma**2) / (s**2 + lam) ** 3)


@pytest.mark.claim("prop-u-curve")
@pytest.mark.parametrize("broken", [None, "standard deviation for variance", "equal weights"])
def test_the_derivative_and_the_interval(rng, broken):
    with rejects(broken):
        for _ in range(20):
            s, a = np.sort(rng.uniform(0.1, 2, 6))[::-1], rng.standard_normal(6)
            sigma = rng.uniform(0.1, 0.5)
            ends = (sigma if broken == "standard deviation for variance" else sigma**2) / a**2
            for power in (0, 1):
                shown = 0 if broken == "equal weights" else power
                lam = 10 ** rng.uniform(-2, 1)
                h = 1e-5 * lam
                difference = risk(s, a, sigma, lam + h, power) - risk(s, a, sigma, lam - h, power)
                assert difference / (2 * h) == pytest.approx(
                    slope(s, a, sigma, lam, shown), rel=1e-4, abs=1e-8
                )
                assert slope(s, a, sigma, 0.999 * ends.min(), power) < 0
                assert slope(s, a, sigma, 1.001 * ends.max(), power) > 0
                equal = np.full(6, a[0])
                assert slope(s, equal, sigma, ends[0], power) == pytest.approx(0, abs=1e-9)
                assert slope(s, equal, sigma, 0.9 * ends[0], power) < 0
                assert slope(s, equal, sigma, 1.1 * ends[0], power) > 0
                # A coefficient that is 0 wants λ = ∞; the sum still grows for all large λ.
                some = a * (np.arange(6) != 2)
                assert slope(s, some, sigma, 1e9, power) > 0


@pytest.mark.claim("prop-two-best-lambdas")
@pytest.mark.parametrize("broken", [None, "coefficients in the other order"])
def test_the_order_of_the_two_best(rng, broken):
    grid = np.geomspace(1e-5, 1e5, 1500)
    with rejects(broken):
        for _ in range(50):
            r = int(rng.integers(2, 8))
            s = np.sort(10 ** rng.uniform(-2, 1, r))[::-1]
            a = np.sort(10 ** rng.uniform(-1, 1, r))[:: 1 if broken else -1]
            best = [grid[np.argmin(risk(s, a, 0.3, grid[:, None], power))] for power in (0, 1)]
            assert best[1] <= best[0]


@pytest.mark.claim("prop-training-validation")
@pytest.mark.parametrize("broken", [None, "the validation error"])
def test_the_training_error_never_falls(rng, broken):
    """For the penalty ‖x‖₁ too."""
    lams = np.geomspace(1e-3, 1e1, 12)
    with rejects(broken):
        for _ in range(10):
            A, D, x = instance(rng)
            y, other = A @ x + rng.standard_normal((2, 7))
            seen = other if broken else y
            fit = choice.smoother(A, D).fit(y)
            for solutions in (
                [fit.solve(lam) for lam in lams],
                [proximal.lasso(A, y, lam, rtol=1e-12).x for lam in lams],
            ):
                errors = [np.linalg.norm(seen - A @ x) for x in solutions]
                assert (np.diff(errors) >= -1e-6).all()
            assert l1()(solutions[0]) >= l1()(solutions[-1])


@pytest.mark.claim("prop-training-validation")
@pytest.mark.parametrize("broken", [None, "one trace only", "the same noise twice"])
def test_the_gap_is_twice_the_trace(rng, broken):
    """Exact expectations: both noises run over all sign patterns."""
    for _ in range(5):
        A, D, x = instance(rng, m=5)
        lam, sigma = 10 ** rng.uniform(-1, 1), 0.6
        P = A @ tikhonov_matrix(A, D, lam)
        signs = 1 - 2.0 * (np.arange(2**5)[:, None] >> np.arange(5) & 1)
        e = sigma * signs
        fitted = (A @ x + e) @ P.T
        training = np.mean(np.sum((A @ x + e - fitted) ** 2, axis=1))
        other = e if broken == "the same noise twice" else sigma * signs[:, None, :]
        validation = np.mean(np.sum((A @ x + other - fitted) ** 2, axis=-1))
        prediction = np.mean(np.sum((fitted - A @ x) ** 2, axis=1))
        times = 1 if broken == "one trace only" else 2
        with rejects(broken):
            assert validation == pytest.approx(5 * sigma**2 + prediction)
            assert validation - training == pytest.approx(times * sigma**2 * np.trace(P))
