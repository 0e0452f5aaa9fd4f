"""The daemon's side of tools, played to a tool worker that is tried out: see `tool_conformance`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from llm_routerd.protocol.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from redis.asyncio import Redis

TOOLS = ("echo", "note")
_REQUEST = "tool-conformance"


class BrokenRuleError(Exception):
    """How a rule was broken."""


class Stage:
    """Redis, the worker that is tried, and the daemon's part.

    Args:
        redis: a client of the server at `url`.
        command: starts a worker.
        directory: for what it writes.
        patience_seconds: how long whatever it does may take.

    Attributes:
        has_acted: a plain call was seen to be acted on: only then a missing line tells that one was not.
    """

    def __init__(
        self, redis: Redis, url: str, command: Sequence[str], directory: Path, *, patience_seconds: float
    ) -> None:
        self.patience_seconds = patience_seconds
        self.redis = redis
        self.keys = Keys("llm")
        self.streams = tuple(self.keys.tool_calls(tool) for tool in TOOLS)
        self.inbox = self.keys.inbox(_REQUEST)
        self.file = directory / "notes"
        self.output = directory / "output"
        self.has_acted = False
        self._command = command
        self._environ = {**os.environ, "REDIS_URL": url, "TOOL_FILE": str(self.file)}
        self._number = 0
        self._clients_before = 0

    async def start(self) -> asyncio.subprocess.Process:
        """Start the worker, in a session of its own."""
        self._clients_before = self._clients_before or max(int(each["id"]) for each in await self.redis.client_list())
        with self.output.open("ab") as output:
            return await asyncio.create_subprocess_exec(
                *self._command, env=self._environ, stdout=output, stderr=output, start_new_session=True
            )

    @staticmethod
    async def kill(process: asyncio.subprocess.Process) -> None:
        """SIGKILL it and what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    async def call(
        self, tool: str, arguments: dict[str, Any], *, call_id: str = "", seconds: float = 60.0, request: str = _REQUEST
    ) -> str:
        """Put a call on a tool's stream, as the daemon does; returns its `call_id`."""
        self._number += 1
        call_id = call_id or f"call_{self._number:024x}"
        now, _ = await self.redis.time()
        call = {
            "id": request, "call_id": call_id, "name": tool, "arguments": arguments, "turn": 1, "tenant_id": None,
            "deadline_ms": int((now + seconds) * 1000), "traceparent": None,
        }  # fmt: skip
        await self.redis.xadd(self.keys.tool_calls(tool), {"call": json.dumps(call, ensure_ascii=False)})
        return call_id

    async def are_registered(self) -> bool:
        """Whether all tools are."""
        return set(await self.redis.hkeys(self.keys.tools)) >= {tool.encode() for tool in TOOLS}

    async def answers(self, call_id: str) -> list[dict[bytes, bytes]]:
        """All answers to a call so far."""
        entries: Any = await self.redis.xrange(self.inbox)
        return [fields for _, fields in entries if fields.get(b"call_id") == call_id.encode()]

    async def answer(self, call_id: str) -> dict[bytes, bytes]:
        """The first answer to a call.

        Raises:
            BrokenRuleError: there is none in time, or it is none.
        """
        found = await self.until(lambda: self.answers(call_id), "no answer")
        if (b"result" in found[0]) == (b"error" in found[0]):
            raise BrokenRuleError("an answer has a field `result` or a field `error`, and not both")
        return dict(found[0])

    async def result(self, call_id: str) -> bytes:
        """The result of a call.

        Raises:
            BrokenRuleError: there is none in time, or it is an error.
        """
        answer = await self.answer(call_id)
        if b"error" in answer:
            raise BrokenRuleError(f"answered with an error: {answer[b'error'][:200].decode('utf-8', 'replace')}")
        return answer[b"result"]

    async def until(self, find: Callable[[], Awaitable[Any]], problem: str) -> Any:
        """What `find` comes to, once that is true.

        Raises:
            BrokenRuleError: it was not in time.
        """
        give_up_at = time.monotonic() + self.patience_seconds
        while not (found := await find()):
            if time.monotonic() > give_up_at:
                raise BrokenRuleError(f"{problem}, within {self.patience_seconds:g} s")
            await asyncio.sleep(0.02)
        return found

    async def until_noted(self, call_id: str) -> None:
        """Return once a call was acted on."""

        async def is_noted() -> bool:
            return self.notes(call_id) > 0

        await self.until(is_noted, "nothing was appended to TOOL_FILE")

    def notes(self, call_id: str) -> int:
        """How often a call was acted on."""
        return sum(line.split(b" ")[0] == call_id.encode() for line in self.lines())

    def lines(self) -> list[bytes]:
        """What stands in TOOL_FILE."""
        return self.file.read_bytes().splitlines() if self.file.exists() else []

    async def pending(self) -> list[tuple[str, Any, Any, Any]]:
        """Stream, group, consumer and ID of what was read and is not acknowledged."""
        found = []
        for stream in self.streams:
            if not await self.redis.exists(stream):
                continue
            for group in await self.redis.xinfo_groups(stream):
                entries = await self.redis.xpending_range(stream, group["name"], "-", "+", 1000)
                found += [(stream, group["name"], each["consumer"], each["message_id"]) for each in entries]
        return found

    async def until_empty(self) -> None:
        """Return once every call is acknowledged and deleted.

        Raises:
            BrokenRuleError: one is not.
        """

        async def is_empty() -> bool:
            return not any([await self.redis.xlen(stream) for stream in self.streams]) and not await self.pending()

        await self.until(is_empty, "an entry was not acknowledged (XACK), or not deleted (XDEL)")

    async def open_inbox(self) -> None:
        """Make it, empty and with a TTL, as the daemon does."""
        with suppress(ResponseError):
            await self.redis.xgroup_create(self.inbox, "none", mkstream=True)
            await self.redis.xgroup_destroy(self.inbox, "none")
        await self.redis.expire(self.inbox, 3600)

    async def cut_off(self) -> int:
        """Close the worker's connections; returns how many there were."""
        ours = await self.redis.client_id()
        clients = [int(each["id"]) for each in await self.redis.client_list()]
        theirs = [each for each in clients if each > self._clients_before and each != ours]
        for each in theirs:
            await self.redis.client_kill_filter(_id=str(each))
        return len(theirs)

    async def clean(self) -> None:
        """Remove what was made."""
        await self.redis.delete(self.keys.tools, *self.streams, self.inbox)
