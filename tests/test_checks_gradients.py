"""The gradient protocol: it accepts what is right, and calls well-known mistakes by name."""

import zlib

import numpy as np
import pytest
from conftest import make_like
from kit import to_numpy

from course_lib import checks
from course_lib.arrays import asarray_like, inner
from course_lib.operators import matrix

# --- ridge regression with a penalty for each unknown: everything in closed form ------------

RNG = np.random.default_rng(0)
A, B = RNG.standard_normal((20, 6)), RNG.standard_normal((20, 6))
Y, Y_VAL = RNG.standard_normal(20), RNG.standard_normal(20)
THETA = RNG.standard_normal(6)


def hessian(theta):
    return A.T @ A + np.diag(np.exp(theta))


def outer(x):
    return 0.5 * np.sum((B @ x - Y_VAL) ** 2)


def ridge(theta):
    return outer(np.linalg.solve(hessian(theta), A.T @ Y))


def ridge_gradient(theta, x=None):
    """The adjoint formula, at the exact minimiser or at another x."""
    x = np.linalg.solve(hessian(theta), A.T @ Y) if x is None else x
    psi = np.linalg.solve(hessian(theta), B.T @ (B @ x - Y_VAL))
    return -np.exp(theta) * x * psi


def descend(theta, steps):
    """Gradient descent from 0, and its derivative by theta, carried forward."""
    eta, H = 1 / np.linalg.norm(hessian(THETA), 2), hessian(theta)
    x, dx = np.zeros(6), np.zeros((6, 6))
    for _ in range(steps):
        x, dx = x - eta * (H @ x - A.T @ Y), dx - eta * (H @ dx + np.diag(np.exp(theta) * x))
    return x, dx


def unrolled(theta, steps):
    x, dx = descend(theta, steps)
    return dx.T @ (B.T @ (B @ x - Y_VAL))


def stopped(theta, tol):
    """Gradient descent until the residual is at most tol."""
    H, x = hessian(theta), np.zeros(6)
    eta = 1 / np.linalg.norm(H, 2)
    while np.linalg.norm(H @ x - A.T @ Y) > tol:
        x = x - eta * (H @ x - A.T @ Y)
    return x


RIGHT = {
    "closed form": ridge_gradient(THETA),
    "implicit": ridge_gradient,
    "unrolled": lambda theta: unrolled(theta, 2000),
}


def test_right_gradients_agree():
    result = checks.gradients(ridge, THETA, RIGHT)
    assert result
    assert result.passed is True
    assert set(result.verdicts.values()) == {"agrees"}
    assert max(result.errors.values()) == result.value < 1e-8 < 1e-6 <= result.bound < 1.1e-6
    assert result.message.startswith("all agree to ")
    assert "closed form, implicit, unrolled" in result.message


def test_the_table_can_be_read():
    result = checks.gradients(ridge, THETA, {**RIGHT, "minus": -ridge_gradient(THETA)})
    title, rule, head, measure, _, *rows, last = result.table.splitlines()
    assert title == "Derivatives of J along 2 of 6 axes"
    assert rule == last == "─" * max(map(len, (head, measure, *rows)))
    assert head.split() == ["axis", "1", "axis", "2", "error"]
    assert measure.startswith("finite differences ")
    assert [row.split("  ")[0] for row in rows] == [*RIGHT, "minus"]
    expected = ridge_gradient(THETA)[:2]
    for row in (measure, *rows[:3]):
        numbers = [float(word) for word in row[18:].split() if "." in word][:2]
        np.testing.assert_allclose(numbers, expected, atol=2e-9)
        # Columns stand below each other.
        assert {row[18 + 16 * j - 1] for j in (1, 2)} <= set("0123456789")
    assert str(result) == repr(result)
    assert str(result).startswith(result.table)
    assert str(result).split() == f"{result.table}\n{result.message}".split()
    assert max(map(len, str(result).splitlines())) <= 78
    assert rows[-1].endswith("   wrong sign")


@pytest.mark.parametrize(
    ("wrong", "verdict", "words"),
    [
        (-ridge_gradient(THETA), "wrong sign", "'way' is minus the gradient"),
        (2 * ridge_gradient(THETA), "twice", "'way' is 2 times the gradient"),
        (ridge_gradient(THETA) / 2, "half", "0.5 times"),
        (1.7 * ridge_gradient(THETA), "differs", "differs from the finite"),
        (ridge_gradient(THETA) / np.exp(THETA), "factor lambda", "the factor lambda is missing"),
        (0 * THETA, "lost", "theta is lost on the way"),
        (ridge_gradient(THETA) + 1e-4 * np.eye(6)[2], "differs", "differs from the finite"),
        (ridge_gradient(THETA)[::-1].copy(), "differs", "differs from the finite"),
        # Almost a mistake that has a name.
        (2 * ridge_gradient(THETA) + 2e-5 * np.eye(6)[2], "differs", "differs from the finite"),
    ],
)
@pytest.mark.parametrize("directions", [6, 3])
def test_mistakes_are_called_by_name(wrong, verdict, words, directions):
    """Along the axes, and along random directions."""
    ways = {"right": ridge_gradient, "way": wrong}
    result = checks.gradients(ridge, THETA, ways, directions=directions)
    assert not result
    assert result.verdicts == {"right": "agrees", "way": verdict}
    assert words in result.message
    assert "right" not in result.message
    assert ("axes" if directions == 6 else "2 of 3 random directions") in result.table


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(-1, "wrong sign"), (2, "twice"), (0.5, "half")],
)
def test_one_parameter_shows_simple_factors_only(factor, verdict):
    """Every wrong number is a multiple of the right one."""
    theta, J = np.array(0.3), lambda theta: float(np.sin(theta))
    ways = {"factor": factor * np.cos(theta) * np.ones(()), "any": np.array(0.7)}
    result = checks.gradients(J, theta, ways)
    assert result.verdicts == {"factor": verdict, "any": "differs"}
    ways = {"right": lambda theta: np.cos(theta) * np.ones(())}
    result = checks.gradients(J, theta, ways)
    assert result
    assert "1 of 1 axes" in result.table


# --- objectives that are not solved ----------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 20])
def test_truncated_gradient_is_right_for_the_truncated_objective_only(steps):
    ways = {"implicit": ridge_gradient, "unrolled": lambda theta: unrolled(theta, steps)}
    # From 0, the first step does not see theta.
    found = checks.gradients(ridge, THETA, ways).verdicts
    assert found == {"implicit": "agrees", "unrolled": "lost" if steps == 1 else "differs"}
    # And the other way round (E-67): for the truncated objective, the unrolled one is exact.
    turned = checks.gradients(lambda theta: outer(descend(theta, steps)[0]), THETA, ways)
    assert turned.verdicts["unrolled"] == "agrees"
    assert turned.verdicts["implicit"] != "agrees"


def test_an_inner_problem_that_is_not_solved_is_told_by_its_residual():
    x = stopped(THETA, 1e-3)
    J = lambda theta: outer(stopped(theta, 1e-3))  # noqa: E731
    measure = lambda theta: np.linalg.norm(hessian(theta) @ x - A.T @ Y)  # noqa: E731
    for residual in (measure, float(measure(THETA))):
        result = checks.gradients(J, THETA, {"implicit": ridge_gradient}, residual=residual)
        assert not result
        assert "the inner problem is not solved: its residual is 9e-04, where" in result.message
    # It fails even where everything agrees.
    result = checks.gradients(ridge, THETA, RIGHT, residual=1e-3)
    assert not result
    assert set(result.verdicts.values()) == {"agrees"}
    assert checks.gradients(ridge, THETA, RIGHT, residual=1e-9)


def test_ways_that_agree_with_each_other_accuse_the_objective():
    J = lambda theta: outer(descend(theta, 20)[0])  # noqa: E731
    near = ridge_gradient(THETA, stopped(THETA, 1e-6))
    ways = {"closed form": ridge_gradient, "implicit": near}
    result = checks.gradients(J, THETA, ways)
    assert "'closed form' and 'implicit' agree with each other" in result.message
    other = {"closed form": ridge_gradient, "implicit": 1.3 * near + 0.1}
    assert "agree with each other" not in checks.gradients(J, THETA, other).message


def at_a_jump(tol):
    """A theta next to which the number of inner steps changes (E-65)."""

    def count(t):
        theta, steps, x = THETA + t / 6**0.5, 0, np.zeros(6)
        H = hessian(theta)
        while np.linalg.norm(H @ x - A.T @ Y) > tol:
            x, steps = x - (H @ x - A.T @ Y) / np.linalg.norm(H, 2), steps + 1
        return steps

    low, high = 0.0, 1.0
    while count(high) == count(low):
        high += 1.0
    first = count(low)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if count(middle) == first else (low, middle)
    return THETA + low / 6**0.5


@pytest.mark.parametrize("tol", [1e-3, 1e-6])
def test_jumps_of_an_objective_that_stops_at_a_tolerance(tol):
    theta = at_a_jump(tol)
    J = lambda theta: outer(stopped(theta, tol))  # noqa: E731
    result = checks.gradients(J, theta, {"implicit": ridge_gradient})
    assert not result
    assert "the differences are good to" in result.message
    assert "J jumps by" in result.message
    # The error is the jump over h: at the smallest steps it grows tenfold for a tenth of h.
    error = np.abs(result.differences - ridge_gradient(theta)).max(axis=1)
    assert checks.slope(result.steps[-4:], error[-4:]) == pytest.approx(-1, abs=0.01)
    # Where no jump is near, nothing is said of one; a tight tolerance helps everywhere.
    tight = lambda theta: outer(stopped(theta, 1e-13))  # noqa: E731
    assert checks.gradients(tight, theta, {"implicit": ridge_gradient})


def test_the_curve_is_a_v_and_its_bottom_is_found():
    result = checks.gradients(ridge, THETA, {"right": ridge_gradient})
    error = np.abs(result.differences - ridge_gradient(THETA)).max(axis=1)
    assert result.differences.shape == (13, 6)
    assert checks.slope(result.steps[:5], error[:5]) == pytest.approx(2, abs=0.05)
    # Not worse than ten times the least, which nobody knows beforehand.
    assert error[result.best] < 10 * error.min()
    floor = float(result.table.splitlines()[3].split()[4])
    assert error[result.best] <= floor * np.abs(ridge_gradient(THETA)).max()
    assert "floor, h = " in result.table


def test_two_differences_that_agree_by_chance_are_no_bottom():
    """Beyond 0.02 the differences are 0, at two steps; the derivative is 1."""
    J = lambda x: float(x[0]) if abs(x[0]) < 0.02 else 0.0  # noqa: E731
    result = checks.gradients(J, np.zeros(1), {"1": np.ones(1)})
    assert result
    assert result.steps[result.best] <= 1e-2


def test_a_stationary_point_and_steps_too_large_are_no_proof():
    J, ways = (lambda x: float(np.sum(np.cos(x) + 1e3))), {"right": lambda x: -np.sin(x)}
    assert checks.gradients(J, np.ones(2), ways)
    result = checks.gradients(J, np.zeros(2), ways)
    # All differences are 0 by symmetry, and so is the way.
    assert result.verdicts["right"] == "agrees"
    result = checks.gradients(J, np.full(2, 1e9), ways)
    assert not result
    assert "the differences are good to" in result.message
    result = checks.gradients(J, np.full(2, 1e-3), ways)
    assert not result
    assert "try a point that is not stationary" in result.message


def test_a_right_gradient_is_not_accused_where_rounding_swallows_the_differences():
    """From derivatives that noise hides altogether to such that are seen to six digits."""
    verdicts, passed = [], []
    for seed, power in enumerate(np.linspace(-18, 0, 400)):
        rng = np.random.default_rng(seed)
        slope, theta = 10.0**power * rng.standard_normal(), rng.standard_normal(1)

        def outer(x, slope=slope):
            """7.3 + slope cos x, with an error of 30 roundings that depends on x only."""
            noise = np.random.default_rng(zlib.crc32(x.tobytes())).standard_normal()
            return float(7.3 + slope * np.cos(x[0])) * (1 + 30 * np.finfo(float).eps * noise)

        result = checks.gradients(outer, theta, {"right": -slope * np.sin(theta)})
        verdicts.append(result.verdicts["right"])
        passed.append(bool(result))
        assert result or "the differences are " in result.message  # good to so much only, or 0
    assert verdicts.count("agrees") >= 398
    assert sum(passed[:200]) <= 2
    assert sum(passed[-40:]) >= 38


def test_where_the_differences_are_zero_no_wrong_gradient_passes():
    """λ = e⁴⁰: J no longer depends on θ to rounding, and the differences are 0."""
    J = lambda theta: 0.5 * (1 / (1 + float(np.exp(theta))) - 1) ** 2  # noqa: E731
    slope = np.array(np.exp(-40.0))
    for way in (-slope, 1000 * slope, np.array(1e-7)):
        result = checks.gradients(J, np.array(40.0), {"way": way})
        assert not result
        assert "the differences are 0" in result.message
    # A derivative that is 0 is another matter.
    assert checks.gradients(lambda theta: 1.0, np.array(40.0), {"way": np.array(0.0)})


def test_nothing_is_transposed_in_a_symmetric_system(rng):
    """Five steps of gradient descent and a right adjoint: the inner solve is to blame."""
    A, B, y, z = (rng.standard_normal(s) for s in ((9, 6), (9, 6), 9, 9))
    theta = np.linspace(-1, 1, 6)

    def inner_steps(theta, steps):
        H, x = A.T @ A + np.diag(np.exp(theta)), np.zeros(6)
        for _ in range(steps):
            x = x - (H @ x - A.T @ y) / np.linalg.norm(H, 2)
        return x

    H, x = A.T @ A + np.diag(np.exp(theta)), inner_steps(theta, 20_000)
    v = B.T @ (B @ x - z)
    right = -np.exp(theta) * x * np.linalg.solve(H, v)
    result = checks.gradients(
        lambda t: 0.5 * np.sum((B @ inner_steps(t, 5) - z) ** 2),
        theta,
        {"implicit": right},
        linear=(H, np.diag(np.exp(theta) * x), v),
    )
    assert result.verdicts == {"implicit": "differs", "adjoint formula": "differs"}
    assert "is the inner problem of J solved?" in result.message


def test_names_that_cannot_be_told_apart_are_both_given():
    for lam, factor in ((2.0, "half"), (0.5, "twice")):
        theta = np.array(np.log(lam))
        result = checks.gradients(
            lambda t: float(np.exp(3 * t)), theta, {"way": 3 * np.exp(2 * theta)}
        )
        assert result.verdicts == {"way": f"{factor} or factor lambda"}
        assert "the factor lambda is missing" in result.message


def test_a_wiggly_objective_is_not_said_to_stop_early():
    theta = np.linspace(0.1, 0.5, 4)
    J = lambda theta: float(np.sin(300 * theta).sum())  # noqa: E731
    result = checks.gradients(J, theta, {"wrong": 7 * np.cos(300 * theta)})
    assert result.verdicts == {"wrong": "differs"}
    assert "stop at a tolerance" not in result.message


def test_no_gradient_at_all_is_lost():
    """What ``.grad`` holds, or ``allow_unused=True`` returns, where torch finds no path."""
    result = checks.gradients(ridge, THETA, {"way": lambda theta: None})
    assert result.verdicts == {"way": "lost"}
    singular = checks.gradients(
        ridge, THETA, RIGHT, linear=(np.ones((6, 6)), np.eye(6), np.ones(6))
    )
    assert not singular
    assert "F_x must be invertible" in singular.message
    with pytest.raises(ValueError, match="linear must be"):
        checks.gradients(ridge, THETA, RIGHT, linear=(np.eye(6), np.eye(6)))
    with pytest.raises(ValueError, match="ways must be"):
        checks.gradients(ridge, THETA, {1: THETA})


def test_theta_is_not_changed_by_a_careless_objective():
    def careless(theta):
        theta *= 2
        return float(np.sum(theta**2))

    theta = np.array([1.0, 3.0])
    assert checks.gradients(careless, theta, {"right": 8 * theta})
    np.testing.assert_array_equal(theta, [1.0, 3.0])


def test_infinite_values_at_large_steps_do_no_harm():
    J = lambda x: float(np.log(x[0]) + x[1]) if x[0] > 0 else np.nan  # noqa: E731
    ways = {"right": lambda x: np.array([1 / x[0], 1.0])}
    assert checks.gradients(J, np.array([1e-2, 1.0]), ways)
    result = checks.gradients(lambda x: np.nan, np.ones(2), ways)
    assert not result
    assert "J is NaN or infinite near theta" in result.message


# --- a fixed point x = tanh(W x + theta): the adjoint and its transpose ---------------------

W = RNG.standard_normal((12, 12))
W *= 0.8 / np.linalg.norm(W, 2)
GOAL, BIAS = RNG.standard_normal(12), RNG.standard_normal(12)


def fixed_point(theta, steps=400):
    x = np.zeros(12)
    for _ in range(steps):
        x = np.tanh(W @ x + theta)
    return x


def fixed_point_loss(theta):
    return 0.5 * np.sum((fixed_point(theta) - GOAL) ** 2) + 0.1 * np.sum(theta**3)


X = fixed_point(BIAS)
G = np.diag(1 - X**2)
F_X, F_THETA, V, DIRECT = np.eye(12) - G @ W, -G, X - GOAL, 0.3 * BIAS**2


def test_a_transposed_adjoint_is_noticed():
    psi, wrong = np.linalg.solve(F_X.T, V), np.linalg.solve(F_X, V)
    ways = {
        "adjoint": DIRECT - F_THETA.T @ psi,
        "plain": DIRECT - F_THETA.T @ wrong,
        "plus": DIRECT + F_THETA.T @ psi,
        "direct": DIRECT,
    }
    result = checks.gradients(
        fixed_point_loss, BIAS, ways, linear=(F_X, F_THETA, V), first_order=DIRECT
    )
    assert not result
    assert result.verdicts == {
        "adjoint": "agrees",
        "plain": "not transposed",
        "plus": "differs",
        "direct": "first order",
        "adjoint formula": "agrees",
    }
    assert "'plain' solves F_x psi = v: the adjoint equation needs the transpose" in result.message
    assert "'direct' lacks the second-order term" in result.message
    # Operators are taken as well as matrices. Without the pieces there is no name for it.
    pieces = (matrix(F_X), matrix(F_THETA), V)
    right = {"adjoint": ways["adjoint"]}
    assert checks.gradients(fixed_point_loss, BIAS, right, linear=pieces, first_order=DIRECT)
    assert checks.gradients(fixed_point_loss, BIAS, ways).verdicts["plain"] == "differs"


def test_wrong_pieces_of_the_adjoint_are_told():
    right = {"adjoint": DIRECT - F_THETA.T @ np.linalg.solve(F_X.T, V)}
    for wrong in ((F_X.T, F_THETA, V), (F_X, 2 * F_THETA, V), (np.eye(12), F_THETA, V)):
        result = checks.gradients(fixed_point_loss, BIAS, right, linear=wrong, first_order=DIRECT)
        assert not result
        assert result.verdicts["adjoint"] == "agrees"
        assert result.verdicts["adjoint formula"] != "agrees"


# --- torch: a missing create_graph ------------------------------------------------------------


def two_steps(torch, create_graph):
    """MAML's objective for a small nonlinear model: two inner steps, then the query loss."""
    x = torch.linspace(-1, 1, 8, dtype=torch.float64)

    def loss(w, y):
        return ((w[0] * torch.tanh(w[1] * x + w[2]) - y) ** 2).mean()

    def adapted(theta):
        w = theta
        for _ in range(2):
            (g,) = torch.autograd.grad(loss(w, torch.sin(x)), w, create_graph=create_graph)
            w = w - 0.3 * g
        return w

    return (lambda w: loss(w, torch.cos(x))), adapted


def test_a_missing_create_graph_is_noticed(torch):
    theta = torch.tensor([0.8, -0.5, 0.3], dtype=torch.float64)

    def value(theta):
        query, adapted = two_steps(torch, False)
        return query(adapted(theta.clone().requires_grad_()))

    def way(theta, create_graph):
        theta = theta.clone().requires_grad_()
        query, adapted = two_steps(torch, create_graph)
        return torch.autograd.grad(query(adapted(theta)), theta)[0]

    def query_gradient(theta):
        query, adapted = two_steps(torch, False)
        w = adapted(theta.clone().requires_grad_()).detach().requires_grad_()
        return torch.autograd.grad(query(w), w)[0]

    ways = {"MAML": lambda theta: way(theta, True), "no graph": lambda theta: way(theta, False)}
    result = checks.gradients(value, theta, ways, first_order=query_gradient)
    assert result.verdicts == {"MAML": "agrees", "no graph": "first order"}
    assert "'no graph' lacks the second-order term" in result.message
    assert "create_graph=True?" in result.message
    assert not theta.requires_grad
    assert checks.gradients(value, theta, ways).verdicts["no graph"] == "differs"


def test_a_graph_that_does_not_reach_theta_is_noticed(torch):
    """A hyperparameter of the inner loss: without the graph torch finds no way back to it."""
    M = torch.tensor(A)

    def value(theta, create_graph=False):
        w = torch.zeros(6, dtype=torch.float64, requires_grad=True)
        for _ in range(2):
            inner_loss = ((M @ w - torch.tensor(Y)) ** 2).sum() + (theta.exp() * w**2).sum()
            w = w - 0.01 * torch.autograd.grad(inner_loss, w, create_graph=create_graph)[0]
        return ((torch.tensor(B) @ w - torch.tensor(Y_VAL)) ** 2).sum()

    def way(theta, create_graph):
        theta = theta.clone().requires_grad_()
        return torch.autograd.grad(value(theta, create_graph), theta)[0]

    theta = torch.tensor(THETA)
    ways = {
        "with": lambda theta: way(theta, True),
        "without": lambda theta: way(theta, False),
        "cut": lambda theta: torch.zeros_like(theta),
    }
    result = checks.gradients(value, theta, ways)
    assert result.verdicts == {"with": "agrees", "without": "lost", "cut": "lost"}
    assert "'without' is 0: theta is lost on the way" in result.message
    assert "nan" in result.table

    def broken(theta):
        raise RuntimeError("another reason")

    with pytest.raises(RuntimeError, match="another reason"):
        checks.gradients(value, theta, {"broken": broken})


# --- libraries, refusals -----------------------------------------------------------------------


def test_every_library_and_many_parameters(like64):
    theta = asarray_like(np.random.default_rng(3).standard_normal((10, 4)), like64)
    J, ways = (lambda z: inner(z, z * z)), {"right": lambda z: 3.0 * z * z, "wrong": 3.0 * theta}
    result = checks.gradients(J, theta, ways)
    assert result.verdicts == {"right": "agrees", "wrong": "differs"}
    assert "2 of 8 random directions" in result.table
    assert result.differences.shape == (13, 8)
    small = checks.gradients(J, theta, ways, directions=3)
    assert small.differences.shape == (13, 3)
    # Directions have length 1: no derivative is larger than the gradient.
    gradient = 3 * to_numpy(theta) ** 2
    assert np.abs(result.differences[result.best]).max() < np.linalg.norm(gradient)
    other = checks.gradients(J, theta, ways, seed=1)
    assert np.abs(other.differences - result.differences).max() > 0.1
    # Dense pieces in the same library: F = x - theta, so that dJ = v.
    eye = asarray_like(np.eye(40), like64)
    v = 3.0 * theta * theta
    assert checks.gradients(J, theta, {"right": v}, linear=(eye, -eye, v))
    assert to_numpy(theta).shape == (10, 4)


def test_single_precision_is_refused_in_words():
    single = make_like("numpy", "float32") + np.ones(3, dtype=np.float32)
    ways = {"right": lambda z: 2 * z}
    with pytest.raises(ValueError, match="theta must be in double precision: .* got float32"):
        checks.gradients(lambda z: float(z @ z), single, ways)
    with pytest.raises(ValueError, match="J must be in double precision: .* got float32"):
        checks.gradients(lambda z: np.float32(z @ z), np.ones(3), ways)
    ways = {"right": 2 * np.ones(3), "single": 2 * np.ones(3, dtype=np.float32)}
    result = checks.gradients(lambda z: float(z @ z), np.ones(3), ways)
    assert result.verdicts["right"] == "agrees"
    assert "'single' must be in double precision: expected float64" in result.message
    # Hidden inside, it is seen by its rounding.
    hidden = lambda z: float(np.float32(z @ z))  # noqa: E731
    result = checks.gradients(hidden, np.full(3, 0.7), {"right": lambda z: 2 * z})
    assert not result
    assert "J jumps by" in result.message
    assert "single precision?" in result.message


@pytest.mark.parametrize(
    ("way", "words"),
    [
        (np.ones(2), "returns the wrong shape: expected \\(3,\\), got \\(2,\\)"),
        (lambda z: np.full(3, np.nan), "returned NaN or infinity"),
        (lambda z: [1.0, 2.0, 3.0], "must return an array: it returned list"),
        (lambda z: z.__imul__(2), "changes its argument"),
    ],
)
def test_broken_ways_are_told_and_the_others_are_judged(way, words):
    ways = {"broken": way, "right": lambda z: 2 * z}
    theta = np.ones(3)
    result = checks.gradients(lambda z: float(z @ z), theta, ways)
    assert not result
    assert result.verdicts["right"] == "agrees"
    assert result.errors["broken"] == np.inf
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(result.message)
    np.testing.assert_array_equal(theta, np.ones(3))


def test_an_objective_that_is_no_number():
    result = checks.gradients(lambda z: z, np.ones(3), {"right": np.ones(3)})
    assert not result
    assert result.message == "J must return one number: it returned ndarray"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ways": {}}, "ways must be gradients by name: expected a dict"),
        ({"ways": np.ones(3)}, "ways must be gradients by name: expected a dict"),
        ({"linear": (np.eye(3), np.eye(3), np.ones(2))}, "F_x has the wrong shape"),
        ({"linear": (np.eye(3), np.ones((3, 2)), np.ones(3))}, "F_theta has the wrong shape"),
        ({"linear": (np.eye(3), np.eye(3), np.ones(3, dtype=np.float32))}, "v and theta must have"),
        ({"residual": lambda z: np.nan}, "residual must be finite"),
    ],
)
def test_refusals(options, words):
    call = {"ways": {"right": 2 * np.ones(3)}, **options}
    with pytest.raises(ValueError, match=words):
        checks.gradients(lambda z: float(z @ z), np.ones(3), **call)
