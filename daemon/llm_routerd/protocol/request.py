"""A request: its properties as producers give them, and what the parser makes of them.

A further property is a line in `RunFields` or `RequestFields`, which the schema and every caller's types follow from, a
field of `Request` that has its name and its default, and the place that heeds it.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal, Required, TypedDict

import orjson
from msgspec import Struct, field

from llm_routerd.protocol.numbers import holds_inexact
from llm_routerd.protocol.wire import ID_PATTERN, keywords, said

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_routerd.jsonschema.compiled import AnswerSchema
    from llm_routerd.protocol.codes import ErrorCode

_LARGEST = 2**53 - 1  # that every reader of JSON keeps
_NAME = r"^[^\x00-\x1f\x7f]{1,200}$"
_LABEL = r"^[^\x00-\x1f\x7f]{0,200}$"
_CHOICE: dict[str, Any] = {
    "if": {"type": "string"},
    "then": {"enum": ["none", "auto", "required"]},
    "else": {
        "required": ["type", "function"],
        "properties": {
            "type": {"description": "Always `function`.", "const": "function"},
            "function": {
                "description": "The one to call.",
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"description": "As in `tools`.", "$ref": "#/$defs/function_name"}},
            },
        },
    },
}


class Params(TypedDict, total=False):
    """Sampling and limits, from a closed list.  What a deployment does not know is not sent to it."""

    temperature: Annotated[float, said("Randomness of sampling.", minimum=0, maximum=2)]
    top_p: Annotated[float, said("Nucleus sampling.", minimum=0, maximum=1)]
    top_k: Annotated[int, said("Sampling from the k likeliest tokens.", minimum=0, maximum=1_000_000)]
    max_tokens: Annotated[int, said("Longest answer, in tokens.", minimum=1, maximum=10_000_000)]
    stop: Annotated[
        Annotated[str, keywords(minLength=1, maxLength=256)]
        | Annotated[list[Annotated[str, keywords(minLength=1, maxLength=256)]], keywords(minItems=1, maxItems=16)],
        said("Text at which the answer ends."),
    ]
    seed: Annotated[int, said("For answers that can be repeated.", minimum=-_LARGEST, maximum=_LARGEST)]
    presence_penalty: Annotated[float, said("Against subjects already mentioned.", minimum=-2, maximum=2)]
    frequency_penalty: Annotated[float, said("Against words already used.", minimum=-2, maximum=2)]
    reasoning_effort: Annotated[
        Literal["none", "minimal", "low", "medium", "high"], said("How long a reasoning model thinks.")
    ]
    parallel_tool_calls: Annotated[bool, said("Whether one answer may hold several function calls.")]
    detect_refusal: Annotated[
        bool,
        said("false: an answer is not rejected for reading like a refusal. Never sent to a model.", default=True),
    ]
    accept_length: Annotated[
        bool,
        said(
            "true: text that ends at this request's own `max_tokens` is an answer, with `finish_reason` `length`; not "
            "with a schema. Never sent to a model.",
            default=False,
        ),
    ]


_TOOLS: dict[str, Any] = {
    "maxItems": 128,
    "items": {
        "description": "A name; `*` stands for any letters, `?` for one (`lights.*`).",
        "type": "string",
        "pattern": r"^[A-Za-z0-9_.*?-]{1,64}$",
    },
}


class AgentFields(TypedDict, total=False):
    """Has the daemon run the tools that the model calls, turn after turn, until there is an answer."""

    tools: Required[
        Annotated[list[str], said("Which of the registered tools the model may call.", **(_TOOLS | {"minItems": 1}))]
    ]
    max_turns: Annotated[
        int,
        said(
            "Calls to a model that stand; in the last one no tool is offered, so that it must answer. Absent: as the "
            "operator has it, 5 by default.",
            minimum=1,
            maximum=20,
        ),
    ]
    confirm: Annotated[
        list[str], said("Calls of these wait for a person, beyond those that wait for one anyway.", **_TOOLS)
    ]


class RunFields(TypedDict, total=False):
    """What every request may have; `Router.run` takes these, for there `tools` are functions."""

    id: Annotated[
        str,
        said(
            "Idempotency key and reply address. Absent: the stream entry's own ID, which XADD returned.",
            pattern=ID_PATTERN,
        ),
    ]
    messages: Annotated[
        list[dict[str, Any]],
        said(
            "OpenAI chat messages. Exactly one of `messages` and `prompt` is given.",
            minItems=1,
            items={"$ref": "#/$defs/message"},
        ),
    ]
    prompt: Annotated[str, said("Short for one user message.", minLength=1)]
    model: Annotated[
        str,
        said(
            "Name of a chain or of one deployment in the operator's configuration; never an address.",
            pattern=_NAME,
            default="default",
        ),
    ]
    schema: Annotated[
        dict[str, Any] | bool,
        said("JSON Schema that the answer must satisfy; 2020-12 unless its `$schema` says otherwise."),
    ]
    stream: Annotated[
        bool | Literal["probe", "live"],
        said(
            "Whether token events are written, and how early: `probe` (the same as true) holds them back until the "
            "opening has been judged, `live` writes them at once.",
            default=False,
        ),
    ]
    params: Annotated[
        Params, said("Sampling and limits, from a closed list. What a deployment does not know is not sent to it.")
    ]
    tenant_id: Annotated[str, said("Whom to account it to.", pattern=_LABEL)]
    context: Annotated[str, said("A free label for logs and metrics.", pattern=_LABEL)]
    metadata: Annotated[
        dict[str, Any],
        said("Returned untouched in the final event; numbers that are no integers as 64-bit floats."),
    ]
    timeout_ms: Annotated[
        int,
        said("Longest time from pick-up to the final event, in milliseconds.", minimum=1, maximum=604_800_000),
    ]
    deadline_ms: Annotated[
        int,
        said(
            "Latest moment at which an answer is still wanted: Unix time in milliseconds by the Redis server's clock.",
            minimum=0,
            maximum=_LARGEST,
        ),
    ]
    local_only: Annotated[
        bool,
        said("This request never leaves local deployments, not even when they all fail.", default=False),
    ]
    publish: Annotated[
        bool, said("Every event is also PUBLISHed on a channel named as the events stream.", default=False)
    ]
    traceparent: Annotated[
        str,
        said("W3C trace context, carried through.", pattern="^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"),
    ]


class RequestFields(RunFields, total=False):
    """The JSON object in the field `data` of an entry of a requests stream, or the same properties, one field each."""

    # `Client.submit`, `Router.route` and `Router.stream` take these by name.

    tools: Annotated[
        list[dict[str, Any]],
        said("Functions that the model may call, in OpenAI's form.", maxItems=128, items={"$ref": "#/$defs/tool"}),
    ]
    tool_choice: Annotated[
        str | dict[str, Any],
        said(
            "Whether the model must call a function, in OpenAI's form. An answer without the call that this demands is "
            "rejected.",
            **_CHOICE,
        ),
    ]
    agent: Annotated[
        AgentFields, said("Has the daemon run the tools that the model calls. Not beside `tools` or `tool_choice`.")
    ]


def as_json(request: Mapping[str, Any]) -> bytes:
    """A request as it goes into its entry; the metadata may hold integers of any size.

    Raises:
        TypeError: a value is not JSON.
    """
    try:
        return orjson.dumps(request)
    except TypeError:  # it takes no integer beyond 64 bits; and knows better than msgspec what is no JSON
        if not holds_inexact(request.get("metadata")):
            raise
        # Not msgspec, which takes bytes, sets and dates for JSON.
        metadata = json.dumps(request["metadata"], ensure_ascii=False, separators=(",", ":"))
        return orjson.dumps({**request, "metadata": orjson.Fragment(metadata)})


class StreamMode(StrEnum):
    """Whether token events are written, and how early."""

    OFF = "off"
    PROBE = "probe"
    LIVE = "live"


class AgentSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which tools a run may use, as the request says; globs as in `fnmatch`.

    Attributes:
        tools: those that the model may call.
        max_turns: None: as the operator has it.
        confirm: those whose calls wait for a person in any case.
    """

    tools: tuple[str, ...]
    max_turns: int | None = None
    confirm: tuple[str, ...] = ()


class Request(Struct, frozen=True, kw_only=True):
    """One request, read and found sound; `messages` is filled also where the producer wrote `prompt`.

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
    agent: AgentSpec | None = None
    params: dict[str, Any] = field(default_factory=dict)
    tenant_id: str | None = None
    context: str | None = None
    metadata: Any = None
    timeout_ms: int | None = None
    deadline_ms: int | None = None
    local_only: bool = False
    publish: bool = False
    detect_refusal: bool = True
    accept_length: bool = False
    traceparent: str | None = None

    @property
    def offered_tools(self) -> frozenset[str]:
        """The names of the tools that the model may call; none where `tool_choice` is `none`."""
        if self.tool_choice == "none":
            return frozenset()
        return frozenset(tool["function"]["name"] for tool in self.tools)

    @property
    def accepts_length(self) -> bool:
        """Whether text that was cut off at the limit of tokens is an answer: it asked for both."""
        return self.accept_length and self.schema is None and "max_tokens" in self.params

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
