"""What a gateway's process is about beyond serving: files, faults, what may not change while it runs."""

from __future__ import annotations

import asyncio
import resource
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from llm_routerd.config.gateway import GatewayConfig
from llm_routerd.config.tree import Config, RedisConfig
from llm_routerd.errors import BrokerError, ConfigError, UnsuitableServerError
from llm_routerd.gateway.http.gateway import Gateway
from llm_routerd.service.gateway import GatewayProcess, by_itself, start_gateway
from llm_routerd.service.limits import make_room_for_clients
from llm_routerd.worker.supervisor import Supervisor, TaskFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

ANYWHERE = Config(redis=RedisConfig(url="redis://127.0.0.1:9"), gateway=GatewayConfig(listen="127.0.0.1:0"))


@pytest.fixture
def few_files() -> Iterator[int]:
    """Have a machine that allows 400 files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    patch = pytest.MonkeyPatch()
    patch.setattr(resource, "getrlimit", lambda _: (200, 400))
    patch.setattr(resource, "setrlimit", lambda *_: None)
    yield 400
    patch.undo()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits


def test_no_more_clients_are_let_in_than_files_may_be_open(few_files: int) -> None:
    """Else the last of them would keep everybody out; a line says so, and calls to models come first."""
    with capture_logs() as logs:
        alone = make_room_for_clients(Config()).gateway.max_connections
        beside = make_room_for_clients(Config(), calls=64).gateway.max_connections
        crowded = make_room_for_clients(Config(), calls=1000).gateway.max_connections
    assert 200 < alone < few_files
    assert beside == alone - 64
    assert crowded == 8
    assert [line["event"] for line in logs] == ["too_few_files"] * 3
    few = Config(gateway=GatewayConfig(max_connections=100))
    assert make_room_for_clients(few) is few


def test_the_command_line_says_where_and_nothing_else() -> None:
    """What the file says of the gateway holds beside it."""
    config = Config(gateway=GatewayConfig(max_connections=9))
    assert by_itself(config, "127.0.0.1:1").gateway == GatewayConfig(listen="127.0.0.1:1", max_connections=9)


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (UnsuitableServerError("too old"), UnsuitableServerError),
        (BrokerError("refused"), BrokerError),
        (RuntimeError("a bug"), TaskFailed),
    ],
)
async def test_what_ends_its_connections_ends_it(
    monkeypatch: pytest.MonkeyPatch, fault: Exception, raised: type[Exception]
) -> None:
    """By its own name, and not as one of a group; only a bug of ours has a traceback in the log."""

    async def run(_: Gateway) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fail())

    async def fail() -> None:
        raise fault

    monkeypatch.setattr(Gateway, "run", run)
    process = GatewayProcess(ANYWHERE, config_path=None, listen=None)
    with capture_logs() as logs, pytest.raises(raised):
        await process.run()
    assert [line["event"] for line in logs if line["log_level"] == "error"] == (
        ["daemon_failed"] if raised is TaskFailed else []
    )


async def test_one_that_cannot_listen_leaves_nothing_behind() -> None:
    """No task, and one clear error."""
    tasks = Supervisor()
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as taken:
        port = taken.sockets[0].getsockname()[1]
        config = by_itself(ANYWHERE, f"127.0.0.1:{port}")
        with pytest.raises(ConfigError, match=rf"gateway\.listen.*{port}.*in use"):
            await start_gateway(config, tasks)
    await tasks.aclose()
    assert len(asyncio.all_tasks()) == 1
