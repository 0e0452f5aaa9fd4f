"""From the command line to a request, and what wrong usage gets."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from llm_routerd.cli.exits import Exit, UsageError
from llm_routerd.cli.main import build_parser, main, parse
from llm_routerd.cli.submit import build_request

if TYPE_CHECKING:
    from pathlib import Path

    from llm_routerd.client import RequestFields

NOWHERE = ("--redis", "redis://127.0.0.1:1/0")


def request_of(*argv: str) -> RequestFields:
    """The request that `llm-routerd submit ARGV` would add."""
    return build_request(build_parser().parse_args(["submit", *argv]))


def test_prompt_alone_is_a_request_with_an_id() -> None:
    """Nothing else is sent, so that the daemon's defaults hold; not even an answer's tokens, off a terminal."""
    request = request_of("Why?")
    assert set(request) == {"id", "prompt"}
    assert request["prompt"] == "Why?"
    assert request_of("Why?")["id"] != request["id"]


def test_every_option_reaches_its_property(tmp_path: Path) -> None:
    """As the protocol spells it."""
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    assert request_of(
        *(
            "Why?",
            "--id",
            "a:1",
            "--model",
            "fast",
            "--schema",
            str(schema),
            "--tenant",
            "t",
            "--context",
            "c",
        ),
        *(
            "--local-only",
            "--param",
            "temperature=0.5",
            "--param",
            "stop=END",
            "--param",
            'stop2=["a"]',
            "--live",
        ),
    ) == {
        "id": "a:1",
        "prompt": "Why?",
        "model": "fast",
        "schema": {"type": "object"},
        "tenant_id": "t",
        "context": "c",
        "local_only": True,
        "params": {"temperature": 0.5, "stop": "END", "stop2": ["a"]},
        "stream": "live",
    }


@pytest.mark.parametrize(
    ("argv", "is_terminal", "stream"),
    [
        ((), False, None),
        ((), True, "probe"),
        (("--stream",), False, "probe"),
        (("--live",), True, "live"),
        (("--no-stream",), True, None),
        (("--json",), True, None),
        (("--no-wait",), True, None),
        (("--no-wait", "--stream"), True, "probe"),
    ],
)
def test_tokens_are_asked_for_where_they_are_seen(
    monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], is_terminal: bool, stream: str | None
) -> None:
    """On a terminal by default; `--stream` before the prompt does not swallow it."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    request = request_of(*argv, "Why?")
    assert request.get("stream") == stream
    assert request["prompt"] == "Why?"


def test_prompt_comes_from_file_or_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, line ends included."""
    file = tmp_path / "prompt"
    file.write_bytes("zażółć\r\n".encode())
    assert request_of("--file", str(file))["prompt"] == "zażółć\r\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from stdin")))
    assert request_of("--file", "-")["prompt"] == "from stdin"


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ((), "either as an argument or with --file"),
        (("Why?", "--file", "x"), "either as an argument or with --file"),
        (("--file", "absent"), "No such file"),
        (("--file", "."), "Is a directory"),
        (("--file", "latin1"), "not UTF-8"),
        (("Why?", "--schema", "absent"), "No such file"),
        (("Why?", "--schema", "broken"), "line 2, column 1"),
        (("Why?", "--schema", "list"), "expected an object"),
        (("Why?", "--param", "temperature"), "NAME=VALUE"),
        (("Why?", "--param", "=1"), "NAME=VALUE"),
        (("Why?", "--id", "a b"), "--id: an id has 1 to 128"),
        (("Why\udcff?",), "cannot be sent"),
        (("Why?", "--tenant", "\udcff"), "cannot be sent"),
    ],
)
def test_unusable_arguments_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], complaint: str
) -> None:
    """Before Redis is asked, with what is wrong about them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin1").write_bytes(b"\xe4")
    (tmp_path / "broken").write_text("{\n")
    (tmp_path / "list").write_text("[]")
    with pytest.raises(UsageError, match=complaint):
        request_of(*argv)
    assert main(["submit", *NOWHERE, *argv]) == Exit.USAGE


@pytest.mark.parametrize(
    "argv",
    [
        ("submit", "Why?", "--timeout", "0"),
        ("submit", "Why?", "--timeout", "nan"),
        ("submit", "Why?", "--timeout", "soon"),
        ("submit", "Why?", "--stream", "--live"),
        ("submit", "Why?", "--lane", "express"),
        ("submit", "Why?", "--mod", "fast"),
        ("follow",),
        ("cancel",),
        ("dead",),
        ("dead", "bury"),
        ("nonsense",),
    ],
)
def test_argparse_refuses(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, also for an abbreviated option."""
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == Exit.USAGE
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("follow", "a b"), "an id has"),
        (("follow", "r", "--from", "$"), "a stream ID is"),
        (("cancel", ""), "an id has"),
        (("dead", "list", "1-0"), "did you mean show"),
        (("dead", "list", "--all"), "--all goes with"),
        (("dead", "show"), "which entry"),
        (("dead", "retry"), "either entries or --all"),
        (("dead", "drop", "1-0", "--all"), "either entries or --all"),
        (("dead", "drop", "x"), "a stream ID is"),
    ],
)
def test_wrong_usage_is_told_before_redis_is_asked(
    argv: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and one line, although there is no Redis."""
    assert main([*argv, *NOWHERE]) == Exit.USAGE
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [("submit", "Why?"), ("follow", "r"), ("cancel", "r"), ("dead", "list"), ("submit", "x", "--no-wait")],
)
@pytest.mark.parametrize("where", [NOWHERE, ("--redis", "redis://localhost:1/0")])
def test_absent_redis_is_told_at_once(
    argv: tuple[str, ...], where: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 69 and one line with a way out, no traceback, nothing on stdout."""
    assert main([*argv, *where]) == Exit.UNAVAILABLE
    captured = capsys.readouterr()
    assert captured.err.startswith("llm-routerd: Redis cannot be used: ")
    assert captured.err.endswith("or let it bring its own: llm-routerd serve --embedded\n")
    assert captured.err.count("\n") == 1
    assert not captured.out


@pytest.mark.parametrize("argv", [("submit", "Why?"), ("check",), ("dead", "list")])
def test_bad_configuration_exits_78(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever was to be done with it, and it says which file."""
    assert main([*argv, "--config", "absent.toml"]) == Exit.CONFIGURATION
    captured = capsys.readouterr()
    assert "absent.toml" in captured.out + captured.err


def test_url_with_password_is_not_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither when it is none nor when nobody answers there."""
    assert main(["cancel", "r", "--redis", "redis://u:secret@127.0.0.1:1/0"]) == Exit.UNAVAILABLE
    for url in ("redis://u:secret@h:port/0", "http://u:secret@h"):
        assert main(["cancel", "r", "--redis", url]) == Exit.CONFIGURATION
    assert "secret" not in capsys.readouterr().err


def test_no_command_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    """On stderr, as wrong usage."""
    assert main([]) == Exit.USAGE
    assert "commands:" in capsys.readouterr().err


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """By option and by command."""
    assert main(["--version"]) == main(["version"]) == Exit.OK
    one, two = capsys.readouterr().out.splitlines()
    assert one == two
    assert one.startswith("llm-routerd ")


def test_a_gateway_is_a_command_and_an_option() -> None:
    """Alone, where the file says or elsewhere; or beside the daemon."""
    alone, elsewhere = parse(["gateway"]), parse(["gateway", "--listen", "[::1]:80", "--prefix", "home"])
    assert (alone.module, alone.listen) == ("gateway", None)
    assert (elsewhere.listen, elsewhere.prefix) == ("[::1]:80", "home")
    assert (parse(["serve"]).gateway, parse(["serve", "--gateway"]).gateway) == (False, True)


def test_help_imports_nothing_heavy() -> None:
    """Neither Redis nor HTTP nor a model library is loaded to print a page of text."""
    code = (
        "import sys, json, llm_routerd.cli.main as m\n"
        "try: m.main(['submit', '--help'])\n"
        "except SystemExit: print(json.dumps(sorted(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    loaded = set(json.loads(output.stdout.splitlines()[-1]))
    assert not loaded & {"redis", "aiohttp", "litellm", "asyncio", "uvloop", "structlog", "orjson"}


@pytest.mark.parametrize(
    "words",
    [
        ("show", "--redis", "redis://h", "1-1", "2-2"),
        ("--redis", "redis://h", "show", "1-1", "2-2"),
        ("show", "1-1", "--redis", "redis://h", "2-2"),
        ("show", "1-1", "2-2", "--redis", "redis://h"),
    ],
    ids=" ".join,
)
def test_options_may_stand_anywhere_among_the_entries(words: tuple[str, ...]) -> None:
    """Whoever repeats a command with another entry appends it."""
    arguments = parse(["dead", *words])
    assert (arguments.action, arguments.entries, arguments.redis) == ("show", ["1-1", "2-2"], "redis://h")


@pytest.mark.parametrize("words", [("dead", "show", "1-1", "--nope", "2-2"), ("follow", "a", "--json", "b")])
def test_what_is_left_over_is_wrong_usage(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """An option that nobody knows, or a word too many."""
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == Exit.USAGE
    assert "unrecognized arguments" in capsys.readouterr().err
