"""Buttons and a first cell for Colab and Binder, once the repository has an address."""

from __future__ import annotations

import json
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config


def _add_buttons(app: Sphinx, config: Config) -> None:
    options = config.html_theme_options
    if not options.get("repository_url"):
        # Without an address each of these would be a dead link.
        for key in ("repository_url", "repository_branch", "path_to_docs", "launch_buttons"):
            options.pop(key, None)
        return
    options["launch_buttons"] = {
        "colab_url": "https://colab.research.google.com",
        "binderhub_url": "https://mybinder.org",
        "notebook_interface": "jupyterlab",
    }
    options.update(use_repository_button=True, use_issues_button=True)


def install_cell(address: str) -> dict[str, object]:
    """Return the cell that installs course_lib beside the torch that Colab brings."""
    return {
        "cell_type": "code",
        "id": "install-course-lib",
        "metadata": {"tags": ["remove-cell"]},
        "execution_count": None,
        "outputs": [],
        "source": [f'%pip install --quiet "learning-to-regularize @ git+{address}"'],
    }


def _write_install_cells(app: Sphinx, exception: Exception | None) -> None:
    """Put the cell first in the notebooks that readers download from the book."""
    address = app.config.html_theme_options.get("repository_url")
    if exception or not address or app.builder.format != "html":
        return
    for path in Path(app.outdir, "_sources").rglob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        if notebook["cells"][0].get("id") != "install-course-lib":
            notebook["cells"].insert(0, install_cell(address))
            path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx."""
    app.connect("config-inited", _add_buttons)
    app.connect("build-finished", _write_install_cells)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
