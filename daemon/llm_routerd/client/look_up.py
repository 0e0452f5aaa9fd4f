"""Is a request in a lane?  Its id stands in the body of an entry, so that the entries have to be looked at.

That is asked of requests without events: those that are queued.  The server looks, page by page, and sends no body.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct
from redis.exceptions import ResponseError

from llm_routerd.client.events import as_text, is_stream_id
from llm_routerd.queue import scripts
from llm_routerd.queue.connection import is_unfit
from llm_routerd.queue.connection.pooled import run_script

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio import Redis

    from llm_routerd.protocol.keys import Keys

scripts.look_up.put_together()

MOST_ENTRIES = 100_000  # of all lanes together
_PAGE_ENTRIES = 500  # some milliseconds, in which the server does nothing else
_PAGE_BYTES = 2**20


class Sighting(Struct, frozen=True, kw_only=True):
    """What a look for a request brought.

    Attributes:
        is_known: it has events, or stands in a lane.
        why_unsure: why it may be there all the same; "": it is not.
        others: ids of the requests in the lanes that were looked at.
        prefix: what the keys begin with of the shard that has it; "": none.
    """

    is_known: bool
    why_unsure: str = ""
    others: tuple[str, ...] = ()
    prefix: str = ""


class LaneSearch:
    """One look for one request in all lanes of a shard; what stands there all the while is found."""

    def __init__(
        self,
        where: Callable[[], Redis],
        keys: Keys,
        request_id: str,
        patiently: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]],
    ) -> None:
        """Prepare it; `where` is the server by now, `patiently` runs an operation until it succeeds, or raises."""
        self._where = where
        self._keys = keys
        self._id = request_id
        self._patiently = patiently
        self._left = MOST_ENTRIES
        self._others: list[str] = []

    async def run(self) -> Sighting:
        """Look at the newest entries first; where a right is missing, or too many are queued, the answer is unsure."""
        unsure = ""
        for lane in self._keys.lanes:
            # An id that XADD gave is found at once.
            if is_stream_id(self._id) and (page := await self._page(lane, self._id, 1)) and page[0]:
                return Sighting(is_known=True, prefix=self._keys.prefix)
            before = "+"
            while before and not unsure:
                page = await self._page(lane, before, min(_PAGE_ENTRIES, self._left))
                if page is None:
                    unsure = "it may be queued: this user may not look into the lanes"
                    break
                found, before, ids = page
                if found:
                    return Sighting(is_known=True, prefix=self._keys.prefix)
                self._others += ids
                self._left -= len(ids)
                if before and self._left <= 0:
                    unsure = f"it may be queued: {MOST_ENTRIES} entries were looked at, and there are more"
        return Sighting(is_known=False, why_unsure=unsure, others=tuple(self._others))

    async def _page(self, lane: str, before: str, most: int) -> tuple[bool, str, list[str]] | None:
        """Whether it was found, where to go on, the ids of the others; None: this user may not look."""
        call = scripts.look_up(requests=lane, before=before, request_id=self._id, most=most, most_bytes=_PAGE_BYTES)

        async def look() -> Any:
            try:
                return await run_script(self._where(), call)
            except ResponseError as error:
                if is_unfit(error):
                    raise
                return await self._emptiness(lane)

        reply = await self._patiently(look)
        if reply is None:
            return None
        found, go_on, ids = reply
        return bool(found), as_text(go_on), [as_text(each) for each in ids]

    async def _emptiness(self, lane: str) -> tuple[int, str, list[str]] | None:
        """What a producer, who may count the entries and not read them, can say: an empty lane has none."""
        try:
            return None if await self._where().xlen(lane) else (0, "", [])
        except ResponseError as error:
            if is_unfit(error):
                raise
            return None
