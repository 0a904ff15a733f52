"""Where students' code runs: how well this machine can shut it in, and the way in and out.

=============  ===================================================================================
`bwrap`        bubblewrap: no network, an empty environment, a file system that holds Python, this
               library and a scratch folder and nothing else, process numbers of its own
`namespaces`   the same, built by `_launch` from the kernel's user namespaces
`rlimits`      limits on memory, time, processes and files alone: the code can read what the
               grader's user can read, and reach the network
=============  ===================================================================================

At every level only JSON comes back, on a socket, and it is checked before it is used.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from course_lib.homework.notebook import HomeworkError
from course_lib.homework.worker import MESSAGE_LIMIT

LEVELS = ("bwrap", "namespaces", "rlimits")
_HERE = Path(__file__).resolve().parent
_SYSTEM = "/usr /bin /sbin /lib /lib32 /lib64 /libx32 /nix/store /gnu/store".split()
_SYSTEM += "/etc/alternatives /etc/ld.so.cache /etc/ld.so.conf /etc/ld.so.conf.d".split()
_SYSTEM += "/etc/localtime".split()
# Libraries reserve more addresses than they use, so this is no measure of memory.
_SPARE_ADDRESSES = 16 << 30
_START_LIMIT = 60.0


@dataclass(frozen=True)
class Limits:
    """What the answers to one question may use, all their processes together.

    ``seconds`` counts from the start of its cells to the end of its last check.
    """

    seconds: float = 60.0
    memory_mb: int = 2048
    processes: int = 32
    output_mb: float = 2.0
    files_mb: int = 64

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not 0 < value < 1e9:
                raise HomeworkError(f"The limit {name} must be a positive number, not {value!r}.")


class Stopped(BaseException):
    """A question that cannot go on: its ``status`` and a sentence for the student.

    Not an Exception, so that no check cell takes it for a mistake that it may catch.
    """

    def __init__(self, status: str, sentence: str):
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


# The command --------------------------------------------------------------------------------------


def visible_paths() -> list[str]:
    """What students' code can see of this machine: programs, Python, course_lib."""
    python = [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix]
    python += [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    # pip's own shims for Debian's and a venv's Python lead from one folder to another.
    python += [str(Path(path).resolve()) for path in (*python, os.path.dirname(_real_python()))]
    wanted = [*_SYSTEM, *python, str(_HERE.parent)]
    shown: list[str] = []
    for path in sorted({os.path.abspath(path) for path in wanted if os.path.lexists(path)}):
        below = any(path.startswith(above + "/") and not os.path.islink(above) for above in shown)
        if path != "/" and not below:
            shown.append(path)
    return shown


def _real_python() -> str:
    return os.path.realpath(sys.executable)


def environment(scratch: str = "/tmp") -> dict[str, str]:
    """The whole environment of the student's side; ``scratch`` is where it may write."""
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return {
        **dict.fromkeys(threads, "1"),
        **dict.fromkeys(("HOME", "TMPDIR", "MPLCONFIGDIR"), scratch),
        **dict.fromkeys(("USER", "LOGNAME"), "student"),
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "MPLBACKEND": "Agg",
    }


def bwrap_command(program: str, limits: Limits, *, root: bool, known: str = "") -> list[str]:
    """bubblewrap's arguments, up to the command that it is to run.

    ``known`` is what ``bwrap --help`` prints: options that came with later versions are used where
    they are there.
    """
    size = str(limits.files_mb << 20)
    sized = ["--perms", "1777"] * ("--perms" in known) + ["--size", size] * ("--size" in known)
    command = [program, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    if root:  # in a user namespace of root's, limits on processes would not count: see _launch
        command += "--cap-drop ALL --cap-add CAP_SETUID --cap-add CAP_SETGID".split()
    else:
        command += ["--unshare-user"] + ["--disable-userns"] * ("--disable-userns" in known)
    command += ["--die-with-parent", "--new-session"]
    command += ["--clearenv"] * ("--clearenv" in known)
    for name, value in environment().items():
        command += ["--setenv", name, value]
    command += [*sized, "--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev"]
    command += [*sized, "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    for path in visible_paths():
        # Folders on the way that bubblewrap makes by itself are readable by their owner only.
        for folder in reversed(Path(path).parents[:-1]):
            command += ["--dir", str(folder)]
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        else:
            command += ["--ro-bind", path, path]
    return [*command, "--remount-ro", "/", "--chdir", "/tmp"]


def command(level: str, limits: Limits, control: int, scratch: str = "/tmp") -> list[str]:
    """The command that starts a worker at this level of isolation."""
    root, python = os.geteuid() == 0, [_python(), "-I", "-B"]
    number = 1_000_000_000 + os.getpid()  # a user that owns nothing, and shares no limit
    memory = limits.memory_mb << 20
    options = {
        "control": control,
        "library": str(_HERE.parent.parent),
        "memory": memory,
        "scratch": [scratch] if level == "rlimits" else [scratch, "/dev/shm"],
        "cpu": int(limits.seconds) + 2,
        # Without a file system of its own, Python may lie where only root can read it: libraries
        # are loaded first, by root, and the student's code runs as nobody.
        "uid": number if root and level == "rlimits" else None,
    }
    spec = {
        "level": level,
        "uid": number,
        "parent": os.getpid(),
        "keep": [control],
        "paths": visible_paths(),
        "scratch": limits.files_mb << 20,
        "rlimits": {
            "AS": memory + _SPARE_ADDRESSES,
            "DATA": memory,
            "NPROC": limits.processes + _counted_already(level),
            "FSIZE": limits.files_mb << 20,
            "NOFILE": 256,
            "CORE": 0,
        },
        "command": [*python, str(_HERE / "worker.py"), json.dumps(options)],
    }
    start = [*python, "-S", str(_HERE / "_launch.py"), json.dumps(spec)]
    if level != "bwrap":
        return start
    program = shutil.which("bwrap") or "bwrap"
    return [*bwrap_command(program, limits, root=root, known=_bwrap_help(program)), *start]


def _for_root_alone() -> list[str]:
    """Folders of Python's that no user but root can read."""
    closed = []
    for path in map(Path, visible_paths()):
        way = [part for part in (path, *path.parents) if part.is_dir()]
        if not path.is_symlink() and not all(part.stat().st_mode & 0o001 for part in way):
            closed.append(str(path))
    return closed


def _python() -> str:
    """This Python, by a path that can be seen in the sandbox."""
    return os.path.abspath(sys.executable)


@functools.cache
def _bwrap_help(program: str) -> str:
    done = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def _counted_already(level: str) -> int:
    """Processes that the limit on processes counts although they are none of the sandbox's.

    The limit is one of a user. Root's sandboxes get users of their own; and since Linux 5.14 each
    user namespace counts for itself.
    """
    version = tuple(int("".join(filter(str.isdigit, p)) or 0) for p in _kernel().split(".")[:2])
    if os.geteuid() == 0 or (level != "rlimits" and version >= (5, 14)):
        return 0
    count = 0
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == os.getuid():
                count += len(os.listdir(entry / "task"))
    return count


def _kernel() -> str:
    return platform.release().partition("-")[0]


# A worker and its questions -----------------------------------------------------------------------


class Worker:
    """A sandboxed process with the homework's set-up cell run; `question` gives each its own fork.

    Use it as a context manager. A worker that was killed is started again by the next question.
    """

    def __init__(self, level: str, limits: Limits, set_up: Sequence[tuple[str, str]]):
        self.level, self.limits, self.set_up = level, limits, list(set_up)
        self._process: subprocess.Popen | None = None
        self._control: socket.socket | None = None
        self._scratch: tempfile.TemporaryDirectory | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the process and run the set-up cell.

        Raises
        ------
        HomeworkError
            The sandbox does not start, or the set-up cell fails in it.
        """
        scratch = "/tmp"
        if self.level == "rlimits":
            self._scratch = tempfile.TemporaryDirectory(
                prefix="course-", ignore_cleanup_errors=True
            )
            scratch = self._scratch.name
            os.chmod(scratch, 0o1777 if os.geteuid() == 0 else 0o700)
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                command(self.level, self.limits, theirs.fileno(), scratch),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env=environment(scratch),
                cwd="/" if self._scratch is None else scratch,
                start_new_session=True,
            )
        try:
            channel, output = self.open("setup")
            with channel, open(output, "rb"):
                channel.settimeout(_START_LIMIT)
                _send(channel, self.set_up)
                answer = _receive(channel, time.monotonic() + _START_LIMIT)
        except (OSError, Stopped):
            said = self._last_words()
            raise HomeworkError(
                f"The sandbox ({self.level}) does not start. {said or 'It said nothing.'}"
            ) from None
        if answer["failed"]:
            name, error = next(iter(answer["failed"].items()))
            self.close()
            raise HomeworkError(
                f"The set-up cell {name} fails in the sandbox: {error['type']}: {error['message']}."
            )

    def open(self, word: str) -> tuple[socket.socket, int]:
        """Hand the worker a new socket and a new pipe for output; return our ends."""
        assert self._control is not None
        ours, theirs = socket.socketpair()
        output, writing = os.pipe()
        try:
            socket.send_fds(self._control, [word.encode()], [theirs.fileno(), writing])
        except OSError:
            ours.close()
            os.close(output)
            raise
        finally:
            theirs.close()
            os.close(writing)
        return ours, output

    def question(self, cells: Sequence[tuple[str, str]]) -> Question:
        """A fork of the worker in which these cells are run; a context manager."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            self.start()
        try:
            return Question(self, cells)
        except OSError:  # it was killed since
            self.close()
            self.start()
            return Question(self, cells)

    def _last_words(self) -> str:
        assert self._process is not None
        assert self._process.stderr is not None
        self._process.kill()
        said = self._process.stderr.read(4000).decode(errors="replace").strip().split("\n")[-1]
        self.close()
        return said

    def close(self) -> None:
        """End the worker and everything in its sandbox."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            if self.level == "rlimits":  # it ends what the student's code left behind, then itself
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process.stderr.close()
            self._process = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None


class Question:
    """One fork of a worker: the cells of one question are run in it, and `call` reaches them.

    ``failed`` holds, for each cell that stopped with an error, its type, message and line.
    """

    def __init__(self, worker: Worker, cells: Sequence[tuple[str, str]]):
        self._worker, self._limits = worker, worker.limits
        self._channel, self._output = worker.open("question")
        self._deadline = time.monotonic() + self._limits.seconds
        self._kept, self._seen, self._report = bytearray(), 0, None
        self._reader, self._number = _Reader(), 0
        self.failed: dict[str, dict[str, str]] = {}
        self._cells = list(cells)

    def __enter__(self) -> Question:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._worker._control.send(b"end")
            if self._report is None:
                self._await_report(10.0)
        with contextlib.suppress(Stopped):
            self._read_output()
        self._channel.close()
        os.close(self._output)

    @property
    def output(self) -> str:
        """The first part of what the cells printed."""
        return self._kept.decode("utf-8", errors="replace")

    @property
    def kept_waiting(self) -> bool:
        """Whether it has computed for less than half of its time, when it has ended."""
        computed = (self._report or {}).get("computed", self._limits.seconds)
        return computed < self._limits.seconds / 2

    def load(self) -> None:
        """Run the cells.

        Raises
        ------
        Stopped
            They did not come to an end.
        """
        answer = self._ask({"cells": self._cells})
        failed = answer.get("failed") if isinstance(answer, dict) else None
        if not isinstance(failed, dict):
            raise _garbled()
        for name, error in failed.items():
            if not isinstance(error, dict):
                raise _garbled()
            self.failed[name] = {
                key: str(error.get(key, ""))[:2000] for key in ("type", "message", "line")
            }

    def ask(self, name: str, arguments: list) -> Any:
        """Call a function of the student's; return what comes back, as JSON and not yet checked."""
        return self._ask({"name": name, "arguments": arguments})

    def _ask(self, message: dict[str, Any]) -> Any:
        # Numbered, because the student's code may have forked and answer twice.
        self._number += 1
        try:
            self._channel.settimeout(max(0.01, self._deadline - time.monotonic()))
            _send(self._channel, {**message, "number": self._number})
        except OSError:
            raise self._ended() from None
        answer = self._wait()
        if not isinstance(answer, dict) or answer.get("number") != self._number:
            raise _garbled()
        return answer.get("reply")

    def _wait(self) -> Any:
        """The reply, while the output is read and the worker's reports are heard."""
        while True:
            if self._reader.complete:
                return self._reader.message()
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise Stopped(
                    "timeout",
                    f"your code does not finish within {self._limits.seconds:g} seconds: look for "
                    "a loop that never stops.",
                )
            watched = [self._channel, self._output, self._worker._control]
            if self._report is not None:
                watched.pop()
            ready, _, _ = select.select(watched, [], [], min(left, 1.0))
            if self._output in ready:
                self._read_output()
            if self._channel in ready:
                try:
                    self._reader.read(self._channel)
                except OSError:
                    raise self._ended() from None
                continue
            if self._worker._control in ready:
                self._await_report(0.0)
                raise self._ended()

    def _read_output(self) -> None:
        os.set_blocking(self._output, False)
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self._output, 1 << 16):
                self._seen += len(part)
                self._kept += part[: max(0, 10_000 - len(self._kept))]
                if self._seen > self._limits.output_mb * 1e6:
                    raise Stopped(
                        "crashed",
                        f"your code prints more than {self._limits.output_mb:g} MB: look for a "
                        "print in a loop that never stops.",
                    )

    def _await_report(self, seconds: float) -> None:
        control = self._worker._control
        if select.select([control], [], [], seconds)[0]:
            try:
                words = control.recv(4096)
            except OSError:
                words = b""
            self._report = json.loads(words) if words else {"exit": None, "memory": False}

    def _ended(self) -> Stopped:
        """Why the fork is gone, in words."""
        if self._report is None:
            self._await_report(2.0)
        report = self._report or {"exit": None, "memory": False}
        code = report["exit"]
        if report["memory"]:
            return Stopped(
                "crashed",
                f"your code takes more than {self._limits.memory_mb} MB of memory and was ended.",
            )
        if code == -signal.SIGXCPU:
            return Stopped(
                "timeout",
                f"your code computes for more than {self._limits.seconds:g} seconds: look for a "
                "loop that never stops.",
            )
        how = f" (signal {signal.Signals(-code).name})" if code and -65 < code < 0 else ""
        return Stopped(
            "crashed",
            f"your code ends the Python process{how}: look for an exit, for too much memory, or "
            "for a recursion without end.",
        )


def _garbled() -> Stopped:
    return Stopped(
        "crashed",
        "your code disturbs the way in which its results are handed over: does it change modules "
        "such as json or socket?",
    )


class _Reader:
    """A message that arrives in pieces: 8 bytes of length, then JSON."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def read(self, channel: socket.socket) -> None:
        channel.settimeout(1.0)
        part = channel.recv(1 << 20)
        if not part:
            raise ConnectionError
        self._bytes += part
        if len(self._bytes) >= 8 and self._size > MESSAGE_LIMIT:
            raise _garbled()

    @property
    def _size(self) -> int:
        return int.from_bytes(self._bytes[:8], "big")

    @property
    def complete(self) -> bool:
        return len(self._bytes) >= 8 and len(self._bytes) >= 8 + self._size

    def message(self) -> Any:
        """Take the first message."""
        text = bytes(self._bytes[8 : 8 + self._size])
        del self._bytes[: 8 + len(text)]
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise _garbled() from None


def _send(channel: socket.socket, message: Any) -> None:
    text = json.dumps(message).encode("ascii")
    channel.sendall(len(text).to_bytes(8, "big") + text)


def _receive(channel: socket.socket, deadline: float) -> Any:
    reader = _Reader()
    while not reader.complete:
        if not select.select([channel], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        reader.read(channel)
    return reader.message()


# What this machine offers -------------------------------------------------------------------------


@functools.cache
def probe() -> tuple[str, dict[str, str]]:
    """The best level that works here, and why the better ones do not."""
    problems: dict[str, str] = {}
    for level in LEVELS:
        try:
            if level == "bwrap" and not shutil.which("bwrap"):
                raise HomeworkError("bubblewrap is not installed.")
            if level == "rlimits" and os.geteuid() == 0 and _for_root_alone():
                raise HomeworkError(
                    f"Only root can read {_for_root_alone()[0]}, and students' code must not run "
                    "as root: run this as another user."
                )
            with Worker(level, Limits(), [("probe", "x = 1")]) as worker:
                worker.start()
            return level, problems
        except (HomeworkError, OSError) as error:
            problems[level] = str(error)
    raise HomeworkError(
        "Students' code cannot be run on this machine: " + " ".join(problems.values())
    )


WARNING = (
    "WARNING: no isolation on this machine. Students' code is held by limits on memory, time and "
    "processes alone: it can read what you can read, solutions and other students' work included, "
    "and reach the network. `course doctor` says how to change that."
)


def refuse_visible(*folders: str | Path) -> None:
    """Refuse to grade from a folder that students' code could look into.

    Raises
    ------
    HomeworkError
        A folder lies in Python's own folder, for example a virtual environment.
    """
    shown = [Path(path) for path in visible_paths() if not os.path.islink(path)]
    for folder in map(Path, folders):
        for above in shown:
            if folder.resolve().is_relative_to(above.resolve()):
                raise HomeworkError(
                    f"{folder} lies in {above}, which students' code can read because Python is "
                    "there. Move it somewhere else."
                )


def doctor() -> tuple[str, bool]:
    """What this machine offers for grading, in words; and whether code is shut in."""
    level, problems = probe()
    lines = [f"Python {platform.python_version()} at {_python()}, Linux {platform.release()}"]
    if os.geteuid() == 0:
        lines.append("user: root (students' code runs as a user number that owns nothing)")
    for name in LEVELS:
        state = problems.get(name) or ("works, and is used" if name == level else "not needed")
        lines.append(f"{name:<11} {state}")
    if "not installed" in problems.get("bwrap", ""):
        lines.append("To get bubblewrap: apt install bubblewrap (Debian, Ubuntu), or your system's")
        lines.append("package of that name. It needs no rights of an administrator when it runs.")
    if level == "rlimits":
        lines.append(
            "Both need user namespaces, which `unshare -Ur true` tries, and namespaces Linux"
        )
        lines.append("5.12. Containers usually forbid them: see the teacher's guide, JupyterHub.")
        if os.geteuid() == 0:
            lines.append("In a container, try it as an ordinary user: root lacks rights there that")
            lines.append("an ordinary user does not need.")
        lines.append(WARNING)
    return "\n".join(lines), level != "rlimits"
