"""``course grade`` with several submissions at once: on a Dask cluster, and with ``--jobs``.

The cluster is real: a scheduler and two workers on loopback, in processes of their own.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import hostile
import pytest

from course_lib.homework import (
    assignment,
    classroom,
    cli,
    cluster,
    grade,
    process,
    sandbox,
    several,
    submissions,
)
from course_lib.homework.notebook import HomeworkError
from course_lib.homework.sandbox import Stopped

pytestmark = pytest.mark.slow
if sys.platform != "linux":
    pytest.skip("students' code is run on Linux only", allow_module_level=True)

ROOT = Path(__file__).parents[1]
WALLS = sandbox.probe()[0] != "rlimits"
SLOW = "import time\ntime.sleep(0.3)\ndef double(x):\n    return 2 * x"


class Dask:
    """A scheduler and workers on this machine; all of it ends with the context."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, []
        self.address = ""

    def __enter__(self) -> "Dask":
        self.folder.mkdir()
        place = self.folder / "scheduler.json"
        try:
            self._start("scheduler", "--port", "0", "--scheduler-file", str(place))
            self._until(place.exists)
        except BaseException:
            self.__exit__()
            raise
        self.address = json.loads(place.read_text())["address"]
        return self

    def __exit__(self, *_: object) -> None:
        for started in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()

    def _start(self, what: str, *arguments: str, library: Path = ROOT) -> subprocess.Popen:
        log = self.folder / f"{len(self.processes)}.log"
        command = [sys.executable, "-m", "dask", what, "--host", "127.0.0.1", "--no-dashboard"]
        environment = {**os.environ, "PYTHONPATH": str(library)}
        with log.open("w") as stream:
            self.processes.append(
                subprocess.Popen([*command, *arguments], stdout=stream, stderr=stream,
                                 env=environment, cwd=self.folder, start_new_session=True)
            )  # fmt: skip
        return self.processes[-1]

    def worker(self, **more: Path) -> subprocess.Popen:
        """Start a worker with one thread, and wait until the scheduler knows it."""
        log = self.folder / f"{len(self.processes)}.log"
        arguments = ("--no-nanny", "--nthreads", "1", "--local-directory", str(self.folder))
        started = self._start("worker", self.address, *arguments, **more)
        self._until(lambda: "Registered to:" in log.read_text())
        return started

    def _until(self, true) -> None:
        stop = time.monotonic() + 60
        while not true():
            log = self.folder / f"{len(self.processes) - 1}.log"
            assert self.processes[-1].poll() is None, log.read_text()
            assert time.monotonic() < stop, log.read_text()
            time.sleep(0.05)


@pytest.fixture(scope="module")
def dask(tmp_path_factory) -> Iterator[Dask]:
    """A cluster that no test harms."""
    with Dask(tmp_path_factory.mktemp("dask") / "cluster") as running:
        for _ in range(2):
            running.worker()
        yield running


@pytest.fixture(scope="module")
def handed_in(tmp_path_factory) -> Path:
    """A bundle, eight submissions, some slow and some hostile, and their records one by one."""
    folder = tmp_path_factory.mktemp("class")
    hostile.write_bundle(folder / "bundle")
    for number in range(5):
        answers = {"q1": SLOW} if number % 2 else {"q3": f"def solve(A, y):\n    return {number}"}
        hostile.save(hostile.answered(**answers), folder / "class" / f"student {number}")
    chosen = {"os._exit(0) in the cell", "cut short", "an empty folder"}
    entries = [entry for entry in hostile.CLASS if entry.what in chosen]
    for entry in entries:
        entry.make(folder / "class" / entry.name)
    assert len(entries) == 3
    classroom.grade(folder / "bundle", folder / "class", folder / "alone")
    return folder


def records(out: Path) -> dict[str, dict]:
    """All records by file, without what differs from run to run."""
    found = {path.name: json.loads(path.read_text()) for path in out.glob("records/*/*.json")}
    for record in found.values():
        assert record.pop("seconds") >= 0
        assert record.pop("graded_at") > 0
    return found


def arguments(folder: Path, out: Path) -> list[str]:
    places = {"--bundle": folder / "bundle", "--submissions": folder / "class", "--out": out}
    return ["grade", *(str(word) for pair in places.items() for word in pair)]


graders: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def no_grader_is_left() -> Iterator[None]:
    """Whatever fails, no command line goes on after its test."""
    yield
    while graders:
        with graders.pop() as grader:
            grader.kill()


def course(*words: str) -> subprocess.Popen:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "course_lib.homework.cli", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    grader = subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # Ctrl-C also where a shell started the tests in the background, which ignores it.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    graders.append(grader)
    return grader


def until_line(grader: subprocess.Popen, start: str) -> str:
    """Read what it prints up to the line that begins so."""
    said = ""
    for line in grader.stdout:
        said += line
        if line.startswith(start):
            return said
    raise AssertionError(said)


# The cluster --------------------------------------------------------------------------------------


def test_a_worker_that_is_killed_costs_nothing(handed_in, tmp_path):
    with Dask(tmp_path / "cluster") as running:
        workers = [running.worker(), running.worker()]
        grader = course(*arguments(handed_in, tmp_path / "out"), "--scheduler", running.address)
        said = until_line(grader, "[3/8]")
        workers[0].kill()
        said += grader.communicate(timeout=120)[0]
        left = workers[1].poll()
    assert grader.returncode == 0, said
    assert left is None
    assert "8 graded, 0 kept from before" in said
    done = re.findall(r"^\[\d+/8\] (.*?)  small: ", said, flags=re.MULTILINE)
    assert len(done) == len(set(done)) == 8
    assert records(tmp_path / "out") == records(handed_in / "alone")
    gradebook = (tmp_path / "out" / "gradebook.csv").read_text()
    assert gradebook == (handed_in / "alone" / "gradebook.csv").read_text()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_a_client_that_was_stopped_goes_on(handed_in, dask, tmp_path, how):
    grader = course(*arguments(handed_in, tmp_path), "--scheduler", dask.address)
    said = until_line(grader, "[3/8]")
    grader.send_signal(how)
    said += grader.communicate(timeout=60)[0]
    assert grader.returncode == (2 if how == signal.SIGINT else -9), said
    assert said.endswith("Stopped.\n") == (how == signal.SIGINT), said
    there = records(tmp_path)
    assert 3 <= len(there) < 8
    assert there.items() <= records(handed_in / "alone").items()
    again = course(*arguments(handed_in, tmp_path), "--scheduler", dask.address)
    said = again.communicate(timeout=120)[0]
    assert f"{8 - len(there)} graded, {len(there)} kept from before" in said
    assert records(tmp_path) == records(handed_in / "alone")


def test_a_scheduler_that_is_killed_is_named_and_the_run_goes_on_elsewhere(
    handed_in, dask, tmp_path
):
    with Dask(tmp_path / "cluster") as running:
        running.worker()
        grader = course(*arguments(handed_in, tmp_path / "out"), "--scheduler", running.address)
        until_line(grader, "[2/8]")
        running.processes[0].kill()
        said = grader.communicate(timeout=60)[0]
    assert grader.returncode == 2
    assert f"The Dask scheduler at {running.address} does not answer any more" in said
    assert "start this command again to go on" in said
    assert "Traceback" not in said, said
    there = len(records(tmp_path / "out"))
    assert there >= 2
    again = course(*arguments(handed_in, tmp_path / "out"), "--scheduler", dask.address)
    assert f"{there} kept from before" in again.communicate(timeout=120)[0]
    assert records(tmp_path / "out") == records(handed_in / "alone")


@pytest.mark.skipif(not WALLS, reason="limits alone do not stop this")
def test_what_attacks_its_machine_harms_nobody_on_the_cluster(dask, tmp_path):
    hostile.write_bundle(tmp_path / "bundle")
    wanted = {
        "kills every process that it may",
        "forks without end",
        "fills shared memory, which no limit of a process counts",
        "searches the machine for the solution and runs it",
        "tries to reach the network",
        "prints without end",
    }
    entries = [entry for entry in hostile.CLASS if entry.what in wanted]
    assert len(entries) == len(wanted)
    for entry in entries:
        entry.make(tmp_path / "class" / entry.name)
    hostile.save(hostile.answered(), tmp_path / "class" / "ada")
    grader = course(*arguments(tmp_path, tmp_path / "out"), "--scheduler", dask.address)
    said = grader.communicate(timeout=120)[0]
    assert grader.returncode == 0, said
    points = {
        record["student"]: [question["points"] for question in record["questions"]]
        for record in records(tmp_path / "out").values()
    }
    assert points.pop("ada") == [3, 2, 3, 0]
    assert points == {e.name: [e.points, *points[e.name][1:]] for e in entries}
    assert {e.name: sum(points[e.name][1:]) for e in entries} == {e.name: e.rest for e in entries}
    assert [started.poll() for started in dask.processes] == [None] * 3


def copy_of_the_library(folder: Path, old: str, new: str) -> Path:
    shutil.copytree(ROOT / "course_lib", folder / "course_lib")
    place = folder / "course_lib" / "homework" / "grade.py"
    text = place.read_text()
    assert old in text
    place.write_text(text.replace(old, new))
    return folder


def test_a_worker_with_another_grader_gets_no_work(handed_in, tmp_path):
    other = copy_of_the_library(tmp_path / "other", f"GRADER = {grade.GRADER}", "GRADER = 99")
    words = f"GRADER 99 (here {grade.GRADER})"
    out = tmp_path / "out"
    with Dask(tmp_path / "cluster") as running:
        strange = running.worker(library=other)
        refused = course(*arguments(handed_in, out), "--scheduler", running.address)
        said = refused.communicate(timeout=60)[0]
        assert refused.returncode == 2
        assert words in said
        assert "so nothing is graded there" in said
        assert not records(out)
        strange.kill()
        strange.wait()
        first = running.worker()
        grader = course(*arguments(handed_in, out), "--scheduler", running.address)
        said = until_line(grader, "[1/8]")
        first.send_signal(signal.SIGSTOP)  # so that work is left
        running.worker(library=other)  # it comes when the others were checked
        said += grader.communicate(timeout=60)[0]
    assert grader.returncode == 2, said
    assert words in said
    assert 1 <= len(records(out)) < 8
    assert records(out).items() <= records(handed_in / "alone").items()


def test_no_scheduler_is_said_soon(handed_in, dask, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 1.0)
    worker = re.search(r"tcp://[\d.:]+", (dask.folder / "1.log").read_text())[0]
    addresses = {
        "tcp://127.0.0.1:1": "Timed out",
        "nonsense": "missing port number",
        worker: "a Dask Worker is there",
    }
    for address, why in addresses.items():
        begun = time.monotonic()
        assert cli.main([*arguments(handed_in, tmp_path), "--scheduler", address]) == 2
        assert time.monotonic() - begun < 10
        said = capsys.readouterr().err
        assert f"No Dask scheduler answers at {address} (" in said
        assert why in said
        assert "`dask scheduler` prints its address" in said


def test_a_scheduler_without_workers_is_waited_for_and_named(handed_in, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_WORKERS_SECONDS", 1.0)
    with Dask(tmp_path / "cluster") as running:
        with (
            pytest.raises(several.Unfit, match="has no workers after 1 s. Start some: dask worker"),
            cluster.connected(running.address, "bwrap"),
        ):
            pass
        monkeypatch.setattr(cluster, "_WORKERS_SECONDS", 60.0)
        later = threading.Timer(1.0, running.worker)
        later.start()
        with cluster.connected(running.address, "bwrap") as crew:
            assert crew.room() == 2
        later.join()


class Client:
    """What `cluster.Cluster` asks a client, answered without a cluster."""

    def __init__(
        self, threads: int = 1, level: str = "bwrap", problem: str = "", numpy="", **versions
    ):
        self.threads, self.versions = threads, versions
        library = cluster.LIBRARY | ({"numpy": numpy} if numpy else {})
        self.said = {"library": library, "level": level, "problem": problem}

    def get_executor(self, **_):
        return None

    def nthreads(self):
        return {"tcp://w:1": self.threads} if self.threads else {}

    def get_versions(self):
        from distributed.versions import get_versions  # late: it takes a second

        packages = get_versions()["packages"]
        return {"workers": {"tcp://w:1": {"packages": packages | self.versions}}}

    def run(self, function, on_error):
        return {"tcp://w:1": self.said}


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({"python": "3.99.1.final.0"}, "tcp://w:1: python 3.99 (here 3."),
        ({"distributed": "1.0"}, "tcp://w:1: distributed 1.0 (here 20"),
        ({"numpy": "1.0"}, "tcp://w:1: numpy 1.0 (here "),
        ({"level": "", "problem": "No sandbox."}, "tcp://w:1: No sandbox."),
    ],
    ids=["python", "distributed", "numpy", "sandbox"],
)
def test_workers_that_differ_are_refused(there, words):
    with pytest.raises(several.Unfit, match=re.escape(words)):
        cluster.Cluster(Client(**there), "tcp://s:1", "bwrap").look()


def test_another_patch_of_python_does_not_matter(capsys):
    python = f"{sys.version_info[0]}.{sys.version_info[1]}.99.final.0"
    cluster.Cluster(Client(python=python), "tcp://s:1", "bwrap").look()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("there", "here", "lines"),
    [
        ("rlimits", "bwrap", 2),
        ("namespaces", "bwrap", 1),
        ("bwrap", "namespaces", 0),
        ("rlimits", "rlimits", 2),
    ],
)
def test_weaker_isolation_is_said_loudly_and_once(there, here, lines, capsys):
    crew = cluster.Cluster(Client(level=there), "tcp://s:1", here)
    crew.look()
    crew.look()
    said = capsys.readouterr().err
    assert said.count("WARNING") == lines
    assert ("anything on the whole cluster" in said) == (there == "rlimits")


def test_workers_that_do_not_come_back_end_the_run(monkeypatch):
    monkeypatch.setattr(cluster, "_WORKERS_SECONDS", 0.1)
    crew = cluster.Cluster(Client(threads=0), "tcp://s:1", "bwrap")
    assert crew.room() == 0
    time.sleep(0.2)
    with pytest.raises(several.Unfit, match="No worker is left at tcp://s:1"):
        crew.room()


def test_without_distributed_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(HomeworkError, match=r"pip install 'learning-to-regularize\[homework\]'"),
        cluster.connected("tcp://s:1", "bwrap"),
    ):
        pass


def test_grading_without_a_cluster_does_not_load_dask():
    script = (
        "import sys\nfrom course_lib.homework import classroom, cli, cluster, several\n"
        "print([name for name in sys.modules if name in ('dask', 'distributed', 'tornado')])"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)  # fmt: skip
    assert said.stdout == "[]\n"


# The loop -----------------------------------------------------------------------------------------


class Crew:
    """A crew that runs no code and gives no points; ``fails`` says which of its jobs fail."""

    def __init__(self, fails=lambda count: False, room: int = 2):
        self.fails, self._room, self.open, self.most, self.count = fails, room, [], 0, 0

    def room(self) -> int:
        for future in self.open[:]:
            if self.fails(self.count):
                future.set_exception(HomeworkError("no space left."))
            else:
                future.set_result(grade.grade_chosen({}, [], self.task, "bwrap"))
            self.open.remove(future)
            self.count += 1
        return self._room

    def submit(self, job: process.Job) -> Future:
        self.task = process._assignment(job.assignment)
        self.open.append(Future())
        self.most = max(self.most, len(self.open))
        return self.open[-1]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch) -> None:
    """The loop looks at its crew often: the one above moves only then."""
    monkeypatch.setattr(several, "_LOOK_SECONDS", 0.02)


def ready(folder: Path, students: int) -> tuple:
    """A run over a class that need not wait for anything."""
    hostile.write_bundle(folder / "bundle")
    for number in range(students):
        hostile.save(hostile.answered(), folder / "class" / f"s{number:02d}")
    bundle = assignment.read_bundle(folder / "bundle")
    work = submissions.find(folder / "class", bundle)
    return grade.Order(folder / "out", "bwrap"), bundle, work


def test_a_bounded_number_is_handed_over_and_all_are_graded(tmp_path):
    crew = Crew(room=3)
    done = list(several.run(*ready(tmp_path, 10), crew))
    assert crew.most <= 3
    assert sorted(entry.student for entry, _, _ in done) == [f"s{n:02d}" for n in range(10)]
    assert len(records(tmp_path / "out")) == 10


def test_a_job_that_is_lost_is_done_again(tmp_path):
    done = list(several.run(*ready(tmp_path, 3), Crew(lambda count: count < 2)))
    assert [what for _, what, _ in done] == ["new"] * 3


def test_one_that_nobody_can_grade_stops_nobody_else(tmp_path):
    done = list(several.run(*ready(tmp_path, 4), Crew(lambda count: count < 3, room=1)))
    assert [what for _, what, _ in done] == ["failed", "new", "new", "new"]
    assert done[0][2] == {"problem": "no space left."}
    assert len(records(tmp_path / "out")) == 3


def test_when_all_fail_the_run_ends(tmp_path):
    order, bundle, work = ready(tmp_path, 10)
    with pytest.raises(several.Unfit, match="5 submissions one after another .* no space left."):
        list(several.run(order, bundle, work, Crew(lambda count: True)))
    for entry in work:  # and all locks are free again
        with grade.claimed(order, bundle["small"], entry) as (what, _):
            assert what == "new"


def test_a_failure_is_in_the_summary_and_the_exit_status(tmp_path, capsys, monkeypatch):
    ready(tmp_path, 3)
    monkeypatch.setattr(several, "Here", lambda *_: Crew(lambda count: count < 3, room=1))
    monkeypatch.setattr(Crew, "close", lambda self: None, raising=False)
    assert cli.main([*arguments(tmp_path, tmp_path / "out"), "--jobs", "2"]) == 2
    said = capsys.readouterr()
    assert "[1/3] s00  small: FAILED: no space left." in said.out
    assert "2 graded, 0 kept" in said.err
    assert "1 submissions could not be graded" in said.err


# Processes ----------------------------------------------------------------------------------------


def below() -> dict[int, bytes]:
    """The grading processes that this one has started."""
    found = {}
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = place.read_bytes()
            if b"homework.process import main" in words and str(os.getpid()).encode() in words:
                found[int(place.parent.name)] = words
    return found


def test_a_process_that_is_killed_costs_nothing_with_jobs_too(handed_in, tmp_path):
    seen: set[int] = set()

    def kill_one() -> None:
        stop = time.monotonic() + 30
        while not seen and time.monotonic() < stop:
            if len(records(tmp_path)) >= 2:
                seen.update(list(below())[:1])
                os.kill(next(iter(seen)), signal.SIGKILL)
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    assert cli.main([*arguments(handed_in, tmp_path), "--jobs", "2"]) == 0
    killer.join()
    assert seen
    assert records(tmp_path) == records(handed_in / "alone")
    assert not below()


def test_a_process_that_does_not_end_is_ended(tmp_path):
    _, bundle, work = ready(tmp_path, 1)
    packed = process.pack(bundle["small"])
    _, chosen = grade.read_submission(work[0], bundle["small"])
    job = process.Job(packed, process.pack((chosen, [])), 0.05, sandbox.probe()[0])
    pool = process.Pool()
    with pytest.raises(HomeworkError, match="was killed after .* s .exit status -9."):
        pool.grade(job)
    pool.close()
    with pytest.raises(HomeworkError, match="was stopped"):
        pool.grade(job)
    assert not below()


def test_a_fault_of_the_grader_is_a_sentence(tmp_path):
    job = process.Job(process.pack("no assignment"), process.pack(({}, [])), 60.0, "bwrap")
    pool = process.Pool()
    with pytest.raises(HomeworkError, match="The grader fails with AttributeError"):
        pool.grade(job)
    assert len(below()) == 1  # and the process serves on
    pool.close()
    assert not below()


def test_a_process_ends_by_itself_when_nothing_comes(monkeypatch):
    command = f"import sys; from {process.__name__} import main; import {process.__name__} as p; "
    started = subprocess.Popen(
        [sys.executable, "-c", command + "p._IDLE_SECONDS = 0.1; main()", str(os.getpid())],
        stdin=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert started.wait(30) == 0
    started.stdin.close()


@pytest.mark.parametrize("threaded", [False, True], ids=["main thread", "another thread"])
def test_a_check_ends_in_every_thread(threaded):
    ended = []

    def endless() -> None:
        try:
            with grade._time_limit(0.2):
                while True:
                    with contextlib.suppress(Exception):  # no check may catch it
                        sum(range(100))
        except Stopped as stop:
            ended.append(stop.status)
        with grade._time_limit(0.2):  # over in time: nothing comes later
            pass
        time.sleep(0.4)
        ended.append("quiet")

    if threaded:
        thread = threading.Thread(target=endless, daemon=True)
        thread.start()
        thread.join(20)
    else:
        endless()
    assert ended == ["crashed", "quiet"]
