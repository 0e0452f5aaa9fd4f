"""Ask llm-routerd over redis-py alone: `python ask.py ["a prompt" [id]]`.

Exit code: 0 a result, 1 an error, 2 a cancellation, 69 no Redis for half a minute.
"""

import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as Lost
from redis.exceptions import TimeoutError as Silent
from redis.retry import Retry

EXIT_CODES = {"result": 0, "error": 1, "cancelled": 2}  # the final events
BLOCK_MS = 5_000
TRIES = 30


def patiently(command: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Repeat a command while Redis is away.  An XADD too: two entries with one id are one request."""
    for _ in range(TRIES):
        try:
            return command(*arguments, **options)
        except (Lost, Silent) as error:
            print(f"[{error}; trying again]", file=sys.stderr)
            time.sleep(1)
    sys.exit(69)


def follow(redis: Redis, request_id: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield each event's ID, type and data; goes on from the last ID seen, and ends after the final event."""
    key, last_id = f"llm:events:{request_id}", "0"
    while True:
        reply = patiently(redis.xread, {key: last_id}, block=BLOCK_MS)
        for _, entries in reply:
            for last_id, fields in entries:
                yield last_id, fields["type"], json.loads(fields["data"])
                if fields["type"] in EXIT_CODES:
                    return


def show(redis: Redis, request_id: str) -> int:
    """Write the answer as it comes; return the exit code."""
    shown = 0  # the attempt whose text is on the screen
    for event_id, kind, data in follow(redis, request_id):
        if shown and (kind in {"rejected", "attempt"} or (kind == "result" and data["attempt"] != shown)):
            print("\n[discarded]")
            shown = 0
        if kind == "token":
            print(data["text"], end="", flush=True)
            shown = int(event_id.split("-")[0])
        elif kind == "result":
            print("" if shown else data["raw_text"])
        elif kind in EXIT_CODES:
            print(f"\n{kind}: {data.get('message') or data.get('reason')}", file=sys.stderr)
    return EXIT_CODES[kind]


def main() -> int:
    """Submit one request and show what becomes of it."""
    prompt = sys.argv[1] if len(sys.argv) > 1 else "Why is the sky blue?"
    request_id = sys.argv[2] if len(sys.argv) > 2 else uuid.uuid4().hex
    url = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
    redis = Redis.from_url(url, decode_responses=True, socket_timeout=2 * BLOCK_MS / 1000, retry=Retry(NoBackoff(), 0))
    patiently(redis.xadd, "llm:requests", {"id": request_id, "prompt": prompt, "stream": "true"})
    return show(redis, request_id)


if __name__ == "__main__":
    sys.exit(main())
