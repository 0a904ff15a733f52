"""The claims of section 02/05 (iterations), on random instances, and broken once each."""

import itertools

import numpy as np
import pytest
from claims import rejects

from course_lib import filters, linear
from course_lib.iterate import run

# Rows, columns, rank: all of full rank and deficient, tall and wide.
SHAPES = [(5, 5, 5), (8, 5, 5), (5, 8, 5), (7, 6, 3), (1, 4, 1)]


def instance(case, seed):
    """A matrix with singular values between 0.2 and 1 (largest 1), its SVD, random data."""
    rng = np.random.default_rng(seed)
    m, n, r = case
    U = np.linalg.qr(rng.standard_normal((m, r)))[0]
    V = np.linalg.qr(rng.standard_normal((n, r)))[0]
    s = np.sort(np.append(rng.uniform(0.2, 0.95, r - 1), 1.0))[::-1] * 10.0 ** rng.uniform(-1, 1)
    return (U * s) @ V.T, U, s, V, rng.standard_normal(m), rng


def iterates(states, count):
    """Return x_0, …, x_count."""
    return [state.x for state in itertools.islice(states, count + 1)]


def spectral(U, s, V, y, factors):
    """Σ φ_i ⟨u_i, y⟩ / σ_i v_i over the positive singular values."""
    return V @ (factors * (U.T @ y) / s)


def close(x, reference, tol=1e-10):
    return np.linalg.norm(x - reference) <= tol * max(np.linalg.norm(reference), 1e-300)


@pytest.mark.claim("alg-landweber")
@pytest.mark.parametrize("broken", [None, "the sign of the step", "the residual of the new x"])
@pytest.mark.parametrize("case", SHAPES)
def test_landweber_does_the_stated_update(case, broken):
    A, _, s, _, y, rng = instance(case, 0)
    step, x0 = 0.7 / s[0] ** 2, rng.standard_normal(A.shape[1])
    states = list(itertools.islice(linear.landweber(A, y, x0, step=step), 6))
    sign = -1 if broken == "the sign of the step" else 1
    with rejects(broken):
        assert np.array_equal(states[0].x, x0)
        for old, new in itertools.pairwise(states):
            r = y - A @ (new.x if broken == "the residual of the new x" else old.x)
            assert np.allclose(new.x, old.x + sign * step * A.T @ r, rtol=1e-12, atol=1e-12)


@pytest.mark.claim("thm-landweber-filter")
@pytest.mark.parametrize("broken", [None, "half the step", "one step fewer", "no start"])
@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_landweber_is_a_filter(case, seed, broken):
    A, U, s, V, y, rng = instance(case, seed)
    step, k = 1.3 / s[0] ** 2, 7
    with rejects(broken):
        x0 = rng.standard_normal(A.shape[1])
        for start in (np.zeros_like(x0), x0):
            eta = step / 2 if broken == "half the step" else step
            factors = 1 - (1 - eta * s**2) ** (k - 1 if broken == "one step fewer" else k)
            kept = start - V @ (V.T @ start) + V @ ((1 - step * s**2) ** k * (V.T @ start))
            expected = spectral(U, s, V, y, factors) + (0 if broken == "no start" else kept)
            assert close(iterates(linear.landweber(A, y, start, step=step), k)[k], expected)
        assert np.allclose(filters.landweber_factors(s, step, k), factors, atol=1e-13)


@pytest.mark.claim("thm-landweber-step")
@pytest.mark.parametrize("broken", [None, "a step of 2.02 over the squared norm", "q squared"])
@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("number", [0.1, 0.9, 1.9])
def test_landweber_converges_below_the_limit_of_the_step(case, number, broken):
    A, U, s, V, y, _ = instance(case, 1)
    if broken == "a step of 2.02 over the squared norm":
        number = 2.02
    step = number / s[0] ** 2
    q = max(abs(1 - step * s[0] ** 2), abs(1 - step * s[-1] ** 2))
    bound = q * q if broken == "q squared" else q
    with rejects(broken):
        assert q < 1
        # Random data, and the data along u_1 and u_r: there the bound is reached.
        for data in (y, U[:, 0], U[:, -1]):
            limit = spectral(U, s, V, data, np.ones_like(s))
            size = np.linalg.norm(limit)
            for k, x in enumerate(iterates(linear.landweber(A, data, step=step), 40)):
                assert np.linalg.norm(x - limit) <= bound**k * size + 1e-12 * size


@pytest.mark.claim("thm-landweber-step")
@pytest.mark.parametrize("broken", [None, "a step just below the limit"])
def test_landweber_at_and_beyond_the_limit_of_the_step(broken):
    A, U, s, V, y, _ = instance((8, 5, 5), 2)
    below = broken is not None
    first = (U[:, 0] @ y) / s[0]
    with rejects(broken):
        step = (1.9 if below else 2.0) / s[0] ** 2
        xs = iterates(linear.landweber(A, y, step=step), 20)
        along = np.array([V[:, 0] @ x for x in xs])
        assert np.allclose(along[::2], 0, atol=1e-10)
        assert np.allclose(along[1::2], 2 * first)
        step = (1.9 if below else 2.1) / s[0] ** 2
        xs = iterates(linear.landweber(A, y, step=step), 200)
        assert np.linalg.norm(xs[200]) > 1e6 * np.linalg.norm(y) / s[0]
        assert V[:, 0] @ xs[200] == pytest.approx((1 - 1.1**200) * first)


@pytest.mark.claim("prop-landweber-null-space")
@pytest.mark.parametrize("broken", [None, "the start is forgotten", "the whole start is kept"])
@pytest.mark.parametrize("case", [(5, 8, 5), (7, 6, 3), (1, 4, 1)])
def test_null_space_part_of_the_start_stays(case, broken):
    A, U, s, V, y, rng = instance(case, 3)
    x0 = rng.standard_normal(A.shape[1])
    null = x0 - V @ (V.T @ x0)
    kept = {"the start is forgotten": 0 * x0, "the whole start is kept": x0}.get(broken, null)
    x = run(linear.landweber(A, y, x0, step=1.5 / s[0] ** 2), max_iter=1500).x
    with rejects(broken):
        assert close(x, spectral(U, s, V, y, np.ones_like(s)) + kept)
        assert close(x - V @ (V.T @ x), kept)


@pytest.mark.claim("prop-stopping-index")
@pytest.mark.parametrize("broken", [None, "a constant of 1.9", "a step of 1.5", "lambda doubled"])
def test_landweber_factors_lie_between_tikhonov_and_twice_tikhonov(broken):
    s = np.sqrt(np.linspace(1e-6, 1, 4001))
    step = 1.5 if broken == "a step of 1.5" else 1.0
    constant = 1.9 if broken == "a constant of 1.9" else 2.0
    with rejects(broken):
        for k in (1, 2, 3, 10, 100, 5000):
            lam = (0.5 if broken == "lambda doubled" else 1.0) / (step * k)
            phi, psi = filters.landweber_factors(s, step, k), filters.tikhonov_factors(s, lam)
            assert (phi >= psi * (1 - 1e-12)).all()
            assert (phi <= constant * psi * (1 + 1e-12)).all()
            assert (phi / s <= np.sqrt(step * k)).all()


@pytest.mark.claim("prop-stopping-index")
@pytest.mark.parametrize("broken", [None, "a quarter of the steps in the bound"])
@pytest.mark.parametrize("k", [4, 30, 400])
def test_landweber_amplifies_by_at_most_the_root_of_the_steps(k, broken):
    # A singular value at which the bound is nearly reached: k σ² = 1.25.
    s = np.sort(np.append(np.linspace(0.9, 1, 4), np.sqrt(1.25 / k)))[::-1]
    rng = np.random.default_rng(k)
    U, V = (np.linalg.qr(rng.standard_normal((6, 5)))[0] for _ in range(2))
    A, y = (U * s) @ V.T, rng.standard_normal(6)
    bound = np.sqrt(k / 4 if broken else k)
    with rejects(broken):
        for d in [*U.T, rng.standard_normal(6)]:
            x, x_moved = (
                run(linear.landweber(A, data, step=1.0), max_iter=k).x for data in (y, y + d)
            )
            assert np.linalg.norm(x_moved - x) <= bound * np.linalg.norm(d) * (1 + 1e-12)


@pytest.mark.claim("prop-semi-convergence")
@pytest.mark.parametrize("broken", [None, "the variance forgotten", "the filter not squared"])
@pytest.mark.parametrize("case", [(6, 6, 6), (8, 5, 5), (5, 8, 5), (7, 6, 3)])
def test_semi_convergence(case, broken):
    A, _, s, V, _, rng = instance(case, 4)
    step, noise_std, n = 1 / s[0] ** 2, 0.3, A.shape[1]
    x_true = rng.standard_normal(n)
    x_seen = V @ (V.T @ x_true)
    variance = 1.0 if broken == "the variance forgotten" else noise_std**2

    def expected(k):
        phi = filters.landweber_factors(s, step, k)
        power = phi if broken == "the filter not squared" else phi**2
        missing = np.sum((1 - step * s**2) ** (2 * k) * (V.T @ x_seen) ** 2)
        return missing, variance * np.sum(power / s**2)

    def mean_square(k):
        """E‖x_k - x†‖² exactly: the part without noise, and x_k applied to each unit vector."""
        exact = run(linear.landweber(A, A @ x_true, step=step), max_iter=k).x
        units = [run(linear.landweber(A, e, step=step), max_iter=k).x for e in np.eye(len(A))]
        return np.sum((exact - x_seen) ** 2) + noise_std**2 * np.sum(np.square(units))

    with rejects(broken):
        for k in (1, 2, 5, 20):
            assert mean_square(k) == pytest.approx(sum(expected(k)), rel=1e-9)
        first, second = np.array([expected(k) for k in range(400)]).T
        assert (np.diff(first) <= 0).all()
        assert (np.diff(second) >= 0).all()
        limit = noise_std**2 * np.sum(1 / s**2)
        # (b): beyond the best finite k the expected error is larger, and stays below the limit.
        assert (first + second).min() < limit
        assert second[-1] == pytest.approx(limit, rel=1e-2)


@pytest.mark.claim("prop-semi-convergence")
@pytest.mark.parametrize("broken", [None, "too many steps"])
def test_semi_convergence_needs_few_steps_as_the_noise_vanishes(broken):
    """(c) with k = 1/δ; with k = δ⁻⁴ the noise along a weak direction comes through."""
    # The weak directions are weaker for smaller noise: the matrix grows with 1/δ.
    errors = []
    for delta in (1e-1, 1e-2, 1e-3):
        s = np.array([1.0, 0.5, delta])
        x_seen = np.array([1.0, -1.0, 0.0])
        k = int(delta**-4) if broken else int(1 / delta)
        phi, exact = filters.landweber_factors(s, 1.0, k), s * x_seen
        x = phi * (exact + delta * np.array([0, 0, 1.0])) / s
        x_exact = phi * exact / s
        bound = np.linalg.norm(x_exact - x_seen) + np.sqrt(k) * delta
        assert np.linalg.norm(x - x_seen) <= bound
        errors.append(np.linalg.norm(x - x_seen))
    with rejects(broken):
        assert errors[2] < 0.1 * errors[0]


def nu_coefficients(k, nu):
    """μ_k, ω_k of the page."""
    if k == 1:
        return 0.0, (4 * nu + 2) / (4 * nu + 1)
    a, b, c = 2 * k + 2 * nu - 1, k + 2 * nu - 1, 2 * k + 4 * nu - 1
    return (k - 1) * (2 * k - 3) * a / (b * c * (2 * k + 2 * nu - 3)), 4 * a * (k + nu - 1) / (
        b * c
    )


@pytest.mark.claim("alg-nu-method")
@pytest.mark.parametrize("broken", [None, "nu halved", "no momentum"])
@pytest.mark.parametrize("nu", [0.5, 1.0, 2.5])
def test_nu_method_does_the_stated_update(nu, broken):
    A, _, s, _, y, rng = instance((7, 6, 3), 5)
    step, x0 = 1 / s[0] ** 2, rng.standard_normal(6)
    xs = iterates(linear.nu_method(A, y, x0, nu=nu, step=step), 8)
    with rejects(broken):
        for k in range(1, 9):
            mu, omega = nu_coefficients(k, nu / 2 if broken == "nu halved" else nu)
            moved = xs[k - 1] - xs[max(k - 2, 0)]
            keep = 0 if broken == "no momentum" else mu * moved
            expected = xs[k - 1] + keep + omega * step * A.T @ (y - A @ xs[k - 1])
            assert np.allclose(xs[k], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.claim("alg-cgls")
@pytest.mark.parametrize(
    "broken", [None, "the residual in place of its gradient", "beta upside down"]
)
@pytest.mark.parametrize("case", [(6, 6, 6), (8, 5, 5), (5, 8, 5)])
def test_cgls_does_the_stated_update(case, broken):
    A, _, _, _, y, rng = instance(case, 6)
    x0 = rng.standard_normal(A.shape[1])
    states = list(itertools.islice(linear.cgls(A, y, x0), 5))
    x, r = x0, y - A @ x0
    s = A.T @ r
    p = s
    with rejects(broken):
        for state in states:
            for found, stated in zip(
                (state.x, state.r, state.s, state.p), (x, r, s, p), strict=True
            ):
                assert np.allclose(found, stated, rtol=1e-8, atol=1e-10)
            above = r @ r if broken == "the residual in place of its gradient" else s @ s
            alpha = above / np.sum((A @ p) ** 2)
            x, r, old = x + alpha * p, r - alpha * A @ p, s @ s
            s = A.T @ r
            beta = old / (s @ s) if broken == "beta upside down" else (s @ s) / old
            p = s + beta * p


def krylov_basis(M, g, k):
    """Orthonormal basis of span{g, Mg, …}: Arnoldi with reorthogonalization."""
    basis = [g / np.linalg.norm(g)]
    while len(basis) < k:
        v = M @ basis[-1]
        for _ in range(2):
            for q in basis:
                v = v - (q @ v) * q
        basis.append(v / np.linalg.norm(v))
    return np.column_stack(basis)


@pytest.mark.claim("thm-cgls-ritz")
@pytest.mark.parametrize("broken", [None, "one Ritz value left out", "Ritz values of other data"])
@pytest.mark.parametrize("case", [(6, 6, 6), (8, 5, 5), (5, 8, 5), (7, 6, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_cgls_minimizes_over_the_krylov_space_and_is_a_ritz_filter(case, seed, broken):
    A, U, s, V, y, rng = instance(case, seed)
    d = len(s)  # random: all singular values differ, no coefficient vanishes
    xs = iterates(linear.cgls(A, y), d)
    with rejects(broken):
        for k in range(1, d + 1):
            W = krylov_basis(A.T @ A, A.T @ y, k)
            best = W @ np.linalg.lstsq(A @ W, y, rcond=None)[0]
            assert close(xs[k], best, 1e-6)
            ritz = np.linalg.eigvalsh(W.T @ A.T @ A @ W)[::-1]
            assert (ritz > 0).all()
            assert (np.diff(ritz) < 0).all()
            assert np.allclose(filters.ritz_values(A, y, k), ritz, rtol=1e-8)
            if broken == "one Ritz value left out":
                ritz = ritz[1:]
            if broken == "Ritz values of other data":
                ritz = filters.ritz_values(A, rng.standard_normal(len(y)), k)
            assert close(xs[k], spectral(U, s, V, y, filters.cgls_factors(s, ritz)), 1e-6)
            for other in (
                linear.landweber(A, y, step=1 / s[0] ** 2),
                linear.nu_method(A, y, step=1 / s[0] ** 2),
            ):
                residual = np.linalg.norm(y - A @ iterates(other, k)[k])
                assert np.linalg.norm(y - A @ xs[k]) <= residual * (1 + 1e-9)
        assert close(xs[d], spectral(U, s, V, y, np.ones_like(s)), 1e-6)


@pytest.mark.claim("thm-cgls-ritz")
@pytest.mark.parametrize("broken", [None, "one step fewer"])
def test_cgls_ends_after_the_number_of_different_singular_values(broken):
    rng = np.random.default_rng(7)
    U, V = (np.linalg.qr(rng.standard_normal((9, 7)))[0] for _ in range(2))
    s = np.array([1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25])
    y = U[:, :5] @ rng.standard_normal(5)  # nothing along σ = 0.25: two values are left
    x = iterates(linear.cgls((U * s) @ V.T, y), 2)[1 if broken else 2]
    with rejects(broken):
        assert close(x, spectral(U, s, V, y, np.ones_like(s)), 1e-9)


def test_cgls_is_not_linear_in_the_data_and_the_others_are():
    A, _, s, _, y, rng = instance((8, 5, 5), 8)
    z, step = rng.standard_normal(8), 1 / s[0] ** 2
    methods = {
        "landweber": lambda b: linear.landweber(A, b, step=step),
        "nu": lambda b: linear.nu_method(A, b, step=step),
        "cgls": lambda b: linear.cgls(A, b),
    }
    for name, method in methods.items():
        x_y, x_z, x_sum = (iterates(method(b), 3)[3] for b in (y, z, y + z))
        assert close(x_y + x_z, x_sum, 1e-10) == (name != "cgls")


@pytest.mark.claim("prop-equivalent-lambda")
@pytest.mark.parametrize("broken", [None, "k squared for k(k + 2 nu)", "Ritz values summed"])
@pytest.mark.parametrize("seed", range(3))
def test_equivalent_lambda_is_the_slope_of_the_filter_at_zero(seed, broken):
    """A direction with a tiny σ shows φ/σ² = 1/λ_k (1 + O(σ²))."""
    rng = np.random.default_rng(seed)
    tiny, nu, k = 1e-6, rng.uniform(0.3, 3), 3
    s = np.append(np.sort(rng.uniform(0.3, 0.9, 5))[::-1], tiny)
    A, y = np.diag(s), rng.standard_normal(6)
    y[-1] = 1e-3  # so small that CGLS hardly feels it
    step = rng.uniform(0.5, 1.0)

    def slope(states):
        return iterates(states, k)[k][-1] / (tiny * y[-1])

    quadratic = k**2 if broken == "k squared for k(k + 2 nu)" else k * (k + 2 * nu)
    ritz = filters.ritz_values(A, y, k)
    ritz_sum = np.sum(ritz) if broken == "Ritz values summed" else np.sum(1 / ritz)
    with rejects(broken):
        assert slope(linear.landweber(A, y, step=step)) == pytest.approx(step * k)
        found = slope(linear.nu_method(A, y, nu=nu, step=step))
        assert found == pytest.approx(step * 2 * quadratic / (4 * nu + 1))
        assert slope(linear.cgls(A, y)) == pytest.approx(ritz_sum)


@pytest.mark.claim("prop-gmres-shift")
@pytest.mark.parametrize("broken", [None, "data that are not a unit vector", "the identity"])
@pytest.mark.parametrize("n", [2, 5, 20])
def test_gmres_stands_still_on_a_shift(n, broken):
    A, y = np.roll(np.eye(n), 1, axis=0), np.eye(n)[0]
    if broken == "data that are not a unit vector":
        y = y + 0.5 * np.eye(n)[1]
    if broken == "the identity":
        A = np.eye(n)
    xs = iterates(linear.gmres(A, y), n)
    with rejects(broken):
        for x in xs[:n]:
            assert np.allclose(x, 0, atol=1e-14)
        assert np.allclose(xs[n], np.eye(n)[-1])
        assert np.allclose(iterates(linear.cgls(A, y), 1)[1], np.eye(n)[-1])
