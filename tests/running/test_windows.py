"""Prompts that may be longer than a model's window: who is asked, for how large a one, and what is learnt."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.protocol.call import ANY_FACTORS, BackendError, Finish, Window
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import Usage
from llm_routerd.routing.prompt_size import size_of, tokens_of
from llm_routerd.running import model_window, windows
from tests.running.asking import codes, request, resources_of, run, with_local
from tests.support.fakes import FakeBackend, says
from tests.support.texts import TEXTS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from llm_routerd.protocol.call import Call, Delta
    from llm_routerd.protocol.request import Request

OLLAMA = Window(most=131_072, now=4_096, is_asked_for=True)
TOKENS_PER_SENTENCE = tokens_of(TEXTS["English"]).likely


def long_request(tokens: int, **more: Any) -> Request:
    """One of about so many."""
    return request(prompt=TEXTS["English"] * round(tokens / TOKENS_PER_SENTENCE), **more)


def windows_asked_for(model: FakeBackend) -> list[int | None]:
    """By each call."""
    return [call.params.get("num_ctx") for call in model.calls]


async def test_prompt_that_cannot_fit_is_not_sent() -> None:
    """It takes no place and loads no model; the next one is asked, and `attempts` says why."""
    resources, local, cloud = resources_of(says("hi"), config=with_local(backend="openai"))
    local.has_window = Window(most=4_096)
    ending = await run(resources, long_request(9_000))
    assert codes(ending) == ["context_window", None]
    assert (len(local.calls), len(cloud.calls)) == (0, 1)
    assert "does not fit its 4096" in (ending.spent.attempts[0].reason or "")
    assert codes(await run(resources, long_request(2_500))) == [None]


async def test_deployments_that_are_passed_over_keep_their_good_name() -> None:
    """What somebody's prompt is too long for answers everybody else."""
    resources, local, _ = resources_of(says("hi"), config=with_local(backend="openai"))
    local.has_window = Window(most=4_096)
    for _ in range(10):
        await run(resources, long_request(9_000))
    assert codes(await run(resources, request())) == [None]


async def test_short_prompt_asks_nobody_for_a_window() -> None:
    """It fits into any; nothing is sent that was not sent before."""
    resources, local, _ = resources_of(says("hi"), config=with_local(backend="ollama"))
    local.has_window = OLLAMA
    for _ in range(3):
        await run(resources, request())
    assert (local.asked_for_window, windows_asked_for(local)) == (0, [None] * 3)


@pytest.mark.parametrize("context", [0, 500, 65_536])
async def test_prompt_of_some_pages_asks_whatever_the_operator_allows(context: int) -> None:
    """What is allowed is no window that there is; what is not even allowed is refused unasked."""
    resources, local, _ = resources_of(says("hi"), config=with_local(backend="ollama", context=context))
    local.has_window = OLLAMA
    assert codes(await run(resources, long_request(3_000))) == (["context_window", None] if context == 500 else [None])
    assert local.asked_for_window == 1


async def test_window_is_asked_for_in_steps_and_kept_while_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is loaded for it first, once; a short prompt does not have it loaded anew, until some time later."""
    monkeypatch.setattr(model_window, "LARGE_SECONDS", 0.3)
    resources, local, _ = resources_of(says("hi"), config=with_local(backend="ollama"))
    local.has_window = OLLAMA
    for tokens in (3_500, 2_500, 8_000):
        await run(resources, long_request(tokens))
    await run(resources, request())
    assert windows_asked_for(local) == [8_192, 8_192, 16_384, 16_384]
    assert local.warmed_for == [8_192, 16_384]
    assert local.asked_for_window == 1
    await asyncio.sleep(0.35)
    await run(resources, request())
    assert windows_asked_for(local)[-1] is None
    assert local.warmed_for == [8_192, 16_384, None]


async def test_loading_for_a_larger_window_does_not_eat_the_models_own_time() -> None:
    """Several that want it wait for the same load."""
    resources, local, _ = resources_of(says("hi"), config=with_local(backend="ollama", timeout=0.3))
    local.has_window = OLLAMA
    local.on_warm = lambda: asyncio.sleep(0.5)
    endings = await asyncio.gather(*(run(resources, long_request(6_000)) for _ in range(3)))
    assert [codes(ending) for ending in endings] == [[None]] * 3
    assert local.warmed_for == [16_384]


@pytest.mark.parametrize(
    ("changes", "num_ctx"),
    [
        ({"params": {"num_ctx": 32_768}}, 32_768),
        ({"params": {"options": {"num_ctx": 32_768}}}, None),
        ({"context": 10_000}, 10_000),
        ({}, 16_384),
    ],
    ids=["params", "options", "context", "nothing"],
)
async def test_what_the_operator_says_holds(changes: dict[str, Any], num_ctx: int | None) -> None:
    """A window in `params` is the one there is; `context` is the most that is asked for."""
    resources, local, _ = resources_of(says("hi"), config=with_local(backend="ollama", **changes))
    local.has_window = OLLAMA
    assert codes(await run(resources, long_request(7_000))) == [None]
    assert windows_asked_for(local) == [num_ctx]
    assert codes(await run(resources, long_request(60_000))) == ["context_window", None]


async def test_model_that_cannot_be_loaded_for_so_much_is_asked_for_less() -> None:
    """The memory is too small for the window: long prompts go elsewhere for a while, all others are answered here."""
    resources, local, _ = resources_of(says("hi"), config=with_local(backend="ollama"))
    local.has_window = OLLAMA

    async def load() -> None:
        if (local.warmed_for[-1] or 0) > 8_192:
            raise BackendError(AttemptCode.UPSTREAM, "500: model requires more system memory")

    local.on_warm = load
    for code in ("upstream", "upstream", "context_window"):  # 32768, half of it; for less the prompt is too long
        assert codes(await run(resources, long_request(14_000))) == [code, None]
    assert codes(await run(resources, long_request(4_000))) == [None]
    assert codes(await run(resources, request())) == [None]
    assert windows_asked_for(local) == [8_192, 8_192]


@pytest.mark.parametrize("fault", [BackendError(AttemptCode.CONNECT, "gone"), ValueError("junk")], ids=["away", "bug"])
async def test_server_that_does_not_tell_is_asked_all_the_same(fault: Exception) -> None:
    """And not for its window again with every prompt."""
    resources, local, _ = resources_of(says("hi"), config=with_local(backend="openai"))

    async def window() -> Window | None:
        local.asked_for_window += 1
        raise fault

    local.window = window  # type: ignore[method-assign]
    for _ in range(4):
        assert codes(await run(resources, long_request(50_000))) == [None]
    assert local.asked_for_window == 1


async def test_server_that_does_not_answer_about_its_window_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it asked by several at once."""
    monkeypatch.setattr(windows, "ASK_SECONDS", 0.1)
    resources, local, _ = resources_of(says("hi"), config=with_local(backend="openai"))

    async def window() -> Window | None:
        local.asked_for_window += 1
        await asyncio.sleep(60)
        return None

    local.window = window  # type: ignore[method-assign]
    async with asyncio.timeout(1):
        endings = await asyncio.gather(*(run(resources, long_request(50_000)) for _ in range(5)))
    assert [codes(ending) for ending in endings] == [[None]] * 5
    assert local.asked_for_window == 1


async def test_what_the_server_counts_is_learnt() -> None:
    """Then a smaller window is asked for, and no prompt is passed over for it that the first guess let through."""

    async def counts(_backend: FakeBackend, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        tokens = round(size_of(call.messages).whole.likely)
        yield Finish(finish_reason="stop", text="hi", usage=Usage(prompt_tokens=tokens, completion_tokens=1))

    resources, local, _ = resources_of(counts, config=with_local(backend="ollama"))
    local.has_window = OLLAMA
    resources.windows._deployed["local"].model.needed = lambda *_: None  # type: ignore[method-assign]
    for _ in range(9):
        await run(resources, long_request(4_000))
    await run(resources, long_request(6_000))
    assert windows_asked_for(local) == [8_192] * 9 + [16_384]
    assert local.calls[-2].token_factors != ANY_FACTORS
    assert local.calls[0].token_factors == ANY_FACTORS
    local.has_window = Window(most=8_192, is_asked_for=True)
    resources.windows._deployed["local"].model.until = 0.0
    assert codes(await run(resources, long_request(9_500))) == [None]  # it may be fewer


async def test_what_a_server_loads_by_itself_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tells it of a model that is loaded; asked for less, it would load it anew for the next long prompt."""
    monkeypatch.setattr(windows, "KNOWN_SECONDS", 0.0)
    resources, local, _ = resources_of(says("hi"), config=with_local(backend="ollama"))
    local.has_window = Window(most=131_072, now=32_768, is_asked_for=True)
    await run(resources, request(prompt="word " * 1_000))
    resources.windows._deployed["local"].model._needs.clear()  # ten minutes later
    local.has_window = Window(most=131_072, is_asked_for=True)
    await run(resources, long_request(2_500))
    assert windows_asked_for(local) == [32_768, 32_768]


async def test_closing_ends_a_question_that_is_under_way() -> None:
    """Nothing is left behind."""
    resources, local, _ = resources_of(says("hi"), config=with_local(backend="openai"))
    local.window = asyncio.Event().wait  # type: ignore[assignment]
    running = asyncio.create_task(run(resources, long_request(50_000)))
    await asyncio.sleep(0.05)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await resources.aclose()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("window-")]
