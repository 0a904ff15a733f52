"""Time a task on a device, and compare the time with what the device can do at best.

What it can do at best is measured beside the task (:func:`ceilings`): how many bytes a second it
moves in a copy of a large array, and how many operations a second it does in a product of large
matrices. A task has to move some bytes and do some operations, whoever programs it. The larger of
the two times is its floor (:func:`with_floor`): no program on that device is faster, unless the
arrays fit into its cache, which moves bytes faster than the copy does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

REPEATS = {"cpu": 2, "cuda": 5}
# Bytes of the array that is copied, and rows of the matrices that are multiplied: beyond caches.
COPIED = {"cpu": 2**29, "cuda": 2**30}
MULTIPLIED = {"cpu": 1024, "cuda": 8192}
DTYPES = ("float32", "float64")
# What PyTorch, and the libraries that it calls, say where memory ends.
NO_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")


@dataclass(frozen=True)
class Timing:
    """What the runs of a task took.

    Attributes
    ----------
    seconds : list of float
        One time for each repeat; empty if the task did not fit into the device's memory.
    answer : object
        What the last run returned.
    peak_bytes : int or None
        The most that PyTorch held on the GPU, up to the end or the refusal; None on a CPU.
    refused : str or None
        What the device said if the task did not fit.
    """

    seconds: list[float]
    answer: Any
    peak_bytes: int | None
    refused: str | None = None

    @property
    def best(self) -> float | None:
        return min(self.seconds, default=None)


def like(torch: Any, dtype: str, device: str) -> Any:
    """Return a tensor of one zero, which fixes dtype and device."""
    return torch.zeros(1, dtype=getattr(torch, dtype), device=device)


def clocked(torch: Any, device: str, task: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds and answer of one run, with all that the device still has to do."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    answer = task()
    wait()
    return time.perf_counter() - start, answer


def timed(torch: Any, device: str, make: Callable[[], Callable[[], Any]]) -> Timing:
    """Make a task, run it once to warm up, then time REPEATS runs.

    A task that does not fit into the memory of a GPU is no error, but a finding.
    """
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds, answer, refused = [], None, None
    try:
        task = make()
        task()
        for _ in range(REPEATS[device]):
            answer = None  # two answers at a time would need more memory
            spent, answer = clocked(torch, device, task)
            seconds.append(spent)
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_MEMORY):
            raise
        seconds, answer, refused = [], None, str(error)
    return Timing(seconds, answer, torch.cuda.max_memory_allocated() if on_gpu else None, refused)


def beside(cpu: Timing | None, gpu: Timing) -> dict:
    """Return the fields of a row that hold the times; None where nothing was timed."""
    return {
        "cpu_s": cpu and cpu.best,
        "gpu_s": gpu.best,
        "cpu_repeats_s": cpu and cpu.seconds,
        "gpu_repeats_s": gpu.seconds,
        "gpu_peak_bytes": gpu.peak_bytes,
        "gpu_refused": gpu.refused,
    }


def compared(
    torch: Any, devices: tuple[str, str], make: Callable[[str], Callable[[], Any]]
) -> dict:
    """Time a task, made by ``make(device)``, on both devices."""
    return beside(*(timed(torch, device, lambda d=device: make(d)) for device in devices))


def ceilings(torch: Any, device: str) -> dict:
    """Measure bytes a second (read and written) of a copy, and operations a second of a product."""
    numbers, rows = COPIED[device] // 4, MULTIPLIED[device]

    def copy() -> Callable[[], Any]:
        source = torch.rand(numbers, device=device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    def product(dtype: str) -> Callable[[], Any]:
        M, N = torch.rand(2, rows, rows, dtype=getattr(torch, dtype), device=device)
        return lambda: M @ N

    return {
        "bytes_per_s": 2 * 4 * numbers / timed(torch, device, copy).best,
        "operations_per_s": {
            dtype: 2 * rows**3 / timed(torch, device, lambda d=dtype: product(d)).best
            for dtype in DTYPES
        },
    }


def floor_seconds(ceiling: dict, dtype: str, work: tuple[float, float]) -> float:
    """Return the least time for so many bytes and operations, done side by side."""
    moved, operations = work
    return max(moved / ceiling["bytes_per_s"], operations / ceiling["operations_per_s"][dtype])


def with_floor(row: dict, work: tuple[float, float], best: tuple[dict, dict]) -> dict:
    """Return a row with its least bytes and operations, the floors, and the distance from them.

    ``best`` holds the ceilings of the CPU and of the GPU.
    """
    found = {"least_bytes": work[0], "least_operations": work[1]}
    for name, ceiling in zip(("cpu", "gpu"), best, strict=True):
        floor, seconds = floor_seconds(ceiling, row["dtype"], work), row[f"{name}_s"]
        found[f"{name}_floor_s"] = floor
        found[f"{name}_over_floor"] = None if seconds is None else seconds / floor
    return row | found


def line(title: str, row: dict) -> str:
    """Say in words what was measured."""
    words = []
    for name in ("cpu", "gpu"):
        seconds, ratio = row[f"{name}_s"], row.get(f"{name}_over_floor")
        words.append(f"{name.upper()} " + ("-" if seconds is None else f"{seconds:.3g} s"))
        words[-1] += "" if ratio is None else f" ({ratio:.3g} x its floor)"
    refused = " (does not fit)" if row["gpu_refused"] else ""
    return f"{title} {row['dtype']}: " + ", ".join(words) + refused
