"""A prompt that is too long for the model: an error, and never an answer to what a server has left of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.backends.ollama_request import chat_body
from llm_routerd.backends.prompt_cut import looks_cut, takes_truncate
from llm_routerd.core.call import Call
from llm_routerd.core.errors import BackendError
from tests.support.calling import ask, backend_for, deployment_of, tell
from tests.support.standin import StandIn

WINDOW = 1_000
MARKER = "xyzzy"


def _prompt(times: float, *, history: bool) -> tuple[dict[str, Any], ...]:
    """A conversation of so many windows, whose very first word is the marker."""
    words = ["every", "word", "counts", "here"] * int(WINDOW * times / 4)
    if not history:
        return ({"role": "user", "content": " ".join([MARKER, *words[1:]])},)
    half = len(words) // 2
    return (
        {"role": "user", "content": " ".join([MARKER, *words[1:half]])},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": " ".join(words[half:-1])},
    )


async def _answer(script: str, call: Call, **more: Any) -> str:
    """What the model says, or the code of the error."""
    async with StandIn({"stand-in": script}) as server, backend_for("ollama", server.url, **more) as backend:
        try:
            return (await tell(backend, call)).text
        except BackendError as error:
            return error.code.value


@pytest.mark.parametrize("history", [False, True], ids=["one message", "a conversation"])
@pytest.mark.parametrize("times", [0.5, 0.9, 1.1, 1.5, 2, 3, 5, 10])
async def test_no_answer_is_given_to_a_prompt_without_its_front(times: float, history: bool) -> None:
    """What fits is answered with its first word in sight; what does not fit is `context_window`."""
    told = await _answer(f"window={WINDOW} first", Call(messages=_prompt(times, history=history)))
    assert told == (MARKER if times < 1 else "context_window")


@pytest.mark.parametrize("history", [False, True], ids=["one message", "a conversation"])
@pytest.mark.parametrize("times", [0.5, 0.9, 2, 3, 5, 10])
async def test_server_that_cannot_be_asked_is_found_out_by_its_count(times: float, history: bool) -> None:
    """An Ollama of before `truncate` cuts all the same, and says how many tokens it has read."""
    told = await _answer(f"window={WINDOW} first unaware", Call(messages=_prompt(times, history=history)))
    assert told == (MARKER if times < 1 else "context_window")


async def test_server_that_is_no_ollama_is_found_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows no version; its count is all there is."""
    monkeypatch.setattr("llm_routerd.backends.ollama.takes_truncate", lambda version: version == 7)
    told = await _answer(f"window={WINDOW} first unaware", Call(messages=_prompt(4, history=False)))
    assert told == "context_window"


async def test_count_alone_is_no_proof_against_a_server_that_was_asked() -> None:
    """Some versions count without what they had cached: they are asked which they are, once."""
    call = ask("words that were cached before " * 500 + "[[answer=fine]]")
    async with StandIn({"stand-in": ""}) as server, backend_for("ollama", server.url) as backend:
        server.models["stand-in"] = "window=7 unaware"
        for _ in range(2):
            assert (await tell(backend, call)).text == "fine"


def test_operator_may_have_prompts_cut() -> None:
    """`params` of a deployment says so; both are named in every request else."""
    body = chat_body(deployment_of("ollama", "http://x"), ask())
    assert (body["truncate"], body["shift"]) == (False, False)
    body = chat_body(deployment_of("ollama", "http://x", params={"truncate": True}), ask())
    assert (body["truncate"], body["shift"], body.get("options")) == (True, False, None)


async def test_prompt_that_was_to_be_cut_is_answered() -> None:
    """Where the operator wants it so."""
    call = Call(messages=_prompt(4, history=False), params={"truncate": True})
    assert await _answer(f"window={WINDOW} first unaware", call) == "every"


@pytest.mark.parametrize(
    ("content", "tokens", "cut"),
    [
        ("A plain sentence of an ordinary text. " * 300, 2_400, False),
        ("A plain sentence of an ordinary text. " * 300, 1_024, True),
        ("A plain sentence of an ordinary text. " * 300, 0, False),  # not counted
        ("A short one.", 1, False),
        ("-" * 100_000, 300, False),
        (" " * 100_000 + "x", 300, False),
        ("\n\n\n\t\t\t\t  {}" * 10_000, 40_000, False),
        ("zażółć gęślą jaźń " * 1_000, 9_000, False),
        ("日本語の文章です。" * 1_000, 5_000, False),
        ([{"type": "text", "text": "An ordinary text. " * 1_000}], 1_000, True),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 99_999}}], 300, False),
        (None, 1, False),
    ],
)
def test_count_is_held_against_the_length_of_the_text(content: Any, tokens: int, cut: bool) -> None:
    """Runs of one character and images are few tokens; no language has so few for its words."""
    assert looks_cut([{"role": "user", "content": content}], tokens) is cut


def test_what_the_assistant_said_does_not_count() -> None:
    """Templates leave its thinking out."""
    assert not looks_cut([{"role": "assistant", "content": "An ordinary text. " * 1_000}], 10)


@given(st.text(max_size=3_000), st.integers(0, 5_000))
def test_ordinary_counts_are_never_held_against_a_prompt(text: str, more: int) -> None:
    """A token for every four characters, or more of them, is a whole prompt."""
    assert not looks_cut([{"role": "user", "content": text}], len(text) // 4 + 1 + more)


@pytest.mark.parametrize(
    ("version", "knows"),
    [
        ("0.33.0-rc2", True), ("0.13.0", True), ("1.0", True), ("0.12.9", False), ("0.5.7", False), ("0.0.0", False),
        ("", False), ("new", False), (None, False), (13, False),
    ],
)  # fmt: skip
def test_version_tells_who_can_be_asked(version: Any, knows: bool) -> None:
    """What is no version is none of them."""
    assert takes_truncate(version) is knows
