"""What the native door sends beside events by themselves: streams of them, and what is known of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from llm_routerd.gateway.event_json import data_of, word_of
from llm_routerd.protocol.events import AttemptStarted

if TYPE_CHECKING:
    from llm_routerd.gateway.fault import Fault
    from llm_routerd.protocol.reading import SeenEvent

RETRY_MS: Final = 1_000
RETRY: Final = b"retry: %d\n\n" % RETRY_MS
KEEP_ALIVE: Final = b":\n\n"


def event_sse(event: SeenEvent) -> bytes:
    """An event in a stream of server-sent events."""
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event.stream_id.encode(), word_of(event).encode(), data_of(event))


def fault(told: Fault) -> bytes:
    """An error's body: `{"error": {"code", "message", "param", "id"}}`, the last two where there is such a thing."""
    error = {"code": told.code, "message": told.message}
    error |= {name: value for name, value in (("param", told.param), ("id", told.request_id)) if value}
    return orjson.dumps({"error": error})


def links(request_id: str) -> dict[str, str]:
    """Where to go on with a request."""
    path = f"/v1/requests/{request_id}"
    return {"self": path, "events": f"{path}/events", "stream": f"{path}/stream"}


def standing(request_id: str, attempt: SeenEvent | None) -> bytes:
    """What is known of a request that has not ended.

    Args:
        request_id: its id.
        attempt: the event with which its last attempt began; None: it is queued.
    """
    known: dict[str, Any] = {"id": request_id, "status": "queued" if attempt is None else "running"}
    if attempt is not None:
        known["attempt"] = attempt.attempt
    if isinstance(attempt, AttemptStarted):
        known |= {"deployment": attempt.deployment, "model": attempt.model, "delivery": attempt.delivery}
    return orjson.dumps(known | {"links": links(request_id)})
