"""A fixture under which a blocking call of the daemon's code fails the test that it happens in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from blockbuster import blockbuster_ctx

from llm_routerd.protocol.reading import KINDS
from llm_routerd.protocol.schema_files import load_schema

if TYPE_CHECKING:
    from collections.abc import Iterator


_ON_THE_LOOP = (
    "accounting",
    "agents",
    "backends",
    "jsonschema",
    "judging",
    "protocol",
    "queue",
    "routing",
    "running",
    "worker",
)


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """No file, socket, lock or sleep on the event loop, as far as `llm_routerd` stands behind it."""
    for name in ("request", "dead-letter", "metrics", *(f"event.{kind}" for kind in KINDS)):
        load_schema(name)  # the first is read at start-up, the others by tests alone
    with blockbuster_ctx([f"llm_routerd.{part}" for part in _ON_THE_LOOP]):
        yield
