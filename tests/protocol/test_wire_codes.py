"""Error codes and codes of rejected attempts, each as it is written; part of `test_wire.py`'s table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from llm_routerd.protocol.codes import AttemptCode, ErrorCode
from llm_routerd.protocol.events import FINAL_ID
from tests.support.fakes import FakeBackend, breaks, fails, hangs, says
from tests.support.queue import add, events_of, open_client
from tests.support.wire import (
    check_everything,
    final_of,
    metrics_of,
)
from tests.support.workers import LOCAL, make_config, run_worker

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config

_SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
_TOOLS = [{"type": "function", "function": {"name": "weather"}}]
_CALL = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'

_ERRORS: dict[str, tuple[dict[str, str], Any]] = {
    "invalid_request": ({"colour": "1"}, says("hi")),
    "request_too_large": ({"prompt": "x" * 70_000}, says("hi")),
    "unknown_model": ({"model": "nope"}, says("hi")),
    "invalid_schema": ({"schema": '{"type": "nope"}'}, says("hi")),
    "chain_exhausted": ({"model": "local"}, fails(AttemptCode.UPSTREAM)),
    "local_exhausted": ({"local_only": "true"}, fails(AttemptCode.UPSTREAM)),
    "deadline_exceeded": ({"timeout_ms": "100"}, hangs()),
}
_ERRORS_ELSEWHERE = {
    "turns_exhausted",  # tests/worker: test_runs.py
    "confirmation_expired",  # tests/worker: test_runs.py
    "unknown_tool",  # tests/worker: test_runs.py
    "tool_not_allowed",  # tests/worker: test_runs.py
    "poisoned",  # test_worker.py::test_request_that_kills_its_workers_is_buried
    "internal",  # test_worker.py::test_bug_in_handling_ends_that_request_and_no_other
    "budget_exceeded",  # of the protocol; nothing has a budget yet, so nobody writes it
}


@pytest.mark.parametrize("code", _ERRORS)
async def test_error_code_is_written(broker_url: str, code: str) -> None:
    """In the final event and in the metrics; with the attempts that were made, and the request's metadata."""
    fields, script = _ERRORS[code]
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": FakeBackend(script)}):
        entry = await client.xadd("llm:requests", {"prompt": "hi", "metadata": '{"k": 1}', **fields})
        kind, error = await final_of(client, entry)
        assert (kind, error["code"], error["id"]) == ("error", code, entry)
        assert error["metadata"] == {"k": 1}
        assert error["message"]
        metrics = await metrics_of(client, entry)
        assert (metrics["type"], metrics["code"], metrics["model_used"]) == ("error", code, "none")
        await check_everything(client)


_ATTEMPTS: dict[str, Any] = {
    **{
        code.value: fails(code)
        for code in (
            AttemptCode.CONNECT, AttemptCode.AUTH, AttemptCode.RATE_LIMITED, AttemptCode.NOT_FOUND,
            AttemptCode.CONTEXT_WINDOW, AttemptCode.UPSTREAM, AttemptCode.TRUNCATED,
        )
    },
    "timeout": hangs("a"),
    "first_token_timeout": hangs(),
    "idle_timeout": hangs("a"),
    "no_tool_call": says("It is warm."),
    "internal": breaks(),
    "length": says("cut", finish_reason="length"),
    "refusal": says("I'm sorry, but I can't help with that."),
    "invalid_json": says("Sure! Here it is."),
    "schema_violation": says('{"n": "x"}'),
}  # fmt: skip
_ATTEMPTS_ELSEWHERE = {
    "busy",  # tests/running: test_place_that_does_not_come_free_in_time_is_no_call_and_no_failure
    "cooldown",  # test_cooling_deployment_is_passed_over_and_said_to_be
    "preempted",  # tests/worker: test_batch_on_one_worker_is_cut_for_a_chat_on_another
    "cancelled",  # of the protocol; a cancelled request ends in no event that lists attempts, so nobody writes it
}


@pytest.mark.parametrize("code", _ATTEMPTS)
async def test_attempt_code_is_written(redis_url: str, code: str) -> None:
    """In the `rejected` event, in the attempts of the result and in those of the metrics, with its outcome."""
    async with (
        open_client(redis_url) as client,
        run_worker(
            redis_url,
            {
                "local": FakeBackend(_ATTEMPTS[code]),
                "cloud": FakeBackend(says(_CALL if code == "no_tool_call" else '{"n": 4}')),
            },
            config=_config_for(code),
        ),
    ):
        wants_json = {"schema": json.dumps(_SCHEMA)} if code in {"invalid_json", "schema_violation"} else {}
        wants_call = {"tools": json.dumps(_TOOLS), "tool_choice": "required"} if code == "no_tool_call" else {}
        stream = "false" if code == "timeout" else "live"
        entry = await client.xadd("llm:requests", {"prompt": "hi", "stream": stream, **wants_json, **wants_call})
        kind, result = await final_of(client, entry)
        assert kind == "result"
        outcome = "invalid" if wants_json else "rejected"
        (rejected,) = [data for _, kind, data in await events_of(client, entry) if kind == "rejected"]
        metrics = await metrics_of(client, entry)
        for told in (rejected, result["attempts"][0], metrics["attempts"][0]):
            assert (told["code"], told["outcome"], told["model"]) == (code, outcome, "ollama/tiny")
            assert told["reason"]
            assert told["latency_ms"] >= 0
        assert [each["outcome"] for each in result["attempts"]] == [outcome, "success"]
        await check_everything(client)


def _config_for(code: str) -> Config:
    """Short bounds, of which the one that this code stands for is met."""
    is_total = code in {"timeout", "first_token_timeout"}
    local = replace(LOCAL, timeout=0.1) if is_total else replace(LOCAL, idle_timeout=0.1)
    config = make_config()
    return replace(config, deployments={**config.deployments, "local": local})


async def test_gap_between_tokens_is_bounded_apart_from_the_first_token(redis_url: str) -> None:
    """`idle_timeout` counts from the last token, also where the first one was allowed much longer."""
    backends = {"local": FakeBackend(hangs("a")), "cloud": FakeBackend(says("hi"))}
    config = _config_for("idle_timeout")
    async with open_client(redis_url) as client, run_worker(redis_url, backends, config=config):
        entry = await add(client, stream="live")
        _, result = await final_of(client, entry)
        assert result["attempts"][0]["code"] == "idle_timeout"
        assert 100 <= result["attempts"][0]["latency_ms"] < LOCAL.timeout * 1000 / 2


async def test_cooling_deployment_is_passed_over_and_said_to_be(redis_url: str) -> None:
    """`cooldown`, without an attempt of its own: no `attempt` event and no `rejected` event are written for it."""
    backends = {"local": FakeBackend(fails(AttemptCode.AUTH)), "cloud": FakeBackend(says("hi"))}
    async with open_client(redis_url) as client, run_worker(redis_url, backends):
        for _ in range(5):
            entry = await add(client)
            _, result = await final_of(client, entry)
        assert [each["code"] for each in result["attempts"]] == ["cooldown", None]
        assert [(event_id, kind) for event_id, kind, _ in await events_of(client, entry)] == [
            ("1-0", "attempt"),
            (FINAL_ID, "result"),
        ]
        await check_everything(client)


def test_every_code_is_tested() -> None:
    """A code that is added to the protocol needs a case."""
    assert set(_ERRORS) | _ERRORS_ELSEWHERE == set(ErrorCode)
    assert set(_ATTEMPTS) | _ATTEMPTS_ELSEWHERE == set(AttemptCode)
