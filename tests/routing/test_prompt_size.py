"""How many tokens a prompt has: all its parts count, and what was counted narrows the guess."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from llm_routerd.protocol.call import ANY_FACTORS
from llm_routerd.routing.prompt_size import Gauge, most_tokens, size_of
from llm_routerd.routing.text_tokens import Tokens, tokens_of
from tests.routing.tokenizers import TEXT_OF, TOKENIZERS, counter

if TYPE_CHECKING:
    from collections.abc import Callable

ENGLISH = TEXT_OF["English"]
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TOOLS = ({"type": "function", "function": {"name": "f", "description": ENGLISH}},)


def said(text: Any, role: str = "user") -> dict[str, Any]:
    """A message."""
    return {"role": role, "content": text}


@pytest.fixture(scope="module", params=TOKENIZERS)
def count(request: pytest.FixtureRequest) -> Callable[[str], int]:
    """Counts a text's tokens."""
    return counter(request.param)


@pytest.mark.parametrize("name", ["English", "German", "C", "Chinese", "Russian", "Hindi", "a module"])
def test_what_was_counted_narrows_the_guess(name: str, count: Callable[[str], int]) -> None:
    """After some prompts of a kind less is taken to be at most, and the next one still has no more."""
    gauge = Gauge()
    text = TEXT_OF[name]
    for number in range(20):
        part = text[number * 7 :] * (4 + number % 3)
        gauge.sample(tokens_of(part), count(part))
    guess = tokens_of(text)
    narrowed = guess.scaled(gauge.factors(guess.kind))
    assert guess.low == narrowed.low <= count(text) <= narrowed.high <= guess.high
    assert narrowed.high < count(text) * 1.5


def test_counts_that_say_nothing_are_not_learnt() -> None:
    """Of another kind of text, too few, of a few tokens, or such as cannot be of the whole prompt."""
    gauge, english, chinese = Gauge(), tokens_of(ENGLISH * 5), tokens_of(TEXT_OF["Chinese"])
    for _ in range(7):
        gauge.sample(english, 3_000)
    for _ in range(100):
        gauge.sample(chinese, 3)  # all but these were cached, and some servers leave that out
        gauge.sample(english, int(english.low) - 1)  # likewise, of half of them
        gauge.sample(english, int(english.likely * 5))
        gauge.sample(tokens_of(ENGLISH), 645)  # a template would be a great part of it
    assert gauge.factors(english.kind) == gauge.factors(chinese.kind) == ANY_FACTORS
    gauge.sample(english, 3_000)
    assert gauge.factors(english.kind) != ANY_FACTORS
    assert gauge.factors(chinese.kind) == ANY_FACTORS


def test_all_parts_of_a_conversation_count() -> None:
    """System prompts and tools are what is never left out; calls have arguments, images a size of their own."""
    messages = [
        said(ENGLISH, "system"),
        said([{"type": "text", "text": ENGLISH}, IMAGE]),
        {**said(None, "assistant"), "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": ENGLISH}}]},
        said(ENGLISH, "tool"),
    ]
    size, one = size_of(messages, TOOLS), tokens_of(ENGLISH)
    assert len(size.messages) == 3
    assert size.kept.likely == pytest.approx(2 * one.likely, rel=0.1)
    assert size.messages[0].high > one.high + 1_500
    assert size.messages[0].low == pytest.approx(one.low, rel=0.1)
    assert size.messages[1].likely == pytest.approx(size.messages[2].likely, rel=0.05)
    assert size.whole.likely == pytest.approx(5 * one.likely + 600, rel=0.1)


def test_what_templates_leave_out_is_none_of_the_least() -> None:
    """Thinking of earlier turns, tools that may not be called, a schema that goes as it is; but it may be there."""
    plain = size_of([said("Yes.", "assistant"), said("Go on.")]).whole
    more = [
        size_of([said(f"<think>{ENGLISH}</think>Yes.", "assistant"), said("Go on.")]),
        size_of([said("Yes.", "assistant"), said("Go on.")], TOOLS, may_call=False),
        size_of([said("Yes.", "assistant"), said("Go on.")], schema={"description": ENGLISH}),
    ]
    for size in more:
        assert size.whole.low <= plain.low + 1
        assert size.whole.high > plain.high + tokens_of(ENGLISH).likely
    assert size_of([said(f"{ENGLISH}</think>", "user")]).whole.low > 400  # that is somebody's text


@pytest.mark.parametrize(
    ("given", "is_plain"),
    [
        (size_of([said(ENGLISH)]), True),
        (size_of([said(ENGLISH)], TOOLS), True),
        (size_of([said(ENGLISH)], TOOLS, may_call=False), False),
        (size_of([said([IMAGE])]), False),
        (size_of([said("<think>a</think>b", "assistant")]), False),
        (size_of([said(ENGLISH)], schema={}), False),
    ],
    ids=["text", "tools", "tools in name alone", "image", "thinking", "schema"],
)
def test_prompts_that_not_all_of_may_be_read_tell_nothing_of_a_tokenizer(given: Any, is_plain: bool) -> None:
    """What was not sent on would make its tokens seem fewer."""
    assert given.is_plain is is_plain


@pytest.mark.parametrize("name", TEXT_OF)
def test_no_prompt_has_more_than_its_bound(name: str, count: Callable[[str], int]) -> None:
    """In words or in calls of tools, with what is sent along, in whatever script."""
    text = TEXT_OF[name]
    call = {"id": "call_1a2b3c4d5e6f", "type": "function", "function": {"name": "look_it_up", "arguments": text}}
    messages = [said(text), {**said(None, "assistant"), "tool_calls": [call] * 3}, said([IMAGE, IMAGE])]
    schema = {"description": text}
    rendered = text + 3 * orjson.dumps(call).decode() + orjson.dumps(TOOLS).decode() + orjson.dumps(schema).decode()
    most = most_tokens(messages, TOOLS, schema=schema)
    assert most >= count(rendered) + 2 * 1_500
    assert most >= size_of(messages, TOOLS, schema=schema).whole.low


def test_bound_of_plain_text_is_near() -> None:
    """So that a prompt of two thousand letters, which every model holds, asks nobody."""
    assert most_tokens([said("x" * 1_900)]) < 2_048


@pytest.mark.parametrize("text", ["The quick brown fox. ", "Съешь ещё этих булок. "], ids=["ASCII", "Cyrillic"])
@pytest.mark.parametrize(("number", "chars"), [(1, 10_000_000), (10_000, 1_000), (20_000, 20)])
def test_prompt_is_measured_in_bounded_time(text: str, number: int, chars: int) -> None:
    """However long it is, and into however many messages it is divided."""
    content = (text * (chars // len(text) + 1))[:chars]
    messages = [said(content, "assistant" if at % 2 else "user") for at in range(number)]
    spent = []
    for _ in range(3):
        began = time.process_time()
        most_tokens(messages)
        whole = size_of(messages).whole
        spent.append(time.process_time() - began)
    assert min(spent) < 0.1  # 0.03 on a machine that has nothing else to do
    one = tokens_of(content).likely + 4
    assert 0.8 < whole.likely / (one * number) < 1.25


def test_each_of_very_many_messages_has_its_share() -> None:
    """Of those that are counted together by its length."""
    messages = [said(ENGLISH[: 20 * (1 + at % 7)]) for at in range(700)]
    size = size_of(messages)
    together = sum((each.likely for each in size.messages), 0.0)
    alone = sum(size_of([each]).messages[0].likely for each in messages)
    assert len(size.messages) == 700
    assert together == pytest.approx(alone, rel=0.15)
    assert size.messages[6].likely > size.messages[0].likely * 2


def test_guess_of_nothing_is_not_learnt_from() -> None:
    """A prompt without text has no kind."""
    gauge = Gauge()
    for _ in range(20):
        gauge.sample(Tokens(0.0, 0.0, 0.0), 5_000)
    assert gauge.factors(0) == ANY_FACTORS
