"""The log of what has become of requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.accounting.metrics import Finished
    from llm_routerd.protocol.outcome import AttemptRecord

log = get_logger()


class RequestLog:
    """An observer that writes a line for each request that has its end; why one was refused is logged where it is."""

    def settled(self, finished: Finished) -> None:
        """Its end stands."""
        log.debug("request_finished", id=finished.id, type=finished.type, latency_ms=finished.latency_ms)

    def called(self, attempts: Sequence[AttemptRecord]) -> None:
        """Somebody else has ended it, and logs it."""
