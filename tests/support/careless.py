"""A tool worker that keeps every rule but the one that it is told to break, for what tries tool workers out.

`python -m tests.support.careless RULE`
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

BROKEN = sys.argv[1] if len(sys.argv) > 1 else ""
GROUP = "llm-tools" if BROKEN != "group" else "careless"
FILE = Path(os.environ["TOOL_FILE"])
CONSUMER = "one" if BROKEN != "pending" else f"one-{os.getpid()}"
STREAMS = ("llm:tools:echo", "llm:tools:note")
client: Any = redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True)
stopping: list[int] = []


def register() -> None:
    """Each tool, its group."""
    if BROKEN == "nothing":
        return
    tool = {
        "description": "A tool.",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}, "seconds": {"type": "number"}}},
    }
    if BROKEN == "registration":
        tool["timeout"] = "30 s"
    for stream in STREAMS:
        client.hset("llm:tools", stream.rpartition(":")[2], json.dumps(tool))
        with suppress(redis.ResponseError):
            client.xgroup_create(stream, GROUP, "0", mkstream=True)


def act(stream: str, call: dict[str, Any]) -> tuple[str, str]:
    """What to answer."""
    given = call["arguments"]
    if BROKEN != "arguments" and not isinstance(given.get("text"), str):
        return "error", "wrong"
    if stream.endswith("echo"):
        text = str(given.get("text"))
        return "result", text.encode("ascii", "replace").decode() if BROKEN == "bytes" else text
    noted = FILE.read_text().split("\n") if FILE.exists() else []
    if BROKEN == "once" or not any(line.startswith(call["call_id"]) for line in noted):
        with FILE.open("a") as file:
            file.write(f"{call['call_id']}{':' if BROKEN == 'format' else ''} {given.get('text')}\n")
        time.sleep(given.get("seconds", 0))
    return "result", "noted"


def serve(stream: str, entry: str, fields: dict[str, str]) -> None:
    """Answer one entry."""
    call = json.loads(fields["call"])
    seconds, _ = client.time()
    if BROKEN == "deadline" or call["deadline_ms"] > seconds * 1000:
        field, value = act(stream, call)
        if stopping and BROKEN == "stop":
            sys.exit()
        answer = {"call_id": call["call_id"], field: value}
        client.xadd(f"llm:inbox:{call['id']}", answer, nomkstream=BROKEN != "inbox")
        if BROKEN == "twice":
            client.xadd(f"llm:inbox:{call['id']}", answer, nomkstream=True)
    if BROKEN != "acknowledge":
        client.xack(stream, GROUP, entry)
    client.xdel(stream, entry)


def main() -> None:
    """Serve until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    register()
    position = "0"
    while not stopping or BROKEN == "never ends":
        try:
            reply = client.xreadgroup(GROUP, CONSUMER, dict.fromkeys(STREAMS, position), count=1, block=200)
            entries = [(stream, *entry) for stream, found in reply for entry in found]
            for entry in entries:
                serve(*entry)
            if not entries:
                position = ">"
        except redis.RedisError:
            if BROKEN == "connection":
                raise
            time.sleep(0.1)
            with suppress(redis.RedisError):
                register()
            position = "0"


main()
