"""Why no connection comes about, and what to do: the same words in the log, in `check` and at the command line."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import redis
from structlog.testing import capture_logs

from llm_routerd.cli.check_server import check_server
from llm_routerd.cli.exits import Exit
from llm_routerd.cli.findings import Level
from llm_routerd.cli.main import main
from llm_routerd.client import Client
from llm_routerd.config.tree import Config, RedisConfig
from llm_routerd.errors import BrokerError
from llm_routerd.logs import scrub
from llm_routerd.queue.connection import pooled
from tests.support.certificates import make_certificate
from tests.support.eventually import eventually
from tests.support.queue import open_client
from tests.support.servers import ValkeyProcess, running_valkey
from tests.support.workers import run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

NO_PASSWORD = "the server wants a password, and the Redis URL has none; put them there, before the host: user:password@"
WRONG = "the server does not take the user and password of the Redis URL; correct them there, or on the server"
NEEDLESS = "the server has no password, and the Redis URL has one; leave it out there, or set it on the server"
NONE_SHOWN = "the server asks for a client certificate, and the Redis URL names none; name it with ssl_certfile and ssl_keyfile there"
STRANGE = "the server does not take the certificate of the Redis URL; correct ssl_certfile there, or on the server"
WRITE_REDISS = "the server speaks TLS at this port; write rediss:// in the Redis URL"
WRITE_REDIS = "the server speaks no TLS at this port; write redis:// in the Redis URL, or its TLS port"


@pytest.fixture(scope="module")
def open_server() -> Iterator[ValkeyProcess]:
    """A server without a password."""
    with running_valkey(tcp=True) as server:
        yield server


@pytest.fixture(scope="module")
def closed_server() -> Iterator[ValkeyProcess]:
    """A server with one."""
    with running_valkey(tcp=True) as server:
        asyncio.run(_lock(server))
        yield server


async def _lock(server: ValkeyProcess) -> None:
    async with open_client(server.url) as client:
        await client.config_set("requirepass", "right")


def with_password(url: str, password: str) -> str:
    """The URL with a password."""
    return url.replace("://", f"://:{password}@", 1)


async def everybody_says(url: str, told: str) -> None:
    """The worker's log, once; the client; and `check`, without asking anybody to start anything."""
    with capture_logs() as logs:
        async with run_worker(url, {}, until_ready=False) as worker:
            await eventually(lambda: any(line["event"] == "redis_not_ready" for line in logs))
            assert not worker.status().ready
        (line,) = [line for line in logs if line["event"] == "redis_not_ready"]
    assert (line["state"], line["why"]) == ("unusable", told)
    async with Client(url) as client, asyncio.timeout(10):
        with pytest.raises(BrokerError) as caught:
            await client.submit(prompt="Why?")
    assert str(caught.value) == told
    (finding,) = await check_server(Config(redis=RedisConfig(url=url)))
    assert finding.level is Level.FAIL
    assert finding.to_line().endswith(told)
    assert "start it" not in finding.to_line()


@pytest.mark.parametrize("way", ["socket", "port"])
async def test_missing_and_wrong_passwords_are_told_apart(
    open_server: ValkeyProcess, closed_server: ValkeyProcess, way: str
) -> None:
    """None where one is wanted, a wrong one, one where none is known; the password itself is never shown."""
    wanted, needless = (server.url if way == "socket" else server.tcp_url for server in (closed_server, open_server))
    await everybody_says(wanted, NO_PASSWORD)
    await everybody_says(with_password(wanted, "wrong"), WRONG)
    await everybody_says(with_password(needless, "wrong"), NEEDLESS)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of this machine that nobody has signed; its key lies beside it."""
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another, which no server of ours knows."""
    return make_certificate(tmp_path_factory.mktemp("strange"))


@asynccontextmanager
async def tls_port(target: ValkeyProcess, certificate: Path, *, wants_certificate: bool = False) -> AsyncIterator[int]:
    """A port on which a server speaks TLS, with those who show a certificate only, if it `wants_certificate`."""
    writers: list[asyncio.StreamWriter] = []

    async def copy(source: asyncio.StreamReader, there: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            there.write(data)
        there.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source, there = await asyncio.open_unix_connection(str(target.socket_path))
        writers.extend((writer, there))
        await asyncio.gather(copy(reader, there), copy(source, writer), return_exceptions=True)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.parent / "key.pem")
    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for writer in writers:
            writer.transport.abort()
        await listener.wait_closed()
        await asyncio.sleep(0)  # for what was aborted to be closed


async def test_tls_where_none_is_spoken_and_none_where_it_is(
    open_server: ValkeyProcess, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with the scheme to write; and where it is right, it works."""
    monkeypatch.setattr(pooled, "CONNECT_SECONDS", 0.3)
    async with Client(open_server.tcp_url.replace("redis://", "rediss://")) as client:
        with pytest.raises(BrokerError) as caught:
            await client.ping()
    assert str(caught.value) == WRITE_REDIS
    async with tls_port(open_server, certificate) as port:
        await everybody_says(f"redis://127.0.0.1:{port}/0", WRITE_REDISS)
        async with Client(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}") as client:
            await client.ping()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            "ssl_ca_certs={0}/absent.pem",
            "ssl_ca_certs: {0}/absent.pem cannot be read (No such file or directory); correct",
        ),
        ("ssl_ca_certs={0}", "ssl_ca_certs: {0} cannot be read (Is a directory); correct"),
        ("ssl_ca_certs={0}/key.pem", "ssl_ca_certs: {0}/key.pem holds no certificate; correct"),
        ("ssl_certfile={0}/absent.pem&ssl_keyfile={0}/key.pem", "ssl_certfile: {0}/absent.pem cannot be read"),
        (
            "ssl_certfile={0}/cert.pem&ssl_keyfile={0}/cert.pem",
            "ssl_certfile: {0}/cert.pem, its key and the key's password",
        ),
        ("ssl_ca_path={0}/absent", "ssl_ca_path: {0}/absent cannot be read (No such file or directory)"),
        ("ssl_ca_path={0}/cert.pem", "ssl_ca_path: {0}/cert.pem is not a directory"),
        ("ssl_cert_reqs=none&ssl_keyfile={0}/key.pem", "ssl_keyfile goes with ssl_certfile, which is missing; correct"),
        ("", "the server's certificate is not accepted (self-signed certificate); name the file of its authority"),
    ],
    ids=[
        "absent",
        "directory",
        "no certificate",
        "own one absent",
        "no key",
        "no directory",
        "no such directory",
        "key alone",
        "unknown authority",
    ],
)
async def test_file_that_is_not_as_it_should_be_is_named(
    open_server: ValkeyProcess, certificate: Path, options: str, says: str
) -> None:
    """With its option and what is wrong with it."""
    directory = certificate.parent
    async with tls_port(open_server, certificate) as port:
        url = f"rediss://127.0.0.1:{port}/0?{options.format(directory)}".rstrip("?")
        async with Client(url) as client:
            with pytest.raises(BrokerError) as caught:
                await client.ping()
    assert says.format(directory) in str(caught.value)


PRODUCER = ("+ping", "+hello", "+auth", "+xadd", "+xread", "+xrange", "%W~llm:requests", "%R~llm:events:*")


def test_producer_that_may_not_cancel_is_told_so(
    valkey_server: ValkeyProcess, valkey_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Redis can be used; it is the user who may not: exit code 77, and which right is missing."""
    asyncio.run(_add_user(valkey_url))
    try:
        code = main(["cancel", "r1", "--redis", valkey_url.replace("://", "://producer:pw@")])
    finally:
        asyncio.run(_drop_user(valkey_url))
    assert code == Exit.NOT_ALLOWED
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "llm-routerd: Redis does not allow that: this user may not cancel; "
        "it needs XADD on llm:events:*, as the user `canceller` of systemd/users.acl has it"
    )


async def _add_user(url: str) -> None:
    async with open_client(url) as client:
        await client.execute_command("ACL", "SETUSER", "producer", "on", ">pw", "-@all", *PRODUCER)
        await client.xadd("llm:requests", {"data": '{"id": "r1", "prompt": "Why?"}'})


async def _drop_user(url: str) -> None:
    async with open_client(url) as client:
        await client.execute_command("ACL", "DELUSER", "producer")


@contextmanager
def port_for_certificates(certificate: Path) -> Iterator[int]:
    """A port with TLS for those who show this certificate: OpenSSL's own words to all others (asyncio says nothing)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.parent / "key.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(certificate)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):  # the end
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        context.wrap_socket(connection, server_side=True).close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("shown", [False, True], ids=["none", "a strange one"])
async def test_certificate_that_the_server_demands_of_us_is_what_is_told(
    certificate: Path, strange: Path, *, shown: bool
) -> None:
    """It is no lost connection, and nobody is asked to start anything."""
    with port_for_certificates(certificate) as port:
        ours = f"&ssl_certfile={strange}&ssl_keyfile={strange.parent}/key.pem" if shown else ""
        url = f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}{ours}"
        await everybody_says(url, STRANGE if shown else NONE_SHOWN)


async def test_database_that_the_server_has_not_is_told(open_server: ValkeyProcess) -> None:
    """The server runs: the number is what to mend."""
    url = open_server.tcp_url.removesuffix("/0") + "/99"
    await everybody_says(url, "the server has no database with the number in the Redis URL; correct it there")


async def test_only_what_nobody_listens_for_is_to_be_started(open_server: ValkeyProcess) -> None:
    """A name that leads nowhere is mended in the URL; where the server's socket is missing, it does not run."""
    for url, is_to_be_started in (
        ("redis://127.0.0.1:1/0", True),
        (f"unix://{open_server.socket_path}-absent", True),
        ("redis://no-such-host.invalid/0", False),
    ):
        (finding,) = await check_server(Config(redis=RedisConfig(url=url)))
        assert finding.level is Level.FAIL
        assert ("start it" in finding.to_line()) is is_to_be_started


async def test_busy_server_is_not_to_be_started(open_server: ValkeyProcess) -> None:
    """It runs a script of somebody's: that is said, and what to do about it."""
    busy = threading.Thread(target=_keep_busy, args=(open_server.tcp_url,))
    with redis.Redis.from_url(open_server.url) as client:
        client.config_set("busy-reply-threshold", 1)
        busy.start()
        try:
            await eventually(lambda: _is_busy(open_server.url))
            (finding,) = await check_server(Config(redis=RedisConfig(url=open_server.url)))
        finally:
            client.script_kill()
            busy.join()
    assert finding.level is Level.FAIL
    assert finding.to_line().endswith(
        "the server is busy with a script (BUSY); wait for it, or end it with SCRIPT KILL"
    )


def _keep_busy(url: str) -> None:
    with redis.Redis.from_url(url) as client, suppress(redis.ResponseError):
        client.eval("while true do end", 0)


def _is_busy(url: str) -> bool:
    with redis.Redis.from_url(url) as client:
        try:
            client.ping()
        except redis.ResponseError:
            return True
    return False


def test_remedy_for_a_missing_password_survives_the_log() -> None:
    """What looks like credentials in an address is taken out there, so the remedy holds none."""
    event = scrub(None, "info", {"event": "redis_not_ready", "why": NO_PASSWORD})
    assert event["why"] == NO_PASSWORD
