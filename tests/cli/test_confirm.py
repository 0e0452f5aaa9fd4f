"""`confirm` and `deny`: whose word stands, and why one does not."""

from __future__ import annotations

import json
import os
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis

from llm_routerd.cli import saying
from llm_routerd.cli.exits import Exit
from llm_routerd.cli.main import main
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.examples import TOOLS
from tests.cli.commands import environment, started

if TYPE_CHECKING:
    from tests.cli.commands import Daemon

SHA = "ab" * 32
CALL = {"name": "lights.switch", "arguments": {"lamp": "h\x1b[2J"}, "turn": 1, "args_sha256": SHA, "confirm": True}
EXPIRED = (FINAL_ID, "error", {"id": "r1", "code": "confirmation_expired", "message": "m", "attempts": []})
ADA = environment(LOGNAME="ada")


@pytest.fixture(autouse=True)
def _ada(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sits here."""
    monkeypatch.setenv("LOGNAME", "ada")


def write(daemon: Daemon, seq: int, kind: str, **data: Any) -> None:
    """An event of the run."""
    daemon.write("r1", f"1-{seq}", kind, **data)


def ask(daemon: Daemon, *ids: str, **more: Any) -> None:
    """A turn stands whose calls wait for a person."""
    write(daemon, 0, "attempt", deployment="local", model="m")
    for seq, call_id in enumerate(ids, 1):
        write(daemon, seq, "tool_call", **CALL | {"call_id": call_id} | more)
    write(daemon, 20, "turn", turn=1)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("confirm", "r1", "c1"), {"confirm": "c1", "args_sha256": SHA, "by": "ada"}),
        (("confirm", "r1"), {"confirm": "c1", "args_sha256": SHA, "by": "ada"}),
        (
            ("confirm", "r1", "c1", "--always", "--args", '{"lamp": "é", "on": true}', "--by", "Bob B.", "--reason", "dark"),
            {
                "confirm": "c1", "args_sha256": SHA, "by": "Bob B.", "args": '{"lamp":"é","on":true}', "always": "1",
                "reason": "dark",
            },
        ),
        (("deny", "r1", "c1"), {"deny": "c1", "by": "ada", "reason": ""}),
        (("deny", "r1", "--reason", "asleep"), {"deny": "c1", "by": "ada", "reason": "asleep"}),
    ],
)  # fmt: skip
def test_word_is_said_and_stands(daemon: Daemon, argv: tuple[str, ...], said: dict[str, str]) -> None:
    """What was called is shown, harmless, and what a person makes of it; the hash is that of what was shown."""
    daemon.redis.hset("llm:tools", "lights.switch", json.dumps(TOOLS[1]))
    ask(daemon, "c1")
    kind = "confirmed" if "confirm" in said else "denied"
    args = {"arguments": json.loads(said["args"]), "always": True} if "args" in said else {}
    with started(*argv, "--redis", daemon.url, env=ADA) as command:
        assert daemon.word("r1") == said
        write(daemon, 21, kind, call_id="c1", by=said["by"], **args)
        assert command.wait() == Exit.OK
    shown = '{\n  "lamp": "h\\u001b[2J"\n}\n'
    changed = 'changed; it is called with\n{\n  "lamp": "é",\n  "on": true\n}\n' if args else ""
    more = ', with {"lamp":"é","on":true}, and for the rest of the run' if args else ""
    assert command.out.decode() == f"lights.switch (c1, turn 1), with\n{shown}{changed}{kind} by {said['by']}{more}\n"
    assert bytes(command.err) == b""


def test_json_is_the_event_that_stands(daemon: Daemon) -> None:
    """And nothing else."""
    ask(daemon, "c1")
    with started("confirm", "r1", "--json", "--redis", daemon.url, env=ADA) as command:
        daemon.word("r1")
        write(daemon, 21, "confirmed", call_id="c1", by="ada")
        assert command.wait() == Exit.OK
    event = {"id": "1-21", "type": "confirmed", "data": {"call_id": "c1", "by": "ada"}}
    assert json.loads(command.out) == event


@pytest.mark.parametrize(
    ("kind", "data", "told"),
    [
        ("denied", {"call_id": "c1", "by": "bob"}, b"this call has been denied already by bob"),
        ("confirmed", {"call_id": "c1", "by": "bob"}, b"this call has been confirmed already by bob"),
        ("cancelled", {"id": "r1", "reason": ""}, b"the request has ended"),
    ],
)
def test_word_that_came_too_late_says_whose_stands(daemon: Daemon, kind: str, data: Any, told: bytes) -> None:
    """Of two who answer at once one is heard; and a run may end meanwhile."""
    ask(daemon, "c1")
    with started("confirm", "r1", "c1", "--redis", daemon.url, env=ADA) as command:
        daemon.word("r1")
        daemon.write("r1", FINAL_ID if kind == "cancelled" else "1-21", kind, **data)
        assert command.wait() == Exit.FAILED
    assert told in command.err


@pytest.mark.parametrize(
    ("more", "event", "call", "code", "why", "told"),
    [
        ({}, None, "c9", Exit.UNKNOWN, "not_found", "r1 has no tool call c9; there waits c1 (lights.switch)"),
        ({"confirm": False}, None, "c1", Exit.FAILED, "not_wanted", "this call waits for nobody's word"),
        ({}, ("1-21", "confirmed", {"call_id": "c1", "by": "bob"}), "c1", Exit.FAILED, "confirmed", "already by bob"),
        ({}, ("1-21", "denied", {"call_id": "c1"}), "c1", Exit.FAILED, "denied", "has been denied already"),
        ({"expires_at_ms": 1}, None, "c1", Exit.TIMED_OUT, "confirmation_expired", "is over"),
        ({}, (FINAL_ID, "cancelled", {"id": "r1"}), "c1", Exit.FAILED, "ended", "the request has ended"),
        ({"confirm": False}, None, None, Exit.FAILED, "not_wanted", "no tool call of r1 waits for a person"),
        ({}, ("1-21", "confirmed", {"call_id": "c1", "by": "bob"}), None, Exit.FAILED, "confirmed", "already by bob"),
        ({}, ("1-21", "denied", {"call_id": "c1"}), None, Exit.FAILED, "denied", "(c1): this call has been denied"),
        ({}, EXPIRED, None, Exit.TIMED_OUT, "confirmation_expired", "and its request has ended with that"),
        ({}, (FINAL_ID, "cancelled", {"id": "r1"}), None, Exit.FAILED, "ended", "it was cancelled"),
    ],
)
def test_word_that_does_not_count_is_not_written(
    daemon: Daemon,
    capsys: pytest.CaptureFixture[str],
    more: Any,
    event: Any,
    call: str | None,
    code: Exit,
    why: str,
    told: str,
) -> None:
    """Each with its reason, for people and for programs."""
    ask(daemon, "c1", **more)
    if event is not None:
        event_id, kind, data = event
        daemon.write("r1", event_id, kind, **data)
    for verb in ("confirm", "deny"):
        argv = [verb, "r1", *([call] if call else []), "--redis", daemon.url]
        assert main(argv) == code
        assert told in capsys.readouterr().err
        assert main([*argv, "--json"]) == code
        answer = json.loads(capsys.readouterr().out)
        assert (answer["request"], answer["call_id"], answer["why"]) == ("r1", call, why)
        assert told in answer["message"]
    assert not daemon.redis.exists("llm:consent:r1")


def test_only_call_that_waited_too_long_is_named(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    """Though its run has not ended with it yet."""
    ask(daemon, "c1", expires_at_ms=1)
    assert main(["confirm", "r1", "--redis", daemon.url]) == Exit.TIMED_OUT
    assert "could be confirmed is over" in capsys.readouterr().err


def test_one_of_several_calls_has_to_be_named(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    """They are told, with what each would do, and how much time is left."""
    ask(daemon, "c1", "c2", arguments={"lamp": "x" * 200}, expires_at_ms=int((time.time() + 600) * 1000))
    assert main(["confirm", "r1", "--redis", daemon.url]) == Exit.UNKNOWN
    told = capsys.readouterr()
    assert "name one of c1 (lights.switch), c2 (lights.switch)" in told.err
    first, second = told.out.splitlines()
    assert re.fullmatch(r'c1: lights\.switch {"lamp":"x{111}…, 9:5\d left', first)
    assert second.startswith("c2: lights.switch ")
    assert main(["deny", "r1", "--json", "--redis", daemon.url]) == Exit.UNKNOWN
    answer = json.loads(capsys.readouterr().out)
    assert (answer["call_id"], answer["why"]) == (None, "not_found")
    assert [(each["call_id"], each["args_sha256"]) for each in answer["calls"]] == [("c1", SHA), ("c2", SHA)]
    assert not daemon.redis.exists("llm:consent:r1")


def test_request_that_nobody_knows_and_one_that_is_queued(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    """The first may be a mistyped id."""
    ask(daemon, "c1")
    assert main(["confirm", "r2", "c1", "--redis", daemon.url]) == Exit.UNKNOWN
    assert "nothing is known of r2" in capsys.readouterr().err
    daemon.redis.xadd("llm:requests", {"data": json.dumps({"id": "queued", "prompt": "x"})})
    assert main(["deny", "queued", "--redis", daemon.url]) == Exit.UNKNOWN
    assert "queued is queued: it has called no tool yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("registration", "args", "told"),
    [
        (TOOLS[1], {"lamp": 3, "on": True}, "$.lamp"),
        (TOOLS[1], {}, "required"),
        ({}, {}, "description"),
        (None, {}, "it is not registered any more"),
    ],
)
def test_arguments_that_the_tool_does_not_take_are_not_written(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], registration: Any, args: Any, told: str
) -> None:
    """A worker would pass that word over."""
    if registration is not None:
        daemon.redis.hset("llm:tools", "lights.switch", json.dumps(registration))
    ask(daemon, "c1")
    assert main(["confirm", "r1", "--args", json.dumps(args), "--redis", daemon.url]) == Exit.USAGE
    said = capsys.readouterr().err
    assert "--args: lights.switch does not take these: " in said
    assert told in said
    assert not daemon.redis.exists("llm:consent:r1")


@pytest.mark.parametrize("args", [(), ("--args", '{"lamp": "hall", "on": true}')])
def test_word_that_nobody_hears_is_told(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: tuple[str, ...]
) -> None:
    """It is written, and may yet be heard; with other arguments it may not count."""
    monkeypatch.setattr(saying, "_STANDING_SECONDS", 0.1)
    daemon.redis.hset("llm:tools", "lights.switch", json.dumps(TOOLS[1]))
    ask(daemon, "c1")
    assert main(["confirm", "r1", *args, "--redis", daemon.url]) == Exit.TIMED_OUT
    told = capsys.readouterr().err
    assert "nothing has come of it within 0.1 s" in told
    assert ("does not take these arguments" in told) == bool(args)
    assert daemon.word("r1")["confirm"] == "c1"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("confirm", "r 1"), "an id has"),
        (("confirm", "r1", "--args", "{"), "--args: expected JSON"),
        (("confirm", "r1", "--args", "[1]"), "--args: expected a JSON object"),
        (("confirm", "--always"), "give the ID"),
        (("confirm", "--args", "{}"), "give the ID"),
        (("confirm", "r1", "--by", ""), "--by: expected a name"),
        (("deny", "r1", "--by", "a\nb"), "--by: expected a name"),
        (("deny", "r1", "--by", "x" * 201), "--by: expected a name"),
    ],
)
def test_what_is_no_word_is_wrong_usage(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], told: str) -> None:
    """Before Redis is asked."""
    assert main([*argv, "--redis", "redis://127.0.0.1:1"]) == Exit.USAGE
    assert told in capsys.readouterr().err


def test_who_has_no_login_name_says_who_he_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a container with a user that is a number."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    assert main(["deny", "r1", "--redis", "redis://127.0.0.1:1"]) == Exit.USAGE
    assert "say who you are with --by" in capsys.readouterr().err


RIGHTS = ["%R~llm:events:*", "%W~llm:consent:*"]


def test_who_may_not_confirm_is_told_the_right(valkey_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And whoever may only do that, neither read the clock nor bound the key, still can."""
    with redis.Redis.from_url(valkey_url) as server:
        commands = ["+ping", "+hello", "+auth", "+select", "+client|setname", "+xread", "+xrange"]
        server.acl_setuser("reader", enabled=True, passwords=["+pw"], keys=[], commands=commands)
        server.acl_setuser("approver", enabled=True, passwords=["+pw"], keys=[], commands=[*commands, "+xadd"])
        server.execute_command("ACL", "SETUSER", "reader", "%R~llm:events:*")
        server.execute_command("ACL", "SETUSER", "approver", *RIGHTS)
        until = int((time.time() + 60) * 1000)
        call = json.dumps(CALL | {"call_id": "c1", "expires_at_ms": until})
        server.xadd("llm:events:r1", {"type": "tool_call", "data": call}, id="1-1")
        try:
            url = valkey_url.replace("unix://", "unix://reader:pw@")
            assert main(["confirm", "r1", "c1", "--redis", url]) == Exit.NOT_ALLOWED
            told = capsys.readouterr().err
            assert "this user may not speak for a person" in told
            assert "XADD on llm:consent:*" in told
            assert not server.exists("llm:consent:r1")
            with started("confirm", "r1", "--redis", url.replace("reader", "approver"), env=ADA) as command:
                server.xread({"llm:consent:r1": "0"}, block=10_000)
                server.xadd("llm:events:r1", {"type": "confirmed", "data": '{"call_id":"c1","by":"ada"}'}, id="1-2")
                assert command.wait() == Exit.OK
        finally:
            server.acl_deluser("reader", "approver")
