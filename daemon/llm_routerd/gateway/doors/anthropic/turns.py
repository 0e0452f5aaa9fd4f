"""What has been said, from Anthropic's form to OpenAI's.

There, results of tools are blocks of a user's turn, and the system may speak again in the middle.  Templates of many
local models take one system prompt, at the beginning: what the system says later goes into the user's turn there,
marked as its word.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct

from llm_routerd.gateway.doors.anthropic.blocks import Part, joined, kind_of, part_of, parts_of, text_of, text_part
from llm_routerd.gateway.doors.anthropic.thinking import effort_of
from llm_routerd.gateway.fault import refused, unsupported
from llm_routerd.gateway.properties import Properties, a_flag, a_list, a_text, an_object, an_object_text, path

TURN: Final = Properties(heeded=frozenset({"role", "content"}))
SYSTEM_TURN: Final = Properties(heeded=frozenset({"role", "content", "clear_at", "output_config"}))
SYSTEM_OUTPUT: Final = Properties(heeded=frozenset({"effort"}))
TOOL_USE: Final = Properties(
    heeded=frozenset({"type", "id", "name", "input"}),
    idle=frozenset({"cache_control"}),
    refused={"caller": ({"type": "direct"},), "toolset_name": ()},
)
TOOL_RESULT: Final = Properties(
    heeded=frozenset({"type", "tool_use_id", "content", "is_error"}),
    idle=frozenset({"cache_control"}),
    refused={"toolset_name": ()},
)
TOOL_REFERENCE: Final = Properties(heeded=frozenset({"type", "tool_name"}), idle=frozenset({"cache_control"}))
# Of a model's earlier turns; no other model can do anything with them.
_DROPPED: Final = frozenset({"thinking", "redacted_thinking"})
_ROLES: Final = ("user", "assistant", "system")
_REMINDER: Final = "<system-reminder>\n{}\n</system-reminder>"
_FAILED: Final = "Error: "
_FOUND: Final = "The tool {} can be called now."

Message = dict[str, Any]


class Conversation(Struct, frozen=True, kw_only=True):
    """What has been said.

    Attributes:
        messages: in OpenAI's form.
        effort: that the system asked for in the middle of them, if it did.
        found: the tools that a search for tools has found.
    """

    messages: list[Message]
    effort: str | None
    found: frozenset[str]


def conversation(given: dict[str, Any]) -> Conversation:
    """What `system` and `messages` hold.

    Raises:
        RefusedError: there is something in them that cannot be told to other models.
    """
    turns = a_list(given.get("messages"), "messages")
    writing = _Writing(text_of(given.get("system", ""), "system"))
    last_user = max((number for number, turn in enumerate(turns) if _role(turn, number) == "user"), default=-1)
    for number, turn in enumerate(turns):
        writing.add(turn, number, is_past=number < last_user)
    if turns and _role(turns[-1], len(turns) - 1) == "assistant":
        where = f"messages.{len(turns) - 1}"
        told = "an answer cannot be begun for the model here; let the last message be the user's"
        raise refused(where, told, code="unsupported")
    done = writing.done()
    if all(message["role"] == "system" for message in done.messages):
        raise refused("messages", "expected at least one turn in which something is said")
    return done


def _role(turn: Any, number: int) -> str:
    role = an_object(turn, f"messages.{number}").get("role")
    if role not in _ROLES:
        raise refused(f"messages.{number}.role", f"expected one of: {', '.join(_ROLES)}")
    return str(role)


class _Writing:
    """The messages so far; what a user says in several turns on end is one message, as the API has it."""

    def __init__(self, system: str) -> None:
        self._system = [system] if system else []
        self._effort: str | None = None
        self._found: set[str] = set()
        self._messages: list[Message] = []
        self._parts: list[Part] = []  # of the user's turn that is being written

    def done(self) -> Conversation:
        self._end_turn()
        head = [{"role": "system", "content": "\n".join(self._system)}] if self._system else []
        return Conversation(messages=head + self._messages, effort=self._effort, found=frozenset(self._found))

    def add(self, turn: Any, number: int, *, is_past: bool) -> None:
        """`is_past`: a user speaks after it."""
        where = f"messages.{number}"
        match _role(turn, number):
            case "system":
                self._system_turn(SYSTEM_TURN.of(turn, where), where, is_past=is_past)
            case "assistant":
                self._end_turn()
                self._assistant(TURN.of(turn, where).get("content"), path(where, "content"))
            case _:
                self._user(TURN.of(turn, where).get("content"), path(where, "content"))

    def _system_turn(self, given: dict[str, Any], where: str, *, is_past: bool) -> None:
        output = SYSTEM_OUTPUT.of(given.get("output_config", {}), path(where, "output_config"))
        if "effort" in output:
            self._effort = effort_of(output["effort"], path(where, "output_config.effort"))
        text = text_of(given.get("content", ""), path(where, "content"))
        until = given.get("clear_at", "never")
        if until not in ("never", "next_user_message"):
            raise refused(path(where, "clear_at"), "expected never or next_user_message")
        if not text or (is_past and until != "never"):
            return
        if self._messages or self._parts:
            self._parts.append(text_part(_REMINDER.format(text)))
        else:
            self._system.append(text)

    def _user(self, content: Any, where: str) -> None:
        if isinstance(content, str):
            self._parts += parts_of(content, where)
            return
        for number, block in enumerate(a_list(content, where)):
            at = path(where, number)
            if kind_of(block, at) == "tool_result":
                self._end_turn()
                self._messages.append(self._tool_result(block, at))
            else:
                self._parts += part_of(block, at)

    def _tool_result(self, block: Any, where: str) -> Message:
        given = TOOL_RESULT.of(block, where)
        call_id = a_text(given.get("tool_use_id"), path(where, "tool_use_id"))
        content, at = given.get("content", ""), path(where, "content")
        if isinstance(content, list):
            parts = [part for number, each in enumerate(content) for part in self._result_part(each, path(at, number))]
        else:
            parts = parts_of(content, at)
        if a_flag(given.get("is_error", False), path(where, "is_error")):
            first = parts[0] if parts and parts[0]["type"] == "text" else None
            parts = [text_part(_FAILED + (first["text"] if first else "")), *parts[1 if first else 0 :]]
        return {"role": "tool", "tool_call_id": call_id, "content": joined(parts)}

    def _result_part(self, block: Any, where: str) -> list[Part]:
        """Of a tool's result: what any content holds, or a tool that was found."""
        if kind_of(block, where) != "tool_reference":
            return part_of(block, where)
        name = a_text(TOOL_REFERENCE.of(block, where).get("tool_name"), path(where, "tool_name"))
        self._found.add(name)
        return [text_part(_FOUND.format(name))]

    def _end_turn(self) -> None:
        if self._parts:
            self._messages.append({"role": "user", "content": joined(self._parts)})
            self._parts = []

    def _assistant(self, content: Any, where: str) -> None:
        texts: list[Part] = []
        calls: list[dict[str, Any]] = []
        blocks = [text_part(content)] if isinstance(content, str) else a_list(content, where)
        for number, block in enumerate(blocks):
            at = path(where, number)
            kind = kind_of(block, at)
            if kind == "tool_use":
                calls.append(_tool_use(block, at))
            elif kind == "text":
                texts += part_of(block, at)
            elif kind not in _DROPPED:
                raise unsupported(path(at, "type"))
        message: Message = {"role": "assistant", "content": joined(texts)}
        if calls:
            message["tool_calls"] = calls
        self._messages.append(message)


def _tool_use(block: Any, where: str) -> dict[str, Any]:
    given = TOOL_USE.of(block, where)
    call_id, name = (a_text(given.get(key), path(where, key)) for key in ("id", "name"))
    arguments = an_object_text(given.get("input"), path(where, "input"))
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
