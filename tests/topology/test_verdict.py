"""The verdict on a storm sees what it is there to see; the storms alone would not show that."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import Keys, Layout
from tests.chaos.verdict import Call
from tests.chaos.world import Life, Span
from tests.topology.driver import Departure
from tests.topology.producers import Asked, Seen
from tests.topology.verdict import Findings, Request, judge_request

if TYPE_CHECKING:
    from tests.topology.driver import Events

ATTEMPT = ("attempt", json.dumps({"model": "first-0", "deployment": "first"}))
TOKEN = ("token", json.dumps({"text": "Hello"}))
RESULT = ("result", json.dumps({"attempt": 1, "content": "Hello"}))
POISONED: Events = {FINAL_ID: ("error", json.dumps({"code": "poisoned"}))}
WHOLE: Events = {"1-0": ATTEMPT, "1-1": TOKEN, FINAL_ID: RESULT}


def call(start: float, *, worker_end: float = float("inf")) -> Call:
    """One of the first worker, a second long."""
    life = Life(pid=1, start=0.0, end=worker_end)
    return Call(name="r", model="first-0", start=start, end=start + 1.0, how="finished", worker=life)


def faults(
    *,
    stands: Events = WHOLE,
    lost: Events | None = None,
    seen: Events | None = None,
    calls: tuple[Call, ...] = (),
    added: tuple[float, ...] = (10.0,),
    left: tuple[Departure, ...] = (),
    deaths: int = 0,
) -> list[str]:
    """What the verdict says of one request; as it stands it is in order."""
    asked = Asked(name="r", layout=Layout(), lane="normal", prompt="", live=False, added=list(added), ended_at=20.0)
    asked.seen = [Seen(15.0, stream_id, *event) for stream_id, event in (WHOLE if seen is None else seen).items()]
    findings = Findings()
    judge_request(
        Request(asked=asked, stands=stands, lost=lost or {}, calls=calls or (call(12.0),), left=left, deaths=deaths),
        findings,
    )
    return findings.faults


def departure(*, waiting: frozenset[str] = frozenset(), at: float = 13.0) -> Departure:
    """A primary that went while the request ran."""
    return Departure(
        kind="kill-primary", span=Span(at, at + 2.0), served=frozenset({Keys()}), waiting=waiting, events={}
    )


def test_what_is_in_order_or_was_lost_is_no_fault() -> None:
    """A worker's death, a lost attempt, a lost end and a lost request each excuse what comes of them."""
    twice = (call(12.0), call(16.0))
    assert faults() == []
    assert faults(calls=(call(12.0, worker_end=12.5), call(16.0))) == []
    assert faults(calls=twice, lost={"1-0": ATTEMPT}) == []
    assert faults(calls=twice, lost={FINAL_ID: RESULT}) == []
    assert faults(stands={}, lost=WHOLE) == []
    assert faults(stands=POISONED, seen=POISONED, deaths=3) == []
    assert faults(added=(10.0, 17.0), left=(departure(waiting=frozenset({"r"})),)) == []


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"calls": (call(12.0), call(16.0))}, "was called again"),
        ({"calls": (call(12.0, worker_end=17.0), call(16.0))}, "was called again"),
        ({"calls": (call(12.0), call(16.0)), "lost": {"1-1": TOKEN}}, "was called again"),
        ({"stands": {"1-0": ATTEMPT}, "seen": {"1-0": ATTEMPT}}, "no final event"),
        ({"stands": {}}, "no final event"),
        ({"stands": POISONED, "seen": POISONED, "deaths": 2}, "ended with error"),
        ({"added": (10.0, 17.0)}, "not known any more"),
        ({"added": (10.0, 17.0), "left": (departure(waiting=frozenset({"other"})),)}, "not known any more"),
        ({"added": (10.0, 17.0), "left": (departure(waiting=frozenset({"r"}), at=18.0),)}, "not known any more"),
        ({"seen": {**WHOLE, "1-1": ("token", json.dumps({"text": "Bye"}))}}, "otherwise than they stand"),
        ({"seen": {**WHOLE, "1-2": TOKEN}}, "otherwise than they stand"),
        ({"seen": {"1-0": ATTEMPT, FINAL_ID: RESULT}}, "are not the answer"),
    ],
)
def test_what_nothing_excuses_is_a_fault(wrong: dict[str, object], told: str) -> None:
    """Each promise broken once."""
    found = faults(**wrong)  # type: ignore[arg-type]
    assert any(told in fault for fault in found), found
