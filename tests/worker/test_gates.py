"""What a well-formed request has to pass before anybody is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.request import Request
from llm_routerd.worker.gates import GATES, Asked, Refusal
from llm_routerd.worker.placement import placements
from tests.support.workers import DAEMON, make_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_routerd.config.tree import Config

CONFIG = make_config(daemon=replace(DAEMON, max_deliveries=3))


def refusals(
    model: str = "default", deliveries: int = 1, *, request_id: str = "r1", shard: int = 0, config: Config = CONFIG
) -> list[Refusal]:
    """What the gates have against it, each for itself, where it stands in this shard."""
    request = Request(id=request_id, messages=(), model=model)
    asked = Asked(request, "1-0", deliveries, placements(config)[shard], config)
    return [refusal for gate in GATES if (refusal := gate(asked)) is not None]


@pytest.mark.parametrize("model", ["default", "local", "cloud"])
def test_request_for_a_chain_or_a_deployment_passes(model: str) -> None:
    """Up to the last delivery that is allowed."""
    assert refusals(model, deliveries=3) == []


def test_unknown_model_may_be_known_elsewhere() -> None:
    """Another worker may have a newer configuration."""
    (refusal,) = refusals("locl")
    assert (refusal.code, refusal.elsewhere, refusal.was_begun) == (ErrorCode.UNKNOWN_MODEL, True, False)
    assert refusal.message == "$.model: no chain or deployment has this name; did you mean 'local'?"


def test_request_that_has_brought_down_its_workers_is_poison() -> None:
    """Its events stream is its own, and tells of the attempts."""
    (refusal,) = refusals(deliveries=4)
    assert (refusal.code, refusal.elsewhere, refusal.was_begun) == (ErrorCode.POISONED, False, True)
    assert refusal.message == "3 workers died while they had this request"


def test_first_gate_that_refuses_speaks() -> None:
    """A request that is both goes to another worker, which counts its deliveries, too."""

    def codes() -> Iterator[ErrorCode]:
        for refusal in refusals("nobody", deliveries=9):
            yield refusal.code

    assert list(codes()) == [ErrorCode.UNKNOWN_MODEL, ErrorCode.POISONED]


def test_request_stands_in_the_shard_of_its_id_or_is_refused() -> None:
    """Elsewhere nobody would find its events; the message says where it belongs."""
    config = replace(CONFIG, redis=replace(CONFIG.redis, shards=4))
    assert refusals(request_id="a", shard=3, config=config) == []
    (refusal,) = refusals(request_id="a", shard=1, config=config)
    assert (refusal.code, refusal.elsewhere, refusal.was_begun) == (ErrorCode.INVALID_REQUEST, False, False)
    assert refusal.message == "by its id this request belongs to shard 3 of 4: add it to {llm:3}:requests"


def test_request_without_an_id_belongs_where_it_was_put() -> None:
    """Its id is the entry's, which nobody could know before."""
    config = replace(CONFIG, redis=replace(CONFIG.redis, shards=4))
    assert [refusals(request_id="1-0", shard=shard, config=config) for shard in range(4)] == [[]] * 4


def test_request_may_stand_where_an_earlier_layout_puts_it() -> None:
    """`a` is in shard 7 of 16, and in shard 3 of 4, whose lanes both layouts have."""
    config = replace(CONFIG, redis=replace(CONFIG.redis, shards=16, draining=(4,)))
    assert refusals(request_id="a", shard=7, config=config) == []
    assert refusals(request_id="a", shard=3, config=config) == []
    (refusal,) = refusals(request_id="a", shard=1, config=config)
    assert "{llm:7}:requests" in refusal.message
