"""The part of `check` that looks at replicas: how many there are, how far behind, and what waits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_routerd.cli.findings import Finding, fail, fine, warn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_routerd.config.tree import RedisConfig

_BEHIND_SECONDS = 10
_BEHIND_BYTES = 16 * 2**20


def judge_replicas(info: Mapping[str, Any], least: str, redis: RedisConfig, *, is_watched: bool) -> list[Finding]:
    """What the replicas of a primary mean for what is promised; nothing of a server that has and needs none.

    Args:
        info: what it says of its replication.
        least: its min-replicas-to-write; "": hidden.
        redis: what is asked of it.
        is_watched: somebody would promote one: Sentinels, or a Cluster.
    """
    if info.get("role") != "master":
        return []
    replicas = [info[f"slave{number}"] for number in range(int(info.get("connected_slaves", 0)))]
    connected = [each for each in replicas if isinstance(each, dict) and each.get("state") == "online"]
    findings = []
    if connected:
        findings.append(_judge_lag(connected, int(info.get("master_repl_offset", 0))))
    elif is_watched:
        findings.append(warn("replicas", "none: when this server goes, nobody can take its place", "start one"))
    return [*findings, *_judge_wait(len(connected), redis.wait_replicas), *_judge_least(len(connected), least)]


def _judge_lag(replicas: Sequence[Mapping[str, Any]], offset: int) -> Finding:
    behind = [(max(0, offset - int(each.get("offset", 0))), int(each.get("lag", 0))) for each in replicas]
    told = ", ".join(
        f"{each.get('ip')}:{each.get('port')} {size} bytes behind"
        + (f", silent for {seconds} s" if seconds > 1 else "")
        for each, (size, seconds) in zip(replicas, behind, strict=True)
    )
    if any(size > _BEHIND_BYTES or seconds > _BEHIND_SECONDS for size, seconds in behind):
        lost = "what they lack is lost if they take over; look at them, and at the network between"
        return warn("replicas", f"{len(replicas)}: {told}", lost)
    return fine("replicas", f"{len(replicas)}: {told}")


def _judge_wait(connected: int, wanted: int) -> list[Finding]:
    if not wanted:
        return []
    told = f"an answer counts when {wanted} have it, of {connected} that are connected"
    if wanted > connected:
        remedy = "start another, or lower [redis] wait_replicas: until then the primary alone has to do"
        return [warn("wait_replicas", told, remedy)]
    return [fine("wait_replicas", told)]


def _judge_least(connected: int, least: str) -> list[Finding]:
    wanted = int(least) if least.isdecimal() else 0
    if not wanted:
        return []
    told = f"writes are taken with {wanted} replicas at the least, and {connected} are connected"
    if wanted > connected:
        return [fail("min-replicas-to-write", told, "start another, or lower min-replicas-to-write")]
    return [fine("min-replicas-to-write", told)]
