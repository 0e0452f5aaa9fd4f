"""What `check` says of servers, settings, deployments and chains."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import pytest

from llm_routerd.cli import check_models
from llm_routerd.cli.check_models import judge_models
from llm_routerd.cli.check_server import judge_memory, judge_role, judge_settings, judge_version
from llm_routerd.cli.check_waking import check_waking
from llm_routerd.cli.findings import Finding, Level, fail, fine
from llm_routerd.config.fleet import Box
from llm_routerd.config.tree import Chain, Config, DaemonConfig, Deployment
from llm_routerd.protocol.call import ProbeReport
from llm_routerd.queue.connection import Greeting


@pytest.mark.parametrize(
    ("greeting", "level", "says"),
    [
        (Greeting(kind="redis", version="7.0.15"), Level.OK, "Redis 7.0.15"),
        (Greeting(kind="valkey", version="9.1.2", mode="cluster"), Level.OK, "Valkey 9.1.2, in cluster mode"),
        (Greeting(kind="keydb", version="6.3.4"), Level.WARN, "keydb 6.3.4: not known"),
        (None, Level.WARN, "cannot tell"),
    ],
)
def test_kind_and_version_are_told(greeting: Greeting | None, level: Level, says: str) -> None:
    """One that is too old has been refused before."""
    finding = judge_version(greeting)
    assert finding.level is level
    assert says in finding.detail


@pytest.mark.parametrize(
    ("info", "level"),
    [
        ({}, None),
        ({"used_memory": 50, "maxmemory": 0}, None),
        ({"used_memory": 50, "maxmemory": 100}, Level.OK),
        ({"used_memory": 90, "maxmemory": 100}, Level.WARN),
        ({"used_memory": 120, "maxmemory": 100}, Level.WARN),
    ],
)
def test_memory_is_judged_by_its_bound(info: dict[str, Any], level: Level | None) -> None:
    """Where there is one."""
    assert [finding.level for finding in judge_memory(info)] == ([] if level is None else [level])


def test_replica_is_told_with_its_primary() -> None:
    """Which is what to name."""
    (finding,) = judge_role({"role": "slave", "master_host": "10.0.0.1", "master_port": 6379})
    assert finding.level is Level.FAIL
    assert "10.0.0.1:6379" in finding.remedy
    assert len(judge_role({"role": "replica"})) == 1
    assert judge_role({"role": "master"}) == judge_role({}) == []


SAFE = {"maxmemory": "1000", "maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "everysec"}


@pytest.mark.parametrize(
    ("settings", "eviction", "persistence"),
    [
        ({}, Level.OK, Level.OK),
        ({"maxmemory": "0"}, Level.WARN, Level.OK),
        ({"maxmemory-policy": "allkeys-lru"}, Level.FAIL, Level.OK),
        ({"maxmemory-policy": "volatile-ttl", "maxmemory": "0"}, Level.FAIL, Level.OK),
        ({"maxmemory-policy": ""}, Level.WARN, Level.OK),
        ({"appendonly": "no"}, Level.OK, Level.WARN),
        ({"appendonly": ""}, Level.OK, Level.WARN),
        ({"appendfsync": "always"}, Level.OK, Level.OK),
        ({"appendfsync": "no"}, Level.OK, Level.WARN),
        ({"appendfsync": ""}, Level.OK, Level.WARN),
    ],
)
def test_settings_are_judged_by_what_they_lose(settings: dict[str, str], eviction: Level, persistence: Level) -> None:
    """An evicted stream is a lost promise; a weaker disk is a smaller one."""
    assert [finding.level for finding in judge_settings(SAFE | settings)] == [eviction, persistence]


def deployments(*names: str, **changes: Any) -> dict[str, Deployment]:
    """Deployments with these names."""
    return {name: Deployment(name=name, model=f"ollama/{name}", **changes) for name in names}


async def by_name(config: Config, reports: dict[str, ProbeReport]) -> dict[str, Finding]:
    """The findings by subject, where the probes report this."""

    async def probe(name: str) -> ProbeReport:
        return reports[name]

    return {finding.subject: finding for finding in await judge_models(config, probe)}


SILENT = ProbeReport(ok=False, detail="connection refused", is_silent=True)
UP, DOWN = ProbeReport(ok=True, detail="answers"), ProbeReport(ok=False, detail="connection refused")


async def test_chain_lives_on_what_answers() -> None:
    """A deployment that is down is a warning; a chain with one that works is well, and says which."""
    config = Config(deployments=deployments("a", "b"), chains={"c": Chain(name="c", deployments=("a", "b"))})
    found = await by_name(config, {"a": DOWN, "b": UP})
    assert (found["deployment a"].level, found["deployment b"].level) == (Level.WARN, Level.OK)
    assert "connection refused" in found["deployment a"].detail
    assert (found["chain c"].level, found["chain c"].detail) == (Level.OK, "b (without a)")


async def test_chain_with_nothing_left_fails() -> None:
    """Its requests would get `chain_exhausted`."""
    config = Config(deployments=deployments("a"), chains={"c": Chain(name="c", deployments=("a",))})
    assert (await by_name(config, {"a": DOWN}))["chain c"].level is Level.FAIL


async def test_fallback_chains_count() -> None:
    """What a request can reach by falling back, twice if need be, is left of the chain."""
    chains = {
        "c": Chain(name="c", deployments=("a",), fallback=("d",)),
        "d": Chain(name="d", deployments=("a",), fallback=("e",)),
        "e": Chain(name="e", deployments=("b",)),
    }
    found = await by_name(Config(deployments=deployments("a", "b"), chains=chains), {"a": DOWN, "b": UP})
    assert found["chain c"].level is Level.OK


async def test_missing_key_is_named_and_nobody_is_asked() -> None:
    """The deployment is disabled, which is a warning; it is not probed without its key."""
    config = Config(deployments=deployments("a", key_missing="OPENAI_API_KEY"))
    finding = (await by_name(config, {}))["deployment a"]
    assert finding.level is Level.WARN
    assert "OPENAI_API_KEY" in finding.detail


async def test_cold_model_is_well_and_said_to_be_cold() -> None:
    """The first request waits; that is no fault."""
    config = Config(deployments=deployments("a"))
    finding = (await by_name(config, {"a": ProbeReport(ok=True, detail="answers", loaded=False)}))["deployment a"]
    assert finding.level is Level.OK
    assert "not loaded" in finding.detail


async def test_deployments_are_asked_at_once_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs costs its bound, and the others nothing."""
    monkeypatch.setattr(check_models, "_PROBE_SECONDS", 0.1)
    everybody = asyncio.Barrier(3)

    async def probe(name: str) -> ProbeReport:
        await everybody.wait()  # passes only if all three are asked at the same time
        if name == "hangs":
            await asyncio.Event().wait()
        return UP

    async with asyncio.timeout(5):
        found = await judge_models(Config(deployments=deployments("a", "b", "hangs")), probe)
    assert [finding.level for finding in found] == [Level.OK, Level.OK, Level.WARN]
    assert "no answer within 0.1 s" in found[2].detail


async def test_concurrency_that_cannot_fit_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """More calls than files may be open: what is there, what is needed, what to do."""
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (64, 128))
    config = Config(deployments=deployments("a"), chains={}, daemon=DaemonConfig(concurrency=300))
    found = (await by_name(config, {"a": UP}))["open files"]
    assert found.level is Level.WARN
    assert found.detail == "128 files may be open, and daemon.concurrency = 300 needs some 396"
    assert "LimitNOFILE" in found.to_line()
    fits = Config(deployments=deployments("a"), chains={}, daemon=DaemonConfig(concurrency=30))
    assert "open files" not in await by_name(fits, {"a": UP})


def test_finding_is_one_harmless_line() -> None:
    """Whatever a server says of itself; the remedy stands at the end."""
    assert fail("redis", "says\n\x1b[2J", "start it").to_line() == "FAIL redis: says \u241b[2J; start it"
    assert fine("redis", "answers").to_line() == "OK   redis: answers"
    assert fine("redis", "answers").to_json() == {
        "level": "OK",
        "subject": "redis",
        "detail": "answers",
        "remedy": "",
    }


async def test_box_that_may_be_asleep_is_told_and_counted_on() -> None:
    """It is woken when a request wants it; whether that works nobody can tell. One that cannot be woken is down."""
    attic, desk = (
        Box(name="attic", api_base="http://a:1", wake="aa:bb:cc:dd:ee:ff"),
        Box(name="desk", api_base="http://d:1"),
    )
    on = {f"m@{box.name}": Deployment(name=f"m@{box.name}", model="ollama/m", box=box.name) for box in (attic, desk)}
    chains = {name: Chain(name=name, deployments=(f"m@{name}",)) for name in ("attic", "desk")}
    config = Config(deployments=on, chains=chains, boxes={"attic": attic, "desk": desk})
    found = await by_name(config, dict.fromkeys(on, SILENT))
    asleep = found["deployment m@attic"]
    assert asleep.level is Level.WARN
    assert "may be asleep, and whether a packet wakes it cannot be told from here" in asleep.detail
    assert "start it, or correct [boxes.desk]" in found["deployment m@desk"].remedy
    assert (found["chain attic"].level, found["chain desk"].level) == (Level.OK, Level.FAIL)
    assert "box attic" not in found


async def test_ways_to_wake_and_to_put_to_sleep_that_lead_nowhere_are_told() -> None:
    """Without waking anybody, or running anything."""
    attic = Box(
        name="attic",
        api_base="http://a:1",
        wake="aa:bb:cc:dd:ee:ff",
        wake_address="256.256.256.256",
        sleep_after=1.0,
        sleep_command=("/nowhere/at-all", "sekret"),
    )
    config = Config(boxes={"attic": attic})
    awake, asleep = await check_waking(config)
    assert awake.detail.startswith("it cannot be woken: wake_address has no IPv4 address")
    assert asleep.detail.startswith("it cannot be put to sleep: there is no program")
    assert "sekret" not in asleep.detail + asleep.remedy
    sound = Box(
        name="attic", api_base="http://a:1", wake="aa:bb:cc:dd:ee:ff", sleep_after=1.0, sleep_command=("/bin/sh",)
    )
    assert await check_waking(Config(boxes={"attic": sound})) == []
