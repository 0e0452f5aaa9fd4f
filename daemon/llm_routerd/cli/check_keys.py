"""The part of `check` that looks at our keys: does each hold what belongs there?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.cli.findings import Finding, fail, warn
from llm_routerd.client import as_text
from llm_routerd.errors import BrokerError

if TYPE_CHECKING:
    from llm_routerd.client import Shard
    from llm_routerd.protocol.keys import Keys


def hashes_of(keys: Keys) -> tuple[str, ...]:
    """Those that are hashes."""
    return (keys.workers, keys.boxes, keys.box_calls, keys.box_waiting)


async def types_of_others(shard: Shard, metrics: str) -> dict[str, str]:
    """Types of those keys of a shard that hold something else; of what this user may not look at, nothing is said.

    `metrics`: its metrics stream; "": it has none.
    """
    others = {}
    keys = shard.keys
    for key in (*keys.lanes, keys.dead, *hashes_of(keys), keys.audit, *([metrics] if metrics else [])):
        try:
            kind = as_text(await shard.patiently(lambda key=key: shard.redis.type(key)))  # type: ignore[misc]
        except BrokerError:
            continue
        if kind not in {"none", "hash" if key in hashes_of(keys) else "stream"}:
            others[key] = kind
    return others


def judge_keys(others: dict[str, str], keys: Keys, metrics: str) -> list[Finding]:
    """What it means that these keys are of these types."""
    findings = []
    for key, kind in others.items():
        is_lane, is_hash = key in keys.lanes, key in hashes_of(keys)
        lost = "no request in it is read" if is_lane else "nothing is kept there"
        wanted = "hash" if is_hash else "stream"
        remedy = f"RENAME {key} to another name and look at it, or DEL it if nobody needs it"
        judge = warn if key in {metrics, keys.audit} else fail
        findings.append(judge("lane" if is_lane else "key", f"{key} is not a {wanted} but a {kind}: {lost}", remedy))
    return findings
