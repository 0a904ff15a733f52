"""Measure large problems on CPU and GPU: python tests/benchmarks/gpu.py OUT.json

It refuses to run without CUDA, and it alone writes notebooks/gpu_results.json.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from course_lib import filters, operators, problems, proximal
from course_lib.functionals import l1, least_squares
from course_lib.iterate import run

SIDES = (512, 1024, 2048)
STEPS, REPEATS, LAM = 100, 5, 1e-2
GCV_SIDES, PROBES = (128, 512, 1024), 7
BATCHES, ROWS, COLUMNS = (1, 100, 10_000, 100_000), 64, 120


def deblur_seconds(torch: Any, side: int, dtype: str, device: str, repeats: int) -> list[float]:
    """Return the times of STEPS steps of CGLS for Tikhonov's method with a gradient penalty."""
    like = torch.zeros(1, dtype=getattr(torch, dtype), device=device)
    picture = np.tile(problems.picture("camera"), (side // 512, side // 512))
    psf = problems.psf_gaussian(2.5)
    A = operators.convolution(
        torch.as_tensor(psf, dtype=like.dtype, device=device), picture.shape, boundary="zero"
    )
    y = A @ torch.as_tensor(picture, dtype=like.dtype, device=device)
    y, _ = problems.add_noise(y, 1e-2, seed=0)
    D = operators.gradient(picture.shape)

    def once() -> float:
        start = time.perf_counter()
        # A tolerance that is not reached: every run does all the steps.
        filters.tikhonov(A, y, LAM, D, method="cgls", rtol=1e-300, max_iter=STEPS)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    return [once() for _ in range(repeats)]


def measure(torch: Any, devices: tuple[str, str] = ("cpu", "cuda")) -> list[dict]:
    """Return one row for each side and precision, with all repeats."""
    rows = []
    for side in SIDES:
        for dtype in ("float32", "float64"):
            cpu, gpu = (
                deblur_seconds(torch, side, dtype, device, REPEATS if device == "cuda" else 2)
                for device in devices
            )
            rows.append(
                {
                    "side": side,
                    "dtype": dtype,
                    "steps": STEPS,
                    "cpu_s": min(cpu),
                    "gpu_s": min(gpu),
                    "cpu_repeats_s": cpu,
                    "gpu_repeats_s": gpu,
                }
            )
            print(f"{side} x {side} {dtype}: CPU {min(cpu):.3f} s, GPU {min(gpu):.3f} s")
    return rows


def gcv_seconds(
    torch: Any, side: int, dtype: str, device: str, repeats: int, *, together: bool = True
) -> list[float]:
    """Return the times of STEPS steps of CGLS for a picture and PROBES vectors of random signs.

    These are the solutions that one value of GCV needs, with a trace estimated by PROBES probes:
    all of them as one stack of pictures, or one after the other.
    """
    like = torch.zeros(1, dtype=getattr(torch, dtype), device=device)
    picture = problems.picture("camera", side) if side < 512 else problems.picture("camera")
    picture = np.tile(picture, (max(side // 512, 1), max(side // 512, 1)))
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (PROBES, side, side))
    data = torch.as_tensor(np.concatenate([picture[None], signs]), dtype=like.dtype, device=device)
    groups = [data] if together else [one[None] for one in data]
    psf = torch.as_tensor(problems.psf_gaussian(2.5)[None], dtype=like.dtype, device=device)
    A = operators.convolution(psf, tuple(groups[0].shape), boundary="zero")

    def once() -> float:
        start = time.perf_counter()
        for y in groups:
            filters.tikhonov(A, y, LAM, method="cgls", rtol=1e-300, max_iter=STEPS)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once()
    return [once() for _ in range(repeats)]


def measure_gcv(torch: Any, devices: tuple[str, str] = ("cpu", "cuda")) -> list[dict]:
    """Return one row for each side and precision: one value of GCV, with all repeats."""
    rows = []
    for side in GCV_SIDES:
        for dtype in ("float32", "float64"):
            cpu = gcv_seconds(torch, side, dtype, devices[0], 2)
            gpu, alone = (
                gcv_seconds(torch, side, dtype, devices[1], REPEATS, together=together)
                for together in (True, False)
            )
            rows.append(
                {
                    "side": side,
                    "dtype": dtype,
                    "steps": STEPS,
                    "pictures": 1 + PROBES,
                    "cpu_s": min(cpu),
                    "gpu_s": min(gpu),
                    "gpu_one_by_one_s": min(alone),
                    "cpu_repeats_s": cpu,
                    "gpu_repeats_s": gpu,
                    "gpu_one_by_one_repeats_s": alone,
                }
            )
            print(f"GCV, {side} x {side} {dtype}: CPU {min(cpu):.3f} s, GPU {min(gpu):.3f} s")
    return rows


def lasso_seconds(
    torch: Any, count: int, dtype: str, device: str, repeats: int
) -> tuple[list[float], float]:
    """Return the times of STEPS steps of FISTA for ``count`` LASSO problems, and their bytes.

    The bytes are the least that a step has to move: the iterate, its predecessor and the data
    are read, the new iterate is written, the matrix is read once.
    """
    like = torch.zeros(1, dtype=getattr(torch, dtype), device=device)
    rng = np.random.default_rng(0)
    M = torch.as_tensor(rng.standard_normal((ROWS, COLUMNS)) / 8, dtype=like.dtype, device=device)
    Y = torch.as_tensor(rng.standard_normal((ROWS, count)), dtype=like.dtype, device=device)
    A = operators.LinearOperator(
        lambda X: M @ X, lambda R: M.T @ R, (COLUMNS, count), (ROWS, count), like=like
    )
    f, start = least_squares(A, Y), torch.zeros((COLUMNS, count), dtype=like.dtype, device=device)
    step = 1 / float(torch.linalg.matrix_norm(M, 2)) ** 2

    def once() -> float:
        begin = time.perf_counter()
        run(proximal.fista(f, 0.2 * l1(), start, step=step), max_iter=STEPS, check_every=STEPS)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    once()
    moved = like.element_size() * (ROWS * COLUMNS + count * (3 * COLUMNS + ROWS))
    return [once() for _ in range(repeats)], moved * STEPS


def measure_lasso(torch: Any, devices: tuple[str, str] = ("cpu", "cuda")) -> list[dict]:
    """Return one row for each number of problems and precision, with all repeats."""
    rows = []
    for count in BATCHES:
        for dtype in ("float32", "float64"):
            cpu, moved = lasso_seconds(torch, count, dtype, devices[0], 2)
            gpu, _ = lasso_seconds(torch, count, dtype, devices[1], REPEATS)
            rows.append(
                {
                    "problems": count,
                    "dtype": dtype,
                    "steps": STEPS,
                    "least_bytes": moved,
                    "cpu_s": min(cpu),
                    "gpu_s": min(gpu),
                    "cpu_repeats_s": cpu,
                    "gpu_repeats_s": gpu,
                }
            )
            print(f"{count} LASSO problems {dtype}: CPU {min(cpu):.3f} s, GPU {min(gpu):.3f} s")
    return rows


def driver() -> str:
    """Return the version of the GPU's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return shown.split()[0]


def main(argv: list[str]) -> int:
    """Measure and write the file, or refuse."""
    if len(argv) != 1:
        print(__doc__)
        return 2
    try:
        import torch
    except ModuleNotFoundError:
        print("PyTorch is not installed: make gpu needs torch==2.13.0 in its build with CUDA.")
        return 1
    if not torch.cuda.is_available():
        print("No CUDA device was found, so nothing is measured and no file is written.")
        return 1
    record = {
        "device": torch.cuda.get_device_name(),
        "driver": driver(),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "cpu_threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("numpy", "torch")},
        "cuda": torch.version.cuda,
        "at_scale": measure(torch),
        "parameter_search": measure_gcv(torch),
        "batched_lasso": measure_lasso(torch),
    }
    Path(argv[0]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
