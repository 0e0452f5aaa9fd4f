"""The demo as a person starts it: it shows what it says, ends by itself, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psutil
import pytest
from redis.exceptions import ResponseError

from tests.demo.redis_cli import RedisCli, as_shown
from tests.demo.screen import pretty_json
from tests.demo.stage import find_model, tool_worker_command
from tests.standin.server import StandIn
from tests.support.processes import ROOT, StandInProcess

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_NOBODY = "http://127.0.0.1:9"  # the discard service's port: nobody answers there


async def start_demo(directory: Path, environ: Mapping[str, str], *options: str) -> asyncio.subprocess.Process:
    """Start it with its temporary files in a directory, which is to be empty afterwards."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.demo", *options),
        cwd=ROOT,
        env={**os.environ, "OLLAMA_API_BASE": _NOBODY, "OLLAMA_MODEL": "", "TMPDIR": str(directory), **environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def run_demo(directory: Path, environ: Mapping[str, str], *options: str) -> tuple[int, str]:
    """Run it; return its exit status and its output."""
    demo = await start_demo(directory, environ, *options)
    async with asyncio.timeout(60):
        output, _ = await demo.communicate()
    assert demo.returncode is not None
    return demo.returncode, output.decode()


def left_of(directory: Path) -> list[str]:
    """What a demo has left: files, and processes that know the directory."""
    processes = psutil.process_iter(["cmdline"])
    return [str(path) for path in directory.iterdir()] + [
        " ".join(process.info["cmdline"]) for process in processes if str(directory) in str(process.info["cmdline"])
    ]


async def test_demo_shows_the_main_job_and_leaves_nothing(tmp_path: Path) -> None:
    """Each part with its proof, on a stand-in that says what it is; no colours off a terminal, no key used."""
    status, output = await run_demo(tmp_path, {"ANTHROPIC_API_KEY": "sk-ant-demo-canary"})
    assert status == 0, output
    shown = " ".join(output.split())
    for proof in (
        "A stand-in server speaks",
        "token events as the model wrote",
        "discarded: careless: schema_violation",
        "20 tokens were never written",
        "connection was closed",
        "none twice, none missing, and the model was asked once",
        '"early_stops": [',
        "XREAD BLOCK 30000 STREAMS llm:events:job-1 9007199254740990-0",
        "was killed and is gone, with its Valkey",
        "note confirmed by you",
        "The tools say: hello; noted.",
        "Three turns, each asked for once, and one note in the file.",
        "nothing of it is left",
    ):
        assert proof in shown
    assert "\x1b" not in output
    assert "canary" not in output
    assert left_of(tmp_path) == []


async def test_demo_uses_an_ollama_that_answers(tmp_path: Path) -> None:
    """With the model that `OLLAMA_MODEL` names, else with the first."""
    async with StandIn({"first": "", "second": "delay_ms=60"}) as ollama:
        status, output = await run_demo(tmp_path, {"OLLAMA_API_BASE": ollama.url, "OLLAMA_MODEL": "second"})
        assert {call["model"] for call in ollama.calls} == {"second"}
    assert status == 0, output
    assert f"second:latest, on the Ollama at {ollama.url}" in " ".join(output.split())
    assert "(always a stand-in" in output
    assert left_of(tmp_path) == []


async def test_demo_that_cannot_show_something_says_so_and_fails(tmp_path: Path) -> None:
    """An Ollama whose model fails makes no good demo, and none is pretended."""
    async with StandIn({"broken": "fail=500"}) as ollama:
        status, output = await run_demo(tmp_path, {"OLLAMA_API_BASE": ollama.url})
    assert status == 1
    assert "the demo was to show an answer; it ended in error chain_exhausted" in output
    assert "make demo DEMO=--stand-in" in output
    assert "nothing of it is left" not in output
    assert left_of(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_demo_that_is_interrupted_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C in the middle of an answer."""
    demo = await start_demo(tmp_path, {})
    assert demo.stdout is not None
    async with asyncio.timeout(30):
        async for line in demo.stdout:
            if b"attempt 1" in line:
                break
        demo.send_signal(number)
        rest = await demo.stdout.read()
        assert await demo.wait() == 130
    assert b"interrupted" in rest
    assert b"Traceback" not in rest
    assert left_of(tmp_path) == []


@pytest.mark.parametrize(
    ("models", "wanted", "name"),
    [
        ({"a": "", "b": ""}, "", "a:latest"),
        ({"a": "", "b": ""}, "b", "b:latest"),
        ({"a": "", "b": ""}, "absent", "a:latest"),
        ({}, "", ""),
    ],
)
async def test_ollama_is_used_with_the_model_asked_for_or_its_first(
    models: dict[str, str], wanted: str, name: str
) -> None:
    """And not at all where it has none."""
    async with StandIn(models) as ollama:
        model = await find_model({"OLLAMA_API_BASE": ollama.url, "OLLAMA_MODEL": wanted})
        assert model.is_standin == (not name)
        assert model.name == (name or "stand-in")


async def test_server_that_is_no_ollama_is_not_used() -> None:
    """Something else listens on that port."""

    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<ht>")
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert (await find_model({"OLLAMA_API_BASE": f"127.0.0.1:{port}"})).is_standin


def test_reply_is_shown_as_redis_cli_shows_it() -> None:
    """Nested lists line up, bytes are quoted, numbers are named."""
    reply = [[b"1-0", [b"type", b'a "b"\n\xc3']], 7, None, []]
    assert as_shown(reply) == (
        '1) 1) "1-0"\n   2) 1) "type"\n      2) "a \\"b\\"\\n\\xc3"\n2) (integer) 7\n3) (nil)\n4) (empty array)'
    )


async def test_installed_redis_cli_is_called_with_the_very_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is one; what it refuses is not shown as done."""
    program = tmp_path / "redis-cli"
    program.write_text('#!/bin/sh\nfor word; do echo "<$word>"; done\n[ "$4" != FAIL ]\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    cli = RedisCli(7)
    line = cli.line("XADD llm:requests '*' prompt 'Say hello.'")
    assert line == "redis-cli -p 7 XADD llm:requests '*' prompt 'Say hello.'"
    shown = await cli.run(line)
    assert shown.split("\n") == [
        "<-p>",
        "<7>",
        "<--no-raw>",
        "<XADD>",
        "<llm:requests>",
        "<*>",
        "<prompt>",
        "<Say hello.>",
    ]
    with pytest.raises(ResponseError):
        await cli.run(cli.line("FAIL"))


async def test_tools_are_served_in_python_where_the_shell_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redis-cli of before 7 knows no `-e`; one that is missing knows nothing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await tool_worker_command() == [sys.executable, "examples/python/tool_worker.py"]
    for name, status in (("redis-cli", 1), ("jq", 0)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {status}\n")
        (tmp_path / name).chmod(0o700)
    assert await tool_worker_command() == [sys.executable, "examples/python/tool_worker.py"]
    (tmp_path / "redis-cli").write_text("#!/bin/sh\nexit 0\n")
    assert await tool_worker_command() == ["sh", "examples/shell/tool-worker.sh"]


def test_json_opens_only_what_does_not_fit() -> None:
    """What fits stays on its line."""
    assert pretty_json({"a": [1, 2], "b": {"c": "x" * 20}}, 30) == (
        '{\n  "a": [1, 2],\n  "b": {\n    "c": "xxxxxxxxxxxxxxxxxxxx"\n  }\n}'
    )


async def test_stand_in_that_cannot_start_says_why_itself() -> None:
    """Whatever it writes is shown, and is no puzzle of JSON."""
    process = StandInProcess({"tiny": ""})
    process._arguments = ("-c", "import sys; print('Warning: old'); sys.exit('no room for another server')")
    with pytest.raises(RuntimeError) as caught:
        await process.__aenter__()
    assert "no room for another server" in str(caught.value)
    assert "Expecting value" not in str(caught.value)


def test_installing_is_said_before_it_is_silent(tmp_path: Path) -> None:
    """A fresh clone installs for half a minute first; what it does stands on the first line."""
    tool = "#!/bin/sh\nexit 0\n"
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\n[ "$1$2" != -mvenv ] || { mkdir -p "$3/bin"; cp "$(dirname "$0")/tool" "$3/bin/pip"; }\n'
    )
    (tmp_path / "tool").write_text(tool)
    for file in (python, tmp_path / "tool"):
        file.chmod(0o700)
    environ = {key: value for key, value in os.environ.items() if key not in {"MAKEFLAGS", "MAKELEVEL"}}
    venv = tmp_path / "venv"
    run = subprocess.run(
        ["make", "--no-print-directory", f"{venv}/.installed", f"VENV={venv}", f"PYTHON={python}"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith(f"Installing what is needed into {venv}: ")
    assert (venv / "bin" / "pip").exists()
