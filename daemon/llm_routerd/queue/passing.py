"""Requests for a model that this worker does not know, and another does: they differ while a change is rolled out.

The other one is found in what the workers tell each other with their renewals, and the entry is handed back for such a
one: no other takes it while one lives.  When none does any longer, whoever takes it answers `unknown_model`.
That nobody is found proves nothing until every living worker has been able to tell of itself: after Redis was away, the
entry is put aside for as long as leases are left alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from llm_routerd.protocol.keys import handed_back_for
from llm_routerd.queue import scripts

if TYPE_CHECKING:
    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.deliveries import Delivery

Passing = Literal["passed", "parked", "unknown", "lost"]


async def pass_on(
    broker: Broker, delivery: Delivery, model: str, *, server_ms: float, is_complete: bool = True
) -> Passing:
    """Hand an entry back for a worker that knows the model.

    Args:
        broker: this worker's side of the queue.
        delivery: the entry.
        model: that it asks for.
        server_ms: the server's time now, as far as it is known.
        is_complete: whether every living worker has been able to tell of itself.

    Returns:
        "passed"; "unknown": none lives; "lost": it is not ours any more; "parked": one may live, and will be found.
    """
    call = scripts.pass_on(
        requests=broker.keys.requests(delivery.lane),
        consumer=broker.consumer,
        entry=delivery.entry,
        registry=broker.keys.workers,
        model=model,
        owner=handed_back_for(model),
        is_complete=is_complete,
        asked_ms=round(server_ms),
        late_ms=broker.late_ms,
    )
    reply: bytes = await broker.pipe.run_script(call)
    verdict: Passing = reply.decode()  # type: ignore[assignment]  # as pass_on.lua has it
    return verdict
