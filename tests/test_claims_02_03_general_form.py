"""Claims of notebooks/02_tikhonov/03_general_form.ipynb: a general regularization operator D."""

import math

import numpy as np
import pytest
from claims import rejects

from course_lib import filters, operators

SEEDS = [0, 1, 2]
# Rows of A, rows of D, unknowns: wide and tall in every combination.
SHAPES = [(4, 5, 7), (9, 5, 7), (9, 8, 7), (3, 10, 7)]
BOUNDARIES = [
    (1, "free", 1),
    (1, "zero", 0),
    (1, "periodic", 1),
    (2, "free", 2),
    (2, "zero", 0),
    (2, "reflect", 1),
    (2, "periodic", 1),
]
LAM = 0.3


def _unit(rng, n):
    v = rng.standard_normal(n)
    return v / np.linalg.norm(v)


def _pair(seed, shape, *, common=False):
    """Random A and D. Both are rank deficient: A kills a, D kills d, and both kill one vector
    more if ``common``."""
    m, p, n = shape
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((n, n)))[0]
    a, d, both = Q[:, :1], Q[:, 1:2], Q[:, 2:3]
    A, D = rng.standard_normal((m, n)), rng.standard_normal((p, n))
    A, D = A - A @ a @ a.T, D - D @ d @ d.T
    if common:
        A, D = A - A @ both @ both.T, D - D @ both @ both.T
    return A, D, rng


def _hessian(A, D, lam):
    return A.T @ A + lam * D.T @ D


def _objective(A, D, y, lam, x):
    return 0.5 * np.sum((A @ x - y) ** 2) + 0.5 * lam * np.sum((D @ x) ** 2)


def _null_dimension(M):
    s = np.linalg.svd(M, compute_uv=False)
    return M.shape[1] - int(np.sum(s > 1e-10 * s[0]))


def _augmented(A, D, lam):
    return np.vstack([A, math.sqrt(lam) * D])


def _unique(A, D, y, lam=LAM):
    """Does the library find that the minimizer is unique?"""
    try:
        filters.tikhonov(A, y, lam, D)
    except ValueError as error:
        return "unique" not in str(error)
    return True


@pytest.mark.claim("thm-general-normal-equations")
@pytest.mark.parametrize(
    ("lam", "broken"),
    [(0.0, None), (LAM, None), (LAM, "λ squared"), (LAM, "the transpose of D is left out")],
)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_minimizers_are_the_solutions_of_the_normal_equations(shape, common, seed, lam, broken):
    A, D, rng = _pair(seed, shape, common=common)
    y = rng.standard_normal(A.shape[0])
    H = _hessian(A, D, lam**2 if broken == "λ squared" else lam)
    if broken == "the transpose of D is left out":
        square = np.vstack([D, np.zeros_like(D), np.zeros_like(D)])[: D.shape[1]]
        H = A.T @ A + lam * square @ square
    with rejects(broken):
        x = np.linalg.lstsq(H, A.T @ y, rcond=1e-12)[0]
        assert np.allclose(H @ x, A.T @ y)  # a solution exists, whatever the null spaces are
        value = _objective(A, D, y, lam, x)
        for _ in range(20):
            u = 10.0 ** rng.integers(-4, 1) * rng.standard_normal(x.size)
            other = _objective(A, D, y, lam, x + u)
            assert other >= value - 1e-12 * (1 + value)
            # The gain is the quadratic form of H: zero only on its null space.
            assert math.isclose(other - value, 0.5 * u @ H @ u, rel_tol=1e-6, abs_tol=1e-11)
        null = np.linalg.svd(H)[2][x.size - _null_dimension(H) :]
        for u in null:
            assert math.isclose(_objective(A, D, y, lam, x + u), value, rel_tol=1e-9, abs_tol=1e-20)


@pytest.mark.claim("thm-general-normal-equations")
@pytest.mark.parametrize("broken", [None, "λ in place of its root in the stacked matrix"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_library_returns_that_minimizer(shape, seed, broken):
    A, D, rng = _pair(seed, shape)
    y = rng.standard_normal(A.shape[0])
    by_formula = np.linalg.solve(_hessian(A, D, LAM), A.T @ y)
    with rejects(broken):
        if broken:
            stacked, data = np.vstack([A, LAM * D]), np.concatenate([y, np.zeros(D.shape[0])])
            assert np.allclose(np.linalg.lstsq(stacked, data, rcond=None)[0], by_formula)
        for method in ("qr", "cgls"):
            x = filters.tikhonov(A, y, LAM, D, method=method).x
            assert np.allclose(x, by_formula, rtol=1e-7, atol=1e-7)


@pytest.mark.claim("thm-null-space")
@pytest.mark.parametrize(
    ("common", "broken"),
    [(False, None), (True, None), (True, "D without its null space"), (False, "λ = 0")],
)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_unique_exactly_when_no_vector_is_ignored_twice(shape, seed, common, broken):
    A, D, rng = _pair(seed, shape, common=common)
    y = rng.standard_normal(A.shape[0])
    meeting = shape[2] - np.linalg.matrix_rank(np.vstack([A, D]))
    assert meeting == (1 if common else max(0, shape[2] - shape[0] - shape[1]))
    H = _hessian(A, D, 0.0 if broken == "λ = 0" else LAM)
    if broken == "D without its null space":
        H = _hessian(A, np.eye(shape[2]), LAM)
    with rejects(broken):
        u = rng.standard_normal(shape[2])
        form = np.sum((A @ u) ** 2) + LAM * np.sum((D @ u) ** 2)
        assert broken or math.isclose(u @ H @ u, form, rel_tol=1e-9)
        assert _null_dimension(H) == meeting
        definite = bool(np.linalg.eigvalsh(H)[0] > 1e-10)
        full_rank = _null_dimension(_augmented(A, D, LAM)) == 0
        assert definite == full_rank == (meeting == 0) == _unique(A, D, y)


@pytest.mark.claim("thm-null-space")
@pytest.mark.parametrize("broken", [None, "as many rows as unknowns"])
@pytest.mark.parametrize("seed", SEEDS)
def test_without_penalty_unique_exactly_at_full_column_rank(seed, broken):
    rng = np.random.default_rng(seed)
    with rejects(broken):
        for m, rank in [(5, 3), (5, 4), (4, 4), (4, 3), (3, 3)]:
            A = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, 4))
            unique = m >= 4 if broken else np.linalg.matrix_rank(A) == 4
            assert bool(np.linalg.eigvalsh(A.T @ A)[0] > 1e-10) == unique


@pytest.mark.claim("prop-difference-null-spaces")
@pytest.mark.parametrize("broken", [None, "one null vector too many"])
@pytest.mark.parametrize(("order", "boundary", "dimension"), BOUNDARIES)
def test_null_spaces_of_the_differences(order, boundary, dimension, broken):
    dimension += 1 if broken else 0
    with rejects(broken):
        for n in (3, 4, 7, 12):
            D = operators.difference(n, order=order, boundary=boundary).to_dense()
            rows = {(1, "free"): n - 1, (1, "zero"): n + 1, (2, "free"): n - 2}
            assert D.shape == (rows.get((order, boundary), n), n)
            assert _null_dimension(D) == dimension
            basis = [np.ones(n), np.arange(1.0, n + 1)][:dimension]
            for v in basis:
                assert np.abs(D @ v).max() < 1e-12


@pytest.mark.claim("prop-difference-null-spaces")
@pytest.mark.parametrize("broken", [None, "the constants alone decide"])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_the_data_must_see(seed, broken):
    rng = np.random.default_rng(seed)
    n = 8
    one, line = np.ones(n), np.arange(1.0, n + 1)
    span = np.linalg.qr(np.stack([one, line], axis=1))[0]
    blind = {
        "nothing": np.zeros((n, 0)),
        "constants": one[:, None] / math.sqrt(n),
        "a line": (line - 2.7)[:, None] / np.linalg.norm(line - 2.7),
        "both": span,
    }
    if broken:
        blind = {"a line": blind["a line"]}
    for kernel in blind.values():
        A = rng.standard_normal((5, n))
        A = A - A @ kernel @ kernel.T
        y = rng.standard_normal(5)
        sees_constants = np.linalg.norm(A @ one) > 1e-8
        sees_lines = np.linalg.svd(A @ span, compute_uv=False)[-1] > 1e-8
        with rejects(broken):
            for order, boundary, dimension in BOUNDARIES:
                D = operators.difference(n, order=order, boundary=boundary).to_dense()
                lines = sees_constants if broken else sees_lines
                expected = (True, sees_constants, lines)[dimension]
                assert _unique(A, D, y) == expected


@pytest.mark.claim("thm-augmented-condition")
@pytest.mark.parametrize("broken", [None, "the exponent 2"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_normal_matrix_squares_the_condition_number(shape, seed, broken):
    A, D, _ = _pair(seed, shape)
    K, H = _augmented(A, D, LAM), _hessian(A, D, LAM)
    exponent = 1.5 if broken else 2
    with rejects(broken):
        assert math.isclose(np.linalg.cond(H), np.linalg.cond(K) ** exponent, rel_tol=1e-6)


@pytest.mark.claim("thm-augmented-condition")
@pytest.mark.parametrize("broken", [None, "twice the distance"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_relative_distance_to_the_nearest_deficient_matrix(shape, seed, broken):
    A, D, rng = _pair(seed, shape)
    K, H = _augmented(A, D, LAM), _hessian(A, D, LAM)
    kappa = np.linalg.cond(K)
    for M, distance in [(H, kappa**-2), (K, 1 / kappa)]:
        U, s, Vh = np.linalg.svd(M)
        E = s[-1] * np.outer(U[:, s.size - 1], Vh[-1])
        size = np.linalg.norm(M, 2)
        assert math.isclose(np.linalg.norm(E, 2), distance * size, rel_tol=1e-6)
        assert np.linalg.svd(M - E, compute_uv=False)[-1] < 1e-12 * size
        claimed = 2 * distance * size if broken else distance * size
        with rejects(broken):
            # Nothing shorter will do: every shorter perturbation leaves the rank full.
            trials = [rng.standard_normal(M.shape) for _ in range(20)] + [E]
            for F in trials:
                F = -F / np.linalg.norm(F, 2) * claimed * (0.5 if F is E else 0.999)
                assert np.linalg.svd(M + F, compute_uv=False)[-1] > 1e-9 * size * distance


def _basis(A, D):
    """The vectors w_i of the theorem, with the library's standard form."""
    form = filters.standard_form(A, D)
    U, gamma, Vh = np.linalg.svd(form.A_bar)
    zero = np.zeros(A.shape[0])
    W = np.stack([form.back(v, zero) for v in Vh], axis=1)
    gamma = np.concatenate([gamma, np.zeros(Vh.shape[0] - gamma.size)])
    in_null_space = form.back(np.zeros(Vh.shape[0]), np.ones(A.shape[0]))
    assert np.abs(D @ in_null_space).max() < 1e-10
    return form, U, gamma, W


@pytest.mark.claim("thm-standard-form")
@pytest.mark.parametrize("broken", [None, "the null space part is forgotten"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_standard_form_has_the_same_minimizer(shape, seed, broken):
    A, D, rng = _pair(seed, shape)
    y = rng.standard_normal(A.shape[0])
    direct = np.linalg.solve(_hessian(A, D, LAM), A.T @ y)
    form = filters.standard_form(A, D)
    x_bar = filters.tikhonov(form.A_bar, form.to_data(y), LAM).x
    with rejects(broken):
        x = form.back(x_bar, 0 * y if broken else y)
        assert np.allclose(x, direct, rtol=1e-8, atol=1e-9)
        assert math.isclose(np.linalg.norm(D @ x), np.linalg.norm(x_bar), rel_tol=1e-8)


@pytest.mark.claim("thm-standard-form")
@pytest.mark.parametrize("broken", [None, "the singular values of A for those of the pair"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_generalized_singular_values_diagonalize_the_pair(shape, seed, broken):
    A, D, rng = _pair(seed, shape)
    y = rng.standard_normal(A.shape[0])
    form, U, gamma, W = _basis(A, D)
    if broken:
        s = np.linalg.svd(A, compute_uv=False)
        gamma = np.resize(s, gamma.size)
    with rejects(broken):
        assert np.allclose(A.T @ A @ W, D.T @ D @ W * gamma**2, atol=1e-8)
        assert np.allclose((D @ W).T @ (D @ W), np.eye(gamma.size), atol=1e-8)
        assert np.allclose((A @ W).T @ (A @ W), np.diag(gamma**2), atol=1e-8)
        k = min(U.shape[1], gamma.size)
        phi = filters.tikhonov_factors(gamma[:k], LAM)
        used = gamma[:k] > 1e-10
        gain = np.where(used, phi / np.where(used, gamma[:k], 1.0), 0.0)
        in_null_space = form.back(np.zeros(gamma.size), y)
        x = in_null_space + W[:, :k] @ (gain * (U[:, :k].T @ y))
        assert np.allclose(x, filters.tikhonov(A, y, LAM, D).x, rtol=1e-8, atol=1e-9)


def _fit_in_null_space(A, D, y):
    s, Vh = np.linalg.svd(D)[1:]
    Z0 = Vh[int(np.sum(s > 1e-10)) :].T
    return Z0 @ np.linalg.lstsq(A @ Z0, y, rcond=None)[0]


@pytest.mark.claim("prop-lambda-to-infinity")
@pytest.mark.parametrize("broken", [None, "the limit 0", "a quarter of the bound"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_large_lambda_leaves_the_fit_within_the_null_space(shape, seed, broken):
    A, D, rng = _pair(seed, shape)
    y = rng.standard_normal(A.shape[0])
    _, U, gamma, W = _basis(A, D)
    limit = 0 * W[:, 0] if broken == "the limit 0" else _fit_in_null_space(A, D, y)
    misfit = np.linalg.norm(y - A @ _fit_in_null_space(A, D, y))
    k = min(U.shape[1], gamma.size)
    if broken == "a quarter of the bound":
        # Data along the first left vector: at λ = γ₁² the bound is attained.
        y = U[:, 0]
        limit, misfit = _fit_in_null_space(A, D, y), 0.25
    with rejects(broken):
        for lam in [gamma[0] ** 2, *np.logspace(-3, 8, 12)]:
            x = filters.tikhonov(A, y, lam, D).x
            bound = min(gamma[0] / lam, 0.5 / math.sqrt(lam)) * misfit
            assert np.linalg.norm(D @ x) <= bound * (1 + 1e-6) + 1e-13
        assert np.linalg.norm(x - limit) <= 1e-5 * (1 + np.linalg.norm(limit))
        rate = W[:, :k] @ (gamma[:k] * (U[:, :k].T @ y))
        x = filters.tikhonov(A, y, 1e5, D).x
        assert np.allclose(1e5 * (x - limit), rate, rtol=1e-2, atol=1e-2 * np.linalg.norm(rate))


@pytest.mark.claim("prop-lambda-to-infinity")
@pytest.mark.parametrize("broken", [None, "the shortest x instead of the shortest Dx"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(4, 5, 7), (3, 10, 7), (4, 8, 7)])
def test_small_lambda_leaves_the_least_squares_solution_with_shortest_dx(shape, seed, broken):
    A, D, rng = _pair(seed, shape)
    y = rng.standard_normal(A.shape[0])
    shortest = np.linalg.pinv(A) @ y
    s, Vh = np.linalg.svd(A)[1:]
    null = Vh[int(np.sum(s > 1e-10)) :].T
    limit = shortest - null @ np.linalg.lstsq(D @ null, D @ shortest, rcond=None)[0]
    with rejects(broken):
        x = filters.tikhonov(A, y, 1e-10, D).x
        assert np.allclose(x, shortest if broken else limit, rtol=1e-5, atol=1e-5)
