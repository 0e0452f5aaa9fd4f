"""A real Chromium, and a page in it that tells of everything which a page must not do."""

from __future__ import annotations

import importlib
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.browser.gateway import FakeGateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
# Without a network it would look for its maker's hosts at every start; as root it has no sandbox.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE_MS = 10_000
# What Chromium itself writes where the server refused something, or went away, which tests make it do.
_REFUSED = "Failed to load resource: "


# Chromium is started once, so all that talks to it is on the session's event loop.
@pytest_asyncio.fixture(loop_scope="session")
async def gateway() -> AsyncIterator[FakeGateway]:
    """A gateway that tells what the test has it tell."""
    async with FakeGateway() as gateway:
        yield gateway


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Any]:
    """A browser."""
    if not os.environ.get("BROWSER_REQUIRED"):
        pytest.importorskip("playwright")
        if not CHROMIUM:
            pytest.skip("no Chromium is here: Debian has it as `chromium`")
    start = importlib.import_module("playwright.async_api").async_playwright
    async with start() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


class Visit:
    """A page that is open.

    Attributes:
        page: as Playwright has it.
        wrongs: what was executed, refused by the policy, or failed in a script; a test that ends with any has failed.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.wrongs: list[str] = []
        page.on("pageerror", lambda error: self.wrongs.append(str(error)))
        page.on("console", self._console)
        page.on("dialog", self._dialog)
        page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type in {"error", "warning"} and not message.text.startswith(_REFUSED):
            self.wrongs.append(message.text)

    async def _dialog(self, dialog: Any) -> None:
        self.wrongs.append(f"a dialog: {dialog.message}")
        await dialog.dismiss()

    def _request(self, request: Any) -> None:
        if not request.url.startswith("http://127.0.0.1:"):
            self.wrongs.append(f"asked for {request.url}")

    async def until(self, selector: str, text: str) -> None:
        """Wait until an element has a text in it."""
        await self.page.locator(selector, has_text=text).first.wait_for(timeout=PATIENCE_MS)

    async def until_gone(self, selector: str) -> None:
        """Wait until nothing of that is to be seen."""
        await self.page.locator(selector).first.wait_for(state="hidden", timeout=PATIENCE_MS)

    async def text(self, selector: str) -> str:
        """The text of an element as it is seen."""
        found: str = await self.page.locator(selector).inner_text()
        return found

    async def overflows(self) -> bool:
        """Whether one has to scroll to the side."""
        wide: bool = await self.page.evaluate("document.documentElement.scrollWidth > innerWidth")
        return wide


class Visits:
    """Opens pages."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser
        self.all: list[Visit] = []

    async def __call__(self, url: str, *, width: int = 1280, height: int = 900, **more: Any) -> Visit:
        """Open one of this size."""
        context = await self._browser.new_context(viewport={"width": width, "height": height}, **more)
        context.set_default_timeout(PATIENCE_MS)
        visit = Visit(await context.new_page())
        self.all.append(visit)
        await visit.page.goto(url)
        return visit


@pytest_asyncio.fixture(loop_scope="session")
async def visit(chromium: Any) -> AsyncIterator[Visits]:
    """Opens pages, and looks at the end that nothing has happened which must not."""
    visits = Visits(chromium)
    yield visits
    for each in visits.all:
        await each.page.context.close()
    assert [each.wrongs for each in visits.all] == [[] for _ in visits.all]
