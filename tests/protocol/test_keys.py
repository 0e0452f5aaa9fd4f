"""How a queue is laid out over shards: what every producer works out for itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from llm_routerd.protocol.keys import Keys, Layout


def test_one_shard_is_the_layout_that_ever_was() -> None:
    """Nobody who has one Redis has to know of shards."""
    assert Layout("llm").keys == (Keys("llm"),)
    assert Layout("llm").keys_of("any").events("any") == "llm:events:any"
    assert Layout("{llm}").keys == (Keys("{llm}"),)
    assert Layout("llm").metrics_channel(0, "llm_router_metrics") == "llm_router_metrics"


@pytest.mark.parametrize(
    ("prefix", "first"),
    [
        ("llm", "{llm:0}"),
        ("{llm}", "{llm:0}"),
        ("home:{llm}:queue", "home:{llm:0}:queue"),
        ("a:{b}:{c}", "a:{b:0}:{c}"),  # Redis hashes the first tag
        ("{}llm", "{llm:0}"),  # an empty tag is none
        ("{llm", "{llm:0}"),
        ("{}a{b}", "{ab:0}"),
    ],
)
def test_a_shard_is_the_hash_tag_of_its_keys(prefix: str, first: str) -> None:
    """It stands in the prefix, so that whatever is built on it lies in one slot."""
    layout = Layout(prefix, 3)
    assert layout.keys[0].prefix == first
    assert len({keys.prefix for keys in layout.keys}) == 3


@pytest.mark.parametrize("prefix", ["llm", "{llm}", "home:{llm}:queue", "a:{b}:{c}", "{}llm"])
@given(request_id=st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable()))
def test_all_keys_of_a_shard_are_in_its_slot(prefix: str, request_id: str) -> None:
    """Scripts reach them together."""
    layout = Layout(prefix, 4)
    for shard, keys in enumerate(layout.keys):
        names = (
            *keys.lanes, keys.workers, keys.boxes, keys.box_calls, keys.box_waiting, keys.dead, keys.events(request_id),
            layout.metrics_channel(shard, "{m}x"),
        )  # fmt: skip
        assert len({key_slot(name.encode()) for name in names}) == 1


@pytest.mark.parametrize(
    ("request_id", "of_4", "of_16"),
    [("123456789", 3, 3), ("a", 3, 7), ("0f8fad5bd9cb469fa16570867728950e", 0, 12), ("Grüße", 0, 12)],
)
def test_the_shard_of_an_id_is_known_to_every_language(request_id: str, of_4: int, of_16: int) -> None:
    """Golden values, for whoever writes a producer."""
    assert Layout("llm", 4).shard_of(request_id) == of_4
    assert Layout("llm", 16).shard_of(request_id) == of_16
    assert key_slot(request_id.encode()) % 16 == of_16  # CLUSTER KEYSLOT says the same, where shards divide 16,384
