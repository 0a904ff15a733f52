"""``course release``: from the source of a homework to what students get, and what they do not.

The layout is that of an nbgrader course folder::

    DIR/release/02_tikhonov/02_tikhonov.ipynb            hand out this folder
    DIR/release/02_tikhonov/.pristine/02_tikhonov.ipynb  the same, for `course check`
    DIR/release/02_tikhonov/.pristine/manifest.json      its hash
    DIR/source/02_tikhonov/02_tikhonov.ipynb             keep: solutions, hidden checks with seeds
    DIR/instructor/02_tikhonov.json                      keep: questions, points, rubrics, hashes
    DIR/instructor/secret                                keep: readable by its owner only

nbgrader finds ``source/`` and ``release/`` where it looks for them. Nothing is written before every
notebook has passed every test of `build`.
"""

from __future__ import annotations

import ast
import copy
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from course_lib.homework import answers as answer_cells
from course_lib.homework import notebook as nb
from course_lib.homework.contract import derive_seed
from course_lib.homework.execute import CellRun, run_notebooks
from course_lib.homework.notebook import HomeworkError

SETTINGS = "assignment.toml"
TEXT_STUB = "YOUR ANSWER HERE"
_MARK = "# NBVAL_CHECK_OUTPUT"
_HIDDEN_RNG = re.compile(r"hidden_rng\(\s*[\"']([^\"']+)[\"']\s*\)")
_REGIONS = {"SOLUTION": ("answer", "manual"), "HIDDEN TESTS": ("check",)}


@dataclass
class Bundle:
    """One assignment, ready to be written: notebooks by name, and the instructor's manifest."""

    assignment: str
    released: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    settings: Path | None = None  # the assignment file beside the source


def find_sources(paths: Sequence[str | Path]) -> dict[str, list[Path]]:
    """Assignments and their source notebooks; a folder stands for all notebooks below it.

    The assignment has the name of the folder that holds the notebook.
    """
    found: dict[str, list[Path]] = {}
    for entry in map(Path, paths):
        notebooks = [entry]
        if entry.is_dir():
            below = sorted(entry.rglob("*.ipynb"))
            hidden = [
                p for p in below if any(part[0] == "." for part in p.relative_to(entry).parts)
            ]
            notebooks = [path for path in below if path not in hidden]
        if not notebooks:
            raise HomeworkError(f"{entry} holds no notebook (.ipynb).")
        for path in notebooks:
            found.setdefault(path.resolve().parent.name, []).append(path)
    return found


def build(assignment: str, paths: Sequence[Path], secret: bytes) -> Bundle:
    """Make one assignment's release and prove it.

    Raises
    ------
    HomeworkError
        Naming every problem found: metadata that is missing, a solution line that leaks, a check
        cell that ends in a value, a source that does not score full marks, a release that does not
        score 0, or expected outputs that the released checks do not print.
    """
    bundle = Bundle(assignment, settings=paths[0].parent / SETTINGS)
    problems: list[str] = []
    for path in paths:
        source = with_seeds(nb.read_notebook(path), secret)
        found = source_problems(source)
        if not found:
            released = release_notebook(source)
            released.metadata["course"] = {"assignment": assignment, "notebook": path.stem}
            found = leaks(source, released)
            bundle.sources[path.stem], bundle.released[path.stem] = source, released
        problems += [f"{path.name}: {problem}" for problem in found]
    if problems:
        raise HomeworkError(_list_problems(assignment, problems))
    problems = _score(bundle)
    if problems:
        raise HomeworkError(_list_problems(assignment, problems))
    bundle.manifest = _manifest(bundle)
    return bundle


def _list_problems(assignment: str, problems: list[str]) -> str:
    return f"{assignment} is not released:\n" + "\n".join(f"  - {entry}" for entry in problems)


# Taking things out --------------------------------------------------------------------------------


def _split(source: str, kind: str) -> tuple[list[str], list[str], bool]:
    """Lines outside and inside the regions ``### BEGIN kind`` ... ``### END kind``.

    A region leaves one line ``\\0`` and its indentation among the outside lines.
    """
    outside, inside, open_region, any_region = [], [], False, False
    for line in source.split("\n"):
        if f"### BEGIN {kind}" in line:
            if open_region:
                raise HomeworkError(f"a second `### BEGIN {kind}` before `### END {kind}`")
            open_region = any_region = True
            outside.append("\0" + line[: len(line) - len(line.lstrip())])
        elif f"### END {kind}" in line:
            if not open_region:
                raise HomeworkError(f"`### END {kind}` without `### BEGIN {kind}`")
            open_region = False
        else:
            (inside if open_region else outside).append(line)
    if open_region:
        raise HomeworkError(f"`### BEGIN {kind}` without `### END {kind}`")
    return outside, inside, any_region


def _code_stub(number: int) -> list[str]:
    return [
        "# YOUR CODE HERE",
        f'raise NotImplementedError("Question {number} is not answered yet: '
        'replace this line by your solution.")',
    ]


def stubbed(cell: Any, number: int) -> str:
    """The source of an answer cell with its solution replaced by a stub that says so."""
    stub = _code_stub(number) if cell.cell_type == "code" else [TEXT_STUB]
    outside, _, any_region = _split(cell.source, "SOLUTION")
    if not any_region:
        return "\n".join(stub)
    lines = []
    for line in outside:
        lines += [line[1:] + entry for entry in stub] if line.startswith("\0") else [line]
    return "\n".join(lines)


def without_hidden(cell: Any) -> str:
    """The source of a check cell without its hidden checks."""
    outside, _, _ = _split(cell.source, "HIDDEN TESTS")
    return "\n".join(line for line in outside if not line.startswith("\0")).rstrip("\n")


def release_notebook(source: Any) -> Any:
    """The notebook that students get: no solutions, hidden checks, rubrics or teacher's cells.

    Visible checks keep their expected outputs. Check cells whose code is all hidden are marked
    ``course.hidden``. Given, check and statement cells are locked as nbgrader locks them.
    """
    released = copy.deepcopy(source)
    number = {question.id: question.number for question in nb.questions(source)}
    released.cells = [cell for cell in released.cells if nb.role(cell) != "teacher"]
    for cell in released.cells:
        kind = nb.role(cell)
        if kind in ("answer", "manual"):
            if kind == "answer":
                cell.metadata["course"] = {**nb.course(cell), "defines": nb.answer_names(cell)}
            cell.source = stubbed(cell, number[nb.course(cell)["question"]])
            cell.metadata["deletable"] = False
        elif kind == "check":
            cell.source = without_hidden(cell)
            if not _code_lines(cell.source):
                cell.metadata["course"] = {**nb.course(cell), "hidden": True}
            cell.metadata["deletable"] = cell.metadata["editable"] = False
        elif nb.nbgrader(cell).get("locked"):
            cell.metadata["deletable"] = cell.metadata["editable"] = False
        if cell.cell_type == "code" and not _expects_output(cell):
            cell.outputs, cell.execution_count = [], None
    return released


def _expects_output(cell: Any) -> bool:
    return nb.role(cell) != "answer" and _MARK in cell.source.split("\n")


def _code_lines(source: str) -> list[str]:
    lines = [line.strip() for line in source.split("\n")]
    return [line for line in lines if line and not line.startswith("#")]


def with_seeds(source: Any, secret: bytes) -> Any:
    """Write the release's seeds into the hidden regions, for graders that know no secret."""
    seeded = copy.deepcopy(source)
    for cell in seeded.cells:
        if nb.role(cell) != "check":
            continue
        lines = []
        for line in cell.source.split("\n"):
            lines.append(line)
            if "### BEGIN HIDDEN TESTS" in line:
                region = cell.source.partition(line)[2].partition("### END HIDDEN TESTS")[0]
                names = dict.fromkeys(_HIDDEN_RNG.findall(region))
                lines += ["from course_lib.homework import set_seed", ""] if names else []
                lines += [f'set_seed("{name}", {derive_seed(secret, name)})' for name in names]
        cell.source = "\n".join(lines)
    return seeded


# Refusals that need no run ------------------------------------------------------------------------


def source_problems(source: Any) -> list[str]:
    """What is wrong with a source's metadata, regions and check cells, one sentence each."""
    problems, seen = [], set()
    asked = nb.questions(source)
    for question in asked:
        if question.difficulty not in nb.DIFFICULTIES:
            problems.append(
                f"question {question.id} has difficulty {question.difficulty!r}; "
                f"expected one of {', '.join(nb.DIFFICULTIES)}."
            )
        if not (question.answers or question.manual):
            problems.append(f"question {question.id} has no answer cell.")
        if question.answers and not question.checks:
            problems.append(f"question {question.id} has code to write and no check cell.")
    if not asked:
        problems.append("it asks no question (no cell has course.question).")
    for index, cell in enumerate(source.cells):
        name = nb.grade_id(cell) or f"cell {index}"
        try:
            for kind in _REGIONS:
                _, _, found = _split(cell.source, kind)
                if found and nb.role(cell) not in _REGIONS[kind]:
                    problems.append(f"{name}: a {kind} region stands in a {nb.role(cell)} cell.")
        except HomeworkError as error:
            problems.append(f"{name}: {error}.")
            continue
        problems += [f"{name}: {entry}" for entry in _cell_problems(cell, seen)]
    return problems


def _cell_problems(cell: Any, seen: set[str]) -> list[str]:
    meta, kind = nb.nbgrader(cell), nb.role(cell)
    problems = []
    if meta and (meta.get("grade") or meta.get("solution") or meta.get("locked")):
        if meta.get("schema_version") != 3:
            problems.append("nbgrader's schema_version must be 3.")
        if not nb.grade_id(cell):
            problems.append("it has no grade_id.")
        elif nb.grade_id(cell) in seen:
            problems.append("its grade_id is used twice.")
        seen.add(nb.grade_id(cell))
    if kind not in ("answer", "manual", "check"):
        return problems
    if not nb.course(cell).get("question"):
        problems.append("course.question is missing, so it belongs to no question.")
    if meta.get("grade") and not nb.points(cell) > 0:
        problems.append("it is graded and worth no points.")
    if kind == "manual":
        _, inside, _ = _split(cell.source, "SOLUTION")
        worth = sum(step["points"] for step in nb.rubric(cell))
        if worth != nb.points(cell) or not inside:
            problems.append(
                f"its rubric (lines `- [points] text` in the solution region) adds up to "
                f"{nb.number_text(worth)}, the cell is worth {nb.number_text(nb.points(cell))}."
            )
    if kind == "check":
        for source in dict.fromkeys((cell.source, without_hidden(cell))):
            if ends_in_value(source):
                problems.append(
                    "it ends in a value; nbgrader reads a bare number at the end of a check as "
                    "partial credit. End it with a check function, an assert or a print."
                )
                break
    return problems


def ends_in_value(source: str) -> bool:
    """Whether a cell's last statement is an expression that is not a call.

    Calls are judged by what they return when the cell runs.

    Examples
    --------
    >>> ends_in_value("check()"), ends_in_value("score = 1\\nscore")
    (False, True)
    """
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False
    last = body[-1] if body else None
    return isinstance(last, ast.Expr) and not isinstance(last.value, ast.Call | ast.Await)


def _nontrivial(line: str) -> bool:
    """A line that nobody writes by chance: 16 characters or more, no comment, no import."""
    text = _squeezed(line)
    return len(text) >= 16 and not text.startswith(("#", "import", "from"))


def _squeezed(line: str) -> str:
    return re.sub(r"\s+", "", line)


def leaks(source: Any, released: Any) -> list[str]:
    """Lines of solutions, rubrics and hidden checks that stand anywhere in the release.

    Lines are compared without spaces. Searched are sources, outputs, attachments and metadata of
    all released cells, for each line of 16 characters or more that is no comment and no import,
    and for the solution as a whole. Not counted are lines that a set-up cell or a cell with
    ``course.role == "given"`` hands out on purpose, and hidden lines that a visible check shows.
    """
    given = {
        _squeezed(line)
        for cell in source.cells
        if nb.role(cell) in ("given", "setup")
        for line in cell.source.split("\n")
    }
    places = [
        (nb.grade_id(cell) or f"cell {index}", nb.role(cell), _squeezed(_all_text(cell)))
        for index, cell in enumerate(released.cells)
        if nb.role(cell) not in ("given", "setup")
    ]
    places.append(("the notebook's metadata", "", _squeezed(json.dumps(released.metadata))))
    problems = []
    for cell in source.cells:
        secret = _secret_lines(cell)
        whole = "\n".join(secret)
        wanted = [line for line in secret if _nontrivial(line)]
        wanted += [whole] if len(_squeezed(whole)) >= 12 else []
        for line in wanted:
            text = _squeezed(line)
            if text in given:
                continue
            for name, kind, content in places:
                if nb.role(cell) == "check" and kind == "check":
                    continue
                if text in content:
                    problems.append(
                        f"a line of {nb.grade_id(cell) or 'a teacher cell'} leaks into {name}: "
                        f"`{line.strip()[:60]}`."
                    )
    return list(dict.fromkeys(problems))


def _secret_lines(cell: Any) -> list[str]:
    kind = nb.role(cell)
    if kind == "teacher":
        return cell.source.split("\n")
    if kind in ("answer", "manual"):
        _, inside, any_region = _split(cell.source, "SOLUTION")
        return inside if any_region else cell.source.split("\n")
    if kind == "check":
        return _split(cell.source, "HIDDEN TESTS")[1]
    return []


def _all_text(cell: Any) -> str:
    parts = [cell.source, json.dumps(cell.metadata), json.dumps(cell.get("attachments", {}))]
    for output in cell.get("outputs", []):
        parts += [str(output.get("text", "")), str(output.get("data", ""))]
        parts += [str(output.get("evalue", "")), str(output.get("traceback", ""))]
    return "\n".join(parts)


# Refusals that need a run -------------------------------------------------------------------------


def _score(bundle: Bundle) -> list[str]:
    """Run source, untouched release and answered release; say what does not come out as it must."""
    runs: dict[str, Any] = {}
    for name, source in bundle.sources.items():
        visible = [cell for cell in source.cells if nb.role(cell) != "teacher"]
        stubs = answer_cells.find_answers(bundle.released[name], bundle.released[name])
        solved = answer_cells.find_answers(source, bundle.released[name])
        untouched = copy.deepcopy(source)
        untouched.cells = visible
        runs[f"{name}-source"] = source
        runs[f"{name}-untouched"] = answer_cells.with_answers(untouched, stubs)
        runs[f"{name}-answered"] = answer_cells.with_answers(bundle.released[name], solved)
    seen = run_notebooks(runs)
    problems: list[str] = []
    for name in bundle.sources:
        problems += _full_marks_problems(
            name, "the source", runs[f"{name}-source"], seen[f"{name}-source"]
        )
        problems += _full_marks_problems(
            name,
            "the released notebook with the right answers",
            runs[f"{name}-answered"],
            seen[f"{name}-answered"],
        )
        problems += _zero_problems(name, runs[f"{name}-untouched"], seen[f"{name}-untouched"])
    return problems


def _full_marks_problems(
    name: str, what: str, notebook: Any, runs: dict[int, CellRun]
) -> list[str]:
    problems = []
    for index, run in runs.items():
        cell = notebook.cells[index]
        where = f"{name}: {what}, {nb.grade_id(cell) or f'cell {index}'}"
        if run.state == "raised":
            problems.append(f"{where}: does not score full marks: {run.error}: {run.message}")
        elif run.state == "differs":
            problems.append(
                f"{where}: prints {run.printed!r}, but the stored output is {run.expected!r}."
            )
        elif run.state != "passed":
            problems.append(f"{where}: did not finish ({run.state} {run.message}).")
        if nb.role(cell) == "check" and _is_number(run.result):
            problems.append(
                f"{where}: ends in the bare number {run.result}; nbgrader reads that as partial "
                "credit."
            )
        if (
            nb.role(cell) == "check"
            and nb.course(cell).get("hidden") is None
            and (not run.expected and _MARK in cell.source.split("\n"))
        ):
            problems.append(f"{where}: has no stored output to compare with.")
    return problems


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _zero_problems(name: str, notebook: Any, runs: dict[int, CellRun]) -> list[str]:
    problems = []
    for index, run in runs.items():
        cell = notebook.cells[index]
        if nb.role(cell) != "check":
            continue
        where = f"{name}: the untouched release, {nb.grade_id(cell)}"
        if run.state != "raised":
            problems.append(
                f"{where}: {nb.number_text(nb.points(cell))} points for a stub ({run.state})."
            )
        elif run.error != "WrongAnswer":
            problems.append(
                f"{where}: fails with {run.error}: {run.message}, where words for the student are "
                "expected."
            )
    return problems


# Writing ------------------------------------------------------------------------------------------


def _manifest(bundle: Bundle) -> dict[str, Any]:
    from course_lib import __version__

    return {
        "format": 1,
        "assignment": bundle.assignment,
        "course_lib": __version__,
        "notebooks": {
            name: {
                "release_sha256": nb.sha256(nb.notebook_text(bundle.released[name])),
                "source_sha256": nb.sha256(nb.notebook_text(source)),
                "questions": [_question_record(source, entry) for entry in nb.questions(source)],
            }
            for name, source in bundle.sources.items()
        },
    }


def _question_record(source: Any, question: nb.Question) -> dict[str, Any]:
    def cells(places: list[int]) -> list[dict[str, Any]]:
        return [
            {
                "grade_id": nb.grade_id(source.cells[index]),
                "cell_id": source.cells[index].get("id", ""),
                "points": nb.points(source.cells[index]),
            }
            for index in places
        ]

    marked_by_hand = cells(question.manual)
    for record, index in zip(marked_by_hand, question.manual, strict=True):
        record["rubric"] = nb.rubric(source.cells[index])
    return {
        "id": question.id,
        "number": question.number,
        "title": question.title,
        "difficulty": question.difficulty,
        "answers": [
            {**record, "defines": nb.answer_names(source.cells[index])}
            for record, index in zip(cells(question.answers), question.answers, strict=True)
        ],
        "checks": cells(question.checks),
        "manual": marked_by_hand,
    }


def read_secret(out: Path, given: Path | None) -> tuple[bytes, str]:
    """The release's secret and a sentence that says where it came from."""
    kept = out / "instructor" / "secret"
    place = given or kept
    if place.exists() or given:
        try:
            secret = place.read_bytes().strip()
        except OSError as error:
            raise HomeworkError(f"The secret {place} cannot be read: {error.strerror}.") from None
        if len(secret) < 16:
            raise HomeworkError(f"The secret {place} has fewer than 16 bytes: make a longer one.")
        return secret, f"The secret was read from {place}."
    return secrets.token_hex(32).encode("ascii"), f"A new secret was made: {kept}. Keep it."


def write(bundle: Bundle, out: Path, secret: bytes) -> None:
    """Write one bundle; a folder of the same assignment is replaced as a whole."""
    pristine = {
        "format": 1,
        "assignment": bundle.assignment,
        "notebooks": {
            name: {"sha256": nb.sha256(nb.notebook_text(released))}
            for name, released in bundle.released.items()
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".course-", dir=out) as staging:
        release, source = Path(staging, "release"), Path(staging, "source")
        (release / ".pristine").mkdir(parents=True)
        source.mkdir()
        for name, released in bundle.released.items():
            nb.write_notebook(released, release / f"{name}.ipynb")
            nb.write_notebook(released, release / ".pristine" / f"{name}.ipynb")
            nb.write_notebook(bundle.sources[name], source / f"{name}.ipynb")
        _write_json(pristine, release / ".pristine" / "manifest.json")
        # A deadline that the teacher wrote into the bundle outlives another release.
        kept_settings = out / "source" / bundle.assignment / SETTINGS
        for settings in (bundle.settings, kept_settings):
            if settings and settings.is_file():
                shutil.copyfile(settings, source / SETTINGS)
                break
        for kind, folder in (("release", release), ("source", source)):
            target = out / kind / bundle.assignment
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(folder, target)
    instructor = out / "instructor"
    instructor.mkdir(exist_ok=True)
    _write_json(bundle.manifest, instructor / f"{bundle.assignment}.json")
    kept = os.open(instructor / "secret", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(kept, "wb") as stream:
        stream.write(secret + b"\n")
    (instructor / "secret").chmod(0o600)  # also when it was there before


def _write_json(content: dict, path: Path) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def release(sources: Sequence[str | Path], out: str | Path, secret_file: str | None) -> str:
    """Build all assignments, then write them; return the report to print."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise HomeworkError(f"{out} is a file; --out names a folder.")
    secret, secret_words = read_secret(out, Path(secret_file) if secret_file else None)
    bundles = [build(name, paths, secret) for name, paths in find_sources(sources).items()]
    lines = []
    for bundle in bundles:
        write(bundle, out, secret)
        lines.append(_summary(bundle, out))
    lines.append(secret_words)
    return "\n".join(lines)


def _summary(bundle: Bundle, out: Path) -> str:
    asked = [entry for book in bundle.manifest["notebooks"].values() for entry in book["questions"]]
    by_checks = sum(cell["points"] for entry in asked for cell in entry["checks"])
    by_hand = sum(cell["points"] for entry in asked for cell in entry["manual"])
    return (
        f"{bundle.assignment}: {len(asked)} questions, {nb.number_text(by_checks)} points by checks"
        f" and {nb.number_text(by_hand)} by hand. The source scores full marks, the release 0.\n"
        f"  hand out: {out / 'release' / bundle.assignment} (with its hidden folder .pristine)\n"
        f"  keep:     {out / 'source' / bundle.assignment}, {out / 'instructor'}"
    )
