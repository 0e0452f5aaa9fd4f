"""What a client reads: entries of an events stream, ids."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from llm_routerd.protocol.reading import read_event
from llm_routerd.protocol.reply_address import valid_id

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_routerd.protocol.reading import SeenEvent

_STREAM_ID = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?")


def event_of(entry: tuple[Any, Any]) -> SeenEvent:
    """The event that an entry holds; a final event ends the request even where a person wrote it by hand, and badly."""
    entry_id, fields = entry
    texts = {as_text(name): value for name, value in (fields or {}).items()}
    return read_event(as_text(entry_id), as_text(texts.get("type", "")), texts.get("data", b"{}"))


def entries_of(stream: Iterable[Any]) -> Iterable[tuple[Any, Any]]:
    """The entries of one stream in a reply, whichever protocol the client speaks that read it."""
    for entry in stream:
        if isinstance(entry, list):
            yield from entry
        else:
            yield entry


def data_of(entries: Iterable[tuple[Any, Any]] | None) -> list[tuple[str, bytes]]:
    """The IDs of entries, and what their field `data` holds."""
    return [(as_text(entry_id), as_bytes((fields or {}).get(b"data", b""))) for entry_id, fields in entries or ()]


def check_id(request_id: str) -> str:
    """The same id.

    Raises:
        ValueError: it is not an id of the protocol; a request with it would be answered under another name.
    """
    if valid_id(request_id) is None:
        raise ValueError("an id has 1 to 128 characters of A-Z a-z 0-9 . _ : -")
    return request_id


def check_stream_id(text: str) -> tuple[int, int]:
    """Both parts of a stream ID; the second one may be left out.

    Raises:
        ValueError: it is not valid; nor is `$`, which would lose what was written before.
    """
    match = _STREAM_ID.fullmatch(text)
    if match is None:
        raise ValueError("a stream ID is <number>-<number>")
    return int(match[1]), int(match[2] or 0)


def is_stream_id(request_id: str) -> bool:
    """Whether an id has the form of those that XADD gives, which a request goes by that has none of its own."""
    match = _STREAM_ID.fullmatch(request_id)
    return match is not None and match[2] is not None


def as_text(value: bytes | str | None) -> str:
    """A reply of a client that decodes, or of one that does not; "" for none."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def as_bytes(value: bytes | str) -> bytes:
    """Such a reply, as it is on the wire."""
    return value if isinstance(value, bytes) else value.encode()
