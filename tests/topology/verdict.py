"""What is true after a storm of failovers, and what was lost with a primary.

Replication is asynchronous: what a primary has acknowledged and no replica has got goes with it.  That excuses a second
call of a model, a stream that was rewritten, a request that had to be added again; and nothing else does.  A write is
proven lost when the primary that was left had it, by its own append-only file, and what stands at the end has not.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import GROUP
from tests.chaos.plan import MOST_DEATHS
from tests.chaos.verdict import RESUME_SECONDS, read_calls
from tests.topology.driver import events_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import redis

    from llm_routerd.protocol.keys import Keys
    from tests.chaos.verdict import Call
    from tests.chaos.world import World
    from tests.support.servers import ValkeyProcess
    from tests.topology.driver import Departure, Events
    from tests.topology.producers import Asked


@dataclass(slots=True)
class Findings:
    """`faults` is empty if nothing is wrong; `losses` counts what went with a primary, and what came of it."""

    faults: list[str] = field(default_factory=list)
    losses: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    longest_seconds: float = 0.0  # from a request's first XADD to its end, as its producer saw it


@dataclass(slots=True, kw_only=True)
class Request:
    """All that is known of one."""

    asked: Asked
    stands: Events
    lost: Events  # what was, and stands no more
    calls: Sequence[Call]
    left: Sequence[Departure]  # primaries that served its shard
    deaths: int  # of workers, from when it was added until its end was seen


def judge(
    world: World, primary: Callable[[Keys], ValkeyProcess], asked: Sequence[Asked], departures: Sequence[Departure]
) -> Findings:
    """Look at everything; `primary` is who serves a shard.  Blocks."""
    findings = Findings()
    stands = _read(primary, asked, world.channel, findings)
    calls = read_calls(world)
    findings.calls = len(calls)
    by_name: defaultdict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_name[call.name].append(call)
    for left in departures:
        gone = sum(
            stands.get(key, {}).get(at) != event for key, events in left.events.items() for at, event in events.items()
        )
        findings.losses[f"events lost by {left.kind}"] += gone
    for each in asked:
        key = each.keys.events(each.name)
        request = Request(
            asked=each,
            stands=stands.get(key, {}),
            lost=_lost(key, stands.get(key, {}), departures),
            calls=sorted(by_name[each.name], key=lambda call: call.start),
            left=[left for left in departures if each.keys in left.served],
            deaths=sum(each.added[0] <= life.end <= (each.ended_at or 0.0) for _, life in world.lives()),
        )
        judge_request(request, findings)
        if each.ended_at is not None:
            findings.longest_seconds = max(findings.longest_seconds, each.ended_at - each.added[0])
    return findings


def judge_request(request: Request, findings: Findings) -> None:
    """Add what is found of one."""
    _has_one_end(request, findings)
    _was_added_once(request, findings)
    _was_called_once(request, findings)
    _was_seen_as_it_stands(request, findings)


def _read(
    primary: Callable[[Keys], ValkeyProcess], asked: Sequence[Asked], channel: str, findings: Findings
) -> dict[str, Events]:
    """What stands, of all requests; and nothing else does."""
    stands: dict[str, Events] = {}
    for layout in {each.layout for each in asked}:
        for shard, keys in enumerate(layout.keys):
            with primary(keys).connect() as client:
                stands |= events_of(client, [each.keys.events(each.name) for each in asked if each.keys == keys])
                findings.faults += _left(client, keys, layout.metrics_channel(shard, channel))
    return stands


def _left(client: redis.Redis, keys: Keys, metrics: str) -> list[str]:
    """What should not be there any more."""
    faults = []
    for lane in keys.lanes:
        if waiting := client.xlen(lane):
            faults.append(f"{lane} still holds {waiting} entries")
        if client.exists(lane) and (pending := client.xpending(lane, GROUP)["pending"]):
            faults.append(f"{lane} still has {pending} pending entries")
    named = {*keys.lanes, keys.dead, keys.workers, keys.audit, metrics}
    there = client.scan_iter(match=f"{keys.prefix}:*", count=1000)
    return [*faults, *(f"{key} has no TTL" for key in there if key not in named and client.pttl(key) < 0)]


def _lost(key: str, stands: Events, departures: Sequence[Departure]) -> Events:
    """What primaries that were left had of it, and is not there now."""
    return {
        stream_id: event
        for left in departures
        for stream_id, event in left.events.get(key, {}).items()
        if stands.get(stream_id) != event
    }


def _has_one_end(request: Request, findings: Findings) -> None:
    """The final event is the last, and there is one: that it is the only one Redis sees to.

    Or its subscriber had his answer, from a primary that took it with it, the request and all.
    """
    *_, last = request.stands or [""]
    if not last and FINAL_ID in request.lost and request.asked.ended_at is not None:
        findings.losses["requests lost with the answer that was seen"] += 1
        findings.endings[request.lost[FINAL_ID][0]] += 1
        return
    if last != FINAL_ID:
        findings.faults.append(f"{request.asked.name}: no final event at the end, but {last or 'nothing'}")
        return
    findings.endings[request.stands[FINAL_ID][0]] += 1


def _was_added_once(request: Request, findings: Findings) -> None:
    """Or it stood in a primary that was left: in a lane, or it had events."""
    name = request.asked.name
    for first, again in pairwise(request.asked.added):
        findings.losses["requests added again"] += 1
        if not any(
            name in left.waiting or any(key.endswith(f":{name}") for key in left.events)
            for left in request.left
            if first <= left.span.end and left.span.start <= again
        ):
            findings.faults.append(f"{name} was not known any more, and no primary that went had it ({first:.2f})")


def _was_called_once(request: Request, findings: Findings) -> None:
    """Or the worker of the earlier call had died, or its attempt or its end was lost, or a model was refused."""
    lost_attempts = Counter(_slot(data) for kind, data in request.lost.values() if kind == "attempt")
    findings.losses["attempts lost"] += lost_attempts.total()
    if FINAL_ID in request.lost:
        findings.losses["ends lost"] += 1
    refused = sum(kind == "rejected" for kind, _ in [*request.stands.values(), *request.lost.values()])
    for call, again in pairwise(request.calls):
        if call.worker.end <= again.start or any(stop.end + RESUME_SECONDS >= call.start for stop in call.worker.stops):
            why = "its worker died"
        elif lost_attempts.total():
            why = "its attempt was lost"
        elif FINAL_ID in request.lost:
            why = "its end was lost"
        elif refused:
            why = "an attempt was refused"
        else:
            findings.faults.append(
                f"{request.asked.name} was called again: {call.model} {call.start:.2f}-{call.end:.2f} {call.how}, "
                f"{again.model} {again.start:.2f}-{again.end:.2f} {again.how}; what stands: {_told(request.stands)}; "
                f"what was lost: {_told(request.lost)}"
            )
            continue
        findings.losses[f"calls made again: {why}"] += 1


def _was_seen_as_it_stands(request: Request, findings: Findings) -> None:
    """The subscriber saw what stands, all of it, and it makes up the answer; or the rest was lost."""
    seen = {event.stream_id: (event.kind, event.data) for event in request.asked.seen}
    rewritten = {stream_id for stream_id, event in seen.items() if request.stands.get(stream_id) != event}
    if unproven := rewritten - request.lost.keys():
        findings.faults.append(f"{request.asked.name}: {unproven} were seen otherwise than they stand")
    if rewritten or request.lost:
        findings.losses["streams rewritten"] += 1
        return
    if FINAL_ID not in request.stands:
        return
    kind, data = request.stands[FINAL_ID]
    if json.loads(data).get("code") == "poisoned" and request.deaths >= MOST_DEATHS:
        findings.losses["requests given up after three workers had died"] += 1
        return
    if kind != "result":
        findings.faults.append(f"{request.asked.name} ended with {kind}: {data[:300]}")
        return
    attempt, text = json.loads(data)["attempt"], ""
    for stream_id, (what, token) in seen.items():
        if what == "token" and stream_id.startswith(f"{attempt}-"):
            text += json.loads(token)["text"]
    if text != json.loads(data)["content"] or set(seen) != set(request.stands):
        missed = set(request.stands) - set(seen)
        findings.faults.append(f"{request.asked.name}: the tokens that were seen are not the answer; missed {missed}")


def _slot(data: str) -> int:
    """Whose attempt it is: the models' names tell the worker's slot."""
    return int(json.loads(data)["model"].rpartition("-")[2])


def _told(events: Mapping[str, tuple[str, str]]) -> str:
    """Which there are, tokens left out."""
    return ", ".join(f"{stream_id} {kind}" for stream_id, (kind, _) in events.items() if kind != "token") or "nothing"
