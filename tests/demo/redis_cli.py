"""Commands as one types them for `redis-cli`, carried out for real.

Where `redis-cli` or `valkey-cli` is installed it is called; elsewhere the same words go over a connection, and the
reply is written as `redis-cli` writes it.
"""

from __future__ import annotations

import asyncio
import shlex
import shutil
from typing import Any

from redis.asyncio.connection import Connection
from redis.exceptions import ResponseError

_REPLY_SECONDS = 40.0  # above the longest BLOCK


class RedisCli:
    """Runs command lines that begin with `redis-cli -p PORT`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.program = shutil.which("redis-cli") or shutil.which("valkey-cli")

    def line(self, command: str) -> str:
        """The whole command line for what comes after host and port."""
        return f"redis-cli -p {self._port} {command}"

    async def run(self, line: str) -> str:
        """Carry out a command line of `line`; return what `redis-cli` shows on a terminal.

        Raises:
            ResponseError: the server refused the command.
            TimeoutError: there was no reply.
        """
        name, dash_p, port, *words = shlex.split(line)
        assert (name, dash_p, port) == ("redis-cli", "-p", str(self._port)), "not a line of ours"
        async with asyncio.timeout(_REPLY_SECONDS):
            return await (self._call(self.program, words) if self.program else self._send(words))

    async def _call(self, program: str, words: list[str]) -> str:
        process = await asyncio.create_subprocess_exec(
            *(program, "-p", str(self._port), "--no-raw", *words),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            shown = (await process.communicate())[0].decode(errors="replace").rstrip("\n")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode or shown.startswith("(error)"):
            raise ResponseError(shown)
        return shown

    async def _send(self, words: list[str]) -> str:
        connection: Any = Connection(port=self._port, protocol=2, socket_timeout=None)
        try:
            await connection.connect()
            await connection.send_command(*words)
            return as_shown(await connection.read_response())
        finally:
            await connection.disconnect(nowait=True)


def as_shown(reply: Any, indent: int = 0) -> str:
    """A reply in `redis-cli`'s form."""
    match reply:
        case None:
            return "(nil)"
        case int():
            return f"(integer) {reply}"
        case bytes():
            return _quoted(reply)
        case []:
            return "(empty array)"
        case list():
            digits = len(str(len(reply)))
            lines = []
            for number, each in enumerate(reply, 1):
                margin = " " * indent if number > 1 else ""
                lines.append(f"{margin}{number:>{digits}}) {as_shown(each, indent + digits + 2)}")
            return "\n".join(lines)
        case _:
            return str(reply)


def _quoted(data: bytes) -> str:
    named = {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t", ord('"'): '\\"', ord("\\"): "\\\\"}
    characters = (named.get(byte) or (chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}") for byte in data)
    return f'"{"".join(characters)}"'
