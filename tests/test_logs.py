from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from llm_routerd.config.tree import LogConfig
from llm_routerd.errors import ConfigError
from llm_routerd.logs import format_exception, get_logger, on_loop_exception, set_up_logs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PROMPT = "why is the sky blue"


class Terminal(io.BytesIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Return True."""
        return True


class Closed(io.BytesIO):
    """A pipe whose reader has gone."""

    def write(self, _: Any) -> int:
        """Fail as the system does."""
        raise BrokenPipeError(32, "Broken pipe")


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Put the process's logging back as it was."""
    root = logging.getLogger()
    handlers, level, config = list(root.handlers), root.level, structlog.get_config()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**config)


@pytest.fixture
def stream() -> io.BytesIO:
    """Return a pipe that takes JSON lines of level debug and above."""
    stream = io.BytesIO()
    set_up_logs(LogConfig(level="debug"), stream=stream, environ={})
    return stream


def lines(stream: io.BytesIO) -> list[dict[str, Any]]:
    """Return the logged events."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    "fields",
    [
        {"api_key": "hunter2"},
        {"headers": {"Authorization": "hunter2"}},
        {"redis_password": "hunter2"},
        {"url": "redis://:hunter2@host:6379/0"},
        {"url": "rediss://user:hunter2@host/0 failed"},
        {"url": "redis://:a/b@hunter2@host/0"},
        {"url": "https://hunter2@host/"},
        {"url": "unix:///run/valkey.sock?db=0&password=hunter2"},
        {"reason": "401 for Bearer hunter2"},
        {"reason": "Incorrect API key provided: sk-hunter2hunter2hunter2"},
        {"nested": [{"client_secret": "hunter2"}]},
        {"prompt": "hunter2"},
        {"messages": [{"content": "hunter2"}]},
        {"raw_text": "hunter2"},
        {"too_deep": [[[[["hunter2"]]]]]},
        {"error": ValueError("hunter2")},
        {"call": object.__new__(type("Call", (), {"__repr__": lambda _: "hunter2"}))},
    ],
    ids=str,
)
def test_secrets_and_texts_that_get_into_an_event_are_masked(stream: io.BytesIO, fields: dict[str, Any]) -> None:
    """The last resort: nobody should log them, and it does no harm when somebody does."""
    get_logger().info("event", **fields)
    assert lines(stream)[0]["event"] == "event"
    assert b"hunter2" not in stream.getvalue()


def test_harmless_fields_stay_as_they_are(stream: io.BytesIO) -> None:
    """The scrubber does not eat what an operator needs."""
    fields = {"id": "a-b:c.d", "deployment": "local", "tokens": 3, "url": "redis://host/0", "lanes": ["high"]}
    get_logger().info("event", **fields)
    assert lines(stream)[0].items() >= fields.items()


def test_a_value_is_cut_where_it_gets_absurd(stream: io.BytesIO) -> None:
    """A server's error page is not to fill the journal, nor a hostile one to keep the scrubber busy."""
    get_logger().info("event", reason="://a:" * 200_000)
    assert len(lines(stream)[0]["reason"]) <= 2000


def test_what_json_cannot_hold_is_logged_all_the_same(stream: io.BytesIO) -> None:
    """A lone surrogate or a large integer must not raise from a log call."""
    get_logger().info("event", text_of_server="\ud800", size=2**70, names={1: b"x"})
    assert lines(stream)[0]["size"] == 2**70


def test_a_reader_that_has_gone_does_not_matter() -> None:
    """The daemon outlives its terminal."""
    set_up_logs(LogConfig(), stream=Closed(), environ={})
    get_logger().error("event")


def test_a_traceback_has_no_locals_and_no_foreign_message(stream: io.BytesIO) -> None:
    """ValueError and its like quote what they choke on."""

    def parse(prompt: str) -> int:
        return int(prompt)

    try:
        parse(_PROMPT)
    except ValueError:
        get_logger().exception("request_failed")
    event = lines(stream)[0]
    assert _PROMPT not in event["exception"]
    assert "in parse" in event["exception"]
    assert event["exception"].endswith("ValueError")
    assert event["level"] == "error"


def test_causes_and_groups_are_described_once() -> None:
    """A chain, a group, and a cycle of both end."""
    cause, outer = OSError(111, "refused"), ConfigError("redis.url: no such host")
    outer.__cause__ = cause
    cause.__context__ = outer
    text = format_exception(ExceptionGroup(_PROMPT, [outer, KeyError(_PROMPT)]))
    assert text.count("refused") == 1
    assert text.count("no such host") == 1
    assert "KeyError" in text
    assert _PROMPT not in text


def test_a_level_that_is_off_writes_nothing() -> None:
    """The configured level counts for our lines."""
    stream = io.BytesIO()
    set_up_logs(LogConfig(level="warning"), stream=stream, environ={})
    get_logger().info("quiet")
    get_logger().warning("loud")
    assert [event["event"] for event in lines(stream)] == ["loud"]


def test_libraries_are_heard_from_warning_up_without_their_arguments(stream: io.BytesIO) -> None:
    """Arguments of a library's message may be a request's data."""
    library = logging.getLogger("aiohttp.client")
    library.info("chatter")
    library.warning("cannot read %s", _PROMPT)
    library.log(99, "odd level")
    events = lines(stream)
    assert [(event["library"], event["what"]) for event in events] == [
        ("aiohttp.client", "cannot read %s"),
        ("aiohttp.client", "odd level"),
    ]
    assert events[0]["level"] == "warning"
    assert _PROMPT.encode() not in stream.getvalue()


async def test_what_the_event_loop_reports_is_logged_without_data(stream: io.BytesIO) -> None:
    """A callback that raises is named by asyncio with its arguments."""

    def callback(_: str) -> None:
        raise ValueError(_PROMPT)

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(on_loop_exception)
    loop.call_soon(callback, _PROMPT)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    event = lines(stream)[0]
    assert event["event"] == "event_loop_exception"
    assert "ValueError" in event["exception"]
    assert _PROMPT.encode() not in stream.getvalue()


def test_a_terminal_gets_readable_lines_with_control_characters_escaped() -> None:
    """A server's error text must not steer the operator's terminal."""
    stream = Terminal()
    set_up_logs(LogConfig(), stream=stream, environ={"NO_COLOR": "1"})
    get_logger().info("event", reason="\x1b]0;owned\x07", deployment="local")
    line = stream.getvalue().decode()
    assert "deployment='local'" in line
    assert "\x1b" not in line


@pytest.mark.parametrize(("environ", "colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)])
def test_no_color_is_respected(environ: dict[str, str], colored: bool) -> None:
    """As no-color.org has it: set and not empty."""
    stream = Terminal()
    set_up_logs(LogConfig(), stream=stream, environ=environ)
    get_logger().info("event")
    assert (b"\x1b[" in stream.getvalue()) is colored


def test_the_journal_gets_priorities(tmp_path: Path) -> None:
    """`journalctl -p warning` needs them, and the journal strips them."""
    with (tmp_path / "journal").open("wb") as stream:
        status = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        set_up_logs(LogConfig(), stream=stream, environ=environ)
        get_logger().warning("event")
    assert (tmp_path / "journal").read_bytes().startswith(b"<4>{")


def test_importing_logs_leaves_rich_out_and_importable() -> None:
    """Rich costs 40 ms and 4 MB, and its tracebacks print local variables."""
    code = (
        "import sys, llm_routerd.logs, structlog\n"
        "assert not any(name.partition('.')[0] == 'rich' for name in sys.modules), 'rich is loaded'\n"
        "assert structlog.dev.rich is None\n"
        "import rich\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
