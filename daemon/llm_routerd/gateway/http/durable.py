"""The read side of the Durable Streams protocol over a request's events: catch-up, long-poll, server-sent events."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from aiohttp import web

from llm_routerd.errors import BrokerError
from llm_routerd.gateway.door import JSON, SSE
from llm_routerd.gateway.doors.durable.offsets import END, NOW, given_offset, offset_of, stream_id_of
from llm_routerd.gateway.doors.durable.page import Page, next_cursor
from llm_routerd.gateway.doors.native.telling import KEEP_ALIVE
from llm_routerd.gateway.fault import refused
from llm_routerd.gateway.http.requests import Known, Requests

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.gateway.admission import Caller
    from llm_routerd.gateway.http.exchange import Exchange

LONG_POLL_SECONDS: Final = 20.0
SSE_SECONDS: Final = 60.0  # so that caches between can join those who follow the same
KEEP_ALIVE_SECONDS: Final = 15.0
MOST_EVENTS: Final = 1_000  # in one answer

_UNCACHED: Final = {"Cache-Control": "no-store"}
# What has been read stays as it is, but an answer is its caller's alone, and the end is not to be hidden.
_CACHED: Final = {"Cache-Control": "private, no-cache"}


def add_durable(router: web.UrlDispatcher, exchange: Exchange, caller_of: Callable[[web.Request], Caller]) -> None:
    """Add the door's path.

    Args:
        router: of the application.
        exchange: the way to the queue.
        caller_of: who has been let in.
    """
    door = _Durable(exchange, caller_of)
    router.add_get("/v1/requests/{id}/stream", door.read, allow_head=False)
    router.add_head("/v1/requests/{id}/stream", door.head)


class _Durable:
    def __init__(self, exchange: Exchange, caller_of: Callable[[web.Request], Caller]) -> None:
        self._requests = Requests(exchange, caller_of)
        self._exchange = exchange

    async def head(self, request: web.Request) -> web.StreamResponse:
        known = await self._requests.known(request)
        page = Page(start=offset_of(known.position), is_up_to_date=False)
        return web.Response(content_type=JSON, headers={**_UNCACHED, **page.headers()})

    async def read(self, request: web.Request) -> web.StreamResponse:
        live = request.query.get("live")
        if live not in {None, "long-poll", "sse"}:
            raise refused("live", "expected long-poll or sse")
        given = given_offset(request.query.getall("offset", []), is_live=live is not None)
        known = await self._requests.known(request)
        start = known.position if given == NOW else stream_id_of(given)
        if offset_of(start) >= END and not known.has_ended:
            raise refused("offset", "the stream has not been closed: it has no such place")
        match live:
            case None:
                page = Page(start=offset_of(start)) if given == NOW else await self._page(known, start)
                return _caught_up(request, known, page, has_tag=given != NOW)
            case "long-poll":
                return await self._long_poll(request, known, start)
            case _:
                return await self._stream(request, known, start)

    async def _page(self, known: Known, start: str) -> Page:
        """What is there by now after an event."""
        events = await self._requests.ask(
            lambda: self._exchange.client.events_after(known.request_id, start, MOST_EVENTS + 1)
        )
        is_all = len(events) <= MOST_EVENTS
        return Page(start=offset_of(start), events=events[:MOST_EVENTS], is_up_to_date=is_all)

    async def _long_poll(self, request: web.Request, known: Known, start: str) -> web.StreamResponse:
        page = await self._page(known, start)
        if not page.events and not page.is_closed:
            async with self._exchange.followed(known.request_id, start) as following:
                events = await following.next(LONG_POLL_SECONDS)
            page = Page(start=page.start, events=events, is_up_to_date=not following.is_behind)
        headers = {**_UNCACHED, **page.headers(_cursor(request))}
        if not page.events:
            return web.Response(status=204, headers=headers)
        headers["ETag"] = page.etag(known.request_id)
        return web.Response(body=page.body, content_type=JSON, headers=headers)

    async def _stream(self, request: web.Request, known: Known, start: str) -> web.StreamResponse:
        clock = asyncio.get_running_loop().time
        ends = clock() + SSE_SECONDS
        page = await self._page(known, start)
        async with self._exchange.followed(known.request_id, stream_id_of(page.next_offset)) as following:
            headers = {"Cache-Control": "no-store, no-cache", "Content-Type": SSE, "X-Accel-Buffering": "no"}
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            cursor = _cursor(request)
            await response.write(page.sse(cursor))
            with suppress(BrokerError):  # Redis has gone: the client comes back, and goes on where it was
                while not page.is_closed and (left := ends - clock()) > 0:
                    events = await following.next(min(KEEP_ALIVE_SECONDS, left))
                    page = Page(start=page.next_offset, events=events, is_up_to_date=not following.is_behind)
                    await response.write(page.sse(cursor) if events else KEEP_ALIVE)
        return response


def _caught_up(request: web.Request, known: Known, page: Page, *, has_tag: bool) -> web.StreamResponse:
    """An answer that waits for nothing; `has_tag`: the same question may be answered by that tag alone."""
    headers = {**(_CACHED if has_tag else _UNCACHED), **page.headers()}
    if has_tag:
        headers["ETag"] = tag = page.etag(known.request_id)
        if tag in {each.strip().removeprefix("W/") for each in request.headers.get("If-None-Match", "").split(",")}:
            return web.Response(status=304, headers=headers)
    return web.Response(body=page.body, content_type=JSON, headers=headers)


def _cursor(request: web.Request) -> str:
    return next_cursor(request.query.get("cursor", ""), time.time(), random.randint)
