"""The audit of a queue, read in pages, shard by shard and merged by the time when its entries were written."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from llm_routerd.client.events import as_text
from llm_routerd.protocol.audit import AuditEntry

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from llm_routerd.client.shard import Shard

PAGE = 500  # entries of one shard, some 200 kB
POLL_SECONDS = 1.0

Position = tuple[int, int]


async def read_audit(
    shards: Sequence[Shard], *, since_ms: int = 0, until_ms: int | None = None, follows: bool = False
) -> AsyncGenerator[AuditEntry]:
    """The entries that were written from `since_ms` on and before `until_ms`, the oldest first.

    What is no entry of the audit is passed over.  `follows`: what comes later as well, without end, a second later.

    Raises:
        BrokerError: Redis refuses, or stays away.
    """
    pages = [_Pages(shard, since_ms, until_ms) for shard in shards]
    while True:
        for each in pages:
            await each.look()
        while waiting := [each for each in pages if each.head is not None]:
            first = min(waiting, key=lambda each: each.position)
            if (entry := _read(first.take())) is not None:
                yield entry
            if first.head is None:
                await first.look()
        if not follows:
            return
        await asyncio.sleep(POLL_SECONDS)


class _Pages:
    """One shard's stream, from a place on: a page of it, of which the first entry comes next."""

    def __init__(self, shard: Shard, since_ms: int, until_ms: int | None) -> None:
        self._shard = shard
        self._start = f"{since_ms}-0"
        self._end = "+" if until_ms is None else f"({until_ms}-0"
        self._entries: list[tuple[str, Any]] = []  # the next one last

    @property
    def head(self) -> tuple[str, Any] | None:
        """The next entry; None: the page is over."""
        return self._entries[-1] if self._entries else None

    @property
    def position(self) -> Position:
        """When that was written."""
        ms, _, seq = self._entries[-1][0].partition("-")
        return int(ms), int(seq)

    async def look(self) -> None:
        """Get the next page, where this one is over."""
        if self._entries:
            return
        key, shard = self._shard.keys.audit, self._shard
        found = await shard.patiently(lambda: shard.redis.xrange(key, self._start, self._end, count=PAGE), stream=key)
        self._entries = [(as_text(entry_id), fields) for entry_id, fields in reversed(found or ())]

    def take(self) -> Any:
        """The fields of the next entry, which is done with."""
        entry_id, fields = self._entries.pop()
        self._start = f"({entry_id}"
        return fields


def _read(fields: Any) -> AuditEntry | None:
    texts = {as_text(name): as_text(value) for name, value in (fields or {}).items()}
    try:
        return msgspec.convert(texts, AuditEntry, strict=False)
    except msgspec.ValidationError:
        return None
