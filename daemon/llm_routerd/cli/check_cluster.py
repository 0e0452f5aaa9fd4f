"""The part of `check` that looks at a Cluster: are its slots covered, where do shards lie, who takes over?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.cli.findings import Finding, fail, fine, warn
from llm_routerd.queue.connection import surroundings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm_routerd.protocol.keys import Keys
    from llm_routerd.queue.connection.surroundings import ClusterView


async def check_cluster(url: str, shards: Sequence[Keys]) -> list[Finding]:
    """What a Cluster means for the shards of a queue."""
    view = await surroundings.cluster_of(url)
    if view is None:
        return [warn("cluster", "cannot tell where its slots are", "let this user run CLUSTER SLOTS and CLUSTER NODES")]
    return judge_cluster(view, shards)


def judge_cluster(view: ClusterView, shards: Sequence[Keys]) -> list[Finding]:
    """The Cluster in one line, the nodes that are gone, and each node that has shards."""
    nodes = f"{len(view.nodes)} nodes, {len(view.primaries)} of them with slots"
    missing = surroundings.SLOTS - view.covered
    findings = [
        fail("cluster", f"{nodes}; {missing} slots are nobody's", "give them to a node: CLUSTER ADDSLOTSRANGE")
        if missing
        else fine("cluster", f"{nodes}; all {surroundings.SLOTS} slots are covered")
    ]
    findings += [
        warn("cluster", f"the node {host}:{port} does not answer the others", "start it, or CLUSTER FORGET it")
        for host, port in view.failing
    ]
    return [*findings, *_judge_nodes(view, shards)]


def _judge_nodes(view: ClusterView, shards: Sequence[Keys]) -> list[Finding]:
    lying: dict[tuple[tuple[str, int], ...], list[str]] = {}
    for keys in shards:
        lying.setdefault(view.nodes_of(keys.dead), []).append(keys.prefix)
    findings = []
    for nodes, prefixes in lying.items():
        subject = f"shards {', '.join(prefixes)}"
        if not nodes:
            findings.append(fail(subject, "their slots are nobody's", "give them to a node"))
            continue
        at, *replicas = (f"{host}:{port}" for host, port in nodes)
        gone = {f"{host}:{port}" for host, port in view.failing}
        live = [replica for replica in replicas if replica not in gone]
        if at in gone:
            findings.append(fail(subject, f"at {at}, which does not answer", "start it, or promote a replica"))
        elif live:
            findings.append(fine(subject, f"at {at}, with a replica at {' and '.join(live)}"))
        else:
            findings.append(warn(subject, f"at {at}, without a replica", "add one: CLUSTER REPLICATE"))
    return findings
