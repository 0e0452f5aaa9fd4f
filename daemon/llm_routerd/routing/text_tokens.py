"""How many tokens a text has, guessed from its characters: at least, likely, at most.

Letters, words and signs are counted by kinds; how many tokens make one of a kind lies between bounds that hold for the
tokenizers of today (cl100k, o200k, Claude's; `tests/routing/test_text_tokens.py`).  Where a kind has no bound of its
own, that of every byte-level encoding holds: no text has more tokens than bytes in UTF-8.

Of a long text samples are counted, so that one of a megabyte costs no more than one of a few pages.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from typing import TYPE_CHECKING, Final, TypeAlias

from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_routerd.protocol.call import TokenFactors

_ACCENTED: Final = "\u00aa\u00b5\u00ba\u00c0-\u024f\u0300-\u036f\u1e00-\u1eff"
_LETTER: Final = f"[A-Za-z{_ACCENTED}]"

# What is counted, and the tokens that one of it makes: at least, likely, at most.
_Bounds: TypeAlias = tuple[float, float, float]


def _words(letter: str) -> tuple[tuple[re.Pattern[str], _Bounds], ...]:
    return (
        (re.compile(f"{letter}+"), (0.8, 1.0, 1.5)),
        (re.compile(f"(?<={letter}{{3}}){letter}{{2}}"), (0.0, 0.2, 1.0)),  # what they are longer
        (re.compile(r"\d{1,3}"), (0.5, 1.2, 3.0)),
    )


_RUNS_OF_ASCII: Final = _words("[A-Za-z]")
_RUNS: Final = (
    *_words(_LETTER),  # one whatever letters it has, but it may part at each that is not ASCII
    (re.compile(f"[{_ACCENTED}]+"), (0.0, 0.3, 1.5)),
    (re.compile(" (?=[\u0530-\u058f\u0700-\U0010ffff])"), (0.0, 0.0, 1.0)),  # where letters are bytes, so are blanks
)
_NONE: Final = (0.0, 0.0, 0.0)
_SIGN: Final = (0.3, 0.8, 1.2)
_ACCENT: Final = (0.0, 0.4, 1.8)
_LATIN_SIGN: Final = (0.2, 0.8, 2.0)
_CYRILLIC_MORE: Final = (0.2, 0.6, 2.2)  # what other languages than Russian add to it, and Armenian
_ARABIC: Final = (0.2, 0.6, 1.6)  # and Hebrew
_INDIA: Final = (0.2, 0.6, 2.6)
_GREEK: Final = (0.2, 0.6, 1.5)
_SOUTH_EAST: Final = (0.2, 0.7, 3.1)  # Thai, Burmese, Georgian, Khmer
_CHINESE: Final = (0.3, 0.9, 2.0)
_JAPANESE: Final = (0.3, 0.8, 1.6)  # and Korean
_OTHER: Final = (0.3, 1.4, 4.0)
# By the first character of each range.
_CHARACTERS: Final[tuple[tuple[str, _Bounds], ...]] = (
    ("\0", _NONE), ("\n", (0.0, 0.3, 1.0)), ("\v", _NONE), ("!", _SIGN), ("0", _NONE), (":", _SIGN), ("A", _NONE),
    ("[", _SIGN), ("a", _NONE), ("{", _SIGN), ("\x7f", _LATIN_SIGN), ("\xaa", _ACCENT), ("\xab", _LATIN_SIGN),
    ("\xb5", _ACCENT), ("\xb6", _LATIN_SIGN), ("\xba", _ACCENT), ("\xbb", _LATIN_SIGN), ("\xc0", _ACCENT),
    ("\u0250", _LATIN_SIGN), ("\u0300", _ACCENT), ("\u0370", _GREEK), ("\u0400", _CYRILLIC_MORE),
    ("\u0410", (0.2, 0.5, 0.9)), ("\u0450", _CYRILLIC_MORE), ("\u0590", _ARABIC), ("\u0700", _OTHER),
    ("\u0750", _ARABIC), ("\u0780", _OTHER), ("\u08a0", _ARABIC), ("\u0900", _INDIA), ("\u0e00", _SOUTH_EAST),
    ("\u0e80", _OTHER), ("\u1000", _SOUTH_EAST), ("\u1100", _OTHER), ("\u1780", _SOUTH_EAST), ("\u1800", _OTHER),
    ("\u1e00", _ACCENT), ("\u1f00", _GREEK), ("\u2000", (0.2, 0.8, 1.5)), ("\u2070", _OTHER), ("\u2e80", _CHINESE),
    ("\u3000", _JAPANESE), ("\u3100", _CHINESE), ("\ua4d0", _OTHER), ("\uac00", _JAPANESE), ("\ud800", _OTHER),
    ("\uf900", _CHINESE), ("\ufb00", _OTHER), ("\uff00", _JAPANESE), ("\ufff0", _OTHER),
)  # fmt: skip
_STARTS: Final = [start for start, _ in _CHARACTERS]
# Blanks, rulers and dots are many characters to a token.
_RUN: Final = re.compile(r"([\W_])\1+")
MOST_CHARS: Final = 32_768
"""As many characters of a text are counted, in samples from all of it."""
_SAMPLES: Final = 16
# A sample's share of what is rare is off by as much.
_SAMPLED_OFF: Final = 1.15
# Some tokenizers bring a text into a normal form before all else, in which a few letters are two.
_NORMALISED: Final = 1.1
_VERY_LONG: Final = 1_000_000


class Tokens(Struct, frozen=True, gc=False):
    """How many there are: at least, likely, at most.

    Attributes:
        low, likely, high: counts; fractions, for they are guesses.
        kind: what most of the text is, as `Gauge` tells apart.
        unread: of `high`, what is no text (a template's own words, images), and so is not learnt from counts.
    """

    low: float
    likely: float
    high: float
    kind: int = 0
    unread: float = 0.0

    def scaled(self, by: TokenFactors) -> Tokens:
        """With what was counted of other prompts.

        It makes `high` less and never `low` more: what lies below the first guess may be a text that is like none
        before, and to refuse a prompt that would have fitted is worse than to ask in vain.
        """
        high = max(self.low, min(self.high, self.likely * by.high + self.unread))
        likely = min(max(self.likely * max(by.low, 1.0), self.low), high)
        return Tokens(self.low, likely, high, self.kind, self.unread)


def tokens_of(text: str, *, most_chars: int = MOST_CHARS) -> Tokens:
    """Of one text; of a longer one than `most_chars` samples are counted."""
    counted, times, off = text, 1.0, 1.0
    if len(text) > most_chars:
        samples = max(1, min(_SAMPLES, most_chars // 128))
        step, length = len(text) / samples, most_chars // samples
        counted = "".join(text[int(number * step) : int(number * step) + length] for number in range(samples))
        times, off = len(text) / len(counted), _SAMPLED_OFF
    counted = without_runs(counted)
    low = likely = high = most = 0.0
    kind = 0
    for number, of_one, its_kind in _kinds_in(counted):
        low, likely, high = low + number * of_one[0], likely + number * of_one[1], high + number * of_one[2]
        if number * of_one[1] > most:
            most, kind = number * of_one[1], its_kind
    high = max(likely, min(high, bytes_in(counted)))
    return Tokens(low * times / off, likely * times, high * times * off, kind)


def _kinds_in(text: str) -> Iterator[tuple[int, _Bounds, int]]:
    """How often each kind is in a text, what one of it makes, and its number."""
    runs = _RUNS_OF_ASCII if text.isascii() else _RUNS
    for kind, (pattern, of_one) in enumerate(runs):
        yield len(pattern.findall(text)), of_one, kind
    numbers: dict[int, int] = {}
    for character, number in Counter(text).items():
        at = bisect_right(_STARTS, character) - 1
        numbers[at] = numbers.get(at, 0) + number
    for at, number in numbers.items():
        yield number, _CHARACTERS[at][1], len(_RUNS) + at


def bytes_in(text: str) -> int:
    """In UTF-8, lone surrogates included: more tokens than that no text has; of a very long one, at most."""
    if len(text) > _VERY_LONG and not text.isascii():
        return 4 * len(text)
    return len(text) if text.isascii() else int(len(text.encode("utf-8", "surrogatepass")) * _NORMALISED)


def without_runs(text: str) -> str:
    """With one sign in the place of many that are the same."""
    return _RUN.sub(r"\1", text)
