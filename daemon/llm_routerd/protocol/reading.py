"""The entries of an events stream, read back as the events that were written there.

Tolerant, since others may write to a stream, and a daemon of another version too: an unknown property is passed over,
and what is no event of the protocol is an `UnknownEvent`, never an exception.
"""

from __future__ import annotations

from functools import cache
from typing import TypeVar, get_args

import msgspec

from llm_routerd.protocol.events import FINAL_ID, Cancelled, Failed, Result, StandingEvent, StreamEvent

T = TypeVar("T", bound=StreamEvent)

KINDS: dict[str, type[StandingEvent]] = {kind.type: kind for kind in get_args(StandingEvent)}


class UnknownEvent(StreamEvent, frozen=True):
    """An entry that is no event of the protocol's, or not of this version of it: `data` is what it says.

    With the ID of a final event it ends its request all the same.
    """

    type: str


SeenEvent = StandingEvent | UnknownEvent
SeenEnd = Result | Failed | Cancelled | UnknownEvent


def read_event(stream_id: str, kind: str, text: bytes | str) -> SeenEvent:
    """The event that an entry holds: its ID, its field `type`, its field `data`.

    The ID and not the word says whether a request has ended: a `result` that stands elsewhere than at the end is none.
    """
    event: SeenEvent
    try:
        event = _decoder(kind, stream_id == FINAL_ID).decode(text)
    except (KeyError, msgspec.MsgspecError, ValueError, RecursionError):  # ValueError: what is no UTF-8
        event = UnknownEvent(type=kind)
    return _placed(event, stream_id, text)


def _placed(event: T, stream_id: str, text: bytes | str) -> T:
    place = event.__dict__
    place["stream_id"] = stream_id
    place["raw"] = text
    return event


def as_end(event: SeenEvent) -> SeenEnd:
    """The same event, which stands where a final one does."""
    return event if isinstance(event, SeenEnd) else _placed(UnknownEvent(type=event.type), event.stream_id, event.raw)


@cache
def _decoder(kind: str, is_final: bool) -> msgspec.json.Decoder[StandingEvent]:
    """Made when it is first needed: whoever reads no events does not pay for it.

    Raises:
        KeyError: no such event stands at such a place.
    """
    found = KINDS[kind]
    if found.ends != is_final:
        raise KeyError(kind)
    return msgspec.json.Decoder(found)
