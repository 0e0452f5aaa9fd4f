"""What the stand-in reads in a request, whichever of the three protocols it came in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from tests.standin.script import instance_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.standin.script import Script


def last_user_text(messages: Iterable[dict[str, Any]]) -> str:
    """The text of the last message of the user; "" without one."""
    text = ""
    for message in messages:
        if message.get("role") == "user":
            content = message.get("content") or ""
            parts = content if isinstance(content, list) else [{"text": content}]
            text = " ".join(part.get("text") or "" for part in parts)
    return text


def words_read(messages: Iterable[dict[str, Any]], window: int | None) -> list[str]:
    """The words of a prompt, a token each, after the cut that Ollama makes of one that is longer than its window.

    It leaves out messages from the front, but for the system prompts and the last one; and then tokens.
    """
    texts = [(message.get("role"), last_user_text([{**message, "role": "user"}]).split()) for message in messages]
    while window is not None and sum(len(words) for _, words in texts) > window:
        droppable = [each for each in texts[:-1] if each[0] != "system"]
        if not droppable:
            break
        texts.remove(droppable[0])
    words = [word for _, of_message in texts for word in of_message]
    return words if window is None else words[-window:]


def schema_of(request: dict[str, Any]) -> Any:
    """The schema that the answer is to satisfy, in whichever protocol's form; None without one."""
    if (plain := request.get("format")) is not None:
        return {} if plain == "json" else plain
    wanted = request.get("response_format") or (request.get("output_config") or {}).get("format") or {}
    if wanted.get("type") == "json_object":
        return {}
    return wanted.get("schema") or (wanted.get("json_schema") or {}).get("schema")


def schema_in_words(request: dict[str, Any]) -> Any:
    """The schema that a system prompt asks for, of a model that sees no other; None without one."""
    texts = [request.get("system") or ""]
    texts += [message.get("content") or "" for message in request.get("messages", []) if message["role"] == "system"]
    for text in texts:
        _, found, rest = text.partition("JSON Schema:\n")
        if found:
            return orjson.loads(rest.partition("\n")[0])
    return None


def limit_of(request: dict[str, Any]) -> int | None:
    """The most tokens that the answer may have; None without a limit."""
    limits = (
        request.get("options", {}).get("num_predict"),
        request.get("max_tokens"),
        request.get("max_completion_tokens"),
    )
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)


def tool_calls_of(request: dict[str, Any], script: Script) -> list[tuple[str, Any]]:
    """The call that the script asks for, or that the request forces; with an instance of the tool's schema."""
    tools = {}
    for tool in request.get("tools") or []:
        function = tool.get("function", tool)
        tools[function["name"]] = function.get("parameters", function.get("input_schema", {}))
    choice = request.get("tool_choice")
    forced = choice.get("name", "") if isinstance(choice, dict) and choice.get("type") == "tool" else ""
    if not tools or not ("call" in script or forced):
        return []
    name = forced or script.text("call") or next(iter(tools))
    schema = tools.get(name, {})
    return [(name, orjson.loads(script.text("args")) if "args" in script else instance_of(schema, schema))]
