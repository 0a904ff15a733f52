"""The claims of section 04/08 (search), on random instances, broken once each."""

import math

import numpy as np
import pytest
from claims import rejects

from course_lib import choice, filters, operators

G = (math.sqrt(5) - 1) / 2


@pytest.mark.claim("prop-log-scale")
@pytest.mark.parametrize("broken", [None, "half of the bound", "relative to the other solution"])
def test_a_step_in_theta_changes_little(rng, broken):
    with rejects(broken):
        for _ in range(10):
            A, y = rng.standard_normal((7, 9)) * np.geomspace(1, 1e-3, 9), rng.standard_normal(7)
            for lam in 10.0 ** rng.uniform(-6, 2, 4):
                for h in (0.01, 0.5, 3.0):
                    x = filters.tikhonov(A, y, lam).x
                    moved = filters.tikhonov(A, y, lam * math.exp(h)).x
                    size = np.linalg.norm(
                        moved if broken == "relative to the other solution" else x
                    )
                    bound = (1 - math.exp(-h)) * size / (2 if broken == "half of the bound" else 1)
                    assert np.linalg.norm(moved - x) <= bound * (1 + 1e-8)


@pytest.mark.claim("prop-log-scale")
@pytest.mark.parametrize("broken", [None, "the grid is ten times as coarse"])
def test_a_grid_point_is_nearly_as_good(rng, broken):
    """For the nearest grid point on a logarithmic axis, and any point z."""
    with rejects(broken):
        for q in (1.2, 2.0, 5.0):
            for _ in range(20):
                A, y = rng.standard_normal((6, 4)), rng.standard_normal(6)
                z = filters.tikhonov(A, y, 1e-8).x
                lam = 10.0 ** rng.uniform(-1, 2)
                ratio = q**10 if broken else q
                grid = 1e-3 * ratio ** np.arange(100)
                near = grid[np.abs(np.log(grid / lam)).argmin()]
                x, other = (filters.tikhonov(A, y, value).x for value in (lam, near))
                change = abs(np.linalg.norm(other - z) - np.linalg.norm(x - z))
                assert change <= (math.sqrt(q) - 1) * np.linalg.norm(x) * (1 + 1e-8)


@pytest.mark.claim("prop-log-scale")
@pytest.mark.parametrize("broken", [None, "the factor λ", "the sign"])
def test_derivative_by_theta(rng, broken):
    """For a D with a null space; for x and for the filter factors."""
    with rejects(broken):
        for _ in range(5):
            A, y = rng.standard_normal((8, 6)), rng.standard_normal(8)
            D, lam, h = operators.difference(6).to_dense(), 10.0 ** rng.uniform(-2, 1), 1e-5
            x = filters.tikhonov(A, y, lam, D).x
            up, down = (filters.tikhonov(A, y, lam * math.exp(t), D).x for t in (h, -h))
            derivative = -lam * np.linalg.solve(A.T @ A + lam * D.T @ D, D.T @ D @ x)
            if broken == "the factor λ":
                derivative = derivative / lam
            if broken == "the sign":
                derivative = -derivative
            np.testing.assert_allclose((up - down) / (2 * h), derivative, atol=1e-7)
            fit = choice.smoother(A, D).fit(y)
            above, kept, below = (
                fit.table(lam * math.exp(t), lambda kept, lost: kept)[0] for t in (h, 0, -h)
            )
            sign = 1 if broken == "the sign" else -1
            np.testing.assert_allclose(
                (above - below) / (2 * h), sign * kept * (1 - kept), atol=1e-8
            )


@pytest.mark.claim("thm-golden-section")
@pytest.mark.parametrize("broken", [None, "two minima"])
def test_golden_section_keeps_the_minimizer(rng, broken):
    """Unimodal, but neither convex nor differentiable; the values are counted."""
    with rejects(broken):
        for _ in range(20):
            low, high = -rng.uniform(1, 10), rng.uniform(1, 10)
            target, left, right = rng.uniform(low, high), *rng.uniform(0.2, 3, 2)
            visited = []

            def f(t, target=target, left=left, right=right, visited=visited):
                visited.append(t)
                u = t - target
                value = math.tanh(abs(u) ** (left if u < 0 else right))
                # A second, deeper valley that a search over the whole interval may miss.
                return value - 2 * (math.exp(-((5 * u - 5) ** 2)) if broken else 0)

            found = choice.golden_section(f, low, high)
            best = target
            if broken:
                fine = np.linspace(low, high, 20_001)
                best = fine[np.argmin([f(t) for t in fine])]
            else:
                steps = math.ceil(math.log(1e-6 / (high - low)) / math.log(G))
                assert len(visited) <= steps + 2
            assert abs(found - best) <= 1e-3 if broken else abs(found - best) <= 1e-6


@pytest.mark.claim("thm-golden-section")
@pytest.mark.parametrize("broken", [None, "divided at one half"])
def test_the_length_falls_by_the_golden_ratio_and_points_are_used_again(rng, broken):
    """The interval after k values, reconstructed from the points that were visited."""
    visited = []

    def f(t):
        visited.append(t)
        return (t - 0.3) ** 2

    choice.golden_section(f, 0.0, 1.0)
    ratio = 0.5 if broken else G
    with rejects(broken):
        low, high = 0.0, 1.0
        inner = {visited[0], visited[1]}
        assert sorted(inner) == pytest.approx([1 - ratio, ratio])
        for k, new in enumerate(visited[2:12], start=1):
            left, right = sorted(inner)
            low, high = (low, right) if f(left) < f(right) else (left, high)
            assert high - low == pytest.approx(ratio**k, rel=1e-9)
            old = left if high == right else right
            inner = {old, new}
            expected = [high - ratio * (high - low), low + ratio * (high - low)]
            assert sorted(inner) == pytest.approx(expected, rel=1e-9)


@pytest.mark.claim("prop-few-probes")
@pytest.mark.parametrize("broken", [None, "the bound for m in the place of 1", "normal probes"])
def test_few_probes_for_large_problems(rng, broken):
    with rejects(broken):
        for m, count in ((12, 1), (60, 3)):
            A, lam = rng.standard_normal((m, m // 2)), 5.0
            P = A @ np.linalg.solve(A.T @ A + lam * np.eye(m // 2), A.T)
            rest = np.eye(m) - P
            trace = np.trace(rest)
            b = rng.choice([-1.0, 1.0], (4000, count, m))
            if broken == "normal probes":
                # Twice the norm: mean and variance are not those of signs.
                b = 1.5 * rng.standard_normal(b.shape)
            means = np.einsum("kji,il,kjl->kj", b, rest, b).mean(axis=1)
            assert means.mean() == pytest.approx(trace, rel=0.02)
            bound = math.sqrt(2 / (count * trace))
            if broken == "the bound for m in the place of 1":
                bound /= m
            assert np.std(means) / trace <= bound
            # The exact variance, which the bound estimates.
            exact = 2 * (np.sum(rest**2) - np.sum(np.diag(rest) ** 2)) / count
            assert np.var(means) == pytest.approx(exact, rel=0.15)
