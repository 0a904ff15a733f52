"""The claims of section 01/07 (prior information), on random instances, broken once each."""

import numpy as np
import pytest
from claims import rejects

from course_lib import filters, functionals, operators, proximal
from course_lib.functionals import l1
from course_lib.iterate import run


def instance(rng, m=6, n=8):
    return rng.standard_normal((m, n)), rng.standard_normal(m)


def net(A, y, lam):
    """The minimizer of ½‖Ax - y‖² + λ(‖x‖₁ + ½‖x‖²), unique because it is strictly convex."""
    return proximal.elastic_net(A, y, lam, lam).x


R = functionals.elastic_net(1.0, 1.0)


def objective(A, y, lam, x):
    return 0.5 * np.sum((A @ x - y) ** 2) + lam * float(R(x))


@pytest.mark.claim("thm-variational-existence")
@pytest.mark.parametrize("broken", [None, "a penalty that is not coercive with A"])
def test_existence_with_a_null_space(rng, broken):
    """Coercive if and only if the null spaces of A and D meet in 0 only."""
    for _ in range(5):
        A = rng.standard_normal((4, 8))
        D = operators.difference(8).to_dense()
        if broken:
            A = A - A.mean(axis=1, keepdims=True)  # A and D both vanish on constants
        y, start = rng.standard_normal(4), rng.standard_normal(8)
        stacked = np.vstack([A, D])
        smallest = np.linalg.svd(stacked, compute_uv=False)[-1]
        values = []
        for size in (1e0, 1e3, 1e6):
            # The direction in which the functional grows most slowly.
            x = start + size * np.linalg.svd(stacked)[2][-1]
            values.append(0.5 * np.sum((A @ x - y) ** 2) + np.sum(np.abs(D @ x)))
        with rejects(broken):
            assert smallest > 1e-8
            assert values[2] > 1e3 * values[0]


@pytest.mark.claim("thm-variational-existence")
@pytest.mark.parametrize("broken", [None, "another point is called the minimizer"])
def test_the_strictly_convex_minimizer_is_the_only_one(rng, broken):
    with rejects(broken):
        for _ in range(5):
            A, y = instance(rng)
            lam = 10 ** rng.uniform(-2, 0)
            x = net(A, y, lam)
            if broken:
                x = x + 0.1
            for _ in range(50):
                d = rng.standard_normal(8) * 10 ** rng.uniform(-2, 1)
                # Strong convexity with constant λ.
                bound = objective(A, y, lam, x) + 0.5 * lam * np.sum(d**2)
                assert objective(A, y, lam, x + d) >= bound * (1 - 1e-9)


@pytest.mark.claim("thm-variational-stability")
@pytest.mark.parametrize("broken", [None, "without a penalty"])
def test_minimizers_depend_continuously_on_the_data(rng, broken):
    with rejects(broken):
        for _ in range(5):
            U, V = (np.linalg.qr(rng.standard_normal((8, 8)))[0] for _ in range(2))
            A = (U * np.geomspace(1, 1e-9, 8)) @ V.T
            y, direction = rng.standard_normal(8), U[:, -1]
            changes = []
            for size in (1e-1, 1e-2, 1e-3, 1e-4):
                moved = y + size * direction
                if broken:
                    spectrum = filters.decompose(A)
                    ones = np.ones(8)
                    x, base = (filters.filtered(spectrum, data, ones) for data in (moved, y))
                else:
                    x, base = net(A, moved, 0.05), net(A, y, 0.05)
                changes.append(np.linalg.norm(x - base))
            assert changes[-1] <= 1e-2
            # The penalty is strongly convex: the minimizer is Lipschitz in the data.
            assert all(
                c <= s / 0.05 * 1.01 for c, s in zip(changes, (0.1, 0.01, 1e-3, 1e-4), strict=True)
            )


@pytest.mark.claim("thm-variational-stability")
@pytest.mark.parametrize("broken", [None, "the limit is taken at other data"])
def test_limits_of_minimizers_are_minimizers(rng, broken):
    """Total variation: convex, not strictly; the limit has the smallest value."""
    A, y = rng.standard_normal((6, 10)), rng.standard_normal(6)
    D = operators.difference(10)

    def minimizer(data):
        step = proximal.least_squares_step(A, data, D)
        states = proximal.admm(step, 0.3 * l1(), D, np.zeros(10), rho=1.0)
        return run(states, max_iter=3000, check_every=3000).x

    def value(x):
        return 0.5 * np.sum((A @ x - y) ** 2) + 0.3 * np.sum(np.abs(D @ x))

    shift = np.ones(6) if broken else np.zeros(6)
    near = minimizer(y + shift + 1e-6 * rng.standard_normal(6))
    with rejects(broken):
        best = value(minimizer(y))
        assert value(near) <= best * (1 + 1e-4)
        assert all(value(near + 0.1 * rng.standard_normal(10)) >= best for _ in range(50))


@pytest.mark.claim("prop-two-ends")
@pytest.mark.parametrize("broken", [None, "twice the penalty of the truth", "no half in the bound"])
def test_the_two_ends(rng, broken):
    with rejects(broken):
        for _ in range(5):
            A, y = instance(rng)
            for lam in (1e0, 1e2, 1e4):
                below = 8 if broken == "no half in the bound" else 2
                x = net(A, y, lam)
                # min R = 0 at 0; near λ_max the inequality is strict, so a weaker bound fails.
                bound = np.sum(y**2) / (below * lam)
                assert lam * float(R(x)) <= bound * lam + 1e-12
            truth = rng.standard_normal(8)
            exact = A @ truth
            size = float(R(truth)) / (50 if broken == "twice the penalty of the truth" else 1)
            for lam in (1e-1, 1e-3, 1e-5):
                x = net(A, exact, lam)
                assert float(R(x)) <= size * (1 + 1e-9)
                assert np.sum((A @ x - exact) ** 2) <= 2 * lam * size
            # The limit has the smallest R of all solutions.
            null = np.linalg.svd(A)[2][6:].T
            for _ in range(50):
                other = truth + null @ rng.standard_normal(2)
                assert float(R(x)) <= float(R(other)) * (1 + 1e-6)
        if broken == "no half in the bound":
            # One number: λR(x) against y²/2 for small λ, where R(x) is nearly R(y).
            x = net(np.eye(1), np.array([1.0]), 0.2)
            assert 0.2 * float(R(x)) <= 1 / below
