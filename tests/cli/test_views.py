"""How events are shown: as they happen on a terminal, the answer alone in a pipe, JSON for a program."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.cli.exits import Exit
from llm_routerd.cli.views import JsonView, LiveView, PlainView, choose_view, exit_of
from llm_routerd.client.events import event_of
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.examples import EVENTS

if TYPE_CHECKING:
    from llm_routerd.client import ClientEvent


def event(event_id: str, type_: str, **data: Any) -> ClientEvent:
    """An event as it comes from the client."""
    return event_of((event_id, {"type": type_, "data": json.dumps(data)}))


def result(content: Any, raw_text: str | None = None, **data: Any) -> ClientEvent:
    """A final event with an answer."""
    return event(FINAL_ID, "result", content=content, raw_text=content if raw_text is None else raw_text, **data)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """It does."""
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal without colours, so that what is written can be compared."""
    monkeypatch.setenv("NO_COLOR", "1")
    return Terminal()


ATTEMPT_1 = event("1-0", "attempt", deployment="local", model="ollama/m")
ATTEMPT_2 = event("2-0", "attempt", deployment="haiku", model="anthropic/h")
REJECTED = event("1-9", "rejected", outcome="invalid", code="schema_violation", reason="$.n: not\na number")


def test_live_view_shows_tokens_once(terminal: Terminal) -> None:
    """Tokens as they come, not again at the end, then who answered."""
    view = LiveView(terminal)
    for shown in (ATTEMPT_1, event("1-1", "token", text="bl"), event("1-2", "token", text="ue")):
        view.show(shown)
    assert terminal.getvalue() == "— attempt 1: local (ollama/m)\nblue"
    view.show(result("blue", deployment="local", latency_ms=1234, cost_usd=0.00021, usage={"completion_tokens": 2}))
    assert terminal.getvalue().endswith("\nblue\n— local, 2 tokens, 1.2 s, $0.0002\n")


def test_live_view_shows_what_was_not_streamed(terminal: Terminal) -> None:
    """Without tokens the answer comes whole; after some of them, the rest."""
    LiveView(terminal).show(result("blue"))
    assert terminal.getvalue().startswith("blue\n")
    terminal.truncate(0)
    view = LiveView(terminal)
    view.show(event("1-1", "token", text="bl"))
    view.show(result("blue"))
    assert "blue\n" in terminal.getvalue()


def test_live_view_discards_rejected_text_visibly(terminal: Terminal) -> None:
    """The reader is told that what stands above is no answer, and why."""
    view = LiveView(terminal)
    for shown in (ATTEMPT_1, event("1-1", "token", text='{"n": "x'), REJECTED, ATTEMPT_2):
        view.show(shown)
    view.show(event("2-1", "token", text='{"n":1}'))
    view.show(result({"n": 1}, '{"n":1}'))
    assert terminal.getvalue().splitlines()[1:5] == [
        '{"n": "x',
        "— discarded: local: schema_violation: $.n: not a number",
        "— attempt 2: haiku (anthropic/h)",
        '{"n":1}',
    ]
    assert terminal.getvalue().count('{"n":1}') == 1


def test_live_view_discards_text_of_dead_worker(terminal: Terminal) -> None:
    """A higher attempt replaces a lower one although nobody rejected it."""
    view = LiveView(terminal)
    for shown in (ATTEMPT_1, event("1-1", "token", text="half"), ATTEMPT_2):
        view.show(shown)
    assert "half\n— discarded: attempt 1 was superseded\n" in terminal.getvalue()


def test_live_view_tells_answer_from_other_text(terminal: Terminal) -> None:
    """Where the text that was shown is not how the answer begins, it says where the answer is."""
    view = LiveView(terminal)
    view.show(event("1-1", "token", text="something else"))
    view.show(result("blue"))
    assert "something else\n— the answer is:\nblue\n" in terminal.getvalue()


@pytest.mark.parametrize(("attempt", "dropped"), [(1, True), (2, False), (None, False)])
def test_live_view_drops_text_of_another_attempt_than_the_answers(
    terminal: Terminal, attempt: int | None, dropped: bool
) -> None:
    """Also where it happens to begin as the answer does: the answer comes whole, after a word that the rest was none."""
    view = LiveView(terminal)
    for shown in (ATTEMPT_1, event("1-1", "token", text="blue"), ATTEMPT_2, event("2-1", "token", text="blu")):
        view.show(shown)
    said: dict[str, Any] = {} if attempt is None else {"attempt": attempt}
    view.show(result("blue", deployment="local", **said))
    assert ("discarded: the answer is attempt 1's\nblue\n" in terminal.getvalue()) == dropped
    assert terminal.getvalue().endswith("blue\n— local\n")


def test_live_view_keeps_the_text_of_a_turn_that_stands(terminal: Terminal) -> None:
    """The next turn is no other answer; what was not streamed of it is shown with its end."""
    view = LiveView(terminal)
    turn = EVENTS["turn"][0]
    for shown in (
        ATTEMPT_1,
        event("1-1", "token", text="Let me "),
        event("1-2", "turn", **turn | {"message": {"content": "Let me see."}}),
        ATTEMPT_2,
        event("2-1", "turn", **turn | {"turn": 2, "message": {"content": "Once more."}}),
        event("3-0", "attempt", deployment="local", model="ollama/m"),
        event("3-1", "token", text="blue"),
    ):
        view.show(shown)
    view.show(result("blue", deployment="local", attempt=3))
    assert terminal.getvalue().splitlines() == [
        "— attempt 1: local (ollama/m)",
        "Let me see.",
        "— turn 1 is done: local, 640 ms",
        "— attempt 2: haiku (anthropic/h)",
        "Once more.",
        "— turn 2 is done: local, 640 ms",
        "— attempt 3: local (ollama/m)",
        "blue",
        "— local",
    ]


def test_live_view_keeps_thinking_apart(terminal: Terminal) -> None:
    """Thoughts are marked, and the answer begins on a line of its own."""
    view = LiveView(terminal)
    view.show(event("1-1", "reasoning", text="hm, "))
    view.show(event("1-2", "reasoning", text="sky"))
    view.show(event("1-3", "token", text="blue"))
    assert terminal.getvalue() == "[thinking] hm, sky\nblue"


def test_live_view_neutralises_control_characters(terminal: Terminal) -> None:
    """Tokens, thoughts, answers, reasons and names: nothing of it is obeyed by the terminal."""
    evil = "\x1b]0;x\x07\x9b2J"
    view = LiveView(terminal)
    view.show(event("1-0", "attempt", deployment=evil, model=evil))
    view.show(event("1-1", "reasoning", text=evil))
    view.show(event("1-2", "token", text=evil))
    view.show(event("1-3", "rejected", code=evil, reason=evil))
    view.show(result({"k": evil}, "", deployment=evil))
    LiveView(terminal).show(event(FINAL_ID, "error", code=evil, message=evil))
    assert not {"\x1b", "\x07", "\x9b"} & set(terminal.getvalue())


@pytest.mark.parametrize(
    ("final", "line"),
    [
        (
            event(FINAL_ID, "error", code="chain_exhausted", message="none left"),
            "error: chain_exhausted: none left",
        ),
        (event(FINAL_ID, "cancelled", id="r", reason="enough"), "cancelled: enough"),
        (event(FINAL_ID, "strange"), "strange"),
    ],
)
def test_every_view_tells_an_end_without_answer(
    terminal: Terminal, capsys: pytest.CaptureFixture[str], final: ClientEvent, line: str
) -> None:
    """In a word, and with exit code 1."""
    LiveView(terminal).show(final)
    assert terminal.getvalue() == f"{line}\n"
    assert exit_of(final) is Exit.FAILED
    PlainView().show(final)
    if final.type != "strange":
        assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize(
    ("content", "printed"),
    [
        ("two\nlines \x1b[1m", "two\nlines \x1b[1m\n"),
        ({"n": [1, "ä"]}, '{"n": [1, "ä"]}\n'),
        (False, "false\n"),
        ("", "\n"),
    ],
)
def test_plain_view_prints_answer_alone(capsys: pytest.CaptureFixture[str], content: Any, printed: str) -> None:
    """Tokens never, the rejection on stderr, the answer byte for byte on stdout."""
    view = PlainView()
    for shown in (
        ATTEMPT_1,
        event("1-1", "token", text="no"),
        REJECTED,
        ATTEMPT_2,
        event("2-1", "token", text="x"),
    ):
        view.show(shown)
    view.show(result(content, ""))
    captured = capsys.readouterr()
    assert captured.out == printed
    assert captured.err == "discarded: schema_violation: $.n: not a number\n"


def test_plain_view_prints_tool_calls(capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON line each, after the text if there is one."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    PlainView().show(result("", tool_calls=[call]))
    PlainView().show(result("text", tool_calls=[call]))
    first, text, second = capsys.readouterr().out.splitlines()
    assert (json.loads(first), text, json.loads(second)) == (call, "text", call)


def test_json_view_prints_every_event_or_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    """One line per event with its stream ID, which is what to go on from."""
    for every_event, types in ((True, ["attempt", "result"]), (False, ["result"])):
        view = choose_view(as_json=True, every_event=every_event)
        assert isinstance(view, JsonView)
        view.show(ATTEMPT_1)
        view.show(result("ä"))
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["type"] for line in lines] == types
        assert lines[-1] == {"id": FINAL_ID, "type": "result", "data": {"content": "ä", "raw_text": "ä"}}


def test_view_suits_stdout(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live on a terminal, plain elsewhere."""
    monkeypatch.setattr(sys, "stdout", terminal)
    assert isinstance(choose_view(as_json=False, every_event=True), LiveView)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert isinstance(choose_view(as_json=False, every_event=True), PlainView)


WAITS = event("0-1", "queued", position=2, reason="2 before you on \x1b[2Jattic\n", estimated_wait_ms=20_000)


def test_who_follows_sees_what_the_request_waits_for(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    """On a line, which no name of a model leaves; in a pipe on stderr."""
    view = LiveView(terminal)
    for shown in (WAITS, event("0-2", "queued", position=0, reason="next on attic", estimated_wait_ms=200_000)):
        view.show(shown)
    lines = terminal.getvalue().splitlines()
    assert lines[1:] == ["— waiting: next on attic, about 3 min"]
    assert lines[0].startswith("— waiting: 2 before you on ")
    assert lines[0].endswith("attic , about 20 s")
    assert "\x1b" not in lines[0]
    view.show(ATTEMPT_1)
    view.show(event("1-1", "token", text="blue"))
    view.show(result("blue"))
    assert "discarded" not in terminal.getvalue()
    PlainView().show(WAITS)
    told = capsys.readouterr()
    assert (told.out, told.err.startswith("waiting: 2 before you on ")) == ("", True)
    LiveView(terminal).show(event("0-1", "queued", position="none"))
