"""Claims of section 3.1: the hard threshold, the envelope, exact zeros, the size of a support."""

from itertools import combinations

import numpy as np
import pytest
from claims import rejects

from course_lib.filters import tikhonov
from course_lib.functionals import l1
from course_lib.proximal import lasso


@pytest.mark.claim("prop-hard-threshold")
@pytest.mark.parametrize("broken", [None, "threshold", "columns"])
def test_hard_threshold_is_the_best_of_all_supports(broken):
    with rejects(broken):
        for seed in range(8):
            rng = np.random.default_rng(seed)
            A = rng.standard_normal((9, 6))
            A = A if broken == "columns" else np.linalg.qr(A)[0]
            y, lam = rng.standard_normal(9), rng.uniform(0.05, 0.8)
            c = A.T @ y

            def value(S, A=A, y=y, lam=lam):
                x = np.linalg.lstsq(A[:, S], y)[0] if S else np.zeros(0)
                return 0.5 * np.sum((A[:, S] @ x - y) ** 2) + lam * len(S)

            supports = [list(S) for k in range(7) for S in combinations(range(6), k)]
            best = min(map(value, supports))
            level = np.sqrt(lam) if broken == "threshold" else np.sqrt(2 * lam)
            x = np.where(abs(c) > level, c, 0.0)
            found = 0.5 * np.sum((A @ x - y) ** 2) + lam * np.count_nonzero(x)
            assert found == pytest.approx(best, abs=1e-10)


@pytest.mark.claim("prop-convex-envelope")
@pytest.mark.parametrize("broken", [None, "box"])
def test_l1_is_the_largest_convex_function_below_the_count(broken):
    rng = np.random.default_rng(0)
    side = 1.5 if broken else 1.0
    with rejects(broken):
        x = rng.uniform(-side, side, (200, 4)) * (rng.random((200, 4)) < 0.7)
        assert (abs(x).sum(axis=1) <= np.count_nonzero(x, axis=1) + 1e-12).all()
    # An affine function below the count at the corners of the grid {-1, 0, 1}^4 is below l1.
    corners = np.stack(np.meshgrid(*[[-1, 0, 1]] * 4), axis=-1).reshape(-1, 4)
    for _ in range(50):
        slope = rng.uniform(-2, 2, 4)
        height = (np.count_nonzero(corners, axis=1) - corners @ slope).min()
        points = rng.uniform(-1, 1, (500, 4))
        assert (points @ slope + height <= abs(points).sum(axis=1) + 1e-12).all()


@pytest.mark.claim("thm-exact-zeros")
@pytest.mark.parametrize("broken", [None, "kink", "level"])
def test_columns_that_help_too_little_stay_out(broken):
    seen = 0
    with rejects(broken):
        for seed in range(10):
            rng = np.random.default_rng(seed)
            m, n = (12, 20) if seed % 2 else (20, 9)
            A, y = rng.standard_normal((m, n)), rng.standard_normal(m)
            lam = rng.uniform(0.1, 0.6) * np.max(abs(A.T @ y))
            x = tikhonov(A, y, lam).x if broken == "kink" else lasso(A, y, lam).x
            help_ = abs(A.T @ (y - A @ x))
            level = 0.5 * lam if broken == "level" else lam
            assert (help_ <= level * (1 + 1e-8)).all()
            out = help_ < lam * (1 - 1e-6)
            assert (x[out] == 0).all()
            seen += int(out.sum())
        assert seen > 40
    # The square: zero only where the column is orthogonal to the residual, so never here.
    assert (tikhonov(A, y, lam).x != 0).all()
    A[:, 3] = 0.0
    assert abs(tikhonov(A, y, lam).x[3]) < 1e-14


@pytest.mark.claim("thm-support-size")
@pytest.mark.parametrize("broken", [None, "small lambda", "rank"])
def test_size_of_the_support(broken):
    with rejects(broken):
        for seed in range(10):
            rng = np.random.default_rng(seed)
            # Rank 4, 15 unknowns: the solution with the fewest entries has at most 4.
            A = rng.standard_normal((8, 4)) @ rng.standard_normal((4, 15))
            y = rng.standard_normal(8)
            x = lasso(A, y, 1e-2 * np.max(abs(A.T @ y))).x
            S = np.flatnonzero(x)
            bound = 2 if broken == "rank" else 4
            assert S.size <= bound
            assert np.linalg.matrix_rank(A[:, S]) == S.size
            # Invertible: the formula holds as long as it has the signs.
            M, x0 = rng.standard_normal((6, 6)), rng.choice([-1, 1], 6) * rng.uniform(1, 2, 6)
            shift = np.linalg.solve(M.T @ M, np.sign(x0))
            limit = np.min(np.where(shift * x0 > 0, x0 / shift, np.inf))
            lam = (1.5 if broken == "small lambda" else 0.5) * limit
            z = lasso(M, M @ x0, lam, rtol=1e-13).x
            np.testing.assert_allclose(z, x0 - lam * shift, atol=1e-6)
            assert np.count_nonzero(z) == 6
    assert np.count_nonzero(l1().prox(np.full(6, 2.0), 1.0)) == 6
