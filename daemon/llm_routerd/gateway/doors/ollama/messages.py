"""What has been said, from Ollama's form to OpenAI's."""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Any, Final

from llm_routerd.gateway.doors.ollama.images import image_parts
from llm_routerd.gateway.properties import Properties, a_list, a_text, an_object_text, path

MESSAGE: Final = Properties(
    heeded=frozenset({"role", "content", "images", "tool_calls", "tool_name", "tool_call_id"}),
    idle=frozenset({"thinking"}),  # of an earlier turn
)
TOOL_CALL: Final = Properties(heeded=frozenset({"id", "function"}), idle=frozenset({"type"}))
FUNCTION: Final = Properties(heeded=frozenset({"name", "arguments"}), idle=frozenset({"index", "description"}))
_ANY: Final = ("", "")

Message = dict[str, Any]


def messages_of(given: Any) -> list[Message]:
    """The messages.

    A call may have no id there, and a result names its function or nothing: ids are made by counting, and a result
    belongs to the first call of that name that has none yet.

    Raises:
        RefusedError: they are none of this protocol.
    """
    writing = _Writing()
    for number, message in enumerate(a_list(given, "messages")):
        writing.add(message, f"messages.{number}")
    return writing.messages


def content_of(text: str, images: Any, where: str) -> str | list[dict[str, Any]]:
    """Text, and images after it."""
    parts = image_parts(images, where)
    if not parts:
        return text
    return [*([{"type": "text", "text": text}] if text else []), *parts]


class _Writing:
    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._count = 0  # of ids that were made
        self._calls = 0
        self._waiting: dict[int, str] = {}  # ids of calls without a result, in their order
        self._named: defaultdict[tuple[str, str], deque[int]] = defaultdict(deque)  # how a result may name them

    def add(self, message: Any, where: str) -> None:
        given = MESSAGE.of(message, where)
        text = a_text(given.get("content", ""), path(where, "content"))
        content = content_of(text, given.get("images", []), path(where, "images"))
        written: Message = {"role": a_text(given.get("role"), path(where, "role")), "content": content}
        if calls := a_list(given.get("tool_calls", []), path(where, "tool_calls")):
            at = path(where, "tool_calls")
            written["tool_calls"] = [self._call(call, path(at, number)) for number, call in enumerate(calls)]
        if written["role"] == "tool":
            written["tool_call_id"] = self._answered(given, where)
        self.messages.append(written)

    def _call(self, call: Any, where: str) -> dict[str, Any]:
        given = TOOL_CALL.of(call, where)
        at = path(where, "function")
        function = FUNCTION.of(given.get("function"), at)
        name = a_text(function.get("name"), path(at, "name"))
        arguments = an_object_text(function.get("arguments", {}), path(at, "arguments"))
        call_id = a_text(given.get("id", ""), path(where, "id")) or self._new_id()
        number = self._calls = self._calls + 1
        self._waiting[number] = call_id
        for way in (("id", call_id), ("name", name), _ANY):
            self._named[way].append(number)
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}

    def _answered(self, given: dict[str, Any], where: str) -> str:
        """The id of the call that a result belongs to."""
        call_id = a_text(given.get("tool_call_id", ""), path(where, "tool_call_id"))
        name = a_text(given.get("tool_name", ""), path(where, "tool_name"))
        numbers = self._named.get(("id", call_id) if call_id else ("name", name) if name else _ANY, deque())
        while numbers:  # each is taken out once, so that thousands of calls cost no more than their number
            if waiting := self._waiting.pop(numbers.popleft(), ""):
                return waiting
        return call_id or self._new_id()

    def _new_id(self) -> str:
        self._count += 1
        return f"call_{self._count}"
