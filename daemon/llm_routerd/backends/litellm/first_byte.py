"""The first byte of a response that litellm is about to read, without taking it away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_routerd.backends.wire.framing import BOM

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_MAX_BLANKS = 65_536


async def begins_as_json(response: Any) -> bool:
    """Whether the body of an `httpx.Response` that nobody has read from yet begins as a JSON object or list.

    Raises:
        Exception: what reading from a connection raises.
    """
    source = response.stream
    rest = aiter(source)
    read = bytearray()
    opening = b""
    while not opening and len(read) < _MAX_BLANKS:
        try:
            read += await anext(rest)
        except StopAsyncIteration:
            break
        opening = bytes(read).removeprefix(BOM).lstrip()[:1]
    response.stream = _again(type(source), source, bytes(read), rest)
    return opening in {b"{", b"["}


def _again(kind: type[Any], source: Any, read: bytes, rest: AsyncIterator[bytes]) -> Any:
    """What was read and then the rest, as a stream of the kind that httpx expects."""

    class Again(kind):  # type: ignore[misc]  # httpx asks for its own base, and only litellm imports that
        def __init__(self) -> None:
            """As no stream of its own."""

        async def __aiter__(self) -> AsyncIterator[bytes]:
            if read:
                yield read
            async for chunk in rest:
                yield chunk

        async def aclose(self) -> None:
            await source.aclose()

    return Again()
