"""Claims of section 3.5: the steps of ADMM and its convergence."""

from itertools import islice

import numpy as np
import pytest
from claims import rejects

from course_lib.functionals import l1, soft_threshold
from course_lib.iterate import run
from course_lib.operators import difference
from course_lib.proximal import admm, admm_rule, least_squares_step


def instance(seed, m=10, n=14):
    rng = np.random.default_rng(seed)
    A, y = rng.standard_normal((m, n)), rng.standard_normal(m)
    # Injective, so that the iterates converge too.
    K = np.vstack([difference(n).to_dense(), 0.3 * np.eye(n)])
    return rng, A, y, K, rng.uniform(0.1, 1.0), 10 ** rng.uniform(-1, 1)


@pytest.mark.claim("alg-admm")
@pytest.mark.parametrize("broken", [None, "sign", "threshold"])
def test_steps_are_the_printed_ones(broken):
    with rejects(broken):
        for seed in range(5):
            rng, A, y, K, lam, rho = instance(seed)
            x = rng.standard_normal(14)
            z, nu = K @ x, np.zeros(K.shape[0])
            states = admm(least_squares_step(A, y, K), lam * l1(), K, x, rho=rho)
            next(states)
            for state in islice(states, 6):
                H = A.T @ A + rho * K.T @ K
                x = np.linalg.solve(H, A.T @ y + rho * K.T @ (z - nu))
                level = lam if broken == "threshold" else lam / rho
                z = soft_threshold(K @ x + nu, level)
                nu = nu + (z - K @ x if broken == "sign" else K @ x - z)
                for ours, mine in ((state.x, x), (state.z, z), (state.nu, nu)):
                    np.testing.assert_allclose(ours, mine, atol=1e-9)


@pytest.mark.claim("lem-admm-steps")
@pytest.mark.parametrize("broken", [None, "residual", "scaling"])
def test_subgradients_after_each_step(broken):
    with rejects(broken):
        for seed in range(6):
            _, A, y, K, lam, rho = instance(seed)
            states = admm(least_squares_step(A, y, K), lam * l1(), K, np.zeros(14), rho=rho)
            z_old = next(states).z
            for state in islice(states, 12):
                q = state.nu if broken == "scaling" else rho * state.nu
                on = state.z != 0
                assert (abs(q) <= lam + 1e-9).all()
                np.testing.assert_allclose(q[on], lam * np.sign(state.z[on]), atol=1e-9)
                s = 0 if broken == "residual" else rho * K.T @ (state.z - z_old)
                np.testing.assert_allclose(A.T @ (A @ state.x - y), -K.T @ q - s, atol=1e-7)
                z_old = state.z


@pytest.mark.slow
@pytest.mark.claim("thm-admm")
@pytest.mark.parametrize("broken", [None, "residual", "quantity"])
def test_residuals_vanish_and_bound_the_objective(broken):
    with rejects(broken):
        for seed in range(6):
            rng, A, y, K, lam, rho = instance(seed)
            x_step, R = least_squares_step(A, y, K), lam * l1()

            def f(x, A=A, y=y):
                return 0.5 * np.sum((A @ x - y) ** 2)

            rule = admm_rule(K, rtol=1e-12)
            best = run(admm(x_step, R, K, np.zeros(14), rho=1.0), stop=rule, max_iter=50_000)
            x_star, q_star = best.x, best.state.dual
            value = f(x_star) + float(R(K @ x_star))
            states = list(islice(admm(x_step, R, K, rng.standard_normal(14), rho=rho), 4000))
            V = []
            for state in states[1:]:
                limit = np.linalg.norm(state.dual) * np.linalg.norm(state.r)
                if broken != "residual":
                    limit += np.linalg.norm(state.x - x_star) * np.linalg.norm(state.s)
                assert f(state.x) + float(R(state.z)) - value <= limit + 1e-8
                nu = state.nu if broken == "quantity" else state.nu - q_star / rho
                V.append(np.sum(nu**2) + np.sum((state.z - K @ x_star) ** 2))
            assert (np.diff(V) <= 1e-9 * V[0]).all()
            last = states[-1]
            assert np.linalg.norm(last.r) < 1e-6
            assert np.linalg.norm(last.s) < 1e-5
            assert f(last.x) + float(R(last.z)) == pytest.approx(value, abs=1e-5)
            np.testing.assert_allclose(last.x, x_star, atol=1e-4)


@pytest.mark.claim("thm-admm")
@pytest.mark.parametrize("broken", [None, "null spaces"])
@pytest.mark.slow
def test_iterates_converge_where_only_the_null_spaces_meet_in_zero(broken):
    """Differences are not injective; with a misfit that sees constants the iterates converge."""
    with rejects(broken):
        for seed in range(4):
            rng, A, y, _, lam, rho = instance(seed)
            K = difference(14).to_dense()
            if broken:
                A = A - A.mean(axis=1, keepdims=True)  # constants are in both null spaces

            def x_step(v, rho, A=A, y=y, K=K, rng=rng, loose=broken):
                H, b = A.T @ A + rho * K.T @ K, A.T @ y + rho * K.T @ v
                x = np.linalg.lstsq(H, b, rcond=1e-12)[0]
                # Each solution of the x-step is allowed.
                return x + (rng.standard_normal() if loose else 0.0)

            x0 = rng.standard_normal(14)
            *_, before, last = islice(admm(x_step, lam * l1(), K, x0, rho=rho), 4000)
            q = last.dual
            np.testing.assert_allclose(A.T @ (A @ last.x - y), -K.T @ q, atol=1e-5)
            np.testing.assert_allclose(last.z, K @ last.x, atol=1e-5)
            np.testing.assert_allclose(last.x, before.x, atol=1e-5)
