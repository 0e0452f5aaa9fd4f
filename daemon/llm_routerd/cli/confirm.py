"""`llm-routerd confirm`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson

from llm_routerd.cli.exits import Exit, UsageError
from llm_routerd.cli.keyboard import Keyboard
from llm_routerd.cli.saying import Saying
from llm_routerd.cli.waiting import list_waiting
from llm_routerd.protocol.consent import Word

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> Exit:
    """Agree to a tool call that waits for a person: exit code 0 if this word stands.

    On a terminal the call is shown first, and asked about.  Without an id, list what waits.
    """
    args = _read_args(arguments.args)
    if arguments.id is None:
        if args is not None or arguments.always or arguments.yes or arguments.reason or arguments.by is not None:
            raise UsageError("give the ID of the request: without it, what waits is listed, and nothing said")
        return asyncio.run(list_waiting(arguments))
    word = Word(agrees=True, args=args, always=arguments.always, reason=arguments.reason)
    keyboard = None if arguments.yes or arguments.json else Keyboard.of_person()
    return asyncio.run(Saying(arguments, word, keyboard).run())


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
