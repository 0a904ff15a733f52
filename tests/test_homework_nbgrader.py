"""Beside nbgrader: its folders and its gradebook in and out, tried with nbgrader itself.

One homework, three students, the way of a course on a hub: nbgrader releases, fetches, submits,
collects and autogrades; `course` grades the same folder and hands marks and feedback back.
"""

import csv
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import hostile
import pytest

from course_lib.homework import grade, gradebook, nbgrader_course, release
from course_lib.homework.notebook import HomeworkError

pytest.importorskip("nbgrader", reason="nbgrader is not installed (extra [test] has it)")
if sys.platform != "linux":
    pytest.skip("students' code is run on Linux only", allow_module_level=True)
# Kernels in processes of their own choose ports: these tests run one after the other.
pytestmark = [pytest.mark.slow, pytest.mark.kernels]

NAME = hostile.NAME
MARKS = """student,question,points,comment
ada,q4,3.5,nearly
bob,q1,2,half a thought
"""
# nbgrader takes seconds to import, so one process imports it and forks for each command.
DRIVER = """
import json, os, shutil, sys
from course_lib.homework import cli
from nbgrader.apps import NbGraderApp
for folder, program, *words in json.load(sys.stdin):
    print(program, *words, file=sys.stderr, flush=True)
    child = os.fork()
    if not child:
        os.makedirs(folder, exist_ok=True)
        os.chdir(folder)
        if program == "nbgrader":
            NbGraderApp.launch_instance(words)
        elif program == "copy" and os.path.isdir(words[0]):
            shutil.copytree(*words, dirs_exist_ok=True)
        elif program == "copy":
            os.makedirs(os.path.dirname(words[1]) or ".", exist_ok=True)
            shutil.copy(*words)
        else:
            sys.exit(cli.main(words))
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit(1)
"""


def students() -> dict:
    """What is handed in: all right; some wrong, with an error in one cell; nothing done."""
    wrong = {
        "q1": "def double(x):\n    return 6.0",  # right for the number that the check shows
        "q3": "import nothing_of_this_name",
        "q4": "Because.",
    }
    return {
        "ada": hostile.answered(q4="It is linear."),
        "bob": hostile.answered(**wrong),
        "cyd": release.release_notebook(hostile.source()),
    }


@pytest.fixture(scope="module")
def top(tmp_path_factory) -> Path:
    """The whole way, run once: ``course`` with nbgrader's marks, ``other`` with ours alone."""
    top = tmp_path_factory.mktemp("hub")
    late = "deadline = 2001-01-01T00:00:00Z\n[late]\nfactor_per_day = 0.9999\n"
    hostile.write_bundle(top / "bundle", late)
    shutil.copytree(top / "bundle" / "source", top / "course" / "source")
    (top / "marks.csv").write_text(MARKS, encoding="utf-8")
    exchange = ["--course", "course101", f"--Exchange.root={top / 'exchange'}"]
    course, out = str(top / "course"), str(top / "graded")

    def home(student: str) -> list:
        return [str(top / student)]

    def own(student: str) -> list[str]:
        return [NAME, *exchange, f"--Exchange.cache={top / student / 'cache'}"]

    steps = [
        [course, "nbgrader", "generate_assignment", NAME],
        [course, "copy", "../bundle/release", "release"],
        [course, "nbgrader", "release_assignment", NAME, *exchange],
        [course, "copy", "gradebook.db", str(top / "other" / "gradebook.db")],
    ]
    for student, notebook in students().items():
        saved = hostile.save(notebook, top / "desk", f"{student}.ipynb")
        steps += [
            [*home(student), "nbgrader", "fetch_assignment", *own(student)],
            [*home(student), "copy", NAME, "fetched"],
            [*home(student), "copy", str(saved), f"{NAME}/{NAME}.ipynb"],
            [*home(student), "nbgrader", "submit", *own(student), "--student", student],
        ]
    bundle = str(top / "bundle")
    steps += [
        [course, "nbgrader", "collect", NAME, *exchange],
        [course, "nbgrader", "autograde", NAME, "--create"],
        [course, "copy", "gradebook.db", str(top / "autograded.db")],
        [course, "nbgrader", "generate_feedback", NAME],
        [course, "course", "grade", "--bundle", bundle, "--submissions", ".", "--out", out],
        [course, "copy", "gradebook.db", str(top / "kept.db")],
        [course, "course", "export", "--out", out, "--to", "nbgrader", "--course", "../other"],
        [course, "copy", "../other/gradebook.db", str(top / "exported.db")],
        [course, "course", "mark", "--out", out, "--from", str(top / "marks.csv")],
        [course, "course", "export", "--out", out, "--to", "nbgrader", "--course", "."],
        [course, "nbgrader", "export", "--to", "grades.csv"],
        [course, "course", "feedback", "--out", out, "--course", "."],
        [course, "nbgrader", "release_feedback", NAME, *exchange],
        [*home("ada"), "nbgrader", "fetch_feedback", *own("ada")],
    ]
    surroundings = {
        **os.environ,
        "HOME": str(top),
        "JUPYTER_CONFIG_DIR": str(top / "jupyter"),
        "IPYTHONDIR": str(top / "ipython"),
        # nbgrader calls alembic by name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(steps),
        env=surroundings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return top


def cells(database: Path) -> dict[tuple[str, str], tuple]:
    """Points of the checks, points by hand and "waits", by student and cell, in a gradebook."""
    with sqlite3.connect(database) as connection:
        found = connection.execute(
            "select submitted_assignment.student_id, base_cell.name,"
            " grade.auto_score, grade.manual_score, grade.needs_manual_grade from grade"
            " join base_cell on grade.cell_id = base_cell.id"
            " join submitted_notebook on grade.notebook_id = submitted_notebook.id"
            " join submitted_assignment"
            " on submitted_notebook.assignment_id = submitted_assignment.id"
        ).fetchall()
    connection.close()
    return {(student, cell): tuple(rest) for student, cell, *rest in found}


def test_students_fetch_what_course_release_made(top):
    for path in (top / "bundle" / "release" / NAME).rglob("*"):
        if path.is_file():
            fetched = top / "ada" / "fetched" / path.relative_to(top / "bundle" / "release" / NAME)
            assert fetched.read_bytes() == path.read_bytes()


def test_both_give_each_cell_the_same_points(top):
    theirs = cells(top / "autograded.db")
    ours = {}
    for record in grade.read_records(top / "graded"):
        for result in record["questions"]:
            for cell in result["checks"]:
                ours[record["student"], cell["grade_id"]] = cell["max"] * cell["passed"]
            for cell in result["by_hand"]:
                points = None if cell["answered"] else 0
                ours[record["student"], cell["grade_id"]] = points
    assert {key: points for key, (points, _, _) in theirs.items()} == ours
    totals = {s: sum(p or 0 for (t, _), p in ours.items() if t == s) for s in ("ada", "bob", "cyd")}
    assert totals == {"ada": 8, "bob": 1, "cyd": 0}


def test_our_marks_alone_make_the_gradebook_that_nbgrader_makes(top):
    assert cells(top / "exported.db") == cells(top / "autograded.db")
    assert cells(top / "kept.db") == cells(top / "autograded.db")


def test_marks_by_hand_come_into_nbgraders_gradebook(top):
    found = cells(top / "course" / "gradebook.db")
    assert found["ada", "q4-proof"] == (None, 3.5, False)
    assert found["bob", "q4-proof"] == (None, None, True)
    assert [found["bob", f"q1-{kind}"][:2] for kind in ("visible", "hidden")] == [(1, 1), (0, 1)]
    with (top / "course" / "grades.csv").open(encoding="utf-8", newline="") as stream:
        theirs = {row["student_id"]: float(row["score"]) for row in csv.DictReader(stream)}
    table = gradebook.rows(top / "graded")
    ours = {student: points for (student, _), (points, _) in gradebook.totals(table).items()}
    assert theirs == pytest.approx(ours)
    checks = {s: sum(r["points"] for r in table if r["student"] == s and r["max"]) for s in ours}
    assert checks == {"ada": 11.5, "bob": 2, "cyd": 0}
    assert 0 < theirs["ada"] < 8  # what lateness takes off came too


def test_our_page_comes_back_to_the_student_through_the_exchange(top):
    page = (top / "course" / "feedback" / "ada" / NAME / f"{NAME}.html").read_text("utf-8")
    assert "Comment: nearly" in page
    (fetched,) = (top / "ada" / NAME / "feedback").glob(f"*/{NAME}.html")
    assert fetched.read_text("utf-8") == page
    stamp = (top / "course" / "submitted" / "ada" / NAME / "timestamp.txt").read_text("ascii")
    assert fetched.parent.name == stamp
    # It was in time by nbgrader's own clock, and days after a deadline of 2001.
    assert next(r["late"] for r in gradebook.rows(top / "graded")) > 9000


def test_what_nbgrader_does_not_know_is_refused(top, tmp_path):
    with pytest.raises(HomeworkError, match="run `nbgrader generate_assignment"):
        nbgrader_course.export_marks(top / "graded", tmp_path)
    with pytest.raises(HomeworkError, match="has no submitted/"):
        nbgrader_course.write_feedback(top / "graded", tmp_path)
    with pytest.raises(HomeworkError, match="holds no records"):
        nbgrader_course.export_marks(tmp_path, top / "course")


def test_a_mark_over_several_cells_is_spread():
    def cell(name: str, most: float, **more) -> dict:
        return {"grade_id": name, "max": most, **more}

    checks = [cell("a", 1, passed=True), cell("b", 2, passed=False)]
    by_hand = [cell("c", 3, answered=True), cell("d", 1, answered=False)]
    spread = nbgrader_course._cells
    assert spread({"checks": checks, "by_hand": []}, {"points": 2.5}) == [
        ("a", 1, 1, False),
        ("b", 0, 1.5, False),
    ]
    assert spread({"checks": checks[:1], "by_hand": by_hand}, {"points": 3.5}) == [
        ("a", 1, None, False),
        ("c", None, 3, False),
        ("d", 0, 0.5, False),
    ]
    assert spread({"checks": [], "by_hand": by_hand}, {}) == [
        ("c", None, None, True),
        ("d", 0, None, False),
    ]
