"""Claims of section 3.9: problems with one matrix, side by side."""

from itertools import islice

import numpy as np
import pytest
from claims import rejects

from course_lib.functionals import l1, least_squares
from course_lib.operators import LinearOperator
from course_lib.proximal import fista, ista, lasso


def on_columns(A, P):
    m, n = A.shape
    return LinearOperator(lambda X: A @ X, lambda R: A.T @ R, (n, P), (m, P), like=A)


@pytest.mark.claim("prop-side-by-side")
@pytest.mark.parametrize("broken", [None, "restart", "norm", "gap"])
def test_problems_side_by_side_are_the_single_ones(broken):
    with rejects(broken):
        for seed in range(4):
            rng = np.random.default_rng(seed)
            A, Y = rng.standard_normal((8, 12)), rng.standard_normal((8, 6)) * [1, 2, 5, 1, 9, 3]
            lam, size = 0.5, np.linalg.norm(A, 2)
            together = on_columns(A, 6)
            frobenius = np.linalg.norm(A) if broken == "norm" else size
            assert together.norm(rtol=1e-3) == pytest.approx(frobenius, rel=1e-2)
            for method in (ista, fista):
                options = {"restart": True} if broken == "restart" and method is fista else {}
                options["step"] = 1 / size**2
                f = least_squares(together, Y)
                *_, last = islice(method(f, lam * l1(), np.zeros((12, 6)), **options), 81)
                for j in range(6):
                    states = method(least_squares(A, Y[:, j]), lam * l1(), np.zeros(12), **options)
                    *_, alone = islice(states, 81)
                    np.testing.assert_allclose(last.x[:, j], alone.x, atol=1e-10)
            X = np.column_stack([lasso(A, Y[:, j], lam).x for j in range(6)])
            rough = X + 0.1 * rng.standard_normal((12, 6))

            def values(X, A=A, Y=Y, lam=lam):
                return 0.5 * np.sum((A @ X - Y) ** 2, axis=0) + lam * np.sum(abs(X), axis=0)

            R = Y - A @ rough
            s = np.minimum(1, lam / np.max(abs(A.T @ R), axis=0))
            dual = 0.5 * np.sum(Y**2, axis=0) - 0.5 * np.sum((Y - s * R) ** 2, axis=0)
            gaps = values(rough) - dual
            excess = values(rough) - values(X)
            limit = np.full(6, gaps.min()) if broken == "gap" else gaps
            assert (excess <= limit + 1e-9).all()
            assert excess.sum() <= gaps.sum() + 1e-9
