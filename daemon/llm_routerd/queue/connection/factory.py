"""Connections to Redis, with the client's own cleverness switched off.

redis-py since 8.0 retries ten times and times a blocking read out after five seconds by default: an XADD became
two entries that way.  Here nothing is repeated below the place that knows whether it may be.
"""

from __future__ import annotations

import asyncio
import math
import random
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from llm_routerd.protocol.keys import Keys
from llm_routerd.queue import scripts
from llm_routerd.queue.connection.bounded_parser import BoundedParser, tell_progress
from llm_routerd.queue.connection.describing import describe, lasts
from llm_routerd.queue.connection.handshake import connection_of
from llm_routerd.queue.connection.locating import whereabouts_of
from llm_routerd.queue.connection.skimmer import WHOLE, Bounds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio.connection import AbstractConnection

    from llm_routerd.queue.connection.fitness import Needs
    from llm_routerd.queue.connection.whereabouts import Whereabouts
    from llm_routerd.queue.scripts.binding import Script

CONNECT_SECONDS = 5.0
MOST_ENTRY_BYTES = 1_048_576

# Replies that say "not this server, not now": the command did nothing, and the same one will do later.
_UNFIT = (ReadOnlyError, BusyLoadingError, MasterDownError, ClusterDownError, MovedError, AskError, TryAgainError)


def is_unfit(error: BaseException) -> bool:
    """Whether a reply means that this server cannot serve us now, though it may later or elsewhere."""
    return isinstance(error, _UNFIT) or (
        isinstance(error, ResponseError)
        and str(error).startswith(("UNKILLABLE", "BUSY ", "NOREPLICAS", "MISCONF", "CLUSTERDOWN", "UNBLOCKED"))
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a reply means that the server has reached its `maxmemory` (also from within a script)."""
    return isinstance(error, OutOfMemoryError) or (
        isinstance(error, ResponseError) and "OOM command not allowed" in str(error)
    )


def is_missing_group(error: BaseException) -> bool:
    """Whether a reply means that a lane or its consumer group has gone."""
    text = str(error)
    return isinstance(error, ResponseError) and ("NOGROUP" in text or text.startswith("UNBLOCKED"))


def is_wrong_type(error: BaseException) -> bool:
    """Whether a reply means that a key is of another type (also from within a script)."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


def is_passed(error: BaseException) -> bool:
    """Whether a stream's last ID is no smaller than the one that was to be added."""
    return "equal or smaller" in str(error) or "exhausted the last possible ID" in str(error)


def is_missing_script(error: BaseException) -> bool:
    """Whether the server has forgotten our scripts (SCRIPT FLUSH)."""
    return isinstance(error, ResponseError) and "NOSCRIPT" in str(error) + type(error).__name__.upper()


class ConnectionFactory:
    """Makes connections to one server, wherever it is now.

    Args:
        url: of Redis.
        client_name: what the server's list of clients says.
        most_entry_bytes: entries that are longer come cut, see `Skimmer`; may change, also for connections that stand.
        needs: what a server has to keep in one place to serve us; None: whatever.
        whereabouts: of the server, shared by all who connect to it; None: its own.
        loads: the scripts that its connections ask for, unless told otherwise.

    Attributes:
        is_whole: the reply that is read next comes whole, however long it is: whoever asked for it has bounded it.
    """

    def __init__(
        self,
        url: str,
        *,
        client_name: str,
        most_entry_bytes: int = MOST_ENTRY_BYTES,
        needs: Needs | None = None,
        whereabouts: Whereabouts | None = None,
        loads: Sequence[Script[...]] = scripts.ALL,
    ) -> None:
        self._loads = loads
        self.most_entry_bytes = most_entry_bytes
        self.is_whole = False
        self._needs = needs
        self._client_name = client_name
        key = Keys("llm" if needs is None else needs.prefix).dead
        self.use(url, whereabouts_of(url, key) if whereabouts is None else whereabouts)

    def use(self, url: str, whereabouts: Whereabouts) -> None:
        """Make the next connections there."""
        self._class, self._options = connection_of(url)
        for ours in ("socket_timeout", "retry_on_timeout", "health_check_interval", "decode_responses", "client_name"):
            self._options.pop(ours, None)
        self.whereabouts = whereabouts

    def _bounds(self) -> Bounds:
        return WHOLE if self.is_whole else Bounds(most_bytes=self.most_entry_bytes)

    async def connect(self, *, loads: Sequence[Script[...]] | None = None) -> AbstractConnection:
        """A connection that stands, has authenticated, and whose server can serve us and knows our scripts.

        Args:
            loads: those of them that are asked for on this connection; None: all that were told of.

        Raises:
            WrongServerError: the server cannot; it is also a RedisError.
            RedisError, OSError, TimeoutError: it does not; nothing is left open.
        """
        options: dict[str, Any] = {"socket_connect_timeout": CONNECT_SECONDS, "protocol": 2, **self._options}
        options |= {"needs": self._needs, "whereabouts": self.whereabouts}
        connection = self._class(
            **options,
            socket_timeout=None,
            retry=Retry(NoBackoff(), 0),
            client_name=self._client_name,
            driver_info=None,
            parser_class=cast("Any", partial(BoundedParser, bounds=self._bounds)),
        )
        try:
            # Of all of it, however slowly each step is answered; redis-py bounds the first half.
            async with asyncio.timeout(2 * CONNECT_SECONDS):
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py
                await _load(connection, self._loads if loads is None else loads)
        except BaseException as error:
            self.whereabouts.lost(error)
            await connection.disconnect(nowait=True)
            raise
        return connection


async def _load(connection: AbstractConnection, loads: Sequence[Script[...]]) -> None:
    """Have the server know these scripts, in one round trip: a slow link has many a connection made anew.

    Raises:
        ResponseError: it refuses one; the connection has no reply left.
    """
    packed = connection.pack_commands([("SCRIPT", "LOAD", script.source) for script in loads])
    refusal: ResponseError | None = None
    async with asyncio.timeout(CONNECT_SECONDS) as limit:
        await connection.send_packed_command(packed, check_health=False)
        for _ in loads:
            try:
                await connection.read_response(timeout=math.inf)
            except ResponseError as error:
                refusal = refusal or error
            limit.reschedule(asyncio.get_running_loop().time() + CONNECT_SECONDS)
    if refusal is not None:
        raise refusal


class Backoff:
    """Capped exponential backoff with full jitter; `reset` after a success."""

    def __init__(
        self, *, first_seconds: float = 0.1, cap_seconds: float = 5.0, rng: random.Random | None = None
    ) -> None:
        self._first = first_seconds
        self._cap = cap_seconds
        self._rng = rng or random.Random()
        self._tries = 0

    def reset(self) -> None:
        """The next wait is the shortest again."""
        self._tries = 0

    def next_seconds(self) -> float:
        """How long to wait before the next try; at least half of the current step."""
        step = min(self._cap, self._first * 2.0**self._tries)
        self._tries = min(self._tries + 1, 16)
        return step * (0.5 + 0.5 * self._rng.random())


async def execute(
    connection: AbstractConnection,
    args: Sequence[Any],
    *,
    timeout_seconds: float,
    has_time: Callable[[], bool] = lambda: True,
) -> Any:
    """One command on a connection of one's own.

    Args:
        connection: nobody else uses it.
        args: the command.
        timeout_seconds: how long the server may be silent, before its reply and within it.
        has_time: false: the reply has no longer than that from now on, though it comes.

    Raises:
        ResponseError: the server's refusal; the connection stays usable.
        RedisError, OSError, TimeoutError: the connection is lost, and closed.
    """
    # Not the timeout of read_response: after it the late reply would be taken for that of the next command.
    clock = asyncio.get_running_loop().time
    async with asyncio.timeout(timeout_seconds) as limit:

        def goes_on() -> None:
            if has_time():
                limit.reschedule(clock() + timeout_seconds)

        tell_progress(connection, goes_on)
        await connection.send_command(*args)
        return await connection.read_response(timeout=math.inf)


__all__ = [
    "Backoff",
    "ConnectionFactory",
    "MovedError",
    "RedisError",
    "ResponseError",
    "describe",
    "execute",
    "is_missing_group",
    "is_missing_script",
    "is_out_of_memory",
    "is_passed",
    "is_unfit",
    "is_wrong_type",
    "lasts",
]
