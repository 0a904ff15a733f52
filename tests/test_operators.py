"""Every operator of the table: its matrix, adjoint, norm, kind of result; and combinations."""

import itertools

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import scipy.signal
import scipy.sparse
import scipy.sparse.linalg
from cases import OPERATORS
from conftest import BACKENDS, DTYPES, PRESENT, make_like
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import EPS, assert_alike, dense, eps, random_like, relative, to_numpy

from course_lib import iterate, linear
from course_lib import operators as ops
from course_lib.arrays import asarray_like, inner, norm, to_float

# A discrete Fourier transform of a few entries and a sum of a few products: tens of roundings.
ROUNDINGS = 50


COMBINATIONS = [
    pytest.param((case, backend, dtype), id=f"{case.name}-{backend}-{dtype}")
    for case in OPERATORS
    for backend in PRESENT
    if backend in case.libraries
    for dtype in DTYPES
    # The strict library answers whether the code keeps to the standard: one dtype is enough.
    if (backend, dtype) != ("array_api_strict", "float32")
]


@pytest.fixture(params=COMBINATIONS)
def member(request):
    """An entry of the table in one library and dtype: (operator, entry, array it is like)."""
    case, backend, dtype = request.param
    like = make_like(backend, dtype)
    return case.build(like), case, like


def entry_bound(matrix: np.ndarray, like) -> float:
    return ROUNDINGS * eps(like) * max(1.0, np.abs(matrix).sum())


def test_matrix_and_transpose(member):
    """``apply`` agrees with a matrix written down by other means, ``adjoint`` with its transpose.

    Entry by entry, so that no sum of products can hide a wrong one.
    """
    A, case, like = member
    expected = case.matrix()
    assert expected.shape == (np.prod(A.out_shape), np.prod(A.in_shape))
    bound = {"rtol": 0, "atol": entry_bound(expected, like)}
    np.testing.assert_allclose(dense(A, like), expected, **bound)
    np.testing.assert_allclose(dense(A.H, like), expected.T, **bound)
    assert (A.H.in_shape, A.H.out_shape) == (A.out_shape, A.in_shape)
    np.testing.assert_array_equal(dense(A.H.H, like), dense(A, like))
    M = A.to_dense(like=like)
    assert_alike(M, like)
    np.testing.assert_allclose(to_numpy(M), expected, **bound)


def adjoint_defect(A, x, v) -> float:
    """|⟨Ax, v⟩ - ⟨x, Aᵀv⟩| in units of ‖Ax‖‖v‖ + ‖x‖‖Aᵀv‖: never divided by the product itself."""
    Ax, Av = A @ x, A.H @ v
    scale = to_float(norm(Ax)) * to_float(norm(v)) + to_float(norm(x)) * to_float(norm(Av))
    return abs(to_float(inner(Ax, v)) - to_float(inner(x, Av))) / scale if scale else 0.0


def test_adjoint_and_linearity(member, rng):
    A, case, like = member
    for _ in range(3):
        x, v = random_like(rng, A.in_shape, like), random_like(rng, A.out_shape, like)
        assert adjoint_defect(A, x, v) <= ROUNDINGS * eps(like)
    z = random_like(rng, A.in_shape, like)
    defect = A @ (3.0 * x - 0.7 * z) - (3.0 * (A @ x) - 0.7 * (A @ z))
    scale = to_float(norm(x)) + to_float(norm(z))
    assert to_float(norm(defect)) <= scale * entry_bound(case.matrix(), like)


def test_kind_of_the_result(member, rng):
    """Library, dtype, device and shape come from the argument, and the argument stays as it is."""
    A, _, like = member
    x, v = random_like(rng, A.in_shape, like), random_like(rng, A.out_shape, like)
    before = to_numpy(x).copy(), to_numpy(v).copy()
    for result, shape in ((A @ x, A.out_shape), (A.H @ v, A.in_shape), ((2 * A) @ x, A.out_shape)):
        assert_alike(result, like)
        assert tuple(result.shape) == shape
    np.testing.assert_array_equal(to_numpy(x), before[0])
    np.testing.assert_array_equal(to_numpy(v), before[1])


def test_norm(member):
    """Within the documented tolerance of the largest singular value, and never above it."""
    A, case, like = member
    exact = np.linalg.norm(case.matrix(), 2)
    rounding = 1 + ROUNDINGS * eps(like)
    for rtol in (1e-2, 1e-3):
        value = A.norm(rtol=rtol, like=like)
        assert isinstance(value, float)
        assert value <= exact * rounding
        assert exact <= (1 + rtol) * value * rounding
    if A.exact_norm is not None:
        assert A.exact_norm == pytest.approx(exact, rel=ROUNDINGS * eps(like), abs=1e-300)


@pytest.mark.parametrize(
    "case", [c for c in OPERATORS if c.null is not None], ids=lambda case: case.name
)
def test_null_space(case, xp):
    """The null spaces of the docstrings' tables, no smaller and no larger."""
    like = make_like(xp, "float64")
    A = case.build(like)
    for column in case.null.T:
        image = A @ asarray_like(column.reshape(A.in_shape), like)
        assert to_float(norm(image)) <= ROUNDINGS * eps(like) * np.linalg.norm(column)
    M = dense(A, like)
    assert M.shape[1] - np.linalg.matrix_rank(M) == case.null.shape[1]


def test_shift_invariance_is_true_where_it_is_said(rng):
    """The Fourier path of Tikhonov's method rests on this flag."""
    seen = 0
    for case in OPERATORS:
        like = make_like("numpy", "float64")
        if "numpy" not in case.libraries or not (A := case.build(like)).shift_invariant:
            continue
        seen += 1
        x = rng.standard_normal(A.in_shape)
        extra = len(A.out_shape) - len(A.in_shape)
        for axis in range(x.ndim):
            shifted, expected = A @ np.roll(x, 1, axis), np.roll(A @ x, 1, axis + extra)
            np.testing.assert_allclose(shifted, expected, rtol=0, atol=1e-13, err_msg=case.name)
    assert seen > 10


@pytest.mark.parametrize(
    "case", [c for c in OPERATORS if "numpy" in c.libraries], ids=lambda case: case.name
)
def test_to_scipy(case, dtype, rng):
    A = case.build(make_like("numpy", dtype))
    S = A.to_scipy()
    x, v = rng.standard_normal(S.shape[1]), rng.standard_normal(S.shape[0])
    M = case.matrix()
    bound = ROUNDINGS * EPS[dtype] * max(1.0, np.abs(M).sum())
    np.testing.assert_allclose(S.matvec(x), M @ x, rtol=0, atol=10 * bound)
    np.testing.assert_allclose(S.rmatvec(v), M.T @ v, rtol=0, atol=10 * bound)


@pytest.mark.slow
def test_golub_kahan(member, rng):
    r"""U and V have orthonormal columns, A V = U B, B is lower bidiagonal, U starts at b."""
    A, _, like = member
    b = random_like(rng, A.out_shape, like)
    U, V, B = ops.golub_kahan(A, b, 4)
    assert isinstance(B, np.ndarray)
    assert B.shape == (len(U), len(V))
    assert len(U) in (len(V), len(V) + 1)
    assert len(V) <= 4
    for u, v in zip(U, V, strict=False):
        assert_alike(u, like)
        assert_alike(v, like)
        assert tuple(u.shape) == A.out_shape
        assert tuple(v.shape) == A.in_shape
    np.testing.assert_array_equal(B, np.tril(np.triu(B, -1)))
    u, v = (
        np.stack([to_numpy(q).ravel() for q in basis], axis=1).astype(float) if basis else None
        for basis in (U, V)
    )
    tolerance = 200 * eps(like)
    assert np.allclose(u[:, 0] * to_float(norm(b)), to_numpy(b).ravel(), atol=tolerance * 10)
    assert np.abs(u.T @ u - np.eye(len(U))).max() <= tolerance
    if V:
        M = dense(A, like)
        assert np.abs(v.T @ v - np.eye(len(V))).max() <= tolerance
        # When the space is exhausted the last column of A V has lost its part outside U.
        assert np.abs(M @ v - u @ B).max() <= tolerance * np.linalg.norm(M, 2)


# ---------------------------------------------------------------- against other packages


@pytest.mark.parametrize("p", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("n", [6, 7, 9])
def test_convolution_against_numpy_and_scipy(p, n, rng):
    """Zero boundary: the middle of np.convolve's full result; odd kernels also scipy's modes."""
    psf, x = rng.standard_normal(p), rng.standard_normal(n)
    full = np.convolve(psf, x)
    zero = ops.convolution(psf, n, boundary="zero") @ x
    np.testing.assert_allclose(zero, full[p // 2 : p // 2 + n], atol=1e-14)
    wrapped = np.zeros(n)
    np.add.at(wrapped, (np.arange(full.size) - p // 2) % n, full)
    periodic = ops.convolution(psf, n) @ x
    np.testing.assert_allclose(periodic, wrapped, atol=1e-14)
    if p % 2:
        np.testing.assert_allclose(zero, np.convolve(x, psf, mode="same"), atol=1e-14)
        for mode, ours in (("constant", zero), ("wrap", periodic)):
            np.testing.assert_allclose(ours, scipy.ndimage.convolve(x, psf, mode=mode), atol=1e-14)


@pytest.mark.parametrize("shape", [(8, 8), (7, 8), (7, 5)])
@pytest.mark.parametrize("size", [(3, 3), (5, 1), (1, 1), (3, 5)])
def test_convolution_of_pictures_against_scipy(shape, size, rng):
    psf, x = rng.standard_normal(size), rng.standard_normal(shape)
    for boundary, mode, fill in (("zero", "constant", "fill"), ("periodic", "wrap", "wrap")):
        ours = ops.convolution(psf, shape, boundary=boundary) @ x
        np.testing.assert_allclose(ours, scipy.ndimage.convolve(x, psf, mode=mode), atol=1e-13)
        other = scipy.signal.convolve2d(x, psf, mode="same", boundary=fill)
        np.testing.assert_allclose(ours, other, atol=1e-13)


def test_periodic_convolution_against_circulant(rng):
    for n in (4, 5):
        psf = rng.standard_normal(n)
        expected = scipy.linalg.circulant(np.roll(psf, -(n // 2)))
        np.testing.assert_allclose(ops.convolution(psf, n).to_dense(), expected, atol=1e-14)


@pytest.mark.parametrize("order", [1, 2])
def test_free_difference_is_numpy_diff(order, rng):
    x = rng.standard_normal(9)
    np.testing.assert_allclose(ops.difference(9, order=order) @ x, np.diff(x, n=order), atol=1e-15)


def test_second_differences_square_the_first(rng):
    """Dirichlet is -DᵀD of the zero boundary, Neumann of the free one, with no corner wrong."""
    for n in (2, 3, 8):
        for boundary, first in (("zero", "zero"), ("reflect", "free"), ("periodic", "periodic")):
            D = ops.difference(n, boundary=first).to_dense()
            L = ops.difference(n, order=2, boundary=boundary).to_dense()
            np.testing.assert_array_equal(L, -D.T @ D)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 10, 11])
def test_exact_norms_of_differences(n):
    for order in (1, 2):
        for boundary in ("free", "zero", "periodic") + (("reflect",) if order == 2 else ()):
            if boundary == "free" and n < order + 1:
                continue
            D = ops.difference(n, order=order, boundary=boundary)
            expected = np.linalg.norm(D.to_dense(), 2)
            assert D.norm() == pytest.approx(expected, rel=1e-14 if D.exact_norm else 1e-3)
            assert (D.exact_norm is None) == ((order, boundary) == (2, "free"))


@pytest.mark.parametrize("kind", ["csr_array", "csc_array", "coo_array", "dok_array", "lil_array"])
def test_sparse_against_scipy(kind, rng):
    S = scipy.sparse.random_array((9, 7), density=0.4, rng=rng, format="coo")
    M = getattr(scipy.sparse, kind)(S)
    x, v = rng.standard_normal(7), rng.standard_normal(9)
    np.testing.assert_allclose(ops.matrix(M) @ x, M @ x, atol=1e-14)
    np.testing.assert_allclose(ops.matrix(M).H @ v, M.T @ v, atol=1e-14)


def test_scipy_solves_with_our_operator(rng):
    """lsqr works in double precision whatever the operator's dtype is; the operator casts."""
    M = rng.standard_normal((9, 5))
    y = rng.standard_normal(9)
    expected = np.linalg.lstsq(M, y)[0]
    for dtype, tolerance in ((np.float64, 1e-8), (np.float32, 1e-4)):
        S = ops.matrix(M.astype(dtype)).to_scipy()
        x = scipy.sparse.linalg.lsqr(S, y, atol=1e-12, btol=1e-12)[0]
        np.testing.assert_allclose(x, expected, atol=tolerance)


# Gaussian bumps: middle, in units of the radius and with η upwards; width; height.
BUMPS = ((0.2, 0.1, 0.12, 1.0), (-0.3, 0.25, 0.1, 0.7), (0.05, -0.35, 0.15, -0.5))
ANGLES = np.array([0.0, 7.8, 33.0, 45.0, 60.1, 90.0, 101.0, 135.0, 171.5])


def smooth_picture(n: int) -> np.ndarray:
    xi = (np.arange(n) - n // 2) / (n / 2)
    eta = -xi[:, None]
    return sum(
        a * np.exp(-((xi - p) ** 2 + (eta - q) ** 2) / (2 * w**2)) for p, q, w, a in BUMPS
    ) * (np.hypot(xi, eta) < 1 - 2 / n)


def smooth_sinogram(n: int) -> np.ndarray:
    """The integrals of the bumps along the rays, by their formula, in pixels."""
    t, theta = (np.arange(n)[:, None] - n // 2) / (n / 2), np.deg2rad(ANGLES)
    return sum(
        n
        / 2
        * a
        * w
        * np.sqrt(2 * np.pi)
        * np.exp(-((t - p * np.cos(theta) - q * np.sin(theta)) ** 2) / (2 * w**2))
        for p, q, w, a in BUMPS
    )


@pytest.mark.parametrize("odd", [0, 1])
def test_radon_against_scikit_image_and_a_formula(odd):
    """For 32, 64, 128 pixels: differences of 1.8e-3, 3.0e-4, 1.6e-4 from scikit-image, relative.

    From the formula 1.9e-2, 4.8e-3, 1.2e-3: second order in the width of a pixel. scikit-image is
    as far from it, within 3 percent.
    """
    from skimage.transform import radon

    far, error = [], []
    for n in (32 + odd, 64 + odd, 128 + odd):
        x = smooth_picture(n)
        y = ops.radon(n, ANGLES) @ x
        theirs, exact = radon(x, ANGLES, circle=True), smooth_sinogram(n)
        far.append(relative(y, theirs))
        error.append(relative(y, exact))
        assert error[-1] == pytest.approx(relative(theirs, exact), rel=0.03)
    assert all(value < bound for value, bound in zip(far, (2e-3, 4e-4, 2e-4), strict=True))
    assert error[2] < 1.3e-3
    assert all(3.8 < coarse / fine < 4.2 for coarse, fine in itertools.pairwise(error))


def test_scikit_image_inverts_our_sinogram():
    """The layout is that of skimage: its filtered backprojection takes our data as they are."""
    from skimage.transform import iradon

    theta = np.arange(0.0, 180.0, 2.0)
    x = smooth_picture(64)
    assert relative(iradon(ops.radon(64, theta) @ x, theta, circle=True), x) < 0.03


def test_radon_keeps_the_sum_of_the_picture(rng):
    """Of any picture in the inscribed circle, whatever the angle; opposite views are mirrored."""
    n, theta = 21, rng.uniform(-400, 400, 12)
    offsets = np.arange(n) - n // 2
    x = rng.standard_normal((n, n)) * (np.hypot.outer(offsets, offsets) < n / 2 - 1)
    A, opposite = ops.radon(n, theta), ops.radon(n, theta + 180)
    np.testing.assert_allclose((A @ x).sum(axis=0), x.sum(), atol=1e-11)
    np.testing.assert_allclose((opposite @ x)[::-1], A @ x, atol=1e-11)
    np.testing.assert_array_equal(ops.radon(n, np.array([0.0])) @ x, x.sum(axis=0)[:, None])


def test_radon_is_sparse_and_the_same_in_torch(torch, rng):
    theta, x = np.arange(0.0, 180.0, 20.0), rng.standard_normal((32, 32))
    A = ops.radon(32, theta)
    for dtype, bound in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        B = ops.radon(32, theta, like=torch.zeros(1, dtype=dtype))
        assert relative(B @ torch.tensor(x, dtype=dtype), A @ x) < bound
    stored = ops._strips(32, np.deg2rad(theta))
    assert stored.nnz < 2.5 * theta.size * 32**2
    assert (stored.indices.dtype, stored.data.min() > 0) == (np.int32, True)


def test_whitening_solves_generalized_least_squares(rng):
    """Least squares of WA and Wy is (AᵀΓ⁻¹A)⁻¹AᵀΓ⁻¹y, for a covariance of condition 1e6 too."""
    M, y = rng.standard_normal((8, 3)), rng.standard_normal(8)
    Q = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    for cov in (np.geomspace(1, 1e-6, 8), (Q * np.geomspace(1, 1e-6, 8)) @ Q.T):
        # The product is symmetric but for rounding, and is taken.
        gamma, W = np.diag(cov) if cov.ndim == 1 else cov, ops.whitening(cov)
        np.testing.assert_allclose(dense(W) @ gamma @ dense(W).T, np.eye(8), atol=1e-9)
        weighted = W @ ops.matrix(M)
        x = iterate.run(linear.cgls(weighted, W @ y), max_iter=6).x
        expected = np.linalg.solve(M.T @ np.linalg.solve(gamma, M), M.T @ np.linalg.solve(gamma, y))
        np.testing.assert_allclose(x, expected, rtol=1e-6)
    assert weighted.matrix is not None  # so that a direct method is chosen


def test_whitening_refuses_what_is_singular_but_for_rounding(rng):
    for _ in range(5):
        Q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
        singular = (Q * np.append(1e-17, np.ones(5))) @ Q.T
        with pytest.raises(ValueError, match="cov must be positive definite"):
            ops.whitening(singular)


def test_weighted_stack_of_pictures_solves_a_regularized_problem(rng):
    """½‖Ax - y‖² in the norm of Γ⁻¹ plus ½λ‖Dx‖²: one least-squares problem of flat data."""
    A, D, lam = ops.radon(6, ANGLES), ops.gradient((6, 6)), 0.3
    variance = rng.uniform(0.5, 2.0, A.out_shape)
    y = rng.standard_normal(A.out_shape)
    W = ops.diagonal(variance**-0.5)
    whole = ops.stack(W @ A, lam**0.5 * D)
    data = np.concatenate([(W @ y).ravel(), np.zeros(72)])
    rule = iterate.gradient_rule(whole, data, rtol=1e-12)
    result = iterate.run(linear.cgls(whole, data), stop=rule, max_iter=300)
    assert result.converged
    M, N = dense(A), dense(D)
    H = M.T @ (M / variance.reshape(-1, 1)) + lam * N.T @ N
    expected = np.linalg.solve(H, M.T @ (y / variance).ravel())
    np.testing.assert_allclose(result.x.ravel(), expected, atol=1e-9)


def test_diagonal_and_whitening_are_differentiable(torch):
    x = torch.tensor([1.0, -2.0], dtype=torch.float64)
    w = torch.tensor([0.5, 3.0], dtype=torch.float64, requires_grad=True)
    cov = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w: ops.diagonal(w) @ x, w)
    assert torch.autograd.gradcheck(lambda w: ops.whitening(w) @ x, w)
    # Along symmetric changes: no other matrix is taken. A double eigenvalue does no harm.
    for gamma in (cov, torch.eye(2, dtype=torch.float64, requires_grad=True)):
        assert torch.autograd.gradcheck(lambda M: ops.whitening((M + M.T) / 2) @ x, gamma)


def test_haar_is_orthogonal_and_sparse_on_blocks(xp, rng):
    like = make_like(xp, "float64")
    for shape in ((32,), (16, 24), (8, 4, 2)):
        W = ops.haar(shape)
        x = random_like(rng, shape, like)
        assert relative(W @ (W.H @ x), x) < 1e-14
        assert relative(W.H @ (W @ x), x) < 1e-14
        assert to_float(norm(W.H @ x)) == pytest.approx(to_float(norm(x)), rel=1e-14)
    # A square in one corner: 4 x 4 blocks of means, and the levels below them hold nothing.
    picture = np.zeros((16, 16))
    picture[:4, 4:8] = 1.0
    c = to_numpy(ops.haar((16, 16), levels=4).H @ asarray_like(picture, like))
    assert np.count_nonzero(np.abs(c) > 1e-14) == 7
    assert np.abs(c[4:, :]).max() == np.abs(c[:, 4:]).max() == 0
    # The first entry is the mean, in units of an orthonormal basis.
    assert c[0, 0] == pytest.approx(picture.sum() / 16)


def test_haar_on_one_level_is_a_sum_over_squares(rng):
    """The quarters of one level: means, differences down, across, and of both, each over 2."""
    x = rng.standard_normal((4, 6))
    a, b, c, d = x[::2, ::2], x[::2, 1::2], x[1::2, ::2], x[1::2, 1::2]
    expected = np.block([[a + b + c + d, a - b + c - d], [a + b - c - d, a - b - c + d]]) / 2
    np.testing.assert_allclose(ops.haar((4, 6), levels=1).H @ x, expected, atol=1e-15)


# ---------------------------------------------------------------- norms that have to be estimated


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6), st.booleans())
def test_norm_of_any_matrix(m, n, seed, clustered):
    """Random shapes; with leading singular values that lie close together as well."""
    M = np.random.default_rng(seed).standard_normal((m, n))
    if clustered:
        U, s, Vt = np.linalg.svd(M, full_matrices=False)
        M = (U * (1 - 1e-4 * np.arange(s.size))) @ Vt
    exact = np.linalg.norm(M, 2)
    value = ops.matrix(M).norm()
    assert value <= exact * (1 + 1e-13)
    assert exact <= 1.01 * value


def turned(s: np.ndarray, rng: np.random.Generator, steps: list | None = None):
    """An operator with singular values s and random singular vectors; ``steps`` counts products."""
    s, dtype = s / s.max(), s.dtype
    u, v = (w / np.linalg.norm(w) for w in rng.standard_normal((2, s.size)))
    u, v = u.astype(dtype), v.astype(dtype)

    def reflect(w: np.ndarray, x: np.ndarray) -> np.ndarray:
        return x - 2 * w * (w @ x)

    def apply(x: np.ndarray) -> np.ndarray:
        if steps is not None:
            steps.append(1)
        return reflect(u, s * reflect(v, x))

    shape = (s.size,)
    return ops.LinearOperator(
        apply, lambda y: reflect(v, s * reflect(u, y)), shape, shape, like=np.zeros(1, dtype)
    )


SIDES = np.linspace(0, 1, 400)
SPECTRA = {
    "uniform": SIDES,
    "dense at the top": np.cos(np.pi / 2 * SIDES),
    "square root": np.sqrt(SIDES),
    "one above a cluster, by the tolerance": np.append(1.0, 0.99 - 1e-4 * SIDES),
    "one above a spread cluster": np.append(1.0, 0.988 - 0.02 * SIDES),
    "one above the rest": np.append(1.0, 0.985 * SIDES),
    "cluster at the top": 1 - 1e-6 * SIDES,
    "two values": np.append(1.0, np.full(399, 0.99)),
    "condition 1e12": np.geomspace(1e-12, 1, 400),
    "rank one": np.eye(400)[0],
    "all equal": np.ones(400),
}


@pytest.mark.parametrize("rtol", [0.1, 1e-2, 1e-3])
@pytest.mark.parametrize("name", SPECTRA)
def test_norm_of_adversarial_spectra(name, dtype, rtol, rng):
    """s <= ‖A‖ <= (1 + rtol)s for every draw, and no more steps than are said."""
    s = SPECTRA[name].astype(dtype)
    most = np.log(1e6 * np.sqrt(s.size) / rtol) / np.sqrt(8 * rtol)
    for _ in range(4):
        steps = []
        value = turned(s, rng, steps).norm(rtol=rtol)
        assert value <= 1 + ROUNDINGS * EPS[dtype]
        assert (1 + rtol) * value * (1 + ROUNDINGS * EPS[dtype]) >= 1
        assert len(steps) <= most + 10


@pytest.mark.slow
def test_probability_that_the_norm_is_missed(monkeypatch, rng):
    """With a failure probability of one half: no more often than that, and not never.

    Random singular vectors are as good as a random start. One singular value lies just further
    above the others than the tolerance, so that to miss it is to fail.
    """
    s = np.append(1.0, (1 - 0.0102) * np.cos(np.pi / 2 * np.linspace(0, 1, 19)))
    missed = {}
    for probability in (0.5, 0.1, 1e-6):
        monkeypatch.setattr(ops, "_FAILURE", probability)
        values = np.array([turned(s, rng).norm() for _ in range(200)])
        assert values.max() <= 1 + 1e-13
        missed[probability] = np.mean(1.01 * values < 1)
    # 200 draws: the standard deviation of a frequency is at most 0.036.
    assert 0.25 < missed[0.5] <= 0.5
    assert missed[0.1] <= 0.1 + 0.06
    assert missed[1e-6] == 0


def test_norm_scales():
    """No absolute threshold hides in the estimate, and squares that overflow do no harm."""
    M = np.random.default_rng(3).standard_normal((6, 5))
    exact = np.linalg.norm(M, 2)
    for scale in (1e-300, 1e-200, 1e-100, 1.0, 1e100, 1e200, 1e300):
        assert ops.matrix(scale * M).norm() == pytest.approx(scale * exact, rel=1e-9)
    for scale in (1e-35, 1e-20, 1e20, 1e35):
        single = ops.matrix((scale * M).astype(np.float32))
        assert single.norm() == pytest.approx(scale * exact, rel=1e-5)


@pytest.mark.slow
def test_norm_of_a_large_blur():
    """A spectrum that is dense at its top; the symbol of the blur bounds its norm by 1."""
    psf = np.outer(*[np.exp(-0.5 * (np.arange(-9, 10) / 3) ** 2)] * 2)
    A = ops.convolution(psf / psf.sum(), (128, 128), boundary="zero")
    s = A.norm(rtol=1e-3)
    reference = scipy.sparse.linalg.svds(A.to_scipy(), k=1, return_singular_vectors=False, rng=0)[0]
    assert s <= reference * (1 + 1e-10) <= (1 + 1e-3) * s
    assert reference < 1


def test_golub_kahan_stops_when_the_space_is_exhausted(rng):
    """Rank 2: at most 2 steps whatever is asked for, and B keeps both singular values."""
    M = rng.standard_normal((8, 2)) @ rng.standard_normal((2, 6))
    _, V, B = ops.golub_kahan(ops.matrix(M), rng.standard_normal(8), 6)
    assert len(V) == 2
    np.testing.assert_allclose(
        np.linalg.svd(B, compute_uv=False), np.linalg.svd(M, compute_uv=False)[:2], rtol=1e-12
    )
    U, V, B = ops.golub_kahan(ops.matrix(M), M[:, 0] * 0, 3)
    assert (len(U), len(V), B.shape) == (0, 0, (0, 0))


def test_golub_kahan_keeps_orthogonality(rng):
    """Where a plain recurrence loses it: a singular value far above the others."""
    s = np.concatenate([[1.0], np.geomspace(1e-2, 1e-8, 59)])
    Q = np.linalg.qr(rng.standard_normal((60, 60)))[0]
    U, V, _ = ops.golub_kahan(ops.matrix(Q * s), rng.standard_normal(60), 40)
    for basis in (U, V):
        G = np.stack(basis) @ np.stack(basis).T
        assert np.abs(G - np.eye(len(basis))).max() < 1e-13


# ---------------------------------------------------------------- algebra and refusals


def test_combinations_keep_dense_matrices(rng):
    """So that `auto` chooses a direct method for them."""
    M, N = rng.standard_normal((3, 3)), rng.standard_normal((3, 3))
    A, B = ops.matrix(M), ops.matrix(N)
    for combined, expected in (
        (A @ B, M @ N),
        (A + B, M + N),
        (A - B, M - N),
        (2 * A, 2 * M),
        (-A, -M),
        (A.H, M.T),
        (A * np.float64(2), 2 * M),
        (np.float64(2) * A, 2 * M),
    ):
        np.testing.assert_allclose(combined.matrix, expected, atol=1e-14)


def test_an_operator_is_its_own_operator():
    A = ops.identity(3)
    assert ops.as_operator(A) is A


@pytest.mark.parametrize("kind", ["uint8", "int8", "int64", "bool"])
def test_integer_pictures_do_not_wrap_around(kind):
    """Pictures come as uint8, where 1 - 2 is 255."""
    x = np.array([3, 2, 1, 0]).astype(kind)
    expected = np.diff(x.astype(float))
    result = ops.difference(4) @ x
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == np.float64
    picture = x.reshape(2, 2)
    np.testing.assert_array_equal(
        ops.gradient((2, 2)) @ picture, ops.gradient((2, 2)) @ picture.astype(float)
    )
    np.testing.assert_array_equal(ops.identity(4) @ x, x.astype(float))


def test_autograd_goes_through_every_operator(torch, rng):
    for case in OPERATORS:
        if "torch" not in case.libraries:
            continue
        like = torch.zeros(1, dtype=torch.float64)
        A = case.build(like)
        x = random_like(rng, A.in_shape, like).requires_grad_()
        v = random_like(rng, A.out_shape, like)
        inner(A @ x, v).backward()
        np.testing.assert_allclose(
            to_numpy(x.grad), to_numpy(A.H @ v), atol=1e-12, err_msg=case.name
        )


def test_autograd_reaches_the_numbers_of_an_operator(torch):
    """Learning a blur kernel or a matrix needs the derivative with respect to it."""
    x = torch.arange(1.0, 7.0, dtype=torch.float64)

    def blurred(psf):
        return ops.convolution(psf, 6) @ x

    def multiplied(M):
        return ops.matrix(M) @ x

    psf = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(blurred, psf)
    M = torch.ones((2, 6), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(multiplied, M)
    assert ops.matrix(M).norm() == pytest.approx(np.sqrt(12))


def test_golub_kahan_is_cut_off_from_autograd(torch):
    """A gradient that ignores the coefficients would be wrong; none at all is noticed."""
    M = torch.eye(3, dtype=torch.float64, requires_grad=True)
    b = torch.ones(3, dtype=torch.float64, requires_grad=True)
    U, V, _ = ops.golub_kahan(ops.matrix(M), b, 1)
    assert not any(q.requires_grad for q in (*U, *V))


REFUSED = {
    "sparse vector": (lambda: ops.matrix(scipy.sparse.coo_array(np.ones(3))), "got shape (3,)"),
    "sparse without entries": (lambda: ops.matrix(scipy.sparse.csr_array((3, 3))), "be empty"),
    "sparse with NaN": (
        lambda: ops.matrix(scipy.sparse.csr_array(np.array([[np.nan]]))),
        "must be finite",
    ),
    "sparse complex": (
        lambda: ops.matrix(scipy.sparse.csr_array(np.array([[1j]]))),
        "must be real",
    ),
    "tolerance of the norm": (lambda: ops.identity(2).norm(rtol=1e-4), "rtol is too small"),
    "norm of what is not finite": (
        lambda: ops.LinearOperator(lambda x: x * np.inf, lambda v: v, (2,), (2,), "map").norm(),
        "map must be finite",
    ),
    "too many levels": (
        lambda: ops.haar((8, 12), levels=3),
        "shape must be divisible by 2**levels: expected multiples of 8, got (8, 12)",
    ),
    "no level": (lambda: ops.haar((8, 5)), "expected multiples of 2, got (8, 5)"),
    "angles of a list": (lambda: ops.radon(4, [0.0, 90.0]), "angles must be an array"),
    "no angles": (lambda: ops.radon(4, np.zeros(0)), "angles must not be empty"),
    "angle NaN": (lambda: ops.radon(4, np.array([np.nan])), "angles must be finite"),
    "size of a shape": (lambda: ops.radon((4, 4), np.zeros(1)), "size must be a whole number"),
    "like of a list": (lambda: ops.radon(4, np.zeros(1), like=[1.0]), "like must be an array"),
    "variance zero": (
        lambda: ops.whitening(np.array([1.0, 0.0])),
        "cov must be positive definite: expected variances (eigenvalues of a matrix) > 0, "
        "got from 0.000e+00 to 1.000e+00",
    ),
    "variance negative": (lambda: ops.whitening(np.array([1.0, -2.0])), "from -2.000e+00"),
    "variances of a picture": (
        lambda: ops.whitening(np.ones((2, 3))),
        "expected shape (m,) or (m, m), got (2, 3)",
    ),
    "covariance not symmetric": (
        lambda: ops.whitening(np.array([[2.0, 1.0], [1.0 + 1e-9, 2.0]])),
        "cov must be symmetric",
    ),
    "covariance indefinite": (
        lambda: ops.whitening(np.array([[1.0, 2.0], [2.0, 1.0]])),
        "got from -1.000e+00 to 3.000e+00",
    ),
    "shape of the argument": (lambda: ops.identity(3) @ np.ones(4), "expected (3,), got (4,)"),
    "column instead of vector": (
        lambda: ops.identity(3) @ np.ones((3, 1)),
        "expected (3,), got (3, 1)",
    ),
    "list": (lambda: ops.identity(2) @ [1.0, 2.0], "got list"),
    "number": (lambda: ops.identity(2) @ 3.0, "got float"),
    "array from the left": (lambda: np.ones(2) @ ops.identity(2), "stands on the left"),
    "list from the left": (lambda: [1.0, 2.0] @ ops.identity(2), "stands on the left"),
    "complex argument": (lambda: ops.identity(2) @ np.array([1j, 0]), "must be real"),
    "half precision": (lambda: ops.identity(2) @ np.ones(2, np.float16), "float32 or float64"),
    "np.matrix": (lambda: ops.identity((2, 2)) @ np.eye(2).view(np.matrix), "got matrix"),
    "masked": (lambda: ops.identity(2) @ np.ma.ones(2), "got MaskedArray"),
    "mixed dtypes": (lambda: ops.matrix(np.eye(2)) @ np.ones(2, np.float32), "one dtype"),
    "composition": (lambda: ops.identity(2) @ ops.identity(3), "output shape of B"),
    "sum of shapes": (lambda: ops.identity(2) + ops.identity(3), "equal shapes"),
    "sum with a matrix": (lambda: ops.identity(2) + np.eye(2), "two operators"),
    "factor": (lambda: ops.identity(2) * "3", "one real number"),
    "factor NaN": (lambda: float("nan") * ops.identity(2), "finite"),
    "factor complex": (lambda: 1j * ops.identity(2), "one real number"),
    "composition of dtypes": (
        lambda: ops.matrix(np.eye(2)) @ ops.matrix(np.eye(2, dtype=np.float32)),
        "one dtype",
    ),
    "sum of dtypes": (
        lambda: ops.matrix(np.eye(2)) + ops.matrix(np.eye(2, dtype=np.float32)),
        "one dtype",
    ),
    "matrix of another dtype": (
        lambda: ops.matrix(np.eye(2)).to_dense(like=np.ones(1, np.float32)),
        "one dtype",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    action, words = REFUSED[name]
    with pytest.raises(ValueError, match=".") as error:
        action()
    assert words in str(error.value)


def test_radon_refuses_the_strict_library():
    strict = make_like("array_api_strict", "float64")
    for call in (lambda: ops.radon(4, strict), lambda: ops.radon(4, np.zeros(1), like=strict)):
        with pytest.raises(ValueError, match="expected a NumPy array or a PyTorch tensor, got"):
            call()


def test_refusals_of_torch(torch):
    """Operators bound to NumPy refuse tensors and the other way round, with words."""
    eye = torch.eye(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="one library"):
        ops.matrix(np.eye(2)) @ eye[0]
    with pytest.raises(ValueError, match="one library"):
        ops.matrix(eye) @ np.ones(2)
    with pytest.raises(ValueError, match="one library"):
        ops.matrix(eye) @ ops.matrix(np.eye(2))
    with pytest.raises(ValueError, match="one library"):
        ops.subsampling(torch.tensor([True, False])) @ np.ones(2)
    with pytest.raises(ValueError, match="stands on the left"):
        eye @ ops.identity(2)
    with pytest.raises(ValueError, match="holds others"):
        ops.matrix(eye).to_scipy()
    with pytest.raises(ValueError, match="requires grad"):
        torch.tensor(2.0, requires_grad=True) * ops.identity(2)


def test_operators_cannot_be_changed():
    with pytest.raises(AttributeError):
        ops.identity(2).name = "other"


def test_all_backends_are_in_the_table():
    """Every entry runs somewhere, and every constructor has an entry."""
    named = " ".join(case.name for case in OPERATORS)
    for constructor in ops.__all__:
        if constructor not in ("LinearOperator", "as_operator", "golub_kahan"):
            assert constructor in named
    assert len({case.name for case in OPERATORS}) == len(OPERATORS)
    assert all(set(case.libraries) <= set(BACKENDS) for case in OPERATORS)
