"""What tools and people have said since the run was looked at last, and what follows: events, calls that are made now.

Whoever may write to an inbox is no person, and whoever may write a consent serves no tool: each counts in its own
stream only.  What does not count is passed over: another's `call_id`, a second answer, a word for other arguments than
those that were shown, or for arguments that the tool does not take.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

import orjson
from msgspec import Struct
from msgspec.structs import replace

from llm_routerd.agents.calls import due_ms, request_of
from llm_routerd.agents.registration import Tool
from llm_routerd.jsonschema.values import depth_of
from llm_routerd.judging.calls import fault_of_call
from llm_routerd.protocol.events import CallConfirmed, CallDenied, ToolReturned
from llm_routerd.protocol.numbers import carries_numbers
from llm_routerd.protocol.outcome import ToolCall
from llm_routerd.protocol.tool import TIMEOUT_MS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llm_routerd.agents.registration import Unsound
    from llm_routerd.agents.run import AgentRun, OpenCall
    from llm_routerd.protocol.request import Request
    from llm_routerd.protocol.tool import ToolRequest

MOST_RESULTS = 32  # of the longest, in one run: what comes after them is cut shorter
LEAST_RESULT_BYTES = 256  # however much has been told
_LONGEST_NAME = 200
_LONGEST_REASON = 2_000
_LONGEST_ERROR_BYTES = 4_096
_MAX_DEPTH = 64
_STEP_MS = 50  # in which a model is told how long its tool had
_CLOCK_ERROR_MS = 5
_NO_ANSWER = "the tool's answer has neither a result nor an error"
_UNTAKEN = "no tool took the call within {} s; it has not been made"
_UNKNOWN = (
    "unknown outcome: a tool has taken the call, and has not answered within {} s; it may have acted, and will not be "
    "called again for this"
)


class Answer(Struct, frozen=True):
    """What stands in an inbox: the beginning of a result or an error, and how long the whole is.

    `call_id` and `value` are as somebody wrote them; `value` is None where there is neither.
    """

    call_id: bytes
    value: bytes | None
    size: int
    is_error: bool = False


Consent = dict[bytes, bytes]  # the fields of an entry of a consent stream


class Heard(Struct, frozen=True, kw_only=True):
    """What one word comes to.

    Attributes:
        event: to be written.
        call: to be put on its tool's stream with it.
        ends: the call whose entry in its tool's stream has done its service.
        untaken: in the place of `event` where no tool has taken the call: nobody has acted then.
    """

    event: CallConfirmed | CallDenied | ToolReturned
    call: ToolRequest | None = None
    ends: OpenCall | None = None
    untaken: ToolReturned | None = None


class Listener:
    """Turns words into events, for one look at a run.

    Args:
        request: of the run.
        run: as it stands.
        tools: that are registered, by name.
        now_ms: by the server's clock.
        result_bytes: what is longer is cut.

    Attributes:
        ignored: how many words did not count.
    """

    def __init__(
        self,
        request: Request,
        run: AgentRun,
        tools: Mapping[str, Tool | Unsound],
        *,
        now_ms: int,
        result_bytes: int,
    ) -> None:
        self._request = request
        self._tools = tools
        self._now_ms = now_ms
        self._deadline_ms = run.deadline_ms
        self._result_bytes = result_bytes
        self._left_bytes = MOST_RESULTS * result_bytes - run.told_bytes
        self._open = {call.call_id: call for call in run.waiting()}
        self.ignored = 0

    def answers(self, answers: Iterable[Answer]) -> list[Heard]:
        """What tools have answered, in the order of the inbox."""
        return [heard for each in answers if (heard := self._counted(self._answer(each))) is not None]

    def consents(self, consents: Iterable[Consent]) -> list[Heard]:
        """What people have said, in the order of their stream."""
        return [heard for each in consents if (heard := self._counted(self._consent(each))) is not None]

    def late(self, calls: Sequence[OpenCall]) -> list[Heard]:
        """The time of these calls' tools is over."""
        return [self._late(call) for call in calls]

    def _counted(self, heard: Heard | None) -> Heard | None:
        self.ignored += heard is None
        return heard

    def _answer(self, answer: Answer) -> Heard | None:
        call = self._open.get(_text(answer.call_id, _LONGEST_NAME))
        if call is None or not call.waits_for_tool:
            return None
        del self._open[call.call_id]
        event = ToolReturned(call_id=call.call_id, name=call.name, latency_ms=max(0, self._now_ms - call.sent_at_ms))
        if answer.value is None:
            return Heard(event=replace(event, error=_NO_ANSWER), ends=call)
        if answer.is_error:
            error = _text(answer.value, _LONGEST_ERROR_BYTES) or "the tool failed"
            return Heard(event=replace(event, error=error), ends=call)
        most_bytes = max(LEAST_RESULT_BYTES, min(self._result_bytes, self._left_bytes))
        self._left_bytes -= min(answer.size, most_bytes)
        result = result_of(answer.value, answer.size, most_bytes)
        tool = self._tools.get(call.name)
        if isinstance(tool, Tool) and tool.result_schema is not None:
            problem = tool.result_schema.validate(result)
            if problem is not None:
                error = f"the tool's result does not satisfy its result_schema: {problem}"
                return Heard(event=replace(event, error=error), ends=call)
        return Heard(event=replace(event, result=result), ends=call)

    def _consent(self, said: Consent) -> Heard | None:
        by, reason = _text(said.get(b"by", b""), _LONGEST_NAME), _text(said.get(b"reason", b""), _LONGEST_REASON)
        agrees = b"confirm" in said and b"deny" not in said  # who says both has not agreed
        call = self._open.get(_text(said.get(b"confirm" if agrees else b"deny", b""), _LONGEST_NAME))
        if call is None or not call.waits_for_person or self._now_ms >= (call.expires_at_ms or 0):
            return None
        if not agrees:
            del self._open[call.call_id]
            return Heard(event=CallDenied(call_id=call.call_id, by=by, reason=reason))
        tool = self._tools.get(call.name)
        changed = self._changed(said.get(b"args"), tool)
        if said.get(b"args_sha256") != call.args_sha256.encode() or isinstance(changed, str):
            return None
        del self._open[call.call_id]
        always = said.get(b"always", b"") in {b"1", b"true"}
        event = CallConfirmed(call_id=call.call_id, by=by, reason=reason, arguments=changed, always=always)
        return self._confirmed(call, tool, event)

    @staticmethod
    def _changed(given: bytes | None, tool: Tool | Unsound | None) -> dict[str, Any] | str | None:
        """The arguments that a person gives, held to what a model's are; a string: what is wrong; None: none."""
        if given is None:
            return None
        if not isinstance(tool, Tool):
            return "the tool is gone"
        try:
            text = given.decode()
        except UnicodeDecodeError:
            return "no text"
        fault = fault_of_call(ToolCall.of(id="", name=tool.name, arguments=text), {tool.name: tool.parameters})
        found: dict[str, Any] | str = orjson.loads(text) if fault is None else fault
        return found

    def _confirmed(self, call: OpenCall, tool: Tool | Unsound | None, event: CallConfirmed) -> Heard:
        timeout_ms = tool.timeout_ms if isinstance(tool, Tool) else TIMEOUT_MS
        deadline_ms = due_ms(timeout_ms, self._now_ms, self._deadline_ms)
        arguments = call.arguments if event.arguments is None else event.arguments
        sent = request_of(self._request, call, arguments, deadline_ms)
        return Heard(event=replace(event, deadline_ms=deadline_ms), call=sent)

    def _late(self, call: OpenCall) -> Heard:
        latency_ms = max(0, self._now_ms - call.sent_at_ms)
        # As it was registered, in steps of 50 ms: the call was put on its stream a moment after that was worked out, or
        # before it, as this worker knows the server's clock.
        steps = ceil((call.deadline_ms - call.sent_at_ms - _CLOCK_ERROR_MS) / _STEP_MS)
        seconds = f"{max(1, steps) * _STEP_MS / 1000:g}"
        event = ToolReturned(call_id=call.call_id, name=call.name, latency_ms=latency_ms)
        return Heard(
            event=replace(event, error=_UNKNOWN.format(seconds)),
            ends=call,
            untaken=replace(event, error=_UNTAKEN.format(seconds)),
        )


def result_of(given: bytes, size: int, most_bytes: int) -> Any:
    """What a tool answered: its JSON, else its text; what is longer than `most_bytes` is cut, and says so.

    Args:
        given: its bytes, or the beginning of them.
        size: of the whole.
        most_bytes: that are kept.
    """
    if size > most_bytes:
        kept = given[:most_bytes].decode("utf-8", "replace").rstrip("\ufffd")  # of a letter that was cut through
        return f"{kept}\n[cut here: {size} bytes, of which {min(len(given), most_bytes)} are shown]"
    text = given.decode("utf-8", "replace")
    try:
        found = orjson.loads(given)
    except orjson.JSONDecodeError:
        return text
    return found if depth_of(found) <= _MAX_DEPTH and carries_numbers(text) else text


def _text(given: bytes, most: int) -> str:
    """A short text of somebody's, without characters that do something to a terminal."""
    text = given[:most].decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text)
