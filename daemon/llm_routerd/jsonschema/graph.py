"""The subschemas of one JSON Schema document, joined by its references into a graph.

Every reference is resolved, as the engine will: JSON Pointers, anchors, and URIs of resources within the document.
One that leads outside, or to nothing, makes no graph; nor does a document of too many subschemas or large patterns.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import unquote, urljoin

from llm_routerd.jsonschema import dialects
from llm_routerd.jsonschema.keywords import Applies, subschemas_of
from llm_routerd.jsonschema.path import json_path
from llm_routerd.jsonschema.values import follow

MAX_SUBSCHEMAS = 5_000
MAX_PATTERN_CHARS = 1_000
PATTERN_BYTES = 1_000_000
MAX_PATTERNS_BYTES = 64_000_000

_REPETITION = re.compile(r"(\)?)\{([0-9]{1,9})(?:,([0-9]{0,9}))?\}")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")

_Path: TypeAlias = tuple[str | int, ...]


class UnsafeSchemaError(Exception):
    """What is wrong with a schema, with its path; caught where schemas are examined."""


@dataclass(slots=True, eq=False)
class Node:
    """One subschema, and those within it or referred to.

    `here` judge the same value, `below` parts of it, `apart` parts of it too, but each a part of its own.
    """

    path: _Path
    base: str
    weight: int = 1
    here: list[Node] = field(default_factory=list)
    below: list[Node] = field(default_factory=list)
    apart: list[Node] = field(default_factory=list)
    references: list[tuple[str, str]] = field(default_factory=list)
    evaluates_twice: bool = False


class SchemaGraph:
    """The graph of one document.

    Attributes:
        root: the node of the whole document.
        nodes: all of them, also those that nothing refers to.
        pattern_states: of all its patterns together, by estimate.
        patterns_bytes: what its patterns may take in memory, by a generous estimate.

    Raises:
        UnsafeSchemaError: it is too large, or a reference or a dialect of it is not taken.
    """

    def __init__(self, document: dict[str, Any] | bool) -> None:
        self._document = document
        named = document.get("$schema") if isinstance(document, dict) else None
        dialect = dialects.dialect_named(named) if isinstance(named, str) else None
        self._id_keyword = (dialect or dialects.LATEST).id_keyword
        self.patterns_bytes = 0
        self.pattern_states = 0
        self._nodes: dict[_Path, Node] = {}
        self._resources: dict[str, _Path] = {"": ()}
        self._anchors: dict[tuple[str, str], list[Node]] = {}
        self.root = self._add((), document, "")
        # A reference may lead to a place that is no subschema by itself (`#/components/…`): new nodes then.
        pending = list(self._nodes.values())
        while pending:
            known = len(self._nodes)
            for node in pending:
                self._resolve(node)
            pending = list(self._nodes.values())[known:]
        self.nodes = tuple(self._nodes.values())

    # ------------------------------------------------------------------ making the nodes

    def _add(self, path: _Path, value: Any, base: str) -> Node:
        if path in self._nodes:
            return self._nodes[path]
        if len(self._nodes) >= MAX_SUBSCHEMAS:
            raise UnsafeSchemaError(f"$: a schema of more than {MAX_SUBSCHEMAS} subschemas is not supported")
        node = self._nodes[path] = Node(path, base)
        if not isinstance(value, dict):
            return node  # true and false; what is no schema at all is for the metaschema to refuse
        self._identify(node, value)
        children = {Applies.HERE: node.here, Applies.BELOW: node.below, Applies.APART: node.apart, Applies.ASIDE: []}
        for applies, way, subschema in subschemas_of(value):
            if way[0] == "patternProperties":
                self._bound_pattern(str(way[1]), (*path, way[0]))
            children[applies].append(self._add((*path, *way), subschema, node.base))
        enum = value.get("enum")
        if isinstance(enum, list) and not all(isinstance(option, str) for option in enum):
            node.weight += len(enum) // 10  # the engine looks strings up, and compares all else one by one
        return node

    def _identify(self, node: Node, value: dict[str, Any]) -> None:
        """Take notice of `$schema`, `$id`, anchors, references and the pattern of one subschema."""
        dialect = value.get("$schema")
        if isinstance(dialect, str) and dialects.dialect_named(dialect) is None:
            where = json_path((*node.path, "$schema"))
            raise UnsafeSchemaError(f"{where}: unsupported dialect; known are {dialects.NAMES}")
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

    def _bound_pattern(self, pattern: str, path: _Path) -> None:
        if len(pattern) > MAX_PATTERN_CHARS:
            limit = f"a pattern of more than {MAX_PATTERN_CHARS} characters is not supported"
            raise UnsafeSchemaError(f"{json_path(path)}: {limit}")
        # A class of characters is an automaton of some kilobytes, and a counted repetition is copies of it.
        self.patterns_bytes += PATTERN_BYTES if "{" in pattern else min(len(pattern) * 4_000, PATTERN_BYTES)
        if self.patterns_bytes > MAX_PATTERNS_BYTES:
            raise UnsafeSchemaError(f"{json_path(path)}: so many large patterns in one schema are not supported")
        states = len(pattern)
        for closes_group, least, most in _REPETITION.findall(pattern):
            count = max(int(least), int(most or 0), 1)
            states = states * count if closes_group else states + count
        self.pattern_states += states

    # ------------------------------------------------------------------ following references

    def _resolve(self, node: Node) -> None:
        for keyword, reference in node.references:
            where = json_path((*node.path, keyword))
            target = _join(node, keyword, reference)
            uri, _, fragment = target.partition("#")
            if uri not in self._resources:
                raise UnsafeSchemaError(f"{where}: leads outside this schema, and nothing is fetched; use `$defs`")
            name = unquote(fragment)
            if name == "" or name.startswith("/"):
                node.here.append(self._at_pointer(self._resources[uri], f"#{fragment}", uri, where))
            elif found := self._by_anchor(uri, name, everywhere=keyword == "$dynamicRef"):
                node.here.extend(found)
            else:
                raise UnsafeSchemaError(f"{where}: no `$anchor` of this name in this schema")

    def _at_pointer(self, start: _Path, pointer: str, base: str, where: str) -> Node:
        resource: Any = self._document
        for key in start:
            resource = resource[key]
        steps = follow(resource, pointer)
        if steps is None:
            raise UnsafeSchemaError(f"{where}: leads to nothing in this schema")
        target = steps[-1][1] if steps else resource
        return self._add((*start, *(key for key, _ in steps)), target, base)

    def _by_anchor(self, uri: str, name: str, *, everywhere: bool) -> list[Node]:
        if everywhere:  # which one a dynamic reference means is known only at run time
            return [node for (_, anchor), nodes in self._anchors.items() if anchor == name for node in nodes]
        return self._anchors.get((uri, name), [])


def _join(node: Node, keyword: str, reference: str) -> str:
    if reference.startswith("#"):
        return node.base + reference
    try:
        return urljoin(node.base, reference)
    except ValueError:
        raise UnsafeSchemaError(f"{json_path((*node.path, keyword))}: expected a URI") from None
