"""`llm-routerd cancel`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llm_routerd.cli.exits import Exit, UsageError
from llm_routerd.cli.settings import open_client, redis_of
from llm_routerd.cli.terminal import complain, json_line, note, one_line, say
from llm_routerd.cli.unknown import unknown
from llm_routerd.client import check_id
from llm_routerd.errors import UnknownRequestError

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> Exit:
    """Cancel a request, and tell which final event stands: exit code 0 if it is a cancellation.

    What nobody knows is not cancelled, unless that is asked for: a later request of that id would be dead on arrival.
    """
    try:
        check_id(arguments.id)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return asyncio.run(_cancel(arguments))


async def _cancel(arguments: argparse.Namespace) -> Exit:
    async with await open_client(redis_of(arguments), arguments.id) as client:
        try:
            final = await client.cancel(arguments.id, arguments.reason, anyway=arguments.anyway)
        except UnknownRequestError as error:
            told = str(error) if error.why_unsure else await unknown(client, arguments.id, error.others)
            complain(f"{told}; nothing was cancelled (--anyway would)")
            return Exit.UNKNOWN
    if arguments.json:
        say(json_line({"id": final.id, "type": final.type, "data": final.data}))
    elif final.type == "cancelled":
        say(one_line(f"cancelled: {final.data.get('reason', '')}"))
    else:
        note(f"too late: {arguments.id} has ended with its {final.type}")
    return Exit.OK if final.type == "cancelled" else Exit.FAILED
