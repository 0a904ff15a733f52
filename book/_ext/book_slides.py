"""The directive of the decks: what the lecturer says on a slide, and how long it takes.

    :::{speaker}
    :minutes: 3
    :columns: 45
    :extension:

    Ask for a guess before the figure is shown.
    :::

It stands on every slide. `extension` marks a slide that the short lecture leaves out; such a slide
bears a badge. `columns` puts what the code cells show (figures) to the right of the text, which
gets that percentage of the width: MyST-NB has no code cells inside grids. The directive's text
becomes a speaker note (key S in the browser).
"""

from __future__ import annotations

from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator
from sphinx_revealjs.nodes import revealjs_section

logger = logging.getLogger(__name__)


class _Note(nodes.General, nodes.Element):
    """The speaker note of one slide."""


class _Badge(nodes.General, nodes.TextElement):
    """The mark of a slide that the short lecture leaves out."""


def _minutes(argument: str) -> str:
    value = float(argument)
    if not 0 < value <= 15:
        raise ValueError(f"a slide takes more than 0 and at most 15 minutes, got {argument}")
    return f"{value:g}"


def _percentage(argument: str) -> int:
    value = int(argument)
    if value not in range(20, 81, 5):
        raise ValueError(f"the text column takes 20, 25, ..., 80 percent, got {argument}")
    return value


class Speaker(SphinxDirective):
    """Minutes, extension mark, layout and speaker note of a slide."""

    has_content = True
    option_spec: ClassVar = {
        "minutes": _minutes,
        "columns": _percentage,
        "extension": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        """Make the slide's attributes, the badge and the note."""
        if "minutes" not in self.options:
            raise self.error("speaker: the option minutes is missing")
        extension = "extension" in self.options
        attributes = revealjs_section()
        attributes["data-minutes"] = self.options["minutes"]
        attributes["data-part"] = "extension" if extension else "core"
        if "columns" in self.options:
            attributes["data-columns"] = self.options["columns"]
        note = _Note()
        words = f"{self.options['minutes']} min" + (", extension" if extension else "")
        note += nodes.paragraph("", "", nodes.strong("", words))
        self.state.nested_parse(self.content, self.content_offset, note)
        made: list[nodes.Node] = [attributes, note]
        if extension:
            made.insert(1, _Badge("", "extension"))
        return made


def _require_speaker(app: Sphinx, document: nodes.document) -> None:
    """Warn (an error under -W) about a slide without minutes."""
    if app.env.docname == app.config.root_doc:
        return
    for section in document.findall(nodes.section):
        level = 1
        parent = section.parent
        while isinstance(parent, nodes.section):
            level, parent = level + 1, parent.parent
        if level <= 2 and section.first_child_matching_class(revealjs_section) is None:
            title = section.next_node(nodes.title).astext()
            logger.warning("the slide %r has no {speaker} directive", title, location=section)


def _open_note(self: HTML5Translator, node: _Note) -> None:
    self.body.append('<aside class="notes">')


def _close_note(self: HTML5Translator, node: _Note) -> None:
    self.body.append("</aside>\n")


def _open_badge(self: HTML5Translator, node: _Badge) -> None:
    self.body.append('<div class="badge-extension">')


def _close_badge(self: HTML5Translator, node: _Badge) -> None:
    self.body.append("</div>\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive and its nodes."""
    app.add_node(_Note, html=(_open_note, _close_note))
    app.add_node(_Badge, html=(_open_badge, _close_badge))
    app.add_directive("speaker", Speaker)
    app.connect("doctree-read", _require_speaker)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
