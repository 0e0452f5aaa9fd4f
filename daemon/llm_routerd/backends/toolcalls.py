"""Assembles the tool calls of a streamed answer from their deltas.

OpenAI sends `{index, id, function: {name, arguments: ""}}` first and pieces of `arguments` after it, by
index. Others leave out the index, the id or both, send every call whole, send each under index 0, or send
arguments as an object; and some change the id with every delta.  The rule that serves them all: a delta continues
the call at its index (without one: the last call), unless it brings another id and a name, the call so far being
whole or of another name, or, without index and id, a name after arguments; then it begins a new one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import orjson

from llm_routerd.protocol.numbers import holds_inexact
from llm_routerd.protocol.outcome import ToolCall

MAX_CALLS = 128
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST_NAME = 64
MAX_ARGUMENTS_LENGTH = 1_048_576


class ToolCallError(ValueError):
    """A delta is none, or there are too many calls, or too long ones; the message is a fixed phrase."""


@dataclass(slots=True)
class _Partial:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)

    def is_whole(self) -> bool:
        """Whether its arguments are a JSON object."""
        return self.arguments[-1].rstrip().endswith("}") and _is_object("".join(self.arguments))


class ToolCallAssembler:
    """The tool calls so far."""

    __slots__ = ("_at_index", "_length", "_partials")

    def __init__(self) -> None:
        self._partials: list[_Partial] = []
        self._at_index: dict[int, _Partial] = {}
        self._length = 0

    def __bool__(self) -> bool:
        return bool(self._partials)

    def add(self, delta: Any) -> None:
        """One element of a chunk's `tool_calls`.

        Raises:
            ToolCallError: it is no tool call delta, or the calls outgrow their bounds.
        """
        function = delta.get("function") if isinstance(delta, dict) else None
        if not isinstance(function, dict):
            raise ToolCallError("a tool call is malformed")
        index, call_id, name = delta.get("index"), delta.get("id"), function.get("name")
        arguments = function.get("arguments")
        partial = self._partial(index, call_id, name, arguments)
        partial.id = partial.id or (call_id if isinstance(call_id, str) else "")
        partial.name = partial.name or (name if isinstance(name, str) else "")
        if arguments is None:
            return
        text = arguments if isinstance(arguments, str) else json_of_arguments(arguments)
        self._length += len(text)
        if self._length > MAX_ARGUMENTS_LENGTH:
            raise ToolCallError("the tool calls are too long")
        if text:
            partial.arguments.append(text)

    def complete(self) -> tuple[ToolCall, ...]:
        """The calls; ids that the model did not give are `call_<n>`, arguments that it left out are `{}`.

        Raises:
            ToolCallError: a call has no name.
        """
        if not all(partial.name for partial in self._partials):
            raise ToolCallError("a tool call has no name")
        return tuple(
            ToolCall.of(
                id=partial.id or f"call_{number}",
                name=partial.name,
                arguments=_joined("".join(partial.arguments)) or "{}",
            )
            for number, partial in enumerate(self._partials)
        )

    def _partial(self, index: Any, call_id: Any, name: Any, arguments: Any) -> _Partial:
        """The call that a delta with these belongs to, a new one if to none so far."""
        if isinstance(index, int):
            current = self._at_index.get(index)
        else:
            current = self._partials[-1] if self._partials else None
        if current is not None:
            # An id that changes with every delta is no new call: a new one has a name, and follows a whole one.
            other_id = bool(call_id) and bool(current.id) and call_id != current.id and bool(name)
            if other_id and name == current.name:
                goes_on = (
                    isinstance(arguments, str) and bool(arguments) and not arguments.lstrip().startswith(("{", "["))
                )
                other_id = not goes_on and (current.is_whole() if current.arguments else not arguments)
            named_again = bool(name) and bool(current.arguments) and not call_id and not isinstance(index, int)
            if not other_id and not named_again:
                return current
        if len(self._partials) == MAX_CALLS:
            raise ToolCallError("too many tool calls")
        current = _Partial()
        self._partials.append(current)
        if isinstance(index, int):
            self._at_index[index] = current
        return current


def json_of_arguments(arguments: Any) -> str:
    """The JSON of arguments that came parsed.

    Raises:
        ToolCallError: a number in them is too large to have come through the parser as it was, or they are too deep.
    """
    if holds_inexact(arguments):
        raise ToolCallError("a number in a tool call is too large to be carried")
    try:
        return orjson.dumps(arguments).decode()
    except orjson.JSONEncodeError:
        raise ToolCallError("a tool call is nested too deeply") from None


def _joined(text: str) -> str:
    """A text whose halves of surrogate pairs, which came in different pieces, are whole characters."""
    try:
        return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        raise ToolCallError("half a surrogate pair in a tool call") from None


def arguments_object(arguments: Any) -> dict[str, Any]:
    """The arguments of a call in a request's messages as an object; what is none is held by one."""
    if isinstance(arguments, str):
        try:
            arguments = orjson.loads(arguments or "{}")
        except orjson.JSONDecodeError:
            return {"arguments": arguments}
    return arguments if isinstance(arguments, dict) else {"arguments": arguments}


def function_name(name: str) -> str:
    """The name of a function in a request's messages as every provider takes it; nearly all are so already.

    A model may have called what nobody offered, by a name that the next one's server would refuse.
    """
    return _NOT_IN_NAMES.sub("_", name)[:_LONGEST_NAME] or "_"


def with_sound_calls(message: dict[str, Any]) -> dict[str, Any]:
    """A message in OpenAI's form whose calls every server takes: names, and arguments that are a JSON object.

    OpenAI itself takes any text for arguments; llama.cpp, vLLM and litellm parse it and fail.
    """
    calls = message.get("tool_calls")
    return {**message, "tool_calls": [_sound(call) for call in calls]} if calls else message


def _sound(call: dict[str, Any]) -> dict[str, Any]:
    function, arguments = call["function"], call["function"].get("arguments")
    if not (isinstance(arguments, str) and _is_object(arguments)):
        arguments = orjson.dumps(arguments_object(arguments or "{}")).decode()
    return {**call, "function": {**function, "name": function_name(function["name"]), "arguments": arguments}}


def _is_object(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False
