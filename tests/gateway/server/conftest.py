"""The server runs on uvloop, and on asyncio's own loop in tests of others: they close, pause and write differently."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
