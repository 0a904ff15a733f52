"""What the tests of pages and slides share: a browser, a local server, and a closed network."""

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import MISSING, find_chromium

# The widgets' manager says this about its own schema.
HARMLESS = ("strict mode: use allowUnionTypes",)


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
