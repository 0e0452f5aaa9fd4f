"""Events as they go out over HTTP: sound JSON on one line, whatever stands in the stream."""

from __future__ import annotations

import orjson
import pytest

from llm_routerd.gateway.doors.native import telling
from llm_routerd.gateway.event_json import event_json
from llm_routerd.gateway.fault import Fault
from llm_routerd.protocol.events import FINAL_ID, Queued
from llm_routerd.protocol.reading import read_event


@pytest.mark.parametrize(
    ("kind", "raw", "word", "data"),
    [
        ("token", b'{"text":" \xc3\xa9"}', "token", {"text": " é"}),
        ("token", '{"text":"é"}', "token", {"text": "é"}),
        ("token", '{"text":"a\x85b\u2028c\u2029"}', "token", {"text": "a\x85b\u2028c\u2029"}),
        ("token", b'{"text":\r\n "a",\n"more":1}', "token", {"text": "a", "more": 1}),
        ("token", b'{"text":"a"', "token", {}),
        ("token", b'{"text":"a","more":"\xff"}', "token", {}),
        ("token", b"[1]", "token", {}),
        ("x\ndata: forged", b'{"a":1}', "unknown", {"a": 1}),
        ("", b"", "unknown", {}),
        ("tool_call", b'{"call_id":\n"c"}', "tool_call", {"call_id": "c"}),
    ],
)  # fmt: skip
def test_event_is_sound_json_on_one_line(kind: str, raw: bytes | str, word: str, data: object) -> None:
    """Others may write there: what is no JSON, or has line breaks, forges no event."""
    event = read_event("1-7", kind, raw)
    told = event_json(event)
    assert b"\n" not in told
    assert orjson.loads(told) == {"id": "1-7", "type": word, "data": data}
    lines = telling.event_sse(event).decode().splitlines()  # which takes more for the end of a line than SSE does
    assert lines[:2] == ["id: 1-7", f"event: {word}"]
    assert orjson.loads(lines[2].removeprefix("data: ")) == data
    assert lines[3:] == [""]


def test_data_is_told_as_it_was_written() -> None:
    """Numbers of any size, and properties that this version does not know."""
    raw = b'{"id":"a","content":"x","metadata":{"n":123456789012345678901234567890},"new":1}'
    assert raw in event_json(read_event(FINAL_ID, "result", raw))


def test_what_is_known_of_a_request_that_has_not_ended() -> None:
    """Queued, or the attempt that is at it; and where to go on."""
    queued = orjson.loads(telling.standing("abc", None))
    assert queued == {"id": "abc", "status": "queued", "links": telling.links("abc")}
    begun = read_event("2-0", "attempt", b'{"deployment":"d","model":"m/x","delivery":3}')
    running = orjson.loads(telling.standing("abc", begun))
    assert (running["status"], running["attempt"], running["deployment"], running["delivery"]) == ("running", 2, "d", 3)
    unknown = orjson.loads(telling.standing("abc", read_event("2-0", "attempt", b"{}")))
    assert (unknown["status"], unknown["attempt"]) == ("running", 2)


def test_fault_names_what_there_is() -> None:
    """Null where no property, or no request, is meant."""
    assert orjson.loads(telling.fault(Fault(status=404, code="not_found", message="m"))) == {
        "error": {"code": "not_found", "message": "m", "param": None},
        "request_id": None,
    }
    assert orjson.loads(telling.fault(Fault(status=400, code="c", message="m", param="p", request_id="r"))) == {
        "error": {"code": "c", "message": "m", "param": "p"},
        "request_id": "r",
    }


def test_what_a_request_waits_for_is_told_in_its_place() -> None:
    """As the event has it; after an attempt that came to nothing it waits all the same."""
    event = read_event("0-3", "queued", b'{"position":2,"reason":"2 before you on attic","estimated_wait_ms":20000}')
    assert isinstance(event, Queued)
    waits = {"position": 2, "reason": "2 before you on attic", "estimated_wait_ms": 20000}
    told = orjson.loads(telling.standing("abc", None, event))
    assert told == {"id": "abc", "status": "queued", "queued": waits, "links": telling.links("abc")}
    begun = read_event("2-0", "attempt", b'{"deployment":"d","model":"m/x","delivery":3}')
    again = orjson.loads(telling.standing("abc", begun, event))
    assert (again["status"], again["attempt"], again["queued"]) == ("queued", 2, waits)
