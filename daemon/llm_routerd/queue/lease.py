"""What says that a worker lives: its leases, its registration with the others, and its leaving."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from llm_routerd.queue import scripts
from llm_routerd.queue.deliveries import Renewal, places_of, text_of
from llm_routerd.queue.member import Member

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.queue.deliveries import Delivery
    from llm_routerd.queue.scripts.binding import Call

STALE_CONSUMER_SECONDS = 3600.0


class Lease(Member):
    """Keeps what is ours, and tells the others."""

    async def renew(self, in_flight: Sequence[tuple[Delivery, str]]) -> Renewal:
        """Renew the leases and TTLs of what is in flight, and tell the others of this worker; see `renew.lua`.

        Args:
            in_flight: each entry, and the key of its events.
        """
        call = scripts.renew(
            lanes=self.keys.lanes,
            streams=[events_key for _, events_key in in_flight],
            consumer=self.consumer,
            ttl_ms=self.limits.result_ttl_ms,
            registry=self.keys.workers,
            lease_ms=self.limits.lease_ms,
            models=orjson.dumps(self.models),
            entries=places_of(delivery for delivery, _ in in_flight),
        )
        lost, sealed, server_ms, longest_ms, complaint = await self.run_with_groups(call)
        self.on_registration(text_of(complaint))
        return Renewal(lost=lost, sealed=sealed, server_ms=server_ms, longest_lease_ms=longest_ms)

    async def sealed(self, events_keys: Sequence[str]) -> Sequence[int]:
        """Positions of those that somebody else has ended."""
        found: list[int] = await self.pipe.run_script(scripts.sealed(streams=events_keys))
        return found

    async def retire(self, *, oneself: bool) -> None:
        """Remove consumers that own nothing and have been silent for an hour; and, at the end, oneself."""
        await self.pipe.run_script(self.retire_call(oneself=oneself))

    def retire_call(self, *, oneself: bool) -> Call:
        """What does that, for whoever has a connection of its own."""
        return scripts.retire(
            lanes=self.keys.lanes,
            leaving=self.consumer if oneself else "",
            silent_ms=int(STALE_CONSUMER_SECONDS * 1000),
            registry=self.keys.workers,
        )
