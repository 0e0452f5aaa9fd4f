"""What the stand-in reads in a request, whichever of the three protocols it came in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from tests.standin.script import instance_of, planned_calls

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.standin.script import Script


def last_user_text(messages: Iterable[dict[str, Any]]) -> str:
    """The text of the last message of the user; "" without one."""
    text = ""
    for message in messages:
        if message.get("role") == "user" and not _tool_results((message,)):
            text = _text_of(message.get("content") or "")
    return text


def turn_of(messages: Iterable[dict[str, Any]]) -> int:
    """Which turn of the conversation with its tools is asked for: 1 where none has called any."""
    return 1 + [message.get("role") for message in messages].count("assistant")


def _tool_results(messages: Iterable[dict[str, Any]]) -> list[str]:
    """What tools have answered; in Anthropic's form that is in messages of the user."""
    found = []
    for message in messages:
        content = message.get("content") or ""
        if message.get("role") == "tool":
            found.append(_text_of(content))
        elif message.get("role") == "user" and isinstance(content, list):
            found += [_text_of(part.get("content") or "") for part in content if part.get("type") == "tool_result"]
    return found


def _text_of(content: Any) -> str:
    """A message's content, which is a text or has parts."""
    return content if isinstance(content, str) else " ".join(part.get("text") or "" for part in content)


def results_told(request: dict[str, Any], script: Script) -> str | None:
    """The answer of a model that was to call tools: what they have answered; None where it was not to."""
    if not any(word.startswith("turn") for word in script.words):
        return None
    return f"The tools say: {'; '.join(_tool_results(request.get('messages', [])))}."


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
    if (
        tools
        and choice not in ("none", {"type": "none"})
        and (plan := script.text(f"turn{turn_of(request.get('messages', []))}"))
    ):
        return planned_calls(plan)
    if not tools or not ("call" in script or forced):
        return []
    name = forced or script.text("call") or next(iter(tools))
    schema = tools.get(name, {})
    return [(name, orjson.loads(script.text("args")) if "args" in script else instance_of(schema, schema))]
