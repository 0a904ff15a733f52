"""A run over a whole class, one submission after another or several at once."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from course_lib.homework import gradebook, submissions
from course_lib.homework.assignment import Assignment, read_bundle
from course_lib.homework.cli import stop_printing
from course_lib.homework.grade import Order, in_order, write_json, write_text
from course_lib.homework.notebook import HomeworkError, number_text
from course_lib.homework.sandbox import LEVELS, WARNING, probe, refuse_visible
from course_lib.homework.submissions import Submission


def grade(
    bundle: str | Path,
    handed_in: str | Path,
    out: str | Path,
    *,
    jobs: int = 1,
    scheduler: str | None = None,
    again: bool = False,
    students: frozenset[str] = frozenset(),
) -> str:
    """Grade a class into ``out`` and write its gradebook; return the summary to print.

    ``jobs`` submissions are graded at once, or as many as the workers of the Dask cluster at the
    address ``scheduler`` can take. ``again`` grades also what has a record; ``students``, when
    there are any, limits the run.

    Raises
    ------
    HomeworkError
        The bundle, a folder, this machine or the cluster does not allow it, or some submissions
        could not be graded; what was graded has its record.
    """
    if jobs < 1:
        raise HomeworkError(f"--jobs must be at least 1, not {jobs}.")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise HomeworkError(f"{out} is a file; --out names a folder.")
    assignments = read_bundle(bundle)
    refuse_visible(bundle, handed_in, out)
    work = submissions.find(handed_in, assignments)
    missing = students - {entry.student for entry in work}
    if missing:
        raise HomeworkError(f"There is no submission of {', '.join(sorted(missing))}.")
    work = [entry for entry in work if not students or entry.student in students]
    level = _level(scheduler)
    for assignment in assignments.values():
        policy = {"deadline": assignment.deadline, "late": assignment.late}
        write_json(policy, out / "assignments" / f"{assignment.name}.json")
    order = Order(out.resolve(), level, again)
    counts: Counter[str] = Counter()
    levels = set()
    begun = time.monotonic()
    with _runner(order, assignments, work, jobs, scheduler) as results:
        for done, (entry, what, record) in enumerate(results, 1):
            counts[what] += 1
            levels |= {record["isolation"]} if what == "new" and record else set()
            left = (time.monotonic() - begun) / done * (len(work) - done)
            _progress(f"[{done}/{len(work)}] {_line(entry, what, record)}", left)
    if counts["failed"] == len(work):
        raise HomeworkError("No submission could be graded.")
    write_text(gradebook.export(out, "csv"), out / "gradebook.csv")
    isolation = ", ".join(sorted(levels)) or level
    words = summary(out, counts, isolation, time.monotonic() - begun)
    if counts["failed"]:
        raise HomeworkError(
            f"{words}\n{counts['failed']} submissions could not be graded: see FAILED above. Start "
            "the command again to try them once more."
        )
    return words


def _level(scheduler: str | None) -> str:
    """This machine's isolation. Where a cluster grades, this machine needs none."""
    try:
        level, _ = probe()
    except HomeworkError:
        if scheduler is None:
            raise
        return LEVELS[-1]
    if level == "rlimits" and scheduler is None:
        print(WARNING, file=sys.stderr)
    return level


@contextlib.contextmanager
def _runner(
    order: Order,
    assignments: dict[str, Assignment],
    work: list[Submission],
    jobs: int,
    scheduler: str | None,
) -> Iterator[Iterator[tuple[Submission, str, dict | None]]]:
    """The results as they come: from this process, from several, or from a cluster."""
    if scheduler is None and jobs == 1:
        yield in_order(order, assignments, work)
        return
    from course_lib.homework.several import Here, run

    if scheduler is None:
        crew: Any = contextlib.closing(Here(jobs, order.level))
    else:
        from course_lib.homework.cluster import connected

        crew = connected(scheduler, order.level)
    with crew as members, contextlib.closing(run(order, assignments, work, members)) as results:
        yield results


def _progress(line: str, left: float) -> None:
    more = f"; about {left / 60:.0f} min left" if left > 90 else f"; about {left:.0f} s left"
    try:
        print(line + (more if left > 1 else ""), flush=True)
    except BrokenPipeError:  # as in `course grade ... | head`: the records are what counts
        stop_printing()


def plain(name: str) -> str:
    """A name as a terminal can show it safely."""
    return "".join(c if c.isprintable() else "�" for c in name)


def _line(entry: Submission, what: str, record: dict | None) -> str:
    who = f"{plain(entry.student)}  {entry.assignment}"
    if record is None:
        return f"{who}: left alone, another run is grading it."
    if what == "failed":
        return f"{who}: FAILED: {plain(record['problem'])}"
    points = number_text(round(sum(r["points"] for r in record["questions"]), 4))
    most = number_text(sum(r["max"] for r in record["questions"]))
    words = f"{who}: {points} of {most}" if record["status"] != "rejected" else f"{who}: rejected"
    return words + (" (graded before)" if what == "kept" else f", {record['seconds']:.1f} s")


def summary(out: Path, counts: Counter[str], level: str, seconds: float) -> str:
    """What a teacher wants to know after a run."""
    table = gradebook.rows(out)
    sums = gradebook.totals(table)
    lines = [
        f"{counts['new']} graded, {counts['kept']} kept from before, {counts['busy']} left to "
        f"another run, in {seconds:.0f} s. Isolation: {level}."
    ]
    for assignment in sorted({row["assignment"] for row in table}):
        marks = [(s, p, m) for (s, a), (p, m) in sums.items() if a == assignment]
        lines.append(f"{assignment}: submissions {len(marks)}, points {number_text(marks[0][2])}")
        lines += _distribution([points / most if most else 0.0 for _, points, most in marks])
        lines += _hardest([row for row in table if row["assignment"] == assignment])
    look = [row for row in table if row["status"] in ("timeout", "crashed", "rejected")]
    seen = dict.fromkeys((row["student"], row["assignment"], row["status"]) for row in look)
    if seen:
        lines.append("Worth a look:")
        lines += [f"  {plain(who)}, {what}: {status}" for who, what, status in list(seen)[:20]]
        lines += [f"  and {len(seen) - 20} more"] if len(seen) > 20 else []
    waiting = sum(row["status"] == "needs_manual" for row in table)
    if waiting:
        lines.append(f"Answers that wait for a mark by hand: {waiting}. course mark --out {out}")
    lines.append(f"Gradebook: {out / 'gradebook.csv'}")
    return "\n".join(lines)


def _distribution(shares: list[float]) -> list[str]:
    bins = Counter(min(4, int(5 * max(0.0, share))) for share in shares)
    return [
        f"  {20 * k:3d} to {20 * k + 20:3d} %  {'#' * round(40 * bins[k] / len(shares))} {bins[k]}"
        for k in range(5)
    ]


def _hardest(table: list[dict[str, Any]]) -> list[str]:
    asked = dict.fromkeys(row["question"] for row in table if row["max"])
    missed = {}
    for question in asked:
        mine = [row for row in table if row["question"] == question]
        decided = [row for row in mine if row["status"] not in ("needs_manual", "rejected")]
        if decided:
            short = sum(row["points"] < row["max"] for row in decided)
            missed[question] = (short / len(decided), short, len(decided))
    worst = sorted(missed.items(), key=lambda entry: -entry[1][0])[:3]
    words = [f"{question} ({short} of {of})" for question, (_, short, of) in worst if short]
    return [f"  most often not right: {', '.join(words)}"] if words else []
