"""What tests of OpenAI's door are made of: a catalogue, bodies, answers, and a stream's events read back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from msgspec.structs import replace

from llm_routerd.gateway.catalogue import Catalogue
from llm_routerd.gateway.door import Told
from llm_routerd.gateway.fault import Fault, RefusedError
from llm_routerd.jsonschema.compiled import SchemaCache
from llm_routerd.protocol.outcome import ToolCall, Usage
from llm_routerd.protocol.parsing import RequestParser
from llm_routerd.protocol.request import Request
from llm_routerd.protocol.wire import encode
from tests.config.configs import load
from tests.support.queue import result

if TYPE_CHECKING:
    from collections.abc import Callable

    from llm_routerd.gateway.door import Ask
    from llm_routerd.protocol.events import Result

TOLD = Told(request_id="r1", created=1_700_000_000)
CALLS = (
    ToolCall.of(id="call_0", name="weather", arguments='{"city":"Zürich"}'),
    ToolCall.of(id="call_1", name="time", arguments="{}"),
)
FAULT = Fault(status=503, code="chain_exhausted", message="no deployment gave an answer", request_id="r1")
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}}

_CONFIG = """
[deployments.local]
model = "ollama/tiny"
[chains.default]
deployments = ["local"]
[gateway.aliases]
gpt-5 = "default"
"""
CATALOGUE = Catalogue(load(_CONFIG))  # a chain, the deployment in it, and another name for the chain
_PARSER = RequestParser(max_request_bytes=1 << 20, schemas=SchemaCache(16))


def outcome_of(read: Callable[[dict[str, Any], Catalogue], Ask], body: dict[str, Any]) -> Ask | Fault:
    """What a body comes to."""
    try:
        return read(body, CATALOGUE)
    except RefusedError as error:
        return error.fault


def fault_of(read: Callable[[dict[str, Any], Catalogue], Ask], body: dict[str, Any]) -> Fault:
    """See that a body is refused."""
    outcome = outcome_of(read, body)
    assert isinstance(outcome, Fault), outcome
    return outcome


def hostile(names: list[str], words: list[str]) -> st.SearchStrategy[Any]:
    """Any JSON, in whose objects stand names that somebody may look for, with words that he may look for."""
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(names), inner | st.sampled_from(words), max_size=4)
        ),
        max_leaves=12,
    )


def request_of(ask: Ask) -> Request:
    """See that what is asked for is a request."""
    found = _PARSER.parse("1-0", {b"data": encode(ask.fields)})
    assert isinstance(found, Request), found
    return found


def answer(text: str = "", **named: Any) -> Result:
    """An answer of the request that tests tell of."""
    usage = Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=2, reasoning_tokens=1)
    return replace(result(TOLD.request_id, text), **{"usage": usage, **named})


def events(stream: bytes | str) -> list[tuple[str, Any]]:
    """A stream's events: name and data; the name is "" where none is told, and comments are none."""
    found = []
    text = stream.decode() if isinstance(stream, bytes) else stream
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if data := fields.get("data"):
            found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found
