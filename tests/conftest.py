"""Fixtures over array libraries, devices and dtypes.

``like`` is an array of one backend and one dtype: everything in a test is made like it, and
:func:`kit.assert_alike` asserts that results are. Nothing here needs torch.
"""

import importlib.util
import os
import shutil
import tempfile
import zlib
from pathlib import Path

# Arrays of a few entries: more than one thread only makes threads wait for each other. Read when
# NumPy and torch are loaded, so set before.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

BACKENDS = ("numpy", "array_api_strict", "torch", "torch-cuda")
DTYPES = ("float64", "float32")


def _available(backend: str) -> bool:
    module = backend.removesuffix("-cuda")
    if importlib.util.find_spec(module) is None:
        return False
    if not backend.endswith("-cuda"):
        return True
    # torch is not loaded to learn that there is no device.
    return bool(shutil.which("nvidia-smi")) and importlib.import_module(module).cuda.is_available()


# Those that are absent give no test each: one test of test_arrays.py names them as skipped.
PRESENT = tuple(backend for backend in BACKENDS if _available(backend))


def make_like(backend: str, dtype: str):
    """Return one zero of the backend and dtype."""
    xp = importlib.import_module(backend.removesuffix("-cuda"))
    if backend == "torch-cuda":
        return xp.zeros(1, dtype=getattr(xp, dtype), device="cuda")
    return xp.zeros(1, dtype=getattr(xp, dtype))


@pytest.fixture(params=PRESENT)
def xp(request) -> str:
    """The name of an array library; tests that need no SciPy and no autograd run over all."""
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request) -> str:
    return request.param


@pytest.fixture
def like(xp, dtype):
    """An array that fixes namespace, dtype and device."""
    return make_like(xp, dtype)


@pytest.fixture
def like64(xp):
    """The same in double precision only."""
    return make_like(xp, "float64")


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def rng(request) -> np.random.Generator:
    """A generator seeded by the name of the test: the same numbers in any order of the tests."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


# ---------------------------------------------------------------- the inner loop


# The files that take longest come first, so that no process ends with them alone.
LONG = (
    *("test_book", "test_homework_release", "test_homework_nbgrader"),
    *("test_homework_dask", "test_homework_grade", "test_bilevel"),
)


def pytest_collection_modifyitems(items: list) -> None:
    """Leave to the full run: the second array library, single precision, the claims."""
    items.sort(key=lambda item: (*LONG, item.path.stem).index(item.path.stem))
    for item in items:
        library = item.callspec.params.get("xp", "numpy") if hasattr(item, "callspec") else "numpy"
        kind = "array_api_strict" in item.name or "float32" in item.name or library != "numpy"
        if kind or item.path.name.startswith("test_claims_0"):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Run tests that start kernels one after the other, also where several processes run tests.

    A kernel looks for free ports first and takes them later: another may have been faster.
    """
    if fcntl is None or not item.get_closest_marker("kernels"):
        return (yield)
    with open(Path(tempfile.gettempdir()) / f"kernels-{os.getuid()}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return (yield)


# ---------------------------------------------------------------- figures for the summary

_LINES = pytest.StashKey[list]()


@pytest.fixture
def report_line(request):
    """Return a function that puts a line into pytest's summary: a figure to read, no bound."""
    return request.config.stash.setdefault(_LINES, []).append


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash.get(_LINES, []):
        terminalreporter.write_line(line)
