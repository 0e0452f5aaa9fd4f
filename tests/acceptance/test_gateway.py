"""The gateway as a process: how it starts and ends, what it says to systemd, and beside a daemon in one process."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.standin.server import StandIn
from tests.support.daemons import ServiceManager, running_daemon, write_config
from tests.support.eventually import eventually
from tests.support.processes import DaemonProcess, GatewayProcess, free_port
from tests.support.servers import running_valkey

if TYPE_CHECKING:
    from pathlib import Path

_NOWHERE = "http://127.0.0.1:9"
_SLOW = {"tiny": "tokens=25 delay_ms=20", "big": ""}
_KEY = '[gateway.keys.me]\nkey = "${env:GATEWAY_KEY}"\n'


def gateway_table(port: int, more: str = "") -> str:
    """A table to be put into a configuration."""
    return f'[gateway]\nlisten = "127.0.0.1:{port}"\n{more}'


async def chat(port: int, *, key: str = "", stream: bool = False, idempotency_key: str = "") -> tuple[int, str]:
    """Ask as an OpenAI client does: status, and all that comes."""
    body: dict[str, Any] = {"model": "default", "messages": [{"role": "user", "content": "begin"}], "stream": stream}
    given = {"Authorization": f"Bearer {key}", "Idempotency-Key": idempotency_key}
    headers = {name: value for name, value in given.items() if value.removeprefix("Bearer ")}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, headers=headers) as response,
    ):
        return response.status, await response.text()


async def ended(process: DaemonProcess) -> tuple[int, list[str]]:
    """Its exit status and all that it said."""
    async with process:
        return await process.wait(), process.output


@pytest.mark.parametrize(
    ("arguments", "more", "says"),
    [
        (["--listen", "0.0.0.0:0"], "", ("gateway.listen", "without a key", "gateway.keys", "allow_anonymous")),
        (["--listen", "nowhere"], "", ("gateway.listen", "host:port")),
        ([], "listen = '[::]:0'", ("gateway.listen", "without a key")),
        ([], "[gateway.keys.a]\nkey = 'short'", ("gateway.keys.a.key",)),
    ],
)  # fmt: skip
async def test_what_would_be_open_to_anybody_ends_it(
    tmp_path: Path, arguments: list[str], more: str, says: tuple[str, ...]
) -> None:
    """With 78, and one line that says why and what to do."""
    config = write_config(tmp_path, "redis://127.0.0.1:9", _NOWHERE, more=f"[gateway]\n{more}")
    status, output = await ended(GatewayProcess("--config", str(config), *arguments))
    assert status == 78, output
    assert all(part in output[-1] for part in says)
    assert len(output) == 1


async def test_an_address_that_is_taken_ends_it(tmp_path: Path, valkey_url: str) -> None:
    """Alone and beside a daemon."""
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", port := free_port()):
        config = write_config(tmp_path, valkey_url, _NOWHERE, more=gateway_table(port))
        for process in (GatewayProcess("--config", str(config)), DaemonProcess("--config", str(config), "--gateway")):
            status, output = await ended(process)
            assert status == 78, output
            (line,) = [line for line in output if "gateway.listen" in line]
            assert str(port) in line
            assert "in use" in line
            assert "Traceback" not in "".join(output)


async def test_a_server_that_can_never_serve_it_ends_it(tmp_path: Path) -> None:
    """As it ends a daemon: 78, one line, no traceback."""
    with running_valkey({"databases": "1", "cluster-enabled": "yes"}) as server:
        config = write_config(tmp_path, server.url, _NOWHERE, more=gateway_table(free_port()))
        status, output = await ended(GatewayProcess("--config", str(config)))
        assert status == 78, output
        assert "is in cluster mode" in output[-1]
        assert "Traceback" not in "".join(output)


async def test_systemd_is_told_and_keys_are_read_again(tmp_path: Path, valkey_url: str) -> None:
    """READY when it listens, the watchdog fed, RELOADING and READY, STOPPING; a bad reload changes nothing."""
    port, secret = free_port(), tmp_path / "key"
    secret.write_text("first-secret\n")
    table = gateway_table(port, f'[gateway.keys.me]\nkey = "${{file:{secret}}}"\n')
    async with StandIn({"tiny": "", "big": ""}) as models, ServiceManager(tmp_path, watchdog_seconds=0.4) as systemd:
        config = write_config(tmp_path, valkey_url, models.url, more=table)
        async with (
            running_daemon(config),
            GatewayProcess("--config", str(config), environ=systemd.environ) as gateway,
        ):
            await systemd.until(lambda it: it.told("READY"))
            await systemd.until(lambda it: len(it.told("WATCHDOG")) >= 3)
            assert (await chat(port, key="first-secret"))[0] == 200
            secret.write_text("second-secret\n")
            gateway.send_signal(signal.SIGHUP)
            await systemd.until(lambda it: len(it.told("READY")) == 2)
            assert systemd.told("RELOADING") == ["1"]
            assert [(await chat(port, key=key))[0] for key in ("first-secret", "second-secret")] == [401, 200]
            sound = config.read_text()
            config.write_text(sound.replace("listen = ", "listn = "))
            gateway.send_signal(signal.SIGHUP)
            await gateway.until_logged("reload_refused")
            config.write_text(sound.replace(f"127.0.0.1:{port}", "127.0.0.1:1"))
            gateway.send_signal(signal.SIGHUP)
            assert (await gateway.until_logged("change_needs_restart"))["key"] == "gateway.listen"
            assert (await chat(port, key="second-secret"))[0] == 200
            gateway.send_signal(signal.SIGTERM)
            assert await gateway.wait() == 0
            assert not any("secret" in line for line in gateway.output)
        await systemd.until(lambda it: it.told("STOPPING"))
        assert any(f"127.0.0.1:{port}" in status for status in systemd.told("STATUS"))


async def test_a_key_whose_secret_is_missing_opens_nothing(tmp_path: Path, valkey_url: str) -> None:
    """The gateway runs, and lets nobody in."""
    port = free_port()
    config = write_config(tmp_path, valkey_url, _NOWHERE, more=gateway_table(port, _KEY))
    async with GatewayProcess("--config", str(config)) as gateway:
        await gateway.until_ready()
        for key in ("", "None", "GATEWAY_KEY"):
            assert (await chat(port, key=key))[0] == 401


@pytest.mark.parametrize("stream", [True, False])
async def test_stopping_lets_an_answer_be_whole(tmp_path: Path, valkey_url: str, stream: bool) -> None:
    """SIGTERM in the middle: nobody new comes in, who waits is answered, and the status is 0."""
    port = free_port()
    async with StandIn(_SLOW) as models:
        config = write_config(tmp_path, valkey_url, models.url, more=gateway_table(port))
        async with running_daemon(config), GatewayProcess("--config", str(config)) as gateway:
            await gateway.until_ready()
            asking = asyncio.create_task(chat(port, stream=stream))
            await eventually(lambda: models.calls and models.calls[0]["tokens"] > 0)
            gateway.send_signal(signal.SIGTERM)
            status, answer = await asking
            assert await gateway.wait() == 0
        assert status == 200
        assert '"finish_reason":"stop"' in answer.replace(" ", "")
        assert models.calls[0]["how"] == "finished"


async def test_a_second_signal_does_not_wait(tmp_path: Path, valkey_url: str) -> None:
    """The client's connection breaks, and its request goes on: nothing is cancelled."""
    port = free_port()
    async with StandIn({"tiny": "tokens=9 stall_after=2", "big": ""}) as models:
        config = write_config(tmp_path, valkey_url, models.url, more=gateway_table(port))
        async with running_daemon(config) as daemon, GatewayProcess("--config", str(config)) as gateway:
            await gateway.until_ready()
            asking = asyncio.create_task(chat(port))
            await eventually(lambda: models.calls and models.calls[0]["tokens"] == 2)
            began = time.monotonic()
            for _ in range(2):
                gateway.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.3)
            assert await gateway.wait() == 0
            assert time.monotonic() - began < 5
            with pytest.raises(aiohttp.ClientError):
                await asking
            assert models.calls[0]["how"] is None
            assert "Traceback" not in "".join(gateway.output)
            daemon.send_signal(signal.SIGTERM)
            daemon.send_signal(signal.SIGTERM)


async def test_a_gateway_that_is_killed_loses_nothing(tmp_path: Path, valkey_url: str) -> None:
    """With an idempotency key its client has the same answer from another one, and the model was asked once."""
    first, second = free_port(), free_port()
    async with StandIn(_SLOW) as models:
        config = write_config(tmp_path, valkey_url, models.url, more=gateway_table(first))
        async with (
            running_daemon(config),
            GatewayProcess("--config", str(config)) as gateway,
            GatewayProcess("--config", str(config), "--listen", f"127.0.0.1:{second}") as other,
        ):
            await gateway.until_ready()
            await other.until_ready()
            asking = asyncio.create_task(chat(first, stream=True, idempotency_key="invoice-1"))
            await eventually(lambda: models.calls and models.calls[0]["tokens"] > 0)
            gateway.send_signal(signal.SIGKILL)
            with pytest.raises(aiohttp.ClientError):
                await asking
            status, answer = await chat(second, idempotency_key="invoice-1")
            assert status == 200
            assert json.loads(answer)["choices"][0]["message"]["content"]
        assert len(models.calls) == 1


async def test_one_process_is_daemon_and_gateway(tmp_path: Path, valkey_url: str) -> None:
    """It answers, takes keys over by SIGHUP, and ends when what it has begun is told to its end."""
    port = free_port()
    async with StandIn(_SLOW) as models:
        config = write_config(tmp_path, valkey_url, models.url, more=gateway_table(port))
        async with running_daemon(config, "--gateway") as daemon:
            assert (await chat(port))[0] == 200
            sound = config.read_text()
            config.write_text(sound + _KEY.replace("${env:GATEWAY_KEY}", "second-secret"))
            daemon.send_signal(signal.SIGHUP)
            await daemon.until_logged("reloaded")
            assert [(await chat(port, key=key))[0] for key in ("", "second-secret")] == [401, 200]
            before = len(models.calls)
            asking = asyncio.create_task(chat(port, key="second-secret", stream=True))
            await eventually(lambda: len(models.calls) > before and models.calls[-1]["tokens"] > 0)
            daemon.send_signal(signal.SIGTERM)
            status, answer = await asking
            assert await daemon.wait() == 0
            assert daemon.logged("task_failed") == daemon.logged("gateway_cut_off") == []
        assert status == 200
        assert "[DONE]" in answer


async def test_redis_that_comes_later_is_waited_for(tmp_path: Path) -> None:
    """Until then whoever asks is told to come again; health tells, and systemd too."""
    port = free_port()
    async with ServiceManager(tmp_path) as systemd:
        config = write_config(tmp_path, "redis://127.0.0.1:9", _NOWHERE, more=gateway_table(port))
        async with GatewayProcess("--config", str(config), environ=systemd.environ) as gateway:
            await systemd.until(lambda it: it.told("READY"))
            status, _ = await chat(port)
            assert status == 503
            await systemd.until(lambda it: any("Redis" in line for line in it.told("STATUS")))
            gateway.send_signal(signal.SIGTERM)
            assert await gateway.wait() == 0
