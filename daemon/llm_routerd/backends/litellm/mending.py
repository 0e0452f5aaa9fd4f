"""Repairs of litellm 1.102.4, without which a broken answer could not be told from a whole one.

- Its readers pass over an event that is no JSON, so that a piece of the answer would be missing, and break on events
  that are no message to anybody; one of them takes text in which `[DONE]` stands for the end.
- It makes up "stop" where a provider gave no reason to finish, or the word "null"; takes reasons that it does not
  know, and some that say that the server broke off, for "stop"; and calls an answer of Gemini's with a call of a tool
  in it whole, whatever Gemini says.
- It mixes the texts of several choices, and drops calls of tools in all but one.
- It writes integers that are too large for a float as other numbers.
- It makes counts of tokens of what is none (`"9"`, `true`), counts the thinking of Anthropic's protocol itself, and
  breaks on a message of that protocol without counts.
- It asks an Ollama for a model's price after each answer, and holds up every other stream until that has answered.

Names that begin with an underscore are litellm's own: the version is pinned, and there is no other way in.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from llm_routerd.backends.finish_reasons import is_reason, meaning_of
from llm_routerd.backends.usage import count, mapping
from llm_routerd.backends.wire.messages import message_of
from llm_routerd.protocol.numbers import carries_numbers

if TYPE_CHECKING:
    from collections.abc import Callable

_WHOLE = frozenset({"stop", "tool_calls"})
_NO_DATA = ("event:", "id:", "retry:", ":")  # lines of a stream of events that hold no data
_COUNTS = frozenset({"prompt_tokens", "completion_tokens"})
_MENDED = "_llm_routerd_mended"
_FIRST_CHOICE = "_llm_routerd_first_choice"


def mend_litellm(litellm: Any) -> None:
    """Repair the module, if that has not been done: each configuration that is loaded asks for it."""
    if getattr(litellm, _MENDED, False):
        return
    setattr(litellm, _MENDED, True)
    _mend_reasons()
    _mend_sdk_of_openai()
    _mend_reader_of_events()
    _mend_anthropic()
    _mend_gemini()
    _mend_choices()
    _mend_counts(litellm)
    _mend_ollama()


def _mend_reasons() -> None:
    core: Any = importlib.import_module("litellm.litellm_core_utils.core_helpers")
    core._FINISH_REASON_MAP = _ReasonsAsSaid(core._FINISH_REASON_MAP)  # noqa: SLF001 - see above


class _ReasonsAsSaid(dict[str, str]):
    """litellm's table of finish reasons without what it makes a "stop" of; other reasons stay as they are."""

    def __init__(self, theirs: dict[str, str]) -> None:
        super().__init__(
            {said: mapped for said, mapped in theirs.items() if mapped != "stop" or meaning_of(said) == "stop"}
        )

    def get(self, key: str, default: Any = None) -> Any:  # noqa: ARG002 - as `dict.get` has it
        """What a reason is mapped to: by default to itself."""
        return super().get(key, key)


def _mend_sdk_of_openai() -> None:
    """The SDK of OpenAI, through which litellm reads what it calls `openai`."""
    streaming: Any = importlib.import_module("openai._streaming")
    streaming.ServerSentEvent.json = lambda event: _event_of(event.data)


def _mend_reader_of_events() -> None:
    """The reader that most compatible providers share."""
    base: Any = importlib.import_module("litellm.llms.base_llm.base_model_iterator")
    nothing = {"text": "", "is_finished": False, "finish_reason": "", "usage": None, "index": 0, "tool_use": None}

    def chunk_of_line(reader: Any, str_line: str) -> Any:
        line = str_line.strip()
        data = line.removeprefix("data:").lstrip()
        if data == "[DONE]":
            raise StopAsyncIteration
        try:
            event = None if line.startswith(_NO_DATA) else _event_of(data)
        except ValueError:
            if line.startswith("data:"):
                raise
            event = None
        return dict(nothing) if event is None else reader.chunk_parser(chunk=event)

    base.BaseModelResponseIterator._handle_string_chunk = chunk_of_line  # noqa: SLF001 - see above


def _mend_anthropic() -> None:
    handler: Any = importlib.import_module("litellm.llms.anthropic.chat.handler")
    reader = handler.ModelResponseIterator
    parse, message_delta = reader._parse_sse_data, reader._handle_message_delta  # noqa: SLF001 - see above
    usage_of, parse_chunk = reader._handle_usage, reader.chunk_parser  # noqa: SLF001 - see above

    def parsed(self: Any, str_line: str) -> Any:
        return None if _event_of(str_line.removeprefix("data:")) is None else parse(self, str_line)

    def reason_usage_container(self: Any, chunk: dict[str, Any]) -> tuple[str, Any, Any]:
        reason, usage, container = message_delta(self, chunk)
        return reason if is_reason(chunk["delta"].get("stop_reason")) else "", usage, container

    def usage_as_told(self: Any, anthropic_usage_chunk: dict[str, Any]) -> Any:
        thinking, self.reasoning_content_chunks = self.reasoning_content_chunks, []
        try:
            return usage_of(self, anthropic_usage_chunk)
        finally:
            self.reasoning_content_chunks = thinking

    def chunk_parsed(self: Any, chunk: dict[str, Any]) -> Any:
        kind = chunk.get("type")
        if kind in {"message_start", "message_delta"}:
            told = chunk["message"] if kind == "message_start" else chunk
            told["usage"] = mapping(told.get("usage"))
        return parse_chunk(self, chunk)

    reader._parse_sse_data, reader._handle_message_delta = parsed, reason_usage_container  # noqa: SLF001 - see above
    reader._handle_usage, reader.chunk_parser = usage_as_told, chunk_parsed  # noqa: SLF001 - see above


def _mend_gemini() -> None:
    vertex: Any = importlib.import_module("litellm.llms.vertex_ai.gemini.vertex_and_google_ai_studio_gemini")
    reader = vertex.ModelResponseIterator
    apply, parse = reader._apply_stream_candidates, reader._common_chunk_parsing_logic  # noqa: SLF001 - see above

    def applied(self: Any, candidates: list[dict[str, Any]], model_response: Any) -> Any:
        applied = apply(self, candidates, model_response)
        said = {each.get("index", number): each.get("finishReason") for number, each in enumerate(candidates)}
        for choice in model_response.choices:
            reason = said.get(choice.index)
            if choice.finish_reason in _WHOLE and meaning_of(str(reason)) not in _WHOLE:
                choice.finish_reason = reason
        return applied

    def parsed(self: Any, chunk: str) -> Any:
        line = chunk.strip()
        if not line or line.startswith(_NO_DATA) or _event_of(line.removeprefix("data:")) is None:
            return None
        return parse(self, chunk)

    reader._apply_stream_candidates, reader._common_chunk_parsing_logic = applied, parsed  # noqa: SLF001 - see above


def _mend_choices() -> None:
    """What all chunks in OpenAI's form go through."""
    handler: Any = importlib.import_module("litellm.litellm_core_utils.streaming_handler")
    wrapper = handler.CustomStreamWrapper
    handle: Callable[[Any, Any], Any] = wrapper.handle_openai_chat_completion_chunk

    def handled(self: Any, chunk: Any) -> Any:
        if getattr(chunk, "choices", None):
            _keep_first_choice(vars(self), chunk)
        return handle(self, chunk)

    wrapper.handle_openai_chat_completion_chunk = handled


def _mend_counts(litellm: Any) -> None:
    """What readers put the counts of a message into."""
    usage: Any = litellm.types.utils.Usage
    initialise = usage.__init__

    def initialised(self: Any, *arguments: Any, **named: Any) -> None:
        for name in _COUNTS & named.keys():
            named[name] = count(named[name])
        initialise(self, *arguments, **named)

    usage.__init__ = initialised


def _mend_ollama() -> None:
    """What it would find out is what it takes for granted where nobody answers, and the use of tools."""
    ollama: Any = importlib.import_module("litellm.llms.ollama.common_utils")

    def told_nothing(_self: Any, model: str, **_where: Any) -> dict[str, Any]:
        known = {"key": model, "litellm_provider": "ollama", "mode": "chat", "supports_function_calling": True}
        costs = dict.fromkeys(("input_cost_per_token", "output_cost_per_token"), 0.0)
        return known | costs | dict.fromkeys(("max_tokens", "max_input_tokens", "max_output_tokens"))

    ollama.OllamaModelInfo.get_runtime_model_info = told_nothing


def _keep_first_choice(state: dict[str, Any], chunk: Any) -> None:
    """Leave a chunk the first answer alone, and the calls of tools of any other; `state` is its stream's own."""
    first = state.setdefault(_FIRST_CHOICE, chunk.choices[0].index)
    own = next((choice for choice in chunk.choices if choice.index in {first, None}), None)
    calls = [call for choice in chunk.choices if choice is not own for call in _calls(choice)]
    if own is None:
        own = chunk.choices[0]
        own.index, own.delta, own.finish_reason = first, type(own.delta)(), None
    if calls:
        own.delta.tool_calls = [*_calls(own), *calls]
    if not is_reason(own.finish_reason):
        own.finish_reason = None
    chunk.choices = [own]


def _calls(choice: Any) -> list[Any]:
    return getattr(choice.delta, "tool_calls", None) or []


def _event_of(data: str) -> Any:
    """The message in the data of an event; None for data that is none.

    Raises:
        ValueError: it is no JSON, or holds a number that would come out as another.
    """
    message = message_of(data.encode(errors="surrogatepass"))
    if message is not None and not carries_numbers(data):
        raise ValueError("a number is too large to be carried")
    return message
