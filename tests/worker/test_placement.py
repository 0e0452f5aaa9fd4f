"""Which shards a worker serves."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from llm_routerd.protocol.keys import Layout
from llm_routerd.worker.placement import placements
from tests.support.workers import make_config

CONFIG = make_config()


def served(**redis: Any) -> list[tuple[str, str]]:
    """The prefix and the metrics stream of each."""
    config = replace(CONFIG, redis=replace(CONFIG.redis, **redis))
    return [(each.keys.prefix, each.metrics_channel) for each in placements(config)]


def test_plain_queue_is_one_shard_that_nobody_needs_to_name() -> None:
    """It is what there was before there were shards."""
    (only,) = placements(CONFIG)
    assert (only.keys.prefix, only.metrics_channel, only.name) == ("llm", "llm_router_metrics", "")


def test_worker_serves_all_shards_or_those_that_it_is_told() -> None:
    """Each with a metrics stream in its own slot."""
    assert served(shards=3) == [(f"{{llm:{n}}}", f"{{llm:{n}}}:llm_router_metrics") for n in range(3)]
    assert [prefix for prefix, _ in served(shards=3, serve=(2, 0))] == ["{llm:2}", "{llm:0}"]


def test_earlier_layouts_are_served_whole_and_once() -> None:
    """Shard 0 of two and of four is the same."""
    assert [prefix for prefix, _ in served(shards=4, draining=(1, 2))] == [
        "{llm:0}",
        "{llm:1}",
        "{llm:2}",
        "{llm:3}",
        "llm",
    ]
    assert ("llm", "llm_router_metrics") in served(shards=4, draining=(1,))
    assert [prefix for prefix, _ in served(shards=2, draining=(4,), serve=(1,))] == [
        "{llm:1}",
        "{llm:0}",
        "{llm:2}",
        "{llm:3}",
    ]


def test_shard_is_named_as_soon_as_there_are_several() -> None:
    """Also the plain one, while it is drained."""
    config = replace(CONFIG, redis=replace(CONFIG.redis, shards=2, draining=(1,)))
    assert [each.name for each in placements(config)] == ["{llm:0}", "{llm:1}", "llm"]


def test_shard_is_home_of_what_any_layout_puts_there_though_it_is_served_for_an_earlier_one() -> None:
    """Producers use the new layout: what they add to {llm:0} belongs there, though `serve` does not name it."""
    config = replace(CONFIG, redis=replace(CONFIG.redis, shards=4, draining=(3,), serve=(1,)))
    zero = next(each for each in placements(config) if each.keys.prefix == "{llm:0}")
    ids = [f"r{n}" for n in range(200)]
    assert all(zero.is_home_of(each) for shards in (3, 4) for each in ids if Layout("llm", shards).shard_of(each) == 0)
    assert not all(map(zero.is_home_of, ids))
