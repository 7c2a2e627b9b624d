"""A real headless Chromium for tests that open pages, and a page that notes what goes wrong in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Without a sandbox, since root has none; the rest keeps Chromium from looking for its maker's servers.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]


@contextmanager
def chromium() -> Iterator[Any]:
    """A started browser; without one the test is skipped, saying how to get it."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e .[dev]")
    with playwright.sync_playwright() as started:
        own = next(filter(None, map(shutil.which, NAMES)), None)
        if not own and not Path(started.chromium.executable_path).exists():
            pytest.skip("no Chromium here: `make browser` installs one")
        browser = started.chromium.launch(executable_path=own, args=ARGUMENTS)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path) -> Iterator[Any]:
    """A page opened from its file, which may load nothing else, nor log an error."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, permissions=["clipboard-read"])
    page, faults = context.new_page(), []
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:", "blob:")) else faults.append(request.url),
    )
    page.set_default_timeout(30000)
    page.goto(path.as_uri())
    yield page
    context.close()
    assert faults == []
