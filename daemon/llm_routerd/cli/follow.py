"""`llm-routerd follow`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llm_routerd.cli.confirming import Confirming
from llm_routerd.cli.exits import Exit, UsageError
from llm_routerd.cli.settings import open_client, redis_of
from llm_routerd.cli.views import choose_view
from llm_routerd.cli.watch import Watch
from llm_routerd.client import check_id, check_stream_id

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> Exit:
    """Show the events of a request until its final one."""
    try:
        check_id(arguments.id)
        check_stream_id(arguments.last_id)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return asyncio.run(_follow(arguments))


async def _follow(arguments: argparse.Namespace) -> Exit:
    async with await open_client(redis_of(arguments), arguments.id) as client:
        view = choose_view(as_json=arguments.json, every_event=True)
        confirming = Confirming(client, view, arguments.id, None)
        watch = Watch(
            client=client,
            view=confirming,
            beside=confirming.run,
            request_id=arguments.id,
            last_id=arguments.last_id,
            timeout_seconds=arguments.timeout,
            cancel_on_interrupt=arguments.cancel,
            wait_for_unknown=arguments.wait,
        )
        return await watch.run()
