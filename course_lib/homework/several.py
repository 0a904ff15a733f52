"""Grading several submissions at once, on this machine or on a Dask cluster: one loop for both.

This process reads what was handed in, holds each student's lock and writes the records. What grades
in between, a *crew*, gets jobs and returns the rest of the record; it may lose some of its members.
`Here` is the crew of this machine, `cluster.Cluster` that of a Dask cluster.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, Protocol

from course_lib.homework.assignment import Assignment
from course_lib.homework.grade import Order, claimed, read_submission, write_record
from course_lib.homework.notebook import HomeworkError
from course_lib.homework.process import Job, Pool, pack
from course_lib.homework.submissions import Submission

_ATTEMPTS, _FAILED_IN_A_ROW, _LOOK_SECONDS = 3, 5, 2.0


class Unfit(HomeworkError):  # noqa: N818 - it names the crew's state
    """The crew cannot go on, whatever the submission."""


class Crew(Protocol):
    """What grades jobs."""

    def room(self) -> int:
        """How many jobs to hand over at most, so that nobody waits and memory stays flat.

        Raises
        ------
        Unfit
            Nobody is left to grade.
        """

    def submit(self, job: Job) -> Future:
        """Hand over a job; the future holds what `grade.grade_chosen` returns."""

    def close(self) -> None:
        """Drop what is handed over and not done."""


class Here:
    """Processes on this machine."""

    def __init__(self, jobs: int, level: str) -> None:
        self._jobs, self._level, self._pool = jobs, level, Pool()
        self._threads = ThreadPoolExecutor(jobs)

    def room(self) -> int:
        """One job in each process, and the next one ready."""
        return 2 * self._jobs

    def submit(self, job: Job) -> Future:
        """Hand over a job."""
        return self._threads.submit(self._pool.grade, replace(job, level=self._level))

    def close(self) -> None:
        """End the processes."""
        self._pool.close()
        self._threads.shutdown(cancel_futures=True)


@dataclass
class _Flight:
    """A submission that is handed over, with its student's lock."""

    entry: Submission
    record: dict[str, Any]
    job: Job
    lock: contextlib.ExitStack
    attempts: int = 1


def run(
    order: Order, bundle: dict[str, Assignment], work: list[Submission], crew: Crew
) -> Iterator[tuple[Submission, str, dict | None]]:
    """Grade with a crew, in the order in which results come.

    Besides ``new``, ``kept`` and ``busy`` there is ``failed``, with the reason under ``problem``:
    nobody could grade the submission, which then has no record.

    Raises
    ------
    Unfit
        The crew cannot go on. What was graded has its record.
    """
    packed = {name: pack(assignment) for name, assignment in bundle.items()}
    waiting, in_a_row = iter(work), 0
    entry = next(waiting, None)
    flying: dict[Future, _Flight] = {}
    try:
        while True:
            room = crew.room()
            while len(flying) < room and entry:
                lock = contextlib.ExitStack()
                assignment = bundle[entry.assignment]
                what, kept = lock.enter_context(claimed(order, assignment, entry))
                if what == "new":
                    flight = _ready(entry, assignment, packed[entry.assignment], lock)
                    flying[crew.submit(flight.job)] = flight
                else:
                    lock.close()
                    yield entry, what, kept
                entry = next(waiting, None)
            if not flying and not entry:
                return
            if not flying:  # no worker at the moment
                time.sleep(1)
            for future in wait(flying, _LOOK_SECONDS, FIRST_COMPLETED).done:
                flight, problem = flying[future], _problem(future)
                if problem and flight.attempts < _ATTEMPTS:
                    flight.attempts += 1
                    flying[crew.submit(flight.job)] = flight
                    del flying[future]
                    continue
                record = {"problem": problem} if problem else flight.record | future.result()
                if not problem:
                    write_record(record, order.out)
                del flying[future]
                flight.lock.close()
                yield flight.entry, "failed" if problem else "new", record
                in_a_row = in_a_row + 1 if problem else 0
                if in_a_row == _FAILED_IN_A_ROW:
                    raise Unfit(
                        f"{in_a_row} submissions one after another could not be graded. {problem}"
                    )
    finally:
        for flight in flying.values():
            flight.lock.close()


def _ready(
    entry: Submission, assignment: Assignment, packed: bytes, lock: contextlib.ExitStack
) -> _Flight:
    record, chosen = read_submission(entry, assignment)
    questions = sum(len(task.questions) for task in assignment.tasks.values())
    # Each question is tried twice at most; 30 s more are those of its checks.
    seconds = 120 + 2 * questions * (assignment.limits.seconds + 45)
    job = Job(packed, pack((chosen, record["remarks"])), seconds)
    return _Flight(entry, record, job, lock)


def _problem(future: Future) -> str:
    """Why a job has no result, or nothing."""
    if future.cancelled():  # by a scheduler that is gone, which the crew finds out
        return "The job was dropped."
    error = future.exception()
    if isinstance(error, Unfit):
        raise error
    return "" if error is None else " ".join(str(error).split()) or type(error).__name__
