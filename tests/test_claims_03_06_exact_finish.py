"""Claims of section 3.6: the system on the support, the path, sign search."""

import numpy as np
import pytest
from claims import rejects

from course_lib.proximal import lasso


def instance(seed, m=14, n=20):
    rng = np.random.default_rng(seed)
    A, y = rng.standard_normal((m, n)), rng.standard_normal(m)
    return rng, A, y, np.max(abs(A.T @ y))


def on_support(A, y, lam, S, signs):
    x = np.zeros(A.shape[1])
    x[S] = np.linalg.solve(A[:, S].T @ A[:, S], A[:, S].T @ y - lam * signs)
    return x


@pytest.mark.claim("prop-support-system")
@pytest.mark.parametrize("broken", [None, "signs", "conditions"])
def test_support_and_signs_give_the_minimizer(broken):
    with rejects(broken):
        for seed in range(10):
            rng, A, y, largest = instance(seed)
            lam = rng.uniform(0.05, 0.6) * largest
            best = lasso(A, y, lam, rtol=1e-13).x
            S, signs = np.flatnonzero(best), np.sign(best[best != 0])
            used = -signs if broken == "signs" else signs
            np.testing.assert_allclose(on_support(A, y, lam, S, used), best, atol=1e-8)
            # Another support: its solution fails a condition, or it is the minimizer.
            other = rng.choice(20, max(1, S.size - 1), replace=False)
            z = on_support(A, y, lam, other, rng.choice([-1.0, 1.0], other.size))
            c = A.T @ (y - A @ z)
            signs_hold = np.allclose(c[other], lam * np.sign(z[other]))
            passes = signs_hold and (abs(c) <= lam * (1 + 1e-9)).all()
            passes = True if broken == "conditions" else passes
            assert passes == np.allclose(z, best, atol=1e-6)


@pytest.mark.claim("thm-lasso-path")
@pytest.mark.parametrize("broken", [None, "slope", "straight"])
def test_path_is_continuous_and_straight_between_kinks(broken):
    with rejects(broken):
        for seed in range(6):
            rng, A, y, largest = instance(seed)
            lam = rng.uniform(0.1, 0.7) * largest
            x = lasso(A, y, lam, rtol=1e-14).x
            S = np.flatnonzero(x)
            slope = np.zeros(20)
            factor = 0.5 if broken == "slope" else -1.0
            slope[S] = factor * np.linalg.solve(A[:, S].T @ A[:, S], np.sign(x[S]))
            h = (0.3 if broken == "straight" else 1e-7) * lam
            up, down = (lasso(A, y, lam + t, rtol=1e-15).x for t in (h, -h))
            np.testing.assert_allclose(up - x, h * slope, atol=1e-9)
            np.testing.assert_allclose(x - down, h * slope, atol=1e-9)
            # Few pieces: on a fine grid almost all second differences vanish.
            grid = np.linspace(0.05, 1.0, 400) * largest
            path = np.array([lasso(A, y, t, rtol=1e-13).x for t in grid[:: 8 if seed else 1]])
            if seed == 0:
                bends = (abs(np.diff(path, 2, axis=0)) > 1e-7 * abs(path).max()).any(axis=1)
                assert bends.mean() < 0.3
                assert abs(np.diff(path, axis=0)).max() < 0.2


@pytest.mark.claim("alg-sign-search")
@pytest.mark.claim("thm-sign-search")
@pytest.mark.parametrize("broken", [None, "way back", "entry", "dependent"])
def test_sign_search_ends_at_the_minimizer(broken):
    dependent = 0
    with rejects(broken):
        for seed in range(24):
            # Half of the problems have few data, and a small λ: there columns become dependent.
            few = seed % 2
            rng, A, y, largest = instance(seed, 10 if few else 25, 20)
            lam = 1e-5 * largest if few else rng.uniform(0.01, 0.2) * largest
            x, xi, values = np.zeros(20), np.zeros(20), []
            for _ in range(200):
                c = A.T @ (y - A @ x)
                values.append(0.5 * np.sum((A @ x - y) ** 2) + lam * np.sum(abs(x)))
                out = np.where(xi == 0, abs(c), 0)
                if out.max() <= lam * (1 + 1e-12):
                    break
                j, S = out.argmax(), np.flatnonzero(xi)
                xi[j] = -np.sign(c[j]) if broken == "entry" else np.sign(c[j])
                dependent += S.size == len(A)
                if S.size == len(A) and broken != "dependent":
                    h = np.zeros(20)
                    h[j], h[S] = xi[j], -xi[j] * np.linalg.solve(A[:, S], A[:, j])
                    falls = S[(x * h)[S] < 0]
                    shares = -x[falls] / h[falls]
                    x, longer = x + shares.min() * h, abs(x).sum()
                    gone = falls[shares.argmin()]
                    xi[gone] = x[gone] = 0
                    assert abs(x).sum() < longer
                    assert np.linalg.matrix_rank(A[:, xi != 0]) == len(A)
                while True:
                    S = np.flatnonzero(xi)
                    goal = on_support(A, y, lam, S, xi[S])
                    wrong = S[goal[S] * xi[S] < 0]
                    if wrong.size == 0 or broken == "way back":
                        x = goal
                        break
                    shares = x[wrong] / (x[wrong] - goal[wrong])
                    x = x + shares.min() * (goal - x)
                    gone = wrong[shares.argmin()]
                    xi[gone] = x[gone] = 0
            assert len(values) < 200
            assert (np.diff(values) < 0).all()
            np.testing.assert_allclose(x, lasso(A, y, lam, rtol=1e-13).x, atol=1e-8)
        assert dependent > 0
