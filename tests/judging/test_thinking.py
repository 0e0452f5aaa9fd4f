from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.judging.thinking import ThinkSplitter, drop_unopened_thinking

CASES = [
    ("plain", "plain", ""),
    ("  indented", "  indented", ""),
    ("<think>why</think>\n\nanswer", "answer", "why"),
    ("\n <thinking>why</thinking>answer", "answer", "why"),
    ("<think></think>answer", "answer", ""),
    ("</think>\nanswer", "answer", ""),
    ("<think>a</think> <think>b</think> answer", "answer", "ab"),
    ("<think>never closed </thi", "", "never closed </thi"),
    ("<think>a </thinking> b</think>c", "c", "a </thinking> b"),
    ("<thinker>x", "<thinker>x", ""),
    ("<thi", "<thi", ""),
    ("the tag <think> opens", "the tag <think> opens", ""),
    ("", "", ""),
]


def split(pieces: list[str]) -> tuple[str, str]:
    """Split a text that comes in pieces."""
    splitter = ThinkSplitter()
    parts = [*map(splitter.feed, pieces), splitter.finish()]
    return "".join(text for text, _ in parts), "".join(reasoning for _, reasoning in parts)


@pytest.mark.parametrize(("text", "answer", "reasoning"), CASES)
@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_block_at_the_start_is_reasoning(text: str, answer: str, reasoning: str, size: int) -> None:
    """Thinking and answer come apart the same way however the text is cut."""
    assert split([text[i : i + size] for i in range(0, len(text), size)]) == (answer, reasoning)


@given(st.lists(st.sampled_from(["<think>", "</think>", "<thinking>", "<", "/think>", " ", "x", "</t"])), st.data())
def test_cutting_makes_no_difference(tokens: list[str], data: st.DataObject) -> None:
    """Any text splits alike whole and in random pieces, and nothing but tags and blanks is lost."""
    text = "".join(tokens)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert split(pieces) == split([text])
    assert "".join(split([text])).count("x") == text.count("x")


def test_thinking_is_released_while_the_block_is_open() -> None:
    """Reasoning does not wait for the closing tag; only what may be its beginning does."""
    splitter = ThinkSplitter()
    assert splitter.feed("<think>first") == ("", "first")
    assert splitter.feed(" </th") == ("", " ")
    assert splitter.feed("is") == ("", "</this")


def test_leading_blanks_are_held_back_only_so_long() -> None:
    """Blanks without end become answer text."""
    splitter = ThinkSplitter()
    assert splitter.feed(" " * 1000) == (" " * 1000, "")
    assert splitter.settled


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so it is 4.\n</think>\n\nThe answer is 4.", "The answer is 4."),
        ("thinking only</think>", ""),
        ("write `</think>` at the end", "write `</think>` at the end"),
        ("say <think>x\n</think>\n and go", "say <think>x\n</think>\n and go"),
        ("nothing of it", "nothing of it"),
    ],
)
def test_thinking_that_was_never_opened_is_dropped(text: str, answer: str) -> None:
    """A closing tag that ends its line, with none opened before, ends the thinking; a mere mention does not."""
    assert drop_unopened_thinking(text) == answer
