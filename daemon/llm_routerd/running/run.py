"""One request's way through its chain: decide, take a turn, note it, until there is an answer or nothing is left."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, assert_never

from llm_routerd.judging.judge import Accepted
from llm_routerd.protocol.events import AttemptRejected
from llm_routerd.protocol.outcome import Rejection
from llm_routerd.routing.chain_run import ChainRun
from llm_routerd.routing.decisions import Ask, Examine, GiveUp
from llm_routerd.routing.eligibility import Need
from llm_routerd.running.caller import JUST_COME, Caller
from llm_routerd.running.ending import Answered, Spent, Unanswered, Withdrawn
from llm_routerd.running.faults import fault
from llm_routerd.running.ledger import Ledger, as_ms

if TYPE_CHECKING:
    from llm_routerd.config.tree import Chain, Deployment
    from llm_routerd.protocol.request import Request
    from llm_routerd.running.attempt import EventSink
    from llm_routerd.running.caller import Arrival, Turn, TurnRules
    from llm_routerd.running.resources import Resources


class Run:
    """One request under way: the pure `ChainRun` decides whose turn it is, `Caller` takes it, `Ledger` notes it.

    Args:
        resources: of the configuration in force.
        request: what is asked.
        chain: whom to ask.
        sink: gets the events of every attempt.
        deadline: loop time at which an answer is no longer wanted; None: whenever it comes.
        arrival: how the request has come.
        rules: for the calls of tools, in a run; None: whoever asked judges them.
    """

    def __init__(
        self,
        resources: Resources,
        request: Request,
        chain: Chain,
        sink: EventSink,
        *,
        deadline: float | None,
        arrival: Arrival = JUST_COME,
        rules: TurnRules | None = None,
    ) -> None:
        self._examinations = resources.examinations
        self._request = request
        self._sink = sink
        self._queue_ms = arrival.queue_ms
        self._now = resources.loop.time
        self._ledger = Ledger(request, chain, resources, self._now)
        self._chain_run = ChainRun(
            config=resources.config,
            chain=chain,
            health=resources.health,
            need=Need(local_only=request.local_only, tools=bool(request.tools)),
            deadline=deadline,
            rng=resources.rng,
            tenant=request.tenant_id,
            messages=request.messages,
        )
        self._chain_run.is_resident = resources.is_resident
        self._resources, self._chain = resources, chain
        self._caller = Caller(
            resources,
            request,
            sink,
            deadline=deadline,
            arrival=arrival,
            on_first_token=self._chain_run.first_token,
            on_again=self._rejected,
            rules=rules,
        )

    def spent(self) -> Spent:
        """What it has taken so far; also when it has been cancelled."""
        return self._ledger.so_far()

    async def until_done(self) -> Answered | Unanswered | Withdrawn:
        """Ask until there is an answer or nothing is left, or the sink says that the request is not ours.

        Cancelling it closes the connection to the model.
        """
        if self._chain.strategy == "resident":
            await self._resources.fleet.look_around()
        while True:
            match decision := self._chain_run.decide(self._now()):
                case Examine(deployment=deployment):
                    await self._examine(deployment)
                case GiveUp():
                    self._ledger.passed_over(decision.passed)
                    return self._ledger.gave_up(decision)
                case Ask(deployment=deployment):
                    self._ledger.passed_over(decision.passed)
                    turn = await self._ask(decision)
                    if turn.verdict is None:
                        return Withdrawn(spent=self.spent())
                    if isinstance(turn.verdict, Accepted):
                        return self._ledger.answered(
                            turn.deployment or deployment,
                            turn,
                            turn.verdict,
                            attempt=turn.attempt,
                            queue_ms=self._queue_ms,
                        )
                case _:
                    assert_never(decision)

    async def _examine(self, deployment: Deployment) -> None:
        try:
            answers = await self._examinations[deployment.name].answers(wait_seconds=self._caller.seconds_left())
        except Exception as error:  # noqa: BLE001 - see `fault`
            fault(self._request.id, deployment, error)
            answers = False
        self._chain_run.examined(deployment, answers=answers)

    async def _ask(self, decision: Ask) -> Turn:
        """One turn of one deployment, and its verdict told to everyone who keeps account."""
        deployment = decision.deployment
        try:
            if decision.wait_seconds:
                await asyncio.sleep(decision.wait_seconds)
            turn = await self._caller.take_turn(decision, lambda chosen: self._chain_run.placed(chosen, self._now()))
        except BaseException:
            self._chain_run.abandoned()
            if (broken_off := self._caller.broken_off()) is not None:
                self._ledger.enter(broken_off.deployment or deployment, broken_off)
            raise
        deployment = turn.deployment or deployment
        match turn.verdict:
            case None:
                self._chain_run.abandoned()
            case Accepted():
                self._chain_run.answered()
            case Rejection() as rejection:
                says_nothing = self._resources.fleet.fell_silent(deployment, rejection.code) or not turn.called
                self._chain_run.rejected(rejection, self._now(), None if says_nothing else turn.elapsed_seconds)
                if turn.called:
                    self._tell_rejected(deployment, rejection, turn.elapsed_seconds)
        self._ledger.enter(deployment, turn)
        return turn

    def _rejected(self, deployment: Deployment, turn: Turn) -> None:
        """An attempt came to nothing, and the same deployment makes another one in the same turn."""
        if isinstance(turn.verdict, Rejection):
            self._tell_rejected(deployment, turn.verdict, turn.elapsed_seconds)
        self._ledger.enter(deployment, turn)

    def _tell_rejected(self, deployment: Deployment, rejection: Rejection, elapsed_seconds: float) -> None:
        self._sink.emit(
            AttemptRejected(
                deployment=deployment.name,
                model=deployment.model,
                outcome=rejection.outcome,
                code=rejection.code,
                reason=rejection.reason,
                latency_ms=as_ms(elapsed_seconds),
            )
        )
