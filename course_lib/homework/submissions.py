"""What students handed in: finding it, reading it with care, and choosing what counts.

Layouts that are understood, with ``DIR`` the folder given or a folder ``submitted`` in it:
``DIR/STUDENT/ASSIGNMENT/NOTEBOOK.ipynb`` (nbgrader's), ``DIR/STUDENT/.../NOTEBOOK.ipynb``, and
``DIR/STUDENT.ipynb``. A student is a folder's or file's name. Links are not followed, nothing is
unpacked, and no file is larger than 20 MB.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from course_lib.homework.notebook import SIZE_LIMIT, HomeworkError

_CELL_LIMIT, _FILES_LIMIT = 5000, 500
_SOURCE_LIMIT, _SOURCES_LIMIT = 500_000, 2_000_000  # one cell is left out, all are refused
_STATED = ("assignment", "notebook")
_SKIPPED = {".ipynb_checkpoints", ".pristine", "__MACOSX"}
_ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".tar", ".7z", ".rar", ".zst")


@dataclass(frozen=True)
class File:
    """One file that a student handed in, and when: seconds since 1970."""

    path: str
    time: float
    assignment: str = ""  # where the folders name it


@dataclass
class Submission:
    """All that one student handed in for one assignment."""

    student: str
    assignment: str
    files: list[File] = field(default_factory=list)


def find(folder: str | Path, assignments: Iterable[str]) -> list[Submission]:
    """All submissions below a folder, by student; what is wrong with them is found when read.

    A file whose assignment no folder names belongs to every assignment, until it is read.
    """
    top, known = Path(folder), list(assignments)
    if not top.is_dir():
        raise HomeworkError(f"There is no folder {top}.")
    top = top / "submitted" if (top / "submitted").is_dir() else top
    found: dict[tuple[str, str], Submission] = {}
    for entry in sorted(os.scandir(top), key=lambda entry: entry.name):
        if entry.name in _SKIPPED:
            continue
        is_folder = entry.is_dir(follow_symlinks=False)
        if not is_folder and not entry.name.endswith(".ipynb") and not entry.is_symlink():
            continue
        student = entry.name if is_folder else entry.name.removesuffix(".ipynb")
        files = list(_files(entry.path, known)) if is_folder else [_file(entry.path, "")]
        if entry.name.startswith(".") and not files:  # .git, .DS_Store and the like
            continue
        for assignment in known:
            mine = [file for file in files if file.assignment in ("", assignment)]
            if mine or (not files and len(known) == 1):
                found[student, assignment] = Submission(student, assignment, mine)
    if not found:
        raise HomeworkError(
            f"{top} holds no submissions: a folder for each student, with the notebook in it."
        )
    return list(found.values())


def _files(folder: str, known: list[str]) -> Iterator[File]:
    count = 0
    for place, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        parts = Path(place).relative_to(folder).parts
        # Folders too deep or too many to be a hand-in are not looked into.
        if len(parts) > 5:
            folders[:] = []
        assignment = next((part for part in parts if part in known), "")
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        for name in sorted([*names, *links]):
            if name.endswith((".ipynb", *_ARCHIVES)) or name in links:
                count += 1
                if count > _FILES_LIMIT:
                    return
                yield _file(os.path.join(place, name), assignment)


def _file(path: str, assignment: str) -> File:
    try:
        time = os.lstat(path).st_mtime
    except OSError:
        time = 0.0
    try:  # nbgrader notes there when the assignment was handed in
        descriptor = _open(os.path.join(os.path.dirname(path), "timestamp.txt"))
        with os.fdopen(descriptor, encoding="ascii") as stream:
            words = stream.read(100).strip().removesuffix(" UTC")
        when = datetime.fromisoformat(words)
        time = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (OSError, ValueError, HomeworkError):
        pass
    return File(path, time, assignment)


def _open(path: str) -> int:
    """Open an ordinary file, and nothing that pretends to be one or makes us wait."""
    name = Path(path).name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        kind = "is a link to another file" if os.path.islink(path) else "cannot be opened"
        why = "" if os.path.islink(path) else f" ({error.strerror})"
        raise HomeworkError(f"{name} {kind}{why}: hand in the notebook itself.") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise HomeworkError(f"{name} is {kind}, not a file.")
    return descriptor


def read_bytes(path: str) -> bytes:
    """The bytes of a hand-in.

    Raises
    ------
    HomeworkError
        A link, no ordinary file, unreadable, an archive, or larger than 20 MB.
    """
    name = Path(path).name
    if name.endswith(_ARCHIVES):
        raise HomeworkError(f"{name} is an archive, which is not opened: hand in the notebook.")
    with os.fdopen(_open(path), "rb") as stream:
        # No more than there is: room is made for all that is asked for.
        raw = stream.read(min(os.fstat(stream.fileno()).st_size, SIZE_LIMIT) + 1)
    if len(raw) > SIZE_LIMIT:
        raise HomeworkError(
            f"{name} is larger than {SIZE_LIMIT // 10**6} MB: clear the outputs and save again."
        )
    return raw


def read_notebook(raw: bytes, name: str) -> Any:
    """The cells of a student's notebook of any version, with their sources, ids and names alone.

    Raises
    ------
    HomeworkError
        Empty, not text, not JSON, nested too deep, no notebook, too many cells, or too much in
        them.
    """
    import nbformat

    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise HomeworkError(f"{name} is not text in UTF-8, so it is not a notebook.") from None
    if not text.strip():
        raise HomeworkError(f"{name} is empty. Was it saved?")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise HomeworkError(
            f"{name} is not a notebook: its text is not JSON. It may be cut short."
        ) from None
    cells = content.get("cells") if isinstance(content, dict) else None
    if cells is None and isinstance(content, dict):  # versions 1 to 3
        sheets = content.get("worksheets")
        sheets = [s for s in sheets if isinstance(s, dict)] if isinstance(sheets, list) else None
        lists = [s.get("cells") for s in sheets or []]
        cells = [c for some in lists if isinstance(some, list) for c in some]
        cells = None if sheets is None else cells
    if not isinstance(cells, list):
        raise HomeworkError(f"{name} is JSON, but not a Jupyter notebook: it has no cells.")
    if len(cells) > _CELL_LIMIT:
        raise HomeworkError(f"{name} has {len(cells)} cells, more than {_CELL_LIMIT}.")
    kept = [clean for cell in cells if (clean := _cell(cell)) is not None]
    if sum(len(cell["source"]) for cell in kept) > _SOURCES_LIMIT:
        raise HomeworkError(
            f"{name} has more than {_SOURCES_LIMIT // 10**6} million letters in its cells, outputs "
            "not counted: hand in the notebook of the homework, with your answers."
        )
    course = _dict(_dict(content.get("metadata")).get("course"))
    stated = {key: course[key] for key in _STATED if isinstance(course.get(key), str)}
    return nbformat.from_dict({"metadata": {"course": stated}, "cells": kept})


def _dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _cell(cell: Any) -> dict[str, Any] | None:
    if not isinstance(cell, dict):
        return None
    source = cell.get("source", cell.get("input", ""))
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    if not isinstance(source, str) or len(source) > _SOURCE_LIMIT:
        return None
    name = _dict(_dict(cell.get("metadata")).get("nbgrader")).get("grade_id")
    number = cell.get("id")
    return {
        "cell_type": "code" if cell.get("cell_type") == "code" else "markdown",
        "id": number if isinstance(number, str) else "",
        "source": source.replace("\r\n", "\n").replace("\r", "\n"),
        "metadata": {"nbgrader": {"grade_id": name}} if isinstance(name, str) else {},
    }


def digest(files: list[File]) -> str:
    """A hash of all that was handed in, and when."""
    total = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.path):
        try:
            content = hashlib.sha256(read_bytes(file.path)).hexdigest()
        except (HomeworkError, OSError) as error:
            content = str(error)
        line = f"{Path(file.path).name}\0{file.assignment}\0{file.time}\0{content}\n"
        total.update(line.encode("utf-8", errors="surrogateescape"))
    return total.hexdigest()
