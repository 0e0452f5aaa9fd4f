"""No prompt, no answer and no key leaves by the log, the metrics or a reason, whatever goes wrong.

Every text that must not get out holds a canary; the daemon then meets all kinds of trouble at level debug.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import redis

from tests.standin.server import StandIn
from tests.support.daemons import page, producer, running_daemon, write_config
from tests.support.processes import free_port
from tests.support.queue import open_client
from tests.support.servers import ValkeyProcess

if TYPE_CHECKING:
    from pathlib import Path

    from llm_routerd.client import Client, ClientEvent

_PROMPT, _ANSWER = "canaryprompt", "canaryanswer"
_KEY, _CREDENTIAL, _PASSWORD = "sk-canarykey0123456789abcdef", "canarycredential", "canarypassword"
_CANARY = "canary"

_MODELS = {
    "tiny": f"answer='{_ANSWER} one two'",
    "big": f"answer='{_ANSWER} three'",
    "wrong": f"""answer='{{"n": "{_ANSWER}", "{_ANSWER}": 1}}'""",
    "broken": f"""answer='{{"n": {_ANSWER}'""",
    "refusing": f"answer='I cannot help with that, {_ANSWER}.'",
    "cut": f"answer='{_ANSWER} is cut off' cut_after=2",
    "erring": f"answer='{_ANSWER} breaks' error_after=2",
    "thinking": f"reasoning={_ANSWER} answer={_ANSWER}",
}
_SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


class Echo:
    """A server of the worst manners: its error quotes the whole request, key and all.

    Attributes:
        seen: the requests.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = (
            line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
        )
        quoted = (head + await reader.readexactly(int(next(lengths, b"0")))).decode()
        self.seen.append(quoted)
        body = json.dumps({"error": {"message": f"cannot serve {quoted}", "type": quoted, "code": quoted}}).encode()
        status = "401 Unauthorized" if b"/unauthorized/" in head else "400 Bad Request"
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()


def _more_deployments(standin_url: str, echo_url: str) -> str:
    """A deployment for each kind of trouble; each is asked for by its name."""
    tables = [
        f'[deployments.{name}]\nmodel = "ollama/{name}"\napi_base = "{standin_url}"\nlocal = true\n' for name in _MODELS
    ]
    echoes = {
        "echo400": ("openai", "", "api_key = '${env:CANARY_KEY}'"),
        "echo401": ("openai", "/unauthorized", "api_key = '${file:KEY_FILE}'"),
        "echo_anthropic": ("anthropic", "/unauthorized", "api_key = '${env:CANARY_KEY}'"),
        "echo_ollama": ("ollama", "", ""),
    }
    for name, (provider, path, key) in echoes.items():
        tables.append(f'[deployments.{name}]\nmodel = "{provider}/m"\napi_base = "{echo_url}{path}"\n{key}\n')
    tables.append(
        '[deployments.gone]\nmodel = "openai/m"\napi_base = "http://canarycredential:canarypassword@127.0.0.1:9"\n'
    )
    return "\n".join(tables)


async def test_no_prompt_answer_or_key_gets_out(tmp_path: Path) -> None:
    """Grepped: all output at level debug, every metrics event, the metrics page, every reason and dead letter's reason."""
    (tmp_path / "key").write_text(_KEY)
    valkey, port, echo = ValkeyProcess(tcp=True), free_port(), Echo()
    url = valkey.tcp_url.replace("://", f"://:{_PASSWORD}@")
    try:
        await asyncio.to_thread(_start_with_password, valkey)
        async with StandIn(_MODELS) as models, await asyncio.start_server(echo.answer, "127.0.0.1", 0) as server:
            echo_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            more = _more_deployments(models.url, echo_url).replace("KEY_FILE", str(tmp_path / "key"))
            config = write_config(tmp_path, url, models.url, listen=f"127.0.0.1:{port}", level="debug", more=more)
            environ = {"CANARY_KEY": _KEY, "REDIS_URL": url}
            async with running_daemon(config, environ=environ) as daemon, producer(url) as client:
                finals = await _all_kinds_of_trouble(client)
                _, metrics_page = await page(port, "/metrics")
                async with open_client(url) as reader:
                    metrics = await reader.xrange("llm_router_metrics")
                    letters = await reader.xrange("llm:dead")
                await daemon.stop()
            # The canaries are alive: where they belong, they are.
            assert any(_ANSWER in str(final.data.get("content")) for final in finals)
            assert any(_PROMPT in fields["data"] for _, fields in letters)
            assert any(_KEY in request and _PROMPT in request for request in echo.seen)
            assert len(metrics) >= len(finals)
            _must_not_sing("log", "\n".join(daemon.output))
            _must_not_sing("metrics page", metrics_page)
            for _, fields in metrics:
                _must_not_sing("metrics event", fields["data"])
            for final in finals:
                reasons = json.dumps([each["reason"] for each in final.data.get("attempts", [])])
                # Why an answer breaks the schema may quote a scalar of it: these events are its own requester's.
                _must_not_sing("reasons", reasons.replace(_ANSWER, ""))
                _must_not_sing("message", final.data.get("message", ""))
            for _, fields in letters:
                _must_not_sing("dead letter's message", fields["message"] + fields["reason"])
    finally:
        valkey.close()


def _must_not_sing(where: str, text: str) -> None:
    found = [line for line in text.splitlines() if _CANARY in line]
    assert not found, f"{where}: {found[:3]}"


def _start_with_password(valkey: ValkeyProcess) -> None:
    valkey.start()
    with redis.Redis(unix_socket_path=str(valkey.socket_path)) as client:
        client.config_set("requirepass", _PASSWORD)


async def _all_kinds_of_trouble(client: Client) -> list[ClientEvent]:
    """Good requests and bad ones, each model, streamed and not, with a schema and without."""
    ids = []
    names = [*_MODELS, "echo400", "echo401", "echo_anthropic", "echo_ollama", "gone"]
    for model in names:
        for stream in (False, "live"):
            ids.append(await client.submit(prompt=_PROMPT, model=model, stream=stream))
            ids.append(await client.submit(prompt=_PROMPT, model=model, stream=stream, schema=_SCHEMA))
    ids.append(await client.submit(prompt=_PROMPT, deadline_ms=1))
    requests: list[dict[str, Any]] = [
        {"prompt": _PROMPT, "nonsense": _PROMPT},
        {"prompt": [_PROMPT]},
        {"prompt": _PROMPT, "messages": [{"role": "user", "content": _PROMPT}]},
        {"messages": [{"role": _PROMPT, "content": _PROMPT}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": _PROMPT}}]}]},
        {"prompt": _PROMPT, "params": {"temperature": _PROMPT}},
        {"prompt": _PROMPT, "stream": _PROMPT},
        {"prompt": _PROMPT, "schema": {"type": _PROMPT}},
        {"prompt": _PROMPT, "schema": {"$ref": f"http://127.0.0.1:9/{_PROMPT}"}},
        {"prompt": _PROMPT, "schema": {"type": "string", "pattern": f"(?={_PROMPT})"}},
        {"prompt": _PROMPT, "timeout_ms": _PROMPT},
        {"prompt": _PROMPT * 100_000},
        {"prompt": _PROMPT, "traceparent": _PROMPT},
    ]
    entries: list[dict[Any, Any]] = [
        *({"data": json.dumps(request)} for request in requests),
        {"data": f'{{"{_PROMPT}'},
        {"prompt": _PROMPT.encode() + b"\xff"},
        {"id": "no spaces", "prompt": _PROMPT},
    ]
    added: list[Any] = [await client.redis.xadd("llm:requests", entry) for entry in entries]
    return [await client.result(request_id, 20) for request_id in [*ids, *(entry.decode() for entry in added)]]
