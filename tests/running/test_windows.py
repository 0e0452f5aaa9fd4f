"""Prompts that may be longer than a model's window: who is asked, for how large a one, and what is learnt."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from msgspec.structs import replace

from llm_routerd.protocol.call import ANY_FACTORS, BackendError, Finish, Window
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import Usage
from llm_routerd.routing.prompt_size import size_of
from llm_routerd.routing.text_tokens import tokens_of
from llm_routerd.running import model_window, prompt, windows
from tests.running.asking import SCHEMA, Sink, codes, request, resources_of, run, with_local
from tests.support.fakes import FakeBackend, fails, says, waits_for
from tests.support.texts import TEXTS
from tests.support.workers import make_test_resources

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
    assert local.looked_at == 1


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
    for tokens in (3_500, 2_500, 6_500):
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
    assert local.calls[-1].token_factors(size_of(local.calls[-1].messages).whole.kind) != ANY_FACTORS
    assert local.calls[-1].token_factors(99) == ANY_FACTORS
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


async def test_short_prompt_asks_for_what_the_model_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker may have had it loaded; a look now and then tells."""
    monkeypatch.setattr(windows, "LOOK_SECONDS", 0.2)
    resources, local, _ = resources_of(says("hi"), config=with_local(backend="ollama"))
    local.has_loaded = 16_384
    for _ in range(3):
        await run(resources, request())
    local.has_loaded = 4_096
    await asyncio.sleep(0.25)
    await run(resources, request())
    await run(resources, request())
    assert windows_asked_for(local) == [16_384] * 3 + [4_096] * 2
    assert (local.looked_at, local.asked_for_window, local.warmed_for) == (2, 0, [])


async def test_deployments_that_share_a_server_share_a_window() -> None:
    """What one of them needs is asked for by the other."""
    config = with_local(backend="ollama", api_base="http://box:11434")
    one = config.deployments["local"]
    config = replace(
        config,
        deployments={**config.deployments, "other": replace(one, name="other", params={"temperature": 0.1})},
        chains={**config.chains, "other": replace(config.chains["default"], name="other", deployments=("other",))},
    )
    local, other = FakeBackend(says("hi")), FakeBackend(says("hi"))
    resources = make_test_resources(config, {"local": local, "other": other})
    local.has_window = other.has_window = OLLAMA
    await run(resources, long_request(6_000))
    await run(resources, request(model="other"))
    assert (windows_asked_for(local), windows_asked_for(other)) == ([16_384], [16_384])


async def test_prompt_that_did_not_fit_after_all_is_asked_once_more_with_the_largest_window() -> None:
    """The guess was too small; both calls are attempts, and a third is not made."""
    resources, local, cloud = resources_of(says("hi"), config=with_local(backend="ollama"))
    local.has_window = OLLAMA

    async def refuses(backend: FakeBackend, call: Call) -> AsyncGenerator[Delta | Finish, None]:
        if call.params["num_ctx"] < backend.most:  # type: ignore[attr-defined]
            raise BackendError(AttemptCode.CONTEXT_WINDOW, "400: too long")
        yield Finish(finish_reason="stop", text="hi", usage=Usage(prompt_tokens=5, completion_tokens=1))

    local.scripts, local.most = [refuses], 32_768  # type: ignore[attr-defined]
    sink = Sink()
    ending = await run(resources, long_request(3_500), sink)
    assert codes(ending) == ["context_window", None]
    assert [kind for kind, _ in sink.seen] == ["attempt", "rejected", "attempt"]
    assert [record.deployment for record in ending.spent.attempts] == ["local", "local"]
    assert (windows_asked_for(local), local.warmed_for) == ([8_192, 32_768], [8_192, 32_768])
    local.most = 65_536  # type: ignore[attr-defined]
    assert codes(await run(resources, long_request(3_500))) == ["context_window", None]
    assert len(cloud.calls) == 1
    assert windows_asked_for(local)[2:] == [32_768]


async def test_short_prompt_that_did_not_fit_is_asked_once_more_too() -> None:
    """A server's own window may be smaller than that of any model."""
    too_long = fails(AttemptCode.CONTEXT_WINDOW)
    resources, local, cloud = resources_of(too_long, says("hi"), config=with_local(backend="ollama"))
    local.has_window = OLLAMA
    assert codes(await run(resources, request())) == ["context_window", None]
    assert (windows_asked_for(local), cloud.calls) == ([None, 32_768], [])


@pytest.mark.parametrize("changes", [{"backend": "openai"}, {"backend": "ollama", "params": {"num_ctx": 4_096}}])
async def test_prompt_is_not_sent_again_where_no_other_window_can_be_asked_for(changes: dict[str, Any]) -> None:
    """By no server but Ollama, nor where the operator has set the window."""
    resources, local, _ = resources_of(fails(AttemptCode.CONTEXT_WINDOW), config=with_local(**changes))
    local.has_window = Window(most=131_072, is_asked_for=changes["backend"] == "ollama")
    assert codes(await run(resources, request())) == ["context_window", None]
    assert len(local.calls) == 1


async def test_conversation_that_a_repair_makes_longer_is_measured_anew() -> None:
    """The answer that was not accepted goes along."""
    config = with_local(backend="ollama")
    config = replace(config, chains={"default": replace(config.chains["default"], repair=1)})
    resources, local, _ = resources_of(says(TEXTS["English"] * 120), says('{"n": 1}'), config=config)
    local.has_window = OLLAMA
    ending = await run(resources, long_request(2_000, schema=SCHEMA))
    assert codes(ending) == ["invalid_json", None]
    assert windows_asked_for(local) == [8_192, 16_384]


async def test_schema_is_part_of_the_prompt() -> None:
    """It goes in words."""
    resources, local, _ = resources_of(says('{"n": 1}'), config=with_local(backend="ollama"))
    local.has_window = OLLAMA
    schema = {**SCHEMA, "description": TEXTS["English"] * 150}
    assert codes(await run(resources, request(schema=schema))) == [None]
    assert windows_asked_for(local) == [8_192]


async def test_prompt_that_is_to_be_cut_is_sent() -> None:
    """Where the operator says so, with the largest window there is."""
    config = with_local(backend="ollama", params={"truncate": True})
    resources, local, _ = resources_of(says("hi"), config=config)
    local.has_window = OLLAMA
    assert codes(await run(resources, long_request(60_000))) == [None]
    assert windows_asked_for(local) == [32_768]


async def test_prompt_is_not_measured_that_surely_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bytes tell; what it needs of a larger window is looked into once a minute at most."""
    resources, local, _ = resources_of(says("hi"), config=with_local(backend="ollama"))
    local.has_window = Window(most=131_072, now=32_768, is_asked_for=True)
    measured = Mock(side_effect=size_of)
    monkeypatch.setattr(prompt, "size_of", measured)
    for _ in range(3):
        await run(resources, request(prompt="word " * 2_500))  # answered with a count of 10
    assert windows_asked_for(local) == [32_768] * 3
    measured.assert_not_called()


@pytest.mark.parametrize("tokens", [30, 50_000], ids=["short", "long"])
async def test_question_for_the_window_is_asked_within_the_requests_time(tokens: int) -> None:
    """Whoever has a deadline does not wait for it beyond that."""
    resources, local, _ = resources_of(says("hi"), config=with_local(backend="ollama"))
    local.window = local.loaded_window = asyncio.Event().wait  # type: ignore[assignment]
    began = asyncio.get_running_loop().time()
    await run(resources, long_request(tokens), seconds=0.1)
    assert asyncio.get_running_loop().time() - began < 1.0
    await resources.aclose()


async def test_window_is_not_kept_for_a_prompt_that_had_no_place() -> None:
    """Nobody has had the model loaded for it."""
    config = with_local(backend="ollama", concurrency=1, queue_timeout=0.05)
    gate = asyncio.Event()
    resources, local, _ = resources_of(waits_for(gate), config=config)
    local.has_window = OLLAMA
    busy = asyncio.create_task(run(resources, request()))
    await asyncio.sleep(0.01)
    assert codes(await run(resources, long_request(12_000))) == ["busy", None]
    gate.set()
    await busy
    await run(resources, request())
    assert windows_asked_for(local) == [None, None]


async def test_window_in_force_is_asked_for_by_a_probe_of_our_own() -> None:
    """Else it would have the model loaded anew, twice."""
    broken = fails(AttemptCode.UPSTREAM, retryable=True)
    resources, local, _ = resources_of(broken, broken, broken, says("x"), config=with_local(backend="ollama"))
    local.has_loaded = 16_384
    for number in range(3):
        await run(resources, request(prompt=f"broken {number}", tenant_id="kitchen"))
    await run(resources, request(tenant_id="kitchen", local_only=True))
    assert windows_asked_for(local) == [16_384] * 5
    assert local.warmed_for == []


async def test_prompt_that_may_need_less_does_not_keep_a_large_window() -> None:
    """Its bytes alone would: it is measured, once it is not known that others have needed it just now."""
    resources, local, _ = resources_of(says("hi"), config=with_local(backend="ollama"))
    local.has_window = OLLAMA
    await run(resources, long_request(4_000))
    needs = resources.windows._deployed["local"].model._needs
    (until,) = needs.values()
    for _ in range(3):
        await run(resources, long_request(1_400))  # 6200 bytes
    assert needs == {8_192: until}
    needs[8_192] -= 100
    await run(resources, long_request(1_400))
    assert set(needs) == {4_096, 8_192}
    assert needs[8_192] == until - 100
    assert windows_asked_for(local) == [8_192] * 5
