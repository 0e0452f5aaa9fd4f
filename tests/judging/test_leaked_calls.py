"""Calls that a model wrote into its text: found whatever is in them, never made up, and in linear time."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_routerd.judging.leaked_calls import UNSURE, leaked_calls

if TYPE_CHECKING:
    from llm_routerd.protocol.outcome import ToolCall

MEGABYTE = 1_000_000
SETTINGS = settings(max_examples=200, deadline=None)
NAMES = frozenset({"weather", "f", "get-time", "a.b"})
CALL = '{"name": "f", "arguments": {"n": 1}}'

# Text that looks like what surrounds a call, for within its arguments.
BAIT = (
    "</tool_call>",
    "<tool_call>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "}",
    "{",
    "]",
    '"',
    "\\",
    "```",
    ";",
    '\\"',
    "\n",
)
strings = st.one_of(st.text(max_size=12), st.lists(st.sampled_from((*BAIT, "x")), max_size=6).map("".join))
scalars = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(-(2.0**50), 2.0**50), strings)
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(strings, inner, max_size=3))
)
calls = st.tuples(st.sampled_from(sorted(NAMES)), st.dictionaries(strings, values, max_size=3))
spellings = st.sampled_from(("arguments", "parameters", "text", "function", "function and text", "id"))
blanks = st.sampled_from(("", " ", "\n", "\n\n  ", "\t"))


def spell(call: tuple[str, Any], how: str, *, indent: bool) -> str:
    """A call as models write it."""
    name, arguments = call
    value: dict[str, Any] = {"name": name, "arguments": arguments}
    match how:
        case "parameters":
            value = {"name": name, "parameters": arguments}
        case "text":
            value["arguments"] = json.dumps(arguments)
        case "function":
            value = {"type": "function", "function": value}
        case "function and text":
            value = {"id": "c", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        case "id":
            value = {"id": "call_7", "type": "function", **value}
    return json.dumps(value, indent=2 if indent else None, ensure_ascii=indent)


def wrap(spelt: list[str], how: str, blank: str) -> str:
    """Calls in what surrounds them."""
    forms = {
        "tags": blank.join(f"<tool_call>{blank}{one}{blank}</tool_call>" for one in spelt),
        "open tags": "".join(f"<tool_call>{blank}{one}" for one in spelt),
        "mistral": f"[TOOL_CALLS]{blank}[{','.join(spelt)}]",
        "llama": f"<|python_tag|>{';'.join(spelt)}{blank}<|eom_id|>",
        "list": f"{blank}[{','.join(spelt)}]{blank}",
        "fence": f"```json\n{blank.join(spelt)}\n```",
        "bare": blank.join(spelt),
    }
    return forms[how]


wrappings = st.sampled_from(("tags", "open tags", "mistral", "llama", "list", "fence", "bare"))


def read(text: str) -> tuple[str, list[tuple[str, Any]]] | str | None:
    """The verdict, with the arguments parsed."""
    found = leaked_calls(text, NAMES)
    if not isinstance(found, tuple):
        return found
    return found[0], [(call.name, json.loads(call.arguments)) for call in found[1]]


@SETTINGS
@given(st.lists(st.tuples(calls, spellings, st.booleans()), min_size=1, max_size=4), wrappings, blanks)
def test_calls_are_found_whatever_is_in_them(given_calls: list[Any], wrapping: str, blank: str) -> None:
    """In every markup, alone and several, with markup, quotes and brackets in their arguments."""
    spelt = [spell(call, how, indent=indent) for call, how, indent in given_calls]
    assert read(wrap(spelt, wrapping, blank)) == ("", [call for call, _, _ in given_calls])


@SETTINGS
@given(calls, st.sampled_from(("tags", "open tags", "mistral", "llama")), st.text("ab .\n", max_size=20))
def test_text_before_markup_is_the_text(call: tuple[str, Any], wrapping: str, before: str) -> None:
    """Where the markup begins a line."""
    text = f"I shall look{before}\n" + wrap([spell(call, "arguments", indent=False)], wrapping, "")
    assert read(text) == (f"I shall look{before}".strip(), [call])


@SETTINGS
@given(st.lists(calls, min_size=1, max_size=3), wrappings, st.data())
def test_cut_text_never_has_other_calls(given_calls: list[Any], wrapping: str, data: st.DataObject) -> None:
    """What is found in a text that ends too early are calls that were written, from the first on."""
    text = wrap([spell(call, "arguments", indent=False) for call in given_calls], wrapping, "\n")
    end = data.draw(st.integers(0, len(text)))
    found = read(text[:end])
    if isinstance(found, tuple):
        assert found == ("", given_calls[: len(found[1])])


FRAGMENTS = (
    *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<function=f>", "```json\n", "```", "\n", " "),
    *(
        CALL,
        f"[{CALL}]",
        '{"name": "f"',
        '"arguments": {',
        "}",
        "]",
        "{",
        "[",
        ",",
        '"',
        "\\",
        "weather",
        "text",
        "1e99",
    ),
    *('{"name": "other", "arguments": {}}', '{"name": "f", "arguments": {}, "why": 1}', '{"name": 1, "arguments": {}}'),
)


@SETTINGS
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=10).map("".join))
@example(f"{CALL}```json\n<tool_call>{CALL}")
@example(f"```weather{CALL}")
def test_any_text_has_a_verdict(text: str) -> None:
    """Of calls that are found each is one that was written, of an offered tool, and nothing else stands about them."""
    found = leaked_calls(text, NAMES)
    assert found is None or found is UNSURE or isinstance(found, tuple)
    if isinstance(found, tuple):
        before, found_calls = found
        assert text.lstrip().startswith(before)
        rest = text.lstrip().removeprefix(before)
        assert [(call.name, call.arguments) for call in found_calls] == [("f", '{"n":1}')] * rest.count(CALL)
        rest = re.sub(r"^\s*```\w*", "", rest.replace(CALL, ""))  # a fence may name its language
        assert not any(word in rest for word in ("weather", "text", "other", "why", "1e99", "name", "arguments"))


NUMBERS = ("18446744073709551616", "-9223372036854775809", "9007199254740993.0", "90071992.54740993e9", "1" * 300)


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:20])
@pytest.mark.parametrize("wrapping", ["tags", "mistral", "llama", "list", "bare", "fence"])
def test_number_that_cannot_be_carried_is_not_told_as_another(number: str, wrapping: str) -> None:
    """Arguments that are an object are not sure; arguments that are text are passed on to the digit."""
    spelt = f'{{"name": "f", "arguments": {{"n": {number}}}}}'
    assert leaked_calls(wrap([CALL, spelt], wrapping, "\n"), NAMES) is UNSURE
    written = json.dumps({"name": "f", "arguments": f'{{"n": {number}}}'})
    found = leaked_calls(wrap([written], wrapping, "\n"), NAMES)
    assert isinstance(found, tuple)
    assert found[1][0].arguments == f'{{"n": {number}}}'


@pytest.mark.parametrize("depth", [300, 900])
@pytest.mark.parametrize("wrapping", ["tags", "mistral", "llama", "list", "bare", "fence"])
def test_arguments_too_deep_to_be_written_are_not_sure(depth: int, wrapping: str) -> None:
    """JSON is read deeper than it is written; arguments that are text need not be written."""
    deep = '{"a":' * depth + "1" + "}" * depth
    assert leaked_calls(wrap([CALL, f'{{"name": "f", "arguments": {deep}}}'], wrapping, "\n"), NAMES) is UNSURE
    written = json.dumps({"name": "f", "arguments": deep})
    found = leaked_calls(wrap([written], wrapping, "\n"), NAMES)
    assert isinstance(found, tuple)
    assert found[1][0].arguments == deep


@pytest.mark.parametrize("wrapping", ["tags", "mistral", "llama", "list", "bare", "fence"])
def test_more_calls_than_a_server_may_send_are_not_sure(wrapping: str) -> None:
    """Its own assembler takes 128."""
    most = leaked_calls(wrap([CALL] * 128, wrapping, ""), NAMES)
    assert isinstance(most, tuple)
    assert len(most[1]) == 128
    assert leaked_calls(wrap([CALL] * 129, wrapping, ""), NAMES) is UNSURE


def ids(found: tuple[str, tuple[ToolCall, ...]] | str | None) -> list[str]:
    """Of the calls."""
    assert isinstance(found, tuple)
    return [call.id for call in found[1]]


def test_ids_are_the_models_own_or_made() -> None:
    """One for each."""
    named = '{"id": "x", "name": "f", "arguments": {}}'
    assert ids(leaked_calls(CALL + named + CALL, NAMES)) == ["call_0", "x", "call_2"]
    assert ids(leaked_calls('{"id": 7, "name": "f", "arguments": {}}', NAMES)) == ["call_0"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[[]]",
        "1",
        '"f"',
        f"{CALL} and so on",
        f"So: {CALL}",
        f"[{CALL}, 1]",
        f"{CALL}, {CALL}",
        '{"name": "f", "arguments": []}',
        '{"name": "f", "arguments": "[]"}',
        '{"name": "f", "arguments": "text"}',
        '{"name": "f", "arguments": null}',
        '{"name": "f", "function": {"name": "f", "arguments": {}}}',
        '{"name": "F", "arguments": {}}',
        '{"name": "f", "arguments": {}',
    ],
)
def test_json_that_is_no_call_is_text(text: str) -> None:
    """Nothing is guessed."""
    assert leaked_calls(text, NAMES) is None


HOSTILE = {
    "escaped quotes": '{"' + '\\"' * (MEGABYTE // 2),
    "quotes": '{"' + '"a' * (MEGABYTE // 2),
    "backslashes": '{"' + "\\" * MEGABYTE,
    "brackets": "[" * MEGABYTE,
    "braces": '{"a":' * (MEGABYTE // 5),
    "closing brackets": "[" + "]" * MEGABYTE,
    "empty objects": "{}" * (MEGABYTE // 2),
    "calls": CALL * (MEGABYTE // len(CALL)),
    "a list of calls": "[" + f"{CALL}," * (MEGABYTE // len(CALL)) + CALL + "]",
    "a list of lists": "[" + "[]," * (MEGABYTE // 3) + "[]]",
    "a long string": json.dumps({"name": "f", "arguments": {"a": "x\\" * (MEGABYTE // 2)}}),
    "blanks": CALL + " " * MEGABYTE + "x",
    "blank lines": "\n" * MEGABYTE + "<tool_call>",
    "separators": ";" * MEGABYTE,
    "tags": "<tool_call>" * (MEGABYTE // 11),
    "tags in a line": "x" + "<tool_call>" * (MEGABYTE // 11),
    "closing tags": f"<tool_call>{CALL}" + "</tool_call>" * (MEGABYTE // 12),
    "begun markup": "<|tool_call" * (MEGABYTE // 11),
    "fences": "`" * MEGABYTE,
    "numbers": '{"name": "f", "arguments": {"a": [' + "1e16," * (MEGABYTE // 5) + "1]}}",
}


@pytest.mark.parametrize("opening", ["", "<tool_call>"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_read_in_linear_time(name: str, opening: str) -> None:
    """A megabyte, with as many tools as may be offered."""
    names = {f"tool_{number}" for number in range(127)} | {"f"}
    began = time.process_time()
    leaked_calls(opening + HOSTILE[name], names)
    assert time.process_time() - began < 1.5
