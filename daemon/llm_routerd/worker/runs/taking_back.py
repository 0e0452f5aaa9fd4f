"""The calls of a run that is over: those that nobody has begun are taken back, so that no tool acts for nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from llm_routerd.agents.run import AgentRun, OpenCall
from llm_routerd.logs import get_logger
from llm_routerd.protocol.reading import UnknownEvent
from llm_routerd.queue.connection import ResponseError, describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.queue.broker import Broker

log = get_logger()


class TakenBack(Struct, frozen=True):
    """The run, as its events have it, and of its calls that were with their tools whether one may have taken it."""

    run: AgentRun
    calls: tuple[tuple[OpenCall, bool], ...] = ()


async def take_back(broker: Broker, request_id: str) -> TakenBack:
    """Take back what stands, as its events have it: what was under way here may have stood."""
    run = AgentRun(1)
    try:
        async for event in broker.journal(request_id):
            if not isinstance(event, UnknownEvent):
                run.apply(event)
    except ResponseError as error:  # the run's end stands or falls without that
        log.warning("calls_not_taken_back", id=request_id, why=describe(error))
    if not run.turn:
        return TakenBack(run)
    calls = tuple(run.dispatched())
    taken = await hear_no_more(broker, request_id, [(call.name, call.entry or "") for call in calls])
    return TakenBack(run, tuple(zip(calls, taken, strict=False)))


async def hear_no_more(broker: Broker, request_id: str, calls: Sequence[tuple[str, str]] = ()) -> list[bool]:
    """Take back these calls, {tool, entry}, and hear nothing more; which may a tool have taken?"""
    try:
        return await broker.withdraw(request_id, calls)
    except ResponseError as error:  # the run's end stands or falls without that
        log.warning("calls_not_taken_back", id=request_id, why=describe(error))
        return []
