"""Pictures of the page, for documents and for whoever changes it: `python -m tests.browser.pictures [folder]`."""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_routerd.gateway.overview import Today, WorkerView
from llm_routerd.gateway.tally import Sums
from tests.browser.conftest import ARGUMENTS, CHROMIUM
from tests.browser.gateway import FakeGateway, confirmation, deployment, lane, overview, running

if TYPE_CHECKING:
    from llm_routerd.gateway.overview import Overview

SIZES = {"desktop": (1180, 900), "phone": (390, 844)}
REFUSED = "I'm sorry, but I can't help with that."
ANSWER = "The letter asks for an answer by Friday, and for the key to the attic."
INVOICE = "The invoice of 12 March names a total of 12.50 EUR, payable within fourteen days"


def busy_house() -> Overview:
    """A house in which something of everything is to be seen."""
    now = time.time()
    return overview(
        lanes=(lane("high", running=1), lane("normal", 7, 2, 83_000), lane("low", 1204, 0, 4_000_000)),
        running=(
            running("invoice-4711", deployment="qwen-7b", age_ms=2300),
            running("ada:report", deployment="claude", last="reasoning", age_ms=11_200, worker="cellar-2"),
        ),
        confirmations=(
            confirmation("evening", arguments='{"room": "hall", "after_minutes": 10}', expires_at_ms=int(now + 540) * 1000),
        ),
        workers=(
            WorkerView(name="attic-1", models=("default", "fast"), running=1),
            WorkerView(name="cellar-2", models=("default",), running=1),
        ),
        deployments=(
            deployment("qwen-7b", "answering", ("",) * 30 + ("timeout",) + ("",) * 9, since=now - 9000),
            deployment("llama-70b", "failing", ("",) * 8 + ("connect",) * 2, since=now - 75, code="connect"),
            deployment("gemma", "rejected", ("", "refusal", "", "", "", "refusal"), since=now - 3, code="refusal"),
            deployment("claude", model="anthropic/claude-sonnet", is_local=False),
            deployment("gpt", "disabled", is_local=False),
        ),
        today=Today(
            midnight=now - 40_000,
            known_since=None,
            sums=Sums(
                requests=1287, answered=1280, failed=6, cancelled=1, prompt_tokens=451_234, completion_tokens=81_234,
                cost_usd=0.2345, saved_usd=3.91,
            ),
        ),
        dead_letters=2,
    )  # fmt: skip


async def begin(gateway: FakeGateway) -> None:
    """What two requests have told so far."""
    asked = ("1-0", "attempt", {"deployment": "llama-70b", "model": "openai/llama"})
    failed = ("1-1", "rejected", {"code": "connect", "reason": "no connection to the server", "latency_ms": 12})
    again = ("2-0", "attempt", {"deployment": "qwen-7b", "model": "ollama/qwen"})
    await gateway.tell("invoice-4711", asked, failed, again, ("2-1", "token", {"text": INVOICE}))
    thinks = ("1-1", "reasoning", {"text": "Let me see."})
    await gateway.tell("ada:report", ("1-0", "attempt", {"deployment": "claude", "model": "x/claude"}), thinks)


async def draw(browser: Any, path: Path, size: tuple[int, int], scheme: str) -> None:
    """One picture: a prompt has been tried, and its first attempt discarded."""
    async with FakeGateway() as gateway:
        gateway.seen = busy_house()
        await begin(gateway)
        context = await browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, device_scale_factor=2
        )
        page = await context.new_page()
        await page.goto(gateway.url)
        await page.get_by_role("textbox", name="Prompt").fill("What does the letter want?")
        await page.get_by_role("button", name="Ask").click()
        discarded = {"code": "refusal", "reason": "the answer refuses", "latency_ms": 840}
        await gateway.tell(
            "tried",
            ("1-0", "attempt", {"deployment": "gemma", "model": "ollama/gemma"}),
            ("1-1", "token", {"text": REFUSED}),
            ("1-2", "rejected", discarded),
            ("2-0", "attempt", {"deployment": "qwen-7b", "model": "ollama/qwen"}),
            ("2-1", "token", {"text": ANSWER}),
        )
        await page.locator("#answer .text", has_text=ANSWER).wait_for()
        await page.locator("#running .text", has_text=INVOICE).wait_for()
        await page.screenshot(path=path, full_page=True)
        await context.close()


async def main(folder: Path) -> None:
    """All of them; the folder is there."""
    async with importlib.import_module("playwright.async_api").async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for name, size in SIZES.items():
            for scheme in ("light", "dark"):
                await draw(browser, folder / f"{name}-{scheme}.png", size, scheme)
        await browser.close()


if __name__ == "__main__":
    into = Path(sys.argv[1] if len(sys.argv) > 1 else "build/page")
    into.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(into))
