"""What the native door sends beside events by themselves: streams of them, and what is known of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson
from msgspec import to_builtins

from llm_routerd.gateway.event_json import data_of, word_of
from llm_routerd.protocol.events import AttemptStarted

if TYPE_CHECKING:
    from llm_routerd.gateway.fault import Fault
    from llm_routerd.protocol.events import Queued
    from llm_routerd.protocol.reading import SeenEvent

RETRY_MS: Final = 1_000
RETRY: Final = b"retry: %d\n\n" % RETRY_MS
KEEP_ALIVE: Final = b":\n\n"


def event_sse(event: SeenEvent) -> bytes:
    """An event in a stream of server-sent events."""
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event.stream_id.encode(), word_of(event).encode(), data_of(event))


def fault(told: Fault) -> bytes:
    """An error's body: `{"error": {"code", "message", "param"}, "request_id"}`, null where there is no such thing."""
    error = {"code": told.code, "message": told.message, "param": told.param or None}
    return orjson.dumps({"error": error, "request_id": told.request_id or None})


def links(request_id: str) -> dict[str, str]:
    """Where to go on with a request."""
    path = f"/v1/requests/{request_id}"
    return {"self": path, "events": f"{path}/events", "stream": f"{path}/stream"}


def standing(request_id: str, attempt: SeenEvent | None, queued: Queued | None = None) -> bytes:
    """What is known of a request that has not ended.

    Args:
        request_id: its id.
        attempt: the event with which its last attempt began; None: it is queued.
        queued: what it waits for; None: nothing is told of that.
    """
    is_queued = attempt is None or queued is not None
    known: dict[str, Any] = {"id": request_id, "status": "queued" if is_queued else "running"}
    if queued is not None:
        known["queued"] = to_builtins(queued)
    if attempt is not None:
        known["attempt"] = attempt.attempt
    if isinstance(attempt, AttemptStarted):
        known |= {"deployment": attempt.deployment, "model": attempt.model, "delivery": attempt.delivery}
    return orjson.dumps(known | {"links": links(request_id)})


def said(request_id: str, call_id: str) -> bytes:
    """A person's word has been passed on; the event that follows from it says what became of it."""
    return orjson.dumps({"id": request_id, "call_id": call_id, "status": "accepted", "links": links(request_id)})
