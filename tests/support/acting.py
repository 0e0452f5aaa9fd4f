"""Tool workers as processes of their own, which note in a file each time that they act: the truth about side effects."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from pathlib import Path

from llm_routerd import ToolRequest, ToolWorker
from tests.support.processes import ChildProcess

LEASE_SECONDS = 1.0


class ActingProcess(ChildProcess):
    """`python -m tests.support.acting`: serves `act`, and `act_again`, which is idempotent."""

    def __init__(self, url: str, file: Path, *, drain_seconds: float = 10.0) -> None:
        super().__init__("-m", "tests.support.acting", url, str(file), str(drain_seconds))

    async def until_ready(self) -> None:
        """Wait until it runs."""
        await self.until(lambda line: line == "running" or None)


def acts(file: Path) -> Counter[str]:
    """How often each call was begun."""
    return Counter(file.read_text().split()) if file.exists() else Counter()


def note(file: Path, call_id: str) -> None:
    """Act: a line that is there whatever happens to this process then."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{call_id}\n".encode())
    os.close(descriptor)


def main() -> None:
    """Serve until SIGTERM."""
    url, file, drain_seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    worker = ToolWorker(url, lease_seconds=LEASE_SECONDS, drain_seconds=drain_seconds, concurrency=4)

    @worker.tool
    def act(call: ToolRequest, seconds: float = 0.0) -> str:
        """Act, and take some time for it."""
        note(file, call.call_id)
        time.sleep(seconds)
        return "acted"

    @worker.tool(idempotent=True)
    async def act_again(call: ToolRequest, seconds: float = 0.0) -> int:
        """Act in a way that may be repeated; slow at the first time only."""
        note(file, call.call_id)
        if acts(file)[call.call_id] == 1:
            await asyncio.sleep(seconds)
        return os.getpid()

    print("running", flush=True)
    worker.serve()


if __name__ == "__main__":
    main()
