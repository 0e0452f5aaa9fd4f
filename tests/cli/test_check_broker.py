"""What `check` finds out of a broker."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import redis

from llm_routerd.cli import check
from llm_routerd.cli.check_server import check_server
from llm_routerd.cli.exits import Exit
from llm_routerd.cli.findings import Finding, Level, fine
from llm_routerd.cli.main import main
from llm_routerd.client import Client
from llm_routerd.config.tree import Config, RedisConfig
from llm_routerd.errors import BrokerError
from llm_routerd.queue.connection import pooled
from tests.support.servers import ValkeyProcess, running_valkey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


async def look(url: str) -> dict[str, Finding]:
    """The findings by subject."""
    return {finding.subject: finding for finding in await check_server(Config(redis=RedisConfig(url=url)))}


@pytest.fixture
def server(valkey_url: str) -> Iterator[Any]:
    """A client of a real server."""
    with redis.Redis.from_url(valkey_url) as client:
        yield client


CONFIG = """
[deployments.local]
api_base = "http://127.0.0.1:1"
[deployments.own]
model = "openai/m"
api_base = "http://127.0.0.1:1/v1"
api_key = "s3cret"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A configuration file whose deployments are all down, on a machine without keys."""
    for name in ("REDIS_URL", "OLLAMA_API_BASE", "OLLAMA_MODEL", "ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "config.toml"
    file.write_text(CONFIG)
    return str(file)


def test_command_fails_where_a_chain_has_nothing_left(
    config: str, valkey_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line for everything, missing keys by name, no secret, exit code 1."""
    assert main(["check", "--config", config, "--redis", valkey_url]) == Exit.FAILED
    output = capsys.readouterr().out
    lines = dict(line[5:].split(":", 1) for line in output.splitlines())
    assert {line[:5] for line in output.splitlines()} == {"OK   ", "WARN ", "FAIL "}
    assert {"configuration", "redis", "eviction", "deployment own", "chain default"} <= set(lines)
    assert config in lines["configuration"]
    assert "its key is missing (ANTHROPIC_API_KEY)" in lines["deployment haiku"]
    assert "nothing usable left of local, haiku, sonnet" in lines["chain default"]
    assert "s3cret" not in output


def test_command_prints_json_and_passes_with_warnings(
    config: str, valkey_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Warnings keep nobody from serving: exit code 0."""

    async def all_well(_: Config) -> list[Finding]:
        return [fine("deployment local", "answers")]

    monkeypatch.setattr(check, "check_models", all_well)
    assert main(["check", "--json", "--config", config, "--redis", valkey_url]) == Exit.OK
    findings = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {finding["level"] for finding in findings} == {"OK", "WARN"}
    assert findings[-1] == {"level": "OK", "subject": "deployment local", "detail": "answers", "remedy": ""}


def test_command_names_unsound_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON too: one failure, exit code 78."""
    file = tmp_path / "config.toml"
    file.write_text("[daemon]\nconcurency = 1\n")
    assert main(["check", "--json", "--config", str(file)]) == Exit.CONFIGURATION
    finding = json.loads(capsys.readouterr().out)
    assert (finding["level"], finding["subject"]) == ("FAIL", "configuration")
    assert "concurency" in finding["detail"]


async def test_absent_server_is_one_failure() -> None:
    """With where it was looked for, but not its password."""
    found = await look("redis://me:secret@127.0.0.1:1/0")
    assert list(found) == ["redis"]
    assert found["redis"].level is Level.FAIL
    assert "redis://***@127.0.0.1:1/0" in found["redis"].detail
    assert "secret" not in str(found)


async def test_empty_broker_is_looked_over(broker_url: str) -> None:
    """No worker was here yet; a server that hides its settings (fakeredis does) is a warning."""
    found = await look(broker_url)
    assert found["redis"].level is Level.OK
    assert (found["workers"].level, found["workers"].detail) == (
        Level.WARN,
        "none was ever here (no consumer group)",
    )
    assert found["dead letters"].level is Level.OK
    if "settings" in found:
        assert found["settings"].level is found["version"].level is Level.WARN
        assert "cannot tell" in found["settings"].detail


async def test_settings_of_real_server_are_judged(server: Any, valkey_url: str) -> None:
    """Version, eviction and persistence as the server has them."""
    found = await look(valkey_url)
    assert found["version"].detail.startswith("Valkey ")
    assert (found["version"].level, found["eviction"].level) == (Level.OK, Level.WARN)
    assert found["persistence"].level is Level.WARN
    server.config_set("maxmemory", "100mb")
    assert (await look(valkey_url))["eviction"].level is Level.OK
    server.config_set("maxmemory-policy", "allkeys-lru")
    found = await look(valkey_url)
    assert found["eviction"].level is Level.FAIL
    assert "noeviction" in found["eviction"].remedy


async def test_forbidden_commands_are_told_apart_from_faults(server: Any, valkey_url: str) -> None:
    """An ACL hides much: each line says that it cannot tell, and none fails."""
    server.acl_setuser("narrow", enabled=True, passwords=["+pw"], keys=["*"], commands=["+ping", "+hello", "+auth"])
    try:
        found = await look(valkey_url.replace("unix://", "unix://narrow:pw@"))
    finally:
        server.acl_deluser("narrow")
    assert {finding.level for finding in found.values()} == {Level.OK, Level.WARN}
    for subject in ("settings", "workers", "dead letters"):
        assert found[subject].detail.startswith("cannot tell")
    assert found["version"].detail.startswith("Valkey ")
    assert "writes" not in found


async def test_workers_queue_and_dead_letters_are_counted(broker_url: str) -> None:
    """Who works, what waits, what is beyond help."""
    with redis.Redis.from_url(broker_url) as client:
        for _ in range(3):
            client.xadd("llm:requests", {"prompt": "Why?"})
        client.xgroup_create("llm:requests", "llm-router", id="0")
        client.xreadgroup("llm-router", "worker-1", {"llm:requests": ">"}, count=1)
        client.xadd("llm:dead", {"id": "r"})
    found = await look(broker_url)
    assert (found["workers"].level, found["workers"].detail) == (Level.OK, "1 active: worker-1")
    assert found["queue"].detail == "2 waiting, 1 running"
    assert found["dead letters"].level is Level.WARN
    assert "llm-routerd dead list" in found["dead letters"].remedy


@pytest.fixture(scope="module")
def troubled() -> Iterator[ValkeyProcess]:
    """A server of these tests' own, to be brought into trouble."""
    with running_valkey() as server:
        yield server


@pytest.mark.parametrize(
    ("setting", "value", "calm", "told"),
    [
        ("maxmemory", "1", "0", "the server is out of memory (maxmemory); raise maxmemory"),
        (
            "min-replicas-to-write",
            "1",
            "0",
            "the server takes no writes without its replicas (NOREPLICAS); look at them",
        ),
    ],
)
async def test_writes_that_are_refused_now_are_told(
    troubled: ValkeyProcess, setting: str, value: str, calm: str, told: str
) -> None:
    """Why, and what to do; nothing is left of the try where they are taken."""
    with redis.Redis.from_url(troubled.url) as client:
        client.config_set(setting, value)
        found = await look(troubled.url)
        client.config_set(setting, calm)
        assert found["writes"].level is Level.FAIL
        assert told in found["writes"].to_line()
        if setting == "maxmemory":
            assert found["memory"].level is Level.WARN
        assert (await look(troubled.url))["writes"].level is Level.OK
        assert client.keys("*") == []


async def test_replica_is_told_with_the_primary_to_name(troubled: ValkeyProcess) -> None:
    """One line, and not another for what it refuses."""
    with redis.Redis.from_url(troubled.url) as client:
        client.replicaof("127.0.0.1", 1)
        found = await look(troubled.url)
        client.replicaof("NO", "ONE")
    assert found["role"].level is Level.FAIL
    assert "127.0.0.1:1" in found["role"].remedy
    assert "writes" not in found


async def test_frozen_server_is_more_than_a_timeout(troubled: ValkeyProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections, and that is said."""
    monkeypatch.setattr(pooled, "REPLY_SECONDS", 0.1)
    troubled.freeze()
    try:
        found = await look(troubled.url)
    finally:
        troubled.thaw()
    assert list(found) == ["redis"]
    assert "takes connections and does not answer; check whether its process is stopped" in found["redis"].to_line()


async def test_request_for_a_lane_of_another_type_is_refused_with_its_name(valkey_url: str, server: Any) -> None:
    """Whoever submits learns which key it is."""
    server.lpush("llm:requests", "a newcomer's request")
    async with Client(valkey_url) as client:
        with pytest.raises(BrokerError, match=r"^llm:requests is not a stream .* RENAME"):
            await client.submit(prompt="hello")


async def test_keys_of_another_type_are_named_with_their_type_and_the_remedy(valkey_url: str, server: Any) -> None:
    """And nobody's rights are blamed; what the sound lanes hold is told as ever."""
    server.lpush("llm:requests", "a newcomer's request")
    server.set("llm:dead", "x")
    server.set("llm_router_metrics", "x")
    server.xgroup_create("llm:requests:high", "llm-router", "0", mkstream=True)
    server.xadd("llm:requests:high", {"prompt": "hello"})
    findings = await check_server(Config(redis=RedisConfig(url=valkey_url)))
    bad = {finding.detail.partition(" ")[0]: finding for finding in findings if finding.subject in {"lane", "key"}}
    assert {key: finding.level for key, finding in bad.items()} == {
        "llm:requests": Level.FAIL,
        "llm:dead": Level.FAIL,
        "llm_router_metrics": Level.WARN,
    }
    assert "not a stream but a list" in bad["llm:requests"].detail
    assert "RENAME llm:requests" in bad["llm:requests"].remedy
    by_subject = {finding.subject: finding for finding in findings}
    assert by_subject["queue"].detail == "1 waiting, 0 running"
    assert "dead letters" not in by_subject
    assert not any("XLEN" in finding.remedy for finding in findings)


@pytest.mark.parametrize("key", ["llm:workers", "llm:boxes", "llm:boxes:calls", "llm:boxes:waiting"])
async def test_key_of_the_workers_of_another_type_is_named(valkey_url: str, server: Any, key: str) -> None:
    """It is to be a hash; one that is sound is no news."""
    config = Config(redis=RedisConfig(url=valkey_url))
    server.hset(key, "w1", "{}")
    assert not [finding for finding in await check_server(config) if key in finding.detail]
    server.delete(key)
    server.set(key, "x")
    (bad,) = [finding for finding in await check_server(config) if key in finding.detail]
    assert bad.level is Level.FAIL
    assert f"{key} is not a hash but a string" in bad.to_line()
    assert f"RENAME {key}" in bad.remedy
