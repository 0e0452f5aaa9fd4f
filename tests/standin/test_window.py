"""What is left of a prompt that is longer than the window, and what the server says of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.standin.box import Box, Model
from tests.standin.boxes import at_box
from tests.standin.tokens import encoding, text_of, tokens_in
from tests.standin.window import MESSAGE_TOKENS, Part, Prompt, read_prompt
from tests.support.eventually import eventually

WINDOW = 300
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
PNG = "iVBORw0KGgo="


def _box(**more: Any) -> Box:
    return Box(models={"m": Model(says="first")}, num_ctx=WINDOW, **more)


def _conversation(words: int) -> list[dict[str, Any]]:
    """A system prompt, so many words said before, and a question."""
    return [
        {"role": "system", "content": "Speak."},
        {"role": "user", "content": "xyzzy " + "word " * words},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Now?"},
    ]


def test_tokens_are_those_of_cl100k_base() -> None:
    """As published: `hello world` is 15339 and 1917; and what looks like a special token is text."""
    assert encoding().n_vocab == 100_277
    assert tokens_in("hello world") == [15339, 1917]
    assert len(tokens_in("<|endoftext|>")) > 1
    assert text_of([-1, -2, *tokens_in("zażółć"), -7, *tokens_in("gęśl")]) == " zażółć gęśl"


async def test_prompt_that_fits_is_whole() -> None:
    """With a few tokens for each message."""
    async with at_box(_box()) as at:
        answer = await at.chat("m", _conversation(100))
        text = sum(len(tokens_in(message["content"])) for message in _conversation(100))
        assert answer["prompt_eval_count"] == at.call["prompt_tokens"] == text + 4 * MESSAGE_TOKENS
        assert at.call["cut"] is False


@pytest.mark.parametrize("more", [{"version": "0.12.9"}, {"version": "0.13.0"}])
async def test_ollama_leaves_out_messages_in_front_and_counts_what_is_left(more: dict[str, Any]) -> None:
    """And answers 200; the system prompt and the last message stay, and the truth is in the log."""
    async with at_box(_box(**more)) as at:
        answer = await at.chat("m", _conversation(WINDOW))
        left = [message for message in _conversation(WINDOW) if "xyzzy" not in message["content"]]
        assert answer["prompt_eval_count"] == len(read_prompt({"messages": left}, 0).tokens) < 30
        assert answer["message"]["content"] == "Speak."
        assert at.call["prompt_tokens"] > WINDOW
        assert (at.call["cut"], at.call["read_tokens"]) == (True, answer["prompt_eval_count"])


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
async def test_last_message_that_alone_is_too_long_loses_its_front(path: str) -> None:
    """By whichever protocol: exactly the window is left."""
    said = "xyzzy " + "word " * WINDOW
    async with at_box(_box()) as at:
        body = {"model": "m", "messages": [{"role": "user", "content": said}], "stream": False, "max_tokens": 9}
        status, answer = await at.post(path, **body)
        assert status == 200
        usage = answer.get("usage", answer)
        told = usage.get("prompt_eval_count", usage.get("prompt_tokens", usage.get("input_tokens")))
        assert told == at.call["read_tokens"] == WINDOW
        assert at.call["prompt_tokens"] == len(tokens_in(said)) + MESSAGE_TOKENS
        assert "xyzzy" not in str(answer)


@pytest.mark.parametrize(
    ("version", "truncate", "status"),
    [("0.13.0", False, 400), ("0.33.0-rc2", False, 400), ("0.13.0", True, 200), ("0.12.9", False, 200)],
)
async def test_truncate_false_is_heeded_from_0_13_on(version: str, truncate: bool, status: int) -> None:
    """With Ollama's own words, for the prompt that would be cut and for no other."""
    async with at_box(_box(version=version)) as at:
        body = {"model": "m", "messages": _conversation(WINDOW), "stream": False, "truncate": truncate}
        got, answer = await at.post("/api/chat", **body)
        assert got == status
        if status == 400:
            assert answer == {"error": "the input length exceeds the context length"}
            assert (at.call["how"], at.call["cut"], at.call["read_tokens"]) == ("failed", False, 0)
        assert at.call["prompt_tokens"] > WINDOW
        await at.chat("m", _conversation(100), truncate=truncate)


@pytest.mark.parametrize("tokens", [-1, 0, 1])
async def test_prompt_of_exactly_the_window_fits(tokens: int) -> None:
    """One more does not."""
    said = "word" + " word" * (WINDOW - MESSAGE_TOKENS - 1 + tokens)
    async with at_box(_box()) as at:
        status, _ = await at.post(
            "/api/chat", model="m", messages=[{"role": "user", "content": said}], stream=False, truncate=False
        )
        assert at.call["prompt_tokens"] == WINDOW + tokens
        assert status == (400 if tokens > 0 else 200)


async def test_newest_ollama_may_refuse_a_last_message_in_the_words_of_llama_cpp() -> None:
    """As recorded of 0.33: an error as the text of an error."""
    body = {"model": "m", "messages": [{"role": "user", "content": "word " * 400}]}
    async with at_box(_box(refuses_long_last=True)) as at:
        status, answer = await at.post("/v1/chat/completions", **body)
        size = at.call["prompt_tokens"]
    assert status == 400
    assert answer["error"] == {
        "message": f'{{"error":{{"code":400,"message":"request ({size} tokens) exceeds the available context size '
        f'({WINDOW} tokens), try increasing it","type":"exceed_context_size_error","n_prompt_tokens":{size},'
        f'"n_ctx":{WINDOW}}}}}',
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


async def test_llama_cpp_refuses_in_its_own_words() -> None:
    """As recorded; it never cuts."""
    body = {"model": "m", "messages": [{"role": "user", "content": "word " * 400}]}
    async with at_box(_box(kind="llama.cpp")) as at:
        await eventually(lambda: at.state["resident"][0]["loaded"])
        status, answer = await at.post("/v1/chat/completions", **body)
        size = at.call["prompt_tokens"]
    message = f"request ({size} tokens) exceeds the available context size ({WINDOW} tokens), try increasing it"
    told = {"code": 400, "message": message, "type": "exceed_context_size_error"}
    assert (status, answer) == (400, {"error": {**told, "n_prompt_tokens": size, "n_ctx": WINDOW}})


async def test_vllm_counts_what_is_to_be_answered() -> None:
    """A prompt that fits is refused where it leaves no room."""
    body = {"model": "m", "messages": [{"role": "user", "content": "word " * 200}]}
    async with at_box(_box(kind="vllm")) as at:
        assert (await at.post("/v1/chat/completions", **body))[0] == 200
        status, answer = await at.post("/v1/chat/completions", **body, max_tokens=200)
    assert status == 400
    assert answer["error"]["message"].startswith(f"This model's maximum context length is {WINDOW} tokens. However,")


async def test_tools_and_images_are_part_of_the_prompt() -> None:
    """An image counts for so many tokens, whatever its size."""
    async with at_box(_box(image_tokens=70)) as at:
        await at.chat("m", "Hello")
        plain = at.call["prompt_tokens"]
        await at.chat("m", "Hello", tools=[TOOL])
        assert at.call["prompt_tokens"] > plain + 10
        await at.chat("m", [{"role": "user", "content": "Hello", "images": [PNG, PNG]}])
        assert at.call["prompt_tokens"] == plain + 140
        part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
        content = [{"type": "text", "text": "Hello"}, part]
        await at.post("/v1/chat/completions", model="m", messages=[{"role": "user", "content": content}])
        assert at.call["prompt_tokens"] == plain + 70


async def test_answer_ends_where_the_window_is_full() -> None:
    """Where the window is not to be shifted on."""
    async with at_box(Box(models={"m": Model()}, num_ctx=50)) as at:
        said = "[[tokens=100]]"
        answer = await at.chat("m", said, shift=False)
        assert answer["done_reason"] == "length"
        assert answer["prompt_eval_count"] + answer["eval_count"] == 50
        assert (await at.chat("m", said))["eval_count"] == 100


async def test_window_is_the_calls_else_the_models_else_the_servers() -> None:
    """And a prompt is measured by it."""
    models = {"own": Model(num_ctx=100), "small": Model(trained=80), "plain": Model()}
    async with at_box(Box(models=models, num_ctx=200)) as at:
        for name, options, window in [
            ("own", {}, 100), ("own", {"num_ctx": 150}, 150), ("small", {"num_ctx": 500}, 80), ("plain", {}, 200),
        ]:  # fmt: skip
            answer = await at.chat(name, "word " * 250, options=options)
            assert answer["prompt_eval_count"] == at.call["window"] == window


PARTS = st.lists(st.builds(Part, st.sampled_from(["system", "user", "assistant"]), st.lists(st.just(7), max_size=9)))


@given(PARTS, st.integers(1, 40))
def test_what_is_left_out_is_the_least_that_makes_the_rest_fit(parts: list[Part], window: int) -> None:
    """From the front, never a system message or the last one; in order."""
    left = Prompt(tuple(parts)).without_front(window).parts
    ids = [id(part) for part in left]
    gone = [part for part in parts if id(part) not in ids]
    assert [part for part in parts if id(part) in ids] == list(left)
    assert not any(part.role == "system" for part in gone)
    assert not parts or left[-1] is parts[-1]
    droppable = [part for part in parts[:-1] if part.role != "system"]
    assert [id(part) for part in gone] == [id(part) for part in droppable[: len(gone)]]
    size = sum(len(part.tokens) for part in left)
    assert size <= window or len(gone) == len(droppable)
    assert not gone or size + len(gone[-1].tokens) > window


async def test_cut_of_a_stream_is_told_in_its_last_line() -> None:
    """As without a stream."""
    async with (
        at_box(_box()) as at,
        at.session.post(
            f"{at.server.url}/api/chat", json={"model": "m", "messages": _conversation(WINDOW)}
        ) as response,
    ):
        *_, last = (await response.text()).splitlines()
        assert f'"prompt_eval_count":{at.call["read_tokens"]}' in last
