"""`confirm` on a terminal: nobody agrees to what was not seen."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.cli.exits import Exit
from llm_routerd.protocol.examples import TOOLS
from tests.cli.commands import environment, on_terminal
from tests.cli.test_confirm import ask, write

if TYPE_CHECKING:
    import contextlib

    from tests.cli.commands import Command, Daemon

QUESTION = "y, n: "


def confirm(daemon: Daemon, *more: str) -> contextlib.AbstractContextManager[Command]:
    """The command on a terminal."""
    return on_terminal("confirm", "r1", *more, "--redis", daemon.url, env=environment(NO_COLOR="1", LOGNAME="ada"))


def test_call_is_shown_and_said_after_a_yes_alone(daemon: Daemon) -> None:
    """What is no answer is asked again; the time is told, and what it is changed to."""
    daemon.redis.hset("llm:tools", "lights.switch", json.dumps(TOOLS[1]))
    ask(daemon, "c1", expires_at_ms=int((time.time() + 600) * 1000))
    with confirm(daemon, "--args", '{"lamp": "hall", "on": true}') as command:
        command.until_written(QUESTION)
        shown = command.out.decode()
        assert shown.index('"lamp": "h\\u001b[2J"') < shown.index("changed; it is called with") < shown.index('"hall"')
        assert "Allow it until " in shown
        assert not daemon.redis.exists("llm:consent:r1")
        command.type("perhaps\n")
        until_asked(command, 2)
        assert not daemon.redis.exists("llm:consent:r1")
        command.type("y\n")
        assert json.loads(daemon.word("r1")["args"]) == {"lamp": "hall", "on": True}
        write(daemon, 21, "confirmed", call_id="c1", by="ada", arguments={"lamp": "hall", "on": True})
        assert command.wait() == Exit.OK
    assert b'confirmed by ada, with {"lamp":"hall","on":true}' in command.out


def until_asked(command: Command, count: int) -> None:
    """Wait until it has asked so often."""
    deadline = time.monotonic() + 20
    while command.out.count(QUESTION.encode()) < count:
        assert time.monotonic() < deadline, bytes(command.out)
        time.sleep(0.01)


@pytest.mark.parametrize("typed", ["n\n", "\x04"])
def test_whoever_does_not_say_yes_has_said_nothing(daemon: Daemon, typed: str) -> None:
    """The call waits on, and how to refuse it is told."""
    ask(daemon, "c1")
    with confirm(daemon) as command:
        command.until_written(QUESTION)
        command.type(typed)
        assert command.wait() == Exit.FAILED
    assert b"nothing was said; llm-routerd deny r1 c1 refuses it" in command.out
    assert not daemon.redis.exists("llm:consent:r1")


def test_interrupt_at_the_question_says_nothing(daemon: Daemon) -> None:
    """In one piece."""
    ask(daemon, "c1")
    with confirm(daemon) as command:
        command.until_written(QUESTION)
        command.interrupt()
        assert command.wait() == Exit.INTERRUPTED
    assert b"Traceback" not in command.out
    assert not daemon.redis.exists("llm:consent:r1")


@pytest.mark.parametrize(
    ("kind", "data", "code", "told"),
    [
        ("denied", {"by": "bob"}, Exit.FAILED, b"this call has been denied already by bob"),
        ("confirmed", {"by": "bob"}, Exit.FAILED, b"this call has been confirmed already by bob"),
    ],
)
def test_yes_after_somebody_elses_word_is_not_said(
    daemon: Daemon, kind: str, data: dict[str, Any], code: Exit, told: bytes
) -> None:
    """Whoever thinks long may be late."""
    ask(daemon, "c1")
    with confirm(daemon) as command:
        command.until_written(QUESTION)
        write(daemon, 21, kind, call_id="c1", **data)
        command.type("y\n")
        assert command.wait() == code
    assert told in command.out
    assert not daemon.redis.exists("llm:consent:r1")


@pytest.mark.parametrize("option", ["--yes", "--json"])
def test_who_will_not_be_asked_is_not(daemon: Daemon, option: str) -> None:
    """Programs are not, on a terminal either."""
    ask(daemon, "c1")
    with confirm(daemon, option) as command:
        assert daemon.word("r1")["confirm"] == "c1"
        write(daemon, 21, "confirmed", call_id="c1", by="ada")
        assert command.wait() == Exit.OK
    assert QUESTION.encode() not in command.out
