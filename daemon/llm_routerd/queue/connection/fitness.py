"""Whether a server can serve us: is it new enough, does it keep data, do our keys lie where one script reaches them?

It is asked once for each connection, by HELLO: any user of ours may send that, it costs one round trip, and a server
that takes another's place is noticed when it is connected to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.crc import key_slot
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from llm_routerd.errors import UnsuitableServerError
from llm_routerd.protocol.keys import Keys

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

# EXPIRE NX, XAUTOCLAIM's deleted entries and scripts' pcall errors came with Redis 7.0.
MINIMUM = {"redis": (7, 0), "valkey": (8, 0)}
_NAMES = {"redis": "Redis", "valkey": "Valkey"}
_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})[\w.-]{0,20}", re.ASCII)
_TAG = re.compile(r"\{([^{}]+)\}")


class WrongServerError(UnsuitableServerError, RedisError):
    """As a lost connection to whoever tries again, and as it is to whoever does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What a server says of itself; "" for what it does not say.

    Attributes:
        kind: `redis`, `valkey` or another's name.
        version: as `9.1.2`.
        mode: `standalone`, `cluster` or `sentinel`.
        role: `master` or `replica`.
    """

    kind: str
    version: str
    mode: str = ""
    role: str = ""

    @property
    def is_known(self) -> bool:
        """Whether its versions mean something to us."""
        return self.kind in MINIMUM

    @property
    def title(self) -> str:
        """Kind and version for a person."""
        return f"{_NAMES.get(self.kind, self.kind)} {self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What must lie in one place: the queue's keys, and for a worker the metrics stream ("": not needed)."""

    prefix: str
    metrics_channel: str = ""


async def ask(command: Callable[..., Awaitable[Any]]) -> Greeting | None:
    """What a server says of itself; None: nothing (an ACL forbids it, or it is of an unknown kind).

    Args:
        command: sends one command, and returns its reply or raises its ResponseError.

    Raises:
        RedisError: the server cannot answer now, or wants a password.
    """
    told: Greeting | None = None
    for words in (("HELLO",), ("INFO", "server")):
        try:
            found = greeting_in(await command(*words))
        except ResponseError as error:
            if not isinstance(error, NoPermissionError) and "unknown command" not in str(error).lower():
                raise
        else:
            told = found or told
            if found is not None and found.kind in MINIMUM:
                break
    return told


def greeting_in(reply: Any) -> Greeting | None:
    """Read the reply to HELLO, or to INFO; None: it names no version."""
    said = _fields(reply)
    mode = said.get("mode") or said.get("server_mode") or said.get("redis_mode") or ""
    role = said.get("role", "")
    for kind, name in (("valkey", "valkey_version"), ("redis", "redis_version"), (said.get("server", ""), "version")):
        version = said.get(name, "")
        if kind and _VERSION.fullmatch(version):
            return Greeting(kind=kind[:20], version=version, mode=mode, role=role)
    return None


def check(greeting: Greeting | None, needs: Needs | None) -> None:
    """Check that a server can serve us.

    Raises:
        WrongServerError: it cannot; the message says why, and names the remedy.
    """
    if greeting is None:
        return
    if greeting.mode == "sentinel":
        raise WrongServerError("a Sentinel answers, which keeps no data", "write redis+sentinel://host:port/service")
    minimum = MINIMUM.get(greeting.kind)
    if minimum is not None and _parts(greeting.version) < minimum:
        wanted = ".".join(map(str, minimum))
        remedy = f"{_NAMES[greeting.kind]} {wanted} or newer is needed"
        raise WrongServerError(f"{greeting.title} is too old", remedy)
    if greeting.mode == "cluster" and needs is not None:
        _check_slots(needs)


def _check_slots(needs: Needs) -> None:
    """In a cluster a script reaches the keys of one slot, and a worker talks to one node."""
    keys = Keys(needs.prefix)
    slots = {_slot(key) for key in (*keys.lanes, keys.dead, keys.events("a"), keys.events("b"))}
    if len(slots) > 1:
        bare = needs.prefix.replace("{", "").replace("}", "") or "llm"
        raise WrongServerError(
            f'the server is in cluster mode, where the keys of the prefix "{needs.prefix}" lie in several slots',
            f'use [redis] prefix = "{{{bare}}}" (--prefix), which puts them into one',
        )
    if needs.metrics_channel and _slot(needs.metrics_channel) not in slots:
        tag = _TAG.search(needs.prefix)
        raise WrongServerError(
            f'the server is in cluster mode, where "{needs.metrics_channel}" lies in another slot than the queue',
            f'use [metrics] channel = "{{{tag[1] if tag else needs.prefix}}}_router_metrics"',
        )


def _slot(key: str) -> int:
    return int(key_slot(key.encode()))


def _parts(version: str) -> tuple[int, int]:
    match = _VERSION.fullmatch(version)
    return (int(match[1]), int(match[2])) if match else MINIMUM["valkey"]


def _fields(reply: Any) -> Mapping[str, str]:
    """Names and values, of the forms that clients and protocols give; of nested ones nothing is read."""
    match reply:
        case dict():
            pairs = list(reply.items())
        case list():
            pairs = list(zip(reply[::2], reply[1::2], strict=False))
        case bytes() | str():
            pairs = [line.partition(":")[::2] for line in _text(reply).splitlines()]
        case _:
            pairs = []
    return {_text(name): _text(said) for name, said in pairs if isinstance(said, (bytes, str))}


def _text(said: Any) -> str:
    return said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
