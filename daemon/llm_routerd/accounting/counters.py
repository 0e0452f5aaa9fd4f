"""What one worker has counted since it started, as far as Prometheus is shown it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from llm_routerd.accounting.exposition import Histogram
from llm_routerd.accounting.totals import Answers, Totals
from llm_routerd.protocol.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.accounting.tally import Tally
    from llm_routerd.protocol.outcome import AttemptRecord

_DURATION_BOUNDS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TURN_BOUNDS: Final = (1, 2, 3, 4, 5, 7, 10, 15, 20)
MOST_TOOLS: Final = 100  # by name; whoever registers tools chooses freely
OTHER_TOOLS: Final = "other"
_TTFT_BOUNDS: Final = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(slots=True)
class Counters:
    """Numbers that only grow.

    Attributes:
        requests: by type of the final event and code; "" where it has none.
        attempts: by deployment, outcome and code, those passed over included.
        fallback_answers: by deployment.
        deployments: their calls.
        runs: with tools, by end: `result`, `cancelled`, or the code of their error.
        tool_calls: by tool and outcome.
        confirmations: by outcome.
        turns: of runs.
        answers: how long those of each deployment have taken, and what ending others early has saved.
        duration, ttft: in seconds, of requests.
    """

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    attempts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    fallback_answers: Counter[str] = field(default_factory=Counter)
    deployments: dict[str, Totals] = field(default_factory=dict)
    answers: dict[str, Answers] = field(default_factory=dict)
    saved_usd: float = 0.0
    runs: Counter[str] = field(default_factory=Counter)
    tool_calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    confirmations: Counter[str] = field(default_factory=Counter)
    turns: Histogram = field(default_factory=lambda: Histogram(_TURN_BOUNDS))
    tools: set[str] = field(default_factory=set)
    duration: Histogram = field(default_factory=lambda: Histogram(_DURATION_BOUNDS))
    ttft: Histogram = field(default_factory=lambda: Histogram(_TTFT_BOUNDS))
    tallies: Counter[Tally] = field(default_factory=Counter)

    def count_attempt(self, record: AttemptRecord) -> None:
        """Count one, whatever became of its request."""
        name, code = record.deployment, record.code
        self.attempts[name, record.outcome.value, "" if code is None else code.value] += 1
        if not record.was_asked:
            return
        totals = self.deployments.get(name)
        if totals is None:
            totals = self.deployments[name] = Totals()
        totals.number += 1
        totals.add(record)
        answers = self.answers.get(name)
        if answers is None:
            answers = self.answers[name] = Answers()
        if record.early:
            answers.early_stops += 1
            answers.saved_ms += answers.saved_ms_after(record.latency_ms) or 0
        if record.outcome is Outcome.SUCCESS:
            answers.number += 1
            answers.total_ms += record.latency_ms

    def count_answer(self, deployment: str, attempts: Sequence[AttemptRecord]) -> None:
        """Count an answer, which may have come after another deployment's turn."""
        self.fallback_answers[deployment] += attempts[0].deployment != deployment

    def count_tool_call(self, tool: str, outcome: str) -> None:
        """Count one; of the tools the first hundred have a name."""
        if len(self.tools) < MOST_TOOLS:
            self.tools.add(tool)
        self.tool_calls[tool if tool in self.tools else OTHER_TOOLS, outcome] += 1

    def saved_ms(self, record: AttemptRecord) -> int | None:
        """Estimate of what ending this attempt early has saved; None: its deployment has not answered yet."""
        answers = self.answers.get(record.deployment)
        return None if answers is None else answers.saved_ms_after(record.latency_ms)
