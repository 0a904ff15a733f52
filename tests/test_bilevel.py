"""Hypergradients against finite differences, dense formulas and PyTorch; the outer loop.

All instances are random and seeded; each array library gets the same numbers. Finite differences
are of fourth order, in double precision. A test with ``broken`` runs once more with a spoilt
ingredient and must then fail.
"""

import functools
import math
import os
import socket
import zlib
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
from claims import rejects
from conftest import make_like
from kit import assert_alike, eps, relative, to_numpy

from course_lib import bilevel, checks, choice, implicit, operators, proximal
from course_lib.arrays import asarray_like, inner, to_float
from course_lib.bilevel import Inner
from course_lib.functionals import Functional, least_squares, squared_l2
from course_lib.iterate import run
from course_lib.operators import LinearOperator

SEEDS = range(20)
DOUBLE = np.zeros(1)


def summary(values, digits: int = 2) -> str:
    v = np.array(list(values), dtype=float)
    return f"{np.median(v):.{digits}g} ({v.min():.{digits}g} to {v.max():.{digits}g})"


def by_hand(x: Any) -> np.ndarray:
    """The matrix of an operator or array, in NumPy."""
    return to_numpy(operators.as_operator(x).to_dense())


# ---------------------------------------------------------------- Tikhonov


@functools.cache
def instance(name: str, like_key: tuple[str, str] = ("numpy", "float64"), seed: int = 0) -> dict:
    """A, y, θ, outer loss (B, y_val) and D of a named problem, in any library."""
    like = make_like(*like_key)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])

    def draw(*shape: int) -> Any:
        return asarray_like(rng.standard_normal(shape), like)

    def number(*shape: int, low: float = -1.0, high: float = 1.0) -> Any:
        return asarray_like(np.asarray(rng.uniform(low, high, shape)), like)

    def convolved(shape: tuple[int, ...], size: int) -> LinearOperator:
        kernel = draw(*(size,) * len(shape))
        return operators.convolution(kernel, shape, boundary="periodic")

    m, n, D, theta = 9, 6, None, number()
    if name in ("wide", "one row", "one column"):
        m, n = {"wide": (5, 11), "one row": (1, 6), "one column": (5, 1)}[name]
    if name == "differences":
        D = operators.difference(n)
    if name == "list":
        D, theta = [None, operators.difference(n, order=2), draw(4, n)], number(3)
    if name == "list of one":
        D, theta = [draw(3, n)], number(1)
    if name == "entries":
        theta = number(n)
    if name == "entries of Dx":
        D, theta = operators.difference(n), number(n - 1)
    A, y, B, z = draw(m, n), draw(m), draw(7, n), draw(7)
    if name == "whitened":
        W = operators.whitening(asarray_like(np.diag(rng.uniform(0.3, 3.0, m)), like))
        V = operators.whitening(asarray_like(np.diag(rng.uniform(0.3, 3.0, 7)), like))
        A, y, B, z = W @ operators.matrix(A), W @ y, V @ operators.matrix(B), V @ z
    if name.startswith("pictures"):
        shape = (4, 6)
        A, B, y, z = convolved(shape, 3), convolved(shape, 3), draw(*shape), draw(*shape)
        D = operators.gradient(shape)
        if name == "pictures, list":
            D, theta = [None, operators.gradient(shape, boundary="periodic")], number(2)
        if name == "pictures, entries":
            D, theta = None, number(*shape)
    return {"A": A, "y": y, "theta": theta, "outer": least_squares(B, z), "D": D, "B": B, "z": z}


NAMES = (
    "tall",
    "wide",
    "one row",
    "one column",
    "differences",
    "list",
    "list of one",
    "entries",
    "entries of Dx",
    "whitened",
    "pictures",
    "pictures, list",
    "pictures, entries",
)


def tikhonov(problem: dict, theta: Any = None, **options: Any) -> bilevel.Hypergradient:
    theta = problem["theta"] if theta is None else theta
    return bilevel.tikhonov(
        problem["A"], problem["y"], theta, problem["outer"], D=problem["D"], **options
    )


def dense_tikhonov(problem: dict, theta: np.ndarray) -> tuple[float, np.ndarray]:
    """J and its gradient from d(H⁻¹) = -H⁻¹ dH H⁻¹, entry by entry of θ, no adjoint."""
    A, B = by_hand(problem["A"]), by_hand(problem["B"])
    y, z, n = to_numpy(problem["y"]).ravel(), to_numpy(problem["z"]).ravel(), A.shape[1]
    D, many = problem["D"], isinstance(problem["D"], list)
    roots = [np.eye(n) if E is None else by_hand(E) for E in (D if many else [D])]
    changes = []  # dH/dθ_j
    if many or theta.ndim == 0:
        changes = [w * E.T @ E for w, E in zip(np.exp(np.atleast_1d(theta)), roots, strict=True)]
    else:
        changes = [
            w * np.outer(row, row) for w, row in zip(np.exp(theta.ravel()), roots[0], strict=True)
        ]
    inverse = np.linalg.inv(A.T @ A + sum(changes))
    x = inverse @ A.T @ y
    gradient = [-(B.T @ (B @ x - z)) @ inverse @ dH @ inverse @ A.T @ y for dH in changes]
    return 0.5 * np.sum((B @ x - z) ** 2), np.array(gradient).reshape(theta.shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_tikhonov_is_the_derivative(name):
    """Closed form, implicit and differences agree; the protocol names what is wrong."""
    for seed in range(1 if name == "pictures, entries" else 3):
        problem = instance(name, seed=seed)
        theta, found = problem["theta"], tikhonov(problem, rtol=1e-13)
        value, gradient = dense_tikhonov(problem, theta)
        assert found.value == pytest.approx(value, rel=1e-9)
        assert found.gradient.shape == theta.shape
        np.testing.assert_allclose(found.gradient, gradient, rtol=1e-8, atol=1e-10 * value)
        ways = {
            "closed form": gradient,
            "implicit": found.gradient,
            "sign": -found.gradient,
            "by lambda": found.gradient * np.exp(-theta),
            "no half": 2 * found.gradient,
        }
        table = checks.gradients(lambda t, p=problem: tikhonov(p, t, rtol=1e-13).value, theta, ways)
        agrees, *wrong = ("agrees", "wrong sign", "factor lambda", "twice")
        assert list(table.verdicts.values()) == [agrees, agrees, *wrong], str(table)
        assert table.best > 0


def test_four_ways_to_one_gradient():
    """Closed form = implicit = unrolled to convergence = finite differences."""
    for seed in range(3):
        problem = instance("entries", seed=seed)
        A, y, theta, outer = (problem[key] for key in ("A", "y", "theta", "outer"))
        H = A.T @ A + np.diag(np.exp(theta))
        step = 1 / np.linalg.norm(H, 2)
        steps = math.ceil(30 * np.linalg.cond(H))

        def descent(x, theta, k, A=A, y=y, step=step):
            return x - step * (A.T @ (A @ x - y) + np.exp(theta) * x)

        def derivatives(x, theta, k, H=H, step=step):
            return np.eye(len(H)) - step * H, -step * np.diag(np.exp(theta) * x)

        x0 = np.zeros_like(theta)
        unrolled = bilevel.unrolled(descent, x0, theta, steps, outer, linearize=derivatives)
        found = tikhonov(problem, rtol=1e-13)
        ways = {
            "closed form": dense_tikhonov(problem, theta)[1],
            "implicit": found.gradient,
            "unrolled": unrolled.gradient,
        }
        # The inner problem F = (AᵀA + diag e^θ) x - Aᵀy, so F_x = H and F_θ = diag(e^θ x).
        linear = (H, np.diag(np.exp(theta) * found.x), outer.gradient(found.x))
        assert checks.gradients(
            lambda t, p=problem: tikhonov(p, t, rtol=1e-13).value, theta, ways, linear=linear
        )
        # Few steps are the gradient of another objective.
        few = bilevel.unrolled(descent, x0, theta, 3, outer, linearize=derivatives)
        assert not checks.gradients(
            lambda t, p=problem: tikhonov(p, t, rtol=1e-13).value, theta, {"3": few.gradient}
        )


@pytest.mark.parametrize("name", NAMES)
def test_tikhonov_over_all_arrays(name, xp, dtype):
    if xp == "array_api_strict" and (name == "whitened" or name.startswith("pictures")):
        pytest.skip("SciPy, or a Fourier transform that the strict library does not have")
    problem, reference = instance(name, (xp, dtype)), instance(name)
    options = {} if dtype == "float64" else {"rtol": 1e-5}
    found, expected = tikhonov(problem, **options), tikhonov(reference, rtol=1e-13)
    for array in (found.gradient, found.x, found.adjoint):
        assert_alike(array, problem["y"])
    bound = 1e-7 if dtype == "float64" else 5e-3
    assert found.gradient.shape == expected.gradient.shape
    scale = float(np.linalg.norm(expected.gradient)) + abs(expected.value)
    error = np.linalg.norm(to_numpy(found.gradient) - expected.gradient)
    assert error <= bound * scale
    assert found.value == pytest.approx(expected.value, rel=bound)


def test_tikhonov_in_single_precision_takes_the_default_tolerance(torch):
    # 1e-10 cannot be reached in single precision: what rounding allows is enough.
    for name in NAMES:
        found = tikhonov(instance(name, ("torch", "float32")))
        expected = tikhonov(instance(name), rtol=1e-13)
        scale = float(np.linalg.norm(expected.gradient)) + abs(expected.value)
        assert np.linalg.norm(to_numpy(found.gradient) - expected.gradient) <= 1e-3 * scale


def test_tikhonov_is_the_gradient_that_torch_finds(torch):
    for name in ("tall", "wide", "entries"):
        problem = instance(name, ("torch", "float64"))
        A, y, outer = problem["A"], problem["y"], problem["outer"]
        theta = problem["theta"].clone().requires_grad_()
        weights = torch.exp(theta) * torch.ones(A.shape[1], dtype=torch.float64)
        x = torch.linalg.solve(A.T @ A + torch.diag(weights), A.T @ y)
        outer.value(x).backward()
        found = tikhonov(problem, rtol=1e-13)
        assert relative(found.gradient, theta.grad) < 1e-9
        # A θ that is itself part of a graph: the result is not.
        again = tikhonov(problem, theta, rtol=1e-13)
        assert not again.gradient.requires_grad
        assert not again.x.requires_grad
        assert relative(again.gradient, theta.grad) < 1e-9


@pytest.mark.slow
def test_tikhonov_is_the_gradient_of_jaxopt():
    jax, jaxopt = pytest.importorskip("jax"), pytest.importorskip("jaxopt")
    jax.config.update("jax_enable_x64", True)
    jnp, problem = jax.numpy, instance("entries")
    A, y, B, z = (jnp.asarray(problem[key]) for key in ("A", "y", "B", "z"))

    def inner_gradient(x, theta):
        return A.T @ (A @ x - y) + jnp.exp(theta) * x

    @jaxopt.implicit_diff.custom_root(inner_gradient)
    def solution(x0, theta):
        return jnp.linalg.solve(A.T @ A + jnp.diag(jnp.exp(theta)), A.T @ y)

    def loss(theta):
        return 0.5 * jnp.sum((B @ solution(None, theta) - z) ** 2)

    gradient = jax.grad(loss)(jnp.asarray(problem["theta"]))
    assert relative(tikhonov(problem, rtol=1e-13).gradient, np.asarray(gradient)) < 1e-8


@pytest.mark.parametrize("name", NAMES)
def test_warm_start(name):
    problem = instance(name)
    cold = tikhonov(problem, rtol=1e-8)
    assert tikhonov(problem, start=cold, rtol=1e-7).steps == (0, 0)
    near = problem["theta"] + 1e-6
    warm, fresh = tikhonov(problem, near, start=cold), tikhonov(problem, near)
    assert relative(warm.gradient, fresh.gradient) < 1e-6
    if math.prod(problem["y"].shape) > 20:  # small systems end by themselves after n steps
        assert sum(warm.steps) < 0.8 * sum(fresh.steps)
    # A start that is far off costs steps, no accuracy.
    off = replace(cold, x=1e3 + cold.x, adjoint=cold.adjoint - 1e3)
    assert relative(tikhonov(problem, start=off).gradient, cold.gradient) < 1e-5


def test_tikhonov_for_lambda_to_zero_and_infinity():
    problem = instance("tall")
    A, y, B, z = (problem[key] for key in ("A", "y", "B", "z"))
    for theta in (20.0, 40.0, 300.0, 700.0):
        found, lam = tikhonov(problem, np.array(theta)), math.exp(theta)
        assert found.gradient * lam == pytest.approx((A.T @ y) @ (B.T @ z), rel=1e-6)
        assert found.value == pytest.approx(z @ z / 2)
    limit = np.linalg.lstsq(A, y, rcond=None)[0]
    psi = np.linalg.solve(A.T @ A, B.T @ (B @ limit - z))
    for theta in (-20.0, -40.0, -300.0):
        found = tikhonov(problem, np.array(theta))
        assert found.gradient / math.exp(theta) == pytest.approx(-psi @ limit, rel=1e-6)
        np.testing.assert_allclose(found.x, limit, rtol=1e-7)
    # m < n: the adjoint has a part of size 1/λ in the null space, where x has none.
    problem, lam = instance("wide"), 1e-6
    value, gradient = dense_tikhonov(problem, np.array(math.log(lam)))
    found = tikhonov(problem, np.array(math.log(lam)), rtol=1e-12)
    assert np.linalg.norm(found.adjoint) > 1e4 * np.linalg.norm(found.x)
    assert abs(found.gradient - gradient) < 1e-6 * value
    # An ill-conditioned system is solved as well as rounding allows.
    hard = np.vander(np.linspace(0, 1, 12), 10)
    for theta in (-12.0, -18.0):
        system = {"A": hard, "y": hard @ np.ones(10), "D": None, "B": hard, "z": np.ones(12)}
        system |= {"outer": least_squares(hard, system["z"]), "theta": np.array(theta)}
        value, gradient = dense_tikhonov(system, system["theta"])
        assert abs(tikhonov(system).gradient - gradient) < 1e-6 * value


@pytest.mark.parametrize("name", ["tall", "wide", "list", "entries", "pictures"])
def test_zero_data(name):
    problem = dict(instance(name))
    warm = tikhonov(problem)
    problem["y"] = 0 * problem["y"]
    for start in (None, warm):
        found = tikhonov(problem, start=start)
        assert not found.x.any()
        assert not found.gradient.any()
        assert found.value == pytest.approx(0.5 * float(inner(problem["z"], problem["z"])))
    # Validation data that are met: the adjoint is zero, whatever the start.
    problem = dict(instance(name))
    problem["outer"] = least_squares(None, warm.x)
    found = tikhonov(problem, start=warm, rtol=1e-14)
    assert np.abs(found.gradient).max() < 1e-7 * np.linalg.norm(warm.x)


def bounds(lip_factor: float, problems: int = 150) -> np.ndarray:
    """Error over bound, on random problems solved loosely."""
    ratios = []
    for seed in range(problems):
        rng = np.random.default_rng(seed)
        m, n = rng.integers(2, 15, 2)
        A, B = rng.standard_normal((m, n)), 3 * rng.standard_normal((8, n))
        A = A * np.logspace(0, -rng.uniform(0, 3), n)
        y, z, theta = rng.standard_normal(m), rng.standard_normal(8), np.array(rng.uniform(-6, 3))
        if seed % 3 == 0:
            theta = rng.uniform(-3, 2, n)
        loose = {
            "rtol": 10.0 ** -rng.integers(0, 5),
            "lip_outer": lip_factor * np.linalg.norm(B, 2) ** 2,
        }
        found = bilevel.tikhonov(A, y, theta, least_squares(B, z), **loose)
        problem = {"A": A, "y": y, "B": B, "z": z, "D": None}
        error = np.linalg.norm(found.gradient - dense_tikhonov(problem, theta)[1])
        ratios.append(error / max(found.bound, 1e-12))
    return np.array(ratios)


@pytest.mark.parametrize("broken", [None, "a Lipschitz constant that is too small"])
def test_bound_of_tikhonov(broken, report_line):
    ratios = bounds(1e-2 if broken else 1.0)
    with rejects(broken):
        assert ratios.max() <= 1 + 1e-6
    if not broken:
        report_line(f"tikhonov: error / bound over 150 problems {summary(ratios)}")
        assert ratios.max() > 0.05  # no bound for its own sake


def test_bound_is_there_where_it_is_known():
    problem = instance("tall")
    assert tikhonov(problem).bound is None
    assert tikhonov(problem, lip_outer=1.0).bound >= 0
    assert tikhonov(instance("differences"), lip_outer=1.0).bound is None


# ---------------------------------------------------------------- in Fourier space


@pytest.mark.parametrize("shape", [(9,), (10,), (6, 8), (5, 7), (1, 6)])
@pytest.mark.parametrize("kind", ["identity", "filter"])
def test_fourier_is_tikhonov(shape, kind, rng):
    def convolved() -> LinearOperator:
        kernel = rng.standard_normal(tuple(min(3, n) for n in shape))
        return operators.convolution(kernel, shape, boundary="periodic")

    A, B, y, z = convolved(), convolved(), rng.standard_normal(shape), rng.standard_normal(shape)
    D = None if kind == "identity" else convolved()
    J = bilevel.tikhonov_fourier(A, y, B, z, D=D)
    for theta in (-2.0, 0.3, 3.0):
        found = bilevel.tikhonov(A, y, np.array(theta), least_squares(B, z), D=D, rtol=1e-13)
        value, slope = J(theta)
        assert value == pytest.approx(found.value, rel=1e-9)
        assert slope == pytest.approx(float(found.gradient), rel=1e-6, abs=1e-8 * value)
        ways = {"Parseval": np.array(slope)}
        assert checks.gradients(lambda t: J(float(t))[0], np.array(theta), ways)
    assert J(50.0)[0] == pytest.approx(0.5 * np.sum(z**2))
    assert abs(J(50.0)[1]) < 1e-15 * np.sum(z**2)


def test_fourier_over_all_arrays(torch, rng):
    kernel, y, z = rng.standard_normal((3, 3)), rng.standard_normal((2, 8, 8))[0], np.ones((8, 8))
    values = []
    for key in (("numpy", "float64"), ("torch", "float64"), ("torch", "float32")):
        like = make_like(*key)
        A = operators.convolution(asarray_like(kernel, like), (8, 8), boundary="periodic")
        J = bilevel.tikhonov_fourier(A, asarray_like(y, like), A, asarray_like(z, like))
        values.append(J(0.5))
    np.testing.assert_allclose(values[1], values[0], rtol=1e-12)
    np.testing.assert_allclose(values[2], values[0], rtol=1e-4)


@pytest.mark.parametrize("kernel", [[0.5, 0.5], [0.25, 0.5, 0.25]])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fourier_where_lambda_is_extreme(kernel, dtype):
    """Where A sees nothing x is 0; no λ that the precision knows makes anything overflow."""
    A = operators.convolution(np.array(kernel, dtype), (8,), boundary="periodic")
    y = np.arange(8).astype(dtype)
    J = bilevel.tikhonov_fourier(A, y, A, y)
    small = -87.0 if dtype == "float32" else -700.0
    for theta, value in ((small, 1.0), (-small, 70.0)):  # of y: its highest frequency, or all
        found, slope = J(theta)
        assert found == pytest.approx(value, rel=1e-5)
        assert 0 <= abs(slope) < 1e-30
    # x falls as 1/λ, and dJ/dθ with it: also where λ² is too large for the precision.
    slopes = [J(theta)[1] for theta in (59.0, 60.0)]
    assert slopes[0] / slopes[1] == pytest.approx(math.e, rel=1e-5)
    if dtype == "float32":
        with pytest.raises(ValueError, match="lambda positive and finite"):
            J(300.0)


def test_fourier_says_what_it_cannot():
    A = operators.convolution(np.array([0.25, 0.5, 0.25]), (8,), boundary="periodic")
    short = operators.convolution(np.array([0.25, 0.5, 0.25]), (6,), boundary="periodic")
    zero = operators.convolution(np.array([0.25, 0.5, 0.25]), (8,), boundary="zero")
    y, dense = np.ones(8), np.eye(8)
    mean = operators.convolution(np.array([0.5, 0.5, 0.0]), (8,), boundary="periodic")
    for arguments in (
        (zero, y, A, y),
        (A, y, zero, y),
        (dense, y, A, y),
        (A, y, short, np.ones(6)),
        (A, np.ones(7), A, y),
        (A, y, A, np.ones(7)),
        (A, y * np.nan, A, y),
        (A, [1.0] * 8, A, y),
    ):
        with pytest.raises(ValueError, match=r"must be|wrong shape"):
            bilevel.tikhonov_fourier(*arguments)
    with pytest.raises(ValueError, match="periodic convolution"):
        bilevel.tikhonov_fourier(A, y, A, y, D=operators.difference(8))
    with pytest.raises(ValueError, match="seen by neither"):
        bilevel.tikhonov_fourier(mean, y, A, y, D=mean)  # both lose the highest frequency
    for theta in (math.nan, 1e4, "0", None):
        with pytest.raises(ValueError, match="theta"):
            bilevel.tikhonov_fourier(A, y, A, y)(theta)


# ---------------------------------------------------------------- evidence


@pytest.mark.parametrize("broken", [None, "without the determinant of the prior"])
@pytest.mark.parametrize("shape", [(9, 6), (4, 7), (5, 1), (1, 4)])
def test_evidence_is_the_density_of_the_data(shape, broken, rng):
    from scipy.stats import multivariate_normal

    A, y = rng.standard_normal(shape), rng.standard_normal(shape[0])
    D = [None, rng.standard_normal((3, shape[1]))]
    theta, noise_std = rng.uniform(-1, 1, 2), 0.7

    def dense(theta: np.ndarray) -> float:
        Q = math.exp(theta[0]) * np.eye(shape[1]) + math.exp(theta[1]) * D[1].T @ D[1]
        cov = noise_std**2 * np.eye(shape[0]) + A @ np.linalg.inv(Q) @ A.T
        found = -multivariate_normal(np.zeros(shape[0]), cov).logpdf(y)
        return found + 0.5 * np.linalg.slogdet(Q)[1] if broken else found

    value, gradient = bilevel.evidence(A, y, theta, noise_std=noise_std, D=D)
    with rejects(broken):
        assert value == pytest.approx(dense(theta), rel=1e-10)
        assert checks.gradients(dense, theta, {"evidence": gradient})


@pytest.mark.parametrize("theta", [(0.0, -33.0), (0.0, -50.0), (30.0, -3.0), (-20.0, -20.0)])
def test_evidence_of_priors_of_very_different_weight(theta, rng):
    """Against rational arithmetic: Q is regular, but not to double precision."""
    A, y, D = (
        rng.integers(-5, 6, (4, 5)),
        rng.integers(-5, 6, 4),
        np.diff(np.eye(5, dtype=int), 1, 0),
    )
    exact = [[Fraction(math.exp(t)) for t in theta]]
    exact += [[w * (1 + sign * Fraction(1, 10**9)) for w in exact[0]] for sign in (1, -1)]

    def density(weights: list) -> float:
        Q = weights[0] * fractions(D.T @ D) + weights[1] * fractions(np.eye(5, dtype=int))
        H = 4 * fractions(A.T @ A) + Q
        x, log_H = eliminated(H, 4 * fractions(A.T @ y))
        log_Q = eliminated(Q, fractions(np.zeros(5, dtype=int)))[1]
        r = fractions(A) @ x - fractions(y)
        rest = 4 * math.log(2 * math.pi / 4) + log_H - log_Q
        return float(4 * (r @ r) + x @ Q @ x), rest

    value, gradient = bilevel.evidence(
        A * 1.0, y * 1.0, np.array(theta), noise_std=0.5, D=[D, None]
    )
    misfit, rest = density(exact[0])
    assert value == pytest.approx(0.5 * (misfit + rest), rel=1e-11)
    for j in range(2):
        sides = []
        for moved in exact[1:]:
            weights = [moved[i] if i == j else exact[0][i] for i in range(2)]
            sides.append(sum(density(weights)))
        assert (sides[0] - sides[1]) / 4e-9 == pytest.approx(gradient[j], abs=2e-5)


def fractions(M: np.ndarray) -> np.ndarray:
    return np.vectorize(lambda number: Fraction(int(number)), otypes=[object])(M)


def eliminated(M: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, float]:
    """Solution and log of the determinant, by Gauss, in rational numbers."""
    M, log_det = np.column_stack([M, b]), 0.0
    for k in range(len(M)):
        log_det += math.log(M[k, k])
        M[k] = M[k] / M[k, k]
        for i in range(len(M)):
            if i != k:
                M[i] = M[i] - M[i, k] * M[k]
    return M[:, -1], log_det


def test_evidence_of_an_improper_prior(rng):
    # The constants are in the null space of D; the density of y is that of its contrasts.
    A, y, D = rng.standard_normal((8, 5)), rng.standard_normal(8), operators.difference(5)

    def density(theta: np.ndarray) -> float:
        return bilevel.evidence(A, y, theta, noise_std=0.5, D=D)[0]

    theta = np.array(0.4)
    value, gradient = bilevel.evidence(A, y, theta, noise_std=0.5, D=D)
    assert gradient.shape == ()
    assert checks.gradients(density, theta, {"evidence": gradient})
    # A proper prior with precision c for the constants differs by ln(c)/2 as c falls.
    mean = np.ones((1, 5)) / math.sqrt(5)
    for c in (1e-6, 1e-8):
        proper = bilevel.evidence(A, y, np.array([0.4, math.log(c)]), noise_std=0.5, D=[D, mean])[0]
        assert proper + 0.5 * math.log(c) == pytest.approx(value, rel=1e-5)


def test_evidence_alike_and_limits(torch, rng):
    A, y = rng.standard_normal((7, 4)), rng.standard_normal(7)
    value, slope = bilevel.evidence(A, y, np.array(0.3), noise_std=1.0)
    for dtype, rtol in (("float64", 1e-12), ("float32", 1e-5)):
        like = make_like("torch", dtype)
        found = bilevel.evidence(
            asarray_like(A, like), asarray_like(y, like), asarray_like(0.3, like), noise_std=1.0
        )
        assert_alike(found[1], like)
        np.testing.assert_allclose((found[0], float(found[1])), (value, slope), rtol=rtol)
    # λ to infinity: the prior says x = 0, and more precision changes nothing.
    large, slope = bilevel.evidence(A, y, np.array(25.0), noise_std=2.0)
    assert large == pytest.approx(np.sum(y**2) / 8 + 3.5 * math.log(2 * math.pi * 4))
    assert abs(slope) < 1e-8
    # λ to 0: each unknown costs ½ ln(1/λ).
    assert float(bilevel.evidence(A, y, np.array(-20.0), noise_std=1.0)[1]) == pytest.approx(-2.0)
    wide = rng.standard_normal((3, 5)) * np.array([1, 1, 1, 1, 0])
    with pytest.raises(ValueError, match="no null vector in common"):
        bilevel.evidence(wide, y[:3], np.array(0.0), noise_std=1.0, D=np.diag([1.0, 1, 1, 1, 0]))
    for arguments, options, words in (
        ((A, y, np.zeros(2)), {"noise_std": 1.0}, "theta"),
        ((A, y, np.zeros(2)), {"noise_std": 1.0, "D": [None]}, "theta"),
        ((A, y, np.array(0.0)), {"noise_std": 0.0}, "noise_std"),
        ((A, y, np.array(1e4)), {"noise_std": 1.0}, "theta"),
        ((A, y, np.array(0.0)), {"noise_std": 1.0, "D": np.eye(3)}, "D must"),
        ((A, y[:5], np.array(0.0)), {"noise_std": 1.0}, "y"),
    ):
        with pytest.raises(ValueError, match=words):
            bilevel.evidence(*arguments, **options)


# ---------------------------------------------------------------- LASSO and elastic net


def sparse_problem(seed: int, m: int = 12, n: int = 20) -> tuple:
    rng = np.random.default_rng([7, seed])
    A, x = rng.standard_normal((m, n)), np.zeros(n)
    x[: n // 5] = rng.standard_normal(n // 5) + 2
    B = rng.standard_normal((9, n))
    y, z = A @ x + 0.3 * rng.standard_normal(m), B @ x + 0.3 * rng.standard_normal(9)
    return A, y, least_squares(B, z), float(np.log(0.2 * np.abs(A.T @ y).max()))


def unwritten(A: np.ndarray) -> LinearOperator:
    """The same map without its matrix."""
    return LinearOperator(lambda x: A @ x, lambda v: A.T @ v, A.shape[1:], A.shape[:1], like=A)


@pytest.mark.parametrize("broken", [None, "sign", "d by lambda", "without the inverse"])
@pytest.mark.parametrize("shape", [(12, 20), (25, 10), (6, 1)])
def test_lasso_is_the_derivative(shape, broken):
    tested = 0
    for seed in range(6):
        A, y, outer, level = sparse_problem(seed, *shape)
        theta = np.array(level)
        found = bilevel.lasso(A, y, theta, outer, rtol=1e-13)
        on = found.x != 0
        if found.margin < 0.02 or np.abs(found.x[on]).min() < 0.02:
            continue  # too near to a kink for differences with this h
        tested += 1
        plain = -math.exp(level) * np.sign(found.x[on]) @ outer.gradient(found.x)[on]
        claimed = {
            None: found.gradient,
            "sign": -found.gradient,
            "d by lambda": found.gradient / math.exp(level),
            "without the inverse": plain,
        }[broken]
        with rejects(broken):
            assert checks.gradients(
                lambda t, p=(A, y, outer): bilevel.lasso(p[0], p[1], t, p[2], rtol=1e-13).value,
                theta,
                {"on the support": np.asarray(claimed)},
            )
        operator = bilevel.lasso(unwritten(A), y, theta, outer, rtol=1e-13)
        assert float(operator.gradient) == pytest.approx(float(found.gradient), rel=1e-7)
        assert operator.margin == pytest.approx(found.margin, abs=1e-7)
        again = bilevel.lasso(A, y, theta + 0.01, outer, start=found, rtol=1e-13)
        fresh = bilevel.lasso(A, y, theta + 0.01, outer, rtol=1e-13)
        assert float(again.gradient) == pytest.approx(float(fresh.gradient), rel=1e-9)
    assert tested >= 2


@pytest.mark.parametrize("broken", [None, "the two exchanged", "without lambda2 on the support"])
def test_elastic_net_is_the_derivative(broken):
    tested = 0
    for seed in range(6):
        A, y, outer, level = sparse_problem(seed)
        theta = np.array([level, 0.5])
        found = bilevel.elastic_net(A, y, theta, outer, rtol=1e-13)
        if found.margin < 0.02 or np.abs(found.x[found.x != 0]).min() < 0.02:
            continue
        tested += 1
        claimed = found.gradient
        if broken == "the two exchanged":
            claimed = claimed[::-1]
        elif broken:
            on, lams = found.x != 0, np.exp(theta)
            psi = np.linalg.lstsq(A[:, on].T @ A[:, on], outer.gradient(found.x)[on], rcond=None)[0]
            claimed = -lams * np.array([np.sign(found.x[on]) @ psi, found.x[on] @ psi])
        with rejects(broken):
            assert checks.gradients(
                lambda t, p=(A, y, outer): (
                    bilevel.elastic_net(p[0], p[1], t, p[2], rtol=1e-13).value
                ),
                theta,
                {"on the support": claimed},
            )
        operator = bilevel.elastic_net(unwritten(A), y, theta, outer, rtol=1e-13)
        np.testing.assert_allclose(operator.gradient, found.gradient, rtol=1e-7)
        # λ₂ to 0 is the LASSO.
        near = bilevel.elastic_net(A, y, np.array([level, -30.0]), outer, rtol=1e-12)
        plain = bilevel.lasso(A, y, np.array(level), outer, rtol=1e-12)
        assert near.gradient[0] == pytest.approx(float(plain.gradient), rel=1e-6)
        assert abs(near.gradient[1]) < 1e-8 * abs(near.gradient[0])
    assert tested >= 2


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_sparse_problems_in_torch(torch, dtype):
    A, y, _, level = sparse_problem(1)
    B = np.random.default_rng(5).standard_normal((9, 20))
    z, like = B @ np.ones(20), make_like("torch", dtype)
    bound = 1e-9 if dtype == "float64" else 1e-3
    for method, theta in ((bilevel.lasso, level), (bilevel.elastic_net, [level, 0.0])):
        expected = method(A, y, np.asarray(theta), least_squares(B, z))
        arrays = [asarray_like(np.asarray(each), like) for each in (A, y, theta, B, z)]
        found = method(*arrays[:3], least_squares(*arrays[3:]))
        assert_alike(found.gradient, like)
        assert relative(found.gradient, expected.gradient) < bound
        assert relative(found.x, expected.x) < bound
        assert found.margin == pytest.approx(expected.margin, abs=bound)


def first_kink() -> tuple[tuple, float]:
    """A LASSO problem and a λ at which its support changes, by bisection."""
    A, y, outer, level = sparse_problem(3)

    def size(theta: float) -> int:
        x = bilevel.lasso(A, y, np.array(theta), outer, rtol=1e-13).x
        return int(np.count_nonzero(x))

    low, high = level - 1.0, level + 1.0
    assert size(low) != size(high)
    for _ in range(48):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if size(middle) == size(high) else (middle, high)
    return (A, y, outer), 0.5 * (low + high)


@pytest.mark.parametrize("broken", [None, "one derivative at the kink"])
def test_kink_of_the_lasso(broken, report_line):
    (A, y, outer), kink = first_kink()

    def at(theta: float) -> bilevel.Hypergradient:
        return bilevel.lasso(A, y, np.array(theta), outer, rtol=1e-13)

    left, right, h = at(kink - 1e-7), at(kink + 1e-7), 1e-5
    assert np.count_nonzero(left.x) != np.count_nonzero(right.x)
    # One-sided differences of second order, each inside its own piece.
    below = (3 * at(kink).value - 4 * at(kink - h).value + at(kink - 2 * h).value) / (2 * h)
    above = (-3 * at(kink).value + 4 * at(kink + h).value - at(kink + 2 * h).value) / (2 * h)
    with rejects(broken):
        assert float(left.gradient) == pytest.approx(below, rel=1e-4)
        assert float(right.gradient) == pytest.approx(below if broken else above, rel=1e-4)
    assert abs(above - below) > 1e-2 * abs(above)
    # On the side of the smaller support the margin goes to zero.
    if not broken:
        smaller = 1 if np.count_nonzero(right.x) < np.count_nonzero(left.x) else -1
        margins = [at(kink + smaller * d).margin for d in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)]
        assert all(a > b >= 0 for a, b in zip(margins[1:], margins[2:], strict=False))
        assert margins[-1] < 1e-4
        report_line(f"LASSO at a kink: derivatives {below:.4f} and {above:.4f}")


def test_empty_support():
    A, y, outer, _ = sparse_problem(0)
    top = math.log(np.abs(A.T @ y).max())
    for theta, margin in ((top + 1e-9, 0.0), (top + math.log(2), 0.5), (600.0, 1.0)):
        found = bilevel.lasso(A, y, np.array(theta), outer)
        assert not found.x.any()
        assert found.gradient == 0
        assert found.margin == pytest.approx(margin, abs=1e-8)
        both = bilevel.elastic_net(A, y, np.array([theta, 0.0]), outer)
        np.testing.assert_array_equal(both.gradient, [0, 0])
    zero = bilevel.lasso(A, 0 * y, np.array(0.0), outer)
    assert not zero.x.any()
    assert zero.gradient == 0
    assert zero.margin == 1
    full = bilevel.lasso(np.eye(2), np.array([3.0, 2.0]), np.array(0.0), squared_l2())
    assert full.margin == 1  # nothing is off the support


def test_lasso_for_small_lambda():
    A, y, outer, _ = sparse_problem(0, 25, 10)
    x = np.linalg.lstsq(A, y, rcond=None)[0]
    psi = np.linalg.solve(A.T @ A, outer.gradient(x))
    found = bilevel.lasso(A, y, np.array(-14.0), outer, rtol=1e-14)
    assert found.gradient / math.exp(-14.0) == pytest.approx(-np.sign(x) @ psi, rel=1e-5)


def test_dependent_columns():
    A, y, _, level = sparse_problem(2)
    twice = np.hstack([A, A[:, :4]])
    B = np.hstack([np.eye(20), np.eye(20)[:, :4]])
    loss = least_squares(B, np.ones(20))
    # A start on both copies stays on both: the support is dependent.
    single = proximal.lasso(A, y, math.exp(level)).x
    split = np.append(single, 0.5 * single[:4])
    split[:4] -= 0.5 * single[:4]
    start = bilevel.Hypergradient(0.0, split, split, split)
    try:
        found = bilevel.lasso(twice, y, np.array(level), loss, start=start)
    except ValueError as refused:
        assert "must be independent" in str(refused)
    else:
        # Or one copy was left out; its correlation is that of the other, and the margin says so.
        assert found.margin < 1e-10
    with pytest.raises(ValueError, match="must be independent"):
        bilevel._support_adjoint(
            operators.matrix(twice), split, np.flatnonzero(split), 0.0, np.ones(24)
        )
    # The elastic net shares out: invertible, and the derivative is right.
    theta = np.array([level, -2.0])
    both = bilevel.elastic_net(twice, y, theta, loss, rtol=1e-13)
    np.testing.assert_allclose(both.x[:4], both.x[20:], atol=1e-9)
    assert checks.gradients(
        lambda t: bilevel.elastic_net(twice, y, t, loss, rtol=1e-13).value,
        theta,
        {"on the support": both.gradient},
    )


# ---------------------------------------------------------------- unrolling


def smooth_map(seed: int, n: int = 5, p: int = 3) -> dict:
    """T(x, θ, k) = tanh(Mx + Cθ)/(1 + 0.1 k) + 0.3x: nonlinear, and another map in each step."""
    rng = np.random.default_rng([11, seed])
    M, C = 0.3 * rng.standard_normal((n, n)), rng.standard_normal((n, p))
    z = rng.standard_normal(n)

    def step(x, theta, k):
        return np.tanh(M @ x + C @ theta) / (1 + 0.1 * k) + 0.3 * x

    def linearize(x, theta, k):
        d = (1 - np.tanh(M @ x + C @ theta) ** 2)[:, None] / (1 + 0.1 * k)
        return d * M + 0.3 * np.eye(n), d * C

    return {
        "step": step,
        "linearize": linearize,
        "x0": rng.standard_normal(n),
        "theta": rng.standard_normal(p),
        "outer": least_squares(None, z),
        "M": M,
        "C": C,
        "z": z,
    }


def unroll(case: dict, steps: int, theta=None, x0=None, **options):
    return bilevel.unrolled(
        case["step"],
        case["x0"] if x0 is None else x0,
        case["theta"] if theta is None else theta,
        steps,
        case["outer"],
        linearize=options.pop("linearize", case["linearize"]),
        **options,
    )


@pytest.mark.parametrize("broken", [None, "not transposed", "sign", "linearized one step later"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_unrolled_is_the_derivative_of_the_truncated_loss(steps, broken):
    case = smooth_map(steps)
    linearize = {
        None: case["linearize"],
        "not transposed": lambda x, t, k: (
            case["linearize"](x, t, k)[0].T,
            case["linearize"](x, t, k)[1],
        ),
        "sign": lambda x, t, k: (case["linearize"](x, t, k)[0], -case["linearize"](x, t, k)[1]),
        "linearized one step later": lambda x, t, k: case["linearize"](case["step"](x, t, k), t, k),
    }[broken]
    found = unroll(case, steps, linearize=linearize)
    with rejects(broken):
        assert checks.gradients(
            lambda t: unroll(case, steps, t).value, case["theta"], {"by theta": found.gradient}
        )
        assert checks.gradients(
            lambda x: unroll(case, steps, x0=x).value, case["x0"], {"by x0": found.adjoint}
        )


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_unrolled_is_what_torch_finds_through_a_plain_loop(torch, steps):
    case = smooth_map(steps)
    M, C, z = (torch.from_numpy(case[key]) for key in ("M", "C", "z"))

    def step(x, theta, k):
        return torch.tanh(M @ x + C @ theta) / (1 + 0.1 * k) + 0.3 * x

    for last in (steps, 1, max(1, steps // 2)):
        x0 = torch.from_numpy(case["x0"]).requires_grad_()
        theta = torch.from_numpy(case["theta"]).requires_grad_()
        x = x0
        for k in range(steps):
            x = step(x, theta, k) if k >= steps - last else step(x, theta, k).detach()
        (0.5 * ((x - z) ** 2).sum()).backward()
        for slots in (None, 1, 2, 3):
            found = bilevel.unrolled(
                step, x0, theta, steps, least_squares(None, z), last=last, slots=slots
            )
            assert not found.gradient.requires_grad
            assert not found.adjoint.requires_grad
            torch.testing.assert_close(found.gradient, theta.grad, rtol=1e-12, atol=1e-14)
            if last == steps:
                torch.testing.assert_close(found.adjoint, x0.grad, rtol=1e-12, atol=1e-14)
            hand = unroll(case, steps, last=last, slots=slots)
            assert relative(hand.gradient, theta.grad) < 1e-12
            assert hand.value == pytest.approx(found.value, rel=1e-13)
    single = bilevel.unrolled(
        lambda x, theta, k: 0.5 * torch.tanh(x) + theta,
        torch.zeros(3),
        torch.ones(3),
        5,
        least_squares(None, torch.zeros(3)),
    )
    assert single.gradient.dtype == torch.float32


def test_truncation_leaves_out_the_early_terms():
    case, steps = smooth_map(3), 8
    x, states = case["x0"], []
    for k in range(steps):
        states.append(x)
        x = case["step"](x, case["theta"], k)
    terms, psi = [], x - case["z"]
    for k in reversed(range(steps)):
        T_x, T_theta = case["linearize"](states[k], case["theta"], k)
        terms.append(T_theta.T @ psi)
        psi = T_x.T @ psi
    for last in range(1, steps + 1):
        found = unroll(case, steps, last=last)
        np.testing.assert_allclose(found.gradient, sum(terms[:last]), rtol=1e-12)
        assert found.steps[1] == last
        assert found.value == unroll(case, steps).value


@pytest.mark.parametrize("steps", [1, 2, 5, 13, 40])
def test_checkpoints_change_nothing_but_the_work(steps):
    case, plain = smooth_map(1), unroll(smooth_map(1), steps)
    assert plain.steps == (steps, steps)  # every state is kept on the way
    for slots in range(1, steps + 2):
        calls = []

        def counted(x, theta, k, calls=calls):
            calls.append(k)
            return case["step"](x, theta, k)

        found = unroll({**case, "step": counted}, steps, slots=slots)
        np.testing.assert_array_equal(found.gradient, plain.gradient)
        np.testing.assert_array_equal(found.adjoint, plain.adjoint)
        assert found.steps == (len(calls), steps)
    one = unroll(case, steps, slots=1)
    assert one.steps[0] == 1 + steps * (steps - 1) // 2


def test_more_states_can_be_kept_than_calls_can_be_nested():
    found = bilevel.unrolled(
        lambda x, theta, k: x / 2 + theta,
        np.zeros(1),
        np.ones(1),
        3000,
        least_squares(None, np.array([0.5])),
        linearize=lambda *_: (np.array([[0.5]]), np.eye(1)),
    )
    assert found.gradient == pytest.approx([3.0])
    assert found.steps == (3000, 3000)


def living_states(steps: int, slots: int) -> int:
    """Largest number of states alive at a time, apart from the first, by weak references."""
    import gc
    import weakref

    alive, most = weakref.WeakSet(), [0]

    class State(np.ndarray):
        pass

    def note(x):
        x = x.view(State)
        x.token = type("Token", (), {})()
        alive.add(x.token)
        most[0] = max(most[0], len(alive))
        return x

    gc.collect()
    bilevel.unrolled(
        lambda x, theta, k: note(np.asarray(0.9 * x + theta)),
        np.ones(2),
        np.ones(2),
        steps,
        Functional(lambda x: np.sum(x), lambda x: np.ones(2)),
        linearize=lambda x, theta, k: (0.9 * np.eye(2), np.eye(2)),
        slots=slots,
    )
    return most[0]


@pytest.mark.slow
def test_checkpoints_save_memory():
    # Beside the kept states there are the last one and those of the step that is being taken.
    for slots in (1, 2, 4, 8):
        assert living_states(60, slots) <= slots + 3
    assert living_states(60, 60) > 55


@pytest.mark.slow
@pytest.mark.parametrize("broken", [None, "too few steps"])
def test_unrolling_tends_to_the_implicit_derivative(broken, report_line):
    ratios = []
    for seed in SEEDS:
        rng = np.random.default_rng([13, seed])
        n = 6
        M, C, z = rng.standard_normal((n, n)), rng.standard_normal((n, 2)), rng.standard_normal(n)
        M *= 0.8 / np.linalg.norm(M, 2)

        def step(x, theta, k, M=M, C=C):
            return np.tanh(M @ x + C @ theta)

        def linearize(x, theta, k, M=M, C=C):
            d = (1 - np.tanh(M @ x + C @ theta) ** 2)[:, None]
            return d * M, d * C

        case = {"step": step, "linearize": linearize, "x0": np.zeros(n), "theta": 0.3 * np.ones(2)}
        case["outer"] = least_squares(None, z)
        limit = unroll(case, 300).x
        T_x, T_theta = linearize(limit, case["theta"], 0)
        exact = implicit.fixed_point_vjp(T_x, T_theta, limit - z)
        errors = [relative(unroll(case, K).gradient, exact) for K in (10, 20, 40, 300)]
        with rejects(broken):
            assert errors[0 if broken else 3] < 1e-13
        assert errors[2] < errors[0] or errors[0] < 1e-13
        ratios.append(errors[1])
    if not broken:
        report_line(f"unrolled against implicit: relative error at K = 20 {summary(ratios)}")


def test_unrolled_says_what_is_wrong():
    case = smooth_map(0)
    for options, words in (
        ({"last": 0}, "last"),
        ({"last": 6}, "last"),
        ({"slots": 0}, "slots"),
        ({"slots": 1.5}, "slots"),
        ({"linearize": None}, "linearize"),
        ({"x0": np.full(5, np.nan)}, "x0"),
        ({"x0": [0.0] * 5}, "x0"),
        ({"theta": np.ones(3, dtype=np.float32)}, "one dtype"),
        ({"theta": np.ones(3, dtype=np.float16)}, "theta"),
    ):
        with pytest.raises(ValueError, match=words):
            unroll(case, 5, **options)
    with pytest.raises(ValueError, match="steps"):
        unroll(case, 0)
    with pytest.raises(ValueError, match="outer"):
        unroll({**case, "outer": np.ones(5)}, 3)
    with pytest.raises(ValueError, match=r"x_3 has the wrong shape"):
        unroll({**case, "step": lambda x, theta, k: np.ones(4)}, 3)
    with (
        pytest.raises(ValueError, match=r"x_200 must be finite"),
        np.errstate(over="ignore", invalid="ignore"),
    ):
        unroll({**case, "step": lambda x, theta, k: 1e3 * x}, 200)

    infinite = lambda x, theta, k: (1e200 * np.eye(5), np.ones((5, theta.size)))  # noqa: E731
    with (
        pytest.raises(ValueError, match="the hypergradient must be finite"),
        np.errstate(over="ignore", invalid="ignore"),
    ):
        unroll(case, 3, linearize=infinite)
    rectangle = lambda x, theta, k: (np.eye(5), np.ones((5, theta.size + 1)))  # noqa: E731
    with pytest.raises(ValueError, match="linearize must return derivatives by x and theta"):
        unroll(case, 3, linearize=rectangle)
    nowhere = Functional(lambda x: math.nan, lambda x: x)
    with pytest.raises(ValueError, match="the outer loss must be finite"):
        unroll({**case, "outer": nowhere}, 3)
    # One parameter, of no dimensions: so is its derivative, also with a matrix of one column.
    column = lambda x, theta, k: (np.eye(2) / 2, np.ones((2, 1)))  # noqa: E731
    found = bilevel.unrolled(
        lambda x, theta, k: x / 2 + theta,
        np.zeros(2),
        np.array(1.0),
        2,
        least_squares(None, np.zeros(2)),
        linearize=column,
    )
    assert found.gradient.shape == ()
    assert float(found.gradient) == 4.5  # x_2 = 3/2 (1, 1) theta


@pytest.mark.parametrize("shape", [(5, 7), (9, 4)])
def test_lasso_where_lambda_goes_to_zero(shape, rng):
    """The support no longer changes, and x is affine in λ: dJ/dθ is λ times a constant."""
    A, y, z = rng.standard_normal(shape), rng.standard_normal(shape[0]), np.ones(shape[1])
    top, slopes = np.abs(A.T @ y).max(), []
    for share in (1e-5, 1e-7, 1e-9):
        theta = math.log(share * top)
        found = bilevel.lasso(A, y, np.array(theta), least_squares(None, z))
        assert found.margin > 0
        slopes.append(float(found.gradient) / share)
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-3)


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_a_step_in_place_changes_no_kept_state(library, slots):
    like = np.zeros(1) if library == "numpy" else pytest.importorskip("torch").zeros(1).double()
    x0, theta = asarray_like([0.3, 0.7], like), asarray_like([0.5], like)

    def in_place(x, theta, k):
        x *= x
        x += theta
        return x

    def by_hand(x, theta, k):
        x = to_numpy(x)
        return tuple(asarray_like(M, like) for M in (np.diag(2 * x), np.ones((2, 1))))

    outer = least_squares(None, asarray_like([1.0, 0.0], like))
    found = [
        bilevel.unrolled(step, x0, theta, 5, outer, linearize=by_hand, slots=slots)
        for step in (in_place, lambda x, theta, k: x * x + theta)
    ]
    np.testing.assert_array_equal(to_numpy(found[0].gradient), to_numpy(found[1].gradient))
    np.testing.assert_array_equal(to_numpy(x0), [0.3, 0.7])


# ---------------------------------------------------------------- smooth inner problems: experts


def picture_operator(kind: str, like: Any, rng: np.random.Generator) -> LinearOperator | None:
    if kind == "subsampling":
        return operators.subsampling(asarray_like(rng.random((5, 6)) < 0.6, None) > 0)
    if kind == "convolution":
        kernel = asarray_like(rng.standard_normal((3, 3)), like)
        return operators.convolution(kernel, (5, 6), boundary="periodic")
    return None


@pytest.mark.parametrize("kind", ["identity", "convolution", "subsampling"])
@pytest.mark.parametrize("filters", [(1, 3, 3), (3, 3, 5), (2, 1, 1), (1, 7, 3)])
def test_experts_derivatives(kind, filters, rng):
    A = picture_operator(kind, DOUBLE, rng)
    y = rng.standard_normal((5, 6) if A is None else A.out_shape)
    theta, x = 0.5 * rng.standard_normal(filters), rng.standard_normal((5, 6))
    g = bilevel.experts(A, y, theta, eps=0.3)
    assert checks.gradients(g.value, x, {"gradient": g.gradient})
    H, C = g.hessian(x), g.cross(x)
    v, t = rng.standard_normal(x.shape), rng.standard_normal(filters)
    assert checks.gradients(
        lambda s: np.sum(g.gradient(x + s * v) * x),
        np.array(0.0),
        {"hessian": np.array(np.sum((H @ v) * x))},
    )

    # g_xθ: the derivative of ∇_x g by θ, and its adjoint.
    def turned(s):
        return np.sum(bilevel.experts(A, y, theta + s * t, eps=0.3).gradient(x) * v)

    assert checks.gradients(turned, np.array(0.0), {"cross": np.array(np.sum((C @ t) * v))})
    assert np.sum((C.H @ v) * t) == pytest.approx(np.sum((C @ t) * v), rel=1e-11)
    assert np.sum((H.H @ v) * x) == pytest.approx(np.sum((H @ v) * x), rel=1e-11)


def test_experts_is_a_convolution_with_centred_taps(rng):
    theta, x = rng.standard_normal((1, 3, 3)), rng.standard_normal((6, 6))
    K = operators.convolution(theta[0], (6, 6), boundary="periodic")
    phi = np.sum(np.sqrt((K @ x) ** 2 + 0.01**2) - 0.01)
    g = bilevel.experts(None, np.zeros((6, 6)), theta)
    assert float(g.value(x)) == pytest.approx(phi + np.sum(x**2) / 2, rel=1e-12)
    assert float(g.value(0 * x)) == 0


def learned(A, y, theta, x_true, rtol=1e-12):
    """J(θ) = ½‖x*(θ) - x_true‖², and its gradient by the implicit function theorem."""
    g, x0 = bilevel.experts(A, y, theta, eps=0.2), 0 * x_true
    found = run(bilevel.newton_cg(g, x0), stop=bilevel.newton_rule(g, x0, rtol=rtol), max_iter=100)
    assert found.converged, found.reason
    f, x = least_squares(None, x_true), found.x
    gradient = implicit.root_vjp(g.hessian(x), g.cross(x), f.gradient(x))
    return to_float(f(x)), gradient, x


def learning(kind: str) -> tuple:
    rng = np.random.default_rng(31)
    A, shape = picture_operator(kind, DOUBLE, rng), (5, 6)
    y, truth = rng.standard_normal(shape), rng.standard_normal(shape)
    return A, y, 0.4 * rng.standard_normal((2, 3, 3)), truth


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["identity", "convolution"])
def test_experts_hypergradient(kind):
    A, y, theta, truth = learning(kind)
    _, gradient, x = learned(A, y, theta, truth)
    ways = {
        "implicit": gradient,
        "sign": -gradient,
        "no inverse": -(bilevel.experts(A, y, theta, eps=0.2).cross(x).H @ (x - truth)),
    }
    table = checks.gradients(lambda t: learned(A, y, t, truth)[0], theta, ways, directions=3)
    assert list(table.verdicts.values()) == ["agrees", "wrong sign", "differs"], str(table)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_experts_in_torch(torch, dtype, rng):
    like = make_like("torch", dtype)
    y, truth = rng.standard_normal((2, 5, 6))
    theta = 0.4 * rng.standard_normal((2, 3, 3))
    value, gradient, x = learned(None, y, theta, truth)
    rtol = 1e-12 if dtype == "float64" else 1e-5
    found = learned(None, *(asarray_like(a, like) for a in (y, theta, truth)), rtol=rtol)
    assert_alike(found[1], like)
    bound = 1e-8 if dtype == "float64" else 1e-3
    assert found[0] == pytest.approx(value, rel=bound)
    assert relative(found[1], gradient) < bound
    # Torch's own derivative of ∇_x g by θ.
    if dtype == "float64":
        tensors = [torch.from_numpy(a) for a in (theta, x, truth)]
        tensors[0].requires_grad_()

        def g_x(theta, x):
            moved = torch.nn.functional.pad(x[None, None], (1, 1, 1, 1), mode="circular")
            flipped = torch.flip(theta, (1, 2))[:, None]
            s = torch.nn.functional.conv2d(moved, flipped)
            phi = torch.sqrt(s**2 + 0.2**2).sum()
            return torch.autograd.grad(phi, x, create_graph=True)[0] + x - torch.from_numpy(y)

        at = tensors[1].clone().requires_grad_()
        back = torch.autograd.grad(g_x(tensors[0], at), tensors[0], tensors[2])[0]
        mine = bilevel.experts(None, y, theta, eps=0.2).cross(x).H @ truth
        assert relative(mine, back) < 1e-11


def test_experts_says_what_is_wrong(rng):
    y = np.ones((4, 4))
    for A, data, theta in (
        (None, y, np.ones((1, 2, 3))),
        (None, y, np.ones((3, 3))),
        (None, np.ones(4), np.ones((1, 3, 3))),
        (np.eye(4), np.ones(4), np.ones((1, 3, 3))),
    ):
        with pytest.raises(ValueError, match="odd number of taps"):
            bilevel.experts(A, data, theta)
    for options in ({"eps": 0.0}, {"eps": -1.0}, {"eps": math.nan}):
        with pytest.raises(ValueError, match="eps"):
            bilevel.experts(None, y, np.ones((1, 3, 3)), **options)
    with pytest.raises(ValueError, match="one dtype"):
        bilevel.experts(None, y, np.ones((1, 3, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="y must be an array"):
        bilevel.experts(operators.identity((4, 4)), [[1.0]], np.ones((1, 3, 3)))


# ---------------------------------------------------------------- Newton's method


def logistic(seed: int, like: Any = DOUBLE, n: int = 6, shift: float = 0.1) -> Inner:
    """Σ log(1 + exp(-b aᵀx)) + ½ shift ‖x‖²: convex, not quadratic."""
    rng = np.random.default_rng([17, seed])
    A = asarray_like(rng.standard_normal((20, n)) * np.sign(rng.standard_normal((20, 1))), like)
    from array_api_compat import array_namespace

    xp = array_namespace(A)

    def sigma(x):
        return 1 / (1 + xp.exp(A @ x))

    def hessian(x):
        w = sigma(x) * (1 - sigma(x))
        return operators.matrix(A.T @ (w[:, None] * A) + shift * asarray_like(np.eye(n), like))

    return Inner(
        lambda x: xp.sum(xp.log1p(xp.exp(-(A @ x)))) + 0.5 * shift * inner(x, x),
        lambda x: -(A.T @ sigma(x)) + shift * x,
        hessian,
    )


@pytest.mark.parametrize("seed", range(5))
def test_newton_solves_convex_problems(seed):
    from scipy.optimize import minimize

    g, x0 = logistic(seed), 3 * np.random.default_rng(seed).standard_normal(6)
    found = run(
        bilevel.newton_cg(g, x0),
        stop=bilevel.newton_rule(g, x0, rtol=1e-11),
        max_iter=30,
        record={"value": lambda state: state.value},
    )
    assert found.converged, found.reason
    assert found.iterations < 15
    assert (np.diff(found.history["value"]) <= 1e-13 * abs(found.history["value"][-1])).all()
    reference = minimize(g.value, x0, jac=g.gradient, tol=1e-12)
    np.testing.assert_allclose(found.x, reference.x, atol=1e-5)
    assert np.linalg.norm(g.gradient(found.x)) < 1e-9


def test_newton_is_exact_for_quadratics_and_over_arrays(torch):
    rng = np.random.default_rng(2)
    H = rng.standard_normal((5, 5))
    H, b = H @ H.T + np.eye(5), rng.standard_normal(5)
    g = Inner(lambda x: 0.5 * x @ H @ x - b @ x, lambda x: H @ x - b, lambda x: operators.matrix(H))
    found = run(
        bilevel.newton_cg(g, np.zeros(5)),
        stop=bilevel.newton_rule(g, np.zeros(5), rtol=1e-12),
        max_iter=20,
    )
    np.testing.assert_allclose(found.x, np.linalg.solve(H, b), rtol=1e-9)
    for dtype, rtol in (("float64", 1e-11), ("float32", 1e-5)):
        like = make_like("torch", dtype)
        g, x0 = logistic(1, like), asarray_like(np.ones(6), like)
        found = run(
            bilevel.newton_cg(g, x0), stop=bilevel.newton_rule(g, x0, rtol=rtol), max_iter=30
        )
        assert found.converged, found.reason
        assert_alike(found.x, like)
        g, x0 = logistic(1), np.ones(6)
        expected = run(
            bilevel.newton_cg(g, x0), stop=bilevel.newton_rule(g, x0, rtol=1e-12), max_iter=30
        )
        assert relative(found.x, expected.x) < 100 * rtol


def test_newton_stays_in_the_domain():
    """g = Σ(x - ln x) is not a number for x < 0, where Newton's first step would go."""
    g = Inner(
        lambda x: (x - np.log(x)).sum() if (x > 0).all() else math.nan,
        lambda x: 1 - 1 / x,
        lambda x: operators.diagonal(1 / x**2),
    )
    x0 = np.array([3.0, 0.5])
    result = run(bilevel.newton_cg(g, x0), stop=bilevel.newton_rule(g, x0, rtol=1e-10), max_iter=50)
    assert result.converged
    np.testing.assert_allclose(result.x, 1.0, rtol=1e-8)
    with pytest.raises(ValueError, match="g at the start must be finite"):
        next(bilevel.newton_cg(g, -x0))
    for wrong in (x0 * math.nan, list(x0)):
        with pytest.raises(ValueError, match="x0 must be"):
            bilevel.newton_rule(g, wrong, rtol=1e-10)


def test_newton_says_that_a_problem_is_not_convex():
    H = np.diag([1.0, -2.0])
    g = Inner(lambda x: 0.5 * x @ H @ x, lambda x: H @ x, lambda x: operators.matrix(H))
    for x0 in (np.array([0.0, 1.0]), np.array([0.1, 1.0])):
        found = run(
            bilevel.newton_cg(g, x0), stop=bilevel.newton_rule(g, x0, rtol=1e-9), max_iter=50
        )
        assert not found.converged
        assert (
            "not convex" in found.reason or "max_iter" in found.reason or "finite" in found.reason
        )
    done = run(bilevel.newton_cg(g, np.zeros(2)), max_iter=3)
    assert done.iterations == 0
    assert "exactly zero" in done.reason
    # At the minimum to rounding no step is taken.
    g = logistic(0)
    found = run(bilevel.newton_cg(g, np.ones(6)), max_iter=100)
    assert found.iterations < 30
    assert "rounding" in found.reason or "exactly zero" in found.reason
    with pytest.raises(ValueError, match="x0"):
        bilevel.newton_cg(g, [1.0])
    with pytest.raises(ValueError, match="rtol"):
        bilevel.newton_rule(g, np.ones(6), rtol=-1.0)


# ---------------------------------------------------------------- federated


def clients(number: int, like: Any = DOUBLE, n: int = 6) -> list:
    found = []
    for i in range(number):
        rng = np.random.default_rng([19, i])
        B, z = rng.standard_normal((8, n)), rng.standard_normal(8)
        found.append(
            (logistic(i, like, n), least_squares(asarray_like(B, like), asarray_like(z, like)))
        )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.05, 1.0, 30.0])
def test_federated_is_the_derivative(rho):
    group, x0 = clients(3), np.random.default_rng(4).standard_normal(6)
    found = bilevel.federated(group, x0, rho=rho, rtol=1e-13)
    ways = {
        "implicit": found.gradient,
        "without the factor rho": found.gradient / (rho + 1.5),
        "envelope": rho * (3 * x0 - found.x.sum(axis=0)),
        "one client lost": bilevel.federated(group[:2], x0, rho=rho).gradient,
    }
    table = checks.gradients(
        lambda x: bilevel.federated(group, x, rho=rho, rtol=1e-13).value, x0, ways
    )
    assert list(table.verdicts.values()) == ["agrees", *3 * ["differs"]], str(table)
    assert found.x.shape == (3, 6)
    apart = [bilevel.federated([each], x0, rho=rho, rtol=1e-13) for each in group]
    np.testing.assert_allclose(sum(each.gradient for each in apart), found.gradient, rtol=1e-9)
    assert sum(each.value for each in apart) == pytest.approx(found.value, rel=1e-9)


def test_federated_limits_and_arrays(torch):
    group, x0 = clients(2), np.ones(6)
    near = bilevel.federated(group, x0, rho=1e9)
    np.testing.assert_allclose(near.gradient, sum(f.gradient(x0) for _, f in group), rtol=1e-6)
    far = bilevel.federated(group, x0, rho=1e-9)  # the shared model does not matter
    assert np.linalg.norm(far.gradient) < 1e-6
    expected = bilevel.federated(group, x0, rho=1.0, rtol=1e-12)
    for dtype, bound in (("float64", 1e-7), ("float32", 1e-3)):
        like = make_like("torch", dtype)
        found = bilevel.federated(clients(2, like), asarray_like(x0, like), rho=1.0)
        assert_alike(found.gradient, like)
        assert relative(found.gradient, expected.gradient) < bound
        assert found.value == pytest.approx(expected.value, rel=bound)
    twice = bilevel.federated(group, x0, rho=1.0, total=lambda array: 2 * array)
    np.testing.assert_allclose(twice.gradient, 2 * expected.gradient, rtol=1e-6)
    assert twice.value == pytest.approx(2 * expected.value)


def test_federated_says_what_is_wrong():
    group, x0 = clients(1), np.ones(6)
    for arguments, options, words in (
        ((group, x0), {"rho": 0.0}, "rho"),
        ((group, x0), {"rho": -1.0}, "rho"),
        ((group, x0), {"rho": 1.0, "rtol": 0.0}, "rtol"),
        (([], x0), {"rho": 1.0}, "clients"),
        ((group[0], x0), {"rho": 1.0}, "clients must be a list of pairs"),
        (([(group[0][0], lambda x: 0.0)], x0), {"rho": 1.0}, "outer must be a functional"),
        ((group, x0.astype(np.float32)), {"rho": 1.0}, "a client's gradient"),
        ((group, x0), {"rho": 1.0, "total": lambda both: None}, "what total returns"),
        ((group, x0), {"rho": 1.0, "total": lambda both: both * np.nan}, "what total returns"),
        ((group, [1.0] * 6), {"rho": 1.0}, "x0"),
        ((group, x0 * np.nan), {"rho": 1.0}, "x0"),
    ):
        with pytest.raises(ValueError, match=words):
            bilevel.federated(*arguments, **options)
    H = np.diag([1.0, -5.0])
    saddle = Inner(lambda x: 0.5 * x @ H @ x, lambda x: H @ x, lambda x: operators.matrix(H))
    with pytest.raises(ValueError, match="must be solved"):
        bilevel.federated([(saddle, least_squares(None, np.zeros(2)))], np.ones(2), rho=1.0)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6])
def test_federated_does_not_see_the_units(scale, rng):
    """g and ρ times c have the same models, and so the same hypergradient."""
    x0, group, expected = rng.standard_normal(5), [], 0
    for m in (8, 3):
        A, y, B, z = (rng.standard_normal(s) for s in ((m, 5), m, (4, 5), 4))
        H = scale * A.T @ A
        g = Inner(
            lambda x: 0.0,
            lambda x, A=A, y=y: scale * A.T @ (A @ x - y),
            lambda x, H=H: operators.matrix(H),
        )
        group.append((g, least_squares(B, z)))
        near = H / scale + 0.7 * np.eye(5)
        x = np.linalg.solve(near, A.T @ y + 0.7 * x0)
        expected = expected + 0.7 * np.linalg.solve(near, B.T @ (B @ x - z))
    found = bilevel.federated(group, x0, rho=0.7 * scale)
    np.testing.assert_allclose(found.gradient, expected, rtol=1e-7)


def _one_process_fails(rank: int, port: int, folder: str) -> None:
    """Three rounds: in the second the client of rank 1 fails; rank 2 has no clients at all."""
    import torch
    import torch.distributed as dist

    from course_lib import autodiff

    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=3)
    mine, values = clients(2, torch.zeros(1, dtype=torch.float64))[rank : rank + 1], []
    for k in range(3):
        if rank == 1:
            broken = replace(mine[0][0], hessian=lambda x: 1 / 0)
            now = [(broken, mine[0][1])] if k == 1 else mine
        else:
            now = mine
        x0 = (k + 1.0) * torch.ones(6, dtype=torch.float64)
        try:
            values.append(bilevel.federated(now, x0, rho=0.7, total=autodiff.all_reduce).value)
        except (ValueError, ZeroDivisionError) as error:
            values.append(str(error))
    torch.save(values, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.kernels
def test_a_process_that_fails_keeps_in_step(torch, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_one_process_fails, (port, str(tmp_path)), nprocs=3)
    right = [bilevel.federated(clients(2), (k + 1.0) * np.ones(6), rho=0.7).value for k in range(3)]
    for rank in range(3):
        first, second, third = torch.load(tmp_path / f"{rank}.pt")
        assert first == pytest.approx(right[0], rel=1e-7)
        assert third == pytest.approx(right[2], rel=1e-7)
        assert "division" in second if rank == 1 else "one of another process failed" in second


def _one_process(rank: int, size: int, port: int, folder: str) -> None:
    """What each process does: its own clients, its own machine, one sum."""
    import torch
    import torch.distributed as dist

    from course_lib import autodiff

    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    like = torch.zeros(1, dtype=torch.float64)
    mine = clients(4, like)[rank::size]
    found = bilevel.federated(
        mine, torch.ones(6, dtype=torch.float64), rho=0.7, rtol=1e-12, total=autodiff.all_reduce
    )
    torch.save((found.gradient, found.value), os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.parametrize("shape", [(9,), (10,), (6, 7), (7, 6)])
def test_normal_matrix_of_a_periodic_convolution(shape, rng, like):
    """It takes two Fourier transforms; the product must be that of A and its adjoint."""
    psf = asarray_like(rng.standard_normal((3,) * len(shape)), like)  # not symmetric
    A = operators.convolution(psf, shape, boundary="periodic")
    v = asarray_like(rng.standard_normal(shape), like)
    found = bilevel._normal(A, [(2.0, operators.identity(shape))], v) @ v
    assert_alike(found, like)
    assert relative(found, A.H @ (A @ v) + 2 * v) < 30 * eps(like)


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize("size", [2, 3, 4])
def test_federated_in_processes_of_their_own(torch, size, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_one_process, (size, port, str(tmp_path)), nprocs=size)
    expected = bilevel.federated(clients(4), np.ones(6), rho=0.7, rtol=1e-12)
    for rank in range(size):
        gradient, value = torch.load(tmp_path / f"{rank}.pt")
        np.testing.assert_allclose(gradient.numpy(), expected.gradient, rtol=1e-9)
        assert value == pytest.approx(expected.value, rel=1e-11)


# ---------------------------------------------------------------- ordinary differential equations


def pendulum(x, p, t):
    return np.array([x[1], -p[0] * np.sin(x[0]) - p[1] * x[1] + math.cos(t)])


def pendulum_x(x, p, t):
    return np.array([[0.0, 1.0], [-p[0] * np.cos(x[0]), -p[1]]])


def pendulum_p(x, p, t):
    return np.array([[0.0, 0.0], [-np.sin(x[0]), -x[1]]])


def swing(p, x0, t, Z, **parts):
    f_x, f_p = parts.get("f_x", pendulum_x), parts.get("f_p", pendulum_p)
    return bilevel.ode(pendulum, f_x, f_p, x0, p, t, least_squares(None, Z))


@pytest.mark.parametrize("broken", [None, "f_x transposed", "sign of f_p", "half a step of f_p"])
@pytest.mark.parametrize("grid", ["equal", "unequal", "one step"])
def test_ode_is_the_derivative(grid, broken, rng):
    t = {"equal": np.linspace(0, 2, 21), "one step": np.array([0.5, 0.8])}.get(grid)
    t = np.sort(rng.uniform(0, 2, 15)) if t is None else t
    p, x0, Z = np.array([2.0, 0.4]), np.array([0.7, -0.3]), rng.standard_normal((len(t), 2))
    parts = {
        None: {},
        "f_x transposed": {"f_x": lambda x, p, t: pendulum_x(x, p, t).T},
        "sign of f_p": {"f_p": lambda x, p, t: -pendulum_p(x, p, t)},
        "half a step of f_p": {"f_p": lambda x, p, t: pendulum_p(x, p, t) / 2},
    }[broken]
    with rejects(broken):
        try:
            found = swing(p, x0, t, Z, **parts)
        except ValueError as error:  # Newton's method needs f_x too
            raise AssertionError(str(error)) from None
        assert checks.gradients(lambda q: swing(q, x0, t, Z).value, p, {"by p": found.gradient})
        by_x0 = {"by x0": found.adjoint[0]}
        assert checks.gradients(lambda x: swing(p, x, t, Z).value, x0, by_x0)


def test_ode_is_of_second_order_and_stable():
    def ends(steps: int) -> np.ndarray:
        t = np.linspace(0, 3, steps + 1)
        found = swing(np.array([2.0, 0.4]), np.array([0.7, -0.3]), t, np.zeros((steps + 1, 2)))
        return found.x[-1]

    exact = ends(1600)
    errors = [np.linalg.norm(ends(steps) - exact) for steps in (20, 40, 80)]
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 4, rtol=0.15)
    # Stiff: the explicit rule would need steps of 2e-6.
    t = np.linspace(0, 1, 11)
    found = bilevel.ode(
        lambda x, p, t: -1e6 * (x - p),
        lambda x, p, t: -1e6 * np.eye(1),
        lambda x, p, t: 1e6 * np.eye(1),
        np.ones(1),
        np.zeros(1),
        t,
        least_squares(None, np.zeros((11, 1))),
    )
    assert np.abs(found.x).max() <= 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-4, 1e10])
def test_ode_does_not_see_the_units(dtype, scale):
    """Growth to a limit s: x/s does not depend on s."""
    scale, found = np.dtype(dtype).type(scale), []
    if dtype == "float32" and scale < 1e-20:
        return  # its square is 0

    for s in (np.dtype(dtype).type(1), scale):
        found.append(
            bilevel.ode(
                lambda x, p, t, s=s: p * x * (1 - x / s),
                lambda x, p, t, s=s: np.diag(p * (1 - 2 * x / s)),
                lambda x, p, t, s=s: (x * (1 - x / s))[:, None],
                np.array([0.1 * s], dtype),
                np.array([3.0], dtype),
                np.linspace(0, 3, 7).astype(dtype),
                least_squares(None, np.zeros((7, 1), dtype)),
            )
        )
    digits = 2e-5 if dtype == "float32" else 1e-12
    assert relative(found[1].x / scale, found[0].x) < digits
    assert relative(found[1].gradient / scale / scale, found[0].gradient) < digits


@pytest.mark.parametrize("stiff", [1e2, 1e6, 1e9])
def test_ode_of_stiff_systems(stiff, rng):
    """A linear system has one solution in each step, however stiff it is."""
    Q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    K, t = -(Q * np.geomspace(1, stiff, 6)) @ Q.T, np.linspace(0, 1, 30)
    x0, p, h = rng.standard_normal(6), rng.standard_normal(6), 1 / 29
    found = bilevel.ode(
        lambda x, p, t: K @ x + p,
        lambda x, p, t: K,
        lambda x, p, t: np.eye(6),
        x0,
        p,
        t,
        least_squares(None, np.zeros((30, 6))),
    )
    # In the basis of the eigenvectors each component goes by itself.
    growth, z, expected = -np.geomspace(1, stiff, 6), Q.T @ x0, [x0]
    for _ in range(29):
        z = ((1 + h / 2 * growth) * z + h * (Q.T @ p)) / (1 - h / 2 * growth)
        expected.append(Q @ z)
    assert relative(found.x, np.array(expected)) < 1e-13 * stiff + 1e-12


def test_ode_checks_what_callables_return():
    p, x0, t = np.array([2.0, 0.4]), np.array([0.7, -0.3]), np.linspace(0, 1, 6)
    parts = {"f": pendulum, "f_x": pendulum_x, "f_p": pendulum_p}
    outer = least_squares(None, np.zeros((6, 2)))
    for changed, words in (
        ({"f": lambda x, p, t: np.ones(1)}, r"f has the wrong shape: expected \(2,\)"),
        ({"f": lambda x, p, t: 1.0}, "f must be an array"),
        ({"f": lambda x, p, t: x * 1j}, "f must be real"),
        ({"f_x": lambda x, p, t: -np.ones(2)}, r"f_x has the wrong shape: expected \(2, 2\)"),
        ({"f_p": lambda x, p, t: np.ones((2, 1))}, r"f_p has the wrong shape: expected \(2, 2\)"),
        ({"f_p": lambda x, p, t: np.full((2, 2), math.nan)}, "f_p must be finite"),
        ({"outer": least_squares(None, np.zeros((7, 2)))}, "must have|shape"),
        ({"outer": Functional(lambda x: 1.0, lambda x: x * math.nan)}, "gradient of the outer"),
        ({"outer": Functional(lambda x: math.nan, lambda x: x)}, "the outer loss must be finite"),
    ):
        now = parts | {"outer": outer} | changed
        with pytest.raises(ValueError, match=words):
            bilevel.ode(now["f"], now["f_x"], now["f_p"], x0, p, t, now["outer"])
    # An f_p that writes into the same memory each time is none the worse for it.
    memory = np.zeros((2, 2))

    def same(x, p, t):
        memory[:] = pendulum_p(x, p, t)
        return memory

    expected = bilevel.ode(pendulum, pendulum_x, pendulum_p, x0, p, t, outer).gradient
    found = bilevel.ode(pendulum, pendulum_x, same, x0, p, t, outer).gradient
    np.testing.assert_array_equal(found, expected)


def test_ode_says_what_is_wrong(torch):
    p, x0, t = np.ones(2), np.ones(2), np.linspace(0, 1, 5)
    Z = np.zeros((5, 2))
    for arguments, words in (
        ((p, x0, t[::-1].copy(), Z), "above the one before"),
        ((p, x0, t[:1], Z[:1]), "two numbers or more"),
        ((p, x0, torch.linspace(0, 1, 5), Z), "NumPy"),
        ((p, torch.ones(2), t, Z), "NumPy"),
        ((p, x0[None], t, Z), "dimensions"),
        ((list(p), x0, t, Z), "must be an array"),
        ((p * np.nan, x0, t, Z), "finite"),
        ((p.astype(np.float32), x0, t, Z), "one dtype"),
    ):
        with pytest.raises(ValueError, match=words):
            swing(*arguments)
    with pytest.raises(ValueError, match="outer"):
        bilevel.ode(pendulum, pendulum_x, pendulum_p, x0, p, t, None)
    # ẋ = x² from 2 is infinite at t = 1/2: a step of 1 has no solution.
    with pytest.raises(ValueError, match="every step must have a solution"):
        bilevel.ode(
            lambda x, p, t: x**2,
            lambda x, p, t: np.diag(2 * x),
            lambda x, p, t: np.zeros((1, 1)),
            np.array([2.0]),
            np.ones(1),
            np.array([0.0, 1.0]),
            least_squares(None, np.zeros((2, 1))),
        )
    single = swing(*(a.astype(np.float32) for a in (p, x0, t, Z)))
    assert single.gradient.dtype == np.float32
    assert relative(single.gradient, swing(p, x0, t, Z).gradient) < 1e-4


# ---------------------------------------------------------------- the outer loop


def validation(seed: int, n: int = 12) -> dict:
    """Data of a truth with falling coefficients, an ill-conditioned operator, noise."""
    rng = np.random.default_rng([23, seed])
    U = np.linalg.qr(rng.standard_normal((n, n)))[0]
    s, truth = np.logspace(0, -3, n), rng.standard_normal(n) / np.arange(1, n + 1)
    A, B = (np.linalg.qr(rng.standard_normal((n, n)))[0] * s @ U for _ in range(2))
    y, z = (M @ (U.T @ truth) + 0.02 * rng.standard_normal(n) for M in (A, B))
    return {"A": A, "y": y, "B": B, "z": z, "D": None, "outer": least_squares(B, z)}


def outer_loss(problem: dict) -> partial:
    return partial(
        bilevel.tikhonov, problem["A"], problem["y"], outer=problem["outer"], D=problem["D"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("broken", [None, "three steps only"])
def test_descend_reaches_the_minimizer_of_a_grid(broken, report_line):
    grid, steps, gaps = np.linspace(-16, 6, 221), [], []
    for seed in SEEDS:
        problem = validation(seed)
        values = np.array([dense_tikhonov(problem, np.array(theta))[0] for theta in grid])
        result = run(
            bilevel.descend(outer_loss(problem), np.array(0.0)),
            max_iter=3 if broken else 80,
            record={"value": lambda s: s.value, "rtol": lambda s: s.rtol},
        )
        minima = (values[1:-1] <= values[:-2]) & (values[1:-1] <= values[2:])
        if np.count_nonzero(minima) == 1 and 0 < values.argmin() < len(grid) - 1:
            gaps.append(result.state.value / values.min() - 1)
        found = np.array(result.history["value"])
        assert (np.diff(found) <= 1e-3 * found[:-1]).all()  # the first tolerance
        assert (np.diff(result.history["rtol"]) <= 0).all()
        steps.append(result.iterations)
        if not broken:
            assert "stationary" in result.reason, result.reason
            assert result.history["rtol"][-1] <= 1e-7
            near, slope = (
                np.abs(dense_tikhonov(problem, np.array(theta))[1]) for theta in (result.x, 0.0)
            )
            assert near <= 1e-5 * slope
    with rejects(broken):
        assert len(gaps) >= 8
        # At most the minimum on the grid: between its points J is lower still.
        assert max(gaps) <= 1e-9
    if not broken:
        report_line(f"descend: steps to a stationary point {summary(steps)}")


@pytest.mark.slow
@pytest.mark.parametrize("broken", [None, "cold starts"])
def test_descend_saves_steps_by_warm_starts(broken, report_line):
    shares = []
    for seed in range(3):
        rng, visited = np.random.default_rng([29, seed]), []
        A = operators.convolution(np.full((3, 3), 1 / 9), (16, 16), boundary="periodic")
        truth = np.cumsum(np.cumsum(rng.standard_normal((16, 16)), 0), 1) / 16
        y, z = (A @ truth + 0.05 * rng.standard_normal((16, 16)) for _ in range(2))
        J = partial(
            bilevel.tikhonov, A, y, outer=least_squares(A, z), D=operators.gradient((16, 16))
        )

        def counted(theta, *, rtol, start, J=J, visited=visited):
            found = J(theta, rtol=rtol, start=None if broken else start)
            visited.append((theta, rtol, sum(found.steps)))
            return found

        run(bilevel.descend(counted, np.array(2.0)), max_iter=12)
        cold = sum(sum(J(theta, rtol=rtol).steps) for theta, rtol, _ in visited)
        shares.append(sum(steps for *_, steps in visited) / cold)
    with rejects(broken):
        assert max(shares) < 0.8
    if not broken:
        report_line(f"descend: inner steps, warm / cold at the same points {summary(shares)}")


@pytest.mark.slow
def test_descend_many_hyperparameters():
    problem = dict(instance("entries", seed=5))
    start = outer_loss(problem)(problem["theta"], rtol=1e-10)
    result = run(
        bilevel.descend(outer_loss(problem), problem["theta"]),
        max_iter=200,
        record={"value": lambda s: s.value, "size": lambda s: float(np.linalg.norm(s.gradient))},
    )
    values = np.array(result.history["value"])
    assert values[-1] < 0.9 * start.value
    assert result.history["size"][-1] < 1e-3 * result.history["size"][0]
    assert (np.diff(values) <= 1e-6 * values[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lasso", "elastic net"])
def test_descend_on_sparse_problems(method):
    A, y, outer, level = sparse_problem(4)
    top = math.log(np.abs(A.T @ y).max())
    if method == "lasso":
        J = partial(bilevel.lasso, A, y, outer=outer)
        grid = np.linspace(top - 6, top, 200)
        best = min(J(np.array(theta)).value for theta in grid)
        result = run(bilevel.descend(J, np.array(level)), max_iter=80)
        assert result.state.value <= best * 1.05
        return
    J = partial(bilevel.elastic_net, A, y, outer=outer)
    start = np.array([level, 0.0])
    result = run(bilevel.descend(J, start), max_iter=80)
    best = min(
        J(np.array([a, b])).value
        for a in np.linspace(top - 5, top, 20)
        for b in np.linspace(-6, 4, 20)
    )
    assert result.state.value < 0.9 * J(start).value
    assert result.state.value <= best * 1.02


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1.0, 1e6, 1e60])
def test_descend_does_not_see_the_units(scale):
    """J in other units: the same path, and the same end."""
    rng = np.random.default_rng(1)
    A, B, truth = (rng.standard_normal(s) for s in ((12, 6), (12, 6), 6))
    y, z = A @ truth + rng.standard_normal(12), B @ truth + rng.standard_normal(12)
    ends = [
        run(
            bilevel.descend(
                partial(bilevel.tikhonov, A, c * y, outer=least_squares(B, c * z)), np.array(-3.0)
            ),
            max_iter=300,
        )
        for c in (1.0, scale)
    ]
    assert float(ends[0].x) > 0
    assert float(ends[1].x) == pytest.approx(float(ends[0].x), abs=1e-5)
    assert "stationary" in ends[1].reason


def test_descend_does_not_call_anything_stationary():
    def bowl(theta, **_):
        return bilevel.Hypergradient(float(theta @ theta) + 1, 2 * theta, theta, theta)

    start = np.array([1.0, 2.0])
    for wrong in (-1.0, np.array([[0.0, -1.0], [0.5, 0.0]])):
        turned = lambda theta, wrong=wrong, **_: replace(  # noqa: E731
            bowl(theta), gradient=np.dot(wrong, theta)
        )
        result = run(bilevel.descend(turned, start), max_iter=30)
        assert "a wrong gradient" in result.reason
        assert "stationary" not in result.reason
    for changed, words in (
        ({"value": math.nan}, "the outer loss must be finite"),
        ({"value": math.inf}, "the outer loss must be finite"),
        ({"gradient": start * math.nan}, "the hypergradient must be finite"),
        ({"gradient": np.ones(3)}, r"the shape \(2,\), got \(3,\)"),
    ):
        wrong = lambda theta, changed=changed, **_: replace(bowl(theta), **changed)  # noqa: E731
        with pytest.raises(ValueError, match=words):
            next(bilevel.descend(wrong, start))


def test_descend_stops_with_a_reason():
    one = np.eye(1)
    J = partial(bilevel.tikhonov, one, np.array([2.0]), outer=least_squares(one, np.array([0.5])))
    result = run(bilevel.descend(J, np.array(0.0)), max_iter=500)
    assert result.iterations < 60
    assert "stationary" in result.reason or "exactly zero" in result.reason
    assert float(np.exp(result.x)) == pytest.approx(3, rel=1e-6)
    flat = partial(bilevel.tikhonov, one, np.array([0.0]), outer=least_squares(one, np.ones(1)))
    result = run(bilevel.descend(flat, np.array(0.0)), max_iter=5)
    assert result.iterations == 0
    assert result.reason == "the gradient is exactly zero"

    # The wrong sign is found out: no step along it lowers J.
    def uphill(theta, **options):
        found = J(theta, **options)
        return replace(found, gradient=-found.gradient)

    result = run(bilevel.descend(uphill, np.array(0.0)), max_iter=50)
    assert "no step lowers the loss" in result.reason
    assert float(result.x) == 0


def test_descend_never_leaves_the_domain_and_takes_bounded_steps():
    # J falls to its limit as λ goes to infinity: θ moves by at most 3 at a time.
    one = np.eye(1)
    J = partial(bilevel.tikhonov, one, np.array([2.0]), outer=least_squares(one, -np.ones(1)))
    states = []
    run(
        bilevel.descend(J, np.array(0.0), step=1e3),
        max_iter=8,
        callback=lambda k, state: states.append(float(state.x)),
    )
    assert (np.diff(states) > 0).all()
    assert np.abs(np.diff(states)).max() <= 3 + 1e-12


def test_descend_over_torch_and_single_precision(torch):
    problem = validation(1)
    reference = run(bilevel.descend(outer_loss(problem), np.array(0.0)), max_iter=60)
    for dtype, bound in (("float64", 1e-4), ("float32", 0.05)):
        like = make_like("torch", dtype)
        A, y, B, z = (asarray_like(problem[key], like) for key in ("A", "y", "B", "z"))
        J = partial(bilevel.tikhonov, A, y, outer=least_squares(B, z))
        result = run(bilevel.descend(J, asarray_like(0.0, like)), max_iter=60)
        assert_alike(result.x, like)
        assert result.state.value == pytest.approx(reference.state.value, rel=bound)


def test_descend_says_what_is_wrong():
    one = np.eye(1)
    J = partial(bilevel.tikhonov, one, np.array([2.0]), outer=least_squares(one, np.array([0.5])))
    for options, words in (
        ({"step": 0.0}, "step"),
        ({"step": math.nan}, "step"),
        ({"rtol": 1e-12}, "rtol"),
        ({"rtol_min": 0.0}, "rtol_min"),
    ):
        with pytest.raises(ValueError, match=words):
            bilevel.descend(J, np.array(0.0), **options)
    for theta in ([0.0], None, np.array(math.inf), np.array(0.0, dtype=np.float16)):
        with pytest.raises(ValueError, match="theta0"):
            bilevel.descend(J, theta)


# ---------------------------------------------------------------- bad input, all together


@pytest.mark.parametrize("name", ["tikhonov", "lasso", "elastic_net"])
def test_bad_input(name, torch):
    method, A, y = getattr(bilevel, name), np.eye(3), np.ones(3)
    theta = np.zeros(2) if name == "elastic_net" else np.array(0.0)
    good = {"A": A, "y": y, "theta": theta, "outer": squared_l2()}
    method(**good)
    wrong = {
        "A": ["A", [[1.0]], np.ones(3), np.full((3, 3), np.nan), np.eye(3, dtype=np.float16)],
        "y": [[1.0] * 3, np.ones(4), np.full(3, np.inf), torch.ones(3), np.ones(3, dtype="f4")],
        "theta": [
            *(0.0, [0.0], None, np.ones(5), theta * np.nan, theta + 1e4, theta - 1e4),
            *(theta.astype(np.float32), theta.astype(np.float16), torch.zeros(theta.shape)),
        ],
        "outer": [None, 1.0, np.ones(3), Functional(lambda x: x)],
    }
    for argument, values in wrong.items():
        for value in values:
            with pytest.raises(ValueError, match=r"must|wrong|one library|one dtype") as error:
                method(**{**good, argument: value})
            assert len(str(error.value)) > 20


def test_bad_input_of_tikhonov_alone():
    A, y, outer = np.eye(3), np.ones(3), squared_l2()
    for theta, options, words in (
        (np.array(0.0), {"D": np.eye(4)}, "D must take x"),
        (np.array(0.0), {"D": "D"}, "must be"),
        (np.zeros(1), {}, "theta must have"),
        (np.zeros(2), {"D": [None]}, "an entry for each D"),
        (np.array(0.0), {"D": [None]}, "an entry for each D"),
        (np.zeros(3), {"D": operators.difference(3)}, "theta must have"),
        (np.array(0.0), {"rtol": 0.0}, "rtol"),
        (np.array(0.0), {"max_iter": -1}, "max_iter"),
        (np.array(0.0), {"lip_outer": -1.0}, "lip_outer"),
    ):
        with pytest.raises(ValueError, match=words):
            bilevel.tikhonov(A, y, theta, outer, **options)
    with pytest.raises(ValueError, match="inner system must be solved"):
        tikhonov(instance("pictures"), max_iter=2)


def test_input_is_not_changed():
    for name in ("list", "pictures"):
        problem = instance(name)
        before = problem["y"].copy(), np.copy(problem["theta"])
        found = tikhonov(problem)
        copies = found.x.copy(), found.adjoint.copy()
        tikhonov(problem, problem["theta"] + 0.1, start=found)
        for a, b in zip(
            (problem["y"], problem["theta"], found.x, found.adjoint), before + copies, strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_evidence_and_choice_agree(rng):
    """The λ of `choice.evidence` is where the slope here is zero."""
    A, noise_std = rng.standard_normal((20, 8)), 0.9
    y = A @ rng.standard_normal(8) + noise_std * rng.standard_normal(20)
    chosen = choice.evidence(A, y, noise_std=noise_std, grid=np.logspace(-3, 4, 120))
    theta = np.array(math.log(chosen.lam / noise_std**2))
    _, slope = bilevel.evidence(A, y, theta, noise_std=noise_std)
    _, beside = bilevel.evidence(A, y, theta + 0.5, noise_std=noise_std)
    assert abs(slope) < 0.05 * abs(beside)


def stacked_reference(A, y, B, z, D, theta):
    """Value and gradient by QR of A over √λ D: the normal matrix is never formed."""
    K = np.vstack([A, math.exp(theta / 2) * D])
    Q, R = np.linalg.qr(K)
    x = np.linalg.solve(R, Q.T @ np.append(y, np.zeros(len(D))))
    psi = np.linalg.solve(R, np.linalg.solve(R.T, B.T @ (B @ x - z)))
    return 0.5 * np.sum((B @ x - z) ** 2), -math.exp(theta) * (D @ psi) @ (D @ x)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rtol", [1e-10, 1e-3])
def test_tikhonov_of_few_data_where_lambda_is_small(seed, rtol):
    """What A does not see is set by λD alone: a small residual says little of it."""
    rng = np.random.default_rng([31, seed])
    A, B, D = (
        rng.standard_normal((10, 20)),
        rng.standard_normal((10, 20)),
        np.diff(np.eye(20), 1, 0),
    )
    truth = np.sin(np.arange(20) / 4)
    y, z = A @ truth + 0.01 * rng.standard_normal(10), B @ truth
    for theta in (0.0, -10.0, -20.0):
        expected = stacked_reference(A, y, B, z, D, theta)
        found = bilevel.tikhonov(A, y, np.array(theta), least_squares(B, z), D=D, rtol=rtol)
        assert found.value == pytest.approx(expected[0], rel=100 * rtol**0.5)
        assert abs(found.gradient - expected[1]) <= 300 * rtol**0.5 * expected[0]
    with pytest.raises(ValueError, match="singular to rounding"):
        bilevel.tikhonov(A, y, np.array(-40.0), least_squares(B, z), D=D, rtol=rtol)
    single = [a.astype(np.float32) for a in (A, y, B, z, D)]
    with pytest.raises(ValueError, match="singular to rounding"):
        bilevel.tikhonov(*single[:2], np.array(-15, "f4"), least_squares(*single[2:4]), D=single[4])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(5))
def test_tikhonov_names_what_nothing_determines(seed, dtype):
    """A and D with null vectors in common: any x would do, and rounding would choose one."""
    rng = np.random.default_rng([37, seed])
    A, D, B = (rng.standard_normal(shape).astype(dtype) for shape in ((4, 12), (5, 12), (6, 12)))
    y, z = rng.standard_normal(4).astype(dtype), rng.standard_normal(6).astype(dtype)
    with pytest.raises(ValueError, match="singular to rounding|must be solved"):
        bilevel.tikhonov(A, y, np.array(0, dtype), least_squares(B, z), D=D)


def test_tikhonov_where_lambda_goes_to_infinity(rng):
    """x tends to the constant that fits best, until λ leaves nothing of A in H; then it says so."""
    A, D, truth = rng.standard_normal((20, 30)), np.diff(np.eye(30), 1, 0), rng.standard_normal(30)
    y = A @ truth
    level = (A.sum(axis=1) @ y) / np.sum(A.sum(axis=1) ** 2)
    limit = 0.5 * np.sum((level - truth) ** 2)
    for theta in (10.0, 20.0, 30.0):
        found = bilevel.tikhonov(A, y, np.array(theta), least_squares(None, truth), D=D)
        assert found.value == pytest.approx(limit, rel=1e4 * math.exp(-theta) + 1e-9)
    for theta in (45.0, 60.0, 80.0, 300.0):
        with pytest.raises(ValueError, match="singular to rounding|must be solved"):
            bilevel.tikhonov(A, y, np.array(theta), least_squares(None, truth), D=D)


def test_a_start_must_be_a_hypergradient():
    A, y, outer = np.eye(3), np.ones(3), least_squares(None, np.zeros(3))
    for call, theta in (
        (bilevel.tikhonov, np.array(0.0)),
        (bilevel.lasso, np.array(-1.0)),
        (bilevel.elastic_net, np.array([-1.0, 0.0])),
    ):
        with pytest.raises(ValueError, match="start must be a Hypergradient, .* got ndarray"):
            call(A, y, theta, outer, start=np.zeros(3))
    with pytest.raises(ValueError, match="lip_outer is too small"):
        bilevel.tikhonov(A, y, np.array(0.0), outer, D=A, lip_outer=-1.0)


def test_an_outer_loss_that_is_not_finite_is_named(torch):
    outer = Functional(lambda x: math.nan, lambda x: x)
    with pytest.raises(ValueError, match="the outer loss must be finite"):
        bilevel.tikhonov(np.eye(3), np.ones(3), np.array(0.0), outer)
    # What is returned is cut off from autograd, whatever the operators are made of.
    A = torch.eye(3, dtype=torch.float64, requires_grad=True)
    y = torch.ones(3, dtype=torch.float64)
    found = bilevel.tikhonov(A, y, torch.tensor(0.0, dtype=torch.float64), least_squares(A, y), D=A)
    assert not any(each.requires_grad for each in (found.x, found.adjoint, found.gradient))


def test_a_wrong_gradient_of_the_outer_loss_is_named():
    A, y, theta = np.eye(3), np.ones(3), np.array(-1.0)
    for slope, words in (
        (lambda x: x * math.nan, "the gradient of the outer loss must be finite"),
        (lambda x: x[:, None], "the gradient of the outer loss has the wrong shape"),
        (lambda x: x.astype("float32"), "the gradient of the outer loss"),
    ):
        outer = Functional(lambda x: 1.0, slope)
        for call in (bilevel.tikhonov, bilevel.lasso):
            with pytest.raises(ValueError, match=words):
                call(A, y, theta, outer)
        with pytest.raises(ValueError, match=words):
            bilevel.unrolled(
                lambda x, theta, k: x / 2 + theta,
                np.ones(3),
                theta,
                2,
                outer,
                linearize=lambda *_: (np.eye(3) / 2, np.ones((3, 1))),
            )
