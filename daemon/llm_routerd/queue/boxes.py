"""The picture of the local boxes that all workers share, in Redis.

It is kept with the first shard's keys: on a queue with several shards the pipe and the keys are those of
`Layout.keys[0]`, also for a worker that serves other shards only.

What a server refuses to keep (a key of another type, a user without the right) is no error of the call that asks for a
slot: it is told "unkept", the picture is empty, and `refusal` says why.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import Struct, field
from msgspec.structs import asdict, force_setattr

from llm_routerd.queue import scripts
from llm_routerd.queue.connection import ResponseError, describe, is_wrong_type, lasts
from llm_routerd.queue.picture import (
    LEASE_SECONDS,
    MOST_BOXES,
    MOST_LEASE_SECONDS,
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
from llm_routerd.queue.power import Power

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llm_routerd.protocol.keys import Keys
    from llm_routerd.queue.connection import Pipe
    from llm_routerd.queue.picture import BoxReport, CallDetails, Quiet, Verdict, Waits
    from llm_routerd.queue.scripts.binding import Call

T = TypeVar("T", bound=Struct)
C = TypeVar("C", BoxCall, WaitingCall)


class _Kept(Struct, kw_only=True):
    """What stands of a box, as `boxes_report.lua` writes it."""

    fresh_until_ms: int
    down_until_ms: int
    power: Power = Power()
    resident: dict[str, Resident] = field(default_factory=dict)
    loading: dict[str, int] = field(default_factory=dict)
    load_seconds: dict[str, float] = field(default_factory=dict)
    tokens_per_second: dict[str, float] = field(default_factory=dict)

    def at(self, now_ms: int) -> BoxSeen:
        """What of it is true still."""
        is_fresh = self.fresh_until_ms > now_ms
        return BoxSeen(
            resident=self.resident if is_fresh else None,
            loading=self.loading if is_fresh else {},
            load_seconds=self.load_seconds,
            tokens_per_second=self.tokens_per_second,
            down_until_ms=self.down_until_ms if self.down_until_ms > now_ms else None,
            power=self.power,
        )


_CALLS = msgspec.json.Decoder(BoxCall)
_WAITING = msgspec.json.Decoder(WaitingCall)
_BOXES = msgspec.json.Decoder(_Kept)


class SharedBoxes:
    """One worker's verbs on the shared picture; see `picture.Boxes`.

    Attributes:
        refusal: why the server has not kept, or shown, what it was last asked to; None: it has.
    """

    def __init__(
        self,
        pipe: Pipe,
        keys: Keys,
        *,
        worker: str,
        lease_seconds: float = LEASE_SECONDS,
        report_seconds: float = REPORT_SECONDS,
    ) -> None:
        """Prepare them.

        Args:
            pipe: to the server of the first shard.
            keys: of the first shard.
            worker: this worker's name.
            lease_seconds: how long a call counts that is not renewed; bounded by `MOST_LEASE_SECONDS`.
            report_seconds: how long is true what was seen to be resident.
        """
        self._pipe = pipe
        self._keys = keys
        self._worker = worker
        self._lease_ms = round(min(lease_seconds, MOST_LEASE_SECONDS) * 1000)
        self._fresh_ms = round(min(report_seconds, SEEN_SECONDS) * 1000)
        self.refusal: str | None = None

    async def wait(self, calls: Sequence[Waits]) -> None:
        """Tell of calls that wait, or refresh them, all in one script; what holds a slot does not wait."""
        if not calls:
            return
        entries: list[Any] = []
        for call in calls:
            waited = seconds_within(call.waited_seconds, MOST_SECONDS)
            entries += (call.token[:MOST_NAME], round(waited * 1000), self._encoded(bounded_waiting(call.details)))
        keys = self._keys
        await self._run(
            scripts.boxes_wait(
                calls=keys.box_calls, waiting=keys.box_waiting, lease_ms=self._lease_ms, most=MOST_WAITING,
                entries=entries,
            )
        )  # fmt: skip

    async def look(self) -> Picture:
        """The whole, as far as it can be read: what others wrote there is passed over."""
        keys = self._keys
        call = scripts.boxes_look(boxes=keys.boxes, calls=keys.box_calls, waiting=keys.box_waiting, most=MOST_TOLD)
        reply = await self._run(call)
        if reply is None:
            return Picture(now_ms=0)
        now_ms, calls, waiting, waiting_count, boxes = reply
        return Picture(
            now_ms=now_ms,
            calls=oldest_first([_named(call, token) for token, call in _read(calls, _CALLS)]),
            waiting=in_order([_named(call, token) for token, call in _read(waiting, _WAITING)]),
            waiting_count=waiting_count,
            boxes={name: kept.at(now_ms) for name, kept in _read(boxes, _BOXES)},
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
        """Take a slot of a box, if one is free; see `picture.Boxes`.

        Who is cancelled meanwhile holds none: the slot is given back behind it.
        """
        keys, kept = self._keys, bounded_call(details)
        call = scripts.boxes_occupy(
            boxes=keys.boxes, calls=keys.box_calls, waiting=keys.box_waiting, token=token[:MOST_NAME], box=kept.box,
            model=kept.model, lane=kept.lane, slots=slots, reserve=reserve, quiet=quiet, sleeps=sleeps,
            lease_ms=self._lease_ms, details=self._encoded(kept),
        )  # fmt: skip
        try:
            reply = await self._run(call)
        except asyncio.CancelledError:
            self.drop(token)
            raise
        if reply is None:
            return Occupied(verdict="unkept")
        verdict: Verdict = reply[0].decode()
        return Occupied(verdict=verdict, running=reply[1])

    async def release(self, *tokens: str) -> None:
        """Calls are over, or given up; their slots are free even if whoever calls this is cancelled meanwhile."""
        if tokens:
            await self._run(self._release_call(tokens))

    def drop(self, *tokens: str) -> None:
        """The same, for whoever need not know when."""
        if tokens:
            self._pipe.run_script(self._release_call(tokens)).add_done_callback(_hear)

    async def renew(self, tokens: Sequence[str]) -> list[str]:
        """Renew leases; returns the tokens that neither hold a slot nor wait any more."""
        if not tokens:
            return []
        keys = self._keys
        call = scripts.boxes_renew(
            calls=keys.box_calls, waiting=keys.box_waiting, lease_ms=self._lease_ms, tokens=_names(tokens)
        )
        return [tokens[position] for position in await self._run(call) or ()]

    async def pass_over(self, tokens: Sequence[str]) -> None:
        """Note that others have gone before these calls, which wait."""
        if tokens:
            await self._run(scripts.boxes_pass(waiting=self._keys.box_waiting, tokens=_names(tokens)))

    async def report(self, box: str, report: BoxReport) -> None:
        """Tell what was seen of a box."""
        call = scripts.boxes_report(
            boxes=self._keys.boxes, box=box[:MOST_NAME], fresh_ms=self._fresh_ms, keep_ms=as_ms(SEEN_SECONDS),
            most=MOST_MODELS, most_boxes=MOST_BOXES, details=msgspec.json.encode(bounded_report(report)),
        )  # fmt: skip
        await self._run(call)

    async def wake(self, box: str, token: str, *, boot_seconds: float) -> bool:
        """Whether this worker is to wake the box; see `picture.Boxes`."""
        call = scripts.boxes_wake(
            boxes=self._keys.boxes, box=box[:MOST_NAME], token=token[:MOST_NAME], worker=self._worker[:MOST_NAME],
            boot_ms=as_ms(boot_seconds), keep_ms=as_ms(SEEN_SECONDS), most_boxes=MOST_BOXES,
        )  # fmt: skip
        return bool(await self._run(call) == 1)

    async def rest(
        self, box: str, token: str, *, idle_seconds: float, after_seconds: float, claim_seconds: float
    ) -> bool:
        """Whether this worker is to put the box to sleep; see `picture.Boxes`."""
        keys = self._keys
        call = scripts.boxes_rest(
            boxes=keys.boxes, calls=keys.box_calls, waiting=keys.box_waiting, box=box[:MOST_NAME],
            token=token[:MOST_NAME], idle_ms=as_ms(idle_seconds), after_ms=as_ms(after_seconds),
            claim_ms=as_ms(claim_seconds), keep_ms=as_ms(SEEN_SECONDS), most_boxes=MOST_BOXES,
        )  # fmt: skip
        return bool(await self._run(call) == 1)

    async def slept(self, box: str, token: str, *, is_asleep: bool, pause_seconds: float) -> None:
        """What came of that."""
        call = scripts.boxes_slept(
            boxes=self._keys.boxes, box=box[:MOST_NAME], token=token[:MOST_NAME], is_asleep=is_asleep,
            pause_ms=as_ms(pause_seconds), keep_ms=as_ms(SEEN_SECONDS),
        )  # fmt: skip
        await self._run(call)

    async def leave(self) -> None:
        """Give back all that this worker holds and waits for."""
        await self._run(self.leave_call())

    def leave_call(self) -> Call:
        """What does that, for whoever has a connection of its own."""
        return scripts.boxes_leave(
            calls=self._keys.box_calls, waiting=self._keys.box_waiting, worker=self._worker[:MOST_NAME]
        )

    def _release_call(self, tokens: Sequence[str]) -> Call:
        return scripts.boxes_release(calls=self._keys.box_calls, waiting=self._keys.box_waiting, tokens=_names(tokens))

    def _encoded(self, details: Struct) -> bytes:
        """As it stands in Redis, behind its times: the lane first, this worker with it."""
        return msgspec.json.encode(asdict(details) | {"worker": self._worker[:MOST_NAME]})

    async def _run(self, call: Call) -> Any:
        """The reply; None: the server refuses such things."""
        try:
            reply = await self._pipe.run_script(call, is_whole=True)
        except ResponseError as error:
            if not (is_wrong_type(error) or lasts(error)):
                raise
            self.refusal = describe(error)
            return None
        self.refusal = None
        return reply


def _names(tokens: Sequence[str]) -> list[str]:
    return [token[:MOST_NAME] for token in tokens]


def _read(flat: Sequence[bytes], decoder: msgspec.json.Decoder[T]) -> Iterator[tuple[str, T]]:
    """Names and texts in turn, as far as they are ours."""
    for name, text in zip(flat[::2], flat[1::2], strict=True):
        try:
            yield name.decode(), decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue


def _named(call: C, token: str) -> C:
    """A call that was just read, which nobody has seen yet, with its token; copies would be a tenth of a look."""
    force_setattr(call, "token", token)
    return call


def _hear(reply: asyncio.Future[Any]) -> None:
    """Nobody waits for it any more: a refusal has been heard."""
    if not reply.cancelled():
        reply.exception()
