"""The claims of section 01/06 (the inverse crime), on random instances, broken once each."""

import numpy as np
import pytest
from claims import rejects

from course_lib import filters, problems


def tikhonov_matrix(A, lam):
    """The linear method y -> x_lambda as a matrix."""
    return np.linalg.solve(A.T @ A + lam * np.eye(A.shape[1]), A.T)


@pytest.mark.claim("prop-crime-exact")
@pytest.mark.parametrize("broken", [None, "data of another matrix", "rank below n"])
def test_the_crime_makes_everything_exact(rng, broken):
    with rejects(broken):
        for m, n in ((6, 6), (9, 5), (30, 20)):
            U = np.linalg.qr(rng.standard_normal((m, n)))[0]
            V = np.linalg.qr(rng.standard_normal((n, n)))[0]
            s = np.geomspace(1, 1e-6, n)
            if broken == "rank below n":
                s[-1] = 0.0
            A = (U * s) @ V.T
            other = A * (1 + 1e-3 * rng.standard_normal((m, n)))
            x = rng.standard_normal(n)
            y = (other if broken == "data of another matrix" else A) @ x
            spectrum = filters.decompose(A)
            keep = 1.0 * (spectrum.s > 1e-12)
            assert np.allclose(filters.filtered(spectrum, y, keep), x, atol=1e-7)


@pytest.mark.claim("prop-three-errors")
@pytest.mark.parametrize("broken", [None, "model error left out", "norm of R halved"])
def test_three_sources_of_error(rng, broken):
    with rejects(broken):
        for k in range(20):
            m, n = rng.integers(2, 9, size=2)
            A = rng.standard_normal((m, n))
            # Any matrix will do; every other one is Tikhonov's.
            R = tikhonov_matrix(A, 10 ** rng.uniform(-4, 1))
            R = rng.standard_normal((n, m)) if k % 2 else R
            x = 1e-2 * rng.standard_normal(n)
            # The worst direction for the model error and the noise: the bound is nearly reached.
            worst = np.linalg.svd(R)[2][0]
            d, e = rng.uniform(1, 3) * worst, rng.uniform(0, 1) * worst
            size = np.linalg.norm(R, 2) * (0.5 if broken == "norm of R halved" else 1.0)
            model = 0.0 if broken == "model error left out" else np.linalg.norm(d)
            approximation = np.linalg.norm(R @ A @ x - x)
            bound = approximation + size * (model + np.linalg.norm(e))
            assert np.linalg.norm(R @ (A @ x + d + e) - x) <= bound * (1 + 1e-10)


@pytest.mark.claim("prop-three-errors")
@pytest.mark.parametrize("broken", [None, "model error added as a variance"])
def test_expected_squared_error(broken):
    problem = problems.phillips(16)
    A, x = problem.A.to_dense(), problem.x_true
    R = tikhonov_matrix(A, 0.5)
    d = 0.3 * np.sin(np.arange(16.0)) + 0.2
    noise_std = problem.with_noise(0.05).noise_std
    fixed = (R @ A - np.eye(16)) @ x
    expected = np.sum((fixed + R @ d) ** 2) + noise_std**2 * np.sum(R**2)
    if broken:
        expected = np.sum(fixed**2) + np.sum((R @ d) ** 2) + noise_std**2 * np.sum(R**2)
    found = [np.sum((R @ (problem.with_noise(0.05, seed=k).y + d) - x) ** 2) for k in range(3000)]
    with rejects(broken):
        spread = np.std(found) / np.sqrt(len(found))
        assert abs(np.mean(found) - expected) <= 5 * spread
