"""Prometheus' text exposition format 0.0.4, the part of it that we need.

By hand, since it is this short: the client library costs 8 ms at every start, and 1.5 MB.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

_PREFIX: Final = "llm_routerd_"
_LABEL_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Histogram:
    """Counts of observations by size.

    Args:
        bounds: upper bounds of the buckets, ascending, each included in its bucket; a last one without bound
            is implied.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, size: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, size)] += 1
        self.total += size


class Family:
    """A metric with all its samples.

    Args:
        name: without the project's prefix.
        kind: its Prometheus type.
        help_text: one line, without backslashes.
    """

    def __init__(self, name: str, kind: Literal["counter", "gauge", "histogram"], help_text: str) -> None:
        self._name = _PREFIX + name
        self._lines = [f"# HELP {self._name} {help_text}", f"# TYPE {self._name} {kind}"]

    def add(self, value: float, **labels: str) -> None:
        """Add a sample; label values may hold anything."""
        self._add("", value, labels)

    def add_histogram(self, histogram: Histogram) -> None:
        """Add the samples of a histogram: cumulated buckets, sum and count."""
        cumulated = list(accumulate(histogram.counts))
        for bound, number in zip((*map(repr, histogram.bounds), "+Inf"), cumulated, strict=True):
            self._add("_bucket", number, {"le": bound})
        self._add("_sum", histogram.total, {})
        self._add("_count", cumulated[-1], {})

    def render(self) -> str:
        """The lines of the metric, each ended; empty where it has no sample."""
        return "\n".join([*self._lines, ""]) if len(self._lines) > 2 else ""  # noqa: PLR2004 - HELP and TYPE

    def _add(self, suffix: str, value: float, labels: dict[str, str]) -> None:
        pairs = ",".join(f'{name}="{text.translate(_LABEL_ESCAPES)}"' for name, text in labels.items())
        braces = f"{{{pairs}}}" if pairs else ""
        self._lines.append(f"{self._name}{suffix}{braces} {value!r}")


def render(families: Iterable[Family]) -> str:
    """The page to be scraped."""
    return "".join(family.render() for family in families)
