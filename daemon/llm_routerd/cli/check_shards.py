"""The part of `check` that looks at shards: how many there are, and which of them nobody serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.cli.findings import Finding, fine, warn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llm_routerd.client import LaneState

_MOST_NAMED = 8


def judge_shards(lanes: Mapping[str, Sequence[LaneState]], current: Sequence[str]) -> list[Finding]:
    """What stands in each, by prefix; `current` are those of the layout in force."""
    workers = {prefix: frozenset[str]().union(*(lane.workers for lane in states)) for prefix, states in lanes.items()}
    unserved = [prefix for prefix in current if not workers[prefix]]
    least = min(len(workers[prefix]) for prefix in current)
    findings = [fine("shards", f"{len(current)}, each with {least} workers or more")]
    if unserved:
        told = f"{len(current)}; nobody serves {_named(unserved)}, where {_standing(lanes, unserved)}"
        remedy = "start a worker for them: one whose [redis] shards is the same, and serve is empty or names them"
        findings = [warn("shards", told, remedy)]
    earlier = [prefix for prefix in lanes if prefix not in current]
    left = [prefix for prefix in earlier if any(lane.waiting or lane.running for lane in lanes[prefix])]
    if unattended := [prefix for prefix in left if not workers[prefix]]:
        told = f"nobody serves {_named(unattended)} of an earlier layout, where {_standing(lanes, unattended)}"
        findings.append(warn("draining", told, "name that layout in [redis] draining of the workers"))
    elif left:
        findings.append(fine("draining", f"{_standing(lanes, left)} in {_named(left)} of an earlier layout"))
    elif earlier:
        told = "nothing waits in the earlier layouts any more: take them out once the last answers have expired"
        findings.append(fine("draining", told))
    return findings


def _standing(lanes: Mapping[str, Sequence[LaneState]], prefixes: Sequence[str]) -> str:
    states = [lane for prefix in prefixes for lane in lanes[prefix]]
    return f"{sum(lane.waiting for lane in states)} requests wait, {sum(lane.running for lane in states)} run"


def _named(prefixes: Sequence[str]) -> str:
    more = len(prefixes) - _MOST_NAMED
    return ", ".join(prefixes[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
