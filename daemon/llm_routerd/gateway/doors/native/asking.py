"""What the native door reads: a request's body, the header `Prefer`, where to go on in an events stream."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from llm_routerd.gateway.fault import refused
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import LANES

if TYPE_CHECKING:
    from llm_routerd.gateway.door import Body
    from llm_routerd.protocol.keys import Lane

MOST_WAIT_SECONDS: Final = 300
START: Final = "0-0"

_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?=$|[,;])", re.IGNORECASE)
_STREAM_ID = re.compile(r"(\d{1,20})-(\d{1,20})", re.ASCII)


def request_of(body: Body, idempotency_key: str) -> tuple[dict[str, Any], str | None]:
    """A request's properties without its id, and the id that is given for it, if any; nothing else is looked at.

    Raises:
        RefusedError: the body gives one id and the header `Idempotency-Key` another; or `publish`, of which it has no
            say here, is no boolean.
    """
    if not isinstance(body.get("publish", True), bool):
        raise refused("publish", "expected true or false")
    given = body.get("id")
    if given is not None and not isinstance(given, str):
        raise refused("id", "expected a string")
    if given is not None and idempotency_key and given != idempotency_key:
        raise refused("id", "the header Idempotency-Key gives another one; leave one of them out")
    return {name: value for name, value in body.items() if name != "id"}, given or idempotency_key or None


def lane_of(text: str) -> Lane:
    """The lane that a request is put into; "": the normal one.

    Raises:
        RefusedError: there is none of this name.
    """
    for lane in LANES:
        if text in {lane, ""} and (text or lane == "normal"):
            return lane
    raise refused("lane", f"expected one of {', '.join(LANES)}")


def wait_seconds(prefer: str) -> int:
    """How long the header `Prefer` says that an answer is to be waited for (`wait=30`); 0: not at all."""
    found = _WAIT.search(prefer)
    return min(int(found[1]), MOST_WAIT_SECONDS) if found else 0


def position(last_event_id: str, after: str) -> str:
    """The ID of the last event that was seen: the header's, which a browser keeps up to date, else the URL's.

    Raises:
        RefusedError: one of them is none.
    """
    for name, text in (("Last-Event-ID", last_event_id), ("after", after)):
        if text and _STREAM_ID.fullmatch(text) is None:
            raise refused(name, "expected the ID of an event, like 1-12")
    return last_event_id or after or START


def is_over(position: str) -> bool:
    """Whether nothing can come after an event with this ID."""
    first, _, second = position.partition("-")
    last_first, _, last_second = FINAL_ID.partition("-")
    return (int(first), int(second)) >= (int(last_first), int(last_second))
