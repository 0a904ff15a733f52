"""Replies from the student's side, read as what they are: text that anybody may have written.

`checked` lets nothing through but what `contract.invoke` writes, with its types, sizes and shapes
compared before anything is built from them. For hidden checks `checked` also removes the words that
the student's code chose, so that no message can carry a hidden number out.
"""

from __future__ import annotations

import base64
import builtins
import math
import re
from typing import Any

from course_lib.homework.sandbox import Stopped

_DTYPE = re.compile(r"[<>|=][biufc]([1-9]\d?)")
_FOREIGN = {"torch.Tensor", "numpy.ma", "numpy.MaskedArray", "numpy.matrix"}
_DEPTH, _WORDS = 60, 4000


class Damaged(ValueError):  # noqa: N818 - it names the reply's property
    """A reply that `contract.invoke` did not write."""


def checked(reply: Any, *, hidden: bool) -> dict[str, Any]:
    """The reply with exact types and nothing unexpected in it.

    Raises
    ------
    Stopped
        It is not a reply, or a part of it is not what it says.
    """
    try:
        return _checked(reply, hidden)
    except (Damaged, RecursionError, OverflowError):
        raise Stopped(
            "crashed",
            "your code disturbs the way in which its results are handed over, or gives an array "
            "that is not what it says to be.",
        ) from None


def _checked(reply: Any, hidden: bool) -> dict[str, Any]:
    if not isinstance(reply, dict):
        raise Damaged("reply")
    status = reply.get("status")
    printed = "" if hidden else _text(reply.get("printed", ""))
    changed = reply.get("changed", [])
    if not isinstance(changed, list):
        raise Damaged("changed")
    changed = [_text(name)[:100] for name in changed[:20]]
    changed = ["argument"] if changed and hidden else changed  # names are the student's words
    common = {"status": status, "printed": printed, "changed": changed}
    if status == "missing":
        return common
    if status == "value":
        return {**common, "value": _value(reply.get("value"), hidden, 0)}
    if status == "not_plain":
        message = _text(reply.get("message", ""))
        if hidden and message != "...":
            message = "something else"
        return {**common, "message": message}
    if status == "raised":
        kind, refusal = _text(reply.get("type", "")), reply.get("refusal")
        known = isinstance(getattr(builtins, kind, None), type) or kind == "LinAlgError"
        if hidden:
            words = {"type": kind if known else "an error", "message": "", "line": ""}
        else:
            words = {key: _text(reply.get(key, "")) for key in ("type", "message", "line")}
        return {**common, **words, "refusal": refusal is True}
    raise Damaged("status")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Damaged("text")
    return value[:_WORDS]


def _value(packed: Any, hidden: bool, depth: int) -> Any:
    if depth > _DEPTH:
        raise Damaged("depth")
    if packed is None or isinstance(packed, bool | int | float | str):
        return packed
    if isinstance(packed, list):
        return [_value(entry, hidden, depth + 1) for entry in packed]
    if not isinstance(packed, dict):
        raise Damaged("kind")
    kind, keys = packed.get("$"), set(packed)
    if kind == "dict" and keys == {"$", "items"} and isinstance(packed["items"], list):
        for item in packed["items"]:
            if not (isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)):
                raise Damaged("item")
        items = [[key, _value(entry, hidden, depth + 1)] for key, entry in packed["items"]]
        return {"$": kind, "items": items}
    if kind == "tuple" and keys == {"$", "entries"} and isinstance(packed["entries"], list):
        entries = [_value(entry, hidden, depth + 1) for entry in packed["entries"]]
        return {"$": kind, "entries": entries}
    if kind == "complex" and keys == {"$", "parts"} and isinstance(packed["parts"], list):
        parts = packed["parts"]
        if len(parts) == 2 and all(type(part) in (int, float) for part in parts):
            return {"$": kind, "parts": [float(part) for part in parts]}
    if kind == "array" and keys - {"came_as"} == {"$", "dtype", "shape", "data"}:
        return _array(packed, hidden)
    raise Damaged("kind")


def _array(packed: dict, hidden: bool) -> dict[str, Any]:
    """An array whose data has the length that its shape and dtype ask for."""
    dtype, shape, data = packed["dtype"], packed["shape"], packed["data"]
    match = _DTYPE.fullmatch(dtype) if isinstance(dtype, str) else None
    plain = isinstance(shape, list) and len(shape) <= 32 and isinstance(data, str)
    if not match or not plain or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise Damaged("array")
    try:
        raw = base64.b64decode(data, validate=True)
    except ValueError:
        raise Damaged("data") from None
    if len(raw) != math.prod(shape) * int(match[1]):
        raise Damaged("size")
    if dtype[1] == "b" and raw.strip(b"\0\1"):
        raise Damaged("booleans")
    clean = {"$": "array", "dtype": dtype, "shape": shape, "data": data}
    if "came_as" in packed:
        came_as = _text(packed["came_as"])[:100]
        clean["came_as"] = came_as if came_as in _FOREIGN or not hidden else "another kind of array"
    return clean


def without_numbers(words: str) -> str:
    """Words about a hidden check without the numbers of its instances.

    Examples
    --------
    >>> without_numbers("x has shape (17,); (5,) is expected.")
    'x has shape (…,); (…,) is expected.'
    """
    return re.sub(r"(?<![\w.])[-+]?\d[\d.]*(?:e[-+]?\d+)?(?!\w)", "…", words)
