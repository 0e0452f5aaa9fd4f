"""Marks in an events stream that its readers do not see: consumer groups without consumers, which go when it goes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from llm_routerd.queue.connection import ResponseError

if TYPE_CHECKING:
    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.deliveries import Delivery

CANCELLED = "cancelled"


async def counts_cancellation(broker: Broker, delivery: Delivery, request_id: str) -> bool:
    """Whether a cancelled request is this delivery's to count: the first to ask has it, of all copies and workers.

    May be repeated after a lost reply: the place where the group begins says who made it.  Where no group can be made
    (a right is missing, the stream has expired), everybody has it.
    """
    key = broker.keys.events(request_id)
    who = f"{broker.consumer} {delivery.lane} {delivery.entry}"
    mark = f"{int.from_bytes(hashlib.sha256(who.encode()).digest()[:6], 'big')}-0"
    try:
        await broker.pipe.call("XGROUP", "CREATE", key, CANCELLED, mark)
    except ResponseError as error:
        if "BUSYGROUP" not in str(error):
            return True
    else:
        return True
    try:
        groups = await broker.pipe.call("XINFO", "GROUPS", key)
    except ResponseError:
        return True
    infos = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in groups]
    return any(info[b"name"] == CANCELLED.encode() and info[b"last-delivered-id"] == mark.encode() for info in infos)
