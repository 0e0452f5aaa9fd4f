"""The tools that are registered, and who serves them: what stands in the hash of a shard, and in the tools' streams.

Whoever serves a tool writes there, so it may be anything: so many tools are listed, and so much is read of one.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from redis.exceptions import NoPermissionError, ResponseError

from llm_routerd.client.events import as_bytes, as_text
from llm_routerd.protocol.cut import CutList
from llm_routerd.protocol.tool import MOST_REGISTERED, MOST_REGISTRATION_BYTES
from llm_routerd.queue.connection import Bounds, is_missing_group, is_wrong_type, pooled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from redis.asyncio import Redis

    from llm_routerd.agents.registration import Tool, Unsound
    from llm_routerd.protocol.keys import Keys

ACTIVE_MS = 60_000  # one who serves a tool asks for its calls more often
_MOST_NAMES = 20_000  # beyond which nobody sorts them
_NAMES = Bounds(most_bytes=2_000_000, most_parts=_MOST_NAMES)
_LONGEST_NAME = 256  # that is shown whole
_TOOLS_PER_READ = 50
_MOST_GROUPS = 8  # of a tool
_MOST_CONSUMERS = 32  # of a group


class ToolConsumer(Struct, frozen=True, kw_only=True):
    """One who serves a tool; `idle_ms`: since it asked for calls; `pending`: calls that it has and has not answered."""

    name: str
    idle_ms: int
    pending: int


class ToolGroup(Struct, frozen=True, kw_only=True):
    """Those who share a tool's calls; `waiting`: calls that none of them has taken; `pending`: that one has."""

    name: str
    waiting: int
    pending: int
    consumers: tuple[ToolConsumer, ...]


class RegisteredTool(Struct, frozen=True, kw_only=True):
    """One tool in one shard.

    Attributes:
        name: under which it is registered, whatever that is; a long one is cut.
        shard: what the shard's keys begin with.
        size: of its registration, in bytes.
        registration: that; of one that is too long the empty one.
        calls: how many stand in its stream, taken or not; None: that cannot be told.
        groups: who reads it; at most the first few, with their first consumers.
        trouble: why `calls` and `groups` cannot be told, or what is wrong with its stream; "": nothing.
    """

    name: str
    shard: str
    size: int
    registration: bytes
    calls: int | None = None
    groups: tuple[ToolGroup, ...] = ()
    trouble: str = ""

    def read(self) -> Tool | Unsound:
        """The registration, as workers read it, or why it is none."""
        from llm_routerd.agents.registration import read_tool, too_long  # noqa: PLC0415 - others do without schemas
        from llm_routerd.jsonschema.compiled import SchemaCache  # noqa: PLC0415 - likewise

        if self.size > MOST_REGISTRATION_BYTES:
            return too_long(self.size)
        return read_tool(self.name, self.registration, SchemaCache(1))

    @property
    def idle_ms(self) -> int | None:
        """Since anybody asked for its calls; None: nobody ever has."""
        return min((each.idle_ms for group in self.groups for each in group.consumers), default=None)

    @property
    def is_served(self) -> bool:
        """Whether somebody has asked for its calls of late; who waits for one longer than a minute is not seen."""
        return self.idle_ms is not None and self.idle_ms < ACTIVE_MS

    @property
    def why_unserved(self) -> str:
        """What speaks for that nobody serves it, for a person; "": nothing does, or it cannot be told."""
        if self.is_served or self.trouble:
            return ""
        if self.idle_ms is None:
            return "nobody serves it any more" if self.groups else "nobody serves it: no consumer group reads it"
        told = f"nobody has asked for its calls for {self.idle_ms // 60_000} min"
        if any(group.waiting for group in self.groups):
            return told  # who reads takes a call at once
        # Redis tells when a blocked read began, and not that it goes on: XINFO's `idle` and `inactive` both grow.
        return f"{told}, unless one who serves it waits with BLOCK 0"


class ToolList(Struct, frozen=True, kw_only=True):
    """The first tools of each shard, by name; `more`: how many there are that are not listed."""

    tools: tuple[RegisteredTool, ...]
    more: int


async def list_tools(redis: Redis, keys: Keys, patterns: Sequence[str] = ("*",)) -> ToolList:
    """Those of one shard that are matched by one of these names and globs.

    Raises:
        RedisError: the server is away, or refuses the look.
    """
    try:
        count = int(await _do(redis, "HLEN", keys.tools))
    except ResponseError as error:
        if is_wrong_type(error):
            return ToolList(tools=(), more=0)
        raise
    names = sorted(await _names(redis, keys)) if count <= _MOST_NAMES else []
    if "*" not in patterns:
        names = [name for name in names if any(fnmatchcase(as_text(name), pattern) for pattern in patterns)]
        count = len(names)
    tools: list[RegisteredTool] = []
    for at in range(0, min(len(names), MOST_REGISTERED), _TOOLS_PER_READ):
        tools += await _read(redis, keys, names[at : at + _TOOLS_PER_READ])
    return ToolList(tools=tuple(tools), more=max(0, count - len(tools)))


async def _do(redis: Redis, *command: str | bytes) -> Any:
    execute: Callable[..., Awaitable[Any]] = redis.execute_command
    return await execute(*command)


async def _all(redis: Redis, commands: Iterable[tuple[str | bytes, ...]], *, raises: bool = True) -> list[Any]:
    """The replies to these, in one round trip."""
    pipe = redis.pipeline(transaction=False)
    for command in commands:
        pipe.execute_command(*command)
    return await pipe.execute(raise_on_error=raises)


async def _names(redis: Redis, keys: Keys) -> list[bytes]:
    """All of them; none where they are too long to be read."""
    client = pooled.bounded(redis, _NAMES)
    try:
        found = await _do(client, "HKEYS", keys.tools)
    finally:
        await client.aclose()
    return [] if isinstance(found, CutList) else [as_bytes(name) for name in found]


async def _read(redis: Redis, keys: Keys, names: Sequence[bytes]) -> list[RegisteredTool]:
    """A few tools: registrations first, of which none is asked for that is too long."""
    sizes = [int(size) for size in await _all(redis, (("HSTRLEN", keys.tools, name) for name in names))]
    short = [name for name, size in zip(names, sizes, strict=True) if size <= MOST_REGISTRATION_BYTES]
    texts = dict(zip(short, await _all(redis, (("HGET", keys.tools, name) for name in short)), strict=True))
    streams = [keys.tool_calls(as_text(name)) for name in names]
    lengths = await _all(redis, (("XLEN", stream) for stream in streams), raises=False)
    groups = await _all(redis, (("XINFO GROUPS", stream) for stream in streams), raises=False)
    found = []
    for name, size, stream, length, each in zip(names, sizes, streams, lengths, groups, strict=True):
        trouble = _trouble(length) or _trouble(each)
        tool = RegisteredTool(
            name=as_text(name)[:_LONGEST_NAME],
            shard=keys.prefix,
            size=size,
            registration=as_bytes(texts.get(name) or b""),
            calls=None if trouble else int(length),
            groups=() if trouble else await _groups(redis, stream, int(length), each),
            trouble=trouble,
        )
        found.append(tool)
    return found


def _trouble(reply: Any) -> str:
    """Why a stream cannot be looked at; "": it can, or is not there.

    Raises:
        RedisError: that has nothing to do with the stream.
    """
    match reply:
        case NoPermissionError():
            return "this user may not look at it"
        case ResponseError() if is_wrong_type(reply):
            return "its stream is a key of another type: no call can be put there"
        case ResponseError() if "no such key" in str(reply).lower():
            return ""
        case Exception():
            raise reply
        case _:
            return ""


async def _groups(redis: Redis, stream: str, length: int, groups: Any) -> tuple[ToolGroup, ...]:
    if isinstance(groups, Exception):  # the stream is not there
        return ()
    shown = list(groups)[:_MOST_GROUPS]
    commands = (("XINFO CONSUMERS", stream, group["name"]) for group in shown)
    consumers = await _all(redis, commands, raises=False)
    return tuple(_group(group, length, each) for group, each in zip(shown, consumers, strict=True))


def _group(group: Any, length: int, consumers: Any) -> ToolGroup:
    if isinstance(consumers, Exception) and not is_missing_group(consumers):
        raise consumers
    pending, lag = int(group["pending"]), group.get("lag")
    return ToolGroup(
        name=as_text(group["name"]),
        # The server does not know where entries were deleted; but what has been answered is, here.
        waiting=max(0, length - pending) if lag is None else int(lag),
        pending=pending,
        consumers=tuple(
            ToolConsumer(name=as_text(each["name"]), idle_ms=int(each["idle"]), pending=int(each["pending"]))
            for each in (() if isinstance(consumers, Exception) else consumers[:_MOST_CONSUMERS])
        ),
    )
