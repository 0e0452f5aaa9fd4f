"""The native door: requests are submitted, followed, ended and agreed to.

A connection that drops never ends a request; `DELETE` does.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from llm_routerd.errors import BrokerError, UnknownRequestError
from llm_routerd.gateway.door import JSON, SSE
from llm_routerd.gateway.doors.native import asking, consent, telling
from llm_routerd.gateway.event_json import event_json
from llm_routerd.gateway.fault import refused
from llm_routerd.gateway.http.requests import Requests, unknown
from llm_routerd.protocol.consent import Calls
from llm_routerd.protocol.events import BEFORE_FINAL_ID, Queued

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llm_routerd.client import Following
    from llm_routerd.gateway.admission import Caller
    from llm_routerd.gateway.http.exchange import Exchange
    from llm_routerd.protocol.reading import SeenEvent

KEEP_ALIVE_SECONDS: Final = 15.0
_EVENTS_PER_PAGE = 500
_HEALTH_SECONDS = 2.0  # whoever balances a load waits no longer
_UNCACHED: Final = {"Cache-Control": "no-store"}
_STREAM: Final = {**_UNCACHED, "Content-Type": f"{SSE}; charset=utf-8", "X-Accel-Buffering": "no"}


def add_native(
    router: web.UrlDispatcher,
    exchange: Exchange,
    caller_of: Callable[[web.Request], Caller],
    read_object: Callable[[web.Request], Awaitable[dict[str, Any]]],
) -> None:
    """Add the door's paths, and what says how it is and how it is spoken to: `/health`, `/openapi.json`.

    Args:
        router: of the application.
        exchange: the way to the queue.
        caller_of: who has been let in.
        read_object: the JSON object in a body.
    """
    door = _Native(exchange, caller_of, read_object)
    router.add_post("/v1/requests", door.submit)
    router.add_get("/v1/requests/{id}", door.look)
    router.add_delete("/v1/requests/{id}", door.cancel)
    router.add_get("/v1/requests/{id}/events", door.follow, allow_head=False)
    router.add_post("/v1/requests/{id}/confirmations/{call_id}", door.consent)
    router.add_get("/health", door.health)
    document = files("llm_routerd").joinpath("schemas", "openapi.json").read_bytes()

    async def describe(_request: web.Request) -> web.Response:
        return web.Response(body=document, content_type=JSON)

    router.add_get("/openapi.json", describe)


class _Native:
    def __init__(
        self,
        exchange: Exchange,
        caller_of: Callable[[web.Request], Caller],
        read_object: Callable[[web.Request], Awaitable[dict[str, Any]]],
    ) -> None:
        self._requests = Requests(exchange, caller_of)
        self._exchange = exchange
        self._read_object = read_object

    async def submit(self, request: web.Request) -> web.StreamResponse:
        fields, key = asking.request_of(await self._read_object(request), request.headers.get("Idempotency-Key", ""))
        if "model" in fields:
            fields["model"] = self._exchange.catalogue.model_of(fields)
        lane = asking.lane_of(request.query.get("lane", ""))
        prepared = self._exchange.prepare(fields, self._requests.caller_of(request), key=key, lane=lane)
        await self._exchange.submit(prepared)
        request_id = prepared.request_id
        headers = {"Location": telling.links(request_id)["self"]}
        if seconds := asking.wait_seconds(request.headers.get("Prefer", "")):
            headers["Preference-Applied"] = f"wait={seconds}"
            if final := await self._final_within(request_id, seconds):
                return _json(request_id, event_json(final), headers=headers)
        return _json(request_id, telling.standing(request_id, None), status=202, headers=headers)

    async def look(self, request: web.Request) -> web.StreamResponse:
        known = await self._requests.known(request)
        seconds = asking.wait_seconds(request.headers.get("Prefer", ""))
        last = known.last
        if seconds and not known.has_ended:
            last = await self._final_within(known.request_id, seconds) or last
        if last is not None and last.is_final:
            return _json(known.request_id, event_json(last))
        queued = last if isinstance(last, Queued) else None
        attempt = None
        if last is not None and (last.attempt or queued is None):
            attempt = await self._attempt_of(known.request_id, last)
        return _json(known.request_id, telling.standing(known.request_id, attempt, queued), status=202)

    async def _attempt_of(self, request_id: str, event: SeenEvent) -> SeenEvent:
        """The event with which the attempt began that an event belongs to; the event, where it has none."""
        first = f"{event.attempt}-0"
        return await self._requests.ask(lambda: self._exchange.client.at(request_id, first)) or event

    async def _final_within(self, request_id: str, seconds: float) -> SeenEvent | None:
        async with self._exchange.followed(request_id, BEFORE_FINAL_ID) as following:
            events = await following.next(seconds)
        return events[-1] if events else None

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        request_id = self._requests.id_of(request)
        reason = "cancelled over HTTP"
        try:
            end = await self._exchange.cancel(request_id, reason)
        except UnknownRequestError as error:
            if not error.why_unsure:
                raise unknown(request_id) from None
            end = await self._exchange.cancel(request_id, reason, anyway=True)
        return _json(request_id, event_json(end))

    async def follow(self, request: web.Request) -> web.StreamResponse:
        known = await self._requests.known(request)
        after = asking.position(request.headers.get("Last-Event-ID", ""), request.query.get("after", ""))
        if asking.is_over(after):
            if not known.has_ended:
                raise refused("after", "the request has not ended: it has no such event")
            return web.Response(status=204, headers=_UNCACHED)  # on which a browser's EventSource asks no more
        async with self._exchange.followed(known.request_id, after) as following:
            response = web.StreamResponse(headers={**_STREAM, "X-Request-ID": known.request_id})
            await response.prepare(request)
            await response.write(telling.RETRY)
            with suppress(BrokerError):  # Redis has gone: the client comes back, and goes on where it was
                await self._tell(response, following)
        return response

    async def _tell(self, response: web.StreamResponse, following: Following) -> None:
        while not following.is_over:
            if events := await following.next(KEEP_ALIVE_SECONDS):
                await response.write(b"".join(map(telling.event_sse, events)))
                continue
            await response.write(telling.KEEP_ALIVE)
            if following.position != asking.START and await self._exchange.client.last(following.request_id) is None:
                return  # it has expired

    async def consent(self, request: web.Request) -> web.StreamResponse:
        known = await self._requests.known(request)
        word = consent.read(await self._read_object(request))
        call_id, client = request.match_info["call_id"], self._exchange.client
        calls = Calls()
        position = asking.START
        while events := await self._requests.ask(
            lambda: client.events_after(known.request_id, position, _EVENTS_PER_PAGE)  # noqa: B023 - asked at once
        ):
            calls.see(events)
            position = events[-1].stream_id
        now_ms = await self._requests.ask(lambda: client.server_time_ms(known.request_id))
        if (told := calls.why_not(call_id, word, now_ms)) is not None:
            raise consent.discounted(told)
        said = word.fields(call_id, self._requests.caller_of(request).name or "anonymous")
        await self._requests.ask(lambda: client.consent(known.request_id, said))
        return _json(known.request_id, telling.said(known.request_id, call_id), status=202)

    async def health(self, _request: web.Request) -> web.StreamResponse:
        try:
            async with asyncio.timeout(_HEALTH_SECONDS):
                await self._exchange.client.ping()
        except (BrokerError, TimeoutError):
            return web.json_response({"status": "unavailable", "redis": "away"}, status=503, headers=_UNCACHED)
        # Without a worker requests wait, and this is as well as it can be.
        served = await self._exchange.has_workers()
        return web.json_response({"status": "ok", "redis": "ok", "has_workers": served}, headers=_UNCACHED)


def _json(
    request_id: str, body: bytes, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.StreamResponse:
    told = {**_UNCACHED, "X-Request-ID": request_id, **(headers or {})}
    return web.Response(status=status, body=body, content_type=JSON, headers=told)
