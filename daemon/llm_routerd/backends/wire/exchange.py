"""One streamed answer from the POST to its end, the same for every protocol: who closes what, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from llm_routerd.backends import faults
from llm_routerd.backends.wire.framing import OversizeError
from llm_routerd.backends.wire.transport import next_chunk, settle
from llm_routerd.protocol.call import Finish

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    import aiohttp

    from llm_routerd.protocol.call import Delta


class Answer(Protocol):
    """One protocol's reading of an answer that comes in pieces.  Both methods raise `BackendError`."""

    def feed(self, chunk: bytes) -> Delta | Finish | None:
        """What one network read brings: a `Finish` with the terminal event, None if nothing to show."""
        ...

    def end(self) -> Finish:
        """The body has ended without a `Finish` from `feed`: the answer, if it is whole nevertheless."""
        ...


async def exchange(
    ask: Callable[[], Awaitable[aiohttp.ClientResponse]],
    answer: Answer,
    look_at: Callable[[Finish], Awaitable[None]] | None = None,
) -> AsyncGenerator[Delta | Finish, None]:
    """Ask, and yield what the answer brings, as `Backend.stream` has it; `look_at` may object to its end.

    Left in any other way than by its end, by an error, a cancellation or `aclose()`, it closes the
    connection, which makes the model stop.  Only a connection whose answer was read to its end goes back to
    the pool.

    Raises:
        BackendError: see `Backend.stream`.
    """
    response = await ask()
    try:
        while chunk := await next_chunk(response):
            read = answer.feed(chunk)
            if read is None:
                continue
            if isinstance(read, Finish):
                await settle(response)
                if look_at is not None:
                    await look_at(read)
                yield read
                return
            yield read
        last = answer.end()
        await settle(response)
        if look_at is not None:
            await look_at(last)
        yield last
    except OversizeError:
        raise faults.malformed("a line of the stream is too long") from None
    finally:
        response.close()
