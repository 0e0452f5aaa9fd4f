"""A prompt that is too long for the model: an error, and never an answer to what a server has left of it."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_routerd.backends.ollama.request import chat_body
from llm_routerd.backends.ollama.window import window_told, windows_of
from llm_routerd.backends.prompt_cut import (
    looks_cut,
    may_be_cut,
    may_exceed,
    takes_truncate,
    was_whole,
    without_first,
)
from llm_routerd.protocol.call import BackendError, Call, Window
from llm_routerd.routing.prompt_size import size_of
from tests.backends.recordings import ReplayServer
from tests.standin.server import StandIn
from tests.support.calling import ask, backend_for, call_to, deployment_of, tell

WINDOW = 1_000
MARKER = "xyzzy"


def _prompt(times: float, *, history: bool, window: int = WINDOW) -> tuple[dict[str, Any], ...]:
    """A conversation of so many windows, whose very first word is the marker."""
    words = ["every", "word", "counts", "here"] * int(window * times / 4)
    if not history:
        return ({"role": "user", "content": " ".join([MARKER, *words[1:]])},)
    half = len(words) // 2
    return (
        {"role": "user", "content": " ".join([MARKER, *words[1:half]])},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": " ".join(words[half:-1])},
    )


async def _answer(script: str, call: Call, protocol: str = "ollama", **more: Any) -> str:
    """What the model says, or the code of the error."""
    async with StandIn({"stand-in": script}) as server, backend_for(protocol, server.url, **more) as backend:
        try:
            return (await tell(backend, call_to(deployment_of(protocol, server.url, **more), call))).text
        except BackendError as error:
            return error.code.value


@pytest.mark.parametrize("history", [False, True], ids=["one message", "a conversation"])
@pytest.mark.parametrize("times", [0.5, 0.9, 1.1, 1.5, 2, 3, 5, 10])
async def test_no_answer_is_given_to_a_prompt_without_its_front(times: float, history: bool) -> None:
    """What fits is answered with its first word in sight; what does not fit is `context_window`."""
    told = await _answer(f"window={WINDOW} first", Call(messages=_prompt(times, history=history)))
    assert told == (MARKER if times < 1 else "context_window")


@pytest.mark.parametrize("history", [False, True], ids=["one message", "a conversation"])
@pytest.mark.parametrize("times", [0.5, 0.9, 1.1, 1.3, 1.5, 2, 3, 5, 10])
async def test_server_that_cannot_be_asked_is_found_out_by_its_count(times: float, history: bool) -> None:
    """An Ollama of before `truncate` cuts all the same, and says how many tokens it has read."""
    told = await _answer(f"window={WINDOW} first unaware", Call(messages=_prompt(times, history=history)))
    assert told == (MARKER if times < 1 else "context_window")


@pytest.mark.parametrize("times", [0.9, 3, 10])
@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
async def test_cut_is_found_out_by_whatever_protocol(protocol: str, times: float) -> None:
    """An Ollama speaks three protocols, and in two of them cannot be asked not to cut."""
    call = Call(messages=_prompt(times, history=False))
    assert await _answer(f"window={WINDOW} first", call, protocol) == (MARKER if times < 1 else "context_window")


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
async def test_by_whatever_protocol_prompts_may_be_cut_where_the_operator_wants_it(protocol: str) -> None:
    """By the same word as for `ollama/`."""
    call = Call(messages=_prompt(4, history=False))
    assert await _answer(f"window={WINDOW} first", call, protocol, params={"truncate": True}) == "every"


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
async def test_tokens_that_were_cached_are_tokens_that_were_read(protocol: str) -> None:
    """Some servers count them apart."""
    counts = {"prompt_tokens": 20, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 1_980}}
    body: dict[str, Any] = {
        "choices": [{"index": 0, "message": {"content": "fine"}, "finish_reason": "stop"}], "usage": counts,
    }  # fmt: skip
    if protocol == "anthropic":
        counts = {"input_tokens": 20, "output_tokens": 1, "cache_read_input_tokens": 1_980}
        body = {"content": [{"type": "text", "text": "fine"}], "stop_reason": "end_turn", "usage": counts}
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    call = Call(messages=_prompt(2, history=False))
    async with ReplayServer(head + orjson.dumps(body)) as server, backend_for(protocol, server.url) as backend:
        assert (await tell(backend, call)).text == "fine"


@pytest.mark.parametrize("history", [False, True], ids=["one message", "a conversation"])
@pytest.mark.parametrize("times", [0.4, 0.9, 1.1, 1.5, 4])
@pytest.mark.parametrize(
    ("script", "window", "params"),
    [
        ("window=3000 tells=show", 3_000, {}),
        ("window=3000 tells=nowhere", 3_000, {"num_ctx": 3_000}),
        ("window=3000 tells=nowhere", 3_000, {"options": {"num_ctx": 3_000}}),
        ("window=4096 tells=nowhere", 4_096, {}),
        ("window=2048 tells=nowhere", 2_048, {}),
    ],
    ids=["told of the model", "asked for", "asked for in options", "the newer default", "the older default"],
)
async def test_window_of_a_server_that_cannot_be_asked_is_found(
    script: str, window: int, params: dict[str, Any], times: float, history: bool
) -> None:
    """Where it lists none for a running model: in what was asked for, in the model, or what is taken by default."""
    call = Call(messages=_prompt(times, history=history, window=window))
    told = await _answer(f"{script} first unaware", call, params=params)
    assert told == (MARKER if times < 1 else "context_window")


@pytest.mark.parametrize("parts", [1, 2, 5, 20])
@pytest.mark.parametrize(
    "sentence",
    [
        "The quick brown fox jumps over the lazy dog and runs away from the old red barn. ",
        "for (int i = 0; i < n; ++i) { total[i] += values[i] * 2; }\n",
        "Zażółć gęślą jaźń, a potem wróć do domu przed północą. ",
        "日本語の文章です。これは長い。",
    ],
    ids=["English", "code", "Polish", "Japanese"],
)
@pytest.mark.parametrize("tokens_per_guess", [0.7, 1.0, 1.4])
def test_prompts_well_below_the_window_are_whole_and_cut_ones_cut(
    sentence: str, parts: int, tokens_per_guess: float
) -> None:
    """However a tokenizer divides the text, and however the conversation is divided."""
    window = 4_096
    for times in (0.1, 0.2, 0.3, 0.4, 1.05, 1.2, 1.5, 2.0, 4.0):
        for first in (1, 5):  # the first message may be the longest
            size = round(window * times / tokens_per_guess / size_of([_said(sentence)]).whole.likely)
            sizes = [max(1, size * (first if number == 0 else 1) // (parts - 1 + first)) for number in range(parts)]
            call = Call(messages=tuple(_said(sentence * each) for each in sizes))
            tokens = [each.likely * tokens_per_guess for each in size_of(call.messages).messages]
            read = list(tokens)
            while sum(read) > window and len(read) > 1:
                read.pop(0)
            is_cut = sum(tokens) > window
            counted = min(int(sum(read)), window)
            if not is_cut and sum(tokens) > window * 0.42:  # of so many parts each is too long
                continue
            found = looks_cut(call.messages, counted) or may_be_cut(call, counted, [window])
            assert found is is_cut, (times, first, sum(tokens), counted)


def test_oldest_servers_cut_to_more_than_half_a_window() -> None:
    """In steps of half a window, so that what is left is between a half and a whole one."""
    for times in (1.1, 1.3, 1.5, 1.9, 2.4):
        call = Call(messages=_prompt(times, history=False, window=4_096))
        counted = int(4_096 * times)
        while counted > 4_096:
            counted -= 2_048
        assert may_be_cut(call, counted, [4_096]), times


def test_prompt_that_was_not_counted_is_cut_if_it_cannot_fit() -> None:
    """Old versions count nothing of what they had cached."""
    assert may_be_cut(Call(messages=_prompt(2, history=False, window=4_096)), 0, [4_096])
    assert not may_be_cut(Call(messages=_prompt(0.9, history=False, window=4_096)), 0, [4_096])


def test_tools_are_part_of_the_prompt() -> None:
    """They are never left out, and take room."""
    tool = {"type": "function", "function": {"name": "f", "description": "word " * 700}}
    call = Call(messages=_prompt(0.5, history=False), tools=(tool,))
    assert may_be_cut(call, WINDOW, [WINDOW])
    assert not may_be_cut(call, WINDOW, [16 * WINDOW])


def _said(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("shown", "loaded", "params", "windows"),
    [
        (None, None, {}, {2_048, 4_096}),
        ({"model_info": {"llama.context_length": 1_024}}, None, {}, {1_024}),
        ({"model_info": {"llama.context_length": 131_072}}, None, {}, {2_048, 4_096}),
        ({"model_info": {"llama.context_length": 8_192}}, None, {"num_ctx": 65_536}, {8_192}),
        ({"parameters": "num_ctx    6000\nstop x"}, None, {}, {6_000}),
        ({"parameters": "num_ctx 6000"}, {"models": [{"name": "m:latest", "context_length": 7_000}]}, {}, {7_000}),
        (None, {"models": [{"name": "other:latest", "context_length": 7_000}]}, {}, {2_048, 4_096}),
        ({"parameters": 7, "model_info": []}, {"models": ["x"]}, {"num_ctx": "many", "options": []}, {2_048, 4_096}),
        ([], [], {}, {2_048, 4_096}),
    ],
)
def test_window_is_what_the_server_tells(shown: Any, loaded: Any, params: dict[str, Any], windows: set[int]) -> None:
    """What is asked for, has been allocated, stands in the model; never more than the model was made for."""
    assert set(windows_of(params, window_told(shown, loaded, {"m", "m:latest"}))) == windows


async def test_server_that_is_no_ollama_is_found_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows no version; its count is all there is."""
    monkeypatch.setattr("llm_routerd.backends.ollama.backend.takes_truncate", lambda version: version == 7)
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
    deployment = deployment_of("ollama", "http://x", params={"truncate": True})
    body = chat_body(deployment, call_to(deployment, ask()))
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


def test_very_many_messages_are_looked_at_in_bounded_time() -> None:
    """Each is one that may have been left out; what is left of them is not added up anew for each."""
    messages = tuple(_said("every word counts here ") for _ in range(8_000))
    began = time.process_time()
    assert may_be_cut(Call(messages=messages), 30_000, [32_768])
    assert time.process_time() - began < 0.5


_CONVERSATION = Call(
    messages=(
        {"role": "system", "content": "Be brief."}, _said("word " * 500), _said("word " * 900), _said("Go on."),
    )
)  # fmt: skip


def test_message_that_was_left_out_is_not_missed_when_it_is_left_out() -> None:
    """The same count again: it had not been read.  Fewer tokens: it had; and a server that counts few has cached."""
    rest = without_first(_CONVERSATION)
    assert rest is not None
    assert [message["content"][:5] for message in rest.messages] == ["Be br", "word ", "Go on"]
    assert without_first(Call(messages=_CONVERSATION.messages[:2])) is None
    assert was_whole(1_500, rest, 950)
    for again in (1_500, 1_501, 0, 1, 300):
        assert not was_whole(1_500, rest, again)


@pytest.mark.parametrize(
    ("params", "told", "windows"),
    [
        ({"num_ctx": 16_384}, Window(most=131_072, loaded=4_096, now=4_096), {4_096, 16_384}),
        ({"num_ctx": 16_384}, Window(most=131_072, loaded=32_768, now=32_768), {16_384}),
        ({}, Window(most=131_072, loaded=4_096, now=4_096), {4_096}),
    ],
    ids=["passed over", "another's", "none asked for"],
)
def test_window_that_the_model_is_loaded_with_goes_before_a_larger_one_that_was_asked_for(
    params: dict[str, Any], told: Window, windows: set[int]
) -> None:
    """Not before a smaller one: somebody else has had it loaded since."""
    assert set(windows_of(params, told)) == windows


@pytest.mark.parametrize(
    "call",
    [
        Call(messages=(_said("語" * 1_000),)),
        Call(messages=({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}] * 2},)),
        Call(messages=(_said("x"),), schema={"description": "x" * 3_000}),
        Call(messages=(_said("x"),), tools=({"function": {"description": "x" * 3_000}},)),
    ],
    ids=["a rare script", "images", "a schema", "tools"],
)
def test_prompt_is_looked_at_that_is_longer_than_its_letters(call: Call) -> None:
    """Whatever of it takes up the window."""
    assert may_exceed(call, 2_048)
    assert not may_exceed(call, 8_192)


def test_few_words_that_are_left_say_nothing_of_what_was_left_out() -> None:
    """A template may be as long as they are."""
    call = Call(messages=(_said("今天天气很好。" * 160), _said("今天天气很好。" * 500), _said("Go on.")))
    assert may_be_cut(call, 7, [4_096])
