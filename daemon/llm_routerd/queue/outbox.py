"""The events of all requests on their way to Redis.

Rules:
- Every event has an explicit ID, so a repeated write is refused and changes nothing.
- What is written of one request at a time is one command: out of memory, no event is refused and a later one written.
- One request's events are written in order, and only one batch of them is under way: what comes meanwhile is
  gathered, and neighbouring text becomes one event.
- NOMKSTREAM: a stream that has expired or was flushed is not made again without its TTL; the final event comes with
  its own.
- "Equal or smaller" says one of three things: already written (a reply was lost), sealed, or overtaken by another
  worker.  One look at the last ID tells which.
- What is not written yet is bounded, for one request and for all: `room` waits until there is room again.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from llm_routerd.protocol.cut import head_of, parts_of
from llm_routerd.protocol.events import FINAL_PART, Token
from llm_routerd.protocol.wire import encode
from llm_routerd.queue import scripts
from llm_routerd.queue.connection import Command, ResponseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.protocol.events import ProgressEvent
    from llm_routerd.queue.connection import Pipe

MAX_PENDING_CHARS = 262_144  # of one request
MAX_UNWRITTEN_CHARS = 8_388_608  # of all requests together
MAX_EVENT_CHARS = 65_536


class _Pending:
    """An event that is not under way yet; `payload` is text (which may grow) or finished JSON."""

    __slots__ = ("event_id", "kind", "payload")

    def __init__(self, event_id: str, kind: str, payload: str | bytes) -> None:
        self.event_id = event_id
        self.kind = kind
        self.payload = payload


class Transcript:
    """The events stream of one request, as this worker writes it.

    Args:
        outbox: where it is written.
        events_key: the stream.
        publish: PUBLISH every event as well.
        fenced: called once if the request turns out to have been ended ("sealed") or taken over ("overtaken").
    """

    __slots__ = (
        "_fenced", "_growing", "_last_words", "_looking", "_outbox", "_pending", "_publish", "_queued", "_seq",
        "_under_way", "_unwritten", "_waiter", "attempt", "events_key",
    )  # fmt: skip

    def __init__(self, outbox: Outbox, events_key: str, *, publish: bool, fenced: Callable[[str], None]) -> None:
        self._outbox = outbox
        self.events_key = events_key
        self._publish = publish
        self._fenced: Callable[[str], None] | None = fenced
        self.attempt = 0
        self._seq = 0
        self._pending: list[_Pending] = []
        self._growing: _Pending | None = None  # the last of them, if text may still be added to it
        self._under_way = ""  # ID of the last event that was sent, until there is an answer
        self._looking = False  # why it was refused
        self._unwritten = 0  # characters pending or under way
        self._queued = False
        self._last_words: list[Any] = []
        self._waiter: asyncio.Future[None] | None = None

    def begun(self, number: int) -> None:
        """Attempt `number` stands in the stream already: the begin script wrote its first event."""
        self.attempt = number
        self._seq = 0

    async def next_attempt(self, event: ProgressEvent) -> bool:
        """A further attempt on this worker; returns when its event stands, False: it may not, the request is not ours.

        A worker that was asleep finds out here, before it pays for a call.  Whoever took the request over has begun
        an attempt, maybe of the very number that comes next here: only what stands there tells whose it is.
        """
        self.attempt += 1
        self._seq = -1
        self.event(event)
        data = self._pending[-1].payload
        while self._fenced is not None and (self._pending or self._under_way or self._looking):
            await self._wait()
        stands = await self._outbox.read(self.events_key, f"{self.attempt}-0")
        if stands is not None and stands != data:
            self._stop("overtaken")
        return self._fenced is not None

    @property
    def last_id(self) -> str:
        """The ID of the last event of the running attempt, written or not."""
        return f"{self.attempt}-{self._seq}"

    @property
    def has_pending(self) -> bool:
        """Whether there are events that are not under way yet."""
        return bool(self._pending)

    @property
    def under_way(self) -> str:
        """The ID of the last event that was sent and has no answer yet; else ""."""
        return self._under_way

    def event(self, event: ProgressEvent) -> None:
        """An event of the running attempt that is not text."""
        self._growing = None
        self._append(event.type, encode(event))

    def text(self, kind: str, text: str) -> None:
        """Text of the running attempt; `kind` is `token` or `reasoning`."""
        self._unwritten += len(text)
        self._outbox.unwritten += len(text)
        growing = self._growing
        if growing is not None and growing.kind == kind and len(growing.payload) < MAX_EVENT_CHARS:
            growing.payload += text  # type: ignore[operator]  # what grows is text
        else:
            self._growing = self._append(kind, text)

    def _append(self, kind: str, payload: str | bytes) -> _Pending:
        self._seq += 1
        pending = _Pending(f"{self.attempt}-{self._seq}", kind, payload)
        self._pending.append(pending)
        if not self._queued and not self._under_way:
            self._queued = True
            self._outbox.queue(self)
        return pending

    @property
    def has_room(self) -> bool:
        """Whether more text may be taken from the model now."""
        return self._unwritten < MAX_PENDING_CHARS and self._outbox.unwritten < MAX_UNWRITTEN_CHARS

    async def room(self) -> None:
        """Wait until more text may be taken from the model."""
        while not self.has_room and self._fenced is not None:
            self._outbox.crowded.add(self)
            await self._wait()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def wake(self) -> None:
        """Something has changed for who waits."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> list[Any]:
        """ID, type and data of what is still to be written before the final event; nothing is accepted after this.

        The same again, however often it is asked.
        """
        self._fenced = None
        args, chars = self._take()
        self._unwritten -= chars
        self._outbox.wrote(chars)
        self._last_words += args
        return self._last_words

    def abandon(self) -> None:
        """Forget what is not under way yet: this worker has no more to say on this request."""
        self._fenced = None
        dropped, self._pending = self._pending, []
        chars = sum(len(pending.payload) for pending in dropped if isinstance(pending.payload, str))
        self._unwritten -= chars
        self._outbox.wrote(chars)
        self.wake()

    def take_commands(self) -> list[Command]:
        """All pending events, as one command, if there are any."""
        args, chars = self._take()
        if not args:
            return []
        self._under_way = args[-3]
        answered = partial(self._answered, chars)
        if len(args) == 3 and not self._publish:  # noqa: PLR2004 - ID, type and data of one event
            event_id, kind, data = args
            return [Command(("XADD", self.events_key, "NOMKSTREAM", event_id, "type", kind, "data", data), answered)]
        call = scripts.write(events=self.events_key, publishes=self._publish, words=args)
        return [Command(call.command, answered)]

    def _take(self) -> tuple[list[Any], int]:
        """Pending events as ID, type, data, ID, ...; and the characters of text in them."""
        self._queued = False
        self._growing = None
        taken, self._pending = self._pending, []
        args: list[Any] = []
        chars = 0
        for pending in taken:
            payload = pending.payload
            if isinstance(payload, bytes):
                args += (pending.event_id, pending.kind, payload)
            else:
                chars += len(payload)
                args += (pending.event_id, pending.kind, encode(Token(payload)))  # thoughts look the same
        return args, chars

    def _answered(self, chars: int, reply: Any) -> None:
        self._under_way = ""
        self._unwritten -= chars
        self._outbox.wrote(chars)
        if isinstance(reply, ResponseError):
            self._looking = True
            self._outbox.send(Command(("XREVRANGE", self.events_key, "+", "-", "COUNT", 1), self._looked))
        if self._pending and not self._queued:
            self._queued = True
            self._outbox.queue(self)
        if self._waiter is not None:
            self.wake()

    def _looked(self, reply: Any) -> None:
        self._looking = False
        self.wake()
        if self._fenced is None or isinstance(reply, ResponseError) or not reply:
            return
        last_id: str = reply[0][0].decode()
        number = int(last_id.partition("-")[0])
        if number >= FINAL_PART:
            self._stop("sealed")
        elif number > self.attempt:
            self._stop("overtaken")

    def _stop(self, why: str) -> None:
        if self._fenced is not None:
            fenced, self._fenced = self._fenced, None
            fenced(why)
            self.wake()


class Outbox:
    """All transcripts that have something to write; the pipe asks it whenever a batch is put together."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._queue: list[Transcript] = []
        self._commands: list[Command] = []
        self.unwritten = 0
        self.crowded: set[Transcript] = set()
        pipe.add_source(self)

    def queue(self, transcript: Transcript) -> None:
        """`transcript` has events to write."""
        self._queue.append(transcript)
        self._pipe.notify()

    def send(self, command: Command) -> None:
        """One command beside the events."""
        self._commands.append(command)
        self._pipe.notify()

    async def read(self, events_key: str, event_id: str) -> bytes | None:
        """The data of one event, the beginning of it where others wrote a long one; None where it is not there."""
        found = await self._pipe.call("XRANGE", events_key, event_id, event_id)
        if not found:
            return None
        parts = parts_of(found[0][1])  # type, its value, data, its value
        return head_of(parts[3]) if len(parts) > 3 else b""  # noqa: PLR2004

    def wrote(self, chars: int) -> None:
        """So many characters are no longer unwritten; wake who waits for room."""
        self.unwritten -= chars
        if self.crowded and self.unwritten < MAX_UNWRITTEN_CHARS:
            crowded, self.crowded = self.crowded, set()
            for transcript in crowded:
                transcript.wake()

    def take_commands(self) -> list[Command]:
        """Everything that is to be written now."""
        commands, self._commands = self._commands, []
        queue, self._queue = self._queue, []
        for transcript in queue:
            commands.extend(transcript.take_commands())
        return commands
