"""The check contract: a check sees a student's work through ``call`` and through nothing else.

A check cell of a homework notebook reads::

    # NBVAL_CHECK_OUTPUT
    @check
    def question_1():
        A, x = np.eye(2), np.array([3.0, 4.0])
        expect_close("residual(A, x)", call("residual", A, x), 5.0, traps={"...": 25.0})

``check`` runs the body at once. The body sees NumPy as ``np`` and the public names of
``course_lib.homework``, and nothing of the notebook: what it needs from the student it gets from
``call(name, *args)``. Arguments and results are plain values (None, bool, int, float, str, list,
tuple, dict with string keys, array); an operator crosses as a `recipe`, which the student's side
turns into an operator with a function that the notebook registered by `builders`.

The value travels in packed form (`pack`, `unpack`): text, numbers and base64, never a pickle. In a
notebook, under nbgrader and under nbval both sides are the same kernel. A grader that runs the
student's code in another process calls `invoke` there and `set_transport` here, and the check
cells stay as they are:

- cells with ``course.role == "setup"`` run on both sides (imports, `builders`),
- answer cells and all other given code cells run on the student's side only,
- check cells run on the checks' side only.
"""

from __future__ import annotations

import base64
import builtins
import contextlib
import hmac
import inspect
import io
import json
import linecache
import re
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_PRINTED_LIMIT = 4000
_DEPTH_LIMIT = 50


class WrongAnswer(AssertionError):  # noqa: N818 - students read this name
    """A check found something wrong; the message says what, in words for the student."""

    def _render_traceback_(self) -> list[str]:
        """Keep the traceback of the checks out of the notebook: the words are what helps."""
        return ["WrongAnswer: not right yet; the line that begins with `wrong:` says why."]


class NotPlain(ValueError):  # noqa: N818 - it names the value's property
    """A value that is not one of the plain kinds which cross between check and student."""


class Foreign(np.ndarray):
    """An array that was something else on the student's side; ``came_as`` names it.

    `diagnose.expect_array` says so. A check that allows it takes ``np.asarray(call(...))``.
    """

    came_as: str


@dataclass(frozen=True)
class Recipe:
    """A name and plain arguments from which the student's side builds an operator."""

    name: str
    arguments: dict[str, Any]


def recipe(name: str, /, **arguments: Any) -> Recipe:
    """Describe an operator by the name of its builder and plain arguments.

    Examples
    --------
    >>> recipe("matrix", M=np.eye(2)).name
    'matrix'
    """
    return Recipe(name, arguments)


# Packing ------------------------------------------------------------------------------------------


def pack(value: Any, _depth: int = 0) -> Any:
    """Turn a plain value into JSON: exact numbers, arrays as dtype, shape and base64.

    Raises
    ------
    NotPlain
        The value, or a part of it, is not None, bool, int, float, complex, str, list, tuple,
        dict with string keys, numeric array or recipe, or is nested more than 50 deep.

    Examples
    --------
    >>> unpack(pack({"x": np.arange(3.0), "steps": (1, 2)}))
    {'x': array([0., 1., 2.]), 'steps': (1, 2)}
    """
    if _depth > _DEPTH_LIMIT:
        raise NotPlain("a value nested more than 50 levels deep")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    # float.__float__ and the like strip subclasses, so that only exact types cross.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, np.integer | np.floating):
        return value.item()
    if isinstance(value, complex | np.complexfloating):
        return {"$": "complex", "parts": [float(value.real), float(value.imag)]}
    if isinstance(value, Recipe):
        return {"$": "recipe", "name": value.name, "arguments": pack(value.arguments, _depth + 1)}
    if isinstance(value, list):
        return [pack(entry, _depth + 1) for entry in value]
    if isinstance(value, tuple):
        return {"$": "tuple", "entries": [pack(entry, _depth + 1) for entry in value]}
    if isinstance(value, dict):
        return _pack_dict(value, _depth)
    return _pack_array(value)


def _pack_dict(value: dict, depth: int) -> dict:
    for key in value:
        if not isinstance(key, str):
            raise NotPlain(f"a dict with a key of type {type(key).__name__} (keys must be strings)")
    return {"$": "dict", "items": [[str(k), pack(v, depth + 1)] for k, v in value.items()]}


def _pack_array(value: Any) -> dict:
    kind, came_as = type(value), None
    if kind.__module__.partition(".")[0] == "torch" and hasattr(value, "detach"):
        value, came_as = value.detach().cpu().numpy(), f"{kind.__module__}.{kind.__name__}"
    elif isinstance(value, np.ndarray) and kind is not np.ndarray:
        came_as = f"{kind.__module__.partition('.')[0]}.{kind.__name__}"
    elif not isinstance(value, np.ndarray | np.generic):
        raise NotPlain(f"a value of type {kind.__name__}")
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        raise NotPlain(f"an array of dtype {array.dtype} (arrays must hold numbers)")
    packed = {
        "$": "array",
        "dtype": array.dtype.str,
        "shape": list(array.shape),
        "data": base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii"),
    }
    return packed if came_as is None else {**packed, "came_as": came_as}


def unpack(packed: Any, build: Mapping[str, Callable[..., Any]] | None = None) -> Any:
    """Rebuild what `pack` wrote; recipes become what ``build[name](**arguments)`` returns.

    Raises
    ------
    ValueError
        The packed form is damaged, or ``build`` has no entry for a recipe's name.
    """
    if isinstance(packed, list):
        return [unpack(entry, build) for entry in packed]
    if not isinstance(packed, dict):
        return packed
    kind = packed.get("$")
    if kind == "dict":
        return {key: unpack(entry, build) for key, entry in packed["items"]}
    if kind == "tuple":
        return tuple(unpack(entry, build) for entry in packed["entries"])
    if kind == "complex":
        return complex(*packed["parts"])
    if kind == "array":
        return _unpack_array(packed)
    if kind == "recipe":
        return _build(packed["name"], unpack(packed["arguments"], build), build or {})
    raise ValueError(f"expected a packed value, got a dict marked {kind!r}")


def _unpack_array(packed: dict) -> np.ndarray:
    dtype = np.dtype(packed["dtype"])
    if dtype.kind not in "biufc":
        raise ValueError(f"expected a numeric array, got dtype {dtype}")
    raw = base64.b64decode(packed["data"], validate=True)
    array = np.frombuffer(raw, dtype=dtype).reshape(packed["shape"]).copy()
    if "came_as" in packed:
        array = array.view(Foreign)
        array.came_as = str(packed["came_as"])
    return array


def _build(name: str, arguments: dict, build: Mapping[str, Callable[..., Any]]) -> Any:
    if name not in build:
        raise ValueError(
            f"no builder for the recipe {name!r}: run the set-up cell at the top of the notebook, "
            f"which registers {sorted(build) or 'the builders'}"
        )
    return build[name](**arguments)


# The student's side -------------------------------------------------------------------------------

_builders: dict[str, Callable[..., Any]] = {}


def builders(**functions: Callable[..., Any]) -> None:
    """Register the functions that turn recipes into operators, in a set-up cell.

    ``builders(matrix=operators.matrix)`` lets a check pass ``recipe("matrix", M=M)``.
    """
    _builders.update(functions)


class _Printed(io.StringIO):
    """Keep the first part of what the student's code prints: a flood must not fill the memory."""

    def write(self, text: str) -> int:
        room = _PRINTED_LIMIT - self.tell()
        if room > 0:
            super().write(text[:room])
        return len(text)


def invoke(namespace: Mapping[str, Any], name: str, packed_arguments: list) -> dict[str, Any]:
    """Call ``namespace[name]`` with packed arguments and describe what happened, in JSON.

    A name that holds a plain value instead of a function answers with that value when there are no
    arguments. The reply's ``status`` is ``value`` (with ``value``), ``missing``, ``raised`` (with
    ``type``, ``message``, ``line``, and ``refusal`` for a ValueError) or ``not_plain`` (with
    ``message``); ``changed`` lists the arguments that the call overwrote, ``printed`` holds what it
    printed.
    """
    if name not in namespace:
        return {"status": "missing"}
    work = namespace[name]
    if not callable(work) and not packed_arguments:
        return _described(work)
    arguments = [unpack(entry, _builders) for entry in packed_arguments]
    printed = _Printed()
    try:
        # A warning is no error, and stderr in a check cell costs all points under nbgrader.
        with (
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            value = work(*arguments)
    except (Exception, SystemExit) as error:
        reply = {
            "status": "raised",
            "type": type(error).__name__,
            "refusal": isinstance(error, ValueError),
            "message": str(error)[:_PRINTED_LIMIT],
            "line": _line_of(error, namespace),
        }
    else:
        reply = _described(value)
    changed = _changed(work, arguments, packed_arguments)
    return {**reply, "changed": changed, "printed": printed.getvalue()}


def _described(value: Any) -> dict[str, Any]:
    if value is Ellipsis:
        return {"status": "not_plain", "message": "..."}
    try:
        return {"status": "value", "value": pack(value)}
    except NotPlain as error:
        return {"status": "not_plain", "message": str(error)}


def _line_of(error: BaseException, namespace: Mapping[str, Any]) -> str:
    """The last line of the student's own code on the way to the error."""
    line, step = "", error.__traceback__
    while step is not None:
        if step.tb_frame.f_globals is namespace:
            code = step.tb_frame.f_code
            line = linecache.getline(code.co_filename, step.tb_lineno).strip() or line
        step = step.tb_next
    return line


def _changed(work: Callable, arguments: list, packed_arguments: list) -> list[str]:
    try:
        names = [parameter.name for parameter in inspect.signature(work).parameters.values()]
    except (TypeError, ValueError):
        names = []
    changed = []
    for position, (argument, before) in enumerate(zip(arguments, packed_arguments, strict=True)):
        if isinstance(before, dict) and before.get("$") == "recipe":
            continue
        after = _described(argument).get("value")
        if json.dumps(after) != json.dumps(before):
            changed.append(names[position] if position < len(names) else f"argument {position + 1}")
    return changed


# The checks' side ---------------------------------------------------------------------------------

Transport = Callable[[str, list], dict[str, Any]]


def in_kernel(name: str, packed_arguments: list) -> dict[str, Any]:
    """The transport of notebooks, nbgrader and nbval: the student's side is this very process."""
    return invoke(sys.modules["__main__"].__dict__, name, packed_arguments)


_transport: Transport = in_kernel


def set_transport(transport: Transport) -> Transport:
    """Let `call` reach the student's work another way; return the transport used before."""
    global _transport
    previous, _transport = _transport, transport
    return previous


def call(name: str, *arguments: Any) -> Any:
    """Call the student's function ``name`` (or read the value ``name``) and return a plain value.

    Raises
    ------
    WrongAnswer
        In words: nothing of that name, the stub is left, an exception, no plain value, None
        returned, or an argument overwritten.
    """
    reply = _transport(name, [pack(argument) for argument in arguments])
    status = reply["status"]
    if status == "missing":
        raise WrongAnswer(
            f"there is no `{name}` yet. Run the answer cell of this question first, and keep the "
            "name as the question states it."
        )
    if status == "raised":
        raise WrongAnswer(_raised(name, reply) + _also_printed(reply))
    if status == "not_plain":
        raise WrongAnswer(_not_plain(name, reply["message"]))
    if reply.get("changed"):
        raise WrongAnswer(
            f"`{name}` changes its input {_listed(reply['changed'])}. Work on a copy "
            "(for instance x = x.copy()): the caller still needs the original."
        )
    if reply["value"] is None:
        raise WrongAnswer(
            f"`{name}` gives None. Does the function end with `return` and the result?"
            + _also_printed(reply)
        )
    return unpack(reply["value"])


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _also_printed(reply: dict) -> str:
    printed = " / ".join(reply.get("printed", "").split("\n")).strip(" /")
    return f" Your code printed: {printed[:300]}" if printed else ""


def _not_plain(name: str, message: str) -> str:
    if message == "...":
        return f"`{name}` is still `...`: the stub is left. Put your answer in its place."
    return (
        f"`{name}` gives {message}. A check can read numbers, strings, lists, dicts and NumPy "
        "arrays."
    )


_SHAPE_WORDS = re.compile(
    r"mismatch in its core dimension|not aligned|could not be broadcast|is different from"
    r"|shape mismatch|incompatible dimensions|dimensions .* mismatch|shapes? .*(mismatch|match)"
)


def _raised(name: str, reply: dict) -> str:
    kind, message = reply["type"], " ".join(reply["message"].split())
    if kind == "NotImplementedError":
        return f"`{name}`: the stub is left. {message or 'Replace it by your solution.'}"
    words = f"`{name}` stops with {kind}: {message.rstrip('.') or 'no message'}."
    if reply.get("line"):
        words += f" It happens in the line `{reply['line']}`."
    if kind == "NameError":
        words += (
            " When your work is checked, only the answer cells are taken: define the name in an"
            " answer cell."
        )
    elif kind == "TypeError" and "positional argument" in message:
        words += " Keep the arguments as the question states them."
    elif _SHAPE_WORDS.search(message):
        words += (
            " The shapes do not fit. With A of shape (m, n), x has n entries and y has m: A maps x"
            " to data, and the adjoint Aᵀ (A.T) maps data back. Is A used where Aᵀ is meant, or is"
            " another transpose missing?"
        )
    return words


def expect_error(name: str, *arguments: Any, because: str) -> None:
    """Pass when the student's function refuses its arguments with a ValueError.

    ``because`` completes "it must raise ValueError, because ...".
    """
    reply = _transport(name, [pack(argument) for argument in arguments])
    if reply.get("refusal"):
        say(f"`{name}` refuses what it cannot do")
        return
    must = f"it must raise ValueError, because {because}."
    if reply["status"] == "raised" and reply["type"] != "NotImplementedError":
        raise WrongAnswer(f"{_raised(name, reply)} For this input {must}")
    if reply["status"] in ("missing", "raised"):
        call(name, *arguments)
    raise WrongAnswer(f"`{name}` accepts this input; {must}")


# Running a check ----------------------------------------------------------------------------------

_said: set[str] = set()


def say(what: str) -> None:
    """Print one finding of a check, once."""
    if what not in _said:
        _said.add(what)
        print(f"right: {what}")


def check(body: Callable[[], None]) -> Callable[[], None]:
    """Run a check's body now, with the names of this package and NumPy and no others.

    Raises
    ------
    WrongAnswer
        After printing what was found.
    """
    from course_lib import homework

    names = {name: getattr(homework, name) for name in homework.__all__}
    names.update({"np": np, "__builtins__": builtins, "__name__": "course_check"})
    alone = types.FunctionType(body.__code__, names, body.__name__)
    _said.clear()
    try:
        alone()
    except WrongAnswer as wrong:
        print(f"wrong: {wrong}")
        raise
    return alone


# Seeds of hidden checks ---------------------------------------------------------------------------

_seeds: dict[str, int] = {}


def derive_seed(secret: bytes, name: str) -> int:
    """The seed of the hidden instances ``name``: the first 8 bytes of HMAC-SHA256(secret, name).

    Examples
    --------
    >>> derive_seed(b"secret", "q01") == derive_seed(b"secret", "q02")
    False
    """
    return int.from_bytes(hmac.digest(secret, name.encode("utf-8"), "sha256")[:8], "big")


def set_seed(name: str, seed: int) -> None:
    """Fix the seed of the hidden instances ``name``; a release writes this into its own copy."""
    _seeds[name] = seed


def hidden_rng(name: str) -> np.random.Generator:
    """A generator for the instances of a hidden check: of the release's secret where there is one.

    Without a release, in the author's own runs, the seed is derived from the empty secret.
    """
    return np.random.default_rng(_seeds.get(name, derive_seed(b"", name)))
