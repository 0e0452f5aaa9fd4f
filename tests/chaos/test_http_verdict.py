"""The verdict on a storm over HTTP sees what it is there to see; the storm alone would not show that."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_routerd.protocol.events import FINAL_ID
from tests.chaos.http_clients import Seen, Stream
from tests.chaos.http_verdict import judge_stream
from tests.chaos.producers import Order
from tests.chaos.verdict import Call
from tests.chaos.world import Life, Span


def event(stream_id: str, kind: str, **data: Any) -> Seen:
    """An event as it stands."""
    return Seen(stream_id, kind, json.dumps(data))


BEGUN = event("1-0", "attempt", consumer="a")
WORDS = [event("1-1", "token", text="Hello "), event("1-2", "token", text="you")]
RESULT = event(FINAL_ID, "result", attempt=1, raw_text="Hello you")
WHOLE = [BEGUN, *WORDS, RESULT]
# Attempt 1 broke off, and attempt 2 says something else.
TWICE = [
    *WHOLE[:2],
    event("2-0", "attempt", consumer="b"),
    event("2-1", "token", text="Bye"),
    event(FINAL_ID, "result", attempt=2, raw_text="Bye"),
]
POISONED = [*WHOLE[:2], event(FINAL_ID, "error", code="poisoned")]
LATE = [*TWICE[:3], event(FINAL_ID, "result", attempt=1, raw_text="Hello you")]


def call(start: float, *, worker_end: float = float("inf"), stops: tuple[Span, ...] = ()) -> Call:
    """A second long."""
    life = Life(pid=1, start=0.0, end=worker_end, stops=list(stops))
    return Call(name="r", model="first-0", start=start, end=start + 1.0, how="finished", worker=life)


def faults(
    *,
    stands: list[Seen] = WHOLE,
    seen: list[Seen] | None = None,
    calls: tuple[Call, ...] = (call(10.0),),
    troubles: tuple[Span, ...] = (),
    deaths: int = 0,
    **remembered: Any,
) -> list[str]:
    """What the verdict says of one client; as it stands all is in order."""
    order = Order(name="r", kind="openai", lane="normal", fields={}, key_id="r", accepted=True)
    stream = Stream(order=order, starts_at=0.0, seen=list(stands if seen is None else seen), **remembered)
    return list(judge_stream(stream, stands, calls, troubles, deaths))


def test_what_is_in_order_is_no_fault() -> None:
    """Also what a worker's death, a server's trouble or a reader's leave explains."""
    again = (call(10.0), call(20.0))
    assert faults() == []
    assert faults(shown="Hello you", told_whole=True) == []
    assert faults(stands=TWICE, shown="Hello ", broken="superseded") == []
    assert faults(stands=TWICE, shown="Bye", told_whole=True) == []
    assert faults(stands=LATE) == []
    assert faults(stands=POISONED, shown="Hello ", broken="poisoned", deaths=3) == []
    assert faults(leaves=True, seen=WHOLE[:2]) == []
    assert faults(calls=(call(10.0, worker_end=10.5), call(14.0))) == []
    assert faults(calls=(call(10.0, stops=(Span(10.5, 15.0),)), call(14.0))) == []
    assert faults(calls=again, troubles=(Span(10.5, 12.0),)) == []
    assert faults(calls=again, stands=[BEGUN, event("1-1", "rejected"), *TWICE[2:]]) == []


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"seen": [BEGUN, WORDS[0], *WORDS, RESULT]}, "event 2 was told as"),
        ({"seen": [BEGUN, WORDS[1], RESULT]}, "event 1 was told as"),
        ({"seen": WHOLE[:-1]}, "was told 3 events of 4"),
        ({"seen": [*WHOLE, RESULT]}, "was told 5 events of 4"),
        ({"seen": [BEGUN, event("1-1", "token", text="Hello"), *WHOLE[2:]]}, "event 1 was told as"),
        ({"seen": [BEGUN, WORDS[1]], "leaves": True}, "event 1 was told as"),
        ({"stands": WHOLE[:-1]}, "no final event"),
        ({"stands": []}, "no final event"),
        ({"stands": [event(FINAL_ID, "cancelled", reason="the client has gone")]}, "ended in cancelled"),
        ({"stands": POISONED, "deaths": 2}, "ended in error"),
        ({"stands": [BEGUN, WORDS[0], RESULT]}, "is not the answer's"),
        ({"stands": TWICE, "shown": "Hello Bye"}, "no attempt has said"),
        ({"stands": TWICE, "shown": "Hello ", "told_whole": True}, "was told as whole"),
        ({"shown": "Hello ", "broken": "internal"}, "broke off with internal"),
        ({"calls": (call(10.0), call(20.0))}, "2 calls"),
        ({"calls": (call(10.0, worker_end=19.0), call(20.0))}, "2 calls"),
        ({"calls": (call(10.0), call(20.0)), "troubles": (Span(19.0, 20.0),)}, "2 calls"),
        ({"faults": ["GET was answered with 404"]}, "404"),
    ],
)
def test_what_nothing_excuses_is_a_fault(wrong: dict[str, Any], told: str) -> None:
    """Each promise broken once."""
    found = faults(**wrong)
    assert any(told in fault for fault in found), found
