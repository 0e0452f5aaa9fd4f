"""The three wire protocols of the stand-in, shaped after the recordings of real servers.

A wire writes one answer: each of its methods returns the bytes of one write.
"""

# ruff: noqa: D102 - the three classes have the same eight methods, named for what they write

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import orjson

if TYPE_CHECKING:
    from tests.standin.reading import Reading

_CREATED_AT = "2026-11-20T08:35:16.457405347Z"
_CREATED = 1795163716


class Wire(Protocol):
    """How one protocol writes an answer; `whole` is for a client that does not want a stream."""

    content_type: str

    def start(self) -> bytes: ...
    def text(self, token: str) -> bytes: ...
    def reasoning(self, token: str) -> bytes: ...
    def call(self, name: str, arguments: Any) -> bytes: ...
    def refusal(self, text: str) -> bytes: ...
    def end(self, reason: str, prompt_tokens: int, tokens: int) -> bytes: ...
    def error(self, status: int, message: str) -> bytes: ...
    def whole(self, text: str, calls: list[tuple[str, Any]], reason: str, tokens: tuple[int, int]) -> bytes: ...


def error_body(protocol: str, status: int, message: str) -> bytes:
    """The body of an HTTP error in the form of `protocol`."""
    kinds = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error"}
    kinds |= {404: "not_found_error", 429: "rate_limit_error", 529: "overloaded_error"}
    kind = kinds.get(status, "api_error")
    if "context" in message:
        kind = "exceed_context_size_error"
    if protocol == "ollama":
        return orjson.dumps({"error": message})
    if protocol == "anthropic":
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": message}})
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}})


def wire_of(protocol: str, model: str, *, usage: bool, reading: Reading | None = None) -> Wire:
    """The writer for one answer.

    Args:
        protocol: which one.
        model: as the client called it.
        usage: whether an OpenAI client asked for it.
        reading: of a box, what it has read of the prompt.
    """
    match protocol:
        case "ollama":
            return OllamaWire(model, reading)
        case "anthropic":
            return AnthropicWire(model, reading)
        case _:
            return OpenAIWire(model, usage=usage, reading=reading)


class OllamaWire:
    """Newline-delimited JSON."""

    content_type = "application/x-ndjson"

    def __init__(self, model: str, reading: Reading | None) -> None:
        self._model = model
        self._reading = reading

    def _line(self, message: dict[str, Any], **more: Any) -> bytes:
        event = {"model": self._model, "created_at": _CREATED_AT, "message": {"role": "assistant", **message}}
        return orjson.dumps({**event, "done": False, **more}) + b"\n"

    def start(self) -> bytes:
        return b""

    def text(self, token: str) -> bytes:
        return self._line({"content": token})

    def reasoning(self, token: str) -> bytes:
        return self._line({"content": "", "thinking": token})

    def call(self, name: str, arguments: Any) -> bytes:
        return self._line({"content": "", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]})

    def refusal(self, text: str) -> bytes:
        return self.text(text)

    def end(self, reason: str, prompt_tokens: int, tokens: int) -> bytes:
        return self._line({"content": ""}, **self._done(reason, prompt_tokens, tokens))

    def error(self, status: int, message: str) -> bytes:
        return error_body("ollama", status, message) + b"\n"

    def whole(self, text: str, calls: list[tuple[str, Any]], reason: str, tokens: tuple[int, int]) -> bytes:
        message: dict[str, Any] = {"content": text}
        if calls:
            message["tool_calls"] = [{"function": {"name": name, "arguments": args}} for name, args in calls]
        return self._line(message, **self._done(reason, *tokens)).rstrip()

    def _done(self, reason: str, prompt_tokens: int, tokens: int) -> dict[str, Any]:
        durations = {"total_duration": 5157420, "load_duration": 517357, "prompt_eval_duration": 651000}
        if self._reading is not None:
            durations = self._reading.durations()
        return {
            "done": True,
            "done_reason": "length" if reason == "length" else "stop",
            **durations,
            "prompt_eval_count": prompt_tokens,
            "eval_count": tokens,
            "eval_duration": 911000,
        }


class OpenAIWire:
    """Server-sent events of `chat.completion.chunk` objects, `[DONE]` last."""

    content_type = "text/event-stream"

    def __init__(self, model: str, *, usage: bool, reading: Reading | None) -> None:
        self._reading = reading
        self._head = {
            "id": "chatcmpl-138",
            "created": _CREATED,
            "model": model,
            "system_fingerprint": "stand-in",
        }
        self._usage = usage
        self._calls = 0

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": choices, **more}
        return b"data: " + orjson.dumps(chunk) + b"\n\n"

    def _delta(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        return self._event([{"index": 0, "delta": delta, "finish_reason": finish_reason}])

    def start(self) -> bytes:
        return self._delta({"role": "assistant", "content": ""})

    def text(self, token: str) -> bytes:
        return self._delta({"content": token})

    def reasoning(self, token: str) -> bytes:
        return self._delta({"reasoning_content": token})

    def call(self, name: str, arguments: Any) -> bytes:
        """The name first, then the arguments in two pieces, as OpenAI does."""
        index, text = self._calls, orjson.dumps(arguments).decode()
        self._calls += 1
        head = {
            "index": index,
            "id": f"call_{index}",
            "type": "function",
            "function": {"name": name, "arguments": ""},
        }
        pieces = [{"index": index, "function": {"arguments": part}} for part in (text[:4], text[4:])]
        return b"".join(self._delta({"tool_calls": [piece]}) for piece in [head, *pieces])

    def refusal(self, text: str) -> bytes:
        return self._delta({"refusal": text})

    def end(self, reason: str, prompt_tokens: int, tokens: int) -> bytes:
        timings = self._timings(tokens)
        choice = {"index": 0, "delta": {}, "finish_reason": "stop" if reason == "refusal" else reason}
        last = self._event([choice], **({} if self._usage else timings))
        if self._usage:
            last += self._event([], usage=self._counts(prompt_tokens, tokens), **timings)
        return last + b"data: [DONE]\n\n"

    def error(self, status: int, message: str) -> bytes:
        return b"data: " + error_body("openai", status, message) + b"\n\n"

    def whole(self, text: str, calls: list[tuple[str, Any]], reason: str, tokens: tuple[int, int]) -> bytes:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{i}",
                    "type": "function",
                    "function": {"name": name, "arguments": orjson.dumps(args).decode()},
                }
                for i, (name, args) in enumerate(calls)
            ]
        choice = {"index": 0, "message": message, "finish_reason": reason}
        answer = {**self._head, "object": "chat.completion", "choices": [choice]}
        return orjson.dumps({**answer, "usage": self._counts(*tokens), **self._timings(tokens[1])})

    def _counts(self, prompt_tokens: int, tokens: int) -> dict[str, Any]:
        counts = {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}
        return counts | (self._reading.openai_details() if self._reading is not None else {})

    def _timings(self, tokens: int) -> dict[str, Any]:
        return self._reading.timings(tokens) if self._reading is not None else {}


class AnthropicWire:
    """Named server-sent events, `message_stop` last."""

    content_type = "text/event-stream"

    def __init__(self, model: str, reading: Reading | None) -> None:
        self._model = model
        self._reading = reading
        self._block = -1
        self._kind = ""

    def _event(self, kind: str, **more: Any) -> bytes:
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **more}))

    def _open(self, kind: str, block: dict[str, Any]) -> bytes:
        """The start of a block, after the end of the one before; nothing where the open one is of this kind."""
        if self._kind == kind != "tool_use":
            return b""
        closing = self._close()
        self._block += 1
        self._kind = kind
        return closing + self._event("content_block_start", index=self._block, content_block={"type": kind, **block})

    def _close(self) -> bytes:
        return self._event("content_block_stop", index=self._block) if self._kind else b""

    def _delta(self, **delta: Any) -> bytes:
        return self._event("content_block_delta", index=self._block, delta=delta)

    def start(self) -> bytes:
        message = {
            "id": "msg_20af56d6",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
        }
        usage = self._counts(2, 1) if self._reading is None else self._counts(self._reading.counted, 0)
        return self._event(
            "message_start", message={**message, "stop_reason": None, "stop_sequence": None, "usage": usage}
        ) + self._event("ping")

    def text(self, token: str) -> bytes:
        return self._open("text", {"text": ""}) + self._delta(type="text_delta", text=token)

    def reasoning(self, token: str) -> bytes:
        opening = self._open("thinking", {"thinking": "", "signature": ""})
        return opening + self._delta(type="thinking_delta", thinking=token)

    def call(self, name: str, arguments: Any) -> bytes:
        opening = self._open("tool_use", {"id": f"toolu_{self._block + 1}", "name": name, "input": {}})
        text = orjson.dumps(arguments).decode()
        pieces = ("", text[:4], text[4:])
        return opening + b"".join(self._delta(type="input_json_delta", partial_json=piece) for piece in pieces)

    def refusal(self, text: str) -> bytes:
        return self.text(text)

    def end(self, reason: str, prompt_tokens: int, tokens: int) -> bytes:
        delta = {"stop_reason": _ANTHROPIC_REASONS.get(reason, reason), "stop_sequence": None}
        usage = self._counts(prompt_tokens, tokens)
        return self._close() + self._event("message_delta", delta=delta, usage=usage) + self._event("message_stop")

    def error(self, status: int, message: str) -> bytes:
        return b"event: error\ndata: %b\n\n" % error_body("anthropic", status, message)

    def whole(self, text: str, calls: list[tuple[str, Any]], reason: str, tokens: tuple[int, int]) -> bytes:
        content: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
        content += [
            {"type": "tool_use", "id": f"toolu_{i}", "name": name, "input": args}
            for i, (name, args) in enumerate(calls)
        ]
        answer = {"id": "msg_20af56d6", "type": "message", "role": "assistant", "model": self._model}
        usage = self._counts(*tokens)
        reason = _ANTHROPIC_REASONS.get(reason, reason)
        return orjson.dumps({**answer, "content": content, "stop_reason": reason, "usage": usage})

    def _counts(self, prompt_tokens: int, tokens: int) -> dict[str, int]:
        counts = {"input_tokens": prompt_tokens, "output_tokens": tokens}
        return counts | (self._reading.anthropic_details() if self._reading is not None else {})


_ANTHROPIC_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "refusal": "refusal",
}
