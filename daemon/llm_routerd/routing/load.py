"""How busy a deployment is and how soon it begins to answer: what the strategy `latency` goes by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

_TTFT_WEIGHT: Final = 0.3
# Optimistic on purpose: a deployment that nobody has measured looks fast, is asked, and so is measured.
_UNMEASURED_TTFT_SECONDS: Final = 0.05
_EXPLORATION: Final = 0.05

_Candidate = TypeVar("_Candidate")


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


def draw(candidates: Sequence[_Candidate], score: Callable[[_Candidate], float], rng: random.Random) -> _Candidate:
    """The one of two with the smaller score, and now and then any, so that every one stays measured."""
    if len(candidates) == 1:
        return candidates[0]
    if rng.random() < _EXPLORATION:
        return rng.choice(candidates)
    return min(rng.sample(candidates, 2), key=score)
