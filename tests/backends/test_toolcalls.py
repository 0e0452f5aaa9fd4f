from __future__ import annotations

from typing import Any

import orjson
import pytest

from llm_routerd.backends.toolcalls import (
    MAX_ARGUMENTS_LENGTH,
    MAX_CALLS,
    ToolCallAssembler,
    ToolCallError,
    json_of_arguments,
)
from llm_routerd.protocol.outcome import ToolCall


def _delta(
    name: str | None = None, arguments: Any = None, *, index: int | None = None, call_id: str | None = None
) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    delta: dict[str, Any] = {"function": {key: value for key, value in function.items() if value is not None}}
    return delta | ({"index": index} if index is not None else {}) | ({"id": call_id} if call_id else {})


def _assembled(*deltas: dict[str, Any]) -> list[tuple[str, str, str]]:
    assembler = ToolCallAssembler()
    for delta in deltas:
        assembler.add(delta)
    return [(call.id, call.name, call.arguments) for call in assembler.complete()]


@pytest.mark.parametrize("delta", [None, 7, "x", {}, {"function": None}, {"function": "f"}, []])
def test_what_is_no_delta_is_an_error(delta: Any) -> None:
    """A malformed delta is said to be one."""
    with pytest.raises(ToolCallError):
        ToolCallAssembler().add(delta)


def test_call_without_a_name_is_an_error() -> None:
    """Nobody could carry it out."""
    assembler = ToolCallAssembler()
    assembler.add(_delta(arguments="{}", index=0, call_id="a"))
    with pytest.raises(ToolCallError):
        assembler.complete()


@pytest.mark.parametrize("depth", [253, 300, 1000])
def test_arguments_too_deep_to_be_written_are_an_error(depth: int) -> None:
    """Arguments may come parsed, and JSON is read deeper than it is written."""
    arguments = orjson.loads('{"a":' * depth + "1" + "}" * depth)
    if depth == 253:
        assert orjson.loads(json_of_arguments(arguments)) == arguments
        return
    with pytest.raises(ToolCallError, match="too deeply"):
        ToolCallAssembler().add(_delta("f", arguments))


def test_endless_calls_and_endless_arguments_are_errors() -> None:
    """A model that never ends does not fill the memory."""
    many = ToolCallAssembler()
    for index in range(MAX_CALLS):
        many.add(_delta("f", "{}", index=index))
    with pytest.raises(ToolCallError):
        many.add(_delta("f", "{}", index=MAX_CALLS))
    long = ToolCallAssembler()
    long.add(_delta("f", "x" * MAX_ARGUMENTS_LENGTH, index=0))
    with pytest.raises(ToolCallError):
        long.add(_delta(arguments="x", index=0))


def test_pieces_are_joined_by_index() -> None:
    """OpenAI's way, two calls interleaved."""
    assert _assembled(
        _delta("f", "", index=0, call_id="a"),
        _delta("g", "", index=1, call_id="b"),
        _delta(arguments='{"x"', index=0),
        _delta(arguments="[1", index=1),
        _delta(arguments=":1}", index=0),
        _delta(arguments="]", index=1),
    ) == [("a", "f", '{"x":1}'), ("b", "g", "[1]")]


def test_pieces_without_index_continue_the_last_call() -> None:
    """Some servers send neither index nor id with what follows."""
    assert _assembled(
        _delta("f", "", call_id="a"),
        _delta(arguments='{"x":'),
        _delta(arguments="1}"),
        _delta("g", "{}", call_id="b"),
    ) == [("a", "f", '{"x":1}'), ("b", "g", "{}")]


def test_whole_calls_under_one_index_stay_apart_by_id() -> None:
    """Some servers number every call 0."""
    assert _assembled(_delta("f", "{}", index=0, call_id="a"), _delta("f", "[]", index=0, call_id="b")) == [
        ("a", "f", "{}"),
        ("b", "f", "[]"),
    ]


def test_whole_calls_without_index_and_id_stay_apart_by_name() -> None:
    """A name after arguments begins a new call; ids are made up, the same ones each time."""
    assert _assembled(_delta("f", {"x": 1}), _delta("f", {"x": 2})) == [
        ("call_0", "f", '{"x":1}'),
        ("call_1", "f", '{"x":2}'),
    ]


def test_repeated_name_and_id_do_not_begin_a_new_call() -> None:
    """Some servers repeat both with every piece."""
    assert _assembled(_delta("f", '{"x"', index=0, call_id="a"), _delta("f", ":1}", index=0, call_id="a")) == [
        ("a", "f", '{"x":1}')
    ]


def test_missing_arguments_are_an_empty_object() -> None:
    """A function without parameters is often called without arguments."""
    assembler = ToolCallAssembler()
    assert not assembler
    assembler.add(_delta("f", "", index=0, call_id="a"))
    assert assembler
    assert assembler.complete() == (ToolCall.of(id="a", name="f", arguments="{}"),)
