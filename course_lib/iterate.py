"""The one place that runs iterations: stopping, recording, progress.

A solver is a generator of states. :func:`run` takes states from it, measures them, and stops
when a promise is kept, when the iteration ends by itself, or when the budget is spent.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from array_api_compat import is_array_api_obj

from .arrays import as_count, as_real, as_scalar, is_sparse, norm, require, to_float

__all__ = [
    "Result",
    "StoppingRule",
    "discrepancy_rule",
    "gradient_rule",
    "residual_rule",
    "run",
]


@dataclass(frozen=True)
class Result:
    """What a solver found, and why it stopped.

    Attributes
    ----------
    x : array
        The solution, in the namespace, dtype and device of the input.
    state : NamedTuple or None
        The solver's last state; None where no iteration was needed.
    converged : bool
        True only if the promise of a stopping rule was verified at ``x`` (or a direct method
        solved the problem).
    reason : str
        Why it stopped, in words.
    iterations : int
        Number of steps taken from the initial state.
    history : dict
        Lists of what was recorded; ``history["iteration"]`` holds the indices.
    """

    x: Any
    state: Any
    converged: bool
    reason: str
    iterations: int
    history: dict[str, list]


@dataclass(frozen=True)
class StoppingRule:
    """Stop when a value is at most ``bound``; rules are joined by ``|`` (either will do).

    Attributes
    ----------
    measure : callable
        State to float: a cheap value, for instance the norm of a residual that the solver
        updates. It may drift away from the truth by rounding.
    verify : callable
        State to float: the same value, computed afresh from the solution ``state.x`` (and from
        ``state.dual``, where the promise needs one). Only this one makes ``Result.converged``
        true.
    bound : float
        The value that counts as reached.
    name : str
        What is measured; it appears in ``Result.reason``.
    """

    measure: Callable[[Any], float]
    verify: Callable[[Any], float]
    bound: float
    name: str
    others: tuple["StoppingRule", ...] = ()

    def __or__(self, other: "StoppingRule") -> "StoppingRule":
        require(
            isinstance(other, StoppingRule),
            f"| joins two stopping rules: got {type(other).__name__}",
        )
        return replace(self, others=(*self.others, other, *other.others))


def _system(A: Any, b: Any) -> tuple[Any, Any]:
    """Return matrix (or operator) and data as the solvers see them: real, floating, no lists."""
    dense = (isinstance(A, np.ndarray) or is_array_api_obj(A)) and not is_sparse(A)
    if dense:
        A = as_real(A, "A", ndim=2)
    shape = getattr(A, "out_shape", getattr(A, "shape", ())[:1] or None)
    require(
        hasattr(A, "__matmul__") and shape is not None,
        f"A must be an operator or a matrix: got {type(A).__name__}",
    )
    return A, as_real(b, "the data", shape=shape, like=A if dense else getattr(A, "like", None))


def _tolerance(rtol: float, atol: float, scale: float) -> float:
    rtol, atol = as_scalar(rtol, "rtol", minimum=0.0), as_scalar(atol, "atol", minimum=0.0)
    return max(rtol * scale, atol)


def residual_rule(A: Any, b: Any, *, rtol: float = 0.0, atol: float = 0.0) -> StoppingRule:
    r"""Stop when :math:`\|b-Ax\|\le\max(\mathrm{rtol}\,\|b\|,\ \mathrm{atol})`.

    ``rtol`` is relative to the norm of the right-hand side, ``atol`` is absolute.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.linear import cg
    >>> A, b = 2 * np.eye(3), np.ones(3)
    >>> run(cg(A, b), stop=residual_rule(A, b, rtol=1e-12), max_iter=5).iterations
    1
    """
    A, b = _system(A, b)
    return StoppingRule(
        measure=lambda state: to_float(norm(state.r)),
        verify=lambda state: to_float(norm(b - A @ state.x)),
        bound=_tolerance(rtol, atol, to_float(norm(b))),
        name="residual norm",
    )


def gradient_rule(A: Any, y: Any, *, rtol: float = 0.0, atol: float = 0.0) -> StoppingRule:
    r"""Stop when :math:`\|A^\top(y-Ax)\|\le\max(\mathrm{rtol}\,\|A^\top y\|,\ \mathrm{atol})`.

    This is the norm of the gradient of :math:`\tfrac12\|Ax-y\|^2`: the promise of a
    least-squares solver, whose residual need not become small.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.linear import cgls
    >>> A, y = np.array([[1.0], [1.0]]), np.array([1.0, 3.0])
    >>> result = run(cgls(A, y), stop=gradient_rule(A, y, rtol=1e-12), max_iter=5)
    >>> result.x, result.converged
    (array([2.]), True)
    """
    A, y = _system(A, y)
    adjoint = A.H if hasattr(A, "H") else A.T
    return StoppingRule(
        measure=lambda state: to_float(norm(adjoint @ state.r)),
        verify=lambda state: to_float(norm(adjoint @ (y - A @ state.x))),
        bound=_tolerance(rtol, atol, to_float(norm(adjoint @ y))),
        name="gradient norm",
    )


def discrepancy_rule(A: Any, y: Any, delta: float, *, tau: float = 1.1) -> StoppingRule:
    r"""Stop when :math:`\|y-Ax\|\le\tau\delta`: early stopping by the discrepancy principle.

    ``delta`` bounds the noise, :math:`\|y-y_{\mathrm{exact}}\|\le\delta` (absolute, in the
    units of ``y``), and :math:`\tau>1` (for Tikhonov's method 1 is enough).

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.linear import landweber
    >>> A, y = np.diag([1.0, 0.1]), np.array([1.0, 0.2])
    >>> result = run(landweber(A, y, step=1.0), stop=discrepancy_rule(A, y, 0.2), max_iter=99)
    >>> result.iterations, result.reason
    (1, 'residual norm (discrepancy principle) 1.980e-01 is at most 2.200e-01')
    """
    bound = as_scalar(tau, "tau", minimum=1.0) * as_scalar(delta, "delta", positive=True)
    return replace(residual_rule(A, y, atol=bound), name="residual norm (discrepancy principle)")


def _verdict(
    rules: tuple[StoppingRule, ...], state: Any, k: int, last: bool
) -> tuple[bool, str] | None:
    """Return (converged, reason) if the run ends at this state, the k-th, else None."""
    values = [rule.measure(state) for rule in rules]
    pairs = list(zip(rules, values, strict=True))
    if pairs and not last and all(rule.bound < value < math.inf for rule, value in pairs):
        return None  # an iterate that overflows shows in what is measured: no pass over x
    if not math.isfinite(to_float(norm(state.x))):
        return False, f"not finite: the iterate overflowed by iteration {k}"
    stagnated = None
    for rule, measured in pairs:
        if measured <= rule.bound:
            value = rule.verify(state)
            if value <= rule.bound:
                return True, f"{rule.name} {value:.3e} is at most {rule.bound:.3e}"
            if measured <= 0.1 * rule.bound:
                stagnated = (
                    f"stagnated: the updated {rule.name} is {measured:.3e}, but recomputed it "
                    f"is {value:.3e}, above {rule.bound:.3e}: rounding limits the accuracy"
                )
    return (False, stagnated) if stagnated else None


# An overflow is told in `reason`, so NumPy need not warn of it as well.
@np.errstate(over="ignore", invalid="ignore")
def run(
    states: Iterator,
    *,
    stop: StoppingRule | None = None,
    max_iter: int,
    record: dict[str, Callable[[Any], float]] | None = None,
    callback: Callable[[int, Any], None] | None = None,
    check_every: int = 1,
    progress: bool = False,
) -> Result:
    """Draw states from a solver until a rule is met, it ends by itself, or the budget is spent.

    Parameters
    ----------
    states : iterator
        What a solver returned, for instance ``cgls(A, y)``. Its first state is the starting
        point and counts as iteration 0.
    stop : StoppingRule, optional
        When to stop. ``converged`` is said only after the rule was verified at the returned
        ``x``; without a rule it stays False.
    max_iter : int
        Largest number of steps.
    record : dict, optional
        Name to function of the state, returning a number; kept in ``history``.
    callback : callable, optional
        Called as ``callback(k, state)``. A state is valid until the next one: copy what you keep.
    check_every : int
        Measure, record and call back at every so-manyth state only, and at the last one.
    progress : bool
        Show a progress bar (tqdm).

    Returns
    -------
    Result

    Raises
    ------
    ValueError
        If ``max_iter`` is negative, ``check_every`` is not positive, ``states`` is no iterator or
        yields nothing, or ``stop`` is no rule.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.linear import landweber
    >>> A, y = np.diag([1.0, 0.5]), np.array([1.0, 1.0])
    >>> result = run(landweber(A, y, step=1.0), max_iter=3)
    >>> result.x.round(4), result.converged, result.reason
    (array([1.    , 1.1562]), False, 'max_iter = 3 steps were taken')
    """
    max_iter = as_count(max_iter, "max_iter")
    check_every = as_count(check_every, "check_every", minimum=1)
    require(
        hasattr(states, "__next__"),
        f"states must be an iterator, what a solver returned: got {type(states).__name__}",
    )
    require(
        stop is None or isinstance(stop, StoppingRule),
        f"stop must be a stopping rule: got {type(stop).__name__}",
    )
    rules = () if stop is None else (stop, *stop.others)
    record = record or {}
    require(
        "iteration" not in record,
        "record must not use the name 'iteration': it holds the indices",
    )
    history: dict[str, list] = {"iteration": [], **{name: [] for name in record}}
    bar = _progress_bar(max_iter) if progress else None
    state, k, verdict, ending = None, -1, None, None
    while verdict is None:
        try:
            state = next(states)
            k += 1
        except StopIteration as end:
            if state is None:
                raise ValueError("states must yield at least one state: got none") from None
            ending = end.value or "the iteration ended"
        last = k == max_iter or ending is not None
        if last or k % check_every == 0:
            if not history["iteration"] or history["iteration"][-1] != k:
                history["iteration"].append(k)
                for name, measure in record.items():
                    history[name].append(to_float(measure(state)))
                if callback is not None:
                    callback(k, state)
            verdict = _verdict(rules, state, k, last)
        if verdict is None and last:
            verdict = False, ending or f"max_iter = {max_iter} steps were taken"
        if bar is not None:
            bar.update(k - bar.n)
    if bar is not None:
        bar.close()
    return Result(state.x, state, *verdict, k, history)


def _progress_bar(total: int):
    from tqdm.auto import tqdm

    return tqdm(total=total, unit="step")
