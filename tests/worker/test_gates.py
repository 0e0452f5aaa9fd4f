"""What a well-formed request has to pass before anybody is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.request import Request
from llm_routerd.worker.gates import GATES, Asked, Refusal
from tests.support.workers import DAEMON, make_config

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG = make_config(daemon=replace(DAEMON, max_deliveries=3))


def refusals(model: str = "default", deliveries: int = 1) -> list[Refusal]:
    """What the gates have against it, each for itself."""
    asked = Asked(Request(id="1-0", messages=(), model=model), deliveries, CONFIG)
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
