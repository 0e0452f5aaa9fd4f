"""Marks in an events stream that its readers do not see: consumer groups without consumers, which go when it goes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.queue import scripts
from llm_routerd.queue.connection import ResponseError
from llm_routerd.queue.deliveries import places_of

if TYPE_CHECKING:
    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.deliveries import Delivery

CANCELLED = "cancelled"


async def counts_cancellation(broker: Broker, delivery: Delivery, request_id: str) -> bool:
    """Whether a cancelled request is this delivery's to count: of all copies and workers one has it.

    That is the entry that was begun, which knows what it has cost, or the first to ask where none was.  May be repeated
    after a lost reply: the place where the group begins says who made it.  Where no group can be made (a right is
    missing, the stream has expired), everybody has it.
    """
    key = broker.keys.events(request_id)
    if not await _may_own(broker, key, delivery):
        return False
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


async def _may_own(broker: Broker, key: str, delivery: Delivery) -> bool:
    """Whether an events stream is this entry's, or nobody's."""
    try:
        first = await broker.pipe.call("XRANGE", key, "-", "+", "COUNT", 1)
    except ResponseError:
        return True
    if not first or first[0][0] == FINAL_ID.encode():
        return True
    return bool(await broker.pipe.run_script(scripts.owned(streams=(key,), sought=places_of((delivery,)))))
