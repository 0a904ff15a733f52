"""The claims of section 01/01 (from the effect back to the cause), broken once each."""

import numpy as np
import pytest
from claims import rejects

from course_lib.checks import slope


def waves(rng):
    """A random sum of sines with a kink in y'', its derivative, and a Lipschitz constant of y''."""
    a, omega, phase = rng.standard_normal(3), rng.uniform(0.5, 3, 3), rng.uniform(0, 6, 3)
    c, kink = rng.standard_normal(), rng.uniform(-1, 1)

    def y(s):
        return float(np.sum(a * np.sin(omega * s + phase)) + c * abs(s - kink) ** 3 / 6)

    def derivative(s):
        bend = c * (s - kink) * abs(s - kink) / 2
        return float(np.sum(a * omega * np.cos(omega * s + phase)) + bend)

    return y, derivative, float(np.sum(np.abs(a) * omega**3) + abs(c))


@pytest.mark.claim("thm-difference-step")
@pytest.mark.parametrize("broken", [None, "noise term halved", "curvature term divided by 24"])
def test_bound_of_the_quotient(rng, broken):
    smooth = 24 if broken == "curvature term divided by 24" else 6
    noisy = 0.5 if broken == "noise term halved" else 1.0
    with rejects(broken):
        for _ in range(50):
            y, derivative, M = waves(rng)
            s, h = rng.uniform(-1, 1), 10 ** rng.uniform(-3, 0)
            for delta in (0.0, 10 ** rng.uniform(-5, -1)):
                # The worst signs of the noise.
                for sign in (-1, 1):
                    quotient = (y(s + h) + sign * delta - y(s - h) + sign * delta) / (2 * h)
                    bound = M * h**2 / smooth + noisy * delta / h
                    assert abs(quotient - derivative(s)) <= bound + 1e-10
        # The bound is nearly reached: y = sin at 0 has the largest third derivative there.
        h = 0.1
        assert abs(np.sin(h) / h - 1.0) <= h**2 / smooth


@pytest.mark.claim("thm-difference-step")
@pytest.mark.parametrize("broken", [None, "step without the factor 3", "exponent one half"])
def test_best_step_and_its_rate(rng, broken):
    power = 0.5 if broken == "exponent one half" else 1 / 3
    factor = 1.0 if broken == "step without the factor 3" else 3.0
    with rejects(broken):
        for M in 10 ** rng.uniform(-2, 2, size=5):
            levels, best = 10.0 ** np.arange(-8, -2), []
            for delta in levels:
                h = (factor * delta / M) ** power
                value = M * h**2 / 6 + delta / h
                grid = h * np.geomspace(0.1, 10, 201)
                assert value <= np.min(M * grid**2 / 6 + delta / grid) * (1 + 1e-12)
                assert value == pytest.approx(1.5 * (M / 3) ** (1 / 3) * delta ** (2 / 3))
                best.append(value)
            assert slope(levels, np.array(best)) == pytest.approx(2 / 3, abs=1e-6)


@pytest.mark.claim("prop-derivative-limit")
@pytest.mark.parametrize("broken", [None, "twice the limit", "one function only"])
def test_two_functions_that_fit_the_same_data(rng, broken):
    claimed = 2.0 if broken == "twice the limit" else 1.0
    with rejects(broken):
        for _ in range(20):
            M, delta = 10 ** rng.uniform(-1, 2), 10 ** rng.uniform(-6, -2)
            h = (3 * delta / M) ** (1 / 3)
            s = h * np.linspace(-1, 1, 401)
            piece = M * (h**2 * s / 2 - s**3 / 6)
            second = np.concatenate((-M * s, M * s))  # of p on [-h, 3h]
            assert np.abs(piece).max() <= delta * (1 + 1e-12)
            assert second[400] == pytest.approx(second[401])
            # The function, and not only its formula: three differences across the joint.
            wave = np.concatenate((piece, -piece[1:]))
            assert np.abs(np.diff(wave, 3)).max() <= M * (s[1] - s[0]) ** 3 * (1 + 1e-6)
            # Any answer of a method to the data 0, and the worse of the two errors.
            slope_at_0 = M * h**2 / 2
            answer = rng.standard_normal() * slope_at_0
            truths = [slope_at_0, -slope_at_0]
            if broken == "one function only":
                truths, answer = truths[:1], truths[0]
            error = max(abs(answer - truth) for truth in truths)
            limit = 1.5 * (M / 3) ** (1 / 3) * delta ** (2 / 3)
            assert error >= claimed * limit * (1 - 1e-12)
            # The quotient of the theorem, given the data 0, errs by just this much.
            assert slope_at_0 == pytest.approx(limit)
