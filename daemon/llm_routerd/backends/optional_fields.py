"""What of a request may be left out for a server that refuses it, and what that costs the caller.

Servers differ in what they let stand in a request: some answer 400 or 422 to a field that others pass over.  Such a
refusal is no verdict on the deployment.  The call is made once more without the field; if that is answered, the
deployment is never sent the field with that value again.  To be learned the refusal has to name the field and call it
unknown or unsupported, and the call without it has to be answered: an error that merely quotes a prompt teaches
nothing.  It is the value that is remembered because the next caller's may be welcome: one schema that a server cannot
constrain to, or one effort that it does not know, is no reason to take schemas and efforts from everybody.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from llm_routerd.protocol.call import BackendError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    import aiohttp

# Field: how a refusal names it, and what is lost without it.
OPTIONAL_FIELDS = {
    "stream_options": (re.compile(r"stream_options|include_usage"), "tokens are not counted"),
    "parallel_tool_calls": (re.compile(r"parallel_tool_calls"), "calls of tools may come several at once"),
    "response_format": (
        re.compile(r"response_format|json[_ ]schema", re.IGNORECASE),
        "a schema stands in words alone",
    ),
    "reasoning_effort": (re.compile(r"reasoning_effort"), "the model thinks as much as it likes"),
    "think": (re.compile(r"\bthink(?:ing)?\b"), "the model thinks as much as it likes"),
}
# Ollama's OpenAI-compatible side calls the one by its name for the other.
_ALSO_NAMES = {"think": "reasoning_effort"}
_REFUSES = re.compile(
    r"unknown|unsupported|unrecogni[sz]ed|unexpected|unavailable|extra_forbidden|extra (?:inputs|fields)|no such"
    r"|not (?:supported|permitted|allowed|implemented|accepted|recogni[sz]ed)|must be|enabled only"
    r"|(?:does not|doesn't|do not|don't|cannot|can't) support|invalid (?:field|parameter|argument|schema)",
    re.IGNORECASE,
)
_STATUSES = frozenset({400, 404, 422, 501})
_MAX_LOOKED_AT = 4096
_MAX_MATCHES = 32
_MAX_REFUSED = 1000


def refused_field(status: int, body: bytes) -> str | None:
    """The optional field that an error answer refuses by name; None if it is about anything else.

    Of several names it is the one nearest to the words that refuse: the others are what the server would take, or
    stand in a request that it repeats.
    """
    if status not in _STATUSES:
        return None
    text = body[:_MAX_LOOKED_AT].decode(errors="replace")
    refusals = [match.span() for match in islice(_REFUSES.finditer(text), _MAX_MATCHES)]
    distances = {
        name: min(
            (
                max(0, match.start() - end, start - match.end())
                for match in islice(named.finditer(text), _MAX_MATCHES)
                for start, end in refusals
            ),
            default=_MAX_LOOKED_AT,
        )
        for name, (named, _) in OPTIONAL_FIELDS.items()
    }
    nearest = min(distances, key=distances.__getitem__)
    return nearest if distances[nearest] < _MAX_LOOKED_AT else None


_Response = TypeVar("_Response")


class Omissions:
    """What one deployment is not sent, since its server refuses it."""

    def __init__(self) -> None:
        self._refused: set[tuple[str, int]] = set()  # fields, and the hashes of the values that were refused

    async def ask(
        self,
        make_body: Callable[[Collection[str]], dict[str, Any]],
        post: Callable[[dict[str, Any]], Awaitable[_Response]],
    ) -> _Response:
        """Post the body that `make_body` makes without the fields it is given; again where a further one is refused.

        Raises:
            BackendError: as `post`.
        """
        body = whole = make_body(())
        omitted: set[str] = set()
        if self._refused:
            omitted = {name for name in OPTIONAL_FIELDS.keys() & whole.keys() if self._is_refused(name, whole[name])}
            body = make_body(omitted)
        refused = None
        while True:
            try:
                response = await post(body)
            except BackendError as error:
                refused = _refused_of(error, body)
                if refused is None:
                    raise
                omitted.add(refused)
                body = make_body(omitted)
                continue
            # Of several only the last: without it left out the call was refused, the others may have been quoted.
            if refused is not None:
                self._learn(refused, whole[refused])
            return response

    async def examine(
        self, body: dict[str, Any], post: Callable[[dict[str, Any]], Awaitable[aiohttp.ClientResponse]]
    ) -> str:
        """Find out which fields of a body that can have no answer are refused by name; learns nothing for calls.

        Returns:
            the end of a line for a person: what will be left out and what that costs; empty if nothing.
        """
        refused: set[str] = set()
        for _ in OPTIONAL_FIELDS:
            left = without(body, refused)
            try:
                (await post(left)).close()
                break
            except BackendError as error:
                name = _refused_of(error, left)
                if name is None:
                    break
                refused.add(name)
        refused |= {name for name, _ in self._refused}
        return "".join(map(left_out, sorted(refused)))

    def _is_refused(self, name: str, value: Any) -> bool:
        return (name, _hash(value)) in self._refused

    def _learn(self, name: str, value: Any) -> None:
        if len(self._refused) >= _MAX_REFUSED:
            self._refused.clear()
        self._refused.add((name, _hash(value)))


def _hash(value: Any) -> int:
    return hash(repr(value))


def _refused_of(error: BackendError, body: dict[str, Any]) -> str | None:
    """The field of this body that the server refuses, if that is what the error says."""
    name = error.refused_field
    if name is not None and name not in body:
        name = _ALSO_NAMES.get(name)
    return name if name in body else None


def left_out(name: str) -> str:
    """The end of a line for a person: a field is not sent, and what that costs."""
    return f"; refuses {name}, left out: {OPTIONAL_FIELDS[name][1]}"


def without(body: dict[str, Any], omitted: Collection[str]) -> dict[str, Any]:
    """A body without some of its fields."""
    return {name: value for name, value in body.items() if name not in omitted} if omitted else body
