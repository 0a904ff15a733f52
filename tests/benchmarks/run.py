"""Measure course_lib against its peers in one process: python tests/benchmarks/run.py OUT.json

Only ratios carry over to another machine. Each row says how far the two answers are apart, so that
a ratio never compares answers of different quality; the raw repeats are kept. `make bench` gives
the process one thread: a ratio then compares the work, whatever the number of cores.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy.signal
import scipy.sparse.linalg

from course_lib import filters, linear, operators, problems
from course_lib.iterate import run

REPEATS = 7


def seconds(task: Callable[[], Any]) -> float:
    """Return the time of one run."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def row(name: str, ours: Callable[[], Any], peer: Callable[[], Any], peer_name: str) -> dict:
    """Time two ways to the same answer in turn, and say how far the answers are apart."""
    x, x_peer = np.asarray(ours()), np.asarray(peer())
    mine, theirs = zip(*[(seconds(ours), seconds(peer)) for _ in range(REPEATS)], strict=True)
    return {
        "task": name,
        "peer": peer_name,
        "ratio": min(mine) / min(theirs),
        "difference": float(np.linalg.norm(x - x_peer) / np.linalg.norm(x_peer)),
        "ours_s": mine,
        "peer_s": theirs,
    }


def cgls_row(m: int, n: int, steps: int) -> dict:
    """CGLS and SciPy's LSQR do the same number of steps on the same dense matrix."""
    rng = np.random.default_rng(0)
    A, y = rng.standard_normal((m, n)), rng.standard_normal(m)

    def ours():
        return run(linear.cgls(A, y), max_iter=steps, check_every=steps).x

    def peer():
        options = {"atol": 0.0, "btol": 0.0, "conlim": 0.0, "iter_lim": steps}
        return scipy.sparse.linalg.lsqr(A, y, **options)[0]

    return row(f"CGLS, {m} x {n}, {steps} steps", ours, peer, "scipy.sparse.linalg.lsqr")


def convolution_row(side: int, width: float) -> dict:
    """A blur that sees black outside the picture, against SciPy's convolution by FFT."""
    psf = problems.psf_gaussian(width)
    x = np.random.default_rng(0).standard_normal((side, side))
    A = operators.convolution(psf, x.shape, boundary="zero")
    return row(
        f"convolution, {side} x {side}",
        lambda: A @ x,
        lambda: scipy.signal.fftconvolve(x, psf, mode="same"),
        "scipy.signal.fftconvolve",
    )


def tikhonov_row(n: int) -> dict:
    """Tikhonov's method on a dense matrix, against NumPy's least squares on the augmented one."""
    problem = problems.shaw(n)
    A, lam = problem.A.to_dense(), 1e-4

    def peer():
        stacked = np.vstack([A, lam**0.5 * np.eye(n)])
        return np.linalg.lstsq(stacked, np.concatenate([problem.y, np.zeros(n)]), rcond=None)[0]

    return row(
        f"Tikhonov, {n} x {n}",
        lambda: filters.tikhonov(A, problem.y, lam).x,
        peer,
        "numpy.linalg.lstsq, augmented",
    )


def many_lambdas_row(n: int, count: int) -> dict:
    """One decomposition for many λ, against one least-squares problem for each."""
    problem = problems.shaw(n)
    A, lams = problem.A.to_dense(), np.logspace(-8, 0, count)

    def ours():
        spectrum = filters.decompose(A)
        return [
            filters.filtered(spectrum, problem.y, filters.tikhonov_factors(spectrum.s, lam))
            for lam in lams
        ]

    def peer():
        data = np.concatenate([problem.y, np.zeros(n)])
        stacked = (np.vstack([A, lam**0.5 * np.eye(n)]) for lam in lams)
        return [np.linalg.lstsq(M, data, rcond=None)[0] for M in stacked]

    return row(f"Tikhonov, {n} x {n}, {count} λ", ours, peer, "numpy.linalg.lstsq, augmented")


def main(argv: list[str]) -> int:
    """Measure, print a table, write the file."""
    if len(argv) != 1:
        print(__doc__)
        return 2
    rows = [
        cgls_row(2000, 1000, 50),
        convolution_row(512, 3.0),
        tikhonov_row(500),
        many_lambdas_row(200, 50),
    ]
    print(f"{'task':34s} {'peer':32s} {'ours':>9s} {'peer':>9s} {'ratio':>6s} {'difference':>10s}")
    for r in rows:
        ours, peer = statistics.median(r["ours_s"]), statistics.median(r["peer_s"])
        print(
            f"{r['task']:34s} {r['peer']:32s} {1e3 * ours:6.2f} ms {1e3 * peer:6.2f} ms "
            f"{r['ratio']:6.2f} {r['difference']:10.0e}"
        )
    record = {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "versions": {name: version(name) for name in ("numpy", "scipy")},
        "rows": rows,
    }
    target = Path(argv[0])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
