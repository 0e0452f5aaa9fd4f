"""Connections to Redis, with the client's own cleverness switched off.

redis-py since 8.0 retries ten times and times a blocking read out after five seconds by default: an XADD became
two entries that way.  Here nothing is repeated below the place that knows whether it may be.
"""

from __future__ import annotations

import asyncio
import math
import random
import re
from typing import TYPE_CHECKING, Any

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from llm_routerd.queue import scripts
from llm_routerd.queue.handshake import connection_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio.connection import AbstractConnection

CONNECT_SECONDS = 5.0

# Replies that say "not this server, not now": the command did nothing, and the same one will do later.
_UNFIT = (ReadOnlyError, BusyLoadingError, MasterDownError, ClusterDownError, MovedError)

# What else a server says quotes users, keys or arguments.
_REFUSALS = (
    (re.compile(r"no permissions to run the '([\w|.-]{1,64})' command"), "the user may not run"),
    (re.compile(r"permissions to access (?:a|one of the|the '.*') (key|channel)"), "the user may not access a"),
    (re.compile(r"unknown (?:sub)?command [`'\"]?([\w|.-]{1,64})"), "unknown command"),
)


def is_unfit(error: BaseException) -> bool:
    """Whether a reply means that this server cannot serve us now, though it may later or elsewhere."""
    return isinstance(error, _UNFIT) or (
        isinstance(error, ResponseError)
        and str(error).startswith(("UNKILLABLE", "BUSY ", "NOREPLICAS", "MISCONF", "CLUSTERDOWN"))
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


def is_missing_script(error: BaseException) -> bool:
    """Whether the server has forgotten our scripts (SCRIPT FLUSH)."""
    return isinstance(error, ResponseError) and "NOSCRIPT" in str(error) + type(error).__name__.upper()


def describe(error: BaseException) -> str:
    """One line on what is wrong with Redis.

    Never an address with a password (redis-py quotes host and port only), nor what a server may quote of a command:
    of one that an ACL refuses or that the server does not know it has the name, and no key, value or user.
    """
    kind, text = type(error).__name__, str(error)
    for pattern, told in _REFUSALS:
        if match := pattern.search(text):
            where = " (in a script)" if "in script" in text else ""
            return f"{kind}: {told}{''.join(f' {name}' for name in match.groups())}{where}"
    if isinstance(error, (AuthenticationError, NoPermissionError)):
        return f"{kind}: not allowed"
    lines = text.strip().splitlines()
    if not lines and isinstance(error, TimeoutError):
        return f"{kind}: no answer in time"
    return f"{kind}: {lines[0][:200]}" if lines else kind


class ConnectionFactory:
    """Makes connections to one Redis, follows a MOVED of a cluster to the node that has our slot."""

    def __init__(self, url: str, *, client_name: str) -> None:
        self._class, options = connection_of(url)
        for ours in ("socket_timeout", "retry_on_timeout", "health_check_interval", "decode_responses", "client_name"):
            options.pop(ours, None)
        self._options = options
        self._client_name = client_name

    def redirect(self, error: MovedError) -> None:
        """Take the next connections to where the slot is."""
        self._options |= {"host": error.host, "port": int(error.port)}

    async def connect(self) -> AbstractConnection:
        """A connection that stands, has authenticated, and whose server knows our scripts.

        Raises:
            RedisError, OSError, TimeoutError: it does not; nothing is left open.
        """
        options: dict[str, Any] = {"socket_connect_timeout": CONNECT_SECONDS, "protocol": 2, **self._options}
        connection = self._class(
            **options,
            socket_timeout=None,
            retry=Retry(NoBackoff(), 0),
            client_name=self._client_name,
            driver_info=None,
        )
        try:
            # Of all of it, however slowly each step is answered; redis-py bounds the first half.
            async with asyncio.timeout(2 * CONNECT_SECONDS):
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py
                for script in scripts.ALL:
                    await execute(connection, ("SCRIPT", "LOAD", script.source), timeout_seconds=CONNECT_SECONDS)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection


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


async def execute(connection: AbstractConnection, args: Sequence[Any], *, timeout_seconds: float) -> Any:
    """One command on a connection of one's own.

    Raises:
        ResponseError: the server's refusal; the connection stays usable.
        RedisError, OSError, TimeoutError: the connection is lost, and closed.
    """
    # Not the timeout of read_response: after it the late reply would be taken for that of the next command.
    async with asyncio.timeout(timeout_seconds):
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
    "is_unfit",
    "is_wrong_type",
]
