"""The settings of docs/scale.md: each configuration is sound, and the ACL of a sharded queue lets everybody do his part."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import redis

from llm_routerd.config.load import load_config
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import Layout
from tests.standin.server import StandIn
from tests.support.daemons import running_daemon, write_config
from tests.support.eventually import eventually
from tests.support.processes import ROOT
from tests.support.servers import ValkeyProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_TEXT = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
_CONFIGS = re.findall(r"^```toml\n(.*?)^```$", _TEXT, re.MULTILINE | re.DOTALL)
_LAYOUT = Layout("llm", 4)


@pytest.mark.parametrize("text", _CONFIGS)
def test_configuration_is_sound(text: str, tmp_path: Path) -> None:
    """As the daemon reads it."""
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    load_config(str(path), {})


@pytest.fixture
def restricted() -> Iterator[ValkeyProcess]:
    """A server with users.acl as the document rewrites it; all passwords are `pw`."""
    (command,) = re.findall(r"^```sh\n(sed .*users\.acl)\n```$", _TEXT, re.MULTILINE)
    made = subprocess.run(["sh", "-c", command], cwd=ROOT, check=True, capture_output=True, text=True, timeout=10)
    acl = made.stdout.replace("user default off resetpass", "user default on nopass ~* &* +@all")
    server = ValkeyProcess({"aclfile": "users.acl"}, tcp=True)
    (server.directory / "users.acl").write_text(acl.replace("resetpass", "resetpass >pw"), encoding="utf-8")
    try:
        server.start()
        yield server
    finally:
        server.close()


def _final(client: redis.Redis, request_id: str) -> str | None:
    """How a request has ended; None: not yet."""
    key = _LAYOUT.keys_of(request_id).events(request_id)
    found: Any = client.xrange(key, FINAL_ID, FINAL_ID)
    return str(found[0][1]["type"]) if found else None


async def test_acl_of_a_sharded_queue_lets_daemon_producer_and_metrics_in(
    restricted: ValkeyProcess, tmp_path: Path
) -> None:
    """In all shards; what the daemon does without was no key and no channel."""
    ids = [f"r{number}" for number in range(8)]
    async with StandIn({"tiny": "", "big": ""}) as models:
        config = write_config(tmp_path, f"redis://daemon:pw@127.0.0.1:{restricted.port}/0", models.url)
        config.write_text(config.read_text().replace("[daemon]", "shards = 4\n[daemon]", 1))
        async with running_daemon(config):
            with redis.Redis(port=restricted.port, username="producer", password="pw", decode_responses=True) as client:
                for each in ids:
                    client.xadd(_LAYOUT.keys_of(each).requests("normal"), {"id": each, "prompt": "hello"})
                await eventually(lambda: all(_final(client, each) == "result" for each in ids))
    with redis.Redis(port=restricted.port, username="metrics", password="pw") as client:
        assert sum(client.xlen(_LAYOUT.metrics_channel(shard, "llm_router_metrics")) for shard in range(4)) == len(ids)
    refused = [each for each in restricted.command("ACL", "LOG") if each["reason"] in {"key", "channel"}]
    assert refused == []
