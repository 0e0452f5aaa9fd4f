"""The part of `check` that looks at runs with tools: what is registered, who serves it, what may be done.

Where no tool is registered and the configuration says nothing of tools there is little to say.
"""

from __future__ import annotations

import uuid
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from llm_routerd.agents.offering import told_names
from llm_routerd.agents.registration import Tool
from llm_routerd.cli.findings import Finding, fail, fine, warn
from llm_routerd.cli.rights import lacking
from llm_routerd.cli.settings import open_client
from llm_routerd.errors import BrokerError, NotAllowedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from llm_routerd.client import Client, RegisteredTool, Shard
    from llm_routerd.config.tree import Config

_PATIENCE_SECONDS = 0.5
_MOST_FINDINGS = 50  # of one kind; a hostile registry has no end
_REMEDY = "for the daemon use the user `daemon` of systemd/users.acl"

Shards = dict[str, list["RegisteredTool"]]  # of each tool, by its name


async def check_tools(config: Config) -> list[Finding]:
    """Everything there is to say about tools; raises nothing."""
    try:
        client = await open_client(config.redis, patience_seconds=_PATIENCE_SECONDS)
    except BrokerError:
        return []  # which has been said
    async with client:
        rights = await _check_rights(client)
        try:
            found = await client.tools()
        except NotAllowedError as error:
            return [warn("tools", f"cannot tell ({error.detail})", "let this user read the hash of tools"), *rights]
        except BrokerError as error:
            return [warn("tools", f"cannot tell ({error})"), *rights]
        prefixes = [keys.prefix for keys in client.shards.layout.keys]
    tools = {name: list(each) for name, each in groupby(found.tools, key=lambda tool: tool.name)}
    return [*judge_tools(tools, prefixes, found.more), *judge_globs(config, tools), *rights]


def judge_tools(tools: Shards, prefixes: Sequence[str], more: int) -> list[Finding]:
    """What is registered; `prefixes` of the shards in force, `more` that were not looked at."""
    troubles = [finding for name, shards in tools.items() for finding in _judge(name, shards, prefixes)]
    cut = troubles[:_MOST_FINDINGS]
    if len(troubles) > len(cut):
        cut.append(warn("tools", f"{len(troubles) - len(cut)} more findings", "see llm-routerd tools"))
    if more:
        remedy = "take out what nobody serves: HDEL, or DEL the whole hash and start those who serve tools again"
        cut.append(warn("tools", f"{more} more are registered than anybody reads", remedy))
    served = sum(all(each.is_served for each in shards) for shards in tools.values())
    told = f"{len(tools)} registered, {served} of them served" if tools else "none is registered"
    return [fine("tools", told), *cut, *_judge_names(tools)]


def _judge(name: str, shards: Sequence[RegisteredTool], prefixes: Sequence[str]) -> Iterator[Finding]:
    """One tool."""
    subject, first = f"tool {name}", shards[0]
    read = first.read()
    remedy = f"have whoever serves it register it again, or HDEL it from {first.shard}:tools"
    differs = any((each.size, each.registration) != (first.size, first.registration) for each in shards)
    if differs:
        yield warn(subject, "its registrations differ from shard to shard", remedy)
    elif not isinstance(read, Tool):
        yield warn(subject, f"its registration is unsound, and no model is offered it: {read.why}", remedy)
    if absent := [prefix for prefix in prefixes if all(each.shard != prefix for each in shards)]:
        told = f"not registered in {', '.join(absent)}: no request there is offered it"
        yield warn(subject, told, "whoever serves it has to know all shards")
    for each in shards:
        where = "" if len(prefixes) == 1 else f" in {each.shard}"
        if each.trouble and each.calls is None:
            judge = fail if "another type" in each.trouble else warn
            yield judge(subject, f"{each.trouble}{where}", f"look at {each.shard}:tools:{name}")
        elif each.why_unserved and (differs or isinstance(read, Tool)):  # once is enough of one that nobody can call
            yield warn(subject, f"{each.why_unserved}{where}; {each.calls} calls are there", f"start it, or {remedy}")
        if len(each.groups) > 1:
            names = ", ".join(group.name for group in each.groups)
            told = f"{len(each.groups)} consumer groups read it{where} ({names}): each call reaches all, and all act"
            yield warn(
                subject,
                told,
                f"have all who serve it share one, and XGROUP DESTROY {each.shard}:tools:{name} GROUP the others",
            )


def _judge_names(tools: Shards) -> list[Finding]:
    """Names that models, which are told no dots, cannot tell apart by themselves."""
    alike: dict[str, list[str]] = {}
    for name, shards in tools.items():
        if isinstance(shards[0].read(), Tool):
            alike.setdefault(told_names([name])[0], []).append(name)
    return [
        warn(
            "tools", f"{', '.join(names)} are all {plain} to a model, but for a number behind it", "rename all but one"
        )
        for plain, names in list(alike.items())[:_MOST_FINDINGS]
        if len(names) > 1
    ]


def judge_globs(config: Config, tools: Shards) -> list[Finding]:
    """Patterns of the configuration that match nothing that is registered; which may be started yet.

    A misspelt one of those that ask a person asks nobody.  Where nothing is registered, nothing speaks for a mistake.
    """
    patterns = {"[agents] tools": config.agents.tools, "[agents] confirm": config.agents.confirm}
    patterns |= {f"[tenants.{name}] tools": each.tools or () for name, each in config.tenants.items()}
    found = []
    for where, given in patterns.items():
        idle = [one for one in given if one != "*" and not any(fnmatchcase(name, one) for name in tools)]
        told = f"no registered tool is matched by {', '.join(idle)}"
        if idle and tools and where == "[agents] confirm":
            near = {name for one in idle for name in get_close_matches(one, tools, n=1)}
            meant = f"; did you mean {', '.join(sorted(near))}?" if near else ""
            found.append(warn(where, told, f"no call waits for a person because of it{meant}"))
        elif idle:
            found.append(fine(where, told))
    return found


async def _check_rights(client: Client) -> list[Finding]:
    """What the user of the Redis URL may do of what a daemon does for runs with tools."""
    shard = client.shards.all[0]
    if await lacking(shard, _attempts(shard, is_daemons=False)):
        return []  # a producer's user: of that it cannot be told
    missing = await lacking(shard, _attempts(shard, is_daemons=True))
    return [warn("tool rights", f"this Redis user may not {', '.join(missing)}", _REMEDY)] if missing else []


def _attempts(shard: Shard, *, is_daemons: bool) -> Mapping[str, Callable[[], Awaitable[object]]]:
    """What is tried, on a request and a tool that there are not; nothing of it can succeed in changing anything."""
    redis, keys, nothing = shard.redis, shard.keys, f"check-{uuid.uuid4().hex}"
    add = partial(redis.xadd, fields={"type": "check"}, nomkstream=True)
    if not is_daemons:
        return {f"XADD to {keys.events('*')}": partial(add, keys.events(nothing))}
    streams = {keys.inbox("*"): keys.inbox(nothing), keys.consent("*"): keys.consent(nothing)}
    return {
        f"XADD to {keys.tool_calls('*')}": partial(add, keys.tool_calls(nothing)),
        **{f"XRANGE {shown}": partial(redis.xrange, key, count=1) for shown, key in streams.items()},
        **{f"XDEL in {shown}": partial(redis.xdel, key, "0-1") for shown, key in streams.items()},
    }
