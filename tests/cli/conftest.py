"""What tests of the command share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cli.commands import Daemon

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def daemon(broker_url: str) -> Iterator[Daemon]:
    """Nobody but us answers."""
    daemon = Daemon(broker_url)
    yield daemon
    daemon.redis.close()
