"""The person of a storm, as a process: `python -m tests.chaos.approver URL RUNS` says yes or no to every call that waits.

Which of them it says, and how, follows from the call's id.  A word whose reply got lost is said again: it counts once.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import redis

from llm_routerd.protocol.events import FINAL_ID
from llm_routerd.protocol.keys import Keys

_KEYS = Keys()
_PAUSE_SECONDS = 0.2
_AGAIN_SECONDS = 3.0
_SETTLED = frozenset({"confirmed", "denied", "tool_result"})


def run_id(number: int) -> str:
    """The id of a run."""
    return f"order-run-{number}"


def word_for(call: dict[str, Any]) -> dict[str, str]:
    """What is said to a call: no to each fourth, yes to the others, to some of them with arguments of its own."""
    number = int(call["call_id"][-4:], 16)
    if number % 4 == 0:
        return {"deny": call["call_id"], "by": "approver", "reason": "not today"}
    word = {"confirm": call["call_id"], "args_sha256": call["args_sha256"], "by": "approver"}
    if number % 4 == 1:
        word["args"] = json.dumps({"seconds": 0})
    return word | ({"always": "1"} if number % 16 == 2 else {})


class Approver:
    """Reads the events of all runs, and answers."""

    def __init__(self, client: Any, runs: int) -> None:
        self._client = client
        self._seen = {run_id(number): "-" for number in range(runs)}
        self._said: dict[str, float] = {}

    def look(self) -> None:
        """Say what is to be said now.

        Raises:
            RedisError: the server is away.
        """
        pipe = self._client.pipeline(transaction=False)
        for request_id in self._seen:
            pipe.xrange(_KEYS.events(request_id))
        for request_id, entries in zip(tuple(self._seen), pipe.execute(), strict=True):
            if entries and entries[-1][0] == FINAL_ID:
                del self._seen[request_id]
                continue
            self._answer(request_id, [(fields["type"], json.loads(fields["data"])) for _, fields in entries])

    def _answer(self, request_id: str, events: list[tuple[str, dict[str, Any]]]) -> None:
        settled = {data["call_id"] for kind, data in events if kind in _SETTLED}
        for kind, data in events:
            if kind == "tool_call" and data.get("confirm") and data["call_id"] not in settled:
                now = time.monotonic()
                if now - self._said.get(data["call_id"], 0.0) > _AGAIN_SECONDS:
                    self._client.xadd(_KEYS.consent(request_id), word_for(data))
                    self._said[data["call_id"]] = now


def main() -> None:
    """Go on until it is ended."""
    url, runs = sys.argv[1], int(sys.argv[2])
    approver = Approver(redis.Redis.from_url(url, decode_responses=True, socket_timeout=3.0), runs)
    while True:
        try:
            approver.look()
        except redis.RedisError as error:
            print(f"approver: {type(error).__name__}", flush=True)
        time.sleep(_PAUSE_SECONDS)


if __name__ == "__main__":
    main()
