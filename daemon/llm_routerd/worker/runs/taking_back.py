"""The calls of a run that is over: those that nobody has begun are taken back, so that no tool acts for nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.agents.run import AgentRun
from llm_routerd.logs import get_logger
from llm_routerd.protocol.reading import UnknownEvent
from llm_routerd.queue.connection import ResponseError, describe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.queue.broker import Broker

log = get_logger()


async def take_back(broker: Broker, request_id: str) -> AgentRun:
    """Take back what stands, as its events have it: what was under way here may have stood; returns the run."""
    run = AgentRun(1)
    try:
        async for event in broker.journal(request_id):
            if not isinstance(event, UnknownEvent):
                run.apply(event)
    except ResponseError as error:  # the run's end stands or falls without that
        log.warning("calls_not_taken_back", id=request_id, why=describe(error))
    if run.turn:
        await hear_no_more(broker, request_id, [(call.name, call.entry or "") for call in run.dispatched()])
    return run


async def hear_no_more(broker: Broker, request_id: str, calls: Sequence[tuple[str, str]] = ()) -> None:
    """Take back these calls, {tool, entry}, and hear nothing more."""
    try:
        await broker.withdraw(request_id, calls)
    except ResponseError as error:  # the run's end stands or falls without that
        log.warning("calls_not_taken_back", id=request_id, why=describe(error))
