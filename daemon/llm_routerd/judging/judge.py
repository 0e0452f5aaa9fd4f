"""Judges one attempt's answer while it arrives, and ends it at the first token that decides against it.

In order of what is asked:

- With a schema the answer must be one JSON value (`jsonguard`) that satisfies it; refusals are not looked
  for, since a reply that refuses in words is no JSON, and one that is valid is an answer.
- Without one, any text that is not empty is an answer unless it is a refusal (`refusal`).
- Where tools were offered, text may only accompany the calls: it is judged at the end, and only if none came,
  neither apart from it nor within it (`leaked_calls`).  Where a call was demanded, no text is an answer.

Thinking at the start of the text (`thinking`) is passed on as reasoning and is no part of the answer.
An answer cut off at its length limit is rejected even where what came is complete: the model had more to say; but for
text of a request that accepts it.  So is one that the server did not call whole, and one that promises calls of tools
and has none.

Words.  `feed` takes a delta's text, and `reason` what the backend told apart as thinking; `release` gives up holding
text back; `finish` takes the end.  `Released` may be shown, and counts for nothing yet.  The *verdict* is `Accepted`,
with the answer, or a `Rejection`; a `Rejection` while text comes is the verdict ahead of time.  An *objection* is one
to the text alone, and becomes the verdict unless calls of tools come after it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from llm_routerd.judging.calls import NONE_MADE, NONE_OFFERED, NONE_SENT, judge_calls
from llm_routerd.judging.json_text import UNCERTAIN, certain_json
from llm_routerd.judging.jsonguard import JsonGuard
from llm_routerd.judging.leaked_calls import UNSURE, leaked_calls
from llm_routerd.judging.refusal import REFUSAL
from llm_routerd.judging.thinking import ThinkSplitter, drop_unopened_thinking
from llm_routerd.judging.verdicts import (
    INVALID_UNICODE,
    answer_of,
    invalid_json,
    is_encodable,
    judge_content,
    judge_ending,
    judge_json,
)
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import Answer, Outcome, Rejection, ToolCall
from llm_routerd.protocol.request import StreamMode

if TYPE_CHECKING:
    from llm_routerd.jsonschema.compiled import AnswerSchema
    from llm_routerd.judging.calls import CallRules
    from llm_routerd.judging.refusal import RefusalDetector, RefusalWatch
    from llm_routerd.protocol.call import Finish

MAX_ANSWER_CHARS = 4_194_304
"""Longest text of one attempt, thinking included; beyond it the stream is taken to be endless."""

PROBE_CHARS = 200
"""Most characters that `probe` holds back."""

MAX_BLANKS = 32
"""White space after a whole JSON value beyond which no more is waited for: models held to a format go on with it for
ever (Ollama, llama.cpp)."""

_MARKUP_ALONE = re.compile(r"(?:\s|<\|[a-z_]{1,24}\|>|</?s>|<(?:eos|end_of_turn)>)*+")
_EARLY_LENGTH = Rejection(code=AttemptCode.LENGTH, reason="an endless stream", early=True)
_EARLY_UNICODE = replace(INVALID_UNICODE, early=True)


class Released(Struct):
    """What may be shown of an attempt that is not over; both are often empty.  Reasoning comes before the text."""

    text: str
    reasoning: str


class Accepted(Struct, frozen=True, kw_only=True):
    """The verdict that an attempt is an answer; its counterpart is the protocol's `Rejection`.

    Attributes:
        answer: its `raw_text` is the text without thinking; `content` is the same, or the parsed JSON.
        tail: what was held back or came last and has not been released.
    """

    answer: Answer
    tail: Released


EMPTY = Released("", "")
"""Nothing to show; shared, since most feeds of a held answer release nothing."""


class Judge:
    """Judges one attempt, whose state it is: feed it the text of each delta, then call `finish` once.

    After a rejection it must not be fed further.
    """

    def __init__(
        self,
        *,
        schema: AnswerSchema | None,
        refusals: RefusalDetector | None,
        mode: StreamMode,
        has_tools: bool = False,
        tool_names: frozenset[str] | None = None,
        demanded: frozenset[str] = frozenset(),
        accepts_length: bool = False,
        rules: CallRules | None = None,
    ) -> None:
        """Begin an attempt.

        Args:
            schema: what the answer must satisfy; None: plain text is wanted.
            refusals: how to recognise a refusal; None: not at all but for structured ones.
            mode: how early text is released.
            has_tools: tools were offered, so that calls of them are an answer.
            tool_names: the tools offered, to reject calls of others; None: any name will do.
            demanded: the tools of which one must be called; empty: the model may answer in text.
            accepts_length: text that was cut off at the limit of tokens is an answer, too.
            rules: what calls are held to in a turn of a run; without `has_tools`, in its last.
        """
        self._schema = schema
        self._refusals = refusals
        self._has_tools = has_tools
        self._tool_names = tool_names
        self._demanded = demanded
        self._accepts_length = accepts_length
        self._rules = rules
        self.shows = mode is not StreamMode.OFF  # whether text is released at all
        # Both are dropped when they have nothing more to say: a judged answer passes at 0.1 µs a token instead of 0.2.
        self._thinking: ThinkSplitter | None = ThinkSplitter()
        self._watch: JsonGuard | RefusalWatch | None = None
        if schema is not None:
            self._watch = JsonGuard(schema.shape)
        elif refusals is not None:
            self._watch = refusals.watch()
        self._objection: Rejection | None = None  # to the text, where tool calls may still come
        self._is_holding = mode is StreamMode.PROBE and self._watch is not None
        self._held: list[str] = []
        self._held_chars = 0
        self._parts: list[str] = []
        self._chars = 0

    @property
    def text(self) -> str:
        """The answer as far as it has come, without its thinking."""
        return "".join(self._parts)

    def feed(self, text: str) -> Released | Rejection:
        """Take the text of one delta; return what may be shown now, or why the attempt is over."""
        self._chars += len(text)
        if self._chars > MAX_ANSWER_CHARS:
            return _EARLY_LENGTH
        if not text.isascii() and not is_encodable(text):
            return _EARLY_UNICODE
        if self._thinking is not None:
            return self._feed_opening(text, self._thinking)
        if self._watch is not None or self._is_holding:
            return self._feed_answer(text, "")
        self._parts.append(text)
        return Released(text, "") if self.shows else EMPTY

    def reason(self, reasoning: str) -> Rejection | None:
        """Take the reasoning of one delta, which the backend had told apart; return why the attempt is over, if it is.

        It is no part of the answer, and counts as length all the same: a model may think without end.
        """
        self._chars += len(reasoning)
        if self._chars > MAX_ANSWER_CHARS:
            return _EARLY_LENGTH
        return None if reasoning.isascii() or is_encodable(reasoning) else _EARLY_UNICODE

    @property
    def only_blanks_follow(self) -> bool:
        """The JSON value is whole, and so much white space has come after it that nothing else will."""
        return type(self._watch) is JsonGuard and self._watch.blanks > MAX_BLANKS and not self._has_tools

    @property
    def holding(self) -> bool:
        """Text is being held back until its opening has been judged; after 400 ms call `release`."""
        return bool(self._held)

    def release(self) -> Released:
        """Stop holding text back; return what was held."""
        self._is_holding = False
        if not self._held:
            return EMPTY
        held = "".join(self._held)
        self._held.clear()
        return Released(held, "")

    def finish(self, finish: Finish, *, validate: bool = True) -> Accepted | Rejection:
        """Take the backend's terminal event; return the final verdict.

        With `validate=False` it is final but for the schema, which the caller holds the content to himself.
        """
        rejection = judge_ending(finish)
        if rejection is not None and not self._is_long_enough(finish):
            return rejection
        came_in_pieces = self._chars or finish.reasoning
        may_call = self._has_tools or self._rules is not None
        if not (came_in_pieces or may_call or finish.tool_calls or finish.finish_reason == "tool_calls"):
            verdict = self._judge_at_once(finish, validate=validate)
            if verdict is not None:
                return verdict
        return self._judge_to_the_end(finish, validate=validate)

    def _is_long_enough(self, finish: Finish) -> bool:
        """Whether it was cut off, and that is all that is wrong with it; a call of a tool is whole or none."""
        return (
            self._accepts_length and finish.finish_reason == "length" and not finish.tool_calls and not finish.refusal
        )

    def _judge_to_the_end(self, finish: Finish, *, validate: bool) -> Accepted | Rejection:
        """Judge an answer that came in pieces, or whose whole text needs a closer look."""
        tail = self._feed_last(finish)
        if isinstance(tail, Rejection):
            return replace(tail, early=False)
        if finish.tool_calls and not self._has_tools:  # nobody asked for them: only the text counts
            finish = replace(finish, tool_calls=(), finish_reason="stop")
            if self._rules is not None and _MARKUP_ALONE.fullmatch(drop_unopened_thinking(self.text)):
                return NONE_OFFERED
        if finish.tool_calls:
            text = drop_unopened_thinking(self.text)
            verdict = self._judge_calls(finish.tool_calls, text, finish)
        else:
            verdict = self._judge_without_calls(finish, validate=validate)
        if isinstance(verdict, Rejection):
            return replace(verdict, early=False) if verdict.early else verdict
        return Accepted(answer=verdict, tail=tail)

    def _judge_at_once(self, finish: Finish, *, validate: bool) -> Accepted | Rejection | None:
        """Judge a whole answer that came at once the short way, which says the same; None: it takes the long one.

        That is JSON on which validation says all that the guard could, in 4 µs instead of 26, or text that cannot
        hold thinking, in half of the time.
        """
        text = finish.text
        verdict: Answer | Rejection
        if len(text) > MAX_ANSWER_CHARS:
            return None
        if self._schema is not None:
            content = certain_json(text)
            if content is UNCERTAIN:
                return None
            verdict = judge_content(content, text, self._schema if validate else None, finish)
        elif "<" in text or "THINK]" in text or not text.strip() or not is_encodable(text):
            return None
        elif self._refusals is not None and self._refusals.is_refusal(text):
            return REFUSAL
        else:
            verdict = answer_of(text, text, finish)
        self._parts.append(text)
        if isinstance(verdict, Rejection):
            return verdict
        return Accepted(answer=verdict, tail=Released(text, "") if self.shows else EMPTY)

    def _feed_opening(self, text: str, thinking: ThinkSplitter) -> Released | Rejection:
        """Take text while it may still be thinking."""
        text, reasoning = thinking.feed(text)
        if thinking.settled:
            self._thinking = None
        if text:
            return self._feed_answer(text, reasoning)
        return Released("", reasoning) if reasoning and self.shows else EMPTY

    def _feed_answer(self, text: str, reasoning: str) -> Released | Rejection:
        """Take text of the answer while it is watched or held back."""
        self._parts.append(text)
        if self._watch is not None:
            objection = self._watch.feed(text)
            if objection is not None and not self._has_tools:
                return objection
            if objection is not None or (not isinstance(self._watch, JsonGuard) and self._watch.done):
                self._objection = objection
                self._watch = None
        if not self.shows:
            return EMPTY
        if self._is_holding:
            self._held.append(text)
            self._held_chars += len(text)
            text = self.release().text if self._held_chars >= PROBE_CHARS or self._is_opening_judged() else ""
        return Released(text, reasoning) if text or reasoning else EMPTY

    def _is_opening_judged(self) -> bool:
        return self._objection is None if self._watch is None else self._watch.judged

    def _feed_last(self, finish: Finish) -> Released | Rejection:
        """Take what came with the terminal event; return all that has not been released."""
        rejection = self.reason(finish.reasoning)
        if rejection is not None:
            return rejection
        last = self.feed(finish.text)
        if isinstance(last, Rejection):
            return last
        text, reasoning = self._thinking.finish() if self._thinking is not None else ("", "")
        rest = self._feed_answer(text, reasoning) if text or reasoning else EMPTY
        if isinstance(rest, Rejection):
            return rest
        if not self.shows:
            return EMPTY
        text = last.text + rest.text + self.release().text
        return Released(text, finish.reasoning + last.reasoning + rest.reasoning)

    def _judge_without_calls(self, finish: Finish, *, validate: bool) -> Answer | Rejection:
        """Judge an answer whose server told no calls of tools apart from its text."""
        verdict = self._judge_text(finish, validate=validate)
        is_json_answer = self._schema is not None and isinstance(verdict, Answer) and not self._demanded
        if self._has_tools and self._tool_names and not is_json_answer:
            leaked = leaked_calls(drop_unopened_thinking(self.text), self._tool_names)
            if leaked is UNSURE:
                return invalid_json(UNSURE)
            if isinstance(leaked, tuple):
                return self._judge_calls(leaked[1], leaked[0], replace(finish, finish_reason="tool_calls"))
        if not is_json_answer and self._calls_unoffered():
            return NONE_OFFERED
        if finish.finish_reason == "tool_calls" and isinstance(verdict, Answer):
            return NONE_SENT
        if self._demanded and (isinstance(verdict, Answer) or verdict.outcome is Outcome.INVALID):
            return NONE_MADE
        return verdict

    def _calls_unoffered(self) -> bool:
        """Whether a call stands in the text of a run's last turn.

        Servers that are told to forbid calls do not look for them either (llama.cpp, Ollama without tools).
        """
        if self._rules is None or self._has_tools:
            return False
        return leaked_calls(drop_unopened_thinking(self.text), self._rules.parameters.keys()) is not None

    def _judge_calls(self, calls: tuple[ToolCall, ...], text: str, finish: Finish) -> Answer | Rejection:
        """Judge calls of tools; the text beside them may be anything."""
        judged = judge_calls(calls, tool_names=self._tool_names, demanded=self._demanded, rules=self._rules)
        return judged if isinstance(judged, Rejection) else answer_of(text, text, finish, judged)

    def _judge_text(self, finish: Finish, *, validate: bool) -> Answer | Rejection:
        """Judge the whole text, as far as that has not been done on the way."""
        text = "".join(self._parts)
        objection = self._objection or (self._watch.finish() if self._watch is not None else None)
        if self._schema is not None:
            return objection or judge_json(text, self._schema if validate else None, finish)
        answer = drop_unopened_thinking(text)
        if _MARKUP_ALONE.fullmatch(answer):
            return Rejection(code=AttemptCode.UPSTREAM, reason="empty answer", retryable=True)
        if len(answer) != len(text) and self._refusals is not None:
            # What was watched was thinking; the answer only comes after it.
            objection = REFUSAL if self._refusals.is_refusal(answer) else None
        return objection or answer_of(answer, answer, finish)
