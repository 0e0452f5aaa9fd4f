"""A gateway's endpoint on a real server, with a voice that is easy to read, and events that the test writes."""

from __future__ import annotations

import asyncio
import io
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web
from msgspec.structs import replace

from llm_routerd.client import Client, Multiplexer
from llm_routerd.config.load import load_config
from llm_routerd.gateway.admission import Caller
from llm_routerd.gateway.door import Ask, Completion, Told
from llm_routerd.gateway.fault import RefusedError
from llm_routerd.gateway.http.answering import Answering, fields_of, key_of
from llm_routerd.gateway.http.exchange import Exchange
from llm_routerd.protocol.events import FINAL_ID, FINAL_PART
from llm_routerd.protocol.examples import EVENTS
from tests.support.queue import open_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llm_routerd.gateway.catalogue import Catalogue
    from llm_routerd.gateway.fault import Fault
    from llm_routerd.protocol.events import Result


class PlainVoice:
    """Everything in words."""

    def __init__(self, told: Told) -> None:
        self.told = told

    def whole(self, result: Result) -> bytes:
        """The answer."""
        return result.raw_text.encode()

    def begin(self) -> bytes:
        """A bracket."""
        return b"["

    def reasoning(self, text: str) -> bytes:
        """In brackets."""
        return f"({text})".encode()

    def text(self, text: str) -> bytes:
        """As it is."""
        return text.encode()

    def end(self, result: Result) -> bytes:
        """A bracket, and why."""
        return f"]{result.finish_reason}".encode()

    def broken(self, fault: Fault) -> bytes:
        """An exclamation mark, and why."""
        return f"!{fault.status} {fault.code}".encode()

    def ping(self) -> bytes:
        """A dot."""
        return b"."


def read(body: dict[str, Any], _catalogue: Catalogue) -> Ask:
    """The body has it all."""
    return Ask(voice=PlainVoice, **body)


ENDPOINT = Completion(
    door="plain", path="/plain", fault=lambda fault: fault.code.encode(), read=read, id_header="my-id"
)


@dataclass
class Door:
    """What a test has to do with.

    Attributes:
        redis: a plain client, which writes as a daemon does.
        seen: statuses of the requests that have ended, and what ended them.
    """

    exchange: Exchange
    redis: Any
    session: aiohttp.ClientSession
    url: str
    seen: list[str] = field(default_factory=list)

    def ask(self, *, headers: dict[str, str] | None = None, **ask: Any) -> Any:
        """POST."""
        body = {"fields": {"prompt": "x"}, "streams": True, **ask}
        return self.session.post(self.url, data=io.BytesIO(json.dumps(body).encode()), headers=headers or {})

    async def request_id(self) -> str:
        """Of the one request in the lane."""
        ((_, ((_, fields),)),) = await self.redis.xread({"llm:requests": "0"}, block=5_000)
        return str(json.loads(fields["data"])["id"])

    async def write(self, request_id: str, event_id: str, kind: str, **data: Any) -> None:
        """An event, as the daemon writes and publishes it."""
        text = json.dumps(data)
        await self.redis.xadd(f"llm:events:{request_id}", {"type": kind, "data": text}, id=event_id)
        await self.redis.publish(f"llm:events:{request_id}", f'{{"id":"{event_id}","type":"{kind}","data":{text}}}')

    async def attempt(self, request_id: str, number: int, *texts: str) -> None:
        """A call and its text."""
        await self.write(request_id, f"{number}-0", "attempt", deployment="d", model="m")
        for seq, text in enumerate(texts, 1):
            await self.write(request_id, f"{number}-{seq}", "token", text=text)

    async def reject(self, request_id: str, number: int, code: str = "truncated") -> None:
        """The call was none."""
        told = {"deployment": "d", "model": "m", "outcome": "rejected", "code": code, "reason": "", "latency_ms": 1}
        await self.write(request_id, f"{number}-99", "rejected", **told)

    async def result(self, request_id: str, text: str, number: int = 1) -> None:
        """The answer."""
        data = {**EVENTS["result"][0], "id": request_id, "raw_text": text, "content": text, "attempt": number}
        await self.write(request_id, FINAL_ID, "result", **data)

    async def error(self, request_id: str, code: str, *attempts: str) -> None:
        """There is none."""
        told = [
            {"model": "m", "deployment": "d", "outcome": "rejected", "code": each, "reason": "", "latency_ms": 1}
            for each in attempts
        ]
        await self.write(
            request_id, FINAL_ID, "error", id=request_id, code=code, message="none", attempts=told, metadata=None
        )

    async def end(self, request_id: str, *, seconds: float = 3) -> str | None:
        """What kind of end stands in the stream by then; None: none."""
        before = f"{FINAL_PART - 1}-0"
        found = await self.redis.xread({f"llm:events:{request_id}": before}, block=round(seconds * 1000))
        return str(found[0][1][0][1]["type"]) if found else None


@asynccontextmanager
async def open_door(url: str, *, tenant: str | None = None, **gateway: Any) -> AsyncIterator[Door]:
    """One endpoint; `gateway` are keys of its configuration."""
    config = load_config(None, {})
    config = replace(config, gateway=replace(config.gateway, **gateway))
    caller = Caller(name="somebody", tenant=tenant)
    async with Client(url, patience_seconds=5) as client, open_client(url) as redis, aiohttp.ClientSession() as session:
        plexer = Multiplexer(client, url)
        running = asyncio.create_task(plexer.run())
        exchange = Exchange(config, client, plexer)
        door = Door(exchange, redis, session, "")

        async def handle(request: web.Request) -> web.StreamResponse:
            ask = read(json.loads(await request.read()), exchange.catalogue)
            try:
                key = key_of(request)
                prepared = exchange.prepare(fields_of(ask), caller, key=key)
                answering = Answering(exchange, ENDPOINT, request, ask, prepared, is_kept=key is not None)
                response = await answering.run()
            except RefusedError as error:
                door.seen.append(error.fault.code)
                return web.Response(status=error.fault.status, body=ENDPOINT.fault(error.fault))
            except BaseException as error:
                door.seen.append(type(error).__name__)
                raise
            door.seen.append("ended")
            return response

        app = web.Application(client_max_size=2**24)
        app.router.add_post("/plain", handle)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            host, port = runner.addresses[0][:2]
            door.url = f"http://{host}:{port}/plain"
            yield door
        finally:
            await exchange.aclose()
            await runner.cleanup()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
