"""The part of `check` that looks at Sentinels: do they answer, agree, and suffice for a failover?"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from llm_routerd.cli.findings import Finding, fail, fine, warn
from llm_routerd.queue.connection import surroundings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.queue.connection.surroundings import SentinelView

_MAJORITY_OF = 3


async def check_sentinels(url: str) -> list[Finding]:
    """What the Sentinels of a URL say; nothing where it names none."""
    if "+sentinel://" not in url:
        return []
    return judge_sentinels(await surroundings.sentinels_of(url))


async def judge_lone_sentinel(url: str) -> Finding | None:
    """What to do where the URL leads to a Sentinel as if that were the server; None: it leads to none."""
    found = await surroundings.services_at(url)
    if found is None:
        return None
    (host, port), services = found
    told = f"a Sentinel answers, which keeps no data; it watches {', '.join(services) or 'nothing'}"
    return fail("server", told, f"write redis+sentinel://{host}:{port}/{services[0] if services else 'service'}")


def judge_sentinels(views: Sequence[SentinelView]) -> list[Finding]:
    """What their views mean, of one service."""
    answering = [view for view in views if view.primary is not None]
    findings = [
        warn(f"sentinel {_at(view.place)}", view.trouble, "mend it, or take it out of the Redis URL")
        for view in views
        if view.primary is None
    ]
    if not answering:
        return findings
    return [*findings, _judge_agreement(answering, len(views)), *_judge_quorum(answering)]


def _judge_agreement(answering: Sequence[SentinelView], count: int) -> Finding:
    named = Counter(view.primary for view in answering if view.primary is not None)
    if len(named) > 1:
        told = ", ".join(f"{_at(place)} ({votes})" for place, votes in named.most_common())
        return warn(
            "sentinels", f"they name several primaries: {told}", "wait until the failover is over, or SENTINEL RESET"
        )
    (primary,) = named
    return fine("sentinels", f"{len(answering)} of {count} answer, and name {_at(primary)} the primary")


def _judge_quorum(answering: Sequence[SentinelView]) -> list[Finding]:
    known = max(view.others for view in answering) + 1
    quorum = max(view.quorum for view in answering)
    told = f"{quorum} must agree that the primary is gone; {known} Sentinels know each other"
    if any(view.has_quorum is False for view in answering):
        return [fail("quorum", f"{told}, and too few of them can be reached: there is no failover", "start the others")]
    if known < _MAJORITY_OF:
        return [warn("quorum", told, f"run {_MAJORITY_OF}: a failover needs most of them, and one may be gone as well")]
    if all(view.has_quorum is None for view in answering):
        return [warn("quorum", f"{told}; cannot tell whether enough can be reached", "let us run SENTINEL CKQUORUM")]
    return [fine("quorum", f"{told}, and enough can be reached")]


def _at(place: tuple[str, int]) -> str:
    return f"{place[0]}:{place[1]}"
