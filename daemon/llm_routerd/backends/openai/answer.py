"""Reads answers in OpenAI's form: server-sent events, ended by `[DONE]`."""

from __future__ import annotations

from typing import Any

import orjson

from llm_routerd.backends import faults, finish_reasons
from llm_routerd.backends.toolcalls import ToolCallAssembler
from llm_routerd.backends.usage import count, mapping
from llm_routerd.backends.wire.messages import message_of
from llm_routerd.backends.wire.sse import EventAnswer
from llm_routerd.protocol.call import Delta, Finish
from llm_routerd.protocol.outcome import Usage

_MAX_REFUSAL = 4096


class OpenAIAnswer(EventAnswer):
    """The answer so far.  Whole after a good finish reason and then `[DONE]` or the stream's clean end.

    One answer is asked for, and the first choice is it.  Of any other choice only calls of tools are taken: some
    proxies put an answer's text into one choice and its calls into the next.
    """

    def __init__(self) -> None:
        super().__init__()
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self._tool_calls = ToolCallAssembler()
        self._refusal: str | None = None
        self._callers: set[Any] = set()  # indexes of other choices that have calls
        self._bad_reason: str | None = None  # of another choice, from which calls were taken
        self._choice: Any = None  # the index of the first choice, once one has come

    def take(self, payloads: list[bytes]) -> Delta | Finish | None:
        """See `EventAnswer.take`."""
        text: list[str] = []
        reasoning: list[str] = []
        progress = False
        for payload in payloads:
            if payload.startswith(b"[DONE]"):
                return self.at_end(self.delta(text, reasoning))
            try:
                event = orjson.loads(payload)
            except orjson.JSONDecodeError:
                event = None
            if type(event) is not dict and (event := message_of(payload)) is None:
                continue
            for choice in event.get("choices") or ():
                delta = choice.get("delta")
                if (
                    delta
                    and len(delta) == 1
                    and (content := delta.get("content"))
                    and type(content) is str
                    and choice.get("index") == self._choice
                    and choice.get("finish_reason") is None
                    and "usage" not in choice
                ):
                    text.append(content)  # as most events are: a piece of the first choice's text
                else:
                    progress = self._take_choice(choice, text, reasoning) or progress
            if event.get("usage") or "x_groq" in event or "error" in event:
                self._take_rest_of_event(event)
        if text or reasoning or progress:
            return self.delta(text, reasoning)
        return None

    def take_document(self, document: dict[str, Any]) -> Finish:
        """See `EventAnswer.take_document`."""
        text: list[str] = []
        reasoning: list[str] = []
        for number, choice in enumerate(document["choices"]):
            self._take_choice({"index": number, **choice, "delta": choice["message"]}, text, reasoning)
        self._take_rest_of_event(document)
        return self.at_end(self.delta(text, reasoning))

    def at_end(self, last: Delta) -> Finish:
        """See `EventAnswer.at_end`."""
        if self._finish_reason is None:
            raise faults.truncated()
        self.end_of_text()
        reason = self._bad_reason or self._finish_reason
        finish_reason = finish_reasons.meaning_of(reason)
        if finish_reason == "stop" and self._tool_calls:  # some servers say "stop" for these too
            finish_reason = "tool_calls"
        return Finish(
            finish_reason=finish_reason,
            word=finish_reasons.printable(reason) if finish_reason == "truncated" else "",
            usage=self._usage,
            tool_calls=self._tool_calls.complete(),
            text=last.text,
            reasoning=last.reasoning,
            refusal=self._refusal,
        )

    def _take_choice(self, choice: dict[str, Any], text: list[str], reasoning: list[str]) -> bool:
        """One choice of an event; returns whether the model got on with what has no text."""
        delta = choice.get("delta")
        if (index := choice.get("index")) != self._choice:
            if self._choice is None:
                self._choice = index
            elif index is not None:
                return self._take_other_choice(choice, delta)
        progress = False
        if delta:
            if content := delta.get("content"):
                if isinstance(content, list):
                    _take_parts(content, text, reasoning)
                else:
                    text.append(content)
            # Most deltas are `content` alone, or that and a role.
            if len(delta) > 1 or not content:
                progress = self._take_rest(delta, reasoning)
        if (finish_reason := choice.get("finish_reason")) and finish_reasons.is_reason(finish_reason):
            self._finish_reason = finish_reasons.last_word(self._finish_reason, finish_reason)
        if "usage" in choice or "error" in choice:  # Moonshot, OpenRouter
            self._take_rest_of_event(choice)
        return progress

    def _take_other_choice(self, choice: dict[str, Any], delta: Any) -> bool:
        calls = mapping(delta).get("tool_calls") or ()
        for call in calls:
            self._tool_calls.add(call)
            self._callers.add(choice.get("index"))
        reason = choice.get("finish_reason")
        if reason and finish_reasons.is_reason(reason) and choice.get("index") in self._callers:
            self._bad_reason = self._bad_reason or (None if finish_reasons.is_good(reason) else reason)
        return bool(calls)

    def _take_rest(self, delta: dict[str, Any], reasoning: list[str]) -> bool:
        """All of a delta but its content; returns whether the model got on with what has no text."""
        # vLLM and DeepSeek say reasoning_content, OpenRouter and newer vLLM reasoning; some send both.
        if thinking := delta.get("reasoning_content") or delta.get("reasoning"):
            reasoning.append(thinking)
        if refusal := delta.get("refusal"):
            self._refusal = ((self._refusal or "") + refusal)[:_MAX_REFUSAL]  # that there is one is what counts
        calls = delta.get("tool_calls") or ()
        for call in calls:
            self._tool_calls.add(call)
        return bool(calls or refusal)

    def _take_rest_of_event(self, event: dict[str, Any]) -> None:
        """What stands beside the choices, or in one; counts of tokens in later events replace earlier ones."""
        if usage := event.get("usage") or mapping(event.get("x_groq")).get("usage"):
            self._usage = _usage(mapping(usage))
        if error := event.get("error"):
            raise faults.fault_of_error_object(error)


def _take_parts(parts: list[Any], text: list[str], reasoning: list[str]) -> None:
    """Content as a list of parts, as Mistral's models that think send it."""
    for part in parts:
        match part:
            case {"type": "text", "text": str(piece)}:
                text.append(piece)
            case {"type": "thinking", "thinking": str(piece)}:
                reasoning.append(piece)
            case {"type": "thinking", "thinking": list(inner)}:
                _take_parts(inner, reasoning, reasoning)
            case {"type": "reference"}:  # where a citation belongs: nothing to read
                pass
            case _:
                raise faults.malformed("a part of the content is of an unknown kind")


def _usage(usage: dict[str, Any]) -> Usage:
    return Usage(
        prompt_tokens=count(usage.get("prompt_tokens")) or 0,
        completion_tokens=count(usage.get("completion_tokens")) or 0,
        cached_tokens=count(mapping(usage.get("prompt_tokens_details")).get("cached_tokens")),
        reasoning_tokens=count(mapping(usage.get("completion_tokens_details")).get("reasoning_tokens")),
    )
