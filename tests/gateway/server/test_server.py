"""What no client may take more of than its share; asked over sockets, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import resource
import socket
import zlib
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from llm_routerd.errors import ConfigError
from llm_routerd.gateway.fault import RefusedError
from llm_routerd.gateway.http import server
from llm_routerd.gateway.http.bodies import Limits, read_body
from llm_routerd.gateway.http.server import HttpServer
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    Serve = Callable[..., "contextlib.AbstractAsyncContextManager[House]"]

MOST_BYTES = 100_000
LARGE_BYTES = 16_000_000  # more than any kernel holds for a reader
QUICK = Limits(head=0.3, body=0.3, body_bytes_per_second=1_000_000, idle=0.4, unread=0.5)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class House:
    """A server with an application behind it that echoes, waits, streams and fails."""

    def __init__(self, *, limits: Limits = QUICK, max_connections: int = 64) -> None:
        self.limits = limits
        self.let_go = asyncio.Event()
        self.waiting = self.cancelled = 0
        app = web.Application()
        app.router.add_get("/", self._hello)
        app.router.add_post("/echo", self._echo)
        app.router.add_get("/wait", self._wait)
        app.router.add_get("/flood", self._flood)
        app.router.add_get("/large", self._large)
        app.router.add_get("/late", self._late)
        app.router.add_get("/fail", self._fail)
        self.server = HttpServer(app, "127.0.0.1:0", max_connections=max_connections, limits=limits)

    async def _hello(self, request: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def _echo(self, request: web.Request) -> web.Response:
        try:
            return web.Response(body=await read_body(request, MOST_BYTES, self.limits))
        except RefusedError as error:
            return web.Response(status=error.fault.status, text=error.fault.message)

    async def _wait(self, request: web.Request) -> web.Response:
        self.waiting += 1
        try:
            await self.let_go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return web.Response(text="waited")

    async def _flood(self, request: web.Request) -> web.StreamResponse:
        self.waiting += 1
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65_536)
        finally:
            self.cancelled += 1

    async def _large(self, request: web.Request) -> web.Response:
        return web.Response(body=bytes(LARGE_BYTES))

    async def _late(self, request: web.Request) -> web.StreamResponse:
        """Writes when its client has gone, and before that has ended it."""
        response = web.StreamResponse()
        await response.prepare(request)
        assert request.transport is not None
        request.transport.abort()
        try:
            await response.write(b"x")
        finally:
            self.waiting += 1
        return response

    async def _fail(self, request: web.Request) -> web.Response:
        raise RuntimeError("a bug")

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Come in."""
        return await asyncio.open_connection("127.0.0.1", self.server.port)

    async def send(self, *pieces: bytes, pause: float = 0.0) -> bytes:
        """Send a request and return everything that comes until the server closes."""
        reader, writer = await self.connect()
        answer = bytearray()

        async def receive() -> None:
            with contextlib.suppress(ConnectionError):
                while read := await reader.read(65_536):
                    answer.extend(read)

        receiving = asyncio.create_task(receive())
        # The server may have closed it meanwhile; uvloop says so by a RuntimeError.
        with contextlib.suppress(ConnectionError, RuntimeError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
        async with asyncio.timeout(15):
            await receiving
        writer.close()
        return bytes(answer)


@contextlib.asynccontextmanager
async def serving(**settings: object) -> AsyncIterator[House]:
    """Serve for a while."""
    house = House(**settings)  # type: ignore[arg-type]
    await house.server.start()
    try:
        yield house
    finally:
        await house.server.stop(0.1)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    """Return a server whose patience is short."""
    async with serving() as house:
        yield house


@pytest.fixture
def many_files() -> Iterator[None]:
    """The clients' ends of ten thousand connections are in this process, and the server's of as many as it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 11_500:
        pytest.skip("this machine does not allow so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 11_500), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def status(answer: bytes) -> int:
    """Return the status of the first answer."""
    return int(answer.split(b" ")[1])


def body(answer: bytes) -> bytes:
    """Return the body of the first answer."""
    return answer.partition(b"\r\n\r\n")[2]


def post(content: bytes, *headers: str, length: int | None = None, goes_on: bool = False) -> bytes:
    """Return a request with a body, the last on its connection unless it goes on."""
    last = () if goes_on else ("Connection: close",)
    sized = f"Content-Length: {len(content) if length is None else length}"
    return "\r\n".join(["POST /echo HTTP/1.1", "Host: x", sized, *last, *headers, "", ""]).encode() + content


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """Return a request with a body in chunks."""
    parts = b"".join(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n" for chunk in chunks)
    return b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + parts + end


async def test_a_taken_address_is_one_clear_line(house: House) -> None:
    """Which, why, what to do."""
    taken = f"127.0.0.1:{house.server.port}"
    second = HttpServer(web.Application(), taken, max_connections=8)
    with pytest.raises(ConfigError, match=rf"^gateway\.listen = '{taken}': .*in use.*; .+$") as caught:
        await second.start()
    assert "\n" not in str(caught.value)


async def test_a_head_that_comes_byte_by_byte_is_given_up(house: House) -> None:
    """408, though there is always another byte (slowloris)."""
    answer = await house.send(*(bytes([each]) for each in b"GET / HTTP/1.1\r\nX-Long: " + b"x" * 100), pause=0.02)
    assert status(answer) == 408
    assert b"Connection: close" in answer
    assert house.server.connections == 0


async def test_a_second_head_has_its_time_too(house: House) -> None:
    """Also where the first was quick."""
    answer = await house.send(GET, b"GET ", pause=0.05)
    assert status(answer) == 200
    assert b"HTTP/1.1 408" in answer


async def test_who_says_nothing_is_closed_without_a_word(house: House) -> None:
    """Before a request and after one."""
    assert await house.send() == b""
    assert (await house.send(GET)).count(b"HTTP/1.1") == 1


async def test_a_body_that_drips_is_given_up(house: House) -> None:
    """408; a byte now and then does not help."""
    answer = await house.send(post(b"", length=1000), *[b"x"] * 40, pause=0.02)
    assert status(answer) == 408
    assert b"too slowly" in answer


async def test_a_body_that_never_comes_is_given_up(house: House) -> None:
    """In chunks, too."""
    assert status(await house.send(post(b"x", length=2))) == 408
    assert status(await house.send(chunked(b"x", end=b""))) == 408


async def test_a_long_body_at_a_good_pace_has_more_time() -> None:
    """What has come buys time for what is to come."""
    async with serving(limits=Limits(head=5, body=0.3, body_bytes_per_second=10_000, idle=0.2)) as house:
        content = b"x" * 10_000
        pieces = [content[at : at + 1000] for at in range(0, len(content), 1000)]
        answer = await house.send(post(b"", length=len(content)), *pieces, pause=0.06)
        assert body(answer) == content


def squeezed(content: bytes) -> bytes:
    """By gzip, and always the same: it has the time in it."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize("size", [0, 1, MOST_BYTES])
async def test_a_body_comes_as_it_was_sent(house: House, size: int) -> None:
    """Whole, in chunks, compressed."""
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert body(await house.send(post(content))) == content
    assert body(await house.send(post(gzip.compress(content), "Content-Encoding: gzip"))) == content
    assert body(await house.send(post(zlib.compress(content), "content-encoding: DEFLATE"))) == content
    parts = [content[at : at + 7000] for at in range(0, len(content), 7000)]
    assert body(await house.send(chunked(*parts))) == content


async def test_a_body_that_is_too_long_is_refused(house: House) -> None:
    """413: by what it says of itself, and else while it comes; in the end the connection is closed."""
    for request in (post(b"", length=MOST_BYTES + 1), post(b"x" * (MOST_BYTES + 1)), chunked(*[b"x" * 1000] * 101)):
        answer = await house.send(request)
        assert status(answer) == 413
        assert answer.count(b"HTTP/1.1") == 1
    answer = await house.send(chunked(*[b"x" * 10_000] * 1000, end=b""))
    assert status(answer) == 413
    assert b"Connection: close" in answer


@pytest.mark.parametrize("size", [MOST_BYTES + 1, 200_000_000])
async def test_a_body_that_swells_is_refused(house: House, size: int) -> None:
    """No more of it is inflated than a body may have."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(squeeze.compress(b"\0" * (size // 100)) for _ in range(100)) + squeeze.compress(
        b"\0" * (size % 100)
    )
    bomb += squeeze.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with asyncio.timeout(5):
        assert status(await house.send(post(bomb[: MOST_BYTES - 1], "Content-Encoding: gzip"))) == 413
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32_000  # KiB


@pytest.mark.parametrize(
    ("content", "encoding", "expected"),
    [
        (b"plain", "gzip", 400),
        (squeezed(b"cut")[:-1], "gzip", 400),
        (squeezed(b"a") + b"b", "gzip", 400),
        (squeezed(b"a") * 2, "gzip", 400),
        (b"x", "br", 415),
        (b"x", "zstd", 415),
        (squeezed(squeezed(b"x")), "gzip, gzip", 415),
    ],
)
async def test_what_is_not_compressed_as_it_says_is_refused(
    house: House, content: bytes, encoding: str, expected: int
) -> None:
    """And what is compressed as nobody here knows."""
    assert status(await house.send(post(content, f"Content-Encoding: {encoding}"))) == expected


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\nx",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nnot hex\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA\x00: secret-of-somebody\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-Many: x\r\n" * 1000 + b"\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused(house: House, request_: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """400 and the end; nothing of it is quoted or logged."""
    answer = await house.send(request_)
    assert status(answer) == 400
    assert answer.count(b"HTTP/1.") == 1
    assert b"secret" not in answer
    assert "secret" not in "".join(capsys.readouterr())


async def test_http_1_0_is_served(house: House) -> None:
    """Without Host, and the connection ends after the answer."""
    answer = await house.send(b"GET / HTTP/1.0\r\n\r\n")
    assert status(answer) == 200
    assert body(answer) == b"hello"


async def test_what_is_asked_in_a_row_is_answered_in_a_row(house: House) -> None:
    """Pipelining: all of it, in order, and only so much is read ahead."""
    answer = await house.send(*[post(str(number).encode(), goes_on=True) for number in range(500)])
    assert answer.count(b"HTTP/1.1 200") == 500
    assert [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200")[1:]] == [
        str(number).encode() for number in range(500)
    ]
    _reader, writer = await house.connect()
    writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n" + GET * 1_000_000)
    await eventually(lambda: house.waiting)
    await asyncio.sleep(0.2)
    assert writer.transport.get_write_buffer_size() > 0  # the server does not take it all
    writer.transport.abort()


async def test_another_protocol_is_declined(house: House) -> None:
    """What would be spoken instead is not; the connection goes on with HTTP."""
    upgrade = GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    answer = await house.send(upgrade, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert answer.count(b"HTTP/1.1 200") == 2


async def test_a_fault_of_ours_is_told_of_in_general(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    """500, and what it was stands in the log only."""
    answer = await house.send(b"GET /fail HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status(answer) == 500
    assert b"a bug" not in answer


async def test_a_client_that_hangs_up_ends_what_is_done_for_it(house: House) -> None:
    """The handler is cancelled."""
    _, writer = await house.connect()
    writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
    await eventually(lambda: house.waiting)
    writer.close()
    await eventually(lambda: house.cancelled)
    await eventually(lambda: house.server.connections == 0)


async def test_a_client_that_has_gone_is_no_fault_of_ours(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    """What is written to it all the same fails, and nobody has to read of that."""
    assert b"\r\n1\r\nx" not in await house.send(b"GET /late HTTP/1.1\r\nHost: x\r\n\r\n")
    await eventually(lambda: house.waiting and not house.server.connections)
    assert "failed" not in capsys.readouterr().out


async def test_a_client_that_does_not_read_is_cut_off(house: House) -> None:
    """What is written for it stops, and after a while there is no connection."""
    _reader, writer = await house.connect()
    writer.write(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
    await eventually(lambda: house.waiting)
    await eventually(lambda: house.cancelled)
    await eventually(lambda: house.server.connections == 0)
    writer.transport.abort()


async def test_a_reader_who_is_slow_and_goes_on_gets_all_of_a_large_answer(house: House) -> None:
    """Though it takes him many times as long as one may take who takes nothing."""
    reader, writer = await house.connect()
    writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    taken, began = 0, asyncio.get_running_loop().time()
    async with asyncio.timeout(30):
        while piece := await reader.read(131_072):
            taken += len(piece)
            await asyncio.sleep(0.02)
    assert taken > LARGE_BYTES
    assert asyncio.get_running_loop().time() - began > 4 * QUICK.unread
    writer.close()


async def test_of_what_nobody_takes_no_more_than_a_bound_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large answers that nobody reads go, and who reads is not disturbed."""
    monkeypatch.setattr(server, "_MOST_UNREAD_BYTES", 3 * LARGE_BYTES)
    async with serving(limits=Limits()) as house:
        asked = []
        for _ in range(8):
            asked.append(await house.connect())
            asked[-1][1].write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: house.server.connections <= 4)
        assert b"hello" in await house.send(GET[:-2] + b"Connection: close\r\n\r\n")
        assert house.server.connections >= 2
        for _, writer in asked:
            writer.transport.abort()
        await eventually(lambda: house.server.connections == 0)


async def test_a_client_that_leaves_the_end_of_an_answer_is_cut_off() -> None:
    """Also where the handler has long ended, and only the last bytes lie there."""
    async with serving() as house:
        asking = socket.socket()
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        asking.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(asking, ("127.0.0.1", house.server.port))
        content = b"x" * MOST_BYTES
        for _ in range(60):  # answers that fill what the kernel holds for a reader
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await loop.sock_sendall(asking, post(content, goes_on=True))
        await eventually(lambda: house.server.connections == 0)
        asking.close()


async def test_the_kernel_finds_out_who_has_gone_without_a_word(house: House) -> None:
    """Within a minute or so, and not within hours: of a shut laptop nothing comes, also no end of its connection."""
    _, writer = await house.connect()
    await eventually(lambda: house.server.connections)
    (connection,) = house.server._places.taken
    assert connection.transport is not None
    ours = connection.transport.get_extra_info("socket")
    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
    assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == QUICK.unread * 1000
    writer.close()


async def test_of_too_many_connections_the_longest_idle_goes() -> None:
    """And who is asking stays."""
    async with serving(max_connections=8, limits=Limits()) as house:
        asks = await house.connect()
        asks[1].write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: house.waiting)
        idle = [await house.connect() for _ in range(7)]
        await eventually(lambda: house.server.connections == 8)
        idle[0][1].write(GET)  # idles for a shorter time than the second now
        await idle[0][0].readuntil(b"hello")
        newest = await house.connect()
        assert await idle[1][0].read() == b""
        newest[1].write(GET)
        assert b"hello" in await newest[0].readuntil(b"hello")
        assert house.server.connections == 8
        house.let_go.set()
        assert b"waited" in await asks[0].readuntil(b"waited")
        for _, writer in (asks, newest, *idle):
            writer.close()


async def test_where_nobody_idles_a_new_client_is_told_to_come_again() -> None:
    """503 and Retry-After, at once."""
    async with serving(max_connections=8, limits=Limits()) as house:
        asking = [await house.connect() for _ in range(8)]
        for _, writer in asking:
            writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: house.waiting == 8)
        answer = await house.send()
        assert status(answer) == 503
        assert b"Retry-After: " in answer
        assert house.server.connections == 8
        house.let_go.set()
        for reader, writer in asking:
            assert b"waited" in await reader.readuntil(b"waited")
            writer.close()
        await eventually(lambda: house.server.connections == 0)
        assert status(await house.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))) == 200


async def test_ten_thousand_idle_connections_keep_nobody_out(many_files: None) -> None:
    """There are as many as there may be, and a client among them is served at once."""
    async with serving(max_connections=1000, limits=Limits()) as house:
        idle = []
        for number in range(10_000):
            each = socket.socket()
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", house.server.port))
            idle.append(each)
            if number % 50 == 49:  # fewer than wait to be accepted
                await asyncio.sleep(0)
            if number % 2500 == 2499:
                async with asyncio.timeout(5):
                    asks = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
                    assert status(await house.send(asks)) == 200
                assert house.server.connections <= 1000
        await eventually(lambda: house.server.connections >= 999)
        assert house.server.connections <= 1000
        for each in idle:
            each.close()


async def test_stopping_lets_what_is_under_way_be_whole() -> None:
    """It listens no more, closes who idles, waits for the rest."""
    async with serving(limits=Limits()) as house:
        idle, asks = await house.connect(), await house.connect()
        asks[1].write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: house.waiting)
        port = house.server.port
        stopping = asyncio.create_task(house.server.stop(10))
        assert await idle[0].read() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        house.let_go.set()
        assert b"waited" in await asks[0].read()
        await stopping
        for _, writer in (idle, asks):
            writer.close()


@pytest.mark.parametrize("grace", [0.0, 0.2])
async def test_stopping_does_not_wait_for_ever(grace: float) -> None:
    """What has not ended in time is broken off: its client can tell that it is not whole."""
    async with serving(limits=Limits()) as house:
        reader, writer = await house.connect()
        writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: house.waiting)
        async with asyncio.timeout(5):
            await house.server.stop(grace)
            assert await reader.read() == b""
        await eventually(lambda: house.cancelled)
        writer.close()
