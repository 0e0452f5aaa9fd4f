"""The end of a worker that a fault of ours has brought about: what is in flight goes back to the others at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llm_routerd.logs import get_logger
from llm_routerd.queue.connection import RedisError, describe
from llm_routerd.queue.parting import SCRIPTS, part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.queue.broker import Broker
    from llm_routerd.queue.connection import ConnectionFactory
    from llm_routerd.worker.inflight import InFlight
    from llm_routerd.worker.supervisor import Supervisor

log = get_logger()

ABANDON_SECONDS = 0.7  # longest time for all of it; what Redis has not heard by then, the leases will tell


async def abandon(
    left: Sequence[InFlight],
    *,
    broker: Broker,
    tasks: Supervisor,
    keepers: Sequence[asyncio.Task[None]],
    is_pipe_alive: bool,
    factory: ConnectionFactory,
) -> None:
    """Break off what is in flight, and hand back all that this consumer owns; nothing more may be read by now.

    Args:
        left: what is in flight.
        broker: this worker's side of the queue.
        tasks: of the process.
        keepers: those of them that take up entries.
        is_pipe_alive: whether final events that are on their way may still arrive.
        factory: makes a connection that the fault cannot have spoilt.
    """
    for item in left:
        item.stop("drain")
    # At once, for a link may be slow: it is only used when nothing of ours can be under way on the other any more.
    connecting = asyncio.create_task(factory.connect(loads=SCRIPTS), name="connect-last")
    try:
        async with asyncio.timeout(ABANDON_SECONDS):
            await tasks.end(*keepers)
            running = [item.task for item in left if item.task is not None]
            if running and is_pipe_alive:
                await asyncio.wait(running, timeout=ABANDON_SECONDS / 2)
            given = await part(connecting, broker, timeout_seconds=ABANDON_SECONDS)
            log.info("handed_back", count=given)
    except (RedisError, OSError, TimeoutError) as error:
        log.warning("goodbye_unheard", in_flight=len(left), why=describe(error))
    finally:
        connecting.cancel()
        for end in await asyncio.gather(connecting, return_exceptions=True):
            if not isinstance(end, BaseException):
                await end.disconnect(nowait=True)
