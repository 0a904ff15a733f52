r"""Rules that choose λ for :math:`x_\lambda=\arg\min_x\tfrac12\|Ax-y\|^2+\tfrac\lambda2\|Dx\|^2`.

One decomposition of (A, D) serves every λ, every rule and every y. In the bases of a
:class:`Smoother`, with the filter factors :math:`\varphi_i=c_i^2/(c_i^2+\lambda d_i^2)`,

.. math::
    P_\lambda=A(A^\top A+\lambda D^\top D)^{-1}A^\top=\sum_i\varphi_iu_iu_i^\top,\qquad
    \|y-Ax_\lambda\|^2=\sum_i(1-\varphi_i)^2\langle u_i,y\rangle^2+\mathrm{dist}^2 ,

so that a rule costs a sum for each λ. Each rule looks at a grid first, and refines the best point
by golden section in log λ. A rule with an argument ``solver`` also takes problems that have no
decomposition (pictures, :math:`\ell_1`): then it answers with a point of the grid.

m is the number of data. All rules but :func:`discrepancy` and :func:`l_curve` suppose that the
noise of different data is independent and of one variance; whiten the problem first if it is not.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from .arrays import (
    Array,
    as_choice,
    as_count,
    as_real,
    as_scalar,
    asarray_like,
    inner,
    norm,
    require,
    to_float,
    to_numpy,
)
from .filters import decompose, standard_form
from .iterate import Result
from .operators import (
    LinearOperator,
    _response,
    _with_data,
    as_operator,
    identity,
    subsampling,
)

__all__ = [
    "Choice",
    "Fit",
    "Smoother",
    "discrepancy",
    "evidence",
    "gcv",
    "golden_section",
    "k_fold",
    "l_curve",
    "loocv",
    "oracle",
    "smoother",
    "sure",
]

# Points of the default grid; entries of a table (λ by data) that is held at once.
POINTS, MOST_ENTRIES = 200, 2**22


@dataclass(frozen=True, eq=False)
class Choice:
    """The λ that a rule chose, and what it saw.

    Attributes
    ----------
    lam : float
        The chosen λ.
    grid, values : NumPy arrays
        Where the rule looked, and its criterion there: to be minimized, but for ``l_curve``
        (curvature, to be maximized) and ``discrepancy`` (residual norm, to meet a value).
    rule : str
        Name of the rule.
    found : bool
        True if the rule's promise holds at ``lam``: a minimum inside the grid, a corner, a
        residual norm that is met. If not, ``lam`` is the best point of the grid.
    reason : str
        What was found, or why nothing was, in words.
    x : array
        The solution with ``lam``, from all data.
    std_error : NumPy array or None
        Standard error of ``values``, where they are random.
    """

    lam: float
    grid: np.ndarray
    values: np.ndarray
    rule: str
    found: bool
    reason: str
    x: Array
    std_error: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Smoother:
    r"""Tikhonov's method for all λ and all y: A and D in the bases that make both diagonal.

    With :math:`Ax_i=c_iu_i` and :math:`\langle Dx_i,Dx_j\rangle=d_i^2[i=j]`, the :math:`u_i`
    orthonormal: :math:`x_\lambda=\sum_i\frac{c_i}{c_i^2+\lambda d_i^2}\langle u_i,y\rangle x_i`.

    Attributes
    ----------
    A : LinearOperator
    c, d : NumPy arrays, shape (k,)
        Gains of A and of D. :math:`d_i=0` on the null space of D; :math:`d_i=1` elsewhere,
        except in the Fourier basis. Singular values that are rounding noise are left out, or 0.
    analyse : callable
        :math:`y\mapsto(\langle u_i,y\rangle)_i`, flat.
    synthesize : callable
        :math:`(w,y)\mapsto\sum_iw_ix_i`; y gives the part in the null space of D.
    U : array, shape (m, k), or None
        The :math:`u_i` as columns; None for the Fourier basis.
    """

    A: LinearOperator
    c: np.ndarray
    d: np.ndarray
    analyse: Callable[[Array], Array]
    synthesize: Callable[[Array, Array], Array]
    U: Array | None

    def fit(self, y: Array) -> "Fit":
        """Return what the data say in this basis."""
        y = as_real(y, "y", shape=self.A.out_shape, like=self.A.like)
        xp, beta, outside = array_namespace(y), self.analyse(y), 0.0
        if self.U is not None and self.U.shape[0] > self.U.shape[1]:
            rest = xp.reshape(y, (-1,)) - self.U @ beta
            outside = to_float(inner(rest, rest))
        return Fit(self, y, beta, to_numpy(xp.abs(beta)) ** 2, outside)


@dataclass(frozen=True, eq=False)
class Fit:
    r"""Data in the bases of a :class:`Smoother`.

    Attributes
    ----------
    smoother : Smoother
    y : array
    beta : array, shape (k,)
        :math:`\langle u_i,y\rangle`.
    power : NumPy array, shape (k,)
        :math:`|\langle u_i,y\rangle|^2`.
    outside : float
        :math:`\|y-\sum_i\langle u_i,y\rangle u_i\|^2`: what no λ can change.
    """

    smoother: Smoother
    y: Array
    beta: Array
    power: np.ndarray
    outside: float

    def table(self, lam: Any, terms: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        r"""Return a number for each λ: terms(:math:`\varphi,\ 1-\varphi`).

        Both are arrays of shape (some λ, k), without cancellation for very small or large λ.
        """
        lam, rows = np.reshape(lam, (-1, 1)), max(1, MOST_ENTRIES // math.prod(self.y.shape))
        fit, penalty = self.smoother.c**2, self.smoother.d**2
        blocks = (lam[j : j + rows] * penalty for j in range(0, lam.size, rows))
        return np.concatenate([terms(fit / (fit + p), p / (fit + p)) for p in blocks])

    def norms(self, lam: Any) -> tuple[np.ndarray, np.ndarray]:
        r"""Return :math:`\|y-Ax_\lambda\|` and :math:`\|Dx_\lambda\|`: points of the L-curve."""
        residual = self.table(lam, lambda kept, lost: lost**2 @ self.power) + self.outside
        penalty = self.table(lam, lambda kept, lost: (lost * kept) @ self.power)
        return np.sqrt(residual), np.sqrt(penalty / np.reshape(lam, -1))

    def solve(self, lam: float) -> Array:
        r"""Return :math:`x_\lambda`."""
        weights = self.smoother.c / (self.smoother.c**2 + lam * self.smoother.d**2)
        return self.smoother.synthesize(asarray_like(weights, self.y) * self.beta, self.y)

    def grid(self) -> np.ndarray:
        """Return the default grid: from hardly any regularization to hardly anything else."""
        c, d = self.smoother.c, self.smoother.d
        squares = (c[(c > 0) & (d > 0)] / d[(c > 0) & (d > 0)]) ** 2
        low = min(squares.min(), _eps(self.y) * squares.max())
        return np.geomspace(low / 100, 100 * squares.max(), POINTS)


def _eps(x: Array) -> float:
    return float(array_namespace(x).finfo(x.dtype).eps)


def smoother(A: Any, D: Any = None, *, like: Array | None = None) -> Smoother:
    r"""Decompose (A, D) once, for all λ, all rules and all data.

    Periodic convolutions by the Fourier transform, anything else as a matrix: by its singular
    value decomposition, after the transformation to standard form if there is a D.

    Parameters
    ----------
    A : LinearOperator or array
    D : LinearOperator or array, optional
        Regularization operator; the identity if not given.
    like : array, optional
        Sets namespace, dtype and device for an A that holds no numbers.

    Raises
    ------
    ValueError
        If A and D have a common null vector.

    Examples
    --------
    >>> import numpy as np
    >>> smoother(np.diag([2.0, 1.0])).fit(np.array([2.0, 2.0])).solve(1.0)
    array([0.8, 1. ])
    """
    A = as_operator(A)
    A = A if A.like is not None else replace(A, like=asarray_like([0.0], like))
    D = None if D is None else as_operator(D)
    if A.shift_invariant and A.in_shape == A.out_shape and (D is None or D.shift_invariant):
        return _fourier_smoother(A, D)
    form = None if D is None else standard_form(A, D)
    spectrum = decompose(A if form is None else form.A_bar)
    free = 0 if form is None else form.Q0.shape[1]
    rank = min(spectrum.rank, math.prod(A.out_shape) - free)
    U, V, c = spectrum.U[:, :rank], spectrum.V[:, :rank], to_numpy(spectrum.s)[:rank]
    xp = array_namespace(U)
    if form is not None:
        # Orthogonal to each other, but for rounding, which matters where c is tiny.
        U, R = xp.linalg.qr(xp.concat([form.Q0, U], axis=1))
        U = U * xp.sign(xp.linalg.diagonal(R))

    def synthesize(w: Array, y: Array) -> Array:
        z = V @ w[free:]
        return xp.reshape(z, A.in_shape) if form is None else form.back(z, y)

    c, d = np.append(np.ones(free), c), np.append(np.zeros(free), np.ones(rank))
    return Smoother(A, c, d, lambda y: U.T @ xp.reshape(y, (-1,)), synthesize, U)


def _fourier_smoother(A: LinearOperator, D: LinearOperator | None) -> Smoother:
    xp, spectrum = array_namespace(A.like), decompose(A)
    c, d = (_fourier_gains(op, A.like) for op in (A, identity(A.in_shape) if D is None else D))
    require(
        ((c > 0) | (d > 0)).all(),
        "A and D must have no common null vector: expected each frequency to be seen by one "
        "of them, got a frequency in both null spaces",
    )
    return Smoother(
        A,
        c,
        d,
        lambda y: xp.reshape(spectrum.analyse(y), (-1,)),
        lambda w, y: spectrum.synthesize(xp.reshape(w, A.in_shape)),
        None,
    )


def _fourier_gains(A: LinearOperator, like: Array) -> np.ndarray:
    """Return how much A makes of each frequency: its response to a pulse, transformed."""
    response = to_numpy(_response(A, like)).reshape(-1, *A.in_shape)
    spectra = np.fft.fftn(response, axes=tuple(range(1, response.ndim)))
    gains = np.linalg.norm(spectra.reshape(len(spectra), -1), axis=0)
    return np.where(gains > math.sqrt(gains.size) * _eps(like) * gains.max(), gains, 0.0)


def _fit(A: Any, y: Array, D: Any) -> Fit:
    """Return the data in the bases of (A, D), or of the Smoother that stands for both."""
    known, y = isinstance(A, Smoother), as_real(y, "y")
    require(
        D is None or not known,
        "D must not be given twice: expected None, because the Smoother has one",
    )
    fit = (A if known else smoother(A, D, like=y)).fit(y)
    seen = fit.power[(fit.smoother.c > 0) & (fit.smoother.d > 0)].sum()
    floor = math.prod(y.shape) * _eps(fit.y)
    require(
        seen > floor**2 * (fit.power.sum() + fit.outside),
        "y must depend on what D penalizes: expected a part of y in the range of A that λ "
        "can change, got none (y = 0, or x is the same for every λ)",
    )
    return fit


def _as_grid(grid: Any) -> np.ndarray:
    values = as_real(np.asarray(grid), "grid", ndim=1)
    if values.size < 3 or values[0] <= 0 or (np.diff(values) <= 0).any():
        raise ValueError(
            "grid must hold positive numbers in increasing order: expected at least 3, "
            f"got {grid!r:.80}"
        )
    return values.astype(np.float64)


def golden_section(
    f: Callable[[float], float], low: float, high: float, *, tol: float = 1e-6
) -> float:
    r"""Return the minimizer of f on [low, high] to tol, for an f that first falls and then rises.

    One new value of f a step: the inner points of an interval divided in the golden ratio are inner
    points of the next one too. After k steps the interval has :math:`0.618^k` of its length. An f
    with several valleys leads to one of them, not always the deepest.

    Raises ``ValueError`` for an interval that is empty or not finite and for an f that gives NaN.

    Source: J. Kiefer, Sequential minimax search for a maximum, Proc. AMS 4 (1953) 502-506.

    >>> round(golden_section(lambda t: (t - 2) ** 2, 0.0, 5.0), 6)
    2.0
    """
    low, high, tol = float(low), float(high), as_scalar(tol, "tol", positive=True)
    require(
        -math.inf < low < high < math.inf,
        f"low and high must be finite, low < high: got {low} and {high}",
    )
    ratio = (math.sqrt(5) - 1) / 2

    def value(t: float) -> float:
        answer = float(f(t))
        require(not math.isnan(answer), f"f must give numbers: expected no NaN, got one at {t}")
        return answer

    left, right = high - ratio * (high - low), low + ratio * (high - low)
    f_left, f_right = value(left), value(right)
    for _ in range(math.ceil(math.log(tol / (high - low)) / math.log(ratio))):
        if f_left < f_right:
            high, right, f_right = right, left, f_left
            left = high - ratio * (high - low)
            f_left = value(left)
        else:
            low, left, f_left = left, right, f_right
            right = low + ratio * (high - low)
            f_right = value(right)
    return (low + high) / 2


def _minimum(
    rule: str,
    grid: np.ndarray,
    values: np.ndarray,
    solve: Callable[[float], Array],
    criterion: Callable[[float], float] | None = None,
    std_error: np.ndarray | None = None,
) -> Choice:
    """Choose the smallest value on the grid, refined between its neighbours by the criterion."""
    if not np.isfinite(values).all():
        raise ValueError(f"{rule} must be finite: expected a number for each λ, got {values!r:.80}")
    i, end = int(values.argmin()), 0 if values[0] <= values[-1] else -1
    found = bool(values[end] > values[i] + 1e-10 * abs(values[i]))
    lam = float(grid[i if found else end])
    if found and criterion is not None:
        low, high = np.log(grid[[i - 1, i + 1]])
        lam = math.exp(golden_section(lambda t: criterion(math.exp(t)), low, high))
    where = "inside the grid" if found else "at the end of the grid: no minimum inside"
    reason = f"the smallest value is {where}"
    return Choice(lam, grid, values, rule, found, reason, solve(lam), std_error)


def _rule(rule: str, fit: Fit, terms: Callable[..., np.ndarray], grid: Any) -> Choice:
    grid = fit.grid() if grid is None else _as_grid(grid)
    return _minimum(
        rule, grid, fit.table(grid, terms), fit.solve, lambda lam: fit.table(lam, terms)[0]
    )


def _by_solver(
    A: Any, y: Array, D: Any, grid: Any, solver: Callable
) -> tuple[LinearOperator, Array, np.ndarray, Callable[..., Array]]:
    """Return the arguments, checked, and the solver as a function that answers with x."""
    A, y = _with_data(A, y)
    require(
        callable(solver) and D is None,
        "solver must be a function (A, y, lam) that knows D: "
        f"got {type(solver).__name__ if D is None else 'a D beside it'}",
    )

    def solve(lam: float, A: LinearOperator = A, y: Array = y, **start: Array) -> Array:
        answer = solver(A if A.matrix is None else A.matrix, y, float(lam), **start)
        if isinstance(answer, Result) and not answer.converged:
            raise ValueError(
                f"solver must converge: at λ = {lam:.3g} it got only so far: {answer.reason}"
            )
        return as_real(getattr(answer, "x", answer), "the answer of solver", shape=A.in_shape)

    return A, y, _as_grid(grid), solve


def _probe(
    A: LinearOperator,
    y: Array,
    grid: np.ndarray,
    solve: Callable[..., Array],
    step: float,
    probes: int,
    seed: int,
) -> np.ndarray:
    r"""Return :math:`\|y-Ax_\lambda\|^2`, the divergence of :math:`y\mapsto Ax_\lambda`, and its
    standard error, for each λ: from what changes of y by ±step do to the prediction.
    """
    rng = np.random.default_rng(as_count(seed, "seed"))
    count = as_count(probes, "probes", minimum=2)
    signs = [asarray_like(rng.choice([-1.0, 1.0], y.shape), y) for _ in range(count)]
    rows = []
    for lam in grid:
        fitted = A @ solve(lam)
        changes = (inner(b, A @ solve(lam, y=y + step * b) - fitted) for b in signs)
        traces = [to_float(change) / step for change in changes]
        error = np.std(traces, ddof=1) / math.sqrt(count)
        rows.append((to_float(norm(y - fitted)) ** 2, np.mean(traces), error))
    return np.array(rows).T


def _by_trace(
    rule: str,
    criterion: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
    A: Any,
    y: Array,
    D: Any,
    grid: Any,
    solver: Callable | None,
    probes: int,
    seed: int,
    noise_std: float | None,
) -> Choice:
    r"""Minimize criterion(:math:`\|y-Ax_\lambda\|^2,\ \operatorname{tr}(I-P_\lambda),\ m`)."""
    if solver is not None:
        A, y, grid, solve = _by_solver(A, y, D, grid, solver)
        m = math.prod(y.shape)
        # For a linear solver any step will do; for others see `sure`.
        step = 2 * noise_std * m**-0.3 if noise_std else (to_float(norm(y)) or 1.0) / math.sqrt(m)
        residual, trace, error = _probe(A, y, grid, solve, step, probes, seed)
        low, values, high = (criterion(residual, m - trace + e, m) for e in (-error, 0, error))
        return _minimum(rule, grid, values, solve, std_error=np.abs(high - low) / 2)
    fit = _fit(A, y, D)
    m, k = math.prod(fit.y.shape), fit.power.size

    def terms(kept: np.ndarray, lost: np.ndarray) -> np.ndarray:
        residual = lost**2 @ fit.power + fit.outside
        return criterion(residual, lost.sum(axis=1) + (m - k), m)

    return _rule(rule, fit, terms, grid)


def gcv(
    A: Any,
    y: Array,
    D: Any = None,
    *,
    grid: Any = None,
    solver: Callable | None = None,
    probes: int = 10,
    seed: int = 0,
) -> Choice:
    r"""Generalized cross-validation: minimize

    .. math:: \mathrm{GCV}(\lambda)=
        \frac{m\,\|(I-P_\lambda)y\|^2}{[\operatorname{tr}(I-P_\lambda)]^2} ,

    an estimate of the mean squared error of predicting one datum. It needs no noise level. A
    rotation of the data does not change it: it is :func:`loocv` with all
    :math:`(P_\lambda)_{ii}` replaced by their mean.

    Parameters
    ----------
    A : LinearOperator, array or Smoother
        A Smoother stands for A and D, and saves the decomposition.
    y : array, shape ``A.out_shape``
    D : LinearOperator or array, optional
        Regularization operator; the identity if not given.
    grid : sequence of floats, optional
        Values of λ, increasing. By default 200 from the singular values; needed with a solver.
    solver : callable, optional
        ``solver(A, y, lam)`` returns :math:`x_\lambda`, or a ``Result``; linear in y. Then nothing
        is decomposed: the trace is estimated, and ``std_error`` says how well. For instance
        ``lambda A, y, lam: tikhonov(A, y, lam, D, method="cgls")``.
    probes, seed : int
        With a solver: number of random vectors of signs for the trace, the same for every λ.

    Raises
    ------
    ValueError
        If arguments do not fit, A and D have a common null vector, or λ has no influence.

    References
    ----------
    Golub, Heath and Wahba (1979), Technometrics 21, 215-223; Girard (1989), Numer. Math. 56,
    1-23; Hutchinson (1990), Commun. Stat. Simul. Comput. 19, 433-450.

    Examples
    --------
    >>> from course_lib.problems import shaw
    >>> problem = shaw(32, noise=1e-2)
    >>> choice = gcv(problem.A, problem.y)
    >>> choice.found, 1e-6 < choice.lam < 1e-1
    (True, True)
    """

    def criterion(residual: np.ndarray, freedom: np.ndarray, m: int) -> np.ndarray:
        return m * residual / freedom**2

    return _by_trace("gcv", criterion, A, y, D, grid, solver, probes, seed, None)


def loocv(A: Any, y: Array, D: Any = None, *, grid: Any = None) -> Choice:
    r"""Leave-one-out cross-validation, without solving m problems: minimize

    .. math:: \frac1m\sum_i\bigl(y_i-(Ax_\lambda^{(-i)})_i\bigr)^2=
        \frac1m\sum_i\Bigl(\frac{(y-Ax_\lambda)_i}{1-(P_\lambda)_{ii}}\Bigr)^2 ,

    where :math:`x_\lambda^{(-i)}` is fitted without the i-th datum, with the same λ.

    Parameters
    ----------
    A, y, D, grid :
        As in :func:`gcv`.

    Raises
    ------
    ValueError
        As in :func:`gcv`; or if one datum alone determines a part of x in the null space of D,
        so that nothing is left to predict it.

    References
    ----------
    Allen (1974), Technometrics 16, 125-127.

    Examples
    --------
    >>> import numpy as np
    >>> A, y = np.array([[1.0], [1.0]]), np.array([1.0, 3.0])
    >>> loocv(A, y, grid=[0.5, 1.0, 2.0]).values.round(4)
    array([3.2222, 3.25  , 3.5556])
    """
    fit = _fit(A, y, D)
    U, d, noise = fit.smoother.U, fit.smoother.d, math.prod(fit.y.shape) * _eps(fit.y)
    if U is None:
        # A and D commute with shifts: all leverages are equal.
        return replace(gcv(fit.smoother, fit.y, grid=grid), rule="loocv")
    xp, squares = array_namespace(U), U**2
    # Differences that are rounding noise count as 0: they would be divided by each other.
    outside = 1 - xp.sum(squares, axis=1)
    outside = xp.where(outside > noise, outside, xp.zeros_like(outside))
    rest = xp.reshape(fit.y, (-1,)) - U @ fit.beta
    rest = xp.where(outside > 0, rest, xp.zeros_like(rest))
    spared = outside + squares @ asarray_like(d, U)
    require(
        to_float(xp.min(spared)) > noise,
        f"datum {int(xp.argmin(spared))} must not be left out: expected the others to "
        "determine x in the null space of D, got a leverage of 1",
    )

    def terms(kept: np.ndarray, lost: np.ndarray) -> np.ndarray:
        lost = asarray_like(lost, U)
        residual, spared = (lost * fit.beta) @ U.T + rest, lost @ squares.T + outside
        return to_numpy(xp.mean((residual / spared) ** 2, axis=1))

    return _rule("loocv", fit, terms, grid)


def sure(
    A: Any,
    y: Array,
    noise_std: float,
    D: Any = None,
    *,
    grid: Any = None,
    solver: Callable | None = None,
    probes: int = 10,
    seed: int = 0,
) -> Choice:
    r"""Stein's unbiased risk estimate: minimize

    .. math:: \mathrm{SURE}(\lambda)=\|y-Ax_\lambda\|^2-m\sigma_e^2
        +2\sigma_e^2\operatorname{div}_y(Ax_\lambda),\qquad
        \mathbb E\,\mathrm{SURE}(\lambda)=\mathbb E\|Ax_\lambda-Ax_{\mathrm{true}}\|^2

    for Gaussian noise of known standard deviation, and estimates that are weakly differentiable
    in y. For Tikhonov's method the divergence is :math:`\operatorname{tr}P_\lambda`.

    Parameters
    ----------
    A, y, D, grid :
        As in :func:`gcv`.
    noise_std : float
        :math:`\sigma_e>0`, in the units of y.
    solver : callable, optional
        As in :func:`gcv`, but it need not be linear (the LASSO, say). The divergence is estimated
        by differences along random signs, with the step :math:`2\sigma_em^{-0.3}`.
    probes, seed : int
        As in :func:`gcv`.

    References
    ----------
    Stein (1981), Ann. Statist. 9, 1135-1151; Ramani, Blu and Unser (2008), IEEE Trans. Image
    Process. 17, 1540-1554; Deledalle, Vaiter, Fadili and Peyré (2014), SIAM J. Imaging Sci. 7,
    2448-2487.

    Examples
    --------
    >>> import numpy as np
    >>> sure(np.eye(2), np.array([3.0, 4.0]), 1.0, grid=[0.5, 1.0, 2.0]).values.round(4)
    array([ 3.4444,  6.25  , 10.4444])
    """
    variance = as_scalar(noise_std, "noise_std", positive=True) ** 2

    def criterion(residual: np.ndarray, freedom: np.ndarray, m: int) -> np.ndarray:
        return residual - m * variance + 2 * variance * (m - freedom)

    return _by_trace("sure", criterion, A, y, D, grid, solver, probes, seed, noise_std)


def evidence(
    A: Any, y: Array, D: Any = None, *, noise_std: float | None = None, grid: Any = None
) -> Choice:
    r"""Empirical Bayes: minimize :math:`-\ln p(y\mid\lambda)` for the model

    .. math:: y=Ax+e,\quad e\sim\mathcal N(0,\sigma_e^2I),\quad
        x\sim\mathcal N\bigl(0,\tfrac{\sigma_e^2}\lambda(D^\top D)^{-1}\bigr) .

    Then y has covariance :math:`\sigma_e^2(I-P_\lambda)^{-1}`, and there are three terms: fit,
    complexity, scale,

    .. math:: -\ln p(y\mid\lambda)=\frac{\langle y,(I-P_\lambda)y\rangle}{2\sigma_e^2}
        -\tfrac12\ln\det(I-P_\lambda)+\tfrac m2\ln(2\pi\sigma_e^2) .

    The first is :math:`\sigma_e^{-2}` times the minimum of the Tikhonov functional.

    If D has a null space, of dimension q, the prior is flat there and has no total mass. Then it
    is the density of the part of y orthogonal to :math:`A\mathcal N(D)`, which does not depend on
    that part of x (the restricted likelihood): m - q stands for m, and the determinant is that on
    this subspace. The integral over the flat part would add :math:`\tfrac12\ln\det(A_0^\top
    A_0)`, :math:`A_0` being A on an orthonormal basis of the null space; this constant is dropped.

    Parameters
    ----------
    A, y, D, grid :
        As in :func:`gcv`.
    noise_std : float, optional
        :math:`\sigma_e`. If not given, for each λ the value that is best for it,
        :math:`\sigma_e^2=\langle y,(I-P_\lambda)y\rangle/(m-q)`.

    References
    ----------
    MacKay (1992), Neural Comput. 4, 415-447; Wahba (1985), Ann. Statist. 13, 1378-1402.

    Examples
    --------
    >>> import numpy as np
    >>> evidence(np.eye(1), np.ones(1), noise_std=1.0, grid=[0.5, 1.0, 2.0]).values.round(4)
    array([1.6349, 1.5155, 1.455 ])
    """
    if noise_std is not None:
        noise_std = as_scalar(noise_std, "noise_std", positive=True)
    fit = _fit(A, y, D)
    free = fit.smoother.d == 0
    rest = math.prod(fit.y.shape) - np.count_nonzero(free)

    def terms(kept: np.ndarray, lost: np.ndarray) -> np.ndarray:
        quadratic = lost @ fit.power + fit.outside
        variance = quadratic / rest if noise_std is None else noise_std**2
        complexity = -np.log(lost[:, ~free]).sum(axis=1)
        return 0.5 * (quadratic / variance + complexity + rest * np.log(2 * np.pi * variance))

    return _rule("evidence", fit, terms, grid)


def l_curve(A: Any, y: Array, D: Any = None, *, grid: Any = None) -> Choice:
    r"""The corner of the L-curve :math:`(\ln\|y-Ax_\lambda\|,\ \ln\|Dx_\lambda\|)`.

    The corner is the point of largest curvature; it turns to the left when λ grows, so that its
    curvature is positive. The curvature is exact, from derivatives in log λ. There is no corner
    (``found`` is False, and ``reason`` says why) if the curvature is nowhere above 1, which would
    be a bend over one e-fold or more, or is largest at the end of the grid. A heuristic: the
    corner need not exist, need not be unique, and need not be near the best λ.

    Parameters
    ----------
    A, y, D, grid :
        As in :func:`gcv`.

    Returns
    -------
    Choice
        ``values`` are curvatures. The points of the curve: ``smoother(A, D).fit(y).norms(grid)``.

    References
    ----------
    Hansen (1992), SIAM Review 34, 561-580; Hansen and O'Leary (1993), SIAM J. Sci. Comput. 14,
    1487-1503; Vogel (1996), Inverse Problems 12, 535-547.

    Examples
    --------
    >>> from course_lib.problems import shaw
    >>> problem = shaw(32, noise=1e-2)
    >>> choice = l_curve(problem.A, problem.y)
    >>> choice.found, 1e-6 < choice.lam < 1e-1
    (True, True)
    """
    fit = _fit(A, y, D)

    def minus_curvature(kept: np.ndarray, lost: np.ndarray) -> np.ndarray:
        # Along t = ln λ: d(1 - φ)/dt = φ(1 - φ).  The point is (½ ln r, ½ ln(p/λ)).
        both = lost * kept
        r, p = lost**2 @ fit.power + fit.outside, both @ fit.power
        dr, dp = 2 * (both * lost) @ fit.power, (both * (kept - lost)) @ fit.power
        ddr = 2 * (both * lost * (2 * kept - lost)) @ fit.power
        # d(p/λ)/dt = -dr/λ: what the penalty loses, the residual gains.
        du, dv = dr / (2 * r), -dr / (2 * p)
        ddu, ddv = ddr / (2 * r) - 2 * du**2, -ddr / (2 * p) + dr * dp / (2 * p**2)
        return (ddu * dv - du * ddv) / (du**2 + dv**2) ** 1.5

    choice = _rule("l_curve", fit, minus_curvature, grid)
    largest = -choice.values.min()
    found = bool(choice.found and largest > 1)
    reason = (
        f"{'a' if found else 'no'} corner inside the grid: the largest curvature there or "
        f"at its ends is {largest:.3g}, at λ = {choice.lam:.3g}"
    )
    return replace(choice, values=-choice.values, found=found, reason=reason)


def discrepancy(
    A: Any, y: Array, delta: float, D: Any = None, *, tau: float = 1.1, grid: Any = None
) -> Choice:
    r"""Morozov's principle: the λ with :math:`\|y-Ax_\lambda\|=\tau\delta`.

    The residual norm grows strictly with λ, so that λ is unique; there is one if and only if

    .. math:: \operatorname{dist}(y,\mathcal R(A))<\tau\delta
        <\min_{z\in\mathcal N(D)}\|y-Az\|

    (the upper limit is :math:`\|y\|` for an injective D). Found by bisection in log λ to rounding
    accuracy. Singular values of A that are rounding noise count as 0.

    Parameters
    ----------
    A, y, D, grid :
        As in :func:`gcv`; here the grid is only looked at, not searched.
    delta : float
        Noise level, :math:`\|y-y_{\mathrm{exact}}\|\le\delta`, absolute. For white noise about
        :math:`\sigma_e\sqrt m`.
    tau : float
        :math:`\tau\ge1`.

    Raises
    ------
    ValueError
        If there is no such λ; the message gives the interval.

    References
    ----------
    Morozov (1966), Soviet Math. Dokl. 7, 414-417; Engl, Hanke and Neubauer (1996), section 4.3.

    Examples
    --------
    >>> import numpy as np
    >>> round(discrepancy(np.eye(2), np.array([3.0, 4.0]), 1.0, tau=1.0).lam, 6)
    0.25
    """
    target = as_scalar(tau, "tau", minimum=1.0) * as_scalar(delta, "delta", positive=True)
    fit = _fit(A, y, D)
    grid = fit.grid() if grid is None else _as_grid(grid)
    parts = fit.smoother.c == 0, fit.smoother.d > 0
    lower, upper = (math.sqrt(fit.outside + fit.power[part].sum()) for part in parts)
    require(
        lower < target < upper,
        f"no λ has the residual norm τδ: expected τδ between {lower:.6g} (distance of y from "
        f"the range of A) and {upper:.6g} (best fit in the null space of D), got {target:.6g}",
    )
    # Wider than any grid: at these ends the residual is at its limits, up to rounding.
    low, high = fit.grid()[[0, -1]] * (_eps(fit.y) ** 2, _eps(fit.y) ** -2)
    for _ in range(64):
        lam = math.sqrt(low * high)
        low, high = (lam, high) if fit.norms(lam)[0][0] < target else (low, lam)
    reason = f"the residual norm is {target:.6g}"
    return Choice(lam, grid, fit.norms(grid)[0], "discrepancy", True, reason, fit.solve(lam))


def k_fold(
    A: Any, y: Array, solver: Callable, grid: Any, *, folds: int = 5, seed: int = 0
) -> Choice:
    r"""Cross-validation in K parts, for any solver: minimize

    .. math:: \frac1m\sum_{k=1}^K\|y_{I_k}-A_{I_k}x_\lambda^{(-k)}\|^2 ,

    where :math:`x_\lambda^{(-k)}` is fitted without the data :math:`I_k`. The parts are drawn at
    random: the data must be exchangeable. The fidelity is a sum over data, not a mean, so the same
    λ serves the parts and the whole; no rescaling by (K-1)/K.

    Parameters
    ----------
    A : LinearOperator or array
    y : array, shape ``A.out_shape``
    solver : callable
        ``solver(A, y, lam)`` returns x, or a ``Result``; A is a matrix if it was one. If it has
        an argument ``x0``, it is started at the solution for the next larger λ.
    grid : sequence of floats
        Values of λ, increasing.
    folds : int
        K, from 2 to m. With K = m and Tikhonov's method this is :func:`loocv`.
    seed : int

    Returns
    -------
    Choice
        ``std_error`` is that of a mean of K numbers, the errors of the parts.

    References
    ----------
    Stone (1974), J. R. Stat. Soc. B 36, 111-147; Geisser (1975), J. Amer. Statist. Assoc. 70,
    320-328.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.filters import tikhonov
    >>> A, y = np.array([[1.0], [1.0]]), np.array([1.0, 3.0])
    >>> k_fold(A, y, tikhonov, [0.5, 1.0, 2.0], folds=2).values.round(4)
    array([3.2222, 3.25  , 3.5556])
    """
    A, y, grid, solve = _by_solver(A, y, None, grid, solver)
    m = math.prod(y.shape)
    folds = as_count(folds, "folds", minimum=2, maximum=m)
    part = np.random.default_rng(as_count(seed, "seed")).permutation(m) % folds
    warm = "x0" in inspect.signature(solver).parameters
    errors, sizes = np.zeros((folds, grid.size)), np.bincount(part)
    for k in range(folds):
        (A_in, y_in), (A_out, y_out) = _rows(A, y, part != k), _rows(A, y, part == k)
        start = {}
        for j in reversed(range(grid.size)):
            x = solve(grid[j], A_in, y_in, **start)
            errors[k, j] = to_float(norm(y_out - A_out @ x)) ** 2
            start = {"x0": x} if warm else {}
    std_error = np.std(errors / sizes[:, None], axis=0, ddof=1) / math.sqrt(folds)
    return _minimum("k_fold", grid, errors.sum(axis=0) / m, solve, std_error=std_error)


def _rows(A: LinearOperator, y: Array, mask: np.ndarray) -> tuple[LinearOperator, Array]:
    """Return the rows of A and the data where the mask is True."""
    keep = array_namespace(y).asarray(mask.reshape(y.shape), device=device(y))
    kept = subsampling(keep) @ A if A.matrix is None else as_operator(A.matrix[keep])
    return kept, y[keep]


def oracle(
    A: Any,
    y: Array,
    x_true: Array,
    D: Any = None,
    *,
    grid: Any = None,
    solver: Callable | None = None,
    error: str = "estimation",
) -> Choice:
    r"""The best λ for these data, which only who knows the truth can choose: minimize

    .. math:: \|x_\lambda-x_{\mathrm{true}}\|\quad\text{(estimation)}\qquad\text{or}\qquad
        \|Ax_\lambda-Ax_{\mathrm{true}}\|\quad\text{(prediction)}.

    Parameters
    ----------
    A, y, D, grid, solver :
        As in :func:`gcv`; the solver need not be linear.
    x_true : array, shape ``A.in_shape``
    error : {"estimation", "prediction"}

    Examples
    --------
    >>> import numpy as np
    >>> A, x_true = np.eye(2), np.array([3.0, 4.0])
    >>> round(oracle(A, 1.25 * x_true, x_true).lam, 4)
    0.25
    """
    as_choice(error, "error", ("estimation", "prediction"))
    if solver is None:
        fit = _fit(A, y, D)
        A, y, solve = fit.smoother.A, fit.y, fit.solve
        grid = fit.grid() if grid is None else _as_grid(grid)
    else:
        A, y, grid, solve = _by_solver(A, y, D, grid, solver)
    x_true = as_real(x_true, "x_true", shape=A.in_shape, like=y)

    def criterion(lam: float) -> float:
        e = solve(lam) - x_true
        return to_float(norm(e if error == "estimation" else A @ e))

    values = np.array([criterion(lam) for lam in grid])
    return _minimum("oracle", grid, values, solve, criterion if solver is None else None)
