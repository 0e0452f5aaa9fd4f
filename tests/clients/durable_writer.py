"""The write side that the conformance suite of Durable Streams needs, and we do not have: in front of a gateway.

PUT and POST write events into Redis, as a daemon does, and DELETE takes them away; GET and HEAD go to the gateway, whose
status and headers come back as they are.  Its messages are events, and those of the suite any bytes: each is the data
of an event, and is unwrapped here, for a stream in the JSON mode into an array, for any other into text.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from aiohttp import web

from llm_routerd.gateway.doors.durable.offsets import END, offset_of
from llm_routerd.protocol.events import FINAL_ID

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

    from tests.gateway.application import Site

_JSON = "application/json"
_DATA = b"event: data\ndata:"


@dataclass
class _Stream:
    request_id: str
    kind: str
    entry: str
    count: int = 0
    is_closed: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def media_type(self) -> str:
        return self.kind.partition(";")[0].strip().lower()

    @property
    def tail(self) -> str:
        return END if self.is_closed else offset_of(f"1-{self.count - 1}" if self.count else "0-0")

    @property
    def headers(self) -> dict[str, str]:
        return {"Stream-Next-Offset": self.tail} | ({"Stream-Closed": "true"} if self.is_closed else {})


class Writer:
    """In front of one gateway."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._streams: dict[str, _Stream] = {}
        self._made = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Any method."""
        match request.method:
            case "PUT":
                return await self._create(request)
            case "POST":
                return await self._append(request)
            case "DELETE":
                return await self._delete(request)
            case _:
                return await self._read(request)

    async def _create(self, request: web.Request) -> web.Response:
        kind = request.headers.get("Content-Type", "application/octet-stream")
        body, closes = await request.read(), _closes(request)
        stream = self._streams.get(request.path)
        if stream is not None:
            same = stream.media_type == kind.partition(";")[0].strip().lower() and stream.is_closed == closes
            return web.Response(status=200 if same else 409, headers={"Content-Type": stream.kind, **stream.headers})
        messages = _messages(kind, body, may_be_empty=True)
        self._made += 1
        request_id = sha256(f"{self._made} {request.path}".encode()).hexdigest()
        entry = await self._site.redis.xadd("llm:requests", {"data": json.dumps({"id": request_id, "prompt": "x"})})
        stream = self._streams[request.path] = _Stream(request_id, kind, entry)
        await self._write(stream, messages, closes=closes)
        return web.Response(status=201, headers={"Content-Type": kind, "Location": str(request.url), **stream.headers})

    async def _append(self, request: web.Request) -> web.Response:
        stream = self._streams.get(request.path)
        body, closes = await request.read(), _closes(request)
        if stream is None:
            return web.Response(status=404)
        async with stream.lock:
            if stream.is_closed:
                return web.Response(status=409 if body else 204, headers=stream.headers)
            if not body and not closes:
                return web.Response(status=400)
            kind = request.headers.get("Content-Type")
            if body and (kind is None or kind.partition(";")[0].strip().lower() != stream.media_type):
                return web.Response(status=400 if kind is None else 409)
            try:
                messages = _messages(stream.kind, body, may_be_empty=closes)
            except ValueError:
                return web.Response(status=400)
            await self._write(stream, messages, closes=closes)
            return web.Response(status=204, headers=stream.headers)

    async def _write(self, stream: _Stream, messages: list[bytes], *, closes: bool) -> None:
        for place, message in enumerate(messages):
            is_last = closes and place == len(messages) - 1
            data = {"bytes": base64.b64encode(message).decode()}
            await self._site.write(stream.request_id, FINAL_ID if is_last else f"1-{stream.count}", "token", data)
            stream.count += not is_last
            stream.is_closed = is_last
        if closes and not messages:
            await self._site.write(stream.request_id, FINAL_ID, "cancelled", {})
            stream.is_closed = True

    async def _delete(self, request: web.Request) -> web.Response:
        stream = self._streams.pop(request.path, None)
        if stream is None:
            return web.Response(status=404)
        await self._site.redis.xdel("llm:requests", stream.entry)
        await self._site.redis.delete(f"llm:events:{stream.request_id}")
        return web.Response(status=204)

    async def _read(self, request: web.Request) -> web.StreamResponse:
        stream = self._streams.get(request.path)
        request_id = "nobodys" if stream is None else stream.request_id
        query = f"?{request.query_string}" if request.query_string else ""
        given = {name: text for name, text in request.headers.items() if name.lower() in {"if-none-match", "accept"}}
        async with self._site.http.request(
            request.method, f"/v1/requests/{request_id}/stream{query}", headers=given
        ) as reply:
            headers = {
                name: text
                for name, text in reply.headers.items()
                if name not in {"Content-Length", "Transfer-Encoding"}
            }
            if stream is None or reply.status not in {200, 204, 304}:
                return web.Response(status=reply.status, headers=headers, body=await reply.read())
            if reply.content_type == "text/event-stream":
                return await self._follow(request, stream, reply, headers)
            body = await reply.read()
            if reply.status == 200:
                headers["Content-Type"] = stream.kind
                body = _unwrapped(stream, body) if body else b""
            return web.Response(status=reply.status, headers=headers, body=body)

    @staticmethod
    async def _follow(
        request: web.Request, stream: _Stream, reply: aiohttp.ClientResponse, headers: dict[str, str]
    ) -> web.StreamResponse:
        is_text = stream.media_type == _JSON or stream.media_type.startswith("text/")
        response = web.StreamResponse(
            headers={**headers, **({} if is_text else {"stream-sse-data-encoding": "base64"})}
        )
        await response.prepare(request)
        held = b""  # `data` and its `control` come as one, and go as one
        while block := await reply.content.readuntil(b"\n\n"):
            if block.startswith(_DATA):
                body = _unwrapped(stream, block.removeprefix(_DATA))
                lines = re.split(rb"\r\n|\r|\n", body if is_text else base64.b64encode(body))
                held = b"event: data\n" + b"".join(b"data:" + line + b"\n" for line in lines) + b"\n" if body else b""
            else:
                await response.write(held + block)
                held = b""
        return response


def _closes(request: web.Request) -> bool:
    return request.headers.get("Stream-Closed", "").lower() == "true"


def _messages(kind: str, body: bytes, *, may_be_empty: bool) -> list[bytes]:
    """The messages in a body: one, or each of an array's in the JSON mode.

    Raises:
        ValueError: it is no JSON, or has none.
    """
    if not body:
        return []
    if kind.partition(";")[0].strip().lower() != _JSON:
        return [body]
    value = json.loads(body)
    values = value if isinstance(value, list) else [value]
    if not values and not may_be_empty:
        raise ValueError("an empty array")
    return [json.dumps(each, ensure_ascii=False).encode() for each in values]


def _unwrapped(stream: _Stream, events: bytes) -> bytes:
    told: list[dict[str, Any]] = json.loads(events)
    messages = [base64.b64decode(each["data"]["bytes"]) for each in told if "bytes" in each["data"]]
    return b"[" + b",".join(messages) + b"]" if stream.media_type == _JSON else b"".join(messages)


@asynccontextmanager
async def writing(site: Site) -> AsyncIterator[str]:
    """The address of a server that the suite can write to and read from."""
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", Writer(site).handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
