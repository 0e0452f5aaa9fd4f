"""Serve two tools to llm-routerd: `pip install 'llm-routerd[tools]'`, then `TOOL_FILE=notes python tool_worker.py`.

`echo` gives back what it is given, and `note` appends a line to the file TOOL_FILE.  Ends on SIGTERM or Ctrl-C, with
what it has begun.
"""

import os
import time
from pathlib import Path
from typing import Annotated

from pydantic import Field

from llm_routerd import ToolRequest, ToolWorker

worker = ToolWorker(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"))
FILE = Path(os.environ.get("TOOL_FILE", "notes"))


@worker.tool(idempotent=True)
def echo(text: str) -> str:
    """Give back the text that it is given."""
    return text


# Not idempotent: where a worker dies within, the call is never run again, and the model is told `unknown outcome`.
@worker.tool(confirm=True, timeout_seconds=120)
def note(
    call: ToolRequest,
    text: Annotated[str, Field(description="What to note.")],
    seconds: Annotated[float, Field(ge=0, description="How long to take for it.")] = 0,
) -> str:
    """Append a line to the notes."""
    with FILE.open("a") as notes:
        notes.write(f"{call.call_id} {text}\n")
    time.sleep(seconds)
    return "noted"


if __name__ == "__main__":
    worker.serve()
