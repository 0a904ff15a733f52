"""The test problems: known facts about each, the same numbers everywhere, honest noise."""

import math

import numpy as np
import pytest
import scipy.fft
import scipy.integrate
import scipy.optimize
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import assert_alike, eps, relative, to_numpy

from course_lib import problems
from course_lib.arrays import inner, norm, to_float
from course_lib.operators import whitening

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
    "spikes": problems.spikes,
    "blocks": problems.blocks,
    **{
        f"compressed sensing {ensemble}": lambda n, ensemble=ensemble, **o: (
            problems.compressed_sensing(n // 2, n, 3, ensemble=ensemble, **o)
        )
        for ensemble in ("gaussian", "bernoulli", "cosine")
    },
    "deblurring": lambda n, **o: problems.deblurring("moon", size=n, **o),
    "tomography": lambda n, **o: problems.tomography(size=n, angles=12, **o),
    "tomography scene": lambda n, **o: problems.tomography(
        "camera", size=n, angles=np.array([0.0, 30.0, 91.0]), data="scene", **o
    ),
    "deblurring scene": lambda n, **o: problems.deblurring(
        "text", size=(n, 2 * n), outside="scene", boundary="zero", **o
    ),
}


def matrix_of(problem) -> np.ndarray:
    return to_numpy(problem.A.to_dense())


@pytest.mark.parametrize("name", ALL)
def test_same_numbers_in_every_library(name, like):
    """Kind of the fields is that of ``like``, and their values are NumPy's up to rounding."""
    if name.startswith("tomography") and "array_api_strict" in type(like).__module__:
        with pytest.raises(ValueError, match="expected a NumPy array or a PyTorch tensor"):
            ALL[name](32, like=like)
        return
    problem, reference = ALL[name](32, noise=0.02, like=like), ALL[name](32, noise=0.02)
    for field in ("x_true", "y_exact", "y", "grid", "data_grid", "source", "cov"):
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
    if not name.endswith("scene"):
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


# --- kinds of noise --------------------------------------------------------------------------

KINDS = ("white", "coloured", "poisson", "outliers")
DRAWS = 2000


def draws(y: np.ndarray, noise: float, kind: str, **options) -> tuple[np.ndarray, float]:
    """Many errors of one kind, one a row, and the standard deviation they are said to have."""
    pairs = [problems.add_noise(y, noise, kind=kind, seed=seed, **options) for seed in range(DRAWS)]
    return np.stack([noisy - y for noisy, _ in pairs]), pairs[0][1]


def assert_mean(samples: np.ndarray, expected: np.ndarray | float) -> None:
    """The mean of independent samples (rows) is the expected one, within 5 standard errors."""
    error = samples.std(axis=0) / math.sqrt(len(samples))
    assert np.all(np.abs(samples.mean(axis=0) - expected) <= 5 * error)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_mean_zero_and_the_same_size(kind):
    """E e = 0 and E‖e‖² = δ² with δ = noise ‖y‖ = σ_e √m, whatever the kind."""
    y = np.linspace(0.5, 3.0, 30)
    e, noise_std = draws(y, 0.3, kind)
    delta = 0.3 * np.linalg.norm(y)
    assert noise_std == pytest.approx(delta / math.sqrt(30), rel=1e-12)
    assert_mean(e, 0.0)
    assert_mean((e**2).sum(axis=1, keepdims=True), delta**2)


@pytest.mark.parametrize("kind", KINDS)
def test_covariance_is_what_the_problem_says(kind):
    """E e_i e_j = Γ_ij, entry by entry."""
    problem = problems.blur_1d(32).with_noise(0.2, kind=kind)
    # A few entries with different means.
    chosen = [4, 5, 6, 12, 20]
    e, noise_std = draws(problem.y_exact, 0.2, kind)
    assert noise_std == problem.noise_std
    if kind in ("white", "outliers"):
        assert problem.cov is None
        cov = noise_std**2 * np.eye(32)
    else:
        cov = np.diag(problem.cov) if problem.cov.ndim == 1 else problem.cov
    assert np.trace(cov) == pytest.approx(problem.delta**2, rel=1e-9)
    assert_mean(e[:, chosen, None] * e[:, None, chosen], cov[np.ix_(chosen, chosen)])


@pytest.mark.parametrize("correlation", [-0.7, 0.0, 0.5, 0.95])
def test_coloured_noise_is_autoregressive(correlation):
    """e_i - c e_(i-1) is white with variance (1 - c²) σ_e², and e_0 is as large as the rest."""
    m = 20_000
    noisy, noise_std = problems.add_noise(
        np.ones(m), 0.1, kind="coloured", correlation=correlation, seed=3
    )
    e = (noisy - 1) / noise_std
    fresh = e[1:] - correlation * e[:-1]
    assert fresh.var() == pytest.approx(1 - correlation**2, rel=5 * math.sqrt(2 / m))
    measured = (e[1:] @ e[:-1]) / (e @ e)
    assert abs(measured - correlation) <= 5 * math.sqrt((1 - correlation**2 + 1e-3) / m)
    for lag in (1, 2):
        assert abs(fresh[lag:] @ fresh[:-lag] / (fresh @ fresh)) <= 5 / math.sqrt(m)
    white, _ = problems.add_noise(np.ones(m), 0.1, seed=3)
    if correlation == 0:
        np.testing.assert_allclose(noisy, white, rtol=1e-12)
    assert noisy[0] == white[0]


def test_poisson_noise_is_counts():
    """ty is whole and Poisson: mean and variance equal, e^-mean of zeros, none where y is 0."""
    level = np.array([0.0, 0.25, 1.0, 2.0, 40.0])
    y = np.repeat(level, 4000)
    noisy, noise_std = problems.add_noise(y, 0.2, kind="poisson", seed=1)
    t = y.mean() / noise_std**2
    counts = (t * noisy).reshape(5, -1)
    np.testing.assert_allclose(counts, np.rint(counts), atol=1e-9)
    assert counts.min() == 0
    assert not counts[0].any()
    mean = t * level
    # Standard errors: of a mean, of a variance (fourth moment 3 mean² + mean), of a share.
    assert np.all(np.abs(counts.mean(axis=1) - mean) <= 5 * np.sqrt(mean / 4000))
    spread = np.sqrt((2 * mean**2 + mean) / 4000)
    assert np.all(np.abs(counts.var(axis=1) - mean) <= 5 * spread)
    empty, share = (counts == 0).mean(axis=1), np.exp(-mean)
    assert np.all(np.abs(empty - share) <= 5 * np.sqrt(share * (1 - share) / 4000))


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.05, 20), (0.9, 360), (1.0, 400)])
def test_outliers_hit_a_fraction(fraction, count):
    """They are the white pattern, ``count`` entries of it 10 times as large, then rescaled."""
    y = np.ones((20, 20))
    white, noise_std = problems.add_noise(y, 0.1, seed=2)
    hit, same_std = problems.add_noise(y, 0.1, seed=2, kind="outliers", fraction=fraction)
    assert same_std == noise_std
    ratio = (hit - y) / (white - y)
    small = 1 / math.sqrt(1 + 99 * count / 400)
    large = ratio > 3 * small
    assert large.sum() == count
    np.testing.assert_allclose(ratio[large], 10 * small, rtol=1e-9)
    np.testing.assert_allclose(ratio[~large], small, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_no_noise_of_any_kind(kind):
    problem = problems.blur_1d(32).with_noise(0.0, kind=kind)
    np.testing.assert_array_equal(problem.y, problem.y_exact)
    assert (problem.noise_std, problem.delta, problem.cov) == (0.0, 0.0, None)
    nothing, noise_std = problems.add_noise(np.zeros(5), 0.3, kind=kind)
    assert not nothing.any()
    assert noise_std == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_same_in_every_library(kind, like):
    problem, reference = (
        problems.blur_1d(32, like=values).with_noise(0.2, kind=kind, seed=4)
        for values in (like, None)
    )
    assert_alike(problem.y, like)
    assert relative(problem.y, reference.y) <= 200 * eps(like)
    assert problem.noise_std == pytest.approx(reference.noise_std, rel=1e-5)
    assert (problem.cov is None) == (reference.cov is None)
    if problem.cov is not None:
        assert_alike(problem.cov, like)
        assert relative(problem.cov, reference.cov) <= 200 * eps(like)
    # The covariance goes with the noise.
    assert problem.with_noise(0.1).cov is None


@pytest.mark.parametrize("kind", ["coloured", "outliers"])
def test_exact_norm_of_other_kinds(kind):
    problem = problems.shaw(24).with_noise(0.3, kind=kind, exact_norm=True)
    assert to_float(norm(problem.y - problem.y_exact)) == pytest.approx(problem.delta, rel=1e-12)


@pytest.mark.parametrize("kind", ["coloured", "poisson"])
def test_covariance_makes_the_noise_white(kind):
    """‖W e‖² is m in the mean, with variance 2m for Gaussian noise, for WᵀW = Γ⁻¹."""
    problem = problems.blur_1d(400, width=0.06).with_noise(0.1, kind=kind, seed=3)
    keep = problem.y_exact > 0.1 if kind == "poisson" else problem.y_exact > -1
    cov = problem.cov[keep] if kind == "poisson" else problem.cov
    white = whitening(cov) @ (problem.y - problem.y_exact)[keep]
    m = white.size
    assert m > 200
    assert abs(white @ white - m) <= 5 * math.sqrt(2 * m)
    assert abs(white[1:] @ white[:-1]) <= 5 * math.sqrt(m)


def test_counts_of_a_picture():
    """A blur by Fourier transform makes tiny negative values of zeros: they count as zeros."""
    problem = problems.deblurring("shepp_logan", size=64, width=1.0)
    assert problem.y_exact.min() < 0
    counted = problem.with_noise(0.05, kind="poisson")
    assert counted.cov.shape == problem.y.shape
    assert counted.cov.min() == 0
    assert counted.y.min() > -1e-9


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


# --- sparse truths ---------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "s", "separation"), [(100, 5, 0.1), (64, 1, 0.3), (50, 12, 0.0)])
def test_spikes_are_apart(n, s, separation):
    for seed in range(20):
        x = problems.spikes(n, s, separation=separation, seed=seed).x_true
        places = np.flatnonzero(x)
        assert places.size == s
        assert np.all((np.abs(x[places]) >= 1) & (np.abs(x[places]) <= 2))
        gaps = np.diff(np.concatenate([[-1], places, [n]]))
        assert gaps.min() >= max(1, separation * n)


def test_spikes_that_just_fit():
    """Cells 0 to 18 hold three spikes 5 apart in one way only, cells 0 to 17 in none."""
    x = problems.spikes(19, 3, separation=5 / 19).x_true
    np.testing.assert_array_equal(np.flatnonzero(x), [4, 9, 14])
    with pytest.raises(ValueError, match="expected at most 4 of the 18 cells, got 5"):
        problems.spikes(18, 3, separation=5 / 18)


def test_all_sets_of_spikes_are_equally_likely():
    """Pairs at least 3 apart and 3 from the ends, among 12 places."""
    rng = np.random.default_rng(0)
    admissible = {(i, j) for i in range(2, 10) for j in range(i + 3, 10)}
    found = [tuple(np.flatnonzero(problems._sparse(rng, 12, 2, 3))) for _ in range(3000)]
    assert set(found) == admissible
    expected = 3000 / len(admissible)
    for pair in admissible:
        assert abs(found.count(pair) - expected) <= 5 * math.sqrt(expected)
    signs = [np.sign(problems._sparse(rng, 12, 2, 3)).sum() for _ in range(1000)]
    assert abs(np.mean(signs)) <= 5 * math.sqrt(2 / 1000)


def test_spikes_are_blurred_by_a_gaussian():
    problem = problems.spikes(200, 3, width=0.02, separation=0.2)
    M = matrix_of(problem)
    np.testing.assert_allclose(M, M.T, atol=1e-15)
    column = M[:, 100]
    assert column.sum() == pytest.approx(1.0, rel=1e-12)
    assert np.linalg.norm(column) == pytest.approx((2 * 0.02 * 200 * math.sqrt(math.pi)) ** -0.5)
    t = problem.grid - problem.grid[100]
    assert (t**2) @ column == pytest.approx(0.02**2, rel=1e-6)
    assert np.linalg.cond(M) > 1e9


@pytest.mark.parametrize("ensemble", ["gaussian", "bernoulli", "cosine"])
def test_columns_have_norm_one(ensemble):
    """In the mean square over the seeds; for signs always."""
    squares = np.stack(
        [
            (matrix_of(problems.compressed_sensing(10, 24, 2, ensemble=ensemble, seed=k)) ** 2).sum(
                axis=0
            )
            for k in range(400)
        ]
    )
    if ensemble == "bernoulli":
        np.testing.assert_allclose(squares, 1.0, rtol=1e-12)
    else:
        assert squares.std() > 0.1
        assert_mean(squares, 1.0)


def test_ensembles():
    """Entries as documented; the rows of cosines are SciPy's; one truth for all."""
    m, n = 30, 100
    made = {
        name: problems.compressed_sensing(m, n, 7, ensemble=name, seed=1)
        for name in ("gaussian", "bernoulli", "cosine")
    }
    fewer = problems.compressed_sensing(12, n, 7, seed=1)
    for problem in made.values():
        np.testing.assert_array_equal(problem.x_true, fewer.x_true)
    assert np.count_nonzero(fewer.x_true) == 7
    gaussian, signs, cosine = (math.sqrt(m) * matrix_of(problem) for problem in made.values())
    assert abs(gaussian.mean()) <= 5 / math.sqrt(m * n)
    assert abs(gaussian.var() - 1) <= 5 * math.sqrt(2 / (m * n))
    assert abs((gaussian**4).mean() - 3) <= 5 * math.sqrt(96 / (m * n))
    np.testing.assert_allclose(np.abs(signs), 1.0, rtol=1e-12)
    assert abs(signs.mean()) <= 5 / math.sqrt(m * n)
    np.testing.assert_allclose(cosine @ cosine.T, n * np.eye(m), atol=1e-10)
    rows = math.sqrt(n) * scipy.fft.dct(np.eye(n), axis=0, norm="ortho")
    found = [np.abs(rows - row).max(axis=1).argmin() for row in cosine]
    np.testing.assert_allclose(rows[found], cosine, atol=1e-10)
    assert len(set(found)) == m
    # Some draw has the constant row too.
    every = problems.compressed_sensing(16, 16, 2, ensemble="cosine")
    np.testing.assert_allclose(
        matrix_of(every), scipy.fft.dct(np.eye(16), axis=0, norm="ortho"), atol=1e-14
    )


@pytest.mark.parametrize("ensemble", ["gaussian", "bernoulli", "cosine"])
def test_few_measurements_are_enough_for_few_entries_only(ensemble):
    """Least ‖x‖₁ under Ax = y, as a linear program: the truth for s = 6, another x for s = 30."""
    for s, recovered in ((6, True), (30, False)):
        problem = problems.compressed_sensing(40, 100, s, ensemble=ensemble, noise=0.0)
        M = matrix_of(problem)
        found = scipy.optimize.linprog(np.ones(200), A_eq=np.hstack([M, -M]), b_eq=problem.y)
        x = found.x[:100] - found.x[100:]
        assert (relative(x, problem.x_true) < 1e-6) == recovered
        assert np.abs(x).sum() <= np.abs(problem.x_true).sum() * (1 + 1e-9)


def test_blocks():
    """Donoho and Johnstone's formula, with signs; 11 jumps, and levels that are met exactly."""
    problem = problems.blocks(2048, noise=0.0)
    t, x = problem.grid, problem.x_true
    places = [0.1, 0.13, 0.15, 0.23, 0.25, 0.40, 0.44, 0.65, 0.76, 0.78, 0.81]
    heights = [4, -5, 3, -4, 5, -4.2, 2.1, 4.3, -3.1, 2.1, -4.2]
    formula = sum(h * (1 + np.sign(t - p)) / 2 for h, p in zip(heights, places, strict=True))
    np.testing.assert_allclose(x, formula, atol=1e-12)
    assert np.count_nonzero(np.diff(x)) == 11
    assert x[0] == x[-1] == 0
    np.testing.assert_array_equal(problem.y, x)


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


# --- tomography ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shepp_logan", "moon"])
@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("data", ["model", "scene"])
def test_projections_are_of_the_picture(name, size, data):
    """Every angle shows its whole mass, about the same centre; 0 and 90 degrees its sums."""
    problem = problems.tomography(name, size=size, angles=8, noise=0.0, data=data)
    x, y = problem.x_true, problem.y
    assert y.shape == (size, 8)
    np.testing.assert_allclose(y.sum(axis=0), x.sum(), rtol=1e-12)
    if data == "model":
        np.testing.assert_allclose(y, problem.A @ x, atol=1e-13)
    # The centre of mass moves as that of the picture: 0.02 of a pixel is left to the shape of
    # the pixels; a centre of rotation that is wrong by a third of a pixel would be 0.2 and more.
    i = np.arange(size) - size // 2
    across, up = (x.sum(axis=0) @ i) / x.sum(), -(x.sum(axis=1) @ i) / x.sum()
    theta = np.pi * np.arange(8) / 8
    place = (i @ y) / y.sum(axis=0)
    np.testing.assert_allclose(place, across * np.cos(theta) + up * np.sin(theta), atol=0.02)
    bound = 1e-12 * y.max()
    np.testing.assert_allclose(y[:, 0], x.sum(axis=0), atol=bound)
    seen = x.sum(axis=1)[::-1]
    # Detector t sees the row t above the centre, which is not the middle if the size is even.
    np.testing.assert_allclose(y[1 - size % 2 :, 4], seen[: size - 1 + size % 2], atol=bound)


@pytest.mark.parametrize("name", ["shepp_logan", "camera"])
def test_truth_is_in_the_disk(name):
    for size in (20, 64, 99):
        x = problems.tomography(name, size=size, angles=1).x_true
        i = np.arange(size) - size // 2
        outside = np.hypot.outer(i, i) > size / 2
        assert not x[outside].any()
        assert 0 <= x.min() < x.max() <= 1 + 1e-12


def test_truth_is_the_mean_over_areas():
    x = problems.tomography(size=100, angles=1).x_true
    np.testing.assert_allclose(x, problems.picture("shepp_logan", 100), atol=1e-12)
    # Sizes that do not divide 400 keep the mass; so does one above it.
    for size in (64, 133, 410):
        mean = problems.tomography(size=size, angles=1).x_true.mean()
        assert mean == pytest.approx(x.mean(), rel=1e-9)
    # Six pixels in four: one and a half each.
    steps = problems._reduced(np.arange(6.0) + np.zeros((6, 1)), 4)
    np.testing.assert_allclose(3 * steps, [[1, 5, 10, 14]] * 4, rtol=1e-12)


def test_scene_avoids_the_inverse_crime():
    """The gap between the data and A x_true is there, falls with the size, and is no shift."""
    gaps = []
    for size in (32, 64):
        model, scene = (
            problems.tomography(size=size, angles=10, noise=0.0, data=data)
            for data in ("model", "scene")
        )
        np.testing.assert_array_equal(model.x_true, scene.x_true)
        gaps.append(relative(scene.y, model.y))
        assert scene.delta == 0
    assert gaps[0] > gaps[1] > 0.01
    assert gaps[0] < 0.06


def test_kinds_of_angles():
    by_number = problems.tomography(size=16, angles=4)
    by_list = problems.tomography(size=16, angles=np.array([0, 45, 90, 135]))
    np.testing.assert_array_equal(by_number.y, by_list.y)


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


def noisy(y=None, noise=0.1, **options):
    return problems.add_noise(np.ones(4) if y is None else y, noise, **options)


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
        (lambda: problems.picture("lena"), "text, page, camera, moon, shepp_logan"),
        (lambda: problems.picture("text", 200), "at most 172"),
        (lambda: problems.picture("text", margin=-1), "margin is out of range"),
        (lambda: problems.deblurring(psf="box"), "psf must be one of"),
        (lambda: problems.deblurring(psf=np.ones(3)), "expected 2"),
        (lambda: problems.deblurring(outside="void"), "model, scene"),
        (lambda: problems.deblurring(size=16, width=5), "psf must be no larger"),
        (lambda: problems.source_problem(8, nu=-1), "nu is too small"),
        (lambda: problems.add_noise([1.0], 0.1), "y must be an array"),
        (lambda: problems.add_noise(np.ones(2) + 1j, 0.1), "y must be real"),
        (lambda: noisy(kind="pink"), "white, coloured, poisson, outliers: got 'pink'"),
        (lambda: noisy(kind="coloured", correlation=1.0), r"expected a number in \(-1, 1\), got 1"),
        (lambda: noisy(kind="coloured", correlation=-2), "correlation is out of range"),
        (lambda: noisy(np.ones((2, 2)), kind="coloured"), "y has .* expected 1, got 2"),
        (lambda: noisy(kind="outliers", fraction=1.1), "fraction is too large"),
        (lambda: noisy(kind="outliers", fraction=-0.1), "fraction is too small"),
        (lambda: noisy(np.array([1.0, -0.1]), kind="poisson"), "least 0, got -0.1"),
        (lambda: noisy(-np.ones(2), kind="poisson"), "y must not be negative"),
        (lambda: noisy(kind="poisson", exact_norm=True), "exact_norm is not for Poisson"),
        (lambda: noisy(noise=1e-9, kind="poisson"), "noise is too small: expected at most 1e15"),
        (lambda: problems.deriv2(8).with_noise(0.1, kind="poisson"), "y must not be negative"),
        (lambda: problems.deriv2(8).with_noise(0.1, kind="brown"), "kind must be one of"),
        (
            lambda: problems.spikes(64, 8, separation=0.12),
            "expected at most 7 of the 64 cells, got 8",
        ),
        (lambda: problems.spikes(64, width=0.2), "width is too large"),
        (lambda: problems.spikes(64, 0), "s is out of range"),
        (lambda: problems.spikes(64, separation=-0.1), "separation is too small"),
        (lambda: problems.compressed_sensing(4, 8, 9), "s is out of range: .* most 8, got 9"),
        (lambda: problems.compressed_sensing(9, 8, 2, ensemble="cosine"), "m is out of range"),
        (lambda: problems.compressed_sensing(ensemble="fourier"), "gaussian, bernoulli, cosine"),
        (lambda: problems.blocks(1), "n is out of range"),
        (lambda: problems.tomography("page"), "picture must be one of shepp_logan, camera, moon"),
        (lambda: problems.tomography(data="fine"), "data must be one of model, scene"),
        (lambda: problems.tomography(size=7), "size is out of range"),
        (lambda: problems.tomography(angles=0), "angles is out of range"),
        (lambda: problems.tomography(angles=4.5), "angles must be a whole number"),
        (lambda: problems.tomography(angles=[0.0, 90.0]), "angles must be"),
        (lambda: problems.tomography(angles=np.zeros((2, 2))), "expected 1, got 2"),
        (lambda: problems.tomography(angles=np.array([0.0, math.nan])), "angles must be finite"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
