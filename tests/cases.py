"""Tables of operators, solvers, filters, functionals: a new entry inherits every property.

An operator's entry gives its matrix a second time, written with NumPy or SciPy alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import scipy.sparse

from course_lib import filters, functionals, linear, operators, proximal
from course_lib.arrays import asarray_like
from course_lib.iterate import gradient_rule, residual_rule

# ---------------------------------------------------------------- operators


@dataclass(frozen=True)
class OperatorCase:
    """``build(like)`` returns the operator, ``matrix()`` its matrix by other means.

    ``null`` spans the null space (columns), where the docstring names it; ``libraries`` are those
    that the operator can take.
    """

    name: str
    build: Callable[[Any], operators.LinearOperator]
    matrix: Callable[[], np.ndarray]
    null: np.ndarray | None = None
    libraries: tuple[str, ...] = ("numpy", "array_api_strict", "torch", "torch-cuda")


def _numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(20).standard_normal(shape)


def _first(n: int, boundary: str) -> np.ndarray:
    if boundary == "free":
        return np.diff(np.eye(n), axis=0)
    if boundary == "zero":
        return np.diff(np.pad(np.eye(n), ((1, 1), (0, 0))), axis=0)
    return np.roll(np.eye(n), -1, axis=0) - np.eye(n)


def _second(n: int, boundary: str) -> np.ndarray:
    if boundary == "free":
        return np.diff(np.eye(n), n=2, axis=0)
    mode = {"zero": "constant", "reflect": "edge", "periodic": "wrap"}[boundary]
    return np.diff(np.pad(np.eye(n), ((1, 1), (0, 0)), mode=mode), n=2, axis=0)


def _null(n: int, order: int, boundary: str) -> np.ndarray:
    if boundary == "zero":
        return np.zeros((n, 0))
    degree = 1 if (order, boundary) == (2, "free") else 0
    return np.vander(np.arange(n), degree + 1)


def _convolved(psf: np.ndarray, shape: tuple[int, ...], boundary: str) -> np.ndarray:
    """The matrix with p[k] where output i reads input i - (k - centre): the defining sum."""
    matrix = np.zeros((*shape, *shape))
    for i in np.ndindex(*shape):
        for k in np.ndindex(*psf.shape):
            j = tuple(a - (b - p // 2) for a, b, p in zip(i, k, psf.shape, strict=True))
            if boundary == "periodic":
                j = tuple(a % n for a, n in zip(j, shape, strict=True))
            if all(0 <= a < n for a, n in zip(j, shape, strict=True)):
                matrix[i + j] += psf[k]
    return matrix.reshape(int(np.prod(shape)), -1)


def _differences() -> list[OperatorCase]:
    cases = []
    for order, boundaries in (
        (1, ("free", "zero", "periodic")),
        (2, ("free", "zero", "reflect", "periodic")),
    ):
        reference = _first if order == 1 else _second
        for boundary in boundaries:
            smallest = order + 1 if boundary == "free" else 2
            for n in sorted({smallest, 5, 6}):
                cases.append(
                    OperatorCase(
                        f"difference-{order}-{boundary}-{n}",
                        lambda like, n=n, o=order, b=boundary: operators.difference(
                            n, order=o, boundary=b
                        ),
                        lambda n=n, b=boundary, f=reference: f(n, b),
                        _null(n, order, boundary),
                    )
                )
    return cases


def _gradients() -> list[OperatorCase]:
    def reference(shape: tuple[int, ...], boundary: str) -> np.ndarray:
        units = np.eye(int(np.prod(shape))).reshape(-1, *shape)
        columns = []
        for u in units:
            if boundary == "free":
                parts = [np.diff(u, axis=a, append=np.take(u, [-1], axis=a)) for a in range(u.ndim)]
            else:
                parts = [np.roll(u, -1, axis=a) - u for a in range(u.ndim)]
            columns.append(np.stack(parts).ravel())
        return np.stack(columns, axis=1)

    return [
        OperatorCase(
            f"gradient-{boundary}-{'x'.join(map(str, shape))}",
            lambda like, s=shape, b=boundary: operators.gradient(s, boundary=b),
            lambda s=shape, b=boundary: reference(s, b),
            np.ones((int(np.prod(shape)), 1)),
        )
        for boundary in ("free", "periodic")
        for shape in ((3, 4), (2, 3), (1, 4), (5,), (2, 3, 2))
    ]


def _convolutions() -> list[OperatorCase]:
    return [
        OperatorCase(
            f"convolution-{boundary}-{'x'.join(map(str, size))}-on-{'x'.join(map(str, shape))}",
            lambda like, p=size, s=shape, b=boundary: operators.convolution(
                asarray_like(_numbers(*p), like), s, boundary=b
            ),
            lambda p=size, s=shape, b=boundary: _convolved(_numbers(*p), s, b),
        )
        for boundary in ("periodic", "zero")
        for size, shape in (
            ((3,), (7,)),
            ((4,), (8,)),
            ((5,), (5,)),
            ((1,), (1,)),
            ((3, 3), (4, 3)),
            ((2, 3), (3, 4)),
            ((1, 4), (3, 4)),
        )
    ]


def _combinations() -> list[OperatorCase]:
    M, N = _numbers(4, 6), _numbers(6, 6)

    def mat(values):
        return lambda like: operators.matrix(asarray_like(values, like))

    def integration(n: int) -> np.ndarray:
        return (np.tril(np.ones((n, n)), -1) + 0.5 * np.eye(n)) / n

    def blur(like):
        return operators.convolution(asarray_like(_numbers(3), like), 6)

    mask = np.array([[True, False, True], [False, True, True]])

    def keep(like):
        return operators.subsampling(asarray_like(mask, like) > 0.5)

    blur_matrix = _convolved(_numbers(3), (6,), "periodic")
    return [
        OperatorCase("matrix-wide", mat(M), lambda: M),
        OperatorCase("matrix-tall", mat(M.T), lambda: M.T),
        OperatorCase("matrix-column", mat(M[:, :1]), lambda: M[:, :1]),
        OperatorCase("matrix-row", mat(M[:1]), lambda: M[:1]),
        OperatorCase("matrix-1x1", mat(M[:1, :1]), lambda: M[:1, :1]),
        OperatorCase("matrix-zero", mat(0 * M), lambda: 0 * M),
        OperatorCase("matrix-rank-1", mat(M[:, :1] * M[:1]), lambda: M[:, :1] * M[:1]),
        OperatorCase("identity", lambda like: operators.identity((2, 3)), lambda: np.eye(6)),
        OperatorCase(
            "integration-7", lambda like: operators.integration(7), lambda: integration(7)
        ),
        OperatorCase(
            "integration-1", lambda like: operators.integration(1), lambda: integration(1)
        ),
        OperatorCase("subsampling", keep, lambda: np.eye(6)[mask.ravel()]),
        OperatorCase("composition", lambda like: mat(M)(like) @ mat(N)(like), lambda: M @ N),
        OperatorCase(
            "composition-mixed",
            lambda like: mat(M)(like) @ operators.integration(6) @ blur(like),
            lambda: M @ integration(6) @ blur_matrix,
        ),
        OperatorCase("adjoint", lambda like: mat(M)(like).H, lambda: M.T),
        OperatorCase(
            "adjoint-of-composition",
            lambda like: (mat(M)(like) @ operators.difference(6, boundary="periodic")).H,
            lambda: (M @ _first(6, "periodic")).T,
        ),
        OperatorCase("gram", lambda like: mat(M)(like).H @ mat(M)(like), lambda: M.T @ M),
        OperatorCase(
            "sum", lambda like: mat(N)(like) + operators.integration(6), lambda: N + integration(6)
        ),
        OperatorCase(
            "sum-periodic",
            lambda like: blur(like) + operators.difference(6, boundary="periodic"),
            lambda: blur_matrix + _first(6, "periodic"),
        ),
        OperatorCase("minus", lambda like: mat(N)(like) - mat(2 * N.T)(like), lambda: N - 2 * N.T),
        OperatorCase("scaling", lambda like: -2.5 * mat(M)(like), lambda: -2.5 * M),
        OperatorCase(
            "scaling-norm-known",
            lambda like: operators.difference(6) * -3.0,
            lambda: -3 * _first(6, "free"),
        ),
        OperatorCase(
            "scaling-by-zero",
            lambda like: 0.0 * operators.difference(6),
            lambda: 0 * _first(6, "free"),
        ),
        OperatorCase(
            "stack",
            lambda like: operators.stack(mat(M)(like), operators.difference(6), blur(like)),
            lambda: np.vstack([M, _first(6, "free"), blur_matrix]),
        ),
        OperatorCase(
            "stack-pictures",
            lambda like: operators.stack(
                operators.identity((2, 3)), keep(like), operators.gradient((2, 3))
            ),
            lambda: np.vstack(
                [
                    np.eye(6),
                    np.eye(6)[mask.ravel()],
                    next(c for c in _gradients() if c.name == "gradient-free-2x3").matrix(),
                ]
            ),
        ),
        OperatorCase(
            "laplacian",
            lambda like: operators.gradient((2, 3)).H @ operators.gradient((2, 3)),
            lambda: (lambda G: G.T @ G)(
                next(c for c in _gradients() if c.name == "gradient-free-2x3").matrix()
            ),
        ),
    ]


def _sparse() -> list[OperatorCase]:
    M = _numbers(5, 7) * (np.abs(_numbers(5, 7)) > 0.7)

    def scipy_case(kind: str) -> OperatorCase:
        return OperatorCase(
            f"sparse-scipy-{kind}",
            lambda like: operators.matrix(getattr(scipy.sparse, kind)(M.astype(str(like.dtype)))),
            lambda: M,
            libraries=("numpy",),
        )

    def torch_case(layout: str) -> OperatorCase:
        def build(like):
            tensor = asarray_like(M, like)
            # Through COO, because torch warns when a CSR tensor is made by hand.
            return operators.matrix(
                tensor.to_sparse_coo() if layout == "coo" else _quiet_csr(tensor)
            )

        return OperatorCase(
            f"sparse-torch-{layout}", build, lambda: M, libraries=("torch", "torch-cuda")
        )

    kinds = ("csr_array", "csc_array", "coo_array", "csr_matrix", "dia_array")
    return [*map(scipy_case, kinds), torch_case("coo"), torch_case("csr")]


def _haar(shape: tuple[int, ...], levels: int) -> np.ndarray:
    """One column a coefficient: a product of means and differences over blocks of 2**j entries."""

    def mean(n: int, j: int, i: int) -> np.ndarray:
        return np.repeat(np.eye(n >> j)[i], 2**j) / 2 ** (j / 2)

    def difference(n: int, j: int, i: int) -> np.ndarray:
        sign = np.tile(np.repeat([1.0, -1.0], 2 ** (j - 1)), n >> j)
        return sign * mean(n, j, i)

    columns = []
    for index in np.ndindex(*shape):
        # The coarsest level whose block of means this index is not in.
        outside = [any(i >= n >> j for i, n in zip(index, shape, strict=True)) for j in (1, 2, 3)]
        j = next((j for j in range(1, levels + 1) if outside[j - 1]), None)
        column = np.ones(())
        for i, n in zip(index, shape, strict=True):
            half = n >> (j or levels)
            profile = mean(n, j or levels, i) if i < half else difference(n, j, i - half)
            column = np.multiply.outer(column, profile)
        columns.append(column.ravel())
    return np.stack(columns, axis=1)


def _strip_area(column: float, row: float, angle: float, t: float) -> float:
    """The area that a pixel has in common with |ξ cos θ + η sin θ - t| <= 1/2, by clipping."""
    normal = np.array([np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
    square = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    corners = square + np.array([column, -row])
    for sign, limit in ((1, t + 0.5), (-1, 0.5 - t)):
        kept = []
        for p, q in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            over_p, over_q = sign * normal @ p - limit, sign * normal @ q - limit
            if over_p <= 0:
                kept.append(p)
            if over_p * over_q < 0:
                kept.append(p + over_p / (over_p - over_q) * (q - p))
        if len(kept) < 3:
            return 0.0
        corners = np.array(kept)
    u, v = corners.T
    return 0.5 * abs(u @ np.roll(v, -1) - v @ np.roll(u, -1))


@cache
def _radon(n: int, angles: tuple[float, ...]) -> np.ndarray:
    offsets = np.arange(n) - n // 2
    return np.array(
        [
            [_strip_area(column, row, angle, t) for row in offsets for column in offsets]
            for t in offsets
            for angle in angles
        ]
    )


def _tomography_and_wavelets() -> list[OperatorCase]:
    angles = (0.0, 30.0, 45.0, 90.0, 117.3, 180.0, -20.0)
    picture, vector = 1.0 + np.abs(_numbers(2, 3)), _numbers(4)
    M = _numbers(6, 4)
    cov = M.T @ M
    weights = np.linalg.inv(np.linalg.cholesky(cov))
    radons = [
        OperatorCase(
            f"radon-{n}",
            lambda like, n=n: operators.radon(n, asarray_like(angles, like)),
            lambda n=n: _radon(n, angles),
            libraries=("numpy", "torch", "torch-cuda"),
        )
        for n in (1, 4, 5)
    ]
    wavelets = [
        OperatorCase(
            f"haar-{'x'.join(map(str, shape))}-{levels}",
            lambda like, s=shape, j=levels: operators.haar(s, levels=j),
            lambda s=shape, j=levels: _haar(s, j),
            np.zeros((int(np.prod(shape)), 0)),
        )
        for shape, levels in (
            ((2,), 1),
            ((8,), 3),
            ((12,), 2),
            ((4, 4), 2),
            ((4, 6), 1),
            ((8, 4), 2),
        )
    ]
    return [
        *radons,
        *wavelets,
        OperatorCase(
            "diagonal-picture",
            lambda like: operators.diagonal(asarray_like(picture, like)),
            lambda: np.diag(picture.ravel()),
        ),
        OperatorCase(
            "diagonal-of-both-signs",
            lambda like: operators.diagonal(asarray_like([0.5, -3.0, 1.0], like)),
            lambda: np.diag([0.5, -3.0, 1.0]),
        ),
        OperatorCase(
            "whitening-variances",
            lambda like: operators.whitening(asarray_like(vector**2, like)),
            lambda: np.diag(1 / np.abs(vector)),
        ),
        OperatorCase(
            "whitening-matrix",
            lambda like: operators.whitening(asarray_like(cov, like)),
            lambda: weights,
        ),
        OperatorCase(
            "whitening-of-composition",
            lambda like: (
                operators.whitening(asarray_like(cov, like))
                @ operators.matrix(asarray_like(M.T, like))
                @ operators.haar(6, levels=1)
            ),
            lambda: weights @ M.T @ _haar((6,), 1),
        ),
        OperatorCase(
            "weighted-stack-of-pictures",
            lambda like: (
                operators.diagonal(asarray_like(_numbers(18), like))
                @ operators.stack(
                    operators.diagonal(asarray_like(picture, like)), operators.gradient((2, 3))
                )
            ),
            lambda: (
                _numbers(18)[:, None]
                * np.vstack(
                    [
                        np.diag(picture.ravel()),
                        next(c for c in _gradients() if c.name == "gradient-free-2x3").matrix(),
                    ]
                )
            ),
        ),
    ]


def _quiet_csr(tensor):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return tensor.to_sparse_csr()


OPERATORS = [
    *_combinations(),
    *_differences(),
    *_gradients(),
    *_convolutions(),
    *_tomography_and_wavelets(),
    *_sparse(),
]

# ---------------------------------------------------------------- solvers


@dataclass(frozen=True)
class SolverCase:
    """``start(A, y, x0)`` returns the generator; ``rule`` is the promise it can keep.

    ``solves`` says for which systems: "spd" (symmetric positive definite), "square",
    "least squares" (any shape, any rank). ``max_iter`` is enough to reach ``rtol`` for a condition
    number of 3.
    """

    name: str
    start: Callable[..., Any]
    rule: Callable[..., Any]
    solves: tuple[str, ...]
    max_iter: int
    rtol: float = 1e-11
    differentiable: bool = True


def _step(A: Any) -> float:
    A = operators.as_operator(A)
    return 1.0 / float(np.linalg.norm(dense_of(A), 2)) ** 2


def dense_of(A: Any) -> np.ndarray:
    from kit import to_numpy

    return to_numpy(operators.as_operator(A).to_dense())


SOLVERS = [
    SolverCase("cg", linear.cg, residual_rule, ("spd",), 60),
    SolverCase("cgls", linear.cgls, gradient_rule, ("spd", "square", "least squares"), 60),
    SolverCase(
        "landweber",
        lambda A, y, x0=None, step=None: linear.landweber(A, y, x0, step=step or _step(A)),
        gradient_rule,
        ("spd", "square", "least squares"),
        600,
    ),
    SolverCase(
        "nu_method",
        lambda A, y, x0=None, step=None: linear.nu_method(A, y, x0, nu=2.0, step=step or _step(A)),
        # Its residual polynomials fall like k^(-2ν), for a well-conditioned A too.
        gradient_rule,
        ("spd", "square", "least squares"),
        1000,
        rtol=1e-8,
    ),
    SolverCase("gmres", linear.gmres, residual_rule, ("spd", "square"), 60, differentiable=False),
    SolverCase("minres", linear.minres, residual_rule, ("spd",), 60),
    SolverCase(
        "bicgstab", linear.bicgstab, residual_rule, ("spd", "square"), 60, differentiable=False
    ),
]

# ---------------------------------------------------------------- filters


@dataclass(frozen=True)
class FilterCase:
    """``factors(s, y_coefficients)`` for a weak to a strong regularization, in [low, high].

    ``formula`` is the factor in plain NumPy, in the words of the textbook.
    """

    name: str
    factors: Callable[[Any, Any], Any]
    formula: Callable[[np.ndarray, Any], np.ndarray]
    parameters: tuple = field(default=())
    """From strong to weak regularization: with the last one nearly the pseudoinverse."""


FILTERS = [
    FilterCase(
        "tikhonov",
        filters.tikhonov_factors,
        lambda s, lam: 1 / (1 + lam / s**2),
        (1e30, 1e2, 1.0, 1e-3, 1e-8, 1e-30),
    ),
    FilterCase(
        "tsvd",
        filters.tsvd_factors,
        lambda s, rank: (np.argsort(np.argsort(-s)) < rank).astype(float),
        (1, 2, 4, 5),
    ),
    FilterCase(
        "landweber",
        lambda s, k: filters.landweber_factors(s, 0.9, k),
        lambda s, k: 1 - (1 - 0.9 * s**2) ** k,
        (0, 1, 2, 10, 1000),
    ),
]

# ---------------------------------------------------------------- functionals


def _everything(x: np.ndarray) -> np.ndarray:
    return x


@dataclass(frozen=True)
class FunctionalCase:
    """``build(like)`` returns the functional R for arrays of ``shape``; the rest is plain NumPy.

    ``value`` is R and ``conjugate`` R*, each infinite outside its domain; ``allowed`` and
    ``dual_allowed`` take an array into that domain. ``dual_prox(v, step)`` is the proximal map of
    the conjugate, by a formula of its own and not from Moreau's identity.
    """

    name: str
    build: Callable[[Any], functionals.Functional]
    shape: tuple[int, ...]
    value: Callable[[np.ndarray], float]
    allowed: Callable[[np.ndarray], np.ndarray] = _everything
    conjugate: Callable[[np.ndarray], float] | None = None
    dual_allowed: Callable[[np.ndarray], np.ndarray] = _everything
    dual_prox: Callable[[np.ndarray, float], np.ndarray] | None = None


def _unless(broken: bool, value: float = 0.0) -> float:
    return np.inf if broken else float(value)


def _quadratic(M: np.ndarray | None, y: Any, w: Any = 1.0) -> Callable[[np.ndarray], float]:
    def value(x: np.ndarray) -> float:
        r = (x if M is None else M @ x) - y
        return 0.5 * float(np.sum(w * r**2))

    return value


def _variation(x: np.ndarray, isotropic: bool) -> float:
    total = 0.0
    for i in np.ndindex(*x.shape):
        steps = []
        for axis in range(x.ndim):
            j = tuple(a + (k == axis) for k, a in enumerate(i))
            steps.append(x[j] - x[i] if j[axis] < x.shape[axis] else 0.0)
        total += np.hypot.reduce(steps) if isotropic else np.abs(steps).sum()
    return float(total)


def _by_size(v: np.ndarray, excess: Callable[[float], float]) -> np.ndarray:
    """v clipped to [-c, c], with c the root of ``excess``, by bisection."""
    low, high = 0.0, float(np.abs(v).max())
    if excess(low) <= 0:
        return 0.0 * v
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return np.clip(v, -high, high)


def _box_dual_prox(lower: float, upper: float) -> Callable:
    def dual_prox(v: np.ndarray, step: float) -> np.ndarray:
        # Of step * max(a p, b p) + ½(p - v)²: above the kink, below it, or at it.
        return np.where(v > step * upper, v - step * upper, np.minimum(v - step * lower, 0.0))

    return dual_prox


def _norms_dual_prox(axis: int) -> Callable:
    def dual_prox(v: np.ndarray, step: float) -> np.ndarray:
        return v / np.maximum(1.0, np.linalg.norm(v, axis=axis, keepdims=True))

    return dual_prox


def _l1_case(name: str, build: Callable, lam: float, shape: tuple[int, ...]) -> FunctionalCase:
    return FunctionalCase(
        name,
        build,
        shape,
        lambda x: lam * np.sum(np.abs(x)),
        conjugate=lambda p: _unless(np.abs(p).max() > lam),
        dual_allowed=lambda p: lam * np.tanh(p),
        dual_prox=lambda v, step: np.clip(v, -lam, lam),
    )


def _group_case(axis: int, shape: tuple[int, ...]) -> FunctionalCase:
    return FunctionalCase(
        f"group_l1-{axis}",
        lambda like: functionals.group_l1(axis),
        shape,
        lambda x: np.sum(np.linalg.norm(x, axis=axis)),
        conjugate=lambda p: _unless(np.linalg.norm(p, axis=axis).max() > 1),
        dual_allowed=lambda p: p / np.linalg.norm(p, axis=axis).max(),
        dual_prox=_norms_dual_prox(axis),
    )


def _box_case(name: str, lower: float | None, upper: float | None) -> FunctionalCase:
    a, b = -np.inf if lower is None else lower, np.inf if upper is None else upper

    def dual_allowed(p: np.ndarray) -> np.ndarray:
        return np.clip(p, -np.inf if np.isfinite(a) else 0.0, np.inf if np.isfinite(b) else 0.0)

    def conjugate(p: np.ndarray) -> float:
        # Summed entry by entry, because infinity times 0 is no number.
        return sum(0.0 if q == 0 else max(a * q, b * q) for q in p.ravel())

    return FunctionalCase(
        name,
        lambda like: functionals.box(lower, upper),
        (2, 3),
        lambda x: _unless((x < a).any() or (x > b).any()),
        lambda x: np.clip(x, a, b),
        conjugate,
        dual_allowed,
        _box_dual_prox(a, b),
    )


def _functionals() -> list[FunctionalCase]:
    y, w, M, D = _numbers(2, 3), 0.3 + _numbers(2, 3) ** 2, _numbers(4, 6), _numbers(5, 6)
    data, weights, radius = _numbers(4), 0.5 + _numbers(4) ** 2, 1.3

    def squares(name: str, build: Callable, y: Any, w: Any) -> FunctionalCase:
        return FunctionalCase(
            name,
            build,
            (2, 3),
            _quadratic(None, y, w),
            conjugate=lambda p: 0.5 * np.sum(p**2 / w) + np.sum(p * y),
            dual_prox=lambda v, step: (v - step * y) / (1 + step / w),
        )

    def elastic_conjugate(p: np.ndarray) -> float:
        return float(np.sum(np.maximum(np.abs(p) - 0.8, 0) ** 2)) / (2 * 0.5)

    def elastic_dual_prox(v: np.ndarray, step: float) -> np.ndarray:
        outside = (0.5 * v + step * 0.8 * np.sign(v)) / (0.5 + step)
        return np.where(np.abs(v) <= 0.8, v, outside)

    def ball_dual_prox(v: np.ndarray, step: float) -> np.ndarray:
        return _by_size(v, lambda c: np.maximum(np.abs(v) - c, 0).sum() - step * radius)

    parts = ((functionals.l1(), (2,)), (functionals.box(0.0), (1,)))
    return [
        _l1_case("l1", lambda like: functionals.l1(), 1.0, (2, 3)),
        _l1_case("l1-scaled", lambda like: 2.5 * functionals.l1(), 2.5, (6,)),
        FunctionalCase(
            "elastic_net",
            lambda like: functionals.elastic_net(0.8, 0.5),
            (2, 3),
            lambda x: 0.8 * np.sum(np.abs(x)) + 0.25 * np.sum(x**2),
            conjugate=elastic_conjugate,
            dual_prox=elastic_dual_prox,
        ),
        squares("squared_l2", lambda like: functionals.squared_l2(), 0.0, 1.0),
        FunctionalCase(
            "squared_l2-D",
            lambda like: functionals.squared_l2(asarray_like(D, like)),
            (6,),
            _quadratic(D, 0.0),
        ),
        squares(
            "least_squares-identity",
            lambda like: functionals.least_squares(None, asarray_like(y, like)),
            y,
            1.0,
        ),
        squares(
            "least_squares-identity-weights",
            lambda like: functionals.least_squares(
                None, asarray_like(y, like), weights=asarray_like(w, like)
            ),
            y,
            w,
        ),
        FunctionalCase(
            "least_squares",
            lambda like: functionals.least_squares(asarray_like(M, like), asarray_like(data, like)),
            (6,),
            _quadratic(M, data),
        ),
        FunctionalCase(
            "least_squares-weights",
            lambda like: functionals.least_squares(
                asarray_like(M, like),
                asarray_like(data, like),
                weights=asarray_like(weights, like),
            ),
            (6,),
            _quadratic(M, data, weights),
        ),
        _group_case(0, (2, 3)),
        _group_case(1, (2, 3, 2)),
        *(
            FunctionalCase(
                f"total_variation-{'isotropic' if i else 'anisotropic'}-{len(shape)}d",
                lambda like, shape=shape, i=i: functionals.total_variation(shape, isotropic=i),
                shape,
                lambda x, i=i: _variation(x, i),
            )
            for shape in ((5,), (3, 4), (2, 3, 2))
            for i in (True, False)
        ),
        _box_case("box", -0.5, 0.25),
        _box_case("box-below", 0.0, None),
        _box_case("box-above", None, 0.5),
        FunctionalCase(
            "l1_ball",
            lambda like: functionals.l1_ball(radius),
            (2, 3),
            lambda x: _unless(np.abs(x).sum() > radius),
            lambda x: x * min(1.0, 0.999 * radius / np.abs(x).sum()),
            lambda p: radius * np.abs(p).max(),
            dual_prox=ball_dual_prox,
        ),
        FunctionalCase(
            "separable",
            lambda like: functionals.separable(*parts),
            (3,),
            lambda x: np.abs(x[:2]).sum() + _unless(x[2] < 0),
            lambda x: np.array([x[0], x[1], abs(x[2])]),
            lambda p: _unless(np.abs(p[:2]).max() > 1 or p[2] > 0),
            lambda p: np.array([np.tanh(p[0]), np.tanh(p[1]), -abs(p[2])]),
            lambda v, step: np.array([*np.clip(v[:2], -1, 1), min(v[2], 0.0)]),
        ),
    ]


FUNCTIONALS = _functionals()

# ---------------------------------------------------------------- proximal iterations


@dataclass(frozen=True)
class ProximalCase:
    """``start(A, y, lam, x0, step)`` returns the generator for ½‖Ax - y‖² + lam ‖x‖₁.

    ``step`` is 1/‖A‖², or what the caller wants it to be. ``max_iter`` is enough to reach a
    relative duality gap of 1e-9 for a condition number of 10.
    """

    name: str
    start: Callable[..., Any]
    max_iter: int


def _composite(solver: Callable, **options: Any) -> Callable:
    def start(A, y, lam, x0, step):
        f, R = functionals.least_squares(A, y), lam * functionals.l1()
        return solver(f, R, x0, step=step, **options)

    return start


def _admm(rho: float, relaxation: float) -> Callable:
    def start(A, y, lam, x0, step):
        K = operators.identity(tuple(x0.shape))
        solve = proximal.least_squares_step(A, y, K)
        R = lam * functionals.l1()
        return proximal.admm(solve, R, K, x0, rho=rho / step, relaxation=relaxation)

    return start


def _pdhg(ratio: float) -> Callable:
    def start(A, y, lam, x0, step):
        # A stands in the place of K, so that the proximal map of the data term is known.
        f, g = lam * functionals.l1(), functionals.least_squares(None, y)
        root = step**0.5
        return proximal.pdhg(A, f, g, x0, step=root * ratio, dual_step=root / ratio)

    return start


PROXIMAL = [
    ProximalCase("ista", _composite(proximal.ista), 6000),
    ProximalCase("fista", _composite(proximal.fista), 3000),
    ProximalCase("fista-restart", _composite(proximal.fista, restart=True), 1000),
    ProximalCase("admm", _admm(0.1, 1.0), 2000),
    ProximalCase("admm-over", _admm(0.1, 1.7), 2000),
    ProximalCase("admm-under", _admm(0.03, 0.6), 2000),
    ProximalCase("pdhg", _pdhg(1.0), 4000),
    ProximalCase("pdhg-long-primal", _pdhg(5.0), 4000),
]
