"""The dead letters of a queue: reading them, queueing one again, removing one."""

from __future__ import annotations

import base64
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self, cast

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

    @property
    def cut_bytes(self) -> int | None:
        """How long the request was, of which the letter holds beginnings only; None: it holds all."""
        cut = self.data.get("cut")
        size = cut.get("bytes") if isinstance(cut, dict) else None
        return size if isinstance(size, int) else None

    def to_json(self, *, whole: bool) -> dict[str, Any]:
        """The letter for a program; `whole` with what was submitted, which the list does not need."""
        summary: dict[str, Any] = {"letter": self.entry, **self.about}
        if self.cut_bytes is not None:
            summary["cut_bytes"] = self.cut_bytes
        if self.unread is not None:
            return summary | {"unread": self.unread if whole else {"bytes": self.unread["bytes"]}}
        return summary | {"data": self.data} if whole else summary


class DeadLetters:
    """The dead letters of a client's queue.  Every method raises `BrokerError` where the client would.

    Use it as `async with`.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._keys = client.keys
        self._readers: dict[tuple[Redis, Bounds], Redis] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for reader in self._readers.values():
            with suppress(RedisError):  # the node may be gone
                await reader.aclose()

    async def all(self) -> AsyncIterator[DeadLetter]:
        """Every letter, the oldest first; read in pages, so that any number fits in memory.

        Of long ones, each page is one: Redis puts a page together before it sends any of it.
        """
        start, count = "-", 1
        while True:
            letters = await self._read(_LISTED, start, "+", count)
            for letter in letters:
                yield letter
            if len(letters) < count:
                return
            start = f"({letters[-1].entry}"
            count = 1 if any(letter.unread for letter in letters) else min(2 * count, _LETTERS_PER_READ)

    async def get(self, entry: str) -> DeadLetter | None:
        """One letter, if it is there.

        Raises:
            ValueError: `entry` is not a stream ID.
        """
        check_stream_id(entry)
        return next(iter(await self._read(_SHOWN, entry, entry, 1)), None)

    async def drop(self, entry: str) -> bool:
        """Remove a letter; False: it is not there.

        Raises:
            ValueError: `entry` is not a stream ID.
        """
        check_stream_id(entry)
        return bool(
            await self._client.patiently(
                lambda: self._client.redis.xdel(self._keys.dead, entry), stream=self._keys.dead
            )
        )

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
        requests, streams = self._keys.requests(lane), [self._keys.events(own_id)] if own_id else []
        call = scripts.retry(
            letters=self._keys.dead, requests=requests, streams=streams, letter=letter.entry, fields=letter.fields
        )
        # Where the client is by then: a cluster may name another node.
        reply: list[Any] = await self._client.patiently(
            lambda: run_script(self._client.redis, call), stream=" or ".join((requests, *streams))
        )
        verdict, *entry = (part.decode() if isinstance(part, bytes) else str(part) for part in reply)
        if verdict != Verdict.QUEUED:
            return Retried(verdict=Verdict(verdict))
        return Retried(verdict=Verdict.QUEUED, request_id=own_id or entry[0], renamed=not own_id)

    async def _read(self, bounds: Bounds, first: str, last: str, count: int) -> list[DeadLetter]:
        entries = cast(
            "Sequence[tuple[bytes, Fields]]",
            await self._client.patiently(
                lambda: self._reader(bounds).xrange(self._keys.dead, first, last, count=count), stream=self._keys.dead
            ),
        )
        return [_parse(as_text(entry), fields) for entry, fields in entries]

    def _reader(self, bounds: Bounds) -> Redis:
        """What reads within these bounds where the client is now."""
        where = self._client.redis, bounds
        if where not in self._readers:
            self._readers[where] = self._client.bounded(bounds)
        return self._readers[where]


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
