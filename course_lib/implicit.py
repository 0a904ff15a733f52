r"""Derivatives of what is defined by an equation: roots, fixed points, matrix equations.

With :math:`F(x^\star(\theta),\theta)=0`, F continuously differentiable near
:math:`(x^\star,\theta)` and :math:`F_x` invertible there,

.. math::
    \frac{dx^\star}{d\theta}=-F_x^{-1}F_\theta,\qquad
    \Bigl(\frac{dx^\star}{d\theta}\Bigr)^{\!\top}v=-F_\theta^\top\psi,\quad F_x^\top\psi=v .

The derivatives are linear operators (:class:`course_lib.operators.LinearOperator`) or matrices: by
hand, or of a torch function by :func:`linearize`. No function here forms a matrix, but
:func:`solve` where one is given, and those that say so.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, is_torch_array

from .arrays import (
    Array,
    as_count,
    as_real,
    as_scalar,
    asarray_like,
    detach,
    inner,
    is_sparse,
    norm,
    require,
    to_float,
    to_numpy,
)
from .iterate import Result, residual_rule, run
from .linear import _lanczos, _product, _system, bicgstab, cg, gmres, minres
from .operators import LinearOperator, as_operator, diagonal, golub_kahan, matrix

__all__ = [
    "Solution",
    "batch_norm",
    "batch_norm_vjp",
    "error_bound",
    "fixed_point_jvp",
    "fixed_point_vjp",
    "ilu",
    "jacobi",
    "lavrentiev",
    "layer",
    "lbfgs",
    "linearize",
    "low_rank",
    "neumann",
    "neumann_tail",
    "refine",
    "root_jvp",
    "root_vjp",
    "solve",
    "support_jvp",
    "support_vjp",
    "sylvester",
    "sylvester_jvp",
    "sylvester_vjp",
]

# ------------------------------------------------------------------------------------------------
# Derivatives


def linearize(F: Callable[..., Array], *points: Array) -> tuple[LinearOperator, ...]:
    r"""Return the partial derivatives of a torch function at a point, as operators.

    One operator for each argument: :math:`F_x` and :math:`F_\theta` of ``F(x, theta)``. F is
    evaluated once; each product is one or two passes over the graph that is kept.

    Examples
    --------
    >>> import torch
    >>> x, theta = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
    >>> F_x, F_theta = linearize(lambda x, theta: theta * x**2, x, theta)
    >>> F_x.to_dense(), F_theta.H @ torch.tensor([1.0, 1.0])
    (tensor([[ 6.,  0.],
            [ 0., 12.]]), tensor([5.]))
    """
    from . import autodiff

    points = tuple(as_real(point, f"argument {i}") for i, point in enumerate(points))
    require(
        all(is_torch_array(point) for point in points),
        "linearize needs torch tensors: write the derivatives of others by hand",
    )
    shapes = []

    def seen(*arguments: Array) -> Array:
        value = as_real(F(*arguments), "the value of F")
        shapes.append(tuple(value.shape))
        return value

    pairs = autodiff.partials(seen, *points)
    return tuple(
        LinearOperator(forward, reverse, tuple(point.shape), shapes[0], "a derivative", like=point)
        for point, (forward, reverse) in zip(points, pairs, strict=True)
    )


def _answer(solver: Callable, A: LinearOperator, b: Array) -> Array:
    """Return the solution of Ax = b by the solver, or say that there is none."""
    found = solver(A, b)
    if not getattr(found, "converged", True):
        raise ValueError(f"the linear system must be solved: {found.reason}")
    return as_real(getattr(found, "x", found), "the solution", shape=A.in_shape, like=b)


def _pair(F_x: Any, F_theta: Any) -> tuple[LinearOperator, LinearOperator]:
    """Return both derivatives as operators that fit each other."""
    F_x, F_theta = as_operator(F_x), as_operator(F_theta)
    require(
        F_x.in_shape == F_x.out_shape == F_theta.out_shape,
        f"the derivative by x must be square and fit that by theta: expected n -> n and p -> n, "
        f"got {F_x.in_shape} -> {F_x.out_shape} and {F_theta.in_shape} -> {F_theta.out_shape}",
    )
    return F_x, F_theta


def root_vjp(F_x: Any, F_theta: Any, v: Array, *, solver: Callable | None = None) -> Array:
    r"""Return :math:`(dx^\star/d\theta)^\top v` of a root: one system, with the transpose.

    .. math:: F_x^\top\psi=v,\qquad\Bigl(\frac{dx^\star}{d\theta}\Bigr)^{\!\top}v=-F_\theta^\top\psi

    One solve serves any number of parameters: with :math:`v=\nabla_xf` this is the gradient of
    :math:`J(\theta)=f(x^\star(\theta))`.

    Parameters
    ----------
    F_x : LinearOperator or array, n to n
    F_theta : LinearOperator or array, p to n
    v : array, the shape of x
    solver : callable, optional
        ``solver(A, b)`` with A = :math:`F_x^\top`; returns x or what has it as ``.x``. Default
        :func:`solve`.

    Raises
    ------
    ValueError
        If shapes do not fit, or the system is not solved.

    Examples
    --------
    >>> import numpy as np
    >>> float(root_vjp(np.array([[4.0]]), np.array([[-1.0]]), np.array([1.0]))[0])  # x = theta/4
    0.25
    """
    F_x, F_theta = _pair(F_x, F_theta)
    return -(F_theta.H @ _answer(solver or solve, F_x.H, v))


def root_jvp(F_x: Any, F_theta: Any, t: Array, *, solver: Callable | None = None) -> Array:
    r"""Return :math:`\frac{dx^\star}{d\theta}t=-F_x^{-1}F_\theta t`: one system a direction.

    Arguments and errors as in :func:`root_vjp`; t has the shape of θ.

    Examples
    --------
    >>> import numpy as np
    >>> float(root_jvp(np.array([[4.0]]), np.array([[-1.0]]), np.array([1.0]))[0])
    0.25
    """
    F_x, F_theta = _pair(F_x, F_theta)
    return -_answer(solver or solve, F_x, F_theta @ t)


def fixed_point_vjp(T_x: Any, T_theta: Any, v: Array, *, solver: Callable | None = None) -> Array:
    r"""Return :math:`T_\theta^\top\psi`, :math:`(I-T_x)^\top\psi=v`, of a fixed point x = T(x, θ).

    Needs :math:`I-T_x` invertible, not a contraction. Arguments and errors as in :func:`root_vjp`.

    Examples
    --------
    >>> import numpy as np
    >>> fixed_point_vjp(np.array([[0.5]]), np.array([[1.0]]), np.array([1.0]))  # x = x/2 + theta
    array([2.])
    """
    return root_vjp(_identity_minus(T_x), -as_operator(T_theta), v, solver=solver)


def fixed_point_jvp(T_x: Any, T_theta: Any, t: Array, *, solver: Callable | None = None) -> Array:
    r"""Return :math:`(I-T_x)^{-1}T_\theta t` of a fixed point; see :func:`fixed_point_vjp`.

    Examples
    --------
    >>> import numpy as np
    >>> fixed_point_jvp(np.array([[0.5]]), np.array([[1.0]]), np.array([1.0]))
    array([2.])
    """
    return root_jvp(_identity_minus(T_x), -as_operator(T_theta), t, solver=solver)


def _identity_minus(T_x: Any) -> LinearOperator:
    """Return I - T_x; a matrix stays one."""
    return lavrentiev(-as_operator(T_x), 1.0)


def _on_support(
    g_xx: Any, F_theta: Any, support: Array
) -> tuple[LinearOperator, LinearOperator, Array]:
    """Return the derivatives restricted to the support, the identity beside it, and the mask."""
    g_xx, F_theta = _pair(g_xx, F_theta)
    mask = detach(as_real(support, "support", shape=g_xx.in_shape))
    require(
        to_float(norm(mask * (1 - mask))) == 0,
        "support must be a mask: expected zeros and ones, got other numbers",
    )
    like = F_theta.like if g_xx.like is None else g_xx.like
    mask = mask if like is None else asarray_like(mask, like)
    P = diagonal(mask)
    return P @ g_xx @ P + diagonal(1 - mask), P @ F_theta, mask


def support_vjp(
    g_xx: Any, F_theta: Any, support: Array, v: Array, *, solver: Callable | None = None
) -> Array:
    r"""Return :math:`(dx^\star/d\theta)^\top v` where :math:`g(x,\theta)+\lambda\|x\|_1` is least.

    With the support S of :math:`x^\star` and its signs ξ, the equation on S is
    :math:`\nabla_xg(x,\theta)_S+\lambda\xi_S=0`, and all other entries stay zero:

    .. math::
        (g_{xx})_{SS}\psi_S=v_S,\qquad
        \Bigl(\frac{dx^\star}{d\theta}\Bigr)^{\!\top}v=-(F_\theta)_{S\cdot}^\top\psi_S .

    The same equations belong to the fixed point of the proximal gradient step, whose derivative is
    the mask of the support. They hold where :math:`(g_{xx})_{SS}\succ0` and every entry outside S
    is strictly dual feasible, :math:`|\partial_{x_j}g|<\lambda`; else the solution has
    one-sided derivatives only.

    Parameters
    ----------
    g_xx : LinearOperator or array
        Hessian of the smooth part.
    F_theta : LinearOperator or array
        Derivative of :math:`\nabla_xg+\lambda\xi` by θ; for θ = λ its column is ξ.
    support : array
        1 on S, 0 elsewhere, the shape of x.
    v : array, the shape of x

    Examples
    --------
    >>> import numpy as np
    >>> H, signs = np.eye(2), np.array([[1.0], [0.0]])  # x = soft(y, lam), first entry positive
    >>> support_vjp(H, signs, np.array([1.0, 0.0]), np.array([1.0, 5.0]))
    array([-1.])
    """
    H, rows, mask = _on_support(g_xx, F_theta, support)
    return root_vjp(H, rows, mask * v, solver=solver)


def support_jvp(
    g_xx: Any, F_theta: Any, support: Array, t: Array, *, solver: Callable | None = None
) -> Array:
    r"""Return :math:`\frac{dx^\star}{d\theta}t` where there is an ℓ1 term: zero off the support.

    Arguments and conditions as in :func:`support_vjp`; t has the shape of θ.

    Examples
    --------
    >>> import numpy as np
    >>> H, signs = np.eye(2), np.array([[1.0], [0.0]])
    >>> support_jvp(H, signs, np.array([1.0, 0.0]), np.array([1.0]))
    array([-1., -0.])
    """
    H, rows, _ = _on_support(g_xx, F_theta, support)
    return root_jvp(H, rows, t, solver=solver)


# ------------------------------------------------------------------------------------------------
# Sylvester's equation


def sylvester(A: Array, B: Array, C: Array) -> Array:
    r"""Return the solution of :math:`AX+XB=C`, by Bartels and Stewart (1972).

    There is exactly one if and only if :math:`\alpha_i+\beta_j\ne0` for all eigenvalues of A and B.
    :math:`O(n^3)` by Schur forms in SciPy, never the Kronecker matrix
    :math:`I\otimes A+B^\top\otimes I` of size n².

    Raises
    ------
    ValueError
        If shapes do not fit, or a sum of eigenvalues is zero to rounding; also where only the
        residual shows it.

    Examples
    --------
    >>> import numpy as np
    >>> sylvester(np.diag([1.0, 2.0]), np.array([[1.0]]), np.array([[2.0], [6.0]]))
    array([[1.],
           [2.]])
    """
    from scipy.linalg import solve_sylvester

    C = as_real(C, "C", ndim=2)
    A = as_real(A, "A", shape=(C.shape[0],) * 2, like=C)
    B = as_real(B, "B", shape=(C.shape[1],) * 2, like=C)
    a, b, c = (to_numpy(M) for M in (A, B, C))
    least = np.abs(np.add.outer(np.linalg.eigvals(a), np.linalg.eigvals(b))).min()
    require(
        least > 10 * _eps(C) * (np.linalg.norm(a, 2) + np.linalg.norm(b, 2)),
        "AX + XB = C must have one solution: expected no sum of an eigenvalue of A and one of "
        f"B to be zero, got {least:.1e}",
    )
    X = solve_sylvester(a, b, c)
    # Eigenvalues of a matrix that is not normal hide that it is singular; its residual does not.
    with np.errstate(over="ignore", invalid="ignore"):
        left = np.abs(a @ X + X @ b - c).max()
    require(
        left <= 1e-3 * np.abs(c).max(),
        f"AX + XB = C must be solvable to rounding: expected a residual below 1e-3 of C, got "
        f"{left:.1e}",
    )
    return asarray_like(X, C)


def sylvester_jvp(A: Array, B: Array, X: Array, dA: Array, dB: Array, dC: Array) -> Array:
    r"""Return dX with :math:`A\,dX+dX\,B=dC-dA\,X-X\,dB`: the same operator, a new right side.

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones((1, 1))
    >>> sylvester_jvp(one, one, 2 * one, 0 * one, 0 * one, one)
    array([[0.5]])
    """
    dC = as_real(dC, "dC", ndim=2)
    X = as_real(X, "X", shape=tuple(dC.shape), like=dC)
    dA = as_real(dA, "dA", shape=(dC.shape[0],) * 2, like=dC)
    dB = as_real(dB, "dB", shape=(dC.shape[1],) * 2, like=dC)
    return sylvester(A, B, dC - dA @ X - X @ dB)


def sylvester_vjp(A: Array, B: Array, X: Array, v: Array) -> tuple[Array, Array, Array]:
    r"""Return the gradients by A, B and C of a loss with :math:`\nabla_Xf=v`.

    .. math::
        A^\top\Psi+\Psi B^\top=v,\qquad
        \nabla_Af=-\Psi X^\top,\quad\nabla_Bf=-X^\top\Psi,\quad\nabla_Cf=\Psi .

    Examples
    --------
    >>> import numpy as np
    >>> one = np.ones((1, 1))
    >>> [float(g[0, 0]) for g in sylvester_vjp(one, one, 2 * one, one)]
    [-1.0, -1.0, 0.5]
    """
    A, B, v = as_real(A, "A", ndim=2), as_real(B, "B", ndim=2), as_real(v, "v", ndim=2)
    X = as_real(X, "X", shape=tuple(v.shape), like=v)
    Psi = sylvester(A.T, B.T, v)
    return -Psi @ X.T, -X.T @ Psi, Psi


# ------------------------------------------------------------------------------------------------
# Linear systems


def neumann(T_x: Any, v: Array, terms: int) -> Array:
    r"""Return :math:`\sum_{j=0}^{K-1}T_x^jv`, K ``terms`` of the Neumann series of (I - T_x)⁻¹v.

    It converges for every v if and only if the spectral radius of :math:`T_x` is below 1. Pass
    ``T_x.H`` for an adjoint. A sum that overflows raises ``ValueError``.

    Examples
    --------
    >>> import numpy as np
    >>> neumann(np.array([[0.5]]), np.array([1.0]), 3)
    array([1.75])
    """
    T_x = as_operator(T_x)
    require(
        T_x.in_shape == T_x.out_shape, f"T_x must be square: got {T_x.in_shape} -> {T_x.out_shape}"
    )
    total = term = as_real(v, "v", shape=T_x.in_shape, like=T_x.like)
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(as_count(terms, "terms", minimum=1) - 1):
            term = T_x @ term
            total = total + term
    require(
        math.isfinite(to_float(norm(total))),
        "the series must stay finite: expected a spectral radius below 1",
    )
    return total


def neumann_tail(q: float, terms: int) -> float:
    r"""Return :math:`\sum_{j\ge K}q^j=q^K/(1-q)`: what K terms leave out if :math:`\|T_x\|\le q<1`.

    Examples
    --------
    >>> neumann_tail(0.5, 1)
    1.0
    """
    q = as_scalar(q, "q", minimum=0.0)
    require(q < 1, f"q must be below 1: expected a contraction, got {q}")
    return q ** as_count(terms, "terms") / (1 - q)


@dataclass(frozen=True)
class Solution:
    """A solved system, and how it was solved.

    Attributes
    ----------
    x : array
    converged : bool
        The true residual, computed afresh, is at most the tolerance.
    reason : str
    method : str
        The one that found x: "cholesky", "lu", "damped", "cg", "minres", "bicgstab" or "gmres".
    iterations : int
        Steps of the iterative methods, all together; 0 for a direct one.
    residual : float
        :math:`\\|b-Ax\\|/\\|b\\|`.
    condition : float or None
        Estimate of the condition number: by LAPACK; by Ritz values, if A is positive definite; else
        by the singular values of a bidiagonalization, where the promise was not kept. The last two
        are too small rather than too large.
    predicted : int or None
        Steps after which conjugate gradients have reduced the error by rtol, in the norm of A, if
        this condition number is right: an upper bound.
    tried : tuple of str
        All methods, in order.
    """

    x: Array
    converged: bool
    reason: str
    method: str
    iterations: int
    residual: float
    condition: float | None
    predicted: int | None
    tried: tuple[str, ...]


def _symmetric(A: LinearOperator, like: Array, seed: int = 0) -> bool:
    """Test the symmetry on three random pairs, by the size of the products."""
    rng = np.random.default_rng(seed)
    # The asymmetry of random pairs falls like 1/√n against the size: so must what is allowed.
    tolerance = 100 * _eps(like)
    for _ in range(3):
        u, v = (asarray_like(rng.standard_normal(A.in_shape), like) for _ in range(2))
        Au, Av = A @ u, A @ v
        size = to_float(norm(Au)) * to_float(norm(v)) + to_float(norm(Av)) * to_float(norm(u))
        require(
            math.isfinite(size), f"{A.name} must be finite: expected finite products, got others"
        )
        if abs(to_float(inner(Au, v) - inner(u, Av))) > tolerance * size:
            return False
    return True


def _eps(like: Array) -> float:
    return float(array_namespace(like).finfo(like.dtype).eps)


def _ritz_values(A: LinearOperator, b: Array, steps: int = 15) -> np.ndarray:
    """Return the eigenvalues of A on a Krylov space of b: inside the spectrum, near its ends."""
    v, v_old, beta, alphas, betas = b / norm(b), 0 * b, 0.0, [], []
    for _ in range(min(steps, math.prod(A.in_shape))):
        alpha, beta, w = _lanczos(A, v, v_old, beta)
        alphas.append(to_float(alpha))
        betas.append(to_float(beta))
        if betas[-1] <= 1e-10 * abs(np.array(alphas)).max():
            break
        v, v_old = w / beta, v
    return np.linalg.eigvalsh(np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1))


def _direct(M: Array, b: Array) -> tuple[np.ndarray, str, float]:
    """Return solution, method and condition number of a dense system, by LAPACK."""
    from scipy.linalg import lapack

    A, rhs = to_numpy(M), to_numpy(b)
    size, eps = np.linalg.norm(A, 1), _eps(b)
    method, info = "cholesky", 1
    if np.allclose(A, A.T, rtol=0, atol=10 * eps * size):
        factor, info = lapack.dpotrf(A, lower=1)
    if info == 0:
        x, reciprocal = lapack.dpotrs(factor, rhs, lower=1)[0], lapack.dpocon(factor, size, "L")[0]
    else:
        factor, pivots, info = lapack.dgetrf(A)
        x, reciprocal = lapack.dgetrs(factor, pivots, rhs)[0], lapack.dgecon(factor, size)[0]
        method = "lu"
    condition = 1 / reciprocal if reciprocal > 0 and info == 0 else math.inf
    # LAPACK computes in double precision, whatever the precision of the entries.
    if condition > min(1e-2 / np.finfo(float).eps, 1 / eps):
        # Singular to rounding: the least-squares solution with a small damping instead.
        rows = np.vstack([A, max(math.sqrt(eps) * size, 1e-300) * np.eye(len(A))])
        x = np.linalg.lstsq(rows, np.append(rhs, np.zeros(len(A))), rcond=None)[0]
        method = "damped"
    return x, method, condition


def _plan(
    A: LinearOperator, b: Array, rtol: float, budget: int, Pi: Any
) -> tuple[list[str], float | None, int | None, Any]:
    """Return the methods to try, condition number, predicted number of steps, preconditioner."""
    if not _symmetric(A, b):
        return ["bicgstab", "gmres"], None, None, Pi
    ritz, size = _ritz_values(A, b), math.prod(b.shape)
    if ritz[0] <= 0:
        return ["minres", "gmres"], None, None, Pi
    condition = float(ritz[-1] / ritz[0])
    predicted = math.ceil(0.5 * math.sqrt(condition) * math.log(2 / rtol))
    if Pi is None and predicted > budget and size <= 1_000_000:
        try:
            Pi = low_rank(A, min(50, size), float(ritz[0]), like=b)
        except ValueError:  # negative curvature, that the Ritz values have not seen
            return ["minres", "gmres"], None, None, Pi
    # Unlike the two before it, GMRES keeps all directions orthogonal: for a bad condition number.
    methods = ["cg", "minres"] + ["gmres"] * (size <= 10_000)
    return methods, condition, predicted, Pi


# An overflow ends in the record, so NumPy need not warn of it as well.
@np.errstate(over="ignore", invalid="ignore")
def solve(
    A: Any,
    b: Array,
    *,
    rtol: float = 1e-10,
    x0: Array | None = None,
    max_iter: int | None = None,
    preconditioner: Any = None,
    direct: int = 2000,
) -> Solution:
    r"""Solve :math:`Ax=b` by a method that is chosen by looking at A, and verify the residual.

    A matrix with at most ``direct`` rows is factored (Cholesky if it is symmetric positive
    definite, else LU). All others are used through their products:
    symmetry is tested on random vectors, the spectrum is estimated by a few Lanczos steps, and
    conjugate gradients, MINRES (negative curvature) or BiCGSTAB (not symmetric) begin. When one of
    them stops early, the next goes on from the best x so far; GMRES is the last. Where conjugate
    gradients would need more steps than they may take, a preconditioner is made first
    (:func:`low_rank`, of rank 50, for at most a million unknowns). The residual that counts is
    computed from x at the end.

    Parameters
    ----------
    A : LinearOperator or array, square
    b : array
    rtol : float
        Promise :math:`\|b-Ax\|\le\mathrm{rtol}\,\|b\|`, or what rounding allows:
        :math:`10\,\epsilon\|A\|\|x\|`, and never more than :math:`10^{-3}\|b\|`.
    x0 : array, optional
        Start of the iterations: the solution of a similar system, say.
    max_iter : int, optional
        Steps for each method; ten times the size of x, at least 100 and at most 10,000.
    preconditioner : LinearOperator, optional
        For all methods but MINRES: positive definite for conjugate gradients (:func:`jacobi`,
        :func:`lbfgs`, :func:`low_rank`), any for the others (:func:`ilu`).
    direct : int
        Largest number of rows that is factored.

    Returns
    -------
    Solution
        ``converged`` is False, and ``reason`` says why, where the promise was not kept. A matrix
        that is singular to rounding gets a damped least-squares solution, named so. Torch does
        not differentiate x: :func:`layer` is for that.

    Raises
    ------
    ValueError
        If A is not square or b does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> found = solve(np.array([[2.0, 1.0], [-1.0, 1.0]]), np.array([3.0, 0.0]))
    >>> found.x, found.method, found.converged
    (array([1., 1.]), 'lu', True)
    """
    A, b, x = _system(A, b, x0, square=True)
    b, size = detach(b), math.prod(A.in_shape)
    budget = min(max(10 * size, 100), 10_000) if max_iter is None else max_iter
    budget, direct = as_count(budget, "max_iter"), as_count(direct, "direct")
    _product(preconditioner, A)
    rtol = max(as_scalar(rtol, "rtol", positive=True), 10 * _eps(b))
    if to_float(norm(b)) == 0:
        return Solution(0 * b, True, "b is zero", "none", 0, 0.0, None, None, ())
    if A.matrix is not None and size <= direct:
        found, method, condition = _direct(A.matrix, b)
        return _solution(A, b, asarray_like(found, b), rtol, (method,), method, 0, condition, None)
    methods, condition, predicted, Pi = _plan(A, b, rtol, budget, preconditioner)
    best, steps, tried = methods[0], 0, []
    left = to_float(norm(b) if x0 is None else norm(b - A @ x))
    for method in methods:
        tried.append(method)
        found = _iterate(method, A, b, x, rtol, budget, Pi)
        steps += found.iterations
        if (after := to_float(norm(b - A @ found.x))) < left:
            x, best, left = detach(found.x), method, after
        if found.converged:
            break
    return _solution(A, b, x, rtol, tuple(tried), best, steps, condition, predicted)


def _iterate(
    method: str, A: LinearOperator, b: Array, x: Array, rtol: float, budget: int, Pi: Any
) -> Result:
    # The basis of GMRES is kept: a budget of its own.
    budget = min(budget, 300) if method == "gmres" else budget
    options = {} if method == "minres" else {"preconditioner": Pi}
    states = {"cg": cg, "minres": minres, "bicgstab": bicgstab, "gmres": gmres}[method]
    return run(states(A, b, x, **options), stop=residual_rule(A, b, rtol=rtol), max_iter=budget)


def _solution(
    A: LinearOperator,
    b: Array,
    x: Array,
    rtol: float,
    tried: tuple[str, ...],
    method: str,
    steps: int,
    condition: float | None,
    predicted: int | None,
) -> Solution:
    """Return the record; the true residual decides."""
    scale = to_float(norm(b))
    residual = to_float(norm(b - A @ x)) / scale
    if rtol < residual <= 1e-3:
        # What rounding allows: in floating point nobody promises more than a small backward error.
        # Not more than 1e-3: with a huge x any residual would be small beside ‖A‖‖x‖.
        allowed = 10 * _eps(b) * A.norm(rtol=0.5, like=b) * to_float(norm(x)) / scale
        rtol = max(rtol, min(1e-3, allowed))
    converged = residual <= rtol and method != "damped"
    if condition is None and not converged:
        values = np.linalg.svd(golub_kahan(A, b, 15)[2], compute_uv=False)
        # None at all: the direction b is mapped to zero.
        least = max(values.min(initial=math.inf), np.finfo(float).tiny)
        condition = float(values.max(initial=0) / least) or math.inf
    reason = f"{' after '.join(reversed(tried))}: relative residual {residual:.1e}"
    if not converged:
        reason += f", asked for {rtol:.1e}"
        reason += "" if method == "damped" else f"; condition number at least {condition:.0e}"
    if method == "damped":
        reason = f"A is singular to rounding (condition number {condition:.1e}); {reason}"
    return Solution(x, converged, reason, method, steps, residual, condition, predicted, tried)


# ------------------------------------------------------------------------------------------------
# Preconditioners: operators that approximate the inverse


def jacobi(diag: Array) -> LinearOperator:
    r"""Return :math:`\Pi=\operatorname{diag}(A)^{-1}` for a diagonal of positive numbers.

    Examples
    --------
    >>> import numpy as np
    >>> jacobi(np.array([2.0, 4.0])) @ np.ones(2)
    array([0.5 , 0.25])
    """
    diag = as_real(diag, "diag")
    require(
        to_float(array_namespace(diag).min(diag)) > 0,
        "diag must be positive: Jacobi's preconditioner divides by it",
    )
    return diagonal(1 / diag)


def ilu(M: Any, *, drop_tol: float = 1e-4, fill_factor: float = 10.0) -> LinearOperator:
    r"""Return :math:`\Pi=(\tilde L\tilde U)^{-1}` from an incomplete LU factorization by SciPy.

    Fill-in below ``drop_tol``, or beyond ``fill_factor`` times the entries of M, is dropped. It is
    not symmetric: for GMRES or BiCGSTAB, not for conjugate gradients. It may not exist.

    Parameters
    ----------
    M : scipy.sparse matrix, square
    drop_tol : float
        At least 0.
    fill_factor : float
        At least 1.

    Raises
    ------
    ValueError
        If M is not sparse, square, real and finite, or a pivot is zero.

    Examples
    --------
    >>> import numpy as np, scipy.sparse
    >>> M = scipy.sparse.diags_array([2.0, 4.0]).tocsc()
    >>> ilu(M) @ np.ones(2)
    array([0.5 , 0.25])
    """
    from scipy.sparse.linalg import spilu

    require(
        is_sparse(M) and hasattr(M, "tocsc"),
        f"ilu needs a scipy.sparse matrix: got {type(M).__name__}",
    )
    drop = as_scalar(drop_tol, "drop_tol", minimum=0.0)
    fill = as_scalar(fill_factor, "fill_factor", minimum=1.0)
    A = matrix(M)
    require(A.in_shape == A.out_shape, f"M must be square: got shape {M.shape}")
    try:
        factors = spilu(M.tocsc().astype(float), drop_tol=drop, fill_factor=fill)
    except RuntimeError as error:
        raise ValueError(f"ilu met a zero pivot: {error}") from None
    least = np.abs(factors.U.diagonal()).min()
    require(least > np.finfo(float).tiny, f"ilu needs pivots to divide by: got {least:.1e}")

    def product(v: Array, trans: str = "N") -> Array:
        return factors.solve(v.astype(float), trans).astype(v.dtype)

    return LinearOperator(
        product, lambda v: product(v, "T"), A.in_shape, A.in_shape, "ILU", like=A.like
    )


def lbfgs(pairs: list[tuple[Array, Array]]) -> LinearOperator:
    r"""Return the L-BFGS approximation Π of an inverse Hessian, by the two-loop recursion.

    From m pairs :math:`(s_i,y_i)` of steps and differences of gradients, :math:`y_i=Hs_i` for a
    quadratic. Π is symmetric, positive definite since every :math:`s_i^\top y_i>0`, and
    :math:`\Pi y_m=s_m`. A product costs about 4mn multiplications, the pairs 2mn numbers.

    Raises
    ------
    ValueError
        If there is no pair, or one has :math:`s_i^\top y_i\le0`.

    References
    ----------
    Nocedal (1980), Math. Comp. 35, 773-782.

    Examples
    --------
    >>> import numpy as np
    >>> lbfgs([(np.array([1.0, 0.0]), np.array([2.0, 0.0]))]) @ np.array([2.0, 2.0])
    array([1., 1.])
    """
    # A list of its own: the preconditioner must not change under an iteration.
    pairs = list(pairs)
    require(len(pairs) > 0, "lbfgs needs a pair (s, y): got none")
    like = as_real(pairs[0][0], "s")
    shape = tuple(like.shape)
    pairs = [
        (as_real(s, "s", shape=shape, like=like), as_real(y, "y", shape=shape, like=like))
        for s, y in pairs
    ]
    curvatures = [to_float(inner(s, y)) for s, y in pairs]
    require(min(curvatures) > 0, f"every pair must have <s, y> > 0: got {min(curvatures):.1e}")
    square = to_float(inner(pairs[-1][1], pairs[-1][1]))
    require(square > 0, "the square of y must not underflow: scale the problem")
    start = curvatures[-1] / square

    def apply(v: Array) -> Array:
        weights = []
        for (s, y), curvature in zip(reversed(pairs), reversed(curvatures), strict=True):
            weights.append(inner(s, v) / curvature)
            v = v - weights[-1] * y
        v = start * v
        for (s, y), curvature in zip(pairs, curvatures, strict=True):
            v = v + (weights.pop() - inner(y, v) / curvature) * s
        return v

    return LinearOperator(apply, apply, shape, shape, "L-BFGS", like=like)


def low_rank(A: Any, rank: int, shift: float, *, like: Array, seed: int = 0) -> LinearOperator:
    r"""Return a preconditioner for :math:`A+\omega I` from a randomized Nyström approximation of A.

    With :math:`A\approx V\Lambda V^\top` of the given rank,

    .. math:: \Pi=(\Lambda_r+\omega)V(\Lambda+\omega I)^{-1}V^\top+(I-VV^\top).

    Good where the eigenvalues of A fall fast and the shift ω is small. A must be symmetric positive
    semidefinite; it is used ``rank`` times.

    Parameters
    ----------
    A : LinearOperator or array, square
    rank : int
    shift : float
        :math:`\omega>0`.
    like : array
        Sets namespace, dtype and device.

    References
    ----------
    Frangella, Tropp and Udell (2023), SIAM J. Matrix Anal. Appl. 44, 718-752.

    Examples
    --------
    >>> import numpy as np
    >>> A = np.diag([100.0, 1.0, 0.0])
    >>> Pi = low_rank(A, 2, 1.0, like=A)
    >>> bool(np.linalg.cond(Pi.to_dense() @ (A + np.eye(3))) < 3)
    True
    """
    A, omega, like = as_operator(A), as_scalar(shift, "shift", positive=True), as_real(like, "like")
    require(A.in_shape == A.out_shape, f"A must be square: got {A.in_shape} -> {A.out_shape}")
    size = math.prod(A.in_shape)
    rank = as_count(rank, "rank", minimum=1, maximum=size)
    Omega = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, rank)))[0]
    columns = (A @ asarray_like(column.reshape(A.in_shape), like) for column in Omega.T)
    Y = np.stack([to_numpy(column).ravel() for column in columns], axis=1)
    require(np.isfinite(Y).all(), f"{A.name} must be finite: expected finite products, got others")
    # A small shift keeps the Cholesky factor real; it is taken off again.
    nu = math.sqrt(size) * _eps(like) * max(np.linalg.norm(Y, 2), np.finfo(float).tiny)
    Y = Y + nu * Omega
    try:
        factor = np.linalg.cholesky((Omega.T @ Y + Y.T @ Omega) / 2)
    except np.linalg.LinAlgError:
        raise ValueError("A must be positive semidefinite: got negative curvature") from None
    V, s, _ = np.linalg.svd(np.linalg.solve(factor, Y.T).T, full_matrices=False)
    found = np.maximum(s**2 - nu, 0)
    basis, gain = (
        asarray_like(V, like),
        asarray_like((found[-1] + omega) / (found + omega) - 1, like),
    )
    xp = array_namespace(like)

    def apply(v: Array) -> Array:
        flat = xp.reshape(v, (-1,))
        return xp.reshape(flat + basis @ (gain * (basis.T @ flat)), A.in_shape)

    return LinearOperator(apply, apply, A.in_shape, A.in_shape, "Nyström", like=like)


# ------------------------------------------------------------------------------------------------
# Systems that are nearly singular


def lavrentiev(A: Any, omega: float) -> LinearOperator:
    r"""Return :math:`A+\omega I`, Lavrentiev's regularization.

    If :math:`\langle Av,v\rangle\ge0` for all v, then
    :math:`\|(A+\omega I)^{-1}\|\le1/\omega`. If not, the shift can make a good matrix singular;
    Tikhonov's form :math:`(A^\top A+\omega I)x=A^\top b`
    (:func:`course_lib.filters.tikhonov`) cannot. Neither brings back the small modes.

    Examples
    --------
    >>> import numpy as np
    >>> lavrentiev(np.diag([-0.1, 1.0]), 0.1).to_dense()
    array([[0. , 0. ],
           [0. , 1.1]])
    """
    A, omega = as_operator(A), as_scalar(omega, "omega", positive=True)
    require(A.in_shape == A.out_shape, f"A must be square: got {A.in_shape} -> {A.out_shape}")
    if A.matrix is not None:
        return matrix(A.matrix + omega * asarray_like(np.eye(A.matrix.shape[0]), A.matrix))
    shape, name = A.in_shape, f"{A.name} + {omega:g} I"
    return LinearOperator(
        lambda v: A @ v + omega * v, lambda v: A.H @ v + omega * v, shape, shape, name, A.like
    )


class RefinementState(NamedTuple):
    """Iterate and residual b - Ax, both in the precision of b."""

    x: Array
    r: Array


def refine(M: np.ndarray, b: np.ndarray) -> Iterator[RefinementState]:
    r"""Iterative refinement: a factorization in single precision, residuals in double.

    .. math:: x_{k+1}=x_k+\tilde A^{-1}(b-Ax_k)

    The error falls by a factor of about :math:`\kappa(A)\,\mathrm{eps}_{\rm mach}` of the single
    precision in every step: it converges if that is below 1, else it grows. It brings the solution
    of the system as it stands, noise in b included: it does not regularize.

    Parameters
    ----------
    M : NumPy array, shape (n, n), float64
    b : NumPy array, shape (n,), float64

    Yields
    ------
    RefinementState

    References
    ----------
    Wilkinson (1963), Rounding Errors in Algebraic Processes.

    Examples
    --------
    >>> import numpy as np
    >>> M, b = np.array([[3.0, 1.0], [1.0, 3.0]]), np.array([1.0, 0.0])
    >>> run(refine(M, b), stop=residual_rule(M, b, rtol=1e-15), max_iter=5).x
    array([ 0.375, -0.125])
    """
    from scipy.linalg import lapack

    M, b = as_real(M, "M", ndim=2), as_real(b, "b", shape=M.shape[:1])
    require(
        isinstance(M, np.ndarray) and M.dtype == b.dtype == np.float64,
        "refine needs NumPy arrays in double precision",
    )
    require(M.shape[0] == M.shape[1], f"M must be square: got shape {M.shape}")
    # Scaled to one, because the exponents of single precision end at 38.
    scale = np.abs(M).max() or 1.0
    factors, pivots, info = lapack.sgetrf((M / scale).astype(np.float32))
    require(info == 0, "M must not be singular: got a zero pivot in single precision")

    def iterate() -> Iterator[RefinementState]:
        x = np.zeros_like(b)
        while True:
            r = b - M @ x
            yield RefinementState(x, r)
            size = to_float(norm(r))
            if size == 0:
                return "the residual is exactly zero"
            d = lapack.sgetrs(factors, pivots, (r / size).astype(np.float32))[0]
            x = x + (size / scale) * d.astype(np.float64)

    return iterate()


def error_bound(
    inner_residual: float,
    adjoint_residual: float,
    *,
    mu: float,
    adjoint_norm: float,
    F_theta_norm: float,
    lip_F_x: float = 0.0,
    lip_F_theta: float = 0.0,
    lip_grad: float = 0.0,
    lip_direct: float = 0.0,
) -> float:
    r"""Return a bound of the error of a hypergradient from the residuals that were left.

    For an inner solution :math:`\tilde x` with :math:`\|F(\tilde x,\theta)\|=r`, an adjoint ψ with
    :math:`\|F_x^\top\psi-\nabla_xf\|=\rho` at :math:`\tilde x`, and F strongly monotone in x with
    constant μ (so :math:`\|F_x^{-1}\|\le1/\mu` everywhere),

    .. math::
        \|\tilde\nabla J-\nabla J\|\le(L_d+L_{F_\theta}\|\psi\|)\,e
        +\frac{\|F_\theta\|+L_{F_\theta}e}{\mu}
        \bigl(\rho+(L_{\nabla f}+L_{F_x}\|\psi\|)\,e\bigr),\qquad e=\frac r\mu .

    The first residual is the one that no accuracy of the linear solve removes.

    Parameters
    ----------
    inner_residual, adjoint_residual : float
        r and ρ.
    mu : float
        A lower bound: an estimate by Ritz values is too large, and then so is the promise.
    adjoint_norm, F_theta_norm : float
        :math:`\|\psi\|` and :math:`\|F_\theta\|`, at what was computed.
    lip_F_x, lip_F_theta, lip_grad, lip_direct : float
        Lipschitz constants, in x, of :math:`F_x`, :math:`F_\theta`, :math:`\nabla_xf` and
        :math:`\nabla_\theta f`.

    References
    ----------
    Pedregosa (2016), Hyperparameter optimization with approximate gradient, ICML.

    Examples
    --------
    >>> error_bound(0.0, 1e-3, mu=0.1, adjoint_norm=1.0, F_theta_norm=2.0)
    0.02
    """
    given = {
        "inner_residual": inner_residual,
        "adjoint_residual": adjoint_residual,
        "adjoint_norm": adjoint_norm,
        "F_theta_norm": F_theta_norm,
        "lip_F_x": lip_F_x,
        "lip_F_theta": lip_F_theta,
        "lip_grad": lip_grad,
        "lip_direct": lip_direct,
    }
    r, rho, psi, slope, of_F_x, of_F_theta, of_grad, of_direct = (
        as_scalar(number, name, minimum=0.0) for name, number in given.items()
    )
    mu = as_scalar(mu, "mu", positive=True)
    e = r / mu
    adjoint_error = (rho + (of_grad + of_F_x * psi) * e) / mu
    bound = (of_direct + of_F_theta * psi) * e + (slope + of_F_theta * e) * adjoint_error
    return math.inf if math.isnan(bound) else bound  # 0 times an e that has overflowed


# ------------------------------------------------------------------------------------------------
# Layers


def layer(
    solver_of_x: Callable[..., Array],
    F: Callable[..., Array],
    *,
    fixed_point: bool = False,
    solver: Callable | None = None,
) -> Callable[..., Array]:
    r"""Return :math:`\theta\mapsto x^\star(\theta)` as a function that torch differentiates.

    What finds x runs without a graph, in O(n) memory; backwards one linear system with
    :math:`F_x^\top` is solved. Only first derivatives are possible, by ``backward`` or
    ``torch.autograd`` (not ``torch.func``), and only with respect to the thetas: a parameter that F
    takes from elsewhere gets none.

    Parameters
    ----------
    solver_of_x : callable
        ``solver_of_x(*thetas)`` returns the root as a tensor (or a ``Result``), to an accuracy that
        the derivative inherits.
    F : callable
        ``F(x, *thetas)``, a torch function: zero at the root; with ``fixed_point`` the map T with
        x = T(x, θ).
    solver : callable, optional
        For the linear system, default :func:`solve`.

    Examples
    --------
    >>> import torch
    >>> root = layer(lambda a: a**0.5, lambda x, a: x**2 - a)
    >>> a = torch.tensor([4.0, 9.0], requires_grad=True)
    >>> root(a).sum().backward()
    >>> a.grad
    tensor([0.2500, 0.1667])
    """

    def residual(x: Array, *thetas: Array) -> Array:
        return F(x, *thetas) - x if fixed_point else F(x, *thetas)

    def of_theta(*thetas: Array) -> Array:
        from . import autodiff

        require(
            len(thetas) > 0 and all(is_torch_array(theta) for theta in thetas),
            "layer needs torch tensors: expected one for each parameter",
        )
        found = solver_of_x(*map(detach, thetas))
        if not getattr(found, "converged", True):
            raise ValueError(f"the inner problem must be solved: {found.reason}")
        # A copy: a solver with a warm start may go on in the same memory.
        x = as_real(detach(getattr(found, "x", found)), "the root", like=thetas[0]).clone()

        def pullback(v: Array) -> tuple[Array, ...]:
            F_x, *others = linearize(residual, x, *thetas)
            psi = _answer(solver or solve, F_x.H, v)
            return tuple(as_real(-(F_theta.H @ psi), "the derivative") for F_theta in others)

        return autodiff.attach(x, thetas, pullback)

    return of_theta


def batch_norm(x: Array, *, eps: float = 0.0) -> tuple[Array, Array]:
    r"""Return :math:`y=(x-\bar x)/\sqrt{s^2+\mathrm{eps}}` and the divisor, over the first axis.

    With eps = 0 this is the solution of :math:`sy+\bar x\mathbf1=x,\ \mathbf1^\top y=0,\
    y^\top y=n` with s > 0.

    Raises
    ------
    ValueError
        If the batch is constant and eps is 0: every y with the two properties is a solution. If
        a square overflows.

    Examples
    --------
    >>> import numpy as np
    >>> batch_norm(np.array([1.0, 3.0]))[0]
    array([-1.,  1.])
    """
    x, eps = as_real(x, "x"), as_scalar(eps, "eps", minimum=0.0)
    xp = array_namespace(x)
    # The mean of equal numbers is that number to rounding only, but the mean of zeros is 0.
    shifted = x - x[:1, ...]
    centred = shifted - xp.mean(shifted, axis=0)
    with np.errstate(over="ignore"):
        divisor = xp.sqrt(xp.mean(centred**2, axis=0) + eps)
    divisor = as_real(xp.asarray(divisor), "the standard deviation")
    require(
        eps > 0 or to_float(xp.min(divisor - 4 * _eps(x) * xp.max(xp.abs(x), axis=0))) > 0,
        "the batch must not be constant: its standard deviation is 0, and eps too",
    )
    return centred / divisor, divisor


def batch_norm_vjp(y: Array, divisor: Array, v: Array) -> Array:
    r"""Return :math:`\frac1d\bigl(v-\bar v\mathbf1-y\,\overline{y\odot v}\bigr)`, d the divisor.

    The derivative by x of a loss with :math:`\nabla_yf=v`, from the implicit function theorem;
    y and d are what :func:`batch_norm` returned.

    Examples
    --------
    >>> import numpy as np
    >>> y, d = batch_norm(np.array([0.0, 1.0, 5.0]))
    >>> bool(abs(batch_norm_vjp(y, d, y)).max() < 1e-15)  # the length of y is fixed
    True
    """
    y = as_real(y, "y")
    v = as_real(v, "v", shape=tuple(y.shape), like=y)
    xp = array_namespace(y)
    divisor = as_real(xp.asarray(divisor), "divisor", shape=tuple(y.shape[1:]), like=y)
    require(to_float(xp.min(divisor)) > 0, "divisor must be positive: it comes from batch_norm")
    return (v - xp.mean(v, axis=0) - y * xp.mean(y * v, axis=0)) / divisor
