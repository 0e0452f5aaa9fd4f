"""The dead letters of a queue: reading them, queueing one again, removing one."""

from __future__ import annotations

import base64
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import orjson

from llm_routerd.client.events import as_text, check_id, check_stream_id
from llm_routerd.protocol.cut import CutBytes, CutList, head_of, parts_of, size_of
from llm_routerd.protocol.keys import LANES, Lane
from llm_routerd.queue import scripts
from llm_routerd.queue.connection import Bounds, RedisError
from llm_routerd.queue.connection.pooled import run_script

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from redis.asyncio import Redis

    from llm_routerd.client.client import Client
    from llm_routerd.client.shard import Shard
    from llm_routerd.protocol.cut import Fields, Part

scripts.retry.put_together()

_LETTERS_PER_READ = 10  # a letter may hold a request of a megabyte
# Others may write letters, and older versions wrote requests of any length into them.
_LISTED = Bounds(most_bytes=1_048_576)
_SHOWN = Bounds(most_bytes=33_554_432)  # more than the daemon writes into one, however it is escaped


class Verdict(StrEnum):
    """What came of a retry."""

    QUEUED = "queued"
    MISSING = "missing"
    ANSWERED = "answered"  # a result or a cancellation stands under its id: the daemon would drop it at once
    IN_PROGRESS = "in_progress"  # somebody submitted the id again: the daemon would take this for a duplicate
    CUT = "cut"  # what was submitted was too long to be kept whole
    UNREAD = "unread"  # the letter is too long to be read whole
    UNREADABLE = "unreadable"  # the letter does not hold what was submitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """What came of a retry; `request_id` is what to follow now, where it was queued.

    `renamed`: the request had no id of its own, so it is known by its new entry's ID from now on.
    """

    verdict: Verdict
    request_id: str = ""
    renamed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A request that nobody will answer.

    Attributes:
        entry: of the letter itself, in the stream of dead letters.
        shard: what the keys begin with of the shard that it stands in; "" where there is one shard only.
        about: what the daemon tells of it, as texts: `entry`, `lane`, `id`, `reason`, `message`,
            `deliveries`, `consumer`, `at_ms`.
        fields: what was submitted, as flat fields; None where the letter does not hold it.
        data: the letter's `data`: `fields` in a form for people, and `history`.
        unread: of a letter that is too long to be read, `bytes` of it and what its fields are: by name their `bytes`,
            `sha256` and `beginning`.  None: it has been read.
    """

    entry: str
    about: Mapping[str, str]
    fields: tuple[bytes, ...] | None
    data: Mapping[str, Any]
    unread: Mapping[str, Any] | None = None
    shard: str = ""

    @property
    def name(self) -> str:
        """What it goes by: its entry, and before that its shard where there are several, which may have the same."""
        return f"{self.shard}/{self.entry}" if self.shard else self.entry

    @property
    def cut_bytes(self) -> int | None:
        """How long the request was, of which the letter holds beginnings only; None: it holds all."""
        cut = self.data.get("cut")
        size = cut.get("bytes") if isinstance(cut, dict) else None
        return size if isinstance(size, int) else None

    def to_json(self, *, whole: bool) -> dict[str, Any]:
        """The letter for a program; `whole` with what was submitted, which the list does not need."""
        summary: dict[str, Any] = {"letter": self.name, **self.about}
        if self.cut_bytes is not None:
            summary["cut_bytes"] = self.cut_bytes
        if self.unread is not None:
            return summary | {"unread": self.unread if whole else {"bytes": self.unread["bytes"]}}
        return summary | {"data": self.data} if whole else summary


class Location(NamedTuple):
    """Where a letter stands, and what it goes by."""

    shard: Shard
    entry: str
    name: str


class DeadLetters:
    """The dead letters of a client's queue, of all shards.  Every method raises `BrokerError` where the client would.

    Use it as `async with`.
    """

    def __init__(self, client: Client) -> None:
        self._shards = client.shards
        self._readers: dict[tuple[Redis, Bounds], Redis] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for reader in self._readers.values():
            with suppress(RedisError):  # the node may be gone
                await reader.aclose()

    async def all(self) -> AsyncIterator[DeadLetter]:
        """Every letter, shard by shard, the oldest first; read in pages, so that any number fits in memory."""
        for shard in self._shards.all:
            async for letter in self._all_of(shard):
                yield letter

    async def _all_of(self, shard: Shard) -> AsyncIterator[DeadLetter]:
        """Of long ones, each page is one: Redis puts a page together before it sends any of it."""
        start, count = "-", 1
        while True:
            letters = await self._read(shard, _LISTED, start, "+", count)
            for letter in letters:
                yield letter
            if len(letters) < count:
                return
            start = f"({letters[-1].entry}"
            count = 1 if any(letter.unread for letter in letters) else min(2 * count, _LETTERS_PER_READ)

    async def find(self, name: str) -> list[Location]:
        """Where the letter of this name is to be found: of an entry without its shard, in each shard that has it.

        Where there is but one shard to look at, nobody has been asked yet whether it is there.

        Raises:
            ValueError: `name` is neither a stream ID nor one after a shard and a slash.
        """
        entry = check_letter(name)
        prefix = name.removesuffix(entry).removesuffix("/")
        if prefix:
            shard = self._shards.named(prefix)
            return [] if shard is None else [self._location(shard, entry)]
        if self._shards.is_only:
            return [self._location(self._shards.all[0], entry)]
        return [
            self._location(shard, entry)
            for shard in self._shards.all
            if await self._read(shard, _LISTED, entry, entry, 1)
        ]

    async def get(self, location: Location) -> DeadLetter | None:
        """One letter, if it is there."""
        return next(iter(await self._read(location.shard, _SHOWN, location.entry, location.entry, 1)), None)

    async def drop(self, location: Location) -> bool:
        """Remove a letter; False: it is not there."""
        shard, dead = location.shard, location.shard.keys.dead
        return bool(await shard.patiently(lambda: shard.redis.xdel(dead, location.entry), stream=dead))

    async def retry(self, letter: DeadLetter) -> Retried:
        """Queue a letter's request again, at once with removing the letter and the error that it ended with.

        Not repeated blindly after a lost reply: it then finds the letter gone, and says `missing`.
        """
        if letter.unread is not None:
            return Retried(verdict=Verdict.UNREAD)
        if letter.cut_bytes is not None:
            return Retried(verdict=Verdict.CUT)
        if letter.fields is None:
            return Retried(verdict=Verdict.UNREADABLE)
        lane: Lane = next((lane for lane in LANES if lane == letter.about.get("lane")), "normal")
        own_id = _own_id(letter)
        shard = self._shards.named(letter.shard) or self._shards.all[0]
        keys = shard.keys
        requests, streams = keys.requests(lane), [keys.events(own_id)] if own_id else []
        call = scripts.retry(
            letters=keys.dead, requests=requests, streams=streams, letter=letter.entry, fields=letter.fields
        )
        # Where the shard is by then: a cluster may name another node.
        reply: list[Any] = await shard.patiently(
            lambda: run_script(shard.redis, call), stream=" or ".join((requests, *streams))
        )
        verdict, *entry = (part.decode() if isinstance(part, bytes) else str(part) for part in reply)
        if verdict != Verdict.QUEUED:
            return Retried(verdict=Verdict(verdict))
        return Retried(verdict=Verdict.QUEUED, request_id=own_id or entry[0], renamed=not own_id)

    def _location(self, shard: Shard, entry: str) -> Location:
        return Location(shard, entry, f"{shard.keys.prefix}/{entry}" if not self._shards.is_only else entry)

    async def _read(self, shard: Shard, bounds: Bounds, first: str, last: str, count: int) -> list[DeadLetter]:
        dead = shard.keys.dead
        entries = cast(
            "Sequence[tuple[bytes, Fields]]",
            await shard.patiently(
                lambda: self._reader(shard, bounds).xrange(dead, first, last, count=count), stream=dead
            ),
        )
        name = "" if self._shards.is_only else shard.keys.prefix
        return [replace(_parse(as_text(entry), fields), shard=name) for entry, fields in entries]

    def _reader(self, shard: Shard, bounds: Bounds) -> Redis:
        """What reads within these bounds where the shard is now."""
        where = shard.redis, bounds
        if where not in self._readers:
            self._readers[where] = shard.bounded(bounds)
        return self._readers[where]


def check_letter(name: str) -> str:
    """The entry of a letter's name.

    Raises:
        ValueError: it is not valid.
    """
    entry = name.rpartition("/")[2]
    check_stream_id(entry)
    return entry


def _parse(entry: str, fields: Fields) -> DeadLetter:
    flat = parts_of(fields)
    parts = {as_text(head_of(name)): value for name, value in zip(flat[::2], flat[1::2], strict=False)}
    if isinstance(fields, CutList):
        about = {name: as_text(value) for name, value in parts.items() if isinstance(value, bytes) and name != "data"}
        unread = {"bytes": fields.size, "fields": {name: _told(value) for name, value in parts.items()}}
        return DeadLetter(entry=entry, about=about, fields=None, data={}, unread=unread)
    texts = {name: as_text(head_of(value)) for name, value in parts.items()}
    try:
        data = orjson.loads(texts.pop("data", "{}"))
    except orjson.JSONDecodeError:
        data = {}
    data = data if isinstance(data, dict) else {}
    return DeadLetter(entry=entry, about=texts, fields=_original_fields(data.get("fields")), data=data)


def _told(value: Part) -> dict[str, Any]:
    """What is known of a field that may be too long to be read."""
    told: dict[str, Any] = {"bytes": size_of(value)}
    if isinstance(value, CutBytes):
        told["sha256"] = value.sha256
    return told | {"beginning": as_text(head_of(value))}


def _original_fields(fields: Any) -> tuple[bytes, ...] | None:
    """What was submitted, byte for byte; None where it cannot be told."""
    if not isinstance(fields, dict) or not fields:
        return None
    flat: list[bytes] = []
    for name, value in fields.items():
        match value:
            case str():
                flat += (name.encode(), value.encode())
            case {"base64": str(encoded)}:
                try:
                    flat += (name.encode(), base64.b64decode(encoded, validate=True))
                except ValueError:
                    return None
            case _:
                return None
    return tuple(flat)


def _own_id(letter: DeadLetter) -> str:
    """The id that the request carries itself; "" where it goes by its entry's ID."""
    request_id = letter.about.get("id", "")
    if request_id == letter.about.get("entry"):
        return ""
    try:
        return check_id(request_id)
    except ValueError:
        return ""
