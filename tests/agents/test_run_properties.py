"""Whole runs, with models, tools and people that do what they like: replaying is standing where one stood."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import event as note
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from llm_routerd.agents.calls import dispatch, sha256_of
from llm_routerd.agents.offering import offer
from llm_routerd.agents.run import AgentRun, Ask, Expire, Fail, Wait
from llm_routerd.agents.words import Answer, Consent, Heard, Listener
from llm_routerd.config.agents import AgentsConfig
from llm_routerd.judging.calls import CallRules, judge_calls
from llm_routerd.protocol.codes import AttemptCode, ErrorCode
from llm_routerd.protocol.events import AttemptRejected, Result, StreamEvent, ToolCalled
from llm_routerd.protocol.outcome import Outcome
from llm_routerd.protocol.reading import UnknownEvent
from llm_routerd.protocol.request import AgentSpec
from tests.agents.scene import NOW_MS, Journal, answer_of, request_of, tool, tools_of, turn_of
from tests.support.runs import ADD, SWITCH

if TYPE_CHECKING:
    from llm_routerd.protocol.tool import ToolRequest

REGISTERED = tools_of(
    tool("add", ADD),
    tool("lights.switch", SWITCH),
    tool("lights.dim", SWITCH | {"confirm": False}),
    tool("clock", timeout_ms=400, result_schema={"type": "string"}),
    tool("not.theirs", ADD),
)
SPEC = AgentSpec(tools=("add", "lights.*", "clock"), confirm=("lights.d*",))
OFFER = offer(SPEC, REGISTERED, AgentsConfig(), None)
ALLOWED = {"add", "lights.switch", "lights.dim", "clock"}
ASKING = {"lights.switch", "lights.dim"}
RESULT_BYTES = 300
CONFIRMATION_MS = 1000
MOST_STEPS = 60  # then time goes on by itself, and all ends

NAMES = st.sampled_from(
    ["add", "lights_switch", "lights_dim", "clock", "lights.switch", "not.theirs", "not_theirs", "rm", "", "é\n"]
)
ARGUMENTS = st.sampled_from(
    [
        '{"a": 1, "b": 2}',
        '{"lamp": "hall"}',
        "{}",
        "",
        '{"a": 1, "b": "x"}',
        '{"a":1,"b":123456789012345678901234567890}',
        "[1]",
        "nonsense {",
        '"x"',
        "null",
        '{"lamp": "h", "a": 1.5, "b": 2}',
        '{"lamp":' + "[" * 90 + "]" * 90 + "}",
    ]
)
GOOD = st.sampled_from(
    [
        ("add", '{"a": 1, "b": 2}'),
        ("lights_switch", '{"lamp": "hall"}'),
        ("lights_dim", '{"lamp": "x"}'),
        ("clock", "{}"),
    ]
)
CALLS = st.lists(st.one_of(GOOD, GOOD, GOOD, st.tuples(NAMES, ARGUMENTS)), min_size=1, max_size=4)
VALUES = st.one_of(
    st.none(),
    st.binary(max_size=8),
    st.sampled_from(
        [
            b"5",
            b'"noon"',
            b"null",
            b"1.0",
            b"-0.0",
            b"1e999",
            b"123456789012345678901234567890",
            b"{",
            b'{"a":[1,"\\u00e9"]}',
            b"\xff\xfe",
            b'"\\ud800"',
            b"x" * 500,
            "é".encode() * 200,
            b"[" * 80 + b"]" * 80,
            b"18446744073709551615",
            b"",
        ]
    ),
)
CHANGED = st.sampled_from([None, b'{"lamp":"cellar"}', b'{"lamp":7}', b"{", b"[]", b'{"lamp":"\xff"}', b"{}"])


class Scene:
    """One run: a live machine, its journal, and what was asked of whom."""

    def __init__(self, data: st.DataObject, max_turns: int, deadline_ms: int | None) -> None:
        self.data = data
        self.max_turns = max_turns
        self.deadline_ms = deadline_ms
        self.request = request_of(SPEC, tenant_id="t")
        self.journal = Journal()
        self.live = AgentRun(max_turns)
        self.now_ms = NOW_MS
        self.turns = 0
        self.called: dict[str, ToolCalled] = {}
        self.agreed: set[str] = set()  # call ids to which somebody has said yes, by the right hash
        self.given: dict[str, list[Any]] = {}  # arguments that somebody gave for one
        self.always: set[str] = set()  # names for which somebody has

    # ------------------------------------------------------------------ what is written

    def write(self, event: StreamEvent, call: ToolRequest | None = None) -> None:
        """An event of the live machine, after which replaying leads to the same."""
        if call is not None:
            self.check_call(call)
        seen = self.journal.write(event, call, now_ms=self.now_ms)
        self.saw(seen)

    def saw(self, seen: StreamEvent) -> None:
        """It stands."""
        assert not isinstance(seen, UnknownEvent), seen
        self.live.apply(seen)
        if isinstance(seen, ToolCalled):
            self.called[seen.call_id] = seen
        replayed = self.journal.replayed(self.max_turns)
        assert state_of(replayed) == state_of(self.live)
        for now_ms in (self.now_ms, self.now_ms + 300, self.now_ms + 10**6):
            assert replayed.decide(now_ms) == self.live.decide(now_ms)

    def check_call(self, call: ToolRequest) -> None:
        """It may be made: of an offered tool, once, and with a person's word where there must be one."""
        assert call.name in ALLOWED
        assert call.call_id not in [each.call_id for each in self.journal.sent]
        assert REGISTERED[call.name].parameters.validate(call.arguments) is None
        assert (call.request_id, call.tenant_id) == ("r1", "t")
        assert call.deadline_ms <= min(self.now_ms + REGISTERED[call.name].timeout_ms, self.deadline_ms or 10**15)
        if call.name in ASKING:
            assert call.call_id in self.agreed or call.name in self.always
        asked = self.called.get(call.call_id)
        if asked is not None:  # it has waited for a person
            assert call.arguments in (asked.arguments, *self.given.get(call.call_id, ()))

    def crash(self) -> None:
        """Another worker takes the run over."""
        self.live = self.journal.replayed(self.max_turns)

    # ------------------------------------------------------------------ a model's turn

    def take_turn(self, asked: Ask) -> str:
        """What the chain makes of it; why the run ends, or ""."""
        check_messages(asked.messages)
        self.saw(self.journal.begin_attempt())
        draw = self.data.draw
        if draw(st.integers(0, 4)) == 0:
            rejected = AttemptRejected(
                deployment="bad",
                model="m",
                outcome=Outcome.INVALID,
                code=AttemptCode.INVALID_JSON,
                reason="x",
                latency_ms=3,
            )
            self.write(rejected)
            self.saw(self.journal.begin_attempt())
        calls = [] if asked.is_last or draw(st.integers(0, 5)) == 0 else draw(CALLS)
        if not calls:
            self.turns += 1
            return "answered"
        answer = self.judged(calls)
        turn = turn_of(
            number=asked.turn,
            attempt=self.journal.attempt,
            now_ms=self.now_ms,
            deadline_ms=self.deadline_ms,
            confirmation_ms=CONFIRMATION_MS,
            always=frozenset(self.live.always),
            broken=frozenset({"clock"}) if draw(st.integers(0, 9)) == 0 else frozenset(),
        )
        sendings = dispatch(self.request, answer, OFFER, turn)
        assert [each.event.type for each in sendings].count("turn") == 1
        whole = draw(st.integers(0, 5)) > 0
        for each in sendings[:-1]:
            # No half of a dispatch is ever written; yet if one stood, it would count for nothing.
            self.write(each.event, each.call if whole else None)
            assert self.live.decide(self.now_ms) == asked
        if not whole:
            self.called = {}
            self.crash()
            return ""
        self.write(sendings[-1].event)
        self.turns += 1
        assert list(self.live.calls) == [each.event.call_id for each in sendings if isinstance(each.event, ToolCalled)]
        return ""

    def judged(self, calls: list[tuple[str, str]]) -> Result:
        """An answer with these calls, as the judge of a turn lets it through."""
        draw = self.data.draw
        answer = answer_of(
            *calls, text=draw(st.sampled_from(["", "let me see"])), cost_usd=draw(st.sampled_from([0.5, None]))
        )
        rules = CallRules(parameters=OFFER.parameters, strict=False)
        judged = judge_calls(answer.tool_calls, tool_names=None, demanded=frozenset(), rules=rules)
        assert isinstance(judged, tuple), judged
        return replace(answer, tool_calls=judged)

    # ------------------------------------------------------------------ tools, people, time

    def call_id(self) -> str:
        """Of a call that waits, or has ended, or never was."""
        open_ids = [each.call_id for each in self.live.waiting()]
        return self.data.draw(st.sampled_from([*open_ids * 4, *list(self.called)[:4], "call_" + "0" * 24, "é"]))

    def answers(self) -> list[Answer]:
        """What tools say, some of it for calls of others."""
        draw, said = self.data.draw, []
        for _ in range(draw(st.integers(1, 4))):
            value = draw(VALUES)
            whole = value or b""
            said.append(
                Answer(self.call_id().encode(), value and value[:RESULT_BYTES], len(whole), draw(st.booleans()))
            )
        return said

    def consents(self) -> list[Consent]:
        """What people say, some of it for other arguments."""
        draw, said = self.data.draw, []
        for _ in range(draw(st.integers(1, 4))):
            call_id = self.call_id()
            if draw(st.integers(0, 3)) == 0:
                said.append({b"deny": call_id.encode(), b"by": b"ada", b"reason": draw(st.binary(max_size=4))})
                continue
            asked = self.called.get(call_id)
            is_right = asked is not None and draw(st.integers(0, 3)) > 0
            sha = asked.args_sha256 if asked is not None and is_right else draw(st.sampled_from(["", "0" * 64]))
            word = {b"confirm": call_id.encode(), b"args_sha256": sha.encode(), b"by": b"ada"}
            changed = draw(CHANGED)
            if changed is not None:
                word[b"args"] = changed
            if draw(st.booleans()):
                word[b"always"] = draw(st.sampled_from([b"1", b"true", b"0"]))
            if asked is not None and is_right:
                self.agreed.add(call_id)
                if changed == b'{"lamp":"cellar"}':
                    self.given.setdefault(call_id, []).append({"lamp": "cellar"})
                if word.get(b"always") in {b"1", b"true"}:
                    self.always.add(asked.name)
            said.append(word)
        return said

    def wait(self, decision: Wait) -> None:
        """Something happens, or nothing."""
        waiting = {each.call_id for each in self.live.waiting()}
        assert set(decision.for_tools) | set(decision.for_people) == waiting
        assert {each.call_id for each in self.journal.sent} >= set(decision.for_tools)
        assert not {each.call_id for each in self.journal.sent} & set(decision.for_people)
        listener = Listener(self.request, self.live, REGISTERED, now_ms=self.now_ms, result_bytes=RESULT_BYTES)
        match self.data.draw(st.sampled_from(["both", "both", "answers", "consents", "time", "crash"])):
            case "answers":
                self.heard(listener.answers(self.answers()))
            case "consents":
                self.heard(listener.consents(self.consents()))
            case "both":
                self.heard([*listener.answers(self.answers()), *listener.consents(self.consents())])
            case "crash":
                self.crash()
            case _:
                self.now_ms += self.data.draw(st.sampled_from([1, 200, max(1, decision.until_ms - self.now_ms)]))

    def heard(self, words: list[Heard]) -> None:
        """They stand, each once."""
        assert len({each.event.call_id for each in words}) == len(words)
        for each in words:
            untaken = each.untaken is not None and self.data.draw(st.booleans())
            self.write(each.untaken if untaken and each.untaken is not None else each.event, each.call)

    def expire(self, decision: Expire) -> None:
        """Their tools have not answered."""
        assert all(self.now_ms >= call.deadline_ms for call in decision.calls)
        listener = Listener(self.request, self.live, REGISTERED, now_ms=self.now_ms, result_bytes=RESULT_BYTES)
        self.heard(listener.late(decision.calls))
        assert not {call.call_id for call in decision.calls} & {call.call_id for call in self.live.waiting()}

    def play(self) -> str:
        """The whole run; why it ends."""
        for step in range(10 * MOST_STEPS):
            if step > MOST_STEPS:
                self.now_ms += 500
            match decision := self.live.decide(self.now_ms):
                case Ask():
                    assert decision.turn == self.turns + 1 <= self.max_turns
                    assert decision.is_last == (decision.turn == self.max_turns)
                    if why := self.take_turn(decision):
                        return why
                case Wait():
                    assert decision.until_ms > self.now_ms
                    self.wait(decision)
                case Expire():
                    self.expire(decision)
                case Fail(code=code):
                    self.check_failure(code)
                    return code
        raise AssertionError("it never ends")

    def check_failure(self, code: ErrorCode) -> None:
        """It is for a reason."""
        people = [call for call in self.live.waiting() if call.waits_for_person]
        if code is ErrorCode.CONFIRMATION_EXPIRED:
            assert any((call.expires_at_ms or 0) <= self.now_ms for call in people)
        else:
            assert code is ErrorCode.DEADLINE_EXCEEDED
            assert self.deadline_ms is not None
            assert self.deadline_ms <= self.now_ms


def state_of(run: AgentRun) -> dict[str, Any]:
    """All that a run knows, but for what an attempt without a turn has left."""
    return {name: value for name, value in vars(run).items() if name != "_coming"}


def check_messages(messages: tuple[dict[str, Any], ...]) -> None:
    """As providers demand: behind each message that calls tools one for each of its calls, and arguments are objects."""
    left = list(messages)
    while left:
        turn = left.pop(0)
        assert turn["role"] == "assistant"
        for call in turn["tool_calls"]:
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
            told = left.pop(0)
            assert (told["role"], told["tool_call_id"]) == ("tool", call["id"])
            assert isinstance(told["content"], str)


@given(
    data=st.data(),
    max_turns=st.integers(1, 5),
    deadline_ms=st.sampled_from([None, None, NOW_MS + 150, NOW_MS + 2500]),
)
@settings(max_examples=300)
def test_replaying_a_run_leads_to_where_it_stood(data: st.DataObject, max_turns: int, deadline_ms: int | None) -> None:
    """After every event; and no call is made that may not be, none twice, and every run ends within its turns."""
    scene = Scene(data, max_turns, deadline_ms)
    note(f"ends: {scene.play()}")
    assert scene.turns <= max_turns
    note(f"turns: {scene.turns}")
    for at in range(len(scene.journal.entries) + 1):
        scene.journal.replayed(max_turns, at).decide(scene.now_ms)
    assert all(sha256_of(each.arguments) == each.args_sha256 for each in scene.called.values())
