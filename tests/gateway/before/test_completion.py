"""The system before: its bodies, its lines, its error when all have failed."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from llm_routerd.gateway.catalogue import Catalogue
from llm_routerd.gateway.door import NDJSON, Told
from llm_routerd.gateway.doors.before.completion import fault, read, read_streamed
from llm_routerd.gateway.fault import Fault, RefusedError
from llm_routerd.protocol.codes import ErrorCode
from llm_routerd.protocol.events import Result
from llm_routerd.protocol.examples import SHOWN
from tests.config.configs import load

CATALOGUE = Catalogue(
    load("""
    [deployments.small]
    model = "ollama/small"
    [chains.default]
    deployments = ["small"]
    [gateway.aliases]
    house = "small"
    """)
)
(RESULT,) = [each for each in SHOWN if isinstance(each, Result)]
EXHAUSTED = Fault(status=503, code=ErrorCode.CHAIN_EXHAUSTED, message="no deployment of the chain answered")
PROPERTIES = ["prompt", "messages", "model", "params", "stream", "max_tokens", "schema", "id", "n", "temperature"]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def test_properties_of_a_request_are_taken_as_they_are() -> None:
    """What the request schema has is not looked at, only the model's name."""
    body = {
        "messages": [{"role": "user", "content": "hi"}], "model": "house", "schema": {"type": "object"},
        "tenant_id": "home", "context": "kitchen", "metadata": {"a": 1}, "local_only": True,
    }  # fmt: skip
    assert read(body, CATALOGUE).fields == body | {"model": "small"}


def test_absent_model_is_the_default_chain_and_null_counts_as_absent() -> None:
    """As the request schema has it."""
    assert read({"prompt": "hi", "model": None, "schema": None}, CATALOGUE).fields == {
        "prompt": "hi",
        "model": "default",
    }


def test_sampling_parameters_may_stand_at_the_top() -> None:
    """And beside those in `params`; a limit without a schema counts as one that is meant."""
    asked = read({"prompt": "hi", "temperature": 0, "max_tokens": 5, "params": {"top_k": 3}}, CATALOGUE)
    assert asked.fields["params"] == {"accept_length": True, "top_k": 3, "temperature": 0, "max_tokens": 5}
    with_schema = read({"prompt": "hi", "max_tokens": 5, "schema": {}}, CATALOGUE)
    assert with_schema.fields["params"] == {"max_tokens": 5}


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt": "hi", "promt": "hi"}, "promt", "did you mean 'prompt'"),
        ({"prompt": "hi", "id": "x"}, "id", "unknown property"),
        ({"prompt": "hi", "stream": True}, "stream", "/complete/stream"),
        ({"prompt": "hi", "params": []}, "params", "an object"),
        ({"prompt": "hi", "seed": 1, "params": {"seed": 2}}, "seed", "params.seed"),
        ({"prompt": "hi", "model": "smal"}, "model", "did you mean 'small'"),
        ({"prompt": "hi", "model": 5}, "model", "expected the name"),
    ],
)
def test_what_is_no_request_is_refused_by_name(body: dict[str, Any], param: str, words: str) -> None:
    """Each property by its name, with what to do."""
    with pytest.raises(RefusedError) as caught:
        read(body, CATALOGUE)
    assert caught.value.fault.param == param
    assert words in caught.value.fault.message


def test_a_name_of_millions_of_characters_is_refused_at_once_and_not_told_again() -> None:
    """Of a property as of a model."""
    began = time.process_time()
    with pytest.raises(RefusedError) as caught:
        read({"prompt": "hi", "x\n" * 5_000_000: 1}, CATALOGUE)
    assert time.process_time() - began < 1
    assert len(caught.value.fault.message) < 100
    assert "\n" not in caught.value.fault.message


def test_the_path_says_whether_it_streams() -> None:
    """A body may say the same, and not the opposite."""
    assert not read({"prompt": "hi", "stream": False}, CATALOGUE).streams
    asked = read_streamed({"prompt": "hi", "stream": True}, CATALOGUE)
    assert (asked.streams, asked.media_type) == (True, NDJSON)
    with pytest.raises(RefusedError, match="POST to /complete"):
        read_streamed({"prompt": "hi", "stream": False}, CATALOGUE)


@given(st.dictionaries(st.sampled_from(PROPERTIES) | st.text(max_size=4), json_values, max_size=5))
def test_whatever_object_comes_it_is_read_or_refused(body: dict[str, Any]) -> None:
    """Never another exception."""
    for reader in (read, read_streamed):
        with suppress(RefusedError):
            assert reader(body, CATALOGUE).fields["model"]


def test_stream_is_chunks_and_a_last_line_with_the_whole_answer() -> None:
    """Each line is a JSON object that says what it is; the chunks make up the text."""
    voice = read_streamed({"prompt": "hi"}, CATALOGUE).voice(Told("abc", 1))
    written = voice.begin() + voice.text('The "sky"\n\u2028') + voice.reasoning("hm") + voice.text(" is blue")
    written += voice.ping() + voice.end(RESULT)
    lines = [orjson.loads(line) for line in written.decode().splitlines()]
    assert [line["type"] for line in lines] == ["chunk", "chunk", "done"]
    assert "".join(line["content"] for line in lines[:2]) == 'The "sky"\n\u2028 is blue'
    assert {"type": "done", **orjson.loads(voice.whole(RESULT))} == lines[2]


def test_a_line_is_one_for_whoever_splits_it() -> None:
    """`httpx` and `requests` take more than a newline for the end of a line."""
    voice = read_streamed({"prompt": "hi"}, CATALOGUE).voice(Told("abc", 1))
    ends = "a\u2028b\u2029c\x85d"
    written = voice.text(ends) + voice.end(replace(RESULT, content=ends))
    lines = [orjson.loads(line) for line in written.decode().splitlines()]
    assert [line["content"] for line in lines] == [ends, ends]


def test_answer_tells_what_was_used() -> None:
    """The fields that the system before had, with a usage that is true."""
    told = orjson.loads(read({"prompt": "hi"}, CATALOGUE).voice(Told("abc", 1)).whole(RESULT))
    assert told["id"] == "abc"
    assert told["content"] == RESULT.content
    assert told["model_used"] == RESULT.model_used
    assert told["usage"]["prompt_tokens"] == RESULT.usage.prompt_tokens > 0
    assert told["latency_ms"] == RESULT.latency_ms
    assert [each["outcome"] for each in told["attempts"]] == [each.outcome for each in RESULT.attempts]


def test_when_all_have_failed_its_words_are_those_of_before() -> None:
    """Also in a stream that has begun; any other error says what it is."""
    assert fault(EXHAUSTED) == b'{"error":"All providers unavailable"}'
    voice = read_streamed({"prompt": "hi"}, CATALOGUE).voice(Told("abc", 1))
    assert orjson.loads(voice.broken(EXHAUSTED)) == {"type": "error", "error": "All providers unavailable"}
    assert orjson.loads(fault(Fault(status=504, code="deadline_exceeded", message="too late"))) == {"error": "too late"}
