"""The way back into an nbgrader course folder: marks into its gradebook, our pages as its feedback.

``course grade`` reads ``COURSE/submitted``. Here the records go where ``nbgrader autograde`` and
``nbgrader generate_feedback`` would have written: ``COURSE/gradebook.db``, through nbgrader's own
interface, and ``COURSE/feedback``, from which ``nbgrader release_feedback`` hands out.
"""

from __future__ import annotations

import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from course_lib.homework import gradebook, submissions
from course_lib.homework.assignment import late_deduction, lateness
from course_lib.homework.grade import read_json, read_records, write_text
from course_lib.homework.mark import page
from course_lib.homework.notebook import HomeworkError

#: What `nbgrader release_feedback` reads beside a page: when, and the secret of the submission.
_BESIDE = ("timestamp.txt", "submission_secret.txt")


def _records(out: Path) -> list[dict[str, Any]]:
    records = read_records(out)
    if not records:
        raise HomeworkError(f"{out} holds no records: run `course grade` with --out {out} first.")
    return records


# Marks --------------------------------------------------------------------------------------------


def export_marks(out: str | Path, course: str | Path) -> tuple[str, list[str]]:
    """Write all marks into ``COURSE/gradebook.db``; return a summary, and what to know about it.

    A mark by hand that nbgrader holds and we do not stays; one that both hold becomes ours, and is
    named.

    Raises
    ------
    HomeworkError
        nbgrader is missing, or its gradebook does not know the assignment or a cell.
    """
    out, database = Path(out), Path(course) / "gradebook.db"
    records = _records(out)
    try:
        from nbgrader.api import Gradebook
    except ImportError:
        raise HomeworkError("nbgrader is not installed here: pip install nbgrader.") from None
    if not database.is_file():
        raise HomeworkError(
            f"There is no {database}: run `nbgrader generate_assignment` in {course} first."
        )
    remarks: list[str] = []
    with warnings.catch_warnings(), Gradebook(f"sqlite:///{database.resolve()}") as book:
        warnings.simplefilter("ignore")  # nbgrader's own use of SQLAlchemy warns
        known = {assignment.name for assignment in book.assignments}
        for name in sorted({record["assignment"] for record in records} - known):
            raise HomeworkError(
                f"nbgrader does not know the assignment {name}: run `nbgrader generate_assignment "
                f"{name}` in {course} first."
            )
        for record in records:
            marks = gradebook.read_marks(out, record["assignment"], record["student"])
            _write_marks(book, record, marks, _deduction(out, record, marks), remarks)
    return f"The marks of {len(records)} submissions are in {database}.", remarks


def _deduction(out: Path, record: dict, marks: dict) -> float:
    policy = read_json(out / "assignments" / f"{record['assignment']}.json") or {}
    days = lateness(record["submitted"] or 0.0, policy.get("deadline"))
    total = sum(
        (auto or 0.0) if manual is None else manual
        for result in record["questions"]
        for _, auto, manual, _ in _cells(result, marks.get(result["question"], {}))
    )
    return late_deduction(total, days, policy.get("late", {}))


def _write_marks(book: Any, record: dict, marks: dict, off: float, remarks: list[str]) -> None:
    student, assignment = record["student"], record["assignment"]
    book.update_or_create_student(student)
    time = record["submitted"]
    stamp = None if time is None else datetime.fromtimestamp(time, UTC).replace(tzinfo=None)
    submission = book.update_or_create_submission(assignment, student, timestamp=stamp)
    notebooks = {notebook.name: notebook for notebook in submission.notebooks}
    for notebook in notebooks.values():
        notebook.late_submission_penalty = 0.0
    next(iter(notebooks.values())).late_submission_penalty = off
    for result in record["questions"]:
        name, slash, _ = result["question"].rpartition("/")  # of several notebooks, which one
        notebook = notebooks[name] if slash else next(iter(notebooks.values()))
        mark = marks.get(result["question"], {})
        grades = {grade.name: grade for grade in notebook.grades}
        for cell, auto, manual, waits in _cells(result, mark):
            if cell not in grades:
                raise HomeworkError(
                    f"nbgrader's gradebook has no cell {cell} in {assignment}: was the assignment "
                    "generated from another source?"
                )
            grade, where = grades[cell], f"{student}, {assignment}, {cell}"
            if manual is None and grade.manual_score is not None:
                remarks.append(f"{where}: nbgrader's mark by hand, {grade.manual_score:g}, stays.")
                manual, waits = grade.manual_score, False
            elif manual is not None and grade.manual_score not in (None, manual):
                remarks.append(f"{where}: {grade.manual_score:g} by hand becomes {manual:g}.")
            grade.auto_score, grade.manual_score, grade.needs_manual_grade = auto, manual, waits
        comments = {comment.name: comment for comment in notebook.comments}
        for cell in result["by_hand"]:
            if mark.get("comment"):
                comments[cell["grade_id"]].manual_comment = mark["comment"]
    book.db.commit()


def _cells(result: dict, mark: dict) -> list[tuple[str, float | None, float | None, bool]]:
    """Name, points of the checks, points by hand, and whether it waits, of each cell with points.

    A mark by hand is one number for a question; over several cells it is spread from the first on.
    """
    left = mark.get("points")
    spread: dict[str, float] = {}
    for cell in result["by_hand"] or result["checks"]:
        if left is not None:
            spread[cell["grade_id"]] = min(left, cell["max"])
            left -= spread[cell["grade_id"]]
    checks = [(c["grade_id"], c["max"] if c["passed"] else 0.0) for c in result["checks"]]
    found = [(name, auto, spread.get(name), False) for name, auto in checks]
    for cell in result["by_hand"]:
        name, manual = cell["grade_id"], spread.get(cell["grade_id"])
        waits = manual is None and cell["answered"]
        found.append((name, None if cell["answered"] else 0.0, manual, waits))
    return found


# Feedback -----------------------------------------------------------------------------------------


def write_feedback(out: str | Path, course: str | Path) -> tuple[str, list[str]]:
    """Write each page as ``COURSE/feedback/STUDENT/ASSIGNMENT/NOTEBOOK.html``.

    The time and the secret of the submission are copied beside it, as nbgrader does.

    Raises
    ------
    HomeworkError
        There are no records, or the course has no folder ``submitted``.
    """
    out, course = Path(out), Path(course)
    if not (course / "submitted").is_dir():
        raise HomeworkError(f"{course} is no course folder of nbgrader: it has no submitted/.")
    table = gradebook.rows(out)
    count, remarks = 0, []
    for record in _records(out):
        place = Path(record["student"], record["assignment"])
        names = [path.stem for path in sorted((course / "submitted" / place).glob("*.ipynb"))]
        if not names:
            remarks.append(f"{place}: no page, nothing is in submitted/{place}.")
            continue
        for name in names:
            write_text(page(record, table), course / "feedback" / place / f"{name}.html")
        for name in _BESIDE:
            source = course / "submitted" / place / name
            if source.exists():
                text = submissions.read_bytes(str(source)).decode("ascii", errors="replace")
                write_text(text, course / "feedback" / place / name)
        count += 1
    return f"{count} pages written to {course / 'feedback'}.", remarks
