"""aiohttp's connector, whose connections do not run their parser again for every HTTP chunk that is taken out.

A token is an HTTP chunk.  After each, aiohttp 3.14 "resumes" a reading that was never paused, which parses nothing and
asks the transport for what it does already: a microsecond a token, 6 % of the CPU of a short request.
Both names that are used here are aiohttp's own; where a later version has them no more, it does as it always did.
"""

from __future__ import annotations

from contextvars import ContextVar
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from msgspec import Struct, field

from llm_routerd.protocol.call import Sending


class Connecting(Struct):
    """What a POST goes out on: a connection of its own, or one that had served another before; and how far it is."""

    is_new: bool = False
    sending: Sending = field(default_factory=Sending)


connecting: ContextVar[Connecting | None] = ContextVar("connecting", default=None)


class _Protocol(ResponseHandler):
    """A connection; `resume_reading` is for one that was paused."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on reading after `pause_reading`."""
        if getattr(self, "_reading_paused", True):
            super().resume_reading(resume_parser)


class Connector(aiohttp.TCPConnector):
    """Makes such connections, and tells how far it is; can close those that nobody uses."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory = partial(_Protocol, loop=self._loop)  # type: ignore[assignment]  # a subclass will do

    async def _create_connection(self, *arguments: Any, **named: Any) -> Any:
        post = connecting.get()
        if post is None:
            return await super()._create_connection(*arguments, **named)
        post.sending.is_under_way = False
        made = await super()._create_connection(*arguments, **named)
        post.sending.is_under_way = True
        return made

    async def _resolve_host(self, *arguments: Any, **named: Any) -> Any:
        post = connecting.get()
        if post is None:
            return await super()._resolve_host(*arguments, **named)
        post.sending.is_looking_up = True
        try:
            found = await super()._resolve_host(*arguments, **named)
        except Exception:
            post.sending.is_looking_up = False
            raise
        post.sending.is_looking_up = False  # and not where it was cancelled: whoever did can tell why it took so long
        return found

    def close_idle(self) -> None:
        """Close the connections that wait in the pool, for their descriptors are wanted."""
        pools = getattr(self, "_conns", {})
        for pool in list(pools.values()):
            for protocol, _ in pool:
                protocol.close()
        pools.clear()
