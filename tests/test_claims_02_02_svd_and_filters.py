"""The claims of section 02/02 (singular values and filters), on random instances, and broken."""

import numpy as np
import pytest
from claims import rejects

from course_lib import filters, operators, problems

# Rows, columns, rank: square, tall, wide, each of full and of deficient rank.
SIZES = [(5, 5, 5), (7, 4, 4), (4, 7, 4), (6, 6, 3), (8, 5, 2), (5, 8, 2), (6, 1, 1), (1, 6, 1)]


def instance(size, seed):
    """A random matrix of the given rank, its thin decomposition, and random data."""
    m, n, rank = size
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))
    spectrum = filters.decompose(A)
    thin = spectrum.U[:, :rank], spectrum.s[:rank], spectrum.V[:, :rank]
    return A, thin, rng.standard_normal(m), rng


def pseudo_inverse_times(thin, y):
    """The sum of the definition."""
    U, s, V = thin
    return V @ ((U.T @ y) / s)


@pytest.mark.claim("lem-thin-svd")
@pytest.mark.parametrize("broken", [None, "one sign", "the last triplet is missing"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES)
def test_thin_decomposition(size, seed, broken):
    A, (U, s, V), _, rng = instance(size, seed)
    if broken == "one sign":
        V = V * np.where(np.arange(s.size) == 0, -1.0, 1.0)
    if broken == "the last triplet is missing":
        U, s, V = U[:, :-1], s[:-1], V[:, :-1]
    with rejects(broken):
        assert np.all(s > 0)
        assert np.all(np.diff(s) <= 0)
        identity = np.eye(s.size)
        assert np.allclose(U.T @ U, identity, atol=1e-12)
        assert np.allclose(V.T @ V, identity, atol=1e-12)
        assert np.allclose((U * s) @ V.T, A, atol=1e-10)
        assert np.allclose(A @ V, U * s, atol=1e-10)
        assert np.allclose(A.T @ U, V * s, atol=1e-10)
        # The v_i span the complement of the null space: what is orthogonal to them is in it.
        x = rng.standard_normal(A.shape[1])
        assert np.allclose(A @ (x - V @ (V.T @ x)), 0, atol=1e-10)
        assert np.linalg.norm(A @ x) <= (1 + 1e-12) * s[0] * np.linalg.norm(x)


@pytest.mark.claim("prop-pseudoinverse")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("size", "broken"),
    [(size, broken) for size in SIZES for broken in (None, "a factor 1.01")]
    + [(size, "a null vector added") for size in SIZES if size[1] > size[2]],
)
def test_minimum_norm_least_squares_solution(size, seed, broken):
    A, thin, y, rng = instance(size, seed)
    V = thin[2]
    x = pseudo_inverse_times(thin, y)
    z = rng.standard_normal(x.size)
    z = z - V @ (V.T @ z)
    if broken == "a factor 1.01":
        x = 1.01 * x
    if broken == "a null vector added":
        x = x + z
    with rejects(broken):
        # A minimizer: the residual is orthogonal to the range. Others differ by null vectors.
        assert np.allclose(A.T @ (A @ x - y), 0, atol=1e-9)
        assert np.linalg.norm(A @ (x + z) - y) == pytest.approx(np.linalg.norm(A @ x - y))
        for _ in range(5):
            d = rng.standard_normal(x.size)
            misfit = np.linalg.norm(A @ (x + d) - y)
            assert misfit >= np.linalg.norm(A @ x - y) - 1e-12
        # The smallest one, and orthogonal to the null space.
        assert np.allclose(V @ (V.T @ x), x, atol=1e-9)
        if size[1] > size[2]:
            assert np.linalg.norm(x + z) > np.linalg.norm(x)


@pytest.mark.claim("thm-svd-solution")
@pytest.mark.parametrize("broken", [None, "lambda squared", "sigma not squared below"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES)
def test_tikhonov_in_singular_vectors(size, seed, broken):
    A, (U, s, V), y, rng = instance(size, seed)
    lam = 10.0 ** rng.uniform(-2, 0.5)
    below = s**2 + lam
    if broken == "lambda squared":
        below = s**2 + lam**2
    if broken == "sigma not squared below":
        below = s + lam
    x = V @ (s / below * (U.T @ y))
    with rejects(broken):
        assert np.allclose(x, filters.tikhonov(A, y, lam, method="qr").x, atol=1e-9)
        spectrum = filters.decompose(A)
        factors = filters.tikhonov_factors(spectrum.s, lam)
        assert np.allclose(x, filters.filtered(spectrum, y, factors), atol=1e-9)
        assert np.allclose(A.T @ (A @ x - y) + lam * x, 0, atol=1e-9)


@pytest.mark.claim("prop-filter-bounds")
@pytest.mark.parametrize("broken", [None, "lambda squared", "factor 2 in the bound"])
@pytest.mark.parametrize("seed", range(5))
def test_filter_bounds(seed, broken):
    rng = np.random.default_rng(seed)
    lam = 10.0 ** rng.uniform(-6, 2)
    s = np.sqrt(lam) * np.concatenate([[1.0], 10.0 ** rng.uniform(-3, 3, 50)])
    phi = filters.tikhonov_factors(s, 2 * lam**2 if broken == "lambda squared" else lam)
    half = 0.25 if broken == "factor 2 in the bound" else 0.5
    slack = 1 + 1e-12
    with rejects(broken):
        assert np.all((phi > 0) & (phi < 1))
        assert np.all(phi <= slack * s**2 / lam)
        assert np.all(1 - phi <= slack * lam / s**2 + 1e-15)
        assert np.all(slack * phi >= 0.5 * np.minimum(1, s**2 / lam))
        assert np.all(1 - phi + 1e-15 >= 0.5 * np.minimum(1, lam / s**2) / slack)
        # One half at the root of lambda, and only there.
        assert phi[0] == pytest.approx(0.5, rel=1e-12)
        assert np.all((phi[1:] > 0.5) == (s[1:] > s[0]))
        # The largest gain: 1 / (2 sqrt(lam)), attained at the root of lambda.
        gain = phi / s
        assert gain.max() <= slack * half / np.sqrt(lam)
        assert gain[0] == pytest.approx(gain.max(), rel=1e-12)


@pytest.mark.claim("thm-lambda-to-zero")
@pytest.mark.parametrize("broken", [None, "the largest singular value in the bound", "the limit"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [size for size in SIZES if size[2] > 1])
def test_limit_for_fixed_data(size, seed, broken):
    A, (U, s, V), y, _ = instance(size, seed)
    x_dagger = pseudo_inverse_times((U, s, V), y)
    in_bound = s[0] if broken == "the largest singular value in the bound" else s[-1]
    limit = np.linalg.norm(pseudo_inverse_times((V, s**2, V), x_dagger))
    if broken == "the limit":
        limit = np.linalg.norm(x_dagger)
    with rejects(broken):
        for lam in (1.0, 1e-2, 1e-4):
            error = np.linalg.norm(filters.tikhonov(A, y, lam, method="qr").x - x_dagger)
            bound = lam / (in_bound**2 + lam) * np.linalg.norm(x_dagger)
            assert error <= (1 + 1e-8) * bound
        lam = 1e-4 * s[-1] ** 2
        error = np.linalg.norm(filters.tikhonov(A, y, lam, method="qr").x - x_dagger)
        assert error / lam == pytest.approx(limit, rel=1e-3)


@pytest.mark.claim("prop-error-split")
@pytest.mark.parametrize("broken", [None, "a sign", "the data error is missing"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES)
def test_approximation_error_and_data_error(size, seed, broken):
    A, thin, y, rng = instance(size, seed)
    U, s, V = thin
    x_dagger = pseudo_inverse_times(thin, y)
    # Any factors, not only Tikhonov's. The missing triplets of the full spectrum get factor 0.
    phi = rng.uniform(0.3, 1.5, s.size)
    spectrum = filters.decompose(A)
    padded = np.concatenate([phi, np.zeros(spectrum.s.size - s.size)])
    c = V.T @ x_dagger

    def split(e):
        sign = -1.0 if broken == "a sign" else 1.0
        return -V @ ((1 - phi) * c) + sign * V @ (phi * (U.T @ e) / s)

    noise_std, samples = 0.3, 20_000
    formula = np.sum((1 - phi) ** 2 * c**2)
    if broken != "the data error is missing":
        formula += noise_std**2 * np.sum(phi**2 / s**2)
    with rejects(broken):
        e = noise_std * rng.standard_normal(y.size)
        error = filters.filtered(spectrum, y + e, padded) - x_dagger
        assert np.allclose(error, split(e), atol=1e-9)
        # The sum over samples needs only the coefficients, which are one product of matrices.
        noise = noise_std * rng.standard_normal((y.size, samples))
        errors = -((1 - phi) * c)[:, None] + (phi / s)[:, None] * (U.T @ noise)
        squares = np.sum(errors**2, axis=0)
        spread = squares.std() / np.sqrt(samples)
        assert abs(squares.mean() - formula) <= 5 * spread


@pytest.mark.claim("thm-tikhonov-convergence")
@pytest.mark.parametrize("broken", [None, "4 in the place of 2 under delta"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES)
def test_bound_and_convergence(size, seed, broken):
    """Part (a): the bound for the worst noise, and convergence under the two conditions."""
    A, thin, y, rng = instance(size, seed)
    U, s, _ = thin
    x_dagger = pseudo_inverse_times(thin, y)
    spectrum = filters.decompose(A)
    # Rounding makes singular values of 1e-16 out of zeros; the theorem is about positive ones.
    positive = 1.0 * (np.arange(spectrum.s.size) < s.size)
    divisor = 4.0 if broken else 2.0

    def error(lam, e):
        factors = positive * filters.tikhonov_factors(spectrum.s, lam)
        return np.linalg.norm(filters.filtered(spectrum, y + e, factors) - x_dagger)

    with rejects(broken):
        # Noise along one singular vector, lam at its square: the data error is at its largest.
        for i in range(s.size):
            for delta in (1e3, 1.0, 1e-3):
                for lam in (s[i] ** 2, 10.0 ** rng.uniform(-3, 1)):
                    for sign in (-1, 1):
                        bound = lam / (s[-1] ** 2 + lam) * np.linalg.norm(x_dagger)
                        bound += delta / (divisor * np.sqrt(lam))
                        assert error(lam, sign * delta * U[:, i]) <= (1 + 1e-9) * bound
        # The rule lam = delta: the error goes below any mark as delta vanishes.
        for delta in (1e-6, 1e-10):
            worst = max(error(delta, delta * u) for u in U.T)
            assert worst <= delta / s[-1] ** 2 * np.linalg.norm(x_dagger) + 0.51 * np.sqrt(delta)


@pytest.mark.claim("thm-tikhonov-convergence")
@pytest.mark.parametrize("broken", [None, "delta squared over lambda does not vanish"])
@pytest.mark.parametrize("p", [0.5, 1.0, 2.0])
def test_convergence_with_many_singular_values(p, broken):
    """Part (b): singular values i^-p, so many that none of the runs sees the last one."""
    n = 200_000
    i = np.arange(1, n + 1)
    s, x_dagger = i**-p, i**-0.6 * (-1.0) ** i
    deltas = 10.0 ** -np.arange(0.0, 2.5, 0.5) * 0.1
    errors = []
    for delta in deltas:
        lam = delta**3 if broken else delta
        # The worst noise for this lam: all of it where the gain is largest.
        e = np.where(i == 1 + np.argmax(s / (s**2 + lam)), delta, 0.0)
        phi = filters.tikhonov_factors(s, lam)
        errors.append(np.linalg.norm((phi - 1) * x_dagger + phi / s * e))
    with rejects(broken):
        assert np.all(np.diff(errors) < 0)


@pytest.mark.claim("thm-tikhonov-convergence")
@pytest.mark.parametrize("broken", [None, "data that satisfy the Picard condition"])
def test_blow_up_without_the_picard_condition(broken):
    """Part (c): singular values 1/i; the sum of (y_i / s_i)^2 diverges, or it does not."""
    i = np.arange(1, 1_000_001)
    s = 1.0 / i
    y = i**-1.0 if broken is None else i**-2.0
    norms = []
    for lam in (1e-2, 1e-4, 1e-6, 1e-8):
        norms.append(np.linalg.norm(filters.tikhonov_factors(s, lam) * y / s))
    with rejects(broken):
        # The sum behaves like the integral of (1 + lam t^2)^-2, that is lam^(-1/2) pi / 4.
        assert np.allclose(np.array(norms[1:]) / norms[:-1], np.sqrt(10), rtol=0.05)


def test_grid_refinement_drives_the_limit_away_from_the_truth():
    """The third point of the common mistake: growth by 2^1.5 a doubling for integration."""
    predicted = []
    for n in (50, 100, 200):
        integral, truth = operators.integration(n), problems.blur_1d(n).x_true
        s = filters.decompose(integral).s
        noise_std = problems.add_noise(integral @ truth, 1e-2)[1]
        predicted.append(noise_std * np.linalg.norm(1 / s) / np.linalg.norm(truth))
    assert np.allclose(np.array(predicted[1:]) / predicted[:-1], 2**1.5, rtol=0.02)
