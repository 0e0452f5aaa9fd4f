"""The end of a run, which tells of all its turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from llm_routerd.protocol.codes import ErrorCode, Fault

if TYPE_CHECKING:
    from llm_routerd.agents.run import AgentRun, Ask
    from llm_routerd.protocol.events import Failed, Result


def answered(answer: Result, run: AgentRun, asked: Ask, *, latency_ms: int) -> Result:
    """The answer of a run's last turn as the run's; `latency_ms` is the run's."""
    spent = run.spent
    is_known = spent.cost_usd is not None and answer.cost_usd is not None
    return replace(
        answer,
        usage=spent.usage + answer.usage,
        cost_usd=(spent.cost_usd or 0.0) + (answer.cost_usd or 0.0) if is_known else None,
        cost_estimated=answer.cost_estimated or spent.is_estimated,
        attempts=(*spent.attempts, *answer.attempts),
        latency_ms=latency_ms,
        ttft_ms=None if answer.ttft_ms is None else latency_ms - answer.latency_ms + answer.ttft_ms,
        turns=asked.turn,
    )


def unanswered(failure: Failed, run: AgentRun, asked: Ask) -> Failed:
    """The end of a turn that nobody has answered as the run's."""
    code = failure.code
    if asked.is_last and asked.turn > 1 and _would_not_answer(failure):
        code = ErrorCode.TURNS_EXHAUSTED
    return replace(failure, code=code, attempts=(*run.spent.attempts, *failure.attempts))


def _would_not_answer(failure: Failed) -> bool:
    """Whether models were there, and what they said was no answer."""
    codes = [each.code for each in failure.attempts if each.code is not None and each.code.traits.is_asked]
    is_exhausted = failure.code in {ErrorCode.CHAIN_EXHAUSTED, ErrorCode.LOCAL_EXHAUSTED}
    return is_exhausted and {code.traits.fault for code in codes} == {Fault.ANSWER}
