"""Text on its way to a person: colours where they are wanted, control characters where they do no harm."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from dataclasses import dataclass
from typing import Any, TextIO

# C0 but tab and line feed, DEL, C1 (0x9b opens an escape sequence too), and what reverses the direction.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_C0_PICTURES = 0x2400
_DEL, _DEL_PICTURE = 0x7F, "\u2421"


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code == ord("\r"):
        return ""  # the line feed after it says enough, and alone it would overwrite the line
    if code < ord(" "):
        return chr(_C0_PICTURES + code)
    return _DEL_PICTURE if code == _DEL else "\ufffd"


def harmless(text: str) -> str:
    """Text of a model, with nothing in it that a terminal obeys."""
    return _CONTROL.sub(_picture, text)


def one_line(text: str) -> str:
    """Text of anybody, harmless and on one line."""
    return " ".join(harmless(text).split())


def json_line(value: Any) -> str:
    """JSON on one line; what a terminal would obey is escaped, which is the same JSON."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


@dataclass(frozen=True, slots=True)
class Style:
    """ANSI styles; all of them do nothing where colours are not wanted."""

    enabled: bool

    @classmethod
    def of(cls, stream: TextIO) -> Style:
        """What suits a stream: nothing off a terminal, with NO_COLOR, or on a dumb terminal."""
        return cls(stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb")

    def dim(self, text: str) -> str:
        """For what is not the answer."""
        return self._sgr("2", text)

    def good(self, text: str) -> str:
        """For what is well."""
        return self._sgr("32", text)

    def warning(self, text: str) -> str:
        """For what deserves a look."""
        return self._sgr("33", text)

    def bad(self, text: str) -> str:
        """For what went wrong."""
        return self._sgr("31", text)

    def _sgr(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.enabled and text else text


def prepare_streams() -> None:
    """Let every character be written, whatever the locale; a lone surrogate becomes its JSON escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """One line on stdout, at once."""
    print(text, flush=True)  # noqa: T201 - the command line's output


def complain(problem: str) -> None:
    """Say on stderr why the command could not do its work."""
    line = one_line(f"llm-routerd: {problem}")
    print(Style.of(sys.stderr).bad(line), file=sys.stderr, flush=True)  # noqa: T201 - as above


def note(text: str) -> None:
    """One line on stderr: for the person, not for the program behind the pipe."""
    print(Style.of(sys.stderr).dim(one_line(text)), file=sys.stderr, flush=True)  # noqa: T201 - as above
