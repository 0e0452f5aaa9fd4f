"""The gateway as the user `gateway` of users.acl: it has what it needs, and nothing that it does is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.acceptance.test_systemd import restricted_server
from tests.standin.server import StandIn
from tests.support.daemons import running_daemon, write_config
from tests.support.processes import ROOT, GatewayProcess, free_port

if TYPE_CHECKING:
    from pathlib import Path

_CHAT = {"model": "default", "messages": [{"role": "user", "content": "begin"}]}


async def test_nothing_that_it_does_is_refused(tmp_path: Path) -> None:
    """Answers, streams, what is queued, what is over, cancelling, agreeing, the overview, its own check."""
    acl = (ROOT / "systemd" / "users.acl").read_text().replace("resetpass", "resetpass >pw")
    port = free_port()
    with restricted_server(acl) as login:
        operator = login("operator", "pw")
        socket = operator.run("CONFIG GET unixsocket")[1].decode()
        async with StandIn({"tiny": "", "big": ""}) as models:
            table = f'[gateway]\nlisten = "127.0.0.1:{port}"\n'
            (tmp_path / "daemon").mkdir()
            worker = write_config(tmp_path / "daemon", f"unix://daemon:pw@{socket}", models.url)
            config = write_config(tmp_path, f"unix://gateway:pw@{socket}", models.url, more=table)
            async with (
                GatewayProcess("--config", str(config)) as gateway,
                aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
            ):
                await gateway.until_ready()

                async def ask(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
                    async with session.request(method, path, json=body, headers=headers) as response:
                        return response.status, await response.text()

                assert (await ask("POST", "/v1/requests", {"prompt": "x", "id": "queued"}))[0] == 202
                assert (await ask("GET", "/v1/requests/queued"))[0] == 202
                assert (await ask("GET", "/v1/requests/nobodys"))[0] == 404
                assert (await ask("DELETE", "/v1/requests/queued"))[0] < 300
                async with running_daemon(worker):
                    for stream in (False, True):
                        status, told = await ask("POST", "/v1/chat/completions", {**_CHAT, "stream": stream})
                        assert status == 200, told
                    headers = {"Idempotency-Key": "again"}
                    for _ in range(2):
                        assert (await ask("POST", "/v1/chat/completions", _CHAT, **headers))[0] == 200
                    assert '"type":"result"' in (await ask("GET", "/v1/requests/again"))[1].replace(" ", "")
                    assert (await ask("GET", "/v1/requests/again/events"))[0] == 200
                    assert (await ask("GET", "/v1/requests/again/stream?offset=-1"))[0] == 200
                    assert (await ask("POST", "/v1/requests/again/confirmations/c1", {"approve": True}))[0] >= 400
                    status, seen = await ask("GET", "/v1/overview")
                    assert status == 200, "".join(str(e) for e in operator.run("ACL LOG 20"))
                    assert json.loads(seen)["lanes"]
                    assert (await ask("GET", "/health"))[0] == 200
                    assert (await ask("GET", "/metrics"))[0] == 200
                assert gateway.exit_status is None
        refused = [dict(zip(entry[::2], entry[1::2], strict=True)) for entry in operator.run("ACL LOG 20")]
        assert [(each[b"username"], each[b"object"]) for each in refused] == []
