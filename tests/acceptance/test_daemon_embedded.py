"""`serve --embedded`: the daemon with a Valkey of its own loses nothing, however it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llm_routerd.cli.exits import Exit
from tests.standin.server import StandIn
from tests.support.daemons import kill_server, producer, running_daemon, write_config
from tests.support.eventually import eventually
from tests.support.processes import DaemonProcess, free_port
from tests.support.queue import events_of, open_client

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory whose path is short enough for the embedded server's socket."""
    with tempfile.TemporaryDirectory(prefix="llm-") as path:
        yield Path(path)


async def test_state_survives_a_restart(directory: Path) -> None:
    """Results stay readable; a request that was queued and one that was broken off are answered afterwards."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    embedded = ("--embedded", "--state-directory", str(directory / "state"))
    async with StandIn({"tiny": ""}) as models:
        config = write_config(directory, url, models.url, chain=("local",), daemon="concurrency = 1\ndrain_seconds = 0")
        async with running_daemon(config, *embedded) as daemon, producer(url) as client:
            answered = await client.submit(prompt="first")
            assert (await client.result(answered, 10)).type == "result"
            models.models["tiny"] = "stall_after=0"
            broken_off, queued = await client.submit(prompt="second"), await client.submit(prompt="third")
            await eventually(lambda: len(models.calls) == 2)
            daemon.send_signal(signal.SIGTERM)
            assert await daemon.wait() == 0
        models.models["tiny"] = ""
        async with running_daemon(config, *embedded), producer(url) as client:
            final = await client.final(answered)
            assert final is not None
            assert final.type == "result"
            for request_id in (broken_off, queued):
                assert (await client.result(request_id, 10)).type == "result"


async def test_daemon_killed_in_the_middle_of_an_answer_leaves_one_final_event(directory: Path) -> None:
    """The next start answers it once more as the next attempt, whose text replaces that of the first."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    embedded = ("--embedded", "--state-directory", str(directory / "state"))
    async with StandIn({"tiny": "tokens=40 delay_ms=10 stall_after=5"}) as models:
        config = write_config(directory, url, models.url, chain=("local",), daemon="lease_seconds = 1")
        async with running_daemon(config, *embedded) as daemon, producer(url) as client:
            request_id = await client.submit(prompt="begin", stream="live")
            async for event in client.follow(request_id):
                if event.type == "token":
                    break
            daemon.send_signal(signal.SIGKILL)
            assert await daemon.wait() == -signal.SIGKILL
        models.models["tiny"] = "tokens=3"
        async with running_daemon(config, *embedded), producer(url) as client, open_client(url) as redis:
            result = await client.result(request_id, 15)
            events = await events_of(redis, request_id)
            begins = [(event_id, data["delivery"]) for event_id, kind, data in events if kind == "attempt"]
            assert begins == [("1-0", 1), ("2-0", 2)]
            assert [kind for _, kind, _ in events].count("result") == 1
            assert events[-1][1] == "result"
            second = [data["text"] for event_id, kind, data in events if kind == "token" and event_id.startswith("2-")]
            assert "".join(second) == result.data["content"]
            assert await redis.xlen("llm:requests") == 0


async def test_server_that_is_killed_comes_back_with_its_data(directory: Path) -> None:
    """What is in flight, what waits and what comes after are answered by the same daemon."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    embedded = ("--embedded", "--state-directory", str(directory / "state"))
    async with StandIn({"tiny": "tokens=30 delay_ms=50"}) as models:
        config = write_config(directory, url, models.url, chain=("local",), daemon="concurrency = 1\nlease_seconds = 2")
        async with running_daemon(config, *embedded) as daemon, producer(url) as client, open_client(url) as redis:
            in_flight, queued = await client.submit(prompt="one"), await client.submit(prompt="two")
            await eventually(lambda: len(models.calls) == 1)
            await asyncio.sleep(1.1)  # appendfsync everysec: what SIGKILL of the server alone cannot lose
            await kill_server(redis)
            after = await client.submit(prompt="three")
            for request_id in (in_flight, queued, after):
                assert (await client.result(request_id, 20)).type == "result"
            assert daemon.logged("embedded_server_ended")
            daemon.send_signal(signal.SIGTERM)
            assert await daemon.wait() == 0


async def test_server_that_ends_time_and_again_is_a_failure(directory: Path) -> None:
    """So that the service manager starts all anew, or says that it cannot be."""
    url = f"redis://127.0.0.1:{free_port()}/0"
    embedded = ("--embedded", "--state-directory", str(directory / "state"))
    config = write_config(directory, url, "http://127.0.0.1:9", chain=("local",), daemon="drain_seconds = 0")
    async with running_daemon(config, *embedded) as daemon, open_client(url) as redis:
        for _ in range(5):
            await kill_server(redis)
        os.kill((await redis.info("server"))["process_id"], signal.SIGKILL)
        assert await daemon.wait(seconds=20) == Exit.UNAVAILABLE
        assert any("ended 6 times" in line for line in daemon.output)


async def test_redis_on_another_machine_cannot_be_embedded(directory: Path) -> None:
    """One line says so, without the password that the URL holds."""
    config = write_config(directory, "redis://:hunter2@192.0.2.1:6379/0", "http://127.0.0.1:9")
    async with DaemonProcess(
        "--config", str(config), "--embedded", "--state-directory", str(directory / "state")
    ) as it:
        assert await it.wait() == 78
        (line,) = it.output
        assert "redis.url: --embedded listens on this machine only" in line
        assert "hunter2" not in line
