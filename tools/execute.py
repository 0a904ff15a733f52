"""Run the notebooks that the book's cache lacks, several at a time: python tools/execute.py

The build of the book runs them one after the other. It takes from the cache what it finds there,
and runs what failed here once more, to report it.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import kernel_sockets  # noqa: F401 (kernels that start at one moment must not share a port)
import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "_build" / ".jupyter_cache"
SECONDS = 600


def execute(path: Path):
    """Return the notebook with its outputs, the error if there was one, and the seconds taken."""
    notebook = nbformat.read(path, as_version=4)
    try:
        result = single_nb_execution(
            notebook, cwd=str(path.parent), allow_errors=False, timeout=SECONDS
        )
    except RuntimeError as error:  # a kernel that died, or did not start
        return notebook, error, 0.0
    return notebook, result.err, result.time


def main() -> None:
    """Fill the cache."""
    cache = get_cache(CACHE)
    paths = sorted((ROOT / "notebooks").rglob("*.ipynb"))
    known = set()
    for path in paths:
        try:
            cache.match_cache_notebook(nbformat.read(path, as_version=4))
            known.add(path)
        except KeyError:
            continue
    paths = [path for path in paths if path not in known]
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for path, (notebook, error, seconds) in zip(paths, pool.map(execute, paths), strict=True):
            if error is None:
                bundle = CacheBundleIn(notebook, str(path), data={"execution_seconds": seconds})
                cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


if __name__ == "__main__":
    main()
