"""Where a model's thinking ends and its answer begins, in a text that arrives in pieces.

Rules:

- A `<think>`, `<thinking>`, `<thought>` or `[THINK]` block at the very start of the text (after some whitespace) is
  reasoning; so is a second block right after it.  Whitespace between such a block and the answer belongs to neither.
- A block that is never closed is reasoning to its end: the answer is empty.
- A closing tag at the very start closes an empty block: some chat templates write the opening tag themselves.
- A text that begins with a token of OpenAI's harmony format is split by its channels (`harmony`).
- Everything later is answer text, tags included.  Where the template wrote the opening tag and the thinking
  is not empty, the text streams as answer text, since nothing tells it apart; `drop_unopened_thinking` mends the
  complete text.  With a JSON schema such thinking is prose where JSON belongs: let the server split it off.
"""

from __future__ import annotations

import re

from llm_routerd.judging.harmony import OPENINGS, HarmonySplitter

_SPACE = " \t\r\n\v\f\ufeff"
_BLANKS = re.compile(rf"[{_SPACE}]*+")
_TAG = re.compile(r"<(/?)(think(?:ing)?|thought)>|\[(/?)THINK\]|(<\|(?:channel|start)\|>)")
_TAGS = (
    *(f"<{slash}{name}>" for slash in ("", "/") for name in ("think", "thinking", "thought")),
    "[THINK]",
    "[/THINK]",
    *OPENINGS,
)
# A first tag that ends later than this is answer text: it bounds what is held back and looked at again.
_MAX_HELD_CHARS = 256
_UNOPENED = re.compile(r"(?:</(?:think(?:ing)?|thought)>|\[/THINK\])[ \t]*(?:\r?\n|\Z)")
_ANY_OPENING = re.compile(r"<think|<thought>|\[THINK\]")


class ThinkSplitter:
    """Splits one attempt's text into answer and reasoning while it arrives.

    Attributes:
        settled: the answer has begun, all further text belongs to it and need not come through here.
    """

    __slots__ = ("_after_block", "_closing", "_harmony", "_held", "settled")

    def __init__(self) -> None:
        self.settled = False
        self._held = ""
        self._closing: str | None = None
        self._after_block = False
        self._harmony: HarmonySplitter | None = None

    def feed(self, text: str) -> tuple[str, str]:
        """Take the next piece; return the answer text and the reasoning that are certain by now."""
        if self.settled:
            return text, ""
        if self._harmony is not None:
            return self._harmony.feed(text)
        text, self._held = self._held + text, ""
        reasoning: list[str] = []
        position = 0
        while position < len(text) and not self.settled:
            if self._closing is not None:
                position = self._look_for_closing(text, position, self._closing, reasoning)
                continue
            position = self._look_for_opening(text, position)
            if self._harmony is not None:
                answer, thought = self._harmony.feed(text[position:])
                return answer, "".join(reasoning) + thought
        return text[position:], "".join(reasoning)

    def finish(self) -> tuple[str, str]:
        """No more text will come: return what was held back, as answer text and as reasoning."""
        if self._harmony is not None:
            return self._harmony.finish()
        held, self._held = self._held, ""
        return ("", held) if self._closing is not None else (held, "")

    def _look_for_opening(self, text: str, position: int) -> int:
        """Where to look on; all that is there is answer text once `settled`, and harmony once that has begun."""
        visible = _BLANKS.match(text, position).end()  # type: ignore[union-attr] # it always matches
        if self._after_block:
            position = visible
        match = _TAG.match(text, visible)
        if match is not None and match.end() - position <= _MAX_HELD_CHARS:
            if match[4]:
                self._harmony = HarmonySplitter()
                return visible
            self._after_block = True
            if not (match[1] or match[3]):
                self._closing = f"</{match[2]}>" if match[2] else "[/THINK]"
            return match.end()
        rest = text[position : position + _MAX_HELD_CHARS]
        if len(rest) < _MAX_HELD_CHARS and any(tag.startswith(text[visible:]) for tag in _TAGS):
            self._held = rest
            return len(text)
        self.settled = True
        return position

    def _look_for_closing(self, text: str, position: int, closing: str, reasoning: list[str]) -> int:
        """Move thinking to `reasoning`; return where what follows the closing tag begins."""
        end = text.find(closing, position)
        if end >= 0:
            self._closing = None
        else:
            end = len(text) - _length_of_begun_tag(text, closing)
            self._held = text[end:]
        if end > position:
            reasoning.append(text[position:end])
        return len(text) if self._closing is not None else end + len(closing)


def drop_unopened_thinking(text: str) -> str:
    """Return a complete answer without the thinking before a closing tag that was never opened.

    The tag must end its line, so that an answer which merely mentions it stays whole.
    """
    match = _UNOPENED.search(text)
    if match is None or _ANY_OPENING.search(text, 0, match.start()):
        return text
    return text[match.end() :].lstrip(_SPACE)


def _length_of_begun_tag(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    begin = text.rfind(tag[0], max(0, len(text) - len(tag) + 1))
    return len(text) - begin if begin >= 0 and tag.startswith(text[begin:]) else 0
