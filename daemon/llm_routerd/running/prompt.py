"""What one call of a request asks, and how long that is."""

from __future__ import annotations

from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import orjson

from llm_routerd.routing.prompt_size import chars_of, most_tokens, size_of

if TYPE_CHECKING:
    from llm_routerd.protocol.request import Request
    from llm_routerd.routing.prompt_size import PromptSize


class Prompt:
    """What a request asks; measured when somebody wants to know.

    Args:
        request: it.
        more: messages that go along with this call, after its own.
    """

    def __init__(self, request: Request, more: tuple[dict[str, Any], ...] = ()) -> None:
        self.messages: tuple[dict[str, Any], ...] = request.messages + more
        self._tools = request.tools
        self._may_call = request.tool_choice != "none"
        self._schema = None if request.schema is None else request.schema.raw
        asked = request.params.get("max_tokens")
        self.max_tokens: int | None = asked if isinstance(asked, int) else None

    @cached_property
    def most(self) -> float:
        """No tokenizer makes more of it; cheap."""
        return most_tokens(self.messages, self._tools, schema=self._schema)

    def about_tokens(self) -> int:
        """So many, roughly; cheap."""
        return chars_of(self.messages) // 4

    @cached_property
    def key(self) -> str:
        """Alike for prompts that begin alike: of the first messages, but for the last one."""
        first = self.messages[: min(2, len(self.messages) - 1)]
        return blake2b(orjson.dumps(first), digest_size=12).hexdigest() if first else ""

    @property
    def is_measured(self) -> bool:
        """Whether its size is known already."""
        return "size" in self.__dict__

    @cached_property
    def size(self) -> PromptSize:
        """In tokens."""
        return size_of(self.messages, self._tools, schema=self._schema, may_call=self._may_call)


def repair_messages(text: str, reason: str, *, is_json: bool) -> tuple[dict[str, Any], ...]:
    """What is added to the conversation to have an invalid answer mended, which is to be JSON and nothing else or not.

    An answer of calls alone has no text, and a message without any is one that some servers refuse.
    """
    form = ", with JSON that satisfies the schema, and nothing else" if is_json else ""
    demand = {"role": "user", "content": f"That answer was not accepted: {reason}. Answer again{form}."}
    return ({"role": "assistant", "content": text}, demand) if text.strip() else (demand,)
