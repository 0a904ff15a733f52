r"""Spectral filters: one decomposition, many regularized solutions.

With the singular value decomposition :math:`A=\sum_i\sigma_iu_iv_i^\top`, each linear method of
this module is a set of filter factors :math:`\varphi_i`,

.. math:: x=\sum_i\varphi_i\,\frac{\langle u_i,y\rangle}{\sigma_i}\,v_i .

``lam`` is the λ of :math:`\tfrac12\|Ax-y\|^2+\tfrac\lambda2\|Dx\|^2`: sums, not means.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from .arrays import (
    Array,
    as_choice,
    as_count,
    as_real,
    as_scalar,
    require,
    to_float,
    zeros,
)
from .iterate import Result, gradient_rule, run
from .linear import cgls
from .operators import (
    LinearOperator,
    _response,
    _with_data,
    as_operator,
    golub_kahan,
    identity,
    stack,
)

__all__ = [
    "Spectrum",
    "StandardForm",
    "cgls_factors",
    "decompose",
    "filtered",
    "landweber_factors",
    "ritz_values",
    "standard_form",
    "tikhonov",
    "tikhonov_factors",
    "tsvd",
    "tsvd_factors",
]


@dataclass(frozen=True, eq=False)
class Spectrum:
    r"""Singular values of A, and the two changes of basis.

    Attributes
    ----------
    s : array
        Singular values :math:`\sigma_i\ge0`. Decreasing for a matrix, in the order of the
        frequencies (and in their shape) for a periodic convolution.
    analyse : callable
        :math:`y\mapsto(\langle u_i,y\rangle)_i`.
    synthesize : callable
        :math:`c\mapsto\sum_ic_iv_i`.
    U, V : array or None
        For a matrix: the singular vectors as columns.
    """

    s: Array
    analyse: Callable[[Array], Array]
    synthesize: Callable[[Array], Array]
    U: Array | None = None
    V: Array | None = None

    @property
    def rank(self) -> int:
        """Number of singular values above the rounding noise of the largest."""
        return int(array_namespace(self.s).count_nonzero(self.s > _noise_floor(self.s)))


def _noise_floor(s: Array) -> float:
    xp = array_namespace(s)
    return to_float(xp.max(s)) * math.prod(s.shape) * float(xp.finfo(s.dtype).eps)


def decompose(A: Any) -> Spectrum:
    r"""Return the singular value decomposition of A.

    A periodic convolution is diagonal in the Fourier basis: with eigenvalues :math:`\hat a`,
    :math:`\sigma=|\hat a|`, the :math:`v_i` are the Fourier vectors, and the :math:`u_i` are
    those times the phase :math:`\hat a/|\hat a|`. Any other operator is written out as a
    matrix.

    Examples
    --------
    >>> import numpy as np
    >>> decompose(np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])).s
    array([4., 3.])
    """
    A = as_operator(A)
    if A.shift_invariant and A.like is not None and A.in_shape == A.out_shape:
        return _fourier_spectrum(_transfer(A, A.like))
    M = A.to_dense()
    xp = array_namespace(M)
    U, s, Vh = xp.linalg.svd(M, full_matrices=False)
    return Spectrum(
        s,
        lambda y: U.T @ xp.reshape(as_real(y, "y", shape=A.out_shape), (-1,)),
        lambda c: xp.reshape(Vh.T @ c, A.in_shape),
        U,
        Vh.T,
    )


def _fourier(x: Array, **options) -> Array:
    xp = array_namespace(x)
    return xp.fft.fftn(xp.astype(x, xp.result_type(x.dtype, xp.complex64)), **options)


def _transfer(A: LinearOperator, like: Array) -> Array:
    """Return the eigenvalues of a shift-invariant A: the transform of its response to a pulse."""
    return _fourier(_response(A, like))


def _fourier_spectrum(a: Array) -> Spectrum:
    xp = array_namespace(a)
    s = xp.abs(a)
    zero = s == 0
    phase = xp.where(zero, xp.ones_like(a), a) / xp.where(zero, xp.ones_like(s), s)
    return Spectrum(
        s,
        lambda y: xp.conj(phase) * _fourier(as_real(y, "y", shape=a.shape), norm="ortho"),
        lambda c: xp.real(xp.fft.ifftn(c, norm="ortho")),
    )


def _singular_values(s: Array) -> Array:
    s = as_real(s, "s")
    require(
        to_float(array_namespace(s).min(s)) >= 0,
        "singular values must not be negative: got some below 0",
    )
    return s


def tikhonov_factors(s: Array, lam: float) -> Array:
    r"""Return :math:`\varphi_i=\sigma_i^2/(\sigma_i^2+\lambda)`, λ > 0.

    Examples
    --------
    >>> import numpy as np
    >>> tikhonov_factors(np.array([2.0, 1.0, 0.0]), 1.0)
    array([0.8, 0.5, 0. ])
    """
    s, lam = _singular_values(s), as_scalar(lam, "lam", positive=True)
    xp, below = array_namespace(s), s**2 + lam
    # In single precision a tiny λ can be rounded to 0: then 0 / 0 stands for 0.
    return s**2 / xp.where(below > 0, below, xp.ones_like(s))


def tsvd_factors(s: Array, rank: int) -> Array:
    r"""Return 1 for the ``rank`` largest singular values, else 0.

    Singular values equal to the smallest one kept are kept too: the truncated solution is not
    defined otherwise, because their singular vectors are not unique. Equal means up to 16 rounding
    errors of the largest singular value, the accuracy with which they are known.

    Raises
    ------
    ValueError
        If ``rank`` is below 1 or above the number of singular values.

    Examples
    --------
    >>> import numpy as np
    >>> tsvd_factors(np.array([3.0, 2.0, 2.0, 1.0]), 2)
    array([1., 1., 1., 0.])
    """
    s = _singular_values(s)
    xp, size = array_namespace(s), math.prod(s.shape)
    rank = as_count(rank, "rank", minimum=1, maximum=size)
    smallest = xp.sort(xp.reshape(s, (-1,)))[size - rank]
    slack = 16 * float(xp.finfo(s.dtype).eps) * xp.max(s)
    return xp.astype(s >= smallest - slack, s.dtype)


def landweber_factors(s: Array, step: float, k: int) -> Array:
    r"""Return :math:`\varphi_i=1-(1-\eta\sigma_i^2)^k`, the filter of k steps from zero.

    Written as :math:`-\operatorname{expm1}(k\operatorname{log1p}(-\eta\sigma_i^2))` where
    :math:`\eta\sigma_i^2<1`: for small σ the plain power would lose all its digits.

    Examples
    --------
    >>> import numpy as np
    >>> landweber_factors(np.array([1.0, 0.5]), 1.0, 2)
    array([1.    , 0.4375])
    """
    s = _singular_values(s)
    step, k = as_scalar(step, "step", positive=True), as_count(k, "k")
    xp, t = array_namespace(s), step * s**2
    below, above = t < 1, t > 1
    half = 0.5 * xp.ones_like(t)
    small = -xp.expm1(k * xp.log1p(-xp.where(below, t, half)))
    large = 1 - (-1) ** k * xp.exp(k * xp.log(xp.where(above, t - 1, half)))
    return xp.where(below, small, xp.where(above, large, (1 - 0**k) * xp.ones_like(t)))


def ritz_values(A: Any, y: Array, k: int) -> np.ndarray:
    r"""Return the k Ritz values of :math:`A^\top A` on the Krylov space of CGLS, decreasing.

    They are the eigenvalues of :math:`V_k^\top A^\top AV_k`, the squared singular values of
    the bidiagonal matrix of :func:`course_lib.operators.golub_kahan` started at y. Fewer are
    returned when the Krylov space is exhausted before step k.

    Examples
    --------
    >>> import numpy as np
    >>> ritz_values(np.diag([2.0, 1.0]), np.array([1.0, 1.0]), 2).round(6)
    array([4., 1.])
    """
    B = golub_kahan(A, y, k)[2]
    return np.linalg.svd(B, compute_uv=False) ** 2


def cgls_factors(s: Array, ritz: Array) -> Array:
    r"""Return :math:`\varphi_i=1-\prod_j(1-\sigma_i^2/\theta_j)`: the filter of CGLS.

    The :math:`\theta_j` are the Ritz values, so the filter depends on the data: CGLS is not
    linear in y. Each factor is accurate relative to itself: with :math:`t_j=\sigma_i^2/\theta_j`
    the product is built as :math:`\varphi\leftarrow\varphi+t_j(1-\varphi)`. Once a Ritz value
    agrees with :math:`\sigma_i^2` to all digits, :math:`1-t_j` is rounding noise, and the other
    factors, where :math:`\theta_j\ll\sigma_i^2`, enlarge it: then :math:`\varphi_i` is lost.

    Examples
    --------
    >>> import numpy as np
    >>> cgls_factors(np.array([2.0, 1.0]), np.array([5.0]))
    array([0.8, 0.2])
    """
    s = _singular_values(s)
    require(
        getattr(ritz, "ndim", None) == 1,
        f"ritz must be a one-dimensional array: got {type(ritz).__name__}",
    )
    phi = 0 * s
    for theta in ritz:
        phi = phi + (s**2 / as_scalar(theta, "ritz", positive=True)) * (1 - phi)
    return phi


def filtered(spectrum: Spectrum, y: Array, factors: Array) -> Array:
    r"""Return :math:`\sum_{\sigma_i>0}\varphi_i\,\sigma_i^{-1}\langle u_i,y\rangle\,v_i`.

    With all factors 1 this is :math:`A^\dagger y` in exact arithmetic: the naive inverse.

    Parameters
    ----------
    spectrum : Spectrum
    y : array
    factors : array, same shape as ``spectrum.s``

    Examples
    --------
    >>> import numpy as np
    >>> spectrum = decompose(np.diag([2.0, 1.0]))
    >>> x = filtered(spectrum, np.array([2.0, 2.0]), tikhonov_factors(spectrum.s, 1.0))
    >>> x.round(6)
    array([0.8, 1. ])
    """
    s = spectrum.s
    xp, used = array_namespace(s), s > 0
    y, factors = as_real(y, "y", like=s), as_real(factors, "factors", shape=s.shape, like=s)
    gain = xp.where(used, factors / xp.where(used, s, xp.ones_like(s)), xp.zeros_like(s))
    return spectrum.synthesize(gain * spectrum.analyse(y))


def _direct(x: Array, method: str) -> Result:
    return Result(x, None, True, f"direct: {method}", 0, {"iteration": []})


def tikhonov(
    A: Any,
    y: Array,
    lam: float,
    D: Any = None,
    *,
    method: str = "auto",
    rtol: float = 1e-10,
    max_iter: int = 10_000,
) -> Result:
    r"""Return the minimizer of :math:`\tfrac12\|Ax-y\|^2+\tfrac\lambda2\|Dx\|^2`.

    It is unique if and only if :math:`\mathcal N(A)\cap\mathcal N(D)=\{0\}`. The normal matrix
    is never formed: its condition number is the square of that of the augmented matrix.

    Parameters
    ----------
    A : LinearOperator or array, shape (m, n)
    y : array, shape ``A.out_shape``
    lam : float
        :math:`\lambda>0`.
    D : LinearOperator or array, optional
        Regularization operator; the identity if not given.
    method : {"auto", "qr", "spectral", "cgls"}
        ``qr``: least squares with :math:`\binom{A}{\sqrt\lambda D}` by QR, dense.
        ``spectral``: division in the Fourier basis, where A and D are periodic convolutions;
        for a matrix and D = I, the singular value decomposition.
        ``cgls``: conjugate gradients on the augmented system, matrix-free.
        ``auto``: ``spectral`` for periodic convolutions, ``qr`` for matrices, else ``cgls``.
    rtol, max_iter :
        For ``cgls``: stop when the gradient is at most ``rtol`` times :math:`\|A^\top y\|`.

    Returns
    -------
    Result

    Raises
    ------
    ValueError
        If λ is not positive, shapes do not fit, or the augmented matrix is numerically rank
        deficient (``qr``, ``spectral``).

    Examples
    --------
    >>> import numpy as np
    >>> A, y = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([1.0, 1.0])
    >>> tikhonov(A, y, 0.1).x * 701
    array([-360.,  460.])
    """
    A, y = _with_data(A, y)
    lam = as_scalar(lam, "lam", positive=True)
    as_choice(method, "method", ("auto", "qr", "spectral", "cgls"))
    plain = D is None
    D = identity(A.in_shape) if plain else as_operator(D)
    require(
        D.in_shape == A.in_shape,
        f"D must act on x: expected input shape {A.in_shape}, got {D.in_shape}",
    )
    fourier = A.shift_invariant and D.shift_invariant and A.in_shape == A.out_shape
    dense = A.matrix is not None and (plain or D.matrix is not None or D.like is None)
    if method == "auto":
        method = "spectral" if fourier else "qr" if dense else "cgls"
    if method == "cgls":
        return _augmented_cgls(A, y, lam, D, rtol, max_iter)
    if method == "qr":
        return _direct(_augmented_qr(A, y, lam, D), "QR of the augmented matrix")
    if fourier:
        return _direct(_fourier_tikhonov(A, y, lam, D), "Fourier division")
    require(plain, "method 'spectral' needs periodic convolutions, or a matrix and no D")
    spectrum = decompose(A)
    return _direct(filtered(spectrum, y, tikhonov_factors(spectrum.s, lam)), "SVD")


def _augmented_qr(A: LinearOperator, y: Array, lam: float, D: LinearOperator) -> Array:
    xp = array_namespace(y)
    # The data stand beside the matrix, so that Q is not needed. The penalty is on top: rows that
    # are much longer than those below them do no harm there, and a large λ makes them long.
    top, bottom = math.sqrt(lam) * D.to_dense(like=y), A.to_dense(like=y)
    rows, size = xp.concat([top, bottom], axis=0), bottom.shape[1]
    require(rows.shape[0] >= size, _no_minimizer(f"only {rows.shape[0]} rows for {size} unknowns"))
    data = xp.concat([zeros((top.shape[0],), y), xp.reshape(y, (-1,))])
    R = xp.linalg.qr(xp.concat([rows, data[:, None]], axis=1))[1]
    R, c = R[:size, :size], R[:size, size]
    s = xp.linalg.svdvals(R)
    ratio = to_float(s[-1]) / (to_float(s[0]) or 1.0)
    require(
        ratio > size * float(xp.finfo(y.dtype).eps),
        _no_minimizer(f"smallest over largest singular value is {ratio:.1e}"),
    )
    return xp.reshape(xp.linalg.solve(R, c), A.in_shape)


def _no_minimizer(found: str) -> str:
    return (
        "the minimizer must be unique: expected null spaces of A and D that meet only in 0 "
        f"(to working precision), got an augmented matrix of deficient rank ({found})"
    )


def _fourier_tikhonov(A: LinearOperator, y: Array, lam: float, D: LinearOperator) -> Array:
    xp = array_namespace(y)
    a, penalty = _transfer(A, y), xp.real(_transfer(D.H @ D, y))
    below = xp.abs(a) ** 2 + lam * penalty
    floor = float(xp.finfo(y.dtype).eps) ** 2 * to_float(xp.max(below))
    require(to_float(xp.min(below)) > floor, _no_minimizer("a frequency is in both null spaces"))
    return xp.real(xp.fft.ifftn(xp.conj(a) * _fourier(y) / below))


def _augmented_cgls(
    A: LinearOperator, y: Array, lam: float, D: LinearOperator, rtol: float, max_iter: int
) -> Result:
    xp = array_namespace(y)
    augmented = stack(A, math.sqrt(lam) * D)
    padded = xp.concat([xp.reshape(y, (-1,)), zeros((math.prod(D.out_shape),), y)])
    stop = gradient_rule(augmented, padded, rtol=rtol)
    return run(cgls(augmented, padded), stop=stop, max_iter=max_iter)


def tsvd(A: Any, y: Array, rank: int) -> Result:
    r"""Return :math:`\sum_{i\le r}\sigma_i^{-1}\langle u_i,y\rangle v_i`, truncated after ``rank``.

    Raises
    ------
    ValueError
        If ``rank`` exceeds the numerical rank of A: the next term would divide rounding noise
        by rounding noise.

    References
    ----------
    Hansen (1987), BIT 27, 534-553.

    Examples
    --------
    >>> import numpy as np
    >>> tsvd(np.diag([2.0, 1.0]), np.array([2.0, 2.0]), 1).x
    array([1., 0.])
    """
    spectrum = decompose(A)
    rank = as_count(rank, "rank", minimum=1, maximum=spectrum.rank)
    return _direct(filtered(spectrum, y, tsvd_factors(spectrum.s, rank)), "truncated SVD")


@dataclass(frozen=True, eq=False)
class StandardForm:
    r"""A problem with penalty :math:`\tfrac\lambda2\|Dx\|^2` written with the identity instead.

    Attributes
    ----------
    A_bar : array
        Matrix of :math:`\min\tfrac12\|\bar A\bar x-\bar y\|^2+\tfrac\lambda2\|\bar x\|^2`. Its
        singular values are the generalized singular values of (A, D), for those that D sees.
    to_data : callable
        :math:`y\mapsto\bar y`, flat.
    back : callable
        :math:`(\bar x,y)\mapsto x`.
    Q0 : array
        Orthonormal basis of :math:`A\mathcal N(D)`, as columns: the data that no penalty reaches.
    """

    A_bar: Array
    to_data: Callable[[Array], Array]
    back: Callable[[Array, Array], Array]
    Q0: Array


def standard_form(A: Any, D: Any) -> StandardForm:
    r"""Transform general Tikhonov to standard form (D becomes the identity).

    With the thin SVD :math:`D=WSZ^\top` and a basis :math:`Z_0` of :math:`\mathcal N(D)`, write
    :math:`x=ZS^{-1}\bar x+Z_0c`. The penalty is :math:`\|\bar x\|^2`; c is free, so it is
    eliminated by the QR factorization :math:`AZ_0=Q_0T`:

    .. math::
        \bar A=(I-Q_0Q_0^\top)AZS^{-1},\quad\bar y=(I-Q_0Q_0^\top)y,\quad
        c=T^{-1}Q_0^\top(y-AZS^{-1}\bar x).

    Raises
    ------
    ValueError
        If A and D have a common null vector, or D is zero.

    References
    ----------
    Eldén (1977), BIT 17, 134-145; Hansen (1998).

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.operators import difference
    >>> A, y, D = np.diag([1.0, 2.0, 3.0]), np.ones(3), difference(3)
    >>> form = standard_form(A, D)
    >>> x = form.back(tikhonov(form.A_bar, form.to_data(y), 0.1).x, y)
    >>> bool(np.allclose(x, tikhonov(A, y, 0.1, D).x))
    True
    """
    A, D = as_operator(A), as_operator(D)
    M = A.to_dense(like=D.like if A.like is None else None)
    xp = array_namespace(M)
    require(
        D.in_shape == A.in_shape,
        f"D must act on x: expected input shape {A.in_shape}, got {D.in_shape}",
    )
    _, s, Zh = xp.linalg.svd(D.to_dense(like=M), full_matrices=True)
    rank = int(xp.count_nonzero(s > _noise_floor(s)))
    require(rank > 0, "D must not be zero: got a matrix of rank 0")
    inverse = Zh[:rank, :].T / s[:rank]
    AZ = M @ inverse
    null = Zh[rank:, :].T

    def flat(y: Array) -> Array:
        return xp.reshape(as_real(y, "y", shape=A.out_shape, like=M), (-1,))

    Q0, T = xp.linalg.qr(M @ null)
    floor = max(M.shape) * float(xp.finfo(M.dtype).eps) * A.norm()
    require(
        T.shape[0] >= T.shape[1] and bool(xp.all(xp.linalg.svdvals(T) > floor)),
        _no_minimizer("A vanishes on a null vector of D"),
    )

    def project(v: Array) -> Array:
        return v - Q0 @ (Q0.T @ v)

    def back(x_bar: Array, y: Array) -> Array:
        c = xp.linalg.solve(T, Q0.T @ (flat(y) - AZ @ x_bar))
        return xp.reshape(inverse @ x_bar + null @ c, A.in_shape)

    return StandardForm(project(AZ), lambda y: project(flat(y)), back, Q0)
