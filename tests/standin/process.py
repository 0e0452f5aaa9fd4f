"""The stand-in as a process of its own: `python -m tests.standin`, see `server` and, for the flags of a box, `box`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from pathlib import Path

import orjson
import uvloop

from tests.standin.box import add_flags, read_flags
from tests.standin.server import StandIn


async def _serve(options: argparse.Namespace) -> None:
    models = dict(model.partition("=")[::2] for model in options.model) or {"stand-in": ""}
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(options.log.open("ab")) if options.log else None
        box = read_flags(options, models if options.model else {})
        server = StandIn(models, load_ms=options.load_ms, log=log, box=box)
        await server.start(options.host, options.port)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        address = {"stand-in": True, "url": server.url, "port": server.port, "models": list(server.models)}
        print(orjson.dumps(address).decode(), flush=True)
        await stop.wait()
        await server.aclose()


def main() -> None:
    """Run as a process until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="standin", description="A stand-in for a model server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", action="append", default=[], metavar="NAME[=DIRECTIVES]")
    parser.add_argument("--load-ms", type=int, default=0, help="time to load a model that is not in memory")
    parser.add_argument("--log", type=Path, help="JSONL of the calls, one line at the end of each")
    add_flags(parser)
    options = parser.parse_args()
    uvloop.run(_serve(options))
