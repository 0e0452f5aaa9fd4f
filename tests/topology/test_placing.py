"""The lines of docs/scale.md that place shards on the primaries of a Cluster."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from redis.crc import key_slot

from llm_routerd.protocol.keys import Layout
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from tests.support.clusters import Cluster

LAYOUT = Layout("llm", 16)
PRIMARIES = 3


def test_lines_place_shards_evenly_with_what_they_hold(cluster: Cluster) -> None:
    """As they fall, eight of sixteen are on the first node; what stood in them has moved along."""
    if shutil.which("redis-cli") is None:
        pytest.skip("no redis-cli here")
    slots = [key_slot(keys.dead.encode()) for keys in LAYOUT.keys]
    assert sorted(sum(cluster.node_of(slot) is node for slot in slots) for node in cluster.nodes[:PRIMARIES]) == [
        4,
        4,
        8,
    ]
    for shard, keys in enumerate(LAYOUT.keys):
        for number in range(3):
            cluster.node_of(slots[shard]).command("XADD", keys.events(f"{number} of it"), "1-0", "type", "token")
    (lines,) = re.findall(
        r"^```sh\n(place\(\).*?)^```$", (ROOT / "docs" / "scale.md").read_text(), re.MULTILINE | re.DOTALL
    )
    nodes = [f"127.0.0.1:{node.port}" for node in cluster.nodes[:PRIMARIES]]
    program = ["sh", "-eu", "-c", lines + 'place_all 16 "$@"', "sh", *nodes]
    done = subprocess.run(program, check=False, timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    cluster.settled()
    for shard, keys in enumerate(LAYOUT.keys):
        node = cluster.node_of(slots[shard])
        assert node is cluster.nodes[shard % PRIMARIES], f"shard {shard}: {done.stdout}"
        assert sorted(node.command("KEYS", f"{keys.prefix}:*")) == [
            keys.events(f"{number} of it") for number in range(3)
        ]
