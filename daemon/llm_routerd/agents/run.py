"""One run, replayed from its events: what is to be done next.

- `apply` is given every event of the request in order, those that this worker has written and those that it finds:
  both lead to the same state, so that a run goes on wherever its worker died.
- A turn stands with its `turn` event.  What an attempt without one has left is passed over, and the turn asked again.
- Calls of a turn wait for a person first, where one must agree, then for their tool; the next turn is asked when each
  has come to something.
- A word or an answer counts once, and only for a call that waits for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from llm_routerd.agents.conversation import told_result
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.events import (
    AttemptRejected,
    AttemptStarted,
    CallConfirmed,
    CallDenied,
    ToolCalled,
    ToolReturned,
    TurnEnded,
)
from llm_routerd.protocol.outcome import AttemptSummary, Outcome, Usage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llm_routerd.protocol.events import StreamEvent


class Ask(Struct, frozen=True, kw_only=True):
    """Ask the chain for a turn.

    Attributes:
        turn: its number, from 1 on.
        is_last: no tool is offered, so that the model must answer.
        messages: what comes after the request's own.
    """

    turn: int
    is_last: bool
    messages: tuple[dict[str, Any], ...]


class Wait(Struct, frozen=True, kw_only=True):
    """Wait for tools, or people, until the server's clock says `until_ms`.

    Attributes:
        for_tools, for_people: ids of the calls that wait for them.
    """

    until_ms: int
    for_tools: tuple[str, ...]
    for_people: tuple[str, ...]


class Expire(Struct, frozen=True):
    """The time of these calls' tools is over: their model is told so."""

    calls: tuple[OpenCall, ...]


class Fail(Struct, frozen=True):
    """The run has no answer."""

    code: ErrorCode
    message: str


Decision = Ask | Wait | Expire | Fail


class OpenCall(Struct, kw_only=True):
    """A call of the turn that stands, and what has come of it.

    Attributes:
        arguments: those that the tool is called with.
        changed: a person has put them in the place of the model's.
        entry: of the call in its tool's stream; None: it has not been put there.
        deadline_ms: until when its tool's answer is waited for.
        expires_at_ms: until when a person may agree; None: none has to.
        content: what the model is told of it; None: it waits.
    """

    call_id: str
    name: str
    arguments: Any
    args_sha256: str
    turn: int
    changed: bool = False
    entry: str | None = None
    deadline_ms: int = 0
    expires_at_ms: int | None = None
    content: str | None = None

    @property
    def waits_for_person(self) -> bool:
        """Whether somebody must agree first."""
        return self.content is None and self.entry is None and self.expires_at_ms is not None

    @property
    def waits_for_tool(self) -> bool:
        """Whether its tool has been told and has not answered."""
        return self.content is None and self.entry is not None

    @property
    def sent_at_ms(self) -> int:
        """When it was put on its tool's stream, by the server's clock."""
        return int((self.entry or "0").partition("-")[0])


class Spent(Struct, kw_only=True):
    """What the turns that stand have taken.

    `cost_usd` is None where a price is not known; `tool_calls` is their number.
    """

    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = 0.0
    is_estimated: bool = False
    attempts: list[AttemptSummary] = field(default_factory=list)
    tool_calls: int = 0


class AgentRun:
    """The state of one run.

    Args:
        max_turns: calls to a model that stand; in the last one no tool is offered.

    Attributes:
        turn: how many stand.
        calls: of the last of them, by id, in their order.
        always: names of the tools that wait for nobody any more.
        corrected: deployments that have been told once what was wrong with a call.
        started_ms: when the request was picked up, as an earlier turn has it; 0: none stands.
        deadline_ms: until when the answer is wanted, by the server's clock, as an earlier turn has it.
        spent: by the turns that stand.
    """

    def __init__(self, max_turns: int) -> None:
        self._max_turns = max_turns
        self._begin()

    def _begin(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._coming: list[ToolCalled | ToolReturned] = []  # of an attempt that has no `turn` yet
        self.turn = 0
        self.calls: dict[str, OpenCall] = {}
        self.always: set[str] = set()
        self.corrected: set[str] = set()
        self.started_ms = 0
        self.deadline_ms: int | None = None
        self.spent = Spent()

    # ------------------------------------------------------------------ what has happened

    def apply(self, event: StreamEvent) -> None:
        """The next event of the request."""
        match event:
            case AttemptStarted(entry=str()):  # what came before was another entry's, which is gone
                self._begin()
            case AttemptStarted():
                self._coming.clear()
            case AttemptRejected():
                self._rejected(event)
            case ToolCalled():
                self._coming.append(event)
            case ToolReturned() if (call := self.calls.get(event.call_id)) is not None and call.content is None:
                self._returned(call, event)
            case ToolReturned():
                self._coming.append(event)
            case TurnEnded():
                self._ended(event)
            case CallConfirmed() | CallDenied():
                self._said(event)
            case _:
                pass

    def _rejected(self, event: AttemptRejected) -> None:
        self.spent.attempts.append(
            AttemptSummary(
                model=event.model,
                deployment=event.deployment,
                outcome=event.outcome,
                code=event.code,
                reason=event.reason,
                latency_ms=event.latency_ms,
            )
        )

    def _ended(self, event: TurnEnded) -> None:
        """A turn stands, with the calls that came before."""
        self._settle_messages()
        coming, self._coming = self._coming, []
        self.turn = max(self.turn + 1, event.turn)
        self.calls = {}
        self._messages.append(event.message)
        for each in coming:
            if isinstance(each, ToolCalled):
                self._called(each)
            elif (call := self.calls.get(each.call_id)) is not None:
                self._returned(call, each)
                self.corrected.add(event.deployment)  # at once, and so for what was wrong with the call
        self.started_ms, self.deadline_ms = event.started_ms, event.deadline_ms
        self._count(event)

    def _called(self, event: ToolCalled) -> None:
        self.calls[event.call_id] = OpenCall(
            call_id=event.call_id,
            name=event.name,
            arguments=event.arguments,
            args_sha256=event.args_sha256,
            turn=event.turn,
            entry=event.entry,
            deadline_ms=event.deadline_ms or 0,
            expires_at_ms=event.expires_at_ms if event.confirm else None,
        )

    def _count(self, event: TurnEnded) -> None:
        spent = self.spent
        spent.usage += event.usage
        spent.tool_calls += len(self.calls)
        is_known = spent.cost_usd is not None and event.cost_usd is not None
        spent.cost_usd = (spent.cost_usd or 0.0) + (event.cost_usd or 0.0) if is_known else None
        spent.is_estimated = spent.is_estimated or event.cost_estimated
        spent.attempts.append(
            AttemptSummary(
                model=event.model,
                deployment=event.deployment,
                outcome=Outcome.SUCCESS,
                code=None,
                reason=None,
                latency_ms=event.latency_ms,
            )
        )

    def _returned(self, call: OpenCall, event: ToolReturned) -> None:
        call.content = told_result(event, changed=call.arguments if call.changed else None)

    def _said(self, event: CallConfirmed | CallDenied) -> None:
        call = self.calls.get(event.call_id)
        if call is None or not call.waits_for_person:
            return
        if isinstance(event, CallDenied):
            call.content = "error: a person denied this call" + (f": {event.reason}" if event.reason else "")
            return
        if event.arguments is not None:
            call.arguments, call.changed = event.arguments, True
        if event.always:
            self.always.add(call.name)
        call.expires_at_ms = None
        call.entry, call.deadline_ms = event.entry, event.deadline_ms or 0

    # ------------------------------------------------------------------ what follows from it

    def decide(self, now_ms: float) -> Decision:
        """What is to be done, when it is `now_ms` by the server's clock (Unix time)."""
        waiting = self.waiting()
        if not waiting:
            return self._next_turn()
        if self.deadline_ms is not None and now_ms >= self.deadline_ms:
            return Fail(ErrorCode.DEADLINE_EXCEEDED, f"the deadline came while {_awaited(waiting)}")
        people = tuple(call for call in waiting if not call.waits_for_tool)
        for call in people:
            if now_ms >= (call.expires_at_ms or 0):
                return Fail(
                    ErrorCode.CONFIRMATION_EXPIRED, f"nobody confirmed or denied the call of `{call.name}` in time"
                )
        tools = tuple(call for call in waiting if call.waits_for_tool)
        if late := tuple(call for call in tools if now_ms >= call.deadline_ms):
            return Expire(late)
        ends = [*(call.deadline_ms for call in tools), *(call.expires_at_ms or 0 for call in people)]
        return Wait(
            until_ms=min(ends if self.deadline_ms is None else [*ends, self.deadline_ms]),
            for_tools=tuple(call.call_id for call in tools),
            for_people=tuple(call.call_id for call in people),
        )

    @property
    def told_bytes(self) -> int:
        """How much its models have been told of results so far."""
        earlier = sum(len(message["content"] or "") for message in self._messages if message["role"] == "tool")
        return earlier + sum(len(call.content or "") for call in self.calls.values())

    def waiting(self) -> tuple[OpenCall, ...]:
        """The calls that have come to nothing yet."""
        return tuple(call for call in self.calls.values() if call.content is None)

    def dispatched(self) -> Iterator[OpenCall]:
        """Those of them that stand in their tools' streams."""
        return (call for call in self.waiting() if call.waits_for_tool)

    def _next_turn(self) -> Ask | Fail:
        turn = self.turn + 1
        if turn > self._max_turns:  # others have been asked for it meanwhile, or the operator has changed the number
            return Fail(ErrorCode.TURNS_EXHAUSTED, f"{self.turn} turns stand, and none brought an answer")
        return Ask(turn=turn, is_last=turn == self._max_turns, messages=(*self._messages, *self._results()))

    def _settle_messages(self) -> None:
        self._messages += self._results()

    def _results(self) -> tuple[dict[str, Any], ...]:
        return tuple(
            {"role": "tool", "tool_call_id": call.call_id, "content": call.content} for call in self.calls.values()
        )


def _awaited(calls: tuple[OpenCall, ...]) -> str:
    """What calls wait for, for whoever reads how the run has ended."""
    people = dict.fromkeys(f"`{call.name}` waited for a person" for call in calls if not call.waits_for_tool)
    tools = dict.fromkeys(f"`{call.name}` had no answer" for call in calls if call.waits_for_tool)
    return ", ".join((*people, *tools))
