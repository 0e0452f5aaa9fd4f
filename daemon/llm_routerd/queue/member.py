"""What a worker has at the queue: its place in the consumer groups, and the way there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_routerd.protocol.keys import LANES
from llm_routerd.queue.connection import ResponseError, is_missing_group
from llm_routerd.queue.lanes import LaneTypes
from llm_routerd.queue.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from llm_routerd.protocol.keys import Keys
    from llm_routerd.queue.connection import Pipe
    from llm_routerd.queue.deliveries import Limits
    from llm_routerd.queue.scripts.binding import Call


class Member:
    """One consumer of the groups; all that it says goes through one pipe.

    Attributes:
        pipe: to Redis.
        keys: of the queue.
        consumer: its name.
        limits: that hold for what it does.
        outbox: the events of its requests on their way.
        lane_types: which lanes can be served.
        models: that a request may name here, as the other workers are told.
        on_registration: called with each renewal: why they cannot be told; None: they can.
    """

    def __init__(self, pipe: Pipe, keys: Keys, *, consumer: str, limits: Limits) -> None:
        self.pipe = pipe
        self.keys = keys
        self.consumer = consumer
        self.limits = limits
        self.outbox = Outbox(pipe)
        self.lane_types = LaneTypes(keys)
        self.models: Sequence[str] = ()
        self.on_registration: Callable[[str | None], object] = lambda _why: None

    async def create_groups(self) -> None:
        """Create the consumer groups that are missing; notes which lanes are none."""
        for lane in LANES:
            await self.lane_types.make_group(self.pipe.call, lane)

    async def run_with_groups(self, call: Call) -> Any:
        """Run a script, once more where the groups that it needs had to be made first."""
        return await self._with_groups(lambda: self.pipe.run_script(call))

    async def _with_groups(self, run: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await run()
        except ResponseError as error:
            if not is_missing_group(error):
                raise
        await self.create_groups()
        return await run()

    async def server_ms(self) -> int:
        """The server's Unix time in ms."""
        seconds, micros = await self.pipe.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    @property
    def late_ms(self) -> int:
        """How late an answer may be before leases may have run out for it."""
        return self.limits.lease_ms // 4
