"""What the doors have in common that tell events as they stand: a request that its caller may see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from llm_routerd.errors import BrokerError
from llm_routerd.gateway.fault import Fault, RefusedError
from llm_routerd.gateway.http.exchange import unavailable
from llm_routerd.protocol.reply_address import valid_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeVar

    from aiohttp import web

    from llm_routerd.gateway.admission import Caller
    from llm_routerd.gateway.http.exchange import Exchange
    from llm_routerd.protocol.reading import SeenEvent

    T = TypeVar("T")


class Known(Struct, frozen=True, kw_only=True):
    """A request that there is.

    Attributes:
        request_id: its id.
        last: its newest event; None: it is queued.
    """

    request_id: str
    last: SeenEvent | None

    @property
    def position(self) -> str:
        """The ID of its newest event; `0-0`: there is none."""
        return "0-0" if self.last is None else self.last.stream_id

    @property
    def has_ended(self) -> bool:
        """Whether that is its final event."""
        return self.last is not None and self.last.is_final


class Requests:
    """The requests of one gateway.

    Args:
        exchange: the way to the queue.
        caller_of: who has been let in.
    """

    def __init__(self, exchange: Exchange, caller_of: Callable[[web.Request], Caller]) -> None:
        self.exchange = exchange
        self.caller_of = caller_of

    def id_of(self, request: web.Request, prefix: str = "") -> str:
        """The id in a path, where a door may have put something before it.

        Raises:
            RefusedError: 404, it can be none; 403, it is not this caller's.
        """
        request_id = request.match_info["id"].removeprefix(prefix)
        if valid_id(request_id) is None:
            raise unknown(request_id)
        if not self.caller_of(request).may_see(request_id):
            tenant = self.caller_of(request).tenant
            told = "this request is another tenant's" + (f"; ids of this key begin with {tenant}:" if tenant else "")
            raise RefusedError(Fault(status=403, code="forbidden", message=told, request_id=request_id))
        return request_id

    async def known(self, request: web.Request, prefix: str = "") -> Known:
        """The request that a path names.  One that may be queued, where nobody can say so, counts as known.

        Raises:
            RefusedError: as `id_of`; or nobody knows it; or Redis is away.
        """
        request_id = self.id_of(request, prefix)
        last = await self.ask(lambda: self.exchange.client.last(request_id))
        if last is None:
            sighting = await self.exchange.look_up(request_id)
            if not sighting.is_known and not sighting.why_unsure:
                raise unknown(request_id)
        return Known(request_id=request_id, last=last)

    @staticmethod
    async def ask(question: Callable[[], Awaitable[T]]) -> T:
        """What the client says.

        Raises:
            RefusedError: Redis is away, or refuses.
        """
        try:
            return await question()
        except BrokerError as error:
            raise unavailable(error) from error


def unknown(request_id: str) -> RefusedError:
    """Nobody knows of it."""
    told = "nobody knows of this request: it never was, or has expired"
    named = request_id if valid_id(request_id) else ""
    return RefusedError(Fault(status=404, code="not_found", message=told, request_id=named))
