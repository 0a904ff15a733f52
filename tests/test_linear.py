"""Solvers against dense references and SciPy, on good, bad, deficient and tiny systems."""

import ast
import inspect
import itertools
import textwrap

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg
import scipy.special
from cases import SOLVERS
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import assert_alike, eps, relative, to_numpy

from course_lib import linear
from course_lib.arrays import asarray_like
from course_lib.iterate import gradient_rule, residual_rule, run
from course_lib.linear import bicgstab, cg, cgls, gmres, landweber, minres, nu_method
from course_lib.operators import LinearOperator, convolution, difference, gradient, matrix


@pytest.fixture(params=SOLVERS, ids=lambda case: case.name)
def solver(request):
    return request.param


def system(kind: str, seed: int = 0, condition: float = 3.0):
    """A matrix with singular values from 1 to 1/condition, data, and the solution wanted."""
    rng = np.random.default_rng(seed)
    m, n, rank = {
        "spd": (8, 8, 8),
        "square": (8, 8, 8),
        "tall": (11, 6, 6),
        "wide": (6, 11, 6),
        "column": (7, 1, 1),
        "row": (1, 7, 1),
        "1x1": (1, 1, 1),
        "deficient": (9, 8, 5),
    }[kind]
    U = np.linalg.qr(rng.standard_normal((m, m)))[0][:, :rank]
    V = U if kind == "spd" else np.linalg.qr(rng.standard_normal((n, n)))[0][:, :rank]
    s = np.geomspace(1, 1 / condition, rank) if rank > 1 else np.ones(1)
    A = (U * s) @ V.T
    y = rng.standard_normal(m)
    return A, y, V @ ((U.T @ y) / s)


KINDS = ("spd", "square", "tall", "wide", "column", "row", "1x1", "deficient")


def fits(solver, kind: str) -> bool:
    if "least squares" in solver.solves or kind in solver.solves:
        return True
    return kind == "1x1" or (kind == "spd" and "square" in solver.solves)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_agrees_with_the_pseudoinverse(solver, kind, like):
    """From x0 = 0 the limit is A⁺y: the least-squares solution of smallest norm."""
    if not fits(solver, kind):
        return
    M, data, expected = system(kind)
    if kind == "1x1":
        M = np.abs(M)
        expected = data / M[0]
    A, y = asarray_like(M, like), asarray_like(data, like)
    double = eps(like) < 1e-10
    rtol = solver.rtol if double else 3e-6
    stop = solver.rule(A, y, rtol=rtol)
    result = run(solver.start(A, y), stop=stop, max_iter=solver.max_iter, check_every=10)
    assert result.converged, result.reason
    assert_alike(result.x, like)
    assert_alike(result.state.r, like)
    # The relative error is at most cond(A)^2 times the relative gradient or residual. Rounding adds
    # up over the steps, most of all in the ν-method, whose extrapolation lets it grow.
    assert relative(result.x, expected) <= 9 * rtol + 5 * max(20, result.iterations) * eps(like)


def test_start_keeps_its_part_in_the_null_space(solver):
    """The part of x0 that A does not see stays; the rest goes to the solution."""
    if "least squares" not in solver.solves:
        return
    A, y, expected = system("wide")
    x0 = np.random.default_rng(5).standard_normal(11)
    unseen = x0 - np.linalg.pinv(A) @ (A @ x0)
    stop = solver.rule(A, y, rtol=solver.rtol)
    result = run(solver.start(A, y, x0), stop=stop, max_iter=solver.max_iter, check_every=10)
    assert result.converged
    np.testing.assert_allclose(result.x, expected + unseen, atol=100 * solver.rtol)


def test_operator_and_matrix_give_the_same(solver):
    A, y, _ = system("spd")
    for x, z in zip(solver.start(A, y), solver.start(matrix(A), y), strict=False):
        np.testing.assert_array_equal(x.x, z.x)
        if abs(x.r).max() < 1e-3:
            break


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    m=st.integers(1, 9),
    n=st.integers(1, 9),
    rank=st.integers(0, 9),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1e-60, 1e-8, 1.0, 1e8, 1e60]),
)
def test_cgls_on_random_systems(m, n, rank, seed, scale):
    """Any shape, any rank (zero too), any scale: CGLS ends at the pseudoinverse solution."""
    rng = np.random.default_rng(seed)
    rank = min(m, n, rank)
    U = np.linalg.qr(rng.standard_normal((m, rank)))[0] if rank else np.zeros((m, 0))
    V = np.linalg.qr(rng.standard_normal((n, rank)))[0] if rank else np.zeros((n, 0))
    A, y = scale * (U * np.linspace(1, 0.3, rank)) @ V.T, rng.standard_normal(m)
    result = run(cgls(A, y), stop=gradient_rule(A, y, rtol=1e-10), max_iter=100)
    assert result.converged, result.reason
    expected = np.linalg.pinv(A, rcond=1e-10) @ y
    np.testing.assert_allclose(result.x, expected, rtol=0, atol=1e-8 / scale)


@pytest.mark.parametrize("condition", [1e2, 1e6])
def test_ill_conditioned(condition):
    """cg, cgls and gmres reach a small residual; the error is bounded by its product with cond."""
    A, y, expected = system("spd", condition=condition)
    for start in (cg, gmres, cgls):
        stop = residual_rule(A, y, rtol=1e-9)
        result = run(start(A, y), stop=stop, max_iter=400)
        assert result.converged, (start, result.reason)
        assert relative(result.x, expected) <= 2 * condition * 1e-9


def test_one_step_solves_a_column():
    A, y, expected = system("column")
    stop = gradient_rule(A, y, rtol=1e-12)
    assert run(cgls(A, y), stop=stop, max_iter=5).iterations == 1
    np.testing.assert_allclose(run(cgls(A, y), max_iter=1).x, expected, rtol=1e-13)


def test_pictures_keep_their_shape(xp, rng):
    from conftest import make_like

    like = make_like(xp, "float64")
    psf = asarray_like(np.outer([1, 2, 1], [1, 2, 1]) / 16.0, like)
    A = convolution(psf, (6, 5), boundary="zero")
    y = asarray_like(rng.standard_normal((6, 5)), like)
    expected = np.linalg.solve(to_numpy(A.to_dense()), to_numpy(y).ravel()).reshape(6, 5)
    result = run(cgls(A, y), stop=gradient_rule(A, y, rtol=1e-12), max_iter=300)
    assert tuple(result.x.shape) == (6, 5)
    assert relative(result.x, expected) < 1e-6
    for start in (cg, gmres):
        result = run(start(A, y), stop=residual_rule(A, y, rtol=1e-10), max_iter=300)
        assert result.converged
        assert relative(result.x, expected) < 1e-6


# ---------------------------------------------------------------- step by step against SciPy


def iterates(states, k: int) -> list:
    return [to_numpy(next(states).x) for _ in range(k + 1)]


def test_cg_is_scipys_step_by_step():
    A, b, _ = system("spd", condition=100.0)
    theirs = [np.zeros(8)]
    scipy.sparse.linalg.cg(A, b, rtol=0, maxiter=6, callback=lambda x: theirs.append(x.copy()))
    for x, z in zip(iterates(cg(A, b), 6), theirs, strict=True):
        np.testing.assert_allclose(x, z, rtol=0, atol=1e-11)


def test_cgls_is_lsqr_step_by_step():
    A, y, _ = system("tall", condition=100.0)
    for k, x in enumerate(iterates(cgls(A, y), 5)):
        theirs = scipy.sparse.linalg.lsqr(A, y, atol=0, btol=0, conlim=0, iter_lim=k)[0]
        np.testing.assert_allclose(x, theirs if k else 0 * theirs, rtol=0, atol=1e-6)


def test_cgls_minimizes_over_the_krylov_space():
    """Not only at the end: each iterate is the best of its space."""
    A, y, _ = system("tall", condition=30.0)
    basis = [A.T @ y]
    for x in iterates(cgls(A, y), 4)[1:]:
        K = np.linalg.qr(np.stack(basis, axis=1))[0]
        best = K @ np.linalg.lstsq(A @ K, y)[0]
        np.testing.assert_allclose(x, best, rtol=0, atol=1e-9)
        basis.append(A.T @ (A @ basis[-1]))


def test_cg_is_cgls_on_the_normal_equations():
    A, y, _ = system("tall")
    for x, z in zip(iterates(cg(A.T @ A, A.T @ y), 5), iterates(cgls(A, y), 5), strict=True):
        np.testing.assert_allclose(x, z, rtol=0, atol=1e-11)


def test_lsmr_agrees_at_the_end():
    A, y, expected = system("tall", condition=1e3)
    theirs = scipy.sparse.linalg.lsmr(A, y, atol=1e-14, btol=1e-14, maxiter=500)[0]
    ours = run(cgls(A, y), stop=gradient_rule(A, y, rtol=1e-13), max_iter=500).x
    assert relative(ours, theirs) < 1e-7
    assert relative(ours, expected) < 1e-7


def test_gmres_residuals_are_scipys():
    A, b, _ = system("square", condition=50.0)
    theirs = []
    scipy.sparse.linalg.gmres(
        A, b, rtol=1e-14, restart=8, maxiter=1, callback=theirs.append, callback_type="pr_norm"
    )
    states = gmres(A, b)
    ours = [np.linalg.norm(next(states).r) / np.linalg.norm(b) for _ in range(9)]
    np.testing.assert_allclose(ours[1 : len(theirs) + 1], theirs, rtol=0, atol=1e-12)
    assert ours[8] < 1e-13
    assert all(after <= before * (1 + 1e-14) for before, after in zip(ours, ours[1:], strict=False))


def test_gmres_minimizes_over_the_krylov_space():
    A, b, _ = system("square", condition=20.0)
    x0 = np.linspace(-1, 1, 8)
    r0 = b - A @ x0
    basis = [r0]
    for x in iterates(gmres(A, b, x0), 5)[1:]:
        K = np.linalg.qr(np.stack(basis, axis=1))[0]
        best = x0 + K @ np.linalg.lstsq(A @ K, r0)[0]
        np.testing.assert_allclose(x, best, rtol=0, atol=1e-11)
        basis.append(A @ basis[-1])


def test_gmres_basis_is_orthonormal():
    A, b, _ = system("square")
    for _, state in zip(range(6), gmres(A, b), strict=False):
        if state.basis:
            Q = np.stack(state.basis, axis=1)
            np.testing.assert_allclose(Q.T @ Q, np.eye(Q.shape[1]), atol=1e-13)


def test_gmres_on_a_cyclic_shift():
    """The classical example: no progress at all for n - 1 steps, then the solution."""
    n = 7
    A, b = np.roll(np.eye(n), 1, axis=0), np.eye(n)[0]
    states = gmres(A, b)
    residuals = [np.linalg.norm(next(states).r) for _ in range(n + 1)]
    np.testing.assert_allclose(residuals, [1.0] * n + [0.0], atol=1e-13)


def test_cg_keeps_its_bound():
    """The bound of the docstring, with the condition number in it, at every step."""
    A, b, x = system("spd", condition=400.0)
    root = np.sqrt(400.0)

    def energy(v) -> float:
        return float(np.sqrt(v @ A @ v))

    for k, xk in enumerate(iterates(cg(A, b), 8)):
        assert energy(xk - x) <= 2 * ((root - 1) / (root + 1)) ** k * energy(x) * (1 + 1e-10)


def test_states_tell_the_truth(solver):
    """r is the residual of x, at the start and ever after."""
    A, y, _ = system("spd")
    x0 = np.linspace(0, 1, 8)
    for _, state in zip(range(8), solver.start(A, y, x0), strict=False):
        np.testing.assert_allclose(state.r, y - A @ state.x, rtol=0, atol=1e-13)
    first = next(solver.start(A, y, x0))
    np.testing.assert_array_equal(first.x, x0)


def test_states_of_conjugate_gradients():
    A, y, _ = system("tall")
    for _, s in zip(range(4), cgls(A, y), strict=False):
        np.testing.assert_allclose(s.s, A.T @ s.r, rtol=0, atol=1e-14)
        assert s.gamma == pytest.approx(s.s @ s.s, rel=1e-12)
    B = A.T @ A
    directions = []
    for _, s in zip(range(4), cg(B, A.T @ y), strict=False):
        assert s.rho == pytest.approx(s.r @ s.r, rel=1e-12)
        directions.append(s.p)
    G = np.stack(directions) @ B @ np.stack(directions).T
    np.testing.assert_allclose(G - np.diag(np.diag(G)), 0, atol=1e-12)


def test_landweber_is_its_formula():
    A, y, _ = system("tall")
    x = np.zeros(6)
    for z in iterates(landweber(A, y, step=0.7), 6):
        np.testing.assert_allclose(z, x, rtol=0, atol=1e-14)
        x = x + 0.7 * A.T @ (y - A @ x)


def test_landweber_converges_below_the_limit_and_not_above():
    """0 < η < 2/‖A‖², no more and no less; the class does not compare it with the limit."""
    A, y = np.diag([1.0, 0.5]), np.array([1.0, 1.0])
    stop = gradient_rule(A, y, rtol=1e-8)
    assert run(landweber(A, y, step=1.99), stop=stop, max_iter=5000).converged
    above = run(landweber(A, y, step=2.01), max_iter=500)
    assert np.linalg.norm(above.x) > 10
    assert np.isfinite(above.x).all()


# ---------------------------------------------------------------- preconditioned gradients


def definite(rng, n: int, condition: float) -> np.ndarray:
    U = np.linalg.qr(rng.standard_normal((n, n)))[0]
    A = (U * np.geomspace(1, condition, n)) @ U.T
    return (A + A.T) / 2


def test_preconditioned_cg_is_cg_in_other_variables(rng):
    """With Π = LLᵀ: the iterates L x̃ of plain CG for LᵀAL x̃ = Lᵀb."""
    A, Pi, b = definite(rng, 9, 50.0), definite(rng, 9, 20.0), rng.standard_normal(9)
    x0, L = rng.standard_normal(9), np.linalg.cholesky(Pi)
    ours = iterates(cg(A, b, x0, preconditioner=Pi), 6)
    plain = iterates(cg(L.T @ A @ L, L.T @ b, np.linalg.solve(L, x0)), 6)
    for x, z in zip(ours, plain, strict=True):
        np.testing.assert_allclose(x, L @ z, rtol=0, atol=1e-9)
    # Another factor of the same Π: the square root.
    w, V = np.linalg.eigh(Pi)
    root = (V * np.sqrt(w)) @ V.T
    turned = iterates(cg(root @ A @ root, root @ b, np.linalg.solve(root, x0)), 6)
    np.testing.assert_allclose(ours[6], root @ turned[6], rtol=0, atol=1e-8)


def test_preconditioned_cg_keeps_its_bound(rng):
    """With the condition number of ΠA, in the energy norm of A, at every step."""
    for _ in range(20):
        A, Pi = definite(rng, 9, 300.0), definite(rng, 9, 5.0)
        x = rng.standard_normal(9)
        values = np.sort(np.linalg.eigvals(Pi @ A).real)
        root = np.sqrt(values[-1] / values[0])
        errors = [
            np.sqrt((z - x) @ A @ (z - x)) for z in iterates(cg(A, A @ x, preconditioner=Pi), 7)
        ]
        for k, error in enumerate(errors):
            assert error <= 2 * ((root - 1) / (root + 1)) ** k * errors[0] * (1 + 1e-9)


def test_preconditioned_states(rng, like):
    A, Pi, b = definite(rng, 6, 9.0), definite(rng, 6, 4.0), rng.standard_normal(6)
    A, Pi, b = (asarray_like(M, like) for M in (A, Pi, b))
    for _, s in zip(range(5), cg(A, b, preconditioner=matrix(Pi)), strict=False):
        assert float(s.rho) == pytest.approx(float(s.r @ (Pi @ s.r)), rel=100 * eps(like))
        assert_alike(s.x, like)
        np.testing.assert_allclose(to_numpy(s.r), to_numpy(b - A @ s.x), atol=100 * eps(like))


def test_the_inverse_as_preconditioner_needs_one_step(rng):
    A, b = definite(rng, 8, 1e4), rng.standard_normal(8)
    stop = residual_rule(A, b, rtol=1e-9)
    inverse = np.linalg.inv(A)
    found = run(cg(A, b, preconditioner=(inverse + inverse.T) / 2), stop=stop, max_iter=9)
    assert (found.iterations, found.converged) == (1, True)


def test_scaling_pays_off(rng):
    """Jacobi's preconditioner undoes a bad scaling of the unknowns."""
    d = np.geomspace(1, 1e4, 60)
    A = definite(rng, 60, 10.0) * np.sqrt(d[:, None] * d)
    b, Pi = rng.standard_normal(60), np.diag(1 / np.diag(A))
    plain, scaled = (
        run(cg(A, b, preconditioner=P), stop=residual_rule(A, b, rtol=1e-8), max_iter=5000)
        for P in (None, Pi)
    )
    assert scaled.converged
    assert 3 * scaled.iterations < plain.iterations


@pytest.mark.parametrize("seed", range(5))
def test_an_indefinite_preconditioner_is_told(seed):
    rng = np.random.default_rng(seed)
    A, b = definite(rng, 8, 5.0), rng.standard_normal(8)
    U = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    Pi = (U * np.array([1, 1, 1, -1, 1, 1, -1, -1.0])) @ U.T
    found = run(cg(A, b, preconditioner=Pi), stop=residual_rule(A, b, rtol=1e-12), max_iter=100)
    assert not found.converged
    assert "<r, Pi r>" in found.reason
    assert "is not positive" in found.reason
    zero = run(cg(A, b, preconditioner=0 * Pi), max_iter=5)
    assert "<r, Pi r> = 0.000e+00 is not positive" in zero.reason


def test_negative_curvature_is_told_with_a_preconditioner(rng):
    A = np.diag([1.0, 2.0, -3.0])
    found = run(cg(A, np.ones(3), preconditioner=definite(rng, 3, 2.0)), max_iter=9)
    assert "<p, Ap>" in found.reason


@pytest.mark.parametrize(
    ("Pi", "words"),
    [
        (np.eye(4), "must fit A"),
        (np.ones((3, 4)), "must fit A"),
        ([[1.0]], "must be an array"),
        (np.full((3, 3), np.nan), "must be finite"),
        (np.ones(3), "dimensions"),
    ],
)
def test_preconditioners_that_do_not_fit(Pi, words):
    for method in (cg, bicgstab, gmres):
        with pytest.raises(ValueError, match=words):
            method(np.eye(3), np.ones(3), preconditioner=Pi)


@pytest.mark.parametrize("method", [bicgstab, gmres])
def test_a_preconditioner_on_the_right_is_a_change_of_variables(method, rng, like):
    """Iterates of AΠu = b - Ax₀, taken to x = x₀ + Πu; and the residual is b - Ax."""
    A, Pi = (asarray_like(np.eye(9) + 0.1 * rng.standard_normal((9, 9)), like) for _ in range(2))
    b, x0 = (asarray_like(rng.standard_normal(9), like) for _ in range(2))
    ours = itertools.islice(method(A, b, x0, preconditioner=Pi), 5)
    other = itertools.islice(method(matrix(A) @ matrix(Pi), b - A @ x0), 5)
    for state, changed in zip(ours, other, strict=True):
        assert_alike(state.x, like)
        assert relative(state.x, x0 + Pi @ changed.x) < 1e3 * eps(like)
        assert relative(b - A @ state.x, state.r) < 1e4 * eps(like)


# ---------------------------------------------------------------- MINRES


def indefinite(rng, n: int, condition: float, null: int = 0) -> np.ndarray:
    U = np.linalg.qr(rng.standard_normal((n, n)))[0]
    values = np.geomspace(1 / condition, 1, n) * rng.choice([-1.0, 1.0], n)
    values[:null] = 0
    A = (U * values) @ U.T
    return (A + A.T) / 2


@pytest.mark.parametrize("start", [False, True])
def test_minres_is_gmres_on_symmetric_systems(rng, start):
    """The same iterates and residuals: short recurrences lose nothing (but digits)."""
    for n in (1, 2, 3, 8):
        A, b = indefinite(rng, n, 8.0), rng.standard_normal(n)
        x0 = rng.standard_normal(n) if start else None
        for short, long in zip(minres(A, b, x0), gmres(A, b, x0), strict=False):
            np.testing.assert_allclose(short.x, long.x, rtol=0, atol=1e-10)
            np.testing.assert_allclose(short.r, long.r, rtol=0, atol=1e-10)
            if np.linalg.norm(long.r) < 1e-9:
                break


def test_minres_is_scipys(rng):
    A, b = indefinite(rng, 30, 40.0), rng.standard_normal(30)
    theirs = scipy.sparse.linalg.minres(A, b, rtol=1e-13, maxiter=300)[0]
    found = run(minres(A, b), stop=residual_rule(A, b, rtol=1e-10), max_iter=300)
    assert found.converged
    assert relative(found.x, theirs) < 1e-8


def test_minres_residuals_never_grow(rng, like):
    M, data = indefinite(rng, 10, 20.0), rng.standard_normal(10)
    A, b = asarray_like(M, like), asarray_like(data, like)
    sizes = []
    for _, state in zip(range(10), minres(A, b), strict=False):
        assert_alike(state.x, like)
        true = data - to_numpy(A) @ to_numpy(state.x)
        np.testing.assert_allclose(to_numpy(state.r), true, atol=1e4 * eps(like))
        sizes.append(np.linalg.norm(true))
    assert len(sizes) == 10
    assert all(b <= a * (1 + 1e3 * eps(like)) for a, b in zip(sizes, sizes[1:], strict=False))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("condition", [3.0, 100.0])
def test_minres_on_singular_systems(condition, dtype):
    """Consistent: the solution of smallest norm. Not: a least-squares solution, and words."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        A = indefinite(rng, 20, condition**2.5, null=12).astype(dtype)
        b = rng.standard_normal(20).astype(dtype)
        rtol = 1e-9 if dtype == "float64" else 1e-4
        good = A @ b
        found = run(minres(A, good), stop=residual_rule(A, good, rtol=rtol), max_iter=100)
        assert found.converged
        expected = np.linalg.pinv(A.astype(float), rcond=1e-5) @ good
        assert relative(found.x, expected) <= 3 * condition * rtol
        bad = run(minres(A, b), stop=residual_rule(A, b, rtol=rtol), max_iter=100)
        assert not bad.converged
        assert "singular to rounding, and x a least-squares solution" in bad.reason
        r = b - A @ bad.x
        assert np.linalg.norm(A @ r) <= 10 * eps(A) ** 0.5 * np.linalg.norm(r)


def test_minres_where_nothing_can_be_done():
    for A, b in (
        (np.zeros((3, 3)), np.ones(3)),
        (np.diag([1.0, 0.0]), np.array([0.0, 2.0])),
    ):
        found = run(minres(A, b), max_iter=5)
        np.testing.assert_array_equal(found.x, 0 * b)
        assert "singular" in found.reason
    # A small matrix is not a singular one, nor is the direction of a small eigenvalue.
    for A in (1e-150 * np.diag([2.0, -1.0]), np.diag([1.0, 1e-12])):
        b = A @ np.array([0.0, 1.0])
        found = run(minres(A, b), stop=residual_rule(A, b, rtol=1e-12), max_iter=5)
        assert found.converged, found.reason
        np.testing.assert_allclose(found.x, [0, 1], rtol=1e-12)


# ---------------------------------------------------------------- BiCGSTAB


def skew_dominant(rng, n: int, share: float) -> np.ndarray:
    """I + S with a skew S of the given norm: eigenvalues 1 ± it, |t| <= share."""
    S = rng.standard_normal((n, n))
    S = S - S.T
    return np.eye(n) + share * S / np.linalg.norm(S, 2)


@pytest.mark.parametrize("share", [0.5, 2.0, 5.0])
def test_bicgstab_on_skew_dominant_systems(share):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        A, b = skew_dominant(rng, 40, share), rng.standard_normal(40)
        found = run(bicgstab(A, b), stop=residual_rule(A, b, rtol=1e-10), max_iter=400)
        assert found.converged, found.reason
        # The symmetric part is the identity, so that the error is no larger than the residual.
        assert np.linalg.norm(found.x - np.linalg.solve(A, b)) <= 1.1e-10 * np.linalg.norm(b)
        # CG for symmetric matrices has nothing to say here.
        wrong = run(cg(A, b), stop=residual_rule(A, b, rtol=1e-10), max_iter=400)
        assert share < 1 or not wrong.converged


def test_bicgstab_says_no_more_than_it_did():
    """Where it stalls (eigenvalues near the imaginary axis) it does not say that it converged."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        A, b = skew_dominant(rng, 40, 1e3), rng.standard_normal(40)
        found = run(bicgstab(A, b), stop=residual_rule(A, b, rtol=1e-10), max_iter=200)
        true = np.linalg.norm(b - A @ found.x)
        assert found.converged == bool(true <= 1e-10 * np.linalg.norm(b))
        assert run(gmres(A, b), stop=residual_rule(A, b, rtol=1e-10), max_iter=40).converged


def test_bicgstab_states(rng, like):
    M, data = skew_dominant(rng, 12, 1.0), rng.standard_normal(12)
    A, b = asarray_like(M, like), asarray_like(data, like)
    for _, s in zip(range(12), bicgstab(A, b), strict=False):
        assert_alike(s.x, like)
        np.testing.assert_allclose(to_numpy(s.r), to_numpy(b - A @ s.x), atol=300 * eps(like))


def test_bicgstab_minimizes_in_the_second_half_of_a_step(rng):
    """After the first step r = (I - ωA)(I - αA)b, ω the minimizer: no other ω does better."""
    A, b = skew_dominant(rng, 8, 1.0), rng.standard_normal(8)
    s = b - (b @ b) / (b @ A @ b) * (A @ b)
    r = iterates_of(bicgstab(A, b), 1)[1].r
    best = s - A @ s * ((A @ s) @ s) / ((A @ s) @ (A @ s))
    np.testing.assert_allclose(r, best, rtol=0, atol=1e-13)


def iterates_of(states, k: int) -> list:
    return [next(states) for _ in range(k + 1)]


@pytest.mark.parametrize(
    ("A", "b", "words"),
    [
        ([[0.0, 1.0], [-1.0, 0.0]], [1.0, 2.0], "orthogonal to the first"),
        ([[1.0, 3.0], [2.0, 0.0]], [1.0, 0.0], "stabilizing step is zero"),
        ([[0.0, 0.0], [0.0, 0.0]], [1.0, 0.0], "orthogonal to the first"),
        ([[2.0, 0.0], [0.0, 2.0]], [0.0, 0.0], "exactly zero"),
        ([[2.0, 0.0], [0.0, 2.0]], [1.0, 5.0], "exactly zero"),
    ],
)
def test_breakdowns_of_bicgstab(A, b, words):
    found = run(bicgstab(np.array(A), np.array(b)), max_iter=50)
    assert words in found.reason
    assert np.isfinite(found.x).all()


# ---------------------------------------------------------------- the nu-method's polynomials


def residual_polynomials(nu: float, k: int, t: np.ndarray) -> np.ndarray:
    """r_j(t), j = 0..k, read off the solver: with A = diag(√t), y = √t, x_j = 1 - r_j."""
    root = np.sqrt(t)
    A = LinearOperator(lambda x: root * x, lambda v: root * v, t.shape, t.shape)
    return np.stack([1 - x for x in iterates(nu_method(A, root, nu=nu, step=1.0), k)])


NUS = (0.5, 1.0, 2.0)


@pytest.mark.parametrize("nu", NUS)
def test_nu_method_polynomials_are_bounded_by_one(nu):
    t = np.concatenate([np.linspace(1e-6, 1, 400), np.geomspace(1e-12, 1e-2, 100)])
    r = residual_polynomials(nu, 200, t)
    assert np.abs(r).max() <= 1 + 1e-12


@pytest.mark.parametrize("nu", NUS)
def test_nu_method_order(nu):
    """sup t^ν |r_k(t)| falls like k^(-2ν), no slower and no faster: EHN (1996), section 6.3."""
    t = np.concatenate([np.geomspace(1e-8, 1, 1500), np.linspace(1e-3, 1, 1500)])
    k = np.array([100, 200, 400])
    r = residual_polynomials(nu, 400, t)
    sup = np.abs(t**nu * r).max(axis=1)
    weighted = sup[k] * k ** (2 * nu)
    assert weighted.max() / weighted.min() < 1.25
    slope = np.polyfit(np.log(k), np.log(sup[k]), 1)[0]
    assert slope == pytest.approx(-2 * nu, rel=0.05)


@pytest.mark.parametrize("nu", NUS)
def test_nu_method_qualification(nu):
    """Smoother solutions gain nothing: with the weight t^(ν+1) the rate stays at k^(-2ν)."""
    t = np.concatenate([np.geomspace(1e-8, 1, 1500), np.linspace(1e-3, 1, 1500)])
    k = np.array([100, 200, 400])
    r = residual_polynomials(nu, 400, t)
    sup = np.abs(t ** (nu + 1) * r).max(axis=1)[k]
    assert np.polyfit(np.log(k), np.log(sup), 1)[0] == pytest.approx(-2 * nu, rel=0.1)


@pytest.mark.parametrize("nu", [0.5, 1.0, 2.0])
def test_nu_method_polynomials_are_jacobi(nu):
    """r_k(t) = P_k(1 - 2t)/P_k(1), Jacobi with α = 2ν - 1/2, β = -1/2 (EHN, section 6.3)."""
    t = np.linspace(0.01, 1, 50)
    r = residual_polynomials(nu, 30, t)
    for k in (1, 2, 3, 10, 30):
        P = scipy.special.eval_jacobi(k, 2 * nu - 0.5, -0.5, 1 - 2 * t)
        at_one = scipy.special.eval_jacobi(k, 2 * nu - 0.5, -0.5, 1.0)
        np.testing.assert_allclose(r[k], P / at_one, rtol=0, atol=1e-11)


def test_nu_method_needs_the_root_of_landwebers_steps():
    """On the weight t: k steps against about k² steps, within a factor of a few."""
    t = np.geomspace(1e-6, 1, 4000)
    k = 100
    ours = np.abs(t * residual_polynomials(1.0, k, t)[k]).max()
    steps = next(j for j in (100, 1000, 10_000, 100_000) if np.abs(t * (1 - t) ** j).max() < ours)
    assert 10 * k <= steps <= 10 * k**2


def test_nu_method_is_linear_in_the_data():
    A, y, _ = system("tall")
    z = np.linspace(-1, 1, 11)
    one, two, both = (iterates(nu_method(A, d, step=0.5), 9) for d in (y, z, 2 * y - 3 * z))
    for a, b, c in zip(one, two, both, strict=True):
        np.testing.assert_allclose(c, 2 * a - 3 * b, rtol=0, atol=1e-12)


def test_cgls_is_not_linear_in_the_data():
    A, y, _ = system("tall")
    z = np.linspace(-1, 1, 11)
    one, two, both = (iterates(cgls(A, d), 3)[3] for d in (y, z, y + z))
    assert relative(both, one + two) > 1e-3


# ---------------------------------------------------------------- derivatives


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.differentiable], ids=lambda s: s.name)
def test_gradcheck(solver, torch):
    """Derivatives of the unrolled iteration: data, matrix and start, by finite differences."""
    rng = np.random.default_rng(2)
    M = rng.standard_normal((4, 3))
    if "least squares" not in solver.solves:
        M = M.T @ M
    data, start = rng.standard_normal(M.shape[0]), rng.standard_normal(M.shape[1])
    A, y, x0 = (torch.tensor(v, requires_grad=True) for v in (M, data, start))
    options = {"step": 0.05} if solver.name in ("landweber", "nu_method") else {}

    def unrolled(A, y, x0):
        return run(solver.start(A, y, x0, **options), max_iter=3).x

    assert torch.autograd.gradcheck(unrolled, (A, y, x0), atol=1e-7, rtol=1e-5)


def test_gradcheck_with_a_rule_and_records(torch):
    """Stopping and recording do not touch the derivative."""
    A = torch.tensor([[2.0, 0.3], [0.1, 1.0], [0.5, 0.5]], dtype=torch.float64)
    y = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64, requires_grad=True)

    def solved(y):
        stop = gradient_rule(A, y, rtol=1e-12)
        return run(cgls(A, y), stop=stop, max_iter=20, record={"g": lambda s: s.gamma}).x

    assert torch.autograd.gradcheck(solved, y)
    J = torch.autograd.functional.jacobian(solved, y.detach())
    np.testing.assert_allclose(J.numpy(), np.linalg.pinv(A.numpy()), atol=1e-9)


def test_gmres_is_cut_off_from_autograd(torch):
    """Half a derivative would be wrong without a word."""
    A = torch.eye(3, dtype=torch.float64) * 2
    b = torch.ones(3, dtype=torch.float64, requires_grad=True)
    result = run(gmres(A, b, b.clone()), max_iter=2)
    assert not result.x.requires_grad
    assert not result.state.r.requires_grad


# ---------------------------------------------------------------- refusals and size


def test_square_is_demanded():
    for start in (cg, gmres, minres, bicgstab):
        with pytest.raises(ValueError, match=r"A must be square: .*\(2,\) -> \(3,\)"):
            start(np.ones((3, 2)), np.ones(3))
    with pytest.raises(ValueError, match="A must be square"):
        cg(gradient((2, 2)), np.ones((2, 2, 2)))


def test_arguments_are_checked_when_the_solver_is_called(solver):
    """Not at the first step: the message stands where the mistake is."""
    A, y, _ = system("spd")
    for bad in (y[:-1], np.full(8, np.nan), y.astype(np.float32), list(y), y * 1j, y[:, None]):
        with pytest.raises(ValueError, match="data"):
            solver.start(A, bad)
    for bad in (y[:-1], np.full(8, np.inf), y.astype(np.float32), list(y)):
        with pytest.raises(ValueError, match="x0"):
            solver.start(A, y, bad)


def test_step_is_checked_but_not_against_the_limit():
    A, y, _ = system("spd")
    for start in (landweber, nu_method):
        for bad in (0.0, -1.0, np.nan, np.inf, "1", None):
            with pytest.raises(ValueError, match="step"):
                start(A, y, step=bad)
        next(start(A, y, step=1e9))
    for bad in (0.0, -0.5, np.nan):
        with pytest.raises(ValueError, match="nu"):
            nu_method(A, y, nu=bad, step=1.0)


def test_data_of_another_library_are_refused(solver, torch):
    A, y, _ = system("spd")
    with pytest.raises(ValueError, match="one library"):
        solver.start(A, torch.from_numpy(y))
    with pytest.raises(ValueError, match="one library"):
        solver.start(A, y, torch.from_numpy(y))


def test_difference_takes_the_kind_of_the_data(solver, like):
    """An operator that holds no numbers is bound by the data alone."""
    D = difference(6, order=2, boundary="zero") * -1.0
    y = asarray_like(np.ones(6), like)
    step = (
        {"step": 1 / D.norm() ** 2} if "step" in inspect.signature(solver.start).parameters else {}
    )
    result = run(solver.start(D, y, **step), max_iter=3)
    assert_alike(result.x, like)


def logical_lines(function) -> int:
    """Statements of a function's body, nested ones too; the docstring does not count."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)][1:]
    return sum(
        not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in statements
    )


@pytest.mark.parametrize("name", linear.__all__)
def test_a_solver_stays_within_25_lines(name):
    """A loop that fits on a slide; counted as statements."""
    assert logical_lines(getattr(linear, name)) <= 25


def test_every_solver_is_in_the_table():
    assert {case.name for case in SOLVERS} == set(linear.__all__)
