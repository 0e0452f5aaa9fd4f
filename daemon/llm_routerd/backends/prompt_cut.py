"""Whether a server has cut a prompt that was too long for its model, and answered what was left.

Ollama drops the front of such a prompt (the system prompt, the tools, the task), answers 200 and counts after the cut,
unless it is asked not to.  Versions that cannot be asked are found out by their count of the prompt's tokens: it is far
below what the prompt's length allows.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

# No text of any length is that short in tokens: 3 to 5 characters make one, in most languages fewer.
_MOST_CHARS_PER_TOKEN = 6
# No model has a window this small, so that a shorter prompt was not cut, however it was counted.
_FEWEST_CHARS = 2_000
# The first that surely takes `truncate` and `shift`.  Some after it count without what they had cached.
_TAKES_TRUNCATE = (0, 13)
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})")
# Blanks, rulers and dots are many characters to a token.
_RUN = re.compile(r"([\W_])\1+")


def looks_cut(messages: Iterable[dict[str, Any]], prompt_tokens: int) -> bool:
    """Whether the messages hold more text than that many tokens can.

    Messages of the assistant do not count: templates leave thinking out of them.  A count of 0 says nothing: it is what
    old versions tell of a prompt that they had cached.
    """
    bound = prompt_tokens * _MOST_CHARS_PER_TOKEN + _FEWEST_CHARS
    texts = [text for message in messages if message.get("role") != "assistant" for text in _texts(message)]
    if prompt_tokens == 0 or sum(map(len, texts)) <= bound:
        return False
    return sum(len(_RUN.sub(r"\1", text)) for text in texts) > bound


def takes_truncate(version: Any) -> bool:
    """Whether an Ollama of this version does not cut where it is asked not to."""
    found = _VERSION.match(version) if isinstance(version, str) else None
    return found is not None and (int(found[1]), int(found[2])) >= _TAKES_TRUNCATE


def _texts(message: dict[str, Any]) -> list[str]:
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content or () if isinstance(part.get("text"), str)]
