"""Final events on their way to Redis, whatever it refuses: a model that has been paid is not asked again for that.

Redis refuses some commands for good: a right is missing, a key is of another type, a script is not allowed what it
does.  (What it refuses for the moment, out of memory or while it loads, the pipe keeps and repeats.)  So less and less
is asked of it, until something stands: the whole; the same without metrics; without a dead letter; an error and a dead
letter; a dead letter alone.  If nothing does, what there is to say is kept, and said again until it is heard; the
request stays ours, and takes its place among those in flight.  An answer is kept for a minute before there is an error
in its place.  As long as something is kept, or the last ending is a dead letter that should have been an event, the
worker is not ready, and says why.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec.structs import replace

from llm_routerd.logs import get_logger
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.events import Failed, Result
from llm_routerd.queue.connection import Backoff, ResponseError, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.deliveries import Commitment, Committed, Delivery
log = get_logger()

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
ANSWER_KEPT_SECONDS = 60.0
_REFUSED = "the answer stood, and Redis refused the event that has it; the log of llm-routerd says why"
UNWRITABLE = (
    "no final event can be written to its events stream: the key is of another type, or holds an event at or beyond "
    "the final one that no worker wrote"
)


class Committer:
    """Brings endings to Redis.

    Args:
        broker: this worker's side of the queue.
        make_letter: makes the dead letter of an entry that is given up.
        on_trouble: told why endings cannot be written as they should, and None when they can again.
    """

    def __init__(
        self,
        broker: Broker,
        make_letter: Callable[[Delivery, Failed], Sequence[bytes | str]],
        on_trouble: Callable[[str | None], object] = lambda _why: None,
    ) -> None:
        self._broker = broker
        self._make_letter = make_letter
        self._on_trouble = on_trouble
        self._kept = 0  # how many cannot be written
        self._is_spoilt = False  # the last one had to do without its event
        self._loop = asyncio.get_running_loop()

    async def commit(self, commitment: Commitment) -> Committed:
        """Write it; returns when it stands, or what stands in its place."""
        try:
            committed = await self._write(commitment)  # as ever
        except ResponseError as error:
            why = describe(error)
        else:
            if self._is_spoilt:
                self._spoilt(None)
            return committed
        kept_until = self._loop.time() + (ANSWER_KEPT_SECONDS if isinstance(commitment.event, Result) else 0.0)
        less = await self._write_less(commitment, why, kept_until)
        log.warning("commit_refused", entry=commitment.delivery.entry, why=why, kept=less is None)
        return less or await self._keep(commitment, why, kept_until)

    async def _keep(self, commitment: Commitment, why: str, kept_until: float) -> Committed:
        """Try again until it can be written."""
        backoff = Backoff(first_seconds=FIRST_PAUSE_SECONDS, cap_seconds=LONGEST_PAUSE_SECONDS)
        self._kept += 1
        self._on_trouble(why)
        try:
            while True:
                await asyncio.sleep(backoff.next_seconds())
                with suppress(ResponseError):
                    return await self._write(commitment)
                if (committed := await self._write_less(commitment, why, kept_until)) is not None:
                    return committed
        finally:
            self._kept -= 1
            if not self._kept and not self._is_spoilt:
                self._on_trouble(None)

    def _spoilt(self, why: str | None) -> None:
        """The last ending is a dead letter in the place of its event; None: it is as it should be."""
        self._is_spoilt = why is not None
        if why is not None or not self._kept:
            self._on_trouble(why)

    async def _write_less(self, commitment: Commitment, why: str, kept_until: float) -> Committed | None:
        """Write the most of it that Redis takes, which has refused the whole and said why; None: nothing.

        Until `kept_until`, in loop time, there is nothing else in the place of its event.
        """
        for step in self._steps(commitment):
            if step.event is not commitment.event and self._loop.time() < kept_until:
                return None
            try:
                committed = await self._write(step)
            except ResponseError:
                continue
            if commitment.request_ids and not step.request_ids:
                self._spoilt(why)
            if commitment.dead_letter and not step.dead_letter:
                self._letter_lost(commitment, why)
            if commitment.metrics:
                await self.tell_metrics(commitment.metrics)
            return committed
        return None

    def _steps(self, commitment: Commitment) -> Iterator[Commitment]:
        """Less and less of it."""
        less = replace(commitment, metrics=b"")
        if commitment.metrics:
            yield less
        if commitment.dead_letter and commitment.request_ids:
            yield replace(less, dead_letter=())
        event = commitment.event
        if not isinstance(event, Failed):
            event = Failed(
                request_id=event.request_id,
                code=ErrorCode.INTERNAL,
                message=_REFUSED,
                attempts=event.attempts,
                metadata=event.metadata,
            )
            yield replace(less, event=event, dead_letter=self._make_letter(commitment.delivery, event))
        yield self.without_event(less, event.code, event.message)

    def without_event(self, commitment: Commitment, code: ErrorCode, message: str = UNWRITABLE) -> Commitment:
        """The ending that has a dead letter in the place of its event."""
        event = Failed(request_id=commitment.event.request_id, code=code, message=message)
        letter = self._make_letter(commitment.delivery, event)
        return replace(commitment, event=event, request_ids=(), transcript=None, dead_letter=letter)

    async def _write(self, commitment: Commitment) -> Committed:
        committed = await self._broker.commit(commitment)
        if committed.letters_dropped:
            log.warning("dead_letters_dropped", count=committed.letters_dropped)
        if committed.letter_lost is not None:
            self._letter_lost(commitment, committed.letter_lost)
        if committed.verdict == "unwritable":
            log.info("events_unwritable", entry=commitment.delivery.entry)
            return await self._write(self.without_event(commitment, ErrorCode.INVALID_REQUEST))
        return committed

    def _letter_lost(self, commitment: Commitment, why: str) -> None:
        log.error("dead_letter_refused", entry=commitment.delivery.entry, key=self._broker.keys.dead, why=why)

    async def tell_metrics(self, metrics: bytes) -> None:
        """A metrics event on its own, which nothing depends on."""
        try:
            await self._broker.emit_metrics(metrics)
        except ResponseError as error:
            log.warning("metrics_refused", why=describe(error))
