"""How long a model is to think, and whether that is shown."""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct

from llm_routerd.gateway.fault import refused, unsupported
from llm_routerd.gateway.properties import Properties, a_count, an_object

THINKING: Final = {
    "disabled": Properties(heeded=frozenset({"type"})),
    "enabled": Properties(heeded=frozenset({"type", "budget_tokens", "display"}), idle=frozenset({"block_binding"})),
    "adaptive": Properties(heeded=frozenset({"type", "display"}), idle=frozenset({"block_binding"})),
}
_IS_SHOWN: Final = {"summarized": True, "updates": True, "omitted": False}
_EFFORTS: Final = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
# What such a budget is called, least first; the backend gives as much for the word.
_BUDGETS: Final = ((2048, "low"), (4096, "medium"))
_USUAL_EFFORT: Final = "medium"


class Thinking(Struct, frozen=True, kw_only=True):
    """As a request has it: `reasoning_effort` (None: the model's own), and whether it is told."""

    effort: str | None
    is_shown: bool = False


def thinking_of(config: Any, effort: str | None) -> Thinking:
    """What `thinking` says, with the effort that is asked for beside it.

    Raises:
        RefusedError: it is none of this protocol.
    """
    if config is None:
        return Thinking(effort=effort)
    kind = an_object(config, "thinking").get("type")
    if not isinstance(kind, str) or kind not in THINKING:
        raise unsupported("thinking.type") if kind == "between_tools" else _wrong("thinking.type", THINKING)
    given = THINKING[kind].of(config, "thinking")
    if kind == "disabled":
        return Thinking(effort="none")
    if effort is None and kind == "enabled":
        budget = a_count(given.get("budget_tokens"), "thinking.budget_tokens")
        effort = next((word for end, word in _BUDGETS if budget < end), "high")
    display = given.get("display", "summarized")
    if not isinstance(display, str) or display not in _IS_SHOWN:
        raise _wrong("thinking.display", _IS_SHOWN)
    return Thinking(effort=effort or _USUAL_EFFORT, is_shown=_IS_SHOWN[display])


def effort_of(effort: Any, where: str) -> str:
    """Anthropic's word for an effort as a request's.

    Raises:
        RefusedError: it is none.
    """
    if not isinstance(effort, str) or effort not in _EFFORTS:
        raise _wrong(where, _EFFORTS)
    return _EFFORTS[effort]


def _wrong(where: str, words: dict[str, Any]) -> Exception:
    return refused(where, f"expected one of: {', '.join(words)}")
