"""The replies of a connection, of which some are long: each comes in its turn, and what is around one is as ever."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError, ResponseError, TryAgainError

from llm_routerd.protocol.cut import HEAD_BYTES, CutBytes, CutList
from llm_routerd.queue.connection import Bounds
from llm_routerd.queue.connection.bounded_parser import BoundedParser

BOUNDS = Bounds(most_bytes=100)  # a reply of more than 400 bytes is skimmed


def parser_on(stream: asyncio.StreamReader, told: list[int] | None = None) -> BoundedParser:
    """A parser of what the stream brings."""
    progress = (lambda: None) if told is None else (lambda: told.append(1))
    parser = BoundedParser(64, bounds=lambda: BOUNDS, on_progress=progress)
    connection: Any = SimpleNamespace(_reader=stream, encoder=SimpleNamespace(decode_responses=False))
    parser.on_connect(connection)
    return parser


def packed(item: Any) -> bytes:
    """A reply on the wire."""
    match item:
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(item), item)
        case int():
            return b":%d\r\n" % item
        case _:
            return b"*%d\r\n%b" % (len(item), b"".join(map(packed, item)))


def expected(item: Any) -> Any:
    """The reply as it comes; a long one is told by its sizes alone."""
    match item:
        case bytes() if len(item) > HEAD_BYTES:
            return "cut", len(item)
        case list() if len(packed(item)) > 400 and all(isinstance(each, bytes) for each in item):
            return "cut", len(item), sum(map(len, item))
        case _:
            return item


def told(reply: Any) -> Any:
    """As `expected`."""
    match reply:
        case CutBytes(size=size):
            return "cut", size
        case CutList(count=count, size=size):
            return "cut", count, size
        case _:
            return reply


_replies = st.lists(
    st.one_of(
        st.sampled_from([b"", b"x" * 90, b"x" * 600, b"x" * 9000]),
        st.integers(0, 10**9),
        st.lists(st.sampled_from([b"", b"y" * 10, b"y" * 700]), max_size=20),
    ),
    max_size=20,
)


@given(_replies, st.lists(st.integers(1, 2000), min_size=1, max_size=10))
def test_replies_come_in_their_order_however_long_one_is(replies: list[Any], steps: list[int]) -> None:
    """Also where many short ones of a pipeline stand before a long one, in the same piece."""

    async def read() -> list[Any]:
        stream = asyncio.StreamReader()
        parser = parser_on(stream)
        data = b"".join(map(packed, replies))

        async def bring() -> None:
            at = count = 0
            while at < len(data):
                step = steps[count % len(steps)]
                stream.feed_data(data[at : at + step])
                at, count = at + step, count + 1
                await asyncio.sleep(0)

        bringing = asyncio.create_task(bring())
        found = [told(await parser.read_response()) for _ in replies]
        await bringing
        return found

    assert asyncio.run(read()) == [expected(item) for item in replies]


async def test_error_among_long_replies_is_an_error() -> None:
    """And one that ends the connection is raised."""
    stream = asyncio.StreamReader()
    parser = parser_on(stream)
    stream.feed_data(packed(b"x" * 10_000) + b"-WRONGTYPE no stream\r\n" + b"-ERR max number of clients reached\r\n")
    assert isinstance(await parser.read_response(), CutBytes)
    error = await parser.read_response()
    assert (type(error), str(error)) == (ResponseError, "WRONGTYPE no stream")
    with pytest.raises(RedisConnectionError):
        await parser.read_response()


async def test_long_reply_that_ends_amid_is_a_lost_connection() -> None:
    """Nothing of it is taken for a reply."""
    stream = asyncio.StreamReader()
    parser = parser_on(stream)
    stream.feed_data(packed(b"x" * 5000)[:4000])
    stream.feed_eof()
    with pytest.raises(RedisConnectionError):
        await parser.read_response()


async def test_others_have_their_turn_while_a_long_reply_is_read() -> None:
    """Also where all of it is there already: once per piece; and each piece counts as progress."""
    stream = asyncio.StreamReader()
    progress: list[int] = []
    parser = parser_on(stream, progress)
    stream.feed_data(packed([[b"1-0", [b"x" * 64_000]]]))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    ((_, fields),) = await parser.read_response()
    task.cancel()
    assert fields.size == 64_000
    assert turns > 900
    assert len(progress) > 900


async def test_short_replies_are_no_concern_of_the_skimmer(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, one after the other: they cost what they cost with hiredis alone."""

    def unexpected(*_: object) -> None:
        raise AssertionError("nothing is long here")

    monkeypatch.setattr("llm_routerd.queue.connection.bounded_parser.Skimmer", unexpected)
    stream = asyncio.StreamReader()
    parser = parser_on(stream)
    reply = packed([b"1-0", [b"data", b"x" * 50]])
    for _ in range(1000):
        stream.feed_data(reply)
        assert await parser.read_response() == [b"1-0", [b"data", b"x" * 50]]
    assert isinstance(parser._reader, hiredis.Reader)


@pytest.mark.parametrize("said", [b"MOVED", b"MOVED 1", b"MOVED 1 host:", b"MOVED 1 host:port", b"ASK 1 host"])
async def test_moved_that_names_no_place_is_a_reply_as_any_other(said: bytes) -> None:
    """Redis-py cannot read it, and what that raises would be taken for a fault of ours."""
    stream = asyncio.StreamReader()
    parser = parser_on(stream)
    stream.feed_data(b"-" + said + b"\r\n-MOVED 1 host:1\r\n")
    assert isinstance(await parser.read_response(), TryAgainError)
    assert isinstance(await parser.read_response(), MovedError)
