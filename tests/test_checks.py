"""The checks accept what is right, reject what is wrong, and say what is wrong in words."""

import math
import re

import numpy as np
import pytest
from conftest import make_like
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import checks, functionals, operators
from course_lib.arrays import asarray_like

# --- adjoint ---------------------------------------------------------------------------------


def pair(m: int, n: int, seed: int, like=None):
    """A random matrix as (apply, adjoint, in_shape, out_shape)."""
    M = asarray_like(np.random.default_rng(seed).standard_normal((m, n)), like)
    return (lambda x: M @ x), (lambda v: M.T @ v), (n,), (m,)


sizes = st.integers(1, 30)


@settings(deadline=None, max_examples=50)
@given(m=sizes, n=sizes, seed=st.integers(0, 99))
def test_adjoint_accepts_the_transpose(m, n, seed):
    result = checks.adjoint(pair(m, n, seed), seed=seed)
    assert result
    assert result.passed
    assert result.value <= result.bound < 1e-13


@settings(deadline=None, max_examples=50)
@given(m=sizes, n=sizes, seed=st.integers(0, 99), factor=st.sampled_from([-1.0, 0.5, 2.0, 1.001]))
def test_adjoint_rejects_a_factor_and_names_it(m, n, seed, factor):
    apply, adjoint, n_shape, m_shape = pair(m, n, seed)
    result = checks.adjoint((apply, lambda v: adjoint(v) / factor, n_shape, m_shape))
    assert not result
    if factor == -1.0:
        assert "-1 times" in result.message
        assert "sign" in result.message
    elif factor != 1.001:
        assert f"is {factor:g} times" in result.message


@settings(deadline=None, max_examples=50)
@given(n=st.integers(2, 30), seed=st.integers(0, 99))
def test_adjoint_rejects_the_forward_map(n, seed):
    apply, _, shape, _ = pair(n, n, seed)
    result = checks.adjoint((apply, apply, shape, shape))
    assert not result
    assert "is the transpose missing?" in result.message


@settings(deadline=None, max_examples=50)
@given(m=sizes, n=sizes, seed=st.integers(0, 99), i=st.integers(0), j=st.integers(0))
def test_adjoint_sees_one_wrong_entry(m, n, seed, i, j):
    """An error of 1e-6 in one entry of the matrix is far above rounding."""
    apply, adjoint, n_shape, m_shape = pair(m, n, seed)
    i, j = i % m, j % n

    def slightly_wrong(v):
        w = adjoint(v)
        w[j] += 1e-6 * v[i]
        return w

    assert not checks.adjoint((apply, slightly_wrong, n_shape, m_shape))


def test_adjoint_takes_operators_matrices_and_any_library(like):
    assert checks.adjoint(operators.gradient((5, 7)), like=like)
    assert checks.adjoint(operators.matrix(asarray_like(np.ones((3, 2)), like)))
    assert checks.adjoint(np.ones((3, 2)))
    assert checks.adjoint(pair(4, 3, 0, like), like=like)
    assert checks.adjoint((lambda x: 2 * x, lambda v: 2 * v, 5, 5), like=like)
    # The zero operator is its own adjoint: nothing is divided by zero.
    assert checks.adjoint((lambda x: 0 * x, lambda v: 0 * v, (2,), (2,)), like=like)


def in_place(v):
    v *= 2
    return v


@pytest.mark.parametrize(
    ("adjoint", "words"),
    [
        (lambda v: v.tolist(), "the adjoint must return an array: it returned list"),
        (lambda v: None, "it returned NoneType"),
        (lambda v: v[:-1], r"the adjoint returns the wrong shape: expected \(4,\), got \(3,\)"),
        (lambda v: v / 0.0, "the adjoint returned NaN or infinity"),
        (in_place, "the adjoint changes its argument"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_adjoint_says_what_is_broken(adjoint, words):
    result = checks.adjoint((lambda x: 2 * x, adjoint, (4,), (4,)))
    assert not result
    assert re.search(words, str(result))


def test_adjoint_says_when_the_library_changes(torch):
    result = checks.adjoint((lambda x: x.numpy(), lambda v: v, (2,), (2,)), like=torch.zeros(1))
    assert "leaves the library" in str(result)


def test_adjoint_bad_call():
    with pytest.raises(ValueError, match="tuple of length 2"):
        checks.adjoint((np.ones, np.ones))
    with pytest.raises(ValueError, match="pairs is out of range"):
        checks.adjoint(np.eye(2), pairs=0)


# --- gradient --------------------------------------------------------------------------------


def quadratic(seed: int, n: int = 6):
    rng = np.random.default_rng(seed)
    A, y = rng.standard_normal((n + 2, n)), rng.standard_normal(n + 2)
    return (
        lambda x: 0.5 * np.sum((A @ x - y) ** 2),
        lambda x: A.T @ (A @ x - y),
        rng.standard_normal(n),
    )


SMOOTH = {
    "linear": (lambda x: 3 * np.sum(x), lambda x: 3 * np.ones_like(x)),
    "constant": (lambda x: 7.0, lambda x: np.zeros_like(x)),
    "quartic": (lambda x: np.sum(x**4), lambda x: 4 * x**3),
    # At scale 100 and t = 1/4 some terms are e^100: large steps are of no use there.
    "exponential": (lambda x: np.sum(np.exp(x)), np.exp),
    "on a high plateau": (lambda x: 1e8 + np.sum(x**2), lambda x: 2 * x),
    "steep": (lambda x: 1e10 * np.sum(x**2), lambda x: 2e10 * x),
    "absolute values": (lambda x: np.sum(np.abs(x)), np.sign),
    "norm": (np.linalg.norm, lambda x: x / np.linalg.norm(x)),
    "sum of logarithms": (lambda x: np.sum(np.log(x**2)), lambda x: 2 / x),
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scale", [1e-6, 1.0, 100.0])
def test_taylor_accepts_gradients(name, seed, scale):
    f, gradient = SMOOTH[name]
    x = scale * np.random.default_rng(seed).standard_normal(5)
    result = checks.taylor(f, gradient, x, seed=seed)
    assert result, result.message


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 999))
def test_taylor_accepts_a_quadratic_with_slope_2(seed):
    f, gradient, x = quadratic(seed)
    result = checks.taylor(f, gradient, x)
    assert result
    assert result.value == pytest.approx(2.0, abs=0.05)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 999), factor=st.sampled_from([-1.0, 0.5, 2.0]))
def test_taylor_names_a_wrong_factor(seed, factor):
    f, gradient, x = quadratic(seed)
    result = checks.taylor(f, lambda x: gradient(x) / factor, x)
    assert not result
    assert result.value == pytest.approx(1.0, abs=0.1)
    assert f"is {factor:g} times the claimed one" in result.message
    assert ("sign" in result.message) == (factor == -1.0)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 999), i=st.integers(0, 5), size=st.sampled_from([1e-4, 1e-2, 1.0]))
def test_taylor_sees_one_wrong_entry(seed, i, size):
    f, gradient, x = quadratic(seed)

    def wrong(x):
        g = gradient(x)
        g[i] += size
        return g

    result = checks.taylor(f, wrong, x)
    assert not result


@pytest.mark.parametrize("name", ["linear", "quartic", "absolute values", "on a high plateau"])
def test_taylor_rejects_a_missing_term(name):
    f, gradient = SMOOTH[name]
    x = np.array([1.0, -2.0, 0.5])
    assert not checks.taylor(lambda x: f(x) + 0.01 * x[0], gradient, x)


@pytest.mark.slow
def test_taylor_in_any_library(xp):
    x = asarray_like([1.0, -2.0, 0.5], make_like(xp, "float64"))
    y = asarray_like(np.ones((2, 3)), x)
    assert checks.taylor(lambda x: (y @ x) @ (y @ x), lambda x: 2 * (y.T @ (y @ x)), x)
    picture = asarray_like(np.arange(6.0).reshape(2, 3), x)
    assert checks.taylor(lambda x: (x**2)[0, 0] + (x**2)[1, 2], lambda x: 2 * x * mask(x), picture)


def mask(x):
    return asarray_like(np.array([[1.0, 0, 0], [0, 0, 1.0]]), x)


@pytest.mark.parametrize(
    ("f", "gradient", "words"),
    [
        (np.sum, lambda x: [1.0, 1.0], "the gradient must return an array: it returned list"),
        (np.sum, lambda x: np.ones(3), "the gradient returns the wrong shape"),
        (np.sum, lambda x: np.full(2, np.nan), "the gradient returned NaN"),
        (np.sum, in_place, "the gradient changes its argument"),
        (lambda x: x, np.ones_like, "f must return one number: it returned ndarray"),
        (lambda x: [1.0], np.ones_like, "f must return one number: it returned list"),
    ],
)
def test_taylor_says_what_is_broken(f, gradient, words):
    result = checks.taylor(f, gradient, np.array([1.0, 2.0]))
    assert not result
    assert words in str(result)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.ones(2, dtype=np.float32), "x must be in double precision"),
        ([1.0], "x must be an array"),
        (np.array([math.nan]), "x must be finite"),
    ],
)
def test_taylor_bad_point(x, words):
    with pytest.raises(ValueError, match=words):
        checks.taylor(np.sum, np.ones_like, x)


# --- proximal map ----------------------------------------------------------------------------


def soft(v, t):
    """Written out: the checks must not rest on what they check."""
    return np.sign(v) * np.maximum(np.abs(v) - t, 0)


def absolute(x):
    return np.sum(np.abs(x))


PROXIMAL = {
    "absolute values": (absolute, soft),
    "squares": (lambda x: 0.5 * np.sum(x**2), lambda v, t: v / (1 + t)),
    "elastic net": (lambda x: absolute(x) + np.sum(x**2), lambda v, t: soft(v, t) / (1 + 2 * t)),
    "Euclidean norm": (
        np.linalg.norm,
        lambda v, t: v * max(0.0, 1 - t / max(np.linalg.norm(v), 1e-300)),
    ),
    "half-space": (
        lambda x: 0.0 if x[0] >= 0 else np.inf,
        lambda v, t: np.where(np.arange(v.size) == 0, np.maximum(v, 0), v),
    ),
    "linear": (lambda x: np.sum(x), lambda v, t: v - t),
    "nothing": (lambda x: 0.0, lambda v, t: v.copy()),
    "logarithm": (
        lambda x: -np.sum(np.log(x)) if (x > 0).all() else np.inf,
        lambda v, t: 0.5 * (v + np.sqrt(v**2 + 4 * t)),
    ),
}


@pytest.mark.parametrize("name", PROXIMAL)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.slow
def test_prox_accepts_proximal_maps(name, scale, n):
    R, prox = PROXIMAL[name]
    for seed in range(3):
        v = scale * np.random.default_rng(seed).standard_normal(n)
        result = checks.prox(R, prox, v, seed=seed)
        assert result, result.message
        assert result.value <= result.bound < 1e-13


V = np.array([3.0, -2.0, 0.4, -0.2, 1.3])
WRONG = {
    "twice the threshold": (lambda v, t: soft(v, 2 * t), "the one for 2 * step; a factor is wrong"),
    "half the threshold": (lambda v, t: soft(v, t / 2), "the one for step / 2; a factor is wrong"),
    "no step": (lambda v, t: soft(v, 1.0), "the one for step = 1; the step is forgotten"),
    "step turned over": (lambda v, t: soft(v, 0.1 / t), "at the point that it returns, and lower"),
    "sign turned": (lambda v, t: -soft(v, t), "minus the proximal map; the sign is wrong"),
    "sign lost": (lambda v, t: np.maximum(np.abs(v) - t, 0), "the sign of v is lost"),
    "one side": (lambda v, t: np.maximum(v - t, 0), "the negative entries of v are lost"),
    "the other part": (lambda v, t: np.clip(v, -t, t), "it is v minus the proximal map"),
    "no maximum": (lambda v, t: v - t * np.sign(v), "and lower by"),
    "hard threshold": (lambda v, t: v * (np.abs(v) > t), "and lower by"),
    "of the square": (lambda v, t: v / (1 + t), "and lower by"),
    "of the Euclidean norm": (PROXIMAL["Euclidean norm"][1], "and lower by"),
    "zero": (lambda v, t: 0 * v, "it always returns 0"),
    "a little off": (lambda v, t: soft(v, t) + 1e-6, "and lower by"),
    "a little large": (lambda v, t: soft(v, t) * (1 + 1e-5), "and lower by"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.slow
def test_prox_rejects_and_says_why(name):
    prox, words = WRONG[name]
    for seed in range(10):
        result = checks.prox(absolute, prox, V, seed=seed, trials=1 + seed % 2)
        assert not result
        assert words in result.message
        assert result.message.startswith("not the proximal map: ")


def test_prox_names_a_step_that_is_turned_over():
    result = checks.prox(absolute, lambda v, t: soft(v, 1 / t), 500 * V, step=2.0)
    assert "it is the one for 1 / step" in str(result)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), i=st.integers(0, 4), size=st.sampled_from([1e-5, 1e-2, 1.0]))
@pytest.mark.slow
def test_prox_sees_one_wrong_entry(seed, i, size):
    def wrong(v, t):
        p = v / (1 + t)
        p[i] += size
        return p

    v = np.random.default_rng(seed).standard_normal(5)
    assert not checks.prox(lambda x: 0.5 * np.sum(x**2), wrong, v, seed=seed, trials=1)


@pytest.mark.slow
def test_prox_of_another_functional_is_rejected():
    """Each map fails for each other functional of the list."""
    for name, (R, _) in PROXIMAL.items():
        for other, (_, prox) in PROXIMAL.items():
            assert bool(checks.prox(R, prox, V, trials=1)) == (name == other), (name, other)


def test_prox_says_when_r_may_not_be_convex():
    """The hard threshold is the nearest point for the count of entries, but no inequality holds."""
    count = lambda x: np.float64(np.sum(x != 0))  # noqa: E731
    result = checks.prox(count, lambda v, t: v * (np.abs(v) > np.sqrt(2 * t)), V)
    assert not result
    assert "is R convex?" in result.message


@pytest.mark.parametrize(
    ("R", "prox", "words"),
    [
        (absolute, lambda v, t: v.tolist(), "prox must return an array: it returned list"),
        (absolute, lambda v, t: v[:2], r"prox returns the wrong shape: expected (5,), got (2,)"),
        (absolute, lambda v, t: v * np.nan, "prox returned NaN or infinity"),
        (absolute, lambda v, t: in_place(v), "prox changes its argument"),
        (lambda x: x, soft, "f must return one number: it returned ndarray"),
        (lambda x: np.nan, soft, "R must be a number or plus infinity: it returned nan"),
        (
            lambda x: 0.0 if (x >= 0).all() else np.inf,
            soft,
            "R is infinite at the point that it returns",
        ),
    ],
)
def test_prox_says_what_is_broken(R, prox, words):
    result = checks.prox(R, prox, V)
    assert not result
    assert words in str(result)


def test_prox_takes_functionals_and_any_library(like):
    R = 0.7 * functionals.l1()
    v = asarray_like(V, like)
    assert checks.prox(R, R.prox, v)
    result = checks.prox(R, lambda v, t: R.prox(v, 2 * t), v)
    assert "2 * step" in result.message
    picture = asarray_like(V[:4].reshape(2, 2), like)
    R = functionals.group_l1(0)
    assert checks.prox(R, R.prox, picture)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"step": 0.0}, "step must be positive"),
        ({"trials": 0}, "trials is out of range"),
        ({"v": [1.0]}, "v must be an array"),
        ({"v": np.array([np.nan])}, "v must be finite"),
    ],
)
def test_prox_bad_call(options, words):
    with pytest.raises(ValueError, match=words):
        checks.prox(absolute, soft, **{"v": V, **options})


# --- slope -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(a=st.floats(-5, 5), c=st.floats(1e-3, 1e3))
def test_slope_of_a_power(a, c):
    x = np.logspace(-3, 2, 7)
    assert checks.slope(x, c * x**a) == pytest.approx(a, abs=1e-9)


def test_slope_takes_any_library(like):
    x = asarray_like([1.0, 2.0, 4.0], like)
    assert checks.slope(x, 3 * x**2) == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (np.ones(3), np.ones(3), "x must vary"),
        (np.array([1.0, 0.0]), np.ones(2), "must be positive"),
        (np.ones(2), np.ones(3), "wrong shape"),
        ([1.0], [2.0], "x must be an array"),
    ],
)
def test_slope_bad_input(x, y, words):
    with pytest.raises(ValueError, match=words):
        checks.slope(x, y)
