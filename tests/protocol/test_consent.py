"""What waits for a person, and whose word stands."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import orjson
import pytest

from llm_routerd.protocol.consent import Calls, Discounted, WhyNot, Word
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.reading import read_event
from llm_routerd.protocol.schema_files import load_schema

SHA = "ab" * 32
CALL = {"call_id": "c1", "name": "lights.off", "arguments": {}, "turn": 1, "args_sha256": SHA, "confirm": True}
YES = Word(agrees=True, args_sha256=SHA)


def calls(*written: tuple[str, dict[str, Any]], is_over: bool = False) -> Calls:
    """What stands after these events."""
    found = Calls()
    found.see(read_event(f"1-{place}", kind, orjson.dumps(data)) for place, (kind, data) in enumerate(written))
    if is_over:
        found.see([read_event(FINAL_ID, "cancelled", b"{}")])
    return found


def test_what_waits_is_told_in_its_order() -> None:
    """Not what needs nobody, nor what has had its word; of a request that has ended none."""
    written = (
        ("tool_call", CALL),
        ("tool_call", CALL | {"call_id": "c2", "confirm": False}),
        ("tool_call", CALL | {"call_id": "c3"}),
        ("tool_call", CALL | {"call_id": "c4"}),
        ("turn", {"turn": 1}),
        ("denied", {"call_id": "c3", "by": "ada"}),
        ("confirmed", {"call_id": "other"}),
    )
    assert [call.call_id for call in calls(*written).waiting()] == ["c1", "c4"]
    assert calls(*written, is_over=True).waiting() == ()


@pytest.mark.parametrize("kind", ["confirmed", "denied"])
def test_who_has_answered_already_is_told(kind: str) -> None:
    """Also after the end: twice is once."""
    stands = (("tool_call", CALL), (kind, {"call_id": "c1", "by": "ada"}))
    told = Discounted(WhyNot(kind), f"this call has been {kind} already by ada")
    assert calls(*stands).why_not("c1", YES, 0) == calls(*stands, is_over=True).why_not("c1", YES, 0) == told
    said = calls(*stands).word("c1")
    assert said is not None
    assert said.by == "ada"


@pytest.mark.parametrize(
    ("kind", "data", "why", "told"),
    [
        (
            "error",
            {"id": "r", "code": "confirmation_expired", "message": "m"},
            WhyNot.EXPIRED,
            "could be confirmed is over",
        ),
        ("error", {"id": "r", "code": "deadline_exceeded", "message": "m"}, WhyNot.ENDED, "ended: deadline_exceeded"),
        ("cancelled", {"id": "r"}, WhyNot.ENDED, "it was cancelled"),
        ("result", {}, WhyNot.ENDED, "the request has ended"),
    ],
)
def test_how_the_request_has_ended_is_told(kind: str, data: dict[str, Any], why: WhyNot, told: str) -> None:
    """A call that nobody answered in time has ended it."""
    found = calls(("tool_call", CALL | {"expires_at_ms": 1}))
    found.see([read_event(FINAL_ID, kind, orjson.dumps(data))])
    discounted = found.why_not("c1", YES, 2)
    assert discounted is not None
    assert discounted.why is why
    assert told in discounted.message


def test_events_that_others_have_written_badly_are_no_calls() -> None:
    """Nobody agrees to what cannot be read."""
    found = calls(("tool_call", {"call_id": "c1"}), ("tool_call", {"confirm": True}), ("confirmed", {"by": 3}))
    assert found.waiting() == ()
    assert found.get("c1") is None
    told = found.why_not("c1", YES, 0)
    assert told is not None
    assert told.why is WhyNot.NOT_FOUND


def test_reason_of_a_consent_is_passed_on() -> None:
    """And an empty one is none."""
    assert Word(agrees=True, args_sha256=SHA, reason="dark").fields("c1", "ada")["reason"] == "dark"
    assert "reason" not in YES.fields("c1", "ada")


def test_what_has_become_of_a_run_in_which_nothing_waits_is_told() -> None:
    """Of the last call that did; and how it all ended."""
    said = ("confirmed", {"call_id": "c1", "by": "ada"})
    for written, is_over, why, told in (
        ((), False, WhyNot.NOT_WANTED, "no tool call of the request waits for a person"),
        ((), True, WhyNot.ENDED, "the request has ended: it was cancelled"),
        ((("tool_call", CALL), said), False, WhyNot.CONFIRMED,
         "lights.off (c1): this call has been confirmed already by ada"),
        ((("tool_call", CALL), said), True, WhyNot.CONFIRMED,
         "lights.off (c1): this call has been confirmed already by ada; the request has ended: it was cancelled"),
        ((("tool_call", CALL), ("tool_result", {"call_id": "c1", "name": "lights.off"})), False, WhyNot.NOT_WANTED,
         "lights.off (c1): this call waits for nobody's word any more"),
        ((("tool_call", CALL),), True, WhyNot.ENDED, "lights.off (c1): the request has ended: it was cancelled"),
    ):  # fmt: skip
        assert calls(*written, is_over=is_over).why_none() == Discounted(why, told)


@pytest.mark.parametrize(
    "word",
    [
        YES,
        Word(agrees=True, args_sha256=SHA, args={"lamp": "é"}, always=True, reason="dark"),
        Word(agrees=False, reason="asleep"),
        Word(agrees=False),
    ],
)
def test_word_is_what_its_schema_says(word: Word) -> None:
    """Whose `args` are described as what they hold."""
    fields: dict[str, Any] = {**word.fields("c1", "ada")}
    if "args" in fields:
        fields["args"] = orjson.loads(fields["args"])
    judge = jsonschema_rs.Draft202012Validator(load_schema("consent"))
    judge.validate(fields)
    assert not judge.is_valid({**fields, "confirm": "c1", "deny": "c1", "args_sha256": SHA})
    assert not judge.is_valid({name: value for name, value in fields.items() if name not in {"confirm", "deny"}})
