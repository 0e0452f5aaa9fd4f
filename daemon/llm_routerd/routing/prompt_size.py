"""How many tokens a prompt has, guessed from its text: at least, likely, at most.

No tokenizer is asked: each model has its own, and a server tells a prompt's count only when it has read it.  Letters,
words and signs are counted by kinds; how many tokens make one of a kind lies between bounds that hold for the
tokenizers of today (cl100k, o200k, Claude's, Gemma's; `tests/routing/test_prompt_size.py`).  What a model has counted
of prompts of the same kind narrows the bounds: `Gauge`.

Of a long text samples are counted, so that a prompt of a megabyte costs no more than one of a few pages.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import orjson
from msgspec import Struct

from llm_routerd.protocol.call import ANY_FACTORS, TokenFactors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# What is counted, and the tokens that one of it makes: at least, likely, at most.
_KINDS: Final = tuple(
    (re.compile(pattern), low, likely, high)
    for pattern, low, likely, high in (
        (r"[A-Za-z]+", 0.8, 1.0, 1.5),  # words
        (r"(?<=[A-Za-z]{6})[A-Za-z]{3}", 0.0, 0.4, 1.3),  # what they are longer
        (r"\d{1,3}", 0.5, 1.2, 3.0),
        (r"[!-/:-@\[-`{-~]", 0.3, 0.8, 1.2),  # signs
        (r"\n", 0.0, 0.3, 1.0),
        ("[\u00a1-\u036f]", 0.2, 0.8, 1.8),  # Latin letters beyond ASCII
        ("[\u0370-\u058f]", 0.2, 0.5, 0.9),  # Greek, Cyrillic
        ("[\u0590-\u08ff]", 0.2, 0.6, 1.2),  # Hebrew, Arabic
        ("[\u0900-\u1fff]", 0.2, 0.6, 1.8),  # scripts of India and South East Asia
        ("[\u2e80-\ua4cf\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef]", 0.4, 0.8, 1.6),  # Chinese, Japanese, Korean
        ("[\u2000-\u2e7f\ua4d0-\uabff\ue000-\uf8ff\ufb00-\ufeff\U00010000-\U0010ffff]", 0.3, 1.2, 4.0),  # the rest
    )
)
_PER_MESSAGE: Final = (2.0, 4.0, 12.0)  # what a template adds
_PER_IMAGE: Final = (0.0, 600.0, 2_000.0)
# Blanks, rulers and dots are many characters to a token.
_RUN: Final = re.compile(r"([\W_])\1+")
# As many characters of a text are counted, in samples from all of it.
_MOST_CHARS: Final = 32_768
_SAMPLES: Final = 16
# A sample's share of what is rare is off by as much.
_SAMPLED_OFF: Final = 1.15

_REMEMBERED: Final = 64
_FEWEST: Final = 8  # samples of a kind before they count
_WORTH_MEASURING: Final = 200  # tokens; of less the template is too great a part
# So far may the next prompt of a kind be beyond what was seen of it.
_BEYOND: Final = 1.25
_CREDIBLE: Final = 4.0  # a count beyond this many times the guess, or below its inverse, is none of the whole prompt


class Tokens(Struct, frozen=True):
    """How many there are: at least, likely, at most.

    Attributes:
        low, likely, high: counts; fractions, for they are guesses.
        kind: what most of the text is, as `Gauge` tells apart.
    """

    low: float
    likely: float
    high: float
    kind: int = 0

    def scaled(self, by: TokenFactors) -> Tokens:
        """Within narrower bounds, where they are."""
        low, high = max(self.low, self.likely * by.low), min(self.high, self.likely * by.high)
        return Tokens(min(low, high), min(max(self.likely, low), high), high, self.kind)


class PromptSize(Struct, frozen=True):
    """Of a conversation.

    Attributes:
        kept: what is never left out: tools, system prompts.
        messages: each of the others.
    """

    kept: Tokens
    messages: tuple[Tokens, ...]

    @property
    def whole(self) -> Tokens:
        """All of it."""
        return total((self.kept, *self.messages))

    def scaled(self, by: TokenFactors) -> PromptSize:
        """See `Tokens.scaled`."""
        return PromptSize(self.kept.scaled(by), tuple(each.scaled(by) for each in self.messages))


class Gauge:
    """What one model's tokenizer makes of prompts, learnt from what its server has counted."""

    def __init__(self) -> None:
        self._ratios: dict[int, deque[float]] = {}

    def sample(self, guess: Tokens, counted: int) -> None:
        """A whole prompt of that guess was so many tokens."""
        if guess.likely < _WORTH_MEASURING or not 1 / _CREDIBLE < counted / guess.likely < _CREDIBLE:
            return
        self._ratios.setdefault(guess.kind, deque(maxlen=_REMEMBERED)).append(counted / guess.likely)

    def factors(self, kind: int) -> TokenFactors:
        """What is to be expected of the next prompt of a kind."""
        ratios = self._ratios.get(kind, ())
        if len(ratios) < _FEWEST:
            return ANY_FACTORS
        return TokenFactors(min(ratios) / _BEYOND, max(ratios) * _BEYOND)


def size_of(messages: Iterable[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> PromptSize:
    """Of the messages and tools of a call."""
    kept = [tokens_of(orjson.dumps(tools).decode())] if tools else []
    others: list[Tokens] = []
    for message in messages:
        texts = total([*map(tokens_of, texts_of(message)), _times(_PER_IMAGE, images_in(message))])
        into = kept if message.get("role") in {"system", "developer"} else others
        into.append(total([texts, Tokens(*_PER_MESSAGE)]))
    return PromptSize(total(kept), tuple(others))


def tokens_of(text: str) -> Tokens:
    """Of one text."""
    counted, times, off = text, 1.0, 1.0
    if len(text) > _MOST_CHARS:
        step, length = len(text) / _SAMPLES, _MOST_CHARS // _SAMPLES
        counted = "".join(text[int(number * step) : int(number * step) + length] for number in range(_SAMPLES))
        times, off = len(text) / len(counted), _SAMPLED_OFF
    counted = without_runs(counted)
    numbers = [(len(each.findall(counted)), low, likely, high) for each, low, likely, high in _KINDS]
    shares = [number * likely for number, _, likely, _ in numbers]
    return Tokens(
        sum(number * low for number, low, _, _ in numbers) * times / off,
        sum(shares) * times,
        sum(number * high for number, _, _, high in numbers) * times * off,
        shares.index(max(shares)),
    )


def without_runs(text: str) -> str:
    """With one sign in the place of many that are the same."""
    return _RUN.sub(r"\1", text)


def most_tokens(chars: int) -> float:
    """No text of so many characters has more; for what is to be cheap."""
    return 1.6 * chars + _PER_MESSAGE[2]


def total(parts: Sequence[Tokens]) -> Tokens:
    """All together; of the kind of the longest."""
    kind = max(parts, key=lambda each: each.likely).kind if parts else 0
    return Tokens(
        sum(each.low for each in parts), sum(each.likely for each in parts), sum(each.high for each in parts), kind
    )


def chars_of(messages: Iterable[dict[str, Any]]) -> int:
    """How many characters of text there are."""
    return sum(len(text) for message in messages for text in texts_of(message))


def texts_of(message: dict[str, Any]) -> Iterator[str]:
    """All text of a message, arguments of calls included."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    else:
        yield from (part["text"] for part in content or () if isinstance(part.get("text"), str))
    yield from (call["function"]["arguments"] for call in message.get("tool_calls") or ())


def images_in(message: dict[str, Any]) -> int:
    """How many of its parts are no text."""
    content = message.get("content")
    return 0 if isinstance(content, str) else sum("text" not in part for part in content or ())


def _times(each: tuple[float, float, float], number: int) -> Tokens:
    low, likely, high = each
    return Tokens(low * number, likely * number, high * number)
