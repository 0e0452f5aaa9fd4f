"""Every Redis key is made here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Lane = Literal["high", "normal", "low"]
LANES: tuple[Lane, ...] = ("high", "normal", "low")
GROUP = "llm-router"
HANDED_BACK = "handed-back"  # the consumer that owns what was handed back


@dataclass(frozen=True)
class Keys:
    """The keys of one queue; on Redis Cluster the prefix has a hash tag (`{llm}`), so all lie in one slot."""

    prefix: str = "llm"

    def requests(self, lane: Lane) -> str:
        """The stream of a lane."""
        return self._requests[lane]

    @cached_property
    def lanes(self) -> tuple[str, ...]:
        """The streams of all lanes, the most urgent first."""
        return tuple(self._requests[lane] for lane in LANES)

    @cached_property
    def _requests(self) -> dict[Lane, str]:
        name = f"{self.prefix}:requests"
        return {"high": f"{name}:high", "normal": name, "low": f"{name}:low"}

    def events(self, request_id: str) -> str:
        """The events stream of a request, also the name of its Pub/Sub channel."""
        return f"{self.prefix}:events:{request_id}"

    @property
    def dead(self) -> str:
        """The stream of dead letters."""
        return f"{self.prefix}:dead"
