"""The request stands in the shard that its id belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.worker.gates.gate import Refusal

if TYPE_CHECKING:
    from llm_routerd.worker.gates.gate import Asked


def is_in_its_shard(asked: Asked) -> Refusal | None:
    """Elsewhere its events would not be found, nor a copy of it recognised.  One without an id belongs where it is."""
    request_id, placement = asked.request.id, asked.placement
    if request_id == asked.entry or placement.is_home_of(request_id):
        return None
    layout, _ = placement.homes[0]
    shard = layout.shard_of(request_id)
    right = layout.keys[shard].requests("normal")
    message = f"by its id this request belongs to shard {shard} of {layout.shards}: add it to {right}"
    return Refusal(code=ErrorCode.INVALID_REQUEST, message=message)
