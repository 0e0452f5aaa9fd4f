"""What this process lacks is no verdict on a deployment: the call waits for it."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from msgspec.structs import replace

from llm_routerd.backends import faults
from llm_routerd.backends.factory import Backends
from llm_routerd.backends.faults import fault_before_answer, own_shortage
from llm_routerd.backends.wire import transport
from llm_routerd.protocol.call import BackendError
from llm_routerd.protocol.codes import AttemptCode, Lack
from llm_routerd.routing.breaker import State
from llm_routerd.running import faults as running_faults
from llm_routerd.running import shortage
from llm_routerd.service import limits
from tests.running.asking import Sink, codes, request, resources_of, run, with_local
from tests.standin.server import StandIn
from tests.support.calling import ask, backend_for, deployment_of, tell
from tests.support.eventually import eventually
from tests.support.fakes import fails, says
from tests.support.workers import DAEMON, make_config

if TYPE_CHECKING:
    from collections.abc import Callable

SHORT = fails(AttemptCode.INTERNAL, retryable=True, lack=Lack.RESOURCES)


class Log:
    """Keeps the names of what is logged."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def _keep(self, event: str, **_fields: Any) -> None:
        self.events.append(event)

    error = info = warning = _keep


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """What `running` and the limits log."""
    kept = Log()
    for module in (limits, running_faults, shortage):
        monkeypatch.setattr(module, "log", kept)
    return kept


async def test_call_waits_for_what_we_lack_and_is_one_attempt(log: Log) -> None:
    """No attempt is lost, no other deployment is paid, and the log has a beginning and an end of it."""
    resources, local, cloud = resources_of(SHORT, SHORT, SHORT, says("hi"))
    sink = Sink()
    ending = await run(resources, request(), sink)
    assert codes(ending) == [None]
    assert [kind for kind, _ in sink.seen] == ["attempt"]
    assert (len(local.calls), cloud.calls) == (4, [])
    assert log.events == ["no_call_possible", "calls_possible_again"]
    await resources.aclose()


async def test_waiting_ends_with_the_requests_deadline_and_no_breaker_trips(log: Log) -> None:
    """The deployments keep their good names, and nobody else is asked: that would not end the shortage."""
    resources, local, cloud = resources_of(SHORT, cloud=says("hi"), config=with_local(timeout=60.0))
    for _ in range(4):
        ending = await run(resources, request(), seconds=0.2)
        assert codes(ending)[0] == "internal"
    health = resources.health.states(0.0)["local"]
    assert (health.state, health.failures, health.in_flight) == (State.HEALTHY, 0, 0)
    assert len(local.calls) > 4
    assert cloud.calls == []
    assert log.events.count("no_call_possible") == log.events.count("calls_possible_again") == 4
    await resources.aclose()


@pytest.mark.parametrize("bound", ["timeout", "queue_timeout"])
async def test_no_bound_of_the_deployment_ends_the_waiting(
    bound: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a deadline it takes as long as it takes, for the call and for those that wait for its place."""
    monkeypatch.setattr(shortage, "LONGEST_PAUSE_SECONDS", 0.1)
    local = with_local(concurrency=1, **{bound: 0.2})
    resources, _, cloud = resources_of(*[SHORT] * 7, says("hi"), config=local)
    endings = await asyncio.gather(*(run(resources, request()) for _ in range(3)))
    assert [codes(ending) for ending in endings] == [[None]] * 3
    assert cloud.calls == []
    assert log.events == ["no_call_possible", "calls_possible_again"]
    await resources.aclose()


async def test_loading_a_model_waits_as_well(log: Log) -> None:
    """It is a call too, and comes first."""
    config = with_local(backend="ollama")
    resources, local, cloud = resources_of(says("hi"), config=config)
    local.loaded = False
    tries: list[None] = []

    async def load() -> None:
        tries.append(None)
        if len(tries) < 3:
            raise BackendError(AttemptCode.INTERNAL, "scripted", retryable=True, lack=Lack.RESOURCES)

    local.on_warm = load
    assert codes(await run(resources, request())) == [None]
    assert (len(tries), cloud.calls) == (3, [])
    assert log.events == ["no_call_possible", "calls_possible_again"]
    await resources.aclose()


async def test_shortage_of_many_calls_is_told_once(log: Log) -> None:
    """One line when it begins, one when no call waits any more; also where callers leave."""
    resources, _, _ = resources_of(*[SHORT] * 40, says("hi"))
    tasks = [asyncio.create_task(run(resources, request())) for _ in range(20)]
    await eventually(lambda: "no_call_possible" in log.events)
    for task in tasks[:5]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert log.events == ["no_call_possible", "calls_possible_again"]
    await resources.aclose()


async def test_more_calls_than_sockets_are_all_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thirty requests at once with four files to open, none is lost and no deployment cools down."""
    real: Callable[[Any], socket.socket] = transport._new_socket
    made: list[socket.socket] = []

    def scarce(address: Any) -> socket.socket:
        if sum(each.fileno() != -1 for each in made) >= 4:
            raise OSError(errno.EMFILE, "Too many open files")
        made.append(real(address))
        return made[-1]

    monkeypatch.setattr(transport, "_new_socket", scarce)
    monkeypatch.setattr(shortage, "LONGEST_PAUSE_SECONDS", 0.1)
    async with StandIn({"stand-in": "delay_ms=5 tokens=3"}) as server, backend_for("openai", server.url) as backend:
        resources, _, cloud = resources_of(says("never"), config=with_local(timeout=20.0))
        monkeypatch.setattr(resources.backends, "backends", {"local": backend, "cloud": cloud})
        endings = await asyncio.gather(*(run(resources, request()) for _ in range(30)))
        assert [codes(ending) for ending in endings] == [[None]] * 30
        assert resources.health.states(0.0)["local"].state is State.HEALTHY
        await resources.aclose()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL])
async def test_system_that_has_nothing_left_is_told_from_a_server_that_is_away(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the number of the error, wherever it comes up."""

    def nothing_left(*_arguments: Any, **_named: Any) -> socket.socket:
        raise OSError(number, "nothing left")

    async with StandIn() as server, backend_for("openai", server.url) as backend:
        monkeypatch.setattr(socket, "socket", nothing_left)
        with pytest.raises(BackendError) as raised:
            await tell(backend, ask())
    assert (raised.value.code, raised.value.retryable) == (AttemptCode.INTERNAL, True)
    assert raised.value.reason.startswith("our own shortage: ")


def _while_connecting(error: OSError) -> Exception:
    """As aiohttp raises what came of a look-up."""
    return aiohttp.ClientConnectorDNSError(None, error)  # type: ignore[arg-type]  # the key is for its text


@pytest.mark.parametrize(
    ("error", "is_ours"),
    [
        (MemoryError(), True),
        (socket.gaierror(socket.EAI_SYSTEM, "x"), True),
        (socket.gaierror(socket.EAI_AGAIN, "x"), True),
        (_while_connecting(socket.gaierror(socket.EAI_AGAIN, "x")), True),
        (_while_connecting(socket.gaierror(socket.EAI_NONAME, "x")), False),
        (socket.gaierror(socket.EAI_NONAME, "x"), False),
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), False),
        (OSError(), False),
        (KeyError(errno.EMFILE), False),
    ],
)
def test_what_a_server_brings_about_is_not_ours(error: Exception, is_ours: bool) -> None:
    """Refused, unknown, reset: these are about the other end."""
    assert (own_shortage(error) is not None) is is_ours
    assert (fault_before_answer(error, 1.0).code is AttemptCode.INTERNAL) is is_ours


@pytest.mark.parametrize(("hard", "concurrency", "fits"), [(128, 8, True), (128, 300, False), (-1, 9_999, True)])
def test_soft_limit_is_raised_and_what_cannot_fit_is_said(
    hard: int, concurrency: int, fits: bool, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    """At start, in one line."""
    given: list[Any] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (64, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _which, pair: given.append(pair))
    config = make_config(daemon=replace(DAEMON, concurrency=concurrency))
    limits.make_room(config)
    assert given == [(hard, hard)]
    assert log.events == ([] if fits else ["too_few_files"])
    assert (limits.shortage_of_files(config) is None) is fits


async def test_connections_that_nobody_uses_give_their_files_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """They stand to another server, and would hold what is lacking for as long as they are kept alive."""
    real: Callable[[Any], socket.socket] = transport._new_socket
    made: list[socket.socket] = []

    def scarce(address: Any) -> socket.socket:
        if sum(each.fileno() != -1 for each in made) >= 2:
            raise OSError(errno.EMFILE, "Too many open files")
        made.append(real(address))
        return made[-1]

    monkeypatch.setattr(transport, "_new_socket", scarce)
    async with StandIn() as one, StandIn() as other:
        backends = Backends({"one": deployment_of("openai", one.url), "other": deployment_of("openai", other.url)})
        await asyncio.gather(*(tell(backends.get("one"), ask()) for _ in range(2)))
        with pytest.raises(BackendError, match="our own shortage"):
            await tell(backends.get("other"), ask())
        await eventually(lambda: all(each.fileno() == -1 for each in made))
        assert (await tell(backends.get("other"), ask())).finish.finish_reason == "stop"
        await backends.aclose()


async def answers_nothing(*_arguments: Any, **_named: Any) -> Any:
    """A resolver to which no packet gets through."""
    await asyncio.Event().wait()


async def answers_try_again(*_arguments: Any, **_named: Any) -> Any:
    """What the C library says where no resolver is configured, or none is reachable."""
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


async def answers_no_such_name(*_arguments: Any, **_named: Any) -> Any:
    """What it says when a resolver has answered."""
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize(
    ("resolver", "bound", "code", "state"),
    [
        (answers_try_again, "connect_timeout", "internal", State.HEALTHY),
        (answers_nothing, "connect_timeout", "internal", State.HEALTHY),
        (answers_nothing, "timeout", "internal", State.HEALTHY),
        (answers_no_such_name, "connect_timeout", "connect", State.COOLING),
    ],
)
async def test_without_a_resolver_the_next_deployment_is_asked_and_no_breaker_trips(
    resolver: Any, bound: str, code: str, state: State, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be at an IP address.  A name that does not exist is the deployment's own fault."""
    config = with_local(**{"connect_timeout": 0.3, "timeout": 5.0, bound: 0.2})
    async with backend_for("openai", "http://models.invalid:9") as backend:
        resources, _, cloud = resources_of(says("never"), config=config)
        monkeypatch.setattr(resources.backends, "backends", {"local": backend, "cloud": cloud})
        monkeypatch.setattr(resources.loop, "getaddrinfo", resolver)
        endings = [await run(resources, request(tenant_id=f"t{number}")) for number in range(3)]
        assert [codes(ending)[-1] for ending in endings] == [None] * 3
        assert {codes(ending)[0] for ending in endings} <= {code, "cooldown"}
        assert codes(endings[0])[0] == code
        assert resources.health.states(resources.loop.time())["local"].state is state
        assert resources.shortage.why is None
        assert log.events == (["no_way_to_deployment"] if code == "internal" else [])
        await resources.aclose()


async def test_way_that_is_found_again_is_told(log: Log) -> None:
    """Once, as its loss was."""
    lost = fails(AttemptCode.INTERNAL, retryable=True, lack=Lack.ROUTE)
    resources, _, cloud = resources_of(lost, lost, says("hi"))
    assert codes(await run(resources, request())) == [None]
    assert codes(await run(resources, request())) == [None]
    assert cloud.calls == []
    assert log.events == ["no_way_to_deployment", "way_to_deployment_found"]
    await resources.aclose()


def test_look_up_that_fails_for_want_of_files_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its configuration's file the C library says that there is no such name."""
    monkeypatch.setattr(faults, "is_out_of_files", lambda: True)
    found = own_shortage(_while_connecting(socket.gaierror(socket.EAI_NONAME, "x")))
    assert found is not None
    assert found.lack is Lack.RESOURCES
