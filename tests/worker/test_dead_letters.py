"""Dead letters keep their bounds: each of them, and all together."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from msgspec import structs

from llm_routerd.accounting.gauges import Gauges
from llm_routerd.cli.exits import Exit
from llm_routerd.cli.main import main
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.schema_files import load_schema
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend, says
from tests.support.queue import LIMITS, add, commit, failure, open_broker, open_client, take_one
from tests.support.schemas import closed
from tests.support.workers import DAEMON, make_config, run_worker

if TYPE_CHECKING:
    from pathlib import Path

BIG = "x" * 300_000  # more than the 65,536 that the tests' workers take


async def letters(client: Any) -> list[dict[str, str]]:
    """All of them."""
    return [fields for _, fields in await client.xrange("llm:dead")]


async def refused(broker_url: str, client: Any, **fields: str) -> dict[str, str]:
    """The dead letter of a request."""
    async with run_worker(broker_url, {"local": FakeBackend(says("x"))}):
        await client.xadd("llm:requests", fields)
        async with asyncio.timeout(10):
            while await client.xlen("llm:requests"):  # noqa: ASYNC110 - Redis has no event for this
                await asyncio.sleep(0.02)
    (letter,) = await letters(client)
    return letter


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "big", "prompt": BIG},
        {"prompt": BIG, "id": "big"},
        {"data": json.dumps({"id": "big", "prompt": BIG})},
    ],
)
async def test_letter_of_a_request_that_is_too_long_has_its_beginning(broker_url: str, fields: dict[str, str]) -> None:
    """With sizes and hashes; and who waits under its id is answered."""
    async with open_client(broker_url) as client:
        letter = await refused(broker_url, client, **fields)
        assert sum(map(len, letter.values())) < 12_000
        told = json.loads(letter["data"])
        name, value = max(fields.items(), key=lambda field: len(field[1]))
        assert told["fields"][name] == value[:4096]
        assert told["cut"]["bytes"] == sum(len(part) for pair in fields.items() for part in pair)
        assert told["cut"]["values"] == {
            name: {"bytes": len(value), "sha256": hashlib.sha256(value.encode()).hexdigest()}
        }
        jsonschema.validate({**letter, "data": told}, closed(load_schema("dead-letter")))
        ((_, final),) = await client.xrange("llm:events:big", FINAL_ID, FINAL_ID)
        assert json.loads(final["data"])["code"] == "request_too_large"


async def test_letter_of_many_fields_has_the_first(broker_url: str) -> None:
    """With names of any length."""
    async with open_client(broker_url) as client:
        fields = {f"{'n' * 1000}{number}": "v" * 10 for number in range(300)}
        letter = await refused(broker_url, client, **fields)
        told = json.loads(letter["data"])
        assert told["cut"]["omitted_fields"] == 300 - 64
        assert sum(map(len, letter.values())) < 64 * 300 + 2000


def test_command_says_that_a_letter_is_cut_and_does_not_queue_it(
    broker_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the list, for people and programs; a part of a request is not the request."""

    async def prepare() -> None:
        async with open_client(broker_url) as client:
            await refused(broker_url, client, id="big", prompt=BIG)

    asyncio.run(prepare())
    capsys.readouterr()
    assert main(["dead", "list", "--redis", broker_url]) == Exit.OK
    line = capsys.readouterr().out
    assert "(cut: 300011 bytes)" in line
    entry = line.split()[0]
    assert main(["dead", "list", "--json", "--redis", broker_url]) == Exit.OK
    assert json.loads(capsys.readouterr().out)["cut_bytes"] == 300_011
    assert main(["dead", "retry", entry, "--redis", broker_url]) == Exit.FAILED
    assert "too long to be kept" in capsys.readouterr().err
    assert main(["dead", "show", entry, "--redis", broker_url]) == Exit.OK
    assert "sha256" in capsys.readouterr().out


async def test_oldest_letters_go_when_there_are_too_many(broker_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The log and a metric say how many went."""
    config = make_config(daemon=structs.replace(DAEMON, dead_max_entries=3))
    async with open_client(broker_url) as client:
        async with run_worker(broker_url, {"local": FakeBackend(says("x"))}, config=config) as worker:
            for number in range(5):
                await add(client, id=f"r{number}", nonsense="1")
            async with asyncio.timeout(10):
                while await client.xlen("llm:requests"):  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.02)
            await eventually(lambda: not worker.in_flight)
            page = worker.metrics.render_prometheus(Gauges())
        assert [letter["id"] for letter in await letters(client)] == ["r2", "r3", "r4"]
        assert "dead_letters_dropped_total 2" in page
    assert "dead_letters_dropped" in capsys.readouterr().out


async def test_oldest_letters_go_when_they_take_too_much(valkey_url: str) -> None:
    """By the server's own measure; the newest stays, whatever it takes (fakeredis measures nothing)."""
    limits = replace(LIMITS, dead_max_bytes=200_000, dead_max_entries=1000)
    async with open_client(valkey_url) as client, open_broker(valkey_url, limits=limits) as broker:
        dropped = 0
        for number in range(60):
            await add(client, id=f"r{number}")
            delivery = await take_one(valkey_url, broker)
            size = 30_000 if number % 10 == 0 else 3_000
            letter: tuple[bytes | str, ...] = ("id", f"r{number}", "data", "x" * size)
            committed = await commit(
                broker,
                delivery,
                failure(f"r{number}"),
                transcript=None,
                request_ids=(f"r{number}",),
                dead_letter=letter,
            )
            dropped += committed.letters_dropped
            assert await client.memory_usage("llm:dead") <= 200_000
        kept = [letter["id"] for letter in await letters(client)]
        assert kept[-1] == "r59"
        assert len(kept) + dropped == 60
        assert len(kept) > 10
        await add(client, id="huge")
        delivery = await take_one(valkey_url, broker)
        huge: tuple[bytes | str, ...] = ("id", "huge", "data", "x" * 500_000)
        await commit(broker, delivery, failure("huge"), transcript=None, request_ids=("huge",), dead_letter=huge)
        assert [letter["id"] for letter in await letters(client)] == ["huge"]


def test_bounds_are_configured(tmp_path: Path) -> None:
    """And checked as every key is."""
    path = tmp_path / "config.toml"
    path.write_text("[daemon]\ndead_max_entries = 0\n")
    assert main(["check", "--config", str(path)]) == Exit.CONFIGURATION
