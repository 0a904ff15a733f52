"""Arrays of NumPy and PyTorch behind one interface, and the checks at the boundary.

The library is real-valued. Namespace, dtype and device of a result are those of the
arguments; integers become the namespace's default floating type.
"""

import math
import operator
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj, is_torch_array

__all__ = [
    "as_choice",
    "as_count",
    "as_real",
    "as_scalar",
    "asarray_like",
    "check_alike",
    "detach",
    "inner",
    "is_sparse",
    "namespace",
    "norm",
    "require",
    "shape_of",
    "to_float",
    "to_numpy",
    "zeros",
]

Array = Any
_NUMPY = array_namespace(np.empty(0))


def shape_of(x: Any) -> tuple[int, ...] | str:
    """Return the shape of an array, the type's name of anything else: for what a message "got".

    Examples
    --------
    >>> import numpy as np
    >>> shape_of(np.ones((2, 3))), shape_of(1.0)
    ((2, 3), 'float')
    """
    shape = getattr(x, "shape", None)
    return type(x).__name__ if shape is None else tuple(shape)


def require(rule: Any, message: str) -> None:
    """Raise ``ValueError`` with this message unless the rule holds.

    The message is made whether it is needed or not: it must cost little, and be possible to make.

    Examples
    --------
    >>> require(2 <= 1, "rank is too large: expected at most 1, got 2")
    Traceback (most recent call last):
    ...
    ValueError: rank is too large: expected at most 1, got 2
    """
    if not rule:
        raise ValueError(message)


def namespace(*arrays: Array):
    """Return the array namespace that all arguments share.

    Raises
    ------
    ValueError
        If an argument is not an array, or two belong to different libraries.

    Examples
    --------
    >>> import numpy as np
    >>> namespace(np.ones(3)).__name__
    'array_api_compat.numpy'
    """
    # What follows asks for each library in turn; a short way for the most frequent answer.
    if arrays and all(type(x) is np.ndarray for x in arrays):
        return _NUMPY
    for x in arrays:
        found = f"expected a NumPy array or a PyTorch tensor, got {type(x).__name__}"
        require(is_array_api_obj(x), f"every argument must be an array: {found}")
    try:
        return array_namespace(*arrays)
    except TypeError:
        kinds = sorted({type(x).__module__.split(".")[0] for x in arrays})
        raise ValueError(
            f"all arrays must come from one library: got {' and '.join(kinds)}"
        ) from None


def as_real(
    x: Array,
    name: str,
    *,
    shape: tuple[int, ...] | None = None,
    ndim: int | None = None,
    like: Array | None = None,
    finite: bool = True,
) -> Array:
    """Return ``x`` as a real, finite, non-empty floating-point array, or say what is wrong.

    Parameters
    ----------
    x : array
        NumPy array or torch tensor. Integers and booleans become the default float.
    name : str
        What the caller calls this argument; it opens every message.
    shape, ndim : optional
        The expected shape, or the expected number of dimensions.
    like : array, optional
        The ``like`` of the operator that x goes with: :func:`check_alike`.
    finite : bool
        False for the arrays inside an iteration: they may overflow, and nothing is read.

    Raises
    ------
    ValueError
        For lists, complex or half-precision numbers, NaN or infinity, empty arrays, and
        shapes other than the expected one.

    Examples
    --------
    >>> import numpy as np
    >>> as_real(np.array([1, 2]), "y").dtype
    dtype('float64')
    >>> as_real([1.0, 2.0], "y")
    Traceback (most recent call last):
    ...
    ValueError: y must be an array: expected a NumPy array or a PyTorch tensor, got list
    """
    # Each product with an operator comes here: no message is made unless it is needed.
    if not _is_floating(x):
        x = _as_floating(x, name)
    if shape is not None and tuple(x.shape) != tuple(shape):
        raise ValueError(
            f"{name} has the wrong shape: expected {tuple(shape)}, got {tuple(x.shape)}"
        )
    if ndim is not None and x.ndim != ndim:
        raise ValueError(
            f"{name} has the wrong number of dimensions: expected {ndim}, "
            f"got {x.ndim} (shape {tuple(x.shape)})"
        )
    check_alike(x, name, like, "the operator")
    if finite:
        found = f"expected at least one entry, got shape {tuple(x.shape)}"
        require(math.prod(x.shape) > 0, f"{name} must not be empty: {found}")
        all_finite = array_namespace(x).all(array_namespace(x).isfinite(x))
        require(all_finite, f"{name} must be finite: expected no NaN and no infinity, got some")
    return x


def _is_floating(x: Any) -> bool:
    """Return whether x can be used as it is; :func:`_as_floating` deals with the others."""
    if type(x) is np.ndarray:
        return x.dtype in (np.float64, np.float32)
    if not _is_array(x) or is_sparse(x):
        return False
    xp = array_namespace(x)
    return x.dtype in (xp.float64, xp.float32)


def _is_array(x: Any) -> bool:
    return is_array_api_obj(x) and not isinstance(x, (np.matrix, np.ma.MaskedArray, np.generic))


def _as_floating(x: Any, name: str) -> Array:
    """Return integers and booleans as the default float, or say why x cannot be used."""
    found = f"expected a NumPy array or a PyTorch tensor, got {type(x).__name__}"
    require(_is_array(x), f"{name} must be an array: {found}")
    require(not is_sparse(x), f"{name} must be dense: expected an ordinary tensor, got others")
    xp, kind = array_namespace(x), f"got dtype {x.dtype}"
    numbers = not isinstance(x, np.ndarray) or x.dtype.kind in "biufc"
    require(numbers, f"{name} must hold numbers: expected real numbers, {kind}")
    real = not xp.isdtype(x.dtype, "complex floating")
    require(real, f"{name} must be real: expected real numbers, {kind}")
    if xp.isdtype(x.dtype, ("bool", "integral")):
        x = xp.astype(x, xp.asarray(0.0).dtype)
    require(
        x.dtype in (xp.float32, xp.float64),
        f"{name} must be in single or double precision: expected float32 or float64, got {x.dtype}",
    )
    return x


def as_scalar(
    value: float, name: str, *, minimum: float | None = None, positive: bool = False
) -> float:
    """Return ``value`` as a finite Python float, at least ``minimum``, positive if asked.

    Examples
    --------
    >>> as_scalar(-1.0, "lam", positive=True)
    Traceback (most recent call last):
    ...
    ValueError: lam must be positive: expected a number > 0, got -1.0
    """
    # Of NumPy's numbers: integers and floating-point, no booleans, no complex ones, no text.
    kind = getattr(getattr(value, "dtype", None), "kind", "f")
    no_number = isinstance(value, (bool, str, bytes, complex)) or kind not in "iuf"
    if no_number or getattr(value, "ndim", 0) != 0:
        raise ValueError(f"{name} must be one real number: got {value!r}")
    require(
        not getattr(value, "requires_grad", False),
        f"{name} must be a plain number: a tensor that requires grad would lose its gradient "
        "here, pass float(value.detach())",
    )
    try:
        number = to_float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        # RuntimeError: what torch says to a complex number.
        raise ValueError(f"{name} must be one real number: got {type(value).__name__}") from None
    require(math.isfinite(number), f"{name} must be finite: got {number}")
    allowed = number > 0 or not positive
    require(allowed, f"{name} must be positive: expected a number > 0, got {number}")
    enough = minimum is None or number >= minimum
    require(enough, f"{name} is too small: expected at least {minimum}, got {number}")
    return number


def as_count(value: int, name: str, *, minimum: int = 0, maximum: int | None = None) -> int:
    """Return ``value`` as a Python integer between ``minimum`` and ``maximum``.

    Examples
    --------
    >>> as_count(2.5, "rank")
    Traceback (most recent call last):
    ...
    ValueError: rank must be a whole number: got 2.5
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise ValueError(f"{name} must be a whole number: got {value!r}")
    if number < minimum or (maximum is not None and number > maximum):
        upper = "" if maximum is None else f" and at most {maximum}"
        raise ValueError(
            f"{name} is out of range: expected at least {minimum}{upper}, got {number}"
        )
    return number


def as_choice(value: str, name: str, allowed: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of the words allowed.

    Examples
    --------
    >>> as_choice("mirror", "boundary", ("periodic", "zero"))
    Traceback (most recent call last):
    ...
    ValueError: boundary must be one of periodic, zero: got 'mirror'
    """
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}: got {value!r}")
    return value


def asarray_like(values: Array, like: Array | None) -> Array:
    """Return ``values`` in the namespace, dtype and device of ``like`` (None: NumPy float64).

    Examples
    --------
    >>> import numpy as np
    >>> asarray_like([1, 2], np.ones(1, dtype=np.float32)).dtype
    dtype('float32')
    """
    if like is None:
        return np.asarray(values, dtype=np.float64)
    xp = namespace(like)
    return xp.asarray(values, dtype=like.dtype, device=device(like))


def zeros(shape: tuple[int, ...], like: Array) -> Array:
    """Return zeros of the given shape in the namespace, dtype and device of ``like``.

    Examples
    --------
    >>> import numpy as np
    >>> zeros((2,), np.ones(5))
    array([0., 0.])
    """
    return namespace(like).zeros(shape, dtype=like.dtype, device=device(like))


def check_alike(x: Array, name: str, like: Array | None, like_name: str) -> None:
    """Raise ``ValueError`` unless ``x`` has the library, dtype and device of ``like``.

    Anything is like None: so it is with the ``like`` of operators that hold no numbers.

    Examples
    --------
    >>> import numpy as np
    >>> check_alike(np.ones(2, dtype=np.float32), "y", np.ones(2), "A")
    Traceback (most recent call last):
    ...
    ValueError: y and A must have one dtype: expected float64, got float32
    """
    if like is None:
        return
    namespace(x, like)
    # Each product with an operator asks this: no message is made unless it is needed.
    if x.dtype != like.dtype:
        raise ValueError(
            f"{name} and {like_name} must have one dtype: expected {like.dtype}, got {x.dtype}"
        )
    if device(x) != device(like):
        raise ValueError(
            f"{name} and {like_name} must be on one device: "
            f"expected {device(like)}, got {device(x)}"
        )


def inner(x: Array, y: Array) -> Array:
    r"""Return the inner product :math:`\langle x,y\rangle=\sum_i x_iy_i`, a 0-d array.

    Arrays keep their shape: for pictures the sum runs over all pixels.

    Examples
    --------
    >>> import numpy as np
    >>> float(inner(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]])))
    11.0
    """
    xp = namespace(x, y)
    if x.shape != y.shape:
        raise ValueError(
            f"an inner product needs equal shapes: got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    return xp.reshape(x, (-1,)) @ xp.reshape(y, (-1,))


def norm(x: Array) -> Array:
    r"""Return :math:`\|x\|=\sqrt{\langle x,x\rangle}`, a 0-d array.

    Under automatic differentiation the derivative at :math:`x=0` is 0, an element of the
    subdifferential there; the plain square root would give NaN. Where the squares overflow or
    underflow, x is scaled first.

    Examples
    --------
    >>> import numpy as np
    >>> float(norm(np.array([3.0, 4.0]))), float(norm(np.array([0.0, 3e200])))
    (5.0, 3e+200)
    """
    xp = namespace(x)
    with np.errstate(over="ignore"):
        square = inner(x, x)
    tiny = 1e-37 if x.dtype == xp.float32 else 1e-307  # the smallest numbers in full precision
    if not 1e8 * tiny < to_float(square) < math.inf and math.prod(x.shape):
        largest = to_float(xp.max(xp.abs(x)))
        if tiny < largest < math.inf:
            return largest * norm(x / largest)
    if is_torch_array(x) and x.requires_grad:
        positive = square > 0
        safe = xp.where(positive, square, xp.ones_like(square))
        return xp.where(positive, xp.sqrt(safe), xp.zeros_like(square))
    return xp.sqrt(square)


def is_sparse(x: Any) -> bool:
    """Return whether ``x`` is a ``scipy.sparse`` matrix or a sparse torch tensor.

    Examples
    --------
    >>> import scipy.sparse
    >>> is_sparse(scipy.sparse.eye_array(2))
    True
    """
    if is_torch_array(x):
        return str(x.layout) != "torch.strided"
    return type(x).__module__.startswith("scipy.sparse")


def detach(x: Array) -> Array:
    """Return ``x`` cut off from autograd; for NumPy, ``x`` itself.

    Examples
    --------
    >>> import numpy as np
    >>> detach(np.ones(2))
    array([1., 1.])
    """
    return x.detach() if is_torch_array(x) else x


def to_numpy(x: Array) -> np.ndarray:
    """Return ``x`` in NumPy and double precision, cut off from autograd; not always a copy.

    Examples
    --------
    >>> import numpy as np
    >>> to_numpy(np.ones(2, dtype=np.float32))
    array([1., 1.])
    """
    x = detach(x)
    return np.asarray(x.cpu() if is_torch_array(x) else x, dtype=np.float64)


def to_float(x: Array) -> float:
    """Return a 0-d array (or a number) as a Python float, cut off from autograd.

    Examples
    --------
    >>> import numpy as np
    >>> to_float(np.array(2))
    2.0
    """
    return float(detach(x))
