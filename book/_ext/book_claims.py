"""Each theorem names the test that checks it; one page shows all these tests.

`{claim-tests}` stands on that page. A claim without a test and without an entry in
`tests/claims_cited.yml` gets no line here; `tests/test_claims.py` refuses it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import claim_labels  # noqa: E402


def _anchor(label: str) -> str:
    return f"claim-{label}"


class ClaimTests(SphinxDirective):
    """List every claim of the book with the source of its tests, or the reason for having none."""

    def run(self) -> list[nodes.Node]:
        """Make one section a label, in the order of the labels."""
        source_root = Path(self.env.srcdir)
        tests, cited = claim_labels.marked_tests(source_root), claim_labels.cited(source_root)
        self.env.claims_page = self.env.docname
        for test in (t for group in tests.values() for t in group):
            self.env.note_dependency(str(source_root / test.path))
        sections: list[nodes.Node] = []
        for label in sorted({*tests, *cited}):
            section = nodes.section("", ids=[_anchor(label)], names=[_anchor(label)])
            section += nodes.title("", "", nodes.literal("", label))
            section += nodes.paragraph("", "", nodes.Text("States: "), _claim_reference(label))
            for test in tests.get(label, []):
                section += nodes.paragraph("", "", nodes.literal("", f"{test.path}::{test.name}"))
                lines = (source_root / test.path).read_text(encoding="utf-8").splitlines()
                text = "\n".join(lines[test.first_line - 1 : test.last_line])
                section += nodes.literal_block(text, text, language="python")
            if label in cited:
                entry = cited[label]
                section += nodes.paragraph(
                    "", f"No run can test this: {entry['reason']} See {entry['citation']}."
                )
            sections.append(section)
        return sections


def _claim_reference(label: str) -> addnodes.pending_xref:
    reference = addnodes.pending_xref(
        "", refdomain="prf", reftype="ref", reftarget=label, refexplicit=False, refwarn=True
    )
    reference += nodes.inline("", label)
    return reference


def _link_theorems(app: Sphinx, document: nodes.document, docname: str) -> None:
    """Put a line with the way to its test under each labelled theorem."""
    page = getattr(app.env, "claims_page", None)
    if page is None:
        return
    tests, cited = claim_labels.marked_tests(Path(app.srcdir)), claim_labels.cited(Path(app.srcdir))
    for box in list(document.findall(nodes.Admonition)):
        label = box.get("label") if "realtype" in box else None
        if label not in tests and label not in cited:
            continue
        words = "How this is tested" if label in tests else "Why this is cited, not tested"
        link = nodes.reference("", words, internal=True)
        link["refuri"] = f"{app.builder.get_relative_uri(docname, page)}#{_anchor(label)}"
        box += nodes.paragraph("", "", link, classes=["claim-test"])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive and the links."""
    app.add_directive("claim-tests", ClaimTests)
    app.connect("doctree-resolved", _link_theorems)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
