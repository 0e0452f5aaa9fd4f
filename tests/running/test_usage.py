"""What calls have used and cost, also where no server has counted it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from llm_routerd.protocol.call import Delta, Finish
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.events import Result
from llm_routerd.protocol.outcome import Usage
from llm_routerd.routing.breaker import State
from tests.running.asking import SCHEMA, Sink, make_run, request, run
from tests.standin.server import StandIn
from tests.support.calling import PROTOCOLS, backend_for, full_server
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, fails, hangs, says
from tests.support.workers import CLOUD, make_config, make_test_resources

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from llm_routerd.config.tree import Config
    from llm_routerd.protocol.call import Call

PROMPT = "p" * 400  # a hundred tokens by the rule of thumb
PRICED = replace(CLOUD, input_usd_per_mtok=10_000.0, output_usd_per_mtok=1_000_000.0)  # a cent, a dollar


def priced(**changes: Any) -> Config:
    """A chain of the priced cloud deployment alone."""
    config = make_config()
    chain = replace(config.chains["default"], deployments=("cloud",))
    return replace(config, deployments={"cloud": replace(PRICED, **changes)}, chains={"default": chain})


def counts(usage: Usage | None) -> Any:
    """A finished answer of forty characters, with this usage."""

    async def script(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
        yield Delta("a" * 40)
        yield Finish(finish_reason="stop", usage=usage)

    return script


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (None, Usage(prompt_tokens=100, completion_tokens=10, estimated=True)),
        (Usage(), Usage(prompt_tokens=100, completion_tokens=10, estimated=True)),
        (Usage(completion_tokens=12), Usage(prompt_tokens=100, completion_tokens=12, estimated=True)),
        (Usage(prompt_tokens=90), Usage(prompt_tokens=90, completion_tokens=10, estimated=True)),
        (Usage(prompt_tokens=90, completion_tokens=12), Usage(prompt_tokens=90, completion_tokens=12)),
    ],
    ids=["none", "zeros", "no prompt", "no completion", "all"],
)
async def test_answer_whose_server_did_not_count_is_estimated_and_says_so(told: Usage | None, expected: Usage) -> None:
    """Never 0 tokens and no cost for a model that costs."""
    resources = make_test_resources(priced(), {"cloud": FakeBackend(counts(told))})
    ending = await run(resources, request(prompt=PROMPT))
    assert isinstance(ending.event, Result)
    assert ending.event.usage == ending.event.answer.usage == expected
    assert ending.spent.cost_usd == pytest.approx(expected.prompt_tokens * 0.01 + expected.completion_tokens)
    assert ending.event.data.get("cost_estimated", False) == expected.estimated


@pytest.mark.parametrize(
    ("script", "properties", "code", "completion_tokens"),
    [
        (hangs("a" * 40), {}, "idle_timeout", 10),
        (hangs(), {}, "timeout", 0),
        (says("I cannot help with that.", finish_reason="stop"), {"schema": SCHEMA}, "invalid_json", 6),
        (fails(AttemptCode.TRUNCATED, after=("a" * 40,)), {}, "truncated", 10),
        (fails(AttemptCode.UPSTREAM, after=("a" * 40,)), {}, "upstream", 10),
    ],
    ids=["gap", "timeout", "ended early", "cut", "failed midway"],
)
async def test_attempt_that_did_not_end_by_itself_has_an_estimated_cost(
    script: Any, properties: dict[str, Any], code: str, completion_tokens: int
) -> None:
    """A provider charges for what it has read and written."""
    config = priced(timeout=0.4, idle_timeout=0.2)
    resources = make_test_resources(config, {"cloud": FakeBackend(script)})
    ending = await run(resources, request(prompt=PROMPT, **properties))
    (record,) = ending.spent.attempts
    assert record.code is not None
    assert record.code.value == code
    assert record.usage is not None
    assert record.usage.estimated
    assert record.usage.prompt_tokens >= 100
    assert record.usage.completion_tokens == completion_tokens
    assert record.cost_usd == pytest.approx(record.usage.prompt_tokens * 0.01 + completion_tokens)
    assert record.is_estimated_cost


async def test_cancelled_attempt_has_an_estimated_cost() -> None:
    """Whoever leaves pays for what was made until then."""
    model = FakeBackend(hangs("a" * 40))
    resources = make_test_resources(priced(), {"cloud": model})
    sink = Sink()
    leaving = make_run(resources, request(prompt=PROMPT, stream="live"), sink)
    task = asyncio.create_task(leaving.until_done())
    await eventually(lambda: ("token", "a" * 40) in sink.seen)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    records = leaving.spent().attempts
    assert [record.usage for record in records] == [Usage(prompt_tokens=100, completion_tokens=10, estimated=True)]
    assert records[0].cost_usd == pytest.approx(11.0)


@pytest.mark.parametrize("code", [AttemptCode.CONNECT, AttemptCode.AUTH, AttemptCode.UPSTREAM])
async def test_call_that_was_refused_unread_has_no_usage_and_no_cost(code: AttemptCode) -> None:
    """Nobody charges for an answer of 401 or 503."""
    resources = make_test_resources(priced(), {"cloud": FakeBackend(fails(code))})
    (record,) = (await run(resources, request(prompt=PROMPT))).spent.attempts
    assert (record.usage, record.cost_usd) == (None, 0.0)


async def test_thinking_tools_and_schema_are_part_of_the_estimate() -> None:
    """They are sent, or paid for, as well."""

    async def thinks(_backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
        yield Delta("", "t" * 40)
        yield Delta('{"n":1}')
        yield Finish(finish_reason="stop")

    resources = make_test_resources(priced(), {"cloud": FakeBackend(thinks)})
    (record,) = (await run(resources, request(prompt=PROMPT, schema=SCHEMA))).spent.attempts
    assert record.usage is not None
    assert record.usage.prompt_tokens > 120
    assert record.usage.completion_tokens == 12


async def test_cost_of_a_call_without_a_known_price_is_unknown_and_not_nothing() -> None:
    """In the result, in the metrics, in the sums; what is known is summed, and what it leaves out is counted."""
    usage = Usage(prompt_tokens=90, completion_tokens=12)
    config = priced(input_usd_per_mtok=None, output_usd_per_mtok=None)
    resources = make_test_resources(config, {"cloud": FakeBackend(counts(usage))})
    ending = await run(resources, request(), Sink())
    assert isinstance(ending.event, Result)
    assert ending.event.data["cost_usd"] is None
    assert ending.spent.cost_usd is None
    assert ending.spent.attempts[0].cost_usd is None


async def test_local_answer_after_a_call_of_unknown_cost_claims_no_saving() -> None:
    """Nobody knows what was spent."""
    config = make_config()
    chain = replace(config.chains["default"], deployments=("cloud", "local"))
    other = replace(PRICED, name="other")
    config = replace(config, deployments={**config.deployments, "other": other}, chains={"default": chain})
    backends = {"cloud": FakeBackend(says("not this", finish_reason="length")), "local": FakeBackend(says("this"))}
    ending = await run(make_test_resources(config, backends), request(), Sink())
    assert ending.event.type == "result"
    assert (ending.spent.cost_usd, ending.spent.saved_usd) == (None, 0.0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("stream", ["live", False])
@pytest.mark.parametrize("seconds", [None, 0.2], ids=["timeout", "deadline"])
async def test_call_that_never_left_costs_nothing_and_is_no_timeout_of_the_model(
    protocol: str, stream: object, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no connection stood in time the code is `connect`, whichever bound was passed."""
    config = priced(timeout=0.2 if seconds is None else 5.0, connect_timeout=5.0)
    with full_server() as url:
        async with backend_for(protocol, url) as backend:
            resources = make_test_resources(config, {})
            monkeypatch.setattr(resources.backends, "backends", {"cloud": backend})
            (record,) = (await run(resources, request(prompt=PROMPT, stream=stream), seconds=seconds)).spent.attempts
    assert record.code is AttemptCode.CONNECT
    assert (record.usage, record.cost_usd) == (None, 0.0)


async def test_cancelled_call_that_never_left_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever leaves before anything was sent owes nothing."""
    with full_server() as url:
        async with backend_for("openai", url) as backend:
            resources = make_test_resources(priced(), {})
            monkeypatch.setattr(resources.backends, "backends", {"cloud": backend})
            sink = Sink()
            leaving = make_run(resources, request(prompt=PROMPT), sink)
            task = asyncio.create_task(leaving.until_done())
            await eventually(lambda: sink.seen)
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    (record,) = leaving.spent().attempts
    assert (record.code, record.usage, record.cost_usd) == (AttemptCode.CANCELLED, None, 0.0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_call_that_was_sent_and_not_answered_has_an_estimated_cost(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a new connection, and on one that had served another call."""
    resources = make_test_resources(priced(timeout=0.2), {})
    async with StandIn({"stand-in": "tokens=1"}) as server, backend_for(protocol, server.url) as backend:
        monkeypatch.setattr(resources.backends, "backends", {"cloud": backend})
        assert isinstance((await run(resources, request(prompt=PROMPT))).event, Result)
        server.models["stand-in"] = "first_ms=5000"
        for _ in range(2):
            (record,) = (await run(resources, request(prompt=PROMPT))).spent.attempts
            assert record.code is AttemptCode.TIMEOUT
            assert record.usage is not None
            assert record.usage.estimated


async def test_import_of_litellm_is_not_the_models_time() -> None:
    """It is waited for before the attempt's clock runs, once for all calls, and is no part of its latency."""
    model = FakeBackend(says("hi"))
    imports: list[None] = []

    async def load() -> None:
        imports.append(None)
        await asyncio.sleep(0.3)

    model.on_warm = load
    resources = make_test_resources(priced(backend="litellm", timeout=0.15, cold_start="skip"), {"cloud": model})
    endings = await asyncio.gather(*(run(resources, request(prompt=PROMPT)) for _ in range(3)))
    endings.append(await run(resources, request(prompt=PROMPT)))
    records = [record for ending in endings for record in ending.spent.attempts]
    assert [record.code for record in records] == [None] * 4
    assert max(record.latency_ms for record in records) < 150
    assert len(imports) == 1
    await resources.aclose()


async def test_deadline_that_comes_during_the_import_is_no_verdict_and_costs_nothing() -> None:
    """Nobody has been called."""
    model = FakeBackend(says("hi"))
    model.on_warm = asyncio.Event().wait  # type: ignore[assignment]  # its result does not matter
    resources = make_test_resources(priced(backend="litellm"), {"cloud": model})
    for _ in range(3):
        ending = await run(resources, request(prompt=PROMPT), seconds=0.05)
        assert [(record.usage, record.cost_usd) for record in ending.spent.attempts] == [(None, 0.0)]
    health = resources.health.states(resources.loop.time())["cloud"]
    assert (health.state, health.failures, model.calls) == (State.HEALTHY, 0, [])
    await resources.aclose()
