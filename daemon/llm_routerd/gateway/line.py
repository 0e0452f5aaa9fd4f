"""JSON that is one line, and comments that are, whoever splits them."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from llm_routerd.jsonschema.path import printable
from llm_routerd.protocol.wire import encode

# What is no control character, and ends a line for Python's `str.splitlines`, by which clients on httpx read a stream.
_LINE_ENDS: Final = tuple((end.encode(), b"\\u%04x" % ord(end)) for end in "\x85\u2028\u2029")

_LONGEST_COMMENT: Final = 300  # characters


def json_line(value: Any) -> bytes:
    """The value as JSON, without the newline that may follow."""
    return one_line(encode(value))


def one_line(data: bytes) -> bytes:
    """The same JSON, which has no other line break."""
    if not data.isascii():
        for end, escaped in _LINE_ENDS:
            data = data.replace(end, escaped)
    return data


def comment(text: str) -> bytes:
    """A comment among server-sent events, which clients pass over: whatever the text is, it ends in its line."""
    told = printable(text[:_LONGEST_COMMENT])
    return f": {told}\n\n".encode()


def within_line(text: str) -> msgspec.Raw:
    """JSON text as a part of a value: without what stands between its tokens, and its numbers as they are."""
    return msgspec.Raw(msgspec.json.format(text.encode(), indent=-1))
