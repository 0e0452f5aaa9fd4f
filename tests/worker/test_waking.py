"""Workers of one queue wake a box once, and put it to sleep once."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from llm_routerd.protocol.keys import Keys
from llm_routerd.running import box_watch, sleeping, waking
from tests.support.boxes import config_of
from tests.support.endings import final_of
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, says
from tests.support.queue import add, open_client
from tests.support.wakeable import Machine, OnMachine, listening, wakeable
from tests.support.workers import run_worker

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds takes less here."""
    for module in (box_watch, waking):
        monkeypatch.setattr(module, "BOOT_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(sleeping, "SETTLE_SECONDS", 0.3)


async def test_two_workers_send_one_packet_and_run_one_command(broker_url: str, tmp_path: Path) -> None:
    """All requests are answered by the box, on both workers; and again when it has been put to sleep."""
    ran = tmp_path / "ran"
    command = (sys.executable, "-S", "-c", "import sys; open(sys.argv[1], 'a').write('x')", str(ran))
    async with listening() as card, open_client(broker_url) as client:
        config = config_of(wakeable(card, slots=2, sleep_after=0.5, sleep_command=command), queue_timeout=60.0)
        machine = Machine(card)
        ways = [OnMachine(machine, says("hi", delay=0.02)) for _ in range(2)]
        for each in ways:
            each.has_resident = {"big:1b": 1}
        cloud = FakeBackend(says("from the cloud"))
        with capture_logs() as logs:
            async with (
                run_worker(broker_url, {"big@attic": ways[0], "cloud": cloud}, consumer="w1", config=config) as one,
                run_worker(broker_url, {"big@attic": ways[1], "cloud": cloud}, consumer="w2", config=config) as other,
            ):
                for worker in (one, other):
                    worker.resources.fleet.start()
                for night in range(2):
                    ids = [f"n{night}-{number}" for number in range(12)]
                    for each_id in ids:
                        await add(client, id=each_id, prompt="hello")
                    ends = [await final_of(client, each_id) for each_id in ids]
                    assert {end["deployment"] for _, end in ends} == {"big@attic"}
                    assert {len(end["attempts"]) for _, end in ends} == {1}
                    assert card.wakings == night + 1
                    await eventually(lambda night=night: ran.exists() and len(ran.read_text()) == night + 1)  # type: ignore[misc]
                    machine.is_up = False
                    await asyncio.sleep(0.7)
                    assert len(ran.read_text()) == night + 1
        assert min(len(each.calls) for each in ways) > 2
        assert cloud.calls == []
        events = [line["event"] for line in logs if line["event"].startswith("box_")]
        assert events == ["box_woken", "box_awake", "box_asleep"] * 2


async def test_box_is_woken_also_where_no_picture_of_it_can_be_kept(valkey_url: str) -> None:
    """Its key is of another type: each worker knows for itself that it is awake, and says so once."""
    async with listening() as card, open_client(valkey_url) as client:
        await client.set(Keys("llm").boxes, "a string")
        machine = Machine(card)
        way = OnMachine(machine, says("hi"))
        way.has_resident = {"big:1b": 1}
        config = config_of(wakeable(card), queue_timeout=60.0)
        with capture_logs() as logs:
            async with run_worker(valkey_url, {"big@attic": way}, config=config):
                for number in range(3):
                    await add(client, id=f"r{number}", prompt="hello")
                ends = [await final_of(client, f"r{number}") for number in range(3)]
    assert [end["deployment"] for _, end in ends] == ["big@attic"] * 3
    assert card.wakings == 1
    assert [line["event"] for line in logs].count("boxes_not_shared") == 1
