"""The last words of a worker that cannot trust its own pipe any more, on a connection of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.queue import scripts
from llm_routerd.queue.connection import execute

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from redis.asyncio.connection import AbstractConnection

    from llm_routerd.queue.broker import Broker

SCRIPTS = (scripts.hand_back, scripts.retire)  # all that it takes


async def part(connecting: Awaitable[AbstractConnection], broker: Broker, *, timeout_seconds: float) -> int:
    """Hand back all that this consumer owns, and remove it; returns how many entries were handed back.

    Args:
        connecting: gives a connection that has loaded `SCRIPTS`, and is closed here.
        broker: whose consumer leaves.
        timeout_seconds: longest silence of the server.

    Raises:
        RedisError, OSError, TimeoutError: Redis does not answer in time, or refuses; the leases will run out.
    """
    connection = await connecting

    try:
        command = broker.hand_everything_back_call().command
        given: int = await execute(connection, command, timeout_seconds=timeout_seconds)
        await execute(connection, broker.retire_call(oneself=True).command, timeout_seconds=timeout_seconds)
    finally:
        await connection.disconnect(nowait=True)
    return given
