"""What `check` says of MCP servers; none is started."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from llm_routerd.cli import check_mcp
from llm_routerd.cli.findings import Level
from llm_routerd.config.mcp import McpServer
from llm_routerd.config.tree import Config

if TYPE_CHECKING:
    from llm_routerd.cli.findings import Finding


def found(**keys: Any) -> list[Finding]:
    """What is said of one server."""
    return check_mcp.check_mcp(Config(mcp={"x": McpServer(name="x", **keys)}))


@pytest.mark.parametrize(
    ("keys", "level", "says"),
    [
        ({"command": (sys.executable, "-m", "x")}, Level.OK, f"can be started: {sys.executable}"),
        ({"command": ("sh",)}, Level.OK, "can be started: sh"),
        ({"command": ("sh",), "env": {"PATH": "/nowhere"}}, Level.WARN, "there is no program sh"),
        ({"command": ("no-such-program",)}, Level.WARN, "there is no program no-such-program"),
        ({"command": ("./sh",), "cwd": "/bin"}, Level.OK, "can be started: ./sh"),
        ({"command": ("sh",), "cwd": "/nowhere"}, Level.WARN, "there is no folder /nowhere"),
        ({"url": "https://user:secret@h/mcp"}, Level.OK, "is reached over HTTP, which was not tried"),
        ({"secret_missing": "TOKEN"}, Level.WARN, "is not served: its secret is missing (TOKEN)"),
    ],
)
def test_what_keeps_a_server_from_being_started_is_told(keys: dict[str, Any], level: Level, says: str) -> None:
    """With what to do, and no secret."""
    (finding,) = found(**keys)
    assert (finding.level, finding.subject) == (level, "MCP server x")
    assert says in finding.detail
    assert bool(finding.remedy) == (level is Level.WARN)
    assert "secret@" not in str(finding)


def test_nothing_is_said_where_there_is_no_server() -> None:
    """Most configurations have none."""
    assert check_mcp.check_mcp(Config()) == []


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that brings it."""
    monkeypatch.setattr(check_mcp, "find_spec", lambda _: None)
    first, _ = found(command=("sh",))
    assert (first.level, first.remedy) == (Level.WARN, "pip install 'llm-routerd[mcp]'")
