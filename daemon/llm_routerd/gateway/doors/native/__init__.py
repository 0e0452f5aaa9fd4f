"""The daemon's own protocol over HTTP: requests as `request.schema.json` has them, events as the streams have them.

`asking` reads what a client sends, `telling` writes events and what is known of a request, `consent` reads a person's
word to a tool call.  `gateway.http.native` serves them: here is how a failure at one of its paths is told.
"""

from __future__ import annotations

from llm_routerd.gateway.door import Endpoint
from llm_routerd.gateway.doors.native.telling import fault

ENDPOINTS: tuple[Endpoint, ...] = (Endpoint(door="native", path="/v1/requests", fault=fault),)

__all__ = ["ENDPOINTS", "fault"]
