"""Print the book, or a deck, to PDF with Chromium: no LaTeX is needed.

python tools/pdf.py FILE.pdf                # the book, as one long page (builds it first)
python tools/pdf.py FILE.pdf DECK.html      # a deck that `make slides` has built
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from browser import MISSING, chromium, find_chromium

ROOT = Path(__file__).resolve().parents[1]
# What folds on the screen stands open on paper; what only a screen needs is left out.
UNFOLD = """() => {
  for (const box of document.querySelectorAll("details")) box.open = true;
  const all = (selector) => [...document.querySelectorAll(selector)];
  for (const box of all(".toggle-hidden")) box.classList.remove("toggle-hidden");
  for (const button of all("button.toggle-button")) button.remove();
}"""
WIDGETS_DRAWN = """() => {
  const asked = 'script[type="application/vnd.jupyter.widget-view+json"]';
  const drawn = ".jupyter-widgets";
  return document.querySelector(asked) === null || document.querySelector(drawn) !== null;
}"""
FOOTER = (
    '<div style="font: 9px serif; width: 100%; text-align: center">'
    '<span class="pageNumber"></span></div>'
)


def build_single_page(root: Path, out: Path) -> Path:
    """Build the book as one page and return the page's path."""
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    command = [str(jupyter_book), "build", "--all", "-W", "-n", "--keep-going", "-q"]
    command += ["--builder", "singlehtml", "--path-output", str(out), str(root)]
    subprocess.run(command, check=True)
    built = out / "_build" / "singlehtml"
    # Sphinx writes the page to book/index.html, with links as if it lay one folder higher.
    page = built / "book.html"
    page.write_text((built / "book" / "index.html").read_text(encoding="utf-8"), encoding="utf-8")
    return page


def print_page(page_file: Path, target: Path) -> None:
    """Print the book's single page."""
    with chromium() as browser:
        page = browser.new_page(color_scheme="light")
        page.goto(page_file.as_uri(), wait_until="load", timeout=120_000)
        page.evaluate("MathJax.startup.promise")
        page.wait_for_function(WIDGETS_DRAWN, timeout=60_000)
        page.evaluate(UNFOLD)
        page.emulate_media(media="print")
        page.pdf(
            path=str(target),
            format="A4",
            outline=True,
            tagged=True,
            print_background=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=FOOTER,
            margin={"top": "18mm", "bottom": "20mm", "left": "18mm", "right": "18mm"},
        )


def print_deck(deck: Path, target: Path) -> None:
    """Print a deck, one slide a page of 1280 x 720."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.goto(deck.resolve().as_uri() + "?print-pdf", wait_until="load")
        page.wait_for_function("window.Reveal && Reveal.isReady()")
        page.evaluate("MathJax.startup.promise")
        page.wait_for_selector(".pdf-page")
        page.pdf(path=str(target), width="1280px", height="720px", print_background=True)


def main(argv: list[str]) -> int:
    """Run the command line."""
    if len(argv) not in (1, 2):
        print(__doc__)
        return 2
    if find_chromium() is None:
        print(MISSING)
        return 1
    target = Path(argv[0]).resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    if len(argv) == 2:
        print_deck(Path(argv[1]), target)
    else:
        print_page(build_single_page(ROOT, ROOT), target)
    print(f"Written: {target} ({target.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
