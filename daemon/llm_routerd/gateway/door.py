"""What a door is made of.

An endpoint that answers a prompt is a `Completion`: its `read` makes of a body an `Ask`, and the `Voice` that the ask
brings tells what becomes of it, as bytes.  An endpoint that needs no model is a `Lookup`.  Both are pure; `http/`
serves them all alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import Struct, field

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llm_routerd.gateway.catalogue import Catalogue
    from llm_routerd.gateway.fault import Fault
    from llm_routerd.protocol.events import Result

JSON = "application/json"
SSE = "text/event-stream"
NDJSON = "application/x-ndjson"

Body = dict[str, Any]


class Told(Struct, frozen=True):
    """What a voice has to know of the request that it speaks of.

    Attributes:
        request_id: on the streams.
        created: Unix time in seconds.
    """

    request_id: str
    created: int


class Voice(Protocol):
    """How one answer is told in a protocol; made for one request, called in this order.

    Not streamed: `whole` alone.  Streamed: `begin`, any number of `reasoning` and `text`, then `end`, or `broken`.
    The texts of `text` make up the answer's `raw_text`; `end` brings what else belongs to the answer.  What a call
    returns is sent as it is, and may be empty.
    """

    def whole(self, result: Result) -> bytes:
        """The body of an answer that is not streamed."""
        ...

    def begin(self) -> bytes:
        """What a stream begins with."""
        ...

    def reasoning(self, text: str) -> bytes:
        """More of a model's thinking."""
        ...

    def text(self, text: str) -> bytes:
        """More of the answer; never empty."""
        ...

    def end(self, result: Result) -> bytes:
        """The answer is whole, and its text has been told: tool calls, why it ended, usage, the last word."""
        ...

    def broken(self, fault: Fault) -> bytes:
        """There will be no answer though the stream has begun; the connection ends after this."""
        ...

    def ping(self) -> bytes:
        """What keeps a connection open and says nothing; empty where the protocol has no such thing."""
        ...


class Ask(Struct, frozen=True, kw_only=True):
    """What a body asks for.

    Attributes:
        fields: properties of a request (`request.schema.json`) but `id`, `stream`, `tenant_id` and `publish`.
        voice: makes the voice that tells the answer.
        streams: whether it is to be streamed.
        media_type: of a stream.
        shows_reasoning: whether the model's thinking is told.
        receipt: the body that is told at once, where the client comes back for the answer and nothing but its own word
            ends the request; a stream is told all the same.  None: the client waits.
    """

    fields: dict[str, Any]
    voice: Callable[[Told], Voice]
    streams: bool = False
    media_type: str = SSE
    shows_reasoning: bool = False
    receipt: Callable[[Told], bytes] | None = None

    @property
    def is_held(self) -> bool:
        """Text goes out when the answer is whole and valid: JSON that is none cannot be taken back."""
        return "schema" in self.fields


class Looked(Struct, frozen=True, kw_only=True):
    """What is known without a model."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str = JSON


class Endpoint(Struct, frozen=True, kw_only=True):
    """One path of a door.

    Attributes:
        door: its name in metrics and logs.
        path: as aiohttp's router has it: `/v1/models/{model}`.
        fault: an error's body, as JSON, in the shape of this door.
        id_header: where clients of this door look for the request's id, beside `X-Request-ID`.
    """

    door: str
    path: str
    fault: Callable[[Fault], bytes]
    id_header: str = ""


class Completion(Endpoint, frozen=True, kw_only=True):
    """POST of a prompt.

    Attributes:
        read: makes an `Ask` of a body, or answers it at once where no model is needed.  Raises `RefusedError`.
    """

    read: Callable[[Body, Catalogue], Ask | Looked]


class Lookup(Endpoint, frozen=True, kw_only=True):
    """GET or POST of what is known without a model.

    Attributes:
        method: of HTTP.
        look: what is known; given the body (of a GET: what the path and the query name).  Raises `RefusedError`.
    """

    method: Literal["GET", "POST"] = "GET"
    look: Callable[[Body, Catalogue], Looked]
