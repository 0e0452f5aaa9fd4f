"""What the simulation of shards has found, and what docs/scale.md advises by it."""

from __future__ import annotations

import random

import pytest

from llm_routerd.protocol.keys import Layout
from tests.simulation import tenants
from tests.simulation.layout import SLOTS, busiest, ids_by_kind, ranges_of, shard_shares, shards_of_nodes
from tests.simulation.shards import AMONG, PLACES, WORKERS, busiest_load, fillings, teams
from tests.simulation.waiting import everybody, simulate


@pytest.fixture
def rng() -> random.Random:
    """The same at every run."""
    return random.Random(7)


def test_slots_are_dealt_as_redis_cli_deals_them() -> None:
    """`redis-cli --cluster create` says so of three nodes; none is left out, whatever their number."""
    assert [(part[0], part[-1]) for part in ranges_of(3)] == [(0, 5460), (5461, 10922), (10923, 16383)]
    assert [slot for part in ranges_of(12) for slot in part] == list(range(SLOTS))


def test_shards_as_they_fall_leave_nodes_empty() -> None:
    """CRC16 is linear, and tags that differ in a digit lie a quarter of the slots apart: so slots are placed by hand."""
    assert shards_of_nodes(Layout("llm", 16), 3) == [8, 4, 4]
    assert shards_of_nodes(Layout("llm", 16), 12).count(0) == 8
    assert busiest(shards_of_nodes(Layout("llm", 64), 12)) > 1.5


@pytest.mark.parametrize("kind", list(ids_by_kind(random.Random(7), 1)))
@pytest.mark.parametrize("shards", [16, 24])
def test_ids_of_every_kind_fall_evenly(kind: str, shards: int, rng: random.Random) -> None:
    """No shard gets an eighth more than its part."""
    ids = ids_by_kind(rng, 50_000)[kind]
    assert len(set(ids)) == len(ids)
    assert busiest(shard_shares(Layout("llm", shards), ids)) < 1.125


@pytest.mark.parametrize("kind", tenants.KINDS)
def test_size_of_tenants_does_not_matter_where_the_id_chooses(kind: str, rng: random.Random) -> None:
    """And it does where the producer chooses by tenant."""
    sizes, layout = tenants.sizes_of(kind), Layout("llm", AMONG)
    assert busiest(tenants.shares_by_id(layout, sizes, 50_000, rng)) < 1.125
    assert busiest(tenants.shares_by_tenant(layout, sizes)) > (1.4 if kind == "alike" else 3)


def test_workers_that_serve_all_shards_need_no_even_shards(rng: random.Random) -> None:
    """They wait as long at full shards as at even ones; the others do not wait for the fullest."""
    team, uneven = everybody(WORKERS, AMONG, PLACES), fillings(rng)["by tenant, one has half"]
    even = simulate(team, [1 / AMONG] * AMONG, load=0.9, requests=20_000, rng=rng)
    waited = simulate(team, uneven, load=0.9, requests=20_000, rng=rng)
    full = uneven.index(max(uneven))
    assert waited.quantile(0.99) < even.quantile(0.99) + 2
    assert waited.quantile(0.99, [shard for shard in range(AMONG) if shard != full]) <= waited.quantile(0.99, [full])
    assert max(waited.used) - min(waited.used) < 0.05


def test_parted_workers_wait_longer_the_smaller_their_groups(rng: random.Random) -> None:
    """Also where shards are even; two groups cost least."""
    waits = {
        groups: simulate(team, [1 / AMONG] * AMONG, load=0.9, requests=20_000, rng=rng).quantile(0.99)
        for groups, team in teams().items()
    }
    assert waits[1] < waits[4] < waits[8]


def test_group_of_a_full_shard_cannot_keep_up_while_others_idle(rng: random.Random) -> None:
    """At 0.7 of what all could do."""
    shares = fillings(rng)["by tenant, one has half"]
    team = teams()[8]
    assert busiest_load(team, shares, 0.7) > 2
    waited = simulate(team, shares, load=0.7, requests=20_000, rng=rng)
    assert waited.quantile(0.5) > 60
    assert min(waited.used) < 0.2
    assert busiest_load(teams()[1], shares, 0.7) == pytest.approx(0.7)
