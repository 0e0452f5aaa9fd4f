"""`llm-routerd tools`."""

from __future__ import annotations

import asyncio
import sys
from itertools import groupby
from typing import TYPE_CHECKING, Any

from llm_routerd.agents.registration import Tool
from llm_routerd.cli.exits import Exit
from llm_routerd.cli.settings import open_client, redis_of
from llm_routerd.cli.terminal import Style, json_line, note, one_line, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from llm_routerd.client import RegisteredTool, ToolGroup


def run(arguments: argparse.Namespace) -> Exit:
    """List what is registered; exit code 0 whatever that is."""
    return asyncio.run(_list(arguments))


async def _list(arguments: argparse.Namespace) -> Exit:
    async with await open_client(redis_of(arguments)) as client:
        found = await client.tools()
        is_only = client.shards.is_only
    if arguments.json:
        for tool in found.tools:
            say(json_line(_as_json(tool)))
    else:
        for _, shards in groupby(found.tools, key=lambda tool: tool.name):
            for line in _lines(list(shards), is_only=is_only):
                say(line)
    if found.more:
        note(f"and {found.more} more, which are not listed")
    elif not found.tools:
        note("no tools are registered")
    return Exit.OK


def _as_json(tool: RegisteredTool) -> dict[str, Any]:
    """One object: the registration as it counts, or why it does not, and who serves it."""
    read = tool.read()
    told: dict[str, Any] = {"name": tool.name, "shard": tool.shard, "bytes": tool.size}
    if isinstance(read, Tool):
        told |= {
            "description": read.description,
            "parameters": read.parameters.raw,
            "confirm": read.confirm,
            "idempotent": read.idempotent,
            "timeout_ms": read.timeout_ms,
            "result_schema": None if read.result_schema is None else read.result_schema.raw,
            "unsound": None,
        }
    else:
        told["unsound"] = read.why
    groups = [
        {
            "name": group.name,
            "waiting": group.waiting,
            "pending": group.pending,
            "consumers": [
                {"name": each.name, "idle_ms": each.idle_ms, "pending": each.pending} for each in group.consumers
            ],
        }
        for group in tool.groups
    ]
    return told | {"is_served": tool.is_served, "calls": tool.calls, "groups": groups, "trouble": tool.trouble or None}


def _lines(shards: Sequence[RegisteredTool], *, is_only: bool) -> Iterator[str]:
    """One tool, in all its shards."""
    style = Style.of(sys.stdout)
    first = shards[0]
    read = first.read()
    name = one_line(first.name)
    if isinstance(read, Tool):
        yield f"{name}: {one_line(read.description)}"
        traits = ["each call waits for a person"] if read.confirm else []
        traits += ["idempotent"] if read.idempotent else []
        yield f"  {', '.join([*traits, f'has {read.timeout_ms / 1000:g} s for a call'])}"
    else:
        yield f"{name}: {style.bad(one_line(f'unsound: {read.why}'))}"
    if any(each.registration != first.registration or each.size != first.size for each in shards):
        yield f"  {style.bad('its registrations differ from shard to shard')}"
    for each in shards:
        where = "" if is_only else f"{one_line(each.shard)}: "
        told = _served(each)
        yield f"  {where}{told if each.is_served else style.warning(told)}"
        if len(each.groups) > 1:
            yield f"  {where}{style.bad(f'each call reaches all {len(each.groups)} consumer groups, and all act')}"


def _served(tool: RegisteredTool) -> str:
    """Who serves it, and what waits."""
    if tool.trouble:
        return f"who serves it is not known: {tool.trouble}"
    if not tool.groups:
        return f"nobody serves it; {_calls(tool.calls or 0)} there"
    return one_line("; ".join(map(_group, tool.groups)))


def _group(group: ToolGroup) -> str:
    if not group.consumers:
        return f"{group.name}: nobody is left; {_calls(group.waiting)}"
    names = ", ".join(each.name for each in group.consumers)
    seen = min(each.idle_ms for each in group.consumers) / 1000
    taken = f", {group.pending} taken" if group.pending else ""
    return f"{group.name}: {names}, last seen {seen:.1f} s ago; {_calls(group.waiting)}{taken}"


def _calls(count: int) -> str:
    return f"{count} call waits" if count == 1 else f"{count} calls wait"
