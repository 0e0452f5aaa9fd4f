"""A box at work: a call gets its model, its place and its prompt read, or is refused in the words of the server.

What is known of it stands in `state`, which `GET /_standin/state` tells, and in the lines of the log.  A call at a box
has these beside what every call has:

    prompt_tokens    of the whole prompt, whatever was told
    read_tokens      after the cut; 0 where it was refused
    cut              whether the server left something out
    cached_tokens    of those that were read, how many stood in the slot's cache
    window           that its model was loaded with
    load_seconds     that it waited for its model to be ready, in the queue as well
    wait_seconds     that it waited for a slot
    slot             its number; null: it had none
"""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson

from tests.standin.memory import LoadError, Memory, seconds_of
from tests.standin.reading import Reading
from tests.standin.request import limit_of
from tests.standin.tokens import encoding, tokens_in
from tests.standin.window import beginning, read_prompt
from tests.standin.wire import error_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.standin.box import Box
    from tests.standin.memory import Resident
    from tests.standin.window import Prompt

_UNTOLD: dict[str, Any] = {"prompt_tokens": 0, "read_tokens": 0, "cut": False, "cached_tokens": 0, "window": 0}
_UNTOLD |= {"load_seconds": 0.0, "wait_seconds": 0.0, "slot": None}


class Refused(Exception):  # noqa: N818 - as the server's answer it is no error of ours
    """The call is answered with this, and not with tokens."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


class Machine:
    """A box that runs.

    Attributes:
        box: what it is.
        memory: what is resident.
        most_running: calls that had a slot at once, at most.
    """

    def __init__(self, box: Box) -> None:
        self.box = box
        self.memory = Memory(box)
        self.most_running = 0
        self._starting: asyncio.Task[Resident] | None = None

    async def start(self) -> None:
        """Switch it on; vLLM listens only when its model is loaded, llama.cpp before."""
        await asyncio.to_thread(encoding)
        if self.box.kind != "ollama":
            name = next(iter(self.box.models))
            load = self.memory.hold(name, self.box.window_of(name), math.inf)
            self._starting = asyncio.create_task(load, name="load-model")
        if self.box.kind == "vllm" and self._starting is not None:
            await self._starting

    async def aclose(self) -> None:
        """Switch it off."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        self.memory.close()

    @property
    def is_ready(self) -> bool:
        """Whether it takes calls at all; a llama.cpp that loads its model does not."""
        return self._starting is None or self._starting.done()

    @property
    def running(self) -> int:
        """Calls that have a slot."""
        return sum(resident.slots.busy for resident in self.memory.resident.values())

    @property
    def waiting(self) -> int:
        """Calls that wait for a model or for a slot."""
        return self.memory.pending + sum(each.slots.waiting for each in self.memory.resident.values())

    def state(self) -> dict[str, Any]:
        """What holds, whatever the server tells of itself."""
        resident = [
            {"model": each.name, "window": each.window, "size": each.size, "loaded": each.is_loaded}
            | {"running": each.slots.busy, "waiting": each.slots.waiting}
            for each in self.memory.resident.values()
        ]
        counts = {"loads": dict(self.memory.loads), "evictions": +self.memory.evictions}
        calls = {"running": self.running, "waiting": self.waiting, "most_running": self.most_running}
        return {"kind": self.box.kind, "resident": resident, **counts, **calls, "history": list(self.memory.history)}

    @asynccontextmanager
    async def reading(
        self, protocol: str, name: str, request: Mapping[str, Any], call: dict[str, Any]
    ) -> AsyncIterator[Reading]:
        """Have the prompt of a call read, and a slot for as long as it is answered.

        Raises:
            Refused: it is not answered.
        """
        call |= _UNTOLD
        box, native = self.box, request if protocol == "ollama" else {}
        asked = (native.get("options") or {}).get("num_ctx")
        began = time.monotonic()
        try:
            resident = await self.memory.hold(name, box.window_of(name, asked), seconds_of(native.get("keep_alive")))
        except LoadError as error:
            raise Refused(error.status, error_body(protocol, error.status, str(error))) from error
        loaded = time.monotonic()
        call |= {"window": resident.window, "load_seconds": loaded - began}
        try:
            prompt = read_prompt(request, box.image_tokens)
            call["prompt_tokens"] = len(prompt.tokens)
            tokens = self._fitted(protocol, request, prompt, resident.window)
            call |= {"read_tokens": len(tokens), "cut": len(tokens) < len(prompt.tokens)}
            slot, cached = await resident.slots.take(tokens)
            call |= {"slot": slot.number, "cached_tokens": cached, "wait_seconds": time.monotonic() - loaded}
            self.most_running = max(self.most_running, self.running)
            cache = tokens[:cached]
            shifts = box.kind == "ollama" and native.get("shift") is not False
            reading = Reading(
                kind=box.kind,
                tokens=tokens,
                cached=cached,
                counts_cached=box.counts_cached or box.kind != "ollama",
                load_seconds=loaded - began,
                room=None if shifts else max(0, resident.window - len(tokens)),
            )
            reading.seconds = reading.new * box.seconds_per_token
            try:
                await asyncio.sleep(reading.seconds)
                cache = tokens
                yield reading
                cache = [*tokens, *beginning("assistant"), *tokens_in(reading.answer)]
            finally:
                resident.slots.give_back(slot, cache)
        finally:
            self.memory.release(resident)

    def _fitted(self, protocol: str, request: Mapping[str, Any], prompt: Prompt, window: int) -> list[int]:
        """The tokens that the server reads of a prompt.

        Raises:
            Refused: it is too long, and not cut.
        """
        tokens = prompt.tokens
        box, size = self.box, len(tokens)
        if box.kind == "llama.cpp":
            if size >= window:
                raise Refused(400, orjson.dumps(_too_long(size, window)))
        elif box.kind == "vllm":
            limit = limit_of(dict(request)) or 0
            if size + limit > window or size >= window:
                raise Refused(400, _vllm_too_long(size, limit, window))
        elif size > window:
            if protocol == "ollama" and request.get("truncate") is False and box.takes_truncate:
                raise Refused(400, error_body(protocol, 400, "the input length exceeds the context length"))
            tokens = prompt.without_front(window).tokens
            if len(tokens) > window and box.refuses_long_last:
                raise Refused(400, _nested(protocol, orjson.dumps(_too_long(len(tokens), window)).decode()))
            tokens = tokens[-window:]
        return tokens


def _too_long(size: int, window: int) -> dict[str, Any]:
    message = f"request ({size} tokens) exceeds the available context size ({window} tokens), try increasing it"
    error = {"code": 400, "message": message, "type": "exceed_context_size_error"}
    return {"error": {**error, "n_prompt_tokens": size, "n_ctx": window}}


def _nested(protocol: str, message: str) -> bytes:
    """An Ollama hands on what llama.cpp has said, as the text of an error of its own."""
    if protocol != "openai":
        return error_body(protocol, 400, message)
    return orjson.dumps(
        {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}},
    )


def _vllm_too_long(size: int, limit: int, window: int) -> bytes:
    message = (
        f"This model's maximum context length is {window} tokens. However, you requested {size + limit} tokens "
        f"({size} in the messages, {limit} in the completion). Please reduce the length of the messages or completion."
    )
    return orjson.dumps({"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}})
