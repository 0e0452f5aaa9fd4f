"""What reaches a terminal is harmless, and what reaches a program is the same JSON."""

from __future__ import annotations

import io
import json

import pytest

from llm_routerd.cli.terminal import Style, harmless, json_line, one_line


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """It does."""
        return True


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", "\u241b]0;title\u2407"),
        ("\x1b[2J", "\u241b[2J"),
        ("\x9b2J", "\ufffd2J"),
        ("safe\revil", "safeevil"),
        ("line\r\nline", "line\nline"),
        ("\x08\x7f\x00", "\u2408\u2421\u2400"),
        ("\u202egnp.exe", "\ufffdgnp.exe"),
    ],
)
def test_what_a_terminal_obeys_is_neutralised(text: str, shown: str) -> None:
    """Escape sequences, C1, backspace, carriage return, reversed direction."""
    assert harmless(text) == shown


@pytest.mark.parametrize("text", ["a\tb\nc", "zażółć 日本語 👩\u200d💻 שלום"])
def test_ordinary_text_is_left_alone(text: str) -> None:
    """Tabs, line ends, other scripts and joined emoji are text."""
    assert harmless(text) == text


def test_one_line_joins_lines() -> None:
    """A reason of many lines cannot pretend to be several notes."""
    assert one_line(" a\n b\x1b[1m\r\n\tc ") == "a b\u241b[1m c"


@pytest.mark.parametrize("value", [{"t": "\x1b[2J \x9b \u202e \x7f zażółć"}, ["\ud800"], '\r\n\t"\\'])
def test_json_line_is_the_same_value_and_harmless(value: object) -> None:
    """Escaped, not replaced; on one line."""
    line = json_line(value)
    assert json.loads(line) == value
    assert harmless(line) == line
    assert "\n" not in line


def test_style_needs_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """No colours in a pipe, with NO_COLOR, or on a dumb terminal."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Style.of(Terminal()).dim("x") == "\x1b[2mx\x1b[0m"
    assert Style.of(io.StringIO()).dim("x") == "x"
    monkeypatch.setenv("TERM", "dumb")
    assert Style.of(Terminal()).bad("x") == "x"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert Style.of(Terminal()).good("x") == "x"
