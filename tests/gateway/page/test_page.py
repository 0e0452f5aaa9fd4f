"""The page's paths: what is served, and with which headers."""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from llm_routerd.errors import BrokerError
from llm_routerd.gateway.fault import RefusedError
from llm_routerd.gateway.http.page import OVERVIEW_PATH, PATHS, add_page
from llm_routerd.gateway.overview import Overview, Sums, Today

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

NOTHING = Overview(
    at_ms=1,
    tenant=None,
    lanes=(),
    running=(),
    more_running=0,
    confirmations=(),
    workers=(),
    deployments=(),
    today=Today(midnight=0, known_since=None, sums=Sums()),
    dead_letters=0,
    models=(),
)
SOURCES = {path.name: path.read_text() for path in resources.files("llm_routerd.gateway").joinpath("page").iterdir()}


async def see(request: web.Request) -> Overview:
    """What the query asks for."""
    match request.query.get("end"):
        case "broker":
            raise BrokerError("away")
        case "timeout":
            raise TimeoutError
        case _:
            return NOTHING


@web.middleware
async def border(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """As the application's."""
    try:
        return await handler(request)
    except RefusedError as error:
        return web.json_response({"code": error.fault.code}, status=error.fault.status)


@pytest.fixture
async def client() -> AsyncIterator[TestClient[web.Request, web.Application]]:
    """Of a server that has the page alone."""
    app = web.Application(middlewares=[border])
    add_page(app.router, see)
    async with TestClient(TestServer(app)) as client:
        yield client


@pytest.mark.parametrize("path", PATHS.values())
async def test_what_the_page_is_made_of_is_served_and_shut(
    client: TestClient[web.Request, web.Application], path: str
) -> None:
    """Nothing is loaded from elsewhere, nothing inline runs, no other page frames it."""
    async with client.get(path) as response:
        assert response.status == 200
        policy = dict(part.strip().split(" ", 1) for part in response.headers["Content-Security-Policy"].split(";"))
        assert (
            policy["default-src"]
            == policy["base-uri"]
            == policy["form-action"]
            == policy["frame-ancestors"]
            == "'none'"
        )
        assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        tag = response.headers["ETag"]
    async with client.get(path, headers={"If-None-Match": tag}) as response:
        assert (response.status, await response.read()) == (304, b"")


def test_every_file_of_the_folder_is_served() -> None:
    """And nothing that is not there."""
    assert PATHS.keys() == SOURCES.keys()


def test_no_source_breaks_the_policy_or_puts_text_in_as_markup() -> None:
    """Neither inline scripts and styles, nor addresses elsewhere, nor what parses text."""
    everything = "\n".join(SOURCES.values())
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function|\.srcdoc", everything
    )
    assert not re.search(r"""<[^>]*\s(style|on\w+)=|<style|javascript:""", SOURCES["index.html"])
    assert set(re.findall(r"https?://[^\s\"'<>]+", everything)) <= {"http://www.w3.org/2000/svg"}


async def test_the_overview_is_json_that_nobody_keeps(client: TestClient[web.Request, web.Application]) -> None:
    """It is of this moment, and of this caller."""
    async with client.get(OVERVIEW_PATH) as response:
        assert (response.status, response.content_type) == (200, "application/json")
        assert response.headers["Cache-Control"] == "no-store"
        assert (await response.json())["today"]["sums"]["requests"] == 0


@pytest.mark.parametrize("end", ["broker", "timeout"])
async def test_redis_that_cannot_be_looked_at_is_a_503(
    client: TestClient[web.Request, web.Application], end: str
) -> None:
    """What it said is for the operator."""
    async with client.get(OVERVIEW_PATH, params={"end": end}) as response:
        assert (response.status, await response.json()) == (503, {"code": "unavailable"})
