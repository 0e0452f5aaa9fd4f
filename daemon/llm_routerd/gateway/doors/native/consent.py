"""A person's word to a tool call that wants one: what it has to be, and whether it counts for what stands.

A word is given to what was shown: it names the hash of the arguments, so that nobody agrees to others than those seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson
from msgspec import Struct

from llm_routerd.gateway.fault import Fault, RefusedError, refused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llm_routerd.gateway.door import Body
    from llm_routerd.protocol.reading import SeenEvent

TOOL_CALL: Final = "tool_call"
_ANSWERS: Final = frozenset({"confirmed", "denied"})
_MOST_REASON: Final = 1_000
_KINDS: Final[dict[str, tuple[type, str]]] = {
    "confirm": (bool, "true or false"),
    "reason": (str, "a string"),
    "args": (dict, "an object"),
    "always": (bool, "true or false"),
    "args_sha256": (str, "a string"),
}


class Word(Struct, frozen=True, kw_only=True):
    """What a person says to a call.

    Attributes:
        agrees: whether the tool may be called.
        args_sha256: of the arguments as they were shown, from the event `tool_call`; "": not given.
        args: other arguments, for which the call may be made.
        always: this tool may be called for the rest of the run.
        reason: of a denial, for the model.
    """

    agrees: bool
    args_sha256: str = ""
    args: dict[str, Any] | None = None
    always: bool = False
    reason: str = ""

    def fields(self, call_id: str, by: str) -> dict[str, str | bytes]:
        """The fields of the entry in the consent stream; `by` is who says it."""
        if not self.agrees:
            return {"deny": call_id, "by": by, "reason": self.reason}
        told: dict[str, str | bytes] = {"confirm": call_id, "args_sha256": self.args_sha256, "by": by}
        if self.args is not None:
            told["args"] = orjson.dumps(self.args)
        return told | ({"always": "1"} if self.always else {})


def read(body: Body) -> Word:
    """Raises `RefusedError` where a body is no word."""
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name not in _KINDS:
            raise refused(name, f"unknown property; there are: {', '.join(_KINDS)}")
        kind, told = _KINDS[name]
        if not isinstance(value, kind):
            raise refused(name, f"expected {told}")
    if "confirm" not in given:
        raise refused("confirm", "expected true or false")
    agrees, reason = given["confirm"], given.get("reason", "")
    if len(reason) > _MOST_REASON:
        raise refused("reason", f"expected at most {_MOST_REASON} characters")
    if agrees and not given.get("args_sha256"):
        raise refused("args_sha256", "expected that of the `tool_call`: a word counts for arguments that were shown")
    for name in () if agrees else ("args", "always"):
        if name in given:
            raise refused(name, "only who confirms can give this")
    return Word(
        agrees=agrees,
        args_sha256=given.get("args_sha256", ""),
        args=given.get("args"),
        always=given.get("always", False),
        reason=reason,
    )


class Call:
    """What stands of one tool call: give it the events in order."""

    def __init__(self, call_id: str) -> None:
        self._call_id = call_id
        self._made: SeenEvent | None = None
        self._answer = ""
        self._has_ended = False

    def see(self, events: Iterable[SeenEvent]) -> None:
        """The events that follow."""
        for event in events:
            self._has_ended = self._has_ended or event.is_final
            if event.type in _ANSWERS | {TOOL_CALL} and event.data.get("call_id") == self._call_id:
                if event.type == TOOL_CALL:
                    self._made, self._answer = event, ""
                else:
                    self._answer = event.type

    def check(self, word: Word, now_ms: int) -> None:
        """Whether a word counts, when it is `now_ms` (Unix time by the Redis server's clock).

        Raises:
            RefusedError: 404, there is no such call; 409, it wants no word, has had one, or its request has ended;
                410, it has expired; 412, its arguments are others than those that were shown.
        """
        if self._made is None:
            raise _unfit(404, "not_found", "the request has made no tool call with this id")
        call = self._made.data
        if call.get("confirm") is not True:
            raise _unfit(409, "not_wanted", "this call waits for nobody's word")
        if self._answer:
            raise _unfit(409, self._answer, f"this call has been {self._answer} already")
        if self._has_ended:
            raise _unfit(409, "ended", "the request has ended")
        expires_at_ms = call.get("expires_at_ms")
        if isinstance(expires_at_ms, int) and expires_at_ms <= now_ms:
            raise _unfit(410, "confirmation_expired", "the time in which this call could be confirmed is over")
        if word.args_sha256 and word.args_sha256 != call.get("args_sha256"):
            raise _unfit(412, "other_arguments", "the call has other arguments than those that this word is for")


def _unfit(status: int, code: str, message: str) -> RefusedError:
    return RefusedError(Fault(status=status, code=code, message=message))
