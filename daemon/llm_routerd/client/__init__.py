"""The producers' side of the queue: adds requests, follows and cancels them; needs neither the daemon nor a backend.

`client` is the client, `shards` and `shard` what it asks; `multiplexer` and `following` serve a process that has many
requests under way at once.  `events` and `look_up` are parts of it, `lane_state`, `survey`, `tool_list`, `audit`
and `dead_letters` what operators look at.
`tool_worker` serves tools: `tool_serving` is what it does in a shard and the reference for other languages, `tool` what
is answered to a call, `tool_signature` a Python function as a tool.  `tool_conformance`, on a `tool_stage`, tries out
tool workers in any language.
Producers import what is named here; `cli` and the tests also `dead_letters`, the package itself `tool_worker`.

Imports `queue.connection`, `queue.scripts`, `agents.registration`, `jsonschema`, `protocol` and `errors`.  Another
question to Redis: a method of `Shard`, which goes through `patiently`, and so may be repeated; `Client` chooses the
shard, or asks all of them.
"""

from __future__ import annotations

from llm_routerd.client.client import Client
from llm_routerd.client.events import as_text, check_id, check_stream_id
from llm_routerd.client.following import Following
from llm_routerd.client.lane_state import LaneState
from llm_routerd.client.look_up import Sighting
from llm_routerd.client.multiplexer import Multiplexer
from llm_routerd.client.shard import Shard
from llm_routerd.client.survey import Running, Survey
from llm_routerd.client.tool_list import RegisteredTool, ToolConsumer, ToolGroup, ToolList
from llm_routerd.errors import UnknownRequestError
from llm_routerd.protocol.audit import AuditEntry
from llm_routerd.protocol.events import (
    AttemptRejected,
    AttemptStarted,
    CallConfirmed,
    CallDenied,
    Cancelled,
    Failed,
    Queued,
    Reasoning,
    Result,
    Token,
    ToolCalled,
    ToolReturned,
    TurnEnded,
)
from llm_routerd.protocol.reading import SeenEvent, UnknownEvent
from llm_routerd.protocol.request import Params, RequestFields

ClientEvent = SeenEvent

__all__ = [
    "AttemptRejected",
    "AttemptStarted",
    "AuditEntry",
    "CallConfirmed",
    "CallDenied",
    "Cancelled",
    "Client",
    "ClientEvent",
    "Failed",
    "Following",
    "LaneState",
    "Multiplexer",
    "Params",
    "Queued",
    "Reasoning",
    "RegisteredTool",
    "RequestFields",
    "Result",
    "Running",
    "Shard",
    "Sighting",
    "Survey",
    "Token",
    "ToolCalled",
    "ToolConsumer",
    "ToolGroup",
    "ToolList",
    "ToolReturned",
    "TurnEnded",
    "UnknownEvent",
    "UnknownRequestError",
    "as_text",
    "check_id",
    "check_stream_id",
]
