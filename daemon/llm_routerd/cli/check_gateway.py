"""The part of `check` that looks at the gateway: who may come in, what its Redis user may do, does one answer?

Of a configuration that says nothing of it, and where none listens, there is nothing to say.
"""

from __future__ import annotations

import asyncio
import uuid
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

from llm_routerd.cli.findings import Finding, fail, fine, warn
from llm_routerd.cli.rights import lacking
from llm_routerd.cli.settings import open_client
from llm_routerd.config.addresses import read_listen
from llm_routerd.config.gateway import GatewayConfig
from llm_routerd.errors import BrokerError, ConfigError
from llm_routerd.gateway.admission import Admission, is_loopback

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llm_routerd.client import Shard
    from llm_routerd.config.tree import Config, RedisConfig

SHORTEST_KEY = 20
_PATIENCE_SECONDS = 0.5
_ANSWER_SECONDS = 3.0
_MOST_HEAD_BYTES = 8192
_EVERYWHERE = {None: "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - to be asked, not to be listened on
_REMEDY = "for the gateway use the user `gateway` of systemd/users.acl"


async def check_gateway(config: Config) -> list[Finding]:
    """Everything there is to say about it; raises nothing."""
    gateway = config.gateway
    found = await _ask(gateway.listen)
    if found is None and gateway == GatewayConfig():
        return []
    try:
        Admission(gateway)
    except ConfigError as error:
        return [fail("gateway", str(error))]
    return [_judge_answer(gateway.listen, found), *judge_entrance(gateway), *await _check_rights(config.redis)]


def judge_entrance(gateway: GatewayConfig) -> list[Finding]:
    """Who may come in."""
    keys = gateway.keys.values()
    missing = [
        warn(
            f"gateway key {key.name}",
            f"lets nobody in: its secret is missing ({key.key_missing})",
            "set it, or take it out",
        )
        for key in keys
        if key.key is None
    ]
    short = [
        warn(f"gateway key {key.name}", f"shorter than {SHORTEST_KEY} characters", "make one: openssl rand -hex 32")
        for key in keys
        if key.key is not None and len(key.key) < SHORTEST_KEY
    ]
    alike = [
        warn(f"gateway key {second.name}", f"the same as that of {first.name}, which counts", "give each its own")
        for first, second in combinations(keys, 2)
        if first.key is not None and first.key == second.key
    ]
    return [_judge_openness(gateway), *missing, *short, *alike]


def _judge_openness(gateway: GatewayConfig) -> Finding:
    usable = sum(key.key is not None for key in gateway.keys.values())
    if gateway.allow_anonymous or not gateway.keys:
        if is_loopback(gateway.listen):
            return fine("gateway", "no key is needed, on this machine alone")
        open_to = f"whoever reaches {gateway.listen} may ask without a key (gateway.allow_anonymous)"
        return warn("gateway", open_to, "configure [gateway.keys.<name>], unless all who reach it may")
    if not usable:
        return fail("gateway", "nobody can come in: no key has its secret", "bring one (systemd's LoadCredential)")
    return fine("gateway", f"{usable} of {len(gateway.keys)} keys let somebody in")


# ---------------------------------------------------------------------- does one answer?


async def _ask(listen: str) -> str | None:
    """The first line of an answer and who gave it; None: nobody listens."""
    try:
        host, port = read_listen(listen, "gateway.listen")
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(_EVERYWHERE.get(host, host), port)
            try:
                writer.write(b"GET /health HTTP/1.0\r\n\r\n")
                head = await reader.read(_MOST_HEAD_BYTES)
            finally:
                writer.close()
    except TimeoutError:
        return "no answer"
    except (OSError, ConfigError):
        return None
    return head.partition(b"\r\n\r\n")[0].decode(errors="replace")


def _judge_answer(listen: str, head: str | None) -> Finding:
    if head is None:
        return warn("gateway", f"none listens on {listen}", "start one: llm-routerd gateway")
    if "\nserver: llm-routerd" not in head.lower():
        return fail("gateway", f"what listens on {listen} is none", "end it, or choose another gateway.listen")
    status = head.partition(" ")[2][:3]
    if status == "200":
        return fine("gateway", f"answers on {listen}")
    return fail("gateway", f"answers on {listen} that it is not well (/health: {status})", "look into its log")


# ---------------------------------------------------------------------- what its user may do


async def _check_rights(redis: RedisConfig) -> list[Finding]:
    """What the user of the Redis URL may do of what the gateway does; nothing is changed."""
    try:
        client = await open_client(redis, patience_seconds=_PATIENCE_SECONDS)
    except BrokerError:
        return []  # which has been said
    async with client:
        shard = client.shards.all[0]
        missing = await lacking(shard, _attempts(shard))
    if not missing:
        return [fine("gateway rights", "this Redis user may submit, follow and cancel, and speak for a person")]
    return [warn("gateway rights", f"this Redis user may not {', '.join(missing)}", _REMEDY)]


def _attempts(shard: Shard) -> dict[str, Callable[[], Awaitable[object]]]:
    """What is tried, on a request that there is not; nothing of it can succeed in changing anything."""
    redis, keys = shard.redis, shard.keys
    nothing = f"check-{uuid.uuid4().hex}"
    any_events, events = keys.events("*"), keys.events(nothing)

    async def listen() -> None:
        async with redis.pubsub() as channel:
            await channel.subscribe(events)
            await channel.get_message(timeout=_ANSWER_SECONDS)

    return {
        # With an ID that no entry can have.
        **{f"XADD to {lane}": partial(redis.xadd, lane, {"data": "{}"}, id="0-0") for lane in keys.lanes},
        f"SUBSCRIBE to {any_events}": listen,
        f"XREAD {any_events}": partial(redis.xread, {events: "0"}, count=1),
        f"XADD to {any_events}, which is how one cancels": partial(
            redis.xadd, events, {"type": "check"}, nomkstream=True
        ),
        f"XADD to {keys.consent('*')}, which is how one confirms": partial(
            redis.xadd, keys.consent(nothing), {"type": "check"}, nomkstream=True
        ),
    }
