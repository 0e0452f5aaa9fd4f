"""A whole gateway: who is let in, what a browser is told, what is counted and logged."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from llm_routerd.config.load import load_config
from llm_routerd.errors import ConfigError
from llm_routerd.gateway.http.gateway import Gateway
from tests.support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from llm_routerd.config.tree import Config

KEYS = '[gateway.keys.acme]\nkey = "acme-secret-1"\ntenant = "acme"\n'
PAGES = 'allow_origins = ["https://chat.lan"]\n'


def configured(directory: Path, redis_url: str, more: str = "") -> Config:
    """Read a configuration."""
    path = directory / "config.toml"
    path.write_text(f'[redis]\nurl = "{redis_url}"\n[gateway]\nlisten = "127.0.0.1:0"\n{more}')
    return load_config(str(path), {})


@asynccontextmanager
async def front(config: Config) -> AsyncIterator[tuple[Gateway, aiohttp.ClientSession]]:
    """A gateway that runs, and a client of it."""
    gateway = Gateway(config)
    await gateway.start()
    running = asyncio.create_task(gateway.run())
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{gateway.port}") as session:
            await eventually(lambda: not gateway.trouble)
            yield gateway, session
    finally:
        await gateway.stop()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def ask(session: aiohttp.ClientSession, method: str, path: str, **more: Any) -> tuple[int, dict[str, str], str]:
    """Status, headers and body."""
    async with session.request(method, path, **more) as response:
        return response.status, dict(response.headers), await response.text()


async def test_only_who_has_a_key_comes_in(tmp_path: Path, valkey_url: str) -> None:
    """Whatever the door, and whatever is not there: nobody learns what there is."""
    async with front(configured(tmp_path, valkey_url, KEYS)) as (_, session):
        for method, path in (
            ("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("POST", "/v1/messages"), ("GET", "/api/tags"),
            ("POST", "/complete"), ("POST", "/v1/requests"), ("GET", "/v1/requests/x/events"), ("GET", "/metrics"),
            ("GET", "/nothing"), ("DELETE", "/v1/requests/x"),
        ):  # fmt: skip
            status, headers, body = await ask(session, method, path)
            assert (status, headers["WWW-Authenticate"]) == (401, 'Bearer realm="llm-routerd"'), path
            assert json.loads(body)
            assert headers["Server"] == "llm-routerd"
        good = {"Authorization": "Bearer acme-secret-1"}
        assert (await ask(session, "GET", "/v1/models", headers=good))[0] == 200
        assert (await ask(session, "GET", "/nothing", headers=good))[0] == 404
        assert (await ask(session, "GET", "/v1/models?api_key=acme-secret-1", headers=good))[0] == 400
        assert (await ask(session, "GET", "/health"))[0] != 401


async def test_a_page_elsewhere_cannot_ask_through_a_browser(tmp_path: Path, valkey_url: str) -> None:
    """Not by its origin, not by a name of its own; nothing has been submitted."""
    async with front(configured(tmp_path, valkey_url)) as (gateway, session):
        body = b'{"model": "default", "messages": [{"role": "user", "content": "x"}]}'
        for headers, expected in (
            ({"Origin": "https://evil.example", "Content-Type": "text/plain"}, 403),
            ({"Host": "evil.example"}, 421),
        ):
            status, told, _ = await ask(session, "POST", "/v1/chat/completions", data=body, headers=headers)
            assert status == expected
            assert not any(name.startswith("Access-Control") for name in told)
        assert gateway.followed == 0


async def test_a_browser_is_told_which_pages_may_ask(tmp_path: Path, valkey_url: str) -> None:
    """Before it asks, which it does without a key; with an answer; and with a failure, so that the page can read it."""
    async with front(configured(tmp_path, valkey_url, PAGES + KEYS)) as (_, session):
        page = {"Origin": "https://chat.lan"}
        asks = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        status, headers, _ = await ask(session, "OPTIONS", "/v1/chat/completions", headers=asks)
        assert (status, headers["Access-Control-Allow-Headers"]) == (204, "authorization")
        for more, expected in (({}, 401), ({"x-api-key": "acme-secret-1"}, 200)):
            status, headers, _ = await ask(session, "GET", "/v1/models", headers=page | more)
            assert (status, headers["Access-Control-Allow-Origin"]) == (expected, "https://chat.lan")
        elsewhere = {"Origin": "https://evil.example"}
        assert (await ask(session, "OPTIONS", "/v1/models", headers=asks | elsewhere))[0] == 403
        _, headers, _ = await ask(session, "GET", "/v1/models", headers=elsewhere | {"x-api-key": "acme-secret-1"})
        assert "Access-Control-Allow-Origin" not in headers


async def test_what_is_answered_is_counted_and_logged(tmp_path: Path, valkey_url: str) -> None:
    """By door and status; the log has a path of the table, who asked, how long, and nothing that he wrote."""
    async with front(configured(tmp_path, valkey_url, KEYS)) as (gateway, session):
        good = {"x-api-key": "acme-secret-1"}
        with capture_logs() as logs:
            await ask(session, "GET", "/v1/models/secret-of-somebody?q=secret", headers=good)
            await ask(session, "POST", "/secret-of-somebody", headers={"x-api-key": "secret-wrong"})
            await ask(session, "POST", "/v1/chat/completions", headers=good, data=b'{"secret": 1}')
            prompt = {"model": "default", "messages": [{"role": "user", "content": "secret"}]}
            asking = asyncio.create_task(ask(session, "POST", "/v1/chat/completions", headers=good, json=prompt))
            await eventually(lambda: gateway.followed)
            assert "under_way 2" in (await ask(session, "GET", "/metrics", headers=good))[2]
            asking.cancel()
            await eventually(lambda: any(line.get("status") == 499 for line in logs))
        lines = [line for line in logs if line["event"] == "http_request" and line["path"] != "/metrics"]
        assert "secret" not in json.dumps(logs).replace("acme-secret", "")
        assert [(line["door"], line["path"], line["status"]) for line in lines] == [
            ("openai", "/v1/models/{model}", 404), ("", "", 401), ("openai", "/v1/chat/completions", 400),
            ("openai", "/v1/chat/completions", 499),
        ]  # fmt: skip
        assert (lines[0]["caller"], lines[0]["tenant"], lines[1]["caller"]) == ("acme", "acme", "")
        assert lines[0]["bytes"] > 0
        page = (await ask(session, "GET", "/metrics", headers=good))[2]
        for sample in (
            'llm_routerd_gateway_requests_total{door="openai",status="404"} 1',
            'llm_routerd_gateway_requests_total{door="openai",status="499"} 1',
            'llm_routerd_gateway_requests_total{door="",status="401"} 1',
            "llm_routerd_gateway_requests_under_way 1",
            "# TYPE llm_routerd_gateway_first_byte_seconds histogram",
        ):
            assert sample in page
        assert "secret" not in page


async def test_another_configuration_is_taken_over_or_refused(tmp_path: Path, valkey_url: str) -> None:
    """One that would let in whoever comes is refused, and what was in force stays so."""
    config = configured(tmp_path, valkey_url, KEYS)
    async with front(config) as (gateway, session):
        bad = configured(tmp_path, valkey_url).gateway
        with pytest.raises(ConfigError, match="without a key"):
            gateway.reload(replace(config, gateway=replace(bad, listen="0.0.0.0:1")))
        assert (await ask(session, "GET", "/v1/models"))[0] == 401
        gateway.reload(configured(tmp_path, valkey_url, KEYS.replace("acme-secret-1", "acme-secret-2")))
        assert (await ask(session, "GET", "/v1/models", headers={"x-api-key": "acme-secret-1"}))[0] == 401
        assert (await ask(session, "GET", "/v1/models", headers={"x-api-key": "acme-secret-2"}))[0] == 200
