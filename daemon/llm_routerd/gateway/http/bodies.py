"""Bodies of requests, bounded while they are read.

In size, also inflated; in time: a body has 30 s and, for every 8 KiB of it that have come, a second more, else 408.
"""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING, Final

from aiohttp import web
from msgspec import Struct

from llm_routerd.gateway.fault import Fault, RefusedError
from llm_routerd.protocol.codes import ErrorCode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_INFLATED_AT_ONCE = 1_048_576
_INFLATERS: Final = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class Limits(Struct, frozen=True, kw_only=True):
    """How long a client may take for what; seconds."""

    head: float = 10.0
    body: float = 30.0
    body_bytes_per_second: int = 8192
    idle: float = 75.0
    unread: float = 60.0


LIMITS: Final = Limits()


async def read_body(request: web.BaseRequest, most_bytes: int, limits: Limits = LIMITS) -> bytes:
    """The body of a request, inflated where it is compressed; never more than a bound of it is kept.

    Raises:
        RefusedError: 413: it is longer; 408: it comes too slowly; 415: it is compressed in a way that is not known
            here; 400: it does not come whole, or is not compressed as it says.
        OSError: the client has gone.
    """
    if (request.content_length or 0) > most_bytes:
        raise _too_large(most_bytes)
    inflate = _inflater(request.headers.get("Content-Encoding", ""))
    body = bytearray()
    async for piece in _pieces(request, limits):
        if inflate is None:
            body += piece
        else:
            await _inflate(inflate, piece, body, most_bytes + 1)
        if len(body) > most_bytes:
            raise _too_large(most_bytes)
    if inflate is not None and body and not inflate.eof:
        raise _malformed("the compressed body is cut short")
    return bytes(body)


async def _pieces(request: web.BaseRequest, limits: Limits) -> AsyncIterator[bytes]:
    """The body as it comes."""
    content = request.content
    until = asyncio.get_running_loop().time() + limits.body
    while content.exception() is not None or not content.at_eof():
        try:
            if content.is_eof():  # all of it came with the head, as it mostly does: there is nothing to wait for
                piece = content.read_nowait()
            else:
                async with asyncio.timeout_at(until):
                    piece = await content.readany()
        except TimeoutError:
            told = f"the body comes too slowly: less than {limits.body_bytes_per_second} bytes a second"
            raise RefusedError(Fault(status=408, code=ErrorCode.INVALID_REQUEST, message=told)) from None
        except web.RequestPayloadError:
            raise _malformed("the body is not valid HTTP, or does not come whole") from None
        if not piece:
            return
        until += len(piece) / limits.body_bytes_per_second
        yield piece


def _inflater(encoding: str) -> zlib._Decompress | None:
    """What inflates a body; None: it is as it is."""
    encoding = encoding.strip().lower()
    if encoding in {"", "identity"}:
        return None
    if encoding not in _INFLATERS:
        told = "a body may be compressed with gzip or deflate, once"
        raise RefusedError(Fault(status=415, code=ErrorCode.INVALID_REQUEST, message=told))
    return zlib.decompressobj(_INFLATERS[encoding])


async def _inflate(inflate: zlib._Decompress, piece: bytes, body: bytearray, most_bytes: int) -> None:
    """Add to a body, up to a bound of it."""
    while piece and len(body) < most_bytes:
        try:
            body += inflate.decompress(piece, min(_INFLATED_AT_ONCE, most_bytes - len(body)))
        except zlib.error:
            raise _malformed("the body is not compressed as its Content-Encoding says") from None
        if inflate.unused_data:
            raise _malformed("something follows the compressed body")
        piece = inflate.unconsumed_tail
        await asyncio.sleep(0)


def _too_large(most_bytes: int) -> RefusedError:
    told = f"the body is longer than {most_bytes} bytes (daemon.max_request_bytes)"
    return RefusedError(Fault(status=413, code=ErrorCode.REQUEST_TOO_LARGE, message=told))


def _malformed(told: str) -> RefusedError:
    return RefusedError(Fault(status=400, code=ErrorCode.INVALID_REQUEST, message=told))
