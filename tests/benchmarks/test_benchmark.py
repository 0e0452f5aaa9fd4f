# ruff: noqa: RUF001 - figures with a true multiplication sign and en dashes

from __future__ import annotations

import pytest

from tests.benchmarks.costs import Meter
from tests.benchmarks.load import EXPECTED, Delivered, DeliveryError, Event, check
from tests.benchmarks.systems import Bed, Process, make_bed
from tests.benchmarks.table import Row, Target, to_markdown, to_text
from tests.benchmarks.wire import FINAL_ID, Request
from tests.benchmarks.workloads import Burst, measure_bursts

REQUEST = Request(id="r1", model="trickle", stream=True)


def event(kind: str, event_id: str = "1-1", **data: object) -> Event:
    """An event as a subscriber has it."""
    return Event(event_id=event_id, kind=kind, data=data)


def whole_answer() -> list[Event]:
    """What a good run brings for `REQUEST`."""
    text = EXPECTED["trickle"]
    head, tail = text[:20], text[20:]
    return [
        event("attempt", consumer="w1"),
        event("token", text=head),
        event("token", text=tail),
        event("result", FINAL_ID, content=text),
    ]


def test_whole_answer_is_accepted() -> None:
    """What is measured counts once every token has come."""
    delivered = Delivered()
    check(REQUEST, whole_answer(), delivered)
    assert (delivered.requests, delivered.token_events, delivered.consumers) == (1, 2, {"w1": 1})


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_missing_event_is_found(missing: int) -> None:
    """A token or a result that did not come makes the run worthless."""
    events = whole_answer()
    del events[missing]
    with pytest.raises(DeliveryError):
        check(REQUEST, events, Delivered())


def test_tokens_out_of_order_are_found() -> None:
    """The text must be the model's, in its order."""
    attempt, first, second, result = whole_answer()
    with pytest.raises(DeliveryError, match="token events"):
        check(REQUEST, [attempt, second, first, result], Delivered())


def test_wrong_result_is_found() -> None:
    """The result must be the model's answer too."""
    events = [*whole_answer()[:3], event("result", FINAL_ID, content="something else")]
    with pytest.raises(DeliveryError, match="result"):
        check(REQUEST, events, Delivered())


def test_error_is_no_result() -> None:
    """A request that failed was cheap, and does not count."""
    with pytest.raises(DeliveryError, match="no result"):
        check(REQUEST, [*whole_answer()[:3], event("error", FINAL_ID, code="internal")], Delivered())


@pytest.mark.parametrize(
    ("target", "met", "missed"),
    [
        (Target.ratio(1.3), (13.0, 10.0), (13.1, 10.0)),
        (Target.above(1), (11.0, 10.0), (11.1, 10.0)),
        (Target.at_most(60), (60.0, 0.0), (60.1, 0.0)),
        (Target.at_least(40), (40.0, 0.0), (39.9, 0.0)),
    ],
)
def test_target_is_held_against_the_right_thing(
    target: Target, met: tuple[float, float], missed: tuple[float, float]
) -> None:
    """Daemon and floor, at the bound and just beyond it."""
    assert target.is_met(*met)
    assert not target.is_met(*missed)


def test_row_shows_medians_spread_and_verdict() -> None:
    """A reader sees how sure a figure is, and whether it suffices."""
    row = Row(key="k", title="CPU", unit="µs", target=Target.ratio(1.3))
    for value in (1.0, 2.0, 4.0):
        row.add("floor", value)
        row.add("daemon", 2 * value)
    assert row.cells() == ["CPU, µs", "2 (1–4)", "4 (2–8)", "–", "2.00", "≤ 1.3 × floor", "NO"]
    assert row.to_json()["met"] is False
    assert "| CPU, µs | 2 (1–4) |" in to_markdown([row])
    assert "CPU, µs" in to_text([row])


async def test_floor_and_daemon_deliver_every_token() -> None:
    """The two processes that are compared do the same work, checked event by event."""
    burst = Burst(
        key="k", title="t", unit="µs", scale=1e6, units=256, target=Target.ratio(99), requests=8, peer_requests=8,
        model="long", stream=True,
    )  # fmt: skip
    with make_bed() as bed:
        rows = [row async for row in measure_bursts(bed, [burst], concurrency=4, rounds=1, systems=("floor", "daemon"))]
    assert rows[0].samples.keys() == {"floor", "daemon"}
    assert all(value > 0 for row in rows for values in row.samples.values() for value in values)


def test_process_that_does_not_start_is_told_at_once() -> None:
    """A broken system ends the benchmark with its exit code, and not after a minute."""
    with make_bed() as bed:
        nowhere = Bed(redis_url="redis://127.0.0.1:1/0", model_url=bed.model_url, directory=bed.directory)
        with pytest.raises(RuntimeError, match="ended with"):
            Process(nowhere, "floor", "floor", 4)


def test_costs_are_told_by_request_since_the_reading_before() -> None:
    """Bytes as they are, CPU in microseconds."""
    before = Meter(1, 2, 3, 4, 5, 6, 0.5, 0.25, 1.0)
    after = Meter(101, 2, 3, 4, 5, 1006, 0.75, 0.25, 2.0)
    costs = after.per(before, 100)
    assert (costs["to_workers"], costs["from_workers"], costs["replica"]) == (1, 0, 10)
    assert (costs["cpu"], costs["replica_cpu"], costs["worker_cpu"]) == (2500, 0, 10_000)
