"""Boxes that are put to sleep: when nobody uses them, by the operator's command, and awake again when they are wanted."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from llm_routerd.running import box_watch, sleeping, waking
from llm_routerd.running.sleeping import run_command
from tests.running.asking import codes
from tests.running.test_waking import alone, ask, resources_on
from tests.support.boxes import config_of
from tests.support.eventually import eventually
from tests.support.fakes import waits_for
from tests.support.wakeable import Card, Machine, listening, wakeable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llm_routerd.running.resources import Resources


@pytest.fixture
async def card() -> AsyncIterator[Card]:
    """Of the attic's box."""
    async with listening() as it:
        yield it


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds takes less here."""
    for module in (box_watch, waking):
        monkeypatch.setattr(module, "BOOT_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(sleeping, "SETTLE_SECONDS", 0.3)
    monkeypatch.setattr(sleeping, "RETRY_SECONDS", 0.8)


def python(code: str, *words: object) -> tuple[str, ...]:
    """A command that runs this."""
    return (sys.executable, "-S", "-c", code, *map(str, words))


def noting(path: Path, more: str = "") -> tuple[str, ...]:
    """A command that adds a line to a file."""
    return python(f"import sys, time; open(sys.argv[1], 'a').write('once\\n'); {more}", path)


def lines(path: Path) -> int:
    """How often such a command ran."""
    return len(path.read_text().splitlines()) if path.exists() else 0


def start(resources: Resources) -> None:
    """Put boxes to sleep from now on, as the only worker that there is."""
    resources.fleet.shared = resources.fleet._own
    resources.fleet.start()


def told(logs: list[Any], event: str) -> list[Any]:
    """Of what was logged, these."""
    return [line for line in logs if line["event"] == event]


async def test_box_that_nobody_uses_is_put_to_sleep_once_and_is_no_fault(card: Card, tmp_path: Path) -> None:
    """After its last call and `sleep_after`; its silence keeps nobody away."""
    ran, machine = tmp_path / "ran", Machine(card, is_up=True)
    config = alone(config_of(wakeable(card, sleep_after=0.8, sleep_command=noting(ran))))
    resources = resources_on(config, machine)
    start(resources)
    with capture_logs() as logs:
        for _ in range(5):
            assert codes(await ask(resources)) == [None]
            await asyncio.sleep(0.2)
            assert lines(ran) == 0
        await eventually(lambda: told(logs, "box_asleep"))
        machine.is_up = False
        await asyncio.sleep(1.2)
    assert lines(ran) == 1
    assert len(told(logs, "box_asleep")) == 1
    assert card.packets == []
    assert resources.health.states(asyncio.get_running_loop().time())["big@attic"].failures == 0
    await resources.aclose()


async def test_request_that_comes_while_it_goes_to_sleep_wakes_it_when_it_is_off(card: Card, tmp_path: Path) -> None:
    """A packet before would be lost; no call is sent to a box that is about to go."""
    ran, machine = tmp_path / "ran", Machine(card, is_up=True)
    config = alone(config_of(wakeable(card, sleep_after=0.2, sleep_command=noting(ran, "time.sleep(0.3)"))))
    resources = resources_on(config, machine)
    assert codes(await ask(resources)) == [None]
    start(resources)
    with capture_logs() as logs:
        await eventually(lambda: lines(ran) == 1)
        asked = asyncio.create_task(ask(resources))
        await asyncio.sleep(0.1)
        assert not asked.done(), "it still answers, but will not for long"
        machine.is_up = False
        await eventually(lambda: told(logs, "box_asleep"))
        assert card.packets == []
        assert codes(await asked) == [None]
    assert card.wakings == 1
    await resources.aclose()


async def test_box_is_not_put_to_sleep_while_a_call_runs_or_waits(card: Card, tmp_path: Path) -> None:
    """However long that takes."""
    ran, gate = tmp_path / "ran", asyncio.Event()
    config = alone(config_of(wakeable(card, sleep_after=0.1, sleep_command=noting(ran))))
    resources = resources_on(config, Machine(card, is_up=True), waits_for(gate))
    start(resources)
    running = [asyncio.create_task(ask(resources)) for _ in range(2)]
    await asyncio.sleep(0.7)
    assert lines(ran) == 0
    gate.set()
    await asyncio.gather(*running)
    await eventually(lambda: lines(ran) == 1)
    await resources.aclose()


async def test_command_that_fails_is_one_line_and_the_box_stays_in_use(card: Card, tmp_path: Path) -> None:
    """It is tried again after a while, and not at once."""
    ran = tmp_path / "ran"
    config = alone(config_of(wakeable(card, sleep_after=0.1, sleep_command=noting(ran, "sys.exit(3)"))))
    resources = resources_on(config, Machine(card, is_up=True))
    start(resources)
    with capture_logs() as logs:
        await eventually(lambda: told(logs, "box_not_put_to_sleep"))
        assert codes(await ask(resources)) == [None]
        await asyncio.sleep(0.4)
        assert lines(ran) == 1
        await eventually(lambda: lines(ran) == 2)
    first, *others = told(logs, "box_not_put_to_sleep")
    assert (first["box"], first["why"]) == ("attic", "sleep_command ended with status 3")
    assert len(others) <= 1
    assert card.packets == []
    await resources.aclose()


async def test_box_that_went_to_sleep_by_itself_is_left_in_peace(card: Card, tmp_path: Path) -> None:
    """The command would hang on it; it is known to sleep from then on."""
    ran, machine = tmp_path / "ran", Machine(card, is_up=True)
    config = alone(config_of(wakeable(card, sleep_after=0.2, sleep_command=noting(ran))))
    resources = resources_on(config, machine)
    assert codes(await ask(resources)) == [None]
    machine.is_up = False
    start(resources)
    with capture_logs() as logs:
        await eventually(lambda: told(logs, "box_asleep"))
        await asyncio.sleep(0.4)
    assert lines(ran) == 0
    assert [line["why"] for line in told(logs, "box_asleep")] == ["it does not answer"]
    assert codes(await ask(resources)) == [None]
    assert card.wakings == 1
    await resources.aclose()


async def test_worker_that_sees_its_own_calls_alone_puts_nothing_to_sleep(card: Card, tmp_path: Path) -> None:
    """Others may use the box."""
    ran = tmp_path / "ran"
    config = alone(config_of(wakeable(card, sleep_after=0.1, sleep_command=noting(ran))))
    resources = resources_on(config, Machine(card, is_up=True))
    resources.fleet.start()
    await asyncio.sleep(0.5)
    assert lines(ran) == 0
    await resources.aclose()


async def test_command_that_hangs_is_ended_with_all_that_it_started(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its time."""
    monkeypatch.setattr(sleeping, "COMMAND_SECONDS", 0.5)
    started = tmp_path / "started"
    command = ("/bin/sh", "-c", f"sleep 600 & echo $! > {started}.new; mv {started}.new {started}; wait")
    why = await run_command(wakeable(card, sleep_command=command))
    assert why == "sleep_command took longer than 0.5 s"
    child = int(started.read_text())
    await eventually(lambda: not _runs(child))


def _runs(pid: int) -> bool:
    """Whether a process does, and is not dead already."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


async def test_shutdown_ends_a_command_that_runs(card: Card, tmp_path: Path) -> None:
    """Nothing of ours is left."""
    started = tmp_path / "started"
    command = ("/bin/sh", "-c", f"echo $$ > {started}.new; mv {started}.new {started}; exec sleep 600")
    config = alone(config_of(wakeable(card, sleep_after=0.1, sleep_command=command)))
    resources = resources_on(config, Machine(card, is_up=True))
    start(resources)
    await eventually(started.exists)
    await resources.aclose()
    assert not _runs(int(started.read_text()))


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (("/nowhere/at-all",), "sleep_command cannot be run: No such file or directory"),
        (("/etc/passwd",), "sleep_command cannot be run: Permission denied"),
        (("a\0b",), "sleep_command cannot be run: embedded null byte"),
        (("/bin/sh", "-c", "kill -TERM $$"), "sleep_command was ended by signal 15"),
    ],
)
async def test_command_that_cannot_be_run_is_told(command: tuple[str, ...], why: str, card: Card) -> None:
    """In one line."""
    assert await run_command(wakeable(card, sleep_command=command)) == why


async def test_command_knows_its_box_and_none_of_our_keys(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its environment; no shell reads its words."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sekret")
    seen = tmp_path / "seen"
    code = "import os, sys; open(sys.argv[1], 'w').write(repr((sys.argv[2], dict(os.environ))))"
    assert await run_command(wakeable(card, sleep_command=python(code, seen, "$HOME; *"))) is None
    word, environ = eval(seen.read_text())  # noqa: S307 - what the line above has written
    assert word == "$HOME; *"
    assert {name: value for name, value in environ.items() if name.startswith("LLM_")} == {
        "LLM_ROUTERD_BOX": "attic",
        "LLM_ROUTERD_BOX_HOST": "attic",
        "LLM_ROUTERD_BOX_MAC": "aa:bb:cc:dd:ee:ff",
    }
    assert "ANTHROPIC_API_KEY" not in environ
    assert environ["PATH"] == os.environ["PATH"]
