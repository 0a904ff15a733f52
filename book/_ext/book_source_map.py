"""The page that leads from each idea of the sources to the place that treats it.

`{source-map}` makes a table of `book/appendix/source_map.yml`, whose entries read

    R-033: {seed: "S3 §2.3", what: Landweber filter, status: needs conditions, at: [thm-landweber]}

`at` names labels (theorems, equations, exercises, sections, figures) or pages of the book
(`notebooks/02_tikhonov/05_iterations`). A label that the book does not have is a warning, and so an
error under -W.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)
COLUMNS = {"id": 8, "seed": 14, "what": 38, "status": 18, "at": 22}
HEADS = {"id": "Id", "seed": "Source", "what": "Idea", "status": "Status", "at": "Treated at"}
KEYS = {"seed", "what", "status", "at"}


class _Place(nodes.Inline, nodes.TextElement):
    """A label of the source map that is resolved when all pages have been read."""


class SourceMap(SphinxDirective):
    """A table with one row for each entry of the file that the argument names."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Read and check the file, and make the table."""
        relative, absolute = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(relative)
        if not Path(absolute).exists():
            raise self.error(f"source-map: the file {relative} does not exist")
        rows = yaml.safe_load(Path(absolute).read_text(encoding="utf-8")) or {}
        body = nodes.tbody()
        for name, entry in rows.items():
            if not isinstance(entry, dict) or set(entry) != KEYS:
                raise self.error(f"{name}: expected the keys {sorted(KEYS)}, got {entry!r}")
            cells: list[nodes.Element] = [nodes.paragraph(text=name)]
            for key in ("seed", "what", "status"):
                cell = nodes.Element()
                children, _ = self.state.inline_text(str(entry[key]), self.lineno)
                cell = nodes.paragraph("", "", *children)
                cells.append(cell)
            places = nodes.paragraph()
            for position, label in enumerate(entry["at"]):
                if position:
                    places += nodes.Text(", ")
                places += _Place("", label, label=label, row=name)
            if not entry["at"]:
                places += nodes.Text("not yet")
            cells.append(places)
            body += nodes.row("", *(nodes.entry("", cell) for cell in cells))
        head = nodes.thead(
            "",
            nodes.row(
                "", *(nodes.entry("", nodes.paragraph(text=HEADS[column])) for column in COLUMNS)
            ),
        )
        group = nodes.tgroup("", cols=len(COLUMNS))
        group.extend(nodes.colspec(colwidth=width) for width in COLUMNS.values())
        group += [head, body]
        return [nodes.table("", group, classes=["source-map"])]


def _find(app: Sphinx, label: str) -> tuple[str, str, str] | None:
    """Return page, anchor and words of a label, or None."""
    env = app.env
    proof = getattr(env, "proof_list", {}).get(label)
    if proof:
        numbers = env.toc_fignumbers.get(proof["docname"], {}).get(proof["countertype"], {})
        number = ".".join(map(str, numbers.get(proof["ids"][0], ())))
        return proof["docname"], proof["ids"][0], f"{proof['realtype'].title()} {number}".strip()
    equation = env.get_domain("math").equations.get(label)
    if equation:
        return equation[0], f"equation-{label}", f"Equation ({equation[1]})"
    standard = env.get_domain("std")
    if label.lower() in standard.labels:
        docname, anchor, words = standard.labels[label.lower()]
        number = env.toc_fignumbers.get(docname, {}).get("figure", {}).get(anchor)
        if number:
            words = "Figure " + ".".join(map(str, number))
        return docname, anchor, words or label
    if label.lower() in standard.anonlabels:
        docname, anchor = standard.anonlabels[label.lower()]
        return docname, anchor, label
    if label in env.found_docs:
        return label, "", env.titles[label].astext()
    return None


def _resolve_places(app: Sphinx, document: nodes.document, docname: str) -> None:
    for place in list(document.findall(_Place)):
        found = _find(app, place["label"])
        if found is None:
            logger.warning(
                "source map, %s: the book has no label or page %r",
                place["row"],
                place["label"],
                location=docname,
                type="book",
                subtype="source_map",
            )
            place.replace_self(nodes.Text(place["label"]))
            continue
        target, anchor, words = found
        uri = app.builder.get_relative_uri(docname, target) + (f"#{anchor}" if anchor else "")
        place.replace_self(nodes.reference("", words, internal=True, refuri=uri))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive; labels are resolved when every page is known."""
    app.add_node(_Place)
    app.add_directive("source-map", SourceMap)
    app.connect("doctree-resolved", _resolve_places)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
