"""What a worker knows of the registered tools."""

from __future__ import annotations

import json

from llm_routerd.agents.registration import Tool, Unsound
from llm_routerd.worker.runs.toolbox import Toolbox
from tests.support.queue import open_broker, open_client
from tests.support.runs import ADD, SWITCH, register


async def test_registrations_that_are_none_harm_no_other(broker_url: str) -> None:
    """Of one that is too long nothing is read; a name that is too long is passed over."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await register(client, add=ADD)
        huge = json.dumps({**ADD, "description": "x" * 5_000_000})
        await client.hset("llm:tools", mapping={"huge": huge, "bad": "{", "n" * 65: json.dumps(ADD)})
        tools = await Toolbox(broker).tools()
    assert list(tools) == ["add", "bad", "huge"]
    assert isinstance(tools["add"], Tool)
    assert tools["huge"] == Unsound(f"it has {len(huge)} bytes, more than the 65536 that are accepted")


async def test_registration_that_changes_is_read_anew(broker_url: str) -> None:
    """And one that goes is gone."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        toolbox = Toolbox(broker)
        await register(client, add=ADD)
        first = (await toolbox.tools())["add"]
        assert (await toolbox.tools())["add"] is first
        await register(client, add=SWITCH)
        changed = (await toolbox.tools())["add"]
        assert isinstance(changed, Tool)
        assert changed.confirm is True
        await client.delete("llm:tools")
        assert await toolbox.tools() == {}


async def test_key_of_another_type_has_no_tools(broker_url: str) -> None:
    """Nor any trouble."""
    async with open_client(broker_url) as client, open_broker(broker_url) as broker:
        await client.set("llm:tools", "x")
        assert await Toolbox(broker).tools() == {}
