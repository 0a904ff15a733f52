"""Measure large problems on CPU and GPU: python tests/benchmarks/gpu.py OUT.json

It refuses to run without CUDA, and it alone writes notebooks/gpu_results.json. Measured are
deblurring, one value of GCV, many LASSO problems at once, hypergradients for up to 10^8 unknowns,
and MAML over 10^4 tasks at once. The last three stand beside their floors (devices.py).
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from devices import DTYPES, beside, ceilings, compared, like, line, timed, with_floor

from course_lib import bilevel, filters, meta, operators, problems, proximal
from course_lib.functionals import l1, least_squares
from course_lib.iterate import run

SIDES = (512, 1024, 2048)
STEPS, LAM = 100, 1e-2
GCV_SIDES, PROBES = (128, 512, 1024), 7
BATCHES, ROWS, COLUMNS = (1, 100, 10_000, 100_000), 64, 120
# Pictures of 10^6, 10^7 and 10^8 pixels, laid with a square of TILE x TILE; the CPU does the first.
SHAPES, TILE, RTOL, CPU_UNKNOWNS = ((1000, 1000), (2500, 4000), (10_000, 10_000)), 500, 1e-4, 10**6
TASKS, INNER_STEPS, SHOTS, INNER_STEP, WIDTHS = (25, 10_000), (1, 5), 10, 0.01, (1, 40, 40, 1)

DEVICES = ("cpu", "cuda")
# The ceilings of the two devices.
Best = tuple[dict, dict]


# Deblurring


def camera(side: int) -> np.ndarray:
    """Return a picture of side x side pixels, laid with several of 512 x 512 if it is larger."""
    tiles = max(side // 512, 1)
    return np.tile(problems.picture("camera", min(side, 512)), (tiles, tiles))


def deblur(torch: Any, side: int, dtype: str, device: str) -> Callable[[], Any]:
    """Return STEPS steps of CGLS for Tikhonov's method with a gradient penalty."""
    one, picture = like(torch, dtype, device), camera(side)
    psf = problems.psf_gaussian(2.5)
    A = operators.convolution(torch.as_tensor(psf).to(one), picture.shape, boundary="zero")
    y, _ = problems.add_noise(A @ torch.as_tensor(picture).to(one), 1e-2, seed=0)
    D = operators.gradient(picture.shape)
    # A tolerance that is not reached: every run does all the steps.
    return lambda: filters.tikhonov(A, y, LAM, D, method="cgls", rtol=1e-300, max_iter=STEPS)


def measure(torch: Any, devices: tuple[str, str] = DEVICES) -> list[dict]:
    """Return one row for each side and precision, with all repeats."""
    rows = []
    for side in SIDES:
        for dtype in DTYPES:
            row = {"side": side, "dtype": dtype, "steps": STEPS}
            rows.append(
                row | compared(torch, devices, lambda d, s=side, t=dtype: deblur(torch, s, t, d))
            )
            print(line(f"{side} x {side}", rows[-1]))
    return rows


# One value of GCV


def gcv(
    torch: Any, side: int, dtype: str, device: str, *, together: bool = True
) -> Callable[[], None]:
    """Return STEPS steps of CGLS for a picture and PROBES vectors of random signs.

    These are the solutions that one value of GCV needs, with a trace estimated by PROBES probes:
    all of them as one stack of pictures, or one after the other.
    """
    one = like(torch, dtype, device)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (PROBES, side, side))
    data = torch.as_tensor(np.concatenate([camera(side)[None], signs])).to(one)
    groups = [data] if together else [picture[None] for picture in data]
    psf = torch.as_tensor(problems.psf_gaussian(2.5)[None]).to(one)
    A = operators.convolution(psf, tuple(groups[0].shape), boundary="zero")

    def once() -> None:
        for y in groups:
            filters.tikhonov(A, y, LAM, method="cgls", rtol=1e-300, max_iter=STEPS)

    return once


def measure_gcv(torch: Any, devices: tuple[str, str] = DEVICES) -> list[dict]:
    """Return one row for each side and precision: one value of GCV, with all repeats."""
    rows = []
    for side in GCV_SIDES:
        for dtype in DTYPES:

            def make(device: str, together: bool = True, s: int = side, t: str = dtype) -> Callable:
                return gcv(torch, s, t, device, together=together)

            row = {"side": side, "dtype": dtype, "steps": STEPS, "pictures": 1 + PROBES}
            row |= compared(torch, devices, make)
            alone = timed(torch, devices[1], lambda m=make: m(devices[1], together=False))
            row |= {"gpu_one_by_one_s": alone.best, "gpu_one_by_one_repeats_s": alone.seconds}
            rows.append(row)
            print(line(f"GCV, {side} x {side}", row))
    return rows


# Many LASSO problems


def lasso(torch: Any, count: int, dtype: str, device: str) -> Callable[[], Any]:
    """Return STEPS steps of FISTA for ``count`` LASSO problems with one matrix."""
    one, rng = like(torch, dtype, device), np.random.default_rng(0)
    M = torch.as_tensor(rng.standard_normal((ROWS, COLUMNS)) / 8).to(one)
    Y = torch.as_tensor(rng.standard_normal((ROWS, count))).to(one)
    A = operators.LinearOperator(
        lambda X: M @ X, lambda R: M.T @ R, (COLUMNS, count), (ROWS, count), like=one
    )
    f, start = least_squares(A, Y), one.new_zeros((COLUMNS, count))
    step = 1 / float(torch.linalg.matrix_norm(M, 2)) ** 2

    def once() -> Any:
        states = proximal.fista(f, 0.2 * l1(), start, step=step)
        return run(states, max_iter=STEPS, check_every=STEPS)

    return once


def lasso_work(count: int, dtype: str) -> tuple[int, int]:
    """Return the least bytes and operations of :func:`lasso`.

    In each step the iterate, its predecessor and the data are read, the new iterate is written, the
    matrix is read once, and there are two products with it.
    """
    numbers = ROWS * COLUMNS + count * (3 * COLUMNS + ROWS)
    return STEPS * numbers * np.dtype(dtype).itemsize, STEPS * 4 * ROWS * COLUMNS * count


def measure_lasso(torch: Any, best: Best, devices: tuple[str, str] = DEVICES) -> list[dict]:
    """Return one row for each number of problems and precision, with all repeats."""
    rows = []
    for count in BATCHES:
        for dtype in DTYPES:
            row = {"problems": count, "dtype": dtype, "steps": STEPS}
            row |= compared(torch, devices, lambda d, c=count, t=dtype: lasso(torch, c, t, d))
            rows.append(with_floor(row, lasso_work(count, dtype), best))
            print(line(f"{count} LASSO problems", rows[-1]))
    return rows


# Hypergradients of pictures


def tile() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a blur, and two noisy pictures of the same blurred one: for training, to validate."""
    psf, picture = problems.psf_gaussian(2.5), problems.picture("camera", TILE)
    y = operators.convolution(psf, picture.shape) @ picture
    return psf, *(problems.add_noise(y, 1e-2, seed=seed)[0] for seed in (0, 1))


def hypergradient(
    torch: Any, shape: tuple[int, int], dtype: str, device: str
) -> Callable[[], bilevel.Hypergradient]:
    """Return the hypergradient of Tikhonov's method for a blur of a picture, by theta = ln(LAM).

    The picture is the tile, laid side by side. As the blur goes around the edges, conjugate
    gradients compute the tile's iterates on every tile. So the number of steps is the same for all
    sizes (rounding may add or save one), and the hypergradient is the tile's times their number.
    """
    one, copies = like(torch, dtype, device), tuple(side // TILE for side in shape)
    psf, *data = (torch.as_tensor(x).to(one) for x in tile())
    y, y_val = (x.tile(copies) for x in data)
    A = operators.convolution(psf, shape)
    theta = one.new_tensor(math.log(LAM))
    return lambda: bilevel.tikhonov(A, y, theta, least_squares(A, y_val), rtol=RTOL)


def expected_hypergradient(shape: tuple[int, int]) -> float:
    """Return the same derivative by the formula for the tile, in double precision."""
    psf, y, y_val = tile()
    A = operators.convolution(psf, y.shape)
    slope = bilevel.tikhonov_fourier(A, y, A, y_val)(math.log(LAM))[1]
    return slope * math.prod(shape) / y.size


def hypergradient_work(unknowns: int, steps: int, dtype: str) -> tuple[float, float]:
    """Return the least bytes and operations of so many steps of conjugate gradients.

    A step has two products with the blur, each with a transform and its inverse (an array read, an
    array written) and a spectrum read between them; the last one also reads p, to add lambda p and
    for <p, q>. Then x, r, p, q are read and x, r written, with <r, r>; r, p are read and p
    written. A real transform takes 5/2 n log2 n operations.
    """
    numbers = 2 * (2 * 2 + 1) + 1 + 6 + 3
    transforms = 4 * 2.5 * math.log2(unknowns)
    # Spectra 2 x 3, lambda p 2, the updates of x, r, p 2 each, inner products 2 x 2.
    operations = transforms + 6 + 2 + 6 + 4
    return (
        float(steps * unknowns * numbers * np.dtype(dtype).itemsize),
        float(steps * unknowns * operations),
    )


def hypergradient_row(
    torch: Any, shape: tuple[int, int], best: Best, devices: tuple[str, str], dtype: str = "float32"
) -> dict:
    """Return the row of a picture; on the GPU it may not fit, for the CPU it may be too large."""
    unknowns, expected = math.prod(shape), expected_hypergradient(shape)
    cpu, gpu = (
        timed(torch, device, lambda d=device: hypergradient(torch, shape, dtype, d))
        if name == "gpu" or unknowns <= CPU_UNKNOWNS
        else None
        for name, device in zip(("cpu", "gpu"), devices, strict=True)
    )
    row = {
        "unknowns": unknowns,
        "shape": list(shape),
        "dtype": dtype,
        "picture_bytes": unknowns * np.dtype(dtype).itemsize,
    }
    row |= beside(cpu, gpu)
    for name, timing in (("cpu", cpu), ("gpu", gpu)):
        found = timing and timing.answer
        row[f"{name}_steps"] = found and list(found.steps)
        row[f"{name}_error"] = found and abs(float(found.gradient) / expected - 1)
    steps = row["gpu_steps"] or row["cpu_steps"]
    return with_floor(row, hypergradient_work(unknowns, sum(steps), dtype), best) if steps else row


def measure_hypergradients(
    torch: Any, best: Best, devices: tuple[str, str] = DEVICES
) -> list[dict]:
    """Return one row for each size, with all repeats."""
    rows = []
    for shape in SHAPES:
        rows.append(hypergradient_row(torch, shape, best, devices))
        print(line(f"hypergradient, {rows[-1]['unknowns']:.0e} unknowns", rows[-1]))
    return rows


# Many few-shot tasks


def maml(
    torch: Any, way: str, tasks: int, steps: int, dtype: str, device: str
) -> Callable[[], meta.MetaGradient]:
    """Return one exact meta-gradient over a stack of tasks.

    ``way`` says who differentiates: the network's own formulas ("written out"), or PyTorch.
    """
    net, one = meta.Network(WIDTHS), like(torch, dtype, device)
    data = problems.sinusoids(tasks, SHOTS, queries=SHOTS, seed=0, like=one)
    theta, options = net.start(0, one), {"step": INNER_STEP, "steps": steps}
    if way == "written out":
        return lambda: meta.maml(net.task(data), theta, **options)
    return lambda: meta.batched_maml(net.risk, theta, data, **options)


def maml_work(tasks: int, steps: int, dtype: str) -> tuple[int, int]:
    """Return the least bytes and operations of :func:`maml`.

    The data and the weights are read, the gradient and the adapted weights of all tasks written.
    Of the operations the products of matrices count, F for the layers one after the other and B for
    the way back from the last to the first: 2F + B for a gradient, 2F + 4B for a product with the
    Hessian.
    """
    net = meta.Network(WIDTHS)
    numbers = 2 * net.size + tasks * (4 * SHOTS + net.size)
    F = 2 * SHOTS * net.size
    B = 2 * SHOTS * sum((m - 1) * n for m, n in net.shapes[1:])
    operations = (steps + 1) * (2 * F + B) + steps * (2 * F + 4 * B)
    return numbers * np.dtype(dtype).itemsize, tasks * operations


def measure_maml(torch: Any, best: Best, devices: tuple[str, str] = DEVICES) -> list[dict]:
    """Return one row for each number of tasks and of inner steps, and each way."""
    rows = []
    for tasks in TASKS:
        for steps in INNER_STEPS:
            for way in ("written out", "autograd"):
                row = {"tasks": tasks, "inner_steps": steps, "way": way, "dtype": "float32"}
                row |= compared(
                    torch,
                    devices,
                    lambda d, t=tasks, s=steps, w=way: maml(torch, w, t, s, "float32", d),
                )
                rows.append(with_floor(row, maml_work(tasks, steps, "float32"), best))
                print(line(f"MAML, {tasks} tasks, {steps} inner steps, {way},", rows[-1]))
    return rows


# The record


def driver() -> str:
    """Return the version of the GPU's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return shown.split()[0]


def measurements(torch: Any, devices: tuple[str, str] = DEVICES) -> dict:
    """Return all that is measured: ceilings and rows."""
    best = tuple(ceilings(torch, device) for device in devices)
    return {
        "ceilings": {"cpu": best[0], "gpu": best[1]},
        "at_scale": measure(torch, devices),
        "parameter_search": measure_gcv(torch, devices),
        "batched_lasso": measure_lasso(torch, best, devices),
        "hypergradients": measure_hypergradients(torch, best, devices),
        "batched_maml": measure_maml(torch, best, devices),
    }


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
        "device_bytes": torch.cuda.get_device_properties(0).total_memory,
        "driver": driver(),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "cpu_threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("numpy", "torch")},
        "cuda": torch.version.cuda,
        **measurements(torch),
    }
    Path(argv[0]).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
