"""The daemon as a process, with a real Valkey and a stand-in for the models: the main job."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from llm_routerd.client import Client
from tests.standin.server import StandIn
from tests.support.daemons import ServiceManager, page, producer, running_daemon, write_config
from tests.support.eventually import eventually
from tests.support.processes import free_port
from tests.support.queue import events_of, open_client

if TYPE_CHECKING:
    from pathlib import Path

_MODELS = {"tiny": "", "big": ""}
_SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


async def test_prompt_goes_in_and_tokens_and_a_result_come_out(tmp_path: Path, valkey_url: str) -> None:
    """XADD by a program that knows the protocol only; tokens as the model writes them, then the one result."""
    async with StandIn(_MODELS) as models:
        config = write_config(tmp_path, valkey_url, models.url)
        async with running_daemon(config), open_client(valkey_url) as redis, producer(valkey_url) as client:
            entry = await redis.xadd("llm:requests", {"prompt": "[[tokens=5 delay_ms=20]]", "stream": "true"})
            result = await client.result(entry, 10)
            events = await events_of(redis, entry)
            texts = [data["text"] for _, kind, data in events if kind == "token"]
            assert (result.type, result.data["content"]) == ("result", "".join(texts))
            assert 1 < len(texts) <= 5
            assert [kind for _, kind, _ in events] == ["attempt", *["token"] * len(texts), "result"]
            assert (result.data["model_used"], result.data["deployment"]) == ("ollama/tiny", "local")
            assert await redis.xlen("llm:requests") == 0
            assert 0 < await redis.pttl(f"llm:events:{entry}") <= 3_600_000


async def test_answer_that_breaks_the_schema_comes_from_the_second_deployment(tmp_path: Path, valkey_url: str) -> None:
    """The first model is left at the token that broke it, and the second answers by another protocol."""
    async with StandIn({"tiny": """delay_ms=50 answer='{"n": "one two three four five"}'""", "big": ""}) as models:
        config = write_config(tmp_path, valkey_url, models.url)
        async with running_daemon(config), producer(valkey_url) as client:
            request_id = await client.submit(prompt="count", schema=_SCHEMA, stream="live")
            result = await client.result(request_id, 10)
            assert (result.data["content"], result.data["deployment"]) == ({"n": 1}, "second")
            kinds = [(event.id, event.type) async for event in client.follow(request_id)]
            assert kinds[:2] == [("1-0", "attempt"), ("1-1", "token")]
            assert [event_id.split("-")[0] for event_id, kind in kinds if kind == "rejected"] == ["1"]
            await eventually(lambda: models.calls[0]["end"])
            assert models.calls[0]["how"] == "client_disconnected"
            assert models.calls[0]["tokens"] < 6


async def test_metrics_are_on_channel_stream_and_page(tmp_path: Path, valkey_url: str) -> None:
    """One event per finished request, the same on both, and the counters in Prometheus' form."""
    port = free_port()
    async with StandIn(_MODELS) as models:
        config = write_config(tmp_path, valkey_url, models.url, listen=f"127.0.0.1:{port}")
        async with running_daemon(config), open_client(valkey_url) as redis, producer(valkey_url) as client:
            subscription = redis.pubsub()
            await subscription.subscribe("llm_router_metrics")
            request_id = await client.submit(prompt="hello", tenant_id="kid", context="test")
            published = await _next_message(subscription)
            await subscription.aclose()
            ((_, fields),) = await redis.xrange("llm_router_metrics")
            assert json.loads(fields["data"]) == published
            assert (published["id"], published["tenant_id"], published["context"]) == (request_id, "kid", "test")
            assert published["metrics_snapshot"] == {"ollama/tiny": {"success": 1, "fallback": 0, "error": 0}}
            assert published["usage"]["completion_tokens"] > 0
            status, text = await page(port, "/metrics")
            assert status == 200
            families = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
            assert {"llm_routerd_requests_total", "llm_routerd_in_flight", "llm_routerd_lane_lag"} <= families
            assert await page(port, "/healthz") == (200, "ok\n")
            assert await page(port, "/readyz") == (200, "ok\n")


async def _next_message(subscription: Any) -> dict[str, Any]:
    async with asyncio.timeout(10):
        async for message in subscription.listen():
            if message["type"] == "message":
                event: dict[str, Any] = json.loads(message["data"])
                return event
    raise AssertionError("the subscription has ended")


async def test_two_workers_share_the_work(tmp_path: Path, valkey_url: str) -> None:
    """Each request is answered once, by one of them, and neither does nearly all."""
    async with StandIn({"tiny": "first_ms=50", "big": ""}) as models, AsyncExitStack() as stack:
        config = write_config(tmp_path, valkey_url, models.url, daemon="concurrency = 2")
        redis = await stack.enter_async_context(open_client(valkey_url))
        client = await stack.enter_async_context(producer(valkey_url))
        for _ in range(2):
            await stack.enter_async_context(running_daemon(config))
        ids = [await client.submit(prompt="hello") for _ in range(40)]
        finals = await asyncio.gather(*(client.result(request_id, 20) for request_id in ids))
        assert {final.type for final in finals} == {"result"}
        attempts = [
            data for request_id in ids for _, kind, data in await events_of(redis, request_id) if "consumer" in data
        ]
        assert len(attempts) == len(models.calls) == 40
        shares = Counter(data["consumer"] for data in attempts)
        assert len(shares) == 2
        assert min(shares.values()) >= 8


async def test_request_added_while_no_daemon_runs_is_answered_later(tmp_path: Path, valkey_url: str) -> None:
    """Also before the very first start: the group begins at the beginning."""
    async with StandIn(_MODELS) as models, producer(valkey_url) as client:
        request_id = await client.submit(prompt="anybody there?")
        async with running_daemon(write_config(tmp_path, valkey_url, models.url)):
            assert (await client.result(request_id, 10)).type == "result"


async def test_cancellation_from_outside_closes_the_model_within_a_second(tmp_path: Path, valkey_url: str) -> None:
    """Also for a request that streams nothing, where no refused chunk tells."""
    async with StandIn({"tiny": "stall_after=1"}) as models:
        config = write_config(tmp_path, valkey_url, models.url, chain=("local",))
        async with running_daemon(config), producer(valkey_url) as client:
            request_id = await client.submit(prompt="wait")
            await eventually(lambda: len(models.calls) == 1)
            seconds, microseconds = await client.redis.time()
            cancelled = await client.cancel(request_id, "enough")
            assert cancelled.type == "cancelled"
            await eventually(lambda: models.calls[0]["end"])
            assert models.calls[0]["how"] == "client_disconnected"
            assert models.calls[0]["end"] - (seconds + microseconds / 1e6) < 1.5


async def test_prefix_names_every_key(tmp_path: Path, valkey_url: str) -> None:
    """A queue with a hash tag is another queue; the metrics stay under their own name."""
    async with StandIn(_MODELS) as models, open_client(valkey_url) as redis:
        config = write_config(tmp_path, valkey_url, models.url)
        await redis.xadd("llm:requests", {"prompt": "somebody else's"})
        await redis.xadd("{q}:requests", {"prompt": "ours", "id": "ours"})
        bad = await redis.xadd("{q}:requests:high", {"prompt": "ours", "nonsense": "1"})
        async with running_daemon(config, "--prefix", "{q}"), Client(valkey_url, prefix="{q}") as client:
            assert (await client.result("ours", 10)).type == "result"
            assert (await client.result(bad, 10)).type == "error"
        lanes = {"{q}:requests", "{q}:requests:high", "{q}:requests:low"}
        keys = {
            "llm:requests",
            "llm_router_metrics",
            "{q}:dead",
            "{q}:audit",
            "{q}:events:ours",
            f"{{q}}:events:{bad}",
            *lanes,
        }
        assert set(await redis.keys("*")) == keys
        assert await redis.xlen("llm:requests") == 1


async def test_answers_that_no_replica_has_are_told_and_taken_all_the_same(tmp_path: Path, valkey_url: str) -> None:
    """The status says so, and the daemon stays ready."""
    port = free_port()
    async with StandIn(_MODELS) as models, ServiceManager(tmp_path) as systemd:
        config = write_config(tmp_path, valkey_url, models.url, listen=f"127.0.0.1:{port}")
        text = config.read_text(encoding="utf-8")
        config.write_text(text.replace("[redis]", "[redis]\nwait_replicas = 1\nwait_replicas_seconds = 0.1"))
        async with running_daemon(config, environ=systemd.environ) as daemon, producer(valkey_url) as client:
            assert (await client.result(await client.submit(prompt="hello"), 10)).type == "result"
            line = await daemon.until_logged("answers_not_on_replicas")
            assert line["why"] == "fewer than 1 have acknowledged it in 0.1 s"
            await systemd.until(lambda it: "not on the replicas" in it.told("STATUS")[-1])
            assert (await page(port, "/readyz"))[0] == 200
