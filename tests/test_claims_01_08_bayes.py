"""The claims of section 01/08 (the words of probability), on random instances, broken once each."""

import math

import numpy as np
import pytest
from claims import rejects

from course_lib import filters


@pytest.mark.claim("thm-bayes")
@pytest.mark.parametrize("broken", [None, "not divided by p(y)", "likelihood alone"])
def test_bayes_rule_by_counting(rng, broken):
    """Draw (x, y) from the model, keep the draws with y near a value: x has the posterior."""
    std, noise_std, value = 1.0, 0.7, 0.8
    x = std * rng.standard_normal(2_000_000)
    y = x + noise_std * rng.standard_normal(x.size)
    kept = x[np.abs(y - value) < 0.02]
    edges = np.linspace(-1.5, 2.5, 9)
    found = np.histogram(kept, edges)[0] / kept.size
    grid = np.linspace(-6, 6, 4801)
    likelihood = np.exp(-0.5 * ((value - grid) / noise_std) ** 2) / (noise_std * np.sqrt(2 * np.pi))
    prior = np.exp(-0.5 * (grid / std) ** 2) / (std * np.sqrt(2 * np.pi))
    product = likelihood if broken == "likelihood alone" else likelihood * prior
    step = grid[1] - grid[0]
    if broken != "not divided by p(y)":
        product = product / (product.sum() * step)
    claimed = [
        np.sum(product[(grid >= a) & (grid < b)]) * step
        for a, b in zip(edges[:-1], edges[1:], strict=True)
    ]
    with rejects(broken):
        assert np.allclose(found, claimed, atol=0.012)


@pytest.mark.claim("thm-map-dictionary")
@pytest.mark.parametrize("broken", [None, "without the variance", "standard deviation only"])
def test_tikhonov_is_the_most_probable(rng, broken):
    with rejects(broken):
        for m, n in ((6, 6), (4, 8), (9, 3)):
            A, y = rng.standard_normal((m, n)), rng.standard_normal(m)
            D = rng.standard_normal((n + 1, n))
            noise_std, precision = rng.uniform(0.1, 0.6), rng.uniform(0.5, 4)
            factor = {None: noise_std**2, "without the variance": 1.0}.get(broken, noise_std)
            x = filters.tikhonov(A, y, factor * precision, D).x

            def log_posterior(z, A=A, y=y, D=D, noise_std=noise_std, precision=precision):
                misfit = np.sum((A @ z - y) ** 2) / (2 * noise_std**2)
                return -misfit - 0.5 * precision * np.sum((D @ z) ** 2)

            for _ in range(100):
                d = 10 ** rng.uniform(-4, 0) * rng.standard_normal(n)
                assert log_posterior(x + d) < log_posterior(x)


@pytest.mark.claim("prop-gaussian-posterior")
@pytest.mark.parametrize(
    "broken", [None, "covariance without the variance", "a common null vector"]
)
def test_gaussian_posterior(rng, broken):
    """Up to a constant the log posterior is the log of the stated Gaussian; D has a null vector."""
    n = 6
    D = np.diff(np.eye(n), axis=0)
    with rejects(broken):
        for m in (4, 6, 9):
            A, y = rng.standard_normal((m, n)), rng.standard_normal(m)
            if broken == "a common null vector":
                A = A - A.mean(axis=1, keepdims=True)
            noise_std, precision = rng.uniform(0.2, 0.8), rng.uniform(0.5, 4)
            lam = noise_std**2 * precision
            H = A.T @ A + lam * D.T @ D
            # Proper if and only if H is positive definite.
            assert np.linalg.eigvalsh(H)[0] > 1e-10
            mean = filters.tikhonov(A, y, lam, D).x
            scale = 1.0 if broken == "covariance without the variance" else noise_std**2
            precision_matrix = H / scale
            values = []
            for _ in range(20):
                x = rng.standard_normal(n)
                log_product = -np.sum((A @ x - y) ** 2) / (2 * noise_std**2)
                log_product -= 0.5 * precision * np.sum((D @ x) ** 2)
                values.append(log_product + 0.5 * (x - mean) @ precision_matrix @ (x - mean))
            assert np.ptp(values) <= 1e-8 * (1 + np.abs(values).max())


@pytest.mark.claim("thm-map-dictionary")
@pytest.mark.parametrize("broken", [None, "penalty without its factor", "another fidelity"])
def test_the_dictionary_for_laplace_and_poisson(rng, broken):
    """One unknown: the posterior, normalized on a grid, is e^-(ℓ + λR), normalized."""
    x = np.linspace(0.01, 12, 4000)
    for counts in (0, 1, 5):
        beta, gain = rng.uniform(0.3, 2), rng.uniform(0.5, 2)
        z = gain * x
        likelihood = z**counts * np.exp(-z) / math.factorial(counts)
        posterior = likelihood * 0.5 * beta * np.exp(-beta * np.abs(x))
        # Kullback-Leibler and ℓ1, up to a constant.
        fidelity = z - counts * np.log(z)
        if broken == "another fidelity":
            fidelity = 0.5 * (z - counts) ** 2
        functional = fidelity + (1.0 if broken == "penalty without its factor" else beta) * x
        with rejects(broken):
            assert np.ptp(np.log(posterior) + functional) <= 1e-9
            assert np.argmax(posterior) == np.argmin(functional)
