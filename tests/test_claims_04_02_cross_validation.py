"""The claims of section 04/02 (cross-validation), on random instances, broken once each."""

import numpy as np
import pytest
from claims import rejects

from course_lib import choice, filters, operators

GRID = np.array([0.03, 0.3, 3.0])


def smoother_matrix(A, D, lam):
    """P_λ, column by column from the library."""
    fits = choice.smoother(A, D)
    return np.transpose([A @ fits.fit(column).solve(lam) for column in np.eye(len(A))])


def instance(rng, m=9, n=6):
    A = rng.standard_normal((m, n))
    D = operators.difference(n).to_dense() if rng.integers(2) else rng.standard_normal((n, n))
    return A, D, rng.standard_normal(m)


@pytest.mark.claim("thm-press")
@pytest.mark.parametrize("broken", [None, "leverages forgotten", "diagonal of the block only"])
def test_a_block_left_out_in_closed_form(rng, broken):
    for _ in range(10):
        A, D, y = instance(rng)
        lam = 10 ** rng.uniform(-2, 1)
        out = rng.permutation(9)[: rng.integers(2, 4)]
        used = np.setdiff1d(np.arange(9), out)
        P = smoother_matrix(A, D, lam)
        S = np.eye(len(out)) - P[np.ix_(out, out)]
        if broken:
            S = np.eye(len(out)) if broken == "leverages forgotten" else np.diag(np.diag(S))
        refitted = y - A @ filters.tikhonov(A[used], y[used], lam, D).x
        with rejects(broken):
            np.testing.assert_allclose(np.linalg.solve(S, (y - P @ y)[out]), refitted[out])


@pytest.mark.claim("thm-press")
@pytest.mark.parametrize("broken", [None, "one part fewer", "mean leverage"])
def test_leaving_one_out(rng, broken):
    for _ in range(10):
        A, _, y = instance(rng)
        folds = 8 if broken == "one part fewer" else 9
        rule = choice.gcv if broken == "mean leverage" else choice.loocv
        refitted = choice.k_fold(A, y, filters.tikhonov, GRID, folds=folds)
        with rejects(broken):
            np.testing.assert_allclose(rule(A, y, grid=GRID).values, refitted.values)


@pytest.mark.claim("thm-press")
@pytest.mark.parametrize("broken", [None, "never a leverage of 1"])
def test_leverage_one_is_a_problem_without_a_minimizer(rng, broken):
    """Second differences and data at three points: two of them determine a line, one does not."""
    D = operators.difference(6, order=2).to_dense()
    places = np.sort(rng.permutation(6)[:3])
    A = np.eye(6)[places]
    for lam in GRID:
        P = smoother_matrix(A, D, lam)
        for size in (1, 2):
            block = P[:size, :size]
            left = np.vstack([A[size:], D])
            unique = np.linalg.matrix_rank(left) == 6 or broken == "never a leverage of 1"
            with rejects(broken if size == 2 else None):
                assert (np.linalg.eigvalsh(block)[-1] < 1 - 1e-9) == unique
        eigenvalues = np.linalg.eigvalsh(P)
        assert eigenvalues[0] > -1e-9
        assert eigenvalues[-1] < 1 + 1e-9


@pytest.mark.claim("prop-cv-expectation")
@pytest.mark.parametrize("broken", [None, "no covariance term", "the solution from all data"])
def test_expectation_with_correlated_noise(rng, broken):
    """The noise is B times a vector of signs; the mean over all sign patterns is exact."""
    for _ in range(5):
        A, x = rng.standard_normal((6, 4)), rng.standard_normal(4)
        B, lam = rng.standard_normal((6, 6)), 10 ** rng.uniform(-1, 1)
        cov, out, used = B @ B.T, np.array([1, 4]), np.array([0, 2, 3, 5])
        signs = 1 - 2.0 * (np.arange(2**6)[:, None] >> np.arange(6) & 1)
        y = A @ x + signs @ B.T
        fits = choice.smoother(A[used])
        M = np.transpose([fits.fit(column).solve(lam) for column in np.eye(4)])
        estimates = y[:, used] @ M.T
        measured = np.mean(np.sum((y[:, out] - estimates @ A[out].T) ** 2, axis=1))
        if broken == "the solution from all data":
            all_data = choice.smoother(A)
            estimates = np.array([all_data.fit(row).solve(lam) for row in y])
        error = np.mean(np.sum(((estimates - x) @ A[out].T) ** 2, axis=1))
        mixed = np.trace(A[out] @ M @ cov[np.ix_(used, out)]) * (broken != "no covariance term")
        with rejects(broken):
            assert measured == pytest.approx(np.trace(cov[np.ix_(out, out)]) + error - 2 * mixed)


@pytest.mark.claim("thm-gcv")
@pytest.mark.parametrize("broken", [None, "LOOCV is invariant", "the number of unknowns"])
def test_gcv_does_not_see_rotations(rng, broken):
    for _ in range(5):
        A, D, y = instance(rng)
        Q = np.linalg.qr(rng.standard_normal((9, 9)))[0]
        rule = choice.loocv if broken == "LOOCV is invariant" else choice.gcv
        values = rule(A, y, D, grid=GRID).values
        P = [smoother_matrix(A, D, lam) for lam in GRID]
        number = 6 if broken == "the number of unknowns" else 9
        formula = [9 * np.sum((y - p @ y) ** 2) / (number - np.trace(p)) ** 2 for p in P]
        with rejects(broken):
            np.testing.assert_allclose(rule(Q @ A, Q @ y, D, grid=GRID).values, values)
            np.testing.assert_allclose(values, formula)


@pytest.mark.claim("thm-gcv")
@pytest.mark.parametrize("broken", [None, "a random rotation"])
def test_gcv_is_loocv_in_other_axes(rng, broken):
    for _ in range(5):
        A, D, y = instance(rng)
        F = np.fft.fft(np.eye(9)) / 3
        if broken:
            F = np.linalg.qr(rng.standard_normal((9, 9)))[0]
        gcv = choice.gcv(A, y, D, grid=GRID).values
        U = np.linalg.eigh(smoother_matrix(A, D, 1.0))[1]
        Q = F @ U.T
        for lam, value in zip(GRID, gcv, strict=True):
            P = smoother_matrix(A, D, lam)
            leverages = np.diag(Q @ P @ Q.conj().T)
            loocv = np.mean(np.abs(Q @ (y - P @ y) / (1 - leverages)) ** 2)
            with rejects(broken):
                assert loocv == pytest.approx(value)


@pytest.mark.claim("thm-gcv")
@pytest.mark.parametrize("broken", [None, "equal for this y is enough"])
def test_equal_for_every_y_only_with_equal_leverages(rng, broken):
    A, D, _ = instance(rng)
    P = smoother_matrix(A, D, 0.3)
    S = np.eye(9) - P
    s = np.diag(S)
    form = S @ np.diag(s**-2 - np.mean(s) ** -2) @ S
    y = rng.standard_normal(9)
    if broken:
        # A y for which the two agree, although the leverages differ.
        values, vectors = np.linalg.eigh(form)
        y = vectors[:, -1] * np.sqrt(-values[0]) + vectors[:, 0] * np.sqrt(values[-1])
    left_out, general = (rule(A, y, D, grid=GRID).values[1] for rule in (choice.loocv, choice.gcv))
    assert np.ptp(s) > 1e-3
    with rejects(broken):
        assert abs(left_out - general) > 1e-9 * general
    assert left_out - general == pytest.approx(y @ form @ y / 9, abs=1e-9)
    # Rows of a circulant matrix, and a D that is circulant too.
    row, penalty = rng.standard_normal((2, 9))
    C, E = (np.array([np.roll(r, j) for j in range(9)]) for r in (row, penalty))
    pair = [rule(C, y, E, grid=GRID).values for rule in (choice.loocv, choice.gcv)]
    np.testing.assert_allclose(*pair)
