"""Reads the body of a response."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from llm_routerd.gateway.door import Ask
from llm_routerd.gateway.doors.openai.features import (
    FOR_PROVIDERS,
    SAMPLING,
    params_of,
    picked,
    schema_of,
    tools_of,
)
from llm_routerd.gateway.doors.openai.response_items import messages_of
from llm_routerd.gateway.doors.openai.responses_answer import ResponsesVoice, carried, shape_of
from llm_routerd.gateway.fault import unsupported
from llm_routerd.gateway.properties import Properties, a_flag, a_list, an_object

if TYPE_CHECKING:
    from llm_routerd.gateway.catalogue import Catalogue

PROPERTIES: Final = Properties(
    heeded=(SAMPLING - {"seed", "presence_penalty", "frequency_penalty"})
    | {
        "background",
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "metadata",
        "model",
        "reasoning",
        "stream",
        "text",
        "tool_choice",
        "tools",
    },
    # Calls of built-in tools are not made here, and so never too many; `client_metadata` is a coding agent's (Codex).
    idle=(FOR_PROVIDERS - {"metadata"}) | {"client_metadata", "max_tool_calls", "stream_options"},
    refused={
        "context_management": ([],),
        "conversation": (),
        "moderation": (),
        "previous_response_id": (),
        "prompt": (),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    },
)
_TEXT: Final = Properties(heeded=frozenset({"format"}), refused={"verbosity": ("medium",)})
_REASONING: Final = Properties(
    heeded=frozenset({"effort"}),
    idle=frozenset({"summary", "generate_summary"}),  # what the model thinks is told as it is
    refused={"context": ("auto",), "mode": ("standard",)},
)


def read(body: dict[str, Any], catalogue: Catalogue) -> Ask:
    """What it asks for.

    Raises:
        RefusedError: it is no response's body, or one that cannot be honoured.
    """
    given = PROPERTIES.of(body)
    if "message.output_text.logprobs" in a_list(given.get("include", []), "include"):
        raise unsupported("include")
    an_object(given.get("metadata", {}), "metadata")
    model = catalogue.model_of(given)
    text = _TEXT.of(given.get("text", {}), "text")
    reasoning = _REASONING.of(given.get("reasoning", {}), "reasoning")
    schema = schema_of(an_object(text.get("format", {"type": "text"}), "text.format"), "text.format")
    fields = {"model": model, "messages": messages_of(given), **tools_of(given), "metadata": carried(given)}
    if schema is not None:
        fields["schema"] = schema
    limit, effort = given.get("max_output_tokens"), reasoning.get("effort")
    if params := params_of(given, limit=limit, effort=effort, has_schema=schema is not None):
        fields["params"] = params
    voice = partial(ResponsesVoice, shape=shape_of(picked(body, PROPERTIES.heeded)))
    is_background = a_flag(given.get("background", False), "background")
    return Ask(
        fields=fields,
        voice=voice,
        receipt=(lambda told: voice(told).unfinished("queued")) if is_background else None,
        streams=a_flag(given.get("stream", False), "stream"),
        shows_reasoning=True,
    )
