"""One question to a server that is not the one that serves us: a Sentinel, or any node of a Cluster."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import InvalidResponse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio.connection import Connection

    from llm_routerd.queue.connection.whereabouts import Place

ASK_SECONDS = 1.0  # longest time for the whole of it


class Asker:
    """Asks, on a connection for each question.

    Args:
        kind: of the connection: plain or with TLS.
        options: of the connection, but for host and port.
    """

    def __init__(self, kind: type[Connection], options: Mapping[str, Any]) -> None:
        self._kind = kind
        self._options = options

    async def ask(self, place: Place, *words: str) -> Any:
        """The reply to a command.

        Raises:
            RedisError, OSError, TimeoutError: there is none.
        """
        own: dict[str, Any] = {"host": place.host, "port": place.port}
        connection = self._kind(
            **{**self._options, **own},
            db=0,
            protocol=2,
            socket_timeout=None,
            socket_connect_timeout=ASK_SECONDS,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,
        )
        try:
            async with asyncio.timeout(ASK_SECONDS):
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py
                await connection.send_command(*words, check_health=False)
                return await connection.read_response(timeout=math.inf)
        except ValueError as error:  # of redis-py, as for a MOVED that names no place
            raise InvalidResponse("its reply cannot be read") from error
        finally:
            await connection.disconnect(nowait=True)


def text_of(said: Any) -> str:
    """Text of a reply; "" where it is none."""
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else said if isinstance(said, str) else ""


def fields_of(reply: Any) -> dict[str, str]:
    """Names and values that stand in turns; none of a reply that is no list."""
    texts = [text_of(word) for word in reply] if isinstance(reply, list) else []
    return dict(zip(texts[::2], texts[1::2], strict=False))
