"""Implicit differentiation: formulas against dense algebra, differences and torch; linear systems.

Derivatives are checked in double precision. Where a transpose, a sign or an order could be lost,
the matrices are not symmetric and not square.
"""

import ast
import inspect
import math
import textwrap

import numpy as np
import pytest
import scipy.sparse
from claims import rejects
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import assert_alike, eps, relative, to_numpy

from course_lib import checks, implicit
from course_lib.arrays import asarray_like
from course_lib.functionals import soft_threshold
from course_lib.implicit import (
    batch_norm,
    batch_norm_vjp,
    error_bound,
    fixed_point_jvp,
    fixed_point_vjp,
    ilu,
    jacobi,
    lavrentiev,
    layer,
    lbfgs,
    linearize,
    low_rank,
    neumann,
    neumann_tail,
    refine,
    root_jvp,
    root_vjp,
    solve,
    support_jvp,
    support_vjp,
    sylvester,
    sylvester_jvp,
    sylvester_vjp,
)
from course_lib.iterate import residual_rule, run
from course_lib.linear import bicgstab, cg, gmres
from course_lib.operators import LinearOperator, convolution, matrix
from course_lib.proximal import lasso


def free(M, shape=None):
    """A matrix of which only the products are known; ``shape`` makes its vectors pictures."""
    m, n = M.shape
    out = shape if shape is not None and math.prod(shape) == m else (m,)
    into = shape if shape is not None and math.prod(shape) == n else (n,)
    return LinearOperator(
        lambda v: (M @ v.reshape(n)).reshape(out),
        lambda w: (M.T @ w.reshape(m)).reshape(into),
        into,
        out,
        like=M,
    )


def products(M):
    """The same for any array library: no reshaping."""
    m, n = M.shape
    return LinearOperator(lambda v: M @ v, lambda w: M.T @ w, (n,), (m,), like=M)


def conditioned(rng, n: int, condition: float, kind: str = "general") -> np.ndarray:
    """A matrix with singular values from 1 to 1/condition: "spd", "symmetric" or "general"."""
    U = np.linalg.qr(rng.standard_normal((n, n)))[0]
    V = U if kind != "general" else np.linalg.qr(rng.standard_normal((n, n)))[0]
    signs = rng.choice([-1.0, 1.0], n) if kind == "symmetric" else np.ones(n)
    A = (U * (signs * np.geomspace(1, 1 / condition, n))) @ V.T
    return A if kind == "general" else (A + A.T) / 2


def differences(f, theta: np.ndarray, h: float = 1e-5) -> np.ndarray:
    """The Jacobian of f, column by column, by differences of fourth order."""
    columns = []
    for unit in np.eye(theta.size).reshape(-1, *theta.shape):
        near = (f(theta + h * unit) - f(theta - h * unit)) / (2 * h)
        far = (f(theta + 2 * h * unit) - f(theta - 2 * h * unit)) / (4 * h)
        columns.append(np.ravel((4 * near - far) / 3))
    return np.stack(columns, axis=1)


def logical_lines(function) -> int:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)][1:]
    return sum(
        not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in statements
    )


@pytest.mark.parametrize("name", implicit.__all__)
def test_a_function_stays_within_25_statements(name):
    assert logical_lines(getattr(implicit, name)) <= 25


# ---------------------------------------------------------------- linearize


@pytest.mark.slow
def test_linearize_is_the_jacobian(torch):
    """Both directions of both derivatives, of a map between arrays of three shapes."""
    gen = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, dtype=torch.float64, generator=gen)
    theta = torch.randn(4, dtype=torch.float64, generator=gen)
    M = torch.randn(5, 6, dtype=torch.float64, generator=gen)
    N = torch.randn(5, 4, dtype=torch.float64, generator=gen)

    def equation(x, theta):
        return torch.sin(M @ x.reshape(-1)) * (N @ theta) ** 2 + N @ theta

    operators = linearize(equation, x, theta)
    assert [A.in_shape for A in operators] == [(2, 3), (4,)]
    for argument, A in enumerate(operators):
        J = torch.func.jacrev(equation, argnums=argument)(x, theta).reshape(5, -1)
        np.testing.assert_allclose(A.to_dense(), J, rtol=0, atol=1e-13)
        np.testing.assert_allclose(A.H.to_dense(), J.T, rtol=0, atol=1e-13)
        assert A.out_shape == (5,)


def test_linearize_evaluates_once(torch):
    calls = []

    def equation(x, theta):
        calls.append(1)
        return theta * x**2

    F_x, F_theta = linearize(equation, torch.ones(3), torch.tensor(2.0))
    for _ in range(3):
        F_x @ torch.ones(3), F_x.H @ torch.ones(3), F_theta @ torch.tensor(1.0)
    assert len(calls) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_linearize_kinds(torch, dtype):
    """A number among the arguments, one that F does not use, one that requires grad."""
    dtype = getattr(torch, dtype)
    x = torch.ones(2, dtype=dtype, requires_grad=True)
    lam, unused = torch.tensor(3.0, dtype=dtype), torch.ones(4, dtype=dtype)
    F_x, F_lam, F_none = linearize(lambda x, lam, unused: lam * x**3, x, lam, unused)
    v = torch.tensor([1.0, 2.0], dtype=dtype)
    assert_alike(F_x @ v, v)
    np.testing.assert_allclose(F_x @ v, 9 * v, rtol=1e-6)
    assert tuple(F_lam.in_shape) == ()
    np.testing.assert_allclose(F_lam @ torch.tensor(2.0, dtype=dtype), [2, 2])
    assert float(F_lam.H @ v) == 3
    assert not (F_none @ unused).any()
    assert not (F_none.H @ v).any()
    assert x.grad is None
    assert not (F_x @ v).requires_grad


def test_linearize_refuses(torch):
    one = torch.ones(2)
    with pytest.raises(ValueError, match="torch tensors"):
        linearize(lambda x: x, np.ones(2))
    with pytest.raises(ValueError, match="argument 0 must be an array"):
        linearize(lambda x: x, [1.0])
    with pytest.raises(ValueError, match="argument 1 must be finite"):
        linearize(lambda x, y: x, one, one * math.nan)
    with pytest.raises(ValueError, match="the value of F must be finite"):
        linearize(lambda x: torch.log(x - 2), one)
    with pytest.raises(ValueError, match="the value of F must be an array"):
        linearize(lambda x: 1.0, one)
    with pytest.raises(ValueError, match="single or double"):
        linearize(lambda x: x, one.half())


# ---------------------------------------------------------------- roots and fixed points


@pytest.mark.parametrize("p", [1, 3, 9])
@pytest.mark.parametrize("products_only", [False, True])
def test_roots_are_the_formula(rng, like, p, products_only):
    """-F_x⁻¹F_θ and its transpose, n = 5; F_x not symmetric."""
    n = 5
    F_x, F_theta = conditioned(rng, n, 3.0), rng.standard_normal((n, p))
    v, t = rng.standard_normal(n), rng.standard_normal(p)
    J = -np.linalg.solve(F_x, F_theta)
    a, b = asarray_like(F_x, like), asarray_like(F_theta, like)
    if products_only:
        a, b = products(a), products(b)
    back = root_vjp(a, b, asarray_like(v, like))
    forth = root_jvp(a, b, asarray_like(t, like))
    assert_alike(back, like)
    assert_alike(forth, like)
    assert relative(back, J.T @ v) < max(1e-8, 300 * eps(like))
    assert relative(forth, J @ t) < max(1e-8, 300 * eps(like))


def test_fixed_points_are_the_formula(rng, like):
    """(I - T_x)⁻¹T_θ: a contraction is not needed."""
    T_x, T_theta = 3 * conditioned(rng, 5, 2.0), rng.standard_normal((5, 2))
    assert np.abs(np.linalg.eigvals(T_x)).max() > 1
    v, t = rng.standard_normal(5), rng.standard_normal(2)
    J = np.linalg.solve(np.eye(5) - T_x, T_theta)
    condition = np.linalg.cond(np.eye(5) - T_x)
    a, b = asarray_like(T_x, like), asarray_like(T_theta, like)
    for T in ((a, b), (products(a), products(b)), (products(a), b)):
        back = fixed_point_vjp(*T, asarray_like(v, like))
        forth = fixed_point_jvp(*T, asarray_like(t, like))
        assert_alike(back, like)
        assert relative(back, J.T @ v) < max(1e-8, 100 * condition * eps(like))
        assert relative(forth, J @ t) < max(1e-8, 100 * condition * eps(like))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(n=st.integers(1, 7), p=st.integers(1, 7), seed=st.integers(0, 10**6))
def test_forward_and_reverse_are_adjoint(n, p, seed):
    rng = np.random.default_rng(seed)
    F_x, F_theta = conditioned(rng, n, 5.0), rng.standard_normal((n, p))
    v, t = rng.standard_normal(n), rng.standard_normal(p)
    for vjp, jvp in ((root_vjp, root_jvp), (fixed_point_vjp, fixed_point_jvp)):
        M = F_x if vjp is root_vjp else 0.5 * F_x
        assert vjp(M, F_theta, v) @ t == pytest.approx(v @ jvp(M, F_theta, t), rel=1e-9, abs=1e-10)


def test_roots_of_pictures(rng):
    """x is a picture and θ another one; nothing is flattened on the way."""
    shape = (4, 5)
    A = convolution(np.array([[0.0, 0.2, 0.0], [0.3, 1.0, -0.1], [0.0, 0.2, 0.0]]), shape)
    theta, v = rng.standard_normal(shape), rng.standard_normal(shape)
    F_theta = LinearOperator(lambda t: -theta * t, lambda w: -theta * w, shape, shape)
    dense = A.to_dense(like=v)
    expected = theta * np.linalg.solve(dense.T, v.ravel()).reshape(shape)
    found = root_vjp(A, F_theta, v)
    assert found.shape == shape
    assert relative(found, expected) < 1e-8


def test_one_system_with_the_transpose():
    """The solver is called once, with F_xᵀ and v, however many parameters there are."""
    seen = []
    F_x, v = np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([1.0, 2.0])

    def solver(A, b):
        seen.append((A.to_dense(), b))
        return np.linalg.solve(A.to_dense(), b)

    found = root_vjp(F_x, np.ones((2, 50)), v, solver=solver)
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0][0], F_x.T)
    np.testing.assert_allclose(found, -np.linalg.solve(F_x.T, v).sum() * np.ones(50))
    root_jvp(F_x, np.ones((2, 3)), np.ones(3), solver=solver)
    np.testing.assert_array_equal(seen[1][0], F_x)
    np.testing.assert_array_equal(seen[1][1], [3, 3])
    # A result with .x is taken too, and one that has not converged is not.
    rule = residual_rule(F_x.T, v, rtol=1e-12)
    by_gmres = root_vjp(
        F_x, np.eye(2), v, solver=lambda A, b: run(gmres(A, b), stop=rule, max_iter=5)
    )
    np.testing.assert_allclose(by_gmres, -np.linalg.solve(F_x.T, v))
    with pytest.raises(ValueError, match="the linear system must be solved: max_iter"):
        root_vjp(F_x, np.eye(2), v, solver=lambda A, b: run(gmres(A, b), stop=rule, max_iter=1))


def test_singular_derivatives_are_told():
    F_x = np.array([[1.0, 1.0], [1.0, 1.0]])
    for call in (root_vjp, root_jvp):
        with pytest.raises(ValueError, match=r"must be solved: A is singular to rounding"):
            call(F_x, np.eye(2), np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="must be solved"):
        fixed_point_vjp(np.eye(2), np.eye(2), np.array([1.0, 0.0]))


def tanh_fixed_point(W, b):
    x = 0 * b
    for _ in range(2000):
        x = np.tanh(W @ x + b)
    return x


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_tanh_fixed_point_against_differences(seed, torch):
    """x = tanh(Wx + b): dx/db and dx/dW, by hand and by torch, as a root and as a fixed point."""
    rng = np.random.default_rng(seed)
    W, b, v = rng.standard_normal((4, 4)), rng.standard_normal(4), rng.standard_normal(4)
    W *= 0.9 / np.linalg.norm(W, 2)
    x = tanh_fixed_point(W, b)
    G = np.diag(1 - x**2)
    by_b = fixed_point_vjp(G @ W, G, v)
    ways = {"fixed point": by_b, "root": root_vjp(np.eye(4) - G @ W, -G, v)}
    linear = (np.eye(4) - G @ W, -G, v)
    assert checks.gradients(lambda b: v @ tanh_fixed_point(W, b), b, ways, linear=linear)
    np.testing.assert_allclose(ways["root"], by_b, atol=1e-12)
    T_W = LinearOperator(
        lambda dW: G @ (dW @ x), lambda w: np.outer(G @ w, x), (4, 4), (4,), like=x
    )
    by_W = fixed_point_vjp(G @ W, T_W, v)
    assert checks.gradients(lambda W: v @ tanh_fixed_point(W, b), W, {"fixed point": by_W})

    def step(x, W, b):
        return torch.tanh(W @ x + b)

    T_x, by_torch_W, by_torch_b = linearize(step, *(torch.from_numpy(a) for a in (x, W, b)))
    g = torch.from_numpy(v)
    np.testing.assert_allclose(fixed_point_vjp(T_x, by_torch_W, g), by_W, atol=1e-8)
    np.testing.assert_allclose(fixed_point_vjp(T_x, by_torch_b, g), by_b, atol=1e-8)
    forth = fixed_point_jvp(T_x, by_torch_b, g)
    np.testing.assert_allclose(
        forth, differences(lambda b: tanh_fixed_point(W, b), b) @ v, atol=1e-8
    )


BAD_PAIRS = [
    (np.ones((3, 2)), np.ones((3, 2)), "must be square"),
    (np.ones((3, 1)), np.eye(3), "must be square"),
    (np.eye(3), np.ones((2, 3)), "must be square and fit"),
    (np.full((2, 2), np.nan), np.eye(2), "must be finite"),
    ([[1.0, 0.0], [0.0, 1.0]], np.eye(2), "must be an array"),
    (np.eye(2, dtype=np.float16), np.eye(2), "single or double"),
    (np.eye(2) * 1j, np.eye(2), "must be real"),
]


@pytest.mark.parametrize(("first", "second", "words"), BAD_PAIRS)
@pytest.mark.parametrize("call", [root_vjp, root_jvp, fixed_point_vjp, fixed_point_jvp])
def test_derivatives_that_do_not_fit(call, first, second, words):
    with pytest.raises(ValueError, match=words):
        call(first, second, np.ones(np.shape(first)[0]))


@pytest.mark.parametrize("call", [root_vjp, root_jvp, fixed_point_vjp, fixed_point_jvp])
def test_vectors_that_do_not_fit(call, torch):
    M, N = 2 * np.eye(3), np.eye(3)
    for bad in (
        np.ones(2),
        np.ones((3, 1)),
        [1.0, 1.0, 1.0],
        np.ones(3, dtype=np.float32),
        np.ones(3, dtype=np.float16),
        np.array([1.0, np.nan, 0.0]),
        torch.ones(3, dtype=torch.float64),
        np.ones(3) * 1j,
        None,
    ):
        with pytest.raises(ValueError, match=r"got|expected"):
            call(M, N, bad)


# ---------------------------------------------------------------- where there is an l1 term


def sparse_problem(seed: int, m: int = 12, n: int = 6):
    """A LASSO whose support is strictly complementary: the data, λ, and the solution as a map."""
    rng = np.random.default_rng(seed)
    A, y = rng.standard_normal((m, n)), rng.standard_normal(m)
    lam = 0.4 * np.abs(A.T @ y).max()

    def solution(y, lam):
        found = lasso(A, y, lam, rtol=1e-14)
        assert found.converged
        return found.x

    return A, y, lam, solution


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(12, 6), (6, 9)])
def test_support_derivatives_against_differences(seed, shape):
    """By λ and by the data, forwards and backwards; zero off the support."""
    A, y, lam, solution = sparse_problem(seed, *shape)
    x, rng = solution(y, lam), np.random.default_rng(seed)
    S = x != 0
    assert 0 < S.sum() < len(x)
    assert np.abs(A.T @ (A @ x - y))[~S].max() < lam * (1 - 1e-3)
    v = rng.standard_normal(len(x))
    by_lam = differences(lambda t: solution(y, float(t[0])), np.array([lam]), 1e-6)
    by_y = differences(lambda y: solution(y, lam), y, 1e-6)
    mask, signs = S.astype(float), np.sign(x)[:, None]
    H = A.T @ A
    np.testing.assert_allclose(support_jvp(H, signs, mask, np.ones(1)), by_lam[:, 0], atol=1e-7)
    np.testing.assert_allclose(support_vjp(H, signs, mask, v), by_lam.T @ v, atol=1e-7)
    np.testing.assert_allclose(support_vjp(H, -A.T, S, v), by_y.T @ v, atol=1e-7)
    t = rng.standard_normal(len(y))
    forth = support_jvp(free(H), free(-A.T), S, t)
    np.testing.assert_allclose(forth, by_y @ t, atol=1e-7)
    assert not forth[~S].any()


@pytest.mark.parametrize("seed", range(4))
def test_support_is_the_prox_fixed_point(seed):
    """x = soft(x - η∇g, ηλ) has T_x = mask (I - ηH): one derivative, two equations."""
    A, y, lam, solution = sparse_problem(seed)
    x = solution(y, lam)
    step, mask, H = 1 / np.linalg.norm(A, 2) ** 2, np.diag((x != 0) * 1.0), A.T @ A
    assert relative(soft_threshold(x - step * A.T @ (A @ x - y), step * lam), x) < 1e-12
    v = np.random.default_rng(seed).standard_normal(len(x))
    T_x, T_lam = mask @ (np.eye(len(x)) - step * H), -step * np.sign(x)[:, None]
    by_support = support_vjp(H, np.sign(x)[:, None], x != 0, v)
    np.testing.assert_allclose(fixed_point_vjp(T_x, T_lam, v), by_support, rtol=1e-10)
    by_data = fixed_point_vjp(T_x, step * mask @ A.T, v)
    np.testing.assert_allclose(by_data, support_vjp(H, -A.T, x != 0, v), rtol=1e-8, atol=1e-10)


def test_support_kinds(rng, like):
    H, F = conditioned(rng, 5, 3.0, "spd"), rng.standard_normal((5, 2))
    S, v = np.array([1, 0, 1, 1, 0]), rng.standard_normal(5)
    on = S.astype(bool)
    expected = -F[on].T @ np.linalg.solve(H[np.ix_(on, on)], v[on])
    h, f, w = (asarray_like(a, like) for a in (H, F, v))
    for mask in (asarray_like(S, like), asarray_like(S, like) > 0.5):
        for a, b in ((h, f), (products(h), products(f))):
            found = support_vjp(a, b, mask, w)
            assert_alike(found, like)
            assert relative(found, expected) < max(1e-9, 100 * eps(like))
    # All entries, or none.
    everything = support_vjp(h, f, asarray_like(np.ones(5), like), w)
    assert relative(everything, root_vjp(h, f, w)) < max(1e-9, 100 * eps(like))
    nothing = support_vjp(h, f, asarray_like(np.zeros(5), like), w)
    assert not to_numpy(nothing).any()


def test_a_support_must_be_a_mask(torch):
    H, v = np.eye(3), np.ones(3)
    for bad, words in (
        (np.array([2.0, 0.0, 1.0]), "zeros and ones"),
        (np.array([0.5, 0.0, 1.0]), "zeros and ones"),
        (np.ones(2), "wrong shape"),
        ([1, 0, 1], "must be an array"),
        (np.array([1.0, np.nan, 0.0]), "finite"),
    ):
        for call in (support_vjp, support_jvp):
            with pytest.raises(ValueError, match=words):
                call(H, H, bad, v)
    # Dependent columns of the support: no derivative.
    with pytest.raises(ValueError, match="must be solved"):
        support_vjp(np.ones((2, 2)), np.eye(2), np.ones(2), np.array([1.0, 0.0]))
    # Off the support the Hessian may be what it likes.
    found = support_vjp(np.ones((2, 2)), np.eye(2), np.array([1, 0]), np.array([1.0, 3.0]))
    np.testing.assert_allclose(found, [-1, 0])


# ---------------------------------------------------------------- Sylvester's equation


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 5), (5, 2), (1, 4)])
def test_sylvester(shape, rng, like):
    """AX + XB = C with matrices that are not symmetric; X neither."""
    m, n = shape
    A = rng.standard_normal((m, m)) + 3 * np.eye(m)
    B = rng.standard_normal((n, n)) + 3 * np.eye(n)
    C = rng.standard_normal(shape)
    kron = np.kron(np.eye(n), A) + np.kron(B.T, np.eye(m))
    expected = np.linalg.solve(kron, C.ravel(order="F")).reshape(shape, order="F")
    a, b, c = (asarray_like(M, like) for M in (A, B, C))
    X = sylvester(a, b, c)
    assert_alike(X, like)
    assert relative(X, expected) < 20 * np.linalg.cond(kron) * eps(like)
    residual = to_numpy(a @ X + X @ b - c)
    assert np.abs(residual).max() < 1e3 * eps(like)


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 1)])
def test_sylvester_derivatives(shape, rng, like):
    m, n = shape
    A = rng.standard_normal((m, m)) + 3 * np.eye(m)
    B = rng.standard_normal((n, n)) + 3 * np.eye(n)
    C, V = rng.standard_normal(shape), rng.standard_normal(shape)
    X = sylvester(A, B, C)
    slopes = (
        differences(lambda A: sylvester(A, B, C), A),
        differences(lambda B: sylvester(A, B, C), B),
        differences(lambda C: sylvester(A, B, C), C),
    )
    a, b, x, v = (asarray_like(M, like) for M in (A, B, X, V))
    single = eps(like) > 1e-10
    for found, J, shaped in zip(sylvester_vjp(a, b, x, v), slopes, (A, B, C), strict=True):
        assert_alike(found, like)
        assert tuple(found.shape) == shaped.shape
        assert relative(found, J.T @ V.ravel()) < (1e-4 if single else 1e-8)
    directions = [rng.standard_normal(M.shape) for M in (A, B, C)]
    expected = sum(J @ d.ravel() for J, d in zip(slopes, directions, strict=True))
    found = sylvester_jvp(a, b, x, *(asarray_like(d, like) for d in directions))
    assert relative(found, expected) < (1e-4 if single else 1e-8)


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_sylvester_sees_a_singular_equation_that_is_not_normal(n):
    """All eigenvalues are 0, but computed ones are as large as eps^(1/n): the residual tells."""
    rng = np.random.default_rng(n)
    J = np.diag(np.ones(n - 1), 1)
    Q, P = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    with pytest.raises(ValueError, match=r"one solution|solvable to rounding"):
        sylvester(Q @ J @ Q.T, -P @ J @ P.T, rng.standard_normal((n, n)))
    tiny = 1e-200 * np.eye(2)
    with pytest.raises(ValueError, match="solvable to rounding"):
        sylvester(tiny, tiny, 1e200 * np.ones((2, 2)))


def test_sylvester_refuses(torch):
    with pytest.raises(ValueError, match=r"no sum of an eigenvalue .* to be zero, got"):
        sylvester(np.diag([1.0, 2.0]), np.diag([-1.0, 5.0]), np.ones((2, 2)))
    # A pair of complex eigenvalues of A against those of B.
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    with pytest.raises(ValueError, match="one solution"):
        sylvester(turn, turn, np.eye(2))
    eye, one = np.eye(2), np.ones((2, 2))
    for arguments in (
        (one[:1], eye, one),
        (eye, np.eye(3), one),
        (eye, eye, one[0]),
        (eye.tolist(), eye, one),
        (eye, eye.astype(np.float32), one),
        (eye * np.nan, eye, one),
        (eye, torch.eye(2, dtype=torch.float64), one),
    ):
        with pytest.raises(ValueError, match=r"expected|got"):
            sylvester(*arguments)
    for k in range(4):
        for bad in ([[1.0, 0.0]] * 2, np.ones(3), np.ones((2, 3)), np.full((2, 2), np.nan)):
            arguments = [eye, eye, one, one]
            arguments[k] = bad
            with pytest.raises(ValueError, match=r"expected|got"):
                sylvester_vjp(*arguments)
    for k in range(6):
        for bad in ([[1.0, 0.0]] * 2, np.ones(3), np.ones((2, 3)), np.full((2, 2), np.nan)):
            arguments = [eye, eye, one, one, one, one]
            arguments[k] = bad
            with pytest.raises(ValueError, match=r"expected|got"):
                sylvester_jvp(*arguments)


# ---------------------------------------------------------------- Neumann's series


def test_neumann(rng, like):
    T, v = conditioned(rng, 5, 3.0) * 0.5, rng.standard_normal(5)
    a, w = asarray_like(T, like), asarray_like(v, like)
    expected = sum(np.linalg.matrix_power(T, j) @ v for j in range(6))
    for operator in (a, products(a)):
        found = neumann(operator, w, 6)
        assert_alike(found, like)
        assert relative(found, expected) < 20 * eps(like)
    np.testing.assert_array_equal(to_numpy(neumann(a, w, 1)), to_numpy(w))
    backwards = neumann(matrix(a).H, w, 6)
    expected = sum(np.linalg.matrix_power(T.T, j) @ v for j in range(6))
    assert relative(backwards, expected) < 20 * eps(like)


@pytest.mark.parametrize("terms", [1, 2, 5, 20])
def test_neumann_keeps_its_tail(terms):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        T, v = 0.8 * conditioned(rng, 6, 4.0), rng.standard_normal(6)
        error = np.linalg.norm(np.linalg.solve(np.eye(6) - T, v) - neumann(T, v, terms))
        assert error <= neumann_tail(0.8, terms) * np.linalg.norm(v)
    # No smaller bound holds for all: equality for a multiple of the identity.
    error = 5.0 - neumann(np.array([[0.8]]), np.ones(1), terms)[0]
    assert error == pytest.approx(neumann_tail(0.8, terms), rel=1e-10)


def test_neumann_refuses():
    for T, v, terms, words in (
        (np.eye(2), np.ones(3), 1, "v has the wrong shape"),
        (np.ones((3, 2)), np.ones(2), 3, "T_x must be square"),
        (np.ones((1, 3)), np.ones(3), 2, "T_x must be square"),
        (np.eye(2), np.ones(2), 0, "terms is out of range"),
        (np.eye(2), np.ones(2), 2.0, "whole number"),
        (np.eye(2), [1.0, 1.0], 2, "must be an array"),
        (10 * np.eye(2), np.ones(2), 1000, "must stay finite"),
        (np.eye(2) * 1e200, np.ones(2), 5, "must stay finite"),
    ):
        with pytest.raises(ValueError, match=words):
            neumann(T, v, terms)
    for q, terms in ((1.0, 3), (1.5, 3), (-0.1, 3), (math.nan, 3), (0.5, -1), (0.5, 1.5)):
        with pytest.raises(ValueError, match=r"got"):
            neumann_tail(q, terms)
    assert neumann_tail(0.0, 3) == 0
    assert neumann_tail(0.5, 0) == 2


# ---------------------------------------------------------------- solve


@pytest.mark.parametrize("kind", ["spd", "symmetric", "general"])
@pytest.mark.parametrize("direct", [True, False])
def test_solve(kind, direct, rng, like):
    """The right method for the kind, the promise recomputed, direct or through products."""
    A, x = conditioned(rng, 12, 10.0, kind), rng.standard_normal(12)
    a = asarray_like(A, like)
    b = asarray_like(A @ x, like)
    found = solve(a if direct else products(a), b)
    assert found.converged, found.reason
    assert_alike(found.x, like)
    methods = {"spd": "cg", "symmetric": "minres", "general": "bicgstab"}
    if direct:
        assert found.method == ("cholesky" if kind == "spd" else "lu")
        assert found.iterations == 0
        assert found.condition == pytest.approx(np.linalg.cond(A, 1), rel=0.5)
    else:
        assert found.tried[0] == methods[kind]
        assert found.iterations > 0
    assert found.method == found.tried[-1]
    assert relative(found.x, x) < max(1e-8, 1e3 * eps(like))
    true = np.linalg.norm(to_numpy(b - a @ found.x)) / np.linalg.norm(to_numpy(b))
    assert found.residual == pytest.approx(true, abs=3 * eps(like))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 9),
    kind=st.sampled_from(["spd", "symmetric", "general"]),
    direct=st.booleans(),
    scale=st.sampled_from([1e-60, 1.0, 1e60]),
    seed=st.integers(0, 10**6),
)
def test_solve_on_random_systems(n, kind, direct, scale, seed):
    rng = np.random.default_rng(seed)
    A, b = conditioned(rng, n, 20.0, kind), rng.standard_normal(n)
    found = solve(scale * A if direct else free(scale * A), b, rtol=1e-9)
    assert found.converged, found.reason
    assert np.linalg.norm(b - scale * A @ found.x) <= 1e-9 * np.linalg.norm(b)


@pytest.mark.parametrize("condition", [1e3, 1e6, 1e9, 1e12])
@pytest.mark.parametrize("kind", ["spd", "symmetric", "general"])
def test_direct_solves_of_bad_condition(kind, condition):
    """Whatever the condition number: a small backward error, and the condition is reported."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        A, x = conditioned(rng, 15, condition, kind), rng.standard_normal(15)
        found = solve(A, A @ x)
        assert found.converged, found.reason
        assert found.residual * np.linalg.norm(A @ x) <= 1e-14 * np.linalg.norm(found.x) * 15
        assert relative(found.x, x) <= 1e-14 * condition
        assert condition / 3 < found.condition < 30 * condition


def test_products_with_bad_condition():
    """What rounding allows is a small backward error; what was not reached is not promised."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        for condition in (1e4, 1e8, 1e12):
            for kind in ("spd", "symmetric", "general"):
                A, b = conditioned(rng, 15, condition, kind), rng.standard_normal(15)
                found = solve(free(A), b)
                true = np.linalg.norm(b - A @ found.x)
                bound = max(1e-10 * np.linalg.norm(b), 1e-13 * np.linalg.norm(found.x))
                assert found.converged == (true <= bound) or true < 10 * bound
                assert found.converged or "asked for" in found.reason
                if condition == 1e4:
                    assert found.converged, (kind, found.reason)


def test_single_precision_is_not_asked_for_more_than_it_has(rng, torch):
    A, b = conditioned(rng, 40, 1e3, "spd"), rng.standard_normal(40)
    for direct in (False, True):
        a = torch.tensor(A, dtype=torch.float32)
        found = solve(a if direct else products(a), torch.tensor(b, dtype=torch.float32))
        assert found.converged, found.reason
        assert found.x.dtype == torch.float32
        assert relative(found.x, np.linalg.solve(A, b)) < 1e3 * 1e-6


def test_rank_deficient_systems(rng):
    U = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    A = (U * np.array([1.0, 2, 3, 4, 5, 0, 0, 0])) @ U.T
    A, b = (A + A.T) / 2, rng.standard_normal(8)
    inside = A @ b
    expected = np.linalg.pinv(A, rcond=1e-10) @ b
    # A factorization: a damped solution, and it is said so.
    for rhs in (b, inside):
        found = solve(A, rhs)
        assert (found.method, found.converged) == ("damped", False)
        assert "singular to rounding (condition number" in found.reason
        wanted = np.linalg.pinv(A, rcond=1e-10) @ rhs
        assert relative(found.x, wanted) < 0.05
        assert np.linalg.norm(A @ (found.x - wanted)) < 1e-7
    # Products: solved where there is a solution, else the least-squares residual and no promise.
    good, bad = solve(free(A), inside), solve(free(A), b)
    assert good.converged
    assert relative(good.x, np.linalg.pinv(A, rcond=1e-10) @ inside) < 1e-7
    assert not bad.converged
    assert bad.residual * np.linalg.norm(b) == pytest.approx(
        np.linalg.norm(b - A @ expected), rel=1e-6
    )
    zero = solve(np.zeros((2, 2)), np.ones(2))
    assert (zero.converged, zero.condition) == (False, math.inf)
    assert np.isfinite(zero.x).all()
    lost = solve(free(np.zeros((2, 2))), np.ones(2))
    assert not lost.converged
    assert lost.residual == 1


def test_zero_right_hand_side(like):
    A = asarray_like(np.diag([1.0, 0.0]), like)
    for operator in (A, products(A)):
        found = solve(operator, asarray_like(np.zeros(2), like))
        assert (found.converged, found.iterations, found.residual) == (True, 0, 0.0)
        assert (found.method, found.reason) == ("none", "b is zero")
        assert_alike(found.x, like)
        assert not to_numpy(found.x).any()


def test_the_chain_of_methods(rng):
    """When one stops early, the next begins where it stopped; all are told."""
    A, b = conditioned(rng, 30, 10.0, "spd"), rng.standard_normal(30)
    # A preconditioner that is not definite ends conjugate gradients.
    found = solve(free(A), b, preconditioner=-np.eye(30))
    assert found.tried == ("cg", "minres")
    assert (found.method, found.converged) == ("minres", True)
    assert found.reason.startswith("minres after cg")
    # A skew matrix stops BiCGSTAB: no step along its residual.
    S = conditioned(rng, 30, 2.0)
    S = S - S.T
    found = solve(free(S), b)
    assert found.tried == ("bicgstab", "gmres")
    assert (found.method, found.converged) == ("gmres", True)
    # Negative curvature in the Krylov space.
    found = solve(free(conditioned(rng, 30, 10.0, "symmetric")), b)
    assert found.tried[0] == "minres"
    assert found.condition is None


def test_the_best_x_is_returned_with_its_method(rng):
    """If no method keeps the promise: the smallest residual of all."""
    A, b = conditioned(rng, 60, 1e8), rng.standard_normal(60)
    found = solve(free(A), b, max_iter=3)
    assert not found.converged
    assert found.residual < 1
    assert found.tried == ("bicgstab", "gmres")
    assert found.iterations == 6
    true = np.linalg.norm(b - A @ found.x) / np.linalg.norm(b)
    assert found.residual == pytest.approx(true, rel=1e-10)
    nothing = solve(free(A), b, max_iter=0)
    assert (nothing.iterations, nothing.residual, nothing.converged) == (0, 1.0, False)
    # What made nothing better is not called the finder: conjugate gradients stop at once.
    spd = conditioned(rng, 60, 1e8, "spd")
    found = solve(free(spd), b, max_iter=2, preconditioner=-np.eye(60))
    assert (found.tried[0], found.method in ("minres", "gmres")) == ("cg", True)


@pytest.mark.parametrize("broken", [None, "without"])
def test_solve_makes_a_preconditioner_where_it_must(broken, rng, monkeypatch):
    """More steps predicted than allowed; eigenvalues fall fast, and rank 50 takes them away."""
    u, d = rng.standard_normal(2000), 100 * np.arange(1, 2001.0) ** -4 + 1e-6
    u /= np.linalg.norm(u)
    turn = lambda v: v - 2 * u * (u @ v)  # noqa: E731
    product = lambda v: turn(d * turn(v))  # noqa: E731
    A = LinearOperator(product, product, (2000,), (2000,), "A", like=u)
    if broken:
        monkeypatch.setattr(implicit, "low_rank", lambda *_, **__: None)
    b = rng.standard_normal(2000)
    found = solve(A, b)
    assert found.converged
    assert found.predicted > 10_000
    assert relative(found.x, turn(turn(b) / d)) < 1e-9
    with rejects(broken):
        assert found.iterations + 50 < 200

    def negative(*_, **__):
        raise ValueError("A must be positive semidefinite: got negative curvature")

    monkeypatch.setattr(implicit, "low_rank", negative)
    assert solve(A, b).tried[0] == "minres"


@pytest.mark.parametrize("broken", [None, "without GMRES"])
def test_gmres_is_the_last_resort_of_symmetric_systems(broken, rng, monkeypatch):
    """Conjugate gradients and MINRES lose orthogonality; with a bad condition that is the end."""
    if broken:
        monkeypatch.setattr(implicit, "_plan", lambda *_: (["cg", "minres"], 1e10, 1000, None))
    A, b = conditioned(rng, 30, 1e10, "spd"), rng.standard_normal(30)
    found = solve(free(A), b)
    with rejects(broken):
        assert found.converged, found.reason
        assert relative(found.x, np.linalg.solve(A, b)) <= 1e-6


def test_warm_start(rng):
    A, x = conditioned(rng, 80, 200.0, "spd"), rng.standard_normal(80)
    b = A @ x
    cold = solve(free(A), b)
    near = solve(free(A), b, x0=x + 1e-6 * rng.standard_normal(80))
    there = solve(free(A), b, x0=x)
    assert near.converged
    assert near.iterations < cold.iterations
    assert (there.iterations, there.converged) == (0, True)
    np.testing.assert_array_equal(there.x, x)


def test_the_predicted_number_of_steps(rng):
    """Enough where the condition number is known; Ritz values make it too small."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        for condition in (2.0, 30.0):
            A = conditioned(rng, 150, condition, "spd")
            found = solve(free(A), rng.standard_normal(150), rtol=1e-8)
            assert 0.6 * condition < found.condition <= condition * (1 + 1e-9)
            root = math.sqrt(found.condition)
            assert found.predicted == math.ceil(0.5 * root * math.log(2 / 1e-8))
            assert found.iterations <= 1.3 * found.predicted
    hard = solve(free(conditioned(rng, 150, 1e10, "spd")), rng.standard_normal(150), max_iter=20)
    assert hard.condition < 1e10
    assert hard.predicted > 20


def test_solve_with_a_preconditioner(rng):
    d = np.geomspace(1, 1e5, 100)
    A = conditioned(rng, 100, 5.0, "spd") * np.sqrt(d[:, None] * d)
    b = rng.standard_normal(100)
    plain = solve(free(A), b, rtol=1e-8)
    better = solve(free(A), b, rtol=1e-8, preconditioner=jacobi(np.diag(A)))
    assert better.converged
    assert better.method == "cg"
    assert 2 * better.iterations < plain.iterations


def test_solve_on_pictures(rng):
    psf = np.array([[0.0, 0.1, 0.0], [0.1, 1.0, 0.1], [0.0, 0.1, 0.0]])
    A = convolution(psf, (6, 7))
    x = rng.standard_normal((6, 7))
    found = solve(A, A @ x)
    assert found.converged
    assert found.method == "cg"
    assert found.x.shape == (6, 7)
    assert relative(found.x, x) < 1e-8


def test_large_matrices_are_not_factored(rng):
    A = conditioned(rng, 30, 5.0, "spd")
    b = rng.standard_normal(30)
    assert solve(A, b, direct=29).method == "cg"
    assert solve(A, b, direct=30).method == "cholesky"
    S = scipy.sparse.diags_array(np.arange(1.0, 31)).tocsr()
    assert solve(S, b).method == "cg"


def through_products(M):
    """M as an operator that nobody can factor."""
    return LinearOperator(
        lambda x: M @ x, lambda y: M.T @ y, M.shape[1:], M.shape[:1], "products", like=M[0]
    )


@pytest.mark.slow
def test_no_residual_is_excused_by_a_huge_x():
    """A singular and b outside its range: x grows until any residual is small beside it."""
    for dtype in ("float64", "float32"):
        for seed in range(40):
            rng = np.random.default_rng(seed)
            n = int(rng.integers(2, 8))
            M = rng.standard_normal((n, n - 1)) @ rng.standard_normal((n - 1, n))
            M, b = M.astype(dtype), rng.standard_normal(n).astype(dtype)
            found = solve(through_products(M), b)
            assert found.residual <= 1e-3 or not found.converged
            if not found.converged:
                with pytest.raises(ValueError, match="must be solved"):
                    root_vjp(through_products(M).H, -np.eye(n, dtype=dtype), b)
    M = np.array([[1, -1, 0], [0, 1, -1], [-1, 0, 1]], "float32")
    assert not solve(through_products(M), np.array([1, 4, 9], "float32")).converged


def test_a_failure_says_how_large_the_condition_number_is_at_least(rng):
    """Not symmetric, 30 steps allowed: an estimate from below, by Golub and Kahan."""
    for condition in (1e3, 1e6):
        Q, P = (np.linalg.qr(rng.standard_normal((60, 60)))[0] for _ in range(2))
        M = (Q * np.geomspace(1, 1 / condition, 60)) @ P.T
        found = solve(through_products(M), rng.standard_normal(60), max_iter=30, rtol=1e-12)
        assert not found.converged
        assert 10 < found.condition <= 1.001 * condition
        assert f"condition number at least {found.condition:.0e}" in found.reason


@pytest.mark.slow
def test_long_vectors_hide_no_asymmetry():
    """Single precision: the asymmetry of random pairs falls like 1/√n, and so does the test."""
    n, f = 100_000, np.float32

    def apply(x, side=1):
        return f(2.02) * x - f(1.9) * np.roll(x, side) - f(0.1) * np.roll(x, -side)

    A = LinearOperator(
        apply, lambda x: apply(x, -1), (n,), (n,), "upwind", like=np.ones(1, "float32")
    )
    b = np.random.default_rng(0).standard_normal(n).astype("float32")
    found = solve(A, b, rtol=1e-4)
    assert found.converged
    assert found.tried == ("bicgstab",)
    # A symmetric operator of that size is seen as one, with the rounding of an FFT.
    blur = convolution(np.array([1, 2, 1], "float32") / 4, (n,))
    assert "bicgstab" not in solve(blur.H @ blur, b, max_iter=5).tried


def test_single_precision_is_factored_in_double(rng):
    Q = np.linalg.qr(rng.standard_normal((50, 50)))[0]
    M = (Q * np.logspace(0, -4.6, 50)) @ Q.T
    M, v = ((M + M.T) / 2).astype("float32"), rng.standard_normal(50).astype("float32")
    found = solve(M, v)
    assert found.method != "damped"
    assert found.converged
    np.testing.assert_allclose(
        found.x, np.linalg.solve(M.astype(float), v.astype(float)), rtol=1e-5, atol=1e-3
    )


def test_solve_changes_nothing(rng, torch):
    A, b, x0 = conditioned(rng, 9, 5.0), rng.standard_normal(9), rng.standard_normal(9)
    copies = [M.copy() for M in (A, b, x0)]
    for operator in (A, free(A)):
        solve(operator, b, x0=x0)
    for M, copy in zip((A, b, x0), copies, strict=True):
        np.testing.assert_array_equal(M, copy)
    t = torch.tensor(b, requires_grad=True)
    found = solve(torch.tensor(A, requires_grad=True), t)
    assert not found.x.requires_grad


@pytest.mark.parametrize(
    ("A", "b", "options", "words"),
    [
        (np.ones((3, 2)), np.ones(3), {}, "A must be square"),
        (np.eye(3), np.ones(2), {}, "the data has the wrong shape"),
        (np.eye(3), [1.0, 1.0, 1.0], {}, "the data must be an array"),
        (np.eye(3), np.full(3, np.nan), {}, "the data must be finite"),
        (np.eye(3), np.ones(3, dtype=np.float16), {}, "single or double"),
        (np.eye(3), np.ones(3, dtype=np.float32), {}, "one dtype"),
        (np.full((3, 3), np.inf), np.ones(3), {}, "must be finite"),
        ([[1.0]], np.ones(1), {}, "must be an array"),
        (np.eye(3), np.ones(3), {"x0": np.ones(2)}, "x0 has the wrong shape"),
        (np.eye(3), np.ones(3), {"x0": [0.0, 0.0, 0.0]}, "x0 must be an array"),
        (np.eye(3), np.ones(3), {"rtol": 0.0}, "rtol must be positive"),
        (np.eye(3), np.ones(3), {"rtol": np.nan}, "rtol must be finite"),
        (np.eye(3), np.ones(3), {"direct": 0, "max_iter": -1}, "max_iter"),
        (np.eye(3), np.ones(3), {"max_iter": "a"}, "max_iter"),
        (np.eye(3), np.ones(3), {"direct": math.nan}, "direct"),
        (np.eye(3), np.ones(3), {"preconditioner": np.eye(5)}, "preconditioner"),
        (np.eye(3), np.ones(3), {"direct": 0, "max_iter": 2.5}, "max_iter"),
        (np.eye(3), np.ones(3), {"direct": 0, "preconditioner": np.eye(2)}, "preconditioner"),
    ],
)
def test_solve_refuses(A, b, options, words):
    with pytest.raises(ValueError, match=words):
        solve(A, b, **options)


def test_products_must_be_finite(torch):
    broken = LinearOperator(lambda v: v * math.nan, lambda v: v * math.nan, (3,), (3,), "broken")
    with pytest.raises(ValueError, match="broken must be finite"):
        solve(broken, np.ones(3))
    with pytest.raises(ValueError, match="one library"):
        solve(np.eye(3), torch.ones(3, dtype=torch.float64))


# ---------------------------------------------------------------- preconditioners


def test_jacobi(rng, like):
    d, v = rng.uniform(1, 9, 5), rng.standard_normal(5)
    Pi = jacobi(asarray_like(d, like))
    found = Pi @ asarray_like(v, like)
    assert_alike(found, like)
    assert relative(found, v / d) < 4 * eps(like)
    for bad in (np.array([1.0, 0.0]), np.array([1.0, -1.0]), [1.0], np.array([np.nan])):
        with pytest.raises(ValueError, match="diag"):
            jacobi(bad)


def test_ilu_is_exact_where_nothing_is_dropped(rng):
    M = scipy.sparse.random_array((20, 20), density=0.2, rng=rng) + 5 * scipy.sparse.eye_array(20)
    Pi = ilu(M, drop_tol=0.0, fill_factor=100.0)
    inverse = np.linalg.inv(M.toarray())
    np.testing.assert_allclose(Pi.to_dense(), inverse, atol=1e-12)
    np.testing.assert_allclose(Pi.H.to_dense(), inverse.T, atol=1e-12)


def test_ilu_helps_gmres():
    """And BiCGSTAB, also where `solve` calls them; the residual is that of the system."""
    n = 20
    line = scipy.sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(n, n))
    wind = scipy.sparse.diags_array([-0.4, 0.4], offsets=[-1, 1], shape=(n, n))
    eye = scipy.sparse.eye_array(n)
    M = (scipy.sparse.kron(eye, line + wind) + scipy.sparse.kron(line, eye)).tocsc()
    A, Pi, b = matrix(M), ilu(M, drop_tol=1e-2), np.ones(n * n)
    stop = residual_rule(A, b, rtol=1e-8)
    for method in (gmres, bicgstab):
        plain = run(method(A, b), stop=stop, max_iter=300)
        better = run(method(A, b, preconditioner=Pi), stop=stop, max_iter=300)
        assert better.converged
        assert 3 * better.iterations < plain.iterations
        assert np.linalg.norm(b - M @ better.x) <= 1e-8 * np.linalg.norm(b)
    free = LinearOperator(lambda x: M @ x, lambda y: M.T @ y, (n * n,), (n * n,))
    plain, better = solve(free, b), solve(free, b, preconditioner=Pi)
    assert (better.method, better.converged) == ("bicgstab", True)
    assert 3 * better.iterations < plain.iterations


def test_ilu_refuses(torch):
    with pytest.raises(ValueError, match=r"scipy.sparse matrix: got ndarray"):
        ilu(np.eye(3))
    with pytest.raises(ValueError, match=r"scipy.sparse matrix"):
        ilu(torch.eye(2).to_sparse_coo())
    with pytest.raises(ValueError, match="square"):
        ilu(scipy.sparse.csc_array(np.ones((3, 2))))
    for values, options, words in (
        ([[0.0, 1.0], [0.0, 1.0]], {}, "zero pivot"),
        ([[0.0, 0.0], [0.0, 0.0]], {}, "must not be empty"),
        ([[1e-320, 0.0], [0.0, 1.0]], {}, "pivots to divide by"),
        ([[math.nan, 0.0], [0.0, 1.0]], {}, "must be finite"),
        ([[1j, 0.0], [0.0, 1.0]], {}, "real"),
        (np.eye(2), {"fill_factor": -1}, "fill_factor"),
        (np.eye(2), {"fill_factor": "a"}, "fill_factor"),
        (np.eye(2), {"drop_tol": math.nan}, "drop_tol"),
    ):
        with pytest.raises(ValueError, match=words):
            ilu(scipy.sparse.csc_array(np.array(values)), **options)


def test_ilu_in_single_precision(rng):
    M = scipy.sparse.csc_array(np.diag(np.arange(1.0, 6)) + 0.1 * np.eye(5, k=1), dtype="float32")
    b = rng.standard_normal(5).astype("float32")
    x = ilu(M) @ b
    assert x.dtype == np.float32
    np.testing.assert_allclose(M @ x, b, rtol=1e-5)


def quadratic_pairs(rng, H, m: int):
    steps = rng.standard_normal((m, len(H)))
    return [(s, H @ s) for s in steps]


def test_lbfgs_is_bfgs(rng, like):
    """The two loops against the matrix recursion, for any number of pairs."""
    n = 6
    H = conditioned(rng, n, 20.0, "spd")
    for m in (1, 2, 5):
        pairs = quadratic_pairs(rng, H, m)
        Pi = (pairs[-1][0] @ pairs[-1][1]) / (pairs[-1][1] @ pairs[-1][1]) * np.eye(n)
        for s, y in pairs:
            V = np.eye(n) - np.outer(s, y) / (s @ y)
            Pi = V @ Pi @ V.T + np.outer(s, s) / (s @ y)
        made = lbfgs([(asarray_like(s, like), asarray_like(y, like)) for s, y in pairs])
        dense = to_numpy(made.to_dense())
        assert relative(dense, Pi) < 300 * eps(like)
        assert np.linalg.eigvalsh((dense + dense.T) / 2)[0] > 0
        assert relative(made @ asarray_like(pairs[-1][1], like), pairs[-1][0]) < 300 * eps(like)


def test_lbfgs_keeps_its_pairs(rng):
    H, v = conditioned(rng, 5, 10.0, "spd"), rng.standard_normal(5)
    pairs = quadratic_pairs(rng, H, 3)
    Pi = lbfgs(pairs)
    before = Pi @ v
    pairs.append(quadratic_pairs(rng, H, 1)[0])
    np.testing.assert_array_equal(Pi @ v, before)
    assert before.shape == (5,)


def test_lbfgs_speeds_up(rng):
    """Pairs along the directions in which H is small."""
    w, U = np.geomspace(1e-4, 1, 40), np.linalg.qr(rng.standard_normal((40, 40)))[0]
    H = (U * w) @ U.T
    H, b = (H + H.T) / 2, rng.standard_normal(40)
    Pi = lbfgs([(U[:, j], H @ U[:, j]) for j in range(25)])
    steps = [
        run(cg(H, b, preconditioner=P), stop=residual_rule(H, b, rtol=1e-8), max_iter=900)
        for P in (None, Pi)
    ]
    assert steps[1].converged
    assert 2 * steps[1].iterations < steps[0].iterations


def test_lbfgs_refuses(torch):
    one = np.ones(2)
    for pairs, words in (
        ([], "got none"),
        ([(one, -one)], "<s, y> > 0"),
        ([(one, 0 * one)], "<s, y> > 0"),
        ([(one, one), (one, np.array([1.0, -1.0]))], "<s, y> > 0"),
        ([(one, np.ones(3))], "shape"),
        ([(one, one), (np.ones(3), np.ones(3))], "shape"),
        ([(one * np.nan, one)], "s must be finite"),
        ([([1.0, 1.0], one)], "s must be an array"),
        ([(one, torch.ones(2, dtype=torch.float64))], "one library"),
    ):
        with pytest.raises(ValueError, match=words):
            lbfgs(pairs) @ one


@pytest.mark.parametrize("shift", [1e-2, 1.0])
def test_low_rank(shift, rng, like):
    """The condition number falls to about (λ_r + ω)/ω; Π is positive definite."""
    n, rank = 40, 15
    U = np.linalg.qr(rng.standard_normal((n, n)))[0]
    values = 100.0 * 0.3 ** np.arange(n)
    A = (U * values) @ U.T
    a = asarray_like((A + A.T) / 2, like)
    Pi = to_numpy(low_rank(a, rank, shift, like=like).to_dense(like=like))
    assert np.abs(Pi - Pi.T).max() < 100 * eps(like)
    assert np.linalg.eigvalsh((Pi + Pi.T) / 2)[0] > 0
    values = np.linalg.eigvals(Pi @ (A + shift * np.eye(n))).real
    assert values.max() / values.min() < 3 < np.linalg.cond(A + shift * np.eye(n)) / 30


def test_low_rank_is_exact_at_full_rank(rng):
    """Rank n: Π is a multiple of (A + ωI)⁻¹, whatever A is; the multiple is λ_n + ω."""
    A, omega = 7 * conditioned(rng, 8, 30.0, "spd"), 0.3
    Pi = low_rank(A, 8, omega, like=A).to_dense()
    lowest = np.linalg.eigvalsh(A)[0]
    np.testing.assert_allclose(
        Pi, (lowest + omega) * np.linalg.inv(A + omega * np.eye(8)), atol=1e-10
    )


def test_low_rank_on_pictures_and_zeros():
    A = LinearOperator(lambda v: 0 * v, lambda v: 0 * v, (2, 3), (2, 3))
    v = np.arange(6.0).reshape(2, 3)
    np.testing.assert_allclose(low_rank(A, 2, 0.1, like=v) @ v, v)
    blur = convolution(np.array([[0.25, 0.5, 0.25]]), (3, 8), boundary="periodic")
    gram = blur.H @ blur
    Pi = low_rank(gram, 21, 1e-3, like=v)
    shifted = gram.to_dense(like=v) + 1e-3 * np.eye(24)
    assert np.linalg.cond(Pi.to_dense() @ shifted) < np.linalg.cond(shifted) / 5


def test_low_rank_refuses():
    eye = np.eye(4)
    for arguments, words in (
        ((np.ones((4, 3)), 2, 1.0), "square"),
        ((-eye, 2, 1.0), "positive semidefinite"),
        ((eye, 0, 1.0), "rank"),
        ((eye, 5, 1.0), "rank"),
        ((eye, 2, 0.0), "shift must be positive"),
        ((eye, 2, -1.0), "shift must be positive"),
        (([[1.0]], 1, 1.0), "must be an array"),
    ):
        with pytest.raises(ValueError, match=words):
            low_rank(*arguments, like=eye)


# ---------------------------------------------------------------- nearly singular systems


def test_lavrentiev(rng, like):
    """‖(A + ωI)⁻¹‖ <= 1/ω if the symmetric part is semidefinite, A itself not symmetric."""
    for rank in (1, 4, 6):
        B = rng.standard_normal((6, rank))
        S = rng.standard_normal((6, 6))
        A = asarray_like(B @ B.T + S - S.T, like)
        for omega in (1e-2, 3.0):
            for operator in (A, products(A)):
                shifted = lavrentiev(operator, omega)
                dense = to_numpy(shifted.to_dense())
                np.testing.assert_allclose(dense, to_numpy(A) + omega * np.eye(6), rtol=1e-5)
                smallest = np.linalg.svd(dense)[1][-1]
                assert smallest >= omega * (1 - 1e-6) - 100 * eps(like)
    assert lavrentiev(A, 1.0).matrix is not None
    for bad in ((np.ones((2, 3)), 1.0), (np.eye(2), 0.0), (np.eye(2), -1.0), ([[1.0]], 1.0)):
        with pytest.raises(ValueError, match=r"got"):
            lavrentiev(*bad)


@pytest.mark.parametrize("scale", [1e-200, 1e-60, 1.0, 1e60, 1e200])
def test_refinement_whatever_the_units(scale):
    """Single precision ends at 1e-38 and 1e38; neither matrix nor data need to lie between."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        M, x = conditioned(rng, 20, 1e3), rng.standard_normal(20)
        for A, b, unit in ((scale * M, M @ x, 1 / scale), (M, scale * (M @ x), scale)):
            states = [next(s) for s in [refine(A, b)] for _ in range(6)]
            errors = [relative(s.x / unit, x) for s in states]
            assert errors[1] < 1e-2
            assert errors[5] < 1e-11
            np.testing.assert_array_equal(states[3].r, b - A @ states[3].x)


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_refinement_gains_the_digits_of_single_precision(condition):
    """Each step by about κ eps of single precision, down to κ eps of double."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        M, x = conditioned(rng, 30, condition), rng.standard_normal(30)
        states = refine(M, M @ x)
        errors = [relative(next(states).x, x) for _ in range(12)]
        factor = condition * 2.0**-24
        assert errors[1] < factor
        assert errors[2] < max(3 * factor * errors[1], 10 * condition * 2.0**-53)
        assert errors[-1] < 10 * condition * 2.0**-53


def test_refinement_ends_in_words():
    diverging = conditioned(np.random.default_rng(0), 20, 1e10)
    found = run(refine(diverging, np.ones(20)), max_iter=3000)
    assert not found.converged
    assert "not finite" in found.reason or np.abs(found.x).max() > 1e3
    zero = run(refine(np.eye(2), np.zeros(2)), max_iter=5)
    assert zero.reason == "the residual is exactly zero"
    M, b = np.eye(2), np.ones(2)
    for arguments, words in (
        ((np.ones((2, 2)), b), "singular"),
        ((np.zeros((2, 2)), b), "singular"),
        ((np.ones((3, 2)), np.ones(3)), "square"),
        ((M.astype(np.float32), b), "double precision"),
        ((M, b.astype(np.float32)), "double precision"),
        ((M, np.ones(3)), "b has the wrong shape"),
        ((M * np.nan, b), "finite"),
        ((M.tolist(), b), "M must be an array"),
        ((M, [1.0, 1.0]), "b must be an array"),
    ):
        with pytest.raises(ValueError, match=words):
            refine(*arguments)


# ---------------------------------------------------------------- the error of a hypergradient


def monotone_problem(seed: int):
    r"""F(x, θ) = Mx + tanh(x) - sin(x) ∘ Bθ, f = ½‖x - c‖² + θᵀCx, and all constants."""
    rng = np.random.default_rng(seed)
    n, p = 5, 3
    S, B, C = rng.standard_normal((n, n)), rng.standard_normal((n, p)), rng.standard_normal((p, n))
    c, theta = rng.standard_normal(n), 0.3 * rng.standard_normal(p)
    bound = np.abs(B @ theta).max()
    M = (bound + 0.5) * np.eye(n) + S - S.T
    rhs = rng.standard_normal(n)

    def equation(x):
        return M @ x + np.tanh(x) - np.sin(x) * (B @ theta) - rhs

    def by_x(x):
        return M + np.diag(1 / np.cosh(x) ** 2 - np.cos(x) * (B @ theta))

    def by_theta(x):
        return -np.sin(x)[:, None] * B

    x = np.zeros(n)
    for _ in range(200):
        d = np.linalg.solve(by_x(x), equation(x))
        x = x - d / max(1.0, np.linalg.norm(d))
    assert np.linalg.norm(equation(x)) < 1e-12
    constants = {
        "mu": 0.5,
        # |(1/cosh²)'| <= 4/(3√3), and the cosine has slopes of at most 1.
        "lip_F_x": 4 / (3 * math.sqrt(3)) + bound,
        "lip_F_theta": np.linalg.norm(B, 2),
        "lip_grad": 1.0,
        "lip_direct": np.linalg.norm(C, 2),
    }
    return equation, by_x, by_theta, lambda x: x - c + C.T @ theta, lambda x: C @ x, x, constants


@pytest.mark.parametrize("size", [1e-4, 1e-2, 0.3])
def test_error_bound_holds(size):
    """On random strongly monotone problems, with errors in both systems."""
    for seed in range(40):
        F, F_x, F_theta, grad, direct, x, constants = monotone_problem(seed)
        rng = np.random.default_rng(seed + 1000)
        exact = direct(x) + root_vjp(F_x(x), F_theta(x), grad(x))
        near = x + size * rng.standard_normal(5)
        psi = np.linalg.solve(F_x(near).T, grad(near)) + size * rng.standard_normal(5)
        estimate = direct(near) - F_theta(near).T @ psi
        bound = error_bound(
            np.linalg.norm(F(near)),
            np.linalg.norm(F_x(near).T @ psi - grad(near)),
            adjoint_norm=np.linalg.norm(psi),
            F_theta_norm=np.linalg.norm(F_theta(near), 2),
            **constants,
        )
        error = np.linalg.norm(estimate - exact)
        assert 1e-4 * bound < error <= bound


# x* = 0 and μ = 2 throughout; the exact error of each line is found by hand. e = r/μ.
ONE_BY_ONE = {
    # F = 2x - θ, f = x: ψ = (1 + ρ)/2, the gradient off by ρ/2.
    "adjoint_residual": ({"F_theta_norm": 1.0, "adjoint_norm": 0.6}, (0.0, 0.2), 0.1),
    # F = 2x - θ, f = ½x² at x̃ = 0.1: ψ = 0.05 instead of 0.
    "lip_grad": ({"F_theta_norm": 1.0, "adjoint_norm": 0.05, "lip_grad": 1.0}, (0.2, 0.0), 0.05),
    # f = θx at θ = 0: the direct part is x̃ instead of 0.
    "lip_direct": ({"F_theta_norm": 1.0, "adjoint_norm": 0.0, "lip_direct": 1.0}, (0.2, 0.0), 0.1),
    # F = 2x - θ(1 + x) at θ = 0, f = x: ψ = 1/2 and F_θ off by 0.1.
    "lip_F_theta": (
        {"F_theta_norm": 0.0, "adjoint_norm": 0.5, "lip_F_theta": 1.0},
        (0.2, 0.0),
        0.05,
    ),
    # F = 2x - θ(x - 0.1), F_θ = 0 at x̃ = 0.1; ψ = 0 has the residual 1: the true one is 1/2.
    "lip_F_theta with an adjoint error": (
        {"F_theta_norm": 0.0, "adjoint_norm": 0.0, "lip_F_theta": 1.0},
        (0.2, 1.0),
        0.05,
    ),
}


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_error_bound_is_reached_term_by_term(name):
    """With one unknown the bound is the error, and without that term it is no bound."""
    numbers, residuals, error = ONE_BY_ONE[name]
    assert error_bound(*residuals, mu=2.0, **numbers) == pytest.approx(error, rel=1e-12)
    left_out = {**numbers, "lip_grad": 0.0, "lip_direct": 0.0, "lip_F_theta": 0.0}
    assert error_bound(residuals[0], 0.0, mu=2.0, **left_out) < error / 2


def test_error_bound_needs_the_change_of_the_jacobian():
    """F = 2x + x²/2 (x >= 0), f = x: at x̃ = 0.1, ψ = 1/2.1 instead of 1/2. F_θ = -1."""
    psi, residual = 1 / 2.1, 2 * 0.1 + 0.1**2 / 2
    numbers = {"mu": 2.0, "adjoint_norm": psi, "F_theta_norm": 1.0}
    assert error_bound(residual, 0.0, **numbers) == 0
    error = 0.5 - psi
    assert error <= error_bound(residual, 0.0, lip_F_x=1.0, **numbers) <= 1.05 * error
    assert error > error_bound(residual, 0.0, lip_F_x=0.9, **numbers)


def test_error_bound_refuses():
    good = {"mu": 1.0, "adjoint_norm": 1.0, "F_theta_norm": 1.0}
    for name in (*good, "lip_F_x", "lip_F_theta", "lip_grad", "lip_direct"):
        for bad in (-1.0, math.nan, math.inf, "1", None, [1.0]):
            with pytest.raises(ValueError, match=name):
                error_bound(0.1, 0.1, **{**good, name: bad})
    with pytest.raises(ValueError, match="mu must be positive"):
        error_bound(0.1, 0.1, **{**good, "mu": 0.0})
    assert error_bound(1e-10, 0.0, **{**good, "mu": 1e-320}) == math.inf
    assert type(error_bound(np.float32(0.1), np.array(0.1), **good)) is float
    for residuals, name in (((-1.0, 0.1), "inner_residual"), ((0.1, math.nan), "adjoint_residual")):
        with pytest.raises(ValueError, match=name):
            error_bound(*residuals, **good)


# ---------------------------------------------------------------- layers in torch


def equilibrium(torch, **options):
    """θ = (W, b): the x with x = tanh(Wx + b), as a layer."""

    def solution(W, b):
        x = torch.zeros_like(b)
        for _ in range(500):
            x = torch.tanh(W @ x + b)
        return x

    return layer(solution, lambda x, W, b: torch.tanh(W @ x + b), fixed_point=True, **options)


def contraction(torch, n: int, generator, **options):
    W = torch.randn(n, n, dtype=torch.float64, generator=generator)
    return (0.7 * W / torch.linalg.matrix_norm(W, 2)).requires_grad_(**options)


def test_layer_inside_a_model(torch):
    """A linear map, the layer, another map and a nonlinearity: gradcheck through all of it."""
    gen = torch.Generator().manual_seed(0)
    W = contraction(torch, 4, gen)
    A, B = (torch.randn(4, 3, dtype=torch.float64, generator=gen) for _ in range(2))
    u = torch.randn(3, dtype=torch.float64, generator=gen)
    root = equilibrium(torch)

    def model(u, A, W, B):
        return torch.sin(B.T @ root(W, A @ u)) + u

    arguments = tuple(t.detach().requires_grad_() for t in (u, A, W, B))
    assert torch.autograd.gradcheck(model, arguments, atol=1e-7, rtol=1e-5)


def test_layer_is_unrolling_to_the_end(torch):
    gen = torch.Generator().manual_seed(1)
    W, b = contraction(torch, 5, gen), torch.randn(5, dtype=torch.float64, generator=gen)
    b.requires_grad_()
    x = torch.zeros(5, dtype=torch.float64)
    for _ in range(300):
        x = torch.tanh(W @ x + b)
    loss = (x**3).sum()
    slow = torch.autograd.grad(loss, (W, b))
    fast = torch.autograd.grad((equilibrium(torch)(W, b) ** 3).sum(), (W, b))
    for s, f in zip(slow, fast, strict=True):
        np.testing.assert_allclose(f, s, atol=1e-9)


def test_layer_of_a_root_with_several_shapes(torch):
    """F(x, θ₁, θ₂, θ₃) with a picture x, a number among the θ, and no symmetry."""
    gen = torch.Generator().manual_seed(2)
    M = torch.randn(6, 6, dtype=torch.float64, generator=gen)
    shift = 2 + torch.rand(2, 3, dtype=torch.float64, generator=gen)

    def equation(x, a, s, c):
        return (x + 0.1 * (M @ x.reshape(6)).reshape(2, 3)) * s + x**3 - a + c[:, None] * shift

    def solution(a, s, c):
        x = torch.zeros(2, 3, dtype=a.dtype)
        for _ in range(60):
            J = torch.func.jacrev(equation)(x, a, s, c).reshape(6, 6)
            x = x - torch.linalg.solve(J, equation(x, a, s, c).reshape(6)).reshape(2, 3)
        return x

    a = torch.randn(2, 3, dtype=torch.float64, generator=gen, requires_grad=True)
    s = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    c = torch.randn(2, dtype=torch.float64, generator=gen, requires_grad=True)
    root = layer(solution, equation)
    assert tuple(root(a, s, c).shape) == (2, 3)
    assert torch.autograd.gradcheck(root, (a, s, c), atol=1e-7, rtol=1e-5)


def test_layer_with_a_theta_that_needs_no_gradient(torch):
    gen = torch.Generator().manual_seed(3)
    W, b = contraction(torch, 4, gen), torch.randn(4, dtype=torch.float64, generator=gen)
    root = equilibrium(torch)
    root(W, b).sum().backward()
    both = b.clone().requires_grad_()
    W_again = W.detach().clone().requires_grad_()
    root(W_again, both).sum().backward()
    np.testing.assert_array_equal(W.grad, W_again.grad)
    assert b.grad is None
    constant = root(W.detach(), b)
    assert not constant.requires_grad


def test_second_derivatives_are_refused(torch):
    """Not wrong, and not zero: an error, also where the gradient from above is constant."""
    root = layer(lambda a: a**0.5, lambda x, a: x**2 - a)
    for outer in (torch.sum, lambda x: (x**3).sum()):
        a = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(outer(root(a)), a, create_graph=True)
        assert slope.requires_grad
        with pytest.raises(RuntimeError, match="one derivative only"):
            (slope.sum() + (a**2).sum()).backward()
        # The first one, with the same call, is right.
        (exact,) = torch.autograd.grad(outer(a**0.5), a)
        np.testing.assert_allclose(slope.detach(), exact, rtol=1e-9)


def test_a_theta_changed_in_place_is_told(torch):
    """The derivative would be taken elsewhere than the value."""
    a = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    x = layer(lambda a: a**0.5, lambda x, a: x**2 - a)(a)
    with torch.no_grad():
        a += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.sum().backward()


def test_layer_of_the_prox_fixed_point(torch):
    """The LASSO as a layer: data and λ through x = soft(x - η∇g(x), ηλ)."""
    A, y, lam, solution = sparse_problem(1)
    step, M = 1 / np.linalg.norm(A, 2) ** 2, torch.from_numpy(A)

    def prox_step(x, y, lam):
        z = x - step * (M.T @ (M @ x - y))
        return torch.sign(z) * torch.relu(torch.abs(z) - step * lam)

    def inner(y, lam):
        return torch.from_numpy(solution(y.numpy(), float(lam)))

    root = layer(inner, prox_step, fixed_point=True)
    y_t = torch.tensor(y, requires_grad=True)
    lam_t = torch.tensor(lam, dtype=torch.float64, requires_grad=True)
    x = root(y_t, lam_t)
    v = torch.linspace(-1, 1, len(x), dtype=torch.float64)
    by_y, by_lam = torch.autograd.grad(x @ v, (y_t, lam_t))
    at, mask = x.detach().numpy(), x.detach().numpy() != 0
    expected = support_vjp(A.T @ A, np.sign(at)[:, None], mask, v.numpy())
    np.testing.assert_allclose(float(by_lam), expected[0], rtol=1e-8)
    np.testing.assert_allclose(by_y, support_vjp(A.T @ A, -A.T, mask, v.numpy()), atol=1e-8)
    assert torch.autograd.gradcheck(root, (y_t, lam_t), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layer_keeps_the_kind(torch, dtype):
    dtype = getattr(torch, dtype)
    a = torch.tensor([4.0, 9.0], dtype=dtype, requires_grad=True)
    root = layer(lambda a: a**0.5, lambda x, a: x**2 - a)
    x = root(a)
    assert x.dtype == dtype
    x.sum().backward()
    assert a.grad.dtype == dtype
    np.testing.assert_allclose(a.grad, [1 / 4, 1 / 6], rtol=1e-5)
    # A gradient of zero, and a number for x.
    (zero,) = torch.autograd.grad((0 * root(a)).sum(), a)
    assert not zero.any()
    single = torch.tensor(4.0, dtype=dtype, requires_grad=True)
    root(single).backward()
    assert float(single.grad) == pytest.approx(0.25)
    again = torch.tensor(4.0, dtype=dtype, requires_grad=True)
    layer(lambda a: 2 * a, lambda x, a: x / 2 + a, fixed_point=True)(again).backward()
    assert float(again.grad) == pytest.approx(2.0)
    T_x, T_a = linearize(lambda x, a: x / 2 + a, 2 * single, single)
    for call in (fixed_point_vjp, fixed_point_jvp):
        assert float(call(T_x, T_a, torch.tensor(1.0, dtype=dtype))) == pytest.approx(2.0)


def test_layer_takes_a_result_and_a_solver(torch):
    A = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    calls = []

    def inner(b, steps=9):
        return run(cg(A, b), stop=residual_rule(A, b, rtol=1e-12), max_iter=steps)

    def solver(M, v):
        calls.append(M.to_dense())
        return torch.linalg.solve(M.to_dense(), v)

    b = torch.ones(2, dtype=torch.float64, requires_grad=True)
    root = layer(inner, lambda x, b: A @ x - b, solver=solver)
    assert torch.autograd.gradcheck(root, (b,))
    assert calls
    with pytest.raises(ValueError, match="inner problem must be solved: max_iter"):
        layer(lambda b: inner(b, 1), lambda x, b: A @ x - b)(b)


def test_layer_refuses(torch):
    root = layer(lambda a: a**0.5, lambda x, a: x**2 - a)
    for bad in (np.ones(2), 2.0, [1.0]):
        with pytest.raises(ValueError, match="layer needs torch tensors"):
            root(bad)
    with pytest.raises(ValueError, match="layer needs torch tensors"):
        root()
    with pytest.raises(ValueError, match="the root must be finite"):
        root(torch.tensor([-1.0, 1.0]))
    flat = torch.tensor([0.0, 1.0], requires_grad=True)
    with pytest.raises(ValueError, match="must be solved"):  # F_x = 2x = 0
        root(flat).sum().backward()
    steep = layer(lambda a: a**0.5, lambda x, a: x - a**0.5)
    with pytest.raises(ValueError, match="the derivative must be finite"):
        steep(flat).sum().backward()
    wrong = layer(lambda a: a, lambda x, a: x - a, solver=lambda A, b: b * math.nan)
    with pytest.raises(ValueError, match="the solution must be finite"):
        wrong(flat).sum().backward()


# ---------------------------------------------------------------- normalization of a batch


@pytest.mark.parametrize("shape", [(2,), (7,), (5, 3), (4, 2, 3)])
@pytest.mark.parametrize("bn_eps", [0.0, 1e-5, 2.0])
def test_batch_norm_against_differences(shape, bn_eps, rng):
    x, v = rng.standard_normal(shape), rng.standard_normal(shape)
    y, divisor = batch_norm(x, eps=bn_eps)
    centred = x - x.mean(axis=0)
    np.testing.assert_allclose(y, centred / np.sqrt(x.var(axis=0) + bn_eps), rtol=1e-13)
    expected = differences(lambda x: batch_norm(x, eps=bn_eps)[0], x).T @ v.ravel()
    np.testing.assert_allclose(batch_norm_vjp(y, divisor, v).ravel(), expected, atol=2e-8)


def test_batch_norm_is_torchs(torch):
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, dtype=torch.float64, generator=gen, requires_grad=True)
    v = torch.randn(6, 3, dtype=torch.float64, generator=gen)
    theirs = torch.nn.functional.batch_norm(x, None, None, training=True, eps=1e-3)
    (slope,) = torch.autograd.grad(theirs, x, v)
    y, divisor = batch_norm(x.detach(), eps=1e-3)
    np.testing.assert_allclose(y, theirs.detach(), atol=1e-13)
    np.testing.assert_allclose(batch_norm_vjp(y, divisor, v), slope, atol=1e-13)


def test_batch_norm_solves_its_equations(rng, like):
    x = asarray_like(10 + 3 * rng.standard_normal((9, 2)), like)
    y, s = batch_norm(x)
    assert_alike(y, like)
    y, s = to_numpy(y), to_numpy(s)
    assert (s > 0).all()
    np.testing.assert_allclose(y.sum(axis=0), 0, atol=300 * eps(like))
    np.testing.assert_allclose((y**2).sum(axis=0), 9, rtol=300 * eps(like))
    back = s * y + to_numpy(x).mean(axis=0)
    np.testing.assert_allclose(back, to_numpy(x), rtol=300 * eps(like))


def test_a_constant_batch_is_refused(like):
    """A mean of equal numbers may differ from them by rounding: still constant."""
    for value in (0.0, 0.1, 0.3, 1e6, -7.7):
        for n in (1, 3, 7):
            x = asarray_like(np.full((n, 2), value), like)
            with pytest.raises(ValueError, match="must not be constant"):
                batch_norm(x)
            y, divisor = batch_norm(x, eps=1e-5)
            assert np.abs(to_numpy(y)).max() <= 4 * eps(like) * abs(value) / 1e-5**0.5
            assert (to_numpy(divisor) > 0).all()
    # NumPy adds the rows of a long batch one after the other: its mean is off by many roundings.
    for shape in ((1000, 2), (64, 3), (128, 10)):
        with pytest.raises(ValueError, match="must not be constant"):
            batch_norm(asarray_like(np.full(shape, 0.1), like))
    with pytest.raises(ValueError, match="the standard deviation must be finite"):
        batch_norm(np.array([1e20, -1e20, 0.0], dtype="float32"))
    y, divisor = batch_norm(np.array([[1.0], [2.0], [4.0]]))
    for wrong in (0.0, np.zeros(1), np.array([math.nan]), np.ones((2, 1)), -divisor):
        with pytest.raises(ValueError, match="divisor"):
            batch_norm_vjp(y, wrong, y)
    nearly = 1 + 1e-9 * np.arange(4.0)
    assert np.isfinite(batch_norm(nearly)[0]).all()
    for x, words in (([1.0, 2.0], "must be an array"), (np.array([1.0, np.nan]), "finite")):
        with pytest.raises(ValueError, match=words):
            batch_norm(x)
    with pytest.raises(ValueError, match="eps"):
        batch_norm(np.arange(3.0), eps=-1.0)
    y, divisor = batch_norm(np.arange(3.0))
    for bad in (np.ones(2), [1.0, 2.0, 3.0], np.ones(3) * np.nan):
        with pytest.raises(ValueError, match=r"expected|got"):
            batch_norm_vjp(y, divisor, bad)


# ---------------------------------------------------------------- autodiff


@pytest.fixture
def autodiff(torch):
    from course_lib import autodiff

    return autodiff


def test_gradient_and_hvp(autodiff, torch):
    gen = torch.Generator().manual_seed(4)
    x, v = (torch.randn(2, 3, dtype=torch.float64, generator=gen) for _ in range(2))
    w = torch.randn(6, dtype=torch.float64, generator=gen)

    def f(x, w):
        return torch.sin(w @ x.reshape(-1)) * (x**3).sum()

    np.testing.assert_allclose(autodiff.gradient(f)(x, w), torch.func.grad(f)(x, w))
    H = torch.func.jacrev(torch.func.grad(f))(x, w).reshape(6, 6)
    found = autodiff.hvp(f)(x, v, w)
    assert found.shape == x.shape
    np.testing.assert_allclose(found.reshape(-1), H @ v.reshape(-1), atol=1e-12)
    # The gradient can be differentiated again.
    twice = autodiff.gradient(lambda x: (autodiff.gradient(f)(x, w) * v).sum())(x)
    np.testing.assert_allclose(twice, found, atol=1e-12)


def test_gradient_needs_one_number(autodiff, torch):
    for f in (lambda x: x, lambda x: x[:1], lambda x: 1.0, lambda x: None):
        with pytest.raises(ValueError, match="f must return one number"):
            autodiff.gradient(f)(torch.ones(2))
        with pytest.raises(ValueError, match="f must return one number"):
            autodiff.hvp(f)(torch.ones(2), torch.ones(2))


def test_batched(autodiff, torch):
    gen = torch.Generator().manual_seed(5)
    x, y = (torch.randn(4, 3, dtype=torch.float64, generator=gen) for _ in range(2))
    slope = autodiff.gradient(lambda x, y: (torch.exp(x) * y).sum())
    np.testing.assert_allclose(autodiff.batched(slope)(x, y), torch.exp(x) * y)


def test_attach(autodiff, torch):
    """The value is kept, the pullback is called, with the gradient that comes from above."""
    a = torch.ones(2, dtype=torch.float64, requires_grad=True)
    b = torch.ones(3, dtype=torch.float64)
    x = torch.tensor([5.0, 6.0, 7.0], dtype=torch.float64)
    seen = []

    def pullback(v):
        seen.append(v)
        return v[:2] * 10, v

    out = autodiff.attach(x, (a, b), pullback)
    np.testing.assert_array_equal(out.detach(), x)
    (out * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    np.testing.assert_array_equal(seen[0], [1, 2, 3])
    np.testing.assert_array_equal(a.grad, [10, 20])
    # A copy: what is done to the value in place does not reach the caller.
    assert out.data_ptr() != x.data_ptr()


def test_all_reduce_of_one_process(autodiff, torch):
    x = torch.ones(3, requires_grad=True)
    found = autodiff.all_reduce(x)
    assert found.tolist() == [1, 1, 1]
    assert not found.requires_grad
    for wrong in (np.ones(3), torch.ones(3, dtype=torch.int64), torch.tensor([True])):
        with pytest.raises(ValueError, match="autodiff needs torch tensors of floating-point"):
            autodiff.all_reduce(wrong)


def test_slopes_of_a_wrong_shape_are_refused(autodiff, torch):
    """Torch would sum a slope of shape (5, 3) over its first axis, and say nothing."""
    a = torch.ones(3, requires_grad=True)
    for wrong in (torch.ones(5, 3), None, 1.0):
        out = autodiff.attach(torch.ones(2), (a,), lambda v, wrong=wrong: (wrong,))
        with pytest.raises(ValueError, match=r"shape of each input: expected \(3,\), got"):
            out.sum().backward()


def test_layer_keeps_its_own_root(torch, rng):
    """A solver with a warm start may return the same memory each time."""
    M = torch.tensor(conditioned(rng, 3, 5.0, "spd"))
    memory = torch.zeros(3, dtype=torch.float64)

    def warm(c):
        for _ in range(60):
            memory.sub_(
                torch.linalg.solve(M + torch.diag(3 * memory**2), M @ memory + memory**3 - c)
            )
        return memory

    root = implicit.layer(warm, lambda x, c: M @ x + x**3 - c)
    c = torch.tensor(rng.standard_normal(3), requires_grad=True)
    (found,) = torch.autograd.grad((root(c) + root(5 * c)).sum(), c)
    for k, e in enumerate(torch.eye(3, dtype=torch.float64)):
        plus, minus = (
            (warm(c.detach() + h * e).clone() + warm(5 * (c.detach() + h * e)).clone()).sum()
            for h in (1e-5, -1e-5)
        )
        assert float((plus - minus) / 2e-5) == pytest.approx(float(found[k]), rel=1e-7)


def test_layer_needs_a_root_like_theta(torch):
    c = torch.ones(2, dtype=torch.float64, requires_grad=True)
    for wrong, words in ((np.ones(2), "got numpy and torch"), (torch.ones(2), "the root")):
        with pytest.raises(ValueError, match=words):
            implicit.layer(lambda c, wrong=wrong: wrong, lambda x, c: x - c)(c)


def test_partials_of_a_network(autodiff, torch):
    """Against vjp and jvp of torch.func, with a point that no gradient is asked of."""
    gen = torch.Generator().manual_seed(6)
    x = torch.randn(3, dtype=torch.float64, generator=gen)
    W = torch.randn(4, 3, dtype=torch.float64, generator=gen)

    def network(x, W):
        return torch.relu(W @ x) + torch.tanh(W @ x)

    (by_x, by_W) = autodiff.partials(network, x, W)
    v = torch.randn(3, dtype=torch.float64, generator=gen)
    V = torch.randn(4, 3, dtype=torch.float64, generator=gen)
    w = torch.randn(4, dtype=torch.float64, generator=gen)
    _, back = torch.func.vjp(network, x, W)
    np.testing.assert_allclose(by_x[1](w), back(w)[0])
    np.testing.assert_allclose(by_W[1](w), back(w)[1])
    np.testing.assert_allclose(by_x[0](v), torch.func.jvp(lambda x: network(x, W), (x,), (v,))[1])
    np.testing.assert_allclose(by_W[0](V), torch.func.jvp(lambda W: network(x, W), (W,), (V,))[1])
    with torch.no_grad():
        inside = autodiff.partials(network, x, W)[0][1](w)
    np.testing.assert_allclose(inside, back(w)[0])
