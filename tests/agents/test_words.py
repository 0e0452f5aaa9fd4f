"""What tools and people say: what counts, once, and what does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_routerd.agents.calls import dispatch, sha256_of
from llm_routerd.agents.run import AgentRun, OpenCall
from llm_routerd.agents.words import Answer, Listener, result_of
from llm_routerd.judging.calls import MAX_ARGUMENTS_BYTES
from llm_routerd.protocol.events import CallConfirmed, CallDenied, ToolReturned
from tests.agents.scene import NOW_MS, OFFER, TOOLS, Journal, answer_of, request_of, tool, turn_of

LAMP = {"lamp": "hall"}
SHA = sha256_of(LAMP).encode()
REQUEST = request_of(tenant_id="t", traceparent="00-1-2-01")
LATER_MS = NOW_MS + 40


def run_of(*made: tuple[str, str], deadline_ms: int | None = None) -> AgentRun:
    """A run whose first turn has made these calls at `NOW_MS`."""
    journal, run = Journal(), AgentRun(5)
    run.apply(journal.begin_attempt())
    for each in dispatch(REQUEST, answer_of(*made), OFFER, turn_of(deadline_ms=deadline_ms)):
        run.apply(journal.write(each.event, each.call))
    return run


def listener(run: AgentRun, *, now_ms: int = LATER_MS, tools: Any = TOOLS, result_bytes: int = 300) -> Listener:
    """For one look at it, a little later."""
    return Listener(REQUEST, run, tools, now_ms=now_ms, result_bytes=result_bytes)


def clock_run() -> tuple[AgentRun, bytes]:
    """One call that waits for its tool."""
    run = run_of(("clock", "{}"))
    (call_id,) = run.calls
    return run, call_id.encode()


def lamp_run(**more: Any) -> tuple[AgentRun, bytes]:
    """One call that waits for a person."""
    run = run_of(("lights_switch", json.dumps(LAMP)), **more)
    (call_id,) = run.calls
    return run, call_id.encode()


# ---------------------------------------------------------------------- tools


@pytest.mark.parametrize(
    ("value", "result"),
    [
        (b"5", 5),
        (b"null", None),
        (b'"noon"', "noon"),
        (b"noon", "noon"),
        (b"", ""),
        (b' {"a": [1.5, true]} ', {"a": [1.5, True]}),
        (b"{", "{"),
        (b"NaN", "NaN"),
        (b"18446744073709551615", 2**64 - 1),
        (b"18446744073709551616", "18446744073709551616"),  # as a number it would be another
        (b'{"n": 12345678901234567890123}', '{"n": 12345678901234567890123}'),
        (b"1e400", "1e400"),
        (b"\xff\xfenoon", "\ufffd\ufffdnoon"),
        (b'"\xff"', '"\ufffd"'),
        (b'"\\ud800"', '"\\ud800"'),
        ("é".encode(), "é"),
        (b"[" * 64 + b"]" * 64, json.loads("[" * 64 + "]" * 64)),
        (b"[" * 66 + b"]" * 66, "[" * 66 + "]" * 66),
    ],
)
def test_result_is_its_json_else_its_text(value: bytes, result: Any) -> None:
    """No number becomes another, and every byte comes to something."""
    assert result_of(value, len(value), 300) == result


@pytest.mark.parametrize(
    ("value", "size", "kept"),
    [
        (b"x" * 300, 301, "x" * 300),
        (b"5" * 300, 10_000_000, "5" * 300),
        ("é".encode() * 150, 302, "é" * 150),
        (("x" + "é" * 150).encode()[:300], 301, "x" + "é" * 149),  # no half of a letter
        (b"x" * 100, 301, "x" * 100),  # whoever read it has read less
    ],
)
def test_long_result_is_cut_and_says_so(value: bytes, size: int, kept: str) -> None:
    """How long it was, and how much of it is there."""
    text, mark = result_of(value, size, 300).split("\n")
    assert text == kept
    assert mark == f"[cut here: {size} bytes, of which {len(value)} are shown]"


def test_answer_ends_its_call_and_its_entry() -> None:
    """And tells how long it took."""
    run, call_id = clock_run()
    listening = listener(run)
    (heard,) = listening.answers([Answer(call_id, b'"noon"', 6)])
    assert heard.event == ToolReturned(call_id=call_id.decode(), name="clock", result="noon", latency_ms=40)
    assert (heard.ends, heard.call, heard.untaken, listening.ignored) == (run.calls[call_id.decode()], None, None, 0)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (b"it broke", "it broke"),
        (b"", "the tool failed"),
        (b"\xff", "\ufffd"),
        (b"\x1b[2J\tred\nx", "\ufffd[2J\tred\nx"),
        (b"x" * 5000, "x" * 4096),
    ],
)
def test_error_of_a_tool_is_text(value: bytes, error: str) -> None:
    """Short, and without what does something to a terminal."""
    run, call_id = clock_run()
    (heard,) = listener(run).answers([Answer(call_id, value, len(value), is_error=True)])
    assert isinstance(heard.event, ToolReturned)
    assert (heard.event.error, heard.event.result) == (error, None)
    assert heard.ends is not None


def test_words_that_do_not_count_are_passed_over_and_counted() -> None:
    """A forged id, a second answer, one for a call that waits for a person."""
    run = run_of(("clock", "{}"), ("lights_switch", json.dumps(LAMP)))
    clock, lamp = (each.encode() for each in run.calls)
    listening = listener(run)
    said = [
        Answer(b"call_" + b"0" * 24, b"1", 1),
        Answer(b"", b"1", 1),
        Answer(b"\xff", b"1", 1),
        Answer(b"x" * 256, b"1", 1),
        Answer(lamp, b"1", 1),
        Answer(clock, b"2", 1),
        Answer(clock, b"3", 1),
        Answer(clock, b"4", 1, is_error=True),
    ]
    (heard,) = listening.answers(said)
    assert isinstance(heard.event, ToolReturned)
    assert (heard.event.result, listening.ignored) == (2, 7)


def test_answer_without_result_and_error_is_told_as_such() -> None:
    """Whoever writes tools finds out at once, and not when the call's time is over."""
    run = run_of(("clock", "{}"))
    (clock,) = (each.encode() for each in run.calls)
    (heard,) = listener(run).answers([Answer(clock, None, 0)])
    assert isinstance(heard.event, ToolReturned)
    assert "neither a result nor an error" in (heard.event.error or "")


def test_result_is_held_to_its_schema() -> None:
    """As it stands then; another one is an error, and a tool that has gone has none."""
    run, call_id = clock_run()
    tools = {"clock": tool("clock", result_schema={"type": "string"})}
    for value, is_good in ((b'"noon"', True), (b"12", False), (b"x" * 400, True)):
        (heard,) = listener(run, tools=tools).answers([Answer(call_id, value[:300], len(value))])
        assert isinstance(heard.event, ToolReturned)
        assert (heard.event.error is None) == is_good
        assert heard.ends is not None
    (heard,) = listener(run, tools={}).answers([Answer(call_id, b"12", 2)])
    assert isinstance(heard.event, ToolReturned)
    assert heard.event.result == 12


def test_late_call_is_told_by_whether_a_tool_has_taken_it() -> None:
    """Both are there, for only the server knows which holds."""
    run, _ = clock_run()
    (heard,) = listener(run, now_ms=NOW_MS + 1500).late(tuple(run.waiting()))
    assert isinstance(heard.event, ToolReturned)
    assert heard.untaken is not None
    assert heard.event.error is not None
    assert heard.event.error.startswith("unknown outcome:")
    assert "within 1 s" in heard.event.error
    assert heard.untaken.error == "no tool took the call within 1 s; it has not been made"
    assert (heard.event.latency_ms, heard.ends) == (1500, run.waiting()[0])


@pytest.mark.parametrize("later_ms", [-2, 0, 1, 40])
def test_time_that_a_tool_had_is_told_as_it_was_registered(later_ms: int) -> None:
    """Whether its stream says that the call came a moment after the deadline was worked out, or before it."""
    run, _ = clock_run()
    (call,) = run.waiting()
    call.entry = f"{NOW_MS + later_ms}-0"
    (heard,) = listener(run, now_ms=NOW_MS + 1500).late((call,))
    assert heard.untaken is not None
    assert heard.untaken.error == "no tool took the call within 1 s; it has not been made"


# ---------------------------------------------------------------------- people


def test_person_agrees_and_the_call_is_made() -> None:
    """With the arguments that were shown, and the time of its tool."""
    run, call_id = lamp_run()
    (heard,) = listener(run).consents([{b"confirm": call_id, b"args_sha256": SHA, b"by": b"ada", b"reason": b"ok"}])
    due = LATER_MS + 30_000
    assert heard.event == CallConfirmed(call_id=call_id.decode(), by="ada", reason="ok", deadline_ms=due)
    assert heard.call is not None
    assert (heard.call.name, heard.call.arguments, heard.call.deadline_ms) == ("lights.switch", LAMP, due)
    assert (heard.call.request_id, heard.call.tenant_id, heard.call.traceparent) == ("r1", "t", "00-1-2-01")
    assert heard.ends is None


def test_call_that_is_agreed_to_is_waited_for_no_longer_than_its_run() -> None:
    """The deadline is the run's; a tool that has gone has the time of one that names none."""
    run, call_id = lamp_run(deadline_ms=NOW_MS + 100)
    word = {b"confirm": call_id, b"args_sha256": SHA}
    (heard,) = listener(run).consents([word])
    assert heard.call is not None
    assert heard.call.deadline_ms == NOW_MS + 100
    (heard,) = listener(lamp_run()[0], tools={}).consents([word])
    assert heard.call is not None
    assert heard.call.deadline_ms == LATER_MS + 30_000


def test_person_denies_and_no_call_is_made() -> None:
    """A no needs no hash; what somebody gives as his name does nothing to a terminal."""
    run, call_id = lamp_run()
    (heard,) = listener(run).consents([{b"deny": call_id, b"by": b"a\x1b" + b"x" * 300, b"reason": b"r" * 3000}])
    assert isinstance(heard.event, CallDenied)
    assert (heard.event.by, len(heard.event.reason)) == ("a\ufffd" + "x" * 198, 2000)
    assert heard.call is None


@pytest.mark.parametrize(
    "word",
    [
        {},
        {b"by": b"ada"},
        {b"confirm": b""},
        {b"confirm": b"C"},
        {b"confirm": b"C", b"args_sha256": b""},
        {b"confirm": b"C", b"args_sha256": sha256_of({"lamp": "x"}).encode()},
        {b"confirm": b"C", b"args_sha256": SHA.upper()},
        {b"confirm": b"call_" + b"0" * 24, b"args_sha256": SHA},
        {b"deny": b"call_" + b"0" * 24},
        {b"deny": b"\xff"},
        {b"confirm": b"C", b"args_sha256": SHA, b"args": b""},
        {b"confirm": b"C", b"args_sha256": SHA, b"args": b"{"},
        {b"confirm": b"C", b"args_sha256": SHA, b"args": b"[]"},
        {b"confirm": b"C", b"args_sha256": SHA, b"args": b"{}"},
        {b"confirm": b"C", b"args_sha256": SHA, b"args": b'{"lamp":7}'},
        {b"confirm": b"C", b"args_sha256": SHA, b"args": b'{"lamp":"\xff"}'},
        {b"confirm": b"C", b"args_sha256": SHA, b"args": b'{"lamp":"x","n":12345678901234567890123}'},
        {b"confirm": b"C", b"args_sha256": SHA, b"args": b'{"lamp":"x","n":' + b"[" * 200 + b"]" * 200 + b"}"},
        {b"confirm": b"C", b"args_sha256": SHA, b"args": b'{"lamp":"x"}' + b" " * MAX_ARGUMENTS_BYTES},
    ],
)
def test_word_that_does_not_count_leaves_the_call_as_it_was(word: dict[bytes, bytes]) -> None:
    """No yes to other arguments, nor with arguments that the tool does not take; the next word may count."""
    run, call_id = lamp_run()
    said = {name: call_id if value == b"C" else value for name, value in word.items()}
    listening = listener(run)
    assert (listening.consents([said]), listening.ignored) == ([], 1)
    assert len(listening.consents([{b"confirm": call_id, b"args_sha256": SHA}])) == 1


def test_arguments_of_a_person_take_the_place_of_the_models() -> None:
    """In what is sent, and in the event; the hash is that of what was shown."""
    run, call_id = lamp_run()
    word = {b"confirm": call_id, b"args_sha256": SHA, b"args": b' {"lamp": "cellar"} ', b"always": b"1"}
    (heard,) = listener(run).consents([word])
    assert isinstance(heard.event, CallConfirmed)
    assert (heard.event.arguments, heard.event.always) == ({"lamp": "cellar"}, True)
    assert heard.call is not None
    assert heard.call.arguments == {"lamp": "cellar"}


def test_arguments_of_a_person_may_be_empty() -> None:
    """Where the tool takes that: nothing is no absence."""
    run, call_id = lamp_run()
    word = {b"confirm": call_id, b"args_sha256": SHA, b"args": b"{}"}
    (heard,) = listener(run, tools={"lights.switch": tool("lights.switch", confirm=True)}).consents([word])
    assert heard.call is not None
    assert heard.call.arguments == {}
    assert isinstance(heard.event, CallConfirmed)
    assert heard.event.arguments == {}


def test_arguments_for_a_tool_that_has_gone_do_not_count() -> None:
    """Nobody can say whether it takes them."""
    run, call_id = lamp_run()
    word = {b"confirm": call_id, b"args_sha256": SHA, b"args": b'{"lamp":"x"}'}
    assert listener(run, tools={}).consents([word]) == []


@pytest.mark.parametrize(
    ("given", "always"), [(b"1", True), (b"true", True), (b"0", False), (b"", False), (b"yes", False)]
)
def test_always_is_said_in_two_ways(given: bytes, always: bool) -> None:
    """What is neither is a yes for this once."""
    run, call_id = lamp_run()
    (heard,) = listener(run).consents([{b"confirm": call_id, b"args_sha256": SHA, b"always": given}])
    assert isinstance(heard.event, CallConfirmed)
    assert heard.event.always == always


def test_word_after_its_time_does_not_count() -> None:
    """Nor one in its last millisecond; the one before does, yes or no."""
    for more, counts in ((-1, 1), (0, 0), (1, 0)):
        for word in ({b"confirm": b"C", b"args_sha256": SHA}, {b"deny": b"C"}):
            run, call_id = lamp_run()
            said = {name: call_id if value == b"C" else value for name, value in word.items()}
            assert len(listener(run, now_ms=NOW_MS + 600_000 + more).consents([said])) == counts


def test_second_word_does_not_count() -> None:
    """Whatever it says; approving twice is approving once."""
    yes, no = {b"confirm": b"C", b"args_sha256": SHA}, {b"deny": b"C"}
    for words, kind in (([yes, yes], CallConfirmed), ([yes, no], CallConfirmed), ([no, yes], CallDenied)):
        run, call_id = lamp_run()
        listening = listener(run)
        said = [{name: call_id if value == b"C" else value for name, value in word.items()} for word in words]
        (heard,) = listening.consents(said)
        assert isinstance(heard.event, kind)
        assert listening.ignored == 1


def test_tool_cannot_be_agreed_to_once_it_was_told() -> None:
    """Its call waits for nobody."""
    run, call_id = clock_run()
    sha = run.calls[call_id.decode()].args_sha256.encode()
    listening = listener(run)
    assert listening.consents([{b"confirm": call_id, b"args_sha256": sha}, {b"deny": call_id}]) == []


def test_call_knows_when_it_was_sent() -> None:
    """By the ID of its entry; one that was not has no time."""
    call = OpenCall(call_id="c", name="n", arguments={}, args_sha256="", turn=1)
    assert call.sent_at_ms == 0
    call.entry = "1700000000123-4"
    assert call.sent_at_ms == 1_700_000_000_123
