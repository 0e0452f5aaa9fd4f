"""`llm-routerd deny`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llm_routerd.cli.saying import Saying
from llm_routerd.protocol.consent import Word

if TYPE_CHECKING:
    import argparse

    from llm_routerd.cli.exits import Exit


def run(arguments: argparse.Namespace) -> Exit:
    """Refuse a tool call that waits for a person, which its model is told: exit code 0 if this word stands."""
    return asyncio.run(Saying(arguments, Word(agrees=False, reason=arguments.reason)).run())
