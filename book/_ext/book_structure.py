"""Theorem and exercise boxes that are boxes in every output; figures that say what they show."""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging

logger = logging.getLogger(__name__)


def _flatten_boxes(app: Sphinx, document: nodes.document) -> None:
    """Turn the <section> inside a theorem, proof or exercise into a <div>.

    sphinx-proof and sphinx-exercise put a section into each box, all with the same id. reveal.js
    takes a section for a slide, and a page must not have an id twice.
    """
    for section in list(document.findall(nodes.section)):
        if isinstance(section.parent, nodes.Admonition):
            box = nodes.compound("", *section.children, classes=section["classes"])
            section.replace_self(box)
            # docutils hands the section's ids on to the new node.
            box["ids"] = [name for name in box["ids"] if not name.endswith("-content")]
    for number, proof in enumerate(list(document.findall(nodes.admonition))):
        if proof["ids"] != ["proof"]:
            continue
        proof["ids"] = [f"proof-{number}"]
        # sphinx-proof writes "Proof. " into the text; what folds needs a title to click on.
        start = next(iter(proof.findall(nodes.Text)))
        start.parent.replace(start, nodes.Text(start.removeprefix("Proof. ")))
        proof.insert(0, nodes.title("", "Proof"))


def _merge_singlehtml_visitors(app: Sphinx, config: Config) -> None:
    """Let `singlehtml` know every node that `html` knows.

    sphinx-exercise registers visitors for `singlehtml`, and Sphinx then no longer falls back to
    those of `html`, so that the nodes of sphinx-proof would be unknown there.
    """
    handlers = app.registry.translation_handlers
    for name, pair in handlers.get("html", {}).items():
        handlers.setdefault("singlehtml", {}).setdefault(name, pair)


def _require_alt_text(app: Sphinx, document: nodes.document, docname: str) -> None:
    """Warn (an error under -W) about each image that does not say what is to be seen."""
    for image in document.findall(nodes.image):
        if not image.get("alt", "").strip():
            logger.warning(
                "an image has no alt text; in a notebook, set the cell's metadata "
                '{"mystnb": {"image": {"alt": "..."}}}',
                location=image if image.line else docname,
                type="book",
                subtype="alt",
            )


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the three to Sphinx."""
    app.connect("doctree-read", _flatten_boxes)
    app.connect("config-inited", _merge_singlehtml_visitors, priority=900)
    app.connect("doctree-resolved", _require_alt_text, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
