"""A server that takes no connection, or no command, is said to do so, by name; and one that takes no name is used without."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import RedisError

from llm_routerd.client import Client
from llm_routerd.errors import BrokerError
from llm_routerd.queue import scripts
from llm_routerd.queue.connection import ConnectionFactory, describe, execute
from llm_routerd.queue.connection import factory as connection_module
from tests.support.proxy import open_proxy
from tests.support.queue import open_client
from tests.support.servers import ValkeyProcess, running_valkey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

MAX_CLIENTS = "max number of clients reached"


@pytest.fixture
def server() -> Iterator[ValkeyProcess]:
    """A server whose users can be restricted."""
    with running_valkey(tcp=True) as server:
        yield server


@asynccontextmanager
async def user(server: ValkeyProcess, *rules: str) -> AsyncIterator[tuple[str, ...]]:
    """A user with these rules; gives its URLs, of the socket and of the port."""
    async with open_client(server.url) as operator:
        await operator.execute_command("ACL", "SETUSER", "restricted", "on", ">pw", *rules)
        yield (
            server.url.replace("unix://", "unix://restricted:pw@"),
            server.tcp_url.replace("redis://", "redis://restricted:pw@"),
        )


async def refusal_of(url: str, *command: Any) -> str:
    """What is said of a command that the server refuses."""
    connection = await ConnectionFactory(url, client_name="test").connect()
    try:
        with pytest.raises(RedisError) as caught:
            await execute(connection, command, timeout_seconds=5)
        return describe(caught.value)
    finally:
        await connection.disconnect()


async def test_server_with_too_many_clients_is_said_to_have_them() -> None:
    """It says so to whoever listens, and closes the connection on whoever writes first."""
    with running_valkey({"maxclients": "2"}, tcp=True) as server:
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await (await stack.enter_async_context(open_client(server.url))).ping()
            for url in (server.url, server.tcp_url):
                for _ in range(3):
                    with pytest.raises(RedisError) as caught:
                        await ConnectionFactory(url, client_name="test").connect()
                    assert describe(caught.value) == f"ConnectionError: {MAX_CLIENTS}"
                async with Client(url, patience_seconds=0.1) as client:
                    with pytest.raises(BrokerError, match=MAX_CLIENTS):
                        await client.ping()
                    with pytest.raises(BrokerError, match=MAX_CLIENTS):
                        await client.submit(prompt="hello")


async def test_server_that_merely_hangs_up_is_not_said_to_have_too_many_clients() -> None:
    """Nothing is made up: it is asked why, and says nothing."""
    connections = 0

    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    listener = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        with pytest.raises(RedisError) as caught:
            await ConnectionFactory(f"redis://127.0.0.1:{port}", client_name="test").connect()
        assert "clients" not in describe(caught.value)
        assert connections == 3  # asked twice: does it say why, and does it speak TLS?
    finally:
        listener.close()
        await listener.wait_closed()


async def test_connection_stands_without_a_name_where_the_server_refuses_one(server: ValkeyProcess) -> None:
    """A name is for people who look at CLIENT LIST; nothing depends on it."""
    async with user(server, "~*", "&*", "+@all", "-client|setname", "-client|setinfo") as urls:
        for url in urls:
            connection = await ConnectionFactory(url, client_name="test").connect()
            assert await execute(connection, ("PING",), timeout_seconds=5) == b"PONG"
            await connection.disconnect()
            async with Client(url) as client:
                request_id = await client.submit(prompt="hello")
                assert (await client.cancel(request_id)).type == "cancelled"


async def test_connection_has_its_name_where_it_may(server: ValkeyProcess) -> None:
    """And is in the database that the URL names."""
    async with user(server, "~*", "&*", "+@all") as urls:
        for url in (urls[0].replace("db=0", "db=3"), f"{urls[1][:-1]}3"):
            connection = await ConnectionFactory(url, client_name="test").connect()
            info = await execute(connection, ("CLIENT", "INFO"), timeout_seconds=5)
            await connection.disconnect()
            assert b" name=test " in info
            assert b" db=3 " in info
            assert b" user=restricted " in info


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("CONFIG", "GET", "x"), "NoPermissionError: the user may not run config|get"),
        (("XTRIM", "llm:secret", "MAXLEN", 0), "NoPermissionError: the user may not run xtrim"),
        (("XLEN", "secret"), "NoPermissionError: the user may not access a key"),
        (("PUBLISH", "secret", "x"), "NoPermissionError: the user may not access a channel"),
        (
            ("EVAL", "return redis.call('XTRIM', KEYS[1], 'MAXLEN', 0)", 1, "llm:secret"),
            "ResponseError: the user may not run xtrim (in a script)",
        ),
        (
            ("EVAL", "return redis.call('PUBLISH', 'secret', 'x')", 0),
            "ResponseError: the user may not access a channel (in a script)",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
async def test_command_that_an_acl_refuses_is_named_and_nothing_else(
    server: ValkeyProcess, command: tuple[Any, ...], expected: str
) -> None:
    """Neither the user, nor a key, nor a value: what an operator has to allow."""
    async with user(server, "~llm:*", "&llm:*", "+@all", "-xtrim", "-config|get") as (url, _):
        assert await refusal_of(url, *command) == expected


async def test_command_that_the_server_does_not_know_is_named_without_its_arguments(server: ValkeyProcess) -> None:
    """The server quotes them."""
    assert await refusal_of(server.url, "XNEW", "secret", "secret") == "ResponseError: unknown command XNEW"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("return redis.call('XLEN', KEYS[1])", "WRONGTYPE Operation against a key holding the wrong kind of value"),
        ("local a = nil; return a.b", "attempt to index local 'a' (a nil value)"),
    ],
)
async def test_place_in_a_script_of_ours_is_left_out(server: ValkeyProcess, script: str, expected: str) -> None:
    """The server's word stays."""
    async with open_client(server.url) as client:
        await client.set("k", "no stream")
    assert await refusal_of(server.url, "EVAL", script, 1, "k") == f"ResponseError: {expected}"


async def test_connection_is_refused_where_its_scripts_are_and_says_which_command(server: ValkeyProcess) -> None:
    """SCRIPT LOAD belongs to the connecting."""
    async with user(server, "~*", "&*", "+@all", "-script|load") as urls:
        for url in urls:
            with pytest.raises(RedisError) as caught:
                await ConnectionFactory(url, client_name="test").connect()
            assert describe(caught.value) == "NoPermissionError: the user may not run script|load"


async def test_scripts_are_loaded_in_one_round_trip(server: ValkeyProcess) -> None:
    """Over a slow link each further one counts."""
    async with open_proxy(server.port) as proxy:
        connection = await ConnectionFactory(proxy.url, client_name="test").connect()
        assert await execute(connection, ("SCRIPT", "EXISTS", scripts.ALL[-1].sha), timeout_seconds=1) == [1]
        assert proxy.trips < 8  # HELLO, SETNAME and their like
        await connection.disconnect(nowait=True)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_server_that_does_not_answer_the_greeting_is_away(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """It accepts, and is silent: that is not waited for without end."""
    monkeypatch.setattr(connection_module, "CONNECT_SECONDS", 0.2)
    writers = []

    async def keep_silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    listener = await asyncio.start_server(keep_silent, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        async with asyncio.timeout(5):
            with pytest.raises((RedisError, TimeoutError)):
                await ConnectionFactory(f"{scheme}://127.0.0.1:{port}", client_name="test").connect()
    finally:
        for writer in writers:
            writer.close()
        listener.close()
        await listener.wait_closed()
