"""How an endpoint answers: what is told when, with which status, and what becomes of the request."""

from __future__ import annotations

import asyncio
import json

import pytest

from llm_routerd.protocol.examples import EVENTS
from tests.gateway.answering import open_door
from tests.support.eventually import eventually
from tests.support.servers import running_valkey


async def test_tokens_go_out_as_they_come_and_the_end_follows(valkey_url: str) -> None:
    """One request on the streams, whose id the client is told."""
    async with open_door(valkey_url) as door:
        asking = asyncio.create_task(door.ask().__aenter__())
        request_id = await door.request_id()
        ((_, fields),) = await door.redis.xrange("llm:requests")
        sent = {"prompt": "x", "stream": True, "id": request_id, "publish": True}
        assert json.loads(fields["data"]) == sent
        await asyncio.sleep(0.2)
        assert not asking.done()  # no head before there is something to tell
        await door.attempt(request_id, 1, "One ")
        response = await asking
        assert (response.status, response.headers["X-Request-ID"], response.headers["my-id"]) == (
            200, request_id, request_id,
        )  # fmt: skip
        assert await response.content.readany() == b"[One "
        await door.write(request_id, "1-2", "token", text="two")
        assert await response.content.readany() == b"two"
        await door.result(request_id, "One two.")
        assert await response.read() == b".]stop"
        await eventually(lambda: door.seen == ["ended"])
        assert door.exchange.plexer.followed == 0


async def test_whole_answers_and_held_ones(valkey_url: str) -> None:
    """Neither asks for tokens."""
    async with open_door(valkey_url) as door:
        for ask, told in (
            ({"streams": False}, "One"),
            ({"fields": {"prompt": "x", "schema": {"type": "object"}}}, "[One]stop"),
        ):
            asking = asyncio.create_task(door.ask(**ask).__aenter__())
            request_id = await door.request_id()
            ((_, fields),) = await door.redis.xrange("llm:requests")
            assert json.loads(fields["data"])["stream"] is False
            await door.attempt(request_id, 1)
            await door.result(request_id, "One")
            assert await (await asking).text() == told
            await door.redis.delete("llm:requests")


@pytest.mark.parametrize(
    ("code", "attempts", "status", "told"),
    [
        ("chain_exhausted", ["timeout"], 503, "chain_exhausted"),
        ("unknown_model", [], 404, "unknown_model"),
        ("deadline_exceeded", ["timeout"], 504, "deadline_exceeded"),
        ("chain_exhausted", ["context_window", "context_window"], 400, "context_length_exceeded"),
        ("chain_exhausted", ["context_window", "connect"], 503, "chain_exhausted"),
        ("internal", [], 500, "internal"),
        ("unknown_tool", [], 404, "unknown_tool"),
        ("tool_not_allowed", [], 403, "tool_not_allowed"),
        ("confirmation_expired", [], 403, "confirmation_expired"),
        ("turns_exhausted", [], 422, "turns_exhausted"),
    ],
)
async def test_what_fails_before_any_text_has_its_status(
    valkey_url: str, code: str, attempts: list[str], status: int, told: str
) -> None:
    """Also of a stream."""
    async with open_door(valkey_url) as door:
        asking = asyncio.create_task(door.ask().__aenter__())
        request_id = await door.request_id()
        await door.attempt(request_id, 1)
        await door.error(request_id, code, *attempts)
        response = await asking
        assert (response.status, await response.text()) == (status, told)


async def test_what_fails_after_text_is_told_in_the_stream(valkey_url: str) -> None:
    """And nothing follows it."""
    async with open_door(valkey_url) as door:
        asking = asyncio.create_task(door.ask().__aenter__())
        request_id = await door.request_id()
        await door.attempt(request_id, 1, "One")
        response = await asking
        await door.error(request_id, "chain_exhausted", "timeout")
        assert (response.status, await response.text()) == (200, "[One!503 chain_exhausted")


async def test_shown_text_is_not_followed_by_another_models(valkey_url: str) -> None:
    """The stream ends, and the request goes on."""
    async with open_door(valkey_url) as door:
        asking = asyncio.create_task(door.ask().__aenter__())
        request_id = await door.request_id()
        await door.attempt(request_id, 1, "One")
        response = await asking
        await door.reject(request_id, 1)
        await door.attempt(request_id, 2, "Uno")
        assert await response.text() == "[One!503 superseded"
        await door.result(request_id, "Uno", 2)
        assert await door.end(request_id) == "result"


async def test_text_of_a_run_goes_on_behind_its_turns(valkey_url: str) -> None:
    """Whose calls and results are told at no door that tells text alone."""
    async with open_door(valkey_url) as door:
        asking = asyncio.create_task(door.ask().__aenter__())
        request_id = await door.request_id()
        await door.attempt(request_id, 1, "One")
        response = await asking
        await door.write(request_id, "1-2", "tool_call", **EVENTS["tool_call"][0])
        await door.write(request_id, "1-3", "turn", **EVENTS["turn"][0] | {"message": {"content": "One."}})
        await door.write(request_id, "1-4", "tool_result", **EVENTS["tool_result"][0])
        await door.attempt(request_id, 2, "Two")
        await door.result(request_id, "Two!", 2)
        assert await response.text() == "[One.\n\nTwo!]stop"


async def test_nobody_notices_where_the_next_model_says_the_same_again(valkey_url: str) -> None:
    """Byte for byte."""
    async with open_door(valkey_url) as door:
        asking = asyncio.create_task(door.ask().__aenter__())
        request_id = await door.request_id()
        await door.attempt(request_id, 1, "One", " two")
        response = await asking
        await door.reject(request_id, 1)
        await door.attempt(request_id, 2, "One t", "wo", " three")
        await door.result(request_id, "One two three", 2)
        assert await response.text() == "[One two three]stop"


async def test_who_hangs_up_cancels_unless_he_can_come_back(valkey_url: str) -> None:
    """With an idempotency key the request goes on."""
    async with open_door(valkey_url) as door:
        for headers, end in (({}, "cancelled"), ({"Idempotency-Key": "mine"}, None)):
            response = None
            asking = asyncio.create_task(door.ask(headers=headers).__aenter__())
            request_id = await door.request_id()
            assert (request_id == "mine") is bool(headers)
            await door.attempt(request_id, 1, "One")
            response = await asking
            assert await response.content.readany() == b"[One"
            response.close()
            assert await door.end(request_id, seconds=1) == end
            assert door.exchange.plexer.followed == 0
            await door.redis.delete("llm:requests")


async def test_who_hangs_up_before_anything_was_told_cancels_too(valkey_url: str) -> None:
    """Also while it is queued."""
    async with open_door(valkey_url) as door:
        asking = asyncio.create_task(door.ask().__aenter__())
        request_id = await door.request_id()
        asking.cancel()
        assert await door.end(request_id) == "cancelled"
        assert 0 < await door.redis.ttl(f"llm:events:{request_id}") <= 3600


async def test_who_hangs_up_while_redis_is_away_cancels_when_it_is_back() -> None:
    """However long that takes: the model would go on for nobody."""
    with running_valkey() as server:
        async with open_door(server.url) as door:
            for shard in door.exchange.client.shards.all:
                shard._patience_seconds = 0.1
            asking = asyncio.create_task(door.ask().__aenter__())
            request_id = await door.request_id()
            await door.attempt(request_id, 1, "One")
            response = await asking
            server.kill()
            response.close()
            await eventually(lambda: door.seen)
            await asyncio.sleep(1)  # tries, and its patience is over
            server.start()
            await eventually(lambda: not door.exchange.plexer.trouble, seconds=10)
            assert await door.end(request_id) == "cancelled"


async def test_a_gateway_that_stops_cancels_nothing(valkey_url: str) -> None:
    """Whoever has the id finds the answer through another."""
    async with open_door(valkey_url) as door:
        asking = asyncio.create_task(door.ask().__aenter__())
        request_id = await door.request_id()
        door.exchange.is_stopping = True
        asking.cancel()
        assert await door.end(request_id, seconds=0.5) is None


async def test_the_same_key_again_has_the_same_answer_and_no_second_request(valkey_url: str) -> None:
    """Whole, also where it was streamed before."""
    async with open_door(valkey_url, tenant="alice") as door:
        asking = asyncio.create_task(door.ask(headers={"Idempotency-Key": "k1"}).__aenter__())
        request_id = await door.request_id()
        assert request_id == "alice:k1"
        ((_, fields),) = await door.redis.xrange("llm:requests")
        assert json.loads(fields["data"])["tenant_id"] == "alice"
        await door.attempt(request_id, 1, "One", " two")
        await door.result(request_id, "One two")
        assert await (await asking).text() == "[One two]stop"
        await door.redis.delete("llm:requests")
        async with door.ask(headers={"Idempotency-Key": "k1"}) as response:
            assert await response.text() == "[One two]stop"
        async with door.ask(headers={"Idempotency-Key": "k1"}, streams=False) as response:
            assert await response.text() == "One two"
        assert await door.redis.xlen("llm:requests") == 0
        async with door.ask(headers={"Idempotency-Key": "no good"}) as response:
            assert (response.status, await response.text()) == (400, "invalid_request")


async def test_who_waits_too_long_is_told_so_and_the_request_ends(valkey_url: str) -> None:
    """Queue included."""
    async with open_door(valkey_url, timeout_seconds=0.5) as door:
        async with door.ask(streams=False) as response:
            assert (response.status, await response.text()) == (504, "deadline_exceeded")
        assert await door.end(await door.request_id()) == "cancelled"


async def test_who_waits_too_long_and_can_come_back_finds_the_answer(valkey_url: str) -> None:
    """Of a key that is cancelled there would never be one."""
    async with open_door(valkey_url, timeout_seconds=0.5) as door:
        async with door.ask(streams=False, headers={"Idempotency-Key": "mine"}) as response:
            assert (response.status, await response.text()) == (504, "deadline_exceeded")
        assert await door.end("mine", seconds=0.5) is None
        await door.result("mine", "One")
        async with door.ask(streams=False, headers={"Idempotency-Key": "mine"}) as response:
            assert (response.status, await response.text()) == (200, "One")


async def test_a_providers_refusal_is_told_where_that_is_asked_for(valkey_url: str) -> None:
    """And no other model is asked."""
    async with open_door(valkey_url, on_provider_refusal="fail") as door:
        asking = asyncio.create_task(door.ask(streams=False).__aenter__())
        request_id = await door.request_id()
        await door.attempt(request_id, 1)
        await door.reject(request_id, 1, "refusal")
        response = await asking
        assert (response.status, await response.text()) == (403, "refusal")
        assert await door.end(request_id) == "cancelled"


async def test_an_unsound_request_is_refused_before_it_is_queued(valkey_url: str) -> None:
    """With the JSON path."""
    async with open_door(valkey_url) as door:
        async with door.ask(fields={"prompt": "x", "params": {"temperature": 7}}) as response:
            assert (response.status, await response.text()) == (400, "invalid_request")
        async with door.ask(fields={"prompt": "x", "schema": {"type": "nonsense"}}) as response:
            assert (response.status, await response.text()) == (400, "invalid_schema")
        async with door.ask(fields={"prompt": "x" * 1_048_576}) as response:
            assert (response.status, await response.text()) == (413, "request_too_large")
        assert await door.redis.xlen("llm:requests") == 0


async def test_a_stream_that_is_quiet_is_kept_open(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its head goes out after a while, and now and then something that says nothing."""
    monkeypatch.setattr("llm_routerd.gateway.http.answering.HEAD_SECONDS", 0.3)
    monkeypatch.setattr("llm_routerd.gateway.http.answering.PING_SECONDS", 0.3)
    async with open_door(valkey_url) as door, door.ask() as response:
        assert response.status == 200
        assert await response.content.readexactly(2) == b"[."
        request_id = await door.request_id()
        await door.attempt(request_id, 1, "One")
        await door.error(request_id, "chain_exhausted", "timeout")
        assert (await response.text()).lstrip(".") == "One!503 chain_exhausted"


async def test_a_slow_reader_has_everything_and_costs_little(valkey_url: str) -> None:
    """What he does not take stays in Redis."""
    async with open_door(valkey_url) as door:
        asking = asyncio.create_task(door.ask().__aenter__())
        request_id = await door.request_id()
        texts = [f"{number:06}" * 3000 for number in range(500)]
        await door.attempt(request_id, 1, *texts[:1])
        response = await asking
        for seq, text in enumerate(texts[1:], 2):
            await door.write(request_id, f"1-{seq}", "token", text=text)
        (followings,) = door.exchange.plexer._followings.values()
        (following,) = followings
        assert following._pending_bytes < 400_000
        await door.result(request_id, "".join(texts))
        assert await response.text() == "[" + "".join(texts) + "]stop"


async def test_what_breaks_a_local_cache_is_taken_out_and_that_is_said(valkey_url: str) -> None:
    """Only where nobody but local deployments can answer."""
    line = "x-anthropic-billing-header: cc_version=1; cch=ab12c;"
    messages = [{"role": "system", "content": f"{line}\nBe brief."}, {"role": "user", "content": "x"}]
    for model, told in (("local", "billing-header"), ("default", None)):
        async with open_door(valkey_url, normalise_known=True) as door:
            fields = {"messages": messages, "model": model}
            asking = asyncio.create_task(door.ask(streams=False, fields=fields).__aenter__())
            request_id = await door.request_id()
            ((_, sent),) = await door.redis.xrange("llm:requests")
            assert (line in sent["data"]) is (told is None)
            await door.result(request_id, "One")
            response = await asking
            assert response.headers.get("X-LLM-Routerd-Normalised") == told
            await door.redis.delete("llm:requests")


async def test_a_client_is_told_that_nobody_works(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not left to wait; what he may come back for waits for somebody."""
    monkeypatch.setattr("llm_routerd.gateway.http.answering.UNSERVED_SECONDS", 0.3)
    async with open_door(valkey_url) as door:
        for headers, end in (({}, "cancelled"), ({"Idempotency-Key": "mine"}, None)):
            async with door.ask(headers=headers) as response:
                assert (response.status, await response.text()) == (503, "no_worker")
            assert await door.end(await door.request_id(), seconds=0.5) == end
            await door.redis.delete("llm:requests")


async def test_nobody_is_told_so_where_somebody_works(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the queue is."""
    monkeypatch.setattr("llm_routerd.gateway.http.answering.UNSERVED_SECONDS", 0.1)
    async with open_door(valkey_url) as door:
        await door.redis.xgroup_create("llm:requests", "llm-router", "0", mkstream=True)
        await door.redis.xreadgroup("llm-router", "somebody", {"llm:requests": ">"}, block=1)
        asking = asyncio.create_task(door.ask().__aenter__())
        request_id = await door.request_id()
        await asyncio.sleep(1.5)
        await door.attempt(request_id, 1, "One")
        assert (await asking).status == 200
        await door.result(request_id, "One")


WAIT = EVENTS["queued"][0]


async def test_who_waits_is_told_in_a_comment_once_his_stream_has_begun(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no first token: until something must be said, a failure still has a status of its own."""
    monkeypatch.setattr("llm_routerd.gateway.http.answering.HEAD_SECONDS", 0.5)
    async with open_door(valkey_url) as door:
        asking = asyncio.create_task(door.ask().__aenter__())
        request_id = await door.request_id()
        await door.write(request_id, "0-1", "queued", **WAIT)
        await asyncio.sleep(0.2)
        assert not asking.done()
        response = await asking
        assert await response.content.readany() == b"["
        hostile = "3 before you\r\ndata: forged\u2028"
        await door.write(request_id, "0-2", "queued", **WAIT | {"reason": hostile})
        assert await response.content.readany() == b": 3 before you??data: forged?, about 20 s\n\n"
        await door.write(request_id, "0-3", "queued", position="none")
        await door.attempt(request_id, 1, "One")
        assert await response.content.readany() == b"One"
        await door.result(request_id, "One")
        assert (await response.read()).endswith(b"]stop")


async def test_wait_before_anything_was_told_leaves_a_failure_its_status(valkey_url: str) -> None:
    """The head has not gone out for it."""
    async with open_door(valkey_url) as door:
        asking = asyncio.create_task(door.ask().__aenter__())
        request_id = await door.request_id()
        await door.write(request_id, "0-1", "queued", **WAIT)
        await door.write(request_id, "9007199254740991-0", "error", **EVENTS["error"][1] | {"id": request_id})
        assert (await asking).status == 503


async def test_nothing_is_told_of_a_wait_where_each_line_is_json(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients would take a comment for an answer."""
    monkeypatch.setattr("llm_routerd.gateway.http.answering.HEAD_SECONDS", 0.2)
    async with open_door(valkey_url) as door:
        asking = asyncio.create_task(door.ask(media_type="application/x-ndjson").__aenter__())
        request_id = await door.request_id()
        response = await asking
        await door.write(request_id, "0-1", "queued", **WAIT)
        await door.attempt(request_id, 1, "One")
        await door.result(request_id, "One")
        assert await response.read() == b"[One]stop"
