"""Every Redis key is made here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Lane = Literal["high", "normal", "low"]
LANES: tuple[Lane, ...] = ("high", "normal", "low")
GROUP = "llm-router"
HANDED_BACK = "handed-back"  # the consumer that owns what was handed back


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one queue; on Redis Cluster the prefix is a hash tag (`{llm}`), so all lie in one slot."""

    prefix: str = "llm"

    def requests(self, lane: Lane) -> str:
        """The stream of a lane."""
        return f"{self.prefix}:requests" if lane == "normal" else f"{self.prefix}:requests:{lane}"

    @property
    def lanes(self) -> tuple[str, ...]:
        """The streams of all lanes, the most urgent first."""
        return tuple(self.requests(lane) for lane in LANES)

    def events(self, request_id: str) -> str:
        """The events stream of a request, also the name of its Pub/Sub channel."""
        return f"{self.prefix}:events:{request_id}"

    @property
    def dead(self) -> str:
        """The stream of dead letters."""
        return f"{self.prefix}:dead"
