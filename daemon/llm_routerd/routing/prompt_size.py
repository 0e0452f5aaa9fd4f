"""How many tokens a prompt has, guessed from its text: at least, likely, at most.

No tokenizer is asked: each model has its own, and a server tells a prompt's count only when it has read it.  What a
text may have is guessed in `text_tokens`; here the parts of a conversation are put together, and what a model has
counted of prompts of the same kind narrows the guess: `Gauge`.

What a server may leave out (a schema that it takes as it is, thinking of earlier turns, tools that may not be called)
is none of `low`; what it may add (its template, images) is all in `high`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import orjson
from msgspec import Struct

from llm_routerd.protocol.call import ANY_FACTORS, TokenFactors
from llm_routerd.routing.text_tokens import MOST_CHARS, Tokens, bytes_in, tokens_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_PER_PROMPT: Final = (0.0, 10.0, 100.0)  # what a template adds
_WITH_TOOLS: Final = (0.0, 50.0, 200.0)  # and where there are any
_PER_MESSAGE: Final = (2.0, 4.0, 12.0)
_PER_CALL: Final = (2.0, 10.0, 20.0)  # of a tool, beside its name and arguments
_PER_IMAGE: Final = (0.0, 600.0, 2_000.0)
_SCHEMA_WORDS: Final = 40  # that tell of a schema which is sent in words
_BEYOND_ALL: Final = 1_000_000  # tokens that no window has
_THOUGHT: Final = "</think>"
# Of more messages than these the text of several is looked at together.
_MOST_PARTS: Final = 64

_REMEMBERED: Final = 64
_FEWEST: Final = 8  # samples of a kind before they count
WORTH_MEASURING: Final = 2_000
"""Tokens; of less the template is too great a part."""
# So far may the next prompt of a kind be beyond what was seen of it.
_BEYOND: Final = 1.25
_CREDIBLE: Final = 4.0  # a count beyond this many times the guess is none of this prompt


class PromptSize(Struct, frozen=True):
    """Of a conversation.

    Attributes:
        kept: what is never left out: tools, system prompts, a schema in words, the template's own.
        messages: each of the others.
        is_plain: it is text that every server reads all of, so that a count of it tells of the tokenizer.
    """

    kept: Tokens
    messages: tuple[Tokens, ...]
    is_plain: bool = True

    @property
    def whole(self) -> Tokens:
        """All of it."""
        return total((self.kept, *self.messages))

    def scaled(self, by: TokenFactors) -> PromptSize:
        """See `Tokens.scaled`."""
        return PromptSize(self.kept.scaled(by), tuple(each.scaled(by) for each in self.messages), self.is_plain)


class Gauge:
    """What one model's tokenizer makes of prompts, learnt from what its server has counted."""

    def __init__(self) -> None:
        self._ratios: dict[int, deque[float]] = {}

    def sample(self, guess: Tokens, counted: int) -> None:
        """A whole prompt of that guess was so many tokens.

        Fewer than it can have are none of the whole: some servers leave out what they had cached.
        """
        if counted < max(WORTH_MEASURING, guess.low) or counted > guess.likely * _CREDIBLE:
            return
        self._ratios.setdefault(guess.kind, deque(maxlen=_REMEMBERED)).append(counted / guess.likely)

    def factors(self, kind: int) -> TokenFactors:
        """What is to be expected of the next prompt of a kind."""
        ratios = self._ratios.get(kind, ())
        if len(ratios) < _FEWEST:
            return ANY_FACTORS
        return TokenFactors(min(ratios) / _BEYOND, max(ratios) * _BEYOND)


class _Part(Struct, gc=False):
    """A message as it is counted.

    Attributes:
        text: all of it.
        added: tokens of what is no text.
        share: of the text, what no server leaves out.
        is_kept: it is no message that a server leaves out where room lacks.
        tokens: once they have been counted.
    """

    text: str
    added: tuple[float, float, float]
    share: float
    is_kept: bool
    tokens: Tokens = Tokens(0.0, 0.0, 0.0)


def size_of(
    messages: Iterable[dict[str, Any]],
    tools: Sequence[dict[str, Any]] = (),
    *,
    schema: dict[str, Any] | bool | None = None,
    may_call: bool = True,
) -> PromptSize:
    """Of a call.

    Args:
        messages: OpenAI chat messages.
        tools: that go along.
        schema: of the answer, which may go along in words.
        may_call: the tools may be called.
    """
    parts = [_part_of(message) for message in messages]
    is_plain = not any(part.share < 1 or part.added[2] >= _PER_IMAGE[2] for part in parts)
    if tools:
        parts.append(_Part(orjson.dumps(tools).decode(), _WITH_TOOLS, float(may_call), is_kept=True))
    if schema is not None:
        parts.append(_Part(orjson.dumps(schema).decode(), (0.0, _SCHEMA_WORDS, _SCHEMA_WORDS), 0.0, is_kept=True))
    _count(parts)
    kept = [Tokens(*_PER_PROMPT, 0, _PER_PROMPT[2]), *(part.tokens for part in parts if part.is_kept)]
    others = tuple(part.tokens for part in parts if not part.is_kept)
    return PromptSize(total(kept), others, is_plain and may_call and schema is None)


def most_tokens(
    messages: Iterable[dict[str, Any]],
    tools: Sequence[dict[str, Any]] = (),
    *,
    schema: dict[str, Any] | bool | None = None,
) -> float:
    """No prompt of this has more, by whatever encoding of bytes; cheap."""
    most = _PER_PROMPT[2]
    for message in messages:
        content = message.get("content")
        if isinstance(content, str) and "tool_calls" not in message:
            most += (bytes_in(content) if most < _BEYOND_ALL else 4 * len(content)) + _PER_MESSAGE[2]
        else:
            most += sum(map(bytes_in, texts_of(message))) + _added_to(message)[2]
        most += len(message.get("tool_call_id") or "") + len(message.get("name") or "")
    if tools:
        most += len(orjson.dumps(tools)) + _WITH_TOOLS[2]
    if schema is not None:
        most += len(orjson.dumps(schema)) + _SCHEMA_WORDS
    return most


def total(parts: Iterable[Tokens]) -> Tokens:
    """All together; of the kind of the longest."""
    low = likely = high = unread = most = 0.0
    kind = 0
    for each in parts:
        low, likely, high, unread = low + each.low, likely + each.likely, high + each.high, unread + each.unread
        if each.likely > most:
            most, kind = each.likely, each.kind
    return Tokens(low, likely, high, kind, unread)


def chars_of(messages: Iterable[dict[str, Any]]) -> int:
    """How many characters of text there are."""
    return sum(len(text) for message in messages for text in texts_of(message))


def texts_of(message: dict[str, Any]) -> Iterator[str]:
    """All text of a message, names and arguments of calls included."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    else:
        yield from (part["text"] for part in content or () if isinstance(part.get("text"), str))
    for call in message.get("tool_calls") or ():
        yield from (each for each in (call["function"]["name"], call["function"].get("arguments")) if each)


def images_in(message: dict[str, Any]) -> int:
    """How many of its parts are no text."""
    content = message.get("content")
    return 0 if isinstance(content, str) else sum("text" not in part for part in content or ())


def _added_to(message: dict[str, Any]) -> tuple[float, float, float]:
    """Tokens of a message beside its text."""
    calls = message.get("tool_calls") or ()
    images = images_in(message)
    if not calls and not images:
        return _PER_MESSAGE
    low, likely, high = (
        per_message + len(calls) * per_call + images * per_image
        for per_message, per_call, per_image in zip(_PER_MESSAGE, _PER_CALL, _PER_IMAGE, strict=True)
    )
    return low, likely, high + sum(len(call.get("id") or "") for call in calls)


def _part_of(message: dict[str, Any]) -> _Part:
    content, role = message.get("content"), message.get("role")
    if isinstance(content, str) and "tool_calls" not in message:
        text, added = content, _PER_MESSAGE
    else:
        text, added = " ".join(texts_of(message)), _added_to(message)
    share = 1.0
    if role == "assistant" and (at := text.rfind(_THOUGHT)) >= 0:  # templates leave thinking out
        share = (len(text) - at - len(_THOUGHT)) / len(text)
    return _Part(text, added, share, is_kept=role in {"system", "developer"})


def _count(parts: list[_Part]) -> None:
    """Count the tokens of all parts: of long ones by samples, of very many together, each by its share of the text."""
    chars = sum(len(part.text) for part in parts)
    each = -(-len(parts) // _MOST_PARTS)
    for start in range(0, len(parts), max(1, each)):
        group = parts[start : start + each]
        text = group[0].text if each == 1 else " ".join([part.text for part in group])
        budget = len(text) if chars <= MOST_CHARS else max(256, MOST_CHARS * len(text) // chars)
        counted = tokens_of(text, most_chars=budget)
        for part in group:
            by = len(part.text) / len(text) if text else 0.0
            low, likely, high = part.added
            part.tokens = Tokens(
                counted.low * by * part.share + low,
                counted.likely * by + likely,
                counted.high * by + high,
                counted.kind,
                high,
            )
