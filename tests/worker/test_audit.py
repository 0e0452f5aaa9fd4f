"""The audit: an entry for every call to a model, whatever becomes of its request; and no answer waits for it."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema_rs
import msgspec
import orjson
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from llm_routerd.config.audit import AuditConfig
from llm_routerd.protocol.audit import AuditEntry
from llm_routerd.protocol.codes import AttemptCode
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.schema_files import load_schema
from llm_routerd.protocol.wire import encode
from tests.support.accounts import scraped_of
from tests.support.endings import final_of, nothing_left
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, fails, hangs, says
from tests.support.queue import add, begin_one, commit, open_broker, open_client, result
from tests.support.schemas import closed
from tests.support.workers import make_config, run_worker

if TYPE_CHECKING:
    from llm_routerd.config.tree import Config

KEY = "a key of many characters"
PROMPT, ANSWER = "a prompt that nobody is to see", "an answer that nobody is to see"
CONFIG = replace(make_config(), audit=AuditConfig(key=KEY))
JUDGE = jsonschema_rs.Draft202012Validator(closed(load_schema("audit")), offline=True)
ACL = (Path(__file__).parents[2] / "systemd" / "users.acl").read_text(encoding="utf-8")


async def audited(client: Any) -> list[AuditEntry]:
    """What stands in the audit, each by its schema."""
    found = [msgspec.convert(fields, AuditEntry, strict=False) for _, fields in await client.xrange("llm:audit")]
    for entry in found:
        JUDGE.validate(orjson.loads(encode(entry)))
    return found


def hash_of(*messages: dict[str, str], key: str = KEY) -> str:
    """As whoever has the key works it out, with what Python brings."""
    text = json.dumps(list(messages), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hmac.new(key.encode(), text.encode(), hashlib.sha256).hexdigest()


async def test_every_call_of_an_answered_request_is_in_the_audit(broker_url: str) -> None:
    """The rejected one and the one that answered, as their events are numbered, and nothing of what was said."""
    local, cloud = FakeBackend(fails(AttemptCode.UPSTREAM, after=("half ",))), FakeBackend(says(ANSWER))
    async with (
        open_client(broker_url) as client,
        run_worker(broker_url, {"local": local, "cloud": cloud}, config=CONFIG) as worker,
    ):
        before_ms = worker.shards[0].clock.server_ms()
        await add(client, id="r1", prompt=PROMPT, tenant_id="ada", context="notes")
        assert (await final_of(client, "r1"))[0] == "result"
        first, second = await audited(client)
        after_ms = worker.shards[0].clock.server_ms()
        text = json.dumps(await client.xrange("llm:audit"))
    assert (first.kind, first.attempt, first.deployment, first.outcome, first.code) == (
        "model", 1, "local", "rejected", "upstream",
    )  # fmt: skip
    assert (second.attempt, second.deployment, second.outcome, second.code) == (2, "cloud", "success", None)
    assert (second.prompt_tokens, second.completion_tokens) == (10, 5)
    assert {(each.id, each.tenant_id, each.context, each.consumer) for each in (first, second)} == {
        ("r1", "ada", "notes", "w1")
    }
    assert {each.prompt_sha256 for each in (first, second)} == {hash_of({"role": "user", "content": PROMPT})}
    assert before_ms - 2 <= first.at_ms <= second.at_ms <= after_ms + 2
    assert PROMPT not in text
    assert ANSWER not in text
    assert "half" not in text


async def test_an_answer_that_is_to_be_mended_was_another_prompt(broker_url: str) -> None:
    """What was added to the conversation is in the hash."""
    schema = json.dumps({"type": "object", "required": ["n"]})
    local = FakeBackend(says("{}"), says('{"n":1}'))
    config = replace(CONFIG, chains={"default": replace(CONFIG.chains["default"], deployments=("local",), repair=1)})
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": local}, config=config):
        await client.xadd("llm:requests", {"data": f'{{"id":"r1","prompt":"x","schema":{schema}}}'})
        assert (await final_of(client, "r1"))[0] == "result"
        first, second = await audited(client)
    assert (first.outcome, first.code, second.outcome) == ("invalid", "schema_violation", "success")
    assert first.prompt_sha256 == hash_of({"role": "user", "content": "x"})
    assert second.prompt_sha256 == hash_of(*local.calls[1].messages)


async def test_numbers_go_on_where_an_earlier_worker_ended(broker_url: str) -> None:
    """The call of the worker that died was its to tell; the next one has its number in the stream."""
    async with open_client(broker_url) as client:
        async with open_broker(broker_url, "w0") as broker:
            await add(client, id="r1")
            await begin_one(broker_url, broker, consumer="w0")
        async with run_worker(broker_url, {"local": FakeBackend(says("x"))}, config=CONFIG):
            _, final = await final_of(client, "r1")
            (entry,) = await audited(client)
    assert entry.attempt == final["attempt"] == 2


async def test_calls_of_a_request_that_was_cancelled_are_in_the_audit(broker_url: str) -> None:
    """They were made, and cost what they cost."""
    local = FakeBackend(hangs("a "))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": local}, config=CONFIG) as worker:
        await add(client, id="r1")
        await eventually(lambda: local.running)
        await client.xadd("llm:events:r1", {"type": "cancelled", "data": "{}"}, id=FINAL_ID)
        await eventually(lambda: not worker.shards[0].in_flight)
        async with asyncio.timeout(5):
            while not await client.xlen("llm:audit"):  # noqa: ASYNC110 - Redis has no event for this
                await asyncio.sleep(0.02)
        (entry,) = await audited(client)
    assert (entry.outcome, entry.code, entry.attempt) == ("rejected", "cancelled", 1)


async def test_calls_of_a_worker_whose_answer_came_too_late_are_in_the_audit(broker_url: str) -> None:
    """Another's answer stands, and both models were asked."""
    local = FakeBackend(says("late", delay=0.2))
    async with open_client(broker_url) as client, run_worker(broker_url, {"local": local}, config=CONFIG):
        await add(client, id="r1")
        await eventually(lambda: local.running)
        await client.xadd("llm:events:r1", {"type": "result", "data": '{"attempt":7}'}, id=FINAL_ID)
        await nothing_left(client)
        async with asyncio.timeout(5):
            while not await client.xlen("llm:audit"):  # noqa: ASYNC110 - Redis has no event for this
                await asyncio.sleep(0.02)
        (entry,) = await audited(client)
    assert entry.deployment == "local"


async def test_a_commit_that_is_repeated_writes_its_entries_once(broker_url: str) -> None:
    """As after a lost reply."""
    entry = AuditEntry(kind="model", at_ms=1, id="r1", outcome="success", deployment="local", attempt=1)
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await add(client)
        delivery, transcript = await begin_one(broker_url, broker)
        for _ in range(2):
            committed = await commit(
                broker, delivery, result("r1"), transcript=transcript, request_ids=("r1",), audit=(entry, entry)
            )
            assert (committed.verdict, committed.unaudited) == ("committed", None)
        assert await audited(client) == [entry, entry]


async def test_the_stream_keeps_its_bound(broker_url: str) -> None:
    """Roughly, and the newest."""
    config = replace(CONFIG, audit=AuditConfig(stream_maxlen=10))
    async with (
        open_client(broker_url) as client,
        run_worker(broker_url, {"local": FakeBackend(says("x"))}, config=config),
    ):
        for number in range(300):
            await add(client, id=f"r{number}")
        await final_of(client, "r299")
        await nothing_left(client)
        assert 10 <= await client.xlen("llm:audit") <= 210


async def test_where_it_is_off_nothing_is_written_and_nothing_hashed(broker_url: str) -> None:
    """As before there was an audit."""
    config: Config = replace(CONFIG, audit=AuditConfig(enabled=False))
    async with (
        open_client(broker_url) as client,
        run_worker(broker_url, {"local": FakeBackend(says("x"))}, config=config),
    ):
        await add(client, id="r1")
        assert (await final_of(client, "r1"))[0] == "result"
        await nothing_left(client)
        assert not await client.exists("llm:audit")


@pytest.mark.parametrize("why", ["acl", "type"])
async def test_a_server_that_refuses_the_audit_answers_all_the_same(valkey_url: str, why: str) -> None:
    """An ACL of before, a key of another type: one line in the log, and the number in a metric."""
    rules = next(line for line in ACL.splitlines() if line.startswith("user daemon ")).split()[2:]
    url = valkey_url
    async with open_client(valkey_url) as client:
        if why == "acl":
            kept = " ".join(rules).replace("(+xadd %W~llm:audit)", "").split()
            await client.execute_command("ACL", "SETUSER", "daemon", *kept, ">pw")
            url = valkey_url.replace("unix://", "unix://daemon:pw@")
        else:
            await client.set("llm:audit", "mine")
        try:
            with capture_logs() as logs:
                async with run_worker(url, {"local": FakeBackend(says("x"))}, config=CONFIG) as worker:
                    for number in range(3):
                        await add(client, id=f"r{number}")
                    assert {(await final_of(client, f"r{number}"))[0] for number in range(3)} == {"result"}
                    await nothing_left(client) if why == "acl" else None
                    assert worker.status().ready
                    await eventually(lambda: scraped_of(worker)["audit_refused_total"] == 3)
        finally:
            if why == "acl":
                await client.execute_command("ACL", "DELUSER", "daemon")
    (line,) = (line for line in logs if line["event"] == "audit_refused")
    assert line["log_level"] == "warning"
    assert "llm:audit" not in line["why"]


async def test_a_daemon_with_the_rights_that_we_ship_writes_it(valkey_url: str) -> None:
    """And may not read it, nor take anything out."""
    rules = next(line for line in ACL.splitlines() if line.startswith("user daemon ")).split()[2:]
    async with open_client(valkey_url) as client:
        await client.execute_command("ACL", "SETUSER", "daemon", *rules, ">pw")
        try:
            url = valkey_url.replace("unix://", "unix://daemon:pw@")
            async with run_worker(url, {"local": FakeBackend(says("x"))}, config=CONFIG):
                await add(client, id="r1")
                assert (await final_of(client, "r1"))[0] == "result"
            assert len(await audited(client)) == 1
        finally:
            await client.execute_command("ACL", "DELUSER", "daemon")
