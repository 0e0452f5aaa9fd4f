"""What the three systems have in common: requests in, events out, the notification that they are ready."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Any

FINAL_ID = "9007199254740991-0"
BEFORE_FINAL = "9007199254740990-0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of the benchmark.

    Attributes:
        model: what the stand-in is asked for, and the name of the daemon's deployment.
        stream: as the protocol has it.
        schema: of the answer, or None.
    """

    id: str
    model: str
    stream: bool | str = False
    schema: dict[str, Any] | None = None

    def to_wire(self) -> dict[str, Any]:
        """The request as a producer writes it."""
        wire = {"id": self.id, "model": self.model, "prompt": "Why is the sky blue?", "stream": self.stream}
        return wire if self.schema is None else wire | {"schema": self.schema}


def events_key(prefix: str, request_id: str) -> str:
    """The stream of a request's events."""
    return f"{prefix}:events:{request_id}"


def tell_ready() -> None:
    """Tell who started this process that it takes requests, as systemd would be told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
