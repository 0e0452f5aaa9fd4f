"""What a client sees of the protocol: the final event, metrics, a cancellation; and all of it against `schemas/`.

The validator is another one than the daemon's own.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from jsonschema import Draft202012Validator

from llm_routerd.client import check_stream_id
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.schema_files import load_schema
from tests.support.schemas import closed

if TYPE_CHECKING:
    from collections.abc import Callable

FINAL_TYPES = frozenset({"result", "error", "cancelled"})
_WAIT_SECONDS = 10.0


async def final_of(client: Any, request_id: str) -> tuple[str, dict[str, Any]]:
    """The final event, once it is there; by one XREAD from just before it, as the protocol has it."""
    async with asyncio.timeout(_WAIT_SECONDS):
        while not (reply := await client.xread({f"llm:events:{request_id}": "9007199254740990-0"}, block=1000)):
            pass
    ((_, entries),) = reply
    ((event_id, fields),) = entries
    assert event_id == FINAL_ID
    return fields["type"], json.loads(fields["data"])


async def metrics_of(client: Any, request_id: str) -> dict[str, Any]:
    """The metrics event of a request, once it is on the stream."""
    async with asyncio.timeout(_WAIT_SECONDS):
        while True:
            for _, fields in await client.xrange("llm_router_metrics"):
                event: dict[str, Any] = json.loads(fields["data"])
                if event["id"] == request_id:
                    return event
            await asyncio.sleep(0.01)


async def next_message(pubsub: Any) -> dict[str, Any]:
    """The next message of a channel, as JSON."""
    async with asyncio.timeout(_WAIT_SECONDS):
        while True:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1)
            if message is not None:
                decoded: dict[str, Any] = json.loads(message["data"])
                return decoded


async def eventually_true(condition: Callable[[], Any]) -> None:
    """Wait for a condition that is asked of Redis."""
    async with asyncio.timeout(_WAIT_SECONDS):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.01)


def cancellation(request_id: str) -> dict[str, str]:
    """The fields of a final event by which anybody cancels a request."""
    return {"type": "cancelled", "data": json.dumps({"id": request_id, "reason": "enough"})}


@cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(closed(load_schema(name)), format_checker=Draft202012Validator.FORMAT_CHECKER)


def check(name: str, value: Any) -> None:
    """Fail where a value does not satisfy the schema file of this name."""
    faults = [f"{fault.json_path}: {fault.message}" for fault in _validator(name).iter_errors(value)]
    assert not faults, f"{name}: {faults} in {value}"


async def check_everything(client: Any, prefix: str = "llm") -> Counter[str]:
    """Validate every entry that the daemon has written; return how many of each kind there are.

    The kinds are the event types, `dead` and `metrics`.  Of events streams the IDs are checked as well, and the TTL.
    """
    seen: Counter[str] = Counter()
    for key in await client.keys(f"{prefix}:events:*"):
        entries = await client.xrange(key)
        seen.update(fields["type"] for _, fields in entries)
        _check_transcript(entries)
        assert await client.pttl(key) > 0, f"{key} lives for ever"
    for _, fields in await client.xrange(f"{prefix}:dead"):
        check("dead-letter", {**fields, "data": json.loads(fields["data"])})
        seen["dead"] += 1
    for _, fields in await client.xrange("llm_router_metrics"):
        assert list(fields) == ["data"]
        check("metrics", json.loads(fields["data"]))
        seen["metrics"] += 1
    return seen


def _check_transcript(entries: list[tuple[str, dict[str, str]]]) -> None:
    """The entries of one events stream: their form, their IDs, one attempt after the other, the final event last."""
    for event_id, fields in entries:
        assert set(fields) == {"type", "data"}
        check(f"event.{fields['type']}", json.loads(fields["data"]))
        attempt, number = check_stream_id(event_id)
        assert (event_id == FINAL_ID) == (fields["type"] in FINAL_TYPES)
        assert (number == 0 and attempt > 0) == (fields["type"] == "attempt" or event_id == FINAL_ID)
    for (earlier, _), (later, fields) in pairwise(entries):
        before, after = check_stream_id(earlier), check_stream_id(later)
        if later != FINAL_ID:
            assert after in {(before[0], before[1] + 1), (before[0] + 1, 0)}
        if fields["type"] == "attempt":
            assert not {"entry", "lane"} & set(json.loads(fields["data"])), "only the first attempt names the entry"
