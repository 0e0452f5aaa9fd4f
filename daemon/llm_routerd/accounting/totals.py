"""Sums over calls: tokens and cost, of a deployment or of a tenant; and how long a deployment's answers have taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.protocol.metrics_event import DeploymentUsage, TenantTotals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.protocol.outcome import AttemptRecord


class Totals:
    """Calls (of a deployment) or requests (of a tenant), their tokens and their cost."""

    __slots__ = (
        "completion_tokens", "cost_usd", "estimated_calls", "estimated_cost_usd", "number", "prompt_tokens",
        "unpriced_calls",
    )  # fmt: skip

    def __init__(self) -> None:
        self.number = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cost_usd = 0.0
        self.estimated_calls = 0
        self.estimated_cost_usd = 0.0
        self.unpriced_calls = 0

    def add(self, record: AttemptRecord, step: int = 1) -> None:
        """Add what an attempt took; a `step` of -1 takes it back."""
        usage, cost = record.usage, record.cost_usd
        if usage is not None:
            self.prompt_tokens += step * usage.prompt_tokens
            self.completion_tokens += step * usage.completion_tokens
            if usage.estimated:
                self.estimated_calls += step
                self.estimated_cost_usd = max(0.0, self.estimated_cost_usd + step * (cost or 0.0))
        if cost is None:
            self.unpriced_calls += step
        elif cost:
            self.cost_usd = max(0.0, self.cost_usd + step * cost)

    def of_deployment(self) -> DeploymentUsage:
        """As the metrics event tells them of a deployment."""
        return DeploymentUsage(
            calls=self.number,
            total_tokens=self.prompt_tokens + self.completion_tokens,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cost_usd=self.cost_usd,
            estimated_calls=self.estimated_calls,
            unpriced_calls=self.unpriced_calls,
        )

    def of_tenant(self) -> TenantTotals:
        """As the metrics event tells them of a tenant."""
        return TenantTotals(
            requests=self.number,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            cost_usd=self.cost_usd,
            estimated_calls=self.estimated_calls,
            unpriced_calls=self.unpriced_calls,
        )


class Answers:
    """How long the answers of one deployment have taken."""

    __slots__ = ("early_stops", "number", "saved_ms", "total_ms")

    def __init__(self) -> None:
        self.number = 0
        self.total_ms = 0
        self.early_stops = 0
        self.saved_ms = 0

    def saved_ms_after(self, after_ms: int) -> int | None:
        """What an attempt that was ended after so long has saved; None: nothing is known to compare it with."""
        return max(0, round(self.total_ms / self.number) - after_ms) if self.number else None


def usage_by_deployment(attempts: Sequence[AttemptRecord]) -> dict[str, DeploymentUsage]:
    """What one request took, as the metrics event tells it: a deployment that was not asked is not there."""
    by_name: dict[str, Totals] = {}
    for record in attempts:
        if record.was_asked:
            totals = by_name.get(record.deployment)
            if totals is None:
                totals = by_name[record.deployment] = Totals()
            totals.number += 1
            totals.add(record)
    return {name: totals.of_deployment() for name, totals in by_name.items()}
