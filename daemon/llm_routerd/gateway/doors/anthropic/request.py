"""From a body of Anthropic's to what it asks for."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from llm_routerd.accounting.estimate import estimated_usage
from llm_routerd.gateway.door import Ask, Body, Looked
from llm_routerd.gateway.doors.anthropic.thinking import effort_of, thinking_of
from llm_routerd.gateway.doors.anthropic.tools import choice_of, tools_of
from llm_routerd.gateway.doors.anthropic.turns import conversation
from llm_routerd.gateway.doors.anthropic.voice import MessageVoice
from llm_routerd.gateway.fault import refused, unsupported
from llm_routerd.gateway.properties import Properties, a_flag, a_list, a_text, an_object, path
from llm_routerd.protocol.call import Call
from llm_routerd.protocol.wire import encode

if TYPE_CHECKING:
    from llm_routerd.gateway.catalogue import Catalogue

_PARAMS: Final = {
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
}
MESSAGE: Final = Properties(
    heeded=frozenset(
        {
            *("model", "messages", "system", "stream", "stop_sequences", "tools", "tool_choice"),
            *("thinking", "output_config", "output_format", "context_management"),
            *_PARAMS,
        }
    ),
    idle=frozenset(
        {
            *("metadata", "cache_control", "service_tier", "speed", "diagnostics"),
            *("billing_policy", "fallback_credit_token"),
        }
    ),
    refused={
        "container": (),
        "mcp_servers": ([],),
        "inference_geo": (),
        "compaction": (),
        "thread": (),
        "fallbacks": ("default", []),  # the chain is the default here
    },
)
OUTPUT: Final = Properties(heeded=frozenset({"effort", "format"}), refused={"task_budget": ()})
FORMAT: Final = Properties(heeded=frozenset({"type", "schema"}))
EDITS: Final = Properties(heeded=frozenset({"edits"}))
EDIT: Final = Properties(heeded=frozenset({"type"}), idle=frozenset({"keep"}))
# Earlier thinking is never sent to a model, so that clearing it changes nothing.
_IDLE_EDITS: Final = frozenset({"clear_thinking_20251015"})
_ESTIMATED: Final = {"X-LLM-Routerd-Estimate": "true"}


def read(body: Body, catalogue: Catalogue) -> Ask:
    """What `/v1/messages` is asked for.

    Raises:
        RefusedError: it cannot be done, or is none of this protocol.
    """
    given = MESSAGE.of(body)
    fields: dict[str, Any] = {"model": catalogue.model_of(given)}
    talk = conversation(given)
    fields["messages"] = talk.messages
    params: dict[str, Any] = {name: given[name] for name in _PARAMS if name in given}
    if stop := a_list(given.get("stop_sequences", []), "stop_sequences"):
        params["stop"] = stop
    output = OUTPUT.of(given.get("output_config", {}), "output_config")
    effort = effort_of(output["effort"], "output_config.effort") if "effort" in output else None
    thinking = thinking_of(given.get("thinking"), talk.effort or effort)
    if thinking.effort is not None:
        params["reasoning_effort"] = thinking.effort
    if tools := tools_of(given.get("tools", []), talk.found):
        fields["tools"] = tools
    if "tool_choice" in given:
        choice = choice_of(given["tool_choice"])
        fields["tool_choice"] = choice.choice
        if choice.is_single:
            params["parallel_tool_calls"] = False
    schema = _schema(output, given)
    if schema is not None:
        fields["schema"] = schema
    elif "max_tokens" in params:
        params["accept_length"] = True
    if params:
        fields["params"] = params
    _check_edits(given.get("context_management", {}))
    model = a_text(given["model"], "model")
    return Ask(
        fields=fields,
        voice=partial(MessageVoice, model=model, prompt_tokens=partial(prompt_tokens, fields)),
        streams=a_flag(given.get("stream", False), "stream"),
        shows_reasoning=thinking.is_shown,
    )


def count(body: Body, catalogue: Catalogue) -> Looked:
    """What `/v1/messages/count_tokens` tells: an estimate, and that it is one.

    Raises:
        RefusedError: as `read`.
    """
    tokens = prompt_tokens(read(body, catalogue).fields)
    return Looked(body=encode({"input_tokens": tokens}), headers=_ESTIMATED)


def prompt_tokens(fields: dict[str, Any]) -> int:
    """How long the prompt of a request is, by the rule of thumb.

    Raises:
        RefusedError: it holds JSON that cannot be written again.
    """
    call = Call(messages=tuple(fields["messages"]), tools=tuple(fields.get("tools", ())), schema=fields.get("schema"))
    try:
        return estimated_usage(call, 0).prompt_tokens
    except TypeError:
        raise refused("tools", "this JSON cannot be written again") from None


def _schema(output: dict[str, Any], given: dict[str, Any]) -> Any:
    """Of the answer; its place has changed over time."""
    for where, wanted in (
        ("output_config.format", output.get("format")),
        ("output_format", given.get("output_format")),
    ):
        if wanted is None:
            continue
        found = FORMAT.of(wanted, where)
        if found.get("type") != "json_schema":
            raise refused(path(where, "type"), "expected json_schema")
        return an_object(found.get("schema"), path(where, "schema"))
    return None


def _check_edits(management: Any) -> None:
    edits = EDITS.of(management, "context_management").get("edits", [])
    for number, each in enumerate(a_list(edits, "context_management.edits")):
        where = f"context_management.edits.{number}"
        kind = an_object(each, where).get("type")
        if not isinstance(kind, str) or kind not in _IDLE_EDITS:
            raise unsupported(path(where, "type"))
        EDIT.of(each, where)
