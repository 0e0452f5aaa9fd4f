"""A key of any bytes among the events streams stops no search for requests that were trimmed."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from tests.support.endings import final_of
from tests.support.queue import open_client
from tests.support.workers import run_worker
from tests.worker.test_trimmed import leave_behind


async def test_key_that_is_no_text_stops_no_search(broker_url: str) -> None:
    """Whoever may cancel may write a key whose name is no UTF-8."""
    async with open_client(broker_url) as client:
        await client.xadd(b"llm:events:\xff\xfe", {"type": "attempt", "data": "{}"}, id="1-0")
        await leave_behind(broker_url, client, "mine")
        with capture_logs() as logs:
            async with run_worker(broker_url, {}):
                kind, _ = await asyncio.wait_for(final_of(client, "mine"), 8)
    assert kind == "error"
    assert all("exc_info" not in line for line in logs)
