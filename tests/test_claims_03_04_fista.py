"""Claims of section 3.4: FISTA, its numbers, its rate, what is possible, restart."""

from itertools import islice

import numpy as np
import pytest
from claims import rejects

from course_lib.functionals import box, l1, least_squares
from course_lib.iterate import run
from course_lib.linear import cg
from course_lib.proximal import fista, lasso


def instance(seed, m=15, n=24):
    rng = np.random.default_rng(seed)
    A, y = rng.standard_normal((m, n)), rng.standard_normal(m)
    lam = 0.1 * np.max(abs(A.T @ y))
    return A, y, lam, np.linalg.norm(A, 2) ** 2


@pytest.mark.claim("alg-fista")
@pytest.mark.parametrize("broken", [None, "momentum", "start"])
def test_steps_are_the_printed_ones(broken):
    with rejects(broken):
        for seed in range(4):
            A, y, lam, L = instance(seed)
            f, R, eta = least_squares(A, y), lam * l1(), 0.9 / L
            x = x_old = x_ext = np.random.default_rng(seed).standard_normal(24)
            t = 2.0 if broken == "start" else 1.0
            states = fista(f, R, x, step=eta)
            next(states)
            for state in islice(states, 8):
                x_old, x = x, R.prox(x_ext - eta * f.gradient(x_ext), eta)
                np.testing.assert_allclose(state.x, x, atol=1e-12)
                t_new = (1 + np.sqrt(1 + 4 * t**2)) / 2
                factor = t / t_new if broken == "momentum" else (t - 1) / t_new
                x_ext, t = x + factor * (x - x_old), t_new


@pytest.mark.claim("lem-fista-t")
@pytest.mark.parametrize("broken", [None, "growth"])
def test_numbers_of_fista(broken):
    A, y, lam, L = instance(0)
    states = fista(least_squares(A, y), lam * l1(), np.zeros(24), step=1 / L)
    t = np.array([s.t for s in islice(states, 400)])
    k = np.arange(1, t.size + 1)
    with rejects(broken):
        np.testing.assert_allclose(t[1:] ** 2 - t[1:], t[:-1] ** 2, rtol=1e-12)
        assert (t >= (k + (2 if broken else 1)) / 2).all()
        factor = (t[:-1] - 1) / t[1:]
        assert factor[0] == 0
        assert (factor < 1).all()
        assert factor[-1] > 0.99


@pytest.mark.claim("thm-fista")
@pytest.mark.parametrize("broken", [None, "rate", "step"])
def test_bound_holds_and_the_quantity_of_the_proof_falls(broken):
    with rejects(broken):
        for seed in range(8):
            A, y, lam, L = instance(seed)
            f, R = least_squares(A, y), lam * l1()
            best = lasso(A, y, lam, rtol=1e-13)
            eta = (1.6 if broken == "step" else 1.0) / L
            states = list(islice(fista(f, R, np.zeros(24), step=eta), 200))
            gaps = np.array([float(f(s.x) + R(s.x)) for s in states]) - best.state.objective
            k = np.arange(1, 200)
            power = 3 if broken == "rate" else 2
            bound = 2 * np.sum(best.x**2) / (eta * (k + 1.0) ** power)
            assert (gaps[1:] <= bound + 1e-10).all()
            quantity = []
            for old, new, gap in zip(states[:-1], states[1:], gaps[1:], strict=True):
                u = old.t * new.x - (old.t - 1) * old.x - best.x
                quantity.append(2 * eta * old.t**2 * gap + u @ u)
            assert quantity[0] <= np.sum(best.x**2) * (1 + 1e-9)
            assert (np.diff(quantity) <= 1e-7 * quantity[0]).all()


@pytest.mark.claim("thm-lower-bound")
@pytest.mark.parametrize("broken", [None, "constant"])
def test_no_combination_of_gradients_is_better(broken):
    """The chain of 2k + 1 points: the best point of the span of k gradients, by CG."""
    with rejects(broken):
        for k in (1, 3, 10, 30):
            n = 2 * k + 1
            H = (2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)) / 4
            b = np.eye(n)[0] / 4
            x_star = np.linalg.solve(H, b)
            # CG minimizes the quadratic over that span.
            x = run(cg(H, b), max_iter=k).x
            gap = 0.5 * (x - x_star) @ H @ (x - x_star)
            share = 3 / 32 if broken is None else 0.5
            # The gradient's constant is at most 1; nothing else enters.
            assert np.linalg.norm(H, 2) < 1
            assert gap >= share * np.linalg.norm(H, 2) * np.sum(x_star**2) / (k + 1) ** 2


@pytest.mark.slow
@pytest.mark.claim("prop-restart")
@pytest.mark.parametrize("broken", [None, "length"])
def test_each_round_halves_the_gap(broken):
    with rejects(broken):
        for seed in range(5):
            rng = np.random.default_rng(seed)
            A = rng.standard_normal((12, 12)) @ np.diag(np.geomspace(1, 0.02, 12))
            s = np.linalg.svd(A)[1]
            f = least_squares(A, A @ rng.standard_normal(12))
            K = int(np.ceil(np.sqrt(8) * s[0] / s[-1]))
            K = max(1, K // 300) if broken else K
            x, values = np.zeros(12), []
            for _ in range(5):
                values.append(float(f(x)))
                states = fista(f, box(), x, step=1 / s[0] ** 2)
                x = run(states, max_iter=K, check_every=K).x
            values = np.array(values)
            assert (values[1:] <= 0.5 * values[:-1] + 1e-28).all()
