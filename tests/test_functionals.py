"""Functionals: formulas by other means, proximal maps, conjugates, and what joins them.

The properties run over the table FUNCTIONALS of cases.py.
"""

import numpy as np
import pytest
from cases import FUNCTIONALS
from conftest import make_like
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import assert_alike, eps, relative, to_numpy
from scipy.optimize import minimize

from course_lib import checks
from course_lib.arrays import asarray_like
from course_lib.functionals import (
    Functional,
    box,
    elastic_net,
    group_l1,
    l1,
    l1_ball,
    least_squares,
    separable,
    soft_threshold,
    squared_l2,
    total_variation,
)
from course_lib.operators import difference, gradient

LIKE = make_like("numpy", "float64")
WITH_PROX = [case for case in FUNCTIONALS if case.build(LIKE).prox]
WITH_CONJUGATE = [case for case in FUNCTIONALS if case.build(LIKE).conjugate]
SMOOTH = [case for case in FUNCTIONALS if case.build(LIKE).gradient]


def named(case) -> str:
    return case.name


every = pytest.mark.parametrize("case", FUNCTIONALS, ids=named)
every_prox = pytest.mark.parametrize("case", WITH_PROX, ids=named)
every_conjugate = pytest.mark.parametrize("case", WITH_CONJUGATE, ids=named)
every_smooth = pytest.mark.parametrize("case", SMOOTH, ids=named)


def points(case, rng, count: int = 3, size: float = 1.0) -> list[np.ndarray]:
    return [size * rng.standard_normal(case.shape) for _ in range(count)]


def test_the_table_covers_the_formulas():
    """What has no proximal map or conjugate is what the docstrings say."""
    without = {case.name.split("-")[0] for case in FUNCTIONALS} - {
        case.name.split("-")[0] for case in WITH_PROX
    }
    assert without == {"total_variation"}
    assert {case.name for case in WITH_CONJUGATE} == {
        case.name for case in FUNCTIONALS if case.conjugate is not None
    }
    assert {case.name for case in SMOOTH} == {
        case.name for case in FUNCTIONALS if case.name.startswith(("squared", "least"))
    }


# ---------------------------------------------------------------- values and gradients


@every
def test_value(case, like, rng):
    R = case.build(like)
    for x in points(case, rng):
        x = case.allowed(x)
        value = R(asarray_like(x, like))
        assert_alike(value, like)
        assert value.shape == ()
        expected = case.value(to_numpy(asarray_like(x, like)).astype(float))
        assert float(value) == pytest.approx(expected, rel=100 * eps(like), abs=1e-30)


@every
def test_value_at_zero(case, like):
    zero = asarray_like(np.zeros(case.shape), like)
    expected = case.value(np.zeros(case.shape))
    assert float(case.build(like)(zero)) == pytest.approx(expected, rel=100 * eps(like))


@pytest.mark.parametrize(
    "case", [c for c in FUNCTIONALS if c.name.startswith(("box", "l1_ball"))], ids=named
)
def test_indicators_are_infinite_outside(case, like, rng):
    """By a thousandth outside is outside; by rounding is not, however small the numbers are."""
    R = case.build(like)
    for scale in (1.0, 1e-6, 1e6):
        for v in points(case, rng, 4, 10 * scale):
            v = to_numpy(asarray_like(v, like)).astype(float)
            p = to_numpy(R.prox(asarray_like(v, like), 1.0)).astype(float)
            assert float(R(asarray_like(p * (1 - 2 * eps(like)), like))) == 0.0
            beyond = p + 1e-3 * (v - p)
            if np.abs(beyond - p).sum() > 0:
                assert float(R(asarray_like(beyond, like))) == np.inf
    assert float(R(asarray_like(np.full(case.shape, 0.01), like))) == 0.0


@every_smooth
def test_gradient(case, xp, rng):
    like = make_like(xp, "float64")
    f = case.build(like)
    for x in points(case, rng, 2):
        result = checks.taylor(f, f.gradient, asarray_like(x, like))
        assert result, result.message


@every_smooth
def test_gradient_keeps_its_kind(case, like, rng):
    (x,) = points(case, rng, 1)
    g = case.build(like).gradient(asarray_like(x, like))
    assert_alike(g, like)
    assert tuple(g.shape) == case.shape


def test_total_variation_is_a_norm_of_the_gradient(like, rng):
    x = asarray_like(rng.standard_normal((4, 5)), like)
    D = gradient((4, 5))
    for isotropic, R in ((True, group_l1(0)), (False, l1())):
        TV = total_variation((4, 5), isotropic=isotropic)
        assert float(TV(x)) == pytest.approx(float(R(D @ x)), rel=10 * eps(like))
        assert float(TV(x * 0 + 3)) == 0.0


# ---------------------------------------------------------------- proximal maps


@every_prox
@pytest.mark.parametrize("size", [0.3, 1.0, 30.0])
@pytest.mark.slow
def test_proximal_inequality(case, size, rng):
    R = case.build(LIKE)
    for v in points(case, rng, 2, size):
        result = checks.prox(R, R.prox, v, step=0.37 * size, trials=1)
        assert result, result.message


@every_prox
def test_proximal_inequality_in_every_library(case, like, rng):
    R = case.build(like)
    (v,) = points(case, rng, 1, 2.0)
    result = checks.prox(R, R.prox, asarray_like(v, like), trials=1)
    assert result, result.message


@every_prox
def test_prox_keeps_kind_and_argument(case, like, rng):
    R = case.build(like)
    for v in points(case, rng, 3, 2.0):
        v = asarray_like(v, like)
        before = to_numpy(v).copy()
        p = R.prox(v, 0.4)
        assert_alike(p, like)
        assert tuple(p.shape) == case.shape
        np.testing.assert_array_equal(to_numpy(v), before)


@every_prox
def test_prox_is_firmly_nonexpansive(case, rng):
    """‖p - q‖² <= <p - q, v - w>, for proximal points p of v and q of w."""
    R = case.build(LIKE)
    for v, w in zip(points(case, rng, 20), points(case, rng, 20), strict=True):
        p, q = R.prox(v, 0.6), R.prox(w, 0.6)
        assert np.sum((p - q) ** 2) <= np.sum((p - q) * (v - w)) + 1e-14


@every_prox
def test_prox_of_a_small_step_is_the_projection(case, rng):
    """η → 0: prox_{ηR}(v) goes to v, or to the nearest point where R is finite."""
    R = case.build(LIKE)
    (v,) = points(case, rng, 1, 2.0)
    p = R.prox(v, 1e-9)
    nearest = v if np.isfinite(case.value(v)) else R.prox(v, 1.0)
    np.testing.assert_allclose(p, nearest, atol=1e-7)


@every
def test_scaled(case, rng):
    """a R: values, gradients, proximal maps and conjugates as the definitions say."""
    R, a = case.build(LIKE), 2.5
    scaled = a * R
    assert isinstance(scaled, Functional)
    (v,) = points(case, rng, 1)
    x = case.allowed(v)
    assert float(scaled(x)) == pytest.approx(a * case.value(x), rel=1e-13)
    assert (scaled.gradient is None, scaled.prox is None, scaled.conjugate is None) == (
        R.gradient is None,
        R.prox is None,
        R.conjugate is None,
    )
    if R.gradient:
        assert checks.taylor(scaled, scaled.gradient, x)
    if R.prox:
        assert checks.prox(scaled, scaled.prox, v, trials=1)
    if R.conjugate:
        p = case.dual_allowed(rng.standard_normal(case.shape))
        assert float(scaled.conjugate(a * p)) == pytest.approx(a * case.conjugate(p), rel=1e-13)
        # Fenchel and Young, with equality at x = prox(v) and p = v - x.
        y = scaled.prox(v, 1.0)
        total = float(scaled(y) + scaled.conjugate(v - y))
        assert total == pytest.approx(np.sum(y * (v - y)), abs=1e-12)
    assert scaled.name == f"2.5 {R.name}"


TWO = {
    "l1": l1(),
    "l1 times 0.3": 0.3 * l1(),
    "elastic net": elastic_net(0.5, 2.0),
    "group": group_l1(0),
    "squares": squared_l2(),
    "squares of differences": squared_l2(np.array([[1.0, -1.0], [0.5, 2.0], [0.0, 1.0]])),
    "least squares": least_squares(None, np.array([1.0, -2.0]), weights=np.array([0.5, 3.0])),
    "separable": separable((l1(), (1,)), (squared_l2(), (1,))),
}


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("step", [0.2, 1.7])
@pytest.mark.slow
def test_prox_against_a_search(name, step, rng):
    """Nelder and Mead's method in the plane: no formula, no derivative, only the definition."""
    R = TWO[name]
    for v in rng.standard_normal((3, 2)):
        p = R.prox(v, step)

        def objective(x, v=v):
            return step * float(R(x)) + 0.5 * np.sum((x - v) ** 2)

        options = {"xatol": 1e-10, "fatol": 1e-15, "maxiter": 4000, "maxfev": 8000}
        x = np.zeros(2)
        for _ in range(3):  # it may stall, so it starts again from where it ended
            x = minimize(objective, x, method="Nelder-Mead", options=options).x
        np.testing.assert_allclose(p, x, atol=2e-6)


def test_projections_against_slsqp(rng):
    """The nearest point of a box and of a diamond in the plane, with plain constraints."""
    corners = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    diamond = {"type": "ineq", "fun": lambda x: 0.8 - corners @ x}
    for v in 2 * rng.standard_normal((10, 2)):
        options = {"x0": np.zeros(2), "method": "SLSQP", "options": {"ftol": 1e-15}}
        x = minimize(lambda x, v=v: np.sum((x - v) ** 2), constraints=diamond, **options).x
        np.testing.assert_allclose(l1_ball(0.8).prox(v, 1.0), x, atol=1e-6)
        x = minimize(lambda x, v=v: np.sum((x - v) ** 2), bounds=[(-0.2, 0.6)] * 2, **options).x
        np.testing.assert_allclose(box(-0.2, 0.6).prox(v, 1.0), x, atol=1e-6)


CONVEX = {
    "l1": (0.7 * l1(), (4,), lambda cp, x: 0.7 * cp.norm1(x)),
    "elastic net": (
        elastic_net(0.5, 2.0),
        (4,),
        lambda cp, x: 0.5 * cp.norm1(x) + cp.sum_squares(x),
    ),
    "group": (group_l1(0), (3, 4), lambda cp, x: cp.sum(cp.norm(x, 2, axis=0))),
    "ball": (l1_ball(0.9), (5,), lambda cp, x: [cp.norm1(x) <= 0.9]),
    "box": (box(-0.1, 0.4), (5,), lambda cp, x: [x >= -0.1, x <= 0.4]),
    "differences": (
        squared_l2(difference(5)),
        (5,),
        lambda cp, x: 0.5 * cp.sum_squares(cp.diff(x)),
    ),
}


@pytest.mark.parametrize("name", CONVEX)
@pytest.mark.filterwarnings("ignore")
def test_prox_against_cvxpy(name, rng):
    cp = pytest.importorskip("cvxpy")
    R, shape, expression = CONVEX[name]
    v, step = rng.standard_normal(shape), 0.6
    x = cp.Variable(shape)
    part = expression(cp, x)
    value, constraints = (0.0, part) if isinstance(part, list) else (part, [])
    problem = cp.Problem(cp.Minimize(step * value + 0.5 * cp.sum_squares(x - v)), constraints)
    problem.solve(solver="CLARABEL")
    np.testing.assert_allclose(R.prox(v, step), x.value, atol=1e-5)


# ---------------------------------------------------------------- conjugates


@every_conjugate
def test_conjugate_is_its_formula(case, like, rng):
    R = case.build(like)
    for p in points(case, rng):
        p = case.dual_allowed(p)
        value = R.conjugate(asarray_like(p, like))
        assert_alike(value, like)
        assert float(value) == pytest.approx(case.conjugate(p), rel=100 * eps(like), abs=1e-6)


@every_conjugate
def test_conjugate_is_infinite_where_the_formula_is(case, rng):
    R = case.build(LIKE)
    for p in points(case, rng, 20, 3.0):
        assert np.isinf(float(R.conjugate(p))) == np.isinf(case.conjugate(p))


@every_conjugate
def test_fenchel_and_young(case, rng):
    """R(x) + R*(p) >= <p, x>, and equality where p is a subgradient at x."""
    R = case.build(LIKE)
    for v, w in zip(points(case, rng, 20), points(case, rng, 20), strict=True):
        x, p = case.allowed(v), case.dual_allowed(w)
        assert float(R(x) + R.conjugate(p)) >= np.sum(x * p) - 1e-13
        x = R.prox(v, 0.8)
        p = (v - x) / 0.8
        assert float(R(x) + R.conjugate(p)) == pytest.approx(np.sum(x * p), abs=1e-12)


@every_conjugate
@pytest.mark.parametrize("step", [0.15, 1.0, 6.0])
def test_moreau(case, step, like, rng):
    """v = prox_{ηR}(v) + η prox_{R*/η}(v/η), the second by a formula of its own."""
    R = case.build(like)
    for v in points(case, rng, 3, 2.0):
        v = to_numpy(asarray_like(v, like)).astype(float)
        expected = v - step * case.dual_prox(v / step, 1 / step)
        p = to_numpy(R.prox(asarray_like(v, like), step))
        np.testing.assert_allclose(p, expected, rtol=0, atol=50 * eps(like))


@every_conjugate
def test_the_formulas_of_the_table_are_proximal_maps(case, rng):
    """The table's own maps of the conjugates are checked too: two wrongs would agree."""
    (p,) = points(case, rng, 1)
    result = checks.prox(
        lambda q: np.float64(case.conjugate(q * (1 - 1e-15))), case.dual_prox, p, trials=2
    )
    assert result, result.message


def test_sup_norm_and_l1_ball(rng):
    """The maximum norm has the conjugate of the unit ball of ℓ1: its subgradients lie there."""
    ball = l1_ball(1.0)
    for p in rng.standard_normal((10, 6)):
        assert float(ball.conjugate(p)) == np.abs(p).max()
        x = ball.prox(1e6 * p, 1.0)  # far out: the corner that p points to
        assert np.sum(x * p) == pytest.approx(np.abs(p).max(), rel=1e-12)


# ---------------------------------------------------------------- soft threshold


@settings(deadline=None, max_examples=100)
@given(
    v=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8),
    threshold=st.floats(0, 1e6),
)
def test_soft_threshold_is_its_formula(v, threshold):
    v = np.array(v)
    expected = np.sign(v) * np.maximum(np.abs(v) - threshold, 0)
    np.testing.assert_array_equal(soft_threshold(v, threshold), expected)


def test_soft_threshold_at_the_kinks(like):
    v = asarray_like([-1.0, 1.0, 0.0, -0.0, 1.5], like)
    out = soft_threshold(v, 1.0)
    assert to_numpy(out).tolist() == [0.0, 0.0, 0.0, 0.0, 0.5]
    assert_alike(out, like)
    np.testing.assert_array_equal(to_numpy(soft_threshold(v, 0.0)), to_numpy(v))


def test_soft_threshold_of_huge_and_tiny_numbers(like):
    big = 1e30
    v = asarray_like([big, -big, 1e-30, 0.0], like)
    out = to_numpy(soft_threshold(v, 1.0))
    np.testing.assert_array_equal(out, to_numpy(asarray_like([big, -big, 0.0, 0.0], like)))


# ---------------------------------------------------------------- hard cases


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e15])
@pytest.mark.parametrize("n", [1, 2, 1000])
def test_l1_ball_at_any_scale(scale, n, like, rng):
    """The projection lies on the sphere up to rounding of the radius, however large v is."""
    v = asarray_like(scale * rng.standard_normal(n), like)
    for radius in (0.3 * scale, 1e-3, 2.0):
        p = l1_ball(radius).prox(v, 1.0)
        total, start = (float(np.abs(to_numpy(x).astype(float)).sum()) for x in (p, v))
        assert total == pytest.approx(min(radius, start), rel=50 * eps(like))
        assert float(l1_ball(radius)(p)) == 0.0


def test_l1_ball_with_ties(like):
    p = l1_ball(1.0).prox(asarray_like(np.full(4, 3.0), like), 1.0)
    np.testing.assert_allclose(to_numpy(p), 0.25, rtol=4 * eps(like))
    p = l1_ball(1.0).prox(asarray_like([1e30, -1e30, 1.0], like), 1.0)
    np.testing.assert_array_equal(to_numpy(p), [0.5, -0.5, 0.0])


@pytest.mark.slow
def test_l1_ball_of_many_entries(like, rng):
    """A running sum of a million numbers rounds; the projection does not show it."""
    v = asarray_like(rng.uniform(0.1, 1, 1_000_000), like)
    p = l1_ball(1e4).prox(v, 1.0)
    assert float(to_numpy(p).astype(float).sum()) == pytest.approx(1e4, rel=50 * eps(like))


def test_group_shrinks_the_length_and_keeps_the_direction(like, rng):
    v = asarray_like(rng.standard_normal((3, 50)), like)
    p = to_numpy(group_l1(0).prox(v, 1.0)).astype(float)
    v = to_numpy(v).astype(float)
    length = np.linalg.norm(v, axis=0)
    np.testing.assert_allclose(
        np.linalg.norm(p, axis=0), np.maximum(length - 1, 0), atol=4 * eps(like)
    )
    assert (np.sum(p * v, axis=0) >= 0).all()


def test_group_of_one_is_l1(like, rng):
    v = asarray_like(rng.standard_normal((1, 20)), like)
    np.testing.assert_allclose(
        to_numpy(group_l1(0).prox(v, 0.5)), to_numpy(l1().prox(v, 0.5)), atol=4 * eps(like)
    )
    assert float(group_l1(0)(v)) == pytest.approx(float(l1()(v)), rel=10 * eps(like))


@pytest.mark.parametrize("step", [1e-30, 1e-20, 1.0, 1e18])
def test_group_with_extreme_steps(step, like):
    """No division by zero where a length or a step underflows, and a huge step leaves nothing."""
    v = asarray_like([[0.0, 3.0], [0.0, 4.0]], like)
    p = to_numpy(group_l1(0).prox(v, step)).astype(float)
    expected = np.array([[0.0, 3.0], [0.0, 4.0]]) * max(0.0, 1 - step / 5)
    np.testing.assert_allclose(p, expected, rtol=2 * eps(like), atol=0)


def test_box_with_open_sides(like):
    v = asarray_like([-2.0, 0.5, 3.0], like)
    assert to_numpy(box(upper=1.0).prox(v, 1.0)).tolist() == [-2.0, 0.5, 1.0]
    np.testing.assert_array_equal(to_numpy(box().prox(v, 1.0)), to_numpy(v))
    assert float(box()(v)) == 0.0
    zero = v * 0.0
    for R in (box(0.0), box(upper=0.0), box(), box(-1.0, 2.0)):
        assert float(R.conjugate(zero)) == 0.0
    assert float(box().conjugate(v)) == np.inf
    assert float(box(0.0).conjugate(-abs(v))) == 0.0


def test_box_of_one_point():
    R = box(0.5, 0.5)
    assert R.prox(np.array([-1.0, 2.0]), 1.0).tolist() == [0.5, 0.5]
    assert float(R(np.array([0.5, 0.5]))) == 0.0
    assert float(R.conjugate(np.array([2.0, -4.0]))) == -1.0


def test_weights_are_those_of_whitened_data(rng):
    """½‖Ax - y‖² weighted by w is ½‖√w (Ax - y)‖²."""
    A, y, w = rng.standard_normal((4, 3)), rng.standard_normal(4), rng.uniform(0.5, 2, 4)
    f = least_squares(A, y, weights=w)
    g = least_squares(np.sqrt(w)[:, None] * A, np.sqrt(w) * y)
    x = rng.standard_normal(3)
    assert float(f(x)) == pytest.approx(float(g(x)), rel=1e-14)
    np.testing.assert_allclose(f.gradient(x), g.gradient(x), rtol=1e-13)


def test_operators_and_matrices_give_the_same(like, rng):
    x = asarray_like(rng.standard_normal(6), like)
    D = difference(6)
    y = asarray_like(rng.standard_normal(5), like)
    M = D.to_dense(like=like)
    for make in (squared_l2, lambda A: least_squares(A, y)):
        one, two = make(D), make(M)
        assert float(one(x)) == pytest.approx(float(two(x)), rel=20 * eps(like))
        assert relative(one.gradient(x), two.gradient(x)) < 20 * eps(like)
    assert relative(squared_l2(D).prox(x, 0.7), squared_l2(M).prox(x, 0.7)) < 50 * eps(like)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "x", [np.ones(2, dtype=np.float32), np.ones(3), np.ones((2, 1)), np.ones(1)]
)
def test_least_squares_does_not_broadcast_or_promote(x):
    """A wrong shape would broadcast without a word, a wrong dtype would be promoted."""
    f = least_squares(None, np.ones(2))
    for call in (f, f.gradient, lambda v: f.prox(v, 1.0)):
        with pytest.raises(ValueError, match="expected .*, got"):
            call(x)
    bound = least_squares(difference(2), np.ones(1))
    with pytest.raises(ValueError, match="expected .*, got"):
        bound(x)


@pytest.mark.parametrize("factor", [0, -1.0, np.nan, np.inf, "2", None, np.ones(2), [2.0], 1j])
def test_factor_is_a_positive_number(factor):
    with pytest.raises((ValueError, TypeError), match="factor|unsupported|can't multiply"):
        factor * l1()


def test_factors_of_numpy_and_torch(torch):
    x = np.array([1.0, -2.0])
    for factor in (2, np.float64(2), np.float32(2), np.array(2.0), np.int64(2), torch.tensor(2.0)):
        R = factor * l1()
        assert isinstance(R, Functional)
        assert float(R(x)) == 6.0
    with pytest.raises(ValueError, match="would lose its gradient"):
        torch.tensor(2.0, requires_grad=True) * l1()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: box(1.0, 0.0), "must not be empty: expected lower <= upper, got 1.0 > 0.0"),
        (lambda: group_l1(-1), "axis is out of range"),
        (lambda: group_l1(1)(np.ones(3)), r"expected more dimensions, got shape \(3,\)"),
        (lambda: group_l1(1).prox(np.ones(3), 1.0), "expected more dimensions"),
        (lambda: separable(), r"needs parts \(functional, shape\): got None"),
        (lambda: separable(l1()), r"needs parts \(functional, shape\): got Functional"),
        (lambda: separable((l1(), 2)), r"needs parts \(functional, shape\)"),
        (lambda: separable((np.sum, (2,))), r"needs parts \(functional, shape\)"),
        (lambda: separable((l1(), (0,))), "each size of a shape is out of range"),
        (lambda: separable((l1(), (2,)))(np.ones(3)), r"x must be flat: expected shape \(2,\)"),
        (
            lambda: least_squares(None, np.ones(2), weights=np.array([1.0, 0.0])),
            "weights must be positive: expected numbers > 0",
        ),
        (lambda: total_variation((2, 2))(np.ones(4)), r"expected \(2, 2\), got \(4,\)"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# ---------------------------------------------------------------- derivatives


@every
def test_autograd_is_finite_at_zero(case, torch):
    """Nowhere does the derivative of a root at 0 come through."""
    like = make_like("torch", "float64")
    R = case.build(like)
    functions = [R.value, *([R.gradient] if R.gradient else [])]
    functions += [lambda v: R.prox(v, 0.5), lambda v: R.prox(v, 1e-200)] if R.prox else []
    for function in functions:
        x = torch.zeros(case.shape, dtype=torch.float64, requires_grad=True)
        value = function(x).sum()
        if value.requires_grad:
            value.backward()
            assert torch.isfinite(x.grad).all()


@every_prox
def test_derivative_of_the_proximal_map(case, torch, rng):
    """Against finite differences, at points that are no kinks."""
    R = case.build(make_like("torch", "float64"))
    for v in points(case, rng, 3, 2.0):
        x = torch.tensor(v, requires_grad=True)
        assert torch.autograd.gradcheck(lambda v: R.prox(v, 0.3), x, atol=1e-6)


@every_smooth
def test_autograd_gives_the_gradient(case, torch, rng):
    f = case.build(make_like("torch", "float64"))
    (v,) = points(case, rng, 1)
    x = torch.tensor(v, requires_grad=True)
    (g,) = torch.autograd.grad(f.value(x), x)
    np.testing.assert_allclose(g.numpy(), f.gradient(x.detach()).numpy(), atol=1e-13)
