"""A fixture under which a blocking call of the daemon's code fails the test that it happens in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from blockbuster import blockbuster_ctx

from llm_routerd.protocol.schema_files import load_schema

if TYPE_CHECKING:
    from collections.abc import Iterator


_ON_THE_LOOP = ("accounting", "backends", "jsonschema", "judging", "protocol", "queue", "routing", "running", "worker")


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    """No file, socket, lock or sleep on the event loop, as far as `llm_routerd` stands behind it."""
    load_schema("request")  # read once, at start-up
    with blockbuster_ctx([f"llm_routerd.{part}" for part in _ON_THE_LOOP]):
        yield
