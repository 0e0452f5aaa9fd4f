"""What stands in a lane, as a producer or an operator may see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.exceptions import NoPermissionError, ResponseError

from llm_routerd.client.events import as_text
from llm_routerd.protocol.keys import GROUP, Lane, is_handed_back
from llm_routerd.queue.connection import is_wrong_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

_ACTIVE_MS = 30_000  # an idle worker's read ends every few seconds, a busy one renews its leases every ten


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneState:
    """What stands in one lane.

    Attributes:
        has_group: a worker has been here since the stream was made.
        waiting: entries that no worker has taken.
        running: entries that workers hold.
        workers: names of the workers that showed a sign of life within the last half minute.
    """

    lane: Lane
    has_group: bool
    waiting: int
    running: int
    workers: frozenset[str]


async def look_at(redis: Redis, lane: Lane, key: str) -> LaneState:
    """What stands in a lane.

    Raises:
        RedisError: the server is away, or refuses the look.
    """
    length = 0
    try:
        length = int(await redis.xlen(key))
        groups = await redis.xinfo_groups(key)
        group = next((group for group in groups if as_text(group["name"]) == GROUP), None)
        if group is None:
            return _unattended(lane, length)
        consumers = await redis.xinfo_consumers(key, GROUP)
    except NoPermissionError:
        raise
    except ResponseError as error:
        if "no such key" in str(error).lower() or "NOGROUP" in str(error) or is_wrong_type(error):
            return _unattended(lane, length)
        raise
    running = int(group["pending"])
    return LaneState(
        lane=lane,
        has_group=True,
        waiting=max(0, length - running),  # a worker removes an entry as soon as it is answered
        running=running,
        workers=frozenset(
            as_text(c["name"])
            for c in consumers
            if int(c["idle"]) < _ACTIVE_MS and not is_handed_back(as_text(c["name"]))
        ),
    )


def added_up(shards: Sequence[Sequence[LaneState]]) -> tuple[LaneState, ...]:
    """Lane by lane, what stands in all shards; there is one at the least, and each has the lanes in the same order."""
    return tuple(
        LaneState(
            lane=states[0].lane,
            has_group=any(state.has_group for state in states),
            waiting=sum(state.waiting for state in states),
            running=sum(state.running for state in states),
            workers=frozenset[str]().union(*(state.workers for state in states)),
        )
        for states in zip(*shards, strict=True)
    )


def _unattended(lane: Lane, length: int) -> LaneState:
    """A lane without our group; a key of another type, or of none, is one that is empty."""
    return LaneState(lane=lane, has_group=False, waiting=length, running=0, workers=frozenset())
