"""`llm-routerd` without a subcommand."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from llm_routerd.cli.exits import Exit

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> Exit:
    """Show what there is."""
    arguments.parser.print_help(sys.stderr)
    return Exit.USAGE
