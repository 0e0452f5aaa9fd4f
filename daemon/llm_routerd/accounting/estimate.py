"""Tokens of a call whose backend did not count them, by the rule of thumb of four characters to a token.

A provider charges for an attempt that we ended early or that timed out, and tells no count of it: what has been sent
and what was received is estimated, and marked so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson
from msgspec.structs import replace

from llm_routerd.protocol.outcome import Usage

if TYPE_CHECKING:
    from llm_routerd.protocol.call import Call, Finish
    from llm_routerd.protocol.codes import AttemptCode

CHARS_PER_TOKEN: Final = 4


def usage_of(call: Call, finish: Finish | None, streamed_chars: int, code: AttemptCode | None) -> Usage | None:
    """What a call has used, estimated as far as its backend has not told.

    Args:
        call: what was asked.
        finish: how the backend ended it, if it did.
        streamed_chars: text and thinking received before.
        code: why it is no answer, if it is none.

    Returns:
        None: nothing, since the server did not take it up, or no connection to it ever stood.
    """
    told = None if finish is None else finish.usage
    if told is not None and told.prompt_tokens and told.completion_tokens:
        return told
    chars = streamed_chars + (0 if finish is None else _chars_of_finish(finish))
    if told is not None and told.prompt_tokens and not chars:
        return told
    if finish is None and not chars:
        is_free = code is not None and code.traits.is_free_unread
        if is_free or not call.sending.is_under_way:
            return None
    estimate = estimated_usage(call, chars)
    if told is None:
        return estimate
    return replace(
        told,
        prompt_tokens=told.prompt_tokens or estimate.prompt_tokens,
        completion_tokens=told.completion_tokens or estimate.completion_tokens,
        estimated=True,
    )


def estimated_usage(call: Call, answer_chars: int) -> Usage:
    """What a call has used after so much answer, marked as an estimate; images count nothing."""
    prompt_chars = sum(_chars(message.get("content")) for message in call.messages)
    spoken = (message.get("tool_calls") for message in call.messages)
    prompt_chars += sum(len(orjson.dumps(extra)) for extra in (call.tools, call.schema, *spoken) if extra)
    return Usage(
        prompt_tokens=-(-prompt_chars // CHARS_PER_TOKEN),
        completion_tokens=-(-answer_chars // CHARS_PER_TOKEN),
        estimated=True,
    )


def _chars_of_finish(finish: Finish) -> int:
    calls = sum(len(call.name) + len(call.arguments) for call in finish.tool_calls)
    return len(finish.text) + len(finish.reasoning) + calls


def _chars(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    parts = content if isinstance(content, list) else ()
    return sum(len(part["text"]) for part in parts if isinstance(part.get("text"), str))
