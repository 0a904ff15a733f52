"""The claims of section 04/05 (discrepancy principle), on random instances, broken once each."""

import math

import numpy as np
import pytest
from claims import rejects

from course_lib import choice, filters, operators


def residual(A, y, lam, D):
    return np.linalg.norm(A @ filters.tikhonov(A, y, lam, D).x - y)


@pytest.mark.claim("thm-discrepancy-interval")
@pytest.mark.parametrize("broken", [None, "the lower end is 0", "the upper end is the norm of y"])
def test_residual_rises_from_one_end_to_the_other(rng, broken):
    """Rank-deficient A and D with a null space; the limits, by other formulas."""
    with rejects(broken):
        for _ in range(5):
            A = rng.standard_normal((9, 4)) @ rng.standard_normal((4, 6))
            y, D = rng.standard_normal(9), operators.difference(6).to_dense()
            lams = np.geomspace(1e-10, 1e10, 60)
            values = np.array([residual(A, y, lam, D) for lam in lams])
            assert (np.diff(values) > -1e-9).all()
            inner = (lams > 1e-4) & (lams < 1e4)
            assert (np.diff(values[inner]) > 0).all()
            one = A @ np.ones(6)
            low = np.linalg.norm(y - A @ np.linalg.pinv(A, rcond=1e-10) @ y)
            high = np.linalg.norm(y - one * (one @ y) / (one @ one))
            if broken == "the lower end is 0":
                low = 0.0
            if broken == "the upper end is the norm of y":
                high = np.linalg.norm(y)
            assert values[0] == pytest.approx(low, rel=1e-4)
            assert values[-1] == pytest.approx(high, rel=1e-6)


@pytest.mark.claim("thm-discrepancy-interval")
@pytest.mark.parametrize("broken", [None, "each level has a λ", "two λ with one residual"])
def test_a_parameter_inside_the_interval_only(rng, broken):
    with rejects(broken):
        for _ in range(10):
            A, y = rng.standard_normal((8, 5)), rng.standard_normal(8)
            D = operators.difference(5).to_dense()
            one = A @ np.ones(5)
            low = np.linalg.norm(y - A @ np.linalg.lstsq(A, y)[0])
            high = np.linalg.norm(y - one * (one @ y) / (one @ one))
            for level in (0.98 * low, 1.01 * low, (low + high) / 2, 0.99 * high, 1.02 * high):
                try:
                    lam = choice.discrepancy(A, y, level, D, tau=1.0).lam
                except ValueError:
                    assert broken != "each level has a λ"
                    assert not low < level < high
                    continue
                assert low < level < high
                other = 1.5 * lam if broken == "two λ with one residual" else lam
                assert residual(A, y, other, D) == pytest.approx(level, rel=1e-7)


@pytest.mark.claim("thm-discrepancy-interval")
@pytest.mark.parametrize("broken", [None, "y has a part that D sees"])
def test_the_residual_is_constant_if_the_ends_are_equal(rng, broken):
    A, D = rng.standard_normal((8, 5)), operators.difference(5).to_dense()
    Q = np.linalg.qr(A, mode="complete")[0]
    # A constant explains all that any x explains.
    y = A @ np.full(5, 2.0) + Q[:, 5:] @ rng.standard_normal(3)
    if broken:
        y = y + A @ np.arange(5.0)
    with rejects(broken):
        values = [residual(A, y, lam, D) for lam in (1e-4, 1.0, 1e4)]
        assert np.ptp(values) < 1e-8


@pytest.mark.claim("prop-noise-size")
@pytest.mark.parametrize("broken", [None, "the norm is that of one entry", "rank for nullity"])
def test_size_of_white_noise(rng, broken):
    m, r, sigma, count = 40, 12, 0.7, 4000
    A = rng.standard_normal((m, r)) @ rng.standard_normal((r, 20))
    e = sigma * rng.standard_normal((count, m))
    squares = np.sum(e**2, axis=1)
    outside = e - e @ np.linalg.pinv(A, rcond=1e-10).T @ A.T
    mean = sigma**2 if broken == "the norm is that of one entry" else m * sigma**2
    kept = r if broken == "rank for nullity" else m - r
    with rejects(broken):
        assert squares.mean() == pytest.approx(mean, rel=0.02)
        assert np.mean(np.sum(outside**2, axis=1)) == pytest.approx(kept * sigma**2, rel=0.02)
        for t in (0.3, 0.5, 1.0):
            share = np.mean(np.abs(squares - m * sigma**2) > t * m * sigma**2)
            assert share <= 2 / (m * t**2)
    assert squares.var() == pytest.approx(2 * m * sigma**4, rel=0.1)


@pytest.mark.claim("prop-noise-size")
@pytest.mark.parametrize("broken", [None, "the residual of the truth", "one trace only"])
def test_expected_residual_for_a_fixed_parameter(rng, broken):
    m, sigma, lam = 15, 0.5, 0.3
    A, D = rng.standard_normal((m, 8)), operators.difference(8).to_dense()
    x = rng.standard_normal(8)
    P = A @ np.linalg.solve(A.T @ A + lam * D.T @ D, A.T)
    y = A @ x + sigma * rng.standard_normal((6000, m))
    measured = np.mean(np.sum((y - y @ P.T) ** 2, axis=1))
    trace = m - 2 * np.trace(P) + np.trace(P @ P)
    if broken == "one trace only":
        trace = m - np.trace(P @ P) / 2
    expected = np.sum((A @ x - P @ A @ x) ** 2) + sigma**2 * trace
    if broken == "the residual of the truth":
        expected = m * sigma**2
    with rejects(broken):
        assert measured == pytest.approx(expected, rel=0.03)


def instance(rng, nu, n=40):
    """Singular values s, truth and source element in the basis of the singular vectors."""
    s = np.sort(rng.uniform(0.3, 1, n) * np.arange(1.0, n + 1) ** -rng.uniform(1, 2))[::-1]
    w = rng.standard_normal(n)
    return s, s ** (2 * nu) * w, w


def chosen(s, y, delta, tau):
    if tau * delta >= np.linalg.norm(y):
        return np.zeros_like(y)
    return choice.discrepancy(operators.diagonal(s), y, delta, tau=tau, grid=[0.1, 1, 10]).x


@pytest.mark.claim("thm-discrepancy-rate")
@pytest.mark.parametrize("broken", [None, "the level is 30 times too small"])
def test_accuracy_of_the_discrepancy_principle(rng, broken):
    with rejects(broken):
        for nu in (0.1, 0.25, 0.5):
            for tau in (1.0, 1.1, 2.0):
                s, x, w = instance(rng, nu)
                size = np.linalg.norm(w)
                for delta in (1e-1, 1e-3, 1e-5):
                    e = rng.standard_normal(s.size) * (rng.random(s.size) < 0.3)
                    e[-1] += 1.0
                    y = s * x + delta * e / np.linalg.norm(e)
                    found = chosen(s, y, delta / (30 if broken else 1), tau)
                    error = np.linalg.norm(found - x)
                    bound = (2 * size) ** (1 / (2 * nu + 1))
                    bound *= ((1 + tau) * delta) ** (2 * nu / (2 * nu + 1))
                    assert error <= bound * (1 + 1e-9)
                    assert np.linalg.norm(found) <= np.linalg.norm(x) * (1 + 1e-9)
                    # Part 1, for any w: with a part of the coefficients only.
                    for k in (3, 10, 30):
                        part = np.where(np.arange(s.size) < k, x / s, 0)
                        rest = np.linalg.norm(x - s * part) * np.linalg.norm(x)
                        square = 2 * (1 + tau) * np.linalg.norm(part) * delta + 4 * rest
                        assert error**2 <= square * (1 + 1e-9)
                    if nu == 0.5:
                        assert error <= math.sqrt(2 * (1 + tau) * size * delta) * (1 + 1e-9)


@pytest.mark.claim("thm-discrepancy-saturation")
@pytest.mark.parametrize("broken", [None, "the choice that knows ν", "noise along another vector"])
def test_saturation_of_the_discrepancy_principle(rng, broken):
    """However smooth the truth is; with the λ of the source condition the bound would fail."""
    with rejects(broken):
        for nu in (0.1, 0.5, 1.0, 2.0):
            for tau in (1.0, 1.5):
                n = 60
                s = np.arange(1.0, n + 1) ** -2.0
                x = s ** (2 * nu) * rng.uniform(0.5, 1.5, n) * rng.choice([-1.0, 1.0], n)
                C = 2 * (1 + tau) * s[0] ** 2 / np.linalg.norm(s * x)
                for j in (2, 10, 30, 59):
                    delta = s[j] ** 2 / C
                    e = np.zeros(n)
                    hit = 0 if broken == "noise along another vector" else j
                    e[hit] = -delta * np.sign(x[hit])
                    y = s * x + e
                    assert tau * delta < np.linalg.norm(y)
                    found = chosen(s, y, delta, tau)
                    if broken == "the choice that knows ν":
                        lam = delta ** (2 / (2 * min(nu, 1) + 1))
                        found = s * y / (s**2 + lam)
                    error = np.linalg.norm(found - x)
                    assert error >= 0.5 * math.sqrt(delta / C) * (1 - 1e-6)
