"""What `check`, health and warming learn of a deployment."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from llm_routerd.core.errors import BackendError
from llm_routerd.core.outcome import AttemptCode
from tests.support.calling import KEY, PROTOCOLS, ask, backend_for, tell
from tests.support.faulty import FaultyServer
from tests.support.recordings import LLAMA_SERVER, OLLAMA, ReplayServer, recording
from tests.support.standin import StandIn


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("fault", ["refused", "no-such-host", "401", "500", "html", "no-body", "not-http", "no-answer"])
async def test_probe_says_what_is_wrong(fault: str, protocol: str) -> None:
    """It raises nothing, and its line for a person holds no key."""
    async with FaultyServer(fault, protocol) as server, backend_for(protocol, server.url) as backend:
        report = await backend.probe()
        assert (report.ok, report.loaded) == (False, None)
        assert report.detail
        assert KEY not in report.detail


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_probe_knows_whether_the_model_is_there(protocol: str) -> None:
    """It spends no tokens for that."""
    async with StandIn({"stand-in": "", "other": ""}) as server:
        async with backend_for(protocol, server.url) as backend:
            assert (await backend.probe()).ok
        async with backend_for(protocol, server.url, model=f"{protocol}/missing") as backend:
            report = await backend.probe()
            assert not report.ok
            assert "missing" in report.detail
        assert not server.calls


async def test_warming_loads_the_model_into_ollamas_memory() -> None:
    """Cold before, loaded after; no prompt is sent."""
    async with StandIn(load_ms=5) as server, backend_for("ollama", server.url, keep_alive="30m") as backend:
        assert (await backend.probe()).loaded is False
        await backend.warm()
        assert (await backend.probe()).loaded is True
        assert not server.calls


async def test_warming_what_is_not_there_is_an_error() -> None:
    """Its code is that of the call that would follow."""
    async with StandIn() as server, backend_for("ollama", server.url, model="ollama/missing") as backend:
        with pytest.raises(BackendError) as raised:
            await backend.warm()
        assert raised.value.code is AttemptCode.NOT_FOUND


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
async def test_elsewhere_warming_does_nothing(protocol: str) -> None:
    """Nobody is asked."""
    async with FaultyServer("500", protocol) as server, backend_for(protocol, server.url) as backend:
        await backend.warm()
        assert server.requests == 0


async def test_recorded_lists_of_models_are_read() -> None:
    """Ollama's list holds the tag `latest`; llama.cpp serves its one model under any name."""
    async with ReplayServer(recording(OLLAMA, "api-tags").raw) as replay:
        async with backend_for("ollama", replay.url, model="ollama/tiny") as backend:
            assert (await backend.probe()).ok
        async with backend_for("ollama", replay.url, model="ollama/tiny:7b") as backend:
            assert not (await backend.probe()).ok
    replayed = ReplayServer(recording(LLAMA_SERVER, "models").raw)
    async with replayed as replay, backend_for("openai", replay.url, model="openai/anything") as backend:
        assert (await backend.probe()).ok


@pytest.mark.parametrize("base", ["/v1", "/v1/", "/v1/chat/completions", "", "/"])
async def test_api_base_of_openai_may_have_its_path_or_not(base: str) -> None:
    """Operators write it either way."""
    async with StandIn() as server, backend_for("openai", server.url + base) as backend:
        assert (await tell(backend, ask())).text
        assert (await backend.probe()).ok


@pytest.mark.parametrize("base", ["/v1", "/v1/", "/v1/messages", "", "/"])
async def test_api_base_of_anthropic_may_have_its_path_or_not(base: str) -> None:
    """Likewise."""
    async with StandIn() as server, backend_for("anthropic", server.url + base) as backend:
        assert (await tell(backend, ask())).text


@pytest.mark.parametrize(
    ("params", "capabilities", "is_told"),
    [
        ({"reasoning_effort": "low"}, ["completion"], True),
        ({"think": True}, ["tools", "completion"], True),
        ({"reasoning_effort": "low"}, ["completion", "thinking"], False),
        ({}, ["completion"], False),
        ({"reasoning_effort": "low"}, None, False),
    ],
)
async def test_check_says_that_an_ollama_model_does_not_think(
    params: dict[str, Any], capabilities: list[str] | None, *, is_told: bool
) -> None:
    """Where the deployment asks it to; the server's own word for it."""
    answers = {
        "/api/tags": {"models": [{"name": "stand-in:latest"}]},
        "/api/ps": {"models": []},
        "/api/show": {"capabilities": capabilities},
    }

    async def answer(asked: web.Request) -> web.Response:
        return web.json_response(answers[asked.path])

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    server = TestServer(application)
    async with server, backend_for("ollama", str(server.make_url("")), params=params) as backend:
        report = await backend.probe()
        assert report.ok
        assert ("refuses think, left out" in report.detail) is is_told
