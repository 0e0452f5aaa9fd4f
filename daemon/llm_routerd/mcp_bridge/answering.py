"""What a model is told of a tool's result.  Pure; what it is given is data of a stranger.

Structured content goes as JSON, else the text; of pictures, sounds and files it is told that they are there, and never
their bytes.  A word of a server's to a person (`input_required`, elicitation) is told to the model as an error: the
person has agreed to the call that was shown, and not to what a server asks next, which nobody has seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_never

import msgspec
from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    ElicitRequest,
    EmbeddedResource,
    ImageContent,
    InputRequiredResult,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from llm_routerd.jsonschema.path import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mcp_types import ContentBlock

_LONGEST_QUESTION = 500
_LONGEST_WORD = 200


def result_of(result: CallToolResult, most_bytes: int) -> bytes | str:
    """What the model is told of a call that has not failed: JSON in bytes, or text.

    Of what is longer than the daemon keeps, so much that it sees that there was more.
    """
    if result.structured_content is not None:
        return msgspec.json.encode(_without_bytes(result.structured_content))[: most_bytes + 1]
    return _text_of(result.content, most_bytes)


def error_of(result: CallToolResult, most_bytes: int) -> str:
    """What it is told of one that has."""
    return _text_of(result.content, most_bytes) or "the tool failed, and does not say why"


def question_in(result: InputRequiredResult) -> str:
    """What it is told of one that a server will carry out only after an answer of a person."""
    asked = [
        printable(str(request.params.message)[:_LONGEST_QUESTION])
        for request in (result.input_requests or {}).values()
        if isinstance(request, ElicitRequest)
    ]
    return (
        "not carried out: the tool wants an answer first, which nobody can give it here"
        + (f"; it asks: {' / '.join(asked[:3])}" if asked else "")
        + ". Where the arguments can say it, call it again with them; else tell the user"
    )


def _text_of(blocks: list[ContentBlock], most_bytes: int) -> str:
    parts: list[str] = []
    length = 0
    for block in blocks:
        for part in _parts_of(block):
            parts.append(part)
            length += len(part) + 1
        if length > most_bytes:
            break
    return "\n".join(parts)[: most_bytes + 1]


def _parts_of(block: ContentBlock) -> Iterator[str]:
    match block:
        case TextContent():
            yield block.text
        case ImageContent() | AudioContent():
            yield f"[{block.type}, {_word(block.mime_type)}, {_bytes_in(block.data)} bytes: not shown]"
        case ResourceLink():
            yield f"[resource {_word(block.name)}: {_word(block.uri)}]"
        case EmbeddedResource(resource=TextResourceContents() as resource):
            yield f"[resource {_word(resource.uri)}]"
            yield resource.text
        case EmbeddedResource(resource=BlobResourceContents() as resource):
            kind = _word(resource.mime_type or "of unknown type")
            yield f"[resource {_word(resource.uri)}, {kind}, {_bytes_in(resource.blob)} bytes: not shown]"
        case EmbeddedResource():  # pragma: no cover - there is no third kind
            return
        case _:
            assert_never(block)


def _without_bytes(value: Any) -> Any:
    """Structured content without the base64 of content blocks, which some servers repeat in it."""
    match value:
        case {"type": "image" | "audio", "data": str() as data}:
            return {**value, "data": f"[{_bytes_in(data)} bytes: not shown]"}
        case {"uri": str(), "blob": str() as blob}:
            return {**value, "blob": f"[{_bytes_in(blob)} bytes: not shown]"}
        case dict():
            return {name: _without_bytes(each) for name, each in value.items()}
        case list():
            return [_without_bytes(each) for each in value]
        case _:
            return value


def _word(text: object) -> str:
    return printable(str(text)[:_LONGEST_WORD])


def _bytes_in(base64: str) -> int:
    return len(base64.rstrip("=")) * 3 // 4
