"""Settings of the decks: sphinx-build -b revealjs book/slides _build/slides (make slides)."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

project = "Learning to Regularize"
author = "The Learning to Regularize contributors"
copyright = "2026, " + author
root_doc = "index"
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx_design", "sphinx_revealjs"]
extensions += ["book_structure", "book_slides"]
nitpicky = True

myst_enable_extensions = ["amsmath", "attrs_block", "attrs_inline", "colon_fence", "dollarmath"]
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "_build" / ".jupyter_cache")
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_output_stderr = "warn"
nb_merge_streams = True
# A deck shows figures; a cell whose code is to be seen says so in its metadata.
nb_remove_code_source = True
nb_mime_priority_overrides = [
    ("revealjs", "text/html", 10),
    ("revealjs", "image/svg+xml", 20),
    ("revealjs", "image/png", 30),
    ("revealjs", "text/plain", 90),
]

html_title = project
mathjax_path = "mathjax/tex-chtml.js"
revealjs_static_path = ["../_static"]
revealjs_style_theme = "slides.css"
revealjs_css_files = []
revealjs_script_conf = {
    "width": 1280,
    "height": 720,
    "margin": 0,
    "center": False,
    "controls": False,
    "hash": True,
    "slideNumber": "c/t",
    "transition": "none",
    "pdfMaxPagesPerSlide": 1,
    "pdfSeparateFragments": False,
}
revealjs_script_plugins = [
    {"name": "RevealNotes", "src": "revealjs/plugin/notes/notes.js"},
    {"name": "RevealHighlight", "src": "revealjs/plugin/highlight/highlight.js"},
]
