"""``course check``: the student's own run, on a pristine copy of the homework.

Only the answer cells of the student's notebook count. They go into the pristine release, which lies
beside the notebook in ``.pristine``, and nbval runs that. So it does not matter what the student's
copy has as outputs, what was overwritten, or in which order the cells were run.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course_lib.homework import notebook as nb
from course_lib.homework.answers import Answer, find_answers, with_answers
from course_lib.homework.execute import CellRun, run_notebooks
from course_lib.homework.notebook import HomeworkError

_DAMAGED = "Take the homework's folder once more from where you got it, and copy your notebook in."


@dataclass(frozen=True)
class Verdict:
    """One question after a check: ``passed``, ``wrong``, ``open`` (not answered), ``by hand``."""

    question: nb.Question
    status: str
    points: float
    visible: float
    later: float
    message: str


def find_pristine(path: Path, student: Any, release: str | None) -> Any:
    """The pristine notebook that belongs to the student's, after its hash was compared.

    Raises
    ------
    HomeworkError
        There is no pristine copy, none of this name, or it was changed.
    """
    folder = Path(release) if release else path.resolve().parent
    for place in (folder / ".pristine", folder):
        if (place / "manifest.json").is_file():
            break
    else:
        raise HomeworkError(
            f"There is no pristine copy of the homework: {folder / '.pristine'} is missing. "
            f"{_DAMAGED} Or name the released folder: course check NOTEBOOK --release DIR."
        )
    try:
        manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
        known = {str(name): str(entry["sha256"]) for name, entry in manifest["notebooks"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise HomeworkError(f"{place / 'manifest.json'} is damaged. {_DAMAGED}") from None
    name = next(
        (name for name in (str(nb.course(student).get("notebook")), path.stem) if name in known),
        next(iter(known)) if len(known) == 1 else None,
    )
    if name is None:
        raise HomeworkError(
            f"{path.name} is none of the notebooks of this homework ({', '.join(sorted(known))})."
        )
    copy_path = place / f"{name}.ipynb"
    try:
        text = copy_path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise HomeworkError(f"The pristine copy {copy_path} is missing. {_DAMAGED}") from None
    if nb.sha256(text) != known[name]:
        raise HomeworkError(f"The pristine copy {copy_path} was changed. {_DAMAGED}")
    return nb.parse_notebook(text, str(copy_path))


def check_notebook(path: str | Path, release: str | None = None) -> tuple[list[Verdict], list[str]]:
    """Check a student's notebook; return a verdict a question, and remarks about the notebook.

    Raises
    ------
    HomeworkError
        The notebook cannot be read, or is not of this homework.
    """
    path = Path(path)
    student = nb.read_notebook(path)
    pristine = find_pristine(path, student, release)
    found = find_answers(student, pristine)
    if found and not any(answer.found for answer in found.values()):
        raise HomeworkError(
            f"{path.name} is not a notebook of this homework: none of its {len(found)} answer "
            "cells was found in it."
        )
    runs, stopped = _run(pristine, found)
    verdicts = [
        _judge(pristine, question, found, runs, stopped) for question in nb.questions(pristine)
    ]
    remarks = [
        f"{nb.grade_id(pristine.cells[index])}: {answer.remark}."
        for index, answer in found.items()
        if answer.remark
    ]
    return verdicts, remarks


def _run(pristine: Any, found: dict[int, Answer]) -> tuple[dict[int, CellRun], dict[str, CellRun]]:
    """Run the notebook; when a question does not finish, take its answers out and run again.

    An endless loop thus costs its own question only.
    """
    stopped: dict[str, CellRun] = {}
    answers = dict(found)
    while True:
        runs = run_notebooks({"homework": with_answers(pristine, answers)})["homework"]
        late = next((index for index, run in runs.items() if run.state == "timeout"), None)
        name = nb.course(pristine.cells[late]).get("question") if late is not None else None
        if name is None or name in stopped:
            return runs, stopped
        stopped[name] = runs[late]
        for index in answers:
            if nb.course(pristine.cells[index]).get("question") == name:
                answers[index] = Answer(pristine.cells[index].source, True, True)


def _judge(
    pristine: Any,
    question: nb.Question,
    found: dict[int, Answer],
    runs: dict[int, CellRun],
    stopped: dict[str, CellRun],
) -> Verdict:
    cells = pristine.cells
    visible = [index for index in question.checks if not nb.course(cells[index]).get("hidden")]
    hidden = [index for index in question.checks if nb.course(cells[index]).get("hidden")]
    worth = sum(nb.points(cells[index]) for index in visible)
    later = sum(nb.points(cells[index]) for index in [*hidden, *question.manual])
    passed = [index for index in visible if runs[index].state == "passed"]
    earned = sum(nb.points(cells[index]) for index in passed)
    written = [not found[index].unchanged for index in [*question.answers, *question.manual]]

    def verdict(status: str, message: str = "", points: float = earned) -> Verdict:
        return Verdict(question, status, points, worth, later, message)

    if question.id in stopped:
        return verdict("wrong", _stopped_words(stopped[question.id]), 0.0)
    if not any(written):
        return verdict("open", _open_words(found, question), 0.0)
    for index in question.answers:
        if runs[index].state != "passed":
            return verdict("wrong", _answer_words(cells[index], found[index], runs[index]))
    for index in visible:
        if runs[index].state != "passed":
            return verdict("wrong", _check_words(runs[index]))
    if any(found[index].unchanged for index in question.manual):
        return verdict("open", "the checks pass; the written answer is still missing")
    if not visible:
        return verdict("by hand", "your answer is there; it is marked by hand")
    return verdict("passed")


def _open_words(found: dict[int, Answer], question: nb.Question) -> str:
    if any(not found[index].found for index in [*question.answers, *question.manual]):
        return "its answer cell is missing from your notebook"
    return "not answered yet: the stub is left"


def _stopped_words(run: CellRun) -> str:
    if "died" in run.message or "Failed to interrupt" in run.message:
        return (
            "your code does not finish in time, or it ends the Python process: look for a loop "
            "that never stops, for an exit, or for too much memory"
        )
    return "your code does not finish in time: look for a loop that never stops"


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _answer_words(cell: Any, answer: Answer, run: CellRun) -> str:
    if answer.unchanged or run.error == "NotImplementedError":
        return "a part is not answered yet: a stub is left"
    where = f"the answer cell {nb.grade_id(cell)} stops with"
    if run.state == "raised":
        return f"{where} {run.error}: {_one_line(run.message)}"
    return f"{where} {_one_line(run.message) or run.state}"


def _check_words(run: CellRun) -> str:
    if run.state == "raised" and run.error == "WrongAnswer":
        return _one_line(run.message)
    if run.state == "raised":
        return (
            f"the check cannot run ({run.error}: {_one_line(run.message)}). Does an answer cell "
            "give a new meaning to a name that the checks use, such as check, call or print?"
        )
    if run.state == "differs":
        return (
            f"the check runs through, but it prints '{_one_line(run.printed)}' where "
            f"'{_one_line(run.expected)}' belongs. Does an answer cell change print, or a name "
            "that the checks use?"
        )
    return "not run, because a cell before it did not finish"


def report(path: str | Path, verdicts: list[Verdict], remarks: list[str]) -> str:
    """The report of a check: one line a question, remarks, and the sum."""
    saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(Path(path).stat().st_mtime))
    lines = [f"{Path(path).name}, as it was saved on {saved}"]
    lines += [_line(verdict) for verdict in verdicts]
    lines += [f"note: {remark}" for remark in remarks]
    earned = sum(verdict.points for verdict in verdicts)
    visible = sum(verdict.visible for verdict in verdicts)
    later = sum(verdict.later for verdict in verdicts)
    lines.append(
        f"{nb.number_text(earned)} of {nb.number_text(visible)} points that can be checked here; "
        f"{nb.number_text(later)} more are given when your work is graded."
    )
    return "\n".join(lines)


def _line(verdict: Verdict) -> str:
    question = verdict.question
    score = (
        f"{nb.number_text(verdict.points)}/{nb.number_text(verdict.visible)}"
        if verdict.visible
        else "-"
    )
    line = f"{verdict.status:<8} {question.number:>2}  {question.title} [{score}]"
    if verdict.message:
        line += f": {verdict.message}"
    if verdict.status == "wrong" and question.see:
        line = f"{line}{'' if line.endswith(('.', '?')) else '.'} See {question.see}."
    return line
