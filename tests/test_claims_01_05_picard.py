"""The claims of section 01/05 (Picard's condition), on random instances, broken once each."""

import numpy as np
import pytest
from claims import rejects

from course_lib import filters, problems


@pytest.mark.claim("thm-picard")
@pytest.mark.parametrize("broken", [None, "coefficients not divided", "a part outside the range"])
def test_picard_sum_and_smallest_solution(rng, broken):
    """In finite dimensions: the sum is the squared norm of the smallest solution."""
    with rejects(broken):
        for m, n, r in ((6, 6, 6), (8, 5, 5), (5, 8, 4), (7, 7, 3)):
            A = rng.standard_normal((m, r)) @ rng.standard_normal((r, n))
            spectrum = filters.decompose(A)
            U, s, V = spectrum.U[:, :r], spectrum.s[:r], spectrum.V[:, :r]
            x = rng.standard_normal(n)
            y = A @ x
            if broken == "a part outside the range" and m > r:
                outside = rng.standard_normal(m)
                y = y + outside - U @ (U.T @ outside)
            c = U.T @ y if broken == "coefficients not divided" else U.T @ y / s
            smallest = V @ (U.T @ y / s)
            assert np.allclose(A @ smallest, y, atol=1e-9)
            assert np.sum(c**2) == pytest.approx(np.sum(smallest**2))
            assert np.linalg.norm(smallest) <= np.linalg.norm(x) * (1 + 1e-12)
            # Every other solution differs by a null vector.
            null = x - V @ (V.T @ x)
            assert np.linalg.norm(smallest + null) >= np.linalg.norm(smallest) * (1 - 1e-12)


@pytest.mark.claim("thm-picard")
@pytest.mark.parametrize("broken", [None, "the other exponent"])
def test_picard_decides_between_exponents(rng, broken):
    """Data i^-beta and singular values i^-alpha: convergent if and only if beta > alpha + 1/2."""
    i = np.arange(1.0, 200_001)
    with rejects(broken):
        for alpha in rng.uniform(0.5, 2.5, size=4):
            for excess, converges in ((0.3, True), (-0.3, False)):
                beta = alpha + 0.5 + excess
                if broken:
                    beta = alpha + 0.5 - excess
                sums = np.cumsum(i ** (-2 * beta) / i ** (-2 * alpha))
                growth = sums[-1] / sums[len(sums) // 100]
                assert (growth < 1.2) == converges


@pytest.mark.claim("prop-white-coefficients")
@pytest.mark.parametrize("broken", [None, "noise that is not white", "vectors not orthonormal"])
def test_coefficients_of_white_noise(rng, broken):
    m, draws = 12, 40_000
    U = np.linalg.qr(rng.standard_normal((m, m)))[0][:, :7]
    if broken == "vectors not orthonormal":
        U = U + 0.3 * U[:, :1]
    noise_std = rng.uniform(0.5, 2)
    e = noise_std * rng.uniform(-np.sqrt(3), np.sqrt(3), (draws, m))
    if broken == "noise that is not white":
        e = (e + np.roll(e, 1, axis=1)) / np.sqrt(2)
    c = e @ U
    with rejects(broken):
        # Standard errors of mean and covariance, with a wide margin.
        assert np.all(np.abs(c.mean(axis=0)) <= 5 * noise_std / np.sqrt(draws))
        covariance = c.T @ c / draws / noise_std**2
        assert np.all(np.abs(covariance - np.eye(7)) <= 8 / np.sqrt(draws))


@pytest.mark.claim("prop-noise-no-solution")
@pytest.mark.parametrize("broken", [None, "weights that are summable"])
def test_noise_has_no_finite_picard_sum(rng, broken):
    n = 50_000
    with rejects(broken):
        for _ in range(5):
            sigma = np.sort(rng.uniform(0.2, 1.0, n))[::-1] * np.arange(1.0, n + 1) ** -0.2
            weights = sigma**-2.0
            if broken:
                weights = np.arange(1.0, n + 1) ** -2.0
            sums = np.cumsum(rng.standard_normal(n) ** 2 * weights)
            # At least the share of the law of large numbers, without an end.
            k = np.array([n // 100, n // 10, n])
            assert np.all(sums[k - 1] >= 0.9 * k / sigma[0] ** 2)
            assert np.all(np.abs(sums[k - 1] / np.cumsum(weights)[k - 1] - 1) <= 0.3)


@pytest.mark.claim("prop-noise-no-solution")
@pytest.mark.parametrize("broken", [None, "singular values not squared"])
def test_expected_sum_of_noise(broken):
    problem = problems.deriv2(24)
    spectrum = filters.decompose(problem.A)
    noise_std = problem.with_noise(1e-2).noise_std
    noise = np.stack([problem.with_noise(1e-2, seed=k).y - problem.y_exact for k in range(1500)])
    power = -1.0 if broken else -2.0
    sums = np.mean(np.cumsum((noise @ spectrum.U / spectrum.s) ** 2, axis=1), axis=0)
    with rejects(broken):
        expected = noise_std**2 * np.cumsum(spectrum.s**power)
        assert np.allclose(sums / expected, 1, atol=0.15)
