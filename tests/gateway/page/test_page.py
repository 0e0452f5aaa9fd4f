"""The page's paths: what is served, and with which headers."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from llm_routerd.client import Client, Multiplexer
from llm_routerd.gateway.admission import Caller, is_open
from llm_routerd.gateway.http.exchange import Exchange
from llm_routerd.gateway.http.page import OVERVIEW_PATH, PATHS
from tests.gateway.application import open_site, serving
from tests.support.workers import make_config

SOURCES = {path.name: path.read_text() for path in resources.files("llm_routerd.gateway").joinpath("page").iterdir()}


@pytest.mark.parametrize("path", PATHS.values())
async def test_what_the_page_is_made_of_is_served_and_shut(broker_url: str, path: str) -> None:
    """Nothing is loaded from elsewhere, nothing inline runs, no other page frames it."""
    async with open_site(broker_url) as site:
        async with site.http.get(path) as response:
            assert response.status == 200
            policy = dict(part.strip().split(" ", 1) for part in response.headers["Content-Security-Policy"].split(";"))
            shut = ("default-src", "base-uri", "form-action", "frame-ancestors")
            assert {policy[name] for name in shut} == {"'none'"}
            assert {policy[name] for name in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Referrer-Policy"] == "no-referrer"
            tag = response.headers["ETag"]
        async with site.http.get(path, headers={"If-None-Match": tag}) as response:
            assert (response.status, await response.read()) == (304, b"")


def test_all_of_it_is_given_without_a_key_and_the_overview_is_not() -> None:
    """Where else should a key be typed in?"""
    assert all(is_open(path) for path in PATHS.values())
    assert not is_open(OVERVIEW_PATH)


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


async def test_the_overview_is_json_that_nobody_keeps(broker_url: str) -> None:
    """It is of this moment, and of this caller."""
    async with open_site(broker_url, Caller(name="ann", tenant="ada")) as site:
        await site.queue("ada:1")
        status, headers, told = await site.get(OVERVIEW_PATH)
        assert (status, headers["Content-Type"], headers["Cache-Control"]) == (200, "application/json", "no-store")
        assert (told["tenant"], told["lanes"][1]["waiting"]) == ("ada", 1)
        assert {"default", "small"} <= set(told["models"])


async def test_redis_that_is_away_is_a_503() -> None:
    """What it said is for the operator; the page itself is there."""
    url = "redis://127.0.0.1:1/0"
    async with Client(url, patience_seconds=0) as client:
        exchange = Exchange(make_config(url), client, Multiplexer(client, url))
        async with serving(exchange, Caller()) as (http, _, _):
            async with http.get(OVERVIEW_PATH) as response:
                assert (response.status, (await response.json())["error"]["code"]) == (503, "unavailable")
                assert response.headers["Retry-After"]
            async with http.get("/") as response:
                assert response.status == 200
