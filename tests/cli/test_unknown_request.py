"""Requests that nobody knows, at the command line: following and cancelling them, by whom it may concern."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis

from llm_routerd.cli import unknown, watch
from llm_routerd.cli.exits import Exit
from llm_routerd.cli.main import main
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.servers import ValkeyProcess

ACL = Path(__file__).parents[2] / "systemd" / "users.acl"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few milliseconds of nothing are enough."""
    monkeypatch.setattr(watch, "_HINT_SECONDS", 0.02)


class Queue:
    """A queue, and the command at it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.redis: Any = redis.Redis.from_url(url, decode_responses=True)

    def run(self, *argv: str, url: str = "") -> int:
        """Run a subcommand."""
        return main([*argv, "--redis", url or self.url])

    def begin(self, request_id: str) -> None:
        """Write what a worker begins with."""
        self.redis.xadd(f"llm:events:{request_id}", {"type": "attempt", "data": "{}"}, id="1-0")

    def queue(self, request_id: str) -> None:
        """Add a request."""
        self.redis.xadd("llm:requests", {"id": request_id, "prompt": "Why?"})

    def is_cancelled(self, request_id: str) -> bool:
        """Whether the final event is a cancellation."""
        final = self.redis.xrange(f"llm:events:{request_id}", FINAL_ID, FINAL_ID)
        return bool(final) and final[0][1]["type"] == "cancelled"


@pytest.fixture
def queue(broker_url: str) -> Iterator[Queue]:
    """An empty queue."""
    queue = Queue(broker_url)
    yield queue
    queue.redis.close()


@pytest.mark.parametrize(("known", "told"), [((), ""), (("order-17", "order-18"), "; the nearest id is order-17")])
def test_following_what_nobody_knows_ends(
    queue: Queue, capsys: pytest.CaptureFixture[str], known: tuple[str, ...], told: str
) -> None:
    """With an exit code of its own, and the id that may have been meant, queued or begun."""
    for request_id, add in zip(known, (queue.begin, queue.queue), strict=False):
        add(request_id)
    assert queue.run("follow", "order-17x") == Exit.UNKNOWN
    captured = capsys.readouterr()
    expected = f"nothing is known of order-17x: never submitted, or expired{told}; --wait waits for it\n"
    assert (captured.out, captured.err) == ("", expected)


def test_id_may_be_followed_before_it_is_submitted(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--wait`; that nothing is known so far is said."""

    def answer_late() -> None:
        time.sleep(0.1)
        queue.redis.xadd("llm:events:r", {"type": "result", "data": '{"content": "blue"}'}, id=FINAL_ID)

    thread = threading.Thread(target=answer_late)
    thread.start()
    assert queue.run("follow", "r", "--wait") == Exit.OK
    thread.join()
    captured = capsys.readouterr()
    assert captured.out == "blue\n"
    assert captured.err == "nothing is known of r: never submitted, or expired; waiting on\n"


def test_interrupt_cancels_nothing_that_nobody_knows(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A later request of that id would be dead on arrival."""

    async def unknown_and_interrupted(*args: Any) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return await unknown.unknown(*args)

    monkeypatch.setattr(watch, "unknown", unknown_and_interrupted)
    assert queue.run("follow", "never-was", "--wait", "--cancel") == Exit.INTERRUPTED
    assert not queue.redis.exists("llm:events:never-was")
    assert "nothing is known of never-was; nothing was cancelled" in capsys.readouterr().err


@pytest.mark.parametrize("add", [Queue.begin, Queue.queue])
def test_following_what_is_known_goes_on(queue: Queue, add: Any) -> None:
    """Queued without a worker, or running and silent."""
    add(queue, "r")
    last = ("--from", "1-0") if add is Queue.begin else ()
    assert queue.run("follow", "r", *last, "--timeout", "0.15") == Exit.TIMED_OUT


def test_cancelling_what_nobody_knows_writes_nothing(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """A later request of that id would be dead on arrival, which is to be had with `--anyway`."""
    queue.queue("order-17")
    assert queue.run("cancel", "order-7") == Exit.UNKNOWN
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "llm-routerd: nothing is known of order-7: never submitted, or expired; the nearest id is order-17; "
        "nothing was cancelled (--anyway would)\n"
    )
    assert not queue.redis.exists("llm:events:order-7")
    assert queue.run("cancel", "order-7", "--anyway") == Exit.OK
    assert queue.is_cancelled("order-7")
    assert queue.run("cancel", "order-17") == Exit.OK
    assert queue.is_cancelled("order-17")


def test_nearest_id_is_looked_for_within_bounds(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A database of many keys is not searched to its end, and the prefix is no pattern."""
    monkeypatch.setattr(unknown, "_KEYS_PER_SCAN", 5)
    monkeypatch.setattr(unknown, "_MOST_KEYS", 10)
    for number in range(100):
        queue.redis.set(f"other:{number}", "")
    queue.redis.xadd("[l]*:events:order-17", {"type": "attempt", "data": "{}"}, id="1-0")
    queue.redis.xadd("l:events:order-18", {"type": "attempt", "data": "{}"}, id="1-0")
    assert queue.run("cancel", "order-18", "--prefix", "[l]*") == Exit.UNKNOWN
    assert "order-18: never submitted" in capsys.readouterr().err
    monkeypatch.setattr(unknown, "_MOST_KEYS", 10_000)
    assert queue.run("cancel", "order-18", "--prefix", "[l]*") == Exit.UNKNOWN
    assert "the nearest id is order-17" in capsys.readouterr().err


@contextmanager
def user_of_the_acl_file(queue: Queue, name: str) -> Iterator[str]:
    """A URL of a user as `users.acl` has it."""
    [line] = [line for line in ACL.read_text(encoding="utf-8").splitlines() if line.startswith(f"user {name} ")]
    queue.redis.execute_command("ACL", "SETUSER", *line.split()[1:], ">pw")
    try:
        yield queue.url.replace("unix://", f"unix://{name}:pw@")
    finally:
        queue.redis.execute_command("ACL", "DELUSER", name)


def test_who_may_not_look_into_the_lanes_is_told_and_may_insist(
    valkey_server: ValkeyProcess, valkey_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A canceller sees whether lanes are empty, and events; what may be queued is not said to be unknown."""
    queue = Queue(valkey_url)
    with user_of_the_acl_file(queue, "canceller") as url:
        assert queue.run("cancel", "r", url=url) == Exit.UNKNOWN
        assert "r: never submitted, or expired; nothing was" in capsys.readouterr().err
        queue.begin("running")
        assert queue.run("cancel", "running", url=url) == Exit.OK
        queue.queue("r")
        capsys.readouterr()
        assert queue.run("cancel", "r", url=url) == Exit.UNKNOWN
        assert "r; it may be queued: this user may not look into the lanes; nothing was" in capsys.readouterr().err
        assert queue.run("cancel", "r", "--anyway", url=url) == Exit.OK
        assert queue.is_cancelled("r")
    queue.redis.close()


def test_producer_follows_what_may_be_queued(
    valkey_server: ValkeyProcess, valkey_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """He is not told that it is unknown, unless nothing at all is queued."""
    queue = Queue(valkey_url)
    with user_of_the_acl_file(queue, "producer") as url:
        assert queue.run("follow", "r", url=url) == Exit.UNKNOWN
        queue.queue("other")
        assert queue.run("follow", "r", "--timeout", "0.15", url=url) == Exit.TIMED_OUT
        assert "no worker is running" in capsys.readouterr().err
    queue.redis.close()


def test_server_that_refuses_is_not_to_be_replaced(
    valkey_server: ValkeyProcess, valkey_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server of one's own is no remedy for a wrong password."""
    assert main(["cancel", "r", "--redis", valkey_url.replace("unix://", "unix://me:wrong@")]) != Exit.OK
    assert "--embedded" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("follow", "r1"), "llm:events:r1"),
        (("cancel", "r1"), "llm:events:r1"),
        (("cancel", "r1", "--anyway"), "llm:events:r1"),
        (("dead", "list"), "llm:dead"),
        (("dead", "show", "1-1"), "llm:dead"),
        (("dead", "drop", "1-1"), "llm:dead"),
        (("dead", "retry", "1-1"), "llm:dead"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_key_of_another_type_is_named(
    valkey_url: str, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], key: str
) -> None:
    """Redis can be used: it is that key which is to be moved away; and it is left alone, for good."""
    queue = Queue(valkey_url)
    queue.redis.set(key, "x")
    assert queue.run(*words) == Exit.UNAVAILABLE
    (told,) = capsys.readouterr().err.splitlines()
    assert told.endswith(f"{key} is not a stream but a key of another type; RENAME or DEL it")
    assert queue.redis.ttl(key) == -1


@pytest.mark.parametrize("wrong", ["llm:requests", "llm:events:r1"])
def test_retry_names_the_key_of_another_type(queue: Queue, capsys: pytest.CaptureFixture[str], wrong: str) -> None:
    """Whichever of them it is."""
    data = '{"fields": {"id": "r1", "prompt": "Why?"}}'
    letter = queue.redis.xadd("llm:dead", {"lane": "normal", "id": "r1", "entry": "1-1", "data": data})
    queue.redis.set(wrong, "x")
    assert queue.run("dead", "retry", letter) == Exit.UNAVAILABLE
    (told,) = capsys.readouterr().err.splitlines()
    assert wrong in told
    assert told.endswith("not a stream but a key of another type; RENAME or DEL it")


def test_id_of_a_tool_is_nobodys_request(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not offered as the nearest id; the request's own is, wherever it stands."""
    tool = '"tools": [{"id": "order-tool"}]'
    for data in (f'{{{tool}, "id": "plain-17"}}', f'{{{tool}, "prompt": "{"y" * 9_000}", "id": "late-17"}}'):
        queue.redis.xadd("llm:requests", {"data": data})
    assert queue.run("follow", "order-tool") == Exit.UNKNOWN
    assert "nearest" not in capsys.readouterr().err
    assert queue.run("follow", "plain-18") == Exit.UNKNOWN
    assert "the nearest id is plain-17" in capsys.readouterr().err


def test_strange_ids_in_the_lanes_are_not_offered(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """What is no id, in a field or in JSON, reaches nobody's terminal."""
    queue.redis.xadd("llm:requests", {"id": "order\x1b31m17", "prompt": "Why?"})
    queue.redis.xadd("llm:requests", {"data": '{"id": "order\\u001b31m18", "prompt": "Why?"}'})
    assert queue.run("follow", "order-31m17") == Exit.UNKNOWN
    assert "nearest" not in capsys.readouterr().err


@pytest.mark.parametrize("data", [r'{"id": "esc\u0061ped"}', r'{"prompt": "\u00e9", "\u0069d": "escaped"}'])
def test_id_that_is_written_with_escapes_is_known(queue: Queue, data: str) -> None:
    """The daemon reads it so, and so does whoever looks for it."""
    queue.redis.xadd("llm:requests", {"data": data})
    assert queue.run("cancel", "escaped") == Exit.OK
    assert queue.is_cancelled("escaped")


def test_every_command_takes_the_number_of_shards(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """`submit` puts a request into the shard of its id, where `cancel` and `follow` find it; a bad number is refused."""
    keys = Layout("llm", 4).keys_of("request-1")
    shards = ("--shards", "4")
    assert queue.run("submit", "Why?", "--id", "request-1", "--no-wait", *shards) == Exit.OK
    assert queue.redis.xlen(keys.requests("normal")) == 1
    assert queue.run("cancel", "request-1", *shards) == Exit.OK
    assert queue.run("follow", "request-1", *shards) == Exit.FAILED
    assert queue.run("cancel", "request-2", *shards) == Exit.UNKNOWN
    assert "the nearest id is request-1" in capsys.readouterr().err
    for bad in ("0", "1025", "x"):
        with pytest.raises(SystemExit):
            queue.run("cancel", "r", "--shards", bad)


def test_layout_comes_from_the_configuration(queue: Queue, tmp_path: Path) -> None:
    """The shards, and those of earlier layouts, which are looked through as well."""
    file = tmp_path / "config.toml"
    file.write_text('[redis]\nprefix = "q"\nshards = 2\ndraining = [1]\n')
    queue.redis.xadd("q:requests", {"id": "r", "prompt": "Why?"})
    assert queue.run("cancel", "r", "--config", str(file)) == Exit.OK
    assert queue.redis.exists("q:events:r")
    assert queue.run("cancel", "r2", "--config", str(file), "--anyway") == Exit.OK
    assert queue.redis.exists(Layout("q", 2).keys_of("r2").events("r2"))
