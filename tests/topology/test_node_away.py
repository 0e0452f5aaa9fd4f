"""A node of a Cluster is away with its replica: the shards of the others are served, and everybody is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from redis.crc import key_slot

from llm_routerd.protocol.keys import Layout
from tests.support.binaries import server_binary
from tests.support.clusters import cluster
from tests.support.daemons import ServiceManager, page, write_config
from tests.support.eventually import eventually
from tests.support.processes import DaemonProcess, StandInProcess, free_port

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.clusters import Cluster

__all__ = ["cluster", "server_binary"]

LAYOUT = Layout("llm", 3)


async def test_daemon_starts_while_a_node_of_its_cluster_is_away(cluster: Cluster, tmp_path: Path) -> None:
    """Systemd would end one that is not READY in time; who balances load hears that it is not whole."""
    slots = [int(key_slot(keys.dead.encode())) for keys in LAYOUT.keys]
    away, there = cluster.node_of(slots[0]), cluster.node_of(slots[2])
    assert away is not there
    for node in cluster.nodes:
        node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
    cluster.kill(cluster.replica_of(slots[0]))
    cluster.kill(away)
    port = free_port()
    async with ServiceManager(tmp_path) as systemd, StandInProcess({"tiny": "", "big": ""}) as models:
        config = write_config(tmp_path, cluster.url, models.url, listen=f"127.0.0.1:{port}")
        config.write_text(config.read_text().replace("[daemon]", "shards = 3\n[daemon]", 1))
        async with DaemonProcess("--config", str(config), environ=systemd.environ) as daemon:
            await systemd.until(lambda manager: manager.told("READY"))
            await daemon.until_logged("redis_not_ready")
            status, line = await page(port, "/readyz")
            assert (status, line.startswith("Redis away: {llm:")) == (503, True)
            entry = there.command("XADD", LAYOUT.keys[2].requests("normal"), "*", "prompt", "hello")
            await eventually(lambda: there.command("EXISTS", LAYOUT.keys[2].events(entry)))
            await asyncio.to_thread(cluster.restart, away)
            await systemd.until(lambda manager: manager.told("STATUS")[-1].startswith("answering"))
            assert (await page(port, "/readyz"))[0] == 200
            assert len(daemon.logged("ready")) == 1
