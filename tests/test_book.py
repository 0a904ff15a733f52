"""The built book: it builds without a warning, and its pages are read in a real browser."""

import functools
import re
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

import browsing
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
AXE = ROOT / "tests" / "assets" / "axe.min.js"
# What the theme itself brings: the button for the colour mode draws icons that axe reads as text.
THEME = {("label-content-name-mismatch", "theme-switch-button")}
pytestmark = pytest.mark.slow


def pages_of_toc() -> list[str]:
    """The pages that _toc.yml names."""

    def walk(entry):
        if isinstance(entry, dict):
            for key, value in entry.items():
                if key in ("file", "root"):
                    yield value.removesuffix(".md").removesuffix(".ipynb")
                else:
                    yield from walk(value)
        elif isinstance(entry, list):
            for value in entry:
                yield from walk(value)

    return list(walk(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))))


PAGES = pages_of_toc()


@pytest.mark.build
def test_the_book_builds():
    """Without a warning."""
    browsing.build("html")


@pytest.fixture(scope="module")
def html() -> Path:
    return browsing.built("html")


@pytest.fixture(scope="module")
def browser(html):
    browsing.require_chromium()
    from browser import chromium

    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def address(html):
    with browsing.served(html) as url:
        yield url


class Links(HTMLParser):
    """Collect what a page links to and loads, and the pictures that say nothing."""

    def __init__(self):
        super().__init__()
        self.targets: list[str] = []
        self.pictures: list[str] = []
        self.silent: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        for key in ("href", "src"):
            if found.get(key):
                self.targets.append(found[key])
        if found.get("id"):
            self.ids.append(found["id"])
        if tag == "img":
            self.pictures.append(found.get("src", ""))
            if not (found.get("alt") or "").strip():
                self.silent.append(found.get("src", ""))


@functools.cache
def parsed(path: Path) -> Links:
    links = Links()
    links.feed(path.read_text(encoding="utf-8"))
    return links


def test_toc_names_the_chapter():
    assert "book/index" in PAGES
    assert sum(page.startswith("notebooks/02_tikhonov/") for page in PAGES) >= 7


@pytest.mark.parametrize("page", PAGES)
def test_page_exists_and_is_small(html, page):
    path = html / f"{page}.html"
    links = parsed(path)
    pictures = [path.parent / urllib.parse.unquote(source) for source in links.pictures]
    size = path.stat().st_size + sum(p.stat().st_size for p in pictures if p.exists())
    assert 1_000 < size < 3_000_000


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(html, page):
    path = html / f"{page}.html"
    links = parsed(path)
    assert links.silent == []
    assert len(links.ids) == len(set(links.ids))
    for target in links.targets:
        parts = urllib.parse.urlsplit(target)
        if parts.scheme or parts.netloc or not (parts.path or parts.fragment):
            continue
        other = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
        assert other.exists(), target
        if parts.fragment and other.suffix == ".html":
            assert urllib.parse.unquote(parts.fragment) in parsed(other).ids, target


@pytest.mark.parametrize("page", PAGES)
def test_page_in_the_browser(browser, address, page):
    """No request leaves, no error, mathematics set, sliders move, axe content in light and dark."""
    complaints: list[str] = []
    context = browser.new_context(color_scheme="light", viewport={"width": 1280, "height": 900})
    tab = browsing.watch(context, address, complaints)
    tab.goto(f"{address}{page}.html", wait_until="networkidle")
    if tab.locator(".math").count():
        tab.evaluate("MathJax.startup.promise")
        assert tab.locator("mjx-container").count() >= tab.locator(".math").count()
        assert tab.locator("mjx-merror, [data-mml-node='merror']").count() == 0
    move_sliders(tab)
    # MathJax's own elements, up to nine of ten on a page, listings in the same colours, and the
    # list of all pages, which is the same on each, would take most of axe's time.
    tab.evaluate(THIN_OUT, page.startswith("notebooks/"))
    backgrounds = []
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        tab.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")
        tab.wait_for_timeout(300)
        backgrounds.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        # What is not about colours was found in light.
        rules = "{type: 'rule', values: ['color-contrast', 'link-in-text-block']}"
        findings = axe_findings(tab, rules if scheme == "dark" else "undefined")
        complaints += [f"{scheme}: {finding}" for finding in findings]
    assert backgrounds[0] != backgrounds[1]
    context.close()
    assert complaints == []


def axe_findings(tab, rules: str = "undefined") -> list[str]:
    """What axe calls serious or critical, without what the theme itself brings."""
    if not tab.evaluate("typeof axe === 'object'"):
        tab.add_script_tag(path=str(AXE))
    result = tab.evaluate(f"axe.run(document, {{resultTypes: ['violations'], runOnly: {rules}}})")
    return [
        f"{violation['id']}: {node['html'][:200]}"
        for violation in result["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
        if not any(violation["id"] == rule and mark in node["html"] for rule, mark in THEME)
    ]


THIN_OUT = """section => {
  document.querySelectorAll("mjx-container").forEach(box => box.replaceWith("formula"));
  [...document.querySelectorAll("div.highlight")].slice(2).forEach(box => box.remove());
  if (section) document.querySelectorAll(".bd-sidebar-primary nav").forEach(box => box.remove());
}"""

FRAME = """box => {
  const images = [...box.querySelectorAll(".jupyter-widgets img")];
  const shown = images.filter(image => image.offsetParent !== null);
  return shown.map(image => image.src).join(" ");
}"""


def move_sliders(tab) -> None:
    """Press an arrow key on each slider: the figure that is shown must change, without a kernel."""
    if tab.locator("script[type='application/vnd.jupyter.widget-view+json']").count() == 0:
        return
    tab.wait_for_selector(".noUi-handle", state="attached")
    for position in range(tab.locator(".noUi-handle").count()):
        handle = tab.locator(".noUi-handle").nth(position)
        box = handle.locator("xpath=ancestor::div[contains(@class, 'cell_output')]").first
        before = box.evaluate(FRAME)
        assert before
        low = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemin")
        handle.press("ArrowRight" if low else "ArrowLeft")
        tab.wait_for_timeout(200)
        assert box.evaluate(FRAME) != before


def test_some_page_has_an_explorer(html):
    pages = [(html / f"{page}.html").read_text(encoding="utf-8") for page in PAGES]
    assert any("jupyter.widget-view" in text for text in pages)


def test_search_finds_a_word(browser, address):
    complaints: list[str] = []
    context = browser.new_context()
    tab = browsing.watch(context, address, complaints)
    tab.goto(f"{address}search.html?q=Tikhonov", wait_until="networkidle")
    tab.wait_for_selector("#search-results li a")
    context.close()
    assert complaints == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("notebooks/")])
def test_section_shows_pictures(html, page):
    """Under another backend than the notebooks' own, matplotlib shows nothing and says nothing."""
    assert any("_images/" in source for source in parsed(html / f"{page}.html").pictures)


def test_theorems_lead_to_their_tests(html):
    pages = [html / f"{page}.html" for page in PAGES if page.startswith("notebooks/")]
    links = [t for page in pages for t in parsed(page).targets if "#claim-" in t]
    assert len(links) > 10


def test_no_buttons_without_an_address(html):
    settings = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    text = "".join((html / f"{page}.html").read_text(encoding="utf-8") for page in PAGES)
    has_button = re.search(r"colab\.research\.google|mybinder\.org/v2", text) is not None
    assert has_button == bool(settings["sphinx"]["config"]["html_theme_options"]["repository_url"])
