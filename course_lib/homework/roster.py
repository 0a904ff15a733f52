"""``course export --roster``: marks written into a gradebook that Canvas or Moodle exported.

Both know a student by numbers that they gave out themselves, so what they exported is the safest
thing to hand back. Written are the columns that name a student, those of our assignments, and the
lines of students who have a mark: no other mark can change. The rules are those of the importers,
``lib/gradebook_importer.rb`` of Canvas and ``grade/import/csv/classes/load_data.php`` of Moodle.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from course_lib.homework.gradebook import csv_text, is_formula, points_text
from course_lib.homework.notebook import HomeworkError

#: Columns that hold one student's name on the platform, the surest first.
_KEYS = {
    "canvas": ("SIS Login ID", "SIS User ID", "Integration ID", "ID"),
    "moodle": ("Username", "ID number", "Email address"),
}
_FAMILY_NAME = ("LastName", "Last name", "Surname")
_FIRST_NAME = ("FirstName", "First name")
_Sums = Mapping[tuple[str, str], tuple[float, float]]


@dataclass
class _Roster:
    """An exported gradebook: its header, its students, and Canvas's line of points."""

    form: str
    header: list[str]
    students: list[list[str]]
    most: list[str]

    def at(self, *names: str) -> int | None:
        """The place of the first of these columns that is there."""
        return next((self.header.index(name) for name in names if name in self.header), None)


def fill(
    path: str | Path, form: str, sums: _Sums, columns: Mapping[str, str], by: str = ""
) -> tuple[str, list[str]]:
    """The exported gradebook with our marks, as CSV, and what a teacher has to know about it.

    ``columns`` names the column of an assignment where it has another name on the platform, ``by``
    the column to find students by.

    Raises
    ------
    HomeworkError
        The file is no such gradebook, or it has no column for any assignment.
    """
    roster = _read(Path(path), form)
    remarks: list[str] = []
    ours = _assignment_columns(roster, sorted({a for _, a in sums}), columns, remarks)
    places = _find_students(roster, sorted({s for s, a in sums if a in ours}), by, remarks)
    kept = _identity(roster, by)
    time = _time_column(roster) if form == "moodle" else []
    chosen = [*kept, *ours.values(), *time]
    lines = [[roster.header[k] for k in chosen]]
    if roster.most:
        lines.append([roster.most[k] for k in chosen])
        _compare_points(roster, ours, sums, remarks)
    for student, line in places.items():
        row = list(roster.students[line])
        keys = [row[k] for k in kept if roster.header[k] in (*_KEYS["moodle"], by)]
        if form == "moodle" and any(map(is_formula, keys)):
            remarks.append(f"{student}: left out, a spreadsheet would take the id for a formula.")
            continue
        for assignment, column in ours.items():
            if (student, assignment) in sums:
                points = points_text(sums[student, assignment][0])
                row[column] = _new_mark(student, assignment, row[column], points, remarks)
        lines.append([row[k] for k in chosen])
    count = len(lines) - 1 - bool(roster.most)
    remarks.append(f"Marks for {count} of the {len(roster.students)} students of the roster.")
    return csv_text(lines), remarks


# The file -----------------------------------------------------------------------------------------


def _read(path: Path, form: str) -> _Roster:
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = max(",;\t", key=first.count)
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise HomeworkError(f"{path} cannot be read as CSV in UTF-8: {error}.") from None
    header = [cell.strip() for cell in lines[0]] if lines else []
    lines = [line + [""] * (len(header) - len(line)) for line in lines[1:] if any(line)]
    if any(len(line) > len(header) for line in lines):
        raise HomeworkError(f"{path}: a line has more cells than the header.")
    if form == "moodle":
        return _Roster(form, header, lines, [])
    named = header[:1] == ["Student"] or header[:2] == ["LastName", "FirstName"]
    if not named or not {"ID", "Section"} <= set(header):
        raise HomeworkError(
            f"{path} is no gradebook exported from Canvas: its header must begin with Student and "
            f"have ID and Section, not {', '.join(header[:5])}."
        )
    number = header.index("ID")
    students = [line for line in lines if line[number].strip().isdigit()]
    most = next((line for line in lines if "Points Possible" in line[0]), [])
    return _Roster(form, header, students, most)


def _identity(roster: _Roster, by: str) -> list[int]:
    """The columns that say who a line is about."""
    if roster.form == "canvas":  # all up to Section: Canvas refuses a header without them
        return list(range(roster.header.index("Section") + 1))
    names = (*_KEYS["moodle"], *_FIRST_NAME, *_FAMILY_NAME, by)
    return [k for k, name in enumerate(roster.header) if name in names]


def _time_column(roster: _Roster) -> list[int]:
    """Moodle's last column, the time of the export, by which it refuses to undo later marks."""
    times = [line[-1] for line in roster.students]
    return [len(roster.header) - 1] if all(re.fullmatch(r"\d{9,11}", t) for t in times) else []


def _title(form: str, header: str) -> str:
    """A column's name as a teacher sees it: without Canvas's number, Moodle's kind and display."""
    if form == "canvas":
        return re.sub(r" \(\d+\)$", "", header)
    return re.sub(r" \([^()]*\)$", "", re.sub(r"^[^:]+: ", "", header))


def _assignment_columns(
    roster: _Roster, assignments: list[str], columns: Mapping[str, str], remarks: list[str]
) -> dict[str, int]:
    for name in sorted(set(columns) - set(assignments)):
        raise HomeworkError(f"--column names {name}, but no homework of this name was graded.")
    identity = _identity(roster, "")
    others = {k: name for k, name in enumerate(roster.header) if k not in identity}
    found: dict[str, int] = {}
    for assignment in assignments:
        wanted = columns.get(assignment, assignment)
        mine = [k for k, name in others.items() if wanted == name]
        mine = mine or [k for k, name in others.items() if wanted == _title(roster.form, name)]
        if len(mine) > 1:
            raise HomeworkError(f"The roster has {len(mine)} columns {wanted}.")
        if mine:
            found[assignment] = mine[0]
        else:
            remarks.append(f"{assignment}: left out, the roster has no column {wanted}.")
    if not found:
        raise HomeworkError(
            f"{remarks[-1] if remarks else 'Nothing was graded.'} It has the columns "
            f"{', '.join(others.values())}. Name one: --column ASSIGNMENT=COLUMN."
        )
    if len(set(found.values())) < len(found):
        raise HomeworkError("Two assignments cannot be written into the same column.")
    return found


# Students -----------------------------------------------------------------------------------------


def _find_students(
    roster: _Roster, students: Iterable[str], by: str, remarks: list[str]
) -> dict[str, int]:
    """The line of each student; whoever is not found, or not for certain, is named and left out."""
    keys = (by,) if by else _KEYS[roster.form]
    exact, short = (_index(roster, keys, part) for part in (lambda v: v, _before_at))
    named: dict[str, set[int]] = defaultdict(set)
    if not by:
        for line, row in enumerate(roster.students):
            for name in _names(roster, row):
                named[name.casefold()].add(line)
    if not exact and not named:
        raise HomeworkError(
            f"The roster has no column {' or '.join(keys)}, but {', '.join(roster.header)}. Name "
            "the one that the folders of the submissions are called by: --by COLUMN."
        )
    found: dict[str, int] = {}
    taken: dict[int, list[str]] = defaultdict(list)
    for student in students:
        key = student.strip().casefold()
        lines = exact.get(key) or short.get(key) or named.get(key) or set()
        if len(lines) == 1:
            found[student] = next(iter(lines))
            taken[found[student]].append(student)
        else:
            many = f"{len(lines)} lines of the roster fit" if lines else "not in the roster"
            remarks.append(f"{student}: left out, {many}.")
    for same in taken.values():
        if len(same) > 1:
            remarks.append(f"{', '.join(same)}: left out, all are the same line of the roster.")
            for student in same:
                del found[student]
    return found


def _index(roster: _Roster, keys: Iterable[str], part) -> dict[str, set[int]]:
    index: dict[str, set[int]] = defaultdict(set)
    for column in (roster.header.index(key) for key in keys if key in roster.header):
        for line, row in enumerate(roster.students):
            if value := part(row[column].strip()).casefold():
                index[value].add(line)
    return dict(index)


def _before_at(value: str) -> str:
    return value.partition("@")[0] if "@" in value else ""


def _names(roster: _Roster, row: list[str]) -> list[str]:
    family, first = roster.at(*_FAMILY_NAME), roster.at(*_FIRST_NAME)
    if family is not None and first is not None:
        return [f"{row[first]} {row[family]}", f"{row[family]}, {row[first]}"]
    if roster.form != "canvas":
        return []
    name = row[0].strip()
    family_name, comma, first_name = name.partition(", ")
    return [name, f"{first_name} {family_name}"] if comma else [name]


# Marks --------------------------------------------------------------------------------------------


def _number(text: str) -> float | None:
    try:
        return float(text.strip().replace(",", "."))
    except ValueError:
        return None


def _new_mark(student: str, assignment: str, old: str, new: str, remarks: list[str]) -> str:
    """The mark to write; a mark that is there is never replaced without a word."""
    old = old.strip()
    if old.upper() in ("EX", "N/A"):
        remarks.append(f"{student}, {assignment}: {old} stays, {new} is not written.")
        return old
    before = _number(old)
    if old not in ("", "-") and (before is None or abs(before - float(new)) > 0.005):
        remarks.append(f"{student}, {assignment}: {old} becomes {new}.")
    return new


def _compare_points(
    roster: _Roster, ours: Mapping[str, int], sums: _Sums, remarks: list[str]
) -> None:
    for assignment, column in ours.items():
        most = max(most for (_, a), (_, most) in sums.items() if a == assignment)
        theirs = roster.most[column].strip()
        if _number(theirs) != most:
            remarks.append(
                f"{assignment}: Canvas says {theirs or 'nothing'} for the points possible, the "
                f"homework has {points_text(most)}. Change it in Canvas."
            )
