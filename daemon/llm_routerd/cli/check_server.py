"""The part of `check` that looks at Redis: is it there, new enough, safe for streams, attended to?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_routerd.cli.check_keys import judge_keys, types_of_others
from llm_routerd.cli.findings import Finding, fail, fine, warn
from llm_routerd.cli.settings import open_client
from llm_routerd.client import as_text
from llm_routerd.config.addresses import shown_url
from llm_routerd.core.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_routerd.client import Client
    from llm_routerd.config.tree import Config, DaemonConfig

_REDIS_MINIMUM = (7, 0)
_VALKEY_MINIMUM = (8, 0)
_PATIENCE_SECONDS = 0.5
_SETTINGS = ("maxmemory", "maxmemory-policy", "appendonly", "appendfsync")


async def check_server(config: Config) -> list[Finding]:
    """Everything there is to say about the Redis of a configuration; raises nothing."""
    redis = config.redis
    where = shown_url(redis.url)
    try:
        client = await open_client(redis, patience_seconds=_PATIENCE_SECONDS)
    except BrokerError as error:
        remedy = "start it, or name another with --redis, REDIS_URL or [redis] url"
        return [fail("redis", f"{where}: {error}", remedy)]
    async with client:
        others = await types_of_others(client, config.metrics.channel)
        return [
            fine("redis", f"{where} answers"),
            await _check_version(client),
            *await _check_settings(client),
            *judge_keys(others, client.keys.lanes, config.metrics.channel),
            *await _check_queue(client),
            *([] if client.keys.dead in others else [await _check_dead_letters(client, config.daemon)]),
        ]


async def _check_version(client: Client) -> Finding:
    try:
        info = await client.patiently(lambda: client.redis.info("server"))
    except BrokerError as error:
        return warn("version", f"cannot tell ({error})", "let this user run INFO, or look yourself")
    return judge_version(info)


def judge_version(info: Mapping[str, Any]) -> Finding:
    """Whether the server that INFO describes is new enough."""
    name, minimum = ("Valkey", _VALKEY_MINIMUM) if "valkey_version" in info else ("Redis", _REDIS_MINIMUM)
    version = str(info.get("valkey_version") or info.get("redis_version") or "")
    parts = tuple(int(part) for part in version.split(".") if part.isdecimal())
    if not parts:
        return warn("version", "cannot tell (INFO names none)")
    if parts < minimum:
        wanted = ".".join(map(str, minimum))
        return fail("version", f"{name} {version} is too old", f"{name} {wanted} or newer is needed")
    return fine("version", f"{name} {version}")


async def _check_settings(client: Client) -> list[Finding]:
    try:
        settings = await client.patiently(lambda: client.redis.config_get(*_SETTINGS))
    except BrokerError as error:
        remedy = "let this user run CONFIG GET, or see to maxmemory-policy and appendonly yourself"
        return [warn("settings", f"cannot tell ({error})", remedy)]
    return judge_settings({as_text(key): as_text(value) for key, value in settings.items()})


def judge_settings(settings: Mapping[str, str]) -> list[Finding]:
    """What eviction, memory bound and persistence mean for the guarantees."""
    return [
        _judge_eviction(settings.get("maxmemory-policy", ""), settings.get("maxmemory", "")),
        _judge_persistence(settings.get("appendonly", ""), settings.get("appendfsync", "")),
    ]


def _judge_eviction(policy: str, maxmemory: str) -> Finding:
    if not policy:
        return warn("eviction", "cannot tell (maxmemory-policy is hidden)")
    if policy != "noeviction":
        # Without a bound nothing is evicted yet, and whoever sets one later will not think of us.
        return fail("eviction", f"{policy} lets Redis drop requests and answers", "set maxmemory-policy noeviction")
    if maxmemory in {"", "0"}:
        return warn("eviction", "noeviction, but maxmemory is not set", "set it below the machine's memory")
    return fine("eviction", f"noeviction, maxmemory {maxmemory} bytes")


def _judge_persistence(appendonly: str, appendfsync: str) -> Finding:
    match appendonly, appendfsync:
        case "", _:
            return warn("persistence", "cannot tell (appendonly is hidden)")
        case "no", _:
            lost = "appendonly is off: a crash or restart of Redis loses accepted requests"
            return warn("persistence", lost, "set appendonly yes and appendfsync everysec or always")
        case _, "always":
            return fine("persistence", "appendonly, appendfsync always: what was accepted survives a crash")
        case _, "everysec":
            return fine("persistence", "appendonly, appendfsync everysec: a power cut may lose the last second")
        case _:
            lost = f"appendfsync {appendfsync or 'hidden'}: a power cut may lose what the system had not written"
            return warn("persistence", lost, "set appendfsync everysec or always")


async def _check_queue(client: Client) -> list[Finding]:
    try:
        lanes = await client.lanes()
    except BrokerError as error:
        return [warn("workers", f"cannot tell ({error})", "let this user run XLEN and XINFO on the lanes")]
    workers = frozenset[str]().union(*(lane.workers for lane in lanes))
    waiting, running = sum(lane.waiting for lane in lanes), sum(lane.running for lane in lanes)
    load = fine("queue", f"{waiting} waiting, {running} running")
    if workers:
        return [fine("workers", f"{len(workers)} active: {', '.join(sorted(workers))}"), load]
    state = "none is active" if any(lane.has_group for lane in lanes) else "none was ever here (no consumer group)"
    return [warn("workers", state, "start one: llm-routerd serve"), load]


async def _check_dead_letters(client: Client, bounds: DaemonConfig) -> Finding:
    try:
        count = int(await client.patiently(lambda: client.redis.xlen(client.keys.dead)))
    except BrokerError as error:
        return warn("dead letters", f"cannot tell ({error})")
    if not count:
        return fine("dead letters", "none")
    told = f"{count}; beyond {bounds.dead_max_entries}, or {bounds.dead_max_bytes} bytes, the oldest go"
    return warn("dead letters", told, "look at them: llm-routerd dead list")
