"""Raw HTTP answers of a real Ollama and a real llama.cpp server, and a server that replays them byte for byte."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_ROOT = Path(__file__).parent / "recorded"
OLLAMA = "ollama-0.33.0-rc2"
LLAMA_SERVER = "llama-server-0.7.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One recorded answer: all of it as it came over the wire, and its body without HTTP's own framing."""

    raw: bytes
    body: bytes


def recording(server: str, name: str) -> Recording:
    """The recorded answer `<server>/<name>.http`."""
    raw = (_ROOT / server / f"{name}.http").read_bytes()
    head, _, rest = raw.partition(b"\r\n\r\n")
    return Recording(raw=raw, body=_unchunked(rest) if b"chunked" in head.lower() else rest)


def _unchunked(rest: bytes) -> bytes:
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body += rest[:length]
        rest = rest[length + 2 :]
        if length == 0:
            break
    return body


class ReplayServer:
    """Answers every request with the same bytes, `piece` of them at a time, and closes the connection."""

    def __init__(self, raw: bytes, *, piece: int | None = None) -> None:
        self._raw = raw
        self._piece = piece or len(raw)
        self._server: asyncio.Server | None = None
        self.requests: list[bytes] = []
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await read_request(reader))
        for start in range(0, len(self._raw), self._piece):
            writer.write(self._raw[start : start + self._piece])
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """One HTTP request; returns its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return await reader.readexactly(int(value))
    return b""
