"""Each task of the daemon is killed in turn: the daemon ends within a second and says why, or lives where it can."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from llm_routerd.config.tree import MetricsConfig
from llm_routerd.queue.connection import Pipe
from llm_routerd.queue.deliveries import Delivery
from llm_routerd.queue.reader import Reader
from llm_routerd.running.resources import Resources
from llm_routerd.service import daemon as daemon_module
from llm_routerd.service.daemon import Daemon
from llm_routerd.service.health_http import HealthServer
from llm_routerd.service.notify import Watchdog
from llm_routerd.worker.handler import Handler
from llm_routerd.worker.intake import Intake
from llm_routerd.worker.leases import Leases
from llm_routerd.worker.mending import Mending
from llm_routerd.worker.orphans import Orphans
from llm_routerd.worker.shard import Shard
from llm_routerd.worker.supervisor import Supervisor, TaskFailed
from llm_routerd.worker.trimmed import Trimmed
from tests.support.endings import final_of
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, hangs, says
from tests.support.processes import DaemonProcess
from tests.support.proxy import open_proxy
from tests.support.queue import add, open_client
from tests.support.servers import ValkeyProcess
from tests.support.workers import DAEMON, make_config, make_test_admission, make_test_resources

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from llm_routerd.worker.worker import Worker

SECRET = "what-it-quotes"
LONG = replace(DAEMON, lease_seconds=30.0)  # so that only what is handed back comes back


class BugError(Exception):
    """One of ours."""


class Bomb:
    """Makes a method raise: from its first moment, or once it has been lit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, at_once: bool = False) -> None:
        self._lit = asyncio.Event()
        self.is_running = False
        if at_once:
            self.light()
        original = getattr(owner, name)

        async def doomed(this: Any, *args: Any, **named: Any) -> Any:
            self.is_running = True
            if self._lit.is_set():
                raise BugError(SECRET)
            return await self._either(original(this, *args, **named))

        monkeypatch.setattr(owner, name, doomed)

    def light(self) -> None:
        """Let it raise now."""
        self._lit.set()

    async def _either(self, work: Any) -> Any:
        own, lit = asyncio.ensure_future(work), asyncio.ensure_future(self._lit.wait())
        try:
            await asyncio.wait((own, lit), return_when=asyncio.FIRST_COMPLETED)
            if own.done():
                return own.result()
            raise BugError(SECRET)
        finally:
            own.cancel()
            lit.cancel()
            await asyncio.gather(own, lit, return_exceptions=True)


class World:
    """A daemon in this process, on a model that hangs."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch, *, embedded_in: Path | None = None) -> None:
        self.model = FakeBackend(hangs())
        config = replace(make_config(url, LONG), metrics=MetricsConfig(listen="127.0.0.1:0"))

        def resources(config: Any, **named: Any) -> Any:
            return make_test_resources(config, {"local": self.model}, consumer=named["consumer"])

        monkeypatch.setattr(daemon_module, "make_resources", resources)
        monkeypatch.setattr(daemon_module, "calm_garbage_collector", lambda: None)
        self.failures: list[float] = []
        clock = asyncio.get_running_loop().time
        self.tasks = Supervisor(on_failure=lambda: self.failures.append(clock()))
        self.daemon = Daemon(config, config_path=None, embedded_in=embedded_in, tasks=self.tasks)
        self.running: asyncio.Task[None]

    @property
    def worker(self) -> Worker:
        """That of the daemon."""
        return self.daemon._worker

    @property
    def is_ready(self) -> bool:
        """Whether it answers requests."""
        return hasattr(self.daemon, "_worker") and self.worker.status().ready

    @asynccontextmanager
    async def runs(self) -> AsyncIterator[None]:
        """It runs; whatever is left of it at the end is stopped."""
        self.running = asyncio.create_task(self.daemon.run(), name="the-daemon")
        try:
            yield
        finally:
            if not self.running.done():
                self.worker.stop()
                self.worker.stop()
            async with asyncio.timeout(15):
                await asyncio.gather(self.running, return_exceptions=True)
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(None)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    async def ends(self) -> TaskFailed:
        """It has ended within a second of the fault, by a failure that is told."""
        async with asyncio.timeout(10):
            with pytest.raises(TaskFailed) as caught:
                await self.running
        (failed_at,) = self.failures
        assert asyncio.get_running_loop().time() - failed_at < 1.0
        assert SECRET not in str(caught.value)
        return caught.value


def told(logs: list[Any], event: str) -> list[Any]:
    """The lines of the log with this event."""
    return [line for line in logs if line["event"] == event]


ESSENTIAL: list[tuple[str, Any, str]] = [
    ("pipe", Pipe, "run"),
    ("leases", Leases, "run"),
    ("orphans", Orphans, "run"),
    ("mending", Mending, "run"),
    ("watchdog", Watchdog, "run"),
    ("worker", Reader, "read"),
    ("worker", Shard, "read_on"),
]


@pytest.mark.parametrize(
    ("task", "owner", "method"), ESSENTIAL, ids=[f"{each[1].__name__}.{each[2]}" for each in ESSENTIAL]
)
async def test_essential_task_that_dies_ends_the_daemon_and_hands_back_what_is_in_flight(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch, task: str, owner: Any, method: str
) -> None:
    """One error with a traceback; another worker has the request at once, and no crash is counted."""
    bomb, world = Bomb(monkeypatch, owner, method), World(valkey_url, monkeypatch)
    with capture_logs() as logs:
        async with open_client(valkey_url) as client, world.runs():
            await eventually(lambda: world.is_ready)
            await add(client)
            await eventually(lambda: world.model.running == 1)
            bomb.light()
            assert task in str(await world.ends())
            assert world.model.running == 0
            (line,) = told(logs, "daemon_failed")
            assert (line["task"], type(line["exc_info"])) == (task, BugError)
            (pending,) = await client.xpending_range("llm:requests", "llm-router", "-", "+", 10)
            assert (pending["consumer"], pending["times_delivered"]) == ("handed-back", 0)
            consumers = await client.xinfo_consumers("llm:requests", "llm-router")
            assert [each["name"] for each in consumers] == ["handed-back"]


@pytest.mark.parametrize(
    ("task", "owner", "method", "redis"),
    [(*each, "there") for each in ESSENTIAL] + [("pipe", Pipe, "run", "away"), ("watchdog", Watchdog, "run", "away")],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
async def test_essential_task_that_dies_in_its_first_moment_ends_the_daemon(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch, task: str, owner: Any, method: str, redis: str
) -> None:
    """Also where the start waits for a Redis that is not there."""
    if redis == "away":
        valkey_url = "redis://127.0.0.1:9/0"
    Bomb(monkeypatch, owner, method, at_once=True)
    world = World(valkey_url, monkeypatch)
    with capture_logs() as logs:
        async with world.runs():
            assert task in str(await world.ends())
    assert len(told(logs, "daemon_failed")) == 1


async def test_pipe_that_dies_while_the_daemon_drains_or_is_full_ends_it(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no moment at which nobody looks."""
    bomb, world = Bomb(monkeypatch, Pipe, "run"), World(valkey_url, monkeypatch)
    async with open_client(valkey_url) as client, world.runs():
        await eventually(lambda: world.is_ready)
        await add(client)
        await eventually(lambda: world.model.running == 1)
        world.worker.stop()
        await eventually(lambda: world.worker.status().draining)
        bomb.light()
        await world.ends()


async def test_last_words_are_heard_over_a_slow_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in flight goes to the others at once, and not when its lease has run out."""
    server = ValkeyProcess(tcp=True)
    server.start()
    try:
        with capture_logs() as logs:
            async with open_proxy(server.port) as proxy, open_client(server.url) as client:
                bomb, world = Bomb(monkeypatch, Orphans, "run"), World(proxy.url, monkeypatch)
                async with world.runs():
                    await eventually(lambda: world.is_ready)
                    await add(client)
                    await eventually(lambda: world.model.running == 1)
                    proxy.delay_seconds = 0.03
                    bomb.light()
                    await world.ends()
        assert (told(logs, "goodbye_unheard"), len(told(logs, "handed_back"))) == ([], 1)
    finally:
        server.close()


async def test_daemon_whose_redis_stands_still_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be handed back, which the log says; the lease will tell."""
    server = ValkeyProcess()
    server.start()
    bomb, world = Bomb(monkeypatch, Watchdog, "run"), World(server.url, monkeypatch)
    try:
        with capture_logs() as logs:
            async with open_client(server.url) as client, world.runs():
                await eventually(lambda: world.is_ready)
                await add(client)
                await eventually(lambda: world.model.running == 1)
                server.freeze()
                bomb.light()
                await world.ends()
        assert [line["in_flight"] for line in told(logs, "goodbye_unheard")] == [1]
    finally:
        server.thaw()
        server.close()


async def test_follower_of_the_embedded_server_that_dies_ends_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would start the server again; it is stopped with the daemon."""
    bomb, world = (
        Bomb(monkeypatch, Daemon, "_follow_embedded"),
        World("redis://127.0.0.1:0", monkeypatch, embedded_in=tmp_path),
    )
    async with world.runs():
        await eventually(lambda: world.is_ready)
        bomb.light()
        assert "embedded-server" in str(await world.ends())


async def test_start_that_fails_by_a_fault_is_told_as_one(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is that nobody foresaw."""
    Bomb(monkeypatch, HealthServer, "start", at_once=True)
    world = World(valkey_url, monkeypatch)
    with capture_logs() as logs:
        async with world.runs():
            async with asyncio.timeout(5):
                with pytest.raises(TaskFailed, match="BugError"):
                    await world.running
    assert len(told(logs, "daemon_failed")) == 1


async def _hang_up(world: World, client: Any) -> None:
    world.daemon._tasks.helper(world.daemon._reload(), "reload")


async def _refuse(world: World, client: Any) -> None:
    await add(client)


async def _swap(world: World, client: Any) -> None:
    config = world.daemon._config
    world.worker.reload(config, make_test_admission(config, {"local": world.model}))


async def _trim(world: World, client: Any) -> None:
    world.worker.shards[0]._intake._trimmed.receive([Delivery(lane="normal", entry="1-1", fields=())])


async def _overfill(world: World, client: Any) -> None:
    gone = [Delivery(lane="normal", entry=f"1-{n}", fields=[b"prompt", b"x"]) for n in range(20)]
    world.worker.shards[0]._intake.receive(gone)


async def _nothing(world: World, client: Any) -> None:
    pass


HELPERS: list[tuple[str, Any, str, Callable[[World, Any], Any]]] = [
    ("get-ready", Daemon, "_get_ready_for_requests", _nothing),
    ("reload", Daemon, "_read_again", _hang_up),
    ("retire-resources", Resources, "aclose", _swap),
    ("give-back", Intake, "_give_back", _overfill),
    ("end-trimmed", Trimmed, "_run", _trim),
    ("request-", Handler, "give_up", _refuse),
]


@pytest.mark.parametrize(("task", "owner", "method", "provoke"), HELPERS, ids=[each[0] for each in HELPERS])
async def test_helper_that_dies_is_told_and_the_daemon_lives(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch, task: str, owner: Any, method: str, provoke: Any
) -> None:
    """One error with a traceback, and requests are answered."""
    if owner is Handler:
        monkeypatch.setattr(Handler, "handle", _dies_once(Handler.handle))
    monkeypatch.setattr(owner, method, _dies_once(getattr(owner, method)))
    world = World(valkey_url, monkeypatch)
    world.model.scripts[:] = [says("hi")]
    with capture_logs() as logs:
        async with open_client(valkey_url) as client, world.runs():
            await eventually(lambda: world.is_ready)
            await provoke(world, client)
            await eventually(lambda: [line for line in told(logs, "task_failed") if line["task"].startswith(task)])
            assert (await final_of(client, await add(client, "high")))[0] == "result"
            assert world.is_ready
            assert not world.failures


def _dies_once(original: Any) -> Any:
    left = [BugError(SECRET)]

    async def doomed(*args: Any, **named: Any) -> Any:
        if left:
            raise left.pop()
        return await original(*args, **named)

    return doomed


@pytest.mark.parametrize("also", ["pass", "asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)"])
async def test_process_exits_with_a_failure_and_one_line_of_reason(tmp_path: Path, valkey_url: str, also: str) -> None:
    """What systemd and a person see, also where a thread will not end; the log has the traceback, and no words of it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import asyncio, time\n"
        "import llm_routerd.service.daemon\n"
        "import llm_routerd.worker.orphans as module\n"
        "llm_routerd.service.daemon.LAST_SECONDS = 0.2\n"
        "async def run(self):\n"
        f"    {also}\n"
        f"    raise KeyError({SECRET.split('-')}[-1] * 3)\n"
        "module.Orphans.run = run\n"
    )
    config = tmp_path / "config.toml"
    config.write_text(f'[redis]\nurl = "{valkey_url}"\n[log]\nformat = "json"\n[metrics]\nlisten = ""\n')
    async with DaemonProcess("--config", str(config), environ={"PYTHONPATH": str(tmp_path)}) as daemon:
        assert await daemon.wait() == 1
    (line,) = daemon.logged("daemon_failed")
    assert "Traceback" in line["exception"] or "sitecustomize.py" in line["exception"]
    if also == "pass":
        assert daemon.output[-1] == "llm-routerd: a fault in llm-routerd has ended its task orphans (KeyError)"
    assert "quotesquotes" not in "\n".join(daemon.output)
