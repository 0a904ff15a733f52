"""Iterations for linear systems and least squares, each a generator of states.

Drive them with :func:`course_lib.iterate.run`. Arguments are checked when a solver is called:
shape, dtype and finiteness, not the step size, because the book shows a step above the limit
diverge.
"""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from .arrays import (
    Array,
    as_real,
    as_scalar,
    detach,
    inner,
    norm,
    require,
    to_float,
    zeros,
)
from .operators import LinearOperator, _with_data, as_operator

__all__ = ["bicgstab", "cg", "cgls", "gmres", "landweber", "minres", "nu_method"]


class CGState(NamedTuple):
    """Iterate, residual b - Ax, search direction, and ``rho`` = ⟨r, Πr⟩ (‖r‖² without a Π)."""

    x: Array
    r: Array
    p: Array
    rho: Array


class ResidualState(NamedTuple):
    """Iterate and residual b - Ax."""

    x: Array
    r: Array


class CGLSState(NamedTuple):
    """Iterate, residual y - Ax, negative gradient s = Aᵀr, direction, and ``gamma`` = ‖s‖²."""

    x: Array
    r: Array
    s: Array
    p: Array
    gamma: Array


class GMRESState(NamedTuple):
    """Iterate, residual b - Ax, and the Krylov basis so far."""

    x: Array
    r: Array
    basis: tuple[Array, ...]


def _system(
    A: Any, b: Array, x0: Array | None, *, square: bool = False
) -> tuple[LinearOperator, Array, Array]:
    """Return operator, data and starting point, checked; x0 = 0 when none is given."""
    A, b = _with_data(A, b, "the data")
    require(
        A.in_shape == A.out_shape or not square,
        f"A must be square: expected equal shapes, got {A.in_shape} -> {A.out_shape}",
    )
    start = zeros(A.in_shape, b) if x0 is None else as_real(x0, "x0", shape=A.in_shape, like=b)
    return A, b, start


def _product(preconditioner: Any, A: LinearOperator) -> Callable[[Array], Array]:
    """Return the product with a preconditioner, checked; without one it changes nothing."""
    if preconditioner is None:
        return lambda r: r
    Pi = as_operator(preconditioner)
    require(
        Pi.in_shape == Pi.out_shape == A.in_shape,
        f"the preconditioner must fit A: expected {A.in_shape} -> {A.in_shape}, "
        f"got {Pi.in_shape} -> {Pi.out_shape}",
    )
    return Pi.__matmul__


def cg(
    A: Any, b: Array, x0: Array | None = None, *, preconditioner: Any = None
) -> Iterator[CGState]:
    r"""Conjugate gradients for :math:`Ax=b`, A symmetric positive (semi)definite.

    .. math::
        \|x_k-x\|_A\le2\Bigl(\frac{\sqrt\kappa-1}{\sqrt\kappa+1}\Bigr)^k\|x_0-x\|_A,
        \qquad\|v\|_A^2=\langle v,Av\rangle .

    Symmetry is the caller's promise. A direction with :math:`\langle p,Ap\rangle\le0` ends the
    iteration with a reason. A semidefinite A needs b in its range.

    A preconditioner :math:`\Pi\approx A^{-1}`, symmetric positive definite and the same in every
    step, replaces κ by that of :math:`\Pi A`, which is self-adjoint in the inner product of
    :math:`\Pi^{-1}`. The bound then holds in the same norm.

    Parameters
    ----------
    A : LinearOperator or array, square
    b : array, shape ``A.out_shape``
    x0 : array, optional
        Start; zero if not given.
    preconditioner : LinearOperator or array, optional
        :math:`\Pi`, see :func:`course_lib.implicit.jacobi` and its neighbours.

    Yields
    ------
    CGState

    Raises
    ------
    ValueError
        If A is not square, or b, x0 or the preconditioner do not fit.

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
    A, b, x0 = _system(A, b, x0, square=True)
    precondition = _product(preconditioner, A)

    def iterate():
        x, r = x0, b - A @ x0
        p = precondition(r)
        rho = inner(r, p)
        while True:
            yield CGState(x, r, p, rho)
            if not to_float(rho) > 0:
                broken = f"breakdown: <r, Pi r> = {to_float(rho):.3e} is not positive"
                return broken if to_float(norm(r)) > 0 else "the residual is exactly zero"
            q = A @ p
            curvature = inner(p, q)
            if not to_float(curvature) > 0:
                return f"breakdown: <p, Ap> = {to_float(curvature):.3e} is not positive"
            alpha = rho / curvature
            x, r = x + alpha * p, r - alpha * q
            z = precondition(r)
            rho, rho_old = inner(r, z), rho
            p = z + (rho / rho_old) * p

    return iterate()


def _lanczos(A: LinearOperator, v: Array, v_old: Array, beta: Array) -> tuple[Array, Array, Array]:
    """Return ⟨v, Av⟩, and length and direction of what Av adds to the span of v and v_old."""
    w = A @ v - beta * v_old
    alpha = inner(v, w)
    w = w - alpha * v
    return alpha, norm(w), w


def minres(A: Any, b: Array, x0: Array | None = None) -> Iterator[ResidualState]:
    r"""MINRES for :math:`Ax=b` with a symmetric A, definite or not.

    :math:`x_k` minimizes :math:`\|b-Ax\|` over
    :math:`x_0+\operatorname{span}\{r_0,Ar_0,\dots,A^{k-1}r_0\}`, as GMRES does, but a symmetric A
    needs three vectors of the basis only (Lanczos), and one rotation a step. Where A is singular
    and b outside its range, it ends with a reason at a least-squares solution.

    Parameters
    ----------
    A : LinearOperator or array, square
    b : array, shape ``A.out_shape``
    x0 : array, optional
        Start; zero if not given.

    Yields
    ------
    ResidualState

    Raises
    ------
    ValueError
        If A is not square, or b or x0 do not fit.

    References
    ----------
    Paige and Saunders (1975), SIAM J. Numer. Anal. 12, 617-629.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.iterate import run, residual_rule
    >>> A, b = np.array([[1.0, 2.0], [2.0, -1.0]]), np.array([3.0, 1.0])
    >>> run(minres(A, b), stop=residual_rule(A, b, rtol=1e-12), max_iter=5).x
    array([1., 1.])
    """
    A, b, x0 = _system(A, b, x0, square=True)
    eps = float(array_namespace(b).finfo(b.dtype).eps)

    def iterate():
        x, r, v_old, d, d_old, size = x0, b - A @ x0, 0 * b, 0 * b, 0 * b, 0.0
        beta = norm(r)
        v = r / beta if to_float(beta) else r
        # (c, s) and (c_old, s_old): the last two rotations; phi: the norm of the residual, signed.
        c, s, c_old, s_old, phi, beta = 1.0, 0.0, 1.0, 0.0, beta, 0 * beta
        while True:
            yield ResidualState(x, r)
            if to_float(phi) == 0:
                return "the residual is exactly zero"
            beta_old, (alpha, beta, w) = beta, _lanczos(A, v, v_old, beta)
            # Column k of the tridiagonal matrix, turned by the rotations so far.
            above, beside = s_old * beta_old, s * alpha + c * c_old * beta_old
            turned, slope = c * alpha - s * c_old * beta_old, c * beta
            size = max(size, to_float(abs(alpha) + beta_old))
            # The left side is ‖Ar‖/‖r‖: zero where r has nothing left in the range of A.
            if to_float(turned**2 + slope**2) ** 0.5 <= eps**0.5 * size:
                return (
                    "breakdown: A is singular to rounding, and x a least-squares solution; or its "
                    "condition number is too large for MINRES (above 1/sqrt(eps))"
                )
            c_old, s_old, pivot = c, s, (turned**2 + beta**2) ** 0.5
            c, s = turned / pivot, beta / pivot
            d, d_old = (v - beside * d - above * d_old) / pivot, d
            x, phi = x + c * phi * d, -s * phi
            v, v_old = w / beta if to_float(beta) else w, v
            r = s**2 * r + c * phi * v

    return iterate()


def bicgstab(
    A: Any, b: Array, x0: Array | None = None, *, preconditioner: Any = None
) -> Iterator[ResidualState]:
    r"""BiCGSTAB for :math:`Ax=b` with any square A: short recurrences, two products a step.

    Nothing is minimized over the whole Krylov space: the residual may grow on the way, and a
    breakdown ends the iteration with a reason. A preconditioner :math:`\Pi\approx A^{-1}`, linear
    and the same in every step, stands on the right: :math:`A\Pi u=b`, :math:`x=\Pi u`. So the
    residual remains that of the system.

    Parameters
    ----------
    A : LinearOperator or array, square
    b : array, shape ``A.out_shape``
    x0 : array, optional
        Start; zero if not given.
    preconditioner : LinearOperator or array, optional
        :math:`\Pi`, see :func:`course_lib.implicit.ilu`.

    Yields
    ------
    ResidualState

    Raises
    ------
    ValueError
        If A is not square, or b, x0 or the preconditioner do not fit.

    References
    ----------
    van der Vorst (1992), SIAM J. Sci. Stat. Comput. 13, 631-644.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.iterate import run, residual_rule
    >>> A, b = np.array([[2.0, 1.0], [-1.0, 1.0]]), np.array([3.0, 0.0])
    >>> run(bicgstab(A, b), stop=residual_rule(A, b, rtol=1e-12), max_iter=5).x
    array([1., 1.])
    """
    A, b, x0 = _system(A, b, x0, square=True)
    precondition = _product(preconditioner, A)

    def iterate():
        x, r = x0, b - A @ x0
        shadow, p, rho = r, r, inner(r, r)
        for k in count(1):
            yield ResidualState(x, r)
            if to_float(norm(r)) == 0:
                return "the residual is exactly zero"
            v = A @ (step := precondition(p))
            along = inner(shadow, v)
            if to_float(along) == 0 or to_float(rho) == 0:
                return "breakdown: the residual is orthogonal to the first one"
            alpha = rho / along
            s = r - alpha * v
            t = A @ (stabilizer := precondition(s))
            length = inner(t, t)
            omega = inner(t, s) / length if to_float(length) else 0 * alpha
            x = x + alpha * step + omega * stabilizer
            # Where the residual has been large, its update has lost digits that b - Ax still has.
            r = s - omega * t if k % 10 else b - A @ x
            rho, rho_old = inner(shadow, r), rho
            if to_float(omega) == 0 and to_float(norm(r)) != 0:
                return "breakdown: the stabilizing step is zero"
            p = r + (rho / rho_old) * (alpha / omega) * (p - omega * v) if to_float(omega) else r

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
                exact = to_float(norm(s)) == 0
                return "the gradient is exactly zero" if exact else "breakdown: its square is 0"
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


def landweber(A: Any, y: Array, x0: Array | None = None, *, step: float) -> Iterator[ResidualState]:
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
    ResidualState

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
            yield ResidualState(x, r)
            x = x + step * (A.H @ r)

    return iterate()


def nu_method(
    A: Any, y: Array, x0: Array | None = None, *, nu: float = 1.0, step: float
) -> Iterator[ResidualState]:
    r"""The ν-method of Brakhage: a semi-iteration, linear in y, faster than Landweber's.

    .. math:: x_k=x_{k-1}+\mu_k(x_{k-1}-x_{k-2})+\omega_k\eta A^\top(y-Ax_{k-1})

    with :math:`\mu_1=0` and otherwise

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
    ResidualState

    Raises
    ------
    ValueError
        If y or x0 do not fit A, or ``nu`` or ``step`` is not positive.

    References
    ----------
    Brakhage (1987); Engl, Hanke and Neubauer (1996), chapter 6.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.iterate import run
    >>> run(nu_method(np.diag([1.0, 0.5]), np.array([1.0, 1.0]), step=0.8), max_iter=2).x.round(6)
    array([1.097143, 1.097143])
    """
    A, y, x0 = _system(A, y, x0)
    nu, step = as_scalar(nu, "nu", positive=True), as_scalar(step, "step", positive=True)

    def iterate():
        x = x_old = x0
        for k in count(1):
            r = y - A @ x
            yield ResidualState(x, r)
            below = (k + 2 * nu - 1) * (2 * k + 4 * nu - 1)
            omega = 4 * (2 * k + 2 * nu - 1) * (k + nu - 1) / below
            mu = (k - 1) * (2 * k - 3) * (2 * k + 2 * nu - 1) / below
            mu = mu / (2 * k + 2 * nu - 3) if k > 1 else 0.0
            x, x_old = x + mu * (x - x_old) + omega * step * (A.H @ r), x

    return iterate()


def _arnoldi(A: Callable[[Array], Array], Q: list[Array]) -> tuple[Array, list[float]]:
    """Return A(q) for the last q, orthogonalized against the basis Q, and what was taken off.

    The last of these coefficients is the length of what is left.
    """
    w, column = detach(A(Q[-1])), []
    for q in Q:
        column.append(to_float(inner(q, w)))
        w = w - column[-1] * q
    return w, [*column, to_float(norm(w))]


def gmres(
    A: Any, b: Array, x0: Array | None = None, *, preconditioner: Any = None
) -> Iterator[GMRESState]:
    r"""GMRES without restart for a square A: the smallest residual over a Krylov space.

    :math:`x_k` minimizes :math:`\|b-Ax\|` over
    :math:`x_0+\operatorname{span}\{r_0,Ar_0,\dots,A^{k-1}r_0\}`. The basis is kept: k steps store
    k + 1 arrays. The small least-squares problem is solved in NumPy; automatic differentiation
    does not go through it, and the iterates are cut off. A preconditioner stands on the right, as
    in :func:`bicgstab`; the space is then
    :math:`x_0+\Pi\operatorname{span}\{r_0,A\Pi r_0,\dots\}`.

    Parameters
    ----------
    A : LinearOperator or array, square
    b : array, shape ``A.out_shape``
    x0 : array, optional
        Start; zero if not given.
    preconditioner : LinearOperator or array, optional
        :math:`\Pi\approx A^{-1}`.

    Yields
    ------
    GMRESState

    Raises
    ------
    ValueError
        If A is not square, or b, x0 or the preconditioner do not fit.

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
    A, b, x0 = _system(A, b, x0, square=True)
    eps = float(array_namespace(b).finfo(b.dtype).eps)
    precondition = _product(preconditioner, A)

    def iterate():
        start, r0 = detach(x0), detach(b - A @ x0)
        beta = to_float(norm(r0))
        yield GMRESState(start, r0, ())
        if beta == 0:
            return "the residual is exactly zero"
        Q, H = [r0 / beta], np.zeros((1, 0))  # A Q_k = Q_{k+1} H
        while True:
            w, column = _arnoldi(lambda q: A @ precondition(q), Q)
            H = np.column_stack([np.pad(H, ((0, 1), (0, 0))), column])
            c = np.linalg.lstsq(H, beta * np.eye(len(Q) + 1)[0], rcond=eps * len(H))[0]
            u = sum(float(cj) * q for cj, q in zip(c, Q, strict=True))
            x = start + detach(precondition(u))
            exhausted = column[-1] <= 10 * eps * np.linalg.norm(column)
            if not exhausted:
                Q.append(w / column[-1])
            yield GMRESState(x, detach(b - A @ x), tuple(Q))
            if exhausted:
                return "the Krylov space is exhausted"

    return iterate()
