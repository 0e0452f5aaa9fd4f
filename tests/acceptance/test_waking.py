"""A box that sleeps, with real processes: two daemons, a packet over UDP, a model server that starts when it comes."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from tests.standin.box import GB, Box, Model, flags_of
from tests.standin.server import StandIn
from tests.support.daemons import producer, running_daemon, write_config
from tests.support.eventually import eventually
from tests.support.processes import ROOT, ChildProcess, lasting_port, log_record
from tests.support.wakeable import MAC, listening

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.processes import DaemonProcess

BOOT_SECONDS = 1.5
BOX = Box(models={"qwen": Model(size=6 * GB, load_seconds=0.1)}, memory=8 * GB)
KILL = (
    "import os, signal, sys; os.kill(int(open(sys.argv[1]).read()), signal.SIGKILL); open(sys.argv[2], 'a').write('x')"
)


class Machine:
    """A model server that is started some time after a packet; `pid` is a file with its process's number."""

    def __init__(self, stack: AsyncExitStack, pid: Path) -> None:
        self.port = lasting_port()
        self.pid = pid
        self.server: ChildProcess | None = None
        self._stack = stack
        self._booting: asyncio.Task[None] | None = None

    def power_on(self) -> None:
        """It boots."""
        self._booting = asyncio.create_task(self._boot(), name="boot")

    async def _boot(self) -> None:
        await asyncio.sleep(BOOT_SECONDS)
        server = ChildProcess("-m", "tests.standin", "--port", str(self.port), *flags_of(BOX))
        self.server = await self._stack.enter_async_context(server)
        self.pid.write_text(str(server.pid))
        await server.until(lambda line: (log_record(line) or {}).get("url"))


def boxes(machine: Machine, port: int, slept: Path) -> str:
    """The tables of the configuration: the machine, its model, and the way on from there."""
    command = [sys.executable, "-S", "-c", KILL, str(machine.pid), str(slept)]
    return f"""
        [boxes.attic]
        api_base = "http://127.0.0.1:{machine.port}"
        slots = 2
        memory_gb = 8.0
        wake = "{MAC}"
        wake_seconds = 5.0
        wake_address = "127.0.0.1:{port}"
        sleep_after = 2.0
        sleep_command = {command}
        [deployments.qwen]
        model = "ollama/qwen"
        boxes = ["attic"]
        local = true
        """


def logged(daemons: list[DaemonProcess], event: str) -> int:
    """How often, by all of them."""
    return sum(len(each.logged(event)) for each in daemons)


async def test_box_is_woken_once_for_two_daemons_and_put_to_sleep_once(tmp_path: Path, valkey_url: str) -> None:
    """Who has no time goes on at once; all others are answered by it; then it is let sleep, by one of the two."""
    async with AsyncExitStack() as stack:
        card = await stack.enter_async_context(listening())
        cloud = await stack.enter_async_context(StandIn({"big": ""}))
        slept = tmp_path / "slept"
        machine = Machine(stack, tmp_path / "pid")
        card.on_packet = machine.power_on
        tables = boxes(machine, card.port, slept)
        config = write_config(tmp_path, valkey_url, cloud.url, chain=("qwen", "second"), more=tables)
        environ = {"PYTHONPATH": str(ROOT / "daemon")}
        daemons = [await stack.enter_async_context(running_daemon(config, environ=environ)) for _ in range(2)]
        client = await stack.enter_async_context(producer(valkey_url))

        hasty = await client.submit(prompt="now", timeout_ms=4000)
        ids = [await client.submit(prompt=f"hello {number}", model="default") for number in range(8)]
        result = await client.result(hasty, 10)
        assert result.data["deployment"] == "second"
        assert [each["code"] for each in result.data["attempts"]] == ["busy", None]
        assert result.data["attempts"][0]["reason"] == "waking attic takes longer than this may wait"

        ends = [await client.result(each, 20) for each in ids]
        assert {end.data["deployment"] for end in ends} == {"qwen@attic"}
        assert {len(end.data["attempts"]) for end in ends} == {1}
        assert (card.wakings, logged(daemons, "box_woken")) == (1, 1)

        server = machine.server
        assert server is not None
        await eventually(lambda: server.exit_status is not None, seconds=20)
        await eventually(lambda: logged(daemons, "box_asleep") == 1)
        await asyncio.sleep(1.5)
        assert slept.read_text() == "x"
        assert (logged(daemons, "box_asleep"), logged(daemons, "box_not_put_to_sleep"), card.wakings) == (1, 0, 1)
        assert logged(daemons, "fleet_failed") == 0
