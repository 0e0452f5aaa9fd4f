"""What may be called, from Anthropic's form to OpenAI's."""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct

from llm_routerd.gateway.fault import refused
from llm_routerd.gateway.properties import Properties, a_flag, a_list, a_text, an_object, path

TOOL: Final = Properties(
    heeded=frozenset({"type", "name", "description", "input_schema", "strict", "defer_loading"}),
    idle=frozenset({"cache_control", "eager_input_streaming"}),
    refused={"allowed_callers": (["direct"],), "input_examples": ([],)},
)
CHOICE: Final = Properties(heeded=frozenset({"type", "name", "disable_parallel_tool_use"}))
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}


class Choice(Struct, frozen=True, kw_only=True):
    """A `tool_choice` in OpenAI's form; `is_single`: at most one call."""

    choice: Any
    is_single: bool


def tools_of(tools: Any, found: frozenset[str]) -> list[dict[str, Any]]:
    """The functions.

    One that is deferred is offered from when a search of the client's own has found it.

    Raises:
        RefusedError: one runs at Anthropic, or is known to its models alone.
    """
    read = [_tool(tool, f"tools.{number}") for number, tool in enumerate(a_list(tools, "tools"))]
    return [{"type": "function", "function": each} for each, waits in read if not waits or each["name"] in found]


def _tool(tool: Any, where: str) -> tuple[dict[str, Any], bool]:
    """The function, and whether it waits to be found."""
    kind = an_object(tool, where).get("type")
    if kind not in (None, "custom"):
        named = f" {kind}" if isinstance(kind, str) and kind.isidentifier() else ""
        told = f"the tool{named} is Anthropic's own and not supported here; leave it out"
        raise refused(path(where, "type"), told, code="unsupported")
    given = TOOL.of(tool, where)
    schema = an_object(given.get("input_schema"), path(where, "input_schema"))
    function = {"name": a_text(given.get("name"), path(where, "name")), "parameters": schema}
    for name in ("description", "strict"):
        if name in given:
            function[name] = given[name]
    return function, a_flag(given.get("defer_loading", False), path(where, "defer_loading"))


def choice_of(choice: Any) -> Choice:
    """What `tool_choice` says.

    Raises:
        RefusedError: it is none of this protocol.
    """
    given = CHOICE.of(choice, "tool_choice")
    is_single = a_flag(given.get("disable_parallel_tool_use", False), "tool_choice.disable_parallel_tool_use")
    kind = given.get("type")
    if kind == "tool":
        name = a_text(given.get("name"), "tool_choice.name")
        return Choice(choice={"type": "function", "function": {"name": name}}, is_single=is_single)
    if not isinstance(kind, str) or kind not in _CHOICES:
        raise refused("tool_choice.type", f"expected one of: {', '.join((*_CHOICES, 'tool'))}")
    return Choice(choice=_CHOICES[kind], is_single=is_single)
