"""Notebooks of homework: reading them, the roles of their cells, the questions they ask.

Metadata is nbgrader's, schema 3, so that nbgrader can use the same source. Ours stands beside it
under the key ``course``:

statement  ``{"question": "q03", "title": "...", "difficulty": "basic|standard|challenge",
           "see": "where to look"}``, on a locked markdown cell; it opens the question
answer     ``{"question": "q03"}``: a code cell with ``solution``, or a markdown cell with ``grade``
           and ``solution`` that is marked by hand; the release adds the names that it ``defines``
check      ``{"question": "q03"}``: a code cell with ``grade`` and ``points``
set-up     ``{"role": "setup", "cell_timeout": 60}``: runs where students' code runs and where
           checks run; the seconds that one cell may take
teacher    ``{"role": "teacher"}``: never released
given      ``{"role": "given"}``: code handed out on purpose, its lines are no leak
notebook   ``{"assignment": "02_tikhonov", "notebook": "02_tikhonov"}``, written by the release

The rubric of an answer that is marked by hand stands in its solution region, one line a step:
``- [2] the bound is proved for every rank``. The numbers add up to the cell's points.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIZE_LIMIT = 20_000_000
DIFFICULTIES = ("basic", "standard", "challenge")
_RUBRIC_LINE = re.compile(r"^\s*[-*]\s*\[(\d+(?:\.\d+)?)\]\s+(.+)$", re.MULTILINE)


class HomeworkError(Exception):
    """Something is wrong with the input; the message is a sentence for the user."""


@dataclass
class Question:
    """One question: its place, title and cells (indices into the notebook's cells)."""

    id: str
    number: int
    title: str
    difficulty: str
    see: str
    answers: list[int] = field(default_factory=list)
    manual: list[int] = field(default_factory=list)
    checks: list[int] = field(default_factory=list)


def read_notebook(path: str | Path) -> Any:
    """Read a notebook in any version as nbformat 4, whatever the byte order mark or line ends.

    Raises
    ------
    HomeworkError
        No such file, no ordinary file, larger than 20 MB, no JSON, cut short, no notebook.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise HomeworkError(f"There is no file {path}.")
        if not path.is_file():
            raise HomeworkError(f"{path} is not a file; give the notebook itself (.ipynb).")
        if path.stat().st_size > SIZE_LIMIT:
            raise HomeworkError(
                f"{path} is larger than {SIZE_LIMIT // 10**6} MB: clear the outputs and save again."
            )
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise HomeworkError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise HomeworkError(f"{path} is not text in UTF-8, so it is not a notebook.") from None
    return parse_notebook(text, str(path))


def parse_notebook(text: str, name: str) -> Any:
    """Turn the text of a notebook into nbformat 4; ``name`` stands in messages."""
    import nbformat

    if not text.strip():
        raise HomeworkError(f"{name} is empty. Was it saved?")
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise HomeworkError(
            f"{name} is not a notebook: its text is not JSON{where}. It may be cut short; open it"
            " in Jupyter, save it and try again."
        ) from None
    if not isinstance(content, dict) or not ("cells" in content or "worksheets" in content):
        raise HomeworkError(f"{name} is JSON, but not a Jupyter notebook: it has no cells.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            notebook = nbformat.reads(text, as_version=4)
            for cell in notebook.cells:
                _tidy(cell)
    except Exception:  # nbformat answers damaged notebooks with errors of any type
        raise HomeworkError(
            f"{name} is JSON, but not a Jupyter notebook: a cell is damaged."
        ) from None
    return notebook


def _tidy(cell: Any) -> None:
    source = cell.source
    cell.source = source.replace("\r\n", "\n").replace("\r", "\n")
    if not isinstance(cell.metadata, dict):
        raise TypeError("metadata")


def write_notebook(notebook: Any, path: Path) -> None:
    """Write a notebook as Jupyter does: one line of a source a string, indent 1, final newline."""
    path.write_text(notebook_text(notebook), encoding="utf-8")


def notebook_text(notebook: Any) -> str:
    """The text of a notebook; equal notebooks give equal text."""
    import nbformat

    return nbformat.writes(notebook, version=4).rstrip("\n") + "\n"


def sha256(text: str) -> str:
    """The hash by which releases and answers are recognised."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


# Cells --------------------------------------------------------------------------------------------


def nbgrader(cell: Any) -> dict:
    """The cell's nbgrader metadata, or an empty dict."""
    found = cell.metadata.get("nbgrader", {})
    return found if isinstance(found, dict) else {}


def course(cell: Any) -> dict:
    """The cell's (or notebook's) own metadata of the course, or an empty dict."""
    found = cell.metadata.get("course", {})
    return found if isinstance(found, dict) else {}


def grade_id(cell: Any) -> str:
    """nbgrader's name of the cell, or an empty string."""
    return str(nbgrader(cell).get("grade_id", ""))


def role(cell: Any) -> str:
    """``answer``, ``manual``, ``check``, what ``course.role`` says, else ``text`` or ``code``."""
    meta = nbgrader(cell)
    if meta.get("solution"):
        return "answer" if cell.cell_type == "code" else "manual"
    if meta.get("grade") and cell.cell_type == "code":
        return "check"
    return course(cell).get("role") or ("code" if cell.cell_type == "code" else "text")


def points(cell: Any) -> float:
    """The points of a graded cell."""
    return float(nbgrader(cell).get("points", 0))


def rubric(cell: Any) -> list[dict[str, Any]]:
    """The steps of an answer marked by hand: ``- [points] what earns them``, from its source."""
    return [
        {"points": float(worth), "text": text.strip()}
        for worth, text in _RUBRIC_LINE.findall(cell.source)
    ]


def defined_names(source: str) -> list[str]:
    """The functions, classes and variables that a code cell defines at its top level.

    Examples
    --------
    >>> defined_names("def f(x):\\n    y = x\\n    return y\\n\\na, b = 1, 2")
    ['f', 'a', 'b']
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a backslash in a string, for instance
            body = ast.parse(_without_magics(source)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return re.findall(r"^def[ \t]+(\w+)", source, re.MULTILINE)
    names = []
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(statement.name)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in targets:
                names += [node.id for node in ast.walk(target) if isinstance(node, ast.Name)]
    return names


def answer_names(cell: Any) -> list[str]:
    """The names that an answer cell has to define: what the release wrote down, or its source."""
    return list(course(cell).get("defines") or defined_names(cell.source))


def _without_magics(source: str) -> str:
    return "\n".join("pass" if re.match(r"[%!?]", line) else line for line in source.split("\n"))


def questions(notebook: Any) -> list[Question]:
    """The questions in the order of the notebook, with the places of their cells."""
    found: dict[str, Question] = {}
    for index, cell in enumerate(notebook.cells):
        meta = course(cell)
        name = meta.get("question")
        if not name:
            continue
        if name not in found:
            found[name] = Question(
                id=str(name),
                number=len(found) + 1,
                title=str(meta.get("title", name)),
                difficulty=str(meta.get("difficulty", "")),
                see=str(meta.get("see", "")),
            )
        place = {"answer": "answers", "manual": "manual", "check": "checks"}.get(role(cell))
        if place:
            getattr(found[name], place).append(index)
    return list(found.values())


def number_text(value: float) -> str:
    """Points without a needless ``.0``.

    Examples
    --------
    >>> number_text(2.0), number_text(2.5)
    ('2', '2.5')
    """
    return f"{value:g}"
