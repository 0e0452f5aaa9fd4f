"""What comes to a worker: new requests are the reader's; those that others have let go are claimed here."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llm_routerd.protocol.keys import GROUP, LANES, is_handed_back
from llm_routerd.queue import scripts
from llm_routerd.queue.connection import ResponseError
from llm_routerd.queue.deliveries import Backlog, Claim, Delivery, next_cursor, parse_claimed, parse_gone
from llm_routerd.queue.member import Member

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.protocol.keys import Keys, Lane
    from llm_routerd.queue.connection import Pipe
    from llm_routerd.queue.deliveries import Limits
    from llm_routerd.queue.scripts.binding import Call

MOST_CLAIMED = 100  # by one command
OWN_PENDING = 1000
ORPHANS = 1000  # at most, of one lane in one sweep
ORPHANS_PAGE = 50


class Intake(Member):
    """Takes over what is nobody's, or no longer another's."""

    def __init__(self, pipe: Pipe, keys: Keys, *, consumer: str, limits: Limits) -> None:
        super().__init__(pipe, keys, consumer=consumer, limits=limits)
        self._cursors: dict[Lane, str | bytes] = dict.fromkeys(LANES, "-")

    async def claim(self, *, room: int, server_ms: float | None = None, before_new: bool = False) -> Claim:
        """Take over up to `room` entries whose worker has not renewed its lease, the urgent lanes first.

        Args:
            room: how many at most; 0: to look only whether there are any.
            server_ms: the server's time now, as far as it is known: if this gets there much later, nothing is taken.
            before_new: new requests wait, and are not to be kept waiting by those of a less urgent lane.
        """
        deliveries: list[Delivery] = []
        gone: list[Delivery] = []
        for lane in LANES:
            most = min(MOST_CLAIMED, room - len(deliveries))
            call = self._claim_call(lane, "", most, self._cursors[lane], server_ms=server_ms)
            self._cursors[lane], claimed, missing, late, left, unread = await self.run_with_groups(call)
            deliveries += parse_claimed(lane, claimed)
            gone += parse_gone(lane, missing)
            is_full = 0 < room <= len(deliveries)
            more = bool(left) or (is_full and lane != LANES[-1])  # what other lanes have is not known then
            if late or more or is_full or (before_new and unread):
                return Claim(deliveries=deliveries, gone=gone, late=bool(late), more=more)
        return Claim(deliveries=deliveries, gone=gone)

    async def claim_of(self, owner: str, *, count: int, before_new: bool = False) -> Claim:
        """Take up to `count` of the entries that `owner` has, whatever their lease; else as `claim`."""
        deliveries: list[Delivery] = []
        gone: list[Delivery] = []
        more, unread = False, 0
        for lane in LANES:
            cursor: bytes | None = b"-"
            while cursor and len(deliveries) < count + (not count and not more):
                call = self._claim_call(lane, owner, count - len(deliveries), cursor)
                following, claimed, missing, _, left, unread = await self.run_with_groups(call)
                cursor = next_cursor(following)
                deliveries += parse_claimed(lane, claimed, own=owner == self.consumer)
                gone += parse_gone(lane, missing)
                more = bool(left)
            if before_new and unread:
                break
        return Claim(deliveries=deliveries, gone=gone, more=more)

    def own_call(self, lane: Lane, cursor: bytes) -> Call:
        """What gives this worker a page of its own entries of a lane, whose reply may have been lost."""
        return self._claim_call(lane, self.consumer, OWN_PENDING, cursor)

    def _claim_call(
        self, lane: Lane, owner: str, most: int, cursor: str | bytes, *, server_ms: float | None = None
    ) -> Call:
        return scripts.claim(
            requests=self.keys.requests(lane),
            consumer=self.consumer,
            lease_ms=self.limits.lease_ms,
            most=most,
            cursor=cursor,
            from_owner=owner,
            asked_ms=None if server_ms is None else round(server_ms),
            late_ms=self.late_ms,
            registry=self.keys.workers,
        )

    async def find_orphans(self, lane: Lane) -> list[str]:
        """The entries of a lane that were delivered once and that nobody owns; see `find_orphans.lua`."""
        orphans: list[str] = []
        cursor: bytes | None = b"-"
        while cursor and len(orphans) < ORPHANS:
            call = scripts.find_orphans(requests=self.keys.requests(lane), most=ORPHANS_PAGE, cursor=cursor)
            following, found = await self.run_with_groups(call)
            cursor = next_cursor(following)
            orphans += [entry.decode() for entry in found]
        return orphans

    async def take_orphans(
        self,
        lane: Lane,
        entries: Sequence[str],
        *,
        seen_for_ms: int,
        server_ms: float | None = None,
        owner: str | None = None,
    ) -> list[Delivery]:
        """Those of them that are orphans still, from now on this worker's; none where this gets there late.

        Args:
            lane: of the entries.
            entries: that have been orphans for so long:
            seen_for_ms: no shorter than the lease of any living worker, or none is taken.
            server_ms: as in `claim`.
            owner: whose they are to be, if not this worker's: that of what was handed back; they have no fields then.
        """
        deliveries: list[Delivery] = []
        left = list(entries)
        while left:
            call = scripts.take_orphans(
                requests=self.keys.requests(lane),
                owner=owner or self.consumer,
                asked_ms=None if server_ms is None else round(server_ms),
                late_ms=self.late_ms,
                registry=self.keys.workers,
                lease_ms=self.limits.lease_ms,
                seen_for_ms=seen_for_ms,
                entries=left,
            )
            following, taken = await self.run_with_groups(call)
            cursor = next_cursor(following)
            left = left[left.index(cursor.decode()) + 1 :] if cursor else []
            deliveries += [
                Delivery(lane=lane, entry=entry.decode(), fields=fields, claimed=True) for entry, fields in taken
            ]
        return deliveries

    async def backlog(self, lane: Lane) -> Backlog | None:
        """How many entries of a lane wait; None: Redis cannot tell."""
        key = self.keys.requests(lane)
        try:
            length, pending = await asyncio.gather(self.pipe.call("XLEN", key), self.pipe.call("XPENDING", key, GROUP))
        except ResponseError:
            return None  # no stream, or one without our group
        handed_back = sum(int(count) for name, count in pending[3] or () if is_handed_back(name.decode()))
        return Backlog(unread=max(0, int(length) - int(pending[0])), handed_back=handed_back)  # what is done is deleted
