"""How the daemon takes signals: SIGTERM drains, a second one hurries, SIGHUP reads the configuration again."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.standin.server import StandIn
from tests.support.daemons import ServiceManager, producer, running_daemon, write_config
from tests.support.eventually import eventually
from tests.support.queue import events_of, open_client
from tests.support.servers import running_valkey

if TYPE_CHECKING:
    from pathlib import Path

    from llm_routerd.client import Client

_SLOW = {"tiny": "tokens=25 delay_ms=20", "big": ""}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_first_signal_finishes_what_runs_and_reads_nothing_more(
    tmp_path: Path, valkey_url: str, number: signal.Signals
) -> None:
    """The answer under way is written to its end, what comes now waits for another worker, and the status is 0."""
    async with StandIn(_SLOW) as models, open_client(valkey_url) as redis, producer(valkey_url) as client:
        async with running_daemon(write_config(tmp_path, valkey_url, models.url)) as daemon:
            request_id = await client.submit(prompt="begin", stream="live")
            await eventually(lambda: models.calls and models.calls[0]["tokens"] > 0)
            daemon.send_signal(number)
            await daemon.until_logged("draining")
            late = await redis.xadd("llm:requests", {"prompt": "too late"})
            assert await daemon.wait() == 0
        assert models.calls[0]["how"] == "finished"
        final = await client.final(request_id)
        assert final is not None
        assert final.type == "result"
        assert [entry for entry, _ in await redis.xrange("llm:requests")] == [late]
        assert await events_of(redis, late) == []
        assert await redis.xinfo_consumers("llm:requests", "llm-router") == []


async def test_second_sigterm_hands_back_at_once_and_another_daemon_answers(tmp_path: Path, valkey_url: str) -> None:
    """Nothing is lost and nothing counts as a crash, however impatient the operator is."""
    models = {"tiny": "tokens=9 stall_after=2", "big": ""}
    async with StandIn(models) as server, open_client(valkey_url) as redis, producer(valkey_url) as client:
        config = write_config(tmp_path, valkey_url, server.url)
        async with running_daemon(config) as daemon:
            request_id = await client.submit(prompt="begin", stream="live")
            await eventually(lambda: server.calls and server.calls[0]["tokens"] == 2)
            daemon.send_signal(signal.SIGTERM)
            await daemon.until_logged("draining")
            began = time.monotonic()
            daemon.send_signal(signal.SIGTERM)
            assert await daemon.wait() == 0
            assert time.monotonic() - began < 5
        assert server.calls[0]["how"] == "client_disconnected"
        assert await client.final(request_id) is None
        server.models["tiny"] = ""
        async with running_daemon(config):
            assert (await client.result(request_id, 10)).type == "result"
        begins = [
            (event_id, data["delivery"])
            for event_id, kind, data in await events_of(redis, request_id)
            if kind == "attempt"
        ]
        assert begins == [("1-0", 1), ("2-0", 1)]


async def test_drain_that_takes_too_long_is_ended(tmp_path: Path, valkey_url: str) -> None:
    """`drain_seconds` bounds it, also for a model that says nothing any more."""
    async with StandIn({"tiny": "stall_after=0"}) as models, producer(valkey_url) as client:
        config = write_config(tmp_path, valkey_url, models.url, chain=("local",), daemon="drain_seconds = 0.3")
        async with running_daemon(config) as daemon:
            request_id = await client.submit(prompt="begin")
            await eventually(lambda: len(models.calls) == 1)
            daemon.send_signal(signal.SIGTERM)
            assert await daemon.wait(seconds=8) == 0
        assert await client.final(request_id) is None
        assert await client.redis.xlen("llm:requests") == 1


async def test_reload_takes_a_good_file_and_refuses_a_bad_one(tmp_path: Path, valkey_url: str) -> None:
    """A bad file is named with key and remedy, and changes nothing: requests go on being answered."""
    async with (
        StandIn({"tiny": "", "big": ""}) as models,
        producer(valkey_url) as client,
        ServiceManager(tmp_path) as systemd,
    ):
        path = write_config(tmp_path, valkey_url, models.url, chain=("local",))
        async with running_daemon(path, environ=systemd.environ) as daemon:
            write_config(tmp_path, valkey_url, models.url, chain=("second",), daemon="concurency = 3")
            daemon.send_signal(signal.SIGHUP)
            refused = await daemon.until_logged("reload_refused")
            for part in (str(path), "daemon.concurency", "concurrency"):
                assert part in refused["why"]
            assert await _deployment_that_answers(client) == "local"

            write_config(tmp_path, valkey_url, models.url, chain=("second",), daemon="lease_seconds = 20")
            daemon.send_signal(signal.SIGHUP)
            await daemon.until_logged("reloaded")
            assert await _deployment_that_answers(client) == "second"
            assert [line["key"] for line in daemon.logged("change_needs_restart")] == ["daemon.lease_seconds"]

            path.unlink()
            daemon.send_signal(signal.SIGHUP)
            await daemon.until(lambda line: line if "cannot be read" in line else None)
            assert await _deployment_that_answers(client) == "second"
            await systemd.until(lambda it: len(it.told("READY")) == 4)
        reloading = [message for message in systemd.messages if "RELOADING" in message]
        assert len(reloading) == 3
        assert all(int(message["MONOTONIC_USEC"]) > 0 for message in reloading)


async def _deployment_that_answers(client: Client) -> str:
    final = await client.result(await client.submit(prompt="who?"), 10)
    return str(final.data["deployment"])


async def test_reload_lets_running_requests_end_on_the_configuration_they_began_with(
    tmp_path: Path, valkey_url: str
) -> None:
    """The connections of the old deployments close after the last of their answers, not under it."""
    async with (
        StandIn(_SLOW) as models,
        producer(valkey_url) as client,
        running_daemon(write_config(tmp_path, valkey_url, models.url)) as daemon,
    ):
        request_id = await client.submit(prompt="begin")
        await eventually(lambda: models.calls and models.calls[0]["tokens"] > 0)
        write_config(tmp_path, valkey_url, models.url, chain=("second",))
        daemon.send_signal(signal.SIGHUP)
        await daemon.until_logged("reloaded")
        result = await client.result(request_id, 10)
        assert (result.type, result.data["deployment"]) == ("result", "local")
        assert len(result.data["attempts"]) == 1


@pytest.mark.parametrize("reloads", ["before", "meanwhile"])
async def test_stop_after_a_reload_leaves_no_connection_to_a_model_open(tmp_path: Path, reloads: str) -> None:
    """Answers that Redis is away for keep the old deployments' connections; what came with a reload has some, too."""
    daemon_keys = "drain_seconds = 2"
    with running_valkey(tcp=True) as server:
        async with StandIn({"tiny": "tokens=5 delay_ms=100", "big": ""}) as models:
            config = write_config(tmp_path, server.tcp_url, models.url, daemon=daemon_keys)
            async with running_daemon(config) as daemon:
                async with producer(server.tcp_url) as client:
                    await client.submit(prompt="begin")
                await eventually(lambda: models.calls and models.calls[0]["tokens"] > 0)
                server.kill()
                write_config(tmp_path, server.tcp_url, models.url, chain=("second",), daemon=daemon_keys)
                if reloads == "before":
                    daemon.send_signal(signal.SIGHUP)
                    await daemon.until_logged("reloaded")
                daemon.send_signal(signal.SIGTERM)
                await daemon.until_logged("draining")
                if reloads == "meanwhile":
                    daemon.send_signal(signal.SIGHUP)
                    await daemon.until_logged("reloaded")
                assert await daemon.wait() == 0
            assert daemon.logged("event_loop_exception") == []
            assert len(models.calls) == 1


async def test_reload_that_comes_too_late_does_not_spoil_the_exit_status(tmp_path: Path, valkey_url: str) -> None:
    """The loop that took signals has gone before the process has."""
    async with StandIn({"tiny": "", "big": ""}) as models:
        config = write_config(tmp_path, valkey_url, models.url, daemon="drain_seconds = 1")
        async with running_daemon(config) as daemon:
            daemon.send_signal(signal.SIGTERM)
            await daemon.until_logged("stopped")
            while daemon.exit_status is None:
                with contextlib.suppress(ProcessLookupError):
                    daemon.send_signal(signal.SIGHUP)
                await asyncio.sleep(0.001)
            assert await daemon.wait() == 0
            assert daemon.logged("event_loop_exception") == []
