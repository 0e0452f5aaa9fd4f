"""A model has so many places, and each place remembers its last prompt."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.standin.box import Box, Model
from tests.standin.boxes import at_box
from tests.standin.slots import ALIKE, Slots, common_beginning
from tests.standin.tokens import tokens_in
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from tests.standin.boxes import At

PER_TOKEN = 2e-4


def _box(slots: int = 1, **more: Any) -> Box:
    return Box(models={"m": Model()}, slots=slots, seconds_per_token=PER_TOKEN, **more)


async def test_no_more_calls_run_than_there_are_slots_and_the_others_come_in_their_order() -> None:
    """First come first served."""
    async with at_box(_box(slots=2)) as at:
        tasks = []
        for number in range(6):
            told = f"[[id={number} tokens={10 if number < 2 else 2} delay_ms=20]]"
            tasks.append(asyncio.create_task(at.chat("m", told)))
            await eventually(lambda number=number: len(at.server.calls) == number + 1)  # type: ignore[misc]
        await asyncio.gather(*tasks)
        assert at.state["most_running"] == 2
        begun = sorted(at.server.calls, key=lambda call: call["start"] + call["load_seconds"] + call["wait_seconds"])
        assert [call["id"] for call in begun] == list("012345")
        assert max(call["wait_seconds"] for call in at.server.calls) > 0.02


async def test_slot_of_a_client_that_left_is_free_again() -> None:
    """Whether it was waiting, being read or answered."""
    async with at_box(_box()) as at:
        running = asyncio.create_task(at.chat("m", "[[stall_after=1]]", stream=True))
        await eventually(lambda: at.state["running"] == 1)
        waiting = asyncio.create_task(at.chat("m"))
        await eventually(lambda: at.state["waiting"] == 1)
        waiting.cancel()
        await eventually(lambda: at.state["waiting"] == 0)
        running.cancel()
        await eventually(lambda: at.state["running"] == 0)
        await at.chat("m")
        long = "word " * 2000
        reading = asyncio.create_task(at.chat("m", long))
        await eventually(lambda: at.state["running"] == 1)
        reading.cancel()
        await eventually(lambda: at.state["running"] == 0)
        await at.chat("m", long)
        assert at.call["cached_tokens"] < 100  # what was not read to its end stands in no cache


async def test_time_to_the_first_token_grows_with_what_is_read_anew() -> None:
    """The common beginning is not read again."""
    long = "word " * 1000
    async with at_box(_box()) as at:
        first = await at.chat("m", long)
        assert first["prompt_eval_count"] == at.call["prompt_tokens"] > 1000
        assert first["prompt_eval_duration"] == pytest.approx(PER_TOKEN * 1e9 * at.call["prompt_tokens"], rel=0.01)
        assert at.call["end"] - at.call["start"] > PER_TOKEN * 1000
        second = await at.chat("m", long + "and more")
        assert second["prompt_eval_count"] == at.call["prompt_tokens"]
        assert second["prompt_eval_duration"] < first["prompt_eval_duration"] / 50
        assert at.call["cached_tokens"] > 1000
        assert (await at.chat("m", "Other"))["prompt_eval_duration"] > 0
        assert at.call["cached_tokens"] == 4  # a message's beginning


async def test_next_turn_of_a_conversation_reads_its_new_message_alone() -> None:
    """What the model has said stands in the cache too."""
    async with at_box(_box()) as at:
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "word " * 200}]
        answer = await at.chat("m", messages)
        messages += [answer["message"], {"role": "user", "content": "Go on"}]
        await at.chat("m", messages)
        assert at.call["prompt_tokens"] - at.call["cached_tokens"] == 4 + len(tokens_in("Go on"))


async def test_conversations_that_take_turns_keep_their_caches_in_slots_of_their_own() -> None:
    """Three in two slots lose theirs."""
    one, two, three = ("word " * 300, "lorem " * 300, "ipsum " * 300)
    async with at_box(_box(slots=2)) as at:
        for said in (one, two, one, two):
            await at.chat("m", said)
        assert [call["cached_tokens"] > 300 for call in at.server.calls] == [False, False, True, True]
        assert [call["slot"] for call in at.server.calls] == [0, 1, 0, 1]
        for said in (three, one):
            await at.chat("m", said)
        assert [call["cached_tokens"] > 300 for call in at.server.calls][4:] == [False, False]


async def test_cache_goes_with_its_model() -> None:
    """What was pushed out has forgotten."""
    async with at_box(Box(models={"a": Model(), "b": Model()}, most_models=1)) as at:
        for name in ("a", "b", "a"):
            await at.chat(name, "word " * 100)
        assert [call["cached_tokens"] for call in at.server.calls] == [0, 0, 0]


async def _twice(at: At, path: str) -> Any:
    messages = [{"role": "user", "content": "word " * 100}]
    for _ in range(2):
        status, answer = await at.post(path, model="m", messages=messages, max_tokens=5)
        assert status == 200
    return answer


async def test_llama_cpp_tells_what_it_had_cached() -> None:
    """In `usage` and `timings`; all but one of its tokens, for the same prompt."""
    async with at_box(_box(kind="llama.cpp")) as at:
        await eventually(lambda: at.state["resident"][0]["loaded"])
        answer = await _twice(at, "/v1/chat/completions")
        count = at.call["prompt_tokens"]
        assert answer["usage"]["prompt_tokens"] == count
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": count - 1}
        assert (answer["timings"]["cache_n"], answer["timings"]["prompt_n"]) == (count - 1, 1)
        assert answer["timings"]["prompt_ms"] == pytest.approx(PER_TOKEN * 1000)
        usage = (await _twice(at, "/v1/messages"))["usage"]
        assert (usage["cache_read_input_tokens"], usage["input_tokens"]) == (count - 1, 1)


async def test_stream_of_llama_cpp_ends_with_its_timings() -> None:
    """In the chunk with the usage, where that was asked for, else in the last one with a choice."""
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    async with at_box(_box(kind="llama.cpp")) as at:
        await eventually(lambda: at.state["resident"][0]["loaded"])
        for more in ({}, {"stream_options": {"include_usage": True}}):
            async with at.session.post(f"{at.server.url}/v1/chat/completions", json={**body, **more}) as response:
                *_, last, done = (await response.text()).strip().split("\n\n")
            assert done == "data: [DONE]"
            assert '"timings":{"cache_n":' in last
            assert ('"usage"' in last) is bool(more)


async def test_ollama_may_count_without_what_it_had_cached() -> None:
    """As old versions do."""
    async with at_box(_box(counts_cached=False)) as at:
        counts = [(await at.chat("m", "word " * 100))["prompt_eval_count"] for _ in range(2)]
        assert counts == [at.call["prompt_tokens"], 1]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=12))
def test_the_slot_with_most_of_the_prompt_is_chosen(prompts: list[list[int]]) -> None:
    """Of those that are free, else the one not used for longest; nothing is taken for read that is not in its cache."""

    async def run() -> None:
        slots, order = Slots(3), [0, 1, 2]  # the one that was not used for longest first
        for prompt in prompts:
            caches = [list(slot.cache) for slot in slots.all]
            best = max(common_beginning(cache, prompt) for cache in caches)
            slot, cached = await slots.take(prompt)
            assert cached == min(common_beginning(caches[slot.number], prompt), len(prompt) - 1)
            if best > ALIKE * len(prompt):
                assert common_beginning(caches[slot.number], prompt) == best
            else:
                assert slot.number == order[0]
            order.remove(slot.number)
            order.append(slot.number)
            slots.give_back(slot, prompt)

    asyncio.run(run())
