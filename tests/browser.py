"""A real browser for tests: Debian's chromium, driven by Playwright."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from canvit_gym.play.command import PageServer, PlayConfig, make_page_server

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
needs_browser = pytest.mark.skipif(
    shutil.which(CHROMIUM) is None,
    reason=f"no browser at {CHROMIUM}: apt-get install chromium (.ci/run does), or set $CHROMIUM",
)
_ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_ARGUMENTS))
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Browser, *, width: int = 1100, height: int = 900, touch: bool = False) -> Iterator[Page]:
    """A new page; what it writes to the console, and its errors, fail the test."""
    context = browser.new_context(viewport={"width": width, "height": height}, has_touch=touch)
    page = context.new_page()
    page.set_default_timeout(15_000)
    told: list[str] = []
    page.on("console", lambda message: told.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: told.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (told.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    yield page
    context.close()
    assert not told, told


@contextmanager
def serve(config: PlayConfig) -> Iterator[PageServer]:
    """The page of `canvit-gym play`, served by a thread of this process."""
    page = make_page_server(config)
    thread = threading.Thread(target=page.run, daemon=True)
    thread.start()
    yield page
    page.server.should_exit = True
    thread.join(timeout=10)
    assert not thread.is_alive(), "the server does not end"
