"""Tells the service manager how the daemon is doing: sd_notify over `$NOTIFY_SOCKET`, and the watchdog.

Without the socket every call does nothing, and no call ever raises or blocks: a service manager that does
not listen is no reason to stop answering requests.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Late wake-ups show within a quarter of a second; four wake-ups a second cost nothing that can be measured.
_TICK_SECONDS = 0.25
_LAG_WINDOW_SECONDS = 10.0
_STUCK_SECONDS = 60.0  # a loop that lags so much is not healthy


class Notifier:
    """Sends state changes to the service manager.

    Args:
        environ: where `NOTIFY_SOCKET` (a path, or `@name` for an abstract socket), `WATCHDOG_USEC` and
            `WATCHDOG_PID` are looked up.

    Attributes:
        watchdog_seconds: the longest silence that the service manager accepts; None: it does not watch.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self.watchdog_seconds = _watchdog_seconds(environ)

    @property
    def enabled(self) -> bool:
        """Whether somebody listens."""
        return bool(self._address)

    def ready(self, status: str = "") -> None:
        """Say that start-up, or a reload, is over."""
        self._send("READY=1", _status_line(status))

    def status(self, status: str) -> None:
        """Show one line of free text in `systemctl status`."""
        self._send(_status_line(status))

    def reloading(self, status: str = "") -> None:
        """Say that the configuration is read again; `ready()` must follow."""
        # The manager compares this with the moment it asked for the reload: CLOCK_MONOTONIC, microseconds.
        now_usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_usec}", _status_line(status))

    def stopping(self, status: str = "") -> None:
        """Say that the daemon drains and will exit."""
        self._send("STOPPING=1", _status_line(status))

    def feed_watchdog(self) -> None:
        """Say that the daemon is alive."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        message = "\n".join(line for line in lines if line).encode(errors="replace")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto(message, self._address)
        except OSError:
            return  # nobody listens, or its buffer is full; the watchdog, if any, will draw the conclusion


class Watchdog:
    """Feeds the service manager's watchdog while the daemon is healthy, and measures the event loop's lag.

    A loop that is blocked cannot run this task and so is not fed; a loop that runs while the daemon is stuck
    is what `healthy` is for.

    Args:
        notifier: where to feed.
        healthy: asked before each feeding; cheap, must not raise.
    """

    def __init__(self, notifier: Notifier, healthy: Callable[[], bool]) -> None:
        self._notifier = notifier
        self._healthy = healthy
        self._window_max_seconds = 0.0
        self._previous_max_seconds = 0.0

    @property
    def loop_lag_seconds(self) -> float:
        """The longest delay of a wake-up within the last 10 to 20 seconds."""
        return max(self._window_max_seconds, self._previous_max_seconds)

    @property
    def is_stuck(self) -> bool:
        """Whether the loop lags so much that the process had better be started again."""
        return self.loop_lag_seconds >= _STUCK_SECONDS

    async def run(self) -> None:
        """Feed at half the watchdog's interval and measure, until cancelled."""
        period = self._notifier.watchdog_seconds
        feed_seconds = period / 2 if period else float("inf")
        tick_seconds = min(_TICK_SECONDS, feed_seconds / 4)
        now = time.monotonic()
        feed_at, window_ends_at = now, now + _LAG_WINDOW_SECONDS
        while True:
            if now >= feed_at and period and self._healthy():
                self._notifier.feed_watchdog()
                feed_at = now + feed_seconds
            if now >= window_ends_at:
                self._previous_max_seconds, self._window_max_seconds = self._window_max_seconds, 0.0
                window_ends_at = now + _LAG_WINDOW_SECONDS
            await asyncio.sleep(tick_seconds)
            woke = time.monotonic()
            self._window_max_seconds = max(self._window_max_seconds, woke - now - tick_seconds)
            now = woke


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    pid, usec = environ.get("WATCHDOG_PID", ""), environ.get("WATCHDOG_USEC", "")
    if pid and pid != str(os.getpid()):
        return None  # meant for another process of the service
    return int(usec) / 1e6 if usec.isascii() and usec.isdigit() and int(usec) > 0 else None


def _status_line(status: str) -> str:
    # A line break would start another assignment of the protocol.
    return f"STATUS={' '.join(status.split())}" if status else ""
