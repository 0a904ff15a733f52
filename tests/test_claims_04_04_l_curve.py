"""The claims of section 04/04 (the L-curve), on random instances, broken once each."""

import numpy as np
import pytest
from claims import rejects

from course_lib import choice, operators


def instance(rng, m=14, n=9, general=True):
    """Data in the bases of a random problem, with a D that has a null space."""
    A = rng.standard_normal((m, n)) / np.arange(1, n + 1)
    D = operators.difference(n) if general else None
    return choice.smoother(A, D).fit(rng.standard_normal(m))


def diagonal(s):
    """The smoother of A = diag(s): its bases are the unit vectors."""
    return choice.Smoother(
        operators.diagonal(s), s, np.ones_like(s), lambda y: y, lambda w, y: w, None
    )


def slope_number(fit, lams):
    """q = r/(λp): minus the slope of the L-curve."""
    residual, size = fit.norms(lams)
    return residual**2 / (lams * size**2)


@pytest.mark.claim("prop-l-curve-shape")
@pytest.mark.parametrize("broken", [None, "λ grows the other way", "the slope of the norms"])
def test_shape_of_the_curve(rng, broken):
    for general in (True, False):
        for _ in range(5):
            fit, lams = instance(rng, general=general), np.geomspace(1e-3, 1e1, 400)
            r, p = (values**2 for values in fit.norms(lams))
            if broken == "λ grows the other way":
                r, p = r[::-1], p[::-1]
            if broken == "the slope of the norms":
                r, p = np.sqrt(r), np.sqrt(p)
            secants = np.diff(p) / np.diff(r)
            with rejects(broken):
                assert (np.diff(r) > 0).all()
                assert (np.diff(p) < 0).all()
                assert (np.diff(secants) > 0).all()
                # A secant lies between the slopes at its ends.
                assert (-1 / lams[:-1] <= secants * (1 - 1e-6)).all()
                assert (secants * (1 + 1e-6) <= -1 / lams[1:]).all()


@pytest.mark.claim("prop-l-curve-shape")
@pytest.mark.parametrize("broken", [None, "slope -1/2"])
def test_slope_minus_one_is_a_stationary_product(rng, broken):
    seen = 0
    for _ in range(30):
        fit, lams = instance(rng, 20, 20, general=False), np.geomspace(1e-6, 1e3, 4000)
        residual, size = fit.norms(lams)
        q = slope_number(fit, lams) - (0.5 if broken else 1)
        product = np.gradient(np.log(residual * size), np.log(lams))
        crossings = np.flatnonzero(q[1:] * q[:-1] < 0)
        with rejects(broken if crossings.size else None):
            for k in crossings:
                assert np.abs(product[k]) < 0.01
        seen += crossings.size
    assert seen > 3


@pytest.mark.claim("prop-l-curve-curvature")
@pytest.mark.parametrize("broken", [None, "the other side", "without the 1"])
def test_curvature(rng, broken):
    """The closed form against that of a circle through three points, and against the library."""
    for general in (True, False):
        fit, lams = instance(rng, general=general), np.geomspace(1e-3, 1e1, 15)
        c, d = fit.smoother.c, fit.smoother.d
        kept = c**2 / (c**2 + lams[:, None] * d**2)
        residual = fit.norms(lams)[0]
        rho = residual**2 / (2 * (kept * (1 - kept) ** 2) @ fit.power)
        q = slope_number(fit, lams)
        formula = 2 * q * (rho - (0 if broken == "without the 1" else 1) - q) / (1 + q**2) ** 1.5
        if broken == "the other side":
            formula = -formula
        with rejects(broken):
            library = choice.l_curve(fit.smoother, fit.y, grid=lams).values
            np.testing.assert_allclose(formula, library, rtol=1e-6, atol=1e-9)
            for lam, value in zip(lams, formula, strict=True):
                three = np.log(fit.norms(lam * np.exp([-1e-3, 0.0, 1e-3])))
                a, b = np.diff(three, axis=1).T
                area = a[0] * b[1] - a[1] * b[0]
                sides = np.linalg.norm(a) * np.linalg.norm(b) * np.linalg.norm(a + b)
                assert 2 * area / sides == pytest.approx(value, rel=1e-2, abs=1e-3)


def smallest_errors(rng, delta, broken, q0=0.5):
    """Smallest error over all λ with slope at most -q0, and over all λ at all."""
    s = rng.uniform(0.9, 1.1, 40) * 0.6 ** np.arange(1, 41)
    s = np.sort(s)[::-1]
    x = s**2 * rng.uniform(0.5, 1.0, 40)
    x /= np.linalg.norm(x)
    j = np.flatnonzero(s**2 <= 2 / q0 * delta**2)[0]
    y = s * x
    y[min(j + 8, 39) if broken == "noise that hardly enters x" else j] += delta
    fit, lams = diagonal(s).fit(y), np.geomspace(1e-3 * delta**2, 10.0, 300)
    q = slope_number(fit, lams)
    errors = np.array([np.linalg.norm(fit.solve(lam) - x) for lam in lams])
    # An L-curve has two places of slope near -1; far to the right the error is large anyway.
    steep = q < q0 if broken == "the flat part" else q >= q0
    return errors[steep].min(), errors.min()


@pytest.mark.claim("thm-slope-rule")
@pytest.mark.parametrize("broken", [None, "noise that hardly enters x", "the flat part"])
def test_rules_that_ask_for_a_slope_do_not_converge(rng, broken):
    with rejects(broken):
        for _ in range(3):
            found = np.array([smallest_errors(rng, d, broken) for d in (1e-2, 1e-4, 1e-6)])
            # γ/(2√C) of the proof, with γ about 0.5 and C = 4.
            assert (found[:, 0] > 0.1).all()
            assert found[2, 1] < 0.01


@pytest.mark.claim("thm-bakushinskii")
@pytest.mark.parametrize("broken", [None, "the rule is told the noise", "few dimensions"])
def test_veto(rng, broken):
    """One answer for two truths; the distance grows without bound while the noise vanishes."""
    s = 0.5 ** np.arange(1, 41)
    if broken == "few dimensions":
        s = np.maximum(s, 0.5**3)
    smooth, worst = diagonal(s), []
    for k in (5, 15, 25):
        noise, truth = np.sqrt(s[k]), np.zeros(40)
        y = noise * np.eye(40)[k] * rng.choice([-1.0, 1.0])
        other = y / s
        answers = [choice.gcv(smooth, y).x, choice.l_curve(smooth, y).x]
        for answer in answers:
            first = truth if broken == "the rule is told the noise" else answer
            second = other if broken == "the rule is told the noise" else answer
            errors = np.linalg.norm(first - truth), np.linalg.norm(second - other)
            worst.append((noise, max(errors), np.linalg.norm(other)))
    noise, error, distance = np.array(worst).T
    with rejects(broken):
        assert (error >= 0.5 * distance * (1 - 1e-9)).all()
        assert noise[-1] < 0.01 * noise[0]
        assert error[-1] > 100 * error[0]
