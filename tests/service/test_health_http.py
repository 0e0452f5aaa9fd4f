from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from typing import TYPE_CHECKING

import pytest

from llm_routerd.service import health_http
from llm_routerd.service.health_http import HealthServer
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


class Daemon:
    """What the pages tell about."""

    def __init__(self) -> None:
        self.not_ready: str | None = None
        self.not_alive: str | None = None
        self.metrics = "llm_routerd_in_flight 0\n"
        self.broken = False

    async def render_metrics(self) -> str:
        """Return the metrics, or fail as a bug would."""
        if self.broken:
            raise RuntimeError("a bug")
        return self.metrics


@pytest.fixture
def daemon() -> Daemon:
    """Return a daemon that is well."""
    return Daemon()


@pytest.fixture
async def server(daemon: Daemon) -> AsyncIterator[HealthServer]:
    """Return a health server on a free port."""
    server = HealthServer(
        "127.0.0.1:0",
        metrics=daemon.render_metrics,
        not_ready=lambda: daemon.not_ready,
        not_alive=lambda: daemon.not_alive,
    )
    assert await server.start() is None
    yield server
    await server.stop()


async def exchange(server: HealthServer, request: bytes) -> bytes:
    """Send a request as it is and return everything that comes back."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request)
        answer = b""
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            answer = await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        return answer


async def get(server: HealthServer, path: str, *, method: str = "GET") -> tuple[int, str]:
    """Return status and body of a page."""
    answer = await exchange(server, f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = answer.decode().partition("\r\n\r\n")
    return int(head.split(" ")[1]), body


async def test_a_taken_port_is_a_value_and_not_an_exception(server: HealthServer, daemon: Daemon) -> None:
    """A second worker on the machine goes on without."""
    second = HealthServer(f"127.0.0.1:{server.port}", metrics=daemon.render_metrics, not_ready=lambda: None)
    problem = await second.start()
    assert problem is not None
    assert f"127.0.0.1:{server.port}" in problem
    assert "\n" not in problem
    await second.stop()


async def test_readiness_tells_why_it_is_missing(server: HealthServer, daemon: Daemon) -> None:
    """503 and the reason, in one line."""
    daemon.not_ready = "Redis does not answer\nfor 3 s"
    assert await get(server, "/readyz") == (503, "Redis does not answer for 3 s\n")
    daemon.not_ready = None
    assert await get(server, "/readyz") == (200, "ok\n")


async def test_liveness_is_not_readiness(server: HealthServer, daemon: Daemon) -> None:
    """A daemon that waits for Redis must not be restarted for it."""
    daemon.not_ready = "Redis does not answer"
    assert await get(server, "/healthz") == (200, "ok\n")
    daemon.not_alive = "the reader is stuck"
    assert await get(server, "/healthz") == (503, "the reader is stuck\n")


async def test_metrics_are_prometheus_text(server: HealthServer, daemon: Daemon) -> None:
    """The page carries the exposition format's content type and its exact length."""
    daemon.metrics = 'x{deployment="ü"} 1\n'
    answer = await exchange(server, b"GET /metrics?x=1 HTTP/1.0\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n" in head
    assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    assert body.decode() == daemon.metrics


async def test_a_bug_in_a_page_is_an_answer_and_the_server_goes_on(server: HealthServer, daemon: Daemon) -> None:
    """The page is 500; the next one works."""
    daemon.broken = True
    assert (await get(server, "/metrics"))[0] == 500
    daemon.broken = False
    assert (await get(server, "/metrics"))[0] == 200


async def test_head_has_the_length_and_no_body(server: HealthServer, daemon: Daemon) -> None:
    """As HTTP has it."""
    answer = await exchange(server, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n")
    assert b"\r\nContent-Length: %d\r\n" % len(daemon.metrics) in answer


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"GET /secret HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x00\xff\r\n\r\n", b"400"),
        (b"GET /\xff\xfe HTTP/1.1\r\n\r\n", b"404"),
    ],
)
async def test_what_is_not_served_gets_its_status(server: HealthServer, request_bytes: bytes, status: bytes) -> None:
    """Other methods, other pages, other protocols."""
    assert (await exchange(server, request_bytes)).startswith(b"HTTP/1.1 " + status)


async def test_a_huge_head_is_refused_unread(server: HealthServer) -> None:
    """Either the answer says so or the connection is gone; the server goes on."""
    answer = await exchange(server, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 1_000_000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431")
    assert (await get(server, "/healthz"))[0] == 200


async def test_a_client_that_never_finishes_its_head_is_dropped(
    server: HealthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slowloris: bytes that keep arriving do not extend the time."""
    monkeypatch.setattr(health_http, "_EXCHANGE_SECONDS", 0.2)
    assert await exchange(server, b"GET /metrics HTTP/1.1\r\nX: ") == b""


async def test_idle_connections_give_way_to_a_probe(server: HealthServer) -> None:
    """More of them than there are places: every probe is answered at once, and it is the oldest that are closed."""
    held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(health_http._MAX_CONNECTIONS)]
    await eventually(lambda: len(server._exchanges) == len(held))
    for _ in range(8):
        assert (await get(server, "/healthz"))[0] == 200
    oldest, _ = held[0]
    with contextlib.suppress(ConnectionError):
        assert await oldest.read() == b""
    assert len(server._exchanges) <= health_http._MAX_CONNECTIONS
    for _, writer in held:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    await eventually(lambda: not server._exchanges and not server._idle)


async def test_who_does_not_read_an_answer_gives_way_as_well(
    daemon: Daemon, server: HealthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page too large for the sockets' buffers, asked for and left lying."""
    monkeypatch.setattr(health_http, "_MAX_CONNECTIONS", 2)
    daemon.metrics = "x" * 20_000_000
    writers = []
    for _ in range(2):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        writers.append(writer)
    await eventually(lambda: len(server._exchanges) == 2 and not server._idle)
    assert (await get(server, "/healthz"))[0] == 200
    for writer in writers:
        writer.transport.abort()


@pytest.fixture
def no_descriptor() -> Iterator[Callable[[], None]]:
    """Returns what uses all descriptors up that this process may have; they are given back at the end."""
    held: list[int] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def use_up() -> None:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))

    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
    try:
        yield use_up
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for each in held:
            os.close(each)


async def test_pages_are_served_while_no_file_may_be_opened(
    server: HealthServer, no_descriptor: Callable[[], None]
) -> None:
    """From the reserve, again and again, though every descriptor that comes free is taken by somebody else."""
    clients = [socket.socket() for _ in range(12)]
    for client in clients:
        client.setblocking(False)
    loop = asyncio.get_running_loop()
    no_descriptor()
    for client in clients[:8]:
        async with asyncio.timeout(2):
            await loop.sock_connect(client, ("127.0.0.1", server.port))
            await loop.sock_sendall(client, b"GET /healthz HTTP/1.1\r\n\r\n")
            assert (await loop.sock_recv(client, 4096)).startswith(b"HTTP/1.1 200")
        no_descriptor()
    # Those that ask nothing hold what is left, and give way.
    for client in clients[8:]:
        await loop.sock_connect(client, ("127.0.0.1", server.port))
    await eventually(lambda: len(server._idle) == health_http._RESERVED)
    async with asyncio.timeout(2):
        clients[0].close()
        late = socket.socket()
        late.setblocking(False)
        await loop.sock_connect(late, ("127.0.0.1", server.port))
        await loop.sock_sendall(late, b"GET /healthz HTTP/1.1\r\n\r\n")
        assert (await loop.sock_recv(late, 4096)).startswith(b"HTTP/1.1 200")
    for client in (late, *clients):
        client.close()


async def test_stopping_does_not_wait_for_clients(daemon: Daemon) -> None:
    """A connection that says nothing is broken off."""
    server = HealthServer("127.0.0.1:0", metrics=daemon.render_metrics, not_ready=lambda: None)
    assert await server.start() is None
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    await eventually(lambda: server._exchanges)
    async with asyncio.timeout(2):
        await server.stop()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
