"""Fields that a server refuses by name: asked again without them, once, and not sent to it any more."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Self

import orjson
import pytest
from aiohttp import web

from llm_routerd.backends.optional_fields import OPTIONAL_FIELDS, refused_field
from llm_routerd.protocol.call import BackendError
from llm_routerd.protocol.codes import AttemptCode as Code
from tests.backends.forms import Said, stream_of
from tests.support.calling import ask, backend_for, tell

if TYPE_CHECKING:
    from collections.abc import Callable

    Refuse = Callable[[dict[str, Any]], tuple[int, Any] | None]

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
# A call with all that may be left out, for each protocol that leaves out anything.
EVERYTHING: dict[str, dict[str, Any]] = {
    "openai": {
        "schema": SCHEMA,
        "tools": (TOOL,),
        "tool_choice": "none",  # with tools that may be called a schema goes in words alone
        "params": {"reasoning_effort": "low", "parallel_tool_calls": False, "temperature": 0.5, "seed": 7},
    },
    "ollama": {"schema": SCHEMA, "params": {"reasoning_effort": "high", "temperature": 0.5}},
}
OPTIONAL = {
    "openai": ("stream_options", "parallel_tool_calls", "response_format", "reasoning_effort"),
    "ollama": ("think",),
}
FIELDS = [(protocol, field) for protocol, fields in OPTIONAL.items() for field in fields]


class Picky:
    """A server that refuses requests as `refuse` says, and answers the others; `bodies` holds what it was sent."""

    def __init__(self, protocol: str, refuse: Refuse, answer: str = "Four.") -> None:
        self._refuse = refuse
        self._answer = stream_of(protocol, Said(text=(answer,)))
        self._runner: web.AppRunner | None = None
        self.bodies: list[dict[str, Any]] = []
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application()
        for path in ("/v1/chat/completions", "/api/chat"):
            app.router.add_post(path, self._chat)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        refusal = self._refuse(body)
        if refusal is not None:
            return web.Response(status=refusal[0], body=orjson.dumps(refusal[1]), content_type="application/json")
        return web.Response(body=self._answer, content_type="text/event-stream")

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "stand-in"}]})


def unknown_parameter(field: str) -> tuple[int, Any]:
    """OpenAI's and Azure's way."""
    message = f"Unknown parameter: '{field}'."
    error = {"message": message, "type": "invalid_request_error", "param": field, "code": "unknown_parameter"}
    return 400, {"error": error}


def _extra_forbidden(field: str) -> tuple[int, Any]:
    """FastAPI's way, which Mistral has."""
    detail = {"type": "extra_forbidden", "loc": ["body", field], "msg": "Extra inputs are not permitted", "input": 1}
    return 422, {"detail": [detail]}


def if_sent(field: str, say: Callable[[str], tuple[int, Any]]) -> Refuse:
    """Refuse requests that have this field, in these words."""
    return lambda body: say(field) if field in body else None


def _no_thinking(body: dict[str, Any]) -> tuple[int, Any] | None:
    return (400, {"error": '"stand-in" does not support thinking'}) if "think" in body else None


@pytest.mark.parametrize("say", [unknown_parameter, _extra_forbidden])
@pytest.mark.parametrize(("protocol", "field"), FIELDS)
async def test_refused_field_is_left_out_once_and_for_all(
    protocol: str, field: str, say: Callable[[str], tuple[int, Any]]
) -> None:
    """The call is made again without it and answered; the next call leaves it out at once; nothing else is lost."""
    async with Picky(protocol, if_sent(field, say)) as server, backend_for(protocol, server.url) as backend:
        assert (await tell(backend, ask(**EVERYTHING[protocol]))).text == "Four."
        assert [field in body for body in server.bodies] == [True, False]
        assert (await tell(backend, ask(**EVERYTHING[protocol]))).text == "Four."
        assert [field in body for body in server.bodies] == [True, False, False]
    full, *others = server.bodies
    for body in others:
        assert full.keys() - body.keys() == {field}
        assert {name: body[name] for name in body} == {name: full[name] for name in body}


async def test_what_is_learned_is_one_deployments_own() -> None:
    """Another deployment of the same server is asked as if nothing had been."""
    refuse = if_sent("stream_options", unknown_parameter)
    async with Picky("openai", refuse) as server:
        for _ in range(2):
            async with backend_for("openai", server.url) as backend:
                await tell(backend, ask())
    assert ["stream_options" in body for body in server.bodies] == [True, False, True, False]


@pytest.mark.parametrize(
    ("protocol", "field", "status", "error"),
    [
        ("ollama", "think", 400, {"error": '"llama3.1:8b" does not support thinking'}),
        ("ollama", "think", 400, {"error": 'think value "high" is not supported for this model'}),
        # Ollama's OpenAI-compatible side (ollama 12561) says `think` of what was sent as `reasoning_effort`.
        ("openai", "reasoning_effort", 400, {"error": {"message": 'think value "low" is not supported for this model'}}),
        ("openai", "reasoning_effort", 400, {"error": {"message": '"llama3.1:8b" does not support thinking'}}),
        ("openai", "reasoning_effort", 400, {"error": {"message": "`reasoning_effort` is not supported with this model"}}),
        # DeepSeek, Azure (openai-python 1820), LM Studio, vLLM, llama.cpp, Groq.
        ("openai", "response_format", 400, {"error": {"message": "This response_format type is unavailable now"}}),
        ("openai", "response_format", 400, {"error": {"message": "response_format value as json_schema is enabled only for api versions 2024-08-01-preview and later"}}),
        ("openai", "response_format", 400, {"error": "'response_format.type' must be 'json_object' or 'text'"}),
        ("openai", "response_format", 400, {"error": {"message": "The provided JSON schema contains features not supported by xgrammar."}}),
        ("openai", "response_format", 400, {"error": {"message": 'JSON schema conversion failed:\nUnrecognized schema: {"a":1}'}}),
        ("openai", "stream_options", 400, {"error": {"message": "property 'stream_options' is unsupported"}}),
        ("openai", "stream_options", 404, {"error": {"message": "Unrecognized request argument supplied: stream_options"}}),
        ("openai", "stream_options", 400, {"message": "Unknown field include_usage"}),
        # What it would take stands beside what it does not.
        ("openai", "reasoning_effort", 400, {"error": "Unknown parameter reasoning_effort. Known: model, messages, stream_options, response_format"}),
        ("openai", "parallel_tool_calls", 400, {"error": "Known: stream_options, response_format. Parameter not supported: parallel_tool_calls"}),
    ],
)  # fmt: skip
async def test_words_of_real_servers(protocol: str, field: str, status: int, error: Any) -> None:
    """Each names the field in its own way, and is understood."""

    def refuse(body: dict[str, Any]) -> tuple[int, Any] | None:
        return (status, error) if field in body else None

    async with Picky(protocol, refuse) as server, backend_for(protocol, server.url) as backend:
        assert (await tell(backend, ask(**EVERYTHING[protocol]))).text == "Four."
    assert server.bodies[0].keys() - server.bodies[1].keys() == {field}
    assert len(server.bodies) == 2


async def test_schema_that_is_not_taken_stands_in_words() -> None:
    """As in every call to a server that is not the provider's own; a schema of `true` needs no words about itself."""
    refuse = if_sent("response_format", unknown_parameter)
    async with Picky("openai", refuse) as server, backend_for("openai", server.url) as backend:
        await tell(backend, ask("How many?", schema=SCHEMA))
        await tell(backend, ask("How many?", schema=True))
    first, second, third, fourth = (body["messages"] for body in server.bodies)
    assert second == first
    assert second[1:] == [{"role": "user", "content": "How many?"}]
    assert second[0]["role"] == "system"
    assert orjson.dumps(SCHEMA).decode() in second[0]["content"]
    assert len(third) == len(fourth) == 2
    assert "JSON only" in fourth[0]["content"]


async def test_two_refused_fields_are_learned_one_by_one() -> None:
    """Each call answers, and in the end one request does."""

    def refuse(body: dict[str, Any]) -> tuple[int, Any] | None:
        return next((_extra_forbidden(name) for name in ("stream_options", "reasoning_effort") if name in body), None)

    counts = []
    async with Picky("openai", refuse) as server, backend_for("openai", server.url) as backend:
        for _ in range(3):
            before = len(server.bodies)
            assert (await tell(backend, ask(**EVERYTHING["openai"]))).text == "Four."
            counts.append(len(server.bodies) - before)
    assert counts == [3, 2, 1]


@pytest.mark.parametrize("second", [(400, {"error": "The prompt is bad."}), (500, {"error": "broken"})])
@pytest.mark.parametrize(("protocol", "field"), FIELDS)
async def test_nothing_is_learned_of_a_call_that_fails_either_way(
    protocol: str, field: str, second: tuple[int, Any]
) -> None:
    """The next call sends the field again; the fault is that of the call without it."""

    def refuse(body: dict[str, Any]) -> tuple[int, Any] | None:
        return unknown_parameter(field) if field in body else second

    async with Picky(protocol, refuse) as server, backend_for(protocol, server.url) as backend:
        for _ in range(2):
            with pytest.raises(BackendError) as raised:
                await tell(backend, ask(**EVERYTHING[protocol]))
            assert raised.value.status == second[0]
    assert [field in body for body in server.bodies] == [True, False] * 2


@pytest.mark.parametrize(("protocol", "field"), FIELDS)
async def test_field_that_is_refused_without_being_sent_is_no_reason_to_ask_for_ever(protocol: str, field: str) -> None:
    """Two requests, and the fault; the second, which was refused too, teaches nothing."""
    refuses_always = Picky(protocol, lambda _: unknown_parameter(field))
    async with asyncio.timeout(5), refuses_always as server, backend_for(protocol, server.url) as backend:
        with pytest.raises(BackendError):
            await tell(backend, ask(**EVERYTHING[protocol]))
    assert [field in body for body in server.bodies] == [True, False]


async def test_one_callers_value_takes_nothing_from_the_others() -> None:
    """A schema or an effort that a server cannot do with is left out for whoever asks for it, and for nobody else."""
    odd = {"type": "object", "not": {"const": {}}}

    def refuse(body: dict[str, Any]) -> tuple[int, Any] | None:
        if "not" in body.get("response_format", {}).get("json_schema", {}).get("schema", {}):
            return 400, {"error": {"message": "Invalid schema for response_format 'answer': 'not' is not permitted."}}
        if body.get("reasoning_effort") == "minimal":
            return 400, {"error": {"message": "Unsupported value: 'reasoning_effort' does not support 'minimal'"}}
        return None

    async with Picky("openai", refuse) as server, backend_for("openai", server.url) as backend:
        for _ in range(2):
            await tell(backend, ask(schema=odd, params={"reasoning_effort": "minimal"}))
        server.bodies.clear()
        await tell(backend, ask(schema=SCHEMA, params={"reasoning_effort": "low"}))
        await tell(backend, ask(schema=odd, params={"reasoning_effort": "minimal"}))
    good, bad = server.bodies
    assert good["response_format"]["json_schema"]["schema"] == SCHEMA
    assert good["reasoning_effort"] == "low"
    assert "response_format" not in bad
    assert "reasoning_effort" not in bad


def _echo(body: dict[str, Any]) -> tuple[int, Any]:
    """Pydantic's, which repeats what it was given."""
    detail = {"type": "model_type", "loc": ["body"], "msg": "unexpected keyword, not allowed", "input": body}
    return 422, {"detail": [detail]}


@pytest.mark.parametrize("protocol", OPTIONAL)
async def test_server_that_repeats_the_request_is_asked_a_bounded_number_of_times(protocol: str) -> None:
    """Once for each field that could be meant; and no field that is not optional is left out, nothing is learned."""
    async with Picky(protocol, _echo) as server, backend_for(protocol, server.url) as backend:
        for _ in range(2):
            server.bodies.clear()
            with pytest.raises(BackendError) as raised:
                await tell(backend, ask("stream_options think response_format", **EVERYTHING[protocol]))
            assert raised.value.code is Code.UPSTREAM
            assert 1 <= len(server.bodies) <= 1 + len(OPTIONAL[protocol])
            first = server.bodies[0]
            assert set(OPTIONAL[protocol]) <= first.keys()
            for body in server.bodies:
                assert first.keys() - body.keys() <= set(OPTIONAL[protocol])


@pytest.mark.parametrize("field", OPTIONAL["openai"])
async def test_fields_that_are_merely_repeated_are_not_lost(field: str) -> None:
    """One call may be asked without them; the calls after it leave out what is really refused."""

    def refuse(body: dict[str, Any]) -> tuple[int, Any] | None:
        if field not in body:
            return None
        error = {"type": "extra_forbidden", "input": body, "msg": "Extra inputs are not permitted", "loc": [field]}
        return 422, {"detail": [error]}

    async with Picky("openai", refuse) as server, backend_for("openai", server.url) as backend:
        assert (await tell(backend, ask(**EVERYTHING["openai"]))).text == "Four."
        first = server.bodies[0]
        server.bodies.clear()
        assert (await tell(backend, ask(**EVERYTHING["openai"]))).text == "Four."
    assert [first.keys() - body.keys() for body in server.bodies] == [{field}]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"error": "Unknown parameter: 'temperature'."}),
        (400, {"error": "Unsupported role in messages"}),
        (401, {"error": "stream_options not supported"}),
        (429, {"error": "stream_options not supported"}),
        (500, {"error": "stream_options not supported"}),
        (503, {"error": "response_format is unavailable"}),
        (400, {"error": "stream_options"}),
        (404, {"error": "model 'stand-in' not found"}),
    ],
)
@pytest.mark.parametrize("protocol", OPTIONAL)
async def test_any_other_error_is_one_request(protocol: str, status: int, error: Any) -> None:
    """A field that is not optional, or no refusal of one: nothing is asked again."""
    async with Picky(protocol, lambda _: (status, error)) as server, backend_for(protocol, server.url) as backend:
        with pytest.raises(BackendError):
            await tell(backend, ask(**EVERYTHING[protocol]))
    assert len(server.bodies) == 1


@pytest.mark.parametrize("protocol", OPTIONAL)
async def test_server_that_refuses_nothing_gets_one_request(protocol: str) -> None:
    """With all that was asked for."""
    async with Picky(protocol, lambda _: None) as server, backend_for(protocol, server.url) as backend:
        await tell(backend, ask(**EVERYTHING[protocol]))
    (body,) = server.bodies
    assert set(OPTIONAL[protocol]) <= body.keys()


async def test_calls_at_the_same_time_do_not_hinder_each_other() -> None:
    """Each is answered, and what they learn is the same."""
    refuse = if_sent("stream_options", unknown_parameter)
    async with Picky("openai", refuse) as server, backend_for("openai", server.url) as backend:
        told = await asyncio.gather(*(tell(backend, ask()) for _ in range(5)))
        assert [each.text for each in told] == ["Four."] * 5
        server.bodies.clear()
        await tell(backend, ask())
    assert len(server.bodies) == 1


async def test_check_names_what_is_refused_and_what_that_costs() -> None:
    """It asks with a body that can have no answer, and says nothing of a server that refuses nothing."""

    def refuse(body: dict[str, Any]) -> tuple[int, Any] | None:
        for name in ("stream_options", "response_format"):
            if name in body:
                return _extra_forbidden(name)
        return None if body.get("messages") else (422, {"error": "messages: a list is wanted"})

    async with Picky("openai", refuse) as server, backend_for("openai", server.url) as backend:
        report = await backend.probe()
        assert report.ok
        assert all(body.get("messages") is None for body in server.bodies)
        assert "refuses stream_options, left out: tokens are not counted" in report.detail
        assert "refuses response_format, left out: a schema stands in words alone" in report.detail
        assert "reasoning_effort" not in report.detail
        server.bodies.clear()
        assert (await tell(backend, ask())).text == "Four."
        assert "stream_options" in server.bodies[0]  # a call learns for itself
    async with Picky("openai", lambda _: (400, {"error": "messages"})) as server:
        async with backend_for("openai", server.url) as backend:
            assert "refuses" not in (await backend.probe()).detail
        assert len(server.bodies) == 2  # the path, and then the fields


async def test_check_names_what_calls_have_learned() -> None:
    """Also where the server says nothing of it to a body without messages."""

    def refuse(body: dict[str, Any]) -> tuple[int, Any] | None:
        if not body.get("messages"):
            return 400, {"error": "no messages"}
        return unknown_parameter("reasoning_effort") if "reasoning_effort" in body else None

    async with Picky("openai", refuse) as server, backend_for("openai", server.url) as backend:
        await tell(backend, ask(params={"reasoning_effort": "low"}))
        assert "refuses reasoning_effort" in (await backend.probe()).detail


async def test_check_ends_with_a_server_that_refuses_everything_for_ever() -> None:
    """It stops asking when nothing is left to leave out."""
    async with Picky("openai", _echo) as server, backend_for("openai", server.url) as backend:
        assert (await backend.probe()).ok
        assert len(server.bodies) <= 1 + len(OPTIONAL_FIELDS)


def test_hostile_error_is_looked_at_quickly() -> None:
    """However often it names and refuses."""
    began = time.process_time()
    for body in (b"think unknown " * 5000, b"unknown" * 9000, b"thinkthink_think " * 4000, b"\xff" * 65_536):
        refused_field(400, body)
    assert time.process_time() - began < 1.0
