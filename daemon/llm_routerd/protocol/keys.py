"""Every Redis key is made here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Lane = Literal["high", "normal", "low"]
LANES: tuple[Lane, ...] = ("high", "normal", "low")
GROUP = "llm-router"
HANDED_BACK = "handed-back"  # the consumer that owns what was handed back
HANDED_BACK_IDLE_MS = 172_800_000  # beyond any lease, whoever's it is: see MOST_LEASE_MS in workers.lua


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
    def workers(self) -> str:
        """The hash in which the workers tell each other what they need to know; see `workers.lua`."""
        return f"{self.prefix}:workers"

    @property
    def dead(self) -> str:
        """The stream of dead letters."""
        return f"{self.prefix}:dead"


def handed_back_for(model: str) -> str:
    """The consumer that owns what was handed back for a worker that knows this model."""
    return f"{HANDED_BACK}:{model}"


def is_handed_back(consumer: str) -> bool:
    """Whether a consumer is no worker, but the owner of what was handed back."""
    return consumer.partition(":")[0] == HANDED_BACK
