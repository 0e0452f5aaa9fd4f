"""What a model is told of its calls, and of itself: the messages that the next turn adds to a request's own.

What a tool answers is data: it goes into the message of a tool, as it is, and nothing here reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.protocol.events import ToolReturned
    from llm_routerd.protocol.outcome import ToolCall


def assistant_message(text: str, calls: Sequence[ToolCall]) -> dict[str, Any]:
    """The turn of a model, in OpenAI's form.

    Providers take arguments that are a JSON object only: what was none stands there as an empty one, and what was wrong
    is told by the call's result.
    """
    return {
        "role": "assistant",
        "content": text or None,
        "tool_calls": [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ],
    }


def told_result(event: ToolReturned, *, changed: Any = None) -> str:
    """What came of a call, as its model is told; `changed`: the arguments that a person put in the place of its own."""
    if event.error is not None:
        text = f"error: {event.error}"
    else:
        text = event.result if isinstance(event.result, str) else orjson.dumps(event.result).decode()
    if changed is None:
        return text
    return f"[a person changed the arguments to {orjson.dumps(changed).decode()}]\n{text}"
