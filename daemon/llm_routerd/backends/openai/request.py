"""From a `Call` to the body of an OpenAI-compatible `/chat/completions`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from llm_routerd.backends.answer_format import meets_openai_strict, with_instruction
from llm_routerd.backends.optional_fields import without
from llm_routerd.backends.toolcalls import with_sound_calls

if TYPE_CHECKING:
    from collections.abc import Collection

    from llm_routerd.config.tree import Deployment
    from llm_routerd.protocol.call import Call

# They answer 400 to every sampling parameter.
_OPENAI_REASONING = re.compile(r"o\d|gpt-5")
_SAMPLING = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "stop")


def chat_body(
    deployment: Deployment, call: Call, *, genuine: bool, omitted: Collection[str] = frozenset()
) -> dict[str, Any]:
    """The body of a streamed completion.

    Args:
        deployment: whom it is for.
        call: what is asked.
        genuine: OpenAI itself is asked, which is stricter than others; at any other server a schema goes in words too.
        omitted: fields that the server refuses.

    With `tool_choice` `none` the tools stand there all the same, as in the turns before: the prompt begins as theirs
    did, and need not be read again.  (llama.cpp then shows them to its model and reads no calls; if the model makes
    one it comes as text, which `judging` knows.)
    """
    params = {name: value for name, value in call.params.items() if value is not None}
    if genuine:
        _suit_openai(deployment.model_name, params)
    body: dict[str, Any] = {
        "model": deployment.model_name,
        "messages": [with_sound_calls(message if genuine else _plain(message)) for message in call.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        **params,
    }
    if call.schema is not None:
        _add_schema(body, call.schema, genuine=genuine, as_words=call.may_call and not genuine)
    if call.tools:
        body["tools"] = call.tools
        if call.tool_choice is not None:
            body["tool_choice"] = call.tool_choice
    else:
        body.pop("parallel_tool_calls", None)  # without tools it is an error
    return without(body, omitted)


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """The role `developer` is OpenAI's own; the templates of other models know `system`."""
    return {**message, "role": "system"} if message["role"] == "developer" else message


def _suit_openai(model: str, params: dict[str, Any]) -> None:
    """OpenAI itself knows no `top_k`, and has renamed `max_tokens` for the models that think."""
    params.pop("top_k", None)
    if "max_tokens" in params:
        params.setdefault("max_completion_tokens", params.pop("max_tokens"))
    if _OPENAI_REASONING.match(model):
        for name in _SAMPLING:
            params.pop(name, None)


def _add_schema(body: dict[str, Any], schema: dict[str, Any] | bool, *, genuine: bool, as_words: bool = False) -> None:
    """As `response_format`, and in words where that may not be enough.  OpenAI itself takes schemas of objects only.

    `strict` is set where the schema keeps OpenAI's rules for it; other servers constrain without it too.  `as_words`:
    tools may be called, which OpenAI keeps apart from the answer's form; others (llama.cpp, vLLM) hold all that the
    model says to the schema, so that it could call none.
    """
    in_full = False
    if as_words:
        pass
    elif isinstance(schema, bool):
        body["response_format"] = {"type": "json_object"}
    elif not genuine or schema.get("type") == "object":
        wrapped = {"name": "answer", "schema": schema, "strict": meets_openai_strict(schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": wrapped}
        in_full = genuine
    if not in_full:
        body["messages"] = with_instruction(body["messages"], schema)
