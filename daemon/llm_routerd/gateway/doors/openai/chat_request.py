"""Reads the body of a chat completion."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from llm_routerd.gateway.door import Ask
from llm_routerd.gateway.doors.openai.chat_answer import ChatVoice
from llm_routerd.gateway.doors.openai.properties import (
    FOR_PROVIDERS,
    SAMPLING,
    Form,
    expect,
    params_of,
    schema_of,
    tools_of,
)
from llm_routerd.gateway.fault import refused, unsupported

if TYPE_CHECKING:
    from llm_routerd.gateway.catalogue import Catalogue

FORM: Final = Form(
    read=SAMPLING
    | {
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "model",
        "reasoning_effort",
        "response_format",
        "stop",
        "stream",
        "stream_options",
        "tool_choice",
        "tools",
    },
    idle=FOR_PROVIDERS | {"prediction"},  # which makes the same answer come sooner
    neutral={
        "audio": (),
        "function_call": ("none",),
        "functions": ([],),
        "logit_bias": ({},),
        "logprobs": (False,),
        "modalities": (["text"],),
        "moderation": (),
        "n": (1,),
        "top_logprobs": (0,),
        "verbosity": ("medium",),
        "web_search_options": (),
    },
)
_STREAM_OPTIONS: Final = Form(read=frozenset({"include_usage"}), idle=frozenset({"include_obfuscation"}), neutral={})
# What a client may send back of an answer that it was given, and that is no part of a message.
_TOLD_ONLY: Final = ("annotations", "refusal")
_OF_A_PART: Final = ("cache_control", "prompt_cache_breakpoint")


def read(body: dict[str, Any], catalogue: Catalogue) -> Ask:
    """What it asks for.

    Raises:
        RefusedError: it is no chat completion, or one that cannot be honoured.
    """
    given = FORM.sift(body)
    fields = {"model": catalogue.model_of(given), "messages": _messages(given.get("messages")), **tools_of(given)}
    wanted = expect(given.get("response_format", {"type": "text"}), dict, "response_format")
    if (schema := schema_of(wanted, "response_format", within="json_schema")) is not None:
        fields["schema"] = schema
    if params := _params(given, has_schema=schema is not None):
        fields["params"] = params
    options = _STREAM_OPTIONS.sift(expect(given.get("stream_options", {}), dict, "stream_options"), "stream_options.")
    tells_usage = expect(options.get("include_usage", False), bool, "stream_options.include_usage")
    return Ask(
        fields=fields,
        voice=partial(ChatVoice, model=given["model"], tells_usage=tells_usage),
        streams=expect(given.get("stream", False), bool, "stream"),
        shows_reasoning=True,
    )


def _params(given: dict[str, Any], *, has_schema: bool) -> dict[str, Any]:
    limits = {given[name] for name in ("max_tokens", "max_completion_tokens") if isinstance(given.get(name), int)}
    if len(limits) > 1:
        raise refused("max_tokens", "`max_completion_tokens` is another number; give one of them")
    limit = given.get("max_completion_tokens", given.get("max_tokens"))
    params = params_of(given, limit=limit, effort=given.get("reasoning_effort"), has_schema=has_schema)
    if given.get("stop", []) != []:
        params["stop"] = given["stop"]
    return params


def _messages(messages: Any) -> list[dict[str, Any]]:
    found = enumerate(expect(messages, list, "messages"))
    return [_message(expect(message, dict, f"messages[{number}]"), f"messages[{number}]") for number, message in found]


def _message(message: dict[str, Any], where: str) -> dict[str, Any]:
    """A message as a request has it: what is null is not there, and a refusal is what the assistant said."""
    if message.get("function_call") is not None:
        raise unsupported(f"{where}.function_call")
    told = {name: value for name, value in message.items() if value is not None and name not in _TOLD_ONLY}
    if isinstance(content := told.get("content"), list):
        told["content"] = [_part(part, f"{where}.content[{number}]") for number, part in enumerate(content)]
    elif content is None and isinstance(refusal := message.get("refusal"), str):
        told["content"] = refusal
    return told


def _part(part: Any, where: str) -> dict[str, Any]:
    part = expect(part, dict, where)
    if part.get("type") == "refusal":
        return {"type": "text", "text": part.get("refusal")}
    return {name: value for name, value in part.items() if value is not None and name not in _OF_A_PART}
