"""`llm-routerd confirm`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson

from llm_routerd.cli.exits import Exit, UsageError
from llm_routerd.cli.saying import Saying
from llm_routerd.protocol.consent import Word

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> Exit:
    """Agree to a tool call that waits for a person: exit code 0 if this word stands."""
    word = Word(agrees=True, args=_read_args(arguments.args), always=arguments.always, reason=arguments.reason)
    return asyncio.run(Saying(arguments, word).run())


def _read_args(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        args = orjson.loads(text)
    except ValueError as error:  # orjson's, and what is no UTF-8
        raise UsageError(f"--args: expected JSON: {error}") from error
    if not isinstance(args, dict):
        raise UsageError("--args: expected a JSON object: the arguments that the tool is called with")
    return args
