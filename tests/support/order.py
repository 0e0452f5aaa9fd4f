"""The order of tests that several processes share: modules that wait lie among those that work."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tests.support import engines

if TYPE_CHECKING:
    import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what cannot be run here; and mix the rooms, where each process begins with a stretch of its own.

    In their usual order the last fifth of the time is waiting: for Redis, of workers, with both cores idle.
    """
    engines.leave_out(config, items)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _place(item, config))


def _place(item: pytest.Item, config: pytest.Config) -> bytes:
    """Mixed, but that what imports litellm is begun by one process: in each of them that takes some four seconds."""
    if "litellm" in item.nodeid:
        return b""
    return hashlib.sha256(str(item.path.relative_to(config.rootpath)).encode()).digest()
