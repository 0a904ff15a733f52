"""The test problems: known facts about each, the same numbers everywhere, honest noise."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import assert_alike, eps, relative, to_numpy

from course_lib import problems
from course_lib.arrays import inner, norm, to_float

CLASSICAL = {
    "deriv2": problems.deriv2,
    "shaw": problems.shaw,
    "phillips": problems.phillips,
    "gravity": problems.gravity,
    "heat": problems.heat,
}
ALL = {
    **CLASSICAL,
    "blur_1d": problems.blur_1d,
    "blur_1d periodic": lambda n, **o: problems.blur_1d(n, boundary="periodic", **o),
    "source_problem": problems.source_problem,
    "deblurring": lambda n, **o: problems.deblurring("moon", size=n, **o),
    "deblurring scene": lambda n, **o: problems.deblurring(
        "text", size=(n, 2 * n), outside="scene", boundary="zero", **o
    ),
}


def matrix_of(problem) -> np.ndarray:
    return to_numpy(problem.A.to_dense())


@pytest.mark.parametrize("name", ALL)
def test_same_numbers_in_every_library(name, like):
    """Kind of the fields is that of ``like``, and their values are NumPy's up to rounding."""
    problem, reference = ALL[name](32, noise=0.02, like=like), ALL[name](32, noise=0.02)
    for field in ("x_true", "y_exact", "y", "grid", "data_grid", "source"):
        value, expected = getattr(problem, field), getattr(reference, field)
        assert (value is None) == (expected is None)
        if value is not None:
            assert_alike(value, like)
            assert relative(value, expected) <= 200 * eps(like)
    assert problem.delta == pytest.approx(reference.delta, rel=1e-5)
    assert problem.x_true.shape == problem.A.in_shape
    assert problem.y.shape == problem.A.out_shape
    # The operator takes arrays of the problem's own kind.
    assert_alike(problem.A @ problem.x_true, like)


@pytest.mark.parametrize("name", ALL)
def test_noise_level_is_what_it_says(name):
    problem = ALL[name](32, noise=0.02, seed=5)
    m = math.prod(problem.y.shape)
    assert problem.delta == pytest.approx(0.02 * to_float(norm(problem.y_exact)), rel=1e-12)
    assert problem.noise_std == pytest.approx(problem.delta / math.sqrt(m), rel=1e-12)
    # The norm of white noise deviates from its mean by about 1/sqrt(2m).
    size = to_float(norm(problem.y - problem.y_exact)) / problem.delta
    assert abs(size - 1) < 5 / math.sqrt(2 * m)
    if name != "deblurring scene":
        assert relative(problem.A @ problem.x_true, problem.y_exact) < 1e-14


@pytest.mark.parametrize("name", ALL)
def test_seeds(name):
    one, same, other = (ALL[name](32, noise=0.02, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.y, same.y)
    assert relative(one.y, other.y) > 1e-3


@settings(deadline=None, max_examples=40)
@given(noise=st.floats(0, 10), seed=st.integers(0, 1000), exact=st.booleans())
def test_add_noise(noise, seed, exact):
    """White, of the stated size, and one pattern a seed."""
    y = np.linspace(1, 2, 400)
    noisy, noise_std = problems.add_noise(y, noise, seed=seed, exact_norm=exact)
    delta = noise * np.linalg.norm(y)
    assert noise_std == pytest.approx(delta / 20, rel=1e-12)
    e = noisy - y
    if exact:
        assert np.linalg.norm(e) == pytest.approx(delta, rel=1e-9, abs=1e-12)
    else:
        assert abs(np.linalg.norm(e) - delta) <= delta * 0.25 + 1e-12
    double = problems.add_noise(y, 2 * noise, seed=seed, exact_norm=exact)[0]
    np.testing.assert_allclose(double - y, 2 * e, atol=1e-11)


def test_add_noise_changes_nothing_in_place(like):
    y = 0 * like + 3.0
    noisy, _ = problems.add_noise(y, 0.5)
    assert_alike(noisy, like)
    assert to_float(y[0]) == 3.0


def test_with_noise_keeps_the_problem():
    problem = problems.shaw(24)
    again = problem.with_noise(0.3, seed=7, exact_norm=True)
    assert again.A is problem.A
    assert again.x_true is problem.x_true
    assert to_float(norm(again.y - again.y_exact)) == pytest.approx(again.delta, rel=1e-12)
    assert problem.with_noise(0.0).delta == 0.0


# --- the classical set -----------------------------------------------------------------------


def kernel_mean(kernel, i: int, j: int, h: float, a: float) -> float:
    """h times the mean of a kernel over cell i times cell j: an entry of Galerkin's matrix."""
    low, high = [a + h * i, a + h * (i + 1)], [a + h * j, a + h * (j + 1)]
    value, _ = scipy.integrate.dblquad(
        lambda t, s: kernel(s, t), *low, *high, epsabs=1e-10, epsrel=1e-10
    )
    return value / h


@pytest.mark.parametrize(("i", "j"), [(0, 0), (2, 2), (1, 4), (5, 0)])
def test_deriv2_is_galerkin(i, j):
    n = 6

    def kernel(s, t):
        return s * (t - 1) if s < t else t * (s - 1)

    entry = matrix_of(problems.deriv2(n))[i, j]
    assert entry == pytest.approx(kernel_mean(kernel, i, j, 1 / n, 0.0), abs=1e-6)


def test_deriv2_inverts_the_second_derivative():
    """Singular values 1/(i pi)^2, and y(s) = (s^3 - s)/6 for x(t) = t, both with error O(h^2)."""
    for n, bound in ((64, 1e-3), (128, 2.5e-4)):
        problem = problems.deriv2(n)
        s = np.linalg.svd(matrix_of(problem), compute_uv=False)[:5]
        i = np.arange(1, 6)
        np.testing.assert_allclose(s * (i * math.pi) ** 2, 1, atol=i[-1] ** 2 * bound)
        t = problem.grid
        assert np.abs(problem.y_exact - (t**3 - t) / 6).max() < bound / 10


def test_shaw():
    """Symmetric, also about the other diagonal, with the kernel at the midpoints."""
    problem = problems.shaw(20)
    M, t = matrix_of(problem), problem.grid
    np.testing.assert_allclose(M, M.T, atol=1e-15)
    np.testing.assert_allclose(M, M[::-1, ::-1], atol=1e-15)
    s, u = t[3], math.pi * (math.sin(t[3]) + math.sin(t[11]))
    entry = math.pi / 20 * ((math.cos(s) + math.cos(t[11])) * math.sin(u) / u) ** 2
    assert M[3, 11] == pytest.approx(entry, rel=1e-13)
    # sin(u)/u is 1 where u = 0.
    assert M[3, 16] == pytest.approx(math.pi / 20 * (2 * math.cos(s)) ** 2, rel=1e-13)
    assert np.linalg.cond(M) > 1e12


@pytest.mark.parametrize(("i", "j"), [(0, 0), (3, 4), (2, 5), (7, 4), (0, 4)])
def test_phillips_is_galerkin(i, j):
    def kernel(s, t):
        return 1 + math.cos(math.pi * (s - t) / 3) if abs(s - t) < 3 else 0.0

    entry = matrix_of(problems.phillips(12))[i, j]
    assert entry == pytest.approx(kernel_mean(kernel, i, j, 1.0, -6.0), abs=1e-5)


def test_phillips_band_and_data():
    n = 64
    problem = problems.phillips(n)
    M = matrix_of(problem)
    np.testing.assert_array_equal(M, M.T)
    np.testing.assert_array_equal(M[1:, 1:], M[:-1, :-1])
    assert M[0, n // 4] > 0
    assert not M[0, n // 4 + 1 :].any()
    s = np.abs(problem.grid)
    c = math.pi / 3
    y = (6 - s) * (1 + np.cos(c * s) / 2) + 9 / (2 * math.pi) * np.sin(c * s)
    assert np.abs(problem.y_exact - y).max() < 0.02


def test_gravity():
    """Entries by the formula; a deeper mass is harder to see."""
    problem = problems.gravity(16, depth=0.25)
    s, t = problem.grid[2], problem.grid[9]
    entry = 0.25 / (0.0625 + (s - t) ** 2) ** 1.5 / 16
    assert matrix_of(problem)[2, 9] == pytest.approx(entry, rel=1e-13)
    ratio = [
        np.linalg.svd(matrix_of(problems.gravity(32, depth=d)), compute_uv=False)[[8, 0]]
        for d in (0.1, 0.25, 0.5)
    ]
    decay = [small / large for small, large in ratio]
    assert decay[0] > 10 * decay[1] > 100 * decay[2]


def test_heat():
    """Lower triangular and Toeplitz; a constant x gives erfc(1/(2 kappa sqrt(s)))."""
    problem = problems.heat(400, kappa=1.0)
    M = matrix_of(problem)
    assert not np.triu(M, 1).any()
    np.testing.assert_array_equal(M[1:, 1:], M[:-1, :-1])
    s = problem.data_grid
    assert np.abs(M.sum(axis=1) - scipy.special.erfc(0.5 / np.sqrt(s))).max() < 1e-4
    assert s[-1] == pytest.approx(1.0)
    assert np.linalg.cond(matrix_of(problems.heat(64, kappa=5.0))) < 1e3
    assert np.linalg.cond(matrix_of(problems.heat(64, kappa=1.0))) > 1e14
    x, t = problem.x_true, problem.grid
    assert x.max() == pytest.approx(1.0, abs=1e-3)
    assert not x[t > 0.5].any()


# --- blur ------------------------------------------------------------------------------------


def test_blur_1d_boundaries_agree():
    """The signal ends before the interval does: both models describe it, and keep its mass."""
    zero, periodic = (problems.blur_1d(96, boundary=b) for b in ("zero", "periodic"))
    assert relative(zero.y_exact, periodic.y_exact) < 1e-4
    assert periodic.y_exact.sum() == pytest.approx(zero.x_true.sum(), rel=1e-12)
    assert periodic.A.shift_invariant
    M = matrix_of(zero)
    np.testing.assert_allclose(M, M.T, atol=1e-15)
    np.testing.assert_allclose(M[1:, 1:], M[:-1, :-1], atol=1e-15)


def moments(psf: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a point-spread function, rows counted upwards."""
    r, c = psf.shape
    columns, rows = np.meshgrid(np.arange(c) - c // 2, r // 2 - np.arange(r))
    points = np.stack([columns.ravel(), rows.ravel()])
    mean = points @ psf.ravel()
    centred = points - mean[:, None]
    return mean, (centred * psf.ravel()) @ centred.T


@settings(deadline=None, max_examples=30)
@given(width=st.floats(0.7, 6))
def test_psf_gaussian(width):
    psf = problems.psf_gaussian(width)
    mean, covariance = moments(psf)
    assert psf.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(mean, 0, atol=1e-10)
    np.testing.assert_allclose(covariance, width**2 * np.eye(2), atol=0.02 * width**2)
    line = problems.psf_gaussian(width, ndim=1)
    np.testing.assert_allclose(psf.sum(axis=0), line, atol=1e-15)


@settings(deadline=None, max_examples=30)
@given(length=st.floats(3, 25), angle=st.floats(-360, 360))
def test_psf_motion(length, angle):
    """Spread along the direction of the motion: variance length^2/12, and hardly any across."""
    psf = problems.psf_motion(length, angle=angle)
    mean, covariance = moments(psf)
    a = math.radians(angle)
    along, across = np.array([math.cos(a), math.sin(a)]), np.array([-math.sin(a), math.cos(a)])
    assert psf.sum() == pytest.approx(1.0)
    assert psf.shape[0] % 2 == 1
    np.testing.assert_allclose(mean, 0, atol=1e-9)
    # Sharing among neighbouring pixels adds at most 1/4 to a variance.
    assert 0 <= along @ covariance @ along - length**2 / 12 + 1e-3 <= 0.26
    assert 0 <= across @ covariance @ across <= 0.26


@settings(deadline=None, max_examples=30)
@given(radius=st.floats(2, 12))
def test_psf_disk(radius):
    psf = problems.psf_disk(radius)
    mean, covariance = moments(psf)
    assert psf.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(mean, 0, atol=1e-12)
    # A disk has variance radius^2/4 in each direction, a pixel adds 1/12.
    np.testing.assert_allclose(np.diag(covariance), radius**2 / 4 + 1 / 12, rtol=0.08)
    assert psf[0, 0] == 0


@pytest.mark.parametrize("name", problems.PICTURES)
def test_pictures(name):
    whole = problems.picture(name)
    assert whole.ndim == 2
    assert whole.dtype == np.float64
    assert 0 <= whole.min() < 0.3 < 0.55 < whole.max() <= 1
    small = problems.picture(name, (60, 90))
    assert small.shape == (60, 90)
    with_margin = problems.picture(name, (60, 90), margin=7)
    np.testing.assert_array_equal(with_margin[7:-7, 7:-7], small)


def test_picture_is_mirrored_beyond_its_end():
    whole = problems.picture("camera", 128)
    beyond = problems.picture("camera", 128, margin=3)
    np.testing.assert_array_equal(beyond[3:-3, :3], whole[:, :3][:, ::-1])


@pytest.mark.parametrize("psf", ["gaussian", "motion", "disk"])
def test_scene_differs_from_the_model_at_the_edges_only(psf):
    model = problems.deblurring("camera", size=64, psf=psf, width=3)
    scene = problems.deblurring("camera", size=64, psf=psf, width=3, outside="scene")
    np.testing.assert_array_equal(model.x_true, scene.x_true)
    gap = np.abs(model.y_exact - scene.y_exact)
    assert gap[20:-20, 20:-20].max() < 1e-7
    assert gap.max() > 0.05


def test_own_psf():
    psf = np.zeros((3, 3))
    psf[1, 2] = 1.0
    problem = problems.deblurring("page", size=32, psf=psf, noise=0.0)
    np.testing.assert_allclose(problem.y, np.roll(problem.x_true, 1, axis=1), atol=1e-14)


# --- source condition ------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(n=st.integers(2, 40), nu=st.floats(0, 2), p=st.floats(0.3, 2), seed=st.integers(0, 99))
def test_source_condition(n, nu, p, seed):
    """x = (A'A)^nu w with unit w, sigma_i = i^-p, and noise of norm exactly delta."""
    problem = problems.source_problem(n, nu=nu, p=p, noise=0.1, seed=seed)
    M = matrix_of(problem)
    np.testing.assert_allclose(
        np.linalg.svd(M, compute_uv=False), np.arange(1, n + 1) ** -p, rtol=1e-8
    )
    assert to_float(inner(problem.source, problem.source)) == pytest.approx(1.0)
    values, vectors = np.linalg.eigh(M.T @ M)
    power = vectors * np.clip(values, 0, None) ** nu @ vectors.T
    np.testing.assert_allclose(power @ problem.source, problem.x_true, atol=1e-8)
    assert to_float(norm(problem.y - problem.y_exact)) == pytest.approx(problem.delta, rel=1e-9)


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: problems.deriv2(1), "n is out of range"),
        (lambda: problems.deriv2(8.0), "whole number"),
        (lambda: problems.deriv2(8, noise=-0.1), "noise is too small"),
        (lambda: problems.deriv2(8, noise=math.nan), "noise must be finite"),
        (lambda: problems.deriv2(8, seed=-1), "seed is out of range"),
        (lambda: problems.deriv2(8, like=[1.0]), "every argument must be an array"),
        (lambda: problems.phillips(10), "multiple of 4: got 10"),
        (lambda: problems.gravity(8, depth=0), "depth must be positive"),
        (lambda: problems.heat(8, kappa=-1), "kappa must be positive"),
        (lambda: problems.blur_1d(64, width=0.2), "width is too large"),
        (lambda: problems.blur_1d(64, boundary="reflect"), "boundary must be one of"),
        (lambda: problems.psf_gaussian(0), "width must be positive"),
        (lambda: problems.psf_gaussian(1, ndim=3), "ndim must be 1 or 2"),
        (lambda: problems.psf_motion(-2), "length must be positive"),
        (lambda: problems.psf_disk(math.inf), "radius must be finite"),
        (lambda: problems.picture("lena"), "text, page, camera, moon"),
        (lambda: problems.picture("text", 200), "at most 172"),
        (lambda: problems.picture("text", margin=-1), "margin is out of range"),
        (lambda: problems.deblurring(psf="box"), "psf must be one of"),
        (lambda: problems.deblurring(psf=np.ones(3)), "expected 2"),
        (lambda: problems.deblurring(outside="void"), "model, scene"),
        (lambda: problems.deblurring(size=16, width=5), "psf must be no larger"),
        (lambda: problems.source_problem(8, nu=-1), "nu is too small"),
        (lambda: problems.add_noise([1.0], 0.1), "y must be an array"),
        (lambda: problems.add_noise(np.ones(2) + 1j, 0.1), "y must be real"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
