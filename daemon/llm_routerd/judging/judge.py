"""Judges one attempt's answer while it arrives, and ends it at the first token that decides against it.

In order of what is asked:

- With a schema the answer must be one JSON value (`jsonguard`) that satisfies it; refusals are not looked
  for, since a reply that refuses in words is no JSON, and one that is valid is an answer.
- Without one, any text that is not empty is an answer unless it is a refusal (`refusal`).
- Where tools were offered, text may only accompany the calls: it is judged at the end, and only if none came,
  neither apart from it nor within it (`leaked_calls`).  Where a call was demanded, no text is an answer.

Thinking at the start of the text (`thinking`) is passed on as reasoning and is no part of the answer.
An answer cut off at its length limit is rejected even where what came is complete: the model had more to say.
So is one that the server did not call whole, and one that promises calls of tools and has none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

import orjson
from msgspec import Struct
from msgspec.structs import replace

from llm_routerd.judging.json_text import UNCERTAIN, certain_json, json_body
from llm_routerd.judging.jsonguard import JsonGuard
from llm_routerd.judging.leaked_calls import UNSURE, leaked_calls
from llm_routerd.judging.thinking import ThinkSplitter, drop_unopened_thinking
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.numbers import carries_numbers
from llm_routerd.protocol.outcome import Answer, Outcome, Rejection, ToolCall, Usage
from llm_routerd.protocol.request import StreamMode

if TYPE_CHECKING:
    from llm_routerd.jsonschema.shape import Shape
    from llm_routerd.judging.refusal import RefusalDetector, RefusalWatch
    from llm_routerd.protocol.call import Finish

MAX_ANSWER_CHARS = 4_194_304
"""Longest text of one attempt, thinking included; beyond it the stream is taken to be endless."""

PROBE_CHARS = 200
"""Most characters that `probe` holds back."""

MAX_BLANKS = 32
"""White space after a whole JSON value beyond which no more is waited for: models held to a format go on with it for
ever (Ollama, llama.cpp)."""

_NOT_JSON: Any = object()
_MARKUP_ALONE = re.compile(r"(?:\s|<\|[a-z_]{1,24}\|>|</?s>|<(?:eos|end_of_turn)>)*+")
_REFUSING_REASONS = frozenset({"refusal", "content_filter"})
_WHOLE = frozenset({"stop", "tool_calls"})
_NO_CALLS = Rejection(
    code=AttemptCode.UPSTREAM, reason="the server promises calls of tools and sends none", retryable=True
)
_NO_TOOL_CALL = Rejection(
    code=AttemptCode.NO_TOOL_CALL, reason="`tool_choice` demands a call of a tool, and the model made none"
)
_OTHER_TOOL = Rejection(
    code=AttemptCode.NO_TOOL_CALL, reason="`tool_choice` demands a call of one tool, and the model called another"
)
_REFUSAL = Rejection(code=AttemptCode.REFUSAL, reason="the answer refuses")
_EARLY_LENGTH = Rejection(code=AttemptCode.LENGTH, reason="an endless stream", early=True)
_EARLY_UNICODE = Rejection(code=AttemptCode.UPSTREAM, reason="invalid Unicode", retryable=True, early=True)


class JudgedSchema(Protocol):
    """What judging needs of `core.schema.AnswerSchema`."""

    @property
    def raw(self) -> dict[str, Any] | bool:
        """The schema as it was given."""

    @property
    def shape(self) -> Shape:
        """Its certain limits, for the guard."""

    def validate(self, instance: Any) -> str | None:
        """Return None for a valid instance, else one line that names the path."""


class Released(Struct):
    """What may be shown of an attempt by now; both are often empty.  Reasoning comes before the text."""

    text: str
    reasoning: str


class Accepted(Struct, frozen=True, kw_only=True):
    """An answer that stands.

    Attributes:
        answer: its `raw_text` is the text without thinking; `content` is the same, or the parsed JSON.
        tail: what was held back or came last and has not been released.
    """

    answer: Answer
    tail: Released


EMPTY = Released("", "")
"""Nothing to show; shared, since most feeds of a held answer release nothing."""


class Judge:
    """Judges one attempt: feed it the text of each delta, then call `finish` once.

    After a rejection it must not be fed further.
    """

    def __init__(
        self,
        *,
        schema: JudgedSchema | None,
        refusals: RefusalDetector | None,
        mode: StreamMode,
        has_tools: bool = False,
        tool_names: frozenset[str] | None = None,
        demanded: frozenset[str] = frozenset(),
    ) -> None:
        """Begin an attempt.

        Args:
            schema: what the answer must satisfy; None: plain text is wanted.
            refusals: how to recognise a refusal; None: not at all but for structured ones.
            mode: how early text is released.
            has_tools: tools were offered, so that calls of them are an answer.
            tool_names: the tools offered, to reject calls of others; None: any name will do.
            demanded: the tools of which one must be called; empty: the model may answer in text.
        """
        self._schema = schema
        self._refusals = refusals
        self._has_tools = has_tools
        self._tool_names = tool_names
        self._demanded = demanded
        self.shows = mode is not StreamMode.OFF  # whether text is released at all
        # Both are dropped when they have nothing more to say, so that a judged answer passes with no work.
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
        if finish.refusal is not None or finish.finish_reason in _REFUSING_REASONS:
            return Rejection(code=AttemptCode.REFUSAL, reason="the backend reports a refusal")
        if finish.finish_reason not in _WHOLE:
            return _not_whole(finish)
        came_in_pieces = self._chars or finish.reasoning
        if not (came_in_pieces or self._has_tools or finish.tool_calls or finish.finish_reason == "tool_calls"):
            verdict = self._judge_at_once(finish, validate=validate)
            if verdict is not None:
                return verdict
        return self._judge_to_the_end(finish, validate=validate)

    def _judge_to_the_end(self, finish: Finish, *, validate: bool) -> Accepted | Rejection:
        """Judge an answer that came in pieces, or whose whole text needs a closer look."""
        tail = self._feed_last(finish)
        if isinstance(tail, Rejection):
            return replace(tail, early=False)
        if finish.tool_calls and not self._has_tools:  # nobody asked for them: only the text counts
            finish = replace(finish, tool_calls=(), finish_reason="stop")
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

        That is JSON on which validation says all that the guard could, or text that cannot hold thinking.
        """
        text = finish.text
        verdict: Answer | Rejection
        if len(text) > MAX_ANSWER_CHARS:
            return None
        if self._schema is not None:
            content = certain_json(text)
            if content is UNCERTAIN:
                return None
            verdict = _validated(content, text, self._schema if validate else None, finish)
        elif "<" in text or "THINK]" in text or not text.strip() or not is_encodable(text):
            return None
        elif self._refusals is not None and self._refusals.is_refusal(text):
            return replace(_REFUSAL, early=False)
        else:
            verdict = _answer(text, text, finish)
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
        objection = self.reason(finish.reasoning)
        if objection is not None:
            return objection
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
                return _invalid_json(UNSURE)
            if isinstance(leaked, tuple):
                return self._judge_calls(leaked[1], leaked[0], replace(finish, finish_reason="tool_calls"))
        if finish.finish_reason == "tool_calls" and isinstance(verdict, Answer):
            return _NO_CALLS
        if self._demanded and (isinstance(verdict, Answer) or verdict.outcome is Outcome.INVALID):
            return _NO_TOOL_CALL
        return verdict

    def _judge_calls(self, calls: tuple[ToolCall, ...], text: str, finish: Finish) -> Answer | Rejection:
        """Judge calls of tools; the text beside them may be anything."""
        whole_calls = []
        for call in calls:
            if not is_encodable(call.id + call.name):
                return _EARLY_UNICODE
            if self._tool_names is not None and call.name not in self._tool_names:
                return _invalid_json("a call of a tool that was not offered")
            if self._demanded and call.name not in self._demanded:
                return _OTHER_TOOL
            arguments = call.arguments if call.arguments.strip() else "{}"
            if not isinstance(_parse(arguments), dict):
                return _invalid_json("the arguments of a tool call are no JSON object")
            whole_calls.append(ToolCall.of(id=call.id, name=call.name, arguments=arguments))
        return _answer(text, text, finish, tuple(whole_calls))

    def _judge_text(self, finish: Finish, *, validate: bool) -> Answer | Rejection:
        """Judge the whole text, as far as that has not been done on the way."""
        text = "".join(self._parts)
        objection = self._objection or (self._watch.finish() if self._watch is not None else None)
        if self._schema is not None:
            return objection or _judge_json(text, self._schema if validate else None, finish)
        answer = drop_unopened_thinking(text)
        if _MARKUP_ALONE.fullmatch(answer):
            return Rejection(code=AttemptCode.UPSTREAM, reason="empty answer", retryable=True)
        if len(answer) != len(text) and self._refusals is not None:
            # What was watched was thinking; the answer only comes after it.
            objection = _REFUSAL if self._refusals.is_refusal(answer) else None
        return objection or _answer(answer, answer, finish)


def is_encodable(text: str) -> bool:
    """Tell whether a text can be written as UTF-8: it cannot where it holds lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _answer(content: Any, raw_text: str, finish: Finish, tool_calls: tuple[ToolCall, ...] = ()) -> Answer:
    return Answer(
        content=content,
        raw_text=raw_text,
        finish_reason=finish.finish_reason,
        tool_calls=tool_calls,
        usage=finish.usage or Usage(),
    )


def _judge_json(text: str, schema: JudgedSchema | None, finish: Finish) -> Answer | Rejection:
    """Validate a text that the guard has accepted."""
    body = json_body(text)
    content = _parse(body)
    if content is _NOT_JSON:
        return _invalid_json("not JSON")
    if not carries_numbers(body):
        return _invalid_json("a number with more digits than can be carried")
    return _validated(content, text, schema, finish)


def _validated(content: Any, text: str, schema: JudgedSchema | None, finish: Finish) -> Answer | Rejection:
    problem = None if schema is None else schema.validate(content)
    if problem is not None:
        return Rejection(code=AttemptCode.SCHEMA_VIOLATION, reason=problem)
    return _answer(content, text, finish)


def _parse(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return _NOT_JSON


def _not_whole(finish: Finish) -> Rejection:
    """The verdict on an answer that its server did not call whole."""
    match finish.finish_reason:
        case "length":
            return Rejection(code=AttemptCode.LENGTH, reason="cut off at the limit of tokens")
        case "context_window":
            return Rejection(code=AttemptCode.CONTEXT_WINDOW, reason="cut off where the model's context window ends")
        case "not_generated":
            return Rejection(code=AttemptCode.UPSTREAM, reason="the server saw nothing to answer in these messages")
        case _:
            reason = f"the server ended the answer with {finish.word or 'an unknown reason'}"
            return Rejection(code=AttemptCode.TRUNCATED, reason=reason, retryable=True)


def _invalid_json(reason: str) -> Rejection:
    return Rejection(code=AttemptCode.INVALID_JSON, reason=reason)
