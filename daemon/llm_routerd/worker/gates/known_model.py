"""The request names a chain or a deployment that there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.routing.chains import resolve, unknown_model
from llm_routerd.worker.gates.gate import Refusal

if TYPE_CHECKING:
    from llm_routerd.worker.gates.gate import Asked


def has_known_model(asked: Asked) -> Refusal | None:
    """Workers differ while a change is rolled out: what this one does not know another may."""
    model = asked.request.model
    if resolve(asked.config, model) is not None:
        return None
    return Refusal(code=ErrorCode.UNKNOWN_MODEL, message=unknown_model(asked.config, model), elsewhere=True)
