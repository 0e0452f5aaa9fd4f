"""Streams whose IDs run ahead of the clock are found and made anew, so that one producer cannot stop a lane for good.

XADD takes any ID that is larger than the last, up to one after which nobody can add any more.  Each tick looks at the
lanes, the dead letters and the metrics.  A worker that is given an entry from far ahead hands it back before anything
is begun, and mends the lane at once: as long as nobody is busy with such an entry it can be moved, and the producers
behind it are not kept waiting for its answer.  Where that cannot be, it is answered as any other, and the lane mended
after it: an answer that is under way is never moved, which could ask for it twice.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llm_routerd.accounting.tally import Tally
from llm_routerd.logs import get_logger
from llm_routerd.queue.connection import ResponseError, describe
from llm_routerd.queue.mending import ahead_ms, mend
from llm_routerd.worker.leases import TICK_SECONDS, TICKS_PER_LEASE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.accounting.metrics import Metrics
    from llm_routerd.queue.broker import Broker
    from llm_routerd.worker.inflight import InFlight

log = get_logger()

_WHO = (
    "whoever may add to this stream can give an ID of his own, and one was far ahead of the server's clock; or that "
    "clock was set back"
)
_WHY_NOT = {
    "busy": "an entry from ahead is under way; once it is answered",
    "large": "it has too many entries, or too large ones; once they are fewer",
    "denied": "the ACL refuses a command that it takes",
}


class Mending:
    """Looks and mends with each tick, and when a delivery asks for it.

    Args:
        broker: this worker's side of the queue.
        metrics: counts what was mended.
    """

    def __init__(self, *, broker: Broker, metrics: Metrics) -> None:
        self._broker = broker
        self._metrics = metrics
        self._tick_seconds = min(TICK_SECONDS, broker.limits.lease_ms / 1000 / TICKS_PER_LEASE)
        self._told: dict[str, str] = {}  # what is said of a stream that cannot be mended yet
        self._refused: set[tuple[str, ...]] = set()

    @property
    def ahead_ms(self) -> int:
        """How far ahead of the clock an ID may lie; a reload may change it."""
        return ahead_ms(self._broker)

    async def run(self) -> None:
        """Mend until cancelled."""
        while True:
            await self._broker.pipe.ready()
            await self.tick()
            await asyncio.sleep(self._tick_seconds)

    async def tick(self) -> None:
        """One look at everything; on a cluster the metrics may lie elsewhere, and are looked at by themselves."""
        keys = self._broker.keys
        await self._mend(keys.lanes, (keys.dead,))
        await self._mend((), (self._broker.limits.metrics_channel,))

    async def give_way(self, item: InFlight) -> bool:
        """Hand back an entry from ahead before it is begun, and mend its lane; False: it is to be answered as it is.

        It is then delivered anew, moved or not.
        """
        if item.delivery.claimed:  # it has given way once; or it had a worker, that may have begun it
            return False
        item.is_ending = item.gives_way = True
        try:
            given = await self._broker.hand_back([item.delivery])
        except ResponseError:
            given = 0
        item.is_ending, item.gives_way = False, bool(given)
        if given:
            log.info("request_from_ahead", entry=item.delivery.entry, lane=item.delivery.lane)
            await self._mend((self._broker.keys.requests(item.delivery.lane),), ())
        return bool(given)

    async def _mend(self, lanes: Sequence[str], others: Sequence[str]) -> None:
        try:
            found = {each.key: each for each in await mend(self._broker, lanes, others)}
        except ResponseError as error:  # told once, and done without
            if (*lanes, *others) not in self._refused:
                self._refused.add((*lanes, *others))
                log.warning("streams_not_looked_at", why=describe(error))
            return
        for key in (*lanes, *others):
            each = found.get(key)
            if each is None or each.verdict == "mended":
                self._told.pop(key, None)
            if each is None:
                continue
            if each.verdict == "mended":
                self._metrics.count(Tally.MENDED)
                log.warning("stream_mended", key=key, moved=each.moved, last_id=each.last_id, why=_WHO)
            elif self._told.get(key) != each.verdict:
                self._told[key] = each.verdict
                log.warning("stream_ahead_of_clock", key=key, last_id=each.last_id, mended_when=_WHY_NOT[each.verdict])
