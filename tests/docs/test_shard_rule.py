"""The lines of docs/scale.md that tell the shard of an id, in each language that is installed here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

from llm_routerd.protocol.keys import Layout
from tests.support.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

IDS = ("123456789", "order-17", "1795163715000-0", "{tag}:7", "gruß-日本", "x" * 200, "7", "it's")
SHARDS = (1, 4, 7, 16, 1024)


class Language(NamedTuple):
    """How a block is made a program that prints the shard of its first argument of so many."""

    command: tuple[str, ...]
    suffix: str
    before: str
    after: str


LANGUAGES = {
    "sh": Language(("sh",), ".sh", "", 'shard_of "$1" "$2"'),
    "python": Language((sys.executable,), ".py", "import sys\n", "print(shard_of(sys.argv[1], int(sys.argv[2])))"),
    "js": Language(("node",), ".js", "", "console.log(shardOf(process.argv[2], Number(process.argv[3])))"),
    "go": Language(
        ("go", "run"),
        ".go",
        'package main\nimport ("fmt"; "os"; "strconv")\n',
        "func main() { n, _ := strconv.Atoi(os.Args[2]); fmt.Println(shardOf(os.Args[1], n)) }",
    ),
    "ruby": Language(("ruby",), ".rb", "", "puts shard_of(ARGV[0], ARGV[1].to_i)"),
    "php": Language(("php",), ".php", "<?php\n", "echo shard_of($argv[1], (int) $argv[2]);"),
    "lua": Language(("lua",), ".lua", "", "print(string.format('%d', shard_of(arg[1], tonumber(arg[2]))))"),
}


def _block(language: str) -> str:
    blocks = re.findall(
        rf"^```{language}\n(.*?)^```$", (ROOT / "docs" / "scale.md").read_text(), re.MULTILINE | re.DOTALL
    )
    found: str
    (found,) = (block for block in blocks if "shard_of" in block or "shardOf" in block)
    return found


def _program(language: str, directory: Path) -> list[str]:
    kind = LANGUAGES[language]
    if shutil.which(kind.command[0]) is None:
        pytest.skip(f"no {kind.command[0]} here")
    file = directory / f"shard{kind.suffix}"
    file.write_text(kind.before + _block(language) + kind.after + "\n", encoding="utf-8")
    if language != "go":
        return [*kind.command, str(file)]
    built = directory / "shard"
    subprocess.run(["go", "build", "-o", str(built), str(file)], check=True, timeout=110, cwd=directory)
    return [str(built)]


@pytest.mark.parametrize("language", list(LANGUAGES))
def test_lines_of_each_language_tell_the_shard_of_an_id(language: str, tmp_path: Path) -> None:
    """As the daemon has it, whatever the id holds."""
    program = _program(language, tmp_path)
    for request_id in IDS:
        for shards in SHARDS if request_id == IDS[1] else (16,):
            told = subprocess.run(
                [*program, request_id, str(shards)], check=True, timeout=60, capture_output=True, text=True
            )
            assert int(told.stdout) == Layout("llm", shards).shard_of(request_id), (request_id, shards)
