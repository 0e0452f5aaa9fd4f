"""An answer as Ollama tells it: one JSON object, or one a line, the last of which says `done`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from llm_routerd.gateway.line import json_line, within_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.gateway.door import Told
    from llm_routerd.gateway.fault import Fault
    from llm_routerd.protocol.events import Result

_NS_IN_MS: Final = 1_000_000
_MARK: Final = "\x00"


def fault_body(fault: Fault) -> bytes:
    """An error in the shape of this protocol."""
    return json_line({"error": fault.message})


class Form(Struct, frozen=True, kw_only=True):
    """Where an endpoint puts what is said.

    Attributes:
        text: text, to the properties of an object.
        more: what else there is, thinking or tool calls, to the properties of an object.
    """

    text: Callable[[str], dict[str, Any]]
    more: Callable[[dict[str, Any]], dict[str, Any]]


def _chat(**said: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": "", **said}}


CHAT: Final = Form(text=lambda text: _chat(content=text), more=lambda more: _chat(**more))
GENERATE: Final = Form(text=lambda text: {"response": text}, more=lambda more: {"response": "", **more})


class LineVoice:
    """Of one request.

    Args:
        told: whose it is.
        form: of its endpoint.
        model: as the request named it.
    """

    def __init__(self, told: Told, *, form: Form, model: str) -> None:
        self._form = form
        created = datetime.fromtimestamp(told.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._head = {"model": model, "created_at": created}
        line = self._line(form.text(_MARK))
        self._before_text, _, self._after_text = line.partition(json_line(_MARK))

    def whole(self, result: Result) -> bytes:
        """The answer; a model's thinking is in its stream alone."""
        said = self._form.text(result.raw_text)
        if result.tool_calls and "message" in said:
            said["message"].update(_calls(result))
        return json_line({**self._head, **said, **_ending(result)})

    def begin(self) -> bytes:
        """Nothing."""
        return b""

    def reasoning(self, text: str) -> bytes:
        """A line of it."""
        return self._line(self._form.more({"thinking": text}))

    def text(self, text: str) -> bytes:
        """A line of it."""
        return self._before_text + json_line(text) + self._after_text

    def end(self, result: Result) -> bytes:
        """A line of tool calls, if there are any, and the last."""
        calls = self._line(self._form.more(_calls(result))) if result.tool_calls else b""
        return calls + json_line({**self._head, **self._form.text(""), **_ending(result)}) + b"\n"

    def broken(self, fault: Fault) -> bytes:
        """A line with the error, the last."""
        return fault_body(fault) + b"\n"

    def ping(self) -> bytes:
        """Nothing: clients take each line for JSON."""
        return b""

    def _line(self, said: dict[str, Any]) -> bytes:
        return json_line({**self._head, **said, "done": False}) + b"\n"


def _calls(result: Result) -> dict[str, Any]:
    return {
        "tool_calls": [
            {
                "id": call.id,
                "function": {"index": index, "name": call.name, "arguments": within_line(call.arguments)},
            }
            for index, call in enumerate(result.tool_calls)
        ]
    }


def _ending(result: Result) -> dict[str, Any]:
    """Why it ended, and what it took as far as that is known: a model's own times are not."""
    ending: dict[str, Any] = {
        "done": True,
        "done_reason": "length" if result.finish_reason == "length" else "stop",
        "total_duration": ((result.queue_ms or 0) + result.latency_ms) * _NS_IN_MS,
        "prompt_eval_count": result.usage.prompt_tokens,
        "eval_count": result.usage.completion_tokens,
    }
    if result.ttft_ms is not None:
        ending["prompt_eval_duration"] = result.ttft_ms * _NS_IN_MS
        ending["eval_duration"] = max(result.latency_ms - result.ttft_ms, 0) * _NS_IN_MS
    return ending
