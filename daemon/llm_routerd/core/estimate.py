"""Tokens of a call whose backend did not count them, by the rule of thumb of four characters to a token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_routerd.core.outcome import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable

CHARS_PER_TOKEN = 4


def estimated_usage(messages: Iterable[dict[str, Any]], answer_chars: int) -> Usage:
    """What a call with these messages has used, marked as an estimate; images count nothing."""
    prompt_chars = sum(_chars(message.get("content")) for message in messages)
    return Usage(
        prompt_tokens=-(-prompt_chars // CHARS_PER_TOKEN),
        completion_tokens=-(-answer_chars // CHARS_PER_TOKEN),
        estimated=True,
    )


def _chars(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    parts = content if isinstance(content, list) else ()
    return sum(len(part["text"]) for part in parts if isinstance(part.get("text"), str))
