"""A model's turn becomes events, and calls on their tools' streams."""

from __future__ import annotations

import json
import re

import pytest

from llm_routerd.agents.calls import call_id_of, dispatch, due_ms, sha256_of
from llm_routerd.protocol.events import ToolCalled, ToolReturned, TurnEnded
from llm_routerd.protocol.outcome import AttemptSummary, Outcome
from llm_routerd.protocol.reading import UnknownEvent, read_event
from llm_routerd.protocol.wire import encode
from tests.agents.scene import NOW_MS, OFFER, answer_of, offer_of, request_of, tool, turn_of

REQUEST = request_of(tenant_id="t", traceparent="00-1-2-01")
ADD_CALL = ("add", '{"a": 2, "b": 3}')
SWITCH_CALL = ("lights_switch", '{"lamp": "hall"}')


def test_call_goes_to_its_tool_under_its_registered_name() -> None:
    """With all that whoever acts on it needs, and until when it is waited for."""
    call, turn = dispatch(REQUEST, answer_of(ADD_CALL, text="let me see"), OFFER, turn_of())
    event, sent = call.event, call.call
    assert isinstance(event, ToolCalled)
    assert sent is not None
    assert (event.call_id, event.name, event.arguments, event.turn) == (sent.call_id, "add", {"a": 2, "b": 3}, 1)
    assert (event.args_sha256, event.confirm, event.entry) == (sha256_of({"a": 2, "b": 3}), False, None)
    assert event.deadline_ms == sent.deadline_ms == NOW_MS + 30_000
    assert (sent.request_id, sent.tenant_id, sent.traceparent) == ("r1", "t", "00-1-2-01")
    ended = turn.event
    assert isinstance(ended, TurnEnded)
    assert (ended.message["content"], ended.message["tool_calls"][0]["id"]) == ("let me see", sent.call_id)
    assert (ended.started_ms, ended.usage.prompt_tokens, ended.cost_usd) == (NOW_MS - 100, 5, 0.25)


def test_call_that_asks_goes_nowhere_yet() -> None:
    """Its event says until when somebody may agree, and by which hash."""
    call, _ = dispatch(REQUEST, answer_of(SWITCH_CALL), OFFER, turn_of(confirmation_ms=5000))
    assert call.call is None
    assert isinstance(call.event, ToolCalled)
    assert (call.event.name, call.event.confirm, call.event.expires_at_ms) == ("lights.switch", True, NOW_MS + 5000)
    assert call.event.deadline_ms is None


def test_call_that_always_may_goes_to_its_tool() -> None:
    """And another tool's does not for that."""
    asking = offer_of(tool("a", confirm=True), tool("b", confirm=True))
    first, second, _ = dispatch(REQUEST, answer_of(("a", "{}"), ("b", "{}")), asking, turn_of(always=frozenset({"a"})))
    assert first.call is not None
    assert second.call is None


@pytest.mark.parametrize(
    ("name", "arguments", "told", "why"),
    [
        ("rm", "{}", {}, 'There is no tool "rm"; there are: add, clock, lights_switch.'),
        ("lights.switch", '{"lamp":"x"}', {"lamp": "x"}, "There is no tool"),
        ("", "{}", {}, "There is no tool"),
        ("add", '{"a": 1}', {"a": 1}, "do not satisfy"),
        ("add", '{"a": 1, "b": "2"}', {"a": 1, "b": "2"}, "$.b"),
        ("lights_switch", '{"lamp": 7}', {"lamp": 7}, "$.lamp"),  # nobody is asked for what the tool does not take
        ("add", "[1, 2]", "[1, 2]", "not a JSON object"),
        ("add", "add them", "add them", "not a JSON object"),
        ("add", '{"a": 1', '{"a": 1', "not a JSON object"),
        ("add", '{"a":1,"b":99999999999999999999999}', {"a": 1, "b": 1e23}, "more digits"),
        ("clock", '{"x":' + "[" * 200 + "]" * 200 + "}", None, "nested too deeply"),
        ("clock", json.dumps({"x": "y" * 70_000}), {"x": "y" * 70_000}, "longer than 65536 bytes"),
    ],
)
def test_faulty_call_is_told_to_its_model_alone(name: str, arguments: str, told: object, why: str) -> None:
    """It goes to no stream; its result stands at once, behind all calls and before the turn."""
    sendings = dispatch(REQUEST, answer_of((name, arguments), ADD_CALL), OFFER, turn_of())
    called, good, fault, turn = (each.event for each in sendings)
    assert [each.call is not None for each in sendings] == [False, True, False, False]
    assert isinstance(called, ToolCalled)
    assert isinstance(good, ToolCalled)
    assert isinstance(fault, ToolReturned)
    assert isinstance(turn, TurnEnded)
    assert fault.error is not None
    assert why in fault.error
    assert "\n" not in fault.error
    assert fault.call_id == called.call_id
    assert not called.confirm
    if told is not None:
        assert called.arguments == told
    in_message = turn.message["tool_calls"][0]["function"]["arguments"]
    assert in_message == (arguments if isinstance(called.arguments, dict) else "{}")


@pytest.mark.parametrize("depth", [99, 500, 950, 1010, 1100, 100_000])
def test_nesting_of_any_depth_is_written_and_read_back(depth: int) -> None:
    """Whatever a model makes up, its turn can be replayed."""
    arguments = '{"x":' * depth + "1" + "}" * depth
    for each in dispatch(REQUEST, answer_of(("clock", arguments)), OFFER, turn_of()):
        assert not isinstance(read_event("1-1", each.event.type, encode(each.event)), UnknownEvent)


def test_what_is_no_object_is_cut() -> None:
    """Where a model babbles, its events do not."""
    called, *_ = dispatch(REQUEST, answer_of(("n" * 500, "x" * 200_000)), OFFER, turn_of())
    assert isinstance(called.event, ToolCalled)
    assert (len(called.event.name), len(called.event.arguments)) == (64, 65_536)


def test_call_of_a_broken_stream_is_told_to_its_model() -> None:
    """The others are made."""
    answer = answer_of(ADD_CALL, ("clock", "{}"))
    broken, good, fault, _ = dispatch(REQUEST, answer, OFFER, turn_of(broken=frozenset({"add"})))
    assert broken.call is None
    assert good.call is not None
    assert isinstance(fault.event, ToolReturned)
    assert (fault.event.name, "could not be made" in (fault.event.error or "")) == ("add", True)


def test_call_ids_are_the_same_again_and_each_another() -> None:
    """By request, entry, attempt, and place in the answer; in letters that all take."""
    again = [
        [each.event for each in dispatch(REQUEST, answer_of(ADD_CALL, ADD_CALL), OFFER, turn_of())] for _ in range(2)
    ]
    assert again[0] == again[1]
    ids = {
        call_id_of(request_id, origin, attempt, index)
        for request_id in ("r1", "r2")
        for origin in ("1-0", "2-0")
        for attempt in (1, 2)
        for index in (0, 1)
    }
    assert len(ids) == 16
    assert all(re.fullmatch("call_[0-9a-f]{24}", each) for each in ids)


@pytest.mark.parametrize(("deadline_ms", "due"), [(None, 1500), (1400, 1400), (1600, 1500)])
def test_tool_is_waited_for_until_the_sooner_of_its_time_and_the_deadline(deadline_ms: int | None, due: int) -> None:
    """Of the run."""
    assert due_ms(500, 1000, deadline_ms) == due


def test_turn_tells_of_the_attempt_that_answered() -> None:
    """Its time is that of the last attempt; what it cost is all of them."""
    attempts = tuple(
        AttemptSummary(model="m", deployment="d", outcome=Outcome.SUCCESS, code=None, reason=None, latency_ms=ms)
        for ms in (100, 7)
    )
    answer = answer_of(ADD_CALL, attempts=attempts, cost_usd=None, cost_estimated=True)
    *_, turn = dispatch(REQUEST, answer, OFFER, turn_of(deadline_ms=NOW_MS + 1, number=3))
    event = turn.event
    assert isinstance(event, TurnEnded)
    assert (event.turn, event.latency_ms, event.cost_usd, event.cost_estimated) == (3, 7, None, True)
    assert (event.deadline_ms, event.message["content"]) == (NOW_MS + 1, None)
