"""`/complete` and `/complete/stream`.

A stream is one JSON object a line: `{"type":"chunk","content":…}` any number of times, then `{"type":"done",…}`, which
has the answer and whatever else an answer that is not streamed has; or `{"type":"error","error":…}`.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

import orjson
from msgspec.structs import replace

from llm_routerd.gateway.door import NDJSON, Ask
from llm_routerd.gateway.fault import refused
from llm_routerd.gateway.line import json_line
from llm_routerd.jsonschema.path import printable
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.wire import encode

if TYPE_CHECKING:
    from llm_routerd.gateway.catalogue import Catalogue
    from llm_routerd.gateway.door import Body, Told
    from llm_routerd.gateway.fault import Fault
    from llm_routerd.protocol.events import Result

ALL_FAILED: Final = "All providers unavailable"

# Properties of a request that mean here what they mean there.
_SAME = (
    "prompt", "messages", "model", "schema", "tools", "tool_choice", "params", "tenant_id", "context", "metadata",
    "timeout_ms", "deadline_ms", "local_only", "traceparent",
)  # fmt: skip
# Of `params`, those that may stand beside it.
_SHORT = (
    "temperature", "top_p", "top_k", "max_tokens", "stop", "seed", "presence_penalty", "frequency_penalty",
    "reasoning_effort",
)  # fmt: skip
_KNOWN = (*_SAME, *_SHORT, "stream")
_LONGEST_NAME = 40


def fault(told: Fault) -> bytes:
    """`{"error": …}`; when all have failed these words, which clients of that service look for."""
    return orjson.dumps({"error": _words(told)})


def _words(told: Fault) -> str:
    return ALL_FAILED if told.code in {ErrorCode.CHAIN_EXHAUSTED, ErrorCode.LOCAL_EXHAUSTED} else told.message


def read(body: Body, catalogue: Catalogue) -> Ask:
    """Of `/complete`.

    Raises:
        RefusedError: it is no request; or it asks for a stream, which the other path is for.
    """
    if body.get("stream"):
        raise refused("stream", "here an answer comes whole; POST to /complete/stream")
    return _ask(body, catalogue)


def read_streamed(body: Body, catalogue: Catalogue) -> Ask:
    """Of `/complete/stream`.

    Raises:
        RefusedError: it is no request.
    """
    if body.get("stream") not in (None, True):
        raise refused("stream", "here an answer is streamed; POST to /complete")
    return replace(_ask(body, catalogue), streams=True)


def _ask(body: Body, catalogue: Catalogue) -> Ask:
    given = {name: value for name, value in body.items() if value is not None}
    for name in given:
        if name not in _KNOWN:
            near = get_close_matches(name[:_LONGEST_NAME], _KNOWN, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise refused(printable(name[:_LONGEST_NAME]), f"unknown property{hint}")
    fields = {name: given[name] for name in _SAME if name in given}
    fields["model"] = catalogue.model_of(given, default="default")
    if params := _params(given):
        fields["params"] = params
    return Ask(fields=fields, voice=_Voice, media_type=NDJSON)


def _params(given: Body) -> dict[str, Any]:
    params = given.get("params", {})
    if not isinstance(params, dict):
        raise refused("params", "expected an object")
    for name in _SHORT:
        if name in given and name in params:
            raise refused(name, f"it stands in `params` too: give one of {name} and params.{name}")
    params = {**params, **{name: given[name] for name in _SHORT if name in given}}
    # Whoever gives a limit gets what comes within it; JSON that has been cut is none.
    return {"accept_length": True, **params} if "max_tokens" in params and "schema" not in given else params


class _Voice:
    """Tells one answer."""

    def __init__(self, told: Told) -> None:
        self._id = told.request_id

    def whole(self, result: Result) -> bytes:
        return encode(self._answer(result))

    def begin(self) -> bytes:
        return b""

    def reasoning(self, text: str) -> bytes:  # noqa: ARG002 - not a part of this protocol
        return b""

    def text(self, text: str) -> bytes:
        return b'{"type":"chunk","content":' + json_line(text) + b"}\n"

    def end(self, result: Result) -> bytes:
        return json_line({"type": "done", **self._answer(result)}) + b"\n"

    def broken(self, fault: Fault) -> bytes:
        return orjson.dumps({"type": "error", "error": _words(fault)}) + b"\n"

    def ping(self) -> bytes:
        return b""

    def _answer(self, result: Result) -> dict[str, Any]:
        return {
            "id": self._id,
            "content": result.content,
            "model_used": result.model_used,
            "finish_reason": result.finish_reason,
            "tool_calls": result.tool_calls,
            "usage": result.usage,
            "cost_usd": result.cost_usd,
            "latency_ms": result.latency_ms,
            "attempts": result.attempts,
            "tenant_id": result.tenant_id,
            "context": result.context,
            "metadata": result.metadata,
        }
