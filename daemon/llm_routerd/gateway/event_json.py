"""An event as the doors send it that tell events as they stand: `{"id": …, "type": …, "data": …}`.

Its ID in the events stream, its type, and its data as it was written there.  Others may write to a stream too:
whatever stands there, what goes out is sound JSON on one line.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from llm_routerd.gateway.line import one_line
from llm_routerd.protocol.reading import UnknownEvent

if TYPE_CHECKING:
    from llm_routerd.protocol.reading import SeenEvent

_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_UNNAMED = "unknown"


def word_of(event: SeenEvent) -> str:
    """An event's type; `unknown` where what stands there is no word that may be told as one."""
    return event.type if _WORD.fullmatch(event.type) else _UNNAMED


def data_of(event: SeenEvent) -> bytes:
    """An event's data, as JSON on one line; `{}` where what stands there is no JSON object."""
    raw = event.raw.encode() if isinstance(event.raw, str) else event.raw
    if isinstance(event, UnknownEvent) and not event.data:
        return b"{}"
    if b"\n" not in raw and b"\r" not in raw and raw.isascii():
        return raw
    try:
        raw.decode()
        return one_line(msgspec.json.format(raw, indent=-1))
    except (msgspec.MsgspecError, ValueError):
        return b"{}"


def event_json(event: SeenEvent) -> bytes:
    """An event, as JSON on one line."""
    return b'{"id":"%b","type":"%b","data":%b}' % (event.stream_id.encode(), word_of(event).encode(), data_of(event))
