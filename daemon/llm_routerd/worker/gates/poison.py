"""The request has not brought down its worker time and again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.worker.gates.gate import Refusal

if TYPE_CHECKING:
    from llm_routerd.worker.gates.gate import Asked


def is_no_poison(asked: Asked) -> Refusal | None:
    """After `max_deliveries` crashes it is not tried once more."""
    if asked.deliveries <= asked.config.daemon.max_deliveries:
        return None
    message = f"{asked.deliveries - 1} workers died while they had this request"
    return Refusal(code=ErrorCode.POISONED, message=message, was_begun=True)
