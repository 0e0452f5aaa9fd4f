"""`llm-routerd audit`: for people, for programs, and the sums."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import redis

from llm_routerd.cli.audit import line_of
from llm_routerd.cli.exits import Exit
from llm_routerd.cli.main import main
from llm_routerd.cli.terminal import Style
from llm_routerd.protocol.audit import AuditEntry
from tests.acceptance.test_systemd import restricted_server
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW_MS = int(time.time() * 1000)
HOUR_MS = 3_600_000
REJECTED = AuditEntry(
    kind="model",
    at_ms=NOW_MS - 8 * HOUR_MS,
    id="invoice-4711",
    outcome="rejected",
    code="first_token_timeout",
    tenant_id="accounts",
    attempt=1,
    deployment="local",
    cost_usd=0.0,
    latency_ms=8000,
    prompt_sha256="ab" * 32,
)
ANSWERED = AuditEntry(
    kind="model",
    at_ms=NOW_MS - 6 * HOUR_MS,
    id="evening-17",
    outcome="success",
    tenant_id="ada",
    attempt=1,
    turn=1,
    deployment="haiku",
    prompt_tokens=31,
    completion_tokens=9,
    cost_usd=0.000076,
    latency_ms=812,
)
UNPRICED = AuditEntry(
    kind="model", at_ms=NOW_MS - 5 * HOUR_MS, id="evening-17", outcome="success", deployment="x", prompt_tokens=5
)
TOOL = AuditEntry(
    kind="tool",
    at_ms=NOW_MS - 4 * HOUR_MS,
    id="evening-17",
    outcome="result",
    tool="weather",
    call_id="call_1",
    latency_ms=87,
)
AGREED = AuditEntry(
    kind="confirmation", at_ms=NOW_MS - 3 * HOUR_MS, id="evening-17", outcome="confirmed", tool="lights.switch", by="ada\x1b[31m"
)  # fmt: skip
ALL = (REJECTED, ANSWERED, UNPRICED, TOOL, AGREED)


@pytest.fixture
def url(broker_url: str) -> Iterator[str]:
    """A queue with entries in its audit, each written when it was over."""
    client: Any = redis.Redis.from_url(broker_url)
    for entry in ALL:
        flat = entry.flat()
        client.xadd("llm:audit", dict(zip(flat[::2], flat[1::2], strict=True)), id=f"{entry.at_ms}-0")
    yield broker_url
    client.close()


def test_json_lines_are_the_entries_and_the_sums_go_to_stderr(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One object a line, by the schema `audit`; a program sees nothing else."""
    assert main(["audit", "--json", "--redis", url]) == Exit.OK
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["outcome"] for line in lines] == ["rejected", "success", "success", "result", "confirmed"]
    assert lines[1] == {
        "kind": "model", "at_ms": ANSWERED.at_ms, "id": "evening-17", "outcome": "success", "tenant_id": "ada",
        "attempt": 1, "turn": 1, "deployment": "haiku", "prompt_tokens": 31, "completion_tokens": 9,
        "cost_usd": 0.000076, "latency_ms": 812,
    }  # fmt: skip
    assert captured.err.strip() == (
        "calls of models: 3, of tools: 1; words of people: 1; tokens: 45; cost: $0.000076; without a known price: 1"
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--since", "7h"], ALL[1:]),
        (["--since", "1d", "--until", "270m"], ALL[:3]),
        (["--since", datetime.fromtimestamp(NOW_MS / 1000 - 16_200, UTC).isoformat()], ALL[3:]),
        (["--until", "2001-02-03"], ()),
        (["--tenant", "ada"], (ANSWERED,)),
        (["--id", "invoice-4711"], (REJECTED,)),
        (["--kind", "confirmation"], (AGREED,)),
        (["--kind", "model", "--id", "evening-17", "--since", "19000s"], (UNPRICED,)),
    ],
)
def test_what_is_asked_for_is_what_is_shown(
    url: str, options: list[str], expected: tuple[AuditEntry, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Times from now by the server's clock, or as they are on a calendar."""
    assert main(["audit", "--json", "--redis", url, *options]) == Exit.OK
    found = [json.loads(line)["at_ms"] for line in capsys.readouterr().out.splitlines()]
    assert found == [entry.at_ms for entry in expected]


def test_for_people_there_is_a_line_each_and_no_escape_sequence_of_others(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who agreed calls himself what he likes."""
    assert main(["audit", "--redis", url]) == Exit.OK
    rejected, answered, unpriced, tool, agreed = capsys.readouterr().out.splitlines()
    assert rejected.split()[2:] == [
        "local", "rejected", "(first_token_timeout)", "8000", "ms", "$0.000000", "invoice-4711", "accounts",
    ]  # fmt: skip
    assert answered.split()[2:] == ["haiku", "success", "812", "ms", "31+9", "$0.000076", "evening-17", "ada"]
    assert "price ?" in unpriced
    assert tool.split()[2:] == ["weather()", "result", "87", "ms", "evening-17"]
    assert agreed.split()[2:4] == ["lights.switch?", "confirmed"]
    assert "\x1b" not in agreed


@pytest.mark.parametrize("width", [20, 40, 80])
def test_narrow_terminals_get_every_word(width: int) -> None:
    """Broken at blanks, what follows set in."""
    for entry in ALL:
        lines = line_of(entry, Style(enabled=False), width).splitlines()
        assert all(len(line) <= width for line in lines)
        assert entry.outcome in " ".join(lines)
        assert "".join(entry.id.split()) in "".join("".join(lines).split())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--since", "yesterday"], "--since"),
        (["--until", "2h30"], "--until"),
        (["--since", "99999999d"], ""),
        (["--follow", "--until", "1h"], "--follow"),
        (["--id", "no id"], "--id"),
    ],
)
def test_wrong_usage_is_one_line(
    url: str, options: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what lies before all clocks is all."""
    code = main(["audit", "--redis", url, *options])
    captured = capsys.readouterr()
    assert code == (Exit.USAGE if complaint else Exit.OK)
    assert complaint in captured.err
    assert len(captured.err.splitlines()) == 1


def test_an_empty_audit_says_so(broker_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, and is no failure."""
    assert main(["audit", "--redis", broker_url]) == Exit.OK
    assert capsys.readouterr() == ("", "nothing in the audit\n")


def test_only_those_who_may_read_it(capsys: pytest.CaptureFixture[str]) -> None:
    """The user `auditor` of users.acl needs nothing more; a producer is told that he may not."""
    acl = (ROOT / "systemd" / "users.acl").read_text().replace("resetpass", "resetpass >pw")
    with restricted_server(acl) as login:
        operator = login("operator", "pw")
        socket = operator.run("CONFIG GET unixsocket")[1].decode()
        operator.run("XADD llm:audit * kind model at_ms 1 id q outcome success deployment local")
        assert main(["audit", "--since", "1h", "--redis", f"unix://auditor:pw@{socket}"]) == Exit.OK
        assert "local" in capsys.readouterr().out
        assert main(["audit", "--redis", f"unix://producer:pw@{socket}"]) == Exit.NOT_ALLOWED
        assert capsys.readouterr().out == ""


def test_following_goes_on_until_ctrl_c(valkey_url: str) -> None:
    """What comes later is shown, and the sums at the end."""
    client: Any = redis.Redis.from_url(valkey_url)
    command = [sys.executable, "-m", "llm_routerd", "audit", "--follow", "--json", "--redis", valkey_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for number in range(2):
                flat = ANSWERED.flat()
                client.xadd("llm:audit", dict(zip(flat[::2], flat[1::2], strict=True)))
                assert json.loads(process.stdout.readline())["id"] == "evening-17", number
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == Exit.INTERRUPTED
        finally:
            process.kill()
        assert "calls of models: 2" in process.stderr.read()
    client.close()
