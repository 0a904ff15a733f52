"""The errata of the sources on implicit differentiation, and the numbers of their exercises.

E-25 to E-28, E-38 to E-43 (checkpoints stand in ``test_meta.py``), E-55, E-56 (clipping stands
there), E-65, E-66, and the exercises 17.1 to 17.5 and 17.7 with their errata E-57 to E-61 and E-63.
In the manner of ``test_errata.py``: printed digits where the instance is given in full, the
direction on 20 seeds where it was random.
"""

import functools
import math
import time
import tracemalloc

import numpy as np
import pytest
import scipy.sparse
from claims import rejects
from test_errata import SEEDS, spread

from course_lib import bilevel, checks, filters, implicit
from course_lib.functionals import Functional, l1, least_squares, soft_threshold
from course_lib.implicit import (
    batch_norm,
    batch_norm_vjp,
    error_bound,
    fixed_point_jvp,
    fixed_point_vjp,
    lavrentiev,
    lbfgs,
    neumann,
    neumann_tail,
    refine,
    root_jvp,
    root_vjp,
    solve,
    support_jvp,
    sylvester,
    sylvester_jvp,
    sylvester_vjp,
)
from course_lib.iterate import residual_rule, run
from course_lib.linear import bicgstab, cg, cgls, gmres
from course_lib.operators import LinearOperator, diagonal, matrix
from course_lib.proximal import gradient_descent, ista, lasso

pytestmark = pytest.mark.slow


def spectrum(rng, values, *, symmetric: bool = True) -> np.ndarray:
    """A random matrix with these eigenvalues (or, if not symmetric, singular values)."""
    n = len(values)
    U = np.linalg.qr(rng.standard_normal((n, n)))[0]
    V = U if symmetric else np.linalg.qr(rng.standard_normal((n, n)))[0]
    return (U * np.asarray(values)) @ V.T


def linear_loss(v: np.ndarray) -> Functional:
    return Functional(lambda x: x @ v, lambda x: v)


def difference(f, t: np.ndarray, direction: np.ndarray, h: float = 1e-5):
    """The derivative along a direction, by differences of fourth order."""
    near = (f(t + h * direction) - f(t - h * direction)) / (2 * h)
    far = (f(t + 2 * h * direction) - f(t - 2 * h * direction)) / (4 * h)
    return (4 * near - far) / 3


# ----------------------------------------------- E-25: unrolling and the implicit derivative


def descent(rng, step_times_lip: float):
    """Gradient descent for ½xᵀHx - cᵀx + ½λ‖x‖²: step, derivatives, x*, dx*/dλ and rate."""
    n, lam = 3, np.array([0.1])
    H, c = spectrum(rng, np.array([0.02, 0.4, 0.9])), rng.standard_normal(3)
    eta = step_times_lip / (0.9 + lam[0])
    T_x = np.eye(n) - eta * (H + lam[0] * np.eye(n))
    x_star = np.linalg.solve(H + lam[0] * np.eye(n), c)
    d_star = fixed_point_jvp(T_x, -eta * x_star[:, None], np.ones(1))

    def unrolled_derivative(x0: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
        found = [
            bilevel.unrolled(
                lambda x, t, k: x - eta * (H @ x + t[0] * x - c),
                x0,
                lam,
                steps,
                linear_loss(unit),
                linearize=lambda x, t, k: (T_x, -eta * x[:, None]),
            )
            for unit in np.eye(n)
        ]
        return found[0].x, np.array([each.gradient[0] for each in found])

    return T_x, -eta * x_star, x_star, d_star, unrolled_derivative


@pytest.mark.parametrize("broken", [None, "unrolling to K steps called exact"])
def test_e25_a_converged_solver_has_no_converged_derivative(broken, report_line):
    """Started at x*: the K-term Neumann sum, whatever the residual says."""
    errors = {1: [], 5: []}
    for seed in SEEDS:
        T_x, T_lam, x_star, d_star, unrolled = descent(np.random.default_rng(seed), 1.0)
        for steps, found in errors.items():
            x, d = unrolled(x_star, steps)
            assert np.linalg.norm(x - x_star) <= 1e-12 * np.linalg.norm(x_star)
            np.testing.assert_allclose(d, neumann(T_x, T_lam, steps), rtol=1e-10)
            found.append(np.linalg.norm(d - d_star) / np.linalg.norm(d_star))
    for one, five in zip(*errors.values(), strict=True):
        with rejects(broken):
            assert one > five > 0.05 if broken is None else five < 1e-6
    report_line(f"E-25 error of dx/dλ from x*, K = 1, 5: {', '.join(map(spread, errors.values()))}")


@pytest.mark.parametrize("broken", [None, "the derivative at the rate of the iterate"])
def test_e25_the_derivative_loses_a_factor_k(broken, report_line):
    """(x_K - x*)/q^K settles, (x_K' - x*')/q^K goes on in equal pieces from 40 to 80 to 160."""
    pieces = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        T_x, _, x_star, d_star, unrolled = descent(rng, 1.0)
        q, x0 = np.linalg.norm(T_x, 2), 10 * rng.standard_normal(3)
        ends = [(unrolled(x0, k), q**k) for k in (40, 80, 160)]
        x = [(x - x_star) / scale for (x, _), scale in ends]
        d = [(d - d_star) / scale for (_, d), scale in ends]
        np.testing.assert_allclose(x[2], x[0], atol=1e-6 * np.linalg.norm(x[0]))
        pieces.append(np.linalg.norm(d[2] - d[1]) / np.linalg.norm(d[1] - d[0]))
    with rejects(broken):
        np.testing.assert_allclose(pieces, 1 if broken else 2, rtol=1e-4)
    report_line(f"E-25 growth of (x_K' - x*')/q^K, 80 to 160 over 40 to 80: {spread(pieces)}")


@pytest.mark.parametrize("broken", [None, "the bound without the term K q^(K-1)"])
def test_e25_the_bound_has_a_term_with_k(broken, report_line):
    """q^K‖d₀ - d*‖ + K q^(K-1) L_θ‖x₀ - x*‖, with T_θ = -ηx, so that L_θ = η, and L_x = 0."""
    shares = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        T_x, _, x_star, d_star, unrolled = descent(rng, 1.0)
        q, x0 = np.linalg.norm(T_x, 2), 10 * rng.standard_normal(3)
        lip = 0 if broken else 1 / (0.9 + 0.1)
        bounds = [
            q**k * np.linalg.norm(d_star) + k * q ** (k - 1) * lip * np.linalg.norm(x0 - x_star)
            for k in (1, 5, 20, 100)
        ]
        errors = [np.linalg.norm(unrolled(x0, k)[1] - d_star) for k in (1, 5, 20, 100)]
        shares.append(max(np.divide(errors, bounds)))
    with rejects(broken):
        assert np.median(shares) <= 1
    assert broken or max(shares) <= 1
    report_line(f"E-25 largest error over {broken or 'its bound'}: {spread(shares)}")


def test_e25_the_bound_with_jacobians_that_move(report_line):
    """T = tanh(Wx + b): L_x = c‖W‖² and L_θ = c‖W‖, c = 4/√27 the largest slope of tanh'."""
    shares, c = [], 4 / math.sqrt(27)
    for seed in SEEDS:
        W, b, x_star, G, v = equilibrium(seed)
        q, x0 = np.linalg.norm(W, 2), x_star + np.random.default_rng(seed).standard_normal(6)
        d_star = np.linalg.norm(np.stack([fixed_point_jvp(G @ W, G, e) for e in np.eye(6)]), 2)
        exact, far = fixed_point_vjp(G @ W, G, v), np.linalg.norm(x0 - x_star)

        def linearize(x, b, k, W=W):
            slopes = np.diag(1 - np.tanh(W @ x + b) ** 2)
            return slopes @ W, slopes

        for k in (1, 5, 20):
            found = bilevel.unrolled(
                lambda x, b, k, W=W: np.tanh(W @ x + b),
                x0,
                b,
                k,
                linear_loss(v),
                linearize=linearize,
            )
            bound = q**k * d_star + k * q ** (k - 1) * c * q * (q * d_star + 1) * far
            shares.append(np.linalg.norm(found.gradient - exact) / bound / np.linalg.norm(v))
    assert max(shares) <= 1
    report_line(f"E-25 error over its bound, tanh: {spread(shares)}")


def test_e25_the_error_of_the_derivative_may_first_grow(report_line):
    """The longer the step, the more: the curse of unrolling. Not for every start."""
    peaks = {1.0: [], 1.98: []}
    for length, found in peaks.items():
        for seed in SEEDS:
            rng = np.random.default_rng(seed)
            _, _, _, d_star, unrolled = descent(rng, length)
            x0 = 30 * rng.standard_normal(3)
            errors = [np.linalg.norm(unrolled(x0, k)[1] - d_star) for k in (1, 3, 10, 30, 60)]
            found.append(max(errors) / np.linalg.norm(d_star))
    short, long = (np.array(found) for found in peaks.values())
    # At K = 0 the error is 1.
    assert np.sum(short > 1) >= 15
    assert np.sum(long > 1) >= 18
    assert np.sum(long > short) >= 18
    assert np.median(long / short) > 2
    report_line(
        f"E-25 peak of the error, η = 1/L, 1.98/L: {spread(short)}, {spread(long)}; it exceeds the "
        f"start on {np.sum(short > 1)}, {np.sum(long > 1)} of 20; ratio {spread(long / short)}"
    )


# ----------------------------------------------- E-26 to E-28: Neumann's series


@pytest.mark.parametrize("broken", [None, "the bound as printed, q^(K+1)/(1-q)"])
def test_e26_the_tail_of_k_terms(broken):
    """T = x/2 + λ: errors 1 and 0.0625 against 0.5 and 0.03125 printed."""
    q, one = np.array([[0.5]]), np.ones(1)
    exact = fixed_point_jvp(q, np.eye(1), one)
    for terms, error in ((1, 1.0), (5, 0.0625)):
        found = abs(exact - neumann(q, one, terms))[0]
        assert neumann_tail(0.5, terms) == error
        assert found == pytest.approx(error, rel=1e-13)
        with rejects(broken):
            assert found <= (1 + 1e-13) * neumann_tail(0.5, terms + 1 if broken else terms)
    assert (neumann_tail(0.5, 2), neumann_tail(0.5, 6)) == (0.5, 0.03125)


@pytest.mark.parametrize("broken", [None, "unrolling from anywhere called truncated Neumann"])
def test_e27_unrolling_is_neumann_at_the_fixed_point_only(broken):
    """T = 0.6 sin x + λ, λ = 1.2, K = 3."""
    lam, x = np.array([1.2]), np.array([0.0])
    for _ in range(200):
        x = 0.6 * np.sin(x) + lam
    T_x = 0.6 * np.cos(x)[:, None]

    def unrolled(x0: np.ndarray) -> float:
        return bilevel.unrolled(
            lambda x, t, k: 0.6 * np.sin(x) + t,
            x0,
            lam,
            3,
            linear_loss(np.ones(1)),
            linearize=lambda x, t, k: (0.6 * np.cos(x)[:, None], np.eye(1)),
        ).gradient[0]

    series = neumann(T_x, np.ones(1), 3)[0]
    assert unrolled(x) == pytest.approx(series, rel=1e-12)
    assert round(series, 6) == 0.888227
    assert round(fixed_point_jvp(T_x, np.eye(1), np.ones(1))[0], 6) == 0.886359
    away = unrolled(np.array([-2.0]))
    with rejects(broken):
        assert round(away, 6) == (0.888227 if broken else 1.004938)
    # For an affine map with constant derivatives the start does not matter.
    rng = np.random.default_rng(0)
    M, x0 = 0.5 * spectrum(rng, np.ones(3), symmetric=False), rng.standard_normal(3)
    for v in np.eye(3):
        found = bilevel.unrolled(
            lambda x, t, k: M @ x + t,
            x0,
            np.ones(3),
            4,
            linear_loss(v),
            linearize=lambda x, t, k: (M, np.eye(3)),
        )
        np.testing.assert_allclose(found.gradient, neumann(M.T, v, 4), rtol=1e-12)


@pytest.mark.parametrize("broken", [None, "the norm as the condition"])
def test_e28_the_spectral_radius_decides(broken):
    jordan = np.array([[0.5, 10.0], [0.0, 0.5]])
    policy = np.zeros((16, 16))
    policy[:, 0] = 0.9
    for T, norm in ((jordan, 10.02), (policy, 3.60)):
        v = np.linspace(1, 2, len(T))
        exact = fixed_point_jvp(T, np.eye(len(T)), v)
        error = np.linalg.norm(neumann(T, v, 400) - exact) / np.linalg.norm(exact)
        assert round(np.linalg.norm(T, 2), 2) == norm
        with rejects(broken):
            if broken:
                assert np.linalg.norm(T, 2) < 1 or error > 1e-3
            assert error < 1e-12
    # A contraction in the maximum norm, with a factor of 0.9.
    assert np.linalg.norm(policy, np.inf) == pytest.approx(0.9)
    # Radius above one: it does not converge, though many entries are small.
    assert np.linalg.norm(neumann(1.1 * np.eye(2), np.ones(2), 300)) > 1e10


@pytest.mark.parametrize("broken", [None, "a factor below one for any start"])
def test_e28_ista_is_no_contraction_where_columns_outnumber_rows(broken, report_line):
    """m = 5, n = 9: a step keeps distances in the null space; near x*, on its support, it does not.

    The two starts have the same signs and are large, so that both are shifted by the threshold.
    """
    along, restricted = [], []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        A, y = rng.standard_normal((5, 9)), rng.standard_normal(5)
        lam, null = 0.3 * np.abs(A.T @ y).max(), np.linalg.svd(A)[2][-1]
        x = lasso(A, y, lam, rtol=1e-15).x

        def after(start, A=A, y=y, lam=lam):
            step = 1 / np.linalg.norm(A, 2) ** 2
            states = ista(least_squares(A, y), lam * l1(), start, step=step)
            return [next(states).x for _ in range(2)][1]

        far = 30 * np.sign(null)
        along.append(np.linalg.norm(after(far + null) - after(far)))
        S = x != 0
        moved = x + 1e-3 * np.abs(x[S]).min() * S * rng.uniform(-1, 1, 9)
        restricted.append(np.linalg.norm(after(moved) - x) / np.linalg.norm(moved - x))
    with rejects(broken):
        if broken:
            assert min(along) < 1 - 1e-6
        np.testing.assert_allclose(along, 1, rtol=1e-12)
    assert max(restricted) < 0.99
    report_line(
        f"E-28 contraction by a step of ISTA: null space {spread(along)}, on the support of x* "
        f"{spread(restricted)}"
    )


# ----------------------------------------------- E-38: one system, with the transpose


@functools.cache
def equilibrium(seed: int, n: int = 6):
    """x = tanh(Wx + b): the fixed point, GW, G and a vector."""
    rng = np.random.default_rng(seed)
    W, b = rng.standard_normal((n, n)), rng.standard_normal(n)
    W *= 0.9 / np.linalg.norm(W, 2)
    x = np.zeros(n)
    for _ in range(600):
        x = np.tanh(W @ x + b)
    G = np.diag(1 - x**2)
    return W, b, x, G, rng.standard_normal(n)


def fixed_point(W: np.ndarray, b: np.ndarray) -> np.ndarray:
    x = np.zeros(len(b))
    for _ in range(600):
        x = np.tanh(W @ x + b)
    return x


@pytest.mark.parametrize("broken", [None, "the system without the transpose"])
def test_e38_the_adjoint_has_the_transpose(broken, report_line):
    wrong = []
    for seed in SEEDS:
        W, b, _, G, v = equilibrium(seed)
        F_x, F_b = np.eye(6) - G @ W, -G
        J = np.stack(
            [difference(lambda b, W=W: fixed_point(W, b), b, e) for e in np.eye(6)], axis=1
        )
        right = root_vjp(F_x, F_b, v)
        np.testing.assert_allclose(right, J.T @ v, atol=1e-8)
        columns = np.stack([root_jvp(F_x, F_b, e) for e in np.eye(6)], axis=1)
        np.testing.assert_allclose(columns, J, atol=1e-8)
        other = root_vjp(F_x.T, F_b, v)
        wrong.append(np.linalg.norm(other - J.T @ v))
        with rejects(broken):
            np.testing.assert_allclose(other if broken else right, J.T @ v, atol=1e-3)
    report_line(f"E-38 error of the adjoint without the transpose: {spread(wrong)}")


def test_e38_where_the_derivative_is_singular_there_is_none():
    """F = x² - θ at 0: no theorem, and it is said."""
    with pytest.raises(ValueError, match="must be solved"):
        root_vjp(np.zeros((1, 1)), -np.eye(1), np.ones(1))


# ----------------------------------------------- E-39: the norm of the bound


@pytest.mark.parametrize("broken", [None, "the bound in the Euclidean norm"])
def test_e39_the_bound_of_conjugate_gradients_is_in_the_energy_norm(broken):
    values, error = np.array([1.0, 4.034, 6.766]), np.array([2.791, 1.911, 0.784])
    A = np.diag(values)
    states = cg(A, A @ error)
    x = [next(states).x for _ in range(3)][2]
    root = math.sqrt(values[-1] / values[0])
    bound = 2 * ((root - 1) / (root + 1)) ** 2

    def ratio(weights) -> float:
        return math.sqrt(np.sum(weights * (x - error) ** 2) / np.sum(weights * error**2)) / bound

    assert round(ratio(np.ones(3)), 4) == pytest.approx(1.1136, abs=2e-4)
    with rejects(broken):
        assert ratio(np.ones(3) if broken else values) < 1
    assert ratio(np.ones(3)) <= root  # what the other norm costs at most


# ----------------------------------------------- E-40: what the errors do to the gradient


@pytest.mark.parametrize("broken", [None, "a constant that depends on the condition number only"])
def test_e40_the_constant_is_the_norm_of_the_inverse(broken, report_line):
    """The adjoint residual 1e-3: within ‖F_θ‖‖F_x⁻¹‖; scaling F_x keeps κ and changes C."""
    rows = []
    for condition in (10.0, 1e3, 1e5):
        errors, bounds = [], []
        for seed in SEEDS:
            rng = np.random.default_rng(seed)
            F_x = spectrum(rng, np.geomspace(1, 1 / condition, 8), symmetric=False)
            F_theta, grad, u = (rng.standard_normal(s) for s in ((8, 3), 8, 8))
            rho = 1e-3 * np.linalg.norm(grad)
            gap = rho * u / np.linalg.norm(u)
            found = []
            for scale in (1.0, 1e-3):
                M = scale * F_x
                exact, off = (root_vjp(M, F_theta, v) for v in (grad, grad + gap))
                bound = error_bound(
                    0.0,
                    rho,
                    mu=np.linalg.svd(M)[1][-1],
                    adjoint_norm=np.linalg.norm(solve(M.T, grad).x),
                    F_theta_norm=np.linalg.norm(F_theta, 2),
                )
                error = np.linalg.norm(off - exact)
                found.append((error, bound))
                with rejects(broken if scale < 1 and condition == 10 else None):
                    known = rho * np.linalg.norm(F_theta, 2) * np.linalg.cond(M)
                    limit = known if broken and scale < 1 and condition == 10 else bound
                    assert error <= limit * (1 + 1e-9)
            assert found[1][1] == pytest.approx(1000 * found[0][1], rel=1e-6)
            assert found[1][0] == pytest.approx(1000 * found[0][0], rel=1e-6)
            errors.append(found[0][0])
            bounds.append(found[0][1])
        rows.append(f"κ = {condition:g}: {spread(errors)} <= {spread(bounds)}")
    report_line(f"E-40 error of the gradient and its bound: {'; '.join(rows)}")


def test_e40_no_linear_solver_mends_the_inner_error(report_line):
    """With exact adjoints the error follows ‖x̃ - x*‖, decade by decade."""
    ratios = []
    for seed in SEEDS:
        W, _, x, G, v = equilibrium(seed)
        exact = fixed_point_vjp(G @ W, G, v)
        direction = np.random.default_rng(seed).standard_normal(6)
        errors = []
        for size in (1e-2, 1e-3, 1e-5):
            near = np.tanh(np.arctanh(x) + size * direction)
            H = np.diag(1 - near**2)
            errors.append(np.linalg.norm(fixed_point_vjp(H @ W, H, v) - exact) / size)
        ratios.append(errors[0] / errors[2])
        assert errors[1] == pytest.approx(errors[2], rel=0.1)
    assert 0.3 < min(ratios) <= max(ratios) < 3
    report_line(f"E-40 error over inner error, at 1e-2 and at 1e-5, ratio: {spread(ratios)}")


# ----------------------------------------------- E-41: preconditioning


@pytest.mark.parametrize("broken", [None, "symmetry in the Euclidean product"])
def test_e41_the_preconditioned_matrix_is_symmetric_in_another_product(broken):
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        F_x, Pi = (spectrum(rng, np.geomspace(1, c, 7)) for c in (50.0, 20.0))
        product = Pi @ F_x
        weight = np.eye(7) if broken else np.linalg.inv(Pi)
        with rejects(broken):
            np.testing.assert_allclose(weight @ product, (weight @ product).T, atol=1e-10)
        b = rng.standard_normal(7)
        found = run(
            cg(F_x, b, preconditioner=Pi), stop=residual_rule(F_x, b, rtol=1e-9), max_iter=30
        )
        assert found.converged
        # Plain conjugate gradients on the product, with a right-hand side to match, have no claim.
        plain = run(cg(product, Pi @ b), stop=residual_rule(F_x, b, rtol=1e-9), max_iter=30)
        assert not plain.converged


def test_e41_left_preconditioning_watches_another_residual(report_line):
    """GMRES for ΠAx = Πb minimizes ‖Π(b - Ax)‖: small there is not small here."""
    gaps = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        A = spectrum(rng, np.geomspace(1, 30, 40), symmetric=False)
        Pi, b = np.diag(np.geomspace(1, 1e-6, 40)), rng.standard_normal(40)
        left = run(
            gmres(Pi @ A, Pi @ b), stop=residual_rule(Pi @ A, Pi @ b, rtol=1e-3), max_iter=40
        )
        assert left.converged
        gaps.append(np.linalg.norm(b - A @ left.x) / np.linalg.norm(b))
        right = run(gmres(A @ Pi, b), stop=residual_rule(A @ Pi, b, rtol=1e-3), max_iter=45)
        # On the right the residual is the system's own.
        assert np.linalg.norm(b - A @ (Pi @ right.x)) == pytest.approx(
            np.linalg.norm(right.state.r), rel=1e-6, abs=1e-9
        )
    assert min(gaps) > 1e-2
    report_line(f"E-41 true residual where the preconditioned one is 1e-3: {spread(gaps)}")


def test_e41_what_may_not_exist():
    singular_minor = scipy.sparse.csc_array(np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0, 1, 0]]))
    with pytest.raises(ValueError, match="zero pivot"):
        implicit.ilu(singular_minor)


def test_e41_lbfgs_needs_positive_curvature(report_line):
    """s'y > 0: definite. s'y < 0: refused, since the formula all the same is not definite."""
    least, refused = [], []
    for seed in SEEDS:
        s, y = np.random.default_rng(seed).standard_normal((2, 5))
        y = y if s @ y > 0 else -y
        least.append(np.linalg.eigvalsh(lbfgs([(s, y)]).to_dense()).min())
        with pytest.raises(ValueError, match="<s, y> > 0"):
            lbfgs([(s, -y)])
        refused.append(np.linalg.eigvalsh(bfgs(1.0, [(s, -y)], 5)).min())
    assert min(least) > 0 > max(refused)
    report_line(f"E-41 least eigenvalue, s'y > 0: {spread(least)}, s'y < 0: {spread(refused)}")


# ----------------------------------------------- E-42: Hessian-vector products


@pytest.mark.parametrize("n", [5, 50])
def test_e42_forward_over_reverse_needs_one_pass(n):
    """Pure forward mode gives one entry of Hv in a pass: n passes."""
    torch = pytest.importorskip("torch")
    from course_lib.autodiff import hvp

    gen = torch.Generator().manual_seed(n)
    x, v = (torch.randn(n, dtype=torch.float64, generator=gen) for _ in range(2))
    M = torch.randn(n, n, dtype=torch.float64, generator=gen) / n
    passes = [0]

    def f(x):
        passes[0] += 1
        return torch.sin(M @ x).sum() + (x**4).sum()

    product = hvp(f)(x, v)
    assert passes == [1]
    passes[0] = 0

    def entry(e):
        def along(x):
            return torch.func.jvp(f, (x,), (v,))[1]

        return torch.func.jvp(along, (x,), (e,))[1]

    entries = torch.stack([entry(e) for e in torch.eye(n, dtype=torch.float64)])
    assert passes == [n]
    assert float((entries - product).abs().max() / product.abs().max()) < 1e-14


# ----------------------------------------------- E-43: refinement


def refined(condition: float, seed: int, noise: float = 0.0, steps: int = 12):
    rng = np.random.default_rng(seed)
    M = spectrum(rng, np.geomspace(1, 1 / condition, 40), symmetric=False)
    x = rng.standard_normal(40)
    b = M @ x + noise * rng.standard_normal(40)
    states = refine(M, b)
    return M, b, x, [np.linalg.norm(next(states).x - x) / np.linalg.norm(x) for _ in range(steps)]


@pytest.mark.parametrize("broken", [None, "refinement always converges"])
def test_e43_refinement_needs_the_condition_number_of_single_precision(broken, report_line):
    rows = []
    for condition in (1e3, 1e6, 1e9):
        first, last = [], []
        for seed in SEEDS:
            errors = refined(condition, seed)[-1]
            first.append(errors[1])
            last.append(errors[-1])
        rows.append(f"κ = {condition:g}: {spread(first)} to {spread(last)}")
        if condition < 1e8:
            assert max(last) < 1e-15 * condition * 10
            assert np.median(first) > 1e4 * np.median(last)
        else:
            with rejects(broken):
                if broken:
                    assert np.median(last) < np.median(first)
                assert np.median(last) > 10 * np.median(first)
                assert np.sum(np.greater(last, first)) >= 15
                assert min(last) > 1e-3
    report_line(f"E-43 refinement, first and last error: {'; '.join(rows)}")


def test_e43_refinement_does_not_regularize(report_line):
    """Noise in b: refined to the solution of the noisy system; Tikhonov's method is near x."""
    refinement, regularized = [], []
    for seed in SEEDS:
        M, b, x, errors = refined(1e5, seed, noise=1e-2, steps=30)
        refinement.append(errors[-1])
        grid = np.geomspace(1e-8, 1, 30)
        regularized.append(
            min(np.linalg.norm(filters.tikhonov(M, b, lam).x - x) for lam in grid)
            / np.linalg.norm(x)
        )
        states = refine(M, b)
        noisy = [next(states).x for _ in range(30)][-1]
        assert np.linalg.norm(noisy - solve(M, b).x) <= 1e-6 * np.linalg.norm(noisy)
    assert min(refinement) > 10 > 1 > max(regularized)
    report_line(f"E-43 noisy: refined {spread(refinement)}, Tikhonov {spread(regularized)}")


# ----------------------------------------------- E-55: Lavrentiev and Tikhonov


@pytest.mark.parametrize("broken", [None, "the shift called regularization for any matrix"])
def test_e55_the_shift_may_make_a_good_matrix_singular(broken):
    F_x = np.diag([-0.1, 1.0])
    shifted = lavrentiev(F_x, 0.1).to_dense()
    assert np.linalg.cond(F_x) == pytest.approx(10)
    with rejects(broken):
        found = solve(shifted, np.ones(2))
        assert found.converged == bool(broken)
        assert (found.condition < 1e3) == bool(broken)
    normal = lavrentiev(F_x.T @ F_x, 0.01).to_dense()
    assert round(np.linalg.cond(normal), 1) == 50.5
    assert solve(normal, np.ones(2)).converged


def test_e55_the_bound_and_the_bias():
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        B, S = rng.standard_normal((6, 3)), rng.standard_normal((6, 6))
        F_x = B @ B.T + S - S.T  # not symmetric; semidefinite
        for omega in (1e-3, 0.1, 10.0):
            inverse = np.linalg.inv(lavrentiev(F_x, omega).to_dense())
            assert np.linalg.norm(inverse, 2) <= (1 + 1e-9) / omega
    # No more than that: a skew matrix with a null space attains it.
    skew = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert np.linalg.norm(np.linalg.inv(lavrentiev(skew, 0.1).to_dense()), 2) == pytest.approx(10)
    # The small modes are lost: (0.9999, 1e-4) instead of (1, 1).
    M = np.diag([1.0, 1e-8])
    x = solve(lavrentiev(M, 1e-4), M @ np.ones(2)).x
    np.testing.assert_allclose(x, [0.9999, 1e-4], rtol=2e-4)
    np.testing.assert_allclose(solve(M, M @ np.ones(2)).x, [1, 1], rtol=1e-8)


# ----------------------------------------------- E-56: the spectral radius


def rayleigh(T: np.ndarray, v: np.ndarray, steps: int) -> float:
    """What power iteration says: ⟨v, Tv⟩ after so many steps."""
    for _ in range(steps):
        v = T @ v
        v = v / np.linalg.norm(v)
    return float(v @ (T @ v))


def by_arnoldi(T: np.ndarray, v: np.ndarray, steps: int) -> float:
    """The largest Ritz value in modulus, on the basis that GMRES has built."""
    state = run(gmres(T, v), max_iter=steps).state
    Q = np.stack(state.basis, axis=1)
    return float(np.abs(np.linalg.eigvals(Q.T @ T @ Q)).max())


def by_growth(T: np.ndarray, v: np.ndarray, steps: int) -> float:
    """‖T^2k v‖/‖T^k v‖ to the power 1/k, from differences of Neumann sums."""
    near, far = (
        np.linalg.norm(neumann(T, v, k + 1) - neumann(T, v, k)) for k in (steps, 2 * steps)
    )
    return float((far / near) ** (1 / steps))


@pytest.mark.parametrize("broken", [None, "Rayleigh quotients of power iteration"])
def test_e56_complex_pairs_hide_from_power_iteration(broken):
    quarter = 0.9 * np.array([[0.0, -1.0], [1.0, 0.0]])
    v = np.array([1.0, 0.3])
    power, arnoldi, growth = (
        rayleigh(quarter, v, 50),
        by_arnoldi(quarter, v, 2),
        by_growth(quarter, v, 50),
    )
    assert abs(power) < 1e-14
    assert arnoldi == pytest.approx(0.9, rel=1e-12)
    assert growth == pytest.approx(0.9, rel=1e-8)
    with rejects(broken):
        assert (abs(power) if broken else arnoldi) == pytest.approx(0.9, rel=0.1)


def test_e56_over_seeds(report_line):
    """A dominant pair 0.9 e^(±it), the others smaller; 30 rows."""
    found = {"power iteration": [], "Arnoldi, 12 steps": [], "growth, 60 steps": []}
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        angle = rng.uniform(0.3 * np.pi, 0.7 * np.pi)
        D = np.diag(rng.uniform(-0.5, 0.5, 30))
        D[:2, :2] = 0.9 * np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
        S, v = np.eye(30) + 0.1 * rng.standard_normal((30, 30)), rng.standard_normal(30)
        T = S @ D @ np.linalg.inv(S)
        found["power iteration"].append(abs(rayleigh(T, v, 200)))
        found["Arnoldi, 12 steps"].append(by_arnoldi(T, v, 12))
        found["growth, 60 steps"].append(by_growth(T, v, 60))
    assert np.median(np.abs(np.array(found["power iteration"]) - 0.9)) > 0.2
    np.testing.assert_allclose(found["Arnoldi, 12 steps"], 0.9, atol=0.02)
    np.testing.assert_allclose(found["growth, 60 steps"], 0.9, atol=0.03)
    rows = (f"{name} {spread(values)}" for name, values in found.items())
    report_line(f"E-56 spectral radius 0.9: {', '.join(rows)}")


@pytest.mark.parametrize("broken", [None, "a small relative change as the sign of the end"])
def test_e56_the_relative_change_of_gradients_does_not_fall(broken, report_line):
    """‖g_k - g_(k-1)‖/‖g_(k-1)‖ stays as g falls; with a short step it is small from the start."""
    fallen, change, waiting = [], [], []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        f = least_squares(spectrum(rng, np.geomspace(1, 0.1**0.5, 20)), rng.standard_normal(20))
        for step, count in ((1.0, 200), (1e-3, 20)):
            states = gradient_descent(f, np.zeros(20), step=step)
            g = [f.gradient(next(states).x) for _ in range(count)]
            last = np.linalg.norm(g[-1] - g[-2]) / np.linalg.norm(g[-2])
            share = np.linalg.norm(g[-1]) / np.linalg.norm(g[0])
            if step == 1:
                fallen.append(share)
                change.append(last)
            else:
                waiting.append(share)
                assert last < 1e-3
    assert max(fallen) < 1e-8
    assert min(waiting) > 0.9
    with rejects(broken):
        if broken:
            assert max(change) < 1e-2
        assert min(change) > 0.09
    report_line(
        f"E-56 relative change {spread(change)} where the gradient fell to {spread(fallen)}; "
        f"below 1e-3 where it stands at {spread(waiting)}"
    )


# ----------------------------------------------- E-65: what differences measure


@functools.cache
def shifted(seed: int, n: int):
    """Hx + e^θ x = b for n unknowns: H, b, the outer loss, and θ to the solution and dJ/dθ."""
    rng = np.random.default_rng(seed)
    H = spectrum(rng, np.geomspace(1, 0.5 / n, n))
    H, (b, z) = (H + H.T) / 2, rng.standard_normal((2, n))

    def exact(t: float) -> tuple[np.ndarray, np.ndarray]:
        M = H + math.exp(t) * np.eye(n)
        x = solve(M, b).x
        return x, root_vjp(M, math.exp(t) * x[:, None], x - z)

    return H, b, least_squares(None, z), exact


@pytest.mark.parametrize("broken", [None, "differences of K steps judge the implicit derivative"])
def test_e65_differences_of_k_steps_measure_the_unrolled_derivative(broken, report_line):
    """They agree with the unrolled one; the implicit one is off by about the inner error."""
    rows = []
    for steps in (10, 40):
        off, inner = [], []
        for seed in SEEDS:
            H, b, outer, exact = shifted(seed, 10)
            x, right = exact(-3)

            def found(t, last=None, H=H, b=b, outer=outer, steps=steps):
                return bilevel.unrolled(
                    lambda w, t, k: w - 0.9 * (H @ w + np.exp(t[0]) * w - b),
                    0 * b,
                    t,
                    steps,
                    outer,
                    linearize=lambda w, t, k: (
                        np.eye(10) - 0.9 * (H + np.exp(t[0]) * np.eye(10)),
                        -0.9 * np.exp(t[0]) * w[:, None],
                    ),
                    last=last,
                )

            theta = np.array([-3.0])
            ways = {"unrolled": lambda t, f=found: f(t).gradient, "implicit": right}
            table = checks.gradients(lambda t, f=found: f(t, 1).value, theta, ways)
            assert table.verdicts["unrolled"] == "agrees"
            with rejects(broken):
                assert table.verdicts["implicit"] == ("agrees" if broken else "differs")
            off.append(table.value)
            inner.append(np.linalg.norm(found(theta, 1).x - x) / np.linalg.norm(x))
        ratios = np.divide(off, inner)
        assert 1 < min(ratios) <= max(ratios) < 50
        rows.append(f"K = {steps}: {spread(off)}, inner error {spread(inner)}")
    report_line(f"E-65 implicit derivative against differences: {'; '.join(rows)}")


def stopped(seed: int, tol: float, t: float) -> tuple[float, int]:
    """The outer loss with conjugate gradients stopped at a tolerance, and their steps."""
    H, b, outer, _ = shifted(seed, 30)
    M = H + math.exp(t) * np.eye(30)
    found = run(cg(M, b), stop=residual_rule(M, b, rtol=tol), max_iter=200)
    return float(outer(found.x)), found.iterations


@pytest.mark.parametrize("broken", [None, "differences are exact whatever the tolerance"])
def test_e65_the_plateau_follows_the_inner_tolerance(broken, report_line):
    """Conjugate gradients stopped at 1e-3, 1e-6, 1e-12: the error of the best differences."""
    errors = {1e-3: [], 1e-6: [], 1e-12: []}
    for tol, found in errors.items():
        for seed in SEEDS:
            right = shifted(seed, 30)[3](-3)[1]
            table = checks.gradients(
                lambda t, s=seed, tol=tol: stopped(s, tol, float(t[0]))[0],
                np.array([-3.0]),
                {"implicit": right},
            )
            found.append(abs(table.differences[table.best, 0] - right[0]) / abs(right[0]))
    with rejects(broken):
        if broken:
            assert max(errors[1e-3]) < 1e-8
        low, middle, high = (np.median(found) for found in errors.values())
        assert low > 100 * middle > 1e4 * high
    assert (np.diff([*errors.values()], axis=0) < 0).all()
    assert max(errors[1e-12]) < 1e-7
    report_line(f"E-65 plateau, tol {(*errors,)}: {', '.join(map(spread, errors.values()))}")


def test_e65_where_the_count_jumps_the_error_is_that_over_h(report_line):
    """Tolerance 1e-3, h = 1e-4 and 1e-6 across a θ where one step more is needed."""
    errors = []
    for seed in SEEDS:
        low, high = -3.0, -2.9
        first = stopped(seed, 1e-3, low)[1]
        while stopped(seed, 1e-3, high)[1] == first:
            low, high = high, high + 0.1
        for _ in range(40):
            middle = (low + high) / 2
            same = stopped(seed, 1e-3, middle)[1] == first
            low, high = (middle, high) if same else (low, middle)
        right = shifted(seed, 30)[3](low)[1][0]
        sides = [
            (stopped(seed, 1e-3, low + h)[0] - stopped(seed, 1e-3, low - h)[0]) / (2 * h)
            for h in (1e-4, 1e-6)
        ]
        errors.append(np.abs(np.array(sides) - right) / abs(right))
    wide, narrow = np.array(errors).T
    np.testing.assert_allclose(narrow / wide, 100, rtol=0.1)
    assert min(narrow) > 0.1
    report_line(f"E-65 relative error at a jump, h = 1e-4, 1e-6: {spread(wide)}, {spread(narrow)}")


# ----------------------------------------------- E-66: Sylvester's equation


@pytest.mark.parametrize("broken", [None, "vec as the stacking of rows"])
def test_e66_vec_stacks_columns(broken, report_line):
    """(I ⊗ A + Bᵀ ⊗ I) vec X = vec C, with columns; with rows the equation is another one."""
    residuals = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        A, B, C = (rng.standard_normal((3, 3)) + 3 * np.eye(3) for _ in range(3))
        kron = np.kron(np.eye(3), A) + np.kron(B.T, np.eye(3))
        X = sylvester(A, B, C)
        by_rows = np.linalg.solve(kron, C.ravel()).reshape(3, 3)
        residuals.append(np.linalg.norm(A @ by_rows + by_rows @ B - C))
        order = "C" if broken else "F"
        with rejects(broken):
            np.testing.assert_allclose(kron @ X.ravel(order), C.ravel(order), atol=1e-8)
    assert min(residuals) > 1e-2
    report_line(f"E-66 residual with stacked rows: {spread(residuals)}")


def test_e66_unique_if_no_sum_of_eigenvalues_is_zero():
    A, B = np.diag([1.0, 2.0]), np.diag([-1.0, 5.0])
    assert np.linalg.det(np.kron(np.eye(2), A) + np.kron(B.T, np.eye(2))) == 0
    with pytest.raises(ValueError, match="no sum of an eigenvalue"):
        sylvester(A, B, np.ones((2, 2)))
    # Both singular, or one of them indefinite: no matter, as long as no sum is zero.
    X = sylvester(np.diag([0.0, 2.0]), np.diag([-1.0, 5.0]), np.ones((2, 2)))
    np.testing.assert_allclose(X, [[-1, 0.2], [1, 1 / 7]])


@pytest.mark.parametrize("broken", [None, "the operator transposed in the derivative"])
def test_e66_the_derivative_has_the_same_operator(broken):
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        A, B = (
            rng.standard_normal((4, 4)) + 4 * np.eye(4),
            rng.standard_normal((3, 3)) + 4 * np.eye(3),
        )
        C, V = rng.standard_normal((4, 3)), rng.standard_normal((4, 3))
        dA, dB, dC = (rng.standard_normal(M.shape) for M in (A, B, C))
        X = sylvester(A, B, C)
        slow = difference(
            lambda t, M=(A, B, C), d=(dA, dB, dC): sylvester(
                *(m + t * e for m, e in zip(M, d, strict=True))
            ),
            np.array(0.0),
            np.array(1.0),
            1e-4,
        )
        fast = sylvester_jvp(A.T if broken else A, B.T if broken else B, X, dA, dB, dC)
        with rejects(broken):
            np.testing.assert_allclose(fast, slow, atol=1e-9)
        to_A, to_B, to_C = sylvester_vjp(A, B, X, V)
        reverse = np.sum(to_A * dA) + np.sum(to_B * dB) + np.sum(to_C * dC)
        assert reverse == pytest.approx(np.sum(V * slow), abs=1e-8)


def test_e66_never_the_kronecker_matrix(report_line):
    rng = np.random.default_rng(0)
    n = 40
    A, B, C = (rng.standard_normal((n, n)) + 10 * np.eye(n) for _ in range(3))
    begin = time.process_time()
    X = sylvester(A, B, C)
    schur = time.process_time() - begin
    begin = time.process_time()
    kron = np.kron(np.eye(n), A) + np.kron(B.T, np.eye(n))
    slow = np.linalg.solve(kron, C.ravel(order="F")).reshape(n, n, order="F")
    dense = time.process_time() - begin
    np.testing.assert_allclose(X, slow, atol=1e-10)
    assert kron.size == n**4
    assert schur < dense
    report_line(f"E-66 n = {n}: Bartels-Stewart {schur:.3f} s, Kronecker {dense:.3f} s")


# ----------------------------------------------- 17.1 and E-57: a layer that is a fixed point


def test_17_1_the_numbers():
    W, b = np.array([[0.3, 0.5], [-0.4, 0.2]]), np.array([0.1, -0.2])
    x = fixed_point(W, b)
    G = np.diag(1 - x**2)
    assert round(np.linalg.norm(W, 2), 6) == 0.585492
    np.testing.assert_allclose(x, [-0.023449392869, -0.232837748995], atol=5e-13)
    columns = [fixed_point_jvp(G @ W, G, e) for e in np.eye(2)]
    np.testing.assert_allclose(
        np.stack(columns, axis=1),
        [[1.070852953621, 0.624534435695], [-0.499627548556, 0.875035418380]],
        atol=5e-13,
    )
    adjoint = fixed_point_vjp(G @ W, G, np.ones(2))
    np.testing.assert_allclose(adjoint, [0.571225405065, 1.499569854075], atol=5e-13)
    # The same from the root, F_x = I - GW and F_b = -G.
    np.testing.assert_allclose(root_vjp(np.eye(2) - G @ W, -G, np.ones(2)), adjoint)
    # Existence needs no contraction, uniqueness does: w = 2, b = 0 has three fixed points.
    roots = [run_scalar(2.0, start) for start in (-1.0, 0.0, 1.0)]
    assert roots[0] == pytest.approx(-roots[2])
    assert roots[0] < roots[1] == 0 < roots[2]


def run_scalar(w: float, x: float) -> float:
    for _ in range(200):
        x = math.tanh(w * x)
    return x


@pytest.mark.parametrize("kind", ["any W", "skew W"])
@pytest.mark.parametrize("broken", [None, "conjugate gradients for a matrix that is not symmetric"])
def test_17_1_which_methods_are_valid(broken, kind, report_line):
    """E-57, n = 50, ‖W‖ = 0.95: GMRES, BiCGSTAB and the normal equations solve it, CG departs."""
    residuals = {name: [] for name in ("cg", "gmres", "bicgstab", "normal equations")}
    steps = {"gmres": [], "normal equations": []}
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        W = rng.standard_normal((50, 50))
        W = W - W.T if kind == "skew W" else W
        W *= 0.95 / np.linalg.norm(W, 2)
        x = fixed_point(W, rng.standard_normal(50))
        G = np.diag(1 - x**2)
        A, v = np.eye(50) - G @ W, rng.standard_normal(50)
        stop, size = residual_rule(A, v, rtol=1e-12), np.linalg.norm(v)
        states = [state.x for _, state in zip(range(201), cg(A, v), strict=False)]
        residuals["cg"].append([np.linalg.norm(v - A @ states[k]) / size for k in (10, 50, 200)])
        runs = {
            "gmres": run(gmres(A, v), stop=stop, max_iter=50),
            "bicgstab": run(bicgstab(A, v), stop=stop, max_iter=400),
            "normal equations": run(cgls(A, v), stop=stop, max_iter=400),
        }
        for name, found in runs.items():
            residuals[name].append(np.linalg.norm(v - A @ found.x) / size)
            if name in steps:
                steps[name].append(found.iterations)
        with rejects(broken):
            assert (states[-1] if broken else runs["gmres"].x) == pytest.approx(
                solve(A, v).x, abs=1e-8
            )
    early, middle, late = np.array(residuals.pop("cg")).T
    assert max(map(max, residuals.values())) < 2e-12
    assert (early < middle).all()
    assert (middle < late).all()
    assert min(late) > (1 if kind == "skew W" else 0.01)
    rows = (f"{name} {spread(values)}" for name, values in residuals.items())
    report_line(
        f"17.1 {kind}, residuals: cg at 10, 50, 200 {', '.join(map(spread, (early, middle, late)))}"
        f", {', '.join(rows)}; steps {', '.join(map(spread, steps.values()))}"
    )


def test_17_1_a_symmetric_weight_allows_conjugate_gradients():
    """E-57: (I - GW)⁻¹G = G^½(I - G^½WG^½)⁻¹G^½, and the matrix in the middle is definite."""
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        W = spectrum(rng, rng.uniform(-0.9, 0.9, 8))
        W = (W + W.T) / 2
        x = fixed_point(W, rng.standard_normal(8))
        G, root, v = np.diag(1 - x**2), np.diag(np.sqrt(1 - x**2)), rng.standard_normal(8)
        middle = np.eye(8) - root @ W @ root
        b = root @ v
        found = run(cg(middle, b), stop=residual_rule(middle, b, rtol=1e-12), max_iter=50)
        assert found.converged
        np.testing.assert_allclose(root @ found.x, fixed_point_jvp(G @ W, G, v), atol=1e-9)


# ----------------------------------------------- 17.2 and E-58: L-BFGS as a preconditioner


def bfgs(start: float, pairs, n: int) -> np.ndarray:
    """The inverse Hessian of BFGS, by its rank-two updates, from a multiple of the identity."""
    Pi = start * np.eye(n)
    for s, y in pairs:
        V = np.eye(n) - np.outer(s, y) / (s @ y)
        Pi = V @ Pi @ V.T + np.outer(s, s) / (s @ y)
    return Pi


def test_17_2_lbfgs_is_bfgs_while_all_pairs_are_kept(report_line):
    """E-58: to rounding; with fewer pairs it is BFGS begun anew from the last ones."""
    errors, shorter = [], []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        H = spectrum(rng, np.geomspace(1, 100, 12))
        pairs = [(s, H @ s) for s in rng.standard_normal((6, 12))]
        start = pairs[-1][0] @ pairs[-1][1] / (pairs[-1][1] @ pairs[-1][1])
        full, kept = bfgs(start, pairs, 12), lbfgs(pairs).to_dense()
        short, size = lbfgs(pairs[-3:]).to_dense(), np.abs(full).max()
        errors.append(np.abs(kept - full).max() / size)
        errors.append(np.abs(short - bfgs(start, pairs[-3:], 12)).max() / size)
        shorter.append(np.abs(short - full).max() / size)
    assert max(errors) < 5e-15
    assert min(shorter) > 1e-3
    report_line(f"17.2 L-BFGS against BFGS: {spread(errors)}; three pairs of six {spread(shorter)}")


@pytest.mark.parametrize("broken", [None, "pairs that are not conjugate"])
def test_17_2_conjugate_pairs_give_the_inverse(broken, report_line):
    """E-58: n directions of conjugate gradients."""
    errors = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        H, b = spectrum(rng, np.linspace(1, 10, 8)), rng.standard_normal(8)
        H = (H + H.T) / 2
        directions = [state.p for _, state in zip(range(8), cg(H, b), strict=False)]
        if broken:
            directions = rng.standard_normal((8, 8))
        Pi = lbfgs([(p, H @ p) for p in directions]).to_dense()
        errors.append(np.abs(Pi @ H - np.eye(8)).max())
        with rejects(broken):
            assert errors[-1] < 1e-13
    report_line(f"17.2 ΠH - I with {broken or 'n conjugate pairs'}: {spread(errors)}")


def test_17_2_the_condition_number_of_the_product(report_line):
    """E-58, n = 60, κ(H) = 1000, random pairs: more of them help, slowly."""
    counts = (1, 5, 20, 60)
    table = {m: [] for m in counts}
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        H = spectrum(rng, np.geomspace(1, 1000, 60))
        H = (H + H.T) / 2
        steps = rng.standard_normal((60, 60))
        root = np.linalg.cholesky(H)
        for m in counts:
            Pi = lbfgs([(s, H @ s) for s in steps[:m]]).to_dense()
            values = np.linalg.eigvalsh(root.T @ Pi @ root)
            assert values[0] > 0
            table[m].append(values[-1] / values[0])
    medians = [np.median(table[m]) for m in counts]
    assert 1000 > medians[0] > medians[1] > medians[2] > medians[3] > 10
    report_line(f"17.2 κ(ΠH), m = {counts}: {', '.join(spread(v) for v in table.values())}")


class Counted(np.ndarray):
    """An array that counts multiplications of numbers, entry by entry."""

    total = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        plain = [np.asarray(x) for x in inputs]
        if ufunc is np.multiply and max(x.ndim for x in plain):
            Counted.total += max(x.size for x in plain)
        if ufunc is np.matmul:
            Counted.total += plain[0].size
        return np.asarray(getattr(ufunc, method)(*plain, **kwargs)).view(Counted)


@pytest.mark.parametrize("m", [1, 3, 10])
def test_17_2_the_number_of_operations(m):
    """E-58: 4mn multiplications for m pairs and n for the first scaling."""
    rng, n = np.random.default_rng(m), 200
    pairs = [(s, s * np.linspace(1, 2, n)) for s in rng.standard_normal((m, n))]
    Pi, v = lbfgs(pairs), rng.standard_normal(n).view(Counted)
    Counted.total = 0
    found = Pi @ v
    assert Counted.total == 4 * m * n + n
    np.testing.assert_allclose(np.asarray(found), Pi @ np.asarray(v))


@pytest.mark.parametrize("m", [1, 3, 10])
def test_17_2_the_storage(m):
    """E-58: 2mn numbers are held, and a product needs a few vectors more."""
    n, vector = 20_000, 8 * 20_000
    weights, v = np.linspace(1, 2, n), np.ones(n)
    rng = np.random.default_rng(m)
    tracemalloc.start()
    Pi = lbfgs([(s, s * weights) for s in (rng.standard_normal(n) for _ in range(m))])
    held = tracemalloc.get_traced_memory()[0]
    _ = Pi @ v
    more = tracemalloc.get_traced_memory()[1] - held
    tracemalloc.stop()
    assert held == pytest.approx(2 * m * vector, rel=0.05)
    assert more < 5 * vector


# ----------------------------------------------- 17.3 and E-59: ridge regression of a matrix


X3 = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
Y3 = np.array([[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]])


def ridge(X: np.ndarray, Y: np.ndarray, lam: float) -> np.ndarray:
    """M(XXᵀ) + λM = YXᵀ, as an equation of Sylvester's."""
    return sylvester(lam * np.eye(len(Y)), X @ X.T, Y @ X.T)


def test_17_3_the_numbers():
    """E-59: M does not depend on θ, so the gradient is that of ‖Mθ - b‖² alone."""
    M = ridge(X3, Y3, 1.0)
    np.testing.assert_allclose(M, [[11 / 14, 8 / 7], [-3 / 7, 2 / 7]], rtol=1e-13)
    theta, b = np.ones(2), np.array([1.0, 0.0])
    # Twice the functional of the library.
    gradient = 2 * least_squares(M, b).gradient(theta)
    np.testing.assert_allclose(gradient, [155 / 98, 100 / 49], rtol=1e-13)
    np.testing.assert_allclose(gradient, [1.581632653061, 2.040816326531], atol=5e-13)
    best = solve(M.T @ M, M.T @ b).x
    assert np.linalg.norm(least_squares(M, b).gradient(best)) < 1e-12


@pytest.mark.parametrize("broken", [None, "the sign of the hypergradient"])
def test_17_3_the_hypergradient_by_lambda(broken, report_line):
    """E-59: J' = -⟨(M X_v - Y_v)X_vᵀ, M(XXᵀ + λI)⁻¹⟩, by Sylvester's adjoint and differences."""
    errors = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        X, Y, Xv, Yv = (rng.standard_normal((3, k)) for k in (7, 7, 5, 5))
        lam = np.array(0.7)

        def loss(lam, X=X, Y=Y, Xv=Xv, Yv=Yv):
            return 0.5 * np.linalg.norm(ridge(X, Y, float(lam)) @ Xv - Yv) ** 2

        M = ridge(X, Y, 0.7)
        slope = (M @ Xv - Yv) @ Xv.T
        to_A, _, _ = sylvester_vjp(0.7 * np.eye(3), X @ X.T, M, slope)
        by_adjoint = np.trace(to_A)
        inverse = np.linalg.inv(X @ X.T + 0.7 * np.eye(3))
        formula = (1 if broken else -1) * np.sum(slope * (M @ inverse))
        slow = difference(loss, lam, np.array(1.0), 1e-4)
        assert by_adjoint == pytest.approx(slow, abs=1e-9)
        errors.append(abs(formula - slow))
        with rejects(broken):
            assert errors[-1] < 1e-9
    report_line(f"17.3 {broken or 'formula'} by λ against differences: {spread(errors)}")


def test_17_3_data_that_depend_on_theta(report_line):
    """E-59: dM = (dY Xᵀ + Y dXᵀ - M(dX Xᵀ + X dXᵀ))(XXᵀ + λI)⁻¹; Sylvester's equation with Q."""
    errors, residuals = [], []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        X, Y, dX, dY = (rng.standard_normal((3, 6)) for _ in range(4))
        M, zero = ridge(X, Y, 0.5), np.zeros((3, 3))
        by_sylvester = sylvester_jvp(
            0.5 * np.eye(3), X @ X.T, M, zero, dX @ X.T + X @ dX.T, dY @ X.T + Y @ dX.T
        )
        formula = dY @ X.T + Y @ dX.T - M @ (dX @ X.T + X @ dX.T)
        formula = formula @ np.linalg.inv(X @ X.T + 0.5 * np.eye(3))
        np.testing.assert_allclose(by_sylvester, formula, atol=1e-11)
        slow = difference(
            lambda t, X=X, Y=Y, dX=dX, dY=dY: ridge(X + t * dX, Y + t * dY, 0.5),
            np.array(0.0),
            np.array(1.0),
            1e-4,
        )
        errors.append(np.abs(by_sylvester - slow).max())
        # The penalty tr(MᵀQM) in the place of λ‖M‖²: QM + M XXᵀ = YXᵀ is its optimality.
        B = rng.standard_normal((3, 3))
        Q = B @ B.T + np.eye(3)
        best = sylvester(Q, X @ X.T, Y @ X.T)
        residuals.append(np.abs((best @ X - Y) @ X.T + Q @ best).max())
    assert max(errors) < 1e-8
    assert max(residuals) < 1e-11
    report_line(f"17.3 dM against differences: {spread(errors)}; with Q {spread(residuals)}")


# ----------------------------------------------- 17.4 and E-60: which method for which matrix


def free(M: np.ndarray) -> LinearOperator:
    return LinearOperator(lambda v: M @ v, lambda v: M.T @ v, (len(M),), (len(M),), like=M)


def five_matrices() -> dict:
    rng = np.random.default_rng(17)
    skew = rng.standard_normal((120, 120))
    skew = skew - skew.T
    n = 20_000
    grid = scipy.sparse.diags_array([-1.0, 4.0, -1.0], offsets=[-1, 0, 1], shape=(n, n)).tocsr()
    return {
        "definite": (free(spectrum(rng, np.geomspace(1, 100, 120))), "cg"),
        "indefinite": (free(spectrum(rng, np.r_[-np.linspace(1, 5, 60), np.ones(60)])), "minres"),
        "skew-dominant": (free(np.eye(120) + 3 * skew / np.linalg.norm(skew, 2)), "bicgstab"),
        "ill-conditioned, small": (
            spectrum(rng, np.geomspace(1, 1e-8, 60), symmetric=False),
            "lu",
        ),
        "large, well-conditioned": (matrix(grid), "cg"),
    }


@pytest.mark.parametrize("name", five_matrices())
def test_17_4_five_matrices(name, report_line):
    A, method = five_matrices()[name]
    b = np.random.default_rng(4).standard_normal(A.shape[0] if method == "lu" else A.in_shape)
    found = solve(A, b, rtol=1e-8)
    assert found.converged, found.reason
    assert found.method == method
    true = np.linalg.norm(b - A @ found.x) / np.linalg.norm(b)
    assert true <= 1e-8
    report_line(
        f"17.4 {name}: {found.reason}, {found.iterations} steps, predicted {found.predicted}"
    )


@pytest.mark.parametrize("broken", [None, "direct only if κ < 100 and n < 1000"])
def test_17_4_a_small_ill_conditioned_system_is_factored(broken, report_line):
    """E-60, n = 100, κ = 1e8: an iteration stops at its tolerance, far from x."""
    direct, iterated = [], []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        A = spectrum(rng, np.geomspace(1, 1e-8, 100))
        A, x = (A + A.T) / 2, rng.standard_normal(100)
        b = A @ x
        factored = solve(A, b, rtol=1e-8)
        by_steps = solve(A, b, rtol=1e-8, direct=0, max_iter=2000)
        assert factored.method == "cholesky"
        assert factored.condition > 1e8 > by_steps.condition
        direct.append(np.linalg.norm(factored.x - x) / np.linalg.norm(x))
        iterated.append(np.linalg.norm(by_steps.x - x) / np.linalg.norm(x))
    with rejects(broken):
        assert max(iterated if broken else direct) < 1e-6
    assert min(iterated) > 1e-3
    report_line(f"17.4 error at κ = 1e8: factored {spread(direct)}, iterated {spread(iterated)}")


def test_17_4_a_large_well_conditioned_system_is_iterated(report_line):
    """E-60, n = 800 without entries, κ = 50: as many steps as predicted, within a tenth."""
    steps, predicted = [], []
    for seed in SEEDS:
        b = np.random.default_rng(seed).standard_normal(800)
        found = solve(diagonal(np.geomspace(1, 50, 800)), b, rtol=1e-8)
        assert found.method == "cg"
        assert found.converged, found.reason
        steps.append(found.iterations)
        predicted.append(found.predicted)
    np.testing.assert_allclose(predicted, steps, rtol=0.1)
    assert max(steps) < 100
    report_line(f"17.4 steps at κ = 50: {spread(steps)}, predicted {spread(predicted)}")


def test_17_4_ritz_values_underestimate_the_condition_number(report_line):
    """E-60, true value 1e6: less after 10, 30 and 60 steps, though more with every step."""
    root, found = np.diag(np.geomspace(1, 1e-3, 200)), []
    for seed in SEEDS:
        y = np.random.default_rng(seed).standard_normal(200)
        values = [filters.ritz_values(root, y, k) for k in (10, 30, 60)]
        found.append([v[0] / v[-1] for v in values])
    found = np.array(found)
    assert (np.diff(found, axis=1) > 0).all()
    assert found[:, -1].max() < 1e5
    rows = ", ".join(map(spread, found.T))
    report_line(f"17.4 Ritz values where κ = 1e6, after 10, 30, 60 steps: {rows}")


def test_17_4_tolerance_from_the_accuracy_of_the_gradient(report_line):
    """E-60: tol <= tol_J/(‖F_θ‖‖F_x⁻¹‖‖∇f‖) keeps the promise, for all seeds."""
    errors = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        F_x = spectrum(rng, np.geomspace(1, 1e-3, 40), symmetric=False)
        F_theta, v = rng.standard_normal((40, 4)), rng.standard_normal(40)
        constant = np.linalg.norm(F_theta, 2) * 1e3 * np.linalg.norm(v)
        rtol = 1e-4 / constant
        found = root_vjp(
            free(F_x), matrix(F_theta), v, solver=lambda A, b, r=rtol: solve(A, b, rtol=r)
        )
        exact = -F_theta.T @ np.linalg.solve(F_x.T, v)
        errors.append(np.linalg.norm(found - exact))
    assert max(errors) <= 1e-4
    report_line(f"17.4 error of the gradient where 1e-4 is promised: {spread(errors)}")


def test_17_4_gershgorin_needs_entries():
    """E-60: the products of an operator are all that there is: no matrix is asked for."""
    weights = np.linspace(1, 3, 50)
    assert diagonal(weights).matrix is None
    assert solve(diagonal(weights), np.ones(50)).method == "cg"


# ----------------------------------------------- 17.5 and E-61: normalization of a batch


def jacobian(x: np.ndarray, eps: float = 0.0) -> np.ndarray:
    y, divisor = batch_norm(x, eps=eps)
    return np.stack([batch_norm_vjp(y, divisor, e) for e in np.eye(len(x))])


@pytest.mark.parametrize("broken", [None, "the mean left out"])
def test_17_5_the_jacobian(broken, report_line):
    """E-61: (I - 11ᵀ/n - yyᵀ/n)/s: symmetric, of rank n - 2, with the norm 1/s."""
    errors = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        n = 3 + seed % 6
        x = rng.standard_normal(n)
        y, s = batch_norm(x)
        formula = (np.eye(n) - (0 if broken else 1) / n - np.outer(y, y) / n) / s
        J = jacobian(x)
        slow = np.stack([difference(lambda x: batch_norm(x)[0], x, e) for e in np.eye(n)], axis=1)
        errors.append(np.abs(J - slow).max())
        with rejects(broken):
            np.testing.assert_allclose(J, formula, atol=1e-12)
        np.testing.assert_allclose(J, J.T, atol=1e-13 / s)
        assert np.linalg.matrix_rank(J, tol=1e-10 / s) == n - 2
        assert np.linalg.norm(J, 2) == pytest.approx(1 / s)
        slow = np.stack(
            [difference(lambda x: batch_norm(x, eps=0.01)[0], x, e) for e in np.eye(n)], axis=1
        )
        np.testing.assert_allclose(jacobian(x, 0.01), slow, atol=1e-9)
    assert max(errors) < 2e-8
    report_line(f"17.5 Jacobian against differences: {spread(errors)}")


def test_17_5_the_implicit_equations(report_line):
    """E-61, F(x, (y, x̄, s)) = (sy + x̄1 - x, 1ᵀy, yᵀy - n): its root, and the same derivative."""
    errors = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        n = 5
        x, v = rng.standard_normal(n), rng.standard_normal(n)
        y, s = batch_norm(x)
        one = np.ones((n, 1))
        F_z = np.block([[s * np.eye(n), one, y[:, None]], [one.T, 0, 0], [2 * y[None], 0, 0]])
        F_data = np.vstack([-np.eye(n), np.zeros((2, n))])
        found = root_vjp(F_z, F_data, np.append(v, [0, 0]))
        errors.append(np.linalg.norm(found - batch_norm_vjp(y, s, v)))
        np.testing.assert_allclose(x - x.mean(), s * y, atol=1e-14)
    assert max(errors) < 1e-10
    report_line(f"17.5 by the implicit function theorem, difference: {spread(errors)}")


@pytest.mark.parametrize("broken", [None, "the root with s < 0"])
def test_17_5_the_nearest_point(broken, report_line):
    """E-61: of all y with mean 0 and variance 1, that one is nearest to x."""
    ahead = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal(5)
        y = (-1 if broken else 1) * batch_norm(x)[0]
        others = np.array([batch_norm(z)[0] for z in rng.standard_normal((200, 5))])
        np.testing.assert_allclose(others @ np.ones(5), 0, atol=1e-13)
        np.testing.assert_allclose(np.sum(others**2, axis=1), 5, rtol=1e-13)
        ahead.append(np.linalg.norm(others - x, axis=1).min() - np.linalg.norm(y - x))
        with rejects(broken):
            assert ahead[-1] > 0
    report_line(f"17.5 {broken or 'y'}, least of 200 distances less its own: {spread(ahead)}")


def test_17_5_invertible_where_s_is_not_zero():
    """E-61: for n >= 3 just then; for n = 2 always."""
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        for n in (2, 3, 6):
            y, one = batch_norm(rng.standard_normal(n))[0], np.ones((n, 1))
            v = rng.standard_normal(n + 2)
            for s in (0.0, 0.3, -0.3):
                F_z = np.block(
                    [[s * np.eye(n), one, y[:, None]], [one.T, 0, 0], [2 * y[None], 0, 0]]
                )
                if s == 0 and n > 2:
                    with pytest.raises(ValueError, match="must be solved"):
                        root_vjp(F_z, np.eye(n + 2), v)
                else:
                    assert np.isfinite(root_vjp(F_z, np.eye(n + 2), v)).all()


@pytest.mark.parametrize("broken", [None, "a variance of one"])
def test_17_5_the_variance_with_eps(broken, report_line):
    """E-61: s²/(s² + eps), not 1."""
    found = []
    for seed in SEEDS:
        x = np.random.default_rng(seed).standard_normal(7)
        y, s = batch_norm(x, eps=0.1)[0], batch_norm(x)[1]
        found.append(y @ y / 7)
        with rejects(broken):
            assert found[-1] == pytest.approx(1 if broken else s**2 / (s**2 + 0.1), rel=1e-12)
    report_line(f"17.5 variance of y with eps = 0.1: {spread(found)}")


@pytest.mark.parametrize("broken", [None, "two values carry information"])
def test_17_5_small_batches(broken):
    """E-61: a batch of two has the Jacobian 0, a batch of one has no normalization."""
    x = np.array([0.3, -1.7])
    y, _ = batch_norm(x)
    np.testing.assert_allclose(y, [1, -1], rtol=1e-15)
    with rejects(broken):
        assert (np.abs(jacobian(x)).max() > 1e-3) == bool(broken)
    assert np.abs(jacobian(x, 1e-2)).max() > 1e-4
    with pytest.raises(ValueError, match="must not be constant"):
        batch_norm(np.array([5.0]))
    assert batch_norm(np.array([5.0]), eps=1e-5)[0] == 0


def test_17_5_amplification_and_noise(report_line):
    """E-61: nearly constant batches amplify by 1/s; eps caps it; s has the error O(1/√n)."""
    gains, caps = [], []
    for seed in SEEDS:
        x = 1 + 2e-9 * np.random.default_rng(seed).standard_normal(8)
        gains.append(np.linalg.norm(jacobian(x), 2))
        caps.append(np.linalg.norm(jacobian(x, 1e-5), 2))
    assert min(gains) > 1e8
    assert max(caps) <= 1 / math.sqrt(1e-5) < 3.2e2
    spreads = [
        np.std(
            [float(batch_norm(np.random.default_rng(s).standard_normal(n))[1]) for s in range(300)]
        )
        for n in (100, 10_000)
    ]
    assert spreads[0] / spreads[1] == pytest.approx(10, rel=0.2)
    report_line(f"17.5 amplification {spread(gains)}, with eps = 1e-5 {spread(caps)}")


# ----------------------------------------------- 17.7 and E-63: an inner problem with an l1 term


@pytest.mark.parametrize("broken", [None, "the whole Hessian in the place of that on the support"])
def test_17_7_the_derivative_on_the_support(broken, report_line):
    """E-63, m = 9, n = 6: against differences of a solution to a gap of 1e-14; margins > 0."""
    errors, margins, sizes, different = [], [], [], 0
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        A, y = rng.standard_normal((9, 6)), rng.standard_normal(9)
        lam = 0.5 * np.abs(A.T @ y).max()

        def solution(y, A=A, lam=lam):
            return lasso(A, y, lam, rtol=1e-15).x

        x, direction = solution(y), rng.standard_normal(9)
        S = x != 0
        margins.append(lam - np.abs(A.T @ (A @ x - y))[~S].max())
        sizes.append(S.sum())
        found = support_jvp(A.T @ A, -A.T, S, direction)
        assert not found[~S].any()
        slow = difference(solution, y, direction, 1e-5)
        errors.append(np.abs(found - slow).max())
        whole = root_jvp(A.T @ A, -A.T, direction)
        different += np.abs((whole if broken else found) - slow).max() > 1e-6
    assert min(margins) > 1e-3
    with rejects(broken):
        assert different == 0
    assert max(errors) < 1e-7
    report_line(f"17.7 |S| {spread(sizes)}, gap {spread(margins)}, error {spread(errors)}")


def test_17_7_where_the_gap_closes_there_are_two_derivatives():
    """E-63: soft(y, λ) at y = λ: 1 from above, 0 from below; the mask of either is one of them."""
    eye, lam = np.eye(1), 1.0
    sides = [(soft_threshold(np.array([lam + h]), lam)[0]) / abs(h) for h in (1e-6, -1e-6)]
    np.testing.assert_allclose(sides, [1, 0], atol=1e-9)
    for mask, side in ((1.0, 1.0), (0.0, 0.0)):
        found = support_jvp(eye, -eye, np.array([mask]), np.ones(1))
        assert abs(found[0]) == side
