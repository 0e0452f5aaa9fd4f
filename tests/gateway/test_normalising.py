"""What changes at the front of a prompt is taken out or moved, and nothing else is touched."""

from __future__ import annotations

import time
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.config.gateway import GatewayConfig, Normaliser
from llm_routerd.gateway.normalising import KNOWN, normalised, rules_of

BILLING = "x-anthropic-billing-header: cc_version=2.1.69.0d9; cc_entrypoint=cli; cch=fa690;"
USAGE = "Token usage: 95,000/200000; 105000 remaining"


def system(content: Any) -> dict[str, Any]:
    """A message."""
    return {"role": "system", "content": content}


def user(content: Any) -> dict[str, Any]:
    """A message."""
    return {"role": "user", "content": content}


def text(said: str) -> dict[str, Any]:
    """A part."""
    return {"type": "text", "text": said}


def own(pattern: str, action: Any = "drop") -> Any:
    """A rule of an operator's."""
    return rules_of(GatewayConfig(normalise=(Normaliser(pattern=pattern, action=action),)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (f"{BILLING}\nYou are an agent.", "You are an agent."),
        (f"You are an agent.\n{BILLING}\nBe brief.", "You are an agent.\nBe brief."),
        (f"You are an agent.\n{BILLING}", "You are an agent.\n"),
        ([text(BILLING), text("You are an agent.")], [text("You are an agent.")]),
        ([text(f"{BILLING}\na"), {"type": "image_url"}], [text("a"), {"type": "image_url"}]),
    ],
)
def test_the_line_of_a_bill_goes(before: Any, after: Any) -> None:
    """Of the system's alone: a user may ask about it."""
    messages = [system(before), user(f"What is this?\n{BILLING}")]
    assert normalised(messages, KNOWN) == ([system(after), messages[1]], ("billing-header",))


@pytest.mark.parametrize(
    "note",
    [
        USAGE,
        f"<system_warning>{USAGE}</system_warning>",
        f"<system-reminder>\n{USAGE}\n</system-reminder>",
        f"<system-reminder>{USAGE}</system-reminder>  ",
        "<system-reminder>\n<total_tokens>14999960 tokens left</total_tokens>\n</system-reminder>",
    ],
)
def test_a_count_of_tokens_left_goes(note: str) -> None:
    """Of the system's and the user's messages; what tools and models said stays."""
    messages = [
        system(f"a\n{note}\nb"),
        user(f"c\n{note}"),
        {"role": "assistant", "content": note},
        {"role": "tool", "tool_call_id": "t", "content": note},
    ]
    assert normalised(messages, KNOWN) == ([system("a\nb"), user("c\n"), *messages[2:]], ("token-usage",))


@pytest.mark.parametrize(
    "said",
    [
        f"He wrote: {BILLING}",
        f"He wrote: {USAGE}",
        f"{USAGE} of which I doubt",
        "Token usage: many",
        f"<system-reminder>\n{USAGE}, and more\n</system-reminder>",
    ],
)
def test_what_only_looks_alike_stays(said: str) -> None:
    """And what was given is given back."""
    messages = [system(said), user(said)]
    found, done = normalised(messages, KNOWN)
    assert found is messages
    assert done == ()


def test_a_reminder_that_holds_more_keeps_the_rest() -> None:
    """Its marks too."""
    messages = [user(f"<system-reminder>\n{USAGE}\nBe brief.\n</system-reminder>\nHello")]
    assert normalised(messages, KNOWN)[0] == [user("<system-reminder>\nBe brief.\n</system-reminder>\nHello")]


def test_a_message_that_holds_nothing_else() -> None:
    """The system's goes; a user's turn is not lost, nor the only message there is."""
    assert normalised([system(BILLING), user("Hello")], KNOWN) == ([user("Hello")], ("billing-header",))
    assert normalised([system(BILLING)], KNOWN) == ([system(BILLING)], ())
    assert normalised([user("Hello"), user(USAGE)], KNOWN) == ([user("Hello"), user(USAGE)], ())
    assert normalised([user([text(USAGE)])], KNOWN) == ([user([text(USAGE)])], ())


def test_an_operators_rule_moves() -> None:
    """To the end of the last user message, wherever it was found, in order."""
    rules = own(r"Now: \d+\n?", "move")
    messages = [system("Now: 1\nYou are an agent."), user("a"), user("b Now: 2"), {"role": "assistant", "content": "c"}]
    assert normalised(messages, rules) == (
        [system("You are an agent."), user("a"), user("b \n\nNow: 1\n\nNow: 2"), messages[3]],
        ("normalise.0",),
    )
    parts = [system("Now: 1\na"), user([{"type": "image_url"}])]
    assert normalised(parts, rules)[0] == [system("a"), user([{"type": "image_url"}, text("Now: 1")])]
    assert normalised([system("Now: 1\na")], rules) == ([system("Now: 1\na")], ())


def test_rules_come_in_order() -> None:
    """The operator's first; the built-in ones when they are asked for."""
    config = GatewayConfig(normalise=(Normaliser(pattern="a"), Normaliser(pattern="b")), normalise_known=True)
    assert [rule.name for rule in rules_of(config)] == ["normalise.0", "normalise.1", "billing-header", "token-usage"]
    assert rules_of(GatewayConfig()) == ()


def test_a_pattern_that_matches_nothing_does_nothing() -> None:
    """An empty match is none."""
    messages = [system("a"), user("b")]
    assert normalised(messages, own("x*"))[0] is messages


def test_the_same_message_comes_out_the_same_in_the_next_request() -> None:
    """Or the cache would lose what it was to keep."""
    first = [system(f"{BILLING}\na"), user(f"b\n{USAGE}")]
    second = [system(f"{BILLING}0\na"), first[1], {"role": "assistant", "content": "c"}, user(f"d\n{USAGE}")]
    assert list(normalised(second, KNOWN)[0][:2]) == list(normalised(first, KNOWN)[0])


PIECES = st.sampled_from(
    [BILLING, USAGE, "\n", "<system-reminder>", "</system-reminder>", "<system_warning>", "a", " ", "é"]
)
CONTENT = st.lists(PIECES, max_size=8).map("".join)
MESSAGES = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["system", "user", "assistant", "tool"]),
        CONTENT | st.lists(CONTENT.map(text), max_size=3) | st.none(),
    ),
    max_size=6,
)


@given(MESSAGES)
def test_nothing_else_is_changed(messages: list[dict[str, Any]]) -> None:
    """Twice is as once, what was given stays as it was, and all that goes is what was looked for."""
    before = deepcopy(messages)
    found, _ = normalised(messages, KNOWN)
    assert messages == before
    assert normalised(found, KNOWN)[0] == found
    assert [each for each in found if each["role"] in {"assistant", "tool"}] == [
        each for each in before if each["role"] in {"assistant", "tool"}
    ]


@pytest.mark.parametrize(
    "hostile",
    [
        "x-anthropic-billing-header:" * 100_000,
        "x-anthropic-billing-header:\n" * 100_000,
        "<system-reminder>\n" * 150_000,
        "<system-reminder>\nToken usage: " * 80_000,
        "Token usage: " + "1" * 2_000_000,
        "Token usage: 1/1; 1 remaining" + " " * 2_000_000,
        f"{USAGE}\n" * 50_000 + "a",
        "\n" * 2_000_000,
    ],
)
def test_hostile_text_takes_no_longer(hostile: str) -> None:
    """Two megabytes in well under the seconds of CPU that anything worse than linear would take many of."""
    began = time.process_time()
    normalised([system(hostile + "a"), user(hostile + "a")], KNOWN)
    normalised([system(BILLING), user("a")] * 50_000, KNOWN)
    assert time.process_time() - began < 3
