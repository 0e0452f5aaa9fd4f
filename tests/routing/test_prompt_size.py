"""How many tokens a prompt has: the guess holds for real tokenizers, and what was counted narrows it."""

from __future__ import annotations

import base64
import random
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiktoken
from tokenizers import Tokenizer

from llm_routerd.protocol.call import ANY_FACTORS
from llm_routerd.routing.prompt_size import Gauge, most_tokens, size_of, tokens_of
from tests.support.texts import TEXTS

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
MORE = {
    "a module": (ROOT / "daemon/llm_routerd/running/caller.py").read_text(),
    "a JSON Schema": (ROOT / "schemas/config.schema.json").read_text()[:9_000],
    "Markdown": (ROOT / "README.md").read_text()[:9_000],
    "numbers": " ".join(str(number * 7_919) for number in range(300)),
    "base64": base64.b64encode(random.Random(1).randbytes(2_000)).decode(),
}
TEXT_OF = {name: text * -(-3_000 // len(text)) for name, text in {**TEXTS, **MORE}.items()}


@pytest.fixture(scope="module", params=["cl100k", "o200k", "claude"])
def count(request: pytest.FixtureRequest) -> Callable[[str], int]:
    """Counts a text's tokens; litellm keeps the files that it needs without a network."""
    found = find_spec("litellm")
    assert found is not None
    assert found.origin is not None
    files = Path(found.origin).parent / "litellm_core_utils/tokenizers"
    if request.param == "claude":
        claude = Tokenizer.from_file(str(files / "anthropic_tokenizer.json"))
        return lambda text: len(claude.encode(text).ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(files))
        # Not by `get_encoding`: what calls litellm has put a lighter one in its place.
        public = import_module("tiktoken_ext.openai_public")
        encoding = tiktoken.Encoding(**getattr(public, f"{request.param}_base")())
    return lambda text: len(encoding.encode(text))


@pytest.mark.parametrize("name", TEXT_OF)
def test_count_lies_within_the_guess(name: str, count: Callable[[str], int]) -> None:
    """For whatever language, by whatever tokenizer."""
    guess = tokens_of(TEXT_OF[name])
    counted = count(TEXT_OF[name])
    assert guess.low <= counted <= guess.high
    assert guess.low <= guess.likely <= guess.high <= most_tokens(len(TEXT_OF[name])) * 2.5
    if name != "emoji":
        assert counted <= most_tokens(len(TEXT_OF[name]))


@pytest.mark.parametrize("name", ["English", "German", "C", "Chinese", "Russian", "Hindi", "a module"])
def test_what_was_counted_narrows_the_guess(name: str, count: Callable[[str], int]) -> None:
    """After some prompts of a kind, the next one's count is known within a third either way, and still lies within."""
    gauge = Gauge()
    text = TEXT_OF[name]
    for number in range(20):
        part = text[number * 7 :] * (1 + number % 3)
        gauge.sample(tokens_of(part), count(part))
    guess = tokens_of(text)
    narrowed = guess.scaled(gauge.factors(guess.kind))
    assert narrowed.low <= count(text) <= narrowed.high
    assert narrowed.high / narrowed.low < 1.8
    assert guess.low <= narrowed.low <= narrowed.likely <= narrowed.high <= guess.high


def test_counts_of_another_kind_of_text_say_nothing() -> None:
    """Nor do too few, nor counts of a few tokens, nor such as cannot be of the whole prompt."""
    gauge, english, chinese = Gauge(), tokens_of(TEXT_OF["English"]), tokens_of(TEXT_OF["Chinese"])
    for _ in range(7):
        gauge.sample(english, 600)
    for _ in range(100):
        gauge.sample(chinese, 3)  # all but these were cached, and some servers leave that out
        gauge.sample(tokens_of("hello"), 30)
    assert gauge.factors(english.kind) == gauge.factors(chinese.kind) == ANY_FACTORS
    gauge.sample(english, 600)
    assert gauge.factors(english.kind) != ANY_FACTORS
    assert gauge.factors(chinese.kind) == ANY_FACTORS


def test_long_text_is_sampled_in_bounded_time() -> None:
    """Ten megabytes in the time of some pages; the guess grows with the text."""
    text = MORE["a module"]
    page = tokens_of(text)  # which is short enough to be read as a whole
    began = time.process_time()
    book = tokens_of(text * 1_000)
    assert time.process_time() - began < 0.2
    assert 0.8 < book.likely / (page.likely * 1_000) < 1.25
    assert book.low < page.low * 1_000 < page.high * 1_000 < book.high


@pytest.mark.parametrize(
    "text", ["", " ", " " * 200_000, "\n" * 200_000, "-" * 200_000, "\x00" * 9, "\ud800", "\U0001f600" * 40_000]
)
def test_any_text_has_a_size(text: str) -> None:
    """Also one without words, and one that is no Unicode."""
    guess = tokens_of(text)
    assert 0 <= guess.low <= guess.likely <= guess.high


def test_all_parts_of_a_conversation_count() -> None:
    """System prompts and tools are what is never left out; calls have arguments, images a size of their own."""
    tools = ({"type": "function", "function": {"name": "f", "description": TEXT_OF["English"]}},)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": TEXT_OF["English"]},
        {"role": "user", "content": [{"type": "text", "text": TEXT_OF["English"]}, image]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": TEXT_OF["English"]}}]},
        {"role": "tool", "content": TEXT_OF["English"]},
    ]
    size, one = size_of(messages, tools), tokens_of(TEXT_OF["English"])
    assert len(size.messages) == 3
    assert size.kept.likely == pytest.approx(2 * one.likely, rel=0.1)
    assert size.messages[0].high > one.high + 1_500
    assert size.messages[0].low == pytest.approx(one.low, rel=0.1)
    assert size.messages[1].likely == pytest.approx(size.messages[2].likely) == pytest.approx(one.likely, rel=0.1)
    assert size.whole.likely == pytest.approx(5 * one.likely + 600, rel=0.1)
