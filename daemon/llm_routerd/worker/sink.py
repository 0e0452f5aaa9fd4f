"""The events of one request, written to Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from llm_routerd.protocol.events import Reasoning, Token

if TYPE_CHECKING:
    import asyncio

    from llm_routerd.protocol.events import AttemptEvent, AttemptStarted, Queued
    from llm_routerd.queue.deliveries import BeginVerdict, Delivery
    from llm_routerd.queue.outbox import Transcript


class Begins(Protocol):
    """The part of the broker that a sink needs."""

    async def begin(
        self, delivery: Delivery, transcript: Transcript, event: AttemptStarted, *, publish: bool
    ) -> BeginVerdict:
        """Write the first attempt's event if the request is ours and open."""
        ...

    def tell_queued(
        self, delivery: Delivery, transcript: Transcript, event: Queued, *, publish: bool, is_begun: bool
    ) -> asyncio.Future[Any]:
        """Write that the request waits if it is ours and open."""
        ...


class QueueSink:
    """An `EventSink` over a transcript.  The first attempt begins the request in Redis, or finds that it may not."""

    def __init__(self, broker: Begins, delivery: Delivery, transcript: Transcript, *, publish: bool) -> None:
        self._broker = broker
        self._delivery = delivery
        self._transcript = transcript
        self._publish = publish
        self.verdict: BeginVerdict | None = None  # None: no attempt yet
        self._telling: asyncio.Future[Any] | None = None  # that the request waits

    @property
    def begun(self) -> bool:
        """Whether this worker has written an attempt, so that the events stream is this entry's."""
        return self.verdict == "begun"

    async def begin(self, event: AttemptStarted) -> int:
        """Write the attempt; its number, 0 when the request has been ended, taken over or is a duplicate."""
        if self.begun:
            stands = await self._transcript.next_attempt(event)  # no model is paid before that is known
            return self._transcript.attempt if stands else 0
        self.verdict = await self._broker.begin(self._delivery, self._transcript, event, publish=self._publish)
        return self._transcript.attempt if self.begun else 0

    def emit(self, event: AttemptEvent) -> None:
        """An event of the running attempt; neighbouring text becomes one."""
        if isinstance(event, (Token, Reasoning)):
            self._transcript.text(event.type, event.text)
        else:
            self._transcript.event(event)

    def queued(self, event: Queued) -> bool:
        """Tell that the request waits: one such event at a time is under way, and only behind all others."""
        if self._transcript.has_pending or (self._telling is not None and not self._telling.done()):
            return False
        self._telling = self._broker.tell_queued(
            self._delivery, self._transcript, event, publish=self._publish, is_begun=self.begun
        )
        self._telling.add_done_callback(_hear)
        return True

    @property
    def has_room(self) -> bool:
        """Whether more text may be taken from the model now."""
        return self._transcript.has_room

    async def room(self) -> None:
        """Wait until it may."""
        await self._transcript.room()


def _hear(reply: asyncio.Future[Any]) -> None:
    """A refusal has been heard: nothing depends on it."""
    if not reply.cancelled():
        reply.exception()
