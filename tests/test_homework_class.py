"""A class as a whole: memory that does not grow with it, output that nobody reads, tensors."""

import copy
import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import Future
from pathlib import Path

import hostile
import pytest

if sys.platform != "linux":
    pytest.skip("students' code is run on Linux only", allow_module_level=True)

from course_lib.homework import assignment as assignments
from course_lib.homework import classroom, gradebook, mark, process, release, sandbox, several
from course_lib.homework import grade as grading
from course_lib.homework import notebook as nb
from course_lib.homework.sandbox import Limits, Worker

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


# Memory -------------------------------------------------------------------------------------------

LONG = "\n# " + "x" * 40_000  # each record holds what the student wrote


def handed_in(folder: Path, count: int) -> None:
    """A bundle, and a class with long answers."""
    hostile.write_bundle(folder / "bundle")
    answers = {name: text + LONG for name, text in hostile.ANSWERS.items()}
    notebook = hostile.answered(**answers)
    for number in range(count):
        hostile.save(notebook, folder / "class" / f"student{number:03d}")


class InThisProcess(several.Here):
    """The crew of `--jobs`, with its jobs done at once and here."""

    def submit(self, job: process.Job) -> Future:
        future: Future = Future()
        future.set_result(process.grade_job(job))
        return future


def peak(folder: Path, count: int, jobs: int) -> float:
    """The most that a run over the class, its gradebook and its feedback hold at once, in MB."""
    handed_in(folder, count)
    tracemalloc.start()
    try:
        out = folder / "out"
        classroom.grade(folder / "bundle", folder / "class", out, jobs=jobs)
        mark.feedback(out)
        assert len(list((out / "feedback").glob("*/small/small.html"))) == count
        gradebook.export(out, "canvas")
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("jobs", [1, 2])
def test_memory_is_flat_in_the_size_of_the_class(jobs, tmp_path, monkeypatch):
    """What students wrote is 0.2 MB a record here; what is kept of it must be far less."""
    right = grading.Outcome(passed={"q1-visible": True}, points=1.0, status="graded")
    monkeypatch.setattr(grading, "run_question", lambda *_: right)
    monkeypatch.setattr(several, "Here", InThisProcess)
    peak(tmp_path / "warm", 3, jobs)
    few, many = peak(tmp_path / "few", 20, jobs), peak(tmp_path / "many", 80, jobs)
    assert many - few < 60 * 0.2 / 10


# Output that nobody reads -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graded(tmp_path_factory) -> Path:
    """Three students, graded by a command whose output was read for one line only."""
    folder = tmp_path_factory.mktemp("class")
    hostile.write_bundle(folder / "bundle")
    for name in ("ada", "bob", "cyd"):
        hostile.save(hostile.answered(q4="It is linear."), folder / "class" / name)
    return folder


def run(folder: Path, *arguments: str, lines: int) -> subprocess.CompletedProcess:
    """Run a command with a reader that leaves after some lines."""
    command = [sys.executable, "-m", "course_lib.homework.cli", *arguments]
    reading, writing = os.pipe()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(reading, encoding="utf-8") as reader:
        running = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True
        )
        os.close(writing)
        for _ in range(lines):
            assert reader.readline()
    _, said = running.communicate(timeout=100)
    return subprocess.CompletedProcess(command, running.returncode, None, said)


@pytest.mark.parametrize("lines", [0, 1])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_run_whose_progress_nobody_reads_goes_on(graded, lines, jobs):
    out = f"out{lines}{jobs}"
    where = ("--bundle", "bundle", "--submissions", "class", "--out", out, "--jobs", jobs)
    done = run(graded, "grade", *where, lines=lines)
    assert (done.returncode, done.stderr) == (0, "")
    rows = gradebook.rows(graded / out)
    assert {row["student"] for row in rows} == {"ada", "bob", "cyd"}
    assert sum(row["points"] for row in rows) == 3 * 8
    assert (graded / out / "gradebook.csv").read_text("utf-8") == gradebook.export(
        graded / out, "csv"
    )


@pytest.mark.parametrize("command", ["export", "feedback", "doctor"])
def test_a_command_whose_output_nobody_reads_ends_without_a_traceback(graded, command):
    if not (graded / "out").exists():
        classroom.grade(graded / "bundle", graded / "class", graded / "out")
    where = () if command == "doctor" else ("--out", "out")
    done = run(graded, command, *where, lines=0)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_pipe_of_another_kind_is_not_passed_over(monkeypatch):
    from course_lib.homework import cli

    def broken(_: object) -> int:
        raise BrokenPipeError("a pipe to somewhere else")

    monkeypatch.setitem(cli._COMMANDS, "doctor", broken)
    with open(os.devnull, "w", encoding="ascii") as nowhere:
        monkeypatch.setattr(sys, "stdout", nowhere)
        with pytest.raises(BrokenPipeError, match="somewhere else"):
            cli.main(["doctor"])


# Tensors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [False, True])
def test_a_tensor_where_an_array_is_asked_for(allowed):
    """It is named, and a question that takes ``np.asarray(call(...))`` accepts it."""
    pytest.importorskip("torch")
    source = copy.deepcopy(hostile.source())
    for cell in source.cells if allowed else []:
        if nb.grade_id(cell).startswith("q3-"):
            cell.source = cell.source.replace(
                'call("solve", A, y)', 'np.asarray(call("solve", A, y))'
            ).replace('call("solve", A, A @ x)', 'np.asarray(call("solve", A, A @ x))')
    task = assignments.Task("small", source, release.release_notebook(source), nb.questions(source))
    answer = "import torch\ndef solve(A, y):\n    return torch.tensor(np.linalg.solve(A, y))"
    with Worker(sandbox.probe()[0], Limits(memory_mb=4096), task.set_up) as student:
        results = grading.grade_notebook(task, hostile.answered(q3=answer), student)
    if allowed:
        assert results[2]["points"] == 3
    else:
        assert results[2]["points"] == 0
        assert (
            "is a torch.Tensor; a NumPy array of shape (2,) is asked for" in results[2]["message"]
        )
