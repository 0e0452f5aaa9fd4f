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
from functools import cache, cached_property
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Generic, ParamSpec

from msgspec import Struct

from llm_routerd.protocol.events import FINAL_ID, FINAL_PART
from llm_routerd.protocol.keys import ALWAYS, GROUP, HANDED_BACK, HANDED_BACK_IDLE_MS, LANES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

P = ParamSpec("P")

Key = Annotated[str, "key"]
Lanes = Annotated["Sequence[str]", "lanes"]
KeyList = Annotated["Sequence[str]", "keys"]
IntText = Annotated[int, "text"]
ArgumentList = Annotated["Sequence[Any]", "arguments"]

PRELUDES = ("prelude/streams", "prelude/workers", "prelude/runs", "prelude/boxes")
CONSTANTS: Mapping[str, str] = {
    "ALWAYS": f"'{ALWAYS}'",
    "FINAL": f"'{FINAL_ID}'",
    "FINAL_MS": f"{FINAL_PART}",
    "GROUP": f"'{GROUP}'",
    "HANDED_BACK": f"'{HANDED_BACK}'",
    "HANDED_BACK_IDLE_MS": f"{HANDED_BACK_IDLE_MS}",
    "LANES": f"{{{', '.join(map(repr, LANES))}}}",
}
_TO_LUA: Mapping[Any, str] = {int: "{} + 0", int | None: "tonumber({})", bool: "{} == '1'"}
_TO_WIRE: Mapping[Any, str] = {int | None: "'' if {0} is None else {0}", bool: "'1' if {0} else ''"}
_KEYS = (Key, Lanes, KeyList)
_MOST_UNPACKED = 7000
_NO_CODE = re.compile(r"'(?:\\.|[^'\\])*'|--[^\n]*")
_WITH_CONSTANTS = re.compile(rf"{_NO_CODE.pattern}|\b(?:{'|'.join(CONSTANTS)})\b")
_WORD = re.compile(rf"{_NO_CODE.pattern}|(\w+)")  # of the code
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
    """

    def __init__(self, name: str, kinds: Mapping[str, Any]) -> None:
        self.name = name
        self.names = tuple(kinds)
        self._kinds = kinds

    # Each when it is first asked for, or put together: a command line needs one script at the most.

    def put_together(self) -> None:
        """Read the files now: a worker has no time for that on its event loop."""
        _ = self.sha

    @cached_property
    def body(self) -> str:
        """As it is in the file."""
        return _read(self.name)

    @cached_property
    def source(self) -> str:
        """The whole."""
        keys = {name: kind for name, kind in self._kinds.items() if kind in _KEYS}
        plain = {name: kind for name, kind in self._kinds.items() if kind not in (*_KEYS, ArgumentList)}
        lists = [name for name, kind in self._kinds.items() if kind is ArgumentList]
        bound = "\n".join([*_keys(keys), *_plain(plain), *_lists(lists, 1 + len(plain))])
        return "\n\n".join([*_needed(self.body), bound, self.body])

    @cached_property
    def sha(self) -> str:
        """Of the whole, as EVALSHA takes it."""
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, *_: P.args, **__: P.kwargs) -> Call:
        """The command with these keys and arguments; all are given by name."""
        raise NotImplementedError  # each script has its own, with the names of its signature


def script(signature: Callable[P, Any]) -> Script[P]:
    """The script of this signature's name."""
    kinds = {name: kind for name, kind in signature.__annotations__.items() if name != "return"}
    make = eval(_command_of(kinds), {"Call": Call})  # noqa: S307 - of names only, as a dataclass makes its methods
    own: type[Script[P]] = type(signature.__name__, (Script,), {"__call__": make, "__doc__": signature.__doc__})
    return own(signature.__name__, kinds)


def code_of(source: str) -> str:
    """A source without what stands in its strings, and without comments."""
    return _NO_CODE.sub("''", source)


def defined_in(source: str) -> tuple[str, ...]:
    """What a source defines for all that follows."""
    found = _DEFINED.findall(code_of(source))
    return tuple(name.strip() for names in found for name in names.split(","))


def _read(name: str) -> str:
    """A file, with values in the place of the constants' names: what is no local costs nothing at each call."""
    source = resources.files(__package__).joinpath(f"lua/{name}.lua").read_text("utf-8")
    return _WITH_CONSTANTS.sub(lambda found: CONSTANTS.get(found[0], found[0]), source)


@cache
def paragraphs() -> Mapping[str, tuple[str, frozenset[str]]]:
    """What the preludes define, by name, in order: the paragraph, and all words of its code."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for prelude in PRELUDES:
        for paragraph in _PARAGRAPH.split(_read(prelude).rstrip()):
            found |= dict.fromkeys(defined_in(paragraph), (paragraph, _words(paragraph)))
    return found


def _words(source: str) -> frozenset[str]:
    return frozenset(_WORD.findall(source))


def _needed(body: str) -> Iterator[str]:
    """The paragraphs that a script uses, and those that these use, in the order in which they stand."""
    known = paragraphs()
    needed: set[str] = set()
    found = known.keys() & _words(body)
    while found:
        needed |= found
        found = {word for name in found for word in known[name][1] if word in known} - needed
    yield from dict.fromkeys(known[name][0] for name in known if name in needed)


def _command_of(kinds: Mapping[str, Any]) -> str:
    """The Python of what makes the command."""
    keys = {name: kind for name, kind in kinds.items() if kind in _KEYS}
    count = " + ".join("1" if kind is Key else f"len({name})" for name, kind in keys.items())
    parts = [name if kind is Key else f"*{name}" for name, kind in keys.items()]
    arguments = {name: kind for name, kind in kinds.items() if kind not in _KEYS}
    parts += [_TO_WIRE.get(kind, "{0}").format(name) for name, kind in arguments.items() if kind is not ArgumentList]
    parts += [f"len({name}), *{name}" for name, kind in arguments.items() if kind is ArgumentList]
    return f"lambda self, *, {', '.join(kinds)}: Call(self, ('EVALSHA', self.sha, {count}, {', '.join(parts)}))"


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
