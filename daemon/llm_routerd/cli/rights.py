"""What the Redis user of `check` may do: tried, by commands that change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.errors import BrokerError, NotAllowedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from llm_routerd.client import Shard


async def lacking(shard: Shard, attempts: Mapping[str, Callable[[], Awaitable[object]]]) -> list[str]:
    """Which of these, by what a person calls them, it may not."""
    return [what for what, attempt in attempts.items() if not await _may(shard, attempt)]


async def _may(shard: Shard, attempt: Callable[[], Awaitable[object]]) -> bool:
    try:
        await shard.patiently(attempt)
    except NotAllowedError:
        return False
    except BrokerError:  # refused for another reason, which is told of elsewhere
        return True
    return True
