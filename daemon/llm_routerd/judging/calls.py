"""Calls of tools as an answer: which a request takes, and what it demands.

A call must be of a tool that was offered, one of those that were demanded if any were, and its arguments a JSON
object; none at all are an empty one.  Whether they satisfy the tool's own schema is for the tool to say.

A turn of a run with tools has `CallRules`: there the arguments are held to each tool's `parameters`, and what is wrong
with a call is told to the model (`fault_of_call`) before it costs an attempt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from llm_routerd.jsonschema.path import printable
from llm_routerd.jsonschema.values import depth_of
from llm_routerd.judging.verdicts import INVALID_UNICODE, invalid_json, is_encodable, parse
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.numbers import carries_numbers
from llm_routerd.protocol.outcome import Rejection, ToolCall

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from collections.abc import Set as AbstractSet

    from llm_routerd.jsonschema.compiled import AnswerSchema

MAX_CALLS = 32
"""Most calls that one turn of a run may have."""

MAX_ARGUMENTS_BYTES = 65_536
"""Longest arguments of a call of a run, as JSON text."""

MAX_LEVELS = 100
"""Deepest nesting of their arrays and objects: every reader and writer of JSON takes that."""

NONE_SENT = Rejection(
    code=AttemptCode.UPSTREAM, reason="the server promises calls of tools and sends none", retryable=True
)
NONE_MADE = Rejection(
    code=AttemptCode.NO_TOOL_CALL, reason="`tool_choice` demands a call of a tool, and the model made none"
)
NONE_OFFERED = invalid_json("a call of a tool where none was offered")
_OTHER_TOOL = Rejection(
    code=AttemptCode.NO_TOOL_CALL, reason="`tool_choice` demands a call of one tool, and the model called another"
)
_NOT_OFFERED = invalid_json("a call of a tool that was not offered")
_NO_OBJECT = invalid_json("the arguments of a tool call are not a JSON object")
_TOO_MANY = invalid_json("more calls of tools than a turn may have")
_NOT_SATISFIED = Rejection(
    code=AttemptCode.SCHEMA_VIOLATION, reason="the arguments of a tool call do not satisfy the tool's parameters"
)
# What judging the arguments of one call may cost on the event loop: some 12 ms, and a hundredth for ordinary tools.
_MOST_STEPS = 250_000
_LONGEST_NAME = 64
_LONGEST_LIST = 600  # of the names that a model is told


class CallRules(Struct, frozen=True, kw_only=True):
    """What the calls of a run's turn are held to, also of the last turn, in which none may be made.

    Attributes:
        parameters: by the name under which the model knows each tool: what its arguments must satisfy.
        strict: a faulty call is no answer.  Else it is let through as it is, for the run to tell the model.
    """

    parameters: Mapping[str, AnswerSchema]
    strict: bool


def judge_calls(
    calls: Iterable[ToolCall],
    *,
    tool_names: AbstractSet[str] | None,
    demanded: AbstractSet[str],
    rules: CallRules | None = None,
) -> tuple[ToolCall, ...] | Rejection:
    """The calls as they are passed on, or why they are no answer.

    Args:
        calls: what the model called.
        tool_names: the tools offered; None: any name will do.
        demanded: of these one must be called; empty: any.
        rules: of a turn of a run; they hold in the place of `tool_names` and `demanded`.
    """
    whole_calls = []
    for call in calls:
        arguments = call.arguments if call.arguments.strip() else "{}"
        whole = ToolCall.of(id=call.id, name=call.name, arguments=arguments)
        rejection = _judge_alone(whole, tool_names, demanded) if rules is None else _judge_by_rules(whole, rules)
        if rejection is not None:
            return rejection
        whole_calls.append(whole)
        if rules is not None and len(whole_calls) > MAX_CALLS:
            return _TOO_MANY
    return tuple(whole_calls)


def fault_of_call(call: ToolCall, parameters: Mapping[str, AnswerSchema]) -> str | None:
    """What is wrong with a call, on one line of bounded length for the model that made it; None: nothing.

    The line may quote the call and is for no log.  A call without a fault has arguments that are a JSON object of at
    most `MAX_ARGUMENTS_BYTES`, can be written as JSON again without a loss, and satisfy the tool's parameters.

    Args:
        call: as `judge_calls` let it through.
        parameters: as in `CallRules`.
    """
    fault = _fault(call, parameters)
    return None if fault is None else fault[1]


def _judge_alone(call: ToolCall, tool_names: AbstractSet[str] | None, demanded: AbstractSet[str]) -> Rejection | None:
    """The verdict on a call that its caller makes."""
    if not is_encodable(call.id + call.name):
        return INVALID_UNICODE
    if tool_names is not None and call.name not in tool_names:
        return _NOT_OFFERED
    if demanded and call.name not in demanded:
        return _OTHER_TOOL
    return None if isinstance(parse(call.arguments), dict) else _NO_OBJECT


def _judge_by_rules(call: ToolCall, rules: CallRules) -> Rejection | None:
    """The verdict on a call of a run: what cannot be told to its model, or is not to be."""
    if not is_encodable(call.id + call.name + call.arguments):
        return INVALID_UNICODE
    if len(call.name) > _LONGEST_NAME:
        return _NOT_OFFERED
    fault = _fault(call, rules.parameters) if rules.strict else None
    return None if fault is None else fault[0]


def _fault(call: ToolCall, parameters: Mapping[str, AnswerSchema]) -> tuple[Rejection, str] | None:
    """The verdict on a call, which quotes nothing of it, and what its model is told."""
    if call.name not in parameters:
        return _NOT_OFFERED, _no_such_tool(call.name, parameters)
    arguments = _carried(call.arguments)
    if isinstance(arguments, str):
        return _NO_OBJECT, arguments
    problem = parameters[call.name].validate(arguments, most_steps=_MOST_STEPS)
    if problem is not None:
        return _NOT_SATISFIED, f"The arguments do not satisfy the tool's parameters: {problem}"
    return None


def _carried(text: str) -> dict[str, Any] | str:
    """The arguments that a text holds, or why they cannot be carried to a tool."""
    if len(text) > MAX_ARGUMENTS_BYTES or len(text.encode()) > MAX_ARGUMENTS_BYTES:
        return f"The arguments are longer than {MAX_ARGUMENTS_BYTES} bytes."
    arguments = parse(text)
    if not isinstance(arguments, dict):
        return "The arguments are not a JSON object."
    if depth_of(arguments) > MAX_LEVELS:
        return "The arguments are nested too deeply."
    if not carries_numbers(text):
        return "The arguments hold a number with more digits than can be carried."
    return arguments


def _no_such_tool(name: str, offered: Iterable[str]) -> str:
    called = printable(name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…")
    names = ", ".join(offered)
    names = names if len(names) <= _LONGEST_LIST else f"{names[:_LONGEST_LIST]}…"
    return f'There is no tool "{called}"; there are: {names}.' if names else f'There is no tool "{called}".'
