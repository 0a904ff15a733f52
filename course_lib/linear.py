"""Iterations for linear systems and least squares, each a generator of states.

Drive them with :func:`course_lib.iterate.run`. Arguments are checked when a solver is called:
shape, dtype and finiteness, not the step size, because the book shows a step above the limit
diverge.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from .arrays import Array, as_real, as_scalar, check_alike, detach, inner, norm, to_float, zeros
from .operators import LinearOperator, as_operator

__all__ = ["cg", "cgls", "gmres", "landweber", "nu_method"]


class CGState(NamedTuple):
    """Iterate, residual b - Ax, search direction, and ``rho`` = ‖r‖²."""

    x: Array
    r: Array
    p: Array
    rho: Array


class CGLSState(NamedTuple):
    """Iterate, residual y - Ax, negative gradient s = Aᵀr, direction, and ``gamma`` = ‖s‖²."""

    x: Array
    r: Array
    s: Array
    p: Array
    gamma: Array


class LandweberState(NamedTuple):
    """Iterate and residual y - Ax."""

    x: Array
    r: Array


class NuState(NamedTuple):
    """Iterate, residual y - Ax, and the iterate before."""

    x: Array
    r: Array
    x_old: Array


class GMRESState(NamedTuple):
    """Iterate, residual b - Ax, and the Krylov basis so far."""

    x: Array
    r: Array
    basis: tuple[Array, ...]


def _system(A: Any, y: Array, x0: Array | None) -> tuple[LinearOperator, Array, Array]:
    """Return operator, data and starting point, checked; x0 = 0 when none is given."""
    A = as_operator(A)
    y = as_real(y, "the data", shape=A.out_shape)
    if A.like is not None:
        check_alike(y, "the data", A.like, A.name)
    if x0 is None:
        return A, y, zeros(A.in_shape, y)
    x0 = as_real(x0, "x0", shape=A.in_shape)
    check_alike(x0, "x0", y, "the data")
    return A, y, x0


def _square(A: LinearOperator, method: str) -> None:
    if A.in_shape != A.out_shape:
        raise ValueError(
            f"{method} needs a square operator: expected equal shapes, "
            f"got {A.in_shape} -> {A.out_shape}"
        )


def cg(A: Any, b: Array, x0: Array | None = None) -> Iterator[CGState]:
    r"""Conjugate gradients for :math:`Ax=b`, A symmetric positive (semi)definite.

    .. math::
        \|x_k-x\|_A\le2\Bigl(\frac{\sqrt\kappa-1}{\sqrt\kappa+1}\Bigr)^k\|x_0-x\|_A,
        \qquad\|v\|_A^2=\langle v,Av\rangle .

    Symmetry is the caller's promise. A direction with :math:`\langle p,Ap\rangle\le0` ends the
    iteration with a reason. A semidefinite A needs b in its range.

    Parameters
    ----------
    A : LinearOperator or array, square
    b : array, shape ``A.out_shape``
    x0 : array, optional
        Start; zero if not given.

    Yields
    ------
    CGState

    Raises
    ------
    ValueError
        If A is not square, or b or x0 do not fit.

    References
    ----------
    Hestenes and Stiefel (1952).

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.iterate import run, residual_rule
    >>> A, b = np.array([[4.0, 1.0], [1.0, 3.0]]), np.array([1.0, 2.0])
    >>> result = run(cg(A, b), stop=residual_rule(A, b, rtol=1e-12), max_iter=10)
    >>> result.x.round(6), result.iterations
    (array([0.090909, 0.636364]), 2)
    """
    A, b, x0 = _system(A, b, x0)
    _square(A, "cg")

    def iterate():
        x, r = x0, b - A @ x0
        p, rho = r, inner(r, r)
        while True:
            yield CGState(x, r, p, rho)
            if to_float(rho) == 0:
                return "the residual is exactly zero"
            q = A @ p
            curvature = inner(p, q)
            if not to_float(curvature) > 0:
                return f"breakdown: <p, Ap> = {to_float(curvature):.3e} is not positive"
            alpha = rho / curvature
            x, r = x + alpha * p, r - alpha * q
            rho, rho_old = inner(r, r), rho
            p = r + (rho / rho_old) * p

    return iterate()


def cgls(A: Any, y: Array, x0: Array | None = None) -> Iterator[CGLSState]:
    r"""Conjugate gradients for :math:`\min_x\tfrac12\|Ax-y\|^2`, A of any shape.

    In exact arithmetic these are the iterates of conjugate gradients on
    :math:`A^\top Ax=A^\top y`, without forming :math:`A^\top A`: from :math:`x_0=0`,
    :math:`x_k` minimizes the residual over the Krylov space
    :math:`\operatorname{span}\{(A^\top A)^jA^\top y:j<k\}`.

    Parameters
    ----------
    A : LinearOperator or array
    y : array, shape ``A.out_shape``
    x0 : array, optional
        Start; zero if not given.

    Yields
    ------
    CGLSState

    Raises
    ------
    ValueError
        If y or x0 do not fit A.

    References
    ----------
    Hestenes and Stiefel (1952); Björck (1996), section 7.4.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.iterate import run, gradient_rule
    >>> A, y = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), np.array([1.0, 2.0, 5.0])
    >>> run(cgls(A, y), stop=gradient_rule(A, y, rtol=1e-12), max_iter=10).x
    array([1., 1.])
    """
    A, y, x0 = _system(A, y, x0)

    def iterate():
        x, r = x0, y - A @ x0
        s = A.H @ r
        p, gamma = s, inner(s, s)
        while True:
            yield CGLSState(x, r, s, p, gamma)
            if to_float(gamma) == 0:
                return "the gradient is exactly zero"
            q = A @ p
            length = inner(q, q)
            if to_float(length) == 0:
                return "breakdown: the direction lies in the null space of A"
            alpha = gamma / length
            x, r = x + alpha * p, r - alpha * q
            s = A.H @ r
            gamma, gamma_old = inner(s, s), gamma
            p = s + (gamma / gamma_old) * p

    return iterate()


def landweber(
    A: Any, y: Array, x0: Array | None = None, *, step: float
) -> Iterator[LandweberState]:
    r"""Landweber's iteration: gradient descent on :math:`\tfrac12\|Ax-y\|^2`.

    .. math:: x_{k+1}=x_k+\eta A^\top(y-Ax_k),\qquad 0<\eta<2/\|A\|^2 .

    From :math:`x_0=0` the iterate is filtered: :math:`\varphi_i=1-(1-\eta\sigma_i^2)^k`
    (:func:`course_lib.filters.landweber_factors`). The part of x0 in the null space of A stays
    for ever.

    Parameters
    ----------
    A : LinearOperator or array
    y : array, shape ``A.out_shape``
    x0 : array, optional
        Start; zero if not given.
    step : float
        :math:`\eta>0`. It is not compared with the limit.

    Yields
    ------
    LandweberState

    Raises
    ------
    ValueError
        If y or x0 do not fit A, or ``step`` is not positive.

    References
    ----------
    Landweber (1951), American Journal of Mathematics 73, 615-624.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.iterate import run
    >>> run(landweber(np.diag([1.0, 0.5]), np.array([1.0, 1.0]), step=1.0), max_iter=2).x
    array([1.   , 0.875])
    """
    A, y, x0 = _system(A, y, x0)
    step = as_scalar(step, "step", positive=True)

    def iterate():
        x = x0
        while True:
            r = y - A @ x
            yield LandweberState(x, r)
            x = x + step * (A.H @ r)

    return iterate()


def nu_method(
    A: Any, y: Array, x0: Array | None = None, *, nu: float = 1.0, step: float
) -> Iterator[NuState]:
    r"""The ν-method of Brakhage: a semi-iteration, linear in y, faster than Landweber's.

    .. math:: x_k=x_{k-1}+\mu_k(x_{k-1}-x_{k-2})+\omega_k\eta A^\top(y-Ax_{k-1})

    with :math:`\mu_1=0,\ \omega_1=\frac{4\nu+2}{4\nu+1}` and, for k > 1,

    .. math::
        \mu_k=\frac{(k-1)(2k-3)(2k+2\nu-1)}{(k+2\nu-1)(2k+4\nu-1)(2k+2\nu-3)},\qquad
        \omega_k=4\frac{(2k+2\nu-1)(k+\nu-1)}{(k+2\nu-1)(2k+4\nu-1)} .

    Needs :math:`0<\eta\le1/\|A\|^2`. About :math:`\sqrt k` steps do the work of k steps of
    Landweber's iteration.

    Parameters
    ----------
    A : LinearOperator or array
    y : array, shape ``A.out_shape``
    x0 : array, optional
        Start; zero if not given.
    nu : float
        Order :math:`\nu>0`; the qualification of the method.
    step : float
        :math:`\eta>0`.

    Yields
    ------
    NuState

    Raises
    ------
    ValueError
        If y or x0 do not fit A, or ``nu`` or ``step`` is not positive.

    References
    ----------
    Brakhage (1987); Engl, Hanke and Neubauer (1996), section 6.3.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.iterate import run
    >>> run(nu_method(np.diag([1.0, 0.5]), np.array([1.0, 1.0]), step=0.8), max_iter=2).x.round(6)
    array([1.097143, 1.097143])
    """
    A, y, x0 = _system(A, y, x0)
    nu = as_scalar(nu, "nu", positive=True)
    step = as_scalar(step, "step", positive=True)

    def iterate():
        x, x_old, k = x0, x0, 0
        while True:
            r = y - A @ x
            yield NuState(x, r, x_old)
            k += 1
            if k == 1:
                mu, omega = 0.0, (4 * nu + 2) / (4 * nu + 1)
            else:
                below = (k + 2 * nu - 1) * (2 * k + 4 * nu - 1)
                mu = (k - 1) * (2 * k - 3) * (2 * k + 2 * nu - 1) / (below * (2 * k + 2 * nu - 3))
                omega = 4 * (2 * k + 2 * nu - 1) * (k + nu - 1) / below
            x, x_old = x + mu * (x - x_old) + omega * step * (A.H @ r), x

    return iterate()


def _arnoldi(A: LinearOperator, Q: list[Array]) -> tuple[Array, list[float]]:
    """Return A q for the last q, orthogonalized against the basis Q, and what was taken off.

    The last of these coefficients is the length of what is left.
    """
    w, column = detach(A @ Q[-1]), []
    for q in Q:
        column.append(to_float(inner(q, w)))
        w = w - column[-1] * q
    return w, [*column, to_float(norm(w))]


def gmres(A: Any, b: Array, x0: Array | None = None) -> Iterator[GMRESState]:
    r"""GMRES without restart for a square A: the smallest residual over a Krylov space.

    :math:`x_k` minimizes :math:`\|b-Ax\|` over
    :math:`x_0+\operatorname{span}\{r_0,Ar_0,\dots,A^{k-1}r_0\}`. The basis is kept: k steps store
    k + 1 arrays. The small least-squares problem is solved in NumPy; automatic differentiation
    does not go through it, and the iterates are cut off.

    Parameters
    ----------
    A : LinearOperator or array, square
    b : array, shape ``A.out_shape``
    x0 : array, optional
        Start; zero if not given.

    Yields
    ------
    GMRESState

    Raises
    ------
    ValueError
        If A is not square, or b or x0 do not fit.

    References
    ----------
    Saad and Schultz (1986).

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.iterate import run, residual_rule
    >>> A, b = np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([1.0, 0.0])
    >>> result = run(gmres(A, b), stop=residual_rule(A, b, rtol=1e-12), max_iter=5)
    >>> result.x.round(6), result.iterations
    (array([0., 1.]), 2)
    """
    A, b, x0 = _system(A, b, x0)
    _square(A, "gmres")
    eps = float(array_namespace(b).finfo(b.dtype).eps)

    def iterate():
        start, r0 = detach(x0), detach(b - A @ x0)
        beta = to_float(norm(r0))
        yield GMRESState(start, r0, ())
        if beta == 0:
            return "the residual is exactly zero"
        Q, H = [r0 / beta], np.zeros((1, 0))  # A Q_k = Q_{k+1} H
        while True:
            w, column = _arnoldi(A, Q)
            H = np.column_stack([np.pad(H, ((0, 1), (0, 0))), column])
            c = np.linalg.lstsq(H, beta * np.eye(len(Q) + 1)[0], rcond=None)[0]
            x = start + sum(float(cj) * q for cj, q in zip(c, Q, strict=True))
            exhausted = column[-1] <= 10 * eps * np.linalg.norm(column)
            if not exhausted:
                Q.append(w / column[-1])
            yield GMRESState(x, detach(b - A @ x), tuple(Q))
            if exhausted:
                return "the Krylov space is exhausted"

    return iterate()
