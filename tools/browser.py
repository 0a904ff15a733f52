"""Find a Chromium that Playwright can drive: the system's, or the one that Playwright installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MISSING = (
    "no Chromium found; on Debian: sudo apt-get install chromium, "
    "elsewhere: .venv/bin/playwright install chromium"
)


def find_chromium() -> str | None:
    """Return the path of a Chromium, or None."""
    for name in NAMES:
        path = shutil.which(name)
        if path:
            return path
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if path and Path(path).exists() else None


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser; RuntimeError says how to get one where there is none."""
    from playwright.sync_api import sync_playwright

    path = find_chromium()
    if path is None:
        raise RuntimeError(MISSING)
    arguments = ["--disable-gpu"]
    if os.geteuid() == 0:
        # Chromium refuses to run its sandbox as root, as in a container.
        arguments.append("--no-sandbox")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()
