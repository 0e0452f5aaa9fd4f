"""From a `Call` to the body of Ollama's `/api/chat`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_routerd.backends import faults
from llm_routerd.backends.answer_format import with_instruction
from llm_routerd.backends.data_urls import media_of
from llm_routerd.backends.toolcalls import arguments_object, function_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.call import Call

# Ollama's own names; what is in neither table is an option by the name it has (`num_ctx`, …).
_OPTION_NAMES = {"max_tokens": "num_predict", "max_completion_tokens": "num_predict"}
_NOT_OPTIONS = frozenset(
    {"reasoning_effort", "parallel_tool_calls", "think", "keep_alive", "logprobs", "top_logprobs", "truncate", "shift"}
)
_THINK_LEVELS = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "high",
}


def chat_body(deployment: Deployment, call: Call) -> dict[str, Any]:
    """The body of a streamed chat; `tool_choice` has no counterpart in Ollama: for "none" the tools are left out.

    A prompt that is too long is to be an error, and an answer that outgrows the window to end: unless told otherwise,
    Ollama drops the front of either without a word.

    A schema goes in words as well, always: Ollama advises it, whose models are constrained and not told, and what else
    speaks its protocol may pass over `format`, which nothing tells beforehand.  Where tools may be called it goes in
    words alone: `format` holds all that the model says to the schema, so that it could call none.

    Raises:
        BackendError: the messages hold something that Ollama does not take.
    """
    params = call.params
    body: dict[str, Any] = {
        "model": deployment.model_name,
        "messages": _messages(call.messages if call.schema is None else with_instruction(call.messages, call.schema)),
        "stream": True,
        "truncate": params.get("truncate", False),
        "shift": params.get("shift", False),
    }
    if call.schema is not None and not call.may_call:
        # `false` is satisfied by nothing, so whatever comes will be found invalid.
        body["format"] = call.schema if isinstance(call.schema, dict) and call.schema else "json"
    if call.may_call:
        body["tools"] = call.tools
    keep_alive = params.get("keep_alive", deployment.keep_alive)
    if keep_alive is not None:
        body["keep_alive"] = keep_alive
    if "think" in params:
        body["think"] = params["think"]
    elif (effort := params.get("reasoning_effort")) is not None:
        body["think"] = _THINK_LEVELS.get(effort, effort)
    if options := _options(params):
        body["options"] = options
    return body


def _options(params: Mapping[str, Any]) -> dict[str, Any]:
    """What is an option there, by Ollama's names."""
    options = {
        _OPTION_NAMES.get(name, name): value
        for name, value in params.items()
        if name not in _NOT_OPTIONS and value is not None
    }
    if isinstance(stop := options.get("stop"), str):
        options["stop"] = [stop]
    return options


def _messages(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    names_by_id: dict[str, str] = {}  # a tool's answer names the call's id, where Ollama wants the tool's name
    converted = []
    for message in messages:
        role = message["role"]
        result: dict[str, Any] = {"role": "system" if role == "developer" else role}
        text, images = _content(message.get("content"))
        result["content"] = text
        if images:
            result["images"] = images
        if tool_calls := message.get("tool_calls"):
            for call in tool_calls:
                names_by_id[call.get("id", "")] = function_name(call["function"]["name"])
            result["tool_calls"] = [_tool_call(call) for call in tool_calls]
        if role == "tool":
            call_id = message.get("tool_call_id", "")
            if name := message.get("name") or names_by_id.get(call_id):
                result["tool_name"] = name
            if call_id:
                result["tool_call_id"] = call_id
        converted.append(result)
    return converted


def _content(content: Any) -> tuple[str, list[str]]:
    """The text of a message and its images, base64; both may be empty."""
    if content is None:
        return "", []
    if isinstance(content, str):
        return content, []
    texts: list[str] = []
    images: list[str] = []
    for part in content:
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "image_url", "image_url": {"url": str(url)}}:
                images.append(media_of(url)[1])
            case _:
                raise faults.unsupported("Ollama takes no content but text and images")
    return "\n".join(texts), images


def _tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """Arguments as an object; what is no JSON object is sent as an object that holds it."""
    function = call["function"]
    arguments = arguments_object(function.get("arguments") or "{}")
    converted: dict[str, Any] = {"function": {"name": function_name(function["name"]), "arguments": arguments}}
    if "id" in call:
        converted["id"] = call["id"]
    return converted
