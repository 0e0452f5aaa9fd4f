"""Reads Ollama's answers: newline-delimited JSON, one object per token, ended by `"done": true`."""

from __future__ import annotations

from typing import Any

import orjson

from llm_routerd.backends import faults, finish_reasons
from llm_routerd.backends.toolcalls import ToolCallAssembler
from llm_routerd.backends.usage import count
from llm_routerd.backends.wire.framing import BOM, LineFramer
from llm_routerd.backends.wire.messages import HalvesJoiner, message_of
from llm_routerd.protocol.call import Delta, Finish
from llm_routerd.protocol.outcome import Usage


class OllamaAnswer:
    """The answer so far (see `exchange.Answer`)."""

    __slots__ = ("_count", "_framer", "_reasoning_halves", "_text_halves", "_tool_calls")

    def __init__(self) -> None:
        self._framer = LineFramer()
        self._tool_calls = ToolCallAssembler()
        self._count = 0
        self._text_halves = HalvesJoiner()
        self._reasoning_halves = HalvesJoiner()

    def feed(self, chunk: bytes) -> Delta | Finish | None:
        """See `Answer.feed`."""
        return self._take(self._framer.feed(chunk))

    def end(self) -> Finish:
        """See `Answer.end`: a server that does not stream sends one object, and no newline after it."""
        rest = self._framer.rest().removeprefix(BOM)
        if rest and not rest.startswith(b"{"):
            raise faults.malformed("no JSON where JSON belongs")
        try:
            message_of(rest)
        except ValueError:
            raise faults.truncated() from None
        last = self._take([rest])
        if not isinstance(last, Finish):
            raise faults.truncated()
        return last

    def _take(self, lines: list[bytes]) -> Delta | Finish | None:  # noqa: C901 - one loop, no call per token
        """What the lines of one read bring; None if nothing."""
        text: list[str] = []
        reasoning: list[str] = []
        called = False
        try:
            for line in lines:
                try:
                    event = orjson.loads(line)
                except orjson.JSONDecodeError:
                    event = None
                if type(event) is not dict and (event := message_of(line)) is None:
                    continue
                if (message := event.get("message")) is not None:
                    if content := message.get("content"):
                        text.append(content)
                    if thinking := message.get("thinking"):
                        reasoning.append(thinking)
                    if calls := message.get("tool_calls"):
                        called = True
                        self._add_tool_calls(calls)
                if event.get("error") or ("error" in event and not event.get("done")):
                    raise faults.fault_of_error_object(event["error"])
                if event.get("done"):
                    return self._finish(event, self._delta(text, reasoning))
            if text or reasoning or called:
                return self._delta(text, reasoning)
        except faults.SHAPE_ERRORS as error:
            raise faults.fault_of_shape(error) from None
        return None

    def _add_tool_calls(self, calls: list[dict[str, Any]]) -> None:
        """Ollama's calls come whole, and in older versions without an id; their own indexes repeat."""
        for call in calls:
            self._tool_calls.add({**call, "index": self._count})
            self._count += 1

    def _delta(self, text: list[str], reasoning: list[str]) -> Delta:
        said = "".join(text)
        if self._text_halves.waiting or not said.isascii():
            said = self._text_halves.join(said)
        return Delta(said, self._reasoning_halves.join("".join(reasoning))) if reasoning else Delta(said)

    def _finish(self, event: dict[str, Any], last: Delta) -> Finish:
        self._text_halves.finish()
        self._reasoning_halves.finish()
        said = event.get("done_reason")
        reason = str(said) if finish_reasons.is_reason(said) else "stop"  # `done` says enough, as in older versions
        finish_reason = finish_reasons.meaning_of(reason)
        if finish_reason == "stop" and self._tool_calls:
            finish_reason = "tool_calls"
        usage = None
        if "eval_count" in event or "prompt_eval_count" in event:
            usage = Usage(
                prompt_tokens=count(event.get("prompt_eval_count")) or 0,
                completion_tokens=count(event.get("eval_count")) or 0,
            )
        return Finish(
            finish_reason=finish_reason,
            word=finish_reasons.printable(reason) if finish_reason == "truncated" else "",
            usage=usage,
            tool_calls=self._tool_calls.complete(),
            text=last.text,
            reasoning=last.reasoning,
        )
