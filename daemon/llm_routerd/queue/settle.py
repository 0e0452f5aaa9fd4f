"""What becomes of a request: it is begun, written, and ended, or given back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson

from llm_routerd.protocol.audit import audit_lines
from llm_routerd.protocol.cut import head_of, parts_of
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import GROUP
from llm_routerd.protocol.wire import encode
from llm_routerd.queue import scripts
from llm_routerd.queue.connection import Command, ResponseError, is_wrong_type, resolving
from llm_routerd.queue.deliveries import parse_committed, places_of
from llm_routerd.queue.member import Member
from llm_routerd.queue.outbox import Transcript

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from llm_routerd.protocol.audit import AuditEntry
    from llm_routerd.protocol.cut import Fields
    from llm_routerd.protocol.events import AttemptStarted, Queued
    from llm_routerd.queue.deliveries import BeginVerdict, Commitment, Committed, Delivery
    from llm_routerd.queue.scripts.binding import Call

MOST_HISTORY = 500  # events
HISTORY_PAGE = 32  # others may have written long ones
MOST_HISTORY_BYTES = 2048  # of one event of it


class Settlement(Member):
    """Writes what happens to requests, and reads what has happened."""

    def transcript(self, request_id: str, *, publish: bool, fenced: Callable[[str], None]) -> Transcript:
        """The events stream of a request, to be written by this worker."""
        return Transcript(self.outbox, self.keys.events(request_id), publish=publish, fenced=fenced)

    async def begin(
        self, delivery: Delivery, transcript: Transcript, event: AttemptStarted, *, publish: bool
    ) -> BeginVerdict:
        """Write the first attempt's event if the request is ours and open; the transcript then knows its number."""
        call = scripts.begin(
            events=transcript.events_key,
            lanes=self.keys.lanes,
            consumer=self.consumer,
            entry=delivery.entry,
            lane=delivery.lane,
            is_new=not delivery.claimed,
            deliveries=delivery.deliveries,
            ttl_ms=self.limits.result_ttl_ms,
            data=encode(event),
            publishes=publish,
            request_id=transcript.events_key.removeprefix(self.keys.events("")),
            looks=False,
        )
        reply = await self.run_with_groups(call)
        verdict: BeginVerdict = reply[0].decode()
        if verdict == "begun":
            transcript.begun(int(reply[1]))
        return verdict

    def tell_queued(
        self, delivery: Delivery, transcript: Transcript, event: Queued, *, publish: bool, is_begun: bool
    ) -> asyncio.Future[Any]:
        """Write that a request waits, if it is ours and open; returns at once.  What is returned may have a refusal.

        Args:
            delivery: the entry.
            transcript: of which nothing is pending: that would be written behind this.
            event: what is told.
            publish: PUBLISH it as well.
            is_begun: an attempt of this worker stands there.
        """
        call = scripts.queued(
            events=transcript.events_key,
            lanes=self.keys.lanes,
            consumer=self.consumer,
            entry=delivery.entry,
            lane=delivery.lane,
            is_new=not delivery.claimed,
            deliveries=delivery.deliveries,
            ttl_ms=self.limits.result_ttl_ms,
            data=encode(event),
            publishes=publish,
            makes=not is_begun,
        )
        return self.pipe.run_script(call)

    async def commit(self, commitment: Commitment) -> Committed:
        """Write the final event to its streams, acknowledge, delete, account: in one step."""
        delivery, event, transcript = commitment.delivery, commitment.event, commitment.transcript
        metrics, letter = commitment.metrics, commitment.dead_letter
        last_words = [] if transcript is None else transcript.close()
        audit = audit_lines(commitment.audit)
        data = encode(event)
        lane = self.keys.requests(delivery.lane)
        while True:
            call = scripts.commit(
                lanes=self.keys.lanes,
                # What is not written to is not named either: a right that is missing there is in nobody's way.
                letters=self.keys.dead if letter else lane,
                metrics_stream=self.limits.metrics_channel if metrics else lane,
                streams=[self.keys.events(request_id) for request_id in commitment.request_ids],
                entry=delivery.entry,
                lane=delivery.lane,
                consumer=self.consumer,
                is_begun=transcript is not None,
                under_way="" if transcript is None else transcript.under_way,
                kind=event.type,
                data=data,
                ttl_ms=self.limits.result_ttl_ms,
                publishes=commitment.publish,
                events_prefix=self.keys.events(""),
                metrics=metrics,
                metrics_maxlen=self.limits.metrics_maxlen,
                most_letters=self.limits.dead_max_entries,
                most_letter_bytes=self.limits.dead_max_bytes,
                audit_key=self.keys.audit,
                audit_maxlen=self.limits.audit_maxlen,
                last_words=last_words,
                letter=letter,
                audit=audit,
            )
            reply = await self._after_events(call, needs_replicas=True)
            if reply[0] != b"gap":
                return parse_committed(reply)

    def _after_events(self, call: Call, *, needs_replicas: bool = False, is_whole: bool = False) -> asyncio.Future[Any]:
        """Run a script behind all events that have been handed in so far, and all ends; see `Command`."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.outbox.send(Command(call.command, resolving(future), needs_replicas=needs_replicas, is_whole=is_whole))
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

    async def hand_back(self, deliveries: Sequence[Delivery]) -> int:
        """Give entries back so that another worker takes them at once; returns how many were still ours."""
        if not deliveries:
            return 0
        call = scripts.hand_back(
            lanes=self.keys.lanes, consumer=self.consumer, everything=False, entries=places_of(deliveries)
        )
        given: int = await self.pipe.run_script(call)
        return given

    async def hand_everything_back(self) -> int:
        """Give back all that this consumer owns, known or not (a claim's reply may be on its way).

        What has an end that waits for the server is ended first: nobody is given what has been answered.
        """
        given: int = await self._after_events(self.hand_everything_back_call())
        return given

    def hand_everything_back_call(self) -> Call:
        """What does that, for whoever has a connection of its own."""
        return scripts.hand_back(lanes=self.keys.lanes, consumer=self.consumer, everything=True, entries=())

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

    def audit(self, entries: Iterable[AuditEntry], on_refusal: Callable[[str | None], None]) -> None:
        """Write entries of the audit that no script carries; returns at once.  A lost reply writes them twice."""

        def answered(reply: Any) -> None:
            on_refusal(str(reply) if isinstance(reply, ResponseError) else None)

        trim = ("MAXLEN", "~", self.limits.audit_maxlen)
        for entry in entries:
            self.outbox.send(Command(("XADD", self.keys.audit, *trim, "*", *entry.flat()), answered))

    async def emit_metrics(self, metrics: bytes) -> None:
        """A metrics event outside of a commit."""
        channel = self.limits.metrics_channel
        try:
            await self.pipe.call("XADD", channel, "MAXLEN", "~", self.limits.metrics_maxlen, "*", "data", metrics)
        finally:
            await self.pipe.call("PUBLISH", channel, metrics)


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
