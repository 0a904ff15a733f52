"""The claims of section 01/04 (how much noise grows), on random instances, and broken once each."""

import numpy as np
import pytest
from claims import rejects

from course_lib import operators, problems

N = 1000
H = 1 / N
T = (np.arange(N) + 0.5) * H


def gain(A, wave):
    return np.linalg.norm(wave) / np.linalg.norm(A @ wave)


@pytest.mark.claim("prop-gain-integration")
@pytest.mark.parametrize("broken", [None, "the square of the frequency", "a sine for a cosine"])
def test_integration_amplifies_by_the_frequency(rng, broken):
    A = operators.integration(N)
    power = 2 if broken == "the square of the frequency" else 1
    with rejects(broken):
        for half_periods in rng.integers(1, 60, size=8):
            omega = np.pi * half_periods
            wave = np.sin(omega * T) if broken == "a sine for a cosine" else np.cos(omega * T)
            # The midpoint rule has an error of the order (ωh)²/12.
            assert gain(A, wave) == pytest.approx(omega**power, rel=(omega * H) ** 2 / 6 + 1e-6)
            assert np.allclose(A @ wave, np.sin(omega * T) / omega, atol=1e-4)
        # Everything in the range is continuous and vanishes at 0.
        x = rng.standard_normal(N)
        assert abs((A @ x)[0]) <= 0.5 * H * np.abs(x).max()
        assert np.all(np.abs(np.diff(A @ x)) <= np.sqrt(H) * np.linalg.norm(x) * np.sqrt(H) + 1e-12)


@pytest.mark.claim("prop-gain-integration")
@pytest.mark.parametrize("broken", [None, "a sine, which has a solution"])
def test_a_cosine_has_no_cause(broken):
    q = np.sin if broken else np.cos
    norms = []
    for n in (100, 400, 1600):
        s = np.arange(1, n + 1) / n
        p = n * np.diff(q(8 * np.pi * s), prepend=0.0)
        norms.append(np.linalg.norm(p) / np.sqrt(n))
    with rejects(broken):
        assert norms[2] > 1.5 * norms[1] or norms[2] > 1.3 * norms[0]


@pytest.mark.claim("prop-gain-green")
@pytest.mark.parametrize("broken", [None, "the frequency itself", "between two multiples of pi"])
def test_two_integrations_amplify_by_the_square(rng, broken):
    A = problems.deriv2(N).A
    shift = 0.5 if broken == "between two multiples of pi" else 0.0
    with rejects(broken):
        for half_periods in rng.integers(1, 40, size=8):
            omega = np.pi * (half_periods + shift)
            expected = omega if broken == "the frequency itself" else omega**2
            q = np.sin(omega * T)
            assert gain(A, q) == pytest.approx(expected, rel=(omega * H) ** 2 + 1e-5)
            # The preimage has the opposite sign.
            assert np.allclose(A @ (-(omega**2) * q), q, atol=5e-3)
        # Everything in the range vanishes at both ends.
        y = A @ rng.standard_normal(N)
        assert max(abs(y[0]), abs(y[-1])) <= 2 * H * np.abs(y).max() * np.pi + 1e-4


@pytest.mark.claim("prop-gain-gaussian")
@pytest.mark.parametrize("broken", [None, "without the one half", "width not squared"])
def test_a_blur_amplifies_exponentially(rng, broken):
    with rejects(broken):
        for _ in range(8):
            width, periods = rng.uniform(0.02, 0.06), int(rng.integers(1, 11))
            A = operators.convolution(problems.psf_gaussian(width * N, ndim=1), N)
            omega = 2 * np.pi * periods
            exponent = 0.5 * (omega * width) ** 2
            if broken == "without the one half":
                exponent *= 2
            if broken == "width not squared":
                exponent = 0.5 * omega**2 * width
            for wave in (np.sin(omega * T), np.cos(omega * T)):
                assert np.allclose(A @ wave, np.exp(-exponent) * wave, atol=1e-6)


def _random_kernel(rng, jump=False):
    """A continuous kernel on [0, 1]²: piecewise linear on a random grid; with a spike if asked."""
    nodes = np.linspace(0, 1, 8)
    values = rng.standard_normal((8, 8))
    rows = np.stack([np.interp(T, nodes, column) for column in values.T], axis=1)
    kernel = np.stack([np.interp(T, nodes, row) for row in rows])
    if jump:
        # Not an integral operator with a continuous kernel: the identity is added.
        kernel = kernel + N * np.eye(N)
    return kernel


@pytest.mark.claim("thm-no-bound")
@pytest.mark.parametrize("broken", [None, "the identity is added"])
def test_continuous_kernels_have_no_bound(rng, broken):
    with rejects(broken):
        for _ in range(3):
            kernel = _random_kernel(rng, jump=broken is not None)
            images = [np.abs(kernel @ np.sin(2 * np.pi * k * T) * H).max() for k in (1, 5, 25, 100)]
            assert images[3] <= 0.1 * images[0]
            # The bound of the proof, with the largest change of the kernel over 1/M.
            M = 50
            change = np.abs(np.diff(kernel, axis=1)).max() * N / M
            bound = change + 2 * M * np.abs(kernel).max() / (2 * np.pi * 100)
            assert images[3] <= bound


@pytest.mark.claim("prop-gain-smooth")
@pytest.mark.parametrize("broken", [None, "one power too many", "a kernel with a jump"])
def test_smooth_kernels_amplify_more(rng, broken):
    """|sin π(s - t)|^(r + 1) has r continuous derivatives (for even r), with period 1."""
    with rejects(broken):
        for r, M in ((1, np.pi), (2, 3 * np.pi**2)):
            u = np.subtract.outer(T, T)
            kernel = np.abs(np.sin(np.pi * u)) ** 3
            if r == 1:
                # Derivative 2π sin cos, at most π.
                kernel = np.sin(np.pi * u) ** 2 + 0.2 * np.abs(np.sin(np.pi * u)) ** 3
                M = np.pi + 0.2 * 3 * np.pi
            if broken == "a kernel with a jump":
                kernel = 10 * (u % 1.0)
            power = r + 3 if broken == "one power too many" else r
            for k in (1, 2, 5, 20):
                omega = 2 * np.pi * k
                for wave in (np.sin(omega * T), np.cos(omega * T)):
                    assert np.abs(kernel @ wave * H).max() <= M / omega**power * (1 + 1e-9)


@pytest.mark.claim("cor-visible-frequency")
@pytest.mark.parametrize("broken", [None, "without the factor 2 under the root"])
def test_what_can_be_seen(rng, broken):
    width, factor = 0.05, 1 if broken else 2
    with rejects(broken):
        for eps in 10 ** rng.uniform(-5, -2, size=5):
            visible = {
                "integration": (1 / eps, lambda omega: omega),
                "two": (eps**-0.5, lambda omega: omega**2),
                "blur": (
                    np.sqrt(factor * np.log(1 / eps)) / width,
                    lambda omega: np.exp(0.5 * (omega * width) ** 2),
                ),
            }
            for limit, amplification in visible.values():
                assert eps * amplification(0.999 * limit) < 1 < eps * amplification(1.001 * limit)
        # And by the operator itself: the last wave below the limit is harmless, the next is not.
        A = operators.convolution(problems.psf_gaussian(width * N, ndim=1), N)
        eps = 1e-3
        limit = np.sqrt(factor * np.log(1 / eps)) / width / (2 * np.pi)
        for k, harmless in ((int(limit), True), (int(limit) + 1, False)):
            assert (eps * gain(A, np.sin(2 * np.pi * k * T)) <= 1) == harmless
