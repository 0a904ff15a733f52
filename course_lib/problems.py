r"""Seeded test problems whose true solution is known.

Every problem is a :class:`Problem`: an operator, the truth, exact and noisy data. The noise is
white and Gaussian, drawn from ``numpy.random.default_rng(seed)``, so a problem has the same
numbers in every library; ``like`` chooses namespace, dtype and device.

``noise`` is the relative noise level :math:`\delta/\|y_{\mathrm{exact}}\|`.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from .arrays import Array, as_count, as_real, as_scalar, asarray_like, inner, to_float
from .operators import LinearOperator, convolution, matrix

__all__ = [
    "Problem",
    "add_noise",
    "blur_1d",
    "deblurring",
    "deriv2",
    "gravity",
    "heat",
    "phillips",
    "picture",
    "psf_disk",
    "psf_gaussian",
    "psf_motion",
    "shaw",
    "source_problem",
]


@dataclass(frozen=True, eq=False)
class Problem:
    r"""Find :math:`x` from :math:`y=y_{\mathrm{exact}}+e`, where :math:`Ax\approx y`.

    Attributes
    ----------
    name : str
    A : LinearOperator
    x_true : array, shape ``A.in_shape``
    y_exact : array, shape ``A.out_shape``
        :math:`Ax_{\mathrm{true}}`, except where a docstring says otherwise.
    y : array, shape ``A.out_shape``
        The data.
    noise_std : float
        Standard deviation :math:`\sigma_e` of each entry of the noise e.
    delta : float
        Noise level :math:`\delta=\sigma_e\sqrt m`, in the units of y. The norm of the noise is
        δ in the mean square: :math:`\mathbb E\|e\|^2=\delta^2`.
    grid : array or None
        Points where x is sampled; None for pictures.
    data_grid : array or None
        Points where y is sampled.
    source : array or None
        The source element w of :func:`source_problem`.
    """

    name: str
    A: LinearOperator
    x_true: Array
    y_exact: Array
    y: Array
    noise_std: float
    delta: float
    grid: Array | None = None
    data_grid: Array | None = None
    source: Array | None = None

    def with_noise(self, noise: float, *, seed: int = 0, exact_norm: bool = False) -> "Problem":
        """Return the same problem with new noise; the arguments are those of :func:`add_noise`.

        Examples
        --------
        >>> problem = deriv2(8).with_noise(0.0)
        >>> bool((problem.y == problem.y_exact).all()), problem.delta
        (True, 0.0)
        """
        y, noise_std = add_noise(self.y_exact, noise, seed=seed, exact_norm=exact_norm)
        size = math.prod(self.y_exact.shape)
        return replace(self, y=y, noise_std=noise_std, delta=noise_std * math.sqrt(size))


def add_noise(
    y: Array, noise: float, *, seed: int = 0, exact_norm: bool = False
) -> tuple[Array, float]:
    r"""Return y plus white Gaussian noise, and the standard deviation of the noise.

    .. math:: e_i\sim\mathcal N(0,\sigma_e^2),\qquad
        \sigma_e=\mathtt{noise}\cdot\frac{\|y\|}{\sqrt m} .

    Parameters
    ----------
    y : array
    noise : float
        Relative noise level, at least 0.
    seed : int
        Seed of ``numpy.random.default_rng``. One seed gives one pattern, whatever its level.
    exact_norm : bool
        Rescale the noise to :math:`\|e\|=\mathtt{noise}\,\|y\|` exactly: the noise level of
        the convergence theorems is a bound, not an average.

    Examples
    --------
    >>> import numpy as np
    >>> y, noise_std = add_noise(np.full(4, 3.0), 0.1, exact_norm=True)
    >>> round(noise_std, 3), round(float(np.linalg.norm(y - 3.0)), 3)
    (0.3, 0.6)
    """
    y = as_real(y, "y")
    noise = as_scalar(noise, "noise", minimum=0.0)
    seed = as_count(seed, "seed")
    size = math.prod(y.shape)
    e = np.random.default_rng(seed).standard_normal(tuple(y.shape))
    if exact_norm:
        e *= math.sqrt(size) / np.linalg.norm(e)
    noise_std = noise * math.sqrt(to_float(inner(y, y)) / size)
    return y + asarray_like(noise_std * e, y), noise_std


def _problem(
    name: str,
    A: LinearOperator,
    x_true: Array,
    noise: float,
    seed: int,
    y_exact: Array | None = None,
    exact_norm: bool = False,
    **fields,
) -> Problem:
    y_exact = A @ x_true if y_exact is None else y_exact
    exact = Problem(name, A, x_true, y_exact, y_exact, 0.0, 0.0, **fields)
    return exact.with_noise(noise, seed=seed, exact_norm=exact_norm)


def _matrix_problem(
    name: str, M: np.ndarray, x: np.ndarray, t: np.ndarray, noise: float, seed: int, like: Array
) -> Problem:
    """Return the problem of a square matrix; x and y are sampled at the same points t."""
    M, x, t = (asarray_like(values, like) for values in (M, x, t))
    return _problem(name, matrix(M), x, noise, seed, grid=t, data_grid=t)


def _cells(n: int, a: float, b: float) -> tuple[float, np.ndarray]:
    """Return width and midpoints of n equal cells of [a, b]."""
    h = (b - a) / n
    return h, a + h * (np.arange(n) + 0.5)


def deriv2(n: int = 64, *, noise: float = 1e-3, seed: int = 0, like: Array | None = None) -> Problem:
    r"""Second derivative: find x from :math:`y''=x`, :math:`y(0)=y(1)=0`; mildly ill-posed.

    .. math:: y(s)=\int_0^1\mathsf k(s,t)\,x(t)\,dt,\qquad
        \mathsf k(s,t)=\begin{cases}s(t-1)&s<t\\t(s-1)&s\ge t\end{cases},\qquad x(t)=t .

    Galerkin's method with box functions: x and y are means over the n cells of [0, 1]. The
    singular values of the integral operator are :math:`1/(i\pi)^2`.

    References
    ----------
    Hansen (1994), Numerical Algorithms 6, 1-35.

    Examples
    --------
    >>> from course_lib.filters import decompose
    >>> (decompose(deriv2(64).A).s[:3] * 3.14159265**2).round(3)
    array([1.   , 0.25 , 0.111])
    """
    n = as_count(n, "n", minimum=2)
    h, t = _cells(n, 0.0, 1.0)
    low, high = np.minimum.outer(t, t), np.maximum.outer(t, t)
    # Cell means of the kernel times h: exact by midpoints, but for the kink on the diagonal.
    M = h * low * (high - 1) + np.diag(np.full(n, h**2 / 6 - h**2 / 4)) * h
    return _matrix_problem("deriv2", M, t, t, noise, seed, like)
