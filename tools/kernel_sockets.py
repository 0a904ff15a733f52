"""A plugin of pytest: kernels talk through files, not ports, so that two can start at once."""

import functools
import itertools
import os
import sys
import tempfile
from pathlib import Path


def _without_ports() -> None:
    try:
        from jupyter_client.manager import KernelManager
    except ModuleNotFoundError:
        return
    start = KernelManager.__init__
    folder, number = tempfile.TemporaryDirectory(prefix="kernels-"), itertools.count()

    @functools.wraps(start)
    def init(self, *args, **kwargs):
        # A free port that one kernel has found may be taken by another before it is used.
        # The process counts: forks share the folder and the counter.
        name = f"{os.getpid()}-{next(number)}"
        sockets = {"transport": "ipc", "ip": str(Path(folder.name) / name)}
        start(self, *args, **{**sockets, **kwargs})

    KernelManager.__init__ = init


if sys.platform != "win32":
    _without_ports()
