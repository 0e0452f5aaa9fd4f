"""How busy a deployment is and how soon it begins to answer: what the strategy `latency` goes by."""

from __future__ import annotations

from typing import Final

_TTFT_WEIGHT: Final = 0.3
# Optimistic on purpose: a deployment that nobody has measured looks fast, is asked, and so is measured.
_UNMEASURED_TTFT_SECONDS: Final = 0.05


class Load:
    """Of one deployment.

    Attributes:
        in_flight: calls under way, waiting for their turn included.
        ttft_seconds: moving average of the time to first token; None: not measured yet.
    """

    __slots__ = ("in_flight", "ttft_seconds")

    def __init__(self) -> None:
        self.in_flight = 0
        self.ttft_seconds: float | None = None

    def sample(self, seconds: float) -> None:
        """A first token took so long, or had not come after so long."""
        known = self.ttft_seconds
        self.ttft_seconds = seconds if known is None else known + _TTFT_WEIGHT * (seconds - known)

    @property
    def score(self) -> float:
        """How long a first token may take, weighed with the calls in flight; the smaller, the better."""
        ttft = _UNMEASURED_TTFT_SECONDS if self.ttft_seconds is None else self.ttft_seconds
        return ttft * (1 + self.in_flight)
