"""A daemon that is stopped while its Redis takes no writes: what is finished waits for it as long as a drain may take."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.standin.server import StandIn
from tests.support.daemons import producer, running_daemon, write_config
from tests.support.endings import final_of, nothing_left
from tests.support.eventually import eventually
from tests.support.queue import open_client
from tests.support.servers import ValkeyProcess, running_valkey

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from tests.support.processes import DaemonProcess

    Change = Callable[[ValkeyProcess], Coroutine[Any, Any, None]]

REQUESTS = 3
_KEEPS_DATA = {"appendonly": "yes", "appendfsync": "always"}
_MODELS = {"tiny": "tokens=5 delay_ms=60", "big": ""}


async def become_replica(server: ValkeyProcess) -> None:
    """It takes no writes from now on (READONLY)."""
    async with open_client(server.url) as redis:
        await redis.execute_command("REPLICAOF", "127.0.0.1", "1")


async def become_primary(server: ValkeyProcess) -> None:
    """It takes them again."""
    async with open_client(server.url) as redis:
        await redis.execute_command("REPLICAOF", "NO", "ONE")


async def kill(server: ValkeyProcess) -> None:
    """As an OOM killer does."""
    await asyncio.to_thread(server.kill)


async def start_again(server: ValkeyProcess) -> None:
    """With its data."""
    await asyncio.to_thread(server.start)


AWAY = pytest.mark.parametrize(
    ("leaves", "returns"), [(become_replica, become_primary), (kill, start_again)], ids=["readonly", "killed"]
)


async def answer_for_nobody(daemon: DaemonProcess, server: ValkeyProcess, models: StandIn, leaves: Change) -> list[str]:
    """Requests whose answers are finished when the daemon is told to stop, and Redis takes none of them; their ids."""
    async with producer(server.tcp_url) as client:
        ids = [await client.submit(prompt="begin", stream=stream) for stream in (False, "live", False)]
    await eventually(lambda: len(models.calls) == REQUESTS and all(call["tokens"] > 0 for call in models.calls))
    await leaves(server)
    await eventually(lambda: all(call["how"] == "finished" for call in models.calls))
    await daemon.until_logged("redis_not_ready")
    daemon.send_signal(signal.SIGTERM)
    await daemon.until_logged("draining")
    return ids


@AWAY
async def test_finished_answers_are_delivered_when_redis_is_back_within_the_drain(
    tmp_path: Path, leaves: Change, returns: Change
) -> None:
    """No model is asked again for them, and each is counted once."""
    with running_valkey(_KEEPS_DATA, tcp=True) as server:
        async with StandIn(_MODELS) as models:
            config = write_config(tmp_path, server.tcp_url, models.url, daemon="drain_seconds = 15")
            async with running_daemon(config) as daemon:
                ids = await answer_for_nobody(daemon, server, models, leaves)
                await asyncio.sleep(1)
                await returns(server)
                began = time.monotonic()
                assert await daemon.wait() == 0
                assert time.monotonic() - began < 10
            async with open_client(server.url) as redis:
                assert [(await final_of(redis, each))[0] for each in ids] == ["result"] * REQUESTS
                assert await redis.xlen("llm_router_metrics") == REQUESTS
                await nothing_left(redis)
            assert len(models.calls) == REQUESTS
            assert daemon.logged("answers_given_up") == []


@AWAY
async def test_finished_answers_are_given_up_and_counted_when_the_drain_is_over(
    tmp_path: Path, leaves: Change, returns: Change
) -> None:
    """One line says how many; the requests are answered by whoever has them next."""
    with running_valkey(_KEEPS_DATA, tcp=True) as server:
        async with StandIn(_MODELS) as models:
            config = write_config(tmp_path, server.tcp_url, models.url, daemon="drain_seconds = 0.5\nlease_seconds = 2")
            async with running_daemon(config) as daemon:
                ids = await answer_for_nobody(daemon, server, models, leaves)
                assert await daemon.wait() == 0
            assert [line["count"] for line in daemon.logged("answers_given_up")] == [REQUESTS]
            await returns(server)
            async with running_daemon(config), open_client(server.url) as redis:
                assert [(await final_of(redis, each))[0] for each in ids] == ["result"] * REQUESTS
                assert await redis.xlen("llm_router_metrics") == REQUESTS
                await nothing_left(redis)
            assert len(models.calls) == 2 * REQUESTS


@AWAY
async def test_redis_that_is_back_for_the_last_words_gets_finished_answers_before_requests_are_handed_back(
    tmp_path: Path, leaves: Change, returns: Change
) -> None:
    """The drain is over, and the goodbye is not: no other worker is given what has been answered."""
    with running_valkey(_KEEPS_DATA, tcp=True) as server:
        async with StandIn(_MODELS) as models:
            config = write_config(tmp_path, server.tcp_url, models.url, daemon="drain_seconds = 0.2")
            async with running_daemon(config) as daemon:
                ids = await answer_for_nobody(daemon, server, models, leaves)
                await asyncio.sleep(0.4)
                await returns(server)
                assert await daemon.wait() == 0
            assert daemon.logged("handed_back") == daemon.logged("answers_given_up") == []
            async with open_client(server.url) as redis:
                assert [(await final_of(redis, each))[0] for each in ids] == ["result"] * REQUESTS
                assert await redis.xlen("llm_router_metrics") == REQUESTS
                await nothing_left(redis)
            assert len(models.calls) == REQUESTS
