"""Claims of section 3.3: proximal maps, one step of ISTA, its rate and its two phases."""

from itertools import islice, pairwise

import numpy as np
import pytest
from claims import rejects

from course_lib.functionals import box, elastic_net, group_l1, l1, least_squares, soft_threshold
from course_lib.proximal import ista, lasso


def instance(seed, m=15, n=24):
    rng = np.random.default_rng(seed)
    A, y = rng.standard_normal((m, n)), rng.standard_normal(m)
    return rng, A, y, 0.2 * np.max(abs(A.T @ y)), np.linalg.norm(A, 2) ** 2


@pytest.mark.claim("thm-prox")
@pytest.mark.parametrize("broken", [None, "step", "expansive"])
def test_proximal_map_is_characterized_and_firmly_nonexpansive(broken):
    rng = np.random.default_rng(0)
    with rejects(broken):
        for R in (l1(), elastic_net(0.7, 0.4), box(-0.5, 1.0), group_l1(0)):
            for _ in range(40):
                step = rng.uniform(0.1, 2)
                v, w, z = 2 * rng.standard_normal((3, 6))
                p, q = R.prox(v, step), R.prox(w, step)
                used = 0.5 * step if broken == "step" else step
                for point in (3 * z, np.clip(z, -0.5, 1.0)):
                    assert R(point) >= R(p) + (v - p) @ (point - p) / used - 1e-10
                factor = 1.5 if broken == "expansive" else 1.0
                assert factor * np.sum((p - q) ** 2) <= (v - w) @ (p - q) + 1e-12


@pytest.mark.claim("thm-soft-threshold")
@pytest.mark.parametrize("broken", [None, "threshold", "sign"])
def test_soft_threshold_minimizes(broken):
    rng = np.random.default_rng(1)
    grid = np.linspace(-5, 5, 20_001)
    with rejects(broken):
        for _ in range(200):
            v, lam = rng.uniform(-4, 4), rng.uniform(0, 3)
            best = grid[np.argmin(0.5 * (grid - v) ** 2 + lam * abs(grid))]
            used = 0.5 * lam if broken == "threshold" else lam
            x = soft_threshold(np.array([v]), used)[0]
            x = abs(x) if broken == "sign" else x
            assert abs(x - best) <= 5e-4
            assert x == pytest.approx(v - np.clip(v, -used, used)) or broken == "sign"


@pytest.mark.claim("alg-ista")
@pytest.mark.parametrize("broken", [None, "threshold", "gradient"])
def test_steps_are_the_printed_ones(broken):
    with rejects(broken):
        for seed in range(5):
            rng, A, y, lam, L = instance(seed)
            x = rng.standard_normal(24)
            states = ista(least_squares(A, y), lam * l1(), x, step=0.8 / L)
            factor = 2.0 if broken == "gradient" else 1.0
            for state in islice(states, 6):
                np.testing.assert_allclose(state.x, x, atol=1e-12)
                v = x - factor * 0.8 / L * A.T @ (A @ x - y)
                x = soft_threshold(v, lam if broken == "threshold" else 0.8 / L * lam)


@pytest.mark.claim("lem-prox-step")
@pytest.mark.parametrize("broken", [None, "lipschitz", "half"])
def test_inequality_of_one_step(broken):
    with rejects(broken):
        for seed in range(30):
            rng, A, y, lam, L = instance(seed)
            f, R = least_squares(A, y), lam * l1()
            eta = rng.uniform(0.2, 3) / L
            # A random point, and one in the steepest direction, where the bound is sharp.
            top = np.linalg.svd(A)[2][0]
            for x in (rng.standard_normal(24), 5 * top):
                up = R.prox(x - eta * f.gradient(x), eta)
                for z in (x, up + top, rng.standard_normal(24), lasso(A, y, lam).x):
                    lip = 0.1 * L if broken == "lipschitz" else L
                    half = 1.0 if broken == "half" else 0.5
                    side = np.sum((x - z) ** 2) - np.sum((up - z) ** 2)
                    rest = half * (1 / eta - lip) * np.sum((up - x) ** 2)
                    assert f(up) + R(up) <= f(z) + R(z) + side / (2 * eta) - rest + 1e-8


@pytest.mark.slow
@pytest.mark.claim("thm-ista")
@pytest.mark.parametrize("broken", [None, "descent", "rate"])
def test_ista_decreases_converges_and_keeps_its_rate(broken):
    with rejects(broken):
        for seed in range(6):
            _, A, y, lam, L = instance(seed)
            f, R = least_squares(A, y), lam * l1()
            best = lasso(A, y, lam, rtol=1e-13)
            eta = 1.95 / L
            descent = 1 / eta - (0 if broken == "descent" else L / 2)
            states = list(islice(ista(f, R, np.zeros(24), step=eta), 2500))
            values = np.array([float(f(s.x) + R(s.x)) for s in states])
            moves = np.array([np.sum((b.x - a.x) ** 2) for a, b in pairwise(states)])
            assert (values[1:] <= values[:-1] - descent * moves + 1e-9).all()
            assert np.linalg.norm(states[-1].x - best.x) < 1e-5
            states = islice(ista(f, R, np.zeros(24), step=1 / L), 301)
            gaps = np.array([float(f(s.x) + R(s.x)) for s in states]) - best.state.objective
            k = np.arange(1, 301)
            power = 3 if broken == "rate" else 1
            assert (gaps[1:] <= L * np.sum(best.x**2) / (2 * k**power) + 1e-10).all()
            np.testing.assert_allclose(
                R.prox(best.x - f.gradient(best.x) / L, 1 / L), best.x, atol=1e-8
            )


@pytest.mark.claim("prop-ista-phases")
@pytest.mark.parametrize("broken", [None, "factor", "support"])
def test_support_is_found_and_then_the_rate_is_linear(broken):
    with rejects(broken):
        for seed in range(6):
            _, A, y, lam, L = instance(seed, 30, 40)
            best = lasso(A, y, lam, rtol=1e-14)
            S, eta = best.x != 0, 1.5 / L
            assert (abs(best.state.c[~S]) < lam * (1 - 1e-6)).all()
            states = ista(least_squares(A, y), lam * l1(), np.zeros(40), step=eta)
            xs = [s.x for s in islice(states, 1500)]
            right = [np.array_equal(np.sign(x), np.sign(best.x)) for x in xs]
            start = 3 if broken == "support" else 1500 - right[::-1].index(False)
            assert start < 1000
            assert all(right[start:])
            q = np.max(abs(1 - eta * np.linalg.svd(A[:, S])[1] ** 2))
            q = 0.5 * q if broken == "factor" else q
            errors = [np.linalg.norm(x - best.x) for x in xs[start : start + 40]]
            for old, new in pairwise(errors):
                assert new <= q * old + 1e-11
