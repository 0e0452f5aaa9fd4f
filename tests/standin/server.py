"""A stand-in for a model server: it speaks the wire protocols of Ollama, OpenAI and Anthropic, and makes its words up.

In a test: `async with StandIn({"stand-in": "", "slow": "delay_ms=50"}) as server:` and then `server.url`.
As a process, from the repository's root:

    python -m tests.standin --port 0 --model stand-in --model slow='delay_ms=50' --log calls.jsonl

prints one JSON line with its `url` first.  What a model says is in `script`: directives in the message, or
per model.  `GET /log` and the JSONL file tell of each call: `id`, `model`, `turn`, `start`, `first`, `end` (Unix seconds),
`tokens` written, and `how` it ended: `finished`, `failed` (an HTTP error), `error` (one in the stream), `cut`,
`client_disconnected`, or null while it runs.

With `StandIn(box=Box(...))` it is a machine: its memory holds some of its models (`memory`), each of which has so many
places with caches (`slots`), and a window that prompts may be too long for (`window`); `box` says what can be set,
`machine` what its calls tell beside the above, `pages` what it shows of itself, `flapping` how it fails.  `GET
/_standin/state` tells the truth about it, `POST /_standin/flap` makes it fail.  Without a box nothing of that is there.

HTTP is spoken on a bare `asyncio.Protocol`, because the benchmark measures its client and not this.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter, deque
from typing import IO, TYPE_CHECKING, Any, Self, cast

import orjson

from tests.standin.answering import Answering
from tests.standin.flapping import Flap, Flapping, flap_from
from tests.standin.machine import Machine
from tests.standin.memory import LoadError, seconds_of
from tests.standin.pages import loaded, loading, not_found, page_of, shown
from tests.standin.script import Script, script_for
from tests.standin.wire import error_body

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.standin.box import Box

_PROTOCOLS = {
    "/api/chat": "ollama",
    "/v1/chat/completions": "openai",
    "/chat/completions": "openai",
    "/v1/messages": "anthropic",
}
_MANAGED = frozenset({"/api/generate", "/api/show"})
_CONTROL = "/_standin/"
_LOG_LENGTH = 20_000
_PARTING_SECONDS = 0.01  # in which the answer to whoever wanted the refusal goes out


class StandIn:
    """The server.

    Args:
        models: each model's name and its directives.
        load_ms: that an Ollama's model takes to load.
        log: where a line goes for each call.
        box: the machine that it is; its models are in there, and neither of the first two is given.
    """

    def __init__(
        self,
        models: Mapping[str, str] | None = None,
        *,
        load_ms: int = 0,
        log: IO[bytes] | None = None,
        box: Box | None = None,
    ) -> None:
        self.models = dict(models) if models is not None else {"stand-in": ""}
        self.load_ms = load_ms
        self.version = "0.9.6" if any("unaware" in told for told in self.models.values()) else "0.33.0"
        self.machine: Machine | None = None
        if box is not None:
            self.models = {name: model.says for name, model in box.models.items()}
            self.machine = Machine(box)
        self.flapping = Flapping()
        self.loaded: set[str] = set()
        self.calls: deque[dict[str, Any]] = deque(maxlen=_LOG_LENGTH)
        self.connections: set[_Connection] = set()
        self.requests: deque[dict[str, Any]] = deque(maxlen=100)  # the bodies, newest last
        self.headers: dict[str, str] = {}  # of the newest request
        self.failures: Counter[str] = Counter()
        self.precomputed: dict[tuple[str, str, int], bytes] = {}
        self._log = log
        self._server: asyncio.Server | None = None
        self._placeholder: socket.socket | None = None
        self._coming_back: asyncio.Task[None] | None = None
        self.url = ""
        self.port = 0

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; `url` holds the address afterwards."""
        if self.machine is not None:
            await self.machine.start()
            # It has the port, and does not listen: as long as nobody else does, who connects is refused.
            self._placeholder = socket.socket()
            self._placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._placeholder.bind((host, port))
            port = self._placeholder.getsockname()[1]
        self._server = await self._listen(host, port)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://{host}:{self.port}"

    async def _listen(self, host: str, port: int) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        shared = True if self.machine is not None else None
        return await loop.create_server(lambda: _Connection(self), host, port, backlog=4096, reuse_port=shared)

    async def aclose(self) -> None:
        """Stop, and drop the connections that are open."""
        if self._coming_back is not None:
            self._coming_back.cancel()
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.transport.abort()
            await connection.closed.wait()
        if self.machine is not None:
            await self.machine.aclose()
        if self._placeholder is not None:
            self._placeholder.close()

    def flap(self, flap: Flap) -> None:
        """Fail in this way from now on; `Flap()` is to be well again, but for a refusal, which takes its time.

        Raises:
            ValueError: who is no box cannot refuse connections.
        """
        if flap.refuse_seconds:
            if self.machine is None:
                raise ValueError("only a box can refuse connections")
            if self._coming_back is not None:
                self._coming_back.cancel()
            self._coming_back = asyncio.get_running_loop().create_task(self._be_gone(flap.refuse_seconds))
        self.flapping = Flapping(flap)

    async def _be_gone(self, seconds: float) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await asyncio.sleep(_PARTING_SECONDS)
        for connection in list(self.connections):
            connection.transport.abort()
        await asyncio.sleep(seconds)
        self._server = await self._listen(self.url.removeprefix("http://").rpartition(":")[0], self.port)

    def state(self) -> dict[str, Any]:
        """What holds, whatever the server tells of itself: for boxes see `Machine.state`; with the log of all calls."""
        held = self.machine.state() if self.machine is not None else {"loaded": sorted(self.loaded)}
        return {**held, "calls": list(self.calls)}

    async def load(self, model: str) -> None:
        """Have a model in memory, of who is no box."""
        if model not in self.loaded:
            await asyncio.sleep(self.load_ms / 1000)
            self.loaded.add(model)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def open_call(self, script: Script, model: str, turn: int) -> dict[str, Any]:
        """A line of the log, for a call that begins."""
        call = {"id": script.text("id"), "model": model, "turn": turn, "start": time.time()}
        call |= {"first": None, "end": None, "tokens": 0, "how": None}
        self.calls.append(call)
        return call

    def close_call(self, call: dict[str, Any], how: str) -> None:
        """The call has ended."""
        call["end"] = time.time()
        call["how"] = how
        if self._log is not None:
            self._log.write(orjson.dumps(call) + b"\n")
            self._log.flush()

    def known(self, name: str) -> str | None:
        """The model that `name` means, which may lack its tag `latest`."""
        if self.machine is not None:
            return self.machine.box.name_of(name)
        for candidate in (name, name.removesuffix(":latest")):
            if candidate in self.models:
                return candidate
        return None


class _Connection(asyncio.Protocol):
    """One connection: reads requests one after the other and answers each in a task."""

    transport: asyncio.Transport

    def __init__(self, server: StandIn) -> None:
        self._server = server
        self._received = bytearray()
        self._task: asyncio.Task[None] | None = None
        self.closed = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self._answering = Answering(server, self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self.closed.set()
        self.writable.set()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._task is None:
            self._next_request()

    def _next_request(self) -> None:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        first, *lines = bytes(self._received[:end]).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if len(self._received) < end + 4 + length:
            return
        body = bytes(self._received[end + 4 : end + 4 + length])
        del self._received[: end + 4 + length]
        self._server.headers = headers
        method, target, _ = first.split(" ", 2)
        path = target.partition("?")[0].rstrip("/") or "/"
        self._task = asyncio.get_running_loop().create_task(self._answer(method, path, body))
        self._task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self.transport.abort()
            raise error
        if not self.transport.is_closing():
            self._next_request()

    async def _answer(self, method: str, path: str, body: bytes) -> None:
        server = self._server
        protocol = _PROTOCOLS.get(path)
        if path.startswith(_CONTROL):
            self._control(method, path.removeprefix(_CONTROL), body)
        elif (status := server.flapping.status) and path != "/log":
            self.send(status, error_body(protocol or "ollama", status, "it flaps"))
        elif server.machine is not None and path != "/log":
            await self._answer_of_box(server.machine, method, path, body)
        elif method == "POST" and protocol is not None:
            await self._call(protocol, body)
        elif method == "POST" and path in _MANAGED:
            await self._manage(path, orjson.loads(body))
        elif method == "GET" and (answer := self._listing(path)) is not None:
            self.send(200, orjson.dumps(answer))
        else:
            self.send(404, b"404 page not found", "text/plain")

    async def _call(self, protocol: str, body: bytes) -> None:
        try:
            request = orjson.loads(body)
        except orjson.JSONDecodeError:
            self.send(400, error_body(protocol, 400, "unexpected EOF"))
            return
        self._server.requests.append(request)
        machine = self._server.machine
        if machine is not None and protocol == "ollama" and not request.get("messages"):
            await self._manage_box(machine, "/api/chat", request)
        else:
            await self._answering.chat(protocol, request)

    def _control(self, method: str, what: str, body: bytes) -> None:
        """The truth about the server, and how it is to fail; no real one has that."""
        if (method, what) == ("GET", "state"):
            self.send(200, orjson.dumps(self._server.state()))
        elif (method, what) == ("POST", "flap"):
            try:
                self._server.flap(flap_from(orjson.loads(body)))
                self.send(200, b"{}")
            except (TypeError, ValueError) as error:
                self.send(400, orjson.dumps({"error": str(error)}))
        else:
            self.send(404, b"404 page not found", "text/plain")

    async def _answer_of_box(self, machine: Machine, method: str, path: str, body: bytes) -> None:
        protocol = _PROTOCOLS.get(path)
        if not machine.is_ready:
            self.send(*loading())
        elif method == "POST" and protocol is not None and (protocol != "ollama" or machine.box.kind == "ollama"):
            await self._call(protocol, body)
        elif method == "POST" and path in _MANAGED and machine.box.kind == "ollama":
            await self._manage_box(machine, path, orjson.loads(body))
        elif method in {"GET", "HEAD"}:
            await self._server.flapping.hold_up(path)
            self.send(*page_of(machine, path, self._server.flapping.lie))
        else:
            self.send(*not_found(machine))

    async def _manage_box(self, machine: Machine, path: str, request: dict[str, Any]) -> None:
        """An Ollama's `/api/show`, and a call without a prompt, which loads or unloads."""
        told = str(request.get("model"))
        name = machine.box.name_of(told)
        if name is None:
            self.send(404, error_body("ollama", 404, f"model '{told}' not found"))
            return
        if path == "/api/show":
            self.send(200, shown(machine, name))
            return
        keep_alive = seconds_of(request.get("keep_alive"))
        if keep_alive == 0:
            machine.memory.unload(name)
        else:
            window = machine.box.window_of(name, (request.get("options") or {}).get("num_ctx"))
            try:
                machine.memory.release(await machine.memory.hold(name, window, keep_alive))
            except LoadError as error:
                self.send(error.status, error_body("ollama", error.status, str(error)))
                return
        self.send(200, loaded(told, "unload" if keep_alive == 0 else "load", is_chat=path == "/api/chat"))

    def send(self, status: int, body: bytes, kind: str = "application/json; charset=utf-8", extra: str = "") -> None:
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
        self.transport.write(head.encode() + body)

    def _listing(self, path: str) -> dict[str, Any] | None:
        server = self._server
        listings: dict[str, Callable[[], dict[str, Any]]] = {
            "/": lambda: {"stand-in": "no model runs here: every answer is made up"},
            "/log": lambda: {"calls": list(server.calls)},
            "/api/version": lambda: {"version": server.version},
            "/api/tags": lambda: {"models": [_listed(name) for name in server.models]},
            "/api/ps": lambda: {"models": [self._running(name) for name in sorted(server.loaded)]},
            "/v1/models": lambda: {"object": "list", "data": [{"id": name} for name in server.models]},
        }
        if path.startswith("/v1/models/"):
            name = path.removeprefix("/v1/models/")
            return {"id": name, "type": "model"} if server.known(name) else None
        listing = listings.get(path)
        return None if listing is None else listing()

    def _running(self, model: str) -> dict[str, Any]:
        window = self._told_window(model, "ps")
        return _listed(model) | ({} if window is None else {"context_length": window})

    def _told_window(self, model: str, where: str) -> int | None:
        script = script_for(model, self._server.models[model], "")
        return script.number("window") if (script.text("tells") or "ps") == where else None

    async def _manage(self, path: str, request: dict[str, Any]) -> None:
        """`/api/show`, and `/api/generate` without a prompt, which loads or unloads."""
        name = str(request.get("model"))
        model = self._server.known(name)
        if model is None:
            self.send(404, error_body("ollama", 404, f"model '{name}' not found"))
        elif path == "/api/show":
            shown = {"details": {"family": "stand-in", "parameter_size": "0"}, "capabilities": ["completion", "tools"]}
            if (window := self._told_window(model, "show")) is not None:
                shown["parameters"] = f'stop  "<end>"\nnum_ctx                        {window}'
            self.send(200, orjson.dumps(shown))
        else:
            unload = request.get("keep_alive") in {0, "0"}
            if unload:
                self._server.loaded.discard(model)
            else:
                await self._server.load(model)
            answer = {
                "model": name,
                "response": "",
                "done": True,
                "done_reason": "unload" if unload else "load",
            }
            self.send(200, orjson.dumps(answer))


def _listed(name: str) -> dict[str, Any]:
    full = name if ":" in name else f"{name}:latest"
    details = {
        "format": "none",
        "family": "stand-in",
        "parameter_size": "0",
        "quantization_level": "stand-in",
    }
    return {"name": full, "model": full, "size": 0, "digest": "stand-in", "details": details}
