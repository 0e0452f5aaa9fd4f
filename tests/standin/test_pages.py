"""What boxes tell of themselves, and how they fail to."""

from __future__ import annotations

import argparse
import asyncio

import aiohttp
import pytest

from tests.standin.box import Box, Model, add_flags, flags_of, read_flags
from tests.standin.boxes import At, at_box
from tests.standin.flapping import Flap
from tests.standin.server import StandIn
from tests.support.calling import ask, backend_for, tell
from tests.support.eventually import eventually
from tests.support.processes import StandInProcess

LLAMA = Box(kind="llama.cpp", models={"tiny": Model(load_seconds=0.1, trained=8192)}, num_ctx=2048, slots=2)
VLLM = Box(kind="vllm", models={"big": Model(load_seconds=0.02)}, num_ctx=2048, slots=1)


async def test_llama_cpp_is_not_ready_until_its_model_is_loaded() -> None:
    """It says so with 503, on every path."""
    async with at_box(LLAMA) as at:
        async with at.session.get(f"{at.server.url}/health") as response:
            assert response.status == 503
        body = {"model": "x", "messages": [{"role": "user", "content": "Hello"}]}
        status, answer = await at.post("/v1/chat/completions", **body)
        assert (status, answer["error"]["message"]) == (503, "Loading model")
        await eventually(lambda: at.state["resident"][0]["loaded"])
        assert await at.get("/health") == {"status": "ok"}
        assert (await at.post("/v1/chat/completions", **body))[0] == 200  # whatever the model's name


async def test_llama_cpp_tells_its_window_and_its_slots() -> None:
    """`/props`, `/slots`, and the list of its models."""
    async with at_box(LLAMA) as at:
        await eventually(lambda: at.state["resident"][0]["loaded"])
        props = await at.get("/props")
        assert (props["default_generation_settings"]["n_ctx"], props["total_slots"]) == (2048, 2)
        assert [slot["is_processing"] for slot in await at.get("/slots")] == [False, False]
        messages = [{"role": "user", "content": "[[stall_after=1]]"}]
        call = asyncio.create_task(at.post("/v1/chat/completions", model="x", messages=messages, stream=True))
        await eventually(lambda: at.state["running"] == 1)
        assert [slot["is_processing"] for slot in await at.get("/slots")] == [True, False]
        (model,) = (await at.get("/v1/models"))["data"]
        assert (model["meta"]["n_ctx"], model["meta"]["n_ctx_train"], model["owned_by"]) == (2048, 8192, "llamacpp")
        call.cancel()
        async with at.session.get(f"{at.server.url}/api/ps") as response:
            assert response.status == 404


async def test_vllm_tells_its_window_and_its_queue() -> None:
    """`max_model_len`, and two gauges."""
    async with at_box(VLLM) as at:
        (model,) = (await at.get("/v1/models"))["data"]
        assert (model["id"], model["max_model_len"], model["owned_by"]) == ("big", 2048, "vllm")
        messages = [{"role": "user", "content": "[[stall_after=1]]"}]
        body = {"model": "big", "messages": messages, "stream": True}
        calls = [asyncio.create_task(at.post("/v1/chat/completions", **body)) for _ in range(3)]
        await eventually(lambda: at.state["waiting"] == 2)
        async with at.session.get(f"{at.server.url}/metrics") as response:
            lines = (await response.text()).splitlines()
        assert 'vllm:num_requests_running{engine="0",model_name="big"} 1.0' in lines
        assert 'vllm:num_requests_waiting{engine="0",model_name="big"} 2.0' in lines
        for call in calls:
            call.cancel()
        assert (await at.post("/v1/chat/completions", **{**body, "model": "other"}))[0] == 404


@pytest.mark.parametrize("kind", ["ollama", "llama.cpp", "vllm"])
async def test_our_backends_speak_with_every_kind(kind: str) -> None:
    """Whole answers, with their counts."""
    box = Box(kind=kind, models={"m": Model(says="answer='one two'")}, num_ctx=8192)  # type: ignore[arg-type]
    protocols = ("ollama", "openai", "anthropic") if kind == "ollama" else ("openai", "anthropic")
    async with at_box(box) as at:
        await eventually(lambda: at.server.machine is not None and at.server.machine.is_ready)
        for protocol in protocols:
            async with backend_for(protocol, at.server.url, model=f"{protocol}/m") as backend:
                told = await tell(backend, ask())
                assert told.text == "one two"
                assert told.finish.usage is not None
                assert told.finish.usage.prompt_tokens == at.call["prompt_tokens"]


async def _flap(at: At, **flap: object) -> None:
    assert await at.post("/_standin/flap", **flap) == (200, {})


async def test_connections_are_refused_for_a_while() -> None:
    """At the same address, and calls that run are broken off."""
    async with at_box(Box()) as at:
        running = asyncio.create_task(at.chat("stand-in", "[[stall_after=1]]", stream=True))
        await eventually(lambda: at.state["running"] == 1)
        await _flap(at, refuse_seconds=0.2)
        with pytest.raises(aiohttp.ClientError):
            await running
        with pytest.raises(aiohttp.ClientConnectorError):
            await at.get("/api/version")
        assert at.call["how"] == "client_disconnected"
        await asyncio.sleep(0.2)
        async with asyncio.timeout(5):
            while True:
                try:
                    await at.get("/api/version")
                    break
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.02)


async def test_every_answer_is_an_error_for_a_while() -> None:
    """And what the control page says is not."""
    async with at_box(Box()) as at:
        await _flap(at, status=500)
        with pytest.raises(aiohttp.ClientResponseError, match="500"):
            await at.chat("stand-in")
        async with at.session.get(f"{at.server.url}/api/ps") as response:
            assert response.status == 500
        assert (await at.get("/_standin/state"))["calls"] == []
        await _flap(at)
        await at.chat("stand-in")
        at.server.flap(Flap(status=503, status_seconds=0.05))
        await eventually(lambda: at.server.flapping.status == 0)
        await at.chat("stand-in")


async def test_page_of_what_is_resident_comes_late_or_never() -> None:
    """While calls are answered as ever."""
    async with at_box(Box()) as at:
        await _flap(at, ps="slow", ps_seconds=0.1)
        began = asyncio.get_running_loop().time()
        await at.get("/api/ps")
        assert asyncio.get_running_loop().time() - began >= 0.1
        await _flap(at, ps="never")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await at.get("/api/ps")
        await at.chat("stand-in")


async def test_page_of_what_is_resident_lies() -> None:
    """The truth stands in the state."""
    async with at_box(Box(models={"a": Model(), "b": Model()})) as at:
        await at.chat("a")
        await _flap(at, ps="lies", ps_models=["b", "never-heard-of"])
        told = [model["name"] for model in (await at.get("/api/ps"))["models"]]
        assert told == ["b:latest", "never-heard-of:latest"]
        assert at.resident == ["a"]
        await _flap(at, ps="lies")
        assert await at.get("/api/ps") == {"models": []}


async def test_unknown_way_to_fail_is_told() -> None:
    """A test that misspells it does not pass."""
    async with at_box(Box()) as at:
        status, answer = await at.post("/_standin/flap", stauts=500)
        assert status == 400
        assert "stauts" in answer["error"]
    async with StandIn() as server, aiohttp.ClientSession() as session:
        async with session.post(f"{server.url}/_standin/flap", json={"refuse_seconds": 1}) as response:
            assert response.status == 400
        async with session.get(f"{server.url}/_standin/state") as response:
            assert await response.json() == {"loaded": [], "calls": []}


async def test_box_runs_as_a_process() -> None:
    """With all that was set, by its flags."""
    models = {
        "a:7b": Model(size=6 * 10**9, load_seconds=0.01, trained=8192, num_ctx=100, says="answer='as told' delay_ms=1"),
        "b": Model(failing_loads=1, bytes_per_token=3, vram_share=0.25),
    }
    box = Box(
        models=models, version="0.12.3", memory=8 * 10**9, most_models=1, slots=3, most_waiting=7, num_ctx=512,
        keep_alive=2.5, seconds_per_token=1e-5, image_tokens=9, counts_cached=False, refuses_long_last=True,
    )  # fmt: skip
    assert flags_of(box).count("--weights") == 2
    async with StandInProcess(box=box) as process, aiohttp.ClientSession() as session:
        body = {"model": "a:7b", "messages": [{"role": "user", "content": "word " * 50}], "stream": False}
        async with session.post(f"{process.url}/api/chat", json=body) as response:
            assert (await response.json())["message"]["content"] == "as told"
        async with session.get(f"{process.url}/_standin/state") as response:
            state = await response.json()
    assert state["loads"] == {"a:7b": 1}
    assert [(each["model"], each["window"]) for each in state["resident"]] == [("a:7b", 100)]
    assert state["calls"][0]["prompt_tokens"] == 55


def test_flags_say_all_that_a_box_is() -> None:
    """What is read from them is the box again."""
    models = {"a:7b": Model(size=6 * 10**9, num_ctx=100, says="answer='as told'"), "b": Model(vram_share=0.25)}
    for box in (LLAMA, VLLM, Box(), Box(models=models, memory=8 * 10**9, counts_cached=False, refuses_long_last=True)):
        parser = argparse.ArgumentParser()
        parser.add_argument("--model", action="append", default=[])
        add_flags(parser)
        options = parser.parse_args(flags_of(box))
        assert read_flags(options, dict(each.partition("=")[::2] for each in options.model)) == box
        assert read_flags(parser.parse_args([]), {}) is None
