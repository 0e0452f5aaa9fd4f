"""From an answer that calls tools to what is dispatched: events, and what goes to the tools' streams."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import orjson
from msgspec import Struct
from msgspec.structs import replace

from llm_routerd.agents.conversation import assistant_message
from llm_routerd.jsonschema.values import depth_of
from llm_routerd.judging.calls import MAX_LEVELS, fault_of_call
from llm_routerd.protocol.events import ToolCalled, ToolReturned, TurnEnded
from llm_routerd.protocol.outcome import ToolCall
from llm_routerd.protocol.tool import ToolRequest

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from llm_routerd.agents.offering import Offer
    from llm_routerd.agents.registration import Tool
    from llm_routerd.agents.run import OpenCall
    from llm_routerd.protocol.events import Result
    from llm_routerd.protocol.request import Request

BROKEN = "the call could not be made: the stream of this tool's calls is none"
_LONGEST_ARGUMENTS = 65_536  # characters of what a model wrote as the arguments, and is no object
_LONGEST_NAME = 64  # characters of what a model wrote as the name of no tool


class Sending(Struct, frozen=True, kw_only=True):
    """An event, and the call that is put on a tool's stream in the same step; None: there is none to put there."""

    event: ToolCalled | ToolReturned | TurnEnded
    call: ToolRequest | None = None


class Turn(Struct, frozen=True, kw_only=True):
    """What is known when a model's turn has come to calls.

    Attributes:
        number: of the turn.
        origin: tells the request from others that had its id before it.
        attempt: of the answer, in the request's events stream.
        now_ms: by the server's clock.
        started_ms: when the run's request was picked up.
        deadline_ms: of the run.
        confirmation_ms: how long a call waits for a person.
        always: names of tools whose calls wait for nobody any more.
        broken: names of tools whose streams take no call.
    """

    number: int
    origin: str
    attempt: int
    now_ms: int
    started_ms: int
    deadline_ms: int | None
    confirmation_ms: int
    always: AbstractSet[str]
    broken: AbstractSet[str] = frozenset()


def dispatch(request: Request, answer: Result, offer: Offer, turn: Turn) -> tuple[Sending, ...]:
    """The calls of a turn, what is wrong with some of them, and the turn's own event, in the order of the stream."""
    calls: list[Sending] = []
    faults: list[Sending] = []
    told: list[ToolCall] = []
    for index, made in enumerate(answer.tool_calls):
        call_id = call_id_of(request.id, turn.origin, turn.attempt, index)
        arguments = _arguments(made.arguments)
        is_object = isinstance(arguments, dict)
        told.append(ToolCall.of(id=call_id, name=made.name, arguments=made.arguments if is_object else "{}"))
        tool = offer.tools.get(made.name)
        name = tool.name if tool is not None else made.name[:_LONGEST_NAME] or "?"
        event = ToolCalled(
            call_id=call_id, name=name, arguments=arguments, turn=turn.number, args_sha256=sha256_of(arguments)
        )
        fault = BROKEN if name in turn.broken else fault_of_call(made, offer.parameters)
        if tool is None or fault is not None:
            calls.append(Sending(event=event))
            error = fault or "there is no such tool"
            faults.append(Sending(event=ToolReturned(call_id=call_id, name=name, error=error)))
        else:
            calls.append(_sending(request, event, tool, turn, must_ask=name in offer.asks and name not in turn.always))
    return (*calls, *faults, Sending(event=_turn_ended(answer, told, turn)))


def _sending(request: Request, event: ToolCalled, tool: Tool, turn: Turn, *, must_ask: bool) -> Sending:
    """A call with which nothing is wrong: to a person first, or to its tool."""
    if must_ask:
        return Sending(event=replace(event, confirm=True, expires_at_ms=turn.now_ms + turn.confirmation_ms))
    deadline_ms = due_ms(tool.timeout_ms, turn.now_ms, turn.deadline_ms)
    call = request_of(request, event, event.arguments, deadline_ms)
    return Sending(event=replace(event, deadline_ms=deadline_ms), call=call)


def request_of(request: Request, call: ToolCalled | OpenCall, arguments: Any, deadline_ms: int) -> ToolRequest:
    """What is put on the tool's stream for a call of this run's, with the arguments that stand."""
    return ToolRequest(
        request_id=request.id,
        call_id=call.call_id,
        name=call.name,
        arguments=arguments,
        turn=call.turn,
        tenant_id=request.tenant_id,
        deadline_ms=deadline_ms,
        traceparent=request.traceparent,
    )


def _turn_ended(answer: Result, told: list[ToolCall], turn: Turn) -> TurnEnded:
    return TurnEnded(
        turn=turn.number,
        message=assistant_message(answer.raw_text, told),
        deployment=answer.deployment,
        model=answer.model_used,
        latency_ms=answer.attempts[-1].latency_ms if answer.attempts else 0,
        usage=answer.usage,
        cost_usd=answer.cost_usd,
        cost_estimated=answer.cost_estimated,
        started_ms=turn.started_ms,
        deadline_ms=turn.deadline_ms,
    )


def _arguments(text: str) -> Any:
    """The object that a model wrote; the text itself where it wrote none, or one that cannot be written again."""
    try:
        found = orjson.loads(text) if text.strip() else {}
    except orjson.JSONDecodeError:
        return text[:_LONGEST_ARGUMENTS]
    return found if isinstance(found, dict) and depth_of(found) <= MAX_LEVELS else text[:_LONGEST_ARGUMENTS]


def due_ms(timeout_ms: int, now_ms: int, deadline_ms: int | None) -> int:
    """Until when a tool's answer is waited for."""
    due = now_ms + timeout_ms
    return due if deadline_ms is None else min(due, deadline_ms)


def call_id_of(request_id: str, origin: str, attempt: int, index: int) -> str:
    """The id of a call: unique over all requests, the same when it is worked out again, in letters that all take."""
    return "call_" + hashlib.sha256(f"{request_id} {origin} {attempt} {index}".encode()).hexdigest()[:24]


def sha256_of(arguments: Any) -> str:
    """By which whoever agrees to arguments names them."""
    return hashlib.sha256(orjson.dumps(arguments)).hexdigest()
