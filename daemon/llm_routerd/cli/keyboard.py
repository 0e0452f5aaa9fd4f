"""The person at the terminal: what may be asked there, and the lines that are typed."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
from contextlib import suppress

_LONGEST_LINE = 4_096  # which is what a terminal itself keeps of one


class Keyboard:
    """The terminal of stdin; what is asked is written to stderr, which is one as well."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def of_person(cls) -> Keyboard | None:
        """The one at which somebody can be asked; None: there is none, or it is another command's now."""
        try:
            fd = sys.stdin.fileno()
            is_here = os.isatty(fd) and sys.stderr.isatty() and not _is_in_background(fd)
        except (OSError, ValueError, AttributeError):  # closed, or none at all
            return None
        return cls(fd) if is_here else None

    def write(self, text: str) -> None:
        """Write this, as it is."""
        sys.stderr.write(text)
        sys.stderr.flush()

    def forget(self) -> None:
        """Forget what has been typed: it was no answer to what is asked now."""
        with suppress(termios.error):
            termios.tcflush(self._fd, termios.TCIFLUSH)

    async def line(self) -> str | None:
        """The next line; None: there will be none."""
        loop = asyncio.get_running_loop()
        typed = loop.create_future()

        def read() -> None:
            try:
                data = os.read(self._fd, _LONGEST_LINE)
            except OSError:  # the terminal is gone
                data = b""
            if not typed.done():
                typed.set_result(data)

        loop.add_reader(self._fd, read)
        try:
            data: bytes = await typed
        finally:
            loop.remove_reader(self._fd)
        return data.decode("utf-8", "replace").partition("\n")[0].strip() if data else None


def _is_in_background(fd: int) -> bool:
    """Whether what is typed goes to another job of the shell: to read it would stop this one."""
    try:
        return os.tcgetpgrp(fd) != os.getpgrp()
    except OSError:  # a terminal without jobs
        return False
