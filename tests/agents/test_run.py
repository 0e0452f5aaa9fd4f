"""What a run does next, by what has happened."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from llm_routerd.agents.calls import dispatch
from llm_routerd.agents.run import AgentRun, Ask, Expire, Fail, Wait
from llm_routerd.protocol.codes import AttemptCode, ErrorCode
from llm_routerd.protocol.events import (
    AttemptRejected,
    AttemptStarted,
    CallConfirmed,
    CallDenied,
    Token,
    ToolCalled,
    ToolReturned,
)
from llm_routerd.protocol.outcome import Outcome
from tests.agents.scene import NOW_MS, OFFER, Journal, answer_of, request_of, turn_of

ADD_CALL = ("add", '{"a": 2, "b": 3}')
CLOCK_CALL = ("clock", "{}")
LAMP_CALL = ("lights_switch", '{"lamp": "hall"}')
RM_CALL = ("rm", "{}")
REQUEST = request_of()


class Played:
    """A run, and the events that have led to where it stands."""

    def __init__(self, max_turns: int = 5) -> None:
        self.journal = Journal()
        self.run = AgentRun(max_turns)

    def has(self, event: Any, call: Any = None) -> None:
        """It stands."""
        self.run.apply(self.journal.write(event, call))

    def turn(self, *made: tuple[str, str], number: int = 1, **more: Any) -> list[str]:
        """A model's turn that has come to these calls; their ids."""
        self.run.apply(self.journal.begin_attempt())
        turn = turn_of(number=number, attempt=self.journal.attempt, always=frozenset(self.run.always), **more)
        for each in dispatch(REQUEST, answer_of(*made), OFFER, turn):
            self.has(each.event, each.call)
        return list(self.run.calls)

    def returned(self, call_id: str, result: Any = "ok", error: str | None = None) -> None:
        """A tool has answered."""
        self.has(ToolReturned(call_id=call_id, name=self.run.calls[call_id].name, result=result, error=error))

    def confirmed(self, call_id: str, **more: Any) -> None:
        """A person has agreed, and the call has gone to its tool."""
        event = CallConfirmed(call_id=call_id, by="ada", deadline_ms=NOW_MS + 30_000, **more)
        self.has(replace(event, entry=f"{NOW_MS}-9"))

    def told(self) -> list[str]:
        """What the next turn is told of the calls."""
        decision = self.run.decide(NOW_MS)
        assert isinstance(decision, Ask)
        return [each["content"] for each in decision.messages if each["role"] == "tool"]


def test_run_begins_with_a_turn() -> None:
    """Which is the last one where there is but one."""
    assert AgentRun(5).decide(NOW_MS) == Ask(turn=1, is_last=False, messages=())
    assert AgentRun(1).decide(NOW_MS) == Ask(turn=1, is_last=True, messages=())


def test_run_waits_for_tools_and_people_until_the_first_of_their_times() -> None:
    """Or the deadline, where it is sooner."""
    played = Played()
    add, clock, lamp = played.turn(ADD_CALL, CLOCK_CALL, LAMP_CALL, confirmation_ms=5000)
    assert played.run.decide(NOW_MS) == Wait(until_ms=NOW_MS + 1000, for_tools=(add, clock), for_people=(lamp,))
    played.returned(clock)
    assert played.run.decide(NOW_MS) == Wait(until_ms=NOW_MS + 5000, for_tools=(add,), for_people=(lamp,))
    played.confirmed(lamp)
    assert played.run.decide(NOW_MS) == Wait(until_ms=NOW_MS + 30_000, for_tools=(add, lamp), for_people=())
    assert [each.call_id for each in played.run.dispatched()] == [add, lamp]
    sooner = Played()
    (add,) = sooner.turn(ADD_CALL, deadline_ms=NOW_MS + 7)
    assert sooner.run.decide(NOW_MS) == Wait(until_ms=NOW_MS + 7, for_tools=(add,), for_people=())


def test_next_turn_is_asked_when_every_call_has_come_to_something() -> None:
    """It is shown all turns before it, each result behind its call, in the order of the calls and not of the answers."""
    played = Played(3)
    first, second = played.turn(ADD_CALL, CLOCK_CALL)
    played.returned(second, {"h": 12})
    assert isinstance(played.run.decide(NOW_MS), Wait)
    played.returned(first, 5)
    played.turn(RM_CALL, number=2)
    decision = played.run.decide(NOW_MS)
    assert isinstance(decision, Ask)
    assert (decision.turn, decision.is_last) == (3, True)
    assert [each["role"] for each in decision.messages] == ["assistant", "tool", "tool", "assistant", "tool"]
    assert [each.get("content") for each in decision.messages][:3] == [None, "5", '{"h":12}']
    assert [each.get("tool_call_id") for each in decision.messages][1:3] == [first, second]


def test_time_of_a_tool_is_over() -> None:
    """At that millisecond, and its model is told; another may be waited for."""
    played = Played()
    add, clock = played.turn(ADD_CALL, CLOCK_CALL)
    assert isinstance(played.run.decide(NOW_MS + 999), Wait)
    assert played.run.decide(NOW_MS + 1000) == Expire((played.run.calls[clock],))
    assert played.run.decide(NOW_MS + 30_000) == Expire((played.run.calls[add], played.run.calls[clock]))


def test_nobody_has_agreed_in_time() -> None:
    """Then there is no answer, also where a tool is late at the same time."""
    played = Played()
    played.turn(CLOCK_CALL, LAMP_CALL, confirmation_ms=1000)
    assert isinstance(played.run.decide(NOW_MS + 999), Wait)
    failed = played.run.decide(NOW_MS + 1000)
    assert isinstance(failed, Fail)
    assert (failed.code, "`lights.switch`" in failed.message) == (ErrorCode.CONFIRMATION_EXPIRED, True)


def test_deadline_comes_while_it_waits() -> None:
    """It goes before all else, and names each tool once; nobody waits, and it is for the chain to say."""
    played = Played()
    ids = played.turn(ADD_CALL, ADD_CALL, LAMP_CALL, deadline_ms=NOW_MS + 1000, confirmation_ms=1000)
    failed = played.run.decide(NOW_MS + 1000)
    message = "the deadline came while `lights.switch` waited for a person, `add` had no answer"
    assert failed == Fail(ErrorCode.DEADLINE_EXCEEDED, message)
    played.has(CallDenied(call_id=ids[2]))
    for call_id in ids[:2]:
        played.returned(call_id)
    assert isinstance(played.run.decide(NOW_MS + 10**9), Ask)


def test_turns_are_used_up() -> None:
    """Where others were asked meanwhile, or the operator has changed the number."""
    played = Played(1)
    played.turn(RM_CALL)
    failed = played.run.decide(NOW_MS)
    assert isinstance(failed, Fail)
    assert failed.code is ErrorCode.TURNS_EXHAUSTED


def test_what_an_attempt_without_a_turn_has_left_counts_for_nothing() -> None:
    """Its text, its calls, and what was wrong with them; those of a turn that stands still do."""
    played = Played()
    (first,) = played.turn(ADD_CALL)
    played.returned(first)
    before = played.run.decide(NOW_MS)
    played.run.apply(played.journal.begin_attempt())
    played.has(Token("hm"))
    turn = turn_of(number=2, attempt=2)
    half = dispatch(REQUEST, answer_of(ADD_CALL, RM_CALL), OFFER, turn)[:-1]
    for each in half:
        played.has(each.event, each.call)
        assert played.run.decide(NOW_MS) == before
    played.turn(CLOCK_CALL, number=2)
    assert [call.name for call in played.run.calls.values()] == ["clock"]
    assert played.run.turn == 2
    assert played.run.corrected == set()


def test_entry_that_takes_the_place_of_another_begins_from_the_beginning() -> None:
    """Nothing of the one before holds: not its turns, not its costs, not what was always agreed to."""
    played = Played()
    (lamp,) = played.turn(LAMP_CALL)
    played.confirmed(lamp, always=True)
    played.run.apply(AttemptStarted(deployment="local", model="m", entry="2-0", lane="normal"))
    fresh = AgentRun(5)
    assert vars(played.run) == vars(fresh)


def test_word_counts_once_and_for_its_call_alone() -> None:
    """A second result, a result of nobody's, a yes after a no, a no after a yes: nothing."""
    played = Played()
    add, lamp, second = played.turn(ADD_CALL, LAMP_CALL, LAMP_CALL)
    played.returned(add, 5)
    played.has(CallDenied(call_id=lamp, reason="not at night"))
    played.confirmed(second)
    state = played.run.decide(NOW_MS)
    calls = [replace(call) for call in played.run.calls.values()]
    for event in (
        ToolReturned(call_id=add, name="add", result=6),
        ToolReturned(call_id="call_x", name="add", result=6),
        ToolReturned(call_id=lamp, name="lights.switch", result=6),
        CallConfirmed(call_id=lamp, always=True),
        CallConfirmed(call_id=second, arguments={"lamp": "x"}, always=True),
        CallDenied(call_id=second),
        CallDenied(call_id=add),
        CallConfirmed(call_id="call_x", always=True),
        CallDenied(call_id="call_x"),
    ):
        played.has(event)
        assert played.run.decide(NOW_MS) == state
        assert list(played.run.calls.values()) == calls
        assert played.run.always == set()
    played.returned(second)
    assert played.told() == ["5", "error: a person denied this call: not at night", "ok"]


def test_changed_arguments_are_told_to_the_model() -> None:
    """With the result, also where there is none; `{}` is a change too."""
    played = Played()
    first, second, third = played.turn(LAMP_CALL, LAMP_CALL, LAMP_CALL)
    played.confirmed(first, arguments={"lamp": "cellar"})
    played.confirmed(second, arguments={})
    played.confirmed(third)
    played.returned(first)
    played.returned(second, error="which?")
    played.returned(third)
    assert played.told() == [
        '[a person changed the arguments to {"lamp":"cellar"}]\nok',
        "[a person changed the arguments to {}]\nerror: which?",
        "ok",
    ]


def test_always_holds_from_the_next_turn_on() -> None:
    """For this tool; a call that waits already still does."""
    played = Played()
    first, second = played.turn(LAMP_CALL, LAMP_CALL)
    played.confirmed(first, always=True)
    assert played.run.always == {"lights.switch"}
    assert played.run.calls[second].waits_for_person
    played.returned(first)
    played.has(CallDenied(call_id=second))
    assert played.told() == ["ok", "error: a person denied this call"]
    (third,) = played.turn(LAMP_CALL, number=2)
    assert played.run.calls[third].waits_for_tool


def test_deployment_is_corrected_by_a_fault_and_not_by_what_a_tool_says() -> None:
    """Once told what was wrong with a call, its next one is an attempt."""
    played = Played()
    (add,) = played.turn(ADD_CALL)
    played.returned(add, error="it broke")
    assert played.run.corrected == set()
    played.turn(RM_CALL, number=2)
    assert played.run.corrected == {"local"}


def test_what_the_turns_took_is_added_up() -> None:
    """Rejected attempts included; one price that is not known makes the sum unknown."""
    played = Played()
    played.run.apply(played.journal.begin_attempt())
    rejected = AttemptRejected(
        deployment="bad", model="m", outcome=Outcome.REJECTED, code=AttemptCode.REFUSAL, reason="no", latency_ms=3
    )
    played.has(rejected)
    played.turn(RM_CALL, RM_CALL)
    spent = played.run.spent
    assert [(each.deployment, each.outcome) for each in spent.attempts] == [("bad", "rejected"), ("local", "success")]
    assert (spent.usage.prompt_tokens, spent.cost_usd, spent.tool_calls, spent.is_estimated) == (5, 0.25, 2, False)
    played.turn(ADD_CALL, number=2)
    assert (spent.usage.total_tokens, spent.cost_usd, spent.tool_calls) == (16, 0.5, 3)
    played.run.apply(played.journal.begin_attempt())
    answer = answer_of(RM_CALL, cost_usd=None, cost_estimated=True)
    for each in dispatch(REQUEST, answer, OFFER, turn_of(number=3, attempt=3)):
        played.has(each.event)
    assert (spent.cost_usd, spent.is_estimated) == (None, True)
    played.turn(RM_CALL, number=4)
    assert spent.cost_usd is None


def test_run_keeps_when_it_began_and_its_deadline() -> None:
    """As its turns have it: whoever takes it over has no other clock."""
    played = Played()
    played.turn(RM_CALL, deadline_ms=NOW_MS + 5)
    assert (played.run.started_ms, played.run.deadline_ms) == (NOW_MS - 100, NOW_MS + 5)


@pytest.mark.parametrize("confirm", [True, False])
def test_call_of_which_nothing_more_is_known_does_not_wait_for_ever(confirm: bool) -> None:
    """Others may write to an events stream: neither sent, nor with a time, nor with a result."""
    played = Played()
    played.run.apply(played.journal.begin_attempt())
    *_, turn = dispatch(REQUEST, answer_of(ADD_CALL), OFFER, turn_of())
    played.has(ToolCalled(call_id="call_x", name="add", arguments={}, turn=1, args_sha256="0" * 64, confirm=confirm))
    played.has(turn.event)
    assert isinstance(played.run.decide(NOW_MS), Fail)
