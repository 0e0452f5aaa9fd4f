"""Offsets: a place in a stream of events, as text that sorts as the events do.

An offset is the ID of the event that it follows, each part padded with zeros: clients compare offsets as text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from llm_routerd.gateway.fault import refused
from llm_routerd.protocol.events import FINAL_ID

if TYPE_CHECKING:
    from collections.abc import Sequence

_FIRST_DIGITS: Final = 16  # no event's first part is greater than the final one's
_SECOND_DIGITS: Final = 20
_OFFSET = re.compile(rf"([0-9]{{{_FIRST_DIGITS}}})_([0-9]{{{_SECOND_DIGITS}}})")

BEGINNING: Final = "-1"
NOW: Final = "now"


def offset_of(stream_id: str) -> str:
    """The place after the event with this ID; of `0-0` the beginning."""
    first, _, second = stream_id.partition("-")
    return f"{first:0>{_FIRST_DIGITS}}_{second:0>{_SECOND_DIGITS}}"


END: Final = offset_of(FINAL_ID)


def stream_id_of(offset: str) -> str:
    """The event that an offset follows.

    Raises:
        RefusedError: it is no offset of ours.
    """
    if offset == BEGINNING:
        return "0-0"
    found = _OFFSET.fullmatch(offset)
    if found is None:
        raise refused("offset", "expected -1, now, or what Stream-Next-Offset has told")
    return f"{int(found[1])}-{int(found[2])}"


def given_offset(given: Sequence[str], *, is_live: bool) -> str:
    """The one that a query gives.

    Raises:
        RefusedError: it gives several; or none, and a live read has to say from where.
    """
    if len(given) > 1 or (is_live and not given):
        raise refused("offset", "expected one")
    return given[0] if given else BEGINNING
