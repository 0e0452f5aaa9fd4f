"""Which events streams belong to entries that no longer exist?

An entry's body says under which id its request is answered; where the body is gone, the attempt that was begun for it
says so: it names the entry.  So all events streams are looked through, page by page, between the commands of others.
That is dear, and rare: an entry has to be trimmed while its worker has it, and the worker to die.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from msgspec import Struct

from llm_routerd.protocol.cut import CutBytes, parts_of
from llm_routerd.queue import scripts
from llm_routerd.queue.connection import ResponseError, describe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_routerd.protocol.cut import Part
    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.deliveries import Delivery

PAGE_KEYS = 250  # one page is looked through in about a millisecond, in which the server does nothing else
MAX_PAGES = 40_000  # so many keys of the whole database, whatever they are, are looked at: ten million


class Found(Struct, frozen=True, kw_only=True):
    """What a search brought: ids of requests, by lane and entry.  `why_not`: why some may have been missed, or ""."""

    ids: Mapping[tuple[str, str], str]
    why_not: str = ""


async def find_requests(broker: Broker, entries: Sequence[Delivery]) -> Found:
    """The ids of the requests that were begun for these entries, as far as their events streams still stand."""
    search = _Search(broker, entries)
    await search.look([broker.keys.events(each.entry) for each in entries])  # without an id of its own: most
    why_not = "" if search.is_over else await search.look_everywhere()
    return Found(ids=search.ids, why_not=why_not)


class _Search:
    def __init__(self, broker: Broker, entries: Sequence[Delivery]) -> None:
        self._pipe = broker.pipe
        self._prefix = broker.keys.events("")
        self._sought = {(each.lane, each.entry) for each in entries}
        self.ids: dict[tuple[str, str], str] = {}

    @property
    def is_over(self) -> bool:
        """Whether all have been found."""
        return len(self.ids) == len(self._sought)

    async def look_everywhere(self) -> str:
        """Look at every events stream that there is; returns why that could not be done, or ""."""
        cursor, generation = b"0", self._pipe.generation
        for _ in range(MAX_PAGES):
            try:
                cursor, keys = await self._pipe.call(
                    "SCAN", cursor, "MATCH", f"{self._prefix}*", "COUNT", PAGE_KEYS, "TYPE", "stream"
                )
            except ResponseError as error:
                return describe(error)
            await self.look([key.decode() for key in parts_of(keys) if _is_text(key)])
            if self.is_over:
                return ""
            if generation != self._pipe.generation:
                cursor, generation = b"0", self._pipe.generation  # maybe another server, which counts otherwise
            elif cursor == b"0":
                return ""
        return "there are too many keys"

    async def look(self, keys: Sequence[str]) -> None:
        """Note those of these streams that belong to an entry that is sought."""
        if not keys:
            return
        sought = [part for place in self._sought - self.ids.keys() for part in place]
        for position, entry, lane in await self._pipe.run_script(scripts.owned(streams=keys, sought=sought)):
            self.ids[lane.decode(), entry.decode()] = keys[position].removeprefix(self._prefix)


def _is_text(key: Part) -> TypeGuard[bytes]:
    """Whether a key can be that of a request, whose id is text; whoever may cancel may write any key."""
    if isinstance(key, CutBytes):
        return False
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True
