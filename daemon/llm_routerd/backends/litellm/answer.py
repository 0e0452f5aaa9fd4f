"""Reads what litellm yields, or what lies behind it.

A stream that ends without its terminal event is a finish like any other to litellm 1.102.4: it says "stop",
and makes up the usage.  What tells are two attributes of its stream, set by the provider's own finish reason
only; the version is pinned, and without the attributes nothing would count as whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_routerd.backends import faults
from llm_routerd.backends.finish_reasons import is_reason, meaning_of, printable
from llm_routerd.backends.litellm.first_byte import begins_as_json
from llm_routerd.backends.openai.answer import OpenAIAnswer
from llm_routerd.backends.toolcalls import ToolCallAssembler, ToolCallError
from llm_routerd.backends.usage import count
from llm_routerd.backends.wire.messages import HalvesJoiner
from llm_routerd.protocol.call import Delta, Finish
from llm_routerd.protocol.outcome import Usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable


_JSON_LINES = frozenset({"ollama", "ollama_chat", "cohere", "cohere_chat"})
# Which of the two is set depends on the provider.
_FINISHED = ("received_finish_reason", "intermittent_finish_reason")


def is_whole(stream: Any) -> bool:
    """Whether the provider said that it had finished, once litellm's stream has ended."""
    return any(is_reason(getattr(stream, name, None)) for name in _FINISHED)


async def sent_as_json(stream: Any, provider: str) -> Any:
    """The response behind litellm's stream where it is one JSON document; else None.

    Some servers answer with one whatever they are asked, and whatever they call it, and litellm finds no event in it.
    Those that litellm keeps a response of all speak OpenAI's protocol, but for those whose streams are lines of JSON.
    What was read of it is read again.
    """
    inner = getattr(stream, "completion_stream", None)
    response = getattr(inner, "response", None) or getattr(inner, "http_response", None)
    if response is None or provider in _JSON_LINES:
        return None
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return response if kind == "application/json" or await begins_as_json(response) else None


async def read_directly(response: Any) -> AsyncGenerator[Delta | Finish, None]:
    """What an unread response brings, a document or events, as the backend for OpenAI's protocol reads it."""
    answer = OpenAIAnswer()
    async for chunk in response.aiter_bytes():
        if (item := answer.feed(chunk)) is not None:
            yield item
        if isinstance(item, Finish):
            return
    yield answer.end()


class LitellmAnswer:
    """The answer so far."""

    def __init__(self) -> None:
        self._tool_calls = ToolCallAssembler()
        self._finish_reason = "stop"
        self._text_halves = HalvesJoiner()
        self._reasoning_halves = HalvesJoiner()

    def take(self, chunk: Any) -> Delta | None:
        """What a chunk brings; None if nothing.

        Raises:
            BackendError: the chunk is malformed.
        """
        if not chunk.choices:
            return None
        choice = chunk.choices[0]
        if is_reason(choice.finish_reason):
            self._finish_reason = choice.finish_reason
        text = choice.delta.content or ""
        reasoning = getattr(choice.delta, "reasoning_content", None) or ""
        calls = choice.delta.tool_calls or ()
        for call in calls:
            self._add_call(call)
        if not (text or reasoning or calls):
            return None
        return Delta(self._text_halves.join(text), self._reasoning_halves.join(reasoning))

    def finish(self, *, whole: bool, usage: Usage | None) -> Finish:
        """The end; `whole` is whether the provider said that it had finished, `usage` what it has counted.

        Raises:
            BackendError: it did not, so the stream was cut.
        """
        if not whole:
            raise faults.truncated()
        try:
            tool_calls = self._tool_calls.complete()
        except ToolCallError as error:
            raise faults.malformed(str(error)) from None
        self._text_halves.finish()
        self._reasoning_halves.finish()
        finish_reason = meaning_of(self._finish_reason)
        return Finish(
            finish_reason="tool_calls" if finish_reason == "stop" and tool_calls else finish_reason,
            word=printable(self._finish_reason),
            usage=usage,
            tool_calls=tool_calls,
            refusal="" if finish_reason == "refusal" else None,
        )

    def _add_call(self, call: Any) -> None:
        function = {"name": call.function.name, "arguments": call.function.arguments}
        try:
            self._tool_calls.add({"index": call.index, "id": call.id, "function": function})
        except ToolCallError as error:
            raise faults.malformed(str(error)) from None


def usage_of(chunks: Iterable[Any]) -> Usage | None:
    """What the provider has counted, in its own chunks; 0 of what it has not, and None if nothing.

    The chunk that litellm adds at the end is not among them: there it puts numbers of its own for any that are missing
    or 0, and does not say so.
    """
    told = [usage for chunk in chunks if (usage := getattr(chunk, "usage", None)) is not None]

    def last(*path: str) -> int | None:
        values = [count(_attribute(usage, path)) for usage in told]
        return next((value for value in reversed(values) if value), None)

    if not told:
        return None
    return Usage(
        prompt_tokens=last("prompt_tokens") or 0,
        completion_tokens=last("completion_tokens") or 0,
        cached_tokens=last("prompt_tokens_details", "cached_tokens"),
        reasoning_tokens=last("completion_tokens_details", "reasoning_tokens"),
    )


def _attribute(thing: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        thing = thing.get(name) if isinstance(thing, dict) else getattr(thing, name, None)
    return thing
