"""The claims of section 04/03 (Stein's estimate), on random instances, broken once each."""

import numpy as np
import pytest
from claims import rejects

from course_lib import choice, proximal


def instance(rng, m=12, n=8):
    """A matrix, exact data, and the standard deviation of the noise."""
    A = rng.standard_normal((m, n)) / np.arange(1, n + 1)
    return A, A @ rng.standard_normal(n), 10 ** rng.uniform(-1, 0)


def influence(A, lam):
    return A @ np.linalg.solve(A.T @ A + lam * np.eye(A.shape[1]), A.T)


def near_zero(samples):
    """Within five standard errors of 0, for each column."""
    mean, error = np.mean(samples, axis=0), np.std(samples, axis=0, ddof=1) / np.sqrt(len(samples))
    return bool((np.abs(mean) < 5 * error).all())


def stepwise(y, kind):
    """A function of the data that is not linear, and its divergence where it has one."""
    on = np.abs(y) > 1
    value = y * on if kind == "a jump" else y - np.clip(y, -1, 1)
    return value, on.sum(axis=-1)


@pytest.mark.claim("lem-stein")
@pytest.mark.parametrize("broken", [None, "a jump", "the standard deviation for the variance"])
def test_stein(rng, broken):
    for _ in range(3):
        z, noise_std = rng.standard_normal(4), rng.uniform(0.4, 0.7)
        e = noise_std * rng.standard_normal((200_000, 4))
        f, divergence = stepwise(z + e, broken)
        factor = noise_std if broken == "the standard deviation for the variance" else noise_std**2
        with rejects(broken):
            assert near_zero(np.sum(e * f, axis=1) - factor * divergence)


@pytest.mark.claim("thm-sure")
@pytest.mark.parametrize("broken", [None, "the divergence once", "no divergence", "a jump"])
@pytest.mark.slow
def test_sure_is_unbiased_for_a_soft_threshold(rng, broken):
    for _ in range(3):
        z, noise_std, m = rng.standard_normal(6), rng.uniform(0.4, 0.7), 6
        y = z + noise_std * rng.standard_normal((200_000, m))
        h, divergence = stepwise(y, broken)
        weight = {"the divergence once": 1, "no divergence": 0}.get(broken, 2)
        sure = np.sum((y - h) ** 2, axis=1) + noise_std**2 * (weight * divergence - m)
        with rejects(broken):
            assert near_zero(sure - np.sum((h - z) ** 2, axis=1))


@pytest.mark.claim("prop-sure-tikhonov")
@pytest.mark.parametrize("broken", [None, "variance times trace for correlated noise"])
def test_sure_with_a_covariance_and_noise_that_is_not_gaussian(rng, broken):
    for _ in range(3):
        A, z, _ = instance(rng)
        root = np.tril(rng.standard_normal((12, 12))) + 2 * np.eye(12)
        cov, P = root @ root.T, influence(A, 10 ** rng.uniform(-1, 1))
        e = rng.choice([-1.0, 1.0], (200_000, 12)) @ root.T
        h = (z + e) @ P
        trace = np.trace(cov) / 12 * np.trace(P) if broken else np.trace(cov @ P)
        sure = np.sum((z + e - h) ** 2, axis=1) - np.trace(cov) + 2 * trace
        with rejects(broken):
            assert near_zero(sure - np.sum((h - z) ** 2, axis=1))


@pytest.mark.claim("prop-sure-tikhonov")
@pytest.mark.parametrize("broken", [None, "the trace of the square"])
def test_the_library_has_this_formula(rng, broken):
    for _ in range(5):
        A, z, noise_std = instance(rng)
        y, grid = z + noise_std * rng.standard_normal(12), np.geomspace(1e-3, 1e1, 7)
        values = []
        for lam in grid:
            P = influence(A, lam)
            trace = np.trace(P @ P if broken else P)
            values.append(np.sum((y - P @ y) ** 2) + noise_std**2 * (2 * trace - 12))
        with rejects(broken):
            np.testing.assert_allclose(choice.sure(A, y, noise_std, grid=grid).values, values)


@pytest.mark.claim("prop-wrong-noise")
@pytest.mark.parametrize("broken", [None, "the larger variance gives the smaller λ"])
def test_lambda_grows_with_the_claimed_noise(rng, broken):
    moved = False
    with rejects(broken):
        for _ in range(10):
            A, z, noise_std = instance(rng)
            y, grid = z + noise_std * rng.standard_normal(12), np.geomspace(1e-4, 1e3, 60)
            factors = np.sort(rng.uniform(0.3, 3, 6))
            lams = [choice.sure(A, y, f * noise_std, grid=grid).lam for f in factors]
            steps = -np.diff(lams) if broken else np.diff(lams)
            assert (steps >= -1e-3 * np.max(lams)).all()
            moved = moved or np.abs(steps).max() > 0
        assert moved


@pytest.mark.claim("prop-wrong-noise")
@pytest.mark.parametrize("broken", [None, "the mean does not change"])
def test_mean_of_sure_with_a_wrong_variance(rng, broken):
    A, z, noise_std = instance(rng)
    P, claimed = influence(A, 0.3), 1.5 * noise_std
    y = z + noise_std * rng.standard_normal((200_000, 12))
    h = y @ P
    sure = np.sum((y - h) ** 2, axis=1) + claimed**2 * (2 * np.trace(P) - 12)
    bias = 0.0 if broken else (claimed**2 - noise_std**2) * (2 * np.trace(P) - 12)
    with rejects(broken):
        assert near_zero(sure - np.sum((h - z) ** 2, axis=1) - bias)


@pytest.mark.claim("thm-lasso-divergence")
@pytest.mark.parametrize("broken", [None, "the number of unknowns", "the map scaled up"])
@pytest.mark.parametrize("n", [6, 20])
def test_degrees_of_freedom_of_the_lasso(rng, n, broken):
    """Differences in every direction, small enough to stay on one piece."""
    m, step = 10, 1e-7
    with rejects(broken):
        for _ in range(5):
            A, y = rng.standard_normal((m, n)), rng.standard_normal(m)
            lam = rng.uniform(0.1, 0.6) * np.abs(A.T @ y).max()
            x = proximal.lasso(A, y, lam, rtol=1e-14).x
            moved = [proximal.lasso(A, y + step * e, lam, rtol=1e-14).x for e in np.eye(m)]
            divergence = sum((A @ (z - x))[i] / step for i, z in enumerate(moved))
            count = n if broken == "the number of unknowns" else np.count_nonzero(x)
            assert abs(divergence - count) < 1e-3
            other = y + rng.standard_normal(m)
            change = A @ (proximal.lasso(A, other, lam).x - x)
            factor = 50 if broken == "the map scaled up" else 1
            assert factor * np.linalg.norm(change) <= np.linalg.norm(other - y) * (1 + 1e-6)


@pytest.mark.claim("thm-lasso-divergence")
@pytest.mark.parametrize("broken", [None, "the size of E for dependent columns"])
def test_rank_for_equal_columns(rng, broken):
    """Each column twice: E counts twice, the rank once."""
    for _ in range(3):
        half, y = rng.standard_normal((8, 4)), rng.standard_normal(8)
        lam, step = 0.2 * np.abs(half.T @ y).max(), 1e-7
        x = proximal.lasso(half, y, lam, rtol=1e-14).x

        def prediction(data, half=half, lam=lam):
            return half @ proximal.lasso(half, data, lam, rtol=1e-14).x

        A = np.hstack([half, half])
        at_limit = np.abs(np.abs(A.T @ (y - half @ x)) - lam) < 1e-9
        rank = at_limit.sum() if broken else np.linalg.matrix_rank(A[:, at_limit])
        divergence = sum(
            (prediction(y + step * e) - half @ x)[i] / step for i, e in enumerate(np.eye(8))
        )
        with rejects(broken):
            assert at_limit.sum() == 2 * np.count_nonzero(x)
            assert abs(divergence - rank) < 1e-3


@pytest.mark.claim("prop-monte-carlo-divergence")
@pytest.mark.parametrize("broken", [None, "one sign for all", "half the variance"])
def test_random_signs(rng, broken):
    for _ in range(3):
        A, _, _ = instance(rng)
        P = influence(A, 10 ** rng.uniform(-2, 0))
        b = rng.choice([-1.0, 1.0], (200_000, 12))
        if broken == "one sign for all":
            b = b[:, :1] * np.ones(12)
        traces = np.sum(b * (b @ P), axis=1)
        variance = 2 * (np.sum(P**2) - np.sum(np.diag(P) ** 2))
        if broken == "half the variance":
            variance /= 2
        with rejects(broken):
            assert near_zero(traces - np.trace(P))
            assert np.var(traces) == pytest.approx(variance, rel=0.05)
            assert variance <= 2 * np.trace(P)


@pytest.mark.claim("thm-sure-ratio")
@pytest.mark.parametrize("broken", [None, "the risk ratio is 1", "few noise variances"])
def test_risk_of_the_chosen_parameter(rng, broken):
    """Failures are rarer than the bound; with a small risk the bound would say nothing."""
    m = 40 if broken == "few noise variances" else 40_000
    a = np.linspace(0.5, 1.0, m)  # eigenvalues of A Aᵀ
    z, lams, epsilon = 2 * rng.standard_normal(m), np.array([0.01, 0.1, 1.0]), 0.5
    phi = a / (a + lams[:, None])
    risk = (1 - phi) ** 2 @ z**2 + np.sum(phi**2, axis=1)
    bound = 8 / epsilon**2 * np.sum(1 / risk)
    ratios = []
    for _ in range(200):
        y = z + rng.standard_normal(m)
        sure = (1 - phi) ** 2 @ y**2 + 2 * phi.sum(axis=1)
        ratios.append(risk[sure.argmin()] / risk.min())
    limit = 0.999 if broken == "the risk ratio is 1" else (1 + epsilon) / (1 - epsilon)
    with rejects(broken):
        assert bound < 0.05
        assert np.mean(np.array(ratios) > limit) <= bound


@pytest.mark.claim("thm-sure-ratio")
@pytest.mark.parametrize("broken", [None, "a quarter of the variance"])
def test_variance_in_the_proof(rng, broken):
    """Var(SURE - c) is at most 8 σ² r, and not much smaller where nothing is regularized."""
    factor = 2 if broken else 8
    with rejects(broken):
        for lam in (1e-6, 1.0, 100.0):
            A, z, noise_std = instance(rng)
            P = influence(A, lam)
            e = noise_std * rng.standard_normal((100_000, 12))
            y = z + e
            sure = np.sum((y - y @ P) ** 2, axis=1) - np.sum(e**2, axis=1)
            risk = np.sum((z - P @ z) ** 2) + noise_std**2 * np.sum(P**2)
            # For P a projection the variance is 2σ⁴ tr P, twice σ² times the risk.
            assert np.var(sure) <= factor * noise_std**2 * risk * (0.9 if broken else 1.01)


@pytest.mark.claim("prop-sure-fixed-n")
@pytest.mark.parametrize("broken", [None, "the limit for equal columns", "twice the variance"])
def test_limit_for_a_fixed_number_of_unknowns(rng, broken):
    scales, x = np.array([2.0, 1.0, 0.5]), np.array([1.0, -0.5, 0.5])
    limit = np.sum(scales**-2) / np.sum((x / scales) ** 2)
    if broken == "the limit for equal columns":
        limit = 3 / np.sum(x**2)
    grid = np.geomspace(0.1, 300, 60)
    claimed = np.sqrt(2) if broken == "twice the variance" else 1.0
    spread = []
    for m in (1000, 64_000):
        logs = []
        for _ in range(12):
            A = scales * rng.standard_normal((m, 3))
            lam = choice.sure(A, A @ x + rng.standard_normal(m), claimed, grid=grid).lam
            logs.append(np.log(lam / limit))
        spread.append(np.sqrt(np.mean(np.square(logs))))
    # The minimizer of the risk, for the last matrix.
    a, V = np.linalg.eigh(A.T @ A)
    fine = np.geomspace(0.1, 300, 4001)[:, None]
    risk = np.sum((fine**2 * (V.T @ x) ** 2 + a) * a / (a + fine) ** 2, axis=1)
    with rejects(broken):
        assert abs(np.log(fine[risk.argmin(), 0] / limit)) < 0.05
        assert spread[1] < 0.5 * spread[0]
        assert spread[1] < 0.1
