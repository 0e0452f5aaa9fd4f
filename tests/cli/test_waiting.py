"""`confirm` without an id: everything that waits for a person."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis

from llm_routerd.cli.exits import Exit
from llm_routerd.cli.main import main
from llm_routerd.client import Survey

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP = "llm-router"
SHA = "ab" * 32


@pytest.fixture
def server(valkey_url: str) -> Iterator[Any]:
    """A client of a real server."""
    with redis.Redis.from_url(valkey_url, decode_responses=True) as server:
        yield server


def begin(server: Any, request_id: str, *calls: str, prefix: str = "llm", **more: Any) -> None:
    """A worker has a run whose calls wait for a person."""
    requests, events = f"{prefix}:requests", f"{prefix}:events:{request_id}"
    server.xadd(requests, {"data": json.dumps({"id": request_id, "prompt": "x"})})
    if not server.exists(requests) or not server.xinfo_groups(requests):
        server.xgroup_create(requests, GROUP, "0")
    server.xreadgroup(GROUP, "w1", {requests: ">"})
    until = int((time.time() + 600) * 1000)
    call = {"name": "lights.switch", "arguments": {"lamp": "h\x1b[2J"}, "turn": 1, "args_sha256": SHA, "confirm": True}
    server.xadd(events, {"type": "attempt", "data": '{"deployment":"local"}'}, id="1-0")
    for seq, call_id in enumerate(calls, 1):
        data = json.dumps(call | {"call_id": call_id, "expires_at_ms": until} | more)
        server.xadd(events, {"type": "tool_call", "data": data}, id=f"1-{seq}")
    server.xadd(events, {"type": "turn", "data": '{"turn":1}'}, id="1-20")


def test_all_that_waits_is_listed(server: Any, valkey_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each the request, the call, what it would do, and how much time is left; not what has had its word."""
    begin(server, "r1", "c1", "c2")
    begin(server, "r2", "c3", name="door.open", arguments={"why": "x" * 20_000})
    begin(server, "r3", "c4")
    server.xadd("llm:events:r3", {"type": "denied", "data": '{"call_id":"c4","by":"bob"}'}, id="1-21")
    server.xadd("llm:events:r1", {"type": "tool_call", "data": '{"call_id":"bad","confirm":true}'}, id="1-22")
    assert main(["confirm", "--redis", valkey_url]) == Exit.OK
    told = capsys.readouterr()
    shown = [
        r'r1 c1: lights\.switch {"lamp":"h\\u001b\[2J"}, 9:5\d left',
        r'r1 c2: lights\.switch {"lamp":"h\\u001b\[2J"}, 9:5\d left',
        r"r2 c3: door\.open \(long\), 9:5\d left",
    ]
    lines = told.out.splitlines()
    assert all(re.fullmatch(wanted, line) for wanted, line in zip(shown, lines, strict=True)), lines
    assert told.err == ""
    assert main(["confirm", "--json", "--redis", valkey_url]) == Exit.OK
    first, *_ = map(json.loads, capsys.readouterr().out.splitlines())
    assert first.pop("expires_at_ms") > time.time() * 1000
    assert first == {
        "request": "r1", "call_id": "c1", "name": "lights.switch", "arguments": {"lamp": "h\x1b[2J"}, "args_sha256": SHA,
    }  # fmt: skip


def test_where_nothing_waits_that_is_said(valkey_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And is no success, as for a search."""
    assert main(["confirm", "--redis", valkey_url]) == Exit.FAILED
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "no tool call waits for a person\n")


def test_where_the_list_ends_is_said(
    server: Any, valkey_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of each lane so many are looked at."""
    monkeypatch.setattr(Survey, "most_running", 2)
    for number in range(3):
        begin(server, f"r{number}", f"c{number}")
    assert main(["confirm", "--redis", valkey_url]) == Exit.OK
    told = capsys.readouterr()
    assert [line[:5] for line in told.out.splitlines()] == ["r0 c0", "r1 c1"]
    assert told.err == "there may be more: of 3 requests under way 2 were looked at, the 2 oldest of each lane\n"


def test_every_shard_is_looked_at(server: Any, valkey_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A person need not know where a request stands."""
    for number in range(2):
        begin(server, f"r{number}", f"c{number}", prefix=f"{{llm:{number}}}")
    assert main(["confirm", "--shards", "2", "--redis", valkey_url]) == Exit.OK
    assert [line[:5] for line in capsys.readouterr().out.splitlines()] == ["r0 c0", "r1 c1"]


def test_who_may_not_look_is_told(server: Any, valkey_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A request can still be named."""
    server.acl_setuser("narrow", enabled=True, passwords=["+pw"], commands=["+ping", "+hello", "+auth", "+select"])
    try:
        url = valkey_url.replace("unix://", "unix://narrow:pw@")
        assert main(["confirm", "--redis", url]) == Exit.NOT_ALLOWED
    finally:
        server.acl_deluser("narrow")
    assert "or name the request" in capsys.readouterr().err
