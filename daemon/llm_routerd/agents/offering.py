"""Which of the registered tools a request may use, and how models get to see them.

- A name that the request gives must be registered and allowed; of what a glob matches it gets what is allowed, and
  there must be something.  That is asked before the first turn; later, what has gone is not offered any more.
- Names that models are told have letters, digits, `_` and `-` only, as every provider takes them.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from llm_routerd.agents.registration import Tool, Unsound
from llm_routerd.protocol.codes import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llm_routerd.config.agents import AgentsConfig, Tenant
    from llm_routerd.jsonschema.compiled import AnswerSchema
    from llm_routerd.protocol.request import AgentSpec

MOST_TOOLS = 128
MOST_NAME = 64  # characters that every provider takes
_GLOB = re.compile("[*?]")
_NO_LETTER = re.compile(r"[^A-Za-z0-9_-]")


class Offer(Struct, frozen=True, kw_only=True):
    """The tools of one run.

    Attributes:
        tools: by the name that models are told.
        asks: names, as registered, of those whose calls wait for a person.
    """

    tools: Mapping[str, Tool]
    asks: frozenset[str]

    @property
    def parameters(self) -> Mapping[str, AnswerSchema]:
        """What the arguments of each must satisfy, by the name that models are told."""
        return {offered: tool.parameters for offered, tool in self.tools.items()}

    def as_functions(self) -> tuple[dict[str, Any], ...]:
        """As models are told, in OpenAI's form."""
        return tuple(
            {
                "type": "function",
                "function": {"name": offered, "description": tool.description, "parameters": _object(tool)},
            }
            for offered, tool in self.tools.items()
        )


class NotOffered(Struct, frozen=True):
    """Why a request cannot have what it asks for: `unknown_tool`, `tool_not_allowed` or `invalid_request`."""

    code: ErrorCode
    message: str


def tenant_of(tenants: Mapping[str, Tenant], tenant_id: str | None) -> Tenant | None:
    """The table that holds for a tenant."""
    return tenants.get(tenant_id or "default") or tenants.get("default")


def offer(
    spec: AgentSpec, registered: Mapping[str, Tool | Unsound], agents: AgentsConfig, tenant: Tenant | None
) -> Offer:
    """What a run is offered, as far as it is there and allowed."""
    allowed = allowed_names(registered, agents, tenant)
    names = sorted(name for name in allowed if _matches(name, spec.tools))[:MOST_TOOLS]
    found = {name: tool for name in names if isinstance(tool := registered[name], Tool)}
    asks = (name for name, tool in found.items() if tool.confirm or _matches(name, (*agents.confirm, *spec.confirm)))
    return Offer(
        tools={told: found[name] for told, name in zip(told_names(found), found, strict=True)}, asks=frozenset(asks)
    )


def refusal_of(
    spec: AgentSpec, registered: Mapping[str, Tool | Unsound], agents: AgentsConfig, tenant: Tenant | None
) -> NotOffered | None:
    """Why a run may not begin; None: it may."""
    allowed = allowed_names(registered, agents, tenant)
    for pattern in spec.tools:
        matching = [name for name in registered if fnmatchcase(name, pattern)]
        sound = [name for name in matching if isinstance(registered[name], Tool)]
        if not sound:
            message = _unknown(pattern, [registered[name] for name in matching], allowed)
            return NotOffered(ErrorCode.UNKNOWN_TOOL, message)
        if not allowed.intersection(sound):
            return NotOffered(ErrorCode.TOOL_NOT_ALLOWED, f"the operator does not let this tenant use `{pattern}`")
    offered = [name for name in allowed if _matches(name, spec.tools)]
    for pattern in spec.confirm:  # misspelt, it would have calls made that somebody wanted to be asked about
        if not any(fnmatchcase(name, pattern) for name in offered):
            return NotOffered(ErrorCode.UNKNOWN_TOOL, f"$.agent.confirm: no tool of this run matches `{pattern}`")
    if len(offered) > MOST_TOOLS:
        message = f"$.agent.tools: {len(offered)} tools match, more than the {MOST_TOOLS} that models are offered"
        return NotOffered(ErrorCode.INVALID_REQUEST, message)
    return None


def allowed_names(
    registered: Mapping[str, Tool | Unsound], agents: AgentsConfig, tenant: Tenant | None
) -> frozenset[str]:
    """The tools that a tenant may use."""
    return frozenset(
        name for name, tool in registered.items() if isinstance(tool, Tool) and _is_allowed(name, agents, tenant)
    )


def may_call(name: str, spec: AgentSpec, agents: AgentsConfig, tenant: Tenant | None) -> bool:
    """Whether a run may have this tool called, registered or not."""
    return _matches(name, spec.tools) and _is_allowed(name, agents, tenant)


def told_names(names: Iterable[str]) -> list[str]:
    """How models are told these names, in their order: without what providers do not take, and each another."""
    told: list[str] = []
    for name in names:
        plain = wanted = _NO_LETTER.sub("_", name)[:MOST_NAME]
        number = 1
        while wanted in told:
            number += 1
            wanted = f"{plain[: MOST_NAME - 4]}_{number}"
        told.append(wanted)
    return told


def _is_allowed(name: str, agents: AgentsConfig, tenant: Tenant | None) -> bool:
    narrowed = None if tenant is None else tenant.tools
    return _matches(name, agents.tools) and (narrowed is None or _matches(name, narrowed))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _unknown(pattern: str, unsound: Sequence[Tool | Unsound], allowed: Iterable[str]) -> str:
    """What is wrong with a name or a glob; the nearest name is one that this tenant may use."""
    reasons = [each.why for each in unsound if isinstance(each, Unsound)]
    if reasons and not _GLOB.search(pattern):
        return f"the tool `{pattern}` is registered, and the registration is none: {reasons[0]}"
    if _GLOB.search(pattern):
        return f"no tool is registered that matches `{pattern}`"
    near = get_close_matches(pattern, allowed, n=1)
    return f"no tool `{pattern}` is registered" + (f"; did you mean `{near[0]}`?" if near else "")


def _object(tool: Tool) -> dict[str, Any]:
    """The schema of its arguments; providers want one of an object."""
    raw = tool.parameters.raw
    return {"type": "object", **raw} if isinstance(raw, dict) else {"type": "object"}
