"""Pages that ask nothing of the network, load nothing twice, and carry their widgets with them."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

REPAIRS = {
    # The label hides the words that stand there ("Show code cell source") from screen readers.
    '<summary aria-label="Toggle hidden content">': "<summary>",
    # The entries inside have the role of bibliography entries, which a list must not hold.
    '<div role="list" class="citation-list">': '<div class="citation-list">',
}


def _gather_widgets(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Bring the widgets of all notebooks into the one page of `singlehtml`.

    MyST-NB adds a notebook's widgets to the page of the same name, and here there is one page.
    """
    if app.builder.name != "singlehtml" or pagename != app.config.root_doc:
        return
    for docname, metadata in app.env.nb_metadata.items():
        if docname != pagename:
            for path, attributes in metadata.get("js_files", {}).values():
                app.add_js_file(path, **attributes)


def _tidy_page(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Keep the first of equal scripts: a repeated inline `const` stops the page's JavaScript."""
    seen: set[str] = set()
    kept = []
    for script in context.get("script_files", []):
        key = script.attributes.get("body") or str(script.filename)
        if key not in seen:
            seen.add(key)
            kept.append(script)
    if kept:
        context["script_files"] = kept
    if "body" in context:
        for found, put in REPAIRS.items():
            context["body"] = context["body"].replace(found, put)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx; the tidying is late, when all extensions have added their scripts."""
    app.connect("html-page-context", _gather_widgets)
    app.connect("html-page-context", _tidy_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
