"""Every operator of the table: its matrix, adjoint, norm, kind of result; and combinations."""

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
from kit import EPS, assert_alike, dense, eps, random_like, to_numpy

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
    value = A.norm(like=like)
    assert isinstance(value, float)
    assert (1 - 1e-3) * exact <= value <= exact * rounding
    assert (1 - 1e-5) * exact <= A.norm(rtol=1e-5, like=like) * rounding
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
    assert (1 - 1e-3) * exact <= ops.matrix(M).norm() <= exact * (1 + 1e-13)


@pytest.mark.slow
def test_norm_of_a_slowly_decaying_spectrum():
    """500 singular values that fill [0, 1]: the estimate needs several rounds."""
    s = np.linspace(1, 0, 500)
    A = ops.matrix(np.diag(s))
    for rtol in (1e-1, 1e-3, 1e-6):
        assert 1 - rtol <= A.norm(rtol=rtol) <= 1 + 1e-13


@pytest.mark.slow
def test_norm_gives_up_after_320_steps():
    """A tolerance below rounding is not reached; the value is still a lower bound, and close."""
    s = np.linspace(1, 0, 400)
    A = ops.LinearOperator(lambda x: s * x, lambda v: s * v, (400,), (400,))
    assert 1 - 1e-6 <= A.norm(rtol=1e-300) <= 1 + 1e-13


def test_norm_scales():
    """No absolute threshold hides in the estimate."""
    M = np.random.default_rng(3).standard_normal((6, 5))
    exact = np.linalg.norm(M, 2)
    for scale in (1e-100, 1e-30, 1.0, 1e30, 1e100):
        assert ops.matrix(scale * M).norm() == pytest.approx(scale * exact, rel=1e-3)


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
    assert ops.matrix(A) is A


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
    "tolerance of the norm": (lambda: ops.identity(2).norm(rtol=0.0), "rtol must be positive"),
    "shape of the argument": (lambda: ops.identity(3) @ np.ones(4), "expected shape (3,)"),
    "column instead of vector": (lambda: ops.identity(3) @ np.ones((3, 1)), "expected shape"),
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
