"""The command as its users meet it: a process with a pipe, a terminal, a keyboard that sends Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import select
import signal
import subprocess
import sys
import threading
import time
from typing import IO, TYPE_CHECKING, Any

import pytest

from llm_routerd.cli import submit, watch
from llm_routerd.cli.exits import Exit
from llm_routerd.cli.main import main
from llm_routerd.client import Client
from llm_routerd.protocol.events import FINAL_ID
from tests.cli.commands import COMMAND, SECONDS, Daemon, environment, on_terminal, started
from tests.support.servers import ValkeyProcess, running_valkey

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_pipe_gets_answer_alone(daemon: Daemon) -> None:
    """Tokens and rejected text never reach stdout, notes go to stderr, exit code 0."""
    with started("submit", "Why?", "--stream", "--redis", daemon.url) as command:
        request = daemon.request()
        assert (request["prompt"], request["stream"]) == ("Why?", "probe")
        daemon.write(request["id"], "1-0", "attempt", deployment="local", model="m")
        daemon.write(request["id"], "1-1", "token", text="wrong")
        daemon.write(request["id"], "1-2", "rejected", deployment="local", code="refusal", reason="it would not")
        daemon.write(request["id"], "2-1", "token", text="blue")
        daemon.answer(request["id"], "blue")
        assert command.wait() == Exit.OK
    assert bytes(command.out) == b"blue\n"
    assert bytes(command.err) == b"discarded: local: refusal: it would not\n"


def test_terminal_shows_tokens_as_they_come(daemon: Daemon) -> None:
    """Before there is an answer; what is taken back is said to be, and nothing of it commands the terminal."""
    with on_terminal("submit", "Why?", "--redis", daemon.url) as command:
        request = daemon.request()
        assert request["stream"] == "probe"
        daemon.write(request["id"], "1-0", "attempt", deployment="local", model="m")
        daemon.write(request["id"], "1-1", "token", text="wr\x1b]0;evil\x07ong")
        command.until_written("wr\u241b]0;evil\u2407ong")
        daemon.write(request["id"], "1-2", "rejected", code="schema_violation", reason="$: not a number")
        command.until_written("discarded: local: schema_violation: $: not a number")
        daemon.write(request["id"], "2-1", "token", text="blue")
        daemon.answer(request["id"], "blue")
        assert command.wait() == Exit.OK
    assert command.out.count(b"blue") == 1
    assert b"\x1b[2m" in command.out
    assert b"\x1b]" not in command.out


def test_no_color_is_respected(daemon: Daemon) -> None:
    """Not one escape sequence, not even ours."""
    with on_terminal("follow", "r", "--redis", daemon.url, env=environment(NO_COLOR="1")) as command:
        daemon.write("r", "1-0", "attempt", deployment="local", model="m")
        daemon.write("r", FINAL_ID, "error", code="internal", message="m")
        assert command.wait() == Exit.FAILED
    assert b"\x1b" not in command.out
    assert b"error: internal: m" in command.out


@pytest.mark.parametrize("start", [started, on_terminal])
def test_interrupt_cancels_request(daemon: Daemon, start: Any) -> None:
    """Ctrl-C writes the final event, says so, and exits 130."""
    with start("submit", "Why?", "--redis", daemon.url) as command:
        request = daemon.request()
        command.interrupt()
        assert command.wait() == Exit.INTERRUPTED
    assert daemon.final(request["id"])["type"] == "cancelled"
    assert b"cancelled: interrupted at the command line" in command.out + command.err
    assert b"Traceback" not in command.out + command.err


def test_looking_ends_nobodys_request(daemon: Daemon) -> None:
    """Who follows as with `tail -f` and leaves, leaves the request as it is."""
    with started("follow", "r", "--json", "--redis", daemon.url) as command:
        daemon.write("r", "1-1", "token", text="bl")
        command.until_written("bl")
        command.interrupt()
        assert command.wait() == Exit.INTERRUPTED
    assert daemon.redis.xlen("llm:events:r") == 1
    assert b"the request goes on" in command.out + command.err


def test_interrupt_after_first_tokens_cancels(daemon: Daemon) -> None:
    """Following somebody's request as well, where that is asked for; as JSON the final event is the last line."""
    with started("follow", "r", "--json", "--cancel", "--redis", daemon.url) as command:
        daemon.write("r", "1-1", "token", text="bl")
        command.until_written("bl")
        command.interrupt()
        assert command.wait() == Exit.INTERRUPTED
    events = [json.loads(line) for line in command.out.splitlines()]
    assert [(event["id"], event["type"]) for event in events] == [("1-1", "token"), (FINAL_ID, "cancelled")]
    assert daemon.redis.ttl("llm:events:r") <= 600


def test_interrupt_may_keep_request(daemon: Daemon) -> None:
    """With --keep the request goes on, and the reader is told how to come back."""
    with started("submit", "Why?", "--keep", "--redis", daemon.url) as command:
        request = daemon.request()
        command.interrupt()
        assert command.wait() == Exit.INTERRUPTED
    assert not daemon.redis.exists(f"llm:events:{request['id']}")
    said = command.err.decode()  # the reply to its XADD may still have been on its way
    assert f"llm-routerd follow {request['id']}" in said or f"submit it again with --id {request['id']}" in said


def test_json_prints_final_event_of_submit(daemon: Daemon) -> None:
    """One line, whatever came before."""
    with started("submit", "Why?", "--json", "--lane", "high", "--redis", daemon.url) as command:
        request = daemon.request("llm:requests:high")
        daemon.write(request["id"], "1-1", "token", text="bl")
        daemon.answer(request["id"], "błękit")
        assert command.wait() == Exit.OK
    [line] = command.out.splitlines()
    assert json.loads(line)["data"]["content"] == "błękit"


def test_follow_goes_on_from_an_id(daemon: Daemon) -> None:
    """What was seen is not shown again; after the end there is nothing."""
    daemon.write("r", "1-1", "token", text="a")
    daemon.write("r", "1-2", "token", text="b")
    daemon.answer("r", "ab")
    for last_id, ids in (("1-1", ["1-2", FINAL_ID]), (FINAL_ID, [])):
        with started("follow", "r", "--json", "--from", last_id, "--redis", daemon.url) as command:
            assert command.wait() == Exit.OK
        assert [json.loads(line)["id"] for line in command.out.splitlines()] == ids


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process a few milliseconds of nothing are worth a remark."""
    monkeypatch.setattr(watch, "_HINT_SECONDS", 0.02)


def test_nobody_there_is_said_and_waited_for(
    daemon: Daemon, impatient: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """A queue without a worker is no error: the request is answered when one comes."""

    def answer_late() -> None:
        request = daemon.request()
        time.sleep(0.3)
        daemon.answer(request["id"], "blue")

    thread = threading.Thread(target=answer_late)
    thread.start()
    assert main(["submit", "Why?", "--redis", daemon.url]) == Exit.OK
    thread.join()
    captured = capsys.readouterr()
    assert captured.out == "blue\n"
    assert captured.err.startswith("nobody has picked the request up: no worker is running")


def test_long_wait_is_explained(daemon: Daemon, impatient: None, capsys: pytest.CaptureFixture[str]) -> None:
    """It is behind others; in the end the wait is over, and not the request."""
    daemon.redis.xgroup_create("llm:requests", "llm-router", id="0", mkstream=True)
    daemon.redis.xadd("llm:requests", {"prompt": "1"})
    daemon.redis.xadd("llm:requests", {"id": "r", "prompt": "2"})
    daemon.redis.xreadgroup("llm-router", "w", {"llm:requests": ">"}, count=1)
    assert main(["follow", "r", "--timeout", "0.3", "--redis", daemon.url]) == Exit.TIMED_OUT
    captured = capsys.readouterr().err
    assert "workers 1, requests running 1, queued 1" in captured
    assert "no answer within 0.3 s; go on with: llm-routerd follow r" in captured
    assert not daemon.redis.exists("llm:events:r")


def test_second_interrupt_leaves_at_once() -> None:
    """Where Redis hangs and cannot take the cancellation, nobody has to wait for it."""
    with running_valkey() as server:
        daemon = Daemon(server.url)
        with started("submit", "Why?", "--redis", server.url) as command:
            daemon.request()
            daemon.redis.close()
            server.freeze()
            command.interrupt()
            command.until_written("cancelling")
            pressed = time.monotonic()
            command.interrupt()
            assert command.wait() == Exit.INTERRUPTED
            assert time.monotonic() - pressed < watch._CANCEL_SECONDS / 2
        assert b"Traceback" not in command.err


_BUSY = """
import asyncio, sys, time
from llm_routerd.cli.views import PlainView
from llm_routerd.cli.watch import Watch
from llm_routerd.client import Client

async def busy():
    try:
        print("busy", flush=True)
        await asyncio.Event().wait()
    finally:
        print("ending", flush=True)
        time.sleep(0.5)

async def run():
    async with Client(sys.argv[1]) as client:
        await Watch(client=client, view=PlainView(), request_id="r", beside=busy).run()

try:
    asyncio.run(run())
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_second_interrupt_is_lost_in_no_task(daemon: Daemon) -> None:
    """Whatever runs when it comes, all is ended, and nothing is told of how that is done."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", _BUSY, daemon.url], stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"busy\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"ending\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (Exit.INTERRUPTED, b"")


def test_timeout_sets_deadline_by_server_clock(daemon: Daemon) -> None:
    """The daemon is told until when the answer is wanted, and its word on it is waited for."""
    with started("submit", "Why?", "--timeout", "5", "--redis", daemon.url) as command:
        request = daemon.request()
        seconds, microseconds = daemon.redis.time()
        assert 0 < request["deadline_ms"] - (seconds * 1000 + microseconds // 1000) <= 5000
        daemon.write(request["id"], FINAL_ID, "error", code="deadline_exceeded", message="too late")
        assert command.wait() == Exit.FAILED
    assert (bytes(command.out), bytes(command.err)) == (b"", b"error: deadline_exceeded: too late\n")


def test_cancel_tells_who_won(daemon: Daemon) -> None:
    """A cancellation that stands is success, an answer that stands is not."""
    daemon.redis.xadd("llm:requests", {"id": "r", "prompt": "Why?"})
    for code, out, err in (
        (Exit.OK, b"cancelled: enough\n", b""),
        (Exit.FAILED, b"", b"too late: r has ended with its result\n"),
    ):
        with started("cancel", "r", "--reason", "enough", "--redis", daemon.url) as command:
            assert command.wait() == code
        assert (bytes(command.out), bytes(command.err)) == (out, err)
        daemon.redis.delete("llm:events:r")
        daemon.answer("r", "blue")


def test_no_wait_prints_id(daemon: Daemon) -> None:
    """On stdout, for `follow`; the prefix names the queue."""
    with started("submit", "Why?", "--no-wait", "--prefix", "other", "--redis", daemon.url) as command:
        assert command.wait() == Exit.OK
    assert daemon.request("other:requests")["id"] == command.out.decode().strip()


def test_reader_that_leaves_is_no_error(daemon: Daemon) -> None:
    """`llm-routerd follow … | head -1` ends without a traceback."""
    for number in range(1, 2001):
        daemon.write("r", f"1-{number}", "token", text="x" * 100)
    daemon.answer("r", "x")
    argv = [*COMMAND, "follow", "r", "--json", "--redis", daemon.url]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first_line(process.stdout)
        process.stdout.close()
        assert process.wait(SECONDS) == Exit.FAILED
        assert process.stderr.read() == b""


def first_line(stream: IO[bytes]) -> bytes:
    """The first line of a pipe, within bounds."""
    readable, _, _ = select.select([stream], [], [], SECONDS)
    assert readable
    return stream.readline()


@pytest.fixture(scope="module")
def refusing() -> Iterator[ValkeyProcess]:
    """A server that answers and takes no writes for now."""
    with running_valkey({"min-replicas-to-write": "1"}) as server:
        yield server


@pytest.mark.parametrize("no_wait", [(), ("--no-wait",)], ids=["wait", "no wait"])
def test_request_that_was_never_taken_ends_with_the_refusal(
    refusing: ValkeyProcess,
    impatient: None,
    capsys: pytest.CaptureFixture[str],
    no_wait: tuple[str, ...],
) -> None:
    """Within the time that was given; nobody is told to follow it, nor that no worker has picked it up."""
    began = time.monotonic()
    words = ("submit", "Why?", "--timeout", "0.3", "--redis", refusing.url, *no_wait)
    assert main(words) == Exit.UNAVAILABLE
    assert time.monotonic() - began < 2
    captured = capsys.readouterr()
    first, last = captured.err.splitlines()
    assert captured.out == ""
    assert first.startswith("not queued yet: the server takes no writes without its replicas (NOREPLICAS)")
    assert last.startswith("llm-routerd: not accepted: the server takes no writes without its replicas")


@pytest.mark.parametrize("no_wait", [(), ("--no-wait",)], ids=["wait", "no wait"])
def test_request_whose_fate_is_not_known_may_be_submitted_again(
    refusing: ValkeyProcess,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_wait: tuple[str, ...],
) -> None:
    """A server that falls silent after the greeting may have taken it."""
    monkeypatch.setattr(submit, "_GRACE_SECONDS", 0.05)

    async def is_silent(*_: object, **__: object) -> str:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    monkeypatch.setattr(Client, "submit", is_silent)
    words = ("submit", "Why?", "--id", "r1", "--timeout", "0.05", "--redis", refusing.url, *no_wait)
    assert main(words) == Exit.UNAVAILABLE
    (told,) = capsys.readouterr().err.splitlines()
    assert "it has not confirmed that the request is queued; submit it again with --id r1" in told


def test_interrupt_before_the_request_was_taken_says_so(refusing: ValkeyProcess) -> None:
    """With --keep there is nothing yet that would go on."""
    with started("submit", "Why?", "--keep", "--redis", refusing.url) as command:
        command.until_written("not queued yet")
        command.interrupt()
        assert command.wait() == Exit.INTERRUPTED
        assert b"has not confirmed that the request is queued" in command.err
        assert b"goes on" not in command.err
