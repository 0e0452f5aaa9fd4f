"""From a `Call` to the body of Anthropic's `/v1/messages`."""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_routerd.backends import faults
from llm_routerd.backends.answer_format import for_anthropic, instruction
from llm_routerd.backends.data_urls import media_of
from llm_routerd.backends.toolcalls import arguments_object, function_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.call import Call

_DEFAULT_MAX_TOKENS = 4096  # the API wants a number
# Parameters that Anthropic does not know, and answers 400 to.
_UNKNOWN = ("seed", "presence_penalty", "frequency_penalty", "n", "logprobs", "top_logprobs")
# Models from before constrained decoding, and those that think only up to a budget, which newer ones reject.
_WITHOUT_OUTPUT_FORMAT = re.compile(r"claude-(?:[123]|instant|(?:opus|sonnet)-4-(?:0|1|20250514)(?:$|-|@))")
_THINKS_NOT = re.compile(r"claude-(?:[12]|instant|3-(?!7))")
_THINKS_TO_BUDGET = re.compile(r"claude-(?:3-7|(?:opus|sonnet|haiku)-4(?:$|@|-20\d{6}|-[0156](?:$|-|@)))")
_BUDGETS = {"minimal": 1024, "low": 1024, "medium": 2048, "high": 4096, "xhigh": 8192}
_SMALLEST_BUDGET = 1024
_EFFORTS = {"minimal": "low", "xhigh": "high"}
ANSWER_TOOL = "answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesRequest:
    """A body, and whether the answer will come as the input of the tool `ANSWER_TOOL`."""

    body: dict[str, Any]
    answers_by_tool: bool


def messages_request(deployment: Deployment, call: Call, *, genuine: bool) -> MessagesRequest:
    """The request for a streamed message.

    A schema goes as `output_config.format` where the model and the schema allow it, else as the input of a
    tool that the model must call, else in words.  At a server that is not Anthropic's own (`genuine` is False) it
    goes in words in any case, and in words alone where tools may be called: it may hold all that the model says to
    the form, so that it could call none.

    With `tool_choice` `none` the tools stand there all the same: messages that hold calls demand them.

    Raises:
        BackendError: the messages hold something that Anthropic does not take.
    """
    system, messages = _messages(call.messages)
    params = {name: value for name, value in call.params.items() if value is not None}
    body: dict[str, Any] = {"model": deployment.model_name, "messages": messages, "stream": True}
    _add_params(body, params)
    if call.tools:
        body["tools"] = [_tool(tool) for tool in call.tools]
        choice = _tool_choice(call.tool_choice)
        if params.get("parallel_tool_calls") is False and choice["type"] != "none":
            choice["disable_parallel_tool_use"] = True
        body["tool_choice"] = choice
        if "thinking" in body and choice["type"] in {"any", "tool"}:
            del body["thinking"]  # the API takes no forced tool from a model that thinks
    if _answers_calls(messages) and body.get("thinking", {}).get("type") == "enabled":
        del body["thinking"]  # up to a budget, a model goes on only with its own signed thoughts, which nobody kept
    by_tool = False
    if call.schema is not None:
        by_tool, in_full = _add_schema(body, call.schema, as_words=call.may_call and not genuine)
        if not (in_full and genuine):
            system.append(instruction(call.schema))
    if system:
        body["system"] = "\n\n".join(system)
    return MessagesRequest(body=body, answers_by_tool=by_tool)


def _add_params(body: dict[str, Any], params: dict[str, Any]) -> None:
    own = {name: value for name, value in params.items() if name not in _UNKNOWN}
    own.pop("parallel_tool_calls", None)
    effort = own.pop("reasoning_effort", None)
    stop = own.pop("stop", None)
    if stop:
        own["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    own["max_tokens"] = own.get("max_tokens") or own.pop("max_completion_tokens", None) or _DEFAULT_MAX_TOKENS
    own.pop("max_completion_tokens", None)
    if "temperature" in own:
        own["temperature"] = min(own["temperature"], 1)  # OpenAI's scale goes to 2
        own.pop("top_p", None)  # newer models reject the two together
    body.update(own)
    if effort not in {None, "none"} and "thinking" not in body:
        _add_thinking(body, effort)


def _add_thinking(body: dict[str, Any], effort: str) -> None:
    """Thinking as the model has it: none, up to a budget, or adaptive; sampling parameters go with it."""
    model = body["model"]
    if _THINKS_NOT.match(model):
        return
    if _THINKS_TO_BUDGET.match(model):
        budget = min(_BUDGETS.get(effort, _BUDGETS["medium"]), body["max_tokens"] - 1)
        if budget < _SMALLEST_BUDGET:
            return
        body["thinking"] = {"type": "enabled", "budget_tokens": budget}
    else:
        body["thinking"] = {"type": "adaptive"}
        body["output_config"] = {"effort": _EFFORTS.get(effort, effort)}
    for name in ("temperature", "top_k", "top_p"):
        body.pop(name, None)


def _answers_calls(messages: list[dict[str, Any]]) -> bool:
    """Whether the last turn has results of tools, so that the model's turn before them is still going on."""
    return any(block["type"] == "tool_result" for block in messages[-1]["content"])


def _add_schema(body: dict[str, Any], schema: dict[str, Any] | bool, *, as_words: bool) -> tuple[bool, bool]:
    """Put the schema to the model; returns whether it went as a tool, and whether all of it went."""
    if as_words:
        return False, False
    narrowed = None
    if isinstance(schema, dict) and not _WITHOUT_OUTPUT_FORMAT.match(body["model"]):
        narrowed = for_anthropic(schema)
    if narrowed is not None:
        native, complete = narrowed
        body.setdefault("output_config", {})["format"] = {"type": "json_schema", "schema": native}
        return False, complete
    tools = body.get("tools", [])
    is_free = not tools or body["tool_choice"]["type"] == "none"
    if is_free and "thinking" not in body and isinstance(schema, dict) and _fits_a_tool(schema, tools):
        description = "Give the answer. Its input is the answer."
        body["tools"] = [*tools, {"name": ANSWER_TOOL, "description": description, "input_schema": schema}]
        body["tool_choice"] = {"type": "tool", "name": ANSWER_TOOL, "disable_parallel_tool_use": True}
        return True, True
    return False, False


def _fits_a_tool(schema: dict[str, Any], tools: list[dict[str, Any]]) -> bool:
    """A tool's input is an object, and may not be a choice at the top; and no other tool has its name."""
    is_object = schema.get("type") == "object" and schema.keys().isdisjoint({"anyOf", "oneOf", "allOf"})
    return is_object and all(tool["name"] != ANSWER_TOOL for tool in tools)


def _messages(messages: Iterable[dict[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """The system prompts, and the turns: neighbours of one role are one turn, as the API has it."""
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = message["role"]
        if role in {"system", "developer"}:
            system += [block["text"] for block in _blocks(message.get("content")) if "text" in block]
            continue
        if role == "tool":
            answered = {"type": "tool_result", "tool_use_id": message.get("tool_call_id", "")}
            content = _blocks(message.get("content"))
            blocks = [{**answered, "content": content} if content else answered]
        else:
            blocks = _blocks(message.get("content"))
            blocks += [_tool_use(call) for call in message.get("tool_calls") or ()]
        role = "assistant" if role == "assistant" else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    if not turns:  # only a system prompt, which the API does not take alone
        turns = [{"role": "user", "content": [{"type": "text", "text": text} for text in system]}]
        system = []
    return system, turns


def _blocks(content: Any) -> list[dict[str, Any]]:
    """A message's content in blocks; text of white space alone, which the API rejects, is left out."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    blocks: list[dict[str, Any]] = []
    for part in parts:
        match part:
            case {"type": "text", "text": str(text)}:
                if text.strip():
                    blocks.append({"type": "text", "text": text})
            case {"type": "image_url", "image_url": {"url": str(url)}}:
                blocks.append({"type": "image", "source": _source(*media_of(url))})
            case {"type": "file", "file": {"file_data": str(url), **more}}:
                blocks.append(_document(url, more.get("filename")))
            case _:
                raise faults.unsupported("Anthropic takes no content but text, images and files")
    return blocks


def _source(media_type: str, payload: str) -> dict[str, str]:
    return {"type": "base64", "media_type": media_type, "data": payload}


def _document(url: str, title: Any) -> dict[str, Any]:
    """A file; one of plain text goes as text, as the API has it."""
    media_type, payload = media_of(url)
    source = _source(media_type, payload)
    if media_type == "text/plain":
        try:
            source = {"type": "text", "media_type": media_type, "data": b64decode(payload).decode()}
        except ValueError:
            raise faults.unsupported("a file of text that is not UTF-8 in base64") from None
    return {"type": "document", "source": source, **({"title": title} if isinstance(title, str) else {})}


def _tool_use(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = arguments_object(function.get("arguments") or "{}")
    return {"type": "tool_use", "id": call.get("id", ""), "name": function_name(function["name"]), "input": arguments}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool["function"]
    converted = {
        "name": function["name"],
        "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
    }
    if function.get("description"):
        converted["description"] = function["description"]
    return converted


def _tool_choice(choice: Any) -> dict[str, Any]:
    match choice:
        case {"function": {"name": str(name)}}:
            return {"type": "tool", "name": name}
        case "required":
            return {"type": "any"}
        case "none":
            return {"type": "none"}
        case _:
            return {"type": "auto"}
