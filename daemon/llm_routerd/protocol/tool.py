"""Tools, as those who serve them and the daemon speak of them: a registration, a call."""

from typing import Annotated, Any, Required, TypedDict

from msgspec import Struct, field

from llm_routerd.protocol.events import CallId, ToolName, TurnNumber
from llm_routerd.protocol.wire import AsGiven, RequestId, said

TOOL_NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"
TIMEOUT_MS = 30_000  # of a tool that names none
MOST_REGISTERED = 1_000  # of a shard that are read: the first by name
MOST_REGISTRATION_BYTES = 65_536


class ToolFields(TypedDict, total=False):
    """A tool, as it is registered: the JSON object under its name in the hash `P:tools`."""

    description: Required[
        Annotated[str, said("What it does, and when to call it: the model reads this.", minLength=1, maxLength=4096)]
    ]
    parameters: Annotated[
        dict[str, Any],
        said("JSON Schema of its arguments, which are an object. Absent: any object.", default={"type": "object"}),
    ]
    confirm: Annotated[bool, said("Each call waits until a person has agreed to it.", default=False)]
    idempotent: Annotated[
        bool,
        said(
            "To call it twice does what calling it once does: where one who serves it died, another may act on the "
            "call.",
            default=False,
        ),
    ]
    timeout_ms: Annotated[
        int,
        said(
            "How long its answer to a call is waited for, in milliseconds.",
            minimum=1,
            maximum=86_400_000,
            default=TIMEOUT_MS,
        ),
    ]
    result_schema: Annotated[
        dict[str, Any] | bool, said("JSON Schema of its results; another result is an error that the model is told.")
    ]


class ToolRequest(Struct, frozen=True, kw_only=True):
    """One call, the JSON object in the field `call` of an entry of a tool's stream.

    It is answered by one entry in the stream `P:inbox:<id>`, with the fields `call_id` and `result`, or `error`.
    """

    request_id: RequestId = field(name="id")
    call_id: CallId
    name: ToolName
    arguments: Annotated[dict[str, Any], said("They satisfy the tool's `parameters`.")]
    turn: TurnNumber
    tenant_id: AsGiven
    deadline_ms: Annotated[
        int, said("Until when the answer is waited for; Unix time in milliseconds by the Redis server's clock.")
    ]
    traceparent: AsGiven
