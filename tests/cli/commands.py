"""The command as a process, with pipes or on a terminal, and a test that plays the daemon."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import redis

from llm_routerd.protocol.events import FINAL_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECONDS = 20.0
COMMAND = (sys.executable, "-m", "llm_routerd.cli.main")


class Daemon:
    """Plays the daemon: waits for a request, and writes events as told."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.redis: Any = redis.Redis.from_url(url, decode_responses=True, socket_timeout=SECONDS)

    def request(self, lane: str = "llm:requests") -> dict[str, Any]:
        """The first request of a lane, as soon as it is there."""
        [[_, [(_, fields)]]] = self.redis.xread({lane: "0"}, count=1, block=int(SECONDS * 1000))
        request: dict[str, Any] = json.loads(fields["data"])
        return request

    def write(self, request_id: str, event_id: str, type_: str, **data: Any) -> None:
        """Write one event."""
        key = f"llm:events:{request_id}"
        self.redis.xadd(key, {"type": type_, "data": json.dumps(data)}, id=event_id)
        self.redis.expire(key, 600)

    def answer(self, request_id: str, text: str) -> None:
        """Write the final event of an answer."""
        self.write(request_id, FINAL_ID, "result", id=request_id, content=text, raw_text=text, deployment="local")

    def word(self, request_id: str) -> dict[str, str]:
        """What the first person says to a call of a request, as soon as it is there."""
        [[_, [(_, fields)]]] = self.redis.xread({f"llm:consent:{request_id}": "0"}, count=1, block=int(SECONDS * 1000))
        said: dict[str, str] = fields
        return said

    def final(self, request_id: str) -> dict[str, str]:
        """The final event that stands."""
        [(_, fields)] = self.redis.xrange(f"llm:events:{request_id}", FINAL_ID, FINAL_ID)
        result: dict[str, str] = fields
        return result


@dataclass
class Command:
    """A running command; what it wrote is collected as it comes."""

    process: subprocess.Popen[bytes]
    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)
    readers: list[threading.Thread] = field(default_factory=list)
    keyboard: int = -1

    def collect(self, read: Callable[[], bytes], into: bytearray) -> None:
        """Read in a thread until the end."""

        def run() -> None:
            while chunk := read():
                into.extend(chunk)

        thread = threading.Thread(target=run)
        thread.start()
        self.readers.append(thread)

    def until_written(self, text: str) -> None:
        """Wait until it has written this."""
        deadline = time.monotonic() + SECONDS
        while text.encode() not in self.out + self.err:
            assert time.monotonic() < deadline, f"{text!r} is not in {bytes(self.out + self.err)!r}"
            time.sleep(0.005)

    def type(self, text: str) -> None:
        """Type this at its terminal."""
        os.write(self.keyboard, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def wait(self) -> int:
        """Its exit code, when everything that it wrote has been read."""
        code = self.process.wait(SECONDS)
        for thread in self.readers:
            thread.join(SECONDS)
        return code


def environment(**changes: str) -> dict[str, str]:
    """The environment of a command: without the machine's own settings."""
    kept = {name: value for name, value in os.environ.items() if name not in {"REDIS_URL", "NO_COLOR"}}
    return kept | {"TERM": "xterm"} | changes


@contextlib.contextmanager
def started(*argv: str, env: dict[str, str] | None = None) -> Iterator[Command]:
    """Start the command with pipes."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [*COMMAND, *argv], stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=env or environment()
    )
    command = Command(process)
    for stream, into in ((process.stdout, command.out), (process.stderr, command.err)):
        assert stream is not None
        command.collect(partial(os.read, stream.fileno(), 65536), into)
    with process:
        try:
            yield command
        finally:
            process.kill()
            command.wait()


@contextlib.contextmanager
def on_terminal(*argv: str, env: dict[str, str] | None = None, columns: int = 80) -> Iterator[Command]:
    """Start the command on a terminal of its own."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    process = subprocess.Popen(
        [*COMMAND, *argv],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=env or environment(),
        start_new_session=True,
    )
    os.close(theirs)
    command = Command(process, keyboard=ours)

    def read() -> bytes:
        try:
            return os.read(ours, 65536)
        except OSError as error:  # Linux's way to say that the other side is closed
            assert error.errno == errno.EIO  # noqa: PT017 - in a thread, where there is nothing to raise to
            return b""

    command.collect(read, command.out)
    try:
        with process:
            try:
                yield command
            finally:
                process.kill()
                command.wait()
    finally:
        os.close(ours)
