"""The picture of the local boxes in one process, for who has no Redis: the same verbs, and the same rules."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import asdict, replace

from llm_routerd.queue.picture import (
    LEASE_SECONDS,
    MOST_BOXES,
    MOST_MODELS,
    MOST_NAME,
    MOST_SECONDS,
    MOST_TOLD,
    MOST_WAITING,
    REPORT_SECONDS,
    SEEN_SECONDS,
    BoxCall,
    BoxSeen,
    Occupied,
    Picture,
    Resident,
    WaitingCall,
    as_ms,
    bounded_call,
    bounded_report,
    bounded_waiting,
    in_order,
    oldest_first,
    seconds_within,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llm_routerd.queue.picture import BoxReport, CallDetails, Quiet, Waits
    from llm_routerd.queue.power import Power


class _Known(Struct, frozen=True, kw_only=True):
    """What was reported of a box, and until when that counts."""

    until_ms: int = 0
    fresh_until_ms: int = 0
    seen: BoxSeen = BoxSeen()

    def at(self, now_ms: int) -> BoxSeen:
        """What of it is true still."""
        down = self.seen.down_until_ms
        seen = replace(self.seen, down_until_ms=down if down is not None and down > now_ms else None)
        return seen if self.fresh_until_ms > now_ms else replace(seen, resident=None, loading={})

    def merged(self, said: BoxReport, now_ms: int, fresh_ms: int) -> _Known:
        """With what was said since."""
        before = self.at(now_ms)
        resident, loading, fresh_until_ms = before.resident, before.loading, self.fresh_until_ms
        if said.resident is not None:
            stood = before.resident or {}
            resident = {
                model: Resident(bytes=size, since_ms=stood[model].since_ms if model in stood else now_ms)
                for model, size in said.resident.items()
            }
            loading = {model: before.loading.get(model, now_ms) for model in said.loading}
            fresh_until_ms = now_ms + fresh_ms
        down_until_ms, power = before.down_until_ms, before.power
        is_old = bool(said.down_seconds) and power.awake_ms > now_ms - said.age_seconds * 1000
        if said.down_seconds is not None and not is_old:
            down_until_ms = now_ms + round(said.down_seconds * 1000)
            power = power.silent() if said.down_seconds > 0 else power.answered(now_ms)
        seen = BoxSeen(
            resident=resident,
            loading=loading,
            load_seconds=_latest(said.load_seconds, before.load_seconds),
            tokens_per_second=_latest(said.tokens_per_second, before.tokens_per_second),
            down_until_ms=down_until_ms,
            power=power,
        )
        return _Known(until_ms=now_ms + round(SEEN_SECONDS * 1000), fresh_until_ms=fresh_until_ms, seen=seen)


def _latest(said: Mapping[str, float], known: Mapping[str, float]) -> dict[str, float]:
    """By model what is said now, and what is known of other models, while there is room."""
    return dict(list({**said, **{model: known[model] for model in known if model not in said}}.items())[:MOST_MODELS])


class LocalBoxes:
    """One worker's verbs on a picture of its own; see `picture.Boxes`."""

    def __init__(
        self,
        *,
        worker: str = "",
        lease_seconds: float = LEASE_SECONDS,
        report_seconds: float = REPORT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare them; `clock` gives seconds."""
        self.refusal: str | None = None
        self._worker = worker[:MOST_NAME]
        self._lease_ms = round(lease_seconds * 1000)
        self._fresh_ms = round(report_seconds * 1000)
        self._clock = clock
        self._calls: dict[str, BoxCall] = {}
        self._waiting: dict[str, WaitingCall] = {}
        self._boxes: dict[str, _Known] = {}

    def _now_ms(self) -> int:
        """The time; what has ended by now is dropped."""
        now_ms = int(self._clock() * 1000)
        for kept in (self._calls, self._waiting, self._boxes):
            for name in [name for name, each in kept.items() if each.until_ms <= now_ms]:
                del kept[name]
        return now_ms

    async def wait(self, calls: Sequence[Waits]) -> None:
        """Tell of calls that wait, or refresh them; what holds a slot does not wait."""
        now_ms = self._now_ms()
        for call in calls:
            token = call.token[:MOST_NAME]
            known = self._waiting.get(token)
            if token in self._calls or (known is None and len(self._waiting) >= MOST_WAITING):
                continue
            since_ms = max(0, now_ms - round(seconds_within(call.waited_seconds, MOST_SECONDS) * 1000))
            self._waiting[token] = WaitingCall(
                **asdict(bounded_waiting(call.details)),
                token=token,
                worker=self._worker,
                since_ms=since_ms if known is None else min(since_ms, known.since_ms),
                until_ms=now_ms + self._lease_ms,
                turn_ms=None if known is None else known.turn_ms,
            )

    async def look(self) -> Picture:
        """The whole."""
        now_ms = self._now_ms()
        return Picture(
            now_ms=now_ms,
            calls=oldest_first(list(self._calls.values()))[:MOST_TOLD],
            waiting=in_order(list(self._waiting.values()))[:MOST_TOLD],
            waiting_count=len(self._waiting),
            boxes={name: known.at(now_ms) for name, known in self._boxes.items()},
        )

    async def occupy(
        self,
        token: str,
        details: CallDetails,
        *,
        slots: int,
        reserve: int = 0,
        quiet: Quiet = "",
        sleeps: bool = False,
    ) -> Occupied:
        """Take a slot of a box, if one is free; see `picture.Boxes`."""
        now_ms, kept, token = self._now_ms(), bounded_call(details), token[:MOST_NAME]
        there = [call for call in self._calls.values() if call.box == kept.box]
        held = self._calls.get(token)
        if held is not None and held.box != kept.box:
            return Occupied(verdict="elsewhere", running=len(there))
        if held is None:
            power = self._boxes.get(kept.box, _Known()).seen.power
            if quiet and self._is_contended(kept, there, quiet, now_ms):
                return Occupied(verdict="contended", running=len(there))
            if sleeps and quiet and not power.is_awake(now_ms):
                return Occupied(verdict="contended", running=len(there))
            if sleeps and power.asleep_ms:
                return Occupied(verdict="asleep", running=len(there))
            unhurried = sum(call.lane != "high" for call in there)
            if len(there) >= slots or (kept.lane != "high" and unhurried >= slots - reserve):
                return Occupied(verdict="full", running=len(there))
            held = BoxCall(**asdict(kept), token=token, worker=self._worker, began_ms=now_ms, until_ms=0)
            there.append(held)
        self._calls[token] = replace(held, until_ms=now_ms + self._lease_ms)
        self._waiting.pop(token, None)
        return Occupied(verdict="granted", running=len(there))

    def _is_contended(self, asked: CallDetails, there: Sequence[BoxCall], quiet: Quiet, now_ms: int) -> bool:
        """Whether a look would tell more than that the box has its model, and nobody waits."""
        if self._waiting or any(call.model != asked.model for call in there):
            return True
        seen = self._boxes.get(asked.box, _Known()).at(now_ms)
        if seen.down_until_ms is not None:
            return True
        return quiet == "resident" and (seen.resident is None or asked.model not in seen.resident)

    async def release(self, *tokens: str) -> None:
        """Calls are over, or given up: their slots are free, and they wait no more."""
        self.drop(*tokens)

    def drop(self, *tokens: str) -> None:
        """The same, for whoever need not know when."""
        for token in tokens:
            self._calls.pop(token[:MOST_NAME], None)
            self._waiting.pop(token[:MOST_NAME], None)

    async def renew(self, tokens: Sequence[str]) -> list[str]:
        """Renew leases; returns the tokens that neither hold a slot nor wait any more."""
        until_ms = self._now_ms() + self._lease_ms
        lost = []
        for token in tokens:
            name = token[:MOST_NAME]
            if name in self._calls:
                self._calls[name] = replace(self._calls[name], until_ms=until_ms)
            elif name in self._waiting:
                self._waiting[name] = replace(self._waiting[name], until_ms=until_ms)
            else:
                lost.append(token)
        return lost

    async def pass_over(self, tokens: Sequence[str]) -> None:
        """Note that others have gone before these calls, which wait."""
        now_ms = self._now_ms()
        for token in tokens:
            known = self._waiting.get(token[:MOST_NAME])
            if known is not None and known.turn_ms is None:
                self._waiting[known.token] = replace(known, turn_ms=now_ms)

    async def report(self, box: str, report: BoxReport) -> None:
        """Tell what was seen of a box."""
        now_ms, name = self._now_ms(), box[:MOST_NAME]
        known = self._boxes.pop(name, _Known())
        if len(self._boxes) < MOST_BOXES:
            self._boxes[name] = known.merged(bounded_report(report), now_ms, self._fresh_ms)

    async def wake(self, box: str, token: str, *, boot_seconds: float) -> bool:
        """Whether this worker is to wake the box; see `picture.Boxes`."""
        now_ms, power = self._now_ms(), self._power(box)
        return self._keep_power(box, power.woken(token[:MOST_NAME], self._worker, now_ms, as_ms(boot_seconds)))

    async def rest(
        self, box: str, token: str, *, idle_seconds: float, after_seconds: float, claim_seconds: float
    ) -> bool:
        """Whether this worker is to put the box to sleep; see `picture.Boxes`."""
        now_ms, name, power = self._now_ms(), box[:MOST_NAME], self._power(box)
        is_busy = any(call.box == name for call in self._calls.values()) or any(
            place.box == name for call in self._waiting.values() for place in call.candidates
        )
        power = power.used(now_ms, as_ms(idle_seconds), is_busy=is_busy)
        self._keep_power(box, power)
        return self._keep_power(
            box, power.rested(token[:MOST_NAME], now_ms, as_ms(after_seconds), as_ms(claim_seconds))
        )

    async def slept(self, box: str, token: str, *, is_asleep: bool, pause_seconds: float) -> None:
        """What came of that."""
        now_ms, power = self._now_ms(), self._power(box)
        tell = power.slept if is_asleep else power.stayed
        self._keep_power(box, tell(token[:MOST_NAME], now_ms, as_ms(pause_seconds)))

    def _power(self, box: str) -> Power:
        return self._boxes.get(box[:MOST_NAME], _Known()).seen.power

    def _keep_power(self, box: str, power: Power | None) -> bool:
        """Whether there is one, and room for it."""
        name = box[:MOST_NAME]
        if power is None or (name not in self._boxes and len(self._boxes) >= MOST_BOXES):
            return False
        known = self._boxes.get(name, _Known())
        until_ms = self._now_ms() + as_ms(SEEN_SECONDS)
        self._boxes[name] = replace(known, until_ms=until_ms, seen=replace(known.seen, power=power))
        return True

    async def leave(self) -> None:
        """Give back all that this worker holds and waits for."""
        self._calls.clear()
        self._waiting.clear()
