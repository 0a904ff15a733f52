"""``course mark`` and ``course feedback``: what a teacher adds, and what a student gets back."""

from __future__ import annotations

import csv
import html
import time
from pathlib import Path
from typing import Any

from course_lib.homework import gradebook
from course_lib.homework.grade import (
    each_record,
    file_name,
    read_records,
    write_json,
    write_text,
)
from course_lib.homework.notebook import HomeworkError, number_text

_COLUMNS = ("student", "question", "points", "comment")


def mark_from_csv(out: str | Path, path: str | Path) -> str:
    """Enter the marks and comments of a CSV file; return what was done.

    Its columns are ``student,question,points,comment``, and ``assignment`` where several were
    graded. For a question with a part that is marked by hand, ``points`` are those of this part;
    for another question they replace the points of the checks. Without points, the comment stands
    beside the mark that is there. Nothing is entered when a line is wrong.

    Raises
    ------
    HomeworkError
        Naming each line that is wrong, and why.
    """
    out, path = Path(out), Path(path)
    records = {(r["assignment"], r["student"]): r for r in read_records(out)}
    if not records:
        raise HomeworkError(f"{out} holds no records: run `course grade` first.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = list(csv.DictReader(stream, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise HomeworkError(f"{path} cannot be read as CSV: {error}.") from None
    missing = [name for name in _COLUMNS if lines and name not in lines[0]]
    if missing or not lines:
        raise HomeworkError(
            f"{path} must have the columns {','.join(_COLUMNS)}, and a line for each mark."
        )
    problems, marks = [], []
    for number, line in enumerate(lines, 2):
        try:
            marks.append(_mark(line, records))
        except HomeworkError as error:
            problems.append(f"  line {number}: {error}")
    if problems:
        raise HomeworkError("\n".join([f"{path}: nothing was entered.", *problems]))
    for record, question, entry in marks:
        _enter(out, record, question, entry)
    return f"Marks entered: {len(marks)}. {_left(out)}"


def _mark(line: dict[str, Any], records: dict) -> tuple[dict, str, dict[str, Any]]:
    cells = {key: (value or "").strip() for key, value in line.items() if isinstance(key, str)}
    student, name = cells["student"], cells.get("assignment", "")
    mine = [r for (a, s), r in records.items() if s == student and name in ("", a)]
    if not mine:
        where = f" for {name}" if name else ""
        raise HomeworkError(f"there is no record of the student {student!r}{where}.")
    if len(mine) > 1:
        raise HomeworkError(f"{student} handed in several assignments: add a column assignment.")
    result = _question(mine[0], cells["question"])
    if None in line or not (cells["points"] or cells["comment"]):
        raise HomeworkError("points and comment are both empty, or there is a cell too many.")
    points = _points(cells["points"], _most(result)) if cells["points"] else None
    return mine[0], result["question"], {"points": points, "comment": cells["comment"]}


def _question(record: dict, name: str) -> dict[str, Any]:
    for result in record["questions"]:
        if name == result["question"] or name in [c["grade_id"] for c in result["by_hand"]]:
            return result
    known = ", ".join(result["question"] for result in record["questions"])
    raise HomeworkError(f"there is no question {name!r}; there are {known}.")


def _most(result: dict[str, Any]) -> float:
    """The points that a mark by hand may give."""
    by_hand = sum(cell["max"] for cell in result["by_hand"])
    return by_hand or result["max"]


def _points(text: str, most: float) -> float:
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        raise HomeworkError(f"points must be a number, not {text!r}.") from None
    if not 0 <= value <= most:
        raise HomeworkError(f"points must lie between 0 and {number_text(most)}, not {text}.")
    return value


def _enter(out: Path, record: dict, question: str, entry: dict[str, Any]) -> None:
    """Write one mark; of an earlier one, what the new one leaves out stays."""
    marks = gradebook.read_marks(out, record["assignment"], record["student"])
    before = marks.get(question, {})
    points = before.get("points") if entry["points"] is None else entry["points"]
    comment = entry["comment"] or before.get("comment", "")
    marks[question] = {"points": points, "comment": comment, "time": time.time()}
    content = {"student": record["student"], "assignment": record["assignment"], "marks": marks}
    write_json(content, gradebook.marks_path(out, record["assignment"], record["student"]))


def _left(out: Path) -> str:
    write_text(gradebook.export(out, "csv"), out / "gradebook.csv")
    waiting = sum(row["status"] == "needs_manual" for row in gradebook.rows(out))
    return f"Answers that still wait: {waiting}." if waiting else "No answer waits for a mark."


def mark_by_asking(out: str | Path) -> str:
    """Show each answer that waits for a mark, with its rubric, and ask for points and a comment.

    Each mark is written at once, so that stopping loses nothing.
    """
    out = Path(out)
    waiting = {
        (row["student"], row["assignment"], row["question"])
        for row in gradebook.rows(out)
        if row["status"] == "needs_manual"
    }
    entered = 0
    for record in each_record(out):
        for result in record["questions"]:
            if (record["student"], record["assignment"], result["question"]) not in waiting:
                continue
            entry = _ask(record, result)
            if entry is None:
                return f"Marks entered: {entered}. {_left(out)}"
            if entry:
                _enter(out, record, result["question"], entry)
                entered += 1
    return f"Marks entered: {entered}. {_left(out)}"


def _ask(record: dict, result: dict) -> dict[str, Any] | None:
    """A mark, an empty dict for an answer that is left for later, None to stop."""
    print(f"\n{'-' * 80}\n{shown(record['student'])}, {record['assignment']}, ", end="")
    print(f"question {result['number']}: {result['title']}")
    for cell in result["by_hand"]:
        print(f"\n{shown(cell['text'])}\n")
        for step in cell["rubric"]:
            print(f"  [{number_text(step['points'])}] {step['text']}")
    most = _most(result)
    while True:
        try:
            text = input(f"Points, 0 to {number_text(most)} (Enter: later, q: stop): ").strip()
            if text.lower() == "q":
                return None
            if not text:
                return {}
            points = _points(text, most)
            return {"points": points, "comment": input("Comment (Enter: none): ").strip()}
        except HomeworkError as error:
            print(error)
        except EOFError:
            return None


def shown(text: str) -> str:
    """A text without the characters by which a terminal can be steered."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


# Feedback -----------------------------------------------------------------------------------------

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>body {{ font-family: sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em; }}
pre {{ background: #f3f3f3; color: #111; padding: .7em; overflow: auto; }}
.points {{ float: right; }}</style></head>
<body><h1>{title}</h1>
{body}
</body></html>
"""


def feedback(out: str | Path) -> str:
    """Write one page a student and assignment, ``OUT/feedback/STUDENT/ASSIGNMENT/ASSIGNMENT.html``.

    It holds the student's own answers and output, the words of the diagnosis and the teacher's
    comments, all escaped; nothing of the source, of hidden checks or of their numbers.
    """
    out = Path(out)
    table = gradebook.rows(out)
    count = 0
    for record in each_record(out):
        folder = out / "feedback" / file_name(record["student"]) / record["assignment"]
        write_text(page(record, table), folder / f"{record['assignment']}.html")
        count += 1
    return f"{count} pages written to {out / 'feedback'}."


def page(record: dict, table: list[dict[str, Any]]) -> str:
    """The page of one record, with its rows of the gradebook ``table``."""
    key = (record["student"], record["assignment"])
    mine = [row for row in table if (row["student"], row["assignment"]) == key]
    return _page(record, mine, gradebook.totals(mine)[key])


def _page(record: dict, mine: list[dict[str, Any]], total: tuple[float, float]) -> str:
    e = html.escape
    title = f"{record['assignment']}, {record['student']}"
    body = [f"<p>{number_text(total[0])} of {number_text(total[1])} points.</p>"]
    body += [f"<p>Note: {e(remark)}</p>" for remark in record["remarks"]]
    results = {result["question"]: result for result in record["questions"]}
    for row in mine:
        worth = f"{number_text(row['points'])} of {number_text(row['max'])}"
        result = results.get(row["question"])
        if result is None:  # what lateness takes off
            body.append(f"<h2>Late <span class='points'>{number_text(row['points'])}</span></h2>")
            body.append(f"<p>{e(row['message'])}</p>")
            continue
        head = f"{result['number']}. {e(result['title'])}"
        body.append(f"<h2>{head} <span class='points'>{worth}</span></h2>")
        words = row["message"] or ("right." if row["points"] == row["max"] else "")
        more = f" See {result['see']}." if result["see"] and row["points"] < row["max"] else ""
        body.append(f"<p>{e(row['status'])}: {e(words)}{e(more)}</p>")
        body += [f"<p>Comment: {e(row['comment'])}</p>"] if row["comment"] else []
        texts = [*result["answers"], *(cell["text"] for cell in result["by_hand"])]
        body += [f"<pre>{e(text)}</pre>" for text in texts if row["status"] != "rejected"]
        if result["output"]:
            body.append(f"<p>Your code printed:</p><pre>{e(result['output'])}</pre>")
    return _PAGE.format(title=e(title), body="\n".join(body))
