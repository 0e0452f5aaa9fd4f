"""Thinking and answer come apart the same way however the text is cut, in harmony and in tags; and quickly."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_routerd.judging.harmony import HarmonySplitter
from llm_routerd.judging.thinking import ThinkSplitter, drop_unopened_thinking

if TYPE_CHECKING:
    from collections.abc import Iterable

MEGABYTE = 1_000_000
SETTINGS = settings(max_examples=200, deadline=None)

TOKENS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>")
WORDS = ("assistant", "analysis", "final", "commentary", "final ", " final", "finally", "x", "<", "<|", "|>", "\n", " ")
TAGS = ("<think>", "</think>", "<thinking>", "</thinking>", "<thought>", "</thought>", "[THINK]", "[/THINK]")
NEAR_TAGS = ("<THINK>", "[think]", "<think]", "[THINK>", "</THINK>", "<|channel|", "<thinks>", "<thin", "[", "k>")
BLANKS = (" ", "\n", "\t", "\ufeff", "\u00a0", "\u2003", "\x1c", "\x85", " " * 100, "\n" * 130)

harmony_texts = st.lists(st.sampled_from((*TOKENS, *WORDS)), max_size=20).map("".join)
think_texts = st.lists(
    st.sampled_from((*TAGS, *TAGS, *NEAR_TAGS, *BLANKS, *BLANKS, *TOKENS[:3], "x", "final")), max_size=12
).map("".join)


def cut(text: str, places: Iterable[int]) -> list[str]:
    """The pieces between these places, some of them empty."""
    ends = sorted(place % (len(text) + 1) for place in places)
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]


def split(splitter: HarmonySplitter | ThinkSplitter, pieces: Iterable[str]) -> tuple[str, str]:
    """Answer and reasoning of a text that comes in pieces."""
    parts = [*map(splitter.feed, pieces), splitter.finish()]
    return "".join(text for text, _ in parts), "".join(reasoning for _, reasoning in parts)


def harmony_by_rule(text: str) -> tuple[str, str]:
    """The same of a whole text, token after token, as the format has it."""
    answer, reasoning = "", ""
    header: str | None = ""
    is_final = False
    while text:
        token = next((token for token in TOKENS if text.startswith(token)), None)
        if token is None:
            if header is not None:
                header += text[0]
            elif is_final:
                answer += text[0]
            else:
                reasoning += text[0]
            text = text[1:]
            continue
        text = text[len(token) :]
        if token == "<|message|>":
            is_final, header = (header or "").split("<|constrain|>")[0].split("<")[0].strip() == "final", None
        elif token == "<|constrain|>":
            header = (header or "") + token
        else:
            header = ""
    return answer, reasoning


@SETTINGS
@given(harmony_texts, st.lists(st.integers(0, 500), max_size=8))
def test_harmony_is_split_as_its_rule_says_wherever_it_is_cut(text: str, places: list[int]) -> None:
    """Against an implementation without any regard to pieces."""
    expected = harmony_by_rule(text)
    assert split(HarmonySplitter(), [text]) == expected
    assert split(HarmonySplitter(), cut(text, places)) == expected
    assert split(HarmonySplitter(), text) == expected


@pytest.mark.parametrize(
    ("text", "answer", "reasoning"),
    [
        ("<|channel|>final<|message|>a < b <| c |> d<|e", "a < b <| c |> d<|e", ""),
        ("<|channel|>final<|message|>a<|return", "a<|return", ""),
        ("<|channel|>final <|constrain|>json<|message|>{}<|return|>", "{}", ""),
        ("<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>", "", "{}"),
        ("<|channel|>finality<|message|>a", "", "a"),
        ("<|channel|>" + "x" * 10_000 + "<|message|>a", "", "a"),
        ("<|channel|>final<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "ab", ""),
        ("<|channel|>analysis<|message|>a<|channel|>final<|message|>", "", "a"),
        ("<|start|>assistant", "", ""),
    ],
)
def test_channels(text: str, answer: str, reasoning: str) -> None:
    """Only `final` is the answer; what merely looks like a token is text."""
    for pieces in ([text], list(text)):
        assert split(HarmonySplitter(), pieces) == (answer, reasoning)
        assert split(ThinkSplitter(), pieces) == (answer, reasoning)


@SETTINGS
@given(think_texts, st.lists(st.integers(0, 500), max_size=8))
def test_thinking_is_split_alike_wherever_it_is_cut(text: str, places: list[int]) -> None:
    """Tags, what nearly is one, blanks of all kinds and many of them."""
    whole = split(ThinkSplitter(), [text])
    assert split(ThinkSplitter(), list(text)) == whole
    assert split(ThinkSplitter(), cut(text, places)) == whole


@pytest.mark.parametrize("tag", [*TAGS, "<|channel|>", "<|start|>"])
def test_blanks_before_the_first_tag_are_bounded_alike(tag: str) -> None:
    """The bound is met by the same texts whole and in pieces."""
    for blanks in range(256 - len(tag) - 2, 260):
        text = " " * blanks + tag + "why" + tag.replace("<", "</").replace("[", "[/") + "so"
        whole = split(ThinkSplitter(), [text])
        assert whole == split(ThinkSplitter(), text)
        assert whole == split(ThinkSplitter(), [text[:blanks], text[blanks:]])
        assert (whole == (text, "")) == (blanks + len(tag) > 256)


@SETTINGS
@given(think_texts.filter(lambda text: "<|" not in text))
def test_nothing_but_blanks_and_tags_is_lost(text: str) -> None:
    """The answer is how the text ends; every other character before it is in the thinking, in order."""
    answer, reasoning = split(ThinkSplitter(), [text])
    assert text.endswith(answer)
    thought = text.removesuffix(answer) if answer else text
    assert reasoning.count("x") == thought.count("x")
    rest = iter(thought)
    assert all(character in rest for character in reasoning)


@pytest.mark.parametrize("text", ["<THINK>a</THINK>b", "[think]a[/think]b", "<think]a</think]b", "[THINK>a[/THINK>b"])
def test_what_is_no_tag_is_text(text: str) -> None:
    """Brackets and letters are of one kind."""
    assert split(ThinkSplitter(), [text]) == (text, "")


HOSTILE = {
    "empty blocks": "<think></think>" * (MEGABYTE // 15),
    "blocks": "<think>x</think>\n" * (MEGABYTE // 17),
    "closing tags": "</think>" * (MEGABYTE // 8),
    "closing tags and blanks": "x</think> \t \t \t" * (MEGABYTE // 15) + "x",
    "blanks": " " * MEGABYTE,
    "blanks after a block": "<think></think>" + " " * MEGABYTE,
    "begun tags": "<" * MEGABYTE,
    "begun closing tags": "<think>" + "</thin" * (MEGABYTE // 6),
    "harmony's begun tokens": "<|channel|>final<|message|>" + "<|" * (MEGABYTE // 2),
    "harmony's tokens": "<|channel|>" * (MEGABYTE // 11),
    "harmony's headers": "<|channel|>" + "x" * MEGABYTE,
    "harmony's constraints": "<|start|>" + "<|constrain|>y" * (MEGABYTE // 14),
    "harmony's messages": "<|channel|>final<|message|>x" * (MEGABYTE // 28),
}


@pytest.mark.parametrize("size", [4 * MEGABYTE, 1000, 3])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_split_in_linear_time(name: str, size: int) -> None:
    """A quarter of a megabyte in small pieces, one in large ones, or four at once: a square would take many seconds."""
    text = {3: HOSTILE[name][: MEGABYTE // 4], 1000: HOSTILE[name]}.get(size, HOSTILE[name] * 4)
    began = time.process_time()
    answer, _ = split(ThinkSplitter(), (text[i : i + size] for i in range(0, len(text), size)))
    drop_unopened_thinking(text)
    drop_unopened_thinking(answer)
    assert time.process_time() - began < 3.0
