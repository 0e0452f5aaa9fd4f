"""What a run with tools has taken, as it is told: in its result, its metrics event, the counters and the audit."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from msgspec import convert
from msgspec.structs import replace

from llm_routerd.config.audit import AuditConfig
from llm_routerd.protocol.audit import AuditEntry
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.outcome import Usage
from llm_routerd.protocol.schema_files import load_schema
from llm_routerd.protocol.wire import encode
from tests.support.accounts import scraped_of
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, fails
from tests.support.queue import open_client
from tests.support.runs import (
    ADD,
    SWITCH,
    agree,
    answer,
    answers,
    calls,
    calls_all,
    counts,
    event_of,
    next_call,
    register,
    submit,
    turns,
)
from tests.support.schemas import closed
from tests.support.wire import check_everything, final_of, metrics_of
from tests.support.workers import CLOUD, make_config, run_worker

CONFIG = replace(
    make_config(),
    audit=AuditConfig(key="a key of many characters"),
    deployments={
        "local": make_config().deployments["local"],
        "cloud": replace(CLOUD, input_usd_per_mtok=1_000_000.0, output_usd_per_mtok=0.0),
    },
)


JUDGE = jsonschema_rs.Draft202012Validator(closed(load_schema("audit")), offline=True)


async def audited(client: Any) -> list[AuditEntry]:
    """What stands in the audit, in its order, each by its schema."""
    found = [convert(fields, AuditEntry, strict=False) for _, fields in await client.xrange("llm:audit")]
    for entry in found:
        JUDGE.validate(json.loads(encode(entry)))
    return found


async def test_whole_run_is_told_right_and_once(broker_url: str) -> None:
    """Three turns in the cloud, behind a local deployment that fails each time; a sum, a faulty call, a lamp."""
    made = (
        calls_all(
            ("add", '{"a": 1, "b": 1}'), ("add", '{"a": "x"}'), usage=Usage(prompt_tokens=1, completion_tokens=1)
        ),
        calls("switch", lamp="x", usage=Usage(prompt_tokens=2, completion_tokens=1)),
        replace(answers("done"), usage=Usage(prompt_tokens=4, completion_tokens=1)),
    )
    backends = {"local": FakeBackend(fails(AttemptCode.CONTEXT_WINDOW)), "cloud": FakeBackend(turns(*made))}
    async with open_client(broker_url) as client, run_worker(broker_url, backends, config=CONFIG) as worker:
        await register(client, add=ADD, switch=SWITCH)
        await submit(client, tenant_id="ada")
        _, call = await next_call(client, "add")
        await answer(client, "r1", call["call_id"], "2")
        await agree(client, await event_of(client, "r1", "tool_call", 3))
        _, call = await next_call(client, "switch")
        await answer(client, "r1", call["call_id"], error="broken")
        kind, result = await final_of(client, "r1")
        assert (kind, result["turns"], result["usage"]["prompt_tokens"]) == ("result", 3, 7)
        assert result["cost_usd"] == pytest.approx(7.0)
        outcomes = [(each["deployment"], each["outcome"]) for each in result["attempts"]]
        assert outcomes == [("local", "rejected"), ("cloud", "success")] * 3
        metrics = await metrics_of(client, "r1")
        assert (metrics["turns"], metrics["tool_calls"], metrics["type"]) == (3, 3, "result")
        assert metrics["cost_usd"] == pytest.approx(7.0)
        assert [(each["deployment"], each["outcome"]) for each in metrics["attempts"]] == outcomes
        assert metrics["tenant_totals"]["requests"] == 1
        await counts(worker, 'requests_total{type="result",code=""}', 1)
        await counts(worker, 'runs_total{end="result"}', 1)
        scrape = scraped_of(worker)
        assert {name: value for name, value in scrape.items() if name.startswith("tool_calls_total")} == {
            'tool_calls_total{tool="add",outcome="result"}': 1,
            'tool_calls_total{tool="add",outcome="invalid"}': 1,
            'tool_calls_total{tool="switch",outcome="error"}': 1,
        }
        assert scrape['confirmations_total{outcome="confirmed"}'] == 1
        assert scrape["run_turns_sum"] == 3
        asked = {name: value for name, value in scrape.items() if name.startswith("attempts_total")}
        assert sorted(asked.values()) == [3, 3], asked
        cost = {name: value for name, value in scrape.items() if name.startswith("cost_usd_total")}
        assert sum(cost.values()) == pytest.approx(7.0)
        told = [(each.kind, each.turn, each.outcome) for each in await audited(client)]
        assert sorted(told, key=str) == sorted(
            [
                *[("model", turn, outcome) for turn in (1, 2, 3) for outcome in ("rejected", "success")],
                ("tool", 1, "invalid"),
                ("tool", 1, "result"),
                ("confirmation", 2, "confirmed"),
                ("tool", 2, "error"),
            ],
            key=str,
        )
        await check_everything(client)


async def test_another_worker_goes_on_and_counts_its_part_only(broker_url: str) -> None:
    """The event of the whole tells of all turns; each worker's counters of its own, and together of each once."""
    backends = {"local": FakeBackend(turns(calls("add", a=1, b=1), answers("done")))}
    async with open_client(broker_url) as client:
        async with run_worker(broker_url, backends, consumer="w1", config=CONFIG) as first:
            await register(client, add=ADD)
            await submit(client)
            _, call = await next_call(client, "add")
            await eventually(lambda: first.in_flight == 0)
            first.stop()
        async with run_worker(broker_url, backends, consumer="w2", config=CONFIG) as second:
            await answer(client, "r1", call["call_id"], "2")
            metrics = await metrics_of(client, "r1")
            await counts(second, 'runs_total{end="result"}', 1)
            assert (metrics["turns"], metrics["tool_calls"], len(metrics["attempts"])) == (2, 1, 2)
            for worker, ends in ((first, 0), (second, 1)):
                scrape = scraped_of(worker)
                assert scrape['attempts_total{deployment="local",outcome="success",code=""}'] == 1
                assert scrape.get('requests_total{type="result",code=""}', 0) == ends
            assert scraped_of(second)['tool_calls_total{tool="add",outcome="result"}'] == 1
        assert [(each.kind, each.turn, each.consumer) for each in await audited(client)] == [
            ("model", 1, "w1"),
            ("tool", 1, "w2"),
            ("model", 2, "w2"),
        ]


async def test_answer_in_doubt_is_audited_once(broker_url: str) -> None:
    """A call that nobody took, and one that somebody did: what came of it is known when it stands."""
    both = calls_all(("add", '{"a": 1, "b": 1}'), ("more", '{"a": 1, "b": 1}'))
    backends = {"local": FakeBackend(turns(both, answers("done")))}
    async with open_client(broker_url) as client, run_worker(broker_url, backends, config=CONFIG):
        await register(client, add={**ADD, "timeout_ms": 300}, more={**ADD, "timeout_ms": 300})
        await client.xgroup_create("llm:tools:add", "any", "$", mkstream=True)
        await submit(client)
        await client.xreadgroup("any", "dead", {"llm:tools:add": ">"}, block=5000)
        assert (await final_of(client, "r1"))[0] == "result"
        await metrics_of(client, "r1")
        told = [(each.kind, each.tool, each.outcome) for each in await audited(client)]
        assert sorted(told, key=str) == [
            ("model", None, "success"),
            ("model", None, "success"),
            ("tool", "add", "unknown_outcome"),
            ("tool", "more", "timeout"),
        ]
