"""What a tool worker does where Redis goes away, is emptied, refuses, or has lost what it needs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from llm_routerd import ToolRequest, ToolWorker  # noqa: TC001 - signatures are read at run time
from llm_routerd.client import tool_serving
from llm_routerd.errors import NotAllowedError
from llm_routerd.protocol.keys import HANDED_BACK, HANDED_BACK_IDLE_MS, TOOL_GROUP
from tests.support.proxy import open_proxy
from tests.support.servers import ValkeyProcess, running_valkey
from tests.support.toolcalls import make_worker, open_caller, serving, until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def valkey() -> Iterator[ValkeyProcess]:
    """A server to be maltreated."""
    with running_valkey(tcp=True) as server:
        yield server


class Acting:
    """A tool that counts, and waits until it may end."""

    def __init__(self, worker: ToolWorker, *, idempotent: bool = False) -> None:
        self.calls: list[str] = []
        self.may_end = asyncio.Event()
        self.may_end.set()

        @worker.tool(idempotent=idempotent)
        async def act(call: ToolRequest) -> str:
            """Act."""
            self.calls.append(call.call_id)
            await self.may_end.wait()
            return "acted"

    async def until_begun(self, count: int = 1) -> None:
        """Return once so many calls were begun."""

        async def are_begun() -> bool:
            return len(self.calls) >= count

        await until(are_begun)


async def test_worker_waits_for_a_redis_that_is_not_there_yet(valkey: ValkeyProcess) -> None:
    """It says so once, and serves as soon as it can."""
    valkey.stop()
    worker, troubles = make_worker(valkey.url)
    Acting(worker)
    async with serving(worker):
        await until(lambda: _is_true(troubles.lines))
        await asyncio.sleep(0.5)
        valkey.start()
        async with open_caller(valkey.url) as caller:
            assert await caller.asked("act") == {"result": "acted"}
    assert len(troubles.lines) == 1
    assert troubles.lines[0].startswith("Redis: ")


async def _is_true(value: object) -> bool:
    return bool(value)


async def test_worker_ends_while_redis_is_away(valkey: ValkeyProcess) -> None:
    """Within its bound, with a call at work and nobody to tell."""
    worker, _ = make_worker(valkey.url, drain_seconds=0.5)
    acting = Acting(worker)
    acting.may_end.clear()
    async with open_caller(valkey.url) as caller:
        running = asyncio.create_task(worker.run())
        await caller.call("act")
        await acting.until_begun()
        valkey.kill()
        worker.stop()
        async with asyncio.timeout(15):
            await running


@pytest.mark.parametrize("appendonly", ["yes", "no"])
async def test_redis_that_restarts_under_a_call_at_work(appendonly: str) -> None:
    """With its data the call is answered and acted on once; without, the tool is there again."""
    with running_valkey({"appendonly": appendonly, "appendfsync": "always"}) as valkey:
        worker, _ = make_worker(valkey.url)
        acting = Acting(worker)
        acting.may_end.clear()
        async with open_caller(valkey.url) as caller, serving(worker):
            await caller.call("act")
            await acting.until_begun()
            valkey.kill()
            await asyncio.sleep(0.3)
            acting.may_end.set()
            await asyncio.sleep(0.3)
            valkey.start()
            if appendonly == "yes":
                assert await caller.answer("call_1") == {"result": "acted"}
            else:
                await caller.until_registered("act")
                await caller.open_inbox()
            assert await caller.asked("act", call_id="next") == {"result": "acted"}
            await caller.until_done("act")
        assert acting.calls == ["call_1", "next"]


async def test_lost_connections_lose_no_call(valkey: ValkeyProcess) -> None:
    """Dropped again and again while calls come; each is acted on once and answered."""
    async with open_proxy(valkey.port) as proxy, open_caller(valkey.url) as caller:
        worker, _ = make_worker(proxy.url)
        acting = Acting(worker)
        async with serving(worker):
            await caller.until_registered("act")
            calls = []
            for _ in range(20):
                calls.append(await caller.call("act"))
                await proxy.drop()
                await asyncio.sleep(0.05)
            await caller.until_done("act", seconds=30)
            answered = {answer["call_id"] for answer in await caller.answers()}
        assert sorted(acting.calls) == sorted(calls)
        assert answered == set(calls)


async def test_frozen_redis_is_waited_for(valkey: ValkeyProcess) -> None:
    """A connection that stands and says nothing is given up, and another made."""
    worker, troubles = make_worker(valkey.url)
    Acting(worker)
    async with open_caller(valkey.url) as caller, serving(worker):
        await caller.until_registered("act")
        valkey.freeze()
        await until(lambda: _is_true(troubles.lines), seconds=20)
        valkey.thaw()
        assert await caller.asked("act") == {"result": "acted"}


async def test_what_a_lost_reply_brought_is_begun(valkey_url: str) -> None:
    """It is pending for this worker, and nobody has begun it: a tool that is not idempotent may act."""
    worker, _ = make_worker(valkey_url)
    acting = Acting(worker)
    async with open_caller(valkey_url) as caller:
        stream = caller.keys.tool_calls("act")
        await caller.call("act")
        await caller.redis.xgroup_create(stream, TOOL_GROUP, id="0")
        await caller.redis.xreadgroup(TOOL_GROUP, worker.consumer, {stream: ">"})
        async with serving(worker):
            assert await caller.answer("call_1") == {"result": "acted"}
        assert acting.calls == ["call_1"]


async def test_what_was_handed_back_is_taken_as_new(valkey_url: str) -> None:
    """Nobody has begun it."""
    worker, _ = make_worker(valkey_url)
    acting = Acting(worker)
    async with open_caller(valkey_url) as caller:
        stream = caller.keys.tool_calls("act")
        await caller.call("act")
        await caller.redis.xgroup_create(stream, TOOL_GROUP, id="0")
        [[_, [[entry, _]]]] = await caller.redis.xreadgroup(TOOL_GROUP, "other", {stream: ">"})
        claim = {"idle": HANDED_BACK_IDLE_MS, "justid": True}
        await caller.redis.xclaim(stream, TOOL_GROUP, HANDED_BACK, 0, [entry], **claim)
        async with serving(worker):
            assert await caller.answer("call_1") == {"result": "acted"}
        assert acting.calls == ["call_1"]


async def test_group_that_was_destroyed_is_made_again(valkey_url: str) -> None:
    """The call that is at work comes once more then, and is not acted on again."""
    worker, _ = make_worker(valkey_url)
    acting = Acting(worker)
    acting.may_end.clear()
    async with open_caller(valkey_url) as caller, serving(worker):
        await caller.call("act")
        await acting.until_begun()
        await caller.redis.xgroup_destroy(caller.keys.tool_calls("act"), TOOL_GROUP)
        await caller.call("act")
        await acting.until_begun(2)
        acting.may_end.set()
        assert await caller.answer("call_1") == {"result": "acted"}
        assert await caller.answer("call_2") == {"result": "acted"}
        await caller.until_done("act")
    assert acting.calls == ["call_1", "call_2"]


async def test_redis_that_is_emptied_is_served_again(valkey_url: str) -> None:
    """Registration and group are back within a look."""
    worker, _ = make_worker(valkey_url)
    Acting(worker)
    async with open_caller(valkey_url) as caller, serving(worker):
        assert await caller.asked("act") == {"result": "acted"}
        await caller.redis.flushall()
        await caller.until_registered("act")
        await caller.open_inbox()
        assert await caller.asked("act", call_id="next") == {"result": "acted"}


async def test_answer_that_redis_refuses_for_want_of_memory_is_given_when_there_is_room(
    valkey: ValkeyProcess,
) -> None:
    """And neither lost nor acted on anew."""
    worker, troubles = make_worker(valkey.url)
    acting = Acting(worker)
    acting.may_end.clear()
    async with open_caller(valkey.url) as caller, serving(worker):
        await caller.call("act")
        await acting.until_begun()
        await caller.redis.config_set("maxmemory", 1)
        acting.may_end.set()
        await until(lambda: _is_true(troubles.lines))
        assert await caller.answers() == []
        await caller.redis.config_set("maxmemory", 0)
        assert await caller.answer("call_1") == {"result": "acted"}
        assert await caller.asked("act") == {"result": "acted"}
    assert acting.calls == ["call_1", "call_2"]


async def test_inbox_that_is_no_stream_is_given_up(valkey_url: str) -> None:
    """It is told of, and the worker goes on."""
    worker, troubles = make_worker(valkey_url)
    Acting(worker)
    async with open_caller(valkey_url) as caller, serving(worker):
        await caller.redis.set("llm:inbox:other", "a text")
        await caller.call("act", id="other", seconds=0.5)
        await until(lambda: _is_true(troubles.lines))
        assert await caller.asked("act") == {"result": "acted"}
        await caller.until_done("act")


async def test_user_who_may_not_register_is_told_so(valkey: ValkeyProcess) -> None:
    """There is nothing to wait for."""
    valkey.command("ACL", "SETUSER", "poor", "on", "nopass", "~*", "&*", "+@all", "-hset")
    worker, _ = make_worker(f"unix://poor:x@{valkey.socket_path}?db=0")
    Acting(worker)
    with pytest.raises(NotAllowedError, match="hset"):
        await asyncio.wait_for(worker.run(), 10)


async def test_rights_of_a_tool_worker_are_few(valkey: ValkeyProcess) -> None:
    """It may write to inboxes and not read them: what other tools have answered is none of its business."""
    commands = (
        "+ping +hello +auth +select +client|setname +client|id +time +multi +exec +hset +hmget +hdel +xgroup|create "
        "+xgroup|delconsumer +xinfo|consumers +xreadgroup +xpending +xclaim +xrange +xack +xdel +xadd"
    )
    keys = "~llm:tools ~llm:tools:* %W~llm:inbox:*"
    rights = ("resetkeys", "resetchannels", "-@all", *commands.split(), *keys.split())
    valkey.command("ACL", "SETUSER", "toolworker", "on", ">secret", *rights)
    worker, troubles = make_worker(f"unix://toolworker:secret@{valkey.socket_path}?db=0")
    acting = Acting(worker)
    async with open_caller(valkey.url) as caller:
        stream = caller.keys.tool_calls("act")
        await caller.redis.xgroup_create(stream, TOOL_GROUP, id="0", mkstream=True)
        await caller.call("act")
        await caller.redis.xreadgroup(TOOL_GROUP, "dead", {stream: ">"})
        async with serving(worker):
            assert await caller.asked("act") == {"result": "acted"}
            assert "error" in await caller.answer("call_1")
            await worker.remove("act")
            assert not await caller.redis.hexists(caller.keys.tools, "act")
        assert (acting.calls, troubles.lines) == (["call_2"], [])


async def test_stray_consumers_are_deleted_once_nothing_is_pending_for_them(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of workers that were killed; not one for which something is pending."""
    monkeypatch.setattr(tool_serving, "_STRAY_CONSUMER_MS", 200)
    worker, _ = make_worker(valkey_url, lease_seconds=60)
    Acting(worker)
    async with open_caller(valkey_url) as caller:
        stream = caller.keys.tool_calls("act")
        await caller.redis.xgroup_create(stream, TOOL_GROUP, id="0", mkstream=True)
        await caller.redis.xgroup_createconsumer(stream, TOOL_GROUP, "stray")
        await caller.call("act")
        await caller.redis.xreadgroup(TOOL_GROUP, "busy", {stream: ">"})
        await asyncio.sleep(0.3)
        async with serving(worker):
            assert await caller.asked("act") == {"result": "acted"}
            names = {each["name"] for each in await caller.redis.xinfo_consumers(stream, TOOL_GROUP)}
        assert names == {"busy", worker.consumer}


async def test_unknown_outcome_that_cannot_be_told_yet_is_not_acted_on_meanwhile(valkey: ValkeyProcess) -> None:
    """Redis has no room for the answer: the call is not taken for one that nobody has begun."""
    worker, troubles = make_worker(valkey.url)
    acting = Acting(worker)
    async with open_caller(valkey.url) as caller, serving(worker):
        stream = caller.keys.tool_calls("act")
        await caller.until_registered("act")
        call = await caller.made("act")
        pipe = caller.redis.pipeline(transaction=True)
        pipe.xadd(stream, {"call": call})
        pipe.xreadgroup(TOOL_GROUP, "dead", {stream: ">"})
        entry, _ = await pipe.execute()  # before the worker sees it
        await caller.redis.config_set("maxmemory", 1)
        await caller.redis.xclaim(stream, TOOL_GROUP, "dead", 0, [entry], idle=10_000, justid=True)
        await until(lambda: _is_true(troubles.lines))
        await asyncio.sleep(1.5)  # four more looks
        assert acting.calls == []
        await caller.redis.config_set("maxmemory", 0)
        assert (await caller.answer("call_1"))["error"].startswith("unknown outcome: ")
        await caller.until_done("act")
    assert acting.calls == []
