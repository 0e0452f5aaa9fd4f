"""What the other contract tests rely on: both brokers answer like one Redis."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError

from tests.support.servers import running_valkey

if TYPE_CHECKING:
    from tests.support.servers import ValkeyProcess


def connect(url: str) -> Any:
    """A client without retries, as the project's own; its types of stream replies are too many to be of use."""
    return Redis.from_url(url, socket_timeout=10, retry=Retry(NoBackoff(), 0), decode_responses=True)


async def test_connection_survives_error_reply(broker_url: str) -> None:
    """An error is a reply: its words are the server's, and the same connection goes on."""
    async with connect(broker_url) as client, client.client() as one:
        await one.xadd("s", {"a": "1"}, id="5-0")
        with pytest.raises(ResponseError, match="equal or smaller"):
            await one.xadd("s", {"a": "1"}, id="5-0")
        with pytest.raises(ResponseError, match=r"^WRONGTYPE"):
            await one.get("s")
        await one.xgroup_create("s", "g", id="0")
        with pytest.raises(ResponseError, match=r"^BUSYGROUP"):
            await one.xgroup_create("s", "g", id="0")
        with pytest.raises(ResponseError, match=r"^NOGROUP"):
            await one.xreadgroup("absent", "c", {"s": ">"})
        assert await one.ping()


async def test_blocking_read_wakes_on_write(broker_url: str) -> None:
    """A blocked XREADGROUP returns what another connection adds."""
    async with connect(broker_url) as reader, connect(broker_url) as writer:
        await reader.xgroup_create("s", "g", id="0", mkstream=True)
        reading = asyncio.create_task(reader.xreadgroup("g", "c", {"s": ">"}, block=5000))
        entry = await writer.xadd("s", {"a": "1"})
        reply = await reading
        (_, entries) = next(iter(reply.items())) if isinstance(reply, dict) else reply[0]
        assert entry in str(entries)


async def test_script_runs_on_streams(broker_url: str) -> None:
    """A script reads the pending list and writes an explicit ID; a refused write raises with the server's words."""
    async with connect(broker_url) as client:
        await client.xadd("s", {"a": "1"})
        await client.xgroup_create("s", "g", id="0")
        await client.xreadgroup("g", "c", {"s": ">"})
        script = (
            "redis.call('XADD', KEYS[2], '1-0', 'type', 'x') return redis.call('XPENDING', KEYS[1], 'g', '-', '+', 9)"
        )
        [[_, consumer, _, deliveries]] = await client.eval(script, 2, "s", "e")
        assert (consumer, deliveries) == ("c", 1)
        with pytest.raises(ResponseError, match="equal or smaller"):
            await client.eval(script, 2, "s", "e")


async def test_bytes_that_are_not_text_pass(broker_url: str) -> None:
    """Values are bytes: line ends, NUL and invalid UTF-8 come back as they went."""
    value = b"\xff\r\n\x00*3\r\n$"
    async with Redis.from_url(broker_url, socket_timeout=10) as client:
        await client.xadd("s", {"data": value})
        [(_, fields)] = await client.xrange("s") or []
        assert fields == {b"data": value}


async def test_valkey_is_emptied_between_tests(valkey_server: ValkeyProcess) -> None:
    """What a test leaves behind, a client's connection included, is gone after `reset`."""
    async with connect(valkey_server.url) as client:
        await client.set("left", "behind")
        await client.config_set("maxmemory", "100mb")
    valkey_server.reset()
    async with connect(valkey_server.url) as client:
        assert await client.dbsize() == 0
        assert (await client.config_get("maxmemory"))["maxmemory"] == "0"


async def test_valkey_keeps_url_and_data_over_restart() -> None:
    """A killed server with an append-only file comes back under its URL with everything acknowledged."""
    with running_valkey({"appendonly": "yes", "appendfsync": "always"}) as server:
        async with connect(server.url) as client:
            await client.set("k", "v")
        server.kill()
        server.start()
        async with connect(server.url) as client:
            assert await client.get("k") == "v"
    assert not server.directory.exists()
