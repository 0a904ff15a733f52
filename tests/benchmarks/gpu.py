"""Measure a large deblurring on CPU and GPU: python tests/benchmarks/gpu.py OUT.json

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

from course_lib import filters, operators, problems

SIDES = (512, 1024, 2048)
STEPS, REPEATS, LAM = 100, 5, 1e-2


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
    }
    Path(argv[0]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
