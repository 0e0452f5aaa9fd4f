"""Calls of tools that a model wrote into its text, where its server did not tell them apart.

Qwen's and Hermes' `<tool_call>{"name": …, "arguments": …}</tool_call>`, also without its end, and the object alone
(ollama 13968 and 16686), Mistral's `[TOOL_CALLS][…]` and Llama's `<|python_tag|>{…}`.  They count where tools were
offered and every name is one of those; then they are the calls, and what stands before them is the text.

Markup at the beginning of a line that cannot be read, names no offered tool, or is followed by words is no answer
either: it is `UNSURE`, and the attempt is to be rejected.  In the middle of a sentence it is text, unless it names an
offered tool.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import orjson
from msgspec.structs import replace

from llm_routerd.judging.json_text import json_body
from llm_routerd.protocol.numbers import carries_numbers
from llm_routerd.protocol.outcome import ToolCall

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

UNSURE: Final = "a call of a tool in the text that cannot be read for certain"

_MARKUP = re.compile(
    r"<tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>|<function=|<function_call>|<\|tool_calls?(?:_begin|_section_begin)?\|>"
    r"|<\uff5ctool\u2581calls?\u2581begin\uff5c>"
)
_READABLE = re.compile(r"<tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>")
_SEPARATORS = re.compile(
    r"(?:\s|</?tool_call>|\[/?TOOL_CALLS\]|<\|python_tag\|>|<\|(?:im_end|eom_id|eot_id)\|>|</s>|;)*+"
)
# A string matches from its first quote on in any case, so that no part of the text is looked at twice.
_BRACKETS = re.compile(r'[\[{]|[\]}]|"[^"\\]*+(?:\\.?[^"\\]*+)*+"?', re.DOTALL)
_DEPTHS = {"{": 1, "[": 1, "}": -1, "]": -1}
_KEYS = frozenset({"name", "arguments", "parameters", "id", "type"})
_MAX_CALLS = 128


def leaked_calls(text: str, tool_names: AbstractSet[str]) -> tuple[str, tuple[ToolCall, ...]] | str | None:
    """The text before the calls and the calls; `UNSURE`; or None where the text is text."""
    body = json_body(text)
    if body.startswith(("{", "[")):
        read = _read(body, tool_names)
        if read is not None:
            return read if isinstance(read, str) else ("", read)
    markup = _MARKUP.search(text)
    if markup is None:
        return None
    before = text[: markup.start()]
    opens_line = not before.rpartition("\n")[2].strip()
    if opens_line and _READABLE.match(text, markup.start()):
        read = _read(text[markup.end() :], tool_names)
        if isinstance(read, tuple):
            return before.strip(), read
    names_tool = any(text.find(name, markup.start()) >= 0 for name in tool_names)
    return UNSURE if opens_line or names_tool else None


def _read(text: str, tool_names: AbstractSet[str]) -> tuple[ToolCall, ...] | str | None:
    """The calls that a text is made of; `UNSURE` where they are too many, or cannot be written as they were read.

    None where anything else stands in the text.
    """
    calls: list[ToolCall] = []
    is_exact = True
    position = _SEPARATORS.match(text).end()  # type: ignore[union-attr] # it always matches
    while position < len(text):
        end = _end_of_value(text, position)
        if end is None:
            return None
        try:
            value = orjson.loads(text[position:end])
        except orjson.JSONDecodeError:
            return None
        is_exact = is_exact and carries_numbers(text[position:end])
        for each in value if isinstance(value, list) else [value]:
            call = _call(each, len(calls), tool_names)
            if not isinstance(call, ToolCall):
                return call
            calls.append(call)
        position = _SEPARATORS.match(text, end).end()  # type: ignore[union-attr] # it always matches
    if not calls:
        return None
    if not is_exact or len(calls) > _MAX_CALLS:
        return UNSURE
    if len({call.id for call in calls}) < len(calls):  # the model's own ids, which tell nobody apart
        calls = [replace(call, id=f"call_{number}") for number, call in enumerate(calls)]
    return tuple(calls)


def _end_of_value(text: str, position: int) -> int | None:
    """Where the object or array that begins here ends, if one does."""
    depth = 0
    for token in _BRACKETS.finditer(text, position):
        depth += _DEPTHS.get(token[0], 0)
        if depth == 0:
            return token.end()
    return None


def _call(value: Any, number: int, tool_names: AbstractSet[str]) -> ToolCall | str | None:
    match value:
        case {"function": {"name": str()} as function} if value.keys() <= {"function", "id", "type"}:
            value = {**value, **function}
            del value["function"]
    match value:
        case {"name": str(name), "arguments": arguments} | {"name": str(name), "parameters": arguments}:
            if name not in tool_names or not value.keys() <= _KEYS:
                return None
        case _:
            return None
    written = arguments if isinstance(arguments, str) else None  # as it is, to the digit
    if written is not None:
        try:
            arguments = orjson.loads(written)
        except orjson.JSONDecodeError:
            return None
    if not isinstance(arguments, dict):
        return None
    if written is None:
        try:
            written = orjson.dumps(arguments).decode()
        except orjson.JSONEncodeError:  # nested deeper than it writes
            return UNSURE
    call_id = value.get("id")
    return ToolCall.of(
        id=call_id if isinstance(call_id, str) and call_id else f"call_{number}",
        name=name,
        arguments=written,
    )
