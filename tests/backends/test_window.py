"""How much of a prompt a model takes, as each kind of server tells it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from llm_routerd.protocol.call import BackendError, Window
from tests.backends.recordings import LLAMA_SERVER, OLLAMA, recording
from tests.standin.server import StandIn
from tests.support.calling import backend_for

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping


@asynccontextmanager
async def serving(answers: Mapping[str, Any]) -> AsyncGenerator[tuple[str, list[tuple[str, bytes]]]]:
    """A server that has these paths and no others: its address, and what it was asked."""
    asked: list[tuple[str, bytes]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.path, await request.read()))
        if request.path not in answers:
            return web.json_response({"error": "no such path"}, status=404)
        found = answers[request.path]
        body = found if isinstance(found, bytes) else orjson.dumps(found)
        return web.Response(body=body, content_type="application/json")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("/")).rstrip("/"), asked


def listing(**entry: Any) -> dict[str, Any]:
    """Of one model."""
    return {"object": "list", "data": [{"id": "stand-in", "object": "model", **entry}]}


LM_STUDIO = {"/v1/models": listing(owned_by="organization_owner")}
LLAMA = {"/v1/models": listing(owned_by="llamacpp", meta={"n_ctx": 8_192, "n_ctx_train": 131_072})}


@pytest.mark.parametrize(
    ("answers", "most"),
    [
        ({"/v1/models": listing(owned_by="vllm", max_model_len=32_768)}, 32_768),
        ({"/v1/models": listing(context_length=16_384)}, 16_384),
        ({"/v1/models": listing(context_window=131_072)}, 131_072),
        ({"/v1/models": recording(LLAMA_SERVER, "models").body}, 4_096),
        ({**LLAMA, "/props": {"default_generation_settings": {"n_ctx": 4_096}, "total_slots": 2}}, 4_096),
        ({**LLAMA, "/props": {"default_generation_settings": "none"}}, 8_192),
        (LLAMA, 8_192),
        ({**LM_STUDIO, "/api/v0/models/stand-in": {"loaded_context_length": 4_096, "max_context_length": 32_768}}, 4_096),
        ({**LM_STUDIO, "/api/v0/models/stand-in": {"max_context_length": 32_768}}, 32_768),
        (LM_STUDIO, None),
        ({"/v1/models": listing()}, None),
        ({"/v1/models": listing(max_model_len="many", context_length=True, context_window=-1, meta=[])}, None),
        ({"/v1/models": {"data": [{"id": "one", "max_model_len": 1}, {"id": "stand-in", "max_model_len": 2}]}}, 2),
        ({"/v1/models": {"data": [{"id": "one", "max_model_len": 1}, {"id": "two", "max_model_len": 2}]}}, None),
        ({"/v1/models": ["stand-in"]}, None),
        ({"/v1/models": {"data": "stand-in"}}, None),
        ({}, None),
    ],
)  # fmt: skip
async def test_servers_that_speak_openais_protocol_tell_it_each_in_its_place(
    answers: Mapping[str, Any], most: int | None
) -> None:
    """None where they do not; what is no count is none."""
    async with serving(answers) as (url, _), backend_for("openai", url) as backend:
        assert await backend.window() == (None if most is None else Window(most=most))


async def test_path_before_the_protocols_own_is_not_that_of_the_servers() -> None:
    """Behind a proxy's path there is the list of models; `/props` is where the server has it."""
    async with (
        serving({"/llm/v1/models": LLAMA["/v1/models"], "/props": {}}) as (url, asked),
        backend_for("openai", f"{url}/llm/v1") as backend,
    ):
        assert await backend.window() == Window(most=8_192)
        assert [path for path, _ in asked] == ["/llm/v1/models", "/props"]


@pytest.mark.parametrize(
    ("answers", "window"),
    [
        (
            {"/api/show": recording(OLLAMA, "api-show").body, "/api/ps": recording(OLLAMA, "api-ps").body},
            Window(most=8_192, now=4_096, is_asked_for=True, loaded=4_096),
        ),
        ({"/api/show": {"model_info": {"a.context_length": 8_192}}}, Window(most=8_192, is_asked_for=True)),
        (
            {"/api/ps": {"models": [{"name": "tiny:latest", "context_length": 7}]}},
            Window(now=7, is_asked_for=True, loaded=7),
        ),
        ({"/api/show": [], "/api/ps": {"models": 7}}, Window(is_asked_for=True)),
        ({}, Window(is_asked_for=True)),
    ],
    ids=["a real one", "not loaded", "no details", "junk", "nothing"],
)
async def test_ollama_tells_what_a_model_was_made_for_and_what_it_has_now(
    answers: Mapping[str, Any], window: Window
) -> None:
    """And takes more where it is asked to."""
    async with serving(answers) as (url, _), backend_for("ollama", url, model="ollama/tiny") as backend:
        assert await backend.window() == window


@pytest.mark.parametrize("protocol", ["anthropic", "litellm"])
async def test_others_tell_nothing(protocol: str) -> None:
    """Whoever owns them refuses what is too long."""
    async with StandIn() as server, backend_for(protocol, server.url) as backend:
        assert await backend.window() is None


async def test_server_that_is_away_raises() -> None:
    """So that it is asked again soon."""
    async with serving({}) as (url, _):
        pass
    async with backend_for("openai", url) as backend:
        with pytest.raises(BackendError):
            await backend.window()


@pytest.mark.parametrize(
    ("params", "num_ctx", "options"),
    [
        ({}, None, None),
        ({}, 16_384, {"num_ctx": 16_384}),
        ({"num_ctx": 8_192}, None, {"num_ctx": 8_192}),
        ({"options": {"num_ctx": 8_192}}, None, {"num_ctx": 8_192}),
    ],
)
async def test_model_is_loaded_for_the_window_of_its_calls(
    params: dict[str, Any], num_ctx: int | None, options: dict[str, Any] | None
) -> None:
    """Else the first call would have it loaded anew."""
    answers = {"/api/generate": {"done": True}}
    async with serving(answers) as (url, asked), backend_for("ollama", url, params=params) as backend:
        await backend.warm(num_ctx=num_ctx)
        assert [orjson.loads(body).get("options") for path, body in asked if path == "/api/generate"] == [options]


@pytest.mark.parametrize(("num_ctx", "sent"), [(None, 16_384), (8_192, 8_192)])
async def test_model_that_is_loaded_is_not_loaded_anew_for_less(num_ctx: int | None, sent: int) -> None:
    """Another worker may have had it loaded with a larger window; what is asked for by name goes before that."""
    loaded = {"models": [{"name": "tiny:latest", "context_length": 16_384}]}
    answers = {"/api/generate": {"done": True}, "/api/ps": loaded}
    async with serving(answers) as (url, asked), backend_for("ollama", url, model="ollama/tiny") as backend:
        assert await backend.loaded_window() == 16_384
        await backend.warm(num_ctx=num_ctx)
        assert orjson.loads(asked[-1][1])["options"] == {"num_ctx": sent}


@pytest.mark.parametrize("protocol", ["openai", "anthropic", "litellm"])
async def test_others_do_not_tell_what_a_model_is_loaded_with(protocol: str) -> None:
    """Nor can they be asked for another window."""
    async with StandIn() as server, backend_for(protocol, server.url) as backend:
        assert await backend.loaded_window() == 0
