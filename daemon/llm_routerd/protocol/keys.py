"""Every Redis key is made here."""

from __future__ import annotations

from binascii import crc_hqx
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Lane = Literal["high", "normal", "low"]
LANES: tuple[Lane, ...] = ("high", "normal", "low")
GROUP = "llm-router"
TOOL_GROUP = "llm-tools"  # of all who serve a tool, on its stream: a second group would act twice
ALWAYS = "always:"  # before the name of a tool: the group of a consent stream that says it waits for nobody any more
HANDED_BACK = "handed-back"  # the consumer that owns what was handed back
HANDED_BACK_IDLE_MS = 172_800_000  # beyond any lease, whoever's it is: see MOST_LEASE_MS in workers.lua


@dataclass(frozen=True)
class Keys:
    """The keys of one queue, or of one shard of it; with a hash tag in the prefix (`{llm}`) all lie in one slot."""

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
    def tools(self) -> str:
        """The hash in which tools are registered, by name."""
        return f"{self.prefix}:tools"

    def tool_calls(self, name: str) -> str:
        """The stream of one tool's calls."""
        return f"{self.prefix}:tools:{name}"

    def inbox(self, request_id: str) -> str:
        """The stream of what tools answer to a request's calls."""
        return f"{self.prefix}:inbox:{request_id}"

    @property
    def audit(self) -> str:
        """The stream of what was called, and who agreed to it."""
        return f"{self.prefix}:audit"

    def consent(self, request_id: str) -> str:
        """The stream of what people said to a request's tool calls."""
        return f"{self.prefix}:consent:{request_id}"

    @property
    def workers(self) -> str:
        """The hash in which the workers tell each other what they need to know; see `workers.lua`."""
        return f"{self.prefix}:workers"

    @property
    def boxes(self) -> str:
        """The hash of what is known of the local boxes, by name; see `boxes.lua`.

        It and the two below are kept with the first shard's keys (`Layout.keys[0]`), whichever shards a request or a
        worker belongs to: boxes are everybody's, and one script has to see all that is on them.
        """
        return f"{self.prefix}:boxes"

    @property
    def box_calls(self) -> str:
        """The hash of the calls that hold a slot of a box, by token."""
        return f"{self.prefix}:boxes:calls"

    @property
    def box_waiting(self) -> str:
        """The hash of the calls that wait for a box, by token."""
        return f"{self.prefix}:boxes:waiting"

    @property
    def dead(self) -> str:
        """The stream of dead letters."""
        return f"{self.prefix}:dead"


@dataclass(frozen=True)
class Layout:
    """How a queue is spread over shards, each a queue of its own in a slot of its own.

    One shard is the plain layout, whose keys begin with the prefix as it is.  Of several each has a hash tag:
    `{llm:0}`, `{llm:1}`, …; a prefix that has a tag already gets the number within it (`home:{llm:0}`).
    """

    prefix: str = "llm"
    shards: int = 1

    @cached_property
    def keys(self) -> tuple[Keys, ...]:
        """Those of each shard, by its number."""
        if self.shards == 1:
            return (Keys(self.prefix),)
        before, _, rest = self.prefix.partition("{")
        tag, end, after = rest.partition("}")
        if not (tag and end):  # what Redis Cluster takes for none
            before, tag, after = "", self.prefix.replace("{", "").replace("}", "") or "llm", ""
        return tuple(Keys(f"{before}{{{tag}:{shard}}}{after}") for shard in range(self.shards))

    def shard_of(self, request_id: str) -> int:
        """The shard that a request with this id belongs to: CRC16 (XMODEM, as Redis Cluster has it) modulo shards."""
        return crc_hqx(request_id.encode(), 0) % self.shards

    def keys_of(self, request_id: str) -> Keys:
        """The keys of that shard."""
        return self.keys[self.shard_of(request_id)]

    def metrics_channel(self, shard: int, channel: str) -> str:
        """The metrics stream of a shard, and the name of its Pub/Sub channel: in the slot of the shard's keys."""
        return channel if self.shards == 1 else f"{self.keys[shard].prefix}:{channel}"


def handed_back_for(model: str) -> str:
    """The consumer that owns what was handed back for a worker that knows this model."""
    return f"{HANDED_BACK}:{model}"


def is_handed_back(consumer: str) -> bool:
    """Whether a consumer is no worker, but the owner of what was handed back."""
    return consumer.partition(":")[0] == HANDED_BACK
