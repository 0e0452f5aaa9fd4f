"""What `check` finds out of several servers: Sentinels, a Cluster, shards, replicas."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import redis
from msgspec.structs import replace

from llm_routerd.cli.check_cluster import judge_cluster
from llm_routerd.cli.check_replication import judge_replicas
from llm_routerd.cli.check_sentinels import judge_sentinels
from llm_routerd.cli.check_server import check_server
from llm_routerd.cli.check_shards import judge_shards
from llm_routerd.cli.findings import Finding, Level
from llm_routerd.client import LaneState
from llm_routerd.config.tree import Config, RedisConfig
from llm_routerd.protocol.keys import GROUP, Keys, Layout
from llm_routerd.queue.connection.surroundings import ClusterView, SentinelView
from llm_routerd.queue.connection.whereabouts import Place
from tests.support.eventually import waited_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.clusters import Cluster
    from tests.support.sentinels import Sentinels

HERE, THERE = Place("127.0.0.1", 1), Place("127.0.0.1", 2)


async def look(url: str, *, channel: str = "", **options: Any) -> list[Finding]:
    """The findings, all of them."""
    config = Config(redis=RedisConfig(url=url, **options))
    if channel:
        config = replace(config, metrics=replace(config.metrics, channel=channel))
    return await check_server(config)


def of(findings: Sequence[Finding], subject: str) -> list[tuple[Level, str, str]]:
    """What is said of a subject."""
    return [(each.level, each.detail, each.remedy) for each in findings if each.subject == subject]


async def test_sentinels_their_primary_and_its_replicas_are_told(sentinels: Sentinels) -> None:
    """First all is well; then more replicas are wanted than there are, and most of the Sentinels are gone."""
    primary = await asyncio.to_thread(sentinels.primary)
    findings = await look(sentinels.url, wait_replicas=2)
    assert not [each for each in findings if each.level is Level.FAIL]
    told = f"3 of 3 answer, and name 127.0.0.1:{primary.port} the primary"
    assert of(findings, "sentinels") == [(Level.OK, told, "")]
    assert of(findings, "quorum")[0][0] is Level.OK
    ((level, replicas, _),) = of(findings, "replicas")
    assert (level, replicas[:3]) == (Level.OK, "2: ")
    assert "bytes behind" in replicas
    assert of(findings, "wait_replicas")[0][0] is Level.OK

    await asyncio.to_thread(primary.command, "CONFIG", "SET", "min-replicas-to-write", "3")
    for sentinel in sentinels.sentinels[1:]:
        await asyncio.to_thread(sentinel.kill)
    last = sentinels.sentinels[0]
    await asyncio.to_thread(
        waited_for, "a Sentinel that misses the others", lambda: _misses(last), seconds=20, passing=redis.RedisError
    )
    findings = await look(sentinels.url, wait_replicas=3)
    assert of(findings, "wait_replicas")[0][:2] == (
        Level.WARN,
        "an answer counts when 3 have it, of 2 that are connected",
    )
    assert of(findings, "min-replicas-to-write")[0][0] is Level.FAIL
    gone = f"sentinel 127.0.0.1:{sentinels.sentinels[1].port}"
    assert of(findings, gone) == [(Level.WARN, "it does not answer", "mend it, or take it out of the Redis URL")]
    ((level, quorum, remedy),) = of(findings, "quorum")
    assert (level, remedy) == (Level.FAIL, "start the others")
    assert quorum.startswith("2 must agree that the primary is gone; 3 Sentinels know each other, and too few")


def _misses(sentinel: Any) -> bool | None:
    try:
        sentinel.command("SENTINEL", "CKQUORUM", "queue")
    except redis.ResponseError as error:
        return "NOQUORUM" in str(error) or None
    return None


async def test_ports_that_are_no_primary_s_are_told_with_what_to_write(sentinels: Sentinels) -> None:
    """A Sentinel's, with what it watches; a replica's, with its primary; a service that nobody knows."""
    primary = await asyncio.to_thread(sentinels.primary)
    port = sentinels.sentinels[0].port
    findings = await look(f"redis://127.0.0.1:{port}/0")
    told = "a Sentinel answers, which keeps no data; it watches queue"
    assert of(findings, "server") == [(Level.FAIL, told, f"write redis+sentinel://127.0.0.1:{port}/queue")]

    replica = next(server for server in sentinels.servers if server is not primary)
    findings = await look(replica.tcp_url)
    assert of(findings, "role")[0][2] == f"name its primary, 127.0.0.1:{primary.port}, in the Redis URL"

    findings = await look(f"redis+sentinel://127.0.0.1:{port}/other")
    assert of(findings, f"sentinel 127.0.0.1:{port}")[0][1] == "it watches no service other"
    assert of(findings, "redis")[0][0] is Level.FAIL


async def test_nodes_of_a_cluster_are_told_with_the_shards_that_lie_there(cluster: Cluster) -> None:
    """First all is well; then a replica is gone, and a slot is nobody's."""
    keys, first = Layout("llm", 4).keys, cluster.nodes[0]
    await asyncio.to_thread(  # a replica is listed once it has told how far it is
        waited_for,
        "a node that lists every replica",
        lambda: all(len(each) > 3 for each in first.command("CLUSTER", "SLOTS")) or None,
        seconds=20,
        passing=redis.RedisError,
    )
    findings = await look(cluster.seeds[0], shards=4)
    assert not [each for each in findings if each.level is Level.FAIL]
    assert of(findings, "cluster") == [(Level.OK, "6 nodes, 3 of them with slots; all 16384 slots are covered", "")]
    lying = [each for each in findings if each.subject.startswith("shards {")]
    assert {each.level for each in lying} == {Level.OK}
    assert sorted(",".join(each.subject.removeprefix("shards ") for each in lying).replace(" ", "").split(",")) == [
        each.prefix for each in keys
    ]
    for port in {cluster.node_of(cluster.nodes[0].command("CLUSTER", "KEYSLOT", each.dead)).port for each in keys}:
        assert of(findings, f"writes at 127.0.0.1:{port}") == [(Level.OK, "taken", "")]

    slot = cluster.nodes[0].command("CLUSTER", "KEYSLOT", keys[0].dead)
    replica = await asyncio.to_thread(cluster.replica_of, slot)
    await asyncio.to_thread(cluster.kill, replica)
    at = await asyncio.to_thread(cluster.node_of, slot)
    await asyncio.to_thread(
        waited_for,
        "a node that is missed",
        lambda: "fail" in at.command("CLUSTER", "NODES") or None,
        seconds=20,
        passing=redis.RedisError,
    )
    other = next(node for node in cluster.primaries() if node is not at)
    findings = await look(f"redis://127.0.0.1:{at.port}/0", shards=4)
    (lies,) = [each for each in findings if keys[0].prefix in each.subject and each.subject.startswith("shards ")]
    assert (lies.level, lies.remedy) == (Level.WARN, "add one: CLUSTER REPLICATE")
    assert any(f"the node 127.0.0.1:{replica.port} does not answer" in said for _, said, _ in of(findings, "cluster"))

    nobodys = other.command("CLUSTER", "SLOTS")[0][0]
    for node in cluster.primaries():
        node.command("CLUSTER", "DELSLOTS", nobodys)
    findings = await look(f"redis://127.0.0.1:{at.port}/0", shards=4)
    assert any(level is Level.FAIL and "1 slots are nobody's" in said for level, said, _ in of(findings, "cluster"))


async def test_keys_that_lie_in_several_slots_of_a_cluster_are_told(cluster: Cluster) -> None:
    """A prefix without a hash tag, and a metrics stream elsewhere."""
    ((_, told, remedy),) = of(await look(cluster.url), "server")
    assert 'the prefix "llm" lie in several slots' in told
    assert 'prefix = "{llm}"' in remedy
    ((_, told, remedy),) = of(await look(cluster.url, prefix="{llm}", channel="elsewhere"), "server")
    assert '"elsewhere" lies in another slot' in told
    assert "{llm}_router_metrics" in remedy


async def test_shards_that_nobody_serves_are_named(valkey_url: str) -> None:
    """And what an earlier layout has left."""
    keys = [*Layout("llm", 3).keys, Keys("llm")]
    with redis.Redis.from_url(valkey_url) as server:
        for each in (keys[0], keys[2]):
            server.xgroup_create(each.requests("normal"), GROUP, mkstream=True)
            server.xreadgroup(GROUP, "w1", {each.requests("normal"): ">"}, count=1)
        server.xadd(keys[1].requests("low"), {"prompt": "Why?"})
        findings = await look(valkey_url, shards=3, draining=(1,))
        ((level, told, _),) = of(findings, "shards")
        assert (level, told) == (Level.WARN, "3; nobody serves {llm:1}, where 1 requests wait, 0 run")
        assert of(findings, "draining")[0][1].startswith("nothing waits in the earlier layouts any more")
        assert of(findings, "queue") == [(Level.OK, "1 waiting, 0 running", "")]
        server.xadd("llm:requests", {"prompt": "Why?"})
        server.set("{llm:2}:dead", "x")
        findings = await look(valkey_url, shards=3, draining=(1,))
        assert of(findings, "draining")[0][0] is Level.WARN
        assert "{llm:2}:dead is not a stream but a string" in of(findings, "key")[0][1]
    assert not of(await look(valkey_url), "shards")


SENTINEL = SentinelView(Place("a", 3), primary=HERE, others=2, quorum=2, has_quorum=True)


@pytest.mark.parametrize(
    ("views", "subject", "level", "says"),
    [
        ([SENTINEL], "sentinels", Level.OK, "1 of 1 answer, and name 127.0.0.1:1"),
        (
            [SENTINEL, SENTINEL._replace(primary=THERE), SENTINEL],
            "sentinels",
            Level.WARN,
            "127.0.0.1:1 (2), 127.0.0.1:2 (1)",
        ),
        ([SENTINEL._replace(others=0)], "quorum", Level.WARN, "1 Sentinels know each other"),
        ([SENTINEL, SENTINEL._replace(has_quorum=None)], "quorum", Level.OK, "enough can be reached"),
        ([SENTINEL._replace(has_quorum=None)], "quorum", Level.WARN, "cannot tell"),
    ],
)
def test_views_of_sentinels_are_judged(views: Sequence[SentinelView], subject: str, level: Level, says: str) -> None:
    """What few of them say differently, or cannot say."""
    ((found, told, _),) = of(judge_sentinels(views), subject)
    assert found is level
    assert says in told


@pytest.mark.parametrize(
    ("replica", "level", "says"),
    [
        ({"state": "online", "offset": 900, "lag": 0}, Level.OK, "1: h:7 100 bytes behind"),
        ({"state": "online", "offset": 1000, "lag": 30}, Level.WARN, "silent for 30 s"),
        ({"state": "wait_bgsave"}, Level.WARN, "none: when this server goes"),
    ],
)
def test_replicas_are_judged_by_what_they_lack(replica: dict[str, Any], level: Level, says: str) -> None:
    """One that has not caught up yet is none; nothing is said of a server that nobody would replace."""
    info = {
        "role": "master",
        "connected_slaves": 1,
        "master_repl_offset": 1000,
        "slave0": {"ip": "h", "port": 7} | replica,
    }
    ((found, told, _),) = of(judge_replicas(info, "0", RedisConfig(), is_watched=True), "replicas")
    assert found is level
    assert says in told
    assert judge_replicas({"role": "master", "connected_slaves": 0}, "", RedisConfig(), is_watched=False) == []


def test_shard_on_a_node_that_is_gone_fails() -> None:
    """Whatever replicas it has."""
    view = ClusterView(ranges=((0, 16_383, (HERE, THERE)),), failing=(HERE,))
    assert of(judge_cluster(view, [Keys("{llm:0}")]), "shards {llm:0}")[0][0] is Level.FAIL
    nobody = ClusterView(ranges=(), failing=())
    assert of(judge_cluster(nobody, [Keys("{llm:0}")]), "shards {llm:0}")[0][1] == "their slots are nobody's"


def test_many_shards_are_counted_and_not_all_named() -> None:
    """One line for a thousand of them."""
    idle = [LaneState(lane="high", has_group=False, waiting=0, running=0, workers=frozenset())]
    keys = [each.prefix for each in Layout("llm", 1000).keys]
    ((level, told, _),) = of(judge_shards(dict.fromkeys(keys, idle), keys), "shards")
    assert level is Level.WARN
    assert "{llm:7} and 992 more" in told
    assert len(told) < 200
