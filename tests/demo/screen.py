"""How the demo shows things: headings, wrapped prose, JSON that fits the terminal, and the time to read it."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import textwrap
from typing import Any, TextIO

from llm_routerd.cli.terminal import Style, harmless
from llm_routerd.cli.views import LiveView

_WIDEST = 100


class Screen:
    """Standard output, for a person.

    Attributes:
        unhurried: somebody reads along, so that there are pauses and slow tokens.
        width: columns to be used.
    """

    def __init__(self, stream: TextIO = sys.stdout, *, fast: bool = False) -> None:
        self._stream = stream
        self._style = Style.of(stream)
        self.unhurried = stream.isatty() and not fast
        self.width = min(shutil.get_terminal_size((80, 24)).columns, _WIDEST)

    def heading(self, text: str) -> None:
        """Begin the next part."""
        bold = f"\x1b[1m{text}\x1b[0m" if self._style.enabled else text
        self._write(f"\n{bold}\n{self._style.dim('-' * min(self.width, len(text)))}")

    def say(self, text: str) -> None:
        """A paragraph."""
        self._write(textwrap.fill(text, self.width))

    def fact(self, name: str, text: str) -> None:
        """A name, and what there is to say about it."""
        lines = textwrap.wrap(text, self.width, initial_indent=f"{name:<10}", subsequent_indent=" " * 10)
        self._write("\n".join(lines))

    def good(self, text: str) -> None:
        """What has been shown just now, in figures."""
        self._write(self._style.good(textwrap.fill(text, self.width)))

    def comment(self, text: str) -> None:
        """What the next command does, as a comment of the shell."""
        self._write(f"\n{self._style.dim(f'# {text}')}")

    def command(self, text: str) -> None:
        """A command of the shell, in one piece for pasting."""
        self._write(f"$ {text}")

    def block(self, text: str) -> None:
        """Lines as they are, each cut at the edge."""
        for line in harmless(text).splitlines():
            self._write(line if len(line) <= self.width else f"{line[: self.width - 1]}…")

    def json(self, value: Any) -> None:
        """A JSON value, whole."""
        self._write(pretty_json(value, self.width))

    def view(self) -> LiveView:
        """What `llm-routerd submit` and `follow` show of a request on a terminal."""
        return LiveView(self._stream)

    async def pause(self, seconds: float) -> None:
        """Give the reader time."""
        self._stream.flush()
        if self.unhurried:
            await asyncio.sleep(seconds)

    def _write(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()


def pretty_json(value: Any, width: int, indent: int = 0, used: int = 0) -> str:
    """JSON that opens only what does not fit on one line; `used` columns of the first line are taken."""
    flat = json.dumps(value, ensure_ascii=False)
    if indent + used + len(flat) < width or not isinstance(value, (dict, list)) or not value:
        return flat
    inner = indent + 2
    if isinstance(value, dict):
        names = [json.dumps(name, ensure_ascii=False) + ": " for name in value]
        lines = [
            name + pretty_json(each, width, inner, len(name)) for name, each in zip(names, value.values(), strict=True)
        ]
        opening, closing = "{", "}"
    else:
        lines = [pretty_json(each, width, inner) for each in value]
        opening, closing = "[", "]"
    margin = "\n" + " " * inner
    return f"{opening}{margin}{(',' + margin).join(lines)}\n{' ' * indent}{closing}"
