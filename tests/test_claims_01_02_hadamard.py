"""The claims of section 01/02 (three things that can go wrong), broken once each."""

import numpy as np
import pytest
from claims import rejects

from course_lib import filters, problems

SIZES = [(5, 5, 5), (7, 4, 4), (4, 7, 4), (6, 6, 3), (8, 5, 2), (1, 4, 1), (4, 1, 1)]


def pseudoinverse(A):
    """A† as the library computes it, without the singular values that are rounding noise."""
    spectrum = filters.decompose(A)
    keep = (np.arange(spectrum.s.size) < spectrum.rank) * 1.0
    return spectrum, lambda y: filters.filtered(spectrum, y, keep)


@pytest.mark.claim("thm-finite-stability")
@pytest.mark.parametrize("broken", [None, "the largest singular value", "norm of y, not of Py"])
@pytest.mark.parametrize("size", SIZES)
def test_stability_of_the_pseudoinverse(size, rng, broken):
    m, n, r = size
    with rejects(broken):
        for _ in range(10):
            A = rng.standard_normal((m, r)) @ rng.standard_normal((r, n))
            spectrum, inverse = pseudoinverse(A)
            s, U = spectrum.s[:r], spectrum.U[:, :r]
            assert np.linalg.norm(inverse(A @ rng.standard_normal(n)) @ spectrum.V[:, r:]) < 1e-10
            constant = 1 / s[-1]
            if broken == "the largest singular value":
                # For one singular value the two are the same number.
                constant = 0.99 / s[0]
            # Data almost outside the range, where the norm of y is far larger than that of Py.
            outside = rng.standard_normal(m)
            outside -= U @ (U.T @ outside)
            y = U[:, 0] + 10 * outside
            for d in (rng.standard_normal(m), U[:, -1], U[:, 0]):
                change = np.linalg.norm(inverse(y + d) - inverse(y))
                assert change <= constant * np.linalg.norm(d) * (1 + 1e-9)
            base = np.linalg.norm(y) if broken == "norm of y, not of Py" else None
            projected = np.linalg.norm(U @ (U.T @ y)) if base is None else base * (1 + 1e-6)
            d = 1e-2 * U[:, -1]
            relative = np.linalg.norm(inverse(y + d) - inverse(y)) / np.linalg.norm(inverse(y))
            bound = s[0] / s[-1] * np.linalg.norm(d) / projected
            # y = u_1 + something outside the range: equality.
            assert relative == pytest.approx(bound, rel=1e-7)


@pytest.mark.claim("thm-compact-unstable")
@pytest.mark.parametrize("broken", [None, "singular values that stay away from 0"])
def test_the_range_is_not_closed(rng, broken):
    """The y of the proof: the partial sums converge, their solutions grow like the root of K."""
    i = np.arange(1, 20_001)
    with rejects(broken):
        for power in rng.uniform(0.3, 2, size=5):
            sigma = i**-power if broken is None else 1 + i**-power
            # Choose i_k with sigma <= 1/k, as long as there are some.
            chosen, k = [], 1
            for index, value in enumerate(sigma):
                if value <= 1 / k:
                    chosen.append(index)
                    k += 1
            assert len(chosen) >= 10
            y = sigma[chosen]
            assert np.sum(y[5:] ** 2) <= np.sum(1 / np.arange(6.0, y.size + 1) ** 2) + 1e-12
            coefficients = y / sigma[chosen]
            assert np.allclose(coefficients, 1.0)  # so the norm of the solution is the root of K


@pytest.mark.claim("thm-compact-unstable")
@pytest.mark.parametrize("broken", [None, "a well-conditioned operator"])
@pytest.mark.parametrize("make", [problems.deriv2, problems.gravity, problems.shaw])
def test_unit_vectors_with_small_images(make, broken):
    """On finer and finer grids there are unit vectors with smaller and smaller images."""
    smallest = []
    for n in (16, 32, 64):
        A = make(n).A.to_dense()
        if broken:
            A = A + np.eye(n)
        spectrum = filters.decompose(A)
        v = spectrum.V[:, -1]
        assert np.linalg.norm(v) == pytest.approx(1)
        smallest.append(np.linalg.norm(A @ v))
    with rejects(broken):
        assert smallest[1] <= 0.5 * smallest[0]
        assert smallest[2] <= 0.5 * smallest[1] or smallest[2] < 1e-14
