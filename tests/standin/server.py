"""A stand-in for a model server: it speaks the wire protocols of Ollama, OpenAI and Anthropic, and makes its words up.

In a test: `async with StandIn({"stand-in": "", "slow": "delay_ms=50"}) as server:` and then `server.url`.
As a process, from the repository's root:

    python -m tests.standin --port 0 --model stand-in --model slow='delay_ms=50' --log calls.jsonl

prints one JSON line with its `url` first.  What a model says is in `script`: directives in the message, or
per model.  `GET /log` and the JSONL file tell of each call: `id`, `model`, `turn`, `start`, `first`, `end` (Unix seconds),
`tokens` written, and `how` it ended: `finished`, `failed` (an HTTP error), `error` (one in the stream), `cut`,
`client_disconnected`, or null while it runs.

HTTP is spoken on a bare `asyncio.Protocol`, because the benchmark measures its client and not this.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import time
from collections import Counter, deque
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self, cast

import orjson
import uvloop

from tests.standin.request import (
    last_user_text,
    limit_of,
    results_told,
    schema_in_words,
    schema_of,
    tool_calls_of,
    turn_of,
    words_read,
)
from tests.standin.script import REFUSAL, Script, answer_tokens, script_for, tokens_of
from tests.standin.wire import error_body, wire_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.standin.wire import Wire

_PROTOCOLS = {
    "/api/chat": "ollama",
    "/v1/chat/completions": "openai",
    "/chat/completions": "openai",
    "/v1/messages": "anthropic",
}
_LOG_LENGTH = 20_000
_BATCH = 512


class StandIn:
    """The server.  `models` maps each model's name to its directives."""

    def __init__(
        self, models: Mapping[str, str] | None = None, *, load_ms: int = 0, log: IO[bytes] | None = None
    ) -> None:
        self.models = dict(models) if models is not None else {"stand-in": ""}
        self.load_ms = load_ms
        self.version = "0.9.6" if any("unaware" in told for told in self.models.values()) else "0.33.0"
        self.loaded: set[str] = set()
        self.calls: deque[dict[str, Any]] = deque(maxlen=_LOG_LENGTH)
        self.connections: set[_Connection] = set()
        self.requests: deque[dict[str, Any]] = deque(maxlen=100)  # the bodies, newest last
        self.headers: dict[str, str] = {}  # of the newest request
        self.failures: Counter[str] = Counter()
        self.precomputed: dict[tuple[str, str, int], bytes] = {}
        self._log = log
        self._server: asyncio.Server | None = None
        self.url = ""
        self.port = 0

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; `url` holds the address afterwards."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), host, port, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://{host}:{self.port}"

    async def aclose(self) -> None:
        """Stop, and drop the connections that are open."""
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.transport.abort()
            await connection.closed.wait()

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
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self.closed.set()
        self._writable.set()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

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
        protocol = _PROTOCOLS.get(path)
        if method == "POST" and protocol is not None:
            try:
                request = orjson.loads(body)
            except orjson.JSONDecodeError:
                self._send(400, error_body(protocol, 400, "unexpected EOF"))
                return
            self._server.requests.append(request)
            await self._chat(protocol, request)
        elif method == "POST" and path in {"/api/generate", "/api/show"}:
            await self._manage(path, orjson.loads(body))
        elif method == "GET" and (answer := self._listing(path)) is not None:
            self._send(200, orjson.dumps(answer))
        else:
            self._send(404, b"404 page not found", "text/plain")

    def _send(self, status: int, body: bytes, kind: str = "application/json; charset=utf-8", extra: str = "") -> None:
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
            self._send(404, error_body("ollama", 404, f"model '{name}' not found"))
        elif path == "/api/show":
            shown = {"details": {"family": "stand-in", "parameter_size": "0"}, "capabilities": ["completion", "tools"]}
            if (window := self._told_window(model, "show")) is not None:
                shown["parameters"] = f'stop  "<end>"\nnum_ctx                        {window}'
            self._send(200, orjson.dumps(shown))
        else:
            unload = request.get("keep_alive") in {0, "0"}
            if unload:
                self._server.loaded.discard(model)
            else:
                await self._load(model)
            answer = {
                "model": name,
                "response": "",
                "done": True,
                "done_reason": "unload" if unload else "load",
            }
            self._send(200, orjson.dumps(answer))

    async def _load(self, model: str) -> None:
        if model not in self._server.loaded:
            await asyncio.sleep(self._server.load_ms / 1000)
            self._server.loaded.add(model)

    async def _chat(self, protocol: str, request: dict[str, Any]) -> None:
        name = str(request.get("model"))
        model = self._server.known(name)
        if model is None:
            self._send(404, error_body(protocol, 404, f"model '{name}' not found"))
            return
        if not isinstance(request.get("messages"), list):
            self._send(400, error_body(protocol, 400, "'messages' is required"))
            return
        message = last_user_text(request["messages"])
        script = script_for(model, self._server.models[model], message)
        call = self._server.open_call(script, model, turn_of(request["messages"]))
        how = "client_disconnected"
        try:
            if self._failed(protocol, script) or self._too_long(protocol, request, script):
                how = "failed"
                return
            if protocol == "ollama":
                await self._load(model)
            how = await self._speak(protocol, request, script, message, call)
        finally:
            self._server.close_call(call, how)

    def _failed(self, protocol: str, script: Script) -> bool:
        """Answer with the HTTP error that the script asks for, if it does."""
        if "fail" not in script:
            return False
        name = script.text("id")
        self._server.failures[name] += 1
        if (times := script.number("times")) is not None and self._server.failures[name] > times:
            return False
        cause = script.text("fail")
        status, reason = (
            (400, "the prompt exceeds the available context size") if cause == "context" else (int(cause), "no")
        )
        wait = f"Retry-After: {script.text('retry_after')}\r\n" if "retry_after" in script else ""
        self._send(status, error_body(protocol, status, reason), extra=wait)
        return True

    def _too_long(self, protocol: str, request: dict[str, Any], script: Script) -> bool:
        """Answer that the prompt is too long, if it is and this is to be an error."""
        window = script.number("window")
        if window is None or request.get("truncate") is not False or "unaware" in script:
            return False
        if len(words_read(request.get("messages", []), None)) <= window:
            return False
        self._send(400, error_body(protocol, 400, "the input length exceeds the context length"))
        return True

    async def _speak(
        self, protocol: str, request: dict[str, Any], script: Script, message: str, call: dict[str, Any]
    ) -> str:
        """Write the answer; returns how it ended."""
        usage = bool((request.get("stream_options") or {}).get("include_usage"))
        wire = wire_of(protocol, str(request["model"]), usage=usage)
        if "bench" in script:
            return await self._speak_at_once(protocol, wire, script, call)
        schema = schema_in_words(request) if "schemaless" in script else schema_of(request)
        read = words_read(request.get("messages", []), script.number("window"))
        tokens = read[:1] if "first" in script else answer_tokens(script, message, schema)
        tool_calls = [] if "schemaless" in script else tool_calls_of(request, script)
        if "answer" not in script and (told := results_told(request, script)) is not None:
            tokens = tokens_of(told)
        if tool_calls and "call" not in script:
            tokens = []  # a forced tool is all the answer there is
        reason = "tool_calls" if tool_calls else "refusal" if script.text("refuse") else "stop"
        limit = limit_of(request)
        if (limit is not None and len(tokens) > limit) or "length" in script:
            tokens, reason = tokens[:limit], "length"
        counts = (len(message.split()) + 1 if "window" not in script else len(read), len(tokens))
        await asyncio.sleep(script.seconds("first_ms"))
        if not request.get("stream", protocol == "ollama"):
            call["tokens"] = len(tokens)
            self._send(200, wire.whole("".join(tokens), tool_calls, reason, counts))
            return "finished"
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {wire.content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.transport.write(head.encode() + _chunk(wire.start()))
        writes = [wire.reasoning(token) for token in tokens_of(script.text("reasoning"))]
        say = wire.refusal if script.text("refuse") == "structured" else wire.text
        writes += [say(token) for token in ([REFUSAL] if say == wire.refusal else tokens)]
        writes += [wire.call(name, arguments) for name, arguments in tool_calls]
        how = await self._write_all(writes, wire, script, call)
        if how == "finished":
            self.transport.write(_chunk(wire.end(reason, *counts)) + b"0\r\n\r\n")
        return how

    async def _write_all(self, writes: list[bytes], wire: Wire, script: Script, call: dict[str, Any]) -> str:
        """Write the tokens at their pace, as far as the script lets them come; returns how it ended."""
        ends = {name: script.number(f"{name}_after") for name in ("error", "cut", "end", "stall")}
        stop_at = min((n for n in ends.values() if n is not None), default=len(writes))
        delay = script.seconds("delay_ms")
        batch = _BATCH if delay == 0 else 1
        for start in range(0, min(stop_at, len(writes)), batch):
            if start and delay:
                await asyncio.sleep(delay)
            await self._writable.wait()
            part = writes[start : min(start + batch, stop_at)]
            self.transport.write(b"".join(map(_chunk, part)))
            call["tokens"] += len(part)
            call["first"] = call["first"] or time.time()
        if ends["stall"] == stop_at:
            await asyncio.Event().wait()  # until the client's leaving cancels this
        if ends["error"] == stop_at:
            self.transport.write(_chunk(wire.error(500, "something broke")) + b"0\r\n\r\n")
            return "error"
        if ends["end"] == stop_at:
            self.transport.write(b"0\r\n\r\n")
            return "cut"
        if ends["cut"] == stop_at:
            self.transport.close()
            return "cut"
        return "finished"

    async def _speak_at_once(self, protocol: str, wire: Wire, script: Script, call: dict[str, Any]) -> str:
        """The benchmark's answer: its bytes are made once and written in one go."""
        count = script.number("tokens") or 1
        key = (protocol, call["model"], count)
        answer = self._server.precomputed.get(key)
        if answer is None:
            writes = [wire.start(), *(wire.text(token) for token in answer_tokens(script, "", None))]
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {wire.content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
            chunks = b"".join(map(_chunk, [*writes, wire.end("stop", 10, count)]))
            answer = self._server.precomputed[key] = head.encode() + chunks + b"0\r\n\r\n"
        self.transport.write(answer)
        call["tokens"] = count
        call["first"] = time.time()
        return "finished"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def _listed(name: str) -> dict[str, Any]:
    full = name if ":" in name else f"{name}:latest"
    details = {
        "format": "none",
        "family": "stand-in",
        "parameter_size": "0",
        "quantization_level": "stand-in",
    }
    return {"name": full, "model": full, "size": 0, "digest": "stand-in", "details": details}


async def _serve(options: argparse.Namespace) -> None:
    models = dict(model.partition("=")[::2] for model in options.model) or {"stand-in": ""}
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(options.log.open("ab")) if options.log else None
        server = StandIn(models, load_ms=options.load_ms, log=log)
        await server.start(options.host, options.port)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        address = {"stand-in": True, "url": server.url, "port": server.port, "models": list(models)}
        print(orjson.dumps(address).decode(), flush=True)
        await stop.wait()
        await server.aclose()


def main() -> None:
    """Run as a process until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="standin", description="A stand-in for a model server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", action="append", default=[], metavar="NAME[=DIRECTIVES]")
    parser.add_argument("--load-ms", type=int, default=0, help="time to load a model that is not in memory")
    parser.add_argument("--log", type=Path, help="JSONL of the calls, one line at the end of each")
    options = parser.parse_args()
    uvloop.run(_serve(options))
