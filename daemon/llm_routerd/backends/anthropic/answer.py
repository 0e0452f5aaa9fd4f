"""Reads Anthropic's answers: named server-sent events, ended by `message_stop`."""

from __future__ import annotations

from typing import Any

import orjson

from llm_routerd.backends import faults, finish_reasons
from llm_routerd.backends.toolcalls import ToolCallAssembler, json_of_arguments
from llm_routerd.backends.usage import count, mapping
from llm_routerd.backends.wire.messages import message_of
from llm_routerd.backends.wire.sse import EventAnswer
from llm_routerd.protocol.call import Delta, Finish
from llm_routerd.protocol.outcome import Usage

_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class AnthropicAnswer(EventAnswer):
    """The answer so far.  Whole once a good stop reason and then `message_stop` have come.

    `by_tool`: the answer is the input of the tool that the model was made to call, and read as text.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_tool = False
        self._tool_calls = ToolCallAssembler()
        self._usage: dict[str, Any] = {}
        self._stop_reason: str | None = None

    def take(self, payloads: list[bytes]) -> Delta | Finish | None:  # noqa: C901 - one loop, no call per token
        """See `EventAnswer.take`.  Kinds of events that are not known are passed over, as the API asks."""
        text: list[str] = []
        reasoning: list[str] = []
        progress = False
        for payload in payloads:
            try:
                event = orjson.loads(payload)
            except orjson.JSONDecodeError:
                event = None
            if type(event) is not dict and (event := message_of(payload)) is None:
                continue
            kind = event.get("type")
            if kind == "content_block_delta":
                delta = event["delta"]
                if (piece := delta.get("text")) is not None:
                    text.append(piece)
                elif (piece := delta.get("thinking")) is not None:
                    reasoning.append(piece)
                elif (piece := delta.get("partial_json")) is not None:
                    self._add_input(event["index"], piece, text)
                    progress = True
            elif kind == "content_block_start":
                self._start_block(event["index"], event["content_block"], text)
            elif kind == "message_stop":
                return self._finish(self.delta(text, reasoning))
            elif kind == "error":
                raise faults.fault_of_error_object(event.get("error"))
            else:
                self._take_frame(kind, event)
        if text or reasoning or progress:
            return self.delta(text, reasoning)
        return None

    def take_document(self, document: dict[str, Any]) -> Finish:
        """See `EventAnswer.take_document`."""
        text: list[str] = []
        reasoning = [block["thinking"] for block in document["content"] if block.get("type") == "thinking"]
        for index, block in enumerate(document["content"]):
            self._start_block(index, block, text)
        reason = document["stop_reason"]
        if not finish_reasons.is_reason(reason):
            raise faults.truncated()
        self._stop_reason = reason
        self._usage = mapping(document.get("usage"))
        return self._finish(self.delta(text, reasoning))

    def at_end(self, last: Delta) -> Finish:  # noqa: ARG002 - only `message_stop` is an end
        """See `EventAnswer.at_end`: no `message_stop` has come."""
        raise faults.truncated()

    def _take_frame(self, kind: Any, event: dict[str, Any]) -> None:
        """The few events about the message as a whole.  Later counts of tokens replace earlier ones."""
        if kind == "message_start":
            self._count(event["message"].get("usage"))
        elif kind == "message_delta":
            reason = event["delta"].get("stop_reason")
            if finish_reasons.is_reason(reason):
                self._stop_reason = finish_reasons.last_word(self._stop_reason, reason)
            self._count(event.get("usage"))

    def _count(self, usage: Any) -> None:
        counts = mapping(usage)
        self._usage.update({name: counts[name] for name in _COUNTS if name in counts})

    def _start_block(self, index: int, block: dict[str, Any], text: list[str]) -> None:
        if block.get("type") == "text":
            if opening := block.get("text"):
                text.append(opening)
        elif block.get("type") == "tool_use":
            if not self.by_tool:
                head = {"name": block["name"]}
                self._tool_calls.add({"index": index, "id": block.get("id"), "function": head})
            if block.get("input"):  # most servers send it in pieces, after this
                self._add_input(index, json_of_arguments(block["input"]), text)

    def _add_input(self, index: int, piece: str, text: list[str]) -> None:
        if self.by_tool:
            text.append(piece)
        else:
            self._tool_calls.add({"index": index, "function": {"arguments": piece}})

    def _finish(self, last: Delta) -> Finish:
        if (reason := self._stop_reason) is None:  # the event that has it was lost, and with it whether this is all
            raise faults.truncated("the stream gives no finish reason")
        self.end_of_text()
        finish_reason = finish_reasons.meaning_of(reason)
        if self.by_tool and finish_reason == "tool_calls":
            finish_reason = "stop"
        return Finish(
            finish_reason=finish_reason,
            word=finish_reasons.printable(reason) if finish_reason == "truncated" else "",
            usage=_usage(self._usage) if self._usage else None,
            tool_calls=self._tool_calls.complete(),
            text=last.text,
            reasoning=last.reasoning,
            refusal="" if finish_reason == "refusal" else None,
        )


def _usage(usage: dict[str, Any]) -> Usage:
    """Anthropic counts what came from the cache, and what went into it, apart from `input_tokens`."""
    cached = count(usage.get("cache_read_input_tokens"))
    written = count(usage.get("cache_creation_input_tokens")) or 0
    return Usage(
        prompt_tokens=(count(usage.get("input_tokens")) or 0) + (cached or 0) + written,
        completion_tokens=count(usage.get("output_tokens")) or 0,
        cached_tokens=cached,
    )
