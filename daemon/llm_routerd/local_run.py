"""A run with tools in this process: what a worker does over streams, with functions and without Redis.

The machine is the worker's own (`agents`), and so are its events; a call is a task in the place of an entry, and a
person is a coroutine in the place of a stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import orjson
from msgspec.structs import replace

from llm_routerd.agents.calls import Turn, dispatch
from llm_routerd.agents.ending import answered, unanswered
from llm_routerd.agents.offering import offer
from llm_routerd.agents.run import AgentRun, Ask, Expire, Fail, Wait
from llm_routerd.agents.words import Answer, Listener
from llm_routerd.client.tool_signature import Threads
from llm_routerd.config.agents import AgentsConfig
from llm_routerd.protocol.events import AttemptRejected, CallConfirmed, Failed, Result, ToolCalled
from llm_routerd.running.caller import TurnRules
from llm_routerd.running.ending import Answered, Unanswered, Withdrawn
from llm_routerd.running.run import Run

if TYPE_CHECKING:
    from llm_routerd.agents.run import OpenCall
    from llm_routerd.agents.words import Consent, Heard
    from llm_routerd.config.tree import Chain
    from llm_routerd.local_tools import LocalTools
    from llm_routerd.protocol.events import AttemptEvent, AttemptStarted, Queued, RunEvent
    from llm_routerd.protocol.request import Request
    from llm_routerd.protocol.tool import ToolRequest
    from llm_routerd.running.resources import Resources

Word = bool | str | dict[str, Any]
Confirm = Callable[[ToolCalled], Word | Awaitable[Word]]

_LAST_SECONDS = 5.0  # for tools that are cancelled, to put in order what they hold
_GRACE_SECONDS = 1.0  # the machine's clock tells when a tool is late, and a tool's own only where that is blocked


class RunSink(Protocol):
    """Where the events of a run go: those of its attempts, as `running` has it, and its own."""

    async def begin(self, event: AttemptStarted) -> int:
        """A call to a model is about to be made; the attempt's number in the run, from 1 on."""
        ...

    def emit(self, event: AttemptEvent | RunEvent) -> None:
        """An event of the run.  Never blocks."""
        ...

    def queued(self, event: Queued) -> bool:
        """The run waits for a model, as `running` has it."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether more text may be taken from the model now."""
        ...

    async def room(self) -> None:
        """Wait until it may."""
        ...


class LocalRun:
    """One run, from its first turn to its end.

    Args:
        resources: of the configuration in force.
        request: what is asked, with `agent`.
        chain: whom to ask.
        sink: gets the events of every attempt, and the run's.
        deadline: loop time at which an answer is no longer wanted; None: whenever it comes.
        tools: that the model may call.
        confirm: asked about calls of tools that demand it.

    Raises:
        ValueError: a tool demands it, and there is no `confirm`.
    """

    def __init__(
        self,
        resources: Resources,
        request: Request,
        chain: Chain,
        sink: RunSink,
        *,
        deadline: float | None,
        tools: LocalTools,
        confirm: Confirm | None,
    ) -> None:
        spec = request.agent
        if spec is None:
            raise LookupError("a request without `agent` is no run")
        self._resources = resources
        self._request = request
        self._chain = chain
        self._sink = sink
        self._deadline = deadline
        self._tools = tools
        self._agents = resources.config.agents
        self._offer = offer(spec, tools.registered, AgentsConfig(), None)
        if self._offer.asks and confirm is None:
            raise ValueError(
                f"{', '.join(sorted(self._offer.asks))}: no call without a word of `confirm`, which is None"
            )
        self._confirm = confirm
        self._asking = Threads(1)  # a person at a terminal is asked about one call, and then about the next
        self._state = AgentRun(spec.max_turns or self._agents.max_turns)
        self._words: asyncio.Queue[Answer | tuple[ToolCalled, Word] | Exception] = asyncio.Queue()
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by the id of the call
        self._entries = 0
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._started_ms = round(time.time() * 1000)

    @property
    def request_id(self) -> str:
        """Of the request."""
        return self._request.id

    async def until_done(self) -> Result | Failed:
        """Ask, call and wait until there is an answer, or there can be none.  Cancelled, it cancels its tools."""
        try:
            while True:
                match decision := self._state.decide(self._now_ms()):
                    case Ask():
                        end = await self._take_turn(decision)
                        if end is not None:
                            return end
                    case Wait():
                        await self._listen(decision.until_ms)
                    case Expire(calls=calls):
                        self._expire(calls)
                    case Fail():
                        return self._failed(decision)
        finally:
            await self._stop()

    # ------------------------------------------------------------------ a model's turn

    async def _take_turn(self, asked: Ask) -> Result | Failed | None:
        """Ask the chain; None: it has called tools, and the run goes on."""
        request = replace(
            self._request,
            messages=self._request.messages + asked.messages,
            tools=self._offer.as_functions(),
            tool_choice="none" if asked.is_last else None,
        )
        rules = TurnRules(parameters=self._offer.parameters, corrected=frozenset(self._state.corrected))
        sink = _TurnSink(self._sink)
        run = Run(self._resources, request, self._chain, sink, deadline=self._deadline, rules=rules)
        ending = await run.until_done()
        match ending:
            case Answered(event=answer) if answer.tool_calls and not asked.is_last:
                for rejected in sink.rejected:
                    self._state.apply(rejected)
                self._dispatch(answer, asked.turn)
                return None
            case Answered(event=answer):
                latency_ms = round(self._now_ms()) - self._started_ms
                return answered(answer, self._state, asked, latency_ms=latency_ms)
            case Unanswered(event=failure):
                return unanswered(failure, self._state, asked)
            case Withdrawn():
                raise RuntimeError("a sink that accepts every attempt cannot withdraw one")

    def _dispatch(self, answer: Result, number: int) -> None:
        """Tell the turn's events, and have its calls made."""
        now_ms = round(self._now_ms())
        turn = Turn(
            number=number,
            origin=self._request.id,
            attempt=answer.attempt,
            now_ms=now_ms,
            started_ms=self._started_ms,
            deadline_ms=None if self._deadline is None else round(self._now_ms(self._deadline)),
            confirmation_ms=round(self._agents.confirmation_seconds * 1000),
            always=frozenset(self._state.always),
        )
        made: list[ToolRequest] = []
        asks: list[ToolCalled] = []
        for sending in dispatch(self._request, answer, self._offer, turn):
            event = sending.event
            if isinstance(event, ToolCalled) and sending.call is not None:
                event = replace(event, entry=self._entry(now_ms))
                made.append(sending.call)
            elif isinstance(event, ToolCalled) and event.confirm:
                asks.append(event)
            self._happened(event)
        for call in made:
            self._begin(call.call_id, self._act(call))
        for event in asks:
            self._begin(event.call_id, self._ask_person(event))

    # ------------------------------------------------------------------ tools and people

    async def _act(self, call: ToolRequest) -> None:
        seconds = (call.deadline_ms - self._now_ms()) / 1000 + _GRACE_SECONDS
        self._words.put_nowait(await self._tools.answer(call, seconds))

    async def _ask_person(self, event: ToolCalled) -> None:
        if self._confirm is None:
            raise RuntimeError("a call waits for a person, and there is nobody to ask")
        try:
            word = await self._asking.call(self._confirm, event)
        except Exception as error:  # noqa: BLE001 - it is raised again where the run is waited for
            self._words.put_nowait(error)
        else:
            self._words.put_nowait((event, word))

    async def _listen(self, until_ms: float) -> None:
        """Wait for the next word, and take it in; until then at the longest."""
        try:
            async with asyncio.timeout((until_ms - self._now_ms()) / 1000):
                word = await self._words.get()
        except TimeoutError:
            return
        if isinstance(word, Exception):
            raise word
        if isinstance(word, Answer):
            self._take_in(self._listener().answers([word]))
            return
        event, said = word
        heard = self._listener().consents([_consent(event, said)])
        if not heard and event.call_id in {call.call_id for call in self._state.waiting()}:
            raise ValueError(f"`confirm` gave arguments that {event.name} does not take")
        self._take_in(heard)

    def _expire(self, calls: tuple[OpenCall, ...]) -> None:
        self._take_in(self._listener().late(calls))
        for call in calls:
            self._tasks[call.call_id].cancel()

    def _listener(self) -> Listener:
        return Listener(
            self._request,
            self._state,
            self._tools.registered,
            now_ms=round(self._now_ms()),
            result_bytes=self._agents.result_bytes,
        )

    def _take_in(self, heard: list[Heard]) -> None:
        """These words count."""
        for each in heard:
            event = each.event
            if isinstance(event, CallConfirmed) and each.call is not None:
                event = replace(event, entry=self._entry(round(self._now_ms())))
                self._begin(each.call.call_id, self._act(each.call))
            self._happened(event)

    def _begin(self, call_id: str, doing: Awaitable[None]) -> None:
        self._tasks[call_id] = asyncio.ensure_future(doing)

    def _entry(self, now_ms: int) -> str:
        """What stands for a call's place in its tool's stream: when it was made, and a number."""
        self._entries += 1
        return f"{now_ms}-{self._entries}"

    def _happened(self, event: RunEvent) -> None:
        self._state.apply(event)
        self._sink.emit(event)

    # ------------------------------------------------------------------ ends

    def _failed(self, decision: Fail) -> Failed:
        return Failed(
            request_id=self._request.id,
            code=decision.code,
            message=decision.message,
            attempts=tuple(self._state.spent.attempts),
            metadata=self._request.metadata,
        )

    async def _stop(self) -> None:
        """No tool acts for nobody, as far as it can be stopped: a thread cannot."""
        tasks = [task for task in self._tasks.values() if not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_SECONDS)

    def _now_ms(self, at: float | None = None) -> float:
        """Unix time, by a clock that nobody sets; `at`: of this loop time."""
        return self._started_ms + ((self._loop.time() if at is None else at) - self._began) * 1000


class _TurnSink:
    """The run's sink; keeps the attempts that come to nothing, which the machine is told of if the turn stands."""

    def __init__(self, sink: RunSink) -> None:
        self._sink = sink
        self.rejected: list[AttemptRejected] = []

    @property
    def has_room(self) -> bool:
        """As the run's."""
        return self._sink.has_room

    async def begin(self, event: AttemptStarted) -> int:
        """As the run's."""
        return await self._sink.begin(event)

    def emit(self, event: AttemptEvent | RunEvent) -> None:
        """Pass it on."""
        if isinstance(event, AttemptRejected):
            self.rejected.append(event)
        self._sink.emit(event)

    def queued(self, event: Queued) -> bool:
        """As the run's."""
        return self._sink.queued(event)

    async def room(self) -> None:
        """As the run's."""
        await self._sink.room()


def _consent(event: ToolCalled, word: Word) -> Consent:
    """What `confirm` has said of a call, as a person would write it.

    Raises:
        TypeError: it is no word.
    """
    call_id = event.call_id.encode()
    agreed = {b"confirm": call_id, b"args_sha256": event.args_sha256.encode(), b"by": b"confirm"}
    match word:
        case True:
            return agreed
        case False:
            return {b"deny": call_id, b"by": b"confirm"}
        case str():
            return {b"deny": call_id, b"by": b"confirm", b"reason": word.encode(errors="replace")}
        case dict():
            return agreed | {b"args": orjson.dumps(word)}
        case _:
            raise TypeError(f"`confirm` must return True, False, a reason or arguments, not {type(word).__name__}")
