"""How one call is answered: what the script says, in the words of its protocol, at the pace that it asks for."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tests.standin.machine import Refused
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
from tests.standin.tokens import text_of
from tests.standin.wire import error_body, wire_of

if TYPE_CHECKING:
    from tests.standin.machine import Machine
    from tests.standin.reading import Reading
    from tests.standin.server import StandIn
    from tests.standin.wire import Wire

_BATCH = 512
_BEGINNING = 100  # tokens in which there is surely a word


class Outlet(Protocol):
    """Where an answer is written."""

    transport: asyncio.Transport
    writable: asyncio.Event

    def send(self, status: int, body: bytes, kind: str = ..., extra: str = ...) -> None:
        """A whole answer."""


class Answering:
    """Answers the calls of one connection."""

    def __init__(self, server: StandIn, outlet: Outlet) -> None:
        self._server = server
        self._outlet = outlet

    async def chat(self, protocol: str, request: dict[str, Any]) -> None:
        """Answer a call, and write its line of the log."""
        name = str(request.get("model"))
        model = self._server.known(name)
        if model is None:
            self._outlet.send(404, error_body(protocol, 404, f"model '{name}' not found"))
            return
        if not isinstance(request.get("messages"), list):
            self._outlet.send(400, error_body(protocol, 400, "'messages' is required"))
            return
        message = last_user_text(request["messages"])
        script = script_for(model, self._server.models[model], message)
        call = self._server.open_call(script, model, turn_of(request["messages"]))
        how = "client_disconnected"
        try:
            if self._failed(protocol, script):
                how = "failed"
            elif self._server.machine is not None:
                how = await self._answer_at_box(self._server.machine, protocol, request, script, call)
            elif self._too_long(protocol, request, script):
                how = "failed"
            else:
                if protocol == "ollama":
                    await self._server.load(model)
                how = await self._speak(protocol, request, script, call)
        finally:
            self._server.close_call(call, how)

    async def _answer_at_box(
        self, machine: Machine, protocol: str, request: dict[str, Any], script: Script, call: dict[str, Any]
    ) -> str:
        """The same, once the box has the model, a place and the prompt read; returns how it ended."""
        try:
            async with machine.reading(protocol, call["model"], request, call) as reading:
                return await self._speak(protocol, request, script, call, reading)
        except Refused as refused:
            self._outlet.send(refused.status, refused.body)
            return "failed"

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
        self._outlet.send(status, error_body(protocol, status, reason), extra=wait)
        return True

    def _too_long(self, protocol: str, request: dict[str, Any], script: Script) -> bool:
        """Answer that the prompt is too long, if it is and this is to be an error."""
        window = script.number("window")
        if window is None or request.get("truncate") is not False or "unaware" in script:
            return False
        if len(words_read(request.get("messages", []), None)) <= window:
            return False
        self._outlet.send(400, error_body(protocol, 400, "the input length exceeds the context length"))
        return True

    async def _speak(
        self,
        protocol: str,
        request: dict[str, Any],
        script: Script,
        call: dict[str, Any],
        reading: Reading | None = None,
    ) -> str:
        """Write the answer; returns how it ended."""
        usage = bool((request.get("stream_options") or {}).get("include_usage"))
        wire = wire_of(protocol, str(request["model"]), usage=usage, reading=reading)
        if "bench" in script:
            return await self._speak_at_once(protocol, wire, script, call)
        said = _said(request, script, reading)
        await asyncio.sleep(script.seconds("first_ms"))
        if not request.get("stream", protocol == "ollama"):
            call["tokens"] = len(said.tokens)
            if reading is not None:
                await asyncio.sleep(script.seconds("delay_ms") * len(said.tokens))
            self._outlet.send(200, wire.whole("".join(said.tokens), said.tool_calls, said.reason, said.counts))
            return "finished"
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {wire.content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
        self._outlet.transport.write(head.encode() + _chunk(wire.start()))
        writes = [wire.reasoning(token) for token in tokens_of(script.text("reasoning"))]
        say = wire.refusal if script.text("refuse") == "structured" else wire.text
        writes += [say(token) for token in ([REFUSAL] if say == wire.refusal else said.tokens)]
        writes += [wire.call(name, arguments) for name, arguments in said.tool_calls]
        how = await self._write_all(writes, wire, script, call)
        if how == "finished":
            self._outlet.transport.write(_chunk(wire.end(said.reason, *said.counts)) + b"0\r\n\r\n")
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
            await self._outlet.writable.wait()
            part = writes[start : min(start + batch, stop_at)]
            self._outlet.transport.write(b"".join(map(_chunk, part)))
            call["tokens"] += len(part)
            call["first"] = call["first"] or time.time()
        if ends["stall"] == stop_at:
            await asyncio.Event().wait()  # until the client's leaving cancels this
        if ends["error"] == stop_at:
            self._outlet.transport.write(_chunk(wire.error(500, "something broke")) + b"0\r\n\r\n")
            return "error"
        if ends["end"] == stop_at:
            self._outlet.transport.write(b"0\r\n\r\n")
            return "cut"
        if ends["cut"] == stop_at:
            self._outlet.transport.close()
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
        self._outlet.transport.write(answer)
        call["tokens"] = count
        call["first"] = time.time()
        return "finished"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


@dataclass(frozen=True, slots=True)
class _Said:
    """An answer: its tokens, the tools it calls, how it ends, and the tokens of prompt and answer as they are told."""

    tokens: list[str]
    tool_calls: list[tuple[str, Any]]
    reason: str
    counts: tuple[int, int]


def _said(request: dict[str, Any], script: Script, reading: Reading | None) -> _Said:
    """What the script says to a request; of a box, to what is left of it."""
    messages = request.get("messages", [])
    message = last_user_text(messages)
    schema = schema_in_words(request) if "schemaless" in script else schema_of(request)
    if reading is not None:
        read = text_of(reading.tokens[:_BEGINNING]).split() if "first" in script else []
    else:
        read = words_read(messages, script.number("window"))
    tokens = read[:1] if "first" in script else answer_tokens(script, message, schema)
    tool_calls = [] if "schemaless" in script else tool_calls_of(request, script)
    if "answer" not in script and (told := results_told(request, script)) is not None:
        tokens = tokens_of(told)
    if tool_calls and "call" not in script:
        tokens = []  # a forced tool is all the answer there is
    reason = "tool_calls" if tool_calls else "refusal" if script.text("refuse") else "stop"
    limits = [limit_of(request), None if reading is None else reading.room]
    limit = min((each for each in limits if each is not None), default=None)
    if (limit is not None and len(tokens) > limit) or "length" in script:
        tokens, reason = tokens[:limit], "length"
    if reading is not None:
        reading.answer = "".join(tokens)
        return _Said(tokens, tool_calls, reason, (reading.counted, len(tokens)))
    counted = len(read) if "window" in script else len(message.split()) + 1
    return _Said(tokens, tool_calls, reason, (counted, len(tokens)))
