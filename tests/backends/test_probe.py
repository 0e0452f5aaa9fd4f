"""What `check`, health and warming learn of a deployment."""

from __future__ import annotations

import asyncio
from typing import Any, Self

import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from llm_routerd.protocol.call import BackendError
from llm_routerd.protocol.codes import AttemptCode
from tests.backends.faulty import FaultyServer
from tests.backends.recordings import LLAMA_SERVER, OLLAMA, ReplayServer, recording
from tests.standin.server import StandIn
from tests.support.calling import KEY, PROTOCOLS, ask, backend_for, tell


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


class Pages:
    """A server that knows these paths, and answers 404 to all others."""

    def __init__(self, pages: dict[str, Any]) -> None:
        self._pages = pages
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        page = self._pages.get(path)
        body = orjson.dumps({"error": "no such page"} if page is None else page)
        status = b"404 Not Found" if page is None else b"200 OK"
        writer.write(b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n%s" % (status, body))
        writer.close()


def _list(*names: str, owner: str = "somebody") -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model", "owned_by": owner} for name in names]}


_LLAMA_CPP = {"models": [{"name": "x.gguf", "model": "x.gguf"}], **_list("x.gguf", owner="llamacpp")}
_OLLAMA = {
    "/api/version": {"version": "0.33.0"},
    "/api/tags": {"models": [{"name": "stand-in:latest"}]},
    "/api/ps": {"models": []},
}


@pytest.mark.parametrize(
    ("pages", "ok", "told"),
    [
        ({"/v1/models/stand-in": {"id": "stand-in"}, "/v1/messages": {}}, True, "answers and knows the model"),
        ({"/v1/models": _list("stand-in", "other"), "/v1/messages": {}}, True, "answers and lists the model"),
        ({"/v1/models": _list("x.gguf", owner="llamacpp"), "/v1/messages": {}}, True, "answers, lists another model"),
        ({"/v1/models": _list("one", "other")}, False, "answers, but has no model stand-in"),
        (
            {"/v1/models": {"data": [{"id": "x", "aliases": ["stand-in"]}, {"id": "y"}]}, "/v1/messages": {}},
            True,
            "answers and lists",
        ),
        ({"/v1/messages": {}}, True, "answers, but lists no models"),
        ({}, False, "answers, but has no /v1/messages"),
        ({"/v1/models": _list("stand-in"), "/v1/chat/completions": {}}, False, "answers, but has no /v1/messages"),
        (_OLLAMA | {"/v1/models": _list("stand-in", owner="library"), "/v1/messages": {}}, True, "it cuts prompts"),
        (_OLLAMA, False, 'it seems to be Ollama: write model = "ollama/stand-in"'),
    ],
)
async def test_server_of_anthropics_protocol_need_not_answer_for_each_model(
    pages: dict[str, Any], ok: bool, told: str
) -> None:
    """Only Anthropic has that page: others list their models, serve the one they have, or tell nothing of it."""
    async with Pages(pages) as server, backend_for("anthropic", server.url) as backend:
        report = await backend.probe()
    assert (report.ok, told in report.detail) == (ok, True), report


@pytest.mark.parametrize(
    ("pages", "told"),
    [
        ({"/v1/models": _LLAMA_CPP}, "llama.cpp"),
        ({"/v1/models": _LLAMA_CPP, "/api/tags": _LLAMA_CPP}, "llama.cpp"),
        ({"/v1/models": _list("m", owner="vllm")}, "vLLM"),
        ({"/v1/models": _list("m", owner="organization_owner")}, "LM Studio"),
        ({"/v1/models": _list("m", owner="vllm"), "/api/version": {"version": "0.9"}}, "vLLM"),
        ({"/v1/models": _list("m"), "/api/tags": ["odd"]}, "a server that speaks OpenAI's protocol"),
    ],
)
async def test_server_that_is_no_ollama_is_told_for_what_it_is(pages: dict[str, Any], told: str) -> None:
    """With the prefix to write in the place of `ollama/`."""
    async with Pages(pages) as server, backend_for("ollama", server.url) as backend:
        report = await backend.probe()
    assert not report.ok
    assert report.detail == f'is not Ollama; it seems to be {told}: write model = "openai/stand-in"'


@pytest.mark.parametrize(("path", "end"), [("/llm/v1/models", "/llm/v1"), ("/llm/models", "/llm")])
async def test_server_that_is_no_ollama_is_told_under_a_path_too(path: str, end: str) -> None:
    """With the path that its `api_base` would have."""
    async with Pages({path: _list("stand-in")}) as server, backend_for("ollama", f"{server.url}/llm") as backend:
        report = await backend.probe()
    assert not report.ok
    assert report.detail.endswith(f'write model = "openai/stand-in" and let api_base end in {end}')


async def test_server_of_which_nothing_is_known_is_told_by_its_answer() -> None:
    """No guess."""
    async with Pages({}) as server, backend_for("ollama", server.url) as backend:
        report = await backend.probe()
    assert (report.ok, report.detail) == (False, "status 404")


@pytest.mark.parametrize(
    ("pages", "ok", "told"),
    [
        ({}, False, "answers, but has no /v1/chat/completions"),
        ({"/v1/models": _list("stand-in")}, False, "answers, but has no /v1/chat/completions"),
        ({"/v1/chat/completions": {}}, True, "answers, but lists no models"),
        (
            _OLLAMA | {"/v1/models": _list("stand-in", owner="library"), "/v1/chat/completions": {}},
            True,
            "it cuts prompts",
        ),
    ],
)
async def test_server_without_the_path_of_the_protocol_is_told(pages: dict[str, Any], ok: bool, told: str) -> None:
    """Whatever it lists, nothing can be asked of it; and of an Ollama by which prefix it is asked not to cut."""
    async with Pages(pages) as server, backend_for("openai", server.url) as backend:
        report = await backend.probe()
    assert (report.ok, told in report.detail) == (ok, True), report


async def test_ollama_that_answers_to_no_list_of_openais_is_told() -> None:
    """An old Ollama has no `/v1`."""
    async with Pages(_OLLAMA) as server, backend_for("openai", server.url) as backend:
        report = await backend.probe()
    assert not report.ok
    assert 'it seems to be Ollama: write model = "ollama/stand-in"' in report.detail


async def test_real_ollama_and_llama_server_are_known_by_their_own_answers() -> None:
    """As recorded."""
    for name, protocol in ((OLLAMA, "ollama"), (LLAMA_SERVER, "openai")):
        page = recording(name, "api-tags" if name == OLLAMA else "models").raw
        async with ReplayServer(page) as replay, backend_for(protocol, replay.url, model=f"{protocol}/tiny") as backend:
            assert (await backend.probe()).ok
    async with (
        ReplayServer(recording(LLAMA_SERVER, "models").raw) as replay,
        backend_for("ollama", replay.url) as other,
    ):
        assert "it seems to be llama.cpp" in (await other.probe()).detail
