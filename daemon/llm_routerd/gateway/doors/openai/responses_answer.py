"""Tells an answer as a response, whole or as its events.

Whoever tells the events of a request once more, from its stream, tells the same with the same sequence numbers: they
are counted, and nothing else goes into them.  So a client comes back and goes on after the last that it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llm_routerd.gateway.doors.openai.fault import error_of
from llm_routerd.gateway.line import json_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_routerd.gateway.door import Told
    from llm_routerd.gateway.fault import Fault
    from llm_routerd.protocol.events import Result
    from llm_routerd.protocol.outcome import ToolCall, Usage

_PING: Final = b": ping\n\n"
_CARRIED: Final = "openai"  # under which a request's metadata holds what a response tells of its body
_TEXT_DELTA: Final = "response.output_text.delta"

# What a response tells of its body, where the body said nothing of it, or is not known any more.
_SHAPE: Final[dict[str, Any]] = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "model": "",
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
}


def shape_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a response tells of its body."""
    return {name: given.get(name, default) for name, default in _SHAPE.items()}


def carried(given: Mapping[str, Any]) -> dict[str, Any]:
    """The request's `metadata`: what of the body a response can tell when nothing but the request's end is left."""
    return {_CARRIED: {name: given[name] for name in ("background", "metadata", "model") if name in given}}


def shape_carried(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a response tells of its body, by the metadata of its request's end; None: it is not over."""
    found = (metadata or {}).get(_CARRIED)
    return shape_of(found if isinstance(found, dict) else {})


class ResponsesVoice:
    """Of one response; items are numbered as they come: thinking, the text, calls.

    Args:
        told: of the request.
        shape: what is told of the body: `shape_of`, `shape_carried`.
        after: the sequence number up to which everything is known and not told.
    """

    def __init__(self, told: Told, *, shape: dict[str, Any], after: int = -1) -> None:
        self._id = told.request_id
        self._created = told.created
        self._shape = shape
        self._after = after
        self._number = -1  # of the event told last
        self._output: list[dict[str, Any]] = []  # items that are done
        self._thoughts: list[str] | None = None  # of the item that is open
        self._has_text = False
        self._before_text = self._after_text = b""

    def unfinished(self, status: str) -> bytes:
        """The body of a response that is `queued` or `in_progress`."""
        return json_line(self._response(status))

    def failed(self, fault: Fault) -> bytes:
        """The body of one that has failed, or was cancelled."""
        return json_line(self._failed(fault))

    def whole(self, result: Result) -> bytes:
        """See `Voice.whole`."""
        for item in self._items(result):
            self._output.append(item)
        return json_line(self._ended(result))

    def begin(self) -> bytes:
        """See `Voice.begin`."""
        response = self._response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def reasoning(self, text: str) -> bytes:
        """See `Voice.reasoning`."""
        told = b""
        if self._thoughts is None:
            self._thoughts = []
            told = self._opened(self._thought("in_progress", []), {"type": "reasoning_text", "text": ""})
        self._thoughts.append(text)
        return told + self._event("response.reasoning_text.delta", **self._place("rs", content_index=0), delta=text)

    def text(self, text: str) -> bytes:
        """See `Voice.text`."""
        told = b"" if self._has_text else self._begin_text()
        self._number += 1
        if self._number <= self._after:
            return told
        return b"%b%b%b%d}\n\n" % (told + self._before_text, json_line(text), self._after_text, self._number)

    def end(self, result: Result) -> bytes:
        """See `Voice.end`."""
        told = [self._end_thoughts()]
        items = self._items(result)
        if items[0]["type"] == "message":
            if not self._has_text:
                told.append(self._begin_text())
            told.append(self._end_text(items.pop(0)))
        told += [self._called(item) for item in items]
        response = self._ended(result)
        told.append(self._event(f"response.{response['status']}", response=response))
        return b"".join(told)

    def broken(self, fault: Fault) -> bytes:
        """See `Voice.broken`."""
        return self._event("response.failed", response=self._failed(fault))

    def ping(self) -> bytes:
        """See `Voice.ping`."""
        return _PING

    # ------------------------------------------------------------------ items

    def _items(self, result: Result) -> list[dict[str, Any]]:
        """The text, where there is any or nothing else, and the calls."""
        status = "incomplete" if result.finish_reason == "length" else "completed"
        calls = [self._call(number, call) for number, call in enumerate(result.tool_calls)]
        if calls and not result.raw_text and not self._has_text:
            return calls
        return [self._message(status, [_text_part(result.raw_text)]), *calls]

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": f"msg_{self._id}", "type": "message", "status": status, "role": "assistant", "content": content}

    def _thought(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": f"rs_{self._id}", "type": "reasoning", "status": status, "summary": [], "content": content}

    def _call(self, number: int, call: ToolCall) -> dict[str, Any]:
        return {
            "id": f"fc_{self._id}_{number}",
            "type": "function_call",
            "status": "completed",
            "call_id": call.id,
            "name": call.name,
            "arguments": call.arguments,
        }

    # ------------------------------------------------------------------ events

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._number += 1
        if self._number <= self._after:
            return b""
        data = json_line({"type": kind, **fields, "sequence_number": self._number})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)

    def _place(self, prefix: str, **more: Any) -> dict[str, Any]:
        return {"item_id": f"{prefix}_{self._id}", "output_index": len(self._output), **more}

    def _opened(self, item: dict[str, Any], part: dict[str, Any]) -> bytes:
        place = {"item_id": item["id"], "output_index": len(self._output), "content_index": 0}
        return self._event("response.output_item.added", output_index=len(self._output), item=item) + self._event(
            "response.content_part.added", **place, part=part
        )

    def _done(self, item: dict[str, Any]) -> bytes:
        told = self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        return told

    def _end_thoughts(self) -> bytes:
        if self._thoughts is None:
            return b""
        text, self._thoughts = "".join(self._thoughts), None
        part, place = {"type": "reasoning_text", "text": text}, self._place("rs", content_index=0)
        told = self._event("response.reasoning_text.done", **place, text=text)
        return (
            told
            + self._event("response.content_part.done", **place, part=part)
            + self._done(self._thought("completed", [part]))
        )

    def _begin_text(self) -> bytes:
        told = self._end_thoughts() + self._opened(self._message("in_progress", []), _text_part(""))
        self._has_text = True
        # The text and the number are all that differs from one to the next.
        data = {"type": _TEXT_DELTA, **self._place("msg", content_index=0), "delta": "", "logprobs": []}
        before, _, after = json_line({**data, "sequence_number": 0}).rpartition(b'""')
        self._before_text = b"event: %b\ndata: %b" % (_TEXT_DELTA.encode(), before)
        self._after_text = after.removesuffix(b"0}")
        return told

    def _end_text(self, message: dict[str, Any]) -> bytes:
        part, place = message["content"][0], self._place("msg", content_index=0)
        return (
            self._event("response.output_text.done", **place, text=part["text"], logprobs=[])
            + self._event("response.content_part.done", **place, part=part)
            + self._done(message)
        )

    def _called(self, item: dict[str, Any]) -> bytes:
        place = {"item_id": item["id"], "output_index": len(self._output)}
        begun, arguments = {**item, "status": "in_progress", "arguments": ""}, item["arguments"]
        return (
            self._event("response.output_item.added", output_index=len(self._output), item=begun)
            + self._event("response.function_call_arguments.delta", **place, delta=arguments)
            + self._event("response.function_call_arguments.done", **place, name=item["name"], arguments=arguments)
            + self._done(item)
        )

    # ------------------------------------------------------------------ the response itself

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        return {
            "id": f"resp_{self._id}",
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "previous_response_id": None,
            "truncation": "disabled",
            **self._shape,
            "output": self._output,
            "usage": None,
            **more,
        }

    def _ended(self, result: Result) -> dict[str, Any]:
        if result.finish_reason == "length":
            details = {"reason": "max_output_tokens"}
            return self._response("incomplete", incomplete_details=details, usage=_usage(result.usage))
        return self._response("completed", usage=_usage(result.usage))

    def _failed(self, fault: Fault) -> dict[str, Any]:
        if fault.code == "cancelled":
            return self._response("cancelled")
        code = {400: "invalid_prompt", 429: "rate_limit_exceeded"}.get(fault.status, "server_error")
        return self._response("failed", error={"code": code, "message": error_of(fault)["message"]})


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.total_tokens,
    }
