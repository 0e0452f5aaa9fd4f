"""What a person is told of a request that nobody knows: that, and which one may have been meant."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING

from llm_routerd.client import as_text
from llm_routerd.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.client import Client

_MOST_KEYS = 20_000  # of the whole database, whatever they are
_KEYS_PER_SCAN = 1_000
_MOST_COMPARED = 5_000  # of those with events, and of those in the lanes
_LIKENESS = 0.75


async def unknown(client: Client, request_id: str, others: Sequence[str]) -> str:
    """One line: that nothing is known of it, and the nearest id among `others` and those with events."""
    ids = [*others[:_MOST_COMPARED], *(await _ids_with_events(client))[:_MOST_COMPARED]]
    near = get_close_matches(request_id, ids, n=1, cutoff=_LIKENESS)
    meant = f"; the nearest id is {near[0]}" if near else ""
    return f"nothing is known of {request_id}: never submitted, or expired{meant}"


async def _ids_with_events(client: Client) -> list[str]:
    """Ids of requests that have begun or ended; none where this user may not see keys, as a producer may not."""
    ids: list[str] = []
    scans = _MOST_KEYS // _KEYS_PER_SCAN
    for shard in client.shards.all:
        prefix = shard.keys.events("")
        pattern = re.sub(r"([\\*?\[\]])", r"\\\1", prefix) + "*"
        cursor = 0
        while scans:
            scans -= 1
            try:
                cursor, keys = await shard.patiently(
                    lambda shard=shard, cursor=cursor, pattern=pattern: shard.redis.scan(  # type: ignore[misc]
                        cursor, match=pattern, count=_KEYS_PER_SCAN
                    )
                )
            except BrokerError:
                break
            ids += [as_text(key).removeprefix(prefix) for key in keys]
            if not cursor:
                break
    return ids
