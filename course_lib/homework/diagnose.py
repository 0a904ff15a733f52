"""Turn a wrong answer into words.

Each ``expect_*`` function compares what `call` returned with what is right, prints one line when
it is, and raises `WrongAnswer` with a diagnosis when it is not. The question's own typical mistakes
are given as ``traps``: words and the value that the mistake leads to. No message contains the
expected value, so that a hidden check gives nothing away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from course_lib.homework.contract import Foreign, WrongAnswer, say

_FACTORS = {2.0: "2", 0.5: "1/2", -1.0: "-1", -2.0: "-2", -0.5: "-1/2", 4.0: "4", 0.25: "1/4"}


def expect_array(what: str, got: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return ``got`` as a float array of that shape, or say in words what it is instead.

    Examples
    --------
    >>> expect_array("x", [1.0, 2.0], (2,))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    course_lib.homework.contract.WrongAnswer: x is a list, not a NumPy array. ...
    """
    wanted = "a NumPy array" if shape is None else f"a NumPy array of shape {shape}"
    if isinstance(got, Foreign):
        raise WrongAnswer(f"{what} is a {got.came_as}; {wanted} is asked for: convert it.")
    if isinstance(got, list | tuple):
        kind = type(got).__name__
        raise WrongAnswer(
            f"{what} is a {kind}, not a NumPy array. Return the array itself: np.array(...) makes"
            " one, and .tolist() is not needed."
        )
    if not isinstance(got, np.ndarray):
        raise WrongAnswer(f"{what} is {_kind(got)}, where {wanted} is expected.")
    if got.dtype.kind not in "iuf":
        raise WrongAnswer(
            f"{what} has dtype {got.dtype}; real numbers (float64) are expected."
            + (" Take the real part of an FFT's result: .real." if got.dtype.kind == "c" else "")
        )
    if shape is not None and got.shape != tuple(shape):
        raise WrongAnswer(f"{what} has shape {got.shape}; {_shape_words(got.shape, shape)}")
    _refuse_nonfinite(what, got)
    return got.astype(float)


def _kind(got: Any) -> str:
    if isinstance(got, bool | np.bool_):
        return "True or False"
    if isinstance(got, int | float | complex | np.number):
        return "a single number"
    return {str: "a string", dict: "a dict", type(None): "None"}.get(type(got), "something else")


def _shape_words(got: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    words = f"{tuple(wanted)} is expected."
    if len(wanted) == 1 and got in ((wanted[0], 1), (1, wanted[0])):
        return words + " It is a matrix of one column or row: .ravel() makes it one-dimensional."
    if len(wanted) == 2 and got == (wanted[1], wanted[0]):
        return words + " It is transposed."
    if len(got) == len(wanted) == 1:
        return words + " Remember: with A of shape (m, n), x has n entries and y has m."
    return words


def _refuse_nonfinite(what: str, got: np.ndarray) -> None:
    nan, infinite = int(np.isnan(got).sum()), int(np.isinf(got).sum())
    if nan:
        raise WrongAnswer(
            f"{what} contains NaN ({nan} of {got.size} entries). NaN comes from 0/0 or inf - inf:"
            " look for a division by a singular value, a norm or a sum that can be 0."
        )
    if infinite:
        raise WrongAnswer(
            f"{what} contains infinity ({infinite} of {got.size} entries): look for a division by"
            " 0, or an iteration that grows without bound."
        )


def expect_number(what: str, got: Any) -> float:
    """Return ``got`` as a finite float, or say in words what it is instead."""
    if isinstance(got, Foreign):
        raise WrongAnswer(f"{what} is a {got.came_as}; a number is asked for: float(...) makes it.")
    if isinstance(got, np.ndarray) and got.size == 1 and got.ndim > 0:
        raise WrongAnswer(
            f"{what} is an array of shape {got.shape}; a number is asked for: take its entry."
        )
    if isinstance(got, np.ndarray) and got.ndim > 0:
        raise WrongAnswer(
            f"{what} is an array of shape {got.shape}; one number is asked for. Is a sum or a norm"
            " missing?"
        )
    is_number = isinstance(got, int | float | np.number | np.ndarray) and not isinstance(got, bool)
    if not is_number or np.asarray(got).dtype.kind not in "iuf":
        kind = f"a {type(got).__name__}" if isinstance(got, list | tuple) else _kind(got)
        if isinstance(got, complex | np.complexfloating | np.ndarray):
            kind = "a complex number" if np.asarray(got).dtype.kind == "c" else "not a real number"
        raise WrongAnswer(f"{what} is {kind}; a real number is asked for.")
    number = np.asarray(got)
    _refuse_nonfinite(what, number)
    return float(number)


def expect_close(
    what: str,
    got: Any,
    expected: Any,
    *,
    rtol: float = 1e-8,
    atol: float = 0.0,
    traps: Mapping[str, Any] | None = None,
    hint: str = "",
) -> None:
    """Pass when ‖got - expected‖ <= rtol ‖expected‖ + atol, else diagnose the difference.

    Parameters
    ----------
    what : str
        The thing compared, as the student knows it: ``"tikhonov(A, y, lam)"``.
    expected : number or array
        A number asks for a number, an array for a float array of the same shape.
    traps : dict
        Words to the value that a typical mistake leads to. The closest trap is named when it is
        within max(10 rtol, 1e-6) of the answer, relatively, and closer than the right value.
    hint : str
        A sentence added to the diagnosis.
    """
    target = np.asarray(expected, dtype=float)
    if target.ndim == 0:
        answer = np.asarray(expect_number(what, got))
    else:
        answer = expect_array(what, got, target.shape)
    error = float(np.linalg.norm(answer - target))
    size = float(np.linalg.norm(target))
    if error <= rtol * size + atol:
        say(what)
        return
    words = _named_trap(answer, error, traps or {}, max(10 * rtol, 1e-6)) or _explain(
        got, answer, target, error, rtol
    )
    raise WrongAnswer(f"{what}: {words}" + (f" {hint}" if hint else ""))


def _named_trap(
    answer: np.ndarray, error: float, traps: Mapping[str, Any], tolerance: float
) -> str:
    best, nearest = "", error
    for words, value in traps.items():
        trap = np.asarray(value, dtype=float)
        if trap.shape != answer.shape:
            continue
        distance = float(np.linalg.norm(answer - trap))
        if distance < nearest and distance <= tolerance * float(np.linalg.norm(trap)):
            best, nearest = words, distance
    return best


def _explain(got: Any, answer: np.ndarray, target: np.ndarray, error: float, rtol: float) -> str:
    """Words for mistakes that need no knowledge of the question."""
    size = float(np.linalg.norm(target))
    if size == 0:
        return f"the right answer is zero, yours has norm {float(np.linalg.norm(answer)):.1e}."
    if not np.any(answer):
        return "your answer is zero everywhere."
    tolerance = max(10 * rtol, 1e-6) * size
    for factor, name in _FACTORS.items():
        if float(np.linalg.norm(answer - factor * target)) <= tolerance * abs(factor):
            return f"your answer is {name} times the right one. Look for a scaling or a sign."
    square = answer.ndim == 2 and answer.shape[0] == answer.shape[1]
    if square and float(np.linalg.norm(answer.T - target)) <= tolerance:
        return "your answer is the transpose of the right one."
    if answer.ndim == 1 and float(np.linalg.norm(answer[::-1] - target)) <= tolerance:
        return "your answer has the right entries in reverse order."
    dtype = getattr(got, "dtype", np.dtype(float))
    if dtype.kind in "iu" and error <= np.sqrt(target.size):
        return f"the entries were rounded to whole numbers (dtype {dtype}): use float arrays."
    relative = error / size
    if dtype == np.float32 and relative < 1e-5:
        return "only single precision (dtype float32): compute in float64."
    if relative < 1e-2:
        return (
            f"nearly right, but the relative error is {relative:.1e} and {rtol:.0e} is allowed:"
            " accuracy is lost on the way, or an iteration stops too early."
        )
    return f"not the right value (relative error {relative:.1e}, allowed {rtol:.0e})."


def expect(condition: bool, what: str, otherwise: str) -> None:
    """Pass when the condition holds; ``otherwise`` is the diagnosis."""
    if not condition:
        raise WrongAnswer(otherwise)
    say(what)


def expect_at_most(what: str, value: float, bound: float, otherwise: str) -> None:
    """Pass when value <= bound (NaN does not pass); the diagnosis names both numbers."""
    if not value <= bound:
        raise WrongAnswer(f"{otherwise} (measured {value:.2g}, allowed {bound:.2g})")
    say(what)


def expect_converged(what: str, measure: float, bound: float, start: float) -> None:
    """Pass when an iteration has brought ``measure`` from ``start`` below ``bound``."""
    if measure <= bound:
        say(what)
        return
    if not measure < start:
        raise WrongAnswer(
            f"{what}: the iteration does not come closer: it began at {start:.1e} and ended at"
            f" {measure:.1e}. Look at the sign of the step, its size, and the adjoint."
        )
    raise WrongAnswer(
        f"{what}: not converged. It began at {start:.1e}, ended at {measure:.1e}, and {bound:.1e}"
        " is asked for: more iterations, or a stopping rule that stops later."
    )


def expect_adjoint(
    what: str, x: np.ndarray, Ax: np.ndarray, y: np.ndarray, Aty: np.ndarray, rtol: float = 1e-10
) -> None:
    """Pass when ⟨A x, y⟩ = ⟨x, Aᵀ y⟩ within rtol ‖A x‖ ‖y‖."""
    left, right = float(np.vdot(Ax, y)), float(np.vdot(x, Aty))
    scale = float(np.linalg.norm(Ax) * np.linalg.norm(y))
    if abs(left - right) <= rtol * scale:
        say(what)
        return
    raise WrongAnswer(
        f"{what}: the adjoint test fails. ⟨A x, y⟩ and ⟨x, Aᵀ y⟩ differ by"
        f" {abs(left - right) / scale:.1e} of ‖A x‖ ‖y‖, and {rtol:.0e} is allowed."
    )
