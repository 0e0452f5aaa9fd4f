"""One prompt over HTTP: submitted, followed, and told by the voice of the door that it came through.

A failure before anything was told has a status of its own, so the head of a stream goes out with its first text, or
after `HEAD_SECONDS`.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.client_exceptions import ClientConnectionResetError
from msgspec.structs import replace

from llm_routerd.gateway.door import JSON, SSE, Told
from llm_routerd.gateway.fault import BUSY_RETRY_SECONDS, Fault, RefusedError, fault_of
from llm_routerd.gateway.http.counting import REQUEST_ID
from llm_routerd.gateway.line import comment
from llm_routerd.gateway.shown import Ended, More, Shown, Superseded, unfenced
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.events import AttemptRejected, Queued, Result

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from llm_routerd.client import Following
    from llm_routerd.gateway.door import Ask, Completion, Voice
    from llm_routerd.gateway.http.exchange import Exchange, Prepared
    from llm_routerd.protocol.reading import SeenEnd, SeenEvent

HEAD_SECONDS = 10.0
PING_SECONDS = 15.0
UNSERVED_SECONDS = 8.0  # without any event, until it is looked whether anybody works
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class _Streamed(web.StreamResponse):
    """Whose head goes out with what comes first after it, in one write."""

    _send_headers_immediately = False


class Answering:
    """One prompt, from its body to the last byte of its answer.

    Args:
        exchange: the way to the queue.
        endpoint: through which it came.
        request: as aiohttp has it.
        ask: what its body asks for.
        prepared: what is submitted.
        is_kept: the client may come back for the answer, so that nothing is cancelled when it hangs up.
    """

    def __init__(
        self,
        exchange: Exchange,
        endpoint: Completion,
        request: web.Request,
        ask: Ask,
        prepared: Prepared,
        *,
        is_kept: bool,
    ) -> None:
        self._exchange = exchange
        self._endpoint = endpoint
        self._request = request
        self._ask = ask
        self._id = prepared.request_id
        self._prepared = prepared
        self._is_kept = is_kept
        self._voice: Voice = ask.voice(Told(prepared.request_id, int(time.time())))
        self._shown = Shown(is_held=ask.is_held or not ask.streams, shows_reasoning=ask.shows_reasoning)
        self._response: web.StreamResponse | None = None
        request[REQUEST_ID] = self._id
        self._has_begun = False
        self._headers = {"X-Request-ID": self._id}
        if endpoint.id_header:
            self._headers[endpoint.id_header] = self._id
        if prepared.normalised:
            self._headers["X-LLM-Routerd-Normalised"] = ", ".join(prepared.normalised)

    async def run(self) -> web.StreamResponse:
        """Answer.

        Raises:
            RefusedError: there is no answer, and nothing of one has been told.
        """
        try:
            async with self._followed() as following:
                if self._ask.receipt is not None:  # it can only be come back to by who knows its id
                    await self._write(b"")
                return await self._tell(following)
        except (asyncio.CancelledError, ClientConnectionResetError):
            if not self._is_kept:
                self._exchange.give_up(self._id, "the client has gone")
            raise
        except RefusedError as error:
            if self._response is None:
                raise
            return await self._break(error.fault)

    def _followed(self) -> AbstractAsyncContextManager[Following]:
        return self._exchange.submitted(self._prepared)

    async def _tell(self, following: Following) -> web.StreamResponse:
        clock = asyncio.get_running_loop().time
        began = clock()
        ends = looks_at = math.inf
        if self._ask.receipt is None:
            ends = began + self._exchange.config.gateway.timeout_seconds
            looks_at = began + UNSERVED_SECONDS
        while True:
            speaks_at = math.inf
            if self._ask.streams:
                speaks_at = began + HEAD_SECONDS if self._response is None else clock() + PING_SECONDS
            events = await following.next(max(0.0, min(ends, looks_at, speaks_at) - clock()))
            now = clock()
            if events:
                looks_at = math.inf
                told = await self._tell_events(events)
            elif looks_at <= now < ends:
                looks_at = now + UNSERVED_SECONDS
                told = None if await self._exchange.has_workers() else await self._break(self._unserved())
            else:
                told = await self._tell_silence(following, is_late=now >= ends, is_due=now >= speaks_at)
            if told is not None:
                return told

    async def _tell_silence(self, following: Following, *, is_late: bool, is_due: bool) -> web.StreamResponse | None:
        """Tell that nothing has come; the response, where nothing will."""
        if is_late:
            return await self._break(self._too_late())
        if is_due:
            if await self._has_expired(following):
                return await self._break(self._fault(404, "not_found", "the request's events have expired"))
            await self._write(self._voice.ping() if self._response is not None else b"")
        return None

    async def _has_expired(self, following: Following) -> bool:
        """Whether there can be no end any more, of a request that may be followed for ever."""
        if self._ask.receipt is None or following.position == "0-0":
            return False
        return await self._exchange.client.last(self._id) is None

    async def _tell_events(self, events: list[SeenEvent]) -> web.StreamResponse | None:
        """Tell what follows from these; the response, where that is all."""
        pieces: list[bytes] = []
        for event in events:
            match self._shown.see(unfenced(event) if isinstance(event, Result) else event):
                case More(text, reasoning):
                    if reasoning or text:
                        pieces.append(self._beginning())
                    if reasoning:
                        pieces.append(self._voice.reasoning(reasoning))
                    if text:
                        pieces.append(self._voice.text(text))
                case Superseded():
                    await self._write_all(pieces)
                    told = (
                        "the answer that was being shown was discarded, and the request goes on with another; "
                        f"its end will be at /v1/requests/{self._id}"
                    )
                    return await self._break(self._fault(503, "superseded", told))
                case Ended(end, rest):
                    return await self._end(pieces, end, rest)
            if isinstance(event, Queued) and self._response is not None and self._ask.media_type == SSE:
                pieces.append(comment(event.summary))
            if isinstance(event, AttemptRejected) and self._is_refused(event):
                self._exchange.give_up(self._id, "the model's provider refused it")
                return await self._break(self._fault(403, "refusal", "the model's provider refuses to answer"))
        await self._write_all(pieces)
        return None

    def _too_late(self) -> Fault:
        """He has waited as long as one may; what he may come back for goes on."""
        told = "no answer in time"
        if self._is_kept:
            told += f"; the request goes on, and its end will be at /v1/requests/{self._id}"
        else:
            self._exchange.give_up(self._id, told)
        return self._fault(504, "deadline_exceeded", told)

    def _unserved(self) -> Fault:
        """Nobody is there who could answer; what he may come back for waits for somebody."""
        told = "no worker has shown a sign of life; start one: llm-routerd serve"
        if not self._is_kept:
            self._exchange.give_up(self._id, told)
        return replace(self._fault(503, "no_worker", told), retry_after_seconds=BUSY_RETRY_SECONDS)

    def _is_refused(self, event: AttemptRejected) -> bool:
        return event.code is AttemptCode.REFUSAL and self._exchange.config.gateway.on_provider_refusal == "fail"

    def _fault(self, status: int, code: str, message: str) -> Fault:
        return Fault(status=status, code=code, message=message, request_id=self._id)

    async def _end(self, pieces: list[bytes], end: SeenEnd, rest: str) -> web.StreamResponse:
        if not isinstance(end, Result):
            await self._write_all(pieces)
            return await self._break(fault_of(end, self._id))
        if not self._ask.streams:
            return web.Response(body=self._voice.whole(end), content_type=JSON, headers=self._headers)
        pieces.append(self._beginning())
        if rest:
            pieces.append(self._voice.text(rest))
        pieces.append(self._voice.end(end))
        return await self._close(b"".join(pieces))

    async def _break(self, fault: Fault) -> web.StreamResponse:
        """There will be no answer."""
        if self._response is None:
            raise RefusedError(fault)
        return await self._close(self._voice.broken(fault))

    async def _write_all(self, pieces: list[bytes]) -> None:
        if pieces:
            await self._write(b"".join(pieces))

    async def _write(self, data: bytes) -> None:
        """Send it, with the head before it; returns when the client has room for more."""
        response = await self._begun()
        await response.write(self._beginning() + data)

    async def _close(self, data: bytes) -> web.StreamResponse:
        """Send the last of it."""
        response = await self._begun()
        await response.write_eof(data)
        return response

    async def _begun(self) -> web.StreamResponse:
        if self._response is not None:
            return self._response
        self._response = _Streamed(headers={**STREAM_HEADERS, **self._headers})
        self._response.content_type = self._ask.media_type
        if self._ask.media_type == "text/event-stream":
            self._response.charset = "utf-8"
        await self._response.prepare(self._request)
        return self._response

    def _beginning(self) -> bytes:
        """What the stream begins with, once: before anything else is asked of the voice."""
        if self._has_begun:
            return b""
        self._has_begun = True
        return self._voice.begin()


def wants_async(request: web.Request) -> bool:
    """Whether the client comes back for its answer (RFC 7240)."""
    return any(word.strip().lower() == "respond-async" for word in request.headers.get("Prefer", "").split(","))


def fields_of(ask: Ask) -> dict[str, Any]:
    """The properties of the request that an ask makes."""
    return {**ask.fields, "stream": (ask.streams or ask.receipt is not None) and not ask.is_held}


def key_of(request: web.Request) -> str | None:
    """The client's idempotency key."""
    return request.headers.get("Idempotency-Key") or None
