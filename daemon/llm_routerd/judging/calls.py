"""Calls of tools as an answer: which a request takes, and what it demands.

A call must be of a tool that was offered, one of those that were demanded if any were, and its arguments a JSON
object; none at all are an empty one.  Whether they satisfy the tool's own schema is for the tool to say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.judging.verdicts import INVALID_UNICODE, invalid_json, is_encodable, parse
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import Rejection, ToolCall

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet


NONE_SENT = Rejection(
    code=AttemptCode.UPSTREAM, reason="the server promises calls of tools and sends none", retryable=True
)
NONE_MADE = Rejection(
    code=AttemptCode.NO_TOOL_CALL, reason="`tool_choice` demands a call of a tool, and the model made none"
)
_OTHER_TOOL = Rejection(
    code=AttemptCode.NO_TOOL_CALL, reason="`tool_choice` demands a call of one tool, and the model called another"
)


def judge_calls(
    calls: Iterable[ToolCall], *, tool_names: AbstractSet[str] | None, demanded: AbstractSet[str]
) -> tuple[ToolCall, ...] | Rejection:
    """The calls as they are passed on, or why they are no answer.

    Args:
        calls: what the model called.
        tool_names: the tools offered; None: any name will do.
        demanded: of these one must be called; empty: any.
    """
    whole_calls = []
    for call in calls:
        if not is_encodable(call.id + call.name):
            return INVALID_UNICODE
        if tool_names is not None and call.name not in tool_names:
            return invalid_json("a call of a tool that was not offered")
        if demanded and call.name not in demanded:
            return _OTHER_TOOL
        arguments = call.arguments if call.arguments.strip() else "{}"
        if not isinstance(parse(arguments), dict):
            return invalid_json("the arguments of a tool call are not a JSON object")
        whole_calls.append(ToolCall.of(id=call.id, name=call.name, arguments=arguments))
    return tuple(whole_calls)
