"""How long loading and answering take: decayed averages of what was seen, and what is taken where nothing was."""

from __future__ import annotations

from typing import Final

from msgspec import Struct, field

_HALF_LIFE_SECONDS: Final = 3600.0
_HEAVIEST: Final = 8.0  # so that the newest always counts for a ninth
_LOAD_SECONDS: Final = 15.0
_LOAD_FIRST_SECONDS: Final = 2.0
_LOAD_BYTES_PER_SECOND: Final = 500e6
_READING_TO_WRITING: Final = 10.0  # a prompt is read so many times as fast as an answer is written
_PROMPT_TOKENS_PER_SECOND: Final = 300.0


class Seen(Struct, frozen=True):
    """An average.

    Attributes:
        weight: of how many values it is, the older ones counting less.
        at: when it was last seen.
    """

    value: float
    weight: float
    at: float


Table = dict[tuple[str, str], Seen]


class Estimates(Struct, frozen=True, kw_only=True):
    """What was seen, by box and model."""

    load_seconds: Table = field(default_factory=dict)
    tokens_per_second: Table = field(default_factory=dict)
    prompt_tokens_per_second: Table = field(default_factory=dict)


def observe(seen: Seen | None, value: float, now: float) -> Seen:
    """The average with one more value, in which what is an hour old counts half."""
    if seen is None:
        return Seen(value, 1.0, now)
    age = max(0.0, now - seen.at)
    weight = min(_HEAVIEST, seen.weight * 0.5 ** (age / _HALF_LIFE_SECONDS))
    return Seen((seen.value * weight + value) / (weight + 1), weight + 1, max(now, seen.at))


class Reckoning:
    """Estimates as one plan asks for them, each reckoned once."""

    def __init__(self, estimates: Estimates, sizes: dict[str, int]) -> None:
        self._estimates = estimates
        self.sizes = sizes
        self._loads: dict[tuple[str, str], float] = {}
        self._speeds: dict[tuple[str, str], float | None] = {}
        self._reading: dict[tuple[str, str], float] = {}

    def load_seconds(self, box: str, model: str) -> float:
        """Of loading this model there: as seen; else by its size; else as seen of either; else 15."""
        known = self._loads.get((box, model))
        if known is None:
            table = self._estimates.load_seconds
            size = self.sizes.get(model, 0)
            if (box, model) not in table and size:
                known = _LOAD_FIRST_SECONDS + size / _LOAD_BYTES_PER_SECOND
            else:
                known = _nearest(table, box, model) or _LOAD_SECONDS
            self._loads[box, model] = known
        return known

    def tokens_per_second(self, box: str, model: str) -> float | None:
        """Of one call's answer; None: nothing was seen of the box or of the model."""
        try:
            return self._speeds[box, model]
        except KeyError:
            speed = self._speeds[box, model] = _nearest(self._estimates.tokens_per_second, box, model)
            return speed

    def prompt_tokens_per_second(self, box: str, model: str) -> float:
        """Of reading a prompt that the box has not read before."""
        speed = self._reading.get((box, model))
        if speed is None:
            writing = self.tokens_per_second(box, model) or 0.0
            speed = (
                _nearest(self._estimates.prompt_tokens_per_second, box, model)
                or writing * _READING_TO_WRITING
                or _PROMPT_TOKENS_PER_SECOND
            )
            self._reading[box, model] = speed
        return speed


def _nearest(table: Table, box: str, model: str) -> float | None:
    """As seen there; else the mean of the model elsewhere; else of other models on the box."""
    seen = table.get((box, model))
    if seen is not None:
        return seen.value
    for at in (1, 0):
        alike = [other.value for place, other in sorted(table.items()) if place[at] == (box, model)[at]]
        if alike:
            return sum(alike) / len(alike)
    return None
