"""Whether a client is told to come again."""

from __future__ import annotations

import pytest

from llm_routerd.gateway.fault import fault_of
from llm_routerd.protocol.codes import AttemptCode, ErrorCode
from llm_routerd.protocol.events import Failed
from llm_routerd.protocol.outcome import AttemptSummary, Outcome


def failed(*codes: str, code: str = "chain_exhausted") -> Failed:
    """An end after these attempts."""
    attempts = tuple(
        AttemptSummary(
            model="m", deployment="d", outcome=Outcome.REJECTED, code=AttemptCode(each), reason="", latency_ms=1
        )
        for each in codes
    )
    return Failed(request_id="r", code=ErrorCode(code), message="none", attempts=attempts)


@pytest.mark.parametrize(
    ("codes", "is_lasting"),
    [
        ([], True),  # no deployment has its key
        (["refusal"], True),
        (["refusal", "refusal"], True),
        (["refusal", "cooldown"], False),
        (["timeout"], False),
        (["cooldown"], False),
    ],
)
def test_whoever_asks_again_in_vain_is_told_not_to(codes: list[str], is_lasting: bool) -> None:
    """Clients ask twice more after a 503, and each time models are asked."""
    fault = fault_of(failed(*codes), "r")
    assert (fault.status, fault.is_lasting, fault.retry_after_seconds is None) == (503, is_lasting, is_lasting)


def test_a_prompt_that_is_too_long_for_all_is_the_clients_affair() -> None:
    """A coding agent shortens it then."""
    assert fault_of(failed("context_window", "cooldown"), "r").code == "context_length_exceeded"
    assert fault_of(failed("context_window", "timeout"), "r").code == "chain_exhausted"
