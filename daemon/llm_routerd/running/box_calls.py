"""Calls on boxes, as a worker has them: what is wanted, what waits, what holds a slot; and what all are told of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import asdict, replace

from llm_routerd.queue.picture import CallDetails, Candidate, WaitingCall, WaitingDetails, Waits
from llm_routerd.running.boxes import resident_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llm_routerd.config.tree import Deployment
    from llm_routerd.fleet.waits import Wait
    from llm_routerd.protocol.keys import Lane

_LEAST_SECONDS = 0.001
UNKNOWN_SECONDS = 10.0  # that a call is taken to last


class Wanted(Struct, frozen=True, kw_only=True):
    """A call that wants a slot.

    Attributes:
        members: the deployments that may make it, one for each box.
        key: what calls have in common whose prompts begin alike; "": nothing.
        prompt_tokens: tells about how many, 0 if that is not known; only asked of what waits.
        max_tokens: more its answer cannot have; None: nobody says.
        since: loop time since which it waits, where it has waited or run before; None: from now on.
        is_firm: it is not cut any more for others.
        on_wait: told what each plan says of the wait, some times a second; it neither blocks nor raises.
        begin_by: loop time at which it is given up without a slot; None: never.
        end_by: likewise, without an answer.
    """

    members: Sequence[Deployment]
    lane: Lane = "normal"
    tenant: str | None = None
    key: str = ""
    prompt_tokens: Callable[[], int] = lambda: 0
    max_tokens: int | None = None
    since: float | None = None
    is_firm: bool = False
    on_wait: Callable[[Wait], None] = lambda _wait: None
    begin_by: float | None = None
    end_by: float | None = None


class Slot:
    """A slot that was granted, until it is released.

    Attributes:
        token: the call's name in the shared picture.
        deployment: that makes it.
        wanted: what was asked for.
        since: loop time at which it was granted.
        loads: its model is to be loaded first.
        is_cut: it has been taken away for the high lane.
        on_cut: called once when it is; whoever makes the call sets it.
    """

    __slots__ = ("deployment", "is_cut", "loads", "on_cut", "since", "token", "wanted")

    def __init__(
        self, token: str, deployment: Deployment, wanted: Wanted, *, since: float, loads: bool = False
    ) -> None:
        self.token = token
        self.deployment = deployment
        self.wanted = wanted
        self.since = since
        self.loads = loads
        self.is_cut = False
        self.on_cut: Callable[[], object] = lambda: None

    @property
    def is_cuttable(self) -> bool:
        """Whether it may be taken away for the high lane."""
        return self.wanted.lane == "low" and not self.wanted.is_firm and not self.is_cut

    def cut(self) -> None:
        """Take it away: the call is to be broken off."""
        if not self.is_cut:
            self.is_cut = True
            self.on_cut()


class WaitingForSlot:
    """A call that waits.

    Attributes:
        members: by box.
        granted: gets the slot, or why there will be none.
        wait: what the last plan said.
        is_told: all workers know of it.
        is_counted: it is among those that wait here.
        down_since: loop time since which no box that may serve it has answered; None: one has.
    """

    def __init__(self, wanted: Wanted, tokens: int) -> None:
        loop = asyncio.get_running_loop()
        self.members = {each.box or "": each for each in wanted.members}
        self.wanted = wanted
        self.since = loop.time() if wanted.since is None else wanted.since
        self.granted: asyncio.Future[Slot | str] = loop.create_future()
        self.wait: Wait | None = None
        self.is_told = self.is_counted = False
        self.down_since: float | None = None
        self._tokens = tokens

    def leave(self, deployment: Deployment) -> None:
        """Wait for that box no more, if there is another."""
        others = tuple(each for each in self.wanted.members if each.name != deployment.name)
        if 0 < len(others) < len(self.wanted.members):
            self.wanted = replace(self.wanted, members=others)
            del self.members[deployment.box or ""]
            self.is_told = False

    @property
    def details(self) -> WaitingDetails:
        """What all workers are told."""
        wanted = self.wanted
        return WaitingDetails(
            lane=wanted.lane,
            candidates=tuple(Candidate(each.box or "", resident_name(each)) for each in wanted.members),
            tenant=wanted.tenant,
            expected_seconds=UNKNOWN_SECONDS,
            tokens=self._tokens,
            prompt_tokens=wanted.prompt_tokens(),
            affinity=wanted.key or None,
            begin_within=self._within(wanted.begin_by),
            end_within=self._within(wanted.end_by),
        )

    def _within(self, by: float | None) -> float:
        """Seconds from when it began to wait; 0: there is no end."""
        return 0.0 if by is None else max(_LEAST_SECONDS, by - self.since)

    def told(self, token: str, now: float) -> Waits:
        """How they are told."""
        return Waits(token=token, details=self.details, waited_seconds=now - self.since)

    def pictured(self, token: str, worker: str, now: float, now_ms: int) -> WaitingCall:
        """As it will stand in the picture, once they have been."""
        since_ms = now_ms - round((now - self.since) * 1000)
        return WaitingCall(**asdict(self.details), token=token, worker=worker, since_ms=since_ms, until_ms=now_ms)


def call_details(wanted: Wanted, deployment: Deployment, seconds: float) -> CallDetails:
    """What all workers are told of a call that has a slot, and is expected to take so many seconds."""
    return CallDetails(
        lane=wanted.lane,
        box=deployment.box or "",
        model=resident_name(deployment),
        deployment=deployment.name,
        tenant=wanted.tenant,
        expected_seconds=seconds,
        is_firm=wanted.is_firm,
    )
