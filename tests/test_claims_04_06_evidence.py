"""The claims of section 04/06 (the evidence), on random instances, broken once each."""

import numpy as np
import pytest
from claims import rejects
from scipy.integrate import quad
from scipy.stats import multivariate_normal

from course_lib import choice, filters, operators

M, N = 7, 5


def instance(rng, boundary="zero"):
    """A, D, y, the noise and the precision of the prior."""
    D = operators.difference(N, boundary=boundary)
    std, precision = 10 ** rng.uniform(-1, 0.5), 10 ** rng.uniform(-1, 1)
    return rng.standard_normal((M, N)), D, rng.standard_normal(M), std, precision


def criterion(A, D, y, std, lam):
    return choice.evidence(A, y, D, noise_std=std, grid=[lam / 2, lam, 2 * lam]).values[1]


def covariance(A, D, std, precision):
    """Of the data, from the model itself."""
    L = D.to_dense()
    return std**2 * np.eye(M) + A @ np.linalg.pinv(precision * L.T @ L) @ A.T


@pytest.mark.claim("thm-evidence")
@pytest.mark.parametrize(
    "broken", [None, "no noise level", "determinants with the wrong λ", "the sign of a determinant"]
)
def test_closed_form(rng, broken):
    with rejects(broken):
        for _ in range(5):
            A, D, y, std, precision = instance(rng)
            L, lam = D.to_dense(), std**2 * precision
            cov = covariance(A, D, std, precision)
            H = A.T @ A + lam * L.T @ L
            P = A @ np.linalg.solve(H, A.T)
            assert np.allclose(cov @ (np.eye(M) - P), std**2 * np.eye(M))
            exact = -multivariate_normal(np.zeros(M), cov).logpdf(y)
            x = filters.tikhonov(A, y, lam, D).x
            fit = 0.5 * np.sum((A @ x - y) ** 2) + 0.5 * lam * np.sum((L @ x) ** 2)
            scale = precision if broken == "determinants with the wrong λ" else lam
            sign = -1 if broken == "the sign of a determinant" else 1
            complexity = 0.5 * np.linalg.slogdet(H)[1]
            complexity -= sign * 0.5 * np.linalg.slogdet(scale * L.T @ L)[1]
            weight = 1 if broken == "no noise level" else std**-2
            total = weight * fit + complexity + 0.5 * M * np.log(2 * np.pi * std**2)
            assert abs(total - exact) < 1e-10 * max(1, abs(exact))
            assert abs(criterion(A, D, y, std, lam) - exact) < 1e-10 * max(1, abs(exact))


@pytest.mark.claim("thm-evidence")
@pytest.mark.parametrize("broken", [None, "the best x instead of the mean over x"])
def test_the_evidence_is_an_average(rng, broken):
    """One unknown: the integral by quadrature."""
    with rejects(broken):
        for _ in range(3):
            a, y, std, precision = rng.standard_normal((3, 1)), rng.standard_normal(3), 0.7, 1.5

            def joint(x, a=a, y=y, std=std, precision=precision):
                misfit, norm = np.sum((a[:, 0] * x - y) ** 2), 2 * np.pi * std**2
                prior = np.sqrt(precision / (2 * np.pi)) * np.exp(-0.5 * precision * x**2)
                return np.exp(-0.5 * misfit / std**2) * norm**-1.5 * prior

            value = quad(joint, -20, 20)[0]
            if broken:
                value = max(joint(x) for x in np.linspace(-5, 5, 2001))
            found = criterion(a, None, y, std, std**2 * precision)
            assert abs(found + np.log(value)) < 1e-6


@pytest.mark.claim("thm-evidence")
@pytest.mark.parametrize("broken", [None, "the roles exchanged"])
def test_one_term_grows_and_one_falls(rng, broken):
    with rejects(broken):
        for _ in range(5):
            A, D, y, *_ = instance(rng)
            fit = choice.smoother(A, D).fit(y)
            lams = np.logspace(-3, 3, 30)
            grows = fit.table(lams, lambda kept, lost, fit=fit: lost @ fit.power)
            falls = -fit.table(lams, lambda kept, lost: np.log(lost).sum(axis=1))
            if broken:
                grows, falls = falls, grows
            assert (np.diff(grows) > 0).all()
            assert (np.diff(falls) < 0).all()
            assert (falls > 0).all()


@pytest.mark.claim("prop-evidence-slope")
@pytest.mark.parametrize("broken", [None, "n counts", "no noise level"])
def test_slope(rng, broken):
    with rejects(broken):
        for _ in range(5):
            A, D, y, std, precision = instance(rng)
            lam, h = std**2 * precision, 1e-4
            fit = choice.smoother(A, D).fit(y)
            count = fit.table(lam, lambda kept, lost: kept.sum(axis=1))[0]
            if broken == "n counts":
                count = N
            unit = 1 if broken == "no noise level" else std**2
            slope = 0.5 * (lam * fit.norms(lam)[1][0] ** 2 / unit - count)
            low, high = (criterion(A, D, y, std, lam * np.exp(s)) for s in (-h, h))
            assert abs((high - low) / (2 * h) - slope) < 1e-5 * max(1, abs(slope))


@pytest.mark.claim("prop-evidence-slope")
@pytest.mark.parametrize("broken", [None, "the limit without a noise level"])
def test_both_ends(rng, broken):
    with rejects(broken):
        for _ in range(5):
            A, D, y, std, _ = instance(rng)
            low = [criterion(A, D, y, std, 10.0**-k) for k in (10, 20, 30)]
            assert np.diff(low).min() > 10
            end = criterion(A, D, y, std, 1e12)
            unit = 1 if broken else std**2
            limit = np.sum(y**2) / (2 * unit) + 0.5 * M * np.log(2 * np.pi * std**2)
            assert abs(end - limit) < 1e-6 * max(1, abs(limit))


@pytest.mark.claim("prop-evidence-slope")
@pytest.mark.parametrize("broken", [None, "the condition reversed", "half the noise"])
def test_a_finite_best_parameter(rng, broken):
    """Sufficient for every A; for one datum also necessary."""
    grid, cases = np.logspace(-8, 8, 300), 0
    with rejects(broken):
        for _ in range(60):
            A, D, _, std, _ = instance(rng)
            y = A @ rng.standard_normal(N) * 10 ** rng.uniform(-2, 0) + std * rng.standard_normal(M)
            L = D.to_dense()
            if broken == "half the noise":
                A, D, y, std, L = np.ones((1, 1)), None, np.array([0.7]), 1.0, np.eye(1)
            G = A @ np.linalg.inv(L.T @ L) @ A.T
            level = (0.5 if broken == "half the noise" else 1.0) * std
            holds = bool(y @ G @ y > level**2 * np.trace(G))
            if holds != (broken == "the condition reversed"):
                cases += 1
                assert choice.evidence(A, y, D, noise_std=std, grid=grid).found
    assert cases > 0


@pytest.mark.claim("prop-restricted-evidence")
@pytest.mark.parametrize("broken", [None, "m for m - q", "the flat part is not removed"])
def test_improper_prior(rng, broken):
    with rejects(broken):
        for _ in range(5):
            A, D, y, std, precision = instance(rng, boundary="free")
            lam = std**2 * precision
            flat = (A @ np.ones(N))[:, None]
            W = np.linalg.qr(flat, mode="complete")[0][:, 1:]
            if broken == "the flat part is not removed":
                W = np.linalg.qr(rng.standard_normal((M, M)))[0][:, 1:]
            cov = W.T @ covariance(A, D, std, precision) @ W
            exact = -multivariate_normal(np.zeros(M - 1), cov).logpdf(W.T @ y)
            found = criterion(A, D, y, std, lam)
            if broken == "m for m - q":
                found += 0.5 * np.log(2 * np.pi * std**2)
            assert abs(found - exact) < 1e-10 * max(1, abs(exact))
            L = D.to_dense()
            P = A @ np.linalg.solve(A.T @ A + lam * L.T @ L, A.T)
            x = filters.tikhonov(A, y, lam, D).x
            fit = 0.5 * np.sum((A @ x - y) ** 2) + 0.5 * lam * np.sum((L @ x) ** 2)
            formula = fit / std**2 - 0.5 * np.linalg.slogdet(W.T @ (np.eye(M) - P) @ W)[1]
            formula += 0.5 * (M - 1) * np.log(2 * np.pi * std**2)
            assert abs(formula - exact) < 1e-10 * max(1, abs(exact))
            # What lies in the flat directions does not count.
            moved = criterion(A, D, y + flat[:, 0], std, lam)
            assert abs(moved - criterion(A, D, y, std, lam)) < 1e-9


@pytest.mark.claim("prop-lambda-information")
@pytest.mark.parametrize("broken", [None, "another λ", "tr P instead of tr P²"])
def test_mean_and_variance_of_the_slope(rng, broken):
    draws = 20_000
    with rejects(broken):
        for _ in range(3):
            A, D, _, std, precision = instance(rng)
            lam = std**2 * precision
            root = np.linalg.cholesky(covariance(A, D, std, precision))
            both = choice.smoother(A, D)
            power = (both.U.T @ root @ rng.standard_normal((M, draws))) ** 2 / std**2
            used = 3 * lam if broken == "another λ" else lam
            phi = both.c**2 / (both.c**2 + used)
            slopes = 0.5 * (phi * (1 - phi)) @ power - 0.5 * phi.sum()
            bends = -0.5 * (phi * (1 - phi) * (1 - 2 * phi)) @ power
            bends += 0.5 * np.sum(phi * (1 - phi))
            value = 0.5 * np.sum(phi if broken == "tr P instead of tr P²" else phi**2)
            error = np.sqrt(0.5 * np.sum(phi**2) / draws)
            assert abs(slopes.mean()) < 5 * error
            assert abs(slopes.var() / value - 1) < 0.15
            assert abs(bends.mean() - value) < 5 * bends.std() / np.sqrt(draws)
