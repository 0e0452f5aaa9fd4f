"""Shown text is never followed by another model's: whatever happens, what was told is the beginning of the answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from llm_routerd.gateway.shown import Ended, More, Shown, Superseded, unfenced
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.examples import EVENTS
from llm_routerd.protocol.reading import read_event
from llm_routerd.protocol.wire import encode
from tests.support.queue import result as answer

if TYPE_CHECKING:
    from llm_routerd.protocol.reading import SeenEvent


def event(stream_id: str, kind: str, **data: Any) -> SeenEvent:
    """An event as it is read from a stream."""
    return read_event(stream_id, kind, encode(data))


def attempt(number: int) -> SeenEvent:
    """A call begins."""
    return event(f"{number}-0", "attempt", deployment="d", model="m")


def token(number: int, seq: int, text: str) -> SeenEvent:
    """Text of a call."""
    return event(f"{number}-{seq}", "token", text=text)


def rejected(number: int, seq: int) -> SeenEvent:
    """The call was none."""
    told = {"deployment": "d", "model": "m", "outcome": "rejected", "code": "truncated", "reason": "r", "latency_ms": 1}
    return event(f"{number}-{seq}", "rejected", **told)


def result(text: str, number: int = 1) -> SeenEvent:
    """The answer."""
    return event(FINAL_ID, "result", **{**EVENTS["result"][0], "raw_text": text, "content": text, "attempt": number})


def turn(number: int, seq: int, text: str | None) -> SeenEvent:
    """The turn that this attempt was stands."""
    (shown,) = EVENTS["turn"]
    return event(f"{number}-{seq}", "turn", **{**shown, "message": {**shown["message"], "content": text}})


def told(events: list[SeenEvent], *, is_held: bool = False, shows_reasoning: bool = False) -> tuple[str, str]:
    """All text that is told, and how it ends: `ended`, `superseded`, `open`."""
    shown = Shown(is_held=is_held, shows_reasoning=shows_reasoning)
    text = ""
    for each in events:
        match shown.see(each):
            case More(more, thought):
                text += f"({thought})" if thought else more
            case Superseded():
                return text, "superseded"
            case Ended(_, rest):
                return text + rest, "ended"
    return text, "open"


ONE = [attempt(1), token(1, 1, "One "), token(1, 2, "two")]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([*ONE, result("One two")], ("One two", "ended")),
        ([*ONE, result("One two three")], ("One two three", "ended")),
        ([*ONE, result("One two\n")], ("One two\n", "ended")),
        ([attempt(1), token(1, 1, "One \n"), result("One")], ("One \n", "ended")),
        ([*ONE, rejected(1, 3), attempt(2), token(2, 1, "Uno")], ("One two", "superseded")),
        ([*ONE, rejected(1, 3), attempt(2), token(2, 1, "One")], ("One two", "open")),
        ([*ONE, rejected(1, 3), attempt(2), token(2, 1, "One"), token(2, 2, " twofold")], ("One twofold", "open")),
        (
            [*ONE, attempt(2), token(2, 1, "One twofold"), token(2, 2, "!"), result("One twofold!", 2)],
            ("One twofold!", "ended"),
        ),
        ([*ONE, rejected(1, 3), attempt(2), token(2, 1, "One "), token(2, 2, "tw!")], ("One two", "superseded")),
        ([*ONE, rejected(1, 3), attempt(2), result("Uno", 2)], ("One two", "superseded")),
        ([*ONE, rejected(1, 3), attempt(2), result("One two", 2)], ("One two", "ended")),
        ([*ONE, attempt(2), token(1, 3, " late"), token(2, 1, "One two"), token(2, 2, "."), result("One two.", 2)],
         ("One two late", "superseded")),
        ([attempt(1), rejected(1, 1), attempt(2), token(2, 1, "Uno"), result("Uno", 2)], ("Uno", "ended")),
        ([*ONE, rejected(1, 3), event(FINAL_ID, "cancelled", id="r", reason="")], ("One two", "ended")),
    ],
)  # fmt: skip
def test_what_is_told_is_the_beginning_of_the_answer(events: list[SeenEvent], expected: tuple[str, str]) -> None:
    """A later attempt goes on only where it has said the same, byte for byte."""
    assert told(events) == expected


CALLED = event("1-8", "tool_call", **EVENTS["tool_call"][0])
ANSWERED = event("1-10", "tool_result", **EVENTS["tool_result"][0])
TURN = [*ONE, CALLED, turn(1, 9, "One two"), ANSWERED]


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([*TURN, attempt(2), token(2, 1, "Three"), result("Three", 2)], ("One two\n\nThree", "ended")),
        ([*TURN, attempt(2), token(2, 1, "Th"), result("Three", 2)], ("One two\n\nThree", "ended")),
        ([*TURN, attempt(2), result("Three", 2)], ("One two\n\nThree", "ended")),
        ([*TURN, attempt(2), result("", 2)], ("One two", "ended")),
        ([*TURN, attempt(2), token(2, 1, "Thr"), rejected(2, 2), attempt(3), token(3, 1, "Thr"), token(3, 2, "ee")],
         ("One two\n\nThree", "open")),
        ([*TURN, attempt(2), token(2, 1, "Thr"), rejected(2, 2), attempt(3), token(3, 1, "Drei")],
         ("One two\n\nThr", "superseded")),
        ([*TURN, attempt(2), token(2, 1, "Thr"), result("Drei", 2)], ("One two\n\nThr", "superseded")),
        ([*TURN, attempt(2), turn(2, 1, None), attempt(3), token(3, 1, "Three"), result("Three", 3)],
         ("One two\n\nThree", "ended")),
        ([*TURN, attempt(2), token(2, 1, "2"), turn(2, 9, "2"), attempt(3), token(3, 1, "3"), result("3", 3)],
         ("One two\n\n2\n\n3", "ended")),
        ([attempt(1), turn(1, 9, None), attempt(2), token(2, 1, "Three"), result("Three", 2)], ("Three", "ended")),
        ([attempt(1), turn(1, 9, "One"), attempt(2), result("Three", 2)], ("One\n\nThree", "ended")),
        ([*ONE, turn(1, 9, "One two or more"), attempt(2), token(2, 1, "!")], ("One two or more\n\n!", "open")),
        ([*ONE, turn(1, 9, "One two\n"), attempt(2), token(2, 1, "!")], ("One two\n\n\n!", "open")),
        ([*ONE, turn(1, 9, "Uno")], ("One two", "superseded")),
        ([*ONE, rejected(1, 3), attempt(2), turn(2, 9, None)], ("One two", "superseded")),
        ([*ONE, rejected(1, 3), attempt(2), turn(2, 9, "One two three")], ("One two three", "open")),
        ([*TURN, event(FINAL_ID, "error", id="r", code="confirmation_expired", message="m")], ("One two", "ended")),
    ],
)  # fmt: skip
def test_of_a_run_the_next_turn_is_told_behind_those_that_stand(
    events: list[SeenEvent], expected: tuple[str, str]
) -> None:
    """Its text is no other answer; within a turn nothing is put behind what was discarded, as ever."""
    assert told(events) == expected


def test_of_a_run_whose_answer_is_held_the_answer_alone_is_told() -> None:
    """JSON has nothing before it."""
    events = [*TURN, attempt(2), token(2, 1, "{}"), result("{}", 2)]
    assert told(events, is_held=True) == ("{}", "ended")


def test_end_of_a_run_has_all_that_was_told_as_its_text() -> None:
    """A voice says it again, whole; held, or without a turn, the answer is as it stands."""
    events = [*TURN, attempt(2), token(2, 1, "Three"), result("Three", 2)]

    def text_of_end(*, is_held: bool) -> str:
        shown = Shown(is_held=is_held, shows_reasoning=False)
        end = [shown.see(each) for each in events][-1]
        assert isinstance(end, Ended)
        return str(end.end.data.get("raw_text")) if is_held else getattr(end.end, "raw_text", "")

    assert (text_of_end(is_held=False), text_of_end(is_held=True)) == ("One two\n\nThree", "Three")


def test_thinking_of_a_later_turn_is_not_put_behind_text() -> None:
    """Before any text it is told, of every turn."""
    thoughts = [event(f"{number}-1", "reasoning", text="hm") for number in (1, 2, 3)]
    events = [attempt(1), thoughts[0], turn(1, 9, None), attempt(2), thoughts[1], token(2, 2, "One"), turn(2, 9, "One")]
    assert told([*events, attempt(3), thoughts[2]], shows_reasoning=True) == ("(hm)(hm)One", "open")


def test_what_is_held_is_told_whole() -> None:
    """Nothing before the end, and none of a discarded attempt."""
    events = [*ONE, rejected(1, 3), attempt(2), token(2, 1, "{}")]
    assert told(events, is_held=True) == ("", "open")
    assert told([*events, result("{}", 2)], is_held=True) == ("{}", "ended")


def test_thinking_is_told_where_it_is_wanted_and_only_before_the_answer() -> None:
    """Of a later attempt none is put behind text that was shown."""
    thought = event("1-1", "reasoning", text="hm")
    again = event("2-1", "reasoning", text="again")
    events = [attempt(1), thought, token(1, 2, "One"), rejected(1, 3), attempt(2), again, token(2, 2, "One!")]
    assert told(events, shows_reasoning=True) == ("(hm)One!", "open")
    assert told(events) == ("One!", "open")


TEXTS = st.lists(st.sampled_from(["a", "b", "ab", "é", " "]), max_size=5)


@given(st.lists(TEXTS, min_size=1, max_size=4), TEXTS, st.booleans())
def test_never_two_answers(attempts: list[list[str]], rest: list[str], is_held: bool) -> None:
    """Of any attempts, the last of which answers: all that was told is the answer, or its telling is broken off."""
    events: list[SeenEvent] = []
    for number, texts in enumerate(attempts, 1):
        events.append(attempt(number))
        events += [token(number, seq, text) for seq, text in enumerate(texts, 1)]
    answer = "".join(attempts[-1]) + "".join(rest)
    shown, end = told([*events, result(answer, len(attempts))], is_held=is_held)
    if end == "ended":
        assert shown.rstrip() == answer.rstrip()
    else:  # what was told until then is one attempt's, from its beginning
        assert any("".join(texts).startswith(shown) for texts in attempts)


@given(st.lists(st.tuples(TEXTS, TEXTS, st.booleans()), min_size=1, max_size=4))
def test_never_two_answers_in_a_turn(turns: list[tuple[list[str], list[str], bool]]) -> None:
    """Of any turns, of which some were asked twice: what was told is the beginning of what stands."""
    events: list[SeenEvent] = []
    number, stands = 0, []
    for discarded, texts, is_asked_twice in turns:
        for said in (discarded, texts) if is_asked_twice else (texts,):
            number += 1
            events.append(attempt(number))
            events += [token(number, seq, text) for seq, text in enumerate(said, 1)]
        stands.append("".join(texts))
        events.append(turn(number, 99, stands[-1]))
    shown, end = told([*events[:-1], result(stands[-1], number)])
    whole = "\n\n".join(text for text in stands if text)
    if end == "ended":
        assert "".join(shown.split()) == "".join(whole.split())
        assert any(is_asked_twice for *_, is_asked_twice in turns) or shown == whole
    else:
        assert any(is_asked_twice for *_, is_asked_twice in turns)


@pytest.mark.parametrize(
    ("text", "content", "told"),
    [
        ('```json\n{"a": "é"}\n```', {"a": "é"}, '{"a":"é"}'),
        (" ```\n[1]\n``` ", [1], "[1]"),
        ('{"a": 1.0}', {"a": 1.0}, '{"a": 1.0}'),
        ("```sh\nls\n```", "```sh\nls\n```", "```sh\nls\n```"),
    ],
)
def test_fence_around_json_is_not_told(text: str, content: Any, told: str) -> None:
    """Who has asked for JSON reads nothing else; and text stays as it is."""
    assert unfenced(replace(answer("r1", text), content=content)).raw_text == told


def test_saying_a_long_answer_again_costs_as_much_as_saying_it() -> None:
    """Each token was compared with all that was shown: minutes for a hundred thousand of them."""
    shown = Shown(is_held=False, shows_reasoning=False)
    words = [f" word{n}" for n in range(60_000)]
    for seq, word in enumerate(words, 1):
        shown.see(token(1, seq, word))
    again = [token(2, seq, word) for seq, word in enumerate([*words, " more"], 1)]
    began = time.process_time()
    seen = [shown.see(each) for each in again]
    assert time.process_time() - began < 2
    assert seen[-1] == More(" more")
    assert set(seen[:-1]) == {More()}
