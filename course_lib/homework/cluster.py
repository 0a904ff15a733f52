"""A crew for `several.run` on a Dask cluster that exists: one task a submission.

The cluster needs no file system in common with this machine. A task carries the assignment and the
student's answers; what comes back is the rest of the record. Each worker must have the very same
course_lib, and probes for itself how well it can shut in students' code.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from course_lib import __version__
from course_lib.homework.grade import GRADER
from course_lib.homework.notebook import HomeworkError
from course_lib.homework.process import Job, Pool
from course_lib.homework.sandbox import LEVELS, probe
from course_lib.homework.several import Unfit

_CONNECT_SECONDS, _WORKERS_SECONDS = 10.0, 60.0
# Each holds a student's lock, which is an open file.
_MOST_AT_ONCE = 400
_OPEN = (
    "WARNING: there students' code is held by limits alone. It can read what the worker's user can "
    "read, and reach the network, and so the Dask scheduler, which lets whoever reaches it run "
    "anything on the whole cluster. `course doctor`, run on that machine, says how to change that."
)


def _library() -> dict[str, str]:
    """What marks may depend on: course_lib, to the last file, and what computes under it."""
    total = hashlib.sha256()
    top = Path(__file__).parents[1]
    for path in sorted(top.rglob("*.py")):
        total.update(f"{path.relative_to(top)}\0".encode() + path.read_bytes())
    return {
        "course_lib": __version__,
        "GRADER": str(GRADER),
        "files of course_lib": total.hexdigest()[:12],
        **{name: metadata.version(name) for name in ("numpy", "scipy")},
    }


# When this is imported, and not later: a worker that runs old code must not hash new files.
LIBRARY = _library()
_pool = Pool()


# On a worker --------------------------------------------------------------------------------------


def describe() -> dict[str, Any]:
    """What a worker has to say of itself before it gets work."""
    try:
        level, problem = probe()[0], ""
    except HomeworkError as error:
        level, problem = "", str(error)
    return {"library": LIBRARY, "level": level, "problem": problem}


def grade_there(job: Job, library: dict[str, str]) -> dict[str, Any]:
    """The task: grade a submission in a process of this worker's."""
    from distributed import get_worker

    where = get_worker().address
    if differs := _difference(library, LIBRARY):
        raise Unfit(_not_the_same({where: differs}))
    try:
        return _pool.grade(replace(job, level=probe()[0]))
    except HomeworkError as error:
        raise HomeworkError(f"{where}: {error}") from None


# Here ---------------------------------------------------------------------------------------------


def _difference(here: dict[str, str], there: dict[str, str]) -> str:
    words = [
        f"{key} {there.get(key)} (here {here[key]})" for key in here if there.get(key) != here[key]
    ]
    return ", ".join(words)


def _not_the_same(problems: dict[str, str]) -> str:
    lines = [f"  {where}: {words}" for where, words in sorted(problems.items())[:10]]
    more = [f"  and {len(problems) - 10} more"] if len(problems) > 10 else []
    return "\n".join(
        [
            "Marks must not depend on the machine, so nothing is graded there. Install on these "
            "machines what is installed here, and start them again:",
            *lines,
            *more,
        ]
    )


class Cluster:
    """The workers of a running Dask cluster; `level` is this machine's own isolation."""

    def __init__(self, client: Any, address: str, level: str) -> None:
        self._client, self._address, self._level = client, address, level
        self._executor = client.get_executor(pure=False)
        self._warned: set[str] = set()
        self._seen = time.monotonic()

    def room(self) -> int:
        """Two jobs a thread.

        Raises
        ------
        Unfit
            The scheduler is gone, or has had no worker for a minute.
        """
        threads = sum(self._ask(self._client.nthreads).values())
        if threads:
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > _WORKERS_SECONDS:
            raise Unfit(
                f"No worker is left at {self._address} since {_WORKERS_SECONDS:.0f} s. What was "
                "graded has its record: start workers, and then this command again to go on."
            )
        return min(2 * threads, _MOST_AT_ONCE)

    def submit(self, job: Job) -> Future:
        """Hand over a job."""
        future = self._ask(self._executor.submit, grade_there, job, LIBRARY)
        future.add_done_callback(self._hear)
        return future

    def close(self) -> None:
        """Cancel what is not done."""
        with contextlib.suppress(Exception):  # the scheduler may be gone
            self._executor.shutdown(wait=False)

    def _ask(self, function: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except Exception as error:  # of many kinds, by what the connection was doing just then
            raise Unfit(
                f"The Dask scheduler at {self._address} does not answer any more "
                f"({type(error).__name__}). What was graded has its record: start this command "
                "again to go on."
            ) from None

    def look(self) -> None:
        """Wait for a worker, and check all that are there.

        Raises
        ------
        Unfit
            There is none, or one with other software than here, or one without a sandbox.
        """
        if not self._ask(self._client.nthreads):
            seconds = f"{_WORKERS_SECONDS:.0f} s"
            print(f"{self._address} has no workers: waiting up to {seconds} for one.", flush=True)
            try:
                self._client.wait_for_workers(1, timeout=_WORKERS_SECONDS)
            except TimeoutError:
                raise Unfit(
                    f"The Dask scheduler at {self._address} has no workers after {seconds}. Start "
                    f"some: dask worker {self._address}"
                ) from None
        _compare(self._ask(self._client.get_versions)["workers"])
        problems: dict[str, str] = {}
        levels: dict[str, list[str]] = {}
        for where, said in self._ask(self._client.run, describe, on_error="return").items():
            if isinstance(said, OSError):  # it has gone since
                continue
            if isinstance(said, Exception):
                problems[where] = f"{type(said).__name__}: {said}"
            elif differs := _difference(LIBRARY, said["library"]):
                problems[where] = differs
            elif said["problem"]:
                problems[where] = said["problem"]
            else:
                levels.setdefault(said["level"], []).append(where)
        if problems:
            raise Unfit(_not_the_same(problems))
        for level, places in levels.items():
            self._warn(level, ", ".join(places[:5]) + ", ..." * (len(places) > 5))

    def _warn(self, level: str, where: str) -> None:
        """Say once that students' code is shut in less than here, or not at all."""
        weaker = LEVELS.index(level) > LEVELS.index(self._level) or level == "rlimits"
        if weaker and level not in self._warned:
            self._warned.add(level)
            print(f"WARNING: isolation {level} on {where}; {self._level} here.", file=sys.stderr)
            if level == "rlimits":
                print(_OPEN, file=sys.stderr)

    def _hear(self, future: Future) -> None:
        if not future.cancelled() and not future.exception():
            self._warn(future.result()["isolation"], "a worker that came later")


def _compare(found: dict[str, dict[str, Any]]) -> None:
    """Refuse another Python or another distributed before they fail in riddles."""
    from distributed.versions import get_versions

    here = _versions(get_versions())
    differ = {where: _difference(here, _versions(said)) for where, said in found.items() if said}
    if problems := {where: words for where, words in differ.items() if words}:
        raise Unfit(_not_the_same(problems))


def _versions(said: dict[str, Any]) -> dict[str, str]:
    packages = said["packages"]
    python = ".".join(str(packages["python"]).split(".")[:2])
    return {"python": python, "distributed": str(packages["distributed"])}


async def _meet(address: str) -> dict[str, Any]:
    """The versions of what runs on a scheduler."""
    from distributed.core import rpc
    from distributed.security import Security

    arguments = Security().get_connection_args("client")  # of Dask's configuration, as Client has
    async with rpc(address, timeout=_CONNECT_SECONDS, connection_args=arguments) as there:
        kind = (await there.identity())["type"]
        if kind != "Scheduler":
            raise ValueError(f"a Dask {kind} is there")
        return await there.versions()


@contextlib.contextmanager
def connected(address: str, level: str) -> Iterator[Cluster]:
    """The crew at the address of a scheduler.

    Raises
    ------
    HomeworkError
        The package ``distributed`` is missing.
    Unfit
        There is no scheduler, or its workers cannot be used.
    """
    try:
        from distributed import Client, versions
    except ImportError:
        raise HomeworkError(
            "--scheduler needs the package distributed: pip install 'learning-to-regularize"
            "[homework]'."
        ) from None
    try:
        # Asked first: a Client that does not get through keeps trying after it has failed.
        there = asyncio.run(asyncio.wait_for(_meet(address), _CONNECT_SECONDS + 1))
        _compare({address: there})
        with warnings.catch_warnings():  # said in our words
            warnings.simplefilter("ignore", versions.VersionMismatchWarning)
            client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except Unfit:
        raise
    except Exception as error:
        why = str(error) or "no answer in time"
        raise Unfit(
            f"No Dask scheduler answers at {address} ({why}). Does it run? `dask scheduler` prints "
            "its address when it starts, and this machine must be able to reach it."
        ) from None
    crew = Cluster(client, address, level)
    logging.disable(logging.ERROR)  # a scheduler that goes is said in our words, without tracebacks
    try:
        crew.look()
        yield crew
    finally:
        crew.close()
        with contextlib.suppress(Exception):
            client.close(timeout=5)
        logging.disable(logging.NOTSET)
