"""Time several ways to one answer, and compare them only where their answers are equally good.

A :class:`Task` says what is solved, how an answer is judged, and how good it has to be. A
:class:`Contestant` is one way to an answer. :func:`measure` runs all contestants of a task in turn,
:func:`row` makes one line of the table from what was measured, and :func:`complaints` says what is
wrong with a record of such lines. A peer is told beforehand how far it has to go: it gets the
loosest tolerance (:func:`loosest`) or the fewest steps (:func:`fewest`) that reach the target.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

# Repeats of a contestant: as many as fit into its seconds, but no fewer and no more than these.
SECONDS, FEWEST, MOST = 1.5, 3, 15
VERDICTS = ("beyond", "met", "missed", "no bar", "not comparable")

Answer = Any


@dataclass(frozen=True)
class Task:
    """What is solved and how it is judged.

    Attributes
    ----------
    id : str
        Names the row in the record; unique.
    group : str
        Heading under which the row stands.
    title : str
        What is solved, with its size.
    measure : str
        What the number called accuracy is.
    target : float
        An answer counts if its accuracy is at most this.
    bar, beyond : float or None
        Largest ratio (our time over the best peer's) that is good enough, and the one to be proud
        of; None where none was set.
    """

    id: str
    group: str
    title: str
    measure: str
    target: float
    bar: float | None = None
    beyond: float | None = None


@dataclass(frozen=True)
class Contestant:
    """One way to the answer: its name, the call, and what it was told in words."""

    name: str
    solve: Callable[[], Answer]
    setting: str = ""


def seconds(task: Callable[[], Any]) -> float:
    """Return the processor time of one run.

    With one thread it is the time on the clock of an idle machine; a machine that does other
    things besides stretches the clock, and hardly this.
    """
    start = time.process_time()
    task()
    return time.process_time() - start


def loosest(
    make: Callable[[Any], Callable[[], Answer]],
    settings: Iterable[Any],
    accuracy: Callable[[Answer], float],
    target: float,
) -> Any:
    """Return the first setting whose answer reaches the target; the last one if none does."""
    setting = None
    for setting in settings:
        if accuracy(make(setting)()) <= target:
            break
    return setting


def fewest(
    make: Callable[[int], Callable[[], Answer]],
    accuracy: Callable[[Answer], float],
    target: float,
    *,
    start: int,
    limit: int,
    tries: int = 8,
) -> int:
    """Return a number of steps that reaches the target, at most about 5 % more than needed.

    The accuracy is taken to fall like a power of the number of steps, so that two tries tell the
    next one. ``limit`` is the answer if not even that many steps reach the target.
    """
    low, high, steps, before = 0, limit + 1, start, None
    for _ in range(tries):
        value = max(accuracy(make(steps)()), 1e-300)
        low, high = (low, steps) if value <= target else (steps, high)
        if high - low <= max(1, 0.05 * high):
            break
        power = 1.0
        if before is not None:
            power = max(0.3, math.log(before[1] / value) / math.log(steps / before[0]))
        before = steps, value
        guess = math.ceil(1.02 * steps * (value / target) ** (1 / power))
        steps = min(max(guess, low + 1), high - 1)
    return min(high, limit)


def looked_at(step: int) -> bool:
    """Return whether an iterate is judged: each one of the first 50, then one in 50."""
    return step % max(1, step // 50) == 0


def steps_until(
    states: Iterable[Answer], accuracy: Callable[[Answer], float], target: float
) -> int | None:
    """Return the number of the first answer in a sequence that reaches the target, to 2 %."""
    for number, answer in enumerate(states, start=1):
        if looked_at(number) and accuracy(answer) <= target:
            return number
    return None


def measure(
    contestants: Iterable[Contestant],
    accuracy: Callable[[Answer], float],
    target: float,
    *,
    budget: float = SECONDS,
) -> dict[str, dict]:
    """Run all contestants in turn; return name -> accuracy, times, what it was told.

    The first run of each gives the answer that is judged, and says how often it is repeated: not
    at all if its answer does not count. The turns follow one another, so that a slow minute of the
    machine hits all of them.
    """
    contestants = list(contestants)
    found, repeats = {}, {}
    for c in contestants:
        start = time.process_time()
        answer = c.solve()
        spent = time.process_time() - start
        judged = float(accuracy(answer))
        affordable = max(FEWEST, min(MOST, int(budget / max(spent, 1e-9))))
        repeats[c.name] = affordable if judged <= target else 1
        found[c.name] = {
            "name": c.name,
            "setting": c.setting,
            "accuracy": judged,
            "seconds": [spent],
        }
    gc.collect()
    gc.disable()
    try:
        for turn in range(1, max(repeats.values())):
            for c in contestants:
                if turn < repeats[c.name]:
                    found[c.name]["seconds"].append(seconds(c.solve))
    finally:
        gc.enable()
    for entry in found.values():
        entry |= {
            "min": min(entry["seconds"]),
            "median": statistics.median(entry["seconds"]),
            "max": max(entry["seconds"]),
        }
    return found


def verdict(ratio: float | None, bar: float | None, beyond: float | None) -> str:
    """Say in one word how a ratio stands to its bar; None for a ratio that was not given."""
    if ratio is None:
        return "not comparable"
    if bar is None:
        return "no bar"
    if beyond is not None and ratio <= beyond:
        return "beyond"
    return "met" if ratio <= bar else "missed"


def row(task: Task, ours: dict, peers: Iterable[dict]) -> dict:
    """Return one line of the record.

    A contestant counts if its answer reached the task's target; the best peer is the fastest of
    those that count. Without ours, or without any peer that counts, there is no ratio.
    """
    entries = [dict(entry) for entry in (ours, *peers)]
    for entry in entries:
        # A NaN does not count.
        entry["reached"] = bool(entry["accuracy"] <= task.target)
    ours, *peers = entries
    good = [peer for peer in peers if peer["reached"]]
    best = min(good, key=lambda peer: peer["min"]) if good else None
    ratio = ours["min"] / best["min"] if best and ours["reached"] else None
    return {
        **task.__dict__,
        "ours": ours,
        "peers": peers,
        "best": best["name"] if best else None,
        "ratio": ratio,
        "verdict": verdict(ratio, task.bar, task.beyond),
    }


ENTRY = {
    "name": str,
    "setting": str,
    "accuracy": float,
    "seconds": list,
    "min": float,
    "median": float,
    "max": float,
    "reached": bool,
}
ROW = {
    "id": str,
    "group": str,
    "title": str,
    "measure": str,
    "target": float,
    "bar": (float, type(None)),
    "beyond": (float, type(None)),
    "ours": dict,
    "peers": list,
    "best": (str, type(None)),
    "ratio": (float, type(None)),
    "verdict": str,
}
RECORD = {
    "schema": int,
    "date": str,
    "machine": str,
    "cores": int,
    "python": str,
    "threads": str,
    "versions": dict,
    "seconds": float,
    "rows": list,
}


def _fields(what: str, found: Any, wanted: dict[str, Any]) -> list[str]:
    if not isinstance(found, dict) or set(found) != set(wanted):
        return [f"{what}: expected the fields {sorted(wanted)}"]
    wrong = [name for name, kind in wanted.items() if not isinstance(found[name], kind)]
    return [f"{what}: {name} is a {type(found[name]).__name__}" for name in wrong]


def complaints(record: Any) -> list[str]:
    """Return what is wrong with a record: missing fields, a verdict that its numbers deny."""
    found = _fields("record", record, RECORD)
    if found:
        return found
    if record["schema"] != 1:
        return [f"record: expected schema 1, got {record['schema']}"]
    ids = [r.get("id") for r in record["rows"] if isinstance(r, dict)]
    found = [f"{name}: two rows have this id" for name in sorted(set(ids)) if ids.count(name) > 1]
    for r in record["rows"]:
        shape = _fields("row", r, ROW)
        if not shape:
            shape = [
                c for entry in (r["ours"], *r["peers"]) for c in _fields(r["id"], entry, ENTRY)
            ]
        found += shape or _denied(r)
    return found


def _denied(r: dict) -> list[str]:
    again = row(
        Task(**{name: r[name] for name in Task.__dataclass_fields__}), r["ours"], r["peers"]
    )
    return [
        f"{r['id']}: {name} is {r[name]!r}, but the numbers say {again[name]!r}"
        for name in ("ours", "peers", "best", "ratio", "verdict")
        if r[name] != again[name]
    ]
