"""Become the student's side: set limits, close the doors, then start the worker.

`sandbox` starts this file as a script, with the standard library alone. Where no bubblewrap is
installed it builds the same thing itself: a file system with nothing in it but Python and this
library, read-only, and a scratch folder of fixed size; no network; process numbers of its own, so
that everything in it dies with its first process.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import struct
import sys

_NEW_NS, _NEW_UTS, _NEW_IPC = 0x00020000, 0x04000000, 0x08000000
_NEW_USER, _NEW_PID, _NEW_NET = 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND = 2, 4, 8, 4096
_MS_REC, _MS_PRIVATE = 16384, 1 << 18
_MNT_DETACH, _AT_FDCWD, _AT_RECURSIVE = 2, -100, 0x8000
_READ_ONLY, _NOSUID = 1, 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_PR_SET_SECCOMP, _SECCOMP_FILTER = 22, 2
_DEVICES = ("null", "zero", "full", "random", "urandom")
# Number of the architecture, and of shmget, semget, msgget, mq_open, memfd_create, memfd_secret.
_HOLD_MEMORY = {
    "x86_64": (0xC000003E, (29, 64, 68, 240, 319, 447)),
    "aarch64": (0xC00000B7, (194, 190, 186, 180, 279, 447)),
}

_libc = ctypes.CDLL(None, use_errno=True)


def _did(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def _mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    words = [word.encode() or None for word in (source, target, kind)]
    _did(_libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None), f"mount {target}")


def _set_flags(path: str, add: int = 0, clear: int = 0, *, recursive: bool = False) -> None:
    """mount_setattr(2): it reaches the mounts below too, which mount(2) does not."""
    attributes = (ctypes.c_uint64 * 4)(add, clear, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    _did(
        _libc.syscall(442, _AT_FDCWD, path.encode(), flags, ctypes.byref(attributes), 32),
        f"mount_setattr {path}",
    )


def _unshare(flags: int) -> None:
    _did(_libc.unshare(flags), "unshare")


def die_with_parent(parent: int) -> None:
    """Be killed when the process that started this one ends, however it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() not in (0, parent):  # it ended before; 0 is a parent outside of this namespace
        os._exit(1)


def become(uid: int) -> None:
    """Give up root for a user number that owns nothing."""
    for candidate in (uid, 65534):
        try:
            os.setgroups([])
            os.setresgid(candidate, candidate, candidate)
            os.setresuid(candidate, candidate, candidate)
            _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # or its own files in /proc are out of reach
            return
        except OSError as error:
            problem = error
    raise problem


def set_limits(limits: dict[str, int]) -> None:
    """The limits of each process: ``resource.RLIMIT_<name>`` for each name."""
    for name, value in limits.items():
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def refuse_hidden_memory() -> None:
    """Refuse the system calls that hold memory for no process, where no limit counts it.

    To the code they are not there (ENOSYS). Without effect on other architectures, and on a kernel
    that was built without seccomp.
    """
    if os.uname().machine not in _HOLD_MEMORY:
        return
    architecture, calls = _HOLD_MEMORY[os.uname().machine]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.ENOSYS
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, refuse), (load, 0, 0, 0)]
    program += [(equal, len(calls) + 1 - place, 0, call) for place, call in enumerate(calls)]
    # x86_64 has another set of numbers for the same calls, from 2^30 on.
    program += [(at_least, 1, 0, 1 << 30), (give, 0, 0, allow), (give, 0, 0, refuse)]
    lines = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    both = struct.pack("HP", len(program), ctypes.addressof(lines))
    _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, ctypes.c_char_p(both), 0, 0)


def _build(spec: dict) -> None:
    """Make /new, the file system of the sandbox; the old one stands in /old."""
    _mount("", "/", flags=_MS_REC | _MS_PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
    for name in ("/tmp/old", "/tmp/new"):
        os.mkdir(name)
    _did(_libc.pivot_root(b"/tmp", b"/tmp/old"), "pivot_root")
    os.chdir("/")
    _mount("/new", "/new", flags=_MS_BIND)
    for name in ("tmp", "dev", "proc"):
        os.mkdir(f"/new/{name}")
    sized = f"mode=1777,size={spec['scratch']}"
    _mount("tmpfs", "/new/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, sized)
    for path in spec["paths"]:
        _show(path)
    _set_flags("/new", _READ_ONLY | _NOSUID, recursive=True)
    _set_flags("/new/tmp", clear=_READ_ONLY)
    _mount("tmpfs", "/new/dev", "tmpfs", _MS_NOSUID | _MS_NOEXEC, "mode=755,size=64k")
    for name in _DEVICES:
        _touch(f"/new/dev/{name}")
        _mount(f"/old/dev/{name}", f"/new/dev/{name}", flags=_MS_BIND)
    os.symlink("/proc/self/fd", "/new/dev/fd")
    os.mkdir("/new/dev/shm")
    _mount("tmpfs", "/new/dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, sized)
    _set_flags("/new/dev", _READ_ONLY)


def _show(path: str) -> None:
    """Bind one file or folder of the old file system into the new one, at the same place."""
    old, new = "/old" + path, "/new" + path
    if os.path.lexists(new):
        return
    os.makedirs(os.path.dirname(new), exist_ok=True)
    if os.path.islink(old):
        os.symlink(os.readlink(old), new)
    elif os.path.isdir(old):
        os.mkdir(new)
        _mount(old, new, flags=_MS_BIND | _MS_REC)
    elif os.path.isfile(old):
        _touch(new)
        _mount(old, new, flags=_MS_BIND)


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))


def _enter(spec: dict) -> None:
    """Unshare, fork and go on as process 1 of the sandbox; the parent waits for it."""
    user = os.geteuid() != 0
    if not user:  # only root can reach all folders that Python may lie in, so it mounts them first
        _unshare(_NEW_NS)
        _build(spec)
        become(spec["uid"])
    kinds = _NEW_NS | _NEW_PID | _NEW_NET | _NEW_IPC | _NEW_UTS
    _unshare_user("/proc" if user else "/old/proc", kinds)
    if user:
        _build(spec)
    parent = os.getpid()
    child = os.fork()
    if child:
        die_with_parent(spec["parent"])
        for stream in (0, *spec["keep"]):
            os.close(stream)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    die_with_parent(parent)
    _mount("proc", "/new/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _no_more_namespaces("/new/proc")
    _mount("/new", "/new", flags=_MS_BIND | _MS_REC)
    os.chdir("/new")
    _did(_libc.pivot_root(b".", b"."), "pivot_root")
    _did(_libc.umount2(b".", _MNT_DETACH), "umount")
    os.chdir("/tmp")


def _unshare_user(proc: str, more: int = 0) -> None:
    """Enter a user namespace in which this user is the only one."""
    uid, gid = os.geteuid(), os.getegid()
    _unshare(_NEW_USER | more)
    _write(f"{proc}/self/setgroups", "deny")
    _write(f"{proc}/self/uid_map", f"{uid} {uid} 1")
    _write(f"{proc}/self/gid_map", f"{gid} {gid} 1")


def _no_more_namespaces(proc: str) -> None:
    """In one of its own, the code could mount what no limit counts."""
    _write(f"{proc}/sys/user/max_user_namespaces", "0")


def _write(path: str, text: str) -> None:
    stream = os.open(path, os.O_WRONLY)  # open() may import a codec, which is out of sight here
    os.write(stream, text.encode())
    os.close(stream)


def main() -> None:
    """Do what the JSON in the first argument says."""
    spec = json.loads(sys.argv[1])
    os.umask(0o022)
    if spec["level"] == "namespaces":
        _enter(spec)
    elif spec["level"] == "bwrap":
        if os.geteuid() == 0:
            become(spec["uid"])
            _unshare_user("/proc")
            _no_more_namespaces("/proc")
        die_with_parent(os.getppid())
    # Without a wall around it, the worker itself ends what it started when the grader is gone.
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    set_limits(spec["rlimits"])
    refuse_hidden_memory()
    os.execv(spec["command"][0], spec["command"])


if __name__ == "__main__":
    main()
