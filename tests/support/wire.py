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
        check_transcript(entries)
        assert await client.pttl(key) > 0, f"{key} lives for ever"
    for _, fields in await client.xrange(f"{prefix}:dead"):
        check("dead-letter", {**fields, "data": json.loads(fields["data"])})
        seen["dead"] += 1
    for _, fields in await client.xrange("llm_router_metrics"):
        assert list(fields) == ["data"]
        check("metrics", json.loads(fields["data"]))
        seen["metrics"] += 1
    return seen


def check_transcript(entries: list[tuple[str, dict[str, str]]]) -> None:
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
    journal = _Journal()
    for event_id, fields in entries:
        fault = journal.fault_of(fields["type"], json.loads(fields["data"]))
        assert not fault, f"{event_id} {fields['type']}: {fault}"


class _Journal:
    """The turns of a run, as they stand one after the other: what may come when."""

    def __init__(self) -> None:
        self._turn = 0
        self._is_open = True  # an attempt is under way, or nothing stands yet
        self._coming: dict[str, dict[str, Any]] = {}  # of the attempt under way
        self._answered_at_once: set[str] = set()  # for what was wrong with them
        self._waiting: dict[str, dict[str, Any]] = {}  # calls of the turn that stands, without an end
        self._confirmed: set[str] = set()

    def fault_of(self, kind: str, data: dict[str, Any]) -> str:
        """What is wrong with the next event; "" for nothing."""
        call_id = str(data.get("call_id"))
        fault = ""
        match kind:
            case "attempt":
                fault = self._begins()
            case "token" | "reasoning" | "rejected" if not self._is_open:
                fault = "after its turn stood"
            case "tool_call":
                self._coming[call_id] = data
                if data.get("confirm") and data.get("entry"):
                    fault = "put on a stream before a person agreed"
            case "turn":
                fault = self._stands(data["turn"])
            case "tool_result" if self._is_open:
                self._answered_at_once.add(call_id)
                fault = "" if call_id in self._coming else "no call of this turn"
            case "tool_result" | "denied":
                fault = "" if self._waiting.pop(call_id, None) is not None else "its call does not wait"
            case "confirmed":
                fault = self._agreed(call_id)
            case "result" if self._waiting:
                fault = f"{len(self._waiting)} calls wait"
            case _:
                pass
        return fault

    def _begins(self) -> str:
        self._is_open, self._coming = True, {}
        return f"{len(self._waiting)} calls of the turn before wait" if self._waiting else ""

    def _stands(self, turn: int) -> str:
        coming, self._coming = self._coming, {}
        self._waiting = {call_id: call for call_id, call in coming.items() if call_id not in self._answered_at_once}
        before, self._turn, self._is_open = self._turn, turn, False
        if turn != before + 1:
            return f"turn {turn} after {before}"
        lost = [call_id for call_id, call in self._waiting.items() if not (call.get("entry") or call.get("confirm"))]
        return f"{lost} are neither sent nor answered" if lost else ""

    def _agreed(self, call_id: str) -> str:
        if call_id in self._confirmed:
            return "twice"
        self._confirmed.add(call_id)
        return "" if self._waiting.get(call_id, {}).get("confirm") else "its call waits for nobody"
