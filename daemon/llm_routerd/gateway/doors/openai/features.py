"""What chat completions and responses have in common: sampling, formats, tools.  Null counts as absent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llm_routerd.gateway.fault import refused, unsupported
from llm_routerd.gateway.properties import a_list, a_text, an_object, path
from llm_routerd.jsonschema.path import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_MAX_NAME: Final = 40

# Of a request, under the same names and with the same meaning; what values they may have is its schema's business.
SAMPLING: Final = frozenset(
    {"temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty", "parallel_tool_calls"}
)
# For the provider's books and caches.
FOR_PROVIDERS: Final = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)


def picked(given: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Those of the properties that are there, null counting as absent."""
    return {name: given[name] for name in names if given.get(name) is not None}


def params_of(given: Mapping[str, Any], *, limit: Any, effort: Any, has_schema: bool) -> dict[str, Any]:
    """A request's `params`: sampling as it is given, the longest answer in tokens, how long the model thinks.

    An answer that ends at the caller's own limit counts, but as JSON it would be none.
    """
    params = picked(given, SAMPLING)
    if limit is not None:
        params["max_tokens"] = limit
        if not has_schema:
            params["accept_length"] = True
    if effort is not None:
        params["reasoning_effort"] = effort
    return params


def schema_of(wanted: Mapping[str, Any], param: str, *, within: str = "") -> dict[str, Any] | None:
    """What an answer's format comes to; None: it may be any text.

    Args:
        wanted: the format, with its `type`.
        param: its name in the body.
        within: which object of it has the schema; "": itself.

    Raises:
        RefusedError: there is no such format.
    """
    match wanted.get("type"):
        case "text":
            return None
        case "json_object":
            return {"type": "object"}
        case "json_schema":
            where = path(param, within) if within else param
            holder = an_object(wanted.get(within), where) if within else wanted
            return an_object(holder.get("schema"), path(where, "schema"))
        case _:
            raise refused(f"{param}.type", "expected `text`, `json_object` or `json_schema`")


def tools_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """A request's `tools` and `tool_choice`, of tools in chat's form or in that of responses.

    Raises:
        RefusedError: one of them is no function.
    """
    fields: dict[str, Any] = {}
    if tools := a_list(given.get("tools", []), "tools"):
        fields["tools"] = [_function(tool, path("tools", number)) for number, tool in enumerate(tools)]
    match given.get("tool_choice"):
        case None:
            pass
        case "none" | "auto" if not tools:
            pass
        case str() as word:
            fields["tool_choice"] = word
        case {"type": "function", "function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            fields["tool_choice"] = {"type": "function", "function": {"name": name}}
        case {"type": "function"}:
            raise refused("tool_choice", "expected the name of a function")
        case _:
            raise unsupported("tool_choice")
    return fields


def _function(tool: Any, where: str) -> dict[str, Any]:
    tool = an_object(tool, where)
    if (kind := a_text(tool.get("type"), path(where, "type"))) != "function":
        told = f"of tools only functions are supported here, and no `{printable(kind[:_MAX_NAME])}`"
        raise refused(f"{where}.type", told, code="unsupported")
    function = an_object(tool.get("function", tool), path(where, "function"))
    return {"type": "function", "function": picked(function, ("name", "description", "parameters", "strict"))}
