"""What `check` finds: one line each, with what to do about it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from llm_routerd.cli.terminal import Style, one_line


class Level(StrEnum):
    """How bad it is: only FAIL keeps the daemon from keeping its promises."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at; `remedy` is empty where nothing is to be done.  Holds no secret."""

    level: Level
    subject: str
    detail: str
    remedy: str = ""

    def to_line(self) -> str:
        """One line for a person."""
        style = Style.of(sys.stdout)
        paint = {Level.OK: style.good, Level.WARN: style.warning, Level.FAIL: style.bad}[self.level]
        text = one_line(f"{self.subject}: {self.detail.rstrip('.')}" + (f"; {self.remedy}" if self.remedy else ""))
        return f"{paint(f'{self.level:<4}')} {text}"

    def to_json(self) -> dict[str, Any]:
        """The same for a program."""
        return {
            "level": self.level.value,
            "subject": self.subject,
            "detail": self.detail,
            "remedy": self.remedy,
        }


def fine(subject: str, detail: str) -> Finding:
    """It is as it should be."""
    return Finding(level=Level.OK, subject=subject, detail=detail)


def warn(subject: str, detail: str, remedy: str = "") -> Finding:
    """It works, with less than was promised, or may not go on working."""
    return Finding(level=Level.WARN, subject=subject, detail=detail, remedy=remedy)


def fail(subject: str, detail: str, remedy: str = "") -> Finding:
    """It does not work."""
    return Finding(level=Level.FAIL, subject=subject, detail=detail, remedy=remedy)
