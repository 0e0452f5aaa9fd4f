"""From a body of Ollama's to what it asks for."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from llm_routerd.gateway.door import NDJSON, Ask, Body, Looked
from llm_routerd.gateway.doors.ollama.messages import content_of, messages_of
from llm_routerd.gateway.doors.ollama.options import params_of
from llm_routerd.gateway.doors.ollama.voice import CHAT, GENERATE, Form, LineVoice
from llm_routerd.gateway.fault import refused
from llm_routerd.gateway.properties import Properties, a_flag, a_list, a_text, an_object
from llm_routerd.protocol.wire import encode

if TYPE_CHECKING:
    from llm_routerd.gateway.catalogue import Catalogue

_HEEDED: Final = frozenset({"model", "stream", "format", "keep_alive", "options", "think"})
# A prompt that is too long is an error here, and never cut.
_IDLE: Final = frozenset({"truncate", "shift"})
_REFUSED: Final[dict[str, tuple[Any, ...]]] = {
    "_debug_render_only": (False,),  # which Ollama's own client in Go always sends
    "logprobs": (False,),
    "top_logprobs": (0,),
}
# Ollama knows no `tool_choice`, but clients that have one send it, in OpenAI's form, and here it can be heeded.
CHAT_BODY: Final = Properties(heeded=_HEEDED | {"messages", "tools", "tool_choice"}, idle=_IDLE, refused=_REFUSED)
GENERATE_BODY: Final = Properties(
    heeded=_HEEDED | {"prompt", "system", "images"},
    idle=_IDLE,
    refused={
        **_REFUSED,
        "suffix": ("",),
        "template": ("",),
        "context": ([],),
        "raw": (False,),
        "width": (0,),
        "height": (0,),
        "steps": (0,),
    },
)
_EFFORTS: Final[dict[Any, str]] = {"low": "low", "medium": "medium", "high": "high", "max": "high"}
_ANY_OBJECT: Final = {"type": "object"}  # what Ollama's own grammar of JSON takes


def read_chat(body: Body, catalogue: Catalogue) -> Ask | Looked:
    """What `/api/chat` is asked for; without messages that is to load a model, which the daemon does of itself.

    Raises:
        RefusedError: it cannot be done, or is none of this protocol.
    """
    given = CHAT_BODY.of(body)
    model = catalogue.model_of(given)
    messages = messages_of(given.get("messages", []))
    if not messages:
        return _loaded(given, {"message": {"role": "assistant", "content": ""}})
    fields = {"model": model, "messages": messages}
    if tools := a_list(given.get("tools", []), "tools"):
        fields["tools"] = tools
    if "tool_choice" in given:
        fields["tool_choice"] = given["tool_choice"]
    return _ask(given, fields, CHAT)


def read_generate(body: Body, catalogue: Catalogue) -> Ask | Looked:
    """What `/api/generate` is asked for; as above, without a prompt.

    Raises:
        RefusedError: it cannot be done, or is none of this protocol.
    """
    given = GENERATE_BODY.of(body)
    model = catalogue.model_of(given)
    prompt, system = (a_text(given.get(name, ""), name) for name in ("prompt", "system"))
    content = content_of(prompt, given.get("images", []), "images")
    if not content:
        return _loaded(given, {"response": ""})
    head = [{"role": "system", "content": system}] if system else []
    return _ask(given, {"model": model, "messages": [*head, {"role": "user", "content": content}]}, GENERATE)


def _loaded(given: dict[str, Any], said: dict[str, Any]) -> Looked:
    reason = "unload" if given.get("keep_alive") in (0, "0", "0s") else "load"
    return Looked(body=encode({"model": given["model"], **said, "done": True, "done_reason": reason}))


def _ask(given: dict[str, Any], fields: dict[str, Any], form: Form) -> Ask:
    params = params_of(given.get("options", {}))
    think = given.get("think")
    if think is False:
        params["reasoning_effort"] = "none"
    elif isinstance(think, str) and think in _EFFORTS:
        params["reasoning_effort"] = _EFFORTS[think]
    elif think is True:
        params["reasoning_effort"] = "medium"
    elif think not in (None, ""):
        raise refused("think", f"expected true, false or one of: {', '.join(_EFFORTS)}")
    schema = _schema(given.get("format", ""))
    if schema is not None:
        fields["schema"] = schema
    elif "max_tokens" in params:
        params["accept_length"] = True
    if params:
        fields["params"] = params
    return Ask(
        fields=fields,
        voice=partial(LineVoice, form=form, model=given["model"]),
        streams=a_flag(given.get("stream", True), "stream"),
        media_type=NDJSON,
        shows_reasoning=think is not False,  # a model that can, thinks, unless it is told not to
    )


def _schema(wanted: Any) -> dict[str, Any] | None:
    match wanted:
        case "":
            return None
        case "json":
            return _ANY_OBJECT
        case str():
            raise refused("format", "expected json or a JSON Schema")
        case _:
            return an_object(wanted, "format")
