"""What `make gpu` measures, run on the CPU at small sizes: the same code, and right answers."""

import json
import math

import devices
import gpu
import numpy as np
import pytest
from kit import relative, to_numpy

from course_lib.arrays import to_float

pytestmark = pytest.mark.slow

CPU = ("cpu", "cpu")
# Ceilings with which floors can be computed in the head.
BEST = {"bytes_per_s": 1e9, "operations_per_s": {"float32": 1e12, "float64": 5e11}}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    sizes = {
        "SIDES": (32,),
        "GCV_SIDES": (32,),
        "BATCHES": (1, 5),
        "STEPS": 3,
        "TILE": 32,
        "SHAPES": ((32, 32), (64, 96)),
        "CPU_UNKNOWNS": 32 * 32,
        "TASKS": (1, 3),
        "INNER_STEPS": (1, 2),
    }
    for name, value in sizes.items():
        monkeypatch.setattr(gpu, name, value)
    for name, value in {"REPEATS": 2, "COPIED": 2**16, "MULTIPLIED": 32}.items():
        monkeypatch.setattr(devices, name, dict.fromkeys(("cpu", "cuda"), value))


def test_everything_runs(torch, capsys):
    found = gpu.measurements(torch, CPU)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    counts = {name: len(rows) for name, rows in found.items() if name != "ceilings"}
    assert counts == {
        "at_scale": 2,
        "parameter_search": 2,
        "batched_lasso": 4,
        "hypergradients": 2,
        "batched_maml": 8,
    }
    assert len(capsys.readouterr().out.splitlines()) == sum(counts.values())
    for name in counts:
        for row in found[name]:
            assert len(row["gpu_repeats_s"]) == 2
            assert row["gpu_s"] == min(row["gpu_repeats_s"]) > 0
            assert row["gpu_refused"] is None
    for name in ("batched_lasso", "hypergradients", "batched_maml"):
        for row in found[name]:
            ceiling = found["ceilings"]["gpu"]
            rate = ceiling["operations_per_s"][row["dtype"]]
            times = row["least_bytes"] / ceiling["bytes_per_s"], row["least_operations"] / rate
            assert row["gpu_over_floor"] == pytest.approx(row["gpu_s"] / max(times))


def test_pages_find_what_they_print(torch):
    """The cells that read notebooks/gpu_results.json use these names."""
    found = gpu.measurements(torch, CPU)
    assert {"side", "dtype", "cpu_s", "gpu_s"} <= set(found["at_scale"][0])
    wanted = {"side", "dtype", "cpu_s", "gpu_s", "gpu_one_by_one_s"}
    assert wanted <= set(found["parameter_search"][0])
    wanted = {"problems", "dtype", "cpu_s", "gpu_s", "least_bytes"}
    assert wanted <= set(found["batched_lasso"][0])


# Ceilings and floors


def test_ceilings(torch, monkeypatch):
    def half_a_second(torch, device, make):
        make()()
        return devices.Timing([0.5, 0.7], None, None)

    monkeypatch.setattr(devices, "timed", half_a_second)
    found = devices.ceilings(torch, "cpu")
    assert found["bytes_per_s"] == 4 * 2**16  # read and written, twice a second
    assert found["operations_per_s"] == dict.fromkeys(devices.DTYPES, 2 * 2 * 32**3)


@pytest.mark.parametrize(
    ("dtype", "work", "floor"),
    [
        ("float32", (2e9, 1e12), 2.0),
        ("float32", (1e9, 3e12), 3.0),
        ("float64", (1e9, 3e12), 6.0),
    ],
)
def test_floor(dtype, work, floor):
    row = {"dtype": dtype, "cpu_s": None, "gpu_s": 12.0, "gpu_refused": None}
    found = devices.with_floor(row, work, (BEST, BEST))
    assert (found["least_bytes"], found["least_operations"]) == work
    assert found["gpu_floor_s"] == found["cpu_floor_s"] == floor
    assert (found["cpu_over_floor"], found["gpu_over_floor"]) == (None, 12.0 / floor)
    assert f"CPU -, GPU 12 s ({12 / floor:.3g} x its floor)" in devices.line("a task", found)


def test_every_ceiling_serves_its_device():
    fast = {"bytes_per_s": 1e10, "operations_per_s": {"float32": 1e13}}
    row = {"dtype": "float32", "cpu_s": 4.0, "gpu_s": 4.0}
    found = devices.with_floor(row, (1e10, 0.0), (BEST, fast))
    assert (found["cpu_floor_s"], found["gpu_floor_s"]) == (10.0, 1.0)
    assert (found["cpu_over_floor"], found["gpu_over_floor"]) == (0.4, 4.0)


# What does not fit


@pytest.mark.parametrize("run_that_fails", [0, 2])
def test_what_does_not_fit_is_recorded(torch, run_that_fails):
    runs = []

    def task():
        runs.append(1)
        if len(runs) > run_that_fails:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
        return "answer"

    found = devices.timed(torch, "cpu", lambda: task)
    assert (found.seconds, found.best, found.answer) == ([], None, None)
    assert "3 GiB" in found.refused


def test_clock_waits_for_the_gpu(torch, monkeypatch):
    calls = []
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: calls.append(name))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 77)
    found = devices.timed(torch, "cuda", lambda: lambda: calls.append("task"))
    run = ["synchronize", "task", "synchronize"]
    assert calls == ["empty_cache", "reset_peak_memory_stats", "task", *run, *run]
    assert found.peak_bytes == 77


def test_other_errors_are_not_hidden(torch):
    def task():
        raise RuntimeError("an illegal memory access")

    with pytest.raises(RuntimeError, match="illegal"):
        devices.timed(torch, "cpu", lambda: task)


def test_hypergradient_that_does_not_fit(torch, monkeypatch, capsys):
    whole = gpu.hypergradient

    def bounded(torch, shape, dtype, device):
        if math.prod(shape) > 32 * 32:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")
        return whole(torch, shape, dtype, device)

    monkeypatch.setattr(gpu, "hypergradient", bounded)
    fits, too_large = gpu.measure_hypergradients(torch, (BEST, BEST), CPU)
    assert fits["gpu_refused"] is None
    assert fits["cpu_s"] > 0
    assert "3 GiB" in too_large["gpu_refused"]
    assert too_large["picture_bytes"] == 4 * 64 * 96
    assert too_large["gpu_s"] is None
    assert json.dumps(too_large, allow_nan=False)
    assert "(does not fit)" in capsys.readouterr().out.splitlines()[1]


# Answers


def test_hypergradient(torch, monkeypatch):
    """Against Fourier coefficients of the whole picture, and a difference quotient."""
    monkeypatch.setattr(gpu, "RTOL", 1e-12)
    shape = (64, 96)
    found = gpu.hypergradient(torch, shape, "float64", "cpu")()
    psf, y, y_val = gpu.tile()
    y, y_val = np.tile(y, (2, 3)), np.tile(y_val, (2, 3))
    kernel = np.zeros(shape)
    for i, j in np.ndindex(psf.shape):
        kernel[(i - psf.shape[0] // 2) % 64, (j - psf.shape[1] // 2) % 96] += psf[i, j]
    a = np.fft.fft2(kernel)

    def loss(theta):
        x = np.conj(a) * np.fft.fft2(y) / (np.abs(a) ** 2 + math.exp(theta))
        return 0.5 * ((np.fft.ifft2(a * x).real - y_val) ** 2).sum()

    theta, h = math.log(gpu.LAM), 1e-4
    quotient = (loss(theta + h) - loss(theta - h)) / (2 * h)
    assert found.value == pytest.approx(loss(theta), rel=1e-9)
    assert to_float(found.gradient) == pytest.approx(quotient, rel=1e-6)
    assert gpu.expected_hypergradient(shape) == pytest.approx(quotient, rel=1e-6)


def test_number_of_steps_is_that_of_the_tile(torch):
    shapes = (32, 32), (64, 96), (128, 32)
    steps = {gpu.hypergradient(torch, shape, "float64", "cpu")().steps for shape in shapes}
    assert len(steps) == 1
    assert min(steps.pop()) > 3


def test_rows_of_hypergradients(torch):
    small, large = gpu.measure_hypergradients(torch, (BEST, BEST), CPU)
    assert small["gpu_steps"] == small["cpu_steps"]
    assert np.abs(np.subtract(small["gpu_steps"], large["gpu_steps"])).max() <= 1
    # RTOL, times the condition number of 100 at most.
    assert max(row["gpu_error"] for row in (small, large)) < 0.01
    assert (small["unknowns"], large["unknowns"]) == (32 * 32, 64 * 96)
    assert large["cpu_s"] is large["cpu_error"] is None
    for row in (small, large):
        work = gpu.hypergradient_work(row["unknowns"], sum(row["gpu_steps"]), "float32")
        assert (row["least_bytes"], row["least_operations"]) == work


def test_work_of_hypergradient():
    """By hand for 2^10 unknowns: 20 arrays a step, and 4 transforms of 25 operations an entry."""
    moved, operations = gpu.hypergradient_work(2**10, 3, "float32")
    assert moved == 3 * 20 * 4 * 2**10
    assert operations == 3 * (4 * 25 + 18) * 2**10


@pytest.mark.parametrize("way", ["written out", "autograd"])
@pytest.mark.parametrize("steps", [1, 2])
def test_maml(torch, way, steps):
    """Against a loop over the tasks, a plain network, and PyTorch through the inner steps."""
    found = gpu.maml(torch, way, 3, steps, "float64", "cpu")()
    one = torch.zeros(1, dtype=torch.float64)
    data = gpu.problems.sinusoids(3, gpu.SHOTS, queries=gpu.SHOTS, seed=0, like=one)
    theta = gpu.meta.Network(gpu.WIDTHS).start(0, one).requires_grad_()

    def risk(w, x, y):
        for layer, (m, n) in enumerate(zip(gpu.WIDTHS, gpu.WIDTHS[1:], strict=False)):
            W, b, w = w[: m * n].reshape(m, n), w[m * n : (m + 1) * n], w[(m + 1) * n :]
            x = (torch.relu(x) if layer else x) @ W + b
        return ((x - y) ** 2).mean()

    losses = []
    for task in range(3):
        w = theta
        for _ in range(steps):
            loss = risk(w, data.x_support[task], data.y_support[task])
            w = w - gpu.INNER_STEP * torch.autograd.grad(loss, w, create_graph=True)[0]
        losses.append(risk(w, data.x_query[task], data.y_query[task]))
    mean = sum(losses) / 3
    (gradient,) = torch.autograd.grad(mean, theta)
    assert found.value == pytest.approx(mean.item(), rel=1e-12)
    assert relative(found.gradient, gradient) < 1e-10


def counted(torch, task) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        task()
    return counter.get_total_flops()


@pytest.mark.parametrize("steps", [1, 2])
def test_work_of_maml(torch, steps):
    """PyTorch counts the same, and the layers once more for the value of the loss."""
    task = gpu.maml(torch, "written out", 3, steps, "float32", "cpu")
    moved, operations = gpu.maml_work(3, steps, "float32")
    assert counted(torch, task) == operations + 3 * 2 * 10 * 1761
    assert moved == 4 * (3 * (10 + 10) * 2 + 2 * 1761 + 3 * 1761)


def test_lasso(torch, monkeypatch):
    """The conditions for a minimum, in NumPy."""
    monkeypatch.setattr(gpu, "STEPS", 3000)
    found = to_numpy(gpu.lasso(torch, 5, "float64", "cpu")().x)
    rng = np.random.default_rng(0)
    M, Y = rng.standard_normal((64, 120)) / 8, rng.standard_normal((64, 5))
    slopes = M.T @ (Y - M @ found)
    assert (found != 0).sum(axis=0).min() > 5
    assert np.abs(slopes).max() < 0.2 + 1e-6
    np.testing.assert_allclose(slopes[found != 0], 0.2 * np.sign(found[found != 0]), atol=1e-6)


def test_work_of_lasso(torch, monkeypatch):
    """What PyTorch counts for ten more steps."""

    def steps(number):
        monkeypatch.setattr(gpu, "STEPS", number)
        work = gpu.lasso_work(5, "float64")
        return np.array([*work, counted(torch, gpu.lasso(torch, 5, "float64", "cpu"))])

    moved, operations, products = steps(13) - steps(3)
    assert operations == products == 10 * 4 * 64 * 120 * 5
    assert moved == 10 * 8 * (64 * 120 + 5 * (3 * 120 + 64))


# The command


def test_no_device_no_file(torch, tmp_path, capsys, monkeypatch):
    assert gpu.main([]) == 2
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([str(tmp_path / "out.json")]) == 1
    assert "nothing is measured" in capsys.readouterr().out
    assert not (tmp_path / "out.json").exists()
