"""The tools that are registered, as this worker has read them last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_routerd.agents.registration import Tool, Unsound, read_tool, too_long
from llm_routerd.jsonschema.compiled import SchemaCache
from llm_routerd.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm_routerd.queue.broker import Broker

log = get_logger()

_MOST_SCHEMAS = 1024


class Toolbox:
    """Reads registrations; what has not changed is not read anew.

    Args:
        broker: this worker's side of the queue.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._schemas = SchemaCache(_MOST_SCHEMAS)
        self._read: dict[str, tuple[bytes | int, Tool | Unsound]] = {}

    async def tools(self) -> Mapping[str, Tool | Unsound]:
        """What is registered now, by name."""
        registered = await self._broker.tools()
        before, self._read = self._read, {}
        for name, text in registered.items():
            known = before.get(name)
            if known is None or known[0] != text:
                known = text, too_long(text) if isinstance(text, int) else read_tool(name, text, self._schemas)
                if isinstance(known[1], Unsound):
                    log.warning("tool_registration_unsound", tool=name, why=known[1].why)
            self._read[name] = known
        return {name: tool for name, (_, tool) in self._read.items()}
