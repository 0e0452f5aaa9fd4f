"""Requests for a model that this worker does not know, and another does: they differ while a change is rolled out.

The other one is found in what the workers tell each other with their renewals, and the entry is handed back for such a
one: no other takes it while one lives.  When none does any longer, whoever takes it answers `unknown_model`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from llm_routerd.queue import scripts
from llm_routerd.queue.keys import GROUP, HANDED_BACK_IDLE_MS, handed_back_for

if TYPE_CHECKING:
    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.deliveries import Delivery

Passing = Literal["passed", "unknown", "lost"]


async def pass_on(broker: Broker, delivery: Delivery, model: str) -> Passing:
    """Hand an entry back for a worker that knows the model; "unknown": none lives, "lost": it is not ours any more."""
    keys = (broker.keys.requests(delivery.lane),)
    args = (
        GROUP, broker.consumer, delivery.entry, broker.keys.workers, model, handed_back_for(model), HANDED_BACK_IDLE_MS,
    )  # fmt: skip
    reply: bytes = await broker.pipe.run_script(scripts.PASS_ON, keys, args)
    verdict: Passing = reply.decode()  # type: ignore[assignment]  # as pass_on.lua has it
    return verdict
