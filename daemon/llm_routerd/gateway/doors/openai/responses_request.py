"""Reads the body of a response."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from llm_routerd.gateway.door import Ask
from llm_routerd.gateway.doors.openai.properties import (
    FOR_PROVIDERS,
    SAMPLING,
    Form,
    expect,
    params_of,
    picked,
    schema_of,
    tools_of,
)
from llm_routerd.gateway.doors.openai.response_items import messages_of
from llm_routerd.gateway.doors.openai.responses_answer import ResponsesVoice, carried, shape_of
from llm_routerd.gateway.fault import unsupported

if TYPE_CHECKING:
    from llm_routerd.gateway.catalogue import Catalogue

FORM: Final = Form(
    read=(SAMPLING - {"seed", "presence_penalty", "frequency_penalty"})
    | {
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
    # Calls of built-in tools are not made here, and so never too many.
    idle=(FOR_PROVIDERS - {"metadata"}) | {"max_tool_calls", "stream_options"},
    neutral={
        "background": (False,),
        "context_management": ([],),
        "conversation": (),
        "moderation": (),
        "previous_response_id": (),
        "prompt": (),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    },
)
_TEXT: Final = Form(read=frozenset({"format"}), neutral={"verbosity": ("medium",)})
_REASONING: Final = Form(
    read=frozenset({"effort"}),
    idle=frozenset({"summary", "generate_summary"}),  # what the model thinks is told as it is
    neutral={"context": ("auto",), "mode": ("standard",)},
)


def read(body: dict[str, Any], catalogue: Catalogue) -> Ask:
    """What it asks for.

    Raises:
        RefusedError: it is no response's body, or one that cannot be honoured.
    """
    given = FORM.sift(body)
    if "message.output_text.logprobs" in expect(given.get("include", []), list, "include"):
        raise unsupported("include")
    expect(given.get("metadata", {}), dict, "metadata")
    model = catalogue.model_of(given)
    text = _TEXT.sift(expect(given.get("text", {}), dict, "text"), "text.")
    reasoning = _REASONING.sift(expect(given.get("reasoning", {}), dict, "reasoning"), "reasoning.")
    schema = schema_of(expect(text.get("format", {"type": "text"}), dict, "text.format"), "text.format")
    fields = {"model": model, "messages": messages_of(given), **tools_of(given), "metadata": carried(given)}
    if schema is not None:
        fields["schema"] = schema
    limit, effort = given.get("max_output_tokens"), reasoning.get("effort")
    if params := params_of(given, limit=limit, effort=effort, has_schema=schema is not None):
        fields["params"] = params
    return Ask(
        fields=fields,
        voice=partial(ResponsesVoice, shape=shape_of(picked(body, FORM.read))),
        streams=expect(given.get("stream", False), bool, "stream"),
        shows_reasoning=True,
    )
