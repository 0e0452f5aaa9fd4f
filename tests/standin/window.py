"""How many tokens a prompt has, and what an Ollama leaves of one that is longer than the model's window.  Pure.

Tokens are those of a real byte-pair encoding (`tokens`), and numbers below 0 for what is no text: the beginning of a
message, `MESSAGE_TOKENS` of them, and images.  A message's tokens do not depend on what stands before it, so that two
prompts with a common beginning have common tokens there.

The tools stand in front, as JSON.  An Ollama leaves out whole messages from the front, but for system messages and the
last one, until the rest fits; a rest that does not is cut from its front to the window, tools and system prompt first.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from tests.standin.tokens import tokens_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MESSAGE_TOKENS = 4
"""That the beginning of a message takes, beside its text."""

_ROLES = ("system", "user", "assistant", "tool")
_IMAGES = {"image", "image_url", "input_image"}


@dataclass(frozen=True, slots=True)
class Part:
    """A message's tokens, or those of all tools; of a `role` that may be left out, or not."""

    role: str
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A whole prompt."""

    parts: tuple[Part, ...]

    @property
    def tokens(self) -> list[int]:
        """Of all its parts."""
        return [token for part in self.parts for token in part.tokens]

    def without_front(self, window: int) -> Prompt:
        """What is left when messages are left out until the rest fits; it may still be too long."""
        parts, size = list(self.parts), sum(len(part.tokens) for part in self.parts)
        droppable = [part for part in parts[:-1] if part.role != "system"]
        left_out = []
        while size > window and droppable:
            left_out.append(id(gone := droppable.pop(0)))
            size -= len(gone.tokens)
        return Prompt(tuple(part for part in parts if id(part) not in left_out))


def read_prompt(request: Mapping[str, Any], image_tokens: int) -> Prompt:
    """A request's prompt, in whichever of the three protocols."""
    parts = []
    if tools := request.get("tools"):
        parts.append(Part("system", [token for tool in tools for token in tokens_in(orjson.dumps(tool).decode())]))
    messages = list(request.get("messages") or ())
    if system := request.get("system"):
        messages.insert(0, {"role": "system", "content": system})
    for message in messages:
        role = "system" if message.get("role") == "developer" else str(message.get("role"))
        parts.append(Part(role, [*beginning(role), *_said(message, image_tokens)]))
    return Prompt(tuple(parts))


def beginning(role: str) -> list[int]:
    """The tokens before a message of that role."""
    number = _ROLES.index(role) if role in _ROLES else len(_ROLES)
    return [-1, -2, -3, -4 - number]


def _said(message: Mapping[str, Any], image_tokens: int) -> Iterator[int]:
    content = message.get("content") or ""
    yield from tokens_in(content) if isinstance(content, str) else _of_parts(content, image_tokens)
    for image in message.get("images") or ():
        yield from _image(image, image_tokens)
    for call in message.get("tool_calls") or ():
        yield from tokens_in(orjson.dumps(call.get("function")).decode())


def _of_parts(parts: Iterable[Mapping[str, Any]], image_tokens: int) -> Iterator[int]:
    for part in parts:
        kind = part.get("type")
        if kind in _IMAGES:
            yield from _image(part, image_tokens)
        elif kind == "tool_use":
            yield from tokens_in(orjson.dumps([part.get("name"), part.get("input")]).decode())
        elif kind == "tool_result" and not isinstance(part.get("content"), str):
            yield from _of_parts(part.get("content") or (), image_tokens)
        else:
            yield from tokens_in(str(part.get("text") or part.get("content") or ""))


def _image(image: Any, image_tokens: int) -> list[int]:
    """So many tokens, the same ones for the same image and others for another."""
    return [-100 - zlib.crc32(orjson.dumps(image))] * image_tokens
