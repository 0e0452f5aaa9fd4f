"""A run that has begun on a real or a fake server, and all that stands there."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from llm_routerd.protocol.audit import AuditEntry
from llm_routerd.protocol.events import FINAL_ID, ToolCalled, ToolReturned
from llm_routerd.protocol.keys import GROUP
from llm_routerd.protocol.tool import ToolRequest
from llm_routerd.queue.runs import (
    Word,
)
from tests.support.queue import add, begin_one, open_broker, open_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.deliveries import Delivery
    from llm_routerd.queue.outbox import Transcript
    from llm_routerd.queue.runs import Spoken, Wrote

KEEP_MS = 90_000
AUDIT = (AuditEntry(kind="tool", at_ms=1, id="r1", outcome="invalid", tool="add"),)


def told(name: str, number: int = 1) -> ToolCalled:
    """A call that a model has made."""
    return ToolCalled(call_id=f"call_{name}{number}", name=name, arguments={"n": number}, turn=1, args_sha256="0" * 64)


def request(name: str, number: int = 1) -> ToolRequest:
    """The same, as its tool gets it."""
    return ToolRequest(
        request_id="r1",
        call_id=f"call_{name}{number}",
        name=name,
        arguments={"n": number},
        turn=1,
        tenant_id=None,
        deadline_ms=9,
        traceparent=None,
    )


def called(name: str, number: int = 1) -> Word:
    """A call, and its event."""
    return Word(event=told(name, number), call=request(name, number))


def returned(name: str = "add", number: int = 1, **more: Any) -> ToolReturned:
    """What came of it."""
    return ToolReturned(call_id=f"call_{name}{number}", name=name, **more)


class Run:
    """A run that has begun, on `w1`.

    Attributes:
        after: the ID of its last event.
    """

    def __init__(self, client: Any, broker: Broker, delivery: Delivery, transcript: Transcript) -> None:
        self.client = client
        self.broker = broker
        self.delivery = delivery
        self.transcript = transcript
        self.after = ""

    async def dispatch(self, *words: Word, publish: bool = False) -> Wrote:
        """A turn's calls."""
        wrote = await self.broker.dispatch(
            self.delivery, self.transcript, words, audit=AUDIT, publish=publish, keep_ms=KEEP_MS
        )
        self.after = wrote.events[-1].stream_id if wrote.events else self.after
        return wrote

    async def observe(self, *words: Word, **more: Any) -> Wrote:
        """What has been said."""
        return await self.broker.observe(
            self.delivery, "r1", after=self.after, words=words, audit=AUDIT, publish=False, keep_ms=KEEP_MS, **more
        )

    async def hear(self, most_bytes: int = 1000) -> Spoken:
        """What there is to be heard."""
        return await self.broker.hear("r1", most_bytes=most_bytes)

    async def calls(self, name: str = "add") -> list[tuple[str, dict[str, Any]]]:
        """What stands on a tool's stream."""
        return [(entry, json.loads(fields["call"])) for entry, fields in await self.client.xrange(f"llm:tools:{name}")]

    async def everything(self) -> dict[str, Any]:
        """All streams, with what their groups know, and the last ID that each has given."""
        found: dict[str, Any] = {}
        for key in sorted(await self.client.keys("*")):
            if await self.client.type(key) != "stream":
                continue
            info = await self.client.xinfo_stream(key)
            groups = [group["last-delivered-id"] for group in await self.client.xinfo_groups(key)]
            found[key] = (await self.client.xrange(key), info["last-generated-id"], groups)
        return found


@asynccontextmanager
async def begun(url: str) -> AsyncIterator[Run]:
    """A run whose first attempt has begun."""
    async with open_client(url) as client, open_broker(url) as broker:
        await add(client, id="r1")
        yield Run(client, broker, *await begin_one(url, broker))


async def overtake(run: Run) -> None:
    """Another worker has it, and has begun nothing yet."""
    await run.client.xclaim("llm:requests", GROUP, "w2", 0, [run.delivery.entry], justid=True)


async def seal(run: Run) -> None:
    """Somebody has cancelled it."""
    await run.client.xadd("llm:events:r1", {"type": "cancelled", "data": "{}"}, id=FINAL_ID)
