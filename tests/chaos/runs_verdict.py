"""What is true after a storm over runs with tools, beside what is true after any."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from llm_routerd.protocol.keys import Keys
from tests.chaos.verdict import LAG_SECONDS, RESUME_SECONDS, Event, Verdict, seconds_outside
from tests.chaos.world import Span
from tests.support.acting import acts
from tests.support.wire import check_transcript

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.chaos.producers import Order
    from tests.chaos.world import Life, World

_KEYS = Keys()
TOOLS = ("act", "act_again")  # the first one's effect is to be had once
LAST_WORD_SECONDS = 1.0  # from the last look at what was said to a run to its final event
CONFIRMATION_MS = 600_000  # agents.confirmation_seconds


class RunsVerdict(Verdict):
    """Also holds the tools, their streams and the models against the runs' events.

    Attributes:
        told: figures of the runs.
    """

    named = Verdict.named | {_KEYS.tools, *map(_KEYS.tool_calls, TOOLS)}

    def __init__(self, world: World, orders: Sequence[Order], acts_path: Path) -> None:
        super().__init__(world, orders)
        self._acts_path = acts_path
        self.told: dict[str, int] = {}

    async def reach(self, client: Any) -> None:
        """Look at everything."""
        await super().reach(client)
        ends = await self._read_ends(client)
        for order in self._orders:
            await self._journal_is_well_formed(client, order)
            if order.kind != "cancelled" and order.key_id in ends:
                await self._nothing_waits_in_its_inbox(client, order, ends[order.key_id])
        await self._no_call_was_put_twice(client)
        self._tools_acted_as_was_told()
        for order in self._orders:
            self.faults += self._asked_again(order)
            self.faults += self._given_up(order)
        kinds = Counter(event.kind for events in self._transcripts.values() for event in events)
        self.told = {kind: kinds[kind] for kind in ("turn", "tool_call", "confirmed", "denied", "tool_result")}
        self.told["acted"] = acts(self._acts_path).total()

    def _events(self, order: Order) -> list[Event]:
        return self._transcripts.get(order.events_key, [])

    async def _journal_is_well_formed(self, client: Any, order: Order) -> None:
        try:
            check_transcript(await client.xrange(order.events_key))
        except AssertionError as error:
            self.faults.append(f"{order.name}: {error}")

    async def _read_ends(self, client: Any) -> dict[str, float]:
        """When each request had its final event, as the metrics' IDs tell."""
        entries = await client.xrange("llm_router_metrics")
        return {json.loads(fields["data"])["id"]: _seconds(entry) for entry, fields in entries}

    async def _nothing_waits_in_its_inbox(self, client: Any, order: Order, ended_at: float) -> None:
        """What was said to a run has been taken in; what comes after its end goes with the key's TTL."""
        for key in (_KEYS.inbox(order.key_id or ""), _KEYS.consent(order.key_id or "")):
            for entry, fields in await client.xrange(key):
                if seconds_outside(Span(_seconds(entry), ended_at), self._world.troubles) > LAST_WORD_SECONDS:
                    self.faults.append(f"{order.name}: {fields} stands in {key}, said before the end")

    async def _no_call_was_put_twice(self, client: Any) -> None:
        """A stream counts what was ever added to it."""
        put: defaultdict[str, list[str]] = defaultdict(list)
        for events in self._transcripts.values():
            for event in events:
                if event.kind in {"tool_call", "confirmed"} and event.data.get("entry"):
                    name = event.data.get("name") or next(
                        each.data["name"]
                        for each in events
                        if each.kind == "tool_call" and each.data["call_id"] == event.data["call_id"]
                    )
                    put[name].append(event.data["entry"])
        for tool in TOOLS:
            added = (await client.xinfo_stream(_KEYS.tool_calls(tool)))["entries-added"]
            entries = put[tool]
            if added != len(entries) or len(set(entries)) != len(entries):
                self.faults.append(f"{tool}: {added} entries were added, {len(entries)} calls tell of one")

    def _tools_acted_as_was_told(self) -> None:
        acted = acts(self._acts_path)
        calls = {
            event.data["call_id"]: event.data["name"]
            for events in self._transcripts.values()
            for event in events
            if event.kind == "tool_call"
        }
        denied = {
            event.data["call_id"] for events in self._transcripts.values() for event in events if event.kind == "denied"
        }
        for call_id, count in acted.items():
            name = calls.get(call_id)
            if name is None:
                self.faults.append(f"{call_id} was acted on, and no event tells of it")
            elif name == TOOLS[0] and count > 1:
                self.faults.append(f"{call_id}: {name} acted {count} times")
            if call_id in denied:
                self.faults.append(f"{call_id} was acted on, and a person had denied it")
        for events in self._transcripts.values():
            for event in events:
                if event.kind == "tool_result" and event.data.get("error") is None and not acted[event.data["call_id"]]:
                    self.faults.append(f"{event.data['call_id']} has a result, and nobody acted")

    def _given_up(self, order: Order) -> Iterator[str]:
        """Whatever becomes of a server, it is no reason to end a run; that it has killed its workers is one."""
        final = self._events(order)[-1] if self._events(order) else None
        if final is not None and final.kind == "error" and final.data["code"] != "poisoned":
            yield f"{order.name} ended in {final.data['code']}: {final.data['message']}"

    def _asked_again(self, order: Order) -> Iterator[str]:
        """Whether a model was asked for a turn that stood; a worker that slept in between may not know that it does."""
        events = self._events(order)
        calls = [call for call in self.calls if call.name == order.name]
        attempts, stood = _turns(events)
        for turn, count in Counter(call.turn for call in calls).items():
            if count > attempts[turn]:
                yield f"{order.name}: turn {turn} was asked for {count} times, in {attempts[turn]} attempts"
        for call in calls:
            at = stood.get(call.turn)
            if at is not None and call.start > at + LAG_SECONDS and not _slept(call.worker, call.start):
                yield f"{order.name}: turn {call.turn} was asked for {call.start - at:.2f} s after it stood"


def _seconds(entry: str) -> float:
    """Unix time of an ID that the server has made."""
    return int(entry.partition("-")[0]) / 1000


def _slept(worker: Life, at: float) -> bool:
    return any(stop.start < at < stop.end + RESUME_SECONDS for stop in worker.stops)


def _turns(events: Sequence[Event]) -> tuple[Counter[int], dict[int, float]]:
    """How many attempts there were for each turn, and when it stood, where its calls tell."""
    attempts: Counter[int] = Counter()
    stood: dict[int, float] = {}
    turn = 1
    for event in events:
        if event.kind == "attempt":
            attempts[turn] += 1
        elif event.kind == "tool_call":
            entry, expires_at = event.data.get("entry"), event.data.get("expires_at_ms")
            if entry is not None:
                stood[turn] = _seconds(entry)
            elif expires_at is not None:
                stood[turn] = (expires_at - CONFIRMATION_MS) / 1000
        elif event.kind == "turn":
            turn = event.data["turn"] + 1
    return attempts, stood
