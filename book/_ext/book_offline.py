"""Pages that ask nothing of the network and load nothing twice."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx


def _drop_repeated_scripts(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Keep the first of equal inline scripts: a repeated `const` stops the page's JavaScript."""
    seen: set[str] = set()
    kept = []
    for script in context.get("script_files", []):
        body = getattr(script, "attributes", {}).get("body")
        if body and body in seen:
            continue
        if body:
            seen.add(body)
        kept.append(script)
    if "script_files" in context:
        context["script_files"] = kept
    if "body" in context:
        # The label hides the words that stand there ("Show code cell source") from screen readers.
        context["body"] = context["body"].replace(
            '<summary aria-label="Toggle hidden content">', "<summary>"
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to Sphinx; late, when all extensions have added their scripts."""
    app.connect("html-page-context", _drop_repeated_scripts, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
