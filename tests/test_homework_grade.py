"""Grading: the sandbox, the hostile class, records that survive, marks by hand, the gradebook.

No Jupyter kernel is started here. Limits are small, so that bombs are small.
"""

import copy
import csv
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import hostile
import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.homework import assignment as assignments
from course_lib.homework import (
    classroom,
    cli,
    contract,
    grade,
    gradebook,
    mark,
    release,
    sandbox,
    trusted,
    worker,
)
from course_lib.homework import notebook as nb
from course_lib.homework.notebook import HomeworkError
from course_lib.homework.sandbox import Limits, Stopped, Worker

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SMALL = Limits(seconds=3, memory_mb=200, processes=8, output_mb=0.2, files_mb=4)
SET_UP = [("setup", "import numpy as np")]
if sys.platform != "linux":
    pytest.skip("students' code is run on Linux only", allow_module_level=True)
LEVEL = sandbox.probe()[0]
WALLS = LEVEL != "rlimits"


def course(*arguments) -> int:
    """The command line, in this process."""
    return cli.main([str(argument) for argument in arguments])


def run(level: str, source: str, *calls: tuple, limits: Limits = SMALL) -> list:
    """Run a cell in a sandbox and call its functions: all replies."""
    with Worker(level, limits, SET_UP) as student, student.question([("cell", source)]) as question:
        question.load()
        return [question.failed, *(question.ask(name, list(rest)) for name, *rest in calls)]


# The sandbox --------------------------------------------------------------------------------------


def missing(level: str) -> str:
    """Why this machine does not offer a level: one may work where another is forbidden."""
    try:
        with Worker(level, SMALL, SET_UP) as student:
            student.start()
    except (HomeworkError, OSError) as error:
        return str(error)
    return ""


LEVELS = [
    pytest.param(level, marks=pytest.mark.skipif(bool(why), reason=why))
    for level, why in ((level, missing(level)) for level in sandbox.LEVELS)
]


@pytest.fixture(params=LEVELS)
def level(request) -> str:
    """Each level of isolation that this machine offers."""
    return request.param


def test_a_function_is_called_through_the_sandbox(level):
    failed, reply = run(level, "def f(x):\n    return x + 1", ("f", 3))
    assert (failed, reply["status"], reply["value"]) == ({}, "value", 4)


@pytest.mark.parametrize(
    ("source", "status", "words"),
    [
        ("while True:\n    pass", "timeout", "within 3 seconds"),
        ("import os\nos._exit(1)", "crashed", "ends the Python process"),
        ("import os\nwhile True:\n    os.write(1, b'x' * 999)", "crashed", "more than 0.2 MB"),
        (
            "import os, time\nfor i in range(3):\n    if os.fork() == 0:\n"
            "        x = bytearray(100 << 20)\n        x[::4096] = b'1' * len(x[::4096])\n"
            "        time.sleep(9)\ntime.sleep(9)",
            "crashed",
            "more than 200 MB",
        ),
    ],
    ids=["loop", "exit", "flood", "memory"],
)
def test_limits_hold_at_every_level_and_the_next_question_runs(level, source, status, words):
    with Worker(level, SMALL, SET_UP) as student:
        with student.question([("cell", source)]) as question, pytest.raises(Stopped) as stop:
            question.load()
        assert (stop.value.status, words in stop.value.sentence) == (status, True)
        with student.question([("cell", "x = 2")]) as question:
            question.load()
            assert question.ask("x", [])["value"] == 2


def test_limits_of_processes_files_and_memory_are_errors_in_the_code(level):
    source = (
        "import os\ncount, error = 0, ''\ntry:\n    while True:\n        if os.fork() == 0:\n"
        "            import time\n            time.sleep(60)\n        count += 1\n"
        "except OSError as e:\n    error = type(e).__name__\n"
        "try:\n    np.ones(10**10)\nexcept MemoryError:\n    error += ' MemoryError'\n"
        "try:\n    open('full', 'wb').write(bytes(5 << 20))\nexcept OSError as e:\n"
        "    error += ' OSError'\n"
    )
    _, error, count = run(level, source, ("error",), ("count",))
    assert error["value"] == "BlockingIOError MemoryError OSError"
    # Without walls the limit counts all that an ordinary user runs, and what ends makes room.
    shared = level == "rlimits" and os.geteuid() != 0
    assert count["value"] <= (64 if shared else 8)


@pytest.mark.skipif(not WALLS, reason="this machine has no isolation but limits")
def test_behind_walls_there_is_python_and_nothing_else():
    source = (
        "import os, socket\nroot, uid = sorted(os.listdir('/')), os.getuid()\n"
        "home, tmp = os.listdir('/root') if os.path.isdir('/root') else [], os.listdir('/tmp')\n"
        "processes = [p for p in os.listdir('/proc') if p.isdigit()]\n"
        "variables, interfaces = sorted(os.environ), socket.if_nameindex()\n"
        "library = os.listdir(os.path.dirname(__import__('course_lib').__path__[0]))\n"
    )
    names = "root uid tmp processes variables interfaces library".split()
    _, *replies = run(LEVEL, source, *((name,) for name in names))
    seen = {name: contract.unpack(r["value"]) for name, r in zip(names, replies, strict=True)}
    assert seen["uid"] != 0
    assert not {"home", "srv", "mnt", "var", "boot", "sys"} & set(seen["root"])
    assert set(seen["variables"]) - {"PWD"} == set(sandbox.environment())
    assert len(seen["processes"]) <= 4
    assert [name for _, name in seen["interfaces"]] == ["lo"]
    assert ("exercises" in seen["library"]) is False


def test_scratch_is_empty_for_each_question(level):
    with Worker(level, SMALL, SET_UP) as student:
        for _ in range(2):
            source = "import os\nthere = os.path.exists('mine')\nopen('mine', 'w').close()"
            with student.question([("cell", source)]) as question:
                question.load()
                assert question.failed == {}
                assert question.ask("there", [])["value"] is False


def test_what_the_sandbox_itself_put_into_scratch_is_kept_and_not_searched(tmp_path, monkeypatch):
    """A clone below /tmp is mounted there: it must not be walked through after each question."""
    for name in ("clone/library/module.py", "clone/python"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "link").symlink_to("clone/python")
    mounted = str(tmp_path / "clone" / "library")
    monkeypatch.setattr(os.path, "ismount", lambda path: path == mounted)
    kept = set(worker._there(str(tmp_path)))
    assert kept == {str(tmp_path / name) for name in ("clone", mounted, "clone/python", "link")}
    for name in ("mine", "clone/mine", "folder/mine"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a message for the next question")
    looked, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(path) or scandir(path))
    worker._clear(str(tmp_path), kept)
    assert mounted not in looked
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"clone", "clone/library", "clone/library/module.py", "clone/python", "link"}


def descendants(pid: int) -> set[int]:
    """All processes below this one."""
    below, seen = {pid}, worker._processes()
    while more := {p for p, (parent, _) in seen.items() if parent in below} - below:
        below |= more
    return below - {pid}


def runs(pid: int) -> bool:
    """Whether a process is there and has not ended: its parent may be slow to notice that."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_grader_that_is_killed_leaves_no_process(level):
    script = (
        "import time\nfrom course_lib.homework.sandbox import Limits, Worker\n"
        f"student = Worker({level!r}, Limits(), [])\n"
        "source = 'import os\\nif os.fork() == 0:\\n    os.setsid()\\nwhile True:\\n    pass'\n"
        "with student.question([('cell', source)]) as question:\n    question.load()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    grader = subprocess.Popen([sys.executable, "-c", script], env=environment)
    below: set[int] = set()
    stop = time.monotonic() + 30
    while len(below) < 3 and time.monotonic() < stop:
        time.sleep(0.1)
        below = descendants(grader.pid)
    time.sleep(0.5)
    below |= descendants(grader.pid)
    assert len(below) >= 3
    grader.kill()
    grader.wait()
    while time.monotonic() < stop and any(map(runs, below)):
        time.sleep(0.05)
    assert not [pid for pid in below if runs(pid)]


def test_the_command_for_bubblewrap():
    known = "--clearenv --size --perms --disable-userns"
    for root in (True, False):
        command = sandbox.bwrap_command("bwrap", SMALL, root=root, known=known)
        text = " ".join(command)
        for option in ("net", "pid", "ipc", "uts"):
            assert f"--unshare-{option}" in command
        assert ("--unshare-user" in command) is not root
        assert ("--cap-drop ALL --cap-add CAP_SETUID" in text) is root
        assert "--clearenv" in command
        assert "--die-with-parent --new-session" in text
        assert f"--size {4 << 20} --tmpfs /tmp" in text
        shown = [b for a, b in zip(command, command[1:], strict=False) if a == "--ro-bind"]
        assert str(ROOT / "course_lib") in shown
        assert not [path for path in shown if Path(path) in (ROOT, Path("/"), Path.home())]
        assert "--bind" not in command
    old = sandbox.bwrap_command("bwrap", SMALL, root=False, known="")
    assert not {"--size", "--perms", "--clearenv", "--disable-userns"} & set(old)


def test_doctor_names_the_level_and_how_to_get_better(capsys, monkeypatch):
    assert course("doctor") == (0 if WALLS else 1)
    assert re.search(rf"{LEVEL} +works, and is used", capsys.readouterr().out)
    problems = {"bwrap": "bubblewrap is not installed.", "namespaces": "no"}
    monkeypatch.setattr(sandbox, "probe", lambda: ("rlimits", problems))
    assert course("doctor") == 1
    said = capsys.readouterr().out
    assert "apt install bubblewrap" in said
    assert "WARNING: no isolation" in said


# What comes back ----------------------------------------------------------------------------------


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["$", "status", "value", "items", "entries", "dtype", "shape", "data"])
        | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_any_reply_is_read_or_refused(reply):
    for value in (reply, {"status": "value", "value": reply}):
        try:
            clean = trusted.checked(value, hidden=True)
        except Stopped:
            continue
        if clean["status"] == "value":
            contract.unpack(clean["value"])


@pytest.mark.parametrize(
    "value",
    [
        {"$": "array", "dtype": "<f8", "shape": [10**9], "data": ""},
        {"$": "array", "dtype": "|O8", "shape": [0], "data": ""},
        {"$": "array", "dtype": "<f8", "shape": [-1], "data": ""},
        {"$": "array", "dtype": "<f8", "shape": [True], "data": "AAAAAAAAAAA="},
        {"$": "array", "dtype": "|b1", "shape": [1], "data": "Ag=="},
        {"$": "recipe", "name": "matrix", "arguments": {}},
        {"$": "dict", "items": [["a", 1]], "more": 1},
        {"$": "complex", "parts": ["1", 2]},
        {"a": 1},
    ],
    ids=str,
)
def test_forged_values_are_refused(value):
    with pytest.raises(Stopped, match="disturbs"):
        trusted.checked({"status": "value", "value": value}, hidden=False)


def test_nothing_of_a_hidden_check_comes_out_in_words():
    reply = {"status": "raised", "type": "E0815", "message": "0815", "line": "x = 0815"}
    assert "0815" not in str(trusted.checked(reply, hidden=True))
    assert "0815" in str(trusted.checked(reply, hidden=False))


def test_who_computes_is_told_from_who_waits():
    with Worker(LEVEL, SMALL, SET_UP) as student:
        computed = []
        for source in ("while True:\n    pass", "import time\ntime.sleep(60)"):
            with student.question([("cell", source)]) as question, pytest.raises(Stopped):
                question.load()
            computed.append(question._report["computed"])
        assert computed[0] > 0.3 > computed[1] >= 0  # of 3 s; other work may take its part
        assert question.kept_waiting


@pytest.mark.parametrize(("waited", "points"), [(True, 8), (False, 0)])
def test_who_was_kept_waiting_is_tried_once_more(tmp_path, monkeypatch, waited, points):
    tried, run = [], grade.run_question

    def starved(worker, task, question, *rest):
        tried.append(question.id)
        if tried.count(question.id) == 1:
            return grade.Outcome(status="timeout", message="late", waited=waited)
        return run(worker, task, question, *rest)

    monkeypatch.setattr(grade, "run_question", starved)
    hostile.write_bundle(tmp_path / "bundle")
    hostile.save(hostile.answered(), tmp_path / "class" / "ada")
    places = ("--submissions", tmp_path / "class", "--out", tmp_path / "out")
    assert course("grade", "--bundle", tmp_path / "bundle", *places) == 0
    assert sum(row["points"] for row in gradebook.rows(tmp_path / "out")) == points


# The hostile class --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graded(tmp_path_factory) -> tuple[Path, dict]:
    """The hostile class, graded once, and its gradebook by student and question."""
    folder = tmp_path_factory.mktemp("hostile")
    hostile.write_bundle(folder / "bundle")
    hostile.write_class(folder / "class", walls=WALLS)
    arguments = ("--submissions", folder / "class", "--out", folder / "out")
    assert course("grade", "--bundle", folder / "bundle", *arguments, "--jobs", 3) == 0
    found: dict = {}
    for row in gradebook.rows(folder / "out"):
        found.setdefault(row["student"], {})[row["question"]] = row
    return folder, found


@pytest.mark.parametrize("entry", hostile.CLASS, ids=lambda entry: entry.name[:30])
def test_the_hostile_class_gets_what_it_must(graded, entry):
    if entry.walls and not WALLS:
        pytest.skip("limits alone do not stop this")
    row = graded[1][entry.name]
    assert row["q1"]["status"] in entry.status.split("|"), row["q1"]
    assert row["q1"]["points"] == entry.points, row["q1"]
    assert row["q2"]["points"] + row["q3"]["points"] == entry.rest
    assert {r["isolation"] for r in row.values()} == {LEVEL}
    if entry.points < 3:
        assert len(row["q1"]["message"].split()) > 3


def test_every_entry_of_the_class_has_a_record_inside_the_folder(graded):
    folder, found = graded
    records = list((folder / "out" / "records" / "small").glob("*.json"))
    assert len(records) == len(found) >= 60
    assert not list(folder.parent.rglob("hostile.txt"))
    # Python's own tracker of shared memory stays until the end.
    left = {Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(os.getpid())}
    assert not [command for command in left if b"resource_tracker" not in command]


@pytest.mark.skipif(not WALLS, reason="this machine has no isolation but limits")
def test_no_question_leaves_a_message_for_another_run(graded):
    record = next(r for r in grade.read_records(graded[0] / "out") if r["student"] == "messages")
    for question in record["questions"]:  # their sources say it
        assert "SEEN" not in question["output"] + question["message"]
    assert record["questions"][0]["checks"][0]["passed"], "it must run to leave messages"


def test_the_teachers_guide_has_the_table_of_the_class():
    guide = (ROOT / "book" / "teachers_guide.md").read_text(encoding="utf-8")
    table = {cell.strip() for line in guide.split("\n") for cell in line.split("|")}
    missing = [entry.what for entry in hostile.CLASS if entry.what not in table]
    assert not missing


def test_newest_counts_and_both_are_named(graded):
    records = grade.read_records(graded[0] / "out")
    remarks = {r["student"]: r["remarks"] for r in records}
    assert remarks["two"] == ["two/b.ipynb is older than two/a.ipynb, which counts."]
    assert remarks["newest-broken"] == [
        "second.ipynb is not a notebook: its text is not JSON. It may be cut short."
    ]


def test_the_gradebook_is_safe_in_a_spreadsheet(graded):
    for form in gradebook.FORMS:
        for line in csv.reader(io.StringIO(gradebook.export(graded[0] / "out", form))):
            for cell in line:
                assert not re.match(r"[=+@\t\r]|-\D", cell), cell


# Chapters -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "exercises").iterdir()))
def test_source_full_marks_and_release_none(name, tmp_path):
    path = ROOT / "exercises" / name / f"{name}.ipynb"
    source = release.with_seeds(nb.read_notebook(path), hostile.SECRET)
    bundle = release.Bundle(name, {name: release.release_notebook(source)}, {name: source})
    bundle.manifest = release._manifest(bundle)
    release.write(bundle, tmp_path / "bundle", hostile.SECRET)
    for student, notebook in (("source", source), ("release", bundle.released[name])):
        hostile.save(notebook, tmp_path / "class" / student, f"{name}.ipynb")
    classroom.grade(tmp_path / "bundle", tmp_path / "class", tmp_path / "out")
    for record in grade.read_records(tmp_path / "out"):
        for result in record["questions"]:
            full = result["max"] if record["student"] == "source" else 0
            assert result["points"] == full, (record["student"], result["question"], result)


# Records ------------------------------------------------------------------------------------------


@pytest.fixture
def class_of_three(tmp_path) -> Path:
    """A bundle and three students: right; wrong and with a proof; nothing done."""
    hostile.write_bundle(tmp_path / "bundle")
    three = {
        "ada": hostile.answered(q4="It is linear."),
        "bob": hostile.answered(
            q1="def double(x):\n    print('saw', x)\n    return x ** 2", q4="<b>Because</b>"
        ),
        "cyd": release.release_notebook(hostile.source()),
    }
    for name, notebook in three.items():
        hostile.save(notebook, tmp_path / "class" / name)
    return tmp_path


def grade_class(folder: Path, *more, command: str = "grade") -> int:
    return course(command, "--bundle", folder / "bundle", "--submissions", folder / "class",
                  "--out", folder / "out", *more)  # fmt: skip


def table(folder: Path) -> dict[tuple[str, str], dict]:
    """The gradebook that was written, by student and question."""
    with (folder / "out" / "gradebook.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0])[:7] == "student assignment question points max status message".split()
    assert list(rows[0])[7:] == ["late", "isolation"]
    return {(row["student"], row["question"]): row for row in rows}


def test_a_class_is_graded_and_what_is_there_is_kept(class_of_three, capsys):
    assert grade_class(class_of_three) == 0
    said = capsys.readouterr().out
    assert "3 graded, 0 kept from before" in said
    assert "most often not right: q4 (1 of 1), q1 (2 of 3)" in said
    assert "Answers that wait for a mark by hand: 2." in said
    rows = table(class_of_three)
    assert {q: rows["ada", q]["points"] for q in ("q1", "q2", "q3", "q4")} == {
        "q1": "3", "q2": "2", "q3": "3", "q4": "0",
    }  # fmt: skip
    assert rows["ada", "q4"]["status"] == "needs_manual"
    assert rows["cyd", "q4"]["status"] == "graded"
    assert rows["cyd", "q1"]["message"] == "not answered."
    assert "9" not in rows["bob", "q1"]["points"]
    assert grade_class(class_of_three) == 0
    assert "0 graded, 3 kept from before" in capsys.readouterr().out
    hostile.save(hostile.answered(), class_of_three / "class" / "cyd")
    assert grade_class(class_of_three) == 0
    assert "1 graded, 2 kept from before" in capsys.readouterr().out
    assert table(class_of_three)["cyd", "q1"]["points"] == "3"


def test_jobs_give_the_same_marks(class_of_three):
    assert grade_class(class_of_three) == 0
    alone = table(class_of_three)
    shutil.rmtree(class_of_three / "out")
    assert grade_class(class_of_three, "--jobs", 2) == 0
    assert table(class_of_three) == alone


def test_a_run_that_is_killed_goes_on_where_it_was(class_of_three, capsys):
    hostile.save(
        hostile.answered(q1="import time\ntime.sleep(9)"), class_of_three / "class" / "dan"
    )
    command = [
        *(sys.executable, "-m", "course_lib.homework.cli", "grade"),
        *("--bundle", "bundle", "--submissions", "class", "--out", "out"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    grader = subprocess.Popen(
        command, cwd=class_of_three, env=environment, stdout=subprocess.PIPE, text=True
    )
    line = grader.stdout.readline()
    grader.send_signal(signal.SIGKILL)
    grader.wait()
    grader.stdout.close()
    assert line.startswith("[1/4] ada")
    capsys.readouterr()
    assert grade_class(class_of_three) == 0
    kept = re.search(r"(\d) graded, (\d) kept", capsys.readouterr().out)
    assert int(kept[1]) + int(kept[2]) == 4
    assert int(kept[2]) >= 1
    assert {student for student, _ in table(class_of_three)} == {"ada", "bob", "cyd", "dan"}


def test_two_runs_do_not_grade_the_same_student(class_of_three, capsys):
    lock = class_of_three / "out" / "locks" / "small" / grade.file_name("bob")
    with grade.locked(lock) as ours:
        assert ours
        assert grade_class(class_of_three) == 0
    said = capsys.readouterr().out
    assert "bob  small: left alone, another run is grading it." in said
    assert "2 graded, 0 kept from before, 1 left to another run" in said


def test_a_damaged_record_is_made_again(class_of_three, capsys):
    assert grade_class(class_of_three) == 0
    record = next((class_of_three / "out" / "records" / "small").glob("ada.*"))
    record.write_text(record.read_text()[:100])
    assert grade_class(class_of_three) == 0
    assert "1 graded, 2 kept" in capsys.readouterr().out


def test_a_submission_counts_as_it_came_and_nothing_in_it_is_run_here(class_of_three):
    before = {p: p.read_bytes() for p in (class_of_three / "class").rglob("*") if p.is_file()}
    assert grade_class(class_of_three) == 0
    after = {p: p.read_bytes() for p in (class_of_three / "class").rglob("*") if p.is_file()}
    assert before == after


@pytest.mark.parametrize(
    ("settings_text", "points", "late"),
    [
        ("", 8, 0),
        ("deadline = 2001-09-09T00:00:00Z\n[late]\npoints_per_day = 1.5\n", 5, 2),
        ("deadline = 2001-09-09T00:00:00Z\n[late]\nfactor_per_day = 0.5\n", 2, 2),
        ("deadline = 2001-09-09T00:00:00Z\n[late]\ndays = 1\n", 0, 2),
        ("deadline = 2001-09-09T00:00:00Z\n", 8, 2),
        ("deadline = 2001-09-10T01:46:40Z\n[late]\ndays = 0\n", 8, 0),
    ],
)
def test_late_submissions_are_marked_by_the_policy(
    class_of_three, settings_text, points, late, capsys
):
    shutil.rmtree(class_of_three / "class" / "bob")
    shutil.rmtree(class_of_three / "class" / "cyd")
    place = class_of_three / "bundle" / "source" / "small" / assignments.SETTINGS
    place.write_text(settings_text, encoding="utf-8")
    stamp = class_of_three / "class" / "ada" / "timestamp.txt"
    stamp.write_text("2001-09-10 01:46:40.000000 UTC\n", encoding="ascii")
    assert grade_class(class_of_three) == 0
    rows = table(class_of_three)
    assert sum(float(row["points"]) for row in rows.values()) == pytest.approx(points)
    assert {row["late"] for row in rows.values()} == {str(late)}
    if points < 8:
        assert "2 days late" in rows["ada", "late"]["message"]


def test_an_assignment_file_outlives_another_release(tmp_path):
    notebook = hostile.source()
    released = release.release_notebook(notebook)
    bundle = release.Bundle("small", {"small": released}, {"small": notebook})
    bundle.manifest = release._manifest(bundle)
    place = hostile.write_bundle(tmp_path / "bundle", "[limits]\nseconds = 7\n")
    release.write(bundle, place, hostile.SECRET)
    assert assignments.read_bundle(place)["small"].limits.seconds == 7
    bundle.settings = tmp_path / assignments.SETTINGS
    bundle.settings.write_text("[limits]\nseconds = 8\n", encoding="utf-8")
    release.write(bundle, place, hostile.SECRET)
    assert assignments.read_bundle(place)["small"].limits.seconds == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("deadline = 5", "deadline must be a date"),
        ("deadlin = 2026-01-01T00:00:00", "there is no entry deadlin"),
        ("[limits]\nseconds = 0", "limit seconds must be a positive number"),
        ("[limits]\nmemory = 5", "there is no entry limits.memory"),
        ("[late]\npoints_per_day = 1\nfactor_per_day = 0.5", "not both"),
        ("[late", "cannot be read"),
    ],
)
def test_a_wrong_assignment_file_is_refused(class_of_three, text, words, capsys):
    place = class_of_three / "bundle" / "source" / "small" / assignments.SETTINGS
    place.write_text(text, encoding="utf-8")
    assert grade_class(class_of_three) == 2
    assert words in capsys.readouterr().err
    assert not (class_of_three / "out").exists()


def test_wrong_folders_are_refused(class_of_three, capsys):
    folder = class_of_three
    for arguments, words in (
        (("--bundle", folder / "class"), "is no bundle"),
        (("--submissions", folder / "nowhere"), "There is no folder"),
        (("--submissions", folder / "bundle" / "instructor"), "holds no submissions"),
        (("--out", folder / "class" / "ada" / "small.ipynb"), "is a file"),
        (("--jobs", 0), "--jobs must be at least 1"),
        (("--out", Path(sys.prefix) / "records"), "which students' code can read"),
    ):
        assert grade_class(folder, *arguments) == 2, words
        assert words in capsys.readouterr().err


# Marks by hand, feedback, export ------------------------------------------------------------------


def test_marks_and_comments_survive_grading_again(class_of_three, capsys):
    assert grade_class(class_of_three) == 0
    marks = class_of_three / "marks.csv"
    marks.write_text(
        "student,question,points,comment\nada,q4,3.5,=nearly <b>\nbob,q4,0,\n"
        "bob,q1,,half a thought\n",
        encoding="utf-8",
    )
    capsys.readouterr()
    assert course("mark", "--out", class_of_three / "out", "--from", marks) == 0
    assert capsys.readouterr().out == "Marks entered: 3. No answer waits for a mark.\n"
    for command in (("grade",), ("regrade",), ("regrade", "--student", "ada")):
        assert grade_class(class_of_three, *command[1:], command=command[0]) == 0
        rows = table(class_of_three)
        assert (rows["ada", "q4"]["points"], rows["ada", "q4"]["status"]) == ("3.5", "partial")
        assert rows["bob", "q4"]["status"] == "graded"
    assert "1 graded, 0 kept" in capsys.readouterr().out
    assert course("feedback", "--out", class_of_three / "out") == 0
    page = (class_of_three / "out/feedback/ada/small/small.html").read_text("utf-8")
    assert "Comment: =nearly &lt;b&gt;" in page
    assert "half a thought" in (class_of_three / "out/feedback/bob/small/small.html").read_text()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ada,q4,5,", "points must lie between 0 and 4, not 5"),
        ("ada,q4,nan,", "points must lie between 0 and 4"),
        ("ada,q4,four,", "points must be a number"),
        ("eve,q4,1,", "there is no record of the student 'eve'."),
        ("ada,q9,1,", "there is no question 'q9'; there are q1, q2, q3, q4"),
        ("ada,q4,,", "points and comment are both empty"),
    ],
)
def test_wrong_marks_are_refused_together(class_of_three, line, words, capsys):
    assert grade_class(class_of_three) == 0
    marks = class_of_three / "marks.csv"
    marks.write_text(f"student,question,points,comment\nada,q4,4,good\n{line}\n", encoding="utf-8")
    assert course("mark", "--out", class_of_three / "out", "--from", marks) == 2
    said = capsys.readouterr().err
    assert f"line 3: {words}" in said
    assert "nothing was entered" in said
    assert not (class_of_three / "out" / "marks").exists()


def test_marks_are_asked_for(class_of_three, monkeypatch, capsys):
    assert grade_class(class_of_three) == 0
    answers = iter(["9", "3", "well done", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(answers))
    capsys.readouterr()
    assert course("mark", "--out", class_of_three / "out") == 0
    said = capsys.readouterr().out
    assert "  [4] says why" in said
    assert "points must lie between 0 and 4, not 9." in said
    assert "Marks entered: 1. Answers that still wait: 1." in said
    assert table(class_of_three)["ada", "q4"]["points"] == "3"


def test_feedback_is_escaped_and_gives_no_hidden_number_away(class_of_three):
    answer = (
        "print('<script>alert(1)</script>')\ndef double(x):\n    print('saw', x)\n"
        "    if np.ndim(x):\n        raise ValueError(f'saw {x}')\n    return x + x"
    )
    hostile.save(hostile.answered(q1=answer), class_of_three / "class" / "bob")
    assert grade_class(class_of_three) == 0
    assert course("feedback", "--out", class_of_three / "out") == 0
    page = (class_of_three / "out/feedback/bob/small/small.html").read_text("utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    contract.set_seed("q1", contract.derive_seed(hostile.SECRET, "q1"))
    hidden = contract.hidden_rng("q1").normal(size=4)
    contract._seeds.clear()
    record = next((class_of_three / "out" / "records" / "small").glob("bob.*")).read_text()
    for text in (page, record, (class_of_three / "out" / "gradebook.csv").read_text()):
        for number in hidden:
            assert f"{abs(number):.4f}" not in text
        assert "rng.normal" not in text
        assert "BEGIN HIDDEN" not in text
    assert "stops with ValueError" in page


def test_export_for_canvas_and_moodle(class_of_three, capsys):
    assert grade_class(class_of_three) == 0
    capsys.readouterr()
    assert course("export", "--out", class_of_three / "out", "--to", "canvas") == 0
    lines = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert lines[0] == ["Student", "ID", "SIS User ID", "SIS Login ID", "Section", "small"]
    assert lines[1] == ["    Points Possible", "", "", "", "", "12"]
    assert lines[2] == ["ada", "", "", "ada", "", "8"]
    target = class_of_three / "moodle.csv"
    assert (
        course("export", "--out", class_of_three / "out", "--to", "moodle", "--file", target) == 0
    )
    assert target.read_text().split("\n")[:2] == ["username,small", "ada,8"]
    assert course("export", "--out", class_of_three / "nothing") == 2
    assert "run `course grade`" in capsys.readouterr().err


def test_what_is_given_after_an_answer_is_run_too(tmp_path):
    """A cell handed out between answer and check may use the answer."""
    notebook = hostile.source()
    place = next(i for i, c in enumerate(notebook.cells) if c.get("id") == "q1-visible")
    given_cell = nbformat.v4.new_code_cell("double = (lambda f: lambda x: f(x))(double)", id="g")
    given_cell.metadata = {"course": {"role": "given"}}
    notebook.cells.insert(place, given_cell)
    task = assignments.Task(
        "small", notebook, release.release_notebook(notebook), nb.questions(notebook)
    )
    with Worker(LEVEL, SMALL, task.set_up) as student:
        results = grade.grade_notebook(task, copy.deepcopy(hostile.answered()), student)
    assert [result["points"] for result in results] == [3, 2, 3, 0]


def test_names_on_a_terminal_are_harmless():
    assert classroom.plain("a\x1b[31m\n") == "a�[31m�"
    assert mark.shown("a\x1b\nb") == "a�\nb"
