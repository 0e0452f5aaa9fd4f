"""What the other tests of several servers stand on: they fail over, and come back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis

from tests.support.eventually import waited_for

if TYPE_CHECKING:
    from tests.support.clusters import Cluster
    from tests.support.sentinels import Sentinels
    from tests.support.servers import ValkeyProcess

KEY, SLOT = "{llm}:requests", 7494


def has_all(sentinels: Sentinels) -> ValkeyProcess:
    """All is in order, and every server has what was written; returns the primary."""
    primary = sentinels.settled()

    def has_it() -> bool | None:
        return all(server.command("XLEN", KEY) == 1 for server in sentinels.servers if server.answers) or None

    waited_for("what was written, at every server", has_it, seconds=30.0, passing=redis.RedisError)
    return primary


def test_sentinels_promote_a_replica_for_a_primary_that_is_asked_killed_or_stopped(sentinels: Sentinels) -> None:
    """Data that a replica had is there after each, and who comes back follows the new primary."""
    first = sentinels.primary()
    first.command("XADD", KEY, "*", "prompt", "hello")
    has_all(sentinels)
    second = sentinels.failover()
    assert second is not first
    assert has_all(sentinels) is second
    assert sentinels.kill_primary() is second
    third = sentinels.promoted(second)
    sentinels.restart(second)
    assert has_all(sentinels) is third
    assert sentinels.stop_primary() is third
    fourth = sentinels.promoted(third)
    sentinels.cont(third)
    assert sentinels.settled() is fourth
    assert fourth.command("XLEN", KEY) == 1
    with pytest.raises(redis.ReadOnlyError):
        third.command("XADD", KEY, "*", "prompt", "hello")


def test_slot_is_served_by_another_node_after_a_failover_and_a_kill(cluster: Cluster) -> None:
    """The replica has its data."""
    first = cluster.node_of(SLOT)
    first.command("XADD", KEY, "*", "prompt", "hello")
    second = cluster.failover(SLOT)
    assert second is not first
    cluster.settled()
    cluster.kill(second)
    assert cluster.promoted(SLOT, second) is first
    cluster.restart(second)
    cluster.settled()
    cluster.stop(first)
    assert cluster.promoted(SLOT, first) is second
    cluster.cont(first)
    cluster.settled()
    assert second.command("XLEN", KEY) == 1
    with pytest.raises(redis.exceptions.MovedError):
        first.command("XLEN", KEY)


@pytest.mark.parametrize("atomic", [False, True])
def test_slot_moves_with_its_keys(cluster: Cluster, *, atomic: bool) -> None:
    """Key by key, and all at once where the servers know that."""
    if atomic and not cluster.moves_atomically():
        pytest.skip("CLUSTER MIGRATESLOTS came with Valkey 9")
    source, target = cluster.node_of(SLOT), cluster.node_of(0)
    assert source is not target
    for number in range(12):
        source.command("XADD", f"{{llm}}:events:{number}", "*", "type", "token")
    cluster.move_slot(SLOT, target, atomic=atomic)
    assert cluster.node_of(SLOT) is target
    cluster.settled()
    assert len(target.command("KEYS", "{llm}:*")) == 12
    assert source.command("KEYS", "{llm}:*") == []
