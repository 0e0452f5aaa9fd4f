"""What `check` and `tools` say of what is registered."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import redis
from msgspec.structs import replace

from llm_routerd.cli.check_tools import check_tools, judge_globs, judge_tools
from llm_routerd.cli.exits import Exit
from llm_routerd.cli.findings import Finding, Level
from llm_routerd.cli.main import main
from llm_routerd.client import RegisteredTool, ToolConsumer, ToolGroup
from llm_routerd.config.agents import AgentsConfig, Tenant
from llm_routerd.config.tree import Config, RedisConfig
from llm_routerd.protocol.examples import TOOLS
from tests.acceptance.test_systemd import restricted_server
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

WEATHER, SWITCH = (json.dumps(tool) for tool in TOOLS)


def tool(name: str, text: str = WEATHER, *, shard: str = "llm", idle_ms: int | None = 5, **more: Any) -> RegisteredTool:
    """One that is registered; `idle_ms` None: nobody has ever served it."""
    consumers = () if idle_ms is None else (ToolConsumer(name="attic", idle_ms=idle_ms, pending=1),)
    groups = (ToolGroup(name="llm-tools", waiting=2, pending=1, consumers=consumers),) if consumers else ()
    usual = {"size": len(text), "registration": text.encode(), "calls": 3, "groups": groups}
    return RegisteredTool(**{**usual, **more}, name=name, shard=shard)


def group(name: str, *, idle_ms: int = 5, waiting: int = 0) -> ToolGroup:
    """One that reads a tool's stream."""
    consumer = ToolConsumer(name="attic", idle_ms=idle_ms, pending=0)
    return ToolGroup(name=name, waiting=waiting, pending=0, consumers=(consumer,))


def judged(*tools: RegisteredTool, prefixes: tuple[str, ...] = ("llm",), more: int = 0) -> list[tuple[Level, str]]:
    """What is found, but for the first line."""
    by_name: dict[str, list[RegisteredTool]] = {}
    for each in tools:
        by_name.setdefault(each.name, []).append(each)
    first, *found = judge_tools(by_name, prefixes, more)
    assert (first.level, first.subject) == (Level.OK, "tools")
    return [(each.level, f"{each.subject}: {each.detail}; {each.remedy}") for each in found]


def test_what_is_well_is_one_line() -> None:
    """Or nothing is there at all."""
    (finding,) = judge_tools({"weather": [tool("weather")], "door": [tool("door")]}, ("llm",), 0)
    assert (finding.level, finding.detail) == (Level.OK, "2 registered, 2 of them served")
    assert judge_tools({}, ("llm",), 0)[0].detail == "none is registered"


@pytest.mark.parametrize(
    ("found", "level", "says"),
    [
        (tool("x", "{"), Level.WARN, ["tool x: its registration is unsound", "no JSON", "HDEL it from llm:tools"]),
        (tool("x", "", size=10_000_000), Level.WARN, ["10000000 bytes"]),
        (tool("x", idle_ms=None), Level.WARN, ["nobody serves it: no consumer group reads it; 3 calls are there"]),
        (tool("x", idle_ms=None, groups=(ToolGroup(name="g", waiting=0, pending=0, consumers=()),)), Level.WARN,
         ["nobody serves it any more"]),
        (tool("x", idle_ms=300_000), Level.WARN, ["nobody has asked for its calls for 5 min"]),
        (tool("x", groups=(group("llm-tools"), group("mine"))), Level.WARN,
         ["2 consumer groups read it (llm-tools, mine): each call reaches all, and all act", "XGROUP DESTROY llm:tools:x"]),
        (tool("x", calls=None, trouble="its stream is a key of another type: no call can be put there"), Level.FAIL,
         ["another type", "look at llm:tools:x"]),
        (tool("x", calls=None, trouble="this user may not look at it"), Level.WARN, ["may not look"]),
    ],
)  # fmt: skip
def test_each_trouble_of_a_tool_is_told(found: RegisteredTool, level: Level, says: list[str]) -> None:
    """With what to do."""
    ((told, line),) = judged(found)
    assert told is level
    assert all(part in line for part in says)


@pytest.mark.parametrize(("waiting", "may_be_blocked"), [(0, True), (1, False)])
def test_who_waits_for_long_may_be_there(waiting: int, may_be_blocked: bool) -> None:
    """Of a read with BLOCK 0 Redis tells when it began; whoever reads takes a call at once."""
    ((_, line),) = judged(tool("x", groups=(group("llm-tools", idle_ms=720_000, waiting=waiting),)))
    assert "nobody has asked for its calls for 12 min" in line
    assert ("unless one who serves it waits with BLOCK 0" in line) is may_be_blocked


def test_unsound_tool_that_nobody_serves_is_told_once() -> None:
    """Nobody can call it."""
    ((_, line),) = judged(tool("x", "{", idle_ms=None))
    assert "its registration is unsound" in line


def test_shards_have_to_agree() -> None:
    """In what is registered, and that it is."""
    prefixes = ("{llm:0}", "{llm:1}")
    alike = [tool("x", shard=shard) for shard in prefixes]
    assert judged(*alike, prefixes=prefixes) == []
    ((_, differs),) = judged(alike[0], replace(alike[1], registration=SWITCH.encode()), prefixes=prefixes)
    assert "differ from shard to shard" in differs
    ((_, absent),) = judged(alike[1], prefixes=prefixes)
    assert "not registered in {llm:0}" in absent
    ((_, unserved),) = judged(alike[0], tool("x", shard="{llm:1}", idle_ms=None), prefixes=prefixes)
    assert "in {llm:1}" in unserved


def test_names_that_models_cannot_tell_apart_are_told() -> None:
    """They are told no dots."""
    ((level, line),) = judged(tool("lights.on"), tool("lights_on"), tool("lights-on"))
    assert level is Level.WARN
    assert "lights.on, lights_on are all lights_on to a model" in line


def test_hostile_registries_are_told_in_few_lines() -> None:
    """And how much there is beyond."""
    lines = judged(*(tool(f"t{number}", "{") for number in range(1_000)), more=9_000)
    assert len(lines) == 52
    assert "950 more findings" in lines[-2][1]
    assert "9000 more are registered than anybody reads" in lines[-1][1]


def test_patterns_that_match_nothing_are_a_note() -> None:
    """What they are for may yet be started."""
    config = Config(
        agents=AgentsConfig(tools=("*", "door.*"), confirm=("lights.*",)),
        tenants={"children": Tenant(name="children", tools=("weather", "music.*")), "all": Tenant(name="all")},
    )
    found = judge_globs(config, {"weather": [tool("weather")], "lights.on": [tool("lights.on")]})
    assert [(each.level, each.subject, each.detail) for each in found] == [
        (Level.OK, "[agents] tools", "no registered tool is matched by door.*"),
        (Level.OK, "[tenants.children] tools", "no registered tool is matched by music.*"),
    ]


def test_misspelt_pattern_of_those_that_ask_a_person_is_a_warning() -> None:
    """It asks nobody; where nothing is registered yet, nothing speaks for a mistake."""
    config = Config(agents=AgentsConfig(confirm=("lihgts.on", "weather")))
    (found,) = judge_globs(config, {"weather": [tool("weather")], "lights.on": [tool("lights.on")]})
    assert (found.level, found.subject) == (Level.WARN, "[agents] confirm")
    assert found.detail == "no registered tool is matched by lihgts.on"
    assert "did you mean lights.on?" in found.remedy
    assert [each.level for each in judge_globs(config, {})] == [Level.OK]


@pytest.fixture
def server(valkey_url: str) -> Iterator[Any]:
    """A client of a real server, where two tools are registered, one of them served."""
    with redis.Redis.from_url(valkey_url) as server:
        server.hset("llm:tools", mapping={"weather": WEATHER, "lights.switch": SWITCH, "bad\x1b[2J": "{"})
        server.xgroup_create("llm:tools:weather", "llm-tools", "0", mkstream=True)
        server.xadd("llm:tools:weather", {"call": "{}"})
        server.xreadgroup("llm-tools", "attic", {"llm:tools:weather": ">"})
        server.xadd("llm:tools:weather", {"call": "{}"})
        yield server


async def look(url: str) -> list[Finding]:
    """What is found."""
    return await check_tools(Config(redis=RedisConfig(url=url)))


async def test_real_server_is_looked_over(server: Any, valkey_url: str) -> None:
    """Nothing is changed by it."""
    keys = set(server.keys())
    found = await look(valkey_url)
    assert [(each.level, each.subject) for each in found] == [
        (Level.OK, "tools"),
        (Level.WARN, "tool bad\x1b[2J"),
        (Level.WARN, "tool lights.switch"),
    ]
    assert found[0].detail == "3 registered, 1 of them served"
    assert "\x1b[2J" not in found[1].to_line()
    assert set(server.keys()) == keys


async def test_rights_that_a_daemon_needs_are_named(server: Any, valkey_url: str) -> None:
    """Of a user that may write events: another's are no daemon's."""
    url = valkey_url.replace("unix://", "unix://narrow:pw@")
    basic = ["+ping", "+hello", "+auth", "+select", "+client|setname", "+hlen", "+hkeys", "+hstrlen", "+hget"]
    server.acl_setuser("narrow", enabled=True, passwords=["+pw"], keys=["llm:tools"], commands=basic)
    try:
        assert "tool rights" not in {each.subject for each in await look(url)}
        server.execute_command("ACL", "SETUSER", "narrow", "+xadd", "+xrange", "~llm:events:*", "~llm:inbox:*")
        (rights,) = [each for each in await look(url) if each.subject == "tool rights"]
        assert rights.level is Level.WARN
        for lacks in ("XADD to llm:tools:*", "XRANGE llm:consent:*", "XDEL in llm:inbox:*", "XDEL in llm:consent:*"):
            assert lacks in rights.detail
        assert "XRANGE llm:inbox:*" not in rights.detail
        server.execute_command("ACL", "SETUSER", "narrow", "+xdel", "~llm:consent:*", "~llm:tools:*")
        assert "tool rights" not in {each.subject for each in await look(url)}
        server.execute_command("ACL", "SETUSER", "narrow", "-hkeys")
        assert [each.detail[:11] for each in await look(url)] == ["cannot tell"]
    finally:
        server.acl_deluser("narrow")


@pytest.mark.parametrize(
    ("user", "can_list"), [("daemon", True), ("operator", True), ("approver", True), ("producer", False)]
)
async def test_users_of_the_acl_file_can_look(user: str, can_list: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever has to do with tools."""
    acl = (ROOT / "systemd" / "users.acl").read_text().replace("resetpass", "resetpass >pw")
    with restricted_server(acl) as login:
        operator = login("operator", "pw")
        operator.run(f"HSET llm:tools weather {WEATHER.replace(' ', '')}")
        operator.run("XGROUP CREATE llm:tools:weather llm-tools 0 MKSTREAM")
        url = f"unix://{user}:pw@{operator.run('CONFIG GET unixsocket')[1].decode()}"
        found = await look(url)
        code = await asyncio.to_thread(main, ["tools", "--redis", url])
        assert operator.run("DBSIZE") == 2
    assert found[0].detail.startswith("1 registered, 0 of them" if can_list else "cannot tell")
    assert "tool rights" not in {each.subject for each in found}
    assert code == (Exit.OK if can_list else Exit.NOT_ALLOWED)
    assert ("nobody is left" in capsys.readouterr().out) is can_list


async def test_absent_server_is_told_elsewhere() -> None:
    """Once is enough."""
    assert await look("redis://127.0.0.1:1/0") == []


# ---------------------------------------------------------------------- the command `tools`


def test_tools_are_listed_for_a_person(server: Any, valkey_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What each does, how it is called, who serves it and what waits; nothing that a terminal obeys."""
    assert main(["tools", "--redis", valkey_url]) == Exit.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("bad\u241b[2J: unsound: the name does not match")
    assert lines[2:6] == [
        "lights.switch: Switches a lamp on or off.",
        "  each call waits for a person, has 5 s for a call",
        "  nobody serves it; 0 calls wait there",
        "weather: The temperature in a city, in degrees Celsius.",
    ]
    assert lines[6] == "  idempotent, has 30 s for a call"
    assert lines[7].startswith("  llm-tools: attic, last seen 0.")
    assert lines[7].endswith(" s ago; 1 call waits, 1 taken")


def test_tools_are_listed_for_a_program(server: Any, valkey_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object a line."""
    assert main(["tools", "--json", "--redis", valkey_url]) == Exit.OK
    bad, switch, weather = map(json.loads, capsys.readouterr().out.splitlines())
    assert (bad["name"], bad["unsound"][:8]) == ("bad\x1b[2J", "the name")
    assert {name: switch[name] for name in ("confirm", "timeout_ms", "idempotent", "unsound", "is_served", "calls")} == {
        "confirm": True, "timeout_ms": 5000, "idempotent": False, "unsound": None, "is_served": False, "calls": 0,
    }  # fmt: skip
    assert switch["parameters"] == TOOLS[1]["parameters"]
    (group,) = weather["groups"]
    assert (group["name"], group["waiting"], group["pending"]) == ("llm-tools", 1, 1)
    assert [each["name"] for each in group["consumers"]] == ["attic"]


def test_two_consumer_groups_are_marked(server: Any, valkey_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each call is acted on twice."""
    server.xgroup_create("llm:tools:weather", "mine", "0")
    assert main(["tools", "--redis", valkey_url]) == Exit.OK
    assert "  each call reaches all 2 consumer groups, and all act" in capsys.readouterr().out.splitlines()


def test_where_none_is_registered_that_is_said(valkey_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr."""
    assert main(["tools", "--redis", valkey_url]) == Exit.OK
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "no tools are registered\n")


def test_each_shard_is_listed(valkey_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One tool once, with who serves it in each; registrations that differ are told."""
    with redis.Redis.from_url(valkey_url) as server:
        server.hset("{llm:0}:tools", "weather", WEATHER)
        server.hset("{llm:1}:tools", "weather", SWITCH)
    assert main(["tools", "--shards", "2", "--redis", valkey_url]) == Exit.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        "  its registrations differ from shard to shard",
        "  {llm:0}: nobody serves it; 0 calls wait there",
        "  {llm:1}: nobody serves it; 0 calls wait there",
    ]
