"""An answer as Anthropic tells it: one message, or named server-sent events that make it up block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llm_routerd.gateway.line import json_line, within_line
from llm_routerd.protocol.outcome import Usage

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.gateway.door import Told
    from llm_routerd.gateway.fault import Fault
    from llm_routerd.protocol.events import Result
    from llm_routerd.protocol.outcome import ToolCall

_STOP_REASONS: Final = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "refusal": "refusal",
    "content_filter": "refusal",
}
_ERROR_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_LEAST_SERVER_ERROR: Final = 500
_REFUSAL: Final = "refusal"


def fault_body(fault: Fault) -> bytes:
    """An error in the shape of this protocol."""
    return json_line(_error(fault))


def _error(fault: Fault) -> dict[str, Any]:
    other = "api_error" if fault.status >= _LEAST_SERVER_ERROR else "invalid_request_error"
    return {
        "type": "error",
        "error": {"type": _ERROR_TYPES.get(fault.status, other), "message": fault.message},
        "request_id": fault.request_id or None,
    }


class MessageVoice:
    """Of one request.

    Args:
        told: whose it is.
        model: as the request named it.
        prompt_tokens: what the prompt holds, as far as that is known before there is an answer.
    """

    def __init__(self, told: Told, *, model: str, prompt_tokens: Callable[[], int]) -> None:
        self._request_id = told.request_id
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._index = -1  # of the last block that was begun
        self._open = ""  # its kind, while it is not at its end
        self._before_text = b""

    def whole(self, result: Result) -> bytes:
        """The message.  A model's thinking is in its stream alone."""
        text = [{"type": "text", "text": result.raw_text}] if result.raw_text or not result.tool_calls else []
        message = self._message(
            [*text, *({**_block_of(call), "input": within_line(call.arguments)} for call in result.tool_calls)],
            stop_reason=_STOP_REASONS.get(result.finish_reason, "end_turn"),
            usage=_usage(result.usage),
        )
        return json_line(message)

    def begin(self) -> bytes:
        """The message without its content.  How long the prompt is, is an estimate here; the end tells."""
        usage = _usage(Usage(prompt_tokens=self._prompt_tokens()))
        return _event("message_start", message=self._message([], stop_reason=None, usage=usage))

    def reasoning(self, text: str) -> bytes:
        """More of a block of thinking."""
        opening = (
            b"" if self._open == "thinking" else self._start({"type": "thinking", "thinking": "", "signature": ""})
        )
        return opening + self._delta({"type": "thinking_delta", "thinking": text})

    def text(self, text: str) -> bytes:
        """More of a block of text."""
        opening = b""
        if self._open != "text":
            opening = self._start({"type": "text", "text": ""})
            whole = self._delta({"type": "text_delta", "text": ""})
            self._before_text = whole[: -len(_AFTER_TEXT) - 2]
        return opening + self._before_text + json_line(text) + _AFTER_TEXT

    def end(self, result: Result) -> bytes:
        """Blocks of tool calls, why it ended, what it took."""
        parts = [self._stop()]
        for call in result.tool_calls:
            parts.append(self._start({**_block_of(call), "input": {}}))
            parts.append(self._delta({"type": "input_json_delta", "partial_json": call.arguments}))
            parts.append(self._stop())
        reason = _STOP_REASONS.get(result.finish_reason, "end_turn")
        return b"".join((*parts, _ending(reason, result.usage)))

    def broken(self, fault: Fault) -> bytes:
        """A refusal by a provider ends the message, as it does there; anything else is an error."""
        if fault.code == _REFUSAL:
            return self._stop() + _ending(_REFUSAL, Usage())
        return _event("error", **_error(fault))

    def ping(self) -> bytes:
        """Protocol's own."""
        return _PING

    def _message(self, content: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": f"msg_{self._request_id}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_sequence": None,
            **more,
        }

    def _start(self, block: dict[str, Any]) -> bytes:
        ended = self._stop()
        self._index += 1
        self._open = block["type"]
        return ended + _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _stop(self) -> bytes:
        if not self._open:
            return b""
        # Nobody here can sign a model's thinking: an empty signature is what clients take for none.
        signed = self._delta({"type": "signature_delta", "signature": ""}) if self._open == "thinking" else b""
        self._open = ""
        return signed + _event("content_block_stop", index=self._index)


def _event(kind: str, **data: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), json_line({"type": kind, **data}))


_PING: Final = _event("ping")
_AFTER_TEXT: Final = b"}}\n\n"


def _ending(stop_reason: str, usage: Usage) -> bytes:
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    return _event("message_delta", delta=delta, usage=_usage(usage)) + _event("message_stop")


def _block_of(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name}


def _usage(usage: Usage) -> dict[str, Any]:
    """Tokens by their names here, where those that were cached are counted apart."""
    cached = usage.cached_tokens or 0
    told: dict[str, Any] = {
        "input_tokens": max(usage.prompt_tokens - cached, 0),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
    }
    if usage.reasoning_tokens is not None:
        told["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return told
