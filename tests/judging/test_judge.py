from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_routerd.jsonschema.compiled import AnswerSchema, compile_schema
from llm_routerd.judging.judge import EMPTY, MAX_ANSWER_CHARS, PROBE_CHARS, Accepted, Judge, Released
from llm_routerd.judging.refusal import RefusalDetector
from llm_routerd.protocol.call import Finish
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import Rejection, ToolCall, Usage
from llm_routerd.protocol.request import Request, StreamMode

REFUSALS = RefusalDetector("anchored")
_CORPUS = Path(__file__).parent / "refusals" / "corpus.jsonl"
CORPUS = [json.loads(line)["text"] for line in _CORPUS.read_text(encoding="utf-8").splitlines()]


def schema_of(raw: dict[str, Any] | bool) -> AnswerSchema:
    """Compile a schema."""
    compiled = compile_schema(raw)
    assert isinstance(compiled, AnswerSchema)
    return compiled


NUMBER = schema_of({"type": "object", "properties": {"n": {"type": "integer", "multipleOf": 2}}})


def text_judge(mode: StreamMode = StreamMode.LIVE, **terms: Any) -> Judge:
    """Make a judge of plain text."""
    return Judge(schema=None, refusals=REFUSALS, mode=mode, **terms)


def json_judge(mode: StreamMode = StreamMode.LIVE, **terms: Any) -> Judge:
    """Make a judge of JSON."""
    return Judge(schema=NUMBER, refusals=REFUSALS, mode=mode, **terms)


def stop(text: str = "", **fields: Any) -> Finish:
    """Make a terminal event."""
    return Finish(**{"finish_reason": "stop", "text": text, **fields})


def test_a_call_that_was_cut_off_is_none_though_length_is_accepted() -> None:
    """Half of a call's arguments may read like the whole of others."""
    call = ToolCall.of(id="1", name="f", arguments="{}")
    finish = stop(finish_reason="length", tool_calls=(call,))
    judge = text_judge(has_tools=True, tool_names=frozenset({"f"}), accepts_length=True)
    verdict = judge.finish(finish)
    assert isinstance(verdict, Rejection)
    assert verdict.code is AttemptCode.LENGTH


def test_json_that_was_cut_off_is_none_though_length_is_accepted() -> None:
    """The model had more to say, and a reader of JSON cannot see that it did."""
    asked = Request(id="r", messages=(), schema=NUMBER, params={"max_tokens": 3}, accept_length=True)
    assert not asked.accepts_length


def run(judge: Judge, text: str, finish: Finish | None = None, size: int = 3) -> tuple[str, Accepted | Rejection]:
    """Feed a text and finish; return what was shown, and the verdict."""
    shown: list[str] = []
    for position in range(0, len(text), size):
        released = judge.feed(text[position : position + size])
        if isinstance(released, Rejection):
            return "".join(shown), released
        shown.append(released.text)
    verdict = judge.finish(finish or stop())
    if isinstance(verdict, Accepted):
        shown.append(verdict.tail.text)
    return "".join(shown), verdict


def code_of(verdict: object) -> AttemptCode:
    """Return the code of a rejection."""
    assert isinstance(verdict, Rejection), verdict
    return verdict.code


def answer_of(verdict: object) -> Any:
    """Return what was accepted."""
    assert isinstance(verdict, Accepted), verdict
    return verdict.answer


# What ends an attempt


@pytest.mark.parametrize("mode", StreamMode)
def test_prose_where_json_belongs_ends_the_attempt_at_once(mode: StreamMode) -> None:
    """The first character of prose decides, in every mode."""
    verdict = json_judge(mode).feed("S")
    assert code_of(verdict) is AttemptCode.INVALID_JSON
    assert isinstance(verdict, Rejection)
    assert verdict.early


def test_mistyped_property_ends_the_attempt_at_its_value() -> None:
    """The property's first wrong token decides."""
    judge = json_judge()
    assert judge.feed('{"n": ') == Released('{"n": ', "")
    assert code_of(judge.feed('"')) is AttemptCode.SCHEMA_VIOLATION


@pytest.mark.parametrize("mode", StreamMode)
def test_refusal_ends_the_attempt_while_it_is_spoken(mode: StreamMode) -> None:
    """A refusing opening is an early rejection, long before the reply ends."""
    text = "I'm sorry, but I can't help with that. " + "It would be wrong to say more about it. " * 20
    judge = text_judge(mode)
    verdicts = [judge.feed(character) for character in text[:110]]
    rejections = [verdict for verdict in verdicts if isinstance(verdict, Rejection)]
    assert rejections
    assert rejections[0].code is AttemptCode.REFUSAL
    assert rejections[0].early


@pytest.mark.parametrize(
    "finish",
    [
        stop("Fine.", refusal=""),
        stop(refusal="No."),
        stop("Fine.", finish_reason="refusal"),
        stop("x", finish_reason="content_filter"),
    ],
)
def test_structured_refusal_is_a_refusal_whatever_the_text(finish: Finish) -> None:
    """The backend's own word counts first, even with text detection off and its quotation stays out."""
    verdict = Judge(schema=None, refusals=None, mode=StreamMode.OFF).finish(finish)
    assert code_of(verdict) is AttemptCode.REFUSAL
    assert isinstance(verdict, Rejection)
    assert "No." not in verdict.reason


@pytest.mark.parametrize("judge", [text_judge(), json_judge(), text_judge(has_tools=True)])
def test_answer_cut_off_at_its_limit_is_rejected(judge: Judge) -> None:
    """`length` has its own code, also where the JSON happens to be complete."""
    calls = (ToolCall.of(id="1", name="f", arguments="{}"),)
    assert code_of(judge.finish(stop('{"n": 2}', finish_reason="length", tool_calls=calls))) is AttemptCode.LENGTH


@pytest.mark.parametrize("text", ["", " \n", "<think>and nothing else", "<think>why</think> \n"])
def test_empty_answer_is_rejected(text: str) -> None:
    """Blanks and thinking are no answer: `upstream` for text, `invalid_json` with a schema."""
    assert code_of(run(text_judge(), text)[1]) is AttemptCode.UPSTREAM
    assert code_of(run(json_judge(), text)[1]) is AttemptCode.INVALID_JSON


@pytest.mark.parametrize("make", [text_judge, json_judge])
def test_lone_surrogate_is_rejected_and_never_raises(make: Any) -> None:
    """Text that cannot be written as UTF-8 ends the attempt, wherever it comes."""
    assert code_of(make().feed("\ud800")) is AttemptCode.UPSTREAM
    assert code_of(make().finish(stop("\ud800"))) is AttemptCode.UPSTREAM
    assert code_of(make().finish(stop('{"n": 2}', reasoning="\udfff"))) is AttemptCode.UPSTREAM


def test_endless_stream_is_rejected() -> None:
    """Text and reasoning are bounded together."""
    judge = text_judge()
    assert judge.reason("x" * (MAX_ANSWER_CHARS - 10)) is None
    assert isinstance(judge.feed("x" * 10), Released)
    assert code_of(judge.feed("x")) is AttemptCode.LENGTH
    assert code_of(text_judge().reason("x" * (MAX_ANSWER_CHARS + 1))) is AttemptCode.LENGTH
    assert code_of(text_judge().finish(stop("x", reasoning="x" * MAX_ANSWER_CHARS))) is AttemptCode.LENGTH
    json = '{"n": 2}' + " " * MAX_ANSWER_CHARS
    assert code_of(json_judge().finish(stop(json))) is AttemptCode.LENGTH


def test_reasoning_that_is_no_unicode_ends_the_attempt() -> None:
    """It would be written to Redis as the text is."""
    assert code_of(text_judge().reason("\ud800")) is AttemptCode.UPSTREAM


def test_what_only_validation_sees_is_a_violation_at_the_end() -> None:
    """The validator has the last word; its line is the reason."""
    verdict = run(json_judge(), '{"n": 3}')[1]
    assert code_of(verdict) is AttemptCode.SCHEMA_VIOLATION
    assert isinstance(verdict, Rejection)
    assert verdict.reason.startswith("$.n")
    assert not verdict.early


@pytest.mark.parametrize(
    "text", ['{"n": 2} Enjoy!', '{"n": 2}{"n": 2}', '```json\n{"n": 2}\n```\nThis is it.', '{"n": 2', '{"n": 2,}']
)
def test_json_with_anything_beside_it_is_invalid(text: str) -> None:
    """Prose after the value, a second value, an incomplete one: no JSON, with the last read or before it."""
    assert code_of(run(json_judge(), text)[1]) is AttemptCode.INVALID_JSON
    verdict = json_judge().finish(stop(text))
    assert code_of(verdict) is AttemptCode.INVALID_JSON
    assert isinstance(verdict, Rejection)
    assert not verdict.early


# What is accepted


@pytest.mark.parametrize(
    "text",
    [
        '{"n": 2}',
        ' \ufeff{"n":2.0}\n',
        '```json\n{"n": 2}\n```',
        '<think>hm {</think>\n```\n{"n": 2}\n```\n',
        '</think>\n{"n": 2}',
    ],
)
@pytest.mark.parametrize("size", [1, 4, 100])
def test_json_is_parsed_fence_and_thinking_aside(text: str, size: int) -> None:
    """Content is the parsed value; raw text is the model's, without its thinking."""
    answer = answer_of(run(json_judge(), text, size=size)[1])
    assert answer.content == {"n": 2}
    assert "hm" not in answer.raw_text


def test_json_that_reads_like_a_refusal_is_an_answer() -> None:
    """Nothing that satisfies a schema is rejected as a refusal."""
    judge = Judge(schema=schema_of({"type": "string"}), refusals=RefusalDetector("substring"), mode=StreamMode.PROBE)
    assert answer_of(run(judge, '"I cannot help with that."')[1]).content == "I cannot help with that."


def test_answer_carries_what_the_backend_told() -> None:
    """Finish reason and usage go into the answer; without usage there are zeros."""
    usage = Usage(prompt_tokens=3, completion_tokens=5)
    answer = answer_of(run(text_judge(), "Yes.", stop(" Sure.", usage=usage))[1])
    assert (answer.content, answer.raw_text, answer.finish_reason, answer.usage) == (
        "Yes. Sure.",
        "Yes. Sure.",
        "stop",
        usage,
    )
    assert answer_of(run(text_judge(), "Yes.")[1]).usage == Usage()


def test_thinking_that_the_template_opened_is_no_part_of_the_answer() -> None:
    """It streams as text, since nothing tells it apart, and is gone from the final answer."""
    shown, verdict = run(text_judge(), "Thinking of it.\n</think>\n\nParis.")
    assert answer_of(verdict).content == "Paris."
    assert shown.endswith("Paris.")


def test_refusal_after_thinking_that_the_template_opened_is_found() -> None:
    """The answer is judged and not the thinking before it."""
    assert code_of(run(text_judge(), "Thinking.\n</think>\n\nI can't help with that.")[1]) is AttemptCode.REFUSAL


# What is shown, and when


def test_live_shows_every_piece_at_once() -> None:
    """Nothing is held back in `live`, not even what looks like a refusal coming."""
    judge = text_judge()
    assert judge.feed("I'm ") == Released("I'm ", "")
    assert not judge.holding


def test_probe_holds_a_doubtful_opening_back() -> None:
    """What may become a refusal is not shown; when it proves to be none, all of it comes."""
    judge = text_judge(StreamMode.PROBE)
    assert judge.feed("I'm sorry to hear that. ") is EMPTY
    assert judge.holding
    text = "Here is what to do about it now. "
    assert judge.feed(text) == Released("I'm sorry to hear that. " + text, "")
    assert not judge.holding
    assert judge.feed("I cannot help.") == Released("I cannot help.", "")


def test_probe_shows_an_answer_at_its_second_word() -> None:
    """An opening that no refusal has is judged by its first word."""
    judge = text_judge(StreamMode.PROBE)
    assert judge.feed("Paris") is EMPTY
    assert judge.feed(" is") == Released("Paris is", "")


def test_probe_holds_no_more_than_its_limit() -> None:
    """After 200 characters the text is shown, judged or not, and still ends as a refusal where it is one."""
    judge = text_judge(StreamMode.PROBE)
    shown = ""
    opening = "I understand that " + "this is very hard for you and yours " * 3 + "too. "
    opening += (
        "It is important to talk about it with people " + "who have known you for a very long time " * 2 + "now. "
    )
    for character in opening:
        released = judge.feed(character)
        assert isinstance(released, Released)
        shown += released.text
    assert len(shown) >= PROBE_CHARS
    assert code_of(judge.finish(stop("I cannot help you."))) is AttemptCode.REFUSAL


def test_release_ends_the_holding() -> None:
    """The attempt's timer gets everything held, and from then on text passes."""
    judge = text_judge(StreamMode.PROBE)
    judge.feed("I am ")
    assert judge.release() == Released("I am ", "")
    assert not judge.holding
    assert judge.release() is EMPTY
    assert judge.feed("sor") == Released("sor", "")


def test_probe_shows_json_when_its_first_value_begins() -> None:
    """The opening of JSON is judged once a property's name and the kind of its value have passed."""
    judge = json_judge(StreamMode.PROBE)
    assert judge.feed('{"n"') is EMPTY
    assert judge.feed(": 2, ") == Released('{"n": 2, ', "")


def test_short_answer_that_was_held_is_in_the_tail() -> None:
    """Nothing is lost when the stream ends before the opening was judged."""
    judge = text_judge(StreamMode.PROBE)
    judge.feed("I ")
    verdict = judge.finish(stop("agree.", reasoning="r"))
    assert isinstance(verdict, Accepted)
    assert verdict.tail == Released("I agree.", "r")


def test_mode_off_releases_nothing() -> None:
    """Without a stream there is nothing to show, only the answer."""
    judge = text_judge(StreamMode.OFF)
    assert judge.feed("<think>a</think>Yes, ") is EMPTY
    assert judge.feed("it is.") is EMPTY
    verdict = judge.finish(stop(" Really."))
    assert isinstance(verdict, Accepted)
    assert verdict.tail is EMPTY
    assert verdict.answer.content == "Yes, it is. Really."


@pytest.mark.parametrize("mode", [StreamMode.PROBE, StreamMode.LIVE])
def test_thinking_is_shown_as_reasoning(mode: StreamMode) -> None:
    """Reasoning is released at once, also where text is held back."""
    judge = text_judge(mode)
    assert judge.feed("<think>wh") == Released("", "wh")
    assert judge.feed("y</think>I ").reasoning == "y"  # type: ignore[union-attr] # a rejection would fail as well


@pytest.mark.parametrize("mode", [StreamMode.PROBE, StreamMode.LIVE])
@pytest.mark.parametrize("size", [1, 7, 50])
@pytest.mark.parametrize(
    "text", ["I am sure it is <think>.", "I apologize for the error. The sum is 42.", "  Yes.", "<thin"]
)
def test_all_text_is_shown_exactly_once(mode: StreamMode, size: int, text: str) -> None:
    """However an answer is cut, what is shown is the answer."""
    shown, verdict = run(text_judge(mode), text, size=size)
    assert shown == text
    assert answer_of(verdict).content == text


# Tools

CALL = ToolCall.of(id="1", name="look", arguments='{"at": "moon"}')


@pytest.mark.parametrize("arguments", ["[]", "1", "{", '{"a": 1} x', '{"a": "\\ud800"}', "\ud800"])
def test_arguments_that_are_no_json_object_are_invalid(arguments: str) -> None:
    """Arguments must be the text of an object."""
    call = ToolCall.of(id="1", name="look", arguments=arguments)
    assert code_of(text_judge(has_tools=True).finish(stop(tool_calls=(call,)))) is AttemptCode.INVALID_JSON


def test_call_of_a_tool_that_was_not_offered_is_invalid() -> None:
    """Only where the names are known; without them any name will do."""
    finish = stop(tool_calls=(CALL,))
    assert (
        code_of(text_judge(has_tools=True, tool_names=frozenset({"hear"})).finish(finish)) is AttemptCode.INVALID_JSON
    )
    assert answer_of(text_judge(has_tools=True, tool_names=frozenset({"look"})).finish(finish)).tool_calls == (CALL,)


@pytest.mark.parametrize("make", [text_judge, json_judge])
def test_calls_are_an_answer_whatever_the_text(make: Any) -> None:
    """Prose beside calls is judged neither as JSON nor as a refusal; no arguments mean an empty object."""
    bare = ToolCall.of(id="2", name="look", arguments="")
    judge = make(StreamMode.PROBE, has_tools=True)
    shown, verdict = run(
        judge, "I can't help with that myself. ", stop(tool_calls=(CALL, bare), finish_reason="tool_calls")
    )
    answer = answer_of(verdict)
    assert answer.content == shown == "I can't help with that myself. "
    assert [call.arguments for call in answer.tool_calls] == [CALL.arguments, "{}"]


def test_text_is_judged_where_no_call_came() -> None:
    """An offer of tools excuses nothing when none is used."""
    assert code_of(run(text_judge(has_tools=True), "I can't help with that.")[1]) is AttemptCode.REFUSAL
    assert code_of(run(json_judge(has_tools=True), "Sure!")[1]) is AttemptCode.INVALID_JSON
    assert answer_of(run(json_judge(has_tools=True), '{"n": 4}')[1]).content == {"n": 4}


def test_refusing_words_are_held_back_where_calls_may_follow() -> None:
    """The opening objects to itself: it is not shown before the limit."""
    judge = text_judge(StreamMode.PROBE, has_tools=True)
    assert judge.feed("I can't help with that. Please ask somebody else about these things.") is EMPTY
    assert judge.holding


def test_calls_that_nobody_asked_for_are_ignored() -> None:
    """Without tools in the request only the text counts."""
    answer = answer_of(run(text_judge(), "Yes.", stop(tool_calls=(CALL,)))[1])
    assert answer.tool_calls == ()


@pytest.mark.parametrize("text", CORPUS, ids=range(len(CORPUS)))
def test_answer_that_comes_at_once_is_judged_as_one_that_comes_in_pieces(text: str) -> None:
    """The short way says what the long one says, on every reply of the labelled corpus."""
    at_once = text_judge().finish(stop(text))
    _, in_pieces = run(text_judge(), text)
    if isinstance(in_pieces, Rejection):
        assert code_of(at_once) is in_pieces.code
    else:
        assert answer_of(at_once) == in_pieces.answer
