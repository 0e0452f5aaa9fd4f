"""The input of a response, items as they came out of earlier ones among them, as chat messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llm_routerd.gateway.doors.openai.features import picked
from llm_routerd.gateway.fault import refused, unsupported
from llm_routerd.gateway.properties import a_text, an_object, path
from llm_routerd.jsonschema.path import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

_MAX_NAME: Final = 40


def messages_of(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of a body's `instructions` and `input`.

    Raises:
        RefusedError: the input has something that is no part of a conversation, or that lies with a provider.
    """
    messages: list[dict[str, Any]] = []
    if "instructions" in given:
        messages.append({"role": "system", "content": a_text(given["instructions"], "instructions")})
    asked = given.get("input")
    if isinstance(asked, str):
        return [*messages, {"role": "user", "content": asked}]
    if not isinstance(asked, list):
        raise refused("input", "expected a string or an array of items")
    for number, item in enumerate(asked):
        _add(messages, an_object(item, path("input", number)), path("input", number))
    return messages


def _add(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    match item.get("type"):
        case None | "message":
            role, content = item.get("role"), _content(item.get("content"), path(where, "content"))
            messages.append({"role": a_text(role, path(where, "role")), "content": content})
        case "function_call":
            _add_call(messages, item, where)
        case "function_call_output":
            output = _content(item.get("output"), path(where, "output"))
            call_id = a_text(item.get("call_id"), path(where, "call_id"))
            messages.append({"role": "tool", "tool_call_id": call_id, "content": output})
        case "reasoning":
            pass  # nobody but the model that thought it can make use of it
        case str(kind):
            told = f"an item of the type `{printable(kind[:_MAX_NAME])}` is not supported here"
            raise refused(path(where, "type"), told, code="unsupported")
        case _:
            raise refused(path(where, "type"), "expected a string")


def _add_call(messages: list[dict[str, Any]], item: dict[str, Any], where: str) -> None:
    """Calls that follow an assistant's text, or each other, are that one message's."""
    function = {name: a_text(item.get(name), path(where, name)) for name in ("name", "arguments")}
    call = {"id": a_text(item.get("call_id"), path(where, "call_id")), "type": "function", "function": function}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    messages[-1].setdefault("tool_calls", []).append(call)


def _content(content: Any, where: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise refused(where, "expected a string or an array of parts")
    return [_part(an_object(part, path(where, number)), path(where, number)) for number, part in enumerate(content)]


def _part(part: dict[str, Any], where: str) -> dict[str, Any]:
    for elsewhere in ("file_id", "file_url"):
        if part.get(elsewhere) is not None:
            raise unsupported(path(where, elsewhere))
    match part.get("type"):
        case "input_text" | "output_text" | "text":
            return {"type": "text", "text": a_text(part.get("text"), path(where, "text"))}
        case "refusal":
            return {"type": "text", "text": a_text(part.get("refusal"), path(where, "refusal"))}
        case "input_image":
            url = a_text(part.get("image_url"), path(where, "image_url"))
            return {"type": "image_url", "image_url": {"url": url, **picked(part, ("detail",))}}
        case "input_file":
            return {"type": "file", "file": picked(part, ("file_data", "filename"))}
        case _:
            raise refused(path(where, "type"), "expected `input_text`, `output_text`, `input_image` or `input_file`")
