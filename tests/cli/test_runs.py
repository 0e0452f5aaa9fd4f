"""A run with tools at the command line: its steps, and a person who is asked."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis

from llm_routerd.cli.exits import Exit
from llm_routerd.cli.keyboard import Keyboard
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.examples import EVENTS, TOOLS
from tests.cli.commands import SECONDS, Command, environment, on_terminal, started

if TYPE_CHECKING:
    from tests.cli.commands import Daemon

SHA = "ab" * 32
HALL = {"lamp": "hall\x1b[2J", "on": True}
TURN = EVENTS["turn"][0]
QUESTION = "Allow it? y, n [reason], a (always): "


def call(call_id: str = "call_1", **more: Any) -> dict[str, Any]:
    """A call that waits for a person."""
    expires = int((time.time() + 600) * 1000)
    usual = {"name": "lights.switch", "arguments": HALL, "turn": 1, "args_sha256": SHA}
    return {**usual, "confirm": True, "expires_at_ms": expires, **more, "call_id": call_id}


def begin(daemon: Daemon, *calls: dict[str, Any]) -> str:
    """A run whose first turn stands, with these calls; its id."""
    request_id = str(daemon.request()["id"])
    daemon.write(request_id, "1-0", "attempt", deployment="local", model="m")
    daemon.write(request_id, "1-1", "token", text="Let me see.")
    for seq, each in enumerate(calls, 2):
        daemon.write(request_id, f"1-{seq}", "tool_call", **each)
    daemon.write(request_id, "1-20", "turn", **TURN | {"message": {"content": "Let me see."}})
    return request_id


def finish(daemon: Daemon, request_id: str) -> None:
    """Its second turn answers."""
    daemon.write(request_id, "2-0", "attempt", deployment="local", model="m")
    daemon.write(request_id, "2-1", "token", text="It is on.")
    daemon.write(
        request_id,
        FINAL_ID,
        "result",
        id=request_id,
        content="It is on.",
        raw_text="It is on.",
        attempt=2,
        deployment="local",
    )


def words(daemon: Daemon, request_id: str, count: int = 1) -> list[dict[str, str]]:
    """What people have said, as soon as it is so much."""
    deadline = time.monotonic() + SECONDS
    while len(said := daemon.redis.xrange(f"llm:consent:{request_id}")) < count:
        assert time.monotonic() < deadline, "nobody has said anything"
        time.sleep(0.01)
    return [fields for _, fields in said]


ENVIRONMENT = environment(NO_COLOR="1", LOGNAME="ada")
SUBMIT = ("submit", "Is it dark?", "--agent", "weather,lights.*")


def submit(daemon: Daemon, *more: str, **options: Any) -> Any:
    """The command on a terminal."""
    return on_terminal(*SUBMIT, *more, "--redis", daemon.url, env=ENVIRONMENT, **options)


def test_options_become_the_property(daemon: Daemon) -> None:
    """Names and globs, separated by commas."""
    more = ("--max-turns", "3", "--confirm", "weather", "--no-wait")
    with started(*SUBMIT, *more, "--redis", daemon.url) as command:
        assert command.wait() == Exit.OK
    agent = {"tools": ["weather", "lights.*"], "max_turns": 3, "confirm": ["weather"]}
    assert daemon.request()["agent"] == agent


def test_tools_that_nobody_serves_are_told_at_once(daemon: Daemon) -> None:
    """Those that the run may call; of many the first few."""
    for name in ("weather", "door", *(f"lights.l{number}" for number in range(6))):
        daemon.redis.hset("llm:tools", name, json.dumps(TOOLS[0]))
    daemon.redis.xgroup_create("llm:tools:weather", "llm-tools", "0", mkstream=True)
    daemon.redis.xgroup_createconsumer("llm:tools:weather", "llm-tools", "attic")
    for more in ((), ("--no-wait",)):
        with started(*SUBMIT, *more, "--redis", daemon.url) as command:
            command.until_written("see llm-routerd tools")
            if not more:
                command.interrupt()
            command.wait()
        lines = command.err.decode().splitlines()[:6]
        assert lines[0] == "lights.l0: nobody serves it: no consumer group reads it"
        assert lines[4:] == [
            "lights.l4: nobody serves it: no consumer group reads it",
            "and 1 more that nobody serves; see llm-routerd tools",
        ]


def test_who_may_not_look_at_the_tools_is_told_nothing(valkey_url: str) -> None:
    """A producer need not know who serves them."""
    with redis.Redis.from_url(valkey_url) as server:
        server.hset("llm:tools", "weather", json.dumps(TOOLS[0]))
        commands = ["+ping", "+hello", "+auth", "+select", "+client|setname", "+xadd", "+info"]
        server.acl_setuser("narrow", enabled=True, passwords=["+pw"], keys=["llm:requests"], commands=commands)
        try:
            url = valkey_url.replace("unix://", "unix://narrow:pw@")
            with started(*SUBMIT, "--no-wait", "--redis", url) as command:
                assert command.wait() == Exit.OK
        finally:
            server.acl_deluser("narrow")
    assert bytes(command.err) == b""


def test_pipe_gets_the_answer_alone_and_is_told_how_to_confirm(daemon: Daemon) -> None:
    """A line for each step on stderr, none of which commands a terminal; the waiting goes on."""
    with started(*SUBMIT, "--redis", daemon.url) as command:
        request_id = begin(daemon, call(), call("call_2", name="weather", arguments={"city": "Oslo"}, confirm=False))
        command.until_written(f"llm-routerd confirm {request_id} call_1 (or deny)")
        daemon.write(
            request_id, "1-21", "tool_result", call_id="call_2", name="weather", result={"c": -3}, latency_ms=48
        )
        daemon.write(
            request_id, "1-22", "confirmed", call_id="call_1", by="bob", arguments={"lamp": "hall"}, always=True
        )
        daemon.write(request_id, "1-23", "tool_result", call_id="call_1", name="lights.switch", error="no\nbulb")
        finish(daemon, request_id)
        assert command.wait() == Exit.OK
    assert bytes(command.out) == b"It is on.\n"
    lines = command.err.decode().splitlines()
    (hint,) = [line for line in lines if "waits for a person" in line]
    assert [line for line in lines if line != hint] == [
        'calls lights.switch {"lamp":"hall\\u001b[2J","on":true}',
        'calls weather {"city":"Oslo"}',
        "turn 1 is done: local, 640 ms",
        'weather answered {"c":-3} (48 ms)',
        'lights.switch confirmed by bob, with {"lamp":"hall"}, and for the rest of the run',
        "lights.switch failed: no bulb",
    ]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("y", {"confirm": "call_1", "args_sha256": SHA, "by": "ada"}),
        ("a", {"confirm": "call_1", "args_sha256": SHA, "by": "ada", "always": "1"}),
        ("n", {"deny": "call_1", "by": "ada", "reason": ""}),
        ("N not at  night", {"deny": "call_1", "by": "ada", "reason": "not at  night"}),
    ],
)
def test_person_at_the_terminal_is_asked(daemon: Daemon, typed: str, said: dict[str, str]) -> None:
    """With all arguments, harmless; the text of the turn before stays what it is."""
    with submit(daemon) as command:
        request_id = begin(daemon, call())
        command.until_written(QUESTION)
        shown = command.out.decode()
        assert '{\r\n  "lamp": "hall\\u001b[2J",\r\n  "on": true\r\n}\r\n' in shown
        assert "lights.switch asks for a yes until" in shown
        command.type(f"{typed}\n")
        assert words(daemon, request_id) == [said]
        kind = "confirmed" if "confirm" in said else "denied"
        daemon.write(request_id, "1-21", kind, call_id="call_1", by="ada", reason=said.get("reason", ""))
        command.until_written(f"lights.switch {kind} by ada")
        finish(daemon, request_id)
        assert command.wait() == Exit.OK
    shown = command.out.decode()
    assert "discarded" not in shown
    assert "Let me see.\r\n" in shown
    assert shown.count("It is on.") == 1
    assert "\x1b" not in shown


def test_what_is_no_answer_is_asked_again(daemon: Daemon) -> None:
    """What was typed before the question is none either."""
    with submit(daemon, columns=40) as command:
        request_id = str(daemon.request()["id"])
        command.type("y\n")
        begin(daemon, call())
        command.until_written(QUESTION)
        for typed in ("", "maybe", "y but not yet"):
            asked = command.out.count(QUESTION.encode())
            command.type(f"{typed}\n")
            until_asked(command, asked + 1)
        assert not daemon.redis.exists(f"llm:consent:{request_id}")
        command.type("yes\n")
        assert words(daemon, request_id)[0]["confirm"] == "call_1"
        daemon.write(request_id, FINAL_ID, "error", id=request_id, code="internal", message="m", attempts=[])
        assert command.wait() == Exit.FAILED


def until_asked(command: Command, count: int) -> None:
    """Wait until it has asked so often."""
    deadline = time.monotonic() + SECONDS
    while command.out.count(QUESTION.encode()) < count:
        assert time.monotonic() < deadline, bytes(command.out)
        time.sleep(0.01)


def test_word_from_elsewhere_ends_the_question(daemon: Daemon) -> None:
    """And the next call is asked about; other news do not."""
    with submit(daemon) as command:
        request_id = begin(
            daemon, call(), call("call_2", name="door.open"), call("call_3", name="weather", confirm=False)
        )
        command.until_written(QUESTION)
        daemon.write(request_id, "1-21", "tool_result", call_id="call_3", name="weather", result="-3 C")
        command.until_written("weather answered -3 C")
        until_asked(command, 2)
        assert b"door.open asks" not in command.out
        daemon.write(request_id, "1-22", "denied", call_id="call_1", by="bob", reason="asleep")
        command.until_written("lights.switch denied by bob: asleep")
        command.until_written("door.open asks for a yes")
        until_asked(command, 3)
        command.type("y\n")
        assert [said["confirm"] for said in words(daemon, request_id)] == ["call_2"]
        daemon.write(request_id, "1-23", "confirmed", call_id="call_2", by="ada")
        finish(daemon, request_id)
        assert command.wait() == Exit.OK


def test_interrupt_at_the_question_cancels(daemon: Daemon) -> None:
    """As ever."""
    with submit(daemon) as command:
        request_id = begin(daemon, call())
        command.until_written(QUESTION)
        command.interrupt()
        assert command.wait() == Exit.INTERRUPTED
    assert daemon.final(request_id)["type"] == "cancelled"
    assert b"\r\n\xe2\x80\x94 cancelling" in command.out
    assert b"Traceback" not in command.out


def test_end_of_the_keyboard_leaves_the_command_to_run(daemon: Daemon) -> None:
    """Ctrl-D; the waiting goes on, and nobody is asked again."""
    with submit(daemon) as command:
        request_id = begin(daemon, call(), call("call_2"))
        command.until_written(QUESTION)
        command.type("\x04")
        for call_id in ("call_1", "call_2"):
            command.until_written(f"llm-routerd confirm {request_id} {call_id}")
        assert command.out.count(QUESTION.encode()) == 1
        finish(daemon, request_id)
        assert command.wait() == Exit.OK


def test_what_was_answered_long_ago_is_not_asked(daemon: Daemon) -> None:
    """Whoever submits the same again, or follows from the beginning, reads what was said."""
    daemon.redis.xadd("llm:requests", {"data": json.dumps({"id": "r1"})})
    request_id = begin(daemon, call())
    daemon.write(request_id, "1-21", "confirmed", call_id="call_1", by="bob")
    with submit(daemon, "--id", request_id) as command:
        command.until_written("lights.switch confirmed by bob")
        finish(daemon, request_id)
        assert command.wait() == Exit.OK
    assert QUESTION.encode() not in command.out
    with started("follow", request_id, "--redis", daemon.url) as command:
        assert command.wait() == Exit.OK
    assert b"waits for a person" not in command.err


def test_follow_tells_how_to_confirm_and_json_has_every_event(daemon: Daemon) -> None:
    """On stderr, so that stdout stays what a program reads."""
    daemon.redis.xadd("llm:requests", {"data": json.dumps({"id": "r1"})})
    begin(daemon, call("call;1"))
    with started("follow", "r1", "--json", "--redis", daemon.url) as command:
        command.until_written("llm-routerd confirm r1 'call;1' (or deny)")
        daemon.write("r1", FINAL_ID, "cancelled", id="r1", reason="")
        assert command.wait() == Exit.FAILED
    kinds = [json.loads(line)["type"] for line in command.out.splitlines()]
    assert kinds == ["attempt", "token", "tool_call", "turn", "cancelled"]


def test_nobody_is_asked_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is typed then is for another."""
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "r") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        assert Keyboard.of_person() is not None
        monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + 1)
        assert Keyboard.of_person() is None
    os.close(ours)
    assert Keyboard.of_person() is None  # closed
