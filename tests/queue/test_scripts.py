"""That a script and its signature cannot drift apart: what a script uses it has, and what it has it uses."""

import itertools
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import redis
from lupa import lua51  # type: ignore[import-untyped]

from llm_routerd.queue import scripts
from llm_routerd.queue.scripts import binding
from llm_routerd.queue.scripts.binding import ArgumentList, Key, KeyList, Lanes, Script, code_of, defined_in, paragraphs

EVERY = [each for each in vars(scripts).values() if isinstance(each, Script)]
FILES = {path.stem: path for path in Path(binding.__file__).parent.joinpath("lua").glob("*.lua")}
# What Redis lets a script see, as far as ours have a use for it.
GLOBALS = frozenset(
    {"KEYS", "ARGV", "cjson", "ipairs", "math", "pairs", "pcall", "redis", "string", "table", "tonumber", "tostring"}
    | {"type", "unpack"}
)
KEYWORDS = frozenset(
    [
        "and",
        "break",
        "do",
        "else",
        "elseif",
        "end",
        "false",
        "for",
        "function",
        "if",
        "in",
        "local",
        "nil",
        "not",
        "or",
        "repeat",
        "return",
        "then",
        "true",
        "until",
        "while",
    ]
)
GETGLOBAL, SETGLOBAL = 5, 7

each_script = pytest.mark.parametrize("script", EVERY, ids=lambda script: script.name)


def words_of(source: str) -> set[str]:
    """The words of its code; of `one.two` the first."""
    return set(re.findall(r"(?<![\w.])[A-Za-z_]\w*", code_of(source)))


def header_of(script: Script[...]) -> str:
    """The comment that a script begins with."""
    return "\n".join(itertools.takewhile(lambda line: line.startswith("--"), script.body.splitlines()))


class Bytecode:
    """The globals that a compiled chunk of Lua 5.1 names, its inner functions included."""

    def __init__(self, source: str) -> None:
        lua = lua51.LuaRuntime(encoding=None)
        self._data: bytes = lua.eval(b"function(source) return string.dump(assert(loadstring(source))) end")(
            source.encode()
        )
        self._at = 12  # behind the header
        self.read: set[str] = set()
        self.written: set[str] = set()
        self._function()

    def _take(self, form: str) -> Any:
        (value,) = struct.unpack_from("<" + form, self._data, self._at)
        self._at += struct.calcsize("<" + form)
        return value

    def _string(self) -> str:
        size = self._take("Q")
        self._at += size
        return self._data[self._at - size : self._at][:-1].decode("utf-8", "replace")

    def _constant(self) -> Any:
        match self._take("B"):
            case 1:
                return self._take("B")
            case 3:
                return self._take("d")
            case 4:
                return self._string()
        return None

    def _function(self) -> None:
        self._string()
        self._at += 2 * 4 + 4  # lines, upvalues, parameters, varargs, stack
        code = [self._take("I") for _ in range(self._take("i"))]
        constants = [self._constant() for _ in range(self._take("i"))]
        for instruction in code:
            opcode, name = instruction & 0x3F, constants[instruction >> 14 :][:1]
            if opcode == GETGLOBAL:
                self.read.update(name)
            elif opcode == SETGLOBAL:
                self.written.update(name)
        for _ in range(self._take("i")):
            self._function()
        for _ in range(self._take("i")):
            self._at += 4
        for _ in range(self._take("i")):
            self._string()
            self._at += 8
        for _ in range(self._take("i")):
            self._string()


def test_every_file_has_a_signature_and_the_other_way_round() -> None:
    """A script is a file and a signature of its name."""
    assert set(FILES) - set(binding.PRELUDES) == {script.name for script in EVERY}
    assert set(scripts.ALL) | {scripts.look_up, scripts.retry, scripts.survey} == set(EVERY)


@each_script
def test_script_uses_what_its_signature_names_and_nothing_else(script: Script[...]) -> None:
    """No name is undeclared, none is idle, and nobody counts positions."""
    used = words_of(script.body)
    assert set(script.names) <= used
    assert not used & {"KEYS", "ARGV"}
    code = Bytecode(script.source)
    assert code.read <= GLOBALS
    assert not code.written


@each_script
def test_names_of_a_signature_hide_nothing(script: Script[...]) -> None:
    """Neither a word of Lua, nor what Redis gives, nor what a prelude defines."""
    assert not set(script.names) & (GLOBALS | KEYWORDS | paragraphs().keys())
    assert not set(defined_in(script.body)) & (paragraphs().keys() | set(script.names))


@each_script
def test_header_tells_each_name_what_comes_back_and_what_holds_after_a_lost_reply(script: Script[...]) -> None:
    """In this order."""
    header = header_of(script)
    assert re.search(r"^-- Keys: .*^-- Arguments: .*^-- Returns ", header, re.MULTILINE | re.DOTALL)
    assert set(script.names) <= set(re.findall(r"\w+", header))
    assert re.search(r"Changes nothing|May be repeated|After a lost reply", header)


def test_what_a_prelude_defines_is_used() -> None:
    """By a script."""
    known = set().union(*(defined_in(script.source.removesuffix(script.body)) for script in EVERY))
    assert paragraphs().keys() <= known


def every_kind(
    *,
    first: Key,
    lanes: Lanes,
    rest: KeyList,
    text: str,
    number: int,
    some: int | None,
    none: int | None,
    yes: bool,
    no: bool,
    empty: ArgumentList,
    full: ArgumentList,
) -> Any:
    """A signature with each kind of key and argument."""


def test_values_are_in_lua_what_they_are_in_python(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On fakeredis and on a server."""
    body = (
        "return cjson.encode({first, lanes.high, lanes.normal, lanes.low, rest[1], #rest, text, number, some, "
        "none == nil, yes, no, #empty, full[1], full[2], #full})"
    )
    monkeypatch.setattr(binding, "_read", lambda _name: body)
    call = binding.script(every_kind)(
        first="a", lanes=("h", "n", "l"), rest=["r"], text="1", number=0, some=0, none=None, yes=True, no=False,
        empty=(), full=("x", b"y"),
    )  # fmt: skip
    with redis.Redis.from_url(broker_url) as client:
        reply = client.eval(call.script.source, *call.command[2:])
    assert reply == b'["a","h","n","l","r",1,"1",0,0,true,true,false,0,"x","y",2]'


def test_a_call_with_a_wrong_name_is_refused() -> None:
    """Also where mypy does not look."""
    with pytest.raises(TypeError, match="count"):
        scripts.take(lanes=("a", "b", "c"), consumer="w1", shut="")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="cuont"):
        scripts.take(lanes=("a", "b", "c"), consumer="w1", shut="", cuont=1)  # type: ignore[call-arg]
