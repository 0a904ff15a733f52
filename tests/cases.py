"""One table of operators, one of solvers, one of filters: a new entry inherits every property.

An operator's entry gives its matrix a second time, written with NumPy or SciPy alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse

from course_lib import filters, linear, operators
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


def _quiet_csr(tensor):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return tensor.to_sparse_csr()


OPERATORS = [*_combinations(), *_differences(), *_gradients(), *_convolutions(), *_sparse()]

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
