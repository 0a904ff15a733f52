"""Chapter numbers from folder names: `02_tikhonov` is chapter 2, with theorem 2.1, figure 2.1.

Sphinx would count the chapters that are there, and every number would change when one is added.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

CHAPTER = re.compile(r"^(?:notebooks|book)/(\d\d)_")


def _number_by_folder(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Put the folder's number first in all numbers of its pages."""
    for docname in env.found_docs:
        match = CHAPTER.match(docname)
        if not match:
            continue
        chapter = int(match[1])
        groups = [
            env.toc_secnumbers.get(docname, {}),
            *env.toc_fignumbers.get(docname, {}).values(),
        ]
        for numbers in groups:
            for anchor, number in numbers.items():
                if number:
                    numbers[anchor] = (chapter, *number[1:])
        headings: list[nodes.Element] = [env.titles[docname]]
        headings += env.tocs[docname].findall(nodes.reference)
        for heading in headings:
            if heading.get("secnumber"):
                heading["secnumber"] = (chapter, *heading["secnumber"][1:])
    return []


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect after Sphinx has given its own numbers."""
    app.connect("env-get-updated", _number_by_folder, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
