"""One request's way through its chain: decide, call, judge, and go on until there is an answer or nothing is left."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, assert_never

from msgspec import Struct

from llm_routerd.judging.judge import Accepted, Judge
from llm_routerd.logs import get_logger
from llm_routerd.protocol.call import Call
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.events import AttemptRejected, AttemptStarted, Failed, Result
from llm_routerd.protocol.outcome import Answer, AttemptRecord, Outcome, Rejection, Usage, told, total_cost
from llm_routerd.protocol.request import StreamMode
from llm_routerd.routing.chain import ChainRun, Examine, GiveUp, Need, Try
from llm_routerd.running.attempt import Attempt, EventSink
from llm_routerd.running.clock import Bounds
from llm_routerd.running.shortage import LONGEST_PAUSE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llm_routerd.config.tree import Chain, Deployment
    from llm_routerd.protocol.request import Request
    from llm_routerd.running.resources import Executor, Slots

log = get_logger()


class Ending(Struct, frozen=True, kw_only=True):
    """How a request ended, and what the metrics need to know of its way there.  Times are in milliseconds."""

    event: Result | Failed
    records: tuple[AttemptRecord, ...]
    latency_ms: int
    ttft_ms: int | None
    cost_usd: float | None
    saved_usd: float = 0.0


class _Try(Struct):
    """What came of one turn: `verdict` None means that the request is no longer ours."""

    verdict: Accepted | Rejection | None
    called: bool
    elapsed_seconds: float = 0.0
    ttft_seconds: float | None = None
    usage: Usage | None = None


class RequestRun:
    """The state of one request under way."""

    def __init__(
        self,
        executor: Executor,
        request: Request,
        chain: Chain,
        sink: EventSink,
        *,
        deadline: float | None,
        delivery: int,
        records: list[AttemptRecord] | None = None,
    ) -> None:
        self._executor = executor
        self._request = request
        self._sink = sink
        self._deadline = deadline
        self._delivery = delivery
        self._loop = executor.loop
        self._began = self._loop.time()
        self._records: list[AttemptRecord] = [] if records is None else records
        self._attempt: Attempt | None = None  # the call under way
        self._attempts = 0  # that were begun here
        self._repair: tuple[dict[str, Any], ...] = ()
        self._chain = chain
        self._chain_run = ChainRun(
            config=executor.config,
            chain=chain,
            health=executor.health,
            need=Need(local_only=request.local_only, tools=bool(request.tools)),
            deadline=deadline,
            rng=executor.rng,
            tenant=request.tenant_id,
            messages=request.messages,
        )

    async def until_done(self, queue_ms: int | None) -> Ending | None:
        """See `Executor.run`."""
        while True:
            decision = self._chain_run.decide(self._loop.time())
            if isinstance(decision, Examine):
                await self._examine(decision.deployment)
                continue
            self._records += decision.passed
            match decision:
                case GiveUp():
                    return self._gave_up(decision)
                case Try():
                    tried = await self._try(decision)
                case _:
                    assert_never(decision)
            if tried.verdict is None:
                return None
            if isinstance(tried.verdict, Accepted):
                return self._answered(decision.deployment, tried, tried.verdict.answer, queue_ms)

    async def _examine(self, deployment: Deployment) -> None:
        examination = self._executor.examinations[deployment.name]
        try:
            answers = await examination.answers(wait_seconds=self._left())
        except Exception as error:  # noqa: BLE001 - see `_fault`
            self._fault(deployment, error)
            answers = False
        self._chain_run.examined(deployment, answers=answers)

    async def _try(self, decision: Try) -> _Try:
        """One turn of one deployment, and its verdict told to everyone who keeps account."""
        deployment = decision.deployment
        try:
            if decision.wait_seconds:
                await asyncio.sleep(decision.wait_seconds)
            tried = await self._take_turn(deployment, decision.repair)
        except BaseException:
            self._chain_run.abandoned()
            if self._attempt is not None:
                cancelled = Rejection(code=AttemptCode.CANCELLED, reason="cancelled")
                self._record(deployment, _tried(self._attempt, cancelled))
            raise
        match tried.verdict:
            case None:
                self._chain_run.abandoned()
            case Accepted():
                self._chain_run.answered()
            case Rejection() as rejection:
                elapsed = tried.elapsed_seconds if tried.called else None
                self._chain_run.rejected(rejection, self._loop.time(), elapsed)
                if tried.called:
                    self._tell_rejected(deployment, rejection, tried.elapsed_seconds)
        self._record(deployment, tried)
        return tried

    def _tell_rejected(self, deployment: Deployment, rejection: Rejection, elapsed_seconds: float) -> None:
        self._sink.rejected(
            AttemptRejected(
                deployment=deployment.name,
                model=deployment.model,
                outcome=rejection.outcome,
                code=rejection.code,
                reason=rejection.reason,
                latency_ms=_ms(elapsed_seconds),
            )
        )

    async def _take_turn(self, deployment: Deployment, repair: str | None) -> _Try:
        """Wait for a place and a loaded model, then call."""
        slots = self._executor.slots[deployment.name]
        if not await self._got_place(slots, deployment):
            reason = f"queue_timeout: no call of {deployment.concurrency} ended within {deployment.queue_timeout:g} s"
            return _Try(Rejection(code=AttemptCode.BUSY, reason=reason), called=False)
        try:
            warmth = self._executor.warmth[deployment.name]
            if not warmth.is_ready:
                cold = await self._when_able(deployment, lambda: self._load(deployment))
                if cold.verdict is not None:
                    return cold
            started = AttemptStarted(
                deployment=deployment.name,
                model=deployment.model,
                delivery=self._delivery,
                consumer=self._executor.consumer,
            )
            if not await self._sink.attempt_started(started):
                return _Try(None, called=False)
            self._attempts += 1
            tried = await self._when_able(deployment, lambda: self._call(deployment, repair))
            if tried.ttft_seconds is not None:
                warmth.answered()
            return tried
        finally:
            slots.release()

    async def _got_place(self, slots: Slots, deployment: Deployment) -> bool:
        """Whether a place among the calls came free in time; a shortage of ours says nothing of the calls' length."""
        is_free = await slots.acquire(self._within(deployment.queue_timeout))
        while not is_free and self._executor.shortage.why is not None and self._left() != 0:
            is_free = await slots.acquire(self._within(max(deployment.queue_timeout, LONGEST_PAUSE_SECONDS)))
        return is_free

    async def _load(self, deployment: Deployment) -> _Try:
        """Wait for the model; verdict None: it is loaded, as far as that can be told."""
        try:
            cold = await self._executor.warmth[deployment.name].ready(wait_seconds=self._left())
        except Exception as error:  # noqa: BLE001 - see `_fault`
            cold = self._fault(deployment, error)
        return _Try(cold, called=False)

    def _when_able(self, deployment: Deployment, ask: Callable[[], Awaitable[_Try]]) -> Awaitable[_Try]:
        """Ask; where it is we that lack something, wait for it and ask again: see `Shortage.until_able`."""
        return self._executor.shortage.until_able(
            deployment.name, ask, deadline=self._deadline, route_seconds=deployment.connect_timeout
        )

    async def _call(self, deployment: Deployment, repair: str | None) -> _Try:
        """Call, and judge what comes; whatever goes wrong in that costs this attempt and not the request."""
        began = self._loop.time()
        attempt: Attempt | None = None
        verdict: Accepted | Rejection
        try:
            self._attempt = attempt = self._make_attempt(deployment, repair)
            verdict = await attempt.run()
        except Exception as error:  # noqa: BLE001 - see `_fault`
            verdict = self._fault(deployment, error)
        self._attempt = None
        if attempt is None:
            return _Try(verdict, called=True, elapsed_seconds=self._loop.time() - began)
        if isinstance(verdict, Rejection) and verdict.outcome is Outcome.INVALID:
            self._repair = _repair_messages(attempt.text, verdict)
        return _tried(attempt, verdict)

    def _make_attempt(self, deployment: Deployment, repair: str | None) -> Attempt:
        request = self._request
        mode = request.stream
        offered = request.offered_tools if request.tools else None
        judge = Judge(
            schema=request.schema,
            refusals=self._executor.refusals if request.detect_refusal else None,
            mode=mode,
            has_tools=bool(offered),
            tool_names=offered,
            demanded=request.demanded_tools if offered else frozenset(),
        )
        bounds = Bounds.of(deployment, streams=mode is not StreamMode.OFF, deadline=self._deadline)
        return Attempt(
            backend=self._executor.backends.get(deployment.name),
            call=self._make_call(deployment, repair),
            judge=judge,
            sink=self._sink,
            clock=self._executor.watch.clock(bounds),
            on_first_token=self._chain_run.first_token,
            schema=request.schema,
            validation=self._executor.validation,
        )

    def _fault(self, deployment: Deployment, error: Exception) -> Rejection:
        """What nobody foresaw is a fault of ours: the next deployment may do without what went wrong."""
        log.error("attempt_failed", id=self._request.id, deployment=deployment.name, exc_info=error)
        reason = f"a fault in llm-routerd ({type(error).__name__}); its log has more"
        return Rejection(code=AttemptCode.INTERNAL, reason=reason)

    def _priced(self, deployment: Deployment, price: Callable[[], float | None]) -> float | None:
        """A price, None where it is not known; a fault in working it out loses no answer."""
        try:
            return price()
        except Exception as error:  # noqa: BLE001 - see `_fault`
            self._fault(deployment, error)
            return None

    def _make_call(self, deployment: Deployment, repair: str | None) -> Call:
        request = self._request
        params = {**deployment.params, **request.params}
        if deployment.max_tokens is not None:
            params.setdefault("max_tokens", deployment.max_tokens)
        return Call(
            messages=request.messages + (self._repair if repair is not None else ()),
            schema=None if request.schema is None else request.schema.raw,
            tools=request.tools,
            tool_choice=request.tool_choice,
            params=params,
            connect_seconds=self._within(deployment.connect_timeout),
            traceparent=request.traceparent,
        )

    def _record(self, deployment: Deployment, tried: _Try) -> None:
        if tried.verdict is None:
            return
        rejection = tried.verdict if isinstance(tried.verdict, Rejection) else None
        cost: float | None = 0.0
        usage = tried.usage
        if usage:
            cost = self._priced(deployment, lambda: self._executor.pricing.cost_usd(deployment, usage))
        self._records.append(
            AttemptRecord(
                deployment=deployment.name,
                model=deployment.model,
                outcome=Outcome.SUCCESS if rejection is None else rejection.outcome,
                code=None if rejection is None else rejection.code,
                reason=None if rejection is None else rejection.reason,
                latency_ms=_ms(tried.elapsed_seconds),
                ttft_ms=None if tried.ttft_seconds is None else _ms(tried.ttft_seconds),
                usage=usage,
                cost_usd=cost,
                early=rejection is not None and rejection.early,
            )
        )

    def _answered(self, deployment: Deployment, tried: _Try, answer: Answer, queue_ms: int | None) -> Ending:
        request, records = self._request, tuple(self._records)
        usage = tried.usage or Usage()
        now = self._loop.time()
        ttft_ms = None
        if tried.ttft_seconds is not None:
            ttft_ms = _ms(now - self._began - tried.elapsed_seconds + tried.ttft_seconds)
        cost = total_cost(records)
        event = Result(
            request_id=request.id,
            content=answer.content,
            raw_text=answer.raw_text,
            finish_reason=answer.finish_reason,
            tool_calls=answer.tool_calls,
            model_used=deployment.model,
            deployment=deployment.name,
            attempts=told(records),
            usage=usage,
            cost_usd=cost,
            attempt=self._attempts,
            cost_estimated=any(record.is_estimated_cost for record in records),
            latency_ms=_ms(now - self._began),
            ttft_ms=ttft_ms,
            queue_ms=queue_ms,
            tenant_id=request.tenant_id,
            context=request.context,
            metadata=request.metadata,
        )
        saved = None
        if deployment.local and cost is not None:
            saved = self._priced(deployment, lambda: self._executor.saved_usd(self._chain, usage, spent_usd=cost))
        return Ending(
            event=event,
            records=records,
            latency_ms=event.latency_ms,
            ttft_ms=ttft_ms,
            cost_usd=cost,
            saved_usd=saved or 0.0,
        )

    def _gave_up(self, decision: GiveUp) -> Ending:
        records = tuple(self._records)
        request = self._request
        event = Failed(
            request_id=request.id,
            code=decision.code,
            message=decision.message,
            attempts=told(records),
            metadata=request.metadata,
        )
        return Ending(
            event=event,
            records=records,
            latency_ms=_ms(self._loop.time() - self._began),
            ttft_ms=None,
            cost_usd=total_cost(records),
        )

    def _left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - self._loop.time())

    def _within(self, seconds: float) -> float:
        left = self._left()
        return seconds if left is None else min(seconds, left)


def _tried(attempt: Attempt, verdict: Accepted | Rejection) -> _Try:
    """A call and what came of it."""
    return _Try(
        verdict,
        called=True,
        elapsed_seconds=attempt.elapsed_seconds,
        ttft_seconds=attempt.ttft_seconds,
        usage=attempt.usage(verdict if isinstance(verdict, Rejection) else None),
    )


def _repair_messages(text: str, rejection: Rejection) -> tuple[dict[str, Any], ...]:
    """What is added to the conversation to have an invalid answer mended."""
    demand = (
        f"That answer was not accepted: {rejection.reason}. "
        "Answer again, with JSON that satisfies the schema, and nothing else."
    )
    return ({"role": "assistant", "content": text}, {"role": "user", "content": demand})


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
