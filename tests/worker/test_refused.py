"""A worker that Redis does not let in, or not do what it must: the log says why, by name, and nothing of the data."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from llm_routerd.errors import BrokerError
from tests.support.endings import final_of
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, says
from tests.support.queue import add, open_client
from tests.support.servers import ValkeyProcess, running_valkey
from tests.support.workers import run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

TOO_MANY = "ConnectionError: max number of clients reached"


@pytest.fixture
def server() -> Iterator[ValkeyProcess]:
    """A server of this test's own, to be restricted."""
    with running_valkey() as server:
        yield server


@asynccontextmanager
async def clients(server: ValkeyProcess, number: int) -> AsyncIterator[None]:
    """So many connections of others."""
    async with AsyncExitStack() as stack:
        for _ in range(number):
            await (await stack.enter_async_context(open_client(server.url))).ping()
        yield


def told(logs: Sequence[Any], event: str) -> list[Any]:
    """The lines of the log with this event."""
    return [line for line in logs if line["event"] == event]


async def restrict(client: Any, server: ValkeyProcess, *rules: str) -> str:
    """The URL of a user who may do everything but that."""
    await client.execute_command("ACL", "SETUSER", "restricted", "on", ">pw", "~*", "&*", "+@all", *rules)
    return server.url.replace("unix://", "unix://restricted:pw@")


async def test_log_says_that_the_server_has_too_many_clients(server: ValkeyProcess) -> None:
    """And the worker is ready as soon as there is room."""
    async with open_client(server.url) as client:
        await client.config_set("maxclients", "3")
        with capture_logs() as logs:
            async with AsyncExitStack() as others:
                await others.enter_async_context(clients(server, 2))
                worker = await others.enter_async_context(
                    run_worker(server.url, {"local": FakeBackend(says("hi"))}, until_ready=False)
                )
                await eventually(lambda: told(logs, "redis_not_ready"))
                assert [line["why"] for line in told(logs, "redis_not_ready")] == [TOO_MANY]
                assert worker.status().why == TOO_MANY
                await client.config_set("maxclients", "100")
                assert (await final_of(client, await add(client)))[0] == "result"


async def test_log_says_why_requests_cannot_be_read_although_redis_answers(server: ValkeyProcess) -> None:
    """One connection too few: the worker's second."""
    async with open_client(server.url) as client:
        await client.config_set("maxclients", "2")
        with capture_logs() as logs:
            async with run_worker(server.url, {"local": FakeBackend(says("hi"))}) as worker:
                await eventually(lambda: told(logs, "cannot_read_requests"), seconds=20)
                assert [line["why"] for line in told(logs, "cannot_read_requests")] == [TOO_MANY]
                assert not worker.status().ready
                await client.config_set("maxclients", "100")
                assert (await final_of(client, await add(client)))[0] == "result"


async def test_worker_needs_no_name(server: ValkeyProcess) -> None:
    """It works where an ACL refuses CLIENT SETNAME."""
    async with open_client(server.url) as client:
        url = await restrict(client, server, "-client|setname", "-client|setinfo")
        async with run_worker(url, {"local": FakeBackend(says("hi"))}):
            assert (await final_of(client, await add(client)))[0] == "result"


async def test_worker_that_may_not_do_what_it_must_ends_and_names_the_command(server: ValkeyProcess) -> None:
    """Who starts it sees the name, and so does the log."""
    async with open_client(server.url) as client:
        url = await restrict(client, server, "-xgroup|create")
    with capture_logs() as logs, pytest.raises(BrokerError, match=re.escape("the user may not run xgroup|create")):
        async with run_worker(url, {}):
            pass
    assert [line["why"] for line in told(logs, "redis_refuses")] == [
        "NoPermissionError: the user may not run xgroup|create"
    ]
