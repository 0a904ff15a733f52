"""Claims of section 3.8: the dual of denoising, a step, PDHG."""

from itertools import islice

import numpy as np
import pytest
from claims import rejects

from course_lib.functionals import box, l1, least_squares, total_variation
from course_lib.operators import difference, gradient
from course_lib.proximal import pdhg, prox_tv


@pytest.mark.claim("thm-rof-dual")
@pytest.mark.parametrize("broken", [None, "feasible", "sign"])
def test_gap_bounds_the_objective_and_the_dual_gives_the_solution(broken):
    with rejects(broken):
        for seed in range(4):
            rng = np.random.default_rng(seed)
            y, lam = rng.standard_normal((7, 9)), rng.uniform(0.1, 1.0)
            D, tv = gradient((7, 9)), total_variation((7, 9))

            def value(x, y=y, lam=lam, tv=tv):
                return 0.5 * np.sum((x - y) ** 2) + lam * float(tv(x))

            best = prox_tv(y, lam, rtol=1e-11, max_iter=100_000)
            p = best.state.dual
            sign = -1 if broken == "sign" else 1
            np.testing.assert_allclose(best.x, y - sign * lam * (D.H @ p), atol=1e-4)
            assert best.x.mean() == pytest.approx(y.mean(), abs=1e-9)
            for _ in range(5):
                x = best.x + 0.3 * rng.standard_normal((7, 9))
                q = p + 0.5 * rng.standard_normal(p.shape)
                length = np.sqrt(np.sum(q**2, axis=0))
                q = 3 * q / length if broken == "feasible" else q / np.maximum(1, length)
                Dx = D @ x
                first = lam * np.sum(np.sqrt(np.sum(Dx**2, axis=0)) - np.sum(q * Dx, axis=0))
                gap = first + 0.5 * np.sum((x - y + lam * (D.H @ q)) ** 2)
                assert first >= -1e-12
                assert value(x) - value(best.x) <= gap + 1e-8
                assert 0.5 * np.sum((x - best.x) ** 2) <= value(x) - value(best.x) + 1e-6


@pytest.mark.claim("prop-tv-step")
@pytest.mark.parametrize("broken", [None, "loss", "place"])
@pytest.mark.slow
def test_a_step_keeps_its_place_and_loses_height(broken):
    with rejects(broken):
        for seed in range(6):
            rng = np.random.default_rng(seed)
            n1, n2 = (int(n) for n in rng.integers(1, 9, 2))
            a, b = 0.5, 0.5 + rng.uniform(1, 3)
            edge = (b - a) / (1 / n1 + 1 / n2)
            for share in (0.3, 0.9, 1.4):
                lam = share * edge
                x = prox_tv(np.repeat([a, b], [n1, n2]), lam, rtol=1e-11, max_iter=100_000).x
                loss = 2 if broken == "loss" else 1
                shift = min(lam, edge)
                levels = a + loss * shift / n1, b - loss * shift / n2
                sizes = (n1 + 1, n2 - 1) if broken == "place" and n2 > 1 else (n1, n2)
                np.testing.assert_allclose(x, np.repeat(levels, sizes), atol=1e-4)


@pytest.mark.claim("alg-pdhg")
@pytest.mark.parametrize("broken", [None, "extrapolation", "adjoint"])
def test_steps_are_the_printed_ones(broken):
    with rejects(broken):
        for seed in range(4):
            rng = np.random.default_rng(seed)
            K, y, lam = rng.standard_normal((8, 6)), rng.standard_normal(6), 0.7
            eta, sigma = 0.2, 0.3
            f = least_squares(None, y)
            x, p = np.zeros(6), np.zeros(8)
            x_ext = x
            states = pdhg(K, f, lam * l1(), x, step=eta, dual_step=sigma)
            next(states)
            for state in islice(states, 6):
                # The conjugate of λ‖·‖₁ is the indicator of |p| ≤ λ, its proximal map clips.
                p = np.clip(p + sigma * K @ x_ext, -lam, lam)
                sign = -1 if broken == "adjoint" else 1
                x, x_old = f.prox(x - sign * eta * K.T @ p, eta), x
                x_ext = x if broken == "extrapolation" else 2 * x - x_old
                np.testing.assert_allclose(state.x, x, atol=1e-10)
                np.testing.assert_allclose(state.dual, p, atol=1e-10)


@pytest.mark.claim("thm-pdhg")
@pytest.mark.parametrize("broken", [None, "step"])
@pytest.mark.slow
def test_pdhg_converges_at_the_limit_of_the_step(broken):
    """The proof is cited; f without strong convexity, at the limit and beyond it."""
    with rejects(broken):
        for seed in range(4):
            rng = np.random.default_rng(seed)
            D = difference(12).to_dense()
            x_true = np.repeat(rng.standard_normal(3), 4)
            size = np.sqrt(6.0 if broken else 1.0) / np.linalg.norm(D, 2)
            y = D @ x_true + 0.1 * rng.standard_normal(11)
            g = least_squares(None, y)
            states = pdhg(D, box(-1.0, 1.0), g, np.zeros(12), step=size, dual_step=size)
            *_, before, last = islice(states, 4001)
            x = last.x
            np.testing.assert_allclose(x, before.x, atol=1e-8)
            np.testing.assert_allclose(last.dual, before.dual, atol=1e-8)
            # Projected gradient descent on the same problem, to rounding.
            z = np.zeros(12)
            for _ in range(20_000):
                z = np.clip(z - 0.25 * D.T @ (D @ z - y), -1, 1)
            value = [np.sum((D @ w - y) ** 2) for w in (x, z)]
            assert value[0] == pytest.approx(value[1], abs=1e-8)
