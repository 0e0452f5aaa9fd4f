"""The calls of a run that is over: none is to act for nobody."""

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


async def take_back(broker: Broker, request_id: str) -> None:
    """Take back what nobody has begun of the calls that a request's events tell of; where none are, nothing is done."""
    state = AgentRun(1)
    try:
        async for event in broker.journal(request_id):
            if not isinstance(event, UnknownEvent):
                state.apply(event)
    except ResponseError as error:  # its end stands or falls without that
        log.warning("calls_not_taken_back", id=request_id, why=describe(error))
        return
    if state.turn:
        await hear_no_more(broker, request_id, [(call.name, call.entry or "") for call in state.dispatched()])


async def hear_no_more(broker: Broker, request_id: str, calls: Sequence[tuple[str, str]]) -> None:
    """A run is over: these calls, {tool, entry}, are taken back."""
    try:
        await broker.withdraw(request_id, calls)
    except ResponseError as error:
        log.warning("calls_not_taken_back", id=request_id, why=describe(error))
