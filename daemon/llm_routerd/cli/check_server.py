"""The part of `check` that looks at Redis: is it there, can it serve us, is it safe for streams, attended to?"""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llm_routerd.cli.check_cluster import check_cluster
from llm_routerd.cli.check_keys import judge_keys, types_of_others
from llm_routerd.cli.check_replication import judge_replicas
from llm_routerd.cli.check_sentinels import check_sentinels, judge_lone_sentinel
from llm_routerd.cli.check_shards import judge_shards
from llm_routerd.cli.exits import nobody_listens
from llm_routerd.cli.findings import Finding, fail, fine, warn
from llm_routerd.cli.settings import open_client
from llm_routerd.client import as_text
from llm_routerd.config.addresses import shown_url
from llm_routerd.errors import BrokerError, NotAllowedError, UnsuitableServerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_routerd.client import Client, LaneState, Shard
    from llm_routerd.config.tree import Config, DaemonConfig, RedisConfig
    from llm_routerd.queue.connection import Greeting

_PATIENCE_SECONDS = 0.5
_SETTINGS = ("maxmemory", "maxmemory-policy", "appendonly", "appendfsync", "min-replicas-to-write")
_FULL_PERCENT = 90


async def check_server(config: Config) -> list[Finding]:
    """Everything there is to say about the Redis of a configuration; raises nothing."""
    redis = config.redis
    sentinels = await check_sentinels(redis.url)
    answers = fine("redis", f"{shown_url(redis.url)} answers")
    try:
        client = await open_client(redis, patience_seconds=_PATIENCE_SECONDS)
    except UnsuitableServerError as error:
        return [answers, await judge_lone_sentinel(redis.url) or fail("server", error.detail, error.remedy)]
    except BrokerError as error:
        start = "start it, or " if nobody_listens(error) else ""
        remedy = error.remedy or f"{start}name another with --redis, REDIS_URL or [redis] url"
        return [*sentinels, fail("redis", f"{shown_url(redis.url)}: {error.detail}", remedy)]
    async with client:
        try:
            greeting = await client.greeting(config.metrics.channel)
        except UnsuitableServerError as error:
            return [answers, fail("server", error.detail, error.remedy)]
        except BrokerError:
            greeting = None
        keys, others = await _check_keys(client, config)
        has_letters = not any(shard.keys.dead in others for shard in client.shards.all)
        return [
            answers,
            *sentinels,
            judge_version(greeting),
            *await _check_nodes(client, greeting, redis),
            *keys,
            *await _check_queue(client),
            *([await _check_dead_letters(client, config.daemon)] if has_letters else []),
        ]


async def _check_nodes(client: Client, greeting: Greeting | None, redis: RedisConfig) -> list[Finding]:
    """Each server that has shards; of the nodes of a Cluster it is told which one is meant."""
    shards = client.shards.all
    if greeting is None or greeting.mode != "cluster":
        return await _check_node(shards[0], greeting, redis, is_watched="+sentinel://" in redis.url)
    findings = await check_cluster(redis.url, [shard.keys for shard in shards])
    nodes: dict[str, Shard] = {}
    for shard in shards:
        nodes.setdefault(await shard.place(), shard)
    for place, shard in nodes.items():
        found = await _check_node(shard, None, redis, is_watched=True)
        findings += [replace(each, subject=f"{each.subject} at {place}") if len(nodes) > 1 else each for each in found]
    return findings


async def _check_node(
    shard: Shard, greeting: Greeting | None, redis: RedisConfig, *, is_watched: bool
) -> list[Finding]:
    """What one server is about now, how it is set up, and who has copies of it."""
    try:
        info = await shard.patiently(lambda: shard.redis.info("memory", "replication"))
    except BrokerError:
        info = {}
    settings, findings = await _read_settings(shard)
    least = settings.get("min-replicas-to-write", "")
    return [
        *await _check_state(shard, info, greeting),
        *findings,
        *judge_replicas(info, least, redis, is_watched=is_watched),
    ]


async def _check_keys(client: Client, config: Config) -> tuple[list[Finding], set[str]]:
    """What is wrong with the keys of all shards, and which they are."""
    layout, findings, wrong = client.shards.layout, list[Finding](), set[str]()
    for number, shard in enumerate(client.shards.all):
        metrics = layout.metrics_channel(number, config.metrics.channel) if number < layout.shards else ""
        others = await types_of_others(shard, metrics)
        findings += judge_keys(others, shard.keys, metrics)
        wrong |= set(others)
    return findings, wrong


def judge_version(greeting: Greeting | None) -> Finding:
    """What kind of server it is; one that is too old has been refused before."""
    if greeting is None:
        return warn("version", "cannot tell", "let this user run HELLO or INFO, or look yourself")
    if not greeting.is_known:
        return warn("version", f"{greeting.title}: not known, it must do all that Redis 7.0 does")
    return fine("version", greeting.title + (", in cluster mode" if greeting.mode == "cluster" else ""))


async def _check_state(shard: Shard, info: Mapping[str, Any], greeting: Greeting | None) -> list[Finding]:
    """What the server is about now: whose copy it is, how full, whether it takes writes."""
    told = {"role": greeting.role} if greeting is not None and greeting.role else {}
    role = judge_role({**info, **told})
    return [*role, *judge_memory(info), *([] if role else await _check_writes(shard))]


def judge_role(info: Mapping[str, Any]) -> list[Finding]:
    """A replica takes no writes, or loses them."""
    if info.get("role") not in {"replica", "slave"}:
        return []
    host, port = info.get("master_host"), info.get("master_port")
    primary = f", {host}:{port}," if host and port else ""
    return [fail("role", "a replica, which takes no requests", f"name its primary{primary} in the Redis URL")]


def judge_memory(info: Mapping[str, Any]) -> list[Finding]:
    """How much of its bound is used; nothing where there is none, or it is hidden."""
    used, bound = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not bound:
        return []
    percent = 100 * used // bound
    told = f"{percent} % of maxmemory is used ({used} of {bound} bytes)"
    if percent < _FULL_PERCENT:
        return [fine("memory", told)]
    return [warn("memory", told, "raise maxmemory, or lower daemon.result_ttl_seconds: when full, everything waits")]


async def _check_writes(shard: Shard) -> list[Finding]:
    """Whether the server takes writes now, by one that changes nothing: to a stream that is not there."""
    key = shard.keys.events(f"check-{uuid.uuid4().hex}")
    try:
        await shard.patiently(lambda: shard.redis.xadd(key, {"type": "check"}, nomkstream=True))
    except NotAllowedError:
        return []  # a producer's user: of that it cannot be told
    except BrokerError as error:
        return [fail("writes", f"refused now: {error.detail}", error.remedy)]
    return [fine("writes", "taken")]


async def _read_settings(shard: Shard) -> tuple[Mapping[str, str], list[Finding]]:
    """How the server is set up, and what that means."""
    try:
        found = await shard.patiently(lambda: shard.redis.config_get(*_SETTINGS))
    except BrokerError as error:
        remedy = "let this user run CONFIG GET, or see to maxmemory-policy and appendonly yourself"
        return {}, [warn("settings", f"cannot tell ({error})", remedy)]
    settings = {as_text(key): as_text(value) for key, value in found.items()}
    return settings, judge_settings(settings)


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
    shards = client.shards
    try:
        states = {shard.keys.prefix: await shard.lanes() for shard in shards.all}
    except BrokerError as error:
        told = f"cannot tell who serves them ({error})"
        unsure = [] if shards.is_only else [warn("shards", told)]
        return [*unsure, warn("workers", f"cannot tell ({error})", "let this user run XLEN and XINFO on the lanes")]
    each = [] if shards.is_only else judge_shards(states, [keys.prefix for keys in shards.layout.keys])
    return [*each, *_judge_queue([lane for lanes in states.values() for lane in lanes])]


def _judge_queue(lanes: Sequence[LaneState]) -> list[Finding]:
    workers = frozenset[str]().union(*(lane.workers for lane in lanes))
    waiting, running = sum(lane.waiting for lane in lanes), sum(lane.running for lane in lanes)
    load = fine("queue", f"{waiting} waiting, {running} running")
    if workers:
        return [fine("workers", f"{len(workers)} active: {', '.join(sorted(workers))}"), load]
    state = "none is active" if any(lane.has_group for lane in lanes) else "none was ever here (no consumer group)"
    return [warn("workers", state, "start one: llm-routerd serve"), load]


async def _check_dead_letters(client: Client, bounds: DaemonConfig) -> Finding:
    count = 0
    try:
        for shard in client.shards.all:
            count += int(await shard.patiently(lambda shard=shard: shard.redis.xlen(shard.keys.dead)))  # type: ignore[misc]
    except BrokerError as error:
        return warn("dead letters", f"cannot tell ({error})")
    if not count:
        return fine("dead letters", "none")
    each = "" if client.shards.is_only else " in a shard"
    told = f"{count}; beyond {bounds.dead_max_entries}{each}, or {bounds.dead_max_bytes} bytes, the oldest go"
    return warn("dead letters", told, "look at them: llm-routerd dead list")
