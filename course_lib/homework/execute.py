"""Run notebooks with nbval in a process of its own, and say what became of each cell."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from course_lib.homework.notebook import HomeworkError, course, write_notebook

DEFAULT_CELL_TIMEOUT = 60.0
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class CellRun:
    """What became of one code cell.

    ``state`` is ``passed``; ``raised`` (then ``error`` and ``message`` hold the exception's type
    and text); ``differs`` (it printed something else than expected); ``timeout``; ``not_run``.
    """

    state: str
    error: str = ""
    message: str = ""
    printed: str = ""
    expected: str = ""
    result: str = ""


def run_notebooks(notebooks: dict[str, Any]) -> dict[str, dict[int, CellRun]]:
    """Run each notebook from top to bottom in a fresh kernel of this Python, by ``nbval --lax``.

    Parameters
    ----------
    notebooks : dict
        Names (no extension) to notebooks. Outputs of cells marked ``# NBVAL_CHECK_OUTPUT`` are
        compared with the stored ones; other outputs are not.

    Returns
    -------
    dict
        For each notebook the index of each code cell and its `CellRun`.

    Raises
    ------
    HomeworkError
        nbval or the kernel is not installed, or the run broke off.
    """
    for module, package in (("nbval", "nbval"), ("pytest", "pytest"), ("ipykernel", "ipykernel")):
        if importlib.util.find_spec(module) is None:
            raise HomeworkError(
                f"{package} is not installed, and notebooks are run with it: "
                "pip install 'learning-to-regularize[homework]'."
            )
    with tempfile.TemporaryDirectory(prefix="course-") as folder:
        here = Path(folder)
        for name, notebook in notebooks.items():
            write_notebook(notebook, here / f"{name}.ipynb")
        record = _run_nbval(here, notebooks)
    return {
        name: _cell_runs(notebook, [row for row in record if row["notebook"] == f"{name}.ipynb"])
        for name, notebook in notebooks.items()
    }


def _run_nbval(here: Path, notebooks: dict[str, Any]) -> list[dict]:
    (here / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    limit = max(_cell_timeout(notebook) for notebook in notebooks.values())
    command = [
        *(sys.executable, "-m", "pytest", "-q", "-c", "pytest.ini", "--rootdir", "."),
        *("-p", "no:cacheprovider", "-p", "nbval.plugin", "-p", "course_lib.homework._report"),
        *("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", str(limit)),
        *(f"{name}.ipynb" for name in notebooks),
    ]
    # Neither the student's pytest settings nor plugins that happen to be installed take part.
    surroundings = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"}
    surroundings.update(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", COURSE_REPORT=str(here / "report.json"))
    library = str(Path(__file__).parents[2])
    surroundings["PYTHONPATH"] = os.pathsep.join(
        [library, *filter(None, [surroundings.get("PYTHONPATH")])]
    )
    done = subprocess.run(
        command, cwd=here, env=surroundings, capture_output=True, text=True, check=False
    )
    report = here / "report.json"
    if not report.exists():
        tail = " ".join((done.stdout + done.stderr).split())[-600:]
        raise HomeworkError(f"The notebook could not be run: pytest broke off. It said: {tail}")
    record = json.loads(report.read_text(encoding="utf-8"))
    broken = [row for row in record if row["stage"] == "setup" and not row["passed"]]
    if broken:
        raise HomeworkError(
            f"The notebook could not be run: no kernel started ({broken[0]['error'][:300]})."
        )
    return record


def _cell_timeout(notebook: Any) -> float:
    limits = [course(cell).get("cell_timeout") for cell in notebook.cells]
    return max((float(limit) for limit in limits if limit), default=DEFAULT_CELL_TIMEOUT)


def _cell_runs(notebook: Any, rows: list[dict]) -> dict[int, CellRun]:
    places = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    runs = {index: CellRun("not_run") for index in places}
    dead = False
    for row in sorted(rows, key=lambda row: row["code_cell"]):
        index = places[row["code_cell"]]
        runs[index] = CellRun("not_run") if dead else _cell_run(notebook.cells[index], row)
        dead = dead or runs[index].state == "timeout"
    return runs


def _cell_run(cell: Any, row: dict) -> CellRun:
    outputs = row["outputs"]
    printed = "".join(o["text"] for o in outputs if o["output_type"] == "stream")
    expected = "".join(o["text"] for o in cell.outputs if o["output_type"] == "stream")
    results = [o for o in outputs if o["output_type"] == "execute_result"]
    result = str(results[-1]["data"].get("text/plain", "")) if results else ""
    errors = [o for o in outputs if o["output_type"] == "error"]
    seen = {"printed": printed, "expected": expected, "result": result}
    if row["passed"]:
        return CellRun("passed", **seen)
    if row["error"].startswith("Timeout"):
        return CellRun("timeout", message=row["error"], **seen)
    if errors:
        evalue = _ANSI.sub("", errors[-1]["evalue"])
        return CellRun("raised", error=errors[-1]["ename"], message=evalue, **seen)
    if row["error"].startswith("Cell outputs differ"):
        return CellRun("differs", **seen)
    return CellRun("timeout", message="the kernel died", **seen)
