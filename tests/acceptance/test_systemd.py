from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from llm_routerd.config.tree import DaemonConfig
from llm_routerd.service.gateway import GRACE_SECONDS
from tests.support.servers import ValkeyProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

_SYSTEMD = Path(__file__).parents[2] / "systemd"
_UNITS = ("llm-routerd.service", "llm-routerd@.service")
_GATEWAY = "llm-routerd-gateway.service"
_BRIDGE = "llm-routerd-mcp-bridge.service"
_LANES = ("llm:requests", "llm:requests:high", "llm:requests:low")
_USERS = ("operator", "daemon", "producer", "canceller", "gateway", "metrics", "toolworker", "approver", "auditor")

_needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def settings(unit: str) -> dict[str, list[str]]:
    """Return a unit file's settings, each with its values in order."""
    found: dict[str, list[str]] = {}
    for line in (_SYSTEMD / unit).read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.fixture(params=(*_UNITS, _GATEWAY, _BRIDGE))
def installed_unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a unit as `make install` would leave it, with a command that exists."""
    prefix = tmp_path / "prefix"
    (prefix / "bin").mkdir(parents=True)
    command = prefix / "bin" / "llm-routerd"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    # systemd checks an instance of a template, not the template.
    name: str = request.param
    unit = tmp_path / name.replace("@.", "@1.")
    unit.write_text((_SYSTEMD / name).read_text().replace("@PREFIX@", str(prefix)))
    return unit


@_needs_systemd
def test_systemd_finds_nothing_wrong_with_the_unit(installed_unit: Path) -> None:
    """Not one warning either: a setting that systemd does not know is ignored, and protects nobody."""
    run = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", installed_unit],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@_needs_systemd
def test_the_unit_is_rated_two_or_better(installed_unit: Path) -> None:
    """The threshold is in tenths; above it, the exit status is not 0."""
    run = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", installed_unit],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Overall exposure level" in run.stdout, run.stderr
    assert run.returncode == 0, run.stdout


def test_the_template_is_as_strict_as_the_single_unit() -> None:
    """Two files that must say the same do so."""
    single, template = (settings(unit) for unit in _UNITS)
    differing = {key for key in single.keys() | template.keys() if single.get(key) != template.get(key)}
    assert differing == {
        "Description",
        "After",
        "ExecStart",
        "Environment",
        "EnvironmentFile",
        "StateDirectory",  # an embedded server is the single unit's
        "StateDirectoryMode",
    }


def test_the_gateway_is_kept_as_strictly_as_the_daemon() -> None:
    """It reads what strangers write; and it keeps nothing, and has no key of a model."""
    daemon, gateway = settings(_UNITS[0]), settings(_GATEWAY)
    differing = {key for key in daemon.keys() | gateway.keys() if daemon.get(key) != gateway.get(key)}
    assert differing == {
        "Description",
        "After",
        "ExecStart",
        "TimeoutStopSec",
        "Environment",
        "LoadCredential",
        "StateDirectory",
        "StateDirectoryMode",
    }
    assert not any("api_key" in each for each in gateway["LoadCredential"])
    (stop_seconds,) = gateway["TimeoutStopSec"]
    assert float(stop_seconds) > GRACE_SECONDS + 5


def test_the_bridge_and_what_it_starts_are_kept_as_strictly_as_the_daemon() -> None:
    """It has no key of a model, and a folder of its own; nothing of it is read again while it runs."""
    daemon, bridge = settings(_UNITS[0]), settings(_BRIDGE)
    differing = {key for key in daemon.keys() | bridge.keys() if daemon.get(key) != bridge.get(key)}
    assert differing == {
        "Description",
        "After",
        "ExecStart",
        "ExecReload",
        "Environment",
        "LoadCredential",
        "StateDirectory",
    }
    assert not any("api_key" in each for each in bridge["LoadCredential"])


@pytest.mark.parametrize("unit", _UNITS)
def test_stopping_takes_longer_than_draining(unit: str) -> None:
    """Otherwise systemd kills the daemon in the middle of its drain."""
    (stop_seconds,) = settings(unit)["TimeoutStopSec"]
    assert float(stop_seconds) > DaemonConfig().drain_seconds + 5


@pytest.mark.parametrize("unit", [*_UNITS, _GATEWAY, _BRIDGE])
def test_a_unit_does_what_operators_rely_on(unit: str) -> None:
    """The settings that no rating asks for."""
    expected = {
        "Type": ["notify"],
        "NotifyAccess": ["main"],
        "Restart": ["on-failure"],
        "RestartPreventExitStatus": ["78"],
        "KillMode": ["mixed"],
        "LimitCORE": ["0"],
    }
    found = settings(unit)
    assert found.items() >= expected.items()
    assert {"WatchdogSec", "StartLimitBurst", "StartLimitIntervalSec", "LoadCredential"} <= found.keys()


class Session:
    """A bare connection: no retries, and replies as the server sends them."""

    def __init__(self, socket_path: Path, user: str, password: str) -> None:
        """Prepare a session; the first command logs in."""
        connection_class: Any = redis.UnixDomainSocketConnection
        self._connection = connection_class(
            path=str(socket_path), username=user, password=password, retry=Retry(NoBackoff(), 0), protocol=2
        )

    def run(self, command: str) -> Any:
        """Run a command given as words; raises what the server answers."""
        self._connection.send_command(*command.split())
        return self._connection.read_response()

    def may(self, command: str) -> bool:
        """Whether the server lets this user run a command, whatever comes of it."""
        try:
            self.run(command)
        except redis.exceptions.NoPermissionError:
            return False
        except redis.ResponseError:
            return True
        return True

    def close(self) -> None:
        """Disconnect."""
        self._connection.disconnect()


Login = Callable[[str, str], Session]


@contextmanager
def restricted_server(acl: str) -> Iterator[Login]:
    """Run a Valkey under an ACL file; gives a function that makes a session of a user and a password."""
    server = ValkeyProcess({"aclfile": "users.acl"})
    file = server.directory / "users.acl"
    file.write_text("")
    sessions: list[Session] = []

    def login(user: str, password: str) -> Session:
        sessions.append(Session(server.socket_path, user, password))
        return sessions[-1]

    try:
        server.start()
        file.write_text(acl)
        login("default", "").run("ACL LOAD")
        yield login
    finally:
        for session in sessions:
            session.close()
        server.close()


@pytest.fixture(scope="module")
def sessions() -> Iterator[dict[str, Session]]:
    """Return a session of each user of users.acl, all of whom have a password here."""
    acl = (_SYSTEMD / "users.acl").read_text().replace("resetpass", "resetpass >pw")
    with restricted_server(acl) as login:
        sessions = {user: login(user, "pw") for user in _USERS}
        operator = sessions["operator"]
        for lane in _LANES:
            operator.run(f"XGROUP CREATE {lane} llm-router 0 MKSTREAM")
        operator.run("XADD llm:events:a 1-0 type attempt data {}")
        operator.run("SET other private")
        operator.run("XGROUP CREATE llm:tools:weather llm-tools 0 MKSTREAM")
        yield sessions


def test_nobody_can_log_in_before_a_password_is_given() -> None:
    """The file as it ships opens no door: not with an empty password, and not without one."""
    with restricted_server((_SYSTEMD / "users.acl").read_text()) as login:
        for user in (*_USERS, "default"):
            for password in ("", "pw"):
                with pytest.raises((redis.AuthenticationError, redis.ResponseError)):
                    login(user, password).run("PING")


@pytest.mark.parametrize("user", ["producer", "canceller"])
@pytest.mark.parametrize(
    "command",
    [
        *(f"XADD {lane} * prompt hello" for lane in _LANES),
        "XREAD STREAMS llm:events:a 0-0",
        "XRANGE llm:events:a 9007199254740991-0 9007199254740991-0",
        "XREVRANGE llm:events:a + - COUNT 1",
        "XINFO GROUPS llm:requests",
        "XINFO CONSUMERS llm:requests llm-router",
        "XLEN llm:requests",
        "TIME",
        "PING",
    ],
)
def test_a_producer_adds_requests_and_reads_events(sessions: dict[str, Session], user: str, command: str) -> None:
    """That is all that protocol.md asks of one."""
    assert sessions[user].may(command)


_NOT_A_PRODUCERS = [
    "XRANGE llm:requests - +",
    "XREAD STREAMS llm:requests 0-0",
    "XREADGROUP GROUP llm-router thief STREAMS llm:requests >",
    "XACK llm:requests llm-router 1-0",
    "XDEL llm:requests 1-0",
    "XTRIM llm:requests MAXLEN 0",
    "XGROUP DESTROY llm:requests llm-router",
    "XCLAIM llm:requests llm-router thief 0 1-0",
    "DEL llm:requests",
    "DEL llm:events:a",
    "EXPIRE llm:requests 1",
    "XDEL llm:events:a 1-0",
    "XADD llm:dead * x y",
    "XRANGE llm:dead - +",
    "XADD llm:requests:urgent * x y",
    "XADD llm_router_metrics * x y",
    "HSET llm:workers liar {}",
    "HGETALL llm:workers",
    "HSET llm:boxes:calls liar {}",
    "HGETALL llm:boxes:calls",
    "HGETALL llm:boxes:waiting",
    "HGETALL llm:boxes",
    "PUBLISH llm:events:a x",
    "PSUBSCRIBE *",
    "GET other",
    "SET other x",
    "KEYS *",
    "SCAN 0",
    "EVAL return(1) 0",
    "CONFIG GET *",
    "ACL LIST",
    "CLIENT LIST",
    "CLUSTER RESET",
    "CLUSTER FAILOVER",
    "FLUSHALL",
    "SHUTDOWN NOSAVE",
]


@pytest.mark.parametrize("user", ["producer", "canceller"])
@pytest.mark.parametrize("command", _NOT_A_PRODUCERS)
def test_a_producer_can_do_nothing_else(sessions: dict[str, Session], user: str, command: str) -> None:
    """No reading of others' prompts, no taking of requests, no deleting, no way around it by a script."""
    assert not sessions[user].may(command)


@pytest.mark.parametrize(
    "command",
    ["XADD llm:events:a 9007199254740991-0 type cancelled data {}", "EXPIRE llm:events:a 3600"],
)
def test_only_a_canceller_writes_events(sessions: dict[str, Session], command: str) -> None:
    """Cancelling is writing the final event, so that a right to cancel is a right to answer."""
    assert not sessions["producer"].may(command)
    assert sessions["canceller"].may(command)


_GATEWAYS = [
    *(f"XADD {lane} * data {{}}" for lane in _LANES),
    "XREAD COUNT 1 STREAMS llm:events:a llm:events:b 0-0 0-0",
    "XRANGE llm:events:a - +",
    "XREVRANGE llm:events:a + - COUNT 1",
    "SUBSCRIBE llm:events:a",
    "UNSUBSCRIBE llm:events:a",
    "XADD llm:events:a 9007199254740991-0 type cancelled data {}",
    "EXPIRE llm:events:a 3600 NX",
    "XADD llm:consent:a * call_id c",
    "EXPIRE llm:consent:a 3600",
    "XINFO GROUPS llm:requests",
    "XINFO CONSUMERS llm:requests llm-router",
    "XLEN llm:requests",
    "XLEN llm:dead",
    "HGETALL llm:workers",
    "XREVRANGE llm_router_metrics + - COUNT 1",
    "EVAL return(1) 4 llm:requests:high llm:requests llm:requests:low llm:dead",
    "TIME",
]


@pytest.mark.parametrize("command", _GATEWAYS)
def test_the_gateway_can_do_what_its_clients_ask_for(sessions: dict[str, Session], command: str) -> None:
    """Submit, follow, end, agree, look up what is queued, look around."""
    assert sessions["gateway"].may(command)


@pytest.mark.parametrize(
    "command",
    sorted(
        {
            *_NOT_A_PRODUCERS,
            "XDEL llm:dead 1-0",
            "EVAL return(1) 1 llm:workers",
            "XRANGE llm:consent:a - +",
            "PUBLISH llm_router_metrics x",
            "SUBSCRIBE elsewhere",
        }
        - {"XRANGE llm:requests - +", "XREAD STREAMS llm:requests 0-0", "HGETALL llm:workers"}
        - {"EVAL return(1) 0"}
    ),
)
def test_the_gateway_can_do_nothing_else(sessions: dict[str, Session], command: str) -> None:
    """It takes no request, deletes nothing, says nothing in a worker's place, and no script gets it further."""
    assert not sessions["gateway"].may(command)


@pytest.mark.parametrize(
    "command",
    [
        "EVAL return(redis.call('DEL',KEYS[1])) 1 llm:requests",
        "EVAL return(redis.call('XADD',KEYS[1],'*','a','b')) 1 llm:dead",
        "EVAL return(redis.call('XRANGE',KEYS[1],'-','+')) 1 llm:dead",
    ],
)
def test_the_gateways_scripts_can_do_no_more_than_it(sessions: dict[str, Session], command: str) -> None:
    """The server looks at each command within one."""
    with pytest.raises(redis.ResponseError, match=r"(?i)no permission|can't run this command|can't access"):
        sessions["gateway"].run(command)


_DAEMONS = [
    "XGROUP CREATE llm:requests llm-router 0 MKSTREAM",
    "XGROUP CREATECONSUMER llm:requests llm-router one",
    "XREADGROUP GROUP llm-router one COUNT 1 STREAMS llm:requests:high llm:requests llm:requests:low > > >",
    "XPENDING llm:requests llm-router - + 10 one",
    "XAUTOCLAIM llm:requests llm-router one 30000 0-0 COUNT 10",
    "XCLAIM llm:requests llm-router one 0 1-0 JUSTID",
    "XACK llm:requests llm-router 1-0",
    "XDEL llm:requests 1-0",
    "XINFO STREAM llm:requests",
    "XGROUP DELCONSUMER llm:requests llm-router one",
    "XADD llm:events:b 1-0 type attempt data {}",
    "PEXPIRE llm:events:b 3600000",
    "PTTL llm:events:b",
    "EXISTS llm:events:b",
    "DEL llm:events:b",
    "PUBLISH llm:events:b x",
    "XADD llm:dead * id b",
    "XADD llm_router_metrics MAXLEN ~ 10000 * event {}",
    "PUBLISH llm_router_metrics {}",
    "EVAL return(redis.call('HGETALL',KEYS[1])) 1 llm:tools",
    "EVAL return(redis.call('HKEYS',KEYS[1])) 1 llm:tools",
    "EVAL return(redis.call('HSTRLEN',KEYS[1],'weather')) 1 llm:tools",
    "HGET llm:tools weather",
    "XADD llm:tools:heating * call {}",
    "XINFO GROUPS llm:tools:weather",
    "XPENDING llm:tools:weather llm-tools",
    "XDEL llm:tools:weather 1-0",
    "XGROUP CREATE llm:inbox:b llm-router $ MKSTREAM",
    "XRANGE llm:inbox:b - +",
    "XDEL llm:inbox:b 1-0",
    "PEXPIRE llm:inbox:b 3600000",
    "XGROUP CREATE llm:consent:b llm-router $ MKSTREAM",
    "XRANGE llm:consent:b - +",
    "XDEL llm:consent:b 1-0",
    "XTRIM llm:consent:b MAXLEN 0",
    "EVAL return(1) 5 llm:requests llm:events:b llm:inbox:b llm:consent:b llm:tools:weather",
    "EVAL return(redis.call('XADD','llm:audit','*','kind','model')) 1 llm:requests",
    "XADD llm:audit MAXLEN ~ 100000 * kind model",
    "HSET llm:workers one {}",
    "HGETALL llm:workers",
    "HDEL llm:workers one",
    "PEXPIRE llm:workers 30000 GT",
    "EVAL return(redis.call('HGETALL',KEYS[1])) 3 llm:boxes llm:boxes:calls llm:boxes:waiting",
    "EVAL return(redis.call('HSET',KEYS[1],'a','b')) 3 llm:boxes llm:boxes:calls llm:boxes:waiting",
    "EVAL return(redis.call('HDEL',KEYS[2],'a')) 3 llm:boxes llm:boxes:calls llm:boxes:waiting",
    "PEXPIRE llm:boxes:waiting 30000 GT",
    "SCRIPT LOAD return(1)",
    "EVALSHA ffffffffffffffffffffffffffffffffffffffff 0",
    "INFO server",
    "CONFIG GET maxmemory-policy",
    "TIME",
    "SCAN 0 MATCH llm:events:* COUNT 10 TYPE stream",
    "CLIENT SETNAME llm-routerd",
    "CLIENT UNBLOCK 1",
]


@pytest.mark.parametrize("command", _DAEMONS)
def test_the_daemon_can_do_what_it_does(sessions: dict[str, Session], command: str) -> None:
    """Every command of its own."""
    assert sessions["daemon"].may(command)


@pytest.mark.parametrize(
    "command",
    [
        "GET other",
        "HSET other x y",
        "HSET llm:tools weather {}",
        "HDEL llm:tools weather",
        "XRANGE llm:audit - +",
        "XDEL llm:audit 1-0",
        "DEL llm:audit",
        "XADD other * x y",
        "DEL other",
        "KEYS *",
        "FLUSHALL",
        "CONFIG SET maxmemory 1",
        "ACL LIST",
        "XGROUP DESTROY llm:requests llm-router",
        "PUBLISH elsewhere x",
        "SUBSCRIBE elsewhere",
    ],
)
def test_the_daemon_can_do_nothing_elsewhere(sessions: dict[str, Session], command: str) -> None:
    """A daemon that was taken over is not the whole server's loss."""
    assert not sessions["daemon"].may(command)


def test_the_daemon_s_scripts_have_its_rights(sessions: dict[str, Session]) -> None:
    """The server checks what a script calls, key by key."""
    script = "return(redis.call('XADD',KEYS[1],'*','type','token'))"
    assert sessions["daemon"].run(f"EVAL {script} 1 llm:events:c")
    with pytest.raises(redis.ResponseError, match="permission"):
        sessions["daemon"].run(f"EVAL {script} 1 other")


def test_the_metrics_reader_reads_metrics_only(sessions: dict[str, Session]) -> None:
    """A dashboard needs no more."""
    reader = sessions["metrics"]
    for command in ("XREAD STREAMS llm_router_metrics 0-0", "XRANGE llm_router_metrics - +"):
        assert reader.may(command)
    for command in ("XADD llm_router_metrics * x y", "XRANGE llm:events:a - +", "XRANGE llm:requests - +"):
        assert not reader.may(command)
    assert reader.may("SUBSCRIBE llm_router_metrics")


_TOOLWORKERS = [
    "HSET llm:tools weather {}",
    "HSETNX llm:tools weather {}",
    "HGET llm:tools weather",
    "HMGET llm:tools weather heating",
    "HDEL llm:tools heating",
    "XGROUP CREATE llm:tools:lights llm-tools 0 MKSTREAM",
    "XREADGROUP GROUP llm-tools one COUNT 1 STREAMS llm:tools:weather >",
    "XPENDING llm:tools:weather llm-tools IDLE 15000 - + 10",
    "XRANGE llm:tools:weather 1-0 1-0",
    "XCLAIM llm:tools:weather llm-tools one 0 1-0 JUSTID",
    "XAUTOCLAIM llm:tools:weather llm-tools one 15000 0-0",
    "XACK llm:tools:weather llm-tools 1-0",
    "XDEL llm:tools:weather 1-0",
    "XINFO CONSUMERS llm:tools:weather llm-tools",
    "XGROUP DELCONSUMER llm:tools:weather llm-tools one",
    "XADD llm:inbox:a NOMKSTREAM * call_id c result 1",
    "TIME",
]
_APPROVERS = [
    "XREAD STREAMS llm:events:a 0-0",
    "XRANGE llm:events:a - +",
    "SUBSCRIBE llm:events:a",
    "UNSUBSCRIBE llm:events:a",
    "HGETALL llm:tools",
    "HKEYS llm:tools",
    "HLEN llm:tools",
    "HSTRLEN llm:tools weather",
    "XLEN llm:tools:weather",
    "XINFO GROUPS llm:tools:weather",
    "XINFO CONSUMERS llm:tools:weather llm-tools",
    "XADD llm:consent:a * confirm c args_sha256 0 by ada",
    "EXPIRE llm:consent:a 3600",
]
_AUDITORS = ["XRANGE llm:audit - +", "XREVRANGE llm:audit + - COUNT 1", "XREAD STREAMS llm:audit 0-0", "XLEN llm:audit"]


@pytest.mark.parametrize(
    ("user", "command"),
    [
        *(("toolworker", each) for each in _TOOLWORKERS),
        *(("approver", each) for each in _APPROVERS),
        *(("auditor", each) for each in _AUDITORS),
    ],
)
def test_who_has_to_do_with_runs_can_do_it(sessions: dict[str, Session], user: str, command: str) -> None:
    """Serve tools and answer; see what waits and agree to it; read the books."""
    assert sessions[user].may(command)


_OF_NOBODY_BUT_DAEMON_AND_OPERATOR = {
    "XADD llm:requests * prompt hello",
    "XRANGE llm:requests - +",
    "XADD llm:events:a 9007199254740991-0 type cancelled data {}",
    "XADD llm:tools:weather * call {}",
    "XRANGE llm:inbox:a - +",
    "XRANGE llm:consent:a - +",
    "XDEL llm:consent:a 1-0",
    "XADD llm:audit * kind model",
    "XDEL llm:audit 1-0",
    "XTRIM llm:audit MAXLEN 0",
    "DEL llm:tools",
    "EVAL return(1) 0",
    "KEYS *",
    "FLUSHALL",
}


@pytest.mark.parametrize(
    ("user", "command"),
    [
        (user, command)
        for user, allowed in (("toolworker", _TOOLWORKERS), ("approver", _APPROVERS), ("auditor", _AUDITORS))
        for command in sorted(
            {*_OF_NOBODY_BUT_DAEMON_AND_OPERATOR, *_TOOLWORKERS, *_APPROVERS, *_AUDITORS}
            - {*allowed, "TIME"}
            - ({"XLEN llm:tools:weather", "XINFO GROUPS llm:tools:weather"} if user == "toolworker" else set())
            - (
                {"HGET llm:tools weather", "XINFO CONSUMERS llm:tools:weather llm-tools"}
                if user == "approver"
                else set()
            )
            - ({"XPENDING llm:tools:weather llm-tools IDLE 15000 - + 10"} if user == "approver" else set())
        )
    ],
)
def test_and_nothing_of_the_others(sessions: dict[str, Session], user: str, command: str) -> None:
    """Who answers for a tool agrees to no call, who agrees answers for none, and who reads the books writes nothing."""
    assert not sessions[user].may(command)


def test_a_tool_worker_that_agrees_to_its_own_call_is_refused_by_the_server(sessions: dict[str, Session]) -> None:
    """And so is an approver that answers for a tool: the streams are two for that."""
    for user, command in (
        ("toolworker", "XADD llm:consent:a * confirm c args_sha256 0 by me"),
        ("approver", "XADD llm:inbox:a * call_id c result 1"),
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            sessions[user].run(command)


def test_an_operator_is_not_restricted(sessions: dict[str, Session]) -> None:
    """Somebody must be able to mend things."""
    assert sessions["operator"].may("ACL LIST")


def test_acl_names_no_command_that_redis_7_0_does_not_know() -> None:
    """One unknown name, and the server refuses to start; seen on Redis 7.0.15."""
    assert "client|setinfo" not in (_SYSTEMD / "users.acl").read_text(encoding="utf-8")
