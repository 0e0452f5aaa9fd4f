"""What one read of a stream brings: messages, where they end, and whether more can come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson
from msgspec import Struct

from llm_routerd.gateway.doors.durable.offsets import END, offset_of
from llm_routerd.gateway.event_json import event_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_routerd.protocol.reading import SeenEvent

_EPOCH: Final = 1_728_432_000  # 2024-10-09T00:00:00Z, from which the protocol counts
_INTERVAL_SECONDS: Final = 20
_MOST_JITTER_SECONDS: Final = 3_600


class Page(Struct, frozen=True, kw_only=True):
    """Events that follow each other.

    Attributes:
        start: the offset that they were read from.
        events: they.
        is_up_to_date: there was no more when they were read.
    """

    start: str
    events: Sequence[SeenEvent] = ()
    is_up_to_date: bool = True

    @property
    def next_offset(self) -> str:
        """Where the next read begins."""
        return offset_of(self.events[-1].stream_id) if self.events else self.start

    @property
    def is_closed(self) -> bool:
        """Nothing can follow."""
        return self.next_offset >= END

    @property
    def body(self) -> bytes:
        """An array of them."""
        return b"[" + b",".join(event_json(event) for event in self.events) + b"]"

    def headers(self, cursor: str = "") -> dict[str, str]:
        """What the headers tell; a cursor only where there will be a next read."""
        told = {"Stream-Next-Offset": self.next_offset}
        if self.is_up_to_date:
            told["Stream-Up-To-Date"] = "true"
        if self.is_closed:
            told["Stream-Closed"] = "true"
        elif cursor:
            told["Stream-Cursor"] = cursor
        return told

    def etag(self, request_id: str) -> str:
        """Of a body with these events: another when more of them, or the end, have come."""
        return f'"{request_id}:{self.start}:{self.next_offset}{":c" if self.is_closed else ""}"'

    def sse(self, cursor: str) -> bytes:
        """They as server-sent events: `data` if there are any, then `control`; with no space, as the suite has it."""
        control: dict[str, str | bool] = {"streamNextOffset": self.next_offset}
        if not self.is_closed:
            control["streamCursor"] = cursor
        if self.is_up_to_date:
            control["upToDate"] = True
        if self.is_closed:
            control["streamClosed"] = True
        data = b"event: data\ndata:%b\n\n" % self.body if self.events else b""
        return data + b"event: control\ndata:%b\n\n" % orjson.dumps(control)


def next_cursor(given: str, now: float, jitter: Callable[[int, int], int]) -> str:
    """What a live read tells as its cursor, so that no cache between answers two reads alike.

    Args:
        given: that of the read before, which this one is always greater than; anything but a number counts as none.
        now: Unix time in seconds.
        jitter: a random number between two.
    """
    current = int(now - _EPOCH) // _INTERVAL_SECONDS
    last = int(given) if given.isascii() and given.isdigit() and len(given) < len(str(2**63)) else -1
    if last < current:
        return str(current)
    return str(last + max(1, jitter(1, _MOST_JITTER_SECONDS) // _INTERVAL_SECONDS))
