"""A whole run with tools, each who has to do with it as their user of users.acl: nothing that any of them does is refused."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from llm_routerd import ToolWorker
from llm_routerd.client import Client
from tests.acceptance.test_systemd import restricted_server
from tests.support.eventually import eventually
from tests.support.fakes import FakeBackend
from tests.support.processes import ROOT
from tests.support.queue import open_client
from tests.support.runs import SWITCH, answers, calls, event_of, turns
from tests.support.workers import run_worker

_REGISTRATION: Any = {**SWITCH, "description": "Switches a lamp."}


async def command(*argv: str) -> str:
    """What `llm-routerd ARGV` prints; it succeeds."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "llm_routerd", *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_a_run_needs_no_right_beyond_those_that_we_ship() -> None:
    """Registered and served, listed, agreed to, answered, audited; and every denial would stand in ACL LOG."""
    acl = (ROOT / "systemd" / "users.acl").read_text().replace("resetpass", "resetpass >pw")
    with restricted_server(acl) as login:
        operator = login("operator", "pw")
        socket = operator.run("CONFIG GET unixsocket")[1].decode()
        url = {
            user: f"unix://{user}:pw@{socket}" for user in ("daemon", "toolworker", "producer", "approver", "auditor")
        }
        acted = []

        async def switch(arguments: dict[str, Any], _call: Any) -> str:
            acted.append(arguments)
            return "it is on"

        model = FakeBackend(turns(calls("switch", lamp="hall"), answers("done")))
        tools = ToolWorker(url["toolworker"], lease_seconds=0.5)
        tools.add("switch", switch, _REGISTRATION)
        async with (
            run_worker(url["daemon"], {"local": model}),
            Client(url["producer"], patience_seconds=5) as producer,
            open_client(f"unix://operator:pw@{socket}") as client,
        ):
            serving = asyncio.create_task(tools.run())
            await eventually(lambda: tools.consumer and operator.run("EXISTS llm:tools:switch"))
            await producer.submit(id="r1", prompt="do it", agent={"tools": ["*"]}, tenant_id="ada")
            asked = await event_of(client, "r1", "tool_call")
            assert "switch" in await command("tools", "--redis", url["approver"])
            await command("confirm", "r1", asked["call_id"], "--redis", url["approver"])
            assert (await producer.result("r1", 10)).type == "result"
            await asyncio.sleep(1.0)  # the leases of both kinds of worker, renewed
            tools.stop()
            await asyncio.wait_for(serving, 10)
        assert acted == [{"lamp": "hall"}]
        audited = [
            json.loads(line) for line in (await command("audit", "--json", "--redis", url["auditor"])).splitlines()
        ]
        told = sorted((entry["kind"], entry["outcome"], entry.get("turn")) for entry in audited)
        assert told == [
            ("confirmation", "confirmed", 1), ("model", "success", 1), ("model", "success", 2), ("tool", "result", 1),
        ]  # fmt: skip
        refused = [dict(zip(entry[::2], entry[1::2], strict=True)) for entry in operator.run("ACL LOG 20")]
        assert [(each[b"username"], each[b"object"]) for each in refused] == []
