"""`run` and its stopping rules: the one place that stops, records, and says why.

Four well-known packages break the contract of their own stopping rule: a squared norm compared with
a tolerance on the norm, no check after the last step, the iterate before the converged one
returned, a tolerance called absolute that is relative. Each has its test here, for every solver.
"""

from typing import NamedTuple

import numpy as np
import pytest
from cases import SOLVERS
from conftest import PRESENT, make_like
from kit import assert_alike, eps, to_numpy

from course_lib.arrays import asarray_like, norm, to_float
from course_lib.iterate import (
    Result,
    StoppingRule,
    discrepancy_rule,
    gradient_rule,
    residual_rule,
    run,
)
from course_lib.linear import cg, cgls, gmres, landweber
from course_lib.operators import LinearOperator, difference, matrix


class State(NamedTuple):
    x: np.ndarray
    r: np.ndarray


def halving(start: float = 1.0, end: str | None = None, steps: int | None = None):
    """x_k = 2^-k, with residual -x_k; ends with a reason after ``steps`` steps if asked."""
    k = 0
    while True:
        x = np.array([start * 0.5**k])
        yield State(x, -x)
        if k == steps:
            return end
        k += 1


def below(bound: float, name: str = "size", verify=None) -> StoppingRule:
    size = lambda x: float(abs(x[0]))  # noqa: E731
    measure = lambda state: size(state.x)  # noqa: E731
    return StoppingRule(measure, verify or measure, bound, name)


@pytest.fixture(params=SOLVERS, ids=lambda case: case.name)
def solver(request):
    return request.param


# ---------------------------------------------------------------- what every solver inherits


def test_exact_in_one_step_counts_as_converged(solver, like):
    """A = 2I: one step gives the exact answer; with max_iter = 1 it is checked and returned."""
    b = asarray_like([2.0, -4.0, 6.0], like)
    A = asarray_like(2 * np.eye(3), like)
    start = solver.start
    if solver.name == "nu_method":  # with ν = 2 its first step is 10/9 of Landweber's
        states = start(A, b, step=9 / 40)
    else:
        states = start(A, b)
    stop = solver.rule(A, b, rtol=10 * eps(like))
    result = run(states, stop=stop, max_iter=1)
    assert result.converged, result.reason
    assert result.iterations == 1
    assert_alike(result.x, like)
    np.testing.assert_allclose(to_numpy(result.x), [1, -2, 3], rtol=10 * eps(like))


def test_a_start_at_the_solution_takes_no_step(solver, like64):
    b = asarray_like([2.0, -4.0, 6.0], like64)
    A = asarray_like(2 * np.eye(3), like64)
    x0 = asarray_like([1.0, -2.0, 3.0], like64)
    result = run(solver.start(A, b, x0), stop=solver.rule(A, b, rtol=1e-12), max_iter=5)
    assert (result.converged, result.iterations) == (True, 0)


def test_zero_data_take_no_step(solver, like64):
    """With b = 0 a relative tolerance is 0, and x = 0 keeps it."""
    A, b = asarray_like(2 * np.eye(3), like64), asarray_like(np.zeros(3), like64)
    result = run(solver.start(A, b), stop=solver.rule(A, b, rtol=1e-12), max_iter=5)
    assert (result.converged, result.iterations) == (True, 0)
    assert not np.any(to_numpy(result.x))


@pytest.mark.parametrize("budget", [0, 1, 2, 3, 7])
@pytest.mark.parametrize("check_every", [1, 2, 5, 100])
def test_converged_is_the_recomputed_promise(solver, budget, check_every, rng):
    """`converged` and the bound agree at the returned x, for any budget: never one step off."""
    Q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    A = (Q * np.linspace(1, 2, 6)) @ Q.T
    b = rng.standard_normal(6)
    for rtol in (1e-1, 1e-2, 1e-4, 1e-8):
        stop = solver.rule(A, b, rtol=rtol)
        result = run(solver.start(A, b), stop=stop, max_iter=budget, check_every=check_every)
        r = b - A @ result.x
        promise, data = (r, b) if solver.rule is residual_rule else (A.T @ r, A.T @ b)
        kept = np.linalg.norm(promise) <= rtol * np.linalg.norm(data)
        assert result.converged == kept, result.reason
        assert result.iterations <= budget
        np.testing.assert_array_equal(result.x, result.state.x)
        if not result.converged:
            assert result.iterations == budget
            assert result.reason == f"max_iter = {budget} steps were taken"


def test_no_rule_is_never_converged(solver):
    result = run(solver.start(2 * np.eye(2), np.ones(2)), max_iter=4)
    assert not result.converged


def test_data_are_not_changed(solver, rng):
    A, b, x0 = 2 * np.eye(3) + 0.1, rng.standard_normal(3), rng.standard_normal(3)
    copies = A.copy(), b.copy(), x0.copy()
    run(solver.start(A, b, x0), stop=solver.rule(A, b, rtol=1e-8), max_iter=20)
    for now, before in zip((A, b, x0), copies, strict=True):
        np.testing.assert_array_equal(now, before)


def test_overflow_ends_with_a_reason(dtype):
    """A step above 2/‖A‖² diverges, as the book shows: no warning, no NaN called an answer."""
    for xp in {"numpy", "array_api_strict"} & set(PRESENT):
        like = make_like(xp, dtype)
        A, y = asarray_like(np.diag([1.0, 0.5]), like), asarray_like(np.ones(2), like)
        for check_every in (1, 1000):
            stop = gradient_rule(A, y, rtol=1e-12)
            result = run(
                landweber(A, y, step=10.0), stop=stop, max_iter=1000, check_every=check_every
            )
            assert not result.converged
            assert result.reason.startswith("not finite")


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_finite_numbers_whose_squares_are_not(scale):
    """Neither called an overflow, nor a residual of zero."""
    A, y = np.diag([1.0, 0.5]), scale * np.ones(2)
    for max_iter, converged in ((3, False), (200, True)):
        stop = residual_rule(A, y, rtol=1e-6)
        result = run(landweber(A, y, step=1.0), stop=stop, max_iter=max_iter)
        assert result.converged == converged, result.reason
    np.testing.assert_allclose(result.x / scale, [1.0, 2.0], rtol=1e-5)


# ---------------------------------------------------------------- relative, absolute, squared


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_relative_and_absolute_tolerances(scale, rng):
    """rtol goes with the data, atol does not, and neither is compared with a squared norm."""
    A, b = np.diag([1.0, 2.0, 3.0, 4.0]), scale * rng.standard_normal(4)
    step, size = 1 / 16, np.linalg.norm(b)

    def residuals(stop) -> tuple[float, float]:
        x = run(landweber(A, b, step=step), stop=stop, max_iter=10_000)
        before = run(landweber(A, b, step=step), max_iter=x.iterations - 1)
        assert x.converged
        return tuple(float(np.linalg.norm(b - A @ result.x)) for result in (x, before))

    for tolerance in (1e-2, 1e-4):
        now, before = residuals(residual_rule(A, b, rtol=tolerance))
        assert now <= tolerance * size < before
        now, before = residuals(residual_rule(A, b, atol=tolerance * scale))
        assert now <= tolerance * scale < before
        # The larger of the two counts.
        now, before = residuals(residual_rule(A, b, rtol=tolerance, atol=10 * tolerance * size))
        assert now <= 10 * tolerance * size < before


def test_bounds_of_the_rules(like):
    A, y = asarray_like([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]], like), asarray_like([1, 2, 2], like)
    assert residual_rule(A, y, rtol=0.5).bound == pytest.approx(1.5)
    assert residual_rule(A, y, rtol=0.5, atol=2).bound == 2
    assert residual_rule(A, y).bound == 0
    assert gradient_rule(A, y, rtol=0.5).bound == pytest.approx(0.5 * np.sqrt(13))
    assert gradient_rule(matrix(A), y, atol=7).bound == 7
    assert discrepancy_rule(A, y, 0.5).bound == pytest.approx(0.55)
    assert discrepancy_rule(A, y, 0.5, tau=1).bound == 0.5


def test_the_three_values_that_rules_measure(like):
    """At the start the updated and the recomputed value are the same number."""
    M = np.array([[3.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    A, y = asarray_like(M, like), asarray_like([1.0, 2.0, 2.0], like)
    x0 = asarray_like([0.5, -1.0], like)
    state = next(cgls(A, y, x0))
    r = to_numpy(y) - M @ to_numpy(x0)
    for rule, expected in (
        (residual_rule(A, y), np.linalg.norm(r)),
        (gradient_rule(A, y), np.linalg.norm(M.T @ r)),
        (discrepancy_rule(A, y, 1.0), np.linalg.norm(r)),
    ):
        assert rule.measure(state) == pytest.approx(expected, rel=10 * eps(like))
        assert rule.verify(state) == pytest.approx(expected, rel=10 * eps(like))
        assert isinstance(rule.measure(state), float)


def test_rules_take_every_kind_of_matrix(torch):
    """Whatever a solver takes, its rule takes: operators, sparse matrices, integers, tensors."""
    import scipy.sparse

    M = np.array([[2, 0], [0, 1], [1, 1]])
    y = np.array([1, 2, 3])
    t = torch.from_numpy
    for A, data in (
        (M, y),
        (M.astype(float), y),
        (matrix(M), y),
        (scipy.sparse.csr_array(M * 1.0), y),
        (scipy.sparse.csr_matrix(M * 1.0), y),
        (t(M), t(y)),
        (t(M * 1.0).to_sparse(), t(y * 1.0)),
        (matrix(t(M)), t(y)),
    ):
        stop = gradient_rule(A, data, rtol=1e-6) | residual_rule(A, data, rtol=1e-6)
        stop = stop | discrepancy_rule(A, data, 1e-12)
        result = run(cgls(A, data), stop=stop, max_iter=10)
        assert result.converged
        np.testing.assert_allclose(to_numpy(result.x), np.linalg.lstsq(M, y)[0], rtol=1e-5)


# ---------------------------------------------------------------- drift, breakdown, endings


def test_drift_of_the_updated_residual_is_told(rng):
    """CG on an ill-conditioned matrix: the updated residual goes on falling, the true one stays.

    The tolerance asks for more than double precision gives; a code that believes the update
    reports success here.
    """
    Q = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    A = (Q * np.geomspace(1, 1e8, 40)) @ Q.T
    A = (A + A.T) / 2
    b = A @ rng.standard_normal(40)
    stop = residual_rule(A, b, rtol=1e-16)
    result = run(cg(A, b), stop=stop, max_iter=5000)
    true = float(np.linalg.norm(b - A @ result.x))
    assert to_float(norm(result.state.r)) <= stop.bound < true
    assert not result.converged
    assert "stagnated" in result.reason
    assert f"{true:.3e}" in result.reason


def test_an_optimistic_measure_does_not_stop_the_run():
    """Measured just under the bound, recomputed just above it: go on, and stop when it is true."""
    rule = StoppingRule(lambda s: 0.9 * abs(s.x[0]), lambda s: abs(s.x[0]), bound=0.4, name="size")
    result = run(halving(0.88), stop=rule, max_iter=10)
    # 0.9 * 0.44 = 0.396 is below the bound, 0.44 is not.
    assert (result.converged, result.iterations, float(result.x[0])) == (True, 2, 0.22)


def test_stagnation_is_honest():
    result = run(halving(), stop=below(0.1, verify=lambda x: 0.5), max_iter=20)
    assert not result.converged
    assert "stagnated" in result.reason
    assert "5.000e-01" in result.reason


@pytest.mark.parametrize("order", ["first", "second"])
def test_rules_joined_by_or(order):
    """Either will do, in both orders, and the reason names the one that was kept."""
    loose, tight = below(0.3, "loose"), below(1e-3, "tight")
    stop = loose | tight if order == "first" else tight | loose
    result = run(halving(), stop=stop, max_iter=50)
    assert (result.iterations, result.converged) == (2, True)
    assert result.reason.startswith("loose")
    three = run(halving(), stop=tight | below(1e-5, "tightest") | loose, max_iter=50)
    assert three.iterations == 2
    nested = run(halving(), stop=tight | (below(1e-5, "tightest") | loose), max_iter=50)
    assert nested.iterations == 2


@pytest.mark.parametrize("order", ["first", "second"])
def test_a_stagnated_rule_does_not_hide_one_that_is_kept(order):
    stuck, kept = below(1.0, "stuck", verify=lambda x: 9.0), below(0.01, "kept")
    stop = stuck | kept if order == "first" else kept | stuck
    at_once = run(halving(0.005), stop=stop, max_iter=50)
    assert at_once.converged
    assert at_once.reason.startswith("kept")


def test_the_ending_of_a_solver_is_the_reason():
    result = run(halving(end="breakdown: no more", steps=3), max_iter=10)
    assert (result.iterations, result.converged) == (3, False)
    assert result.reason == "breakdown: no more"
    assert run(halving(steps=3), max_iter=10).reason == "the iteration ended"
    # The state at which it ended is measured once more: here it keeps the promise.
    kept = run(halving(end="done", steps=3), stop=below(0.2), max_iter=10, check_every=7)
    assert (kept.iterations, kept.converged) == (3, True)


def test_breakdown_reasons_of_the_solvers():
    indefinite = run(cg(np.diag([1.0, -1.0]), np.array([1.0, 1.0])), max_iter=9)
    assert indefinite.reason.startswith("breakdown: <p, Ap> =")
    negative = run(
        cg(-np.eye(2), np.ones(2)), stop=residual_rule(-np.eye(2), np.ones(2)), max_iter=9
    )
    assert not negative.converged
    assert "breakdown" in negative.reason
    solved = run(cg(np.eye(2), np.ones(2)), max_iter=9)
    assert solved.reason == "the residual is exactly zero"
    least = run(cgls(np.array([[1.0], [0.0]]), np.array([0.0, 1.0])), max_iter=9)
    assert (least.reason, least.iterations) == ("the gradient is exactly zero", 0)
    started = run(gmres(2 * np.eye(2), np.ones(2), np.full(2, 0.5)), max_iter=9)
    assert (started.reason, started.iterations) == ("the residual is exactly zero", 0)
    # An adjoint that is none: the gradient is not 0, and no step along it changes A x.
    wrong = LinearOperator(lambda x: 0 * x, lambda v: v, (2,), (2,))
    nowhere = run(cgls(wrong, np.ones(2)), max_iter=9)
    assert nowhere.reason == "breakdown: the direction lies in the null space of A"
    # The range of A misses b, and A b = 0: GMRES can do nothing, and says so.
    A, b = np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([1.0, 1.0])
    stuck = run(gmres(A, b), stop=residual_rule(A, b, rtol=1e-10), max_iter=9)
    assert (stuck.converged, stuck.reason) == (False, "the Krylov space is exhausted")
    # x = 0 is what least squares can do here; residual_rule cannot be kept, gradient_rule can.
    assert np.linalg.norm(b - A @ stuck.x) == pytest.approx(1.0)


def test_stop_iteration_before_any_state():
    with pytest.raises(ValueError, match="at least one state: got none"):
        run(iter(()), max_iter=3)


def test_an_error_in_a_solver_is_not_swallowed():
    def faulty():
        yield State(np.ones(1), np.ones(1))
        raise ZeroDivisionError("in the solver")

    with pytest.raises(ZeroDivisionError, match="in the solver"):
        run(faulty(), max_iter=3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_ends_the_run(bad):
    def faulty():
        yield State(np.ones(2), np.ones(2))
        yield State(np.array([bad, 1.0]), np.zeros(2))
        raise AssertionError("the run went on")

    result = run(faulty(), stop=below(1e-300), max_iter=9)
    assert (result.converged, result.iterations) == (False, 1)
    assert result.reason.startswith("not finite")


def test_a_residual_that_is_not_a_number_is_never_converged():
    def faulty():
        yield State(np.ones(2), np.full(2, np.nan))

    result = run(faulty(), stop=residual_rule(np.eye(2), np.ones(2), atol=1e9), max_iter=9)
    assert not result.converged


# ---------------------------------------------------------------- budget, record, callback


def test_max_iter_zero():
    result = run(halving(), stop=below(0.5), max_iter=0)
    assert (result.iterations, result.converged) == (0, False)
    assert result.history == {"iteration": [0]}
    assert run(halving(), stop=below(2.0), max_iter=0).converged


def test_no_state_beyond_the_budget_is_asked_for():
    taken = []

    def counting():
        for state in halving():
            taken.append(state)
            yield state

    run(counting(), max_iter=4)
    assert len(taken) == 5


@pytest.mark.parametrize(
    ("check_every", "expected"),
    [(1, [0, 1, 2, 3, 4, 5, 6, 7]), (3, [0, 3, 6, 7]), (7, [0, 7]), (100, [0, 7])],
)
def test_record_callback_and_check_every(check_every, expected):
    """Recorded, measured and called back at the same states, the last one among them."""
    seen = []
    result = run(
        halving(),
        max_iter=7,
        check_every=check_every,
        record={"size": lambda s: s.x[0]},
        callback=lambda k, state: seen.append((k, float(state.x[0]))),
    )
    assert result.history["iteration"] == expected
    assert result.history["size"] == [0.5**k for k in expected]
    assert all(isinstance(value, float) for value in result.history["size"])
    assert seen == [(k, 0.5**k) for k in expected]


@pytest.mark.parametrize("check_every", [1, 4, 50])
def test_an_ending_is_recorded_once(check_every):
    result = run(
        halving(end="done", steps=6),
        max_iter=20,
        check_every=check_every,
        record={"size": lambda s: s.x[0]},
    )
    assert result.history["iteration"][-1] == result.iterations == 6
    assert len(set(result.history["iteration"])) == len(result.history["iteration"])
    assert len(result.history["size"]) == len(result.history["iteration"])


def test_check_every_stops_at_the_next_check():
    result = run(halving(), stop=below(0.3), max_iter=100, check_every=5)
    assert (result.iterations, result.converged) == (5, True)


def test_no_history_means_only_the_indices():
    assert set(run(halving(), max_iter=2).history) == {"iteration"}


def test_progress_shows_a_bar_and_changes_nothing(capsys):
    with_bar = run(halving(), stop=below(0.01), max_iter=50, progress=True)
    assert "step" in capsys.readouterr().err
    without = run(halving(), stop=below(0.01), max_iter=50)
    assert capsys.readouterr() == ("", "")
    assert with_bar.iterations == without.iterations == 7


def test_result_is_frozen():
    result = run(halving(), max_iter=1)
    assert isinstance(result, Result)
    with pytest.raises(AttributeError):
        result.converged = True


def test_autograd_goes_through_run_but_not_through_the_measurements(torch):
    A = torch.eye(2, dtype=torch.float64) * 2
    y = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    stop = gradient_rule(A, y, rtol=1e-10)
    result = run(
        landweber(A, y, step=0.2), stop=stop, max_iter=500, record={"residual": lambda s: norm(s.r)}
    )
    assert result.converged
    assert isinstance(stop.bound, float)
    assert all(isinstance(value, float) for value in result.history["residual"])
    (gradient,) = torch.autograd.grad(result.x.sum(), y)
    np.testing.assert_allclose(to_numpy(gradient), 0.5, rtol=1e-8)


REFUSED = {
    "negative budget": (lambda: run(halving(), max_iter=-1), "max_iter is out of range"),
    "fractional budget": (lambda: run(halving(), max_iter=2.5), "max_iter must be a whole number"),
    "check_every": (lambda: run(halving(), max_iter=2, check_every=0), "check_every is out of"),
    "list of states": (lambda: run([State(1, 1)], max_iter=2), "iterator"),
    "solver not called": (lambda: run(cgls, max_iter=2), "iterator"),
    "number for a rule": (lambda: run(halving(), stop=1e-6, max_iter=2), "stopping rule"),
    "name taken": (
        lambda: run(halving(), max_iter=2, record={"iteration": len}),
        "must not use the name",
    ),
    "rtol": (lambda: residual_rule(np.eye(2), np.ones(2), rtol=-1.0), "rtol is too small"),
    "atol NaN": (lambda: gradient_rule(np.eye(2), np.ones(2), atol=np.nan), "atol must be finite"),
    "delta": (lambda: discrepancy_rule(np.eye(2), np.ones(2), 0.0), "delta must be positive"),
    "tau": (lambda: discrepancy_rule(np.eye(2), np.ones(2), 1.0, tau=0.9), "tau is too small"),
    "data": (lambda: residual_rule(np.eye(2), [1.0, 1.0]), "got list"),
    "matrix": (lambda: residual_rule([[1.0]], np.ones(1)), "operator or a matrix: got list"),
    "rule or number": (lambda: below(1.0) | 1e-6, "stopping rules"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    action, words = REFUSED[name]
    with pytest.raises(ValueError, match=".") as error:
        action()
    assert words in str(error.value)


def test_operators_that_hold_no_numbers(xp):
    """difference() takes any library: the rule and the solver take it from the data."""
    like = make_like(xp, "float64")
    D = difference(5, boundary="zero")
    y = asarray_like(np.arange(6.0) ** 2, like)
    result = run(cgls(D, y), stop=gradient_rule(D, y, rtol=1e-12), max_iter=20)
    assert result.converged
    expected = np.linalg.lstsq(D.to_dense(), np.arange(6.0) ** 2)[0]
    np.testing.assert_allclose(to_numpy(result.x), expected, rtol=1e-9)
