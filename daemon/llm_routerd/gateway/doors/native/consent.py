"""A person's word to a tool call, as the body of a request has it, and how one that does not count is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llm_routerd.gateway.fault import Fault, RefusedError, refused
from llm_routerd.protocol.consent import Discounted, WhyNot, Word

if TYPE_CHECKING:
    from llm_routerd.gateway.door import Body

_MOST_REASON: Final = 1_000
_KINDS: Final[dict[str, tuple[type, str]]] = {
    "confirm": (bool, "true or false"),
    "reason": (str, "a string"),
    "args": (dict, "an object"),
    "always": (bool, "true or false"),
    "args_sha256": (str, "a string"),
}
_STATUSES: Final = {WhyNot.NOT_FOUND: 404, WhyNot.EXPIRED: 410, WhyNot.OTHER_ARGUMENTS: 412}
_CONFLICT: Final = 409


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


def discounted(told: Discounted) -> RefusedError:
    """Of a word that does not count.

    404: there is no such call; 409: it wants no word, has had one, or its request has ended; 410: it has expired; 412:
    its arguments are others than those that were shown.
    """
    return RefusedError(Fault(status=_STATUSES.get(told.why, _CONFLICT), code=told.why, message=told.message))
