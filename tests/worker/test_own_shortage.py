"""While a worker lacks something itself it reads nothing more, says so, and loses nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.protocol.call import BackendError, Delta, Finish
from llm_routerd.protocol.codes import AttemptCode, Lack
from tests.support.endings import final_of, nothing_left
from tests.support.eventually import eventually
from tests.support.fakes import USAGE, FakeBackend
from tests.support.queue import add, open_client
from tests.support.workers import run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from llm_routerd.protocol.call import Call


async def test_nothing_is_read_during_a_shortage_and_all_is_answered_after_it(valkey_url: str) -> None:
    """What was read is kept, what was not waits in Redis; not ready meanwhile, with the reason."""
    is_short = True

    async def script(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
        if is_short:
            reason = "our own shortage: no more files can be opened in this process"
            raise BackendError(AttemptCode.INTERNAL, reason, retryable=True, lack=Lack.RESOURCES)
        yield Finish(finish_reason="stop", usage=USAGE, text="hi")

    local, cloud = FakeBackend(script), FakeBackend()
    async with open_client(valkey_url) as client, run_worker(valkey_url, {"local": local, "cloud": cloud}) as worker:
        entries = [await add(client)]
        await eventually(lambda: not worker.status().ready)
        assert "no more files" in worker.status().why
        assert worker.resources.shortage.waiting == 1
        read_before = worker.in_flight
        # The read that waited in Redis when it began may bring one more.
        entries += [await add(client) for _ in range(4)]
        calls = len(local.calls)
        await eventually(lambda: len(local.calls) > calls + 2)
        assert worker.in_flight <= read_before + 1
        is_short = False
        assert {(await final_of(client, entry))[0] for entry in entries} == {"result"}
        await eventually(lambda: worker.status().ready)
        assert cloud.calls == []
        await nothing_left(client)
