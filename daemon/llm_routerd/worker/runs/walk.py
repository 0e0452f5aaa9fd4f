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

from llm_routerd.agents.calls import BROKEN, Turn, dispatch
from llm_routerd.agents.offering import refusal_of, tenant_of
from llm_routerd.agents.run import Ask, Expire, Fail, Wait
from llm_routerd.agents.words import Answer
from llm_routerd.logs import get_logger
from llm_routerd.protocol.events import CallConfirmed, Failed, ToolReturned
from llm_routerd.queue.runs import End, Word
from llm_routerd.running.caller import TurnRules
from llm_routerd.running.ending import NOTHING, Answered, Unanswered, Withdrawn
from llm_routerd.worker.ending import Buried, Cancelled
from llm_routerd.worker.rest import DUE, Rest
from llm_routerd.worker.runs.taking_back import hear_no_more, take_back
from llm_routerd.worker.runs.under_way import UnderWay

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.agents.offering import Offer
    from llm_routerd.agents.words import Heard
    from llm_routerd.protocol.events import Result
    from llm_routerd.protocol.request import Request
    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.runs import Spoken, Wrote
    from llm_routerd.worker.admission import Admission
    from llm_routerd.worker.asking import Asking
    from llm_routerd.worker.clock import ServerClock
    from llm_routerd.worker.ending import Ending
    from llm_routerd.worker.inflight import InFlight
    from llm_routerd.worker.runs.books import RunBooks
    from llm_routerd.worker.runs.toolbox import Toolbox

log = get_logger()

SOON_MS = 100
_FORBIDDEN = "the call could not be made: the operator does not let this run use the tool"
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
        run = UnderWay(item, request, admission)
        try:
            outcome = await self._walk(run)
        except asyncio.CancelledError:
            if not item.absorbs_cancellation():
                raise
            if item.stopped == "sealed":
                await self._take_back(run)
            outcome = await self._asking.stopped(item, request, run.uncounted)
        if isinstance(outcome, Cancelled):
            return Cancelled(spent=run.whole(outcome.spent, turns=run.state.turn, now_ms=self._clock.server_ms()))
        return outcome

    async def _walk(self, run: UnderWay) -> Ending | Rest:
        item, request = run.item, run.request
        looked = await self._broker.look(item.delivery, request.id)
        if looked.verdict not in {"begun", "sealed"}:
            return await self._asking.withdrawn(item, request, looked.verdict, NOTHING)
        if looked.verdict == "sealed":
            item.is_ending = True
            await self._take_back(run)
            return await self._asking.leave(item, request, looked.sealed_by or "", NOTHING)
        if looked.is_ours:
            async for event in self._broker.journal(request.id):
                run.saw(event)
        if run.state.always:  # as events say, which others may write
            run.state.always &= await self._broker.always(request.id)
        run.tools = await self._toolbox.tools()
        if not run.state.turn and (refused := self._refusal(run)) is not None:
            return refused
        return await self._go_on(run)

    async def _go_on(self, run: UnderWay) -> Ending | Rest:
        for _ in range(MOST_LISTENINGS):
            if run.state.waiting() and (outcome := await self._listen(run)) is not None:
                return outcome
            match decision := run.state.decide(self._clock.server_ms()):
                case Ask():
                    outcome = await self._take_turn(run, decision)
                case Expire(calls=calls):
                    listener = run.listener(round(self._clock.server_ms()))
                    outcome = await self._observe(run, listener.late(calls))
                case Wait():
                    return await self._rest(run, decision)
                case Fail():
                    return await self._fail(run, decision)
            if outcome is not None:
                return outcome
        return self._soon()

    def _soon(self) -> Rest:
        """Look again, from the beginning: others have written where only we should, or very much has been said."""
        return Rest(until_ms=round(self._clock.server_ms()) + SOON_MS)

    def _refusal(self, run: UnderWay) -> Buried | None:
        """A run that may not begin."""
        config, request = run.admission.config, run.request
        refusal = refusal_of(run.spec, run.tools, config.agents, tenant_of(config.tenants, request.tenant_id))
        if refusal is None:
            return None
        run.item.is_ending = True
        event = Failed(request_id=request.id, code=refusal.code, message=refusal.message, metadata=request.metadata)
        return Buried(event=event, streams=(request.id,))

    # ------------------------------------------------------------------ a model's turn

    async def _take_turn(self, run: UnderWay, decision: Ask) -> Ending | Rest | None:
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
                await hear_no_more(self._broker, request.id)
                return run.ended(ending, decision, now_ms=self._clock.server_ms())
            case _:
                return ending

    async def _dispatch(self, run: UnderWay, answer: Result, offered: Offer, number: int) -> Ending | Rest | None:
        """Put the calls of a turn on their way; None: they are."""
        item, config = run.item, run.admission.config
        transcript = item.transcript
        if transcript is None:
            raise LookupError("an answer without a transcript")
        item.is_ending = True  # the answer has been paid for
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
            wrote = await self._broker.dispatch(
                item.delivery,
                transcript,
                [Word(event=each.event, call=each.call) for each in sendings],
                audit=self._books.audit_of_turn(run.request, run.uncounted, number, sendings, run.tools),
                publish=run.request.publish,
                keep_ms=self._keep_ms(run),
            )
            if wrote.verdict != "unusable":
                break
            broken.add(wrote.tool)
        item.transcript, item.is_ending = None, False
        if wrote.verdict != "done":
            return await self._overtaken(run, wrote)
        self._books.turn_ended(run.request, run.uncounted, wrote.events, wrote.unaudited, run.tools)
        run.turn_stands(wrote.events)
        return None

    # ------------------------------------------------------------------ tools and people

    async def _listen(self, run: UnderWay) -> Ending | Rest | None:
        """Take in what has been said; None: the run goes on."""
        most_bytes = run.admission.config.agents.result_bytes
        spoken = await self._broker.hear(run.request.id, most_bytes=most_bytes)
        if not spoken.answers and not spoken.consents:
            return None
        listener = run.listener(spoken.now_ms)
        heard = listener.answers(
            Answer(call_id, value if kind else None, size, kind == b"error")
            for _, call_id, kind, value, size in spoken.answers
        )
        heard += [
            each if each.call is None or run.may_call(each.call.name) else _without_call(each, _FORBIDDEN)
            for each in listener.consents(fields for _, fields in spoken.consents)
        ]
        if listener.ignored:
            log.info("words_passed_over", id=run.request.id, count=listener.ignored)
            self._books.ignored(listener.ignored)
        return await self._observe(run, heard, spoken)

    async def _observe(
        self, run: UnderWay, heard: Sequence[Heard], spoken: Spoken | None = None
    ) -> Ending | Rest | None:
        """Write what has been said, and be done with what said it; None: it stands."""
        broken: set[str] = set()
        while True:
            usable = [_without_call(each, BROKEN) if each.call and each.call.name in broken else each for each in heard]
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
                always=[
                    run.state.calls[event.call_id].name
                    for each in usable
                    if isinstance(event := each.event, CallConfirmed) and event.always
                ],
                agreed=() if spoken is None else [each[0] for each in spoken.consents],
                audit=self._books.audit_of_words(run.request, run.state, usable),
                publish=run.request.publish,
                keep_ms=self._keep_ms(run),
            )  # fmt: skip
            if wrote.verdict != "unusable":
                break
            broken.add(wrote.tool)
        if wrote.verdict != "done":
            return await self._overtaken(run, wrote)
        self._books.heard(run.request, run.state, usable, wrote.events, wrote.unaudited)
        run.wrote(wrote.events)
        return None

    async def _rest(self, run: UnderWay, decision: Wait) -> Ending | Rest:
        if not run.has_written and (outcome := await self._observe(run, ())) is not None:
            return outcome
        keys, request_id = self._broker.keys, run.request.id
        tools = (keys.inbox(request_id),) if decision.for_tools else ()
        people = (keys.consent(request_id),) if decision.for_people else ()
        return Rest(until_ms=decision.until_ms, ears=tools + people, for_people=bool(people))

    def _keep_ms(self, run: UnderWay) -> int:
        """How long inbox and consent are kept: as long as anything may wait, and a while for what comes late."""
        config, now_ms = run.admission.config, round(self._clock.server_ms())
        ends = [max(call.deadline_ms, call.expires_at_ms or 0) - now_ms for call in run.state.waiting()]
        tools = [tool.timeout_ms for tool in run.offer().tools.values()]
        waits_ms = max(round(config.agents.confirmation_seconds * 1000), *tools, *ends, 0)
        return round(config.daemon.result_ttl_seconds * 1000) + waits_ms

    # ------------------------------------------------------------------ ends

    async def _fail(self, run: UnderWay, decision: Fail) -> Ending:
        run.item.is_ending = True
        await self._take_back(run)
        spent = run.whole(NOTHING, turns=run.state.turn, now_ms=self._clock.server_ms())
        self._books.failed(run.request, run.state, decision)
        event = Failed(
            request_id=run.request.id,
            code=decision.code,
            message=decision.message,
            attempts=tuple(run.state.spent.attempts),
            metadata=run.request.metadata,
        )
        return Unanswered(event=event, spent=spent)

    async def _take_back(self, run: UnderWay) -> None:
        """No tool is to act for nobody."""
        taken_back = await take_back(self._broker, run.request.id)
        run.state = taken_back.run
        self._books.taken_back(run.request, taken_back)

    async def _overtaken(self, run: UnderWay, wrote: Wrote) -> Ending | Rest:
        """What was to be written does not stand: the request has been ended, or taken over, or others write there."""
        log.info("run_overtaken", id=run.request.id, why=wrote.verdict)
        if wrote.verdict == "stale":
            self._books.called(run.request, run.uncounted)
            return self._soon()
        if wrote.verdict == "unwritable":
            return await self._asking.withdrawn(run.item, run.request, "unwritable", run.uncounted)
        if wrote.verdict != "sealed":
            return Withdrawn(spent=run.uncounted)
        run.item.is_ending = True
        await self._take_back(run)
        final_type = await self._broker.final_type(run.request.id)
        return await self._asking.leave(run.item, run.request, final_type or "", run.uncounted)


def _without_call(heard: Heard, error: str) -> Heard:
    """The same word, where the call cannot be made."""
    call = heard.call
    assert call is not None  # noqa: S101 - asked for those alone that have one
    return replace(heard, event=ToolReturned(call_id=call.call_id, name=call.name, error=error), call=None)
