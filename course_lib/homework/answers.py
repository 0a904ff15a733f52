"""Take the answers, and nothing else, from a student's notebook into a pristine one.

An answer cell is found by nbgrader's ``grade_id``; where that is lost, by the cell's id; where that
is lost too, by the name that the cell defines. A cell that is still the stub gives way to another
one with an answer. Everything else in the student's notebook is left behind: check cells, other
cells, outputs, metadata.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from course_lib.homework.notebook import answer_names, defined_names, grade_id, role


@dataclass(frozen=True)
class Answer:
    """What was found for one answer cell: its source, and a remark when that needs saying."""

    source: str
    found: bool
    unchanged: bool
    remark: str = ""


def find_answers(student: Any, pristine: Any) -> dict[int, Answer]:
    """The student's source for each answer cell of the pristine notebook, by its index there."""
    names_of = functools.cache(lambda source: frozenset(defined_names(source)))
    return {
        index: _find(student, cell, names_of)
        for index, cell in enumerate(pristine.cells)
        if role(cell) in ("answer", "manual")
    }


def _find(student: Any, cell: Any, names_of: Callable[[str], frozenset[str]]) -> Answer:
    same_kind = [other for other in student.cells if other.cell_type == cell.cell_type]
    names = set(answer_names(cell)) if cell.cell_type == "code" else set()

    def searches() -> Iterator[tuple[str, list]]:
        yield "", [other for other in same_kind if grade_id(other) == grade_id(cell)]
        yield "", [other for other in same_kind if other.get("id") == cell.get("id")]
        # Last and not before: this reads code that anybody may have written.
        likely = [other for other in same_kind if any(name in other.source for name in names)]
        named = [other for other in likely if names & names_of(other.source)]
        yield f"found by the name {', '.join(sorted(names))}", named

    found = False
    for remark, candidates in searches():
        found = found or bool(candidates)
        written = [other.source for other in candidates if not _same(other.source, cell.source)]
        written = [source for source in written if source.strip()]
        if not written:
            continue
        if len({source.strip() for source in written}) > 1:
            remark = f"{len(written)} cells hold an answer; the last one counts"
        return Answer(written[-1], found=True, unchanged=False, remark=remark)
    remark = "" if found else "its answer cell is missing from your notebook"
    return Answer(cell.source, found=found, unchanged=True, remark=remark)


def _same(first: str, second: str) -> bool:
    return [line.rstrip() for line in first.strip().split("\n")] == [
        line.rstrip() for line in second.strip().split("\n")
    ]


def with_answers(pristine: Any, answers: dict[int, Answer]) -> Any:
    """A copy of the pristine notebook with the answers in their cells."""
    notebook = copy.deepcopy(pristine)
    for index, answer in answers.items():
        notebook.cells[index].source = answer.source
    return notebook
