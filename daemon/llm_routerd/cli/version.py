"""`llm-routerd version`."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from llm_routerd.cli.exits import Exit
from llm_routerd.cli.terminal import say

if TYPE_CHECKING:
    import argparse


def run(_: argparse.Namespace) -> Exit:
    """Print it."""
    say(f"llm-routerd {version('llm-routerd')}")
    return Exit.OK
