"""A real browser for tests: Debian's chromium, driven by Playwright. Test modules are skipped without Playwright."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from canvit_gym.play.command import PageServer, PlayConfig, make_page_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install -e '.[dev]'")
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
    with sync_api.sync_playwright() as playwright:
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

    def dismissed(dialog: Dialog) -> None:
        told.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("console", lambda message: told.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: told.append(f"error: {error}"))
    page.on("dialog", dismissed)
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
