"""Reads the body of a chat completion."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from llm_routerd.gateway.door import Ask
from llm_routerd.gateway.doors.openai.chat_answer import ChatVoice
from llm_routerd.gateway.doors.openai.features import (
    FOR_PROVIDERS,
    SAMPLING,
    params_of,
    schema_of,
    tools_of,
)
from llm_routerd.gateway.fault import refused, unsupported
from llm_routerd.gateway.properties import Properties, a_flag, a_list, an_object, path

if TYPE_CHECKING:
    from llm_routerd.gateway.catalogue import Catalogue

PROPERTIES: Final = Properties(
    heeded=SAMPLING
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
    refused={
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
_STREAM_OPTIONS: Final = Properties(heeded=frozenset({"include_usage"}), idle=frozenset({"include_obfuscation"}))
# What a client may send back of an answer that it was given, and that is no part of a message.
_TOLD_ONLY: Final = ("annotations", "refusal")
_OF_A_PART: Final = ("cache_control", "prompt_cache_breakpoint")


def read(body: dict[str, Any], catalogue: Catalogue) -> Ask:
    """What it asks for.

    Raises:
        RefusedError: it is no chat completion, or one that cannot be honoured.
    """
    given = PROPERTIES.of(body)
    fields = {"model": catalogue.model_of(given), "messages": _messages(given.get("messages")), **tools_of(given)}
    wanted = an_object(given.get("response_format", {"type": "text"}), "response_format")
    if (schema := schema_of(wanted, "response_format", within="json_schema")) is not None:
        fields["schema"] = schema
    if params := _params(given, has_schema=schema is not None):
        fields["params"] = params
    options = _STREAM_OPTIONS.of(given.get("stream_options", {}), "stream_options")
    tells_usage = a_flag(options.get("include_usage", False), "stream_options.include_usage")
    return Ask(
        fields=fields,
        voice=partial(ChatVoice, model=given["model"], tells_usage=tells_usage),
        streams=a_flag(given.get("stream", False), "stream"),
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
    found = enumerate(a_list(messages, "messages"))
    return [_message(message, path("messages", number)) for number, message in found]


def _message(message: Any, where: str) -> dict[str, Any]:
    """A message as a request has it: what is null is not there, and a refusal is what the assistant said."""
    message = an_object(message, where)
    if message.get("function_call") is not None:
        raise unsupported(path(where, "function_call"))
    told = {name: value for name, value in message.items() if value is not None and name not in _TOLD_ONLY}
    if isinstance(content := told.get("content"), list):
        told["content"] = [_part(part, path(path(where, "content"), number)) for number, part in enumerate(content)]
    elif content is None and isinstance(refusal := message.get("refusal"), str):
        told["content"] = refusal
    return told


def _part(part: Any, where: str) -> dict[str, Any]:
    part = an_object(part, where)
    if part.get("type") == "refusal":
        return {"type": "text", "text": part.get("refusal")}
    return {name: value for name, value in part.items() if value is not None and name not in _OF_A_PART}
