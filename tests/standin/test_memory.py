"""A box has some of its models in memory: loading takes time and room, and what nobody calls goes."""

from __future__ import annotations

import asyncio
import math
import random
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from tests.standin.box import GB, Box, Model
from tests.standin.boxes import At, at_box
from tests.standin.memory import seconds_of
from tests.support.calling import ask, backend_for, tell
from tests.support.eventually import eventually

LOAD = 0.08
SMALL = Model(size=6 * GB, load_seconds=LOAD)
SLOW = Model(size=6 * GB, load_seconds=0.4)  # so that its load is seen going on


def _three(**more: Any) -> Box:
    """Three models, of which two fit."""
    return Box(models={"a": SMALL, "b": SMALL, "c:7b": SMALL}, memory=13 * GB, **more)


def _happened(at: At) -> list[tuple[str, str]]:
    return [(each["what"], each["model"]) for each in at.state["history"]]


async def test_model_that_is_not_resident_is_loaded_before_its_first_token() -> None:
    """And is there for the next call."""
    async with at_box(_three()) as at:
        async with backend_for("ollama", at.server.url, model="ollama/a") as backend:
            await tell(backend, ask())
        assert at.call["load_seconds"] >= LOAD
        assert at.call["first"] - at.call["start"] >= LOAD
        second = await at.chat("a:latest")
        assert second["load_duration"] < LOAD * 1e9 / 2
        assert at.state["loads"] == {"a": 1}


async def test_least_recently_used_model_is_pushed_out() -> None:
    """Used, and not loaded: `a` came first, and was called last."""
    async with at_box(_three()) as at:
        for name in ("a", "b", "a", "c:7b"):
            await at.chat(name)
        assert at.resident == ["a", "c:7b"]
        assert at.state["evictions"] == {"b": 1}
        assert _happened(at) == [("loaded", "a"), ("loaded", "b"), ("evicted", "b"), ("loaded", "c:7b")]


async def test_as_many_models_as_are_allowed_are_resident() -> None:
    """Whatever the memory."""
    async with at_box(Box(models={"a": SMALL, "b": SMALL}, most_models=1)) as at:
        for name in ("a", "b", "a"):
            await at.chat(name)
        assert at.state["loads"] == {"a": 2, "b": 1}


async def test_model_with_a_call_running_is_pushed_out_only_once_it_is_over() -> None:
    """Nobody's answer is broken off; and a call behind, for a model that is there, waits as well."""
    async with at_box(_three(most_models=1, slots=2)) as at:
        running = asyncio.create_task(at.chat("a", "[[id=long tokens=20 delay_ms=15]]"))
        await eventually(lambda: at.state["running"] == 1)
        waiting = asyncio.create_task(at.chat("b", "[[id=other]]"))
        await eventually(lambda: at.state["waiting"] == 1)
        behind = asyncio.create_task(at.chat("a", "[[id=behind]]"))
        await asyncio.gather(running, waiting, behind)
        ends = {call["id"]: call["end"] for call in at.server.calls}
        assert ends["long"] < ends["other"] - LOAD < ends["behind"] - 2 * LOAD
        assert at.state["loads"] == {"a": 2, "b": 1}


async def test_load_ends_with_the_client_that_wanted_it_and_the_next_one_loads_anew() -> None:
    """As an Ollama does, so that impatient clients never have their model."""
    async with at_box(Box(models={"a": Model(load_seconds=0.2)})) as at:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await at.chat("a")
        other = asyncio.create_task(at.chat("a"))
        await other
        assert _happened(at) == [("aborted", "a"), ("loaded", "a")]
        assert [call["how"] for call in at.server.calls] == ["client_disconnected", "finished"]


async def test_calls_that_wait_for_one_load_share_it() -> None:
    """Also where the one it was begun for leaves."""
    async with at_box(Box(models={"a": SLOW}, slots=4)) as at:
        first = asyncio.create_task(at.chat("a"))
        await eventually(lambda: at.state["resident"] != [])
        others = [asyncio.create_task(at.chat("a")) for _ in range(3)]
        await eventually(lambda: at.state["waiting"] == 4)
        first.cancel()
        await asyncio.gather(*others)
        assert at.state["loads"] == {"a": 1}
        assert _happened(at) == [("aborted", "a"), ("loaded", "a")]


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
async def test_call_without_prompt_loads_and_unloads(path: str) -> None:
    """By `keep_alive`, which counts from the call's end."""
    async with at_box(_three()) as at:
        assert (await at.post(path, model="a"))[1]["done_reason"] == "load"
        assert at.resident == ["a"]
        assert (await at.post(path, model="a", keep_alive=0))[1]["done_reason"] == "unload"
        assert at.resident == []
        await at.post(path, model="a", keep_alive="300ms")
        assert at.resident == ["a"]
        await eventually(lambda: at.resident == [])
        assert _happened(at)[-1] == ("expired", "a")


async def test_keep_alive_of_a_call_counts_for_its_model() -> None:
    """Nothing, for a while, for ever; the last one holds."""
    async with at_box(_three(keep_alive=0.05)) as at:
        await at.chat("a", keep_alive=-1)
        await at.chat("b", keep_alive=0)
        assert at.resident == ["a"]
        await at.chat("b")
        await eventually(lambda: at.resident == ["a"])


async def test_ps_tells_what_is_resident_as_ollama_does() -> None:
    """With tags, sizes, the window, and when it goes."""
    models = {"a": Model(size=6 * GB, bytes_per_token=1000, num_ctx=8192, vram_share=0.5), "b": SMALL}
    async with at_box(Box(models=models, keep_alive=60, slots=2)) as at:
        assert (await at.get("/api/ps")) == {"models": []}
        await at.chat("a")
        (running,) = (await at.get("/api/ps"))["models"]
        assert (running["name"], running["model"], running["context_length"]) == ("a:latest", "a:latest", 8192)
        assert running["size"] == 6 * GB + 2 * 8192 * 1000
        assert running["size_vram"] == running["size"] // 2
        left = datetime.fromisoformat(running["expires_at"]) - datetime.now(UTC)
        assert 50 < left.total_seconds() <= 60
        listed = {each["name"]: each["size"] for each in (await at.get("/api/tags"))["models"]}
        assert listed == {"a:latest": 6 * GB, "b:latest": 6 * GB}
        _, shown = await at.post("/api/show", model="a")
        assert shown["model_info"]["llama.context_length"] == 131_072
        assert "num_ctx                        8192" in shown["parameters"]
        assert await at.get("/api/version") == {"version": "0.33.0"}


async def test_model_that_is_being_loaded_is_not_told_as_resident() -> None:
    """It takes up its room from the beginning."""
    async with at_box(Box(models={"a": SLOW})) as at:
        loading = asyncio.create_task(at.chat("a"))
        await eventually(lambda: at.resident == ["a"])
        assert await at.get("/api/ps") == {"models": []}
        await loading
        assert len((await at.get("/api/ps"))["models"]) == 1


async def test_another_window_reloads_the_model() -> None:
    """Also the default again; no window is larger than the model was made for."""
    async with at_box(Box(models={"a": Model(trained=16_384)}, num_ctx=4096)) as at:
        for asked in (None, 8192, 8192, 99_999, None):
            await at.chat("a", options={} if asked is None else {"num_ctx": asked})
        windows = [call["window"] for call in at.server.calls]
        assert windows == [4096, 8192, 8192, 16_384, 4096]
        assert at.state["loads"] == {"a": 4}


async def test_model_that_does_not_fit_is_refused_in_ollamas_words() -> None:
    """One too large for the memory, and one that fails for a while; neither pushes anything out."""
    models = {"a": SMALL, "huge": Model(size=20 * GB), "sick": Model(size=GB, failing_loads=1)}
    async with at_box(Box(models=models, memory=8 * GB)) as at:
        await at.chat("a")
        status, body = await at.post("/api/generate", model="huge")
        assert status == 500
        assert body["error"] == "model requires more system memory (18.6 GiB) than is available (7.5 GiB)"
        with pytest.raises(aiohttp.ClientResponseError, match="500"):
            await at.chat("sick")
        assert at.call["how"] == "failed"
        assert at.resident == ["a"]
        await at.chat("sick")
        assert at.state["loads"] == {"a": 1, "sick": 1}


async def test_too_many_that_wait_are_refused() -> None:
    """`OLLAMA_MAX_QUEUE`."""
    async with at_box(Box(models={"a": SLOW}, most_waiting=2)) as at:
        told = await asyncio.gather(*(at.post("/api/generate", model="a") for _ in range(3)))
        assert sorted(status for status, _ in told) == [200, 200, 503]


async def test_memory_is_never_overdrawn_and_nothing_that_runs_is_pushed_out() -> None:
    """Whatever calls come, and whoever leaves."""
    rng = random.Random(7)
    models = {name: Model(size=size * GB, load_seconds=0.004) for name, size in zip("abcd", (2, 3, 4, 6), strict=True)}
    async with at_box(Box(models=models, memory=8 * GB, slots=2, keep_alive=0.02)) as at:

        async def one(name: str) -> None:
            await asyncio.sleep(rng.random() * 0.5)
            options = {"num_ctx": rng.choice((2048, 4096))}
            call = at.chat(name, "[[tokens=3 delay_ms=2]]", options=options)
            with suppress(TimeoutError):  # some leave
                async with asyncio.timeout(rng.choice((0.01, 60))):
                    await call

        tasks = [asyncio.create_task(one(rng.choice("abcd"))) for _ in range(120)]
        while not all(task.done() for task in tasks):
            resident = at.state["resident"]
            assert sum(each["size"] for each in resident) <= 8 * GB
            assert at.state["running"] <= 2 * len(resident)
            await asyncio.sleep(0.002)
        await asyncio.gather(*tasks)
        await eventually(lambda: at.resident == [])
        assert at.state["running"] == at.state["waiting"] == 0
        gone = {"evicted", "reloaded", "expired", "unloaded"}
        for name in models:
            mine = [what for what, model in _happened(at) if model == name and what != "aborted"]
            assert mine[::2] == ["loaded"] * len(mine[::2])
            assert set(mine[1::2]) <= gone


@pytest.mark.parametrize(
    ("told", "seconds"),
    [(None, None), (0, 0), ("0", 0), (300, 300), ("5m", 300), ("1h30m", 5400), ("50ms", 0.05), (-1, math.inf),
     ("-1", math.inf), ("-1m", math.inf)],
)  # fmt: skip
def test_keep_alive_is_read_as_go_reads_durations(told: Any, seconds: float | None) -> None:
    """A number is seconds, and anything below 0 is for ever."""
    assert seconds_of(told) == pytest.approx(seconds) if seconds is not None else seconds_of(told) is None


async def test_loads_go_on_one_at_a_time_and_calls_for_resident_models_pass_them() -> None:
    """A disk is read once; a card that has its model works on."""
    async with at_box(Box(models={"a": SLOW, "b": SLOW, "c": Model()}, slots=2)) as at:
        await at.chat("c")
        loads = [asyncio.create_task(at.chat(name)) for name in ("a", "b")]
        await eventually(lambda: at.state["waiting"] == 2)
        await at.chat("c")
        assert at.resident == ["a", "b", "c"]
        assert at.state["loads"] == {"c": 1}
        await asyncio.gather(*loads)
        one, other = (each["at"] for each in at.state["history"][1:])
        assert other - one >= 0.39
