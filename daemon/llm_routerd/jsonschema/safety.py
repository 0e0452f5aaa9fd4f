"""Whether a caller's JSON Schema may be given to the validation engine at all.

A schema is hostile until proven otherwise.  Before anything compiles it, this module has seen every subschema
and checked that

- the document is small, and neither its nesting nor its chains of references are deep (the engine recurses);
- no reference leads outside the document, and every `$schema` is a dialect that is known;
- no subschema refers back to itself without descending into the instance, which has no meaning;
- validation cannot explode.  References make a schema a graph, and the engine walks its *paths*: forty
  definitions that each name the next one twice are 2^40 steps.  Paths are therefore counted, and bounded.
  The engine remembers results only where a reference closes a cycle, so that a path ends there.

It also estimates what an instance will cost, which `schema` weighs against the size of each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote, urljoin

from llm_routerd.jsonschema import dialects
from llm_routerd.jsonschema.path import json_path

MAX_VALUES = 20_000
MAX_SUBSCHEMAS = 5_000
MAX_NESTING = 100
MAX_CHAIN = 200
MAX_PATHS = 10_000
MAX_PATTERN_CHARS = 1_000
PATTERN_BYTES = 1_000_000
MAX_PATTERNS_BYTES = 64_000_000

# Where JSON Schema keeps subschemas, all drafts together; "here" is the same value as the parent's.
_ONE_HERE = frozenset({"not", "if", "then", "else"})
_LIST_HERE = frozenset({"allOf", "anyOf", "oneOf"})
_MAP_HERE = frozenset({"dependentSchemas", "dependencies"})
_ONE_BELOW = frozenset(
    {
        "items",
        "additionalItems",
        "additionalProperties",
        "unevaluatedItems",
        "unevaluatedProperties",
        "contains",
        "propertyNames",
    }
)
_LIST_BELOW = frozenset({"prefixItems", "items"})
_MAP_BELOW = frozenset({"properties", "patternProperties"})
_MAP_ASIDE = frozenset({"$defs", "definitions"})
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_REPETITION = re.compile(r"(\)?)\{([0-9]{1,9})(?:,([0-9]{0,9}))?\}")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")

_Path: TypeAlias = tuple[str | int, ...]


class _UnsafeError(Exception):
    """Carries what is wrong out of the walk; never leaves this module."""


@dataclass(slots=True, eq=False)
class _Node:
    """One subschema, and those within it or referred to.

    `here` judge the same value, `below` parts of it, `apart` parts of it too, but each a part of its own.
    """

    path: _Path
    base: str
    weight: int = 1
    here: list[_Node] = field(default_factory=list)
    below: list[_Node] = field(default_factory=list)
    apart: list[_Node] = field(default_factory=list)
    references: list[tuple[str, str]] = field(default_factory=list)
    evaluates_twice: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What is known of a schema that is safe to run.

    Attributes:
        paths: through its graph, each until it closes a cycle.
        cycles: how many of them close one; 0: not recursive, 1: like a list, more: like a tree.
        peak: the most subschemas that judge one value of an instance.
        pattern_states: of all its patterns together, by estimate: what a character of an instance may cost.
        patterns_bytes: what its patterns may take in memory, by a generous estimate.
    """

    paths: int
    cycles: int
    peak: int
    pattern_states: int
    patterns_bytes: int


def examine(schema: dict[str, Any] | bool) -> Examined | str:
    """Look a schema over before it is compiled; a string says what is wrong with it, and where."""
    try:
        _bound_size(schema)
        graph = _Graph(schema)
        graph.refuse_idle_cycles()
        return graph.count_paths()
    except _UnsafeError as error:
        return str(error)


def _bound_size(schema: Any) -> None:
    values = 0
    level: list[Any] = [schema]
    for _ in range(MAX_NESTING):
        values += len(level)
        if values > MAX_VALUES:
            raise _UnsafeError(f"$: a schema of more than {MAX_VALUES} values is not supported")
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner.extend(value.values())
            elif isinstance(value, list):
                inner.extend(value)
        if not inner:
            return
        level = inner
    raise _UnsafeError(f"$: a schema nested deeper than {MAX_NESTING} levels is not supported")


class _Graph:
    """The subschemas of one document, joined by its references."""

    def __init__(self, document: dict[str, Any] | bool) -> None:
        self._document = document
        is_draft_04 = isinstance(document, dict) and "/draft-04/" in str(document.get("$schema"))
        self._id_keyword = "id" if is_draft_04 else "$id"
        self._patterns_bytes = 0
        self._pattern_states = 0
        self._nodes: dict[_Path, _Node] = {}
        self._resources: dict[str, _Path] = {"": ()}
        self._anchors: dict[tuple[str, str], list[_Node]] = {}
        self._root = self._add((), document, "")
        # A reference may lead to a place that is no subschema by itself (`#/components/…`): new nodes then.
        pending = list(self._nodes.values())
        while pending:
            known = len(self._nodes)
            for node in pending:
                self._resolve(node)
            pending = list(self._nodes.values())[known:]

    # ------------------------------------------------------------------ making the nodes

    def _add(self, path: _Path, value: Any, base: str) -> _Node:
        if path in self._nodes:
            return self._nodes[path]
        if len(self._nodes) >= MAX_SUBSCHEMAS:
            raise _UnsafeError(f"$: a schema of more than {MAX_SUBSCHEMAS} subschemas is not supported")
        node = self._nodes[path] = _Node(path, base)
        if not isinstance(value, dict):
            return node  # true and false; what is no schema at all is for the metaschema to refuse
        self._identify(node, value)
        for keyword, inner in value.items():
            self._descend(node, keyword, inner)
        enum = value.get("enum")
        if isinstance(enum, list) and not all(isinstance(option, str) for option in enum):
            node.weight += len(enum) // 10  # the engine looks strings up, and compares all else one by one
        return node

    def _identify(self, node: _Node, value: dict[str, Any]) -> None:
        """Take notice of `$schema`, `$id`, anchors, references and the pattern of one subschema."""
        dialect = value.get("$schema")
        if isinstance(dialect, str) and dialects.draft_of(dialect) is None:
            raise _UnsafeError(f"{json_path((*node.path, '$schema'))}: unsupported dialect; known are {dialects.NAMES}")
        uri = value.get(self._id_keyword)
        if isinstance(uri, str) and uri.startswith("#"):  # until draft-07 an anchor was spelt this way
            self._anchors.setdefault((node.base, uri[1:]), []).append(node)
        elif isinstance(uri, str):
            node.base = _join(node, self._id_keyword, uri).partition("#")[0]
            self._resources[node.base] = node.path
        for keyword in ("$anchor", "$dynamicAnchor"):
            anchor = value.get(keyword)
            if isinstance(anchor, str):
                self._anchors.setdefault((node.base, anchor), []).append(node)
        node.references = [(word, value[word]) for word in _REFERENCES if isinstance(value.get(word), str)]
        node.evaluates_twice = "unevaluatedProperties" in value or "unevaluatedItems" in value
        pattern = value.get("pattern")
        if isinstance(pattern, str):
            self._bound_pattern(pattern, (*node.path, "pattern"))

    def _descend(self, node: _Node, keyword: str, inner: Any) -> None:
        path = (*node.path, keyword)
        if isinstance(inner, dict) and keyword in _MAP_BELOW | _MAP_HERE | _MAP_ASIDE:
            for name, subschema in inner.items():
                if keyword == "patternProperties":
                    self._bound_pattern(name, path)
                child = self._add((*path, name), subschema, node.base)
                if keyword in _MAP_BELOW:
                    (node.apart if keyword == "properties" else node.below).append(child)
                elif keyword in _MAP_HERE:
                    node.here.append(child)
        elif isinstance(inner, list) and keyword in _LIST_BELOW | _LIST_HERE:
            children = [self._add((*path, index), each, node.base) for index, each in enumerate(inner)]
            (node.here if keyword in _LIST_HERE else node.apart).extend(children)
        elif isinstance(inner, (dict, bool)) and keyword in _ONE_HERE | _ONE_BELOW:
            (node.here if keyword in _ONE_HERE else node.below).append(self._add(path, inner, node.base))

    def _bound_pattern(self, pattern: str, path: _Path) -> None:
        if len(pattern) > MAX_PATTERN_CHARS:
            limit = f"a pattern of more than {MAX_PATTERN_CHARS} characters is not supported"
            raise _UnsafeError(f"{json_path(path)}: {limit}")
        # A class of characters is an automaton of some kilobytes, and a counted repetition is copies of it.
        self._patterns_bytes += PATTERN_BYTES if "{" in pattern else min(len(pattern) * 4_000, PATTERN_BYTES)
        if self._patterns_bytes > MAX_PATTERNS_BYTES:
            raise _UnsafeError(f"{json_path(path)}: so many large patterns in one schema are not supported")
        states = len(pattern)
        for closes_group, least, most in _REPETITION.findall(pattern):
            count = max(int(least), int(most or 0), 1)
            states = states * count if closes_group else states + count
        self._pattern_states += states

    # ------------------------------------------------------------------ following references

    def _resolve(self, node: _Node) -> None:
        for keyword, reference in node.references:
            where = json_path((*node.path, keyword))
            target = _join(node, keyword, reference)
            uri, _, fragment = target.partition("#")
            if uri not in self._resources:
                raise _UnsafeError(f"{where}: leads outside this schema, and nothing is fetched; use `$defs`")
            fragment = unquote(fragment)
            if fragment == "" or fragment.startswith("/"):
                node.here.append(self._at_pointer(self._resources[uri], fragment, uri, where))
            elif found := self._by_anchor(uri, fragment, everywhere=keyword == "$dynamicRef"):
                node.here.extend(found)
            else:
                raise _UnsafeError(f"{where}: no `$anchor` of this name in this schema")

    def _at_pointer(self, start: _Path, pointer: str, base: str, where: str) -> _Node:
        path = start
        value = _value_at(self._document, start)
        for token in pointer.split("/")[1:]:
            key = token.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and key in value:
                path, value = (*path, key), value[key]
            elif isinstance(value, list) and _INDEX.fullmatch(key) and int(key) < len(value):
                path, value = (*path, int(key)), value[int(key)]
            else:
                raise _UnsafeError(f"{where}: leads to nothing in this schema")
        return self._add(path, value, base)

    def _by_anchor(self, uri: str, name: str, *, everywhere: bool) -> list[_Node]:
        if everywhere:  # which one a dynamic reference means is known only at run time
            return [node for (_, anchor), nodes in self._anchors.items() if anchor == name for node in nodes]
        return self._anchors.get((uri, name), [])

    # ------------------------------------------------------------------ counting

    def refuse_idle_cycles(self) -> None:
        """See that every cycle of references descends into the instance somewhere."""
        finished: set[_Node] = set()
        open_nodes: set[_Node] = set()

        def visit(node: _Node) -> None:
            if node in open_nodes:
                where = json_path(node.path)
                raise _UnsafeError(f"{where}: refers back to itself without descending into the instance")
            if node in finished:
                return
            _bound_chain(len(open_nodes))
            open_nodes.add(node)
            for child in node.here:
                visit(child)
            open_nodes.remove(node)
            finished.add(node)

        for node in self._nodes.values():
            visit(node)

    def count_paths(self) -> Examined:
        """Count the paths from the root, each until it closes a cycle, and bound their number and length."""
        counted: dict[_Node, _Count] = {}
        open_nodes: set[_Node] = set()

        def visit(node: _Node) -> _Count:
            if node in open_nodes:
                return _Count(node.weight, 1, 0, node.weight)
            if node in counted:
                return counted[node]
            _bound_chain(len(open_nodes))
            open_nodes.add(node)
            times = 2 if node.evaluates_twice else 1
            here = [visit(child) for child in node.here] * times
            below = [visit(child) for child in node.below]
            apart = [visit(child) for child in node.apart]
            inner = [*here, *below, *apart]
            paths = node.weight + sum(count.paths for count in inner)
            cycles = sum(count.cycles for count in inner)
            length = max((count.length for count in inner), default=0)
            parts = max((count.peak for count in apart), default=0) + sum(count.peak for count in below)
            peak = max(node.weight, parts) + sum(count.peak for count in here)
            open_nodes.remove(node)
            _bound_chain(length)
            if paths > MAX_PATHS:
                where = json_path(node.path)
                raise _UnsafeError(f"{where}: its references unfold to more than {MAX_PATHS} subschemas")
            counted[node] = _Count(paths, cycles, length + 1, peak)
            return counted[node]

        count = visit(self._root)
        return Examined(
            paths=count.paths,
            cycles=count.cycles,
            peak=count.peak,
            pattern_states=self._pattern_states,
            patterns_bytes=self._patterns_bytes,
        )


class _Count(NamedTuple):
    paths: int
    cycles: int
    length: int
    peak: int


def _bound_chain(length: int) -> None:
    if length >= MAX_CHAIN:
        raise _UnsafeError(f"$: subschemas chained deeper than {MAX_CHAIN} are not supported")


def _join(node: _Node, keyword: str, reference: str) -> str:
    if reference.startswith("#"):
        return node.base + reference
    try:
        return urljoin(node.base, reference)
    except ValueError:
        raise _UnsafeError(f"{json_path((*node.path, keyword))}: expected a URI") from None


def _value_at(document: Any, path: _Path) -> Any:
    for key in path:
        document = document[key]
    return document
