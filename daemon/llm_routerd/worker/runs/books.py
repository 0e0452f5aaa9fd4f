"""What runs do, as it is counted and written into the audit.

A turn's calls of models, and what tools and people have said, are audited in the step that writes their events; only
whether a late call was taken by a tool shows when that stands, and is audited then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm_routerd.accounting.tally import Tally
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.events import CallConfirmed, CallDenied, ToolReturned

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from llm_routerd.accounting.metrics import Metrics
    from llm_routerd.agents.calls import Sending
    from llm_routerd.agents.run import AgentRun, Fail
    from llm_routerd.agents.words import Heard
    from llm_routerd.protocol.audit import AuditEntry, ToolOutcome
    from llm_routerd.protocol.reading import SeenEvent
    from llm_routerd.protocol.request import Request
    from llm_routerd.running.ending import Spent
    from llm_routerd.worker.auditing import Auditor
    from llm_routerd.worker.runs.taking_back import TakenBack

UNKNOWN_TOOL = "?"  # what a model wrote as the name of no tool is text of a model


class RunBooks:
    """Counts and audits for one worker.

    Args:
        metrics: its counters.
        auditor: makes entries of the audit.
    """

    def __init__(self, metrics: Metrics, auditor: Auditor) -> None:
        self._metrics = metrics
        self._auditor = auditor

    def audit_of_turn(
        self, request: Request, spent: Spent, number: int, sendings: Iterable[Sending], names: Container[str]
    ) -> list[AuditEntry]:
        """The calls of models that a turn took, and those of tools (of these `names`) with which something is wrong."""
        entries = list(self._auditor.calls(request, spent.attempts, turn=number))
        if not self._auditor.is_on:
            return entries
        audited = self._auditor.of(request)
        return entries + [
            audited.tool_call(tool=_known(event.name, names), call_id=event.call_id, turn=number, outcome="invalid")
            for each in sendings
            if isinstance(event := each.event, ToolReturned)
        ]

    def turn_ended(
        self,
        request: Request,
        spent: Spent,
        events: Sequence[SeenEvent],
        unaudited: str | None,
        names: Container[str],
    ) -> None:
        """A model's turn stands, and the run goes on."""
        self._metrics.turn_ended(request.tenant_id, spent.attempts, saved_usd=spent.saved_usd)
        for event in events:
            if isinstance(event, ToolReturned):
                self._metrics.tool_called(_known(event.name, names), "invalid")
        self._auditor.written(len(spent.attempts), unaudited)

    def called(self, request: Request, spent: Spent) -> None:
        """A turn was paid for, and does not stand."""
        self._metrics.called(spent.attempts)
        self._auditor.write(self._auditor.calls(request, spent.attempts))

    def audit_of_words(self, request: Request, run: AgentRun, heard: Iterable[Heard]) -> list[AuditEntry]:
        """What tools and people have said; of late calls nothing yet."""
        return [entry for each in heard if each.untaken is None for entry in self._entries(request, run, each.event)]

    def heard(
        self,
        request: Request,
        run: AgentRun,
        heard: Sequence[Heard],
        events: Sequence[SeenEvent],
        unaudited: str | None,
    ) -> None:
        """These words stand; `run` does not know of them yet."""
        late: list[AuditEntry] = []
        for each, event in zip(heard, events, strict=False):
            match event:
                case CallConfirmed():
                    self._metrics.confirmation("confirmed")
                case CallDenied():
                    self._metrics.confirmation("denied")
                    self._metrics.tool_called(run.calls[event.call_id].name, "denied")
                case ToolReturned():
                    is_untaken = each.untaken is not None and event.error == each.untaken.error
                    outcome = _outcome(event, is_late=each.untaken is not None, is_untaken=is_untaken)
                    self._metrics.tool_called(event.name, outcome)
                    if each.untaken is not None:
                        late += self._entries(request, run, event, outcome)
                case _:
                    pass
        self._auditor.write(late)
        self._auditor.written(len(heard) - len(late), unaudited)

    def failed(self, request: Request, run: AgentRun, fail: Fail) -> None:
        """A run ends while calls of it wait."""
        if fail.code is not ErrorCode.CONFIRMATION_EXPIRED:
            return
        asked = [call for call in run.waiting() if call.waits_for_person]
        for _ in asked:
            self._metrics.confirmation("expired")
        if self._auditor.is_on:
            audited = self._auditor.of(request)
            self._auditor.write(
                [
                    audited.confirmation(tool=call.name, call_id=call.call_id, turn=call.turn, outcome="expired")
                    for call in asked
                ]
            )

    def taken_back(self, request: Request, taken_back: TakenBack) -> None:
        """A run is over that had calls with their tools: one may have acted, or the call was withdrawn before that."""
        audited = self._auditor.of(request)
        entries = []
        for call, may_have_acted in taken_back.calls:
            outcome: ToolOutcome = "unknown_outcome" if may_have_acted else "withdrawn"
            self._metrics.tool_called(call.name, outcome)
            entries.append(audited.tool_call(tool=call.name, call_id=call.call_id, turn=call.turn, outcome=outcome))
        if self._auditor.is_on:
            self._auditor.write(entries)

    def ignored(self, count: int) -> None:
        """So many words of tools and people did not count."""
        self._metrics.count(Tally.TOOL_ANSWERS_IGNORED, count)

    def _entries(
        self, request: Request, run: AgentRun, event: SeenEvent, outcome: ToolOutcome | None = None
    ) -> list[AuditEntry]:
        call = run.calls.get(getattr(event, "call_id", ""))
        if call is None or not self._auditor.is_on:
            return []
        audited = self._auditor.of(request)
        who: dict[str, Any] = {"tool": call.name, "call_id": call.call_id, "turn": call.turn}
        match event:
            case CallConfirmed():
                return [audited.confirmation(**who, outcome="confirmed", by=event.by)]
            case CallDenied():
                return [
                    audited.confirmation(**who, outcome="denied", by=event.by),
                    audited.tool_call(**who, outcome="denied"),
                ]
            case ToolReturned():
                told = _outcome(event) if outcome is None else outcome
                return [audited.tool_call(**who, outcome=told, latency_ms=event.latency_ms)]
            case _:
                return []


def _known(name: str, names: Container[str]) -> str:
    return name if name in names else UNKNOWN_TOOL


def _outcome(event: ToolReturned, *, is_late: bool = False, is_untaken: bool = False) -> ToolOutcome:
    if is_late:
        return "timeout" if is_untaken else "unknown_outcome"
    return "result" if event.error is None else "error"
