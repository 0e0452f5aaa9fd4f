"""One run with tools, from where its events stand to where it ends, rests, or needs a place.

look -> replay -> .--> hear, observe -> decide --> ask for a turn -> answer -> end
                  |                       |                      '-> calls -> dispatch --.
                  '-----------------------+-> time is over: observe <--------------------'
                                          '-> rest | fail
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgspec.structs import replace

from llm_routerd.agents.calls import Turn, dispatch
from llm_routerd.agents.offering import offer, refusal_of, tenant_of
from llm_routerd.agents.run import AgentRun, Ask, Expire, Fail, Wait
from llm_routerd.agents.words import Answer, Listener
from llm_routerd.logs import get_logger
from llm_routerd.protocol.codes import ErrorCode, Fault
from llm_routerd.protocol.events import Failed, ToolReturned
from llm_routerd.protocol.reading import UnknownEvent
from llm_routerd.queue.runs import End, Word
from llm_routerd.running.caller import TurnRules
from llm_routerd.running.ending import NOTHING, Answered, Unanswered, Withdrawn
from llm_routerd.worker.ending import Buried
from llm_routerd.worker.rest import DUE, Rest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llm_routerd.agents.offering import Offer
    from llm_routerd.agents.registration import Tool, Unsound
    from llm_routerd.agents.words import Heard
    from llm_routerd.protocol.events import Result
    from llm_routerd.protocol.reading import SeenEvent
    from llm_routerd.protocol.request import Request
    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.runs import Spoken, Wrote
    from llm_routerd.running.ending import Spent
    from llm_routerd.worker.admission import Admission
    from llm_routerd.worker.asking import Asking
    from llm_routerd.worker.clock import ServerClock
    from llm_routerd.worker.ending import Ending
    from llm_routerd.worker.inflight import InFlight
    from llm_routerd.worker.runs.books import RunBooks
    from llm_routerd.worker.runs.toolbox import Toolbox

log = get_logger()

MOST_LISTENINGS = 16  # at one waking: whoever fills an inbox does not keep the others waiting


class RunWalk:
    """Goes on with runs.

    Args:
        broker: this worker's side of the queue.
        asking: asks for a turn.
        toolbox: knows the tools.
        clock: the server's.
        books: is told what runs do.
    """

    def __init__(
        self, *, broker: Broker, asking: Asking, toolbox: Toolbox, clock: ServerClock, books: RunBooks
    ) -> None:
        self._broker = broker
        self._asking = asking
        self._toolbox = toolbox
        self._clock = clock
        self._books = books

    async def walk(self, item: InFlight, request: Request, admission: Admission) -> Ending | Rest:
        """Go on with a run until it ends or rests; one that has no place rests before it asks a model."""
        run = _Run(item, request, admission)
        try:
            return await self._walk(run)
        except asyncio.CancelledError:
            if not item.absorbs_cancellation():
                raise
            ending = await self._asking.stopped(item, request, run.uncounted)
            await self._take_back(run)
            return ending

    async def _walk(self, run: _Run) -> Ending | Rest:
        item, request = run.item, run.request
        looked = await self._broker.look(item.delivery, request.id)
        if looked.verdict not in {"begun", "sealed"}:
            return await self._asking.withdrawn(item, request, looked.verdict, NOTHING)
        if looked.is_ours or looked.verdict == "sealed":
            async for event in self._broker.journal(request.id):
                run.saw(event)
        if looked.verdict == "sealed":
            await self._take_back(run)
            return await self._asking.leave(item, request, looked.sealed_by or "", NOTHING)
        run.tools = await self._toolbox.tools()
        if not run.state.turn and (refused := self._refusal(run)) is not None:
            return refused
        return await self._go_on(run)

    async def _go_on(self, run: _Run) -> Ending | Rest:
        for _ in range(MOST_LISTENINGS):
            if run.state.waiting() and not await self._listen(run):
                return Withdrawn(spent=run.uncounted)
            match decision := run.state.decide(self._clock.server_ms()):
                case Ask():
                    outcome = await self._take_turn(run, decision)
                    if outcome is not None:
                        return outcome
                case Expire(calls=calls):
                    listener = run.listener(round(self._clock.server_ms()))
                    if not await self._observe(run, listener.late(calls)):
                        return Withdrawn(spent=run.uncounted)
                case Wait():
                    return await self._rest(run, decision)
                case Fail():
                    return await self._fail(run, decision)
        return Rest(until_ms=round(self._clock.server_ms()), ears=self._ears(run))

    def _refusal(self, run: _Run) -> Buried | None:
        """A run that may not begin."""
        config, request = run.admission.config, run.request
        refusal = refusal_of(run.spec, run.tools, config.agents, tenant_of(config.tenants, request.tenant_id))
        if refusal is None:
            return None
        run.item.is_ending = True
        event = Failed(request_id=request.id, code=refusal.code, message=refusal.message, metadata=request.metadata)
        return Buried(event=event, streams=(request.id,))

    # ------------------------------------------------------------------ a model's turn

    async def _take_turn(self, run: _Run, decision: Ask) -> Ending | Rest | None:
        """Ask the chain; None: it has called tools, and the run goes on."""
        item, request, now_ms = run.item, run.request, self._clock.server_ms()
        if item.rest is not None:
            return DUE
        run.begins(now_ms)
        offered = run.offer()
        functions = offered.as_functions()
        turn_request = replace(
            request,
            messages=request.messages + decision.messages,
            tools=functions,
            tool_choice="none" if decision.is_last and functions else None,
        )
        left_ms = None if run.deadline_ms is None else run.deadline_ms - now_ms
        deadline = None if left_ms is None else asyncio.get_running_loop().time() + left_ms / 1000
        rules = TurnRules(parameters=offered.parameters, corrected=frozenset(run.state.corrected))
        ending = await self._asking.ask(item, turn_request, run.admission.resources, deadline=deadline, rules=rules)
        match ending:
            case Answered(event=answer) if answer.tool_calls and not decision.is_last:
                run.uncounted = ending.spent
                return await self._dispatch(run, answer, offered, decision.turn)
            case Answered() | Unanswered():
                item.is_ending = True
                if run.state.turn:
                    await self._broker.withdraw(request.id, ())
                return run.ended(ending, decision, now_ms=self._clock.server_ms())
            case _:
                return ending

    async def _dispatch(self, run: _Run, answer: Result, offered: Offer, number: int) -> Ending | None:
        """Put the calls of a turn on their way; None: they are."""
        item, config = run.item, run.admission.config
        transcript = item.transcript
        if transcript is None:
            raise LookupError("an answer without a transcript")
        broken: set[str] = set()  # tools whose streams take no call
        while True:
            turn = Turn(
                number=number,
                origin=item.delivery.entry,
                attempt=transcript.attempt,
                now_ms=round(self._clock.server_ms()),
                started_ms=run.started_ms,
                deadline_ms=run.deadline_ms,
                confirmation_ms=round(config.agents.confirmation_seconds * 1000),
                always=frozenset(run.state.always),
                broken=frozenset(broken),
            )
            sendings = dispatch(run.request, answer, offered, turn)
            words = [Word(event=each.event, call=each.call) for each in sendings]
            wrote = await self._broker.dispatch(
                item.delivery, transcript, words, publish=run.request.publish, keep_ms=self._keep_ms(run)
            )
            if wrote.verdict != "unusable":
                break
            broken.add(wrote.tool)
        item.transcript = None
        if wrote.verdict != "done":
            return await self._overtaken(run, wrote)
        self._books.turn_ended(run.request, run.uncounted, wrote.events)
        run.uncounted = NOTHING
        run.wrote(wrote.events)
        return None

    # ------------------------------------------------------------------ tools and people

    async def _listen(self, run: _Run) -> bool:
        """Take in what has been said; False: the run is not ours any more."""
        most_bytes = run.admission.config.agents.result_bytes
        spoken = await self._broker.hear(run.request.id, most_bytes=most_bytes)
        if not spoken.answers and not spoken.consents:
            return True
        listener = run.listener(spoken.now_ms)
        heard = listener.answers(
            Answer(call_id, value if kind else None, size, kind == b"error")
            for _, call_id, kind, value, size in spoken.answers
        )
        heard += listener.consents(fields for _, fields in spoken.consents)
        if listener.ignored:
            log.info("words_passed_over", id=run.request.id, count=listener.ignored)
            self._books.ignored(listener.ignored)
        return await self._observe(run, heard, spoken)

    async def _observe(self, run: _Run, heard: Sequence[Heard], spoken: Spoken | None = None) -> bool:
        """Write what has been said, and be done with what said it."""
        broken: set[str] = set()
        while True:
            usable = [_without_call(each) if each.call and each.call.name in broken else each for each in heard]
            wrote = await self._broker.observe(
                run.item.delivery,
                run.request.id,
                after=run.last_id,
                words=[Word(event=each.event, call=each.call) for each in usable],
                ends=[
                    End(tool=each.ends.name, entry=each.ends.entry or "", untaken=each.untaken,
                        word=None if each.untaken is None else at)
                    for at, each in enumerate(usable)
                    if each.ends is not None and each.ends.name not in broken
                ],
                heard=() if spoken is None else [each[0] for each in spoken.answers],
                agreed=() if spoken is None else [each[0] for each in spoken.consents],
                publish=run.request.publish,
                keep_ms=self._keep_ms(run),
            )  # fmt: skip
            if wrote.verdict != "unusable":
                break
            broken.add(wrote.tool)
        if wrote.verdict != "done":
            log.info("run_overtaken", id=run.request.id, why=wrote.verdict)
            return False
        self._books.heard(run.request, run.state, wrote.events)
        run.wrote(wrote.events)
        return True

    async def _rest(self, run: _Run, decision: Wait) -> Ending | Rest:
        if not run.has_written and not await self._observe(run, ()):
            return Withdrawn()
        return Rest(until_ms=decision.until_ms, ears=self._ears(run), for_people=bool(decision.for_people))

    def _ears(self, run: _Run) -> tuple[str, ...]:
        """Where the calls that wait are answered."""
        keys, request_id, waiting = self._broker.keys, run.request.id, run.state.waiting()
        tools = (keys.inbox(request_id),) if any(call.waits_for_tool for call in waiting) else ()
        people = (keys.consent(request_id),) if any(call.waits_for_person for call in waiting) else ()
        return tools + people

    def _keep_ms(self, run: _Run) -> int:
        """How long inbox and consent are kept, from now on."""
        config = run.admission.config
        longest_ms = max((call.deadline_ms for call in run.state.waiting()), default=0) - run.started_ms
        tools_ms = max((tool.timeout_ms for tool in run.offer().tools.values()), default=0)
        waits_ms = max(tools_ms, longest_ms, round(config.agents.confirmation_seconds * 1000))
        return round(config.daemon.result_ttl_seconds * 1000) + waits_ms

    # ------------------------------------------------------------------ ends

    async def _fail(self, run: _Run, decision: Fail) -> Ending:
        run.item.is_ending = True
        await self._take_back(run)
        self._books.failed(run.state, decision)
        event = Failed(
            request_id=run.request.id,
            code=decision.code,
            message=decision.message,
            attempts=tuple(run.state.spent.attempts),
            metadata=run.request.metadata,
        )
        return Unanswered(event=event, spent=replace(NOTHING, latency_ms=run.latency_ms(self._clock.server_ms())))

    async def _take_back(self, run: _Run) -> None:
        """No tool is to act for nobody."""
        calls = [(call.name, call.entry or "") for call in run.state.dispatched()]
        if run.state.turn:
            await self._broker.withdraw(run.request.id, calls)

    async def _overtaken(self, run: _Run, wrote: Wrote) -> Ending:
        """The calls of a turn could not be dispatched: the request has been ended, or taken over."""
        log.info("run_overtaken", id=run.request.id, why=wrote.verdict)
        if wrote.verdict != "sealed":
            return Withdrawn(spent=run.uncounted)
        run.item.is_ending = True
        await self._take_back(run)
        final_type = await self._broker.final_type(run.request.id)
        return await self._asking.leave(run.item, run.request, final_type or "", run.uncounted)


def _without_call(heard: Heard) -> Heard:
    """The same word, where the tool's stream takes no call: somebody has made the key another."""
    call = heard.call
    assert call is not None  # noqa: S101 - asked for those alone that have one
    error = "the call could not be made: the stream of its tool's calls is none"
    return replace(heard, event=ToolReturned(call_id=call.call_id, name=call.name, error=error), call=None)


class _Run:
    """One run under way on this worker.

    Attributes:
        state: as its events have it.
        last_id: of the last event that was seen.
        uncounted: what was spent on turns that do not stand yet.
        has_written: this worker has, since it took it up or woke it.
        started_ms: when the request was picked up first, by the server's clock; 0: it has not been.
    """

    def __init__(self, item: InFlight, request: Request, admission: Admission) -> None:
        spec = request.agent
        if spec is None:
            raise LookupError("a request without `agent` is no run")
        self.item = item
        self.request = request
        self.admission = admission
        self.spec = spec
        self._max_turns = spec.max_turns or admission.config.agents.max_turns
        self.state = AgentRun(self._max_turns)
        self.tools: Mapping[str, Tool | Unsound] = {}
        self.last_id = "0-0"
        self.uncounted: Spent = NOTHING
        self.has_written = False
        self.started_ms = 0
        self.deadline_ms: int | None = None

    def saw(self, event: SeenEvent) -> None:
        """The next event of the journal."""
        self.last_id = event.stream_id
        if not isinstance(event, UnknownEvent):
            self.state.apply(event)

    def wrote(self, events: Iterable[SeenEvent]) -> None:
        """These stand, by this worker's hand."""
        self.has_written = True
        for event in events:
            self.saw(event)

    def begins(self, now_ms: float) -> None:
        """A turn is asked for: when the run began, and by when its answer is wanted."""
        if self.started_ms:
            return
        state, left = self.state, self.request.seconds_left(now_ms)
        self.started_ms = state.started_ms or round(now_ms)
        self.deadline_ms = state.deadline_ms
        if not state.turn and left is not None:
            self.deadline_ms = round(now_ms + left * 1000)

    def offer(self) -> Offer:
        """The tools that it has now."""
        config = self.admission.config
        return offer(self.spec, self.tools, config.agents, tenant_of(config.tenants, self.request.tenant_id))

    def listener(self, now_ms: int) -> Listener:
        """For one look at what was said."""
        result_bytes = self.admission.config.agents.result_bytes
        return Listener(self.request, self.state, self.tools, now_ms=now_ms, result_bytes=result_bytes)

    def latency_ms(self, now_ms: float) -> int:
        """Since it was picked up first."""
        return max(0, round(now_ms) - (self.started_ms or self.state.started_ms or round(now_ms)))

    def ended(self, ending: Answered | Unanswered, decision: Ask, *, now_ms: float) -> Answered | Unanswered:
        """The end of the run, which tells of all its turns."""
        spent, latency_ms = self.state.spent, self.latency_ms(now_ms)
        earlier = tuple(spent.attempts)
        if isinstance(ending, Answered):
            event = ending.event
            is_known = spent.cost_usd is not None and event.cost_usd is not None
            cost = (spent.cost_usd or 0.0) + (event.cost_usd or 0.0) if is_known else None
            return replace(
                ending,
                event=replace(
                    event,
                    usage=spent.usage + event.usage,
                    cost_usd=cost,
                    cost_estimated=event.cost_estimated or spent.is_estimated,
                    attempts=earlier + event.attempts,
                    latency_ms=latency_ms,
                    turns=decision.turn,
                ),
                spent=replace(ending.spent, latency_ms=latency_ms),
            )
        failure = replace(ending.event, attempts=earlier + ending.event.attempts)
        if decision.is_last and decision.turn > 1 and _would_not_answer(ending):
            failure = replace(failure, code=ErrorCode.TURNS_EXHAUSTED)
        return replace(ending, event=failure, spent=replace(ending.spent, latency_ms=latency_ms))


def _would_not_answer(ending: Unanswered) -> bool:
    """Whether models were there, and what they said in a last turn was no answer."""
    is_exhausted = ending.event.code in {ErrorCode.CHAIN_EXHAUSTED, ErrorCode.LOCAL_EXHAUSTED}
    faults = {each.code.traits.fault for each in ending.spent.attempts if each.code is not None and each.was_asked}
    return is_exhausted and faults == {Fault.ANSWER}
