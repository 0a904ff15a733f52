"""What the tests of pages and slides share: a browser, a local server, and a closed network."""

import functools
import hashlib
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import MISSING, find_chromium

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "html": ["jupyter-book", "build", "--all", "-W", "-n", "--keep-going", "-q", "."],
    "slides": [
        *("sphinx-build", "-E", "-W", "-n", "-q", "--keep-going", "-b", "revealjs"),
        *("-d", "_build/.slides", "book/slides", "_build/slides"),
    ],
}
# The widgets' manager says this about its own schema.
HARMLESS = ("strict mode: use allowUnionTypes",)


def digest_of_sources() -> str:
    """A number that changes with everything that pages and decks are made of."""
    folders = [ROOT / name for name in ("book", "course_lib", "exercises", "notebooks")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files = [path for path in files if "__pycache__" not in path.parts and path.suffix != ".pyc"]
    digest = hashlib.sha256()
    for path in sorted([*files, ROOT / "_config.yml", ROOT / "_toc.yml"]):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()


def build(what: str) -> Path:
    """Build the book or the decks, warnings as errors; return the folder."""
    if what == "html":
        subprocess.run([sys.executable, ROOT / "tools" / "execute.py"], check=True)
    program, *arguments = COMMANDS[what]
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    folder = ROOT / "_build" / what
    (folder / ".sources").write_text(digest_of_sources(), encoding="utf-8")
    return folder


def built(what: str) -> Path:
    """Return the folder of the book or the decks as a test has just built them; else build."""
    mark = ROOT / "_build" / what / ".sources"
    if mark.exists() and mark.read_text(encoding="utf-8") == digest_of_sources():
        return mark.parent
    return build(what)


def require_chromium() -> None:
    """Skip where there is no browser; in CI that is a failure."""
    if find_chromium() is None:
        if os.environ.get("CI"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; yield its address."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def watch(context, address: str, complaints: list[str]):
    """Open a page that reaches nothing but `address`, and note whatever goes wrong on it."""

    def let_through(route):
        url = route.request.url
        if url.startswith((address, "data:", "blob:")):
            route.continue_()
        else:
            complaints.append(f"asked the network for {url}")
            route.abort()

    def note_console(message):
        if message.type == "error" and not message.text.startswith(HARMLESS):
            complaints.append(f"console: {message.text}")

    def note_answer(response):
        if response.status >= 400:
            complaints.append(f"{response.status} for {response.url}")

    context.route("**/*", let_through)
    page = context.new_page()
    page.on("console", note_console)
    page.on("pageerror", lambda error: complaints.append(f"script: {error}"))
    page.on("response", note_answer)
    return page
