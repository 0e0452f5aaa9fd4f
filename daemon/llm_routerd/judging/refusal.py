"""Recognises a reply that refuses in words, from its opening, while it arrives.

Modes, of which the operator chooses one:

- `anchored`: the opening of the reply must refuse, as a sentence.  Looked at are the first sentences, after
  apologies and other preliminaries, with apostrophes, case and Markdown evened out, quotations left aside.
  A reply that goes on to help (`…, but I can`, `However, here is`) is none.
- `substring`: one of the inherited phrases stands anywhere in the reply.
- `structured`, `off`: text is never a refusal.

Whether a model refuses is a guess in any case; how good a guess, `tests/judging/refusals` measures.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from msgspec.structs import replace

from llm_routerd.judging.refusal_phrases import (
    FIRST_OF_PAIR,
    FIRST_PAIRS,
    FIRST_WORDS,
    HELPS,
    LEAD,
    LECTURES,
    PREPARES,
    REFUSES,
    TURNS,
)
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import Rejection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.judging.refusal_mode import RefusalMode

INHERITED_PATTERNS = (
    "nie wiem",
    "I cannot",
    "I can't",
    "as an AI",
    "I don't know",
    "I'm not able",
    "I am not able",
    "I'm unable",
    "I am unable",
    "beyond my capabilities",
)
"""What the system that this one carries on looked for, anywhere and in any case."""

REFUSAL = Rejection(code=AttemptCode.REFUSAL, reason="the answer refuses")
"""The verdict on a whole reply that refuses."""
_EARLY = replace(REFUSAL, early=True)
_MAX_OPENING_CHARS = 600
_MAX_SENTENCES = 3
_MAX_LEADS = 8
# So much of the sentence after a refusing one tells whether it goes on to help.
_MAX_TURN_CHARS = 40
# While it streams a reply is looked at so often, which is half of the work of looking at each token.
_STRIDE_CHARS = 24
# Of a reply longer than this the beginning mostly tells, in 5 µs where the whole takes 36.
_LONG_CHARS = 192
_FIRST_LOOK_CHARS = 48
_APOSTROPHES = {0x2018: "'", 0x2019: "'"}
_MAY_END = re.compile(r"[.!?\n]")
_PUNCTUATION = ",.;:!-\u2013\u2014'"
_EDGES = " \t\r\n-•"
_QUOTATION = re.compile(r'"[^"]*(?:"|$)|“[^”]*(?:”|$)|„[^”“]*(?:[”“]|$)|«[^»]*(?:»|$)|`[^`]*(?:`|$)')
_MARKDOWN = re.compile(r"[*_#>~]+")
_CONTRACTIONS = (
    (re.compile(r"\bi'm\b"), "i am"),
    (re.compile(r"\b(?:can't|can not|cant)\b"), "cannot"),
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"\b(do|does|would|could|should|is|are)n't\b"), r"\1 not"),
    (re.compile(r"\b(it|that|this|there)'s\b"), r"\1 is"),
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\s*\n\s*\n\s*")
_SPACE = re.compile(r"\s+")
# A first word that is as it stands: no Markdown, no quotation, no contraction.  Where no refusal begins with it, it
# tells alone, in 0.4 µs instead of 8.
_FIRST_WORD = re.compile(r"(?!can)[a-z]+(?= )", re.IGNORECASE | re.ASCII)


class RefusalDetector:
    """Recognises refusals by one mode; without state, shared by all attempts."""

    def __init__(self, mode: RefusalMode, patterns: Sequence[str] = ()) -> None:
        """Choose a mode; `patterns` are plain phrases beyond the built-in ones, treated as the mode does."""
        self.mode = mode
        phrases = (*INHERITED_PATTERNS, *patterns) if mode == "substring" else tuple(patterns)
        self._phrases = tuple(_sentences(phrase)[0] if mode == "anchored" else phrase.lower() for phrase in phrases)
        self._phrase_words = frozenset(phrase.partition(" ")[0] for phrase in self._phrases)
        self._first_words = FIRST_WORDS | self._phrase_words
        self.longest_phrase = max(map(len, self._phrases), default=0)

    def watch(self) -> RefusalWatch | None:
        """Begin to watch one attempt; None where text is never a refusal."""
        return None if self.mode in {"structured", "off"} else RefusalWatch(self)

    def is_refusal(self, text: str) -> bool:
        """Tell whether a complete reply refuses."""
        if self.mode == "substring":
            return self.contains_phrase(text)
        return self.mode == "anchored" and self.judge_opening(text, complete=True) is True

    def contains_phrase(self, text: str) -> bool:
        """Tell whether one of the phrases stands anywhere in a text."""
        text = text.lower()
        return any(phrase in text for phrase in self._phrases)

    def judge_opening(self, text: str, *, complete: bool) -> bool | None:
        """Judge a reply by its first sentences; a verdict stays the same whatever comes after it.

        Args:
            text: the reply from its first character on.
            complete: that is all of it.

        Returns:
            Whether it refuses; None while that depends on what comes.
        """
        first = _FIRST_WORD.match(text)
        if first is not None and not self._may_begin(first[0].lower()):
            return False
        if len(text) > _LONG_CHARS:
            verdict = self._judge_sentences(_sentences(text[:_FIRST_LOOK_CHARS]), complete=False)
            if verdict is not None:
                return verdict
        complete = complete or len(text) >= _MAX_OPENING_CHARS
        return self._judge_sentences(_sentences(text[:_MAX_OPENING_CHARS]), complete=complete)

    def _judge_sentences(self, sentences: list[str], *, complete: bool) -> bool | None:
        """As `judge_opening`; the last sentence of those may be incomplete."""
        for index, sentence in enumerate(sentences[:_MAX_SENTENCES]):
            if not complete and index == len(sentences) - 1:
                return None if self._may_refuse(sentence) else False
            part = self._part_of(sentence)
            if part == "answer":
                return False
            if part == "refusal":
                rest = sentences[index + 1 :]
                if not complete and len(rest) <= 1 and len("".join(rest)) < _MAX_TURN_CHARS:
                    return None
                return not rest or HELPS.match(rest[0]) is None
        return False

    def _part_of(self, sentence: str) -> Literal["refusal", "preliminary", "answer"]:
        """Tell what a whole sentence at the beginning of a reply does."""
        core = _without_lead(sentence)
        if TURNS.search(sentence):
            return "answer"
        if self._refuses(core) or self._refuses(sentence) or LECTURES.match(sentence):
            return "refusal"
        return "preliminary" if core != sentence or PREPARES.match(sentence) else "answer"

    def _refuses(self, sentence: str) -> bool:
        return REFUSES.match(sentence) is not None or sentence.startswith(self._phrases)

    def _may_begin(self, word: str) -> bool:
        """Tell whether a sentence with this first word may be more than an answer."""
        return word in self._first_words or word in FIRST_OF_PAIR

    def _may_refuse(self, sentence: str) -> bool:
        """Tell whether the beginning of a sentence may become more than the beginning of an answer."""
        words = [word.strip(_PUNCTUATION) for word in sentence.split(" ", 2)]
        if len(words) == 1:
            return True
        if words[0] not in FIRST_OF_PAIR:
            return words[0] in self._first_words
        return len(words) == 2 or words[0] in self._phrase_words or f"{words[0]} {words[1]}" in FIRST_PAIRS  # noqa: PLR2004 - the second word may go on


class RefusalWatch:
    """Watches one attempt's text.

    Attributes:
        judged: text need not be held back for this any more.
        done: nothing that comes can change the verdict.
    """

    def __init__(self, detector: RefusalDetector) -> None:
        self._detector = detector
        self._text = ""
        self._looked_at = 0
        self.judged = False
        self.done = False

    def feed(self, text: str) -> Rejection | None:
        """Take the next piece; return the rejection once it is certain."""
        self._text += text
        if self._detector.mode == "substring":
            return self._look_for_phrase()
        # Look at the first words, where a sentence may end, and now and then.
        length = len(self._text)
        if length > _STRIDE_CHARS and length - self._looked_at < _STRIDE_CHARS and not _MAY_END.search(text):
            return None
        self._looked_at = length
        verdict = self._detector.judge_opening(self._text, complete=False)
        self.judged = self.done = verdict is False
        return _EARLY if verdict else None

    def finish(self) -> Rejection | None:
        """No more text will come: return the final verdict."""
        return _EARLY if not self.done and self._detector.is_refusal(self._text) else None

    def _look_for_phrase(self) -> Rejection | None:
        """Look for a phrase that may have begun in an earlier piece; the text kept is bounded."""
        found = self._detector.contains_phrase(self._text)
        self._text = self._text[-self._detector.longest_phrase :]
        return _EARLY if found else None


def _sentences(text: str) -> list[str]:
    """Split the beginning of a reply, evened out; the last sentence may be incomplete or empty."""
    text = _QUOTATION.sub("…", _MARKDOWN.sub("", text.translate(_APOSTROPHES).lower()))
    if "'" in text or "can" in text:  # else there is none: a quarter of the whole look
        for contraction, words in _CONTRACTIONS:
            text = contraction.sub(words, text)
    return [_SPACE.sub(" ", sentence) for sentence in _SENTENCE_END.split(text.lstrip(_EDGES))]


def _without_lead(sentence: str) -> str:
    """Drop apologies and other preliminaries from the beginning of a sentence."""
    for _ in range(_MAX_LEADS):
        match = LEAD.match(sentence)
        if match is None:
            break
        sentence = sentence[match.end() :]
    return sentence
