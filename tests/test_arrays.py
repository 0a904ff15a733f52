"""The boundary: what is taken, what is refused, and in which words."""

import math

import numpy as np
import pytest
from conftest import BACKENDS, PRESENT, make_like
from kit import assert_alike, eps, random_like, to_numpy

from course_lib import arrays
from course_lib.arrays import (
    as_count,
    as_real,
    as_scalar,
    asarray_like,
    check_alike,
    detach,
    inner,
    is_sparse,
    namespace,
    norm,
    to_float,
    zeros,
)


@pytest.mark.parametrize("backend", BACKENDS)
def test_backend_is_present(backend):
    """Skipped, by name, where a library or a device is absent: the other tests leave it out."""
    if backend not in PRESENT:
        pytest.skip(f"{backend} is absent: no test runs on it")
    assert_alike(make_like(backend, "float32"), make_like(backend, "float32"))


# ---------------------------------------------------------------- inner product and norm


def test_inner_and_norm(like, rng):
    """Of vectors and of pictures, as 0-d arrays of the same kind."""
    for shape in ((7,), (3, 4), (2, 1, 3), (1,)):
        x, y = random_like(rng, shape, like), random_like(rng, shape, like)
        a, b = to_numpy(x).astype(float).ravel(), to_numpy(y).astype(float).ravel()
        bound = 20 * eps(like) * np.linalg.norm(a) * np.linalg.norm(b)
        assert abs(to_float(inner(x, y)) - a @ b) <= bound
        assert to_float(norm(x)) == pytest.approx(np.linalg.norm(a), rel=20 * eps(like))
        for value in (inner(x, y), norm(x)):
            assert_alike(value, like)
            assert value.ndim == 0


def test_inner_demands_one_shape(xp):
    """torch would broadcast a single entry, and a transposed picture would pass unseen."""
    like = make_like(xp, "float64")
    for one, other in (((1,), (5,)), ((2, 3), (3, 2)), ((6,), (2, 3))):
        with pytest.raises(ValueError, match="equal shapes"):
            inner(zeros(one, like), zeros(other, like))


def test_inner_demands_one_library(torch):
    with pytest.raises(ValueError, match="one library: got numpy and torch"):
        inner(np.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="got list"):
        inner([1.0], [1.0])


def test_derivative_of_the_norm(torch):
    """x/‖x‖, and 0 at 0, where the plain root of the inner product gives NaN."""
    x = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64, requires_grad=True)
    norm(x).backward()
    np.testing.assert_allclose(x.grad.numpy(), [0.6, 0, 0.8])
    assert torch.autograd.gradcheck(norm, x)
    zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    value = norm(zero)
    value.backward()
    assert float(value.detach()) == 0
    np.testing.assert_array_equal(zero.grad.numpy(), 0)
    naive = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    torch.sqrt(inner(naive, naive)).backward()
    assert naive.grad.isnan().all()  # what norm() is for


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_norm_of_numbers_whose_squares_overflow_or_vanish(xp, dtype, torch):
    like = make_like(xp, dtype)
    largest, smallest = (300, -300) if dtype == "float64" else (36, -36)
    for exponent in (largest, largest // 2, smallest // 2, smallest):
        x = 10.0**exponent * np.array([[3.0, 0.0], [0.0, -4.0]])
        value = norm(asarray_like(x, like))
        assert_alike(value, like)
        assert value.ndim == 0
        assert to_float(value) == pytest.approx(5.0 * 10.0**exponent, rel=4 * eps(like))
    # What is not finite stays so, and zero is zero.
    for x, expected in (([np.inf, 1.0], np.inf), ([np.nan, 1.0], np.nan), ([0.0], 0.0)):
        np.testing.assert_equal(to_float(norm(asarray_like(x, like))), expected)
    x = torch.tensor([3e200, 4e200], dtype=torch.float64, requires_grad=True)
    norm(x).backward()
    np.testing.assert_allclose(x.grad.numpy(), [0.6, 0.8])


def test_second_derivative_of_the_norm(torch):
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(norm, x)


# ---------------------------------------------------------------- as_real


def test_real_arrays_pass_unchanged(like):
    x = asarray_like(np.ones((2, 3)), like)
    for options in ({}, {"shape": (2, 3)}, {"ndim": 2}, {"shape": [2, 3]}):
        assert as_real(x, "x", **options) is x


@pytest.mark.parametrize("kind", ["bool", "int8", "uint8", "int32", "int64", "uint64"])
def test_integers_become_the_default_float(kind, torch):
    result = as_real(np.array([0, 1], dtype=kind), "x")
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, [0.0, 1.0])
    if hasattr(torch, kind):
        assert as_real(torch.tensor([0, 1]).to(getattr(torch, kind)), "x").dtype == torch.float32


def test_tensors_keep_their_graph(torch):
    x = torch.ones(2, requires_grad=True)
    assert as_real(x, "x") is x


BAD = {
    "list": ([1.0], "must be an array: expected a NumPy array or a PyTorch tensor, got list"),
    "number": (1.0, "got float"),
    "None": (None, "got NoneType"),
    "NumPy scalar": (np.float64(1), "got float64"),
    "np.matrix": (np.ones((1, 1)).view(np.matrix), "got matrix"),
    "masked": (np.ma.ones(2), "got MaskedArray"),
    "text": (np.array(["1"]), "must hold numbers"),
    "objects": (np.array([1.0, None]), "must hold numbers"),
    "dates": (np.array(["2020-01-01"], dtype="datetime64[D]"), "must hold numbers"),
    "complex": (np.array([1j]), "must be real: expected real numbers, got dtype complex128"),
    "half": (np.ones(2, np.float16), "expected float32 or float64, got float16"),
    "extended": (np.ones(2, np.longdouble), "expected float32 or float64"),
    "swapped bytes": (np.ones(2, ">f8"), "expected float32 or float64"),
    "NaN": (np.array([1.0, np.nan]), "must be finite: expected no NaN and no infinity"),
    "infinity": (np.array([-np.inf]), "must be finite"),
    "empty": (np.ones((3, 0)), "must not be empty: expected at least one entry, got shape (3, 0)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays(name):
    value, words = BAD[name]
    with pytest.raises(ValueError, match="^y ") as error:
        as_real(value, "y")
    assert words in str(error.value)


def test_bad_tensors(torch):
    for value, words in (
        (torch.ones(2, dtype=torch.float16), "float32 or float64, got torch.float16"),
        (torch.ones(2, dtype=torch.bfloat16), "float32 or float64, got torch.bfloat16"),
        (torch.ones(2, dtype=torch.complex64), "must be real"),
        (torch.tensor([np.nan]), "must be finite"),
        (torch.ones(0), "must not be empty"),
        (torch.ones(2).to_sparse(), "must be dense"),
    ):
        with pytest.raises(ValueError, match="^y ") as error:
            as_real(value, "y")
        assert words in str(error.value)


def test_bad_shapes(xp):
    x = zeros((2, 3), make_like(xp, "float64"))
    with pytest.raises(ValueError, match=r"y has the wrong shape: expected \(3, 2\), got \(2, 3\)"):
        as_real(x, "y", shape=(3, 2))
    with pytest.raises(ValueError, match=r"number of dimensions: expected 1, got 2"):
        as_real(x, "y", ndim=1)


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), np.array(2.0)])
def test_scalars(value):
    result = as_scalar(value, "lam", positive=True)
    assert type(result) is float
    assert result == 2.0


def test_scalars_of_torch(torch):
    assert as_scalar(torch.tensor(2.0), "lam") == 2.0
    with pytest.raises(ValueError, match="requires grad would lose its gradient"):
        as_scalar(torch.tensor(2.0, requires_grad=True), "lam")
    with pytest.raises(ValueError, match="one real number"):
        as_scalar(torch.tensor(2j), "lam")
    with pytest.raises(ValueError, match="one real number"):
        as_scalar(torch.ones(1), "lam")


@pytest.mark.parametrize(
    "value",
    [
        None,
        "2",
        b"2",
        True,
        np.True_,
        2j,
        np.complex128(2),
        [2.0],
        np.ones(1),
        np.array("2"),
        object(),
        10**400,
    ],
)
def test_no_scalars(value):
    with pytest.raises(ValueError, match="lam must be one real number"):
        as_scalar(value, "lam")


def test_ranges_of_scalars():
    for value in (math.nan, math.inf, -math.inf, np.float32(np.nan)):
        with pytest.raises(ValueError, match="lam must be finite"):
            as_scalar(value, "lam")
    with pytest.raises(ValueError, match="lam must be positive: expected a number > 0, got 0.0"):
        as_scalar(0, "lam", positive=True)
    with pytest.raises(ValueError, match="tau is too small: expected at least 1.0, got 0.5"):
        as_scalar(0.5, "tau", minimum=1.0)
    assert as_scalar(1.0, "tau", minimum=1.0) == 1.0
    assert as_scalar(5e-324, "lam", positive=True) > 0


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), np.array(3)])
def test_counts(value):
    result = as_count(value, "k")
    assert type(result) is int
    assert result == 3


def test_counts_of_torch(torch):
    assert as_count(torch.tensor(3), "k") == 3
    with pytest.raises(ValueError, match="k must be a whole number"):
        as_count(torch.tensor(3.0), "k")


@pytest.mark.parametrize(
    "value", [3.0, "3", None, True, np.float64(3), np.array([3, 4]), [3], 3j, math.nan]
)
def test_no_counts(value):
    with pytest.raises(ValueError, match="k must be a whole number"):
        as_count(value, "k")


def test_ranges_of_counts():
    assert as_count(0, "k") == 0
    with pytest.raises(ValueError, match="k is out of range: expected at least 0, got -1"):
        as_count(-1, "k")
    with pytest.raises(ValueError, match="expected at least 1 and at most 4, got 5"):
        as_count(5, "k", minimum=1, maximum=4)
    assert as_count(4, "k", minimum=1, maximum=4) == 4


# ---------------------------------------------------------------- kinds


def test_asarray_like_and_zeros(like):
    assert_alike(asarray_like([1, 2], like), like)
    assert_alike(asarray_like(np.array([1, 2], dtype="int8"), like), like)
    assert_alike(zeros((2, 3), like), like)
    assert tuple(zeros((2, 3), like).shape) == (2, 3)
    assert asarray_like([1, 2], None).dtype == np.float64


def test_check_alike(torch):
    check_alike(np.ones(2), "y", None, "A")
    check_alike(np.ones(2), "y", np.ones(3), "A")
    with pytest.raises(ValueError, match="y and A must have one dtype: expected float64, got f"):
        check_alike(np.ones(2, np.float32), "y", np.ones(3), "A")
    with pytest.raises(ValueError, match="one library: got numpy and torch"):
        check_alike(torch.ones(2), "y", np.ones(3), "A")
    with pytest.raises(ValueError, match="expected torch.float64, got torch.float32"):
        check_alike(torch.ones(2), "y", torch.ones(2, dtype=torch.float64), "A")
    meta = torch.ones(2, device="meta")
    with pytest.raises(ValueError, match="y and A must be on one device: expected cpu, got meta"):
        check_alike(meta, "y", torch.ones(2), "A")


def test_namespace(xp):
    like = make_like(xp, "float64")
    assert namespace(like, like) is namespace(like)
    for bad in ([1.0], 1.0, None, "x"):
        with pytest.raises(ValueError, match="every argument must be an array"):
            namespace(like, bad)


def test_detach_and_to_float(torch):
    x = torch.ones(2, requires_grad=True)
    assert not detach(x).requires_grad
    assert to_float(x.sum()) == 2.0
    y = np.ones(2)
    assert detach(y) is y
    assert type(to_float(np.float32(2))) is float


def test_is_sparse(torch):
    import scipy.sparse

    assert is_sparse(scipy.sparse.eye(2))
    assert is_sparse(torch.eye(2).to_sparse())
    assert not is_sparse(np.eye(2))
    assert not is_sparse(torch.eye(2))
    assert not is_sparse([1.0])


def test_arrays_holds_no_mathematics_of_its_own():
    """The norm and the inner product are all of it; the rest is the boundary."""
    assert set(arrays.__all__) >= {"inner", "norm"}
