"""The claims of section 01/03 (integral equations), on random kernels, broken once each."""

import math

import numpy as np
import pytest
from claims import rejects

from course_lib import filters, operators, problems

N = 256
T = (np.arange(N) + 0.5) / N


def waves(rng, smooth):
    """A random kernel: a sum of products of waves, whose derivative in t is known and bounded."""
    omega, phase = rng.uniform(1, 12, 5), rng.uniform(0, 6, 5)
    c, a = rng.standard_normal(5), rng.uniform(1, 9, 5)
    left = np.cos(np.multiply.outer(T, a) + phase)
    kernel = left * c @ np.sin(np.multiply.outer(omega, T) + phase[:, None])
    return kernel, float(np.sum(np.abs(c) * omega**smooth))


def singular_values(kernel):
    return filters.decompose(kernel / N).s


@pytest.mark.claim("thm-hilbert-schmidt")
@pytest.mark.parametrize("broken", [None, "not squared", "sum of the first value only"])
def test_sum_of_squares(rng, broken):
    with rejects(broken):
        for _ in range(5):
            kernel = waves(rng, 1)[0] + np.abs(np.subtract.outer(T, T - rng.uniform()))
            s = singular_values(kernel)
            total = np.sum(s if broken == "not squared" else s**2)
            if broken == "sum of the first value only":
                total = 0.98 * s[0] ** 2
            # The double integral by the same midpoint rule: an identity of the matrix.
            assert total == pytest.approx(np.mean(kernel**2), rel=1e-10)
            assert np.all(s * np.sqrt(np.arange(1, N + 1)) <= np.sqrt(total) * (1 + 1e-12))


@pytest.mark.claim("thm-smooth-decay")
@pytest.mark.parametrize("broken", [None, "without the factor 2", "a kernel with a jump"])
def test_smooth_kernels(rng, broken):
    """|s - t|^p has p - 1 continuous derivatives in t, and a bounded p-th one."""
    with rejects(broken):
        for p in (1, 2, 3):
            kernel, M = waves(rng, p)
            kernel = kernel + np.abs(np.subtract.outer(T, T)) ** p / math.factorial(p)
            M += 1.0
            if broken == "a kernel with a jump":
                kernel = kernel + 50.0 * (np.subtract.outer(T, T) > 0)
            s = singular_values(kernel)
            for pieces in (1, 2, 4, 8, 16):
                below = math.factorial(p) * (2 * pieces) ** p
                if broken == "without the factor 2":
                    below = math.factorial(p) * (40 * pieces) ** p
                if p * pieces < N:
                    assert s[p * pieces] <= M / below * (1 + 1e-9) + 1e-14


@pytest.mark.claim("prop-three-operators")
@pytest.mark.parametrize("broken", [None, "integers for half-integers", "pi not squared"])
def test_three_operators(broken):
    i = np.arange(1, 9)
    shift = 0.0 if broken == "integers for half-integers" else 0.5
    power = 1 if broken == "pi not squared" else 2
    with rejects(broken):
        once = filters.decompose(operators.integration(N))
        assert np.allclose(once.s[:8], 1 / ((i - shift) * np.pi), rtol=2e-3)
        wave = np.cos(np.multiply.outer(T, (i - shift) * np.pi)) * np.sqrt(2 / N)
        assert np.allclose(np.abs(np.sum(once.V[:, :8] * wave, axis=0)), 1, atol=1e-3)
        twice = filters.decompose(problems.deriv2(N).A)
        assert np.allclose(twice.s[:8], 1 / (i**2 * np.pi**power), rtol=2e-3)
        wave = np.sin(np.multiply.outer(T, i * np.pi)) * np.sqrt(2 / N)
        assert np.allclose(np.abs(np.sum(twice.V[:, :8] * wave, axis=0)), 1, atol=1e-3)
        for width in (0.02, 0.04):
            blur = operators.convolution(problems.psf_gaussian(width * N, ndim=1), N)
            s = np.sort(filters.decompose(blur).s)[::-1][:7]
            k = np.array([0, 1, 1, 2, 2, 3, 3])
            assert np.allclose(s, np.exp(-0.5 * (2 * np.pi * k * width) ** 2), rtol=1e-6)


@pytest.mark.claim("thm-finer-grid")
@pytest.mark.parametrize("broken", [None, "the coarse grid in the place of the fine one"])
def test_finer_grids(rng, broken):
    """Galerkin matrices on nested grids: means over blocks of a fine kernel, orthonormal boxes."""

    def galerkin(kernel, n):
        block = N // n
        return kernel.reshape(n, block, n, block).mean(axis=(1, 3)) / n

    with rejects(broken):
        for _ in range(5):
            kernel = waves(rng, 1)[0] + np.exp(-8 * np.subtract.outer(T, T) ** 2) + 1
            exact = singular_values(kernel)
            levels = [filters.decompose(galerkin(kernel, n)).s for n in (4, 8, 16, 64)]
            if broken:
                levels = levels[::-1]
            for coarse, fine in zip(levels, [*levels[1:], exact], strict=True):
                size = min(coarse.size, fine.size)
                assert np.all(coarse[:size] <= fine[:size] + 1e-12)
            c = abs(kernel.mean())
            for s in levels:
                assert s[0] / s[-1] >= c / exact[s.size - 1] * (1 - 1e-9)
