"""Records, marks given by hand and the deadline put together: the gradebook, in three forms.

Marks by hand and comments lie in ``OUT/marks``, which nothing but ``course mark`` writes: grading
again does not touch them. Whether a submission is late is computed here, from the time in its
record, so that a deadline may move without grading again.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from course_lib.homework.assignment import late_deduction, lateness
from course_lib.homework.grade import each_record, file_name, read_json
from course_lib.homework.notebook import HomeworkError, number_text

COLUMNS = "student assignment question points max status message late isolation".split()
# Leading spaces and quotes do not keep every spreadsheet from looking further.
_FORMULA = re.compile(r"[\s\"']*[=+\-@|＝＋－＠]|[\t\r\n]")
FORMS = ("csv", "canvas", "moodle")  # and nbgrader: see nbgrader_course


def rows(out: str | Path) -> list[dict[str, Any]]:
    """The gradebook in long form: one row a question, and one for what lateness takes off.

    The keys are `COLUMNS`, and ``comment``, what the teacher wrote. Questions that still wait for a
    mark by hand have the status ``needs_manual`` and the points of their checks.

    Raises
    ------
    HomeworkError
        Nothing was graded into this folder.
    """
    out = Path(out)
    found: list[dict[str, Any]] = []
    for record in each_record(out):
        marks = read_marks(out, record["assignment"], record["student"])
        policy = read_json(out / "assignments" / f"{record['assignment']}.json") or {}
        days = lateness(record["submitted"] or 0.0, policy.get("deadline"))
        mine = [_row(record, result, marks, days) for result in record["questions"]]
        total = sum(row["points"] for row in mine)
        off = late_deduction(total, days, policy.get("late", {}))
        if off:
            mine.append(_late_row(record, days, off))
        found += mine
    if not found:
        raise HomeworkError(f"{out} holds no records: run `course grade` with --out {out} first.")
    return found


def _row(record: dict, result: dict, marks: dict, days: int) -> dict[str, Any]:
    mark = marks.get(result["question"], {})
    points, status = result["points"], result["status"]
    message = "; ".join(filter(None, [result["message"], *result["remarks"]]))
    most = result["max"] + sum(entry["max"] for entry in result["by_hand"])
    waiting = any(entry["answered"] for entry in result["by_hand"])
    if mark.get("points") is not None:
        points = mark["points"] + (result["points"] if result["by_hand"] else 0.0)
        status = "partial" if 0 < points < most else "graded"
    elif waiting and status != "rejected":
        status = "needs_manual"
        message = "; ".join(filter(None, [message, "waits for a mark by hand"]))
    elif result["by_hand"] and 0 < points < most and status == "graded":
        status = "partial"
        message = message or "the written answer is missing."
    return {
        "student": record["student"],
        "assignment": record["assignment"],
        "question": result["question"],
        "points": points,
        "max": most,
        "status": status,
        "message": message,
        "late": days,
        "isolation": record["isolation"],
        "comment": mark.get("comment", ""),
    }


def _late_row(record: dict, days: int, off: float) -> dict[str, Any]:
    return {
        "student": record["student"],
        "assignment": record["assignment"],
        "question": "late",
        "points": -off,
        "max": 0.0,
        "status": "graded",
        "message": f"{days} day{'s' if days > 1 else ''} late: {number_text(off)} points off.",
        "late": days,
        "isolation": record["isolation"],
        "comment": "",
    }


def totals(table: Sequence[dict[str, Any]]) -> dict[tuple[str, str], tuple[float, float]]:
    """Points and the most there are, for each student and assignment."""
    sums: dict[tuple[str, str], tuple[float, float]] = {}
    for row in table:
        key = (row["student"], row["assignment"])
        points, most = sums.get(key, (0.0, 0.0))
        sums[key] = (round(points + row["points"], 4), most + row["max"])
    return sums


# Marks by hand ------------------------------------------------------------------------------------


def marks_path(out: Path, assignment: str, student: str) -> Path:
    """Where the marks by hand of a student's assignment lie."""
    return out / "marks" / assignment / f"{file_name(student)}.json"


def read_marks(out: Path, assignment: str, student: str) -> dict[str, dict[str, Any]]:
    """The marks by hand by question: ``points`` (None: a comment alone) and ``comment``."""
    content = read_json(marks_path(out, assignment, student))
    return content["marks"] if isinstance(content, dict) and "marks" in content else {}


# Writing it out -----------------------------------------------------------------------------------


def safe(text: Any) -> Any:
    """A cell that no spreadsheet takes for a formula.

    Examples
    --------
    >>> safe("=1+1"), safe("ada"), safe(-2.0)
    ("'=1+1", 'ada', -2.0)
    """
    if not isinstance(text, str):
        return text
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return f"'{text}" if _FORMULA.match(text) else text


def points_text(value: float) -> str:
    """Points as the exports write them."""
    return number_text(round(value, 4))


def export(out: str | Path, form: str) -> str:
    """The gradebook as CSV: in long form, or a column an assignment for Canvas or Moodle."""
    table = rows(out)
    if form == "csv":
        lines = [COLUMNS]
        for row in table:
            numbers = {"points": points_text(row["points"]), "max": points_text(row["max"])}
            lines.append([{**row, **numbers}[name] for name in COLUMNS])
        return csv_text(lines)
    sums = totals(table)
    assignments = sorted({assignment for _, assignment in sums})
    worth = {a: max(most for (_, b), (_, most) in sums.items() if a == b) for a in assignments}
    if form == "canvas":
        lines = [["Student", "ID", "SIS User ID", "SIS Login ID", "Section", *assignments]]
        most = [points_text(worth[a]) for a in assignments]
        lines.append(["    Points Possible", "", "", "", "", *most])
    else:
        lines = [["username", *assignments]]
    for student in sorted({student for student, _ in sums}):
        if is_formula(student):  # the import would not know the name that is safe: see remarks
            continue
        first = [student, "", "", student, ""] if form == "canvas" else [student]
        mine = [sums.get((student, a)) for a in assignments]
        lines.append([*first, *(points_text(mark[0]) if mark else "" for mark in mine)])
    return csv_text(lines)


def remarks(out: str | Path, form: str) -> list[str]:
    """What a teacher has to know before the marks are handed on."""
    table = rows(out)
    waiting = sum(row["status"] == "needs_manual" for row in table)
    found = [f"answers that wait for a mark by hand, and count 0 so far: {waiting}."]
    found = found if waiting else []
    for student in sorted({row["student"] for row in table if form in ("canvas", "moodle")}):
        if is_formula(student):
            found.append(f"{student}: left out, a spreadsheet would take the name for a formula.")
    return found


def is_formula(name: str) -> bool:
    """Whether `csv_text` has to change a name."""
    return not _is_number(name) and safe(name) != name


def csv_text(lines: list[list[Any]]) -> str:
    """CSV that is safe in a spreadsheet: see `safe`."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(
        [cell if _is_number(cell) else safe(cell) for cell in line] for line in lines
    )
    return stream.getvalue()


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True
