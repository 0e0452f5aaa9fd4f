"""What a server's reason to finish means: a closed list of good ones, and whatever else is no whole answer.

The words were seen from OpenAI, Anthropic, Ollama, llama.cpp, vLLM, TGI, KoboldCpp, Mistral, GLM, Gemini,
Together, Cohere and Bedrock, and in reports of them (hermes-agent 92161, promptfoo 9905, camel 4262, 4266 and
4267, any-llm 1200, 1202 and 1204, laravel/ai 955).  A word that is not listed may mean anything, a broken
connection as well as a new kind of filter: a half answer given as a whole one is worse than another model asked.
"""

from __future__ import annotations

import re
from typing import Any

from llm_routerd.backends import faults

# In any case; in our words, see `Finish.finish_reason`.
_MEANINGS = {
    **dict.fromkeys(("stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete"), "stop"),
    **dict.fromkeys(("tool_calls", "function_call", "tool_use"), "tool_calls"),
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens"), "length"),
    **dict.fromkeys(
        ("model_length", "model_context_window_exceeded", "context_window_exceeded", "context_length_exceeded"),
        "context_window",
    ),
    **dict.fromkeys(
        (
            "content_filter",
            "content_filtered",
            "safety",
            "recitation",
            "blocklist",
            "prohibited_content",
            "spii",
            "image_safety",
            "sensitive",
            "guardrail_intervened",
        ),
        "content_filter",
    ),
    "refusal": "refusal",
    # Ollama was asked for nothing: messages that are all `system`, or none (oh-my-pi 7465).
    **dict.fromkeys(("load", "unload"), "not_generated"),
}
# KoboldCpp says "null" while it is not done, wrappers in Python say "None".
_NO_REASON = frozenset({"", "null", "none"})
_GOOD = frozenset({"stop", "tool_calls"})
_UNSAFE = re.compile(r"[^A-Za-z_]+")  # without digits, so that no key gets through
_MAX_WORD = 40


def is_reason(reason: Any) -> bool:
    """Whether a chunk's reason to finish is one; None, and words for it, say that the answer goes on.

    Raises:
        BackendError: it is neither a text nor nothing.
    """
    if reason is None:
        return False
    if not isinstance(reason, str):
        raise faults.malformed("a finish reason that is not text")
    return reason.lower() not in _NO_REASON


def meaning_of(reason: str) -> str:
    """Our word for a server's reason to finish; `truncated` for one that is not known."""
    return _MEANINGS.get(reason.lower(), "truncated")


def is_good(reason: str) -> bool:
    """Whether a server that gives this reason calls its answer whole."""
    return meaning_of(reason) in _GOOD


def last_word(before: str | None, reason: str) -> str:
    """The one of two reasons that holds: the later, but what went wrong is not taken back by a `stop` after it."""
    return reason if before is None or is_good(before) else before


def printable(reason: str) -> str:
    """A server's word, bounded and of a safe alphabet, to be told where it is not known."""
    return _UNSAFE.sub("_", reason)[:_MAX_WORD]
