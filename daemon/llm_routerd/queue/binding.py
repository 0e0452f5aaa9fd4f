"""Scripts with signatures: what a function names, its script has as locals.

A signature is a function without a body, and `lua/<its name>.lua` what it runs:

    @script
    def take(*, lanes: Lanes, consumer: str, count: int) -> Any: ...

`take.lua` finds the keys `lanes.high`, `lanes.normal`, `lanes.low`, the string `consumer` and the number `count`, and
`take(lanes=…, consumer=…, count=…)` makes the command, checked by mypy.  Positions are nobody's business: both sides
are made from the signature.  Types carry over:

- `Key` is one key, `Lanes` the keys of all lanes by name, `KeyList` any number of keys, the last ones;
- `str` and `bytes` are a string, `int` a number, `bool` a boolean, `int | None` a number or nil; `IntText` is a number
  that a script hands on to commands only, and stays a string: to be turned twice would take longer than the command;
- `ArgumentList` is a table of strings; on the wire its length goes before it.  Lists come after what is no list.

What several scripts know stands once, in a prelude (`streams.lua`, `workers.lua`), in paragraphs that each define a
name.  Before a script goes what it uses of them, and no more: a server runs the definitions at each call.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Generic, ParamSpec

from msgspec import Struct

from llm_routerd.protocol.events import FINAL_ID, FINAL_PART
from llm_routerd.protocol.keys import GROUP, HANDED_BACK, HANDED_BACK_IDLE_MS, LANES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

P = ParamSpec("P")

Key = Annotated[str, "key"]
Lanes = Annotated["Sequence[str]", "lanes"]
KeyList = Annotated["Sequence[str]", "keys"]
IntText = Annotated[int, "text"]
ArgumentList = Annotated["Sequence[Any]", "arguments"]

PRELUDES = ("streams", "workers")
CONSTANTS: Mapping[str, str] = {
    "FINAL": f"'{FINAL_ID}'",
    "FINAL_MS": f"{FINAL_PART}",
    "GROUP": f"'{GROUP}'",
    "HANDED_BACK": f"'{HANDED_BACK}'",
    "HANDED_BACK_IDLE_MS": f"{HANDED_BACK_IDLE_MS}",
    "LANES": f"{{{', '.join(map(repr, LANES))}}}",
}
_TO_LUA: Mapping[Any, str] = {int: "{} + 0", int | None: "tonumber({})", bool: "{} == '1'"}
_KEYS = (Key, Lanes, KeyList)
_TO_WIRE: Mapping[Any, Callable[[Any], Any]] = {
    int | None: lambda value: "" if value is None else value,
    bool: lambda value: "1" if value else "",
}
_MOST_UNPACKED = 7000
_NO_CODE = re.compile(r"'(?:\\.|[^'\\])*'|--[^\n]*")
_PARAGRAPH = re.compile(r"\n\n(?=--|local )")
_DEFINED = re.compile(r"^local (?:function )?([\w, ]+)", re.MULTILINE)


class Call(Struct, frozen=True):
    """A script, and the command that runs it on a server that knows it."""

    script: Script[...]
    command: Sequence[Any]


class Script(Generic[P]):
    """A script as the server caches it, and what makes its commands.

    Attributes:
        name: of the signature, and of the file.
        names: of the locals that the script has from its signature.
        body: as it is in the file.
        source: the whole.
        sha: of the whole, as EVALSHA takes it.
    """

    def __init__(self, signature: Callable[P, Any]) -> None:
        self.name = signature.__name__
        kinds = {name: kind for name, kind in signature.__annotations__.items() if name != "return"}
        keys = {name: kind for name, kind in kinds.items() if kind in _KEYS}
        plain = {name: kind for name, kind in kinds.items() if kind not in (*_KEYS, ArgumentList)}
        self._lists = tuple(name for name, kind in kinds.items() if kind is ArgumentList)
        self._keys = tuple((name, kind is Key) for name, kind in keys.items())
        self._plain = tuple((name, _TO_WIRE.get(kind)) for name, kind in plain.items())
        self.names = tuple(kinds)
        self.body = _read(self.name)
        bound = "\n".join([*_keys(keys), *_plain(plain), *_lists(self._lists, 1 + len(plain))])
        self.source = _with_constants("\n\n".join([*_needed(self.body), bound, self.body]))
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, *_: P.args, **given: P.kwargs) -> Call:
        """The command with these keys and arguments; all are given by name."""
        if len(given) != len(self.names):
            raise TypeError(f"{self.name} takes {self.names}")
        named: dict[str, Any] = given
        keys: list[Any] = []
        for name, is_one in self._keys:
            if is_one:
                keys.append(named[name])
            else:
                keys += named[name]
        command = ["EVALSHA", self.sha, len(keys), *keys]
        for name, to_wire in self._plain:
            command.append(named[name] if to_wire is None else to_wire(named[name]))
        for name in self._lists:
            items = named[name]
            command += (len(items), *items)
        return Call(self, command)


def script(signature: Callable[P, Any]) -> Script[P]:
    """The script of this signature's name."""
    return Script(signature)


def code_of(source: str) -> str:
    """A source without what stands in its strings, and without comments."""
    return _NO_CODE.sub("''", source)


def defined_in(source: str) -> tuple[str, ...]:
    """What a source defines for all that follows."""
    found = _DEFINED.findall(code_of(source))
    return tuple(name.strip() for names in found for name in names.split(","))


def _read(name: str) -> str:
    return resources.files("llm_routerd.queue").joinpath(f"lua/{name}.lua").read_text("utf-8")


@cache
def paragraphs() -> Mapping[str, str]:
    """What the preludes define, by name, in order; of several names of one paragraph each has it."""
    found: dict[str, str] = {}
    for prelude in PRELUDES:
        for paragraph in _PARAGRAPH.split(_read(prelude).rstrip()):
            found |= dict.fromkeys(defined_in(paragraph), paragraph)
    return found


def _with_constants(source: str) -> str:
    """The source with values in the place of their names: what is no local costs nothing at each call."""
    names = "|".join(CONSTANTS)
    return re.sub(rf"{_NO_CODE.pattern}|\b({names})\b", lambda found: CONSTANTS.get(found[0], found[0]), source)


def _needed(body: str) -> Iterator[str]:
    """The paragraphs that a script uses, and those that these use, in the order in which they stand."""
    known = paragraphs()
    needed: set[str] = set()
    sources = [body]
    while sources:
        found = known.keys() & set(re.findall(r"\w+", code_of(sources.pop()))) - needed
        needed |= found
        sources += (known[name] for name in found)
    yield from dict.fromkeys(known[name] for name in known if name in needed)


def _keys(keys: Mapping[str, Any]) -> Iterator[str]:
    at = 1
    for name, kind in keys.items():
        if kind is Key:
            yield f"local {name} = KEYS[{at}]"
            at += 1
        elif kind is Lanes:
            by_name = ", ".join(f"{lane} = KEYS[{at + position}]" for position, lane in enumerate(LANES))
            yield f"local {name} = {{{by_name}}}"
            at += len(LANES)
        else:
            yield f"local {name}" + (" = KEYS" if at == 1 else f" {_copied(name, 'KEYS', at, '#KEYS')}")


def _plain(arguments: Mapping[str, Any]) -> Iterator[str]:
    if arguments:
        values = (_TO_LUA.get(kind, "{}").format(f"ARGV[{at}]") for at, kind in enumerate(arguments.values(), 1))
        yield f"local {', '.join(arguments)} = {', '.join(values)}"


def _lists(names: Sequence[str], at: int) -> Iterator[str]:
    if names:
        yield f"local {', '.join(names)}"
        yield f"do local at, last = {at}"
        for name in names:
            yield f"  last = at + ARGV[at] {_copied(name, 'ARGV', 'at + 1', 'last')} at = last + 1"
        yield "end"


def _copied(name: str, source: str, first: int | str, last: str) -> str:
    """A part of a list; `unpack` takes a third of the time of a loop, and no more than some thousand values."""
    return (
        f"if {last} < {_MOST_UNPACKED} then {name} = {{unpack({source}, {first}, {last})}} "
        f"else {name} = {{}} for i = {first}, {last} do {name}[#{name} + 1] = {source}[i] end end"
    )
