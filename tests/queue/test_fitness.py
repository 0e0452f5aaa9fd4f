"""Which servers can serve us, by what they say of themselves."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import BusyLoadingError, NoPermissionError, ResponseError

from llm_routerd.errors import UnsuitableServerError
from llm_routerd.queue.connection import fitness
from llm_routerd.queue.connection.fitness import Greeting, Needs

NEEDS = Needs(prefix="llm", metrics_channel="llm_router_metrics")


def hello(server: str, version: str, mode: str = "standalone") -> list[Any]:
    """A reply to HELLO as the second protocol has it."""
    pairs = {"server": server, "version": version, "proto": 2, "id": 7, "mode": mode, "role": "master", "modules": []}
    return [part.encode() if isinstance(part, str) else part for pair in pairs.items() for part in pair]


def verdict(greeting: Greeting | None, needs: Needs = NEEDS) -> str:
    """Why a server cannot serve us; "" if it can."""
    try:
        fitness.check(greeting, needs)
    except UnsuitableServerError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("server", "version", "says"),
    [
        ("redis", "6.2.14", "Redis 6.2.14 is too old; Redis 7.0 or newer is needed"),
        ("redis", "6.0-rc1", "Redis 6.0-rc1 is too old; Redis 7.0 or newer is needed"),
        ("redis", "7.0.0", ""),
        ("redis", "8.2.1", ""),
        ("redis", "10.0.0", ""),
        ("redis", "255.255.255", ""),
        ("valkey", "7.2.9", "Valkey 7.2.9 is too old; Valkey 8.0 or newer is needed"),
        ("valkey", "8.0.0", ""),
        ("valkey", "9.1.2", ""),
        ("keydb", "1.0.0", ""),
        ("redis", "unstable", ""),
    ],
)
def test_version_is_judged_by_kind_of_server(server: str, version: str, says: str) -> None:
    """Redis from 7.0, Valkey from 8.0; of what is not known nothing is guessed."""
    assert verdict(fitness.greeting_in(hello(server, version))) == says


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (hello("redis", "7.0.15"), Greeting(kind="redis", version="7.0.15", mode="standalone", role="master")),
        ({"server": "redis", "version": "7.0.15", "proto": 3}, Greeting(kind="redis", version="7.0.15")),
        (
            b"# Server\r\nredis_version:6.2.14\r\nredis_mode:cluster\r\n",
            Greeting(kind="redis", version="6.2.14", mode="cluster"),
        ),
        (
            {"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "8.0.1", "server_mode": "standalone"},
            Greeting(kind="valkey", version="8.0.1", mode="standalone"),
        ),
        ({"redis_version": 7}, None),
        ([b"server"], None),
        (None, None),
    ],
    ids=["HELLO", "HELLO 3", "INFO of 6.2", "INFO of Valkey, parsed", "a number", "half", "nothing"],
)
def test_replies_of_both_commands_are_read(reply: Any, expected: Greeting | None) -> None:
    """As lists, dictionaries and lines; whatever else comes says nothing."""
    assert fitness.greeting_in(reply) == expected


class Server:
    """Replies by command."""

    def __init__(self, **replies: Any) -> None:
        self.replies, self.asked = replies, list[str]()

    async def __call__(self, *words: str) -> Any:
        """Send one command."""
        self.asked.append(words[0])
        reply = self.replies[words[0]]
        if isinstance(reply, Exception):
            raise reply
        return reply


NOPERM = NoPermissionError("this user has no permissions to run the 'info' command")
UNKNOWN = ResponseError("unknown command `HELLO`, with args beginning with: ")
INFO = b"redis_version:6.2.14\r\nredis_mode:standalone\r\n"


@pytest.mark.parametrize(
    ("server", "kind", "asked"),
    [
        (Server(HELLO=hello("valkey", "9.1.2")), "valkey", 1),
        (Server(HELLO=UNKNOWN, INFO=INFO), "redis", 2),
        (Server(HELLO=NOPERM, INFO=INFO), "redis", 2),
        (Server(HELLO=NOPERM, INFO=NOPERM), None, 2),
        (Server(HELLO=hello("fake", "1.0"), INFO=UNKNOWN), "fake", 2),
    ],
    ids=["HELLO", "before 6.0", "HELLO forbidden", "both forbidden", "unknown kind"],
)
async def test_second_command_is_sent_where_the_first_says_nothing(
    server: Server, kind: str | None, asked: int
) -> None:
    """And where both are refused, nothing is said: a user of narrow rights works as ever."""
    greeting = await fitness.ask(server)
    assert (greeting and greeting.kind, len(server.asked)) == (kind, asked)
    if greeting is None:
        fitness.check(greeting, NEEDS)


async def test_server_that_cannot_answer_now_is_not_passed_over() -> None:
    """It loads: what it is shows later."""
    with pytest.raises(BusyLoadingError):
        await fitness.ask(Server(HELLO=BusyLoadingError("Redis is loading the dataset in memory")))


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        (NEEDS, 'the keys of the prefix "llm" lie in several slots; use [redis] prefix = "{llm}"'),
        (Needs(prefix="{}llm"), 'use [redis] prefix = "{llm}"'),
        (Needs(prefix="{llm}"), ""),
        (Needs(prefix="a{llm}b"), ""),
        (
            Needs(prefix="a{llm}b", metrics_channel="llm_router_metrics"),
            '"llm_router_metrics" lies in another slot than the queue; use [metrics] channel = "{llm}_router_metrics"',
        ),
        (Needs(prefix="{llm}", metrics_channel="{llm}_router_metrics"), ""),
    ],
)
def test_in_a_cluster_all_keys_have_to_lie_in_one_slot(needs: Needs, says: str) -> None:
    """Else no script works; the remedy is what to write."""
    told = verdict(Greeting(kind="valkey", version="9.1.2", mode="cluster"), needs)
    assert (says in told) if says else not told
    assert not verdict(Greeting(kind="valkey", version="9.1.2", mode="standalone"), needs)


def test_sentinel_is_told_apart() -> None:
    """It knows no streams."""
    assert "Sentinel" in verdict(Greeting(kind="redis", version="7.0.15", mode="sentinel"))
