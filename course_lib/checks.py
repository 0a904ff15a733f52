r"""Checks that a program keeps a mathematical promise, with the reason in words when it does not.

They are for our own tests and for students: each takes plain functions too, and answers with a
:class:`Check`, which is true when the promise is kept.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from .arrays import (
    Array,
    as_count,
    as_real,
    as_scalar,
    asarray_like,
    check_alike,
    detach,
    inner,
    namespace,
    norm,
    require,
    to_float,
    to_numpy,
)
from .operators import LinearOperator, as_operator

__all__ = ["Check", "GradientTable", "adjoint", "gradients", "prox", "slope", "taylor"]


@dataclass(frozen=True)
class Check:
    """The outcome of a check; true in a condition if and only if it passed.

    Attributes
    ----------
    passed : bool
    value : float
        What was measured.
    bound : float
        What it is compared with.
    message : str
        The outcome in words.
    """

    passed: bool
    value: float
    bound: float
    message: str

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        return self.message


def _random(shape: tuple[int, ...], rng: np.random.Generator, like: Array | None) -> Array:
    return asarray_like(rng.standard_normal(shape), like)


class _Broken(Exception):  # noqa: N818 (never leaves this module)
    """A function under test broke its contract; the message says how."""


def _call(function: Callable, x: Array, shape: tuple[int, ...], name: str) -> Array:
    """Return ``function(x)``, checked to be a finite array of the given shape."""
    xp = array_namespace(x)
    before = xp.asarray(x, copy=True)
    value = function(x)
    if not bool(xp.all(x == before)):
        raise _Broken(f"{name} changes its argument: it must leave the array as it was")
    if not hasattr(value, "shape"):
        raise _Broken(f"{name} must return an array: it returned {type(value).__name__}")
    if tuple(value.shape) != tuple(shape):
        raise _Broken(
            f"{name} returns the wrong shape: expected {tuple(shape)}, got {tuple(value.shape)}"
        )
    if array_namespace(value) is not xp:
        raise _Broken(f"{name} leaves the library of its argument: got {type(value).__name__}")
    if not bool(xp.all(xp.isfinite(value))):
        raise _Broken(f"{name} returned NaN or infinity")
    return value


def _common_factor(ratios: list[float]) -> float | None:
    """Return the number other than 0 and 1 that all ratios equal (to 0.1 percent), if any."""
    middle = float(np.median(ratios))
    same = math.isfinite(middle) and all(abs(r - middle) <= 1e-3 * abs(middle) for r in ratios)
    return middle if same and middle != 0 and abs(middle - 1) > 1e-2 else None


def adjoint(A: Any, *, seed: int = 0, pairs: int = 5, like: Array | None = None) -> Check:
    r"""Check that :math:`\langle Au,v\rangle=\langle u,A^\top v\rangle` for random u and v.

    Measured is the largest, over the pairs, of

    .. math::
        \frac{|\langle Au,v\rangle-\langle u,A^\top v\rangle|}
        {\max(\|Au\|\,\|v\|,\ \|u\|\,\|A^\top v\|)},

    and compared with :math:`10\sqrt N\,\mathrm{eps}_{\mathrm{mach}}`, N the larger of the two
    sizes. The scale is a product of norms, because the inner product itself may be near zero.

    Parameters
    ----------
    A : LinearOperator, array, or tuple (apply, adjoint, in_shape, out_shape)
    seed : int
    pairs : int
        Number of random pairs.
    like : array, optional
        Sets namespace, dtype and device where A fixes none.

    Returns
    -------
    Check

    Examples
    --------
    >>> from course_lib.operators import difference
    >>> bool(adjoint(difference(5)))
    True
    >>> print(adjoint((lambda x: 2 * x, lambda v: v, (3,), (3,))))
    not the adjoint: <Au, v> is 2 times <u, A'v> in every trial; a factor is wrong
    """
    if isinstance(A, tuple) and len(A) != 4:
        raise ValueError(
            "A must be an operator, a matrix, or (apply, adjoint, in_shape, out_shape): "
            f"got a tuple of length {len(A)}"
        )
    A = _operator_of(*A) if isinstance(A, tuple) else as_operator(A)
    like = A.like if like is None else like
    rng = np.random.default_rng(as_count(seed, "seed"))
    worst, ratios = 0.0, []
    for _ in range(as_count(pairs, "pairs", minimum=1)):
        u, v = _random(A.in_shape, rng, like), _random(A.out_shape, rng, like)
        try:
            Au = _call(A.apply, u, A.out_shape, "the forward map")
            Atv = _call(A.adjoint, v, A.in_shape, "the adjoint")
        except _Broken as problem:
            return Check(False, math.inf, 0.0, str(problem))
        left, right = to_float(inner(Au, v)), to_float(inner(u, Atv))
        scale = max(to_float(norm(Au) * norm(v)), to_float(norm(u) * norm(Atv)))
        worst = max(worst, abs(left - right) / scale if scale else 0.0)
        ratios.append(left / right if right else math.inf)
    size = max(math.prod(A.in_shape), math.prod(A.out_shape))
    bound = 10 * math.sqrt(size) * float(array_namespace(u).finfo(u.dtype).eps)
    if worst <= bound:
        return Check(True, worst, bound, f"adjoint: mismatch {worst:.1e} is at most {bound:.1e}")
    hint = _adjoint_hint(ratios, worst)
    if A.in_shape == A.out_shape and to_float(norm(A.apply(v) - Atv)) == 0:
        hint = "it returns what the forward map returns; is the transpose missing?"
    return Check(False, worst, bound, f"not the adjoint: {hint}")


def _operator_of(
    apply: Callable, adjoint: Callable, in_shape: int | tuple, out_shape: int | tuple
) -> LinearOperator:
    shapes = (s if isinstance(s, tuple) else (s,) for s in (in_shape, out_shape))
    return LinearOperator(apply, adjoint, *shapes)


def _adjoint_hint(ratios: list[float], worst: float) -> str:
    factor = _common_factor(ratios)
    if factor is None:
        return f"<Au, v> and <u, A'v> differ by {worst:.1e}, relative to the norms"
    kind = "the sign is wrong" if abs(factor + 1) < 1e-2 else "a factor is wrong"
    return f"<Au, v> is {factor:.4g} times <u, A'v> in every trial; {kind}"


def slope(x: Array, y: Array) -> float:
    r"""Return the exponent a of the power law :math:`y\approx c\,x^a`.

    The least-squares line through :math:`(\log x_i,\log y_i)`: a measured rate of convergence.

    Raises
    ------
    ValueError
        If an entry is not positive, or all x are equal.

    Examples
    --------
    >>> import numpy as np
    >>> h = np.array([0.1, 0.01, 0.001])
    >>> round(slope(h, 3 * h**2), 6)
    2.0
    """
    x, y = as_real(x, "x", ndim=1), as_real(y, "y", ndim=1)
    as_real(y, "y", shape=x.shape)
    xp = namespace(x, y)
    require(
        bool(xp.all(x > 0)) and bool(xp.all(y > 0)),
        "x and y must be positive: a logarithm is taken",
    )
    u, v = xp.log(x) - xp.mean(xp.log(x)), xp.log(y) - xp.mean(xp.log(y))
    require(to_float(norm(u)) > 0, "x must vary: expected at least two different values, got one")
    return to_float(inner(u, v) / inner(u, u))


def taylor(
    f: Callable[[Array], Any],
    gradient: Callable[[Array], Array],
    x: Array,
    *,
    seed: int = 0,
    directions: int = 3,
) -> Check:
    r"""Check a gradient: the remainder of Taylor's formula must fall with slope 2.

    .. math:: r(t)=|f(x+tv)-f(x)-t\langle\nabla f(x),v\rangle|=O(t^2)

    for random directions v of the size of x. With a wrong gradient it is only :math:`O(t)`. The
    slope is measured at the smallest steps :math:`t=4^{-j}` where r is still well above the
    rounding noise of f, itself measured by second differences at steps too small to see the
    curvature. Where f is linear along v, r is noise at every step, and the check passes.

    Parameters
    ----------
    f : callable
        Array to number.
    gradient : callable
        Array to array of the same shape.
    x : array, float64
        A point at which f is differentiable.
    seed : int
    directions : int
        Number of random directions; the smallest slope counts.

    Returns
    -------
    Check
        ``value`` is the slope, ``bound`` 1.9.

    Raises
    ------
    ValueError
        If x is not in double precision: single precision leaves no room for two slopes.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([1.0, -2.0])
    >>> bool(taylor(lambda x: (x**4).sum(), lambda x: 4 * x**3, x))
    True
    >>> print(taylor(lambda x: (x**4).sum(), lambda x: -4 * x**3, x))
    not the gradient: the derivative of f is -1 times the claimed one; the sign is wrong
    """
    x = as_real(x, "x")
    require(
        x.dtype == array_namespace(x).float64,
        f"x must be in double precision: expected float64, got {x.dtype}",
    )
    rng = np.random.default_rng(as_count(seed, "seed"))
    size = to_float(norm(x)) / math.sqrt(math.prod(x.shape)) or 1.0
    worst, ratios = math.inf, []
    try:
        g = _call(gradient, x, x.shape, "the gradient")
        for _ in range(as_count(directions, "directions", minimum=1)):
            v = size * _random(tuple(x.shape), rng, x)
            claimed = to_float(inner(g, v))
            worst = min(worst, _remainder_slope(lambda t, v=v: _number(f, x + t * v), claimed))
            numerical = (_number(f, x + 1e-5 * v) - _number(f, x - 1e-5 * v)) / 2e-5
            ratios.append(numerical / claimed if claimed else math.inf)
    except _Broken as problem:
        return Check(False, -math.inf, 1.9, str(problem))
    if worst >= 1.9:
        linear = math.isinf(worst)
        seen = "is rounding noise: f is linear" if linear else f"has slope {worst:.2f}"
        return Check(True, worst, 1.9, f"gradient: the Taylor remainder {seen}")
    return Check(False, worst, 1.9, "not the gradient: " + _gradient_hint(ratios, worst))


def _number(f: Callable, x: Array, name: str = "f") -> float:
    value = f(x)
    if isinstance(value, (list, tuple, str)) or getattr(value, "ndim", 0) != 0:
        raise _Broken(f"{name} must return one number: it returned {type(value).__name__}")
    return to_float(value)


def _remainder_slope(phi: Callable[[float], float], claimed: float) -> float:
    """Return the slope of |phi(t) - phi(0) - t claimed| at small t; infinity if all is noise."""
    start, eps = phi(0.0), float(np.finfo(float).eps)
    second = (abs(phi(s) - 2 * start + phi(-s)) for s in (1e-9, 2e-9, 3e-9, 4e-9))
    noise = max(4 * eps * abs(start), *second, np.finfo(float).tiny)
    steps = [4.0**-j for j in range(1, 21)]
    remainders = [abs(phi(t) - start - t * claimed) for t in steps]
    # From the first finite value to the first one that noise could spoil, and that one too.
    kept = []
    for t, r in zip(steps, remainders, strict=True):
        if math.isfinite(r):
            kept.append((t, max(r, noise)))
            if r <= 100 * noise:
                break
    if len(kept) < 2:
        return math.inf
    t, r = np.array(kept[-4:]).T
    return slope(t, r)


def _gradient_hint(ratios: list[float], worst: float) -> str:
    factor = _common_factor(ratios)
    if factor is None:
        return f"the Taylor remainder falls with slope {worst:.2f}, expected 2"
    kind = "the sign is wrong" if abs(factor + 1) < 1e-2 else "a factor is wrong"
    return f"the derivative of f is {factor:.4g} times the claimed one; {kind}"


def prox(
    R: Callable[[Array], Any],
    prox: Callable[[Array, float], Array],
    v: Array,
    *,
    step: float = 0.7,
    seed: int = 0,
    trials: int = 2,
) -> Check:
    r"""Check a proximal map by the inequality that characterizes it, for a convex R:

    .. math::
        p=\operatorname{prox}_{\eta R}(v)\iff
        \langle v-p,z-p\rangle\le\eta\bigl(R(z)-R(p)\bigr)\quad\text{for all }z .

    Equivalently :math:`\varphi(z)\ge\varphi(p)+\tfrac12\|z-p\|^2` for
    :math:`\varphi(x)=\eta R(x)+\tfrac12\|x-v\|^2`: p is better than every other point, by a margin.
    It is tried for v and random points of its size, and minus them, for three steps, and for many
    z, far from p and near. Choose v and step so that the map does something: a soft threshold of
    small numbers is 0. Measured is the largest

    .. math::
        \frac{\langle v-p,z-p\rangle-\eta(R(z)-R(p))}
        {(\|v\|+\|p\|)(\|z\|+\|p\|)+\eta(|R(z)|+|R(p)|)},

    and compared with :math:`10\sqrt N\,\mathrm{eps}_{\mathrm{mach}}`, N the number of entries.

    Parameters
    ----------
    R : callable
        Array to number, infinite where x is not allowed; a
        :class:`course_lib.functionals.Functional` will do.
    prox : callable
        :math:`(v,\eta)\mapsto\operatorname{prox}_{\eta R}(v)`.
    v : array
        A point; the random ones have its shape, size, namespace, dtype and device.
    step : float
        η; tried are ``step``, ``step / 10`` and ``step / 100``.
    seed : int
    trials : int
        Number of points, v among them.

    Returns
    -------
    Check

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import l1, soft_threshold
    >>> v = np.array([3.0, -1.0, 0.2])
    >>> bool(prox(l1(), soft_threshold, v))
    True
    >>> print(prox(l1(), lambda v, step: soft_threshold(v, 2 * step), v))
    not the proximal map: it is the one for 2 * step; a factor is wrong
    """
    v, step = detach(as_real(v, "v")), as_scalar(step, "step", positive=True)
    rng, trials = (
        np.random.default_rng(as_count(seed, "seed")),
        as_count(trials, "trials", minimum=1),
    )
    bound = 10 * math.sqrt(math.prod(v.shape)) * float(array_namespace(v).finfo(v.dtype).eps)
    size = to_float(norm(v)) / math.sqrt(math.prod(v.shape)) or 1.0
    points = [v, *(size * _random(tuple(v.shape), rng, v) for _ in range(2 * trials - 1))]
    try:
        cases = []
        for x in points[:trials]:
            for t in (step, step / 10, step / 100):
                p, m = (_call(lambda w, t=t: prox(w, t), w, v.shape, "prox") for w in (x, -x))
                cases += [(x, t, p, m), (-x, t, m, p)]
        # Other proximal points are good opponents: R is finite there.
        others = [*points[trials:], 0.0 * v, *(p for _, _, p, _ in cases[::3])]
        worst, hint = _prox_miss(R, [case[:3] for case in cases], others, bound)
        if worst <= bound:
            words = f"proximal map: the inequality holds, up to {worst:.1e} of at most {bound:.1e}"
            return Check(True, worst, bound, words)
        if all(to_float(norm(p)) == 0 for _, _, p, _ in cases):
            return Check(False, worst, bound, "not the proximal map: it always returns 0")
        for words, right in _WRONG_PROX.items():
            changed = [(x, *right(x, t, p, m)) for x, t, p, m in cases]
            if _prox_miss(R, changed, others, bound)[0] <= bound:
                return Check(False, worst, bound, f"not the proximal map: {words}")
    except _Broken as problem:
        return Check(False, math.inf, bound, str(problem))
    return Check(False, worst, bound, f"not the proximal map: {hint}")


# What it may be instead: from v, step t, result p, and the result m for -v, to the step and the
# point that would be right.
_WRONG_PROX: dict[str, Callable] = {
    "it is the one for step = 1; the step is forgotten": lambda v, t, p, m: (1.0, p),
    "it is the one for 2 * step; a factor is wrong": lambda v, t, p, m: (2 * t, p),
    "it is the one for step / 2; a factor is wrong": lambda v, t, p, m: (t / 2, p),
    "it is the one for 1 / step": lambda v, t, p, m: (1 / t, p),
    "it is minus the proximal map; the sign is wrong": lambda v, t, p, m: (t, -p),
    "the sign of v is lost": lambda v, t, p, m: (t, array_namespace(v).sign(v) * p),
    "the negative entries of v are lost": lambda v, t, p, m: (t, p - m),
    "it is v minus the proximal map": lambda v, t, p, m: (t, v - p),
}


# How far to go from p towards another point; where R is finite on both sides, one of them is lower.
_NEAR = (1.0, 1e-2, -1e-2, 1e-4, -1e-4, 1e-6)


def _prox_miss(
    R: Callable, cases: list[tuple], others: list[Array], noise: float
) -> tuple[float, str]:
    """Return the largest relative violation, and in words how far from the best p was seen."""
    worst, gain = 0.0, noise
    hint = "no point was seen that is better, but the inequality fails; is R convex?"
    for v, t, p in cases:
        at_p, half_p = t * _value(R, p), 0.5 * to_float(inner(v - p, v - p))
        length = to_float(norm(p))
        reach = length + to_float(norm(v))
        if math.isinf(at_p):
            return math.inf, "R is infinite at the point that it returns"
        for z in [p + near * (far - p) for far in [v, *others] for near in _NEAR]:
            at_z, half_z = t * _value(R, z), 0.5 * to_float(inner(v - z, v - z))
            scale = reach * (to_float(norm(z)) + length) + abs(at_z) + abs(at_p)
            if math.isinf(at_z) or scale == 0:
                continue
            worst = max(worst, (to_float(inner(v - p, z - p)) - at_z + at_p) / scale)
            lower = at_p + half_p - at_z - half_z
            if lower / scale > gain:
                gain = lower / scale
                hint = (
                    f"step * R(x) + ½‖x - v‖² is {at_p + half_p:.4g} at the point that it returns, "
                    f"and lower by {lower:.1e} at another (step = {t:g})"
                )
    return worst, hint


def _value(R: Callable, x: Array) -> float:
    value = _number(R, x)
    if math.isnan(value) or value == -math.inf:
        raise _Broken(f"R must be a number or plus infinity: it returned {value}")
    return value


# ---------------------------------------------------------------- gradients that must agree


@dataclass(frozen=True, repr=False)
class GradientTable(Check):
    """The outcome of :func:`gradients`; printed, it is the table and what the table says.

    Attributes
    ----------
    passed, value, bound, message :
        As of :class:`Check`.
    table : str
        Derivatives, errors and verdicts as text; the error of the differences is their floor.
    errors : dict
        For each way, its largest error over the directions, relative to the largest derivative.
    verdicts : dict
        For each way, in a word or two, what it is.
    steps : NumPy array, shape (k,)
        The steps h of the finite differences.
    differences : NumPy array, shape (k, directions)
        What they gave: their errors, drawn against h, make the letter V.
    best : int
        Which step was used.
    """

    table: str
    errors: dict[str, float]
    verdicts: dict[str, str]
    steps: np.ndarray
    differences: np.ndarray
    best: int

    def __str__(self) -> str:
        lines = self.message.splitlines()
        return "\n".join([self.table, *(fill(line, 76, subsequent_indent="  ") for line in lines)])

    __repr__ = __str__


def gradients(
    J: Callable[[Array], Any],
    theta: Array,
    ways: dict[str, Array | Callable[[Array], Array]],
    *,
    first_order: Array | Callable[[Array], Array] | None = None,
    linear: tuple[Any, Any, Array] | None = None,
    residual: float | Callable[[Array], Any] = 0.0,
    rtol: float = 1e-6,
    directions: int = 8,
    seed: int = 0,
) -> GradientTable:
    r"""Compare the ways to a gradient with finite differences: one call, one table.

    .. math::
        \frac{J(\theta+hd)-J(\theta-hd)}{2h}=\langle\nabla J(\theta),d\rangle+O(h^2)
        +O\Bigl(\frac\epsilon h\Bigr),

    ε the error of J: rounding, or what an inner solve left. Along the axes d; where there are more
    than ``directions`` of them, along so many random unit vectors. The error is least between
    the two terms: the step taken is the one where the differences change least from step to step.
    This change, or the noise of J over h if that is more, is their *floor*. A way agrees if no
    derivative is off by more than (rtol + 2 floor) times the largest one. Tried are thirteen steps
    from 10⁻¹ to 10⁻⁷, times the root mean square of θ (or 1, if it is 0); each takes two values of
    J a direction.

    A way that does not agree is compared with what well-known mistakes return:

    - ``first order``: the gradient without its second-order term, as it comes without
      ``create_graph=True``; it is equal to ``first_order``.
    - ``lost``: 0, or torch finds no path back to θ at all.
    - ``not transposed``: the adjoint formula with :math:`F_x` in the place of :math:`F_x^\top`;
      computed from ``linear``.
    - ``wrong sign``, ``twice``, ``half``: a simple multiple of the gradient.
    - ``factor lambda``: the derivative by λ, where θ = log λ.

    Parameters
    ----------
    J : callable
        θ to a number: the outer loss, in double precision, its inner problem solved as well as
        it can be.
    theta : array, float64
        Where; a single parameter may be a 0-d array.
    ways : dict
        Name to gradient: an array of the shape of θ, or a function of θ that returns one.
    first_order : array or callable, optional
        For MAML, the query gradient at the adapted weights,
        :math:`\nabla\mathcal L^{\mathrm{qry}}(\theta_K)`. In a bilevel problem,
        :math:`J(\theta)=f(x^\star(\theta),\theta)`, the direct part :math:`\nabla_\theta f`. For
        the logarithm of a step, :math:`-e^\theta\sum_k\langle g_k,\nabla f(x_K)\rangle`, the
        gradients :math:`g_k` of the K steps taken as constants.
    linear : tuple (F_x, F_theta, v), optional
        Operators or matrices of an inner problem :math:`F(x^\star,\theta)=0` with at most 2000
        unknowns, and :math:`v=\nabla_xf`. The adjoint formula
        :math:`\nabla_\theta f-F_\theta^\top F_x^{-\top}v` then joins the ways, computed with dense
        matrices; :math:`\nabla_\theta f` is ``first_order``, or 0.
    residual : float or callable, optional
        Norm of the inner residual at θ, relative to the data. The inner problem counts as solved
        if it is at most rtol.
    rtol : float
    directions : int
    seed : int
        Of the random directions.

    Returns
    -------
    GradientTable
        True if all ways agree, the floor is at most rtol, and so is the residual. ``value`` is
        the largest error, ``bound`` what was allowed.

    Raises
    ------
    ValueError
        If θ or a value of J is in single precision, which leaves 3 digits for the differences.

    Examples
    --------
    >>> import numpy as np
    >>> theta = np.array([0.0, 1.0])
    >>> gradients(
    ...     lambda theta: np.exp(2 * theta).sum(),
    ...     theta,
    ...     {"by theta": lambda theta: 2 * np.exp(2 * theta), "by lambda": 2 * np.exp(theta)},
    ... )  # doctest: +ELLIPSIS
    Derivatives of J along 2 of 2 axes
    ─────────────────────────────────────────────────────────────────────────────
                                axis 1          axis 2   error
    finite differences     2.00000000...    14.77811...   ...   floor, h = ...
    ─────────────────────────────────────────────────────────────────────────────
    by theta               2.000000000    14.778112198   ...   agrees
    by lambda              2.000000000     5.436563657   6e-01   factor lambda
    ─────────────────────────────────────────────────────────────────────────────
    'by lambda' is dJ/d(lambda): where theta = log(lambda), the factor lambda is
      missing
    """
    theta, rtol = detach(as_real(theta, "theta")), as_scalar(rtol, "rtol", positive=True)
    require(
        isinstance(ways, dict) and len(ways) > 0 and all(isinstance(name, str) for name in ways),
        f"ways must be gradients by name: expected a dict, got {ways!r}",
    )
    require(
        linear is None or len(linear) == 3,
        f"linear must be (F_x, F_theta, v): expected 3 entries, got {linear!r}",
    )
    for x, name in ((theta, "theta"), (J(theta + 0.0), "J")):
        kind = str(getattr(x, "dtype", "float64"))
        require(
            "float64" in kind, f"{name} must be in double precision: expected float64, got {kind}"
        )
    lines, suspects = _lines(theta, directions, seed), {}
    try:
        found = _differences(J, theta, lines)
        direct = 0 * theta if first_order is None else _gradient(first_order, theta, "first_order")
        if first_order is not None:
            suspects["first order"] = _along(direct, lines)
        bound = rtol + 2 * found.floor
        if linear is not None:
            right, wrong = (direct - term for term in _adjoint_terms(theta, *linear))
            ways = {**ways, "adjoint formula": right}
            # For a symmetric F_x nothing is transposed, and nobody is to be accused of it.
            if np.abs(_along(right - wrong, lines)).max() > bound * found.size:
                suspects["not transposed"] = _along(wrong, lines)
        left = _number(residual, theta, "residual") if callable(residual) else residual
    except _Broken as problem:
        none = np.empty(0)
        return GradientTable(False, math.inf, rtol, str(problem), "", {}, {}, none, none, 0)
    suspects |= {name: factor * found.values for name, factor in _FACTORS.items()}
    rows = [_row(name, way, theta, lines, found, suspects, bound) for name, way in ways.items()]
    wrong = [
        f"'{r.name}' {_MEANINGS.get(r.verdict, r.verdict)}" for r in rows if r.verdict != "agrees"
    ]
    wrong += _doubts(found, rows, as_scalar(left, "residual", minimum=0.0), rtol)
    worst, names = max(row.error for row in rows), ", ".join(row.name for row in rows)
    right = f"all agree to {worst:.0e}, where {bound:.0e} is allowed: finite differences, {names}"
    return GradientTable(
        not wrong,
        worst,
        bound,
        "\n".join(wrong) or right,
        _table(found, rows, "axis" if len(lines) == math.prod(theta.shape) else "direction"),
        {row.name: row.error for row in rows},
        {row.name: row.verdict for row in rows},
        found.steps,
        found.every,
        found.best,
    )


class _Differences(NamedTuple):
    steps: np.ndarray
    every: np.ndarray  # shape (steps, directions)
    best: int  # the step used
    values: np.ndarray
    size: float  # of the largest value
    floor: float  # relative to it
    jump: float  # of J, 0 if it seems smooth


class _Row(NamedTuple):
    name: str
    values: np.ndarray
    error: float
    verdict: str


_FACTORS = {"lost": 0.0, "wrong sign": -1.0, "twice": 2.0, "half": 0.5}
_MEANINGS = {
    "first order": "lacks the second-order term: was the inner gradient taken without "
    "create_graph=True?",
    "not transposed": "solves F_x psi = v: the adjoint equation needs the transpose, F_x' psi = v",
    "lost": "is 0: theta is lost on the way (detach, no_grad, or create_graph=True is missing)",
    "wrong sign": "is minus the gradient",
    "twice": "is 2 times the gradient",
    "half": "is 0.5 times the gradient",
    "factor lambda": "is dJ/d(lambda): where theta = log(lambda), the factor lambda is missing",
    "differs": "differs from the finite differences",
}
_MEANINGS |= {
    f"{factor} or factor lambda": f"{_MEANINGS[factor]}, or {_MEANINGS['factor lambda'][3:]}"
    for factor in ("twice", "half")
}


def _lines(theta: Array, directions: int, seed: int) -> list[Array]:
    """Return the unit vectors of all axes, or random ones if there are more axes than that."""
    size, count = math.prod(theta.shape), as_count(directions, "directions", minimum=1)
    rng = np.random.default_rng(as_count(seed, "seed"))
    rows = np.eye(size) if size <= count else rng.standard_normal((count, size))
    return [asarray_like((d / np.linalg.norm(d)).reshape(theta.shape), theta) for d in rows]


def _along(g: Array, lines: list[Array]) -> np.ndarray:
    return np.array([to_float(inner(g, d)) for d in lines])


def _gradient(way: Array | Callable, theta: Array, name: str) -> Array:
    """Return a gradient at theta, given as an array or a function, checked."""
    start = array_namespace(theta).asarray(theta, copy=True)
    g = _call(way if callable(way) else lambda _: way, start, theta.shape, name)
    if g.dtype != theta.dtype:
        raise _Broken(f"{name} must be in double precision: expected float64, got {g.dtype}")
    return detach(g)


def _adjoint_terms(theta: Array, F_x: Any, F_theta: Any, v: Array) -> tuple[Array, Array]:
    """Return F_theta' psi for the adjoint equation F_x' psi = v, and for F_x psi = v."""
    v = as_real(v, "v")
    check_alike(v, "v", theta, "theta")
    n, p = math.prod(v.shape), math.prod(theta.shape)
    M = to_numpy(as_real(as_operator(F_x).to_dense(theta), "F_x", shape=(n, n)))
    N = to_numpy(as_real(as_operator(F_theta).to_dense(theta), "F_theta", shape=(n, p)))
    try:
        terms = [N.T @ np.linalg.solve(system, to_numpy(v).ravel()) for system in (M.T, M)]
    except np.linalg.LinAlgError:
        raise _Broken("F_x must be invertible: got a singular matrix") from None
    return tuple(asarray_like(term.reshape(theta.shape), theta) for term in terms)


def _differences(J: Callable, theta: Array, lines: list[Array]) -> _Differences:
    """Return central differences; the best step is where they change least, on both sides."""
    length = to_float(norm(theta)) / math.sqrt(math.prod(theta.shape)) or 1.0
    steps = length * 10.0 ** -np.arange(1.0, 7.5, 0.5)
    sides = [
        [_number(J, theta + h * d, "J") - _number(J, theta - h * d, "J") for d in lines]
        for h in steps.tolist()
    ]
    every = np.array(sides) / (2 * steps[:, None])
    change = np.nan_to_num(np.abs(np.diff(every, axis=0)).max(axis=1), nan=math.inf)
    around = np.maximum(change[:-1], change[1:])
    best = int(np.argmin(around)) + 1
    if not math.isfinite(around[best - 1]):
        raise _Broken("J is NaN or infinite near theta, whatever the step")
    size = float(np.abs(every[best]).max()) or 1.0
    # Where J is smooth, the changes fall with h² until rounding stops them: jumps do not obey.
    small = (change[1:] > change[:-1]) & (np.arange(1, len(change)) >= best)
    rough = float(np.max(change[1:] * steps[2:], where=small, initial=0.0))
    rounding = np.finfo(float).eps * abs(_number(J, theta + 0.0, "J"))
    jump = rough if rough > 1e4 * rounding else 0.0
    # At the smallest steps nothing is left but the noise of J. Two differences may be equal by
    # chance, or because they are both 0: the noise over h tells what they are worth.
    noise = max(rounding, *(change[-3:] * steps[-3:]).tolist())
    floor = max(around[best - 1], noise / steps[best]) / size
    return _Differences(steps, every, best, every[best], size, floor, jump)


# What does not agree may overflow when it is multiplied by lambda.
@np.errstate(over="ignore", invalid="ignore")
def _row(
    name: str,
    way: Array | Callable,
    theta: Array,
    lines: list[Array],
    found: _Differences,
    suspects: dict[str, np.ndarray],
    bound: float,
) -> _Row:
    """Judge one way: the first set of derivatives that it equals names it."""

    def close(a: np.ndarray, b: np.ndarray) -> bool:
        return bool(np.abs(a - b).max() <= bound * max(found.size, np.abs(b).max()))

    try:
        g = _gradient(way, theta, "it")
    except (_Broken, RuntimeError) as problem:
        # What torch says where its graph does not lead to theta.
        lost = any(sign in str(problem) for sign in ("require grad", "in the graph", "NoneType"))
        if not lost and not isinstance(problem, _Broken):
            raise
        words = "lost" if lost else str(problem).removeprefix("it ")
        return _Row(name, np.full(len(lines), math.nan), math.inf, words)
    values = _along(g, lines)
    known = {"agrees": found.values, **suspects}
    verdict = next((name for name, those in known.items() if close(values, those)), "differs")
    if verdict in ("differs", "twice", "half") and close(
        _along(g * array_namespace(theta).exp(theta), lines), found.values
    ):
        # Where lambda is 1/2 or 2, both names fit.
        verdict = f"{verdict} or factor lambda".removeprefix("differs or ")
    return _Row(name, values, float(np.abs(values - found.values).max()) / found.size, verdict)


def _doubts(found: _Differences, rows: list[_Row], residual: float, rtol: float) -> list[str]:
    """Return what speaks against J and its differences themselves, in words."""
    strangers, poor = [row for row in rows if row.verdict == "differs"], found.floor > rtol
    apart = max((np.abs(row.values - strangers[0].values).max() for row in strangers), default=0.0)
    united = len(strangers) > 1 and apart < 0.1 * found.size * min(r.error for r in strangers)
    names = " and ".join(f"'{row.name}'" for row in strangers)
    doubts = {
        f"the inner problem is not solved: its residual is {residual:.0e}, "
        f"where {rtol:.0e} is allowed": residual > rtol,
        f"the differences are good to {found.floor:.0e} only, where {rtol:.0e} is asked for": poor,
        f"J jumps by {found.jump:.0e}, and the differences by that over h: does the inner "
        "solve stop at a tolerance, or work in single precision? Make the tolerance smaller": (
            found.jump > 0 and (poor or len(strangers) > 0)
        ),
        "try a point that is not stationary": poor and not found.jump,
        "the differences are 0: J changes by less than its rounding. Try another point": (
            not found.values.any() and any(row.values.any() for row in rows)
        ),
        f"{names} agree with each other: is the inner problem of J solved?": united,
    }
    return [words for words, holds in doubts.items() if holds]


def _table(found: _Differences, rows: list[_Row], kind: str) -> str:
    """Return the table; of many directions, two are shown: a page of the book is narrow."""
    count, shown = found.values.size, min(found.values.size, 2)
    style, h = "16.9f" if 1e-3 <= found.size < 1e5 else "16.8e", found.steps[found.best]
    rows = [_Row("finite differences", found.values, found.floor, f"floor, h = {h:.0e}"), *rows]
    width = max(len(row.name) for row in rows)
    lines = [" " * width + "".join(f"{kind} {j + 1}".rjust(16) for j in range(shown)) + "   error"]
    for row in rows:
        numbers = "".join(f"{value:{style}}" for value in row.values[:shown])
        lines.append(f"{row.name:<{width}}{numbers}{row.error:8.0e}   {row.verdict}")
    rule = "─" * max(len(line) for line in lines)
    many = "axes" if kind == "axis" else "random directions"
    title = f"Derivatives of J along {shown} of {count} {many}"
    return "\n".join([title, rule, *lines[:2], rule, *lines[2:], rule])
