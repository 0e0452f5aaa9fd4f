"""Validation that would hold up the event loop, done in a process of its own.

The validator holds the interpreter's lock while it works, so a thread would not help.  The process is started with the
first answer that is large, or whose schema is costly, and asked for one verdict at a time: a line of JSON in, a line
out.

A verdict of nine million steps would hold up the loop for half a second; asked for here, it does so for 0.6 ms.  To ask
takes 43 µs of the daemon's CPU, where an ordinary verdict takes half of one: hence `LIGHT_STEPS`.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE
from typing import TYPE_CHECKING, Any

import orjson

from llm_routerd.jsonschema.compiled import AnswerSchema, compile_schema

if TYPE_CHECKING:
    from asyncio.subprocess import Process

# What may be judged on the loop: some 50 ms at the very worst, and far less for any ordinary schema.
LIGHT_STEPS = 1_000_000
VALIDATE_SECONDS = 20.0
TOO_COSTLY = "$: took too long to be judged"
_LINE_BYTES = 64 * 1024 * 1024


class ValidationProcess:
    """Judges what is too heavy for the event loop.  For one event loop."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._asking = False
        self._turn = asyncio.Lock()

    async def validate(self, schema: AnswerSchema, content: Any) -> str | None:
        """As `AnswerSchema.validate`; an answer that takes too long to judge is not valid."""
        async with self._turn:
            try:
                async with asyncio.timeout(VALIDATE_SECONDS):
                    return await self._ask(schema, content)
            except TimeoutError:
                return TOO_COSTLY
            finally:
                # Anything but a whole exchange (late, cancelled, died) leaves a process that cannot be trusted.
                if self._asking:
                    await self._end()

    async def aclose(self) -> None:
        """End the process, if there is one."""
        async with self._turn:
            await self._end()

    async def _ask(self, schema: AnswerSchema, content: Any) -> str | None:
        self._asking = True
        process = self._process or await self._start()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the process was started with pipes")
        process.stdin.write(orjson.dumps([schema.raw, content], option=orjson.OPT_APPEND_NEWLINE))
        await process.stdin.drain()
        line = await process.stdout.readline()
        if not line:
            raise RuntimeError("the validation process has ended")
        self._asking = False
        verdict: str | None = orjson.loads(line)
        return verdict

    async def _start(self) -> Process:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "llm_routerd.running.validation",
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            limit=_LINE_BYTES,
        )
        return self._process

    async def _end(self) -> None:
        process, self._process, self._asking = self._process, None, False
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()


def main() -> None:
    """Answer until the input ends, which it does when the daemon does."""
    for line in sys.stdin.buffer:
        raw, content = orjson.loads(line)
        schema = compile_schema(raw)
        verdict = schema.validate(content) if isinstance(schema, AnswerSchema) else schema.message
        sys.stdout.buffer.write(orjson.dumps(verdict, option=orjson.OPT_APPEND_NEWLINE))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
