"""Questions to Sentinels that are there, and to what is none: each is bounded, and what it comes to is one line."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from redis.exceptions import RedisError

from llm_routerd.queue.connection.describing import describe
from llm_routerd.queue.connection.locating import whereabouts_of
from llm_routerd.queue.connection.whereabouts import Place
from tests.support.processes import lasting_port
from tests.support.servers import ValkeyProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PRIMARY = 7001  # nobody is there, and a Sentinel names it all the same


@pytest.fixture(scope="module")
def sentinel() -> Iterator[ValkeyProcess]:
    """One that wants a password, and gives host names."""
    lines = ["sentinel resolve-hostnames yes", "sentinel announce-hostnames yes"]
    lines.append(f"sentinel monitor queue localhost {PRIMARY} 1")
    process = ValkeyProcess({"requirepass": "s3"}, port=lasting_port(), lines=lines, sentinel=True)
    try:
        process.start()
        yield process
    finally:
        process.close()


@asynccontextmanager
async def saying(said: bytes, *, drip_seconds: float = 0.0) -> AsyncIterator[int]:
    """A server that says this to whoever comes, whatever is asked, and no more; its port."""

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for byte in said:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(drip_seconds)
            await asyncio.sleep(30)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def told(url: str) -> str:
    """Why nobody tells where the server is, found out in bounded time."""
    with pytest.raises(RedisError) as caught:
        async with asyncio.timeout(3):
            await whereabouts_of(url, "k").find()
    return describe(caught.value)


async def test_sentinel_has_a_password_of_its_own_and_names_a_host(sentinel: ValkeyProcess) -> None:
    """The URL's own user and password are the primary's."""
    url = f"redis+sentinel://me:other@127.0.0.1:{sentinel.port}/queue?sentinel_password=s3"
    assert await whereabouts_of(url, "k").find() == Place("localhost", PRIMARY)


@pytest.mark.parametrize(
    ("service", "says"),
    [
        ("queue", "wants a password"),
        ("queue?sentinel_password=hunter2", "does not take the user and password"),
        ("queue?sentinel_username=nobody&sentinel_password=s3", "does not take the user and password"),
        ("other?sentinel_password=s3", 'the Sentinels watch no service "other"; name it as `sentinel monitor` does'),
    ],
)
async def test_what_a_sentinel_refuses_is_told(sentinel: ValkeyProcess, service: str, says: str) -> None:
    """And no password is quoted."""
    line = await told(f"redis+sentinel://:other@127.0.0.1:{sentinel.port}/{service}")
    assert says in line
    assert "hunter2" not in line
    assert "other@" not in line


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (b"", "does not answer"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "none of 1 Sentinels tells where queue is"),
        (b"-ERR secret 'unknown command'\r\n" * 9, "what answers is no Sentinel"),
        (b"*2\r\n:1\r\n:2\r\n" * 9, "what answers is no Sentinel"),
        (b"$9999999999999\r\n", "none of 1 Sentinels tells where queue is"),
        (b"*2\r\n$1\r\na\r\n$5\r\n99999\r\n", "what answers is no Sentinel"),
    ],
)
async def test_what_is_no_sentinel_is_told_as_such_in_bounded_time(said: bytes, says: str) -> None:
    """Whatever it says; nothing of it is passed on."""
    async with saying(said) as port:
        line = await told(f"redis+sentinel://127.0.0.1:{port}/queue")
    assert says in line
    assert "secret" not in line
    assert "\n" not in line


async def test_sentinels_that_hang_or_drip_delay_one_that_answers_by_a_second(sentinel: ValkeyProcess) -> None:
    """All are asked at once, and none for longer."""
    clock = asyncio.get_running_loop().time
    async with saying(b"") as hung, saying(b"*2\r\n$100\r\n" + b"a" * 100, drip_seconds=0.1) as dripping:
        where = f"127.0.0.1:{hung},127.0.0.1:{dripping},127.0.0.1:{sentinel.port}"
        began = clock()
        found = await whereabouts_of(f"redis+sentinel://{where}/queue?sentinel_password=s3", "k").find()
        assert found == Place("localhost", PRIMARY)
        assert clock() - began < 2.5


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400\r\n\r\n", b"*1\r\n*1\r\n:1\r\n" * 9, b"-MOVED\r\n" * 9])
async def test_what_is_no_node_of_a_cluster_is_told_as_such_in_bounded_time(said: bytes) -> None:
    """Whatever it says."""
    async with saying(said) as port:
        line = await told(f"redis+cluster://127.0.0.1:{port}")
    assert "no node of the Cluster tells where our keys are" in line
