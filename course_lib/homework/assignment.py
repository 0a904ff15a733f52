"""An assignment as the grader needs it: source, stubs, set-up, limits, deadline.

The bundle is what ``course release`` wrote. Beside the source may lie ``assignment.toml``, which
the release copies from the folder of the source::

    deadline = 2026-11-30T23:59:00+01:00   # without a zone: this machine's

    [late]
    points_per_day = 2       # each day that begins costs 2 points ...
    factor_per_day = 0.9     # ... or one tenth of what is left; give one of the two
    days = 7                 # later than that, nothing counts

    [limits]                 # what the answers to one question may use
    seconds = 60
    memory_mb = 2048
    processes = 32
    output_mb = 2
    files_mb = 64
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from course_lib.homework import notebook as nb
from course_lib.homework.notebook import HomeworkError
from course_lib.homework.release import SETTINGS, release_notebook
from course_lib.homework.sandbox import Limits

_LATE = {"points_per_day", "factor_per_day", "days"}


@dataclass
class Task:
    """One notebook of an assignment: the instructor's source, and what students were handed."""

    name: str
    source: Any
    pristine: Any
    questions: list[nb.Question]

    @property
    def set_up(self) -> list[tuple[str, str]]:
        """The set-up cells, which run on both sides."""
        return self.cells(lambda _, cell: nb.role(cell) == "setup")

    def cells(self, wanted: Any) -> list[tuple[str, str]]:
        """Name and source of the code cells for which ``wanted(index, cell)`` holds."""
        return [
            (nb.grade_id(cell) or f"cell {index}", cell.source)
            for index, cell in enumerate(self.source.cells)
            if cell.cell_type == "code" and wanted(index, cell)
        ]


@dataclass
class Assignment:
    """An assignment of a bundle."""

    name: str
    tasks: dict[str, Task]
    limits: Limits
    deadline: float | None = None
    late: dict[str, float] = field(default_factory=dict)
    digest: str = ""


def read_bundle(folder: str | Path) -> dict[str, Assignment]:
    """All assignments of a bundle.

    Raises
    ------
    HomeworkError
        The folder is no bundle, or a source or an assignment file in it is wrong.
    """
    top = Path(folder) / "source"
    names = sorted(path.name for path in top.iterdir() if path.is_dir()) if top.is_dir() else []
    if not names:
        raise HomeworkError(
            f"{folder} is no bundle: it has no folder source/. `course release SOURCE --out DIR` "
            "makes one; give its DIR."
        )
    return {name: _assignment(name, top / name) for name in names}


def _assignment(name: str, folder: Path) -> Assignment:
    tasks, text = {}, ""
    seconds = 0.0
    for path in sorted(folder.glob("*.ipynb")):
        source = nb.read_notebook(path)
        text += nb.notebook_text(source)
        pristine = release_notebook(source)
        tasks[path.stem] = Task(path.stem, source, pristine, nb.questions(source))
        stated = [nb.course(cell).get("cell_timeout") or 0 for cell in source.cells]
        seconds = max(seconds, *stated)
    if not tasks:
        raise HomeworkError(f"{folder} holds no notebook.")
    place = folder / SETTINGS
    settings = read_settings(place) if place.is_file() else {}
    stated_limits = {"seconds": seconds} if seconds else {}
    limits = Limits(**{**stated_limits, **settings.get("limits", {})})
    return Assignment(
        name=name,
        tasks=tasks,
        limits=limits,
        deadline=settings["deadline"].timestamp() if "deadline" in settings else None,
        late=settings.get("late", {}),
        digest=nb.sha256(text + repr(sorted(asdict(limits).items()))),
    )


def read_settings(path: Path) -> dict[str, Any]:
    """The contents of an assignment file.

    Raises
    ------
    HomeworkError
        It is no TOML, or an entry is unknown or of the wrong kind.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise HomeworkError(f"{path} cannot be read: {error}.") from None
    late, limits = settings.get("late", {}), settings.get("limits", {})
    if not isinstance(late, dict) or not isinstance(limits, dict):
        raise HomeworkError(f"{path}: [late] and [limits] must be tables.")
    known = {
        "": ({"deadline", "late", "limits"}, settings),
        "late.": (_LATE, late),
        "limits.": ({entry.name for entry in fields(Limits)}, limits),
    }
    for where, (names, table) in known.items():
        for key in table:
            if key not in names:
                raise HomeworkError(
                    f"{path}: there is no entry {where}{key}; known are {', '.join(sorted(names))}."
                )
    if "deadline" in settings and not isinstance(settings["deadline"], datetime):
        raise HomeworkError(f"{path}: deadline must be a date and a time: 2026-11-30T23:59:00.")
    for key, value in late.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
            raise HomeworkError(f"{path}: late.{key} must be a number of at least 0.")
    if {"points_per_day", "factor_per_day"} <= set(late) or late.get("factor_per_day", 0) > 1:
        raise HomeworkError(
            f"{path}: [late] takes points_per_day or factor_per_day (at most 1), not both."
        )
    return settings


def lateness(time: float, deadline: float | None) -> int:
    """How many days after the deadline have begun; 0 when it is in time."""
    return 0 if deadline is None or time <= deadline else math.ceil((time - deadline) / 86400)


def late_deduction(points: float, days: int, policy: dict[str, float]) -> float:
    """The points that are taken off for being late.

    Examples
    --------
    >>> late_deduction(10.0, 2, {"factor_per_day": 0.9}), late_deduction(10.0, 2, {})
    (1.9, 0.0)
    """
    if not days:
        return 0.0
    if days > policy.get("days", math.inf):
        return points
    kept = points * policy.get("factor_per_day", 1.0) ** days
    kept -= policy.get("points_per_day", 0.0) * days
    return round(points - max(0.0, kept), 2)
