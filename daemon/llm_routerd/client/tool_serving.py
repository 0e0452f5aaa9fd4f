"""One shard's tool calls, from their streams to the inboxes of their requests; the reference for other languages.

The rules; `python -m llm_routerd.client.tool_conformance` tries a tool worker in any language out:

1. Register a tool: HSET P:tools <name> <JSON as in schemas/tool>; again where the hash has lost it, never over another.
2. Make a consumer group on P:tools:<name> (XGROUP CREATE … 0 MKSTREAM); again where it has gone.
3. Read when there is a place: XREADGROUP … BLOCK … STREAMS … >.  A consumer is one process, and no later one has its
   name: so what is pending for it and was never begun is a reply that got lost, and may be begun.
4. Look before acting.  Past its `deadline_ms` by the server's TIME, with its entry gone (XRANGE) or not pending for
   this consumer (XPENDING), a call is not acted on; nor is one whose `call_id` was begun here before.
5. Answer, acknowledge and delete at once: MULTI, XADD P:inbox:<id> NOMKSTREAM * call_id <call_id> result <text> (or
   error <text>), XACK, XDEL, EXEC.  So what was answered is never found again; a second answer to a call is ignored.
6. Show life while acting: XCLAIM … JUSTID sets the idle time of an entry back, three times within a lease.
7. What has been idle for a lease has lost its worker: XPENDING … IDLE, then XCLAIM with that idle time: one gets it.
   A call of an idempotent tool is acted on again; any other is answered with the error "unknown outcome", and not.
8. At the end read no more, finish what was begun, within a bound, and hand back what was not: to a consumer that
   nobody is, with an idle time beyond any lease.  From there it is taken as new.
9. What an exception says is told to no model, and what models and tools say to no log.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
from redis.exceptions import RedisError, ResponseError

from llm_routerd.client.events import as_bytes
from llm_routerd.client.tool import Entry, Tool
from llm_routerd.errors import BrokerError, NotAllowedError, UnsuitableServerError
from llm_routerd.protocol.keys import HANDED_BACK, HANDED_BACK_IDLE_MS, TOOL_GROUP, is_handed_back
from llm_routerd.queue.connection import Backoff, is_missing_group

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from redis.asyncio import Redis

    from llm_routerd.client.shard import Shard
    from llm_routerd.protocol.tool import ToolRequest

T = TypeVar("T")

_BLOCK_MS = 1_000  # so long the end may be put off, and a new tool not be served
_LAST_SECONDS = 3.0  # for what is said at the end of calls that have none
_MOST_PENDING = 1_000
_MOST_KNOWN = 10_000
_STRAY_CONSUMER_MS = 3_600_000
_NOBODY = "unknown-outcome"  # the consumer that owns what is never acted on again, until that has been told
_OUTCOME_UNKNOWN = b"unknown outcome: the worker that had this call is gone, and may have acted"


@dataclass(frozen=True, slots=True)
class _Found:
    """What stands in Redis for a tool: its registration, what is pending for us, and what has been idle for a lease."""

    registration: bytes | None
    mine: list[bytes]
    idle: dict[bytes, str]  # whose it is


class Host(Protocol):
    """What all shards of a worker share; `places` are those of calls, and `tools` may change at any time."""

    consumer: str
    tools: dict[str, Tool]
    places: asyncio.Semaphore
    lease_seconds: float
    drain_seconds: float
    stopping: asyncio.Event
    tell: Callable[[str, Exception | None], None]

    @property
    def free(self) -> int:
        """How many places are."""


class Serving:
    """What a worker does in one shard."""

    def __init__(self, host: Host, shard: Shard) -> None:
        self._host = host
        self._shard = shard
        self.begun: dict[Entry, asyncio.Task[None]] = {}
        self._waiting: deque[Entry] = deque()  # COUNT counts for each stream: what was read beyond the free places
        self._known: OrderedDict[str, None] = OrderedDict()  # the `call_id`s that were begun last
        self._served: dict[str, Tool] = {}  # what is registered
        self._warned: dict[str, bytes] = {}  # of which other registration of a tool was told last
        self._look_at = 0.0  # when to look around next, in loop time
        self._is_away = False
        self._failure: BaseException | None = None

    @property
    def _redis(self) -> Redis:
        return self._shard.redis

    def _key(self, tool: Tool) -> str:
        return self._shard.keys.tool_calls(tool.name)

    def has(self, name: str) -> bool:
        """Whether a tool of this name is registered by us."""
        return name in self._served

    async def run(self) -> None:
        """Serve until the worker is to stop.

        Raises:
            NotAllowedError, UnsuitableServerError: Redis can never be used as it is.
        """
        working = asyncio.create_task(self._work(), name="tool-calls")
        stopping = asyncio.create_task(self._host.stopping.wait())
        try:
            await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
            # A read is never broken off where its reply may come: what that brings would be lost.
            await asyncio.wait((working,), timeout=2 * _BLOCK_MS / 1000)
            if working.done():
                working.result()
        finally:
            for task in (working, stopping):
                task.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)
            await self._end()

    async def _work(self) -> None:
        clock = asyncio.get_running_loop().time
        while not self._host.stopping.is_set():
            if self._failure is not None:
                raise self._failure
            if clock() >= self._look_at or self._served != self._host.tools:
                self._look_at = clock() + self._host.lease_seconds / 3
                await self._look_around()
            try:
                async with asyncio.timeout(min(self._look_at - clock(), _BLOCK_MS / 1000)):
                    await self._host.places.acquire()
            except TimeoutError:
                continue
            if self._waiting:
                self._begin(self._waiting.popleft())
            else:
                self._host.places.release()
                self._waiting += await self._read()

    async def _read(self) -> list[Entry]:
        """New calls, as soon as there are any."""
        streams = {self._key(tool).encode(): tool for tool in self._served.values()}
        if not streams:
            await asyncio.sleep(_BLOCK_MS / 1000)
            return []
        count = max(1, self._host.free // len(streams))
        block_ms = max(1, min(_BLOCK_MS, int(self._host.lease_seconds * 300)))

        reply: Any = await self._ask(
            lambda: self._redis.xreadgroup(
                TOOL_GROUP, self._host.consumer, dict.fromkeys(streams, ">"), count=count, block=block_ms
            )
        )
        found = [entry for key, entries in reply or () for entry in Entry.read(streams[key], entries)]
        return [entry for entry in found if entry not in self.begun]  # a group that is made again has it once more

    async def _look_around(self) -> None:
        """See to it that tools are registered, calls at work show life, and those that have lost their worker end."""
        tools = dict(self._host.tools)
        if not self._served:
            await self._delete_stray_consumers(tools.values())
        await self._show_life()
        for gone in (tool for name, tool in self._served.items() if name not in tools):
            await self._ask(partial(self._unregister, gone))
        for tool, found in zip(tools.values(), await self._ask(lambda: self._survey(tools)) or (), strict=False):
            await self._register(tool, found.registration)
            await self._begin_again(tool, found)
        self._served = tools

    async def _survey(self, tools: dict[str, Tool]) -> list[_Found]:
        """Make the groups that are not there, and see what is."""
        me, lease_ms = self._host.consumer, int(self._host.lease_seconds * 1000)
        if not tools:
            return []
        pipe = self._redis.pipeline(transaction=False)
        for tool in tools.values():
            key = self._key(tool)
            pipe.xgroup_create(key, TOOL_GROUP, id="0", mkstream=True)
            pipe.xpending_range(key, TOOL_GROUP, "-", "+", _MOST_PENDING, me)
            pipe.xpending_range(key, TOOL_GROUP, "-", "+", _MOST_PENDING, idle=lease_ms)
        pipe.hmget(self._shard.keys.tools, list(tools))
        *replies, registered = await pipe.execute(raise_on_error=False)
        # That a group is there, or that there is no memory for it, does not matter where it is.
        needed = [reply for number, reply in enumerate(replies) if number % 3] + [registered]
        if failed := next((reply for reply in needed if isinstance(reply, Exception)), None):
            raise next((reply for reply in replies[::3] if _is_refused(reply)), failed)
        return [
            _Found(
                registration,
                [each["message_id"] for each in mine],
                {each["message_id"]: each["consumer"].decode() for each in idle if each["consumer"] != me.encode()},
            )
            for registration, mine, idle in zip(registered, replies[1::3], replies[2::3], strict=True)
        ]

    async def _register(self, tool: Tool, found: bytes | None) -> None:
        if found is None or self._served.get(tool.name) is not tool:
            await self._ask(lambda: self._redis.hset(self._shard.keys.tools, tool.name, tool.registration))
        elif not _is_same(found, tool.registration) and self._warned.get(tool.name) != found:
            self._warned[tool.name] = found
            self._host.tell(f"{tool.name}: what is registered in Redis differs from this worker's, and holds", None)

    async def _unregister(self, tool: Tool) -> None:
        """Take a registration back, unless it is another's."""
        [found] = await self._redis.hmget(self._shard.keys.tools, [tool.name])
        if found is not None and _is_same(as_bytes(found), tool.registration):
            await self._redis.hdel(self._shard.keys.tools, tool.name)

    async def _show_life(self) -> None:
        """Tell the others that what is held here has not lost its worker."""
        held: dict[Tool, list[bytes]] = {}
        for entry in (*self.begun, *self._waiting):
            held.setdefault(entry.tool, []).append(entry.entry_id)
        for tool, ids in held.items():
            await self._claim(tool, ids, justid=True)

    async def _begin_again(self, tool: Tool, found: _Found) -> None:
        """Take what a lost reply brought, and end or take what has lost its worker."""
        lease_ms = int(self._host.lease_seconds * 1000)
        held = {entry.entry_id for entry in (*self.begun, *self._waiting) if entry.tool.name == tool.name}
        self._waiting += await self._claim(tool, [entry_id for entry_id in found.mine if entry_id not in held])
        may_run = [each for each, owner in found.idle.items() if tool.is_idempotent or is_handed_back(owner)]
        if not self._waiting and self._host.free:
            self._waiting += await self._claim(tool, may_run[: self._host.free], idle_ms=lease_ms)
        over = [entry_id for entry_id in found.idle if entry_id not in may_run]
        # Not for us: what is pending here and not at work is begun.
        for entry in await self._claim(tool, over, idle_ms=lease_ms, consumer=_NOBODY):
            await self._settle(entry, entry.call(), ("error", _OUTCOME_UNKNOWN))

    async def _claim(
        self, tool: Tool, ids: list[Any], *, idle_ms: int = 0, consumer: str = "", **options: Any
    ) -> list[Entry]:
        """Those of them that are ours now; not those that were deleted, or are at work elsewhere."""
        key, consumer = self._key(tool), consumer or self._host.consumer
        claim = lambda: self._redis.xclaim(key, TOOL_GROUP, consumer, idle_ms, ids, **options)  # noqa: E731
        reply = await self._ask(claim) if ids else None
        return [] if "justid" in options else Entry.read(tool, reply or ())

    def _begin(self, entry: Entry) -> None:
        """Serve a call in the place that was taken."""
        task = asyncio.create_task(self._serve(entry), name=f"tool-{entry.tool.name}")
        self.begun[entry] = task
        task.add_done_callback(partial(self._ended, entry))

    def _ended(self, entry: Entry, task: asyncio.Task[None]) -> None:
        self.begun.pop(entry, None)
        self._host.places.release()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error

    async def _serve(self, entry: Entry) -> None:
        if entry.tool.name not in self._host.tools:  # it was removed while a read was under way
            await self._hand_back(entry)
            return
        call = entry.call()
        if call is None:
            self._host.tell(f"{entry.tool.name}: an entry that is no call (schemas/tool-call) was deleted", None)
            await self._settle(entry, None, None)
            return
        seconds = await self._ask(lambda: self._seconds_left(entry, call))
        if seconds is None:
            return
        if seconds <= 0 or call.call_id in self._known:
            await self._settle(entry, call, None)
            return
        self._known[call.call_id] = None
        if len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)
        until = asyncio.get_running_loop().time() + seconds
        await self._settle(entry, call, await entry.tool.answer(call, seconds, self._host.tell), until)

    async def _seconds_left(self, entry: Entry, call: ToolRequest) -> float | None:
        """How long its answer is waited for; 0: nobody waits; None: it is not, or no longer, for us to answer."""
        key, entry_id = self._key(entry.tool), entry.entry_id
        pipe = self._redis.pipeline(transaction=False)
        pipe.time()
        pipe.xpending_range(key, TOOL_GROUP, entry_id, entry_id, 1)
        pipe.xrange(key, entry_id, entry_id)
        (seconds, microseconds), pending, there = await pipe.execute()
        if not pending or pending[0]["consumer"] != self._host.consumer.encode():
            return None
        return call.deadline_ms / 1000 - seconds - microseconds / 1e6 if there else 0.0

    async def _settle(
        self, entry: Entry, call: ToolRequest | None, answer: tuple[str, bytes] | None, until: float = 0.0
    ) -> None:
        """Answer, acknowledge and delete, all at once; given up where Redis refuses it still `until`."""

        async def settle() -> None:
            pipe = self._redis.pipeline(transaction=True)
            if call is not None and answer is not None:
                field, text = answer
                fields: dict[Any, Any] = {"call_id": call.call_id, field: text}
                pipe.xadd(self._shard.keys.inbox(call.request_id), fields, nomkstream=True)
            pipe.xack(self._key(entry.tool), TOOL_GROUP, entry.entry_id)
            pipe.xdel(self._key(entry.tool), entry.entry_id)
            await pipe.execute()

        await self._ask(settle, until)

    async def _ask(self, operation: Callable[[], Awaitable[T]], until: float = math.inf) -> T | None:
        """Ask until there is a reply; a refusal is told, and asked again as long as it is not past `until`.

        None: there is no group, which is made again at once.
        """

        async def once() -> T | None:
            try:
                return await operation()
            except ResponseError as error:
                if not is_missing_group(error):
                    raise
                self._look_at = 0.0
                return None

        backoff = Backoff()
        while True:
            try:
                reply = await self._shard.patiently(once, self._troubled)
            except (NotAllowedError, UnsuitableServerError):
                raise
            except BrokerError as error:
                self._troubled(error)
                if asyncio.get_running_loop().time() > until:
                    return None
                await asyncio.sleep(backoff.next_seconds())
            else:
                self._is_away = False
                return reply

    def _troubled(self, error: BrokerError) -> None:
        if not self._is_away:
            self._is_away = True
            self._host.tell(f"Redis: {error}", None)

    async def _end(self) -> None:
        """Finish what was begun, and hand back what was not."""
        clock = asyncio.get_running_loop().time
        until = clock() + self._host.drain_seconds
        with suppress(TimeoutError, BrokerError):
            async with asyncio.timeout(self._host.drain_seconds + _LAST_SECONDS):
                while self._waiting:
                    await self._hand_back(self._waiting.popleft())
                while self.begun and clock() < until:
                    wait_seconds = min(until - clock(), self._host.lease_seconds / 3)
                    await asyncio.wait(self.begun.values(), timeout=wait_seconds)
                    await self._show_life()
        late = dict(self.begun)
        for task in late.values():
            task.cancel()
        if late:
            await asyncio.wait(late.values(), timeout=1.0)
        with suppress(TimeoutError, BrokerError):
            async with asyncio.timeout(_LAST_SECONDS):
                for entry in late:
                    if entry.tool.is_idempotent:
                        await self._hand_back(entry)
                    else:
                        await self._settle(entry, entry.call(), ("error", _OUTCOME_UNKNOWN))
                await self._ask(self._leave)

    async def _hand_back(self, entry: Entry) -> None:
        """Give a call to whoever takes it first."""
        forever = {"idle": HANDED_BACK_IDLE_MS, "justid": True}
        await self._claim(entry.tool, [entry.entry_id], consumer=HANDED_BACK, **forever)

    async def _leave(self) -> None:
        """Delete our consumers; not where something is pending for one, which would never be found."""
        for tool in self._served.values():
            key, me = self._key(tool), self._host.consumer
            with suppress(ResponseError):  # the group has gone
                if not await self._redis.xpending_range(key, TOOL_GROUP, "-", "+", 1, me):
                    await self._redis.xgroup_delconsumer(key, TOOL_GROUP, me)

    async def _delete_stray_consumers(self, tools: Iterable[Tool]) -> None:
        """Those of workers that were killed, once nothing is pending for them."""
        with suppress(RedisError):
            for tool in tools:
                for each in await self._redis.xinfo_consumers(self._key(tool), TOOL_GROUP):
                    if each["pending"] == 0 and each["idle"] > _STRAY_CONSUMER_MS:
                        await self._redis.xgroup_delconsumer(self._key(tool), TOOL_GROUP, each["name"])


def _is_refused(reply: Any) -> bool:
    return isinstance(reply, Exception) and "BUSYGROUP" not in str(reply)


def _is_same(found: bytes, registration: bytes) -> bool:
    try:
        return bool(msgspec.json.decode(found) == msgspec.json.decode(registration))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False
