"""What `check` says of the gateway."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from llm_routerd.cli.check_gateway import check_gateway, judge_entrance
from llm_routerd.cli.findings import Level
from llm_routerd.config.gateway import GatewayConfig, GatewayKey
from llm_routerd.config.tree import Config, RedisConfig
from llm_routerd.gateway.http.gateway import Gateway
from tests.acceptance.test_systemd import restricted_server
from tests.support.processes import ROOT, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llm_routerd.cli.findings import Finding

LONG = "a-key-that-is-long-enough"


def keyed(**keys: str | None) -> dict[str, GatewayKey]:
    """Return keys by name; None: its secret is missing."""
    return {name: GatewayKey(name=name, key=key, key_missing=None if key else "VARIABLE") for name, key in keys.items()}


def told(findings: list[Finding], level: Level) -> list[str]:
    """Return what is found of this level."""
    return [f"{each.subject}: {each.detail}; {each.remedy}" for each in findings if each.level is level]


@pytest.mark.parametrize(
    ("gateway", "level", "says"),
    [
        (GatewayConfig(), Level.OK, ["on this machine alone"]),
        (GatewayConfig(listen="0.0.0.0:1", allow_anonymous=True), Level.WARN, ["0.0.0.0:1", "without a key"]),
        (GatewayConfig(keys=keyed(a=LONG, b=LONG + "2")), Level.OK, ["2 of 2 keys"]),
        (GatewayConfig(keys=keyed(a=LONG, b=None)), Level.OK, ["1 of 2 keys"]),
        (GatewayConfig(keys=keyed(a=LONG, b=None)), Level.WARN, ["gateway key b", "VARIABLE"]),
        (GatewayConfig(keys=keyed(a=None)), Level.FAIL, ["nobody can come in"]),
        (GatewayConfig(keys=keyed(a="12345678")), Level.WARN, ["gateway key a", "shorter", "openssl"]),
        (GatewayConfig(keys=keyed(a=LONG, b=LONG)), Level.WARN, ["gateway key b", "that of a"]),
    ],
)
def test_who_may_come_in_is_told(gateway: GatewayConfig, level: Level, says: list[str]) -> None:
    """And no key is."""
    findings = judge_entrance(gateway)
    (line,) = told(findings, level)
    assert all(part in line for part in says)
    assert LONG not in str(findings)


def test_keys_that_are_good_are_one_line() -> None:
    """Nothing is said where nothing is to be done."""
    assert len(judge_entrance(GatewayConfig(keys=keyed(a=LONG, b=LONG + "2")))) == 1


@asynccontextmanager
async def served(config: Config) -> AsyncIterator[Config]:
    """Have a gateway that serves; gives the configuration with its port."""
    gateway = Gateway(config)
    await gateway.start()
    running = asyncio.create_task(gateway.run())
    try:
        yield Config(redis=config.redis, gateway=GatewayConfig(listen=f"127.0.0.1:{gateway.port}"))
    finally:
        await gateway.stop(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_nothing_is_said_where_there_is_none() -> None:
    """A daemon needs no gateway."""
    listen = GatewayConfig().listen
    findings = await check_gateway(Config(redis=RedisConfig(url="redis://127.0.0.1:9")))
    assert findings == [] or listen in str(findings)  # somebody may have one on this machine


async def test_one_that_answers_is_told_from_what_is_none(valkey_url: str) -> None:
    """By its own words; and where nobody listens, how to start one."""
    redis = RedisConfig(url=valkey_url)
    async with served(Config(redis=redis, gateway=GatewayConfig(listen="127.0.0.1:0"))) as config:
        findings = await check_gateway(config)
        assert [each.level for each in findings] == [Level.OK] * 3
        assert "may submit, follow and cancel" in findings[-1].detail

    def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nServer: nginx\r\n\r\n")
        writer.close()

    port = free_port()
    config = Config(redis=redis, gateway=GatewayConfig(listen=f"127.0.0.1:{port}"))
    assert "llm-routerd gateway" in told(await check_gateway(config), Level.WARN)[0]
    async with await asyncio.start_server(greet, "127.0.0.1", port):
        assert "is none" in told(await check_gateway(config), Level.FAIL)[0]


async def test_what_would_be_refused_at_the_start_is_told(valkey_url: str) -> None:
    """With the same words."""
    config = Config(redis=RedisConfig(url=valkey_url), gateway=GatewayConfig(listen=f"0.0.0.0:{free_port()}"))
    (line,) = told(await check_gateway(config), Level.FAIL)
    assert "without a key" in line


@pytest.mark.parametrize(
    ("user", "lacks"),
    [
        ("gateway", []),
        ("operator", []),
        ("producer", ["XADD to llm:events:*, which is how one cancels"]),
        ("metrics", ["XADD to llm:requests,", "SUBSCRIBE to llm:events:*", "XREAD llm:events:*"]),
    ],
)
async def test_rights_that_its_redis_user_lacks_are_named(user: str, lacks: list[str]) -> None:
    """By trying what changes nothing."""
    acl = (ROOT / "systemd" / "users.acl").read_text().replace("resetpass", "resetpass >pw")
    with restricted_server(acl) as login:
        operator = login("operator", "pw")
        socket = operator.run("CONFIG GET unixsocket")[1].decode()
        redis = RedisConfig(url=f"unix://{user}:pw@{socket}")
        config = Config(redis=redis, gateway=GatewayConfig(listen=f"127.0.0.1:{free_port()}"))
        (rights,) = [each for each in await check_gateway(config) if each.subject == "gateway rights"]
        assert rights.level is (Level.WARN if lacks else Level.OK)
        assert all(each in rights.detail for each in lacks)
        assert ("users.acl" in rights.remedy) is bool(lacks)
        assert operator.run("KEYS *") == []
