"""Tells an answer as a chat completion, whole or in chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llm_routerd.gateway.doors.openai.fault import fault_body
from llm_routerd.gateway.line import json_line

if TYPE_CHECKING:
    from llm_routerd.gateway.door import Told
    from llm_routerd.gateway.fault import Fault
    from llm_routerd.protocol.events import Result
    from llm_routerd.protocol.outcome import Usage

_DONE: Final = b"data: [DONE]\n\n"
_PING: Final = b": ping\n\n"


class ChatVoice:
    """Of one chat completion.

    `system_fingerprint`, which names the configuration that answered, is the model that did.

    Args:
        told: of the request.
        model: as the body named it.
        tells_usage: whether a stream ends with a chunk of the usage.
    """

    def __init__(self, told: Told, *, model: str, tells_usage: bool) -> None:
        self._head: dict[str, Any] = {
            "id": f"chatcmpl-{told.request_id}",
            "object": "chat.completion.chunk",
            "created": told.created,
            "model": model,
        }
        self._tells_usage = tells_usage
        self._before_text, self._after_text = self._around("content")

    def _around(self, name: str) -> tuple[bytes, bytes]:
        """What stands in a chunk before a text and after it: the text is all that differs from one to the next."""
        before, _, after = self._chunk({name: ""}).rpartition(b'""')
        return before, after

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._event([choice], **more, **({"usage": None} if self._tells_usage else {}))

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        return b"data: " + json_line({**self._head, "choices": choices, **more}) + b"\n\n"

    def whole(self, result: Result) -> bytes:
        """See `Voice.whole`."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": result.raw_text or (None if result.tool_calls else ""),
            "refusal": None,
        }
        if result.tool_calls:
            message["tool_calls"] = result.tool_calls
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": result.finish_reason}
        head = {**self._head, "object": "chat.completion", "choices": [choice]}
        return json_line({**head, "usage": _usage(result.usage), "system_fingerprint": result.model_used})

    def begin(self) -> bytes:
        """See `Voice.begin`."""
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def reasoning(self, text: str) -> bytes:
        """See `Voice.reasoning`."""
        return self._chunk({"reasoning_content": text})

    def text(self, text: str) -> bytes:
        """See `Voice.text`."""
        return self._before_text + json_line(text) + self._after_text

    def end(self, result: Result) -> bytes:
        """See `Voice.end`."""
        told = [
            self._chunk(
                {"tool_calls": [{"index": number, "id": call.id, "type": call.type, "function": call.function}]}
            )
            for number, call in enumerate(result.tool_calls)
        ]
        told.append(self._chunk({}, result.finish_reason, system_fingerprint=result.model_used))
        if self._tells_usage:
            told.append(self._event([], usage=_usage(result.usage), system_fingerprint=result.model_used))
        return b"".join([*told, _DONE])

    def broken(self, fault: Fault) -> bytes:
        """See `Voice.broken`: no `[DONE]` follows."""
        return b"data: " + fault_body(fault) + b"\n\n"

    def ping(self) -> bytes:
        """See `Voice.ping`."""
        return _PING


def _usage(usage: Usage) -> dict[str, Any]:
    told: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage.cached_tokens is not None:
        told["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens is not None:
        told["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return told
