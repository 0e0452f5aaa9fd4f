"""Whether a caller's JSON Schema may be given to the validation engine at all.

A schema is hostile until proven otherwise.  Before anything compiles it, this module has seen every subschema
and checked that

- the document is small, and neither its nesting nor its chains of references are deep (the engine recurses);
- no reference leads outside the document, and every `$schema` is a dialect that is known;
- no subschema refers back to itself without descending into the instance, which has no meaning;
- validation cannot explode.  References make a schema a graph, and the engine walks its *paths*: forty
  definitions that each name the next one twice are 2^40 steps.  Paths are therefore counted, and bounded.
  The engine remembers results only where a reference closes a cycle, so that a path ends there.

It also estimates what an instance will cost, which `compiled` weighs against the size of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from llm_routerd.jsonschema.graph import Node, SchemaGraph, UnsafeSchemaError
from llm_routerd.jsonschema.path import json_path
from llm_routerd.jsonschema.values import levels

MAX_VALUES = 20_000
MAX_NESTING = 100
MAX_CHAIN = 200
MAX_PATHS = 10_000


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
        graph = SchemaGraph(schema)
        _refuse_idle_cycles(graph)
        return _count_paths(graph)
    except UnsafeSchemaError as error:
        return str(error)


def _bound_size(schema: Any) -> None:
    values = 0
    for depth, level in enumerate(levels(schema)):
        if depth >= MAX_NESTING:
            raise UnsafeSchemaError(f"$: a schema nested deeper than {MAX_NESTING} levels is not supported")
        values += len(level)
        if values > MAX_VALUES:
            raise UnsafeSchemaError(f"$: a schema of more than {MAX_VALUES} values is not supported")


def _refuse_idle_cycles(graph: SchemaGraph) -> None:
    """See that every cycle of references descends into the instance somewhere."""
    finished: set[Node] = set()
    open_nodes: set[Node] = set()

    def visit(node: Node) -> None:
        if node in open_nodes:
            where = json_path(node.path)
            raise UnsafeSchemaError(f"{where}: refers back to itself without descending into the instance")
        if node in finished:
            return
        _bound_chain(len(open_nodes))
        open_nodes.add(node)
        for child in node.here:
            visit(child)
        open_nodes.remove(node)
        finished.add(node)

    for node in graph.nodes:
        visit(node)


class _Count(NamedTuple):
    paths: int
    cycles: int
    length: int
    peak: int


def _count_paths(graph: SchemaGraph) -> Examined:
    """Count the paths from the root, each until it closes a cycle, and bound their number and length."""
    counted: dict[Node, _Count] = {}
    open_nodes: set[Node] = set()

    def visit(node: Node) -> _Count:
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
            raise UnsafeSchemaError(f"{where}: its references unfold to more than {MAX_PATHS} subschemas")
        counted[node] = _Count(paths, cycles, length + 1, peak)
        return counted[node]

    count = visit(graph.root)
    return Examined(
        paths=count.paths,
        cycles=count.cycles,
        peak=count.peak,
        pattern_states=graph.pattern_states,
        patterns_bytes=graph.patterns_bytes,
    )


def _bound_chain(length: int) -> None:
    if length >= MAX_CHAIN:
        raise UnsafeSchemaError(f"$: subschemas chained deeper than {MAX_CHAIN} are not supported")
