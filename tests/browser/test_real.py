"""The page in a real Chromium, over a real gateway, a daemon, a stand-in for the models, and Valkey."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from llm_routerd.client import Client
from llm_routerd.config.load import load_config
from llm_routerd.gateway.http.gateway import Gateway
from tests.standin.server import StandIn
from tests.support.daemons import running_daemon, write_config
from tests.support.processes import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from tests.browser.conftest import Visits

pytestmark = pytest.mark.asyncio(loop_scope="session")

HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>'
MORE = """
[gateway]
listen = "127.0.0.1:{port}"
{keys}
"""
KEYS = """
[gateway.keys.ada]
key = "the key of ada"
tenant = "ada"
[gateway.keys.operator]
key = "the key of all"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """What there is: the page's address, a client of the queue behind it, and a way to have another gateway there."""

    url: str
    queue: Client
    restart: Callable[[], Awaitable[None]]


class Gateways:
    """One after the other, at one address."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._gateway: Gateway
        self._running: asyncio.Task[None]

    async def start(self) -> None:
        """The next one."""
        self._gateway = Gateway(load_config(str(self._path), {}))
        self._running = asyncio.create_task(self._gateway.run())
        await self._gateway.start()

    async def stop(self) -> None:
        """What it was telling is broken off."""
        await self._gateway.stop(0.0)
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)

    async def restart(self) -> None:
        """As an operator does."""
        await self.stop()
        await self.start()


@pytest_asyncio.fixture(loop_scope="session")
async def house(request: pytest.FixtureRequest, valkey_url: str, tmp_path: Path) -> AsyncIterator[House]:
    """A gateway whose chain is `local`, then `second`; indirectly parametrised with tables of its configuration."""
    port = free_port()
    more = MORE.format(port=port, keys=getattr(request, "param", ""))
    async with StandIn({"tiny": "", "big": ""}) as standin, Client(valkey_url, patience_seconds=10) as queue:
        path = write_config(tmp_path, valkey_url, standin.url, more=more, daemon="drain_seconds = 0.5")
        gateways = Gateways(path)
        async with running_daemon(path):
            await gateways.start()
            yield House(url=f"http://127.0.0.1:{port}/", queue=queue, restart=gateways.restart)
            await gateways.stop()


async def test_a_prompt_is_asked_and_the_first_attempt_discarded(visit: Visits, house: House) -> None:
    """As anybody would see it: text, a refusal struck through, an answer, what it took; and then what it came to."""
    seen = await visit(house.url)
    await seen.until("#workers", "running")
    await seen.page.get_by_role("textbox", name="Prompt").fill(
        f"[[model=tiny refuse delay_ms=60]] [[model=big answer='{HOSTILE.replace(chr(34), '')} it is' delay_ms=60]]"
    )
    await seen.page.get_by_role("button", name="Ask").click()
    await seen.until("#answer .attempt", "attempt 1: local")
    await seen.until("#answer .discarded", "refusal")
    await seen.until("#answer .answer > .text", "<script>alert(2)</script> it is")
    await seen.until("#answer .end", "second in")
    await seen.until("#today", "1 answered")
    await seen.until("#deployments li", "last answer not accepted: refusal")
    await seen.until("#deployments li", "1 of 1, median")


FOLLOW = """id => {
  window.told = [];
  window.source = new EventSource(`/v1/requests/${id}/events`);
  for (const kind of ["attempt", "token", "rejected", "result", "error", "cancelled"])
    source.addEventListener(kind, event => event.data === undefined || told.push([event.lastEventId, kind]));
}"""


async def holds(seen: Any, condition: str) -> None:
    """Wait until it is so; the page's policy keeps Playwright from waiting within it."""
    async with asyncio.timeout(20):
        while not await seen.page.evaluate(condition):  # noqa: ASYNC110 - only the page knows
            await asyncio.sleep(0.05)


async def test_a_browsers_eventsource_has_every_event_once(visit: Visits, house: House) -> None:
    """It goes on by itself where it was, through another gateway; after the end it asks no more."""
    seen = await visit(house.url)
    await house.queue.submit(id="followed", prompt="[[tokens=40 delay_ms=50]]", stream="live", model="local")
    await seen.page.evaluate(FOLLOW, "followed")
    await holds(seen, "told.length > 5")
    await house.restart()
    await holds(seen, "told.some(([_, kind]) => kind === 'result')")
    await holds(seen, "source.readyState === EventSource.CLOSED")
    events = [[event.stream_id, event.type] async for event in house.queue.follow("followed")]
    assert await seen.page.evaluate("told") == events


async def test_what_somebody_else_asks_is_followed_and_cancelled(visit: Visits, house: House) -> None:
    """Tokens as they come, and its end."""
    seen = await visit(house.url)
    await house.queue.submit(id="somebodys", prompt="[[tokens=3000 delay_ms=20]]", stream=True)
    await seen.until("#running .id", "somebodys")
    await seen.until("#running .text", "stand-in answers")
    await seen.until("#running .facts", "local, answering")
    await seen.page.get_by_role("button", name="Cancel").click()
    await seen.page.get_by_role("button", name="Cancel it?").click()
    await seen.until("#running .end", "stopped")
    await seen.until("#running-none", "Nothing is running.")
    assert (await house.queue.result("somebodys", 5)).type == "cancelled"


async def test_stop_ends_what_was_asked_here(visit: Visits, house: House) -> None:
    """At the model too: the request has its final event."""
    seen = await visit(house.url)
    await seen.page.get_by_role("textbox", name="Prompt").fill("[[tokens=3000 delay_ms=20]]")
    await seen.page.get_by_role("button", name="Ask").click()
    await seen.until("#answer .text", "stand-in answers")
    await seen.page.get_by_role("button", name="Stop").click()
    await seen.until("#answer .end", "stopped")


async def test_a_tool_call_is_allowed(visit: Visits, house: House) -> None:
    """With an event written by hand, for nothing here runs tools; what the person says stands in Redis."""
    call = {
        "call_id": "call_1", "name": "lights.off", "arguments": {"room": HOSTILE}, "turn": 1, "confirm": True,
        "args_sha256": "ab" * 32, "expires_at_ms": await house.queue.server_time_ms() + 600_000,
    }  # fmt: skip
    await house.queue.submit(id="evening", prompt="[[first_ms=30000 answer=x]]", model="second", stream="live")
    seen = await visit(house.url)
    await seen.until("#running .facts", "second, asked")
    data = json.dumps(call)
    await house.queue.redis.xadd("llm:events:evening", {"type": "tool_call", "data": data}, id="1-1")
    await seen.until("#confirmations pre", HOSTILE.replace('"', '\\"'))
    await seen.page.get_by_role("button", name="Allow lights.off").click()
    await seen.until("#confirmations .note", "allowed")
    ((_, fields),) = await house.queue.redis.xrange("llm:consent:evening") or []
    assert fields is not None
    assert fields[b"confirm"] == b"call_1"
    assert fields[b"args_sha256"] == b"ab" * 32


@pytest.mark.parametrize("house", [KEYS], indirect=True)
async def test_a_tenant_sees_his_own(visit: Visits, house: House) -> None:
    """With his key; and the operator everybody's."""
    for request_id in ("ada:hers", "bob:his"):
        await house.queue.submit(id=request_id, prompt="[[tokens=3000 delay_ms=20]]", stream=True)
    seen = await visit(house.url)
    await seen.until("#door", "This gateway wants a key")
    await seen.page.locator("#key").fill("the key of ada")
    await seen.page.get_by_role("button", name="Enter").click()
    await seen.until("#who", "You see the requests of ada.")
    await seen.until("#running .id", "ada:hers")
    await seen.until("#running .text", "stand-in answers")
    assert await seen.page.locator("#running .id").count() == 1
    operator = await visit(house.url)
    await operator.page.locator("#key").fill("the key of all")
    await operator.page.get_by_role("button", name="Enter").click()
    await operator.until("#running .id", "bob:his")
    await operator.until("#running .id", "ada:hers")
