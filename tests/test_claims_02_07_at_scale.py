"""The claims of section 02/07 (at scale), on random instances, and broken once each."""

import math

import numpy as np
import pytest
from claims import rejects

from course_lib import checks, filters, linear, operators
from course_lib.iterate import run


def _positive_definite(rng, n, kappa):
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    eigenvalues = np.concatenate([[1.0, kappa], rng.uniform(1.0, kappa, n - 2)])
    return Q * eigenvalues @ Q.T


def _energy(H, d):
    return math.sqrt(max(d @ (H @ d), 0.0))


@pytest.mark.claim("prop-adjoint-rules")
@pytest.mark.parametrize("broken", [None, "the order of the factors", "a transpose"])
@pytest.mark.parametrize("seed", range(4))
def test_adjoints_of_combinations(seed, broken):
    rng = np.random.default_rng(seed)
    m, n, p = rng.integers(2, 7, 3)
    if broken == "the order of the factors":
        m = n = p = 4  # Only then do the shapes not give the mistake away.
    M, N, P = rng.standard_normal((m, n)), rng.standard_normal((n, p)), rng.standard_normal((m, n))
    A, B, C = (operators.matrix(X) for X in (M, N, P))
    expected = {"product": N.T @ M.T, "sum": M.T + P.T, "scaled": -2.5 * M.T}
    if broken == "the order of the factors":
        expected["product"] = M.T @ N.T
    if broken == "a transpose":
        expected["scaled"] = 2.5 * M.T
    found = {"product": (A @ B).H, "sum": (A + C).H, "scaled": (-2.5 * A).H}
    u, v = rng.standard_normal(m), rng.standard_normal(m)
    with rejects(broken):
        for name, operator in found.items():
            np.testing.assert_allclose(operator.to_dense(), expected[name], atol=1e-12)
        both = operators.stack(A, C).H @ np.concatenate([u, v])
        np.testing.assert_allclose(both, M.T @ u + P.T @ v, atol=1e-12)
        assert checks.adjoint(operators.stack(A @ B, -2.5 * C @ B))


@pytest.mark.claim("thm-cg-bound")
@pytest.mark.parametrize(
    "broken", [None, "the logarithm of the condition number in place of its root"]
)
@pytest.mark.parametrize("kappa", [1.0, 2.0, 30.0, 1000.0])
def test_cg_bound(kappa, broken):
    if broken and kappa < 30.0:
        pytest.skip("for small condition numbers the root and the logarithm are close")
    for seed in range(5):
        rng = np.random.default_rng(seed)
        n = 40
        H, exact = _positive_definite(rng, n, kappa), rng.standard_normal(n)
        x0 = rng.standard_normal(n)
        start = _energy(H, x0 - exact)
        error = run(
            linear.cg(H, H @ exact, x0),
            max_iter=30,
            record={"error": lambda state, H=H, exact=exact: _energy(H, state.x - exact)},
        ).history["error"]
        # Broken: the rate of a method that would need log(kappa) steps and not sqrt(kappa).
        root = math.log1p(kappa) / 2 if broken else math.sqrt(kappa)
        rate = abs(root - 1) / (root + 1)
        with rejects(broken):
            for k, value in enumerate(error):
                assert value <= 2 * rate**k * start + 1e-10 * start


@pytest.mark.claim("prop-iteration-count")
@pytest.mark.parametrize("broken", [None, "the root of the condition number left out"])
@pytest.mark.parametrize("lam", [1.0, 1e-2, 1e-4])
def test_iteration_count(lam, broken):
    if broken and lam == 1.0:
        pytest.skip("for a condition number near 1 both counts agree")
    tol = 1e-3
    for seed in range(5):
        rng = np.random.default_rng(seed)
        m, n = 60, 50
        # Spread singular values: the worst case for conjugate gradients.
        U = np.linalg.qr(rng.standard_normal((m, n)))[0]
        V = np.linalg.qr(rng.standard_normal((n, n)))[0]
        A = U * np.linspace(0.01, 1, n) @ V.T
        y = rng.standard_normal(m)
        H = A.T @ A + lam * np.eye(n)
        eigenvalues = np.linalg.eigvalsh(H)
        kappa = 1 + np.linalg.norm(A, 2) ** 2 / lam
        exact = filters.tikhonov(A, y, lam).x
        stacked = operators.stack(operators.matrix(A), math.sqrt(lam) * operators.identity(n))
        count = 0.5 * (math.log(kappa) if broken else math.sqrt(kappa)) * math.log(2 / tol)
        found = run(
            linear.cgls(stacked, np.concatenate([y, np.zeros(n)])), max_iter=math.ceil(count)
        )
        with rejects(broken):
            assert eigenvalues[-1] / eigenvalues[0] <= kappa * (1 + 1e-10)
            assert _energy(H, found.x - exact) <= tol * _energy(H, exact)
