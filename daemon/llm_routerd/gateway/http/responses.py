"""OpenAI's responses once more: looked up, told again from where their client is, stopped.

A response is its request's events, and lives as long as they do.  What was in its body is not among them, but for the
model's name and the client's own metadata.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from aiohttp import web
from msgspec import Struct
from msgspec.structs import replace

from llm_routerd.errors import UnknownRequestError
from llm_routerd.gateway.door import JSON, Ask, Told
from llm_routerd.gateway.doors.openai.responses_answer import ResponsesVoice, shape_carried
from llm_routerd.gateway.fault import fault_of, refused
from llm_routerd.gateway.http.answering import Answering
from llm_routerd.gateway.http.exchange import Prepared
from llm_routerd.gateway.http.requests import Requests, unknown
from llm_routerd.gateway.shown import unfenced
from llm_routerd.protocol.events import AttemptStarted, Result
from llm_routerd.protocol.reading import as_end
from llm_routerd.protocol.wire import encode

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from llm_routerd.client import Following
    from llm_routerd.gateway.admission import Caller
    from llm_routerd.gateway.door import Completion
    from llm_routerd.gateway.http.exchange import Exchange
    from llm_routerd.protocol.reading import SeenEnd

RESPONSES = "/v1/responses"
PREFIX = "resp_"
_DIGITS = re.compile(r"[0-9]{1,9}")


class Found(Struct, frozen=True, kw_only=True):
    """What is known of a response.

    Attributes:
        told: of its request.
        end: how it ended; None: it goes on.
        is_begun: somebody has been asked.
    """

    told: Told
    end: SeenEnd | None
    is_begun: bool

    def voice(self, *, after: int = -1) -> ResponsesVoice:
        """Tells of it."""
        return ResponsesVoice(self.told, shape=shape_carried(getattr(self.end, "metadata", None)), after=after)

    def body(self) -> bytes:
        """What it has come to by now."""
        match self.end:
            case None:
                return self.voice().unfinished("in_progress" if self.is_begun else "queued")
            case Result() as result:
                return self.voice().whole(unfenced(result))
            case end:
                return self.voice().failed(fault_of(end, self.told.request_id))


class _TellingAgain(Answering):
    """Of a request that there is already."""

    def _followed(self) -> AbstractAsyncContextManager[Following]:
        return self._exchange.followed(self._id)


class Responses:
    """The handlers.

    Args:
        exchange: the way to the queue.
        caller_of: who has been let in.
        endpoint: through which responses are made.
    """

    def __init__(self, exchange: Exchange, caller_of: Callable[[web.Request], Caller], endpoint: Completion) -> None:
        self._exchange = exchange
        self._requests = Requests(exchange, caller_of)
        self._endpoint = endpoint

    async def get(self, request: web.Request) -> web.StreamResponse:
        """The response; with `stream=true` its events, those after `starting_after`."""
        found = await self._find(request)
        if request.query.get("stream", "false").lower() not in {"true", "1"}:
            return self._told(found)
        after = request.query.get("starting_after", "")
        if after and not _DIGITS.fullmatch(after):
            raise refused("starting_after", "expected the sequence number of an event")
        voice = found.voice(after=int(after) if after else -1)
        ask = Ask(fields={}, voice=lambda _: voice, streams=True, shows_reasoning=True, receipt=lambda _: found.body())
        again = Prepared(request_id=found.told.request_id, data=b"", is_new=False)
        return await _TellingAgain(self._exchange, self._endpoint, request, ask, again, is_kept=True).run()

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """Stop it; what has ended stays what it is."""
        return self._told(await self._stopped(await self._find(request)))

    async def delete(self, request: web.Request) -> web.StreamResponse:
        """Stop it.  Its events go by themselves when their time is over, and not before: a worker may look for them."""
        found = await self._stopped(await self._find(request))
        body = {"id": f"{PREFIX}{found.told.request_id}", "object": "response", "deleted": False}
        return web.Response(body=encode(body), content_type=JSON)

    async def _find(self, request: web.Request) -> Found:
        """What is known of the response that the path names.

        Raises:
            RefusedError: nothing is, or it is none of the caller's.
        """
        known = await self._requests.known(request, PREFIX)
        entry = None
        if known.last is not None:
            async with self._exchange.followed(known.request_id) as following:
                events = await following.next(0)
            first = next((each for each in events if isinstance(each, AttemptStarted)), None)
            entry = None if first is None else first.entry
        created = int(entry.partition("-")[0]) // 1000 if entry else int(time.time())
        return Found(
            told=Told(known.request_id, created),
            end=as_end(known.last) if known.last is not None and known.has_ended else None,
            is_begun=known.last is not None,
        )

    async def _stopped(self, found: Found) -> Found:
        if found.end is not None:
            return found
        request_id = found.told.request_id
        try:
            end = await self._exchange.cancel(request_id, "cancelled by the client")
        except UnknownRequestError:
            raise unknown(request_id) from None
        return replace(found, end=end)

    def _told(self, found: Found) -> web.Response:
        headers = {"X-Request-ID": found.told.request_id}
        return web.Response(body=found.body(), content_type=JSON, headers=headers)


def add_responses(
    router: web.UrlDispatcher, exchange: Exchange, caller_of: Callable[[web.Request], Caller], endpoint: Completion
) -> None:
    """Serve them, beside the endpoint that makes responses."""
    responses = Responses(exchange, caller_of, endpoint)
    one = f"{endpoint.path}/{{id}}"
    router.add_get(one, responses.get, allow_head=False)
    router.add_post(f"{one}/cancel", responses.cancel)
    router.add_delete(one, responses.delete)
