"""What a worker asks of Redis, each as one call: take up, begin, write, renew, commit, hand back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson

from llm_routerd.protocol.cut import head_of, parts_of
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import GROUP, HANDED_BACK, HANDED_BACK_IDLE_MS, LANES, Keys, Lane, is_handed_back
from llm_routerd.protocol.wire import encode
from llm_routerd.queue import scripts
from llm_routerd.queue.connection import ResponseError, is_missing_group, is_wrong_type
from llm_routerd.queue.deliveries import (
    Backlog,
    Claim,
    Committed,
    Delivery,
    Renewal,
    next_cursor,
    parse_claimed,
    parse_gone,
)
from llm_routerd.queue.lanes import LaneTypes, make_group
from llm_routerd.queue.outbox import Outbox, Transcript
from llm_routerd.queue.pipe import Command, Pipe, resolving

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_routerd.protocol.cut import Fields
    from llm_routerd.protocol.events import AttemptStarted, FinalEvent
    from llm_routerd.queue.deliveries import BeginVerdict, Held, Limits

MOST_CLAIMED = 100  # by one command
OWN_PENDING = 1000
ORPHANS = 1000  # at most, of one lane in one sweep
ORPHANS_PAGE = 50
MOST_HISTORY = 500  # events
HISTORY_PAGE = 32  # others may have written long ones
MOST_HISTORY_BYTES = 2048  # of one event of it
STALE_CONSUMER_SECONDS = 3600.0


class Broker:
    """One worker's side of the queue; all of it goes through one pipe."""

    def __init__(self, pipe: Pipe, keys: Keys, *, consumer: str, limits: Limits) -> None:
        self.pipe = pipe
        self.keys = keys
        self.consumer = consumer
        self.limits = limits
        self.outbox = Outbox(pipe)
        self.lane_types = LaneTypes()
        self.models: Sequence[str] = ()  # that a request may name here, as the other workers are told
        # Called with each renewal: why they cannot be told; None: they can.
        self.on_registration: Callable[[str | None], object] = lambda _why: None
        # Whether every living worker has been able to tell of itself.
        self.knows_others: Callable[[], bool] = lambda: True
        self._cursors = dict.fromkeys(LANES, "-")

    async def create_groups(self) -> None:
        """Create the consumer groups that are missing; notes which lanes are none."""
        for lane in LANES:
            self.lane_types.found(lane, await make_group(self.pipe.call, self.keys.requests(lane)))

    async def _with_groups(self, script: scripts.Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        try:
            return await self.pipe.run_script(script, keys, args)
        except ResponseError as error:
            if not is_missing_group(error):
                raise
        await self.create_groups()
        return await self.pipe.run_script(script, keys, args)

    def transcript(self, request_id: str, *, publish: bool, fenced: Callable[[str], None]) -> Transcript:
        """The events stream of a request, to be written by this worker."""
        return Transcript(self.outbox, self.keys.events(request_id), publish=publish, fenced=fenced)

    async def begin(
        self, delivery: Delivery, transcript: Transcript, event: AttemptStarted, *, publish: bool
    ) -> BeginVerdict:
        """Write the first attempt's event if the request is ours and open; the transcript then knows its number."""
        reply = await self._with_groups(
            scripts.BEGIN,
            (transcript.events_key, *self.keys.lanes),
            (
                GROUP, self.consumer, delivery.entry, delivery.lane, "claimed" if delivery.claimed else "new",
                delivery.deliveries, self.limits.result_ttl_ms, encode(event), "1" if publish else "",
                transcript.events_key.removeprefix(self.keys.events("")),
            ),
        )  # fmt: skip
        verdict: BeginVerdict = reply[0].decode()
        if verdict == "begun":
            transcript.begun(int(reply[1]))
        return verdict

    async def commit(
        self,
        delivery: Delivery,
        event: FinalEvent,
        *,
        transcript: Transcript | None,
        request_ids: Sequence[str],
        publish: bool = False,
        metrics: bytes = b"",
        dead_letter: Sequence[bytes | str] = (),
    ) -> Committed:
        """Write the final event to the streams of `request_ids`, acknowledge, delete, account: in one step.

        Args:
            delivery: the entry.
            event: the final event.
            transcript: of a request that was begun here; what it still holds is written before.
            publish: PUBLISH the event as well.
            request_ids: usually one; for a request that could not be read its entry ID too; none: no event.
            metrics: the metrics event, as JSON.
            dead_letter: flat fields of a dead letter; empty: none.
        """
        last_words = [] if transcript is None else transcript.close()
        lane = self.keys.requests(delivery.lane)
        keys = [
            # What is not written to is not named either: a right that is missing there is in nobody's way.
            *self.keys.lanes, self.keys.dead if dead_letter else lane, self.limits.metrics_channel if metrics else lane,
            *(self.keys.events(request_id) for request_id in request_ids),
        ]  # fmt: skip
        data = encode(event)
        while True:
            args = (
                GROUP, delivery.entry, event.type, data, self.limits.result_ttl_ms, "1" if publish else "",
                delivery.lane, "" if transcript is None else "1", "" if transcript is None else transcript.under_way,
                self.limits.metrics_maxlen, self.limits.metrics_channel, metrics, self.keys.events(""),
                self.limits.dead_max_entries, self.limits.dead_max_bytes, self.consumer,
                len(last_words) // 3, *last_words, *dead_letter,
            )  # fmt: skip
            reply = await self._after_events(scripts.COMMIT, keys, args)
            if reply[0] != b"gap":
                break
        sealed_by, letter_lost, letters_dropped = (*reply[1:], None, None, None)[:3]
        return Committed(
            verdict=reply[0].decode(),
            sealed_by=_text(sealed_by),
            letter_lost=_text(letter_lost),
            letters_dropped=letters_dropped or 0,
        )

    def _after_events(self, script: scripts.Script, keys: Sequence[str], args: Sequence[Any]) -> asyncio.Future[Any]:
        """Run a script behind all events that have been handed in so far."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.outbox.send(Command(("EVALSHA", script.sha, len(keys), *keys, *args), resolving(future)))
        return future

    async def acknowledge(self, delivery: Delivery, request_id: str) -> None:
        """Be done with a request that somebody else has ended: give its stream a TTL, acknowledge, delete."""
        lane = self.keys.requests(delivery.lane)
        await self.pipe.call("PEXPIRE", self.keys.events(request_id), self.limits.result_ttl_ms, "NX")
        try:
            await self.pipe.call("XACK", lane, GROUP, delivery.entry)
            await self.pipe.call("XDEL", lane, delivery.entry)
        except ResponseError as error:
            if not is_wrong_type(error):  # then the entry went with the lane
                raise

    async def server_ms(self) -> int:
        """The server's Unix time in ms."""
        seconds, micros = await self.pipe.call("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def final_type(self, request_id: str) -> str | None:
        """The type of a request's final event, if it has one; a key of another type has none."""
        try:
            found = await self.pipe.call("XRANGE", self.keys.events(request_id), FINAL_ID, FINAL_ID)
        except ResponseError:
            return None
        return None if not found else _field(found[0][1], b"type").decode("utf-8", "replace")

    async def history(self, request_id: str) -> list[Any]:
        """The attempts of a request and what became of them, from its events stream; no text of any answer."""
        history = []
        cursor = "-"
        while True:
            events = await self.pipe.call("XRANGE", self.keys.events(request_id), cursor, "+", "COUNT", HISTORY_PAGE)
            for event_id, fields in events:
                is_told = _field(fields, b"type") in {b"attempt", b"rejected"}
                if is_told and len(_field(fields, b"data")) <= MOST_HISTORY_BYTES:  # ours are far shorter
                    history.append({"event": event_id.decode()} | _object(_field(fields, b"data")))
            if len(events) < HISTORY_PAGE or len(history) >= MOST_HISTORY:
                return history[:MOST_HISTORY]
            cursor = "(" + events[-1][0].decode()

    async def backlog(self, lane: Lane) -> Backlog | None:
        """How many entries of a lane wait; None: Redis cannot tell."""
        key = self.keys.requests(lane)
        try:
            length, pending = await asyncio.gather(self.pipe.call("XLEN", key), self.pipe.call("XPENDING", key, GROUP))
        except ResponseError:
            return None  # no stream, or one without our group
        handed_back = sum(int(count) for name, count in pending[3] or () if is_handed_back(name.decode()))
        return Backlog(unread=max(0, int(length) - int(pending[0])), handed_back=handed_back)  # what is done is deleted

    async def emit_metrics(self, metrics: bytes) -> None:
        """A metrics event outside of a commit."""
        channel = self.limits.metrics_channel
        try:
            await self.pipe.call("XADD", channel, "MAXLEN", "~", self.limits.metrics_maxlen, "*", "data", metrics)
        finally:
            await self.pipe.call("PUBLISH", channel, metrics)

    async def renew(self, held: Sequence[Held]) -> Renewal:
        """Renew the leases and TTLs of what is in flight, and tell the others of this worker; see `renew.lua`."""
        args: list[Any] = [
            GROUP, self.consumer, self.limits.result_ttl_ms,
            self.keys.workers, self.limits.lease_ms, orjson.dumps(self.models),
        ]  # fmt: skip
        for item in held:
            args += (LANES.index(item.lane) + 1, item.entry)
        keys = (*self.keys.lanes, *(item.events_key for item in held))
        lost, sealed, server_ms, longest_ms, complaint = await self._with_groups(scripts.RENEW, keys, args)
        self.on_registration(_text(complaint))
        return Renewal(lost=lost, sealed=sealed, server_ms=server_ms, longest_lease_ms=longest_ms)

    async def sealed(self, held: Sequence[Held]) -> Sequence[int]:
        """Positions of those that somebody else has ended."""
        found: list[int] = await self.pipe.run_script(scripts.SEALED, [item.events_key for item in held], ())
        return found

    async def claim(self, *, room: int, server_ms: float | None = None, before_new: bool = False) -> Claim:
        """Take over up to `room` entries whose worker has not renewed its lease, the urgent lanes first.

        Args:
            room: how many at most; 0: to look only whether there are any.
            server_ms: the server's time now, as far as it is known: if this gets there much later, nothing is taken.
            before_new: new requests wait, and are not to be kept waiting by those of a less urgent lane.
        """
        asked = "" if server_ms is None else round(server_ms)

        def args(lane: Lane, count: int) -> tuple[Any, ...]:
            return (
                GROUP, self.consumer, self.limits.lease_ms, count, self._cursors[lane], "", asked, self.late_ms,
                self.keys.workers,
            )  # fmt: skip

        deliveries: list[Delivery] = []
        gone: list[Delivery] = []
        for lane in LANES:
            count = min(MOST_CLAIMED, room - len(deliveries))
            keys = (self.keys.requests(lane),)
            cursor, claimed, missing, late, left, unread = await self._with_groups(
                scripts.CLAIM, keys, args(lane, count)
            )
            self._cursors[lane] = cursor.decode()
            deliveries += parse_claimed(lane, claimed)
            gone += parse_gone(lane, missing)
            is_full = 0 < room <= len(deliveries)
            more = bool(left) or (is_full and lane != LANES[-1])  # what other lanes have is not known then
            if late or more or is_full or (before_new and unread):
                return Claim(deliveries=deliveries, gone=gone, late=bool(late), more=more)
        return Claim(deliveries=deliveries, gone=gone)

    async def claim_of(self, owner: str, *, count: int, before_new: bool = False) -> Claim:
        """Take up to `count` of the entries that `owner` has, whatever their lease; else as `claim`."""
        deliveries: list[Delivery] = []
        gone: list[Delivery] = []
        more, unread = False, 0
        for lane in LANES:
            cursor: bytes | None = b"-"
            while cursor and len(deliveries) < count + (not count and not more):
                args = claim_args(owner, self.consumer, count - len(deliveries), cursor)
                following, claimed, missing, _, left, unread = await self._with_groups(
                    scripts.CLAIM, (self.keys.requests(lane),), args
                )
                cursor = next_cursor(following)
                deliveries += parse_claimed(lane, claimed, own=owner == self.consumer)
                gone += parse_gone(lane, missing)
                more = bool(left)
            if before_new and unread:
                break
        return Claim(deliveries=deliveries, gone=gone, more=more)

    async def find_orphans(self, lane: Lane) -> list[str]:
        """The entries of a lane that were delivered once and that nobody owns; see `orphans.lua`."""
        orphans: list[str] = []
        cursor = b"-"
        while len(orphans) < ORPHANS:
            args = (GROUP, self.consumer, ORPHANS_PAGE, cursor, "", 0, self.keys.workers, self.limits.lease_ms, 0)
            cursor, found, _, _ = await self._with_groups(scripts.ORPHANS, (self.keys.requests(lane),), args)
            orphans += [entry.decode() for entry in found]
            if cursor == b"-":
                break
        return orphans

    async def take_orphans(
        self,
        lane: Lane,
        entries: Sequence[str],
        *,
        seen_for_ms: int,
        server_ms: float | None = None,
        owner: str | None = None,
    ) -> list[Delivery]:
        """Those of them that are orphans still, from now on this worker's; none where this gets there late.

        Args:
            lane: of the entries.
            entries: that have been orphans for so long:
            seen_for_ms: no shorter than the lease of any living worker, or none is taken.
            server_ms: as in `claim`.
            owner: whose they are to be, if not this worker's: that of what was handed back; they have no fields then.
        """
        asked = "" if server_ms is None else round(server_ms)
        deliveries: list[Delivery] = []
        left = list(entries)
        while left:
            args = (
                GROUP, owner or self.consumer, 0, "-", asked, self.late_ms,
                self.keys.workers, self.limits.lease_ms, seen_for_ms, *left,
            )  # fmt: skip
            reply = await self._with_groups(scripts.ORPHANS, (self.keys.requests(lane),), args)
            cursor = next_cursor(reply[0])
            left = left[left.index(cursor.decode()) + 1 :] if cursor else []
            deliveries += [
                Delivery(lane=lane, entry=entry.decode(), fields=fields, claimed=True) for entry, fields in reply[2]
            ]
        return deliveries

    @property
    def late_ms(self) -> int:
        """How late an answer may be before leases may have run out for it."""
        return self.limits.lease_ms // 4

    async def hand_back(self, held: Sequence[Held]) -> int:
        """Give entries back so that another worker takes them at once; returns how many were still ours."""
        args = self.hand_back_args()
        for item in held:
            args += (LANES.index(item.lane) + 1, item.entry)
        given: int = await self.pipe.run_script(scripts.HAND_BACK, self.keys.lanes, args) if held else 0
        return given

    async def hand_everything_back(self) -> int:
        """Give back all that this consumer owns, known or not (a claim's reply may be on its way)."""
        given: int = await self.pipe.run_script(scripts.HAND_BACK, self.keys.lanes, self.hand_back_args())
        return given

    def hand_back_args(self) -> list[Any]:
        """Arguments of `hand_back.lua` for all that this consumer owns."""
        return [GROUP, self.consumer, HANDED_BACK_IDLE_MS, HANDED_BACK]

    async def retire(self, *, oneself: bool) -> None:
        """Remove consumers that own nothing and have been silent for an hour; and, at the end, oneself."""
        await self.pipe.run_script(scripts.RETIRE, self.keys.lanes, self.retire_args(oneself=oneself))

    def retire_args(self, *, oneself: bool) -> tuple[Any, ...]:
        """Arguments of `retire.lua`."""
        return (GROUP, self.consumer if oneself else "", int(STALE_CONSUMER_SECONDS * 1000), self.keys.workers)


def claim_args(owner: str, consumer: str, count: int, cursor: bytes) -> tuple[Any, ...]:
    """Arguments of `claim.lua` for taking entries of `owner`, whatever their lease."""
    return (GROUP, consumer, 0, count, cursor, owner, "", 0)


def _text(reply: bytes | None) -> str | None:
    return reply.decode("utf-8", "replace") if reply else None


def _object(data: bytes) -> dict[str, Any]:
    """A JSON object; empty where it is none: others may write to events streams."""
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _field(fields: Fields, name: bytes) -> bytes:
    """The value of one field, or the beginning of a long one; empty where it is not there."""
    flat = parts_of(fields)
    return next((head_of(flat[at + 1]) for at in range(0, len(flat) - 1, 2) if flat[at] == name), b"")
