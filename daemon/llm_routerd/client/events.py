"""What a client writes and reads: requests as JSON, entries of an events stream, ids."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.numbers import ExactObject, exact_object, holds_inexact, writable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_STREAM_ID = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?")


@dataclass(frozen=True, slots=True)
class ClientEvent:
    """One entry of an events stream.

    Attributes:
        id: its stream ID, `<attempt>-<seq>`; what `follow` resumes from.
        type: `attempt`, `token`, `reasoning`, `rejected`, or a final `result`, `error`, `cancelled`.
        data: as in the protocol; empty where somebody else wrote what is no JSON object.
    """

    id: str
    type: str
    data: dict[str, Any]

    @property
    def attempt(self) -> int:
        """The attempt that it belongs to; for a final event the protocol's largest number."""
        return int(self.id.partition("-")[0])

    @property
    def answer_attempt(self) -> int | None:
        """The attempt whose text a `result` is: whoever has shown another's drops it.  None: it is none, or untold."""
        attempt = self.data.get("attempt") if self.type == "result" else None
        return attempt if isinstance(attempt, int) else None

    @property
    def is_final(self) -> bool:
        """Whether it is the request's last event."""
        return self.id == FINAL_ID


def event_of(entry: tuple[Any, Any]) -> ClientEvent:
    """The event that an entry holds, with the metadata as it was submitted, integers of any size included."""
    entry_id, fields = entry
    texts = {as_text(name): value for name, value in (fields or {}).items()}
    text = texts.get("data", b"{}")
    try:
        data = orjson.loads(text)
    except orjson.JSONDecodeError:
        data = {}  # a final event ends the request even where a person wrote it by hand, and wrote it badly
    if not isinstance(data, dict):
        data = {}
    elif data.get("metadata") and holds_inexact(data["metadata"]):
        data["metadata"] = _exact_metadata(text, data["metadata"])
    return ClientEvent(as_text(entry_id), as_text(texts.get("type", "")), data)


def _exact_metadata(text: bytes | str, read: Any) -> Any:
    """The metadata of an event once more; as it was `read` where that cannot be, which no daemon has written."""
    try:
        return exact_object(text if isinstance(text, bytes) else text.encode(), "metadata")
    except (ValueError, TypeError, RecursionError):
        return read


def entries_of(stream: Iterable[Any]) -> Iterable[tuple[Any, Any]]:
    """The entries of one stream in a reply, whichever protocol the client speaks that read it."""
    for entry in stream:
        if isinstance(entry, list):
            yield from entry
        else:
            yield entry


def as_json(request: Mapping[str, Any]) -> bytes:
    """A request as it goes into its entry; the metadata may hold integers of any size.

    Raises:
        TypeError: a value is not JSON.
    """
    try:
        return orjson.dumps(request)
    except TypeError:
        metadata = request.get("metadata")
        if not isinstance(metadata, dict) or not holds_inexact(metadata):
            raise
        return orjson.dumps({**request, "metadata": writable(ExactObject(metadata))})


def check_id(request_id: str) -> str:
    """The same id.

    Raises:
        ValueError: it is not an id of the protocol; a request with it would be answered under another name.
    """
    if not _ID.fullmatch(request_id):
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


def as_text(value: bytes | str | None) -> str:
    """A reply of a client that decodes, or of one that does not; "" for none."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""
