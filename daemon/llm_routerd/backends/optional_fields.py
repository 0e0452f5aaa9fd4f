"""What of a request may be left out for a server that refuses it, and what that costs the caller.

Servers differ in what they let stand in a request: some answer 400 or 422 to a field that others pass over.  Such a
refusal is no verdict on the deployment.  The call is made once more without the field; if that is answered, the
deployment is never sent the field again.  To be learned the refusal has to name the field and call it unknown or
unsupported, and the call without it has to be answered: an error that merely quotes a prompt teaches nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from llm_routerd.core.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    import aiohttp

# Field: how a refusal names it, and what is lost without it.
OPTIONAL_FIELDS = {
    "stream_options": (re.compile(r"stream_options|include_usage"), "tokens are not counted"),
    "parallel_tool_calls": (re.compile(r"parallel_tool_calls"), "calls of tools may come several at once"),
    "response_format": (re.compile(r"response_format|json_schema"), "a schema is put to the model in words"),
    "reasoning_effort": (re.compile(r"reasoning_effort"), "the model thinks as much as it likes"),
    "think": (re.compile(r"\bthink(?:ing)?\b"), "the model thinks as much as it likes"),
}
_REFUSES = re.compile(
    r"unknown|unsupported|unrecogni[sz]ed|unexpected|extra_forbidden|extra (?:inputs|fields)|no such"
    r"|not (?:supported|permitted|allowed|implemented|accepted|recogni[sz]ed)"
    r"|(?:does not|doesn't|do not|don't|cannot|can't) support|invalid (?:field|parameter|argument)",
    re.IGNORECASE,
)
_STATUSES = frozenset({400, 404, 422, 501})
_MAX_LOOKED_AT = 4096


def refused_field(status: int, body: bytes) -> str | None:
    """The optional field that an error answer refuses by name; None if it is about anything else."""
    if status not in _STATUSES:
        return None
    text = body[:_MAX_LOOKED_AT].decode(errors="replace")
    if not _REFUSES.search(text):
        return None
    return next((name for name, (named, _) in OPTIONAL_FIELDS.items() if named.search(text)), None)


class Omissions:
    """The fields that one deployment is not sent, since its server refuses them."""

    def __init__(self) -> None:
        self._omitted: set[str] = set()

    async def ask(
        self,
        make_body: Callable[[Collection[str]], dict[str, Any]],
        post: Callable[[dict[str, Any]], Awaitable[aiohttp.ClientResponse]],
    ) -> aiohttp.ClientResponse:
        """Post the body that `make_body` makes without the fields it is given; again where a further one is refused.

        Raises:
            BackendError: as `Transport.post`.
        """
        omitted = set(self._omitted)
        while True:
            body = make_body(omitted)
            try:
                response = await post(body)
            except BackendError as error:
                if error.refused_field is None or error.refused_field not in body:
                    raise
                omitted.add(error.refused_field)
                continue
            self._omitted |= omitted
            return response

    async def examine(
        self, body: dict[str, Any], post: Callable[[dict[str, Any]], Awaitable[aiohttp.ClientResponse]]
    ) -> str:
        """Find out which fields of a body that can have no answer are refused by name; learns nothing for calls.

        Returns:
            the end of a line for a person: what will be left out and what that costs; empty if nothing.
        """
        refused = set(self._omitted)
        for _ in OPTIONAL_FIELDS:
            try:
                (await post(without(body, refused))).close()
                break
            except BackendError as error:
                if error.refused_field is None or error.refused_field in refused:
                    break
                refused.add(error.refused_field)
        return "".join(f"; refuses {name}, left out: {OPTIONAL_FIELDS[name][1]}" for name in sorted(refused))


def without(body: dict[str, Any], omitted: Collection[str]) -> dict[str, Any]:
    """A body without some of its fields."""
    return {name: value for name, value in body.items() if name not in omitted} if omitted else body
