"""The claims of section 02/01 (the naive inverse), on random instances, and broken once each."""

import numpy as np
import pytest
from claims import rejects

from course_lib import filters, operators, problems

SHAPES = [(5, 5), (7, 4), (4, 7), (6, 1), (1, 6)]


def instance(shape, seed, rank=None):
    """A random matrix, of deficient rank if asked, and random data."""
    rng = np.random.default_rng(seed)
    m, n = shape
    A = rng.standard_normal(shape)
    if rank is not None:
        A = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))
    return A, rng.standard_normal(m), 10.0 ** rng.uniform(-3, 1), rng


@pytest.mark.claim("lem-quadratic")
@pytest.mark.parametrize("broken", [None, "an indefinite matrix", "the sign of b"])
@pytest.mark.parametrize("seed", range(5))
def test_quadratic_with_positive_matrix_has_one_minimizer(seed, broken):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 8))
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    eigenvalues = rng.uniform(0.1, 3, n)
    if broken == "an indefinite matrix":
        eigenvalues[0] = -1.0
    H, b = Q * eigenvalues @ Q.T, rng.standard_normal(n)
    x_star = np.linalg.solve(H, -b if broken == "the sign of b" else b)

    def q(x):
        return 0.5 * x @ H @ x - b @ x

    with rejects(broken):
        for scale in (1e-2, 1.0, 100.0):
            # Random directions, and each eigenvector: a bad one must not escape.
            for d in scale * np.vstack([rng.standard_normal((5, n)), Q.T]):
                assert q(x_star + d) > q(x_star)
                assert q(x_star + d) - q(x_star) == pytest.approx(0.5 * d @ H @ d, rel=1e-6)


def test_singular_quadratic_has_no_single_minimizer():
    """The converse: with a null vector v, q(x + v) = q(x) if b is orthogonal to v."""
    H, b = np.diag([1.0, 0.0]), np.array([1.0, 0.0])
    x, v = np.array([1.0, 0.0]), np.array([0.0, 5.0])
    q = lambda x: 0.5 * x @ H @ x - b @ x  # noqa: E731
    assert q(x + v) == q(x)
    # ... and falls without end otherwise.
    b = np.array([1.0, 1.0])
    assert q(x + 1e3 * v) < -1e3


@pytest.mark.claim("thm-tikhonov-minimizer")
@pytest.mark.parametrize("broken", [None, "the transpose", "half of lambda"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [None, 1])
def test_tikhonov_minimizer(shape, rank, broken):
    if broken == "the transpose" and shape[0] == 1 == shape[1]:
        pytest.skip("a number is its own transpose")
    for seed in range(3):
        A, y, lam, rng = instance(shape, seed, rank)
        x = filters.tikhonov(A, y, lam).x
        if broken == "the transpose":
            x = A.T @ np.linalg.solve(A @ A.T + lam * np.eye(shape[0]), -y)
        if broken == "half of lambda":
            x = filters.tikhonov(A, y, lam / 2).x
        normal = A.T @ A + lam * np.eye(shape[1])
        with rejects(broken):
            scale = np.linalg.norm(A.T @ y)
            assert np.linalg.norm(normal @ x - A.T @ y) <= 1e-9 * scale
            assert np.linalg.eigvalsh(normal)[0] >= lam * (1 - 1e-9)
            d = rng.standard_normal(shape[1])

            def functional(x, A=A, y=y, lam=lam):
                return 0.5 * np.sum((A @ x - y) ** 2) + 0.5 * lam * np.sum(x**2)

            growth = 0.5 * np.sum((A @ d) ** 2) + 0.5 * lam * np.sum(d**2)
            assert functional(x + d) - functional(x) == pytest.approx(growth, rel=1e-6)


@pytest.mark.claim("prop-push-through")
@pytest.mark.parametrize("broken", [None, "another lambda on one side"])
@pytest.mark.parametrize("shape", SHAPES)
def test_push_through(shape, broken):
    A, y, lam, _ = instance(shape, 7)
    m, n = shape
    left = np.linalg.solve(A.T @ A + lam * np.eye(n), A.T)
    right = A.T @ np.linalg.inv(A @ A.T + (2 * lam if broken else lam) * np.eye(m))
    with rejects(broken):
        np.testing.assert_allclose(left, right, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(right @ y, filters.tikhonov(A, y, lam).x, rtol=1e-7, atol=1e-10)


@pytest.mark.claim("prop-naive-error")
@pytest.mark.parametrize("broken", [None, "the norm of A in place of its inverse"])
def test_naive_error(broken):
    rng = np.random.default_rng(3)
    A, x_true, noise_std = rng.standard_normal((6, 6)), rng.standard_normal(6), 0.2
    spectrum, inverse = filters.decompose(A), np.linalg.inv(A)
    noise = noise_std * rng.standard_normal((20_000, 6))
    for e in noise[:20]:
        naive = filters.filtered(spectrum, A @ x_true + e, np.ones(6))
        np.testing.assert_allclose(naive - x_true, inverse @ e, atol=1e-10)
    mean = np.mean(np.sum((noise @ inverse.T) ** 2, axis=1))
    with rejects(broken):
        predicted = noise_std**2 * np.linalg.norm(A if broken else inverse, "fro") ** 2
        assert mean == pytest.approx(predicted, rel=0.05)


@pytest.mark.claim("prop-tikhonov-stable")
@pytest.mark.parametrize("broken", [None, "twice the root of lambda in the bound"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [None, 1])
def test_tikhonov_is_stable(shape, rank, broken):
    A, y, lam, rng = instance(shape, 11, rank)
    u, s, _ = np.linalg.svd(A)
    lam = s[0] ** 2  # Then the first left singular vector attains the bound.
    bound = 1 / (2 * np.sqrt(lam)) / (2 if broken else 1)
    changes = [u[:, 0], *rng.standard_normal((20, shape[0]))]
    with rejects(broken):
        x = filters.tikhonov(A, y, lam).x
        ratios = [
            np.linalg.norm(filters.tikhonov(A, y + d, lam).x - x) / np.linalg.norm(d)
            for d in changes
        ]
        assert max(ratios) <= bound * (1 + 1e-9)
        assert ratios[0] == pytest.approx(bound, rel=1e-8)


@pytest.mark.claim("prop-waves")
@pytest.mark.parametrize("broken", [None, "the conjugate of the eigenvalues"])
@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_waves_are_eigenvectors(n, broken):
    if broken and n <= 2:
        pytest.skip("with one or two points all eigenvalues are real")
    rng = np.random.default_rng(n)
    psf, y, lam = rng.standard_normal(n), rng.standard_normal(n), 0.3
    A = operators.convolution(psf, n)
    k, f = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    waves = np.exp(2j * np.pi * f * k / n) / np.sqrt(n)
    # The operator's kernel is centred: entry n // 2 of psf is p_0.
    p = np.roll(psf, -(n // 2))
    a_hat = np.array([np.sum(p * np.exp(-2j * np.pi * g * np.arange(n) / n)) for g in range(n)])
    if broken:
        a_hat = a_hat.conj()
    M = A.to_dense()
    with rejects(broken):
        np.testing.assert_allclose(M @ waves, waves * a_hat, atol=1e-12)
        np.testing.assert_allclose(M.T @ waves, waves * a_hat.conj(), atol=1e-12)
        np.testing.assert_allclose(waves.conj().T @ waves, np.eye(n), atol=1e-12)
        x_hat = a_hat.conj() * (waves.conj().T @ y) / (abs(a_hat) ** 2 + lam)
        np.testing.assert_allclose(waves @ x_hat, filters.tikhonov(A, y, lam).x, atol=1e-12)


def test_the_naive_inverse_of_the_text_is_useless():
    """The section's numbers: what it says in words must be what a run finds."""
    problem = problems.deblurring("text", size=None, width=1.5, noise=1e-3, seed=0)
    spectrum = filters.decompose(problem.A)

    def error(x):
        return np.linalg.norm(x - problem.x_true) / np.linalg.norm(problem.x_true)

    naive = filters.filtered(spectrum, problem.y, np.ones_like(spectrum.s))
    assert error(naive) > 1e4
    assert error(filters.tikhonov(problem.A, problem.y, 3e-4).x) < 0.5 * error(problem.y)
