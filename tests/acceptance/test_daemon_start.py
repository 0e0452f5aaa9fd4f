"""How the daemon starts: what it says of a bad configuration, of a Redis that is not there, and to systemd."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.standin.server import StandIn
from tests.support.daemons import ServiceManager, page, producer, running_daemon, write_config
from tests.support.eventually import eventually
from tests.support.processes import DaemonProcess, free_port
from tests.support.queue import open_client
from tests.support.servers import ValkeyProcess

if TYPE_CHECKING:
    from pathlib import Path

_NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[daemon]\nconcurency = 3", ("daemon.concurency", "concurrency")),
        ("[daemon]\nconcurrency = 'many'", ("daemon.concurrency", "whole number")),
        ("[chains.default]\ndeployments = ['lokal']", ("chains.default", "lokal", "local")),
        ("[chains.a]\ndeployments = ['local']\nfallback = ['a']", ("chains.a",)),
        ("[daemon\n", ("TOML", "line 1")),
        ("[redis]\nurl = '${env:NO_SUCH_VARIABLE}'", ("redis.url", "NO_SUCH_VARIABLE")),
        ("[metrics]\nlisten = 'nowhere'", ("metrics.listen", "host:port")),
    ],
    ids=["unknown key", "wrong type", "missing deployment", "cycle", "no TOML", "missing secret", "bad address"],
)
async def test_bad_configuration_ends_it_with_78_and_one_line(tmp_path: Path, text: str, says: tuple[str, ...]) -> None:
    """The line names the file, the key and what to do."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    status, output = await _serve_until_it_ends("--config", str(path))
    assert status == 78, output
    (line,) = output
    for part in (str(path), *says):
        assert part in line


async def test_missing_configuration_file_ends_it_with_78_and_one_line(tmp_path: Path) -> None:
    """A file that was asked for is not replaced by defaults."""
    path = tmp_path / "absent.toml"
    status, (line,) = await _serve_until_it_ends("--config", str(path))
    assert status == 78
    assert f"{path}: cannot be read" in line


async def test_bad_environment_ends_it_with_78_and_names_the_variable(tmp_path: Path) -> None:
    """The environment is a part of the configuration."""
    config = write_config(tmp_path, "redis://127.0.0.1:9", _NOWHERE)
    status, (line,) = await _serve_until_it_ends("--config", str(config), environ={"LLM_ROUTERD_LOG_LEVEL": "loud"})
    assert status == 78
    assert "LLM_ROUTERD_LOG_LEVEL" in line
    assert "debug" in line


async def _serve_until_it_ends(*arguments: str, environ: dict[str, str] | None = None) -> tuple[int, list[str]]:
    async with DaemonProcess(*arguments, environ=environ) as daemon:
        return await daemon.wait(), daemon.output


async def test_redis_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    """It keeps trying, is not ready and says so once; when Redis comes, it serves."""
    valkey, port = ValkeyProcess(tcp=True), free_port()
    tries = 0

    def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        writer.close()

    try:
        async with StandIn({"tiny": "", "big": ""}) as models, ServiceManager(tmp_path) as systemd:
            config = write_config(tmp_path, valkey.tcp_url, models.url, listen=f"127.0.0.1:{port}")
            async with DaemonProcess("--config", str(config), environ=systemd.environ) as daemon:
                async with await asyncio.start_server(hang_up, "127.0.0.1", valkey.port):
                    await eventually(lambda: tries >= 3)
                    status, why = await page(port, "/readyz")
                    assert (status, why.startswith("Redis ")) == (503, True)
                    assert (await page(port, "/healthz"))[0] == 200
                assert systemd.told("READY") == []
                assert any(status.startswith("Redis ") for status in systemd.told("STATUS"))
                await asyncio.to_thread(valkey.start)
                await daemon.until_ready()
                async with producer(valkey.tcp_url) as client:
                    assert (await client.result(await client.submit(prompt="there?"), 10)).type == "result"
                assert len(daemon.logged("redis_not_ready")) == 1
                assert (await page(port, "/readyz"))[0] == 200
    finally:
        valkey.close()


async def test_stop_before_redis_has_come_ends_it(tmp_path: Path) -> None:
    """Nobody has to kill a daemon that waits."""
    config = write_config(tmp_path, "redis://127.0.0.1:9/0", _NOWHERE)
    async with DaemonProcess("--config", str(config)) as daemon:
        await daemon.until_logged("redis_not_ready")
        daemon.send_signal(signal.SIGTERM)
        assert await daemon.wait(seconds=8) == 0


async def test_systemd_is_told_of_every_state(tmp_path: Path, valkey_url: str) -> None:
    """READY with the groups in place, the watchdog fed while it runs, STOPPING at the end."""
    async with (
        StandIn({"tiny": "", "big": ""}) as models,
        open_client(valkey_url) as redis,
        ServiceManager(tmp_path, watchdog_seconds=0.4) as systemd,
    ):
        config = write_config(tmp_path, valkey_url, models.url)
        async with DaemonProcess("--config", str(config), environ=systemd.environ) as daemon:
            await systemd.until(lambda it: it.told("READY"))
            assert await _groups(redis) == ["llm-router"] * 3
            await systemd.until(lambda it: len(it.told("WATCHDOG")) >= 3)
            daemon.send_signal(signal.SIGTERM)
            assert await daemon.wait() == 0
        await systemd.until(lambda it: it.told("STOPPING"))
        assert systemd.told("READY") == systemd.told("STOPPING")[:1] == ["1"]
        assert "answering, 0 in flight" in systemd.told("STATUS")


async def _groups(redis: Any) -> list[str]:
    lanes = ("llm:requests:high", "llm:requests", "llm:requests:low")
    return [group["name"] for lane in lanes for group in await redis.xinfo_groups(lane)]


async def test_second_daemon_on_one_machine_answers_without_the_endpoint(tmp_path: Path, valkey_url: str) -> None:
    """The port of metrics is taken by the first: that is a warning, and no reason not to work."""
    port = free_port()
    async with StandIn({"tiny": "", "big": ""}) as models:
        config = write_config(tmp_path, valkey_url, models.url, listen=f"127.0.0.1:{port}")
        async with await asyncio.start_server(lambda *_: None, "127.0.0.1", port), running_daemon(config) as daemon:
            (warning,) = daemon.logged("health_endpoint_off")
            assert str(port) in warning["why"]
            async with producer(valkey_url) as client:
                assert (await client.result(await client.submit(prompt="hello"), 10)).type == "result"


_KEYLESS = """
[deployments.cloud]
model = "openai/gpt"
api_key = "${env:NO_SUCH_KEY}"
[chains.lost]
deployments = ["cloud"]
"""


async def test_chain_that_nobody_can_answer_counts(tmp_path: Path, valkey_url: str) -> None:
    """One such chain is a line in the log and a gauge; the daemon is ready for the others."""
    port = free_port()
    async with StandIn({"tiny": "", "big": ""}) as models:
        config = write_config(tmp_path, valkey_url, models.url, listen=f"127.0.0.1:{port}", more=_KEYLESS)
        async with running_daemon(config) as daemon:
            line = await daemon.until_logged("chain_unanswerable")
            assert (line["chain"], line["why"]) == ("lost", "cloud: no NO_SUCH_KEY")
            assert await page(port, "/readyz") == (200, "ok\n")
            metrics = (await page(port, "/metrics"))[1].splitlines()
            assert 'llm_routerd_chain_usable{chain="lost"} 0' in metrics
            assert 'llm_routerd_chain_usable{chain="default"} 1' in metrics


async def test_daemon_without_any_usable_deployment_is_not_ready(tmp_path: Path, valkey_url: str) -> None:
    """It says of each why, answers what comes with an error at once, and is ready when a reload mends it."""
    port = free_port()
    async with StandIn({"tiny": "", "big": ""}) as models:
        sound = write_config(tmp_path, valkey_url, models.url, listen=f"127.0.0.1:{port}").read_text()
        config = tmp_path / "config.toml"
        keyless = 'api_key = "${env:NO_SUCH_KEY}"'
        unusable = sound.replace('model = "ollama/tiny"', f'model = "openai/tiny"\n{keyless}')
        unusable = unusable.replace('model = "openai/big"', f'model = "openai/big"\n{keyless}')
        config.write_text(unusable)
        async with running_daemon(config) as daemon:
            status, why = await page(port, "/readyz")
            assert status == 503
            assert why.startswith("no request can be answered: ")
            assert "local: no NO_SUCH_KEY" in why
            assert (await page(port, "/healthz"))[0] == 200
            async with producer(valkey_url) as client:
                final = await client.result(await client.submit(prompt="there?"), 10)
                assert (final.type, final.data["code"]) == ("error", "chain_exhausted")
            config.write_text(sound)
            daemon.send_signal(signal.SIGHUP)
            await daemon.until_logged("reloaded")
            assert (await page(port, "/readyz"))[0] == 200
