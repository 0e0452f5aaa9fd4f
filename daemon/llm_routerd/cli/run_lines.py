"""What a person is told of a run with tools: a line for each turn, call, word and result."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Any

from llm_routerd.cli.terminal import json_line, one_line
from llm_routerd.client import CallConfirmed, CallDenied, ToolCalled, ToolReturned, TurnEnded

if TYPE_CHECKING:
    from llm_routerd.client import ClientEvent

_LONGEST = 300  # characters of arguments and results
_A_SECOND_MS = 1_000


class RunLines:
    """Those of one run: give it the events in order."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}  # of tools, by the ids of their calls

    def of(self, event: ClientEvent) -> str:
        """The line of an event; "": it has none."""
        match event:
            case ToolCalled():
                self._names[event.call_id] = event.name
                return f"calls {event.name} {brief(event.arguments)}"
            case CallConfirmed():
                changed = "" if event.arguments is None else f", with {brief(event.arguments)}"
                always = ", and for the rest of the run" if event.always else ""
                return f"{self._said(event, 'confirmed')}{changed}{always}{_because(event.reason)}"
            case CallDenied():
                return f"{self._said(event, 'denied')}{_because(event.reason)}"
            case ToolReturned():
                answered = f"answered {brief(event.result)}" if event.error is None else f"failed: {brief(event.error)}"
                return f"{event.name} {answered}" + (f" ({_span(event.latency_ms)})" if event.latency_ms else "")
            case TurnEnded():
                return f"turn {event.turn} is done: {event.deployment}, {_span(event.latency_ms)}"
            case _:
                return ""

    def _said(self, event: CallConfirmed | CallDenied, what: str) -> str:
        return f"{self._names.get(event.call_id, event.call_id)} {what} by {event.by or 'somebody'}"


def brief(value: Any) -> str:
    """A value on one line, cut where it is long."""
    text = one_line(value) if isinstance(value, str) else json_line(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def how_to_answer(request_id: str, call: ToolCalled) -> str:
    """The line of a call that waits for a person whom nobody asks here."""
    answer = f"{request_id} {shlex.quote(call.call_id)}"
    return f"{call.name} waits for a person{until(call)}: llm-routerd confirm {answer} (or deny)"


def until(call: ToolCalled) -> str:
    """Until when a person may agree, by this machine's time of day."""
    if call.expires_at_ms is None:
        return ""
    return f" until {time.strftime('%H:%M:%S', time.localtime(call.expires_at_ms / 1000))}"


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _span(ms: int) -> str:
    return f"{ms} ms" if ms < _A_SECOND_MS else f"{ms / 1000:.1f} s"
