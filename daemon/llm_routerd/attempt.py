"""One call to one deployment: its clock, and the loop that judges the tokens while they come."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from llm_routerd.core.call import Delta, Finish
from llm_routerd.core.errors import BackendError
from llm_routerd.core.judge import Accepted, Judge, Released, is_encodable
from llm_routerd.core.outcome import AttemptCode, Rejection
from llm_routerd.validation import LIGHT_STEPS, ValidationProcess

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from types import TracebackType

    from llm_routerd.config.tree import Deployment
    from llm_routerd.core.call import Call
    from llm_routerd.core.events import AttemptRejected, AttemptStarted
    from llm_routerd.core.schema import AnswerSchema

_NOT_UNICODE = Rejection(code=AttemptCode.UPSTREAM, reason="invalid Unicode", retryable=True, early=True)
# A backend yields a Finish or raises; one that does neither has cut its stream.
_CUT = Rejection(code=AttemptCode.TRUNCATED, reason="the stream ended without its terminal event", retryable=True)
_LATE = {
    AttemptCode.FIRST_TOKEN_TIMEOUT: "no token within {:g} s",
    AttemptCode.IDLE_TIMEOUT: "no token for {:g} s",
    AttemptCode.TIMEOUT: "no whole answer within {:g} s",
}
HOLD_SECONDS = 0.4  # longest time that `probe` holds an opening back


class EventSink(Protocol):
    """Where the events of one request go."""

    async def attempt_started(self, event: AttemptStarted) -> bool:
        """A call is about to be made; False: do not make it, the request is no longer ours."""
        ...

    def text(self, kind: str, text: str) -> None:
        """Text of the running attempt; `kind` is `token` or `reasoning`.  Never blocks."""
        ...

    def rejected(self, event: AttemptRejected) -> None:
        """The running attempt is no answer.  Never blocks."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether more text may be taken from the model now."""
        ...

    async def room(self) -> None:
        """Wait until it may."""
        ...


class ModelStream(Protocol):
    """The part of a backend that an attempt needs."""

    def stream(self, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        """Ask the model; see `llm_routerd.backends.protocol.Backend`."""
        ...


@dataclass(slots=True, kw_only=True)
class Bounds:
    """How long an attempt may take, in seconds.

    `first_token_seconds` is None where only the whole answer is bounded; `deadline` is a loop time.
    """

    first_token_seconds: float | None
    idle_seconds: float
    total_seconds: float
    deadline: float | None

    @classmethod
    def of(cls, deployment: Deployment, *, streams: bool, deadline: float | None) -> Bounds:
        """The bounds that the configuration sets for a request that streams, or does not."""
        return cls(
            first_token_seconds=deployment.timeout if streams else None,
            idle_seconds=deployment.idle_timeout,
            total_seconds=deployment.stream_timeout if streams else deployment.timeout,
            deadline=deadline,
        )


class AttemptClock:
    """Ends the block when the first token, the next token or the whole answer is late; `rejection` tells which.

    One timer, moved only by the first token and when it fires: any other token costs no more than noting the time.
    Time in `paused` (Redis has no room) is not the model's, and not counted; the request's deadline goes on.
    """

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        self._started = self._last = self._loop.time()
        self._paused_seconds = 0.0
        self._is_paused = False
        self.ttft_seconds: float | None = None
        self.rejection: Rejection | None = None

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._started = self._last = self._loop.time()
        self._check()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    @property
    def elapsed_seconds(self) -> float:
        """Since the attempt began, without what was paused."""
        return self._loop.time() - self._started - self._paused_seconds

    def touch(self) -> bool:
        """The model has said something; True the first time."""
        self._last = self._loop.time()
        if self.ttft_seconds is not None:
            return False
        self.ttft_seconds = self._last - self._started
        if self._timer is not None and self._last + self._bounds.idle_seconds < self._timer.when():
            self._timer.cancel()  # it stood at the bound of the first token, and that of the gap is nearer
            self._check()
        return True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The model waits for us."""
        began = self._loop.time()
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False
            self._last = self._loop.time()
            self._paused_seconds += self._last - began

    def _check(self) -> None:
        now = self._loop.time()
        due, code, seconds = min(self._bounds_in_force(now))
        if now < due:
            self._timer = self._loop.call_at(due, self._check)
        elif not self._timeout.expired():
            reason = _LATE[code].format(seconds) if seconds else "the request's deadline came"
            self.rejection = Rejection(code=code, reason=reason, retryable=True)
            self._timeout.reschedule(now)

    def _bounds_in_force(self, now: float) -> list[tuple[float, AttemptCode, float]]:
        """When each of the bounds is due that count now, its code, and its length in seconds (0: the deadline)."""
        bounds, began = self._bounds, self._started + self._paused_seconds
        if self._is_paused:
            late = [(now + bounds.idle_seconds, AttemptCode.IDLE_TIMEOUT, bounds.idle_seconds)]  # look again then
        elif self.ttft_seconds is None and bounds.first_token_seconds is not None:
            seconds = bounds.first_token_seconds
            late = [(began + seconds, AttemptCode.FIRST_TOKEN_TIMEOUT, seconds)]
        else:
            late = [(began + bounds.total_seconds, AttemptCode.TIMEOUT, bounds.total_seconds)]
            if self.ttft_seconds is not None:
                late.append((self._last + bounds.idle_seconds, AttemptCode.IDLE_TIMEOUT, bounds.idle_seconds))
        if bounds.deadline is not None:
            late.append((bounds.deadline, AttemptCode.TIMEOUT, 0.0))
        return late


class Attempt:
    """One call, judged while it streams.

    Args:
        backend: who makes the call.
        call: what is asked.
        judge: fresh; it holds the answer when `run` has returned.
        sink: where text goes.
        bounds: how long it may take.
        on_first_token: told the time to first token, in seconds.
        schema: what the judge holds the answer to.
        validation: where that is done when it would take long.
    """

    def __init__(
        self,
        *,
        backend: ModelStream,
        call: Call,
        judge: Judge,
        sink: EventSink,
        bounds: Bounds,
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
        self.clock = AttemptClock(bounds)
        self.finish: Finish | None = None

    @property
    def elapsed_seconds(self) -> float:
        """Since the call began, without what we made it wait."""
        return self.clock.elapsed_seconds

    @property
    def ttft_seconds(self) -> float | None:
        """From the call to its first token, if one came."""
        return self.clock.ttft_seconds

    async def run(self) -> Accepted | Rejection:
        """Make the call; the connection to the model is closed, or back in its pool, when this returns or raises."""
        clock = self.clock
        stream = self._backend.stream(self._call)
        try:
            async with clock:
                verdict = await self._consume(stream)
        except BackendError as error:
            verdict = Rejection(
                code=error.code,
                reason=error.reason,
                retryable=error.retryable,
                retry_after_seconds=error.retry_after_seconds,
            )
        except TimeoutError:
            if clock.rejection is None:
                raise
            verdict = clock.rejection
        finally:
            if self._release_timer is not None:
                self._release_timer.cancel()
            await stream.aclose()
        return verdict

    async def _consume(self, stream: AsyncGenerator[Delta | Finish, None]) -> Accepted | Rejection:
        sink, clock = self._sink, self.clock
        async for item in stream:
            if clock.touch():
                self._on_first_token(clock.elapsed_seconds)
            if isinstance(item, Finish):
                self.finish = item
                return await self._finish(item)
            if item.reasoning:
                if not is_encodable(item.reasoning):
                    return _NOT_UNICODE
                self._show(Released("", item.reasoning))
            if item.text:
                rejection = self._feed(item.text)
                if rejection is not None:
                    return rejection
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
        if schema is None or finish.tool_calls or schema.most_steps(chars) <= LIGHT_STEPS:
            verdict = self._judge.finish(finish)
        else:
            verdict = await self._finish_elsewhere(schema, finish)
        if isinstance(verdict, Accepted):
            self._show(verdict.tail)
        return verdict

    async def _finish_elsewhere(self, schema: AnswerSchema, finish: Finish) -> Accepted | Rejection:
        """Validate off the event loop: other requests are not to wait for this answer, or for its schema."""
        verdict = self._judge.finish(finish, validate=False)
        if isinstance(verdict, Rejection):
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
            self._sink.text("reasoning", released.reasoning)
        if released.text:
            self._sink.text("token", released.text)
