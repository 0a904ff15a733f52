"""Linear operators: a map, its adjoint, and their shapes.

An operator keeps the shape of its arrays (a picture stays two-dimensional) and takes the
namespace, dtype and device from what it is applied to. Each one is shipped with its adjoint,
the operator with :math:`\\langle Ax,v\\rangle=\\langle x,A^\\top v\\rangle` for all x and v.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_numpy_array, is_torch_array

from .arrays import (
    Array,
    as_choice,
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
    require,
    to_float,
    zeros,
)

__all__ = [
    "LinearOperator",
    "as_operator",
    "convolution",
    "diagonal",
    "difference",
    "golub_kahan",
    "gradient",
    "haar",
    "identity",
    "integration",
    "matrix",
    "radon",
    "stack",
    "subsampling",
    "whitening",
]

# Probability that the upper bound of `norm` fails.
_FAILURE = 1e-6


@dataclass(frozen=True, eq=False)
class LinearOperator:
    r"""A linear map :math:`A` with its adjoint :math:`A^\top`.

    Attributes
    ----------
    apply, adjoint : callable
        :math:`x\mapsto Ax` and :math:`v\mapsto A^\top v`. They must not change their argument.
    in_shape, out_shape : tuple of int
        Shapes of x and of Ax.
    name : str
        Appears in error messages.
    like : array or None
        An array whose namespace, dtype and device the operator is bound to; None for operators
        that hold no numbers (differences, say) and take any.
    matrix : array or None
        The dense matrix, where the operator is one.
    shift_invariant : bool
        True if the operator commutes with cyclic shifts (periodic boundary): then the Fourier
        transform diagonalizes it.
    exact_norm : float or None
        :math:`\|A\|`, where a formula gives it.

    Examples
    --------
    >>> import numpy as np
    >>> A = matrix(np.array([[1.0, 2.0], [3.0, 4.0]]))
    >>> A @ np.array([1.0, 1.0])
    array([3., 7.])
    >>> (2 * A.H @ A).to_dense()
    array([[20., 28.],
           [28., 40.]])
    """

    apply: Callable[[Array], Array]
    adjoint: Callable[[Array], Array]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    name: str = "operator"
    like: Any = None
    matrix: Any = None
    shift_invariant: bool = False
    exact_norm: float | None = None

    # NumPy must hand ``array @ operator`` over to us, where it is refused with words.
    __array_ufunc__ = None

    @property
    def H(self) -> "LinearOperator":
        """The adjoint as an operator; for a real matrix, the transpose."""
        return LinearOperator(
            self.adjoint,
            self.apply,
            self.out_shape,
            self.in_shape,
            f"adjoint of {self.name}",
            self.like,
            None if self.matrix is None else self.matrix.T,
            self.shift_invariant,
            self.exact_norm,
        )

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, LinearOperator):
            return self._compose(other)
        # Inside an iteration x may overflow: whoever runs it says so.
        name, shape = f"the argument of {self.name}", self.in_shape
        return self.apply(as_real(other, name, shape=shape, like=self.like, finite=False))

    def __rmatmul__(self, other: Any) -> Any:
        raise ValueError(f"{self.name} stands on the left: write A @ x, and A.H @ x for x @ A")

    def _compose(self, other: "LinearOperator") -> "LinearOperator":
        require(
            self.in_shape == other.out_shape,
            f"A @ B needs the output shape of B as the input shape of A: expected "
            f"{self.in_shape}, got {other.out_shape}",
        )
        both = self.matrix is not None and other.matrix is not None
        return LinearOperator(
            lambda x: self @ (other @ x),
            lambda v: other.H @ (self.H @ v),
            other.in_shape,
            self.out_shape,
            f"({self.name})({other.name})",
            _common_like(self, other),
            self.matrix @ other.matrix if both else None,
            self.shift_invariant and other.shift_invariant,
        )

    def __add__(self, other: "LinearOperator") -> "LinearOperator":
        require(
            isinstance(other, LinearOperator),
            f"A + B needs two operators: got {type(other).__name__}",
        )
        require(
            (self.in_shape, self.out_shape) == (other.in_shape, other.out_shape),
            f"A + B needs equal shapes: expected {self.in_shape} -> {self.out_shape}, "
            f"got {other.in_shape} -> {other.out_shape}",
        )
        both = self.matrix is not None and other.matrix is not None
        return LinearOperator(
            lambda x: self @ x + other @ x,
            lambda v: self.H @ v + other.H @ v,
            self.in_shape,
            self.out_shape,
            f"{self.name} + {other.name}",
            _common_like(self, other),
            self.matrix + other.matrix if both else None,
            self.shift_invariant and other.shift_invariant,
        )

    def __mul__(self, factor: float) -> "LinearOperator":
        factor = as_scalar(factor, "factor")
        return replace(
            self,
            apply=lambda x: factor * self.apply(x),
            adjoint=lambda v: factor * self.adjoint(v),
            name=f"{factor:g} {self.name}",
            matrix=None if self.matrix is None else factor * self.matrix,
            exact_norm=None if self.exact_norm is None else abs(factor) * self.exact_norm,
        )

    __rmul__ = __mul__

    def __neg__(self) -> "LinearOperator":
        return self * -1.0

    def __sub__(self, other: "LinearOperator") -> "LinearOperator":
        return self + (-other)

    # What is not finite ends in an error, so NumPy need not warn of it as well.
    @np.errstate(over="ignore", invalid="ignore")
    def norm(self, *, rtol: float = 1e-2, like: Array | None = None) -> float:
        r"""Return s with :math:`s\le\|A\|\le(1+\mathrm{rtol})\,s`, exact where a formula is known.

        A step that must not exceed :math:`1/\|A\|^2` is ``1 / (1.01 * A.norm()) ** 2``.

        Otherwise s is the norm of the bidiagonal matrix :math:`B_k` of :func:`golub_kahan`,
        started at a random direction :math:`u_1`. The left inequality always holds, up to
        rounding. The right one holds for every operator but for a draw of :math:`u_1` that has
        probability :math:`10^{-6}` (in exact arithmetic): let u be a left singular vector of
        :math:`\|A\|=\sigma`. By the recurrence :math:`\langle u,u_i\rangle=
        q_i(\sigma)\,\langle u,u_1\rangle` with polynomials :math:`q_i` of known coefficients,
        which increase beyond s, and :math:`|\langle u,u_{k+1}\rangle|\le1`. It stops when
        :math:`q_{k+1}((1+\mathrm{rtol})s)\ge10^6\sqrt m`, for m entries of Ax: a larger σ
        would need :math:`|\langle u,u_1\rangle|\le10^{-6}/\sqrt m`, and that is as rare.

        That takes at most about
        :math:`\log(10^6\sqrt m/\mathrm{rtol})/\sqrt{8\,\mathrm{rtol}}` steps, and few where
        the largest singular value stands apart. The draw is the same in every call.

        Parameters
        ----------
        rtol : float
            Relative tolerance, at least 1e-3.
        like : array, optional
            Sets namespace, dtype and device for operators that are bound to none.

        Raises
        ------
        ValueError
            If ``rtol`` is too small, or a product with the operator is not finite.

        References
        ----------
        Hochstenbach (2013), Journal of Scientific Computing 57, 464-476.

        Examples
        --------
        >>> import numpy as np
        >>> A = matrix(np.diag(np.linspace(1.0, 0.0, 500)))
        >>> bool(A.norm() <= 1.0 <= 1.01 * A.norm())
        True
        """
        rtol = as_scalar(rtol, "rtol", minimum=1e-3)
        if self.exact_norm is not None:
            return self.exact_norm
        like = self.like if like is None else like
        b = asarray_like(np.random.default_rng(0).standard_normal(self.out_shape), like)
        u, v, beta, entries = b / norm(b), zeros(self.in_shape, b), 0.0, []
        while True:
            for _ in range(10):
                v = detach(self.H @ u) - beta * v
                alpha = to_float(norm(v))
                v = v / (alpha or 1.0)
                u = detach(self @ v) - alpha * u
                beta = to_float(norm(u))
                u = u / (beta or 1.0)
                entries += [alpha, beta]
            require(
                np.isfinite(entries).all(),
                f"{self.name} must be finite: expected finite products, got others",
            )
            B = (np.diag([*entries[::2], 0.0]) + np.diag(entries[1::2], -1))[:, :-1]
            s = float(np.linalg.norm(B, 2))
            # The recurrence of the q_i is (σ²I − BBᵀ)q = (0, ..., 0, τ): q up to a factor.
            B = B / (s or 1.0)
            q = np.linalg.inv((1 + rtol) ** 2 * np.eye(len(B)) - B @ B.T)[:, -1]
            if q[-1] * _FAILURE >= q[0] * math.sqrt(math.prod(self.out_shape)):
                return s

    def to_dense(self, like: Array | None = None) -> Array:
        """Return the matrix, shape (size of output, size of input); columns are A e_j."""
        if like is not None and self.like is not None:
            check_alike(like, "like", self.like, self.name)
        if self.matrix is not None:
            return self.matrix
        size = math.prod(self.in_shape)
        eye = asarray_like(np.eye(size), self.like if like is None else like)
        xp = array_namespace(eye)
        units = (xp.reshape(eye[j, :], self.in_shape) for j in range(size))
        return xp.stack([xp.reshape(self @ unit, (-1,)) for unit in units], axis=1)

    def to_scipy(self):
        """Return a ``scipy.sparse.linalg.LinearOperator`` on flattened NumPy arrays."""
        from scipy.sparse.linalg import LinearOperator as ScipyOperator

        require(
            self.like is None or isinstance(self.like, np.ndarray),
            f"to_scipy needs NumPy arrays: {self.name} holds others",
        )
        dtype = np.float64 if self.like is None else self.like.dtype

        def flat(A: LinearOperator, x: np.ndarray) -> np.ndarray:
            # SciPy's solvers work in double precision whatever the operator's dtype is.
            return np.ravel(A @ np.asarray(x, dtype=dtype).reshape(A.in_shape))

        return ScipyOperator(
            (math.prod(self.out_shape), math.prod(self.in_shape)),
            matvec=lambda x: flat(self, x),
            rmatvec=lambda v: flat(self.H, v),
            dtype=dtype,
        )


def _common_like(*operators: LinearOperator) -> Any:
    """Return the array that binds a combination of operators, checked for agreement."""
    bound = [op for op in operators if op.like is not None]
    for op in bound[1:]:
        check_alike(op.like, op.name, bound[0].like, bound[0].name)
    return bound[0].like if bound else None


def as_operator(A: Any) -> LinearOperator:
    """Return ``A`` itself if it is an operator, else ``matrix(A)``.

    Examples
    --------
    >>> import numpy as np
    >>> as_operator(np.ones((2, 3))).in_shape
    (3,)
    """
    return A if isinstance(A, LinearOperator) else matrix(A)


def _with_data(A: Any, y: Array, name: str = "y") -> tuple[LinearOperator, Array]:
    """Return A as an operator, and y, which must be like the arrays that come out of it."""
    A = as_operator(A)
    return A, as_real(y, name, shape=A.out_shape, like=A.like)


def _response(A: LinearOperator, like: Array) -> Array:
    """Return what A makes of a pulse: transformed, it diagonalizes a shift-invariant A."""
    pulse = zeros(A.in_shape, like)
    pulse[(0,) * pulse.ndim] = 1.0
    return A @ pulse


def _sparse(M: Any) -> tuple[Any, Any, Any]:
    """Return a sparse matrix, its transpose, and an array of its kind, all validated."""
    if not is_torch_array(M):
        M = M.tocsr()
        values = as_real(M.data, "the sparse matrix")
        M = M.astype(values.dtype)
        return M, M.T.tocsr(), values
    with warnings.catch_warnings():
        # "Sparse CSR tensor support is in beta state": the products used here are old.
        warnings.simplefilter("ignore", UserWarning)
        M = M.to_sparse_csr()
        values = as_real(M.values(), "the sparse matrix")
        M = M.to(values.dtype)
        return M, M.to_sparse_coo().T.to_sparse_csr(), values


def matrix(M: Any) -> LinearOperator:
    r"""Return the operator :math:`x\mapsto Mx` of a dense or sparse matrix, shape (m, n).

    Parameters
    ----------
    M : array or sparse matrix
        NumPy array, torch tensor, ``scipy.sparse`` matrix, or sparse torch tensor.

    Raises
    ------
    ValueError
        If ``M`` is not two-dimensional, real, finite and non-empty.

    Examples
    --------
    >>> import numpy as np
    >>> A = matrix(np.array([[1.0, 2.0, 3.0]]))
    >>> A.H @ np.array([2.0])
    array([2., 4., 6.])
    """
    if is_sparse(M):
        require(M.ndim == 2, f"the sparse matrix must have 2 dimensions: got shape {M.shape}")
        M, transposed, like = _sparse(M)
        m, n = M.shape
        return LinearOperator(
            lambda x: M @ x, lambda v: transposed @ v, (n,), (m,), "sparse matrix", like
        )
    M = as_real(M, "the matrix", ndim=2)
    m, n = M.shape
    return LinearOperator(lambda x: M @ x, lambda v: M.T @ v, (n,), (m,), "matrix", M, M)


def identity(shape: int | tuple[int, ...]) -> LinearOperator:
    """Return the identity on arrays of the given shape.

    Examples
    --------
    >>> identity((2, 2)).norm()
    1.0
    """
    shape = _as_shape(shape)
    return LinearOperator(
        lambda x: x, lambda v: v, shape, shape, "identity", shift_invariant=True, exact_norm=1.0
    )


def diagonal(weights: Array) -> LinearOperator:
    r"""Return the operator :math:`(Ax)_i=w_ix_i`, entry by entry, for arrays of any shape.

    Weighted least squares, :math:`\tfrac12\sum_iw_i^2(Ax-y)_i^2`, is plain least squares of
    ``W @ A`` and ``W @ y`` with ``W = diagonal(w)``.

    Parameters
    ----------
    weights : array
        The w; it fixes shape, namespace, dtype and device.

    Examples
    --------
    >>> import numpy as np
    >>> diagonal(np.array([1.0, -3.0])).norm()
    3.0
    """
    w = as_real(weights, "weights")
    shape, exact = tuple(w.shape), to_float(array_namespace(w).max(abs(w)))
    return LinearOperator(
        lambda x: w * x, lambda v: w * v, shape, shape, "diagonal", w, exact_norm=exact
    )


def whitening(cov: Array) -> LinearOperator:
    r"""Return W with :math:`W^\top W=\Gamma^{-1}`, which makes noise of covariance Γ white.

    .. math:: \tfrac12\|Ax-y\|_{\Gamma^{-1}}^2=\tfrac12\|WAx-Wy\|^2,\qquad
        \Gamma=LL^\top,\quad W=L^{-1}\ (\text{Cholesky}).

    Parameters
    ----------
    cov : array, shape (m,) or (m, m)
        A vector: the variances of independent entries. A matrix: the covariance Γ, symmetric
        positive definite. (For the variances of a picture: ``diagonal(variance**-0.5)``.)

    Raises
    ------
    ValueError
        If a variance is not positive, or the matrix is not symmetric, or not positive definite
        by more than rounding.

    Examples
    --------
    >>> import numpy as np
    >>> whitening(np.array([4.0, 0.25])) @ np.array([2.0, 1.0])
    array([1., 2.])
    >>> whitening(np.array([[4.0, 2.0], [2.0, 2.0]])).to_dense()
    array([[ 0.5,  0. ],
           [-0.5,  1. ]])
    """
    cov = as_real(cov, "cov")
    require(
        cov.ndim in (1, 2) and cov.shape[0] == cov.shape[-1],
        "cov must be a vector of variances or a square matrix: expected shape (m,) or (m, m), "
        f"got {tuple(cov.shape)}",
    )
    xp, m, independent = array_namespace(cov), cov.shape[0], cov.ndim == 1
    rounding = 0.0 if independent else 10 * m * float(xp.finfo(cov.dtype).eps)
    defect = 0.0 if independent else to_float(xp.max(abs(cov - cov.T)))
    require(
        defect <= rounding * to_float(xp.max(abs(cov))),
        "cov must be symmetric: expected cov = cov.T, got a matrix that is not",
    )
    variances = detach(cov if independent else xp.linalg.eigvalsh(cov))
    low, high = to_float(xp.min(variances)), to_float(xp.max(variances))
    require(
        low > rounding * high,
        "cov must be positive definite: expected variances (eigenvalues of a matrix) > 0, "
        f"got from {low:.3e} to {high:.3e}",
    )
    if independent:
        return replace(diagonal(cov**-0.5), name="whitening")
    return replace(matrix(xp.linalg.inv(xp.linalg.cholesky(cov))), name="whitening")


def haar(shape: int | tuple[int, ...], *, levels: int | None = None) -> LinearOperator:
    r"""Return the synthesis :math:`x=Wc` of an array from its Haar wavelet coefficients.

    W is orthogonal, so the adjoint ``haar(shape).H`` is the analysis :math:`c=W^\top x`. On each
    level neighbours are replaced, in each dimension, by

    .. math:: \frac{x_{2i}+x_{2i+1}}{\sqrt2},\qquad\frac{x_{2i}-x_{2i+1}}{\sqrt2},

    means first and differences behind them; the next level does the same to the block of means.
    A picture that is piecewise constant has few coefficients that are not zero.

    Parameters
    ----------
    shape : int or tuple
        Shape of x and of c.
    levels : int, optional
        At least 1; as many as the shape allows if not given.

    Raises
    ------
    ValueError
        If a size is not divisible by :math:`2^{\mathrm{levels}}`.

    References
    ----------
    Mallat (1989), IEEE Transactions on Pattern Analysis and Machine Intelligence 11, 674-693.

    Examples
    --------
    >>> import numpy as np
    >>> (haar(4).H @ np.array([1.0, 1.0, 3.0, 3.0])).round(6)
    array([ 4., -2.,  0.,  0.])
    """
    shape = _as_shape(shape)
    # n & -n is the largest power of 2 that divides n.
    largest = min(n & -n for n in shape).bit_length() - 1
    levels = as_count(
        max(largest, 1) if levels is None else levels, "levels", minimum=1, maximum=62
    )
    require(
        levels <= largest,
        f"shape must be divisible by 2**levels: expected multiples of {2**levels}, got {shape}",
    )

    def on_blocks(x: Array, step: Callable, order: Any) -> Array:
        xp, x = array_namespace(x), x + 0.0  # a copy, to be overwritten
        for level in order:
            block = tuple(slice(0, n >> level) for n in shape)
            for axis in range(len(shape)):
                x[block] = xp.moveaxis(step(xp.moveaxis(x[block], axis, 0), xp), 0, axis)
        return x

    return LinearOperator(
        lambda c: on_blocks(c, _merge, reversed(range(levels))),
        lambda x: on_blocks(x, _split, range(levels)),
        shape,
        shape,
        "Haar synthesis",
        exact_norm=1.0,
    )


def _split(x: Array, xp: Any) -> Array:
    """Return the sums of neighbours along the first axis, then the differences, over √2."""
    even, odd = x[0::2, ...], x[1::2, ...]
    return xp.concat([even + odd, even - odd]) * math.sqrt(0.5)


def _merge(c: Array, xp: Any) -> Array:
    """Undo :func:`_split`."""
    half = c.shape[0] // 2
    sums, differences = c[:half, ...], c[half:, ...]
    pairs = xp.stack([sums + differences, sums - differences], axis=1)
    return xp.reshape(pairs, c.shape) * math.sqrt(0.5)


def radon(size: int, angles: Array, *, like: Array | None = None) -> LinearOperator:
    r"""Return the Radon transform of a square picture: parallel rays, one projection an angle.

    .. math:: (Ax)(t,\theta)=\int x\,d\ell\quad\text{along}\quad
        \xi\cos\theta+\eta\sin\theta=t

    with ξ to the right, η upwards, both 0 in the middle of the pixel (n // 2, n // 2), and lengths
    in pixels. A pixel is a square of constant brightness, and a detector is one pixel wide: the
    entry of A for ray and pixel is the area that the pixel has in common with a strip of width 1.
    So the matrix is sparse, the adjoint is exact, and the projections of a picture in the
    inscribed circle all have the sum of the picture. The n detectors do not see what is outside
    the circle from all sides.

    Angles, centre and layout are those of ``skimage.transform.radon`` with ``circle=True``, which
    interpolates in the turned picture instead. For a smooth picture both have errors of second
    order in the width of a pixel, and differ by less than that: by 2e-4 of the data for 128 x 128
    pixels.

    Parameters
    ----------
    size : int
        n; the picture has shape (n, n).
    angles : array, shape (k,)
        θ in degrees.
    like : array, optional
        NumPy array or torch tensor that sets namespace, dtype and device; ``angles`` does if not
        given.

    Returns
    -------
    LinearOperator, (n, n) -> (n, k)
        A sinogram has a row a detector, t = -(n // 2), ..., n - 1 - n // 2, and a column an
        angle. About :math:`2.1\,kn^2` numbers are stored. Automatic differentiation does not
        reach the angles.

    Raises
    ------
    ValueError
        If ``size`` is no positive whole number, the angles are no finite vector, or ``like`` is
        neither of NumPy nor of torch.

    References
    ----------
    Kak and Slaney (1988), Principles of Computerized Tomographic Imaging.

    Examples
    --------
    >>> import numpy as np
    >>> A = radon(3, np.array([0.0, 90.0]))
    >>> x = np.array([[0.0, 1.0, 2.0], [0.0, 0.0, 4.0], [0.0, 0.0, 0.0]])
    >>> (A @ x).round(6)  # sums of the columns; of the rows, upwards
    array([[0., 0.],
           [1., 4.],
           [6., 3.]])
    """
    n, angles = as_count(size, "size", minimum=1), as_real(angles, "angles", ndim=1)
    like = angles if like is None else as_real(like, "like")
    require(
        is_numpy_array(like) or is_torch_array(like),
        "radon needs sparse matrices: expected a NumPy array or a PyTorch tensor, "
        f"got {type(like).__name__}",
    )
    areas = _strips(n, np.deg2rad([to_float(angle) for angle in angles]))
    back, project = (_sparse_like(S, like) for S in (areas, areas.T))
    return LinearOperator(
        lambda x: (project @ x.reshape(-1)).reshape(n, -1),
        lambda v: (back @ v.reshape(-1)).reshape(n, n),
        (n, n),
        (n, angles.shape[0]),
        "Radon transform",
        asarray_like([0.0], like),
    )


def _strips(n: int, theta: np.ndarray) -> Any:
    """Return the areas common to pixels and strips, sparse, shape (n², n · number of angles)."""
    from scipy.sparse import csr_array, vstack

    k, c, s = theta.size, np.cos(theta).round(15), np.sin(theta).round(15)  # cos 90° is 0
    # Seen along the rays a pixel is a trapezium of area 1, symmetric about its middle.
    wide, narrow = np.maximum(abs(c), abs(s)), np.minimum(abs(c), abs(s))

    def beyond(distance: np.ndarray) -> np.ndarray:
        """Area of a pixel on the far side of a line at this distance from its middle."""
        side = np.clip((wide + narrow) / 2 - distance, 0, narrow)
        top = np.maximum((wide - narrow) / 2 - distance, 0)
        return (side**2 / np.maximum(2 * narrow, 1e-300) + top) / wide

    def of_row(row: int) -> Any:
        t = (np.arange(n)[:, None] - n // 2) * c - (row - n // 2) * s
        nearest = np.rint(t)
        # It reaches at most 0.71 from its middle: into the nearest strip and the two beside it.
        below, above = beyond(0.5 + t - nearest), beyond(0.5 - t + nearest)
        areas = np.stack([below, 1 - below - above, above], axis=-1)
        bins = nearest.astype(np.int32)[..., None] + (n // 2 + np.arange(-1, 2, dtype=np.int32))
        areas[(bins < 0) | (bins >= n)] = 0
        rays = np.clip(bins, 0, n - 1) * np.int32(k) + np.arange(k, dtype=np.int32)[:, None]
        ends = np.arange(0, areas.size + 1, 3 * k, dtype=np.int32)
        strips = csr_array((areas.ravel(), rays.ravel(), ends), shape=(n, n * k))
        strips.eliminate_zeros()
        return strips

    return vstack([of_row(row) for row in range(n)], format="csr")


def _sparse_like(S: Any, like: Array) -> Any:
    """Return a SciPy matrix in the library, dtype and device of ``like``."""
    if not is_torch_array(like):
        return S.astype(like.dtype, copy=False)
    xp, S = array_namespace(like), S.tocsr()
    with warnings.catch_warnings():
        # "Sparse CSR tensor support is in beta state": the products used here are old.
        warnings.simplefilter("ignore", UserWarning)
        index = (xp.asarray(i, device=device(like)) for i in (S.indptr, S.indices))
        return xp.sparse_csr_tensor(*index, asarray_like(S.data, like), S.shape)


def _as_shape(shape: int | tuple[int, ...]) -> tuple[int, ...]:
    sizes = shape if isinstance(shape, (tuple, list)) else (shape,)
    require(sizes, "shape must name at least one dimension: got ()")
    return tuple(as_count(size, "each size of the shape", minimum=1) for size in sizes)


def convolution(
    psf: Array, shape: int | tuple[int, ...], *, boundary: str = "periodic"
) -> LinearOperator:
    r"""Return the convolution :math:`(Ax)_i=\sum_j p_{j}\,x_{i-j}` with a centred kernel.

    Computed with the fast Fourier transform, in one dimension or two. The entry of ``psf`` at
    index ``size // 2`` (in each dimension) is :math:`p_0`.

    Parameters
    ----------
    psf : array
        Point-spread function, no larger than ``shape``; it fixes namespace, dtype and device.
    shape : int or tuple
        Shape of x, and of Ax.
    boundary : {"periodic", "zero"}
        What x is outside its domain: repeated, or zero. Only the periodic operator is
        diagonalized by the Fourier transform.

    Raises
    ------
    ValueError
        If the kernel's number of dimensions differs from the shape's, or it is larger.

    Examples
    --------
    >>> import numpy as np
    >>> A = convolution(np.array([0.25, 0.5, 0.25]), 5)
    >>> (A @ np.array([0.0, 4.0, 0.0, 0.0, 8.0])).round(6)
    array([3., 2., 1., 2., 4.])
    """
    shape = _as_shape(shape)
    psf = as_real(psf, "psf", ndim=len(shape))
    as_choice(boundary, "boundary", ("periodic", "zero"))
    require(
        all(p <= n for p, n in zip(psf.shape, shape, strict=True)),
        f"psf must be no larger than the array: expected at most {shape}, got {tuple(psf.shape)}",
    )
    xp, axes, full = array_namespace(psf), tuple(range(len(shape))), shape
    if boundary == "zero":
        from scipy.fft import next_fast_len

        sizes = zip(shape, psf.shape, strict=True)
        full = tuple(next_fast_len(n + p - 1, real=True) for n, p in sizes)
    kernel = zeros(full, psf)
    kernel[tuple(slice(0, p) for p in psf.shape)] = psf
    # The centre of the kernel moves to index 0, where the transform expects it.
    kernel = xp.roll(kernel, tuple(-(p // 2) for p in psf.shape), axis=axes)
    half = xp.fft.rfftn(kernel, axes=axes)
    window = tuple(slice(0, n) for n in shape)

    def multiply(x: Array, spectrum: Array) -> Array:
        # rfftn pads with zeros up to `full`; the inverse is cut back to the window.
        product = xp.fft.rfftn(x, s=full, axes=axes) * spectrum
        return xp.fft.irfftn(product, s=full, axes=axes)[window]

    adjoint_half = xp.conj(half)
    periodic = boundary == "periodic"
    return LinearOperator(
        lambda x: multiply(x, half),
        lambda v: multiply(v, adjoint_half),
        shape,
        shape,
        f"convolution ({boundary})",
        psf,
        shift_invariant=periodic,
        # The eigenvalues; the half left out by rfftn holds their complex conjugates.
        exact_norm=to_float(xp.max(xp.abs(half))) if periodic else None,
    )


def integration(n: int) -> LinearOperator:
    r"""Return the integral :math:`(Ax)(s)=\int_0^s x(t)\,dt` on n cells of [0, 1].

    Midpoint rule: x and Ax are sampled at :math:`s_i=(i-\tfrac12)/n`, and
    :math:`(Ax)_i=\tfrac1n\bigl(\sum_{j<i}x_j+\tfrac12x_i\bigr)`.

    Examples
    --------
    >>> import numpy as np
    >>> integration(4) @ np.ones(4)
    array([0.125, 0.375, 0.625, 0.875])
    """
    n = as_count(n, "n", minimum=1)

    def apply(x: Array) -> Array:
        xp = array_namespace(x)
        return (xp.cumulative_sum(x) - 0.5 * x) / n

    def adjoint(v: Array) -> Array:
        xp = array_namespace(v)
        return (xp.flip(xp.cumulative_sum(xp.flip(v))) - 0.5 * v) / n

    return LinearOperator(apply, adjoint, (n,), (n,), "integration")


def _first_difference(n: int, boundary: str) -> LinearOperator:
    """Rows x_{i+1} - x_i: inside only, with a zero on either side, or around the end."""
    # The norms: from the eigenvalues of the Neumann, Dirichlet and periodic Laplacians.
    apply, adjoint, rows, exact = {
        "free": (
            _diff,
            lambda v: -_diff(_pad_zero(v)),
            n - 1,
            2 * math.cos(math.pi / (2 * n)),
        ),
        "zero": (
            lambda x: _diff(_pad_zero(x)),
            lambda v: -_diff(v),
            n + 1,
            2 * math.cos(math.pi / (2 * n + 2)),
        ),
        "periodic": (
            lambda x: array_namespace(x).roll(x, -1) - x,
            lambda v: array_namespace(v).roll(v, 1) - v,
            n,
            2 * math.sin(math.pi * (n // 2) / n),
        ),
    }[boundary]
    return LinearOperator(
        apply,
        adjoint,
        (n,),
        (rows,),
        f"first difference ({boundary})",
        shift_invariant=boundary == "periodic",
        exact_norm=exact,
    )


def _diff(x: Array) -> Array:
    return x[1:] - x[:-1]


def _pad_zero(x: Array) -> Array:
    zero = zeros((1,), x)
    return array_namespace(x).concat([zero, x, zero])


def difference(n: int, *, order: int = 1, boundary: str = "free") -> LinearOperator:
    r"""Return the difference matrix D of order 1 or 2 on n points, without the factor 1/h.

    ====== ========== ======= ============================================ ==================
    order  boundary   rows    meaning                                      null space
    ====== ========== ======= ============================================ ==================
    1      free       n - 1   :math:`x_{i+1}-x_i` inside                   constants
    1      zero       n + 1   :math:`x_0=x_{n+1}=0`                        {0}
    1      periodic   n       :math:`x_{n+1}=x_1`                          constants
    2      free       n - 2   :math:`x_{i-1}-2x_i+x_{i+1}` inside          affine functions
    2      zero       n       :math:`x_0=x_{n+1}=0` (Dirichlet)            {0}
    2      reflect    n       :math:`x_0=x_1,\ x_{n+1}=x_n` (Neumann)      constants
    2      periodic   n       :math:`x_0=x_n,\ x_{n+1}=x_1`                constants
    ====== ========== ======= ============================================ ==================

    Raises
    ------
    ValueError
        If n is too small for one row, or the boundary is not in the table.

    Examples
    --------
    >>> import numpy as np
    >>> difference(4) @ np.array([1.0, 2.0, 4.0, 8.0])
    array([1., 2., 4.])
    >>> difference(4, order=2, boundary="zero").to_dense()
    array([[-2.,  1.,  0.,  0.],
           [ 1., -2.,  1.,  0.],
           [ 0.,  1., -2.,  1.],
           [ 0.,  0.,  1., -2.]])
    """
    order = as_count(order, "order", minimum=1, maximum=2)
    reflect = () if order == 1 else ("reflect",)
    as_choice(boundary, "boundary", ("free", "zero", "periodic", *reflect))
    n = as_count(n, "n", minimum=order + 1 if boundary == "free" else 2)
    if order == 1:
        return _first_difference(n, boundary)
    name = f"second difference ({boundary})"
    if boundary == "free":
        return replace(_first_difference(n - 1, "free") @ _first_difference(n, "free"), name=name)
    # The square ones are −DᵀD of a first difference: Dirichlet of "zero", Neumann of "free".
    first = _first_difference(n, "free" if boundary == "reflect" else boundary)
    return replace(-(first.H @ first), name=name, exact_norm=first.exact_norm**2)


def gradient(shape: tuple[int, ...], *, boundary: str = "free") -> LinearOperator:
    r"""Return the discrete gradient of a picture: forward differences in each dimension.

    Output shape is (number of dimensions, \*shape). With ``boundary="free"`` the difference
    across the last edge is 0; with ``"periodic"`` it wraps around. Null space: constants.

    Examples
    --------
    >>> import numpy as np
    >>> (gradient((2, 2)) @ np.array([[1.0, 2.0], [4.0, 8.0]])).tolist()
    [[[3.0, 6.0], [0.0, 0.0]], [[1.0, 0.0], [4.0, 0.0]]]
    """
    shape = _as_shape(shape)
    as_choice(boundary, "boundary", ("free", "periodic"))

    axes = range(len(shape))

    def inside(d: Array, axis: int) -> Array:
        """Return d with 0 for the differences across the last edge, unless they wrap around."""
        if boundary == "free":
            d = d + 0.0  # a copy, to be overwritten
            d[(slice(None),) * axis + (-1, ...)] = 0.0
        return d

    def apply(x: Array) -> Array:
        xp = array_namespace(x)
        return xp.stack([inside(xp.roll(x, -1, axis=k) - x, k) for k in axes])

    def adjoint(v: Array) -> Array:
        xp = array_namespace(v)
        parts = (inside(v[k, ...], k) for k in axes)
        return sum(xp.roll(part, 1, axis=k) - part for k, part in enumerate(parts))

    # Singular values add up over the dimensions: those of the free or periodic differences.
    squares = (_first_difference(n, boundary).exact_norm ** 2 for n in shape if n > 1)
    return LinearOperator(
        apply,
        adjoint,
        shape,
        (len(shape), *shape),
        f"gradient ({boundary})",
        shift_invariant=boundary == "periodic",
        exact_norm=math.sqrt(sum(squares)),
    )


def subsampling(mask: Array) -> LinearOperator:
    """Return the operator that keeps the entries where ``mask`` is True, in C order.

    The adjoint puts them back and fills with zeros.

    Examples
    --------
    >>> import numpy as np
    >>> A = subsampling(np.array([True, False, True]))
    >>> A.H @ (A @ np.array([1.0, 2.0, 3.0]))
    array([1., 0., 3.])
    """
    xp = namespace(mask)
    require(xp.isdtype(mask.dtype, "bool"), f"mask must be boolean: got dtype {mask.dtype}")
    shape, flat = tuple(mask.shape), xp.reshape(mask, (-1,))
    index = xp.nonzero(flat)[0]
    kept = index.shape[0]
    require(kept > 0, "mask must keep at least one entry: got none")
    # Place of each entry among the kept ones; entries that are left out read a zero at the end.
    place = xp.where(flat, xp.cumulative_sum(xp.astype(flat, xp.int64)) - 1, kept)

    def apply(x: Array) -> Array:
        return namespace(x, mask).take(xp.reshape(x, (-1,)), index, axis=0)

    def adjoint(v: Array) -> Array:
        padded = namespace(v, mask).concat([v, zeros((1,), v)])
        return xp.reshape(xp.take(padded, place, axis=0), shape)

    return LinearOperator(apply, adjoint, shape, (kept,), "subsampling", exact_norm=1.0)


def stack(*operators: LinearOperator) -> LinearOperator:
    r"""Return :math:`\begin{pmatrix}A\\B\\\vdots\end{pmatrix}`: outputs flattened and joined.

    Examples
    --------
    >>> import numpy as np
    >>> stack(identity(2), difference(2)) @ np.array([1.0, 3.0])
    array([1., 3., 2.])
    """
    require(operators, "stack needs at least one operator: got none")
    for op in operators:
        require(isinstance(op, LinearOperator), f"stack needs operators: got {type(op).__name__}")
        require(
            op.in_shape == operators[0].in_shape,
            f"stacked operators need one input shape: expected {operators[0].in_shape}, "
            f"got {op.in_shape}",
        )
    sizes = [math.prod(op.out_shape) for op in operators]
    ends = list(np.cumsum(sizes))

    def apply(x: Array) -> Array:
        xp = array_namespace(x)
        return xp.concat([xp.reshape(op @ x, (-1,)) for op in operators])

    def adjoint(v: Array) -> Array:
        xp = array_namespace(v)
        parts = zip(operators, ends, sizes, strict=True)
        return sum(op.H @ xp.reshape(v[end - size : end], op.out_shape) for op, end, size in parts)

    return LinearOperator(
        apply,
        adjoint,
        operators[0].in_shape,
        (sum(sizes),),
        "stack of " + ", ".join(op.name for op in operators),
        _common_like(*operators),
    )


def golub_kahan(A: LinearOperator, b: Array, k: int) -> tuple[list[Array], list[Array], np.ndarray]:
    r"""Bidiagonalize: :math:`AV_k=U_{k+1}B_k` with orthonormal columns, started at b.

    .. math::
        \beta_1u_1=b,\quad \alpha_iv_i=A^\top u_i-\beta_iv_{i-1},\quad
        \beta_{i+1}u_{i+1}=Av_i-\alpha_iu_i .

    Every new vector is orthogonalized twice against all before it, because the short recurrence
    loses orthogonality as soon as a singular value is found. Automatic differentiation does not
    go through it: the result is cut off.

    Parameters
    ----------
    A : LinearOperator
    b : array
        Start, shape ``A.out_shape``.
    k : int
        Number of steps; fewer are done when the Krylov space is exhausted.

    Returns
    -------
    U : list of arrays, k + 1 of shape ``A.out_shape`` (k when the space is exhausted)
    V : list of arrays, k of shape ``A.in_shape``
    B : NumPy array, shape (len(U), len(V)), lower bidiagonal

    References
    ----------
    Golub and Kahan (1965), SIAM J. Numer. Anal. B 2, 205-224.

    Examples
    --------
    >>> import numpy as np
    >>> golub_kahan(matrix(np.diag([1.0, 0.5])), np.array([3.0, 4.0]), 1)[2].round(6)
    array([[0.72111],
           [0.49923]])
    """
    A, b = _with_data(A, b, "b")
    k = as_count(k, "k", minimum=1)
    beta = to_float(norm(b))
    U, V, alphas, betas = [], [], [], []
    # Directions shorter than this, relative to B, are rounding noise.
    floor = 4 * float(array_namespace(b).finfo(b.dtype).eps) * math.sqrt(math.prod(A.out_shape))
    while len(V) <= k and beta > floor * max(alphas, default=0.0):
        U.append(detach(b / beta))
        if len(V) == k:
            break
        v = _orthogonalize(A.H @ U[-1], V)
        alpha = to_float(norm(v))
        if alpha <= floor * max(alphas, default=0.0):
            break
        V.append(detach(v / alpha))
        alphas.append(alpha)
        b = _orthogonalize(A @ V[-1], U)
        beta = to_float(norm(b))
        betas.append(beta)
    B = np.diag([*alphas, 0.0]) + np.diag(betas, -1)
    return U, V, B[: len(U), : len(V)]


def _orthogonalize(v: Array, basis: list[Array]) -> Array:
    for _ in range(2):
        for q in basis:
            v = v - inner(q, v) * q
    return v
