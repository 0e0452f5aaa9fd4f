"""The whole application of a gateway on a real server, with events that the test writes."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from llm_routerd.client import Client, Multiplexer
from llm_routerd.config.gateway import GatewayConfig
from llm_routerd.gateway.admission import Admission, Caller
from llm_routerd.gateway.http.app import make_application
from llm_routerd.gateway.http.exchange import Exchange
from llm_routerd.protocol.events import FINAL_ID
from tests.config.configs import load
from tests.support.queue import open_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

CONFIG = """
[deployments.small]
model = "ollama/small"
[gateway.aliases]
house = "small"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What tests ask, and what stands behind it.

    Attributes:
        http: asks by a path alone.
        url: of the gateway, without a path.
        redis: a plain client, which writes as a daemon does.
        exchange: the gateway's.
        routes: its paths and methods.
    """

    http: aiohttp.ClientSession
    url: str
    redis: Any
    exchange: Exchange
    routes: frozenset[tuple[str, str]]

    async def write(self, request_id: str, event_id: str, kind: str, data: Any = None) -> None:
        """An event, as the daemon writes it; `data` may be text that is no JSON."""
        text = data if isinstance(data, str) else json.dumps(data or {})
        await self.redis.xadd(f"llm:events:{request_id}", {"type": kind, "data": text}, id=event_id)

    async def begin(self, request_id: str, *texts: str, attempt: int = 1) -> None:
        """An attempt and its text."""
        data = {"deployment": "small", "model": "ollama/small", "delivery": 1, "consumer": "w1"}
        await self.write(request_id, f"{attempt}-0", "attempt", data)
        for place, text in enumerate(texts, 1):
            await self.write(request_id, f"{attempt}-{place}", "token", {"text": text})

    async def end(self, request_id: str) -> None:
        """An end."""
        await self.write(request_id, FINAL_ID, "cancelled", {"id": request_id, "reason": ""})

    async def queue(self, request_id: str) -> None:
        """A request that nobody has taken."""
        await self.redis.xadd("llm:requests", {"data": json.dumps({"id": request_id, "prompt": "hi"})})

    async def get(self, path: str, **headers: str) -> tuple[int, Mapping[str, str], Any]:
        """Status, headers, and the JSON in the body if there is one."""
        async with self.http.get(
            path, headers={name.replace("_", "-"): text for name, text in headers.items()}
        ) as reply:
            text = await reply.read()
            return reply.status, reply.headers, json.loads(text) if text else None

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Mapping[str, str], Any]:
        """The same."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        async with self.http.post(path, json=body, headers=named) as reply:
            return reply.status, reply.headers, await reply.json()


class _Everybody(Admission):
    """Lets in whoever comes, as one caller."""

    def __init__(self, caller: Caller) -> None:
        super().__init__(GatewayConfig())
        self._caller = caller

    def admit(self, *_: Any) -> Caller:
        """Him."""
        return self._caller


@asynccontextmanager
async def open_site(redis_url: str, caller: Caller | None = None) -> AsyncIterator[Site]:
    """A gateway with these doors at a Redis; all requests are `caller`'s."""
    who = caller or Caller(name="ann")
    async with Client(redis_url, patience_seconds=2) as client, open_client(redis_url) as redis:
        plexer = Multiplexer(client, redis_url)
        running = asyncio.create_task(plexer.run())
        exchange = Exchange(load(CONFIG), client, plexer)
        try:
            async with serving(exchange, who) as (http, url, app):
                routes = frozenset(
                    (route.resource.canonical, route.method.lower()) for route in app.router.routes() if route.resource
                )
                yield Site(http=http, url=url, redis=redis, exchange=exchange, routes=routes)
        finally:
            await exchange.aclose()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@asynccontextmanager
async def serving(
    exchange: Exchange, caller: Caller
) -> AsyncIterator[tuple[aiohttp.ClientSession, str, web.Application]]:
    """The gateway's application at a port of its own, which lets everybody in as `caller`, and a client of it."""
    admission = _Everybody(caller)
    app = make_application(exchange, lambda: admission)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        url = f"http://{host}:{port}"
        async with aiohttp.ClientSession(url) as http:
            yield http, url, app
    finally:
        await runner.cleanup()
