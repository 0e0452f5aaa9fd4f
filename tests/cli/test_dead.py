"""Dead letters: listing, showing, queueing again, removing, on fakeredis and on a real Valkey."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis

from llm_routerd.cli.exits import Exit
from llm_routerd.cli.main import main
from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.queue.connection import Bounds

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMPT = "a secret prompt"


class Queue:
    """A broker with dead letters in it, and the command that deals with them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.redis: Any = redis.Redis.from_url(url)

    def dead(self, *argv: str) -> int:
        """Run `llm-routerd dead ARGV`."""
        return main(["dead", *argv, "--redis", self.url])

    def bury(self, fields: dict[str, Any], *, request_id: str | None = None, lane: str = "normal") -> str:
        """Write a dead letter as the daemon does, and the error that the request ended with; returns its entry."""
        entry = f"{time.time_ns() // 1_000_000}-7"
        request_id = request_id or entry
        self.seal(request_id, "error")
        letter = {
            "entry": entry,
            "lane": lane,
            "id": request_id,
            "reason": "poisoned",
            "message": "delivered 3 times",
            "deliveries": 3,
            "consumer": "w1",
            "at_ms": 1_700_000_000_000,
            "data": json.dumps({"fields": fields, "history": [{"attempt": 1}]}),
        }
        return str(self.redis.xadd("llm:dead", letter).decode())

    def seal(self, request_id: str, type_: str) -> None:
        """Write a final event."""
        self.redis.xadd(f"llm:events:{request_id}", {"type": type_, "data": "{}"}, id=FINAL_ID)

    def letters(self) -> int:
        """How many dead letters there are."""
        return int(self.redis.xlen("llm:dead"))

    def requests(self, key: str = "llm:requests") -> list[dict[bytes, bytes]]:
        """What lies in a lane."""
        return [fields for _, fields in self.redis.xrange(key)]


@pytest.fixture
def queue(broker_url: str) -> Iterator[Queue]:
    """An empty queue."""
    queue = Queue(broker_url)
    yield queue
    queue.redis.close()


def test_list_tells_why_and_not_what(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """One line per letter, oldest first, without the prompt."""
    first = queue.bury({"prompt": PROMPT}, request_id="r1", lane="high")
    second = queue.bury({"prompt": PROMPT}, request_id="r2")
    assert queue.dead("list") == Exit.OK
    captured = capsys.readouterr().out
    lines = captured.splitlines()
    assert [line.split()[0] for line in lines] == [first, second]
    assert lines[0].endswith("2023-11-14T22:13:20+00:00 high r1 poisoned deliveries=3 delivered 3 times")
    assert PROMPT not in captured


def test_list_reads_more_than_a_page(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """Each letter once."""
    pipe = queue.redis.pipeline(transaction=False)
    for number in range(1, 251):
        pipe.xadd("llm:dead", {"id": f"r{number}"}, id=f"{number}-0")
    pipe.execute()
    assert queue.dead("list", "--json") == Exit.OK
    letters = [json.loads(line)["letter"] for line in capsys.readouterr().out.splitlines()]
    assert letters == [f"{number}-0" for number in range(1, 251)]


def test_empty_list_says_so(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr: a program that counts lines gets none."""
    assert queue.dead("list") == Exit.OK
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "no dead letters\n")


def test_show_prints_request_and_history(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole letter, also as JSON; what is not there fails."""
    entry = queue.bury({"prompt": PROMPT}, request_id="r")
    assert queue.dead("show", entry) == Exit.OK
    shown = capsys.readouterr().out
    assert PROMPT in shown
    assert '"attempt": 1' in shown
    assert queue.dead("show", entry, "--json") == Exit.OK
    letter = json.loads(capsys.readouterr().out)
    assert (letter["letter"], letter["reason"], letter["data"]["fields"]) == (
        entry,
        "poisoned",
        {"prompt": PROMPT},
    )
    assert queue.dead("show", "1-1") == Exit.FAILED
    assert "1-1: there is no such dead letter" in capsys.readouterr().err


def test_retry_queues_original_fields_and_unseals(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """On its own lane, byte for byte; its old error is gone, so that it can be answered."""
    entry = queue.bury({"id": "r", "prompt": "zażółć", "context": {"base64": "//4A"}}, request_id="r", lane="low")
    assert queue.dead("retry", entry) == Exit.OK
    assert capsys.readouterr().out == f"{entry} queued again as r\n"
    assert queue.requests("llm:requests:low") == [
        {b"id": b"r", b"prompt": "zażółć".encode(), b"context": b"\xff\xfe\x00"}
    ]
    assert queue.requests() == []
    assert queue.letters() == 0
    assert not queue.redis.exists("llm:events:r")


def test_retry_without_own_id_tells_new_one(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """It goes by its entry's ID, and that is another one now."""
    letter = queue.bury({"prompt": "Why?"})
    assert queue.dead("retry", letter, "--json") == Exit.OK
    [(entry, _)] = queue.redis.xrange("llm:requests")
    assert json.loads(capsys.readouterr().out) == {
        "letter": letter,
        "done": True,
        "id": entry.decode(),
        "renamed": True,
    }


@pytest.mark.parametrize(
    ("type_", "why"), [("result", "answered or cancelled"), ("cancelled", "answered or cancelled")]
)
def test_retry_leaves_what_was_answered(queue: Queue, capsys: pytest.CaptureFixture[str], type_: str, why: str) -> None:
    """An answer under the id is never removed; the daemon would drop the request at once."""
    entry = queue.bury({"id": "r", "prompt": "Why?"}, request_id="r")
    queue.redis.delete("llm:events:r")
    queue.seal("r", type_)
    assert queue.dead("retry", entry) == Exit.FAILED
    assert why in capsys.readouterr().err
    assert queue.redis.exists("llm:events:r")
    assert (queue.letters(), queue.requests()) == (1, [])


def test_retry_leaves_what_is_being_answered(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody submitted the id again: this would be a duplicate."""
    entry = queue.bury({"id": "r", "prompt": "Why?"}, request_id="r")
    queue.redis.delete("llm:events:r")
    queue.redis.xadd("llm:events:r", {"type": "attempt", "data": "{}"}, id="1-0")
    assert queue.dead("retry", entry) == Exit.FAILED
    assert "submitted again" in capsys.readouterr().err
    assert (queue.letters(), queue.requests()) == (1, [])


@pytest.mark.parametrize("fields", [{}, {"prompt": 1}, {"prompt": {"base64": "%"}}, {"prompt": None}])
def test_retry_refuses_what_it_cannot_restore(
    queue: Queue, capsys: pytest.CaptureFixture[str], fields: dict[str, Any]
) -> None:
    """Nothing is queued that was not submitted, and the letter stays."""
    entry = queue.bury(fields, request_id="r")
    assert queue.dead("retry", entry) == Exit.FAILED
    assert "does not hold what was submitted" in capsys.readouterr().err
    assert (queue.letters(), queue.requests()) == (1, [])


def test_retry_goes_on_after_a_missing_one(queue: Queue) -> None:
    """The others are retried, and the exit code tells."""
    entry = queue.bury({"id": "r", "prompt": "Why?"}, request_id="r")
    assert queue.dead("retry", "1-1", entry) == Exit.FAILED
    assert len(queue.requests()) == 1


def test_retry_all_and_drop_all(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """Every letter there is."""
    for number in range(3):
        queue.bury({"id": f"r{number}", "prompt": "Why?"}, request_id=f"r{number}")
    assert queue.dead("retry", "--all") == Exit.OK
    assert (queue.letters(), len(queue.requests())) == (0, 3)
    queue.bury({"prompt": "Why?"}, request_id="r")
    assert queue.dead("drop", "--all", "--json") == Exit.OK
    assert queue.letters() == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["done"] is True


def test_drop_removes_one(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """And only one; a second time there is none."""
    entry = queue.bury({"prompt": "Why?"}, request_id="r1")
    queue.bury({"prompt": "Why?"}, request_id="r2")
    assert queue.dead("drop", entry) == Exit.OK
    assert queue.letters() == 1
    assert queue.dead("drop", entry, "--json") == Exit.FAILED
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["done"] is False


def test_foreign_entry_is_listed_and_not_retried(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """Something else in the stream is no reason to fail."""
    entry = queue.redis.xadd("llm:dead", {b"\xff": b"\xff", b"data": b"{broken", b"at_ms": b"99e9"}).decode()
    assert queue.dead("list") == Exit.OK
    assert queue.dead("retry", entry) == Exit.FAILED
    assert queue.dead("drop", entry) == Exit.OK
    assert queue.letters() == 0


def test_retry_at_maxmemory_changes_nothing(valkey_url: str) -> None:
    """The letter is removed only when the request is queued."""
    queue = Queue(valkey_url)
    entry = queue.bury({"id": "r", "prompt": "Why?"}, request_id="r")
    queue.redis.config_set("maxmemory", "1")
    assert queue.dead("retry", entry) == Exit.UNAVAILABLE
    queue.redis.config_set("maxmemory", "0")
    assert queue.letters() == 1
    assert queue.redis.exists("llm:events:r")
    queue.redis.close()


def test_large_integers_are_shown_and_queued_as_they_came(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """The letter holds what was submitted, and no number of it is read."""
    data = '{"id":"r","prompt":"Why?","metadata":{"n":36893488147419103232}}'
    entry = queue.bury({"data": data}, request_id="r")
    assert queue.dead("show", entry, "--json") == Exit.OK
    assert json.loads(capsys.readouterr().out)["data"]["fields"]["data"] == data
    assert queue.dead("retry", entry) == Exit.OK
    assert queue.requests() == [{b"data": data.encode()}]


_PEAK = """
import sys
from llm_routerd.cli.main import main
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
import llm_routerd.cli.dead
before = peak()
assert main(sys.argv[1:]) == 0
print(peak() - before)
"""


def test_list_takes_no_more_memory_for_long_letters(valkey_url: str) -> None:
    """Older versions kept requests of any length, and whoever may write letters may write such; heads are kept."""
    queue = Queue(valkey_url)
    queue.redis.eval(
        "for i = 1, 6 do redis.call('XADD', KEYS[1], '*', 'id', 'r' .. i, 'reason', 'request_too_large', 'at_ms', '1',"
        " 'data', '{\"fields\":{\"prompt\":\"' .. string.rep('x', 20000000) .. '\"}}') end",
        1,
        "llm:dead",
    )
    arguments = (sys.executable, "-c", _PEAK, "dead", "list", "--redis", valkey_url)
    *lines, growth = subprocess.run(arguments, capture_output=True, check=True, text=True).stdout.splitlines()
    assert [line.split()[3] for line in lines] == ["r1", "r2", "r3", "r4", "r5", "r6"]
    assert all("a letter of 20000" in line and "xxx" not in line for line in lines)
    assert int(growth) < 50_000_000
    queue.redis.close()


def test_letter_that_is_too_long_is_told_and_not_queued(
    queue: Queue, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the sizes and hashes of its fields and their beginnings; it can be dropped."""
    monkeypatch.setattr("llm_routerd.client.dead_letters._LISTED", Bounds(most_bytes=50_000))
    monkeypatch.setattr("llm_routerd.client.dead_letters._SHOWN", Bounds(most_bytes=50_000))
    text = "x" * 300_000
    long = queue.bury({"prompt": text}, request_id="long")
    short = queue.bury({"prompt": PROMPT}, request_id="short")
    assert queue.dead("list", "--json") == Exit.OK
    letters = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [letter["letter"] for letter in letters] == [long, short]
    size = letters[0]["unread"]["bytes"]
    assert (size > 300_000, letters[0]["id"], "unread" in letters[1]) == (True, "long", False)
    assert queue.dead("show", long, "--json") == Exit.OK
    unread = json.loads(capsys.readouterr().out)["unread"]
    data = json.dumps({"fields": {"prompt": text}, "history": [{"attempt": 1}]})
    assert unread["bytes"] == size
    assert unread["fields"]["data"] == {
        "bytes": len(data),
        "sha256": hashlib.sha256(data.encode()).hexdigest(),
        "beginning": data[:8192],
    }
    assert unread["fields"]["reason"] == {"bytes": 8, "beginning": "poisoned"}
    assert queue.dead("show", long) == Exit.OK
    assert f"a letter of {size} bytes" in capsys.readouterr().out
    assert queue.dead("retry", long) == Exit.FAILED
    assert "too long to be read" in capsys.readouterr().err
    assert (queue.letters(), queue.requests()) == (2, [])
    assert queue.dead("drop", "--all") == Exit.OK
    assert queue.letters() == 0


def test_letters_of_several_shards_are_named_with_theirs(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """As `list` names them they are taken; an entry alone that two shards have is not guessed."""
    letter = {"lane": "low", "id": "r", "reason": "poisoned", "data": json.dumps({"fields": {"prompt": PROMPT}})}
    for shard in (0, 2):
        queue.redis.xadd(f"{{llm:{shard}}}:dead", letter, id="5-1")
    shards = ("--shards", "3")
    assert queue.dead("list", *shards) == Exit.OK
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["{llm:0}/5-1", "{llm:2}/5-1"]
    for action in ("show", "retry", "drop"):
        assert queue.dead(action, "5-1", *shards) == Exit.FAILED
        said = capsys.readouterr().err
        assert said == "5-1: several shards have one of this entry: name one of {llm:0}/5-1, {llm:2}/5-1\n"
    assert queue.dead("drop", names[0], *shards) == Exit.OK
    assert queue.dead("drop", names[0], *shards) == Exit.FAILED
    capsys.readouterr()
    assert queue.dead("retry", "5-1", "--json", *shards) == Exit.OK
    assert json.loads(capsys.readouterr().out)["letter"] == "{llm:2}/5-1"
    assert queue.requests("{llm:2}:requests:low")
    assert queue.letters() == 0
