"""The producers' side of the queue: adds requests, follows and cancels them; needs neither the daemon nor a backend."""

from __future__ import annotations

from llm_routerd.client.client import (
    Client,
    ClientEvent,
    LaneState,
    RequestFields,
    Sighting,
    UnknownRequestError,
    as_text,
    check_id,
    check_stream_id,
)

__all__ = [
    "Client",
    "ClientEvent",
    "LaneState",
    "RequestFields",
    "Sighting",
    "UnknownRequestError",
    "as_text",
    "check_id",
    "check_stream_id",
]
