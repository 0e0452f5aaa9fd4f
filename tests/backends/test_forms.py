"""What servers really send, form by form: in each protocol that has it, streamed and not, and what is made of it.

Each row names where the form was reported.  The laws over mutated streams are in `test_forms_laws.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest

from llm_routerd.backends.anthropic.answer import AnthropicAnswer
from llm_routerd.backends.ollama.answer import OllamaAnswer
from llm_routerd.backends.openai.answer import OpenAIAnswer
from llm_routerd.protocol.codes import AttemptCode as Code
from tests.backends.forms import (
    DONE,
    Said,
    Verdict,
    called,
    chunk,
    document_of,
    events,
    judge_of,
    lines,
    pieces_of,
    read,
    stream_of,
)
from tests.backends.recordings import ReplayServer
from tests.support.calling import PROTOCOLS, ask, backend_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from llm_routerd.backends.wire.exchange import Answer as WireAnswer

ANSWERS: dict[str, Callable[[], WireAnswer]] = {
    "openai": OpenAIAnswer,
    "anthropic": AnthropicAnswer,
    "ollama": OllamaAnswer,
}
FORMS = [pytest.param(p, s, id=f"{p}-{'streamed' if s else 'whole'}") for p in PROTOCOLS for s in (True, False)]
WEATHER = '{"city":"Paris"}'


def _verdict(protocol: str, said: Said, *, streamed: bool, **terms: Any) -> Verdict:
    body = stream_of(protocol, said) if streamed else document_of(protocol, said)
    return read(ANSWERS[protocol](), [body], judge_of(**terms))


def _of(protocol: str, *reads: bytes, **terms: Any) -> Verdict:
    return read(ANSWERS[protocol](), reads, judge_of(**terms))


def _calls(verdict: Verdict) -> list[tuple[str, Any]]:
    assert verdict.answer is not None, verdict
    return [(call.name, orjson.loads(call.arguments)) for call in verdict.answer.tool_calls]


# A1. Reasons to finish.

WHOLE = ("stop", "STOP", "eos", "eos_token", "end_turn", "stop_sequence", "complete", "COMPLETE")
NOT_WHOLE = {
    "network_error": Code.TRUNCATED,  # GLM: camel 4266
    "ERROR": Code.TRUNCATED,  # Cohere: any-llm 1204
    "error": Code.TRUNCATED,  # OpenRouter: hermes-agent 92161
    "abort": Code.TRUNCATED,  # vLLM
    "insufficient_system_resource": Code.TRUNCATED,  # DeepSeek
    "MALFORMED_FUNCTION_CALL": Code.TRUNCATED,  # Gemini: promptfoo 9905
    "pause_turn": Code.TRUNCATED,  # Anthropic
    "load": Code.UPSTREAM,  # Ollama, to messages that are all `system`: oh-my-pi 7465
    "something-new 4": Code.TRUNCATED,
    "model_length": Code.CONTEXT_WINDOW,  # Mistral: camel 4262
    "model_context_window_exceeded": Code.CONTEXT_WINDOW,  # GLM: camel 4267, Anthropic
    "length": Code.LENGTH,
    "MAX_TOKENS": Code.LENGTH,
    "RECITATION": Code.REFUSAL,  # Gemini: any-llm 1200
    "PROHIBITED_CONTENT": Code.REFUSAL,  # Gemini: laravel/ai 955
    "SAFETY": Code.REFUSAL,
    "content_filter": Code.REFUSAL,
    "sensitive": Code.REFUSAL,  # GLM
    "refusal": Code.REFUSAL,
}


@pytest.mark.parametrize(("protocol", "streamed"), FORMS)
@pytest.mark.parametrize("reason", WHOLE)
def test_good_reason_to_finish_is_a_whole_answer(reason: str, protocol: str, streamed: bool) -> None:
    """In any case, from any server."""
    verdict = _verdict(protocol, Said(text=("Fo", "ur."), reason=reason), streamed=streamed)
    assert verdict.answer is not None, verdict
    assert (verdict.answer.raw_text, verdict.answer.finish_reason) == ("Four.", "stop")


@pytest.mark.parametrize(("protocol", "streamed"), FORMS)
@pytest.mark.parametrize("reason", NOT_WHOLE)
def test_any_other_reason_to_finish_is_no_whole_answer(reason: str, protocol: str, streamed: bool) -> None:
    """Also one that nobody has heard of; the server's word is told, in safe letters."""
    verdict = _verdict(protocol, Said(text=("Fo", "ur."), reason=reason), streamed=streamed)
    assert verdict.code is NOT_WHOLE[reason]
    if verdict.code is Code.TRUNCATED:
        word = "something_new_" if reason == "something-new 4" else reason
        assert verdict.reason == f"the server ended the answer with {word}"


def test_servers_word_is_bounded() -> None:
    """And no key gets through in it."""
    verdict = _verdict("openai", Said(text=("a",), reason="sk-0123456789" + "é\n" * 500), streamed=True)
    assert verdict.reason == "the server ended the answer with sk_"


# A2. Words for no reason.


@pytest.mark.parametrize("word", ["null", "None", ""])
def test_word_for_null_is_no_reason(word: str) -> None:
    """KoboldCpp says "null" in each chunk; a stream that is cut after it is cut, one that ends later is whole."""
    begun = events(chunk(word, content="Fo"))
    assert _of("openai", begun, DONE).code is Code.TRUNCATED
    whole = _of("openai", begun, events(chunk("stop", content="ur."), chunk(word)), DONE)
    assert whole.answer is not None
    assert whole.answer.raw_text == "Four."
    stopped = events({"type": "message_delta", "delta": {"stop_reason": word}})
    assert _of("anthropic", stopped).code is Code.TRUNCATED
    assert _of("ollama", lines({"message": {"content": "Fo"}, "done_reason": word})).code is Code.TRUNCATED


# A3. Calls that are promised.


@pytest.mark.parametrize("tools", [(), ("weather",)])
@pytest.mark.parametrize("reason", ["tool_calls", "tool_use", "function_call"])
@pytest.mark.parametrize(("protocol", "streamed"), FORMS)
def test_promised_calls_that_do_not_come_are_no_answer(
    protocol: str,
    streamed: bool,
    reason: str,
    tools: tuple[str, ...],
) -> None:
    """Whether text came or not, whether tools were offered or not."""
    for text in (("I shall look.",), ()):
        verdict = _verdict(protocol, Said(text=text, reason=reason), streamed=streamed, tools=tools)
        assert verdict.code is Code.UPSTREAM


def test_calls_in_another_choice_are_read() -> None:
    """Proxies of Anthropic's models put text and calls into two choices; a second answer's text is not mixed in."""
    call = {"id": "c0", "type": "function", "function": {"name": "weather", "arguments": WEATHER}}
    first = {"index": 0, "message": {"content": "I shall look."}, "finish_reason": "stop"}
    second = {"index": 1, "message": {"content": "Other.", "tool_calls": [call]}, "finish_reason": "tool_calls"}
    whole = _of("openai", orjson.dumps({"choices": [first, second]}), tools=("weather",))
    streamed = _of(
        "openai",
        events(chunk(content="I shall look."), chunk(index=1, content="Other."), chunk(index=1, tool_calls=[call])),
        events(chunk("stop"), chunk("tool_calls", index=1)) + DONE,
        tools=("weather",),
    )
    for verdict in (whole, streamed):
        assert _calls(verdict) == [("weather", {"city": "Paris"})]
        assert verdict.answer is not None
        assert (verdict.answer.raw_text, verdict.answer.finish_reason) == ("I shall look.", "tool_calls")


# A4. Calls in the text.

CALL = '{"name": "weather", "arguments": {"city": "Paris"}}'
LEAKED = {
    f"<tool_call>\n{CALL}\n</tool_call>": "",  # Qwen, Hermes: ollama 13968
    f"<tool_call>\n{CALL}": "",  # ollama 16686
    f"I shall look.\n<tool_call>{CALL}</tool_call>": "I shall look.",
    CALL: "",
    f"```json\n{CALL}\n```": "",
    f"[{CALL}]": "",
    '{"name": "weather", "parameters": {"city": "Paris"}}': "",  # Llama 3.1
    '{"type": "function", "function": {"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}}': "",
    f"[TOOL_CALLS][{CALL}]": "",  # Mistral
    f"<|python_tag|>{CALL}<|eom_id|>": "",  # Llama 3.1
}
UNSURE = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Pa',
    '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>',
    f"<tool_call>{CALL}</tool_call> And that was it.",
    "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",  # Qwen3-Coder
    f"Then it writes <tool_call>{CALL}</tool_call>, and so on.",
    '<tool_call>{"name": "weather", "arguments": {"id": 18446744073709551616}}</tool_call>',
)
TEXTS = (
    '{"name": "Paris", "arguments": {}}',
    '{"name": "weather"}',
    '{"name": "weather", "arguments": {"city": "Paris"}, "why": "an example"}',
    "A model writes <tool_call> before it calls something.",
    "The weather is fine.",
)


@pytest.mark.parametrize(("protocol", "streamed"), FORMS)
@pytest.mark.parametrize("text", LEAKED)
def test_call_in_the_text_is_the_call(text: str, protocol: str, streamed: bool) -> None:
    """With the tool among those offered; what stood before it is the text."""
    said = Said(text=tuple(text[i : i + 5] for i in range(0, len(text), 5)))
    verdict = _verdict(protocol, said, streamed=streamed, tools=("weather",))
    assert _calls(verdict) == [("weather", {"city": "Paris"})]
    assert verdict.answer is not None
    assert (verdict.answer.raw_text, verdict.answer.finish_reason) == (LEAKED[text], "tool_calls")


@pytest.mark.parametrize("text", UNSURE)
def test_what_is_not_surely_a_call_is_rejected(text: str) -> None:
    """Neither the text nor a guess is given to anybody."""
    assert _verdict("ollama", Said(text=(text,)), streamed=True, tools=("weather",)).code is Code.INVALID_JSON


@pytest.mark.parametrize("text", TEXTS)
def test_text_that_is_no_call_is_text(text: str) -> None:
    """So is everything where no tools were offered, and an answer that satisfies its schema."""
    for tools in (("weather",), ()):
        verdict = _verdict("ollama", Said(text=(text,)), streamed=True, tools=tools)
        assert verdict.answer is not None
        assert (verdict.answer.raw_text, verdict.answer.tool_calls) == (text, ())


def test_answer_that_satisfies_its_schema_is_no_call() -> None:
    """Though it looks like one."""
    verdict = _verdict("ollama", Said(text=(CALL,)), streamed=True, tools=("weather",), schema={"type": "object"})
    assert verdict.answer is not None
    assert (verdict.answer.content, verdict.answer.tool_calls) == (orjson.loads(CALL), ())


def test_two_calls_in_the_text_are_two() -> None:
    """Each in its own markup, with an id of its own."""
    verdict = _verdict(
        "ollama", Said(text=(f"<tool_call>{CALL}</tool_call>\n" * 2,)), streamed=True, tools=("weather",)
    )
    assert verdict.answer is not None
    assert [call.id for call in verdict.answer.tool_calls] == ["call_0", "call_1"]


# A5. Markup.

MARKUP = {
    "<|channel|>analysis<|message|>Two and two.<|channel|>final<|message|>Four.": "Two and two.",
    "<|channel|>analysis<|message|>Two and two.<|end|><|start|>assistant<|channel|>final<|message|>Four.<|return|>": (
        "Two and two."
    ),
    "<|start|>assistant<|channel|>final<|message|>Four.<|end|>": "",
    "[THINK]Two and two.[/THINK]Four.": "Two and two.",  # Magistral
    "<thought>Two and two.</thought>\nFour.": "Two and two.",  # Gemma and Gemini
    "<think>Two and two.</think>\n\nFour.": "Two and two.",
}


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(("protocol", "streamed"), FORMS)
@pytest.mark.parametrize("text", MARKUP)
def test_thinking_in_markup_is_no_part_of_the_answer(
    text: str,
    protocol: str,
    streamed: bool,
    size: int,
) -> None:
    """Wherever the pieces are divided."""
    said = Said(text=tuple(text[i : i + size] for i in range(0, len(text), size)))
    body = pieces_of(protocol, said) if streamed else [document_of(protocol, said)]
    verdict = read(ANSWERS[protocol](), body, judge_of())
    assert verdict.answer is not None, verdict
    assert (verdict.answer.raw_text, verdict.reasoning) == ("Four.", MARKUP[text])


@pytest.mark.parametrize(
    "text",
    [
        "<|channel|>analysis<|message|>Two and two.<|end|>",
        "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{}<|call|>",
        "<|im_end|>",
        "<|eot_id|></s>\n",
        "[THINK]Two and two.",
        "<thought>Two and two.</thought>",
    ],
)
def test_markup_alone_is_no_answer(text: str) -> None:
    """It is empty."""
    for protocol in PROTOCOLS:
        assert _verdict(protocol, Said(text=(text,)), streamed=True).reason == "empty answer"


def test_json_in_the_final_channel_is_judged() -> None:
    """A schema is held against the answer and not against its markup."""
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>[4]<|return|>"
    verdict = _verdict("openai", Said(text=(text,)), streamed=True, schema={"type": "array"})
    assert verdict.answer is not None
    assert verdict.answer.content == [4]


# A6. Numbers.


@pytest.mark.parametrize(("protocol", "streamed"), FORMS)
@pytest.mark.parametrize("literal", ["18446744073709551616", "-9223372036854775809", "1" * 400, "9007199254740993.0"])
def test_number_that_cannot_be_carried_is_not_told_as_another(literal: str, protocol: str, streamed: bool) -> None:
    """In an answer to a schema; in text nothing is parsed, and it is the text."""
    said = Said(text=('{"n":', literal, "}"))
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    assert _verdict(protocol, said, streamed=streamed, schema=schema).code is Code.INVALID_JSON
    plain = _verdict(protocol, said, streamed=streamed)
    assert plain.answer is not None
    assert literal in plain.answer.raw_text


@pytest.mark.parametrize("literal", ["18446744073709551615", "-9223372036854775808", "1e3", "0.1234567890123456789"])
def test_number_that_can_be_carried_is(literal: str) -> None:
    """The largest of 64 bits are; digits that no float keeps are nobody's loss."""
    verdict = _verdict("openai", Said(text=(f"[{literal}]",)), streamed=True, schema={"type": "array"})
    assert verdict.answer is not None
    assert verdict.answer.content == orjson.loads(f"[{literal}]")


def test_arguments_that_come_parsed_hold_no_other_numbers() -> None:
    """Ollama and unstreamed Anthropic send objects; OpenAI's text is passed on to the digit."""
    arguments = '{"id":18446744073709551616}'
    raw = b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":%s}}]},"done":true}' % arguments.encode()
    assert _of("ollama", raw, tools=("f",)).code is Code.UPSTREAM
    raw = b'{"content":[{"type":"tool_use","name":"f","input":%s}],"stop_reason":"tool_use"}' % arguments.encode()
    assert _of("anthropic", raw, tools=("f",)).code is Code.UPSTREAM
    verdict = _verdict("openai", Said(calls=(("f", arguments),), reason="tool_calls"), streamed=True, tools=("f",))
    assert verdict.answer is not None
    assert verdict.answer.tool_calls[0].arguments == arguments


# B7 to B10, B12. Good answers in other forms.


def test_content_as_a_list_of_parts() -> None:
    """Mistral's models that think: parts first, then strings."""
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Two and two."}]}
    streamed = events(chunk(content=[thinking]), chunk(content=[{"type": "text", "text": "Fo"}]), chunk(content="ur."))
    message = {"content": [thinking, {"type": "reference", "reference_ids": [1]}, {"type": "text", "text": "Four."}]}
    whole = orjson.dumps({"choices": [{"message": message, "finish_reason": "stop"}]})
    for body in (streamed + events(chunk("stop")) + DONE, whole):
        verdict = _of("openai", body)
        assert verdict.answer is not None
        assert (verdict.answer.raw_text, verdict.reasoning) == ("Four.", "Two and two.")
    assert _of("openai", events(chunk(content=[{"type": "image"}]), chunk("stop")) + DONE).code is Code.UPSTREAM


def _deltas(*each: dict[str, Any]) -> bytes:
    return events(*(chunk(tool_calls=[one]) for one in each), chunk("tool_calls")) + DONE


def _delta(call_id: str, arguments: str, name: str | None = None, index: int | None = 0) -> dict[str, Any]:
    return {"id": call_id, "function": {"name": name, "arguments": arguments}} | ({} if index is None else {"index": 0})


@pytest.mark.parametrize("index", [0, None])
def test_call_whose_id_changes_with_every_delta_is_one(index: int | None) -> None:
    """With the name in the first delta or in all; two whole calls under one index stay two."""
    for name in (None, "weather"):
        body = _deltas(
            _delta("a", "", "weather", index),
            _delta("b", '{"city":', name, index),
            _delta("c", '"Paris"}', name, index),
        )
        if not (name and index is None):  # without an index a name after arguments begins a call
            assert _calls(_of("openai", body, tools=("weather",))) == [("weather", {"city": "Paris"})]
    two = _deltas(_delta("a", WEATHER, "weather", index), _delta("b", WEATHER, "weather", index))
    assert len(_calls(_of("openai", two, tools=("weather",)))) == 2


@pytest.mark.parametrize("pause", [b"null", b"", b": PROCESSING", b"7", b'"ping"', b"true"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_no_protocol_calls_a_message_is_nothing(protocol: str, pause: bytes) -> None:
    """Keep-alives of servers that reason; at any place of the stream."""
    pieces = pieces_of(protocol, Said(text=("Fo", "ur.")))
    frame = pause + b"\n" if protocol == "ollama" else b"data: " + pause + b"\n\n"
    body = [frame, *(part for piece in pieces[:-1] for part in (piece, frame)), pieces[-1]]
    for reads in (body, [b"".join(body)]):
        verdict = read(ANSWERS[protocol](), reads, judge_of())
        assert verdict.answer is not None, verdict
        assert verdict.answer.raw_text == "Four."


@pytest.mark.parametrize("broken", [b"{]", b"[", b'"ping', b"PING", b'{"choices":['])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_claims_to_be_json_and_is_not_is_a_fault(protocol: str, broken: bytes) -> None:
    """A piece of the answer may have been in it."""
    frame = broken + b"\n" if protocol == "ollama" else b"data: " + broken + b"\n\n"
    assert _of(protocol, frame, stream_of(protocol, Said(text=("Four.",)))).code is Code.UPSTREAM


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_character_divided_between_two_events_is_joined(protocol: str) -> None:
    """Escaped surrogate halves, in text and in thinking; alone at the end, or in front of other text, they are a fault."""
    mark = "HALF"
    for said, whole in (
        (Said(text=(f"{mark}1", f"{mark}2 yes")), "text"),
        (Said(text=("yes",), reasoning=(f"{mark}1", f"{mark}2")), "reasoning"),
    ):
        body = stream_of(protocol, said).replace(b"HALF1", b"a\\ud83d").replace(b"HALF2", b"\\uDE00")
        verdict = _of(protocol, body)
        assert verdict.answer is not None, verdict
        assert (verdict.answer.raw_text if whole == "text" else verdict.reasoning).startswith("a😀")
        divided = read(ANSWERS[protocol](), [body[i : i + 1] for i in range(len(body))], judge_of())
        assert divided == verdict
        for wrong in (b"", b"x"):
            cut = stream_of(protocol, said).replace(b"HALF1", b"a\\ud83d").replace(b"HALF2", wrong)
            assert _of(protocol, cut).code is Code.UPSTREAM


def test_character_divided_in_arguments_is_joined() -> None:
    """OpenAI's arguments are text in pieces; half a character alone is a fault."""
    pieces = (_delta("a", '{"city":"A1', "weather"), _delta("a", 'B2"}'))
    body = _deltas(*pieces).replace(b"A1", b"\\ud83d").replace(b"B2", b"\\ude00")
    assert _calls(_of("openai", body, tools=("weather",))) == [("weather", {"city": "😀"})]
    alone = _deltas(*pieces).replace(b"A1", b"\\ud83d").replace(b"B2", b"")
    assert _of("openai", alone, tools=("weather",)).code is Code.UPSTREAM


@pytest.mark.parametrize("place", ["event", "choice", "x_groq", "before-the-last"])
async def test_usage_is_counted_wherever_it_stands(place: str) -> None:
    """Moonshot has it in the choice, Groq in `x_groq`, others in a chunk of its own or before the last."""
    usage = {"prompt_tokens": 9, "completion_tokens": 4}
    last = chunk("stop")
    match place:
        case "event":
            last["usage"] = usage
        case "choice":
            last["choices"][0]["usage"] = usage
        case "x_groq":
            last["x_groq"] = {"id": "r", "usage": usage}
    first = {**chunk(content="Four."), "usage": usage} if place == "before-the-last" else chunk(content="Four.")
    verdict = _of("openai", events(first, last) + DONE)
    assert verdict.answer is not None
    assert (verdict.answer.usage.prompt_tokens, verdict.answer.usage.completion_tokens) == (9, 4)


# Tool calls: shape by protocol by streamed.

SHAPES: dict[str, Iterable[dict[str, Any]]] = {
    "pieces": [_delta("a", "", "f"), _delta("", '{"n"'), _delta("", ":1}")],
    "object": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": {"n": 1}}}],
    "no-index": [{"id": "a", "function": {"name": "f", "arguments": '{"n":1}'}}],
    "no-index-object": [{"function": {"name": "f", "arguments": {"n": 1}}}],
    "null-index": [{"index": None, "id": "a", "function": {"name": "f", "arguments": '{"n":1}'}}],
}


@pytest.mark.parametrize("reason", ["tool_calls", "stop"])
@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_call_of_every_shape_is_read(shape: str, streamed: bool, reason: str) -> None:
    """Also where the server says `stop`."""
    deltas = list(SHAPES[shape])
    if streamed:
        body = events(*(chunk(tool_calls=[delta]) for delta in deltas), chunk(reason)) + DONE
    else:
        message = {"content": None, "tool_calls": deltas}
        body = orjson.dumps({"choices": [{"message": message, "finish_reason": reason}]})
    verdict = _of("openai", body, tools=("f",))
    assert _calls(verdict) == [("f", {"n": 1})]
    assert verdict.answer is not None
    assert verdict.answer.finish_reason == "tool_calls"


def _call(name: str, arguments: Any, index: int | None = None, call_id: Any = None) -> dict[str, Any]:
    given = {"id": call_id, "index": index}
    function = {"name": name, "arguments": arguments}
    return {key: value for key, value in given.items() if value is not None} | {"function": function}


# Two calls, of which each server numbers, names and writes the second one in its own way.
TWO_CALLS: dict[str, list[dict[str, Any]]] = {
    "numbered": [_call("f", '{"n":1}', 0, "a"), _call("g", '{"n":2}', 1, "b")],
    "numbered-objects": [_call("f", {"n": 1}, 0, "a"), _call("g", {"n": 2}, 1, "b")],
    "numbered-from-1": [_call("f", '{"n":1}', 1, "a"), _call("g", '{"n":2}', 2, "b")],
    "all-index-0": [_call("f", '{"n":1}', 0, "a"), _call("g", '{"n":2}', 0, "b")],
    "all-index-0-objects": [_call("f", {"n": 1}, 0, "a"), _call("g", {"n": 2}, 0, "b")],
    "all-index-0-one-name": [_call("f", '{"n":1}', 0, "a"), _call("f", '{"n":2}', 0, "b")],
    "no-index": [_call("f", '{"n":1}', None, "a"), _call("g", '{"n":2}', None, "b")],
    "no-index-objects": [_call("f", {"n": 1}, None, "a"), _call("g", {"n": 2}, None, "b")],
    "no-index-no-id": [_call("f", '{"n":1}'), _call("f", '{"n":2}')],
    "no-index-no-id-objects": [_call("f", {"n": 1}), _call("f", {"n": 2})],
    "numeric-ids": [_call("f", '{"n":1}', 0, 1), _call("g", '{"n":2}', 1, 2)],
}


def _two_calls(protocol: str, calls: list[dict[str, Any]], reason: str, *, streamed: bool) -> bytes:
    if protocol == "ollama":
        spoken = {"role": "assistant", "content": "", "tool_calls": calls}
        return lines({"message": spoken, "done": not streamed, "done_reason": "stop"}) + (
            lines({"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"})
            if streamed
            else b""
        )
    if streamed:
        return events(*(chunk(tool_calls=[call]) for call in calls), chunk(reason)) + DONE
    return orjson.dumps({"choices": [{"message": {"content": None, "tool_calls": calls}, "finish_reason": reason}]})


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(("protocol", "reason"), [("openai", "tool_calls"), ("openai", "stop"), ("ollama", "stop")])
@pytest.mark.parametrize("shape", TWO_CALLS)
def test_two_calls_of_every_shape_stay_two(shape: str, protocol: str, reason: str, streamed: bool) -> None:
    """Whatever their numbers, ids and the form of their arguments; also where the server says `stop`."""
    calls = TWO_CALLS[shape]
    verdict = _of(protocol, _two_calls(protocol, calls, reason, streamed=streamed), tools=("f", "g"))
    assert _calls(verdict) == [("f", {"n": 1}), (calls[1]["function"]["name"], {"n": 2})]
    assert verdict.answer is not None
    assert verdict.answer.finish_reason == "tool_calls"
    assert len({call.id for call in verdict.answer.tool_calls}) == 2


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("reason", ["tool_use", "end_turn"])
@pytest.mark.parametrize("whole", [True, False], ids=["input-at-once", "input-in-pieces"])
def test_two_calls_of_anthropic_stay_two(whole: bool, reason: str, streamed: bool) -> None:
    """Whose arguments are an object, which comes with the block or after it."""
    blocks: list[dict[str, Any]] = [
        {"type": "tool_use", "id": name, "name": name, "input": {"n": n}} for n, name in ((1, "f"), (2, "g"))
    ]
    if streamed:
        body: list[dict[str, Any]] = [{"type": "message_start", "message": {"usage": {"input_tokens": 1}}}]
        for index, block in enumerate(blocks):
            begun = block if whole else {**block, "input": {}}
            body.append({"type": "content_block_start", "index": index, "content_block": begun})
            for piece in () if whole else ('{"n"', f":{index + 1}}}"):
                delta = {"type": "input_json_delta", "partial_json": piece}
                body.append({"type": "content_block_delta", "index": index, "delta": delta})
            body.append({"type": "content_block_stop", "index": index})
        ends = {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 1}}
        data = events(*body, ends, {"type": "message_stop"})
    else:
        data = orjson.dumps({"type": "message", "content": blocks, "stop_reason": reason, "usage": {}})
    verdict = _of("anthropic", data, tools=("f", "g"))
    assert _calls(verdict) == [("f", {"n": 1}), ("g", {"n": 2})]


@pytest.mark.parametrize(("protocol", "streamed"), FORMS)
def test_several_calls_are_as_many(protocol: str, streamed: bool) -> None:
    """In order, with text before them."""
    calls = (("f", '{"n":1}'), ("g", "{}"), ("f", '{"n":2}'))
    reason = {"openai": "tool_calls", "anthropic": "tool_use", "ollama": "stop"}[protocol]
    verdict = _verdict(
        protocol, Said(text=("Well. ",), calls=calls, reason=reason), streamed=streamed, tools=("f", "g")
    )
    assert _calls(verdict) == [("f", {"n": 1}), ("g", {}), ("f", {"n": 2})]


@pytest.mark.parametrize("said", [Said(text=("Fo", "ur.")), Said(text=("Fo",), reason="network_error")])
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_form_is_judged_alike_over_a_connection(protocol: str, said: Said) -> None:
    """The rows above read bytes; a connection brings the same."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    body = stream_of(protocol, said)
    async with ReplayServer(head + body, piece=5) as server, backend_for(protocol, server.url) as backend:
        assert await called(backend, ask(), judge_of()) == _of(protocol, body)


@pytest.mark.parametrize(("protocol", "streamed"), FORMS)
def test_byte_order_mark_is_no_part_of_the_answer(protocol: str, streamed: bool) -> None:
    """Servers on Windows write one."""
    said = Said(text=("Fo", "ur."))
    body = stream_of(protocol, said) if streamed else document_of(protocol, said)
    verdict = read(ANSWERS[protocol](), [b"\xef\xbb\xbf" + body], judge_of())
    assert verdict.answer is not None, verdict
    assert verdict.answer.raw_text == "Four."


def test_error_in_a_choice_is_no_answer() -> None:
    """OpenRouter's, whatever reason stands beside it."""
    first = chunk(content="Fo")
    last = chunk("stop")
    last["choices"][0]["error"] = {"code": 502, "message": "the provider broke off"}
    assert _of("openai", events(first, last) + DONE).code is Code.UPSTREAM
