"""The peer: what a user would write instead, a task of a Redis stream task queue (streaq) that calls litellm.

python -m tests.benchmarks.peer REDIS_URL MODEL_URL PREFIX CONCURRENCY
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson
import uvloop
from redis.asyncio import Redis
from streaq import Worker

from tests.benchmarks.wire import FINAL_ID, events_key, tell_ready

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_QUIET = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOG": "CRITICAL",
}


def make_worker(redis_url: str, model_url: str, prefix: str, concurrency: int) -> tuple[Worker[None], Any]:
    """The queue, and its one task; litellm is imported where the worker runs, and not where tasks are added."""
    redis = Redis.from_url(redis_url, protocol=2, max_connections=2 * concurrency)

    @asynccontextmanager
    async def ready() -> AsyncIterator[None]:
        import_litellm()
        tell_ready()
        yield

    worker: Worker[None] = Worker(redis_url, concurrency=concurrency, queue_name=prefix, lifespan=ready)

    async def answer(request: dict[str, Any]) -> None:
        key = events_key(prefix, request["id"])
        text = await (_stream if request["stream"] else _ask)(redis, key, model_url, request)
        await redis.xadd(
            key, {"type": "result", "data": orjson.dumps({"id": request["id"], "content": text})}, id=FINAL_ID
        )

    return worker, worker.task(answer)


def import_litellm() -> None:
    """Import it in silence."""
    os.environ.update(_QUIET)
    import litellm  # noqa: PLC0415 - after its environment, and not where tasks are added

    litellm.suppress_debug_info = True
    litellm.disable_hf_tokenizer_download = True
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _arguments(model_url: str, request: dict[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "api_base": f"{model_url}/v1",
        "api_key": "none",
        "messages": [{"role": "user", "content": request["prompt"]}],
        "num_retries": 0,
        "max_retries": 0,
        "timeout": 120,
    }
    if (schema := request.get("schema")) is not None:
        form = {"name": "answer", "schema": schema, "strict": True}
        arguments["response_format"] = {"type": "json_schema", "json_schema": form}
    return arguments


async def _stream(redis: Redis, key: str, model_url: str, request: dict[str, Any]) -> str:
    import litellm  # noqa: PLC0415 - only the worker has it

    parts = []
    stream = await litellm.acompletion(f"openai/{request['model']}", stream=True, **_arguments(model_url, request))
    async for chunk in stream:
        if text := chunk.choices[0].delta.content:
            parts.append(text)
            await redis.xadd(key, {"type": "token", "data": orjson.dumps({"text": text})})
    return "".join(parts)


async def _ask(_redis: Redis, _key: str, model_url: str, request: dict[str, Any]) -> str:
    import litellm  # noqa: PLC0415 - only the worker has it

    # The stand-in's precomputed answers are always streams; this model says the same without one.
    response = await litellm.acompletion(f"openai/{request['model']}-whole", **_arguments(model_url, request))
    return str(response.choices[0].message.content)


async def _main(redis_url: str, model_url: str, prefix: str, concurrency: str) -> None:
    worker, _ = make_worker(redis_url, model_url, prefix, int(concurrency))
    await worker.run_async()


if __name__ == "__main__":
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(_main(*sys.argv[1:]))
