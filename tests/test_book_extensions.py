"""The book's own Sphinx extensions: what they refuse, and what they put into a page."""

import contextlib
import io
from pathlib import Path
from types import SimpleNamespace

import pytest
from sphinx.cmd import build as sphinx

ROOT = Path(__file__).resolve().parents[1]
# What Sphinx says about other people's extensions is no fault of ours.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

CONF = """
import sys
sys.path.insert(0, {ext!r})
extensions = ["myst_nb", "sphinx_proof", "sphinx_exercise", *{extensions!r}]
myst_enable_extensions = ["colon_fence", "dollarmath"]
nb_execution_mode = "off"
numfig = True
nitpicky = True
html_theme = "basic"
"""
THEOREM = """# Page

:::{prf:theorem} Title
:label: thm-a

Text.
:::

:::{prf:proof}
:class: dropdown

Because of this.
:::

```{math}
:label: eq-a
x = 1
```
"""


def build(folder: Path, files: dict[str, str], extensions: list[str], builder="html"):
    """Build a small project; return the exit status, the messages and the output's folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    conf = CONF.format(ext=str(ROOT / "book" / "_ext"), extensions=extensions)
    (folder / "conf.py").write_text(conf, encoding="utf-8")
    options = ["-W", "--keep-going", "-q", "-b", builder]
    words = io.StringIO()
    with contextlib.redirect_stdout(words), contextlib.redirect_stderr(words):
        status = sphinx.main([*options, str(folder), str(folder / "out")])
    return status, words.getvalue(), folder / "out"


@pytest.mark.parametrize("builder", ["html", "singlehtml"])
def test_boxes_are_divs_with_titles(tmp_path, builder):
    status, words, out = build(tmp_path, {"index.md": THEOREM}, ["book_structure"], builder)
    assert status == 0, words
    text = (out / "index.html").read_text(encoding="utf-8")
    assert '<section class="theorem-content"' not in text
    assert '<p class="admonition-title">Proof</p>' in text
    assert "Proof. " not in text


def test_image_without_alt_text_is_refused(tmp_path):
    picture = (ROOT / "tests" / "assets" / "axe.min.js").name
    page = "# Page\n\n![{}](a.png)\n"
    for alt, wanted in [("A line that rises.", 0), ("", 1)]:
        folder = tmp_path / f"case{wanted}"
        files = {"index.md": page.format(alt), "a.png": picture}
        status, words, _ = build(folder, files, ["book_structure"])
        assert (status != 0) == bool(wanted)
        assert ("alt text" in words) == bool(wanted)


@pytest.mark.parametrize(
    ("label", "shown"),
    [("thm-a", "Theorem 1"), ("eq-a", "Equation (1)"), ("other", "Other page"), ("thm-no", None)],
)
def test_source_map(tmp_path, label, shown):
    files = {
        "index.md": THEOREM + "\n```{source-map} map.yml\n```\n\n```{toctree}\nother\n```\n",
        "other.md": "# Other page\n",
        "map.yml": f"R-001: {{seed: S1, what: idea, status: confirmed, at: [{label}]}}\n",
    }
    status, words, out = build(tmp_path, files, ["book_structure", "book_source_map"])
    if shown is None:
        assert status != 0
        assert "R-001" in words
        assert "thm-no" in words
    else:
        assert status == 0, words
        assert f">{shown}</a>" in (out / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("entry", ["{seed: S1, what: idea}", "[1]"])
def test_source_map_refuses_other_entries(tmp_path, entry):
    files = {"index.md": "# Page\n\n```{source-map} map.yml\n```\n", "map.yml": f"R-001: {entry}\n"}
    status, words, _ = build(tmp_path, files, ["book_source_map"])
    assert status != 0
    assert "R-001" in words


def test_theorem_leads_to_its_test(tmp_path):
    files = {
        "index.md": THEOREM + "\n```{toctree}\nclaims\n```\n",
        "claims.md": "# Claims\n\n```{claim-tests}\n```\n",
        "tests/test_a.py": (
            "import pytest\n\n\n@pytest.mark.claim('thm-a')\ndef test_a(broken):\n    pass\n"
        ),
    }
    status, words, out = build(tmp_path, files, ["book_structure", "book_claims"])
    assert status == 0, words
    assert 'href="claims.html#claim-thm-a"' in (out / "index.html").read_text(encoding="utf-8")
    page = (out / "claims.html").read_text(encoding="utf-8")
    assert 'id="claim-thm-a"' in page
    assert "tests/test_a.py::test_a" in page


def test_chapter_number_is_the_folders(tmp_path):
    files = {
        "index.md": "# Home\n\n```{toctree}\n:numbered:\nbook/05_topic/page\n```\n",
        "book/05_topic/page.md": THEOREM + "\n{prf:ref}`thm-a`\n",
    }
    status, words, out = build(tmp_path, files, ["book_structure", "book_numbers"])
    assert status == 0, words
    assert "Theorem 5.1" in (out / "book/05_topic/page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "status_wanted"), [(":minutes: 3", 0), (":minutes: 99", 1), ("", 1), (None, 1)]
)
def test_slide_needs_minutes(tmp_path, options, status_wanted):
    note = f"\n:::{{speaker}}\n{options}\n\nSay it.\n:::\n" if options is not None else ""
    files = {"index.md": "# Decks\n\n```{toctree}\ndeck\n```\n", "deck.md": f"# Title\n{note}"}
    extensions = ["sphinx_revealjs", "book_slides"]
    status, words, out = build(tmp_path, files, extensions, "revealjs")
    assert (status != 0) == bool(status_wanted), words
    if not status_wanted:
        text = (out / "deck.html").read_text(encoding="utf-8")
        assert 'data-minutes="3"' in text
        assert '<aside class="notes">' in text


@pytest.mark.parametrize("address", ["", "https://github.com/OWNER/NAME"])
def test_colab_only_with_an_address(tmp_path, monkeypatch, address):
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    import book_colab

    config = SimpleNamespace(html_theme_options={"repository_url": address})
    app = SimpleNamespace(config=config, outdir=tmp_path, builder=SimpleNamespace(format="html"))
    notebook = tmp_path / "_sources" / "a.ipynb"
    notebook.parent.mkdir()
    notebook.write_text('{"cells": [{"id": "first"}]}', encoding="utf-8")
    book_colab._add_buttons(app, config)
    assert ("launch_buttons" in config.html_theme_options) == bool(address)
    book_colab._write_install_cells(app, None)
    assert ("install-course-lib" in notebook.read_text(encoding="utf-8")) == bool(address)
