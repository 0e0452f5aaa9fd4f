"""Descriptors of this process: whether any is left, and some that are kept for when none is."""

from __future__ import annotations

import os
from contextlib import suppress


def is_out_of_files() -> bool:
    """Whether no file can be opened now."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return True
    return False


class Reserve:
    """Descriptors that are kept to be given up when no other is left.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: list[int] = []

    def fill(self) -> None:
        """Take again what was given up, as far as there is anything."""
        with suppress(OSError):
            while len(self._kept) < self._size:
                self._kept.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def give_up(self) -> bool:
        """Make one descriptor free; False: none is left here either."""
        if not self._kept:
            return False
        os.close(self._kept.pop())
        return True

    def close(self) -> None:
        """Give up all."""
        while self.give_up():
            pass
