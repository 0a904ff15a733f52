"""Processes that grade one submission after the other, for runs that grade several at once.

A check's time limit, its transport and what it prints belong to a whole process (`grade`,
`contract`), so threads cannot grade beside each other. A thread of this program, or of a Dask
worker, hands its submission to a process of its own. That process waits for the next one with
everything loaded, ends by itself when none comes, and dies with the program that started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
import zlib
from dataclasses import dataclass
from typing import Any

from course_lib.homework.assignment import Assignment
from course_lib.homework.grade import grade_chosen
from course_lib.homework.notebook import HomeworkError

_IDLE_SECONDS = 60.0
_THREADS = "OMP_NUM_THREADS OPENBLAS_NUM_THREADS MKL_NUM_THREADS".split()


@dataclass(frozen=True)
class Job:
    """What a process needs to grade a submission: nothing of it lies in a file.

    ``assignment`` and ``answers`` are packed; ``seconds`` is when a process counts as stuck.
    """

    assignment: bytes
    answers: bytes
    seconds: float
    level: str = ""


def pack(content: Any) -> bytes:
    """A value of ours as bytes. Only ever unpacked by a process that a grader started."""
    return zlib.compress(pickle.dumps(content), 1)


@functools.lru_cache(8)
def _assignment(packed: bytes) -> Assignment:
    return pickle.loads(zlib.decompress(packed))


def grade_job(job: Job) -> dict[str, Any]:
    """The part of a record that `grade.grade_chosen` makes, in this process."""
    chosen, remarks = pickle.loads(zlib.decompress(job.answers))
    return grade_chosen(chosen, remarks, _assignment(job.assignment), job.level)


class Pool:
    """Grading processes, as many as there are threads that use the pool at once."""

    def __init__(self) -> None:
        self._idle: list[subprocess.Popen] = []
        self._all: set[subprocess.Popen] = set()
        self._closed = False

    def grade(self, job: Job) -> dict[str, Any]:
        """Grade a submission in one of the processes.

        Raises
        ------
        HomeworkError
            It cannot be graded here, or the process was killed or does not come to an end.
        """
        process = self._take()
        stuck = threading.Timer(job.seconds, process.kill)
        stuck.start()
        begun = time.monotonic()
        try:
            pickle.dump(job, process.stdin)
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # it was killed before it took the job
            line = b""
        finally:
            stuck.cancel()
        if not line.endswith(b"\n"):
            self._end(process)
            ended = f"after {time.monotonic() - begun:.0f} s (exit status {process.returncode})"
            raise HomeworkError(f"The process that graded this submission was killed {ended}.")
        self._idle.append(process)
        reply = json.loads(line)
        if "error" in reply:
            raise HomeworkError(reply["error"])
        return reply

    def _take(self) -> subprocess.Popen:
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread took it
                process = self._idle.pop()
                if process.poll() is None:
                    return process
                self._end(process)
        if self._closed:
            raise HomeworkError("The run was stopped.")
        # The same modules as here, however this program came to find them.
        script = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **dict.fromkeys(_THREADS, "1")},
            start_new_session=True,  # Ctrl-C is for the program that started it
        )
        self._all.add(process)
        return process

    def _end(self, process: subprocess.Popen) -> None:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # a half-written job
                stream.close()
        self._all.discard(process)

    def close(self) -> None:
        """End all processes, also those that are grading."""
        self._closed = True
        for process in list(self._all):
            process.kill()
        while self._idle:
            self._end(self._idle.pop())


def main() -> None:
    """Grade what comes on standard input; the result of each job is a line of JSON."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        return
    jobs, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a set-up cell prints is no reply
    while select.select([jobs], [], [], _IDLE_SECONDS)[0]:
        try:
            job = pickle.load(jobs)
        except EOFError:
            return
        try:
            reply = grade_job(job)
        except HomeworkError as error:
            reply = {"error": str(error)}
        except Exception as error:  # a fault of the grader's must not end the run
            traceback.print_exc()
            reply = {"error": f"The grader fails with {type(error).__name__}: {error}"}
        replies.write(json.dumps(reply).encode("ascii") + b"\n")
        replies.flush()
