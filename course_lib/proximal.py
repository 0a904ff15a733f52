r"""Iterations for convex problems that are not smooth, and the problems solved with them.

.. math:: \min_x\ f(x)+R(x)\qquad\text{or}\qquad\min_x\ f(x)+g(Kx)

with functionals of :mod:`course_lib.functionals`. The iterations are generators of states: drive
them with :func:`course_lib.iterate.run`. They check shape, dtype and finiteness, not the step
size, because the book shows a step above the limit diverge. The problem functions check all of
it and answer with a :class:`course_lib.iterate.Result`.
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from .arrays import (
    Array,
    as_real,
    as_scalar,
    asarray_like,
    check_alike,
    detach,
    inner,
    norm,
    require,
    to_float,
    to_numpy,
    zeros,
)
from .functionals import Functional, l1, least_squares
from .functionals import elastic_net as elastic_net_functional
from .iterate import Result, StoppingRule, _tolerance, residual_rule, run
from .linear import cg
from .operators import (
    LinearOperator,
    _response,
    _with_data,
    as_operator,
    diagonal,
    gradient,
    identity,
)

__all__ = [
    "admm",
    "admm_rule",
    "elastic_net",
    "fista",
    "gap_rule",
    "gradient_descent",
    "ista",
    "lasso",
    "lasso_gap_rule",
    "least_squares_step",
    "pdhg",
    "prox_gradient_rule",
    "prox_tv",
    "tv_deblur",
]


class GradientState(NamedTuple):
    """Iterate and gradient there."""

    x: Array
    gradient: Array


class ProximalState(NamedTuple):
    """Iterate, the point from which the last step was taken, and FISTA's ``t`` (ISTA: 1)."""

    x: Array
    x_ext: Array
    t: float


class ADMMState(NamedTuple):
    """Iterate, its copy z of Kx, scaled dual ν, penalty ρ; Kx, and the v of the last x-step.

    The residuals are worked out when they are asked for. At the start, where v is None, ``s`` is
    infinite.
    """

    x: Array
    z: Array
    nu: Array
    rho: float
    Kx: Array
    v: Array | None
    K: LinearOperator

    @property
    def dual(self) -> Array:
        """The dual variable ρν, a subgradient of g at z."""
        return self.rho * self.nu

    @property
    def r(self) -> Array:
        """The primal residual Kx - z."""
        return self.Kx - self.z

    @property
    def s(self) -> Array:
        """The dual residual: -Kᵀ(ρν) - s is a subgradient of f at x.

        The x-step gives -ρKᵀ(Kx - v). Without relaxation s is ρKᵀ(z - z_old).
        """
        if self.v is None:
            return math.inf + 0.0 * self.x
        return self.rho * (self.K.H @ (self.Kx - self.v - self.nu))


class PDHGState(NamedTuple):
    """Iterate, scaled dual variable ν = p/σ, extrapolated iterate, and the dual step σ."""

    x: Array
    nu: Array
    x_ext: Array
    dual_step: float

    @property
    def dual(self) -> Array:
        """The dual variable p = σν."""
        return self.dual_step * self.nu


class LassoState(NamedTuple):
    r"""Iterate, with all that certifies it.

    ``r`` is y - Ax. ``c``, the correlations :math:`A^\top r-\lambda_2x`, is
    :math:`\lambda\operatorname{sign}x` on the support of a solution and at most λ in size
    elsewhere. ``dual`` is a feasible dual point, ``gap`` the duality gap between x and it
    (absolute), ``objective`` the value at x, ``support`` the mask of the entries that are not 0.
    """

    x: Array
    r: Array
    c: Array
    dual: Array
    gap: float
    objective: float
    support: Array


def _needs(functional: Functional, name: str, what: str) -> Callable:
    require(
        isinstance(functional, Functional),
        f"{name} must be a functional: got {type(functional).__name__}",
    )
    function = getattr(functional, what)
    require(
        function is not None,
        f"{name} must have a {what}: {functional.name} has none in closed form",
    )
    return function


def _fits(function: Callable, name: str, x: Array, x_name: str, *step: float) -> None:
    """Try a gradient or proximal map: what does not fit is refused now, not at the first step."""
    try:
        shape = tuple(function(x, *step).shape)
    except ValueError as error:
        raise ValueError(f"{x_name} must fit {name}: {error}") from None
    require(
        shape == x.shape,
        f"{x_name} must fit {name}: expected an array of shape {tuple(x.shape)} from it, "
        f"got {shape}",
    )


def gradient_descent(f: Functional, x0: Array, *, step: float) -> Iterator[GradientState]:
    r"""Gradient descent :math:`x_{k+1}=x_k-\eta\nabla f(x_k)` for a smooth f.

    With an L-Lipschitz gradient f decreases for :math:`0<\eta<2/L`.

    Parameters
    ----------
    f : Functional
        With a gradient.
    x0 : array
    step : float
        :math:`\eta>0`. It is not compared with the limit.

    Yields
    ------
    GradientState

    Raises
    ------
    ValueError
        If f has no gradient, x0 is no finite array, or ``step`` is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import squared_l2
    >>> from course_lib.iterate import run
    >>> run(gradient_descent(squared_l2(), np.array([8.0]), step=0.5), max_iter=3).x
    array([1.])
    """
    x0, step = as_real(x0, "x0"), as_scalar(step, "step", positive=True)
    _fits(_needs(f, "f", "gradient"), "f", x0, "x0")

    def iterate():
        x = x0
        while True:
            g = f.gradient(x)
            yield GradientState(x, g)
            x = x - step * g

    return iterate()


def _composite(f: Functional, R: Functional, x0: Array, step: float) -> tuple[Array, float]:
    x0, step = as_real(x0, "x0"), as_scalar(step, "step", positive=True)
    _fits(_needs(f, "f", "gradient"), "f", x0, "x0")
    _fits(_needs(R, "R", "prox"), "R", x0, "x0", step)
    return x0, step


def ista(f: Functional, R: Functional, x0: Array, *, step: float) -> Iterator[ProximalState]:
    r"""ISTA, the proximal gradient method, for :math:`\min_x F(x)=f(x)+R(x)`.

    .. math:: x_{k+1}=\operatorname{prox}_{\eta R}(x_k-\eta\nabla f(x_k)),\qquad
        F(x_k)-F^\star\le\frac{\|x_0-x^\star\|^2}{2\eta k}\quad(\eta\le1/L).

    Parameters
    ----------
    f : Functional
        Convex, with a gradient whose Lipschitz constant is L.
    R : Functional
        Convex, with a proximal map.
    x0 : array
    step : float
        :math:`\eta>0`. It is not compared with the limit.

    Yields
    ------
    ProximalState

    Raises
    ------
    ValueError
        If a gradient or proximal map is missing, x0 is no finite array, or ``step`` is not
        positive.

    References
    ----------
    Daubechies, Defrise and De Mol (2004), Comm. Pure Appl. Math. 57, 1413-1457.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import l1, least_squares
    >>> from course_lib.iterate import run
    >>> f = least_squares(np.diag([1.0, 0.5]), np.array([2.0, 2.0]))
    >>> run(ista(f, 0.5 * l1(), np.zeros(2), step=1.0), max_iter=100).x.round(6)
    array([1.5, 2. ])
    """
    x0, step = _composite(f, R, x0, step)

    def iterate():
        x = x_old = x0
        while True:
            yield ProximalState(x, x_old, 1.0)
            x, x_old = R.prox(x - step * f.gradient(x), step), x

    return iterate()


def fista(
    f: Functional, R: Functional, x0: Array, *, step: float, restart: bool = False
) -> Iterator[ProximalState]:
    r"""FISTA, the accelerated proximal gradient method, for :math:`\min_x F(x)=f(x)+R(x)`.

    From :math:`\tilde x_1=x_0`, :math:`t_1=1`:

    .. math::
        x_k=\operatorname{prox}_{\eta R}(\tilde x_k-\eta\nabla f(\tilde x_k)),\quad
        t_{k+1}=\tfrac12\bigl(1+\sqrt{1+4t_k^2}\bigr),\quad
        \tilde x_{k+1}=x_k+\tfrac{t_k-1}{t_{k+1}}(x_k-x_{k-1}),

    .. math:: F(x_k)-F^\star\le\frac{2\|x_0-x^\star\|^2}{\eta(k+1)^2}\quad(\eta\le1/L).

    F need not decrease at each step. With ``restart`` the momentum is dropped (t = 1) when it
    points uphill, :math:`\langle\tilde x_k-x_k,x_k-x_{k-1}\rangle>0`: no slower in practice, and
    much faster where F is strongly convex near the solution; the bound is proved without it.

    Parameters
    ----------
    f, R, x0, step :
        As in :func:`ista`.
    restart : bool
        Adaptive restart by the gradient.

    Yields
    ------
    ProximalState

    Raises
    ------
    ValueError
        As :func:`ista`.

    References
    ----------
    Beck and Teboulle (2009), SIAM J. Imaging Sci. 2, 183-202; restart: O'Donoghue and Candès
    (2015), Found. Comput. Math. 15, 715-732.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import l1, least_squares
    >>> from course_lib.iterate import run
    >>> f = least_squares(np.diag([1.0, 0.5]), np.array([2.0, 2.0]))
    >>> run(fista(f, 0.5 * l1(), np.zeros(2), step=1.0), max_iter=100).x.round(4)
    array([1.5, 2. ])
    """
    x0, step = _composite(f, R, x0, step)

    def iterate():
        x = x_ext = x_from = x0
        t = 1.0
        while True:
            yield ProximalState(x, x_from, t)
            x, x_old = R.prox(x_ext - step * f.gradient(x_ext), step), x
            if restart and to_float(inner(x_ext - x, x - x_old)) > 0:
                t = 1.0
            t, t_old = 0.5 * (1 + math.sqrt(1 + 4 * t**2)), t
            x_from, x_ext = x_ext, x + ((t_old - 1) / t) * (x - x_old)

    return iterate()


def prox_gradient_rule(
    f: Functional, R: Functional, x0: Array, *, step: float, rtol: float = 0.0, atol: float = 0.0
) -> StoppingRule:
    r"""Stop when :math:`\|x-\operatorname{prox}_{\eta R}(x-\eta\nabla f(x))\|/\eta` is small.

    This norm of the gradient mapping is 0 exactly at the minimizers of f + R; for R = 0 it is the
    norm of the gradient. Small means at most max(rtol S, atol), where S is the larger of its value
    at x0 and of :math:`\|\nabla f(0)\|`: so a start at the solution counts as converged. Each test
    costs as much as a step of ISTA: use ``check_every``.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import l1, least_squares
    >>> from course_lib.iterate import run
    >>> f, R, x0 = least_squares(np.diag([1.0, 0.5]), np.array([2.0, 2.0])), 0.5 * l1(), np.zeros(2)
    >>> rule = prox_gradient_rule(f, R, x0, step=1.0, rtol=1e-9)
    >>> result = run(ista(f, R, x0, step=1.0), stop=rule, max_iter=1000)
    >>> result.x.round(6), result.converged
    (array([1.5, 2. ]), True)
    """
    x0, step = _composite(f, R, x0, step)

    def measure(state: Any) -> float:
        x = detach(state.x)
        return to_float(norm(x - R.prox(x - step * f.gradient(x), step))) / step

    start = measure(ProximalState(x0, x0, 1.0))
    scale = max(start, to_float(norm(f.gradient(0.0 * x0))))
    return StoppingRule(measure, measure, _tolerance(rtol, atol, scale), "gradient mapping")


def _lasso_state(
    A: LinearOperator, y: Array, lam: float, lam2: float, x: Array, r: Array | None = None
) -> LassoState:
    r"""Return x with residual (computed unless known), correlations, dual point and gap.

    The dual point is :math:`sr`, with the best factor s such that
    :math:`|s|\,\|c\|_\infty\le\lambda`. For :math:`\lambda_2>0` it belongs to the LASSO with the
    rows :math:`\sqrt{\lambda_2}I` below A. The gap is written as a sum of terms that are not
    negative, because the difference of the two objectives would cancel:
    :math:`\tfrac12(1-s)^2(\|r\|^2+\lambda_2\|x\|^2)+\sum_j(\lambda|x_j|-s\,c_jx_j)`.
    """
    x = detach(x)
    xp, r = array_namespace(x), detach(y - A @ x) if r is None else r
    c = detach(A.H @ r) - lam2 * x
    square = to_float(inner(r, r)) + (lam2 * to_float(inner(x, x)) if lam2 else 0.0)
    top = to_float(xp.max(abs(c)))
    s = to_float(inner(r, y)) / square if square > 0 else 1.0
    s = min(max(s, -lam / top), lam / top) if top > 0 else s
    gap = 0.5 * (1 - s) ** 2 * square + to_float(xp.sum(lam * abs(x) - s * c * x))
    objective = 0.5 * square + lam * to_float(xp.sum(abs(x)))
    return LassoState(x, r, c, s * r, gap, objective, x != 0)


def lasso_gap_rule(
    A: Any, y: Array, lam: float, *, lam2: float = 0.0, rtol: float = 1e-6
) -> StoppingRule:
    r"""Stop when the duality gap of the LASSO is at most rtol times the objective.

    .. math::
        P(x)=\tfrac12\|Ax-y\|^2+\lambda\|x\|_1,\quad
        D(\vartheta)=\tfrac12\|y\|^2-\tfrac12\|y-\vartheta\|^2\ \text{ for }
        \|A^\top\vartheta\|_\infty\le\lambda,

    :math:`P(x)-P(x_\lambda)\le P(x)-D(\vartheta)`, at the residual scaled to be feasible,
    :math:`\vartheta=s(y-Ax)`. With ``lam2`` the objective has :math:`\tfrac{\lambda_2}2\|x\|^2`
    too. Each test costs two products with A: use ``check_every``.

    References
    ----------
    Fercoq, Gramfort and Salmon (2015), ICML.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import l1, least_squares
    >>> from course_lib.iterate import run
    >>> A, y = np.diag([1.0, 0.5]), np.array([2.0, 2.0])
    >>> rule = lasso_gap_rule(A, y, 0.5, rtol=1e-9)
    >>> states = fista(least_squares(A, y), 0.5 * l1(), np.zeros(2), step=1.0, restart=True)
    >>> result = run(states, stop=rule, max_iter=1000, check_every=5)
    >>> result.x.round(6), result.converged
    (array([1.5, 2. ]), True)
    """
    A, y = _with_data(A, y)
    lam, lam2 = as_scalar(lam, "lam", positive=True), as_scalar(lam2, "lam2", minimum=0.0)
    rtol = as_scalar(rtol, "rtol", minimum=0.0)

    def measure(state: Any) -> float:
        fresh = _lasso_state(A, y, lam, lam2, state.x)
        return _relative(fresh.gap, fresh.objective)

    return StoppingRule(measure, measure, rtol, "duality gap over objective")


def _relative(gap: float, primal: float) -> float:
    # An objective of 0 is reached: the gap is then rounding noise of 0.
    return gap / (abs(primal) or 1.0) if math.isfinite(gap) else math.inf


def gap_rule(K: Any, f: Functional, g: Functional, *, rtol: float = 1e-6) -> StoppingRule:
    r"""Stop when the duality gap of :math:`\min_xf(x)+g(Kx)` is at most rtol times the objective.

    .. math:: f(x)+g(Kx)+f^*(-K^\top p)+g^*(p)\ \ge\ f(x)+g(Kx)-\min(f+g\circ K)

    for every dual p; it is 0 only at a solution and a dual solution. x and p are those of the
    state (:func:`pdhg`). The gap is finite only where x is allowed and :math:`-K^\top p` is in the
    domain of :math:`f^*`: f should grow fast (a square, a bounded box), and g should be finite. The
    terms cancel, so the size of their rounding, about
    :math:`\mathrm{eps}_{\mathrm{mach}}\|x\|\|K^\top p\|`, is added: noise is no small gap.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import l1, least_squares
    >>> from course_lib.iterate import run
    >>> from course_lib.operators import difference
    >>> K, f, g = difference(3), least_squares(None, np.array([0.0, 0.0, 3.0])), 0.5 * l1()
    >>> states = pdhg(K, f, g, np.zeros(3), step=0.5, dual_step=0.5)
    >>> run(states, stop=gap_rule(K, f, g, rtol=1e-9), max_iter=1000).x.round(4)
    array([0.25, 0.25, 2.5 ])
    """
    _needs(f, "f", "conjugate")
    _needs(g, "g", "conjugate")
    K, rtol = as_operator(K), as_scalar(rtol, "rtol", minimum=0.0)

    def measure(state: Any) -> float:
        x, p = detach(state.x), detach(state.dual)
        Kx, q = K @ x, -(K.H @ p)
        terms = [to_float(t) for t in (f.value(x), g.value(Kx), f.conjugate(q), g.conjugate(p))]
        size = sum(abs(t) for t in terms) + to_float(norm(x) * norm(q) + norm(Kx) * norm(p))
        noise = 4 * float(array_namespace(x).finfo(x.dtype).eps) * size
        return _relative(sum(terms) + noise, terms[0] + terms[1])

    return StoppingRule(measure, measure, rtol, "duality gap over objective")


def pdhg(
    K: Any, f: Functional, g: Functional, x0: Array, *, step: float, dual_step: float
) -> Iterator[PDHGState]:
    r"""The primal-dual hybrid gradient method of Chambolle and Pock for :math:`\min_xf(x)+g(Kx)`.

    From :math:`\tilde x_0=x_0` and p = 0, with dual step σ and primal step η:

    .. math::
        p_{k+1}=\operatorname{prox}_{\sigma g^*}(p_k+\sigma K\tilde x_k),\quad
        x_{k+1}=\operatorname{prox}_{\eta f}(x_k-\eta K^\top p_{k+1}),\quad
        \tilde x_{k+1}=2x_{k+1}-x_k .

    Converges for :math:`\eta\sigma\|K\|^2\le1`, if there is a saddle point. The code keeps
    :math:`\nu=p/\sigma`, for which Moreau's identity turns the first step into

    .. math::
        \nu_{k+1}=u-\operatorname{prox}_{g/\sigma}(u),\qquad u=\nu_k+K\tilde x_k .

    Parameters
    ----------
    K : LinearOperator or array
    f, g : Functional
        Convex, with proximal maps.
    x0 : array, shape ``K.in_shape``
    step, dual_step : float
        η and σ. Not compared with the limit.

    Yields
    ------
    PDHGState

    Raises
    ------
    ValueError
        If a proximal map is missing, x0 does not fit K, or a step is not positive.

    References
    ----------
    Chambolle and Pock (2011), J. Math. Imaging Vision 40, 120-145; the limit included: Condat
    (2013), J. Optim. Theory Appl. 158, 460-479.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import l1, least_squares
    >>> from course_lib.iterate import run
    >>> from course_lib.operators import difference
    >>> f = least_squares(None, np.array([0.0, 0.0, 3.0]))
    >>> states = pdhg(difference(3), f, 0.5 * l1(), np.zeros(3), step=0.5, dual_step=0.5)
    >>> run(states, max_iter=200).x.round(4)
    array([0.25, 0.25, 2.5 ])
    """
    K = as_operator(K)
    x0 = as_real(x0, "x0", shape=K.in_shape, like=K.like)
    step = as_scalar(step, "step", positive=True)
    sigma = as_scalar(dual_step, "dual_step", positive=True)
    _fits(_needs(f, "f", "prox"), "f", x0, "x0", step)
    _fits(_needs(g, "g", "prox"), "g", zeros(K.out_shape, x0), "K @ x0", 1 / sigma)

    def iterate():
        x = x_ext = x0
        nu = zeros(K.out_shape, x0)
        while True:
            yield PDHGState(x, nu, x_ext, sigma)
            u = nu + K @ x_ext
            nu = u - g.prox(u, 1 / sigma)
            x, x_old = f.prox(x - (step * sigma) * (K.H @ nu), step), x
            x_ext = 2 * x - x_old

    return iterate()


def least_squares_step(A: Any, y: Array, K: Any) -> Callable[[Array, float], Array]:
    r"""Return the x-step of ADMM for :math:`f(x)=\tfrac12\|Ax-y\|^2`, a dense solve.

    .. math:: (v,\rho)\mapsto\arg\min_x\ \tfrac12\|Ax-y\|^2+\tfrac\rho2\|Kx-v\|^2
        =(A^\top A+\rho K^\top K)^{-1}(A^\top y+\rho K^\top v).

    Needs :math:`\mathcal N(A)\cap\mathcal N(K)=\{0\}`, or ``ValueError`` is raised at the first
    step. The matrix is decomposed once for each ρ (:math:`H=Q\Lambda Q^\top`); a step then costs
    two products with Q. Where A requires grad the system is solved anew at each step, because the
    derivative of the eigenvectors is infinite at equal eigenvalues.

    Examples
    --------
    >>> import numpy as np
    >>> solve = least_squares_step(np.diag([1.0, 2.0]), np.array([1.0, 1.0]), np.eye(2))
    >>> solve(np.array([0.0, 1.0]), 1.0)
    array([0.5, 0.6])
    """
    A, y = _with_data(A, y)
    K = as_operator(K)
    require(
        A.in_shape == K.in_shape,
        f"K must act on x: expected input shape {A.in_shape}, got {K.in_shape}",
    )
    check_alike(y, "y", K.like, K.name)
    K = replace(K, like=y)  # a v of another kind is refused and not promoted
    M, N, Aty = A.to_dense(like=y), K.to_dense(like=y), A.H @ y
    xp = array_namespace(y)
    noise = M.shape[1] * float(xp.finfo(y.dtype).eps)

    @lru_cache(maxsize=1)
    def decomposed(rho: float) -> tuple[Array, Array, Array]:
        H = M.T @ M + rho * (N.T @ N)
        values, Q = xp.linalg.eigh(detach(H))
        require(
            to_float(values[0]) > noise * to_float(values[-1]),
            "the x-step must be unique: expected null spaces of A and K that meet only in 0, "
            "got a matrix that is singular in this precision",
        )
        return H, values, Q

    def solve(v: Array, rho: float) -> Array:
        b = xp.reshape(Aty + rho * (K.H @ v), (-1,))
        H, values, Q = decomposed(rho)
        taped = getattr(H, "requires_grad", False)
        x = xp.linalg.solve(H, b) if taped else Q @ ((Q.T @ b) / values)
        return xp.reshape(x, A.in_shape)

    return solve


def admm(
    solve: Callable[[Array, float], Array],
    g: Functional,
    K: Any,
    x0: Array,
    *,
    rho: float,
    relaxation: float = 1.0,
) -> Iterator[ADMMState]:
    r"""ADMM in scaled form for :math:`\min_xf(x)+g(Kx)`, split as z = Kx.

    .. math::
        x_{k+1}&=\arg\min_x f(x)+\tfrac\rho2\|Kx-z_k+\nu_k\|^2,\\
        z_{k+1}&=\operatorname{prox}_{g/\rho}(h+\nu_k),\qquad
        h=\alpha Kx_{k+1}+(1-\alpha)z_k,\\
        \nu_{k+1}&=\nu_k+h-z_{k+1},

    with :math:`z_0=Kx_0`, :math:`\nu_0=0`. For every :math:`\rho>0` and relaxation
    :math:`\alpha\in(0,2)` the residuals tend to 0 and :math:`f(x_k)+g(z_k)` to the minimum, when f
    and g are convex, closed and proper, a saddle point exists, and each x-step has a solution;
    :math:`x_k` converges too when K is injective.

    Parameters
    ----------
    solve : callable
        :math:`(v,\rho)\mapsto\arg\min_xf(x)+\tfrac\rho2\|Kx-v\|^2`, for instance
        :func:`least_squares_step`.
    g : Functional
        Convex, with a proximal map.
    K : LinearOperator or array
    x0 : array, shape ``K.in_shape``
    rho : float
        Penalty, positive.
    relaxation : float
        α between 0 and 2; 1 is plain ADMM.

    Yields
    ------
    ADMMState

    Raises
    ------
    ValueError
        If g has no proximal map, x0 does not fit K, or a number is out of range.

    References
    ----------
    Boyd, Parikh, Chu, Peleato and Eckstein (2011), Found. Trends Mach. Learn. 3, 1-122;
    relaxation: Eckstein and Bertsekas (1992), Math. Program. 55, 293-318.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import l1
    >>> from course_lib.iterate import run
    >>> A, y, K = np.diag([1.0, 0.5]), np.array([2.0, 2.0]), np.eye(2)
    >>> states = admm(least_squares_step(A, y, K), 0.5 * l1(), K, np.zeros(2), rho=1.0)
    >>> run(states, stop=admm_rule(K, rtol=1e-8), max_iter=1000).x.round(6)
    array([1.5, 2. ])
    """
    require(callable(solve), f"solve must be callable: got {type(solve).__name__}")
    K = as_operator(K)
    x0 = as_real(x0, "x0", shape=K.in_shape, like=K.like)
    rho = as_scalar(rho, "rho", positive=True)
    alpha = as_scalar(relaxation, "relaxation", positive=True)
    require(alpha < 2, f"relaxation must be below 2: got {alpha}")
    _fits(_needs(g, "g", "prox"), "g", zeros(K.out_shape, x0), "K @ x0", 1 / rho)

    def iterate():
        x = x0
        z = Kx = K @ x0
        nu, v = zeros(K.out_shape, x0), None
        while True:
            yield ADMMState(x, z, nu, rho, Kx, v, K)
            v = z - nu
            x = solve(v, rho)
            Kx = K @ x
            h = Kx if alpha == 1 else alpha * Kx + (1 - alpha) * z
            u = h + nu
            z = g.prox(u, 1 / rho)
            nu = u - z

    return iterate()


def admm_rule(K: Any, *, rtol: float = 1e-6, atol: float = 0.0) -> StoppingRule:
    r"""Stop when both residuals of ADMM are small.

    .. math::
        \|Kx-z\|\le\max(\mathrm{rtol}\max(\|Kx\|,\|z\|),\mathrm{atol}),\qquad
        \|s\|\le\max(\mathrm{rtol}\,\|\rho K^\top\nu\|,\mathrm{atol}).

    The first is feasibility. In the second, :math:`s=\rho K^\top(z-z_{\mathrm{old}})` (without
    relaxation) is how far x and z miss stationarity: :math:`\rho\nu\in\partial g(z)` and
    :math:`-\rho K^\top\nu-s\in\partial f(x)`, as exactly as ``solve`` does its step. Where the
    right side tends to 0 with the left (:math:`Kx=0` or :math:`\nabla f(x)=0` at the solution),
    residuals at the level of rounding, :math:`10\,\mathrm{eps}_{\mathrm{mach}}(\|z\|+\|\nu\|)`
    and :math:`\rho\|K\|` times that, are small enough. Measured is the larger quotient of left
    and right side.

    References
    ----------
    Boyd et al. (2011), section 3.3.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import l1
    >>> from course_lib.iterate import run
    >>> A, y, K = np.diag([1.0, 0.5]), np.array([2.0, 2.0]), np.eye(2)
    >>> states = admm(least_squares_step(A, y, K), 0.5 * l1(), K, np.zeros(2), rho=1.0)
    >>> result = run(states, stop=admm_rule(K, rtol=1e-3), max_iter=1000)
    >>> result.x.round(2), result.reason
    (array([1.5, 2. ]), 'residual of ADMM over its tolerance 9.301e-01 is at most 1.000e+00')
    """
    K = as_operator(K)
    rtol, atol = as_scalar(rtol, "rtol", minimum=0.0), as_scalar(atol, "atol", minimum=0.0)
    length = K.norm()

    def size(x: Array) -> float:
        return to_float(norm(x))

    def quotient(state: ADMMState, Kx: Array) -> float:
        z, nu, rho = state.z, state.nu, state.rho
        noise = 10 * float(array_namespace(z).finfo(z.dtype).eps) * (size(z) + size(nu))
        small = max(rtol * max(size(Kx), size(z)), noise, atol, sys.float_info.min)
        flat = max(rtol * size(K.H @ state.dual), rho * length * noise, atol, sys.float_info.min)
        first, second = size(Kx - z) / small, size(state.s) / flat
        return max(first, second) if math.isfinite(first + second) else math.inf

    return StoppingRule(
        lambda state: quotient(state, state.Kx),
        lambda state: quotient(state, K @ state.x),
        1.0,
        "residual of ADMM over its tolerance",
    )


# Problems, each solved with one of the iterations above.


def _line_search(x: np.ndarray, d: np.ndarray, a: float, lam: float) -> tuple[float, np.ndarray]:
    r"""Return the t that minimizes the objective along d, and :math:`x+td`.

    d is the Newton step for the signs that x has, and :math:`a=\langle d,Hd\rangle`. So the slope
    at t is :math:`a(t-1)`, and :math:`2\lambda|d_i|` more from :math:`t_i=-x_i/d_i` on, where
    :math:`x_i` changes its sign.
    """
    stops = np.divide(-x, d, out=np.full(x.shape, np.inf), where=np.sign(x) * d < 0)
    order = np.argsort(stops)
    jumps = 2 * lam * np.append(0, np.cumsum(abs(d[order])))
    # Between two stops the slope is zero at 1 - jumps/a; the minimum is there or at a stop.
    t = np.maximum(np.append(0, stops[order]), 1 - jumps / a).min()
    return t, np.where(stops == t, 0, x + t * d)


def _newton_step(H: np.ndarray, g: np.ndarray, signs: np.ndarray, enters: np.ndarray) -> np.ndarray:
    """Solve Hd = g where signs are not 0; who enters and would go against its sign stays out."""
    signs, d = signs.copy(), np.zeros(len(g))
    while True:
        S = np.flatnonzero(signs)
        d[S] = np.linalg.solve(H[np.ix_(S, S)], g[S])
        wrong = enters & (d * signs < 0)
        if not wrong.any():
            return d
        signs[wrong] = d[wrong] = 0


def _sign_steps(
    H: np.ndarray, c: np.ndarray, x: np.ndarray, lam: float, slack: np.ndarray
) -> np.ndarray:
    r"""Return :math:`x+d` with the d that minimizes
    :math:`\tfrac12\langle d,Hd\rangle-\langle c,d\rangle+\lambda\|x+d\|_1`.

    Feature-sign search: Newton's step is exact as long as no sign changes. The objective falls at
    each step, so no pattern of signs comes back, and finitely many steps are enough.
    """
    settled = True
    for k in range(10 * len(x) + 100):
        # When no sign has changed, all enter that are correlated too much.
        enters = settled & (x == 0) & (abs(c) > lam + slack)
        if k and settled and not enters.any():
            break
        signs = np.sign(np.where(enters, c, x))
        d = _newton_step(H, c - lam * signs, signs, enters)
        Hd = H @ d
        t, x = _line_search(x, d, max(d @ Hd, np.finfo(float).tiny), lam)
        c, settled = c - t * Hd, t == 1
    return x


def _working_set(
    A: LinearOperator, M: Array, y: Array, lam: float, lam2: float, state: LassoState
) -> LassoState:
    """Solve on the support and the largest correlations elsewhere, with the matrix M of A."""
    xp, eps = array_namespace(y), np.finfo(float).eps
    x, c = to_numpy(state.x).ravel().copy(), to_numpy(state.c).ravel()
    score = np.where(x != 0, np.inf, abs(c))
    size = min(5 * np.count_nonzero(x) // 4 + 20, len(x))
    W = np.argpartition(score, -size)[-size:]
    W = W[score[W] > lam]
    C = np.reshape(to_numpy(xp.take(M, xp.asarray(W, device=device(y)), axis=1)), (-1, len(W)))
    H, b = C.T @ C, to_numpy(y).ravel()
    squares = np.diagonal(H).copy()
    # A little damping makes H regular. The next pass, with new correlations, takes it out again.
    np.fill_diagonal(H, (1 + 10 * len(W) * eps) * squares + lam2)
    # What rounding leaves in the correlations; a column of zeros never enters.
    slack = np.where(squares > 0, 4 * eps * np.linalg.norm(b) * np.sqrt(squares), np.inf)
    x[W] = _sign_steps(H, c[W], x[W] * (squares > 0), lam, slack)
    new = asarray_like(np.reshape(x, A.in_shape), y)
    r = asarray_like(np.reshape(b - C @ to_numpy(new).ravel()[W], A.out_shape), y)
    return _lasso_state(A, y, lam, lam2, new, r)


def _two_phases(
    A: LinearOperator, step: float, y: Array, lam: float, lam2: float, state: LassoState
) -> LassoState:
    """FISTA finds the support, conjugate gradients solve on it; no matrix is needed."""
    R = lam * l1() if lam2 == 0 else elastic_net_functional(lam, lam2)
    *_, last = islice(fista(least_squares(A, y), R, state.x, step=step, restart=True), 101)
    state = _lasso_state(A, y, lam, lam2, last.x)
    xp, on_support = array_namespace(y), diagonal(asarray_like(state.support, y))
    H = on_support @ A.H @ A + lam2 * identity(A.in_shape)
    g = on_support @ (state.c - lam * xp.sign(state.x))
    stop = residual_rule(H, g, rtol=float(xp.finfo(y.dtype).eps) ** 0.5)
    d = detach(run(cg(H, g), stop=stop, max_iter=100).x)
    # The iterates of conjugate gradients have <d, Hd> = <d, g>.
    a = max(to_float(inner(d, g)), np.finfo(float).tiny)
    x = _line_search(to_numpy(state.x).ravel(), to_numpy(d).ravel(), a, lam)[1]
    return _lasso_state(A, y, lam, lam2, asarray_like(np.reshape(x, A.in_shape), y))


def lasso(
    A: Any,
    y: Array,
    lam: float,
    x0: Array | None = None,
    *,
    rtol: float | None = None,
    max_iter: int = 100,
) -> Result:
    r"""Return a minimizer of :math:`\tfrac12\|Ax-y\|^2+\lambda\|x\|_1`, with a certified gap.

    It is 0 for :math:`\lambda\ge\lambda_{\max}=\|A^\top y\|_\infty`. For a matrix, each iteration
    solves the problem exactly on a working set: the support and the largest correlations
    :math:`|a_j^\top(y-Ax)|>\lambda` elsewhere. With the signs ξ of the support S this is
    :math:`A_S^\top A_Sx_S=A_S^\top y-\lambda\xi_S`, up to the first change of a sign. The
    objective falls at each step, so that the method ends with the exact support and signs after
    finitely many. An operator of at most :math:`2^{22}` entries is written out as a matrix; for a
    larger one, 100 steps of :func:`fista` find the support and conjugate gradients solve on it, in
    turn.

    Parameters
    ----------
    A : LinearOperator or array, shape (m, n)
    y : array, shape ``A.out_shape``
    lam : float
        :math:`\lambda>0`. For λ = 0 see :func:`course_lib.linear.cgls`.
    x0 : array, shape ``A.in_shape``, optional
        Start; zero if not given. Along a grid of λ, take the solution of the neighbour.
    rtol : float, optional
        Stop when the duality gap, computed afresh, is at most rtol times the objective. If not
        given, 1e-10 in double and 1e-5 in single precision. Rounding leaves a gap of about
        :math:`\mathrm{eps}_{\mathrm{mach}}\lambda_{\max}/\lambda`, more for an ill-conditioned A.
    max_iter : int
        Largest number of iterations. A working set takes 5 to 40 of them. For a large operator
        each costs up to 400 products with A or its adjoint.

    Returns
    -------
    Result
        Its state is a ``LassoState``: ``x``, residual ``r``, correlations ``c``, feasible dual
        point ``dual``, ``gap`` (absolute, so that the objective is at most that far from its
        minimum), ``objective``, and the mask ``support``.

    Raises
    ------
    ValueError
        If y or x0 do not fit A, or λ is not positive.

    Notes
    -----
    In scikit-learn's ``Lasso`` the sum of squares is a mean: ``alpha`` is λ/m. Automatic
    differentiation does not go through: the result is cut off.

    References
    ----------
    Tibshirani (1996), J. R. Stat. Soc. B 58, 267-288; Osborne, Presnell and Turlach (2000), IMA J.
    Numer. Anal. 20, 389-403; Lee, Battle, Raina and Ng (2007), NIPS (feature-sign search).

    Examples
    --------
    >>> import numpy as np
    >>> result = lasso(np.diag([1.0, 0.5]), np.array([2.0, 2.0]), 0.5)
    >>> result.x.round(6), result.converged
    (array([1.5, 2. ]), True)
    >>> result.state.support, result.state.gap < 1e-12
    (array([ True,  True]), True)
    """
    lam1 = as_scalar(lam, "lam", positive=True)
    return elastic_net(A, y, lam1, 0.0, x0, rtol=rtol, max_iter=max_iter)


def elastic_net(
    A: Any,
    y: Array,
    lam1: float,
    lam2: float,
    x0: Array | None = None,
    *,
    rtol: float | None = None,
    max_iter: int = 100,
) -> Result:
    r"""Return the minimizer of
    :math:`\tfrac12\|Ax-y\|^2+\lambda_1\|x\|_1+\tfrac{\lambda_2}2\|x\|^2`.

    The method is that of :func:`lasso`, with :math:`A_S^\top A_S+\lambda_2I` on the support. The
    minimizer is unique for :math:`\lambda_2>0`. Coefficients of equal columns are then equal, where
    the LASSO may share them out in any way.

    Parameters
    ----------
    A : LinearOperator or array, shape (m, n)
    y : array, shape ``A.out_shape``
    lam1 : float
        :math:`\lambda_1>0`. For :math:`\lambda_1=0` see :func:`course_lib.filters.tikhonov`.
    lam2 : float
        :math:`\lambda_2\ge0`; with 0 it is the LASSO.
    x0, rtol, max_iter :
        As in :func:`lasso`.

    Returns
    -------
    Result
        As :func:`lasso`. The correlations are :math:`A^\top r-\lambda_2x`. The dual point belongs
        to the LASSO with the rows :math:`\sqrt{\lambda_2}I` below A: it is the first part,
        :math:`sr`, and the other part is :math:`-s\sqrt{\lambda_2}x`.

    Raises
    ------
    ValueError
        As :func:`lasso`, and if :math:`\lambda_2` is negative.

    Notes
    -----
    In scikit-learn's ``ElasticNet``, with m rows, ``alpha`` is :math:`(\lambda_1+\lambda_2)/m` and
    ``l1_ratio`` is :math:`\lambda_1/(\lambda_1+\lambda_2)`.

    References
    ----------
    Zou and Hastie (2005), J. R. Stat. Soc. B 67, 301-320.

    Examples
    --------
    >>> import numpy as np
    >>> A, y = np.array([[1.0, 1.0], [0.0, 0.0]]), np.array([3.0, 1.0])
    >>> elastic_net(A, y, 1.0, 2.0).x.round(6)
    array([0.5, 0.5])
    """
    lam, lam2 = as_scalar(lam1, "lam1", positive=True), as_scalar(lam2, "lam2", minimum=0.0)
    A, y = _with_data(A, detach(y))
    start = zeros(A.in_shape, y) if x0 is None else as_real(x0, "x0", shape=A.in_shape, like=y)
    if rtol is None:
        rtol = 1e-10 if y.dtype == array_namespace(y).float64 else 1e-5
    rule = replace(
        lasso_gap_rule(A, y, lam, lam2=lam2, rtol=rtol),
        measure=lambda state: _relative(state.gap, state.objective),
    )
    if A.matrix is not None or math.prod(A.in_shape) * math.prod(A.out_shape) <= 2**22:
        improve = partial(_working_set, A, detach(A.to_dense(like=y)), y, lam, lam2)
    else:
        square = (1.01 * A.norm(like=y)) ** 2 + lam2
        improve = partial(_two_phases, A, 1 / square if square else 1.0, y, lam, lam2)

    def iterate():
        state = _lasso_state(A, y, lam, lam2, start, y if x0 is None else None)
        gap = objective = math.inf
        while True:
            yield state
            gap, objective = min(gap, state.gap), min(objective, state.objective)
            relative, state = _relative(state.gap, state.objective), improve(state)
            if not (state.gap < gap or state.objective < objective):
                return (
                    "stagnated: neither the objective nor the duality gap, "
                    f"{relative:.3e} of it, falls any more"
                )

    return run(iterate(), stop=rule, max_iter=max_iter)


# Total variation.


class TVState(NamedTuple):
    r"""Iterate, and a dual variable in the shape of the gradient, :math:`|p_i|\le1` everywhere."""

    x: Array
    dual: Array


def _squares(w: Array, isotropic: bool) -> Array:
    return array_namespace(w).sum(w * w, axis=0) if isotropic else w * w


def _into_unit_ball(w: Array, isotropic: bool) -> Array:
    xp = array_namespace(w)
    # The root of numbers from 1 on, so that autograd meets no root of 0.
    return w / xp.sqrt(xp.maximum(1.0, _squares(w, isotropic)))


def _neighbours(shape: tuple[int, ...], rows: slice) -> list[tuple]:
    """Return, for each axis, the entries in these rows with a next one along it, and the next."""
    pairs = []
    for axis, n in enumerate(shape):
        start, stop = (0, n - 1) if axis else (rows.start, min(rows.stop, n - 1))
        index = [rows] + [slice(None)] * (len(shape) - 1)
        pair = [[*index[:axis], slice(start + k, stop + k), *index[axis + 1 :]] for k in (0, 1)]
        pairs.append((tuple(pair[0]), tuple(pair[1])))
    return pairs


def _add_gradient(p: Array, x: Array, step: float, pairs: list[tuple]) -> Array:
    for axis, (here, ahead) in enumerate(pairs):
        p[(axis, *here)] += step * (x[ahead] - x[here])
    return p


def _add_divergence(d: Array, p: Array, pairs: list[tuple]) -> Array:
    for axis, (here, ahead) in enumerate(pairs):
        d[here] += p[(axis, *here)]
        d[ahead] -= p[(axis, *here)]
    return d


def _tv_states(v: Array, lam: float, isotropic: bool, length: float) -> Iterator[TVState]:
    shape, taped = tuple(v.shape), getattr(v, "requires_grad", False)
    x, x_ext, p, d = 1.0 * v, 1.0 * v, zeros((v.ndim, *shape), v), 0.0 * v
    # Blocks of rows that stay in a processor's cache; a GPU is faster with the whole picture.
    whole = taped or "cpu" not in str(device(v)).lower()
    size = shape[0] if whole else max(1, 2**15 * shape[0] // math.prod(shape))
    blocks = [slice(a, min(a + size, shape[0])) for a in range(0, shape[0], size)]
    blocks = [(rows, _neighbours(shape, rows)) for rows in blocks]
    step, dual_step = 2.0, 0.5 / max(length, 1.0) ** 2
    while True:
        yield TVState(x, p)
        theta, s = 1 / math.sqrt(1 + step), step / (1 + step)
        if taped:
            x, x_ext, p, d = 1.0 * x, 1.0 * x_ext, 1.0 * p, 0.0 * x
        for rows, pairs in blocks:
            # In place: rows below still hold the old x_ext, rows above already hold the new p.
            _add_gradient(p, x_ext, dual_step / lam, pairs)
            p[:, rows, ...] = _into_unit_ball(1.0 * p[:, rows, ...], isotropic)
            _add_divergence(d, p, pairs)
            change = s * (lam * d[rows, ...] + v[rows, ...] - x[rows, ...])
            d[rows, ...] = 0.0
            x_ext[rows, ...] = (1 + theta) * change + x[rows, ...]
            x[rows, ...] += change
        step, dual_step = theta * step, dual_step / theta


def _tv_terms(Dx: Array, p: Array, lam: float, isotropic: bool) -> tuple[float, float]:
    """Return λTV, and how much more it is than λ<p, Dx>: at least 0, and rounding is added."""
    xp = array_namespace(Dx)
    tv = lam * to_float(xp.sum(xp.sqrt(_squares(Dx, isotropic))))
    return tv, tv - lam * to_float(xp.sum(p * Dx)) + 4 * float(xp.finfo(Dx.dtype).eps) * tv


def prox_tv(
    v: Array, lam: float, *, isotropic: bool = True, rtol: float = 1e-4, max_iter: int = 5000
) -> Result:
    r"""Total-variation denoising: :math:`\min_x\tfrac12\|x-v\|^2+\lambda\operatorname{TV}(x)`.

    TV is :func:`course_lib.functionals.total_variation`, for signals, pictures and volumes; the
    solution is the proximal map of :math:`\lambda\operatorname{TV}`, and has the mean of v. By
    the accelerated method of Chambolle and Pock: with :math:`|p_i|\le1`, from
    :math:`x=\tilde x=v`, :math:`p=0`, :math:`\eta=2` and :math:`\eta\sigma\|\nabla\|^2=1`,

    .. math::
        p&\leftarrow\Pi\bigl(p+\tfrac\sigma\lambda\nabla\tilde x\bigr),\qquad
        \delta=\tfrac\eta{1+\eta}(v-\lambda\nabla^\top p-x),\\
        \tilde x&\leftarrow x+(1+\theta)\delta,\quad x\leftarrow x+\delta,\quad
        \eta\leftarrow\theta\eta,\quad\sigma\leftarrow\sigma/\theta,\qquad
        \theta=\frac1{\sqrt{1+\eta}},

    where Π scales each :math:`p_i` back into the unit ball (anisotropic: each entry). It stops
    when the duality gap

    .. math::
        \lambda\operatorname{TV}(x)-\lambda\langle p,\nabla x\rangle
        +\tfrac12\|x-v+\lambda\nabla^\top p\|^2\ \ge\ F(x)-\min F\ \ge\ \tfrac12\|x-x_\lambda\|^2

    is at most rtol times the objective :math:`F(x)`; it is measured at every tenth step.

    Parameters
    ----------
    v : array
        One dimension or more.
    lam : float
        λ, at least 0.
    isotropic : bool
        Euclidean norm of the gradient at each pixel, or the sum of its absolute values.
    rtol : float
        Relative to the objective.
    max_iter : int

    Returns
    -------
    Result
        Its ``state.dual`` is p.

    Raises
    ------
    ValueError
        If v is no real, finite array, or a number is out of range.

    References
    ----------
    Rudin, Osher and Fatemi (1992), Physica D 60, 259-268; Chambolle and Pock (2011), J. Math.
    Imaging Vision 40, 120-145, algorithm 2.

    Examples
    --------
    A step of height 3, between two and four points: the means move by λ/2 and λ/4.

    >>> import numpy as np
    >>> prox_tv(np.array([0.0, 0.0, 3.0, 3.0, 3.0, 3.0]), 1.0, rtol=1e-9).x.round(4)
    array([0.5 , 0.5 , 2.75, 2.75, 2.75, 2.75])
    """
    v, lam = as_real(v, "v"), as_scalar(lam, "lam", minimum=0.0)
    rtol, u = as_scalar(rtol, "rtol", minimum=0.0), detach(v)
    states = _tv_states(v, lam, isotropic, gradient(tuple(v.shape)).norm())
    pairs = _neighbours(tuple(v.shape), slice(0, v.shape[0]))

    def gap(state: TVState) -> float:
        x, p = detach(state.x), detach(state.dual)
        tv, slack = _tv_terms(_add_gradient(0.0 * p, x, 1.0, pairs), p, lam, isotropic)
        r = x - u
        w = r - lam * _add_divergence(0.0 * x, p, pairs)
        return _relative(slack + 0.5 * to_float(inner(w, w)), tv + 0.5 * to_float(inner(r, r)))

    stop = StoppingRule(gap, gap, rtol, "duality gap over objective")
    return run(states, stop=stop, max_iter=max_iter, check_every=10)


def _tv_gap_rule(
    A: LinearOperator, y: Array, lam: float, inside: Array, isotropic: bool, rtol: float, far: float
) -> StoppingRule:
    D, xp = gradient(A.in_shape), array_namespace(y)
    noise = 10 * float(xp.finfo(y.dtype).eps) * to_float(norm(y))

    def gap(state: ADMMState) -> float:
        x = detach(state.x)
        r, Dx, Kx = A @ x - y, D @ x, state.K @ x
        # The x-step has made Aᵀr + λKᵀq = 0: divided by its largest entry, q is a dual point.
        q = (state.rho / lam) * inside * (Kx - detach(Kx if state.v is None else state.v))
        t = 1 / max(1.0, math.sqrt(to_float(xp.max(_squares(q, isotropic)))))
        tv, slack = _tv_terms(Dx, t * q, lam, isotropic)
        fit = 0.5 * to_float(inner(r, r))
        missing = t * far * to_float(norm(A.H @ r + lam * (D.H @ q)))
        # An objective that is rounding noise is as good as 0.
        value = slack + (1 - t) ** 2 * fit + missing if tv + fit > noise**2 else 0.0
        return _relative(value, tv + fit)

    return StoppingRule(gap, gap, rtol, "duality gap over objective")


def _x_step(A: LinearOperator, y: Array, K: LinearOperator, x: Array) -> Callable:
    """Return the x-step of ADMM: dense, with the Fourier transform, or by CG from the last x."""
    if A.matrix is not None:
        return least_squares_step(A, y, K)
    xp, axes, b, AtA, KtK = array_namespace(y), tuple(range(x.ndim)), A.H @ y, A.H @ A, K.H @ K

    def by_cg(v: Array, rho: float) -> Array:
        nonlocal x
        H, c = AtA + rho * KtK, b + rho * (K.H @ v)
        x = run(cg(H, c, x), stop=residual_rule(H, c, rtol=1e-10), max_iter=30, check_every=10).x
        return x

    def by_fourier(v: Array, rho: float) -> Array:
        c = xp.fft.rfftn(b + rho * (K.H @ v), axes=axes)
        return xp.fft.irfftn(c / (h + rho * k), s=A.in_shape, axes=axes)

    if not A.shift_invariant:
        return by_cg
    h, k = (xp.real(xp.fft.rfftn(_response(B, y), axes=axes)) for B in (AtA, KtK))
    return by_fourier


def tv_deblur(
    A: Any,
    y: Array,
    lam: float,
    *,
    isotropic: bool = True,
    rtol: float = 1e-3,
    max_iter: int = 2000,
) -> Result:
    r"""Solve :math:`\min_xF(x)=\tfrac12\|Ax-y\|^2+\lambda\operatorname{TV}(x)` with :func:`admm`.

    TV is :func:`course_lib.functionals.total_variation`: the difference across the edge is free.
    For an operator that commutes with cyclic shifts the split variable is :math:`z=Kx` with the
    periodic differences K, those across the edge at no cost, so that the Fourier transform does
    the x-step. For a matrix it is a dense solve, for any other operator up to 30 steps of
    :func:`course_lib.linear.cg` from the last x.

    It stops when a duality gap is at most rtol times :math:`F(x)`. With :math:`r=Ax-y`, the q with
    :math:`A^\top r+\lambda K^\top q=0` that the x-step leaves, 0 across the edge, and
    :math:`t=1/\max(1,\max_i|q_i|)`,

    .. math::
        F(x)-F(u)\ \le\ \lambda\operatorname{TV}(x)-t\lambda\langle q,\nabla x\rangle
        +\tfrac{(1-t)^2}2\|r\|^2+t\|A^\top r+\lambda\nabla^\top q\|\,\|u-x\|

    for every u. The gap counts :math:`\|u-x\|` as :math:`R=\|y-cA1\|\,\|1\|/\|A1\|`, c the best
    constant; should the minimizer be further away, :math:`F(x)-\min F` is at most the gap times
    its distance over R. The norm before it holds what the edge and inexact x-steps leave over: it
    tends to 0, but in single precision rounding keeps the gap above some 1e-3 of :math:`F(x)`. It
    is measured at every 20th step.

    Parameters
    ----------
    A : LinearOperator or array
        It must not vanish on constants, which cost nothing in TV.
    y : array, shape ``A.out_shape``
    lam : float
        λ > 0.
    isotropic, rtol, max_iter :
        As in :func:`prox_tv`, which is the case A = I.

    Returns
    -------
    Result

    Raises
    ------
    ValueError
        If y does not fit A, :math:`A1=0`, or a number is out of range.

    References
    ----------
    Wang, Yang, Yin and Zhang (2008), SIAM J. Imaging Sciences 1, 248-272; Boyd et al. (2011).

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.operators import convolution
    >>> x = np.array([0.0, 0.0, 0.0, 4.0, 4.0, 4.0])
    >>> A = convolution(np.array([0.25, 0.5, 0.25]), 6)
    >>> tv_deblur(A, A @ x, 0.1, rtol=1e-6).x.round(3)
    array([0.067, 0.067, 0.067, 3.933, 3.933, 3.933])
    """
    A, y = _with_data(A, y)
    lam, rtol = as_scalar(lam, "lam", positive=True), as_scalar(rtol, "rtol", minimum=0.0)
    xp, ones = array_namespace(y), zeros(A.in_shape, y) + 1.0
    A1 = A @ ones
    gain = to_float(inner(A1, A1))
    require(gain > 0, "A must not vanish on constants: expected A @ 1 other than 0, got 0")
    K = gradient(A.in_shape, boundary="periodic" if A.shift_invariant else "free")
    # The gradient of i + j: 1 inside, 0 across the edge.
    inside = gradient(A.in_shape) @ sum(xp.cumulative_sum(ones, axis=k) for k in range(ones.ndim))

    def prox(u: Array, step: float) -> Array:
        radius = lam * step
        return u - radius * _into_unit_ball(inside / radius * u, isotropic)

    tv = Functional(lambda z: lam * xp.sum(xp.sqrt(_squares(inside * z, isotropic))), prox=prox)
    x0 = inner(A1, y) / gain * ones
    contrast = to_float(norm(y - A @ x0)) / math.sqrt(gain)
    # A threshold λ/ρ of a third of the contrast of x is good over a wide range.
    rho = 3 * lam / (contrast or 1.0)
    states = admm(_x_step(A, y, K, x0), tv, K, x0, rho=rho, relaxation=1.8)
    far = contrast * math.sqrt(math.prod(A.in_shape))
    stop = _tv_gap_rule(A, detach(y), lam, inside, isotropic, rtol, far)
    return run(states, stop=stop, max_iter=max_iter, check_every=20)
