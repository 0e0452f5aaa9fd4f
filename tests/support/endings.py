"""How requests have ended, as Redis tells it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from llm_routerd.protocol.events import FINAL_ID


async def final_of(client: Any, request_id: str) -> tuple[str, dict[str, Any]]:
    """The final event of a request, once it is there."""
    async with asyncio.timeout(20):
        while True:
            found = await client.xrange(f"llm:events:{request_id}", FINAL_ID, FINAL_ID)
            if found:
                fields = found[0][1]
                return fields["type"], json.loads(fields["data"])
            await asyncio.sleep(0.02)


async def nothing_left(client: Any) -> None:
    """No entry waits, none is pending, and nothing lives for ever but the named keys."""
    async with asyncio.timeout(10):
        while True:
            left = [await client.xlen(lane) for lane in ("llm:requests:high", "llm:requests", "llm:requests:low")]
            pending = (await client.xpending("llm:requests", "llm-router"))["pending"]
            if not any(left) and not pending:
                break
            await asyncio.sleep(0.02)
    named = {"llm:requests", "llm:requests:high", "llm:requests:low", "llm:dead", "llm:audit", "llm_router_metrics"}
    for key in await client.keys("*"):
        assert key in named or await client.pttl(key) > 0, key
