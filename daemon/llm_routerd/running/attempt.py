"""One call to one deployment: the loop that judges the tokens while they come."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from llm_routerd.accounting.estimate import usage_of
from llm_routerd.judging.judge import Accepted, Judge, Released
from llm_routerd.protocol.call import BackendError, Delta, Finish
from llm_routerd.protocol.codes import AttemptCode, Lack
from llm_routerd.protocol.events import Reasoning, Token
from llm_routerd.protocol.outcome import Rejection
from llm_routerd.running.validation import LIGHT_STEPS, ValidationProcess

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from llm_routerd.jsonschema.compiled import AnswerSchema
    from llm_routerd.protocol.backend import Backend
    from llm_routerd.protocol.call import Call
    from llm_routerd.protocol.events import AttemptEvent, AttemptStarted, Queued
    from llm_routerd.protocol.outcome import Usage
    from llm_routerd.running.clock import AttemptClock

# A backend yields a Finish or raises; one that does neither has cut its stream.
_CUT = Rejection(code=AttemptCode.TRUNCATED, reason="the stream ended without its terminal event", retryable=True)
PREEMPTED = Rejection(code=AttemptCode.PREEMPTED, reason="cut for a call of the high lane; begun again later")
HOLD_SECONDS = 0.4  # longest time that `probe` holds an opening back


class EventSink(Protocol):
    """Where the events of one request go."""

    async def begin(self, event: AttemptStarted) -> int:
        """A call is about to be made; the attempt's number, from 1 on; 0: do not make it, the request is not ours."""
        ...

    def emit(self, event: AttemptEvent) -> None:
        """An event of the running attempt.  Never blocks."""
        ...

    def queued(self, event: Queued) -> bool:
        """The request waits, and no attempt runs.  Never blocks; False: it was not taken, now there is no place."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether more text may be taken from the model now."""
        ...

    async def room(self) -> None:
        """Wait until it may."""
        ...


class Attempt:
    """One call, judged while it streams.

    Args:
        backend: who makes the call.
        call: what is asked.
        judge: fresh; it holds the answer when `run` has returned.
        sink: where text goes.
        clock: bounds it; fresh.
        on_first_token: told the time to first token, in seconds.
        schema: what the judge holds the answer to.
        validation: where that is done when it would take long.
    """

    def __init__(
        self,
        *,
        backend: Backend,
        call: Call,
        judge: Judge,
        sink: EventSink,
        clock: AttemptClock,
        on_first_token: Callable[[float], None],
        schema: AnswerSchema | None,
        validation: ValidationProcess,
    ) -> None:
        self._backend = backend
        self._call = call
        self._judge = judge
        self._sink = sink
        self._on_first_token = on_first_token
        self._schema = schema
        self._validation = validation
        self._release_timer: asyncio.TimerHandle | None = None
        self._chars = 0
        self._reasoning_chars = 0
        self.clock = clock
        self.finish: Finish | None = None

    @property
    def text(self) -> str:
        """The answer as far as it has come, without its thinking."""
        return self._judge.text

    @property
    def elapsed_seconds(self) -> float:
        """Since the call began, without what we made it wait."""
        return self.clock.elapsed_seconds

    @property
    def ttft_seconds(self) -> float | None:
        """From the call to its first token, if one came."""
        return self.clock.ttft_seconds

    def usage(self, rejection: Rejection | None) -> Usage | None:
        """What the call has used so far, given what became of it; see `usage_of`."""
        code = None if rejection is None else rejection.code
        return usage_of(self._call, self.finish, self._chars + self._reasoning_chars, code)

    async def run(self) -> Accepted | Rejection:
        """Make the call; the connection to the model is closed, or back in its pool, when this returns or raises."""
        clock = self.clock
        stream = self._backend.stream(self._call)
        try:
            with clock:
                verdict = await self._consume(stream)
        except BackendError as error:
            verdict = Rejection(
                code=error.code,
                reason=error.reason,
                retryable=error.retryable,
                retry_after_seconds=error.retry_after_seconds,
                lack=error.lack,
            )
        except TimeoutError:
            if clock.rejection is None:
                raise
            verdict = self._late(clock.rejection)
        finally:
            if self._release_timer is not None:
                self._release_timer.cancel()
            await stream.aclose()
        return verdict

    def preempt(self) -> None:
        """Break it off for another call, if it runs."""
        self.clock.end(PREEMPTED)

    def _late(self, rejection: Rejection) -> Rejection:
        """What to say of a bound that was passed, where that was before anybody could be asked."""
        if rejection is PREEMPTED:
            return rejection
        sending = self._call.sending
        if not sending.is_looking_up:
            if sending.is_under_way:
                return rejection
            reason = f"no connection could be made; {rejection.reason}"
            return Rejection(code=AttemptCode.CONNECT, reason=reason, retryable=True)
        reason = f"our own shortage: no DNS resolver has answered; {rejection.reason}"
        return Rejection(code=AttemptCode.INTERNAL, reason=reason, retryable=True, lack=Lack.ROUTE)

    async def _consume(self, stream: AsyncGenerator[Delta | Finish, None]) -> Accepted | Rejection:
        sink, clock = self._sink, self.clock
        async for item in stream:
            if clock.touch():
                self._on_first_token(clock.elapsed_seconds)
            if isinstance(item, Finish):
                self.finish = item
                return await self._finish(item)
            if item.reasoning:
                self._reasoning_chars += len(item.reasoning)
                rejection = self._judge.reason(item.reasoning)
                if rejection is not None:
                    return rejection
                self._show(Released("", item.reasoning))
            if item.text:
                rejection = self._feed(item.text)
                if rejection is not None:
                    return rejection
                if self._schema is not None and self._judge.only_blanks_follow:
                    self.finish = Finish(finish_reason="stop")  # its usage is to be estimated
                    return await self._finish(self.finish)
            if not sink.has_room:
                with clock.paused():
                    await sink.room()
        return _CUT

    def _feed(self, text: str) -> Rejection | None:
        """Judge text; show what may be shown."""
        self._chars += len(text)
        verdict = self._judge.feed(text)
        if isinstance(verdict, Rejection):
            return verdict
        self._show(verdict)
        if self._judge.holding and self._release_timer is None:
            self._release_timer = asyncio.get_running_loop().call_later(HOLD_SECONDS, self._release)
        return None

    async def _finish(self, finish: Finish) -> Accepted | Rejection:
        schema, chars = self._schema, self._chars + len(finish.text)
        if schema is None or schema.most_steps(chars) <= LIGHT_STEPS:
            verdict = self._judge.finish(finish)
        else:
            verdict = await self._finish_elsewhere(schema, finish)
        if isinstance(verdict, Accepted):
            self._show(verdict.tail)
        return verdict

    async def _finish_elsewhere(self, schema: AnswerSchema, finish: Finish) -> Accepted | Rejection:
        """Validate off the event loop: other requests are not to wait for this answer, or for its schema."""
        verdict = self._judge.finish(finish, validate=False)
        if isinstance(verdict, Rejection) or verdict.answer.tool_calls:
            return verdict
        with self.clock.paused():
            problem = await self._validation.validate(schema, verdict.answer.content)
        if problem is not None:
            return Rejection(code=AttemptCode.SCHEMA_VIOLATION, reason=problem)
        return verdict

    def _release(self) -> None:
        if self._judge.holding:
            self._show(self._judge.release())

    def _show(self, released: Released) -> None:
        if not self._judge.shows:
            return
        if released.reasoning:
            self._sink.emit(Reasoning(released.reasoning))
        if released.text:
            self._sink.emit(Token(released.text))
