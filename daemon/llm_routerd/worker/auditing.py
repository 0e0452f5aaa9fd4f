"""The audit of one worker: what it writes there, beside the commits that carry most of it, and what Redis refuses."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llm_routerd.accounting.tally import Tally
from llm_routerd.protocol.audit import Audited

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_routerd.accounting.metrics import Metrics
    from llm_routerd.protocol.audit import AuditEntry
    from llm_routerd.protocol.outcome import AttemptRecord
    from llm_routerd.protocol.request import Request
    from llm_routerd.queue.broker import Broker
    from llm_routerd.worker.clock import ServerClock


class Auditor:
    """Makes and writes entries of the audit.

    Args:
        broker: this worker's side of the queue.
        clock: the server's.
        metrics: counts what is refused.
        on_refusal: told why Redis refuses entries, and None when it takes them.
        is_on: else there are none.
    """

    def __init__(
        self,
        *,
        broker: Broker,
        clock: ServerClock,
        metrics: Metrics,
        on_refusal: Callable[[str | None], None],
        is_on: bool = True,
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._metrics = metrics
        self._on_refusal = on_refusal
        self.is_on = is_on
        self._loop = asyncio.get_running_loop()

    def of(self, request: Request) -> Audited:
        """What makes the entries of a request, as of now."""
        return Audited(
            id=request.id,
            consumer=self._broker.consumer,
            now_ms=round(self._clock.server_ms()),
            now=self._loop.time(),
            tenant_id=request.tenant_id,
            context=request.context,
        )

    def calls(
        self, request: Request | None, records: Sequence[AttemptRecord], *, turn: int | None = None
    ) -> Sequence[AuditEntry]:
        """The entries of calls to models, whoever writes them; `request` is None where none could be read."""
        if not self.is_on or request is None or not records:
            return ()
        return self.of(request).calls(records, turn=turn)

    def write(self, entries: Sequence[AuditEntry]) -> None:
        """Write what no script carries, soon."""
        self._broker.audit(entries, lambda why: self.written(1, why))

    def written(self, count: int, why: str | None) -> None:
        """So many entries have been written, or were refused, and why."""
        if why is not None:
            self._metrics.count(Tally.AUDIT_REFUSED, count)
        if count:
            self._on_refusal(why)
