"""From the source of a homework to the student's check: release, check, bad input, nbgrader."""

import copy
import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.homework import answers, classroom, cli, grade, release, student_check
from course_lib.homework import notebook as nb
from course_lib.homework.notebook import HomeworkError

# Kernels in processes of their own choose ports: these tests run one after the other.
pytestmark = [pytest.mark.slow, pytest.mark.kernels]

EXERCISE = Path(__file__).parents[1] / "exercises" / "02_tikhonov" / "02_tikhonov.ipynb"
SECRET = b"a secret of the tests, 32 bytes."


def course(*arguments) -> int:
    """The command line, in this process."""
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """The real homework, released once for all tests of this file."""
    out = tmp_path_factory.mktemp("bundle")
    secret = out / "secret.txt"
    secret.write_bytes(SECRET)
    assert course("release", EXERCISE.parent, "--out", out / "out", "--secret", secret) == 0
    return out / "out"


@pytest.fixture
def handed_out(bundle, tmp_path) -> Path:
    """A student's copy of the released folder; the notebook's path."""
    shutil.copytree(bundle / "release" / "02_tikhonov", tmp_path / "02_tikhonov")
    return tmp_path / "02_tikhonov" / "02_tikhonov.ipynb"


def read(path: Path):
    return nbformat.read(path, as_version=4)


def cell(notebook, name: str):
    """The cell with this grade_id."""
    return next(entry for entry in notebook.cells if nb.grade_id(entry) == name)


def solutions() -> dict[str, str]:
    """The source's answers by grade_id."""
    source = read(EXERCISE)
    return {
        nb.grade_id(entry): entry.source
        for entry in source.cells
        if nb.role(entry) in ("answer", "manual")
    }


# A small source -----------------------------------------------------------------------------------

CHECK = """# NBVAL_CHECK_OUTPUT
@check
def question():
    expect_close("double(3)", call("double", 3.0), 6.0)"""
ANSWER = """def double(x):
    ### BEGIN SOLUTION
    twice_as_much = x + x
    return twice_as_much
    ### END SOLUTION"""
SETUP = "from course_lib.homework import call, check, expect_close, hidden_rng"


def meta(name: str, **changes) -> dict:
    entry = {
        "grade": False,
        "grade_id": name,
        "locked": False,
        "schema_version": 3,
        "solution": False,
        "task": False,
        **changes,
    }
    return {"nbgrader": entry, "course": {"question": name.split("-")[0]}}


def small_source(
    *, answer: str = ANSWER, check: str = CHECK, printed: str = "right: double(3)\n", timeout=30
):
    """A source with one question; a test changes one thing about it."""
    statement = nbformat.v4.new_markdown_cell("## Write `double(x)`", id="q1-statement")
    statement.metadata = meta("q1-statement", locked=True)
    statement.metadata["course"].update(title="Twice", difficulty="basic", see="page 2")
    set_up = nbformat.v4.new_code_cell(SETUP, id="setup")
    set_up.metadata = {"course": {"role": "setup", "cell_timeout": timeout}}
    solution = nbformat.v4.new_code_cell(answer, id="q1-answer")
    solution.metadata = meta("q1-answer", solution=True)
    checking = nbformat.v4.new_code_cell(check, id="q1-check")
    checking.metadata = meta("q1-check", grade=True, locked=True, points=2)
    if printed:
        checking.execution_count = 1
        checking.outputs = [nbformat.v4.new_output("stream", name="stdout", text=printed)]
    return nbformat.v4.new_notebook(cells=[set_up, statement, solution, checking])


def saved(notebook, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nb.write_notebook(notebook, path)
    return path


# The release --------------------------------------------------------------------------------------


def test_layout_and_secret(bundle):
    files = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    assert files == {
        "release/02_tikhonov/02_tikhonov.ipynb",
        "release/02_tikhonov/.pristine/02_tikhonov.ipynb",
        "release/02_tikhonov/.pristine/manifest.json",
        "source/02_tikhonov/02_tikhonov.ipynb",
        "instructor/02_tikhonov.json",
        "instructor/secret",
    }
    secret = bundle / "instructor" / "secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert secret.read_bytes().strip() == SECRET


def test_the_release_holds_nothing_of_the_teachers(bundle):
    text = (bundle / "release" / "02_tikhonov" / "02_tikhonov.ipynb").read_text(encoding="utf-8")
    for words in ("BEGIN SOLUTION", "HIDDEN TESTS", "set_seed", "q01_hidden", "_hidden()", "- [1]"):
        assert words not in text
    assert SECRET.decode() not in text
    assert "Pythagoras" not in text
    assert "vstack([A, np.sqrt(lam) * D])" not in text


def test_the_release_keeps_expected_outputs_of_visible_checks_only(bundle):
    released = read(bundle / "release" / "02_tikhonov" / "02_tikhonov.ipynb")
    visible = [entry for entry in released.cells if nb.grade_id(entry).endswith("-visible")]
    assert len(visible) == 11
    assert all(entry.outputs and entry.execution_count == 1 for entry in visible)
    others = [
        entry for entry in released.cells if entry.cell_type == "code" and entry not in visible
    ]
    assert not any(entry.outputs or entry.execution_count for entry in others)


def test_the_manifest_knows_questions_points_rubrics_and_hashes(bundle):
    manifest = json.loads((bundle / "instructor" / "02_tikhonov.json").read_text("utf-8"))
    book = manifest["notebooks"]["02_tikhonov"]
    released = bundle / "release" / "02_tikhonov" / "02_tikhonov.ipynb"
    assert book["release_sha256"] == nb.sha256(released.read_text(encoding="utf-8"))
    by_id = {entry["id"]: entry for entry in book["questions"]}
    assert by_id["q02"]["answers"][0]["defines"] == ["x_lecture"]
    assert [step["points"] for step in by_id["q05"]["manual"][0]["rubric"]] == [1, 1, 1, 1]
    checks = sum(entry["points"] for asked in book["questions"] for entry in asked["checks"])
    assert checks == 40


def test_seeds_come_from_the_secret():
    source = read(EXERCISE)
    one, same, two = (release.with_seeds(source, key) for key in (b"one", b"one", b"two"))
    assert nb.notebook_text(one) == nb.notebook_text(same)
    for first, second in zip(one.cells, two.cells, strict=True):
        assert (first.source != second.source) == nb.grade_id(first).endswith("-hidden")
    assert nb.notebook_text(release.release_notebook(one)) == nb.notebook_text(
        release.release_notebook(two)
    )


def test_a_secret_is_made_and_kept(tmp_path, capsys):
    saved(small_source(), tmp_path / "exercises" / "hw" / "hw.ipynb")
    saved(small_source(), tmp_path / "exercises" / ".ipynb_checkpoints" / "old.ipynb")
    assert course("release", tmp_path / "exercises", "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / "release" / "hw" / "hw.ipynb").is_file()
    assert len(list((tmp_path / "out" / "release").iterdir())) == 1
    assert "A new secret was made" in capsys.readouterr().out
    kept = (tmp_path / "out" / "instructor" / "secret").read_bytes()
    assert len(kept.strip()) == 64
    again, words = release.read_secret(tmp_path / "out", None)
    assert (again, words[:24]) == (kept.strip(), "The secret was read from")


# Refusals -----------------------------------------------------------------------------------------


def spoil_metadata(change: dict, name: str = "q1-check"):
    def spoil(notebook):
        cell(notebook, name).metadata["nbgrader"].update(change)

    return spoil


def spoil_source(name: str, source: str):
    def spoil(notebook):
        cell(notebook, name).source = source

    return spoil


def leak_output(notebook):
    cell(notebook, "q1-check").outputs[0].text += "twice_as_much = x + x\n"


def leak_metadata(notebook):
    cell(notebook, "q1-statement").metadata["course"]["hint"] = "twice_as_much  =  x+x"


def wrong_difficulty(notebook):
    cell(notebook, "q1-statement").metadata["course"]["difficulty"] = "easy"


def no_question(notebook):
    for entry in notebook.cells:
        entry.metadata.pop("course", None)


def poor_rubric(notebook):
    proof = nbformat.v4.new_markdown_cell(
        "### BEGIN SOLUTION\nAs seen.\n\n- [1] says so\n### END SOLUTION", id="q1-proof"
    )
    proof.metadata = meta("q1-proof", grade=True, solution=True, points=3)
    notebook.cells.append(proof)


def teacher_leak(notebook):
    note = nbformat.v4.new_markdown_cell("The usual mistake is x * x.", id="t")
    note.metadata = {"course": {"role": "teacher"}}
    notebook.cells.append(note)
    cell(notebook, "q1-statement").source += "\n\nThe usual mistake is x * x."


REFUSED_AT_ONCE = [
    (spoil_source("q1-statement", "Hint: twice_as_much = x + x"), "leaks into q1-statement"),
    (leak_output, "leaks into q1-check"),
    (leak_metadata, "leaks into q1-statement"),
    (teacher_leak, "a line of a teacher cell leaks"),
    (spoil_source("q1-check", CHECK + "\n\n2"), "ends in a value"),
    (spoil_source("q1-check", CHECK + "\nscore = 2\nscore"), "ends in a value"),
    (
        spoil_source(
            "q1-check", CHECK + "\n1.5\n### BEGIN HIDDEN TESTS\nprint('x')\n### END HIDDEN TESTS"
        ),
        "ends in a value",
    ),
    (spoil_source("q1-answer", "### BEGIN SOLUTION\nx = 1"), "without `### END SOLUTION`"),
    (spoil_source("q1-answer", "### END SOLUTION\nx = 1"), "without `### BEGIN SOLUTION`"),
    (
        spoil_source("q1-statement", "### BEGIN SOLUTION\nx\n### END SOLUTION"),
        "a SOLUTION region stands in a text cell",
    ),
    (spoil_metadata({"schema_version": 2}), "schema_version must be 3"),
    (spoil_metadata({"points": 0}), "worth no points"),
    (spoil_metadata({"grade_id": "q1-answer"}), "used twice"),
    (wrong_difficulty, "expected one of basic, standard, challenge"),
    (no_question, "it asks no question"),
    (poor_rubric, "adds up to 1, the cell is worth 3"),
]


@pytest.mark.parametrize(
    ("spoil", "words"), REFUSED_AT_ONCE, ids=[words[:30] for _, words in REFUSED_AT_ONCE]
)
def test_a_bad_source_is_refused_before_it_runs(spoil, words, tmp_path, capsys):
    notebook = small_source()
    spoil(notebook)
    saved(notebook, tmp_path / "hw" / "hw.ipynb")
    assert course("release", tmp_path / "hw", "--out", tmp_path / "out") == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_given_on_purpose_is_no_leak(tmp_path):
    notebook = small_source()
    given_cell = nbformat.v4.new_code_cell("x = 1\ntwice_as_much = x + x", id="given")
    given_cell.metadata = {"course": {"role": "given"}}
    notebook.cells.insert(1, given_cell)
    assert release.leaks(notebook, release.release_notebook(notebook)) == []
    given_cell.metadata = {}
    assert release.leaks(notebook, release.release_notebook(notebook))


def test_a_source_that_scores_wrongly_is_refused(tmp_path, capsys):
    notebook = several(6, timeout=30)
    spoil_source("q1-answer", ANSWER.replace("x + x", "x + x + 1"))(notebook)
    spoil_source("q2-check", CHECK.split("\n")[0] + '\nprint("right: double2(3)")')(notebook)
    by_assert = '# NBVAL_CHECK_OUTPUT\nassert double3(3.0) == 6\nprint("right: double3(3)")'
    spoil_source("q3-check", by_assert)(notebook)
    cell(notebook, "q4-check").outputs[0].text = "right: something else\n"
    spoil_source("q5-check", "def score():\n    return 2\n\n\nscore()")(notebook)
    cell(notebook, "q6-check").outputs, cell(notebook, "q6-check").execution_count = [], None
    saved(notebook, tmp_path / "hw" / "hw.ipynb")
    assert course("release", tmp_path / "hw", "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err.split("\n")
    assert not (tmp_path / "out").exists()

    def told(*words: str) -> bool:
        return any(all(word in line for word in words) for line in said)

    assert told("the source, q1-check", "does not score full marks: WrongAnswer")
    assert told("the untouched release, q2-check", "2 points for a stub")
    assert told("the untouched release, q3-check", "fails with NotImplementedError")
    assert told("with the right answers, q4-check", "the stored output is")
    assert told("q5-check", "ends in the bare number 2")
    assert told("q6-check", "has no stored output")


# The student's check ------------------------------------------------------------------------------


def test_an_untouched_release_scores_nothing(handed_out, capsys):
    assert course("check", handed_out) == 1
    lines = capsys.readouterr().out.strip().split("\n")
    assert [line.split()[0] for line in lines[1:12]] == ["open"] * 11
    assert all("not answered yet: the stub is left" in line for line in lines[1:12])
    assert lines[12].startswith("0 of 17 points")


def test_the_right_answers_pass(handed_out, capsys):
    notebook = read(handed_out)
    for name, source in solutions().items():
        cell(notebook, name).source = source
    saved(notebook, handed_out)
    assert course("check", handed_out) == 0
    lines = capsys.readouterr().out.strip().split("\n")
    assert [line.split()[0] for line in lines[1:12]] == ["passed"] * 11
    assert lines[12].startswith("17 of 17 points")


WRONG_AND_SAVED = {
    "q01-answer": (
        "def objective(A, x, y, lam):\n    return 0.5 * np.sum((A @ x - y) ** 2) + lam * (x @ x)",
        "you dropped the factor ½ in the penalty",
    ),
    "q02-answer-a": ("x_lecture = np.array([-80, 130]) / 251", "minimizer of ½‖Ax - y‖² + λ‖x‖²"),
    "q03-answer": (
        "def filter_factors(s, lam):\n    return list(s)",
        "is a list, not a NumPy array",
    ),
    "q04-answer": (
        "def tikhonov_svd(A, y, lam):\n    return A @ y / lam",
        "Is A used where Aᵀ is meant",
    ),
    "q05-answer": ("def limit_and_bound(A, y, lam):\n    return helper(A, y)", "in an answer cell"),
    "q06-answer-b": ("null_space_dimension = {'free': 2, 'zero'", "SyntaxError"),
    "q07-answer": (
        "def tikhonov_general(A, y, lam, D):\n    return np.nan * A.T @ y",
        "contains NaN",
    ),
    "q08-answer": ("def blur_adjoint(y, psf):\n    return blur(y, psf)", "A is used where Aᵀ is"),
    "q09-answer": (
        "def landweber(A, y, step, delta, tau, max_iter):\n"
        "    return {'x': A.T @ y[:, None], 'iterations': 1, 'converged': True}",
        ".ravel()",
    ),
    "q10-answer-a": ("def tsvd(A, y, rank):\n    y[0] = 0\n    return y", "changes its input `y`"),
}


def test_a_wrong_notebook_that_was_run_and_saved_is_seen_through(handed_out, capsys):
    notebook = read(handed_out)
    right = solutions()
    for entry in notebook.cells:
        name = nb.grade_id(entry)
        if nb.role(entry) in ("answer", "manual"):
            entry.source = WRONG_AND_SAVED.get(name, (right[name],))[0]
        if nb.role(entry) == "check":
            # The student overwrote the checks, and their outputs say that all is well.
            entry.source = "# NBVAL_CHECK_OUTPUT\nprint('right')"
            entry.outputs = [nbformat.v4.new_output("stream", name="stdout", text="right\n")]
            entry.metadata["nbgrader"]["points"] = 1000
    del cell(notebook, "q11-answer-b").metadata["nbgrader"]
    notebook.cells = [entry for entry in notebook.cells if nb.grade_id(entry) != "q11-answer-a"]
    saved(notebook, handed_out)
    assert course("check", handed_out) == 1
    lines = capsys.readouterr().out.strip().split("\n")
    assert [line.split()[0] for line in lines[1:12]] == ["wrong"] * 11
    for name, (_, words) in WRONG_AND_SAVED.items():
        assert words in lines[int(name[1:3])]
    assert "a stub is left" in lines[11] or "the stub is left" in lines[11]
    for line in lines[1:12]:
        assert "See " in line
    assert any(line.startswith("note: q11-answer-a: its answer cell is missing") for line in lines)
    assert lines[-1].startswith("0 of 17 points")
    assert not any("Traceback" in line or "NbCellError" in line for line in lines)


def small_release(tmp_path: Path, notebook) -> Path:
    """Write a small release without proving it; the notebook's path."""
    source = release.with_seeds(notebook, SECRET)
    released = release.release_notebook(source)
    parts = {"assignment": "hw", "released": {"hw": released}, "sources": {"hw": source}}
    release.write(release.Bundle(**parts, manifest={}), tmp_path / "out", SECRET)
    return tmp_path / "out" / "release" / "hw" / "hw.ipynb"


def several(count: int, timeout: float):
    """A source that asks the same question several times, under names of their own."""
    notebook = small_source(timeout=timeout)
    first = notebook.cells[1:]
    for number in range(2, count + 1):
        for entry in copy.deepcopy(first):
            text = (
                json.dumps(entry).replace("q1", f"q{number}").replace("double", f"double{number}")
            )
            notebook.cells.append(nbformat.from_dict(json.loads(text)))
    return notebook


def test_one_question_is_one_question(tmp_path, capsys):
    path = small_release(tmp_path, several(5, timeout=2))
    notebook = read(path)
    bodies = {
        "q1": "def double(x):\n    while True:\n        pass",
        "q2": "def double2(x):\n    import os\n    os._exit(1)",
        "q3": "def double3(x)\n    return 2 * x",
        "q4": "def double4(x):\n    print('hello')\n    return 2 * x",
        "q5": "def double5(x):\n    return 3 * x",
    }
    for name, source in bodies.items():
        cell(notebook, f"{name}-answer").source = source
    saved(notebook, path)
    assert course("check", path) == 1
    lines = capsys.readouterr().out.split("\n")
    assert "does not finish in time" in lines[1]
    assert "or it ends the Python process" in lines[2]
    assert "SyntaxError" in lines[3]
    assert lines[4].startswith("passed")
    assert "See page 2." in lines[5]
    assert lines[6].startswith("2 of 10 points")


def test_names_of_the_checks_that_are_overwritten_are_named(tmp_path, capsys):
    path = small_release(tmp_path, small_source())
    notebook = read(path)
    cell(notebook, "q1-answer").source = "check = 3\n\ndef double(x):\n    return 2 * x"
    saved(notebook, path)
    assert course("check", path) == 1
    assert "give a new meaning to a name that the checks use" in capsys.readouterr().out
    cell(
        notebook, "q1-answer"
    ).source = (
        "import builtins\nbuiltins.print = lambda *a: None\n\ndef double(x):\n    return 2 * x"
    )
    saved(notebook, path)
    assert course("check", path) == 1
    assert "it prints '' where 'right: double(3)' belongs" in capsys.readouterr().out


# Finding the answers ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pristine():
    return release.release_notebook(read(EXERCISE))


def found_sources(student, pristine) -> dict[str, str]:
    found = answers.find_answers(student, pristine)
    return {nb.grade_id(pristine.cells[index]): answer.source for index, answer in found.items()}


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_answers_are_found_however_the_notebook_was_rearranged(pristine, data):
    right = solutions()
    student = copy.deepcopy(pristine)
    cells = []
    for entry in student.cells:
        if nb.role(entry) not in ("answer", "manual"):
            cells.append(entry)
            continue
        entry.source = right[nb.grade_id(entry)]
        loss = data.draw(st.sampled_from(["nothing", "id", "metadata", "copied", "stub first"]))
        if loss == "id":
            entry.id = f"x{len(cells)}"
        if loss == "metadata":
            entry.metadata = {}
        if loss in ("id", "metadata") and entry.cell_type == "code" and data.draw(st.booleans()):
            entry.id, entry.metadata = f"x{len(cells)}", {}
        if loss == "copied":
            cells.append(copy.deepcopy(entry))
        if loss == "stub first":
            stub = copy.deepcopy(entry)
            name = nb.grade_id(entry)
            stub.source = cell(pristine, name).source
            cells.append(stub)
        cells.append(entry)
    student.cells = data.draw(st.permutations(cells))
    assert found_sources(student, pristine) == right


def test_the_last_of_several_answers_counts_and_is_named(pristine):
    student = copy.deepcopy(pristine)
    first = cell(student, "q01-answer")
    first.source = "def objective(A, x, y, lam):\n    return 1"
    second = copy.deepcopy(first)
    second.source, second.id = "def objective(A, x, y, lam):\n    return 2", "copy"
    student.cells.append(second)
    index = next(i for i, c in enumerate(pristine.cells) if nb.grade_id(c) == "q01-answer")
    answer = answers.find_answers(student, pristine)[index]
    assert answer.source.endswith("return 2")
    assert answer.remark == "2 cells hold an answer; the last one counts"


def test_nothing_but_answers_is_taken(pristine):
    student = copy.deepcopy(pristine)
    for entry in student.cells:
        if nb.role(entry) not in ("answer", "manual"):
            entry.source, entry.metadata["tags"] = "raise SystemExit", ["nbval-skip"]
    merged = answers.with_answers(pristine, answers.find_answers(student, pristine))
    assert nb.notebook_text(merged) == nb.notebook_text(pristine)


# Bad input ----------------------------------------------------------------------------------------


def test_other_encodings_and_older_versions_are_read(tmp_path, pristine):
    text = nb.notebook_text(pristine)
    path = tmp_path / "bom.ipynb"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\\n", "\\r\\n").encode("utf-8"))
    assert [c.source for c in nb.read_notebook(path).cells] == [c.source for c in pristine.cells]
    old = nbformat.convert(copy.deepcopy(pristine), 3)
    path.write_text(nbformat.v3.writes_json(old), encoding="utf-8")
    assert len(nb.read_notebook(path).cells) == len(pristine.cells)


BAD_FILES = {
    "empty": (b"", "is empty"),
    "not_json": (b"def f(x): return x", "not JSON"),
    "truncated": (b'{"cells": [{"cell_type": "code", "source": ["x =', "It may be cut short"),
    "binary": (b"\x89PNG\r\n\x1a\n\xff\xfe", "not text in UTF-8"),
    "a_list": (b"[1, 2]", "it has no cells"),
    "other_json": (b'{"a": 1}', "it has no cells"),
    "damaged": (b'{"cells": [3], "nbformat": 4, "nbformat_minor": 5}', "a cell is damaged"),
    "damaged_cells": (b'{"cells": 3, "nbformat": 4, "nbformat_minor": 5}', "a cell is damaged"),
    "no_source": (
        b'{"cells": [{"cell_type": "code", "metadata": {}}], "metadata": {}, "nbformat": 4,'
        b' "nbformat_minor": 5}',
        "a cell is damaged",
    ),
    "deep": (b"[" * 200_000, "not JSON"),
    "wrong_notebook": (
        b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}',
        "none of its 17 answer cells",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_notebooks_get_a_sentence(name, handed_out, capsys):
    content, words = BAD_FILES[name]
    path = handed_out.parent / f"{name}.ipynb"
    path.write_bytes(content)
    assert course("check", path) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == ""
    assert said.err.strip().count("\n") == 0


def test_missing_and_odd_paths_get_a_sentence(handed_out, tmp_path, capsys):
    assert course("check", tmp_path / "nowhere.ipynb") == 2
    assert "There is no file" in capsys.readouterr().err
    assert course("check", tmp_path) == 2
    assert "is not a file" in capsys.readouterr().err
    os.mkfifo(tmp_path / "pipe.ipynb")
    assert course("check", tmp_path / "pipe.ipynb") == 2
    assert "is not a file" in capsys.readouterr().err
    assert course("release", tmp_path / "nowhere", "--out", tmp_path / "o") == 2
    assert "There is no file" in capsys.readouterr().err
    (tmp_path / "void").mkdir()
    assert course("release", tmp_path / "void", "--out", tmp_path / "o") == 2
    assert "holds no notebook" in capsys.readouterr().err
    assert course("release", EXERCISE, "--out", handed_out) == 2
    assert "is a file; --out names a folder" in capsys.readouterr().err
    (tmp_path / "short").write_bytes(b"abc")
    assert course("release", EXERCISE, "--out", tmp_path / "o", "--secret", tmp_path / "short") == 2
    assert "fewer than 16 bytes" in capsys.readouterr().err
    assert course("release", EXERCISE, "--out", tmp_path / "o", "--secret", tmp_path / "no") == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_notebook_above_the_size_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(nb, "SIZE_LIMIT", 10)
    (tmp_path / "big.ipynb").write_text("{" + " " * 20)
    with pytest.raises(HomeworkError, match="larger than"):
        nb.read_notebook(tmp_path / "big.ipynb")


def test_the_pristine_copy_must_be_there_and_whole(handed_out, bundle, tmp_path, capsys):
    hidden = handed_out.parent / ".pristine"
    alone = tmp_path / "alone" / "02_tikhonov.ipynb"
    alone.parent.mkdir()
    shutil.copy(handed_out, alone)
    assert course("check", alone) == 2
    assert "--release DIR" in capsys.readouterr().err
    named = student_check.find_pristine(alone, read(alone), str(bundle / "release/02_tikhonov"))
    assert nb.notebook_text(named) == handed_out.read_text(encoding="utf-8")

    text = (hidden / "02_tikhonov.ipynb").read_text(encoding="utf-8")
    (hidden / "02_tikhonov.ipynb").write_text(text.replace("4.5", "9.0"), encoding="utf-8")
    assert course("check", handed_out) == 2
    assert "was changed" in capsys.readouterr().err
    (hidden / "02_tikhonov.ipynb").unlink()
    assert course("check", handed_out) == 2
    assert "is missing" in capsys.readouterr().err
    (hidden / "manifest.json").write_text("{")
    assert course("check", handed_out) == 2
    assert "manifest.json is damaged" in capsys.readouterr().err


def test_a_renamed_notebook_finds_its_pristine_copy(handed_out):
    renamed = handed_out.with_name("my work (1).ipynb")
    handed_out.rename(renamed)
    assert student_check.find_pristine(renamed, read(renamed), None)


def test_the_help_names_the_commands_that_exist():
    done = subprocess.run(
        [sys.executable, "-m", "course_lib.homework.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    commands = ["release", "check", "grade", "regrade", "mark", "feedback", "export", "doctor"]
    assert re.findall(r"^    (\w+) ", done.stdout, re.M) == commands


# nbgrader -----------------------------------------------------------------------------------------


def nbgrader(folder: Path, *arguments: str) -> None:
    """Run nbgrader itself, with a home of its own."""
    surroundings = {
        **os.environ,
        "HOME": str(folder),
        "JUPYTER_CONFIG_DIR": str(folder / "jupyter"),
    }
    surroundings["IPYTHONDIR"] = str(folder / "ipython")
    # nbgrader calls alembic by name.
    surroundings["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments, "--course", str(folder)],
        cwd=folder,
        env=surroundings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_nbgrader_uses_the_same_source(bundle, tmp_path):
    pytest.importorskip("nbgrader", reason="nbgrader is not installed (extra [test] has it)")
    folder = tmp_path / "course"
    shutil.copytree(bundle / "source", folder / "source")
    nbgrader(folder, "generate_assignment", "02_tikhonov")
    theirs = read(folder / "release" / "02_tikhonov" / "02_tikhonov.ipynb")
    ours = read(bundle / "release" / "02_tikhonov" / "02_tikhonov.ipynb")

    def comparable(notebook) -> list[tuple]:
        cells = []
        for entry in notebook.cells:
            lines = [
                "raise NotImplementedError()" if "raise NotImplementedError" in line else line
                for line in entry.source.rstrip().replace("\n    raise", "\nraise").split("\n")
            ]
            graded = {
                k: v for k, v in nb.nbgrader(entry).items() if k not in ("checksum", "cell_type")
            }
            cells.append(
                (
                    entry.cell_type,
                    "\n".join(lines),
                    graded,
                    entry.metadata.get("deletable"),
                    entry.metadata.get("editable"),
                )
            )
        return cells

    for mine, other in zip(comparable(ours), comparable(theirs), strict=True):
        assert mine == other

    right, wrong = copy.deepcopy(ours), copy.deepcopy(ours)
    for name, source in solutions().items():
        cell(right, name).source = source
        cell(wrong, name).source = WRONG_AND_SAVED.get(name, (source,))[0]
    cell(wrong, "q06-answer-b").source = "null_space_dimension = {'free': 1, 'zero': 1}"
    for student, notebook in (("right", right), ("wrong", wrong)):
        saved(notebook, folder / "submitted" / student / "02_tikhonov" / "02_tikhonov.ipynb")
    nbgrader(folder, "autograde", "02_tikhonov", "--create")
    with sqlite3.connect(folder / "gradebook.db") as database:
        found = database.execute(
            "select student.id, base_cell.name, grade.auto_score from grade"
            " join base_cell on grade.cell_id = base_cell.id"
            " join submitted_notebook on grade.notebook_id = submitted_notebook.id"
            " join submitted_assignment"
            " on submitted_notebook.assignment_id = submitted_assignment.id"
            " join student on submitted_assignment.student_id = student.id"
        ).fetchall()
    points = {(student, name): score for student, name, score in found if score is not None}
    marks = {s: sum(p for (t, _), p in points.items() if t == s) for s in ("right", "wrong")}
    assert marks == {"right": 40, "wrong": 6}
    if sys.platform == "linux":  # course grade gives each cell the same
        classroom.grade(bundle, folder, tmp_path / "graded")
        records = grade.read_records(tmp_path / "graded")
        checks = [(r["student"], c) for r in records for q in r["questions"] for c in q["checks"]]
        ours = {(student, c["grade_id"]): c["max"] * c["passed"] for student, c in checks}
        assert ours == {key: score for key, score in points.items() if key in ours}
        assert sum(ours.values()) == 46
