r"""Hypergradients: how the outer loss :math:`J(\theta)=f(x^\star(\theta))` changes with θ.

:math:`x^\star(\theta)` minimizes the inner problem on the training data, f is the loss on others (a
:class:`course_lib.functionals.Functional` with value and gradient: ``least_squares(B, y_val)``). In
the regularization problems here :math:`\theta=\ln\lambda`, so that λ stays positive. Keep three
sets of data apart: training for x, validation for θ, test for what is reported.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device, is_torch_array

from . import implicit, proximal
from .arrays import (
    Array,
    as_count,
    as_real,
    as_scalar,
    asarray_like,
    check_alike,
    detach,
    inner,
    norm,
    require,
    shape_of,
    to_float,
    to_numpy,
    zeros,
)
from .functionals import Functional
from .iterate import Result, StoppingRule, residual_rule, run
from .linear import cg
from .operators import (
    LinearOperator,
    _response,
    _with_data,
    as_operator,
    diagonal,
    identity,
)

__all__ = [
    "Hypergradient",
    "Inner",
    "descend",
    "elastic_net",
    "evidence",
    "experts",
    "federated",
    "lasso",
    "newton_cg",
    "newton_rule",
    "ode",
    "tikhonov",
    "tikhonov_fourier",
    "unrolled",
]


@dataclass(frozen=True)
class Hypergradient:
    r"""An outer loss, its derivative, and what they were computed from.

    Attributes
    ----------
    value : float
        :math:`J(\theta)`.
    gradient : array
        :math:`dJ/d\theta`, the shape of θ.
    x : array
        The inner solution.
    adjoint : array
        ψ, the solution of the adjoint system; the start for the next one.
    steps : tuple of int
        Inner and adjoint iterations; 0 for direct solves.
    bound : float or None
        How far the gradient may be off, from the residuals (:func:`implicit.error_bound`), where
        the constants are known; rounding apart.
    margin : float or None
        Of ℓ1 problems: how strictly the entries off the support are optimal,
        :math:`\min_{j\notin S}(1-|a_j^\top r|/\lambda)`. At 0 the solution has a kink.
    """

    value: float
    gradient: Array
    x: Array
    adjoint: Array
    steps: tuple[int, int] = (0, 0)
    bound: float | None = None
    margin: float | None = None


def _data(
    A: Any, y: Array, theta: Array, shape: tuple[int, ...] | None = None, name: str = "y"
) -> tuple[LinearOperator, Array, Array]:
    """Return operator, data and hyperparameters, checked and without a graph."""
    A, y = _with_data(A, y, name)
    # Of NumPy's 0-d arrays arithmetic makes numbers.
    theta = np.asarray(theta) if isinstance(theta, np.generic) else theta
    theta = as_real(theta, "theta", shape=shape)
    check_alike(theta, "theta", y, name)
    return A, detach(y), detach(theta)


def _weights(theta: Array) -> Array:
    r"""Return :math:`\lambda=e^\theta`, positive and finite."""
    xp = array_namespace(theta)
    with np.errstate(over="ignore"):
        lam = xp.exp(theta)
    if not (bool(xp.all(lam > 0)) and bool(xp.all(xp.isfinite(lam)))):
        raise ValueError(
            "theta must be ln(lambda), lambda positive and finite: got theta from "
            f"{to_float(xp.min(theta)):.3g} to {to_float(xp.max(theta)):.3g}"
        )
    return lam


def _outer(outer: Functional) -> Functional:
    require(
        getattr(outer, "gradient", None) is not None,
        "outer must be a functional with value and gradient, least_squares(B, y_val) for "
        f"instance: got {type(outer).__name__}",
    )
    return outer


# ------------------------------------------------------------------------------------------------
# Quadratic inner problems


def _slope(outer: Functional, x: Array) -> Array:
    g = detach(outer.gradient(x))
    return as_real(g, "the gradient of the outer loss", shape=tuple(x.shape), like=x)


def _check(start: Hypergradient | None) -> None:
    require(
        start is None or isinstance(start, Hypergradient),
        f"start must be a Hypergradient, of a theta nearby: got {type(start).__name__}",
    )


def _loss(outer: Functional, x: Array) -> float:
    return as_scalar(detach(outer(x)), "the outer loss")


def _penalties(D: Any, theta: Array, shape: tuple) -> list[tuple[Array, LinearOperator]]:
    """Return pairs of weight and operator with penalty ½Σ‖√w D x‖²."""
    weights, many = _weights(theta), isinstance(D, (list, tuple))
    operators = [
        identity(shape) if each is None else as_operator(each) for each in (D if many else [D])
    ]
    for each in operators:
        require(each.in_shape == shape, f"D must take x: expected {shape}, got {each.in_shape}")
        check_alike(theta, "theta", each.like, each.name)
    allowed = ((len(operators),),) if many else ((), operators[0].out_shape)
    rule = "an entry for each D" if many else "no entries, or one for each entry of Dx"
    require(
        tuple(theta.shape) in allowed,
        f"theta must have {rule}: expected {allowed}, got {tuple(theta.shape)}",
    )
    return [(weights[j, ...] if many else weights, each) for j, each in enumerate(operators)]


def _normal(A: LinearOperator, pairs: list, like: Array) -> LinearOperator:
    r"""Return :math:`H=A^\top A+\sum_jD_j^\top W_jD_j`."""
    # The parts are known to fit: what `@` would check each time is left out.
    gram = lambda v: A.adjoint(A.apply(v))  # noqa: E731
    if A.shift_invariant and A.in_shape == A.out_shape:
        # AᵀA is a convolution too: two transforms in the place of four.
        fft, power = array_namespace(like).fft, abs(_spectrum(A, A.in_shape, like)) ** 2
        shape, axes = A.in_shape, tuple(range(like.ndim))
        gram = lambda v: fft.irfftn(power * fft.rfftn(v), s=shape, axes=axes)  # noqa: E731

    def apply(v: Array) -> Array:
        total = gram(v)
        for w, D in pairs:
            total = total + D.adjoint(w * D.apply(v))
        return total

    return LinearOperator(apply, apply, A.in_shape, A.in_shape, "H", like=like)


def _solved(
    H: LinearOperator, b: Array, x0: Array | None, rtol: float, max_iter: int, what: str
) -> tuple[Array, int]:
    """Solve Hx = b to a relative residual of rtol, or to what rounding allows; else say so.

    Of the last state only x is returned, so that the other images are free for the next system.
    """
    eps, size = float(array_namespace(b).finfo(b.dtype).eps), to_float(norm(b))
    stop = residual_rule(H, b, rtol=max(as_scalar(rtol, "rtol", positive=True), 10 * eps))
    # A start that is far away leaves rounding errors of its own size: then once more from zero.
    for first in [None] if x0 is None or size == 0 else [x0, None]:
        found = run(cg(H, b, first), stop=stop, max_iter=max_iter)
        if found.converged:
            return detach(found.x), found.iterations
    # A backward stable solver leaves a residual of eps ‖H‖‖x‖.
    allowed = 100 * eps * implicit._ritz_values(H, b).max() * to_float(norm(found.x))
    require(
        to_float(norm(b - H @ found.x)) <= allowed,
        f"the {what} system must be solved to rtol = {rtol}: {found.reason}",
    )
    return detach(found.x), found.iterations


def _both(
    H: LinearOperator,
    A: LinearOperator,
    y: Array,
    outer: Functional,
    start: Hypergradient | None,
    rtol: float,
    max_iter: int,
    plain: bool,
) -> tuple[Array, Array, Array, tuple[int, int]]:
    r"""Solve Hx = b = Aᵀy and Hψ = v = ∇f(x): x, v, ψ and the iterations.

    A step of inverse iteration takes v to ψ, so ‖v‖/‖ψ‖ is near the smallest eigenvalue μ, and a
    residual of rtol ‖b‖ may put x off by rtol ‖b‖/μ. Unless that is below √rtol ‖x‖, both are
    solved again. (A plain one, D = I, needs no such care: all residuals lie in the range of Aᵀ.)
    """
    _check(start)
    x, psi = (None, None) if start is None else (start.x, start.adjoint)
    goal, floor = rtol**0.5, 10 * float(array_namespace(y).finfo(y.dtype).eps)
    steps = (0, 0)
    while True:
        # No name for b: an image that nothing needs any more.
        x, k_fwd = _solved(H, A.H @ y, x, rtol, max_iter, "inner")
        v = _slope(outer, x)
        psi, k_adj = _solved(H, v, psi, rtol, max_iter, "adjoint")
        steps = (steps[0] + k_fwd, steps[1] + k_adj)
        if plain or to_float(norm(v)) * to_float(norm(x)) == 0:
            return x, v, psi, steps
        inverse = to_float(norm(psi)) / to_float(norm(v))
        condition = implicit._ritz_values(H, v, 5).max() * inverse
        growth = to_float(norm(A.H @ y)) * inverse / to_float(norm(x))
        require(
            floor * max(10 * growth, 0.1 * condition) <= 1,
            "A and D must determine x together: the normal matrix is singular to rounding (its "
            f"condition number is about {condition:.0e}), theta is too small or too large",
        )
        if rtol * growth <= goal or rtol <= floor:
            return x, v, psi, steps
        rtol = max(0.5 * goal / growth, floor)


def tikhonov(
    A: Any,
    y: Array,
    theta: Array,
    outer: Functional,
    *,
    D: Any = None,
    start: Hypergradient | None = None,
    rtol: float = 1e-10,
    max_iter: int = 10_000,
    lip_outer: float | None = None,
) -> Hypergradient:
    r"""Hypergradient of Tikhonov's method; one adjoint system for any number of hyperparameters.

    .. math::
        x_\theta=\arg\min_x\tfrac12\|Ax-y\|^2+\tfrac12\sum_je^{\theta_j}\|D_jx\|^2,\qquad
        H\psi=\nabla f(x_\theta),\qquad
        \frac{dJ}{d\theta_j}=-e^{\theta_j}\langle D_j\psi,D_jx_\theta\rangle .

    Both systems have the matrix :math:`H=A^\top A+\sum_je^{\theta_j}D_j^\top D_j`; conjugate
    gradients use it through products. For noise with a covariance pass ``W @ A`` and ``W @ y`` with
    W = :func:`course_lib.operators.whitening`, and the weights of the other set to the outer loss.

    Parameters
    ----------
    A : LinearOperator or array
    y : array
        Training data.
    theta : array
        :math:`\ln\lambda`: of shape () with one D, of shape (p,) with a list of p operators, or of
        the shape of Dx: one weight for each of its entries.
    outer : Functional
        Loss on the validation data, with gradient.
    D : LinearOperator, array or list of them, optional
        None is the identity, also in a list.
    start : Hypergradient, optional
        Of a θ nearby: both systems start at its solutions.
    rtol : float
        Relative residual of both systems, or what rounding allows. With D other than I they are
        solved to less where x would be off by more than :math:`\sqrt{\rm rtol}\,\|x\|`, as far as
        ψ tells.
    lip_outer : float, optional
        Lipschitz constant of the gradient of ``outer`` (:math:`\|B\|^2`); with it, and D = I, the
        result has a bound of its error.

    Raises
    ------
    ValueError
        If shapes do not fit, a system is not solved in ``max_iter`` steps, or (D other than I) is
        singular to rounding.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import least_squares
    >>> one = np.eye(1)
    >>> found = tikhonov(one, np.array([2.0]), np.array(0.0), least_squares(one, np.array([1.5])))
    >>> found.value, found.gradient  # x = 2/(1 + lam), lam = 1
    (0.125, array(0.25))
    """
    A, y, theta = _data(A, y, theta)
    pairs, outer = _penalties(D, theta, A.in_shape), _outer(outer)
    H, xp = _normal(A, pairs, y), array_namespace(y)
    rtol, plain = as_scalar(rtol, "rtol", positive=True), D is None and theta.ndim == 0
    as_scalar(lip_outer or 0.0, "lip_outer", minimum=0.0)
    x, v, psi, steps = _both(H, A, y, outer, start, rtol, max_iter, plain)
    slopes, bound = [-detach(w * (each @ psi) * (each @ x)) for w, each in pairs], None
    if isinstance(D, (list, tuple)):
        gradient = xp.stack([xp.sum(slope) for slope in slopes])
    else:
        gradient = slopes[0] if theta.ndim else xp.asarray(xp.sum(slopes[0]))
    if lip_outer is not None and D is None:
        lam = pairs[0][0]
        bound = implicit.error_bound(
            to_float(norm(H @ x - A.H @ y)),
            to_float(norm(H @ psi - v)),
            mu=to_float(xp.min(lam)),
            adjoint_norm=to_float(norm(psi)),
            F_theta_norm=to_float(xp.max(lam)) * to_float(norm(x)),
            lip_F_theta=to_float(xp.max(lam)),
            lip_grad=lip_outer,
        )
    return Hypergradient(_loss(outer, x), gradient, x, psi, steps, bound)


def tikhonov_fourier(
    A: LinearOperator, y: Array, B: LinearOperator, y_val: Array, *, D: LinearOperator | None = None
) -> Callable[[float], tuple[float, float]]:
    r"""Return :math:`\theta\mapsto(J,dJ/d\theta)` of Tikhonov's method for periodic convolutions.

    The Fourier transform diagonalizes A, B and D. With its values a, b, d (and
    :math:`h=|a|^2+e^\theta|d|^2`), Parseval's identity turns the loss
    :math:`\tfrac12\|Bx_\theta-y_{\rm val}\|^2` into sums over frequencies:

    .. math::
        J=\frac1{2N}\sum\frac{|b\bar a\hat y|^2}{h^2}-\frac{2\operatorname{Re}
        (b\bar a\hat y\,\overline{\hat y_{\rm val}})}{h}+|\hat y_{\rm val}|^2 .

    The transforms are taken once; each θ costs a few operations a frequency. The loss is accurate
    to :math:`\mathrm{eps}_{\rm mach}\|y_{\rm val}\|^2` where :math:`e^\theta|d|^2` is not small
    against the rounding of :math:`|a|^2`.

    Raises
    ------
    ValueError
        If an operator is no periodic convolution, a frequency is unseen by A and D, or the result
        is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.operators import identity, convolution
    >>> A = convolution(np.array([0.25, 0.5, 0.25]), (8,), boundary="periodic")
    >>> J = tikhonov_fourier(A, np.ones(8), A, np.ones(8))
    >>> [round(number, 6) for number in J(0.0)]  # x = 1/2 everywhere
    [1.0, 1.0]
    """
    A, y, _ = _data(A, y, y)
    B, y_val, _ = _data(B, y_val, y, name="y_val")
    xp = array_namespace(y)
    half, last = A.in_shape[-1] // 2 + 1, A.in_shape[-1]
    # Frequencies that the half spectrum holds once and the full one twice.
    twice = asarray_like(2.0 - np.isin(np.arange(half), [0, last / 2]), y)
    a, b, d = (
        _spectrum(operator, A.in_shape, y)
        for operator in (A, B, identity(A.in_shape) if D is None else D)
    )
    z = b * xp.conj(a) * xp.fft.rfftn(y)
    share = twice / math.prod(A.in_shape)
    power, penalty, u = xp.abs(a) ** 2, xp.abs(d) ** 2, share * xp.abs(z) ** 2
    s = share * xp.real(z * xp.conj(xp.fft.rfftn(y_val)))
    require(
        to_float(xp.min(power + penalty)) > 0,
        "every frequency must be seen by A or D: one is seen by neither",
    )
    # Where A sees nothing, x is 0, whatever θ is.
    power, penalty, u, s = (each[power > 0] for each in (power, penalty, u, s))
    constant = 0.5 * to_float(inner(y_val, y_val))

    def of_theta(theta: float) -> tuple[float, float]:
        lam = to_float(_weights(asarray_like(as_scalar(theta, "theta"), y)))
        g = 1 / (power + lam * penalty)
        ug = u * g
        value = to_float(0.5 * inner(ug, g) - inner(s, g)) + constant
        # The first factor is at most 1, so that nothing overflows before it is multiplied.
        slope = to_float(inner(lam * penalty * g, g * (s - ug)))
        return as_scalar(value, "the loss"), as_scalar(slope, "its derivative")

    return of_theta


def _spectrum(operator: Any, shape: tuple[int, ...], like: Array) -> Array:
    """Return the values by which a convolution multiplies the frequencies."""
    operator = as_operator(operator)
    require(
        operator.shift_invariant and operator.in_shape == operator.out_shape == shape,
        f"{operator.name} must be a periodic convolution on the shape {shape}: got "
        f"{operator.in_shape} -> {operator.out_shape}",
    )
    return array_namespace(like).fft.rfftn(_response(operator, like))


def evidence(
    A: Any, y: Array, theta: Array, *, noise_std: float, D: Any = None
) -> tuple[float, Array]:
    r"""Return :math:`-\ln p(y|\theta)` and its gradient, for :math:`x\sim N(0,Q^{-1})`, dense.

    With :math:`Q=\sum_je^{\theta_j}D_j^\top D_j` (prior precisions, :math:`e^{\theta_j}`, not the λ
    of Tikhonov's functional, which is :math:`\sigma_e^2` times as large) and
    :math:`\tilde H=A^\top A/\sigma_e^2+Q`,

    .. math::
        -\ln p=\tfrac1{2\sigma_e^2}\|Ax-y\|^2+\tfrac12x^\top Qx+\tfrac12\ln\det\tilde H
        -\tfrac12\ln\det Q+\tfrac m2\ln2\pi\sigma_e^2,\qquad
        \partial_j=\tfrac12e^{\theta_j}\bigl(\|D_jx\|^2+\operatorname{tr}\tilde H^{-1}D_j^\top D_j
        -\operatorname{tr}Q^{+}D_j^\top D_j\bigr).

    x minimizes the first two terms, so that its own change does not enter. Where Q has a null
    space, det is the product of the other eigenvalues: an improper prior.

    Parameters
    ----------
    theta : array of shape () with one D, of shape (p,) with a list of p matrices

    Examples
    --------
    >>> import numpy as np
    >>> value, slope = evidence(np.eye(1), np.array([1.0]), np.array(0.0), noise_std=1.0)
    >>> round(value, 6), round(float(slope), 6)  # y is normal with variance 2
    (1.515512, -0.125)
    """
    A, y, theta = _data(A, y, theta)
    noise_std = as_scalar(noise_std, "noise_std", positive=True)
    n = math.prod(A.in_shape)
    M, data = to_numpy(A.to_dense(like=y)), to_numpy(y).ravel()
    require(
        theta.ndim == 0 or isinstance(D, (list, tuple)),
        f"theta must be one number: expected shape (), got {tuple(theta.shape)}",
    )
    pairs = _penalties(D, theta, A.in_shape)
    roots = [to_float(w) ** 0.5 * to_numpy(each.to_dense(like=y)) for w, each in pairs]
    # Singular values of the roots of Q and H: those of Q and H would lose half of the digits.
    R = np.vstack(roots)
    U, h, W = np.linalg.svd(np.vstack([M / noise_std, R]), full_matrices=False)
    _, q, V = np.linalg.svd(R, full_matrices=False)
    tiny = n * np.finfo(float).eps
    require(
        len(h) == n and h[-1] > tiny * h[0],
        "A and D must have no null vector in common (or theta is too small): the normal matrix "
        f"is singular to rounding, condition number above {tiny**-2:.0e}",
    )
    known = np.append(data / noise_std, np.zeros(len(R)))
    x, kept = W.T @ (U.T @ known / h), q > tiny * q[0]
    misfit = np.linalg.norm(known - np.vstack([M / noise_std, R]) @ x)
    value = 0.5 * misfit**2 + np.log(h).sum() - np.log(q[kept]).sum()
    value += len(data) * (math.log(noise_std) + 0.5 * math.log(2 * math.pi))
    slope = [
        np.linalg.norm(E @ x) ** 2
        + np.linalg.norm(E @ (W.T / h)) ** 2
        - np.linalg.norm(E @ (V[kept].T / q[kept])) ** 2
        for E in roots
    ]
    return float(value), asarray_like(0.5 * np.array(slope).reshape(tuple(theta.shape)), theta)


# ------------------------------------------------------------------------------------------------
# Sparse inner problems


def lasso(
    A: Any,
    y: Array,
    theta: Array,
    outer: Functional,
    *,
    start: Hypergradient | None = None,
    rtol: float | None = None,
) -> Hypergradient:
    r"""Hypergradient of the LASSO in :math:`\theta=\ln\lambda`: one system on the support.

    .. math::
        A_S^\top A_S\psi_S=\nabla f(x_\lambda)_S,\qquad
        \frac{dJ}{d\theta}=-\lambda\,\xi_S^\top\psi_S,\qquad\xi_S=\operatorname{sign}x_S .

    Valid where the columns of the support are independent and every other entry is strictly
    optimal, :math:`|a_j^\top(y-Ax)|<\lambda`. ``margin`` says how strictly; where it is 0, J has a
    kink and this is the derivative on one side.

    Parameters
    ----------
    A : LinearOperator or array
    y : array
    theta : array of shape ()
    outer : Functional
    start : Hypergradient, optional
        Of a θ nearby.
    rtol : float, optional
        Relative duality gap of the inner solution, see :func:`course_lib.proximal.lasso`. If not
        given, what is given there, or what rounding leaves, 3 eps λmax/λ, up to 1e-4.

    Raises
    ------
    ValueError
        If the inner problem is not solved to its gap, or the columns of the support are dependent.

    References
    ----------
    Bertrand et al. (2022), Journal of Machine Learning Research 23(149).

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import least_squares
    >>> one, y = np.eye(2), np.array([3.0, 0.1])
    >>> found = lasso(one, y, np.array(0.0), least_squares(one, np.array([2.5, 0.0])))
    >>> found.x, round(float(found.gradient), 9), found.margin  # x = soft(y, 1)
    (array([2., 0.]), 0.5, 0.9)
    """
    A, y, theta = _data(A, y, theta, ())
    lam = to_float(_weights(theta))
    _check(start)
    rtol = _gap(A, y, lam) if rtol is None else rtol
    found = proximal.lasso(A, y, lam, None if start is None else start.x, rtol=rtol)
    both = _on_support(A, y, found, lam, 0.0, _outer(outer))
    return replace(both, gradient=both.gradient[0, ...])


def elastic_net(
    A: Any,
    y: Array,
    theta: Array,
    outer: Functional,
    *,
    start: Hypergradient | None = None,
    rtol: float | None = None,
) -> Hypergradient:
    r"""Hypergradient of the elastic net in :math:`\theta=(\ln\lambda_1,\ln\lambda_2)`.

    .. math::
        (A_S^\top A_S+\lambda_2I)\psi_S=\nabla f(x)_S,\qquad
        \frac{dJ}{d\theta}=-(\lambda_1\xi_S^\top\psi_S,\ \lambda_2x_S^\top\psi_S) .

    The system is invertible for every :math:`\lambda_2>0`. Arguments, conditions and errors as in
    :func:`lasso`; θ has the shape (2,).

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import least_squares
    >>> one, y = np.eye(1), np.array([3.0])
    >>> found = elastic_net(one, y, np.zeros(2), least_squares(one, np.array([0.0])))
    >>> found.x, found.gradient  # x = (3 - lam1)/(1 + lam2)
    (array([1.]), array([-0.5, -0.5]))
    """
    A, y, theta = _data(A, y, theta, (2,))
    lam1, lam2 = (to_float(lam) for lam in _weights(theta))
    _check(start)
    rtol = _gap(A, y, lam1) if rtol is None else rtol
    found = proximal.elastic_net(A, y, lam1, lam2, None if start is None else start.x, rtol=rtol)
    return _on_support(A, y, found, lam1, lam2, _outer(outer))


def _gap(A: LinearOperator, y: Array, lam: float) -> float:
    xp = array_namespace(y)
    eps, largest = float(xp.finfo(y.dtype).eps), to_float(xp.max(xp.abs(A.H @ y)))
    return max(1e-10 if y.dtype == xp.float64 else 1e-5, min(3 * eps * largest / lam, 1e-4))


def _on_support(
    A: LinearOperator, y: Array, found: Any, lam1: float, lam2: float, outer: Functional
) -> Hypergradient:
    """Return the hypergradient by both weights, from a sparse solution; ψ is 0 off its support."""
    require(found.converged, f"the inner problem must be solved: {found.reason}")
    xp, x = array_namespace(y), found.x
    S = np.flatnonzero(to_numpy(x).ravel())
    off = np.delete(np.abs(to_numpy(found.state.c)).ravel(), S)
    margin = float(1 - off.max() / lam1) if off.size else 1.0
    psi = _support_adjoint(A, x, S, lam2, _slope(outer, x)) if len(S) else 0 * x
    gradient = -xp.stack([lam1 * inner(xp.sign(x), psi), lam2 * inner(x, psi)])
    steps = (found.iterations, 0)
    return Hypergradient(_loss(outer, x), gradient, x, psi, steps, None, margin)


def _support_adjoint(A: LinearOperator, x: Array, S: np.ndarray, lam2: float, v: Array) -> Array:
    r"""Return ψ with :math:`(A_S^\top A_S+\lambda_2I)\psi_S=v_S`, zero off S."""
    xp = array_namespace(x)
    if A.matrix is None:
        eye = identity(A.in_shape)
        return implicit.support_vjp(A.H @ A + lam2 * eye, -eye, xp.abs(xp.sign(x)), v)
    from scipy.linalg import cho_solve, lapack

    columns = to_numpy(xp.take(A.matrix, xp.asarray(S, device=device(x)), axis=1))
    gram, psi = columns.T @ columns + lam2 * np.eye(len(S)), np.zeros(math.prod(A.in_shape))
    factor, failed = lapack.dpotrf(gram, lower=1)
    # A pivot is the squared distance of a column from those before it.
    pivots = np.diag(factor) ** 2 / np.diag(gram)
    require(
        not failed and pivots.min() > 10 * len(S) * np.finfo(float).eps,
        "the columns of the support must be independent: they are not",
    )
    psi[S] = cho_solve((factor, True), to_numpy(v)[S])
    return asarray_like(psi, x)


# ------------------------------------------------------------------------------------------------
# Unrolling


def unrolled(
    step: Callable[..., Array],
    x0: Array,
    theta: Array,
    steps: int,
    outer: Functional,
    *,
    linearize: Callable[..., tuple[Any, Any]] | None = None,
    last: int | None = None,
    slots: int | None = None,
) -> Hypergradient:
    r"""Hypergradient of K steps :math:`x_{k+1}=T_k(x_k,\theta)`: backwards through all of them.

    .. math::
        \psi_K=\nabla f(x_K),\qquad\psi_k=(T_k)_x^\top\psi_{k+1},\qquad
        \frac{dJ_K}{d\theta}=\sum_k(T_k)_\theta^\top\psi_{k+1} .

    This is the exact derivative of :math:`J_K(\theta)=f(x_K(\theta))`, not of
    :math:`f(x^\star(\theta))`. It keeps K states, or ``slots`` of them and computes the others
    again (binomial checkpoints). ``last`` stops early: only the last steps are differentiated.

    Parameters
    ----------
    step : callable
        ``step(x, theta, k)`` returns the next x.
    x0 : array
    theta : array
    steps : int
        K.
    outer : Functional
    linearize : callable, optional
        ``linearize(x, theta, k)`` returns :math:`(T_x,T_\theta)` as operators or matrices. For
        torch it is not needed.
    last : int, optional
        All if not given; 1 is the one-step estimate.
    slots : int, optional
        Number of states that are kept at a time, the start included; all if not given.

    Returns
    -------
    Hypergradient
        Its ``adjoint`` is the derivative by x0 (by the first state that was differentiated, with
        ``last``), its ``steps`` count evaluations of T and of its derivative.

    Raises
    ------
    ValueError
        If the last state is not finite or of another shape, or NumPy arrays come without
        ``linearize``.

    References
    ----------
    Griewank and Walther (2000), ACM Trans. Math. Softw. 26, 19-45 (checkpoints).

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import least_squares
    >>> half = np.array([[0.5]])
    >>> found = unrolled(
    ...     lambda x, theta, k: x / 2 + theta, np.zeros(1), np.ones(1), 2,
    ...     least_squares(None, np.array([0.5])), linearize=lambda *_: (half, np.eye(1)),
    ... )
    >>> found.x, found.gradient  # x_2 = 3/2 theta
    (array([1.5]), array([1.5]))
    """
    x0, theta = as_real(x0, "x0"), as_real(theta, "theta")
    check_alike(x0, "x0", theta, "theta")
    steps = as_count(steps, "steps", minimum=1)
    last = steps if last is None else as_count(last, "last", minimum=1, maximum=steps)
    slots = last if slots is None else as_count(slots, "slots", minimum=1)
    outer, derivatives, xp = _outer(outer), linearize or _by_torch(step, theta), array_namespace(x0)
    x0, theta, taken, first, ends = detach(x0), detach(theta), [0], steps - last, []

    def advance(x: Array, first: int, end: int) -> Array:
        for k in range(first, end):
            # A copy: kept states stay what they are, also where a step works in place.
            x = detach(step(xp.asarray(x, copy=True), theta, k))
        taken[0] += end - first
        return x

    def back(x: Array, k: int, psi: Array, gradient: Array) -> tuple[Array, Array]:
        T_x, T_theta = derivatives(x, theta, k)
        return as_operator(T_x).H @ psi, gradient + _by_theta(as_operator(T_theta), psi, theta)

    def turn(x: Array) -> tuple[Array, Array]:
        ends.append(as_real(x, f"the iterate x_{steps}", shape=tuple(x0.shape)))
        return _slope(outer, x), 0 * theta

    psi, gradient = _backwards(advance, back, turn, advance(x0, 0, first), first, steps, slots)
    gradient = as_real(xp.asarray(gradient), "the hypergradient")
    return Hypergradient(_loss(outer, ends[0]), gradient, ends[0], psi, (taken[0], last))


def _by_theta(T_theta: LinearOperator, psi: Array, theta: Array) -> Array:
    """Return what the adjoint makes of ψ, in the shape of θ: a matrix knows no 0-d arrays."""
    require(
        math.prod(T_theta.in_shape) == math.prod(theta.shape),
        "linearize must return derivatives by x and theta: expected "
        f"{tuple(theta.shape)} for theta, got {T_theta.in_shape}",
    )
    return array_namespace(psi).reshape(T_theta.H @ psi, tuple(theta.shape))


def _backwards(
    advance: Callable, back: Callable, turn: Callable, x: Array, first: int, end: int, slots: int
) -> tuple[Array, Array]:
    """Take (ψ, gradient) from the last state, where they are ``turn(x)``, to ``first``.

    Its state x is kept in one slot; the others are filled on the way to the end, and once more
    each time that a stretch behind the last of them is done.
    """
    kept, found = [(first, x)], None
    while kept:
        k, x = kept[-1]
        free = slots - len(kept)
        if end - k > 1 and free > 0:
            middle = k + _split(end - k, free + 1)
            kept.append((middle, advance(x, k, middle)))
        else:
            for j in range(end - 1, k - 1, -1):
                state = advance(x, k, j)
                found = back(state, j, *(found or turn(advance(state, j, j + 1))))
                del state  # the next one is computed before this name is given to it
            end, _ = kept.pop()
    return found


def _split(length: int, slots: int) -> int:
    """Return how far to go before the next checkpoint, by the binomial rule."""
    if slots >= length:
        return 1
    repeats = _repeats(length, slots)
    least = math.comb(slots + repeats - 2, slots) if repeats > 1 else 1
    return max(1, least, length - math.comb(slots - 1 + repeats, slots - 1))


def _repeats(length: int, slots: int) -> int:
    """Return how often a step is computed again at most, by the binomial rule."""
    return next(r for r in count() if math.comb(slots + r, slots) >= length)


def _by_torch(step: Callable, theta: Array) -> Callable:
    require(
        is_torch_array(theta), "NumPy arrays need linearize: the derivatives of a step, by hand"
    )
    return lambda x, theta, k: implicit.linearize(lambda x, theta: step(x, theta, k), x, theta)


# ------------------------------------------------------------------------------------------------
# Smooth inner problems


@dataclass(frozen=True)
class Inner:
    r"""A smooth inner problem at one θ: :math:`g(x,\theta)` and its derivatives.

    Attributes
    ----------
    value : callable
        :math:`x\mapsto g(x,\theta)`.
    gradient : callable
        :math:`x\mapsto\nabla_xg`.
    hessian : callable
        :math:`x\mapsto g_{xx}`, a LinearOperator.
    cross : callable
        :math:`x\mapsto g_{x\theta}`, a LinearOperator from θ to x: with
        :func:`course_lib.implicit.root_vjp` the hypergradient.
    """

    value: Callable[[Array], Array]
    gradient: Callable[[Array], Array]
    hessian: Callable[[Array], LinearOperator]
    cross: Callable[[Array], LinearOperator] | None = None


class NewtonState(NamedTuple):
    """Iterate, negative gradient, value, and steps of conjugate gradients so far."""

    x: Array
    r: Array
    value: float
    steps: int


def newton_cg(g: Inner, x0: Array) -> Iterator[NewtonState]:
    r"""Newton's method with conjugate gradients, for a smooth convex g.

    .. math:: g_{xx}(x_k)\,d\approx-\nabla g(x_k),\qquad x_{k+1}=x_k+td

    to a relative residual of :math:`\min(\tfrac12,\|\nabla g\|^{1/2})`, with t halved until
    :math:`g(x+td)\le g(x)+10^{-4}t\langle\nabla g,d\rangle`.

    References
    ----------
    Nocedal and Wright (2006), Numerical Optimization, on inexact Newton methods.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.operators import matrix
    >>> H = matrix(np.diag([1.0, 4.0]))
    >>> g = Inner(lambda x: x @ (H @ x) / 2 - x.sum(), lambda x: H @ x - 1, lambda x: H)
    >>> [state.x.round(6) for state, _ in zip(newton_cg(g, np.zeros(2)), range(2))][-1]
    array([1.  , 0.25])
    """
    x = detach(as_real(x0, "x0"))

    def iterate(x: Array) -> Iterator[NewtonState]:
        r, value, steps = -g.gradient(x), as_scalar(detach(g.value(x)), "g at the start"), 0
        eps = float(array_namespace(x).finfo(x.dtype).eps)
        while True:
            yield NewtonState(x, r, value, steps)
            size = to_float(norm(r))
            if size == 0:
                return "the gradient is exactly zero"
            H = g.hessian(x)
            stop = residual_rule(H, r, rtol=min(0.5, size**0.5))
            found = run(cg(H, r), stop=stop, max_iter=200)
            d, t, steps = detach(found.x), 1.0, steps + found.iterations
            slope, floor = to_float(inner(r, d)), 5 * eps * abs(value)
            # Where g is not a number, the step is too long as well.
            while not to_float(g.value(x + t * d)) <= value - 1e-4 * t * slope + floor:
                t /= 2
                if t <= 1e-10:
                    break
            r = -g.gradient(x + t * d)
            # Where rounding hides the decrease of g, its gradient must become smaller.
            stuck = 1e-4 * slope <= floor and to_float(norm(r)) >= size
            if t <= 1e-10 or slope <= 0 or stuck:
                return "no step lowers the value: rounding, or g is not convex"
            x = x + t * d
            value = to_float(g.value(x))

    return iterate(x)


def newton_rule(g: Inner, x0: Array, *, rtol: float) -> StoppingRule:
    r"""Stop when :math:`\|\nabla g(x)\|\le\mathrm{rtol}\max(\|\nabla g(x_0)\|,1)`.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.operators import matrix
    >>> g = Inner(lambda x: x @ x / 2, lambda x: x, lambda x: matrix(np.eye(1)))
    >>> run(newton_cg(g, np.ones(1)), stop=newton_rule(g, np.ones(1), rtol=1e-9), max_iter=9).x
    array([0.])
    """
    scale = max(to_float(norm(g.gradient(as_real(x0, "x0")))), 1.0)
    return StoppingRule(
        measure=lambda state: to_float(norm(state.r)),
        verify=lambda state: to_float(norm(g.gradient(state.x))),
        bound=as_scalar(rtol, "rtol", minimum=0.0) * scale,
        name="gradient norm",
    )


def experts(A: Any, y: Array, theta: Array, *, eps: float = 0.01) -> Inner:
    r"""Return the inner problem of learned filters, a convex field of experts.

    .. math::
        g(x,\theta)=\tfrac12\|Ax-y\|^2+\sum_i\sum_p\phi\bigl((\theta_i*x)_p\bigr),\qquad
        \phi(s)=\sqrt{s^2+\mathrm{eps}^2}-\mathrm{eps} .

    A filter's size is its weight. Convolutions are periodic, with the taps of a filter centred.

    Parameters
    ----------
    A : LinearOperator on pictures, or None
        None stands for the identity.
    y : array
    theta : array, shape (p, h, w)
        p filters; h and w odd.
    eps : float
        Where φ turns from a square into an absolute value.

    References
    ----------
    Roth and Black (2009), Int. J. Comput. Vis. 82, 205-229; Kunisch and Pock (2013), SIAM J.
    Imaging Sci. 6, 938-983.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.operators import identity
    >>> g = experts(identity((4, 4)), np.ones((4, 4)), np.zeros((1, 3, 3)))
    >>> float(g.value(np.zeros((4, 4))))
    8.0
    """
    A = identity(tuple(as_real(y, "y").shape)) if A is None else A
    A, y, theta = _data(A, y, theta)
    require(
        theta.ndim == 3 and all(size % 2 for size in theta.shape[1:]) and len(A.in_shape) == 2,
        "theta must hold filters with an odd number of taps each way, for pictures: got "
        f"{tuple(theta.shape)} for x of shape {A.in_shape}",
    )
    eps, xp = as_scalar(eps, "eps", positive=True), array_namespace(y)
    taps, many = tuple(theta.shape), (theta.shape[0], *A.in_shape)
    K = LinearOperator(
        lambda x: _filtered(theta, x), lambda z: _to_picture(theta, z), A.in_shape, many, like=y
    )

    def root(s: Array) -> Array:
        return xp.sqrt(s * s + eps**2)

    def value(x: Array) -> Array:
        return 0.5 * norm(A @ x - y) ** 2 + xp.sum(root(K @ x) - eps)

    def gradient(x: Array) -> Array:
        s = K @ x
        return A.H @ (A @ x - y) + K.H @ (s / root(s))

    def curved(x: Array) -> LinearOperator:
        return K.H @ diagonal(eps**2 / root(K @ x) ** 3)

    def cross(x: Array) -> LinearOperator:
        # θ * x changes with θ, and so does the adjoint of x ↦ θ * x, at the slopes of φ.
        slope = (K @ x) / root(K @ x)
        by_taps = LinearOperator(
            lambda t: _filtered(t, x), lambda z: _to_taps(taps, z, x), taps, many, like=y
        )
        return curved(x) @ by_taps + LinearOperator(
            lambda t: _to_picture(t, slope), lambda v: _to_taps(taps, slope, v), taps, A.in_shape
        )

    return Inner(value, gradient, lambda x: A.H @ A + curved(x) @ K, cross)


def _shifts(shape: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Return by how much each tap of a centred filter moves a picture."""
    _, rows, columns = shape
    return [(i - rows // 2, j - columns // 2) for i in range(rows) for j in range(columns)]


def _filtered(theta: Array, x: Array) -> Array:
    r"""Return :math:`\theta_i*x` for all filters, periodic: bilinear in θ and x."""
    xp = array_namespace(x)
    moved = xp.stack([xp.roll(x, shift, axis=(0, 1)) for shift in _shifts(theta.shape)])
    return xp.tensordot(xp.reshape(theta, (theta.shape[0], -1)), moved, axes=1)


def _to_picture(theta: Array, z: Array) -> Array:
    """Return the adjoint of x ↦ θ * x at z."""
    xp = array_namespace(z)
    spread = xp.tensordot(xp.reshape(theta, (theta.shape[0], -1)).T, z, axes=1)
    return sum(
        xp.roll(spread[t, ...], (-i, -j), axis=(0, 1))
        for t, (i, j) in enumerate(_shifts(theta.shape))
    )


def _to_taps(shape: tuple[int, int, int], z: Array, x: Array) -> Array:
    """Return the adjoint of θ ↦ θ * x at z, for filters of this shape."""
    xp = array_namespace(z)
    taps = [xp.sum(z * xp.roll(x, shift, axis=(0, 1)), axis=(1, 2)) for shift in _shifts(shape)]
    return xp.reshape(xp.stack(taps, axis=1), shape)


def federated(
    clients: list[tuple[Inner, Functional]],
    x0: Array,
    *,
    rho: float,
    rtol: float = 1e-8,
    total: Callable[[Array], Array] | None = None,
) -> Hypergradient:
    r"""Hypergradient of :math:`\sum_if_i(x_i)`, each x_i near a shared model x_0.

    .. math::
        x_i=\arg\min_xg_i(x)+\tfrac\rho2\|x-x_0\|^2,\qquad
        (\nabla^2g_i(x_i)+\rho I)\,p_i=\rho\nabla f_i(x_i),\qquad\nabla J(x_0)=\sum_ip_i .

    Each client solves its two problems on its own data and gives one vector away.

    Parameters
    ----------
    clients : list of pairs (g, f)
        Those of this process; with ``total`` there may be none.
    x0 : array
        The shared model.
    rho : float
        :math:`\rho>0`, so large that each problem is convex. That it is not shows only where the
        linear systems meet a direction of negative curvature.
    total : callable, optional
        Adds an array over all processes (:func:`course_lib.autodiff.all_reduce`). It is called once
        in each process, also where a client fails: then all of them raise, and stay in step.

    Returns
    -------
    Hypergradient
        Its ``x`` stacks the models of the clients of this process.

    Raises
    ------
    ValueError
        If a client's problem is not solved, in this process or another.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import least_squares
    >>> from course_lib.operators import matrix
    >>> H = matrix(np.eye(1))
    >>> g = Inner(lambda x: x @ x / 2, lambda x: x, lambda x: H)
    >>> federated([(g, least_squares(None, np.zeros(1)))], np.ones(1), rho=1.0).gradient
    array([0.25])
    """
    x0, rho = detach(as_real(x0, "x0")), as_scalar(rho, "rho", positive=True)
    xp, rtol = array_namespace(x0), as_scalar(rtol, "rtol", positive=True)
    require(
        isinstance(clients, (list, tuple))
        and all(isinstance(pair, tuple) and len(pair) == 2 for pair in clients),
        f"clients must be a list of pairs, inner problem and loss: got {type(clients).__name__}",
    )
    require(clients or total is not None, "clients must be a list of one or more: got none")
    found, problem = [], None
    try:
        found = [_client(g, _outer(f), x0, rho, rtol) for g, f in clients]
    except Exception as error:
        if total is None:
            raise
        problem = error
    steps = tuple(sum(each.steps[i] for each in found) for i in (0, 1))
    gradient, value = sum((each.gradient for each in found), 0 * x0), sum(x.value for x in found)
    if total is not None:
        # One vector: the gradient, the value, and how many processes failed.
        rest = asarray_like(np.array([value, float(problem is not None)]), x0)
        both = total(xp.concat([xp.reshape(gradient, (-1,)), rest]))
        if problem is not None:
            raise problem
        both = as_real(both, "what total returns", shape=(math.prod(x0.shape) + 2,), like=x0)
        require(
            to_float(both[-1]) == 0, "each client must be solved: one of another process failed"
        )
        gradient, value = xp.reshape(both[:-2], x0.shape), to_float(both[-2])
    models = xp.stack([each.x for each in found]) if found else zeros((0, *x0.shape), x0)
    return Hypergradient(value, gradient, models, gradient, steps)


def _client(g: Inner, f: Functional, x0: Array, rho: float, rtol: float) -> Hypergradient:
    as_real(detach(g.gradient(x0)), "a client's gradient", shape=tuple(x0.shape), like=x0)
    slope = lambda x: _slope(f, x)  # noqa: E731
    found, solved, fine, reason = _near(g.gradient, g.hessian, slope, x0, rho, rtol)
    require(fine, f"the problems of each client must be solved: {reason}")
    steps = (found.iterations, solved.iterations)
    return Hypergradient(_loss(f, found.x), solved.x, found.x, solved.x, steps)


class ProxState(NamedTuple):
    """Iterate, and the gradient of the problem."""

    x: Array
    r: Array


def _near(
    gradient: Callable,
    hessian: Callable,
    outer_gradient: Callable,
    x0: Array,
    rho: float,
    rtol: float,
    max_iter: int = 100,
) -> tuple[Result, implicit.Solution, bool, str]:
    r"""Solve both problems of a model that is kept near x_0, given the derivatives of g and f.

    Newton's method with steps halved until the gradient is shorter, and one more linear system:
    what they returned, whether all went well, and in words how.
    """

    # What cannot be seen beside the rounding of the two parts of the gradient.
    eps = 10 * float(array_namespace(x0).finfo(x0.dtype).eps)
    hidden = eps * to_float(norm(implicit.lavrentiev(hessian(x0), rho) @ x0))

    def residual(x: Array) -> Array:
        return gradient(x) + rho * (x - x0)

    def iterate() -> Iterator[ProxState]:
        x, r = x0, residual(x0)
        while True:
            yield ProxState(x, r)
            found = implicit.solve(implicit.lavrentiev(hessian(x), rho), r, rtol=0.1 * rtol)
            t, length = 1.0, to_float(norm(r))
            while not to_float(norm(residual(x - t * found.x))) <= (1 - 1e-4 * t) * length:
                t /= 2
                if t < 1e-6:
                    return f"breakdown: Newton's direction does not help ({found.reason})"
            x = x - t * found.x
            r = residual(x)

    stop = StoppingRule(
        measure=lambda state: to_float(norm(state.r)),
        verify=lambda state: to_float(norm(residual(state.x))),
        bound=max(max(rtol, eps) * to_float(norm(gradient(x0))), hidden),
        name="gradient norm",
    )
    found = run(iterate(), stop=stop, max_iter=max_iter)
    H = implicit.lavrentiev(hessian(found.x), rho)
    solved = implicit.solve(H, rho * outer_gradient(found.x), rtol=rtol)
    convex = solved.predicted is not None or solved.method in ("cholesky", "none")
    reason = f"inner problem: {found.reason}; linear system: {solved.reason}"
    reason += "" if convex else "; H + rho I is not positive definite: take a larger rho"
    return found, solved, found.converged and solved.converged and convex, reason


def ode(
    f: Callable[..., np.ndarray],
    f_x: Callable[..., np.ndarray],
    f_p: Callable[..., np.ndarray],
    x0: np.ndarray,
    p: np.ndarray,
    t: np.ndarray,
    outer: Functional,
) -> Hypergradient:
    r"""Loss and gradient of a path :math:`\dot x=f(x,p,t)` from x0, by the adjoint method.

    The trapezoidal rule, :math:`x_{k+1}-x_k=\tfrac h2(f_k+f_{k+1})`, by Newton's method in every
    step; the adjoint is that of the discrete equations, so that the gradient is exact for the
    discrete loss:

    .. math::
        (I-\tfrac h2f_x)_k^\top\psi_k=v_k+(I+\tfrac h2f_x)_k^\top\psi_{k+1},\qquad
        \frac{dJ}{dp}=\sum_k\tfrac h2(f_{p,k}+f_{p,k+1})^\top\psi_{k+1},

    :math:`v_k` the derivative of the loss by :math:`x_k`. In :math:`t_0` the left side is
    :math:`\psi_0=dJ/dx_0`.

    Parameters
    ----------
    f, f_x, f_p : callable
        ``f(x, p, t)`` of shape (d,), its derivatives of shapes (d, d) and (d, q).
    x0 : array, shape (d,)
    p : array, shape (q,)
    t : array, shape (N + 1,)
        Increasing.
    outer : Functional
        Of the whole path, an array of shape (N + 1, d).

    Returns
    -------
    Hypergradient
        ``gradient`` by p; ``x`` is the path and ``adjoint`` all ψ, the first of them the derivative
        by x0.

    Raises
    ------
    ValueError
        If t does not increase or a step has no solution.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import least_squares
    >>> found = ode(
    ...     lambda x, p, t: -x + p, lambda x, p, t: -np.eye(1), lambda x, p, t: np.eye(1),
    ...     np.zeros(1), np.ones(1), np.linspace(0, 1, 11), least_squares(None, np.zeros((11, 1))),
    ... )
    >>> bool(abs(found.x[-1, 0] - (1 - np.exp(-1))) < 1e-3)
    True
    """
    x0, p, t = as_real(x0, "x0", ndim=1), as_real(p, "p", ndim=1), as_real(t, "t", ndim=1)
    require(
        all(isinstance(each, np.ndarray) for each in (x0, p, t)),
        "x0, p and t must be NumPy arrays: got others",
    )
    for each, name in ((p, "p"), (t, "t")):
        check_alike(each, name, x0, "x0")
    require(
        len(t) >= 2 and (np.diff(t) > 0).all(),
        "t must hold two numbers or more, each above the one before: it does not",
    )
    for function, name, shape in ((f, "f", ()), (f_x, "f_x", x0.shape), (f_p, "f_p", p.shape)):
        as_real(function(x0, p, t[0]), name, shape=(len(x0), *shape))
    path = _trapezoidal(f, f_x, x0, p, t)
    V, gradient = _slope(_outer(outer), path), np.zeros_like(p)
    eye = np.eye(len(x0), dtype=x0.dtype)
    psi, h = np.zeros_like(path), np.diff(t, prepend=t[0])
    for k in range(len(t) - 1, -1, -1):
        v, J = V[k], f_x(path[k], p, t[k])
        if k + 1 < len(t):
            v = v + psi[k + 1] + h[k + 1] / 2 * (J.T @ psi[k + 1])
            for j in (k, k + 1):
                gradient += h[k + 1] / 2 * (f_p(path[j], p, t[j]).T @ psi[k + 1])
        # In t_0 there is no step: h is 0.
        psi[k] = np.linalg.solve(eye - h[k] / 2 * J.T, v)
    gradient = as_real(gradient, "the gradient by p")
    return Hypergradient(_loss(outer, path), gradient, path, as_real(psi, "the adjoint"))


# What fails is told in words, so NumPy need not warn of it as well.
@np.errstate(over="ignore", invalid="ignore")
def _trapezoidal(f: Callable, f_x: Callable, x0: Array, p: Array, t: Array) -> np.ndarray:
    """Return the path of the trapezoidal rule, each step solved by Newton's method."""
    X, eye, eps = [x0], np.eye(len(x0), dtype=x0.dtype), np.finfo(x0.dtype).eps
    for k, h in enumerate(np.diff(t)):
        x, known = X[-1], X[-1] + h / 2 * f(X[-1], p, t[k])
        for _ in range(50):
            F, M = x - h / 2 * f(x, p, t[k + 1]) - known, eye - h / 2 * f_x(x, p, t[k + 1])
            try:
                d = np.linalg.solve(M, F)
            except np.linalg.LinAlgError:
                d = np.full_like(x, np.nan)
            # What rounding leaves of the equations, where M is badly conditioned.
            x, hidden = x - d, 10 * eps * (abs(M) @ abs(x) + abs(known)).max()
            solved = abs(d).max() <= 500 * eps * abs(x).max() or abs(F).max() <= hidden
            if solved or not np.isfinite(x).all():
                break
        require(
            solved and np.isfinite(x).all(),
            f"every step must have a solution: Newton's method fails at {t[k]}",
        )
        X.append(x.astype(x0.dtype))
    return np.stack(X)


# ------------------------------------------------------------------------------------------------
# The outer loop


class OuterState(NamedTuple):
    """Hyperparameters, loss, gradient, the whole hypergradient, and the tolerance it had."""

    x: Array
    value: float
    gradient: Array
    found: Hypergradient
    rtol: float


def descend(
    hypergradient: Callable[..., Hypergradient],
    theta0: Array,
    *,
    step: float = 1.0,
    rtol: float = 1e-3,
    rtol_min: float = 1e-10,
) -> Iterator[OuterState]:
    r"""Gradient descent on :math:`J(\theta)`, with inner problems as exact as is needed.

    .. math:: \theta_{k+1}=\theta_k-t_k\nabla J(\theta_k)

    :math:`t_k` is the step of Barzilai and Borwein, at most so long that θ moves by 3 (λ by a
    factor of 20), halved until
    :math:`J(\theta_{k+1})<J(\theta_k)-10^{-4}t_k\|\nabla J\|^2`, or, where the accuracy of J
    hides that, until the gradient is shorter. The tolerance of the inner
    problems falls with the gradient, and once more when no step is found; every solve starts at the
    last solution. J is not convex: it ends at a stationary point, which one depends on the start.
    In what units J is measured does not matter.

    Parameters
    ----------
    hypergradient : callable
        ``hypergradient(theta, rtol=..., start=...)`` returns a :class:`Hypergradient`;
        :func:`tikhonov` with its data fixed, for instance.
    theta0 : array
    step : float
        How far the first step moves θ.
    rtol, rtol_min : float
        First and smallest tolerance of the inner problems.

    Yields
    ------
    OuterState
        Its ``x`` is θ.

    Raises
    ------
    ValueError
        If a loss or gradient that it stands on is not finite, or has the wrong shape.

    References
    ----------
    Pedregosa (2016), ICML; Barzilai and Borwein (1988), IMA J. Numer. Anal. 8, 141-148.

    Examples
    --------
    >>> import numpy as np
    >>> from functools import partial
    >>> from course_lib.functionals import least_squares
    >>> one = np.eye(1)
    >>> J = partial(tikhonov, one, np.array([2.0]), outer=least_squares(one, np.array([0.5])))
    >>> result = run(descend(J, np.array(0.0)), max_iter=30)
    >>> float(np.exp(result.x).round(4))  # x = 2/(1 + lam) is 1/2
    3.0
    """
    theta = detach(as_real(theta0, "theta0"))
    step = as_scalar(step, "step", positive=True)
    rtol_min = as_scalar(rtol_min, "rtol_min", positive=True)
    rtol = as_scalar(rtol, "rtol", minimum=rtol_min)

    def iterate(theta: Array, rtol: float) -> Iterator[OuterState]:
        found, t, first, scale = hypergradient(theta, rtol=rtol, start=None), None, None, 0.0
        while True:
            size = _size(found, theta)
            yield OuterState(theta, found.value, found.gradient, found, rtol)
            if size == 0:
                return "the gradient is exactly zero"
            first, scale, t = (
                first or size,
                max(scale, abs(found.value)),
                min(t or step / size, 3 / size),
            )
            rtol = max(rtol_min, min(rtol, 1e-3 * size / first))
            lower = _lower(hypergradient, theta, found, t, rtol)
            if lower is not None:
                t = _barzilai_borwein(theta, found, *lower)
                theta, found = lower
            elif rtol > rtol_min:
                rtol, t = rtol_min, None
                found = hypergradient(theta, rtol=rtol, start=found)
            else:
                # Inner problems to rtol leave an error of up to its root, see `_both`.
                promise = t * size * size / scale if scale > 0 else 0.0
                return f"no step lowers the loss, {promise:.0e} of it is promised: " + (
                    "a stationary point"
                    if promise <= 10 * max(rtol_min, eps) ** 0.5
                    else "a kink, inexact solves, a wrong gradient?"
                )

    eps = float(array_namespace(theta).finfo(theta.dtype).eps)
    return iterate(theta, rtol)


def _barzilai_borwein(
    theta: Array, found: Hypergradient, after: Array, found_after: Hypergradient
) -> float:
    """Return the step, twice the last one where J is not convex along it."""
    moved, change = after - theta, found_after.gradient - found.gradient
    curvature, length = to_float(inner(moved, change)), to_float(norm(moved))
    return length**2 / curvature if curvature > 0 else 2 * length / to_float(norm(found.gradient))


def _size(found: Hypergradient, theta: Array) -> float:
    """Return the norm of the gradient; loss and gradient must be finite, and of the right shape."""
    as_scalar(found.value, "the outer loss")
    got, size = shape_of(found.gradient), to_float(norm(found.gradient))
    require(
        got == tuple(theta.shape) and math.isfinite(size),
        f"the hypergradient must be finite and like theta: expected the shape "
        f"{tuple(theta.shape)}, got {got} with norm {size}",
    )
    return size


def _lower(
    hypergradient: Callable, theta: Array, found: Hypergradient, t: float, rtol: float
) -> tuple[Array, Hypergradient] | None:
    """Return a θ on the way down, and what belongs to it; None if no step lowers the loss."""
    g, xp, size = found.gradient, array_namespace(theta), to_float(norm(found.gradient))
    eps = float(xp.finfo(theta.dtype).eps)
    for _ in range(40):
        # Rounding hides what a shorter step gains.
        if t * size * size <= 0.01 * eps * abs(found.value):
            return None
        trial = xp.asarray(theta - t * g)
        after = hypergradient(trial, rtol=rtol, start=found)
        # What J is known to. Where that hides the decrease, the gradient must become smaller.
        known = min(1000 * max(rtol, eps), 1e-6) * abs(found.value)
        hidden = t * size * size <= known and after.value <= found.value + known
        lower = after.value < found.value - 1e-4 * t * size * size
        if lower or (hidden and to_float(norm(after.gradient)) <= 0.9 * size):
            return trial, after
        t /= 2
    return None
