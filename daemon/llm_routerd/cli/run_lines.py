"""What a person is told beside the answer: a line for each turn, call, word and result of a run, and for each wait."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Any

from llm_routerd.cli.terminal import json_line, one_line
from llm_routerd.client import CallConfirmed, CallDenied, Queued, ToolCalled, ToolReturned, TurnEnded

if TYPE_CHECKING:
    from llm_routerd.client import ClientEvent

_LONGEST = 300  # characters of arguments and results
_LONGEST_IN_LIST = 120  # of arguments, in a list of calls
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
            case CallConfirmed() | CallDenied():
                return f"{self._said(event)}{changes_of(event)}{_because(event.reason)}"
            case ToolReturned():
                answered = f"answered {brief(event.result)}" if event.error is None else f"failed: {brief(event.error)}"
                return f"{event.name} {answered}" + (f" ({_span(event.latency_ms)})" if event.latency_ms else "")
            case TurnEnded():
                return f"turn {event.turn} is done: {event.deployment}, {_span(event.latency_ms)}"
            case Queued():
                return f"waiting: {event.summary}"
            case _:
                return ""

    def _said(self, event: CallConfirmed | CallDenied) -> str:
        what = "confirmed" if isinstance(event, CallConfirmed) else "denied"
        return f"{self._names.get(event.call_id, event.call_id)} {what} by {event.by or 'somebody'}"


def changes_of(event: CallConfirmed | CallDenied) -> str:
    """What a person's yes is for beyond the call as it was shown: the end of its line."""
    if isinstance(event, CallDenied):
        return ""
    changed = "" if event.arguments is None else f", with {brief(event.arguments)}"
    return changed + (", and for the rest of the run" if event.always else "")


def brief(value: Any, most: int = _LONGEST) -> str:
    """A value on one line, cut where it is longer than so many characters."""
    text = one_line(value) if isinstance(value, str) else json_line(value)
    return text if len(text) <= most else f"{text[:most]}…"


def waiting_line(call_id: str, name: str, arguments: Any, expires_at_ms: int | None, now_ms: int) -> str:
    """The line of a call among others that wait for a person; `now_ms` 0: nobody knows what time it is."""
    told = one_line(f"{call_id}: {name} {brief(arguments, _LONGEST_IN_LIST)}")
    if expires_at_ms is None or not now_ms:
        return told
    left = max(0, expires_at_ms - now_ms) // 1000
    return f"{told}, {left // 60}:{left % 60:02d} left"


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
