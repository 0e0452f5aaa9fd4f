"""Three sentinels, a primary and two replicas, as processes; all of it blocks, so a loop calls it in a thread.

Nobody writes to disk: a primary that is started again before another was promoted takes all data with it.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import redis

from tests.support.eventually import waited_for
from tests.support.processes import lasting_port
from tests.support.servers import ValkeyProcess, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

T = TypeVar("T")

SERVICE = "queue"
QUORUM = 2
DOWN_AFTER_MS = 700
FAILOVER_TIMEOUT_MS = 1000
SETTLE_SECONDS = 30.0
# Sentinels ask and tell each other every few seconds; here it is a fraction of one.  On a machine that is busy their
# clock may jump, which is no reason to stand by for half a minute.
_HURRIED = (
    *("info-period", "300", "ping-period", "200", "ask-period", "200", "publish-period", "200"),
    *("election-timeout", "2000", "min-link-reconnect-period", "200", "tilt-period", "1000", "tilt-trigger", "10000"),
)
_QUICK = {"repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0", "repl-ping-replica-period": "1"}


class Sentinels:
    """One service, watched over.

    Attributes:
        servers: the primary at first, then its replicas.
        sentinels: those who watch.
        nodes: all processes.
        url: `redis+sentinel://…` of it.
    """

    def __init__(
        self,
        binary: Path | None = None,
        *,
        replicas: int = 2,
        config: Mapping[str, str] | None = None,
        lines: Sequence[str] = (),
        password: str = "",
        sentinel_password: str = "",
    ) -> None:
        """Prepare it.

        Args:
            binary: what all of it is started from; None: Valkey.
            replicas: how many.
            config: further directives of the servers.
            lines: further lines of the servers' configuration, as `user …`.
            password: of the servers' default user.
            sentinel_password: of the sentinels' own.
        """
        ports = [lasting_port() for _ in range(1 + replicas)]
        auth = {"requirepass": password, "masterauth": password} if password else {}
        self.servers = [
            ValkeyProcess(
                {**_QUICK, **auth, **({"replicaof": f"127.0.0.1 {ports[0]}"} if number else {}), **(config or {})},
                port=port,
                binary=binary,
                lines=lines,
            )
            for number, port in enumerate(ports)
        ]
        self.sentinels = _sentinels(ports, binary, password, sentinel_password)
        self.nodes = [*self.servers, *self.sentinels]
        where = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        self.url = f"redis+sentinel://{f':{password}@' if password else ''}{where}/{SERVICE}/0"
        if sentinel_password:
            self.url += f"?sentinel_password={sentinel_password}"

    def start(self) -> None:
        """Start all; return when it has `settled`."""
        for node in self.nodes:
            self.restart(node)
        self.settled()

    def close(self) -> None:
        """End all, in whatever state they are."""
        for node in self.nodes:
            node.close()

    def primary(self) -> ValkeyProcess:
        """Which server the sentinels name; they agree."""
        return _wait_for("a primary", self._named)

    def failover(self) -> ValkeyProcess:
        """Have the sentinels promote a replica; returns the new primary once they agree on it and it says so."""
        before = self.primary()
        _wait_for("a failover that begins", self._begin_failover)
        return self._promoted_after(before)

    def kill_primary(self) -> ValkeyProcess:
        """SIGKILL the primary; returns it, for `restart`."""
        before = self.primary()
        before.kill()
        return before

    def stop_primary(self) -> ValkeyProcess:
        """SIGSTOP the primary; returns it, for `cont`."""
        before = self.primary()
        before.freeze()
        return before

    def promoted(self, instead_of: ValkeyProcess) -> ValkeyProcess:
        """Wait for another primary; returns it."""
        return self._promoted_after(instead_of)

    @staticmethod
    def cont(node: ValkeyProcess) -> None:
        """SIGCONT what was stopped."""
        node.thaw()

    def restart(self, node: ValkeyProcess) -> None:
        """Start what does not run; a server comes back without data, in the role that it had first."""
        node.start()
        if node in self.sentinels:
            node.command("SENTINEL", "DEBUG", *_HURRIED)

    def settled(self) -> ValkeyProcess:
        """Wait until the sentinels agree, know of each other, and all that runs follows the primary; returns it."""
        return _wait_for("all of it in order", self._in_order)

    def _promoted_after(self, before: ValkeyProcess) -> ValkeyProcess:
        def other() -> ValkeyProcess | None:
            named = self._named()
            return named if named is not before and named is not None and _role(named)[0] == "master" else None

        return _wait_for("another primary", other)

    def _named(self) -> ValkeyProcess | None:
        named = set()
        for sentinel in self.sentinels:
            if sentinel.answers:
                place = sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
                named.add(int(place[1]))
        if len(named) != 1:
            return None
        return next(server for server in self.servers if server.port in named)

    def _begin_failover(self) -> bool:
        """NOGOODSLAVE and INPROG are of the last one, and pass."""
        sentinel = next(sentinel for sentinel in self.sentinels if sentinel.answers)
        sentinel.command("SENTINEL", "FAILOVER", SERVICE)
        return True

    def _in_order(self) -> ValkeyProcess | None:
        primary = self._named()
        if primary is None or not primary.answers or _role(primary)[0] != "master":
            return None
        replicas = [server for server in self.servers if server is not primary and server.answers]
        for server in replicas:
            role = _role(server)
            if role[0] != "slave" or int(role[2]) != primary.port or role[3] != "connected":
                return None
        if len(_role(primary)[2]) < len(replicas):  # it counts one from that one's first word on
            return None
        for sentinel in self.sentinels:
            if sentinel.answers and not self._knows_all(sentinel, primary):
                return None
        return primary

    def _knows_all(self, sentinel: ValkeyProcess, primary: ValkeyProcess) -> bool:
        seen = sentinel.command("SENTINEL", "MASTER", SERVICE)
        replicas = {
            int(replica["port"])
            for replica in sentinel.command("SENTINEL", "REPLICAS", SERVICE)
            if replica["master-link-status"] == "ok" and replica["flags"] == "slave"
        }
        live = {server.port for server in self.servers if server.answers and server is not primary}
        others = len(self.sentinels) - 1
        return seen["flags"] == "master" and int(seen["num-other-sentinels"]) == others and live <= replicas


def _sentinels(ports: Sequence[int], binary: Path | None, password: str, own_password: str) -> list[ValkeyProcess]:
    """Three, who know each other and all servers from the start."""
    members = [(secrets.token_hex(20), lasting_port()) for _ in range(3)]
    service = [f"sentinel monitor {SERVICE} 127.0.0.1 {ports[0]} {QUORUM}"]
    if password:
        service.append(f"sentinel auth-pass {SERVICE} {password}")
    if own_password:
        service.append(f"sentinel sentinel-pass {own_password}")
    service += [
        f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
        f"sentinel failover-timeout {SERVICE} {FAILOVER_TIMEOUT_MS}",
        *(f"sentinel known-replica {SERVICE} 127.0.0.1 {port}" for port in ports[1:]),
    ]
    return [
        ValkeyProcess(
            {"requirepass": own_password} if own_password else {},
            port=port,
            binary=binary,
            lines=[
                f"sentinel myid {name}",
                *service,
                *(f"sentinel known-sentinel {SERVICE} 127.0.0.1 {at} {who}" for who, at in members if who != name),
            ],
            sentinel=True,
        )
        for name, port in members
    ]


def _role(server: ValkeyProcess) -> list[Any]:
    reply: list[Any] = server.command("ROLE")
    return reply


def _wait_for(what: str, find: Callable[[], T | None]) -> T:
    return waited_for(what, find, seconds=SETTLE_SECONDS, passing=redis.RedisError)


def running_sentinels(binary: Path | None = None, **options: Any) -> AbstractContextManager[Sentinels]:
    """One service of the caller's own (`options` as of `Sentinels`), as `running` has it."""
    return running(Sentinels(binary, **options))


@pytest.fixture
def sentinels(server_binary: Path) -> Iterator[Sentinels]:
    """One service, of each binary."""
    with running_sentinels(server_binary) as service:
        yield service
