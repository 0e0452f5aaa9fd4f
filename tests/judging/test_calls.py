"""What the calls of a run's turn are held to, and what its model is told of one that is faulty."""

from __future__ import annotations

import json
import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.judging.calls import MAX_ARGUMENTS_BYTES, MAX_CALLS, CallRules, fault_of_call
from llm_routerd.judging.judge import Accepted, Judge
from llm_routerd.protocol.codes import AttemptCode, Fault
from llm_routerd.protocol.outcome import Rejection, ToolCall
from llm_routerd.protocol.request import StreamMode
from tests.judging.test_judge import REFUSALS, answer_of, code_of, run, schema_of, stop

LIGHT = schema_of(
    {
        "type": "object",
        "properties": {"room": {"type": "string", "maxLength": 70_000}, "on": {"type": "boolean"}},
        "required": ["room"],
        "additionalProperties": False,
    }
)
PARAMETERS = {"lights": LIGHT, "clock": schema_of({"type": "object"})}
SECRET = "hunter2"


def judge_of(*, strict: bool = False, is_last: bool = False, schema: Any = None) -> Judge:
    """A judge of a run's turn; of its last, no tool is offered."""
    return Judge(
        schema=schema,
        refusals=REFUSALS,
        mode=StreamMode.LIVE,
        has_tools=not is_last,
        tool_names=frozenset() if is_last else frozenset(PARAMETERS),
        rules=CallRules(parameters=PARAMETERS, strict=strict),
    )


def call_of(arguments: str = '{"room": "hall"}', name: str = "lights") -> ToolCall:
    """A call of a tool."""
    return ToolCall.of(id="c", name=name, arguments=arguments)


FAULTY = [
    (call_of("no JSON"), AttemptCode.INVALID_JSON, "not a JSON object"),
    (call_of("[1]"), AttemptCode.INVALID_JSON, "not a JSON object"),
    (
        call_of("{}", name="lights.switch"),
        AttemptCode.INVALID_JSON,
        'no tool "lights.switch"; there are: lights, clock',
    ),
    (call_of(orjson.dumps({"room": "x" * 65_536}).decode()), AttemptCode.INVALID_JSON, "longer than 65536 bytes"),
    (call_of(orjson.dumps({"room": "ü" * 40_000}).decode()), AttemptCode.INVALID_JSON, "longer than 65536 bytes"),
    (call_of('{"room":' * 200 + "1" + "}" * 200), AttemptCode.INVALID_JSON, "nested too deeply"),
    (call_of('{"n": 123456789012345678901234567890}', name="clock"), AttemptCode.INVALID_JSON, "more digits"),
    (call_of("{}"), AttemptCode.SCHEMA_VIOLATION, 'parameters: $: "room" is a required property'),
    (call_of(f'{{"room": "x", "on": "{SECRET}"}}'), AttemptCode.SCHEMA_VIOLATION, f'$.on: "{SECRET}" is not'),
]


@pytest.mark.parametrize(("call", "code", "told"), FAULTY)
def test_faulty_call_is_let_through_for_its_model_to_be_told(call: ToolCall, code: AttemptCode, told: str) -> None:
    """As it is; strictly it is no answer, and the reason for logs quotes nothing of it."""
    assert answer_of(judge_of().finish(stop(tool_calls=(call,)))).tool_calls == (call,)
    line = fault_of_call(call, PARAMETERS)
    assert line is not None
    assert told in line
    assert line.isprintable()
    verdict = judge_of(strict=True).finish(stop(tool_calls=(call_of(), call)))
    assert code_of(verdict) is code
    assert isinstance(verdict, Rejection)
    assert verdict.fault is Fault.ANSWER
    assert not any(quoted in verdict.reason for quoted in (SECRET, "room", "switch"))


@pytest.mark.parametrize("strict", [False, True])
def test_sound_calls_are_an_answer(strict: bool) -> None:
    """No arguments at all are an empty object; a megabyte of calls is not looked at twice."""
    calls = (call_of(), call_of("", name="clock"), call_of(orjson.dumps({"room": "x" * 65_000}).decode()))
    answer = answer_of(judge_of(strict=strict).finish(stop("Well.", tool_calls=calls)))
    assert [call.arguments for call in answer.tool_calls] == [calls[0].arguments, "{}", calls[2].arguments]
    assert all(fault_of_call(call, PARAMETERS) is None for call in answer.tool_calls)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("calls", "code"),
    [
        ((call_of(),) * (MAX_CALLS + 1), AttemptCode.INVALID_JSON),
        ((call_of(name="n" * 65),), AttemptCode.INVALID_JSON),
        ((call_of(name="\ud800"),), AttemptCode.UPSTREAM),
        ((ToolCall.of(id="\udfff", name="lights", arguments="{}"),), AttemptCode.UPSTREAM),
        ((call_of('{"room": "\ud800"}'),), AttemptCode.UPSTREAM),
    ],
)
def test_what_cannot_stand_in_a_conversation_is_no_answer(strict: bool, calls: Any, code: AttemptCode) -> None:
    """Too many calls, a name without end, halves of characters: there is nothing to tell the model of them."""
    assert code_of(judge_of(strict=strict).finish(stop(tool_calls=calls))) is code


def test_as_many_calls_as_a_turn_may_have_are_an_answer() -> None:
    """The bound itself is within."""
    assert len(answer_of(judge_of().finish(stop(tool_calls=(call_of(),) * MAX_CALLS))).tool_calls) == MAX_CALLS


def test_names_that_a_model_is_told_are_bounded() -> None:
    """However many tools there are, and whatever it called."""
    many = {f"tool_{number:060}": LIGHT for number in range(128)}
    line = fault_of_call(call_of(name="\n\x1b[2J" + "n" * 1000), many)
    assert line is not None
    assert line.isprintable()
    assert len(line) < 800
    assert fault_of_call(call_of(), {}) == 'There is no tool "lights".'


def test_parameters_that_would_take_long_to_judge_hold_nobody_up() -> None:
    """A tool's schema and a model's arguments are both somebody else's; beyond 12 ms it is a fault."""
    anything: dict[str, Any] = {"anyOf": [{"const": number} for number in range(1000)]}
    heavy = {"heavy": schema_of({"type": "object", "additionalProperties": {"type": "array", "items": anything}})}
    arguments = orjson.dumps({"n": [1001] * 13_000}).decode()
    began = time.process_time()
    line = fault_of_call(call_of(arguments, name="heavy"), heavy)
    assert time.process_time() - began < 1.0
    assert (
        line == "The arguments do not satisfy the tool's parameters: $: too large to be judged by a schema this complex"
    )
    assert fault_of_call(call_of('{"n": [1, 999]}', name="heavy"), heavy) is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_TEXTS = _JSON.map(json.dumps) | st.text(st.characters(exclude_categories=["Cs"]))


@given(value=_TEXTS)
def test_call_without_a_fault_can_be_carried(value: str) -> None:
    """Its arguments are an object that is the same after it has been written and read, and satisfies the schema."""
    for name, schema in PARAMETERS.items():
        line = fault_of_call(call_of(value, name=name), PARAMETERS)
        if line is None:
            arguments = orjson.loads(value)
            assert isinstance(arguments, dict)
            assert orjson.loads(orjson.dumps(arguments)) == arguments
            assert schema.validate(arguments) is None
        else:
            assert line.isprintable()
            assert len(line) < 400


# The last turn, in which no tool is offered


@pytest.mark.parametrize("text", ["", " \n", "<think>I look.</think>\n", "</s>"])
@pytest.mark.parametrize("schema", [None, LIGHT])
def test_call_where_none_was_offered_is_the_answers_fault(text: str, schema: Any) -> None:
    """The deployment works: its breaker is not to hear of it."""
    judge = judge_of(is_last=True, schema=schema)
    verdict = judge.finish(stop(text, tool_calls=(call_of(),), finish_reason="tool_calls"))
    assert code_of(verdict) is AttemptCode.INVALID_JSON
    assert isinstance(verdict, Rejection)
    assert (verdict.fault, verdict.retryable) == (Fault.ANSWER, False)


LEAKED = [
    '<tool_call>{"name": "lights", "arguments": {"room": "hall"}}</tool_call>',
    'Let me look.\n<tool_call>\n{"name": "lights", "arguments": {"room": "hall"}}\n</tool_call>',
    '[TOOL_CALLS][{"name": "clock", "arguments": {}}]',
    '{"name": "clock", "arguments": {}}',
    "<tool_call>lights(hall)",
]


@pytest.mark.parametrize("text", LEAKED)
@pytest.mark.parametrize("size", [0, 5])
def test_call_in_the_text_of_the_last_turn_is_no_answer(text: str, size: int) -> None:
    """Servers that forbid calls do not look for them, and the markup comes as text, at once or in pieces."""
    judge = judge_of(is_last=True)
    verdict = run(judge, text, size=size)[1] if size else judge.finish(stop(text))
    assert code_of(verdict) is AttemptCode.INVALID_JSON


@pytest.mark.parametrize("text", ["The hall is lit.", "Write <tool_call> to call one.", '{"name": "Ada"}'])
def test_text_of_the_last_turn_is_the_answer(text: str) -> None:
    """Also beside calls, which nobody asked for."""
    for finish in (stop(text), stop(text, tool_calls=(call_of(),), finish_reason="tool_calls")):
        answer = answer_of(judge_of(is_last=True).finish(finish))
        assert (answer.content, answer.tool_calls, answer.finish_reason) == (text, (), "stop")


def test_text_that_promises_calls_and_has_none_is_no_answer_in_the_last_turn_either() -> None:
    """The server lost them."""
    assert code_of(judge_of(is_last=True).finish(stop("Well.", finish_reason="tool_calls"))) is AttemptCode.UPSTREAM


def test_last_answer_that_satisfies_the_schema_is_one_whatever_it_looks_like() -> None:
    """A schema may ask for what reads like a call."""
    schema = schema_of({"type": "object", "required": ["name", "arguments"]})
    text = '{"name": "clock", "arguments": {}}'
    verdict = judge_of(is_last=True, schema=schema).finish(stop(text))
    assert isinstance(verdict, Accepted)
    assert verdict.answer.content == orjson.loads(text)


def test_arguments_bound_is_in_bytes() -> None:
    """As the stream counts them."""
    most = "x" * (MAX_ARGUMENTS_BYTES - len('{"room":""}'))
    assert fault_of_call(call_of(f'{{"room":"{most}"}}'), PARAMETERS) is None
    assert fault_of_call(call_of(f'{{"room":"{most}x"}}'), PARAMETERS) is not None
