"""Spectral filters and Tikhonov's method: every way to the same answer, and where there is none."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from cases import FILTERS
from conftest import make_like
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import assert_alike, eps, relative, to_numpy

from course_lib import filters
from course_lib.arrays import asarray_like
from course_lib.filters import (
    cgls_factors,
    decompose,
    filtered,
    landweber_factors,
    ritz_values,
    standard_form,
    tikhonov,
    tikhonov_factors,
    tsvd,
    tsvd_factors,
)
from course_lib.iterate import Result, run
from course_lib.linear import cgls, landweber
from course_lib.operators import (
    convolution,
    difference,
    gradient,
    identity,
    integration,
    matrix,
    stack,
    subsampling,
)


def deriv2(n: int) -> np.ndarray:
    """The Green's function of -x'' = y on [0, 1], midpoint rule: the classical test problem."""
    t = (np.arange(n) + 0.5) / n
    s = t[:, None]
    return np.where(s < t, s * (1 - t), t * (1 - s)) / n


def random_system(m: int, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((m, n)), rng.standard_normal(m)


def augmented_lstsq(A, y, lam: float, D) -> np.ndarray:
    """The minimizer by NumPy's least squares on the augmented matrix."""
    rows = np.vstack([A, math.sqrt(lam) * D])
    return np.linalg.lstsq(rows, np.concatenate([y, np.zeros(D.shape[0])]), rcond=None)[0]


def differences(n: int) -> dict:
    return {
        f"{order}-{boundary}": difference(n, order=order, boundary=boundary)
        for order, names in (
            (1, ("free", "zero", "periodic")),
            (2, ("free", "zero", "reflect", "periodic")),
        )
        for boundary in names
    }


# ---------------------------------------------------------------- every filter of the table


@pytest.fixture(params=FILTERS, ids=lambda case: case.name)
def case(request):
    return request.param


S = np.array([1.0, 0.7, 0.3, 0.1, 0.04])


def test_factors_are_their_formula(case, like):
    for parameter in case.parameters:
        factors = case.factors(asarray_like(S, like), parameter)
        assert_alike(factors, like)
        np.testing.assert_allclose(
            to_numpy(factors), case.formula(S, parameter), rtol=2000 * eps(like), atol=1e-30
        )


def test_factors_lie_between_0_and_1_and_fall_with_s(case):
    s = np.geomspace(1, 1e-12, 200)
    for parameter in case.parameters:
        factors = case.factors(s, parameter)
        assert ((factors >= 0) & (factors <= 1)).all()
        assert (np.diff(factors) <= 4 * np.finfo(float).eps).all()


def test_factors_grow_as_the_regularization_weakens(case):
    grid = np.stack([case.factors(S, parameter) for parameter in case.parameters])
    assert (np.diff(grid, axis=0) >= 0).all()


def test_filtered_solutions_reach_the_pseudoinverse(case):
    """With the weakest parameter of the table and a good matrix nothing is filtered."""
    U, V = (
        np.linalg.qr(np.random.default_rng(k).standard_normal((m, 5)))[0]
        for k, m in enumerate((7, 6))
    )
    A, y = (U * np.linspace(1, 0.5, 5)) @ V.T, np.random.default_rng(2).standard_normal(7)
    spectrum = decompose(A)
    factors = np.where(spectrum.s > 1e-10, case.factors(spectrum.s, case.parameters[-1]), 0)
    np.testing.assert_allclose(
        filtered(spectrum, y, factors), np.linalg.pinv(A, rcond=1e-10) @ y, rtol=1e-12, atol=1e-13
    )


def test_zero_singular_values_stay_out(case, like):
    """A matrix of rank 2: nothing is divided by a singular value that is 0."""
    A = asarray_like(np.diag([2.0, 1.0, 0.0]), like)
    spectrum = decompose(A)
    x = filtered(spectrum, asarray_like([1.0, 1.0, 5.0], like), case.factors(spectrum.s, 1))
    assert_alike(x, like)
    assert np.isfinite(to_numpy(x)).all()
    assert float(x[2]) == 0


def test_every_filter_is_in_the_table():
    """But that of CGLS, which depends on the data and has tests of its own."""
    names = {name.removesuffix("_factors") for name in filters.__all__ if name.endswith("_factors")}
    assert names == {case.name for case in FILTERS} | {"cgls"}


# ---------------------------------------------------------------- bounds


def test_stability_bounds():
    """φ/σ: at most 1/(2√λ) for Tikhonov, √(ηk) for Landweber, 1/σ_r for TSVD; nearly attained."""
    s = np.geomspace(1, 1e-8, 20_000)
    for lam in (1e-2, 1e-6, 1e-10):
        gain = (tikhonov_factors(s, lam) / s).max()
        assert 0.999 <= gain * 2 * math.sqrt(lam) <= 1 + 1e-12
    for k in (1, 10, 1000, 100_000):
        for step in (1.0, 0.25):
            longer = s / math.sqrt(step)  # up to ησ² = 1
            gain = (landweber_factors(longer, step, k) / longer).max()
            assert 0.6 <= gain / math.sqrt(step * k) <= 1 + 1e-12
    sigma = np.array([1.0, 0.5, 0.25])
    assert (tsvd_factors(sigma, 2) / sigma).max() == 2


def test_extreme_parameters_are_finite(dtype):
    """From 1e-30 to 1e30, with a zero singular value among them: no 0/0, no overflow."""
    s = np.array([3.0, 1.0, 1e-10, 1e-25, 0.0], dtype=dtype)
    for lam in 10.0 ** np.arange(-30, 31, 5):
        factors = tikhonov_factors(s, lam)
        assert np.isfinite(factors).all()
        assert factors[-1] == 0
    assert np.isfinite(tikhonov_factors(s, 1e-300)).all()


# ---------------------------------------------------------------- one decomposition


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 4), (4, 1), (1, 1)])
def test_decompose_a_matrix(shape, like):
    A, y = random_system(*shape)
    spectrum = decompose(asarray_like(A, like))
    data = asarray_like(y, like)
    for array in (spectrum.s, spectrum.U, spectrum.V, spectrum.analyse(data)):
        assert_alike(array, like)
    s, U, V = (to_numpy(a).astype(float) for a in (spectrum.s, spectrum.U, spectrum.V))
    tolerance = 50 * eps(like)
    np.testing.assert_allclose((U * s) @ V.T, A, atol=tolerance)
    np.testing.assert_allclose(U.T @ U, np.eye(min(shape)), atol=tolerance)
    np.testing.assert_allclose(V.T @ V, np.eye(min(shape)), atol=tolerance)
    np.testing.assert_allclose(s, np.linalg.svd(A, compute_uv=False), rtol=tolerance)
    np.testing.assert_allclose(to_numpy(spectrum.analyse(data)), U.T @ y, atol=tolerance)
    c = asarray_like(np.arange(1.0, min(shape) + 1), like)
    np.testing.assert_allclose(
        to_numpy(spectrum.synthesize(c)), V @ np.arange(1.0, min(shape) + 1), atol=10 * tolerance
    )


def test_rank():
    assert decompose(np.diag([1.0, 1e-3, 0.0])).rank == 2
    assert decompose(np.zeros((3, 2))).rank == 0
    A = random_system(8, 3)[0]
    assert decompose(A @ A.T).rank == 3


PSFS = {
    "1-D even": (8, (3,)),
    "1-D odd": (7, (3,)),
    "1-D even kernel": (8, (4,)),
    "1-D odd, even kernel": (9, (4,)),
    "2-D even": ((6, 4), (3, 3)),
    "2-D odd": ((5, 7), (3, 2)),
    "2-D mixed": ((4, 5), (3, 3)),
}


def periodic(name: str, like, symmetric: bool = False):
    """A periodic convolution with a random or symmetric kernel, and its dense matrix."""
    shape, size = PSFS[name]
    psf = np.random.default_rng(4).standard_normal(size)
    if symmetric:
        psf = psf + np.flip(psf)
    A = convolution(asarray_like(psf, like), shape)
    return A, to_numpy(A.to_dense()).astype(float)


@pytest.mark.parametrize("name", PSFS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_fourier_spectrum_is_the_svd(name, symmetric, like):
    """Same singular values, same solutions for every filter, though the bases differ."""
    A, M = periodic(name, like, symmetric)
    fourier, dense = decompose(A), decompose(M)
    assert_alike(fourier.s, like)
    assert fourier.U is None
    tolerance = 200 * eps(like) * np.linalg.norm(M, 2)
    s = np.sort(to_numpy(fourier.s).ravel())[::-1]
    np.testing.assert_allclose(s, dense.s, atol=tolerance)
    assert fourier.rank == np.linalg.matrix_rank(M, tol=tolerance)
    y = np.random.default_rng(7).standard_normal(A.out_shape)
    data = asarray_like(y, like)
    ours = filtered(fourier, data, tikhonov_factors(fourier.s, 0.3))
    assert_alike(ours, like)
    assert tuple(ours.shape) == A.in_shape
    theirs = filtered(dense, y.ravel(), tikhonov_factors(dense.s, 0.3))
    np.testing.assert_allclose(to_numpy(ours).ravel(), theirs, atol=20 * tolerance)
    # ⟨u, y⟩ keeps the length of y, and A in these bases is the multiplication with s.
    coefficients = to_numpy(fourier.analyse(data))
    assert np.linalg.norm(coefficients) == pytest.approx(np.linalg.norm(y), rel=50 * eps(like))
    again = to_numpy(fourier.analyse(A @ fourier.synthesize(fourier.analyse(data))))
    live = to_numpy(fourier.s) > tolerance
    np.testing.assert_allclose(
        again[live], (to_numpy(fourier.s) * coefficients)[live], atol=50 * tolerance
    )


@pytest.mark.parametrize("name", PSFS)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_truncation_keeps_conjugate_pairs_together(name, library, request):
    """Frequencies come in pairs of one singular value: half a pair would be no real vector.

    A smooth kernel makes the last singular values tiny: there rounding splits the pairs, and only
    a tolerance in units of the largest one joins them again.
    """
    if library == "torch":
        request.getfixturevalue("torch")
    like = make_like(library, "float64")
    shape, _ = PSFS[name]
    sizes = (shape,) if isinstance(shape, int) else shape
    grids = np.meshgrid(*(np.arange(n) - n // 2 for n in sizes), indexing="ij")
    psf = np.exp(-sum(g**2 for g in grids) / 2.0)
    A = convolution(asarray_like(psf / psf.sum(), like), shape)
    spectrum = decompose(A)
    s = to_numpy(spectrum.s)
    y = np.random.default_rng(1).standard_normal(A.out_shape)
    for rank in range(1, spectrum.rank + 1):
        factors = to_numpy(tsvd_factors(spectrum.s, rank))
        kept = np.flatnonzero(factors.ravel())
        mirrored = np.roll(np.flip(factors), 1, axis=tuple(range(factors.ndim)))
        np.testing.assert_array_equal(factors, mirrored)
        assert kept.size >= rank
        x = to_numpy(tsvd(A, asarray_like(y, like), rank).x)
        coefficients = np.fft.fftn(x, norm="ortho")
        assert np.abs(coefficients[factors == 0]).max(initial=0) < 1e-9 / s[factors == 1].min()


# ---------------------------------------------------------------- Tikhonov: all ways agree


SHAPES = [(9, 6), (6, 9), (7, 7), (1, 5), (5, 1), (1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lam", [1e-6, 1e-2, 1.0, 1e4])
def test_tikhonov_agrees_with_everything(shape, lam):
    A, y = random_system(*shape)
    m, n = shape
    expected = augmented_lstsq(A, y, lam, np.eye(n))
    ways = {
        "qr": tikhonov(A, y, lam, method="qr").x,
        "auto": tikhonov(A, y, lam).x,
        "spectral": tikhonov(A, y, lam, method="spectral").x,
        "cgls": tikhonov(A, y, lam, method="cgls", rtol=1e-13).x,
        "D given": tikhonov(A, y, lam, np.eye(n)).x,
        "filtered": filtered(decompose(A), y, tikhonov_factors(decompose(A).s, lam)),
        "normal equations": np.linalg.solve(A.T @ A + lam * np.eye(n), A.T @ y),
        # The push-through identity.
        "dual": A.T @ np.linalg.solve(A @ A.T + lam * np.eye(m), y),
        "scipy": scipy.linalg.lstsq(
            np.vstack([A, math.sqrt(lam) * np.eye(n)]), np.append(y, np.zeros(n))
        )[0],
        "sparse": tikhonov(scipy.sparse.csr_array(A), y, lam, rtol=1e-13).x,
        "lsqr": scipy.sparse.linalg.lsqr(
            A, y, damp=math.sqrt(lam), atol=1e-15, btol=1e-15, conlim=0, iter_lim=200
        )[0],
    }
    # The two formed normal matrices lose half the digits: so do we allow them.
    for name, x in ways.items():
        bound = 1e-7 if name in ("normal equations", "dual", "lsqr") else 1e-10
        assert relative(x, expected) < bound, name


def test_the_result_of_tikhonov(like):
    A, y = random_system(5, 4)
    for method in ("auto", "qr", "spectral", "cgls"):
        result = tikhonov(
            asarray_like(A, like), asarray_like(y, like), 0.5, method=method, rtol=20 * eps(like)
        )
        assert isinstance(result, Result)
        assert result.converged, result.reason
        assert_alike(result.x, like)
        expected = augmented_lstsq(A, y, 0.5, np.eye(4))
        assert relative(result.x, expected) < 200 * eps(like)
        if method != "cgls":
            assert result.reason.startswith("direct: ")
            assert (result.iterations, result.state) == (0, None)


@pytest.mark.parametrize("name", differences(8))
@pytest.mark.parametrize("shape", [(10, 8), (5, 8)])
@pytest.mark.parametrize("lam", [1e-4, 1.0, 1e3])
def test_general_penalties(name, shape, lam):
    """Every difference, with its null space or without: QR, CGLS, standard form, lstsq."""
    A, y = random_system(*shape)
    D = differences(8)[name]
    expected = augmented_lstsq(A, y, lam, D.to_dense())
    assert relative(tikhonov(A, y, lam, D).x, expected) < 1e-10
    assert relative(tikhonov(A, y, lam, D.to_dense(), method="qr").x, expected) < 1e-10
    by_cgls = tikhonov(A, y, lam, D, method="cgls", rtol=1e-12)
    assert by_cgls.converged, by_cgls.reason
    assert relative(by_cgls.x, expected) < 1e-7
    form = standard_form(A, D)
    x_bar = tikhonov(form.A_bar, form.to_data(y), lam).x
    assert relative(form.back(x_bar, y), expected) < 1e-9


def penalties(n: int) -> dict:
    """Square, fewer and more rows than unknowns, each with and without a null space."""
    rng = np.random.default_rng(3)
    wide, tall = rng.standard_normal((3, n)), rng.standard_normal((n + 3, n))
    deficient = rng.standard_normal((n, 4)) @ rng.standard_normal((4, n))
    return {
        "p < n": wide,
        "p > n": tall,
        "p = n": tall[:n],
        "deficient": deficient,
        "deficient, p > n": np.vstack([deficient, deficient[:2]]),
        "one row": wide[:1],
        "periodic": difference(n, boundary="periodic").to_dense(),
        "diagonal": np.diag(np.geomspace(1, 1e-3, n)),
        "permutation": np.eye(n)[::-1],
    }


@pytest.mark.parametrize("name", penalties(7))
@pytest.mark.parametrize("m", [9, 7, 6])
def test_standard_form(name, m):
    """x, the penalty, the residual and the objective survive the way there and back."""
    A, y = random_system(m, 7, seed=1)
    D = penalties(7)[name]
    form = standard_form(A, D)
    rank = np.linalg.matrix_rank(D)
    assert form.A_bar.shape == (m, rank)
    for lam in (1e-3, 1.0, 30.0):
        x_bar = tikhonov(form.A_bar, form.to_data(y), lam).x
        x = form.back(x_bar, y)
        assert relative(x, augmented_lstsq(A, y, lam, D)) < 1e-8
        assert np.linalg.norm(x_bar) == pytest.approx(np.linalg.norm(D @ x), rel=1e-9)
        bar_residual = form.A_bar @ x_bar - form.to_data(y)
        assert np.linalg.norm(bar_residual) == pytest.approx(np.linalg.norm(A @ x - y), abs=1e-9)


def test_standard_form_values_are_generalized_singular_values():
    """σ(Ā)² are the finite eigenvalues of the pencil AᵀA - γ² DᵀD, where D is injective."""
    A, _ = random_system(9, 6)
    D = random_system(8, 6, seed=5)[0]
    gamma = np.sqrt(scipy.linalg.eigh(A.T @ A, D.T @ D, eigvals_only=True))[::-1]
    s = np.linalg.svd(standard_form(A, D).A_bar, compute_uv=False)
    np.testing.assert_allclose(s, gamma, rtol=1e-9)


def test_standard_form_of_pictures_and_kinds(like):
    """Pictures keep their shape; library and dtype stay."""
    psf = asarray_like(np.outer([1.0, 2, 1], [1.0, 2, 1]) / 16, like)
    A = convolution(psf, (4, 3), boundary="zero")
    D = gradient((4, 3))
    y = asarray_like(np.random.default_rng(0).standard_normal((4, 3)), like)
    form = standard_form(A, D)
    assert_alike(form.A_bar, like)
    x = form.back(tikhonov(form.A_bar, form.to_data(y), 0.1).x, y)
    assert_alike(x, like)
    assert tuple(x.shape) == (4, 3)
    expected = tikhonov(A, y, 0.1, D, method="qr").x
    assert relative(x, expected) < 5000 * eps(like)
    injective = standard_form(A, stack(D, identity((4, 3))))
    x = injective.back(tikhonov(injective.A_bar, injective.to_data(y), 0.1).x, y)
    assert tuple(x.shape) == (4, 3)
    # An operator without numbers takes the kind of the other one.
    bound = matrix(asarray_like(np.eye(4)[:2] + 1.0, like))
    assert_alike(standard_form(difference(4, boundary="zero"), bound).A_bar, like)


@pytest.mark.slow
def test_pictures_by_all_methods(like):
    psf = asarray_like(np.outer([1.0, 2, 1], [1.0, 2, 1]) / 16, like)
    y = np.random.default_rng(0).standard_normal((5, 4))
    for boundary in ("zero", "periodic"):
        A = convolution(psf, (5, 4), boundary=boundary)
        for D in (None, gradient((5, 4)), gradient((5, 4), boundary="periodic")):
            M = to_numpy(A.to_dense()).astype(float)
            N = np.eye(20) if D is None else D.to_dense()
            expected = augmented_lstsq(M, y.ravel(), 0.1, N)
            for method in ("auto", "qr", "cgls"):
                result = tikhonov(
                    A, asarray_like(y, like), 0.1, D, method=method, rtol=max(1e-12, 20 * eps(like))
                )
                assert result.converged, result.reason
                assert_alike(result.x, like)
                assert tuple(result.x.shape) == (5, 4)
                assert relative(result.x, expected) < max(1e-9, 500 * eps(like))


@pytest.mark.parametrize("name", PSFS)
def test_fourier_division_is_dense(name, like):
    """Every shift-invariant penalty, in one dimension and two, even and odd."""
    A, M = periodic(name, like)
    y = np.random.default_rng(7).standard_normal(A.out_shape)
    penalties = [None, gradient(A.in_shape, boundary="periodic"), A, 2.5 * identity(A.in_shape) + A]
    if len(A.in_shape) == 1:
        n = A.in_shape[0]
        penalties += [difference(n, order=k, boundary="periodic") for k in (1, 2)]
    for D in penalties:
        N = np.eye(y.size) if D is None else to_numpy(D.to_dense(like=like)).astype(float)
        if np.linalg.matrix_rank(np.vstack([M, N])) < y.size:
            continue
        result = tikhonov(A, asarray_like(y, like), 0.3, D)
        assert result.reason == "direct: Fourier division"
        assert_alike(result.x, like)
        assert relative(result.x, augmented_lstsq(M, y.ravel(), 0.3, N)) < 2000 * eps(like)


def test_auto_chooses(torch):
    """Fourier for periodic convolutions, QR for matrices, CGLS for the rest."""
    psf, y = np.array([0.2, 0.5, 0.3]), np.arange(6.0)
    blur = convolution(psf, 6)
    for A, D, words in (
        (blur, None, "Fourier"),
        (blur, difference(6, boundary="periodic"), "Fourier"),
        (blur + identity(6), None, "Fourier"),
        (blur, difference(6), "gradient norm"),
        (np.diag(y + 1), None, "QR"),
        (np.diag(y + 1), difference(6), "QR"),
        (np.diag(y + 1), np.eye(6), "QR"),
        (scipy.sparse.csr_array(np.diag(y + 1)), None, "gradient norm"),
        (np.diag(y + 1), scipy.sparse.csr_array(np.eye(6)), "gradient norm"),
        (integration(6), None, "gradient norm"),
        (subsampling(y > 2), difference(6, boundary="zero"), "gradient norm"),
    ):
        A = blur if A is blur else A
        data = y[: (A.out_shape if hasattr(A, "out_shape") else A.shape)[0]]
        assert words in tikhonov(A, data, 0.1, D).reason


# ---------------------------------------------------------------- extremes of λ


@pytest.mark.parametrize("exponent", range(-30, 31, 6))
@pytest.mark.parametrize("shape", [(8, 6), (6, 6), (5, 6)])
def test_any_lambda_with_the_identity(exponent, shape):
    """The right answer, or a refusal that says why; never a wrong one.

    To nearly full precision, but for QR with fewer rows than unknowns and a tiny λ: there the
    augmented matrix has a condition number of ‖A‖/√λ, and QR pays for it.
    """
    A, y = random_system(*shape)
    lam = 10.0**exponent
    U, s, Vt = np.linalg.svd(A, full_matrices=False)
    expected = Vt.T @ (s / (s**2 + lam) * (U.T @ y))
    for method in ("spectral", "qr", "cgls"):
        try:
            result = tikhonov(A, y, lam, method=method)
        except ValueError as error:
            assert "deficient rank" in str(error)
            # Only where the augmented matrix is singular to working precision.
            assert shape[0] < shape[1]
            assert math.sqrt(lam) < 1e-14
            continue
        assert result.converged
        wide = method == "qr" and shape[0] < shape[1]
        bound = 10 * np.finfo(float).eps * s[0] / math.sqrt(lam) if wide else 0
        assert relative(result.x, expected) < 1e-10 + bound, method


@pytest.mark.parametrize("name", ["1-free", "2-free", "2-reflect", "1-zero"])
@pytest.mark.parametrize("exponent", range(-30, 31, 6))
def test_any_lambda_with_a_difference(name, exponent):
    """λ → 0 leaves least squares, λ → ∞ the best element of the null space of D."""
    A, y = random_system(9, 6)
    D = differences(6)[name].to_dense()
    lam = 10.0**exponent
    if exponent <= -18:
        expected = np.linalg.lstsq(A, y)[0]
    elif exponent >= 18:
        N = scipy.linalg.null_space(D)
        expected = N @ np.linalg.lstsq(A @ N, y)[0] if N.size else 0 * A[0]
    else:
        form = standard_form(A, D)
        x_bar = tikhonov(form.A_bar, form.to_data(y), lam, method="spectral").x
        expected = form.back(x_bar, y)
    try:
        x = tikhonov(A, y, lam, D, method="qr").x
    except ValueError as error:
        assert "deficient rank" in str(error)
        assert exponent >= 30
        return
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-9 * np.linalg.norm(y))


def test_a_large_lambda_keeps_its_relative_accuracy():
    """x ≈ Aᵀy/λ is tiny, not lost: rows of very different length stand in the QR factorization.

    With A above the penalty the error at λ = 1e30 was 5 %.
    """
    A, y = random_system(8, 6)
    for lam in (1e10, 1e20, 1e30):
        x = tikhonov(A, y, lam, method="qr").x
        assert relative(x, A.T @ y / lam) < 100 / lam + 1e-14


def test_optimality():
    """The gradient AᵀAx - Aᵀy + λDᵀDx vanishes: no factor 2, no mean in place of a sum."""
    A, y = random_system(7, 5)
    D = random_system(6, 5, seed=9)[0]
    for lam in (1e-3, 1.0, 10.0):
        for method in ("qr", "cgls"):
            x = tikhonov(A, y, lam, D, method=method, rtol=1e-13).x
            g = A.T @ (A @ x - y) + lam * D.T @ (D @ x)
            assert np.linalg.norm(g) <= 1e-11 * np.linalg.norm(A.T @ y)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 8),
    n=st.integers(1, 8),
    p=st.integers(1, 9),
    rank=st.integers(1, 8),
    seed=st.integers(0, 10**6),
    exponent=st.integers(-8, 8),
)
def test_random_problems_agree_or_are_refused(m, n, p, rank, seed, exponent):
    """QR and standard form on random ranks: the same x, or both say that none is unique."""
    rng = np.random.default_rng(seed)
    A, y = rng.standard_normal((m, n)), rng.standard_normal(m)
    rank = min(rank, p, n)
    D = rng.standard_normal((p, rank)) @ rng.standard_normal((rank, n))
    lam = 10.0**exponent
    unique = min(m + rank, n) == n
    if not unique:
        for attempt in (lambda: tikhonov(A, y, lam, D), lambda: standard_form(A, D)):
            with pytest.raises(ValueError, match="minimizer must be unique"):
                attempt()
        return
    form = standard_form(A, D)
    x = form.back(tikhonov(form.A_bar, form.to_data(y), lam, method="spectral").x, y)
    spread = np.linalg.cond(np.vstack([A, math.sqrt(lam) * D])) + np.linalg.cond(form.A_bar)
    assert relative(tikhonov(A, y, lam, D).x, x) < 1e-12 * min(spread, 1e11)


# ---------------------------------------------------------------- null spaces that meet


def test_null_spaces_that_meet_are_refused():
    """A blind to constants, and D too: no unique minimizer, whatever the method."""
    n = 6
    A = np.eye(n) - 1 / n  # takes off the mean
    y = np.arange(float(n))
    for D in (
        difference(n),
        difference(n, boundary="periodic"),
        np.diff(np.eye(n), axis=0),
        difference(n, order=2, boundary="reflect"),
    ):
        for attempt in (lambda D=D: tikhonov(A, y, 1.0, D), lambda D=D: standard_form(A, D)):
            with pytest.raises(ValueError, match="null spaces of A and D that meet only in 0"):
                attempt()
    laplace = convolution(np.array([1.0, -2.0, 1.0]), n)
    for D in (difference(n, boundary="periodic"), gradient((n,), boundary="periodic")):
        with pytest.raises(ValueError, match="null spaces of A and D"):
            tikhonov(laplace, y, 1.0, D)
    # In two dimensions as well, and with too few rows.
    with pytest.raises(ValueError, match="null spaces of A and D"):
        tikhonov(
            convolution(np.array([[1.0, -1.0]]), (3, 4)),
            np.ones((3, 4)),
            1.0,
            gradient((3, 4), boundary="periodic"),
        )
    with pytest.raises(ValueError, match="only 4 rows for 6 unknowns"):
        tikhonov(np.ones((1, 6)), np.ones(1), 1.0, np.eye(6)[:3])


def test_near_misses_are_not_refused():
    """D kills constants, A sees them faintly: unique, and found."""
    n = 6
    A, y = np.eye(n) - (1 - 1e-4) / n, np.arange(float(n))
    D = difference(n)
    expected = augmented_lstsq(A, y, 1.0, D.to_dense())
    assert relative(tikhonov(A, y, 1.0, D).x, expected) < 1e-9
    form = standard_form(A, D)
    x = form.back(tikhonov(form.A_bar, form.to_data(y), 1.0).x, y)
    assert relative(x, expected) < 1e-9


def test_refusals_do_not_depend_on_scale():
    """The same problem in other units: accepted or refused alike."""
    n = 6
    y = np.arange(float(n))
    for scale in (1e-8, 1.0, 1e8):
        A = scale * np.eye(n)
        form = standard_form(A, scale * difference(n))
        x_bar = tikhonov(form.A_bar, form.to_data(scale * y), 1.0).x
        x = form.back(x_bar, scale * y)
        assert relative(x, tikhonov(np.eye(n), y, 1.0, difference(n)).x) < 1e-12
        with pytest.raises(ValueError, match="null spaces"):
            standard_form(scale * (np.eye(n) - 1 / n), difference(n))


def test_a_zero_penalty_is_refused_by_the_standard_form():
    with pytest.raises(ValueError, match="D must not be zero"):
        standard_form(np.eye(3), np.zeros((2, 3)))


# ---------------------------------------------------------------- Landweber


@pytest.mark.slow
def test_landweber_is_its_filter():
    """Up to k = 1e5, relative error of the iterate in the Euclidean norm below 1e-12.

    The singular values reach from 1 to 1e-3: the last one is still filtered (φ = 0.095) at the end.
    """
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.standard_normal((m, 4)))[0] for m in (6, 5))
    A, y = (U * np.geomspace(1, 1e-3, 4)) @ V.T, rng.standard_normal(6)
    spectrum = decompose(A)
    wanted = {1, 2, 7, 10, 100, 1000, 10_000, 100_000}
    for k, state in enumerate(landweber(A, y, step=1.0)):
        if k in wanted:
            expected = filtered(spectrum, y, landweber_factors(spectrum.s, 1.0, k))
            assert relative(state.x, expected) < 1e-12
        if k == max(wanted):
            break


def test_landweber_factors_are_accurate_for_small_singular_values():
    """Relative to each factor, against fractions: 1 - (1 - ησ²)^k loses all its digits."""
    from fractions import Fraction

    s = np.array([1e-9, 1e-7, 1e-3, 0.5, 0.99, 1.0, 1.2, 1.41])
    for k in (1, 2, 3, 10, 50):
        exact = [float(1 - (1 - Fraction(float(v)) ** 2) ** k) for v in s]
        np.testing.assert_allclose(landweber_factors(s, 1.0, k), exact, rtol=1e-13, atol=1e-15)
    assert 1 - (1 - 1e-9**2) ** 10 == 0
    assert landweber_factors(s, 1.0, 10)[0] == pytest.approx(1e-17, rel=1e-12)


def test_landweber_factors_beyond_the_limit():
    """ησ² > 2 diverges in the filter as it does in the iteration."""
    A, y = np.diag([1.0, 0.4]), np.array([1.0, 1.0])
    for step in (1.0, 1.5, 2.0, 3.0, 6.25):
        for k in (0, 1, 2, 5, 8):
            x = run(landweber(A, y, step=step), max_iter=k).x
            expected = filtered(decompose(A), y, landweber_factors(decompose(A).s, step, k))
            np.testing.assert_allclose(x, expected, rtol=1e-12, atol=1e-13)


# ---------------------------------------------------------------- CGLS and its Ritz values


@pytest.mark.parametrize(
    ("problem", "steps"), [("deriv2", 3), ("integration", 4), ("blur", 15), ("random", 15)]
)
def test_cgls_is_its_ritz_filter(problem, steps):
    """Relative to the iterate in the Euclidean norm, 1e-8, for 15 steps or until rounding rules.

    In exact arithmetic the identity holds always. The first factor, 1 - σ₁²/θ₁, is known to one
    rounding error at best, and the others multiply it: that product says how far to trust it.
    """
    n = 40
    kernel = np.exp(-0.5 * np.linspace(-2, 2, 5) ** 2)
    A = {
        "deriv2": deriv2(n),
        "integration": integration(n).to_dense(),
        "blur": convolution(kernel / kernel.sum(), n, boundary="zero").to_dense(),
        "random": random_system(50, n)[0],
    }[problem]
    rng = np.random.default_rng(6)
    y = A @ np.linspace(0, 1, n) + 1e-3 * np.linalg.norm(A, 2) * rng.standard_normal(A.shape[0])
    spectrum = decompose(A)
    tested = 0
    for k, state in zip(
        range(1, 16), list(zip(range(16), cgls(A, y), strict=False))[1:], strict=True
    ):
        theta = ritz_values(A, y, k)
        assert theta.shape == (k,)
        trust = np.finfo(float).eps * np.prod(np.abs(1 - spectrum.s[0] ** 2 / theta[1:]))
        if trust < 1e-10:
            tested += 1
            x = filtered(spectrum, y, cgls_factors(spectrum.s, theta))
            assert relative(state[1].x, x) < 1e-8, k
    assert tested >= steps


def test_ritz_values_are_those_of_the_definition():
    """Eigenvalues of AᵀA compressed to the Krylov space; they interlace and stay in its range."""
    A, y = random_system(9, 6)
    H = A.T @ A
    vectors = [A.T @ y]
    before = None
    for k in range(1, 6):
        Q = np.linalg.qr(np.stack(vectors, axis=1))[0]
        theta = ritz_values(A, y, k)
        expected = np.linalg.eigvalsh(Q.T @ H @ Q)[::-1]
        np.testing.assert_allclose(theta, expected, rtol=1e-8)
        assert (np.diff(theta) < 0).all()
        if before is not None:
            assert (theta[:-1] >= before - 1e-12).all()
            assert (theta[1:] <= before + 1e-12).all()
        before = theta
        vectors.append(H @ vectors[-1])
    eigenvalues = np.linalg.eigvalsh(H)
    assert eigenvalues[0] - 1e-12 <= theta.min()
    assert theta.max() <= eigenvalues[-1] + 1e-12


def test_fewer_ritz_values_when_the_space_is_exhausted():
    A = np.diag([3.0, 2.0, 1.0])
    np.testing.assert_allclose(ritz_values(A, np.array([1.0, 1.0, 0.0]), 3), [9, 4], rtol=1e-12)
    assert ritz_values(A, np.zeros(3), 3).size == 0
    # With all of them every factor is 1.
    theta = ritz_values(A, np.ones(3), 3)
    np.testing.assert_allclose(cgls_factors(np.array([3.0, 2.0, 1.0]), theta), 1, rtol=1e-12)


def test_cgls_factors_may_exceed_one():
    """Unlike the other filters: between two Ritz values the product changes its sign."""
    factors = cgls_factors(np.array([3.0, 2.0, 1.0]), np.array([5.0]))
    assert factors[0] == pytest.approx(9 / 5)


# ---------------------------------------------------------------- TSVD


def test_tsvd_is_numpys_pseudoinverse():
    A, y = random_system(8, 6)
    s = np.linalg.svd(A, compute_uv=False)
    for rank in range(1, 7):
        cutoff = (s[rank - 1] + (s[rank] if rank < 6 else 0)) / (2 * s[0])
        expected = np.linalg.pinv(A, rcond=cutoff) @ y
        assert relative(tsvd(A, y, rank).x, expected) < 1e-12


def test_tsvd_keeps_ties_together():
    """Rank 2 of (3, 2, 2, 1): both vectors of the tie, or the answer depends on the basis."""
    rng = np.random.default_rng(0)
    U, V = (np.linalg.qr(rng.standard_normal((4, 4)))[0] for _ in range(2))
    A, y = (U * [3.0, 2.0, 2.0, 1.0]) @ V.T, rng.standard_normal(4)
    two, three = tsvd(A, y, 2).x, tsvd(A, y, 3).x
    np.testing.assert_allclose(two, three, rtol=1e-13)
    np.testing.assert_allclose(two, V[:, :3] @ ((U.T @ y)[:3] / [3.0, 2.0, 2.0]), rtol=1e-12)
    np.testing.assert_array_equal(tsvd_factors(np.array([1.0, 1.0, 1.0]), 1), 1)
    tiny = np.array([1.0, 1e-9 + 1e-16, 1e-9, 1e-12])  # apart by rounding errors of the first
    np.testing.assert_array_equal(tsvd_factors(tiny, 2), [1, 1, 1, 0])
    np.testing.assert_array_equal(tsvd_factors(np.array([1.0, 1e-9, 0.9e-9]), 2), [1, 1, 0])


def test_tsvd_refuses_a_rank_above_the_numerical_one():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((6, 3)) @ rng.standard_normal((3, 6))
    tsvd(A, np.ones(6), 3)
    for rank in (4, 6, 7, 0, -1, 2.0, True, "2"):
        with pytest.raises(ValueError, match="rank"):
            tsvd(A, np.ones(6), rank)
    with pytest.raises(ValueError, match="rank"):
        tsvd(np.zeros((3, 3)), np.ones(3), 1)


def test_tsvd_of_every_kind(like):
    A, y = random_system(6, 4)
    result = tsvd(asarray_like(A, like), asarray_like(y, like), 3)
    assert_alike(result.x, like)
    assert relative(result.x, tsvd(A, y, 3).x) < 500 * eps(like)


# ---------------------------------------------------------------- derivatives


def test_gradcheck_of_tikhonov(torch):
    """Through the QR factorization, the decomposition and the Fourier division."""
    A0, y0 = random_system(5, 4)
    A = torch.tensor(A0, requires_grad=True)
    y = torch.tensor(y0, requires_grad=True)
    D = difference(4)
    for method, penalty in (("qr", None), ("qr", D), ("spectral", None)):

        def solve(A, y, method=method, penalty=penalty):
            return tikhonov(A, y, 0.3, penalty, method=method).x

        assert torch.autograd.gradcheck(solve, (A, y), atol=1e-6)
    psf = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
    z = torch.tensor(np.arange(5.0) - 1, requires_grad=True)

    def divide(psf, z):
        return tikhonov(convolution(psf, 5), z, 0.3, difference(5, boundary="periodic")).x

    assert torch.autograd.gradcheck(divide, (psf, z), atol=1e-6)


# ---------------------------------------------------------------- refusals


A3, Y3 = np.eye(3), np.ones(3)
REFUSED = {
    "lam 0": (lambda: tikhonov(A3, Y3, 0.0), "lam must be positive"),
    "lam < 0": (lambda: tikhonov(A3, Y3, -1.0), "lam must be positive"),
    "lam NaN": (lambda: tikhonov(A3, Y3, np.nan), "lam must be finite"),
    "lam array": (lambda: tikhonov(A3, Y3, np.ones(3)), "lam must be one real number"),
    "method": (
        lambda: tikhonov(A3, Y3, 1.0, method="svd"),
        "method must be one of auto, qr, spectral, cgls",
    ),
    "spectral with D": (
        lambda: tikhonov(A3, Y3, 1.0, np.eye(3), method="spectral"),
        "periodic convolutions",
    ),
    "shape of D": (lambda: tikhonov(A3, Y3, 1.0, difference(4)), "D must act on x"),
    "dtype of D": (lambda: tikhonov(A3, Y3, 1.0, np.eye(3, dtype=np.float32)), "one dtype"),
    "dtype of D, form": (lambda: standard_form(A3, np.eye(3, dtype=np.float32)), "one dtype"),
    "shape of D, form": (lambda: standard_form(A3, difference(4)), "D must act on x"),
    "dtype of y": (lambda: tikhonov(A3, Y3.astype(np.float32), 1.0), "one dtype"),
    "budget": (lambda: tikhonov(A3, Y3, 1.0, method="cgls", max_iter=-1), "max_iter"),
    "rtol": (lambda: tikhonov(A3, Y3, 1.0, method="cgls", rtol=-1.0), "rtol"),
    "factors": (lambda: filtered(decompose(A3), Y3, np.ones(2)), "factors has the wrong"),
    "dtype of factors": (lambda: filtered(decompose(A3), Y3, np.ones(3, np.float32)), "one dtype"),
    "data of the spectrum": (lambda: decompose(A3).analyse(np.ones(4)), "y has the wrong shape"),
    "data that would broadcast": (
        lambda: decompose(convolution(Y3, 3)).analyse(np.ones(1)),
        "y has the wrong shape",
    ),
    "data of the form": (lambda: standard_form(A3, A3).to_data(np.ones(4)), "wrong shape"),
    "negative s": (lambda: tikhonov_factors(np.array([-1.0]), 1.0), "must not be negative"),
    "ritz": (lambda: cgls_factors(Y3, np.array([0.0])), "ritz must be positive"),
    "step": (lambda: landweber_factors(Y3, 0.0, 2), "step must be positive"),
    "k": (lambda: landweber_factors(Y3, 1.0, -2), "k is out of range"),
    "rank": (lambda: tsvd_factors(Y3, 4), "rank is out of range"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    action, words = REFUSED[name]
    with pytest.raises(ValueError, match=".") as error:
        action()
    assert words in str(error.value)
