"""From a `Call` to the arguments of `litellm.acompletion`."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from llm_routerd.backends.answer_format import with_instruction
from llm_routerd.backends.optional_fields import without
from llm_routerd.backends.toolcalls import with_sound_calls
from llm_routerd.config.providers import provider_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.call import Call


def call_arguments(deployment: Deployment, call: Call, *, omitted: Collection[str] = ()) -> dict[str, Any]:
    """What `litellm.acompletion` is called with, but for fields that the server refuses.

    Copies, for litellm changes what it is given, and others need it too.  Beside tools a schema goes in words alone:
    some providers refuse the two together (Gemini), and for some litellm makes a tool of the schema (Bedrock).
    """
    params = {name: value for name, value in call.params.items() if value is not None}
    arguments: dict[str, Any] = {
        **params,
        "model": deployment.model,
        "messages": deepcopy([with_sound_calls(message) for message in call.messages]),
        "stream": True,
        "stream_options": {"include_usage": True},
        "num_retries": 0,
        "max_retries": 0,  # the OpenAI SDK otherwise makes three requests
    }
    if deployment.api_base is not None:
        arguments["api_base"] = deployment.api_base
    if deployment.api_key is not None:
        arguments["api_key"] = deployment.api_key
    if provider_of(deployment.model).backend == "ollama":  # without its own backend; see `ollama.request.chat_body`
        arguments["extra_body"] = {name: bool(arguments.pop(name, False)) for name in ("truncate", "shift")}
    if call.tools:
        arguments["tools"] = deepcopy(list(call.tools))
        if call.tool_choice is not None:
            arguments["tool_choice"] = call.tool_choice
    if isinstance(call.schema, dict) and not call.tools and "response_format" not in omitted:
        wrapped = {"name": "answer", "schema": deepcopy(call.schema), "strict": False}
        arguments["response_format"] = {"type": "json_schema", "json_schema": wrapped}
    if call.schema is not None and ("response_format" not in arguments or deployment.api_base is not None):
        arguments["messages"] = with_instruction(arguments["messages"], call.schema)
    if call.traceparent is not None:
        arguments["extra_headers"] = {"traceparent": call.traceparent}
    return without(arguments, omitted)
