"""The HTTP service that this daemon carries on: `POST /complete`, `POST /complete/stream` (lines of JSON).

Its bodies are those of the request schema, with the sampling parameters also at the top; its answers say what was
used.  `completion` has both endpoints; `GET /health` is the server's.
"""

from __future__ import annotations

from llm_routerd.gateway.door import Completion, Endpoint
from llm_routerd.gateway.doors.before.completion import fault, read, read_streamed

ENDPOINTS: tuple[Endpoint, ...] = (
    Completion(door="before", path="/complete", fault=fault, read=read),
    Completion(door="before", path="/complete/stream", fault=fault, read=read_streamed),
)

__all__ = ["ENDPOINTS"]
