"""A pytest plugin that writes what nbval saw in each cell to the file that COURSE_REPORT names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

_cells: list[dict] = []


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Record each cell once: when it ran, or when its notebook could not be set up."""
    outcome = yield
    report = outcome.get_result()
    if not hasattr(item, "cell_num") or not (report.when == "call" or report.failed):
        return
    error = call.excinfo
    if error is not None and str(error.value).startswith("Timeout"):
        item.session.shouldstop = "a cell did not finish"  # what follows would hang on its kernel
    _cells.append(
        {
            "notebook": item.path.name,
            "code_cell": item.cell_num,
            "passed": error is None,
            "stage": report.when,
            "error": "" if error is None else str(error.value),
            "outputs": list(getattr(item, "test_outputs", None) or []),
        }
    )


def pytest_sessionfinish(session):
    """Write the record; a file that is missing afterwards means that pytest itself broke."""
    if "COURSE_REPORT" in os.environ:
        Path(os.environ["COURSE_REPORT"]).write_text(json.dumps(_cells), encoding="utf-8")
