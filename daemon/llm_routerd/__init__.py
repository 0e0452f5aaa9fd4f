"""A daemon that takes LLM requests from a Redis stream and answers them local-first.

`Router` is the same router in-process; `llm_routerd.client.Client` speaks to the daemon, and a `ToolWorker` serves
tools to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_routerd.client.tool_worker import ToolError, ToolRequest, ToolWorker
    from llm_routerd.local_tools import tool
    from llm_routerd.router import NoAnswerError, Router

__all__ = ["NoAnswerError", "Router", "ToolError", "ToolRequest", "ToolWorker", "tool"]


def __getattr__(name: str) -> object:
    """Import what is asked for when it is: the command line and the client do without."""
    if name.startswith("Tool") and name in __all__:
        from llm_routerd.client import tool_worker  # noqa: PLC0415 - see above

        return getattr(tool_worker, name)
    if name == "tool":
        from llm_routerd import local_tools  # noqa: PLC0415 - see above

        return local_tools.tool
    if name in __all__:
        from llm_routerd import router  # noqa: PLC0415 - see above

        return getattr(router, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
