"""Measure course_lib against its peers: python tests/benchmarks/run.py OUT.json [CONTEST ...]

Only ratios carry over to another machine, and only where the answers are equally good: each row
says how good both are, as one judge sees it, and a row whose answers are not comparable gets no
ratio. `make bench` gives the process one thread, so that a ratio compares the work, whatever the
number of cores. With names of contests only these are run. To show a full record in the book:

    cp _build/bench.json book/appendix/performance.json
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
# The same for JAX: the threads inside an operation, and those beside it.
JAX_THREADS = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "NPROC": "1",
}
PEERS = {
    "celer": "celer",
    "higher": "higher",
    "jax": "jax",
    "jaxopt": "jaxopt",
    "lineax": "lineax",
    "numpy": "numpy",
    "optimistix": "optimistix",
    "pylops": "pylops",
    "pyproximal": "pyproximal",
    "scikit-image": "skimage",
    "scikit-learn": "sklearn",
    "scipy": "scipy",
    "skglm": "skglm",
    "sparho": "sparho",
    "torch": "torch",
    "torchopt": "torchopt",
}
WORDS = {
    "beyond": "beyond its bar",
    "met": "meets its bar",
    "missed": "MISSES ITS BAR",
    "no bar": "no bar",
    "not comparable": "NOT COMPARABLE",
}


def missing() -> list[str]:
    """Return the packages that are not installed."""
    return [name for name, module in PEERS.items() if importlib.util.find_spec(module) is None]


def lines(row: dict) -> list[str]:
    """Return a row as it is printed: ratio and verdict, then everybody's accuracy and time."""
    ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
    bar = "" if row["bar"] is None else f" (bar {row['bar']:g})"
    words = WORDS[row["verdict"]]
    shown = [f"{row['group']}: {row['title']}: ratio {ratio}{bar}, {words}"]
    for entry in (row["ours"], *row["peers"]):
        mark = "" if entry["reached"] else "  not good enough"
        shown.append(
            f"    {entry['name']:30s} {entry['setting']:15s} accuracy {entry['accuracy']:7.0e}"
            f"  {1e3 * entry['min']:9.2f} ms{mark}"
        )
    return shown


def main(argv: list[str]) -> int:
    """Measure, print the rows, write the record."""
    if not argv:
        print(__doc__)
        return 2
    if missing():
        print(f"Missing: {', '.join(missing())}. Install them with pip install -e '.[bench]'.")
        return 1
    for name in THREADS:
        # Read when NumPy is loaded.
        os.environ.setdefault(name, "1")
    for name, value in JAX_THREADS.items():
        os.environ.setdefault(name, value)
    import contests
    import learned
    from measuring import complaints

    CONTESTS = contests.CONTESTS | learned.CONTESTS
    order = list(contests.TASKS | learned.TASKS)

    target, *names = argv
    unknown = sorted(set(names) - set(CONTESTS))
    if unknown:
        print(f"No such contest: {', '.join(unknown)}; there are {', '.join(CONTESTS)}.")
        return 2
    start, rows = time.time(), []
    for name in names or CONTESTS:
        for row in CONTESTS[name]():
            rows.append(row)
            print("\n".join(lines(row)), flush=True)
    rows.sort(key=lambda row: order.index(row["id"]))
    record = {
        "schema": 1,
        "date": date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "threads": os.environ["OMP_NUM_THREADS"],
        "versions": {name: version(name) for name in PEERS},
        "seconds": time.time() - start,
        "rows": rows,
    }
    assert not complaints(record), complaints(record)
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    missed = [row for row in rows if row["verdict"] in ("missed", "not comparable")]
    print(f"{len(rows)} rows in {record['seconds']:.0f} s; {len(missed)} miss their bar.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
