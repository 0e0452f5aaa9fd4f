"""The tables `[mcp.*]`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llm_routerd.config.mcp import McpServer
from llm_routerd.protocol.schema_files import load_schema
from tests.config.configs import error, load

EXAMPLE = Path(__file__).parents[2] / "systemd" / "config.toml"
FILES = "[mcp.files]\ncommand = ['server', '/srv']\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[mcp.x]", "mcp.x: needs a `command` that starts it, or the `url` where it is"),
        ("[mcp.x]\ncommand = ['a']\nurl = 'http://h/mcp'", "mcp.x: needs a `command` that starts it, or the `url`"),
        ("[mcp.x]\ncommand = []", "mcp.x: needs a `command`"),
        ("[mcp.x]\ncommand = 'a b'", "mcp.x.command: expected a list"),
        ("[mcp.x]\ncommand = ['']", "mcp.x.command.0: "),
        ("[mcp.x]\ncommand = ['a', '${env:TOKEN}']", "mcp.x.command: a reference has no place here"),
        (
            "[mcp.x]\ncommand = ['a']\nenv = { 'A=B' = 'c' }",
            "mcp.x.env: a name may hold letters, digits and _, at most 128, the first no digit",
        ),
        ("[mcp.x]\ncommand = ['a']\nheaders = { A = 'b' }", "mcp.x.headers: has a meaning beside `url` only"),
        ("[mcp.x]\nurl = 'http://h/mcp'\ncwd = '/'", "mcp.x.cwd: has a meaning beside `command` only"),
        ("[mcp.x]\nurl = 'http://h/mcp'\nenv = { A = 'b' }", "mcp.x.env: has a meaning beside `command` only"),
        ("[mcp.x]\nurl = 'h/mcp'", "mcp.x.url: expected an address like https://mcp.lan/mcp"),
        ("[mcp.x]\nurl = 'http://:80/mcp'", "mcp.x.url: expected an address"),
        ('[mcp.x]\nurl = "http://h/"\nheaders = { A = "b\\nc" }', "mcp.x.headers.A: expected another form"),
        ("[mcp.x]\ncommand = ['a']\nalow = ['*']", "mcp.x.alow: unknown key; did you mean `allow`?"),
        ("[mcp.x]\ncommand = ['a']\nallow = ['[a]']", "mcp.x.allow.0: expected another form"),
        ("[mcp.x]\ncommand = ['a']\nprefix = '.a'", "mcp.x.prefix: expected letters, digits and . _ -"),
        ("[mcp.x]\ncommand = ['a']\ntimeout_seconds = 0", "mcp.x.timeout_seconds: "),
        ("[mcp.'a.b']\ncommand = ['a']", "mcp: a name may hold letters, digits and _ -, at most 31, the first no -"),
        (FILES + "[mcp.b]\ncommand = ['b']\nprefix = 'files.more.'", "mcp.b.prefix: 'files.more.' begins with that of"),
        (FILES + "[mcp.b]\ncommand = ['b']\nprefix = ''", "mcp.files.prefix: 'files.' begins with that of mcp.b, ''"),
    ],
)
def test_what_is_unsound_is_told_with_its_key(text: str, message: str) -> None:
    """By `check`, without a server having been started."""
    assert error(text).startswith(message)


def test_defaults_are_the_careful_ones() -> None:
    """All tools are served, and every one asks that is not marked read-only."""
    server = load(FILES).mcp["files"]
    assert server == McpServer(name="files", command=("server", "/srv"))
    assert (server.name_prefix, server.allow, server.confirm, server.timeout_seconds) == ("files.", ("*",), None, 30.0)


def test_a_secret_that_is_missing_keeps_only_its_server_away() -> None:
    """The file is the daemon's too, which has not the bridge's secrets."""
    text = FILES + "env = { TOKEN = '${env:FILES_TOKEN}' }\n[mcp.web]\nurl = '${env:WEB_URL}'\n"
    servers = load(text).mcp
    assert (servers["files"].secret_missing, servers["web"].secret_missing) == ("FILES_TOKEN", "WEB_URL")
    found = load(text, FILES_TOKEN="the-secret", WEB_URL="http://h/the-secret").mcp
    assert (found["files"].env["TOKEN"], found["web"].url) == ("the-secret", "http://h/the-secret")
    assert "the-secret" not in repr(found)
    assert (found["files"].secret_missing, found["web"].secret_missing) == (None, None)


def test_example_file_shows_every_key() -> None:
    """As comments, for there is no server by default; with the sign away they are a sound configuration."""
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    start = lines.index("# [mcp.files]")
    shown = "\n".join(line.removeprefix("# ") for line in lines[start : lines.index("", start)] if line != "#")
    servers = load(shown, CREDENTIALS_DIRECTORY="/nowhere").mcp
    assert set(servers) == {"files", "house"}
    keys = load_schema("config")["$defs"]["mcpserver"]["properties"].keys()
    assert keys == set(re.findall(r"^([a-z_]+) = ", shown, re.MULTILINE))
