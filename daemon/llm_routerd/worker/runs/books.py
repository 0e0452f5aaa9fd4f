"""What runs do, as it is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.accounting.metrics import Metrics
    from llm_routerd.agents.run import AgentRun, Fail
    from llm_routerd.protocol.reading import SeenEvent
    from llm_routerd.protocol.request import Request
    from llm_routerd.running.ending import Spent


class RunBooks:
    """Counts for the metrics of one worker."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def turn_ended(self, request: Request, spent: Spent, events: Sequence[SeenEvent]) -> None:
        """A model's turn stands, and the run goes on."""
        del request, events
        self._metrics.called(spent.attempts)

    def heard(self, request: Request, run: AgentRun, events: Sequence[SeenEvent]) -> None:
        """These words of tools and people stand; `run` does not know of them yet."""

    def failed(self, run: AgentRun, fail: Fail) -> None:
        """A run ends while calls of it wait."""

    def ignored(self, count: int) -> None:
        """So many words of tools and people did not count."""
