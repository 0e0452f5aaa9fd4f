"""What Redis refuses for good: a model is asked once, and what it said is kept until it can be told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from llm_routerd.protocol.events import FINAL_ID
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, says, waits_for
from tests.support.queue import add, open_client
from tests.support.workers import DAEMON, make_config, run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEY = "llm:events:r1"
LEASE_SECONDS = 0.2
# Each command that a request's way takes, in a script or by itself.
COMMANDS = [
    "evalsha", "xadd", "xack", "xdel", "xrange", "xrevrange", "xpending", "xclaim", "pexpire", "pttl", "publish", "time",
    "copy", "rename",
]  # fmt: skip


@pytest.fixture
async def admin(valkey_url: str) -> AsyncIterator[Any]:
    """A client that may do everything, while the rights of the worker's user are taken and given back."""
    async with open_client(valkey_url) as client:
        await client.execute_command("ACL", "SETUSER", "w", "on", ">pw", "~*", "&*", "+@all")
        try:
            yield client
        finally:
            await client.execute_command("ACL", "DELUSER", "w")


def as_worker(valkey_url: str) -> str:
    """The URL with the worker's user."""
    return valkey_url.replace("://", "://w:pw@", 1)


CONFIG = make_config(daemon=replace(DAEMON, lease_seconds=LEASE_SECONDS))  # so that what is dropped comes back soon


async def is_over(admin: Any) -> bool:
    """The entry is gone, and there is one end: a final event or a dead letter."""
    if await admin.xlen("llm:requests"):
        return False
    final = await admin.xrange(KEY, FINAL_ID, FINAL_ID)
    letters = await admin.xlen("llm:dead")
    assert len(final) <= 1
    assert letters <= 1
    assert len(final) + letters >= 1
    return True


async def until_over(admin: Any) -> None:
    """Wait for it."""
    async with asyncio.timeout(20):
        while not await is_over(admin):  # noqa: ASYNC110 - Redis has no event for this
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("moment", ["from the start", "after the model was asked"])
@pytest.mark.parametrize("command", COMMANDS)
async def test_command_that_is_refused_for_good_costs_no_further_call(
    valkey_url: str, admin: Any, command: str, moment: str
) -> None:
    """Whatever it is; and when the right is there again, what there is to say is said."""
    gate = asyncio.Event()
    backend = FakeBackend(waits_for(gate))
    async with run_worker(as_worker(valkey_url), {"local": backend}, config=CONFIG) as worker:
        if moment == "from the start":
            await admin.execute_command("ACL", "SETUSER", "w", f"-{command}")
            gate.set()
        await add(admin, id="r1")
        if moment == "after the model was asked":
            await eventually(lambda: backend.running == 1)
            await admin.execute_command("ACL", "SETUSER", "w", f"-{command}")
            gate.set()
        await asyncio.sleep(5 * LEASE_SECONDS)
        asked = len(backend.calls)
        await admin.execute_command("ACL", "SETUSER", "w", f"+{command}")
        await until_over_or_restart(worker, admin, valkey_url, backend)
        assert asked <= 1, asked
        assert len(backend.calls) <= DAEMON.max_deliveries


async def until_over_or_restart(worker: Any, admin: Any, valkey_url: str, backend: FakeBackend) -> None:
    """A worker that cannot renew its leases ends, and systemd starts another."""
    del worker
    try:
        async with asyncio.timeout(5):
            while not await is_over(admin):  # noqa: ASYNC110 - Redis has no event for this
                await asyncio.sleep(0.02)
    except TimeoutError:
        async with run_worker(as_worker(valkey_url), {"local": backend}, consumer="w2", config=CONFIG):
            await until_over(admin)


@pytest.mark.parametrize("key", ["llm_router_metrics", "llm:dead"])
async def test_key_without_a_right_stands_in_no_ones_way(
    valkey_url: str, admin: Any, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer does without metrics, a refusal without its dead letter."""
    others = {"llm_router_metrics", "llm:dead", "llm:requests", "llm:requests:high", "llm:requests:low"} - {key}
    await admin.execute_command("ACL", "SETUSER", "w", "resetkeys", "~llm:events:*", *(f"~{other}" for other in others))
    backend = FakeBackend(says("x"))
    async with run_worker(as_worker(valkey_url), {"local": backend}, config=CONFIG) as worker:
        await add(admin, id="r1")
        await add(admin, id="bad", nonsense="1")
        async with asyncio.timeout(10):
            while await admin.xlen("llm:requests"):  # noqa: ASYNC110 - Redis has no event for this
                await asyncio.sleep(0.02)
        await eventually(lambda: worker.status().ready)
    assert [fields["type"] for _, fields in await admin.xrange(KEY, FINAL_ID, FINAL_ID)] == ["result"]
    assert [fields["type"] for _, fields in await admin.xrange("llm:events:bad", FINAL_ID, FINAL_ID)] == ["error"]
    assert len(backend.calls) == 1
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("key", ["llm_router_metrics", "llm:dead"])
async def test_key_of_another_type_stands_in_no_ones_way(valkey_url: str, admin: Any, key: str) -> None:
    """Nor does that; the final events stand, and the entries are done with."""
    await admin.set(key, "somebody's")
    backend = FakeBackend(says("x"))
    async with run_worker(as_worker(valkey_url), {"local": backend}, config=CONFIG):
        await add(admin, id="r1")
        await add(admin, id="bad", nonsense="1")
        async with asyncio.timeout(10):
            while await admin.xlen("llm:requests"):  # noqa: ASYNC110 - Redis has no event for this
                await asyncio.sleep(0.02)
    assert [fields["type"] for _, fields in await admin.xrange(KEY, FINAL_ID, FINAL_ID)] == ["result"]
    assert [fields["type"] for _, fields in await admin.xrange("llm:events:bad", FINAL_ID, FINAL_ID)] == ["error"]
    assert len(backend.calls) == 1


async def test_worker_whose_answers_are_not_taken_says_so_and_is_not_ready(valkey_url: str, admin: Any) -> None:
    """The answer is kept, the lease renewed, and nobody is asked again; then it is delivered as it was."""
    gate = asyncio.Event()
    backend = FakeBackend(waits_for(gate, text="kept"))
    async with run_worker(as_worker(valkey_url), {"local": backend}, config=CONFIG) as worker:
        await add(admin, id="r1")
        await eventually(lambda: backend.running == 1)
        await admin.execute_command("ACL", "SETUSER", "w", "-xadd")
        gate.set()
        await eventually(lambda: not worker.status().ready)
        assert "xadd" in worker.status().why
        await asyncio.sleep(4 * LEASE_SECONDS)
        assert worker.in_flight == 1
        await admin.execute_command("ACL", "SETUSER", "w", "+xadd")
        await until_over(admin)
        await eventually(lambda: worker.status().ready)
    ((_, fields),) = await admin.xrange(KEY, FINAL_ID, FINAL_ID)
    assert fields["type"] == "result"
    assert "kept" in fields["data"]
    assert len(backend.calls) == 1


@pytest.mark.parametrize("command", ["xadd", "xrevrange", "xack"])
async def test_answer_that_is_paid_is_kept_until_it_can_be_told(
    valkey_url: str, admin: Any, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker is not ready meanwhile; nobody is blamed, and nothing stands in the answer's place."""
    gate = asyncio.Event()
    backend = FakeBackend(waits_for(gate))
    async with run_worker(as_worker(valkey_url), {"local": backend}, config=CONFIG) as worker:
        await add(admin, id="r1")
        await eventually(lambda: backend.running == 1)
        await admin.execute_command("ACL", "SETUSER", "w", f"-{command}")
        gate.set()
        await eventually(lambda: not worker.status().ready)
        assert await admin.xlen("llm:dead") == 0
        await admin.execute_command("ACL", "SETUSER", "w", f"+{command}")
        async with asyncio.timeout(10):
            await until_over(admin)
        await eventually(lambda: worker.status().ready)
    assert [fields["type"] for _, fields in await admin.xrange(KEY, FINAL_ID, FINAL_ID)] == ["result"]
    assert (len(backend.calls), await admin.xlen("llm:dead")) == (1, 0)
    assert "Traceback" not in caplog.text


async def test_worker_whose_requests_all_become_dead_letters_is_not_ready(valkey_url: str, admin: Any) -> None:
    """A right on the events streams is missing: each is kept, the worker says why, and is ready with the next event."""
    lanes = ("llm:requests", "llm:requests:high", "llm:requests:low")
    keys = (*lanes, "llm:dead", "llm_router_metrics", "llm:workers")
    await admin.execute_command("ACL", "SETUSER", "w", "resetkeys", *(f"~{key}" for key in keys))
    backend = FakeBackend(says("x"))
    async with run_worker(as_worker(valkey_url), {"local": backend}, config=CONFIG) as worker:
        with capture_logs() as logs:
            for number in range(3):
                await add(admin, id=f"r{number}")
            async with asyncio.timeout(10):
                while await admin.xlen("llm:dead") < 3:  # noqa: ASYNC110 - Redis has no event for this
                    await asyncio.sleep(0.02)
            await eventually(lambda: not worker.status().ready)
        assert "may not access a key" in worker.status().why
        told = [line["event"] for line in logs if line["log_level"] == "error"]
        assert told.count("cannot_deliver_answers") == 1
        assert set(told) <= {"cannot_deliver_answers", "cannot_renew_leases"}  # the latter where a tick falls into it
        await admin.execute_command("ACL", "SETUSER", "w", "~llm:events:*")
        await add(admin, id="r9")
        await eventually(lambda: worker.status().ready)
    assert len(backend.calls) == 1
