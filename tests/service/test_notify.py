from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from typing import TYPE_CHECKING

import pytest

from llm_routerd.service.notify import Notifier, Watchdog
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.setblocking(False)

    def messages(self) -> list[str]:
        """Return what has arrived since the last call."""
        received: list[str] = []
        while True:
            try:
                received.append(self._socket.recv(65_536).decode())
            except BlockingIOError:
                return received

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """Return a service manager that listens at `tmp_path / "notify"`."""
    end = Manager(str(tmp_path / "notify"))
    yield end
    end.close()


@pytest.fixture
def notifier(manager: Manager, tmp_path: Path) -> Notifier:
    """Return a notifier of a service whose watchdog is set to 0.2 seconds."""
    return Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"})


def test_without_a_socket_nothing_is_sent_or_raised() -> None:
    """A daemon at a shell has no service manager."""
    notifier = Notifier({})
    notifier.ready("here")
    assert not notifier.enabled
    assert notifier.watchdog_seconds is None


def test_a_manager_that_is_gone_does_not_matter(tmp_path: Path) -> None:
    """The socket's path may lead nowhere, or be no socket at all."""
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "missing")}).ready()
    (tmp_path / "file").write_text("")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "file")}).ready()
    Notifier({"NOTIFY_SOCKET": "/" + "x" * 200}).ready()


def test_a_manager_that_does_not_read_does_not_block(manager: Manager, notifier: Notifier) -> None:
    """Once the socket's buffer is full, messages are lost, and the daemon goes on."""
    begun = time.monotonic()
    for _ in range(2000):
        notifier.status("x" * 1000)
    assert time.monotonic() - begun < 2
    assert 0 < len(manager.messages()) < 2000


def test_states_are_sent_as_systemd_reads_them(manager: Manager, notifier: Notifier) -> None:
    """Each state is one datagram of assignments."""
    notifier.ready("8 lanes")
    notifier.status("idle")
    notifier.stopping("draining 3")
    notifier.feed_watchdog()
    assert manager.messages() == [
        "READY=1\nSTATUS=8 lanes",
        "STATUS=idle",
        "STOPPING=1\nSTATUS=draining 3",
        "WATCHDOG=1",
    ]


def test_a_reload_carries_the_monotonic_time_in_microseconds(manager: Manager, notifier: Notifier) -> None:
    """Without it, systemd takes the reload for one that began earlier."""
    notifier.reloading()
    state, stamp = manager.messages()[0].split("\n")
    assert state == "RELOADING=1"
    now_usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert 0 <= now_usec - int(stamp.removeprefix("MONOTONIC_USEC=")) < 1_000_000


def test_a_line_break_in_a_status_starts_no_assignment(manager: Manager, notifier: Notifier) -> None:
    """A status may hold what a server answered."""
    notifier.status("bad\nMAINPID=1\r\n")
    assert manager.messages() == ["STATUS=bad MAINPID=1"]


@pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets are Linux's")
def test_an_abstract_socket_is_reached() -> None:
    """Systemd writes the leading NUL as @."""
    name = f"llm-routerd-test-{os.getpid()}"
    manager = Manager("\0" + name)
    try:
        Notifier({"NOTIFY_SOCKET": "@" + name}).ready()
        assert manager.messages() == ["READY=1"]
    finally:
        manager.close()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_PID": str(os.getpid())}, None),
    ],
)
def test_the_watchdog_s_interval_is_for_the_process_it_names(environ: dict[str, str], seconds: float | None) -> None:
    """WATCHDOG_PID guards against a value inherited from a parent."""
    assert Notifier(environ).watchdog_seconds == seconds


async def test_a_healthy_loop_feeds_the_watchdog_in_time(manager: Manager, notifier: Notifier) -> None:
    """There is never a whole interval between two feedings."""
    task = asyncio.create_task(Watchdog(notifier, lambda: True).run())
    begun = time.monotonic()
    count = 0
    while count < 4:
        await asyncio.sleep(0.01)
        count += len(manager.messages())
    elapsed = time.monotonic() - begun
    task.cancel()
    assert elapsed < 4 * 0.2


async def test_an_unhealthy_daemon_is_not_fed(manager: Manager, notifier: Notifier) -> None:
    """A loop that runs while the daemon is stuck gets restarted all the same."""
    asked: list[None] = []

    def healthy() -> bool:
        asked.append(None)
        return False

    task = asyncio.create_task(Watchdog(notifier, healthy).run())
    await eventually(lambda: len(asked) >= 2)
    task.cancel()
    assert manager.messages() == []


async def test_a_blocked_loop_shows_as_lag() -> None:
    """The lag is how late the watchdog's own sleep ends."""
    watchdog = Watchdog(Notifier({}), lambda: True)
    assert watchdog.loop_lag_seconds == 0
    task = asyncio.create_task(watchdog.run())
    await asyncio.sleep(0.01)
    time.sleep(0.4)  # noqa: ASYNC251 -- blocks the loop: that is what is measured
    await eventually(lambda: watchdog.loop_lag_seconds)
    task.cancel()
    assert 0.1 <= watchdog.loop_lag_seconds < 1
