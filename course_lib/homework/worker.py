"""The student's side: a process in the sandbox that runs answer cells and serves ``call``.

`sandbox` starts this file as a script. It imports NumPy and runs the homework's set-up cell once,
then forks a child for each question, which runs the cells of that question and answers requests of
`contract.call` on a socket of its own. What the child does to itself ends with it; this process
runs no line of the student's, watches the memory of all that the child starts, and ends it.

Messages to this process, one packet each: ``setup`` or ``question``, with two file descriptors (a
socket, and where the child's output goes), and ``end``. It answers ``ended`` with what became of
the child. On the sockets goes JSON, after its length in 8 bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import linecache
import os
import re
import resource
import shutil
import signal
import socket
import sys
import time
import traceback
import types
from collections.abc import Iterator
from typing import Any

MESSAGE_LIMIT = 16_000_000
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICK = 0.02
_SUBREAPER, _DUMPABLE, _PDEATHSIG = 36, 4, 1


def send(channel: socket.socket, message: Any) -> None:
    """Send one message as JSON after its length.

    Raises
    ------
    ValueError
        The message is longer than `MESSAGE_LIMIT` bytes.
    """
    text = json.dumps(message).encode("ascii")
    if len(text) > MESSAGE_LIMIT:
        raise ValueError(f"a value that takes more than {MESSAGE_LIMIT // 10**6} MB")
    channel.sendall(len(text).to_bytes(8, "big") + text)


def receive(channel: socket.socket) -> Any:
    """The next message; None when the other side has gone."""
    head = _exactly(channel, 8)
    return json.loads(_exactly(channel, int.from_bytes(head, "big"))) if head else None


def _exactly(channel: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = channel.recv(min(size, 1 << 20))
        if not part:
            return b""
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


# Running cells ------------------------------------------------------------------------------------


def run_cell(name: str, source: str, namespace: dict[str, Any]) -> dict[str, str] | None:
    """Run a code cell as a notebook would; say what it stopped with, or None."""
    plain, left_out = without_magics(source)
    linecache.cache[f"<{name}>"] = (len(plain), None, plain.splitlines(True), f"<{name}>")
    try:
        exec(compile(plain, f"<{name}>", "exec"), namespace)
    except BaseException as error:
        return _words(error, name, left_out)
    return None


def without_magics(source: str) -> tuple[str, bool]:
    """The cell without lines that only IPython understands, and whether there were any.

    Examples
    --------
    >>> without_magics("%matplotlib inline\\nx = 1")
    ('pass\\nx = 1', True)
    """
    try:
        compile(source, "<cell>", "exec")
        return source, False
    except Exception:
        plain = re.sub(r"^([ \t]*)[%!?].*$", r"\1pass", source, flags=re.MULTILINE)
        return plain, plain != source


def _words(error: BaseException, name: str, left_out: bool) -> dict[str, str]:
    lines = [
        entry.line for entry in traceback.extract_tb(error.__traceback__) if name in entry.filename
    ]
    line = (lines[-1] if lines else "") or ""
    if isinstance(error, SyntaxError):
        line = (error.text or "").strip()
    message = str(error.msg if isinstance(error, SyntaxError) else error)
    if isinstance(error, SyntaxError) and left_out:
        message += " (lines that begin with % or ! are for notebooks only and are left out)"
    return {"type": type(error).__name__, "message": message[:2000], "line": line[:200]}


def fresh_namespace() -> dict[str, Any]:
    """The names of an empty notebook: its module is ``__main__``, and ``display`` shows nothing."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    module.display = lambda *_, **__: None
    module.get_ipython = _Shell
    return module.__dict__


class _Shell:
    """What ``get_ipython()`` gives: a shell whose magics do nothing."""

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: None


# One question -------------------------------------------------------------------------------------


def serve(channel: socket.socket, namespace: dict[str, Any]) -> None:
    """Run the cells that are sent, and answer calls, until the other side goes."""
    from course_lib.homework.contract import invoke

    while (request := receive(channel)) is not None:
        number = request["number"]
        if "cells" in request:
            reply = {"failed": _run(request["cells"], namespace)}
            send(channel, {"number": number, "reply": reply})
            continue
        try:
            reply = invoke(namespace, request["name"], request["arguments"])
        except BaseException as error:  # an object that fails when it is looked at, for instance
            kind = type(error).__name__
            reply = {"status": "not_plain", "message": f"something unreadable ({kind})"}
        try:
            send(channel, {"number": number, "reply": reply})
        except ValueError as error:
            reply = {"status": "not_plain", "message": str(error)}
            send(channel, {"number": number, "reply": reply})


def _run(cells: list[tuple[str, str]], namespace: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Run all cells, and describe those that failed."""
    failed = {name: run_cell(name, source, namespace) for name, source in cells}
    return {name: error for name, error in failed.items() if error}


def _child(channel: socket.socket, output: int, namespace: dict[str, Any], cpu: int) -> None:
    """What a fork does for one question; it never returns."""
    try:
        os.setsid()
        libc = ctypes.CDLL(None)
        libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_DUMPABLE, 1, 0, 0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, output), (2, output)):
            os.dup2(source, target)
        os.closerange(3, channel.fileno())
        os.closerange(channel.fileno() + 1, 256)
        for stream, name in ((1, "stdout"), (2, "stderr")):
            writer = open(stream, "w", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115
            setattr(sys, name, writer)
        serve(channel, namespace)
        sys.stdout.flush()
    except BaseException:
        os.write(2, traceback.format_exc().encode(errors="replace"))
    finally:
        os._exit(0)


# Watching it --------------------------------------------------------------------------------------


def _processes() -> dict[int, tuple[int, int]]:
    """Parent and resident bytes of each process that can be seen."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as stream:
                    fields = stream.read().rpartition(")")[2].split()
                found[int(name)] = (int(fields[1]), int(fields[21]) * _PAGE)
    return found


def descendants() -> dict[int, int]:
    """All processes below this one, and their resident bytes; orphans come back to this one."""
    seen, below = _processes(), {}
    edge = {os.getpid()}
    while edge:
        edge = {pid for pid, (parent, _) in seen.items() if parent in edge and pid not in below}
        below.update({pid: seen[pid][1] for pid in edge})
    return below


def end_all() -> None:
    """End everything below this process: stop it first, so that it cannot fork any faster."""
    stop = time.monotonic() + 5
    while time.monotonic() < stop and (below := descendants()):
        for which in (signal.SIGSTOP, signal.SIGKILL):
            for pid in below:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, which)
        _reap()


def _reap() -> dict[int, int]:
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = os.waitstatus_to_exitcode(found[1])
    return ended


def _computed() -> float:
    """Processor seconds of all ended processes below this one."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def watch(control: socket.socket, child: int, memory: int) -> bool:
    """Report once what became of the child, and return after the word ``end``; False: no grader.

    The report holds ``exit`` (negative for a signal, None when the child was still running),
    ``memory`` (whether it took too much) and ``computed``, the processor seconds of all that it
    started.
    """
    own = _processes().get(os.getpid(), (0, 0))[1]  # a fork shares these with its parent
    cost, code, reported, before = 0.0, None, False, _computed()

    def report(too_much: bool) -> None:
        with contextlib.suppress(OSError):  # the grader has gone
            words = {"exit": code, "memory": too_much, "computed": _computed() - before}
            control.send(json.dumps(words).encode("ascii"))

    while True:
        control.settimeout(None if reported else max(_TICK, 10 * cost))
        try:
            word = control.recv(64)
        except TimeoutError:
            word = b"wait"
        except OSError:
            word = b""
        code = _reap().get(child, code)
        if word != b"wait" and not reported:
            end_all()  # what has ended is counted
            report(False)
        if word != b"wait":
            return word == b"end"
        begun = time.monotonic()
        used = sum(max(0, resident - own) for resident in descendants().values())
        cost = time.monotonic() - begun
        if used > memory or code is not None:
            end_all()
            report(used > memory)
            reported = True


def main() -> None:
    """Serve the grader on the control socket until it goes."""
    options = json.loads(sys.argv[1])
    sys.path.insert(0, options["library"])
    libc = ctypes.CDLL(None)
    libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    control = socket.socket(fileno=options["control"])
    namespace = fresh_namespace()
    options["kept"] = {path for folder in options["scratch"] for path in _there(folder)}
    try:
        while _next(control, namespace, options, libc):
            pass
    finally:  # the grader has gone, or this process is at fault
        end_all()


def _next(control: socket.socket, namespace: dict, options: dict, libc: Any) -> bool:
    """Do one thing that the grader asks for; False when it is gone."""
    control.settimeout(None)
    word, handed, _, _ = socket.recv_fds(control, 64, 2)
    if not word:
        return False
    channel, output = socket.socket(fileno=handed[0]), handed[1]
    child = 0
    if word == b"setup":
        _set_up(channel, namespace, options["uid"], libc)
    elif not (child := os.fork()):
        control.close()
        _child(channel, output, namespace, options["cpu"])
    channel.close()
    os.close(output)
    if not child:
        return True
    grader_lives = watch(control, child, options["memory"])
    end_all()
    for folder in options["scratch"]:
        _clear(folder, options["kept"])
    return grader_lives


def _there(folder: str) -> Iterator[str]:
    """All paths below a folder, without what is below something mounted.

    The scratch folder is not empty where Python or the library lie below a folder of that name.
    """
    for entry in os.scandir(folder):
        yield entry.path
        if entry.is_dir(follow_symlinks=False) and not os.path.ismount(entry.path):
            yield from _there(entry.path)


def _clear(folder: str, kept: set[str]) -> None:
    """Remove what a question left in a folder: room that the next one may need, and messages."""
    for entry in os.scandir(folder):
        if entry.path not in kept:
            shutil.rmtree(entry.path, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.unlink(entry.path)
        elif entry.is_dir(follow_symlinks=False) and not os.path.ismount(entry.path):
            _clear(entry.path, kept)


def _set_up(channel: socket.socket, namespace: dict, uid: int | None, libc: Any) -> None:
    """Import what every answer needs, run the set-up cell, and give up root where it was kept."""
    import numpy  # noqa: F401

    from course_lib.homework import _launch, contract  # noqa: F401

    failed = _run(receive(channel) or [], namespace)
    if uid is not None:
        _launch.become(uid)
    libc.prctl(_DUMPABLE, 0, 0, 0, 0)  # the student's code must not read or trace this process
    send(channel, {"failed": failed})


if __name__ == "__main__":
    main()
