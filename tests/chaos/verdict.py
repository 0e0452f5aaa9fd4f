"""What is true after a storm, read from the streams, from the stand-in's log, and from the driver's own timeline.

Times are Unix seconds of this machine, which all processes share.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import GROUP, Keys
from tests.chaos.producers import NEVER_ANSWERED
from tests.chaos.world import Life, Span

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.chaos.producers import Order
    from tests.chaos.world import World

_KEYS = Keys()

# The stand-in sees that its client has left only when both event loops come round, on a machine that runs six
# processes of this test beside others.
LAG_SECONDS = 0.5
# A worker that was stopped finds out that it has lost its leases on its first tick, and closes the calls.
RESUME_SECONDS = 1.0 + LAG_SECONDS
# The protocol's second for a cancellation to be noticed.
CANCEL_SECONDS = 1.0 + LAG_SECONDS
# After the server's trouble: the longest backoff, and the tick after it.
RECOVERY_SECONDS = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A call to a model, as the stand-in saw it; `worker` is the process that made it."""

    name: str
    model: str
    start: float
    end: float
    how: str
    worker: Life
    turn: int = 1

    def overlap(self, other: Call) -> Span:
        """When both ran; ends before it starts where they did not."""
        return Span(max(self.start, other.start), min(self.end, other.end))


@dataclass(frozen=True, slots=True)
class Event:
    """An entry of an events stream."""

    attempt: int
    seq: int
    kind: str
    data: dict[str, Any]


def seconds_outside(span: Span, excluded: Iterable[Span]) -> float:
    """How much of `span` lies in none of `excluded`."""
    total, at = 0.0, span.start
    for each in sorted(excluded, key=lambda other: other.start):
        total += max(0.0, min(each.start, span.end) - at)
        at = max(at, each.end)
    return total + max(0.0, span.end - at)


def read_calls(world: World) -> list[Call]:
    """The calls that have ended, in the order of their ends."""
    calls = [json.loads(line) for line in world.calls_path.read_text().splitlines()]
    return [
        Call(
            name=call["id"],
            model=call["model"],
            start=call["start"],
            end=call["end"],
            how=call["how"],
            turn=call["turn"],
            worker=_worker_of(world, int(call["model"].rpartition("-")[2]), call["start"]),
        )
        for call in calls
    ]


def _worker_of(world: World, slot: int, start: float) -> Life:
    """The last worker of the slot that had been started by then: the models' names tell the slot."""
    return max(
        (life for number, life in world.lives() if number == slot and life.start <= start),
        key=lambda life: life.start,
    )


class Verdict:
    """Gathers what is wrong; `faults` is empty if nothing is."""

    named = frozenset({*_KEYS.lanes, _KEYS.dead, _KEYS.audit, "llm_router_metrics"})  # keys that are there for ever

    def __init__(self, world: World, orders: Sequence[Order]) -> None:
        self._world = world
        self._orders = [order for order in orders if order.key_id is not None]
        self._transcripts: dict[str, list[Event]] = {}
        self.calls: list[Call] = []
        self.faults: list[str] = []
        self.endings: Counter[str] = Counter()

    async def reach(self, client: Any) -> None:
        """Look at everything."""
        await self._read_events(client)
        self.calls = read_calls(self._world)
        await self._nothing_is_left(client)
        await self._every_refused_request_is_kept(client)
        self._every_request_has_one_end()
        for key, events in self._transcripts.items():
            self._transcript_is_whole(key, events)
        self._no_call_is_made_without_an_attempt()
        self._no_request_ran_twice_at_once()
        self._no_call_outlives_its_cancellation()

    async def _read_events(self, client: Any) -> None:
        async for key in client.scan_iter(match="llm:events:*", count=1000):
            events = []
            for event_id, fields in await client.xrange(key):
                attempt, _, seq = event_id.partition("-")
                events.append(Event(int(attempt), int(seq), fields["type"], json.loads(fields["data"])))
            self._transcripts[key] = events

    async def _nothing_is_left(self, client: Any) -> None:
        for lane in _KEYS.lanes:
            if waiting := await client.xlen(lane):
                self.faults.append(f"{lane} still holds {waiting} entries")
            if pending := (await client.xpending(lane, GROUP))["pending"]:
                self.faults.append(f"{lane} still has {pending} pending entries")
        for key in await client.keys("*"):
            if key not in self.named and await client.pttl(key) < 0:
                self.faults.append(f"{key} has no TTL")

    async def _every_refused_request_is_kept(self, client: Any) -> None:
        kept = {fields["id"] for _, fields in await client.xrange(_KEYS.dead)}
        for order in self._orders:
            if order.kind in NEVER_ANSWERED and order.accepted and order.key_id not in kept:
                self.faults.append(f"{order.name}: {order.kind}, and not among the dead letters")

    def _every_request_has_one_end(self) -> None:
        for order in self._orders:
            if order.accepted and order.events_key not in self._transcripts:
                self.faults.append(f"{order.name} ({order.kind}): no events at all")
        for key, events in self._transcripts.items():
            ends = [event for event in events if f"{event.attempt}-{event.seq}" == FINAL_ID]
            self.endings.update(event.kind for event in ends)
            if len(ends) != 1 or events[-1] is not ends[0]:
                self.faults.append(f"{key}: {len(ends)} final events")

    def _transcript_is_whole(self, key: str, events: list[Event]) -> None:
        """Attempts and their events are numbered without a gap, each attempt names itself first, and text adds up.

        The text is that of the last attempt, unless a worker that had lost the request brought its answer first.
        """
        expected = (1, 0)
        text = ""
        workers = {event.data["consumer"] for event in events if event.kind == "attempt"}
        for event in events[:-1]:
            if (event.attempt, event.seq) not in {expected, (expected[0] + 1, 0)} or (expected[1] == 0 and event.seq):
                self.faults.append(f"{key}: {event.attempt}-{event.seq} where {expected} was due")
                return
            if (event.seq == 0) != (event.kind == "attempt"):
                self.faults.append(f"{key}: {event.attempt}-{event.seq} is of type {event.kind}")
            text = "" if event.seq == 0 else text + event.data.get("text", "")
            expected = (event.attempt, event.seq + 1)
        final = events[-1]
        if final.kind == "result" and len(workers) == 1 and text not in {"", final.data["raw_text"]}:
            self.faults.append(f"{key}: the last attempt's text is not the answer's")

    def _no_call_is_made_without_an_attempt(self) -> None:
        made = Counter(call.name for call in self.calls)
        for order in self._orders:
            if order.events_key in self._transcripts:
                told = sum(event.kind == "attempt" for event in self._transcripts[order.events_key])
                if made[order.name] > told:
                    self.faults.append(f"{order.name}: {made[order.name]} calls, and {told} attempts were told")

    def _no_request_ran_twice_at_once(self) -> None:
        """Nor did a call run on after a later one had begun: it is the same thing seen from the other side."""
        by_name: defaultdict[str, list[Call]] = defaultdict(list)
        for call in self.calls:
            by_name[call.name].append(call)
        for name, calls in by_name.items():
            for one, other in itertools.combinations(calls, 2):
                both = seconds_outside(one.overlap(other), [*self._asleep(one.worker), *self._asleep(other.worker)])
                if both > LAG_SECONDS:
                    self.faults.append(
                        f"{name} ran twice at once for {both:.2f} s: {one.model} (pid {one.worker.pid})"
                        f" and {other.model} (pid {other.worker.pid}), from {one.overlap(other).start:.2f}"
                    )

    def _no_call_outlives_its_cancellation(self) -> None:
        cancelled = {order.name: order.cancelled_at for order in self._orders if order.cancelled_at is not None}
        troubles = [Span(each.start, each.end + RECOVERY_SECONDS) for each in self._world.troubles]
        for call in self.calls:
            if (at := cancelled.get(call.name)) is None:
                continue
            after = seconds_outside(Span(max(at, call.start), call.end), [*troubles, *self._asleep(call.worker)])
            if after > CANCEL_SECONDS:
                self.faults.append(f"{call.name} ran on for {after:.2f} s after its cancellation ({call.model})")

    @staticmethod
    def _asleep(worker: Life) -> list[Span]:
        """When a worker was not live: stopped (and the time it takes to let go after that), or dead."""
        stops = [Span(each.start, each.end + RESUME_SECONDS) for each in worker.stops]
        return [*stops, Span(worker.end, float("inf"))]
