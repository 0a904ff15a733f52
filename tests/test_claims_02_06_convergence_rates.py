"""The claims of the section on convergence rates, on random matrices of every shape."""

import math

import numpy as np
import pytest
from claims import rejects

from course_lib import filters, iterate, linear, problems

# Rows, columns, rank: tall, wide, square, rank deficient.
SHAPES = [(9, 6, 6), (6, 9, 6), (8, 8, 8), (10, 7, 4), (7, 10, 5)]


def constant(nu):
    return nu**nu * (1 - nu) ** (1 - nu)


def random_problem(shape, seed, spread=2.0):
    """Return the factors U, s, V of a matrix with random singular values, and the generator."""
    m, n, rank = shape
    rng = np.random.default_rng(seed)
    U = np.linalg.qr(rng.standard_normal((m, m)))[0][:, :rank]
    V = np.linalg.qr(rng.standard_normal((n, n)))[0][:, :rank]
    s = np.sort(10 ** rng.uniform(-spread, 0.5, rank))[::-1]
    return U, s, V, rng


def with_norm(v, size):
    return v * (size / np.linalg.norm(v))


@pytest.mark.claim("prop-qualification")
@pytest.mark.parametrize("broken", [None, "half the constant", "step above 1 / norm squared"])
def test_qualification(broken):
    s = np.geomspace(1e-7, 1.0, 4001)
    share = 0.5 if broken == "half the constant" else 1.0
    step = 1.9 if broken == "step above 1 / norm squared" else 1.0
    with rejects(broken):
        for nu in (0.1, 0.5, 0.75, 1.0):
            for lam in (1e-6, 1e-3, 1e-1):
                left_out = s ** (2 * nu) * (1 - filters.tikhonov_factors(s, lam))
                assert (left_out <= share * constant(nu) * lam**nu * (1 + 1e-12)).all()
                if nu < 1:
                    peak = np.array([math.sqrt(nu * lam / (1 - nu))])
                    value = peak ** (2 * nu) * (1 - filters.tikhonov_factors(peak, lam))
                    np.testing.assert_allclose(value, constant(nu) * lam**nu, rtol=1e-9)
            assert 0.5 <= constant(nu) <= 1
        for nu in (0.3, 1.0, 3.0):
            for k in (1, 2, 10, 1000):
                left_out = s ** (2 * nu) * (1 - filters.landweber_factors(s, step, k))
                bound = share * (nu / (step * (nu + k))) ** nu
                assert (np.abs(left_out) <= bound * (1 + 1e-12)).all()
                assert bound <= nu**nu * (step * k) ** -nu
            for rank in (1, 100, 3000):
                lam = np.sort(s)[::-1][rank - 1] ** 2
                left_out = s ** (2 * nu) * (1 - filters.tsvd_factors(s, rank))
                assert (left_out <= share * lam**nu).all()
        # No larger exponent: the quotient with lam ** nu is not bounded.
        quotients = [
            (1 - filters.tikhonov_factors(np.ones(1), lam))[0] / lam**1.5
            for lam in (1e-2, 1e-4, 1e-6)
        ]
        assert quotients[1] > 5 * quotients[0]
        assert quotients[2] > 5 * quotients[1]


@pytest.mark.claim("thm-tikhonov-rate")
@pytest.mark.parametrize("broken", [None, "half the data error", "lambda = delta squared"])
def test_tikhonov_rate(broken):
    with rejects(broken):
        for seed, shape in enumerate(SHAPES):
            U, s, V, rng = random_problem(shape, seed)
            A = (U * s) @ V.T
            for nu in (0.2, 0.5, 1.0):
                for j in (0, len(s) - 1):
                    # One random noise, and one along a singular vector with λ = σ²: the worst.
                    for size, lam, e in (
                        (1.0, 10 ** rng.uniform(-4, 1), rng.standard_normal(len(A))),
                        (1e-6, s[j] ** 2, U[:, j]),
                    ):
                        w = with_norm(rng.standard_normal(len(s)), size)
                        x, delta = V @ (s ** (2 * nu) * w), 10 ** rng.uniform(-3, 0)
                        data = A @ x + with_norm(e, delta)
                        error = np.linalg.norm(filters.tikhonov(A, data, lam).x - x)
                        share = 0.5 if broken == "half the data error" else 1.0
                        bound = constant(nu) * lam**nu * size + share * delta / (2 * lam**0.5)
                        assert error <= bound * (1 + 1e-9)
                        lam = (delta / size) ** (2 / (2 * nu + 1))
                        if broken == "lambda = delta squared":
                            lam = delta**2
                        error = np.linalg.norm(filters.tikhonov(A, data, lam).x - x)
                        order = size ** (1 / (2 * nu + 1)) * delta ** (2 * nu / (2 * nu + 1))
                        assert error <= (constant(nu) + 0.5) * order * (1 + 1e-9)


@pytest.mark.claim("thm-saturation")
@pytest.mark.parametrize("broken", [None, "sign of the noise", "order delta ** 0.6"])
def test_saturation(broken):
    sign = 1.0 if broken == "sign of the noise" else -1.0
    power = 0.6 if broken == "order delta ** 0.6" else 2 / 3
    with rejects(broken):
        for seed, shape in enumerate(SHAPES):
            U, s, V, rng = random_problem(shape, seed)
            A, q = (U * s) @ V.T, float(np.min(s[1:] / s[:-1]))
            spectrum = filters.decompose(A)
            lams = s[0] ** 2 * np.geomspace(1e-9, 1e3, 60)
            factors = [filters.tikhonov_factors(spectrum.s, lam) for lam in lams]

            def smallest_error(x, e, A=A, spectrum=spectrum, factors=factors):
                found = (filters.filtered(spectrum, A @ x + e, phi) for phi in factors)
                return min(np.linalg.norm(x_lam - x) for x_lam in found)

            # A random truth, a smooth one, and single singular vectors.
            for a in (rng.standard_normal(len(s)), s**4, np.eye(len(s))[0], -np.eye(len(s))[-1]):
                size, x = np.linalg.norm(a), V @ a
                harm = sign * np.where(a >= 0, 1.0, -1.0) * U
                for lam in lams[::10]:
                    error = np.linalg.norm(filters.tikhonov(A, A @ x, lam).x - x)
                    # Equality for the first singular vector, up to the rounding of x.
                    assert error >= lam / (s[0] ** 2 + lam) * size - 1e-13 * size
                unit = (size / s[0] ** 2) ** (1 / 3)
                for j in range(len(s)):
                    delta = size * s[j] ** 3 / s[0] ** 2
                    bound = 0.5 * unit * delta**power
                    assert smallest_error(x, delta * harm[:, j]) >= bound * (1 - 1e-9)
                for delta in size * np.geomspace(s[-1] ** 3, s[0] ** 3, 5)[1:-1] / s[0] ** 2:
                    threshold = (delta * s[0] ** 2 / size) ** (1 / 3)
                    j = int(np.argmax(s <= threshold))
                    bound = q / (1 + q**2) * unit * delta**power
                    assert smallest_error(x, delta * harm[:, j]) >= bound * (1 - 1e-9)


@pytest.mark.claim("thm-landweber-rate")
@pytest.mark.parametrize("broken", [None, "number of steps left out", "stopped too late"])
def test_landweber_rate(broken):
    with rejects(broken):
        for seed, shape in enumerate(SHAPES):
            U, s, V, rng = random_problem(shape, seed, spread=1.0)
            A = (U * s) @ V.T
            for nu in (0.3, 1.0, 2.5):
                step = rng.uniform(0.3, 1.0) / s[0] ** 2
                w = rng.standard_normal(len(s))
                size, x = np.linalg.norm(w), V @ (s ** (2 * nu) * w)
                for share in (0.5, 0.1):
                    delta = share * size * step ** (-nu - 0.5)
                    chosen = math.ceil((size / delta) ** (2 / (2 * nu + 1)) / step)
                    order = size ** (1 / (2 * nu + 1)) * delta ** (2 * nu / (2 * nu + 1))
                    for e in (rng.standard_normal(len(A)), U[:, -1]):
                        states = linear.landweber(A, A @ x + with_norm(e, delta), step=step)
                        errors = iterate.run(
                            states,
                            max_iter=200,
                            record={"error": lambda state, x=x: np.linalg.norm(state.x - x)},
                        ).history["error"]
                        k = np.arange(1, 201)
                        counted = 1.0 if broken == "number of steps left out" else k
                        left_out = (nu / (step * (nu + k))) ** nu * size
                        bound = left_out + np.sqrt(step * counted) * delta
                        assert (np.array(errors[1:]) <= bound * (1 + 1e-9)).all()
                        stop = 200 if broken == "stopped too late" else chosen
                        assert errors[stop] <= (nu**nu + math.sqrt(2)) * order * (1 + 1e-9)


@pytest.mark.claim("thm-order-optimal")
@pytest.mark.parametrize("broken", [None, "a source set without -x", "exponent 2ν/(2ν+2)"])
def test_no_method_is_faster(broken):
    both = broken != "a source set without -x"
    shift = 2 if broken == "exponent 2ν/(2ν+2)" else 1
    with rejects(broken):
        for seed, shape in enumerate(SHAPES):
            U, s, V, rng = random_problem(shape, seed)
            A, q = (U * s) @ V.T, float(np.min(s[1:] / s[:-1]))
            for nu in (0.25, 1.0, 2.0):
                rate, bound_w = 2 * nu / (2 * nu + shift), 10 ** rng.uniform(-1, 1)
                for _ in range(10):
                    w = rng.standard_normal(len(s)) * s ** rng.uniform(-2, 2)
                    x = V @ (s ** (2 * nu) * w)
                    order = np.linalg.norm(w) ** (1 - rate) * np.linalg.norm(A @ x) ** rate
                    assert np.linalg.norm(x) <= order * (1 + 1e-9)
                for j in range(len(s)):
                    x = bound_w * s[j] ** (2 * nu) * V[:, j]
                    delta = np.linalg.norm(A @ x)
                    order = bound_w ** (1 - rate) * delta**rate
                    np.testing.assert_allclose(np.linalg.norm(x), order, rtol=1e-9)
                    # Two truths, one data vector: whatever a method answers, one error is large.
                    lam = (delta / bound_w) ** (2 / (2 * nu + 1))
                    answers = [x, 0.3 * x, filters.tikhonov(A, np.zeros(len(A)), lam).x]
                    answers += [with_norm(rng.standard_normal(len(x)), delta) for _ in range(5)]
                    for z in answers:
                        errors = [np.linalg.norm(z - x), np.linalg.norm(z + x) if both else 0.0]
                        assert max(errors) >= np.linalg.norm(x) * (1 - 1e-9)
                # Between the singular values, and the distance of Tikhonov from the best.
                for delta in bound_w * np.geomspace(s[-1], s[0], 7) ** (2 * nu + 1):
                    reach = (delta / bound_w) ** (1 / (2 * nu + 1)) * (1 + 1e-12)
                    j = int(np.argmax(s <= reach))
                    order = bound_w ** (1 - rate) * delta**rate
                    best = bound_w * s[j] ** (2 * nu)
                    assert best >= q ** (2 * nu) * order * (1 - 1e-9)
                    for _ in range(3):
                        w = with_norm(rng.standard_normal(len(s)), bound_w)
                        x, e = V @ (s ** (2 * nu) * w), with_norm(U[:, j], delta)
                        lam, worse = reach**2, (constant(min(nu, 1)) + 0.5) * q ** (-2 * nu)
                        if nu <= 1:
                            error = np.linalg.norm(filters.tikhonov(A, A @ x + e, lam).x - x)
                            assert error <= worse * best * (1 + 1e-9)
                        step = 1 / s[0] ** 2
                        steps = math.ceil(1 / (step * lam) * (1 - 1e-9))
                        factors = filters.landweber_factors(s, step, steps)
                        found = V @ (factors / s * (U.T @ (A @ x + e)))
                        worse = (nu**nu + math.sqrt(2)) * q ** (-2 * nu)
                        assert np.linalg.norm(found - x) <= worse * best * (1 + 1e-9)


@pytest.mark.claim("prop-white-noise-rate")
@pytest.mark.parametrize("broken", [None, "constant of p = 1 for every p", "no sum over the noise"])
def test_white_noise_rate(broken):
    with rejects(broken):
        for p in (0.75, 1.0, 2.0):
            shape = 1.0 if broken == "constant of p = 1 for every p" else p
            integral = math.pi / (4 * shape**2 * math.sin(math.pi / (2 * shape)))
            # Against the midpoint rule in log u; the ends beyond are below 1e-6.
            t = np.linspace(-40, 40, 80_001)
            u = np.exp(0.5 * (t[1:] + t[:-1]))
            numeric = np.sum(u ** (2 * p + 1) / (1 + u ** (2 * p)) ** 2) * (t[1] - t[0])
            assert abs(numeric - integral) <= 1e-5 * integral
            for n, noise_std in ((50, 1e-1), (400, 1e-3)):
                s = np.arange(1.0, n + 1) ** -p
                w = np.random.default_rng(n).standard_normal(n)
                for nu in (0.3, 1.0):
                    chosen = (noise_std / np.linalg.norm(w)) ** (2 / (2 * nu + 1 + 1 / (2 * p)))
                    for lam in (1e-5, 1e-2, 1.0, chosen):
                        phi = filters.tikhonov_factors(s, lam)
                        bias = np.sum(((1 - phi) * s ** (2 * nu) * w) ** 2)
                        variance = noise_std**2 * np.sum((phi / s) ** 2)
                        tail = noise_std**2 * (integral * lam ** (-1 - 0.5 / p) + 0.25 / lam)
                        assert variance <= tail
                        first = constant(nu) ** 2 * lam ** (2 * nu) * np.sum(w**2)
                        assert bias + variance <= first + tail
                    size = np.linalg.norm(w)
                    power = 2 * nu / (2 * nu + 1 + 1 / (2 * p))
                    factor = math.sqrt(constant(nu) ** 2 + integral + 0.25)
                    order = size * (noise_std / size) ** power
                    assert math.sqrt(bias + variance) <= factor * order * (1 + 1e-9)
        # The expectation itself, with the library's problem and solver.
        problem = problems.source_problem(40, nu=0.5, p=1.0, noise=0.0)
        noise_std, lam, errors = 1e-2, 1e-2, []
        rng = np.random.default_rng(0)
        spectrum = filters.decompose(problem.A)
        phi = filters.tikhonov_factors(spectrum.s, lam)
        for _ in range(400):
            data = problem.y_exact + noise_std * rng.standard_normal(40)
            errors.append(np.sum((filters.filtered(spectrum, data, phi) - problem.x_true) ** 2))
        bias = np.sum(((1 - phi) * (spectrum.V.T @ problem.x_true)) ** 2)
        gains = (phi / spectrum.s) ** 2
        spread = np.max(gains) if broken == "no sum over the noise" else np.sum(gains)
        assert abs(np.mean(errors) - bias - noise_std**2 * spread) <= 0.1 * noise_std**2 * spread


@pytest.mark.claim("prop-discretization")
@pytest.mark.parametrize("broken", [None, "largest singular value", "exponent 2ν"])
def test_grid_ends_the_rate(broken):
    with rejects(broken):
        for seed, shape in enumerate(SHAPES):
            U, s, V, rng = random_problem(shape, seed)
            A = (U * s) @ V.T
            last = s[0] if broken == "largest singular value" else s[-1]
            for nu in (0.3, 1.0, 2.0):
                w = rng.standard_normal(len(s))
                size, x = np.linalg.norm(w), V @ (s ** (2 * nu) * w)
                power = 2 * nu if broken == "exponent 2ν" else 2 * nu + 1
                border = size * last**power
                for e in (rng.standard_normal(len(A)), U[:, -1]):
                    delta = border * 10 ** rng.uniform(-2, 2)
                    data = A @ x + with_norm(e, delta)
                    errors = [
                        np.linalg.norm(filters.tikhonov(A, data, lam, method="spectral").x - x)
                        for lam in last**2 * np.geomspace(1e-9, 1e3, 60)
                    ]
                    # What the smallest λ of the list still leaves out: λ / σ² of the truth.
                    remainder = 1e-9 * np.linalg.norm(x)
                    assert min(errors) <= delta / last * (1 + 1e-6) + remainder
                for ratio in (0.01, 0.9, 0.999, 1.001, 1.1, 100.0):
                    delta = ratio * border
                    order = size ** (1 / (2 * nu + 1)) * delta ** (2 * nu / (2 * nu + 1))
                    assert (delta / s[-1] < order) == (ratio < 1)
