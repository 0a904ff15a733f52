"""Claims of section 3.2: optimality, uniqueness, the duality gap, the three forms."""

import numpy as np
import pytest
from claims import rejects

from course_lib.functionals import Functional, l1, l1_ball, least_squares
from course_lib.iterate import run
from course_lib.proximal import elastic_net, fista, lasso, pdhg


def instance(seed, m=12, n=20):
    rng = np.random.default_rng(seed)
    A, y = rng.standard_normal((m, n)), rng.standard_normal(m)
    return rng, A, y, rng.uniform(0.05, 0.7) * np.max(abs(A.T @ y))


def objective(A, y, lam, x):
    return 0.5 * np.sum((A @ x - y) ** 2) + lam * np.sum(abs(x))


@pytest.mark.claim("thm-lasso-kkt")
@pytest.mark.parametrize("broken", [None, "sign", "lambda max"])
def test_conditions_hold_at_the_minimizer_and_nowhere_else(broken):
    def miss(A, y, lam, x):
        c = A.T @ (y - A @ x)
        c = -c if broken == "sign" else c
        return np.max(np.where(x != 0, abs(c - lam * np.sign(x)), np.maximum(abs(c) - lam, 0)))

    with rejects(broken):
        for seed in range(10):
            rng, A, y, lam = instance(seed)
            x = lasso(A, y, lam).x
            assert miss(A, y, lam, x) < 1e-8
            # Sufficient: nothing near or far has a smaller value.
            for size in (1e-3, 1e-1, 3.0):
                z = x + size * rng.standard_normal(20)
                assert objective(A, y, lam, z) > objective(A, y, lam, x)
            # Necessary: another point with fewer or other entries does not pass.
            assert miss(A, y, lam, np.where(abs(x) == abs(x).max(), 0, x)) > 1e-3
            lam_max = np.max(abs(A.T @ y)) * (0.9 if broken == "lambda max" else 1)
            assert not lasso(A, y, lam_max * (1 + 1e-12)).x.any()
            assert lasso(A, y, lam_max * 0.999).x.any()


@pytest.mark.claim("prop-lasso-unique")
@pytest.mark.parametrize("broken", [None, "solution", "independent columns"])
def test_minimizers_share_fit_norm_and_correlations(broken):
    with rejects(broken):
        for seed in range(8):
            rng, A, y, lam = instance(seed, 15, 10)
            double = np.column_stack([A, A])
            one = lasso(double, y, lam).x
            other = np.concatenate([one[10:], one[:10]])
            half = 0.5 * (one + other)
            assert objective(double, y, lam, half) == pytest.approx(objective(double, y, lam, one))
            if broken == "solution":
                np.testing.assert_allclose(one, other, atol=1e-6)
            np.testing.assert_allclose(double @ one, double @ other, atol=1e-10)
            assert np.sum(abs(one)) == pytest.approx(np.sum(abs(half)))
            # Independent columns: one minimizer, from any start.
            M = double if broken == "independent columns" else A
            starts = [rng.standard_normal(M.shape[1]) for _ in range(2)]
            first, second = (lasso(M, y, lam, start).x for start in starts)
            np.testing.assert_allclose(first, second, atol=1e-7)


@pytest.mark.claim("prop-elastic-net")
@pytest.mark.parametrize("broken", [None, "lambda2", "bound"])
def test_elastic_net_is_unique_and_groups(broken):
    with rejects(broken):
        for seed in range(8):
            rng, A, y, lam = instance(seed)
            A[:, 1] = A[:, 0] + 0.05 * rng.standard_normal(12)
            A[:, 2] = A[:, 0]
            y = 3 * A[:, 0] + y
            lam2 = 0.0 if broken == "lambda2" else 0.5
            x = elastic_net(A, y, lam, lam2, x0=rng.standard_normal(20)).x
            np.testing.assert_allclose(x, elastic_net(A, y, lam, lam2).x, atol=1e-7)
            assert x[0] == pytest.approx(x[2], abs=1e-8)
            same = x[0] * x[1] > 0
            factor = 1e-3 if broken == "bound" else 1.0
            limit = factor * np.linalg.norm(y) / max(lam2, 1e-300)
            assert not same or abs(x[0] - x[1]) <= limit * np.linalg.norm(A[:, 0] - A[:, 1])
            c = A.T @ (y - A @ x) - lam2 * x
            np.testing.assert_allclose(c[x != 0], lam * np.sign(x[x != 0]), atol=1e-7)


@pytest.mark.claim("thm-lasso-gap")
@pytest.mark.parametrize("broken", [None, "feasible", "identity", "firm"])
def test_gap_bounds_what_is_missing(broken):
    with rejects(broken):
        for seed in range(10):
            rng, A, y, lam = instance(seed)
            best = lasso(A, y, lam, rtol=1e-13)
            x = best.x + 0.3 * rng.standard_normal(20)
            r = y - A @ x
            dual = y if broken == "feasible" else r * min(1, lam / np.max(abs(A.T @ r)))
            D = 0.5 * y @ y - 0.5 * np.sum((y - dual) ** 2)
            gap = objective(A, y, lam, x) - D
            factor = 1.0 if broken == "identity" else 0.5
            terms = factor * np.sum((r - dual) ** 2) + np.sum(lam * abs(x) - x * (A.T @ dual))
            assert gap == pytest.approx(terms, rel=1e-9)
            assert gap >= objective(A, y, lam, x) - best.state.objective
            assert best.state.gap < 1e-10
            # The residual is the projection: it and the fit move no more than the data, together.
            new = y + rng.standard_normal(12)
            moved = lasso(A, new, lam).state.r - best.state.r
            change = 0.5 * (new - y) if broken == "firm" else new - y
            squares = np.sum(moved**2) + np.sum((new - y - moved) ** 2)
            assert squares <= np.sum(change**2) * (1 + 1e-8)


@pytest.mark.slow
@pytest.mark.claim("thm-three-forms")
@pytest.mark.parametrize("broken", [None, "radius", "price"])
def test_three_forms_have_the_same_solutions(broken):
    with rejects(broken):
        for seed in range(4):
            # More unknowns than data, and fewer: there the misfit stays above 0.
            _, A, y, lam = instance(seed, *((12, 20) if seed % 2 else (20, 9)))
            state = lasso(A, y, lam, rtol=1e-13).state
            x, t, eps = state.x, np.sum(abs(state.x)), np.linalg.norm(state.r)
            t = 0.9 * t if broken == "radius" else t
            size = np.linalg.norm(A, 2)
            f, start = least_squares(A, y), np.zeros(x.size)
            states = fista(f, l1_ball(t), start, step=0.99 / size**2, restart=True)
            z = run(states, max_iter=5000).x
            np.testing.assert_allclose(z, x, atol=1e-6)
            price = np.max(abs(A.T @ (y - A @ z))) * (2 if broken == "price" else 1)
            assert price == pytest.approx(lam, rel=1e-6)

            def to_ball(v, step, y=y, eps=eps):
                return y + (v - y) * min(1.0, eps / np.linalg.norm(v - y))

            ball, ratio = Functional(lambda v: 0 * v.sum(), prox=to_ball), np.linalg.norm(x) * lam
            steps = {"step": ratio / eps / size, "dual_step": eps / ratio / size}
            w = run(pdhg(A, l1(), ball, start, **steps), max_iter=5000).x
            np.testing.assert_allclose(w, x, atol=1e-5)
            # Strictly monotone, with the stated limits.
            lams = np.geomspace(1e-7, 0.9999, 12) * np.max(abs(A.T @ y))
            path = [lasso(A, y, lam).state for lam in lams]
            ts, es = [np.sum(abs(s.x)) for s in path], [np.linalg.norm(s.r) for s in path]
            assert (np.diff(ts) < 0).all()
            assert (np.diff(es) > 0).all()
            assert ts[-1] < 1e-2
            fit = np.linalg.lstsq(A, y)[0]
            assert es[0] == pytest.approx(np.linalg.norm(A @ fit - y), abs=1e-4)
            if seed % 2 == 0:
                assert ts[0] == pytest.approx(np.sum(abs(fit)), rel=1e-4)
            assert es[-1] == pytest.approx(np.linalg.norm(y), rel=1e-3)
