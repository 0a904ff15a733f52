"""The claims of section 04/09 (a tournament), on random instances, broken once each."""

import numpy as np
import pytest
from claims import rejects
from scipy.stats import binom

from course_lib import choice

TRIALS = 20_000


def coverage(draws, median, order):
    """How often the order-th value from below and from above enclose the median."""
    x = np.sort(draws, axis=1)
    return np.mean((x[:, order - 1] <= median) & (median <= x[:, -order]))


@pytest.mark.claim("prop-median-interval")
@pytest.mark.parametrize("broken", [None, "the order is one too large"])
def test_order_statistics_enclose_the_median(rng, broken):
    """Exact without ties, at least that much with ties and with infinite values."""
    with rejects(broken):
        for size, order in ((6, 1), (11, 3), (20, 6), (21, 11)):
            used = order + 1 if broken and order < size // 2 else order
            bound = 1 - 2 * binom.cdf(order - 1, size, 0.5)
            noise = 4 * np.sqrt(max(bound * (1 - bound), 1 / TRIALS) / TRIALS)
            skew = rng.exponential(size=(TRIALS, size))
            assert abs(coverage(skew, np.log(2), used) - bound) < noise
            # More than half of the values are infinite, and then the median is.
            often = np.where(rng.random((TRIALS, size)) < 0.6, np.inf, skew)
            assert coverage(often, np.inf, used) > bound - noise
            die = rng.integers(1, 7, size=(TRIALS, size))
            for median in (3, 3.5, 4):
                assert coverage(die, median, used) > bound - noise


def instance(rng):
    """A problem with rank deficient D, data that contain noise, and a grid of candidates."""
    A = rng.standard_normal((14, 9)) * 10.0 ** -np.arange(9)
    D = np.diff(np.eye(9), axis=0)
    return choice.smoother(A, D), rng.standard_normal(14), np.geomspace(1e-8, 1e4, 60)


def criteria(S, y, grid):
    """f and g of SURE and of the evidence, f + s²g being the criterion for the told level s."""
    fit, penalized = S.fit(y), S.d > 0
    quadratic = fit.table(grid, lambda kept, lost: lost @ fit.power) + fit.outside
    trace = fit.table(grid, lambda kept, lost: kept.sum(axis=1))
    complexity = fit.table(grid, lambda kept, lost: -np.log(lost[:, penalized]).sum(axis=1))
    return (fit.norms(grid)[0] ** 2, 2 * trace), (quadratic, complexity)


@pytest.mark.claim("prop-told-level")
@pytest.mark.parametrize("broken", [None, "the sign of the complexity"])
def test_a_larger_told_level_never_makes_lambda_smaller(rng, broken):
    levels, sign, moved = np.geomspace(0.2, 3.0, 12), -1 if broken else 1, 0
    with rejects(broken):
        for _ in range(8):
            S, y, grid = instance(rng)
            for f, g in criteria(S, y, grid):
                chosen = [int(np.argmin(f + sign * s**2 * g)) for s in levels]
                assert (np.diff(chosen) >= 0).all()
                moved += chosen[-1] > chosen[0]
        assert moved > 4


@pytest.mark.claim("prop-told-level")
@pytest.mark.parametrize("broken", [None, "the levels fall"])
def test_the_rules_of_the_library_follow_the_told_level(rng, broken):
    with rejects(broken):
        for _ in range(5):
            S, y, grid = instance(rng)
            smallest, largest = S.fit(y).norms([1e-12, 1e12])[0]
            deltas = smallest + (largest - smallest) * np.array([0.1, 0.3, 0.6, 0.9])
            deltas = deltas[::-1] if broken else deltas
            stds = deltas / np.sqrt(14)
            for lams in (
                [choice.sure(S, y, std, grid=grid).lam for std in stds],
                [choice.evidence(S, y, noise_std=std, grid=grid).lam for std in stds],
            ):
                assert (np.diff(np.log(lams)) > -1e-5).all()
            for tau in (1.0, 1.5):
                lams = [choice.discrepancy(S, y, delta / tau, tau=tau).lam for delta in deltas]
                assert (np.diff(lams) > 0).all()
