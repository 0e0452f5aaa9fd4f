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
        self._count = 0
        # Of calls without a result: their ids; and in order, all and by name, with some that have one by now.
        self._waiting: set[str] = set()
        self._calls: deque[str] = deque()
        self._named: defaultdict[str, deque[str]] = defaultdict(deque)

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
        self._waiting.add(call_id)
        self._calls.append(call_id)
        self._named[name].append(call_id)
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}

    def _answered(self, given: dict[str, Any], where: str) -> str:
        """The id of the call that a result belongs to."""
        call_id = a_text(given.get("tool_call_id", ""), path(where, "tool_call_id"))
        name = a_text(given.get("tool_name", ""), path(where, "tool_name"))
        if not call_id:
            calls = self._named[name] if name else self._calls
            while calls and not call_id:
                call_id = found if (found := calls.popleft()) in self._waiting else ""
        self._waiting.discard(call_id)
        return call_id or self._new_id()

    def _new_id(self) -> str:
        self._count += 1
        return f"call_{self._count}"
