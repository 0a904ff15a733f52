r"""Seeded test problems whose true solution is known.

Every problem is a :class:`Problem`: an operator, the truth, exact and noisy data. The noise is
drawn from ``numpy.random.default_rng(seed)``, so a problem has the same numbers in every library;
``like`` chooses namespace, dtype and device. The noise is white and Gaussian;
:meth:`Problem.with_noise` makes the same problem with noise of another kind.

``noise`` is the relative noise level :math:`\delta/\|y_{\mathrm{exact}}\|`.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from .arrays import (
    Array,
    as_choice,
    as_count,
    as_real,
    as_scalar,
    asarray_like,
    detach,
    inner,
    to_float,
)
from .operators import LinearOperator, convolution, identity, matrix, radon

__all__ = [
    "FewShot",
    "Pictures",
    "Problem",
    "add_noise",
    "blocks",
    "blur_1d",
    "blur_family",
    "compressed_sensing",
    "deblurring",
    "deriv2",
    "digits",
    "gravity",
    "heat",
    "phillips",
    "picture",
    "pictures",
    "psf_disk",
    "psf_gaussian",
    "psf_motion",
    "shaw",
    "sinusoids",
    "source_problem",
    "spikes",
    "tomography",
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
        Standard deviation :math:`\sigma_e` of each entry of the noise e; where it differs from
        entry to entry (Poisson noise), its root mean square.
    delta : float
        Noise level :math:`\delta=\sigma_e\sqrt m`, in the units of y. The norm of the noise is
        δ in the mean square, for every kind of noise: :math:`\mathbb E\|e\|^2=\delta^2`.
    grid : array or None
        Points where x is sampled; None for pictures.
    data_grid : array or None
        Points where y is sampled.
    source : array or None
        The source element w of :func:`source_problem`.
    cov : array or None
        Covariance Γ of the noise. None where it is :math:`\sigma_e^2I`; an array of the shape of
        y where it is diagonal (Poisson noise): the variances; else (coloured noise) the matrix,
        shape (m, m).
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
    cov: Array | None = None

    def with_noise(
        self,
        noise: float,
        *,
        kind: str = "white",
        seed: int = 0,
        exact_norm: bool = False,
        correlation: float = 0.9,
        fraction: float = 0.05,
    ) -> "Problem":
        """Return the same problem with new noise; the arguments are those of :func:`add_noise`.

        Examples
        --------
        >>> problem = deriv2(8).with_noise(0.0)
        >>> bool((problem.y == problem.y_exact).all()), problem.delta
        (True, 0.0)
        >>> deriv2(8).with_noise(0.01, kind="coloured").cov.shape
        (8, 8)
        """
        y, noise_std = add_noise(
            self.y_exact,
            noise,
            kind=kind,
            seed=seed,
            exact_norm=exact_norm,
            correlation=correlation,
            fraction=fraction,
        )
        delta = noise_std * math.sqrt(math.prod(y.shape))
        cov = _covariance(self.y_exact, noise_std, kind, correlation)
        return replace(self, y=y, noise_std=noise_std, delta=delta, cov=cov)


def add_noise(
    y: Array,
    noise: float,
    *,
    kind: str = "white",
    seed: int = 0,
    exact_norm: bool = False,
    correlation: float = 0.9,
    fraction: float = 0.05,
) -> tuple[Array, float]:
    r"""Return y plus noise e, and the standard deviation of the noise.

    Every kind has mean 0 and the same size, which ``noise`` sets:

    .. math:: \frac1m\,\mathbb E\|e\|^2=\sigma_e^2,\qquad
        \sigma_e=\mathtt{noise}\cdot\frac{\|y\|}{\sqrt m} .

    - ``white``: :math:`e_i\sim\mathcal N(0,\sigma_e^2)`, independent; covariance
      :math:`\Gamma=\sigma_e^2I`.
    - ``coloured``: stationary Gaussian noise in which neighbours have correlation c,
      :math:`e_i=c\,e_{i-1}+\sqrt{1-c^2}\,\sigma_e\,\xi_i` with independent
      :math:`\xi_i\sim\mathcal N(0,1)`; :math:`\Gamma_{ij}=\sigma_e^2\,c^{|i-j|}`.
    - ``poisson``: counts, :math:`y_i+e_i\sim\operatorname{Poisson}(ay_i)/a`, with
      :math:`a=\bar y/\sigma_e^2` counts in a unit of y (:math:`\bar y` is the mean of y);
      :math:`\Gamma=\operatorname{diag}(y_i/a)`.
    - ``outliers``: white noise in which a fraction of the entries has 10 times the standard
      deviation of the others. Which entries is random, so that :math:`\Gamma=\sigma_e^2I`;
      :math:`\sigma_e` counts large and small ones.

    Parameters
    ----------
    y : array
        For coloured noise one-dimensional, for Poisson noise without negative entries (up to
        rounding).
    noise : float
        Relative noise level, at least 0.
    kind : {"white", "coloured", "poisson", "outliers"}
    seed : int
        Seed of ``numpy.random.default_rng``. One seed gives one pattern, whatever its level;
        only Poisson noise is another at every level.
    exact_norm : bool
        Rescale the noise to :math:`\|e\|=\mathtt{noise}\,\|y\|` exactly: the noise level of
        the convergence theorems is a bound, not an average. Not for Poisson noise.
    correlation : float
        For coloured noise: the correlation c of neighbours, between -1 and 1.
    fraction : float
        For outliers: the part of the entries that they hit, rounded to whole entries. The places
        are random.

    Returns
    -------
    y : array
        The noisy data.
    noise_std : float
        :math:`\sigma_e`.

    Notes
    -----
    Poisson noise is zero where y is zero: a weighted fit must leave these entries out, or raise
    their variance, to that of one count say, :math:`1/a^2`. Rounding of y can change a count, so
    that this noise may be another in single than in double precision.

    Examples
    --------
    >>> import numpy as np
    >>> y, noise_std = add_noise(np.full(4, 3.0), 0.1, exact_norm=True)
    >>> round(noise_std, 3), round(float(np.linalg.norm(y - 3.0)), 3)
    (0.3, 0.6)
    >>> add_noise(np.full(4, 4.0), 0.5, kind="poisson")
    (array([2., 0., 7., 3.]), 2.0)
    """
    y = as_real(y, "y")
    noise = as_scalar(noise, "noise", minimum=0.0)
    seed = as_count(seed, "seed")
    as_choice(kind, "kind", ("white", "coloured", "poisson", "outliers"))
    noise_std = noise * math.sqrt(to_float(inner(y, y)) / math.prod(y.shape))
    rng = np.random.default_rng(seed)
    if kind == "poisson":
        if exact_norm:
            raise ValueError(
                "exact_norm is not for Poisson noise, because counts cannot be rescaled: "
                "expected False, got True"
            )
        return y + asarray_like(_count_errors(rng, y, noise_std), y), noise_std
    e = rng.standard_normal(tuple(y.shape))
    if kind == "coloured":
        e = _coloured(e, correlation)
    if kind == "outliers":
        e = _with_outliers(rng, e, fraction)
    if exact_norm:
        e *= math.sqrt(e.size) / np.linalg.norm(e)
    return y + asarray_like(noise_std * e, y), noise_std


def _coloured(e: np.ndarray, correlation: float) -> np.ndarray:
    """Turn white noise of variance 1 into noise in which neighbours have this correlation."""
    c = as_scalar(correlation, "correlation")
    if not -1 < c < 1:
        raise ValueError(f"correlation is out of range: expected a number in (-1, 1), got {c}")
    e = as_real(e, "y", ndim=1)  # the shape of y
    # Stationary: the first entry has variance 1 as it is.
    for i in range(1, e.size):
        e[i] = c * e[i - 1] + math.sqrt(1 - c**2) * e[i]
    return e


def _with_outliers(rng: np.random.Generator, white: np.ndarray, fraction: float) -> np.ndarray:
    """Make a fraction of white noise 10 times as large, and all of it of mean square 1 again."""
    fraction = as_scalar(fraction, "fraction", minimum=0.0)
    if fraction > 1:
        raise ValueError(f"fraction is too large: expected at most 1, got {fraction}")
    factors = np.ones(white.size)
    factors[rng.choice(white.size, round(fraction * white.size), replace=False)] = 10.0
    return white * factors.reshape(white.shape) / math.sqrt((factors**2).mean())


def _count_errors(rng: np.random.Generator, y: Array, noise_std: float) -> np.ndarray:
    """Return Poisson(ay)/a − y, where a makes the mean variance noise_std²."""
    y = np.asarray(detach(y).cpu() if is_torch_array(y) else y, dtype=np.float64)
    if y.min() < -1e-5 * y.max():
        raise ValueError(
            f"y must not be negative: Poisson noise expected means of at least 0, got {y.min()}"
        )
    if noise_std == 0:
        return np.zeros(y.shape)
    means = np.clip(y, 0.0, None)
    a = means.mean() / noise_std**2
    most = a * means.max()
    if most > 1e15:  # from 2^53 on a float does not hold every whole number
        raise ValueError(f"noise is too small: expected at most 1e15 counts an entry, got {most:g}")
    return rng.poisson(a * means) / a - y


def _covariance(y: Array, noise_std: float, kind: str, correlation: float) -> Array | None:
    """Return the covariance of the noise as :class:`Problem` keeps it."""
    if noise_std > 0 and kind == "poisson":
        xp = array_namespace(y)
        means = xp.clip(y, 0.0, None)
        return noise_std**2 / to_float(xp.mean(means)) * means
    if noise_std > 0 and kind == "coloured":
        i = np.arange(y.shape[0])
        lag = np.abs(np.subtract.outer(i, i))
        return asarray_like(noise_std**2 * float(correlation) ** lag, y)
    return None


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


def deriv2(
    n: int = 64, *, noise: float = 1e-3, seed: int = 0, like: Array | None = None
) -> Problem:
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
    # Midpoints give the cell means of the kernel exactly, but for its kink on the diagonal.
    M = h * low * (high - 1) + h**2 / 6 * np.eye(n)
    return _matrix_problem("deriv2", M, t, t, noise, seed, like)


def shaw(n: int = 64, *, noise: float = 1e-3, seed: int = 0, like: Array | None = None) -> Problem:
    r"""Image restoration in one dimension: light through a slit; severely ill-posed.

    .. math:: y(s)=\int_{-\pi/2}^{\pi/2}(\cos s+\cos t)^2\Bigl(\frac{\sin u}u\Bigr)^2x(t)\,dt,
        \qquad u=\pi(\sin s+\sin t),

    .. math:: x(t)=2e^{-6(t-0.8)^2}+e^{-2(t+0.5)^2} .

    Angles in radians; midpoint rule with n nodes. The matrix is symmetric.

    References
    ----------
    Shaw (1972), J. Math. Anal. Appl. 37, 83-112; Hansen (1994).

    Examples
    --------
    >>> shaw(32).A.to_dense().shape
    (32, 32)
    """
    n = as_count(n, "n", minimum=2)
    h, t = _cells(n, -math.pi / 2, math.pi / 2)
    cosines, sines = np.add.outer(np.cos(t), np.cos(t)), np.add.outer(np.sin(t), np.sin(t))
    x = 2 * np.exp(-6 * (t - 0.8) ** 2) + np.exp(-2 * (t + 0.5) ** 2)
    # np.sinc(v) is sin(pi v) / (pi v).
    return _matrix_problem("shaw", h * (cosines * np.sinc(sines)) ** 2, x, t, noise, seed, like)


def phillips(
    n: int = 64, *, noise: float = 1e-3, seed: int = 0, like: Array | None = None
) -> Problem:
    r"""Phillips' convolution on [-6, 6]; mildly ill-posed.

    .. math:: y(s)=\int_{-6}^6\varphi(s-t)\,x(t)\,dt,\qquad x=\varphi,\qquad
        \varphi(t)=\begin{cases}1+\cos(\pi t/3)&|t|<3\\0&\text{else.}\end{cases}

    Galerkin's method with box functions: x and y are means over n cells. The matrix is symmetric
    and Toeplitz, with n/4 nonzero diagonals above the main one.

    Raises
    ------
    ValueError
        If n is not a multiple of 4 (the kernel would end inside a cell).

    References
    ----------
    Phillips (1962), J. ACM 9, 84-97; Hansen (1994).

    Examples
    --------
    >>> phillips(8).A.to_dense()[0].round(3)
    array([2.716, 1.5  , 0.142, 0.   , 0.   , 0.   , 0.   , 0.   ])
    """
    n = as_count(n, "n", minimum=4)
    if n % 4:
        raise ValueError(f"n must be a multiple of 4: got {n}")
    h, t = _cells(n, -6.0, 6.0)
    c, last = math.pi / 3, n // 4
    # Mean over two cells at distance k h: second difference of a second antiderivative.
    k = np.arange(last + 1)
    row = np.zeros(n)
    row[: last + 1] = h + (
        2 * np.cos(c * h * k) - np.cos(c * h * (k - 1)) - np.cos(c * h * (k + 1))
    ) / (h * c**2)
    # The last diagonal meets only half a cell of the kernel.
    row[last] = h / 2 + (math.cos(c * h) - 1) / (h * c**2)
    x = np.where(np.abs(t) < 3, 1 + np.cos(c * t) * np.sinc(h / 6), 0.0)
    M = row[np.abs(np.subtract.outer(np.arange(n), np.arange(n)))]
    return _matrix_problem("phillips", M, x, t, noise, seed, like)


def gravity(
    n: int = 64,
    *,
    depth: float = 0.25,
    noise: float = 1e-3,
    seed: int = 0,
    like: Array | None = None,
) -> Problem:
    r"""Gravity surveying: a mass density at depth d from the field at the surface.

    .. math:: y(s)=\int_0^1\frac d{(d^2+(s-t)^2)^{3/2}}\,x(t)\,dt,\qquad
        x(t)=\sin(\pi t)+\tfrac12\sin(2\pi t) .

    Lengths in units of the interval; midpoint rule with n nodes. The deeper the mass, the faster
    the singular values decay: severely ill-posed. The matrix is symmetric and Toeplitz.

    References
    ----------
    Hansen (2010), Discrete Inverse Problems, chapter 2.

    Examples
    --------
    >>> bool(gravity(32, depth=0.5).A.norm() < gravity(32).A.norm())
    True
    """
    n, d = as_count(n, "n", minimum=2), as_scalar(depth, "depth", positive=True)
    h, t = _cells(n, 0.0, 1.0)
    M = h * d * (d**2 + np.subtract.outer(t, t) ** 2) ** -1.5
    x = np.sin(math.pi * t) + 0.5 * np.sin(2 * math.pi * t)
    return _matrix_problem("gravity", M, x, t, noise, seed, like)


def heat(
    n: int = 64,
    *,
    kappa: float = 1.0,
    noise: float = 1e-3,
    seed: int = 0,
    like: Array | None = None,
) -> Problem:
    r"""Inverse heat equation: a temperature history from inside a wall.

    .. math:: y(s)=\int_0^s\mathsf k(s-t)\,x(t)\,dt,\qquad
        \mathsf k(t)=\frac{t^{-3/2}}{2\kappa\sqrt\pi}\,e^{-1/(4\kappa^2t)} .

    Times in units of the interval. Midpoint rule, x at the midpoints and y at the right ends of n
    cells of [0, 1]: the matrix is lower triangular and Toeplitz. With :math:`\kappa=1` it is
    numerically singular, with :math:`\kappa=5` it is well conditioned. The truth rises, turns
    over and decays, and is zero from :math:`t=\tfrac12` on (Hansen's, at the midpoints).

    References
    ----------
    Carasso (1982), SIAM J. Appl. Math. 42, 558-574; Hansen (1994).

    Examples
    --------
    >>> bool(heat(16).A.to_dense()[0, 1:].any())
    False
    """
    n, kappa = as_count(n, "n", minimum=2), as_scalar(kappa, "kappa", positive=True)
    h, t = _cells(n, 0.0, 1.0)
    k = h * t**-1.5 / (2 * kappa * math.sqrt(math.pi)) * np.exp(-1 / (4 * kappa**2 * t))
    lag = np.subtract.outer(np.arange(n), np.arange(n))
    M = np.where(lag >= 0, k[np.abs(lag)], 0.0)
    u = 20 * t
    rise, top, fall = 0.75 * u**2 / 4, 0.75 + (u - 2) * (3 - u), 0.75 * np.exp(-2 * (u - 3))
    x = np.where(u < 2, rise, np.where(u < 3, top, np.where(u < 10, fall, 0.0)))
    M, x, t = (asarray_like(values, like) for values in (M, x, t))
    return _problem("heat", matrix(M), x, noise, seed, grid=t, data_grid=t + h / 2)


def blur_1d(
    n: int = 128,
    *,
    width: float = 0.03,
    noise: float = 1e-2,
    seed: int = 0,
    boundary: str = "zero",
    like: Array | None = None,
) -> Problem:
    r"""A signal on [0, 1] with edges and a smooth bump, blurred by a Gaussian.

    .. math:: y(s)=\int\frac1{w\sqrt{2\pi}}\,e^{-(s-t)^2/(2w^2)}\,x(t)\,dt

    Sampled at the midpoints of n cells. The signal is zero near both ends, so both boundaries
    describe it.

    Parameters
    ----------
    n : int
    width : float
        Standard deviation w of the blur, in units of the interval.
    noise, seed, like :
        As in :func:`deriv2`.
    boundary : {"zero", "periodic"}
        ``zero``: A is a symmetric Toeplitz matrix. ``periodic``: A is a convolution, diagonal
        in the Fourier basis.

    Examples
    --------
    >>> problem = blur_1d(64)
    >>> problem.A.name, problem.y.shape
    ('matrix', (64,))
    """
    n, width = as_count(n, "n", minimum=8), as_scalar(width, "width", positive=True)
    t = _cells(n, 0.0, 1.0)[1]
    x = 1.0 * ((t > 0.12) & (t < 0.28)) + 0.5 * ((t >= 0.28) & (t < 0.38))
    x = x + 0.9 * np.exp(-(((t - 0.68) / 0.08) ** 2))
    A = _gaussian_blur(n, width, boundary, like)
    x, t = asarray_like(x, like), asarray_like(t, like)
    return _problem("blur_1d", A, x, noise, seed, grid=t, data_grid=t)


def _gaussian_blur(n: int, width: float, boundary: str, like: Array | None) -> LinearOperator:
    """Return the blur of n cells of [0, 1]: a matrix, or for a periodic one a convolution."""
    psf = psf_gaussian(width * n, ndim=1)
    if psf.size > n:
        raise ValueError(
            "width is too large: the blur must fit into the interval, expected less than 1/12, "
            f"got {width}"
        )
    A = convolution(asarray_like(psf, like), n, boundary=boundary)
    return matrix(A.to_dense()) if boundary == "zero" else A


def _sparse(rng: np.random.Generator, n: int, s: int, gap: int = 1) -> np.ndarray:
    """Return s entries among n, of size 1 to 2 and random sign, ``gap`` apart and from the ends."""
    x = np.zeros(n)
    # A choice among fewer places, pulled apart: all admissible sets are equally likely.
    places = np.sort(rng.choice(n - (s + 1) * (gap - 1), s, replace=False))
    places += (gap - 1) * np.arange(1, s + 1)
    x[places] = rng.choice([-1.0, 1.0], s) * rng.uniform(1.0, 2.0, s)
    return x


def spikes(
    n: int = 256,
    s: int = 8,
    *,
    width: float = 0.02,
    separation: float = 0.05,
    noise: float = 1e-2,
    seed: int = 0,
    like: Array | None = None,
) -> Problem:
    r"""A few spikes on [0, 1], blurred by a Gaussian: sparse deconvolution.

    .. math:: y_i=\sum_jp_{i-j}\,x_j+e_i,\qquad p_k\propto e^{-(k/n)^2/(2w^2)},
        \qquad\sum_kp_k=1 .

    On n equal cells. :math:`x_j` is the mass of the spike in cell j, 1 to 2 with a random sign,
    at seeded random places. A is a dense symmetric Toeplitz matrix (zero outside), severely
    ill-conditioned; its columns have sum 1 and norm about :math:`(2wn\sqrt\pi)^{-1/2}`, but for
    those near the ends.

    Parameters
    ----------
    n, s : int
        Number of cells and of spikes.
    width : float
        Standard deviation w of the blur, in units of the interval.
    separation : float
        Smallest distance of two spikes, and of a spike from the ends, in units of the interval.
        Rounded up to whole cells, at least one.
    noise, seed, like :
        As in :func:`deriv2`. The seed chooses the spikes too.

    Raises
    ------
    ValueError
        If the spikes do not fit into the interval.

    References
    ----------
    Claerbout and Muir (1973), Geophysics 38, 826-844; Santosa and Symes (1986), SIAM J. Sci.
    Stat. Comput. 7, 1307-1330.

    Examples
    --------
    >>> problem = spikes(100, 5)
    >>> int((problem.x_true != 0).sum()), problem.A.out_shape
    (5, (100,))
    """
    n, s = as_count(n, "n", minimum=8), as_count(s, "s", minimum=1)
    width = as_scalar(width, "width", positive=True)
    separation = as_scalar(separation, "separation", minimum=0.0)
    # A distance that is a whole number of cells but for rounding is that number.
    gap = max(1, math.ceil(separation * n - 1e-9))
    if (s + 1) * gap > n + 1:
        raise ValueError(
            f"separation is too large for s spikes: expected at most {(n + 1) // (s + 1)} of the "
            f"{n} cells, got {gap}"
        )
    x = _sparse(np.random.default_rng([as_count(seed, "seed"), 1]), n, s, gap)
    x, t = asarray_like(x, like), asarray_like(_cells(n, 0.0, 1.0)[1], like)
    A = _gaussian_blur(n, width, "zero", like)
    return _problem("spikes", A, x, noise, seed, grid=t, data_grid=t)


def compressed_sensing(
    m: int = 80,
    n: int = 200,
    s: int = 10,
    *,
    ensemble: str = "gaussian",
    noise: float = 1e-2,
    seed: int = 0,
    like: Array | None = None,
) -> Problem:
    r"""A sparse vector from few random measurements: :math:`y=Ax+e` with m < n.

    The truth has s entries that are not zero, of size 1 to 2 with a random sign, at random
    places. One seed gives one truth for all ensembles and all m.

    - ``gaussian``: independent entries from :math:`\mathcal N(0,1/m)`.
    - ``bernoulli``: independent entries :math:`\pm1/\sqrt m`.
    - ``cosine``: m random rows of the orthonormal discrete cosine transform, times
      :math:`\sqrt{n/m}`; :math:`AA^\top=\tfrac nmI`.

    A column has norm 1: exactly for ``bernoulli``, in the mean square for the other two.

    Parameters
    ----------
    m, n, s : int
        Measurements, unknowns, entries of the truth that are not zero.
    ensemble : {"gaussian", "bernoulli", "cosine"}
    noise, seed, like :
        As in :func:`deriv2`. The seed chooses matrix and truth too.

    References
    ----------
    Candès, Romberg and Tao (2006), IEEE Trans. Inf. Theory 52, 489-509; Donoho (2006), IEEE
    Trans. Inf. Theory 52, 1289-1306.

    Examples
    --------
    >>> import numpy as np
    >>> A = compressed_sensing(16, 40, 3, ensemble="bernoulli").A.to_dense()
    >>> A.shape, float(np.abs(A).max()), float(np.abs(A).min())
    ((16, 40), 0.25, 0.25)
    """
    n, seed = as_count(n, "n", minimum=1), as_count(seed, "seed")
    as_choice(ensemble, "ensemble", ("gaussian", "bernoulli", "cosine"))
    m = as_count(m, "m", minimum=1, maximum=n if ensemble == "cosine" else None)
    rng = np.random.default_rng([seed, 1])
    x = _sparse(rng, n, as_count(s, "s", minimum=1, maximum=n))
    if ensemble == "cosine":
        rows = np.sort(rng.choice(n, m, replace=False))
        M = np.cos(math.pi * np.outer(rows, _cells(n, 0.0, 1.0)[1]))
        M *= np.sqrt(np.where(rows == 0, 1.0, 2.0))[:, None]
    else:
        M = (
            rng.standard_normal((m, n))
            if ensemble == "gaussian"
            else rng.choice([-1.0, 1.0], (m, n))
        )
    A = matrix(asarray_like(M / math.sqrt(m), like))
    return _problem(f"compressed sensing {ensemble}", A, asarray_like(x, like), noise, seed)


def blocks(
    n: int = 256, *, noise: float = 0.1, seed: int = 0, like: Array | None = None
) -> Problem:
    r"""Denoising of a signal with 11 jumps, constant between them: :math:`A=I`.

    .. math:: x(t)=\sum_{j=1}^{11}h_j\,[t>t_j],\qquad0\le t\le1,

    at the midpoints of n cells. The signal starts and ends at 0 and lies between -2 and 5.2; its
    gradient is sparse, and so are its Haar coefficients.

    References
    ----------
    Donoho and Johnstone (1994), Biometrika 81, 425-455 ("Blocks").

    Examples
    --------
    >>> x = blocks(1024).x_true
    >>> int((x[1:] != x[:-1]).sum()), float(x.min()), float(x.max())
    (11, -2.0, 5.2)
    """
    n = as_count(n, "n", minimum=2)
    t = _cells(n, 0.0, 1.0)[1]
    places = np.array([0.10, 0.13, 0.15, 0.23, 0.25, 0.40, 0.44, 0.65, 0.76, 0.78, 0.81])
    jumps = np.array([4.0, -5.0, 3.0, -4.0, 5.0, -4.2, 2.1, 4.3, -3.1, 2.1, -4.2])
    # Heights in tenths are summed as whole numbers, so that equal levels are equal.
    x = np.append(0, np.cumsum(np.rint(10 * jumps)))[np.searchsorted(places, t)] / 10
    x, t = asarray_like(x, like), asarray_like(t, like)
    return _problem("blocks", identity(n), x, noise, seed, grid=t, data_grid=t)


def psf_gaussian(width: float, *, ndim: int = 2) -> np.ndarray:
    r"""Return a Gaussian point-spread function with standard deviation ``width`` in pixels.

    Cut off at six standard deviations, normalized to sum 1, of odd size in each dimension.

    Examples
    --------
    >>> psf_gaussian(0.5, ndim=1).round(3)
    array([0.   , 0.   , 0.106, 0.787, 0.106, 0.   , 0.   ])
    """
    width = as_scalar(width, "width", positive=True)
    if ndim not in (1, 2):
        raise ValueError(f"ndim must be 1 or 2: got {ndim!r}")
    radius = math.ceil(6 * width)
    profile = np.exp(-0.5 * (np.arange(-radius, radius + 1) / width) ** 2)
    profile /= profile.sum()
    return profile if ndim == 1 else np.outer(profile, profile)


def psf_motion(length: float, *, angle: float = 0.0) -> np.ndarray:
    """Return the point-spread function of a camera that moved along a straight line.

    Parameters
    ----------
    length : float
        Length of the line in pixels.
    angle : float
        In degrees, counter-clockwise from the horizontal.

    Returns
    -------
    NumPy array, square of odd size, sum 1

    Examples
    --------
    >>> psf_motion(3)[2].round(3)
    array([0.042, 0.292, 0.333, 0.292, 0.042])
    """
    length, angle = as_scalar(length, "length", positive=True), as_scalar(angle, "angle")
    radius = math.ceil(length / 2)
    # Points spread evenly over the line, each shared among its four nearest pixels.
    along = _cells(1000, -length / 2, length / 2)[1]
    rows = radius - along * math.sin(math.radians(angle))
    columns = radius + along * math.cos(math.radians(angle))
    psf = np.zeros((2 * radius + 1, 2 * radius + 1))
    for i in range(2 * radius + 1):
        for j in range(2 * radius + 1):
            share = np.maximum(0, 1 - np.abs(rows - i)) * np.maximum(0, 1 - np.abs(columns - j))
            psf[i, j] = share.sum()
    return psf / psf.sum()


def psf_disk(radius: float) -> np.ndarray:
    """Return the point-spread function of a lens out of focus: a disk, ``radius`` in pixels.

    Each pixel holds the part of its area that the disk covers (on a 16 x 16 grid), over the
    whole area: square of odd size, sum 1.

    Examples
    --------
    >>> psf_disk(1.0).round(2)
    array([[0.03, 0.15, 0.03],
           [0.15, 0.32, 0.15],
           [0.03, 0.15, 0.03]])
    """
    radius = as_scalar(radius, "radius", positive=True)
    size = 2 * math.ceil(radius) + 1
    fine = _cells(16 * size, -size / 2, size / 2)[1]
    inside = 1.0 * (np.add.outer(fine**2, fine**2) < radius**2)
    psf = inside.reshape(size, 16, size, 16).mean(axis=(1, 3))
    return psf / psf.sum()


PICTURES = (
    *("text", "page", "camera", "moon", "shepp_logan"),
    *("astronaut", "cat", "coffee", "coins", "rocket"),
)


def picture(name: str, size: int | tuple[int, int] | None = None, *, margin: int = 0) -> np.ndarray:
    """Return a picture that scikit-image ships, as floats from 0 (black) to 1 (white).

    Parameters
    ----------
    name : {"text", "page", "camera", "moon", "shepp_logan", "astronaut", "cat", "coffee", "coins",
            "rocket"}
        The fifth is no picture but a phantom for tomography, constant on ellipses. Of a picture
        in colour, the luminance.
    size : int or (rows, columns), optional
        The picture is reduced by the largest whole factor that leaves this size (means over
        blocks), and the middle is cut out. Without it, the whole picture.
    margin : int
        Pixels to add on each side of the cut: what the picture shows there, or its mirror image
        where it has ended.

    Examples
    --------
    >>> picture("camera", 128).shape, picture("text").shape
    ((128, 128), (172, 448))
    """
    full = _whole(as_choice(name, "picture", PICTURES))
    margin = as_count(margin, "margin")
    rows, columns = (
        full.shape if size is None else size if isinstance(size, tuple) else (size, size)
    )
    rows = as_count(rows, "size", minimum=1, maximum=full.shape[0])
    columns = as_count(columns, "size", minimum=1, maximum=full.shape[1])
    k = min(full.shape[0] // rows, full.shape[1] // columns)
    reduced = _block_means(full, k)
    height, length = reduced.shape
    scene = np.pad(reduced, margin, mode="symmetric")
    top, left = (height - rows) // 2, (length - columns) // 2
    return scene[top : top + rows + 2 * margin, left : left + columns + 2 * margin]


def _whole(name: str) -> np.ndarray:
    """Return a whole picture in gray values from 0 to 1."""
    from skimage import data

    if name == "shepp_logan":
        return data.shepp_logan_phantom()
    full = getattr(data, name)() / 255.0
    # ITU-R BT.709: what red, green and blue add to the luminance.
    return full if full.ndim == 2 else full @ np.array([0.2126, 0.7152, 0.0722])


def _block_means(full: np.ndarray, k: int) -> np.ndarray:
    """Return the means over blocks of k x k pixels; what is left over is cut off."""
    height, length = full.shape[0] // k, full.shape[1] // k
    return full[: height * k, : length * k].reshape(height, k, length, k).mean(axis=(1, 3))


# Which picture belongs to which set: none to two.
SETS = {
    "train": ("camera", "coffee", "coins"),
    "validation": ("cat", "rocket"),
    "test": ("astronaut",),
}


@dataclass(frozen=True, eq=False)
class Pictures:
    """Patches of pictures in three sets that have no picture in common.

    Attributes
    ----------
    train, validation, test : array, shape (patches, size, size)
        Gray values from 0 (black) to 1 (white).
    places : dict
        For each set, by its name, a tuple (picture, row, column) for each patch: where its
        first pixel was, in the reduced picture.
    """

    train: Array
    validation: Array
    test: Array
    places: dict[str, tuple[tuple[str, int, int], ...]]


def pictures(
    size: int = 32,
    *,
    train: int = 32,
    validation: int = 16,
    test: int = 16,
    reduce: int = 2,
    seed: int = 0,
    like: Array | None = None,
) -> Pictures:
    """Return patches to learn from, patches to choose by, and patches to judge by.

    Whole pictures belong to a set: "camera", "coffee" and "coins" to the training set, "cat" and
    "rocket" to the validation set, "astronaut" to the test set. A picture is cut into squares that
    do not overlap, and of the squares of a set some are chosen at random: no patch stands in two
    sets, no two patches share a pixel, and no two sets a picture.

    Parameters
    ----------
    size : int
        Pixels on a side of a patch.
    train, validation, test : int
        Numbers of patches.
    reduce : int
        The pictures are reduced by this factor first (means over blocks).
    seed : int
        Another seed chooses other squares, from the same pictures.
    like : array, optional
        Sets namespace, dtype and device.

    Raises
    ------
    ValueError
        If a set has fewer squares than are asked for.

    Examples
    --------
    >>> sets = pictures(16, train=100)
    >>> sets.train.shape, sets.test.shape
    ((100, 16, 16), (16, 16, 16))
    >>> {name for name, _, _ in sets.places["validation"]} <= {"cat", "rocket"}
    True
    """
    size, k = as_count(size, "size", minimum=1), as_count(reduce, "reduce", minimum=1)
    seed = as_count(seed, "seed")
    found, places = {}, {}
    for i, (part, count) in enumerate(
        {"train": train, "validation": validation, "test": test}.items()
    ):
        whole = {name: _block_means(_whole(name), k) for name in SETS[part]}
        squares = [
            (name, row, column)
            for name, full in whole.items()
            for row in range(0, full.shape[0] - size + 1, size)
            for column in range(0, full.shape[1] - size + 1, size)
        ]
        count = as_count(count, part, minimum=1)
        if count > len(squares):
            raise ValueError(
                f"{part} is too large: the pictures of this set have {len(squares)} squares of "
                f"{size} x {size} pixels, expected at most so many, got {count}"
            )
        chosen = np.random.default_rng([seed, i]).choice(len(squares), count, replace=False)
        places[part] = tuple(squares[j] for j in chosen)
        patches = [whole[name][r : r + size, c : c + size] for name, r, c in places[part]]
        found[part] = asarray_like(np.stack(patches), like)
    return Pictures(**found, places=places)


def deblurring(
    name: str = "page",
    *,
    psf: str | np.ndarray = "gaussian",
    width: float = 2.0,
    noise: float = 1e-2,
    seed: int = 0,
    boundary: str = "periodic",
    size: int | tuple[int, int] | None = 128,
    outside: str = "model",
    like: Array | None = None,
) -> Problem:
    r"""A real picture, blurred: :math:`y=p*x+e`, gray values from 0 (black) to 1 (white).

    Parameters
    ----------
    name : str
        Picture: one of those of :func:`picture`.
    psf : {"gaussian", "motion", "disk"} or array
        Point-spread function: ``psf_gaussian(width)``, ``psf_motion(width)``,
        ``psf_disk(width)``, or one of your own.
    width : float
        In pixels: standard deviation, length, or radius.
    noise, seed :
        As in :func:`add_noise`.
    boundary : {"periodic", "zero"}
        What the operator A believes about the world outside the picture.
    size :
        Part of the picture, as in :func:`picture`.
    outside : {"model", "scene"}
        What is outside when the data are made. ``model``: what A believes, so that
        ``y_exact`` is A x_true. ``scene``: the rest of the picture blurs into the frame, as in
        a camera, so that ``y_exact`` differs from A x_true near the edges; ``delta`` does not
        count this difference.
    like : array, optional

    Examples
    --------
    >>> problem = deblurring("camera", size=64, noise=0.02)
    >>> problem.A.in_shape, problem.A.shift_invariant
    ((64, 64), True)
    """
    as_choice(outside, "outside", ("model", "scene"))
    if isinstance(psf, str):
        makers = {"gaussian": psf_gaussian, "motion": psf_motion, "disk": psf_disk}
        psf = makers[as_choice(psf, "psf", tuple(makers))](width)
    psf = as_real(psf, "psf", ndim=2)
    x = picture(name, size)
    A = convolution(asarray_like(psf, like), x.shape, boundary=boundary)
    y_exact = None
    if outside == "scene":
        margin = max(psf.shape) // 2
        scene = picture(name, size, margin=margin)
        seen = convolution(psf, scene.shape, boundary="zero") @ scene
        y_exact = asarray_like(
            seen[margin : margin + x.shape[0], margin : margin + x.shape[1]], like
        )
    return _problem(f"deblurring {name}", A, asarray_like(x, like), noise, seed, y_exact)


# Kernels that move light as far as a Gaussian of standard deviation w, where the mean square
# distance is 2w²: it is r²/2 for a disk of radius r, l²/12 for a line of length l.
_KERNELS = {
    "gaussian": lambda width, angle: psf_gaussian(width),
    "disk": lambda width, angle: psf_disk(2 * width),
    "motion": lambda width, angle: psf_motion(math.sqrt(24) * width, angle=angle),
}


def blur_family(
    count: int,
    size: int = 64,
    *,
    scenes: tuple[str, ...] | Array = ("camera",),
    kinds: tuple[str, ...] = ("gaussian", "disk", "motion"),
    width: tuple[float, float] = (0.8, 2.0),
    noise: tuple[float, float] = (0.005, 0.05),
    boundary: str = "periodic",
    seed: int = 0,
    like: Array | None = None,
) -> list[Problem]:
    r"""Return many deblurring problems of one kind: tasks to learn from, and tasks to test on.

    Each task, :math:`y=p*x+e`, has a picture, a kind of kernel p, its width w, a noise level and,
    for motion, an angle of its own, all drawn at random; the level is uniform in its logarithm.
    Kernels of one width move light equally far, :math:`\sum_jp_j|j|^2\approx2w^2`: the Gaussian
    has standard deviation w, the disk radius 2w, the line length :math:`\sqrt{24}\,w`.

    Parameters
    ----------
    count : int
        Number of tasks. The first ones of a larger family are the same.
    size : int
        Pixels on a side; at least the width of the largest kernel, :math:`12w+1` or so.
    scenes : tuple of names, or array of shape (pictures, size, size)
        Names as of :func:`picture`, or patches: training tasks on ``pictures(size).train`` and
        test tasks on ``pictures(size).test`` have no picture in common.
    kinds : tuple of {"gaussian", "disk", "motion"}
    width, noise : tuple (lowest, highest)
        Range of w in pixels, and of the relative noise level.
    boundary : {"periodic", "zero"}
        As of :func:`deblurring`.
    seed : int
        Another seed gives other tasks.
    like : array, optional
        Sets namespace, dtype and device.

    Returns
    -------
    list of Problem
        The name of a problem says what was drawn.

    Examples
    --------
    >>> for problem in blur_family(3, 32, width=(0.8, 1.2)):
    ...     print(problem.name)
    picture 0, motion, width 0.91, angle 7
    picture 0, disk, width 1.02
    picture 0, motion, width 0.96, angle 108
    """
    count, size = as_count(count, "count", minimum=1), as_count(size, "size", minimum=1)
    seed = as_count(seed, "seed")
    if isinstance(scenes, tuple):
        scenes = [picture(name, size) for name in _words(scenes, "scenes", PICTURES)]
    else:
        scenes = as_real(scenes, "scenes", ndim=3)
        as_real(scenes, "scenes", shape=(scenes.shape[0], size, size))
        like = scenes if like is None else like
    kinds = _words(kinds, "kinds", tuple(_KERNELS))
    (low, high), levels = _range(width, "width"), _range(noise, "noise")
    family = []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        which, kind = int(rng.integers(len(scenes))), kinds[int(rng.integers(len(kinds)))]
        w, angle = rng.uniform(low, high), rng.uniform(0.0, 180.0)
        level = math.exp(rng.uniform(*np.log(levels)))
        x = asarray_like(scenes[which], like)
        A = convolution(asarray_like(_KERNELS[kind](w, angle), like), x.shape, boundary=boundary)
        turned = f", angle {angle:.0f}" if kind == "motion" else ""
        name = f"picture {which}, {kind}, width {w:.2f}{turned}"
        family.append(_problem(name, A, x, level, int(rng.integers(2**31))))
    return family


def _words(values: tuple[str, ...], name: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Return a tuple of at least one of the words allowed."""
    if not isinstance(values, tuple) or not values:
        raise ValueError(f"{name} must be names: expected a tuple of at least one, got {values!r}")
    return tuple(as_choice(value, name, allowed) for value in values)


def _range(pair: tuple[float, float], name: str) -> tuple[float, float]:
    """Return the lowest and the highest of a range of positive numbers."""
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise ValueError(f"{name} must be a range: expected (lowest, highest), got {pair!r}")
    low, high = (as_scalar(end, name, positive=True) for end in pair)
    if high < low:
        raise ValueError(f"{name} must be a range: expected lowest <= highest, got {pair}")
    return low, high


def tomography(
    name: str = "shepp_logan",
    *,
    size: int = 64,
    angles: int | Array = 60,
    noise: float = 1e-2,
    seed: int = 0,
    data: str = "model",
    like: Array | None = None,
) -> Problem:
    r"""A picture from its projections: :math:`y=Ax+e` with the Radon transform A.

    x is a square picture of ``size`` pixels a side, gray values from 0 to 1; pixels that are not
    in the inscribed disk are 0, because some rays would miss them. y is a sinogram, a row a
    detector and a column an angle, in gray values times the width of a pixel: the same picture
    in twice as many pixels has data twice as large (:func:`course_lib.operators.radon`).

    Parameters
    ----------
    name : {"shepp_logan", "camera", "moon"}
        The whole phantom or picture, reduced by means over areas (:func:`picture`).
    size : int
    angles : int or array
        A number k of equally spaced angles, :math:`180^\circ i/k`, or the angles in degrees.
    noise, seed :
        As in :func:`add_noise`; :meth:`Problem.with_noise` makes Poisson noise, as of an
        emission tomograph that counts.
    data : {"model", "scene"}
        What is projected when the data are made. ``model``: the pixels of x_true, so that
        ``y_exact`` is A x_true: who then inverts the same A commits the inverse crime.
        ``scene``: the picture in pixels of a third of the width, seen by detectors of a third of
        the width, three of which give one value. Then ``y_exact`` differs from A x_true;
        ``delta`` does not count this difference.
    like : array, optional
        NumPy array or torch tensor.

    References
    ----------
    Shepp and Logan (1974), IEEE Trans. Nucl. Sci. 21, 21-43; for the inverse crime, Colton and
    Kress (1992), Inverse Acoustic and Electromagnetic Scattering Theory.

    Examples
    --------
    >>> problem = tomography(size=32, angles=10)
    >>> problem.A.in_shape, problem.y.shape
    ((32, 32), (32, 10))
    """
    as_choice(name, "picture", ("shepp_logan", "camera", "moon"))
    as_choice(data, "data", ("model", "scene"))
    n = as_count(size, "size", minimum=8)
    if getattr(angles, "ndim", 0) == 0:
        angles = 180 / as_count(angles, "angles", minimum=1) * np.arange(angles)
    angles = np.array([to_float(angle) for angle in as_real(angles, "angles", ndim=1)])
    A = radon(n, angles, like=asarray_like(angles, like))
    from_centre = np.hypot.outer(np.arange(n) - n // 2, np.arange(n) - n // 2)
    # A pixel reaches 0.71 from its centre.
    inside = from_centre + 0.5**0.5 <= (n - 1) / 2
    x = asarray_like(_reduced(picture(name), n) * inside, like)
    y_exact = None
    if data == "scene":
        scene = _reduced(picture(name), 3 * n) * np.kron(inside, np.ones((3, 3)))
        y_exact = asarray_like(_scene_sinogram(scene, n, angles), like)
    return _problem(f"tomography {name}", A, x, noise, seed, y_exact)


def _reduced(full: np.ndarray, n: int) -> np.ndarray:
    """Return the means of a square picture over n x n equal squares."""
    size = full.shape[0]
    pixels, edges = np.arange(size), np.linspace(0, size, n + 1)
    common = np.minimum.outer(edges[1:], pixels + 1) - np.maximum.outer(edges[:-1], pixels)
    weights = np.clip(common, 0, None) * n / size
    return weights @ full @ weights.T


def _scene_sinogram(scene: np.ndarray, n: int, angles: np.ndarray) -> np.ndarray:
    """Return projections of a scene of 3n x 3n pixels, in the units of n x n pixels."""
    # Both turn about the middle of a pixel: the same point, if the scene of an even n is larger.
    size = 3 * (n + 1 - n % 2)
    scene = np.pad(scene, (0, size - 3 * n))
    # One angle at a time, because the matrix of all would be large.
    rays = [radon(size, angles[i : i + 1]) @ scene for i in range(angles.size)]
    rays = np.concatenate(rays, axis=1)[: 3 * n]
    # The mean of three detectors, and lengths in the larger pixels.
    return rays.reshape(n, 3, -1).mean(axis=1) / 3


def source_problem(
    n: int = 64,
    *,
    nu: float = 0.5,
    p: float = 1.0,
    noise: float = 1e-3,
    seed: int = 0,
    exact_norm: bool = True,
    like: Array | None = None,
) -> Problem:
    r"""A problem whose truth satisfies a source condition with a known element.

    .. math:: x_{\mathrm{true}}=(A^\top A)^\nu w,\quad\|w\|=1,\qquad
        \sigma_i=i^{-p},\qquad|\langle v_i,w\rangle|\propto i^{-1/2} .

    The right singular vectors are the cosines of the discrete cosine transform, the left ones
    the sines of the discrete sine transform. The coefficients of w have seeded random signs;
    their squares sum like a harmonic series, so that x_true satisfies hardly more than the
    condition with ν, however large n is.

    Parameters
    ----------
    n : int
    nu : float
        ν ≥ 0. Tikhonov's rate is at best :math:`\delta^{2\nu/(2\nu+1)}` for ν ≤ 1.
    p : float
        Decay of the singular values.
    noise, seed, exact_norm, like :
        As in :func:`add_noise`; by default :math:`\|e\|=\delta` exactly.

    Examples
    --------
    >>> from course_lib.filters import decompose
    >>> decompose(source_problem(8, p=2.0).A).s[:3].round(4)
    array([1.    , 0.25  , 0.1111])
    """
    n = as_count(n, "n", minimum=2)
    nu, p = as_scalar(nu, "nu", minimum=0.0), as_scalar(p, "p", positive=True)
    seed = as_count(seed, "seed")
    i = np.arange(1, n + 1)
    t = _cells(n, 0.0, 1.0)[1]
    V, U = np.cos(math.pi * np.outer(t, i - 1)), np.sin(math.pi * np.outer(t, i))
    V, U = V / np.linalg.norm(V, axis=0), U / np.linalg.norm(U, axis=0)
    s = i**-p
    # Signs from another stream than the noise, which has the same seed.
    c = np.random.default_rng([seed, 1]).choice([-1.0, 1.0], n) / np.sqrt(i)
    c /= np.linalg.norm(c)
    A, x, w, t = (
        asarray_like(values, like) for values in ((U * s) @ V.T, V @ (s ** (2 * nu) * c), V @ c, t)
    )
    return _problem(
        "source_problem",
        matrix(A),
        x,
        noise,
        seed,
        exact_norm=exact_norm,
        grid=t,
        data_grid=t,
        source=w,
    )


@dataclass(frozen=True, eq=False)
class FewShot:
    r"""Many small learning tasks of one kind, each with a support set and a query set.

    A learner adapts to the support set of a task and is judged on its query set. All arrays have
    the task as their first axis, so that the tasks can be worked on at once.

    Attributes
    ----------
    name : str
    x_support : array, shape (tasks, support, inputs)
    y_support : array, shape (tasks, support, outputs)
    x_query : array, shape (tasks, queries, inputs)
    y_query : array, shape (tasks, queries, outputs)
    amplitude : array, shape (tasks, 1, 1), or None
        Of :func:`sinusoids`.
    phase : array, shape (tasks, 1, 1), or None
    classes : NumPy array of whole numbers, shape (tasks, ways), or None
        Of :func:`digits`: the digit that each output stands for.
    """

    name: str
    x_support: Array
    y_support: Array
    x_query: Array
    y_query: Array
    amplitude: Array | None = None
    phase: Array | None = None
    classes: np.ndarray | None = None


def sinusoids(
    tasks: int, shots: int, *, queries: int = 10, seed: int = 0, like: Array | None = None
) -> FewShot:
    r"""Few-shot regression: learn a sine from a few of its points.

    .. math:: y=a\sin(x-\varphi),\qquad a\sim U[0.1,5],\quad\varphi\sim U[0,\pi],
        \quad x\sim U[-5,5],

    without noise. Finn et al. print the ranges of amplitude and phase; that the phase is
    subtracted is what their program does (``generate_sinusoid_batch``). Others add it, which
    makes another family: the mean of all its sines is :math:`+5.1\cos(x)/\pi`, of ours
    :math:`-5.1\cos(x)/\pi`.

    Parameters
    ----------
    tasks : int
    shots : int
        Points in the support set of a task.
    queries : int
        Points in its query set.
    seed : int
        Another seed gives other tasks: one for training, one for testing.
    like : array, optional
        Sets namespace, dtype and device.

    Returns
    -------
    FewShot
        x_support and y_support have shape (tasks, shots, 1), x_query and y_query
        (tasks, queries, 1), amplitude and phase (tasks, 1, 1).

    References
    ----------
    Finn, Abbeel and Levine (2017), ICML, section 5.1, and github.com/cbfinn/maml.

    Examples
    --------
    >>> data = sinusoids(25, 10)
    >>> data.x_support.shape, data.y_query.shape, data.phase.shape
    ((25, 10, 1), (25, 10, 1), (25, 1, 1))
    >>> y = data.amplitude * np.sin(data.x_query - data.phase)
    >>> bool((y == data.y_query).all())
    True
    """
    tasks, shots = as_count(tasks, "tasks", minimum=1), as_count(shots, "shots", minimum=1)
    queries = as_count(queries, "queries", minimum=1)
    rng = np.random.default_rng(as_count(seed, "seed"))
    amplitude = rng.uniform(0.1, 5.0, (tasks, 1, 1))
    phase = rng.uniform(0.0, math.pi, (tasks, 1, 1))
    x = rng.uniform(-5.0, 5.0, (tasks, shots + queries, 1))
    y = amplitude * np.sin(x - phase)
    arrays = (x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:], amplitude, phase)
    like = None if like is None else as_real(like, "like")
    return FewShot("sinusoids", *(asarray_like(values, like) for values in arrays))


def digits(
    tasks: int,
    shots: int,
    *,
    ways: int = 5,
    queries: int = 10,
    classes: tuple[int, ...] = (0, 1, 2, 3, 4),
    seed: int = 0,
    like: Array | None = None,
) -> FewShot:
    r"""Few-shot classification: tell handwritten digits apart after seeing a few of each.

    A task has as many classes as ``ways``, in an order of its own: which output stands for which
    digit must be learned from the support set. Pictures of 8 x 8 pixels with gray values in
    [0, 1] are the rows of x, labels those of y: 1 for its class and 0 elsewhere. The rows come
    class by class. No picture is in the support and in the query set of one task.

    Parameters
    ----------
    tasks : int
    shots, queries : int
        Pictures of each class in the support set and in the query set; there are 174 to 183.
    ways : int
        Classes of a task.
    classes : tuple of digits
        What the classes are drawn from. Train with some, test with others:
        ``digits(..., classes=(5, 6, 7, 8, 9))`` shares no digit with the default.
    seed : int
    like : array, optional
        Sets namespace, dtype and device.

    Returns
    -------
    FewShot
        x_support has shape (tasks, ways * shots, 64), y_support (tasks, ways * shots, ways), and
        so have x_query and y_query with ``queries``.

    Raises
    ------
    ImportError
        If scikit-learn, which holds the pictures, is missing.
    ValueError
        If there are fewer classes than ways, or too few pictures of a class.

    References
    ----------
    E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits (1998), UCI Machine
    Learning Repository; the part that scikit-learn ships.

    Examples
    --------
    >>> data = digits(3, 1, ways=2)
    >>> data.x_support.shape, data.y_query.shape, data.classes.shape
    ((3, 2, 64), (3, 20, 2), (3, 2))
    >>> data.y_support[0]
    array([[1., 0.],
           [0., 1.]])
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError(
            "digits needs scikit-learn, which holds the pictures: expected the package "
            "scikit-learn, got none; install it with: pip install scikit-learn"
        ) from None
    if not isinstance(classes, tuple) or len(set(classes)) != len(classes):
        raise ValueError(f"classes must differ: expected a tuple of digits, got {classes!r}")
    classes = [as_count(c, "classes", maximum=9) for c in classes]
    tasks, shots = as_count(tasks, "tasks", minimum=1), as_count(shots, "shots", minimum=1)
    queries = as_count(queries, "queries", minimum=1)
    ways = as_count(ways, "ways", minimum=1, maximum=len(classes))
    rng = np.random.default_rng(as_count(seed, "seed"))
    pixels, labels = load_digits(return_X_y=True)
    stock = {c: np.flatnonzero(labels == c) for c in classes}
    fewest = min(rows.size for rows in stock.values())
    if shots + queries > fewest:
        raise ValueError(
            f"shots + queries is too large: expected at most {fewest} pictures of a class, "
            f"got {shots + queries}"
        )
    drawn = np.stack([rng.permutation(classes)[:ways] for _ in range(tasks)])
    rows = [[rng.choice(stock[c], shots + queries, replace=False) for c in task] for task in drawn]
    x = pixels[np.array(rows)] / 16.0  # shape (tasks, ways, shots + queries, 64)
    y = np.tile(np.eye(ways)[:, None], (tasks, 1, shots + queries, 1))
    flat = [
        part.reshape(tasks, -1, part.shape[-1])
        for cut in (slice(0, shots), slice(shots, None))
        for part in (x[:, :, cut], y[:, :, cut])
    ]
    return FewShot("digits", *(asarray_like(values, like) for values in flat), classes=drawn)
