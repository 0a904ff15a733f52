"""``course grade``: from what students handed in to one record each.

Only the sources of answer cells are taken from a submission. They run in the sandbox, a fork for
each question; the instructor's checks run here and see nothing but plain values. Each question is
tried with its own answers alone, so that no other question can spoil it. Where that is not right it
is tried once more after the answers that stand before it in the notebook, because an answer may use
an earlier one; the better of the two counts.

A record is one JSON file for a student, an assignment and a bundle, ``OUT/records/...``, written
under another name and then renamed: at every moment it is there whole or not at all, and a run that
was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import io
import json
import os
import signal
import tempfile
import threading
import time
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from course_lib.homework import contract, submissions
from course_lib.homework import notebook as nb
from course_lib.homework.answers import Answer, find_answers
from course_lib.homework.assignment import Assignment, Task
from course_lib.homework.contract import WrongAnswer
from course_lib.homework.notebook import HomeworkError
from course_lib.homework.sandbox import Question, Stopped, Worker
from course_lib.homework.submissions import Submission
from course_lib.homework.trusted import checked, without_numbers
from course_lib.homework.worker import without_magics

#: Part of each record: records of another version of the grader are made again.
GRADER = 1
_TEXT_LIMIT, _OUTPUT_LIMIT = 50_000, 2000


# One question -------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What one run of a question came to; ``passed`` holds the checks that did, by grade_id.

    ``waited``: its time ran out, and it had hardly computed.
    """

    passed: dict[str, bool] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    points: float = 0.0
    status: str = ""
    message: str = ""
    output: str = ""
    waited: bool = False


def _checks(task: Task, question: nb.Question) -> list[tuple[str, float, str, bool]]:
    """Name, points, source and whether it is hidden, for each check of a question."""
    cells = [task.source.cells[index] for index in question.checks]
    return [
        (nb.grade_id(c), nb.points(c), c.source, "### BEGIN HIDDEN TESTS" in c.source)
        for c in cells
    ]


def run_question(
    worker: Worker,
    task: Task,
    question: nb.Question,
    names: dict[str, Any],
    cells: list[tuple[str, str]],
) -> Outcome:
    """Run the cells in a fork of the worker, and the question's checks here.

    ``names`` are what the set-up cell defines on the checks' side.
    """
    outcome = Outcome()
    with worker.question(cells) as student:
        try:
            with _time_limit(worker.limits.seconds + 30):
                student.load()
                for name, worth, source, hidden in _checks(task, question):
                    if not hidden:
                        outcome.output = student.output[:_OUTPUT_LIMIT]
                    wrong = _run_check(student, source, dict(names), hidden=hidden)
                    outcome.passed[name] = not wrong
                    outcome.points += 0.0 if wrong else worth
                    if wrong:
                        outcome.words[name] = wrong
        except Stopped as stop:
            outcome.status, outcome.message = stop.status, stop.sentence
    outcome.waited = outcome.status == "timeout" and student.kept_waiting
    if not outcome.status:
        most = sum(worth for _, worth, _, _ in _checks(task, question))
        outcome.status = "partial" if 0 < outcome.points < most else "graded"
        outcome.message = _message(task, question, outcome, student.failed)
        if outcome.words and any(e["type"] == "MemoryError" for e in student.failed.values()):
            outcome.status = "crashed"
    return outcome


def _run_check(student: Question, source: str, names: dict[str, Any], *, hidden: bool) -> str:
    """Run one check cell; return the words of what is wrong, or nothing."""

    def transport(name: str, arguments: list) -> dict[str, Any]:
        reply = checked(student.ask(name, arguments), hidden=hidden)
        if reply["status"] == "raised" and reply["type"] == "MemoryError":
            raise Stopped("crashed", f"`{name}` asks for more memory than it may have.")
        return reply

    before = contract.set_transport(transport)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            exec(_compiled(source, "<check>"), names)
    except WrongAnswer as wrong:
        return without_numbers(str(wrong)) if hidden else str(wrong)
    except Exception as error:  # the check met what its author did not think of
        words = "" if hidden else f": {error}"
        return f"the check cannot use what your code gives ({type(error).__name__}{words})."
    finally:
        contract.set_transport(before)
    return ""


@functools.lru_cache(1000)
def _compiled(source: str, name: str) -> types.CodeType:
    """The instructor's cells, which are the same for the whole class, compiled once."""
    return compile(source, name, "exec")


class _Endless(Stopped):
    def __init__(self) -> None:
        super().__init__("crashed", "the check does not come to an end with what your code gives.")


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """End a check that does not end: what it was given may be made for that."""

    def stop(*_: object) -> None:
        raise _Endless

    if threading.current_thread() is not threading.main_thread():
        with _time_limit_of_thread(seconds):
            yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _time_limit_of_thread(seconds: float) -> Iterator[None]:
    """The same where no signal arrives: another thread raises the exception in this one."""
    number, lock, over = ctypes.c_ulong(threading.get_ident()), threading.Lock(), False

    def stop() -> None:
        with lock:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(_Endless))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            over = True
        timer.cancel()


def _message(task: Task, question: nb.Question, outcome: Outcome, failed: dict) -> str:
    """The most useful sentence about a question that is not all right."""
    if not outcome.words:
        return ""
    for index in question.answers:
        name = nb.grade_id(task.source.cells[index])
        if name in failed:
            return _cell_words(name, failed[name])
    for name, _, _, hidden in _checks(task, question):
        if name in outcome.words:
            return f"on other numbers: {outcome.words[name]}" if hidden else outcome.words[name]
    return ""


def _cell_words(name: str, error: dict[str, str]) -> str:
    if error["type"] == "NotImplementedError":
        return "a part is not answered yet: a stub is left."
    words = f"the answer cell {name} stops with {error['type']}: {error['message'].rstrip('.')}."
    words = " ".join(words.split())
    return words + (f" It happens in the line `{error['line']}`." if error["line"] else "")


# One notebook -------------------------------------------------------------------------------------


def grade_notebook(task: Task, student: Any, worker: Worker) -> list[dict[str, Any]]:
    """Grade all questions of a student's notebook; one dict each, in the order of the notebook."""
    answers = {
        nb.grade_id(task.pristine.cells[index]): answer
        for index, answer in find_answers(student, task.pristine).items()
    }
    names: dict[str, Any] = {"__name__": "course_check"}
    for name, source in task.set_up:
        exec(_compiled(without_magics(source)[0], f"<{name}>"), names)
    results: list[dict[str, Any]] = []
    stuck: set[str] = set()
    for question in task.questions:
        outcome = _attempt(worker, task, question, answers, names, stuck)
        if outcome.status in ("timeout", "crashed"):
            stuck.add(question.id)
        results.append(_result(task, question, outcome, answers))
    return results


def _attempt(
    worker: Worker,
    task: Task,
    question: nb.Question,
    answers: dict[str, Answer],
    names: dict[str, Any],
    stuck: set[str],
) -> Outcome:
    def of(cell: Any) -> Answer | None:
        return answers.get(nb.grade_id(cell)) if nb.role(cell) == "answer" else None

    own = [task.source.cells[index] for index in question.answers]
    written = [cell for cell in own if (answer := of(cell)) and not answer.unchanged]
    if not written:
        found = all((answer := of(cell)) is None or answer.found for cell in own)
        message = "not answered." if found else "its answer cell is missing from the notebook."
        return Outcome(status="graded", message=message if own else "")
    last = max([*question.checks, *question.answers])

    def cells(*, alone: bool) -> list[tuple[str, str]]:
        chosen = []
        for index, cell in enumerate(task.source.cells[: last + 1]):
            name, answer = nb.grade_id(cell) or f"cell {index}", of(cell)
            mine = index in question.answers
            asked = nb.course(cell).get("question")
            if cell.cell_type == "code" and nb.role(cell) in ("given", "code"):
                chosen.append((name, cell.source))
            elif answer and (mine or not (alone or answer.unchanged or asked in stuck)):
                chosen.append((name, answer.source))
        return chosen

    first = run_question(worker, task, question, names, cells(alone=True))
    if first.waited:  # it sleeps, or this machine was too busy for it: a second try can tell
        first = run_question(worker, task, question, names, cells(alone=True))
    right = first.passed and all(first.passed.values())
    if right or first.status in ("timeout", "crashed") or cells(alone=False) == cells(alone=True):
        return first
    second = run_question(worker, task, question, names, cells(alone=False))
    if second.status in ("timeout", "crashed"):
        return first
    return second if second.points >= first.points else first


def _result(
    task: Task, question: nb.Question, outcome: Outcome, answers: dict[str, Answer]
) -> dict[str, Any]:
    own = [task.source.cells[index] for index in [*question.answers, *question.manual]]
    remarks = [answers[nb.grade_id(cell)].remark for cell in own if nb.grade_id(cell) in answers]
    by_hand = [task.source.cells[index] for index in question.manual]
    return {
        "question": question.id,
        "number": question.number,
        "title": question.title,
        "see": question.see,
        "points": outcome.points,
        "max": sum(worth for _, worth, _, _ in _checks(task, question)),
        "status": outcome.status,
        "message": outcome.message,
        "remarks": [remark for remark in remarks if remark],
        "checks": [
            {"grade_id": name, "max": worth, "passed": outcome.passed.get(name, False)}
            for name, worth, _, _ in _checks(task, question)
        ],
        "by_hand": [
            {
                "grade_id": nb.grade_id(cell),
                "max": nb.points(cell),
                "rubric": nb.rubric(cell),
                "answered": not answers[nb.grade_id(cell)].unchanged,
                "text": answers[nb.grade_id(cell)].source[:_TEXT_LIMIT],
            }
            for cell in by_hand
        ],
        "answers": [
            answers[nb.grade_id(cell)].source[:_TEXT_LIMIT]
            for cell in own
            if cell.cell_type == "code" and nb.grade_id(cell) in answers
        ],
        "output": outcome.output,
    }


# One submission -----------------------------------------------------------------------------------


def read_submission(
    submission: Submission, assignment: Assignment
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record of a submission as far as reading gives it, and the notebook for each task.

    Nothing that a student can hand in makes it raise.
    """
    begun = time.time()
    number = submissions.digest(submission.files)  # first: what changes now is graded next time
    chosen, remarks, times = _choose(submission, assignment)
    record = {
        "format": 1,
        "grader": GRADER,
        "student": submission.student,
        "assignment": assignment.name,
        "bundle": assignment.digest,
        "submission": number,
        "submitted": max(times, default=None),
        "isolation": "",
        "status": "graded" if chosen else "rejected",
        "remarks": remarks,
        "graded_at": begun,
        "seconds": 0.0,
        "questions": [],
    }
    return record, chosen


def grade_chosen(
    chosen: dict[str, Any], remarks: list[str], assignment: Assignment, level: str
) -> dict[str, Any]:
    """The rest of the record: the results, the time they took, and at which level of isolation."""
    begun = time.monotonic()
    questions: list[dict[str, Any]] = []
    for name, task in assignment.tasks.items():
        if name in chosen:
            with Worker(level, assignment.limits, task.set_up) as worker:
                questions += grade_notebook(task, chosen[name], worker)
        else:
            why = remarks[0] if remarks else "nothing was handed in."
            questions += [_rejected(task, question, why) for question in task.questions]
        if len(assignment.tasks) > 1:  # two notebooks may both have a question q01
            for result in questions[-len(task.questions) :]:
                result["question"] = f"{name}/{result['question']}"
    seconds = round(time.monotonic() - begun, 3)
    return {"isolation": level, "seconds": seconds, "questions": questions}


def _rejected(task: Task, question: nb.Question, why: str) -> dict[str, Any]:
    pristine = find_answers(task.pristine, task.pristine)
    answers = {nb.grade_id(task.pristine.cells[index]): a for index, a in pristine.items()}
    result = _result(task, question, Outcome(status="rejected", message=why), answers)
    return {**result, "answers": []}


def _choose(
    submission: Submission, assignment: Assignment
) -> tuple[dict[str, Any], list[str], list[float]]:
    """The newest notebook for each task, remarks on all others, and when those chosen came."""
    chosen: dict[str, Any] = {}
    remarks: list[str] = []
    times: list[float] = []
    paths: dict[str, str] = {}
    newest = sorted(submission.files, key=lambda file: (file.time, file.path), reverse=True)
    for file in newest:
        name = Path(file.path).name
        try:
            notebook = submissions.read_notebook(submissions.read_bytes(file.path), name)
        except HomeworkError as error:
            remarks.append(str(error))
            continue
        task = _belongs_to(notebook, Path(file.path).stem, assignment)
        if task is None:
            remarks.append(f"{name} is no notebook of this homework: no answer cell is in it.")
        elif task in chosen:
            remarks.append(f"{_place(file)} is older than {paths[task]}, which counts.")
        else:
            chosen[task], paths[task] = notebook, _place(file)
            times.append(file.time)
    if not submission.files:
        remarks.append("there is no notebook (.ipynb) in the folder.")
    return chosen, remarks, times


def _place(file: submissions.File) -> str:
    return "/".join(Path(file.path).parts[-2:])


def _belongs_to(notebook: Any, stem: str, assignment: Assignment) -> str | None:
    """The task whose answer cells the notebook has; by its name where several fit."""
    count = {
        name: sum(answer.found for answer in find_answers(notebook, task.pristine).values())
        for name, task in assignment.tasks.items()
    }
    stated = nb.course(notebook)
    if stated.get("assignment", assignment.name) != assignment.name:
        return None
    fitting = [name for name, found in count.items() if found]
    for name in (stated.get("notebook"), stem):
        if name in fitting:
            return name
    return max(fitting, key=lambda name: count[name], default=None)


# Records ------------------------------------------------------------------------------------------


def file_name(student: str) -> str:
    """A name for a student's files that is safe on every system, and different for each student."""
    safe = quote(student, safe=" ", errors="surrogateescape").replace(".", "%2E")
    if len(safe) <= 80:
        return safe
    number = hashlib.sha256(student.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"{safe[:60]}-{number}"


def record_path(out: Path, student: str, assignment: str, bundle: str) -> Path:
    """Where the record of a student, an assignment and a bundle lies."""
    return out / "records" / assignment / f"{file_name(student)}.{bundle[:12]}.json"


def write_text(content: str, path: Path) -> None:
    """Write a file so that it is there whole or not at all, also after a crash of the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".course-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_json(content: Any, path: Path) -> None:
    """Write a file of ours: `write_text` with JSON in ASCII."""
    write_text(json.dumps(content, indent=1) + "\n", path)


def read_json(path: Path) -> Any:
    """What a file of ours holds, or None when there is none or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def each_record(out: Path) -> Iterator[dict[str, Any]]:
    """The newest record of each student and assignment, in the order of their names.

    Records hold all that a student wrote, so that a large class's do not belong into memory at
    once: each is read twice, first for its time alone.
    """
    newest: dict[tuple[str, str], tuple[float, Path]] = {}
    for path in (out / "records").glob("*/*.json"):
        record = read_json(path)
        if isinstance(record, dict) and record.get("format") == 1:
            key, when = (record["assignment"], record["student"]), record["graded_at"]
            newest[key] = max(newest.get(key, (when, path)), (when, path))
    for key in sorted(newest):
        if record := read_json(newest[key][1]):  # another run may have replaced it since
            yield record


def read_records(out: Path) -> list[dict[str, Any]]:
    """All of `each_record`."""
    return list(each_record(out))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether we hold the lock on a file; another process's lock ends when that process does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="ascii") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


@dataclass(frozen=True)
class Order:
    """What a run has to know besides the bundle and the submissions."""

    out: Path
    level: str
    again: bool = False


@contextlib.contextmanager
def claimed(
    order: Order, assignment: Assignment, submission: Submission
) -> Iterator[tuple[str, dict | None]]:
    """Whether a submission is ``new``, ``kept`` or ``busy``, and the record that is kept.

    Within the context no other run grades this student.
    """
    lock = order.out / "locks" / assignment.name / file_name(submission.student)
    with locked(lock) as ours:
        if not ours:
            yield "busy", None
            return
        kept = read_json(
            record_path(order.out, submission.student, assignment.name, assignment.digest)
        )
        known = isinstance(kept, dict) and kept.get("grader") == GRADER and not order.again
        same = known and kept.get("submission") == submissions.digest(submission.files)
        yield ("kept", kept) if same else ("new", None)


def write_record(record: dict[str, Any], out: Path) -> None:
    """Write a record where `claimed` looks for it."""
    write_json(record, record_path(out, record["student"], record["assignment"], record["bundle"]))


def in_order(
    order: Order, bundle: dict[str, Assignment], work: Iterable[Submission]
) -> Iterator[tuple[Submission, str, dict | None]]:
    """Grade one submission after the other, in this process."""
    for submission in work:
        assignment = bundle[submission.assignment]
        with claimed(order, assignment, submission) as (what, record):
            if what == "new":
                record, chosen = read_submission(submission, assignment)
                record |= grade_chosen(chosen, record["remarks"], assignment, order.level)
                write_record(record, order.out)
        yield submission, what, record
