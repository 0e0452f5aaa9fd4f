"""Each bad behaviour of a server by its name, in each protocol: its code, and that nothing of it is left behind."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from llm_routerd.protocol.call import BackendError, Delta
from llm_routerd.protocol.codes import AttemptCode as Code
from tests.backends.faulty import FAULTS, FaultyServer
from tests.support.calling import KEY, PROTOCOLS, ask, backend_for, tell
from tests.support.eventually import eventually

# Fault: its code, whether the same deployment may be asked again, how long it asked to be left alone.
EXPECTED: dict[str, tuple[Code, bool, float | None]] = {
    "refused": (Code.CONNECT, True, None),
    "no-such-host": (Code.CONNECT, True, None),
    "tls": (Code.CONNECT, False, None),
    "400": (Code.UPSTREAM, False, None),
    "400-context": (Code.CONTEXT_WINDOW, False, None),
    "401": (Code.AUTH, False, None),
    "403": (Code.AUTH, False, None),
    "404": (Code.NOT_FOUND, False, None),
    "408": (Code.TIMEOUT, True, None),
    "429": (Code.RATE_LIMITED, True, None),
    "429-retry-after": (Code.RATE_LIMITED, True, 7.0),
    "500": (Code.UPSTREAM, True, None),
    "503": (Code.UPSTREAM, True, 3.0),
    "529": (Code.UPSTREAM, True, None),
    "redirect": (Code.UPSTREAM, False, None),
    "html": (Code.UPSTREAM, True, None),
    "html-unlabelled": (Code.UPSTREAM, True, None),
    "malformed-json": (Code.UPSTREAM, True, None),
    "not-the-protocol": (Code.UPSTREAM, True, None),
    "invalid-utf8": (Code.UPSTREAM, True, None),
    "lone-surrogate": (Code.UPSTREAM, True, None),
    "no-body": (Code.TRUNCATED, True, None),
    "error-in-stream": (Code.UPSTREAM, True, None),
    "cut-cleanly": (Code.TRUNCATED, True, None),
    "cut-in-event": (Code.TRUNCATED, True, None),
    "cut-closed": (Code.TRUNCATED, True, None),
    "cut-reset": (Code.TRUNCATED, True, None),
    "cut-before-token": (Code.TRUNCATED, True, None),
    "no-answer": (Code.UPSTREAM, True, None),
    "not-http": (Code.UPSTREAM, True, None),
    "long-line": (Code.UPSTREAM, True, None),
}
# These end by the caller's patience only.
UNENDING = ("stall-before-head", "stall-before-token", "stall-after-token", "endless")
_DESCRIPTORS = Path("/proc/self/fd")
PROMPT = "a prompt that nobody must repeat"


def test_every_fault_is_tested() -> None:
    """A fault that is added to the server has its expectation."""
    assert set(FAULTS) == {*EXPECTED, *UNENDING, "empty-answer", "tls-stall"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("fault", EXPECTED)
async def test_fault_has_its_code_and_closes_its_connection(fault: str, protocol: str) -> None:
    """The call fails with the protocol's code, once, in one short line without prompt or key; nothing stays open."""
    async with FaultyServer(fault, protocol) as server, backend_for(protocol, server.url) as backend:
        with pytest.raises(BackendError) as raised:
            await tell(backend, ask(PROMPT))
        error = raised.value
        assert (error.code, error.retryable, error.retry_after_seconds) == EXPECTED[fault]
        assert 0 < len(error.reason) <= 200
        assert "\n" not in error.reason
        for secret in (PROMPT, KEY):
            assert secret not in str(error)
        assert server.requests <= 1, "it asked again by itself"
        async with asyncio.timeout(1):
            await server.idle.wait()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("fault", UNENDING)
async def test_cancelling_closes_the_connection_within_a_second(fault: str, protocol: str) -> None:
    """A caller that gives up takes the connection with it, at whatever point the server hangs."""
    async with FaultyServer(fault, protocol) as server, backend_for(protocol, server.url) as backend:
        call = asyncio.create_task(tell(backend, ask()))
        await server.asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(1):
            await server.idle.wait()


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_closing_the_generator_closes_the_connection(protocol: str) -> None:
    """`aclose()` in the middle of an answer is enough."""
    async with FaultyServer("endless", protocol) as server, backend_for(protocol, server.url) as backend:
        async with aclosing(backend.stream(ask())) as stream:
            first = await anext(stream)
            assert isinstance(first, Delta)
            assert first.text.startswith("token")
        async with asyncio.timeout(1):
            await server.idle.wait()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seconds", [0.05, 0, -1])
async def test_cancelling_while_connecting_leaves_nothing(protocol: str, seconds: float) -> None:
    """A connection that does not come about is given up after the time to connect, and by cancelling before it."""
    async with FaultyServer("tls-stall", protocol) as server, backend_for(protocol, server.url) as backend:
        with pytest.raises(BackendError) as raised:
            await tell(backend, ask(connect_seconds=seconds))
        assert raised.value.code is Code.CONNECT
        async with asyncio.timeout(1):
            await server.idle.wait()
        call = asyncio.create_task(tell(backend, ask(connect_seconds=60)))
        await server.busy.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(1):
            await server.idle.wait()


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_empty_answer_is_a_finish_without_text(protocol: str) -> None:
    """Whether nothing is an answer is for `judging` to say."""
    async with FaultyServer("empty-answer", protocol) as server, backend_for(protocol, server.url) as backend:
        told = await tell(backend, ask())
        assert (told.text, told.finish.finish_reason) == ("", "stop")


@pytest.mark.skipif(not _DESCRIPTORS.is_dir(), reason="counts descriptors through /proc")
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_faults_leave_no_descriptor_and_no_task(protocol: str) -> None:
    """After many failed calls of every kind there is as much open as before."""

    def descriptors() -> int:
        return len(list(_DESCRIPTORS.iterdir()))

    faults = ("500", "cut-closed", "cut-reset", "malformed-json", "no-answer", "long-line", "html")
    before = descriptors()
    for fault in faults:
        async with FaultyServer(fault, protocol) as server, backend_for(protocol, server.url) as backend:
            for _ in range(3):
                with pytest.raises(BackendError):
                    await tell(backend, ask())
    await eventually(lambda: descriptors() <= before and len(asyncio.all_tasks()) == 1)
