"""Turns and words of runs are written also where somebody has dropped the group, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_routerd.protocol.events import CallConfirmed, ToolCalled, TurnEnded
from llm_routerd.protocol.keys import GROUP
from llm_routerd.protocol.outcome import Usage
from llm_routerd.protocol.tool import ToolRequest
from llm_routerd.queue.runs import Word
from tests.support.queue import add, begin_one, open_broker, open_client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llm_routerd.queue.runs import Wrote

LANE = "llm:requests"
CALL_ID = "call_0123456789abcdef01234567"
CALL = ToolRequest(
    request_id="r1", call_id=CALL_ID, name="add", arguments={}, turn=1, tenant_id=None, deadline_ms=1, traceparent=None
)
TURN = TurnEnded(
    turn=1,
    message={},
    deployment="local",
    model="ollama/tiny",
    latency_ms=1,
    usage=Usage(),
    cost_usd=None,
    started_ms=1,
)
CALLED = ToolCalled(call_id=CALL_ID, name="add", arguments={}, turn=1, args_sha256="0" * 64)
CONFIRMED = CallConfirmed(call_id=CALL_ID, by="ada")


async def test_turn_is_written_and_its_call_put_once(valkey_url: str) -> None:
    """Whoever repeats it after a lost reply is told the same."""
    words = [Word(event=CALLED, call=CALL), Word(event=TURN)]
    async with open_client(valkey_url) as client, open_broker(valkey_url) as broker:
        await add(client)
        delivery, transcript = await begin_one(valkey_url, broker)
        await client.xgroup_destroy(LANE, GROUP)

        async def dispatch() -> Wrote:
            return await broker.dispatch(delivery, transcript, words, audit=(), publish=False, keep_ms=1000)

        await _is_written_once(client, dispatch)


async def test_word_is_written_and_its_call_put_once(valkey_url: str) -> None:
    """Likewise."""
    asked = ToolCalled(call_id=CALL_ID, name="add", arguments={}, turn=1, args_sha256="0" * 64, confirm=True)
    async with open_client(valkey_url) as client, open_broker(valkey_url) as broker:
        await add(client)
        delivery, transcript = await begin_one(valkey_url, broker)
        words = [Word(event=asked), Word(event=TURN)]
        stands = await broker.dispatch(delivery, transcript, words, audit=(), publish=False, keep_ms=1000)
        await client.xgroup_destroy(LANE, GROUP)
        after = stands.events[-1].stream_id

        async def observe() -> Wrote:
            said = [Word(event=CONFIRMED, call=CALL)]
            return await broker.observe(delivery, "r1", after=after, words=said, audit=(), publish=False, keep_ms=1000)

        await _is_written_once(client, observe)


async def _is_written_once(client: Any, write: Callable[[], Awaitable[Wrote]]) -> None:
    first, again = await write(), await write()
    assert first.verdict == again.verdict == "done"
    assert [event.stream_id for event in first.events] == [event.stream_id for event in again.events]
    assert await client.xlen("llm:tools:add") == 1
    ((entry, _),) = await client.xrange(LANE)
    assert [each["message_id"] for each in await client.xpending_range(LANE, GROUP, "-", "+", 10)] == [entry]
