"""Entries of an events stream, read back as the events that were written; whatever else stands there is told as such."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_routerd.protocol.events import FINAL_ID, FINAL_PART, AttemptStarted, Cancelled, Failed, Result, Token
from llm_routerd.protocol.examples import SHOWN
from llm_routerd.protocol.reading import KINDS, UnknownEvent, as_end, read_event
from llm_routerd.protocol.wire import encode

if TYPE_CHECKING:
    from llm_routerd.protocol.events import StreamEvent


def place_of(event: StreamEvent) -> str:
    """Where an event may stand."""
    return FINAL_ID if event.ends else "2-7"


@pytest.mark.parametrize("event", SHOWN, ids=lambda event: event.type)
@pytest.mark.parametrize("as_text", [False, True])
def test_event_that_is_written_is_the_one_that_is_read(event: StreamEvent, as_text: bool) -> None:
    """Equal to the library's, with its place and its data beside; of a client that decodes, too."""
    written = encode(event)
    read = read_event(place_of(event), event.type, written.decode() if as_text else written)
    assert read == event
    assert type(read) is type(event)
    assert (read.type, read.id, read.stream_id) == (event.type, place_of(event), place_of(event))
    assert read.data == json.loads(written) == event.data
    assert read.is_final == event.is_final == event.ends


def test_every_kind_is_shown() -> None:
    """So that the test above leaves none out."""
    assert {event.type for event in SHOWN} == KINDS.keys()


def test_property_of_another_version_is_passed_over() -> None:
    """It is no fault, and it stays in the data."""
    event = read_event("1-1", "token", b'{"text":"x","logprob":-0.5}')
    assert event == Token("x")
    assert event.data == {"text": "x", "logprob": -0.5}


def test_result_without_the_attempt_is_read() -> None:
    """Daemons of before told none."""
    (shown,) = [event for event in SHOWN if isinstance(event, Result)]
    told = {name: value for name, value in shown.data.items() if name != "attempt"}
    result = read_event(FINAL_ID, "result", orjson.dumps(told))
    assert isinstance(result, Result)
    assert (result.answer_attempt, result.answer.content) == (None, {"amount": 12.5})


@pytest.mark.parametrize(
    ("place", "kind", "data", "told"),
    [
        ("1-1", "token", b"{}", {}),
        ("1-1", "token", b'{"text":7}', {"text": 7}),
        ("1-1", "tool_call", b'{"call_id":"c"}', {"call_id": "c"}),
        ("1-1", "", b"not JSON", {}),
        ("1-1", "token", b"\xff", {}),
        ("1-1", "token", b'"\xff"', {}),
        ("1-1", "token", "\ud800", {}),
        ("1-1", "token", b"[" * 5000, {}),
        ("1-1", "token", b"[1]", {}),
        (FINAL_ID, "error", b'{"id":"r","code":"of_tomorrow","message":"m"}', {"id": "r", "code": "of_tomorrow", "message": "m"}),
        (FINAL_ID, "token", b'{"text":"x"}', {"text": "x"}),
        ("1-1", "cancelled", b'{"id":"r","reason":"x"}', {"id": "r", "reason": "x"}),
    ],
)  # fmt: skip
def test_what_is_no_event_is_told_as_such(place: str, kind: str, data: bytes | str, told: dict[str, Any]) -> None:
    """With what it says; it ends its request where it stands at the end, and nowhere else."""
    event = read_event(place, kind, data)
    assert isinstance(event, UnknownEvent)
    assert (event.type, event.data, event.is_final) == (kind, told, place == FINAL_ID)


@given(st.sampled_from([*KINDS, "", "other"]), st.binary(max_size=60), st.sampled_from(["1-0", FINAL_ID, "0-1"]))
@settings(max_examples=300, deadline=None)
def test_nothing_that_others_write_raises(kind: str, data: bytes, place: str) -> None:
    """Whatever the bytes."""
    event = read_event(place, kind, data)
    assert (event.type, event.stream_id, event.raw) == (kind, place, data)
    assert isinstance(event.data, dict)


def test_end_is_an_end_wherever_it_comes_from() -> None:
    """What somebody has written beyond the final event's place is none of the events on the way."""
    beyond = read_event(f"{FINAL_PART}-7", "token", b'{"text":"x"}')
    end = as_end(beyond)
    assert isinstance(end, UnknownEvent)
    assert (end.type, end.data, end.id) == ("token", {"text": "x"}, f"{FINAL_PART}-7")
    cancelled = read_event(FINAL_ID, "cancelled", b"{}")
    assert as_end(cancelled) is cancelled


def test_event_that_was_made_here_has_no_place() -> None:
    """Its `id` is that of its request, if it tells one; its data is what would be written."""
    cancelled = Cancelled(request_id="r", reason="enough")
    assert (cancelled.id, cancelled.stream_id, cancelled.is_final) == ("r", "", True)
    assert cancelled.data == {"id": "r", "reason": "enough"}
    assert (Token("x").id, Token("x").attempt, Token("x").is_final) == ("", 0, False)


def test_integers_of_any_size_are_read_as_they_were() -> None:
    """Wherever they stand."""
    large = {"a": 2**64, "b": [-(2**63) - 1], "c": {"d": 10**30}}
    failed = read_event(
        FINAL_ID, "error", json.dumps({"id": "r", "code": "internal", "message": "", "metadata": large})
    )
    assert isinstance(failed, Failed)
    assert repr(failed.metadata) == repr(failed.data["metadata"]) == repr(large)


def test_first_attempt_tells_its_entry() -> None:
    """What the script adds is typed too."""
    event = read_event("1-0", "attempt", SHOWN[0].raw)
    assert isinstance(event, AttemptStarted)
    assert (event.entry, event.lane, event.attempt) == ("1700000000000-0", "normal", 1)
