"""The floor: the least that a Python process can do to answer requests from a Redis stream, with no promise at all.

redis-py reads the job, aiohttp posts it, orjson parses the stream, the token events of all requests go out in shared
pipelines, tokens that wait together become one event, the result is XADDed, the entry acknowledged.
No retries, no deadlines, no leases, no judging, no metrics: whatever goes wrong ends it.

    python -m tests.benchmarks.floor REDIS_URL MODEL_URL PREFIX CONCURRENCY
"""

from __future__ import annotations

import asyncio
import math
import sys
from typing import Any

import aiohttp
import hiredis
import orjson
import uvloop
from redis.asyncio import Redis

from tests.benchmarks.wire import FINAL_ID, events_key, tell_ready

_GROUP = "floor"


class Writer:
    """Everything that goes to Redis, in one pipeline: what comes while a batch is under way forms the next one."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._wake = asyncio.Event()
        self._tokens: dict[str, str] = {}
        self._endings: list[tuple[Any, ...]] = []

    def token(self, key: str, text: str) -> None:
        """Text of an answer; joined with what still waits."""
        waiting = self._tokens.get(key)
        self._tokens[key] = text if waiting is None else waiting + text
        self._wake.set()

    def result(self, requests: str, key: str, entry: bytes, data: bytes) -> None:
        """An answer's end."""
        self._endings.append(("XADD", key, FINAL_ID, "type", "result", "data", data))
        self._endings.append(("XACK", requests, _GROUP, entry))
        self._wake.set()

    async def run(self) -> None:
        """Write for ever."""
        connection = await self._redis.connection_pool.get_connection()  # type: ignore[no-untyped-call]  # redis-py
        while True:
            await self._wake.wait()
            self._wake.clear()
            tokens, self._tokens = self._tokens, {}
            endings, self._endings = self._endings, []
            batch: list[tuple[Any, ...]] = [
                ("XADD", key, "*", "type", "token", "data", orjson.dumps({"text": text}))
                for key, text in tokens.items()
            ]
            batch += endings
            await connection.send_packed_command(b"".join(map(hiredis.pack_command, batch)), check_health=False)
            for _ in batch:
                await connection.read_response(timeout=math.inf)


class Floor:
    """The process."""

    def __init__(self, redis_url: str, model_url: str, prefix: str, concurrency: int) -> None:
        self._url = f"{model_url}/api/chat"
        self._prefix = prefix
        self._concurrency = concurrency
        self._requests = f"{prefix}:requests"
        self._redis = Redis.from_url(redis_url, protocol=2)
        self._writer = Writer(self._redis)
        self._tasks: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()

    async def run(self) -> None:
        """Answer requests until killed."""
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
            asyncio.TaskGroup() as group,
        ):
            await self._redis.xgroup_create(self._requests, _GROUP, "0", mkstream=True)
            group.create_task(self._writer.run())
            tell_ready()
            while True:
                free = self._concurrency - len(self._tasks)
                if not free:
                    self._freed.clear()
                    await self._freed.wait()
                    continue
                streams: dict[Any, Any] = {self._requests: ">"}
                reply: Any = await self._redis.xreadgroup(_GROUP, "floor", streams, count=free, block=2000)
                for entry, fields in reply[0][1] if reply else ():
                    task = group.create_task(self._answer(session, entry, fields[b"data"]))
                    self._tasks.add(task)
                    task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._freed.set()

    async def _answer(self, session: aiohttp.ClientSession, entry: bytes, data: bytes) -> None:
        request = orjson.loads(data)
        key = events_key(self._prefix, request["id"])
        body = {"model": request["model"], "messages": [{"role": "user", "content": request["prompt"]}], "stream": True}
        if (schema := request.get("schema")) is not None:
            body["format"] = schema
        streams = request["stream"]
        parts: list[str] = []
        rest = b""
        async with session.post(self._url, data=orjson.dumps(body)) as response:
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                text = "".join([orjson.loads(line)["message"]["content"] for line in lines])
                parts.append(text)
                if streams and text:
                    self._writer.token(key, text)
        result = {"id": request["id"], "content": "".join(parts)}
        self._writer.result(self._requests, key, entry, orjson.dumps(result))


async def _main(redis_url: str, model_url: str, prefix: str, concurrency: str) -> None:
    await Floor(redis_url, model_url, prefix, int(concurrency)).run()


if __name__ == "__main__":
    uvloop.run(_main(*sys.argv[1:]))
