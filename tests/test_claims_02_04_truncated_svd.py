"""The claims of section 02/04 (truncated SVD), on random instances, and broken once each."""

import numpy as np
import pytest
from claims import rejects

from course_lib import filters, operators, problems

# Rows, columns, rank: square, tall, wide, each of full and of deficient rank.
SIZES = [(5, 5, 5), (7, 4, 4), (4, 7, 4), (6, 6, 3), (9, 6, 4), (6, 9, 4)]


def instance(size, seed):
    """A random matrix of the given rank, its thin decomposition, data, and the generator."""
    m, n, rank = size
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))
    spectrum = filters.decompose(A)
    thin = spectrum.U[:, :rank], spectrum.s[:rank], spectrum.V[:, :rank]
    return A, thin, rng.standard_normal(m), rng


def truncated(thin, r):
    U, s, V = thin
    return (U[:, :r] * s[:r]) @ V[:, :r].T


@pytest.mark.claim("thm-eckart-young")
@pytest.mark.parametrize("broken", [None, "a term of the middle is left out", "rank r + 1"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES)
def test_no_matrix_of_lower_rank_is_nearer(size, seed, broken):
    A, thin, _, rng = instance(size, seed)
    U, s, V = thin
    with rejects(broken):
        for r in range(1, s.size):
            A_r = truncated(thin, r)
            if broken == "a term of the middle is left out":
                # A competitor for the best place: the term r is exchanged for the term r + 1.
                A_r = A_r + s[r] * np.outer(U[:, r], V[:, r])
                A_r = A_r - s[r - 1] * np.outer(U[:, r - 1], V[:, r - 1])
            assert np.linalg.norm(A - A_r, 2) == pytest.approx(s[r], rel=1e-8)
            frobenius = np.linalg.norm(s[r:])
            assert np.linalg.norm(A - A_r) == pytest.approx(frobenius, rel=1e-8)
            wide = r + 1 if broken == "rank r + 1" else r
            for step in (0.0, 1e-6, 1e-3, 1e-1, 1.0):
                # Factors of rank r, from the best ones on.
                left = U[:, :wide] * s[:wide]
                left = left + step * rng.standard_normal(left.shape)
                right = V[:, :wide].T + step * rng.standard_normal((wide, A.shape[1]))
                B = left @ right
                assert np.linalg.norm(A - B, 2) >= (1 - 1e-9) * s[r]
                assert np.linalg.norm(A - B) >= (1 - 1e-9) * frobenius


@pytest.mark.claim("prop-tsvd-meaning")
@pytest.mark.parametrize("broken", [None, "one term too few", "divided by the next sigma"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES)
def test_two_meanings_of_the_tsvd_solution(size, seed, broken):
    A, thin, y, rng = instance(size, seed)
    U, s, V = thin
    norms, misfits = [], []
    with rejects(broken):
        for r in range(1, s.size + 1):
            x = filters.tsvd(A, y, r).x
            if broken == "one term too few":
                x = x - V[:, r - 1] * (U[:, r - 1] @ y) / s[r - 1]
            if broken == "divided by the next sigma":
                x = V[:, :r] @ ((U.T @ y)[:r] / np.append(s[1:], 1.0)[:r])
            # Smallest least-squares solution of A_r x = y.
            A_r = truncated(thin, r)
            assert np.allclose(x, np.linalg.pinv(A_r, rcond=1e-10) @ y, atol=1e-8)
            # The minimizer over the span of v_1, ..., v_r.
            inside = V[:, :r]
            assert np.allclose(inside @ (inside.T @ x), x, atol=1e-9)
            for _ in range(5):
                d = inside @ rng.standard_normal(r)
                assert np.linalg.norm(A @ (x + d) - y) > np.linalg.norm(A @ x - y)
            norms.append(np.linalg.norm(x))
            misfits.append(np.linalg.norm(A @ x - y))
        assert np.all(np.diff(norms) >= -1e-12)
        assert np.all(np.diff(misfits) <= 1e-12)


@pytest.mark.claim("prop-tsvd-error")
@pytest.mark.parametrize("broken", [None, "sigma not squared", "the noise level is doubled"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES)
def test_error_and_the_terms_worth_keeping(size, seed, broken):
    A, thin, _, rng = instance(size, seed)
    U, s, V = thin
    x_true = rng.standard_normal(A.shape[1])
    c, x_dagger = V.T @ x_true, V @ (V.T @ x_true)
    exact = A @ x_true
    # A noise level between the coefficients, so that some terms are worth keeping, some not;
    # the doubled one must turn a decision.
    level = np.abs(U.T @ exact)
    noise_std = 0.75 * float(np.median(level))
    claimed = noise_std
    if broken == "the noise level is doubled":
        claimed = 2 * float(level.max())
    power = 1 if broken == "sigma not squared" else 2
    samples = 4000
    noise = noise_std * rng.standard_normal((exact.size, samples))

    def expected(keep):
        return np.sum(c[~keep] ** 2) + noise_std**2 * np.sum(s[keep] ** -2.0)

    with rejects(broken):
        for r in range(1, s.size + 1):
            formula = np.sum(c[r:] ** 2) + noise_std**2 * np.sum(s[:r] ** -float(power))
            one = filters.tsvd(A, exact + noise[:, 0], r).x - x_dagger
            coefficients = U[:, :r].T @ noise / s[:r, None]
            squares = np.sum(coefficients**2, axis=0) + np.sum(c[r:] ** 2)
            assert np.linalg.norm(one) ** 2 == pytest.approx(squares[0], rel=1e-6)
            assert abs(squares.mean() - formula) <= 5 * squares.std() / np.sqrt(samples)
            if r < s.size:
                first, more = np.arange(s.size) < r, np.arange(s.size) < r + 1
                assert (expected(more) < expected(first)) == (level[r] > claimed)
        # Among all sets of terms: try each of them.
        worth = level > claimed
        for code in range(2**s.size):
            keep = (code >> np.arange(s.size)) % 2 == 1
            assert expected(worth) <= expected(keep) * (1 + 1e-12)


@pytest.mark.claim("prop-tsvd-error")
@pytest.mark.parametrize("broken", [None, "the later terms are worthy, too"])
def test_the_last_worthy_term_ends_the_best_truncation(broken):
    """If the coefficients cross the noise level once, truncation there is best."""
    rng = np.random.default_rng(0)
    s = 2.0 ** -np.arange(10)
    for crossing in range(1, 10):
        noise_std = 0.01
        c = rng.choice([-1, 1], 10) * noise_std / s * rng.uniform(1.1, 2, 10)
        c[crossing:] *= 1.0 if broken else 0.4
        errors = [np.sum(c[r:] ** 2) + noise_std**2 * np.sum(s[:r] ** -2) for r in range(1, 11)]
        with rejects(broken):
            assert 1 + int(np.argmin(errors)) == crossing


@pytest.mark.claim("thm-tsvd-convergence")
@pytest.mark.parametrize("broken", [None, "sigma_1 in the place of sigma_r", "no tail"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES)
def test_error_bound_for_any_noise(size, seed, broken):
    A, thin, _, rng = instance(size, seed)
    U, s, V = thin
    x_dagger = V @ rng.standard_normal(s.size)
    y = A @ x_dagger
    with rejects(broken):
        for r in range(1, s.size + 1):
            tail = 0.0 if broken == "no tail" else np.sum((V.T @ x_dagger)[r:] ** 2)
            below = s[0] if broken == "sigma_1 in the place of sigma_r" else s[r - 1]
            for delta in (1e-3, 1.0, 1e3):
                bound = np.sqrt(tail + delta**2 / below**2)
                e = rng.standard_normal(y.size)
                for noise in (delta * e / np.linalg.norm(e), delta * U[:, r - 1]):
                    error = np.linalg.norm(filters.tsvd(A, y + noise, r).x - x_dagger)
                    assert error <= (1 + 1e-8) * bound
                # The second noise is the worst one.
                assert error == pytest.approx(bound, rel=1e-6)


@pytest.mark.claim("thm-tsvd-convergence")
@pytest.mark.parametrize("broken", [None, "delta over sigma_r does not vanish"])
@pytest.mark.parametrize("p", [0.75, 1.0, 2.0])
def test_truncation_converges_with_many_singular_values(p, broken):
    i = np.arange(1, 100_001)
    s, x_dagger = i**-p, i**-0.6 * (-1.0) ** i
    errors = []
    for delta in 10.0 ** -np.arange(1, 5):
        # sigma_r = sqrt(delta), or delta^1.5: as many terms as have a larger singular value.
        r = int(np.sum(s >= (delta**1.5 if broken else np.sqrt(delta))))
        phi = filters.tsvd_factors(s, r)
        e = np.where(i == r, delta, 0.0)
        errors.append(np.linalg.norm((phi - 1) * x_dagger + phi / s * e))
    with rejects(broken):
        assert np.all(np.diff(errors) < 0)


def tied(seed):
    """A matrix with singular values 3, 2, 2, 1, in two systems of singular vectors."""
    rng = np.random.default_rng(seed)
    U = np.linalg.qr(rng.standard_normal((6, 4)))[0]
    V = np.linalg.qr(rng.standard_normal((5, 4)))[0]
    s = np.array([3.0, 2.0, 2.0, 1.0])
    b = rng.uniform(0.2, 1.3)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(b), -np.sin(b)], [np.sin(b), np.cos(b)]]
    return s, (U, V), (U @ turn, V @ turn), rng.standard_normal(6)


@pytest.mark.claim("prop-tsvd-ties")
@pytest.mark.parametrize("broken", [None, "ties cut in two", "no tie"])
@pytest.mark.parametrize("seed", range(5))
def test_ties(seed, broken):
    s, (U, V), (U2, V2), y = tied(seed)
    if broken == "no tie":
        s = np.array([3.0, 2.0, 1.9, 1.0])
    A = (U * s) @ V.T

    def solution(U, V, r):
        return V[:, :r] @ ((U[:, :r].T @ y) / s[:r])

    ranks = (1, 2, 3) if broken == "ties cut in two" else (1, 3)
    with rejects(broken):
        # Both systems are singular systems of the same matrix.
        assert np.allclose((U2 * s) @ V2.T, A)
        for r in ranks:
            assert np.allclose(solution(U, V, r), solution(U2, V2, r))
        # At the tie the solutions differ, and both matrices are best approximations.
        assert np.linalg.norm(solution(U, V, 2) - solution(U2, V2, 2)) > 1e-3
        for left, right in ((U, V), (U2, V2)):
            B = (left[:, :2] * s[:2]) @ right[:, :2].T
            assert np.linalg.norm(A - B, 2) == pytest.approx(s[2])
            assert np.linalg.norm(A - B) == pytest.approx(np.linalg.norm(s[2:]))
        # The library keeps the tie together.
        assert np.allclose(filters.tsvd(A, y, 2).x, solution(U, V, 3))


@pytest.mark.claim("thm-tsvd-tikhonov")
@pytest.mark.parametrize("broken", [None, "lambda = sigma_r", "omega in the place of the quotient"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", SIZES)
def test_truncation_and_tikhonov(size, seed, broken):
    A, (U, s, _), y, rng = instance(size, seed)
    with rejects(broken):
        for r in range(1, s.size):
            omega, lam = s[r] / s[r - 1], s[r - 1] * s[r]
            largest = omega / (1 + omega)
            if broken == "omega in the place of the quotient":
                largest = omega

            def difference(lam, r=r):
                return np.abs(filters.tsvd_factors(s, r) - filters.tikhonov_factors(s, lam)).max()

            used = s[r - 1] if broken == "lambda = sigma_r" else lam
            assert difference(used) == pytest.approx(largest, rel=1e-9)
            for other in lam * np.concatenate([10.0 ** rng.uniform(-2, 2, 20), [0.99, 1.01]]):
                assert difference(other) > difference(used)
            x_r = filters.tsvd(A, y, r).x
            distance = np.linalg.norm(x_r - filters.tikhonov(A, y, lam, method="qr").x)
            rest = np.linalg.norm((U.T @ y)[r:]) / (s[r - 1] + s[r])
            assert distance <= (1 + 1e-8) * np.hypot(largest * np.linalg.norm(x_r), rest)


@pytest.mark.claim("thm-tsvd-tikhonov")
@pytest.mark.parametrize("broken", [None, "half of the second factor"])
def test_the_bound_on_the_distance_is_attained(broken):
    """Two singular values, data along the second vector: only the second term of the bound."""
    A, y = np.diag([1.0, 0.1]), np.array([0.0, 1.0])
    bound = 1 / (1.0 + 0.1) * (0.5 if broken else 1.0)
    distance = np.linalg.norm(filters.tsvd(A, y, 1).x - filters.tikhonov(A, y, 0.1).x)
    with rejects(broken):
        assert distance <= (1 + 1e-12) * bound
        assert distance == pytest.approx(bound)


@pytest.mark.parametrize("r", [10, 20, 40])
def test_truncation_overshoots_at_an_edge_by_about_nine_percent(r):
    """Gibbs' phenomenon, in the section's table; Tikhonov's method does not for integration."""
    x_true = problems.blur_1d(512).x_true
    A = operators.integration(512)
    svd, block = filters.decompose(A), np.arange(512) < 0.28 * 512
    lam = svd.s[r - 1] * svd.s[r]
    sharp = filters.filtered(svd, A @ x_true, filters.tsvd_factors(svd.s, r))
    soft = filters.filtered(svd, A @ x_true, filters.tikhonov_factors(svd.s, lam))
    assert 0.08 < sharp[block].max() - 1 < 0.11
    assert soft[block].max() - 1 < 0
