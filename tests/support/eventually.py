"""Waiting for a condition, and never for a duration."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def eventually(condition: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Return once `condition()` is true; fail after `seconds`."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "the condition did not come true in time"
        await asyncio.sleep(0.01)


def waited_for(what: str, find: Callable[[], T | None], *, seconds: float, passing: type[Exception]) -> T:
    """What `find()` comes to, once it is something; errors of the type `passing` pass.  Blocks; fails after `seconds`."""
    give_up_at = time.monotonic() + seconds
    while True:
        with suppress(passing):
            if (found := find()) is not None:
                return found
        assert time.monotonic() < give_up_at, f"not in {seconds:g} s: {what}"
        time.sleep(0.02)
