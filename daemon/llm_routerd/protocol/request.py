"""A request as the protocol defines it, parsed and validated."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

if TYPE_CHECKING:
    from llm_routerd.jsonschema.compiled import AnswerSchema
    from llm_routerd.protocol.codes import ErrorCode


class StreamMode(StrEnum):
    """Whether token events are written, and how early."""

    OFF = "off"
    PROBE = "probe"
    LIVE = "live"


class Request(Struct, frozen=True, kw_only=True):
    """One request; `messages` is filled also where the producer wrote `prompt`.

    `schema` is compiled already.  `timeout_ms` and `deadline_ms` are as on the wire: milliseconds from pick-up,
    and Unix time in milliseconds by the Redis server's clock.
    """

    id: str
    messages: tuple[dict[str, Any], ...]
    model: str = "default"
    schema: AnswerSchema | None = None
    stream: StreamMode = StreamMode.OFF
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: Any = None
    params: dict[str, Any] = field(default_factory=dict)
    tenant_id: str | None = None
    context: str | None = None
    metadata: Any = None
    timeout_ms: int | None = None
    deadline_ms: int | None = None
    local_only: bool = False
    publish: bool = False
    detect_refusal: bool = True
    traceparent: str | None = None

    @property
    def offered_tools(self) -> frozenset[str]:
        """The names of the tools that the model may call; none where `tool_choice` is `none`."""
        if self.tool_choice == "none":
            return frozenset()
        return frozenset(tool["function"]["name"] for tool in self.tools)

    @property
    def demanded_tools(self) -> frozenset[str]:
        """Those of which it must call one; none where it may answer in text."""
        match self.tool_choice:
            case "required":
                return self.offered_tools
            case {"function": {"name": str(name)}}:
                return frozenset({name})
            case _:
                return frozenset()

    def seconds_left(self, unix_ms: float) -> float | None:
        """How long an answer is wanted from now on, at pick-up, when it is `unix_ms`; None: whenever it comes."""
        ends = []
        if self.timeout_ms is not None:
            ends.append(self.timeout_ms / 1000)
        if self.deadline_ms is not None:
            ends.append((self.deadline_ms - unix_ms) / 1000)
        return min(ends, default=None)


class RequestError(Struct, frozen=True, kw_only=True):
    """Why an entry is no request.

    Attributes:
        id: the id that could be read from it, if a valid one could.
        code: `invalid_request`, `request_too_large` or `invalid_schema`.
        message: names the JSON path and what was expected; quotes at most a key or a short scalar.
        metadata: the request's `metadata`, where it could be read.
    """

    id: str | None
    code: ErrorCode
    message: str
    metadata: Any = None
