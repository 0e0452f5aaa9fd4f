"""A person's word to a tool call: what it has to be, and when it counts."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.gateway.doors.native import consent
from llm_routerd.gateway.fault import RefusedError
from llm_routerd.protocol.consent import Calls
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.reading import SeenEvent, read_event

CALL = {
    "call_id": "c1", "name": "lights.off", "arguments": {"room": "hall"}, "turn": 1, "args_sha256": "aa", "confirm": True,
    "expires_at_ms": 1_000,
}  # fmt: skip
YES = {"confirm": True, "args_sha256": "aa"}


def events(*written: tuple[str, dict[str, Any]]) -> list[SeenEvent]:
    """Events as they stand in a stream."""
    return [read_event(f"1-{place}", kind, orjson.dumps(data)) for place, (kind, data) in enumerate(written)]


def check(stands: list[SeenEvent], body: dict[str, Any], now_ms: int = 0) -> int:
    """What becomes of a word: the status of its refusal; 0: it counts."""
    calls = Calls()
    calls.see(stands)
    told = calls.why_not("c1", consent.read(body), now_ms)
    return 0 if told is None else consent.discounted(told).fault.status


def test_word_counts_for_a_call_that_waits_for_it() -> None:
    """To agree, and to deny."""
    assert check(events(("tool_call", CALL)), YES, 999) == 0
    assert check(events(("tool_call", CALL)), {"confirm": False}, 999) == 0


@pytest.mark.parametrize(
    ("stands", "body", "now_ms", "status"),
    [
        (events(), YES, 0, 404),
        (events(("tool_call", CALL | {"call_id": "c2"})), YES, 0, 404),
        (events(("token", CALL)), YES, 0, 404),
        (events(("tool_call", CALL | {"confirm": False})), YES, 0, 409),
        (events(("tool_call", CALL), ("confirmed", {"call_id": "c1", "by": "a"})), YES, 0, 409),
        (events(("tool_call", CALL), ("denied", {"call_id": "c1", "by": "a"})), YES, 0, 409),
        (events(("tool_call", CALL), ("tool_result", {"call_id": "c1", "name": "lights.off"})), YES, 0, 409),
        ([*events(("tool_call", CALL)), read_event(FINAL_ID, "cancelled", b"{}")], YES, 0, 409),
        (events(("tool_call", CALL)), YES, 1_000, 410),
        (events(("tool_call", CALL)), YES | {"args_sha256": "bb"}, 0, 412),
        (events(("tool_call", CALL)), {"confirm": False, "args_sha256": "bb"}, 0, 412),
    ],
)
def test_word_that_does_not_count(stands: list[SeenEvent], body: dict[str, Any], now_ms: int, status: int) -> None:
    """Each with a status of its own."""
    assert check(stands, body, now_ms) == status


def test_word_for_another_call_changes_nothing() -> None:
    """A call is known by its id."""
    assert check(events(("tool_call", CALL), ("denied", {"call_id": "c2"})), YES) == 0


def test_entry_of_the_consent_stream_is_that_of_the_protocol() -> None:
    """With who said it, which the gateway knows and the client does not choose."""
    said = consent.read(YES | {"args": {"room": "all"}, "always": True})
    assert said.fields("c1", "ann") == {
        "confirm": "c1", "args_sha256": "aa", "by": "ann", "args": b'{"room":"all"}', "always": "1",
    }  # fmt: skip
    assert consent.read(YES).fields("c1", "ann") == {"confirm": "c1", "args_sha256": "aa", "by": "ann"}
    denied = consent.read({"confirm": False, "reason": "not at night"})
    assert denied.fields("c1", "ann") == {"deny": "c1", "by": "ann", "reason": "not at night"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "confirm"), ({"confirm": "yes"}, "confirm"), ({"confirm": 1}, "confirm"), ({"confirm": True}, "args_sha256"),
        (YES | {"by": "bob"}, "by"), (YES | {"args": []}, "args"), ({"confirm": False, "args": {}}, "args"),
        ({"confirm": False, "always": True}, "always"), ({"confirm": False, "reason": "x" * 1001}, "reason"),
    ],
)  # fmt: skip
def test_what_is_no_word_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    """Also who would speak as somebody else."""
    with pytest.raises(RefusedError) as caught:
        consent.read(body)
    assert (caught.value.fault.status, caught.value.fault.param) == (400, param)


@given(
    st.dictionaries(
        st.sampled_from(["confirm", "reason", "args", "always", "args_sha256", "x"]),
        st.none() | st.booleans() | st.text() | st.lists(st.integers()) | st.dictionaries(st.text(), st.integers()),
    )
)
def test_whatever_object_comes_it_is_read_or_refused(body: dict[str, Any]) -> None:
    """Never another exception."""
    with suppress(RefusedError):
        assert isinstance(consent.read(body).agrees, bool)
