"""The load over HTTP: OpenAI's chat completions, asked as leanly as can be, and every token of the answers checked."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, cast

import orjson

from tests.benchmarks.load import EXPECTED, DeliveryError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_WAIT_SECONDS = 120
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came over one connection after a request, piece by piece, each with the Unix time at which it came."""

    pieces: list[tuple[float, bytes]]

    def tokens(self) -> Iterator[tuple[float, str]]:
        """The text that it streams, and when each part of it was there.

        Raises:
            DeliveryError: it is no stream, or one of a failure.
        """
        whole = b"".join(piece for _, piece in self.pieces)
        ends = list(accumulate(len(piece) for _, piece in self.pieces))
        buffer, is_done = bytearray(), False
        for end, payload in _chunks(whole):
            buffer += payload
            received = self.pieces[bisect_left(ends, end)][0]
            *events, rest = bytes(buffer).split(b"\n\n")
            buffer[:] = rest
            for event in events:
                if (data := event.partition(b"data: ")[2]) == b"[DONE]":
                    is_done = True
                elif data:
                    yield from ((received, text) for text in _texts_of(orjson.loads(data)))
        if not is_done:
            raise DeliveryError(f"the stream has no end: {whole[-200:]!r}")

    def content(self) -> str:
        """The text of an answer that is no stream.

        Raises:
            DeliveryError: it is none.
        """
        head, _, body = b"".join(piece for _, piece in self.pieces).partition(_HEAD_END)
        if not head.startswith(b"HTTP/1.1 200 "):
            raise DeliveryError(f"no answer but {head[:40]!r} {body[:200]!r}")
        return str(orjson.loads(body)["choices"][0]["message"]["content"])


def _chunks(whole: bytes) -> Iterator[tuple[int, bytes]]:
    """The chunks of a body: where each ends, and what it holds."""
    head_end = whole.find(_HEAD_END)
    if not whole.startswith(b"HTTP/1.1 200 ") or b"chunked" not in whole[:head_end].lower():
        raise DeliveryError(f"no stream but {whole[:40]!r} {whole[head_end : head_end + 200]!r}")
    at = head_end + len(_HEAD_END)
    while size := int(whole[at : (line_end := whole.index(b"\r\n", at))], 16):
        at = line_end + 2 + size + 2
        yield at, whole[line_end + 2 : at - 2]


def _texts_of(chunk: dict[str, Any]) -> Iterator[str]:
    if "error" in chunk:
        raise DeliveryError(f"the stream failed: {chunk['error']}")
    for choice in chunk["choices"]:
        if text := choice["delta"].get("content"):
            yield text


def check_answer(answer: Answer, model: str, *, streams: bool) -> list[tuple[float, str]]:
    """Hold an answer against what the model said; the tokens of a stream are returned.

    Raises:
        DeliveryError: they differ.
    """
    tokens = list(answer.tokens()) if streams else []
    content = "".join(text for _, text in tokens) if streams else answer.content()
    if content != EXPECTED.get(model, content):
        raise DeliveryError(f"{model}: not the model's answer: {content[:100]!r}")
    return tokens


def body_of(model: str, *, streams: bool) -> bytes:
    """The body of a request."""
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    return orjson.dumps({"model": model, "messages": messages, "stream": streams})


class HttpClient(asyncio.Protocol):
    """One connection, and one request after the other.

    Bare, because a thousand of these must not take the time that they measure.
    """

    def __init__(self, head: bytes) -> None:
        self._head = head
        self._pieces: list[tuple[float, bytes]] = []
        self._missing: int | None = None  # bytes of a body of a known length
        self._answered: asyncio.Future[Answer] | None = None
        self._transport: asyncio.Transport

    @classmethod
    async def connect(cls, port: int, headers: Mapping[str, str]) -> HttpClient:
        """A client with a connection of its own, to this machine; `headers` go with every request."""
        told = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/json", "Authorization": "Bearer none"}
        lines = "".join(f"{name}: {value}\r\n" for name, value in {**told, **headers}.items())
        head = f"POST /v1/chat/completions HTTP/1.1\r\n{lines}".encode()
        _, client = await asyncio.get_running_loop().create_connection(lambda: cls(head), "127.0.0.1", port)
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        """Whoever waits is told."""
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(DeliveryError(f"the connection was lost ({exc})"))

    @property
    def is_open(self) -> bool:
        """Whether it can still be asked."""
        return not self._transport.is_closing()

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    async def ask(self, body: bytes) -> Answer:
        """The whole answer, once its end has come.

        Raises:
            DeliveryError: the connection was lost, or nothing came in time.
        """
        self._pieces, self._missing = [], None
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(b"%bContent-Length: %d\r\n\r\n%b" % (self._head, len(body), body))
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                return await self._answered
        except TimeoutError:
            raise DeliveryError(f"no end of an answer in {_WAIT_SECONDS} s") from None

    def data_received(self, data: bytes) -> None:
        """A part of the answer."""
        self._pieces.append((time.time(), data))
        if len(self._pieces) == 1:
            head, _, body = data.partition(_HEAD_END)
            _, found, length = head.lower().partition(b"content-length:")
            if found:
                self._missing = int(length.split(b"\r\n", 1)[0]) - len(body)
        elif self._missing is not None:
            self._missing -= len(data)
        if self._missing == 0 or (self._missing is None and self._ends_with_last_chunk(data)):
            assert self._answered is not None
            self._answered.set_result(Answer(self._pieces))

    def _ends_with_last_chunk(self, data: bytes) -> bool:
        if len(data) < len(_LAST_CHUNK) and len(self._pieces) > 1:
            data = b"".join(piece for _, piece in self._pieces[-len(_LAST_CHUNK) :])
        return data.endswith(_LAST_CHUNK)
