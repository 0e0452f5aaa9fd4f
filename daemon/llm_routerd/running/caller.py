"""One deployment's turn: a place among its calls, a loaded model, one call, and what came of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from llm_routerd.judging.calls import CallRules
from llm_routerd.judging.judge import Accepted, Judge
from llm_routerd.protocol.call import Call
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.events import AttemptStarted
from llm_routerd.protocol.outcome import Outcome, Rejection, Usage
from llm_routerd.protocol.request import StreamMode
from llm_routerd.running.attempt import PREEMPTED, Attempt
from llm_routerd.running.box_calls import Wanted
from llm_routerd.running.clock import Bounds
from llm_routerd.running.faults import fault
from llm_routerd.running.fitting import Fitting
from llm_routerd.running.prompt import repair_messages
from llm_routerd.running.queued import WaitNotice
from llm_routerd.running.shortage import LONGEST_PAUSE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from llm_routerd.config.tree import Deployment
    from llm_routerd.jsonschema.compiled import AnswerSchema
    from llm_routerd.protocol.keys import Lane
    from llm_routerd.protocol.request import Request
    from llm_routerd.routing.decisions import Ask
    from llm_routerd.running.attempt import EventSink
    from llm_routerd.running.box_calls import Slot
    from llm_routerd.running.resources import Resources
    from llm_routerd.running.slots import Slots


_LEAST_WRITING_SHARE: Final = 0.05  # of a call's time: what comes in one piece was not written in no time


class Arrival(Struct, frozen=True, kw_only=True):
    """How a request has come.

    Attributes:
        lane: from which one.
        deliveries: how often Redis has delivered it, for the attempt events.
        queue_ms: how long it waited before; None: nobody knows.
    """

    lane: Lane = "normal"
    deliveries: int = 1
    queue_ms: int | None = None


JUST_COME: Final = Arrival()


class TurnRules(Struct, frozen=True, kw_only=True):
    """What the calls of a run's turn are held to.

    Attributes:
        parameters: see `CallRules`.
        corrected: deployments that have been told once what was wrong with a call: another faulty one is no answer.
    """

    parameters: Mapping[str, AnswerSchema]
    corrected: frozenset[str]


class Turn(Struct):
    """What came of one deployment's turn.

    `verdict` is None where the request is no longer ours; `called`: a call was made, and not only prepared; `attempt`
    is its number, 0 where none was begun; `prompt_sha256` of what was sent, where that is wanted; `deployment`: that
    took it, where it is another one than was asked, on another box.
    """

    verdict: Accepted | Rejection | None
    called: bool
    deployment: Deployment | None = None
    elapsed_seconds: float = 0.0
    ttft_seconds: float | None = None
    usage: Usage | None = None
    attempt: int = 0
    prompt_sha256: str | None = None


class Caller:
    """Gives deployments their turns for one request, one after the other.

    Args:
        resources: of the configuration in force.
        request: what is asked.
        sink: gets the events of every attempt.
        deadline: loop time at which an answer is no longer wanted; None: whenever it comes.
        arrival: how the request has come.
        on_first_token: told the time to each attempt's first token, in seconds.
        on_again: told of a turn whose call is made once more, for a larger window, as another attempt.
        rules: see `Run`.
    """

    def __init__(
        self,
        resources: Resources,
        request: Request,
        sink: EventSink,
        *,
        deadline: float | None,
        arrival: Arrival,
        on_first_token: Callable[[float], None],
        on_again: Callable[[Deployment, Turn], None],
        rules: TurnRules | None = None,
    ) -> None:
        self._resources = resources
        self._request = request
        self._sink = sink
        self._deadline = deadline
        self._arrival = arrival
        self._on_first_token = on_first_token
        self._on_again = on_again
        self._rules = rules
        self._loop = resources.loop
        self._invalid: dict[str, str] = {}  # by deployment: the last answer that was not the JSON asked for
        self._attempt: Attempt | None = None  # the call under way
        self._number = 0  # of the attempt that was begun last
        self._prompt_sha256: str | None = None  # of what it was sent
        self._fitting = Fitting(resources.windows, request, self.seconds_left)
        self._box: Deployment | None = None  # that has taken the turn, of several
        self._slot: Slot | None = None  # of the turn under way
        self._waits_since: float | None = None  # loop time at which a slot was first asked for
        self._notice = WaitNotice(sink.queued, self._loop, is_wanted=request.stream is not StreamMode.OFF)

    def seconds_left(self) -> float | None:
        """Until the deadline; None: there is none."""
        return None if self._deadline is None else max(0.0, self._deadline - self._loop.time())

    def broken_off(self) -> Turn | None:
        """The turn whose call is under way, as a cancellation leaves it; None: no call is."""
        if self._attempt is None:
            return None
        return self._numbered(_turn_of(self._attempt, Rejection(code=AttemptCode.CANCELLED, reason="cancelled")))

    def _numbered(self, turn: Turn) -> Turn:
        """With what is known of the attempt that was begun."""
        turn.attempt, turn.prompt_sha256 = self._number, self._prompt_sha256
        return self._on_its_box(turn)

    async def take_turn(self, ask: Ask, placed: Callable[[Deployment], bool]) -> Turn:
        """Wait for a place and a loaded model, then call.

        Args:
            ask: whom, and how.
            placed: told which of its `members` has a slot, before that is asked; False: it may not be asked any more.
        """
        deployment, repair = ask.deployment, ask.repair
        self._box = self._slot = None
        if (too_long := await self._fitting.too_long(deployment, self._more(deployment, repair))) is not None:
            return Turn(too_long, called=False)
        if deployment.box is not None:
            return await self._turn_on_a_box(ask, placed)
        slots = self._resources.slots[deployment.name]
        if not await self._got_place(slots, deployment):
            reason = f"queue_timeout: no call of {deployment.concurrency} ended within {deployment.queue_timeout:g} s"
            return Turn(Rejection(code=AttemptCode.BUSY, reason=reason), called=False)
        try:
            return await self._turn_in_place(deployment, repair)
        finally:
            slots.release()

    async def _turn_on_a_box(self, ask: Ask, placed: Callable[[Deployment], bool]) -> Turn:
        """Wait for a slot of one of its boxes, which all workers share."""
        fleet, members = self._resources.fleet, list(ask.members)
        give_up = self._loop.time() + self._within(math.inf if ask.is_last else ask.deployment.queue_timeout)
        why = "none of its boxes may be asked any more"
        while members:
            wanted = self._wanted(ask, members, give_up)
            slot = await fleet.take(wanted, seconds=max(0.0, give_up - self._loop.time()))
            if isinstance(slot, str):
                why = slot
                break
            try:
                if placed(slot.deployment):
                    return await self._turn_in_slot(ask, slot)
            finally:
                fleet.release(slot)
            members.remove(slot.deployment)  # it has begun to cool down while we waited
        return Turn(Rejection(code=AttemptCode.BUSY, reason=why), called=False)

    def _wanted(self, ask: Ask, members: list[Deployment], give_up: float) -> Wanted:
        if self._waits_since is None:
            self._waits_since = self._loop.time()
        return Wanted(
            members=members,
            lane=self._arrival.lane,
            tenant=self._request.tenant_id,
            key=self._fitting.prompt.key if len(members) > 1 else "",
            prompt_tokens=self._fitting.prompt.about_tokens,
            max_tokens=self._fitting.prompt.max_tokens,
            since=self._waits_since,
            is_firm=ask.is_firm,
            on_wait=self._notice.of_slot(members),
            begin_by=None if math.isinf(give_up) else give_up,
            end_by=self._deadline,
        )

    async def _turn_in_slot(self, ask: Ask, slot: Slot) -> Turn:
        self._box, self._slot = slot.deployment, slot
        deployment = slot.deployment
        if deployment is not ask.deployment and (too_long := await self._fitting.too_long(deployment)) is not None:
            return self._on_its_box(Turn(too_long, called=False))  # on this box, which holds less
        turn = await self._turn_in_place(deployment, ask.repair, slot)
        if turn.usage is not None and isinstance(turn.verdict, Accepted):
            writing = turn.elapsed_seconds - (
                (turn.ttft_seconds or 0.0) if self._request.stream is not StreamMode.OFF else 0.0
            )
            seconds = max(writing, turn.elapsed_seconds * _LEAST_WRITING_SHARE)
            self._resources.fleet.answered(slot, turn.usage.completion_tokens, seconds)
        return turn

    async def _turn_in_place(self, deployment: Deployment, repair: str | None, slot: Slot | None = None) -> Turn:
        """It has a place: call, and once more where a larger window may hold the prompt."""
        turn = await self._attempt_in_place(deployment, repair, slot)
        if turn.called and await self._fitting.is_larger(deployment, turn.verdict):
            self._on_again(deployment, turn)
            told = self._on_first_token
            if turn.ttft_seconds is not None:  # it is told once in a turn
                self._on_first_token = lambda _seconds: None
            try:
                turn = await self._attempt_in_place(deployment, repair, slot)
            finally:
                self._on_first_token = told
        return turn

    async def _attempt_in_place(self, deployment: Deployment, repair: str | None, slot: Slot | None) -> Turn:
        """Load the model, begin the attempt, call."""
        resources, name = self._resources, deployment.name
        warmth = resources.warmth[name]
        self._fitting.begins(deployment, warmth)
        if slot is not None and slot.loads:
            warmth.gone()
        if not warmth.is_ready:
            began = self._loop.time()
            with self._notice.of_loading(deployment, resources.fleet.load_seconds(deployment)):
                cold = await self._when_able(deployment, lambda: self._load(deployment))
            if cold.verdict is not None:
                if slot is not None and isinstance(cold.verdict, Rejection):
                    resources.fleet.not_loaded(slot, cold.verdict.code)
                return self._on_its_box(cold)
            if slot is not None and slot.loads:
                resources.fleet.loaded(slot, self._loop.time() - began)
        started = AttemptStarted(
            deployment=name, model=deployment.model, delivery=self._arrival.deliveries, consumer=resources.consumer
        )
        self._number, self._prompt_sha256 = await self._sink.begin(started), None
        if not self._number:
            return Turn(None, called=False)
        turn = self._numbered(await self._when_able(deployment, lambda: self._call(deployment, repair)))
        if turn.ttft_seconds is not None:
            self._fitting.answered(deployment, warmth)
        return turn

    def _on_its_box(self, turn: Turn) -> Turn:
        """With the deployment that took it, where that was one of several."""
        turn.deployment = self._box
        return turn

    async def _got_place(self, slots: Slots, deployment: Deployment) -> bool:
        """Whether a place among the calls came free in time; a shortage of ours says nothing of the calls' length."""
        is_free = await slots.acquire(self._within(deployment.queue_timeout))
        while not is_free and self._resources.shortage.why is not None and self.seconds_left() != 0:
            is_free = await slots.acquire(self._within(max(deployment.queue_timeout, LONGEST_PAUSE_SECONDS)))
        return is_free

    async def _load(self, deployment: Deployment) -> Turn:
        """Wait for the model; verdict None: it is loaded, as far as that can be told."""
        warmth = self._resources.warmth[deployment.name]
        try:
            cold = await warmth.ready(wait_seconds=self.seconds_left())
            self._fitting.not_loaded(deployment, cold, warmth)
        except Exception as error:  # noqa: BLE001 - see `fault`
            cold = fault(self._request.id, deployment, error)
        return Turn(cold, called=False)

    def _when_able(self, deployment: Deployment, ask: Callable[[], Awaitable[Turn]]) -> Awaitable[Turn]:
        """Ask; where it is we that lack something, wait for it and ask again: see `Shortage.until_able`."""
        return self._resources.shortage.until_able(
            deployment.name, ask, deadline=self._deadline, route_seconds=deployment.connect_timeout
        )

    async def _call(self, deployment: Deployment, repair: str | None) -> Turn:
        """Call, and judge what comes; whatever goes wrong in that costs this attempt and not the request."""
        began = self._loop.time()
        attempt: Attempt | None = None
        verdict: Accepted | Rejection
        try:
            self._attempt = attempt = self._make_attempt(deployment, repair)
            verdict = await self._run_attempt(attempt)
        except Exception as error:  # noqa: BLE001 - see `fault`
            verdict = fault(self._request.id, deployment, error)
        self._attempt = None
        if attempt is None:
            return Turn(verdict, called=True, elapsed_seconds=self._loop.time() - began)
        if isinstance(verdict, Rejection) and verdict.outcome is Outcome.INVALID:
            self._invalid[deployment.name] = attempt.text
        elif isinstance(verdict, Accepted):
            self._fitting.counted(deployment, attempt.usage(None))
        return _turn_of(attempt, verdict)

    async def _run_attempt(self, attempt: Attempt) -> Accepted | Rejection:
        """Run it, for as long as its slot is ours."""
        slot = self._slot
        if slot is None:
            return await attempt.run()
        slot.on_cut = attempt.preempt
        return PREEMPTED if slot.is_cut else await attempt.run()

    def _make_attempt(self, deployment: Deployment, repair: str | None) -> Attempt:
        resources, request = self._resources, self._request
        mode = request.stream
        offered = request.offered_tools if request.tools else None
        judge = Judge(
            schema=request.schema,
            refusals=resources.refusals if request.detect_refusal else None,
            mode=mode,
            has_tools=bool(offered),
            tool_names=offered,
            demanded=request.demanded_tools if offered else frozenset(),
            accepts_length=request.accepts_length,
            rules=self._call_rules(deployment),
        )
        bounds = Bounds.of(deployment, streams=mode is not StreamMode.OFF, deadline=self._deadline)
        return Attempt(
            backend=resources.backends.get(deployment.name),
            call=self._make_call(deployment, repair),
            judge=judge,
            sink=self._sink,
            clock=resources.clocks.clock(bounds),
            on_first_token=self._on_first_token,
            schema=request.schema,
            validation=resources.validation,
        )

    def _call_rules(self, deployment: Deployment) -> CallRules | None:
        rules = self._rules
        if rules is None:
            return None
        return CallRules(parameters=rules.parameters, strict=deployment.name in rules.corrected)

    def _make_call(self, deployment: Deployment, repair: str | None) -> Call:
        request = self._request
        messages = request.messages + self._more(deployment, repair)
        self._prompt_sha256 = self._resources.prompt_hash(messages)
        params = deployment.params_for(request.params)
        factors = self._fitting.asks_for(deployment, params)
        return Call(
            messages=messages,
            schema=None if request.schema is None else request.schema.raw,
            tools=request.tools,
            tool_choice=request.tool_choice,
            params=params,
            connect_seconds=self._within(deployment.connect_timeout),
            traceparent=request.traceparent,
            token_factors=factors,
        )

    def _more(self, deployment: Deployment, repair: str | None) -> tuple[dict[str, Any], ...]:
        """What goes along with the request's own messages."""
        if repair is None:
            return ()
        is_json = self._request.schema is not None and not self._request.offered_tools
        return repair_messages(self._invalid[deployment.name], repair, is_json=is_json)

    def _within(self, seconds: float) -> float:
        left = self.seconds_left()
        return seconds if left is None else min(seconds, left)


def _turn_of(attempt: Attempt, verdict: Accepted | Rejection) -> Turn:
    """A call and what came of it."""
    return Turn(
        verdict,
        called=True,
        elapsed_seconds=attempt.elapsed_seconds,
        ttft_seconds=attempt.ttft_seconds,
        usage=attempt.usage(verdict if isinstance(verdict, Rejection) else None),
    )
