"""One run as a worker goes on with it: its state, its tools, its times, and the end that tells of all its turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from llm_routerd.agents.ending import answered, unanswered
from llm_routerd.agents.offering import may_call, offer, tenant_of
from llm_routerd.agents.run import AgentRun
from llm_routerd.agents.words import Listener
from llm_routerd.protocol.outcome import AttemptRecord, told
from llm_routerd.protocol.reading import UnknownEvent
from llm_routerd.running.ending import NOTHING, Answered, Earlier, Unanswered

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llm_routerd.agents.offering import Offer
    from llm_routerd.agents.registration import Tool, Unsound
    from llm_routerd.agents.run import Ask
    from llm_routerd.protocol.reading import SeenEvent
    from llm_routerd.protocol.request import Request
    from llm_routerd.running.ending import Spent
    from llm_routerd.worker.admission import Admission
    from llm_routerd.worker.inflight import InFlight


class UnderWay:
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
        self._offered: Offer | None = None
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

    def turn_stands(self, events: Iterable[SeenEvent]) -> None:
        """A turn has come to calls: these events, behind those that tell of its attempts."""
        rejected = [each for each in self.uncounted.attempts if each.attempt and each.code is not None]
        self.state.spent.attempts += told(rejected)
        self.uncounted = NOTHING
        self.wrote(events)

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
        if self._offered is None:
            config = self.admission.config
            tenant = tenant_of(config.tenants, self.request.tenant_id)
            self._offered = offer(self.spec, self.tools, config.agents, tenant)
        return self._offered

    def may_call(self, name: str) -> bool:
        """Whether this tool may be called now: what has been confirmed was asked for earlier, or by somebody else."""
        config = self.admission.config
        return may_call(name, self.spec, config.agents, tenant_of(config.tenants, self.request.tenant_id))

    def listener(self, now_ms: int) -> Listener:
        """For one look at what was said."""
        result_bytes = self.admission.config.agents.result_bytes
        return Listener(self.request, self.state, self.tools, now_ms=now_ms, result_bytes=result_bytes)

    def whole(self, spent: Spent, *, turns: int, now_ms: float) -> Spent:
        """What the run has taken, `spent` being its last turn's part."""
        since_ms = self.started_ms or self.state.started_ms or round(now_ms)
        return replace(spent, latency_ms=max(0, round(now_ms) - since_ms), earlier=self._earlier(turns=turns))

    def _earlier(self, *, turns: int) -> Earlier:
        """What its turns took that stand."""
        spent = self.state.spent
        return Earlier(
            turns=turns,
            tool_calls=spent.tool_calls,
            attempts=tuple(
                AttemptRecord(
                    deployment=each.deployment,
                    model=each.model,
                    outcome=each.outcome,
                    code=each.code,
                    reason=each.reason,
                    latency_ms=each.latency_ms,
                )
                for each in spent.attempts
            ),
            cost_usd=spent.cost_usd,
            is_estimated=spent.is_estimated,
        )

    def ended(self, ending: Answered | Unanswered, asked: Ask, *, now_ms: float) -> Answered | Unanswered:
        """The end of the run, which tells of all its turns."""
        spent = self.whole(ending.spent, turns=asked.turn, now_ms=now_ms)
        if isinstance(ending, Unanswered):
            return Unanswered(event=unanswered(ending.event, self.state, asked), spent=spent)
        event = answered(ending.event, self.state, asked, latency_ms=spent.latency_ms)
        queue_ms = max(0, self.started_ms - int(self.item.delivery.entry.partition("-")[0]))
        return Answered(event=replace(event, queue_ms=queue_ms), spent=replace(spent, ttft_ms=event.ttft_ms))
