"""What the tests of doors share: a configuration to ask of, requests that are sound, answers to tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from msgspec.structs import replace

from llm_routerd.config.gateway import GatewayConfig
from llm_routerd.config.tree import Chain, Config, Deployment
from llm_routerd.gateway.catalogue import Catalogue
from llm_routerd.gateway.door import Ask, Told
from llm_routerd.gateway.fault import Fault, RefusedError
from llm_routerd.jsonschema.compiled import SchemaCache
from llm_routerd.protocol.events import Result
from llm_routerd.protocol.examples import SHOWN
from llm_routerd.protocol.outcome import ToolCall, Usage
from llm_routerd.protocol.parsing import RequestParser
from llm_routerd.protocol.request import Request, as_json

if TYPE_CHECKING:
    from collections.abc import Callable

CATALOGUE = Catalogue(
    Config(
        deployments={
            "gemma": Deployment(name="gemma", model="ollama/gemma3:270m", local=True),
            "haiku": Deployment(name="haiku", model="anthropic/claude-haiku-4-5"),
        },
        chains={"default": Chain(name="default", deployments=("gemma", "haiku"))},
        gateway=GatewayConfig(aliases={"claude-sonnet-4-6": "default"}),
    )
)
TOLD = Told("r-1", 1_700_000_000)
USAGE = Usage(prompt_tokens=31, completion_tokens=9, cached_tokens=20, reasoning_tokens=4)
CALLS = (
    ToolCall.of(
        id="call_1", name="weather", arguments='{\n "city": "Köln\u2028",\r\n "n": 123456789012345678901234567890\n}'
    ),
    ToolCall.of(id="call_2", name="time", arguments="{}"),
)
PARSER = RequestParser(max_request_bytes=1_000_000, schemas=SchemaCache())

ANY_VALUES: tuple[Any, ...] = (None, 1, "x", [], {"a": [1]})
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


def result(text: str, **more: Any) -> Result:
    """An answer."""
    example = next(each for each in SHOWN if isinstance(each, Result))
    return replace(example, **{"raw_text": text, "content": text, "usage": USAGE, **more})


def sound(ask: Ask) -> Request:
    """The request that an ask makes, found sound as the engine finds it."""
    found = PARSER.parse("1-1", {b"data": as_json({**ask.fields, "id": TOLD.request_id})})
    assert isinstance(found, Request), found
    return found


def refusal(read: Callable[..., Any], body: dict[str, Any]) -> Fault:
    """Why a body is refused."""
    try:
        found = read(body, CATALOGUE)
    except RefusedError as error:
        return error.fault
    raise AssertionError(f"it is taken: {found}")


def answer(endpoint: Callable[..., Any], body: dict[str, Any]) -> str:
    """What is said to a body that is refused; "" where it is not."""
    try:
        endpoint(body, CATALOGUE)
    except RefusedError as error:
        return error.fault.message
    return ""


def put(holder: Any, way: str, value: Any) -> Any:
    """A copy of a body with a value at a path like `messages.0.content`."""
    if not way:
        return value
    step, _, rest = way.partition(".")
    if isinstance(holder, list):
        return [put(each, rest, value) if number == int(step) else each for number, each in enumerate(holder)]
    inner = holder if isinstance(holder, dict) else {}
    return {**inner, step: put(inner.get(step), rest, value)}


def places(value: Any, way: str = "") -> list[str]:
    """The paths of all that a body holds."""
    match value:
        case dict():
            inner = [(f"{way}.{name}" if way else name, each) for name, each in value.items()]
        case list():
            inner = [(f"{way}.{number}", each) for number, each in enumerate(value)]
        case _:
            inner = []
    return [found for name, each in inner for found in (name, *places(each, name))]
