"""The page in headless Chromium, on a real server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import httpx
import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import serving, settings_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 120_000  # milliseconds: a worker loads its libraries first, on a machine that may be busy
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")  # not longer: its event loop would be in the way of other modules' asynchronous tests
def browser() -> Iterator[Browser]:
    if CHROMIUM is None and "CI" not in os.environ:
        pytest.skip("needs Chromium (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watch:
    """What a page does that no page should: errors on its console, dialogs, and requests to other hosts."""

    def __init__(self, page: Page, address: str) -> None:
        self.errors: list[str] = []
        self.dialogs: list[str] = []
        self.foreign_requests: list[str] = []
        self.address = address
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        page.on("request", self._check)

    def _check(self, request: Request) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.foreign_requests.append(request.url)

    def assert_clean(self, refusals: int = 0) -> None:
        """``refusals``: answers of the API with an error status, of which the browser itself writes to the console."""
        refused, errors = [], []
        for error in self.errors:
            (refused if error.startswith("Failed to load resource") else errors).append(error)
        assert (errors, len(refused), self.dialogs, self.foreign_requests) == ([], refusals, [], [])


@contextmanager
def opened(browser: Browser, address: str, path: str = "", **context: object) -> Iterator[tuple[Page, Watch]]:
    """A page of a context of its own, and what it has done."""
    browser_context = browser.new_context(**context)
    page = browser_context.new_page()
    page.set_default_timeout(PATIENCE)
    watch = Watch(page, address)
    page.goto(address + path)
    try:
        yield page, watch
    finally:
        browser_context.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server on loopback that needs no keys, with the byte engine: its clients, address and settings."""
    settings = settings_for(tmp_path_factory.mktemp("data"))
    with serving(settings, ByteEngine()) as client:
        address = str(client.base_url).removesuffix("/v1/")
        http = httpx.Client(base_url=address)
        yield SimpleNamespace(client=client, http=http, address=address, settings=settings)
