"""OpenAI's harmony format, where a server passes it on as text: channels of thinking, and one with the answer.

    <|start|>assistant<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>Four.<|return|>

What stands in the channel `final` is the answer, what stands in any other is thinking, headers are neither.  A call
of a tool, which is a message on `commentary`, is thinking too: without a final message there is no answer.
"""

from __future__ import annotations

import re

OPENINGS = ("<|channel|>", "<|start|>")
_TOKEN = re.compile(r"<\|(start|channel|message|end|return|call|constrain)\|>")
_BEGUN = re.compile(r"<(?:\|(?:[a-z]{0,9}\|?)?)?\Z")
_MAX_HEADER_CHARS = 256


class HarmonySplitter:
    """Splits one attempt's text, from its first token on, into answer and thinking while it arrives."""

    __slots__ = ("_begun", "_header", "_is_final")

    def __init__(self) -> None:
        self._begun = ""  # what may be the beginning of a token
        self._header: str | None = ""  # None: within a message
        self._is_final = False

    def feed(self, text: str) -> tuple[str, str]:
        """Take the next piece; return the answer text and the reasoning that are certain by now."""
        text, self._begun = self._begun + text, ""
        if (begun := _BEGUN.search(text)) is not None:
            text, self._begun = text[: begun.start()], begun[0]
        return self._split(text)

    def finish(self) -> tuple[str, str]:
        """No more text will come: what was held back."""
        begun, self._begun = self._begun, ""
        return self._split(begun)

    def _split(self, text: str) -> tuple[str, str]:
        answer: list[str] = []
        reasoning: list[str] = []
        words = _TOKEN.split(text)  # text, token, text, token, …
        self._take(words[0], answer, reasoning)
        for token, following in zip(words[1::2], words[2::2], strict=True):
            self._on_token(token)
            self._take(following, answer, reasoning)
        return "".join(answer), "".join(reasoning)

    def _on_token(self, token: str) -> None:
        if token == "message":  # noqa: S105 - harmony's word
            self._is_final = (self._header or "").partition("<")[0].strip() == "final"
            self._header = None
        elif token == "constrain":  # noqa: S105 - likewise
            self._header = f"{self._header or ''}<"
        else:
            self._header = ""

    def _take(self, text: str, answer: list[str], reasoning: list[str]) -> None:
        if self._header is not None:
            self._header = (self._header + text)[:_MAX_HEADER_CHARS]
        elif text:
            (answer if self._is_final else reasoning).append(text)
