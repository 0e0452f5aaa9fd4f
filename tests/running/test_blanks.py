"""A whole JSON value, and then white space without end: models held to a format go on with it for ever."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import pytest
from aiohttp import web
from msgspec.structs import replace

from llm_routerd.accounting.estimate import estimated_usage
from llm_routerd.accounting.pricing import Pricing
from llm_routerd.backends.factory import Backends
from llm_routerd.config.tree import Chain, Config, Deployment
from llm_routerd.judging.judge import MAX_BLANKS
from llm_routerd.judging.refusal import RefusalDetector
from llm_routerd.protocol.call import Call, Delta, Finish
from llm_routerd.protocol.events import Failed, Result
from llm_routerd.protocol.outcome import Usage
from llm_routerd.routing.health import Health
from llm_routerd.running.resources import Resources
from tests.backends.forms import Said, pieces_of
from tests.running.asking import Sink, codes, run
from tests.running.asking import request as make_request
from tests.support.calling import PROTOCOLS
from tests.support.fakes import USAGE, FakeBackend, babbles, says
from tests.support.workers import CLOUD, LOCAL, make_config, make_test_resources

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    import orjson

    from llm_routerd.protocol.request import Request
    from llm_routerd.running.ending import Answered, Unanswered
else:
    import orjson

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
VALUE = '{"n": 12345678}'
INPUT_USD, OUTPUT_USD = 1_000_000.0, 3_000_000.0  # for a million tokens: a dollar, and three, for each
PRICED = replace(CLOUD, input_usd_per_mtok=INPUT_USD, output_usd_per_mtok=OUTPUT_USD)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
PROMPT = "How many are there, please?"
PROMPT_TOKENS = -(-(len(PROMPT) + len(orjson.dumps(SCHEMA))) // 4)  # of all that is sent, four characters to a token
MODES = (False, True, "probe")


class Model(FakeBackend):
    """Says some texts, and then one text for ever, or so often; `told` counts the pieces that were asked of it."""

    def __init__(self, *texts: str, then: str, times: int | None = None, last: str = "", pause: float = 0.0) -> None:
        super().__init__(self._script)
        self._texts, self._then, self._times, self._last, self._pause = texts, then, times, last, pause
        self.told = 0

    async def _script(self, _backend: FakeBackend, _call: Call) -> AsyncGenerator[Delta | Finish, None]:
        for text in self._texts:
            yield Delta(text)
        while self._times is None or self.told < self._times:
            self.told += 1
            yield Delta(self._then)
            await asyncio.sleep(self._pause)
        yield Finish(finish_reason="stop", usage=USAGE, text=self._last)


request = partial(make_request, prompt=PROMPT)


def config_of(local: Deployment = LOCAL, **chain: Any) -> Config:
    """A local deployment, and a priced one after it."""
    return replace(make_config(**chain), deployments={"local": local, "cloud": PRICED})


async def ask_local(
    local: FakeBackend, asked: Request, sink: Sink | None = None, **changes: Any
) -> Answered | Unanswered:
    """The local model is asked, and the one after it answers with another value."""
    config = config_of(replace(LOCAL, **changes))
    backends = {"local": local, "cloud": FakeBackend(says('{"n": 2}'))}
    return await run(make_test_resources(config, backends), asked, sink)


def result_of(ending: Answered | Unanswered) -> Result:
    """The result, which it must be."""
    assert isinstance(ending.event, Result), ending.event
    return ending.event


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("blank", [" ", "\n", "\t", "\r\n", " \n \n  ", "\u00a0", " " * 1000])
async def test_whole_value_and_then_blanks_is_the_answer(blank: str, mode: Any) -> None:
    """It is accepted after a bounded number of them, and the model is let go."""
    local, sink = Model('{"n": 123', "45678}", then=blank), Sink()
    ending = await ask_local(local, request(schema=SCHEMA, stream=mode), sink)
    result = result_of(ending)
    assert (result.deployment, result.answer.content, result.answer.finish_reason) == ("local", {"n": 12345678}, "stop")
    assert (local.running, local.closed) == (0, 1)
    assert local.told <= MAX_BLANKS // len(blank) + 1
    assert result.answer.raw_text == VALUE + blank * local.told
    assert sink.shown == ("" if mode is False else result.answer.raw_text)
    assert codes(ending) == [None]


@pytest.mark.parametrize(
    ("schema", "text", "content"),
    [
        ({"type": "integer"}, "12345", 12345),
        ({"type": "boolean"}, "true", True),
        ({"type": "string"}, '"a  b"', "a  b"),
        ({"type": "array"}, "[]", []),
        (True, "null", None),
        (SCHEMA, f"```json\n{VALUE}\n```", {"n": 12345678}),
        (SCHEMA, f"<think>Let me count.</think>\n{VALUE}", {"n": 12345678}),
        (SCHEMA, f"\ufeff  {VALUE}", {"n": 12345678}),
        (SCHEMA, f"<|channel|>final<|message|>{VALUE}", {"n": 12345678}),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
async def test_value_of_any_kind_may_be_followed_by_blanks(schema: Any, text: str, content: Any, size: int) -> None:
    """In a fence, after thinking; a number, which only the blank ends."""
    local = Model(*(text[i : i + size] for i in range(0, len(text), size)), then="\n")
    result = result_of(await ask_local(local, request(schema=schema)))
    assert (result.deployment, result.answer.content) == ("local", content)
    assert local.closed == 1


@pytest.mark.parametrize("mode", MODES)
async def test_tokens_are_estimated_and_said_to_be(mode: Any) -> None:
    """Four characters to a token, of prompt, schema and answer, since the server will never count them."""
    local = Model(VALUE, then=" ")
    ending = await ask_local(local, request(schema=SCHEMA, stream=mode))
    result = result_of(ending)
    completion = -(-len(result.answer.raw_text) // 4)
    assert completion > len(VALUE) // 4
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": completion}
    assert result.data["usage"] == {**usage, "total_tokens": PROMPT_TOKENS + completion, "estimated": True}
    assert result.answer.usage == result.usage
    assert ending.spent.attempts[0].usage == result.usage


async def test_estimated_tokens_cost_what_others_do() -> None:
    """At a deployment that has a price; what a local answer saved is counted from them too."""
    priced = replace(config_of(), chains={"default": Chain(name="default", deployments=("cloud",))})
    resources = make_test_resources(priced, {"cloud": Model(VALUE, then="\n")})
    ending = await run(resources, request(schema=SCHEMA))
    usage = result_of(ending).usage
    assert usage.estimated
    cost = usage.prompt_tokens * 1.0 + usage.completion_tokens * 3.0
    assert cost > PROMPT_TOKENS
    assert (ending.spent.cost_usd, result_of(ending).cost_usd, ending.spent.attempts[0].cost_usd) == (cost, cost, cost)
    ending = await ask_local(Model(VALUE, then="\n"), request(schema=SCHEMA))
    usage = result_of(ending).usage
    assert (ending.spent.cost_usd, ending.spent.saved_usd) == (
        0.0,
        usage.prompt_tokens * 1.0 + usage.completion_tokens * 3.0,
    )


@pytest.mark.parametrize(
    "wrong", ["x", "}", "0", VALUE, "`x", "```\nand so on", " " * (MAX_BLANKS - 1) + ".", " " * 1000 + "x"]
)
@pytest.mark.parametrize("mode", MODES)
async def test_anything_but_blanks_after_the_value_is_no_answer(wrong: str, mode: Any) -> None:
    """Whether it comes at once, after a few blanks, or with many in one piece."""
    local = Model(VALUE, "\n", then=wrong)
    ending = await ask_local(local, request(schema=SCHEMA, stream=mode))
    assert codes(ending) == ["invalid_json", None]
    assert result_of(ending).answer.content == {"n": 2}
    assert (local.running, local.closed) == (0, 1)


async def test_blanks_are_counted_anew_after_a_fence() -> None:
    """Backticks are no blank."""
    local = Model(VALUE, " " * MAX_BLANKS, "```", " " * MAX_BLANKS, then=" ", times=0)
    result = result_of(await ask_local(local, request(schema=SCHEMA)))
    assert result.usage == USAGE


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [0, 1, MAX_BLANKS])
async def test_few_blanks_and_an_end_are_an_ordinary_answer(count: int, mode: Any) -> None:
    """The server's own count of tokens is told, and nothing is said to be estimated."""
    local = Model(VALUE, then=" ", times=count)
    result = result_of(await ask_local(local, request(schema=SCHEMA, stream=mode)))
    assert (result.answer.raw_text, result.usage) == (VALUE + " " * count, USAGE)
    assert "estimated" not in result.data["usage"]


async def test_many_blanks_that_come_with_the_end_are_an_ordinary_answer() -> None:
    """The end is there: nobody has to guess."""
    for local in (
        Model(VALUE, then=" ", times=3, last=" " * 1000),
        Model(then="", times=0, last=VALUE + " " * 1000),
    ):
        result = result_of(await ask_local(local, request(schema=SCHEMA)))
        assert (result.answer.content, result.usage) == ({"n": 12345678}, USAGE)


@pytest.mark.parametrize(
    "properties",
    [{}, {"schema": SCHEMA, "tools": [TOOL]}, {"tools": [TOOL]}],
    ids=["no schema", "schema and tools", "tools"],
)
async def test_without_a_value_to_be_whole_blanks_go_on_to_the_ordinary_limit(properties: dict[str, Any]) -> None:
    """Text may go on after them, and so may calls of tools."""
    local = Model(VALUE, then="\n", pause=0.001)
    ending = await ask_local(local, request(**properties), timeout=0.3)
    assert codes(ending)[0] == "timeout"
    assert local.told > MAX_BLANKS
    assert local.closed == 1


@pytest.mark.parametrize("begun", ["", "{", '{"n": ', '{"n": 1', '{"n": 1,', '{"m": "'])
async def test_blanks_before_and_within_a_value_do_not_end_it(begun: str) -> None:
    """They are no whole value, however many."""
    if begun.endswith('"'):
        asked, then = request(schema={"type": "object"}), " "
    else:
        asked, then = request(schema=SCHEMA), "\n"
    local = Model(begun, then=then, pause=0.001)
    ending = await ask_local(local, asked, timeout=0.3)
    assert codes(ending) == ["timeout", None]


async def test_endless_text_ends_at_its_length() -> None:
    """The other ordinary limit."""
    ending = await ask_local(FakeBackend(babbles(" " * 1_000_000)), request())
    assert codes(ending)[0] == "length"


async def test_whole_value_that_breaks_the_schema_is_no_answer() -> None:
    """Also where only the validator sees it, and off the event loop where that would take long."""
    for schema, text in (
        ({**SCHEMA, "not": {"properties": {"n": {"const": 12345678}}}}, VALUE),
        ({"type": "array", "uniqueItems": True, "contains": {"const": "never"}}, orjson.dumps(list(range(20_000))).decode()),
    ):  # fmt: skip
        local = Model(text, then="\n")
        config = replace(config_of(), chains={"default": Chain(name="default", deployments=("local",))})
        resources = make_test_resources(config, {"local": local})
        ending = await run(resources, request(schema=schema))
        await resources.aclose()
        assert isinstance(ending.event, Failed)
        assert set(codes(ending)) == {"schema_violation"}
        assert local.running == 0


# Over a connection.


class EndlessServer:
    """Sends an answer's pieces, and then one piece for ever; `left` is set when its client goes away."""

    def __init__(self, pieces: list[bytes], then: bytes | None) -> None:
        self._pieces = pieces
        self._then = then
        self._runner: web.AppRunner | None = None
        self.left = asyncio.Event()
        self.calls = 0
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application()
        for path in ("/v1/chat/completions", "/v1/messages", "/api/chat"):
            app.router.add_post(path, self._chat)
        for path in ("/api/tags", "/api/ps"):
            app.router.add_get(path, self._models)
        self._runner = web.AppRunner(app, handler_cancellation=True)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.calls += 1
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for piece in self._pieces:
                await response.write(piece)
            while self._then is not None:
                await response.write(self._then)
                await asyncio.sleep(0.001)
        except (asyncio.CancelledError, ConnectionError):
            self.left.set()
            raise
        return response

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"models": [{"name": "stand-in:latest"}]})


@asynccontextmanager
async def executor_on(protocol: str, url: str) -> AsyncIterator[Resources]:
    """Resources with one priced deployment of this protocol."""
    deployment = Deployment(
        name="it",
        model=f"{protocol}/stand-in",
        api_base=url,
        api_key="sk-made-up",
        timeout=10.0,
        input_usd_per_mtok=INPUT_USD,
        output_usd_per_mtok=OUTPUT_USD,
    )
    deployments = {"it": deployment}
    rng = random.Random(1)
    resources = Resources(
        Config(deployments=deployments, chains={"default": Chain(name="default", deployments=("it",))}),
        backends=Backends(deployments),
        health=Health(rng=rng),
        pricing=Pricing(deployments.values()),
        refusals=RefusalDetector("anchored"),
        rng=rng,
    )
    try:
        yield resources
    finally:
        await resources.aclose()


def _pieces(protocol: str, *texts: str) -> list[bytes]:
    """The pieces of a stream that hold these texts, and what comes before them, but not its end."""
    return pieces_of(protocol, Said(text=texts))[: -1 if protocol == "ollama" else -2]


def _text_piece(protocol: str, text: str) -> bytes:
    return _pieces(protocol, text)[-1]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_connection_is_closed_and_the_model_stops(protocol: str, mode: Any) -> None:
    """The server sees that its client has left as soon as the value is taken; its tokens are estimated and cost."""
    server = EndlessServer(_pieces(protocol, '{"n": 123', "45678}"), _text_piece(protocol, "\n"))
    async with server, executor_on(protocol, server.url) as resources:
        ending = await run(resources, request(schema=SCHEMA, stream=mode))
        async with asyncio.timeout(2):
            await server.left.wait()
        assert server.calls == 1
    result = result_of(ending)
    assert result.answer.content == {"n": 12345678}
    wire = result.data["usage"]
    assert wire["estimated"] is True
    assert wire["prompt_tokens"] == PROMPT_TOKENS
    assert wire["completion_tokens"] >= len(VALUE) / 4
    assert result.cost_usd == wire["prompt_tokens"] * 1.0 + wire["completion_tokens"] * 3.0


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_words_after_the_value_are_no_answer_over_a_connection_either(protocol: str) -> None:
    """And the connection is closed as well."""
    pieces = [*_pieces(protocol, VALUE, "\n \n"), _text_piece(protocol, "That is all.")]
    server = EndlessServer(pieces, _text_piece(protocol, "\n"))
    async with server, executor_on(protocol, server.url) as resources:
        ending = await run(resources, request(schema=SCHEMA))
        async with asyncio.timeout(2):
            await server.left.wait()
    assert set(codes(ending)) == {"invalid_json"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_few_blanks_and_an_end_over_a_connection(protocol: str) -> None:
    """An ordinary answer, all of it."""
    pieces = pieces_of(protocol, Said(text=(VALUE, *"\n \n")))
    async with EndlessServer(pieces, None) as server, executor_on(protocol, server.url) as resources:
        result = result_of(await run(resources, request(schema=SCHEMA)))
    assert (result.answer.content, result.answer.raw_text) == ({"n": 12345678}, f"{VALUE}\n \n")


def test_estimate_counts_text_wherever_it_stands() -> None:
    """In parts too, and beside what is no text; nothing is not a token."""
    parts = [{"type": "text", "text": "12345"}, {"type": "image_url", "image_url": {"url": "data:" + "x" * 1000}}]
    messages = ({"role": "user", "content": parts}, {"role": "assistant", "content": None}, {"role": "assistant"})
    assert estimated_usage(Call(messages=messages), 9) == Usage(prompt_tokens=2, completion_tokens=3, estimated=True)
    assert estimated_usage(Call(messages=()), 0) == Usage(estimated=True)
    calls = [
        {"id": "c", "function": {"name": "write", "arguments": "x" * 4000}}
    ]  # earlier ones, which are read as well
    spoken = ({"role": "assistant", "content": None, "tool_calls": calls},)
    assert 1000 < estimated_usage(Call(messages=spoken), 0).prompt_tokens < 1050
    assert (Usage(prompt_tokens=1) + Usage(estimated=True)).estimated
