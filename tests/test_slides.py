"""The decks: they build without a warning, keep their time, fit their frame, and print."""

import re
import subprocess
import sys
from pathlib import Path

import browsing
import pytest

ROOT = Path(__file__).resolve().parents[1]
DECKS = sorted(path.stem for path in (ROOT / "book" / "slides").glob("[0-9]*.md"))
# Minutes of the core path: the sources' own for chapters 1 to 4.
CORE = {"01": 25, "02": 30, "03": 30, "04": 15}
SLIDE = re.compile(r'<section [^>]*data-minutes="(?P<minutes>[^"]+)"[^>]*data-part="(?P<part>\w+)"')
pytestmark = pytest.mark.slow

# What leaves the frame of the slide that is shown; hidden copies for screen readers do not count.
OUTSIDE = """() => {
  const frame = document.querySelector(".reveal").getBoundingClientRect();
  const slide = Reveal.getCurrentSlide();
  const found = [];
  for (const element of slide.querySelectorAll("*")) {
    if (element.closest("aside.notes, mjx-assistive-mml")) continue;
    const box = element.getBoundingClientRect();
    if (box.width === 0 || box.height === 0) continue;
    if (box.right > frame.right + 1 || box.bottom > frame.bottom + 1 ||
        box.left < frame.left - 1 || box.top < frame.top - 1) {
      found.push(`${element.tagName}.${element.className}: ${element.textContent.slice(0, 60)}`);
    }
    // MathJax builds tall brackets and overlines of pieces that it clips itself.
    if (element.closest("mjx-container")) continue;
    const style = getComputedStyle(element);
    const clips = style.overflowX !== "visible" || style.overflowY !== "visible";
    if (clips && (element.scrollWidth > element.clientWidth + 2 ||
                  element.scrollHeight > element.clientHeight + 2)) {
      found.push(`cut off: ${element.tagName}: ${element.textContent.slice(0, 60)}`);
    }
  }
  return found;
}"""


@pytest.mark.build
def test_the_decks_build():
    """Without a warning."""
    browsing.build("slides")


@pytest.fixture(scope="module")
def slides() -> Path:
    return browsing.built("slides")


@pytest.fixture(scope="module")
def browser():
    browsing.require_chromium()
    from browser import chromium

    with chromium() as opened:
        yield opened


def test_there_is_a_deck():
    assert "02_tikhonov" in DECKS


@pytest.mark.parametrize("deck", DECKS)
def test_minutes_add_up(slides, deck):
    """The core path takes the lecture's minutes; with the extensions two hours of 45 are filled."""
    text = (slides / f"{deck}.html").read_text(encoding="utf-8")
    minutes = {"core": 0.0, "extension": 0.0}
    for match in SLIDE.finditer(text):
        minutes[match["part"]] += float(match["minutes"])
    assert deck[:2] in CORE, f"CORE has no minutes for the chapter {deck[:2]}"
    assert minutes["core"] == CORE[deck[:2]]
    assert 80 <= minutes["core"] + minutes["extension"] <= 90


@pytest.mark.parametrize("deck", DECKS)
def test_every_slide_fits_its_frame(slides, browser, deck):
    complaints: list[str] = []
    with browsing.served(slides) as address:
        context = browser.new_context(viewport={"width": 1280, "height": 720})
        page = browsing.watch(context, address, complaints)
        page.goto(f"{address}{deck}.html", wait_until="networkidle")
        page.wait_for_function("window.Reveal && Reveal.isReady()")
        page.evaluate("MathJax.startup.promise")
        total = page.evaluate("Reveal.getTotalSlides()")
        marked = len(SLIDE.findall((slides / f"{deck}.html").read_text(encoding="utf-8")))
        assert total == marked
        for number in range(total):
            page.wait_for_timeout(60)
            complaints += [f"slide {number + 1}: {words}" for words in page.evaluate(OUTSIDE)]
            page.evaluate("Reveal.next()")
        assert page.evaluate("Reveal.isLastSlide()")
        assert page.locator("mjx-merror, [data-mml-node='merror']").count() == 0
        context.close()
    assert complaints == []


@pytest.mark.parametrize("deck", DECKS)
def test_deck_prints(slides, deck, tmp_path):
    browsing.require_chromium()
    target = tmp_path / "deck.pdf"
    command = [sys.executable, ROOT / "tools" / "pdf.py", target, slides / f"{deck}.html"]
    subprocess.run(command, check=True, capture_output=True)
    pages = len(re.findall(rb"/Type /Page\b(?!s)", target.read_bytes()))
    assert pages == len(SLIDE.findall((slides / f"{deck}.html").read_text(encoding="utf-8")))
